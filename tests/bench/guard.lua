-- A guarded decision against the same function called in the host's own state.
--
--   lua5.4 tests/bench/guard.lua [--calls N] [--rounds N]
--
-- The decision gets a job's table of 15 fields and a disk, and answers with a
-- boolean, as `select` does; a second one answers with a table. Candidates take
-- turns, round after round, and medians of the rounds are shown. The peers: the
-- bare call, which nothing holds; the call under pcall and a count hook, which
-- is what one would write without the guard, and which a coroutine, a finalizer
-- or one pattern escapes. Target: less than 5 microseconds for `select`. Never
-- part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"
local build = os.getenv("CAIRN_BUILD") or (here .. "/../../build")
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath
local uv = require "luv"
local decision = require "cairn.decision"

local options = measure.options { calls = 20000, rounds = 21 }
local TARGET = 5

local text = [[
return {
  select = function(job, disk)
    return disk.id ~= "swap" and job.Priority < 100
  end,
  on_failure = function(job, err, attempt)
    if attempt > 3 then return nil end
    return { action = "Re-run Job", delay = 60 * attempt, name = job.Name }
  end,
}]]

local job = { InstanceID = "Cairn:6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01",
  Name = "web-farm nightly", JobState = "Running", JobStatus = "copying",
  Priority = 10, PercentComplete = 40, ErrorCode = 0, queue = "default",
  phase = "running", attempts = 1, policy = "nightly", policy_key = "web",
  run_number = 17, bytes_total = 1 << 34, DeleteOnCompletion = false }
local disk = { id = "vda", path = "/srv/images/web1.qcow2", format = "qcow2" }
local count = 0
for _ in pairs(job) do count = count + 1 end
assert(count == 15)

local guarded = assert(decision.load { text = text, name = "@bench.lua" })
local plain = load(text, "@bench.lua")()

local function hooked(f, ...)
  debug.sethook(function() error "budget" end, "", 10000000)
  local ok, result = pcall(f, ...)
  debug.sethook()
  return ok, result
end

local err = { ErrorCode = 19, message = "no space left on the target" }
local cases = {
  { "select", { job, disk } },
  { "on_failure", { job, err, 2 } },
}

measure.main(function()
  for _, case in ipairs(cases) do
    local name, a, b, c = case[1], table.unpack(case[2])
    local f = plain[name]
    local candidates = {
      { "guarded", function() return guarded:call(nil, name, a, b, c) end },
      { "pcall and a hook", function() return hooked(f, a, b, c) end },
      { "bare", function() return f(a, b, c) end },
    }
    local times = {}
    for i = 1, #candidates do times[i] = {} end
    for round = 0, options.rounds do -- the first warms up
      for i, candidate in ipairs(candidates) do
        local call = candidate[2]
        collectgarbage()
        local start = uv.hrtime()
        for _ = 1, options.calls do call() end
        local spent = (uv.hrtime() - start) / options.calls / 1000
        if round > 0 then times[i][round] = spent end
      end
    end
    local ours = measure.median(times[1])
    for i, candidate in ipairs(candidates) do
      local t = measure.median(times[i])
      print(("%-10s  %-16s %7.3f us  %s"):format(name, candidate[1], t,
        i == 1 and (name ~= "select" and "" or ours < TARGET and "met"
        or "MISSED") or ("guarded takes %.1f x"):format(ours / t)))
    end
  end
  guarded:close()
end)
