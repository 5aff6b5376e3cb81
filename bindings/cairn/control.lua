-- The control socket of an engine, on luv's loop (docs/control-protocol.md).
--
-- A connection is read, worked on and written to in bounded pieces. What is read
-- stays as it came until its turn: the loop's idle handle takes one request
-- from one client after the other, for BUDGET_US at most, then everything else on
-- the loop has its own. A client whose answers pile up is not worked for, one
-- with too much unread text is not read from, and one that takes nothing for
-- STUCK_S is closed.
--
-- Whatever is sent follows the commit of all that it could tell (sent()), in
-- order. While commits fail, what only reads is answered all the same, with
-- what is wrong, so that a client can see it.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local api = require "cairn.control_calls"
local failure = require "cairn.failure"

local control = {}

local LINE_MAX = 1048576         -- bytes, in either direction, with the newline
local READ_HIGH = 262144         -- bytes that wait: no more are read
local WRITE_HIGH = 1048576       -- bytes unsent: nothing more is done
local OUTPUT_HIGH = 4194304      -- ... and what a chunk prints is left out
local EVENTS_HIGH = 8388608      -- ... and a subscriber is closed
local WAITING_HIGH = 128         -- answers that wait for something
local PIECE = 262144             -- of text, in one line
local BUDGET_US = 2000
local STUCK_S, CLOSE_MS, SWEEP_MS = 30, 1000, 1000
local CLIENTS, ADMIN_RESERVE = 64, 8
local REFUSED_QUIET_S = 10

local Server = { __name = "cairn.control" }
Server.__index = Server
local Client = {}
Client.__index = Client

-- ---- small things ------------------------------------------------------------------

-- luv ends the process when a callback raises.
local function guarded(server, fn)
  return function(...)
    local ok, message = xpcall(fn, failure.traceback, ...)
    if not ok then server.log("error", "control socket: " .. message) end
  end
end

local function seconds() return core.monotonic() / 1e6 end

-- Text that may stand in JSON: what is no UTF-8, and NUL, becomes U+FFFD.
local function clean(text)
  if not text:find "[\0\x80-\xff]" then return text end
  local out, at = {}, 1
  while at <= #text do
    local ok, bad = utf8.len(text, at)
    out[#out + 1] = text:sub(at, ok and #text or bad - 1)
    if ok then break end
    out[#out + 1] = "\u{FFFD}"
    at = bad + 1
  end
  return (table.concat(out):gsub("\0", "\u{FFFD}"))
end

-- Pieces that a line can hold, cut between characters.
local function pieces(text)
  local out, at = {}, 1
  while #text - at >= PIECE do
    local to = at + PIECE
    while to > at + 1 and (text:byte(to) & 0xc0) == 0x80 do to = to - 1 end
    out[#out + 1] = text:sub(at, to - 1)
    at = to
  end
  out[#out + 1] = text:sub(at)
  return out
end

local function shown(text, length)
  text = clean(text):gsub("%c+", " ")
  if #text <= length then return text end
  return text:sub(1, (utf8.offset(text, 0, length + 1) or length + 1) - 1)
    .. "..."
end

-- ---- sending -------------------------------------------------------------------------

function Client:pending() return self.pipe:get_write_queue_size() end

function Client:write(text)
  if self.is_closed or self.is_finishing then return end
  self.unsent = self.unsent or seconds()
  local ok, message = self.pipe:write(text, guarded(self.server, function(err)
    if err then return self:close() end
    self.unsent = self:pending() > 0 and seconds() or nil
    self.server:schedule(self)
  end))
  if not ok then
    self.server.log("debug", ("control socket: %s: %s"):format(self.who,
      message))
    self:close()
  end
end

-- Calls fn(true) when all that has been changed so far is durable, fn(nil,
-- message, code) when it cannot be for now; what was given before comes before.
function Client:sent(fn)
  local engine = self.server.engine
  local S, queue = core.state(engine), self.commits
  local turn = core.turn(engine)
  if queue.first > queue.last then
    if core.durable(engine) >= turn then return fn(true) end
    local message, code = core.store_error(engine)
    if message then return fn(nil, message, code) end
  end
  queue.last = queue.last + 1
  queue[queue.last] = fn
  S.committers[#S.committers + 1] = { turn = turn, wake = function(...)
    local first = queue[queue.first]
    queue[queue.first] = nil
    queue.first = queue.first + 1
    if first and not self.is_closed then
      guarded(self.server, first)(...)
      self.server:schedule(self)
    end
  end }
end

local function json_line(id, member, value)
  local text, message
  if getmetatable(value) == api.Raw then
    text = value.text
  else
    text, message = core.json_encode(value)
  end
  if not text then return nil, message end
  return ('{"id":%s,"%s":%s}\n'):format(id, member, text)
end

local function error_table(err)
  local row = failure.errors[err.code] or failure.errors.internal
  return { code = row.code, message = clean(tostring(err.message)),
    exit = err.exit or row.exit_code, data = err.data }
end

function Client:error(id, err)
  self:write(assert(json_line(id, "error", error_table(err))))
end

-- The answer to a call, when it may leave. `is_change`: it tells of a change,
-- which has to be durable.
function Client:answer(id, result, is_change)
  self:sent(function(ok, message, code)
    if not ok and is_change then
      return self:error(id, { code = code, message = "the change is made, "
        .. "but not in the store yet: " .. tostring(message) })
    end
    local line, why = json_line(id, "result", result)
    if not line then
      return self:error(id, { code = "internal", message = why })
    elseif #line > LINE_MAX then
      return self:error(id, { code = "out_of_range", message = ("the answer has "
        .. "%d bytes, a line at most %d: ask for less"):format(#line,
        LINE_MAX) })
    end
    self:write(line)
  end)
end

-- ---- calls ---------------------------------------------------------------------------

-- Everything that changes something, and who did it.
function Client:record(what, level, fields)
  local peer = self.peer
  local all = { uid = peer.uid, user = peer.user, pid = peer.pid }
  for key, value in pairs(fields or {}) do all[key] = value end
  self.server.log(level or "info", ("%s by %s"):format(what, self.who), all)
end

function Client:call(id, request)
  local name, arguments = request.call, request.arguments
  local call = type(name) == "string" and api.calls[name]
  if not call then
    return self:error(id, { code = "not_found", message = ("there is no call "
      .. "'%s'; the nearest is '%s' (calls: %s)"):format(failure.shown(name),
      failure.nearest(tostring(name), api.names),
      table.concat(api.names, ", ")) })
  elseif call.is_change and self.level ~= "admin" then
    if self.server:is_news(("%s %d"):format(name, self.peer.uid)) then
      self:record("refused: " .. name, "warning")
    end
    return self:error(id, { code = "permission_denied", message = ("%s: %s may "
      .. "only read; root, the service's user and members of its admin group "
      .. "may change things"):format(name, self.who) })
  end
  local is_done = false
  local function done(result, message, code, extra)
    if is_done or self.is_closed then return end
    is_done = true
    self.waiting = self.waiting - 1
    local is_well = result ~= nil and result ~= false
    if call.is_change then
      local job = type(arguments) == "table" and arguments.job
      local detail = call.detail and call.detail(arguments) or ""
      self:record(("%s%s%s%s"):format(is_well and "" or "refused: ", name,
        job and " " .. shown(tostring(job), 60) or "", detail),
        is_well and "info" or "warning",
        { call = name, job = type(result) == "table" and result.InstanceID
          or job and shown(tostring(job), 60) })
    end
    if is_well then
      self:answer(id, result, call.is_change)
    else
      local err = { code = code, message = message }
      for key, value in pairs(extra or {}) do err[key] = value end
      self:sent(function() self:error(id, err) end)
    end
    self.server:schedule(self)
  end
  self.waiting = self.waiting + 1
  local ok, err = xpcall(function()
    if arguments == nil then arguments = {} end
    failure.check_fields(arguments, call.fields, name)
    call.run(self.server, self, arguments, done)
  end, function(e)
    return failure.is(e) and e or { code = "internal",
      message = failure.traceback(e) }
  end)
  if not ok then
    if err.code == "internal" then
      self.server.log("error", name .. ": " .. err.message)
    end
    done(nil, err.message, err.code)
  end
end

-- ---- evaluation ----------------------------------------------------------------------

function Client:session()
  if self.evaluation then return self.evaluation end
  local server = self.server
  self.evaluation = server.evaluator.new { engine = server.engine,
    uv = server.uv, name = self.who, print = function(text)
      self:printed(tostring(text))
    end }
  return self.evaluation
end

-- What a chunk prints. A client that does not read it as fast loses some.
function Client:printed(text)
  if self.is_closed then return end
  if self:pending() > OUTPUT_HIGH or self.unprinted > OUTPUT_HIGH then
    self.left_out = self.left_out + #text
    return
  end
  local id = self.eval_id -- also of what tasks print that outlive their chunk
  self.unprinted = self.unprinted + #text
  self:sent(function()
    self.unprinted = self.unprinted - #text
    if self.mode == "text" then return self:write(text) end
    for _, piece in ipairs(pieces(clean(text))) do
      self:write(assert(json_line(id or "null", "output", piece)))
    end
  end)
end

-- Runs a chunk; done(outcome) when its end may be told.
function Client:evaluate(source, done, options)
  local session = self:session()
  self.waiting = self.waiting + 1
  self.is_evaluating = true
  self.left_out = 0
  local is_done = false
  local function finished(outcome)
    if is_done then return end
    is_done = true
    self.waiting = self.waiting - 1
    if self.is_closed then return end
    if self.left_out > 0 then
      local lost = self.left_out
      self.left_out = 0
      self:sent(function()
        local text = ("\n... %d bytes of output are left out: they were not "
          .. "read as fast as they came\n"):format(lost)
        self:write(self.mode == "text" and text
          or json_line(self.eval_id or "null", "output", text))
      end)
    end
    self:sent(function()
      self.is_evaluating = false
      done(outcome)
      self.server:schedule(self)
    end)
  end
  local _, _, is_incomplete = self.server.evaluator.compile(source, "=", {})
  if not is_incomplete then -- what is not whole yet runs nothing
    self:record("eval: " .. shown(source, 200), nil, { call = "eval" })
  end
  local ok, message = xpcall(session.eval, failure.traceback, session, source,
    finished, options)
  if not ok then
    self.server.log("error", "eval: " .. message)
    finished { error = message }
  end
end

function Client:eval_request(id, source, is_json)
  if type(source) ~= "string" then
    return self:error(id, { code = "wrong_type", message = "eval: Lua source, "
      .. "a string, expected, got " .. type(source) })
  elseif self.is_evaluating then
    return self:error(id, { code = "busy", message = "eval: the chunk before "
      .. "has not ended; {\"interrupt\":ID} ends it" })
  end
  self.eval_id = id
  self:evaluate(source, function(outcome)
    if outcome.incomplete then
      return self:write(('{"id":%s,"incomplete":true}\n'):format(id))
    elseif outcome.error then
      local message = clean(tostring(outcome.error))
      if #message > PIECE then message = pieces(message)[1] .. " ..." end
      return self:error(id, { code = "script_error", exit = 1,
        message = message })
    end
    local values, room = {}, LINE_MAX // 2
    for i = 1, outcome.n or #outcome.values do
      local text = clean(tostring(outcome.values[i]))
      local part = pieces(text)[1]
      if #part > room then part = "" end
      room = room - #part - 32
      if room < 0 then
        values[#values + 1] = core.json_encode(("... %d more values"):format(
          (outcome.n or #outcome.values) - i + 1))
        break
      end
      if #part < #text then
        part = ("%s ... (%d bytes)"):format(part, #text)
      end
      values[i] = core.json_encode(part)
    end
    local line = assert(json_line(id, "result", api.raw(('{"values":[%s]}')
      :format(table.concat(values, ",")))))
    if #line > LINE_MAX then -- control characters, six bytes each
      return self:error(id, { code = "out_of_range", message = ("the values "
        .. "have %d bytes, a line at most %d"):format(#line, LINE_MAX) })
    end
    self:write(line)
  end, { json = is_json == true })
end

-- ---- a JSON line ---------------------------------------------------------------------

local request_fields = { id = "any", call = "any", arguments = "any",
  eval = "any", json = "boolean", complete = "any", interrupt = "any" }

function Client:json(line)
  local t, message = core.json_decode(line)
  if type(t) ~= "table" then
    return self:error("null", { code = "invalid_argument",
      message = "a request is one JSON object on one line: "
        .. (message or "got a " .. type(t)) })
  end
  local id = t.id
  if id ~= nil and (type(id) ~= "string" or #id > 200)
    and math.type(id) ~= "integer" then
    return self:error("null", { code = "wrong_type", message = "id: an integer "
      .. "or a string of at most 200 bytes expected" })
  end
  local key = id == nil and "null" or core.json_encode(id)
  local ok, err = pcall(failure.check_fields, t, request_fields, "request")
  if not ok then return self:error(key, err) end
  local count = 0
  for _, name in ipairs { "call", "eval", "complete", "interrupt" } do
    if t[name] ~= nil then count = count + 1 end
  end
  if count ~= 1 then
    return self:error(key, { code = "invalid_argument", message = "a request "
      .. "has one of call, eval, complete and interrupt" })
  elseif t.call ~= nil then
    return self:call(key, t)
  elseif self.level ~= "admin" then
    return self:error(key, { code = "permission_denied",
      message = ("%s may only read, and evaluates nothing"):format(self.who) })
  elseif not self.server.evaluator then
    return self:error(key, { code = "not_supported",
      message = "this service evaluates nothing" })
  elseif t.eval ~= nil then
    return self:eval_request(key, t.eval, t.json)
  elseif t.interrupt ~= nil then
    local wanted = core.json_encode(t.interrupt)
    if self.is_evaluating and self.eval_id == wanted then
      self:record("interrupt", nil, { call = "interrupt" })
      self.evaluation:interrupt()
    end
    return -- the chunk's own answer says how it ended
  end
  if type(t.complete) ~= "string" or #t.complete > 1000 then
    return self:error(key, { code = "wrong_type", message = "complete: a "
      .. "string of at most 1000 bytes expected" })
  end
  local list = {}
  for i, name in ipairs(self:session():complete(t.complete)) do
    if i > 1000 then break end
    list[i] = core.json_encode(clean(tostring(name)))
  end
  self:answer(key, api.raw("[" .. table.concat(list, ",") .. "]"))
end

-- ---- a line of text ------------------------------------------------------------------

local PROMPT, MORE = "> ", ">> "

function Client:text(line)
  if self.level ~= "admin" then
    self:write(("%s may only read: the text console is for root, the service's "
      .. "user and its admin group\n"):format(self.who))
    return self:finish()
  elseif not self.server.evaluator then
    self:write "this service evaluates nothing; it answers JSON requests\n"
    return self:finish()
  end
  line = line:gsub("\r$", "")
  if not utf8.len(line) or line:find "\0" then
    self.chunk = nil
    return self:write("a line of UTF-8 without NUL bytes expected\n" .. PROMPT)
  end
  local chunk = self.chunk and self.chunk .. "\n" .. line or line
  if #chunk > LINE_MAX then
    self.chunk = nil
    return self:write(("a chunk has at most %d bytes\n"):format(LINE_MAX)
      .. PROMPT)
  elseif chunk:find "^%s*$" then
    self.chunk = nil
    return self:write(PROMPT)
  end
  self:evaluate(chunk, function(outcome)
    self.chunk = outcome.incomplete and chunk or nil
    if outcome.incomplete then return self:write(MORE) end
    if outcome.error then
      return self:write(tostring(outcome.error) .. "\n" .. PROMPT)
    end
    local out = {}
    for i = 1, outcome.n or #outcome.values do
      out[i] = tostring(outcome.values[i]) .. "\n"
    end
    self:write(table.concat(out) .. PROMPT)
  end)
end

-- ---- what has come -------------------------------------------------------------------

function Client:too_long()
  self.server.log("warning", ("control socket: %s sent a line of more than %d "
    .. "bytes; closed"):format(self.who, LINE_MAX))
  local message = ("a line has at most %d bytes, its newline among them")
    :format(LINE_MAX)
  if self.mode == "json" then
    self:error("null", { code = "out_of_range", message = message })
  else
    self:write(message .. "\n")
  end
  self:finish()
end

-- The next whole line, or nil.
function Client:line()
  if not self.buffer then
    if not self.has_line then return nil end
    self.buffer, self.at = table.concat(self.pieces), 1
    self.pieces, self.has_line = {}, false
  end
  local to = self.buffer:find("\n", self.at, true)
  if to then
    local line = self.buffer:sub(self.at, to - 1)
    self.unread = self.unread - (to - self.at + 1)
    self.at = to + 1
    if self.at > #self.buffer then self.buffer = nil end
    return line
  end
  local rest = self.buffer:sub(self.at)
  self.buffer = nil
  table.insert(self.pieces, 1, rest)
  if self.has_line then return self:line() end -- more has come meanwhile
  return nil
end

-- Whether it has a request that may be worked on now.
function Client:is_ready()
  return not self.is_closed and not self.is_finishing
    and (self.buffer ~= nil or self.has_line)
    and not (self.mode == "text" and self.is_evaluating)
    and self.waiting < WAITING_HIGH
    and self.commits.last - self.commits.first < WAITING_HIGH
    and self:pending() <= WRITE_HIGH
end

-- One request.
function Client:work()
  local line = self:line()
  if line then
    if #line >= LINE_MAX then
      self:too_long()
    elseif self.mode == "json" then
      if line:find "%S" then self:json(line) end
    else
      self:text(line)
    end
  end
  if not self.buffer and not self.has_line and self.unread >= LINE_MAX then
    self:too_long()
  end
  self:flow()
end

-- Reads while there is room, and ends what has nothing left to say.
function Client:flow()
  if self.is_closed or self.is_finishing then return end
  local is_full = self.unread > READ_HIGH
    and (self.buffer ~= nil or self.has_line)
  if not self.is_ended and is_full == self.is_reading then
    if is_full then self.pipe:read_stop() else self:read() end
    self.is_reading = not is_full
  end
  if self.is_ended and not self.buffer and not self.has_line
    and self.waiting == 0 and self.commits.first > self.commits.last then
    self:finish()
  end
end

function Client:came(data)
  if self.mode == nil then
    self.mode = data:sub(1, 1) == "{" and "json" or "text"
  end
  self.pieces[#self.pieces + 1] = data
  self.unread = self.unread + #data
  self.has_line = self.has_line or data:find("\n", 1, true) ~= nil
  if not self.buffer and not self.has_line and self.unread >= LINE_MAX then
    return self:too_long()
  end
  self.server:schedule(self)
  self:flow()
end

function Client:read()
  self.pipe:read_start(guarded(self.server, function(err, data)
    if self.is_closed or self.is_finishing then return end
    if err then
      self:close()
    elseif data then
      self:came(data)
    else
      self.is_ended = true
      self.is_reading = false
      self.server:schedule(self)
      self:flow()
    end
  end))
end

-- ---- its end -------------------------------------------------------------------------

-- Closes when what was written has gone out.
function Client:finish()
  if self.is_closed or self.is_finishing then return end
  self.is_finishing = true
  self.unsent = self.unsent or seconds()
  self:let_go()
  self.pipe:read_stop()
  local ok = self.pipe:shutdown(guarded(self.server, function()
    self:close()
  end))
  if not ok then self:close() end
end

-- Nothing is done for it any more.
function Client:let_go()
  local evaluation = self.evaluation
  self.evaluation = nil
  if evaluation then guarded(self.server, evaluation.close)(evaluation) end
  self.server.subscribers[self] = nil
  self.chunk = nil
  self.pieces, self.buffer, self.has_line = {}, nil, false
end

function Client:close()
  if self.is_closed then return end
  self.is_closed = true
  self:let_go()
  if not self.pipe:is_closing() then self.pipe:close() end
  local server = self.server
  if server.clients[self] then
    server.clients[self] = nil
    server.count = server.count - 1
  end
end

-- ---- the server ----------------------------------------------------------------------

-- The client's turn will come, if it has something to do.
function Server:schedule(client)
  if client.is_closed then return end
  if client.is_scheduled or not client:is_ready() then return client:flow() end
  client.is_scheduled = true
  self.ready[#self.ready + 1] = client
  if not self.is_idling and not self.is_closed then
    self.is_idling = true
    self.idle:start(guarded(self, function() self:round() end))
  end
end

-- Everyone who is ready gets one request at a time, until the budget is used.
function Server:round()
  local stop = core.monotonic() + BUDGET_US
  repeat
    local list = self.ready
    self.ready = {}
    for i, client in ipairs(list) do
      client.is_scheduled = false
      if client:is_ready() then
        guarded(self, client.work)(client)
        self:schedule(client)
      end
      if core.monotonic() > stop then -- the rest comes first the next time
        self.ready = table.move(self.ready, 1, #self.ready, #list - i + 1,
          table.move(list, i + 1, #list, 1, {}))
        return
      end
    end
  until #self.ready == 0
  self.is_idling = false
  self.idle:stop()
end

local function is_member(peer, group)
  if not group then return false end
  if peer.gid == group then return true end
  for _, gid in ipairs(peer.groups) do
    if gid == group then return true end
  end
  return false
end

function Server:level_of(peer)
  if peer.uid == 0 or peer.uid == self.uid or is_member(peer, self.admin) then
    return "admin"
  end
  return is_member(peer, self.reader) and "read-only" or nil
end

function Server:name_of(uid)
  if self.names[uid] == nil then
    if self.name_count > 1000 then self.names, self.name_count = {}, 0 end
    self.name_count = self.name_count + 1
    self.names[uid] = core.user_name(uid) or ("uid " .. uid)
  end
  return self.names[uid]
end

-- Whether a refusal of this key is to be logged: once in a while, so that
-- nobody who may change nothing can fill the log.
function Server:is_news(key)
  local now = seconds()
  if now - (self.refused[key] or -math.huge) < REFUSED_QUIET_S then
    return false
  end
  self.refused[key] = now
  return true
end

function Server:refuse(peer)
  if not self:is_news(peer.uid) then return end
  self.log("warning", ("control socket: refused: uid %d, process %d"):format(
    peer.uid, peer.pid), { uid = peer.uid, pid = peer.pid })
end

function Server:accept()
  local pipe = assert(self.uv.new_pipe(false))
  local ok, message = self.listener:accept(pipe)
  local peer
  if ok then peer, message = core.peer(pipe:fileno()) end
  if not peer then
    self.log("warning", "control socket: " .. tostring(message))
    return pipe:close()
  end
  local level = self:level_of(peer)
  if not level then
    self:refuse(peer)
    return pipe:close()
  end
  peer.user = self:name_of(peer.uid)
  local client = setmetatable({ server = self, pipe = pipe, peer = peer,
    level = level, who = ("%s (uid %d, process %d)"):format(peer.user,
      peer.uid, peer.pid),
    pieces = {}, unread = 0, has_line = false, waiting = 0, unprinted = 0,
    left_out = 0, commits = { first = 1, last = 0 }, is_reading = true },
    Client)
  local room = self.max_clients
  if level ~= "admin" then room = room - math.min(ADMIN_RESERVE, room // 2) end
  if self.count >= room then
    self.clients[client], self.count = true, self.count + 1
    client:error("null", { code = "busy", message = ("%d clients are "
      .. "connected already"):format(self.count - 1) })
    return client:finish()
  end
  self.clients[client], self.count = true, self.count + 1
  client:read()
end

-- Clients that take nothing, or went away while their chunk runs.
function Server:sweep()
  local now = seconds()
  for client in pairs(self.clients) do
    if client.unsent and now - client.unsent > STUCK_S then
      self.log("warning", ("control socket: %s has read nothing for %d s; "
        .. "closed"):format(client.who, STUCK_S))
      client:close()
    elseif not client:is_ready() and (client.is_ended or not client.is_reading)
      and core.peer_is_gone(client.pipe:fileno()) then
      client:close() -- what is not read from does not say that it has closed
    end
  end
  for key, time in pairs(self.refused) do
    if now - time >= REFUSED_QUIET_S then self.refused[key] = nil end
  end
end

-- An event goes to everyone who has asked for events.
function Server:tell(event)
  if next(self.subscribers) == nil then return end
  local line = '{"event":' .. api.event(event) .. "}\n"
  for client, names in pairs(self.subscribers) do
    if not names[event.name] then
      goto continue
    elseif client:pending() > EVENTS_HIGH then
      self.log("warning", ("control socket: %s does not read its events; "
        .. "closed"):format(client.who))
      client:close()
    else
      client:write(line)
    end
    ::continue::
  end
end

local option_fields = { uv = "any!", socket = "string!", admin_group = "string",
  read_group = "string", log = "function!", max_clients = "number",
  evaluator = "table", service = "table" }

-- open(engine, options) -> server | nil, message, code. options: uv, socket (an
-- absolute path), admin_group, read_group (names or numbers), log(level,
-- message, fields), max_clients, evaluator (cairn.evaluator's interface),
-- service: what calls need of the program around the engine: reload(done),
-- policies(), metrics(), shutdown().
function control.open(engine, options)
  failure.check_fields(options, option_fields, "control.open")
  local server = setmetatable({ engine = engine, uv = options.uv,
    path = options.socket, log = options.log, evaluator = options.evaluator,
    service = options.service or {}, uid = options.uv.getuid(),
    max_clients = options.max_clients or CLIENTS, clients = {}, count = 0,
    ready = {}, subscribers = {}, names = {}, name_count = 0, refused = {},
    offs = {} }, Server)
  for field, name in pairs { admin = "admin_group", reader = "read_group" } do
    if options[name] then
      local gid, message, code = core.group_id(options[name])
      if not gid then return nil, message, code end
      server[field] = gid
    end
  end
  local admin, reader = server.admin, server.reader
  local access = admin and reader and admin ~= reader and "all"
    or (admin or reader) and "group" or "owner"
  local file, message, code = core.listener_open(options.socket, access,
    admin or reader)
  if not file then return nil, message, code end
  server.file = file
  local uv = options.uv
  local ok, why = pcall(function()
    server.listener = assert(uv.new_pipe(false))
    server.idle = assert(uv.new_idle())
    server.timer = assert(uv.new_timer())
    assert(server.listener:open(core.listener_take(file)))
    assert(server.listener:listen(128, guarded(server, function(err)
      if err then
        server.log("warning", "control socket: " .. err)
      else
        server:accept()
      end
    end)))
    server.timer:start(SWEEP_MS, SWEEP_MS, guarded(server, function()
      server:sweep()
    end))
    server.timer:unref()
    for _, name in ipairs(E.event_names) do
      server.offs[#server.offs + 1] = engine:on(name, function(event)
        server:tell(event)
      end)
    end
  end)
  if not ok then
    server:close()
    return nil, "control socket: " .. tostring(why), "internal"
  end
  return server
end

-- close([done]): no new connection, what was answered goes out, for a second at
-- most; then done() is called.
function Server:close(done)
  if self.is_closed then
    if done then done() end
    return
  end
  self.is_closed = true
  for _, off in ipairs(self.offs) do off() end
  if self.listener then self.listener:close() end
  core.listener_close(self.file)
  if self.idle then self.idle:close() end
  if self.timer then self.timer:close() end
  for client in pairs(self.clients) do client:finish() end
  local timer = self.uv.new_timer()
  local left = CLOSE_MS // 10
  local function look()
    left = left - 1
    if next(self.clients) ~= nil and left > 0 then return end
    for client in pairs(self.clients) do client:close() end
    if not timer:is_closing() then
      timer:close()
      if done then done() end
    end
  end
  timer:start(0, 10, guarded(self, look))
end

return control
