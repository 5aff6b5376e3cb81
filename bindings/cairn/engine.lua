-- Engines: turns, events, and the one place where anything waits.
--
-- A TURN does what is due in the engine, hands out at most 256 events and gives
-- every task that is ready one slice. Turns never nest.
--
-- WAITING (M.park) has three forms. In a task: the task yields until it is
-- woken. Outside: the engine is driven, by luv's loop when it is attached to
-- one that is not running, by turns else. Anywhere else (in a handler, on a
-- foreign coroutine, under a running loop) nobody could wake the caller: it
-- raises and says what to do instead.
--
-- The state of an engine's Lua side is the table core.state(engine), S here.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"
local collection = require "cairn.collection"
local path = require "cairn.path"

local M = {}

local BATCH = 256
local WAKE = 1            -- cookie of the timer that makes pollfd readable
local FIRST_COOKIE = 16
local POLL_US = 20000     -- between looks at work a virtual clock cannot see
local LOOK_US = 5000      -- between looks at the engine of another task's wait
local WAIT_MAX_US = 1000000
local CLOSE_SECONDS = 10

local event = core.event
local methods = core.engine_methods
local jobs = core.job_methods

M.WAIT = setmetatable({}, { __name = "cairn.wait" })
-- Results made beforehand: being woken with these needs no memory.
local NOTHING, TIMED_OUT = { n = 0 }, { n = 1 }
M.TIMEOUT = setmetatable({}, { __name = "cairn.timeout" })
TIMED_OUT[1] = M.TIMEOUT
M.TERMINATED = setmetatable({}, { __name = "cairn.terminated" })

-- Filled by cairn/task.lua, which needs this module itself:
M.task_events = {} -- event type -> function(engine, S, event)
M.run_task = nil   -- (engine, S, task): one slice
M.end_task = nil   -- (engine, S, task, mode): terminates or kills it
M.close_task = nil -- (engine, S, task, row, message): ends it, tells nobody
M.fail_task = nil  -- (engine, S, task, serial, err): steering it failed
M.notify = nil     -- cairn/notify.lua
M.metrics = nil    -- cairn/metrics.lua
M.recovery = nil   -- cairn/recovery.lua
M.decide = nil     -- cairn/decide.lua
M.report_again = nil -- (engine, S): what the engine had no memory for
M.task_of = setmetatable({}, { __mode = "k" }) -- coroutine -> its task

local in_handler = setmetatable({}, { __mode = "k" }) -- coroutine -> depth
local engines = setmetatable({}, { __mode = "v" }) -- in order of opening
local engine_count = 0

-- ---- small things ------------------------------------------------------------------

-- Seconds (or an interval) as microseconds; raises for anything else.
function M.microseconds(value, what, level)
  local t, message
  if type(value) == "number" or type(value) == "string"
    or type(value) == "userdata" then
    t, message = core.interval(value)
  end
  if not t then
    error(("%s: %s"):format(what, message
      or "seconds or an interval expected, got " .. type(value)),
      (level or 1) + 1)
  end
  return t.microseconds
end

function M.log(S, message)
  local ok = pcall(S.log, message)
  if not ok then io.stderr:write("cairn: ", tostring(message), "\n") end
end

local function state(engine)
  if not core.is_engine(engine) then
    error("an engine expected; call its methods with a colon (engine:step())",
      3)
  end
  return core.state(engine)
end

-- The same of an engine that must be open.
local function opened(engine)
  if not core.is_engine(engine) then
    error("an engine expected; call its methods with a colon (engine:step())",
      3)
  elseif not core.is_open(engine) then
    error("attempt to use a closed engine", 3)
  end
  return core.state(engine)
end

-- The engine that cairn.spawn and cairn.sleep mean: the running task's, else
-- the one opened last that is still open.
function M.default(what)
  local task = M.task_of[coroutine.running()]
  if task then return task.engine end
  for i = engine_count, 1, -1 do
    local engine = engines[i]
    if engine and core.is_open(engine) then return engine end
  end
  error(what .. " needs an open engine: cairn.open first", 3)
end

-- ---- timers and readiness ------------------------------------------------------------

function M.cookie(S)
  S.last_cookie = S.last_cookie + 1
  return S.last_cookie
end

-- Calls fn in a turn after a delay; returns a cookie for stop_timer.
function M.start_timer(engine, S, delay_us, fn)
  local cookie = M.cookie(S)
  S.timers[cookie] = fn
  local ok, message, code = core.timer_start(engine, delay_us, cookie)
  if not ok then
    S.timers[cookie] = nil
    failure.raise(code, "%s", message)
  end
  return cookie
end

function M.stop_timer(engine, S, cookie)
  if S.timers[cookie] then
    S.timers[cookie] = nil
    if core.is_open(engine) then core.timer_stop(engine, cookie) end
  end
end

-- Makes pollfd readable, for loops that only look at that. Never raises: who
-- is ready stays so, and the end of the next turn tries again.
local function wake(engine, S)
  if S.is_wake_set or not core.is_open(engine) then return end
  local ok, is_set = pcall(core.timer_start, engine, 0, WAKE)
  if ok and is_set then S.is_wake_set = true end
end

-- The task may run in the next turn.
function M.ready(task)
  if task.status == "done" or task.is_queued then return end
  if task.is_suspended then
    task.is_due = true
    return
  end
  -- A list through the tasks: being woken needs no memory.
  local S = task.state
  task.is_queued, task.next = true, false
  if S.last_ready then
    S.last_ready.next = task
  else
    S.first_ready = task
  end
  S.last_ready = task
  wake(task.engine, S)
end

-- A luv loop lives while jobs are unfinished, tasks run or somebody waits.
function M.update_ref(S)
  local poll = S.poll
  if not poll then return end
  if S.unfinished_count > 0 or next(S.background) or S.holds > 0
    or S.first_ready then
    poll:ref()
  else
    poll:unref()
  end
end

-- ---- turns --------------------------------------------------------------------------

local function tell(S, list, ev)
  local co = coroutine.running()
  for _, handler in ipairs(list) do
    if not handler.is_gone then
      in_handler[co] = (in_handler[co] or 0) + 1
      local ok, message = xpcall(handler.fn, failure.traceback, ev)
      in_handler[co] = in_handler[co] > 1 and in_handler[co] - 1 or nil
      if not ok then
        M.log(S, ("handler of %s: %s"):format(ev.name, message))
      end
    end
  end
end

local function forget(S, serial)
  if S.unfinished[serial] then
    S.unfinished[serial] = nil
    S.unfinished_count = S.unfinished_count - 1
  end
end

local function dispatch(engine, S, ev)
  local kind, serial = ev.type, ev.serial
  if kind == event.TIMER then
    if ev.cookie == WAKE then
      S.is_wake_set = false
      return
    end
    local fn = S.timers[ev.cookie]
    S.timers[ev.cookie] = nil
    if fn then fn() end
    return
  elseif kind == event.PROCESS then
    local fn = S.processes[ev.cookie]
    S.processes[ev.cookie] = nil
    if fn then
      S.process_count = S.process_count - 1
      fn(ev.status)
    end
    return
  elseif kind == event.BACKUP then
    local fn = S.backups[ev.cookie]
    S.backups[ev.cookie] = nil
    if fn then fn(ev.code) end
    return
  elseif kind == event.STORE then
    ev.message = core.store_error(engine)
    M.log(S, ev.message or "the store works again")
  elseif M.task_events[kind] then
    local ok, err = pcall(M.task_events[kind], engine, S, ev)
    if not ok then M.fail_task(engine, S, S.tasks[serial], serial, err) end
    return
  end
  if kind == event.SUBMITTED and not S.unfinished[serial] then
    S.unfinished[serial] = ev.job
    S.unfinished_count = S.unfinished_count + 1
  elseif kind == event.STATE and core.state_is_final(ev.new_state) then
    forget(S, serial)
    S.bodies[serial], S.endings[serial] = nil, nil
  elseif kind == event.REMOVED then
    forget(S, serial)
    S.bodies[serial], S.endings[serial] = nil, nil
  end
  if serial then
    M.metrics.count(engine, S, ev)
    M.notify.event(engine, S, ev)
    M.decide.event(engine, S, ev)
  end
  local watchers = serial and S.watchers[serial]
  if watchers then
    for _, watcher in ipairs(table.move(watchers, 1, #watchers, 1, {})) do
      watcher(ev)
    end
    if kind == event.REMOVED then S.watchers[serial] = nil end
  end
  local list = S.handlers[ev.name]
  if list then tell(S, list, ev) end
end

-- Wakes those whose changes are durable, or cannot be for now.
local function tell_committers(engine, S)
  if not S.committers[1] then return end
  local durable, message = core.durable(engine), core.store_error(engine)
  local left, list = {}, S.committers
  for _, committer in ipairs(list) do
    if committer.turn <= durable then
      committer.wake(true)
    elseif message then
      committer.wake(nil, message, "store_failed")
    else
      left[#left + 1] = committer
    end
  end
  S.committers = left
end

local function turn(engine, S)
  if S.is_untold then M.report_again(engine, S) end
  local more = core.step(engine)
  tell_committers(engine, S)
  local count = 0
  while count < BATCH do
    local ev = core.next_event(engine)
    if not ev then break end
    count = count + 1
    local ok, message = xpcall(dispatch, failure.traceback, engine, S, ev)
    if not ok then M.log(S, ("event %s: %s"):format(ev.name, message)) end
  end
  local task, last = S.first_ready, S.last_ready
  while task do
    S.first_ready = task.next
    if task == S.last_ready then S.last_ready = false end
    task.is_queued, task.next = false, false
    local ok, err = pcall(M.run_task, engine, S, task)
    if not ok then M.fail_task(engine, S, task, task.serial, err) end
    task = task ~= last and S.first_ready -- who came later waits
  end
  local has_ready = S.first_ready ~= false
  if has_ready or S.is_untold then wake(engine, S) end
  M.update_ref(S)
  return more or count > 0 or has_ready or S.is_untold
end

-- One turn; whether there may be more to do at once.
function M.turn(engine, S)
  if S.is_turning then
    error("the engine is being driven already: step and run cannot be called "
      .. "from a handler or a task; use cairn.spawn", 3)
  end
  S.is_turning = true
  local ok, busy = pcall(turn, engine, S)
  S.is_turning = false
  if not ok then error(busy, 0) end
  return busy
end

-- ---- driving from outside -------------------------------------------------------------

-- Something of this engine runs in real time, whatever the clock.
local function has_outside_work(engine, S)
  return S.process_count > 0 or core.is_working(engine)
end

-- Nothing to do now: waits for more, or moves a virtual clock to what is due
-- next. False when nothing ever will come: no program, thread or timer is on.
local function rest(engine, S, limit_us)
  if has_outside_work(engine, S) or next(S.backups) ~= nil
    or core.durable(engine) < core.turn(engine) then
    core.wait(engine, S.is_virtual and POLL_US or limit_us)
    return true
  end
  local due = core.timeout(engine)
  if due < 0 then return false end
  if not S.is_virtual then
    core.wait(engine, limit_us)
  elseif due > 0 then
    core.advance(engine, due)
  end
  return true
end

-- Drives the engine until done(); false when nothing is left to drive it for.
local function drive(engine, S, done)
  local uv = S.uv
  if uv then
    S.holds = S.holds + 1
    M.update_ref(S)
    local ok, message = pcall(function()
      -- a callback may take the engine off the loop, or close it
      while S.uv == uv and not done() do uv.run("once") end
    end)
    S.holds = S.holds - 1
    M.update_ref(S)
    if not ok then error(message, 0) end
  end
  if not core.is_open(engine) then return done() end
  while not done() do
    local busy = M.turn(engine, S)
    if not busy and not done() and not rest(engine, S, WAIT_MAX_US) then
      return false
    end
  end
  return true
end

-- One turn of an engine that a task of another engine waits for; whether there
-- may be more to do at once. One on a loop, or up the stack, is driven there.
local function drive_other(engine, S)
  if S.uv or S.is_turning then return false end
  local busy = M.turn(engine, S)
  if busy or not S.is_virtual or has_outside_work(engine, S)
    or core.durable(engine) < core.turn(engine) then
    return busy
  end
  local due = core.timeout(engine)
  if due > 0 then core.advance(engine, due) end
  return due >= 0
end

local function cannot_wait(what, why, level)
  error(("%s cannot wait here: %s. Wait inside a task, "
    .. "cairn.spawn(function() ... end), or let engine:on(name, function) "
    .. "tell you"):format(what, why), level + 1)
end

-- The task that may yield now, or nil when the caller may drive; else raises.
function M.check_wait(S, what, level)
  level = level + 1
  local co, is_main = coroutine.running()
  local task = M.task_of[co]
  if in_handler[co] then
    cannot_wait(what, "this is a handler of engine:on", level)
  elseif task then
    if not coroutine.isyieldable() then
      cannot_wait(what, "the task is inside a callback of C (such as "
        .. "table.sort's), or being closed", level)
    end
    return task
  elseif S.is_turning then
    cannot_wait(what, "the engine is being driven", level)
  elseif not is_main then
    cannot_wait(what, "this is a coroutine that is no Cairn task", level)
  elseif S.uv and S.uv.loop_mode() then
    cannot_wait(what, "the luv loop is running already", level)
  end
  return nil
end

-- Waits until `wake` is called and returns its arguments, or M.TIMEOUT.
-- arm(wake) registers it and returns a function that takes that back; it never
-- calls wake itself.
function M.park(engine, what, timeout_us, arm, level)
  local S = core.state(engine)
  local task = M.check_wait(S, what, (level or 1) + 1)
  local timer_engine = task and task.engine or engine
  local timer_state = core.state(timer_engine)
  local result, cookie, pump_cookie
  local function wake_up(...)
    if result then return end
    result = select("#", ...) == 0 and NOTHING
      or (...) == M.TIMEOUT and TIMED_OUT or table.pack(...)
    if task then M.ready(task) end
  end
  local undo = arm and arm(wake_up)
  local function disarm()
    if cookie then M.stop_timer(timer_engine, timer_state, cookie) end
    if pump_cookie then
      M.stop_timer(timer_engine, timer_state, pump_cookie)
    end
    if undo then undo() end
    undo, cookie, pump_cookie = nil, nil, nil
  end
  -- An engine that nobody else drives is driven by the task that waits for it.
  local function pump()
    pump_cookie = nil
    local ok, err = pcall(function()
      local busy = core.is_open(engine) and drive_other(engine, S)
      if not result then
        pump_cookie = M.start_timer(timer_engine, timer_state,
          busy and 0 or LOOK_US, pump)
      end
    end)
    if not ok then wake_up(nil, tostring(err), "internal") end
  end
  local ok, err = pcall(function()
    if task and timer_engine ~= engine then pump() end
    if timeout_us then
      cookie = M.start_timer(timer_engine, timer_state, timeout_us, function()
        wake_up(M.TIMEOUT)
      end)
    end
    if not task and not drive(engine, S, function() return result end) then
      error(what .. (core.is_open(engine)
        and ": nothing is left that could end this wait: nothing runs and "
        .. "nothing is due in the engine" or ": the engine was closed"), 0)
    end
  end)
  if not ok then
    disarm()
    error(err, 0)
  end
  if task then
    task.disarm = disarm
    local signal = coroutine.yield(M.WAIT)
    task.disarm = false
    disarm()
    if signal == M.TERMINATED then
      failure.raise("terminated", "the job was asked to terminate")
    end
  else
    disarm()
  end
  return table.unpack(result, 1, result.n)
end

-- Calls fn(event) for every event of a job; returns how to stop that.
local function watch(S, serial, fn)
  local list = S.watchers[serial]
  if not list then
    list = {}
    S.watchers[serial] = list
  end
  list[#list + 1] = fn
  return function()
    for i, watcher in ipairs(list) do
      if watcher == fn then
        table.remove(list, i)
        break
      end
    end
    if #list == 0 and S.watchers[serial] == list then
      S.watchers[serial] = nil
    end
  end
end

-- ---- waiting for the store -------------------------------------------------------------

-- What was changed so far is durable: true | nil, message, code.
function M.wait_durable(engine, S, what, level)
  local upto = core.turn(engine)
  if core.durable(engine) >= upto then return true end
  local ok, message, code = M.park(engine, what, nil, function(wake_up)
    local committer = { turn = upto, wake = wake_up }
    S.committers[#S.committers + 1] = committer
    return function()
      for i, other in ipairs(S.committers) do
        if other == committer then
          table.remove(S.committers, i)
          break
        end
      end
    end
  end, level + 1)
  if ok then return true end
  return nil, message, code
end

-- Whether a change of the caller's is to wait for its commit; raises where it
-- is and nobody may wait.
local function waits_for_commit(S, wait, what, level)
  if S.store == ":memory:" or wait == false then return false end
  local ok, message = pcall(M.check_wait, S, what, 0)
  if not ok then
    error(message .. "; or pass wait = false", level + 1)
  end
  return true
end

-- ---- waiting for jobs ------------------------------------------------------------------

-- The label of the job's final state | nil, message, code.
function M.wait_job(job, timeout, what, level)
  level = level + 1
  local engine, serial, id = core.job_engine(job)
  local S = core.state(engine)
  local timeout_us = timeout ~= nil and M.microseconds(timeout, what, level)
    or nil
  local task = M.task_of[coroutine.running()]
  if task and task.serial == serial and task.state == S then
    error(what .. ": a job cannot wait for itself", level)
  end
  if core.state_is_final(job:number "JobState") then return job.JobState end
  local result, message, code = M.park(engine, what, timeout_us,
    function(wake_up)
      return watch(S, serial, function(ev)
        if ev.type == event.STATE and core.state_is_final(ev.new_state) then
          wake_up(ev.JobState)
        elseif ev.type == event.REMOVED then
          wake_up(nil, ("job %s is gone"):format(id), "not_found")
        elseif ev.type == nil then
          wake_up(nil, "the engine was closed", "closed")
        end
      end)
    end, level)
  if result == M.TIMEOUT then
    return nil, ("job %s: still %s after %g s"):format(id, job.JobState,
      timeout_us / 1e6), "timeout"
  end
  return result, message, code
end

function jobs.wait(job, timeout)
  return M.wait_job(job, timeout, "job:wait", 1) -- 1: this is a tail call
end

local reached = { [2] = 4, [3] = 5, [4] = 8, [5] = 9, [6] = 11 }

-- RequestStateChange(state[, TimeoutPeriod]) -> code[, nil, message]
function jobs.RequestStateChange(job, requested, timeout)
  local engine, serial = core.job_engine(job)
  local S = core.state(engine)
  local interval = timeout ~= nil and core.interval(timeout)
  local is_waiting = interval and interval.kind == "interval"
    and interval.microseconds > 0
  if is_waiting then
    M.check_wait(S, "job:RequestStateChange with a TimeoutPeriod", 2)
    local task = M.task_of[coroutine.running()]
    if task and task.serial == serial and task.state == S then
      error("a job cannot wait for a state of its own: leave the "
        .. "TimeoutPeriod out", 2)
    end
  end
  local code, none, message = core.job_request(job, requested, timeout)
  if not is_waiting or code ~= S.code(4096) then return code, none, message end
  local number = type(requested) == "number" and math.tointeger(requested)
    or core.requested_state(requested)
  local wanted = reached[number]
  local current = job:number "JobState"
  if current == wanted then return S.code(0) end
  local result = M.park(engine, "job:RequestStateChange", nil,
    function(wake_up)
      return watch(S, serial, function(ev)
        if ev.type == event.STATE then
          if ev.new_state == wanted then
            wake_up(0)
          elseif core.state_is_final(ev.new_state) then
            wake_up(4)
          end
        elseif ev.type == event.REQUEST_TIMEOUT then
          wake_up(3)
        elseif ev.type == event.REMOVED or ev.type == nil then
          wake_up(2)
        end
      end)
    end, 2)
  return S.code(result)
end

-- resume() -> true | nil, message, code
function jobs.resume(job)
  local engine = core.job_engine(job)
  local code, _, message = core.job_resume_code(job)
  local plain = core.state(engine).dmtf_code(code)
  if plain == 0 or plain == 4096 then return true end
  return nil, message or ("job:resume: refused with code %d; the job is %s")
    :format(code, job.JobState), plain == 2 and "not_found"
    or plain == 1 and "not_supported" or "invalid_state"
end

-- for name, value in job:properties() do
function jobs.properties(job)
  if not core.is_job(job) then
    error("a job expected; use a colon: job:properties()", 2)
  end
  local i = 0
  return function()
    i = i + 1
    local row = M.properties[i]
    if row then return row.name, job[row.name] end
  end
end

M.properties = core.properties()
M.property_names = {}
for i, row in ipairs(M.properties) do
  M.properties[row.name] = row
  M.property_names[i] = row.name
end

-- ---- open and close ---------------------------------------------------------------------

local option_fields = { store = "string", codes = "string", log = "function",
  queues = "table", clock = "string", owner = "string", start = "any",
  history_limit = "number", notify = "table", recovery = "table",
  simulate = "function" }

local function default_log(message)
  io.stderr:write("cairn: ", tostring(message), "\n")
end

-- cairn.open(options) -> engine | nil, message, code
function M.open(options)
  options = options or {}
  local ok, err = pcall(failure.check_fields, options, option_fields,
    "cairn.open")
  if not ok then error(tostring(err), 2) end
  if options.codes ~= nil and options.codes ~= "dmtf"
    and options.codes ~= "vendor" then
    error(("cairn.open: codes is '%s'; valid are 'dmtf' and 'vendor'"):format(
      failure.shown(options.codes)), 2)
  end
  if options.clock ~= nil and options.clock ~= "virtual" then
    error(("cairn.open: clock is '%s'; valid is 'virtual', or nothing for "
      .. "the system's"):format(failure.shown(options.clock)), 2)
  end
  local is_virtual = options.clock == "virtual"
  local start_us
  if options.start ~= nil then
    local t, message = core.datetime(options.start)
    if not t or t.kind ~= "timestamp" then
      error("cairn.open: start: " .. (message or "a timestamp expected"), 2)
    elseif not is_virtual then
      error("cairn.open: start is for clock = 'virtual'", 2)
    end
    start_us = t.microseconds
  end
  local queues_json
  local store = options.store or ":memory:"
  if options.simulate and (not is_virtual or store ~= ":memory:") then
    error("cairn.open: simulate needs clock = 'virtual', and no store", 2)
  end
  if options.queues then
    local message, code
    queues_json, message, code = core.json_encode(options.queues)
    if not queues_json then
      return nil, "cairn.open: queues: " .. message, code
    end
  end
  local limit = options.history_limit
  if limit ~= nil and (math.type(limit) ~= "integer" or limit < 1
    or limit > 100000000) then
    error("cairn.open: history_limit: 1 to 100000000 expected", 2)
  end
  ok, err = pcall(function()
    M.notify.check(options.notify or {}, "cairn.open: notify")
    M.recovery.check(options.recovery or {})
  end)
  if not ok then error(tostring(err), 2) end
  local is_vendor = options.codes == "vendor"
  if store == "" then error("cairn.open: store: the name of a file, or "
    .. "':memory:', expected", 2) end
  if store ~= ":memory:" then
    local message, code
    ok, message = pcall(path.absolute, store)
    if not ok then
      message, code = select(2, failure.results(message))
      return nil, message, code
    end
    store = message
  end
  local engine, message, code = core.open {
    store = store, queues_json = queues_json, owner = options.owner,
    is_vendor = is_vendor, is_virtual = is_virtual, start_us = start_us,
    is_simulated = options.simulate ~= nil,
    history_limit = options.history_limit }
  if not engine then return nil, message, code end
  local S = core.state(engine)
  S.store = store
  S.log = options.log or default_log
  S.is_virtual = is_virtual
  S.simulate = options.simulate -- the body of all runs
  S.handlers = {}    -- name -> list of { fn, is_gone }, replaced, not changed
  S.bodies = {}      -- serial -> the function of a run job
  S.endings = {}     -- the same serials -> how it ended, while untold
  S.is_untold = false
  S.tasks = {}       -- serial -> task of a running body
  S.background = {}  -- set of tasks of cairn.spawn
  S.first_ready, S.last_ready = false, false
  S.timers, S.last_cookie = {}, FIRST_COOKIE
  S.processes, S.process_count = {}, 0
  S.watchers = {}    -- serial -> list of functions
  S.answers = {}     -- serial -> function(text)
  S.notify = options.notify or {} -- name -> handler
  S.recovery = options.recovery or {} -- OtherRecoveryAction -> handler
  S.codes = {}       -- name -> true: what the engine knows to be there
  S.deciders = {}    -- serial -> what decides about its next runs
  S.deciding = {}    -- serial -> what decides about the run that is on
  S.decisions = {}   -- the last ones, in a ring of at most decide.RECORDS
  S.last_decision = 0 -- where the last one is in it
  S.handlers_of = {} -- serial -> the handlers of its policy
  S.told = {}        -- serial -> { run =, state = } that Notify was told
  S.unnotified = {}  -- serial -> why its last notice was not delivered
  S.committers = {}  -- { turn =, wake = }: who waits for a commit
  S.backups = {}     -- cookie -> function(code)
  S.unfinished, S.unfinished_count = {}, 0
  S.holds = 0
  S.code = is_vendor and core.vendor_code or function(c) return c end
  S.dmtf_code = S.code
  if is_vendor then
    local back = {}
    for _, c in ipairs { 0, 1, 2, 3, 4, 5, 6, 4096, 4097, 4098, 4099 } do
      local vendor = core.vendor_code(c)
      if back[vendor] == nil then back[vendor] = c end
    end
    S.dmtf_code = function(c) return back[c] or c end
  end
  engine_count = engine_count + 1
  engines[engine_count] = engine
  for add, names in pairs { [core.recovery_add] = S.recovery,
    [core.code_add] = M.kinds } do
    for name in pairs(names) do
      ok, message, code = add(engine, name)
      if not ok then
        core.free(engine)
        return nil, message, code
      end
    end
  end
  M.metrics.open(engine, S)
  -- jobs of the store are as if they had been submitted now
  local job, serial = core.job_next(engine, 0)
  while job do
    if not core.state_is_final(job:number "JobState") then
      S.unfinished[serial] = job
      S.unfinished_count = S.unfinished_count + 1
    end
    job, serial = core.job_next(engine, serial)
  end
  return engine
end

M.kinds = {} -- name -> the body of tasks with run = name

-- cairn.kind(name, fn): from now on this program has that body.
function M.kind(name, fn)
  if type(name) ~= "string" or name == "" then
    error("cairn.kind: a name expected, got " .. (name == "" and "''"
      or type(name)), 2)
  elseif type(fn) ~= "function" then
    error("cairn.kind: a function expected, got " .. type(fn), 2)
  end
  M.kinds[name] = fn
  for i = 1, engine_count do
    local engine = engines[i]
    if engine and core.is_open(engine) then
      local ok, message, code = core.code_add(engine, name)
      if not ok then failure.raise(code, "%s", message) end
    end
  end
end

-- Ends every task and wakes everybody who waits for this engine's jobs.
local function release(engine, S)
  for _, task in pairs(S.tasks) do M.close_task(engine, S, task) end
  for task in pairs(S.background) do
    if task.is_notice then
      M.log(S, task.is_notice .. ": cut off, the engine was closed")
    end
    M.close_task(engine, S, task)
  end
  core.free(engine)
  local watchers = S.watchers
  S.watchers = {}
  for _, list in pairs(watchers) do
    for _, watcher in ipairs(table.move(list, 1, #list, 1, {})) do
      watcher {}
    end
  end
  S.handlers, S.bodies, S.timers, S.processes, S.answers = {}, {}, {}, {}, {}
  local committers = S.committers
  S.committers, S.backups = {}, {}
  for _, committer in ipairs(committers) do
    committer.wake(nil, "the engine was closed", "closed")
  end
  S.endings, S.is_untold = {}, false
  S.unfinished, S.unfinished_count = {}, 0
end

local close_fields = { mode = "string", timeout = "number" }
local close_modes = { suspend = true, terminate = true, kill = true }

-- close{ mode =, timeout = } -> true | nil, message, "timeout". Closed in any
-- case; what had not ended in time was killed.
function methods.close(engine, options)
  local S = state(engine)
  options = options or {}
  local valid, err = pcall(failure.check_fields, options, close_fields,
    "engine:close")
  if not valid then error(tostring(err), 2) end
  local mode = options.mode
    or (S.store == ":memory:" and "terminate" or "suspend")
  if not close_modes[mode] then
    error(("engine:close: mode is '%s'; valid are 'suspend', 'terminate' and "
      .. "'kill'"):format(failure.shown(mode)), 2)
  end
  if not core.is_open(engine) then return true end
  if S.is_turning then
    error("engine:close: not from a handler or a task of the engine itself", 2)
  end
  methods.detach(engine)
  local timeout_us = (options.timeout or CLOSE_SECONDS) * 1e6
  local deadline = core.monotonic() + timeout_us
  core.begin_close(engine, mode)
  for task in pairs(S.background) do
    -- notices are waited for
    if not task.is_notice then M.end_task(engine, S, task, mode) end
  end
  local is_late = false
  local ok, message = pcall(function()
    while true do
      local busy = M.turn(engine, S)
      if not busy then
        if core.is_idle(engine) and next(S.background) == nil then return end
        local left = deadline - core.monotonic()
        if left <= 0 then
          if is_late then return end
          is_late = true
          deadline = core.monotonic() + 1000000
          core.begin_close(engine, "kill")
        else
          -- a clock without due times: only what runs outside can help
          if not rest(engine, S, math.min(left, 100000)) then
            core.wait(engine, math.min(left, POLL_US))
          end
        end
      elseif core.monotonic() > deadline + 1000000 then
        return -- busy without end
      end
    end
  end)
  local failed = core.store_error(engine)
  release(engine, S)
  if not ok then error(message, 0) end
  if failed then
    return nil, "engine:close: what happened last is not in the store: "
      .. failed, "store_failed"
  end
  if is_late then
    return nil, ("engine:close: jobs had not ended after %g s and were "
      .. "killed"):format(timeout_us / 1e6), "timeout"
  end
  return true
end

core.engine_metatable.__close = function(engine)
  local S = core.state(engine)
  local ok, message = pcall(methods.close, engine)
  if not ok then
    M.log(S, "closing the engine: " .. tostring(message))
    core.free(engine)
  end
end

-- ---- methods: driving ----------------------------------------------------------------

-- step([seconds]) -> whether there may be more to do at once
function methods.step(engine, seconds)
  local S = opened(engine)
  local wait_us = seconds ~= nil and M.microseconds(seconds, "engine:step", 2)
    or 0
  local busy = M.turn(engine, S)
  if not busy and wait_us > 0 then
    core.wait(engine, wait_us)
    busy = M.turn(engine, S)
  end
  return busy
end

-- No job is left that could go on by itself.
local function is_over(S)
  if next(S.background) ~= nil or S.first_ready then
    return false
  end
  if S.unfinished_count == 0 then return true end
  for _, job in pairs(S.unfinished) do
    if job.phase ~= "held" then return false end
  end
  return true
end

-- run() -> true when every job has ended, is held, or waits for what no time
-- will bring (an answer, a request)
function methods.run(engine)
  local S = opened(engine)
  if M.check_wait(S, "engine:run", 2) then
    error("engine:run: not from a task; job:wait waits there", 2)
  end
  -- what was called before may have left events
  while M.turn(engine, S) do
    if is_over(S) and not core.has_events(engine) then break end
  end
  drive(engine, S, function()
    return not core.is_open(engine)
      or is_over(S) and not core.has_events(engine)
  end)
  return true
end

function methods.pollfd(engine)
  opened(engine)
  return core.pollfd(engine)
end

function methods.events(engine)
  opened(engine)
  return "r"
end

-- timeout() -> seconds until there is something to do, nil for never
function methods.timeout(engine)
  local S = opened(engine)
  local us = core.timeout(engine)
  if S.first_ready or core.has_events(engine) then return 0.0 end
  return us >= 0 and us / 1e6 or nil
end

-- advance(seconds): moves a virtual clock
function methods.advance(engine, seconds)
  opened(engine)
  return core.advance(engine, M.microseconds(seconds, "engine:advance", 2))
end

-- now() -> the engine's time, a CIM datetime
function methods.now(engine)
  opened(engine)
  local unix_us = core.now(engine)
  return core.datetime(unix_us / 1e6)
end

-- flush() -> true | nil, message, code: all that happened is in the store
function methods.flush(engine)
  local S = opened(engine)
  return M.wait_durable(engine, S, "engine:flush", 2)
end

-- backup(path) -> true | nil, message, code
function methods.backup(engine, to)
  local S = opened(engine)
  if type(to) ~= "string" or to == "" then
    error("engine:backup: the name of a file expected, got "
      .. (to == "" and "''" or type(to)), 2)
  end
  M.check_wait(S, "engine:backup", 2)
  local ok, file = pcall(path.absolute, to)
  if not ok then
    if failure.is(file) then return failure.results(file) end
    error(file, 0)
  end
  local cookie = M.cookie(S)
  local started, why, id = core.backup_start(engine, file, cookie)
  if not started then return nil, why, id end
  local result, message, code = M.park(engine, "engine:backup", nil,
    function(wake_up)
      S.holds = S.holds + 1
      S.backups[cookie] = function() wake_up(true) end
      return function()
        S.holds = S.holds - 1
        S.backups[cookie] = nil
      end
    end, 2)
  if not result then return nil, message, code end
  return core.backup_error(engine)
end

-- ---- methods: events --------------------------------------------------------------------

M.event_names = {}
for _, name in ipairs { "SUBMITTED", "STATE", "PERCENT", "CHANGED", "REMOVED",
  "WARNING", "REQUEST_TIMEOUT", "SKIPPED", "RUN_ENDED", "STORE" } do
  M.event_names[#M.event_names + 1] = core.event[core.event[name]]
end
local is_event_name = {}
for _, name in ipairs(M.event_names) do is_event_name[name] = true end

-- on(name, fn) -> function that ends the subscription
function methods.on(engine, name, fn)
  local S = opened(engine)
  if type(name) ~= "string" or not is_event_name[name] then
    error(("engine:on: no event '%s'; did you mean '%s'? (valid: %s)"):format(
      failure.shown(name), failure.nearest(name, M.event_names),
      table.concat(M.event_names, ", ")), 2)
  elseif type(fn) ~= "function" then
    error("engine:on: a function expected, got " .. type(fn), 2)
  end
  local handler = { fn = fn }
  local list = S.handlers[name] or {}
  list = table.move(list, 1, #list, 1, {})
  list[#list + 1] = handler
  S.handlers[name] = list
  return function()
    if handler.is_gone then return end
    handler.is_gone = true
    local left = {}
    for _, other in ipairs(S.handlers[name] or {}) do
      if other ~= handler then left[#left + 1] = other end
    end
    S.handlers[name] = left
  end
end

-- queues() -> list
function methods.queues(engine)
  opened(engine)
  return core.queues(engine)
end

-- The record of a run, of this attempt or (nil) its last one, or nil. It is among
-- the job's newest, unless the event that asks comes late.
function M.record_of(engine, id, run, attempt)
  for _, max in ipairs { 8, 0 } do -- 0: all
    local records = core.history(engine, id, 0, max, true) or {}
    for i = #records, 1, -1 do
      local record = records[i]
      if record.run_number == run
        and (not attempt or record.attempt == attempt) then
        return record
      end
    end
    if #records < max then return nil end
  end
end

-- The warnings of a record (nil: there is none), a list.
function M.warnings_of(record)
  return record and type(record.warnings) == "table" and record.warnings or {}
end

local history_fields = { after = "number", max = "number", last = "number" }

-- history([id[, { after =, max = } | { last = }]]) -> list of records, next
--   | nil, message, code
function methods.history(engine, id, options)
  opened(engine)
  if core.is_job(id) then id = id.InstanceID end
  if id ~= nil and type(id) ~= "string" then
    error("engine:history: a job, an InstanceID, a GUID or the beginning of "
      .. "one expected, got " .. type(id), 2)
  end
  if options == nil then return core.history(engine, id) end
  local valid, err = pcall(failure.check_fields, options, history_fields,
    "engine:history")
  if not valid then error(tostring(err), 2) end
  local last = options.last
  for name, least in pairs { after = 0, max = 1, last = 1 } do
    local value = options[name]
    if value ~= nil and not (math.tointeger(value) and value >= least) then
      error(("engine:history: %s: %d or more expected, got %s"):format(name,
        least, value), 2)
    end
  end
  if last and options.max then
    error("engine:history: max counts from the oldest, last from the newest: "
      .. "one of them", 2)
  end
  return core.history(engine, id, math.tointeger(options.after or 0),
    math.tointeger(last or options.max or 0), last ~= nil)
end

-- decisions() -> the last ones of policies' functions, oldest first
function methods.decisions(engine)
  local S = opened(engine)
  return M.decide.decisions(S)
end

-- changes([cursor[, max]]) -> events, cursor | nil, message, code
function methods.changes(engine, cursor, max)
  opened(engine)
  cursor, max = cursor or 0, max or BATCH
  if math.type(cursor) ~= "integer" or cursor < 0 then
    error("engine:changes: the cursor that the last call gave expected", 2)
  elseif math.type(max) ~= "integer" or max < 1 or max > 10000 then
    error("engine:changes: 1 to 10000 events expected", 2)
  end
  local list, message, code = core.changes(engine, cursor, max)
  if not list then return nil, message, code end
  local last = list[#list]
  return list, last and last.sequence or cursor
end

-- ---- methods: jobs ----------------------------------------------------------------------

local function resolved(t, names)
  local copy = {}
  for key, value in pairs(t) do copy[key] = value end
  for _, name in ipairs(names) do copy[name] = path.absolute(copy[name]) end
  return copy
end

-- A calendar can be valid and still not what was meant.
local function warn_of_calendar(S, spec, what)
  if spec.RunDay == nil or spec.RunDayOfWeek == nil then return end
  local calendar = {}
  for _, name in ipairs { "RunMonth", "RunDay", "RunDayOfWeek",
    "RunStartInterval" } do
    calendar[name] = spec[name]
  end
  local times = core.schedule(calendar)
  if times and times.warning then
    M.log(S, ("%s: %s"):format(what, times.warning))
  end
end

-- A specification as the engine takes it, and the body of a run job. Paths in
-- a call are relative to the working directory.
local function prepared(S, spec, what)
  if type(spec) ~= "table" then
    failure.raise("wrong_type", "%s: a table expected, got %s", what,
      type(spec))
  end
  local copy, body = {}, nil
  for key, value in pairs(spec) do copy[key] = value end
  for _, name in ipairs { "RunStartInterval", "TimeBeforeRemoval" } do
    local value = copy[name]
    if type(value) == "number" or type(value) == "string" and #value ~= 25 then
      local t, message, code = core.interval(value)
      if not t then failure.raise(code, "%s: %s: %s", what, name, message) end
      copy[name] = tostring(t)
    end
  end
  for _, kind in ipairs { "export", "verify", "restore", "stream", "import",
    "merge", "prune", "reference_point" } do
    local t = copy[kind]
    if type(t) == "table" then
      t = resolved(t, { "directory", "to", "output", "input" })
      for _, name in ipairs { "collection", "source" } do
        if kind == "prune" and type(t[name]) == "table" then
          t[name] = t[name].CollectionId
        elseif type(t[name]) == "table" then
          t[name] = collection.check(t[name], nil,
            ("%s: %s.%s"):format(what, kind, name))
        end
      end
      copy[kind] = t
    end
  end
  if S.simulate then
    body = S.simulate
    if copy.run ~= nil then copy.run = {} end
  elseif copy.run ~= nil then
    body = copy.run
    if type(body) == "string" then
      copy.run, body = { code = body }, nil
    elseif type(body) ~= "function" then
      failure.raise("wrong_type", "%s: run must be a function, or the name "
        .. "given to cairn.kind, got %s", what, type(body))
    elseif S.store == ":memory:" or copy.volatile == true then
      copy.run = {}
    elseif copy.policy ~= nil and copy.policy_key ~= nil then
      copy.run = { code = M.policy_code(copy.policy, copy.policy_key) }
    else
      failure.raise("invalid_argument", "%s: a function cannot be stored: a "
        .. "run job outside a policy needs volatile = true, or the name of a "
        .. "function given to cairn.kind", what)
    end
  end
  warn_of_calendar(S, copy, what)
  if copy.wait ~= nil and type(copy.wait) ~= "boolean" then
    failure.raise("wrong_type", "%s: wait must be true or false", what)
  end
  copy.wait = nil
  copy.handlers = nil -- handled by set_body, from the specification itself
  local decider = copy.decisions
  if decider ~= nil then
    if type(decider) ~= "table" then
      failure.raise("invalid_argument", "%s: decisions come from a policy "
        .. "file", what)
    end
    decider.code = decider.code or M.policy_code(decider.policy, decider.key)
    copy.decisions = decider.code
  end
  return copy, body, decider
end

-- The name of the body that a policy's job has in a store.
function M.policy_code(policy, key)
  return ("policy %s: %s"):format(policy, key)
end

-- The engine may begin what needs this code.
function M.code_add(engine, S, name)
  if S.codes[name] then return end
  local ok, message, code = core.code_add(engine, name)
  if not ok then failure.raise(code, "%s", message) end
  S.codes[name] = true
end

-- The body of a job that was made just now, or given another specification.
local function set_body(engine, S, serial, copy, body, decider, spec)
  S.handlers_of[serial] = spec.handlers
  if decider or S.deciders[serial] then
    M.decide.set(engine, S, serial, decider, copy.decisions)
  end
  S.bodies[serial] = body
  if body then S.endings[serial] = false end
  if body and copy.run and copy.run.code then
    M.kinds[copy.run.code] = body
    M.code_add(engine, S, copy.run.code)
  end
end

local function caught(ok, ...)
  if ok then return ... end
  local err = ...
  if failure.is(err) then return failure.results(err) end
  error(err, 0)
end

-- A message about one specification, with where that was written if known.
local function located(spec, message)
  local origin = failure.origin[spec]
  return origin and origin .. ": " .. message or message
end

-- The same for one of several: the engine says which, the encoder as a path.
local function located_among(specs, message)
  local number, text = message:match("^specification (%d+): (.*)$")
  if not number then number, text = message:match("^%[(%d+)%][.:] ?(.*)$") end
  local spec = specs[math.tointeger(number)]
  if not spec then return message end
  return ("%s: %s"):format(failure.origin[spec] or "specification " .. number,
    text)
end

-- submit(spec) -> job | nil, message, code
function methods.submit(engine, spec)
  local S = opened(engine)
  if type(spec) ~= "table" then
    error("engine:submit: a table expected, got " .. type(spec), 2)
  end
  local waits = waits_for_commit(S, spec.wait, "engine:submit", 2)
  local job, message, code = caught(pcall(function()
    local copy, body, decider = prepared(S, spec, failure.origin[spec]
      or "engine:submit")
    local made, why, id = core.submit(engine, copy)
    if not made then return nil, located(spec, why), id end
    local _, serial = core.job_engine(made)
    set_body(engine, S, serial, copy, body, decider, spec)
    if S.poll then S.poll:ref() end
    return made
  end))
  if not job then return nil, message, code end
  if not waits then return job end
  local ok
  ok, message, code = M.wait_durable(engine, S, "engine:submit", 2)
  if ok then return job end
  return nil, message, code
end

-- submit_all{ spec, ... } -> list of jobs | nil, message, code: all or none
function methods.submit_all(engine, specs)
  local S = opened(engine)
  if type(specs) ~= "table" then
    error("engine:submit_all: a list of tables expected, got "
      .. type(specs), 2)
  end
  local wrong = failure.not_a_list(specs)
  if wrong then
    error("engine:submit_all: a list of tables expected, got " .. wrong, 2)
  end
  local wants = false -- one that wants to wait is enough
  for _, spec in ipairs(specs) do
    wants = wants or type(spec) ~= "table" or spec.wait ~= false
  end
  local waits = waits_for_commit(S, wants, "engine:submit_all", 2)
  local jobs_made, message, code = caught(pcall(function()
    local list, bodies, deciders = {}, {}, {}
    for i, spec in ipairs(specs) do
      list[i], bodies[i], deciders[i] = prepared(S, spec,
        failure.origin[spec] or ("engine:submit_all[%d]"):format(i))
    end
    local made, why, id = core.submit_all(engine, list)
    if not made then return nil, located_among(specs, why), id end
    for i, job in ipairs(made) do
      local _, serial = core.job_engine(job)
      set_body(engine, S, serial, list[i], bodies[i], deciders[i], specs[i])
    end
    if S.poll then S.poll:ref() end
    return made
  end))
  if not jobs_made then return nil, message, code end
  if not waits then return jobs_made end
  local ok
  ok, message, code = M.wait_durable(engine, S, "engine:submit_all", 2)
  if ok then return jobs_made end
  return nil, message, code
end

-- update(job, spec) -> true | nil, message, code: another specification
function methods.update(engine, job, spec)
  local S = opened(engine)
  if not core.is_job(job) then
    error("engine:update: a job expected, got " .. type(job), 2)
  elseif type(spec) ~= "table" then
    error("engine:update: a table expected, got " .. type(spec), 2)
  end
  local waits = waits_for_commit(S, spec.wait, "engine:update", 2)
  local ok, message, code = caught(pcall(function()
    local copy, body, decider = prepared(S, spec, failure.origin[spec]
      or "engine:update")
    local _, serial = core.job_engine(job)
    local well, why, id = core.update(engine, serial, copy)
    if not well then return nil, located(spec, why), id end
    set_body(engine, S, serial, copy, body, decider, spec)
    return true
  end))
  if not ok then return nil, message, code end
  if not waits then return true end
  return M.wait_durable(engine, S, "engine:update", 2)
end

-- Another file that jobs of this policy which have not ended were read from, or
-- nil: two policies of one name would take each other's jobs.
function M.other_policy_file(engine, policy, file)
  for _, job in ipairs(methods.jobs(engine, { policy = policy })) do
    local _, serial = core.job_engine(job)
    local other = core.policy_file(engine, serial)
    if other and other ~= file
      and not core.state_is_final(job:number "JobState") then
      return other
    end
  end
end

-- disown(job) -> true | nil, message, code: nobody has a specification for it
function methods.disown(engine, job)
  opened(engine)
  if not core.is_job(job) then
    error("engine:disown: a job expected, got " .. type(job), 2)
  end
  local _, serial = core.job_engine(job)
  return core.disown(engine, serial)
end

local set_now = jobs.set

-- set{ name = value } -> true | nil, message, code; with a store it waits for
-- its commit, where anything may wait
function jobs.set(job, changes)
  local ok, message, code = set_now(job, changes)
  if not ok then return nil, message, code end
  local engine = core.job_engine(job)
  local S = core.state(engine)
  if S.store == ":memory:" or not pcall(M.check_wait, S, "", 0) then
    return true
  end
  return M.wait_durable(engine, S, "job:set", 1)
end

-- plan(spec) -> what it would do | nil, message, code
function methods.plan(engine, spec)
  local S = opened(engine)
  if type(spec) ~= "table" then
    error("engine:plan: a table expected, got " .. type(spec), 2)
  end
  return caught(pcall(function()
    local copy, _, decider = prepared(S, spec, failure.origin[spec]
      or "engine:plan")
    if decider then M.decide.plan(engine, S, copy, decider) end
    local plan, message, code = core.plan(engine, copy)
    if not plan then return nil, located(spec, message), code end
    return plan
  end))
end

-- job(id) -> job | nil, message, code
function methods.job(engine, id)
  opened(engine)
  if core.is_job(id) then return id end
  if type(id) ~= "string" then
    error("engine:job: an InstanceID, a GUID or the beginning of one "
      .. "expected, got " .. type(id), 2)
  end
  return core.job(engine, id)
end

-- A filter { property = value } as a list of { name =, value =, is_number = };
-- raises what is wrong with it, as failures.
function M.filter(filter, what)
  local wanted = {}
  for name, value in pairs(filter or {}) do
    local row = type(name) == "string" and M.properties[name]
    if not row then
      failure.raise("no_such_property", "%s: no property '%s'; did you mean "
        .. "'%s'?", what, failure.shown(name),
        failure.nearest(name, M.property_names))
    end
    if row.values and type(value) == "string" then
      local number = core.value_number(name, value)
      if number == nil then
        local labels = {}
        for i, v in ipairs(row.values) do labels[i] = v.label end
        failure.raise("out_of_range", "%s: %s has no value '%s'; did you mean "
          .. "'%s'?", what, name, failure.shown(value),
          failure.nearest(value, labels))
      end
      value = number
      if row.type == "string" then -- a map of words: the word as it is read
        for _, v in ipairs(row.values) do
          if v.value == number then value = v.label end
        end
      end
    elseif row.type == "datetime" and type(value) == "userdata" then
      value = tostring(value)
    end
    wanted[#wanted + 1] = { name = name, value = value,
      is_number = type(value) == "number" }
  end
  return wanted
end

function M.matches(job, wanted)
  for _, want in ipairs(wanted) do
    local value, matches
    if want.is_number then
      value = job:number(want.name)
    else
      value = job[want.name]
    end
    if want.value == core.null then
      matches = value == nil
    elseif type(value) == "table" then
      matches = false
      for _, element in ipairs(value) do
        matches = matches or element == want.value
      end
    else
      matches = value == want.value
    end
    if not matches then return false end
  end
  return true
end

-- jobs{ phase =, JobState =, ... } -> list, in order of submission
function methods.jobs(engine, filter)
  opened(engine)
  if filter ~= nil and type(filter) ~= "table" then
    error("engine:jobs: a table of properties expected, got "
      .. type(filter), 2)
  end
  local ok, wanted = pcall(M.filter, filter, "engine:jobs")
  if not ok then error(tostring(wanted), 2) end
  local out, serial = {}, 0
  while true do
    local job
    job, serial = core.job_next(engine, serial)
    if not job then return out end
    if M.matches(job, wanted) then out[#out + 1] = job end
  end
end

local reasons = {
  queued = "is eligible and waits for a free place in its queue",
  waiting = "waits for its time",
  backoff = "failed and will run again",
  held = "is held by a client until Start or resume",
  running = "is running",
  done = "has ended",
}

-- What the queue of a waiting job is doing.
local function queue_of(engine, name)
  for _, row in ipairs(core.queues(engine) or {}) do
    if row.Name == name then return row end
  end
end

-- What is to be said of the last run (its record, or nil) that was not in time,
-- or not at all.
local function lateness(last)
  if not last then return nil end
  if last.skipped then
    return ("%d time%s up to %s had no run: %s"):format(last.skipped,
      last.skipped == 1 and "" or "s", last.due_last, last.reason)
  end
  if last.due and last.StartTime then
    local due, began = core.datetime(last.due), core.datetime(last.StartTime)
    local late = (began.microseconds - due.microseconds) / 1e6
    if late > 60 then
      return ("its last run began %.0f s after it was due (%s)"):format(late,
        last.due)
    end
  end
end

-- why(id) -> text, data | nil, message, code
function methods.why(engine, id)
  local job, message, code = methods.job(engine, id)
  if not job then return nil, message, code end
  local S = core.state(engine)
  local _, serial = core.job_engine(job)
  local data = { InstanceID = job.InstanceID, Name = job.Name,
    JobState = job.JobState, phase = job.phase, queue = job.queue,
    JobStatus = job.JobStatus, ScheduledStartTime = job.ScheduledStartTime,
    attempts = job.attempts, run_number = job.run_number,
    ErrorCode = job.ErrorCode,
    ErrorSummaryDescription = job.ErrorSummaryDescription,
    store_error = core.store_error(engine),
    notify_error = S.unnotified[serial] }
  local parts = { ("%s (%s) is %s: it %s"):format(job.Name, job.InstanceID,
    job.JobState, reasons[job.phase] or "is " .. tostring(job.phase)) }
  if (job.phase == "waiting" or job.phase == "backoff")
    and data.ScheduledStartTime then
    parts[1] = parts[1] .. " at " .. data.ScheduledStartTime
  elseif job.phase == "queued" then
    local row = queue_of(engine, job.queue)
    if row then
      data.running, data.queued = row.running, row.queued
      data.concurrency, data.QueueStatus = row.concurrency, row.QueueStatus
      parts[1] = ("%s %s (%d of %d places taken, %d queued)"):format(parts[1],
        job.queue, row.running, row.concurrency, row.queued)
    end
  elseif job.JobState == "Query Pending" then
    local query = job:query()
    data.query = query
    parts[1] = parts[1] .. "; it asks: " .. (query and query.question or "?")
  end
  if data.JobStatus and data.JobStatus ~= "" then
    parts[1] = ("%s (%s)"):format(parts[1], data.JobStatus)
  end
  if (data.ErrorCode or 0) ~= 0 and data.ErrorSummaryDescription then
    parts[#parts + 1] = "Last error: " .. data.ErrorSummaryDescription
  end
  local last = (core.history(engine, job.InstanceID, 0, 1, true) or {})[1]
  local late = lateness(last)
  if late then
    data.late = last
    parts[#parts + 1] = late:sub(1, 1):upper() .. late:sub(2)
  end
  local warnings = M.warnings_of(last)
  if warnings[1] then
    data.warnings, data.lost_warnings = warnings, last.lost_warnings
    parts[#parts + 1] = ("Warnings of its last run: %s%s"):format(
      table.concat(warnings, "; "), last.lost_warnings > 0
      and ("; and %d more"):format(last.lost_warnings) or "")
  end
  if data.store_error then
    parts[#parts + 1] = "The store fails, nothing starts: " .. data.store_error
  end
  if data.notify_error then
    parts[#parts + 1] = "Its notice was not delivered: " .. data.notify_error
  end
  return table.concat(parts, ". "), data
end

-- ---- the service's method ------------------------------------------------------------------

-- ExportReferencePoint's own codes, not RequestStateChange's.
local service_codes = { not_supported = 1, timeout = 3, closed = 5,
  invalid_state = 5, wrong_type = 4, invalid_argument = 4, unknown_key = 4,
  out_of_range = 4, bad_path = 4, duplicate_id = 4, no_such_property = 4,
  target_in_source = 4, not_found = 4, ambiguous = 4, exists = 5 }

local setting_fields = { base = "string", format = "string",
  digest = "string", on_disk_error = "string", depth_limit = "number",
  tracker = "string", resume = "boolean", machines = "list", Name = "string" }
local machine_fields = { VirtualMachineId = "string!", disks = "list" }

local function same_id(a, b)
  return a:gsub("[{}]", ""):upper() == b:gsub("[{}]", ""):upper()
end

-- The collection with the machines and disks the setting data asks for; a
-- machine listed without disks keeps its configuration only.
local function chosen(farm, machines)
  local out = { CollectionId = farm.CollectionId,
    ElementName = farm.ElementName,
    source_directories = farm.source_directories,
    clone_directory = farm.clone_directory, machines = {} }
  for i, wanted in ipairs(machines) do
    local what = ("ExportSettingData.machines[%d]"):format(i)
    failure.check_fields(wanted, machine_fields, what)
    local found
    for _, machine in ipairs(farm.machines) do
      if same_id(machine.VirtualMachineId, wanted.VirtualMachineId) then
        found = machine
      end
    end
    if not found then
      failure.raise("invalid_argument",
        "%s: machine %s is not in the collection", what,
        failure.shown(wanted.VirtualMachineId))
    end
    local copy = { disks = {} }
    for key, value in pairs(found) do
      if key ~= "disks" then copy[key] = value end
    end
    for _, id in ipairs(wanted.disks or {}) do
      local disk
      for _, candidate in ipairs(found.disks) do
        if candidate.id == id then disk = candidate end
      end
      if not disk then
        failure.raise("invalid_argument", "%s: machine %s has no disk '%s'",
          what, found.VirtualMachineId, failure.shown(id))
      end
      copy.disks[#copy.disks + 1] = disk
    end
    out.machines[i] = copy
  end
  return collection.check(out, nil, "ExportSettingData")
end

-- What every call of the service asks first: code, message when it is refused.
local function refused(engine, directory)
  if not core.is_open(engine) then
    return 5, "the engine is closed"
  elseif type(directory) ~= "string" or directory == "" then
    return 4, "ExportDirectory: a path expected, got "
      .. (directory == "" and "an empty string" or type(directory))
  end
end

-- The id of a point given as a table or as text, and its collection's.
local function point_of(point, what)
  if type(point) == "string" then return point end
  if type(point) ~= "table" then
    failure.raise("wrong_type", "%s: a reference point (a table with "
      .. "ReferencePointGroupId, as cairn.points gives it) or its id expected, "
      .. "got %s", what, type(point))
  end
  local id, farm = point.ReferencePointGroupId, point.CollectionId
  if type(id) ~= "string" then
    failure.raise("wrong_type", "%s: ReferencePointGroupId: a string expected, "
      .. "got %s", what, type(id))
  end
  return id, type(farm) == "string" and farm or nil
end

-- 4096, job | code, nil, message of what submit (or a check before) gave.
local function served(S, job, message, code)
  if not job then return service_codes[code] or 2, nil, message end
  M.update_ref(S)
  return 4096, job
end

local point_fields = { base = "string", format = "string",
  digest = "string", depth_limit = "number", Name = "string" }

-- A marker's export. It is checked first, with the sources open but not read,
-- so that what cannot be exported any more is refused here.
local function export_point(engine, point, directory, settings)
  local id, farm = point_of(point, "ReferencePoint")
  failure.check_fields(settings, point_fields, "ExportSettingData")
  if point.kind == "export" then
    failure.raise("invalid_state", "the reference point %s has its export "
      .. "already, in %s", failure.shown(id),
      failure.shown(tostring(point.directory)))
  end
  local plan, message, code = methods.plan(engine, { Name = "check",
    export = { point = id, CollectionId = farm, directory = directory,
      base = "none" } })
  if not plan then return nil, message, code end
  return methods.submit(engine, {
    Name = settings.Name or "ExportReferencePoint " .. id,
    DeleteOnCompletion = true,
    export = { point = id, CollectionId = farm, directory = directory,
      base = settings.base, format = settings.format,
      digest = settings.digest, depth_limit = settings.depth_limit } })
end

-- ExportReferencePoint(collection or point, directory[, setting data])
--   -> 4096, job | code, nil, message
function methods.ExportReferencePoint(engine, farm, directory, settings)
  local S = state(engine)
  if core.is_open(engine) and type(farm) ~= "table" then
    return 6, nil, "ReferencePointCollection: a cairn.collection expected, "
      .. "got " .. type(farm)
  end
  local number, why = refused(engine, directory)
  if number then return number, nil, why end
  return served(S, caught(pcall(function()
    settings = settings or {}
    if farm.ReferencePointGroupId ~= nil then
      return export_point(engine, farm, directory, settings)
    end
    failure.check_fields(settings, setting_fields, "ExportSettingData")
    farm = collection.check(farm, nil, "ReferencePointCollection")
    if settings.machines then farm = chosen(farm, settings.machines) end
    return methods.submit(engine, {
      Name = settings.Name or "ExportReferencePoint "
        .. (farm.ElementName or farm.CollectionId),
      DeleteOnCompletion = true,
      export = { collection = farm, directory = directory,
        base = settings.base, format = settings.format,
        digest = settings.digest, on_disk_error = settings.on_disk_error,
        depth_limit = settings.depth_limit, tracker = settings.tracker,
        resume = settings.resume } })
  end)))
end

local create_fields = { tracker = "string", machines = "list",
  Name = "string" }

-- CreateReferencePoint(collection, directory[, setting data])
--   -> 4096, job | code, nil, message; the job's report is the point
function methods.CreateReferencePoint(engine, farm, directory, settings)
  local S = state(engine)
  if core.is_open(engine) and type(farm) ~= "table" then
    return 6, nil, "Collection: a cairn.collection expected, got "
      .. type(farm)
  end
  local number, why = refused(engine, directory)
  if number then return number, nil, why end
  return served(S, caught(pcall(function()
    settings = settings or {}
    failure.check_fields(settings, create_fields, "ReferencePointSettingData")
    farm = collection.check(farm, nil, "Collection")
    if settings.machines then farm = chosen(farm, settings.machines) end
    return methods.submit(engine, {
      Name = settings.Name or "CreateReferencePoint "
        .. (farm.ElementName or farm.CollectionId),
      DeleteOnCompletion = true,
      reference_point = { action = "create", collection = farm,
        directory = directory, tracker = settings.tracker } })
  end)))
end

-- What is done to a point: checked first, so that a refusal is the call's.
local function change_point(engine, action, directory, point, settings, name)
  local S = state(engine)
  local number, why = refused(engine, directory)
  if number then return number, nil, why end
  if type(point) ~= "string" and type(point) ~= "table" then
    return 6, nil, "ReferencePoint: a point or its id expected, got "
      .. type(point)
  end
  return served(S, caught(pcall(function()
    local id, farm = point_of(point, "ReferencePoint")
    local spec = { action = action, directory = directory, point = id,
      CollectionId = farm, dependants = settings.dependants }
    local plan, message, code = methods.plan(engine,
      { Name = name, reference_point = spec })
    if not plan then return nil, message, code end
    spec.point = plan.points[1]
    return methods.submit(engine, { Name = settings.Name
      or ("%s %s"):format(name, spec.point), DeleteOnCompletion = true,
      reference_point = spec })
  end)))
end

local destroy_fields = { dependants = "boolean", Name = "string" }

-- DestroyReferencePoint(directory, point[, { dependants = }])
--   -> 4096, job | code, nil, message
function methods.DestroyReferencePoint(engine, directory, point, settings)
  settings = settings or {}
  local ok, err = pcall(failure.check_fields, settings, destroy_fields,
    "DestroyReferencePoint")
  if not ok then return 4, nil, tostring(err) end
  return change_point(engine, "destroy", directory, point, settings,
    "DestroyReferencePoint")
end

-- RemoveAssociatedData(directory, point) -> 4096, job | code, nil, message
function methods.RemoveAssociatedData(engine, directory, point)
  return change_point(engine, "remove_data", directory, point, {},
    "RemoveAssociatedData")
end

-- HasAssociatedData(directory, point)
--   -> 0, whether, what is kept | code, nil, message
function methods.HasAssociatedData(engine, directory, point)
  local number, why = refused(engine, directory)
  if number then return number, nil, why end
  if type(point) ~= "string" and type(point) ~= "table" then
    return 6, nil, "ReferencePoint: a point or its id expected, got "
      .. type(point)
  end
  local list, message, code = caught(pcall(function()
    return core.point_data(path.absolute(directory),
      (point_of(point, "ReferencePoint")))
  end))
  if not list then return service_codes[code] or 2, nil, message end
  local has_data = false
  for _, kept in ipairs(list) do has_data = has_data or kept.exists == true end
  return 0, has_data, list
end

methods.detach = function() end -- cairn/luv.lua

return M
