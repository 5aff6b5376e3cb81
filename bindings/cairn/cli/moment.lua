-- Times on command lines and in tables: read in a zone, shown with their day
-- of the week.

local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local moment = {}

local weekdays = { "Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed" }
local month_days = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

-- The clock of a zone (nil: this host's), as a schedule; ends the command when
-- there is no such zone.
function moment.clock(cairn, zone)
  local ok, clock = pcall(cairn.schedule, { RunStartInterval =
    "00000000000000.000000:000", JobRunTimes = 0, zone = zone })
  if ok then return clock end
  if type(clock) ~= "table" then error(clock, 0) end
  say.fail_with(cairn, (tostring(clock.message):gsub("^cairn%.schedule: ", "")),
    clock.code)
end

-- 2025-03-30, 2025-03-30T02:30 or 2025-03-30 02:30:00, as a clock of the zone
-- shows it (in a gap its end, twice: the first time) -> Unix microseconds | nil
local function written(cairn, value, zone)
  local year, month, day, rest = value:match "^(%d%d%d%d)%-(%d%d)%-(%d%d)(.*)$"
  year, month, day = math.tointeger(year), math.tointeger(month),
    math.tointeger(day)
  if not year or year < 1971 or month < 1 or month > 12 or day < 1
    or day > month_days[month] or (month == 2 and day == 29
    and not (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0))) then
    return nil
  end
  local hour, minute, second = "00", "00", "00"
  if rest ~= "" then
    hour, minute, second = rest:match "^[T ](%d%d):(%d%d):?(%d*)$"
    if not hour or (second ~= "" and #second ~= 2) then return nil end
    if second == "" then second = "00" end
    if hour > "23" or minute > "59" or second > "59" then return nil end
  end
  moment.clock(cairn, zone) -- which there must be
  local schedule = cairn.schedule { RunMonth = month - 1, RunDay = day,
    RunStartInterval = ("00000000%s%s%s.000000:000"):format(hour, minute,
      second), JobRunTimes = 0, zone = zone }
  -- from two days before that reading in UTC on: no zone is further off
  local utc = cairn.datetime(("%04d%02d%02d000000.000000+000"):format(year,
    month, day))
  local due = schedule:next(1, utc.microseconds // 1000000 - 2 * 86400)[1]
  return due and due.unix_us
end

-- The value of an option as Unix microseconds; nil stays nil.
function moment.parse(cairn, what, value, zone)
  if not value then return nil end
  local us = written(cairn, value, zone)
  if us then return us end
  local ok, time = pcall(cairn.datetime, tonumber(value) or value)
  if not ok or time.kind ~= "timestamp" or time.microseconds < 0 then
    say.fail(2, "%s %s: wants a CIM datetime (20250330000000.000000+060), a "
      .. "date (2025-03-30 or 2025-03-30T02:30, in the zone) or Unix seconds",
      what, text.printable(value))
  end
  return time.microseconds
end

-- Days since 1970 of what the clock shows, for a CIM datetime of that instant.
local function day_number(local_time, unix_us)
  local sign, offset = local_time:match "([+-])(%d%d%d)$"
  local minutes = tonumber(offset)
  return (unix_us // 1000000 + (sign == "-" and -60 or 60) * minutes) // 86400
end

function moment.weekday(local_time, unix_us)
  return weekdays[day_number(local_time, unix_us) % 7 + 1]
end

-- "Sun 2025-03-30"
function moment.day(local_time, unix_us)
  return ("%s %s-%s-%s"):format(moment.weekday(local_time, unix_us),
    local_time:match "^(....)(..)(..)")
end

-- "Sun 2025-03-30 03:00:00 +02:00"
function moment.shown(local_time, unix_us)
  local h, mi, s, fraction, sign, offset =
    local_time:match "^........(..)(..)(..)(%.%d+)([+-])(...)$"
  local minutes = tonumber(offset)
  return ("%s %s:%s:%s%s %s%02d:%02d"):format(moment.day(local_time, unix_us),
    h, mi, s, fraction == ".000000" and "" or fraction, sign, minutes // 60,
    minutes % 60)
end

-- "Sun 2025-03-30 03:00", with seconds where there are any
function moment.short(local_time, unix_us)
  local h, mi, s = local_time:match "^........(..)(..)(..)"
  return ("%s %s:%s%s"):format(moment.day(local_time, unix_us), h, mi,
    s == "00" and "" or ":" .. s)
end

return moment
