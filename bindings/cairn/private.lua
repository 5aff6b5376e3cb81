-- Work on exports without an engine of one's own: cairn.points reads,
-- cairn.verify, restore, stream, import, merge and prune submit one job to a
-- private engine in memory and wait for it (with dry_run they plan it). Paths
-- are relative to the working directory.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local collection = require "cairn.collection"
local failure = require "cairn.failure"
local path = require "cairn.path"

local M = {}

function M.points(directory)
  if type(directory) ~= "string" or directory == "" then
    error("cairn.points: an export directory expected, got "
      .. (directory == "" and "an empty string" or type(directory)), 2)
  end
  return core.points(path.absolute(directory))
end

-- keep(points, rules) -> for each of the points, of one collection and oldest
-- first, the list of rules that keep it | nil, message, code
function M.keep(points, rules)
  if type(points) ~= "table" or failure.not_a_list(points) then
    error("cairn.keep: a list of points expected, got " .. (type(points)
      == "table" and failure.not_a_list(points) or type(points)), 2)
  elseif type(rules) ~= "table" then
    error("cairn.keep: a table of rules expected, got " .. type(rules), 2)
  end
  local list = {}
  for i, point in ipairs(points) do
    if type(point) ~= "table" then
      error(("cairn.keep: point %d: a table expected, got %s"):format(i,
        type(point)), 2)
    end
    local time = point.time
    list[i] = { time = type(time) == "userdata" and tostring(time) or time,
      id = point.ReferencePointGroupId }
  end
  if not list[1] then return {} end
  local text, message, code = core.json_encode { keep = rules, points = list }
  if not text then return nil, "cairn.keep: " .. message, code end
  return core.keep(text)
end

local doctor_fields = { fix = "boolean", also = "list", collection = "table" }

-- doctor(directory[, options]) -> report | nil, message, code
function M.doctor(source, _, directory, options)
  if type(directory) ~= "string" or directory == "" then
    error("cairn.doctor: an export directory expected, got "
      .. (directory == "" and "an empty string" or type(directory)), 2)
  end
  local ok, encoded = pcall(function()
    options = options or {}
    failure.check_fields(options, doctor_fields, "cairn.doctor")
    local copy = { fix = options.fix == true, also = {} }
    for i, other in ipairs(options.also or {}) do
      copy.also[i] = path.absolute(other)
    end
    if #copy.also == 0 then copy.also = nil end
    if options.collection then
      copy.collection = collection.check(options.collection,
        path.base_of(source), "cairn.doctor: collection")
    end
    return assert(core.json_encode(copy))
  end)
  if not ok then
    if failure.is(encoded) then return failure.results(encoded) end
    error(encoded, 0)
  end
  return core.doctor(path.absolute(directory), encoded)
end

local function run(kind, spec, what)
  -- before anything is opened: where nobody may wait this raises
  local outer = E.task_of[coroutine.running()]
  local engine, message, code = E.open {}
  if not engine then return nil, message, code end
  local ok, results = pcall(function()
    if not outer then E.check_wait(core.state(engine), what, 4) end
    local job
    job, message, code = engine:submit { Name = what, [kind] = spec }
    if not job then return table.pack(nil, message, code) end
    local state = job:wait()
    local report = job:report()
    if state == "Completed" or state == "Completed With Warnings" then
      return table.pack(report or {})
    end
    local row = failure.errors.job_failed
    local number = job:number "ErrorCode"
    for _, candidate in ipairs(failure.errors) do
      if candidate.ErrorCode == number then row = candidate end
    end
    return table.pack(nil, job.ErrorSummaryDescription
      or job.ErrorDescription or ("%s: the job is %s"):format(what, state),
      row.code, report)
  end)
  local closed, why = pcall(engine.close, engine, { mode = "kill" })
  if not ok then error(results, 0) end
  if not closed then error(why, 0) end
  return table.unpack(results, 1, results.n)
end

local verify_fields = { directory = "string!", point = "string",
  depth = "string", source = "table" }
local restore_fields = { directory = "string!", point = "string!",
  to = "string!", machine = "string", disk = "string", format = "string",
  overwrite = "boolean" }

local stream_fields = { directory = "string!", point = "string!",
  machine = "string", disk = "string", base = "string", output = "any!",
  dry_run = "boolean" }
local import_fields = { input = "any!", directory = "string!",
  collection = "table!", machine = "string", disk = "string", base = "string",
  format = "string", digest = "string", dry_run = "boolean" }

local function checked(source, t, fields, what)
  failure.check_fields(t, fields, what)
  local copy = {}
  for key, value in pairs(t) do copy[key] = value end
  for _, name in ipairs { "source", "collection" } do
    if copy[name] and fields[name]:find "^table" then
      copy[name] = collection.check(copy[name], path.base_of(source),
        what .. ": " .. name)
    end
  end
  return copy
end

-- What a job would do.
local function plan(kind, spec, what)
  local engine, message, code = E.open {}
  if not engine then return nil, message, code end
  local results = table.pack(pcall(engine.plan, engine,
    { Name = what, [kind] = spec }))
  pcall(engine.close, engine, { mode = "kill" })
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

-- kind{...} -> report | nil, message, code[, report]
local function caller(kind, fields)
  local what = "cairn." .. kind
  return function(source, _, t)
    local ok, spec = pcall(checked, source, t, fields, what)
    if not ok then
      if failure.is(spec) then return failure.results(spec) end
      error(spec, 0)
    end
    local is_dry = spec.dry_run
    spec.dry_run = nil
    return (is_dry and plan or run)(kind, spec, what)
  end
end

M.verify = caller("verify", verify_fields)
M.restore = caller("restore", restore_fields)
M.stream = caller("stream", stream_fields)
M.import = caller("import", import_fields)
M.merge = caller("merge", { directory = "string!", point = "string!",
  into = "string", through = "list", to = "string", dry_run = "boolean" })
M.prune = caller("prune", { directory = "string!", collection = "any",
  keep = "table!", dry_run = "boolean" })

return M
