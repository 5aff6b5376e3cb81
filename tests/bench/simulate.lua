-- How long a simulation takes: 20, 200 and 1000 jobs through 30 days, exports
-- that share directories, prunes and failures among them. Exit code 1 when the
-- month of 20 jobs takes two seconds or more.
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

local is_slow = false
for _, count in ipairs { 20, 200, 1000 } do
  local policy = policy_of(count)
  local best = math.huge
  local sim
  for _ = 1, 3 do
    local began = core.monotonic()
    sim = assert(simulate.run({ policy }, { from_us = FROM_US, days = 30,
      zone = "Europe/Berlin", queues = { default = { concurrency = 8 } },
      assume = assert(simulate.assume { "*.seconds=1h", "*.fails=every:7" }),
      points = function() return {} end }))
    best = math.min(best, (core.monotonic() - began) / 1e6)
  end
  assert(#sim.runs > 600, "the month has too few runs")
  print(("%4d jobs, 30 days: %6.3f s, %6d runs, %7.0f runs/s"):format(count,
    best, #sim.runs, #sim.runs / best))
  is_slow = is_slow or count == 20 and best >= LIMIT_S
end
if is_slow then
  print(("a month of 20 jobs took %g s or more"):format(LIMIT_S))
  os.exit(1)
end
