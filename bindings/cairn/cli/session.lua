-- Jobs driven to their end for a person: an engine on luv's loop, progress,
-- questions, signals. Events only say that something happened; what is shown is
-- read from the jobs themselves, so that a bounded event queue or a coalesced
-- redraw can lose nothing.

local E = require "cairn.engine"
local guard = require "cairn.cli.guard"
local policies = require "cairn.policies"
local progress = require "cairn.cli.progress"
local say = require "cairn.cli.say"
local signals = require "cairn.cli.signals"
local text = require "cairn.cli.text"

local session = {}

local Session = {}
Session.__index = Session

local is_final = {
  ["Completed"] = true, ["Completed With Warnings"] = true,
  ["Terminated"] = true, ["Killed"] = true, ["Exception"] = true,
}
local is_well = { ["Completed"] = true, ["Completed With Warnings"] = true }

local REDRAW_MS, LOOK_MS = 100, 250
local CLOSE_S = 10

local function view_for(uv)
  local function write(s) io.stderr:write(s) end
  local terminal = say.terminal(uv, 2)
  if terminal then
    local tty = say.tty(uv, 2, false)
    -- The handle only tells the size. It must not keep the loop alive.
    if tty then uv.unref(tty) end
    signals.set_cursor(true)
    return progress.bars {
      write = write,
      unicode = terminal.unicode,
      colour = terminal.colour,
      size = function()
        local columns, lines
        if tty then columns, lines = uv.tty_get_winsize(tty) end
        if not columns or columns == 0 then columns, lines = 80, 24 end
        return columns, lines
      end,
    }, tty
  end
  return progress.lines {
    write = write,
    now = function() return uv.hrtime() / 1e9 end,
  }
end

-- options: cairn, uv, queues (as cairn.open takes them), follow (the jobs have calendars: a signal is their end),
-- store (a file; what has not ended when the command does goes on with the
-- next one).
function session.open(options)
  local cairn, uv = options.cairn, options.uv
  local store = options.store
  local engine, message, code = cairn.open { store = store or ":memory:",
    queues = options.queues }
  if not engine then say.fail_with(cairn, message, code) end
  local self = setmetatable({
    cairn = cairn, uv = uv, engine = engine, is_following = options.follow,
    is_stored = store ~= nil,
    -- what a client holds is not waited for
    is_letting_held = options.follow or store ~= nil,
    jobs = {},     -- followed, in order: { job =, name =, state =, ... }
    known = {},    -- the same by job
    handles = {},  -- luv handles to close
    signals = 0,   -- so many have asked us to stop
    questions = {}, -- jobs with an open question, first first
  }, Session)
  self.view, self.tty = view_for(uv)
  guard.report = function(what)
    self.view:say("uncaught error in a callback: "
      .. text.printable_lines(what))
  end
  return self
end

-- Gives jobs of the store what the policy has for them now, and waits for it.
local function renew(engine, specs)
  local jobs, message, code = policies.renew(engine, specs)
  if not jobs then return nil, message, code end
  local ok
  ok, message, code = engine:flush()
  if not ok then return nil, message, code end
  return jobs
end

-- Holds the jobs of this policy that are not in it any more.
function Session:hold_strays(policy, keys)
  policies.hold_strays(self.engine, policy, keys, function(job)
    say.note(("cairn: %s: no job of the policy any more, held")
      :format(text.printable(job.Name)))
  end)
end

-- Submits specifications; ends the command when one is refused.
function Session:submit(specs)
  local ok, jobs, message, code
  if self.is_stored then
    ok, jobs, message, code = pcall(renew, self.engine, specs)
  elseif #specs == 1 then -- no message needs to say which
    ok, jobs, message, code = pcall(self.engine.submit, self.engine, specs[1])
    if ok and jobs then jobs = { jobs } end
  else
    ok, jobs, message, code = pcall(self.engine.submit_all, self.engine, specs)
  end
  if not ok then
    self:close()
    say.fail(2, "%s", text.printable_lines(jobs))
  elseif not jobs then
    self:close()
    say.fail_with(self.cairn, message, code)
  end
  for i, job in ipairs(jobs) do self:add(job, i) end
end

-- `place` is the place among the submitted jobs; nil for a job that one of
-- them spawned.
function Session:add(job, place)
  if self.known[job] then return end
  local entry = { job = job, name = job.Name, place = place, state = "New" }
  self.known[job] = entry
  table.insert(self.jobs, entry)
end

-- ---- what is shown ------------------------------------------------------------

local function detail_of(job, state)
  if state == "New" or state == "Suspended" then
    local phase = job.phase
    if phase == "backoff" or phase == "waiting" then
      return text.printable(job.JobStatus:match("^[^;\n]*")) -- told already
    end
    return phase == "held" and "suspended" or phase
  end
end

local function row_of(entry)
  local job = entry.job
  return {
    key = entry, name = entry.name, state = entry.state,
    percent = job.PercentComplete, rate = job.rate, eta = job.eta,
    detail = detail_of(job, entry.state),
  }
end

-- What stays of a job when it has ended: read before it can be removed.
local function keep(entry)
  local job = entry.job
  entry.json = function(numbers) return entry.texts[numbers and 2 or 1] end
  entry.texts = { job:json(false), job:json(true) }
  entry.report = job:report()
  local _, errors = job:GetErrorEx()
  entry.errors = errors or {}
  entry.properties = {}
  for _, name in ipairs { "ErrorCode", "ErrorDescription", "bytes_done",
    "ExportDirectory", "ReferencePointGroupId", "VirtualMachineId",
    "ExportedDisks", "ExportedLogFilePaths" } do
    entry.properties[name] = job[name]
  end
  entry.seconds = (job:number "ElapsedTime" or 0) / 1e6
end

local function terminate(entry)
  local code = entry.job:RequestStateChange "Terminate"
  if code ~= 0 and code ~= 4096 then entry.job:KillJob(false) end
end

function Session:look()
  local open = false
  for _, entry in ipairs(self.jobs) do
    if not is_final[entry.state] then
      local state = entry.job.JobState
      if state ~= entry.state then
        entry.state = state
        if is_final[state] then keep(entry) end
        self:changed(entry)
      end
      -- a job that stands ready for others ends with them
      open = open or (entry.place ~= nil and not is_final[state]
        and not (self.is_letting_held and entry.job.phase == "held"))
    end
  end
  if not open and self.is_letting_held then self:let_go() end
  if not open then self.uv.stop() end
  self.is_done = not open
end

function Session:let_go()
  for _, entry in ipairs(self.jobs) do
    if not is_final[entry.state] then
      entry.is_let_go = self.is_following
      if self.is_stored and entry.place and entry.job.phase == "held" then
        say.note(("cairn: %s: held by a client; job:resume() in Lua lets it go")
          :format(text.printable(entry.name)))
      end
      if not self.is_stored then terminate(entry) end
      entry.state = entry.job.JobState
      keep(entry)
    end
  end
end

function Session:changed(entry)
  if is_final[entry.state] then
    self:draw() -- without it
    self.view:say(("%s: %s"):format(text.printable(entry.name), entry.state))
  else
    self.view:state(row_of(entry))
  end
  if entry.state == "Query Pending" then
    table.insert(self.questions, entry)
    self:ask()
  elseif self.questions[1] == entry and self.is_asking then
    self:stop_asking()
    table.remove(self.questions, 1)
    self:ask()
  end
end

-- An attempt at a run has ended.
function Session:run_ended(event)
  local entry = self.known[event.job]
  if not entry then return end
  local is_failed = not is_well[event.JobState]
  -- one that is well at a later attempt has not failed
  entry.failed_runs = entry.failed_runs or {}
  entry.failed_runs[event.run_number] = is_failed or nil
  self.view:say(("%s: run %d: %s%s"):format(text.printable(entry.name),
    event.run_number, event.JobState == "Exception" and "failed"
      or event.JobState:lower(),
    event.attempt > 1 and (" (attempt %d)"):format(event.attempt) or ""))
  if event.JobState == "Completed" then return end
  local record = E.record_of(self.engine, event.InstanceID, event.run_number,
    event.attempt)
  for _, warning in ipairs(E.warnings_of(record)) do
    self.view:say("  warning: " .. text.printable_lines(warning))
  end
  if record and record.lost_warnings > 0 then
    self.view:say(("  and %d more"):format(record.lost_warnings))
  end
  if record and is_failed then
    self.view:say("  " .. text.printable_lines(record.ErrorDescription
      or "unknown error"))
  end
end

local why_skipped = {
  missed = "nothing ran at that time",
  running = "the run before was not over",
  held = "the job was suspended",
  ended = "the job has ended",
  queued = "it waited longer than MaxTimeOnQueue",
}

function Session:skipped(event)
  local entry = self.known[event.job]
  if not entry then return end
  self.view:say(("%s: %d time%s skipped: %s"):format(text.printable(entry.name),
    event.count, event.count == 1 and "" or "s", why_skipped[event.reason]))
end

function Session:draw()
  local rows = {}
  for _, entry in ipairs(self.jobs) do
    if not is_final[entry.state] then rows[#rows + 1] = row_of(entry) end
  end
  self.view:show(rows)
end

-- ---- questions ------------------------------------------------------------------


-- Asks the first open question, when none is being asked.
function Session:ask()
  local entry = self.questions[1]
  if not entry or self.is_asking then return end
  local query = entry.job:query() or { question = "?" }
  local question = ("%s asks: %s"):format(text.printable(entry.name),
    text.printable_lines(query.question))
  if query.choices then
    local choices = {}
    for i, choice in ipairs(query.choices) do
      choices[i] = text.printable(choice)
    end
    question = ("%s (%s)"):format(question, table.concat(choices, ", "))
  end
  if self.uv.guess_handle(0) ~= "tty" then
    table.remove(self.questions, 1)
    self.view:say(question .. "\n" .. text.printable(entry.name)
      .. ": terminated: standard input is not a terminal, "
      .. "nobody can answer")
    terminate(entry)
    return self:ask()
  end
  self.is_asking = true
  self.view:pause()
  self.view:say(question)
  self:prompt()
end

function Session:prompt()
  io.stderr:write("> ")
  if self.input then return end
  local uv, typed = self.uv, ""
  self.input = assert(say.tty(uv, 0, true))
  uv.read_start(self.input, function(err, data)
    if err or not data then return self:answered(nil) end
    typed = typed .. data
    local line, rest = typed:match("^([^\n]*)\n(.*)$")
    if line then
      typed = rest
      self:answered((line:gsub("\r$", "")))
    end
  end)
end

function Session:answered(line)
  local entry = self.questions[1]
  if not entry or not self.is_asking then return end
  if not line then
    io.stderr:write("\n")
    self.view:say(text.printable(entry.name) .. ": terminated, no answer")
    terminate(entry)
  else
    local code, _, message = entry.job:ResumeWithInput(line)
    if code ~= 0 and code ~= 4096 then
      self.view:say(message and text.printable_lines(message)
        or ("not accepted (code %d)"):format(code))
      return self:prompt()
    end
  end
  self:stop_asking()
  table.remove(self.questions, 1)
  self:ask()
end

function Session:stop_asking()
  self.is_asking = false
  if self.input then
    self.uv.read_stop(self.input)
    self.uv.close(self.input)
    self.input = nil
  end
  self.view:resume()
end

-- ---- signals ------------------------------------------------------------------

function Session:interrupted(name)
  self.signals = self.signals + 1
  if self.signals == 1 and self.is_stored then
    self.view:say(("%s: suspending the jobs; they go on with the next start")
      :format(name))
    self:let_go()
    self.is_left = true
    self.uv.stop()
  elseif self.signals == 1 then
    self.view:say(("%s: ending the jobs in order; once more kills them")
      :format(name))
    for _, entry in ipairs(self.jobs) do
      if not is_final[entry.state] then
        -- a job that only waits is let go, which is no failure
        local phase = entry.job.phase
        entry.is_let_go = self.is_following
          and phase ~= "running" and phase ~= "backoff"
        terminate(entry)
      end
    end
  else
    self.view:say(("%s: killing the jobs"):format(name))
    for _, entry in ipairs(self.jobs) do
      if not is_final[entry.state] then entry.job:KillJob(false) end
    end
    -- A third one finds the system's own handling.
    for _, signal in ipairs(self.stoppers) do self.uv.signal_stop(signal) end
  end
  self:look()
end

function Session:on_signal(name, handler)
  local signal = assert(self.uv.new_signal())
  table.insert(self.handles, signal)
  self.uv.signal_start(signal, name, handler)
  self.uv.unref(signal)
  return signal
end

function Session:watch_signals()
  self.stoppers = signals.watch(self.uv, function(name)
    self:interrupted(name:upper())
  end)
  table.move(self.stoppers, 1, #self.stoppers, #self.handles + 1, self.handles)
  if self.tty then
    self:on_signal("sigwinch", function() self:draw() end)
    -- Stopped by Ctrl-Z: the shell gets its cursor back.
    self:on_signal("sigtstp", function()
      self.view:pause()
      self.uv.kill(self.uv.os_getpid(), "sigstop")
    end)
    self:on_signal("sigcont", function()
      if not self.is_asking then self.view:resume() end
    end)
  end
end

-- ---- the loop -------------------------------------------------------------------

-- Drives the engine until every submitted job has ended.
function Session:follow()
  local cairn, uv, engine = self.cairn, self.uv, self.engine
  local ok, err = xpcall(function()
    engine:on("Submitted", function(event) self:add(event.job) end)
    engine:on("JobState", function() self:look() end)
    if self.is_following then
      engine:on("RunEnded", function(event) self:run_ended(event) end)
      engine:on("Skipped", function(event) self:skipped(event) end)
    end
    cairn.attach(engine, uv)
    if self.is_following then
      for _, entry in ipairs(self.jobs) do self.view:state(row_of(entry)) end
    end
    local timer = assert(uv.new_timer())
    table.insert(self.handles, timer)
    uv.timer_start(timer, 0, self.tty and REDRAW_MS or LOOK_MS, function()
      self:look()
      self:draw()
    end)
    -- Something else may stop the loop: a policy's own uv.stop().
    repeat uv.run() until self.is_done or self.is_left
  end, function(e) return debug.traceback(tostring(e), 2) end)
  if not ok then
    self:close()
    error(err, 0)
  end
end

-- Ends the engine and every handle; the terminal is as it was.
function Session:close()
  if self.is_closed then return end
  self.is_closed = true
  if self.input then self:stop_asking() end
  self.view:finish()
  signals.set_cursor(false)
  local function let_go()
    for _, handle in ipairs(self.handles) do self.uv.close(handle) end
    self.handles = {}
  end
  if self.is_done then signals.finish(let_go) else let_go() end
  local ok, message, code = self.engine:close {
    mode = self.is_stored and "suspend" or self.signals > 1 and "kill"
      or "terminate", timeout = CLOSE_S }
  if not ok and code == "store_failed" then self.is_lost = message end
  if self.tty then self.uv.close(self.tty) end
end

-- ---- how it ended -----------------------------------------------------------------

-- One error or warning of the class: what and where, then what to do.
local function error_lines(name, err)
  local lines = { ("cairn: %s: %s%s"):format(text.printable(name),
    err.MessageID and ("[%s] "):format(err.MessageID) or "",
    text.printable_lines(err.Message or "unknown error")) }
  local todo = err.RecommendedActions
  if type(todo) == "table" then todo = table.concat(todo, " ") end
  if todo and todo ~= "" then
    lines[2] = "  to do: " .. text.printable(todo)
  end
  return table.concat(lines, "\n")
end

-- A machine that was left out of a point: the job completed, the collection is
-- not all there.
local function has_failed_machine(entry)
  for _, machine in ipairs(entry.report and entry.report.machines or {}) do
    if type(machine) == "table" and machine.result == "failed" then
      return true
    end
  end
  return false
end

-- Says on standard error what went wrong or gave a warning; returns the exit
-- code of the whole.
function Session:judge()
  local code = guard.count > 0 and 1 or 0
  if self.is_lost then
    say.note("cairn: " .. text.printable_lines(self.is_lost))
    code = 1
  end
  for _, entry in ipairs(self.jobs) do
    if entry.failed_runs and next(entry.failed_runs) then code = 1 end
    if entry.place and not entry.is_let_go and (not is_well[entry.state]
      or has_failed_machine(entry)) then
      code = 1
    end
    for _, err in ipairs(not entry.is_let_go and entry.errors or {}) do
      say.note(error_lines(entry.name, err))
    end
  end
  return code
end

-- The submitted jobs, in order, as they ended.
function Session:outcomes()
  local out = {}
  for _, entry in ipairs(self.jobs) do
    if entry.place then out[entry.place] = entry end
  end
  return out
end

function session.is_well(entry) return is_well[entry.state] == true end

-- Submits, follows, closes, says what went wrong: outcomes, exit code.
function session.run(options, specs)
  local self = session.open(options)
  -- with a store jobs may begin before submit returns
  self:watch_signals()
  self:submit(specs)
  if self.is_stored and options.follow then
    self:hold_strays(specs[1].policy, options.keys)
  end
  self:follow()
  self:close()
  local code = self:judge()
  return self:outcomes(), code
end

return session
