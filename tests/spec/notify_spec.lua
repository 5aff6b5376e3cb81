-- Notify: once for each end, whatever the handler does.

local cairn = require "cairn"
local support = _G.support

describe("Notify", function()
  local engine, notices, log

  local function open(handlers, more)
    notices, log = {}, {}
    handlers.f = handlers.f or function(notice)
      notices[#notices + 1] = notice
    end
    local options = more or {}
    options.notify = handlers
    options.clock = "virtual"
    options.log = function(line) log[#log + 1] = line end
    engine = assert(cairn.open(options))
  end

  local function settle()
    for _ = 1, 50 do
      while engine:step() do end
      if next(engine:jobs { phase = "running" }) == nil then break end
    end
    while engine:step(0.02) do end
  end

  after_each(function()
    if engine then engine:close { mode = "kill" } end
    engine = nil
  end)

  local function states()
    local out = {}
    for i, notice in ipairs(notices) do
      out[i] = ("%s:%d:%s"):format(notice.Name, notice.run_number,
        notice.JobState)
    end
    return table.concat(out, " ")
  end

  it("tells each run's end once", function()
    open {}
    assert(engine:submit { Name = "well", Notify = "f", run = function() end })
    settle()
    assert(engine:submit { Name = "ill", Notify = "f",
      run = function() error("x", 0) end })
    settle()
    assert(engine:submit { Name = "warned", Notify = "f",
      run = function(job) job:warn "w" end })
    settle()
    assert(engine:submit { Name = "nobody", run = function() end })
    settle()
    assert.equal("well:1:Completed ill:1:Exception "
      .. "warned:1:Completed With Warnings", states())
    assert.matches("^x", notices[2].ErrorSummaryDescription)
    assert.equal(36, notices[2].ErrorCode)
    assert.same({}, log)
  end)

  it("tells a run that is tried again after its last attempt", function()
    open {}
    local attempts = 0
    local job = assert(engine:submit { Name = "again", Notify = "f",
      RecoveryAction = "Re-run Job", run = function()
        attempts = attempts + 1
        error("x", 0)
      end })
    job:wait()
    settle()
    assert.equal(3, attempts)
    assert.equal("again:1:Exception", states())
  end)

  it("tells every run of a recurring job, and its own end", function()
    open {}
    local job = assert(engine:submit { Name = "daily", Notify = "f",
      JobRunTimes = 0, RunStartInterval = "1h", zone = "UTC",
      run = function() end })
    for _ = 1, 2 do
      engine:advance(86400)
      settle()
    end
    assert.equal("daily:1:Completed daily:2:Completed", states())
    job:RequestStateChange "Terminate"
    settle()
    assert.equal("daily:1:Completed daily:2:Completed daily:2:Terminated",
      states())
  end)

  it("tells an end by a client once", function()
    open {}
    local running = assert(engine:submit { Name = "running", Notify = "f",
      run = function(job) job:sleep(1000) end })
    engine:step(0.01)
    running:RequestStateChange "Terminate"
    settle()
    local killed = assert(engine:submit { Name = "killed", Notify = "f",
      held = true, run = function() end })
    killed:KillJob(false)
    settle()
    assert.equal("running:1:Terminated killed:0:Killed", states())
  end)

  it("does not let a handler change the job", function()
    local top, remove = support.directory()
    open { f = function() error "boom" end,
      program = { "sh", "-c", "echo said >&2; exit 3" },
      missing = { "/nonexistent/program" },
      takes = { "sh", "-c", 'cat >"$0"', top .. "/notice" },
      log = "log" }
    for _, name in ipairs { "f", "program", "missing", "takes", "log",
      "nobody has this" } do
      assert(engine:submit { Name = name, Notify = name,
        run = function() end })
      settle()
      for _ = 1, 50 do engine:step(0.01) end
    end
    for _, job in ipairs(engine:jobs()) do
      assert.equal("Completed", job.JobState)
      assert.equal(0, job.ErrorCode)
    end
    local all = table.concat(log, "\n")
    assert.matches("notify f: f %(Cairn:[^)]*%): .*boom", all)
    assert.matches("program %(.*%): sh ended with exit code 3: said", all)
    assert.matches("notify missing: .*/nonexistent/program", all)
    assert.matches("notify log: log .* is Completed", all)
    assert.matches("notify nobody has this: .* is Completed", all)
    local notice = cairn.json_decode(support.read(top .. "/notice"))
    assert.equal("takes", notice.Name)
    assert.equal("Completed", notice.JobState)
    remove()
    local job = engine:jobs { Name = "program" }[1]
    local text, data = engine:why(job)
    assert.matches("notice was not delivered: sh ended with exit code 3", text)
    assert.matches("exit code 3", data.notify_error)
  end)

  it("writes a letter that sendmail takes", function()
    local top, remove = support.directory()
    local notify = require "cairn.notify"
    local real = notify.sendmail
    support.write(top .. "/sendmail", '#!/bin/sh\necho "$@" >' .. top
      .. "/arguments\ncat >" .. top .. "/letter\n")
    support.run { "chmod", "+x", top .. "/sendmail" }
    notify.sendmail = { top .. "/sendmail" }
    open {}
    assert(engine:submit { Name = "a\nBcc: evil@example.org",
      Notify = "mailto:ops@example.org", run = function() end })
    settle()
    for _ = 1, 50 do engine:step(0.01) end
    notify.sendmail = real
    assert.equal("-i -t\n", support.read(top .. "/arguments"))
    local letter = support.read(top .. "/letter")
    assert.matches("^To: ops@example.org\nSubject: a Bcc: evil@example.org: "
      .. "Completed\n", letter)
    assert.is_nil(letter:find("\nBcc:", 1, true))
    assert.same({}, log)
    remove()
  end)

  it("is about the run that has ended, not the one that has begun", function()
    open {}
    local runs = 0
    local job = assert(engine:submit { Name = "slow", Notify = "f",
      JobRunTimes = 3, RunStartInterval = "1h", zone = "UTC",
      catch_up = "all", run = function(j)
        runs = runs + 1
        if runs == 1 then
          j:sleep(3 * 86400)
          error("first", 0)
        end
      end })
    engine:advance(86400)
    engine:step()
    assert.equal("Completed", (job:wait()))
    settle()
    assert.equal("slow:1:Exception slow:2:Completed slow:3:Completed",
      states())
    assert.equal(36, notices[1].ErrorCode)
    assert.matches("^first", notices[1].ErrorSummaryDescription)
    assert.equal(0, notices[2].ErrorCode)
  end)

  it("is waited for when the engine is closed", function()
    local top, remove = support.directory()
    log = {}
    local real = assert(cairn.open { notify = { slow = { "sh", "-c",
      'sleep 0.3; cat >"$0"', top .. "/told" } },
      log = function(line) log[#log + 1] = line end })
    local job = assert(real:submit { Name = "j", Notify = "slow",
      run = function() end })
    job:wait()
    assert(real:close())
    assert.equal("j", cairn.json_decode(support.read(top .. "/told")).Name)
    assert.same({}, log)
    -- but not for ever
    real = assert(cairn.open { notify = { slow = function()
      cairn.sleep(1000)
    end }, log = function(line) log[#log + 1] = line end })
    job = assert(real:submit { Name = "k", Notify = "slow",
      run = function() end })
    job:wait()
    for _ = 1, 5 do real:step(0.01) end
    real:close { timeout = 0.2 }
    assert.matches("notify slow: k .*cut off", table.concat(log, "\n"))
    remove()
  end)

  it("is not given again in the next life", function()
    local top, remove = support.directory()
    cairn.kind("notify_spec.fails", function() error("x", 0) end)
    open({}, { store = top .. "/cairn.db" })
    assert(engine:submit { Name = "j", Notify = "f", JobRunTimes = 0,
      run = "notify_spec.fails", RunStartInterval = "1h", zone = "UTC",
      UntilTime = "20250102020000.000000+000" })
    engine:advance(86400)
    for _ = 1, 10 do
      settle()
      engine:flush()
    end
    assert.equal("j:1:Exception", states())
    local now = engine:now()
    assert(engine:close())
    engine = nil
    open({}, { store = top .. "/cairn.db", start = tostring(now) })
    engine:advance(86400)
    for _ = 1, 10 do
      settle()
      engine:flush()
    end
    assert.equal("Exception", engine:jobs()[1].JobState)
    assert.equal("", states())
    remove()
  end)

  it("refuses handlers that are none", function()
    for _, case in ipairs { { { f = 3 }, "notify%.f: a function" },
      { { f = "page" }, "'page'" }, { { f = {} }, "an empty table" },
      { { f = { "sh", 3 } }, "notify%.f%[2%] must be a string" },
      { { function() end }, "names expected" } } do
      assert.error_matches(function() cairn.open { notify = case[1] } end,
        case[2])
    end
  end)
end)

describe("engine:why", function()
  it("says why a job does not run", function()
    local engine <close> = assert(cairn.open { clock = "virtual",
      log = function() end, queues = { default = { concurrency = 1,
        MaxTimeOnQueue = 0 } } })
    local function why(job)
      return (engine:why(job))
    end
    local running = assert(engine:submit { Name = "running",
      run = function(job) job:sleep(90000) end })
    local queued = assert(engine:submit { Name = "queued",
      run = function() end })
    local daily = assert(engine:submit { Name = "daily", JobRunTimes = 0,
      RunStartInterval = "2h", zone = "UTC", queue = "default",
      run = function() end })
    local code = assert(engine:submit { Name = "code", run = "why.nobody" })
    engine:step(0.01)
    assert.matches("is running", why(running))
    assert.matches("1 of 1 places taken, 1 queued", why(queued))
    assert.matches("waits for its time at 20250101020000", why(daily))
    assert.matches('this program has no "why.nobody"', why(code))
    daily:RequestStateChange "Suspend"
    assert.matches("held by a client", why(daily))
    daily:resume()
    engine:advance(3 * 3600)
    engine:step()
    assert.matches("2 queued", why(daily))
    running:KillJob(false)
    local text, data
    for _ = 1, 10 do engine:step() end
    text, data = engine:why(daily)
    assert.matches("began 3600 s after it was due", text)
    assert.equal(1, data.late.run_number)
  end)
end)
