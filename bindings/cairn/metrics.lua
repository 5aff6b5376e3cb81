-- What an engine is doing, as text for a monitoring system: OpenMetrics 1.0, or
-- the older text format of Prometheus (which node_exporter's textfile collector
-- reads; it takes neither `info` nor a counter whose samples are named otherwise
-- than itself).
--
-- What is counted is counted from the opening of the engine on, as its events
-- are handed out (M.count, called for each of them). The last success and
-- failure of each job are known from the history too, so that they outlive the
-- process. Cardinality is bounded: states, phases, results and reasons are
-- those of the class, queues those of the engine, and at most JOBS_MAX jobs
-- have series of their own, one for each Name, policy and key, the jobs of
-- policies first; cairn_jobs_unlisted says how many have none.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"

local M = {}

local JOBS_MAX = 1000
local LABEL_MAX = 128 -- bytes of a label's value

local results = { "completed", "completed_with_warnings", "retried", "failed",
  "terminated", "killed" }
local reasons = { "missed", "running", "held", "ended", "queued" }
local result_of = { [7] = "completed", [32768] = "completed_with_warnings",
  [8] = "terminated", [9] = "killed" }

-- ---- counting --------------------------------------------------------------------------

function M.open(engine, S)
  S.metrics = { runs = {}, skipped = {}, bytes = 0,
    opened_us = core.now(engine),
    last = {}, -- InstanceID -> { success =, failure = }, Unix microseconds
    is_read = false }
  for _, name in ipairs(results) do S.metrics.runs[name] = 0 end
  for _, name in ipairs(reasons) do S.metrics.skipped[name] = 0 end
end

local function ended(counts, id, is_well, us)
  local last = counts.last[id]
  if not last then
    last = {}
    counts.last[id] = last
  end
  local name = is_well and "success" or "failure"
  last[name] = math.max(last[name] or us, us)
end

-- The bytes of this run; the job may be in its next one already.
local function bytes_of(engine, ev)
  local job = ev.job
  if job.ReferencePointGroupId == nil then return 0 end
  if job.run_number == ev.run_number and job.attempts == ev.attempt then
    return job.bytes_done or 0
  end
  local record = E.record_of(engine, ev.InstanceID, ev.run_number, ev.attempt)
  return record and math.tointeger(record.bytes_done) or 0
end

-- An event that is about to be handed out.
function M.count(engine, S, ev)
  local counts = S.metrics
  if ev.type == core.event.RUN_ENDED then
    local result = ev.is_retried and "retried"
      or result_of[core.value_number("JobState", ev.JobState)] or "failed"
    local is_well = result == "completed"
      or result == "completed_with_warnings"
    counts.runs[result] = counts.runs[result] + 1
    ended(counts, ev.InstanceID, is_well, ev.time)
    if is_well then counts.bytes = counts.bytes + bytes_of(engine, ev) end
  elseif ev.type == core.event.SKIPPED then
    local before = counts.skipped[ev.reason]
    if before then counts.skipped[ev.reason] = before + ev.count end
  elseif ev.type == core.event.REMOVED then
    counts.last[ev.InstanceID] = nil
  end
end

-- What earlier lives of the store did, once.
local function read_history(engine, counts)
  if counts.is_read then return end
  counts.is_read = true
  for _, record in ipairs(core.history(engine) or {}) do
    local t = not record.skipped and record.time
      and core.datetime(record.time)
    if t and engine:job(record.InstanceID) then
      ended(counts, record.InstanceID, record.JobState == "Completed"
        or record.JobState == "Completed With Warnings", t.microseconds)
    end
  end
end

-- ---- the text --------------------------------------------------------------------------

local escapes = { ["\\"] = "\\\\", ["\n"] = "\\n", ['"'] = '\\"' }

-- UTF-8 of at most LABEL_MAX bytes; engines have no other text in names.
local function label(value)
  local s = tostring(value)
  if #s > LABEL_MAX then
    local at = LABEL_MAX + 1
    while at > 1 and s:byte(at) >= 0x80 and s:byte(at) < 0xc0 do at = at - 1 end
    s = s:sub(1, at - 1)
  end
  return s
end

local function number(value)
  if math.type(value) == "integer" then return ("%d"):format(value) end
  return ("%.17g"):format(value)
end

local function seconds(us)
  return ("%d.%06d"):format(us // 1000000, us % 1000000)
end

-- Writes families in one of the two formats.
local function writer(is_open)
  local out = {}
  local function family(name, kind, unit, help)
    if not is_open then
      if kind == "counter" then name = name .. "_total" end
      if kind == "info" then name, kind = name .. "_info", "gauge" end
    end
    out[#out + 1] = ("# HELP %s %s"):format(name, help)
    out[#out + 1] = ("# TYPE %s %s"):format(name, kind)
    if unit and is_open then
      out[#out + 1] = ("# UNIT %s %s"):format(name, unit)
    end
  end
  local function sample(name, labels, value)
    local list = {}
    for i = 1, labels and #labels or 0, 2 do
      list[#list + 1] = ('%s="%s"'):format(labels[i],
        (labels[i + 1]:gsub('[\\\n"]', escapes)))
    end
    out[#out + 1] = name .. (list[1] and "{" .. table.concat(list, ",") .. "}"
      or "") .. " " .. (type(value) == "string" and value or number(value))
  end
  return out, family, sample
end

local function sorted(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

local function put(row, name, us, choose)
  if us then row[name] = row[name] and choose(row[name], us) or us end
end

-- Adds what a job has to the row of its labels; false: there are no more rows.
local function add(rows, job, last)
  local name, policy = label(job.Name), job.policy
  policy = policy and label(policy) or ""
  local key = job.policy_key and label(job.policy_key) or ""
  local id = ("%d:%d:%s%s%s"):format(#name, #policy, name, policy, key)
  local row = rows[id]
  if not row then
    if #rows >= JOBS_MAX then return false end
    row = { labels = { "job", name, "policy", policy, "key", key }, jobs = 0 }
    rows[id], rows[#rows + 1] = row, row
  end
  row.jobs = row.jobs + 1
  put(row, "success", last.success, math.max)
  put(row, "failure", last.failure, math.max)
  local phase = job.phase
  if phase == "waiting" or phase == "backoff" then
    local due = job:number "ScheduledStartTime"
    if math.type(due) == "integer" and due > 0 and due < 253402300800000000
    then
      put(row, "due", due, math.min)
    end
  end
  return true
end

-- One pass through all jobs: how many are in which state and phase, the series
-- of those that have their own, how many have none. All jobs of a Name are in
-- its series: a thousand that are over must not hide the next one's success.
local function survey(engine, counts)
  local states, rows, others = {}, {}, {}
  local unlisted = 0
  local job, serial = core.job_next(engine, 0)
  while job do
    local id = job.JobState .. "\0" .. job.phase
    states[id] = (states[id] or 0) + 1
    if not add(job.policy and rows or others, job,
      counts.last[job.InstanceID] or {}) then
      unlisted = unlisted + 1
    end
    job, serial = core.job_next(engine, serial)
  end
  for _, row in ipairs(others) do
    if #rows < JOBS_MAX then
      rows[#rows + 1] = row
    else
      unlisted = unlisted + row.jobs
    end
  end
  return states, rows, unlisted
end

local function write_jobs(engine, counts, family, sample)
  local states, list, unlisted = survey(engine, counts)
  family("cairn_jobs", "gauge", nil, "Jobs by JobState and phase.")
  for _, id in ipairs(sorted(states)) do
    local state, phase = id:match "^(.*)%z(.*)$"
    sample("cairn_jobs", { "state", state, "phase", phase }, states[id])
  end
  family("cairn_jobs_unlisted", "gauge", nil, ("Jobs without series of their "
    .. "own: those of %d have some."):format(JOBS_MAX))
  sample("cairn_jobs_unlisted", nil, unlisted)
  for _, row in ipairs { { "success", "last_success",
    "When a run of the job last ended well." }, { "failure", "last_failure",
    "When an attempt at a run of the job last failed, or was ended." },
    { "due", "next_due", "When the job is due, or tried again." } } do
    local name = ("cairn_job_%s_timestamp_seconds"):format(row[2])
    family(name, "gauge", "seconds", row[3])
    for _, job in ipairs(list) do
      if job[row[1]] then sample(name, job.labels, seconds(job[row[1]])) end
    end
  end
end

local function write_queues(engine, family, sample)
  local queues = core.queues(engine) or {}
  for _, row in ipairs { { "running", "running", "Jobs that run." },
    { "queued", "queued", "Jobs that could run and wait for a place." },
    { "unfinished", "unfinished", "Jobs that have not ended." },
    { "concurrency", "concurrency", "How many may run at once." } } do
    local name = "cairn_queue_" .. row[2]
    family(name, "gauge", nil, row[3])
    for _, queue in ipairs(queues) do
      sample(name, { "queue", label(queue.Name) }, math.tointeger(queue[row[1]]))
    end
  end
end

local function write_store(engine, S, family, sample)
  family("cairn_store_degraded", "gauge", nil,
    "1 while the store fails: nothing starts, nothing is published.")
  sample("cairn_store_degraded", nil, core.store_error(engine) and 1 or 0)
  if S.store == ":memory:" then return end
  family("cairn_store_turns", "counter", nil,
    "Turns (changes that are committed as one) that are on disk.")
  sample("cairn_store_turns_total", nil, core.durable(engine))
  family("cairn_store_turns_waiting", "gauge", nil,
    "Turns that are not on disk yet.")
  sample("cairn_store_turns_waiting", nil,
    core.turn(engine) - core.durable(engine))
  local bytes = core.file_size(S.store)
  if bytes then
    family("cairn_store_size_bytes", "gauge", "bytes",
      "The store's file and its write-ahead log.")
    sample("cairn_store_size_bytes", nil,
      bytes + (core.file_size(S.store .. "-wal") or 0))
  end
end

local formats = { openmetrics = true, prometheus = true }

-- text(engine[, format]) -> text. format: "openmetrics" (the default) or
-- "prometheus". Raises on wrong use.
function M.text(engine, format)
  if not core.is_engine(engine) then
    error("metrics: an engine expected, got " .. type(engine), 2)
  elseif not core.is_open(engine) then
    error("attempt to use a closed engine", 2)
  end
  format = format or "openmetrics"
  if not formats[format] then
    error(("metrics: no format '%s'; valid are 'openmetrics' and "
      .. "'prometheus'"):format(failure.shown(format)), 2)
  end
  local S = core.state(engine)
  local counts = S.metrics
  read_history(engine, counts)
  local out, family, sample = writer(format == "openmetrics")
  family("cairn_build", "info", nil, "The version of Cairn.")
  sample("cairn_build_info", { "version", core.version }, 1)
  family("cairn_start_time_seconds", "gauge", "seconds",
    "When the engine was opened.")
  sample("cairn_start_time_seconds", nil, seconds(counts.opened_us))
  family("cairn_runs", "counter", nil, "Attempts at runs that have ended, by "
    .. "how; a failed one that is tried again is retried.")
  for _, name in ipairs(results) do
    sample("cairn_runs_total", { "result", name }, counts.runs[name])
  end
  family("cairn_due_times_skipped", "counter", nil,
    "Times at which a job was due and did not run, by why.")
  for _, name in ipairs(reasons) do
    sample("cairn_due_times_skipped_total", { "reason", name },
      counts.skipped[name])
  end
  family("cairn_exported_bytes", "counter", "bytes",
    "Bytes of runs that made a point (bytes_done) and ended well.")
  sample("cairn_exported_bytes_total", nil, counts.bytes)
  write_jobs(engine, counts, family, sample)
  write_queues(engine, family, sample)
  write_store(engine, S, family, sample)
  if format == "openmetrics" then out[#out + 1] = "# EOF" end
  return table.concat(out, "\n") .. "\n"
end

-- write(engine, path) -> true | nil, message, code: for node_exporter's textfile
-- collector, in one step: who reads the file sees the old text or the new.
function M.write(engine, path)
  if type(path) ~= "string" or path == "" then
    error("metrics: the name of a file expected, got " .. (path == "" and "''"
      or type(path)), 2)
  end
  local text = M.text(engine, "prometheus")
  return core.replace_file(path, text)
end

E.metrics = M
core.engine_methods.metrics = M.text
core.engine_methods.write_metrics = M.write

return M
