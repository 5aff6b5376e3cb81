-- The simulation of policies: their jobs in a real engine, on a virtual clock,
-- with bodies that only take time.
--
-- What the engine decides is decided by the engine's own code: when a job is
-- due, who waits for a place or a directory, what is skipped, tried again or
-- made up, which points a prune keeps; and the functions of policies are asked
-- by the code that asks them for real runs, about the points and the history that
-- there would be. What a run would do to the world is assumed: how long it takes
-- (from sizes and a rate, from history, or as the caller says), whether it fails
-- (as the caller says), and what it leaves: an export one point, in full or on
-- the base that it is to have; a prune what its rules keep. Nothing is exported,
-- nobody is told, and nothing is written.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local decide = E.decide
local failure = require "cairn.failure"
local points = require "cairn.simulate_points"
local schedule = require "cairn.schedule"

local M = {}

local DAY_S = 86400
M.RATE = 100e6     -- bytes a second, where the caller says nothing
M.CHANGED = 5      -- percent of a disk between two increments
M.SECONDS = 60     -- of a run that nothing is known of
local LEAST_S = 1  -- of a run that something is known of
local ASK_S = 60   -- between questions about the rate
local NOTES_MAX = 100
local RETAIN = ": retain" -- of the name of a job that decide.lua submits
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

local assumed = { "seconds", "fails", "attempts", "error", "changed" }

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
  error = function(value) return failure.errors[value] and value end,
  changed = function(value) return number_in(value, 0, 100) end,
}
local valid = {
  seconds = "seconds, or an interval such as 2h",
  fails = "a run's number (2, 2nd), every:N, first:N, all or none",
  attempts = "1 to 1000 attempts, or all",
  error = "the code of an error, such as disk_full or source_missing,",
  changed = "0 to 100 percent",
}

-- assume(list of "KEY.what=value") -> { key = { what = } } | nil, message.
-- KEY is a job's key in its policy, POLICY:KEY, or *.
function M.assume(list)
  local out = {}
  for _, text in ipairs(list) do
    local key, what, value = text:match "^(.+)%.([%a_]+)=(.*)$"
    if not key then
      return nil, ("%s: KEY.seconds=, KEY.fails=, KEY.attempts=, KEY.error= "
        .. "or KEY.changed= expected"):format(failure.shown(text))
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

-- What docs/policies.md says that a record has; base is given nothing else.
local record_fields = { "InstanceID", "Name", "run_number", "attempt",
  "JobState", "ErrorCode", "ErrorDescription", "due", "due_last", "StartTime",
  "time", "ElapsedTime", "bytes_done", "ReferencePointGroupId",
  "policy_version", "lost_warnings", "skipped", "reason" }

-- The record as base gets it.
local function copy_record(record)
  local copy = {}
  for _, name in ipairs(record_fields) do
    local value = record[name]
    if type(value) == "string" or type(value) == "number" then
      copy[name] = value
    end
  end
  for _, warning in ipairs(E.warnings_of(record)) do
    copy.warnings = copy.warnings or {}
    if type(warning) == "string" then
      copy.warnings[#copy.warnings + 1] = warning
    end
  end
  return copy
end

-- The records from before the window, by the job's name; where several jobs have
-- it, those of the one that has the last.
local function records_of(history, from_us)
  local by_name = {}
  for _, record in ipairs(history or {}) do
    local t = type(record.time) == "string" and core.datetime(record.time)
    local name, id = record.Name, record.InstanceID or false
    if t and t.kind == "timestamp" and t.microseconds <= from_us
      and type(name) == "string" then
      local jobs = by_name[name] or { by_id = {} }
      by_name[name] = jobs
      jobs.by_id[id] = jobs.by_id[id] or {}
      jobs.last = jobs.by_id[id]
      table.insert(jobs.last, copy_record(record))
    end
  end
  for name, jobs in pairs(by_name) do by_name[name] = jobs.last end
  return by_name
end

-- The history of a job, oldest first, with what is from before the window and
-- the points that its runs would have made.
local function history_for(sim, job, records, most)
  local work = sim.by_job[job]
  for _, record in ipairs(records) do
    local run = record.run_number
      and work.attempts[record.run_number .. "." .. record.attempt]
    if run and run.made then
      record.ReferencePointGroupId = run.made.id
      record.bytes_done = run.bytes // 1 | 0
    end
  end
  local earlier = sim.records[work.entry.spec.Name] or {}
  local out = table.move(earlier, math.max(1, #earlier + #records - most + 1),
    #earlier, 1, {})
  return table.move(records, 1, #records, #out + 1, out)
end

-- ---- how long a run takes ---------------------------------------------------------------

-- Bytes that a disk holds, or nil.
local function size_of_disk(sim, disk)
  local bytes = sim.sizes[disk.path]
  if bytes == nil then
    bytes = sim.options.size and sim.options.size(disk.path) or false
    sim.sizes[disk.path] = bytes
  end
  return bytes or nil
end

-- Bytes that the disks of a collection hold.
local function size_of(sim, collection)
  local sum = 0
  for _, machine in ipairs(collection.machines) do
    for _, disk in ipairs(machine.disks) do
      sum = sum + (size_of_disk(sim, disk) or 0)
    end
  end
  return sum
end

local is_fast = { clone = true, bitmap = true } -- trackers

-- plans[kind](sim, work, spec) -> bytes to be read, or nil and why that is not
-- known; and a function that does to the points what the run would have done.
-- spec is the object of the kind, as it is for this run. Raises what the run fails
-- with.
local plans = {}

function plans.export(sim, work, spec)
  local d = points.directory(sim, spec.directory)
  local disks = points.disks(d, spec)
  local changed = (work.entry.assume.changed or M.CHANGED) / 100
  local bytes, missing, fulls, why = 0, nil, 0, nil
  for _, entry in ipairs(disks) do
    local disk, size = entry.disk, size_of_disk(sim, entry.disk)
    missing = missing or not size and disk.path or nil
    entry.whole = size or 0
    entry.bytes = entry.whole * (entry.base and changed or 1) // 1
    bytes = bytes + (entry.base and is_fast[disk.tracker or spec.tracker]
      and entry.bytes or entry.whole)
    if not entry.base then fulls, why = fulls + 1, why or entry.why end
  end
  if spec.base == "none" and work.plan.base ~= "none" then
    why = "as base decided"
  elseif why and fulls < #disks then
    why = ("%d of %d disks in full: %s"):format(fulls, #disks, why)
  end
  local started_us = core.now(sim.engine)
  return not missing and bytes or nil,
    missing and missing .. " is not there", function(run)
      run.made = points.add(sim, d, spec, disks, started_us)
      run.point, run.why_full = run.made.base and "increment" or "full", why
    end
end

function plans.verify(sim, _, spec)
  if spec.depth == "set" or spec.depth == "chain" then return 0 end
  local bytes = 0
  for _, point in ipairs(points.directory(sim, spec.directory).points) do
    bytes = bytes + point.bytes
  end
  if spec.source then bytes = bytes + size_of(sim, spec.source) end
  return not spec.point and bytes or nil, "it is of one point"
end

-- What a prune says of what it removes.
local function rules_of(keep)
  local rules = {}
  for _, name in ipairs { "last", "daily", "weekly", "monthly", "yearly",
    "within", "ids" } do
    local value = keep[name]
    if type(value) == "table" then
      rules[#rules + 1] = ("%d ids"):format(#value)
    elseif value ~= nil then
      rules[#rules + 1] = ("%s %s"):format(name, value)
    end
  end
  return "kept by no rule: " .. table.concat(rules, ", ")
end

function plans.prune(sim, work, spec)
  local d = points.directory(sim, spec.directory)
  local goes, reasons, merges, merged = points.judge(d, spec)
  local bytes, is_decided = 0, spec ~= work.plan
  for _, merge in ipairs(merges) do bytes = bytes + merge.bytes end
  for _, why in pairs(is_decided and reasons or {}) do
    for i, reason in ipairs(why) do
      if reason == "ids" then why[i] = "retain" end -- whose ids they are
    end
  end
  return bytes, nil, function(run)
    local gone = points.prune(d, goes, reasons, merges)
    run.pruned, run.merged, run.kept = #gone, merged, #d.points
    if #gone == 0 then return end
    local removed = {}
    for i, point in ipairs(gone) do removed[i] = point.time end
    table.insert(sim.prunes, { unix_us = core.now(sim.engine),
      entry = work.entry, directory = d.name, removed = removed,
      first_us = gone[1].unix_us, last_us = gone[#gone].unix_us,
      merged = merged, kept = #d.points, reason = is_decided
      and "retain does not keep them" or rules_of(spec.keep) })
  end
end

-- Seconds for so many bytes from now on, and where they are from: as fast as the
-- caller says, and no faster than throttle says, which is asked for each minute.
local function transfer(sim, work, bytes)
  local S, rate = core.state(sim.engine), sim.rate
  local _, serial = core.job_engine(work.job)
  if work.entry.kind == "prune" or not decide.decides(S, serial, "throttle") then
    return bytes / rate, "size and rate"
  end
  local from_us, done = core.now(sim.engine), 0
  local us = from_us
  while us < sim.to_us do -- what is after the window is as it is at its end
    local is_known = us > from_us -- as of a run that has just begun
    local limit = decide.simulate_rate(sim.engine, S, work.job, us,
      is_known and bytes // 1 | 0 or nil, done // 1 | 0,
      is_known and rate // 1 | 0 or nil)
    rate = math.min(limit or sim.rate, sim.rate)
    if bytes - done <= rate * ASK_S then break end
    done, us = done + rate * ASK_S, us + ASK_S * 1000000
  end
  return (us - from_us) / 1e6 + (bytes - done) / rate, "size, rate and throttle"
end

-- Seconds, where they are from, and what a good end leaves.
local function length_of(sim, work, spec)
  local entry = work.entry
  local bytes, why, finish
  if plans[entry.kind] then
    bytes, why, finish = plans[entry.kind](sim, work, spec)
  end
  work.run.bytes = bytes or 0
  if entry.assume.seconds then
    return entry.assume.seconds, "as assumed", finish
  end
  local known = sim.durations[entry.spec.Name]
  if known then
    return math.max(known.seconds, 0.001), ("the middle of %d run%s in the "
      .. "history"):format(known.count, known.count == 1 and "" or "s"), finish
  elseif bytes then
    local seconds, from = transfer(sim, work, bytes)
    return math.max(LEAST_S, seconds), from, finish
  end
  return M.SECONDS, why and "assumed, " .. why or "assumed", finish
end

-- ---- the bodies ----------------------------------------------------------------------------

local function body(sim, job)
  local work = sim.by_job[job]
  if not work then return end
  local entry, run = work.entry, work.run
  local spec = entry.kind ~= "run"
    and decide.simulate(sim.engine, core.state(sim.engine), job) or work.plan
  local seconds, from, finish = length_of(sim, work, spec)
  run.length, run.length_from = seconds, from
  entry.length_from = from
  if seconds > 0 then job:sleep(seconds) end
  local fails = entry.assume.fails
  if fails and fails(run.run_number)
    and job.attempts <= (entry.assume.attempts or 1) then
    error { code = entry.assume.error or "job_failed",
      message = "assumed to fail" }
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

local function began(sim, work, ev)
  local now_us, entry = ev.time, work.entry
  local could_us = work.retry_us or ev.due or work.could_us or now_us
  local run = { entry = entry, run_number = work.number or ev.run_number,
    due_us = ev.due, start_us = now_us, attempt = work.job.attempts, bytes = 0,
    wait_us = math.max(0, now_us - could_us) }
  work.retry_us, work.could_us = nil, nil
  work.attempts[ev.run_number .. "." .. run.attempt] = run
  sim.undecided[work] = nil
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
  work.run = run
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

local function over(sim, work, ev)
  local run = work.run
  if not run or run.end_us then return end
  run.end_us, run.state = ev.time, ev.JobState
  run.is_retried = ev.is_retried or nil
  if run.state ~= "Completed" then
    local warnings = E.warnings_of(E.record_of(sim.engine, ev.InstanceID,
      ev.run_number, ev.attempt))
    run.warnings = warnings[1] and warnings
  end
  sim.running[run], sim.running_count = nil, sim.running_count - 1
  end_overlaps(sim, run, ev.time)
  if sim.ended_us ~= ev.time then sim.ended_us, sim.ended = ev.time, {} end
  table.insert(sim.ended, work.entry)
  if ev.is_retried then sim.undecided[work] = run end
end

-- When what has failed is tried again: the engine knows it at once, or when a
-- policy's function has answered, some turns later.
local function note_retries(sim)
  local now_us = core.now(sim.engine)
  for work, run in pairs(sim.undecided) do
    local retry = work.job:number "ScheduledStartTime"
    if math.type(retry) == "integer" and retry > now_us then
      work.retry_us, run.retry_us = retry, retry
    end
    sim.undecided[work] = nil
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
    local work = sim.by_job[ev.job]
    if not work then return end
    work.entry.state = ev.JobState
    if ev.JobState == "Starting" then began(sim, work, ev) end
  end)
  on("RunEnded", function(ev)
    local work = sim.by_job[ev.job]
    if work then over(sim, work, ev) end
  end)
  on("Skipped", function(ev)
    local work = sim.by_job[ev.job]
    if not work then return end
    local entry = work.entry
    local skip = { entry = entry, unix_us = ev.time, first_us = ev.due,
      last_us = ev.due_last, count = ev.count, reason = ev.reason }
    sim.skips[#sim.skips + 1] = skip
    entry.skipped[ev.reason] = (entry.skipped[ev.reason] or 0) + ev.count
    entry.skip_count = entry.skip_count + ev.count
  end)
  on("Removed", function(ev)
    local work = sim.by_job[ev.job]
    if work and work.number then sim.by_job[ev.job] = nil end
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

local function add_entry(sim, policy, policy_key, key, spec, kind)
  local entry = { number = #sim.entries + 1, key = key, policy = policy,
    policy_key = policy_key, spec = spec, kind = kind,
    queue = is_set(spec.queue) and spec.queue or "default", runs = {},
    skipped = {}, skip_count = 0, moved = {}, state = "New",
    assume = assumed_of(sim.options, policy, policy_key) }
  if kind == "export" or kind == "prune" or kind == "import"
    or kind == "merge" then
    entry.directory = spec[kind].to or spec[kind].directory
  end
  sim.entries[entry.number] = entry
  return entry
end

-- What there is of a job: its entry, the run that is on, and when it could have
-- begun. plan is its specification as the engine has it.
local function add_work(sim, entry, job)
  local _, serial = core.job_engine(job)
  local work = { entry = entry, job = job, attempts = {},
    plan = entry.kind ~= "run" and core.spec(sim.engine, serial) or nil }
  sim.by_job[job] = work
  return work
end

-- A job that prunes what retain lets go after an export: those of one job are one
-- row.
local function add_retain(sim, job, by)
  local parent = sim.by_job[by].entry
  local entry = parent.retain
  if not entry then
    local plan = parent.spec.export
    entry = add_entry(sim, parent.policy, parent.policy_key .. RETAIN,
      parent.key .. RETAIN, { Name = job.Name, queue = job.queue,
        prune = { directory = plan.directory } }, "prune")
    parent.retain = entry
  end
  entry.job = job
  local work = add_work(sim, entry, job)
  work.could_us = core.now(sim.engine)
  entry.count = (entry.count or 0) + 1
  work.number = entry.count -- of the row, whose jobs have one run each
end

local function add_job(sim, policy, key, spec, is_one)
  local copy = {}
  for name, value in pairs(spec) do copy[name] = value end
  local origin = failure.origin[spec]
  failure.origin[copy] = origin
  if not is_set(copy.zone) then copy.zone = sim.options.zone end
  copy.wait = nil
  local entry = add_entry(sim, policy.name, key, is_one and key
    or policy.name .. ":" .. key, copy, M.kind_of(copy))
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
  if copy.RecoveryAction == "Other" or copy.RecoveryAction == 1 then
    sim.note("%s: its recovery handler is not called; a failed run goes on "
      .. "with the next", entry.key)
  end
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
  local function add(entry, key)
    names[key], names[entry.policy .. ":" .. key] = true, true
    list[#list + 1] = key
  end
  for _, entry in ipairs(sim.entries) do
    add(entry, entry.policy_key)
    local decider = entry.kind == "export" and entry.spec.decisions
    if decider and not decider.prunes
      and decider.object:has(decider.key, "retain") then
      add(entry, entry.policy_key .. RETAIN)
    end
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
    records = records_of(options.history, options.from_us), notices = {},
    last_id = 0, noted = {}, note_count = 0,
    from_us = options.from_us,
    to_us = options.from_us + (days * DAY_S * 1e6) // 1 | 0 }
  function sim.note(format, ...)
    local text = format:format(...)
    if sim.noted[text] then return end -- a function that fails does so again
    sim.noted[text] = true
    sim.note_count = sim.note_count + 1
    if sim.note_count <= NOTES_MAX then sim.notes[sim.note_count] = text end
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
    log = function(text) sim.note("%s", text) end,
    simulate = function(job) body(sim, job) end }
  if not engine then return nil, message, code end
  sim.engine = engine
  -- a datetime has no more than the float it came from
  if core.now(engine) ~= sim.from_us then sim.from_us = core.now(engine) end
  listen(sim)
  core.state(engine).simulated = {
    points = function(name) return points.listed(sim, name) end,
    history = function(job, list, most) return history_for(sim, job, list, most) end,
    submitted = function(job, by) add_retain(sim, job, by) end,
    given_up = function(job)
      local work = sim.by_job[job]
      if work then work.run.is_retried, sim.undecided[work] = nil, nil end
    end,
    told = function(job, notice)
      local work = sim.by_job[job]
      if not work or sim.is_over then return end
      sim.notices[#sim.notices + 1] = { entry = work.entry,
        unix_us = core.now(engine), Notify = notice.Notify,
        state = notice.JobState, run_number = notice.run_number }
    end,
  }
  local ok, err = pcall(function()
    local jobs, why, id = engine:submit_all(sim.specs)
    if not jobs then failure.raise(id, "%s", why) end
    for i, job in ipairs(jobs) do
      local entry = sim.entries[i]
      entry.job = job
      local work = add_work(sim, entry, job)
      work.could_us = job:number "ScheduledStartTime"
      if math.type(work.could_us) ~= "integer"
        or work.could_us < sim.from_us then
        work.could_us = sim.from_us
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
  end)
  if sim.note_count > NOTES_MAX then
    sim.notes[NOTES_MAX + 1] = ("... and %d more notes"):format(
      sim.note_count - NOTES_MAX)
  end
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
