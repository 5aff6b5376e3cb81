-- Text for people: what a terminal can show safely, how wide it is there,
-- units, tables, the nearest name, and Lua values made readable.
-- Everything that comes from outside (names, paths, messages) goes through
-- text.printable() before it reaches a terminal: no control sequence of a
-- job's name is ever obeyed.

local text = {}

-- ---- what a terminal can show ---------------------------------------------

-- Code points that a terminal may obey, or that reorder the line around them.
local function is_control(code)
  return code < 0x20
    or (code >= 0x7f and code < 0xa0)
    or code == 0x200e or code == 0x200f
    or (code >= 0x2028 and code <= 0x202e)
    or (code >= 0x2060 and code <= 0x206f)
    or code == 0xfeff
end

-- Calls each(piece, code) for every UTF-8 character; bytes that are none come
-- one by one with code nil.
local function each_character(s, each)
  local at = 1
  while at <= #s do
    local good, bad = utf8.len(s, at)
    local last = good and #s or bad - 1
    for position, code in utf8.codes(s:sub(at, last)) do
      local from = at + position - 1
      each(s:sub(from, from + #utf8.char(code) - 1), code)
    end
    if not good then each(s:sub(bad, bad), nil) end
    at = last + 2
  end
end

-- One line of valid UTF-8 without control characters; newlines and the like
-- become \n, \x1b or \u{202e}.
function text.printable(s)
  s = tostring(s)
  if not s:find("[^\x20-\x7e]") then return s end
  local out = {}
  each_character(s, function(piece, code)
    if not code then
      piece = ("\\x%02x"):format(piece:byte())
    elseif code == 10 then
      piece = "\\n"
    elseif code == 9 then
      piece = "\\t"
    elseif is_control(code) then
      piece = code < 0x100 and ("\\x%02x"):format(code)
        or ("\\u{%x}"):format(code)
    end
    out[#out + 1] = piece
  end)
  return table.concat(out)
end

-- The same, keeping the line breaks of a message that has several lines.
function text.printable_lines(s)
  local lines = {}
  for line in (tostring(s) .. "\n"):gmatch("(.-)\r?\n") do
    lines[#lines + 1] = text.printable((line:gsub("\t", "    ")))
  end
  while #lines > 1 and lines[#lines] == "" do lines[#lines] = nil end
  return table.concat(lines, "\n")
end

-- Ranges of two columns (East Asian Wide and Fullwidth, emoji), and of none
-- (combining marks, joiners), of the Unicode character database.
local wide = {
  { 0x1100, 0x115f }, { 0x231a, 0x231b }, { 0x2329, 0x232a },
  { 0x23e9, 0x23ec }, { 0x2e80, 0x303e }, { 0x3041, 0x33ff },
  { 0x3400, 0x4dbf }, { 0x4e00, 0xa4cf }, { 0xa960, 0xa97f },
  { 0xac00, 0xd7a3 }, { 0xf900, 0xfaff }, { 0xfe30, 0xfe6f },
  { 0xff00, 0xff60 }, { 0xffe0, 0xffe6 }, { 0x16fe0, 0x18aff },
  { 0x1b000, 0x1b2ff }, { 0x1f300, 0x1f64f }, { 0x1f680, 0x1f6ff },
  { 0x1f900, 0x1f9ff }, { 0x1fa70, 0x1faff }, { 0x20000, 0x3fffd },
}
local zero = {
  { 0x0300, 0x036f }, { 0x0483, 0x0489 }, { 0x0591, 0x05bd },
  { 0x0610, 0x061a }, { 0x064b, 0x065f }, { 0x0e31, 0x0e31 },
  { 0x0e34, 0x0e3a }, { 0x1ab0, 0x1aff }, { 0x1dc0, 0x1dff },
  { 0x200b, 0x200d }, { 0x20d0, 0x20ff }, { 0x3099, 0x309a },
  { 0xfe00, 0xfe0f }, { 0xfe20, 0xfe2f }, { 0x1f3fb, 0x1f3ff },
  { 0xe0100, 0xe01ef },
}

local function is_within(ranges, code)
  local low, high = 1, #ranges
  while low <= high do
    local middle = (low + high) // 2
    if code < ranges[middle][1] then
      high = middle - 1
    elseif code > ranges[middle][2] then
      low = middle + 1
    else
      return true
    end
  end
  return false
end

local function columns_of(code)
  if not code then return 1 end
  if code < 0x300 then return 1 end
  if is_within(zero, code) then return 0 end
  return is_within(wide, code) and 2 or 1
end

-- Columns that printable text takes.
function text.width(s)
  if not s:find("[\x80-\xff]") then return #s end
  local sum = 0
  each_character(s, function(_, code) sum = sum + columns_of(code) end)
  return sum
end

-- The longest start of s that takes at most `columns`, and its width.
function text.cut(s, columns)
  local out, used, full = {}, 0, false
  each_character(s, function(piece, code)
    local more = columns_of(code)
    if full or used + more > columns then
      full = true
      return
    end
    used = used + more
    out[#out + 1] = piece
  end)
  return table.concat(out), used
end

-- s in exactly `columns` columns: padded, or cut with a mark at its end.
function text.fit(s, columns, mark)
  local have = text.width(s)
  if have <= columns then return s .. (" "):rep(columns - have) end
  mark = mark or "~"
  local room = columns - text.width(mark)
  if room < 0 then return text.fit((text.cut(s, columns)), columns, "") end
  local head, used = text.cut(s, room)
  return head .. mark .. (" "):rep(room - used)
end

function text.pad_left(s, columns)
  return (" "):rep(columns - text.width(s)) .. s
end

-- Paragraphs wrapped to `columns`; a line that starts with a space is kept.
function text.wrap(s, columns)
  local out = {}
  for line in (s .. "\n"):gmatch("(.-)\n") do
    if line:find("^ ") or line == "" then
      out[#out + 1] = line
    else
      local current
      for word in line:gmatch("%S+") do
        if not current then
          current = word
        elseif text.width(current) + 1 + text.width(word) <= columns then
          current = current .. " " .. word
        else
          out[#out + 1] = current
          current = word
        end
      end
      out[#out + 1] = current
    end
  end
  return out
end

-- ---- units ------------------------------------------------------------------

local prefixes = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" }

-- 0 B, 999 B, 1.50 KiB, 23.4 MiB, 512 GiB: three digits.
function text.bytes(n)
  if n < 1000 then return ("%d B"):format(n // 1) end
  local unit = 0
  repeat
    n = n / 1024
    unit = unit + 1
  until n < 999.5 or unit == #prefixes
  local digits = n < 9.995 and 2 or n < 99.95 and 1 or 0
  return ("%." .. digits .. "f %s"):format(n, prefixes[unit])
end

-- 0:07, 12:34, 1:02:03, 2d 03:04
function text.duration(seconds)
  if seconds ~= seconds or seconds >= 86400 * 1000 then return "--:--" end
  local s = math.tointeger((math.max(0, seconds) + 0.5) // 1)
  if s >= 86400 then
    return ("%dd %02d:%02d"):format(s // 86400, s % 86400 // 3600,
      s % 3600 // 60)
  elseif s >= 3600 then
    return ("%d:%02d:%02d"):format(s // 3600, s % 3600 // 60, s % 60)
  end
  return ("%d:%02d"):format(s // 60, s % 60)
end

-- For sentences: 0.04 s, 3.2 s, 1:15 minutes
function text.took(seconds)
  if seconds < 0.995 then return ("%.2f s"):format(seconds) end
  if seconds < 59.95 then return ("%.1f s"):format(seconds) end
  return text.duration(seconds) .. (seconds < 3600 and " min" or "")
end

function text.count(n, noun)
  return n == 1 and ("1 " .. noun) or ("%d %ss"):format(n, noun)
end

-- ---- tables -------------------------------------------------------------------

-- Lines of a table: `columns` is an array of { title =, is_number = }, each
-- row an array of strings. Nothing is cut: a table may be piped on.
function text.table(columns, rows)
  local widths = {}
  for i, column in ipairs(columns) do
    widths[i] = text.width(column.title)
    for _, row in ipairs(rows) do
      widths[i] = math.max(widths[i], text.width(row[i]))
    end
  end
  local function line(cells)
    local out = {}
    for i, cell in ipairs(cells) do
      if columns[i].is_number then
        out[i] = text.pad_left(cell, widths[i])
      else
        out[i] = text.fit(cell, widths[i])
      end
    end
    return (table.concat(out, "  "):gsub(" +$", ""))
  end
  local titles = {}
  for i, column in ipairs(columns) do titles[i] = column.title end
  local lines = { line(titles) }
  for _, row in ipairs(rows) do lines[#lines + 1] = line(row) end
  return lines
end

-- ---- the nearest name ---------------------------------------------------------

-- "; the nearest is X; valid: X, Y, Z" for a word that is none of them.
function text.valid(word, candidates)
  local list = "; valid: " .. table.concat(candidates, ", ")
  local ok, core = pcall(require, "cairn.core")
  if not ok or #candidates < 2 then return list end
  return "; the nearest is " .. core.nearest(word, candidates) .. list
end

-- ---- Lua values -----------------------------------------------------------------

local reserved = {}
for word in ([[and break do else elseif end false for function goto if in local
  nil not or repeat return then true until while]]):gmatch("%a+") do
  reserved[word] = true
end

local function quoted(s, limit)
  local tail = ""
  if #s > limit then
    tail = (" ... (%d bytes)"):format(#s)
    s = text.cut(s:sub(1, limit + 4), limit)
  end
  s = s:gsub("\\", "\\\\"):gsub('"', '\\"')
  return '"' .. text.printable(s) .. '"' .. tail
end

-- What metatable a value really has; nothing of the user's runs.
local function metamethod(value, name)
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and rawget(meta, name) or nil
end

local function address(value)
  local name = metamethod(value, "__name")
  return ("%s: %p"):format(type(name) == "string" and name or type(value),
    value)
end

local plain = { ["nil"] = true, boolean = true, number = true, string = true }

-- As tostring(), but a __tostring is called from Lua: in a task it can then give
-- way, where a call through C would hold up everybody else.
function text.tostring(value)
  if plain[type(value)] then return tostring(value) end
  local fn = metamethod(value, "__tostring")
  if fn == nil then return address(value) end
  local s = fn(value)
  if type(s) ~= "string" then
    error("'__tostring' must return a string, got " .. type(s), 0)
  end
  return s
end

-- The same for errors and the like: what raises in it is said.
function text.describe(value)
  local ok, s = pcall(text.tostring, value)
  if ok then return s end
  return ("<%s: %s>"):format(type(value),
    type(s) == "string" and s or "its __tostring raised " .. type(s))
end

local KEYS_MAX = 2000   -- that are sorted
local COUNT_MAX = 100000

local rank = { number = 1, string = 2, boolean = 3 }

local function ordered(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return (rank[ta] or 4) < (rank[tb] or 4) end
  if ta == "number" or ta == "string" then return a < b end
  if ta == "boolean" then return tostring(a) < tostring(b) end
  return ("%p"):format(a) < ("%p"):format(b)
end

-- The pairs of a table as a list of { key, value }, those of a list first, and
-- how many more there are. At most `most`: a table may be huge, or its __pairs
-- without an end.
local function entries_of(value, most)
  local list, more = {}, 0
  local fn = metamethod(value, "__pairs")
  if fn then
    local iterator, state, key = fn(value)
    while true do
      local item
      key, item = iterator(state, key)
      if key == nil then return list, more, 0 end
      if #list >= most then return list, nil, 0 end
      list[#list + 1] = { key, item }
    end
  end
  local length = 0
  while length < most and rawget(value, length + 1) ~= nil do
    length = length + 1
    list[length] = { length, rawget(value, length) }
  end
  local size = length < most and length or math.max(length, rawlen(value))
  more = size - length
  local keys, count = {}, 0
  for key in next, value do
    if not (math.type(key) == "integer" and key >= 1 and key <= size) then
      count = count + 1
      if count <= KEYS_MAX then keys[count] = key end
      if count > COUNT_MAX then break end
    end
  end
  table.sort(keys, ordered)
  local take = math.min(#keys, most - length)
  for i = 1, take do
    list[#list + 1] = { keys[i], rawget(value, keys[i]) }
  end
  if count > COUNT_MAX then return list, nil, length end
  return list, more + count - take, length
end

-- A value as the console shows it: valid Lua where that is possible, bounded
-- in depth, entries and length, safe with cycles and with metamethods that
-- raise. Those run (called from Lua) and may take long: show in a task what
-- anybody else has made.
function text.show(value, limits)
  limits = limits or {}
  local max_depth = limits.depth or 4
  local entries_left = limits.entries or 200
  local max_string = limits.string or 2000
  local bytes_left = limits.bytes or 65536
  local open = {}

  local function show(v, depth, indent)
    local kind = type(v)
    if kind == "string" then return quoted(v, max_string) end
    if plain[kind] then return tostring(v) end
    if kind ~= "table" or metamethod(v, "__tostring") then
      local s = text.describe(v)
      if #s > max_string then
        s = text.cut(s:sub(1, max_string + 4), max_string)
          .. (" ... (%d bytes)"):format(#s)
      end
      return text.printable(s)
    end
    if open[v] then return "<cycle>" end
    if next(v) == nil and not metamethod(v, "__pairs") then return "{}" end
    if depth >= max_depth then return "{ ... }" end
    local ok, list, more, length = pcall(entries_of, v, entries_left)
    if not ok then
      return text.printable(("<table: its __pairs raised %s>"):format(
        type(list) == "string" and list or type(list)))
    end
    open[v] = true
    local parts, is_long, size, shown = {}, false, 0, 0
    local function add(piece)
      parts[#parts + 1] = piece
      size = size + #piece + 2
      is_long = is_long or piece:find("\n") ~= nil
    end
    for i, entry in ipairs(list) do
      if entries_left <= 0 or bytes_left <= 0 then break end
      shown, entries_left = i, entries_left - 1
      local key, name = entry[1], ""
      if i > length then
        if type(key) == "string" and key:find("^[%a_][%w_]*$")
          and not reserved[key] then
          name = key .. " = "
        else
          name = "[" .. show(key, max_depth, indent) .. "] = "
        end
      end
      local piece = name .. show(entry[2], depth + 1, indent .. "  ")
      bytes_left = bytes_left - #piece
      add(piece)
    end
    if not more then
      add "... more"
    elseif more + #list - shown > 0 then
      add(("... %d more"):format(more + #list - shown))
    end
    open[v] = nil
    if not is_long and size + #indent <= 76 then
      return #parts == 0 and "{}" or "{ " .. table.concat(parts, ", ") .. " }"
    end
    return "{\n" .. indent .. "  "
      .. table.concat(parts, ",\n" .. indent .. "  ")
      .. "\n" .. indent .. "}"
  end

  return show(value, 0, "")
end

return text
