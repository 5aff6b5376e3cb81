-- An export that leaves the storage to others while they work.
--
-- How fast it may read follows the clock: `work_rate` on working days between
-- work_begin and work_end, `night_rate` on all other hours of these days,
-- `weekend_rate` on Saturdays, Sundays and `holidays`. The clock is asked again
-- every few seconds, so an export that is still on in the morning slows down
-- then. A rate of 0 is no limit. The function suits any job that copies: verify,
-- restore, merge and stream, too.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview throttle.lua
--   cairn simulate throttle.lua
--   cairn run throttle.lua --set directory=/tmp/out --set night_rate=1
--   cairn run throttle.lua --follow --store /var/lib/cairn/cairn.db
--   cp throttle.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  time = "20h",                   -- of the export, after midnight
  zone = "",                      -- Europe/Berlin; "": the host's
  work_begin = { 8, 0, 24 },      -- hours
  work_end = { 18, 0, 24 },
  work_rate = { 20, 0, 1000000 }, -- megabytes a second
  night_rate = { 0, 0, 1000000 },
  weekend_rate = { 200, 0, 1000000 },
  holidays = "",                  -- 2026-12-25,2026-12-26
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

if set.work_begin >= set.work_end then
  error(("setting work_begin is %d, work_end %d; work begins before it ends")
    :format(set.work_begin, set.work_end))
end

local is_holiday = {}
for day in set.holidays:gmatch "[^,%s]+" do
  local month, number = day:match "^%d%d%d%d%-(%d%d)%-(%d%d)$"
  month, number = tonumber(month), tonumber(number)
  if not month or month < 1 or month > 12 or number < 1 or number > 31 then
    error(("setting holidays: '%s' is no date; 2026-12-25,2026-12-26 expected")
      :format(day))
  end
  is_holiday[day] = true
end

local SUNDAY, SATURDAY = 1, 7

-- Megabytes a second, 0 without limit.
local function rate_at(now)
  local date = ("%04d-%02d-%02d"):format(now.year, now.month, now.day)
  if now.wday == SUNDAY or now.wday == SATURDAY or is_holiday[date] then
    return set.weekend_rate
  end
  return now.hour >= set.work_begin and now.hour < set.work_end and set.work_rate
    or set.night_rate
end

local function throttle(_, now)
  local rate = rate_at(now)
  return rate > 0 and rate * 1000000 or nil
end

-- ---- tests: run whenever the file is loaded by a service ----------------

-- 2026-03-06 is a Friday.
local function at(day, hour)
  return { year = 2026, month = 3, day = day, wday = (day - 1) % 7 + 1,
    hour = hour }
end

local function bytes(rate) return rate > 0 and rate * 1000000 or nil end

local tests = {
  ["working hours begin and end on the hour"] = function(policy)
    if is_holiday["2026-03-06"] then return end
    for hour = 0, 23 do
      local is_work = hour >= set.work_begin and hour < set.work_end
      assert(policy.throttle({}, at(6, hour))
        == bytes(is_work and set.work_rate or set.night_rate), hour)
    end
  end,
  ["weekends have a rate of their own"] = function(policy)
    for _, day in ipairs { 7, 8 } do
      assert(policy.throttle({}, at(day, 12)) == bytes(set.weekend_rate))
    end
  end,
  ["so have holidays"] = function(policy)
    for day in pairs(is_holiday) do
      local y, m, d = day:match "(%d+)-(%d+)-(%d+)"
      assert(policy.throttle({}, { year = tonumber(y), month = tonumber(m),
        day = tonumber(d), wday = 3, hour = 12 }) == bytes(set.weekend_rate), day)
    end
  end,
}

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm nightly",
      RunStartInterval = set.time,
      JobRunTimes = 0, -- without limit
      zone = set.zone ~= "" and set.zone or nil,
      RecoveryAction = "Re-run Job",
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
  },
  throttle = throttle,
  tests = tests,
}
