-- RecoveryAction Other: a handler in Lua decides what becomes of a failed run.

local cairn = require "cairn"
local support = _G.support

describe("RecoveryAction Other", function()
  local engine, log, notices

  local function open(recovery, more)
    log, notices = {}, {}
    local options = more or {}
    options.recovery, options.clock = recovery, "virtual"
    options.log = function(line) log[#log + 1] = line end
    options.notify = { f = function(n)
      notices[#notices + 1] = n.JobState
    end }
    engine = assert(cairn.open(options))
    return engine
  end

  after_each(function()
    if engine then engine:close { mode = "kill" } end
    engine = nil
  end)

  local function settle()
    for _ = 1, 20 do
      while engine:step() do end
    end
  end

  local function failing(more)
    local spec = { Name = "job", RecoveryAction = "Other",
      OtherRecoveryAction = "decide", Notify = "f",
      run = function() error("broken", 0) end }
    for key, value in pairs(more or {}) do spec[key] = value end
    return assert(engine:submit(spec))
  end

  it("has the run again after the delay that it says", function()
    local attempts = {}
    open { decide = function(job, failure, attempt)
      attempts[#attempts + 1] = attempt
      assert(job.Name == "job" and failure.ErrorCode == 36
        and failure.message:find("broken", 1, true))
      if attempt < 5 then return { action = "Re-run Job", delay = 600 } end
    end }
    local job = failing()
    settle()
    assert.equal("backoff", job.phase)
    engine:advance(599)
    settle()
    assert.equal("backoff", job.phase)
    assert.equal(1, job.attempts)
    engine:advance(1)
    settle()
    assert.equal(2, job.attempts)
    assert.equal("Exception", (job:wait()))
    settle()
    assert.same({ 1, 2, 3, 4, 5 }, attempts)
    assert.same({ "Exception" }, notices)
    assert.same({}, log)
  end)

  it("may wait, and the job says what it waits for", function()
    open { decide = function()
      cairn.sleep(50)
      return "Do Not Continue"
    end }
    local job = failing { JobRunTimes = 0, RunStartInterval = "1h",
      zone = "UTC" }
    job:RequestStateChange "Start"
    settle()
    assert.equal("backoff", job.phase)
    assert.is_nil(job.ScheduledStartTime)
    assert.matches('the handler "decide" decides', (engine:why(job)))
    engine:advance(50)
    settle()
    assert.equal("Exception", job.JobState)
    settle()
    assert.same({ "Exception" }, notices)
  end)

  it("lets a recurring job go on", function()
    open { decide = function() end }
    local job = failing { JobRunTimes = 0, RunStartInterval = "1h",
      zone = "UTC" }
    for i = 1, 2 do
      engine:advance(86400)
      settle()
      assert.equal("waiting", job.phase)
      assert.equal(i, job.run_number)
      assert.equal(i, #notices)
    end
  end)

  it("can start the recovery job", function()
    open { decide = function() return "Run Recovery Job" end }
    local ran = 0
    local other = assert(engine:submit { Name = "mend", held = true,
      run = function() ran = ran + 1 end })
    failing { RecoveryJob = other.InstanceID }
    settle()
    assert.equal(1, ran)
  end)

  it("is as Continue With Next Job when the handler fails or is not there",
    function()
      open { decide = function() error "boom" end, odd = function()
        return "Re-rnu Job"
      end, late = function() return "Do Not Continue", 5 end }
      for _, name in ipairs { "decide", "odd", "late", "nobody" } do
        local job = failing { OtherRecoveryAction = name }
        settle()
        assert.equal("Exception", job.JobState)
        if name == "nobody" then
          local messages = {}
          for i, err in ipairs(select(2, job:GetErrorEx())) do
            messages[i] = err.Message
          end
          assert.matches('no handler "nobody"', table.concat(messages, " "))
        end
      end
      local all = table.concat(log, "\n")
      assert.matches("recovery decide: .*boom", all)
      assert.matches("no action 'Re%-rnu Job'", all)
      assert.matches("a delay goes with 'Re%-run Job' only", all)
    end)

  it("does not keep a client from starting or ending the job", function()
    open { decide = function()
      cairn.sleep(100)
      return "Re-run Job"
    end }
    local job = failing()
    settle()
    assert.equal(4096, (job:RequestStateChange "Start"))
    settle()
    assert.equal(2, job.attempts)
    job:RequestStateChange "Terminate"
    assert.equal("Terminated", job.JobState)
    engine:advance(200)
    settle()
    assert.same({}, log)
  end)

  it("is asked again in the next life of the engine", function()
    local top, remove = support.directory()
    local file = top .. "/cairn.db"
    cairn.kind("recovery_spec.fails", function() error("broken", 0) end)
    open({ decide = function() cairn.sleep(1000000) end }, { store = file })
    local job = failing { run = "recovery_spec.fails" }
    for _ = 1, 20 do
      settle()
      engine:flush()
    end
    assert.equal("backoff", job.phase)
    assert(engine:close { mode = "suspend" })

    open({}, { store = file }) -- without the handler
    job = engine:jobs()[1]
    settle()
    assert.equal("backoff", job.phase)
    assert.matches('missing handler "decide"', (engine:why(job)))
    assert(engine:close { mode = "suspend" })
    open({ decide = function() return "Do Not Continue" end },
      { store = file })
    job = engine:jobs()[1]
    for _ = 1, 20 do
      settle()
      engine:flush()
    end
    assert.equal("Exception", job.JobState)
    remove()
  end)

  it("refuses handlers that are none", function()
    assert.error_matches(function() cairn.open { recovery = { x = 3 } } end,
      "recovery%.x: a function expected")
  end)
end)
