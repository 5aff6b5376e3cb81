-- The calls of the control socket, as a table: what each takes, whether it
-- changes something, and what it does. docs/control-protocol.md lists them; a
-- test compares the two.
--
-- run(server, client, arguments, done) calls done(result) or done(nil, message,
-- code, { exit =, data = }) once, now or later; or raises.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"

local api = { calls = {}, names = {} }

local PAGE_BYTES = 524288 -- of a list in one answer
local PAGE_JOBS = 1000    -- jobs looked at for one answer
local PAGE_RECORDS = 10000
-- Records read at once: of at most 50 KB each (a name, an error and the warnings
-- that a record keeps, all of it control characters), and PAGE_BYTES, a line.
local CHUNK_RECORDS = 10
local EVENTS = 1000
local PATTERN_MAX = 1000

-- JSON that is made already.
api.Raw = {}
function api.raw(text) return setmetatable({ text = text }, api.Raw) end

local function add(name, call)
  call.fields = call.fields or {}
  api.calls[name] = call
  api.names[#api.names + 1] = name
end

-- ---- small things ------------------------------------------------------------------

local function job_of(server, arguments)
  local job, message, code = server.engine:job(arguments.job)
  if not job then failure.raise(code, "%s", message) end
  return job
end

local function where(job)
  return { InstanceID = job.InstanceID, Name = job.Name,
    JobState = job.JobState, phase = job.phase }
end

-- A number of the class's methods: 0 and 4096 are well. What a job's state
-- refuses ends a command with 1, not as wrong use.
local function coded(server, job, code, message, done)
  local plain = core.state(server.engine).dmtf_code(code)
  if plain == 0 or plain == 4096 then
    local result = where(job)
    result.code = code
    return done(result)
  end
  local name = plain == 1 and "not_supported" or plain == 2 and "not_found"
    or plain == 5 and "invalid_argument" or "invalid_state"
  done(nil, message or ("refused with code %d; the job is %s"):format(code,
    job.JobState), name, { exit = name == "invalid_state" and 1 or nil,
    data = { code = code } })
end

local own = { job = true, type = true, serial = true, new_state = true,
  old_state = true, cookie = true }

-- An event as JSON.
function api.event(event)
  local copy = {}
  for key, value in pairs(event) do
    if not own[key] then copy[key] = value end
  end
  return assert(core.json_encode(copy))
end

local function count_of(arguments, name, default, most)
  local n = arguments[name]
  if n == nil then return default end
  if math.type(n) ~= "integer" or n < 0 or n > most then
    failure.raise("out_of_range", "%s: 0 to %d expected, got %s", name, most,
      failure.shown(n))
  end
  return n
end

local ANY, ANY_CHARACTER = ("*?"):byte(1, 2)

local function is_continuation(byte)
  return byte ~= nil and byte & 0xc0 == 0x80
end

-- Whether a name is like a shell's pattern (* and ?). Not by one of Lua's
-- patterns: whoever may only read would make the service try for years. Here
-- only the last * is ever tried anew.
local function is_like(name, pattern)
  local at, from = 1, 1 -- in the name, in the pattern
  local star, star_at   -- the last *, and where in the name its text ends
  while at <= #name do
    local wanted, byte = pattern:byte(from), name:byte(at)
    if wanted == ANY then
      star, star_at, from = from, at, from + 1
    elseif wanted == ANY_CHARACTER and not is_continuation(byte) then
      repeat at = at + 1 until not is_continuation(name:byte(at))
      from = from + 1
    elseif wanted == byte and wanted ~= ANY_CHARACTER then
      at, from = at + 1, from + 1
    elseif star then
      star_at = star_at + 1
      at, from = star_at, star + 1
    else
      return false
    end
  end
  return pattern:find("^%**$", from) ~= nil
end

-- ---- what only reads -----------------------------------------------------------------

add("hello", { run = function(server, client, _, done)
  local S = core.state(server.engine)
  done { version = core.version, protocol = 1, level = client.level,
    pid = server.uv.os_getpid(), store = S.store, user = client.peer.user,
    uid = client.peer.uid, store_error = core.store_error(server.engine),
    evaluates = server.evaluator ~= nil }
end })

-- One answer looks at so many jobs at most, and says where to go on.
add("jobs", {
  fields = { filter = "table", name = "string", after = "number",
    max = "number", numbers = "boolean" },
  run = function(server, _, arguments, done)
    local wanted = E.filter(arguments.filter, "jobs: filter")
    local name = arguments.name
    if name and #name > PATTERN_MAX then
      failure.raise("out_of_range", "jobs: name: a pattern has at most %d bytes, "
        .. "this has %d", PATTERN_MAX, #name)
    end
    local serial = count_of(arguments, "after", 0, math.maxinteger)
    local max = count_of(arguments, "max", PAGE_JOBS, PAGE_JOBS)
    local list, bytes, looked, more = {}, 0, 0, nil
    while true do
      local job, at = core.job_next(server.engine, serial)
      if not job then break end
      if looked == PAGE_JOBS or #list >= max or bytes > PAGE_BYTES then
        more = serial
        break
      end
      looked, serial = looked + 1, at
      if E.matches(job, wanted) and (not name or is_like(job.Name, name))
      then
        local text, message, code = job:json(arguments.numbers)
        if not text then return done(nil, message, code) end
        list[#list + 1] = text
        bytes = bytes + #text
      end
    end
    done(api.raw(('{"jobs":[%s],"next":%s}'):format(table.concat(list, ","),
      more and tostring(more) or "null")))
  end })

add("show", {
  fields = { job = "string!", numbers = "boolean" },
  run = function(server, _, arguments, done)
    local job = job_of(server, arguments)
    local text, message, code = job:json(arguments.numbers)
    if not text then return done(nil, message, code) end
    local _, errors = job:GetErrorEx()
    local parts = { '"job":' .. text }
    local query = job:query()
    if query then
      parts[#parts + 1] = '"query":' .. assert(core.json_encode(query))
    end
    if errors and next(errors) ~= nil then
      parts[#parts + 1] = '"errors":' .. assert(core.json_encode(errors))
    end
    done(api.raw("{" .. table.concat(parts, ",") .. "}"))
  end })

add("why", {
  fields = { job = "string!" },
  run = function(server, _, arguments, done)
    local text, data, code = server.engine:why(job_of(server, arguments))
    if not text then return done(nil, data, code) end
    done { text = text, data = data }
  end })

add("history", {
  fields = { job = "string", after = "number", max = "number" },
  run = function(server, _, arguments, done)
    local after = count_of(arguments, "after", 0, math.maxinteger)
    local max = math.max(1, count_of(arguments, "max", PAGE_RECORDS,
      PAGE_RECORDS))
    local out, bytes, id = {}, 0, arguments.job
    repeat -- what an error says may be long
      local records, next_after, code = server.engine:history(id,
        { after = after, max = math.min(max - #out, CHUNK_RECORDS) })
      if not records then return done(nil, next_after, code) end
      id = id and records[1] and records[1].InstanceID or id
      for _, record in ipairs(records) do
        out[#out + 1] = assert(core.json_encode(record))
        bytes = bytes + #out[#out]
      end
      after = next_after
    until not after or #out >= max or bytes >= PAGE_BYTES
    done(api.raw(('{"records":[%s],"next":%s}'):format(table.concat(out, ","),
      after and tostring(after) or "null")))
  end })

add("events", {
  fields = { names = "list" },
  run = function(server, client, arguments, done)
    local names, list = {}, {}
    local is_known = {}
    for _, name in ipairs(E.event_names) do is_known[name] = true end
    for _, name in ipairs(arguments.names or E.event_names) do
      if not is_known[name] then
        failure.raise("invalid_argument", "events: no event '%s'; the nearest "
          .. "is '%s' (valid: %s)", failure.shown(name),
          failure.nearest(tostring(name), E.event_names),
          table.concat(E.event_names, ", "))
      end
      names[name] = true
      list[#list + 1] = core.json_encode(name)
    end
    server.subscribers[client] = names
    done(api.raw(('{"names":[%s]}'):format(table.concat(list, ","))))
  end })

add("changes", {
  fields = { cursor = "number", max = "number" },
  run = function(server, _, arguments, done)
    local max = math.max(1, count_of(arguments, "max", 256, EVENTS))
    local list, cursor, code = server.engine:changes(count_of(arguments,
      "cursor", 0, math.maxinteger), max)
    if not list then return done(nil, cursor, code) end
    local out = {}
    for i, event in ipairs(list) do out[i] = api.event(event) end
    done(api.raw(('{"events":[%s],"cursor":%d}'):format(
      table.concat(out, ","), cursor)))
  end })

add("queues", { run = function(server, _, _, done)
  local list, message, code = server.engine:queues()
  if not list then return done(nil, message, code) end
  local out = {}
  for i, row in ipairs(list) do out[i] = assert(core.json_encode(row)) end
  done(api.raw("[" .. table.concat(out, ",") .. "]"))
end })

local function service_call(name)
  return function(server, _, _, done)
    local fn = server.service[name]
    if not fn then
      return done(nil, name .. ": this service has none", "not_supported")
    end
    return fn(done)
  end
end

add("metrics", { run = service_call "metrics" })
add("policies", { run = service_call "policies" })

add("flush", { run = function(server, client, _, done)
  client:sent(function(ok, message, code)
    if ok then return done { turn = core.durable(server.engine) } end
    done(nil, message, code)
  end)
end })

-- ---- what changes something ----------------------------------------------------------

add("reload", { is_change = true, run = service_call "reload" })

for name, state in pairs { start = "Start", suspend = "Suspend",
  terminate = "Terminate" } do
  api.calls[name] = { is_change = true, fields = { job = "string!" },
    run = function(server, _, arguments, done)
      local job = job_of(server, arguments)
      local code, _, message = job:RequestStateChange(state)
      coded(server, job, code, message, done)
    end }
end
for _, name in ipairs { "start", "suspend", "terminate" } do
  api.names[#api.names + 1] = name
end

add("resume", { is_change = true, fields = { job = "string!" },
  run = function(server, _, arguments, done)
    local job = job_of(server, arguments)
    local code, _, message = core.job_resume_code(job)
    coded(server, job, code, message, done)
  end })

add("kill", { is_change = true,
  fields = { job = "string!", delete = "boolean" },
  run = function(server, _, arguments, done)
    local job = job_of(server, arguments)
    local code, _, message = job:KillJob(arguments.delete)
    coded(server, job, code, message, done)
  end })

-- null cannot be told from nothing in an object, so what is to be unset is a
-- list of names.
add("set", { is_change = true,
  fields = { job = "string!", properties = "table", clear = "list" },
  detail = function(arguments)
    local names = {}
    for name in pairs(type(arguments.properties) == "table"
      and arguments.properties or {}) do
      names[#names + 1] = failure.shown(name)
    end
    table.sort(names)
    return #names > 0 and " (" .. table.concat(names, ", ") .. ")" or ""
  end,
  run = function(server, _, arguments, done)
    local job, changes = job_of(server, arguments), {}
    for name, value in pairs(arguments.properties or {}) do
      if type(name) ~= "string" or type(value) == "table" then
        failure.raise("wrong_type", "set: properties: names, and for each a "
          .. "string, a number or a boolean expected")
      end
      changes[name] = value
    end
    for _, name in ipairs(arguments.clear or {}) do
      if type(name) ~= "string" or changes[name] ~= nil then
        failure.raise("invalid_argument", "set: clear: names of properties "
          .. "expected that are not in properties too, got %s",
          failure.shown(name))
      end
      changes[name] = core.null
    end
    if next(changes) == nil then
      failure.raise("invalid_argument", "set: nothing to set; give properties "
        .. "or clear")
    end
    local ok, message, code = job:set(changes)
    if not ok then return done(nil, message, code) end
    done(where(job))
  end })

add("answer", { is_change = true,
  fields = { job = "string!", text = "string!" },
  run = function(server, _, arguments, done)
    local job = job_of(server, arguments)
    local code, _, message = job:ResumeWithInput(arguments.text)
    coded(server, job, code, message, done)
  end })

add("delete", { is_change = true, fields = { job = "string!" },
  run = function(server, _, arguments, done)
    local job = job_of(server, arguments)
    local result = where(job)
    local status, message = job:DeleteInstance()
    if status == 0 then return done(result) end
    done(nil, message, "invalid_state", { exit = 1,
      data = { CIMStatusCode = status } })
  end })

add("backup", { is_change = true, fields = { path = "string!" },
  detail = function(arguments)
    return type(arguments.path) == "string"
      and " to " .. failure.shown(arguments.path) or ""
  end,
  run = function(server, _, arguments, done)
    local engine, path = server.engine, arguments.path
    if path:sub(1, 1) ~= "/" then
      failure.raise("bad_path", "backup: an absolute path expected, for the "
        .. "service's working directory is not the client's")
    end
    local S = core.state(engine)
    local cookie = E.cookie(S)
    local ok, message, code = core.backup_start(engine, path, cookie)
    if not ok then return done(nil, message, code) end
    S.backups[cookie] = function()
      local is_well, why, id = core.backup_error(engine)
      if is_well then return done { path = path } end
      done(nil, why, id)
    end
  end })

add("shutdown", { is_change = true, run = service_call "shutdown" })

return api
