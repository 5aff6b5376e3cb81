-- The ready policies: each is loaded as it is shipped, beside images of its own,
-- passes its own tests, and runs through a year of a virtual clock in which
-- things go wrong on known days. qemu-img and cmp judge what is left.

local cairn = require "cairn"
local simulate = require "cairn.simulate"
local uv = require "luv"
local support = _G.support

local DAY = 86400
local SIZE = 256 * 1024
local names = { "nightly", "monthly_gfs", "synthetic", "throttle", "recovery",
  "notify", "verify" }
local source = assert(uv.fs_realpath "policies")

-- Months of exports are mostly fsync, which is not what this is about.
local place = os.getenv "TMPDIR" or uv.fs_access("/dev/shm", "W") and "/dev/shm"
  or "/tmp"

-- 2026-01-01 00:00 in Berlin.
local NEW_YEAR = cairn.datetime("20260101000000.000000+060").seconds

describe("a ready policy", function()
  local directory, images, contents

  local function image(name, text)
    contents[name] = text
    support.write(images .. "/" .. name, text)
  end

  before_each(function()
    directory = assert(uv.fs_mkdtemp(place .. "/cairn-spec-XXXXXX"))
    images, contents = directory .. "/images", {}
    assert(uv.fs_mkdir(images, tonumber("755", 8)))
    assert(uv.fs_mkdir(directory .. "/mnt", tonumber("755", 8)))
    math.randomseed(11)
    for _, name in ipairs { "web1.raw", "data.raw" } do
      image(name, (name .. "."):rep(SIZE // #name):sub(1, SIZE))
    end
  end)
  after_each(function() support.run { "rm", "-rf", directory } end)

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
      return { policy = plain, collection = plain, interval = plain,
        settings = cairn.settings }
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

  -- Takes the lock of an export directory, as another process; a function that
  -- gives it back.
  local function hold(path)
    local stdin, stdout = assert(uv.new_pipe(false)), assert(uv.new_pipe(false))
    local is_held, is_over
    local process = assert(uv.spawn("python3", { stdio = { stdin, stdout },
      args = { "-c", [[
import fcntl, struct, sys
lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
file = open(sys.argv[1], "r+")
fcntl.fcntl(file, 37, lock)  # F_OFD_SETLK
print("held", flush=True)
sys.stdin.read()]], path } }, function() is_over = true end))
    stdout:read_start(function(_, data) is_held = is_held or data ~= nil end)
    while not is_held and not is_over do uv.run "once" end
    assert(is_held, "the lock was not to be had")
    return function()
      stdin:close()
      while not is_over do uv.run "once" end
      stdout:close()
      process:close()
    end
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
    own_tests("recovery", { full_after = "1", chain = "3" })
  end)

  it("runs once by the command, and says what it would do", function()
    for _, name in ipairs(names) do
      local file = put(name)
      local place_of = name == "monthly_gfs" and "mnt/gfs" or "mnt/out"
      for _, argument in ipairs { "--dry-run", "--json" } do
        local code, out = command("run", file, "--set", "directory=" .. place_of,
          argument)
        assert.equal(0, code, out)
      end
    end
    assert.equal(5, #points())
    depths(points())
    -- of two exports of a day it keeps one, if its prune comes to run
    local count = #points(directory .. "/mnt/gfs")
    assert.is_true(count == 1 or count == 2, count)
  end)

  it("refuses settings that make no sense", function()
    for _, case in ipairs {
      { "nightly", "keep_days", "x", "nightly.lua:%d+: setting keep_days is 'x'" },
      { "nightly", "keep_days", "1.5", "a whole number from 0 to 36500" },
      { "nightly", "full_day", "Sonntag", "a weekday such as Sunday" },
      { "nightly", "time", "24:00", "HH:MM expected" },
      { "nightly", "skip", "vdz", "no machine has a disk 'vdz'" },
      { "nightly", "directry", "x", "nightly.lua:%d+: no setting is called "
        .. "'directry'; did you mean 'directory'%? %(valid: directory, "
        .. "full_day, keep_days, skip, time, zone%)" },
      { "nightly", "zone", "Mars/Olympus", "zone" },
      { "monthly_gfs", "fathers", "-1", "a whole number" },
      { "monthly_gfs", "day_time", "soon", "RunStartInterval" },
      { "verify", "others", "many", "a whole number" },
      { "synthetic", "levels", "1", "a whole number from 2 to 31" },
      { "synthetic", "levels", "40", "a whole number from 2 to 31" },
      { "throttle", "holidays", "25.12.", "'25.12.' is no date" },
      { "throttle", "work_begin", "19", "work begins before it ends" },
      { "notify", "pager", "page --json", "by its absolute path" },
      { "notify", "mail", "a@b, c@d", "one address expected" },
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
    expect("notify", berlin, NEW_YEAR, { nightly = { "202601010100" } })
    expect("recovery", berlin, NEW_YEAR, { nightly = { "202601010100" },
      room = { "202601010045" } })
    local code, out = command("preview", put "monthly_gfs", "-n", "2",
      "--zone", "Europe/Berlin", "--from", tostring(NEW_YEAR))
    assert.equal(0, code, out)
    assert.matches("monthly +Fri 2026%-01%-30 22:00:00 %+01:00", out)
    code, out = command("preview", put "nightly", "-n", "1", "--set",
      "zone=Asia/Tokyo", "--set", "time=23:30", "--from", tostring(NEW_YEAR))
    assert.equal(0, code, out)
    assert.matches("nightly +Thu 2026%-01%-01 23:30:00 %+09:00 +Asia/Tokyo", out)
    code, out = command("preview", put "nightly", "--set", "tine=23:30")
    assert.equal(2, code, out)
    assert.matches("no setting is called 'tine'", out)
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

  it("monthly_gfs: keeps what prune keeps by the same rules", function()
    local policy = load("monthly_gfs", { directory = "mnt/out",
      zone = "Europe/Berlin" })
    local out, daily = directory .. "/mnt/out", policy.jobs.daily
    local first = NEW_YEAR - 300 * DAY + 2 * 3600 -- 02:00 or 03:00 in Berlin
    local kept, last = {}, nil
    do -- 14 months, a point every three days, nothing pruned
      local engine <close> = support.engine(cairn, { start = first })
      for day = 0, 420, 3 do
        change(day)
        local job = assert(engine:submit { Name = "point " .. day,
          export = { collection = daily.export.collection, directory = out,
            base = day % 30 == 0 and "none" or "latest" } })
        assert.equal("Completed", job:wait())
        kept[job.ReferencePointGroupId] = { ["web1.raw"] = contents["web1.raw"],
          ["data.raw"] = contents["data.raw"] }
        last = engine:now().seconds
        assert(engine:advance(3 * DAY))
      end
    end
    local function ids(path)
      local list = {}
      for i, point in ipairs(points(path)) do
        list[i] = point.ReferencePointGroupId
      end
      return list
    end
    -- What the policy's retain leaves in a directory, and what the command does.
    local function expect_same(path, sons, fathers, grandfathers)
      local copy = directory .. "/copy"
      assert.equal(0, (support.run { "cp", "-a", path, copy }))
      local code, output = command("prune", copy, "--keep",
        ("daily=%d,weekly=%d,monthly=%d"):format(sons, fathers, grandfathers))
      assert.equal(0, code, output)
      local rules = load("monthly_gfs", { directory = "mnt/out",
        zone = "Europe/Berlin", sons = tostring(sons),
        fathers = tostring(fathers), grandfathers = tostring(grandfathers) })
      local engine <close>, log = support.engine(cairn, { start = last })
      local job = assert(engine:submit { Name = "tidy", zone = daily.zone,
        policy = rules.name, policy_key = "tidy",
        decisions = rules.jobs.daily.decisions,
        prune = { directory = path, keep = { last = 1000000 },
          collection = daily.export.collection } })
      assert.equal("Completed", job:wait())
      assert.same({}, log)
      assert.same(ids(copy), ids(path))
      support.run { "rm", "-rf", copy }
    end
    local other = directory .. "/other"
    assert.equal(0, (support.run { "cp", "-a", out, other }))
    expect_same(other, 2, 40, 0)
    support.run { "rm", "-rf", other }
    expect_same(out, 7, 5, 12)
    assert.is_true(#ids(out) >= 18 and #ids(out) <= 24, #ids(out))
    local list = points()
    for _, i in ipairs { 1, 8, #list } do
      expect_content(list[i], kept[list[i].ReferencePointGroupId])
    end

    -- and goes on: two months of its own jobs, a last Friday in each
    local engine <close>, jobs, log = start(policy, { start = last + 3600 })
    local fulls = {}
    engine:on("RunEnded", function(event)
      if event.job.policy ~= "monthly_gfs" then return end
      if event.job.policy_key == "monthly" then
        fulls[#fulls + 1] = os.date("!%Y-%m-%d", event.time // 1000000)
        assert.is_true(is_full(event.job.ReferencePointGroupId))
      end
      change(event.run_number)
    end)
    run_until(engine, last + 66 * DAY)
    assert.same({}, log)
    assert.same({ "2026-05-29", "2026-06-26" }, fulls)
    for _, job in pairs(jobs) do
      for _, record in ipairs(records_of(engine, job)) do
        assert.equal("Completed", record.JobState, record.ErrorDescription)
      end
    end
    local plan = assert(cairn.prune { directory = out, dry_run = true,
      keep = { daily = 7, weekly = 5, monthly = 12 } })
    assert.equal(0, #plan.removed)
    for _, reason in ipairs { "daily", "weekly", "monthly" } do
      local count = 0
      for _, point in ipairs(plan.kept) do
        for _, text in ipairs(point.reasons) do
          count = count + (text == reason and 1 or 0)
        end
      end
      assert.equal(({ daily = 7, weekly = 5, monthly = 12 })[reason], count)
    end
    assert.is_true((command("verify", out)) == 0)
  end)

  it("synthetic: merges when the chain is long, and waits for a lock", function()
    local policy = load("synthetic", { directory = "mnt/out", levels = "5",
      keep_days = "12", zone = "Europe/Berlin" })
    local engine <close>, jobs, log = start(policy, { start = NEW_YEAR })
    local kept, merged, longest = {}, {}, 0
    engine:on("RunEnded", function(event)
      local job = event.job
      if job.policy_key == "nightly" then
        assert.equal("Completed", event.JobState)
        kept[job.ReferencePointGroupId] = { ["web1.raw"] = contents["web1.raw"],
          ["data.raw"] = contents["data.raw"] }
        assert.equal(event.run_number == 1, is_full(job.ReferencePointGroupId))
        local list = points()
        longest = math.max(longest,
          depths(list)[list[#list].ReferencePointGroupId])
        change(event.run_number)
      elseif job.policy_key == "synthetic" then
        assert.equal("Completed", event.JobState)
        local list = points()
        if event.run_number > 1
          and not list[#list].BaseReferencePointGroupId then
          merged[#merged + 1] = event.run_number
        end
      end
    end)
    -- the fifth night, when the first merge is due, another has the directory
    run_until(engine, NEW_YEAR + 4 * DAY + 3 * 3600)
    local release = hold(directory .. "/mnt/out/.cairn.lock")
    run_until(engine, NEW_YEAR + 4 * DAY + 5 * 3600)
    assert.equal("Running", jobs.synthetic.JobState) -- for an hour now
    release()
    run_until(engine, NEW_YEAR + 33 * DAY)
    assert.same({}, log)
    assert.equal(5, longest)
    assert.equal(33, jobs.nightly.run_number)
    assert.same({ 5, 9, 13, 17, 21, 25, 29, 33 }, merged)
    local list = points()
    assert.is_true(#list >= 13 and #list <= 17, #list)
    assert.equal(0, (command("verify", directory .. "/mnt/out")))
    for i = 1, #list, 4 do
      expect_content(list[i], kept[list[i].ReferencePointGroupId])
    end
  end)

  it("verify: a flipped bit is found by the sample in turn, and told", function()
    local farm = load("nightly", { directory = "mnt/out" })
      .jobs.nightly.export.collection
    local out = directory .. "/mnt/out"
    for day = 1, 8 do
      change(day)
      local engine <close> = support.engine(cairn)
      local job = assert(engine:submit { Name = "point", export = {
        collection = farm, directory = out, base = "latest" } })
      assert.equal("Completed", job:wait())
    end
    local list = points()
    local policy = load("verify", { directory = "mnt/out", notify = "ops",
      zone = "Europe/Berlin" })
    local told = {}
    local engine <close>, _, log = start(policy, { start = NEW_YEAR - 3600,
      notify = { ops = function(notice) told[#told + 1] = notice end } })
    local days = {} -- of the sample: how it ended
    engine:on("RunEnded", function(event)
      if event.job.policy_key == "sample" then
        days[event.run_number] = event.JobState
      end
    end)
    run_until(engine, NEW_YEAR + 3 * DAY)
    assert.same({ "Completed", "Completed", "Completed" }, days)
    assert.same({}, told)

    -- one bit of a disk of the third point
    local _, _, found = support.run { "find", out .. "/"
      .. list[3].ReferencePointGroupId, "-name", "*.qcow2" }
    local path = found:match "[^\n]+"
    local good = support.read(path)
    local at = #good - 100
    support.write(path, good:sub(1, at) .. string.char(good:byte(at + 1) ~ 1)
      .. good:sub(at + 2))
    run_until(engine, NEW_YEAR + 7 * DAY)
    local failures = 0
    for day = 4, 7 do
      failures = failures + (days[day] == "Exception" and 1 or 0)
    end
    -- in four days all seven older points have their turn, and one has two
    assert.is_true(failures == 1 or failures == 2, failures)
    local by_name = {}
    for _, notice in ipairs(told) do
      assert.equal("Exception", notice.JobState)
      assert.is_true(notice.ErrorCode > 0)
      by_name[notice.Name] = (by_name[notice.Name] or 0) + 1
      assert.matches(list[3].ReferencePointGroupId,
        notice.ErrorSummaryDescription, 1, true)
    end
    assert.equal(failures, by_name["verify a sample"])
    assert.equal(1, by_name["verify everything"]) -- Sunday, 4 January

    support.write(path, good)
    run_until(engine, NEW_YEAR + 12 * DAY)
    for day = 8, 12 do assert.equal("Completed", days[day]) end
    assert.equal(failures + 1, #told)
    for _, line in ipairs(log) do assert.matches("is Completed", line) end
  end)

  it("recovery: waits as long as it takes, then makes a full", function()
    local policy = load("recovery", { directory = "mnt/out", notify = "ops",
      free_percent = "0", zone = "Europe/Berlin" })
    local told, kept = {}, {}
    local engine <close>, jobs, log = start(policy, { start = NEW_YEAR,
      notify = { ops = function(notice)
        if notice.Name:find "nightly" then told[#told + 1] = notice end
      end } })
    local web, data = images .. "/web1.raw", images .. "/data.raw"
    local function move(from, to) return function()
      assert(uv.fs_rename(from, to))
    end end
    local hide, show = move(data, data .. ".away"), move(data .. ".away", data)
    -- what breaks before a run, and what mends it after one of its attempts
    local faults = {
      [3] = { hide, show, 2 },  -- a disk that is back for the third attempt
      [6] = { hide, show, 4 },  -- one that is away all night
      [9] = { function()        -- one that cannot be read
        hide()
        assert(uv.fs_symlink("/proc/self/mem", data))
      end, function()
        assert(uv.fs_unlink(data))
        show()
      end, 3 },
      [12] = { move(directory .. "/mnt", directory .. "/mnt.away"),
        move(directory .. "/mnt.away", directory .. "/mnt"), 4 },
      [15] = { function()       -- one that is something else
        move(web, web .. ".away")()
        support.write(web, "QFI\xfb" .. ("\0"):rep(SIZE - 4))
      end, move(web .. ".away", web), 1 },
    }
    local fulls = {}
    engine:on("RunEnded", function(event)
      if event.job.policy_key ~= "nightly" then return end
      local run = event.run_number
      local fault = faults[run]
      if fault and event.attempt == fault[3] then
        fault[2]()
        faults[run] = nil
      end
      if event.JobState ~= "Exception" then
        local id = event.job.ReferencePointGroupId
        if is_full(id) then fulls[#fulls + 1] = run end
        kept[id] = { ["web1.raw"] = contents["web1.raw"],
          ["data.raw"] = contents["data.raw"] }
        change(run)
      end
    end)
    for run = 1, 18 do
      run_until(engine, NEW_YEAR + (run - 1) * DAY + 600)
      if faults[run] then faults[run][1]() end
    end
    run_until(engine, NEW_YEAR + 18 * DAY)
    assert.same({}, log)
    local attempts = {} -- by run: the minute at which each began, and its error
    for _, record in ipairs(records_of(engine, jobs.nightly)) do
      local run, text = record.run_number, attempts[record.run_number] or ""
      local minute = (cairn.datetime(record.StartTime).seconds - NEW_YEAR
        - (run - 1) * DAY - 3600) // 60
      attempts[run] = ("%s%d:%d "):format(text, minute, record.ErrorCode)
    end
    local expected = {}
    for run = 1, 18 do expected[run] = "0:0 " end
    expected[3] = "0:20 10:20 40:0 "
    expected[6] = "0:20 10:20 40:20 100:20 "
    expected[9] = "0:18 1:18 6:18 36:0 "
    expected[12] = "0:26 10:26 40:26 100:26 "
    expected[15] = "0:24 "
    assert.same(expected, attempts)
    assert.same({ 1, 9, 16 }, fulls) -- 15 would have been, by its number
    -- one notice a run, after its last attempt
    assert.equal(18, #told)
    for run, notice in ipairs(told) do
      assert.equal(run, notice.run_number)
      assert.equal((run == 6 or run == 12 or run == 15) and "Exception"
        or "Completed", notice.JobState)
    end
    local list = points()
    assert.equal(15, #list)
    depths(list)
    assert.equal(0, (command("verify", directory .. "/mnt/out")))
    for i = 1, #list, 7 do
      expect_content(list[i], kept[list[i].ReferencePointGroupId])
    end
  end)

  it("recovery: makes room on a full disk, and goes on", function()
    if uv.getuid() ~= 0 then pending "needs root to mount a small file system" end
    local mount = directory .. "/mnt"
    local code, _, output = support.run { "mount", "-t", "tmpfs", "-o",
      "size=12m", "tmpfs", mount }
    if code ~= 0 then pending("mount: " .. output) end
    finally(function() support.run { "umount", mount } end)
    local policy = load("recovery", { directory = "mnt/out", keep_short = "2",
      chain = "3", free_percent = "25", zone = "Europe/Berlin" })
    local engine <close>, jobs = start(policy, { start = NEW_YEAR })
    local kept = {}
    engine:on("RunEnded", function(event)
      if event.job.policy_key == "nightly" and event.JobState == "Completed" then
        kept[event.job.ReferencePointGroupId] = {
          ["web1.raw"] = contents["web1.raw"], ["data.raw"] = contents["data.raw"] }
        change(event.run_number)
      end
    end)
    -- leaves so many bytes
    local function fill(name, bytes)
      local stat = assert(uv.fs_statfs(mount))
      return support.write(mount .. "/" .. name,
        ("x"):rep(stat.bavail * stat.bsize - bytes))
    end
    run_until(engine, NEW_YEAR + 5 * DAY) -- then somebody takes most of the rest
    assert.equal(5, #points())
    fill("filler", 65536)
    run_until(engine, NEW_YEAR + 6 * DAY)
    assert.equal(3, #points()) -- the second chain, and the new one
    local room = records_of(engine, jobs.room)
    for day = 1, 5 do assert.equal("Completed", room[day].JobState) end
    assert.equal("Completed With Warnings", room[6].JobState)
    local records = records_of(engine, jobs.nightly)
    for run = 1, 6 do assert.equal("Completed", records[run].JobState) end

    -- and all of it, just before the seventh night, until the second attempt
    run_until(engine, NEW_YEAR + 6 * DAY + 55 * 60)
    local rest = fill("rest", 0)
    run_until(engine, NEW_YEAR + 6 * DAY + 5000)
    assert.equal("backoff", jobs.nightly.phase)
    assert(uv.fs_unlink(rest))
    run_until(engine, NEW_YEAR + 7 * DAY)
    records = records_of(engine, jobs.nightly)
    assert.equal(8, #records)
    assert.equal(19, records[7].ErrorCode)
    assert.equal(2, records[8].attempt)
    assert.equal("Completed", records[8].JobState)
    assert.equal(1800, cairn.datetime(records[8].StartTime).seconds
      - cairn.datetime(records[7].time).seconds)
    local list = points()
    assert.equal(4, #list)
    assert.equal(0, (command("verify", mount .. "/out")))
    for _, point in ipairs(list) do
      expect_content(point, kept[point.ReferencePointGroupId])
    end
  end)

  -- What the engine made of a policy by real exports and prunes, in which every
  -- ninth night's disk is away, against what cairn simulate said of it before.
  local simulated = {
    nightly = { zone = "Europe/Berlin", keep_days = "10" },
    monthly_gfs = { zone = "Europe/Berlin", sons = "3", fathers = "2",
      grandfathers = "2" },
  }
  for name, settings in pairs(simulated) do
    it(name .. ": comes to what its simulation says", function()
      local days = 50
      local from = NEW_YEAR + 60 * DAY -- with a change of the clock
      settings.directory = "mnt/out"
      local function line(key, run, state, point)
        return ("%s %d %s %s"):format(key, run, state, point or "-")
      end
      local sim = assert(simulate.run({ (load(name, settings)) }, {
        from_us = from * 1000000, days = days, zone = settings.zone,
        assume = assert(simulate.assume { "*.seconds=0", "*.attempts=all",
          (name == "nightly" and "nightly" or "daily") .. ".fails=every:9",
          "*.error=source_missing" }) }))
      local said = { runs = {}, points = {} }
      for _, run in ipairs(sim.runs) do
        local key = run.entry.key
        if not run.is_retried and not key:find ": retain" then
          table.insert(said.runs, ("%d "):format(run.end_us // 1000000)
            .. line(key, run.run_number, run.state, run.point))
        end
      end
      for _, point in ipairs(sim.directories[directory .. "/mnt/out"].points) do
        table.insert(said.points, ("%d %s"):format(point.unix_us // 1000000,
          point.base and "increment" or "full"))
      end
      said.pruned = {}
      for i, prune in ipairs(sim.prunes) do
        said.pruned[i] = ("%d by %s: %d left"):format(prune.unix_us // 1000000,
          prune.entry.spec.Name, prune.kept)
      end

      local done, is_away = { runs = {}, points = {}, pruned = {} }, false
      local policy = load(name, settings)
      local engine, jobs, log = start(policy, { start = from })
      local key_of = {}
      for key, job in pairs(jobs) do key_of[job.InstanceID] = key end
      local function move(to_away)
        if to_away == is_away then return end
        is_away = to_away
        local disk, other = images .. "/data.raw", directory .. "/data.away"
        assert(uv.fs_rename(to_away and disk or other,
          to_away and other or disk))
      end
      engine:on("RunEnded", function(event)
        local key = key_of[event.InstanceID]
        if event.job.Name:find ": retain" then
          table.insert(done.pruned, ("%d by %s: %d left"):format(event.time
            // 1000000, event.job.Name, #points()))
        end
        if not key or event.is_retried and event.attempt < 3 then
          return -- three, as RecoveryAction has it
        end
        local id = event.JobState == "Completed"
          and event.job.ReferencePointGroupId
        table.insert(done.runs, ("%d "):format(event.time // 1000000)
          .. line(key, event.run_number, event.JobState, id
          and (is_full(id) and "full" or "increment")))
        move(false)
        change(#done.runs)
        local next_job, next_us = nil, math.huge
        for _, job in pairs(jobs) do -- a failed one has not been settled yet
          local us = job:number "ScheduledStartTime" or math.huge
          if us < next_us then next_job, next_us = job, us end
        end
        move(next_job ~= nil and (next_job.run_number + 1) % 9 == 0)
      end)
      run_until(engine, from + days * DAY - 1)
      assert(engine:close())
      for _, point in ipairs(points()) do
        table.insert(done.points, ("%d %s"):format(
          cairn.datetime(point.time).seconds, point.BaseReferencePointGroupId
          and "increment" or "full"))
      end
      assert.same({}, log)
      assert.is_true(#done.runs > days - 2)
      assert.is_true(#done.pruned > 3)
      assert.same(done, said)
    end)
  end

  it("throttle: an export takes as long as its rate says", function()
    image("web1.raw", ("not zero"):rep(1024 * 1024)) -- 8 MiB
    local function seconds(rate)
      local policy = load("throttle", { directory = "mnt/out", work_rate = rate,
        night_rate = rate, weekend_rate = rate })
      local spec = policy.jobs.nightly
      spec.once = true
      local engine <close> = assert(cairn.open {})
      local job = assert(engine:submit(spec))
      assert.equal("Completed", job:wait())
      return job:number "ElapsedTime" / 1e6
    end
    assert.is_true(seconds "0" < 1) -- no limit
    assert.is_true(seconds "4" >= 1)
  end)

  it("throttle: every hour of a year has the rate of its kind", function()
    local policy = load("throttle", { work_rate = "1", night_rate = "2",
      weekend_rate = "3", holidays = "2026-01-01,2026-12-25" })
    local count = { 0, 0, 0 }
    for hour = 0, 365 * 24 - 1 do
      local unix = os.time { year = 2026, month = 1, day = 1, hour = 0 }
        + hour * 3600
      local now = os.date("*t", unix)
      local ok, rate = policy.decisions:call("nightly", "throttle", {}, now)
      assert.is_true(ok)
      count[rate // 1000000] = count[rate // 1000000] + 1
      local name = os.date("%a", unix)
      if name == "Sat" or name == "Sun" then assert.equal(3000000, rate) end
    end
    -- 261 working days but two holidays
    assert.same({ 259 * 10, 259 * 14, 106 * 24 }, count)
  end)

  it("notify: runs the program of the policy, with the notice", function()
    local pages = directory .. "/pages"
    local pager = support.write(directory .. "/page", "#!/bin/sh\n"
      .. "printf '%s ' \"$@\" >>" .. pages .. "; cat >>" .. pages
      .. "; echo >>" .. pages .. "\n")
    assert(uv.fs_chmod(pager, tonumber("700", 8)))
    local policy = load("notify", { directory = "mnt/out", zone = "Europe/Berlin",
      pager = pager .. " --urgent -x", mail = "ops@example.org" })
    local engine <close>, jobs, log = start(policy, { start = NEW_YEAR })
    run_until(engine, NEW_YEAR + 2 * DAY) -- two good nights
    assert.is_nil(uv.fs_stat(pages))
    assert.equal(2, #log)
    for _, line in ipairs(log) do assert.matches("is Completed", line) end
    local data = images .. "/data.raw"
    assert(uv.fs_rename(data, data .. ".away"))
    run_until(engine, NEW_YEAR + 3 * DAY)
    assert(uv.fs_rename(data .. ".away", data))
    local text = support.read(pages)
    local notice = cairn.json_decode(assert(text:match "^%-%-urgent %-x ({.*})%s*$",
      text))
    assert.equal("web-farm nightly", notice.Name)
    assert.equal("Exception", notice.JobState)
    assert.equal(20, notice.ErrorCode)
    assert.equal(3, notice.run_number)
    assert.equal("pager", notice.Notify)
    assert.matches("cannot open", notice.ErrorSummaryDescription)

    -- one that is not there is told of, and the job goes on
    assert(uv.fs_unlink(pager))
    assert(uv.fs_rename(data, data .. ".away"))
    run_until(engine, NEW_YEAR + 4 * DAY)
    assert(uv.fs_rename(data .. ".away", data))
    run_until(engine, NEW_YEAR + 4 * DAY + 60)
    assert.matches("page", log[#log])
    assert.matches("not delivered", (engine:why(jobs.nightly)))
    run_until(engine, NEW_YEAR + 5 * DAY)
    assert.equal(5, jobs.nightly.run_number)
    assert.equal("waiting", jobs.nightly.phase)
  end)

  it("notify: by the command, too", function()
    local code, out = command("run", put "notify", "--set",
      "directory=mnt/none/out", "--set", "pager=/usr/bin/tee " .. directory
      .. "/page.json")
    assert.equal(1, code, out)
    assert.equal(26, cairn.json_decode(support.read(directory .. "/page.json"))
      .ErrorCode)
  end)

  -- ---- years ------------------------------------------------------------------

  -- What is away, from one local midnight to another; "off" is the engine itself.
  -- The clock of Berlin changes within two of them, and 27 November is a last
  -- Friday.
  local windows = {
    { "20260210", "20260211", "disk" }, { "20260328", "20260330", "target" },
    { "20260531", "20260601", "disk" }, { "20260715", "20260717", "off" },
    { "20260905", "20260908", "target" }, { "20261025", "20261026", "disk" },
    { "20261127", "20261128", "target" },
  }

  local function berlin(date) -- its midnight
    local summer = date > "20260329" and date <= "20261025"
    return cairn.datetime(date .. "000000.000000+"
      .. (summer and "120" or "060")).seconds
  end
  for _, window in ipairs(windows) do
    window.from, window.to = berlin(window[1]), berlin(window[2])
  end

  local function window_of(unix)
    for _, window in ipairs(windows) do
      if unix >= window.from and unix < window.to then return window[3] end
    end
  end

  local function move(from, to)
    assert(uv.fs_rename(directory .. "/" .. from, directory .. "/" .. to))
  end

  local moves = { disk = { "images/data.raw", "data.away" },
    target = { "mnt", "mnt.away" } }

  -- Every due time of a job in the year has one run, or is within one record of
  -- skipped ones. Returns the runs: number, due, and state after the last
  -- attempt.
  local function runs_of(records, spec)
    local calendar = {}
    for _, field in ipairs { "RunMonth", "RunDay", "RunDayOfWeek",
      "RunStartInterval", "JobRunTimes", "zone" } do
      calendar[field] = spec[field]
    end
    local is_due, count = {}, 0
    for _, run in ipairs(cairn.schedule(calendar):next(400, NEW_YEAR - 1)) do
      local due = run.unix_us // 1000000
      if due < berlin "20270101" then is_due[due], count = true, count + 1 end
    end
    local runs, by_number, skipped = {}, {}, 0
    for _, record in ipairs(records) do
      if record.skipped then
        assert.equal("missed", record.reason)
        skipped = skipped + record.skipped
      else
        local due = cairn.datetime(record.due).seconds
        local run = by_number[record.run_number]
        if not run then
          assert.is_true(is_due[due], "no due time, or a second run: "
            .. record.due)
          is_due[due] = nil
          run = { number = record.run_number, due = due }
          by_number[run.number], runs[#runs + 1] = run, run
        end
        run.state, run.attempts = record.JobState, record.attempt
        run.error = record.ErrorCode
      end
    end
    assert.equal(count, #runs + skipped)
    return runs, skipped
  end

  -- A policy's year in two lives of an engine. options: handlers; ended(job,
  -- event), of the last attempt of a run; noon[date] = function. Returns the runs
  -- by the keys of the jobs, what was there at each export by its point, the log.
  local function year(name, settings, options)
    settings.directory, settings.zone = "mnt/out", "Europe/Berlin"
    local policy = load(name, settings)
    local kept, log, engine, jobs = {}, {}, nil, {}
    local store = directory .. "/" .. name .. ".db"
    local function open(start_at)
      local lines
      engine, lines = support.engine(cairn, { store = store, start = start_at,
        history_limit = 100000, notify = options.handlers })
      log[#log + 1] = lines
      engine:on("RunEnded", function(event)
        local job = event.job
        if job.policy ~= name then return end
        if job.ReferencePointGroupId and event.JobState ~= "Exception"
          and policy.jobs[job.policy_key].export then
          kept[job.ReferencePointGroupId] = {
            ["web1.raw"] = contents["web1.raw"],
            ["data.raw"] = contents["data.raw"] }
          change(event.run_number)
        end
        if options.ended then options.ended(job, event) end
      end)
      for key, spec in pairs(policy.jobs) do
        jobs[key] = engine:jobs { policy = name, policy_key = key }[1]
        if jobs[key] then
          assert(engine:update(jobs[key], spec))
        else
          jobs[key] = assert(engine:submit(spec))
        end
      end
    end
    open(NEW_YEAR)
    local steps = {}
    for _, window in ipairs(windows) do
      local from, to, what = window.from, window.to, window[3]
      local pair = moves[what]
      steps[#steps + 1] = { from, function()
        if pair then move(pair[1], pair[2]) else assert(engine:close()) end
      end, is_off = not pair }
      steps[#steps + 1] = { to, function()
        if pair then move(pair[2], pair[1]) else open(to) end
      end }
    end
    for date, action in pairs(options.noon or {}) do
      steps[#steps + 1] = { berlin(date) + DAY // 2, action }
    end
    table.sort(steps, function(a, b) return a[1] < b[1] end)
    local is_off = false
    for _, step in ipairs(steps) do
      if not is_off then run_until(engine, step[1]) end
      step[2]()
      is_off = step.is_off
    end
    run_until(engine, berlin "20270101")
    local runs, skipped = {}, {}
    for key, job in pairs(jobs) do
      runs[key], skipped[key] = runs_of(records_of(engine, job),
        policy.jobs[key])
    end
    assert(engine:close())
    local lines = table.concat(log[1], "\n") .. table.concat(log[2], "\n")
    assert.is_nil(lines:find("policy " .. name, 1, true), lines) -- what failed
    return { runs = runs, skipped = skipped, kept = kept, log = lines }
  end

  -- Where nothing else is expected, all is well; with at most so many warnings,
  -- of chains that have reached their limit of 32 levels.
  local function expect_states(runs, state_of, limits)
    local warned = 0
    for _, run in ipairs(runs) do
      local expected = state_of(window_of(run.due), run) or "Completed"
      local is_limit = limits and expected == "Completed"
        and run.state == "Completed With Warnings"
      warned = warned + (is_limit and 1 or 0)
      assert.equal(expected, is_limit and "Completed" or run.state,
        os.date("!%Y-%m-%d %H:%M", run.due))
    end
    assert.is_true(warned <= (limits or 0), warned)
  end

  local function fails(window)
    return (window == "disk" or window == "target") and "Exception"
  end

  local function expect_whole(of, count)
    local list = points()
    assert.equal(0, (command("verify", directory .. "/mnt/out")))
    for i = 1, #list, math.max(1, #list // count) do
      local id = list[i].ReferencePointGroupId
      expect_content(list[i], assert(of.kept[id], id))
    end
    expect_content(list[#list], of.kept[list[#list].ReferencePointGroupId])
    return list
  end

  -- What a site does whose policy keeps everything: some points stay.
  local function tidied()
    local noon = {}
    for month = 2, 12 do
      noon[("2026%02d01"):format(month)] = function()
        assert(cairn.prune { directory = directory .. "/mnt/out",
          keep = { last = 5 } })
      end
    end
    return noon
  end

  it("monthly_gfs: a year, and what is kept of it", function()
    local of = year("monthly_gfs", {}, {})
    assert.same({ daily = 1, monthly = 0 }, of.skipped)
    expect_states(of.runs.daily, fails, 6) -- some months have 35 days
    expect_states(of.runs.monthly, fails)
    assert.equal(12, #of.runs.monthly)
    assert.equal("Exception", of.runs.monthly[11].state)
    for i, run in ipairs(of.runs.monthly) do -- Fridays, the last ones
      assert.equal(os.date("!%w", run.due), "5")
      assert.equal(i % 12 + 1, tonumber(os.date("!%m", run.due + 7 * DAY)))
    end
    local list = expect_whole(of, 4)
    local plan = assert(cairn.prune { directory = directory .. "/mnt/out",
      dry_run = true, keep = { daily = 7, weekly = 5, monthly = 12 } })
    assert.same({}, plan.removed)
    -- the rules themselves: seven days, the weeks and months before
    local months = {}
    for _, point in ipairs(list) do
      months[point.time:sub(1, 6)] = true
    end
    for month = 1, 12 do
      assert.is_true(months[("2026%02d"):format(month)], "month " .. month)
    end
    assert.is_true(#list <= 24, #list)
  end)

  it("synthetic: a year of merges", function()
    local longest = 0
    local of = year("synthetic", { levels = "5", keep_days = "12" }, {
      ended = function(job, event)
        if job.policy_key == "synthetic" and event.JobState == "Completed" then
          local list = points()
          longest = math.max(longest, list[1] and
            depths(list)[list[#list].ReferencePointGroupId] or 0)
        end
      end })
    assert.same({ nightly = 1, synthetic = 1 }, of.skipped)
    expect_states(of.runs.nightly, fails)
    expect_states(of.runs.synthetic, function(window)
      return window == "target" and "Exception"
    end)
    assert.equal(4, longest) -- merged on the day that it had five levels
    local list = expect_whole(of, 4)
    assert.is_true(#list >= 13 and #list <= 17, #list)
    assert.equal("", of.log)
  end)

  it("verify: a year with a damaged point in spring and in autumn", function()
    local out, farm = directory .. "/mnt/out",
      load("nightly", { directory = "mnt/out" }).jobs.nightly.export.collection
    for day = 1, 9 do
      change(day)
      local engine <close> = support.engine(cairn)
      local job = assert(engine:submit { Name = "point", export = {
        collection = farm, directory = out, base = "latest" } })
      assert.equal("Completed", job:wait())
    end
    local list, told = points(), {}
    local path, good
    local function damage(point)
      return function()
        local _, _, found = support.run { "find", out .. "/"
          .. list[point].ReferencePointGroupId, "-name", "*.qcow2" }
        path = found:match "[^\n]+"
        good = support.read(path)
        support.write(path, good:sub(1, -101)
          .. string.char(good:byte(-100) ~ 4) .. good:sub(-99))
      end
    end
    local function mend() support.write(path, good) end
    local of = year("verify", { notify = "ops" }, { noon = {
      ["20260412"] = damage(2), ["20260419"] = mend,
      ["20261030"] = damage(9), ["20261106"] = mend },
      handlers = { ops = function(notice)
        if notice.JobState ~= "Completed" then told[#told + 1] = notice end
      end } })
    assert.same({ all = 0, sample = 1 }, of.skipped)
    assert.equal(12, #of.runs.all)
    local found = { 0, 0 }
    expect_states(of.runs.sample, function(window, run)
      if window == "target" then return "Exception" end
      local i = run.due > berlin "20260412" and run.due < berlin "20260420" and 1
        or run.due > berlin "20261030" and run.due < berlin "20261107" and 2
      if i and run.state == "Exception" then
        found[i] = found[i] + 1
        return "Exception"
      end
    end)
    -- an older point has its turn every fourth day, the newest every day
    assert.is_true(found[1] == 1 or found[1] == 2, found[1])
    assert.equal(7, found[2])
    expect_states(of.runs.all, function(window, run)
      return (window == "target" or run.number == 11) and "Exception"
    end)
    local failed = 0
    for _, runs in pairs(of.runs) do
      for _, run in ipairs(runs) do
        failed = failed + (run.state == "Exception" and 1 or 0)
      end
    end
    assert.equal(failed, #told)
  end)

  it("throttle: a year", function()
    local of = year("throttle", { time = "11h", work_rate = "900" },
      { noon = tidied() })
    assert.same({ nightly = 1 }, of.skipped)
    expect_states(of.runs.nightly, fails, 12)
    assert.equal(364, #of.runs.nightly)
    expect_whole(of, 4)
    assert.equal("", of.log)
  end)

  it("notify: a year, and a page for every night that failed", function()
    local pages = directory .. "/pages"
    local pager = support.write(directory .. "/page", "#!/bin/sh\ncat >>"
      .. pages .. "; echo >>" .. pages .. "\n")
    assert(uv.fs_chmod(pager, tonumber("700", 8)))
    local of = year("notify", { pager = pager }, { noon = tidied() })
    assert.same({ nightly = 1 }, of.skipped)
    expect_states(of.runs.nightly, fails, 12)
    local numbers, expected = {}, {}
    for line in support.read(pages):gmatch "[^\n]+" do
      local notice = cairn.json_decode(line)
      assert.equal("Exception", notice.JobState)
      numbers[#numbers + 1] = notice.run_number
    end
    for _, run in ipairs(of.runs.nightly) do
      if run.state == "Exception" then expected[#expected + 1] = run.number end
    end
    assert.same(expected, numbers)
    expect_whole(of, 4)
  end)

  it("recovery: a year", function()
    local of = year("recovery", { free_percent = "0" },
      { noon = tidied() })
    assert.same({ nightly = 1, room = 1 }, of.skipped)
    expect_states(of.runs.nightly, fails)
    expect_states(of.runs.room, function() end)
    for _, run in ipairs(of.runs.nightly) do
      assert.equal(run.state == "Exception" and 4 or 1, run.attempts)
    end
    local list = expect_whole(of, 4)
    for _, depth in pairs(depths(list)) do assert.is_true(depth <= 14) end
  end)
end)
