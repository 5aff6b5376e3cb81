-- What it takes to load a directory of policies, and to load it again: 100 files
-- (each with decision functions, a test and four jobs) on an engine with a store.
--
--   CAIRN_BUILD=build lua5.4 tests/bench/reload.lua DIRECTORY [FILES [ROUNDS]]
--
-- Prints medians in milliseconds: the first loading, a look at unchanged files,
-- all of them loaded anew (the aim: 1000 for 100), and, as the peer of the same
-- run, Lua's own loadfile of the same files.

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local cairn = require "cairn"
local core = require "cairn.core"
local policies = require "cairn.policies"
local uv = require "luv"

local directory = assert(arg[1], "the directory of the store is missing")
local count = tonumber(arg[2] or 100)
local rounds = tonumber(arg[3] or 7)
local policy_directory = assert(uv.fs_mkdtemp(directory .. "/reload-XXXXXX"))

local function file(i) return ("%s/site%03d.lua"):format(policy_directory, i) end

for i = 1, count do
  local out = assert(io.open(file(i), "w"))
  out:write(([[
local cairn = require "cairn"
local farm = cairn.collection { CollectionId =
    "%08X-2222-3333-4444-555555555555", machines = {
  { VirtualMachineId = "A1111111-2222-3333-4444-%012X",
    disks = { { id = "vda", path = "a.raw", format = "raw" } } } } }
local function nightly(hour)
  return { RunStartInterval = ("%%02d:00"):format(hour) and 3600 * hour,
    JobRunTimes = 0, export = { collection = farm, directory = "out" } }
end
return cairn.policy { jobs = { a = nightly(1), b = nightly(2), c = nightly(3),
    d = nightly(4) },
  base = function(job) return job.now.wday == 1 and "none" or "latest" end,
  tests = { full_on_sunday = function(policy)
    assert(policy.base({ now = { wday = 1 } }, {}) == "none")
  end } }
]]):format(i, i))
  out:close()
end

local function timed(fn)
  local began = core.monotonic()
  fn()
  return (core.monotonic() - began) / 1000
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local rows = { first = {}, look = {}, again = {}, loadfile = {} }
for _ = 1, rounds do
  local store = directory .. "/reload_bench.db"
  for _, suffix in ipairs { "", "-wal", "-lock" } do os.remove(store .. suffix) end
  local engine = assert(cairn.open { store = store, log = print })
  local p = policies.open(engine, policy_directory, { log = function(level, m)
    if level == "error" then error(m) end
  end })
  local function load_all(all)
    return function()
      assert(#p:load(all).failed == 0)
      assert(engine:flush())
    end
  end
  table.insert(rows.first, timed(load_all()))
  table.insert(rows.look, timed(load_all()))
  table.insert(rows.again, timed(load_all(true)))
  table.insert(rows.loadfile, timed(function()
    for i = 1, count do assert(loadfile(file(i))) end
  end))
  p:close()
  engine:close { mode = "kill" }
  os.remove(store)
end
for i = 1, count do os.remove(file(i)) end
os.remove(policy_directory)

for _, name in ipairs { "first", "look", "again", "loadfile" } do
  print(("%-10s %8.1f ms"):format(name, median(rows[name])))
end
