-- Tasks: coroutines that the engine's turns resume. A run job's body is one,
-- started and steered by the engine's TASK events; cairn.spawn makes others.
--
-- A task runs until it waits, ends, or has had its slice (bindings/task.c). It
-- is resumed by turns only, never from within another task of its engine.
--
-- TERMINATE raises an error object with the code "terminated" in the body, at
-- its wait or where its slice ended, so that it can clean up. It may wait
-- while it does. GRACE_US later it is closed. KILL closes it at once: pending
-- to-be-closed variables are closed within a limit of instructions, and what
-- job:spawn started gets SIGKILL. SUSPEND leaves the task where it stands (it
-- always stands at a wait or the end of a slice when an event is handled) and
-- stops the programs it has started.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"

local M = {}

local GRACE_US = 1000000
local SIGTERM, SIGKILL, SIGCONT, SIGSTOP = 15, 9, 18, 19

local event = core.event
local jobs = core.job_methods

local Task = { __name = "cairn.task" }
Task.__index = Task
Task.__tostring = function(task)
  return ("cairn.task (%s)"):format(task.status)
end

-- ---- bodies -----------------------------------------------------------------------

-- Runs in the coroutine: true, results... | false, error, stack. The error
-- itself goes through unchanged, for the __close handlers it passes.
local function entry(fn, ...)
  local stack
  local function remember(err)
    stack = failure.stack(2)
    return err
  end
  local function outcome(ok, ...)
    if ok then return true, ... end
    return false, (...), stack
  end
  return outcome(xpcall(fn, remember, ...))
end

-- What a body raised, as ErrorCode and message. An error object's code is
-- respected, but for those that say how a job was ended.
local reserved = { terminated = true, killed = true, warning = true }

local function describe(value, stack)
  if type(value) == "table" and rawget(value, "code") ~= nil then
    local code = tostring(value.code)
    local row = failure.errors[code]
    local message = tostring(value.message or code)
    if row and not reserved[code] then return row, message end
    return failure.errors.script_error, ("%s: %s"):format(code, message)
  end
  local ok, message = pcall(tostring, value)
  if not ok then message = "(an error object that cannot be shown)" end
  return failure.errors.script_error, message .. (stack or "")
end

-- ---- processes of a task -------------------------------------------------------------

-- task.processes is a set of { engine =, S =, cookie = }.
local function signal_processes(task, number)
  for p in pairs(task.processes) do
    if core.is_open(p.engine) and p.S.processes[p.cookie] then
      core.program_signal(p.engine, p.cookie, number)
    end
  end
end

local function release_process(p)
  if core.is_open(p.engine) then core.program_release(p.engine, p.cookie) end
end

-- They outlive the task only as long as it takes them to die.
local function drop_processes(task)
  for p in pairs(task.processes) do
    if core.is_open(p.engine) and p.S.processes[p.cookie] then
      core.program_signal(p.engine, p.cookie, SIGKILL)
      p.S.processes[p.cookie] = function() release_process(p) end
    else
      release_process(p)
    end
  end
  task.processes = {}
end

-- ---- life ---------------------------------------------------------------------------

local function new_task(engine, S, fn, ...)
  -- every field from the start: setting one later needs no memory
  local task = setmetatable({ engine = engine, state = S, status = "new",
    co = false, start = false, signal = false, disarm = false, grace = false,
    cut_off_at = false, serial = false, job = false, next = false,
    is_queued = false, is_due = false, is_suspended = false,
    is_terminating = false, is_raising = false, is_killed = false,
    results = false, row = false, message = false, is_notice = false,
    processes = {}, waiters = {} }, Task)
  task.co = core.new_task(entry)
  task.start = table.pack(fn, ...)
  E.task_of[task.co] = task
  return task
end

-- The task is over; `row` and `message` when it failed. Everything that could
-- fail for want of memory comes last.
local function settle(engine, S, task, row, message)
  task.status, task.start = "done", false
  task.row, task.message = row or false, message or false
  if task.serial then
    if S.tasks[task.serial] == task then S.tasks[task.serial] = nil end
  else
    S.background[task] = nil
  end
  local waiters = task.waiters
  task.waiters = false
  for _, wake in ipairs(waiters) do wake() end
  local disarm, grace = task.disarm, task.grace
  task.disarm, task.grace = false, false
  if disarm then disarm() end
  if grace then E.stop_timer(engine, S, grace) end
  drop_processes(task)
  if not task.serial and row and #waiters == 0 and not reserved[row.code] then
    E.log(S, "background task: " .. message)
  end
end

-- Tells the engine how a body ended. When there is no memory for that, the
-- ending (its task, or the row of an error) is kept, in a place made with the
-- job, and the next turn tells it again: else the job would stay Running.
local function finish(engine, S, serial, row, message, ending)
  local ok, done, why, code = pcall(core.task_finish, engine, serial,
    row and row.ErrorCode or nil, row and message or nil)
  local place = S.endings[serial]
  if place ~= nil then S.endings[serial] = false end
  if ok and done then return end
  if (not ok or code == "no_memory") and place ~= nil then
    S.endings[serial], S.is_untold = ending, true
  -- a job that was killed or removed meanwhile has ended already
  elseif code ~= "invalid_state" and code ~= "not_found" then
    E.log(S, ("job %d: cannot end it: %s"):format(serial,
      tostring(ok and why or done)))
  end
end

local function report(engine, S, task, row, message)
  if not task.serial then return end
  finish(engine, S, task.serial, row, message, task)
end

function E.report_again(engine, S)
  S.is_untold = false
  for serial, ending in pairs(S.endings) do
    if getmetatable(ending) == Task then
      finish(engine, S, serial, ending.row, ending.message, ending)
    elseif ending then
      finish(engine, S, serial, ending, ending.summary, ending)
    end
  end
end

local function ended(engine, S, task, ok, ...)
  local row, message
  if ok then
    task.results = table.pack(...)
  else
    local value, stack = ...
    row, message = describe(value, stack)
    if task.is_terminating
      and (type(value) ~= "table" or value.code ~= "terminated") then
      E.log(S, ("clean-up of %s: %s"):format(tostring(task.job or task),
        message))
    end
  end
  if task.is_terminating then
    row, message = failure.errors.terminated, "terminated at a client's request"
  end
  settle(engine, S, task, row, message)
  report(engine, S, task, row, message)
end

-- Ends a task that may be anywhere but running, without telling the engine.
function E.close_task(engine, S, task, row, message)
  if task.status == "done" then return end
  row = row or failure.errors.killed
  if task.disarm then
    task.disarm()
    task.disarm = false
  end
  local ok, err = pcall(core.close_task, task.co)
  if not ok or err ~= nil then
    local _, text = pcall(tostring, err)
    E.log(S, ("closing %s: %s"):format(tostring(task.job or task), text))
  end
  settle(engine, S, task, row, message or "killed at a client's request")
end

-- Its second for cleaning up is over.
local function cut_off(engine, S, task)
  local message = "terminated at a client's request; its clean-up was cut off "
    .. "after a second"
  local row = failure.errors.terminated
  E.close_task(engine, S, task, row, message)
  report(engine, S, task, row, message)
end

local function resumed(engine, S, task, outcome, first, ...)
  if outcome == "done" then
    ended(engine, S, task, first, ...)
    return
  elseif outcome == "error" then
    ended(engine, S, task, false, first)
    return
  end
  if task.is_killed then
    E.close_task(engine, S, task)
  elseif outcome == "slice" and task.cut_off_at
    and core.monotonic() > task.cut_off_at then
    cut_off(engine, S, task)
  elseif outcome == "wait" and first == E.WAIT then
    task.status = "waiting"
  else -- its slice is over, or the body itself yielded
    task.status = "ready"
    E.ready(task)
  end
end

function E.run_task(engine, S, task)
  if task.status == "done" then return end
  if task.is_suspended then
    task.is_due = true
    return
  end
  local start, is_raising = task.start, task.is_raising
  task.start, task.is_raising, task.status = false, false, "running"
  local signal = task.signal
  task.signal = false
  if start then
    resumed(engine, S, task, core.resume(task.co, false,
      table.unpack(start, 1, start.n)))
  else
    resumed(engine, S, task, core.resume(task.co, is_raising, signal))
  end
end

-- Terminates (or kills) a task.
function E.end_task(engine, S, task, mode)
  if task.status == "done" then return end
  if mode == "kill" then
    if task.status == "running" then
      task.is_killed = true
    else
      E.close_task(engine, S, task)
    end
    return
  elseif task.is_terminating then
    return
  end
  task.is_terminating = true
  if task.is_suspended then
    task.is_suspended = false
    signal_processes(task, SIGCONT)
  end
  if task.status == "new" then
    ended(engine, S, task, true)
    return
  elseif task.disarm then
    task.disarm()
    task.disarm = false
    task.signal = E.TERMINATED
  else
    task.is_raising = true
  end
  E.ready(task)
  -- By the engine's clock when it waits, by the system's when it never does
  -- (which holds a virtual clock still).
  task.cut_off_at = core.monotonic() + GRACE_US
  task.grace = E.start_timer(engine, S, GRACE_US, function()
    task.grace = false
    cut_off(engine, S, task)
  end)
end

-- Steering a task raised, which only a lack of memory does: rather than lost,
-- the task is ended and its job fails.
function E.fail_task(engine, S, task, serial, err)
  local row = failure.errors.no_memory
  local message = tostring(err)
  if task then E.close_task(engine, S, task, row, message) end
  if serial then
    finish(engine, S, serial, row, message, row)
  else
    E.log(S, "background task: " .. message)
  end
end

-- ---- what the engine asks --------------------------------------------------------------

local on = E.task_events

on[event.TASK_START] = function(engine, S, ev)
  local serial = ev.serial
  if S.tasks[serial] then E.close_task(engine, S, S.tasks[serial]) end
  local name = core.task_code(engine, serial)
  local body = S.bodies[serial] or name and E.kinds[name]
  if not body then
    local row = failure.errors.script_error
    finish(engine, S, serial, row, "the job has no body: it was not submitted "
      .. "with run = function by this program", row)
    return
  end
  local task = new_task(engine, S, body, ev.job)
  task.serial, task.job = serial, ev.job
  S.tasks[serial] = task
  E.ready(task)
end

on[event.TASK_SUSPEND] = function(engine, S, ev)
  local task = S.tasks[ev.serial]
  if not task then return end
  task.is_suspended = true
  signal_processes(task, SIGSTOP)
  core.task_parked(engine, ev.serial)
end

on[event.TASK_RESUME] = function(_, S, ev)
  local task = S.tasks[ev.serial]
  if not task or not task.is_suspended then return end
  task.is_suspended = false
  signal_processes(task, SIGCONT)
  if task.is_due then
    task.is_due = false
    E.ready(task)
  end
end

on[event.TASK_TERMINATE] = function(engine, S, ev)
  local task = S.tasks[ev.serial]
  if task then
    E.end_task(engine, S, task, "terminate")
  else
    local row = failure.errors.terminated
    finish(engine, S, ev.serial, row, "terminated at a client's request", row)
  end
end

on[event.TASK_KILL] = function(engine, S, ev)
  local task = S.tasks[ev.serial]
  if task then E.close_task(engine, S, task) end
end

on[event.TASK_ANSWER] = function(engine, S, ev)
  local fn = S.answers[ev.serial]
  if fn then fn(core.task_answer(engine, ev.serial)) end
end

-- ---- a body's methods -----------------------------------------------------------------

local function place(job)
  if not core.is_job(job) then
    error("a job expected; call its methods with a colon (job:sleep(1))", 3)
  end
  local engine, serial = core.job_engine(job)
  return engine, core.state(engine), serial
end

-- The running task must be the job's own body.
local function own(job, what)
  local engine, S, serial = place(job)
  local task = E.task_of[coroutine.running()]
  if not task or task.state ~= S or task.serial ~= serial then
    error(what .. " is for the job's own body, run = function(job) ... end", 3)
  end
  return engine, S, serial
end

function jobs.sleep(job, seconds)
  local engine = place(job)
  E.park(engine, "job:sleep", E.microseconds(seconds, "job:sleep", 2), nil, 2)
end

function jobs.progress(job, percent)
  local engine, _, serial = place(job)
  if type(percent) ~= "number" then
    error("job:progress: a number from 0 to 100 expected, got "
      .. type(percent), 2)
  elseif percent ~= percent then
    error("job:progress: a number from 0 to 100 expected, got NaN", 2)
  end
  return core.task_progress(engine, serial, percent)
end

function jobs.warn(job, message)
  local engine, _, serial = place(job)
  if type(message) ~= "string" then
    error("job:warn: a string expected, got " .. type(message), 2)
  end
  return core.task_warn(engine, serial, message)
end

-- ask{ question =, choices = } -> the answer
function jobs.ask(job, options)
  local engine, S, serial = own(job, "job:ask")
  local valid, err = pcall(failure.check_fields, options,
    { question = "string!", choices = "list" }, "job:ask")
  if not valid then error(tostring(err), 2) end
  local choices = options.choices
  for i, choice in ipairs(choices or {}) do
    if type(choice) ~= "string" then
      error(("job:ask: choices[%d] must be a string, got %s"):format(i,
        type(choice)), 2)
    end
  end
  if choices and #choices == 0 then
    error("job:ask: choices is empty; leave it out for free text", 2)
  end
  E.check_wait(S, "job:ask", 2)
  local ok, message, code = core.task_ask(engine, serial, options.question,
    choices)
  if not ok then return nil, message, code end
  local answer = E.park(engine, "job:ask", nil, function(wake)
    S.answers[serial] = wake
    return function()
      if S.answers[serial] == wake then S.answers[serial] = nil end
    end
  end, 2)
  return answer
end

function jobs.wait_for(job, other, timeout)
  local _, S, serial = place(job)
  if not core.is_job(other) then
    error("job:wait_for: a job expected, got " .. type(other), 2)
  end
  local other_engine, other_serial = core.job_engine(other)
  if other_serial == serial and core.state(other_engine) == S then
    error("job:wait_for: a job cannot wait for itself", 2)
  end
  return E.wait_job(other, timeout, "job:wait_for", 1) -- 1: a tail call
end

-- An option table's environment as "K=V".
local function environment(env)
  if env == nil then return nil end
  local list = {}
  for key, value in pairs(env) do
    if type(key) ~= "string" or key == "" or key:find("[=%z]") then
      error("job:spawn: env: names of variables expected as keys, got "
        .. failure.shown(key), 3)
    elseif type(value) ~= "string" and type(value) ~= "number" then
      error(("job:spawn: env.%s must be a string, got %s"):format(key,
        type(value)), 3)
    end
    list[#list + 1] = key .. "=" .. tostring(value)
  end
  table.sort(list)
  return list
end

local spawn_names = { "input", "env", "cwd" }
local spawn_types = { input = "string", env = "table", cwd = "string" }

-- Runs a program and waits for its end: a table | nil, message, code.
local function run_program(engine, S, serial, argv, options, what, seconds)
  local task = E.check_wait(S, what, 3)
  local cookie = E.cookie(S)
  local ok, message, code = core.program_start(engine, serial, argv,
    environment(options.env), options.cwd, options.input, cookie)
  if not ok then return nil, message, code end
  S.process_count = S.process_count + 1
  local p = { engine = engine, S = S, cookie = cookie }
  if task then task.processes[p] = true end
  local status = E.park(engine, what, seconds and seconds * 1000000,
    function(wake)
      S.processes[cookie] = wake
      return function()
        if S.processes[cookie] == wake then -- ended by Terminate, not by itself
          core.program_signal(engine, cookie, SIGTERM)
          S.processes[cookie] = function() release_process(p) end
        end
      end
    end, 3)
  if status == E.TIMEOUT then
    return nil, ("%s has not ended after %g s"):format(argv[1], seconds),
      "timeout"
  end
  if status == nil then return nil, "the engine was closed", "closed" end
  local result = { stdout = core.program_output(engine, cookie, 1),
    stderr = core.program_output(engine, cookie, 2) }
  core.program_release(engine, cookie)
  if task then task.processes[p] = nil end
  if status & 0x7f == 0 then
    result.code = status >> 8 & 0xff
  else
    result.signal = status & 0x7f
  end
  return result
end

-- spawn{ "program", "argument", ..., input =, env =, cwd = }
--   -> { code =, signal =, stdout =, stderr = } | nil, message, code
function jobs.spawn(job, options)
  local engine, S, serial = place(job)
  if type(options) ~= "table" then
    error("job:spawn: a table expected, got " .. type(options), 2)
  end
  local argv = {}
  for i = 1, #options do
    local argument = options[i]
    if type(argument) == "number" then argument = tostring(argument) end
    if type(argument) ~= "string" then
      error(("job:spawn: [%d] must be a string, got %s"):format(i,
        type(options[i])), 2)
    elseif argument:find("\0", 1, true) then
      error(("job:spawn: [%d] has a NUL byte in it"):format(i), 2)
    end
    argv[i] = argument
  end
  for key, value in pairs(options) do
    local is_argument = math.type(key) == "integer" and argv[key] ~= nil
    if not is_argument and not spawn_types[key] then
      error(("job:spawn: unknown key '%s'; did you mean '%s'?"):format(
        failure.shown(key), failure.nearest(key, spawn_names)), 2)
    elseif not is_argument and type(value) ~= spawn_types[key] then
      error(("job:spawn: %s must be a %s, got %s"):format(key,
        spawn_types[key], type(value)), 2)
    end
  end
  if #argv == 0 then error("job:spawn: [1] must be a program", 2) end
  return run_program(engine, S, serial, argv, options, "job:spawn")
end

-- program(engine, argv, options, seconds) -> as job:spawn, of no job; a task's
function M.program(engine, argv, options, seconds)
  local S = core.state(engine)
  return run_program(engine, S, 0, argv, options, "program", seconds)
end

-- ---- tasks without a job -----------------------------------------------------------------

function M.spawn(fn, ...)
  if type(fn) ~= "function" then
    error("cairn.spawn: a function expected, got " .. type(fn), 2)
  end
  return M.spawn_on(E.default("cairn.spawn"), fn, ...)
end

function M.spawn_on(engine, fn, ...)
  local S = core.state(engine)
  local task = new_task(engine, S, fn, ...)
  S.background[task] = true
  E.ready(task)
  E.update_ref(S)
  return task
end

function M.sleep(seconds)
  local engine = E.default("cairn.sleep")
  E.park(engine, "cairn.sleep", E.microseconds(seconds, "cairn.sleep", 2),
    nil, 2)
end

-- task:wait([timeout]) -> what the function returned | nil, message, code
function Task:wait(timeout)
  local timeout_us = timeout ~= nil
    and E.microseconds(timeout, "task:wait", 2) or nil
  if E.task_of[coroutine.running()] == self then
    error("task:wait: a task cannot wait for itself", 2)
  end
  if self.status ~= "done" then
    local result = E.park(self.engine, "task:wait", timeout_us,
      function(wake)
        table.insert(self.waiters, wake)
        return function()
          for i, other in ipairs(self.waiters or {}) do
            if other == wake then
              table.remove(self.waiters, i)
              break
            end
          end
        end
      end, 2)
    if result == E.TIMEOUT then
      return nil, ("the task has not ended after %g s"):format(
        timeout_us / 1e6), "timeout"
    end
  end
  if self.row then return nil, self.message, self.row.code end
  return table.unpack(self.results, 1, self.results.n)
end

-- task:kill(): ends a task of cairn.spawn at once.
function Task:kill()
  E.end_task(self.engine, self.state, self, "kill")
end

return M
