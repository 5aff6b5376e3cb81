-- cairn calendar: the coming months, with the days on which jobs are due.

local moment = require "cairn.cli.moment"
local policies = require "cairn.cli.policies"
local preview = require "cairn.cli.preview"
local remote = require "cairn.cli.remote"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local calendar = {}

local LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
local MARKS_MAX = 7 -- in one day; seven days then fit 80 columns
local months = { "January", "February", "March", "April", "May", "June", "July",
  "August", "September", "October", "November", "December" }

-- ---- dates -----------------------------------------------------------------------------

local function days_in(year, month)
  if month == 2 then
    local is_leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
    return is_leap and 29 or 28
  end
  return (month == 4 or month == 6 or month == 9 or month == 11) and 30 or 31
end

-- 1 is Monday (Sakamoto's congruence).
local function weekday(year, month, day)
  local shift = { 0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4 }
  if month < 3 then year = year - 1 end
  local sunday = (year + year // 4 - year // 100 + year // 400 + shift[month]
    + day) % 7
  return (sunday + 6) % 7 + 1
end

local function date_of(local_time)
  local year, month, day = local_time:match "^(%d%d%d%d)(%d%d)(%d%d)"
  return math.tointeger(year), math.tointeger(month), math.tointeger(day)
end

-- ---- the lines -------------------------------------------------------------------------

local function marks_of(view, date)
  local marks, is_moved = {}, false
  for i, job in ipairs(view.jobs) do
    local day = job.days[date]
    if day then
      marks[#marks + 1] = i <= #LETTERS and LETTERS:sub(i, i) or "+"
      is_moved = is_moved or day.is_moved
    end
  end
  local shown = table.concat(marks)
  if #marks > MARKS_MAX then shown = shown:sub(1, MARKS_MAX - 1) .. "+" end
  return shown, is_moved
end

local function add_month(view, width, lines, year, month)
  lines[#lines + 1] = ("%s %d"):format(months[month], year)
  local cells = {}
  for _ = 2, weekday(year, month, 1) do cells[#cells + 1] = "" end
  for day = 1, days_in(year, month) do
    local marks, is_moved = marks_of(view, ("%04d%02d%02d"):format(year, month,
      day))
    cells[#cells + 1] = ("%2d%s%s"):format(day, is_moved and "!" or " ", marks)
  end
  local head = {}
  for i, name in ipairs { "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun" } do
    head[i] = text.fit(name, width)
  end
  lines[#lines + 1] = (table.concat(head):gsub(" +$", ""))
  for first = 1, #cells, 7 do
    local week = {}
    for i = first, math.min(first + 6, #cells) do
      week[#week + 1] = text.fit(cells[i], width)
    end
    lines[#lines + 1] = (table.concat(week):gsub(" +$", ""))
  end
  lines[#lines + 1] = ""
end

-- render(view) -> lines. view: year, month (the first), count (of months), jobs:
-- a list of { name, zone, note, runs, times (of day, distinct), days }, days a
-- table of "YYYYMMDD" -> { is_moved = }; moved: a list of texts.
function calendar.render(view)
  local lines = {}
  local year, month = view.year, view.month
  local width = 4 -- of a day, in all months alike
  for _, job in ipairs(view.jobs) do
    for date in pairs(job.days) do
      width = math.max(width, 4 + #marks_of(view, date))
    end
  end
  for _ = 1, view.count do
    add_month(view, width, lines, year, month)
    month = month + 1
    if month > 12 then year, month = year + 1, 1 end
  end
  local rows = {}
  for i, job in ipairs(view.jobs) do
    local times = table.concat(job.times, ", ", 1, math.min(#job.times, 3))
    if #job.times > 3 then times = times .. ", ..." end
    rows[i] = { i <= #LETTERS and LETTERS:sub(i, i) or "+", job.name,
      ("%d"):format(job.runs), times, job.zone, job.note or "" }
  end
  if #rows > 0 then
    for _, line in ipairs(text.table({ { title = "" }, { title = "JOB" },
      { title = "RUNS", is_number = true }, { title = "AT" },
      { title = "ZONE" }, { title = "" } }, rows)) do
      lines[#lines + 1] = line
    end
  end
  if #view.moved > 0 then
    lines[#lines + 1] = ""
    for _, line in ipairs(view.moved) do lines[#lines + 1] = "! " .. line end
  end
  return lines
end

-- ---- what is shown ------------------------------------------------------------------------

-- The policy's jobs: { name, spec, where }.
local function jobs_of_policies(cairn, uv, options)
  local list = {}
  local loaded = policies.load(cairn, uv, options.policy,
    policies.settings(options.set))
  for _, policy in ipairs(loaded) do
    local keys = {}
    for key in pairs(policy.jobs) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do
      list[#list + 1] = { spec = policy.jobs[key], file = policy.file,
        key = key, name = text.printable(#loaded == 1 and key
          or policy.name .. ":" .. key) }
    end
  end
  return list
end

-- The jobs of a service that have runs left.
local function jobs_of_service(cairn, uv, options)
  local list = {}
  for _, job in ipairs(remote.list(cairn, uv, options)) do
    if job.phase ~= "done" then
      local spec = {}
      for name, value in pairs(job) do
        if type(value) ~= "userdata" then spec[name] = value end
      end
      -- what is left of them
      local times = math.tointeger(spec.JobRunTimes) or 0
      if times > 0 then
        spec.JobRunTimes = math.max(1, times - (math.tointeger(spec.run_number)
          or 0))
      end
      spec.ScheduledStartTime = nil
      list[#list + 1] = { spec = spec, file = "the service", key = job.Name,
        name = text.printable(job.Name or "?"),
        note = job.phase == "held" and "held" or nil }
    end
  end
  return list
end

-- Adds the runs of a job up to the end; the runs, for --json.
local function fill(cairn, view, entry, schedule, from_us, last_date)
  local job = { name = entry.name, zone = text.printable(schedule.zone),
    note = entry.note, runs = 0, times = {}, days = {} }
  local seen, out = {}, {}
  -- two in a day at most, where the clock shows a time twice
  local list = schedule:next(view.count * 62, preview.beginning(cairn, entry.spec,
    cairn.datetime(from_us / 1e6)))
  for _, run in ipairs(list) do
    local date = run.local_time:sub(1, 8)
    if date > last_date then break end
    job.runs = job.runs + 1
    job.days[date] = job.days[date] or {}
    local time = ("%s:%s"):format(run.local_time:match "^........(..)(..)")
    if run.kind ~= "normal" then
      job.days[date].is_moved = true
      view.moved[#view.moved + 1] = ("%s: %s: %s"):format(moment.short(
        run.local_time, run.unix_us), entry.name, preview.note_of(run))
    elseif not seen[time] then
      seen[time] = true
      job.times[#job.times + 1] = time
    end
    out[#out + 1] = run
  end
  table.sort(job.times)
  view.jobs[#view.jobs + 1] = job
  return out
end

function calendar.calendar(cairn, uv, options)
  local entries
  if options.policy then
    if options.socket then
      say.fail(2, "calendar: --socket is without POLICY.lua")
    end
    entries = jobs_of_policies(cairn, uv, options)
  else
    entries = jobs_of_service(cairn, uv, options)
  end
  local seconds = uv.gettimeofday()
  local from_us = moment.parse(cairn, "calendar: --from", options.from,
    options.zone) or seconds * 1000000
  local clock = moment.clock(cairn, options.zone)
  local year, month = date_of(clock:local_time(from_us))
  local count = tonumber(options.months) or 2
  local last = month - 1 + count - 1
  local last_year, last_month = year + last // 12, last % 12 + 1
  local last_date = ("%04d%02d%02d"):format(last_year, last_month,
    days_in(last_year, last_month))
  local view = { year = year, month = month, count = count, jobs = {},
    moved = {} }
  for _, entry in ipairs(entries) do
    local schedule = preview.schedule_of(cairn, entry.file, entry.key,
      entry.spec, options)
    if not schedule then
      say.note(("%s: no calendar"):format(entry.name))
    else
      local runs = fill(cairn, view, entry, schedule, from_us, last_date)
      for _, run in ipairs(options.json and runs or {}) do
        run.job, run.zone = entry.name, schedule.zone
        say.json(cairn, run, {})
      end
    end
  end
  if options.json then return 0 end
  if #view.jobs == 0 then
    say.note "no job has a calendar"
    return 0
  end
  for _, line in ipairs(calendar.render(view)) do say.result(line) end
  return 0
end

return calendar
