-- cairn simulate: a month of a policy in a moment, and what came of it.

local moment = require "cairn.cli.moment"
local policies = require "cairn.cli.policies"
local say = require "cairn.cli.say"
local simulate = require "cairn.simulate"
local text = require "cairn.cli.text"

local command = {}

local LINES_MAX = 40 -- of what there may be very many of; --json has all

local skip_reasons = {
  missed = "nothing ran at that time",
  running = "the run before was not over",
  held = "the job was held",
  ended = "the job had ended",
  queued = "it waited longer than MaxTimeOnQueue",
}

-- ---- what the options say ----------------------------------------------------------

local function history_of(cairn, name)
  if not name then return nil end
  local file, message
  if name == "-" then
    file = io.stdin
  else
    file, message = io.open(name, "r")
    if not file then
      say.fail(2, "simulate: --history: %s", text.printable(message))
    end
  end
  local records, number = {}, 0
  for line in file:lines() do
    number = number + 1
    local record = line:find "%S" and cairn.json_decode(line)
    if line:find "%S" and type(record) ~= "table" then
      say.fail(2, "simulate: --history %s, line %d: no JSON object; it is what "
        .. "cairn history --json prints", text.printable(name), number)
    end
    records[#records + 1] = record or nil
  end
  if file ~= io.stdin then file:close() end
  return records
end

-- START/DURATION..., rising and apart.
local function holes_of(cairn, list, zone)
  local holes = {}
  for _, value in ipairs(list or {}) do
    local start, length = value:match "^(.+)/([^/]+)$"
    local ok, t = pcall(cairn.interval, length or "")
    if not start or not ok or t.kind ~= "interval" or t.microseconds <= 0 then
      say.fail(2, "simulate: --down %s: wants START/DURATION, such as "
        .. "2025-03-10T01:00/6h", text.printable(value))
    end
    local from = moment.parse(cairn, "simulate: --down", start, zone)
    holes[#holes + 1] = { from_us = from, to_us = from + t.microseconds }
  end
  table.sort(holes, function(a, b) return a.from_us < b.from_us end)
  for i = 2, #holes do
    if holes[i].from_us <= holes[i - 1].to_us then
      say.fail(2, "simulate: --down: two of them overlap")
    end
  end
  return holes
end

-- Bytes that a disk's file takes: what is a hole is not read.
local function size_with(uv)
  return function(path)
    local status = uv.fs_stat(path)
    if not status then return nil end
    if status.type == "file" then return status.blocks * 512 end
  end
end

-- ---- the result as rows --------------------------------------------------------------

-- The days of the window: { from_us, to_us, runs =, ... }, by the zone's clock.
local function days_of(sim)
  local days, at = {}, sim.from_us
  while at < sim.to_us do
    local next_us = sim.clock:next(1, at / 1e6)[1].unix_us
    days[#days + 1] = { from_us = at, to_us = math.min(next_us, sim.to_us),
      runs = 0, failed = 0, retried = 0, skipped = 0, wait_us = 0, busy_us = 0,
      peak = 0, made = 0, pruned = 0, notes = {}, noted = {} }
    at = next_us
  end
  local function day_at(us)
    local low, high = 1, #days
    while low < high do
      local middle = (low + high + 1) // 2
      if days[middle].from_us <= us then low = middle else high = middle - 1 end
    end
    return days[low]
  end
  return days, day_at
end

-- Adds the time in which anything ran to its days.
local function add_busy(sim, days)
  local day, busy_until = 1, sim.from_us
  for _, run in ipairs(sim.runs) do -- in order of their beginning
    local from = math.max(run.start_us, busy_until)
    local to = run.end_us or sim.to_us
    while from < to do
      while day < #days and days[day].to_us <= from do day = day + 1 end
      local upto = math.min(to, days[day].to_us)
      if upto <= from then break end
      days[day].busy_us = days[day].busy_us + upto - from
      from = upto
    end
    busy_until = math.max(busy_until, to)
  end
  for _, d in ipairs(days) do
    if d.busy_us > 0 then d.peak = math.max(d.peak, 1) end
  end
end

local function moved_text(moved)
  if moved.kind == "gap" then
    return "the clock is put forward over "
      .. table.concat(moved.nominals, ", ")
  end
  return "the clock shows " .. moved.nominals[1] .. " twice"
end

local function note(day, line)
  if not day.noted[line] then
    day.noted[line] = true
    day.notes[#day.notes + 1] = line
  end
end

local function tally(sim)
  local days, day_at = days_of(sim)
  local total = { runs = 0, failed = 0, retried = 0, skipped = 0, made = 0,
    pruned = 0, running = 0 }
  local function add(day, name, n)
    day[name], total[name] = day[name] + n, total[name] + n
  end
  for _, run in ipairs(sim.runs) do
    local day, entry = day_at(run.start_us), run.entry
    if run.attempt == 1 then
      add(day, "runs", 1)
      entry.run_count = (entry.run_count or 0) + 1
    end
    if run.is_retried then
      add(day, "retried", 1)
      entry.retried = (entry.retried or 0) + 1
    elseif run.end_us and not simulate.is_well[run.state] then
      add(day, "failed", 1)
      entry.failed = (entry.failed or 0) + 1
    elseif not run.end_us then
      total.running = total.running + 1
    end
    if run.point then add(day, "made", 1) end
    add(day, "pruned", run.pruned or 0)
    day.wait_us = math.max(day.wait_us, run.wait_us)
    entry.wait_us = math.max(entry.wait_us or 0, run.wait_us)
    day.peak = math.max(day.peak, run.concurrency)
    entry.latest = run
    local moved = run.due_us and entry.moved[run.due_us]
    if moved and run.attempt == 1 then
      note(day, ("%s: %s"):format(text.printable(entry.key),
        moved_text(moved)))
    end
  end
  for _, skip in ipairs(sim.skips) do
    add(day_at(math.min(skip.first_us, sim.to_us - 1)), "skipped", skip.count)
  end
  for _, hole in ipairs(sim.options.down) do
    if hole.from_us < sim.to_us and hole.to_us > sim.from_us then
      note(day_at(math.max(hole.from_us, sim.from_us)), "the host is down for "
        .. text.duration((hole.to_us - hole.from_us) / 1e6))
    end
  end
  add_busy(sim, days)
  return days, total
end

local function pairs_of(sim)
  local list = {}
  for _, pair in pairs(sim.pairs) do list[#list + 1] = pair end
  table.sort(list, function(a, b)
    if a.us ~= b.us then return a.us > b.us end
    if a.a ~= b.a then return a.a.number < b.a.number end
    return a.b.number < b.b.number
  end)
  return list
end

-- ---- for programs -------------------------------------------------------------------

local lists = { waited_for = true, jobs = true, reasons = true, nominals = true,
  removed = true, notes = true, warnings = true }

local function print_json(cairn, sim, days, total)
  local function time(us) return us and sim.clock:local_time(us) end
  local function out(record, fields)
    fields.record = record
    say.json(cairn, fields, lists)
  end
  local function job_fields(entry, fields)
    fields.job, fields.policy = entry.key, entry.policy
    fields.policy_key, fields.kind = entry.policy_key, entry.kind
    return fields
  end
  for _, run in ipairs(sim.runs) do
    local moved = run.due_us and run.entry.moved[run.due_us]
    out("run", job_fields(run.entry, { run_number = run.run_number,
      attempt = run.attempt, due = time(run.due_us),
      due_kind = run.due_us and (moved and moved.kind or "normal"),
      nominals = moved and moved.nominals, start = time(run.start_us),
      ["end"] = time(run.end_us), JobState = run.state or "Running",
      is_retried = run.is_retried, retry = time(run.retry_us),
      wait_seconds = run.wait_us / 1e6, wait_reason = run.reason,
      waited_for = run.by, concurrency = run.concurrency,
      length_seconds = run.length, length_from = run.length_from,
      point = run.point, why_full = run.why_full, pruned = run.pruned,
      merged = run.merged, kept = run.kept, warnings = run.warnings }))
  end
  for _, skip in ipairs(sim.skips) do
    out("skip", job_fields(skip.entry, { count = skip.count,
      reason = skip.reason, first = time(skip.first_us),
      last = time(skip.last_us), time = time(skip.unix_us) }))
  end
  for _, prune in ipairs(sim.prunes) do
    out("prune", job_fields(prune.entry, { time = time(prune.unix_us),
      directory = prune.directory, removed = prune.removed,
      merged = prune.merged, kept = prune.kept, reason = prune.reason }))
  end
  for _, notice in ipairs(sim.notices) do
    out("notice", job_fields(notice.entry, { time = time(notice.unix_us),
      Notify = notice.Notify, JobState = notice.state,
      run_number = notice.run_number }))
  end
  for _, day in ipairs(days) do
    out("day", { day = moment.day(time(day.from_us), day.from_us):sub(5),
      runs = day.runs, failed = day.failed, retried = day.retried,
      skipped = day.skipped, longest_wait_seconds = day.wait_us / 1e6,
      busy_seconds = day.busy_us / 1e6, peak = day.peak, points = day.made,
      pruned = day.pruned, notes = day.notes })
  end
  for _, entry in ipairs(sim.entries) do
    local skipped = next(entry.skipped) and entry.skipped or nil
    out("job", job_fields(entry, { runs = entry.run_count or 0,
      failed = entry.failed or 0, retried = entry.retried or 0,
      skipped = entry.skip_count, skipped_by_reason = skipped,
      latest = time(entry.latest and entry.latest.start_us),
      longest_wait_seconds = (entry.wait_us or 0) / 1e6,
      length_from = entry.length_from, JobState = entry.state,
      phase = entry.phase, next = time(entry.next_us) }))
  end
  for _, pair in ipairs(pairs_of(sim)) do
    out("overlap", { jobs = { pair.a.key, pair.b.key }, count = pair.count,
      seconds = pair.us / 1e6 })
  end
  for _, name in ipairs(sim.directory_names) do
    local d = sim.directories[name]
    for _, point in ipairs(d.points) do
      out("point", { directory = name, time = point.time,
        CollectionId = point.collection, is_simulated = not point.is_old,
        type = point.base and "increment" or "full", bytes = point.bytes,
        reasons = point.reasons })
    end
    out("directory", { directory = name, found = d.found, made = d.made,
      pruned = d.pruned, points = #d.points, most = d.most, bytes = d.bytes,
      most_bytes = d.most_bytes })
  end
  total.from, total.to, total.zone = time(sim.from_us), time(sim.to_us),
    sim.zone
  total.peak, total.peak_time = sim.peak.count, time(sim.peak.unix_us)
  total.jobs, total.notes = sim.peak.jobs, sim.notes
  out("total", total)
end

-- ---- for people ----------------------------------------------------------------------

local function heading(line)
  say.result ""
  say.result(line)
end

-- A table under a heading, when it has rows; cut, where there may be many.
local function section(title, columns, rows)
  if #rows == 0 then return end
  heading(title)
  local left = #rows - LINES_MAX
  if left > 0 then rows = table.move(rows, 1, LINES_MAX, 1, {}) end
  for _, line in ipairs(text.table(columns, rows)) do
    say.result("  " .. line)
  end
  if left > 0 then
    say.result(("  ... and %d more (--json prints all)"):format(left))
  end
end

local function n(count) return count > 0 and ("%d"):format(count) or "-" end

local function duration(us) return us > 0 and text.duration(us / 1e6) or "-" end

local function names_of(list)
  local out = {}
  for i, name in ipairs(list) do out[i] = text.printable(name) end
  return table.concat(out, ", ")
end

-- Waits of the same kind in one row: { entry, reason, by, count, most run }.
local function waits_of(sim)
  local by_id, list = {}, {}
  for _, run in ipairs(sim.runs) do
    if run.wait_us > 0 then
      local names = table.concat(run.by, "\0")
      local id = ("%d\0%s\0%s"):format(run.entry.number, run.reason, names)
      local row = by_id[id]
      if not row then
        row = { run = run, count = 0 }
        by_id[id] = row
        list[#list + 1] = row
      end
      row.count = row.count + 1
      if run.wait_us > row.run.wait_us then row.run = run end
    end
  end
  table.sort(list, function(a, b)
    if a.run.wait_us ~= b.run.wait_us then
      return a.run.wait_us > b.run.wait_us
    end
    return a.run.start_us < b.run.start_us
  end)
  return list
end

local function reason_of(run)
  if run.reason == "down" then return "the host was down" end
  if run.reason == "directory" then
    return "its directory was in use: " .. names_of(run.by)
  end
  local queue = text.printable(run.entry.queue)
  if #run.by == 0 then return "for a place in the queue " .. queue end
  return ("the queue %s was full: %s"):format(queue, names_of(run.by))
end

local function print_runs(sim, short)
  local rows = {}
  for i, run in ipairs(sim.runs) do
    local what = run.state and (simulate.is_well[run.state] and "well"
      or run.is_retried and "failed, again at " .. (run.retry_us
        and short(run.retry_us) or "once") or "failed") or "still running"
    if run.point then
      what = ("%s, %s point"):format(what, run.point)
      if run.why_full then what = ("%s (%s)"):format(what, run.why_full) end
    end
    if (run.pruned or 0) > 0 then
      what = ("%s, %d pruned"):format(what, run.pruned)
    end
    rows[i] = { short(run.start_us), text.printable(run.entry.key),
      ("%d%s"):format(run.run_number, run.attempt > 1
        and "." .. run.attempt or ""), duration(run.wait_us),
      run.end_us and duration(run.end_us - run.start_us) or "-", what }
  end
  if #rows == 0 then return end
  heading "Runs"
  for _, line in ipairs(text.table({ { title = "START" }, { title = "JOB" },
    { title = "RUN", is_number = true }, { title = "WAITED", is_number = true },
    { title = "TOOK", is_number = true }, { title = "RESULT" } }, rows)) do
    say.result("  " .. line)
  end
end

-- What is alike in a list, by id_of(item): { first =, last =, count = }, in order of
-- the first ones.
local function grouped(list, id_of)
  local by_id, groups = {}, {}
  for _, item in ipairs(list) do
    local id = id_of(item)
    local group = by_id[id]
    if not group then
      group = { first = item, count = 0 }
      by_id[id] = group
      groups[#groups + 1] = group
    end
    group.last, group.count = item, group.count + 1
  end
  return groups
end

local function print_warnings(sim, short)
  local warnings, rows = {}, {}
  for _, run in ipairs(sim.runs) do
    for _, warning in ipairs(run.warnings or {}) do
      warnings[#warnings + 1] = { run = run, text = warning }
    end
  end
  for i, group in ipairs(grouped(warnings, function(warning)
    return ("%d\0%s"):format(warning.run.entry.number, warning.text)
  end)) do
    local run = group.first.run
    rows[i] = { text.printable(run.entry.key), n(group.count),
      short(run.start_us), text.printable(group.first.text) }
  end
  section("Warnings", { { title = "JOB" },
    { title = "TIMES", is_number = true }, { title = "FIRST" },
    { title = "WHAT" } }, rows)
end

local function print_prunes(sim, short)
  local rows = {}
  for i, prune in ipairs(sim.prunes) do
    rows[i] = { short(prune.unix_us), text.printable(prune.entry.key),
      ("%d"):format(#prune.removed), short(prune.first_us),
      short(prune.last_us), n(prune.merged), n(prune.kept),
      prune.reason }
  end
  section("Prunes", { { title = "AT" }, { title = "JOB" },
    { title = "REMOVED", is_number = true }, { title = "FROM" },
    { title = "TO" }, { title = "MERGED", is_number = true },
    { title = "LEFT", is_number = true }, { title = "WHY" } }, rows)
end

local function print_notices(sim, short)
  local rows = {}
  for i, group in ipairs(grouped(sim.notices, function(notice)
    return ("%d\0%s\0%s"):format(notice.entry.number, notice.Notify,
      notice.state)
  end)) do
    local notice = group.first
    rows[i] = { text.printable(notice.Notify),
      text.printable(notice.entry.key), notice.state, n(group.count),
      short(notice.unix_us), short(group.last.unix_us) }
  end
  section("Notices", { { title = "WHOM" }, { title = "JOB" },
    { title = "STATE" }, { title = "TIMES", is_number = true },
    { title = "FIRST" }, { title = "LAST" } }, rows)
end

local function print_points(sim)
  local rows, kept, has_pruned = {}, {}, false
  for _, name in ipairs(sim.directory_names) do
    local d = sim.directories[name]
    has_pruned = has_pruned or d.pruned > 0
    rows[#rows + 1] = { text.printable(name), ("%d"):format(d.found),
      ("%d"):format(d.made), ("%d"):format(d.pruned),
      ("%d"):format(#d.points), ("%d"):format(d.most),
      text.bytes(d.most_bytes) }
    for i = #d.points, 1, -1 do
      local point = d.points[i]
      kept[#kept + 1] = { text.printable(name),
        moment.short(point.time, point.unix_us),
        point.base and "increment" or "full",
        point.reasons and table.concat(point.reasons, ", ")
        or "newer than the last prune" }
    end
  end
  section("Points", { { title = "DIRECTORY" },
    { title = "BEFORE", is_number = true }, { title = "MADE", is_number = true },
    { title = "PRUNED", is_number = true },
    { title = "AT THE END", is_number = true },
    { title = "MOST", is_number = true },
    { title = "LARGEST", is_number = true } }, rows)
  if has_pruned then
    section("Points at the end, and what keeps them", { { title =
      "DIRECTORY" }, { title = "TIME" }, { title = "TYPE" },
      { title = "KEPT BY" } }, kept)
  end
end

local function print_text(sim, days, total, options)
  local function short(us)
    return moment.short(sim.clock:local_time(us), us)
  end
  say.result(("%s to %s (%s): %s, %s, %d failed, %d tried again, %d skipped")
    :format(short(sim.from_us), short(sim.to_us), text.printable(sim.zone),
      text.count(#sim.specs, "job"), text.count(total.runs, "run"),
      total.failed, total.retried, total.skipped))
  if sim.peak.count > 0 then
    say.result(("At most %d at the same time, first at %s: %s"):format(
      sim.peak.count, short(sim.peak.unix_us), names_of(sim.peak.jobs)))
  end
  heading "Days"
  local rows = {}
  for i, day in ipairs(days) do
    local at = sim.clock:local_time(day.from_us)
    rows[i] = { moment.day(at, day.from_us), n(day.runs), n(day.failed),
      n(day.skipped), n(day.made), n(day.pruned), n(day.peak),
      duration(day.busy_us), duration(day.wait_us),
      table.concat(day.notes, "; ") }
  end
  for _, line in ipairs(text.table({ { title = "DAY" },
    { title = "RUNS", is_number = true }, { title = "FAILED", is_number = true },
    { title = "SKIPPED", is_number = true },
    { title = "POINTS", is_number = true },
    { title = "PRUNED", is_number = true }, { title = "PEAK", is_number = true },
    { title = "BUSY", is_number = true },
    { title = "LONGEST WAIT", is_number = true },
    { title = "NOTE" } }, rows)) do
    say.result("  " .. line)
  end
  rows = {}
  for i, entry in ipairs(sim.entries) do
    local run = entry.latest
    rows[i] = { text.printable(entry.key), n(entry.run_count or 0),
      n(entry.failed or 0), n(entry.retried or 0), n(entry.skip_count),
      run and short(run.start_us) or "never", duration(entry.wait_us or 0),
      run and run.length and ("%s (%s)"):format(
        text.duration(run.length), run.length_from) or "-",
      entry.next_us and short(entry.next_us) or entry.phase == "done"
        and entry.state or entry.phase }
  end
  section("Jobs", { { title = "JOB" }, { title = "RUNS", is_number = true },
    { title = "FAILED", is_number = true }, { title = "RE-RUN",
    is_number = true }, { title = "SKIPPED", is_number = true },
    { title = "LATEST" }, { title = "LONGEST WAIT", is_number = true },
    { title = "TAKES" }, { title = "NEXT" } }, rows)
  if options.runs then print_runs(sim, short) end
  rows = {}
  for i, row in ipairs(waits_of(sim)) do
    local run = row.run
    rows[i] = { text.printable(run.entry.key), ("%d"):format(row.count),
      duration(run.wait_us), short(run.start_us), reason_of(run) }
  end
  section("Waits", { { title = "JOB" }, { title = "TIMES", is_number = true },
    { title = "LONGEST", is_number = true }, { title = "THAT RUN BEGAN" },
    { title = "WHY" } }, rows)
  rows = {}
  for i, skip in ipairs(sim.skips) do
    rows[i] = { text.printable(skip.entry.key), ("%d"):format(skip.count),
      short(skip.first_us), short(skip.last_us), skip_reasons[skip.reason] }
  end
  section("Skipped", { { title = "JOB" }, { title = "TIMES", is_number = true },
    { title = "FIRST DUE" }, { title = "LAST DUE" }, { title = "WHY" } }, rows)
  rows = {}
  for _, run in ipairs(sim.runs) do
    if run.end_us and not simulate.is_well[run.state] then
      rows[#rows + 1] = { text.printable(run.entry.key),
        ("%d"):format(run.run_number), ("%d"):format(run.attempt),
        short(run.end_us), run.is_retried and (run.retry_us and "again at "
          .. short(run.retry_us) or "to be tried again") or "given up" }
    end
  end
  section("Failures", { { title = "JOB" }, { title = "RUN", is_number = true },
    { title = "ATTEMPT", is_number = true }, { title = "FAILED AT" },
    { title = "THEN" } }, rows)
  rows = {}
  for i, pair in ipairs(pairs_of(sim)) do
    rows[i] = { ("%s, %s"):format(text.printable(pair.a.key),
      text.printable(pair.b.key)), ("%d"):format(pair.count),
      duration(pair.us) }
  end
  section("At the same time", { { title = "JOBS" },
    { title = "TIMES", is_number = true }, { title = "IN ALL",
    is_number = true } }, rows)
  print_warnings(sim, short)
  print_notices(sim, short)
  print_prunes(sim, short)
  print_points(sim)
end

-- ---- the command -----------------------------------------------------------------------

function command.simulate(cairn, uv, options)
  local assume, message = simulate.assume(options.assume or {})
  if not assume then
    say.fail(2, "simulate: --assume %s", text.printable(message))
  end
  local loaded = policies.load(cairn, uv, options.policy,
    policies.settings(options.set))
  local now_s = uv.gettimeofday()
  local sim, why, code = simulate.run(loaded, {
    from_us = moment.parse(cairn, "simulate: --from", options.from,
      options.zone) or now_s * 1000000,
    days = tonumber(options.days) or 30, zone = options.zone,
    assume = assume, rate = options.rate and tonumber(options.rate) * 1e6,
    history = history_of(cairn, options.history),
    queues = policies.queues(options.queue),
    down = holes_of(cairn, options.down, options.zone),
    size = size_with(uv), points = not options.fresh and cairn.points or nil,
  })
  if not sim then say.fail_with(cairn, "simulate: " .. why, code) end
  for _, line in ipairs(sim.notes) do say.note(text.printable(line)) end
  local days, total = tally(sim)
  if options.json then
    print_json(cairn, sim, days, total)
  else
    print_text(sim, days, total, options)
  end
  return 0
end

return command
