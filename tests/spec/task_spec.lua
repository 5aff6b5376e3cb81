-- Tasks: the bodies of run jobs, and cairn.spawn.

local cairn = require "cairn"
local support = _G.support

-- What an engine is kept from doing longer than this is a stall: the limit of
-- the specification is a second.
local SECOND = 1.0

local function seconds_of(fn)
  local uv = require "luv"
  local start = uv.hrtime()
  fn()
  return (uv.hrtime() - start) / 1e9
end

local function submit(engine, run, more)
  local spec = { Name = "task", run = run }
  for key, value in pairs(more or {}) do spec[key] = value end
  return assert(engine:submit(spec))
end

local function running(engine, run)
  local job = submit(engine, run)
  support.reach(engine, job, "Running")
  engine:step()
  return job
end

describe("the body of a run job", function()
  local engine, log
  before_each(function() engine, log = support.engine(cairn) end)
  after_each(function()
    engine:close { mode = "kill" }
    assert.same({}, log)
  end)

  it("gets its job and completes it by returning", function()
    local seen
    local job = submit(engine, function(self) seen = self end)
    assert.equal("Completed", job:wait())
    assert.equal(job, seen)
    assert.equal(100, job.PercentComplete)
  end)

  it("sleeps by the engine's clock", function()
    local job = running(engine, function(self) self:sleep(3600) end)
    engine:advance(3599.9)
    while engine:step() do end
    assert.equal("Running", job.JobState)
    engine:advance(0.1)
    support.reach(engine, job, "Completed")
    assert.equal(3600000000, job:number "ElapsedTime")
  end)

  it("reports progress that never moves back nor reaches 100 early",
    function()
      local percents, shown = { -5, 10.4, 50, 20, 99.9, 100, 250 }, {}
      engine:on("PercentComplete", function(event)
        shown[#shown + 1] = event.PercentComplete
      end)
      local job = submit(engine, function(self)
        for _, percent in ipairs(percents) do
          assert(self:progress(percent))
          self:sleep(1)
        end
        assert.error_matches(function() self:progress "x" end, "a number")
        assert.error_matches(function() self:progress(0 / 0) end, "NaN")
      end)
      assert.equal("Completed", job:wait())
      while engine:step() do end
      local last = 0
      for i, percent in ipairs(shown) do
        assert.is_true(percent > last)
        assert.is_true(percent < 100 or i == #shown)
        last = percent
      end
      assert.equal(100, last)
    end)

  it("asks, and goes on with the answer", function()
    local answer
    local job = submit(engine, function(self)
      answer = self:ask { question = "which?", choices = { "a", "b" } }
    end)
    support.reach(engine, job, "Query Pending")
    assert.same({ question = "which?", choices = { "a", "b" } }, job:query())
    local code, none, message = job:ResumeWithInput "c"
    assert.equal(5, code)
    assert.is_nil(none)
    assert.matches('"c" is none of the choices', message)
    assert.equal("Query Pending", job.JobState)
    assert.equal(0, (job:ResumeWithInput "b"))
    assert.equal("Completed", job:wait())
    assert.equal("b", answer)
    assert.is_nil(job:query())
    assert.equal(4097, (job:ResumeWithInput "b"))
  end)

  it("asks only for itself and only well", function()
    local job = submit(engine, function(self)
      assert.error_matches(function() self:ask {} end, "question is missing")
      assert.error_matches(function()
        self:ask { question = "?", choices = {} }
      end, "choices is empty")
      assert.error_matches(function()
        self:ask { question = "?", choices = { 1 } }
      end, "choices%[1%] must be a string")
      assert.error_matches(function()
        self:ask { question = "?", choice = "x" }
      end, "did you mean 'choices'")
    end)
    assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
    assert.error_matches(function() job:ask { question = "?" } end,
      "for the job's own body")
  end)

  it("runs programs without a shell", function()
    local result, none, message, code
    local job = submit(engine, function(self)
      result = assert(self:spawn { "sh", "-c",
        'cat; echo "$CAIRN_TEST $PWD" >&2; exit 3', input = "in\0put",
        env = { CAIRN_TEST = "a b" }, cwd = "/" })
      none, message, code = self:spawn { "/nonexistent/program" }
      local killed = assert(self:spawn { "sh", "-c", "kill -9 $$" })
      assert.equal(9, killed.signal)
      assert.is_nil(killed.code)
      local plain = assert(self:spawn { "printf", "%s|", "a b", "$HOME", 3 })
      assert.equal("a b|$HOME|3|", plain.stdout)
    end)
    assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
    assert.same({ code = 3, stdout = "in\0put", stderr = "a b /\n" }, result)
    assert.is_nil(none)
    assert.matches("/nonexistent/program", message)
    assert.equal("not_found", code)
  end)

  it("refuses to run what is no program", function()
    local job = submit(engine, function(self)
      assert.error_matches(function() self:spawn {} end, "a program")
      assert.error_matches(function() self:spawn "ls" end, "a table expected")
      assert.error_matches(function() self:spawn { "a", {} } end,
        "%[2%] must be a string")
      assert.error_matches(function() self:spawn { "a\0b" } end, "a NUL byte")
      assert.error_matches(function() self:spawn { "a", inputs = "x" } end,
        "did you mean 'input'")
      assert.error_matches(function() self:spawn { "a", cwd = 3 } end,
        "cwd must be a string")
      assert.error_matches(function()
        self:spawn { "a", env = { ["A=B"] = "c" } }
      end, "names of variables")
    end)
    assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
  end)

  it("waits for another job", function()
    local other = submit(engine, function(self) self:sleep(60) end)
    local state, none, message, code
    local job = submit(engine, function(self)
      none, message, code = self:wait_for(other, 1)
      state = self:wait_for(other)
      assert.error_matches(function() self:wait_for(self) end,
        "cannot wait for itself")
      assert.error_matches(function() self:wait() end,
        "cannot wait for itself")
      assert.error_matches(function() self:wait_for "x" end,
        "a job expected")
    end)
    assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
    assert.equal("Completed", state)
    assert.is_nil(none)
    assert.matches("still Running after 1 s", message)
    assert.equal("timeout", code)
  end)

  it("fails its job with the line that raised", function()
    local job = submit(engine, function()
      local function inner() error "out of cheese" end
      inner()
    end)
    assert.equal("Exception", job:wait())
    assert.equal(36, job.ErrorCode)
    assert.matches("task_spec%.lua:%d+: out of cheese",
      job.ErrorSummaryDescription)
    assert.matches("in .*'inner'", job.ErrorSummaryDescription)
    assert.is_nil(job.ErrorSummaryDescription:find("cairn/task.lua", 1, true))
  end)

  it("fails its job with whatever was raised", function()
    local strange = setmetatable({}, { __tostring = function() error "no" end })
    for _, case in ipairs {
      { { code = "io_error", message = "the tape tore" }, 18, "the tape tore" },
      { { code = "made_up", message = "well" }, 36, "made_up: well" },
      { { code = "terminated", message = "not so" }, 36, "not so" },
      { {}, 36, "table: " }, { 42, 36, "42" }, { strange, 36, "cannot be shown" },
    } do
      local job = submit(engine, function() error(case[1], 0) end)
      assert.equal("Exception", job:wait())
      assert.equal(case[2], job.ErrorCode)
      assert.matches(case[3], job.ErrorSummaryDescription)
    end
    local job = submit(engine, function() error() end)
    assert.equal("Exception", job:wait())
  end)

  it("fails its job when its stack or memory runs out", function()
    local job = submit(engine, function()
      local function forever() return 1 + forever() end
      forever()
    end)
    assert.equal("Exception", job:wait())
    assert.matches("stack overflow", job.ErrorSummaryDescription)
  end)

  it("ends its job when there is memory for that again", function()
    local core = require "cairn.core"
    local finish, refusals = core.task_finish, 0
    finally(function() core.task_finish = finish end)
    function core.task_finish(...)
      refusals = refusals + 1
      if refusals % 3 == 1 then
        return nil, "out of memory", "no_memory"
      elseif refusals % 3 == 2 then
        error("not enough memory", 0)
      end
      return finish(...)
    end
    local job = submit(engine, function() end)
    assert.equal("Completed", job:wait())
    job = submit(engine, function() error("here", 0) end)
    assert.equal("Exception", job:wait())
    assert.matches("^here", job.ErrorSummaryDescription)
    assert.equal(6, refusals)
  end)

  it("may yield plainly, which is giving way", function()
    local order = {}
    local function body(name)
      return function()
        for i = 1, 3 do
          order[#order + 1] = name .. i
          coroutine.yield(i)
        end
      end
    end
    local a, b = submit(engine, body "a"), submit(engine, body "b")
    assert.equal("Completed", a:wait())
    assert.equal("Completed", b:wait())
    assert.equal("a1b1a2b2a3b3", table.concat(order))
  end)

  it("may use coroutines of its own", function()
    local sum = 0
    local job = submit(engine, function()
      local numbers = coroutine.wrap(function()
        for i = 1, 200000 do coroutine.yield(i) end
      end)
      for i = 1, 200000 do
        local n = numbers()
        assert(n == i, "a number is missing")
        sum = sum + n
      end
    end)
    assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
    assert.equal(20000100000, sum)
  end)

  it("runs again with each run of its job", function()
    local runs = 0
    local job = submit(engine, function() runs = runs + 1 end,
      { JobRunTimes = 2, RunStartInterval = "00000000020000.000000:000" })
    assert.equal(4096, (job:RequestStateChange "Start"))
    support.until_true(engine, function() return runs == 1 end)
    support.reach(engine, job, "Suspended")
    assert.equal(4096, (job:RequestStateChange "Start"))
    assert.equal("Completed", job:wait())
    assert.equal(2, runs)
  end)
end)

describe("a body that never waits", function()
  local engine, log
  before_each(function() engine, log = support.engine(cairn) end)
  after_each(function()
    engine:close { mode = "kill" }
    assert.same({}, log)
  end)

  local function forever() while true do end end
  local function shielded() while true do pcall(forever) end end

  it("stalls neither the engine nor other bodies", function()
    local busy = running(engine, forever)
    local job
    assert.is_true(seconds_of(function()
      job = submit(engine, function(self)
        for _ = 1, 5 do self:sleep(0) end
      end)
      assert.equal("Completed", job:wait())
    end) < SECOND)
    assert.equal("Running", busy.JobState)
  end)

  for name, body in pairs { loop = forever, ["loop in pcall"] = shielded } do
    it("is suspended, resumed and killed within a second: " .. name, function()
      local job = running(engine, body)
      assert.is_true(seconds_of(function()
        assert.equal(0, (job:RequestStateChange("Suspend", 5)))
      end) < SECOND)
      while engine:step() do end -- nothing is left to do while suspended
      assert.equal("Suspended", job.JobState)
      assert.is_true(job:resume())
      support.reach(engine, job, "Running")
      assert.is_true(seconds_of(function()
        assert.equal(0, (job:KillJob()))
        while engine:step() do end
      end) < SECOND)
      assert.equal("Killed", job.JobState)
    end)
  end

  it("is terminated where it is", function()
    local cleaned
    local job = running(engine, function()
      local _ <close> = setmetatable({}, { __close = function(_, err)
        cleaned = err.code
      end })
      forever()
    end)
    assert.is_true(seconds_of(function()
      assert.equal(0, (job:RequestStateChange("Terminate", 5)))
    end) < SECOND)
    assert.equal("Terminated", job.JobState)
    assert.equal("terminated", cleaned)
    assert.equal(37, job.ErrorCode)
  end)

  it("is cut off when it swallows the termination", function()
    local job = running(engine, shielded)
    local seconds = seconds_of(function()
      assert.equal(4096, (job:RequestStateChange "Terminate"))
      assert.equal("Terminated", job:wait())
    end)
    assert.is_true(seconds < 2 * SECOND)
    assert.matches("cut off after a second", job.ErrorSummaryDescription)
  end)

  it("gets an error where it cannot give way", function()
    for name, body in pairs {
      ["inner coroutine"] = function()
        coroutine.wrap(shielded)()
      end,
      ["table.sort"] = function()
        table.sort({ 1, 2, 3 }, shielded)
      end,
      ["string.gsub"] = function()
        string.gsub("x", ".", shielded)
      end,
      ["inner coroutine in an inner coroutine"] = function()
        coroutine.wrap(function() coroutine.wrap(forever)() end)()
      end,
    } do
      local job = submit(engine, body)
      local seconds = seconds_of(function() job:wait() end)
      assert.equal("Exception", job.JobState, name)
      assert.matches("cannot give way", job.ErrorSummaryDescription, name)
      assert.is_true(seconds < 2 * SECOND, name)
    end
  end)

  it("gets it past a message handler that does not return", function()
    local ok, message
    local job = submit(engine, function()
      ok, message = xpcall(error, function() while true do end end)
    end)
    assert.is_true(seconds_of(function() job:wait() end) < 5)
    assert.equal("Completed", job.JobState)
    assert.is_false(ok)
    assert.equal("not enough memory", message)
  end)

  it("is killed although it makes ever new inner coroutines", function()
    local job = running(engine, function()
      while true do
        coroutine.resume(coroutine.create(function()
          for _ = 1, 1000 do end
        end))
      end
    end)
    assert.is_true(seconds_of(function()
      assert.equal(0, (job:KillJob()))
      while engine:step() do end
    end) < SECOND)
    assert.equal("Killed", job.JobState)
  end)
end)

describe("ending a body", function()
  local engine, log
  before_each(function() engine, log = support.engine(cairn) end)
  after_each(function() engine:close { mode = "kill" } end)

  it("by Terminate raises an error with a code at its wait", function()
    local seen
    for _, wait in ipairs {
      function(self) self:sleep(100) end,
      function(self) self:ask { question = "?" } end,
      function(self) self:spawn { "sleep", "100" } end,
    } do
      seen = nil
      local job = submit(engine, function(self)
        local ok, err = pcall(wait, self)
        seen = { ok, err.code, tostring(err) }
        error(err, 0)
      end)
      support.until_true(engine, function()
        return job.JobState == "Running" or job.JobState == "Query Pending"
      end)
      while engine:step() do end
      assert.equal(0, (job:RequestStateChange("Terminate", 5)))
      assert.same({ false, "terminated", "the job was asked to terminate" },
        seen)
      assert.equal("Terminated", job.JobState)
    end
    assert.same({}, log)
  end)

  it("by Terminate lets its clean-up wait", function()
    local cleaned
    local job = running(engine, function(self)
      local _ <close> = setmetatable({}, { __close = function()
        self:sleep(0.5)
        cleaned = self:spawn { "echo", "tidy" }.stdout
      end })
      self:sleep(100)
    end)
    assert.equal(4096, (job:RequestStateChange "Terminate"))
    assert.equal("Terminated", job:wait())
    assert.equal("tidy\n", cleaned)
    assert.same({}, log)
  end)

  it("by Terminate is Terminated even if it returns", function()
    local job = running(engine, function(self) pcall(self.sleep, self, 100) end)
    assert.equal(0, (job:RequestStateChange("Terminate", 5)))
    assert.equal("Terminated", job.JobState)
  end)

  it("cuts a clean-up that waits for long after a second", function()
    local job = running(engine, function(self)
      local _ <close> = setmetatable({}, { __close = function()
        self:sleep(100)
      end })
      self:sleep(100)
    end)
    assert.equal(4096, (job:RequestStateChange "Terminate"))
    while engine:step() do end
    assert.equal("Shutting Down", job.JobState)
    engine:advance(1)
    support.reach(engine, job, "Terminated")
    assert.matches("cut off", job.ErrorSummaryDescription)
  end)

  it("logs an error of its clean-up", function()
    local job = running(engine, function(self)
      local _ <close> = setmetatable({}, { __close = function()
        error "the broom broke"
      end })
      self:sleep(100)
    end)
    assert.equal(0, (job:RequestStateChange("Terminate", 5)))
    assert.equal("Terminated", job.JobState)
    assert.equal(1, #log)
    assert.matches("task_spec%.lua:%d+: the broom broke", log[1])
  end)

  it("by Kill closes its variables within a limit", function()
    local closed
    local job = running(engine, function(self)
      local _ <close> = setmetatable({}, { __close = function()
        closed = true
        while true do pcall(function() while true do end end) end
      end })
      self:sleep(100)
    end)
    assert.is_true(seconds_of(function()
      assert.equal(0, (job:KillJob()))
      while engine:step() do end
    end) < SECOND)
    assert.is_true(closed)
    assert.matches("clean%-up of a killed job took too long", log[1])
  end)

  it("by Kill does not let its variables wait", function()
    local job = running(engine, function(self)
      local _ <close> = setmetatable({}, { __close = function()
        self:sleep(1)
      end })
      self:sleep(100)
    end)
    assert.equal(0, (job:KillJob()))
    while engine:step() do end
    assert.matches("cannot wait here", log[1])
  end)

  it("kills the programs it has started", function()
    local uv = require "luv"
    for _, how in ipairs { "kill", "terminate" } do
      local path, remove = support.directory()
      local job = submit(engine, function(self)
        self:spawn { "sh", "-c", "echo $$ >" .. path .. "/pid; "
          .. "trap '' TERM; mv " .. path .. "/pid " .. path .. "/here; "
          .. "while :; do sleep 1; done" }
      end)
      support.until_true(engine, function()
        return uv.fs_stat(path .. "/here") ~= nil
      end)
      local pid = math.tointeger(tonumber(support.read(path .. "/here")))
      if how == "kill" then
        assert.equal(0, (job:KillJob()))
      else
        assert.equal(4096, (job:RequestStateChange "Terminate"))
      end
      support.until_true(engine, function()
        engine:step(0.01)
        local stat = io.open("/proc/" .. pid .. "/stat")
        if not stat then return true end
        local text = stat:read "a" or ""
        stat:close()
        return text == "" or text:find "%) [ZX]" ~= nil
      end)
      remove()
    end
  end)

  it("stops the programs of a suspended one", function()
    local path, remove = support.directory()
    -- without a program of its own: a shell that waits in vfork for one that
    -- was stopped before it began is in the state D, not T
    local job = submit(engine, function(self)
      self:spawn { "sh", "-c", "echo $$ >" .. path .. "/p; mv " .. path
        .. "/p " .. path .. "/pid; while :; do :; done" }
    end)
    local uv = require "luv"
    support.until_true(engine, function()
      return uv.fs_stat(path .. "/pid") ~= nil
    end)
    local pid = math.tointeger(tonumber(support.read(path .. "/pid")))
    local function state()
      return support.read("/proc/" .. pid .. "/stat"):match "%) (%a)"
    end
    assert.equal(0, (job:RequestStateChange("Suspend", 5)))
    support.until_true(engine, function() return state() == "T" end)
    assert.is_true(job:resume())
    support.until_true(engine, function()
      engine:step()
      return state() ~= "T"
    end)
    assert.equal(0, (job:KillJob()))
    remove()
  end)

  it("leaves a suspended one where it is", function()
    local steps = 0
    local job = running(engine, function(self)
      for _ = 1, 3 do
        self:sleep(1)
        steps = steps + 1
      end
    end)
    assert.equal(0, (job:RequestStateChange("Suspend", 5)))
    engine:advance(10)
    while engine:step() do end
    assert.equal(0, steps)
    assert.is_true(job:resume())
    while engine:step() do end
    assert.equal(1, steps) -- the sleep that ended meanwhile
    assert.equal("Completed", job:wait())
    assert.equal(3, steps)
  end)

  it("terminates a suspended one", function()
    local job = running(engine, function(self) self:sleep(100) end)
    assert.equal(0, (job:RequestStateChange("Suspend", 5)))
    assert.equal(0, (job:RequestStateChange("Terminate", 5)))
    assert.equal("Terminated", job.JobState)
  end)

  it("works from within itself", function()
    local after
    local job = submit(engine, function(self)
      self:KillJob()
      self:sleep(0)
      after = true
    end)
    assert.equal("Killed", job:wait())
    assert.is_nil(after)
    job = submit(engine, function(self)
      self:RequestStateChange "Suspend"
      self:sleep(0)
      after = "resumed"
    end)
    support.reach(engine, job, "Suspended")
    while engine:step() do end
    assert.is_nil(after)
    assert.is_true(job:resume())
    assert.equal("Completed", job:wait())
    assert.equal("resumed", after)
  end)

  it("happens to all of them when the engine closes", function()
    local ended = {}
    local function body(name)
      return function(self)
        local _ <close> = setmetatable({}, { __close = function()
          ended[name] = true
        end })
        self:sleep(1000)
      end
    end
    running(engine, body "a")
    local b = running(engine, body "b")
    assert.equal(0, (b:RequestStateChange("Suspend", 5)))
    local task = cairn.spawn(function()
      local _ <close> = setmetatable({}, { __close = function()
        ended.c = true
      end })
      cairn.sleep(1000)
    end)
    while engine:step() do end
    assert.equal("waiting", task.status)
    assert.is_true(engine:close())
    assert.same({ a = true, b = true, c = true }, ended)
    assert.equal("done", task.status)
  end)
end)

describe("cairn.spawn", function()
  it("runs a function as a task and hands out its results", function()
    local engine <close> = support.engine(cairn)
    local task = cairn.spawn(function(...)
      cairn.sleep(1)
      return select("#", ...), ...
    end, 1, nil, 3)
    assert.same({ 3, 1, nil, 3, n = 4 }, table.pack(task:wait()))
    assert.equal("done", task.status)
    assert.equal("20250101000001.000000+000", tostring(engine:now()))
  end)

  it("hands out its error, or logs it when nobody waits", function()
    local engine, log = support.engine(cairn)
    local _ <close> = engine
    local task = cairn.spawn(function() error "lost" end)
    local none, message, code = task:wait()
    assert.is_nil(none)
    assert.matches("task_spec%.lua:%d+: lost", message)
    assert.equal("script_error", code)
    assert.same({}, log)
    cairn.spawn(function() error "nobody cares" end)
    while engine:step() do end
    assert.matches("background task: .*nobody cares", log[1])
  end)

  it("can be waited for with a limit, and killed", function()
    local engine <close> = support.engine(cairn)
    local task = cairn.spawn(function() cairn.sleep(100) end)
    local none, _, code = task:wait(1)
    assert.is_nil(none)
    assert.equal("timeout", code)
    task:kill()
    none, _, code = task:wait()
    assert.is_nil(none)
    assert.equal("killed", code)
    task:kill()
    assert.is_true(engine:close())
  end)

  it("kills itself when it gives way", function()
    local engine <close> = support.engine(cairn)
    local task, after
    task = cairn.spawn(function()
      task:kill()
      cairn.sleep(0)
      after = true
    end)
    while engine:step() do end
    assert.equal("done", task.status)
    assert.is_nil(after)
  end)

  it("needs an engine and a function", function()
    assert.error_matches(function() cairn.spawn(function() end) end,
      "cairn%.open first")
    assert.error_matches(function() cairn.sleep(1) end, "cairn%.open first")
    local engine <close> = support.engine(cairn)
    assert.error_matches(function() cairn.spawn "x" end,
      "a function expected")
    assert.is_true(engine:close())
  end)

  it("drives the engine of the job it waits for when nobody else does", function()
    local a <close> = support.engine(cairn)
    local b <close> = support.engine(cairn)
    local job = submit(a, function(self) self:sleep(5) end)
    local state
    local task = cairn.spawn(function() state = job:wait() end) -- on b
    assert.equal("done", (function()
      for _ = 1, 100 do
        if task.status == "done" then break end
        if not b:step() then b:advance(0.01) end
      end
      return task.status
    end)())
    assert.equal("Completed", state)
    assert.equal("Completed", job.JobState)
  end)

  it("leaves an engine alone that is on a loop", function()
    local a <close> = support.engine(cairn)
    local b <close> = support.engine(cairn)
    cairn.attach(a, require "luv")
    local job = submit(a, function() end)
    local state
    cairn.spawn(function() state = job:wait() end) -- on b
    while b:step() do end
    assert.is_nil(state)
    assert.equal("New", job.JobState)
    assert.equal("Completed", job:wait())
    while b:step() do end
    assert.equal("Completed", state)
    a:detach()
  end)

  it("is told when the engine it waits for closes", function()
    local a = support.engine(cairn)
    local b <close> = support.engine(cairn)
    local job = submit(a, function(self) self:sleep(5) end)
    local results
    cairn.spawn(function() results = table.pack(job:wait()) end)
    while b:step() do end
    assert.is_true(a:close { mode = "kill" })
    while b:step() do end
    assert.equal("string", type(results[1] or results[2]))
  end)
end)
