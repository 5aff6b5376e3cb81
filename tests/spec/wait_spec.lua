-- Who may wait where: in tasks, outside with and without a loop, and nowhere
-- else.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local HELP = "cannot wait here: .*cairn%.spawn.*engine:on"

local function sleeper(engine, seconds)
  return assert(engine:submit { Name = "sleeper",
    run = function(self) self:sleep(seconds or 5) end })
end

describe("waiting outside of tasks without a loop", function()
  it("drives the engine", function()
    local engine <close> = support.engine(cairn)
    local job = sleeper(engine)
    assert.equal("Completed", job:wait())
    assert.equal("Completed", job:wait()) -- and at once when it has ended
    assert.equal("20250101000005.000000+000", tostring(engine:now()))
    cairn.sleep(1)
    assert.equal("20250101000006.000000+000", tostring(engine:now()))
  end)

  it("ends at its limit", function()
    local engine <close> = support.engine(cairn)
    local job = sleeper(engine, 100)
    for _, limit in ipairs { 1.5, "1s", cairn.interval(1) } do
      local none, message, code = job:wait(limit)
      assert.is_nil(none)
      assert.matches("still Running after", message)
      assert.equal("timeout", code)
    end
    assert.is_nil((job:wait(0)))
    assert.error_matches(function() job:wait "soon" end, "job:wait: ")
    assert.error_matches(function() job:wait(-1) end, "job:wait: ")
    assert.error_matches(function() job:wait {} end,
      "seconds or an interval expected")
    assert.error_matches(function() job:sleep() end, "job:sleep: ")
  end)

  it("drives a real clock too", function()
    local engine <close> = assert(cairn.open())
    local start = uv.hrtime()
    local job = sleeper(engine, 0.05)
    assert.equal("Completed", job:wait())
    local seconds = (uv.hrtime() - start) / 1e9
    assert.is_true(seconds >= 0.05)
    assert.is_true(seconds < 5)
    assert.is_nil((sleeper(engine, 10):wait(0.02)))
  end)

  it("raises when nothing could end it", function()
    for _, options in ipairs { {}, { clock = "virtual" } } do
      local engine <close> = assert(cairn.open(options))
      local job = assert(engine:submit { Name = "asks",
        run = function(self) self:ask { question = "?" } end })
      assert.error_matches(function() job:wait() end,
        "nothing is left that could end this wait")
      assert.equal("Query Pending", job.JobState)
      assert.is_true(engine:close { mode = "kill" })
    end
  end)

  it("tells of a job that goes away", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "short", run = function() end,
      DeleteOnCompletion = true })
    assert.equal("Completed", job:wait())
    engine:advance(300)
    while engine:step() do end
    assert.error_matches(function() job:wait() end, "is gone")
  end)

  it("lets run end when nothing is left to do", function()
    local engine <close> = support.engine(cairn)
    assert.is_true(engine:run())
    local a, b = sleeper(engine, 5), sleeper(engine, 7)
    local held = sleeper(engine)
    assert.equal(0, (held:RequestStateChange "Suspend"))
    local asking = assert(engine:submit { Name = "asks",
      run = function(self) self:ask { question = "?" } end })
    assert.is_true(engine:run())
    assert.equal("Completed", a.JobState)
    assert.equal("Completed", b.JobState)
    assert.equal("held", held.phase)
    assert.equal("Query Pending", asking.JobState)
    engine:close { mode = "kill" }
  end)
end)

describe("waiting in the wrong place", function()
  local engine, job
  before_each(function()
    engine = support.engine(cairn)
    job = sleeper(engine)
  end)
  after_each(function() engine:close { mode = "kill" } end)

  local function waits()
    return { function() job:wait() end, function() job:sleep(1) end,
      function() job:RequestStateChange("Suspend", 1) end,
      function() engine:run() end, function() cairn.sleep(1) end,
      function() job:spawn { "true" } end,
      function() cairn.verify { directory = "/nonexistent" } end }
  end

  it("raises in a handler, and the handler's engine cannot be driven",
    function()
      local seen = {}
      engine:on("Submitted", function()
        for i, wait in ipairs(waits()) do
          seen[i] = table.pack(pcall(wait))
        end
        seen.step = table.pack(pcall(engine.step, engine))
        seen.close = table.pack(pcall(engine.close, engine))
      end)
      while engine:step() do end
      assert.equal(7, #seen)
      for _, result in ipairs(seen) do
        assert.is_false(result[1])
        assert.matches(HELP, tostring(result[2]))
      end
      assert.is_false(seen.step[1])
      assert.matches("driven already", seen.step[2])
      assert.is_false(seen.close[1])
      assert.matches("not from a handler", seen.close[2])
    end)

  it("raises on a coroutine that is no task", function()
    for _, wait in ipairs(waits()) do
      local ok, err = coroutine.resume(coroutine.create(wait))
      assert.is_false(ok)
      assert.matches(HELP, tostring(err))
    end
  end)

  it("raises on an inner coroutine of a task", function()
    local task = cairn.spawn(function()
      local ok, err = coroutine.resume(coroutine.create(function()
        job:wait()
      end))
      return ok, err
    end)
    local ok, err = task:wait()
    assert.is_false(ok)
    assert.matches(HELP, err)
  end)

  it("raises inside a callback of C in a task", function()
    local task = cairn.spawn(function()
      return pcall(table.sort, { 1, 2 }, function() cairn.sleep(1) end)
    end)
    local ok, err = task:wait()
    assert.is_false(ok)
    assert.matches("a callback of C", err)
  end)

  it("leaves no trace: a request is not made when its wait is refused",
    function()
      support.reach(engine, job, "Running")
      local ok = coroutine.resume(coroutine.create(function()
        job:RequestStateChange("Suspend", 5)
      end))
      assert.is_false(ok)
      while engine:step() do end
      assert.equal("Running", job.JobState)
    end)

  it("refuses step, run and close in a task of the engine", function()
    local task = cairn.spawn(function()
      return select(2, pcall(engine.step, engine)),
        select(2, pcall(engine.run, engine)),
        select(2, pcall(engine.close, engine))
    end)
    local step, run, close = task:wait()
    assert.matches("driven already", step)
    assert.matches("job:wait waits there", run)
    assert.matches("not from a handler or a task", close)
  end)

  it("lets a task drive another engine", function()
    local task = cairn.spawn(function()
      local other <close> = support.engine(cairn)
      local inner = assert(other:submit { Name = "inner",
        run = function(self) self:progress(50) end })
      while inner.JobState ~= "Completed" do
        if not other:step() then cairn.sleep(0) end
      end
      return inner.JobState
    end)
    assert.equal("Completed", task:wait())
  end)
end)

describe("an engine on other loops", function()
  local function poll(fd, milliseconds)
    local pfd = assert(uv.new_poll(fd))
    local is_ready = false
    pfd:start("r", function()
      is_ready = true
      pfd:stop()
    end)
    local timer = assert(uv.new_timer())
    timer:start(milliseconds, 0, function() uv.stop() end)
    while not is_ready and timer:is_active() do uv.run "once" end
    pfd:close()
    timer:close()
    uv.run "nowait"
    return is_ready
  end

  it("makes its descriptor readable for all there is to do", function()
    local engine <close> = assert(cairn.open())
    assert.equal("r", engine:events())
    while engine:step() do end
    assert.is_false(poll(engine:pollfd(), 20))
    local ends = {}
    for _, body in ipairs {
      function() end,
      function(self) self:sleep(0.01) end,
      function(self) self:spawn { "true" } end,
      function() for _ = 1, 3000000 do end end, -- more than a slice
    } do
      local job = assert(engine:submit { Name = "a", run = body })
      for _ = 1, 10000 do
        if job.JobState == "Completed" then break end
        assert.is_true(poll(engine:pollfd(), 5000), "it went to sleep")
        engine:step()
      end
      ends[#ends + 1] = job.JobState
    end
    assert.same({ "Completed", "Completed", "Completed", "Completed" }, ends)
  end)

  it("says how long there is nothing to do", function()
    local engine <close> = support.engine(cairn)
    while engine:step() do end
    assert.is_nil(engine:timeout())
    local job = sleeper(engine, 5)
    assert.equal(0.0, engine:timeout())
    support.reach(engine, job, "Running")
    while engine:step() do end
    assert.is_true(math.abs(engine:timeout() - 5) < 0.001)
    engine:advance(2)
    assert.is_true(math.abs(engine:timeout() - 3) < 0.001)
  end)
end)
