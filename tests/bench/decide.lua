-- What decisions cost in the life of jobs: 100,000 jobs with an empty Lua body
-- from submit to Completed, on an engine with a store, with and without a policy
-- whose functions are asked about each of them. Both in turn, each time in a
-- process of its own: a heap that 100,000 jobs have left behind slows the next.
--
--   CAIRN_BUILD=build lua5.4 tests/bench/decide.lua DIRECTORY [JOBS [ROUNDS]]
--
-- Prints the medians and the ratio of the two (1.15 is the aim).

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local cairn = require "cairn"
local core = require "cairn.core"

local directory = assert(arg[1], "the directory of the store is missing")
local count = tonumber(arg[2] or 100000)
local rounds = tonumber(arg[3] or 7)
local BATCH = 1000

local file = directory .. "/decide_bench.lua"
if arg[4] then
  local out = assert(io.open(file, "w"))
  out:write [[
local cairn = require "cairn"
return cairn.policy { jobs = { a = { run = function() end } },
  on_failure = function(job, err, attempt)
    if attempt < 3 then return { action = "Re-run Job", delay = 60 } end
  end,
  notify = function(job)
    if job.JobState == "Exception" then return "pager" end
  end }
]]
  out:close()
end

local function once(with_decisions)
  local store = directory .. "/decide_bench.db"
  for _, suffix in ipairs { "", "-wal", "-lock" } do os.remove(store .. suffix) end
  local policy = assert(cairn.policy_load(file))
  local spec = policy.jobs.a
  if not with_decisions then spec.decisions = nil end
  spec.DeleteOnCompletion, spec.wait = true, false
  local engine = assert(cairn.open { store = store, history_limit = 1000,
    queues = { default = { concurrency = 1000 } } })
  local left = count
  engine:on("JobState", function(event)
    if event.JobState == "Completed" then left = left - 1 end
  end)
  local specs = {}
  for i = 1, BATCH do specs[i] = spec end
  local began = core.monotonic()
  for _ = 1, count // BATCH do
    assert(engine:submit_all(specs))
    engine:step()
  end
  while left > 0 do
    if not engine:step() then engine:step(0.001) end
  end
  local took = (core.monotonic() - began) / 1e6
  engine:close { mode = "kill" }
  os.remove(store)
  return took
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

if arg[4] then -- a round
  print(once(arg[4] == "with"))
  os.remove(file)
  os.exit(true, true)
end

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function round(which)
  local process = assert(io.popen(table.concat({ quoted(arg[-1]),
    quoted(arg[0]), quoted(directory), count, 1, which }, " ")))
  local took = process:read "n"
  assert(process:close())
  return assert(took, "a round has failed")
end

local plain, asked = {}, {}
for i = 1, rounds do
  plain[i] = round "without"
  asked[i] = round "with"
end
local a, b = median(plain), median(asked)
print(("without   %8.0f jobs/s"):format(count / a))
print(("with      %8.0f jobs/s   %.2f x the time, %.2f us a decision"):format(
  count / b, b / a, (b - a) / count * 1e6))
