-- The client of the control socket against servers that answer, refuse, hang,
-- lie and go away. They live on the same loop, which request() drives.

local uv = require "luv"
local cairn = require "cairn"
local client = require "cairn.client"

local support = _G.support
local top, remove = support.directory()
local sigpipe

setup(function()
  -- what the command does for itself
  sigpipe = assert(uv.new_signal())
  sigpipe:start("sigpipe", function() end)
  sigpipe:unref()
end)

teardown(function()
  sigpipe:close()
  uv.run "nowait"
  remove()
end)

-- A server whose answer(connection, request) is called for every line; sends a
-- string as it is, a table as JSON. Closed by the function it returns.
local count = 0
local function serve(answer, accept)
  count = count + 1
  local path = ("%s/%d.sock"):format(top, count)
  local server, open = assert(uv.new_pipe(false)), {}
  assert(server:bind(path))
  assert(server:listen(8, function(err)
    assert(not err, err)
    local pipe = assert(uv.new_pipe(false))
    server:accept(pipe)
    open[pipe] = true
    local connection = { pipe = pipe }
    function connection.send(t)
      if pipe:is_closing() then return end
      pipe:write(type(t) == "string" and t
        or assert(cairn.json_encode(t)) .. "\n")
    end
    function connection.close()
      if not pipe:is_closing() then pipe:close() end
    end
    if accept and accept(connection) == false then return end
    local rest = ""
    pipe:read_start(function(failure, data)
      if failure or not data then return connection.close() end
      rest = rest .. data
      while true do
        local line, tail = rest:match "^(.-)\n(.*)$"
        if not line or pipe:is_closing() then break end
        rest = tail
        local request = assert(cairn.json_decode(line))
        if request.call == "hello" and accept == nil then
          connection.send { id = request.id, result = { version = "1",
            level = "admin", pid = 7 } }
        else
          answer(connection, request)
        end
      end
    end)
  end))
  return path, function()
    for pipe in pairs(open) do
      if not pipe:is_closing() then pipe:close() end
    end
    if not server:is_closing() then server:close() end
    uv.run "nowait"
  end
end

local function handles()
  local n = 0
  uv.walk(function(handle) if not handle:is_closing() then n = n + 1 end end)
  return n
end

local function refused(code, pattern, exit, value, message, got, status)
  assert.is_nil(value)
  assert.equal(code, got, message)
  assert.truthy(message:find(pattern), message)
  assert.equal(exit, status)
end

describe("the client of the control socket", function()
  local before
  before_each(function() before = handles() end)
  after_each(function()
    uv.run "nowait"
    assert.equal(before, handles(), "handles are left")
  end)

  it("calls, and gets what the server says of itself", function()
    local path, stop = serve(function(connection, request)
      connection.send { id = request.id, result = { request.call,
        request.arguments.phase } }
    end)
    local c = assert(client.connect(uv, path))
    assert.same({ version = "1", level = "admin", pid = 7 }, c.server)
    assert.same({ "jobs", "held" }, c:request { call = "jobs",
      arguments = { phase = "held" } })
    c:close()
    c:close()
    stop()
  end)

  it("gives errors with their code and exit code", function()
    local path, stop = serve(function(connection, request)
      connection.send { id = request.id, error = request.call == "a"
        and { message = "no job 1234", code = "not_found" }
        or { message = "not now", code = "custom", exit = 3 } }
    end)
    local c = assert(client.connect(uv, path))
    refused("not_found", "^no job 1234$", 2, c:request { call = "a" })
    refused("custom", "^not now$", 3, c:request { call = "b" })
    c:close()
    stop()
  end)

  it("matches answers that come in pieces, late and out of order", function()
    local first
    local path, stop = serve(function(connection, request)
      if not first then
        first = request.id
        return
      end
      local line = assert(cairn.json_encode { id = request.id,
        result = ("ä"):rep(1000) }) .. "\n"
      for i = 1, #line, 333 do connection.send(line:sub(i, i + 332)) end
      connection.send { id = 99, result = "nobody asked" }
      connection.send { id = first, output = "so far" }
      connection.send { id = first, result = { values = { "1" } } }
    end)
    local c = assert(client.connect(uv, path))
    local got, output
    assert(c:request_async({ eval = "1" }, function(result) got = result end,
      { output = function(text) output = text end }))
    assert.equal(("ä"):rep(1000), c:request { call = "x" })
    while not got do uv.run "once" end
    assert.same({ values = { "1" } }, got)
    assert.equal("so far", output)
    c:close()
    stop()
  end)

  it("hands events on, and survives handlers that raise", function()
    local path, stop = serve(function(connection, request)
      for i = 1, 3 do connection.send { event = { n = i } } end
      connection.send { id = request.id, result = true }
    end)
    local said, seen = {}, {}
    local c = assert(client.connect(uv, path, { log = function(m)
      said[#said + 1] = m
    end }))
    c:on_event(function() error "oh" end)
    local off = c:on_event(function(ev) seen[#seen + 1] = ev.n end)
    assert.is_true(c:request { call = "events" })
    assert.same({ 1, 2, 3 }, seen)
    assert.equal(3, #said)
    assert.truthy(said[1]:find "oh")
    off()
    assert.is_true(c:request { call = "events" })
    assert.equal(3, #seen)
    c:close()
    stop()
  end)

  it("says that nothing is there, and what", function()
    refused("no_socket", "nothing is there", 3,
      client.connect(uv, top .. "/none"))
    local file = support.write(top .. "/file", "")
    refused("no_socket", "nobody answers", 3, client.connect(uv, file))
    refused("no_socket", "at most 107 bytes, this has 2", 3,
      client.connect(uv, "/" .. ("x"):rep(200)))
    local path, stop = serve(function() end)
    stop()
    refused("no_socket", "nothing is there", 3, client.connect(uv, path))
    assert.has_error(function() client.connect(uv, "") end)
  end)

  it("tells a refusal from the end of the server", function()
    local path, stop = serve(nil, function(connection)
      connection.close()
      return false
    end)
    refused("permission_denied", "closed the connection at once", 3,
      client.connect(uv, path))
    stop()
    path, stop = serve(nil, function(connection)
      connection.send { error = { message = "64 clients are connected",
        code = "busy" } }
      connection.close()
      return false
    end)
    refused("busy", "/%d+.sock: 64 clients", 3, client.connect(uv, path))
    stop()
  end)

  it("does not wait for ever", function()
    local path, stop = serve(function() end, function() return true end)
    refused("timeout", "no answer within 0.05 s", 3,
      client.connect(uv, path, { timeout = 0.05 }))
    stop()
    path, stop = serve(function(connection, request)
      if request.call == "late" then
        local timer = uv.new_timer()
        timer:start(60, 0, function()
          timer:close()
          connection.send { id = request.id, result = 1 }
        end)
      else
        connection.send { id = request.id, result = 2 }
      end
    end)
    local c = assert(client.connect(uv, path))
    refused("timeout", "within 0.02 s", 3,
      c:request({ call = "late" }, { timeout = 0.02 }))
    -- the late answer belongs to nobody
    local timer, is_over = uv.new_timer(), false
    timer:start(100, 0, function() is_over = true end)
    while not is_over do uv.run "once" end
    timer:close()
    assert.equal(2, c:request { call = "now" })
    c:close()
    stop()
  end)

  it("tells everybody who waits when the server goes away", function()
    local path, stop = serve(function(connection, request)
      if request.call == "die" then connection.close() end
    end)
    local c = assert(client.connect(uv, path))
    local told, err_of_close = {}, nil
    c:on_close(function(err) err_of_close = err end)
    for i = 1, 3 do
      c:request_async({ eval = "x" }, function(_, err) told[i] = err.code end)
    end
    refused("disconnected", "the server went away", 3,
      c:request { call = "die" })
    assert.same({ "disconnected", "disconnected", "disconnected" }, told)
    assert.equal("disconnected", err_of_close.code)
    refused("disconnected", "went away", 3, c:request { call = "more" })
    c:close()
    stop()
  end)

  it("believes no server that sends something else", function()
    for _, case in ipairs { { "HTTP/1.1 400\n", "no JSON object" },
      { "[1]\n", "no answer and no event" }, { ("x"):rep(1048577), "more than 1048576" },
      { '{"id":1,"result":5}\n', "no hello" } } do
      local path, stop = serve(function(connection)
        connection.send(case[1])
      end, function() return true end)
      refused("protocol", case[2], 3, client.connect(uv, path))
      stop()
    end
  end)

  it("refuses what cannot be sent, and goes on", function()
    local path, stop = serve(function(connection, request)
      connection.send { id = request.id, result = request.call }
    end)
    local c = assert(client.connect(uv, path))
    refused("wrong_type", "cannot be sent", 2, c:request { eval = "\xff" })
    refused("wrong_type", "too long: %d+ bytes", 2,
      c:request { eval = ("x"):rep(1048576) })
    local is_called = false
    assert.is_nil(c:request_async({ eval = "\xff" }, function()
      is_called = true
    end))
    assert.equal("x", c:request { call = "x" })
    assert.is_false(is_called)
    c:close()
    refused("closed", "closed here", 2, c:request { call = "x" })
    stop()
  end)

  it("does not drive a loop that runs", function()
    local path, stop = serve(function() end)
    local c = assert(client.connect(uv, path))
    local timer, ok, message = uv.new_timer(), nil, nil
    timer:start(0, 0, function()
      ok, message = pcall(c.request, c, { call = "x" })
      timer:close()
    end)
    uv.run "once"
    assert.is_false(ok)
    assert.truthy(message:find "request_async does not wait")
    c:close()
    stop()
  end)

  it("knows the default socket", function()
    local function with(values)
      local old = {}
      for _, name in ipairs { "CAIRN_SOCKET", "XDG_RUNTIME_DIR" } do
        old[name] = uv.os_getenv(name)
        if values[name] then
          uv.os_setenv(name, values[name])
        else
          uv.os_unsetenv(name)
        end
      end
      local fake = setmetatable({ getuid = function() return values.uid end },
        { __index = uv })
      local results = table.pack(client.default_socket(fake))
      for name in pairs(values) do
        if name ~= "uid" then uv.os_unsetenv(name) end
      end
      for name, value in pairs(old) do uv.os_setenv(name, value) end
      return table.unpack(results, 1, results.n)
    end
    assert.equal("/s", with { uid = 0, CAIRN_SOCKET = "/s" })
    assert.equal("/run/cairn/cairn.sock", with { uid = 0,
      XDG_RUNTIME_DIR = "/r" })
    assert.equal("/r/cairn/cairn.sock", with { uid = 5, CAIRN_SOCKET = "",
      XDG_RUNTIME_DIR = "/r" })
    refused("no_socket", "XDG_RUNTIME_DIR", 3,
      with { uid = 5, XDG_RUNTIME_DIR = "relative" })
  end)
end)
