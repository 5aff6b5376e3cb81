-- RecoveryAction Other: a handler of this program decides what becomes of a run
-- that has failed.
--
-- handler(job, failure, attempt) -> action[, delay]: an action of RecoveryAction
-- by label or number, or { action =, delay = }; nothing: Continue With Next Job.
-- failure has ErrorCode and message. Handlers run as tasks, so they may wait. One
-- that raises, or answers what is none, has decided nothing: it is logged.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"
local task = require "cairn.task"

local M = {}

local CONTINUE, RE_RUN = 3, 4
local BY_PROPERTIES = -1 -- CAIRN_RECOVER_BY_PROPERTIES
local BY_POLICY = 2      -- the event's status: who is asked

-- The number of an answer's action, and microseconds; raises.
function M.read(action, delay)
  if type(action) == "table" then
    failure.check_fields(action, { action = "any", delay = "any" }, "recovery")
    action, delay = action.action, action.delay
  end
  if action == nil then return CONTINUE, 0 end
  local number = type(action) == "string"
    and core.value_number("RecoveryAction", action) or action
  if math.type(number) ~= "integer" or number < 0 or number > 5
    or number == 1 then
    failure.raise("invalid_argument", "recovery: no action '%s'; valid are "
      .. "'Re-run Job', 'Run Recovery Job', 'Continue With Next Job' and "
      .. "'Do Not Continue'", failure.shown(tostring(action)))
  end
  local us = 0
  if delay ~= nil then
    if number ~= RE_RUN then
      failure.raise("invalid_argument", "recovery: a delay goes with "
        .. "'Re-run Job' only")
    end
    us = E.microseconds(delay, "recovery: delay", 2)
  end
  return number, us
end

-- Carries a decision out; a run that is over by it is told about. ev: of the
-- failure, its fields InstanceID, serial, job, run_number and time.
function M.settle(engine, S, ev, action, delay)
  local ok, is_over, code = core.recover(engine, ev.serial, action, delay)
  if not ok then return nil, is_over, code end
  if is_over then
    E.notify.decided(engine, S, ev)
    E.decide.over(S, ev.serial)
    if S.simulated then S.simulated.given_up(ev.job) end
  end
  return true
end

local function decide(engine, S, ev, handler, what)
  local job = ev.job
  local action, delay = CONTINUE, 0
  local ok, err = xpcall(function()
    action, delay = M.read(handler(job, { ErrorCode = job.ErrorCode,
      message = job.ErrorSummaryDescription }, job.attempts))
  end, function(e)
    return failure.is(e) and e or failure.traceback(e)
  end)
  -- the engine is being closed: the next one that has the store asks again
  if not ok and failure.is(err) and err.code == "terminated" then return end
  if not ok then
    E.log(S, ("recovery %s: %s (%s): %s"):format(what, job.Name,
      ev.InstanceID, tostring(err)))
    action, delay = CONTINUE, 0
  end
  local well, message, code = M.settle(engine, S, ev, action, delay)
  if not well then
    -- started, ended or removed by a client meanwhile
    if code ~= "invalid_state" and code ~= "not_found" then
      E.log(S, ("recovery %s: %s"):format(what, message))
    end
  end
end

-- The job's policy is asked first, and at once: it never waits.
local function ask_policy(engine, S, ev)
  local action, delay = E.decide.recover(engine, S, ev)
  local ok, message, code = M.settle(engine, S, ev, action or BY_PROPERTIES,
    delay or 0)
  if not ok and code ~= "invalid_state" and code ~= "not_found" then
    E.log(S, "recovery by policy: " .. message)
  end
end

E.task_events[core.event.TASK_RECOVER] = function(engine, S, ev)
  if ev.status == BY_POLICY then return ask_policy(engine, S, ev) end
  local name = ev.job.OtherRecoveryAction
  local handler = name and S.recovery[name]
  if not handler then return end
  task.spawn_on(engine, decide, engine, S, ev, handler, name)
end

-- Checks cairn.open's option; raises.
function M.check(handlers)
  for name, handler in pairs(handlers) do
    if type(name) ~= "string" or name == "" then
      failure.raise("wrong_type", "cairn.open: recovery: names expected as keys")
    elseif type(handler) ~= "function" then
      failure.raise("wrong_type", "cairn.open: recovery.%s: a function expected, "
        .. "got %s", name, type(handler))
    end
  end
end

E.recovery = M

return M
