-- An increment every night, and a full every week.
--
-- The first good run since the last full_day is the full, all others hold what
-- has changed since the newest point. So a Sunday on which the machine was off,
-- or the export failed, is made up for on the next night. Points stay for
-- keep_days; a week goes as a whole, so that nothing has to be merged.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview nightly.lua
--   cairn simulate nightly.lua
--   cairn run nightly.lua --set directory=/tmp/out --dry-run
--   cairn run nightly.lua --follow --store /var/lib/cairn/cairn.db
--   cp nightly.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  time = "01:00",               -- of the night's run
  zone = "",                    -- Europe/Berlin; "": the host's
  full_day = "Sunday",
  keep_days = { 35, 0, 36500 }, -- 0: for ever
  skip = "",                    -- disks left out: swap,scratch
})

-- ---- machines -----------------------------------------------------------
-- Paths are relative to this file. The ids are GUIDs: choose them once, by
-- uuidgen.

local farm = cairn.collection {
  CollectionId = "6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01",
  ElementName = "web-farm",
  machines = {
    { VirtualMachineId = "0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001",
      ElementName = "web1",
      disks = {
        { id = "vda", path = "images/web1.raw", format = "raw" },
        { id = "vdb", path = "images/data.raw", format = "raw" },
      } },
  },
}

-- ---- the policy ---------------------------------------------------------

local DAY = 86400
local weekdays = { Sunday = 1, Monday = 2, Tuesday = 3, Wednesday = 4,
  Thursday = 5, Friday = 6, Saturday = 7 }
local full_wday = weekdays[set.full_day]
if not full_wday then
  error(("setting full_day is '%s'; a weekday such as Sunday expected"):format(
    set.full_day))
end

local hour, minute = set.time:match "^(%d%d?):(%d%d)$"
hour, minute = tonumber(hour), tonumber(minute)
if not hour or hour > 23 or minute > 59 then
  error(("setting time is '%s'; HH:MM expected, 00:00 to 23:59"):format(set.time))
end
local seconds = hour * 3600 + minute * 60

local is_disk, is_skipped = {}, {}
for _, machine in ipairs(farm.machines) do
  for _, disk in ipairs(machine.disks or {}) do is_disk[disk.id] = true end
end
for id in set.skip:gmatch "[^,%s]+" do
  if not is_disk[id] then
    error(("setting skip: no machine has a disk '%s'"):format(id))
  end
  is_skipped[id] = true
end

-- Unix seconds of a CIM datetime, which is what history has.
local function unix_of(text)
  local y, m, d, h, min, s, offset = text:match
    "^(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)(%d%d)%.%d+([+-]%d%d%d)$"
  y, m = tonumber(y), tonumber(m)
  if m < 3 then y, m = y - 1, m + 12 end
  local days = 365 * y + y // 4 - y // 100 + y // 400 + (153 * m - 457) // 5
    + tonumber(d) - 719469
  return days * DAY + tonumber(h) * 3600 + tonumber(min) * 60 + tonumber(s)
    - tonumber(offset) * 60
end

local is_good = { ["Completed"] = true, ["Completed With Warnings"] = true }

-- Whether a run belongs to the week that began with the last full_day, whose
-- midnight is given. A run that the calendar made due counts from half a day
-- before the full's own time, so that the hour which a change of the clock adds
-- or takes never moves it into another week.
local function is_of_week(record, midnight)
  if record.due then
    return unix_of(record.due) >= midnight + seconds - DAY // 2
  end
  return unix_of(record.StartTime or record.time) >= midnight
end

local function base(job, history)
  if #history == 0 then return nil end -- the first run: as the job says
  local now = job.now
  local midnight = now.unix - (now.wday - full_wday) % 7 * DAY
    - now.hour * 3600 - now.min * 60 - now.sec
  for _, record in ipairs(history) do
    if is_good[record.JobState] and is_of_week(record, midnight) then
      return "latest"
    end
  end
  return "none"
end

-- The points of the last keep_days, and what they are based on. Markers are
-- left alone by a prune, and not named.
local function retain(points)
  if set.keep_days == 0 then return nil end
  local by_id, keep, newest = {}, {}, 0
  for _, point in ipairs(points) do
    if point.kind == "export" then
      by_id[point.ReferencePointGroupId] = point
      newest = math.max(newest, point.time.unix)
    end
  end
  for id, point in pairs(by_id) do
    if newest - point.time.unix <= set.keep_days * DAY then
      while point and not keep[id] do
        keep[id] = true
        id = point.BaseReferencePointGroupId
        point = by_id[id]
      end
    end
  end
  return keep
end

-- ---- tests: run whenever the file is loaded by a service ----------------

-- 2026-01-04 is a Sunday; its 01:00 is 1767488400 in UTC.
local sunday = { unix = 1767488400, wday = 1, hour = 1, min = 0, sec = 0 }
local monday = { unix = 1767488400 + DAY, wday = 2, hour = 1, min = 0, sec = 0 }

local function run(due, state)
  return { JobState = state or "Completed", due = due, time = due }
end

local tests = {
  ["a date is read"] = function()
    assert(unix_of "20260104010000.000000+000" == 1767488400)
    assert(unix_of "20260104020000.000000+060" == 1767488400)
    assert(unix_of "20240229120000.000000-300" == 1709226000)
  end,
  ["nothing is known before the first run"] = function(policy)
    assert(policy.base({ now = sunday }, {}) == nil)
  end,
  ["a Sunday is a full, a Monday is not"] = function(policy)
    if set.full_day ~= "Sunday" or set.time ~= "01:00" then return end
    local history = { run "20260103010000.000000+000" }
    assert(policy.base({ now = sunday }, history) == "none")
    history[2] = run "20260104010000.000000+000"
    assert(policy.base({ now = monday }, history) == "latest")
  end,
  ["a Sunday without a good run is made up for"] = function(policy)
    if set.full_day ~= "Sunday" or set.time ~= "01:00" then return end
    local history = { run "20260103010000.000000+000",
      run("20260104010000.000000+000", "Exception"),
      { skipped = 1, reason = "missed", due = "20260104010000.000000+000" } }
    assert(policy.base({ now = monday }, history) == "none")
  end,
  ["weeks go as a whole"] = function(policy)
    if set.keep_days ~= 35 then return end
    local points = {}
    for i = 0, 49 do -- fulls are 0, 7, 14, ...
      points[i + 1] = { ReferencePointGroupId = "p" .. i, kind = "export",
        BaseReferencePointGroupId = i % 7 > 0 and "p" .. i - 1 or nil,
        time = { unix = 1767488400 + i * DAY } }
    end
    local keep = policy.retain(points)
    assert(keep.p49 and keep.p14, "14 is 35 days old")
    assert(not keep.p13 and not keep.p7)
    points[50], points[49] = nil, nil -- now 12 is 35 days old, of the week of 7
    keep = policy.retain(points)
    assert(keep.p12 and keep.p7 and keep.p13 and not keep.p6)
  end,
}

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm nightly",
      RunStartInterval = seconds, -- after midnight
      JobRunTimes = 0,            -- without limit
      zone = set.zone ~= "" and set.zone or nil,
      RecoveryAction = "Re-run Job",
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
  },
  base = base,
  retain = retain,
  select = set.skip ~= "" and function(_, disk)
    return not is_skipped[disk.id]
  end or nil,
  tests = tests,
}
