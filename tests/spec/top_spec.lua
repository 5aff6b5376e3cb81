-- cairn top: what it draws, exactly, and on terminals of a real service.

local uv = require "luv"
local cairn = require "cairn"
local top = require "cairn.cli.top"
local text = require "cairn.cli.text"
local support = _G.support

local NOW = 1743116400000000

local function job(fields)
  local all = { Name = "job", InstanceID = "Cairn:0", phase = "waiting",
    JobState = "Suspended", queue = "default" }
  for name, value in pairs(fields) do all[name] = value end
  return all
end

local function farm()
  return { version = "9.9", now_us = NOW, sort = "state",
    queues = { { Name = "default", running = 2, concurrency = 2, queued = 1 } },
    jobs = {
      job { Name = "done", phase = "done", JobState = "Completed" },
      job { Name = "bad", phase = "done", JobState = "Exception" },
      job { Name = "weekly", due_us = NOW + 7265 * 1000000 },
      job { Name = "daily", due_us = NOW + 65 * 1000000 },
      job { Name = "next", phase = "queued" },
      job { Name = "web", phase = "running", JobState = "Running",
        bytes_total = 4000000000, bytes_done = 1000000000, rate = 50e6,
        eta = 60.0 },
      job { Name = "asks", phase = "running", JobState = "Query Pending",
        PercentComplete = 3 },
    } }
end

describe("the table of top", function()
  it("is as wide as it takes where there is no terminal", function()
    assert.same({
      "cairn 9.9: 7 jobs (2 running, 1 queued, 2 waiting, 2 done)",
      "queues: default 2/2 +1",
      "NAME    STATE          PROGRESS               %        RATE"
        .. "  LEFT     DONE  QUEUE          NEXT",
      "asks    Query Pending  [                  ]   3            "
        .. "                 default",
      "web     Running        [====              ]  25  47.7 MiB/s"
        .. "  1:00  954 MiB  default",
      "next    queued                                             "
        .. "                 default",
      "daily   waiting                                            "
        .. "                 default     in 1:05",
      "weekly  waiting                                            "
        .. "                 default  in 2:01:05",
      "bad     Exception                                          "
        .. "                 default",
      "done    Completed                                          "
        .. "                 default",
    }, (top.render(farm(), nil, nil, {})))
  end)

  it("gives up columns where it is narrow", function()
    assert.same({
      "cairn 9.9: 7 jobs (2 running, 1 queued, ",
      "queues: default 2/2 +1",
      "NAME    STATE           %  LEFT",
      "asks    Query Pending   3",
      "web     Running        25  1:00",
      "next    queued",
    }, (top.render(farm(), 40, 6, {})))
  end)

  it("keeps names and states longest", function()
    assert.same({ "cairn 9.9: 7 job", "queues: default ",
      "NAME", "asks", "web" },
      (top.render(farm(), 16, 5, {})))
    assert.same({ "cairn 9.9: 7 jobs (2 runn", "queues: default 2/2 +1",
      "NAME    STATE           %", "asks    Query Pending   3",
      "web     Running        25" }, (top.render(farm(), 25, 5, {})))
  end)

  it("fills a terminal, with colours, its keys below", function()
    local view = farm()
    view.keys = true
    local lines = top.render(view, 60, 12, { unicode = true, colour = true })
    assert.same({
      "cairn 9.9: 7 jobs (2 running, 1 queued, 2 waiting, 2 done)",
      "queues: default 2/2 +1",
      "\27[7mNAME    STATE          PROGRESS          %        RATE  LEFT"
        .. "\27[0m",
      "\27[33masks    Query Pending   ─────────────    3\27[0m",
      "\27[32mweb     Running         ━━━──────────   25  47.7 MiB/s  1:00"
        .. "\27[0m",
      "next    queued",
      "daily   waiting",
      "weekly  waiting",
      "\27[31mbad     Exception\27[0m",
      "\27[2mdone    Completed\27[0m",
      "",
      "\27[2mq quit  s sort: state  p pause  ↑↓ scroll\27[0m",
    }, lines)
  end)

  it("scrolls, and says where it is", function()
    local view = farm()
    view.keys, view.offset = true, 3
    local lines, offset = top.render(view, 79, 7, {})
    assert.equal(3, offset)
    assert.matches("^daily ", lines[4])
    assert.matches("^bad ", lines[6])
    assert.equal("4-6 of 7  q quit  s sort: state  p pause  arrows scroll",
      lines[7])
    view.offset = 1000
    lines, offset = top.render(view, 79, 7, {})
    assert.equal(4, offset)
    assert.matches("^done ", lines[6])
    view.offset = 2
    lines, offset = top.render(view, 79, 24, {})
    assert.equal(0, offset)
    assert.equal(24, #lines)
  end)

  it("sorts as it is asked to, and the same every time", function()
    local function names(sort)
      local out = {}
      for i, row in ipairs(top.sorted(farm().jobs, sort)) do
        out[i] = row.Name
      end
      return table.concat(out, " ")
    end
    assert.equal("asks web next daily weekly bad done", names "state")
    assert.equal("web asks bad daily done next weekly", names "progress")
    assert.equal("asks bad daily done next web weekly", names "name")
    assert.equal("daily weekly asks bad done next web", names "due")
    local twins = { job { InstanceID = "Cairn:2" }, job { InstanceID = "Cairn:1" } }
    for _, sort in ipairs(top.sorts) do
      assert.equal("Cairn:1", top.sorted(twins, sort)[1].InstanceID)
    end
  end)

  it("says it when the store fails, or the service is gone", function()
    local view = farm()
    view.store_error = "disk\27[2J full"
    assert.equal("THE STORE FAILS, nothing starts: disk\\x1b[2J full",
      top.render(view, nil, nil, {})[3])
    view.store_error, view.problem = nil, "s: the server went away"
    local lines = top.render(view, 80, 3, { colour = true })
    assert.equal("\27[31ms: the server went away\27[0m",
      top.render(view, 80, 9, { colour = true })[3])
    assert.matches("went away", lines[1])
    assert.equal(3, #lines)
  end)

  it("has no job to show", function()
    assert.same({ "cairn 9.9: 0 jobs", "no jobs" },
      (top.render({ version = "9.9", now_us = NOW, jobs = {} }, nil, nil, {})))
  end)

  it("obeys no name, and knows how wide names are", function()
    local view = farm()
    view.jobs = { job { Name = "a\27[31m\nb" },
      job { Name = "東京東京東京東京東京東京" }, job { Name = "e\u{301}té" } }
    local lines = top.render(view, 24, 9, { unicode = true })
    assert.same({ "NAME             STATE", "a\\x1b[31m\\nb     waiting",
      "e\u{301}té              waiting", "東京東京東京東…  waiting" },
      table.move(lines, 3, 6, 1, {}))
    assert.equal(24, text.width(lines[6]))
  end)

  -- Whatever the size and whatever the jobs: in its bounds, and nothing raised.
  it("stays in any size", function()
    local seed = tonumber(os.getenv "CAIRN_SEED") or 1
    math.randomseed(seed)
    local phases = { "running", "queued", "backoff", "waiting", "held", "done" }
    local states = { "Running", "Suspended", "New", "Completed", "Exception",
      "Completed With Warnings", "Shutting Down" }
    local names = { "a", ("x"):rep(300), "京", "\27]0;x\7", "", "\xff" }
    local function any(list) return list[math.random(#list)] end
    for _ = 1, 400 do
      local view = { version = "1", now_us = NOW, sort = any(top.sorts),
        keys = math.random() < 0.5, is_paused = math.random() < 0.5,
        offset = math.random(0, 40), jobs = {},
        problem = math.random() < 0.2 and "gone" or nil,
        store_error = math.random() < 0.2 and "full" or nil,
        queues = math.random() < 0.5 and { { Name = any(names), running = 1,
          concurrency = 2, queued = 3 } } or nil }
      for i = 1, math.random(0, 30) do
        view.jobs[i] = job { Name = any(names), InstanceID = "Cairn:" .. i,
          phase = any(phases), JobState = any(states),
          PercentComplete = math.random() < 0.5 and math.random(0, 100) or nil,
          bytes_total = math.random() < 0.5 and math.random(0, 1 << 40) or nil,
          bytes_done = math.random() < 0.5 and math.random(0, 1 << 41) or nil,
          rate = math.random() < 0.5 and math.random() * 1e9 or nil,
          eta = math.random() < 0.5 and math.random() * 1e9 or nil,
          due_us = math.random() < 0.5 and NOW + math.random(-1e9 // 1 | 0,
            1 << 50) or nil }
      end
      local width, height = math.random(1, 200), math.random(1, 40)
      local style = { unicode = math.random() < 0.5,
        colour = math.random() < 0.5 }
      local lines, offset = top.render(view, width, height, style)
      assert.is_true(#lines <= height, ("seed %d: %d lines of %d"):format(seed,
        #lines, height))
      assert.is_true(offset >= 0 and offset <= #view.jobs)
      for _, line in ipairs(lines) do
        local plain = line:gsub("\27%[%d*m", "")
        assert.is_nil(plain:find("[\0-\31\127]"), plain)
        assert.is_truthy(utf8.len(plain))
        assert.is_true(text.width(plain) <= width,
          ("seed %d: %d columns of %d: %s"):format(seed, text.width(plain),
          width, plain))
      end
    end
  end)

  it("takes keys as terminals send them", function()
    assert.same({ "q", "\27[A", "\27OB", "\27[5~", "\27[1;5A", "s", "\27" },
      top.keys "q\27[A\27OB\27[5~\27[1;5As\27")
    assert.same({}, top.keys "")
  end)
end)

describe("cairn top", function()
  local directory, remove, service, socket
  local command = assert(uv.fs_realpath(support.build)) .. "/bin/cairn"

  local function serve()
    local code
    local process, pid = uv.spawn(command, { args = { "serve", "--store",
      directory .. "/cairn.db", "--policies", directory .. "/policies",
      "--socket", socket }, stdio = { nil, nil, nil } },
      function(status) code = status end)
    assert(process, pid)
    local deadline = uv.hrtime() + 20e9
    local client = require "cairn.client"
    repeat
      assert(uv.hrtime() < deadline, "the service does not come up")
      local c = client.connect(uv, socket, { timeout = 1 })
      if c then c:close() else uv.run "nowait" end
    until c
    return { pid = pid, stop = function()
      if code == nil then uv.process_kill(process, "sigterm") end
      while code == nil do uv.run "once" end
      process:close()
      uv.run "nowait"
    end }
  end

  before_each(function()
    directory, remove = support.directory()
    socket = directory .. "/s/cairn.sock"
    assert(uv.fs_mkdir(directory .. "/policies", tonumber("755", 8)))
    support.write(directory .. "/policies/p.lua", [[
local cairn = require "cairn"
return cairn.policy { jobs = {
  long = { run = function(job)
    job:progress(42)
    job:sleep(1000)
  end },
  later = { RunStartInterval = "1h", JobRunTimes = 0, run = function() end },
} }]])
    service = serve()
  end)
  after_each(function()
    if service then service.stop() end
    remove()
  end)

  local function on_terminal(steps, ...)
    local code, _, output = support.run { "python3", "tests/spec/terminal.py",
      cairn.json_encode(steps), command, "top", "--socket", socket, ... }
    assert.equal(0, code, output)
    return assert(cairn.json_decode(output))
  end

  it("prints once where there is no terminal, or a dumb one", function()
    local code, _, output = support.run { command, "top", "--socket", socket }
    assert.equal(0, code)
    assert.is_nil(output:find "\27")
    assert.matches("\nlong +Running +%[=+ +%] +42 ", output)
    assert.matches("\nlater +waiting .* in ", output)
    local result = on_terminal({ { expect = "later" } }, "--once")
    assert.equal(0, result.status)
    assert.is_nil(result.output:find "\27")
    code, _, output = support.run { "env", "TERM=dumb", "python3",
      "tests/spec/terminal.py", cairn.json_encode { { expect = "later" } },
      command, "top", "--socket", socket }
    result = assert(cairn.json_decode(output))
    assert.equal(0, code)
    assert.equal(0, result.status)
    assert.is_nil(result.output:find "\27")
  end)

  it("prints JSON, an object a line", function()
    local code, _, output = support.run { command, "top", "--socket", socket,
      "--json", "--sort", "name" }
    assert.equal(0, code)
    local names = {}
    for line in output:gmatch "[^\n]+" do
      names[#names + 1] = assert(cairn.json_decode(line)).Name
      assert.is_nil(line:find("due_us", 1, true))
    end
    assert.same({ "later", "long" }, names)
  end)

  it("lives on a terminal and leaves it as it was", function()
    local result = on_terminal({ { expect = "sort: state" },
      { expect = "42" }, { send = "s" }, { expect = "sort: progress" },
      { send = "p" }, { expect = "PAUSED" }, { resize = { 12, 50 } },
      { expect = "PAUSED" }, { send = "p \27[B\27[A" }, { send = "q" } },
      "--interval", "0.2")
    assert.is_nil(result.missed, cairn.json_encode(result))
    assert.equal(0, result.status)
    assert.is_true(result.mode)
    assert.matches("\27%[%?1049h", result.output)
    assert.matches("\27%[%?25h\27%[%?1049l$", result.output)
  end)

  it("ends by a signal, and leaves the terminal as it was", function()
    for _, step in ipairs { { signal = "TERM" }, { send = "\3" },
      { signal = "INT" } } do
      local result = on_terminal({ { expect = "sort: state" }, step })
      assert.equal(0, result.status)
      assert.is_true(result.mode)
      assert.matches("\27%[%?1049l$", result.output)
    end
  end)

  it("looks for a service that has gone", function()
    local result = on_terminal({ { expect = "sort: state" },
      { run = { "kill", tostring(service.pid) } },
      { expect = "nothing is there|went away|nobody answers" },
      { run = { "sh", "-c", ("%s serve --store '%s' --policies '%s' --socket "
        .. "'%s' >/dev/null 2>&1 & echo $! >'%s'"):format(command,
        directory .. "/cairn.db", directory .. "/policies", socket,
        directory .. "/pid") } },
      { expect = "nothing is there.*\27\\[7mNAME.*\27\\[32mlong" },
      { send = "q" } }, "--interval", "0.2")
    uv.kill(math.tointeger(tonumber(support.read(directory .. "/pid"))),
      "sigterm")
    assert.is_nil(result.missed, result.output:sub(-2000))
    assert.equal(0, result.status)
    assert.is_true(result.mode)
  end)

  it("says when there is no service", function()
    service.stop()
    service = nil
    local code, _, output = support.run { command, "top", "--socket", socket }
    assert.equal(3, code)
    assert.matches("is cairn serve running%?", output)
    code, _, output = support.run { command, "top", "--interval", "0" }
    assert.equal(2, code)
    assert.matches("0%.1 to 3600 seconds", output)
  end)
end)

describe("cairn calendar", function()
  local directory, remove

  before_each(function() directory, remove = support.directory() end)
  after_each(function() remove() end)

  local function calendar(jobs, ...)
    local path = support.write(directory .. "/p.lua", 'local cairn = require '
      .. '"cairn"\nreturn cairn.policy { jobs = {' .. jobs .. "} }")
    return support.run { support.build .. "/bin/cairn", "calendar", path, ... }
  end

  it("marks days by the job's clock, and what a change of it moves", function()
    local code, _, output = calendar([[
      nightly = { RunStartInterval = "2h30m", JobRunTimes = 0, run = print },
      monthly = { RunDay = -1, JobRunTimes = 0, run = print } ]],
      "--from", "2025-03-29", "--zone", "Europe/Berlin", "--months", "1")
    assert.equal(0, code)
    assert.equal([[
March 2025
Mon   Tue   Wed   Thu   Fri   Sat   Sun
                               1     2
 3     4     5     6     7     8     9
10    11    12    13    14    15    16
17    18    19    20    21    22    23
24    25    26    27    28    29 b  30!b
31 ab

   JOB      RUNS  AT     ZONE
a  monthly     1  00:00  Europe/Berlin
b  nightly     3  02:30  Europe/Berlin

! Sun 2025-03-30 03:00: nightly: the clock is put forward over 2025-03-30 02:30:00
]], output)
  end)

  it("has the days of the week where Python has them", function()
    local _, _, output = calendar(
      "a = { RunDay = 1, JobRunTimes = 0, run = print }", "--from",
      "2023-11-01", "--zone", "UTC", "--months", "120")
    local code, _, other = support.run { "python3", "-c", [[
import calendar
for i in range(120):
    y, m = divmod(2023 * 12 + 10 + i, 12)
    for week in calendar.Calendar(0).monthdayscalendar(y, m + 1):
        print(" ".join(str(d) if d else "." for d in week).rstrip(". "))
    print()
]] }
    assert.equal(0, code)
    local weeks = {}
    for line in output:gmatch "([^\n]*)\n" do
      if line:find "^   JOB" then break end
      local cells = {}
      if line == "" then
        weeks[#weeks + 1] = ""
      elseif line:find "^[ %d]" then
        for at = 1, #line, 5 do
          cells[#cells + 1] = line:sub(at, at + 4):match "%d+" or "."
        end
        weeks[#weeks + 1] = table.concat(cells, " ")
      end
    end
    assert.equal(other, table.concat(weeks, "\n") .. "\n")
  end)

  it("fits 80 columns with any number of jobs", function()
    local jobs = {}
    for i = 1, 70 do
      jobs[i] = ("j%02d = { RunStartInterval = %d, JobRunTimes = 0, "
        .. "run = print }"):format(i, i * 60)
    end
    local code, _, output = calendar(table.concat(jobs, ","), "--from",
      "2025-01-01", "--zone", "UTC", "--months", "1")
    assert.equal(0, code)
    assert.matches(" 1 abcdef%+", output)
    for line in output:gmatch "[^\n]+" do
      assert.is_true(#line <= 80, line)
    end
    assert.matches("\na  j01 +31 ", output)
    assert.matches("\n%+  j70 +31 ", output)
  end)

  it("prints the runs as JSON", function()
    local code, _, output = calendar(
      "a = { RunDay = 15, JobRunTimes = 2, run = print }", "--from",
      "2025-01-01", "--zone", "UTC", "--months", "12", "--json")
    assert.equal(0, code)
    local times = {}
    for line in output:gmatch "[^\n]+" do
      times[#times + 1] = assert(cairn.json_decode(line)).local_time:sub(1, 8)
    end
    assert.same({ "20250115", "20250215" }, times)
  end)
end)
