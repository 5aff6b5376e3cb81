-- Decisions: what the functions of a policy say about a job's runs.
--
-- They are asked in the policy's isolated state (cairn/decision.lua) and get
-- plain data; docs/policies.md describes it row by row. When one fails, or says
-- what cannot be, it has said nothing: that is logged, the run gets a warning,
-- and its fallback holds, which is what the job would do without the function.
-- A run keeps the functions that it began with, whatever is loaded meanwhile.
--
-- S.deciders[serial] = { object =, key =, policy =, version =, prunes =, code =
-- the name in the store }.
--
-- In a simulation there is S.simulated, which says what there would be, and is
-- told what would be done:
--   points(directory)           as core.points gives them
--   history(job, records, most) with what only real runs leave in records
--   submitted(job, by)          job prunes what retain lets go, for the job by
--   told(job, notice)           instead of a handler
--   given_up(job)               its run, which might have been tried again, is over

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"
local recovery = require "cairn.recovery"
local task = require "cairn.task"

local M = {}

M.KEEP_ALL = 1000000000 -- points: a rule that keeps whatever there is

local HISTORY = 30      -- records that a function gets
local THROTTLE_S = 5    -- between questions about the rate
M.RECORDS = 200         -- decisions kept, for a reload to try on
local event = core.event
local time = os.time

M.names = { "base", "select", "on_failure", "retain", "throttle", "notify" }

-- ---- what the functions get ----------------------------------------------------------

local clocks = {} -- zone -> { unix =, view = }: the last one
local clock_fields = { "year", "month", "day", "hour", "min", "sec", "wday",
  "yday", "unix" }
local clock_view = core.views({}, clock_fields)

-- A view of broken-down time as os.date("*t") has it, in a zone (nil: the
-- host's), with whole Unix seconds.
function M.clock(unix, zone)
  local second = unix // 1 | 0
  local last = clocks[zone or ""]
  if last and last.unix == second then return last.view end
  local offset = core.zone_offset(second * 1000000, zone or "") // 1000000
  local t = os.date("!*t", second + offset)
  local view = clock_view(nil, t.year, t.month, t.day, t.hour, t.min, t.sec,
    t.wday, t.yday, second)
  clocks[zone or ""] = { unix = second, view = view }
  return view
end

local properties = { "InstanceID", "Name", "policy", "queue", "Priority",
  "run_number", "attempts", "JobState", "phase", "ErrorCode",
  "ErrorSummaryDescription", "bytes_total", "bytes_done", "rate" }
local given = { "key", "now", "directory", "base", "CollectionId", "JobState",
  "run_number", "ErrorCode", "ErrorSummaryDescription" }
local job_view = core.views(properties, given)
local copying_view = core.views(properties, { "key", "now", "bytes_total",
  "bytes_done", "rate" })
local plan_view = core.views({}, { "Name", "policy", "queue", "Priority",
  "run_number", "attempts", "JobState", "phase",
  table.unpack(given, 1, 5) })

local function now_of(engine, zone)
  local us = core.now(engine)
  return M.clock(us / 1e6, zone)
end

local function collection_id(spec)
  if type(spec.collection) ~= "table" then
    return spec.CollectionId or spec.collection
  end
  return spec.CollectionId or spec.collection.CollectionId
end

-- The job as its functions see it, and its time.
local function view_of(engine, job, decider, spec)
  local now = now_of(engine, job.zone)
  if not spec then return job_view(job, decider.key, now), now end
  return job_view(job, decider.key, now, spec.directory, spec.base,
    collection_id(spec)), now
end

-- What a view can have: nobody has checked what is only planned.
local function plain(value)
  local kind = type(value)
  return (kind == "string" or kind == "number" or kind == "boolean")
    and value or nil
end

-- The last records of the job's history, oldest first.
local function history_of(engine, S, job, id)
  local records = core.history(engine, id, 0, HISTORY, true) or {}
  records = table.move(records, 1, #records, 1, {}) -- a plain one
  for _, record in ipairs(records) do
    local warnings = E.warnings_of(record)
    record.warnings = warnings[1]
      and table.move(warnings, 1, #warnings, 1, {}) or nil
  end
  return S.simulated and S.simulated.history(job, records, HISTORY) or records
end

local disk_fields = { "id", "path", "format", "tracker" }

-- ---- asking ------------------------------------------------------------------------------

local function shown_log(S, decider, name, message)
  E.log(S, ("policy %s %s: %s of %s: %s"):format(decider.policy,
    decider.version, name, decider.key, message))
end

function M.with_trace(message, trace)
  return trace and trace ~= "" and message .. "\n" .. trace or message
end

-- What became of a decision, with its arguments: for engine:decisions, and for
-- replays. The table of the oldest one is used again.
local function record(S, decider, name, answer, message, n, a, b, c)
  local base = decider.base or decider
  local label = base.label
  if not label then -- of it, nothing else is kept
    label = { policy = base.policy, key = base.key, version = base.version }
    base.label = label
  end
  local at = S.last_decision % M.RECORDS + 1
  local kept = S.decisions[at]
  if not kept then
    kept = {}
    S.decisions[at] = kept
  end
  S.last_decision = at
  kept.label, kept.name, kept.answer = label, name, answer
  kept.error, kept.time, kept.n = message, time(), n
  kept[1], kept[2], kept[3] = a, b, c
end

-- Views in a value as tables.
local function thawed(value)
  if type(value) ~= "table" then return core.thaw(value) end
  local copy = {}
  for key, inner in next, value do copy[key] = thawed(inner) end
  return copy
end

-- The decisions that are kept, oldest first, as engine:decisions gives them.
function M.decisions(S)
  local ring, list = S.decisions, {}
  for i = 1, #ring do
    local kept = ring[(S.last_decision + i - 1) % #ring + 1]
    local arguments = {}
    for k = 1, kept.n do arguments[k] = thawed(kept[k]) end
    local label = kept.label
    list[i] = { policy = label.policy, key = label.key, name = kept.name,
      version = label.version, arguments = arguments,
      answer = thawed(kept.answer), error = kept.error, time = kept.time }
  end
  return list
end

local function warn(engine, serial, text)
  return core.warn(engine, serial, text) -- nil when its run is over
end

-- Asks a function that is there, with n arguments, of which there are at most
-- three. answer | nil, whether it failed. check(answer) -> message when it
-- cannot be.
local function ask_present(engine, S, decider, serial, name, check, n, a, b, c)
  local object, key = decider.object, decider.key
  local ok, answer, trace, message, _
  if n == 1 then
    ok, answer, _, trace = object:call(key, name, a)
  elseif n == 2 then
    ok, answer, _, trace = object:call(key, name, a, b)
  else
    ok, answer, _, trace = object:call(key, name, a, b, c)
  end
  if not ok then
    message = answer
    shown_log(S, decider, name, M.with_trace(message, trace))
    answer = nil
  elseif answer ~= nil then
    message = check(answer)
    if message then
      message = ("it returned %s; %s"):format(
        failure.shown(type(answer) == "string" and "'" .. answer .. "'"
        or tostring(answer)), message)
      shown_log(S, decider, name, message)
      answer = nil
    end
  end
  record(S, decider, name, answer, message, n, a, b, c)
  if message and serial then
    warn(engine, serial, ("policy %s: %s failed (%s); as without it"):format(
      decider.policy, name, message))
  end
  return answer, message ~= nil
end

-- The same of one that may be there; nil and false when it is not.
local function ask(engine, S, decider, serial, name, check, n, a, b, c)
  if not decider.object:has(decider.key, name) then return nil, false end
  return ask_present(engine, S, decider, serial, name, check, n, a, b, c)
end

-- ---- what they may say ------------------------------------------------------------------

local function is_base(answer)
  if type(answer) ~= "string" or answer == "" then
    return "valid are 'latest', 'none' and the id of a point"
  end
end

local function is_selection(answer)
  if type(answer) ~= "boolean" then return "true or false expected" end
end

local function is_rate(answer)
  if type(answer) ~= "number" or answer ~= answer or answer < 1
    or answer > 2 ^ 62 then
    return "bytes per second, at least 1, expected"
  end
end

local function is_name(answer)
  if type(answer) ~= "string" then return "the name of a handler expected" end
end

local function is_action(answer)
  local ok, err = pcall(recovery.read, answer)
  if not ok then return tostring(err) end
end

-- A set { [id] = true } or a list of ids, as a list.
local function ids_of(answer)
  local list = {}
  for key, value in pairs(answer) do
    if math.type(key) == "integer" then
      list[#list + 1] = value
    elseif value then
      list[#list + 1] = key
    end
  end
  table.sort(list, function(a, b) return tostring(a) < tostring(b) end)
  return list
end

-- That nothing stays is no answer: it is a mistake more likely than a wish.
local function is_set(known)
  return function(answer)
    if type(answer) ~= "table" then
      return "a set of ids expected, { [id] = true }"
    end
    local list = ids_of(answer)
    for _, id in ipairs(list) do
      if not known[id] then
        return ("%s is no point that it was given"):format(failure.shown(id))
      end
    end
    if not list[1] and next(known) then return "it keeps no point at all" end
  end
end

-- ---- before a run ---------------------------------------------------------------------------

-- The machines of a collection without the disks that select leaves out, and
-- how many these are; nil: every disk was left out.
local function selected(engine, S, decider, serial, view, machines)
  local out, left_out, kept = {}, 0, 0
  for i, machine in ipairs(machines) do
    local copy = {}
    for key, value in pairs(machine) do copy[key] = value end
    copy.disks = {}
    for _, disk in ipairs(machine.disks or {}) do
      local seen = { machine = machine.ElementName,
        VirtualMachineId = machine.VirtualMachineId }
      for _, name in ipairs(disk_fields) do seen[name] = disk[name] end
      if ask(engine, S, decider, serial, "select", is_selection, 2,
        view, seen)
        == false then
        left_out = left_out + 1
      else
        kept = kept + 1
        copy.disks[#copy.disks + 1] = disk
      end
    end
    out[i] = copy
  end
  if left_out > 0 and kept == 0 then return nil, left_out end
  return out, left_out
end

-- The points of a directory that retain is asked about: exports, by sequence.
-- Markers and damaged points are not among them: no prune removes these. nil,
-- message when it cannot be read.
local function points_of(S, spec, zone)
  local read = S.simulated and S.simulated.points or core.points
  local all, message = read(spec.directory)
  if not all then return nil, message end
  local farm = collection_id(spec)
  local list, known = {}, {}
  for _, point in ipairs(all) do
    local id = point.ReferencePointGroupId
    if id and point.kind == "export" and point.sequence and not point.error
      and (farm == nil or point.CollectionId == farm) then
      local t = point.time and core.datetime(point.time)
      list[#list + 1] = { ReferencePointGroupId = id,
        BaseReferencePointGroupId = point.BaseReferencePointGroupId,
        CollectionId = point.CollectionId, sequence = point.sequence,
        kind = point.kind, time = t and M.clock(t.microseconds / 1e6, zone) }
      known[id] = true
    end
  end
  table.sort(list, function(a, b)
    if a.sequence ~= b.sequence then return a.sequence < b.sequence end
    return a.ReferencePointGroupId < b.ReferencePointGroupId
  end)
  return list, known
end

-- The ids that retain keeps: all of them when it fails, or says nothing.
-- nil, message when the points cannot be read.
local function kept(engine, S, decider, serial, spec, zone)
  local points, known = points_of(S, spec, zone)
  if not points then return nil, known end
  local answer = ask(engine, S, decider, serial, "retain", is_set(known), 1,
    points)
  if answer then return ids_of(answer), #points end
  local ids = {}
  for i, point in ipairs(points) do ids[i] = point.ReferencePointGroupId end
  return ids, #points
end

-- Changes a specification (its kind is told by what it has) as the functions
-- say; whether anything is changed. serial nil: nothing has warnings.
local function amend(engine, S, decider, serial, spec, view, history, zone)
  local changed = false
  if type(spec.collection) == "table" and spec.input == nil
    and spec.action == nil then
    local base = ask(engine, S, decider, serial, "base", is_base, 2, view,
      history)
    if base and base ~= spec.base then
      spec.base, changed = base, true
    end
    if decider.object:has(decider.key, "select") then
      local machines, left_out = selected(engine, S, decider, serial, view,
        spec.collection.machines or {})
      if not machines then
        local why = ("policy %s: select leaves out every disk; as without it")
          :format(decider.policy)
        if not (serial and warn(engine, serial, why)) then E.log(S, why) end
      elseif left_out > 0 then
        spec.collection.machines, changed = machines, true
      end
    end
  elseif spec.keep and decider.object:has(decider.key, "retain") then
    local ids, why = kept(engine, S, decider, serial, spec, zone)
    if not ids then -- then nobody has decided that anything may go
      shown_log(S, decider, "retain", why)
    end
    spec.keep, changed = ids and ids[1] and { ids = ids }
      or { last = M.KEEP_ALL }, true
  end
  return changed
end

-- The specification of this run, or nil: the job's own.
local function decided(engine, S, decider, ev)
  local spec = assert(core.spec(engine, ev.serial))
  return amend(engine, S, decider, ev.serial, spec,
    (view_of(engine, ev.job, decider, spec)),
    history_of(engine, S, ev.job, ev.InstanceID), ev.job.zone) and spec or nil
end

-- The specification of a run about which nothing could be decided: nil, its
-- job's own; but what retain was to decide about stays, whatever the job keeps.
local function undecided(engine, decider, serial)
  if not decider.object:has(decider.key, "retain") then return nil end
  local spec = core.spec(engine, serial)
  if not spec or not spec.keep then return nil end
  spec.keep = { last = M.KEEP_ALL }
  return spec
end

-- What a job that is only planned would be given: a specification as submit
-- takes it, which is changed. There is no history of it.
function M.plan(engine, S, spec, decider)
  for _, kind in ipairs { "export", "prune" } do
    local inner = spec[kind]
    if inner then
      local copy = {}
      for key, value in pairs(inner) do copy[key] = value end
      if kind == "export" and type(copy.collection) == "table" then
        local farm = {}
        for key, value in pairs(copy.collection) do farm[key] = value end
        copy.collection = farm
      end
      spec[kind] = copy
      local zone = type(spec.zone) == "string"
        and pcall(core.zone_offset, 0, spec.zone) and spec.zone or nil
      local view = plan_view(nil, plain(spec.Name), plain(spec.policy),
        plain(spec.queue), plain(spec.Priority), 1, 1, "New", "waiting",
        decider.key, now_of(engine, zone), plain(copy.directory),
        plain(copy.base), plain(collection_id(copy)))
      amend(engine, S, decider, nil, copy, view, {}, zone)
    end
  end
end

-- Asked again while decider is what decides about the run that is on.
local function throttle(engine, S, serial, decider)
  if S.deciding[serial] ~= decider or not S.unfinished[serial]
    or not decider.object:has(decider.key, "throttle") then
    return
  end
  local view, now = view_of(engine, decider.job, decider)
  local rate = ask(engine, S, decider, nil, "throttle", is_rate, 2, view,
    now)
  if core.throttle(engine, serial, rate and rate // 1 | 0 or 0) then
    E.start_timer(engine, S, THROTTLE_S * 1000000, function()
      throttle(engine, S, serial, decider)
    end)
  end
end

-- Asks what the run that begins is to do, and lets it begin. Its specification,
-- or nil: the job's own.
local function begin(engine, S, ev)
  local decider, serial = S.deciders[ev.serial], ev.serial
  local spec
  if decider then
    local deciding = setmetatable({ job = ev.job, base = decider },
      { __index = decider })
    S.deciding[serial] = deciding
    local ok, err = xpcall(function()
      spec = decided(engine, S, decider, ev)
      if not S.simulated then throttle(engine, S, serial, deciding) end
    end, failure.traceback)
    if not ok then
      E.log(S, "policy " .. decider.policy .. ": " .. tostring(err))
      spec = undecided(engine, decider, serial)
    end
  end
  local ok, message, code = core.decide(engine, serial, ev.run_number,
    ev.status, spec)
  if ok or code == "invalid_state" or code == "not_found" then return spec end
  shown_log(S, decider, "base, select or retain", message)
  warn(engine, serial, ("policy %s: what it decided cannot be (%s); as without "
    .. "it"):format(decider.policy, message))
  spec = undecided(engine, decider, serial)
  ok, message = core.decide(engine, serial, ev.run_number, ev.status, spec)
  if not ok then -- the run waits, until a client ends it
    shown_log(S, decider, "base, select or retain", message)
  end
  return spec
end

E.task_events[event.TASK_DECIDE] = begin

-- Of a job's run in a simulation, which has begun: as above, where there are
-- functions.
function M.simulate(engine, S, job)
  local _, serial, id = core.job_engine(job)
  if not S.deciders[serial] then return nil end
  return begin(engine, S, { serial = serial, job = job, InstanceID = id,
    run_number = job.run_number, status = 0 })
end

-- How fast a run would be held to be at a time, in Unix microseconds: bytes per
-- second, or nil. It has done so many bytes of its total, at a rate.
function M.simulate_rate(engine, S, job, us, total, done, rate)
  local _, serial = core.job_engine(job)
  local decider = S.deciding[serial]
  if not decider then return nil end
  local now = M.clock(us / 1e6, job.zone)
  return (ask(engine, S, decider, nil, "throttle", is_rate, 2,
    copying_view(job, decider.key, now, total, done, rate), now))
end

-- ---- after a run -------------------------------------------------------------------------------

-- on_failure, before the job's RecoveryAction: action, delay_us | nil.
function M.recover(engine, S, ev)
  local serial, job = ev.serial, ev.job
  local decider = S.deciding[serial] or S.deciders[serial]
  if not decider then return nil end
  local row
  for _, candidate in ipairs(failure.errors) do
    if candidate.ErrorCode == job.ErrorCode then row = candidate end
  end
  local answer = ask(engine, S, decider, serial, "on_failure", is_action,
    3, (view_of(engine, job, decider)), { code = row and row.code,
      ErrorCode = job.ErrorCode, MessageID = row and row.MessageID,
      message = job.ErrorSummaryDescription or job.ErrorDescription },
    job.attempts)
  if answer == nil then return nil end
  return recovery.read(answer)
end

-- Whether there is such a function for the job's run.
function M.decides(S, serial, name)
  local decider = S.deciding[serial] or S.deciders[serial]
  return decider ~= nil and decider.object:has(decider.key, name)
end

-- The name of the handler that is to be told, or nil: the job's Notify. Only
-- where there is such a function.
function M.notify(engine, S, ev, state, code, text)
  local decider = S.deciding[ev.serial] or S.deciders[ev.serial]
  local job = ev.job
  local view = job_view(job, decider.key, now_of(engine, job.zone), nil, nil,
    nil, state, ev.run_number, code, text or core.null) -- of the run
  return (ask_present(engine, S, decider, nil, "notify", is_name, 1, view))
end

-- After a good export of a policy that has retain and no prune job of its own:
-- a job that prunes the directory to what it keeps.
local function prune(engine, S, decider, job, spec)
  local ids, count = kept(engine, S, decider, nil, spec, job.zone)
  if not ids then
    E.log(S, ("policy %s: retain: %s"):format(decider.policy, count))
    return
  elseif #ids >= count then
    return
  end
  -- It is asked again when the prune has the directory: a point that another
  -- run adds until then is none that it was given now.
  local object = { has = function(_, key, name)
    return name == "retain" and decider.object:has(key, name)
  end, call = function(_, ...) return decider.object:call(...) end }
  local made, message = engine:submit { Name = job.Name .. ": retain",
    queue = job.queue, volatile = true, wait = false, zone = job.zone,
    DeleteOnCompletion = true, policy_version = decider.version,
    decisions = { object = object, key = decider.key, policy = decider.policy,
      version = decider.version },
    prune = { directory = spec.directory, keep = { last = M.KEEP_ALL },
      collection = spec.collection.CollectionId } }
  if not made then
    E.log(S, ("policy %s: retain: %s"):format(decider.policy, message))
  elseif S.simulated then
    S.simulated.submitted(made, job)
  end
end

-- Of the run that was on nothing is asked any more.
function M.over(S, serial) S.deciding[serial] = nil end

-- Called for every event of a job.
function M.event(engine, S, ev)
  local serial = ev.serial
  if ev.type == event.RUN_ENDED and not ev.is_retried then
    local decider = S.deciding[serial]
    S.deciding[serial] = nil
    if not decider or decider.prunes
      or ev.JobState ~= "Completed"
      and ev.JobState ~= "Completed With Warnings"
      or not decider.object:has(decider.key, "retain") then
      return
    end
    local spec = core.spec(engine, serial)
    if spec and type(spec.collection) == "table" and spec.input == nil
      and spec.action == nil then
      task.spawn_on(engine, prune, engine, S, decider, ev.job, spec)
    end
  elseif ev.type == event.STATE and core.state_is_final(ev.new_state) then
    M.over(S, serial) -- also when it ended between two attempts
  elseif ev.type == event.REMOVED then
    S.deciders[serial], S.deciding[serial] = nil, nil
  end
end

-- A job gets these functions, or none. What waits for an answer of functions
-- that are gone is settled by the job's properties.
function M.set(engine, S, serial, decider, name)
  S.deciders[serial] = decider
  if decider then
    E.code_add(engine, S, name)
  elseif S.unfinished[serial] then
    local job = S.unfinished[serial]
    recovery.settle(engine, S, { InstanceID = job.InstanceID, serial = serial,
      job = job, run_number = job.run_number, time = core.now(engine) }, -1, 0)
  end
end

E.decide = M

return M
