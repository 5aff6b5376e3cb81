-- The command as its users run it: a process with arguments, output, exit
-- codes, signals and a terminal. What it wrote is judged by qemu-img and cmp.

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local uv = require "luv"
local cairn_module = require "cairn"
local commands = require "cairn.cli.commands"

local command = assert(uv.fs_realpath(build .. "/bin/cairn"))
local LIMIT_MS = 60000

-- ---- running it -------------------------------------------------------------------

local function close(handle)
  if handle and not uv.is_closing(handle) then uv.close(handle) end
end

-- Runs a program to its end. options: input (text; default: /dev/null), env
-- (array added to ours), cwd, on_stderr = function(all_so_far, kill) called at
-- every piece of standard error.
local function spawn(program, arguments, options)
  options = options or {}
  local out, err, outcome = {}, {}, {}
  local output, errors = uv.new_pipe(false), uv.new_pipe(false)
  local input = options.input and uv.new_pipe(false) or nil
  local env
  if options.env then
    env = {}
    for name, value in pairs(uv.os_environ()) do
      local is_new = false
      for _, pair in ipairs(options.env) do
        is_new = is_new or pair:match "^[^=]+" == name
      end
      if not is_new then env[#env + 1] = name .. "=" .. value end
    end
    for _, pair in ipairs(options.env) do env[#env + 1] = pair end
  end
  local open = 3
  local function closed() open = open - 1 end
  local process, pid = uv.spawn(program, {
    args = arguments, stdio = { input, output, errors }, cwd = options.cwd,
    env = env,
  }, function(code, signal)
    outcome.code, outcome.signal = code, signal
    closed()
  end)
  assert(process, pid)
  local reader
  function reader(pipe, pieces, each)
    uv.read_start(pipe, function(failure, data)
      assert(not failure, failure)
      if not data then return closed() end
      pieces[#pieces + 1] = data
      if each then
        each(table.concat(pieces), function(signal) uv.kill(pid, signal) end,
          function() reader(output, out) end)
      end
    end)
  end
  if not options.holds_output then reader(output, out) end
  reader(errors, err, options.on_stderr)
  if input then
    uv.write(input, options.input, function() close(input) end)
  end
  local timer = uv.new_timer()
  uv.timer_start(timer, LIMIT_MS, 0, function()
    outcome.is_late = true
    uv.kill(pid, "sigkill")
  end)
  while open > 0 do uv.run "once" end
  for _, handle in ipairs { process, output, errors, timer } do
    close(handle)
  end
  close(input)
  uv.run "nowait"
  outcome.out, outcome.err = table.concat(out), table.concat(err)
  assert(not outcome.is_late, program .. " took too long: " .. outcome.err)
  return outcome
end

local function cairn(arguments, options)
  return spawn(command, arguments, options)
end

local function succeeds(outcome)
  assert.equal(0, outcome.code, outcome.err .. outcome.out)
  assert.equal(0, outcome.signal)
  return outcome
end

-- Exit code and message as wanted, nothing on standard output.
local function fails(code, pattern, outcome)
  assert.equal(0, outcome.signal, outcome.err)
  assert.truthy(outcome.err:find(pattern), ("%s\n(wanted: %s)"):format(
    outcome.err, pattern))
  assert.equal(code, outcome.code, outcome.err)
  assert.equal("", outcome.out)
  assert.is_nil(outcome.err:find("internal error", 1, true), outcome.err)
  assert.is_nil(outcome.err:find("stack traceback", 1, true), outcome.err)
end

-- A program that is not ours; a sanitizer preloaded for ours would only be in
-- its way (QEMU switches stacks).
local function run(program, ...)
  local outcome = spawn(program, { ... }, { env = { "LD_PRELOAD=" } })
  assert.equal(0, outcome.code, program .. " " .. table.concat({ ... }, " ")
    .. "\n" .. outcome.out .. outcome.err)
  return outcome.out
end

local function has(program)
  return spawn("sh", { "-c", "command -v " .. program }).code == 0
end

-- ---- files --------------------------------------------------------------------------

local top -- a directory with a name that breaks careless code

local function write(path, content)
  local file = assert(io.open(path, "wb"))
  assert(file:write(content))
  assert(file:close())
  return path
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read "a"
  file:close()
  return content
end

local function exists(path) return uv.fs_stat(path) ~= nil end

local function mkdir(path) assert(uv.fs_mkdir(path, 448)) return path end

-- Bytes that do not compress and are always the same.
local function noise(length, seed)
  local out, x = {}, seed
  for i = 1, length // 8 + 1 do
    x = (x * 6364136223846793005 + 1442695040888963407)
    out[i] = string.pack("<i8", x ~ (x >> 29))
  end
  return table.concat(out):sub(1, length)
end

local VM1, VM2 = "0C5A3C52-3C5E-4B0B-9A53-0F7C1C6B7A11",
  "5D0F2F8E-6F0E-4F39-8D6C-2B8A7D1E9C22"

-- Two machines in `dir`: a qcow2 disk, a raw disk of odd length with a hole
-- between its ends, an overlay on a base, files. farm.lua returns them.
local function make_farm(dir)
  local MIB = 1 << 20
  write(dir .. "/a.raw", noise(3 * MIB, 1) .. ("\0"):rep(2 * MIB)
    .. noise(MIB, 2))
  run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", dir .. "/a.raw",
    dir .. "/a.qcow2")
  local raw = assert(io.open(dir .. "/b.raw", "wb"))
  raw:write(noise(MIB, 3))
  raw:seek("set", 40 * MIB)
  raw:write(noise(1000, 4))
  raw:close()
  run("qemu-img", "create", "-q", "-f", "qcow2", dir .. "/base.qcow2", "16M")
  run("qemu-io", "-f", "qcow2", "-c", "write -q -P 17 0 2M", dir .. "/base.qcow2")
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F",
    "qcow2", dir .. "/c.qcow2")
  run("qemu-io", "-f", "qcow2", "-c", "write -q -P 34 1M 1M", "-c",
    "write -q -z 0 64k", dir .. "/c.qcow2")
  write(dir .. "/one.xml", "<domain><name>one</name></domain>\n")
  write(dir .. "/one.save", noise(100000, 5))
  write(dir .. "/two.vars", noise(4096, 6))
  return write(dir .. "/farm.lua", ([[
    local cairn = require "cairn"
    return cairn.collection {
      CollectionId = "7E1B8F0A-95C1-4D43-8E0B-3D3B6A1C5F01",
      ElementName = "farm",
      machines = {
        { VirtualMachineId = %q, ElementName = "one",
          disks = { { id = "vda", path = "a.qcow2", format = "qcow2" },
                    { id = "vdb", path = "b.raw", format = "raw" } },
          config = { "one.xml" }, runtime = { "one.save" } },
        { VirtualMachineId = %q, ElementName = "two",
          disks = { { id = "vda", path = "c.qcow2", format = "qcow2" } },
          guest_state = { "two.vars" } },
      },
    }
  ]]):format(VM1, VM2))
end

local function files_under(dir)
  local found = {}
  local function walk(path)
    local handle = assert(uv.fs_scandir(path))
    while true do
      local name, kind = uv.fs_scandir_next(handle)
      if not name then break end
      if kind == "directory" then
        walk(path .. "/" .. name)
      else
        found[#found + 1] = path .. "/" .. name
      end
    end
  end
  if exists(dir) then walk(dir) end
  table.sort(found)
  return found
end

local function find_file(dir, ...)
  for _, path in ipairs(files_under(dir)) do
    local is_it = true
    for _, part in ipairs { ... } do
      is_it = is_it and path:find(part, 1, true) ~= nil
    end
    if is_it then return path end
  end
  error("no such file under " .. dir .. ": " .. table.concat({ ... }, " "))
end

local function json_lines(text)
  local out = {}
  for line in text:gmatch("([^\n]*)\n") do
    local value, message = cairn_module.json_decode(line)
    assert(value ~= nil, tostring(message) .. ": " .. line)
    out[#out + 1] = value
  end
  assert.truthy(text == "" or text:sub(-1) == "\n")
  return out
end

local function policy(name, body)
  return write(top .. "/" .. name .. ".lua",
    "local set = ...\nlocal cairn = require 'cairn'\n" .. body)
end

setup(function()
  local base = assert(uv.fs_mkdtemp((os.getenv "TMPDIR" or "/tmp")
    .. "/cairn-command-XXXXXX"))
  top = mkdir(base .. "/a b'ü\n$x")
  local nbd = spawn("sh", { "-c", "command -v qemu-nbd" }).out:match "[^\n]+"
  if os.getenv "LD_PRELOAD" and nbd then
    mkdir(base .. "/bin")
    write(base .. "/bin/qemu-nbd", "#!/bin/sh\nunset LD_PRELOAD\nexec " .. nbd
      .. " \"$@\"\n")
    assert(uv.fs_chmod(base .. "/bin/qemu-nbd", 448))
    uv.os_setenv("PATH", base .. "/bin:" .. os.getenv "PATH")
  end
end)

teardown(function()
  run("rm", "-rf", (top:gsub("/[^/]*$", "")))
end)

-- ---- help, versions, wrong use ------------------------------------------------------

describe("cairn", function()
  it("has --help, -h and help for every command", function()
    for _, c in ipairs(commands.list) do
      local help = succeeds(cairn { c.name, "--help" })
      assert.equal("", help.err)
      assert.truthy(help.out:find("usage: cairn " .. c.name, 1, true))
      assert.equal(help.out, succeeds(cairn { c.name, "-h" }).out)
      assert.equal(help.out, succeeds(cairn { "help", c.name }).out)
      assert.truthy(help.out:find("--json", 1, true))
    end
    assert.equal(succeeds(cairn { "--help" }).out,
      succeeds(cairn { "help" }).out)
  end)

  it("describes its commands as JSON too", function()
    local described = json_lines(succeeds(cairn { "help", "--json" }).out)
    assert.equal(#commands.list, #described)
    local restore
    for i, c in ipairs(commands.list) do
      assert.equal(c.name, described[i].name)
      if c.name == "restore" then restore = described[i] end
    end
    assert.same({ restore },
      json_lines(succeeds(cairn { "help", "--json", "restore" }).out))
    fails(2, "unknown command nope", cairn { "help", "--json", "nope" })
  end)

  it("has a manual page that is the one in docs/man", function()
    assert.equal(read "docs/man/cairn.1", succeeds(cairn { "help", "--man" }).out)
  end)

  it("says its version", function()
    assert.equal("cairn " .. cairn_module.version .. "\n",
      succeeds(cairn { "--version" }).out)
    assert.same({ { version = cairn_module.version } },
      json_lines(succeeds(cairn { "--version", "--json" }).out))
  end)

  it("works from any directory, through a symbolic link and PATH", function()
    local link = top .. "/cairn"
    assert(uv.fs_symlink(command, link))
    local by_link = spawn(link, { "--version" }, { cwd = "/" })
    succeeds(by_link)
    local by_path = spawn("sh", { "-c", "cairn --version" },
      { env = { "PATH=" .. top .. ":" .. os.getenv "PATH" }, cwd = "/" })
    assert.equal(by_link.out, succeeds(by_path).out)
  end)

  it("loads nothing from the working directory", function()
    local dir = mkdir(top .. "/hostile")
    for _, name in ipairs { "luv", "cairn", "readline", "cairn.core" } do
      write(dir .. "/" .. name .. ".lua", "io.stderr:write 'owned'\n")
    end
    local outcome = succeeds(cairn({ "--version" }, { cwd = dir }))
    assert.is_nil(outcome.err:find("owned", 1, true))
  end)

  it("refuses wrong use with exit code 2 and the nearest name", function()
    fails(2, "a command is missing", cairn {})
    fails(2, "unknown command exprot; the nearest is export", cairn { "exprot" })
    fails(2, "unknown option %-%-jsno; the nearest is %-%-json",
      cairn { "points", "--jsno", "x" })
    fails(2, "unknown option %-%-verion; the nearest is %-%-version",
      cairn { "--verion" })
    fails(2, "POLICY.lua is missing", cairn { "run" })
    fails(2, "unknown command nope", cairn { "help", "nope" })
  end)

  it("says so when a result cannot be written", function()
    local outcome = spawn("sh", { "-c", '"$0" --help >/dev/full', command })
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("cannot write standard output", 1, true))
  end)
end)

-- ---- calendars ----------------------------------------------------------------------

describe("cairn run --follow", function()
  local path

  -- Jobs with `at`: the time of day some seconds from now.
  local function calendar(jobs)
    path = policy("calendar", [[
      local function at(seconds)
        local t = os.date("!*t", os.time() + seconds)
        return ("00000000%02d%02d%02d.000000:000"):format(t.hour, t.min, t.sec)
      end
      return cairn.policy { jobs = { ]] .. jobs .. " } }")
  end

  it("runs jobs when they are due, and ends with the last", function()
    calendar [[
      once = { RunStartInterval = at(2), LocalOrUtcTime = 2,
        run = function() print("once", os.time()) end },
      soon = { ScheduledStartTime = "00000000000001.000000:000",
        run = function() print("soon") end },
      now = { run = function() print("now") end } ]]
    local start = os.time()
    local outcome = cairn { "run", path, "--follow" }
    assert.equal(0, outcome.code, outcome.err)
    local when = tonumber(outcome.out:match("once%s+(%d+)"))
    assert.is_true(when > start and when < start + 30, outcome.out)
    assert.truthy(outcome.out:find("^now\nsoon\nonce"), outcome.out)
    assert.truthy(outcome.err:find("once: waiting for run 1 of 1, due 20", 1,
      true), outcome.err)
  end)

  it("is ended by a signal, which is no failure of a waiting job", function()
    calendar [[
      daily = { RunStartInterval = at(1), LocalOrUtcTime = 2, JobRunTimes = 0,
        run = function() end },
      later = { RunStartInterval = at(43200), LocalOrUtcTime = 2,
        run = function() end } ]]
    local outcome = cairn({ "run", path, "--follow", "--json" },
      { on_stderr = function(all, kill)
        if all:find("daily: waiting for run 2,", 1, true) then
          kill "sigterm"
        end
      end })
    assert.equal(0, outcome.code, outcome.err)
    assert.truthy(outcome.err:find("daily: run 1: completed", 1, true))
    assert.equal(2, select(2, outcome.out:gsub('"JobState":"Terminated"', "")))
  end)

  it("tells a failed run, and ends with 1", function()
    calendar [[
      daily = { RunStartInterval = at(1), LocalOrUtcTime = 2, JobRunTimes = 0,
        run = function() error("no luck") end } ]]
    local outcome = cairn({ "run", path, "--follow" },
      { on_stderr = function(all, kill)
        if all:find("daily: waiting for run 2,", 1, true) then
          kill "sigint"
        end
      end })
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("calendar.lua:%d+: no luck"),
      outcome.err)
    assert.truthy(outcome.err:find("daily: run 1: failed", 1, true))
  end)

  it("does not count an attempt that was followed by a good one", function()
    -- Start does not wait for the delay between two attempts
    calendar [[
      flaky = { RecoveryAction = "Re-run Job", run = function()
        tries = (tries or 0) + 1
        if tries == 1 then error("no luck") end
      end },
      starter = { run = function(job)
        while #engine:jobs { phase = "backoff" } == 0 do job:sleep(0.05) end
        engine:jobs { phase = "backoff" }[1]:RequestStateChange "Start"
      end } ]]
    local f = assert(io.open(path))
    local source = f:read "a"
    f:close()
    write(path, [[
      local cairn = require "cairn"
      local open, engine, tries = cairn.open
      function cairn.open(options) engine = open(options) return engine end
    ]] .. source)
    local outcome = cairn { "run", path, "--follow" }
    assert.equal(0, outcome.code, outcome.err)
    assert.truthy(outcome.err:find("flaky: run 1: failed", 1, true))
    assert.truthy(outcome.err:find("flaky: run 1: completed (attempt 2)", 1,
      true), outcome.err)
  end)

  it("refuses a schedule that never comes, with its job", function()
    calendar [[ never = { RunMonth = "February", RunDay = 30,
      run = function() end } ]]
    fails(2, "never comes", cairn { "run", path, "--follow" })
    fails(2, "never comes", cairn { "run", path })
  end)
end)

-- ---- descriptors, signals ------------------------------------------------------------

describe("cairn in poor surroundings", function()
  local dir

  local function shell(script, ...)
    return spawn("bash", { "-c", script, command, ... }, { cwd = dir })
  end

  setup(function()
    dir = mkdir(top .. "/poor")
    write(dir .. "/disk.raw", noise(1 << 20, 7))
    write(dir .. "/one.lua", ([[
      return require "cairn".collection {
        CollectionId = "7E1B8F0A-95C1-4D43-8E0B-3D3B6A1C5F01",
        machines = { { VirtualMachineId = %q,
          disks = { { id = "vda", path = "disk.raw", format = "raw" } } } } }
    ]]):format(VM1))
  end)

  it("keeps off descriptors that were closed", function()
    for i, closed in ipairs { "<&- >&- 2>&-", ">&- 2>&-", "<&-", "2>&-",
      ">&-" } do
      local to = "closed" .. i
      local outcome = shell('"$0" export --collection one.lua --to "$1" '
        .. closed, to)
      -- a result that could not be written is no success
      assert.equal(closed:find("%f[^ \0]>&%-") and 1 or 0, outcome.code,
        closed .. outcome.err)
      assert.truthy(find_file(dir .. "/" .. to, "manifest.json"))
      succeeds(cairn { "verify", dir .. "/" .. to })
    end
    local outcome = shell('"$0" points closed1 >&-')
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("standard output: it is closed", 1, true))
  end)

  it("outlives the reader of its messages, and says when results are lost",
    function()
      local path = policy("pipes", [[
        return { jobs = { a = { Name = "quiet", run = function(job)
          for i = 1, 30 do io.stderr:write "line\n" job:sleep(0.01) end
          -- children have the usual handling of a closed pipe
          assert(os.execute "(yes; echo $? >&2) 2>&1 >/dev/full | true")
          local p = io.popen "bash -c 'yes | head -1; echo ${PIPESTATUS[0]}'"
          assert(p:read "a" == "y\n141\n")
        end } } }
      ]])
      local outcome = shell(
        '"$0" run "$1" 2> >(head -1 >/dev/null); echo "code $?"', path)
      assert.truthy(outcome.out:find("quiet: Completed", 1, true), outcome.out)
      assert.truthy(outcome.out:find("code 0\n", 1, true), outcome.out)
      outcome = shell('"$0" run "$1" 2>err > >(true); echo "code $?"', path)
      assert.equal("code 1\n", outcome.out)
      assert.truthy(read(dir .. "/err"):find(
        "cannot write standard output: Broken pipe", 1, true))
    end)

  it("may open as many files as the hard limit says", function()
    local path = policy("limit", [[return { jobs = { a = { run = function()
      print(io.popen("ulimit -n"):read "a") end } } }]])
    local outcome = shell('ulimit -S -n 64; ulimit -H -n 300; "$0" run "$1"',
      path)
    assert.truthy(succeeds(outcome).out:find("300\n", 1, true), outcome.out)
  end)

  -- Sends a signal when the policy has written "started", another after the
  -- message that `between` is.
  local function stuck(body, signal, between)
    local path = policy("stuck", "return { jobs = { a = { run = function() "
      .. "io.stderr:write 'started\\n' " .. body .. " end } } }")
    local sent = 0
    return cairn({ "run", path }, { on_stderr = function(all, kill)
      if sent == 0 and all:find("started\n", 1, true) then
        sent = 1
        kill(signal)
      end
      if sent == 1 and (not between or all:find(between, 1, true)) then
        sent = 2
        if not between then uv.sleep(100) end
        kill(signal)
      end
    end })
  end

  for what, body in pairs {
    ["a read of a pipe"] = "io.popen('exec sleep 10 2>&1'):read 'a'",
    ["a program that it runs"] = "os.execute 'exec sleep 10 >/dev/null 2>&1'",
    ["a pattern"] = "local s = ('a'):rep(400) s:find(('a-'):rep(40) .. 'b')",
    ["a finalizer"] = "setmetatable({}, { __gc = function() while true do end "
      .. "end }) collectgarbage()", -- now, not when the signal has come
  } do
    it("ends at the second SIGTERM when Lua is held up by " .. what, function()
      local outcome = stuck(body, "sigterm")
      assert.equal(15, outcome.signal, outcome.err)
      assert.truthy(outcome.err:find("SIGTERM: ended at once", 1, true),
        outcome.err)
    end)
  end

  it("says when a signal cannot be heeded, and ends at the next one", function()
    local outcome = stuck("io.popen('exec sleep 10 2>&1'):read 'a'", "sigint",
      "SIGINT waits for Lua code that does not return")
    assert.equal(2, outcome.signal, outcome.err)
  end)

  it("heeds a signal late rather than end when Lua returns in time", function()
    local outcome = stuck("local p = io.popen 'sleep 0.5' p:read 'a' "
      .. "coroutine.running() while true do local _ = {} end", "sigint")
    assert.equal(0, outcome.signal, outcome.err)
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("a: Killed", 1, true), outcome.err)
  end)

  -- What it has to say does not fit into the pipe, and so it is still there.
  it("tells how the jobs ended when a signal comes after that", function()
    local path = policy("late", [[return { jobs = { a = {
      Description = ("x"):rep(300000), run = function() end } } }]])
    for signal, number in pairs { sigterm = 15, sigint = 2 } do
      for times = 1, 2 do
        local timer
        local outcome = cairn({ "run", path, "--json" }, { holds_output = true,
          on_stderr = function(all, kill, release)
            if timer or not all:find("a: Completed", 1, true) then return end
            timer = uv.new_timer()
            local left = times
            uv.timer_start(timer, 300, 300, function()
              if left > 0 then
                left = left - 1
                kill(signal)
              else
                close(timer)
                release()
              end
            end)
          end })
        assert.equal(times == 1 and 0 or number, outcome.signal, outcome.err)
        if times == 1 then
          assert.equal(0, outcome.code, outcome.err)
          assert.truthy(outcome.out:find('"JobState":"Completed"', 1, true))
        else
          assert.truthy(outcome.err:find("all jobs had ended before", 1, true))
        end
      end
    end
  end)

  it("ends in words when a file it loads never ends", function()
    local path = policy("endless", "io.stderr:write 'started\\n' "
      .. "while true do end")
    local outcome = cairn({ "run", path }, { on_stderr = function(all, kill)
      if all == "started\n" then kill "sigint" end
    end })
    assert.equal(2, outcome.signal)
    assert.equal("started\ncairn: SIGINT: ended; no job had begun\n",
      outcome.err)
  end)

  it("leaves SIGHUP ignored under nohup", function()
    local path = policy("nohup", [[return { jobs = { a = { run = function(job)
      os.execute "kill -HUP $PPID" job:sleep(0.1) end } } }]])
    succeeds(shell('trap "" HUP; exec "$0" run "$1"', path))
  end)
end)

-- ---- bad policies ---------------------------------------------------------------------

describe("cairn run", function()
  local EXPORT = "{ export = { directory = '%s/never', collection = { "
    .. "CollectionId = '7E1B8F0A-95C1-4D43-8E0B-3D3B6A1C5F01', machines = { { "
    .. "VirtualMachineId = '0C5A3C52-3C5E-4B0B-9A53-0F7C1C6B7A11', disks = {%s}"
    .. " } } } } }"

  local bad = {
    { "a syntax error", "bad_syntax", "return {{", "bad_syntax.lua:3" },
    { "a runtime error", "bad_runtime", "local x = nil\nreturn x.y",
      "bad_runtime.lua:4" },
    { "a raised table", "bad_raise", "error { 1 }", "" },
    { "nothing returned", "bad_nothing", "", "policy" },
    { "a number returned", "bad_number", "return 42", "policy" },
    { "an unknown key of the policy", "bad_key",
      "return cairn.policy { jbos = {} }", "jobs" },
    { "a wrong type of a key", "bad_type",
      "return cairn.policy { jobs = 3 }", "jobs" },
    { "an unknown key of a job", "bad_jobkey",
      "return cairn.policy { jobs = { a = { Nmae = 'x', run = print } } }",
      "Name" },
    { "a wrong type of a property", "bad_proptype", "return cairn.policy "
      .. "{ jobs = { a = { Priority = 'high', run = print } } }", "Priority" },
    { "a value out of range", "bad_range", "return cairn.policy "
      .. "{ jobs = { a = { RunDay = 32, run = print } } }", "RunDay" },
    { "a job without a kind", "bad_kind",
      "return cairn.policy { jobs = { a = { Name = 'x' } } }", "export" },
    { "a job of two kinds", "bad_kinds", "return cairn.policy { jobs = "
      .. "{ a = { run = print, verify = { directory = '/x' } } } }", "" },
    { "a policy without jobs", "bad_empty",
      "return cairn.policy { jobs = {} }", "no jobs" },
  }
  for _, case in ipairs(bad) do
    it("refuses " .. case[1] .. " with exit code 2", function()
      fails(2, case[4], cairn { "run", policy(case[2], case[3]) })
    end)
  end

  it("says which file and job a wrong value is in, wherever it was found",
    function()
      local path = policy("wrong", "return { jobs = { a = { run = print }, "
        .. "b = { run = print, Priority = -1 } } }")
      for _, more in ipairs { {}, { "--job", "b" }, { "--dry-run" },
        { "--job", "b", "--dry-run" } } do
        local outcome = cairn { "run", path, table.unpack(more) }
        fails(2, "wrong%.lua: jobs%.b: Priority is %-1", outcome)
        assert.is_nil(outcome.err:find("specification", 1, true))
        assert.is_nil(outcome.err:find("engine:", 1, true))
      end
      -- what the encoder finds, and the engine's own check
      path = policy("wrong_text", "return { jobs = { a = { run = print }, "
        .. "b = { run = print, Caption = '\\xff' } } }")
      for _, more in ipairs { {}, { "--job", "b" }, { "--dry-run" } } do
        fails(2, "wrong_text%.lua: jobs%.b: Caption: ",
          cairn { "run", path, table.unpack(more) })
      end
      local disk = "{ id = 'vd%s', path = '/x.raw', format = 'raw' }"
      path = policy("wrong_disk", "return { jobs = { a = { run = print }, b = "
        .. EXPORT:format("/tmp", disk:format "a" .. "," .. disk:format "A")
        .. " } }")
      for _, more in ipairs { {}, { "--job", "b" } } do
        fails(2, "wrong_disk%.lua: jobs%.b: "
          .. "export%.collection%.machines%[1%]%.disks%[2%]%.id: another disk",
          cairn { "run", path, table.unpack(more) })
      end
    end)

  it("refuses what would hold it up or is no Lua file, at once", function()
    local fifo = top .. "/fifo"
    run("mkfifo", fifo)
    local large = assert(io.open(top .. "/large.lua", "w"))
    large:seek("set", 16 << 20)
    large:write "x"
    large:close()
    for _, case in ipairs { { fifo, "fifo is not a regular file" },
      { "/dev/zero", "not a regular file" }, { top, "is a directory" },
      { top .. "/large.lua", "larger than 16 MiB" } } do
      fails(2, "the policy .*" .. case[2], cairn { "run", case[1] })
      fails(2, "the collection .*" .. case[2], cairn { "export",
        "--collection", case[1], "--to", top .. "/never" })
      if case[1] ~= fifo then
        fails(2, "the script .*" .. case[2], cairn { "console", case[1] })
      end
    end
    local piped = spawn("bash", { "-c",
      '"$0" console <(echo "print(6 * 7)")', command })
    assert.equal("42\n", succeeds(piped).out)
  end)

  it("never reports success for a policy that ends the process", function()
    fails(2, "exit1.lua:3: os.exit is not for", cairn { "run",
      policy("exit1", "os.exit(0)") })
    local outcome = cairn { "run", policy("exit2",
      "return { jobs = { a = { run = function() os.exit(true) end } } }") }
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("exit2.lua:3: os.exit is not for", 1, true))
    fails(2, "os.exit is not for", cairn { "export", "--collection",
      write(top .. "/exit.lua", "os.exit(0, true)"), "--to", top .. "/never" })
    assert.equal(7, cairn { "console", "-e", "os.exit(7)" }.code)
  end)

  it("shows the message of a raised table, never its address", function()
    local path = policy("table", "error { code = 'x', message = 'the why' }")
    local outcome = cairn { "run", path }
    fails(2, "table.lua raised: the why", outcome)
    path = write(top .. "/table2.lua", "error {}")
    outcome = cairn { "export", "--collection", path, "--to", top .. "/never" }
    fails(2, "a table without a message was raised", outcome)
    assert.is_nil(outcome.err:find("0x", 1, true))
  end)

  it("refuses what it would ignore, and lists what is valid", function()
    fails(2, "setting file cannot be given", cairn { "run",
      policy("file", "return { jobs = { a = { run = print } } }"), "--set",
      "file=x" })
    local outcome = cairn { "run",
      policy("list", "return { jobs = { a = { rum = print } } }") }
    fails(2, "did you mean 'run'%? %(valid: ", outcome)
    for _, name in ipairs { "select", "on_failure" } do
      assert.is_number(outcome.err:find(name, 1, true), name)
    end
    fails(2, "RunDay must be an integer, not a number beyond all integers",
      cairn { "run", policy("beyond",
        "return { jobs = { a = { run = print, RunDay = 1e300 } } }") })
  end)

  it("refuses two disks with one id, and a bad id", function()
    local disk = "{ id = '%s', path = '/x.raw', format = 'raw' }"
    fails(2, "vda", cairn { "run", policy("bad_twice", "return cairn.policy { "
      .. "jobs = { a = " .. EXPORT:format("/tmp", disk:format "vda" .. ","
      .. disk:format "vda") .. " } }") })
    fails(2, "id", cairn { "run", policy("bad_id", "return cairn.policy { "
      .. "jobs = { a = " .. EXPORT:format("/tmp", disk:format "../x")
      .. " } }") })
  end)

  it("refuses a policy that is missing, and one that is a directory", function()
    fails(2, "nosuch.lua", cairn { "run", top .. "/nosuch.lua" })
    fails(2, "", cairn { "run", top })
  end)

  it("refuses an unknown job with the nearest key, and runs none", function()
    local path = policy("keys", "return cairn.policy { jobs = { nightly = "
      .. "{ run = function() io.stderr:write 'ran' end }, weekly = "
      .. "{ run = print } } }")
    local outcome = cairn { "run", path, "--job", "nightly", "--job", "nigthly" }
    fails(2, "no job nigthly; the nearest is nightly", outcome)
    assert.is_nil(outcome.err:find("ran\n"))
  end)

  it("runs each job once, now, whatever its calendar", function()
    local path = policy("once", [[
      return cairn.policy { jobs = {
        b = { RunStartInterval = "00000000020000.000000:000", RunDay = -1,
              JobRunTimes = 0, run = function(job) print("b") end },
        a = { Name = "first", run = function(job)
          job:progress(50) job:sleep(0.01) print("a", set.x) end },
      } }
    ]])
    local outcome = succeeds(cairn { "run", path, "--set", "x=1=2" })
    assert.equal(1, select(2, outcome.out:gsub("b\n", "")))
    assert.truthy(outcome.out:find("a\t1=2\n", 1, true))
    assert.truthy(outcome.out:find("first: Completed", 1, true))
    outcome = succeeds(cairn { "run", path, "--job", "b" })
    assert.is_nil(outcome.out:find("a\t", 1, true))
  end)

  it("ends with one JSON object for each job, labels or numbers", function()
    local path = policy("json", [[
      return cairn.policy { jobs = {
        a = { Name = "grün \27 \"x\"", run = function() end },
        b = { run = function() error "no luck" end } } }
    ]])
    local outcome = cairn { "run", path, "--json" }
    assert.equal(1, outcome.code, outcome.err)
    local jobs = json_lines(outcome.out)
    assert.equal(2, #jobs)
    assert.equal("Completed", jobs[1].JobState)
    assert.equal("grün \27 \"x\"", jobs[1].Name)
    assert.equal("Exception", jobs[2].JobState)
    assert.truthy(outcome.err:find("no luck", 1, true))
    assert.is_nil(outcome.err:find("\27", 1, true))
    outcome = cairn { "run", path, "--json", "--numbers", "--job", "a" }
    assert.equal(7, json_lines(outcome.out)[1].JobState)
    -- a reader that is not ours
    local python = spawn("python3", { "-c",
      "import json,sys\nfor l in sys.stdin: print(json.loads(l)['JobState'])" },
      { input = outcome.out })
    assert.equal("7\n", succeeds(python).out)
  end)

  it("ends with 1 when a job fails, and runs the others", function()
    local path = policy("fails", [[
      return cairn.policy { jobs = {
        bad = { Name = "the bad one", run = function() error "it broke" end },
        good = { run = function(job) job:sleep(0.05) print "good ran" end } } }
    ]])
    local outcome = cairn { "run", path }
    assert.equal(1, outcome.code)
    assert.truthy(outcome.out:find("good ran", 1, true))
    assert.truthy(outcome.err:find("the bad one: Exception\n.-cairn: the bad one: .-it broke"),
      outcome.err)
  end)

  it("ends with 1 when a source is missing, and says which", function()
    local path = policy("missing", "return cairn.policy { jobs = { a = "
      .. EXPORT:format("' .. set.to .. '",
        "{ id = 'vda', path = '/nosuch/disk.raw', format = 'raw' }") .. " } }")
    local outcome = cairn { "run", path, "--set", "to=" .. top }
    assert.equal(1, outcome.code, outcome.err)
    assert.truthy(outcome.err:find("/nosuch/disk.raw", 1, true), outcome.err)
    assert.truthy(outcome.err:find("vda", 1, true))
    assert.truthy(outcome.err:find("to do: ", 1, true))
    for _, file in ipairs(files_under(top .. "/never")) do
      assert.is_nil(file:find("manifest.json", 1, true))
    end
  end)

  it("survives an error in a policy's own luv callback", function()
    local path = policy("callback", [[
      local uv = require "luv"
      return cairn.policy { jobs = { a = { run = function(job)
        local timer = uv.new_timer()
        timer:start(1, 0, function() timer:close() error "oops" end)
        job:sleep(0.1)
        print "went on"
      end } } }
    ]])
    local outcome = cairn { "run", path }
    assert.truthy(outcome.err:find("uncaught error in a callback: .-oops"),
      outcome.err)
    assert.truthy(outcome.out:find("went on", 1, true))
    assert.equal(1, outcome.code)
  end)

  it("terminates a job that asks when nobody can answer", function()
    local path = policy("asks", [[
      return cairn.policy { jobs = { a = { Name = "curious",
        run = function(job)
          print(job:ask { question = "Really?", choices = { "yes", "no" } })
        end } } }
    ]])
    local outcome = cairn { "run", path }
    assert.equal(1, outcome.code, outcome.err)
    assert.truthy(outcome.err:find(
      "curious asks: Really%? %(yes, no%)\n.-not a terminal"), outcome.err)
    assert.truthy(outcome.err:find("Terminated", 1, true))
  end)

  for _, signal in ipairs { "sigint", "sigterm", "sighup" } do
    it("terminates the jobs in order on " .. signal:upper(), function()
      local path = policy("long", [[
        return cairn.policy { jobs = { a = { run = function(job)
          local tidy <close> = setmetatable({}, { __close = function()
            print "tidied" end })
          io.stderr:write "started\n"
          while true do job:sleep(0.05) end
        end } } }
      ]])
      local is_sent = false
      local outcome = cairn({ "run", path }, { on_stderr = function(all, kill)
        if not is_sent and all:find("started\n", 1, true) then
          is_sent = true
          kill(signal)
        end
      end })
      assert.equal(1, outcome.code, outcome.err)
      assert.equal(0, outcome.signal)
      assert.truthy(outcome.err:find(signal:upper()
        .. ": ending the jobs in order", 1, true), outcome.err)
      assert.truthy(outcome.err:find("a: Terminated", 1, true), outcome.err)
      assert.truthy(outcome.out:find("tidied", 1, true))
    end)
  end

  it("kills the jobs at the second SIGINT", function()
    local path = policy("stubborn", [[
      return cairn.policy { jobs = { a = { run = function(job)
        io.stderr:write "started\n"
        while true do pcall(job.sleep, job, 0.02) end
      end } } }
    ]])
    local sent = 0
    local outcome = cairn({ "run", path }, { on_stderr = function(all, kill)
      if (sent == 0 and all:find("started\n", 1, true))
        or (sent == 1 and all:find("ending the jobs", 1, true)) then
        sent = sent + 1
        kill "sigint"
      end
    end })
    assert.equal(1, outcome.code, outcome.err)
    assert.equal(0, outcome.signal)
    assert.truthy(outcome.err:find("killing the jobs", 1, true), outcome.err)
    assert.truthy(outcome.err:find("a: Killed", 1, true), outcome.err)
  end)

  it("with --dry-run checks and plans, and writes nothing", function()
    local dir = mkdir(top .. "/dry")
    make_farm(dir)
    local path = write(dir .. "/policy.lua", [[
      local set = ...
      local cairn = require "cairn"
      return cairn.policy { jobs = { a = { Name = "dry one",
        export = { directory = set.to, collection = dofile(set.farm) } },
        b = { run = function() error "never" end } } }
    ]])
    local before = files_under(dir)
    local arguments = { "run", path, "--dry-run", "--set", "to=" .. dir .. "/out",
      "--set", "farm=" .. dir .. "/farm.lua" }
    local outcome = succeeds(cairn(arguments))
    assert.truthy(outcome.out:find("dry one would run:", 1, true))
    assert.same(before, files_under(dir))
    assert.is_false(exists(dir .. "/out"))
    arguments[#arguments + 1] = "--json"
    local plans = json_lines(succeeds(cairn(arguments)).out)
    assert.equal(2, #plans)
    assert.equal("dry one", plans[1].Name)
    assert.same(before, files_under(dir))
  end)
end)

-- ---- export, points, verify, restore ------------------------------------------------

describe("an export", function()
  local dir, out, point, id

  setup(function()
    dir = mkdir(top .. "/farm")
    make_farm(dir)
    out = dir .. "/backup"
  end)

  it("is made from a collection file, paths relative to it", function()
    local outcome = succeeds(cairn({ "export", "--collection", "farm/farm.lua",
      "--to", "farm/backup", "--json", "--name", "by hand" }, { cwd = top }))
    local job = json_lines(outcome.out)[1]
    assert.equal("Completed", job.JobState)
    assert.equal("by hand", job.Name)
    id = job.ReferencePointGroupId
    point = out .. "/" .. id
    assert.is_true(exists(point .. "/manifest.json"))
    assert.equal(2, #job.VirtualMachineId)
    assert.equal(3, #job.ExportedDisks)
  end)

  it("has the content of its sources, says qemu-img", function()
    for _, case in ipairs { { "a.qcow2", VM1, "vda" }, { "c.qcow2", VM2, "vda" } } do
      local file = ("%s/%s/%s.qcow2"):format(point, case[2], case[3])
      run("qemu-img", "check", "-q", file)
      run("qemu-img", "compare", dir .. "/" .. case[1], file)
    end
  end)

  it("is listed by points", function()
    local outcome = succeeds(cairn { "points", out })
    assert.truthy(outcome.out:find("^ID +TIME"))
    assert.truthy(outcome.out:find(id:gsub("%-", "%%-") .. "  %d+%-%d%d%-%d%d .-  1 +2 +3 "))
    local points = json_lines(succeeds(cairn { "points", out, "--json" }).out)
    assert.equal(1, #points)
    assert.equal(id, points[1].ReferencePointGroupId)
    assert.equal("7E1B8F0A-95C1-4D43-8E0B-3D3B6A1C5F01", points[1].CollectionId)
    assert.equal(1, points[1].sequence)
    assert.truthy(points[1].time:find("^%d+%.%d+[+-]%d%d%d$"))
    assert.truthy(points[1].directory:sub(-#id) == id)
  end)

  it("is verified, all of it, one point, a prefix, to every depth", function()
    succeeds(cairn { "verify", out })
    succeeds(cairn { "verify", point .. "/" })
    succeeds(cairn { "verify", out .. "/" .. id:sub(1, 4):lower() })
    for _, depth in ipairs { "set", "chain", "content" } do
      local outcome = succeeds(cairn { "verify", point, "--depth", depth,
        "--json" })
      assert.equal(1, #json_lines(outcome.out))
    end
  end)

  it("is compared with its sources by verify --source", function()
    succeeds(cairn { "verify", point, "--source", dir .. "/farm.lua" })
  end)

  it("is restored raw, to the last byte, and as qcow2", function()
    local to = dir .. "/raw"
    succeeds(cairn { "restore", out .. "/" .. id:sub(1, 6), "--to", to })
    run("cmp", dir .. "/a.raw", find_file(to, VM1, "/vda.raw"))
    run("cmp", dir .. "/b.raw", find_file(to, VM1, "/vdb.raw"))
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", dir .. "/c.qcow2",
      find_file(to, VM2, "/vda.raw"))
    for _, case in ipairs { { "one.xml", VM1 }, { "one.save", VM1 },
      { "two.vars", VM2 } } do
      run("cmp", dir .. "/" .. case[1], find_file(to, case[2], case[1]))
    end
    local only = dir .. "/only"
    succeeds(cairn { "restore", point, "--to", only, "--vm", "two", "--disk",
      "vda", "--format", "qcow2", "--json" })
    run("qemu-img", "compare", dir .. "/c.qcow2",
      find_file(only, VM2, "/vda.qcow2"))
    for _, path in ipairs(files_under(only)) do
      assert.is_nil(path:find(VM1, 1, true))
    end
  end)

  it("never restores over what exists unless asked", function()
    local to = dir .. "/raw"
    local file = find_file(to, VM1, "/vda.raw")
    write(file, "mine")
    local outcome = cairn { "restore", point, "--to", to }
    assert.equal(1, outcome.code, outcome.err)
    assert.truthy(outcome.err:find("exists", 1, true), outcome.err)
    assert.equal("mine", read(file))
    succeeds(cairn { "restore", point, "--to", to, "--overwrite" })
    run("cmp", dir .. "/a.raw", file)
  end)

  it("cannot be compared with sources when it is one of several", function()
    local two = dir .. "/two"
    run("cp", "-a", out, two)
    succeeds(cairn { "export", "--collection", dir .. "/farm.lua", "--to", two })
    fails(2, "one point must be named; .*/two holds 2", cairn { "verify", two,
      "--source", dir .. "/farm.lua" })
  end)

  it("needs the directory that the export directory is to be in", function()
    local arguments = { "export", "--collection", dir .. "/farm.lua", "--to",
      dir .. "/no/where", "--dry-run" }
    fails(2, "would be in does not exist", cairn(arguments))
    arguments[#arguments] = nil
    local outcome = cairn(arguments)
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("would be in does not exist", 1, true))
    assert.is_false(exists(dir .. "/no"))
  end)

  it("that --dry-run knows to fail ends it with another exit code", function()
    local outcome = cairn { "restore", point, "--to", dir .. "/raw",
      "--dry-run" }
    assert.equal(2, outcome.code, outcome.err)
    assert.truthy(outcome.err:find(
      "would fail: .*vd.%.raw exists.*%-%-overwrite"), outcome.err)
    succeeds(cairn { "restore", point, "--to", dir .. "/raw", "--dry-run",
      "--overwrite" })
  end)

  it("with --dry-run restores nothing", function()
    succeeds(cairn { "restore", point, "--to", dir .. "/dry", "--dry-run" })
    assert.is_false(exists(dir .. "/dry"))
    succeeds(cairn { "export", "--collection", dir .. "/farm.lua", "--to",
      dir .. "/dry", "--dry-run", "--json" })
    assert.is_false(exists(dir .. "/dry"))
  end)

  it("goes raw and by other digests too", function()
    local to = dir .. "/other"
    succeeds(cairn { "export", "--collection", dir .. "/farm.lua", "--to", to,
      "--format", "raw", "--digest", "sha-256" })
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", dir .. "/a.qcow2",
      find_file(to, VM1, "/vda.raw"))
    succeeds(cairn { "verify", to })
  end)

  it("refuses bad targets before any job", function()
    fails(2, "a point in it is needed", cairn { "restore", out, "--to", dir })
    fails(2, "", cairn { "points", dir .. "/nosuch" })
    fails(2, "", cairn { "points", dir .. "/farm.lua" })
    local no_id = id:sub(1, 1) == "F" and "0000FFFF" or "FFFF0000"
    fails(2, no_id, cairn { "verify", out .. "/" .. no_id })
    fails(2, no_id, cairn { "restore", out .. "/" .. no_id, "--to", dir .. "/x" })
    fails(2, "too short.*4 or more", cairn { "verify",
      out .. "/" .. id:sub(1, 3) })
    fails(2, "no reference point", cairn { "verify", mkdir(dir .. "/empty") })
    assert.is_false(exists(dir .. "/x"))
    fails(2, "there is no directory .*/nosuch\n", cairn { "verify",
      dir .. "/nosuch/" .. id })
    fails(2, "there is no directory nosuch, nor", cairn({ "verify", "nosuch" },
      { cwd = dir }))
    fails(2, "farm.lua is not a directory", cairn { "verify",
      dir .. "/farm.lua" })
    fails(2, "cannot open the collection", cairn { "export", "--collection",
      dir .. "/nosuch.lua", "--to", out })
    write(dir .. "/broken.lua", "return {")
    fails(2, "syntax error.*broken.lua:1", cairn { "export", "--collection",
      dir .. "/broken.lua", "--to", out })
    write(dir .. "/raises.lua", "\nerror 'why'")
    fails(2, "raises.lua:2: why", cairn { "export", "--collection",
      dir .. "/raises.lua", "--to", out })
    write(dir .. "/number.lua", "return 1")
    fails(2, "returns a number", cairn { "export", "--collection",
      dir .. "/number.lua", "--to", out })
    write(dir .. "/key.lua", "return { CollectionID = 'x' }")
    fails(2, "CollectionId", cairn { "export", "--collection",
      dir .. "/key.lua", "--to", out })
  end)

  it("that is damaged fails verify and restore with exit code 1", function()
    local copy = dir .. "/copy"
    run("cp", "-a", out, copy)
    local victim = ("%s/%s/%s/vda.qcow2"):format(copy, id, VM1)
    local content = read(victim)
    local at = #content // 2
    write(victim, content:sub(1, at) .. string.char(content:byte(at + 1) ~ 1)
      .. content:sub(at + 2))
    local outcome = cairn { "verify", copy }
    assert.equal(1, outcome.code, outcome.err .. outcome.out)
    assert.truthy((outcome.err .. outcome.out):find("vda", 1, true))
    outcome = cairn { "verify", copy, "--json" }
    assert.equal(1, outcome.code)
    assert.equal(1, #json_lines(outcome.out))
    outcome = cairn { "restore", copy .. "/" .. id, "--to", dir .. "/no" }
    assert.equal(1, outcome.code, outcome.err)
    assert.truthy(outcome.out:find("not written: [^\n]*/vda%.raw"), outcome.out)
    assert.same({}, (function()
      local left = {}
      for _, path in ipairs(files_under(dir .. "/no")) do
        if path:find("vda.raw", 1, true) and path:find(VM1, 1, true) then
          left[#left + 1] = path
        end
      end
      return left
    end)())
    -- the manifest itself
    local manifest = ("%s/%s/manifest.json"):format(copy, id)
    write(manifest, (read(manifest):gsub('"sequence": ?1', '"sequence": 2', 1)))
    outcome = cairn { "points", copy }
    assert.equal(1, outcome.code, outcome.out)
    assert.truthy(outcome.err ~= "")
    outcome = cairn { "points", copy, "--json" }
    assert.equal(1, outcome.code)
    assert.is_not_nil(json_lines(outcome.out)[1].error)
  end)
end)

-- ---- console --------------------------------------------------------------------------

describe("cairn console", function()
  it("evaluates -e: expressions, statements, several values", function()
    assert.equal(("%q\n"):format(cairn_module.version),
      succeeds(cairn { "console", "-e", "cairn.version" }).out)
    assert.equal("1\n\"two\"\nnil\n{ 3, x = 4 }\n",
      succeeds(cairn { "console", "-e", "1, 'two', nil, { 3, x = 4 }" }).out)
    assert.equal("hello\n2\n", succeeds(cairn { "console", "-e",
      "x = 2 print 'hello'", "-e", "x" }).out)
    assert.same({ { 1 }, { a = 1 } }, json_lines(succeeds(cairn { "console",
      "--json", "-e", "{1}, {a=1}" }).out))
  end)

  it("has a private engine, and chunks that wait", function()
    local outcome = succeeds(cairn { "console", "-e", [[
      local job = assert(engine:submit { Name = "j", run = function(job)
        job:sleep(0.02) job:progress(10) end })
      assert(job:wait(10))
      return job.JobState, job.Name]] })
    assert.equal('"Completed"\n"j"\n', outcome.out)
  end)

  it("prints a job as JSON", function()
    local outcome = succeeds(cairn { "console", "--json", "-e",
      "engine:submit { Name = 'j', run = function() end }" })
    assert.equal("j", json_lines(outcome.out)[1].Name)
  end)

  it("ends with 1 on an error, with a traceback, and goes no further", function()
    local outcome = cairn { "console", "-e", "print 'a'", "-e",
      "local function f() error 'boom' end f()", "-e", "print 'b'" }
    assert.equal(1, outcome.code)
    assert.equal("a\n", outcome.out)
    assert.truthy(outcome.err:find("%(%-e%):1: boom\nstack traceback:"),
      outcome.err)
    assert.is_nil(outcome.err:find("console.lua", 1, true), outcome.err)
  end)

  it("ends with 2 on a syntax error, before anything ran", function()
    fails(2, "%(%-e%):1:", cairn { "console", "-e", "print 'a'", "-e", "x x" })
    fails(2, "bad.lua:1", cairn { "console", write(top .. "/bad.lua", "x x") })
    fails(2, "nosuch.lua", cairn { "console", top .. "/nosuch.lua" })
    fails(2, "", cairn { "console", top })
    fails(2, "do not go together", cairn { "console", "-e", "1", "x.lua" })
  end)

  it("runs a script with its own arguments", function()
    local path = write(top .. "/script.lua", "#!/usr/bin/cairn console\n"
      .. "local a, b = ...\nprint(a, b, arg[0] ~= nil, #arg, engine ~= nil)\n"
      .. "cairn.spawn(function() end)\nreturn 7")
    assert.equal("-x\t--json\ttrue\t2\ttrue\n",
      succeeds(cairn { "console", path, "-x", "--json" }).out)
    local outcome = cairn { "console", write(top .. "/raise.lua",
      "\n\nerror { code = 'x', 'y' }") }
    assert.equal(1, outcome.code)
    assert.truthy(outcome.err:find("code = \"x\"", 1, true), outcome.err)
    assert.equal("5\n", succeeds(cairn({ "console", "-" },
      { input = "print(2 + 3)" })).out)
  end)

  it("takes lines from a pipe, and keeps going after errors", function()
    local outcome = succeeds(cairn({ "console" }, { input = [[
1 + 1
for i = 1, 2 do
  print(i)
end

error "oh"
no such syntax
x = { 1,
  2 }
#x
]] }))
    assert.equal("2\n1\n2\n2\n", outcome.out)
    assert.truthy(outcome.err:find("oh", 1, true))
    assert.truthy(outcome.err:find("syntax error", 1, true))
    assert.equal(1, cairn({ "console" }, { input = "x = {" }).code)
  end)

  it("interrupts a chunk that never ends", function()
    local is_sent = false
    local outcome = cairn({ "console", "-e",
      "io.stderr:write 'go\\n' while true do end" },
      { on_stderr = function(all, kill)
        if not is_sent and all:find("go\n", 1, true) then
          is_sent = true
          kill "sigint"
        end
      end })
    assert.equal(1, outcome.code, outcome.err)
    assert.equal(0, outcome.signal)
    assert.truthy(outcome.err:find("interrupted", 1, true))
  end)
end)

-- ---- on a terminal -------------------------------------------------------------------

local has_terminal = has "python3" and spawn("python3",
  { "-c", "import pty; pty.openpty()" }).code == 0

local function on_terminal(steps, arguments, env)
  local full = { "tests/spec/terminal.py",
    assert(cairn_module.json_encode(steps)), command }
  for _, argument in ipairs(arguments) do full[#full + 1] = argument end
  local outcome = succeeds(spawn("python3", full, {
    env = env or { "TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR=" } }))
  local result = assert(cairn_module.json_decode(outcome.out))
  assert.is_nil(result.missed and cairn_module.json_encode(result.missed)
    .. " not met in:\n" .. result.output)
  return result
end

local terminal_it = has_terminal and it or function(name)
  pending(name .. " # skipped: needs python3 and a pseudo-terminal")
end

describe("on a terminal, cairn", function()
  local slow = [[
    return cairn.policy { jobs = {
      a = { Name = "slow grün", run = function(job)
        for i = 1, 100 do job:progress(i) job:sleep(0.02) end
      end },
      b = { Name = "asks", run = function(job)
        print("it was " .. job:ask { question = "Which?",
          choices = { "red", "blue" } })
      end } } }
  ]]

  terminal_it("draws a bar for each job and leaves the terminal clean",
    function()
      local result = on_terminal({
        { expect = "slow grün .*?\\d+ %" },
        { resize = { 30, 40 } },
        { expect = "slow grün" }, { read = 200 },
        { resize = { 30, 120 } },
        { expect = "slow grün: Completed" },
      }, { "run", policy("slow", slow), "--job", "a" })
      assert.equal(0, result.status, result.output)
      local out = result.output
      assert.truthy(out:find("\27[?25l", 1, true)) -- cursor off ...
      local last_off = out:match(".*()\27%[%?25l")
      local last_on = out:match(".*()\27%[%?25h")
      assert.is_true(last_on > last_off) -- ... and on again
      assert.truthy(out:find("━", 1, true))
      assert.truthy(out:find("\27[32m", 1, true))
      assert.is_true(result.mode)
    end)

  terminal_it("gives the shell its cursor back at Ctrl-Z, and goes on",
    function()
      local result = on_terminal({
        { expect = "slow grün .*?\\d+ %" }, { send = "\26" },
        { expect = "\27\\[\\?25h" }, { stopped = true },
        { signal = "CONT" },
        { expect = "\27\\[\\?25l" }, { expect = "slow grün: Completed" },
      }, { "run", policy("stopped", slow), "--job", "a" })
      assert.equal(0, result.status, result.output)
    end)

  terminal_it("keeps to ASCII without a UTF-8 locale, and NO_COLOR", function()
    local result = on_terminal({ { expect = "\\[=+" } },
      { "run", policy("ascii", (slow:gsub("grün", "green"))), "--job", "a" },
      { "TERM=xterm", "LC_ALL=C", "NO_COLOR=1" })
    assert.equal(0, result.status)
    assert.is_nil(result.output:find("\27[32m", 1, true))
    assert.is_nil(result.output:find("[\x80-\xff]"))
  end)

  terminal_it("writes plain lines when TERM is dumb", function()
    local result = on_terminal({ { expect = "Completed" } },
      { "run", policy("dumb", slow), "--job", "a" }, { "TERM=dumb" })
    assert.equal(0, result.status)
    assert.is_nil(result.output:find("\27", 1, true))
  end)

  terminal_it("asks, refuses a wrong answer, takes the right one", function()
    local result = on_terminal({
      { expect = "asks asks: Which\\? \\(red, blue\\)\r\n> " },
      { send = "green\n" },
      { expect = "\r\n.*\r\n> " },
      { send = "blue\n" },
      { expect = "it was blue" },
    }, { "run", policy("question", slow) })
    assert.equal(0, result.status, result.output)
    assert.is_true(result.mode)
  end)

  terminal_it("terminates the jobs at Ctrl-C, and kills at the second",
    function()
      local stubborn = policy("stubborn2", [[
        return cairn.policy { jobs = { a = { Name = "stubborn",
          run = function(job)
            while true do pcall(job.sleep, job, 0.02) end
          end } } }
      ]])
      local result = on_terminal({
        { expect = "stubborn .*0 %" }, { send = "\3" },
        { expect = "ending the jobs in order" }, { send = "\3" },
        { expect = "killing the jobs" },
      }, { "run", stubborn })
      assert.equal(1, result.status, result.output)
      assert.truthy(result.output:find("\27[?25h", 1, true))
      assert.is_true(result.mode)
    end)

  local function session(env)
    local result = on_terminal({
      { expect = "private engine" }, { expect = "> " },
      { send = "1 + 41\n" }, { expect = "42\r\n.*> " },
      { send = "function f(x)\n" }, { expect = ">> " },
      { send = "return x * 2 end\n" }, { expect = "> " },
      { send = "f(21.5)\n" }, { expect = "43.0\r\n.*> " },
      { send = "error 'bad'\n" },
      { expect = "\\(console\\):1: bad.*> " },
      { send = "j = engine:submit { Name = 'j', run = function(job) "
        .. "job:sleep(0.01) end }\n" }, { expect = "> " },
      { send = "j:wait(5) and j.JobState\n" },
      { expect = "\"Completed\"\r\n.*> " },
      { send = "print(6 * 7) while true do end\n" }, { expect = "42\r\n" },
      { send = "\3" }, { expect = "interrupted.*> " },
      { send = "'still ' .. 'here'\n" }, { expect = "\"still here\"" },
      { expect = "> " }, { send = "half a li\3" }, { expect = "> " },
      { send = "7 * 7\n" }, { expect = "49\r\n.*> " },
      { send = "\4" },
    }, { "console" }, env)
    assert.equal(0, result.status, result.output)
    assert.is_true(result.mode)
  end

  terminal_it("has a console that outlives errors and Ctrl-C", function()
    session { "TERM=xterm", "LC_ALL=C.UTF-8" }
  end)

  terminal_it("has the same console on a terminal that can do nothing", function()
    session { "TERM=dumb", "LC_ALL=C.UTF-8" }
  end)
end)
