-- An export that fails is tried again, when that can help and as late as it needs.
--
--   what passes by itself (connections, locks, a busy disk)   1, 5, 30 minutes
--   a source or a target that is away                          10, 30, 60 minutes
--   a full disk                                                30, 60, 120 minutes
--   what only a person can put right                           not tried again
--
-- A quarter of an hour after the export a second job looks at the space: where
-- less than `free_percent` of the file system is free it prunes to the last
-- `keep_short` points, so that the next attempt has room. After `full_after`
-- failed attempts in a row for which the increment may be to blame, a full is
-- made instead, which needs none of the points before it.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview recovery.lua
--   cairn run recovery.lua --set directory=/tmp/out --job nightly --dry-run
--   cairn run recovery.lua --follow --store /var/lib/cairn/cairn.db
--   cp recovery.lua /etc/cairn/policies/ && cairn serve

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
local time = setting("time", "01:00")          -- of the export
local zone = setting("zone", "")               -- Europe/Berlin; "": the host's
local full_after = setting("full_after", 3, 1, 30)
local free_percent = setting("free_percent", 10, 0, 99) -- 0: never prune
local keep_short = setting("keep_short", 7, 1, 100000)
local notify = setting("notify", "log")        -- or mailto:ops@example.org

-- ---- machines -----------------------------------------------------------
-- Paths are relative to this file. The ids are GUIDs; choose them once (uuidgen).

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

if not directory:find "^/" then -- what a function calls is no declaration
  directory = set.file:match "^(.*/)" .. directory
end

local hour, minute = time:match "^(%d%d?):(%d%d)$"
hour, minute = tonumber(hour), tonumber(minute)
if not hour or hour > 23 or minute > 59 then
  error(("setting time is '%s'; HH:MM expected, 00:00 to 23:59"):format(time))
end
local seconds = hour * 3600 + minute * 60

-- By ErrorCode, as docs/job-model.md lists them: minutes before each further
-- attempt, and whether a full would fail just the same.
local passing, away, space = { 1, 5, 30 }, { 10, 30, 60 }, { 30, 60, 120 }
local kinds = {
  [2] = { delays = passing, is_elsewhere = true },  -- no_memory
  [9] = { delays = away, is_elsewhere = true },     -- not_found
  [15] = { delays = passing, is_elsewhere = true }, -- busy
  [16] = { delays = passing },                      -- timeout
  [17] = { is_elsewhere = true },                   -- permission_denied
  [18] = { delays = passing },                      -- io_error
  [19] = { delays = space, is_elsewhere = true },   -- disk_full
  [20] = { delays = away, is_elsewhere = true },    -- source_missing
  [21] = { delays = passing, is_elsewhere = true }, -- source_in_use
  [22] = { delays = passing, is_elsewhere = true }, -- source_changed
  [26] = { delays = away, is_elsewhere = true },    -- bad_path
  [28] = { delays = passing, is_elsewhere = true }, -- directory_locked
  [30] = { delays = passing },                      -- export_corrupt
  [33] = { delays = passing },                      -- helper_failed
  [34] = { delays = passing },                      -- nbd
  [37] = { is_elsewhere = true },                   -- terminated
  [38] = { is_elsewhere = true },                   -- killed
  [40] = { delays = passing, is_elsewhere = true }, -- store_failed
  [42] = { delays = passing },                      -- digest_mismatch
}

local function on_failure(_, err, attempt)
  local kind = kinds[err.ErrorCode]
  local minutes = kind and kind.delays and kind.delays[attempt]
  if not minutes then return "Continue With Next Job" end
  return { action = "Re-run Job", delay = minutes * 60 }
end

-- Attempts that failed since the last good one, as far as the increment may be
-- to blame; those whose cause lay elsewhere say nothing about it.
local function base(_, history)
  local failed = 0
  for i = #history, 1, -1 do
    local record = history[i]
    if record.JobState == "Exception" then
      local kind = kinds[record.ErrorCode]
      if not (kind and kind.is_elsewhere) then failed = failed + 1 end
    elseif record.JobState == "Completed"
      or record.JobState == "Completed With Warnings" then
      break
    end
  end
  return failed >= full_after and "none" or "latest"
end

-- The body of the look at the space.
local function make_room(job)
  local report, message, code = cairn.doctor(directory)
  if not report and code == "not_found" then return end -- no export yet, or away
  if not report then error { code = code, message = message } end
  local free = 100 * report.free_bytes / report.total_bytes
  if free >= free_percent then return end
  local pruned
  pruned, message, code = cairn.prune { directory = directory,
    collection = farm, keep = { last = keep_short } }
  if pruned then
    job:warn(("%s: %.1f %% free, less than %d; pruned to the last %d points, %d "
      .. "removed"):format(directory, free, free_percent, keep_short,
      #pruned.removed))
  elseif code ~= "directory_locked" and code ~= "not_found" then
    error { code = code, message = message } -- else the export is on: it has room
  end
end

-- ---- tests: run whenever the file is loaded by a service ----------------

local function failures(...)
  local history = { { JobState = "Completed", ErrorCode = 0 } }
  for _, code in ipairs { ... } do
    history[#history + 1] = { JobState = "Exception", ErrorCode = code }
  end
  return history
end

local tests = {
  ["what passes is tried after 1, 5 and 30 minutes"] = function(policy)
    for attempt, minutes in ipairs { 1, 5, 30 } do
      local answer = policy.jobs.nightly.on_failure({}, { ErrorCode = 34 }, attempt)
      assert(answer.action == "Re-run Job" and answer.delay == minutes * 60)
    end
    assert(policy.jobs.nightly.on_failure({}, { ErrorCode = 34 }, 4)
      == "Continue With Next Job")
  end,
  ["a full disk has more time"] = function(policy)
    assert(policy.jobs.nightly.on_failure({}, { ErrorCode = 19 }, 1).delay == 1800)
    assert(policy.jobs.nightly.on_failure({}, { ErrorCode = 19 }, 3).delay == 7200)
  end,
  ["what a person must put right is not tried again"] = function(policy)
    for _, code in ipairs { 3, 4, 17, 24, 25, 37 } do
      assert(policy.jobs.nightly.on_failure({}, { ErrorCode = code }, 1)
        == "Continue With Next Job", code)
    end
  end,
  ["an increment that keeps failing becomes a full"] = function(policy)
    local codes = {}
    assert(policy.jobs.nightly.base({}, {}) == "latest")
    for i = 1, full_after do
      assert(policy.jobs.nightly.base({}, failures(table.unpack(codes))) == "latest")
      codes[i] = 42
    end
    local history = failures(table.unpack(codes))
    assert(policy.jobs.nightly.base({}, history) == "none")
    history[#history + 1] = { JobState = "Completed With Warnings" }
    assert(policy.jobs.nightly.base({}, history) == "latest")
  end,
  ["a full disk, a lost source, a skipped run are no reason"] = function(policy)
    local history = failures()
    for _ = 1, full_after do
      history[#history + 1] = { JobState = "Exception", ErrorCode = 19 }
      history[#history + 1] = { JobState = "Exception", ErrorCode = 20 }
      history[#history + 1] = { skipped = 1, reason = "missed" }
    end
    assert(policy.jobs.nightly.base({}, history) == "latest")
  end,
}

local where = zone ~= "" and zone or nil

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm nightly",
      RunStartInterval = seconds, -- after midnight
      JobRunTimes = 0,            -- without limit
      zone = where,
      Notify = notify,
      on_failure = on_failure,
      base = base,
      export = { collection = farm, directory = directory, base = "latest" },
    },
    room = {
      Name = "web-farm room",
      RunStartInterval = (seconds + 900) % 86400,
      JobRunTimes = 0,
      zone = where,
      Notify = notify,
      run = make_room,
    },
  },
  tests = tests,
}
