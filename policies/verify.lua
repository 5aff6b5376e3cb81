-- Verifies what was exported: a sample every day, everything once a month.
--
-- The sample is the newest point and `others` older ones, taken in turn, so
-- that each point is read again within (points / others) days. The first Sunday of a
-- month all points are read. A point is verified as a whole: every stored byte
-- against its digest. A check that fails is a run that fails: it is told to
-- `notify`, and the next ones go on.
--
-- To change: the settings below. To try it:
--
--   cairn preview verify.lua
--   cairn simulate verify.lua
--   cairn run verify.lua --set directory=/tmp/out --job sample
--   cairn run verify.lua --follow --store /var/lib/cairn/verify.db
--   cp verify.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  others = { 2, 0, 10000 }, -- older points of a day's sample
  sample_time = "6h",       -- after midnight
  all_time = "8h",
  zone = "",                -- Europe/Berlin; "": the host's
  notify = "log",           -- or mailto:ops@example.org
})

-- ---- the policy ---------------------------------------------------------

if not set.directory:find "^/" then -- what a function calls is no declaration
  set.directory = set.file:match "^(.*/)" .. set.directory
end

-- The points of a day's sample: the newest, and others in turn.
local function sample_of(points, day)
  local exports, chosen = {}, {}
  for _, point in ipairs(points) do
    if point.kind == "export" then exports[#exports + 1] = point end
  end
  chosen[1] = table.remove(exports)
  for i = 0, math.min(set.others, #exports) - 1 do
    chosen[#chosen + 1] = exports[(day * set.others + i) % #exports + 1]
  end
  return chosen
end

local function failed(message, code)
  error { code = code, message = message }
end

-- The body of the sample. Every point is looked at, whatever is found in one.
local function verify_sample(job)
  local points, message, code = cairn.points(set.directory)
  if not points then failed(message, code) end
  local day = job:number "StartTime" // 86400000000
  local chosen, worst = sample_of(points, day), nil
  for i, point in ipairs(chosen) do
    local id = point.ReferencePointGroupId
    local ok, why, what = cairn.verify { directory = set.directory, point = id }
    if not ok and what ~= "not_found" then -- a prune may have removed it
      worst = worst or { message = ("%s: %s"):format(id, why), code = what }
    end
    job:progress(i * 100 / #chosen)
  end
  if worst then failed(worst.message, worst.code) end
  if #chosen == 0 then job:warn(set.directory .. ": no point to verify yet") end
end

-- ---- tests: run whenever the file is loaded by a service ----------------

local function points_of(count)
  local points = {}
  for i = 1, count do
    points[i] = { kind = "export", ReferencePointGroupId = "p" .. i }
  end
  return points
end

local tests = {
  ["nothing is sampled of nothing"] = function()
    assert(#sample_of({}, 7) == 0)
  end,
  ["the newest is always in the sample"] = function()
    assert(#sample_of(points_of(1), 3) == 1)
    for day = 0, 20 do
      local chosen = sample_of(points_of(10), day)
      assert(chosen[1].ReferencePointGroupId == "p10")
      assert(#chosen == 1 + math.min(set.others, 9))
    end
  end,
  ["every point has its turn"] = function()
    if set.others == 0 then return end
    local seen, count = {}, 0
    for day = 100, 100 + 9 // set.others + 1 do
      for _, point in ipairs(sample_of(points_of(10), day)) do
        if not seen[point] and not seen[point.ReferencePointGroupId] then
          seen[point.ReferencePointGroupId], count = true, count + 1
        end
      end
    end
    assert(count == 10, count)
  end,
}

local where = set.zone ~= "" and set.zone or nil

return cairn.policy {
  jobs = {
    sample = {
      Name = "verify a sample",
      RunStartInterval = set.sample_time,
      JobRunTimes = 0, -- without limit
      zone = where,
      Notify = set.notify,
      run = verify_sample,
    },
    all = {
      Name = "verify everything",
      RunDay = 1, RunDayOfWeek = "Sunday", -- the first Sunday of a month
      RunStartInterval = set.all_time,
      JobRunTimes = 0,
      zone = where,
      Notify = set.notify,
      verify = { directory = set.directory },
    },
  },
  -- what has gone wrong is worth a message, a good run a line in the log
  notify = function(job)
    return job.JobState == "Completed" and "log" or nil
  end,
  tests = tests,
}
