-- Policies: the table a policy file returns, checked; and loading the files.
--
-- What is wrong is reported with file and line: the line of the offending key
-- where the text of the file shows it once, else the line of the call.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local collection = require "cairn.collection"
local decision = require "cairn.decision"
local failure = require "cairn.failure"
local path = require "cairn.path"
local schedule = require "cairn.schedule"

local M = {}

local Policy = { __name = "cairn.policy" }

-- The functions that decide (cairn/decide.lua), and the kinds of jobs that they
-- are about: all, when there is no entry.
local decisions = E.decide.names
local decides_about = {
  base = { export = true }, select = { export = true },
  retain = { export = true, prune = true },
  throttle = { export = true, verify = true, restore = true, stream = true,
    import = true, merge = true },
}
local kinds = { "export", "verify", "restore", "stream", "import", "merge",
  "prune", "run" }

local policy_fields = { jobs = "table!", tests = "table", name = "string",
  handlers = "table" }
for _, name in ipairs(decisions) do policy_fields[name] = "function" end

local lua_types = { string = "string", boolean = "boolean", datetime = "any",
  real64 = "number" }

-- What submit takes of a job, by name.
local job_fields = { queue = "string", once = "boolean", volatile = "boolean",
  held = "boolean",
  zone = "string", gap = "string", overlap = "string", catch_up = "string",
  RecoveryJob = "string", wait = "boolean", run = "function",
  export = "table", verify = "table", restore = "table", stream = "table",
  import = "table", merge = "table", prune = "table" }
for _, row in ipairs(E.properties) do
  if row.is_writable then
    job_fields[row.name] = row.values and "any" or lua_types[row.type]
      or "number"
  end
end
for _, name in ipairs { "Name", "Caption", "Description", "ElementName",
  "OtherRecoveryAction" } do
  job_fields[name] = "string"
end
job_fields.RecoveryAction = "any"
for _, name in ipairs(decisions) do job_fields[name] = "function" end

local kind_fields = {
  export = { collection = "table!", directory = "string!", base = "string",
    format = "string", digest = "string", on_disk_error = "string",
    depth_limit = "number", tracker = "string", resume = "boolean" },
  verify = { directory = "string!", point = "string", depth = "string",
    source = "table" },
  restore = { directory = "string!", point = "string!", to = "string!",
    machine = "string", disk = "string", format = "string",
    overwrite = "boolean" },
  stream = { directory = "string!", point = "string!", machine = "string",
    disk = "string", base = "string", output = "any!" },
  import = { input = "any!", directory = "string!", collection = "table!",
    machine = "string", disk = "string", base = "string", format = "string",
    digest = "string" },
  merge = { directory = "string!", point = "string!", into = "string",
    through = "list", to = "string" },
  prune = { directory = "string!", collection = "any", keep = "table!" },
}

-- What a job has of a calendar is looked at here, where the file is known: one
-- that never comes is refused.
local function check_calendar(spec, what)
  local calendar, found = {}, false
  for name in pairs(schedule.fields) do
    calendar[name] = spec[name]
    found = found or name:find "^Run" and spec[name] ~= nil
  end
  if not found then return end
  local interval = calendar.RunStartInterval
  if type(interval) == "number"
    or type(interval) == "string" and #interval ~= 25 then
    local t, message, code = core.interval(interval)
    if not t then
      failure.raise(code, "%s: RunStartInterval: %s", what, message)
    end
    calendar.RunStartInterval = tostring(t)
  end
  local times, message, code = core.schedule(calendar)
  if not times then failure.raise(code, "%s: %s", what, message) end
end

-- The functions of a job are not part of it: its policy's isolated state has
-- them. `decisions` stays, for whoever submits the job without having loaded
-- the file, to be refused.
local function check_decisions(spec, out, kind, policy, what)
  for _, name in ipairs(decisions) do
    local kinds_of = decides_about[name]
    local fits = not kinds_of or kinds_of[kind]
    if spec[name] and not fits then
      failure.raise("invalid_argument", "%s: %s says nothing about a job of "
        .. "the kind %s; leave it out", what, name, kind)
    end
    out[name] = nil
    if fits and (spec[name] or policy[name]) then
      out.decisions = "not loaded"
    end
  end
end

local function check_job(key, spec, base, what, policy)
  failure.check_fields(spec, job_fields, what)
  local found
  for _, kind in ipairs(kinds) do
    if spec[kind] ~= nil then
      if found then
        failure.raise("invalid_argument", "%s: both %s and %s; a job has "
          .. "exactly one kind", what, found, kind)
      end
      found = kind
    end
  end
  if not found then
    failure.raise("invalid_argument", "%s: no kind; a job has exactly one of "
      .. "%s", what, table.concat(kinds, ", "))
  end
  local out = {}
  for name, value in pairs(spec) do out[name] = value end
  out.Name = out.Name or key
  check_decisions(spec, out, found, policy, what)
  check_calendar(spec, what)
  if kind_fields[found] then
    local inner = what .. "." .. found
    local t = {}
    if type(spec[found]) == "table" then
      for name, value in pairs(spec[found]) do t[name] = value end
      if found == "prune" and (spec.retain or policy.retain) then
        t.keep = t.keep or { last = E.decide.KEEP_ALL }
      end
    end
    failure.check_fields(type(spec[found]) == "table" and t or spec[found],
      kind_fields[found], inner)
    t.directory = path.absolute(t.directory, base)
    for _, name in ipairs { "to", "output", "input" } do
      t[name] = path.absolute(t[name], base)
    end
    for _, name in ipairs { "collection", "source" } do
      if found == "prune" and type(t[name]) == "table" then
        t[name] = t[name].CollectionId
      elseif t[name] and found ~= "prune" then
        t[name] = collection.check(t[name], base, inner .. "." .. name)
      end
    end
    out[found] = t
  end
  return out
end

-- A new, checked policy; raises.
local function check(t, base, what)
  if getmetatable(t) == Policy then return t end
  failure.check_fields(t, policy_fields, what)
  E.notify.check(t.handlers or {}, what .. ": handlers")
  local out, keys = { jobs = {}, tests = t.tests, name = t.name,
    handlers = t.handlers }, {}
  for key in pairs(t.jobs) do
    if type(key) ~= "string" or key == "" then
      failure.raise("wrong_type", "%s: jobs: names expected as keys, got %s "
        .. "(write jobs = { nightly = { ... } })", what, failure.shown(key))
    end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    out.jobs[key] = check_job(key, t.jobs[key], base,
      ("%s: jobs.%s"):format(what, failure.shown(key)), t)
  end
  return setmetatable(out, Policy)
end

-- cairn.policy(t), called with its caller's place.
function M.new(source, line, t)
  local file = type(source) == "string" and source:match("^@(.+)$")
  local what = file and ("%s:%d: cairn.policy"):format(file, line)
    or "cairn.policy"
  return check(t, path.base_of(source), what)
end

function M.is(value) return getmetatable(value) == Policy end

-- ---- loading --------------------------------------------------------------------------

-- FILE:LINE: cairn.policy: ... 'key' ...: with the line on which the key is
-- written, when the text shows it once.
local function with_line(message, name, text)
  local prefix = name .. ":"
  if message:sub(1, #prefix) ~= prefix then return message end
  local rest = message:sub(#prefix + 1)
  local line, tail = rest:match("^(%d+)(:.*)$")
  if not line then return message end
  local key = tail:match("unknown key '([%a_][%w_]*)'")
    or tail:match(": ([%a_][%w_]*) must be a ")
  if not key then return message end
  local number, found = 0, nil
  for source_line in (text .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    local code = source_line:gsub("%-%-.*$", "")
    if code:find("%f[%w_]" .. key .. "%f[^%w_]%s*=") then
      if found then return message end
      found = number
    end
  end
  return found and prefix .. found .. tail or message
end

-- The isolated state of a policy that has functions or tests, false when it has
-- none | nil, message, code, traceback.
local function decisions_of(policy, text, name, set)
  local has_any = policy.tests ~= nil
  for _, spec in pairs(policy.jobs) do
    has_any = has_any or spec.decisions ~= nil
    policy.prunes = policy.prunes or spec.prune ~= nil
  end
  if not has_any then return false end
  local object, message, code, trace = decision.load { text = text,
    name = "@" .. name, set = set }
  if not object then return nil, message, code, trace end
  policy.decisions = object
  return object
end

-- policy_load(path[, settings]) -> policy | nil, message, code[, traceback]
function M.load(name, settings)
  if type(name) ~= "string" then
    error("cairn.policy_load: the name of a file expected, got "
      .. type(name), 2)
  elseif settings ~= nil and type(settings) ~= "table" then
    error("cairn.policy_load: a table of settings expected, got "
      .. type(settings), 2)
  end
  local text, message, code = core.read_script(name, "the policy")
  if not text then return nil, message, code end
  local set = {}
  for key, value in pairs(settings or {}) do set[key] = value end
  if set.file ~= nil then
    return nil, "the setting file cannot be given: it is the policy's own path",
      "invalid_argument"
  end
  set.file = path.absolute(name)
  local chunk
  chunk, message = load(text, "@" .. name, "t",
    setmetatable({}, { __index = _G }))
  if not chunk then return nil, message, "script_syntax" end
  local ok, result = xpcall(chunk, function(err)
    if failure.is(err) then return err end
    return { raised = err, trace = debug.traceback("", 2) }
  end, set)
  if ok then
    if type(result) ~= "table" then
      return nil, ("%s: a policy file returns one table, cairn.policy{ ... }; "
        .. "this one returns %s"):format(name, result == nil and "nothing"
        or "a " .. type(result)), "wrong_type"
    end
    ok, result = pcall(check, result, path.base_of("@" .. name),
      name)
  elseif not failure.is(result) then
    message = failure.text(result.raised)
    if type(result.raised) ~= "string" then -- which would name the place
      message = ("%s raised: %s"):format(name, message)
    end
    return nil, message, "script_error", result.trace
  end
  if not ok then
    if not failure.is(result) then error(result, 0) end
    return nil, with_line(result.message, name, text), result.code
  end
  result.name = result.name or name:match("([^/]*)$"):gsub("%.lua$", "")
  result.file = set.file
  result.version = core.fingerprint(text)
  local decides, message_of, id, trace = decisions_of(result, text, name, set)
  if decides == nil then return nil, message_of, id, trace end
  for key, spec in pairs(result.jobs) do
    spec.handlers = result.handlers
    if spec.decisions then
      spec.decisions = { object = decides, key = key, policy = result.name,
        version = result.version, prunes = result.prunes }
    end
    spec.policy = result.name
    spec.policy_key = key
    spec.policy_file = set.file
    spec.policy_version = result.version
    failure.origin[spec] = ("%s: jobs.%s"):format(name, failure.shown(key))
  end
  return result
end

return M
