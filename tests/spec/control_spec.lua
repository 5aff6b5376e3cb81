-- The control socket of an engine: who may connect, what is answered, and that
-- no client, however it behaves, harms the engine or another client.

local cairn = require "cairn"
local calls = require "cairn.control_calls"
local control = require "cairn.control"
local core = require "cairn.core"
local evaluator = require "cairn.evaluator"
local uv = require "luv"
local support = _G.support

local octal = function(s) return tonumber(s, 8) end
local is_root = uv.getuid() == 0

local function mode_of(path)
  local stat = assert(uv.fs_lstat(path))
  return ("%o"):format(stat.mode & octal "777"), stat.gid
end

-- Turns the loop until a condition holds.
local function until_true(condition, what)
  local late = false
  local timer = assert(uv.new_timer())
  timer:start(15000, 0, function() late = true end)
  while not late and not condition() do uv.run "once" end
  timer:close()
  assert(not late, "this did not come true: " .. (what or "a condition"))
end

describe("the control socket", function()
  local top, remove, engine, server, log, path, peers, sigpipe

  setup(function() -- what the command does for itself
    sigpipe = assert(uv.new_signal())
    sigpipe:start("sigpipe", function() end)
    sigpipe:unref()
  end)

  teardown(function()
    sigpipe:close()
    uv.run "nowait"
  end)

  local function say(level, message, fields)
    log[#log + 1] = { level = level, message = message, fields = fields }
  end

  local function logged(pattern)
    for _, line in ipairs(log) do
      if line.message:find(pattern) then return line end
    end
  end

  local function open(options)
    local all = { uv = uv, socket = path, log = say, evaluator = evaluator }
    for key, value in pairs(options or {}) do all[key] = value end
    local message, code
    server, message, code = control.open(engine, all)
    return server, message, code
  end

  -- A client of bytes: what it was sent is in `got`.
  local function connect()
    local peer = { got = "", pipe = assert(uv.new_pipe(false)) }
    local connected
    peer.pipe:connect(path, function(err) connected = err or true end)
    until_true(function() return connected end, "a connection")
    assert.is_true(connected)
    function peer.read()
      peer.pipe:read_start(function(_, data)
        if data then
          if peer.is_counting then
            peer.lines = (peer.lines or 0) + select(2, data:gsub("\n", ""))
          else
            peer.got = peer.got .. data
          end
        else
          peer.is_ended = true
        end
      end)
    end
    function peer.send(text) peer.pipe:write(text) end
    function peer.json(t) peer.send(assert(cairn.json_encode(t)) .. "\n") end
    function peer.close()
      if not peer.pipe:is_closing() then peer.pipe:close() end
    end
    -- The next line, or the next that has this id.
    function peer.line()
      until_true(function()
        return peer.got:find("\n", 1, true) or peer.is_ended
      end, "a line")
      local line, rest = peer.got:match "^([^\n]*)\n(.*)$"
      if not line then return nil end
      peer.got = rest
      return line
    end
    function peer.answer(id)
      while true do
        local line = peer.line()
        assert(line, "the connection has ended")
        local t = assert(cairn.json_decode(line))
        if id == nil or t.id == id then return t end
      end
    end
    function peer.call(name, arguments)
      peer.id = (peer.id or 0) + 1
      peer.json { id = peer.id, call = name, arguments = arguments }
      return peer.answer(peer.id)
    end
    function peer.expect(text)
      until_true(function()
        return peer.got:find(text, 1, true) or peer.is_ended
      end, text)
      local from, to = peer.got:find(text, 1, true)
      assert(from, "ended without " .. text .. ": " .. peer.got)
      local before = peer.got:sub(1, from - 1)
      peer.got = peer.got:sub(to + 1)
      return before
    end
    peer.read()
    peers[#peers + 1] = peer
    return peer
  end

  local function held(name)
    return assert(engine:submit { Name = name or "held", held = true,
      run = "nobody", wait = false })
  end

  before_each(function()
    top, remove = support.directory()
    path, log, peers = top .. "/run/cairn.sock", {}, {}
    engine = assert(cairn.open { store = top .. "/cairn.db",
      log = function(message) say("engine", message) end })
    assert(cairn.attach(engine, uv))
  end)

  after_each(function()
    for _, peer in ipairs(peers) do peer.close() end
    if server then
      local is_closed
      server:close(function() is_closed = true end)
      until_true(function() return is_closed end, "the server's end")
      server = nil
    end
    engine:close()
    -- Nothing of it is left on the loop.
    local left = {}
    uv.walk(function(handle)
      if not handle:is_closing() and handle ~= sigpipe then left[#left + 1] = tostring(handle) end
    end)
    uv.run "nowait"
    remove()
    assert.same({}, left)
  end)

  -- ---- the file ----------------------------------------------------------------------

  describe("as a file", function()
    it("is its owner's only, whatever the umask", function()
      for _, umask in ipairs { "0000", "0777", "0022" } do
        local code, _, out = support.run({ "bash", "-c", ([[
          umask %s
          export LUA_PATH='%s/share/lua/5.4/?.lua;;'
          export LUA_CPATH='%s/lib/lua/5.4/?.so;;'
          exec lua5.4 -e 'local core = require "cairn.core"
            local l = assert(core.listener_open("%s", "owner"))
            os.execute "stat -c %%a %s %s; kill -9 $PPID"']]):format(umask,
            support.build, support.build, path, top .. "/run", path) })
        assert.is_nil(code)
        assert.equal("700\n600\n", out)
      end
    end)

    it("goes with the server, and its lock", function()
      assert(open())
      assert.equal("600", (mode_of(path)))
      assert.equal("700", (mode_of(top .. "/run")))
      server:close()
      assert.is_nil(uv.fs_lstat(path))
      assert.is_nil(uv.fs_lstat(path .. ".lock"))
    end)

    it("takes the place of one that a dead server has left", function()
      local code, _, out = support.run { "bash", "-c", ([[
        export LUA_PATH='%s/share/lua/5.4/?.lua;;'
        export LUA_CPATH='%s/lib/lua/5.4/?.so;;'
        lua5.4 -e 'local core = require "cairn.core"
          L = assert(core.listener_open("%s", "owner"))
          os.execute "kill -9 $PPID"']]):format(support.build, support.build,
          path) }
      assert.is_nil(code, out) -- killed
      assert.equal("socket", assert(uv.fs_lstat(path)).type)
      assert(open())
      assert.equal("admin", connect().call("hello").result.level)
    end)

    it("of a live server is refused, with its process", function()
      assert(open())
      local first = server
      local other, message, code = open()
      server = first
      assert.is_nil(other)
      assert.equal("busy", code)
      assert.truthy(message:find(("process %d serves"):format(uv.os_getpid())),
        message)
      assert.equal("admin", connect().call("hello").result.level)
    end)

    it("of another program that listens there is refused", function()
      assert(uv.fs_mkdir(top .. "/run", octal "700"))
      local foreign = assert(uv.new_pipe(false))
      assert(foreign:bind(path))
      assert(foreign:listen(1, function() end))
      local other, message, code = open()
      foreign:close()
      uv.run "nowait"
      assert.is_nil(other)
      assert.equal("busy", code)
      assert.truthy(message:find(("process %d "):format(uv.os_getpid())),
        message)
      assert.is_nil(uv.fs_lstat(path .. ".lock"))
    end)

    it("never follows a symbolic link, and removes no other file", function()
      assert(uv.fs_mkdir(top .. "/run", octal "700"))
      support.write(top .. "/precious", "x")
      for _, what in ipairs { "link", "file", "directory" } do
        if what == "link" then
          assert(uv.fs_symlink(top .. "/precious", path))
        elseif what == "file" then
          support.write(path, "mine")
        else
          assert(uv.fs_mkdir(path, octal "700"))
        end
        local other, message, code = open()
        assert.is_nil(other)
        assert.equal("bad_path", code)
        assert.truthy(message:find(what == "link" and "a symbolic link"
          or "no socket"), message)
        assert.equal(what, assert(uv.fs_lstat(path)).type)
        support.run { "rm", "-rf", path }
      end
      assert.equal("x", support.read(top .. "/precious"))
      -- the lock, too
      assert(uv.fs_symlink(top .. "/precious", path .. ".lock"))
      assert.is_nil((open()))
      assert.equal("x", support.read(top .. "/precious"))
    end)

    it("lies in a directory that nobody else can write to", function()
      assert(uv.fs_mkdir(top .. "/run", octal "700"))
      for _, mode in ipairs { "770", "707", "1777" } do
        assert(uv.fs_chmod(top .. "/run", octal(mode)))
        local other, message, code = open()
        assert.is_nil(other)
        assert.equal("permission_denied", code)
        assert.truthy(message:find("others can write", 1, true), message)
      end
      assert(uv.fs_chmod(top .. "/run", octal "755"))
      assert(open())
      assert.equal("600", (mode_of(path)))
    end)

    it("lies in no directory that is a symbolic link", function()
      assert(uv.fs_mkdir(top .. "/other", octal "700"))
      assert(uv.fs_symlink(top .. "/other", top .. "/run"))
      local other, message, code = open()
      assert.is_nil(other)
      assert.equal("bad_path", code)
      assert.truthy(message:find("symbolic link", 1, true), message)
    end)

    it("has a path that clients can use", function()
      path = top .. "/" .. ("x"):rep(120)
      local other, message, code = open()
      assert.is_nil(other)
      assert.equal("bad_path", code)
      assert.truthy(message:find("at most 107 bytes", 1, true), message)
      path = top .. "/no/where/s"
      other, message = open()
      assert.is_nil(other)
      assert.truthy(message:find("cannot make the socket's directory", 1, true),
        message)
    end)

    it("leaves a socket alone that took its name meanwhile", function()
      assert(open())
      assert(os.rename(path, path .. ".old"))
      local foreign = assert(uv.new_pipe(false))
      assert(foreign:bind(path))
      server:close()
      assert.equal("socket", assert(uv.fs_lstat(path)).type)
      foreign:close()
      uv.run "nowait"
    end)

    it("can be a group's", function()
      if not is_root then return pending "# skipped: needs root" end
      assert(open { admin_group = "daemon" })
      local mode, gid = mode_of(path)
      assert.equal("660", mode)
      assert.equal(1, gid)
      mode, gid = mode_of(top .. "/run")
      assert.equal("750", mode)
      assert.equal(1, gid)
    end)

    it("is refused for a group that is none", function()
      local other, message, code = open { read_group = "no such group" }
      assert.is_nil(other)
      assert.equal("not_found", code)
      assert.truthy(message:find "no such group", message)
    end)

    it("is served by one of many servers that start at once", function()
      local script = ([[
        package.path = '%s/share/lua/5.4/?.lua;' .. package.path
        package.cpath = '%s/lib/lua/5.4/?.so;' .. package.cpath
        local core = require "cairn.core"
        local l, m, c = core.listener_open("%s", "owner")
        if l then os.execute "sleep 0.3" print "won" else print(c) end
      ]]):format(support.build, support.build, path)
      support.write(top .. "/start.lua", script)
      for _ = 1, 3 do
        local _, _, out = support.run { "bash", "-c", ([[
          for i in 1 2 3 4 5 6 7 8; do lua5.4 %s/start.lua & done
          wait]]):format(top) }
        local _, won = out:gsub("won\n", "")
        local _, busy = out:gsub("busy\n", "")
        assert.equal(1, won, out)
        assert.equal(7, busy, out)
      end
    end)
  end)

  -- ---- who --------------------------------------------------------------------------

  describe("knows its peers:", function()
    -- Sends a text as another user; what came back.
    local function as(user, groups, text)
      support.write(top .. "/input", text)
      assert(uv.fs_chmod(top, octal "755"))
      assert(uv.fs_chmod(top .. "/input", octal "644"))
      local done, out = nil, nil
      local output = assert(uv.new_pipe(false))
      local pieces, process = {}, nil
      process = assert(uv.spawn("setpriv", { args = { "--reuid", user,
        "--regid", "65534", table.unpack(groups), }, stdio = { nil, output } },
        function() done = true process:close() end))
      output:read_start(function(_, data)
        if data then
          pieces[#pieces + 1] = data
        else
          out = table.concat(pieces)
          output:close()
        end
      end)
      until_true(function() return done and out end, "a peer's end")
      return out
    end

    local function socat(...)
      local list = { ... }
      for _, word in ipairs { "socat", "-t5", "OPEN:" .. top .. "/input!!STDOUT",
        "UNIX-CONNECT:" .. path } do
        list[#list + 1] = word
      end
      return list
    end

    local hello = '{"id":1,"call":"hello"}\n'

    it("strangers are closed at once", function()
      if not is_root then return pending "# skipped: needs root" end
      -- so that the kernel lets them in, and only the server does not
      assert(open { admin_group = "1", read_group = "2" })
      assert.equal("666", (mode_of(path)))
      assert.equal("", as("65534", socat "--clear-groups", hello))
      assert.truthy(logged "refused: uid 65534")
      assert.equal("warning", logged "refused: uid 65534".level)
    end)

    it("a supplementary group makes a reader or an admin", function()
      if not is_root then return pending "# skipped: needs root" end
      assert(open { admin_group = "1", read_group = "2" })
      local out = as("65534", socat("--groups", "2,7"), hello)
      assert.truthy(out:find('"level":"read%-only"'), out)
      out = as("65534", socat("--groups", "7,1"), hello)
      assert.truthy(out:find('"level":"admin"'), out)
    end)

    it("readers look, and change and evaluate nothing", function()
      if not is_root then return pending "# skipped: needs root" end
      assert(open { read_group = "2" })
      local job = held "mine"
      local id = job.InstanceID
      local requests = { '{"id":0,"call":"jobs"}' }
      for _, name in ipairs(calls.names) do
        if calls.calls[name].is_change then
          requests[#requests + 1] = ('{"id":%d,"call":"%s","arguments":'
            .. '{"job":"%s"}}'):format(#requests, name, id)
        end
      end
      local changes = #requests - 1
      requests[#requests + 1] = '{"id":100,"eval":"x = 1"}'
      requests[#requests + 1] = '{"id":101,"complete":"x"}'
      requests[#requests + 1] = '{"id":102,"interrupt":100}'
      local out = as("65534", socat("--groups", "2"),
        table.concat(requests, "\n") .. "\n")
      local refused = 0
      for line in out:gmatch "[^\n]+" do
        local t = assert(cairn.json_decode(line))
        if t.id == 0 then
          assert.equal("mine", t.result.jobs[1].Name)
        else
          assert.equal("permission_denied", t.error.code, line)
          assert.equal(3, t.error.exit)
          refused = refused + 1
        end
      end
      assert.is_true(changes >= 11)
      assert.equal(changes + 3, refused)
      assert.equal("held", job.phase)
      assert.truthy(logged "^refused: kill by nobody")
      -- and again and again it is not told
      local told = #log
      as("65534", socat("--groups", "2"),
        ('{"id":1,"call":"kill","arguments":{"job":"1234"}}\n'):rep(50))
      assert.equal(told, #log)
      out = as("65534", socat("--groups", "2"), "engine:close()\n")
      assert.truthy(out:find("may only read", 1, true), out)
      assert.is_true(core.is_open(engine))
    end)

    it("only so many, and some places are kept for admins", function()
      assert(open { max_clients = 4 })
      for _ = 1, 4 do assert.is_nil(connect().call("hello").error) end
      local fifth = connect()
      local t = fifth.answer()
      assert.equal("busy", t.error.code)
      assert.truthy(t.error.message:find "4 clients")
      until_true(function() return fifth.is_ended end)
      peers[1].close()
      until_true(function() return server.count == 3 end)
      assert.is_nil(connect().call("hello").error)
    end)
  end)

  -- ---- frames -----------------------------------------------------------------------

  describe("reads lines", function()
    before_each(function() assert(open()) end)

    it("that come byte by byte, or several in one piece", function()
      local peer = connect()
      for byte in ('{"id":1,"call":"hello"}\n'):gmatch "." do
        peer.send(byte)
        uv.run "nowait"
      end
      assert.equal(cairn.version, peer.answer(1).result.version)
      peer.send(('{"id":%d,"call":"hello"}\n'):rep(3):format(2, 3, 4) .. "\n"
        .. '{"id":5,"call":"hel')
      for id = 2, 4 do assert.equal(id, peer.answer().id) end
      peer.send 'lo"}\n'
      assert.equal(5, peer.answer().id)
    end)

    it("and says what is wrong with those that are no request", function()
      local peer = connect()
      for line, pattern in pairs {
        ["{"] = "one JSON object on one line",
        ['{"id":1,"call":"hello"} x'] = "not JSON",
        ['{"id":1,"id":2,"call":"hello"}'] = "not JSON",
        ['{"id":1}'] = "one of call, eval",
        ['{"id":1,"call":"hello","eval":"1"}'] = "one of call, eval",
        ['{"id":1.5,"call":"hello"}'] = "id: an integer",
        ['{"id":{},"call":"hello"}'] = "id: an integer",
        ['{"id":1,"cal":"hello"}'] = "did you mean 'call'",
        ['{"id":1,"call":"helo"}'] = "the nearest is 'hello'",
        ['{"id":1,"call":7}'] = "there is no call '7'",
        ['{"id":1,"call":"show"}'] = "job is missing",
        ['{"id":1,"call":"show","arguments":[]}'] = "job is missing",
        ['{"id":1,"call":"show","arguments":7}'] = "a table expected",
        ['{"id":1,"call":"show","arguments":{"job":7}}'] = "must be a string",
        ['{"id":1,"call":"jobs","arguments":{"max":-1}}'] = "0 to 1000",
        ['{"id":1,"call":"jobs","arguments":{"max":1e300}}'] = "0 to 1000",
        ['{"id":1,"call":"jobs","arguments":{"filter":{"x":1}}}'] =
          "no property 'x'",
        ['{"id":1,"call":"queues","arguments":{"x":1}}'] = "none is expected",
        ['{"id":1,"eval":7}'] = "a string",
        ['{"id":1,"complete":[]}'] = "complete: a string",
        ['{"id":1,"call":"\255\254"}'] = "not JSON",
        ['{"id":1,"call":"a\\u0000b"}'] = "not JSON",
        [('{"a":'):rep(40000) .. "1"] = "not JSON",
      } do
        peer.send((line:find "^{" and "" or "{") .. line .. "\n")
        local t = peer.answer()
        assert.is_table(t.error, line:sub(1, 100))
        assert.truthy(t.error.message:find(pattern, 1, true),
          line:sub(1, 100) .. ": " .. t.error.message)
        assert.equal(2, t.error.exit, line:sub(1, 100))
      end
      assert.is_nil(peer.call("hello").error)
    end)

    it("of 1 MiB and no more", function()
      local peer = connect()
      local fill = 1048576 - #'{"id":1,"call":"hello","x":""}\n'
      peer.send('{"id":1,"call":"hello","x":"' .. ("x"):rep(fill) .. '"}\n')
      assert.truthy(peer.answer().error.message:find("unknown key 'x'", 1, true))
      peer.send('{"id":1,"call":"hello","x":"' .. ("x"):rep(fill + 1) .. '"}\n')
      local t = peer.answer()
      assert.equal("out_of_range", t.error.code)
      assert.is_nil(peer.line())
      for _, start in ipairs { "{", "x" } do -- and no newline at all
        peer = connect()
        peer.send(start .. ("x"):rep(1200000))
        assert.truthy(peer.line():find("at most 1048576 bytes", 1, true))
        assert.is_nil(peer.line())
      end
      assert.is_nil(connect().call("hello").error)
    end)

    it("of a client that has closed its half, and answers them", function()
      local peer = connect()
      peer.send '{"id":1,"call":"hello"}\n{"id":2,"eval":"cairn.sleep(0.05) 7'
      peer.send '"}\n{"id":3,"call":"flush"}\n{"id":4,"cal'
      peer.pipe:shutdown()
      local seen = {}
      while true do
        local line = peer.line()
        if not line then break end
        seen[cairn.json_decode(line).id] = true
      end
      assert.same({ true, true, true }, seen)
      until_true(function() return server.count == 0 end, "no client left")
    end)

    it("from clients that vanish, and keeps nothing of them", function()
      for i = 1, 200 do
        local peer = connect()
        if i % 4 == 1 then peer.send '{"id":1,"call":"hello"}\n' end
        if i % 4 == 2 then peer.send '{"id":1,"ca' end
        if i % 4 == 3 then peer.send 'cairn.sleep(1000)\n' end
        if i % 8 == 0 then uv.run "nowait" end
        peer.close()
        uv.run "nowait"
      end
      until_true(function() return server.count == 0 end, "no client left")
      assert.is_nil(next(core.state(engine).background))
      assert.is_nil(connect().call("hello").error)
    end)
  end)

  it("forgets a client that vanishes while it is not read from", function()
    assert(open())
    local peer = connect()
    peer.send("cairn.sleep(1000)\n" .. ("x = 1\n"):rep(60000))
    until_true(function()
      local client = next(server.clients)
      return client and client.is_evaluating and not client.is_reading
    end, "a client that is not read from")
    peer.close()
    until_true(function() return server.count == 0 end, "no client left")
    until_true(function()
      return next(core.state(engine).background) == nil
    end, "the end of its chunk")
  end)

  -- ---- calls -------------------------------------------------------------------------

  describe("answers", function()
    before_each(function() assert(open()) end)

    it("jobs, filtered and in pages", function()
      for i = 1, 25 do
        assert(engine:submit { Name = ("web%d.x"):format(i), held = i % 5 == 0,
          RunStartInterval = "2h", run = "nobody", wait = false })
      end
      local peer = connect()
      local seen, after, pages = {}, 0, 0
      repeat
        local page = peer.call("jobs", { max = 10, after = after }).result
        for _, job in ipairs(page.jobs) do seen[#seen + 1] = job.Name end
        after, pages = page.next, pages + 1
      until not after
      assert.equal(25, #seen)
      assert.equal("web25.x", seen[25])
      assert.equal(3, pages)
      local function names(arguments)
        local out = {}
        for i, job in ipairs(peer.call("jobs", arguments).result.jobs) do
          out[i] = job.Name
        end
        return table.concat(out, " ")
      end
      assert.equal("web5.x web10.x web15.x web20.x web25.x",
        names { filter = { phase = "held" } })
      assert.equal("web1.x web10.x", names { name = "web1*.x", max = 2 })
      assert.equal("web2.x", names { name = "web2.?" })
      assert.equal("", names { name = "web2x?" })
      assert.equal("", names { filter = { queue = "other" } })
      local t = peer.call("jobs", { max = 1, numbers = true }).result.jobs[1]
      assert.equal(2, t.JobState)
    end)

    it("jobs like any pattern, without trying for years", function()
      for _, name in ipairs { "nightly export of the database servers",
        "grün 中", ("x"):rep(300), "a*b" } do
        assert(engine:submit { Name = name, held = true, run = "nobody",
          wait = false })
      end
      local peer = connect()
      local function count(pattern)
        return #peer.call("jobs", { name = pattern }).result.jobs
      end
      for pattern, wanted in pairs { ["*"] = 4, ["**"] = 4, [""] = 0,
        ["?"] = 0, ["gr?n ?"] = 1, ["gr??n*"] = 0, ["*ü*中"] = 1,
        ["*中?"] = 0, ["*?中"] = 1, [("?"):rep(300)] = 1, [("?"):rep(299)] = 0,
        ["*e*e*e*s"] = 1, ["*ser?ers*"] = 1, ["a*b"] = 1, ["%a+"] = 0,
        ["*servers?"] = 0, ["nightly*servers**"] = 1 } do
        assert.equal(wanted, count(pattern), pattern)
      end
      local t0 = uv.hrtime()
      assert.equal(0, count(("*?"):rep(8) .. "#"))
      assert.is_true((uv.hrtime() - t0) / 1e9 < 2)
      assert.equal("out_of_range",
        peer.call("jobs", { name = ("*"):rep(1001) }).error.code)
    end)

    it("jobs without end in pages of bounded size", function()
      local job = { Name = "n", held = true, run = "nobody", wait = false,
        Description = ("é"):rep(400) }
      local specs = {}
      for i = 1, 600 do specs[i] = job end
      assert(engine:submit_all(specs))
      local peer = connect()
      local count, after, pages = 0, 0, 0
      repeat
        local page = peer.call("jobs", { after = after }).result
        count, after, pages = count + #page.jobs, page.next, pages + 1
      until not after
      assert.equal(600, count)
      assert.is_true(pages > 1)
    end)

    it("show, why, history, queues, changes of one job", function()
      cairn.kind("control spec: fails", function() error("no luck", 0) end)
      local job = assert(engine:submit { Name = "unlucky", wait = false,
        run = "control spec: fails" })
      local peer = connect()
      until_true(function() return job.JobState == "Exception" end)
      local id = job.InstanceID
      local t = peer.call("show", { job = id }).result
      assert.equal("Exception", t.job.JobState)
      assert.truthy(t.errors[1].Message:find "no luck")
      t = peer.call("show", { job = id:match ":(%x%x%x%x%x%x%x%x)" }).result
      assert.equal(id, t.job.InstanceID)
      assert.truthy(peer.call("why", { job = id }).result.text:find "no luck")
      t = peer.call("history", { job = id }).result
      assert.equal(1, #t.records)
      assert.equal("Exception", t.records[1].JobState)
      assert.is_nil(t.next)
      assert.equal("default", peer.call("queues").result[1].Name)
      t = peer.call("changes", { cursor = 0, max = 2 }).result
      assert.equal(2, #t.events)
      assert.equal("Submitted", t.events[1].name)
      local last = peer.call("changes", { cursor = t.cursor }).result
      assert.equal(t.cursor + 1, last.events[1].sequence)
      assert.is_nil(last.events[1].job)
    end)

    it("history in pages, to which what ends meanwhile is added", function()
      cairn.kind("control spec: nothing", function() end)
      local jobs = {}
      for i = 1, 7 do
        jobs[i] = assert(engine:submit { Name = "j" .. i, wait = false,
          run = "control spec: nothing" })
      end
      until_true(function() return jobs[7].JobState == "Completed" end)
      local peer = connect()
      local t = peer.call("history", { max = 3 }).result
      assert.equal(3, #t.records)
      local late = assert(engine:submit { Name = "late", wait = false,
        run = "control spec: nothing" })
      until_true(function() return late.JobState == "Completed" end)
      local names = {}
      while true do
        for _, record in ipairs(t.records) do names[#names + 1] = record.Name end
        if not t.next then break end
        t = peer.call("history", { max = 3, after = t.next }).result
      end
      assert.equal("late", table.remove(names))
      table.sort(names)
      assert.equal("j1 j2 j3 j4 j5 j6 j7", table.concat(names, " "))
      assert.same({}, peer.call("history", { after = 1 << 40 }).result.records)
    end)

    it("history, however long what errors say", function()
      cairn.kind("control spec: long", function() error(("\1"):rep(3000), 0) end)
      local jobs = {}
      for i = 1, 150 do
        jobs[i] = assert(engine:submit { Name = "long", wait = false,
          run = "control spec: long" })
      end
      until_true(function() return jobs[150].JobState == "Exception" end)
      local peer = connect()
      local count, t = 0, { next = 0 }
      repeat
        t = assert(peer.call("history", { after = t.next }).result)
        count = count + #t.records
      until not t.next
      assert.equal(150, count)
    end)

    it("requests, each by its state, with the codes of commands", function()
      local job = held()
      local id = job.InstanceID
      local peer = connect()
      local function ask(name, more)
        local arguments = more or {}
        arguments.job = id
        return peer.call(name, arguments)
      end
      assert.equal("held", ask "suspend".result.phase)
      assert.equal(1, ask "suspend".error.exit)
      assert.equal("invalid_state", ask "suspend".error.code)
      assert.equal(4097, ask "suspend".error.data.code)
      assert.equal(0, ask("set", { properties = { RunStartInterval = "2h",
        Priority = 3 } }).error and 1 or 0)
      assert.equal(3, job.Priority)
      assert.is_nil(ask("set", { clear = { "Priority" } }).error)
      assert.is_nil(job.Priority)
      for properties, pattern in pairs {
        [{ Priority = -1, RunDay = 3 }] = "Priority is -1",
        [{ Prio = 1 }] = "no property \"Prio\"",
        [{ JobState = 3 }] = "JobState",
        [{ Priority = { 1 } }] = "a string, a number or a boolean",
      } do
        local t = ask("set", { properties = properties })
        assert.equal(2, t.error.exit)
        assert.truthy(t.error.message:find(pattern, 1, true), t.error.message)
      end
      assert.is_nil(job.RunDay) -- all or nothing
      assert.truthy(ask "set".error.message:find "nothing to set")
      assert.equal(1, ask("answer", { text = "x" }).error.exit)
      local t = ask "resume".result
      assert.equal("waiting", t.phase)
      assert.equal(0, t.code)
      assert.equal("Terminated", ask "terminate".result.JobState)
      assert.equal(1, ask "kill".error.exit)
      assert.equal(id, ask "delete".result.InstanceID)
      t = ask "show"
      assert.equal("not_found", t.error.code)
      assert.equal(2, t.error.exit)
      assert.equal(2, peer.call("show", { job = "F" }).error.exit)
    end)

    it("a question's answer, and says what it asks", function()
      local got
      cairn.kind("control spec: asks", function(job)
        got = job:ask { question = "Which?", choices = { "red", "blue" } }
      end)
      local job = assert(engine:submit { Name = "asks", wait = false,
        run = "control spec: asks" })
      until_true(function() return job.JobState == "Query Pending" end)
      local peer = connect()
      local t = peer.call("show", { job = job.InstanceID }).result
      assert.equal("Which?", t.query.question)
      assert.same({ "red", "blue" }, t.query.choices)
      t = peer.call("answer", { job = job.InstanceID, text = "green" })
      assert.is_table(t.error)
      t = peer.call("answer", { job = job.InstanceID, text = "blue" })
      assert.is_nil(t.error)
      until_true(function() return job.JobState == "Completed" end)
      assert.equal("blue", got)
    end)

    it("changes only when they are in the store", function()
      local job = held()
      until_true(function() return core.durable(engine) == core.turn(engine) end)
      local changed, was_durable
      local run = calls.calls.set.run
      calls.calls.set.run = function(...)
        run(...)
        changed = core.turn(engine)
        was_durable = core.durable(engine) >= changed
      end
      local peer = connect()
      local t = peer.call("set", { job = job.InstanceID,
        properties = { Priority = 5 } })
      local durable = core.durable(engine)
      calls.calls.set.run = run
      assert.is_nil(t.error)
      assert.is_false(was_durable) -- so there was something to wait for
      assert.is_true(durable >= changed)
    end)

    it("what reads while the store fails, and says that no change is stored",
      function()
        local job = held()
        local peer = connect()
        assert.is_nil(peer.call("flush").error)
        local durable, store_error = core.durable, core.store_error
        core.durable = function() return 0 end
        core.store_error = function() return "no space", "store_failed" end
        local ok, err = pcall(function()
          local t = peer.call("set", { job = job.InstanceID,
            properties = { Priority = 9 } })
          assert.equal("store_failed", t.error.code)
          assert.equal(3, t.error.exit)
          assert.truthy(t.error.message:find "not in the store yet: no space")
          assert.equal(9, peer.call("jobs").result.jobs[1].Priority)
          assert.equal("no space", peer.call("hello").result.store_error)
          assert.equal("store_failed", peer.call("flush").error.code)
        end)
        core.durable, core.store_error = durable, store_error
        assert(ok, err)
        assert.is_nil(peer.call("flush").error)
      end)

    it("a backup, with an absolute path", function()
      held "kept"
      local peer = connect()
      local t = peer.call("backup", { path = "x.db" })
      assert.equal("bad_path", t.error.code)
      t = peer.call("backup", { path = top .. "/copy.db" })
      assert.equal(top .. "/copy.db", t.result.path)
      local code, _, out = support.run { "sqlite3", top .. "/copy.db",
        "SELECT Name FROM job" }
      assert.equal(0, code)
      assert.equal("kept\n", out)
      assert.is_table(peer.call("backup", { path = top .. "/no/x.db" }).error)
      assert.is_table(peer.call("flush").result)
    end)

    it("what the program around it offers, and says what it does not",
      function()
        local peer = connect()
        for _, name in ipairs { "metrics", "policies", "reload", "shutdown" } do
          assert.equal("not_supported", peer.call(name).error.code)
        end
      end)

    it("every call that its document lists, and no other", function()
      local document = support.read "docs/control-protocol.md"
      local listed = {}
      for name in document:gmatch "\n| `(%l+)` |" do
        listed[#listed + 1] = name
      end
      local names = table.move(calls.names, 1, #calls.names, 1, {})
      table.sort(listed)
      table.sort(names)
      assert.same(names, listed)
    end)

    it("and records who changed what", function()
      local job = held()
      connect().call("kill", { job = job.InstanceID })
      local line = logged "^kill Cairn:"
      assert.equal("info", line.level)
      assert.equal(uv.getuid(), line.fields.uid)
      assert.equal(uv.os_getpid(), line.fields.pid)
      assert.equal(job.InstanceID, line.fields.job)
      assert.truthy(line.message:find(("uid %d, process %d"):format(
        uv.getuid(), uv.os_getpid()), 1, true), line.message)
      local peer = connect()
      peer.send "x = 'logged'\n"
      peer.expect "> "
      assert.truthy(logged "^eval: x = 'logged' by ")
      peer.send "for i = 1, 2 do\n"
      peer.expect ">> "
      assert.is_nil(logged "^eval: for i = 1, 2 do by")
    end)
  end)

  -- ---- events -------------------------------------------------------------------------

  describe("tells events", function()
    before_each(function() assert(open()) end)

    it("to those who asked for them, by name", function()
      local all, some, none = connect(), connect(), connect()
      assert.equal("no event", all.call("events", { names = { "Sumbitted" } })
        .error.message:match "no event")
      assert.is_nil(all.call("events").error)
      assert.is_nil(some.call("events", { names = { "Removed" } }).error)
      none.call "hello"
      local id = held().InstanceID
      none.call("kill", { job = id })
      none.call("delete", { job = id })
      local event = some.answer().event
      assert.equal("Removed", event.name)
      assert.equal(id, event.InstanceID)
      assert.equal("Submitted", all.answer().event.name)
      until_true(function() return all.got:find "Removed" end)
      assert.equal("", none.got)
    end)

    it("and closes a subscriber that never reads, and nobody else", function()
      local deaf, well = connect(), connect()
      assert.is_nil(deaf.call("events").error)
      assert.is_nil(well.call("events", { names = { "Removed" } }).error)
      deaf.pipe:read_stop()
      local specs = {}
      for i = 1, 500 do
        specs[i] = { Name = ("x"):rep(100), held = true, run = "nobody",
          wait = false }
      end
      local most, rounds = 0, 0
      while server.count == 2 do
        rounds = rounds + 1
        assert(rounds < 400, "it is never closed")
        for _, job in ipairs(assert(engine:submit_all(specs))) do
          job:KillJob(true)
        end
        assert.is_nil(well.call("flush").error)
        for client in pairs(server.clients) do
          most = math.max(most, client:pending())
        end
      end
      assert.is_true(most < 9000000, tostring(most))
      assert.truthy(logged "does not read its events")
      assert.is_nil(well.call("hello").error)
    end)
  end)

  -- ---- evaluation --------------------------------------------------------------------

  describe("evaluates", function()
    before_each(function() assert(open()) end)

    it("a request: output, values, errors, what is incomplete", function()
      local peer = connect()
      peer.json { id = 1, eval = "print('a') print 'b' return 1 + 1, 'x'" }
      local output = ""
      local t
      repeat
        t = peer.answer()
        assert.equal(1, t.id)
        output = output .. (t.output or "")
      until t.result
      assert.equal("a\nb\n", output)
      assert.same({ "2", '"x"' }, t.result.values)
      peer.json { id = 2, eval = "for i = 1, 2 do" }
      assert.is_true(peer.answer(2).incomplete)
      peer.json { id = "three", eval = "error 'oh'" }
      t = peer.answer "three"
      assert.equal("script_error", t.error.code)
      assert.equal(1, t.error.exit)
      assert.truthy(t.error.message:find "oh")
      peer.json { id = 4, eval = "= = =" }
      assert.truthy(peer.answer(4).error.message:find "unexpected symbol")
      peer.json { id = 5, complete = "engine:jo" }
      assert.same({ "engine:job", "engine:jobs" }, peer.answer(5).result)
    end)

    it("bytes that are no text, as well as JSON can hold them", function()
      local peer = connect()
      peer.json { id = 1, eval = "print('\\255\\0x\\u{e9}')" }
      local t = peer.answer(1)
      assert.truthy(t.output:find "x\u{e9}\n")
      assert.is_table(peer.answer(1).result)
    end)

    it("one chunk of a client at a time, and interrupts it", function()
      local peer = connect()
      peer.json { id = 1, eval = "while true do end" }
      peer.json { id = 2, eval = "2" }
      assert.equal("busy", peer.answer(2).error.code)
      peer.json { id = 3, call = "hello" } -- calls go on meanwhile
      assert.is_nil(peer.answer(3).error)
      peer.send '{"interrupt":2}\n' -- of another
      peer.send '{"interrupt":1}\n'
      assert.truthy(peer.answer(1).error.message:find "interrupted")
      peer.json { id = 4, eval = "4" }
      assert.same({ "4" }, peer.answer(4).result.values)
    end)

    it("what one client's chunk waits for while others are answered",
      function()
        local busy, other = connect(), connect()
        busy.json { id = 1, eval = "while true do end" }
        uv.run "nowait"
        local begun = uv.hrtime()
        for _ = 1, 20 do assert.is_nil(other.call("hello").error) end
        assert.is_true(uv.hrtime() - begun < 5e9)
        busy.close()
        until_true(function() return server.count == 1 end)
        until_true(function()
          return next(core.state(engine).background) == nil
        end, "the end of its chunk")
      end)

    it("a flood of output without keeping it all", function()
      local peer = connect()
      peer.json { id = 1, eval = "local s = ('x'):rep(10000) for i = 1, 5000 do "
        .. "print(s) end return 'end'" }
      peer.pipe:read_stop()
      local most = 0
      for _ = 1, 3000 do
        uv.run "nowait"
        for client in pairs(server.clients) do
          most = math.max(most, client:pending() + client.unprinted)
        end
      end
      assert.is_true(most < 10000000, tostring(most))
      peer.read()
      local t
      repeat t = peer.answer(1) until t.result or t.error
      assert.is_nil(t.error)
      assert.same({ '"end"' }, t.result.values)
    end)

    it("in a text console, as socat gives it", function()
      local peer = connect()
      peer.send "\n"
      peer.expect "> "
      peer.send "1 + 1, 'x'\r\n"
      assert.equal('2\n"x"\n', peer.expect "> ")
      peer.send "function control_spec()\n"
      assert.equal("", peer.expect ">> ")
      peer.send "return 21 end\ncontrol_spec() * 2\n"
      peer.expect "> "
      assert.equal("42\n", peer.expect "> ")
      peer.send "print 'hi' error 'bad'\n"
      local out = peer.expect "> "
      assert.truthy(out:find("hi\n", 1, true) and out:find("bad", 1, true), out)
      peer.send "\255\254\n"
      assert.truthy(peer.expect "> ":find "UTF%-8")
      peer.send "x = \0\n"
      assert.truthy(peer.expect "> ":find "UTF%-8")
      -- Ctrl-C is not ours to see; the end of the connection ends the chunk
      peer.send "cairn.sleep(1000)\n"
      peer.close()
      until_true(function() return server.count == 0 end)
      until_true(function()
        return next(core.state(engine).background) == nil
      end, "the end of its chunk")
    end)
  end)

  -- ---- bad clients ---------------------------------------------------------------------

  describe("is fair:", function()
    before_each(function() assert(open()) end)

    it("a flood of one client's requests does not hold up another", function()
      local flood, other = connect(), connect()
      local count, at_answer = 20000, nil
      flood.is_counting, flood.lines = true, 0
      flood.send(('{"id":7,"call":"queues"}\n'):rep(count))
      other.json { id = 1, call = "hello" }
      until_true(function()
        if other.got:find "\n" and not at_answer then
          at_answer = flood.lines
        end
        return flood.lines == count
      end, "the end of the flood")
      assert.is_true(at_answer < count / 10, tostring(at_answer))
    end)

    it("who does not read its answers is not worked for", function()
      local deaf, other = connect(), connect()
      deaf.pipe:read_stop()
      for i = 1, 50 do
        held(("n"):rep(200) .. i)
      end
      local is_written = false
      deaf.pipe:write(('{"id":7,"call":"jobs"}\n'):rep(20000), function()
        is_written = true
      end)
      local most = 0
      for _ = 1, 2000 do
        uv.run "nowait"
        for client in pairs(server.clients) do
          most = math.max(most, client:pending() + client.unread)
        end
      end
      assert.is_false(is_written) -- the rest is still on its side
      assert.is_true(most < 2500000, tostring(most))
      assert.is_nil(other.call("hello").error)
    end)

    it("who takes nothing for long is closed", function()
      local deaf = connect()
      deaf.call "hello"
      deaf.pipe:read_stop()
      for i = 1, 50 do held(("n"):rep(200) .. i) end
      deaf.send(('{"id":7,"call":"jobs"}\n'):rep(200))
      local client = next(server.clients)
      until_true(function() return client:pending() > 0 end)
      server:sweep()
      assert.equal(1, server.count)
      until_true(function() return client.unsent end)
      client.unsent = client.unsent - 31
      server:sweep()
      assert.equal(0, server.count)
      assert.truthy(logged "read nothing for 30 s")
    end)
  end)

  it("closes in order: what was answered goes out", function()
    assert(open())
    local peer = connect()
    peer.call "hello"
    local is_closed
    peer.json { id = 9, call = "hello" }
    until_true(function()
      local client = next(server.clients)
      return client == nil or peer.got ~= ""
    end)
    server:close(function() is_closed = true end)
    until_true(function() return is_closed end)
    assert.equal(9, peer.answer().id)
    assert.is_nil(peer.line())
    server:close() -- twice is fine
  end)

  it("refuses options that it does not know", function()
    local ok, err = pcall(control.open, engine, { uv = uv, socket = path,
      log = say, admin_grup = "x" })
    assert.is_false(ok)
    assert.truthy(tostring(err):find "did you mean 'admin_group'")
  end)
end)
