-- The signals that end a command, through luv's loop, and what ends the process
-- when the loop cannot turn (bindings/signal.c).

local core = require "cairn.core"

local signals = {}

-- Calls handler(name) for each of SIGINT, SIGTERM and SIGHUP that comes, or for
-- those in `names`; one that is ignored from outside (nohup) stays so. Returns
-- the handles.
function signals.watch(uv, handler, names)
  local handles, wanted = {}, {}
  for _, name in ipairs(names or {}) do wanted[name] = true end
  for _, name in ipairs(core.process_signals()) do
    if not names or wanted[name] then
      local signal = assert(uv.new_signal())
      uv.signal_start(signal, name, function()
        core.process_seen()
        handler(name)
      end)
      uv.unref(signal)
      handles[#handles + 1] = signal
    end
  end
  core.process_guard()
  return handles
end

-- All jobs have ended: closes what watches signals, and from here on one that
-- comes too late changes nothing.
function signals.finish(close)
  core.process_hold()
  local ok, err = pcall(close)
  core.process_late()
  if not ok then error(err, 0) end
end

-- Whether an end by signal has to show the terminal's cursor again.
function signals.set_cursor(is_hidden) core.process_cursor(is_hidden) end

return signals
