-- How long a simulation takes: 20, 200 and 1000 jobs through 30 days, exports
-- that share directories, prunes and failures among them; and 20 and 200 exports
-- of 100 GB whose policy has all the functions that decide: base and select before
-- each run, retain after it, throttle for each minute. Exit code 1 when a month of
-- 20 jobs takes two seconds or more.
--
--   lua5.4 tests/bench/simulate.lua

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local cairn = require "cairn"
local core = require "cairn.core"
local simulate = require "cairn.simulate"

local LIMIT_S = 2
local FROM_US = 1743116400000000 -- 2025-03-27 23:00 UTC

local function id(kind, n)
  return ("6F1D00%02X-0000-4000-8000-%012X"):format(kind, n)
end

-- For every 10 jobs: 7 exports into 3 directories, a prune, a verify, a body.
local function policy_of(count)
  local jobs = {}
  for i = 1, count do
    local group = i // 10
    local directory = ("/nonexistent/%d/%d"):format(group, i % 3)
    local job = { RunStartInterval = (i % 24) * 3600, JobRunTimes = 0,
      RecoveryAction = "Re-run Job" }
    if i % 10 == 7 then
      job.prune = { directory = directory, keep = { last = 3, daily = 7 } }
    elseif i % 10 == 8 then
      job.verify = { directory = directory }
    elseif i % 10 == 9 then
      job.run = function() end
    else
      job.export = { directory = directory, base = "latest",
        collection = { CollectionId = id(1, i), machines = { {
          VirtualMachineId = id(2, i), disks = {
            { id = "vda", path = "/nonexistent/disk", format = "raw" } } } } } }
    end
    jobs[("job%04d"):format(i)] = job
  end
  return cairn.policy { name = "bench", jobs = jobs }
end

local DECIDING = [[
local cairn = require "cairn"
local jobs = {}
for i = 1, %d do
  jobs[("job%%04d"):format(i)] = { RunStartInterval = i %% 24 * 3600,
    JobRunTimes = 0, RecoveryAction = "Re-run Job",
    export = { directory = "/nonexistent/" .. i, base = "latest",
      collection = { CollectionId = ("6F1D0001-0000-4000-8000-%%012X"):format(i),
        machines = { { VirtualMachineId = ("6F1D0002-0000-4000-8000-%%012X")
          :format(i), disks = { { id = "vda", path = "/nonexistent/disk",
            format = "raw" } } } } } } }
end
return cairn.policy { name = "deciding", jobs = jobs,
  base = function(job, history)
    local count = 0
    for _, record in ipairs(history) do
      if record.ReferencePointGroupId then count = count + 1 end
    end
    return count > 0 and job.now.wday == 1 and "none" or "latest"
  end,
  select = function(_, disk) return disk.id ~= "swap" end,
  retain = function(points)
    local keep, by_id = {}, {}
    for _, point in ipairs(points) do
      by_id[point.ReferencePointGroupId] = point
    end
    for i = math.max(1, #points - 9), #points do
      local point = points[i]
      while point do
        keep[point.ReferencePointGroupId] = true
        point = by_id[point.BaseReferencePointGroupId]
      end
    end
    return keep
  end,
  on_failure = function(_, _, attempt)
    return attempt < 3 and "Re-run Job" or "Continue With Next Job"
  end,
  throttle = function(_, now)
    return now.hour >= 8 and now.hour < 18 and 20000000 or nil
  end }
]]

local function deciding(count)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  assert(file:write(DECIDING:format(count)))
  file:close()
  local policy, message = cairn.policy_load(name)
  os.remove(name)
  return assert(policy, message)
end

local is_slow = false

local function measure(what, count, policy, options)
  local best, sim = math.huge, nil
  options.from_us, options.days, options.zone = FROM_US, 30, "Europe/Berlin"
  function options.points() return {} end
  function options.size() return 100000000000 end
  for _ = 1, 3 do
    local began = core.monotonic()
    sim = assert(simulate.run({ policy }, options))
    best = math.min(best, (core.monotonic() - began) / 1e6)
  end
  assert(#sim.runs > 590, "the month has too few runs")
  assert(#sim.notes == 0, sim.notes[1])
  print(("%4d jobs%s, 30 days: %6.3f s, %6d runs, %7.0f runs/s"):format(count,
    what, best, #sim.runs, #sim.runs / best))
  is_slow = is_slow or count == 20 and best >= LIMIT_S
end

local queues = { default = { concurrency = 8 } }
for _, count in ipairs { 20, 200, 1000 } do
  measure("", count, policy_of(count), { queues = queues, assume = assert(
    simulate.assume { "*.seconds=1h", "*.fails=every:7" }) })
end
for _, count in ipairs { 20, 200 } do
  measure(" that decide", count, deciding(count), { queues = {
    default = { concurrency = count } }, assume = assert(simulate.assume {
      "*.fails=every:7" }) })
end
if is_slow then
  print(("a month of 20 jobs took %g s or more"):format(LIMIT_S))
  os.exit(1)
end
