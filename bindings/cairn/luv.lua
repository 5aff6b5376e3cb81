-- An engine on a luv loop: one poll handle, made through luv itself, on the
-- engine's descriptor. Nothing of ours lies in the loop's C structures, so
-- that uv.walk and the end of the Lua state stay safe.
--
-- The handle keeps the loop alive while jobs are unfinished, tasks run or
-- somebody waits; else it is unreferenced, and uv.run returns.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"

local M = {}

local TURNS_US = 2000 -- of turns, before the rest of the loop has its own

function M.attach(engine, uv)
  if not core.is_engine(engine) then
    error("cairn.attach: an engine expected, got " .. type(engine), 2)
  elseif not core.is_open(engine) then
    error("cairn.attach: the engine is closed", 2)
  end
  local S = core.state(engine)
  if S.poll then error("cairn.attach: the engine is attached already", 2) end
  if uv == nil then
    local ok
    ok, uv = pcall(require, "luv")
    if not ok then
      error("cairn.attach: luv is not installed (Debian: lua-luv): "
        .. tostring(uv), 2)
    end
  end
  local poll, message, name = uv.new_poll(core.pollfd(engine))
  if not poll then
    return nil, "cairn.attach: cannot watch the engine: " .. tostring(message),
      name == "ENOMEM" and "no_memory" or "internal"
  end
  local function turns(err)
    if err then E.log(S, "watching the engine: " .. tostring(err)) end
    local stop = core.monotonic() + TURNS_US
    repeat
      -- driven from further up the stack, which then does this too
      if S.is_turning or not core.is_open(engine) then return end
    until not E.turn(engine, S) or core.monotonic() > stop
  end
  -- luv ends the process when a callback raises
  local function guarded(err)
    local ok, why = xpcall(turns, failure.traceback, err)
    if not ok then E.log(S, tostring(why)) end
  end
  local ok
  ok, message = poll:start("r", guarded)
  if not ok then
    poll:close()
    return nil, "cairn.attach: cannot watch the engine: " .. tostring(message),
      "internal"
  end
  S.uv, S.poll = uv, poll
  -- Events may have been left by what was called before.
  S.holds = S.holds + 1
  local settled, why = pcall(E.start_timer, engine, S, 0, function()
    S.holds = S.holds - 1
  end)
  if not settled then
    M.detach(engine)
    error(why, 0)
  end
  E.update_ref(S)
  return true
end

function M.detach(engine)
  if not core.is_engine(engine) then
    error("an engine expected; use a colon: engine:detach()", 2)
  end
  local S = core.state(engine)
  local uv, poll = S.uv, S.poll
  S.uv, S.poll = nil, nil
  if poll and not poll:is_closing() then
    poll:stop()
    poll:close()
    -- luv (1.44) crashes at the end of the Lua state when a handle's closing
    -- has not been completed by then: a turn of the loop completes it.
    if not uv.loop_mode() then uv.run("nowait") end
  end
end

core.engine_methods.detach = M.detach

return M
