-- Decision functions of a policy, run in an isolated Lua state with a budget of
-- instructions, time and memory (bindings/guard.c).

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"

local M = {}

-- Of each call and of loading.
M.limits = { instructions = 10000000, seconds = 1, bytes = 16 << 20 }
local least = { instructions = 1000, seconds = 0.001, bytes = 128 << 10 }
local most = { instructions = 1 << 50, seconds = 3600, bytes = 1 << 30 }

local names = { "base", "select", "on_failure", "retain", "throttle", "notify" }
M.names = names
local is_name = {}
for _, name in ipairs(names) do is_name[name] = true end

local Decisions = { __name = "cairn.decisions" }
Decisions.__index = Decisions

local function check_name(name, method)
  if is_name[name] then return end
  error(("%s: '%s' is not the name of a decision; did you mean '%s'? "
    .. "(valid: %s)"):format(method, failure.shown(name),
    failure.nearest(tostring(name), names), table.concat(names, ", ")), 3)
end

local function check_limits(given)
  local limits = {}
  failure.check_fields(given or {}, { instructions = "number",
    seconds = "number", bytes = "number" }, "decision.load: limits")
  for name, default in pairs(M.limits) do
    local value = given and given[name] or default
    if name ~= "seconds" then value = math.tointeger(value) end
    if not value or not (value >= least[name] and value <= most[name]) then
      failure.raise("out_of_range", "decision.load: limits.%s must be a%s "
        .. "from %s to %s, got %s", name, name == "seconds" and " number"
        or "n integer", least[name], most[name],
        failure.shown(given[name]))
    end
    limits[name] = value
  end
  return limits
end

-- A copy that later changes do not reach: the state may be made again. What
-- cannot cross is left in for the state to refuse.
local function snapshot(value, depth)
  if type(value) ~= "table" or depth > 32 or getmetatable(value) then
    return value
  end
  local copy = {}
  for key, inner in next, value do copy[key] = snapshot(inner, depth + 1) end
  return copy
end

local function report(self, printed)
  for line in printed:gmatch("[^\n]+") do
    self.log(("%s: %s"):format(self.file, line))
  end
end

-- load{ text =, name = "@file", set = settings, jobs = the jobs by key, so that
-- others are left out, limits =, log = function(line) } -> decisions
--   | nil, message, code, traceback
function M.load(options)
  failure.check_fields(options, { text = "string!", name = "string!",
    set = "table", jobs = "table", limits = "table", log = "function" },
    "decision.load")
  local limits = check_limits(options.limits)
  local self = setmetatable({ file = options.name:gsub("^[@=]", ""),
    log = options.log or function(line)
      io.stderr:write("cairn: ", line, "\n")
    end }, Decisions)
  local state, list, code, traceback, printed = core.decisions(options.text,
    options.name, snapshot(options.set or {}, 1), limits.instructions,
    limits.seconds, limits.bytes)
  if printed then report(self, printed) end
  if not state then return nil, list, code, traceback end
  self.state, self.list, self.top, self.jobs = state, {}, {}, {}
  self.test_names = {}
  for _, entry in ipairs(list) do
    if entry.name == "test" then
      table.insert(self.test_names, entry.key)
      goto continue
    end
    if entry.key == nil then
      self.top[entry.name] = true
    elseif options.jobs == nil or options.jobs[entry.key] ~= nil then
      self.jobs[entry.key] = self.jobs[entry.key] or {}
      self.jobs[entry.key][entry.name] = true
    else
      goto continue
    end
    self.list[#self.list + 1] = entry
    ::continue::
  end
  table.sort(self.test_names)
  table.sort(self.list, function(a, b)
    if a.key ~= b.key then return (a.key or "") < (b.key or "") end
    return a.name < b.name
  end)
  return self
end

-- Whether the job `key` (nil: none) has this decision, its own or the policy's.
function Decisions:has(key, name)
  check_name(name, "has")
  local own = key ~= nil and self.jobs[key]
  return (own and own[name] or self.top[name]) == true
end

-- call(key, name, ...) -> true, result | false, message, code, traceback
function Decisions:call(key, name, ...)
  local ok, result, code, traceback, printed = self.state:call(key, name, ...)
  if printed then report(self, printed) end
  if ok then return true, result end
  return false, result, code, traceback
end

-- The names of the policy's tests, sorted.
function Decisions:tests()
  return table.move(self.test_names, 1, #self.test_names, 1, {})
end

-- test(name) -> true | false, message, code, traceback: calls the test with the
-- policy, as the file returned it in this state. What it changed is gone then,
-- from the policy, its variables and the library: neither the next test nor a
-- decision finds it.
function Decisions:test(name)
  local ok, message, code, traceback = self:call(name, "test")
  self:forget()
  if ok then return true end
  return false, message, code, traceback
end

-- names() -> list of { name =, key = }, the policy's own without a key first
function Decisions:names()
  local copy = {}
  for i, entry in ipairs(self.list) do
    copy[i] = { name = entry.name, key = entry.key }
  end
  return copy
end

-- Makes the state anew with the next call, so that nothing is left of earlier
-- ones.
function Decisions:forget() self.state:forget() end

-- Bytes that the state uses now; 0 when it has been stopped, or forgotten, and is
-- made again with the next call.
function Decisions:used() return self.state:used() end

function Decisions:close() self.state:close() end
Decisions.__close = Decisions.close

return M
