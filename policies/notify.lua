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

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  time = "1h",                          -- of the export, after midnight
  zone = "",                            -- Europe/Berlin; "": the host's
  pager = "/usr/local/bin/page --json", -- words, no shell
  mail = "root@localhost",
})

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

local command = {}
for word in set.pager:gmatch "%S+" do command[#command + 1] = word end
if not (command[1] or ""):find "^/" then
  error(("setting pager is '%s'; a program by its absolute path and its "
    .. "arguments expected"):format(set.pager))
elseif not set.mail:find "^[^%s,]+$" then
  error(("setting mail is '%s'; one address expected"):format(set.mail))
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
      RunStartInterval = set.time,
      JobRunTimes = 0, -- without limit
      zone = set.zone ~= "" and set.zone or nil,
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
  },
  handlers = { pager = command, mail = "mailto:" .. set.mail },
  notify = notify,
  tests = tests,
}
