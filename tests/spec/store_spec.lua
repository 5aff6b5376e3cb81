-- cairn.open { store = FILE }, and cairn run --store: what is acknowledged is
-- there in the next life, judged by sqlite3 and by opening it again.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

describe("an engine with a store", function()
  local top, remove, file, log

  before_each(function()
    top, remove = support.directory()
    file, log = top .. "/cairn.db", {}
  end)

  after_each(function()
    remove()
  end)

  local function open(options)
    options = options or {}
    options.store = file
    options.log = function(message) log[#log + 1] = message end
    return assert(cairn.open(options))
  end

  local pid = math.tointeger(uv.os_getpid())

  local function sql(query)
    local code, _, out = support.run { "sqlite3", "-batch", file, query }
    assert.equal(0, code, out)
    return (out:gsub("\n$", ""))
  end

  it("has its jobs again in the next life", function()
    local id
    do
      local engine <close> = open()
      local job = assert(engine:submit { Name = "nightly", held = true,
        verify = { directory = "/srv/x" }, Priority = 7, RunStartInterval = "2h",
        zone = "UTC", JobRunTimes = 0 })
      assert.is_true(job:set { RunDay = 3 })
      id = job.InstanceID
    end
    assert.equal("nightly|3|7|" .. id, sql("SELECT Name, "
      .. "more ->> 'RunDay', Priority, InstanceID FROM job JOIN state "
      .. "USING (serial)"))
    local engine <close> = open()
    local job = assert(engine:job(id))
    assert.equal("nightly", job.Name)
    assert.equal(3, job.RunDay)
    assert.equal("00000000020000.000000:000", job.RunStartInterval)
    assert.equal(1, #engine:jobs { Priority = 7 })
    assert.same({}, log)
  end)

  it("is durable when submit returns", function()
    local engine <close> = open()
    for i = 1, 5 do
      local events, cursor = engine:changes()
      assert.equal(i - 1, #events)
      assert(engine:submit { Name = "j", held = true,
        verify = { directory = "/x" } })
      events, cursor = engine:changes(cursor)
      assert.equal("Submitted", events[1].name)
      assert.equal(i, cursor)
    end
    -- in one commit
    local jobs = assert(engine:submit_all { { Name = "a", held = true,
      verify = { directory = "/x" } }, { Name = "b", held = true,
      verify = { directory = "/x" } } })
    assert.equal(2, #jobs)
    assert.same({ "Submitted", "Submitted" }, { engine:changes(5)[1].name,
      engine:changes(5)[2].name })
  end)

  it("shares commits among callers and tells those that do not wait",
    function()
      local engine <close> = open()
      local done, told = 0, 0
      engine:on("Submitted", function() told = told + 1 end)
      for _ = 1, 20 do
        cairn.spawn(function()
          for _ = 1, 5 do
            assert(engine:submit { Name = "j", run = "nobody" })
            done = done + 1
          end
        end)
      end
      while done < 100 do engine:step(0.1) end
      local job = assert(engine:submit { Name = "quick", run = "nobody",
        wait = false })
      assert.equal("New", job.JobState)
      assert(engine:flush())
      while told < 101 do engine:step(0.1) end
      assert.equal(101, told)
    end)

  it("does not wait where nobody may, and says what to do", function()
    local engine <close> = open()
    local ok, message, later
    engine:on("Submitted", function(event)
      if event.job.Name ~= "first" then return end
      ok, message = pcall(engine.submit, engine, { Name = "second",
        run = "nobody" })
      later = assert(engine:submit { Name = "third", run = "nobody",
        wait = false })
    end)
    assert(engine:submit { Name = "first", run = "nobody" })
    while not later do engine:step(0.1) end
    assert.is_false(ok)
    assert.matches("wait = false", message)
    assert(engine:flush())
    assert.equal(2, #engine:jobs {})
  end)

  it("keeps no functions, but the names of some", function()
    local engine = open()
    local job, message, code = engine:submit { Name = "f",
      run = function() end }
    assert.is_nil(job)
    assert.equal("invalid_argument", code)
    assert.matches("volatile = true", message)
    job = assert(engine:submit { Name = "v", run = function() end,
      volatile = true })
    assert.equal("Completed", (job:wait(10)))
    job = assert(engine:submit { Name = "named", run = "store_spec.named" })
    engine:step(0.05)
    assert.equal("waiting", job.phase)
    assert.matches('no "store_spec.named"', (engine:why(job)))
    assert(engine:close())

    engine = open()
    local ran = 0
    cairn.kind("store_spec.named", function() ran = ran + 1 end)
    job = engine:jobs { Name = "named" }[1]
    assert.equal("Completed", (job:wait(10)))
    assert.equal(1, ran)
    assert.equal(0, #engine:jobs { Name = "v" })
    assert.error_matches(function() cairn.kind("", print) end, "name expected")
    assert.error_matches(function() cairn.kind("x", 3) end, "function expected")
    assert(engine:close())
  end)

  it("begins again what was running when it was closed or killed", function()
    local runs, let_go = {}, false
    cairn.kind("store_spec.long", function(job)
      runs[#runs + 1] = job.run_number
      while not let_go do job:sleep(0.01) end
    end)
    local engine = open()
    local job = assert(engine:submit { Name = "long",
      run = "store_spec.long" })
    while #runs == 0 do engine:step(0.1) end
    local id = job.InstanceID
    assert(engine:close()) -- suspends
    engine = open()
    job = engine:job(id)
    while #runs < 2 do engine:step(0.1) end
    assert.equal("Running", job.JobState)
    engine = nil -- luacheck: ignore
    job = nil -- luacheck: ignore
    for _ = 1, 3 do collectgarbage() end -- without closing
    let_go = true
    engine = open()
    job = engine:job(id)
    assert.equal("Completed", (job:wait(10)))
    assert.same({ 1, 1, 1 }, runs)
    local history = engine:history()
    assert.equal(1, #history)
    assert.equal(1, history[1].run_number)
    assert(engine:close())
  end)

  it("is one engine's at a time", function()
    local engine <close> = open()
    local other, message, code = cairn.open { store = file }
    assert.is_nil(other)
    assert.same({}, engine:jobs())
    assert.equal("store_locked", code)
    assert.matches("process " .. pid, message)
  end)

  it("refuses what is no store", function()
    support.write(file, "no database")
    local engine, message, code = cairn.open { store = file }
    assert.is_nil(engine)
    assert.equal("store_failed", code)
    assert.matches("no SQLite database", message)
    assert.equal("no database", support.read(file))
    assert.error_matches(function() cairn.open { store = "" } end,
      "store: the name of a file")
  end)

  it("is copied while it works", function()
    local engine <close> = open()
    assert(engine:submit { Name = "j", run = "nobody" })
    assert.is_true(engine:backup(top .. "/copy.db"))
    local ok, message, code = engine:backup(top .. "/copy.db")
    assert.is_nil(ok)
    assert.equal("exists", code)
    assert.matches("copy.db", message)
    local copy <close> = assert(cairn.open { store = top .. "/copy.db" })
    assert.equal("j", copy:jobs()[1].Name)
  end)

  it("gives a job another specification", function()
    local engine <close> = open()
    local job = assert(engine:submit { Name = "a", run = "nobody",
      RunStartInterval = "2h", JobRunTimes = 0 })
    local id = job.InstanceID
    assert.is_true(engine:update(job, { Name = "b", Priority = 5,
      verify = { directory = "/x" }, RunStartInterval = "3h" }))
    assert.same({ "b", 5, id, "00000000030000.000000:000" }, { job.Name,
      job.Priority, job.InstanceID, job.RunStartInterval })
    local ok, _, code = engine:update(job, { Name = "b" })
    assert.is_nil(ok)
    assert.equal("invalid_argument", code)
    assert.is_true(engine:backup(top .. "/look.db"))
    local _, _, out = support.run { "sqlite3", top .. "/look.db",
      "SELECT Name, kind, Priority FROM job JOIN state USING (serial)" }
    assert.equal("b|verify|5\n", out)
    job:RequestStateChange "Terminate"
    ok, _, code = engine:update(job, { Name = "c", run = "nobody" })
    assert.is_nil(ok)
    assert.equal("invalid_state", code)
  end)

  it("works on a luv loop", function()
    local engine <close> = open()
    support.on_loop(cairn, engine, function()
      for i = 1, 10 do
        assert(engine:submit { Name = "j" .. i, run = "nobody" })
      end
      assert.is_true(engine:backup(top .. "/copy.db"))
    end)
    assert.equal(10, #engine:jobs())
  end)

  it("works on a virtual clock", function()
    local engine <close> = open { clock = "virtual" }
    local count = 0
    cairn.kind("store_spec.count", function() count = count + 1 end)
    local job = assert(engine:submit { Name = "hourly", zone = "UTC",
      run = "store_spec.count", RunStartInterval = "1h", JobRunTimes = 3 })
    assert.equal("Completed", (job:wait()))
    assert.equal(3, count)
    assert.equal(3, #engine:history(job))
  end)
end)

describe("cairn run --store", function()
  local top, remove, file

  before_each(function()
    top, remove = support.directory()
    file = top .. "/cairn.db"
  end)

  after_each(function() remove() end)

  local function command(...)
    local code, signal, out = support.run({ support.build .. "/bin/cairn",
      ... })
    return code, out, signal
  end

  local function policy(text)
    return support.write(top .. "/p.lua", [[
local cairn = require "cairn"
return cairn.policy { jobs = { ]] .. text .. [[ } }
]])
  end

  it("keeps the history of its runs", function()
    local name = policy "quick = { run = function() end }"
    for i = 1, 2 do
      local code, out = command("run", name, "--store", file)
      assert.equal(0, code, out)
      local engine <close> = assert(cairn.open { store = file })
      assert.equal(i, #engine:history())
    end
  end)

  it("goes on after a signal", function()
    local name = policy(([[long = { run = function(job)
      local f = io.open(%q, "a") f:write("began ", job.run_number, "\n")
      f:close()
      for _ = 1, 600 do
        if io.open(%q) then return end
        job:sleep(0.02)
      end
    end }]]):format(top .. "/began", top .. "/let_go"))
    local code, pid
    local process = assert(uv.spawn(support.build .. "/bin/cairn",
      { args = { "run", name, "--store", file }, stdio = { nil, nil, nil } },
      function(c) code = c end))
    pid = process:get_pid()
    local deadline = uv.now() + 20000
    while not io.open(top .. "/began") and uv.now() < deadline do
      uv.run "nowait"
      uv.sleep(10)
      uv.update_time()
    end
    uv.kill(pid, "sigterm")
    while not code and uv.now() < deadline do
      uv.run "nowait"
      uv.sleep(10)
      uv.update_time()
    end
    process:close()
    uv.run "nowait"
    assert.equal(1, code) -- it has not completed
    support.write(top .. "/let_go", "")
    local again, out = command("run", name, "--store", file)
    assert.equal(0, again, out)
    -- the same run, of the same job
    assert.equal("began 1\nbegan 1\n", support.read(top .. "/began"))
    local engine <close> = assert(cairn.open { store = file })
    assert.equal(1, #engine:jobs())
  end)

  it("gives jobs that it knows what the policy has now", function()
    local name = policy [[
      a = { run = function() end, RunStartInterval = "1h", JobRunTimes = 0 },
      b = { run = function() end, RunStartInterval = "1h", JobRunTimes = 0 } ]]
    local function follow()
      local code, said
      local stderr = assert(uv.new_pipe(false))
      local process = assert(uv.spawn(support.build .. "/bin/cairn",
        { args = { "run", name, "--follow", "--store", file },
          stdio = { nil, nil, stderr } }, function(c, signal) code = signal == 0 and c or 128 + signal end))
      stderr:read_start(function(_, text) said = said or text end)
      uv.update_time()
      local deadline = uv.now() + 60000
      local function spin(done)
        while not done() and uv.now() < deadline do
          uv.run "nowait"
          uv.sleep(10)
          uv.update_time()
        end
      end
      spin(function() return said or code end) -- its jobs wait
      process:kill "sigterm"
      spin(function() return code end)
      if not code then process:kill "sigkill" end
      stderr:close()
      process:close()
      uv.run "nowait"
      return code
    end
    assert.equal(0, follow())
    local ids = {}
    do
      local engine <close> = assert(cairn.open { store = file })
      for _, job in ipairs(engine:jobs()) do
        ids[job.policy_key] = job.InstanceID
        assert.equal("waiting", job.phase)
      end
      assert.truthy(ids.a and ids.b)
    end
    policy [[
      a = { run = function() end, RunStartInterval = "2h", JobRunTimes = 0,
        Name = "renamed" },
      c = { run = function() end, RunStartInterval = "1h", JobRunTimes = 0 } ]]
    assert.equal(0, follow())
    local engine <close> = assert(cairn.open { store = file })
    local jobs = {}
    for _, job in ipairs(engine:jobs()) do jobs[job.policy_key] = job end
    assert.equal(ids.a, jobs.a.InstanceID)
    assert.equal("renamed", jobs.a.Name)
    assert.equal("00000000020000.000000:000", jobs.a.RunStartInterval)
    assert.equal(ids.b, jobs.b.InstanceID)
    assert.equal("held", jobs.b.phase)
    assert.truthy(jobs.c)
    -- and one that comes back goes on
    assert(engine:close())
    policy [[
      b = { run = function() end, RunStartInterval = "1h", JobRunTimes = 0 } ]]
    assert.equal(0, follow())
    local again <close> = assert(cairn.open { store = file })
    for _, job in ipairs(again:jobs()) do
      assert.equal(job.policy_key == "b" and "waiting" or "held", job.phase)
    end
  end)

  it("refuses another policy of the same name", function()
    local name = policy [[
      a = { run = function() end, held = true } ]]
    do
      local engine <close> = assert(cairn.open { store = file })
      local spec = assert(cairn.policy_load(name)).jobs.a
      assert(engine:submit(spec))
    end
    assert.equal(0, (support.run { "mkdir", top .. "/other" }))
    local other = support.write(top .. "/other/p.lua", support.read(name))
    local code, out = command("run", other, "--store", file)
    assert.equal(2, code)
    assert.matches("has a policy p already, from " .. name:gsub("%-", "%%-"),
      out)
    -- one that was moved is the same
    os.remove(name)
    code, out = command("run", other, "--store", file)
    assert.equal(0, code, out)
  end)

  it("does not wait for what a client holds", function()
    local name = policy "a = { run = function(job) job:sleep(1000) end }"
    do
      local engine <close> = assert(cairn.open { store = file })
      local held = assert(engine:submit { Name = "a", policy = "p",
        policy_key = "a (once)", once = true, wait = false,
        run = function() end })
      held:RequestStateChange "Suspend"
      assert(engine:flush())
    end
    local code, out = command("run", name, "--store", file)
    assert.equal(1, code)
    assert.matches("a: held by a client", out)
  end)

  it("says what keeps it from its store", function()
    local name = policy "quick = { run = function() end }"
    local engine <close> = assert(cairn.open { store = file })
    local code, out = command("run", name, "--store", file)
    assert.equal(3, code)
    assert.matches("in use by the engine of process "
      .. math.tointeger(uv.os_getpid()), out)
    assert.is_true(cairn.is_engine(engine))
    code, out = command("run", name, "--store", top .. "/missing/cairn.db")
    assert.equal(2, code)
    assert.matches("missing", out)
    code, out = command("run", name, "--store", name)
    assert.equal(3, code)
    assert.matches("no SQLite database", out)
    code = command("run", name, "--store", "")
    assert.equal(2, code)
  end)
end)
