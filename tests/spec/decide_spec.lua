-- What the functions of a policy decide, in runs of real exports.

local cairn = require "cairn"
local support = _G.support

local GUID = "11111111-2222-3333-4444-555555555555"
local SIZE = 4 * 1024 * 1024

describe("a policy decides", function()
  local directory, remove
  before_each(function()
    directory, remove = support.directory()
    for _, id in ipairs { "vda", "swap" } do
      support.write(directory .. "/" .. id .. ".raw", (id .. "."):rep(SIZE
        // (#id + 1) + 1):sub(1, SIZE))
    end
  end)
  after_each(function() remove() end)

  local farm = ([[
    local set = ...
    local cairn = require "cairn"
    local farm = cairn.collection { CollectionId = "%s",
      machines = { { VirtualMachineId = "A1%s", ElementName = "web",
        disks = { { id = "vda", path = "vda.raw", format = "raw" },
          { id = "swap", path = "swap.raw", format = "raw" } } } } }
    ]]):format(GUID, GUID:sub(3))

  local function load_text(text)
    local policy, message, _, trace = cairn.policy_load(support.write(directory
      .. "/site.lua", farm .. text))
    return assert(policy, tostring(message) .. "\n" .. tostring(trace))
  end

  local function done(engine, policy, key)
    local job = assert(engine:submit(policy.jobs[key]))
    assert.equal("done", (job:wait() and job.phase))
    return job
  end

  local function qcow2_info(path)
    local code, _, out = support.run { "qemu-img", "info", "--output=json",
      path }
    assert.equal(0, code, out)
    return cairn.json_decode(out)
  end

  it("the base of an export, with the job and its history", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = { JobRunTimes = 3,
          RunStartInterval = "1h",
          export = { collection = farm, directory = "out", base = "none" } } },
        base = function(job, history)
          assert(job.key == "nightly" and job.CollectionId and job.directory)
          assert(job.base == "none" and job.now.hour < 24 and job.now.wday)
          if #history == 1 then
            assert(history[1].JobState == "Completed")
            return history[1].ReferencePointGroupId
          end
          return #history > 1 and "none" or nil
        end }]]
    local engine <close>, log = support.engine(cairn)
    local job = done(engine, policy, "nightly")
    assert.same({}, log)
    assert.equal("Completed", job.JobState)
    local points = assert(cairn.points(directory .. "/out"))
    assert.equal(3, #points)
    assert.is_nil(points[1].BaseReferencePointGroupId)
    assert.equal(points[1].ReferencePointGroupId,
      points[2].BaseReferencePointGroupId)
    assert.is_nil(points[3].BaseReferencePointGroupId)
    local found = 0
    for _, record in ipairs(engine:decisions()) do
      assert.equal(policy.version, record.version)
      assert.equal("base", record.name)
      found = found + 1
    end
    assert.equal(3, found)
  end)

  it("which disks are exported", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = {
          export = { collection = farm, directory = "out" } } },
        select = function(job, disk)
          assert(disk.format == "raw" and disk.machine == "web")
          return disk.id ~= "swap"
        end }]]
    local engine <close>, log = support.engine(cairn)
    local job = done(engine, policy, "nightly")
    assert.same({}, log)
    assert.equal("Completed", job.JobState)
    assert.equal(1, #job.ExportedDisks)
    assert.matches("vda", job.ExportedDisks[1])
    local point = cairn.points(directory .. "/out")[1].ReferencePointGroupId
    assert.equal("qcow2", qcow2_info(("%s/out/%s/%s.qcow2"):format(directory,
      point, job.ExportedDisks[1])).format)
  end)

  it("nothing when a function fails, or says what cannot be", function()
    for text, message in pairs {
      ["base = function() error 'no idea' end"] = "base failed %(.*no idea",
      ["base = function() return 7 end"] = "base failed %(it returned 7",
      ["base = function() return 'abcdef' end"] = "abcdef",
      ["select = function() return 'yes' end"] = "select failed",
      ["select = function() return false end"] = "every disk",
    } do
      local policy = load_text("return cairn.policy { jobs = { nightly = { "
        .. "export = { collection = farm, directory = 'out' } } }, " .. text
        .. " }")
      local engine <close> = support.engine(cairn)
      local job = done(engine, policy, "nightly")
      if message == "abcdef" then -- an id that may be: the run says what of it
        assert.equal("Exception", job.JobState)
        assert.matches(message, job.ErrorSummaryDescription)
      else
        assert.equal("Completed With Warnings", job.JobState)
        assert.equal(2, #job.ExportedDisks)
        local _, errors = job:GetErrorEx()
        assert.matches(message, errors[1].Message)
      end
    end
  end)

  it("what becomes of a failure, before RecoveryAction does", function()
    local policy = load_text [[
      local tries = 0
      return cairn.policy { jobs = { nightly = { RecoveryAction = "Do Not Continue",
          JobRunTimes = 2, RunStartInterval = "1h",
          on_failure = function(job, err, attempt)
            assert(err.code and err.ErrorCode > 0 and err.message)
            if job.run_number == 1 and attempt < 3 then
              return { action = "Re-run Job", delay = 600 }
            elseif job.run_number == 1 then
              return "Continue With Next Job"
            end
          end,
          export = { collection = farm, directory = "missing/out" } } } }]]
    local engine <close>, log = support.engine(cairn)
    local started = {}
    engine:on("JobState", function(event)
      if event.JobState == "Starting" then
        started[#started + 1] = event.time / 1e6
      end
    end)
    local job = done(engine, policy, "nightly")
    assert.same({}, log)
    assert.equal("Exception", job.JobState)
    assert.equal(2, job.run_number)
    assert.equal(4, #started) -- three of the first run, one of the second
    assert.is_true(math.abs(started[2] - started[1] - 600) < 1)
    assert.is_true(math.abs(started[3] - started[2] - 600) < 1)
  end)

  it("and the last ones are kept, oldest first", function()
    local decide = require "cairn.decide"
    local records = decide.RECORDS
    finally(function() decide.RECORDS = records end)
    decide.RECORDS = 3
    local policy = load_text [[
      return cairn.policy { jobs = { quick = { run = function() end } },
        notify = function() end }]]
    local engine <close> = support.engine(cairn)
    for i = 1, 8 do
      local spec = policy.jobs.quick
      spec.Name = "run " .. i
      assert.equal("Completed", assert(engine:submit(spec)):wait())
      local names, expected = {}, {}
      for _, record in ipairs(engine:decisions()) do
        names[#names + 1] = record.arguments[1].Name
      end
      for n = math.max(1, i - 2), i do
        expected[#expected + 1] = "run " .. n
      end
      assert.same(expected, names)
    end
  end)

  it("that a failed run is left to RecoveryAction", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = { RecoveryAction = "Re-run Job",
          export = { collection = farm, directory = "missing/out" } } },
        on_failure = function() return nil end }]]
    local engine <close> = support.engine(cairn)
    local job = done(engine, policy, "nightly")
    assert.equal("Exception", job.JobState)
    assert.equal(3, job.attempts)
  end)

  it("which handler is told", function()
    local policy = load_text [[
      return cairn.policy { jobs = { a = { Notify = "ops",
          export = { collection = farm, directory = "out" } },
          b = { export = { collection = farm, directory = "missing/out" } } },
        notify = function(job)
          if job.JobState == "Exception" then return "pager" end
        end }]]
    local told = {}
    local engine <close> = support.engine(cairn, { notify = {
      ops = function(notice) told[#told + 1] = "ops " .. notice.JobState end,
      pager = function(notice) told[#told + 1] = "pager " .. notice.JobState end,
    } })
    done(engine, policy, "a")
    done(engine, policy, "b")
    engine:run()
    assert.same({ "ops Completed", "pager Exception" }, told)
  end)

  it("what is told once of a run, when it is over", function()
    local told = {}
    local engine <close>, log = support.engine(cairn, { notify = {
      ops = function(notice)
        told[#told + 1] = notice.Name .. " " .. notice.JobState
      end } })
    local policy = load_text [[
      local function again(seconds)
        return function(job, err, attempt)
          if attempt < 3 then
            return { action = "Re-run Job", delay = seconds }
          end
        end
      end
      local function job(on_failure, text)
        return { Notify = "ops", on_failure = on_failure, run = function(job)
          if text then job:RequestStateChange(text) end
          error "no"
        end }
      end
      return cairn.policy { jobs = { at_once = job(again(0)),
          later = job(again(600)), held = job(again(600), "Suspend"),
          until_then = { Notify = "ops", UntilTime =
            "00000000000100.000000:000", run = function() error "no" end,
            on_failure = again(600) } } }]]
    local job = done(engine, policy, "at_once")
    assert.equal(3, job.attempts)
    done(engine, policy, "later")
    done(engine, policy, "until_then")
    job = assert(engine:submit(policy.jobs.held))
    for _ = 1, 30 do engine:step() end
    assert.equal("held", job.phase)
    assert.same({ "at_once Exception", "later Exception",
      "until_then Exception" }, told)
    job:RequestStateChange("Terminate")
    engine:run()
    assert.equal("held Terminated", told[4])
    assert.is_nil(told[5])
    assert.same({}, log)
  end)

  it("nothing about the runs after they were taken away", function()
    local text = [[
      return cairn.policy { jobs = { nightly = { JobRunTimes = 2,
          RunStartInterval = "1h", Notify = "ops", export = {
            collection = farm, directory = "missing/out" } } }, %s }]]
    local told = {}
    local engine <close> = support.engine(cairn, { notify = {
      ops = function() told[#told + 1] = "ops" end,
      pager = function() told[#told + 1] = "pager" end } })
    local old = load_text(text:format "notify = function() return 'pager' end")
    local new = load_text(text:format "")
    engine:on("RunEnded", function(event)
      if event.run_number == 1 then
        engine:on("JobState", function(later)
          if later.run_number == 1 and new then
            assert(engine:update(later.job, new.jobs.nightly))
            new = nil
          end
        end)
      end
    end)
    done(engine, old, "nightly")
    engine:run()
    assert.same({ "pager", "ops" }, told)
  end)

  it("nothing, and is settled, when they go while it is asked", function()
    local core = require "cairn.core"
    local events = require "cairn.engine".task_events
    local recover = events[core.event.TASK_RECOVER]
    local told = {}
    local engine <close> = support.engine(cairn, { notify = {
      ops = function(notice) told[#told + 1] = notice.JobState end } })
    local text = [[
      return cairn.policy { jobs = { a = { Notify = "ops",
        run = function() error "no" end } }, %s }]]
    local job = assert(engine:submit(load_text(text:format
      "on_failure = function() end").jobs.a))
    events[core.event.TASK_RECOVER] = function() end -- a crash, nearly
    for _ = 1, 30 do engine:step() end
    events[core.event.TASK_RECOVER] = recover
    assert.equal("backoff", job.phase)
    assert(engine:update(job, load_text(text:format "").jobs.a))
    engine:run()
    assert.same({ "Exception" }, told)
  end)

  it("with records that name a point only where one was made", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = { JobRunTimes = 3,
          RunStartInterval = "1h", RecoveryAction = "Continue With Next Job",
          export = { collection = farm, directory = "out", base = "latest" } } },
        base = function(job, history)
          local said = {}
          for i, record in ipairs(history) do
            said[i] = record.ReferencePointGroupId and "point" or "none"
          end
          if job.run_number == 3 then return table.concat(said, ",") end
        end }]]
    local engine <close>, log = support.engine(cairn)
    engine:on("RunEnded", function(event)
      local name, away = directory .. "/swap.raw", directory .. "/away"
      os.rename(event.run_number == 1 and name or away,
        event.run_number == 1 and away or name)
    end)
    done(engine, policy, "nightly")
    assert.matches("point,none", log[1])
    local records = engine:history()
    assert.is_string(records[1].ReferencePointGroupId)
    assert.is_nil(records[2].ReferencePointGroupId)
  end)

  it("which points stay after an export", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = { JobRunTimes = 4,
          RunStartInterval = "1h", zone = "Pacific/Kiritimati", -- UTC+14
          export = { collection = farm, directory = "out", base = "latest" } } },
        retain = function(points)
          local keep = {}
          for i = math.max(1, #points - 1), #points do
            assert(points[i].time.year > 2000 and points[i].sequence)
            keep[points[i].ReferencePointGroupId] = true
          end
          return keep
        end }]]
    local engine <close>, log = support.engine(cairn)
    done(engine, policy, "nightly")
    engine:run()
    assert.same({}, log)
    local points = assert(cairn.points(directory .. "/out"))
    assert.equal(2, #points)
    assert.equal(3, points[1].sequence)
    -- the prune of its own asks with times in the job's zone, too
    local asked = 0
    for _, decision in ipairs(engine:decisions()) do
      for _, point in ipairs(decision.arguments[1]) do
        assert.equal((point.time.unix // 3600 + 14) % 24, point.time.hour)
      end
      asked = asked + 1
    end
    assert.equal(6, asked) -- after each of four, and before two prunes
    local pruned = 0
    for _, record in ipairs(engine:history()) do
      assert.equal(policy.version, record.policy_version)
      local is_prune = record.Name:find ": retain" ~= nil
      assert.equal(is_prune, record.ReferencePointGroupId == nil)
      pruned = pruned + (is_prune and 1 or 0)
    end
    assert.equal(2, pruned)
    local code, _, out = support.run { support.build .. "/bin/cairn", "verify",
      directory .. "/out" }
    assert.equal(0, code, out)
  end)

  it("what a prune job keeps, and all when retain fails", function()
    local text = [[
      return cairn.policy { jobs = {
          nightly = { JobRunTimes = 3, RunStartInterval = "1h",
            export = { collection = farm, directory = "out" } },
          tidy = { prune = { directory = "out", collection = farm } } },
        retain = function(points) %s end }]]
    local policy = load_text(text:format "return undefined.x")
    local engine <close>, log = support.engine(cairn)
    done(engine, policy, "nightly")
    assert.equal(3, #cairn.points(directory .. "/out"))
    local job = done(engine, policy, "tidy")
    assert.equal("Completed With Warnings", job.JobState)
    assert.matches("undefined", log[1])
    assert.equal(3, #cairn.points(directory .. "/out"))
    policy = load_text(text:format
      "return { points[2].ReferencePointGroupId }")
    assert.equal("Completed", done(engine, policy, "tidy").JobState)
    local points = cairn.points(directory .. "/out")
    assert.same({ 2, 3 }, { points[1].sequence, points[2].sequence })
  end)

  it("about exports, not about markers and what is damaged", function()
    local policy = load_text [[
      return cairn.policy { jobs = {
          nightly = { JobRunTimes = 4, RunStartInterval = "1h",
            export = { collection = farm, directory = "out" } },
          tidy = { prune = { directory = "out" } } },
        retain = function(points)
          assert(#points == 2, #points .. " points")
          for _, point in ipairs(points) do assert(point.time.hour) end
          return { points[2].ReferencePointGroupId }
        end }]]
    local engine <close>, log = support.engine(cairn)
    policy.jobs.nightly.decisions = nil
    done(engine, policy, "nightly")
    local points = assert(cairn.points(directory .. "/out"))
    assert.equal(4, #points)
    for i = 1, 2 do -- two that cannot be read
      support.write(directory .. "/out/" .. points[i].ReferencePointGroupId
        .. "/manifest.json", "{")
    end
    local collection = policy.jobs.nightly.export.collection
    local code, marker = engine:CreateReferencePoint(collection,
      directory .. "/out", { tracker = "full" })
    if code == 4096 then marker:wait() end
    local job = done(engine, policy, "tidy")
    assert.same({}, log)
    assert.is_true(job.JobState == "Completed"
      or job.JobState == "Completed With Warnings")
    local left = 0
    for _, point in ipairs(assert(cairn.points(directory .. "/out"))) do
      if point.kind == "export" and not point.error then
        left = left + 1
        assert.equal(4, point.sequence)
      end
    end
    assert.equal(1, left)
  end)

  it("which points stay, and not those that another run adds meanwhile", function()
    local policy = load_text [[
      local export = { collection = farm, directory = "out" }
      return cairn.policy { jobs = { a = { export = export },
          b = { export = export }, c = { export = export },
          d = { export = export }, e = { export = export } },
        retain = function(points)
          local keep = {}
          for i = math.max(1, #points - 1), #points do
            keep[i] = points[i].ReferencePointGroupId
          end
          return keep
        end }]]
    local engine <close>, log = support.engine(cairn)
    for _, key in ipairs { "a", "b", "c", "d", "e" } do
      assert(engine:submit(policy.jobs[key]))
    end
    engine:run()
    assert.same({}, log)
    local points = cairn.points(directory .. "/out")
    assert.same({ 2, 4, 5 }, { #points, points[1].sequence,
      points[2].sequence })
  end)

  it("that nothing goes which retain was not heard about", function()
    local policy = load_text [[
      return cairn.policy { jobs = {
        nightly = { JobRunTimes = 3, RunStartInterval = "1h",
          export = { collection = farm, directory = "out" } },
        none = { retain = function(points) return {} end,
          prune = { directory = "out", keep = { last = 1 } } },
        all = { retain = function(points)
            local keep = {}
            for i, point in ipairs(points) do
              keep[i] = point.ReferencePointGroupId
            end
            return keep
          end,
          prune = { directory = "out", keep = { last = 1 } } } } }]]
    local engine <close>, log = support.engine(cairn)
    done(engine, policy, "nightly")
    local first = cairn.points(directory .. "/out")[1]
    done(engine, policy, "none")
    assert.equal(3, #cairn.points(directory .. "/out"))
    assert.matches("keeps no point at all", log[1])
    support.write(first.directory .. "/manifest.json", "{ broken")
    done(engine, policy, "all") -- is not given what cannot be read
    assert.equal(3, #cairn.points(directory .. "/out"))
    assert.is_nil(log[2])
  end)

  it("how fast an export may read", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = {
          export = { collection = farm, directory = "out" } } },
        throttle = function(job, now)
          assert(now.hour and now.unix > 0)
          return 4 * 1024 * 1024
        end }]]
    local engine <close> = assert(cairn.open {})
    local began = os.time()
    local job = done(engine, policy, "nightly")
    assert.equal("Completed", job.JobState)
    assert.is_true(os.time() - began >= 1) -- 8 MiB at 4 MiB/s
    assert.is_true(job:number "ElapsedTime" > 900000)
  end)

  it("what is planned as what is run", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = {
            export = { collection = farm, directory = "out", base = "none" } },
          tidy = { prune = { directory = "out", collection = farm } } },
        base = function(job) return job.CollectionId and "latest" end,
        select = function(_, disk) return disk.id ~= "swap" end,
        retain = function(points)
          return { points[#points].ReferencePointGroupId }
        end }]]
    local engine <close>, log = support.engine(cairn)
    done(engine, policy, "nightly")
    done(engine, policy, "nightly")
    local plan = assert(engine:plan(policy.jobs.nightly))
    assert.equal("latest", plan.base)
    local disks = plan.machines[1].disks
    assert.equal(1, #disks)
    assert.equal("vda", disks[1].id)
    assert.equal(0, disks[1].changed_bytes)
    plan = assert(engine:plan(policy.jobs.tidy))
    assert.equal(1, #plan.kept)
    local retain = engine:decisions()
    retain = retain[#retain]
    assert.equal("retain", retain.name)
    assert.equal("integer", math.type(retain.arguments[1][1].time.year))
    retain.arguments[1][1].time.year = 0 -- a list of its own each time
    local again = engine:decisions()
    assert.is_true(again[#again].arguments[1][1].time.year > 2000)
    assert.same({}, log)
    assert.is_nil(policy.jobs.nightly.export.collection.machines[1].disks[3])
    assert.equal(2, #policy.jobs.nightly.export.collection.machines[1].disks)
    -- what the engine has to say of a specification, it says
    local spec = policy.jobs.nightly
    spec.queue = cairn.null -- as if it were not there
    assert.equal("latest", assert(engine:plan(spec)).base)
    for name, value in pairs { Name = {}, queue = 7, Priority = "x",
      zone = "Mars/Olympus" } do
      local old = spec[name]
      spec[name] = value
      local none, message, code = engine:plan(spec)
      assert.is_nil(none, name)
      assert.matches(name, message)
      assert.is_string(code)
      spec[name] = old
    end
  end)

  it("about the runs of the engine that has the policy, and no other", function()
    local policy = load_text [[
      return cairn.policy { jobs = { nightly = {
          export = { collection = farm, directory = "out" } } },
        base = function() return "none" end }]]
    local store = directory .. "/cairn.db"
    local spec = policy.jobs.nightly
    spec.RunStartInterval = "1h"
    spec.JobRunTimes = 1
    do
      local engine <close> = support.engine(cairn, { store = store })
      spec.held = nil
      assert(engine:submit(spec))
      engine:close { mode = "kill" }
    end
    local engine <close> = support.engine(cairn, { store = store,
      start = os.time() + 7200 })
    local job = engine:jobs { policy = "site" }[1]
    if job.JobState ~= "Killed" then
      engine:step(0.1)
      assert.equal("held", job.phase)
      assert.matches("policy site: nightly", (engine:why(job.InstanceID)))
      assert(engine:update(job, spec))
      assert.equal("Completed", job:wait())
    end
  end)
end)
