-- A directory of policies: loaded, loaded anew when a file changes, and left as
-- it was when what is new is not right.

local cairn = require "cairn"
local policies = require "cairn.policies"
local uv = require "luv"
local support = _G.support

describe("a directory of policies", function()
  local directory, remove, engine, log, loaded

  before_each(function()
    directory, remove = support.directory()
    uv.fs_mkdir(directory .. "/policies", 448)
    engine = support.engine(cairn)
    log = {}
    loaded = policies.open(engine, directory .. "/policies", {
      log = function(level, message)
        log[#log + 1] = level .. ": " .. message
      end })
  end)
  after_each(function()
    loaded:close()
    engine:close { mode = "kill" }
    remove()
  end)

  local function write(name, text)
    support.write(directory .. "/policies/" .. name,
      'local cairn = require "cairn"\nreturn cairn.policy { ' .. text .. " }\n")
  end

  local function job_of(policy, key)
    local list = engine:jobs { policy = policy, policy_key = key }
    assert.equal(1, #list)
    return list[1]
  end

  local nightly = [[ nightly = { RunStartInterval = "1h", JobRunTimes = 0,
    Priority = %d, run = function(job) job:progress(50) end } ]]

  local function of(priority, more)
    return "jobs = { " .. nightly:format(priority) .. "} " .. (more or "")
  end

  it("gives its jobs to the engine, and again what has changed", function()
    write("a.lua", of(3))
    write("b.lua", of(4))
    write("ignored.txt", "jobs = 3")
    write(".hidden.lua", "jobs = 3")
    local report = loaded:load()
    assert.same({}, report.failed)
    assert.equal(2, #report.loaded)
    local job = job_of("a", "nightly")
    assert.equal(3, job.Priority)
    engine:advance(2 * 86400)
    while engine:step() do end
    local runs = job.run_number
    assert.is_true(runs >= 1)

    report = loaded:load()
    assert.equal(0, #report.loaded)
    assert.equal(2, report.unchanged)
    write("a.lua", of(7))
    report = loaded:load()
    assert.equal(1, #report.loaded)
    assert.equal("a", report.loaded[1].name)
    assert.not_equal(report.loaded[1].was, report.loaded[1].version)
    assert.equal(job.InstanceID, job_of("a", "nightly").InstanceID)
    assert.equal(7, job.Priority)
    assert.equal(runs, job.run_number)
    report = loaded:load(true)
    assert.equal(2, #report.loaded)
    assert.equal(2, #engine:jobs())

    local rows = loaded:list()
    assert.equal(2, #rows)
    assert.equal("a", rows[1].name)
    assert.equal(1, rows[1].jobs)
    assert.is_nil(rows[1].error)
  end)

  it("keeps what was there when a file cannot be taken", function()
    write("a.lua", of(3))
    assert.same({}, loaded:load().failed)
    local job = job_of("a", "nightly")
    for text, message in pairs {
      ["jobs = { nightly = "] = "unexpected",
      ["jobs = { nightly = { Priority = 'x', run = print } }"] = "Priority",
      ["jobs = { nightly = { RunMonth = 'February', RunDay = 30, run = print } }"] =
        "never comes",
      ["name = nothing.at.all"] = "nothing",
      -- found only by the engine, after the first job was given its new form
      [of(9) .. ", name = 'a'"] = false,
      ["jobs = { a_first = { RunStartInterval = '1h', held = true, "
        .. "run = print }, " .. nightly:format(9) .. ", z = { queue = 'nowhere',"
        .. " run = print } }"] = "nowhere",
    } do
      write("a.lua", text)
      local report = loaded:load()
      if message then
        assert.equal(1, #report.failed, text)
        assert.matches(message, report.failed[1].message)
        assert.matches("a%.lua", log[#log])
        assert.equal(3, job.Priority)
        assert.equal(1, #engine:jobs())
        assert.matches(message, loaded:list()[1].error)
      else
        assert.equal(9, job.Priority)
      end
      write("a.lua", of(3))
      assert.same({}, loaded:load().failed)
      assert.is_nil(loaded:list()[1].error)
    end
  end)

  it("holds the jobs of what has left it, until it is back", function()
    write("a.lua", of(3))
    write("b.lua", "jobs = { x = { RunStartInterval = '1h', run = print }, "
      .. "y = { RunStartInterval = '1h', run = print } }")
    loaded:load()
    local a, x, y = job_of("a", "nightly"), job_of("b", "x"), job_of("b", "y")
    write("b.lua", "jobs = { y = { RunStartInterval = '1h', run = print } }")
    loaded:load()
    assert.equal("held", x.phase)
    assert.equal("waiting", y.phase)
    os.remove(directory .. "/policies/b.lua")
    local report = loaded:load()
    assert.same({ "b" }, report.held)
    assert.equal("held", y.phase)
    assert.equal("waiting", a.phase)
    write("b.lua", "jobs = { x = { RunStartInterval = '1h', run = print }, "
      .. "y = { RunStartInterval = '1h', run = print } }")
    loaded:load()
    assert.equal("waiting", x.phase)
    assert.equal("waiting", y.phase)
    assert.equal(3, #engine:jobs())
  end)

  it("finds a policy in another file, and its name with another policy", function()
    local one = "jobs = { n = { RunStartInterval = '1h', run = print } }, "
    write("a.lua", one .. "name = 'x'")
    write("c.lua", one .. "name = 'y'")
    loaded:load()
    local x, y = job_of("x", "n"), job_of("y", "n")
    assert(os.rename(directory .. "/policies/a.lua", directory
      .. "/policies/b.lua"))
    local report = loaded:load()
    assert.same({}, report.failed)
    assert.same({}, report.held)
    assert.equal("waiting", x.phase)
    write("b.lua", one .. "name = 'y'") -- before c.lua is looked at
    write("c.lua", one .. "name = 'z'")
    assert.same({}, loaded:load().failed)
    assert.equal("held", x.phase)
    assert.equal("waiting", y.phase)
    assert.equal("waiting", job_of("z", "n").phase)
  end)

  it("holds a stray again when its file is refused", function()
    local a = "jobs = { a = { RunStartInterval = '1h', run = print }, "
    local b = "b = { RunStartInterval = '1h', run = print }, "
    write("a.lua", a .. b .. "}")
    loaded:load()
    write("a.lua", a .. "}")
    loaded:load()
    write("a.lua", a .. b .. "c = { queue = 'nowhere', run = print } }")
    assert.equal(1, #loaded:load().failed)
    assert.equal("held", job_of("a", "b").phase)
    assert.equal("waiting", job_of("a", "a").phase)
    write("a.lua", a .. b .. "}")
    assert.same({}, loaded:load().failed)
    assert.equal("waiting", job_of("a", "b").phase)
  end)

  it("leaves a job that has ended", function()
    write("a.lua", "jobs = { once = { run = function() end } }")
    loaded:load()
    local job = job_of("a", "once")
    assert.equal("Completed", job:wait())
    loaded:load(true)
    engine:step()
    assert.equal(job.InstanceID, job_of("a", "once").InstanceID)
    assert.equal("Completed", job.JobState)
  end)

  it("has no two policies of one name", function()
    write("a.lua", of(3))
    write("b.lua", of(4, ", name = 'a'"))
    local report = loaded:load()
    assert.equal(1, #report.loaded)
    assert.equal(1, #report.failed)
    assert.matches("the policy 'a' is in .*a%.lua already",
      report.failed[1].message)
    assert.equal(3, job_of("a", "nightly").Priority)
  end)

  it("is no directory", function()
    support.run { "rmdir", directory .. "/policies" }
    local report = loaded:load()
    assert.matches("cannot read the directory of policies",
      report.failed[1].message)
  end)

  it("runs the tests of a policy before it takes it", function()
    local text = [[base = function(job) return job.now.wday == %d and "none"
        or "latest" end,
      tests = { full_on_sunday = function(policy)
        assert(policy.base({ now = { wday = 1 } }, {}) == "none", "no full")
        assert(policy.base({ now = { wday = 2 } }, {}) == "latest")
      end }]]
    write("a.lua", of(3) .. ", " .. text:format(1))
    assert.same({}, loaded:load().failed)
    write("a.lua", of(4) .. ", " .. text:format(7))
    local report = loaded:load()
    assert.equal(1, #report.failed)
    assert.matches("test full_on_sunday: .*a%.lua:%d+: no full",
      report.failed[1].message)
    assert.equal(3, job_of("a", "nightly").Priority)
  end)

  it("tries new functions on what was really decided", function()
    local text = [[jobs = { nightly = { RunStartInterval = "1h",
        JobRunTimes = 2, run = function() error "no" end } },
      on_failure = function(job, err, attempt)
        if attempt < %d then return { action = "Re-run Job", delay = 1 } end
      end]]
    write("a.lua", text:format(2))
    loaded:load()
    local job = job_of("a", "nightly")
    job:wait()
    local decisions = engine:decisions()
    assert.equal(4, #decisions) -- two runs of two attempts
    assert.equal(loaded:list()[1].version, decisions[1].version)
    write("a.lua", text:format(1))
    local report = loaded:load()
    assert.equal(4, report.loaded[1].tried)
    assert.equal(2, #report.loaded[1].differences)
    assert.matches('on_failure of nightly .*"Re%-run Job".*, now nothing',
      report.loaded[1].differences[1])
    assert.matches("tried on 4 decisions: 2 would have been different",
      table.concat(log, "\n"))
    write("a.lua", text:format(1) .. " -- the same\n")
    assert.same(2, #loaded:load().loaded[1].differences)
  end)

  it("does not touch a run that is on", function()
    local text = [[jobs = { long = { RunStartInterval = "1h", JobRunTimes = 0,
      run = function(job) job:sleep(600) _G.ran_last = "%s" end } }]]
    write("a.lua", text:format "old")
    loaded:load()
    local job = job_of("a", "long")
    engine:advance(86400)
    support.reach(engine, job, "Running")
    write("a.lua", text:format "new")
    assert.same({}, loaded:load().failed)
    assert.equal("Running", job.JobState)
    local function ended()
      local is_done
      local stop = engine:on("RunEnded", function() is_done = true end)
      while not is_done do
        engine:advance(60)
        engine:step()
      end
      stop()
      return _G.ran_last
    end
    assert.equal("old", ended())
    engine:advance(86400)
    support.reach(engine, job, "Running")
    assert.equal("new", ended())
    _G.ran_last = nil
  end)
end)
