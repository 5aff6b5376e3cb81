-- The engine on a luv loop.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local function handles()
  local count = 0
  uv.walk(function(handle)
    if not handle:is_closing() then count = count + 1 end
  end)
  return count
end

local function sleeper(engine, seconds)
  return assert(engine:submit { Name = "sleeper",
    run = function(self) self:sleep(seconds) end })
end

describe("an attached engine", function()
  local engine, log
  before_each(function()
    log = {}
    engine = assert(cairn.open { log = function(m) log[#log + 1] = m end })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    uv.run "nowait"
  end)

  it("is driven by the loop, which ends when the jobs have", function()
    assert.is_true(cairn.attach(engine, uv))
    local states = {}
    engine:on("JobState", function(event)
      states[#states + 1] = event.JobState
    end)
    local job = sleeper(engine, 0.01)
    assert.is_false(uv.run())
    assert.equal("Completed", job.JobState)
    assert.equal(4, #states)
    assert.is_false(uv.run()) -- nothing left: at once
    assert.same({}, log)
  end)

  it("leaves one handle, and none when detached", function()
    local before = handles()
    assert(cairn.attach(engine, uv))
    assert.equal(before + 1, handles())
    engine:detach()
    engine:detach()
    uv.run "nowait"
    assert.equal(before, handles())
    assert.is_true(cairn.attach(engine)) -- and may be attached again
    assert.equal("Completed", sleeper(engine, 0):wait())
    assert.is_true(engine:close())
    uv.run "nowait"
    assert.equal(before, handles())
  end)

  it("lets the loop's other work go on while a body never waits", function()
    assert(cairn.attach(engine, uv))
    local job = assert(engine:submit { Name = "busy",
      run = function() while true do end end })
    local ticks = 0
    local timer = assert(uv.new_timer())
    timer:start(1, 1, function()
      ticks = ticks + 1
      if ticks == 20 then
        timer:close()
        assert.equal(0, (job:KillJob()))
      end
    end)
    uv.run()
    assert.equal(20, ticks)
    assert.equal("Killed", job.JobState)
  end)

  it("is waited for by running the loop", function()
    assert(cairn.attach(engine, uv))
    local ticks = 0
    local timer = assert(uv.new_timer())
    timer:start(1, 1, function() ticks = ticks + 1 end)
    assert.equal("Completed", sleeper(engine, 0.03):wait())
    assert.is_true(ticks > 3)
    assert.is_nil((sleeper(engine, 10):wait(0.01)))
    timer:close()
    assert.equal("luv", cairn.spawn(function()
      cairn.sleep(0.001)
      return "luv"
    end):wait())
  end)

  it("cannot be waited for in a callback of the running loop", function()
    assert(cairn.attach(engine, uv))
    local job = sleeper(engine, 0.02)
    local results = {}
    local timer = assert(uv.new_timer())
    timer:start(1, 0, function()
      results.wait = table.pack(pcall(job.wait, job))
      results.sleep = table.pack(pcall(cairn.sleep, 1))
      results.run = table.pack(pcall(engine.run, engine))
      cairn.spawn(function() results.state = job:wait() end)
      timer:close()
    end)
    uv.run()
    for _, name in ipairs { "wait", "sleep", "run" } do
      assert.is_false(results[name][1])
      assert.matches("cannot wait here: the luv loop is running already",
        results[name][2])
    end
    assert.equal("Completed", results.state)
  end)

  it("runs tasks under a watchdog", function()
    local states = {}
    support.on_loop(cairn, engine, function()
      for i = 1, 3 do
        states[i] = assert(engine:submit { Name = "a", run = function(self)
          self:spawn { "true" }
        end }):wait()
      end
    end)
    assert.same({ "Completed", "Completed", "Completed" }, states)
  end)

  it("answers a question from a callback", function()
    assert(cairn.attach(engine, uv))
    local answer
    local job = assert(engine:submit { Name = "asks", run = function(self)
      answer = self:ask { question = "?" }
    end })
    engine:on("JobState", function(event)
      if event.JobState == "Query Pending" then
        assert.equal(0, (job:ResumeWithInput "forty-two"))
      end
    end)
    uv.run()
    assert.equal("forty-two", answer)
  end)

  it("goes on when a handler raises", function()
    assert(cairn.attach(engine, uv))
    engine:on("JobState", function() error "broken handler" end)
    local job = sleeper(engine, 0)
    uv.run()
    assert.equal("Completed", job.JobState)
    assert.equal(4, #log)
    assert.matches("luv_spec%.lua:%d+: broken handler", log[1])
  end)

  it("keeps the loop while something is unfinished, held jobs included",
    function()
      assert(cairn.attach(engine, uv))
      local job = sleeper(engine, 0)
      assert.equal(0, (job:RequestStateChange "Suspend"))
      local timer = assert(uv.new_timer())
      timer:start(10, 0, function()
        assert.is_true(job:resume())
        timer:close()
      end)
      uv.run()
      assert.equal("Completed", job.JobState)
    end)

  it("closes within the loop", function()
    assert(cairn.attach(engine, uv))
    local job = sleeper(engine, 1000)
    local closed
    local timer = assert(uv.new_timer())
    uv.update_time() -- else it may be due before the engine has had a turn
    timer:start(5, 0, function()
      timer:close()
      closed = { job.JobState, engine:close() }
    end)
    uv.run()
    assert.same({ "Running", true }, closed)
  end)

  it("ends a wait when a callback closes it, and goes on when detached",
    function()
      local function after(seconds, fn)
        local timer = uv.new_timer()
        timer:start(seconds * 1000, 0, function()
          timer:close()
          fn()
        end)
      end
      for _, name in ipairs { "sleep", "run" } do
        local other = assert(cairn.open())
        assert(cairn.attach(other, uv))
        local job = sleeper(other, 0.05)
        after(0.01, function() other:detach() end)
        if name == "run" then other:run() else cairn.sleep(0.1) end
        assert.equal("Completed", job.JobState)
        assert(cairn.attach(other, uv))
        sleeper(other, 10)
        after(0.01, function() other:close { mode = "kill" } end)
        if name == "run" then
          assert.is_true(other:run())
        else
          assert.error_matches(function() cairn.sleep(10) end,
            "cairn.sleep: the engine was closed", 1, true)
        end
      end
    end)

  it("is attached once, and open", function()
    assert(cairn.attach(engine, uv))
    assert.error_matches(function() cairn.attach(engine, uv) end,
      "attached already")
    assert.error_matches(function() cairn.attach("x", uv) end,
      "an engine expected")
    engine:close { mode = "kill" }
    assert.error_matches(function() cairn.attach(engine, uv) end, "is closed")
  end)
end)

describe("a program that ends with an open engine", function()
  local prelude = ([[
    package.path = %q .. package.path
    package.cpath = %q .. package.cpath
    local cairn, uv = require "cairn", require "luv"
    local engine = assert(cairn.open())
  ]]):format(support.build .. "/share/lua/5.4/?.lua;",
    support.build .. "/lib/lua/5.4/?.so;")

  local function ends(name, code, expected)
    it("ends well: " .. name, function()
      local status, signal, output = support.run { "lua5.4", "-e",
        prelude .. code }
      assert.equal(0, signal, output)
      assert.equal(expected or 0, status, output)
      assert.equal("", output)
    end)
  end

  ends("nothing done", "")
  ends("attached", "cairn.attach(engine, uv)")
  ends("attached and detached, the loop not turned since", [[
    cairn.attach(engine, uv)
    engine:submit { Name = "a", run = function() end }:wait()
    engine:detach()]])
  ends("attached and closed, the loop not turned since", [[
    cairn.attach(engine, uv)
    assert(engine:close())]])
  ends("attached and walked", [[
    cairn.attach(engine, uv)
    uv.walk(function(h) assert(not h:is_closing()) end)
    engine:submit { Name = "a", run = function(j) j:sleep(100) end }
    uv.run "nowait"
    uv.walk(function(h) h:close() end)
    uv.run()]])
  ends("jobs running", [[
    engine:submit { Name = "a", run = function(j)
      local x <close> = setmetatable({}, { __close = function() end })
      j:sleep(100)
    end }
    engine:submit { Name = "b", run = function() while true do end end }
    engine:submit { Name = "c", run = function(j) j:spawn { "sleep", "50" } end }
    for i = 1, 20 do engine:step() end]])
  ends("to-be-closed, jobs running", [[
    local e <close> = engine
    e:submit { Name = "a", run = function(j) j:sleep(100) end }
    for i = 1, 5 do e:step() end]])
  ends("by os.exit in a task", [[
    cairn.attach(engine, uv)
    cairn.spawn(function() os.exit(7, true) end)
    uv.run()]], 7)
  ends("collected", [[
    engine:submit { Name = "a", run = function(j) j:sleep(100) end }
    engine:step()
    local weak = setmetatable({ engine }, { __mode = "v" })
    engine = nil
    collectgarbage() collectgarbage() collectgarbage()
    assert(weak[1] == nil, "the engine was not collected")]])
  ends("collected with its jobs", [[
    local job = engine:submit { Name = "a", run = function(j) j:sleep(9) end }
    engine:step()
    engine = nil
    collectgarbage() collectgarbage()
    assert(job.Name == "a") -- the job keeps its engine
    local weak = setmetatable({ job }, { __mode = "v" })
    job = nil
    collectgarbage() collectgarbage()
    assert(weak[1] == nil, "the job was not collected")]])
end)
