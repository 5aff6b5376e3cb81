-- The lines that were typed at a prompt, kept in a file of the user's own: one
-- entry a line, "\n" and "\\" escaped. Several consoles append to it at once;
-- who finds it much too long at its start writes it anew, whole. Without a file
-- (no home, no permission) it is kept while the console lives.

local text = require "cairn.cli.text"

local history = {}

local History = {}
History.__index = History

local ENTRIES_MAX = 1000
local ENTRY_MAX = 8192    -- bytes; longer ones are not kept in the file
local FILE_MAX = 4194304
local DIRECTORY_MODE, FILE_MODE = tonumber("700", 8), tonumber("600", 8)

-- Where it is: a path, or nil.
function history.path(uv)
  local state = uv.os_getenv "XDG_STATE_HOME"
  if state and state:find "^/" then return state .. "/cairn/history" end
  local home = uv.os_getenv "HOME"
  if home and home:find "^/" then
    return home .. "/.local/state/cairn/history"
  end
end

local function encode(entry)
  return (entry:gsub("\\", "\\\\"):gsub("\n", "\\n"))
end

local function decode(line)
  return (line:gsub("\\(.)", { n = "\n", ["\\"] = "\\" }))
end

local function make_directories(uv, path)
  local made = ""
  for part in path:match "^(.*)/":gmatch "[^/]+" do
    made = made .. "/" .. part
    uv.fs_mkdir(made, DIRECTORY_MODE)
  end
end

local function read(uv, path)
  local fd, _, name = uv.fs_open(path, "r", 0)
  if not fd then return nil, name end
  local stat = uv.fs_fstat(fd)
  if not stat or stat.type ~= "file" or stat.size > FILE_MAX then
    uv.fs_close(fd)
    return nil, stat and stat.type ~= "file" and "no file" or "too large"
  end
  local data = uv.fs_read(fd, stat.size, 0)
  uv.fs_close(fd)
  return data
end

-- Whole or not at all.
local function replace(uv, path, entries)
  local new = ("%s.%d"):format(path, uv.os_getpid())
  local fd = uv.fs_open(new, "wx", FILE_MODE)
  if not fd then return end
  local lines = {}
  for i, entry in ipairs(entries) do lines[i] = encode(entry) .. "\n" end
  local data = table.concat(lines)
  local written = uv.fs_write(fd, data, 0)
  uv.fs_close(fd)
  if written == #data and uv.fs_rename(new, path) then return end
  uv.fs_unlink(new)
end

-- open(uv, path) -> history. `path` nil: without a file.
function history.open(uv, path)
  local self = setmetatable({ uv = uv, path = path, entries = {} }, History)
  if not path then return self end
  make_directories(uv, path)
  local data, why = read(uv, path)
  if why and why ~= "ENOENT" and why ~= "too large" then
    self.path = nil
    return self
  end
  local count = 0
  for line in (data or ""):gmatch "([^\n]+)\n" do
    count = count + 1
    local entry = decode(line)
    if utf8.len(entry) then self.entries[#self.entries + 1] = entry end
  end
  if #self.entries > ENTRIES_MAX then
    self.entries = table.move(self.entries, #self.entries - ENTRIES_MAX + 1,
      #self.entries, 1, {})
  end
  if count > 2 * ENTRIES_MAX or why == "too large" then
    replace(uv, path, self.entries)
  end
  return self
end

-- add(entry): one that is empty, begins with a space or is the last one again
-- is not kept. nil | a message, once, when the file cannot be written.
function History:add(entry)
  entry = entry:gsub("%s+$", "")
  if entry == "" or entry:find "^%s" then return end
  if entry == self.entries[#self.entries] then return end
  self.entries[#self.entries + 1] = entry
  if #self.entries > ENTRIES_MAX then table.remove(self.entries, 1) end
  if not self.path or #entry > ENTRY_MAX then return end
  local uv, path = self.uv, self.path
  local fd, message = uv.fs_open(path, "a", FILE_MODE)
  local data = encode(entry) .. "\n"
  local written
  if fd then
    uv.fs_fchmod(fd, FILE_MODE)
    written, message = uv.fs_write(fd, data, -1)
    uv.fs_close(fd)
  end
  if written ~= #data then
    self.path = nil
    return ("the history is not kept: %s"):format(text.printable(
      tostring(message or path .. ": not written whole")))
  end
end

return history
