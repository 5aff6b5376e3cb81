-- A client of the control socket (docs/control-protocol.md): one JSON object a
-- line, both ways, on luv's loop.
--
--   local c, message, code, exit = client.connect(uv, path)
--   local jobs, message, code, exit = c:request { call = "jobs" }
--   c:request_async({ eval = "1 + 1" }, function(result, err) end)
--
-- connect and request drive the loop until they are answered, so they are not
-- for callbacks of that loop; request_async is. Every request is answered
-- exactly once: by the server, by its time running out, or by the end of the
-- connection. One that could not even be sent is refused by request_async
-- itself, and its function is never called. A program that is no `cairn` must
-- ignore SIGPIPE: luv writes to a connection that the other side has closed.
--
-- What goes wrong here, and not in the server, has the codes no_socket,
-- permission_denied, timeout, disconnected, protocol, closed, wrong_type; all
-- but the last two are the environment's (exit code 3).

local core = require "cairn.core"
local failure = require "cairn.failure"

local client = {}

local Client = { __name = "cairn.client" }
Client.__index = Client

local LINE_MAX = 1048576  -- bytes, in either direction
local PATH_MAX = 107      -- libuv cuts longer ones off, and would find another
local CONNECT_S, CALL_S = 5, 30

local function failed(code, exit, format, ...)
  return { code = code, exit = exit, message = format:format(...) }
end

-- ---- where the server is -----------------------------------------------------------

-- The path of the default socket | nil, message, code, exit.
function client.default_socket(uv)
  local path = uv.os_getenv "CAIRN_SOCKET"
  if path and path ~= "" then return path end
  if uv.getuid() == 0 then return "/run/cairn/cairn.sock" end
  local directory = uv.os_getenv "XDG_RUNTIME_DIR"
  if directory and directory:find "^/" then
    return directory .. "/cairn/cairn.sock"
  end
  return nil, "there is no default socket: neither CAIRN_SOCKET nor "
    .. "XDG_RUNTIME_DIR is set to a path", "no_socket", 3
end

-- ---- callbacks -----------------------------------------------------------------------

-- luv ends the process when a callback raises.
local function guarded(c, fn)
  return function(...)
    local ok, message = xpcall(fn, failure.traceback, ...)
    if not ok then c.log(message) end
  end
end

local function default_log(message)
  io.stderr:write("cairn: ", tostring(message), "\n")
end

-- ---- answers -------------------------------------------------------------------------

local function settle(c, id, result, err)
  local waiting = c.waiting[id]
  if not waiting then return end -- answered already, or given up
  c.waiting[id] = nil
  if waiting.timer then waiting.timer:close() end
  waiting.done(result, err)
end

-- The connection is over: whoever waits is told why, in order.
local function disconnect(c, err)
  if c.failure then return end
  c.failure = err
  if not c.pipe:is_closing() then c.pipe:close() end
  local ids = {}
  for id in pairs(c.waiting) do ids[#ids + 1] = id end
  table.sort(ids)
  for _, id in ipairs(ids) do
    guarded(c, settle)(c, id, nil, err)
  end
  local on_end = c.on_end
  if on_end and not c.is_closed then on_end(err) end
end

local function text_of(value, other)
  return type(value) == "string" and value or other
end

local function error_of(t)
  local code = text_of(t.code, "internal")
  local row = failure.errors[code]
  return { code = code, message = text_of(t.message, code),
    exit = math.tointeger(t.exit) or row and row.exit_code or 1, data = t.data }
end

local function take(c, line)
  if line == "" then return end
  local t, message = core.json_decode(line)
  if type(t) ~= "table" then
    return disconnect(c, failed("protocol", 3, "%s: the server sent a line "
      .. "that is no JSON object (%s): is this a Cairn socket?", c.path,
      message or type(t)))
  end
  if type(t.event) == "table" then
    for _, fn in ipairs(c.handlers) do guarded(c, fn)(t.event) end
    return
  end
  local id = math.tointeger(t.id)
  local waiting = c.waiting[id]
  if type(t.output) == "string" then
    -- also of what a chunk has left running
    local fn = waiting and waiting.output or c.output
    if fn then fn(t.output) end
  elseif type(t.error) == "table" and not waiting then
    -- of the connection: a line it could not read, no room
    c.last_error = error_of(t.error)
  elseif not id then
    disconnect(c, failed("protocol", 3, "%s: the server sent a line that is no "
      .. "answer and no event", c.path))
  elseif not waiting then
    return -- an answer that nobody waits for any more
  elseif type(t.error) == "table" then
    settle(c, id, nil, error_of(t.error))
  elseif t.incomplete == true then
    settle(c, id, { incomplete = true })
  else
    local result = t.result
    settle(c, id, result == nil and core.null or result)
  end
end

local function ended(c, reason)
  local last = c.last_error
  if last then return last end
  return failed("disconnected", 3, "%s: the server went away (%s)", c.path,
    reason)
end

-- Lines out of pieces. What is kept of an unfinished one is bounded.
local function read(c, err, data)
  if c.failure then return end
  if err or not data then
    return disconnect(c, ended(c, err or "it has closed the connection"))
  end
  local from = 1
  while not c.failure do
    local to = data:find("\n", from, true)
    local piece = data:sub(from, to and to - 1)
    c.length = c.length + #piece
    if c.length > LINE_MAX then
      return disconnect(c, failed("protocol", 3, "%s: the server sent a line "
        .. "of more than %d bytes", c.path, LINE_MAX))
    end
    c.pieces[#c.pieces + 1] = piece
    if not to then return end
    local line = table.concat(c.pieces)
    c.pieces, c.length, from = {}, 0, to + 1
    guarded(c, take)(c, line)
  end
end

-- ---- requests --------------------------------------------------------------------------

-- Sends a table: true | nil, error.
local function send(c, t)
  if c.failure then return nil, c.failure end
  local line, message = core.json_encode(t)
  if not line then
    return nil, failed("wrong_type", 2, "the request cannot be sent: %s",
      message)
  elseif #line >= LINE_MAX then
    return nil, failed("wrong_type", 2, "the request is too long: %d bytes, "
      .. "at most %d go through the socket", #line, LINE_MAX - 1)
  end
  local ok, name = c.pipe:write(line .. "\n", guarded(c, function(err)
    -- What the server said before it closed may still lie in our buffer.
    if err and err ~= "EPIPE" and err ~= "ECANCELED" then
      disconnect(c, ended(c, err))
    end
  end))
  if not ok then
    local err = ended(c, tostring(name))
    disconnect(c, err)
    return nil, err
  end
  return true
end

-- request_async(t, done[, { timeout = seconds, output = function(text) }])
--   -> id | nil, message, code, exit. done(result, err): err is a table
-- { message =, code =, exit = }. A call has 30 seconds unless timeout says
-- otherwise (false: no limit), an eval as long as it takes.
function Client:request_async(t, done, options)
  options = options or {}
  if self.failure then
    local err = self.failure
    return nil, err.message, err.code, err.exit
  end
  local id = self.last_id + 1
  local copy = { id = id }
  for key, value in pairs(t) do copy[key] = value end
  local ok, err = send(self, copy)
  if not ok then return nil, err.message, err.code, err.exit end
  self.last_id = id
  local waiting = { done = done, output = options.output }
  self.waiting[id] = waiting
  local timeout = options.timeout
  if timeout == nil and t.call ~= nil then timeout = CALL_S end
  if timeout then
    waiting.timer = assert(self.uv.new_timer())
    waiting.timer:start(math.max(1, timeout * 1000 // 1 | 0), 0,
      guarded(self, function()
        settle(self, id, nil, failed("timeout", 3, "%s: no answer within "
          .. "%g s", self.path, timeout))
      end))
  end
  return id
end

local function check_idle(uv, what)
  if uv.loop_mode() then
    error(what .. " drives luv's loop, which is running already; "
      .. "request_async does not wait", 3)
  end
end

-- request(t[, options as of request_async]) -> result | nil, message, code, exit
function Client:request(t, options)
  check_idle(self.uv, "client:request")
  local is_done, result, err
  local id, message, code, exit = self:request_async(t, function(r, e)
    is_done, result, err = true, r, e
  end, options)
  if not id then return nil, message, code, exit end
  while not is_done do self.uv.run "once" end
  if err then return nil, err.message, err.code, err.exit end
  return result
end

-- interrupt(id): asks the server to end that eval; its answer tells how it went.
function Client:interrupt(id) return (send(self, { interrupt = id })) ~= nil end

-- on_event(fn): called with every event, once { call = "events" } has been
-- asked for; returns how to stop that.
function Client:on_event(fn)
  local list = table.move(self.handlers, 1, #self.handlers, 1, {})
  list[#list + 1] = fn
  self.handlers = list
  return function()
    local left = {}
    for _, other in ipairs(self.handlers) do
      if other ~= fn then left[#left + 1] = other end
    end
    self.handlers = left
  end
end

-- on_output(fn): called with what is printed when no eval waits for it: by
-- jobs and tasks that outlive their chunk.
function Client:on_output(fn) self.output = fn end

-- on_close(fn): called once with the error when the server goes away.
function Client:on_close(fn) self.on_end = fn end

-- Whoever still waits is told. Closing twice is fine.
function Client:close()
  if self.is_closed then return end
  self.is_closed = true
  disconnect(self, failed("closed", 2, "%s: the connection was closed here",
    self.path))
  -- A turn completes the closing: luv does not survive the end of the Lua state
  -- without.
  if not self.uv.loop_mode() then self.uv.run "nowait" end
end

Client.__close = Client.close

-- ---- connect -----------------------------------------------------------------------------

local reasons = {
  ENOENT = { "no_socket", "nothing is there: is cairn serve running?" },
  ECONNREFUSED = { "no_socket", "nobody answers: its server has ended" },
  ENOTSOCK = { "no_socket", "this is no socket" },
  EACCES = { "permission_denied",
    "no permission: the server's user and its groups only may connect" },
  EPERM = { "permission_denied",
    "no permission: the server's user and its groups only may connect" },
  EAGAIN = { "timeout", "the server is too busy to answer" },
  EPROTOTYPE = { "no_socket", "this is another kind of socket" },
}

local function await(c, done, timeout)
  local timer, is_late = assert(c.uv.new_timer()), false
  timer:start(math.max(1, timeout * 1000 // 1 | 0), 0, function()
    is_late = true
  end)
  while not done() and not is_late do c.uv.run "once" end
  timer:close()
  return done()
end

-- connect(uv, path[, { timeout = seconds, log = function }])
--   -> client | nil, message, code, exit. Its field `server` is what the
-- server said to hello: version, level ("admin", "read-only"), pid, store.
function client.connect(uv, path, options)
  options = options or {}
  check_idle(uv, "client.connect")
  if type(path) ~= "string" or path == "" then
    error("client.connect: the path of a socket expected, got "
      .. (path == "" and "''" or type(path)), 2)
  elseif path:find("\0", 1, true) then
    error("client.connect: the path of a socket has a NUL byte in it", 2)
  elseif #path > PATH_MAX then
    return nil, ("%s: a socket's path has at most %d bytes, this has %d")
      :format(path, PATH_MAX, #path), "no_socket", 3
  end
  local pipe, message = uv.new_pipe(false)
  if not pipe then return nil, tostring(message), "internal", 3 end
  local c = setmetatable({ uv = uv, path = path, pipe = pipe, last_id = 0,
    waiting = {}, handlers = {}, pieces = {}, length = 0,
    log = options.log or default_log }, Client)
  local timeout = options.timeout or CONNECT_S

  local function refused(code, why)
    c:close()
    return nil, ("%s: %s"):format(path, why), code, 3
  end
  local is_connected, reason
  local ok, name = pipe:connect(path, function(err)
    is_connected, reason = true, err
  end)
  if not ok then is_connected, reason = true, tostring(name) end
  if not await(c, function() return is_connected end, timeout) then
    return refused("timeout", ("no connection within %g s"):format(timeout))
  elseif reason then
    local row = reasons[reason:match "^%u+"] or { "no_socket", reason }
    return refused(row[1], row[2])
  end
  pipe:read_start(function(err, data)
    guarded(c, read)(c, err, data)
  end)
  local server, why, code = c:request({ call = "hello" },
    { timeout = timeout })
  if not server then
    if code == "disconnected" then
      return refused("permission_denied", "the server closed the connection "
        .. "at once: only its user, root and its groups may use it")
    end
    c:close()
    -- An error of the server itself does not say where it comes from.
    if not why:find(path, 1, true) then why = path .. ": " .. why end
    return nil, why, code, 3
  elseif type(server) ~= "table" then
    return refused("protocol", "this is no Cairn server: it has no hello")
  end
  c.server = server
  return c
end

return client
