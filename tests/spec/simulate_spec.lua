-- cairn simulate, judged by engines that run real bodies on a virtual clock, by
-- a prune of real points, and by Python's zoneinfo (tests/random/simulate.py).

local cairn = require "cairn"
local core = require "cairn.core"
local simulate = require "cairn.simulate"
local support = _G.support

local FARM = [[
local cairn = require "cairn"
local farm = cairn.collection {
  CollectionId = "6F1D0000-0000-4000-8000-000000000001",
  machines = { { VirtualMachineId = "6F1D0000-0000-4000-8000-000000000002",
    disks = { { id = "vda", path = "disk.raw", format = "raw" } } } } }
local other = cairn.collection {
  CollectionId = "6F1D0000-0000-4000-8000-000000000003",
  machines = { { VirtualMachineId = "6F1D0000-0000-4000-8000-000000000004",
    disks = { { id = "vda", path = "none.raw", format = "raw" } } } } }
local daily = "00000000020000.000000:000"
]]
-- 2025-03-28 00:00 in Berlin, two days before its clock is put forward
local FROM = 1743116400
local BERLIN = { "--from", tostring(FROM), "--zone", "Europe/Berlin" }

describe("a simulation", function()
  local directory, remove

  before_each(function() directory, remove = support.directory() end)
  after_each(function() remove() end)

  local function policy(jobs, name)
    return support.write(("%s/%s.lua"):format(directory, name or "p"),
      FARM .. "return cairn.policy { jobs = {" .. jobs .. "} }")
  end

  local function command(path, ...)
    return support.run { support.build .. "/bin/cairn", "simulate", path, ... }
  end

  -- Records by what they are.
  local function records(path, ...)
    local code, _, output = command(path, "--json", ...)
    assert(code == 0, output)
    local out = setmetatable({}, { __index = function() return {} end })
    for line in output:gmatch "[^\n]+" do
      local record = line:find "^{" and cairn.json_decode(line)
        or { record = "note", text = line } -- on standard error
      local list = rawget(out, record.record) or {}
      out[record.record] = list
      list[#list + 1] = record
    end
    return out
  end

  local function berlin(path, ...)
    local arguments = table.move(BERLIN, 1, #BERLIN, 1, {})
    for _, argument in ipairs { ... } do
      arguments[#arguments + 1] = argument
    end
    return records(path, table.unpack(arguments))
  end

  local function starts(list, key)
    local out = {}
    for _, run in ipairs(list) do
      if run.job == key then out[#out + 1] = run.start:sub(7, 12) end
    end
    return out
  end

  it("runs by the calendar and over a change of the clock", function()
    local out = berlin(policy [[
      nightly = { RunStartInterval = daily, JobRunTimes = 0, run = print } ]],
      "--days", "4")
    assert.same({ "280200", "290200", "300300", "310200" },
      starts(out.run, "nightly"))
    assert.equal("gap", out.run[3].due_kind)
    assert.same({ "2025-03-30 02:00:00" }, out.run[3].nominals)
    assert.equal("20250330030000.000000+120", out.run[3].start)
    assert.equal(4, #out.day)
    assert.matches("put forward", out.day[3].notes[1])
    assert.equal("20250401000000.000000+120", out.total[1].to)
    assert.equal("20250401020000.000000+120", out.job[1].next)
    assert.equal(4, out.job[1].runs)
  end)

  it("touches nothing and starts nothing", function()
    support.write(directory .. "/disk.raw", ("x"):rep(100000))
    local before = select(3, support.run { "find", directory, "-printf",
      "%p %s %T@\n" })
    local path = policy [[
      nightly = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } },
      clean = { RunStartInterval = daily, JobRunTimes = 0,
        prune = { directory = "out", keep = { last = 1 } } },
      body = { RunStartInterval = daily, JobRunTimes = 0, Notify = "ops",
        run = function() io.open(set.file .. ".ran", "w"):close() end } ]]
    local out = berlin(path)
    assert.equal(30, out.directory[1].made)
    os.remove(path)
    assert.equal(before:gsub("[^\n]*\n", "", 1), (select(3, support.run {
      "find", directory, "-printf", "%p %s %T@\n" })
      :gsub("[^\n]*\n", "", 1)))
  end)

  it("has the export directory keep two jobs apart", function()
    local out = berlin(policy [[
      a = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } },
      b = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = other, directory = "out" } },
      c = { RunStartInterval = daily, JobRunTimes = 0, run = print } ]],
      "--assume", "*.seconds=1h", "--queue", "default=9", "--days", "1")
    assert.same({ "280200" }, starts(out.run, "a"))
    assert.same({ "280300" }, starts(out.run, "b"))
    assert.same({ "280200" }, starts(out.run, "c"))
    local b = out.run[3]
    assert.equal("directory", b.wait_reason)
    assert.same({ "a" }, b.waited_for)
    assert.equal(3600, b.wait_seconds)
    assert.equal(2, out.total[1].peak)
    assert.equal(1, #out.overlap)
    assert.same({ "a", "c" }, out.overlap[1].jobs)
    assert.equal(3600, out.overlap[1].seconds)
  end)

  it("has a full queue make jobs wait, by priority", function()
    local out = berlin(policy [[
      a = { RunStartInterval = daily, JobRunTimes = 0, run = print },
      b = { RunStartInterval = daily, JobRunTimes = 0, run = print },
      c = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        Priority = 1 } ]],
      "--assume", "*.seconds=600", "--queue", "default=1", "--days", "1")
    assert.same({ "280200" }, starts(out.run, "c"))
    assert.same({ "280210" }, starts(out.run, "a"))
    assert.same({ "280220" }, starts(out.run, "b"))
    assert.equal("queue", out.run[3].wait_reason)
    assert.same({ "a" }, out.run[3].waited_for)
    assert.same({ "c" }, out.run[2].waited_for)
    assert.equal(1, out.total[1].peak)
    assert.same({}, out.overlap)
  end)

  it("skips what comes while a run is on, and says so", function()
    local out = berlin(policy [[
      long = { RunStartInterval = daily, JobRunTimes = 0, run = print } ]],
      "--assume", "long.seconds=25h", "--days", "6")
    -- the 30th has 23 hours
    assert.same({ "280200", "300300", "010200" }, starts(out.run, "long"))
    local counts = {}
    for _, skip in ipairs(out.skip) do
      assert.equal("running", skip.reason)
      counts[#counts + 1] = skip.first:sub(7, 8) .. "x" .. skip.count
    end
    assert.same({ "29x1", "31x1", "02x1" }, counts)
    assert.equal(3, out.job[1].skipped)
    assert.same({ running = 3 }, out.job[1].skipped_by_reason)
  end)

  it("tries again as RecoveryAction says, and gives up", function()
    local out = berlin(policy [[
      once = { RunStartInterval = daily, JobRunTimes = 0, run = print },
      again = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        RecoveryAction = "Re-run Job" },
      never = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        RecoveryAction = "Do Not Continue" } ]],
      "--assume", "*.fails=2nd", "--assume", "again.attempts=all",
      "--assume", "*.seconds=60", "--days", "4", "--queue", "default=3")
    local function of(key)
      for _, job in ipairs(out.job) do
        if job.job == key then return job end
      end
    end
    assert.equal(4, of "once".runs)
    assert.equal(1, of "once".failed)
    assert.equal(4, of "again".runs)
    assert.equal(1, of "again".failed)
    assert.equal(2, of "again".retried)
    -- a minute of run, one of backing off, a minute, two
    assert.same({ "280200", "290200", "290202", "290205", "300300", "310200" },
      starts(out.run, "again"))
    assert.equal(0, of "again".longest_wait_seconds)
    assert.equal(2, of "never".runs)
    assert.equal("Exception", of "never".JobState)
    assert.equal("done", of "never".phase)
  end)

  it("asks a policy's on_failure", function()
    local path = support.write(directory .. "/p.lua", FARM .. [[
      return cairn.policy { jobs = {
        nightly = { RunStartInterval = daily, JobRunTimes = 0,
          export = { collection = farm, directory = "out" } } },
        on_failure = function(_, _, attempt)
          return attempt < 3 and { action = "Re-run Job", delay = 600 }
            or { action = "Do Not Continue" }
        end } ]])
    local arguments = { "--assume", "nightly.fails=2", "--assume",
      "nightly.attempts=all", "--assume", "nightly.seconds=60", "--days", "4" }
    local out = berlin(path, table.unpack(arguments))
    assert.same({ "280200", "290200", "290211", "290222" },
      starts(out.run, "nightly"))
    assert.equal("20250329021100.000000+060", out.run[2].retry)
    assert.equal(0, out.run[3].wait_seconds)
    assert.equal("Exception", out.job[1].JobState)
    assert.equal(2, out.job[1].retried)
    assert.equal(1, out.job[1].failed)
    assert.is_nil(out.run[4].is_retried)
  end)

  -- A policy with one nightly export and functions.
  local function deciding(functions, fields)
    return support.write(directory .. "/p.lua", ("%s return cairn.policy { "
      .. "jobs = { nightly = { RunStartInterval = daily, JobRunTimes = 0, %s "
      .. "export = { collection = farm, directory = 'out', base = 'latest' } "
      .. "} }, %s }"):format(FARM, fields or "", functions))
  end
  local function kinds_of(out)
    local kinds = {}
    for i, run in ipairs(out.run) do
      kinds[i] = run.point and run.point:sub(1, 1) or run.JobState
    end
    return table.concat(kinds, " ")
  end

  it("asks base, with the history that there would be", function()
    local out = berlin(deciding [[
      base = function(job, history)
        assert(job.run_number == #history + 1 and job.base == "latest")
        assert(job.CollectionId == "6F1D0000-0000-4000-8000-000000000001")
        local last = history[#history]
        if job.run_number == 6 then -- three, by its id
          return history[3].ReferencePointGroupId:sub(1, 8)
        end
        return last and last.bytes_done > 0 and last.run_number % 3 == 0
          and "none" or "latest"
      end ]], "--days", "8", "--assume", "*.seconds=60")
    -- there is no disk, so that no run has read anything
    assert.equal("f i i i i i i i", kinds_of(out))
    local disk = assert(io.open(directory .. "/disk.raw", "wb"))
    disk:write(("x"):rep(100000)):close()
    out = berlin(directory .. "/p.lua", "--days", "8", "--assume",
      "*.seconds=60")
    assert.equal("f i i f i i f i", kinds_of(out))
    assert.equal("as base decided", out.run[4].why_full)
    assert.equal("there is no base yet", out.run[1].why_full)
    assert.same({}, out.total[1].notes)
  end)

  it("gives base what --history has, of before the window", function()
    local history = support.write(directory .. "/history", table.concat({
      '{"Name":"nightly","JobState":"Completed","run_number":4,"attempt":1,'
        .. '"time":"20250326010000.000000+000","junk":[1]}',
      '{"Name":"other","JobState":"Completed","run_number":9,"attempt":1,'
        .. '"time":"20250326010000.000000+000"}',
      '{"Name":"nightly","JobState":"Completed","run_number":77,"attempt":1,'
        .. '"time":"20260326010000.000000+000"}', "" }, "\n"))
    local path = deciding [[
      base = function(_, history)
        assert(history[1].run_number == 4 and not history[1].junk)
        return #history == 2 and "none" or nil
      end ]]
    local out = berlin(path, "--days", "3", "--history", history)
    assert.equal("f f i", kinds_of(out))
    assert.same({}, out.total[1].notes)
  end)

  it("fails a run whose base is not there, and warns of one that cannot be",
    function()
      local out = berlin(deciding [[
        base = function(job)
          return ({ "none", "ABCDEF01", "the last", {} })[job.run_number]
        end,
        on_failure = function(_, err)
          assert(err.code == "not_found", err.code)
          return "Continue With Next Job"
        end ]], "--days", "4")
      assert.equal("f Exception i i", kinds_of(out))
      assert.equal("Completed With Warnings", out.run[3].JobState)
      assert.equal("Completed With Warnings", out.run[4].JobState)
      assert.equal(2, #out.total[1].notes)
      assert.matches('export.base must be .*not "the last"',
        out.total[1].notes[1])
      assert.matches("latest", out.total[1].notes[2])
    end)

  it("asks select, which says what is read", function()
    local file = assert(io.open(directory .. "/disk.raw", "wb"))
    file:write(("x"):rep(3000000)):close()
    file = assert(io.open(directory .. "/more.raw", "wb"))
    file:write(("x"):rep(6000000)):close()
    local path = support.write(directory .. "/p.lua", [[
      local cairn = require "cairn"
      return cairn.policy { jobs = { nightly = {
        RunStartInterval = "2h", JobRunTimes = 0,
        export = { directory = "out", collection = {
          CollectionId = "{6f1d0000-0000-4000-8000-000000000001}", machines = { {
            VirtualMachineId = "6F1D0000-0000-4000-8000-000000000002",
            disks = { { id = "vda", path = "disk.raw", format = "raw" },
              { id = "vdb", path = "more.raw", format = "raw" } } } } } } } },
        select = function(job, disk)
          assert(disk.path:find "^/" and disk.VirtualMachineId)
          return job.run_number == 1 or disk.id == "vda"
        end } ]])
    local out = berlin(path, "--days", "2", "--rate", "0.1")
    assert.is_true(math.abs(out.run[1].length_seconds - 90) < 2)
    assert.is_true(math.abs(out.run[2].length_seconds - 30) < 2)
    assert.is_true(math.abs(out.point[2].bytes - 3000000) < 20000)
    assert.equal("6F1D0000-0000-4000-8000-000000000001",
      out.point[1].CollectionId)
  end)

  it("has each disk on the newest point that has it", function()
    for _, name in ipairs { "disk", "more" } do
      local file = assert(io.open(("%s/%s.raw"):format(directory, name), "wb"))
      file:write(("x"):rep(1000000)):close()
    end
    local path = support.write(directory .. "/p.lua", [[
      local cairn = require "cairn"
      return cairn.policy { jobs = { nightly = {
        RunStartInterval = "2h", JobRunTimes = 0,
        export = { directory = "out", base = "latest", collection = {
          CollectionId = "6F1D0000-0000-4000-8000-000000000001", machines = { {
            VirtualMachineId = "6F1D0000-0000-4000-8000-000000000002",
            disks = { { id = "vda", path = "disk.raw", format = "raw" },
              { id = "vdb", path = "more.raw", format = "raw" } } } } } } } },
        select = function(job, disk)
          return disk.id == "vda" or job.run_number % 3 == 2
        end,
        retain = function(points)
          local keep, last = {}, points[#points]
          for i = #points == 5 and 2 or 1, #points do
            keep[points[i].ReferencePointGroupId] = true
          end
          return keep
        end } ]])
    local out = berlin(path, "--days", "5", "--assume", "*.seconds=60",
      "--assume", "*.changed=10")
    local why = {}
    for i, run in ipairs(out.run) do
      why[i] = ("%s %s"):format(run.point, run.why_full)
    end
    assert.same({ "full there is no base yet",
      "increment 1 of 2 disks in full: no earlier point has this disk",
      "increment nil", "increment nil", "increment nil", "nil nil" }, why)
    -- The first point is gone, and what the second had on it is merged: it has
    -- two whole disks. The last has tenths of both, of one on the second.
    local sizes, tenth = {}, out.point[2].bytes
    assert.is_true(tenth > 99000 and tenth < 102000)
    for i, point in ipairs(out.point) do sizes[i] = point.bytes / tenth end
    assert.same({ 20, 1, 1, 2 }, sizes)
    assert.equal("full", out.point[1].type)
    assert.equal(1, out.prune[1].merged)
  end)

  it("knows ids in braces, and what several points begin with", function()
    local out = berlin(deciding [[
      base = function(job, history)
        local id = history[1] and history[1].ReferencePointGroupId
        return job.run_number == 2 and "{" .. id:lower() .. "}"
          or job.run_number == 3 and id:sub(1, 14) or nil
      end,
      on_failure = function(_, err) error(err.code) end ]], "--days", "3")
    assert.equal("f i i", kinds_of(out))
    local points = { { unix_us = 1, time = "20250101000000.000000+000",
      ReferencePointGroupId = "ABCD0001-0000-4000-8000-000000000001",
      CollectionId = "6F1D0000-0000-4000-8000-000000000001", sequence = 1 },
      { unix_us = 2, time = "20250102000000.000000+000",
      ReferencePointGroupId = "ABCD0002-0000-4000-8000-000000000001",
      CollectionId = "6F1D0000-0000-4000-8000-000000000001", sequence = 2 } }
    local loaded = assert(cairn.policy_load(deciding [[
      base = function(job) return job.run_number == 1 and "abcd" or "abcd0002"
      end,
      on_failure = function(_, err) assert(err.code == "ambiguous") end ]]))
    local sim = assert(simulate.run({ loaded }, { from_us = FROM * 1000000,
      days = 2, zone = "Europe/Berlin", points = function() return points end }))
    assert.equal("Exception", sim.runs[1].state)
    assert.equal("Completed", sim.runs[2].state)
    assert.equal(points[2].ReferencePointGroupId, sim.runs[2].made.base.id)
    assert.same({}, sim.notes)
  end)

  it("tells what runs warn of, and bounds what it notes", function()
    local path = deciding [[ select = function() return false end ]]
    local out = berlin(path, "--days", "3")
    for _, run in ipairs(out.run) do
      assert.equal("Completed With Warnings", run.JobState)
      assert.matches("select leaves out every disk", run.warnings[1])
    end
    local _, _, output = command(path, "--days", "3", table.unpack(BERLIN))
    assert.matches("Warnings\n[^\n]*\n  nightly +3  Fri 2025%-03%-28 02:00  "
      .. "policy p: select leaves out every disk", output)
    out = berlin(deciding [[ throttle = function(_, now) error(now.unix) end,
      base = function(job) error("no base for run " .. job.run_number) end ]],
      "--days", "150")
    assert.equal(101, #out.total[1].notes)
    assert.matches("^%.%.%. and 50 more notes", out.total[1].notes[101])
  end)

  it("asks retain after an export, and prunes by a job of its own", function()
    local retain = [[
      retain = function(points)
        local keep = {}
        for i = math.max(1, #points - 3), #points do
          assert(points[i].time.hour == 2 or points[i].time.hour == 3)
          assert(points[i].sequence == points[1].sequence + i - 1)
          keep[points[i].ReferencePointGroupId] = true
        end
        return keep
      end ]]
    local out = berlin(deciding(retain), "--days", "8", "--assume",
      "*.seconds=60", "--assume", "nightly: retain.seconds=120")
    assert.equal(4, #out.prune)
    for i, prune in ipairs(out.prune) do
      assert.equal("nightly: retain", prune.job)
      assert.equal("retain does not keep them", prune.reason)
      assert.same({ ("202503%02d"):format(27 + i) },
        { prune.removed[1]:sub(1, 8) })
      assert.equal(4, prune.kept)
      assert.equal(1, prune.merged)
    end
    assert.same({ "010203", "020203", "030203", "040203" },
      (function()
        local times = {}
        for i, prune in ipairs(out.prune) do times[i] = prune.time:sub(7, 12) end
        return times
      end)())
    assert.equal(4, out.directory[1].points)
    assert.same({ "retain" }, out.point[1].reasons)
    assert.same({ "newest", "retain" }, out.point[4].reasons)
    assert.equal("full", out.point[1].type)
    assert.equal(2, #out.job)
    assert.equal(4, out.job[2].runs)

    -- the prune waits for the directory, and so does the next export
    out = berlin(deciding(retain), "--days", "8", "--assume", "*.seconds=60",
      "--assume", "nightly: retain.seconds=30h")
    assert.equal("directory", out.run[7].wait_reason)
    assert.same({ "nightly: retain" }, out.run[7].waited_for)
    -- and it fails as it is told to
    out = berlin(directory .. "/p.lua", "--days", "9", "--assume",
      "nightly: retain.fails=every:2")
    local states = {}
    for _, run in ipairs(out.run) do
      if run.job == "nightly: retain" then
        states[#states + 1] = ("%d %s"):format(run.run_number, run.JobState)
      end
    end
    assert.same({ "1 Completed", "2 Exception", "3 Completed", "4 Exception",
      "5 Completed" }, states)
    local code, _, output = command(directory .. "/p.lua", "--days", "8",
      "--assume", "nightly: retain.secs=1")
    assert.equal(2, code)
    assert.matches("nothing is assumed of 'secs'", output)
    code, _, output = command(deciding "", "--assume",
      "nightly: retain.seconds=1")
    assert.equal(2, code)
    assert.matches("there is no such job", output)
  end)

  it("asks retain before a prune job, and what fails keeps all", function()
    local path = support.write(directory .. "/p.lua", FARM .. [[
      return cairn.policy { jobs = {
        nightly = { RunStartInterval = daily, JobRunTimes = 0,
          export = { collection = farm, directory = "out" } },
        clean = { RunStartInterval = "00000000030000.000000:000",
          JobRunTimes = 0, prune = { directory = "out" } } },
        retain = function(points)
          if #points == 5 then error "no idea" end
          local keep = { [points[#points].ReferencePointGroupId] = true }
          if #points > 5 then keep[points[1].ReferencePointGroupId] = true end
          return keep
        end } ]])
    local out = berlin(path, "--days", "7", "--assume", "*.seconds=60",
      "--assume", "clean.fails=first:4")
    local counts = {}
    for _, run in ipairs(out.run) do
      if run.job == "clean" then counts[#counts + 1] = run.kept or run.JobState end
    end
    assert.same({ "Exception", "Exception", "Exception", "Exception", 5, 2, 1 },
      counts)
    assert.equal(14, #out.run)
    assert.equal("Completed With Warnings", out.run[10].JobState)
    assert.matches("no idea", out.total[1].notes[1])
    assert.equal(1, #out.total[1].notes)
  end)

  it("asks throttle all along a run", function()
    local file = assert(io.open(directory .. "/disk.raw", "wb"))
    file:write(("x"):rep(7200000)):close()
    local path = deciding [[
      throttle = function(job, now)
        assert(now.unix == job.now.unix)
        assert(not job.bytes_total or job.bytes_done < job.bytes_total)
        return now.hour == 2 and 1000 or nil
      end ]]
    local out = berlin(path, "--days", "1", "--rate", "0.002")
    -- an hour of 1000 bytes a second, the rest at 2000
    local rest = out.point[1].bytes - 3600000
    assert.is_true(rest > 3500000)
    assert.equal(3600 + rest / 2000, out.run[1].length_seconds)
    assert.equal("size, rate and throttle", out.run[1].length_from)
    out = berlin(path, "--days", "1", "--assume", "nightly.seconds=50")
    assert.equal(50, out.run[1].length_seconds)
    -- nothing is faster than the rate, and no end is further than the window
    out = berlin(deciding "throttle = function() return 1e9 end", "--days", "1",
      "--rate", "0.002")
    assert.equal(out.point[1].bytes / 2000, out.run[1].length_seconds)
    out = berlin(deciding "throttle = function() return 1 end", "--days", "2")
    assert.equal("Running", out.run[1].JobState)
    assert.equal(1, #out.run)
  end)

  it("says who would be told, and tells nobody", function()
    local path = support.write(directory .. "/p.lua", FARM .. ([[
      return cairn.policy {
        jobs = {
          asked = { RunStartInterval = daily, JobRunTimes = 0, run = print,
            RecoveryAction = "Re-run Job", Notify = "never" },
          plain = { RunStartInterval = daily, JobRunTimes = 0, run = print,
            Notify = "mailto:ops@example.org" } },
        on_failure = function(job) if job.key == "plain" then return nil end end,
        notify = function(job)
          if job.key == "plain" then return nil end
          if job.JobState == "Exception" then
            assert(job.ErrorCode == 19)
            return "pager"
          end
          return "told"
        end,
        handlers = { told = function() io.open(%q, "w"):close() end,
          pager = { "/bin/touch", %q } } }]]):format(directory .. "/told",
      directory .. "/told"))
    local out = berlin(path, "--days", "3", "--queue", "default=9", "--assume",
      "asked.fails=2", "--assume", "asked.attempts=all", "--assume",
      "*.error=disk_full")
    assert.is_nil(io.open(directory .. "/told"))
    local said = {}
    for i, notice in ipairs(out.notice) do
      said[i] = ("%s %d %s %s"):format(notice.job, notice.run_number,
        notice.Notify, notice.JobState)
    end
    table.sort(said)
    assert.same({ "asked 1 told Completed", "asked 2 pager Exception",
      "asked 3 told Completed", "plain 1 mailto:ops@example.org Completed",
      "plain 2 mailto:ops@example.org Completed",
      "plain 3 mailto:ops@example.org Completed" }, said)
    local _, _, output = command(path, "--days", "2")
    assert.matches("Notices\n.*told  +asked  +Completed  +2  ", output)
  end)

  it("makes up for what a host that sleeps has missed, by catch_up", function()
    local out = berlin(policy [[
      latest = { RunStartInterval = daily, JobRunTimes = 0, run = print },
      all = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        catch_up = "all" },
      none = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        catch_up = "none" } ]],
      "--down", "2025-03-28T12:00/48h30m", "--days", "4", "--queue",
      "default=3", "--assume", "*.seconds=60")
    -- from noon on the 28th to 13:30 (summer time) on the 30th
    assert.same({ "280200", "301330", "310200" }, starts(out.run, "latest"))
    assert.same({ "280200", "301330", "301331", "310200" },
      starts(out.run, "all"))
    assert.same({ "280200", "310200" }, starts(out.run, "none"))
    local skipped = {}
    for _, skip in ipairs(out.skip) do
      assert.equal("missed", skip.reason)
      skipped[skip.job] = skip.count
    end
    assert.same({ latest = 1, none = 2 }, skipped)
    assert.equal("down", out.run[4].wait_reason)
  end)

  it("takes the length of a run from sizes, history or the caller", function()
    local disk = assert(io.open(directory .. "/disk.raw", "wb"))
    disk:write(("x"):rep(3000000))
    disk:seek("set", 90000000)
    disk:write "x" -- the hole is not read
    disk:close()
    local path = policy [[
      sized = { Name = "by size", RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } },
      unknown = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = other, directory = "out2" } },
      given = { Name = "by hand", RunStartInterval = daily, JobRunTimes = 0,
        run = print } ]]
    local history = support.write(directory .. "/history", table.concat({
      '{"Name":"by size","JobState":"Completed","ElapsedTime":"00000000000010.000000:000"}',
      '{"Name":"by size","JobState":"Exception","ElapsedTime":"00000000000500.000000:000"}',
      '{"Name":"by size","JobState":"Completed","ElapsedTime":"00000000000030.000000:000"}',
      '{"Name":"by size","JobState":"Completed","ElapsedTime":"00000000000020.000000:000"}',
      "" }, "\n"))
    local function lengths(...)
      local found = {}
      for _, run in ipairs(berlin(path, "--days", "1", ...).run) do
        found[run.job] = run.length_seconds
      end
      return found
    end
    local found = lengths("--rate", "0.1")
    assert.is_true(found.sized > 29 and found.sized < 32, found.sized)
    assert.equal(60, found.unknown)
    assert.equal(60, found.given)
    found = lengths("--history", history, "--assume", "given.seconds=1h30m")
    assert.equal(20, found.sized)
    assert.equal(5400, found.given)
  end)

  it("keeps and merges points as a prune does", function()
    local out = berlin(policy [[
      nightly = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out", base = "latest",
          depth_limit = 5 } },
      clean = { RunStartInterval = "00000000030000.000000:000", JobRunTimes = 0,
        prune = { directory = "out", keep = { last = 2, weekly = 3 } } } ]],
      "--assume", "nightly.seconds=60", "--days", "30")
    -- 28 March to 26 April, of which Sundays are 30, 6, 13 and 20
    local times, kinds = {}, {}
    for i, point in ipairs(out.point) do
      times[i], kinds[i] = point.time:sub(5, 8), point.type
    end
    assert.same({ "0413", "0420", "0425", "0426" }, times)
    assert.same({ "weekly" }, out.point[1].reasons)
    assert.same({ "newest", "last", "weekly" }, out.point[4].reasons)
    assert.equal(30, out.directory[1].made)
    assert.equal(26, out.directory[1].pruned)
    assert.equal(30 - 26, out.directory[1].points)
    assert.equal("full", kinds[1])
    local fulls = 0
    for _, run in ipairs(out.run) do
      if run.point == "full" then fulls = fulls + 1 end
      assert.is_true(run.job ~= "clean" or run.kept <= 6)
    end
    assert.is_true(fulls >= 1)
  end)

  it("agrees with a prune of real points", function()
    local points = dofile "tests/spec/points.lua"
    points.export(directory, 6)
    local list = assert(cairn.points(directory .. "/out"))
    assert.equal(6, #list)
    for _, rules in ipairs { { last = 2 }, { daily = 3 }, { within = 3600 },
      { last = 1, ids = { list[2].ReferencePointGroupId:sub(1, 12) } },
      { yearly = 1, monthly = 2, last = 3 } } do
      local plan = assert(cairn.prune { directory = directory .. "/out",
        keep = rules, dry_run = true })
      local kept = {}
      for _, point in ipairs(plan.kept) do
        kept[point.ReferencePointGroupId or point.id] = point.reasons
      end
      local answer = assert(cairn.keep(list, rules))
      for i, point in ipairs(list) do
        assert.same(kept[point.ReferencePointGroupId] or {}, answer[i])
      end
    end
    -- and they are what a simulation begins with
    local path = policy [[
      clean = { RunStartInterval = daily, JobRunTimes = 0,
        prune = { directory = "out", keep = { last = 2 } } } ]]
    local from = tostring(os.time() + 60)
    local out = records(path, "--from", from, "--days", "2")
    assert.equal(6, out.directory[1].found)
    assert.equal(2, out.directory[1].points)
    assert.equal(4, #out.prune[1].removed)
    assert.equal("kept by no rule: last 2", out.prune[1].reason)
    assert.equal(0, records(path, "--from", from, "--days", "2", "--fresh")
      .directory[1].found)
    assert.equal(6, #cairn.points(directory .. "/out"))
  end)

  -- The same jobs in an engine that knows nothing of simulations, stepped by
  -- hand on a virtual clock, with bodies that sleep and raise.
  it("is what a real engine does", function()
    local seconds = { a = 5400, b = 30000, c = 1200, d = 400, e = 90000 }
    local fails = { a = 3, c = 2, d = 1 }
    local interval = { a = "2h", b = "2h", c = "2h30m", d = 7200, e = "1h" }
    local text, assume = {}, {}
    local function spec_of(key)
      return { RunStartInterval = interval[key], JobRunTimes = 0,
        RecoveryAction = key ~= "d" and "Re-run Job" or nil,
        Priority = key == "c" and 3 or nil,
        catch_up = key == "e" and "all" or nil }
    end
    local engine <close> = support.engine(cairn, {
      start = cairn.datetime(FROM), queues = { default = { concurrency = 2 } } })
    local seen = {}
    for _, name in ipairs { "JobState", "RunEnded", "Skipped" } do
      engine:on(name, function(ev)
        local key = ev.job.Name
        if name == "Skipped" then
          seen[#seen + 1] = ("%d %s skipped %d %s"):format(ev.time, key,
            ev.count, ev.reason)
        elseif name == "RunEnded" then
          seen[#seen + 1] = ("%d %s ended %s"):format(ev.time, key, ev.JobState)
        elseif ev.JobState == "Starting" then
          seen[#seen + 1] = ("%d %s %d.%d started"):format(ev.time, key,
            ev.run_number, ev.job.attempts)
        end
      end)
    end
    for key in pairs(seconds) do text[#text + 1] = key end
    table.sort(text)
    for i, key in ipairs(text) do
      local spec = spec_of(key)
      spec.Name, spec.zone = key, "Europe/Berlin"
      spec.run = function(job)
        job:sleep(seconds[key])
        if fails[key] and job.run_number % fails[key] == 0
          and job.attempts == 1 then
          error "as it was told"
        end
      end
      assert(engine:submit(spec))
      local fields = {}
      for name, value in pairs(spec_of(key)) do
        fields[#fields + 1] = ("%s = %s"):format(name,
          type(value) == "string" and ("%q"):format(value) or value)
      end
      fields[#fields + 1] = "run = print"
      text[i] = ("%s = { %s }"):format(key, table.concat(fields, ", "))
      assume[#assume + 1] = ("%s.seconds=%d"):format(key, seconds[key])
      if fails[key] then
        assume[#assume + 1] = ("%s.fails=every:%d"):format(key, fails[key])
      end
    end
    local to_us = (FROM + 12 * 86400 - 3600) * 1000000
    local ticks = 0
    while core.now(engine) < to_us do
      while engine:step() do end
      local timeout = engine:timeout()
      -- never more than ten minutes at once, unlike a simulation
      local us = math.min(math.max(1, timeout * 1e6 // 1 | 0), 600000000)
      engine:advance(math.min(us, to_us - core.now(engine)) / 1e6)
      ticks = ticks + 1
    end
    assert.is_true(ticks > 1700, ticks)
    table.sort(seen)

    local loaded = assert(cairn.policy_load(policy(table.concat(text, ","))))
    local sim = assert(simulate.run({ loaded }, { from_us = FROM * 1000000,
      days = 12, zone = "Europe/Berlin", assume = assert(
        simulate.assume(assume)) }))
    assert.equal(to_us, sim.to_us)
    local simulated = {}
    for _, run in ipairs(sim.runs) do
      simulated[#simulated + 1] = ("%d %s %d.%d started"):format(run.start_us,
        run.entry.key, run.run_number, run.attempt)
      if run.end_us then
        simulated[#simulated + 1] = ("%d %s ended %s"):format(run.end_us,
          run.entry.key, run.state)
      end
    end
    for _, skip in ipairs(sim.skips) do
      simulated[#simulated + 1] = ("%d %s skipped %d %s"):format(skip.unix_us,
        skip.entry.key, skip.count, skip.reason)
    end
    table.sort(simulated)
    assert.is_true(#seen > 80, #seen)
    assert.same(seen, simulated)
  end)

  it("says the same twice", function()
    local path = policy [[
      a = { RunStartInterval = daily, JobRunTimes = 0, run = print,
        RecoveryAction = "Re-run Job" },
      b = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } } ]]
    local first = select(3, command(path, "--json", "--assume", "*.fails=every:3",
      table.unpack(BERLIN)))
    assert.equal(first, select(3, command(path, "--json", "--assume",
      "*.fails=every:3", table.unpack(BERLIN))))
  end)

  it("reads a directory of policies, and names jobs by both", function()
    policy("nightly = { RunStartInterval = daily, JobRunTimes = 0, run = print }",
      "one")
    policy("nightly = { RunStartInterval = daily, JobRunTimes = 0, run = print }",
      "two")
    local out = berlin(directory, "--days", "1", "--assume",
      "two:nightly.seconds=5")
    assert.equal(2, #out.job)
    assert.equal("one:nightly", out.job[1].job)
    local lengths = {}
    for _, run in ipairs(out.run) do lengths[run.job] = run.length_seconds end
    assert.same({ ["one:nightly"] = 60, ["two:nightly"] = 5 }, lengths)
    support.write(directory .. "/three.lua", FARM
      .. 'return cairn.policy { name = "two", jobs = {} }')
    local code, _, output = command(directory)
    assert.equal(2, code)
    assert.matches("both are the policy two", output)
  end)

  it("tells a person days, jobs and reasons", function()
    local code, _, output = command(policy [[
      a = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } },
      b = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = other, directory = "out" } } ]],
      "--runs", "--days", "3", "--assume", "a.seconds=1h",
      table.unpack(BERLIN))
    assert.equal(0, code)
    assert.matches("^Fri 2025%-03%-28 00:00 to Mon 2025%-03%-31 00:00 "
      .. "%(Europe/Berlin%): 2 jobs, 6 runs, 0 failed", output)
    assert.matches("Sun 2025%-03%-30  +2 .*a: the clock is put forward over "
      .. "2025%-03%-30 02:00:00", output)
    assert.matches("its directory was in use: a", output)
    assert.matches("\n  b  +3  1:00:00", output)
    code, _, output = command(policy [[
      a = { RunStartInterval = daily, JobRunTimes = 0,
        export = { collection = farm, directory = "out" } },
      c = { RunStartInterval = "00000000120000.000000:000", JobRunTimes = 0,
        prune = { directory = "out", keep = { last = 1, weekly = 1 } } } ]],
      "--days", "3", table.unpack(BERLIN))
    assert.equal(0, code)
    assert.matches("Prunes\n[^\n]*\n  Sat 2025%-03%-29 12:00[^\n]* c +1 "
      .. "+Fri 2025%-03%-28 02:00  Fri 2025%-03%-28 02:00 +%- +1  "
      .. "kept by no rule: last 1, weekly 1", output)
  end)

  local refused = {
    { "an assumption of nothing", "nothing is assumed of 'secs'; did you mean "
      .. "'seconds'", "--assume", "a.secs=1" },
    { "an assumption without a job", "there is no such job; did you mean 'a'",
      "--assume", "aa.seconds=1" },
    { "an assumption that is none", "KEY.seconds=, KEY.fails=", "--assume",
      "5" },
    { "a failure that is none", "a run's number", "--assume", "a.fails=often" },
    { "an error that is none", "the code of an error", "--assume",
      "a.error=full" },
    { "a length that is none", "seconds, or an interval", "--assume",
      "a.seconds=-1" },
    { "no days", "1 to 3660 days", "--days", "0" },
    { "a queue without places", "NAME=N", "--queue", "default" },
    { "a queue of none", "1 to 1000 places", "--queue", "default=0" },
    { "a hole without a length", "START/DURATION", "--down", "2025-03-10" },
    { "a day that is none", "wants a CIM datetime", "--from", "2025-02-29" },
    { "an hour that is none", "wants a CIM datetime", "--from",
      "2025-02-28T24:00" },
    { "a zone that is none", "zone", "--zone", "Europe/Berlinn", "--from",
      "2025-02-28" },
    { "a rate of nothing", "megabytes a second", "--rate", "0" },
    { "a history that is not there", "No such file", "--history",
      "/nonexistent/history" },
  }
  for _, case in ipairs(refused) do
    it("refuses " .. case[1], function()
      local code, _, output = command(policy [[
        a = { RunStartInterval = daily, JobRunTimes = 0, run = print } ]],
        table.unpack(case, 3))
      assert.equal(2, code)
      assert.is_truthy(output:find(case[2], 1, true), output)
    end)
  end

  it("refuses a history that is none, with its line", function()
    local history = support.write(directory .. "/history", '{"a":1}\nhello\n')
    local code, _, output = command(policy "a = { run = print }", "--history",
      history)
    assert.equal(2, code)
    assert.matches("line 2: no JSON object", output)
  end)

  it("passes on what the engine refuses, with the job", function()
    local code, _, output = command(policy [[
      a = { RunDay = 31, RunMonth = "April", run = print } ]])
    assert.equal(2, code)
    assert.matches("p%.lua.*: jobs%.a: RunDay 31 with RunMonth April",
      output)
  end)
end)

describe("an engine that simulates", function()
  local function body() end

  it("wants a virtual clock and no store", function()
    assert.has_error(function() cairn.open { simulate = body } end,
      "cairn.open: simulate needs clock = 'virtual', and no store")
    assert.has_error(function()
      cairn.open { simulate = body, clock = "virtual", store = "x.db" }
    end, "cairn.open: simulate needs clock = 'virtual', and no store")
    local engine, message = core.open { store = ":memory:",
      is_simulated = true }
    assert.is_nil(engine)
    assert.matches("is_simulated needs is_virtual_clock", message)
    engine, message = core.open { store = "/nonexistent/x.db",
      is_simulated = true, is_virtual = true }
    assert.is_nil(engine)
    assert.matches("is for \":memory:\"", message)
  end)

  -- A job that holds its directory is ended in every way; the other one gets it.
  local ways = {
    well = function() end,
    fails = function() end,
    killed = function(job) job:KillJob(false) end,
    terminated = function(job) job:RequestStateChange "Terminate" end,
    suspended = function(job, engine, second)
      job:RequestStateChange "Suspend"
      for _ = 1, 50 do engine:step() end
      assert.equal("Suspended", job.JobState)
      engine:advance(100)
      for _ = 1, 50 do engine:step() end
      -- its place in the queue is free, its directory is not
      assert.equal("queued", second.phase)
      assert.is_true(job:resume())
    end,
  }
  for _, name in ipairs { "well", "fails", "killed", "terminated",
    "suspended" } do
    local way = ways[name]
    it("gives the directory on after a run that is " .. name, function()
      local engine <close> = support.engine(cairn, { simulate = function(job)
        job:sleep(10)
        if name == "fails" then error "no" end
      end })
      local function submit(id)
        return assert(engine:submit { Name = "job" .. id, prune = {
          directory = "/nonexistent/out", keep = { last = 1 } } })
      end
      local first, second = submit(1), submit(2)
      for _ = 1, 50 do engine:step() end
      assert.equal("Running", first.JobState)
      assert.equal("New", second.JobState)
      assert.equal("queued", second.phase)
      assert.matches("/nonexistent/out", second.JobStatus)
      way(first, engine, second)
      second:wait(100)
      assert.equal(name == "fails" and "Exception" or "Completed",
        second.JobState)
      assert.equal(({ well = "Completed", fails = "Exception",
        killed = "Killed", terminated = "Terminated",
        suspended = "Completed" })[name], first.JobState)
    end)
  end
end)

describe("cairn.keep", function()
  it("knows ids as a prune does", function()
    local points = { { time = "20250101000000.000000+000",
      ReferencePointGroupId = "ABCD0001-0000-4000-8000-000000000001" },
      { time = "20250102000000.000000+000",
      ReferencePointGroupId = "ABCD0002-0000-4000-8000-000000000001" } }
    for id, is_kept in pairs { ["{abcd0001-0000-4000-8000-000000000001}"] = true,
      ["abcd0001"] = true, ["ABC"] = false, ["{ABCD0001}"] = false,
      ["ABCD0003"] = false } do
      assert.same(is_kept and { "ids" } or {},
        assert(cairn.keep(points, { ids = { id } }))[1], id)
    end
  end)

  it("refuses what are no points or no rules", function()
    assert.has_error(function() cairn.keep("x", {}) end,
      "cairn.keep: a list of points expected, got string")
    assert.has_error(function() cairn.keep({ 1 }, {}) end,
      "cairn.keep: point 1: a table expected, got number")
    local list, message, code = cairn.keep({ { time = "yesterday" } },
      { last = 1 })
    assert.is_nil(list)
    assert.matches("^keep: point 1: time:", message)
    assert.equal("invalid_argument", code)
    list, message = cairn.keep({ { time = "20250101000000.000000+000" } },
      { lasting = 1 })
    assert.is_nil(list)
    assert.matches("last", message)
    list, message = cairn.keep({ {} }, { last = 1 })
    assert.is_nil(list)
    assert.matches("point 1 must be an object with \"time\"", message)
    assert.same({}, cairn.keep({}, { last = 1 }))
  end)
end)
