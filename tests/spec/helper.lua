-- Loaded by busted before every spec file (.busted): the module of the build
-- tree, luv, and what the specs of the module share, as the global `support`.

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local uv = require "luv"

local support = { build = build }

-- A directory of its own, removed by the returned function.
function support.directory()
  local path = assert(uv.fs_mkdtemp((os.getenv "TMPDIR" or "/tmp")
    .. "/cairn-spec-XXXXXX"))
  return path, function()
    support.run { "rm", "-rf", path }
  end
end

function support.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
  return path
end

function support.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

-- Runs a program without a shell and waits: exit code or nil, signal, its
-- output and errors together.
function support.run(argv, options)
  options = options or {}
  local pieces, code, signal, open = {}, nil, nil, 3
  local out, err = assert(uv.new_pipe(false)), assert(uv.new_pipe(false))
  local process
  process = assert(uv.spawn(argv[1], {
    args = table.move(argv, 2, #argv, 1, {}), stdio = { nil, out, err },
    env = options.env, cwd = options.cwd,
  }, function(c, s)
    code, signal, open = c, s, open - 1
    process:close()
  end))
  for _, pipe in ipairs { out, err } do
    pipe:read_start(function(failure, data)
      assert(not failure, failure)
      if data then
        pieces[#pieces + 1] = data
      else
        open = open - 1
        pipe:close()
      end
    end)
  end
  -- a program that never ends fails its test, and no other
  local watchdog = assert(uv.new_timer())
  watchdog:start(options.timeout or 240000, 0, function()
    pieces[#pieces + 1] = "\n(ended by the test after its time)\n"
    if code == nil then process:kill "sigkill" end
    for _, pipe in ipairs { out, err } do
      if not pipe:is_closing() then
        open = open - 1
        pipe:close()
      end
    end
  end)
  while open > 0 do uv.run "once" end
  watchdog:close()
  uv.run "nowait" -- one that is still closing when Lua ends crashes luv
  return signal == 0 and code or nil, signal, table.concat(pieces)
end

-- Runs a body as a Cairn task on luv's loop, with a watchdog.
function support.on_loop(cairn, engine, body)
  assert(cairn.attach(engine, uv))
  local ok, err, is_late
  local limit = assert(uv.new_timer())
  limit:start(20000, 0, function()
    is_late = true
    uv.stop()
  end)
  local task = cairn.spawn(function()
    ok, err = xpcall(body, function(e)
      return type(e) == "table" and e or debug.traceback(tostring(e), 2)
    end)
    uv.stop()
  end)
  while ok == nil and not is_late do uv.run() end
  limit:close()
  task:kill()
  engine:detach()
  uv.run "nowait"
  if is_late then error("the watchdog ended this after 20 seconds", 2) end
  if not ok then error(err, 0) end
end

-- Turns until a condition holds; a virtual clock does not move.
function support.until_true(engine, condition)
  for _ = 1, 100000 do
    if condition() then return end
    engine:step(0.01)
  end
  error("this did not become true in 100000 turns", 2)
end

function support.reach(engine, job, state)
  support.until_true(engine, function() return job.JobState == state end)
end

-- An engine with a virtual clock that keeps what it logs.
function support.engine(cairn, options)
  local log = {}
  local all = { clock = "virtual", log = function(m) log[#log + 1] = m end }
  for key, value in pairs(options or {}) do all[key] = value end
  return assert(cairn.open(all)), log
end

-- Under LD_PRELOAD (a sanitizer's library) QEMU's programs hang, since their
-- coroutines confuse it: they run without, through wrappers first in PATH.
if (os.getenv "LD_PRELOAD" or "") ~= "" then
  local wrappers = assert(uv.fs_realpath(build)) .. "/test-bin"
  uv.fs_mkdir(wrappers, tonumber("755", 8))
  for _, program in ipairs { "qemu-img", "qemu-io", "qemu-nbd" } do
    for directory in os.getenv "PATH":gmatch "[^:]+" do
      local path = directory .. "/" .. program
      if directory ~= wrappers and uv.fs_access(path, "X") then
        -- renamed into place: another process may be running it
        local new = ("%s/.%s.%d"):format(wrappers, program, uv.os_getpid())
        support.write(new,
          ('#!/bin/sh\nunset LD_PRELOAD\nexec %s "$@"\n'):format(path))
        assert(uv.fs_chmod(new, tonumber("755", 8)))
        assert(uv.fs_rename(new, wrappers .. "/" .. program))
        break
      end
    end
  end
  uv.os_setenv("PATH", wrappers .. ":" .. os.getenv "PATH")
end

_G.support = support
