-- CIM_Job.Notify: somebody is told once when a run has ended, in whatever way,
-- after its last attempt, and when a job ends without one.
--
-- A handler is a function, a program ({ "program", "argument", ... }, which gets
-- the notice as JSON on its standard input), "log" (a line), or
-- "mailto:ADDRESS" (the system's sendmail). Handlers run as tasks of their own,
-- so they may wait. What goes wrong in one is logged and kept for engine:why; it
-- never changes the job. A notice follows the commit of what it tells; one that
-- a crash comes between is not given again.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"
local task = require "cairn.task"

local M = {}

local TIMEOUT_S = 60 -- of a program
local event = core.event

M.sendmail = { "/usr/sbin/sendmail", "/usr/lib/sendmail" }

local function sendmail()
  for _, name in ipairs(M.sendmail) do
    local file = io.open(name, "rb")
    if file then
      file:close()
      return name
    end
  end
end

-- One line, whatever a name has in it.
local function header(text)
  return (tostring(text):gsub("%c", " "))
end

local function line(notice)
  return header(("notify %s: %s (%s) is %s%s"):format(notice.Notify,
    notice.Name, notice.InstanceID, notice.JobState,
    notice.ErrorSummaryDescription and ": " .. notice.ErrorSummaryDescription
      or ""))
end

local function mail(address, notice)
  return ("To: %s\nSubject: %s: %s\nAuto-Submitted: auto-generated\n"
    .. "Content-Type: text/plain; charset=UTF-8\n\n%s\n\n"
    .. "Job: %s\nRun: %d\nErrorCode: %d\n"):format(header(address),
    header(notice.Name), notice.JobState, line(notice), notice.InstanceID,
    notice.run_number, notice.ErrorCode)
end

local function program(engine, argv, input)
  local result, message = task.program(engine, argv, { input = input },
    TIMEOUT_S)
  if not result then return nil, message end
  if result.code == 0 then return true end
  local said = (result.stderr or ""):match "^[^\n]*"
  return nil, ("%s ended with %s%s"):format(argv[1], result.code
    and "exit code " .. result.code or "signal " .. tostring(result.signal),
    said ~= "" and ": " .. said or "")
end

-- true | nil, message
local function deliver(engine, S, handler, notice)
  if type(handler) == "function" then
    local ok, err = xpcall(handler, failure.traceback, notice)
    if not ok then return nil, tostring(err) end
    return true
  elseif type(handler) == "table" then
    return program(engine, handler, (core.json_encode(notice)))
  end
  local address = handler:match "^mailto:(.+)$"
  if not address then
    E.log(S, line(notice))
    return true
  end
  local name = sendmail()
  if not name then return nil, "no sendmail on this system" end
  return program(engine, { name, "-i", "-t" }, mail(address, notice))
end

local is_well = { Completed = true, ["Completed With Warnings"] = true }

local function property(job, name) return job[name] end

-- Tells that a run (or, without one, the job) has ended in a JobState. What went
-- wrong is looked up only when somebody may be told: of the run, since its job
-- may have begun another.
local function tell(engine, S, ev, state, is_run)
  if S.simulate and not S.simulated then return end -- nothing has happened
  local job, serial = ev.job, ev.serial
  local ok, name = pcall(property, job, "Notify")
  local decides = E.decide.decides(S, serial, "notify")
  if not ok or not decides and (not name or name == "") then return end
  local code, text = 0, nil
  if not is_run then
    code, text = job.ErrorCode or 0, job.ErrorSummaryDescription
  elseif not is_well[state] then
    local record = E.record_of(engine, ev.InstanceID, ev.run_number)
    code = ev.ErrorCode or record and record.ErrorCode or 0
    text = record and record.ErrorDescription
  end
  if decides then
    name = E.decide.notify(engine, S, ev, state, code, text) or name
  end
  if not name or name == "" then return end
  local notice = { InstanceID = ev.InstanceID, Name = job.Name,
    JobState = state, run_number = ev.run_number, time = ev.time,
    ErrorCode = code, ErrorSummaryDescription = text, Notify = name }
  if S.simulated then return S.simulated.told(job, notice) end
  local own = S.handlers_of[serial] -- its policy's
  local handler = own and own[name] or S.notify[name]
    or name:find "^mailto:." and name or "log"
  local what = header(("notify %s: %s (%s)"):format(name, notice.Name,
    notice.InstanceID))
  local teller = task.spawn_on(engine, function()
    local well, message = deliver(engine, S, handler, notice)
    S.unnotified[serial] = not well and message or nil
    if not well then E.log(S, ("%s: %s"):format(what, message)) end
  end)
  teller.is_notice = what
end

-- Called for every event of a job.
function M.event(engine, S, ev)
  local serial = ev.serial
  if ev.type == event.RUN_ENDED then
    S.told[serial] = { run = ev.run_number, state = ev.JobState,
      is_retried = ev.is_retried }
    if ev.is_retried then return end
    tell(engine, S, ev, ev.JobState, true)
  elseif ev.type == event.STATE and core.state_is_final(ev.new_state) then
    local told = S.told[serial]
    S.told[serial] = nil
    if not told and ev.run_number > 0 then -- an earlier life has told it
      local record = E.record_of(engine, ev.InstanceID, ev.run_number)
      told = record and { run = ev.run_number, state = record.JobState }
    end
    -- the end of its run, and no end of its own beside it
    if told and not told.is_retried and told.run == ev.run_number
      and (told.state == ev.JobState
      or ev.new_state ~= 8 and ev.new_state ~= 9) then
      return
    end
    tell(engine, S, ev, ev.JobState, false)
  elseif ev.type == event.REMOVED then
    S.told[serial], S.unnotified[serial] = nil, nil
    S.handlers_of[serial] = nil
  end
end

-- A handler has decided that the run is not tried again.
function M.decided(engine, S, ev)
  S.told[ev.serial] = { run = ev.run_number, state = "Exception" }
  tell(engine, S, ev, "Exception", true)
end

-- Checks a table of handlers, such as cairn.open's option; raises.
function M.check(handlers, what)
  for name, handler in pairs(handlers) do
    local kind = type(handler)
    if type(name) ~= "string" or name == "" then
      failure.raise("wrong_type", "%s: names expected as keys, "
        .. "got %s", what, failure.shown(tostring(name)))
    elseif kind == "table" then
      if #handler == 0 then
        failure.raise("invalid_argument", "%s.%s: { program, "
          .. "argument, ... } expected, got an empty table", what, name)
      end
      for i, word in ipairs(handler) do
        if type(word) ~= "string" then
          failure.raise("wrong_type", "%s.%s[%d] must be a "
            .. "string, got %s", what, name, i, type(word))
        end
      end
    elseif kind ~= "function" and handler ~= "log"
      and not (kind == "string" and handler:find "^mailto:.") then
      failure.raise(kind == "string" and "invalid_argument" or "wrong_type",
        "%s.%s: a function, { program, argument, ... }, 'log' "
        .. "or 'mailto:ADDRESS' expected, got %s", what, name, kind == "string"
        and "'" .. failure.shown(handler) .. "'" or kind)
    end
  end
end

E.notify = M

return M
