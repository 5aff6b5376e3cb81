-- luv ends the process (exit code 255) when a callback raises, even under
-- pcall(uv.run). The command must not die so: a policy's own timer may raise
-- while an export of another machine is running. So every function handed to
-- luv is replaced by one that catches, reports and goes on. Only the command
-- does this, in its own process; the library never touches luv.

local guard = {}

-- Their function arguments run in another Lua state, without upvalues.
local is_foreign = { new_thread = true, new_work = true, thread_create = true }

local function default_report(message)
  io.stderr:write("cairn: uncaught error in a callback: ", message, "\n")
end

guard.report = default_report
guard.count = 0 -- of errors caught

function guard.wrap(fn)
  return function(...)
    local results = table.pack(xpcall(fn, function(err)
      return debug.traceback(tostring(err), 2)
    end, ...))
    if results[1] then return table.unpack(results, 2, results.n) end
    guard.count = guard.count + 1
    local ok = pcall(guard.report, results[2])
    if not ok then pcall(default_report, results[2]) end
  end
end

local function wrap_arguments(fn)
  return function(...)
    local arguments = table.pack(...)
    for i = 1, arguments.n do
      if type(arguments[i]) == "function" then
        arguments[i] = guard.wrap(arguments[i])
      end
    end
    return fn(table.unpack(arguments, 1, arguments.n))
  end
end

-- Wraps every function of luv once, in the module's table and in the method
-- tables of its handles.
function guard.install(uv)
  if guard.is_installed then return end
  guard.is_installed = true
  local replaced = {}
  local function wrap_table(t)
    for name, fn in pairs(t) do
      if type(name) == "string" and type(fn) == "function"
        and not is_foreign[name] and not name:find("^__") then
        replaced[fn] = replaced[fn] or wrap_arguments(fn)
        t[name] = replaced[fn]
      end
    end
  end
  local done = {}
  for key, meta in pairs(debug.getregistry()) do
    if type(key) == "string" and key:find("^uv_") and type(meta) == "table" then
      local methods = rawget(meta, "__index")
      if type(methods) == "table" and not done[methods] then
        done[methods] = true
        wrap_table(methods)
      end
    end
  end
  wrap_table(uv)
end

return guard
