-- cairn.schedule and cairn preview: what they take, when jobs would run, and
-- what is refused.

local cairn = require "cairn"
local support = _G.support

local function has_database()
  local file = io.open "/usr/share/zoneinfo/Europe/Berlin"
  if file then file:close() end
  return file ~= nil
end

describe("a schedule", function()
  local function times(properties, n, after)
    local list = cairn.schedule(properties):next(n, after)
    for i, run in ipairs(list) do list[i] = run.local_time end
    return list
  end

  local function refused(code, pattern, properties)
    local ok, err = pcall(cairn.schedule, properties)
    assert.is_false(ok)
    assert.equal(code, err.code)
    assert.matches(pattern, err.message)
  end

  it("takes the labels of the class and their numbers", function()
    local expected = { "20250131220000.000000+000",
      "20250228220000.000000+000", "20250328220000.000000+000" }
    local after = "20250101000000.000000+000"
    for _, friday in ipairs { "-Friday", -6, -6.0 } do
      for _, start in ipairs { "00000000220000.000000:000", "22h", 79200,
        cairn.interval "22h" } do
        assert.same(expected, times({ RunDay = -1, RunDayOfWeek = friday,
          RunStartInterval = start, zone = "UTC" }, 3, after))
      end
    end
    assert.same({ "20250704000000.000000+000" },
      times({ RunMonth = "July", RunDayOfWeek = "Friday",
        LocalOrUtcTime = "UTC Time" }, 1, after))
  end)

  it("runs strictly after the given time, which may be any form of one",
    function()
      local daily = { RunStartInterval = "2h", zone = "UTC" }
      for _, after in ipairs { "20250310020000.000000+000", 1741572000,
        cairn.datetime(1741572000) } do
        assert.same({ "20250311020000.000000+000" }, times(daily, 1, after))
      end
      local run = cairn.schedule(daily):next()[1]
      assert.truthy(run.unix_us > os.time() * 1000000 - 1000000)
      assert.equal("integer", math.type(run.unix_us))
    end)

  it("tells what daylight saving does", function()
    if not has_database() then return pending "no zone database" end
    local berlin = { RunStartInterval = "2h30min", zone = "Europe/Berlin" }
    local list = cairn.schedule(berlin):next(2, "20250329120000.000000+060")
    assert.same({ unix_us = 1743296400000000, kind = "gap",
      local_time = "20250330030000.000000+120",
      nominal = "2025-03-30 02:30:00" }, list[1])
    assert.equal("normal", list[2].kind)
    list = cairn.schedule(berlin):next(2, "20251025120000.000000+120")
    assert.equal("overlap", list[1].kind)
    assert.equal("20251026023000.000000+120", list[1].local_time)
    assert.equal("20251027023000.000000+060", list[2].local_time)
    berlin.overlap = "both"
    list = cairn.schedule(berlin):next(2, "20251025120000.000000+120")
    assert.equal("20251026023000.000000+060", list[2].local_time)
    berlin.gap = "skip"
    list = cairn.schedule(berlin):next(1, "20250329120000.000000+060")
    assert.equal("20250331023000.000000+120", list[1].local_time)
    berlin.gap = "shift"
    list = cairn.schedule(berlin):next(1, "20250329120000.000000+060")
    assert.equal("20250330033000.000000+120", list[1].local_time)
    list = cairn.schedule { RunStartInterval = 0, zone = "Pacific/Apia" }
      :next(1, "20111229100000.000000-600")
    assert.same({ "2011-12-30 00:00:00", "2011-12-31 00:00:00" },
      list[1].nominals)
  end)

  it("ends with UntilTime and JobRunTimes", function()
    local daily = { RunStartInterval = 0, zone = "UTC",
      UntilTime = "20250103000000.000000+000" }
    assert.equal(2, #cairn.schedule(daily):next(9, "20250101000000.000000+000"))
    daily.UntilTime, daily.JobRunTimes = cairn.null, 3
    assert.equal(3, #cairn.schedule(daily):next(9))
    daily.UntilTime = "00000001000000.000000:000" -- a day from now on
    assert.equal(1, #cairn.schedule(daily):next(9))
    daily.UntilTime = "99991231235959.999999+000"
    assert.equal(3, #cairn.schedule(daily):next(9))
  end)

  it("warns of a weekday that leaves the month", function()
    local schedule = cairn.schedule { RunDay = -1, RunDayOfWeek = "Friday" }
    assert.matches("%-Friday is the last one", schedule.warning)
    assert.is_nil(cairn.schedule { RunDay = -1, RunDayOfWeek = "-Friday" }
      .warning)
  end)

  it("says the same of a job that is submitted", function()
    local log = {}
    local engine <close> = assert(cairn.open { clock = "virtual",
      log = function(message) log[#log + 1] = message end })
    local spec = { Name = "x", held = true, run = function() end,
      RunDay = -1, RunDayOfWeek = "-Friday", RunStartInterval = "1h" }
    assert(engine:submit(spec))
    assert.same({}, log)
    spec.RunDayOfWeek = "Friday"
    assert(engine:submit(spec))
    assert.equal(1, #log)
    assert.matches("RunDay %-1 with RunDayOfWeek Friday", log[1])
  end)

  it("knows its zone", function()
    assert.equal("UTC", cairn.schedule { RunDay = 1, zone = "UTC" }.zone)
    assert.equal("UTC", cairn.schedule { RunDay = 1,
      LocalOrUtcTime = 2 }.zone)
    assert.error_matches(function()
      return cairn.schedule { RunDay = 1 }.zones
    end, "did you mean 'zone'")
  end)

  it("refuses what is none", function()
    refused("unknown_key", "did you mean 'RunDay'", { RunDaz = 1 })
    refused("invalid_argument", "RunDay 30 with RunMonth February never comes",
      { RunMonth = "February", RunDay = 30 })
    refused("invalid_argument", "needs one of", {})
    refused("invalid_argument", "none of its labels", { RunMonth = "Mai" })
    refused("out_of_range", "RunDay is 32", { RunDay = 32 })
    refused("wrong_type", "RunDay: a number expected", { RunDay = {} })
    refused("wrong_type", "RunDay must be an integer", { RunDay = "1" })
    refused("invalid_argument", "zone: \"Mars/Base\" is no time zone",
      { RunDay = 1, zone = "Mars/Base" })
    refused("invalid_argument", "is no time zone",
      { RunDay = 1, zone = "../etc/passwd" })
    refused("invalid_argument", "zone: a name", { RunDay = 1, zone = "" })
    refused("wrong_type", "zone: a name", { RunDay = 1, zone = 3 })
    refused("invalid_argument", "gap: \"never\" is not valid",
      { RunDay = 1, gap = "never" })
    refused("invalid_argument", "overlap: ", { RunDay = 1, overlap = true })
    refused("invalid_argument", "RunStartInterval", { RunStartInterval = "x" })
    assert.has_error(function() cairn.schedule(1) end)
    local schedule = cairn.schedule { RunDay = 1 }
    assert.error_matches(function() schedule:next(0) end, "1 to 100000")
    assert.error_matches(function() schedule:next(1, "tomorrow") end,
      "datetime")
  end)
end)

describe("a job with a calendar", function()
  local function open()
    return assert(cairn.open { clock = "virtual",
      start = 1735689600 }) -- 2025-01-01T00:00:00Z
  end
  local daily = { Name = "d", RunStartInterval = "2h", LocalOrUtcTime = 2,
    JobRunTimes = 0 }
  local function job_of(more)
    local spec = { run = function() end }
    for k, v in pairs(daily) do spec[k] = v end
    for k, v in pairs(more or {}) do spec[k] = v end
    return spec
  end

  it("runs by it, says when, and why it waits", function()
    local engine <close> = open()
    local due = {}
    engine:on("JobState", function(event)
      if event.JobState == "Starting" then due[#due + 1] = event.due end
    end)
    local job = assert(engine:submit(job_of()))
    assert.equal("waiting", job.phase)
    assert.equal("20250101020000.000000+000", job.ScheduledStartTime)
    local text, data = engine:why(job.InstanceID)
    assert.truthy(text:find("waits for its time at 20250101020000", 1, true))
    assert.equal(0, data.run_number)
    for _ = 1, 3 do
      engine:advance(86400)
      engine:step()
    end
    assert.same({ 1735696800000000, 1735783200000000, 1735869600000000 }, due)
    assert.equal("Suspended", job.JobState)
    assert.equal(3, job.run_number)
  end)

  it("tells the times that have no run", function()
    local engine <close> = open()
    local skipped = {}
    engine:on("Skipped", function(event) skipped[#skipped + 1] = event end)
    local job = assert(engine:submit(job_of { catch_up = "none" }))
    engine:advance(3 * 86400)
    engine:step()
    assert.equal(0, job.run_number)
    assert.equal(1, #skipped)
    assert.equal("missed", skipped[1].reason)
    assert.equal(3, skipped[1].count)
    assert.equal(1735696800000000, skipped[1].due)
    assert.equal(1735869600000000, skipped[1].due_last)
    assert.equal(job, skipped[1].job)
    job:RequestStateChange "Suspend"
    engine:advance(86400)
    job:resume()
    engine:step()
    assert.equal("held", skipped[2].reason)
  end)

  it("is tried again by Re-run Job", function()
    local engine <close> = open()
    local tries = 0
    local job = assert(engine:submit { Name = "r", RecoveryAction = "Re-run Job",
      run = function()
        tries = tries + 1
        if tries < 3 then error("not yet") end
      end })
    engine:step()
    assert.equal("backoff", job.phase)
    local text = engine:why(job.InstanceID)
    assert.truthy(text:find("attempt 1 of 3 failed", 1, true), text)
    assert.equal("Completed", job:wait(1000))
    assert.equal(3, tries)
    assert.equal(3, job.attempts)
    assert.equal(1, job.run_number)
  end)

  it("runs its recovery job, which stands ready", function()
    local engine <close> = open()
    local done = 0
    local recovery = assert(engine:submit { Name = "r", held = true,
      JobRunTimes = 0, run = function() done = done + 1 end })
    assert.equal("held", recovery.phase)
    for i = 1, 2 do
      local job = assert(engine:submit { Name = "f",
        RecoveryAction = "Run Recovery Job", RecoveryJob = recovery.InstanceID,
        run = function() error("no") end })
      assert.equal("Exception", job:wait(10))
      engine:step()
      assert.equal(i, done)
      assert.equal("held", recovery.phase)
    end
  end)
end)

describe("engine:history", function()
  it("tells what has become of runs, also of jobs that are gone", function()
    local engine <close> = assert(cairn.open { clock = "virtual",
      start = 1735689600 })
    local fails = true
    local job = assert(engine:submit { Name = "h", JobRunTimes = 0,
      RunStartInterval = "2h", LocalOrUtcTime = 2,
      RecoveryAction = "Re-run Job", run = function(j)
        j:sleep(5)
        if fails then
          fails = false
          error("no luck")
        end
      end })
    local id = job.InstanceID
    assert.same({}, engine:history(id))
    local function pass(seconds)
      engine:advance(seconds)
      while engine:step() do end
    end
    pass(2 * 3600)
    for _ = 1, 30 do
      pass(5)
      if job.phase == "waiting" then break end
    end
    pass(3 * 86400)
    assert.equal("Running", job.JobState)
    job:RequestStateChange "Terminate"
    pass(5)
    assert(job:DeleteInstance())
    engine:step()
    local records = engine:history(id:sub(7, 18))
    assert.equal(4, #records)
    local first, second, third, fourth = table.unpack(records)
    assert.equal("20250101020000.000000+000", first.due)
    assert.equal("20250101020000.000000+000", first.StartTime)
    assert.equal("20250101020005.000000+000", first.time)
    assert.equal("00000000000005.000000:000", first.ElapsedTime)
    assert.equal("Exception", first.JobState)
    assert.truthy(first.ErrorDescription:find("no luck", 1, true))
    assert.same({ 1, 1, 1, 2 }, { first.run_number, first.attempt,
      second.run_number, second.attempt })
    assert.equal("Completed", second.JobState)
    assert.equal(0, second.ErrorCode)
    assert.equal(first.due, second.due)
    assert.same({ "missed", 2 }, { third.reason, third.skipped })
    assert.equal("20250102020000.000000+000", third.due)
    assert.equal("20250103020000.000000+000", third.due_last)
    assert.equal("20250104020000.000000+000", fourth.due)
    assert.equal("h", fourth.Name)
    assert.equal(id, fourth.InstanceID)
    assert.equal(4, #engine:history())
  end)

  it("comes in pages, or its end alone, as the whole has it", function()
    local path = os.tmpname()
    os.remove(path)
    finally(function()
      for _, suffix in ipairs { "", "-wal", "-shm", "-lock" } do
        os.remove(path .. suffix)
      end
    end)
    local function open()
      return assert(cairn.open { store = path, history_limit = 37 })
    end
    local engine = open()
    local ids = {}
    for i = 1, 60 do -- the first 23 are dropped, whoever's they are
      local job = assert(engine:submit { Name = "h" .. i, volatile = true,
        run = function() if i % 4 == 0 then error "no" end end })
      job:wait(10)
      ids[i] = job.InstanceID
    end
    local function numbers(records)
      local list = {}
      for i, record in ipairs(records) do
        list[i] = tonumber(record.Name:sub(2))
      end
      return list
    end
    for life = 1, 2 do
      local expected = {}
      for i = 24, 60 do expected[#expected + 1] = i end
      assert.same(expected, numbers(engine:history()))
      for _, max in ipairs { 1, 5, 36, 37, 38 } do
        local got, after = {}, nil
        repeat
          local page, following = engine:history(nil, { max = max,
            after = after })
          assert.is_true(#page == max or following == nil)
          table.move(numbers(page), 1, #page, #got + 1, got)
          after = following
        until not after
        assert.same(expected, got, max)
      end
      assert.same({ 58, 59, 60 }, numbers(engine:history(nil, { last = 3 })))
      assert.same(expected, numbers(engine:history(nil, { last = 38 })))
      local _, at = engine:history(nil, { max = 35 })
      assert.same({ 59, 60 }, numbers(engine:history(nil, { after = at,
        last = 5 })))
      assert.same({ 60 }, numbers(engine:history(nil, { after = at, last = 1 })))
      assert.same({ 40 }, numbers(engine:history(ids[40], { last = 9 })))
      assert.same({ 40 }, numbers(engine:history(ids[40], { max = 1 })))
      assert.is_nil((select(2, engine:history(ids[40], { max = 1 }))))
      -- where the first page ended has been dropped since
      assert.same({ 24 }, numbers(engine:history(nil, { after = 2, max = 1 })))
      assert.same({}, engine:history(nil, { after = 1 << 60 }))
      assert.same({}, engine:history(ids[1], { after = 1 }))
      if life == 2 then -- its job is gone, too
        assert.is_nil((engine:history(ids[1], { max = 1 })))
      end
      if life == 1 then
        assert(engine:close())
        engine = open()
      end
    end
    for _, wrong in ipairs { { max = 0 }, { last = 0 }, { after = -1 },
      { max = 1.5 }, { max = 1, last = 1 }, { many = 3 } } do
      assert.has_error(function() engine:history(nil, wrong) end)
    end
    assert(engine:close())
  end)

  it("finds the record of a run, however many came since", function()
    local E = require "cairn.engine"
    local engine <close> = assert(cairn.open { clock = "virtual" })
    local job = assert(engine:submit { Name = "h", RunStartInterval = "1h",
      JobRunTimes = 20, zone = "UTC", run = function() end })
    assert.equal("Completed", job:wait())
    for _, run in ipairs { 1, 12, 13, 20 } do
      assert.equal(run, E.record_of(engine, job.InstanceID, run).run_number)
      assert.equal(run, E.record_of(engine, job.InstanceID, run, 1).run_number)
      assert.is_nil(E.record_of(engine, job.InstanceID, run, 2))
    end
    assert.is_nil(E.record_of(engine, job.InstanceID, 21))
  end)

  it("has a limit, and says who is unknown", function()
    local engine <close> = assert(cairn.open { history_limit = 2 })
    local jobs = {}
    for i = 1, 3 do
      jobs[i] = assert(engine:submit { Name = "h" .. i, run = function() end })
      jobs[i]:wait(10)
    end
    local records = engine:history()
    assert.equal(2, #records)
    assert.equal("h2", records[1].Name)
    assert.same({}, engine:history(jobs[1]))
    local nothing, message, code = engine:history("00000000-0000")
    assert.is_nil(nothing)
    assert.equal("not_found", code)
    assert.truthy(message:find("no job", 1, true))
    assert.has_error(function() engine:history(3) end)
    assert.has_error(function() cairn.open { history_limit = 0 } end)
    assert.has_error(function() cairn.open { history_limit = 1.5 } end)
  end)
end)

describe("cairn preview", function()
  local directory, remove
  before_each(function() directory, remove = support.directory() end)
  after_each(function() remove() end)

  local function preview(jobs, ...)
    local policy = support.write(directory .. "/p.lua", [[
      local cairn = require "cairn"
      return cairn.policy { jobs = { ]] .. jobs .. " } }")
    local code, _, output = support.run { support.build .. "/bin/cairn",
      "preview", policy, ... }
    return code, output
  end

  it("lists the next runs of each job, and what the clock does", function()
    if not has_database() then return pending "no zone database" end
    local code, output = preview([[
      nightly = { RunStartInterval = "2h30min", zone = "Europe/Berlin",
        JobRunTimes = 0, run = function() end },
      once = { RunDay = 1, run = function() end },
      manual = { run = function() end } ]], "-n", "2", "--zone", "UTC",
      "--from", "20250329120000.000000+060")
    assert.equal(0, code)
    assert.truthy(output:find("nightly  Sun 2025-03-30 03:00:00 +02:00  "
      .. "Europe/Berlin  the clock is put forward over 2025-03-30 02:30:00\n"
      .. "nightly  Mon 2025-03-31 02:30:00 +02:00  Europe/Berlin\n"
      .. "once     Tue 2025-04-01 00:00:00 +00:00  UTC\n", 1, true), output)
    assert.truthy(output:find("manual: no calendar", 1, true))
  end)

  it("prints a JSON object a run", function()
    local code, output = preview([[ monthly = { RunDay = 1, JobRunTimes = 2,
      LocalOrUtcTime = "UTC Time", run = function() end } ]], "--json",
      "--from", "1741572000")
    assert.equal(0, code)
    local runs = {}
    for line in output:gmatch "[^\n]+" do
      runs[#runs + 1] = cairn.json_decode(line)
    end
    assert.equal(2, #runs)
    assert.same({ kind = "normal", local_time = "20250401000000.000000+000",
      nominal = "2025-04-01 00:00:00", policy_key = "monthly", zone = "UTC",
      unix_us = 1743465600000000 }, runs[1])
  end)

  it("refuses what is no schedule, and names the job", function()
    local code, output = preview [[ a = { RunMonth = "April", RunDay = 31,
      run = function() end } ]]
    assert.equal(2, code)
    assert.matches("p%.lua:%d+: cairn%.policy: jobs%.a: RunDay 31 with RunMonth April never comes",
      output)
    code, output = preview("a = { RunDay = 1, run = function() end }",
      "--from", "tomorrow")
    assert.equal(2, code)
    assert.matches("%-%-from tomorrow: wants a CIM datetime", output)
  end)
end)
