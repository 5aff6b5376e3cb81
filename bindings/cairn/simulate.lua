-- The simulation of policies: their jobs in a real engine, on a virtual clock,
-- with bodies that only take time.
--
-- What the engine decides is decided by the engine's own code: when a job is
-- due, who waits for a place or a directory, what is skipped, tried again or
-- made up, which points a prune keeps. What a run would do to the world is
-- assumed: how long it takes (from sizes and a rate, from history, or as the
-- caller says), whether it fails (as the caller says), and what it leaves: an
-- export one point, in full or on the newest one; a prune what its rules keep.
-- Nothing is exported, and nothing is written.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"
local schedule = require "cairn.schedule"

local M = {}

local DAY_S = 86400
M.RATE = 100e6     -- bytes a second, where the caller says nothing
M.CHANGED = 5      -- percent of a disk between two increments
M.SECONDS = 60     -- of a run that nothing is known of
local LEAST_S = 1  -- of a run that something is known of
local DEPTH_LIMIT = 32
local TURNS_MAX = 50000000

local kinds = { "export", "verify", "restore", "stream", "import", "merge",
  "prune", "run" }
local calendar = { "RunMonth", "RunDay", "RunDayOfWeek", "RunStartInterval" }

function M.kind_of(spec)
  for _, kind in ipairs(kinds) do
    if spec[kind] ~= nil then return kind end
  end
end

-- ---- assumptions ---------------------------------------------------------------------

local assumed = { "seconds", "fails", "attempts", "changed" }

local function number_in(value, low, high)
  local n = tonumber(value)
  return n and n >= low and n <= high and n or nil
end

-- What a value of `fails` says: a function of the run's number.
local function failing(value)
  local n = math.tointeger(tonumber(value:match "^(%d+)$"
    or value:match "^(%d+)%a%a$"))
  if n and n > 0 then return function(run) return run == n end end
  n = math.tointeger(tonumber(value:match "^every:(%d+)$"))
  if n and n > 0 then return function(run) return run % n == 0 end end
  n = math.tointeger(tonumber(value:match "^first:(%d+)$"))
  if n then return function(run) return run <= n end end
  if value == "all" then return function() return true end end
  if value == "none" then return function() return false end end
end

local readers = {
  seconds = function(value)
    local n = number_in(value, 0, 365 * DAY_S)
    if n then return n end
    local t = core.interval(value)
    return t and t.kind == "interval" and t.microseconds / 1e6 or nil
  end,
  fails = failing,
  attempts = function(value)
    if value == "all" then return math.huge end
    return math.tointeger(number_in(value, 1, 1000))
  end,
  changed = function(value) return number_in(value, 0, 100) end,
}
local valid = {
  seconds = "seconds, or an interval such as 2h",
  fails = "a run's number (2, 2nd), every:N, first:N, all or none",
  attempts = "1 to 1000 attempts, or all",
  changed = "0 to 100 percent",
}

-- assume(list of "KEY.what=value") -> { key = { what = } } | nil, message.
-- KEY is a job's key in its policy, POLICY:KEY, or *.
function M.assume(list)
  local out = {}
  for _, text in ipairs(list) do
    local key, what, value = text:match "^(.+)%.([%a_]+)=(.*)$"
    if not key then
      return nil, ("%s: KEY.seconds=, KEY.fails=, KEY.attempts= or "
        .. "KEY.changed= expected"):format(failure.shown(text))
    elseif not readers[what] then
      return nil, ("%s: nothing is assumed of '%s'; did you mean '%s'? "
        .. "(valid: %s)"):format(failure.shown(text), failure.shown(what),
        failure.nearest(what, assumed), table.concat(assumed, ", "))
    end
    local read = readers[what](value)
    if not read then
      return nil, ("%s: %s expected"):format(failure.shown(text), valid[what])
    end
    out[key] = out[key] or {}
    out[key][what] = read
  end
  return out
end

-- The middle one of how long the last 20 good runs took, by the job's name.
local function durations_of(history)
  local by_name = {}
  for _, record in ipairs(history or {}) do
    local state, length = record.JobState, record.ElapsedTime
    local t = type(length) == "string" and core.interval(length)
    if t and type(record.Name) == "string" and (state == "Completed"
      or state == "Completed With Warnings" or state == 7
      or state == 32768) then
      local list = by_name[record.Name] or {}
      by_name[record.Name] = list
      list[#list + 1] = t.microseconds / 1e6
    end
  end
  for name, list in pairs(by_name) do
    local last = table.move(list, math.max(1, #list - 19), #list, 1, {})
    table.sort(last)
    by_name[name] = { seconds = last[(#last + 1) // 2], count = #last }
  end
  return by_name
end

-- ---- points that would exist ------------------------------------------------------------

-- A directory's points, oldest first, as the simulation left them.
local function directory_of(sim, name)
  local d = sim.directories[name]
  if d then return d end
  d = { name = name, points = {}, made = 0, pruned = 0, most = 0,
    most_bytes = 0 }
  sim.directories[name] = d
  sim.directory_names[#sim.directory_names + 1] = name
  local by_id = {}
  for _, found in ipairs(sim.options.points and sim.options.points(name)
    or {}) do
    local us = math.tointeger(found.unix_us)
    if found.kind ~= "marker" and not found.error and us
      and us <= sim.from_us then
      local point = { unix_us = us, time = found.time, is_old = true,
        id = found.ReferencePointGroupId, collection = found.CollectionId,
        bytes = math.tointeger(found.bytes) or 0 }
      point.base = by_id[found.BaseReferencePointGroupId]
      by_id[point.id] = point
      d.points[#d.points + 1] = point
    end
  end
  d.found = #d.points
  return d
end

local function depth_of(point)
  local depth = 0
  while point do
    depth, point = depth + 1, point.base
  end
  return depth
end

local function note_size(d)
  local bytes = 0
  for _, point in ipairs(d.points) do bytes = bytes + point.bytes end
  d.bytes = bytes
  d.most = math.max(d.most, #d.points)
  d.most_bytes = math.max(d.most_bytes, bytes)
end

-- The newest point that an increment of this export would be based on.
local function base_of(d, spec)
  if spec.base == nil or spec.base == "none" then return nil end
  local id = spec.collection.CollectionId
  for i = #d.points, 1, -1 do
    local point = d.points[i]
    if point.collection:upper() == id:upper() and (spec.base == "latest"
      or point.id and point.id:upper():find(spec.base:upper(), 1, true) == 1)
    then
      if depth_of(point) >= (spec.depth_limit or DEPTH_LIMIT) then
        return nil, "the chain is at its limit"
      end
      return point
    end
  end
  return nil, "there is no base yet"
end

-- Which points of a directory go: a set, the reasons of the others, and what
-- has to be merged first: { point =, onto = }.
local function judge(d, spec)
  local groups, order = {}, {}
  for _, point in ipairs(d.points) do
    local id = point.collection:upper()
    if not spec.collection or spec.collection:upper() == id then
      if not groups[id] then
        groups[id] = {}
        order[#order + 1] = id
      end
      table.insert(groups[id], point)
    end
  end
  local goes, reasons, merges = {}, {}, {}
  for _, id in ipairs(order) do
    local list = {}
    for i, point in ipairs(groups[id]) do
      list[i] = { time = point.time, id = point.id }
    end
    local kept, message = core.keep(assert(core.json_encode {
      keep = spec.keep, points = list }))
    if not kept then return nil, message end
    for i, point in ipairs(groups[id]) do
      if #kept[i] == 0 then goes[point] = true else reasons[point] = kept[i] end
    end
  end
  for _, point in ipairs(d.points) do
    if not goes[point] and point.base and goes[point.base] then
      local onto, bytes = point.base, point.bytes
      while onto and goes[onto] do
        bytes = bytes + onto.bytes
        onto = onto.base
      end
      if not onto then bytes = point.whole or bytes end
      merges[#merges + 1] = { point = point, onto = onto,
        bytes = math.min(bytes, point.whole or bytes) }
    end
  end
  return goes, reasons, merges
end

-- ---- how long a run takes ---------------------------------------------------------------

-- Bytes that the disks of a collection hold | nil, the path that has none.
local function size_of(sim, collection)
  local sum = 0
  for _, machine in ipairs(collection.machines) do
    for _, disk in ipairs(machine.disks) do
      local bytes = sim.sizes[disk.path]
      if bytes == nil then
        bytes = sim.options.size and sim.options.size(disk.path) or false
        sim.sizes[disk.path] = bytes
      end
      if not bytes then return nil, disk.path end
      sum = sum + bytes
    end
  end
  return sum
end

local function is_tracked(spec)
  local function fast(name) return name == "clone" or name == "bitmap" end
  for _, machine in ipairs(spec.collection.machines) do
    for _, disk in ipairs(machine.disks) do
      if not fast(disk.tracker or spec.tracker) then return false end
    end
  end
  return true
end

-- plans[kind](sim, entry) -> bytes to be read, or nil and why that is not known;
-- and a function that does to the points what the run would have done.
local plans = {}

function plans.export(sim, entry)
  local spec = entry.spec.export
  local d = directory_of(sim, spec.directory)
  local base, why = base_of(d, spec)
  local whole, missing = size_of(sim, spec.collection)
  local changed = (entry.assume.changed or M.CHANGED) / 100
  local bytes = whole and (base and is_tracked(spec) and whole * changed
    or whole)
  local started_us = core.now(sim.engine)
  return bytes, missing and missing .. " is not there", function(run)
    local point = { unix_us = started_us, time = sim.clock:local_time(started_us),
      collection = spec.collection.CollectionId, base = base,
      whole = whole or 0, bytes = (whole or 0) * (base and changed or 1) // 1,
      by = entry }
    d.points[#d.points + 1] = point
    d.made = d.made + 1
    note_size(d)
    run.point, run.why_full = base and "increment" or "full", not base and why
    or nil
  end
end

function plans.verify(sim, entry)
  local spec = entry.spec.verify
  if spec.depth == "set" or spec.depth == "chain" then return 0 end
  local d = directory_of(sim, spec.directory)
  local bytes = 0
  for _, point in ipairs(d.points) do bytes = bytes + point.bytes end
  if spec.source then bytes = bytes + (size_of(sim, spec.source) or 0) end
  return not spec.point and bytes or nil, "it is of one point"
end

function plans.prune(sim, entry)
  local spec = entry.spec.prune
  local d = directory_of(sim, spec.directory)
  local goes, reasons, merges = judge(d, spec)
  if not goes then failure.raise("invalid_argument", "%s", reasons) end
  local bytes = 0
  for _, merge in ipairs(merges) do bytes = bytes + merge.bytes end
  return bytes, nil, function(run)
    local left, removed = {}, {}
    for _, merge in ipairs(merges) do
      merge.point.base, merge.point.bytes = merge.onto, merge.bytes
    end
    for _, point in ipairs(d.points) do
      if goes[point] then
        removed[#removed + 1] = point.time
        point.base = nil
      else
        left[#left + 1] = point
        point.reasons = reasons[point] or point.reasons
      end
    end
    d.points, d.pruned = left, d.pruned + #removed
    note_size(d)
    run.pruned, run.merged, run.kept = #removed, #merges, #left
    if #removed > 0 then
      table.insert(sim.prunes, { unix_us = core.now(sim.engine), entry = entry,
        directory = d.name, removed = removed, merged = #merges,
        kept = #left })
    end
  end
end

-- Seconds, where they are from, and what a good end leaves.
local function length_of(sim, entry)
  local kind = entry.kind
  local bytes, why, finish
  if plans[kind] then bytes, why, finish = plans[kind](sim, entry) end
  if entry.assume.seconds then
    return entry.assume.seconds, "as assumed", finish
  end
  local known = sim.durations[entry.spec.Name]
  if known then
    return math.max(known.seconds, 0.001), ("the middle of %d run%s in the "
      .. "history"):format(known.count, known.count == 1 and "" or "s"), finish
  elseif bytes then
    return math.max(LEAST_S, bytes / sim.rate), "size and rate", finish
  end
  return M.SECONDS, why and "assumed, " .. why or "assumed", finish
end

-- ---- the bodies ----------------------------------------------------------------------------

local function body(sim, job)
  local entry = sim.by_job[job]
  if not entry then return end
  local run = entry.current
  local seconds, from, finish = length_of(sim, entry)
  run.length, run.length_from = seconds, from
  entry.length_from = from
  if seconds > 0 then job:sleep(seconds) end
  local fails = entry.assume.fails
  if fails and fails(job.run_number)
    and job.attempts <= (entry.assume.attempts or 1) then
    error { code = "job_failed", message = "assumed to fail" }
  end
  if finish then finish(run) end
end

-- ---- what happens ----------------------------------------------------------------------------

local is_well = { ["Completed"] = true, ["Completed With Warnings"] = true }

-- Why a run began later than it could have: whoever gave up its directory just
-- now, else whoever gave up a place of its queue, and has the others.
local function blockers_of(sim, entry, now_us)
  local names, seen = {}, { [entry] = true }
  local function take(other)
    if not seen[other] then
      seen[other] = true
      names[#names + 1] = other.key
    end
  end
  local ended = sim.ended_us == now_us and sim.ended or {}
  for _, other in ipairs(ended) do
    if entry.directory and other.directory == entry.directory then
      take(other)
    end
  end
  if names[1] then return "directory", names end
  for _, other in ipairs(ended) do
    if other.queue == entry.queue then take(other) end
  end
  for run in pairs(sim.running) do
    if run.entry.queue == entry.queue then take(run.entry) end
  end
  table.sort(names)
  return "queue", names
end

local function began(sim, entry, ev)
  local now_us = ev.time
  local could_us = entry.retry_us or ev.due or entry.could_us or now_us
  local run = { entry = entry, run_number = ev.run_number, due_us = ev.due,
    start_us = now_us, attempt = entry.job.attempts,
    wait_us = math.max(0, now_us - could_us) }
  entry.retry_us, entry.could_us = nil, nil
  sim.undecided[entry] = nil
  if run.wait_us > 0 then
    local hole = sim.last_down
    if hole and could_us < hole.to_us and now_us - hole.to_us < 1000000 then
      run.reason, run.by = "down", {}
    else
      run.reason, run.by = blockers_of(sim, entry, now_us)
    end
  end
  for other in pairs(sim.running) do
    run.overlaps = run.overlaps or {}
    table.insert(run.overlaps, other)
  end
  entry.current = run
  sim.running[run], sim.running_count = true, sim.running_count + 1
  run.concurrency = sim.running_count
  sim.runs[#sim.runs + 1] = run
  entry.runs[#entry.runs + 1] = run
  if sim.running_count > sim.peak.count then
    local names = {}
    for other in pairs(sim.running) do names[#names + 1] = other.entry.key end
    table.sort(names)
    sim.peak = { count = sim.running_count, unix_us = now_us, jobs = names }
  end
end

local function pair_of(sim, a, b)
  if b.number < a.number then a, b = b, a end
  local id = a.number * 65536 + b.number
  local pair = sim.pairs[id]
  if not pair then
    pair = { a = a, b = b, count = 0, us = 0 }
    sim.pairs[id] = pair
  end
  return pair
end

local function end_overlaps(sim, run, now_us)
  for _, other in ipairs(run.overlaps or {}) do
    local until_us = math.min(now_us, other.end_us or now_us)
    if until_us > run.start_us and other.entry ~= run.entry then
      local pair = pair_of(sim, run.entry, other.entry)
      pair.count, pair.us = pair.count + 1, pair.us + until_us - run.start_us
    end
  end
  run.overlaps = nil
end

local function over(sim, entry, ev)
  local run = entry.current
  if not run or run.end_us then return end
  run.end_us, run.state = ev.time, ev.JobState
  run.is_retried = ev.is_retried or nil
  sim.running[run], sim.running_count = nil, sim.running_count - 1
  end_overlaps(sim, run, ev.time)
  if sim.ended_us ~= ev.time then sim.ended_us, sim.ended = ev.time, {} end
  table.insert(sim.ended, entry)
  if ev.is_retried then sim.undecided[entry] = run end
end

-- When what has failed is tried again: the engine knows it at once, or when a
-- policy's function has answered, some turns later.
local function note_retries(sim)
  local now_us = core.now(sim.engine)
  for entry, run in pairs(sim.undecided) do
    local retry = entry.job:number "ScheduledStartTime"
    if math.type(retry) == "integer" and retry > now_us then
      entry.retry_us, run.retry_us = retry, retry
    end
    sim.undecided[entry] = nil
  end
end

local function listen(sim)
  local engine = sim.engine
  -- what the closing of the engine ends has not ended in the simulation
  local function on(name, fn)
    engine:on(name, function(ev)
      if not sim.is_over then fn(ev) end
    end)
  end
  on("JobState", function(ev)
    local entry = sim.by_job[ev.job]
    if not entry then return end
    entry.state = ev.JobState
    if ev.JobState == "Starting" then began(sim, entry, ev) end
  end)
  on("RunEnded", function(ev)
    local entry = sim.by_job[ev.job]
    if entry then over(sim, entry, ev) end
  end)
  on("Skipped", function(ev)
    local entry = sim.by_job[ev.job]
    if not entry then return end
    local skip = { entry = entry, unix_us = ev.time, first_us = ev.due,
      last_us = ev.due_last, count = ev.count, reason = ev.reason }
    sim.skips[#sim.skips + 1] = skip
    entry.skipped[ev.reason] = (entry.skipped[ev.reason] or 0) + ev.count
    entry.skip_count = entry.skip_count + ev.count
  end)
end

-- ---- the jobs ------------------------------------------------------------------------------

local function is_set(value) return value ~= nil and value ~= core.null end

-- The schedule of a job for what the clock does to it | nil: it has none.
local function schedule_of(spec)
  local has_calendar = false
  for _, name in ipairs(calendar) do
    has_calendar = has_calendar or is_set(spec[name])
  end
  if not has_calendar then return nil end
  local copy = {}
  for name in pairs(schedule.fields) do copy[name] = spec[name] end
  copy.UntilTime, copy.JobRunTimes = nil, 0
  return core.schedule(copy)
end

-- Due times that a change of the clock moves, through the window.
local function moved_of(sim, entry)
  local after = (sim.from_us - 1) / 1e6
  while entry.schedule do
    local list = entry.schedule:next(500, after)
    for _, due in ipairs(list) do
      if due.unix_us > sim.to_us then return end
      if due.kind ~= "normal" then
        entry.moved[due.unix_us] = { kind = due.kind,
          nominals = due.nominals or { due.nominal } }
      end
    end
    if #list < 500 then return end
    after = list[#list].unix_us / 1e6
  end
end

local function assumed_of(options, policy, key)
  local out = {}
  for _, name in ipairs { "*", key, policy .. ":" .. key } do
    for what, value in pairs(options.assume and options.assume[name] or {}) do
      out[what] = value
    end
  end
  return out
end

local function add_job(sim, policy, key, spec, is_one)
  local copy = {}
  for name, value in pairs(spec) do copy[name] = value end
  local origin = failure.origin[spec]
  failure.origin[copy] = origin
  if not is_set(copy.zone) then copy.zone = sim.options.zone end
  copy.Notify, copy.wait = nil, nil
  local kind = M.kind_of(copy)
  local entry = { number = #sim.entries + 1,
    key = is_one and key or policy.name .. ":" .. key,
    policy = policy.name, policy_key = key, spec = copy, kind = kind,
    queue = is_set(copy.queue) and copy.queue or "default", runs = {},
    skipped = {}, skip_count = 0, moved = {}, state = "New",
    assume = assumed_of(sim.options, policy.name, key) }
  if kind == "export" or kind == "prune" or kind == "import"
    or kind == "merge" then
    entry.directory = copy[kind].to or copy[kind].directory
  end
  local message
  entry.schedule, message = schedule_of(copy)
  if message then
    return nil, (origin and origin .. ": " or "") .. message,
      "invalid_argument"
  end
  if is_set(copy.RecoveryJob) then
    -- an InstanceID of another engine's
    copy.RecoveryJob = nil
    sim.note("%s: RecoveryJob is a job of another engine, left out", entry.key)
  end
  -- on_failure is asked as ever; these are about disks, points and people
  local unasked = kind == "export" and { "base", "select", "throttle", "notify" }
    or kind == "prune" and { "retain", "notify" } or { "notify" }
  for _, name in ipairs(unasked) do
    local decider = copy.decisions
    if decider and decider.object:has(decider.key, name) then
      sim.note("%s: its function %s is not asked; the run is as without it",
        entry.key, name)
    end
  end
  if copy.RecoveryAction == "Other" or copy.RecoveryAction == 1 then
    sim.note("%s: its recovery handler is not called; a failed run goes on "
      .. "with the next", entry.key)
  end
  sim.entries[entry.number] = entry
  sim.specs[entry.number] = copy
  return entry
end

local function keys_of(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- An assumption about nobody is a mistake of the caller's.
local function check_assume(sim)
  local names, list = { ["*"] = true }, {}
  for _, entry in ipairs(sim.entries) do
    names[entry.policy_key] = true
    names[entry.policy .. ":" .. entry.policy_key] = true
    list[#list + 1] = entry.policy_key
  end
  for _, key in ipairs(keys_of(sim.options.assume or {})) do
    if not names[key] then
      return nil, ("assumed of '%s', and there is no such job; did you mean "
        .. "'%s'?"):format(failure.shown(key), list[1]
        and failure.nearest(key, list) or "*"), "invalid_argument"
    end
  end
  return true
end

-- ---- time ------------------------------------------------------------------------------------

-- Runs the engine until it has nothing to do at this moment.
local function settle(sim)
  while sim.engine:step() do
    sim.turns = sim.turns + 1
    if sim.turns > TURNS_MAX then
      failure.raise("internal", "the simulation does not come to rest at %s",
        tostring(sim.engine:now()))
    end
  end
  note_retries(sim)
end

local function advance_to(sim, us)
  local now = core.now(sim.engine)
  if us > now then core.advance(sim.engine, us - now) end
end

local function drive(sim)
  local engine = sim.engine
  local down, next_down = sim.options.down or {}, 1
  while true do
    settle(sim)
    local now = core.now(engine)
    local wait = core.timeout(engine)
    local next_us = wait < 0 and sim.to_us or now + math.max(wait, 1)
    local hole = down[next_down]
    if hole and hole.from_us < next_us and hole.from_us < sim.to_us then
      -- all that comes up to its beginning has come: nothing happens in it
      advance_to(sim, math.min(hole.to_us, sim.to_us))
      sim.last_down, next_down = hole, next_down + 1
    elseif next_us >= sim.to_us then
      -- what is due at the end itself is not of this month
      advance_to(sim, sim.to_us)
      return
    else
      advance_to(sim, next_us)
    end
  end
end

-- What the clock adds to UTC then.
local function offset_us(clock, us)
  local sign, minutes = clock:local_time(us):match "([+-])(%d%d%d)$"
  return (sign == "-" and -60000000 or 60000000) * math.tointeger(minutes)
end

-- ---- run -------------------------------------------------------------------------------------

local option_fields = { from_us = "number!", days = "number", zone = "string",
  assume = "table", rate = "number", history = "list", queues = "table",
  down = "list", size = "function", points = "function" }

-- run(policies, options) -> what happened | nil, message, code
--   options: from_us; days (30); zone (the host's: of jobs that name none, of
--   points and of days);
--   assume (as M.assume gives); rate (bytes a second); history (records as
--   engine:history gives them); queues (as cairn.open's); down (a list of
--   { from_us, to_us }, rising: the host sleeps); size (function of a path ->
--   bytes or nil); points (function of a directory -> as cairn.points).
function M.run(policies, options)
  failure.check_fields(options, option_fields, "simulate")
  local days = options.days or 30
  local sim = { options = options, entries = {}, specs = {}, by_job = {},
    runs = {}, skips = {}, prunes = {}, notes = {}, pairs = {},
    running = {}, running_count = 0, directories = {}, directory_names = {},
    sizes = {}, undecided = {}, peak = { count = 0, jobs = {} }, turns = 0,
    rate = options.rate or M.RATE, durations = durations_of(options.history),
    from_us = options.from_us,
    to_us = options.from_us + (days * DAY_S * 1e6) // 1 | 0 }
  function sim.note(format, ...)
    sim.notes[#sim.notes + 1] = format:format(...)
  end
  for _, policy in ipairs(policies) do
    for _, key in ipairs(keys_of(policy.jobs)) do
      local entry, message, code = add_job(sim, policy, key, policy.jobs[key],
        #policies == 1)
      if not entry then return nil, message, code end
    end
  end
  local known, message, code = check_assume(sim)
  if not known then return nil, message, code end
  local clock
  clock, message, code = core.schedule { RunStartInterval =
    "00000000000000.000000:000", zone = options.zone, JobRunTimes = 0 }
  if not clock then return nil, message, code end
  sim.clock, sim.zone = clock, clock.zone
  -- whole days of the clock, whatever it is put to meanwhile
  sim.to_us = sim.to_us + offset_us(clock, sim.from_us)
    - offset_us(clock, sim.to_us)
  local engine
  engine, message, code = E.open { clock = "virtual",
    start = core.datetime(sim.from_us / 1e6), queues = options.queues,
    log = function(text) sim.notes[#sim.notes + 1] = text end,
    simulate = function(job) body(sim, job) end }
  if not engine then return nil, message, code end
  sim.engine = engine
  -- a datetime has no more than the float it came from
  if core.now(engine) ~= sim.from_us then sim.from_us = core.now(engine) end
  listen(sim)
  local ok, err = pcall(function()
    local jobs, why, id = engine:submit_all(sim.specs)
    if not jobs then failure.raise(id, "%s", why) end
    for i, job in ipairs(jobs) do
      local entry = sim.entries[i]
      entry.job = job
      sim.by_job[job] = entry
      entry.could_us = job:number "ScheduledStartTime"
      if math.type(entry.could_us) ~= "integer"
        or entry.could_us < sim.from_us then
        entry.could_us = sim.from_us
      end
      moved_of(sim, entry)
    end
    drive(sim)
    for _, entry in ipairs(sim.entries) do
      local job = entry.job
      local is_there, state = pcall(function() return job.JobState end)
      entry.state = is_there and state or entry.state
      local _, phase = pcall(function() return job.phase end)
      entry.phase = is_there and phase or "done"
      local _, due = pcall(job.number, job, "ScheduledStartTime")
      entry.next_us = is_there and entry.phase ~= "done"
        and math.type(due) == "integer" and due > 0 and due or nil
    end
    for run in pairs(sim.running) do end_overlaps(sim, run, sim.to_us) end
    for _, name in ipairs(sim.directory_names) do
      note_size(sim.directories[name])
    end
  end)
  sim.is_over = true
  engine:close { mode = "kill" }
  sim.engine = nil
  if not ok then
    if failure.is(err) then return failure.results(err) end
    error(err, 0)
  end
  return sim
end

M.is_well = is_well

return M
