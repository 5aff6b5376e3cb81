-- Whom a run is told to, by how it has ended.
--
--   Exception                   the pager: a program of the site, which gets the
--                               notice as one JSON object on standard input
--                               (InstanceID, Name, JobState, ErrorCode,
--                               ErrorSummaryDescription, run_number, time)
--   Completed With Warnings,
--   Terminated, Killed          mail, through the system's sendmail
--   Completed                   a line in the log
--
-- A run is told once; one that is tried again (RecoveryAction, on_failure: see
-- recovery.lua) after its last attempt. What goes wrong with a handler is
-- logged, shown by `cairn why`, and never changes the job.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview notify.lua
--   cairn simulate notify.lua
--   cairn run notify.lua --set directory=/nowhere/out \
--     --set "pager=/usr/bin/tee /tmp/page.json"
--   cairn run notify.lua --follow --store /var/lib/cairn/cairn.db
--   cp notify.lua /etc/cairn/policies/ && cairn serve

local set = ...
local cairn = require "cairn"

local known = { file = true }

-- What --set NAME=VALUE gives, else the default; a number is a whole one.
local function setting(name, default, least, most)
  local value = set[name] or default
  known[name] = true
  if type(default) ~= "number" then return value end
  local number = math.tointeger(tonumber(value))
  if not number or number < least or number > most then
    error(("setting %s is '%s'; a whole number from %d to %d expected"):format(
      name, value, least, most), 2)
  end
  return number
end

-- ---- settings -----------------------------------------------------------

local directory = setting("directory", "/srv/backup/web-farm")
local time = setting("time", "1h")             -- of the export, after midnight
local zone = setting("zone", "")               -- Europe/Berlin; "": the host's
local pager = setting("pager", "/usr/local/bin/page --json") -- words, no shell
local mail = setting("mail", "root@localhost")

-- ---- machines -----------------------------------------------------------
-- Paths are relative to this file. The ids are GUIDs: choose them once, by
-- uuidgen.

local farm = cairn.collection {
  CollectionId = "6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01",
  ElementName = "web-farm",
  machines = {
    { VirtualMachineId = "0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001",
      ElementName = "web1",
      disks = {
        { id = "vda", path = "images/web1.raw", format = "raw" },
        { id = "vdb", path = "images/data.raw", format = "raw" },
      } },
  },
}

-- ---- the policy ---------------------------------------------------------

for name in pairs(set) do
  if not known[name] then
    known.file = nil
    local names = {}
    for valid in pairs(known) do names[#names + 1] = valid end
    table.sort(names)
    error(("no setting is called '%s'; valid are %s"):format(name,
      table.concat(names, ", ")))
  end
end

local command = {}
for word in pager:gmatch "%S+" do command[#command + 1] = word end
if not (command[1] or ""):find "^/" then
  error(("setting pager is '%s'; a program by its absolute path and its "
    .. "arguments expected"):format(pager))
elseif not mail:find "^[^%s,]+$" then
  error(("setting mail is '%s'; one address expected"):format(mail))
end

local function notify(job)
  if job.JobState == "Exception" then return "pager" end
  return job.JobState == "Completed" and "log" or "mail"
end

-- ---- tests: run whenever the file is loaded by a service ----------------

local tests = {
  ["only a failure wakes somebody"] = function(policy)
    for state, name in pairs { ["Exception"] = "pager", ["Completed"] = "log",
      ["Completed With Warnings"] = "mail", ["Terminated"] = "mail",
      ["Killed"] = "mail" } do
      assert(policy.notify { JobState = state } == name, state)
    end
  end,
  ["every name has a handler"] = function(policy)
    for _, state in ipairs { "Exception", "Killed" } do
      assert(policy.handlers[policy.notify { JobState = state }])
    end
  end,
  ["the pager is words"] = function(policy)
    assert(policy.handlers.pager[1]:sub(1, 1) == "/")
  end,
}

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm nightly",
      RunStartInterval = time,
      JobRunTimes = 0, -- without limit
      zone = zone ~= "" and zone or nil,
      export = { collection = farm, directory = directory, base = "latest" },
    },
  },
  handlers = { pager = command, mail = "mailto:" .. mail },
  notify = notify,
  tests = tests,
}
