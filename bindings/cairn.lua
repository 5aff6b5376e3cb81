-- Cairn in Lua: `local cairn = require "cairn"`. No globals, no loop and no
-- threads until an engine is opened. The functions are described in
-- cairn/api.lua, which docs/lua-api.md and help() are made from.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"
local collection = require "cairn.collection"
local decide = require "cairn.decide"
local engine = require "cairn.engine"
local luv = require "cairn.luv"
local metrics = require "cairn.metrics"
local notify = require "cairn.notify"
local policy = require "cairn.policy"
local private = require "cairn.private"
local recovery = require "cairn.recovery"
local schedule = require "cairn.schedule"
local task = require "cairn.task"

assert(engine.notify == notify and engine.recovery == recovery
  and engine.decide == decide and engine.metrics == metrics)

local cairn = {
  version = core.version,
  null = core.null,
  errors = failure.errors,
  properties = engine.properties,

  open = engine.open,
  kind = engine.kind,
  attach = luv.attach,
  spawn = task.spawn,
  sleep = task.sleep,

  collection = core.with_source(collection.new),
  collection_from = collection.from,
  policy = core.with_source(policy.new),
  policy_load = policy.load,
  settings = core.settings,
  schedule = schedule.new,

  points = private.points,
  keep = private.keep,
  doctor = core.with_source(private.doctor),
  verify = core.with_source(private.verify),
  restore = core.with_source(private.restore),
  stream = core.with_source(private.stream),
  import = core.with_source(private.import),
  merge = core.with_source(private.merge),
  prune = core.with_source(private.prune),

  json_encode = core.json_encode,
  json_decode = core.json_decode,
  is_job = core.is_job,
  is_engine = core.is_engine,
  value_map = core.value_map,
}

-- A datetime or an interval from text or seconds; raises when it is none.
local function datetimes(name, make)
  cairn[name] = function(value)
    if value == nil then
      error(("cairn.%s: text, seconds or a datetime expected, got nil")
        :format(name), 2)
    end
    local t, message = make(value)
    if not t then error(("cairn.%s: %s"):format(name, message), 2) end
    return t
  end
end
datetimes("datetime", core.datetime)
datetimes("interval", core.interval)

-- help([name]) -> text: what a name of the module is; without one, all names.
function cairn.help(name)
  return require "cairn.api".help(name)
end

return cairn
