-- cairn console: Lua on an engine: a prompt, chunks, or a script. The engine is a
-- private one in memory, driven by luv's loop here, or that of a service, over
-- its control socket.
--
-- A BACKEND is what evaluates: eval(source, done), interrupt(), complete(line,
-- reply), close(). Whatever a chunk does, this loop turns: so events are shown
-- above the prompt, and Ctrl-C ends the chunk and not the engine.

local core = require "cairn.core"
local client = require "cairn.client"
local editor = require "cairn.cli.editor"
local evaluator = require "cairn.evaluator"
local failure = require "cairn.failure"
local history = require "cairn.cli.history"
local say = require "cairn.cli.say"
local signals = require "cairn.cli.signals"
local text = require "cairn.cli.text"

local console = {}

local Console = {}
Console.__index = Console

local CLOSE_S = 10
local EVENTS_MS = 50     -- between what is shown of them
local EVENT_LINES = 20   -- at a time; of the rest the number
local NAMES_MAX = 1000   -- of jobs, that are remembered
local ASKED_MAX = 32     -- names asked for at a time; else the id must do
local COMPLETE_S = 1     -- then there is nothing to complete
local PROMPT, MORE = "> ", ">> "

-- ---- the private engine ----------------------------------------------------------

local Private = {}
Private.__index = Private

-- What jobs print while somebody types goes above the line; a chunk's own prints
-- keep their order with all else that it writes.
local function open_private(self)
  local cairn, uv = self.cairn, self.uv
  local engine, message, code = cairn.open { store = ":memory:",
    log = function(line) self:tell("cairn: " .. tostring(line)) end }
  if not engine then say.fail_with(cairn, message, code) end
  local backend = setmetatable({ engine = engine }, Private)
  self.backend = backend
  cairn.attach(engine, uv)
  local print_now = print
  backend.session = evaluator.new { engine = engine, uv = uv, globals = _G,
    is_raw = true, print = function(lines) self:tell(lines) end }
  local print_above = _G.print
  function _G.print(...) -- luacheck: ignore
    if self.is_at_prompt then return print_above(...) end
    return print_now(...)
  end
end

function Private:eval(source, done, options)
  self.session:eval(source, done, options)
end

function Private:interrupt() self.session:interrupt() end

function Private:complete(line, reply) reply(self.session:complete(line)) end

function Private:watch(fn)
  for _, name in ipairs(console.events) do self.engine:on(name, fn) end
end

function Private.name_of(_, event, reply)
  local ok, name = pcall(function() return event.job.Name end)
  reply(ok and name or nil)
end

function Private:close()
  self.session:close()
  self.engine:close { mode = "terminate", timeout = CLOSE_S }
end

-- ---- the service's engine -----------------------------------------------------------

local Attached = {}
Attached.__index = Attached

-- Text of the service's, which is as strange to this terminal as a job's name.
local function printable(s)
  local shown = text.printable_lines(s)
  return s:find "\n$" and shown .. "\n" or shown
end

local function attach(self, c)
  local backend = setmetatable({ client = c, names = {}, asked = {},
    name_count = 0, asked_count = 0 }, Attached)
  self.backend = backend
  c:on_output(function(lines) self:tell(printable(lines)) end)
  c:on_close(function(err)
    self.gone = err
    self.uv.stop()
  end)
  backend.print = function(lines)
    if self.editor then return self:tell(printable(lines)) end
    io.stdout:write(printable(lines))
    io.stdout:flush()
  end
end

function Attached:eval(source, done, options)
  local id, message, code, exit
  id, message, code, exit = self.client:request_async({ eval = source,
    json = options and options.json or nil }, function(result, err)
    self.id = nil
    if err then
      done { error = printable(err.message), code = err.code, exit = err.exit }
    elseif result.incomplete then
      done { incomplete = true }
    else
      local values = type(result) == "table" and result.values or {}
      for i, value in ipairs(values) do values[i] = printable(tostring(value)) end
      done { values = values }
    end
  end, { output = self.print })
  if not id then
    return done { error = message, code = code, exit = exit }
  end
  self.id = id
end

function Attached:interrupt()
  if self.id then self.client:interrupt(self.id) end
end

function Attached:complete(line, reply)
  -- the word is enough, and a line may be long
  local start = evaluator.word_start(line)
  if line:sub(1, start - 1):find "help%s*%(?%s*[\"']$" then start = 1 end
  local head, word = line:sub(1, start - 1), line:sub(start)
  if #word > 500 then return reply {} end
  local id = self.client:request_async({ complete = word }, function(result)
    local list = {}
    for i, name in ipairs(type(result) == "table" and result or {}) do
      list[i] = head .. tostring(name)
    end
    reply(list)
  end, { timeout = COMPLETE_S })
  if not id then reply {} end
end

function Attached:watch(fn)
  self.client:on_event(fn)
  self.client:request_async({ call = "events",
    arguments = { names = console.events } }, function() end)
end

-- Events name their job by its id; its name is asked for once. Events of one job
-- are told in order.
function Attached:name_of(event, reply)
  local id = event.InstanceID
  if not id or self.names[id] then return reply(self.names[id]) end
  local waiting = self.asked[id]
  if waiting then
    waiting[#waiting + 1] = reply
    return
  elseif self.asked_count >= ASKED_MAX then
    return reply(nil)
  end
  waiting = { reply }
  self.asked[id], self.asked_count = waiting, self.asked_count + 1
  local function told(result)
    self.asked[id], self.asked_count = nil, self.asked_count - 1
    local job = type(result) == "table" and result.job
    local name = type(job) == "table" and job.Name
    if self.name_count >= NAMES_MAX then self.names, self.name_count = {}, 0 end
    self.names[id], self.name_count = name or id, self.name_count + 1
    for _, fn in ipairs(waiting) do fn(name) end
  end
  if not self.client:request_async({ call = "show", arguments = { job = id } },
    told) then
    told(nil)
  end
end

function Attached:close() self.client:close() end

-- ---- events ---------------------------------------------------------------------------

console.events = { "JobState", "RunEnded", "Skipped", "Store" }

local by_number = {}
for _, row in ipairs(failure.errors) do by_number[row.ErrorCode] = row end

-- What of an event a person wants to see, or nil.
local function line_of(event, name)
  local what
  if event.name == "JobState" then
    if event.JobState == "Starting" then return nil end
    what = event.JobState
  elseif event.name == "RunEnded" then
    local number = math.tointeger(event.ErrorCode) or 0
    if number == 0 then return nil end
    local row = by_number[number]
    what = ("run %d failed: %s%s"):format(math.tointeger(event.run_number) or 0,
      row and row.summary or "error " .. number,
      event.is_retried and ", it will be tried again" or "")
  elseif event.name == "Skipped" then
    what = ("%s without a run: %s"):format(text.count(
      math.tointeger(event.count) or 1, "time"), tostring(event.reason))
  elseif event.name == "Store" then
    what = event.message or "it works again"
    name = "the store"
  end
  if not what then return nil end
  local time = math.tointeger(event.time)
  local guid = tostring(event.InstanceID or ""):match "^Cairn:(%x+)"
  return text.printable(("%s %s%s: %s"):format(
    time and os.date("%H:%M:%S", time // 1000000) or "",
    name or "job", guid and (" (%s)"):format(guid) or "", tostring(what)))
end

function Console:watch()
  local lines, left_out = {}, 0
  local timer = assert(self.uv.new_timer())
  timer:unref()
  self.handles[#self.handles + 1] = timer
  local function show()
    if left_out > 0 then
      lines[#lines + 1] = ("... and %d more events"):format(left_out)
    end
    local all = table.concat(lines, "\n")
    lines, left_out = {}, 0
    self:tell(self.has_colour and ("\27[2m%s\27[0m"):format(all) or all)
  end
  self.backend:watch(function(event)
    self.backend:name_of(event, function(name)
      local line = line_of(event, name)
      if not line or self.is_closing then return end
      if #lines >= EVENT_LINES then
        left_out = left_out + 1
      else
        lines[#lines + 1] = line
      end
      if not timer:is_active() then timer:start(EVENTS_MS, 0, show) end
    end)
  end)
end

-- Lines that come while somebody may be typing. A terminal that cannot be drawn
-- on shows them with the next prompt.
function Console:tell(lines)
  if self.editor then return self.editor:above(lines) end
  lines = lines:gsub("\n$", "")
  if not self.is_at_prompt then
    say.flush()
    return say.note(lines)
  end
  local held = self.held
  held[#held + 1] = lines
  if #held > EVENT_LINES * 10 then table.remove(held, 1) end
end

-- ---- chunks ---------------------------------------------------------------------------

-- Starts something that ends with an outcome, and drives the loop until then.
function Console:await(start)
  local uv = self.uv
  local outcome
  self.interrupts = 0
  self.is_running = true
  start(function(o)
    if outcome then return end -- it was given up
    outcome = o
    uv.stop()
  end)
  if self.editor and self.editor:has_interrupt() then self:interrupt "sigint" end
  while not outcome do
    uv.run()
    if outcome then
      break
    elseif self.gone then
      outcome = { error = self.gone.message, exit = self.gone.exit }
    elseif not self.backend.engine
      and (self.is_ending or self.interrupts > 1) then
      outcome = { error = "interrupted; the service has not ended the chunk "
        .. "yet" }
    end
  end
  self.is_running = false
  return outcome
end

function Console:eval(source, name)
  return self:await(function(done)
    self.backend:eval(source, done, { name = name, json = self.is_json })
  end)
end

-- A signal: ends the chunk that runs, and the console unless it is Ctrl-C at a
-- prompt. What waits looks at the flags when the loop has stopped.
function Console:interrupt(name)
  if name ~= "sigint" or self.is_batch then self.is_ending = true end
  if self.is_running then
    self.interrupts = self.interrupts + 1
    self.backend:interrupt()
  elseif self.at_prompt and not self.is_ending then
    self.at_prompt()
  end
  self.uv.stop()
end

-- Whether all went well.
function Console:show(outcome)
  if outcome.error then
    say.flush()
    say.note((self.is_batch and "cairn: " or "")
      .. text.printable_lines(outcome.error))
    return false
  end
  for _, value in ipairs(outcome.values) do say.result(value) end
  say.flush()
  return true
end

local function exit_of(outcome)
  return outcome.exit and outcome.exit ~= 1
    and outcome.code ~= "script_error" and outcome.exit or 1
end

-- ---- a script, chunks -----------------------------------------------------------------

local function read_script(cairn, path)
  local source, message, code
  if path == "-" then
    source = io.read "a"
  else
    source, message, code = core.read_script(path, "the script", true)
    if not source then say.fail_with(cairn, message, code) end
  end
  source = source:gsub("^#[^\n]*", "")
  local name = path == "-" and "=stdin" or "@" .. path
  local chunk
  chunk, message = load(source, name, "t")
  if not chunk then say.fail(2, "%s", text.printable_lines(message)) end
  return chunk, source
end

function Console:run_chunks(sources)
  for _, source in ipairs(sources) do
    local chunk, message = evaluator.compile(source, "=(-e)")
    if not chunk then
      say.fail(2, "syntax error: %s", text.printable_lines(message))
    end
  end
  self:open()
  for _, source in ipairs(sources) do
    local outcome = self:eval(source, "=(-e)")
    if not self:show(outcome) then return exit_of(outcome) end
  end
  return 0
end

-- In the service a script is a chunk like any other: what it gets of here is its
-- arguments. What it returns is nobody's.
local function as_chunk(source, path, arguments)
  local list = {}
  for i, argument in ipairs(arguments) do list[i] = ("%q"):format(argument) end
  local values = table.concat(list, ", ")
  return ("local arg = { [0] = %q%s%s } (function(...) %s\nend)(%s)"):format(
    path, #list > 0 and ", " or "", values, source, values)
end

function Console:run_script(path, arguments)
  local chunk, source = read_script(self.cairn, path)
  self:open()
  local outcome
  if self.backend.session then
    _G.arg = table.move(arguments, 1, #arguments, 1, { [0] = path })
    outcome = self:await(function(done)
      self.backend.session:call(chunk, done, { is_silent = true },
        table.unpack(arguments))
    end)
  else
    outcome = self:eval(as_chunk(source, path, arguments))
  end
  if not outcome.error then
    say.flush()
    return 0
  end
  self:show(outcome)
  return exit_of(outcome)
end

-- ---- what is entered ------------------------------------------------------------------

-- Evaluates what was entered; whether it wants more lines. Several lines at once
-- (a paste) are one chunk where they can be, else line by line, as if they had
-- been typed, up to the first error.
function Console:enter(entered)
  local source = self.buffer and self.buffer .. "\n" .. entered or entered
  self.buffer = nil
  if source:find "^%s*$" then return false end
  local chunk, message, more = evaluator.compile(source, "=(console)")
  if not chunk and more then
    self.buffer = source
    return true
  elseif not chunk and entered:find "\n" then
    return self:enter_lines(source)
  end
  self:remember(source)
  if not chunk then
    self:show { error = message }
    self.has_failed = true
    return false
  end
  local outcome = self:eval(source)
  if outcome.incomplete then
    self.buffer = source
    return true
  end
  self.has_failed = not self:show(outcome)
  return false
end

function Console:enter_lines(source)
  self.has_failed = false
  for line in (source .. "\n"):gmatch "(.-)\n" do
    self:enter(line)
    if self.has_failed or self.is_ending or self.gone then break end
  end
  return self.buffer ~= nil
end

function Console:remember(source)
  local message = self.history and self.history:add(source)
  if message then say.note("cairn: " .. message) end
end

-- ---- the prompt -----------------------------------------------------------------------

-- A terminal in raw mode while a line is typed. While a chunk runs, one on the
-- private engine has the terminal as it was, for io.read and programs; one in
-- the service has nothing to do with it, and keys are kept for the next prompt.
function Console:edit(terminal)
  local uv = self.uv
  local tty = assert(say.tty(uv, 0, true))
  local size = assert(say.tty(uv, 1, false))
  local entered, is_over
  self.has_colour = terminal.colour
  self.history = history.open(uv, history.path(uv))
  local e = editor.new {
    history = self.history,
    write = function(s)
      io.stdout:write(s)
      io.stdout:flush()
    end,
    size = function() return uv.tty_get_winsize(size) end,
    complete = function(line, reply) self.backend:complete(line, reply) end,
    on_line = function(line)
      entered, is_over = line, line == nil
      uv.stop()
    end,
    on_interrupt = function()
      if self.is_running then return self:interrupt "sigint" end
      self.buffer = nil
      entered = ""
      uv.stop()
    end,
    on_suspend = function()
      io.stdout:write(editor.PASTE_OFF)
      io.stdout:flush()
      tty:set_mode(0)
      uv.kill(uv.os_getpid(), "sigstop") -- here it stops, and goes on
      tty:set_mode(1)
      io.stdout:write(editor.PASTE_ON)
    end,
  }
  self.editor = e
  self.at_prompt = function() e:feed "\3" end
  local function watch(name, fn)
    local signal = assert(uv.new_signal())
    signal:start(name, fn)
    signal:unref()
    self.handles[#self.handles + 1] = signal
  end
  watch("sigwinch", function() e:resize() end)
  watch("sigcont", function() -- somebody else has had the terminal
    if not e.is_shown then return end
    tty:set_mode(0)
    tty:set_mode(1)
    e:resize()
  end)
  local function listen()
    tty:set_mode(1)
    tty:read_start(function(err, data)
      if err or not data then
        is_over = true
        return uv.stop()
      end
      e:feed(data)
    end)
  end
  local function let_go()
    tty:read_stop()
    e:hide()
    tty:set_mode(0)
  end
  if not self.backend.engine then listen() end
  while not (is_over or self.is_ending or self.gone) do
    entered = nil
    if self.backend.engine then listen() end
    self.is_at_prompt = true
    e:prompt(self.buffer and MORE or PROMPT)
    while not (entered or is_over or self.is_ending or self.gone) do uv.run() end
    self.is_at_prompt = false
    if self.backend.engine then let_go() end
    if entered and not is_over then self:enter(entered) end
  end
  let_go()
  self.editor = nil
  tty:close()
  size:close()
end

-- Lines of standard input as they come: typed, edited by the terminal itself, or
-- from a program. Of a file, luv reads nothing.
function Console:lines(on_prompt)
  local uv = self.uv
  local kind = uv.guess_handle(0)
  local input
  if kind == "tty" then
    input = say.tty(uv, 0, true)
  elseif kind == "pipe" then
    input = uv.new_pipe(false)
    if input and not input:open(0) then
      input:close()
      input = nil
    end
  end
  if not input then
    local next_line = io.lines()
    return function() return next_line() end, function() end
  end
  local pieces, rest, is_over = {}, "", false
  return function()
    while true do
      local line, tail = rest:match "^([^\n]*)\n(.*)$"
      if line then
        rest = tail
        return line
      elseif self.is_ending or self.gone then
        return nil
      elseif is_over then
        line, rest = rest, ""
        return line ~= "" and line or nil
      end
      self.is_at_prompt = on_prompt
      input:read_start(function(err, data)
        if err or not data then
          is_over = true
        else
          pieces[#pieces + 1] = data
        end
        if is_over or data:find("\n", 1, true) then
          rest = rest .. table.concat(pieces)
          pieces = {}
          uv.stop()
        end
      end)
      uv.run()
      input:read_stop()
      self.is_at_prompt = false
    end
  end, function() input:close() end
end

function Console:plain_lines(is_terminal)
  local function prompt(s)
    if not is_terminal then return end
    for _, line in ipairs(self.held) do io.stdout:write(line, "\n") end
    self.held = {}
    io.stdout:write(s)
    io.stdout:flush()
  end
  self.at_prompt = function()
    self.buffer = nil
    prompt("\n" .. PROMPT)
  end
  local next_line, close = self:lines(is_terminal)
  prompt(PROMPT)
  for line in next_line do
    prompt(self:enter(line) and MORE or PROMPT)
    if self.is_ending or self.gone then break end
  end
  close()
end

function Console:prompt()
  self:open()
  local server = self.backend.client and self.backend.client.server
  say.note(server and ("cairn %s: attached to the service at %s (process %s, "
    .. "store %s; Ctrl-D leaves it)"):format(self.cairn.version,
    text.printable(self.backend.client.path),
    text.printable(server.pid), text.printable(server.store))
    or ("cairn %s: a private engine, in memory (Ctrl-D ends it)"):format(
    self.cairn.version))
  local is_terminal = self.uv.guess_handle(0) == "tty"
  local terminal = is_terminal and say.terminal(self.uv, 0)
    and say.terminal(self.uv, 1)
  if is_terminal and self.has_events then self:watch() end
  if terminal then
    self:edit(terminal)
  else
    self:plain_lines(is_terminal)
  end
  if self.gone then
    say.flush()
    say.note("cairn: " .. text.printable_lines(self.gone.message))
    return 3
  elseif self.buffer and not is_terminal then
    say.note("incomplete: " .. text.printable(self.buffer))
    return 1
  end
  if is_terminal and not terminal then io.stdout:write "\n" end
  return self.is_ending and 1 or 0
end

-- ---- life -------------------------------------------------------------------------------

-- A client of the service, or nil: private.
function Console:connect()
  local options, uv = self.options, self.uv
  if options.private then return nil end
  local path, message, code, exit = options.socket, nil, nil, nil
  if path then
    if path:sub(1, 1) ~= "/" then path = uv.cwd() .. "/" .. path end
  elseif self.is_batch then
    return nil
  else
    path, message, code, exit = client.default_socket(uv)
  end
  local c
  if path then c, message, code, exit = client.connect(uv, path) end
  if c and c.server.level ~= "admin" then
    message = ("%s: you may only read there: the commands cairn jobs, show, why "
      .. "and history do; Lua is for the service's admins"):format(path)
    code, exit = "permission_denied", 3
    c:close()
    c = nil
  end
  if c then return c end
  if options.socket or code ~= "no_socket" then
    message = text.printable_lines(message)
    if options.socket then say.fail(exit or 3, "%s", message) end
    say.note("cairn: " .. message)
  end
  return nil
end

function Console:open()
  local c = self:connect()
  if c then
    attach(self, c)
  else
    open_private(self)
  end
  for _, handle in ipairs(signals.watch(self.uv, function(name)
    self:interrupt(name)
  end)) do
    self.handles[#self.handles + 1] = handle
  end
end

function Console:close()
  self.is_closing = true
  if self.editor then -- an error has come this far
    self.editor:hide()
    self.uv.tty_reset_mode()
    self.editor = nil
  end
  if self.backend then self.backend:close() end
  self.backend = nil
  for _, handle in ipairs(self.handles) do
    if not handle:is_closing() then handle:close() end
  end
  self.handles = {}
end

function console.console(cairn, uv, options)
  if options.eval and options.file then
    say.fail(2, "-e and FILE do not go together; a script can be loaded with "
      .. "dofile in -e")
  elseif options.socket and options.private then
    say.fail(2, "--socket and --private do not go together")
  end
  local self = setmetatable({
    cairn = cairn, uv = uv, options = options, handles = {}, held = {},
    interrupts = 0, is_json = options.json,
    has_events = not options.no_events,
    is_batch = options.eval ~= nil or options.file ~= nil,
  }, Console)
  local ok, code = xpcall(function()
    if options.eval then return self:run_chunks(options.eval) end
    if options.file then return self:run_script(options.file, options.args) end
    return self:prompt()
  end, function(err)
    if say.is_failure(err) then return err end
    return debug.traceback(tostring(err), 2)
  end)
  self:close()
  if not ok then error(code, 0) end
  return code
end

return console
