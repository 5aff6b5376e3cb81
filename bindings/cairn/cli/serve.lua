-- cairn serve: an engine with a store as a service: the policies of a directory,
-- a control socket, signals, and what a service manager wants to know.
--
-- It stops in order: runs are suspended, as the engine's close does it, while the
-- loop goes on, so that a second signal is heard. What does not come to a safe
-- point in time is left as a crash leaves it, and goes on with the next start as
-- well; with a store nothing is killed, which would be its end.

local core = require "cairn.core"
local E = require "cairn.engine"
local control = require "cairn.control"
local evaluator = require "cairn.evaluator"
local guard = require "cairn.cli.guard"
local client = require "cairn.client"
local files = require "cairn.cli.policies"
local policies = require "cairn.policies"
local say = require "cairn.cli.say"
local signals = require "cairn.cli.signals"
local text = require "cairn.cli.text"

local serve = {}

local Service = {}
Service.__index = Service

local STOP_S, LOOK_MS, STATUS_MS, METRICS_MS = 20, 20, 5000, 15000
local SETTLE_MS, POLL_MS = 300, 60000
local WARNINGS_MAX = 100 -- of a run, in the log

-- ---- places --------------------------------------------------------------------------

local function variable(uv, name)
  local value = uv.os_getenv(name)
  return value ~= "" and value or nil
end

local function xdg(uv, name, under_home)
  local directory = variable(uv, name)
  if directory and directory:sub(1, 1) == "/" then return directory end
  return uv.os_homedir() .. "/" .. under_home
end

local function absolute(uv, path)
  return path:sub(1, 1) == "/" and path or uv.cwd() .. "/" .. path
end

local function make_directories(uv, path)
  local at = 1
  while at do
    at = path:find("/", at + 1, true)
    uv.fs_mkdir(at and path:sub(1, at - 1) or path, tonumber("700", 8))
  end
end

-- The store's file; the directory of a default one is made.
local function store_of(uv, options)
  if options.store then
    return options.store == ":memory:" and options.store
      or absolute(uv, options.store)
  end
  local path = variable(uv, "CAIRN_STORE")
  if path then return absolute(uv, path) end
  if uv.getuid() == 0 then
    path = "/var/lib/cairn/cairn.db"
  else
    path = xdg(uv, "XDG_STATE_HOME", ".local/state") .. "/cairn/cairn.db"
  end
  make_directories(uv, path:match "^(.*)/")
  return path
end

-- The directory of policies; nil when none is given and the default one is not
-- there.
local function policies_of(uv, options)
  local path = options.policies and absolute(uv, options.policies)
  local stat = path and uv.fs_stat(path)
  if path and (not stat or stat.type ~= "directory") then
    say.fail(2, "--policies %s: %s", text.printable(options.policies),
      stat and "no directory" or "there is no such directory")
  elseif path then
    return path
  end
  path = uv.getuid() == 0 and "/etc/cairn/policies"
    or xdg(uv, "XDG_CONFIG_HOME", ".config") .. "/cairn/policies"
  stat = uv.fs_stat(path)
  return stat and stat.type == "directory" and path or nil
end

-- ---- the log -------------------------------------------------------------------------

local function stamp(uv)
  local s, us = uv.gettimeofday()
  return os.date("!%Y-%m-%dT%H:%M:%S", s) .. (".%03dZ"):format(us // 1000)
end

local function valid(message)
  if utf8.len(message) and not message:find "\0" then return message end
  return text.printable_lines(message)
end

-- One line a message, on standard error: nothing else is written there.
function Service:log(level, message, fields)
  if level == "debug" then return end
  message = tostring(message)
  if self.is_json then
    local line = { time = stamp(self.uv), level = level,
      message = valid(message) }
    for key, value in pairs(fields or {}) do
      line[key] = type(value) == "string" and valid(value) or value
    end
    io.stderr:write(assert(core.json_encode(line)), "\n")
  else
    io.stderr:write(("%s %-7s %s\n"):format(stamp(self.uv), level,
      (text.printable_lines(message):gsub("\n", "\n    "))))
  end
end

-- ---- the service manager -------------------------------------------------------------

function Service:tell(message)
  if not self.manager then return end
  local ok, why = core.service_notify(self.manager, message)
  if not ok and not self.is_manager_gone then
    self.is_manager_gone = true
    self:log("warning", why)
  end
end

function Service:status()
  local running, queued, unfinished = 0, 0, 0
  for _, queue in ipairs(self.engine:queues() or {}) do
    running, queued = running + queue.running, queued + queue.queued
    unfinished = unfinished + queue.unfinished
  end
  local line = ("%s, %d running, %d queued"):format(
    text.count(unfinished, "job"), running, queued)
  local failed = core.store_error(self.engine)
  return failed and line .. "; the store fails: " .. failed:gsub("\n", " ")
    or line
end

function Service:timer(ms, fn)
  local timer = assert(self.uv.new_timer())
  self.handles[#self.handles + 1] = timer
  self.uv.timer_start(timer, ms, ms, fn)
  self.uv.unref(timer)
  return timer
end

-- What NOTIFY_SOCKET and WATCHDOG_USEC ask for; programs that jobs start are not
-- to inherit it.
function Service:meet_manager()
  local uv = self.uv
  self.manager = variable(uv, "NOTIFY_SOCKET")
  local pid = math.tointeger(variable(uv, "WATCHDOG_PID"))
  local usec = math.tointeger(variable(uv, "WATCHDOG_USEC"))
  for _, name in ipairs { "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC" } do
    uv.os_unsetenv(name)
  end
  if not self.manager then return end
  if usec and usec > 0 and (not pid or pid == uv.os_getpid()) then
    self:timer(math.max(1, usec // 2000), function()
      self:tell "WATCHDOG=1"
    end)
  end
  local last
  self:timer(STATUS_MS, function()
    if self.is_stopping or not core.is_open(self.engine) then return end
    local status = self:status()
    if status ~= last then self:tell("STATUS=" .. status) end
    last = status
  end)
end

-- ---- metrics --------------------------------------------------------------------------

-- Into a file, from now on. What fails is logged when it begins to.
function Service:write_metrics(path)
  local failed
  local function write()
    local engine = self.engine
    if not core.is_open(engine) then return end
    local ok, message = engine:write_metrics(path)
    if not ok and message ~= failed then
      self:log("error", "metrics: " .. message)
    end
    failed = not ok and message or nil
  end
  write()
  self:timer(METRICS_MS, write)
end

-- ---- what jobs do --------------------------------------------------------------------

local levels = { ["Exception"] = "error", ["Killed"] = "warning",
  ["Terminated"] = "warning", ["Completed With Warnings"] = "warning" }
local is_told = { ["Starting"] = false, ["Shutting Down"] = false }

-- A property of a job that may be gone already.
local function property(event, name)
  local ok, value = pcall(function() return event.job[name] end)
  return ok and value or nil
end

function Service:about(event, level, message)
  self:log(level, ("%s: %s"):format(property(event, "Name")
    or event.InstanceID, message), { job = event.InstanceID })
end

function Service:watch_jobs()
  local engine = self.engine
  local warned = {} -- InstanceID -> how many warnings of its run are logged
  -- Each event brings the whole list: a body that warns all the time is not
  -- listened to all the time.
  local function log_warnings(event, list)
    local id = event.InstanceID
    for i = (warned[id] or 0) + 1, math.min(#list, WARNINGS_MAX + 1) do
      self:about(event, "warning", ("run %d: %s"):format(event.run_number,
        i <= WARNINGS_MAX and list[i] or "further warnings are not logged"))
      warned[id] = i
    end
  end
  engine:on("JobState", function(event)
    local state = event.JobState
    if state == "Starting" then warned[event.InstanceID] = nil end
    if is_told[state] == false then return end
    local message = state
    if state == "Query Pending" then
      local ok, query = pcall(event.job.query, event.job)
      message = "asks: " .. (ok and query and query.question or "?")
    elseif state == "Suspended" then
      message = ("Suspended, %s"):format(property(event, "phase") or "?")
    end
    self:about(event, levels[state] or "info", message)
  end)
  engine:on("RunEnded", function(event)
    if event.JobState == "Completed" then return end
    local record = E.record_of(engine, event.InstanceID, event.run_number,
      event.attempt)
    log_warnings(event, E.warnings_of(record)) -- its job may have begun another
    if event.ErrorCode == 0 then return end
    self:about(event, "error", ("run %d, attempt %d: %s"):format(
      event.run_number, event.attempt, record and record.ErrorDescription
      or property(event, "ErrorSummaryDescription")
      or "error " .. event.ErrorCode))
  end)
  engine:on("Warning", function(event)
    if (warned[event.InstanceID] or 0) > WARNINGS_MAX then return end
    local ok, list = pcall(event.job.warnings, event.job)
    if ok and list then log_warnings(event, list) end -- else it is gone
  end)
  engine:on("Removed", function(event) warned[event.InstanceID] = nil end)
  engine:on("Skipped", function(event)
    self:about(event, "warning", ("%s had no run: %s"):format(
      text.count(event.count, "time"), event.reason))
  end)
end

-- ---- policies ------------------------------------------------------------------------

-- What loading has done is logged by cairn.policies itself. With all = true
-- every file is loaded again, else those that have changed.
function Service:load(all)
  if not self.policies then return nil end
  local ok, report = xpcall(self.policies.load, debug.traceback, self.policies,
    all)
  if ok then return report end
  self:log("error", "loading the policies: " .. tostring(report))
end

function Service:reload()
  self:tell(("RELOADING=1\nMONOTONIC_USEC=%d"):format(core.monotonic()))
  local report = self:load(true)
  self:tell "READY=1"
  return report
end

-- Files that were changed are loaded when nothing has changed for a moment:
-- editors write in steps. A watch that the system does not offer (a network's
-- file system) or that was lost is made up for by looking now and then.
function Service:watch_policies(directory)
  local uv = self.uv
  local settling = self:timer(POLL_MS, function() self:load() end)
  self.policy_watch = settling
  local watch = assert(uv.new_fs_event())
  self.handles[#self.handles + 1] = watch
  uv.unref(watch)
  local function changed()
    if self.is_stopping then return end
    -- the same timer: after this it is slow again
    uv.timer_start(settling, SETTLE_MS, POLL_MS, function() self:load() end)
  end
  local ok, message = uv.fs_event_start(watch, directory, {}, changed)
  if not ok then
    self:log("warning", ("%s is not watched, only looked at every %d s: %s")
      :format(directory, POLL_MS // 1000, message))
  end
end

local function list_of(rows)
  local out = {}
  for i, row in ipairs(rows) do out[i] = assert(core.json_encode(row)) end
  return "[" .. table.concat(out, ",") .. "]"
end

-- What the control socket's calls need of us.
function Service:hooks()
  local raw = require "cairn.control_calls".raw
  local function refused(done)
    return done(nil, "this service has no directory of policies",
      "not_supported", { exit = 1 })
  end
  local hooks = {}
  function hooks.reload(done)
    if not self.policies then return refused(done) end
    local report = self:reload()
    if not report then
      return done(nil, "the policies could not be loaded; see the service's "
        .. "log", "internal")
    end
    done(raw(('{"loaded":%d,"changes":%s,"failed":%s}'):format(
      #report.loaded, list_of(report.loaded), list_of(report.failed))))
  end
  function hooks.policies(done)
    if not self.policies then return refused(done) end
    done(raw(list_of(self.policies:list())))
  end
  function hooks.shutdown(done)
    done(true)
    self:stop "shutdown"
  end
  function hooks.metrics(done) done { text = self.engine:metrics() } end
  return hooks
end

-- ---- its end -------------------------------------------------------------------------

function Service:is_quiet()
  if not core.is_idle(self.engine) then return false end
  return next(core.state(self.engine).background) == nil
end

-- Once: in order. Twice: now.
function Service:stop(why)
  local engine, S = self.engine, core.state(self.engine)
  if self.is_stopping then
    if not self.is_hurried then
      self:log("warning", why .. ": ending at once" .. (self.is_stored
        and "; what has not stopped goes on at the next start" or ""))
    end
    self.is_hurried = true
    return self.uv.stop()
  end
  self.is_stopping = true
  self:tell "STOPPING=1\nSTATUS=stopping"
  self:log("info", ("%s: stopping%s"):format(why, self.is_stored
    and "; runs are suspended and go on at the next start" or ""))
  if self.policy_watch then self.uv.timer_stop(self.policy_watch) end
  local mode = self.is_stored and "suspend" or "terminate"
  core.begin_close(engine, mode)
  for task in pairs(S.background) do
    if not task.is_notice then E.end_task(engine, S, task, mode) end
  end
  local deadline = core.monotonic() + STOP_S * 1000000
  self.uv.ref(self:timer(LOOK_MS, function()
    -- a body begins anew at the next start: what it has started goes with it
    for _, task in pairs(self.is_stored and S.tasks or {}) do
      if task.is_suspended then E.close_task(engine, S, task) end
    end
    if self:is_quiet() then return self.uv.stop() end
    if core.monotonic() > deadline then
      self:log("warning", ("not all runs have stopped within %d s"):format(
        STOP_S))
      self.is_hurried = true
      self.uv.stop()
    end
  end))
end

-- Ends what is left; returns the exit code.
function Service:finish()
  local uv, engine = self.uv, self.engine
  local is_answered = self.control == nil
  if self.control then
    self.control:close(function()
      is_answered = true
      uv.stop()
    end)
  end
  while not is_answered do uv.run() end
  signals.finish(function()
    for _, handle in ipairs(self.handles) do uv.close(handle) end
    self.handles = {}
  end)
  if self.is_hurried and self.is_stored then return 1 end
  -- what runs may have asked its policy until now
  if self.policies then self.policies:close() end
  local ok, message = engine:close { mode = self.is_stored and "suspend"
    or self.is_hurried and "kill" or "terminate", timeout = 1 }
  if not ok then
    self:log("error", message)
    return 1
  end
  self:log("info", "stopped")
  return 0
end

-- ---- its life ------------------------------------------------------------------------

function Service:watch_signals()
  local uv = self.uv
  local function ended(name) self:stop(name:upper()) end
  local handles = signals.watch(uv, ended, { "sigint", "sigterm" })
  table.move(handles, 1, #handles, #self.handles + 1, self.handles)
  for _, name in ipairs(core.process_signals()) do
    if name == "sighup" then
      local signal = assert(uv.new_signal())
      self.handles[#self.handles + 1] = signal
      uv.signal_start(signal, "sighup", function()
        if self.is_stopping then return end
        self:log("info", "SIGHUP: loading the policies")
        self:reload()
      end)
      uv.unref(signal)
    end
  end
end

-- Before there is an engine: what is wrong ends the command.
local function socket_of(uv, options)
  if options.socket then return absolute(uv, options.socket) end
  local path, message, _, exit = client.default_socket(uv)
  if not path then
    say.fail(exit, "%s; name one with --socket", message)
  end
  return absolute(uv, path)
end

function Service:open(cairn, options)
  local uv = self.uv
  local socket, store = socket_of(uv, options), store_of(uv, options)
  local directory = policies_of(uv, options)
  for _, name in ipairs { "admin_group", "read_group" } do
    if options[name] then
      local ok, message = core.group_id(options[name])
      if not ok then
        say.fail(2, "--%s: %s", (name:gsub("_", "-")), message)
      end
    end
  end
  local engine, message, code = cairn.open { store = store,
    queues = files.queues(options.queue),
    log = function(line) self:log("warning", line) end }
  if not engine then say.fail_with(cairn, message, code) end
  self.engine, self.is_stored = engine, store ~= ":memory:"
  assert(cairn.attach(engine, uv))
  local log = function(...) self:log(...) end
  self.control, message, code = control.open(engine, { uv = uv,
    socket = socket, log = log, admin_group = options.admin_group,
    read_group = options.read_group, evaluator = evaluator,
    service = self:hooks() })
  if not self.control then
    engine:close { mode = "suspend", timeout = 1 }
    say.fail_with(cairn, message, code)
  end
  self:watch_jobs()
  if options.metrics then self:write_metrics(absolute(uv, options.metrics)) end
  self:meet_manager()
  if directory then
    self.policies = policies.open(engine, directory, { log = log })
    self:watch_policies(directory)
  end
  self:log("info", ("cairn %s, process %d: store %s, socket %s, %s"):format(
    cairn.version, uv.os_getpid(), store, socket, directory
      and "policies " .. directory or "no policies"))
end

function serve.serve(cairn, uv, options)
  local self = setmetatable({ uv = uv, is_json = options.json or options.log == "json",
    handles = {} }, Service)
  guard.report = function(message)
    self:log("error", "uncaught error in a callback: " .. message)
  end
  self:open(cairn, options)
  self:watch_signals()
  self:load()
  self:tell(("READY=1\nMAINPID=%d\nSTATUS=%s"):format(uv.os_getpid(),
    self:status()))
  repeat uv.run() until self.is_stopping and (self.is_hurried
    or self:is_quiet())
  return self:finish()
end

return serve
