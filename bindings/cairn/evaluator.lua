-- Lua as it is typed: sessions of chunks on an engine, for the console and for
-- the service's control socket.
--
--   local s = evaluator.new { engine = engine, uv = uv, name = "who",
--     print = function(text) end }
--   s:eval("1 + 1", function(outcome) end)
--
-- Every chunk is a Cairn task: it may wait, gives way when its slice is over,
-- and s:interrupt() ends it whatever it does, without an error that it could
-- catch. Its values are shown in that task too, since to show them may run what
-- somebody else has written (a __tostring, a __pairs), which may never end.
--
-- An outcome is { incomplete = true }, { values = { shown, ... }, n = , json = }
-- or { error = message and traceback }. Every eval has exactly one. It is told
-- from a turn, or before eval returns when nothing had to run; never from
-- within the chunk's task. What a chunk prints is told before its outcome.

local core = require "cairn.core"
local E = require "cairn.engine"
local failure = require "cairn.failure"
local tasks = require "cairn.task"
local text = require "cairn.cli.text"

local evaluator = {}

local Session = { __name = "cairn.session" }
Session.__index = Session

local SHOW_S = 2              -- for the values of a chunk
local VALUES_MAX = 100
local SHOWN_MAX = 262144      -- bytes of all of them: an answer is one line
local PRINTED_MAX = 65536     -- of one print
local PENDING_MAX = 65536     -- printed, not told yet: the chunk gives way
local PENDING_LIMIT = 1048576 -- where it cannot give way: the rest is left out
local COMPLETIONS_MAX = 200
local KEYS_MAX = 10000        -- of a table that are looked at
local CLASS_MAX = 8           -- metatables that are followed

-- ---- chunks ----------------------------------------------------------------------

-- A quoted string ends on its line, unless that ends in a backslash.
local function is_incomplete(message, source)
  return message:find "<eof>'?$" ~= nil
    and (not message:find("unfinished string", 1, true)
      or source:find "\\$" ~= nil)
end

-- chunk | nil, message, whether more lines may make it one. An expression's
-- values are wanted, so "return" is tried first; "1 +" is the beginning of an
-- expression only, "x =" of a statement only.
function evaluator.compile(source, name, env)
  local chunk, as_expression = load("return " .. source, name, "t", env)
  if chunk then return chunk end
  local message
  chunk, message = load(source, name, "t", env)
  if chunk then return chunk end
  return nil, message, is_incomplete(message, source)
    or is_incomplete(as_expression, source)
end

local Raised = {}

-- The error as it is, for it is shown where that can give way, and the stack.
local function remember(err)
  return setmetatable({ err = err, stack = debug.traceback("", 2) }, Raised)
end

-- The stack without what is the same each time: this file and below.
local function own_frames(stack)
  local lines, ours = {}, nil
  for line in (stack .. "\n"):gmatch "(.-)\n" do
    lines[#lines + 1] = line
    if line:find("cairn/evaluator.lua:", 1, true)
      and lines[#lines - 1]:find("[C]: in function 'xpcall'", 1, true) then
      ours = #lines - 1
    end
  end
  local kept = {}
  for i = 1, (ours or #lines + 1) - 1 do
    -- the handler itself, and error() where that raised
    if not lines[i]:find("cairn/evaluator.lua:", 1, true) then
      kept[#kept + 1] = lines[i]
    end
  end
  if kept[#kept] == "stack traceback:" then kept[#kept] = nil end
  return table.concat(kept, "\n")
end

-- At most n bytes, whole characters.
local function beginning(s, n)
  while n > 0 and (s:byte(n + 1) or 0) & 0xc0 == 0x80 do n = n - 1 end
  return s:sub(1, n)
end

local function error_text(raised)
  local err, stack = raised, ""
  if getmetatable(raised) == Raised then
    err, stack = raised.err, own_frames(raised.stack)
  end
  local meta = debug.getmetatable(err)
  if type(err) == "table" and not (meta and rawget(meta, "__tostring")) then
    err = "error object: " .. text.show(err)
  elseif err == nil then
    err = "nil was raised"
  else
    err = text.describe(err)
  end
  if #err > PRINTED_MAX then
    err = ("%s ... (%d bytes)"):format(beginning(err, PRINTED_MAX), #err)
  end
  return err .. stack
end

-- ---- what is printed -----------------------------------------------------------------

local function guarded(self, fn, ...)
  local ok, message = xpcall(fn, failure.traceback, ...)
  if not ok then
    E.log(self.state, ("session %s: %s"):format(self.name, message))
  end
end

local function flush(self)
  if self.timer then E.stop_timer(self.engine, self.state, self.timer) end
  self.timer = false
  if #self.pending == 0 then return end
  local all = table.concat(self.pending)
  self.pending, self.pending_bytes = {}, 0
  if self.print and not self.is_closed then
    guarded(self, self.print, all)
  else -- by a job or handler that outlives its session
    E.log(self.state, ("%s: %s"):format(self.name, (all:gsub("\n$", ""))))
  end
end

-- Told by a timer of the engine, hence outside of tasks: whoever prints may be
-- stopped between any two instructions.
local function put(self, s)
  if not core.is_open(self.engine) then return end
  if not self.is_raw then
    if #s > PRINTED_MAX then
      s = ("%s ... (%d bytes)"):format(beginning(s, PRINTED_MAX), #s)
    end
    s = text.printable_lines(s)
  end
  s = s .. "\n"
  if self.pending_bytes + #s > PENDING_LIMIT and #self.pending > 0 then
    return
  end
  self.pending[#self.pending + 1] = s
  self.pending_bytes = self.pending_bytes + #s
  -- Not by a flag: whoever prints may be ended before it has started the timer.
  if not self.state.timers[self.timer] then
    self.timer = E.start_timer(self.engine, self.state, 0, function()
      flush(self)
    end)
  end
  if self.pending_bytes > PENDING_MAX
    and E.task_of[coroutine.running()] and coroutine.isyieldable() then
    coroutine.yield()
  end
end

local function printer(self)
  return function(...)
    local parts = {}
    for i = 1, select("#", ...) do
      parts[i] = text.tostring((select(i, ...)))
    end
    put(self, table.concat(parts, "\t"))
  end
end

-- ---- help -----------------------------------------------------------------------------

-- What a value is called in the table of the API.
local function api_name(self, value)
  if value == nil or type(value) == "string" then return value end
  local cairn = require "cairn"
  if value == cairn then return "cairn" end
  if core.is_engine(value) then return "engine" end
  if core.is_job(value) then return "job" end
  if type(value) == "function" then
    for prefix, names in pairs { ["cairn."] = cairn,
      ["engine:"] = core.engine_methods, ["job:"] = core.job_methods } do
      for name, fn in next, names do
        if fn == value then return prefix .. name end
      end
    end
    if value == self.env.help then return "help" end
  end
  error("help: a name such as \"submit\" or \"job:wait\", or one of Cairn's "
    .. "functions, expected; got " .. type(value), 3)
end

local function helper(self)
  return function(name)
    put(self, require "cairn.api".help(api_name(self, name)))
  end
end

-- ---- sessions ---------------------------------------------------------------------------

local fields = { engine = "any!", uv = "any", name = "string",
  print = "function", globals = "table", is_raw = "boolean" }

-- Globals of its own, with _G behind them. Code that a chunk loads has the same.
local function own_globals()
  local env = setmetatable({}, { __index = _G })
  env._G = env
  function env.load(chunk, name, mode, ...)
    if select("#", ...) == 0 then return load(chunk, name, mode, env) end
    return load(chunk, name, mode, (...))
  end
  function env.loadfile(path, mode, ...)
    if select("#", ...) == 0 then return loadfile(path, mode, env) end
    return loadfile(path, mode, (...))
  end
  function env.dofile(path)
    local chunk, message = loadfile(path, nil, env)
    if not chunk then error(message, 2) end
    return chunk()
  end
  return env
end

-- new{ engine =, name =, print = function(text), globals =, is_raw = }
-- globals: a table to use instead of a new one. is_raw: a session for the
-- process's own user: print gets what was printed as it is, not as text that any
-- terminal can be shown, and what is shown as JSON may be long and take long.
-- Without print the chunks' print is left alone.
function evaluator.new(options)
  local ok, err = pcall(failure.check_fields, options, fields,
    "evaluator.new")
  if not ok then error(tostring(err), 2) end
  local engine = options.engine
  if not core.is_engine(engine) then
    error("evaluator.new: engine: an engine expected, got " .. type(engine), 2)
  elseif not core.is_open(engine) then
    error("evaluator.new: the engine is closed", 2)
  end
  local self = setmetatable({ engine = engine, state = core.state(engine),
    name = options.name or "console", print = options.print,
    is_raw = options.is_raw, timer = false, pending = {}, pending_bytes = 0 }, Session)
  local env = options.globals or own_globals()
  self.env = env
  rawset(env, "cairn", require "cairn")
  rawset(env, "engine", engine)
  rawset(env, "help", options.print and helper(self)
    or function(name) print(require "cairn.api".help(api_name(self, name))) end)
  if options.print then rawset(env, "print", printer(self)) end
  return self
end

function Session:is_busy() return self.run ~= nil end

-- ---- one chunk ---------------------------------------------------------------------------

local function json_of(value)
  if core.is_job(value) then
    local encoded = value:json(false)
    if encoded then return encoded end
  end
  if value == nil then return "null" end
  return core.json_encode(value)
    or assert(core.json_encode(text.show(value)))
end

local function too_many(n, max)
  return ("... %d more values"):format(n - max)
end

-- In the task. What is shown so far counts, should the rest take too long.
local function show_values(self, run, results)
  local n = results.n - 1
  run.n, run.results = n, results
  -- a raw session is the process's own: whoever waits can interrupt it
  run.deadline = not self.is_raw and E.start_timer(self.engine, self.state,
    SHOW_S * 1000000, function()
      run.deadline = nil
      run.is_overdue = true
      run.task:kill()
    end)
  if run.wants_json then
    local size = 0
    for i = 1, n do
      local encoded = json_of(results[i + 1])
      size = size + #encoded
      if not self.is_raw and size > SHOWN_MAX then
        run.error = ("the values are more than %d bytes as JSON; ask for "
          .. "parts of them"):format(SHOWN_MAX)
        return
      end
      run.shown[i] = encoded
    end
  else
    local left = SHOWN_MAX
    for i = 1, math.min(n, VALUES_MAX) do
      local shown = left > 0 and text.show(results[i + 1],
        { bytes = math.min(65536, left) }) or "..."
      left = left - #shown
      run.shown[i] = shown
    end
    if n > VALUES_MAX then run.shown[VALUES_MAX + 1] = too_many(n, VALUES_MAX) end
  end
  run.is_whole = true
end

local function body(self, run, chunk, ...)
  local results = table.pack(xpcall(chunk, remember, ...))
  if not results[1] then
    run.error = error_text(results[2])
    return
  end
  if run.is_silent then
    run.n, run.is_whole = 0, true
    return
  end
  if results.n > 1 then
    rawset(self.env, "_", results[2])
    rawset(self.env, "it", results[2])
  end
  show_values(self, run, results)
end

-- Those whose showing took too long, by their addresses alone.
local function overdue_values(run)
  local values = run.shown
  for i = #values + 1, math.min(run.n, VALUES_MAX) do
    local value = run.results[i + 1]
    values[i] = ("%s: %p (not shown: that took more than %d s)"):format(
      type(value), value, SHOW_S)
    if run.wants_json then values[i] = assert(core.json_encode(values[i])) end
  end
  return values
end

local function outcome_of(run)
  if run.error then return { error = run.error } end
  if run.is_whole or run.is_overdue then
    local values = run.is_whole and run.shown or overdue_values(run)
    return { values = values, n = run.n, json = run.wants_json }
  end
  return { error = run.is_interrupted and "interrupted"
    or run.task and run.task.message or "the chunk was ended" }
end

-- The task has ended, in whatever way.
local function deliver(self, run)
  if run.deadline and core.is_open(self.engine) then
    E.stop_timer(self.engine, self.state, run.deadline)
  end
  self.run = nil
  guarded(self, flush, self)
  guarded(self, run.done, outcome_of(run))
end

-- call(chunk, done, options, ...): runs a compiled chunk with arguments. With
-- options.is_silent its values are not shown.
function Session:call(chunk, done, options, ...)
  if self.is_closed or not core.is_open(self.engine) then
    return done { error = self.is_closed and "the session was closed"
      or "the engine was closed" }
  elseif self.run then
    return done { error = "another chunk of this session is running" }
  end
  local run = { done = done, shown = {},
    wants_json = options and options.json or nil,
    is_silent = options and options.is_silent }
  local task = tasks.spawn_on(self.engine, body, self, run, chunk, ...)
  run.task, self.run = task, run
  table.insert(task.waiters, function() deliver(self, run) end)
end

-- eval(source, done[, { name = of the chunk, json = values as JSON }])
function Session:eval(source, done, options)
  if type(source) ~= "string" then
    error("session:eval: a string expected, got " .. type(source), 2)
  elseif type(done) ~= "function" then
    error("session:eval: a function expected, got " .. type(done), 2)
  end
  if source:find "^%s*$" then return done { values = {}, n = 0 } end
  local chunk, message, more = evaluator.compile(source,
    options and options.name or "=(console)", self.env)
  if not chunk then
    return done(more and { incomplete = true } or { error = message })
  end
  return self:call(chunk, done, options)
end

-- Ends the chunk that runs; whether one did.
function Session:interrupt()
  local run = self.run
  if not run then return false end
  run.is_interrupted = true
  run.task:kill()
  return true
end

-- The chunk that runs is ended, and its outcome told. What jobs and handlers of
-- the session print from now on goes to the engine's log.
function Session:close()
  if self.is_closed then return end
  self:interrupt()
  guarded(self, flush, self)
  self.is_closed = true
end

-- ---- completion --------------------------------------------------------------------------
-- From live objects, and without running anything of the user's: tables are read
-- raw, a metatable's __index is followed where it is a table. What our own
-- classes have behind theirs is known.

local keywords = { "and", "break", "do", "else", "elseif", "end", "false",
  "for", "function", "goto", "if", "in", "local", "nil", "not", "or", "repeat",
  "return", "then", "true", "until", "while" }

local function meta_index(value)
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and rawget(meta, "__index") or nil
end

local function lookup(value, key)
  if core.is_job(value) then
    if E.properties[key] then
      local ok, property = pcall(function() return value[key] end)
      return ok and property or nil
    end
    return core.job_methods[key]
  end
  for _ = 1, CLASS_MAX do
    if type(value) == "table" then
      local field = rawget(value, key)
      if field ~= nil then return field end
    end
    value = meta_index(value)
    if type(value) ~= "table" then return nil end
  end
end

-- Calls each(name, field) for the names behind value.
local function each_name(value, separator, each)
  if core.is_job(value) then
    if separator == "." then
      for _, name in ipairs(E.property_names) do each(name) end
    else
      for name, fn in next, core.job_methods do each(name, fn) end
    end
    return
  end
  local meta = debug.getmetatable(value)
  local class = type(value) == "userdata" and type(meta) == "table"
    and rawget(meta, "__name")
  if class then
    -- cairn.schedule -> the names "schedule:next" of the table of the API
    local short = tostring(class):match "^cairn%.(%w+)$"
    for _, section in ipairs(require "cairn.api".sections) do
      for _, entry in ipairs(section.entries) do
        local owner, name = entry.name:match "^(%w+):([%w_]+)$"
        if owner and owner == short then each(name, each) end
      end
    end
  end
  if class == "cairn.datetime" and separator == "." then
    for _, name in ipairs { "kind", "microseconds", "precision", "seconds",
      "utc_offset" } do
      each(name)
    end
  end
  for _ = 1, CLASS_MAX do
    if type(value) == "table" then
      local count = 0
      for key, field in next, value do
        if type(key) == "string" then each(key, field) end
        count = count + 1
        if count >= KEYS_MAX then break end
      end
    end
    value = meta_index(value)
    if type(value) ~= "table" then return end
  end
end

local function is_name(s) return s:find "^[%a_][%w_]*$" ~= nil end

-- The place where the word before the cursor begins: names joined by dots,
-- colons and brackets.
function evaluator.word_start(line)
  -- two dots join strings, and no names
  local plain = line:gsub("%.%.+", function(dots)
    return (" "):rep(#dots)
  end)
  local start = plain:match "help%s*%(?%s*[\"']()[%w_.:]*$"
  if start then return start, true end
  -- from the end back: a bracket's string may hold anything but quotes
  local at = #plain + 1
  local open = plain:match "()%[[\"'][^\"']*$"
  if open then at = open end
  while true do
    local head = plain:sub(1, at - 1)
    local bracket = head:match "()%[%d+%]$"
      or head:match "()%[\"[^\"\\]*\"%]$" or head:match "()%['[^'\\]*'%]$"
    local name = head:match "()[%w_.:]+$"
    if not bracket and not name then break end
    at = bracket or name
  end
  return at
end

-- The object that the last name of a word is looked for in, how that name is
-- joined to it, and the name's beginning.
local function resolve(self, word)
  if word == "" then return nil, "", "" end
  local root, rest = word:match "^([%a_][%w_]*)(.*)$"
  if not root then return nil end
  if rest == "" then return nil, "", root end
  local value = rawget(self.env, root)
  if value == nil then value = rawget(_G, root) end
  while value ~= nil do
    local separator, partial = rest:match "^([.:])([%w_]*)$"
    if separator then return value, separator, partial end
    local quote
    quote, partial = rest:match "^%[([\"'])([^\"']*)$"
    if quote then return value, quote, partial end
    local key, tail = rest:match "^%.([%a_][%w_]*)(.+)$"
    if not key then
      key, tail = rest:match "^%[(%d+)%](.+)$"
      key = math.tointeger(key)
    end
    if not key then key, tail = rest:match "^%[\"([^\"\\]*)\"%](.+)$" end
    if not key then key, tail = rest:match "^%['([^'\\]*)'%](.+)$" end
    if not key then return nil end
    value, rest = lookup(value, key), tail
  end
end

local function help_names()
  local names = { "cairn", "engine", "job", "schedule" }
  for _, section in ipairs(require "cairn.api".sections) do
    for _, entry in ipairs(section.entries) do
      names[#names + 1] = entry.name
      names[#names + 1] = entry.name:match "[.:](.*)$"
    end
  end
  for _, name in ipairs(E.property_names) do names[#names + 1] = name end
  return names
end

-- complete(line) -> list, sorted: the line, up to the cursor, with what may
-- follow. At most COMPLETIONS_MAX.
function Session:complete(line)
  if type(line) ~= "string" then
    error("session:complete: a string expected, got " .. type(line), 2)
  end
  local start, is_help = evaluator.word_start(line)
  local word = line:sub(start)
  local found, list = {}, {}
  local partial, closing = word, ""
  local function take(name)
    if name:sub(1, #partial) == partial and not found[name] then
      found[name] = true
      list[#list + 1] = name
    end
  end
  if is_help then
    for _, name in ipairs(help_names()) do take(name) end
  else
    local value, separator, start_of_name = resolve(self, word)
    if not separator then return {} end
    partial = start_of_name
    if separator == "" then
      -- behind a quote, a bracket, a digit this is not a name
      if line:sub(start - 1, start - 1):find "[%w_.:\"')%]\x80-\xff]" then
        return {}
      end
      for _, name in ipairs(keywords) do
        if partial ~= "" then take(name) end
      end
      each_name(self.env, ".", function(name)
        if is_name(name) then take(name) end
      end)
      each_name(_G, ".", function(name)
        if is_name(name) then take(name) end
      end)
    elseif separator == "." or separator == ":" then
      each_name(value, separator, function(name, field)
        if is_name(name) and (separator == "." or type(field) == "function")
        then
          take(name)
        end
      end)
    else
      closing = separator .. "]"
      each_name(value, separator, function(name)
        if not name:find "[%c\"'\\]" then take(name) end
      end)
    end
  end
  table.sort(list)
  local head = line:sub(1, #line - #partial)
  local out = {}
  for i = 1, math.min(#list, COMPLETIONS_MAX) do
    out[i] = head .. list[i] .. closing
  end
  return out
end

return evaluator
