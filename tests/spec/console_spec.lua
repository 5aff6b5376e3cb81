-- cairn console through a real terminal, on a private engine, attached to a real
-- service, and against servers that refuse, hang, flood and go away.

local uv = require "luv"
local cairn = require "cairn"
local client = require "cairn.client"
local support = _G.support

local command = assert(uv.fs_realpath(support.build .. "/bin/cairn"))
local top, remove = support.directory()

-- The environment of a console: no service but what a test gives it.
local function environment(extra)
  local all = { TERM = "xterm", LC_ALL = "C.UTF-8", XDG_STATE_HOME = top
    .. "/state", CAIRN_SOCKET = top .. "/none.sock", NO_COLOR = "1" }
  for _, name in ipairs { "PATH", "HOME", "TMPDIR", "LD_PRELOAD",
    "ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS" } do
    all[name] = os.getenv(name)
  end
  for name, value in pairs(extra or {}) do all[name] = value end
  local list = {}
  for name, value in pairs(all) do list[#list + 1] = name .. "=" .. value end
  return list
end

local has_terminal = support.run { "python3", "-c",
  "import pty; pty.openpty()" } == 0
local terminal_it = has_terminal and it or function(name)
  pending(name .. " # skipped: needs python3 and a pseudo-terminal")
end

-- Plays steps; text is typed, "?..." waited for (a pattern of Python's).
local function play(steps, arguments, env)
  local list = {}
  for i, step in ipairs(steps) do
    if type(step) == "table" then
      list[i] = step
    elseif step:sub(1, 1) == "?" then
      -- raw mode leaves it to the terminal's driver to add one more return
      list[i] = { expect = (step:sub(2):gsub("\r\n", "\\r+\n")) }
    else
      list[i] = { send = step }
    end
  end
  local argv = { "python3", "tests/spec/terminal.py",
    assert(cairn.json_encode(list)), command, "console" }
  for _, argument in ipairs(arguments or {}) do argv[#argv + 1] = argument end
  local code, _, out = support.run(argv, { env = environment(env) })
  assert.equal(0, code, out)
  local result = assert(cairn.json_decode(out))
  assert.is_nil(result.missed and cairn.json_encode(result.missed)
    .. " not met in:\n" .. result.output)
  assert.is_true(result.mode, "the terminal was left in another mode")
  return result
end

local function run(arguments, env)
  local argv = { command, "console" }
  for _, argument in ipairs(arguments) do argv[#argv + 1] = argument end
  return support.run(argv, { env = environment(env) })
end

-- ---- servers ------------------------------------------------------------------------

local services = {}

-- A service of its own: the path of its socket, and how to end it.
local count = 0
local function service()
  count = count + 1
  local path = ("%s/%d/cairn.sock"):format(top, count)
  local ended
  local process, pid = assert(uv.spawn(command, { args = { "serve", "--store",
    ":memory:", "--socket", path }, stdio = { nil, nil, nil },
    env = environment() }, function() ended = true end))
  services[#services + 1] = { pid = pid, is_over = function() return ended end,
    process = process }
  local deadline = uv.hrtime() + 10e9
  while true do
    local c, message = client.connect(uv, path)
    if c then
      c:close()
      break
    end
    assert(uv.hrtime() < deadline, message)
    local timer, is_over = uv.new_timer(), false
    timer:start(20, 0, function() is_over = true end)
    while not is_over do uv.run "once" end
    timer:close()
  end
  local function stop(signal)
    if not ended then uv.kill(pid, signal or "sigterm") end
    while not ended do uv.run "once" end
    if not process:is_closing() then process:close() end
    uv.run "nowait"
  end
  services[#services].stop = stop
  return path, stop, pid
end

-- A server of this process: answer(connection, request) for all but hello.
local function fake(answer, level)
  count = count + 1
  local path = ("%s/%d.sock"):format(top, count)
  local server, open = assert(uv.new_pipe(false)), {}
  assert(server:bind(path))
  assert(server:listen(8, function()
    local pipe = assert(uv.new_pipe(false))
    server:accept(pipe)
    open[#open + 1] = pipe
    local connection, rest = { pipe = pipe }, ""
    function connection.send(t)
      if not pipe:is_closing() then
        pipe:write(assert(cairn.json_encode(t)) .. "\n")
      end
    end
    pipe:read_start(function(err, data)
      if err or not data then return pipe:close() end
      rest = rest .. data
      for line in rest:gmatch "(.-)\n" do
        local request = assert(cairn.json_decode(line))
        if request.call == "hello" then
          connection.send { id = request.id, result = { version = "9",
            level = level or "admin", pid = 1, store = "\27[2Jx" } }
        else
          answer(connection, request)
        end
      end
      rest = rest:match "[^\n]*$"
    end)
  end))
  return path, function()
    for _, pipe in ipairs(open) do
      if not pipe:is_closing() then pipe:close() end
    end
    server:close()
    uv.run "nowait"
  end
end

teardown(function()
  for _, s in ipairs(services) do s.stop "sigkill" end
  remove()
end)

-- ---- on both engines -------------------------------------------------------------------

local UP, LEFT = "\27[A", "\27[D"
local function paste(s) return "\27[200~" .. s .. "\27[201~" end

for _, kind in ipairs { "private", "attached" } do
  describe("the console on a terminal, " .. kind, function()
    local env, stop
    setup(function()
      if kind == "attached" then
        local path
        path, stop = service()
        env = { CAIRN_SOCKET = path }
      end
    end)
    teardown(function() if stop then stop() end end)

    terminal_it("takes what is typed, edited and recalled", function()
      local banner = kind == "private" and "?a private engine, in memory"
        or "?attached to the service at .*process"
      local result = play({ banner, "?> ", "1 + 41\r", "?42\r\n.*> ",
        "0 + 1" .. LEFT .. LEFT .. LEFT .. LEFT .. LEFT .. "\4" .. "6" .. "\r",
        "?7\r\n.*> ", UP .. UP .. "\5 + 1\r", "?43\r\n.*> ",
        "'grün 中' .. 1\r", "?\"grün 中1\"\r\n.*> ",
        "it\r", "?\"grün 中1\"\r\n.*> ",
        "x = 5 print 'printed'\r", "?printed\r\n.*> ",
        "error 'bad'\r", "?\\(console\\):1: bad.*> ",
        "no such syntax\r", "?\\(console\\):1: syntax error.*> ",
        "half a li\3", "?\\^C\r\n.*> ", "x\r", "?5\r\n.*> ", "\4" }, {}, env)
      assert.equal(0, result.status, result.output)
      assert.is_nil(result.output:find("console.lua", 1, true))
      assert.is_nil(result.output:find("evaluator.lua", 1, true))
    end)

    terminal_it("keeps the history from start to start", function()
      local marker = kind .. " 中"
      local result = play({ "?> ", ("'%s'\r"):format(marker),
        "?\"" .. marker .. "\"\r\n.*> ", " 'secret'\r", "?secret.*> ",
        "{ 1,\r", "?>> ", "2 }\r", "?{ 1, 2 }\r\n.*> ", "\4" }, {}, env)
      assert.equal(0, result.status)
      result = play({ "?> ", UP, "?{ 1,\r\n>> 2 }", "\3", "?> ",
        "\18" .. kind .. " ", "?search '" .. kind .. " ': '" .. marker,
        "\r", "?\"" .. marker .. "\"\r\n.*> ", "\4" }, {}, env)
      assert.equal(0, result.status)
      local path = top .. "/state/cairn/history"
      assert.equal(tonumber("600", 8), uv.fs_stat(path).mode & 511)
      assert.is_nil(support.read(path):find("secret", 1, true))
    end)

    terminal_it("completes with Tab", function()
      play({ "?> ", "special_name = { 1, 2, 3 }\r", "?> ", "#speci\t",
        "?special_name", "\r", "?3\r\n.*> ", "engine:jo\t\t", "?job *jobs\r\n",
        "s()\r", "?{}\r\n.*> ", "j = engine:submit { Name = 'j', run = "
        .. "function() end } return j:wait()\r", "?Completed.*> ",
        "j.JobSta\te\r", "?\"Completed\"\r\n.*> ",
        "help 'engine:subm\t'\r", "?engine:submit\\(.*> ", "\4" }, {}, env)
    end)

    terminal_it("takes chunks of several lines", function()
      play({ "?> ", "for i = 1, 3 do\r", "?>> ", "print(i * 11)\r", "?>> ",
        "end\r", "?11\r\n22\r\n33\r\n.*> ", "if true then\r", "?>> ", "\3",
        "?> ", "1 +\r", "?>> ", "1\r", "?2\r\n.*> ",
        "return 1,\27\r2\r", "?1\r\n2\r\n.*> ", "\4" }, {}, env)
    end)

    terminal_it("ends a chunk with Ctrl-C, and not the engine", function()
      local result = play({ "?> ", "y = 1\r", "?> ",
        "print 'go' while true do pcall(error) end\r", "?go\r\n", "\3",
        "?interrupted.*> ", "print 'wait' cairn.sleep(100)\r", "?wait\r\n",
        "\3", "?interrupted.*> ", "engine:submit { Name = 'w', run = "
        .. "function(job) print 'job' job:sleep(100) end }:wait()\r",
        "?job\r\n", "\3", "?interrupted.*> ", "while true do end\r\3",
        "\3", "?interrupted.*> ", "y\r", "?1\r\n.*> ", "\4" }, {}, env)
      assert.equal(0, result.status)
    end)

    terminal_it("tells events above the line that is typed", function()
      local result = play({ "?> ", "cairn.spawn(function() cairn.sleep(0.3) "
        .. "engine:submit { Name = 'nightly', run = function() "
        .. "error 'oh' end } end) return 1\r", "?1\r\n.*> ",
        "6 * ", "?nightly \\([0-9A-F]{8}\\): Running",
        "?nightly \\([0-9A-F]{8}\\): run 1 failed: ",
        "?nightly \\([0-9A-F]{8}\\): Exception\r\n> 6 \\* ",
        "7\r", "?42\r\n.*> ", "\4" }, {}, env)
      assert.equal(0, result.status)
      result = play({ "?> ", "engine:submit { Name = 'silent', run = "
        .. "function() cairn.sleep(0.1) end }:wait()\r",
        "?Completed.*> ", "'e' .. 'nd'\r", "?end.*> ", "\4" },
        { "--no-events" }, env)
      assert.is_nil(result.output:find("silent (", 1, true))
    end)

    terminal_it("takes a paste of 1,000 lines as one chunk", function()
      local lines = { "sum = 0" }
      for i = 2, 999 do lines[i] = ("sum = sum + %d -- ünd"):format(i) end
      lines[1000] = "print('sum', sum)"
      local result = play({ "?> ", paste(table.concat(lines, "\r") .. "\r"),
        "?print\\('sum', sum\\)", "\r", "?sum *\t?499499\r\n.*> ", UP,
        "?print\\('sum'", "\3", "?> ", "\4" }, {}, env)
      assert.equal(0, result.status)
    end)

    terminal_it("takes lines of a paste that are no chunk one by one",
      function()
        play({ "?> ", paste "a = 20\r\ra + 1\rfor i = 1, 2 do\rprint(i)\rend",
          "?>> end", "\r", "?21\r\n1\r\n2\r\n.*> ",
          paste "b = 1\rno such\rb = 2\r", "?b = 2", "\r",
          "?syntax error.*> ", "b\r", "?1\r\n.*> ", "\4" }, {}, env)
      end)

    terminal_it("takes lines that come faster than they are worked on",
      function()
        local lines = {}
        for i = 1, 100 do lines[i] = ("n = %d"):format(i) end
        lines[101] = "print('n is', n)"
        play({ "?> ", table.concat(lines, "\r") .. "\r", "?n is *\t?100\r\n.*> ",
          "\4" }, {}, env)
      end)

    terminal_it("lives through resizes, narrow terminals and wide characters",
      function()
        local wide = ("中文"):rep(20)
        local result = play({ "?> ", { resize = { 10, 20 } },
          "'" .. wide .. "'", "?'", { resize = { 5, 8 } }, "?中",
          LEFT .. LEFT .. "X", "?X", { resize = { 24, 80 } }, "?X",
          "\r", "?\"" .. ("中文"):rep(19) .. "中X文\"", "?> ", "\4" }, {}, env)
        assert.equal(0, result.status)
      end)

    terminal_it("does without a terminal's capabilities", function()
      local dumb = { TERM = "dumb" }
      for name, value in pairs(env or {}) do dumb[name] = value end
      local result = play({ "?> ", "1 + 41\n", "?42\r\n> ",
        "for i = 1, 2 do\n", "?>> ", "print(i)\n", "?>> ", "end\n",
        "?1\r\n2\r\n> ", "print 'go' while true do end\n", "?go\r\n", "\3",
        "?interrupted\r\n> ", "half\3", "?> ", "7 * 7\n", "?49\r\n> ",
        "engine:submit { Name = 'ev', run = function() end }:wait()\n",
        "?Completed.*> ", "cairn.sleep(0.2)\n", "?> ", "\4" }, {}, dumb)
      assert.equal(0, result.status, result.output)
      assert.is_nil(result.output:find("\27", 1, true))
      assert.truthy(result.output:find("ev %(%x+%): Completed"))
    end)

    terminal_it("gives the terminal back at Ctrl-Z, and goes on", function()
      play({ "?> ", "1 + ", "?1 \\+ ", "\26", { stopped = true },
        { signal = "CONT" }, "?> 1 \\+ ", "2\r", "?3\r\n.*> ", "\4" }, {}, env)
    end)

    terminal_it("ends with 1 at SIGTERM, at a prompt and in a chunk", function()
      assert.equal(1, play({ "?> ", { signal = "TERM" } }, {}, env).status)
      assert.equal(1, play({ "?> ", "print 'go' while true do end\r", "?go\r\n",
        { signal = "TERM" } }, {}, env).status)
    end)

    it("evaluates -e, with exit codes", function()
      local arguments = kind == "attached" and { "--socket", env.CAIRN_SOCKET }
        or {}
      local function with(...)
        local all = table.move(arguments, 1, #arguments, 1, {})
        for _, argument in ipairs { ... } do all[#all + 1] = argument end
        return run(all, env)
      end
      local code, _, out = with("-e", "v = 6 return 1, 'two'", "-e",
        "print(v)", "-e", "v * 7")
      assert.equal(0, code)
      assert.equal('1\n"two"\n6\n42\n', out)
      code, _, out = with("-e", "print 'a'", "-e", "error 'boom'", "-e",
        "print 'b'")
      assert.equal(1, code)
      assert.truthy(out:find "^a\n" and out:find "boom\n"
        and not out:find "b\n$", out)
      code, _, out = with("-e", "print 'a'", "-e", "x x")
      assert.equal(2, code)
      assert.truthy(out:find "^cairn: syntax error: %(%-e%):1:", out)
      code, _, out = with("--json", "-e", "{ a = 'b\"' }, nil, { 1 }, engine")
      assert.equal(0, code, out)
      local lines = {}
      for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
      assert.same({ a = 'b"' }, cairn.json_decode(lines[1]))
      assert.equal("null", lines[2])
      assert.equal("[1]", lines[3])
      assert.truthy(lines[4]:find '^"cairn.engine')
    end)

    it("runs a file with its arguments", function()
      local path = support.write(top .. "/script.lua", "#!/usr/bin/cairn\n"
        .. "local a, b = ...\nprint(a, b, #arg, engine ~= nil)\nreturn 7\n")
      local arguments = kind == "attached" and { "--socket", env.CAIRN_SOCKET }
        or {}
      local function with(...)
        local all = table.move(arguments, 1, #arguments, 1, {})
        for _, argument in ipairs { ... } do all[#all + 1] = argument end
        return run(all, env)
      end
      local code, _, out = with(path, "-x", "two \"words\"\n")
      assert.equal(0, code, out)
      assert.truthy(out:gsub("%s+", " "):find('^%-x two "words" 2 true $'), out)
      code, _, out = with(support.write(top .. "/raise.lua", "\n\nerror 'oh'"))
      assert.equal(1, code)
      assert.truthy(out:find ":3: oh", out)
      code, _, out = with(support.write(top .. "/bad.lua", "x x"))
      assert.equal(2, code)
      assert.truthy(out:find "bad.lua:1", out)
      code, _, out = with(top .. "/none.lua")
      assert.equal(2, code)
      assert.truthy(out:find "none.lua", out)
    end)
  end)
end

describe("the console's terminal", function()
  terminal_it("is a chunk's to read from, and a program's", function()
    local result = play({ "?> ", "print 'go' return io.read()\r", "?go\r\n",
      "typed\n", "?\"typed\"\r\n.*> ", "os.execute 'echo go; head -n 1'\r",
      "?go\r\n", "more\n", "?more\r\nmore\r\n.*> ", "1 + 41\r", "?42\r\n.*> ",
      "\4" })
    assert.equal(0, result.status)
  end)

  terminal_it("may be slow, and is shown everything", function()
    local result = play({ "?> ", "for i = 1, 400 do print(('x'):rep(1000)) end "
      .. "print 'end'\r", { pause = 1 }, "?end\r\n.*> ", "\4" })
    local shown = select(2, result.output:gsub(("x"):rep(1000), ""))
    assert.equal(400, shown)
  end)
end)

-- ---- where it attaches ------------------------------------------------------------------

describe("the console and the service", function()
  it("attaches to the default socket only at a prompt", function()
    local path, stop = service()
    local code, _, out = run({ "-e", "own = 1 return #engine:jobs()" },
      { CAIRN_SOCKET = path })
    assert.equal(0, code)
    assert.equal("0\n", out)
    local argv = { "sh", "-c", 'echo "engine:submit { Name = \'kept\', run = '
      .. 'function() end } return 5" | "$0" console "$@"', command }
    code, _, out = support.run(argv,
      { env = environment { CAIRN_SOCKET = path } })
    assert.equal(0, code)
    assert.truthy(out:find("attached to the service at " .. path, 1, true))
    code, _, out = run({ "--socket", path, "-e", "engine:jobs()[1].Name, own" })
    assert.equal(0, code)
    assert.equal('"kept"\nnil\n', out)
    argv[#argv + 1] = "--private"
    code, _, out = support.run(argv,
      { env = environment { CAIRN_SOCKET = path } })
    assert.equal(0, code)
    assert.truthy(out:find("a private engine, in memory", 1, true), out)
    stop()
  end)

  it("says why it cannot attach", function()
    local code, _, out = run { "--socket", top .. "/none.sock", "-e", "1" }
    assert.equal(3, code)
    assert.truthy(out:find "none.sock: nothing is there", out)
    code, _, out = run { "--socket", "none.sock", "-e", "1" }
    assert.equal(3, code)
    assert.truthy(out:find(uv.cwd() .. "/none.sock: nothing", 1, true), out)
    code, _, out = run { "--socket", top .. "/none.sock", "--private" }
    assert.equal(2, code)
    assert.truthy(out:find "do not go together", out)
    local path, stop = fake(function() end, "read-only")
    code, _, out = run { "--socket", path, "-e", "1" }
    assert.equal(3, code)
    assert.truthy(out:find "you may only read there", out)
    stop()
  end)

  it("keeps the globals of several apart, and one's loop from others", function()
    local path, stop = service()
    local busy = {}
    for i = 1, 3 do
      local process, pid = assert(uv.spawn(command, { args = { "console",
        "--socket", path, "-e", "mine = " .. i .. " while true do end" },
        stdio = {}, env = environment() }, function() end))
      busy[i] = { process = process, pid = pid }
    end
    local t0 = uv.hrtime()
    for _ = 1, 3 do
      local code, _, out = run { "--socket", path, "-e", "mine, 1 + 1" }
      assert.equal(0, code, out)
      assert.equal("nil\n2\n", out)
    end
    assert.is_true((uv.hrtime() - t0) / 1e9 < 10)
    -- a client that is killed takes its chunk with it
    for _, b in ipairs(busy) do
      uv.kill(b.pid, "sigkill")
      b.process:close()
    end
    local c = assert(client.connect(uv, path))
    local deadline = uv.hrtime() + 10e9
    local turns
    repeat
      turns = assert(c:request { eval = "local n = 0 for _ in "
        .. "pairs(require 'cairn.core'.state(engine).background) do "
        .. "n = n + 1 end return n" }).values[1]
    until turns == "1" or uv.hrtime() > deadline
    assert.equal("1", turns)
    c:close()
    stop()
  end)

  it("ends the chunk in the service when -e is interrupted", function()
    local path, stop = service()
    local out, code = {}, nil
    local pipes = { uv.new_pipe(false), uv.new_pipe(false) }
    local process, pid
    process, pid = assert(uv.spawn(command, { args = { "console", "--socket",
      path, "-e", "print 'go' while true do end" },
      stdio = { nil, pipes[1], pipes[2] }, env = environment() },
      function(c) code = c end))
    for _, pipe in ipairs(pipes) do
      pipe:read_start(function(_, data)
        if not data then return pipe:close() end
        out[#out + 1] = data
        if data:find "go" then uv.kill(pid, "sigint") end
      end)
    end
    while not code or not pipes[2]:is_closing() do uv.run "once" end
    process:close()
    assert.equal(1, code)
    assert.truthy(table.concat(out):find "cairn: interrupted")
    local c = assert(client.connect(uv, path))
    assert.equal("2", c:request { eval = "1 + 1" }.values[1])
    c:close()
    stop()
  end)

  terminal_it("leaves with 3 when the service goes away", function()
    local path, stop, pid = service()
    local result = play({ "?> ", ("print 'dying' require 'luv'.kill(%d, "):format(pid)
      .. "'sigkill')\r", "?the server went away" }, {}, { CAIRN_SOCKET = path })
    assert.equal(3, result.status, result.output)
    stop()
    local again, stop_again, second = service()
    result = play({ "?> ", "half", ("\3cairn.spawn(function() cairn.sleep(0.1) "
      .. "require 'luv'.kill(%d, 'sigkill') end) return 1\r"):format(second),
      "?1\r\n", "typed", "?the server went away" }, {},
      { CAIRN_SOCKET = again })
    assert.equal(3, result.status, result.output)
    stop_again()
  end)

  terminal_it("gives up a chunk that the service does not end, at the second "
    .. "Ctrl-C", function()
    local path, stop = fake(function(connection, request)
      if request.eval == "hang" then
        connection.send { id = request.id, output = "hanging\n" }
      elseif request.eval then
        connection.send { id = request.id,
          result = { values = { "\27[2Jalive" } } }
      end
    end)
    local result = play({ "?> ", "hang\r", "?hanging\r\n", "\3\3",
      "?has not ended the chunk.*> ", "x\r", "?x1b\\[2Jalive\r\n.*> ", "\4" },
      {}, { CAIRN_SOCKET = path })
    assert.equal(0, result.status)
    assert.is_nil(result.output:find("\27[2J", 1, true))
    stop()
  end)

  terminal_it("stays usable under a flood of events and output", function()
    local path, stop = fake(function(connection, request)
      if request.call == "events" then
        for i = 1, 5000 do
          connection.send { event = { name = "JobState", JobState = "Running",
            InstanceID = ("Cairn:%08X-x"):format(i), time = i } }
        end
        connection.send { id = request.id, result = {} }
      elseif request.call == "show" then
        connection.send { id = request.id, result = { job = {
          Name = "evil\27[2J" } } }
      elseif request.eval then
        for _ = 1, request.eval == "f()" and 1000 or 0 do
          connection.send { id = request.id, output = ("x"):rep(100) .. "\n" }
        end
        connection.send { id = request.id, result = { values = { "done" } } }
        if request.eval == "f()" then return end
        local timer = uv.new_timer()
        timer:start(300, 0, function()
          timer:close()
          connection.send { event = { name = "JobState", time = 1,
            JobState = "Completed", InstanceID = "Cairn:00000001-x" } }
        end)
      elseif request.complete then
        connection.send { id = request.id, result = {} }
      end
    end)
    local result = play({ "?> ", "?and \\d+ more events", "f()\r",
      "?done\r\n.*> ", "g()\r", "?done\r\n.*> .*evil\\\\x1b\\[2J \\(00000001\\): Completed", "\4" }, {},
      { CAIRN_SOCKET = path })
    assert.equal(0, result.status)
    assert.is_nil(result.output:find("\27[2J", 1, true))
    stop()
  end)

  terminal_it("keeps apart two consoles at once", function()
    local path, stop = service()
    local c = assert(client.connect(uv, path))
    local seen = {}
    c:on_output(function(text) seen[#seen + 1] = text end)
    assert.same({ "nil" }, c:request { eval = "z" }.values)
    play({ "?> ", "z = 9 print 'to the terminal'\r",
      "?to the terminal\r\n.*> ", "z\r", "?9\r\n.*> ", "\4" }, {},
      { CAIRN_SOCKET = path })
    assert.same({ "nil" }, c:request { eval = "z" }.values)
    assert.same({}, seen)
    c:close()
    stop()
  end)
end)
