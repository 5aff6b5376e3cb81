-- Who hears what: results go to standard output and nothing else does;
-- everything for the person at the terminal goes to standard error. A failed
-- write of a result is an error of the command, never silence.

local text = require "cairn.cli.text"

local say = {}

local Failure = {}
Failure.__index = Failure
Failure.__tostring = function(self) return self.message end

-- Ends the command: `exit` is its exit code, the message is for people.
function say.fail(exit, format, ...)
  local message = select("#", ...) > 0 and format:format(...) or format
  error(setmetatable({ exit = exit, message = message }, Failure), 0)
end

function say.is_failure(value) return getmetatable(value) == Failure end

-- Ends the command with what the module returned: nil, message, code.
function say.fail_with(cairn, message, code)
  local known = code and cairn.errors and cairn.errors[code]
  say.fail(known and known.exit_code or 1, "%s", text.printable_lines(message))
end

local function check_written(ok, message, number)
  if ok then return end
  say.fail(1, "cannot write standard output: %s", number == 9 and "it is closed"
    or message)
end

function say.result(line) check_written(io.stdout:write(line, "\n")) end

-- A value as JSON, keys sorted. `lists` names the members that are lists also
-- when they are empty, which a Lua table cannot say.
local function encode(cairn, value, lists, name)
  if type(value) ~= "table" then return assert(cairn.json_encode(value)) end
  local parts = {}
  if #value > 0 or (next(value) == nil and lists[name]) then
    for i, element in ipairs(value) do
      parts[i] = encode(cairn, element, lists)
    end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do
    parts[i] = encode(cairn, key, lists) .. ":"
      .. encode(cairn, value[key], lists, key)
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- An object as one line.
function say.json(cairn, object, lists)
  say.result(encode(cairn, object, lists))
end

function say.flush() check_written(io.stdout:flush()) end

function say.note(line) io.stderr:write(line, "\n") end

-- ---- the terminal ----------------------------------------------------------------

local function environment(name)
  local value = os.getenv(name)
  return value ~= "" and value or nil
end

-- A handle of luv's on the terminal behind a descriptor, which stays as it is:
-- in the place of what it is given luv puts a file that does not block and is
-- closed in programs, so output would be lost and io.read() fail.
function say.tty(uv, fd, is_input)
  local flags = uv.constants.O_RDWR | uv.constants.O_NOCTTY
  local own = uv.fs_open("/proc/self/fd/" .. fd, flags, 0)
  return uv.new_tty(own or fd, is_input)
end

-- What the terminal on a descriptor can do; nil when it is none that can
-- move its cursor.
function say.terminal(uv, descriptor)
  if uv.guess_handle(descriptor) ~= "tty" then return nil end
  local term = environment "TERM"
  if not term or term == "dumb" then return nil end
  local locale = environment "LC_ALL" or environment "LC_CTYPE"
    or environment "LANG" or ""
  return {
    unicode = locale:lower():find("utf%-?8") ~= nil,
    colour = environment "NO_COLOR" == nil,
  }
end

return say
