-- Error objects, and the checks of tables of options. An error object is a
-- table { code =, message = } that prints as its message; raised where the
-- caller is told the code too, and respected when the body of a job raises one.

local core = require "cairn.core"
core.trust()

local failure = {}

local Failure = { __name = "cairn.error" }
Failure.__tostring = function(e) return tostring(e.message) end
core.set_error_metatable(Failure)

-- Rows of the table of errors: by place, and by code.
failure.errors = core.errors()
for _, row in ipairs(failure.errors) do failure.errors[row.code] = row end

-- Where a specification was written ("FILE: jobs.KEY"), for those that
-- policy_load returned.
failure.origin = setmetatable({}, { __mode = "k" })

function failure.new(code, format, ...)
  local message = select("#", ...) > 0 and format:format(...) or format
  return setmetatable({ code = code, message = message }, Failure)
end

function failure.raise(code, format, ...)
  error(failure.new(code, format, ...), 0)
end

function failure.is(value) return getmetatable(value) == Failure end

-- What was raised, as nil, message, code.
function failure.results(err)
  if type(err) == "table" and err.code ~= nil then
    return nil, tostring(err.message or err.code), tostring(err.code)
  end
  return nil, tostring(err), "internal"
end

-- The stack from where an error was raised down to the function that xpcall
-- called: what called that is the same each time.
function failure.stack(level)
  local lines = {}
  for line in (debug.traceback("", level + 1) .. "\n"):gmatch("(.-)\n") do
    if line:find("[C]: in function 'xpcall'", 1, true) then break end
    lines[#lines + 1] = line
  end
  return table.concat(lines, "\n")
end

-- What was raised, as text: a plain table has its message, never an address.
function failure.text(err)
  local meta = getmetatable(err)
  if type(err) == "table"
    and not (type(meta) == "table" and rawget(meta, "__tostring")) then
    local message = rawget(err, "message") or rawget(err, 1)
    return message ~= nil and type(message) ~= "table" and tostring(message)
      or "(a table without a message was raised)"
  end
  local ok, message = pcall(tostring, err)
  return ok and message or "(an error object that cannot be shown)"
end

-- A message handler: the error as text, with that stack.
function failure.traceback(err)
  return failure.text(err) .. failure.stack(3)
end

-- A name as messages show it: short, on one line.
function failure.shown(value)
  local s = tostring(value)
  if #s > 60 then s = s:sub(1, 57) .. "..." end
  return (s:gsub("%c", "?"))
end

function failure.nearest(word, candidates)
  return core.nearest(failure.shown(word), candidates)
end

local function sorted_names(fields)
  local names = {}
  for name in pairs(fields) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- What a table has that a list 1 to n has not, or nil. A hole is looked for:
-- what comes after it would be left out without a word.
function failure.not_a_list(value)
  local count, highest = 0, 0
  for key in pairs(value) do
    if math.type(key) ~= "integer" or key < 1 then
      return "a table with named keys"
    end
    count, highest = count + 1, math.max(highest, key)
  end
  if highest > count then return "one with a hole (a nil) in it" end
  return nil
end

-- fields: name = "string" | "number" | "boolean" | "table" | "function" |
-- "list" (of anything) | "any", with a trailing "!" when it must be there.
-- `what` is where, for messages. Raises.
function failure.check_fields(t, fields, what)
  if type(t) ~= "table" then
    failure.raise("wrong_type", "%s: a table expected, got %s", what, type(t))
  end
  for key in pairs(t) do
    if type(key) ~= "string" then
      failure.raise("unknown_key",
        "%s: names expected as keys, got %s (valid: %s)", what,
        failure.shown(key), table.concat(sorted_names(fields), ", "))
    elseif next(fields) == nil then
      failure.raise("unknown_key", "%s: unknown key '%s'; none is expected",
        what, failure.shown(key))
    elseif fields[key] == nil then
      failure.raise("unknown_key", "%s: unknown key '%s'; did you mean '%s'? "
        .. "(valid: %s)", what, failure.shown(key),
        failure.nearest(key, sorted_names(fields)),
        table.concat(sorted_names(fields), ", "))
    end
  end
  for _, name in ipairs(sorted_names(fields)) do
    local wanted, required = fields[name]:match("^(%a+)(!?)$")
    local value = t[name]
    if value == nil then
      if required == "!" then
        failure.raise("invalid_argument", "%s: %s is missing (a %s)", what,
          name, wanted == "any" and "value" or wanted)
      end
    elseif wanted == "list" then
      local wrong = type(value) ~= "table" and type(value)
        or failure.not_a_list(value)
      if wrong then
        failure.raise("wrong_type", "%s: %s must be a list, got %s", what,
          name, wrong)
      end
    elseif wanted ~= "any" and type(value) ~= wanted then
      failure.raise("wrong_type", "%s: %s must be a %s, got %s", what, name,
        wanted, type(value))
    end
  end
end

return failure
