-- A full on the last Friday of each month, an increment on every day, and three
-- generations of points: sons (days), fathers (weeks), grandfathers (months).
--
-- A point stays when it is the newest of one of the last `sons` days, `fathers`
-- weeks (from Monday) or `grandfathers` months that have one: what
--   cairn prune DIR --keep daily=7,weekly=5,monthly=12
-- keeps, by the days of `zone`. What stays and is based on what goes is merged
-- first, by the prune that follows every good export.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview monthly_gfs.lua
--   cairn simulate monthly_gfs.lua
--   cairn run monthly_gfs.lua --set directory=/tmp/out --dry-run
--   cairn run monthly_gfs.lua --follow --store /var/lib/cairn/cairn.db
--   cp monthly_gfs.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  day_time = "2h",    -- of the increments
  month_time = "22h", -- of the full, after midnight
  zone = "",          -- Europe/Berlin; "": the host's
  sons = { 7, 0, 36500 },
  fathers = { 5, 0, 5200 },
  grandfathers = { 12, 0, 1200 },
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

if set.sons + set.fathers + set.grandfathers == 0 then
  error("sons, fathers and grandfathers are all 0; at least one must keep "
    .. "something")
end

-- Days since 1970, by the calendar of the job's zone.
local function day_number(time)
  local y, m = time.year, time.month
  if m < 3 then y, m = y - 1, m + 12 end
  return 365 * y + y // 4 - y // 100 + y // 400 + (153 * m - 457) // 5
    + time.day - 719469
end

local generations = {
  { count = set.sons, of = day_number },
  -- 1970-01-01 was a Thursday
  { count = set.fathers,
    of = function(time) return (day_number(time) + 3) // 7 end },
  { count = set.grandfathers,
    of = function(time) return time.year * 12 + time.month end },
}

-- Markers are left alone by a prune, and not named.
local function retain(points)
  local keep = {}
  for _, generation in ipairs(generations) do
    local seen, count = {}, 0
    for i = #points, 1, -1 do
      local point = points[i]
      local period = point.kind == "export" and generation.of(point.time)
      if count == generation.count then break end
      if period and not seen[period] then
        seen[period], count = true, count + 1
        keep[point.ReferencePointGroupId] = true
      end
    end
  end
  return keep
end

-- ---- tests: run whenever the file is loaded by a service ----------------

-- A point for each day of 2025, named after it: p0101, ...
local function a_year()
  local points, lengths = {}, { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }
  for month, length in ipairs(lengths) do
    for day = 1, length do
      points[#points + 1] = { kind = "export",
        ReferencePointGroupId = ("p%02d%02d"):format(month, day),
        time = { year = 2025, month = month, day = day } }
    end
  end
  return points
end

local tests = {
  ["days are counted by the calendar"] = function()
    assert(day_number { year = 1970, month = 1, day = 1 } == 0)
    assert(day_number { year = 2024, month = 3, day = 1 }
      - day_number { year = 2024, month = 2, day = 28 } == 2)
    assert(day_number { year = 2026, month = 1, day = 1 }
      - day_number { year = 2025, month = 12, day = 31 } == 1)
  end,
  ["sons, fathers and grandfathers of a year"] = function(policy)
    if set.sons ~= 7 or set.fathers ~= 5 or set.grandfathers ~= 12 then return end
    local keep, count = policy.retain(a_year()), 0
    for _, id in ipairs { "p1231", "p1230", "p1229", "p1228", "p1227", "p1226",
      "p1225",                             -- the last seven days
      "p1221", "p1214", "p1207",           -- Sundays
      "p0131", "p0228", "p0331", "p0430", "p0531", "p0630", "p0731", "p0831",
      "p0930", "p1031", "p1130" } do       -- the last of each month
      assert(keep[id], id .. " goes")
    end
    for _ in pairs(keep) do count = count + 1 end
    assert(count == 21, count .. " stay")
  end,
  ["the newest stays, a marker is not named"] = function(policy)
    local points = a_year()
    points[#points + 1] = { kind = "marker", ReferencePointGroupId = "m",
      time = { year = 2026, month = 1, day = 1 } }
    local keep = policy.retain(points)
    assert(keep.p1231 and not keep.m)
  end,
}

local where = set.zone ~= "" and set.zone or nil

return cairn.policy {
  jobs = {
    daily = {
      Name = "web-farm daily",
      RunStartInterval = set.day_time,
      JobRunTimes = 0, -- without limit
      zone = where,
      RecoveryAction = "Re-run Job",
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
    monthly = {
      Name = "web-farm monthly",
      RunDay = -1, RunDayOfWeek = "-Friday", -- the last Friday of a month
      RunStartInterval = set.month_time,
      JobRunTimes = 0,
      zone = where,
      RecoveryAction = "Re-run Job",
      export = { collection = farm, directory = set.directory, base = "none" },
    },
  },
  retain = retain,
  tests = tests,
}
