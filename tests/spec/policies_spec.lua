-- The ready policies: each is loaded as it is shipped, beside images of its own,
-- passes its own tests, and runs through months of a virtual clock in which
-- things go wrong on known days. qemu-img and cmp judge what is left.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local DAY = 86400
local SIZE = 256 * 1024
local names = { "nightly", "monthly_gfs", "synthetic", "throttle", "recovery",
  "verify" }
local source = assert(uv.fs_realpath "policies")

-- 2026-01-01 00:00 in Berlin.
local NEW_YEAR = os.time { year = 2026, month = 1, day = 1, hour = 12 }
NEW_YEAR = NEW_YEAR - NEW_YEAR % DAY - 3600

describe("a ready policy", function()
  local directory, remove, images, contents

  local function image(name, text)
    contents[name] = text
    support.write(images .. "/" .. name, text)
  end

  before_each(function()
    directory, remove = support.directory()
    images, contents = directory .. "/images", {}
    assert(uv.fs_mkdir(images, tonumber("755", 8)))
    assert(uv.fs_mkdir(directory .. "/mnt", tonumber("755", 8)))
    math.randomseed(11)
    for _, name in ipairs { "web1.raw", "data.raw" } do
      image(name, (name .. "."):rep(SIZE // #name):sub(1, SIZE))
    end
  end)
  after_each(function() remove() end)

  -- What a guest does in a day: one block of one disk is other data, or zero.
  local function change(day)
    local name = day % 3 == 0 and "data.raw" or "web1.raw"
    local block = day * 7 % (SIZE // 4096)
    local text = day % 5 == 0 and ("\0"):rep(4096)
      or ("day %06d "):format(day):rep(410):sub(1, 4096)
    local old = contents[name]
    image(name, old:sub(1, block * 4096) .. text
      .. old:sub((block + 1) * 4096 + 1))
  end

  -- The shipped file, in a directory with images of its own.
  local function put(name)
    return support.write(("%s/%s.lua"):format(directory, name),
      support.read(("%s/%s.lua"):format(source, name)))
  end

  local function load(name, settings)
    local policy, message, _, trace = cairn.policy_load(put(name), settings)
    return assert(policy, tostring(message) .. "\n" .. tostring(trace))
  end

  -- The names that an isolated state has, for its own tests.
  local function own_tests(name, settings)
    local set = { file = put(name) }
    for key, value in pairs(settings or {}) do set[key] = value end
    local function plain(value) return value end
    local env = { require = function(module)
      assert(module == "cairn", module)
      return { policy = plain, collection = plain, interval = plain }
    end }
    for _, key in ipairs { "assert", "error", "ipairs", "pairs", "math", "next",
      "pcall", "select", "string", "table", "tonumber", "tostring", "type" } do
      env[key] = _G[key]
    end
    local policy = assert(_G.load(support.read(set.file), "@" .. set.file, "t",
      env))(set)
    local count = 0
    for title, test in pairs(policy.tests) do
      local ok, err = xpcall(test, debug.traceback, policy)
      assert(ok, ("%s: %s: %s"):format(name, title, tostring(err)))
      count = count + 1
    end
    return count
  end

  local function command(...)
    local code, _, out = support.run { support.build .. "/bin/cairn", ... }
    return code, out
  end

  local function points(path)
    return assert(cairn.points(path or directory .. "/mnt/out"))
  end

  local function is_full(id)
    return not support.read(("%s/mnt/out/%s/manifest.json"):format(directory,
      id)):find '"BaseReferencePointGroupId" *: *"'
  end

  -- point id -> how many points its chain has
  local function depths(list)
    local depth = {}
    for _, point in ipairs(list) do
      local base = point.BaseReferencePointGroupId
      depth[point.ReferencePointGroupId] = 1 + (base
        and assert(depth[base], "an orphan") or 0)
    end
    return depth
  end

  -- Lets a virtual clock go on to a time.
  local function run_until(engine, unix)
    local seconds = unix - engine:now().microseconds / 1e6
    local job = assert(engine:submit { Name = "until", volatile = true,
      DeleteOnCompletion = true, run = function(job) job:sleep(seconds) end })
    assert.equal("Completed", job:wait())
  end

  -- An engine whose jobs are a policy's, all of them.
  local function start(policy, options)
    local engine, log = support.engine(cairn, options)
    local jobs = {}
    for key, spec in pairs(policy.jobs) do
      jobs[key] = assert(engine:submit(spec))
    end
    return engine, jobs, log
  end

  -- Every disk of a point, restored and exported, is what was there that day.
  local function expect_content(point, kept)
    local id = point.ReferencePointGroupId
    local to = directory .. "/back-" .. id
    local code, out = command("restore", directory .. "/mnt/out/" .. id, "--to",
      to)
    assert.equal(0, code, out)
    local _, _, files = support.run { "find", to, "-name", "*.raw" }
    local count = 0
    for file in files:gmatch "[^\n]+" do
      local disk = file:match "vda" and "web1.raw" or "data.raw"
      assert.is_true(support.read(file) == kept[disk], file)
      count = count + 1
    end
    assert.equal(2, count, files)
    for disk, name in pairs { vda = "web1.raw", vdb = "data.raw" } do
      local was = support.write(directory .. "/was.raw", kept[name])
      local _, _, found = support.run { "find", directory .. "/mnt/out/" .. id,
        "-name", ("*%s*.qcow2"):format(disk) }
      local path = assert(found:match "[^\n]+", "no exported disk " .. disk)
      code, _, out = support.run { "qemu-img", "compare", "-f", "qcow2", "-F",
        "raw", path, was }
      assert.equal(0, code, out)
    end
    support.run { "rm", "-rf", to }
  end

  local function records_of(engine, job)
    return assert(engine:history(job))
  end

  it("loads as it is, and passes its own tests", function()
    for _, name in ipairs(names) do
      local policy = load(name)
      assert.equal(name, policy.name)
      assert.is_true(own_tests(name) >= 3, name)
      if policy.decisions and policy.decisions.tests then
        for _, title in ipairs(policy.decisions:tests()) do
          local ok, message, _, trace = policy.decisions:test(title)
          assert(ok, ("%s: %s: %s %s"):format(name, title, tostring(message),
            tostring(trace)))
        end
      end
    end
    own_tests("nightly", { full_day = "Wednesday", time = "23:30",
      keep_days = "7" })
    own_tests("verify", { others = "4" })
    own_tests("synthetic", { levels = "31", keep_days = "90" })
    own_tests("throttle", { work_rate = "0", holidays = "2026-03-06" })
    own_tests("recovery", { full_after = "1" })
  end)

  it("runs once by the command, and says what it would do", function()
    for _, name in ipairs(names) do
      local file = put(name)
      for _, argument in ipairs { "--dry-run", "--json" } do
        local code, out = command("run", file, "--set", "directory=mnt/out",
          argument)
        assert.equal(0, code, out)
      end
    end
    assert.equal(6, #points())
    depths(points())
  end)

  it("refuses settings that make no sense", function()
    for _, case in ipairs {
      { "nightly", "keep_days", "x", "nightly.lua:%d+: setting keep_days is 'x'" },
      { "nightly", "keep_days", "1.5", "a whole number from 0 to 36500" },
      { "nightly", "full_day", "Sonntag", "a weekday such as Sunday" },
      { "nightly", "time", "24:00", "HH:MM expected" },
      { "nightly", "skip", "vdz", "no machine has a disk 'vdz'" },
      { "nightly", "directry", "x", "no setting is called 'directry'; valid are "
        .. "directory, full_day, keep_days, skip, time, zone" },
      { "nightly", "zone", "Mars/Olympus", "zone" },
      { "monthly_gfs", "fathers", "-1", "a whole number" },
      { "monthly_gfs", "day_time", "soon", "RunStartInterval" },
      { "verify", "others", "many", "a whole number" },
      { "synthetic", "levels", "1", "a whole number from 2 to 31" },
      { "synthetic", "levels", "40", "a whole number from 2 to 31" },
      { "throttle", "holidays", "25.12.", "'25.12.' is no date" },
      { "throttle", "work_begin", "19", "work must begin before it ends" },
      { "recovery", "full_after", "0", "a whole number from 1" },
      { "recovery", "time", "1h", "HH:MM expected" },
    } do
      local policy, message = cairn.policy_load(put(case[1]),
        { [case[2]] = case[3] })
      assert.is_nil(policy, case[1] .. " " .. case[2])
      assert.matches(case[4], message)
    end
    local policy, message = cairn.policy_load(put "monthly_gfs",
      { sons = "0", fathers = "0", grandfathers = "0" })
    assert.is_nil(policy)
    assert.matches("at least one must keep something", message)
  end)

  it("has the calendar that its text says", function()
    local function expect(name, settings, from, expected)
      local policy = load(name, settings)
      for key, times in pairs(expected) do
        local spec, calendar = policy.jobs[key], {}
        for _, field in ipairs { "RunMonth", "RunDay", "RunDayOfWeek",
          "RunStartInterval", "JobRunTimes", "zone" } do
          calendar[field] = spec[field]
        end
        for i, run in ipairs(cairn.schedule(calendar):next(#times, from)) do
          assert.equal(times[i], run.local_time:sub(1, 12), key)
        end
      end
    end
    local berlin = { zone = "Europe/Berlin" }
    expect("nightly", berlin, NEW_YEAR, { nightly = { "202601010100",
      "202601020100" } })
    expect("monthly_gfs", berlin, NEW_YEAR, { monthly = { "202601302200",
      "202602272200", "202603272200", "202604242200", "202605292200",
      "202606262200", "202607312200" }, daily = { "202601010200" } })
    expect("verify", berlin, NEW_YEAR, { all = { "202601040800",
      "202602010800", "202603010800", "202604050800" },
      sample = { "202601010600" } })
    expect("synthetic", berlin, NEW_YEAR, { nightly = { "202601010100" },
      synthetic = { "202601010400" } })
    expect("throttle", berlin, NEW_YEAR, { nightly = { "202601012000" } })
    expect("recovery", berlin, NEW_YEAR, { nightly = { "202601010100" },
      room = { "202601010115" } })
    local code, out = command("preview", put "monthly_gfs", "-n", "2",
      "--zone", "Europe/Berlin", "--from", tostring(NEW_YEAR))
    assert.equal(0, code, out)
    assert.matches("monthly +Fri 2026%-01%-30 22:00:00 %+01:00", out)
  end)

  it("nightly: a year of increments and weekly fulls", function()
    local store = directory .. "/cairn.db"
    local keep = 14
    local settings = { directory = "mnt/out", zone = "Europe/Berlin",
      keep_days = tostring(keep) }
    local ended, kept = {}, {}
    -- local dates of runs during which something is away
    local bad = { ["2026-03-29"] = "disk", ["2026-07-01"] = "target",
      ["2026-09-06"] = "target", ["2026-09-07"] = "disk" }
    local away = {}
    local function date_of(unix) -- Berlin is an hour or two ahead
      return os.date("!%Y-%m-%d", unix + 7200)
    end
    local function move(from, to)
      assert(uv.fs_rename(directory .. "/" .. from, directory .. "/" .. to))
    end
    local function set_away(what)
      if away.disk then move("data.away", "images/data.raw") end
      if away.target then move("mnt.away", "mnt") end
      away = what and { [what] = true } or {}
      if away.disk then move("images/data.raw", "data.away") end
      if away.target then move("mnt", "mnt.away") end
    end
    local function life(from, to)
      local policy = load("nightly", settings)
      local engine, log = support.engine(cairn, { store = store, start = from })
      local job = engine:jobs { policy = "nightly" }[1]
      if job then
        assert(engine:update(job, policy.jobs.nightly))
      else
        job = assert(engine:submit(policy.jobs.nightly))
      end
      engine:on("RunEnded", function(event)
        if event.job.policy ~= "nightly" or event.is_retried
          and event.attempt < 3 then -- of a policy that could still decide
          return
        end
        local run = { time = event.time / 1e6, state = event.JobState,
          id = event.job.ReferencePointGroupId, run = event.run_number }
        run.date = date_of(run.time)
        ended[#ended + 1] = run
        assert.is_nil(ended[run.date], "two runs on " .. run.date)
        ended[run.date] = run
        if run.state == "Completed" then
          run.is_full = is_full(run.id)
          kept[run.id] = { ["web1.raw"] = contents["web1.raw"],
            ["data.raw"] = contents["data.raw"] }
          if ended[#ended - 60] then kept[ended[#ended - 60].id or ""] = nil end
        end
        set_away() -- before anything is written
        change(event.run_number)
        set_away(bad[date_of(run.time + DAY)])
      end)
      run_until(engine, to)
      local records = records_of(engine, job)
      assert(engine:close())
      return records, log
    end
    -- the machine is off from Saturday noon, 24 October, to Tuesday noon
    local off = NEW_YEAR + 296 * DAY + 12 * 3600
    life(NEW_YEAR, off)
    local records, log = life(off + 3 * DAY, NEW_YEAR + 365 * DAY)
    assert.same({}, log)

    -- no date without a run or a record that says why
    local skipped = {}
    for _, record in ipairs(records) do
      for n = 0, (record.skipped or 0) - 1 do
        assert.equal("missed", record.reason)
        skipped[date_of(cairn.datetime(record.due).seconds + n * DAY)] = true
      end
    end
    local fulls, runs = {}, 0
    for day = 0, 364 do
      local date = date_of(NEW_YEAR + day * DAY + 3600)
      local run = ended[date]
      assert(run or skipped[date], date .. " has neither a run nor a record")
      if run then
        runs = runs + 1
        assert.equal(bad[date] and "Exception" or "Completed", run.state, date)
        if run.is_full then
          fulls[#fulls + 1] = date
        end
      end
    end
    assert.equal(#ended, runs)
    assert.same({ ["2026-10-25"] = true, ["2026-10-26"] = true }, skipped)

    -- fulls: the first day, Sundays, and what made up for a Sunday
    local expected = { "2026-01-01" }
    for day = 3, 364, 7 do
      expected[#expected + 1] = date_of(NEW_YEAR + day * DAY + 3600)
    end
    for i, date in ipairs(expected) do
      expected[i] = ({ ["2026-03-29"] = "2026-03-30",
        ["2026-09-06"] = "2026-09-08", ["2026-10-25"] = "2026-10-27" })[date]
        or date
    end
    assert.same(expected, fulls)

    -- these days and the rest of their first week are left, whole
    local list = points()
    local depth = depths(list)
    for id in pairs(depth) do assert.is_true(depth[id] <= 7) end
    assert.equal("2026-12-31", ended[#ended].date)
    local oldest = date_of(NEW_YEAR + (364 - keep) * DAY + 3600)
    local first -- the last full until that date
    for _, date in ipairs(fulls) do first = date <= oldest and date or first end
    assert.equal(ended[first].id, list[1].ReferencePointGroupId)
    local count = 0
    for date, run in pairs(ended) do
      if type(date) == "string" and date >= first then count = count + 1 end
      if run.id and type(date) == "string" and date < first then
        assert.is_nil(depth[run.id])
      end
    end
    assert.equal(count, #list)
    local code, out = command("verify", directory .. "/mnt/out")
    assert.equal(0, code, out)
    for _, i in ipairs { 1, #list // 2, #list } do
      expect_content(list[i], kept[list[i].ReferencePointGroupId])
    end
  end)

  it("nightly: a change of the clock moves no run into another week", function()
    -- 2026-03-29 has 23 hours, 2026-10-25 has 25, both Sundays
    for _, first in ipairs { "20260326000000.000000+060",
      "20261022000000.000000+120" } do
      for _, time in ipairs { "23:30", "00:15", "02:30" } do
        local policy = load("nightly", { directory = "mnt/out", time = time,
          zone = "Europe/Berlin" })
        local engine <close>, jobs = start(policy,
          { start = cairn.datetime(first).seconds })
        local fulls = {}
        engine:on("RunEnded", function(event)
          if event.job.policy ~= "nightly" then return end
          if is_full(event.job.ReferencePointGroupId) then
            fulls[#fulls + 1] = event.run_number
          end
        end)
        run_until(engine, cairn.datetime(first).seconds + 6 * DAY)
        -- the first run is on Thursday: the directory is empty
        assert.is_true(jobs.nightly.run_number >= 5)
        assert.same({ 1, 4 }, fulls, time)
        support.run { "rm", "-rf", directory .. "/mnt/out" }
      end
    end
  end)
end)
