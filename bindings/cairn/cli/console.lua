-- cairn console: Lua on a private engine: a prompt, chunks, or a script.
-- Every chunk runs as a Cairn task on luv's loop, so that whatever waits in it
-- lets the engine and everything else go on, and Ctrl-C can end it.

local core = require "cairn.core"
local say = require "cairn.cli.say"
local signals = require "cairn.cli.signals"
local text = require "cairn.cli.text"

local console = {}

local Console = {}
Console.__index = Console

local CLOSE_S = 10

-- ---- chunks ----------------------------------------------------------------------

-- An expression's values are wanted, so "return" is tried first.
local function compile(source, name)
  local chunk = load("return " .. source, name, "t")
  if chunk then return chunk end
  return load(source, name, "t")
end

local function is_incomplete(message) return message:find("<eof>'?$") ~= nil end

-- The traceback without the frames of this file, which are always the same.
local function traceback(err)
  local message = err
  if type(err) ~= "string" then
    local meta = getmetatable(err)
    if type(meta) == "table" and meta.__tostring then
      message = tostring(err)
    else
      message = "error object: " .. text.show(err)
    end
  end
  local lines = {}
  for line in (debug.traceback(message, 2) .. "\n"):gmatch("(.-)\n") do
    if line:find("cairn/cli/console.lua:", 1, true) then
      if lines[#lines] and lines[#lines]:find("[C]: in function 'xpcall'", 1,
        true) then
        lines[#lines] = nil
      end
      break
    end
    lines[#lines + 1] = line
  end
  if lines[#lines] == "stack traceback:" then lines[#lines] = nil end
  return table.concat(lines, "\n")
end

-- Runs a chunk as a task and drives the loop until it has ended:
-- true, values | false, message.
function Console:run(chunk, ...)
  local uv = self.uv
  local outcome
  self.task = self.cairn.spawn(function(...)
    outcome = table.pack(xpcall(chunk, traceback, ...))
    uv.stop()
  end, ...)
  while not outcome do
    uv.run()
    if self.is_interrupted then
      self.is_interrupted = false
      if not outcome then outcome = { false, "interrupted", n = 2 } end
    end
  end
  self.task = nil
  return outcome
end

-- A signal: ends the task that runs, and the session unless it is Ctrl-C at a
-- prompt. What waits looks at the flags when the loop has stopped.
function Console:interrupt(name)
  if name ~= "sigint" or self.is_batch then self.is_ending = true end
  if self.task then
    self.is_interrupted = true
    self.task:kill()
  elseif self.at_prompt and not self.is_ending then
    self.at_prompt()
  end
  self.uv.stop()
end

-- ---- values -----------------------------------------------------------------------

local function json_of(cairn, value)
  if type(value) == "userdata" and cairn.is_job and cairn.is_job(value) then
    return value:json(false)
  end
  local encoded = cairn.json_encode(value)
  return encoded or assert(cairn.json_encode(text.show(value)))
end

function Console:print(outcome)
  for i = 2, outcome.n do
    say.result(self.is_json and json_of(self.cairn, outcome[i])
      or text.show(outcome[i]))
  end
  say.flush()
end

-- ---- a script, chunks --------------------------------------------------------------

local function read_script(cairn, path)
  local chunk, message, code
  if path == "-" then
    chunk, message = loadfile(nil, "t")
  else
    chunk, message, code = core.read_script(path, "the script", true)
    if not chunk then say.fail_with(cairn, message, code) end
    chunk, message = load(chunk, "@" .. path, "t")
  end
  if not chunk then
    say.fail(2, "%s", text.printable_lines(message))
  end
  return chunk
end

function Console:run_chunks(sources)
  local chunks = {}
  for i, source in ipairs(sources) do
    local chunk, message = compile(source, "=(-e)")
    if not chunk then
      say.fail(2, "syntax error: %s", text.printable_lines(message))
    end
    chunks[i] = chunk
  end
  self:open()
  for _, chunk in ipairs(chunks) do
    local outcome = self:run(chunk)
    if not outcome[1] then
      say.flush()
      say.note("cairn: " .. text.printable_lines(outcome[2]))
      return 1
    end
    self:print(outcome)
  end
  return 0
end

function Console:run_script(path, arguments)
  local chunk = read_script(self.cairn, path)
  self:open()
  _G.arg = table.move(arguments, 1, #arguments, 1, { [0] = path })
  local outcome = self:run(chunk, table.unpack(arguments))
  if outcome[1] then return 0 end
  say.flush()
  say.note("cairn: " .. text.printable_lines(outcome[2]))
  return 1
end

-- ---- the prompt ---------------------------------------------------------------------

-- Takes a line; returns whether the chunk it ends wants more lines.
function Console:line(line)
  self.buffer = self.buffer and self.buffer .. "\n" .. line or line
  if self.buffer:find("^%s*$") then
    self.buffer = nil
    return false
  end
  local chunk, message = compile(self.buffer, "=(console)")
  if not chunk and is_incomplete(message) then return true end
  self.buffer = nil
  if not chunk then
    say.note(text.printable_lines(message))
    return false
  end
  local outcome = self:run(chunk)
  if outcome[1] then
    self:print(outcome)
  else
    say.flush()
    say.note(text.printable_lines(outcome[2]))
  end
  return false
end

local PROMPT, MORE = "> ", ">> "

-- Lines typed with GNU readline, where Debian's lua-readline is installed.
-- Its callbacks fit luv: the engine goes on while somebody thinks.
function Console:readline(editor)
  local uv = self.uv
  local poll = assert(uv.new_poll(0))
  local typed, is_ended
  editor.set_options { histfile = "", completion = false }
  local function install(prompt)
    editor.handler_install(prompt, function(line)
      editor.handler_remove()
      typed, is_ended = line, line == nil
      uv.stop()
    end)
  end
  local prompt = PROMPT
  self.at_prompt = function()
    io.stdout:write("\n")
    io.stdout:flush()
    self.buffer = nil
    -- Without handler_remove() first: the terminal would be in line mode for a
    -- moment, and what is typed then would be lost.
    install(PROMPT)
  end
  while true do
    typed, is_ended = nil, false
    install(prompt)
    uv.poll_start(poll, "r", function() editor.read_char() end)
    repeat uv.run() until typed or is_ended or self.is_ending
    uv.poll_stop(poll)
    if is_ended or self.is_ending then break end
    if typed:find("%S") then editor.add_history(typed) end
    prompt = self:line(typed) and MORE or PROMPT
  end
  if not is_ended then editor.handler_remove() end
  uv.close(poll)
end

-- Lines as the terminal itself edits them.
function Console:plain_lines()
  local uv = self.uv
  local input = assert(uv.new_tty(0, true))
  local typed, is_ended = "", false
  local function prompt(s)
    io.stdout:write(s)
    io.stdout:flush()
  end
  self.at_prompt = function()
    self.buffer = nil
    prompt("\n" .. PROMPT)
  end
  prompt(PROMPT)
  while true do
    local line, rest = typed:match("^([^\n]*)\n(.*)$")
    if self.is_ending then
      break
    elseif line then
      typed = rest
      prompt(self:line(line) and MORE or PROMPT)
    elseif is_ended then
      break
    else
      uv.read_start(input, function(err, data)
        if err or not data then
          is_ended = true
        else
          typed = typed .. data
        end
        uv.stop()
      end)
      uv.run()
      uv.read_stop(input)
    end
  end
  uv.close(input)
end

function Console:prompt()
  self:open()
  if self.uv.guess_handle(0) ~= "tty" then
    for line in io.lines() do
      self:line(line)
      if self.is_ending then return 1 end
    end
    if self.buffer then
      say.note("incomplete: " .. text.printable(self.buffer))
      return 1
    end
    return 0
  end
  say.note(("cairn %s: a private engine, in memory (Ctrl-D ends it)"):format(
    self.cairn.version))
  local has_editor, editor = false, nil
  if say.terminal(self.uv, 0) then
    has_editor, editor = pcall(require, "readline")
  end
  if has_editor then
    self:readline(editor)
  else
    self:plain_lines()
  end
  io.stdout:write("\n")
  return self.is_ending and 1 or 0
end

-- ---- life ---------------------------------------------------------------------------

function Console:open()
  local cairn, uv = self.cairn, self.uv
  local engine, message, code = cairn.open { store = ":memory:" }
  if not engine then say.fail_with(cairn, message, code) end
  self.engine = engine
  cairn.attach(engine, uv)
  self.handles = signals.watch(uv, function(name) self:interrupt(name) end)
  _G.cairn, _G.engine = cairn, engine
end

function Console:close()
  if self.engine then
    self.engine:close { mode = "terminate", timeout = CLOSE_S }
    self.engine = nil
  end
  for _, handle in ipairs(self.handles) do self.uv.close(handle) end
  self.handles = {}
end

function console.console(cairn, uv, options)
  if options.eval and options.file then
    say.fail(2, "-e and FILE do not go together; a script can be loaded with "
      .. "dofile in -e")
  end
  local self = setmetatable({
    cairn = cairn, uv = uv, handles = {}, is_json = options.json,
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
