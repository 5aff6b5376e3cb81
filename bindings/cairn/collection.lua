-- cairn.collection: a plain table, checked, with absolute paths, marked by its
-- metatable. Whether ids are unique and sources exist is the engine's to say.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"
local path = require "cairn.path"

local collection = {}

local Collection = { __name = "cairn.collection" }

local top_fields = { CollectionId = "string!", ElementName = "string",
  machines = "list!", source_directories = "list",
  clone_directory = "string" }
local machine_fields = { VirtualMachineId = "string!", ElementName = "string",
  disks = "list", config = "list", runtime = "list", guest_state = "list" }
local disk_fields = { id = "string!", path = "string!", format = "string!",
  assume_quiescent = "boolean", tracker = "string" }

function collection.is(value) return getmetatable(value) == Collection end

local function paths(list, base, what)
  local out = {}
  for i, name in ipairs(list or {}) do
    if type(name) ~= "string" or name == "" then
      failure.raise("wrong_type", "%s[%d]: a path expected, got %s", what, i,
        name == "" and "an empty string" or type(name))
    end
    out[i] = path.absolute(name, base)
  end
  return out
end

local function check_disk(disk, base, what)
  failure.check_fields(disk, disk_fields, what)
  if not disk.id:find("^%w[%w._-]*$") or #disk.id > 64 then
    failure.raise("invalid_argument", "%s: '%s' is no disk id; valid are 1 to "
      .. "64 of A-Z a-z 0-9 . _ -, first a letter or digit", what,
      failure.shown(disk.id))
  end
  if disk.format ~= "raw" and disk.format ~= "qcow2" then
    failure.raise("invalid_argument",
      "%s: format is '%s'; valid are 'raw' and 'qcow2'", what,
      failure.shown(disk.format))
  end
  if disk.path == "" then
    failure.raise("bad_path", "%s: path is empty", what)
  end
  return { id = disk.id, path = path.absolute(disk.path, base),
    format = disk.format, assume_quiescent = disk.assume_quiescent,
    tracker = disk.tracker }
end

local function check_machine(machine, base, what)
  failure.check_fields(machine, machine_fields, what)
  local out = { VirtualMachineId = machine.VirtualMachineId,
    ElementName = machine.ElementName, disks = {} }
  for i, disk in ipairs(machine.disks or {}) do
    out.disks[i] = check_disk(disk, base, ("%s.disks[%d]"):format(what, i))
  end
  for _, role in ipairs { "config", "runtime", "guest_state" } do
    out[role] = paths(machine[role], base, what .. "." .. role)
  end
  return out
end

-- A new, checked collection from a table; raises. One that has been through
-- this comes out as it is. `what` begins every message.
function collection.check(t, base, what)
  if collection.is(t) then return t end
  failure.check_fields(t, top_fields, what)
  local out = { CollectionId = t.CollectionId, ElementName = t.ElementName,
    machines = {} }
  if t.source_directories then
    out.source_directories = paths(t.source_directories, base,
      what .. ".source_directories")
  end
  if t.clone_directory == "" then
    failure.raise("bad_path", "%s: clone_directory is empty", what)
  elseif t.clone_directory then
    out.clone_directory = path.absolute(t.clone_directory, base)
  end
  if #t.machines == 0 then
    failure.raise("invalid_argument",
      "%s: machines is empty; a collection has at least one", what)
  end
  for i, machine in ipairs(t.machines) do
    out.machines[i] = check_machine(machine, base,
      ("%s.machines[%d]"):format(what, i))
  end
  return setmetatable(out, Collection)
end

-- cairn.collection(t), called with its caller's place.
function collection.new(source, line, t)
  local file = type(source) == "string" and source:match("^@(.+)$")
  local what = file and ("%s:%d: cairn.collection"):format(file, line)
    or "cairn.collection"
  return collection.check(t, path.base_of(source), what)
end

-- cairn.collection_from(t, file): what a file returned, completed as
-- cairn.collection would have done it there: collection | nil, message, code.
function collection.from(t, file)
  if type(file) ~= "string" then
    error("cairn.collection_from: the name of the file expected", 2)
  end
  local ok, result = pcall(collection.check, t, path.base_of("@" .. file),
    file)
  if ok then return result end
  if not failure.is(result) then error(result, 0) end
  return failure.results(result)
end

return collection
