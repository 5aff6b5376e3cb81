-- cairn serve as a process, and the commands that ask it: what a user, a service
-- manager and a crash see of it.

local cairn_module = require "cairn"
local uv = require "luv"
local support = _G.support

local build = assert(uv.fs_realpath(support.build))
local command = build .. "/bin/cairn"
local octal = function(s) return tonumber(s, 8) end

local function until_true(condition, what)
  local late = false
  local timer, tick = assert(uv.new_timer()), assert(uv.new_timer())
  timer:start(20000, 0, function() late = true end)
  tick:start(5, 5, function() end)
  while not late and not condition() do uv.run "once" end
  timer:close()
  tick:close()
  assert(not late, "this did not come true: " .. (what or "a condition"))
end

describe("cairn serve", function()
  local top, remove, services, environment, sigpipe

  setup(function() -- clients whose service has ended
    sigpipe = assert(uv.new_signal())
    sigpipe:start("sigpipe", function() end)
    sigpipe:unref()
  end)

  teardown(function()
    sigpipe:close()
    uv.run "nowait"
  end)

  local function start(arguments, more)
    local service = { err = "" }
    local errors = assert(uv.new_pipe(false))
    local argv = { "serve" }
    for _, word in ipairs(arguments or {}) do argv[#argv + 1] = word end
    local env = table.move(environment, 1, #environment, 1, {})
    for _, pair in ipairs(more or {}) do env[#env + 1] = pair end
    local open = 2
    local process
    process, service.pid = uv.spawn(command, { args = argv, env = env,
      cwd = top, stdio = { nil, nil, errors } }, function(code, signal)
        service.code, service.signal = code, signal
        open = open - 1
        process:close()
      end)
    assert(process, service.pid)
    errors:read_start(function(_, data)
      if data then
        service.err = service.err .. data
      else
        open = open - 1
        errors:close()
      end
    end)
    function service.kill(name) uv.kill(service.pid, name) end
    function service.wait()
      until_true(function() return open == 0 end,
        "the end of the service: " .. service.err)
      return service.code, service.signal
    end
    function service.says(pattern)
      until_true(function()
        return service.err:find(pattern) or open == 0
      end, pattern .. " in " .. service.err)
      assert.truthy(service.err:find(pattern), service.err)
    end
    function service.is_up() service.says "info    cairn [%d.]+, process" end
    services[#services + 1] = service
    return service
  end

  -- A command to its end; while it runs the loop turns.
  local function cairn(...)
    local outcome = { out = "", err = "" }
    local out, err = assert(uv.new_pipe(false)), assert(uv.new_pipe(false))
    local open, process = 3, nil
    process = assert(uv.spawn(command, { args = { ... }, env = environment,
      cwd = top, stdio = { nil, out, err } }, function(code, signal)
        outcome.code, outcome.signal = code, signal
        open = open - 1
        process:close()
      end))
    for name, pipe in pairs { out = out, err = err } do
      pipe:read_start(function(_, data)
        if data then
          outcome[name] = outcome[name] .. data
        else
          open = open - 1
          pipe:close()
        end
      end)
    end
    until_true(function() return open == 0 end, "the end of a command")
    return outcome
  end

  local function succeeds(...)
    local outcome = cairn(...)
    assert.equal(0, outcome.code, table.concat({ ... }, " ") .. ": "
      .. outcome.err .. outcome.out)
    return outcome.out
  end

  local function fails(code, pattern, ...)
    local outcome = cairn(...)
    assert.equal(code, outcome.code, outcome.err .. outcome.out)
    assert.truthy(outcome.err:find(pattern), outcome.err)
    assert.is_nil(outcome.err:find "stack traceback", outcome.err)
    assert.is_nil(outcome.err:find "internal error", outcome.err)
  end

  local function jobs(...)
    local list = {}
    for line in succeeds("jobs", "--json", ...):gmatch "[^\n]+" do
      list[#list + 1] = assert(cairn_module.json_decode(line))
    end
    return list
  end

  local function policy(name, text)
    uv.fs_mkdir(top .. "/policies", octal "700")
    -- as an editor does it
    support.write(top .. "/policies/." .. name .. ".new", text)
    assert(os.rename(top .. "/policies/." .. name .. ".new",
      top .. "/policies/" .. name .. ".lua"))
  end

  -- Counts a job's runs in a file, and waits in it.
  local function counting(seconds)
    return ([[
      return cairn.policy { jobs = { slow = { Name = "slow job",
        run = function(job)
          local file = assert(io.open("%s/runs", "a"))
          file:write("began\n")
          file:close()
          job:sleep(%s)
        end } } }]]):format(top, seconds)
  end
  local head = 'local cairn = require "cairn"\n'

  before_each(function()
    top, remove = support.directory()
    services = {}
    environment = { "HOME=" .. top, "PATH=" .. os.getenv "PATH",
      "CAIRN_SOCKET=" .. top .. "/run/s", "CAIRN_STORE=" .. top .. "/cairn.db",
      "XDG_CONFIG_HOME=" .. top .. "/config", "TZ=UTC", "LC_ALL=C.UTF-8" }
    for _, name in ipairs { "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS" } do
      local value = os.getenv(name)
      if value then environment[#environment + 1] = name .. "=" .. value end
    end
  end)

  after_each(function()
    for _, service in ipairs(services) do
      if service.code == nil then
        service.kill "sigkill"
        service.wait()
      end
    end
    remove()
  end)

  -- ---- start and stop ----------------------------------------------------------------

  it("serves until SIGTERM, and leaves no socket", function()
    local service = start()
    service.is_up()
    assert.equal("", succeeds "jobs")
    assert.equal("socket", uv.fs_lstat(top .. "/run/s").type)
    service.kill "sigterm"
    assert.equal(0, service.wait())
    service.says "SIGTERM: stopping"
    service.says "info    stopped"
    assert.is_nil(uv.fs_lstat(top .. "/run/s"))
    fails(3, "nothing is there: is cairn serve running%?", "jobs")
  end)

  it("stops on SIGINT and on a client's shutdown as well", function()
    local service = start()
    service.is_up()
    service.kill "sigint"
    assert.equal(0, service.wait())
    service = start()
    service.is_up()
    local code, _, out = support.run { "bash", "-c",
      [[echo '{"id":1,"call":"shutdown"}' | socat -t5 - UNIX-CONNECT:]]
      .. top .. "/run/s" }
    assert.equal(0, code)
    assert.equal('{"id":1,"result":true}\n', out)
    assert.equal(0, service.wait())
  end)

  it("refuses a socket and a store that another service has", function()
    local service = start()
    service.is_up()
    local other = start { "--store", top .. "/other.db" }
    assert.equal(3, other.wait())
    other.says(("process %d serves this socket already"):format(service.pid))
    other = start { "--socket", top .. "/run/other" }
    assert.equal(3, other.wait())
    other.says(("process %d"):format(service.pid))
    assert.is_nil(uv.fs_lstat(top .. "/run/other"))
    assert.equal("", succeeds "jobs")
  end)

  it("refuses what is wrong before there is a service", function()
    fails(2, "there is no such directory", "serve", "--policies",
      top .. "/none")
    fails(2, "no directory", "serve", "--policies", command)
    fails(2, "%-%-admin%-group: there is no group", "serve", "--admin-group",
      "nobody knows")
    fails(2, "valid are plain, json", "serve", "--log", "xml")
    fails(2, "socket's directory", "serve", "--socket", top .. "/a/b/s")
    fails(2, "symbolic link", "serve", "--socket", (function()
      assert(uv.fs_mkdir(top .. "/d", octal "700"))
      assert(uv.fs_symlink(top .. "/x", top .. "/d/s"))
      return top .. "/d/s"
    end)())
    assert.is_nil(uv.fs_lstat(top .. "/x"))
    fails(3, "at most 107 bytes", "jobs", "--socket", top .. "/"
      .. ("x"):rep(120))
    fails(3, "nobody answers", "jobs", "--socket", command)
  end)

  it("takes the place of one that was killed", function()
    local service = start()
    service.is_up()
    service.kill "sigkill"
    service.wait()
    assert.equal("socket", uv.fs_lstat(top .. "/run/s").type)
    fails(3, "nobody answers: its server has ended", "jobs")
    service = start()
    service.is_up()
    assert.equal("", succeeds "jobs")
  end)

  -- ---- jobs --------------------------------------------------------------------------

  it("suspends what runs when it stops, and goes on with it", function()
    policy("slow", head .. counting(1.5))
    local service = start { "--policies", "policies" }
    service.is_up()
    service.says "slow job: Running"
    service.kill "sigterm"
    assert.equal(0, service.wait())
    assert.is_nil(service.err:find("slow job: Completed", 1, true))
    service = start { "--policies", "policies" }
    service.says "slow job: Completed"
    local list = jobs()
    assert.equal(1, #list)
    assert.equal("Completed", list[1].JobState)
    assert.equal(1, list[1].run_number)
    assert.equal("began\nbegan\n", support.read(top .. "/runs"))
  end)

  it("suspends an export, goes on with it, and the point is whole", function()
    local disk = assert(io.open(top .. "/disk.raw", "wb"))
    local noise = assert(io.open("/dev/urandom", "rb"))
    disk:write(noise:read(8 << 20))
    noise:close()
    disk:close()
    policy("web", head .. ([[
      return cairn.policy {
        throttle = function() return 4e6 end,
        jobs = { nightly = { Name = "nightly", export = {
          directory = "%s/backup", collection = {
            CollectionId = "6F1D2C3B-0000-4000-8000-000000000001",
            machines = { {
              VirtualMachineId = "6F1D2C3B-0000-4000-8000-000000000002",
              disks = { { id = "vda", path = "%s/disk.raw",
                format = "raw" } } } } } } } } }]]):format(top, top))
    local service = start { "--policies", "policies" }
    service.says "nightly: Running"
    until_true(function()
      local job = jobs()[1]
      return job.bytes_done and job.bytes_done > 0
    end, "some bytes")
    service.kill "sigterm"
    assert.equal(0, service.wait())
    assert.is_nil(service.err:find("nightly: Completed", 1, true))
    service = start { "--policies", "policies" }
    service.says "nightly: Completed"
    local job = jobs()[1]
    assert.equal(1, job.run_number)
    assert.truthy(succeeds("verify", top .. "/backup"))
    succeeds("restore", top .. "/backup/" .. job.ReferencePointGroupId, "--to",
      top .. "/back", "--format", "raw")
    local code = support.run { "bash", "-c", ("cmp $(find %s/back -name "
      .. "'vda*') %s/disk.raw"):format(top, top) }
    assert.equal(0, code)
  end)

  it("stops in time with clients that hang", function()
    local service = start()
    service.is_up()
    local pipes = {}
    for i = 1, 5 do
      local pipe = assert(uv.new_pipe(false))
      local is_connected
      pipe:connect(top .. "/run/s", function(err) is_connected = not err end)
      until_true(function() return is_connected end)
      pipe:write(i == 1 and "while true do end\n"
        or ('{"id":1,"call":"queues"}\n'):rep(20000))
      pipes[i] = pipe
    end
    service.says "eval: while true"
    local begun = uv.hrtime()
    service.kill "sigterm"
    assert.equal(0, service.wait())
    assert.is_true(uv.hrtime() - begun < 8e9)
    for _, pipe in ipairs(pipes) do pipe:close() end
    uv.run "nowait"
  end)

  it("takes what a body has started with it, and stops in time", function()
    policy("slow", head .. ([[
      return cairn.policy { jobs = { slow = { Name = "slow job",
        run = function(job)
          job:spawn { "sh", "-c", "echo $$ > %s/pid; exec sleep 60" }
        end } } }]]):format(top))
    local service = start { "--policies", "policies" }
    until_true(function()
      return uv.fs_stat(top .. "/pid") and support.read(top .. "/pid"):find "\n"
    end)
    local pid = math.tointeger(support.read(top .. "/pid"):match "%d+")
    assert.equal(0, uv.kill(pid, 0))
    local begun = uv.hrtime()
    service.kill "sigterm"
    assert.equal(0, service.wait())
    assert.is_true(uv.hrtime() - begun < 5e9)
    assert.is_nil((uv.kill(pid, 0)))
  end)

  it("ends at once at the second signal, and loses nothing by it", function()
    policy("slow", head .. counting(60))
    local service = start { "--policies", "policies" }
    service.says "slow job: Running"
    -- what holds it up: a task that cleans up for longer than anybody waits
    local code = support.run { "bash", "-c", [[echo 'cairn.spawn(function()
      while true do pcall(cairn.sleep, 60) end end) cairn.spawn(function()
      local t <close> = setmetatable({}, { __close = function()
      local stop = os.time() + 3 while os.time() < stop do end end })
      cairn.sleep(60) end)' | tr '\n' ' ' | cat - <(echo) |
      socat -t5 - UNIX-CONNECT:]] .. top .. "/run/s" }
    assert.equal(0, code)
    local held = start { "--store", top .. "/cairn.db", "--socket",
      top .. "/run/b" }
    assert.equal(3, held.wait()) -- it has the store until its very end
    service.kill "sigterm"
    service.says "stopping"
    service.kill "sigterm"
    service.wait()
    assert.equal(0, service.signal)
    service = start()
    service.is_up()
    local list = jobs()
    assert.equal(1, #list)
    assert.equal(1, list[1].run_number)
    assert.is_true(list[1].phase ~= "done", list[1].JobState)
  end)

  it("has queues and writes metrics, as it is told to", function()
    local service = start { "--queue", "default=1", "--queue", "slow=3",
      "--metrics", "cairn.prom" }
    service.is_up()
    local out = succeeds("console", "--socket", top .. "/run/s", "--json", "-e",
      "return engine:queues()")
    assert.matches('"Name":"slow"', out)
    assert.matches('"concurrency":3', out)
    assert.matches('{queue="slow"', support.read(top .. "/cairn.prom"))
    local metrics = succeeds "metrics"
    assert.matches('cairn_queue_concurrency{queue="slow"} 3', metrics)
    assert.matches("# EOF\n$", metrics)
    service.kill "sigterm"
    assert.equal(0, service.wait())
    fails(2, "wants NAME=N", "serve", "--queue", "default=none")
  end)

  it("loads policies that change, are new or wrong, and holds those that go",
    function()
      policy("web", head .. [[
        return cairn.policy { jobs = { nightly = { Name = "nightly",
          RunStartInterval = "2h", RunDay = 3,
          verify = { directory = "/srv/none" } } } }]])
      local service = start { "--policies", top .. "/policies" }
      service.is_up()
      assert.equal("nightly", jobs()[1].Name)
      assert.equal(3, jobs()[1].RunDay)
      policy("web", head .. [[
        return cairn.policy { jobs = { nightly = { Name = "nightly",
          RunStartInterval = "2h", RunDay = 4,
          verify = { directory = "/srv/none" } } } }]])
      until_true(function() return jobs()[1].RunDay == 4 end, "the new day")
      policy("web", head .. "return cairn.policy { jobs = { nigh = ")
      service.says "error +.*web.lua.*not loaded"
      assert.equal(4, jobs()[1].RunDay)
      fails(1, "web.lua", "reload")
      local report = cairn_module.json_decode((cairn("reload", "--json").out))
      assert.equal(0, report.loaded)
      assert.equal(1, #report.failed)
      policy("web", head .. [[
        return cairn.policy { jobs = { other = { Name = "other", held = true,
          verify = { directory = "/srv/none" } } } }]])
      until_true(function() return #jobs() == 2 end, "the other job")
      assert.equal("held", jobs("--name", "nightly")[1].phase)
      assert.equal("1 policy loaded\n", succeeds "reload")
      assert.matches("web +%x+ +1 .*web%.lua", succeeds "policies")
      local before = #service.err
      service.kill "sighup"
      until_true(function()
        return service.err:find("policy web: version .* loaded", before)
      end, "a load")
      -- and of no policies it says so
      service.kill "sigterm"
      assert.equal(0, service.wait())
      service = start()
      service.is_up()
      fails(1, "no directory of policies", "reload")
      assert.equal(2, #jobs()) -- they are the store's
    end)

  it("is asked by commands, each with its exit code", function()
    policy("web", head .. [[
      return cairn.policy { jobs = {
        asks = { Name = "asks", run = function(job)
          job:progress(50)
          print(job:ask { question = "Which\27[31m?", choices = { "a", "b" } })
        end },
        fails = { Name = "fails", run = function() error("no luck", 0) end },
        held = { Name = "h\195\164lt", held = true, RunStartInterval = "2h",
          verify = { directory = "/srv/none" } } } }]])
    local service = start { "--policies", "policies" }
    service.says "asks: asks: Which"
    service.says "fails: run 1, attempt 1: .*no luck"
    local list = jobs()
    assert.equal(3, #list)
    local id = {}
    for _, job in ipairs(list) do
      id[job.Name] = job.InstanceID:match "^Cairn:(%x%x%x%x%x%x%x%x)"
    end
    local out = succeeds "jobs"
    assert.truthy(out:find "^ID +NAME +STATE +PHASE", out)
    assert.truthy(out:find(id.asks .. "  asks +Query Pending +running +50"), out)
    assert.truthy(out:find("hält", 1, true), out)
    assert.is_nil(out:find("0000-00-00", 1, true))
    assert.equal(1, #jobs("--state", "query pending"))
    assert.equal(1, #jobs("--phase", "held"))
    assert.equal(2, #jobs("--name", "*s", "--policy", "web"))
    assert.equal(0, #jobs("--queue", "none"))
    fails(2, "did you mean 'Running'", "jobs", "--state", "runing")
    local raw = succeeds("jobs", "--name", "fails", "--json", "--numbers")
    assert.truthy(raw:find('"JobState":10,', 1, true), raw)
    assert.truthy(raw:find('"Caption":null,', 1, true), raw)

    out = succeeds("show", id.asks)
    assert.truthy(out:find "It asks: Which\\x1b%[31m%?\n  one of: a, b\n", out)
    assert.is_nil(out:find "\27")
    out = succeeds("show", id.fails)
    assert.truthy(out:find "JobState +Exception\n", out)
    assert.truthy(out:find "%[CAIRN%d+%] .*no luck", out)
    assert.truthy(succeeds("why", id.fails):find "no luck")
    assert.truthy(succeeds("history"):find "fails +1 .*no luck")
    assert.equal("", succeeds("history", id["hält"]))

    fails(2, "b", "answer", id.asks, "c")
    assert.truthy(succeeds("answer", id.asks, "b"):find "^asks %(")
    service.says "asks: Completed"
    fails(1, "no question is open", "answer", id.asks, "b")

    assert.truthy(succeeds("set", id["hält"], "RunStartInterval=3h", "Priority=7",
      "RunDayOfWeek=-friday"):find "held\n")
    local job = jobs("--phase", "held")[1]
    assert.equal("00000000030000.000000:000", job.RunStartInterval)
    assert.equal(7, job.Priority)
    assert.equal("-Friday", job.RunDayOfWeek)
    succeeds("set", id["hält"], "Priority=")
    assert.is_nil(jobs("--phase", "held")[1].Priority)
    fails(2, "the nearest one is \"Priority\"", "set", id["hält"], "Prio=1")
    fails(2, "a number expected", "set", id["hält"], "Priority=high")
    fails(2, "K=V expected", "set", id["hält"], "Priority")
    fails(2, "given twice", "set", id["hält"], "RunDay=1", "RunDay=2")
    fails(2, "K=V is missing", "set", id["hält"])
    succeeds("suspend", id["hält"])
    fails(1, "Suspend is refused", "suspend", id["hält"])
    assert.truthy(succeeds("resume", id["hält"]):find "waiting\n")
    assert.truthy(succeeds("suspend", id["hält"]):find "held\n")
    assert.truthy(succeeds("start", id["hält"]):find "^hält %(%x+%): ")
    service.says "hält: "
    until_true(function()
      return jobs("--name", "h*")[1].phase ~= "running"
    end)
    local ended = jobs("--name", "h*")[1]
    if ended.phase ~= "done" then succeeds("terminate", id["hält"]) end
    fails(1, "refused", "kill", id["hält"])
    assert.equal(("hält (%s): deleted\n"):format(id["hält"]),
      succeeds("delete", id["hält"]))
    fails(2, "there is no job", "show", id["hält"])
    fails(2, "4 or more", "show", "abc")
    -- every id begins with nothing, so this is the ambiguous one
    fails(2, "ID is missing", "show")
    service.says(("by %%S+ %%(uid %d, process %%d+%%)"):format(uv.getuid()))
  end)

  it("shows a job that waits as what it is, without a date of zeros", function()
    start {}.is_up()
    succeeds("console", "--socket", top .. "/run/s", "-e",
      "assert(engine:submit { Name = 'one', run = 'nobody', held = true, "
      .. "wait = false })")
    local out = succeeds("start", jobs()[1].InstanceID)
    assert.truthy(out:find "^one %(%x+%): %l+\n$", out)
    assert.is_nil(succeeds "jobs":find("0000-00-00", 1, true))
  end)

  it("says what a run warned of, in the log and as long as its history is kept",
    function()
      policy("web", head .. [[
        return cairn.policy { jobs = { warns = { held = true, JobRunTimes = 0,
          RunStartInterval = "2h", run = function(job)
            job:warn "one disk\27 was slow"
            job:ask { question = "Go on?" }
            job:warn "so was another"
          end } } }]])
      local service = start { "--policies", "policies" }
      service.is_up()
      succeeds("start", jobs()[1].InstanceID)
      service.says "warning warns: run 1: one disk" -- while it is on
      service.says "asks: Go on"
      assert.is_nil(service.err:find("so was", 1, true))
      succeeds("answer", jobs()[1].InstanceID, "yes")
      service.says "warning warns: run 1: so was another"
      assert.equal(1, select(2, service.err:gsub("one disk", "")))
      assert.truthy(service.err:find "policy web: version %x+")
      local version = service.err:match "policy web: version (%x+)"
      local function check()
        local record = assert(cairn_module.json_decode(succeeds("history",
          "--json")))
        assert.equal("one disk\27 was slow", record.warnings[1])
        assert.equal(2, #record.warnings)
        assert.equal(version, record.policy_version)
        assert.truthy(succeeds("history"):find("Completed With Warnings: one "
          .. "disk\\x1b was slow (and 1 more)", 1, true))
        local why = succeeds("why", jobs()[1].InstanceID)
        assert.truthy(why:find("Warnings of its last run: one disk\\x1b was "
          .. "slow; so was another", 1, true), why)
        assert.truthy(succeeds("show", jobs()[1].InstanceID):find(
          "%[CAIRN%d+%] one disk\\x1b was slow\n"))
      end
      check()
      service.kill "sigterm"
      assert.equal(0, service.wait())
      -- a new version of the file, another life: the record says what was
      policy("web", head .. [[
        return cairn.policy { jobs = { warns = { held = true, JobRunTimes = 0,
          RunStartInterval = "2h", run = print } } }]])
      start({ "--policies", "policies" }).is_up()
      check()
    end)

  it("logs a hundred warnings of a run, and that there are more", function()
    policy("web", head .. [[
      return cairn.policy { jobs = { warns = { run = function(job)
        for i = 1, 20000 do
          job:warn("w" .. i)
          if i % 100 == 0 then job:sleep(0) end
        end
      end } } }]])
    local service = start { "--policies", "policies" }
    service.says "warns: Completed With Warnings"
    service.kill "sigterm"
    assert.equal(0, service.wait())
    local _, count = service.err:gsub("run 1: w%d+\n", "")
    assert.equal(100, count)
    assert.equal(1, select(2, service.err:gsub(
      "run 1: further warnings are not logged", "")))
  end)

  it("gives a history whose records are long by pages", function()
    policy("web", head .. [[
      return cairn.policy { jobs = { warns = { held = true, JobRunTimes = 60,
        RunStartInterval = "2h", run = function(job)
          for _ = 1, 3 do job:warn(("\1"):rep(2047)) end
          error(("\2"):rep(2047), 0)
        end } } }]])
    local service = start { "--policies", "policies" }
    service.is_up()
    local script = support.write(top .. "/runs.lua", [[
      local job = engine:jobs {}[1]
      for i = 1, 60 do
        job:RequestStateChange "Start"
        while job.run_number < i or job.JobState == "Running" do
          cairn.sleep(0.001)
        end
      end]])
    succeeds("console", "--socket", top .. "/run/s", script)
    local count = 0
    for line in succeeds("history", "--json"):gmatch "[^\n]+" do
      local record = assert(cairn_module.json_decode(line))
      assert.equal(2, #record.warnings)
      assert.equal(1, record.lost_warnings)
      assert.equal(2047, #record.warnings[1])
      count = count + 1
    end
    assert.equal(60, count)
  end)

  it("refuses the beginning of several ids", function()
    local service = start()
    service.is_up()
    local script = ([[
      for i = 1, 300 do engine:submit { Name = "n", held = true, wait = false,
        verify = { directory = "/srv/none" } } end]]):gsub("\n", " ")
    local code = support.run { "bash", "-c", ("echo '%s' | socat -t5 - "
      .. "UNIX-CONNECT:%s/run/s"):format(script, top) }
    assert.equal(0, code)
    local list = jobs()
    assert.equal(300, #list)
    local seen, both = {}, nil
    for _, job in ipairs(list) do
      local start4 = job.InstanceID:sub(7, 10)
      if seen[start4] then both = start4 end
      seen[start4] = true
    end
    if both then fails(2, "beginning of more than one job", "show", both) end
    local out = succeeds "jobs"
    assert.equal(301, select(2, out:gsub("\n", "")))
  end)

  -- ---- the log and the manager -------------------------------------------------------

  it("logs one JSON object a line", function()
    policy("web", head .. [[
      return cairn.policy { jobs = { a = { Name = "a\nb",
        run = function() error "x\255" end } } }]])
    local service = start { "--log", "json", "--policies", "policies" }
    service.says '"level":"error"'
    service.kill "sigterm"
    assert.equal(0, service.wait())
    local levels, with_job = {}, 0
    for line in service.err:gmatch "[^\n]+" do
      local t = assert(cairn_module.json_decode(line), line)
      assert.truthy(t.time:find "^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$")
      assert.is_string(t.message)
      levels[t.level] = true
      if t.job then
        assert.truthy(t.job:find "^Cairn:")
        with_job = with_job + 1
      end
    end
    assert.is_true(levels.info and levels.error)
    assert.is_true(with_job >= 2)
  end)

  -- A datagram socket as the service manager has it; its messages in a file.
  local function manager(address)
    local script = [[
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
a = sys.argv[1]
s.bind("\0" + a[1:] if a[0] == "@" else a)
out = open(sys.argv[2], "ab", buffering=0)
print("ready", flush=True)
while True:
    out.write(s.recv(65536) + b"\n--\n")
]]
    local out = assert(uv.new_pipe(false))
    local is_ready, is_over, process = false, false, nil
    process = assert(uv.spawn("python3", { args = { "-c", script, address,
      top .. "/told" }, stdio = { nil, out, 2 } }, function()
      is_over = true
      process:close()
    end))
    out:read_start(function(_, data)
      if data then is_ready = true else out:close() end
    end)
    until_true(function() return is_ready end)
    return function()
      process:kill "sigkill"
      until_true(function() return is_over end)
    end
  end

  local function told() return support.read(top .. "/told") end

  it("tells the service manager when it is ready, reloading, stopping, alive",
    function()
      for _, address in ipairs { top .. "/notify", "@cairn-spec-"
        .. uv.os_getpid() } do
        os.remove(top .. "/told")
        local stop = manager(address)
        policy("web", head .. "return cairn.policy { jobs = {} }")
        local service = start({ "--policies", "policies" }, {
          "NOTIFY_SOCKET=" .. address, "WATCHDOG_USEC=200000" })
        until_true(function() return told():find "READY=1\n" end)
        assert.truthy(told():find("MAINPID=" .. service.pid, 1, true))
        assert.truthy(told():find "STATUS=0 jobs, 0 running")
        until_true(function()
          return select(2, told():gsub("WATCHDOG=1", "")) >= 3
        end, "three signs of life")
        service.kill "sighup"
        until_true(function()
          return told():find "RELOADING=1\nMONOTONIC_USEC=%d+\n%-%-\n.*READY=1"
        end)
        assert.is_nil(told():find "STOPPING=1")
        service.kill "sigterm"
        assert.equal(0, service.wait())
        assert.truthy(told():find "STOPPING=1")
        stop()
      end
    end)

  it("does not tell a manager that is none, nor programs that jobs start",
    function()
      policy("web", head .. ([[
        return cairn.policy { jobs = { a = { Name = "a", run = function(job)
          job:spawn { "sh", "-c", "env > %s/env" } end } } }]]):format(top))
      local service = start({ "--policies", "policies" }, {
        "NOTIFY_SOCKET=" .. top .. "/nobody" })
      service.says "a: Completed"
      service.says "cannot tell the service manager"
      local env = support.read(top .. "/env")
      assert.truthy(env:find "PATH=")
      assert.is_nil(env:find "NOTIFY_SOCKET")
      assert.equal(1, select(2, service.err:gsub("cannot tell the", "")))
    end)

  -- ---- the console of socat -----------------------------------------------------------

  it("is a Lua prompt for socat", function()
    local service = start()
    service.is_up()
    local code, _, out = support.run { "bash", "-c", ("printf '%s' | socat -t5 "
      .. "- UNIX-CONNECT:%s/run/s"):format("1 + 1\\nfor i = 1, 2 do\\n"
      .. "print(i) end\\n#engine:jobs()\\n", top) }
    assert.equal(0, code)
    assert.equal("2\n> >> 1\n2\n> 0\n> ", out)
    service.says "eval: 1 %+ 1 by "
  end)

  it("outlives policies that raise, and callbacks that do", function()
    policy("web", "error 'at load'")
    local service = start { "--policies", "policies" }
    service.says "at load"
    local code = support.run { "bash", "-c", ([[echo '
      local uv = require "luv" local t = uv.new_timer()
      t:start(1, 0, function() error "in a timer" end)' | tr '\n' ' ' |
      cat - <(echo) | socat -t5 - UNIX-CONNECT:%s/run/s]]):format(top) }
    assert.equal(0, code)
    service.says "uncaught error in a callback: .*in a timer"
    assert.equal("", succeeds "jobs")
  end)
end)
