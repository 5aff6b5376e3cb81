-- An export that fails is tried again, when that can help, as late as it needs.
--
--   what passes by itself (connections, locks, a busy disk)  1, 5, 30 minutes
--   a source or a target that is away                         10, 30, 60
--   a full disk                                               30, 60, 120
--   what only a person can put right                          not tried again
--
-- The first good one of every `chain` runs is a full. After `full_after` failed
-- attempts in a row for which the increment may be to blame the next one is, too:
-- it needs none of the points before it.
--
-- A quarter of an hour before the export a second job looks at the space: where
-- less than `free_percent` of the file system is free, all points go but the last
-- `keep_short` and what they are based on. A chain goes as a whole, since a merge
-- would need space first. It must come in time: on a disk that is full to the
-- last block no prune can begin.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview recovery.lua
--   cairn simulate recovery.lua
--   cairn run recovery.lua --set directory=/tmp/out --job nightly --dry-run
--   cairn run recovery.lua --follow --store /var/lib/cairn/cairn.db
--   cp recovery.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  time = "01:00",               -- of the export
  zone = "",                    -- Europe/Berlin; "": the host's
  full_after = { 3, 1, 30 },
  free_percent = { 10, 0, 99 }, -- 0: never prune
  keep_short = { 7, 1, 100000 },
  chain = { 14, 1, 31 },
  notify = "log",               -- or mailto:ops@example.org
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

if not set.directory:find "^/" then -- what a function calls is no declaration
  set.directory = set.file:match "^(.*/)" .. set.directory
end

local hour, minute = set.time:match "^(%d%d?):(%d%d)$"
hour, minute = tonumber(hour), tonumber(minute)
if not hour or hour > 23 or minute > 59 then
  error(("setting time is '%s'; HH:MM expected, 00:00 to 23:59"):format(set.time))
end
local seconds = hour * 3600 + minute * 60

local farm_id = farm.CollectionId:gsub("[{}]", ""):upper() -- as points have it

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

local is_good = { ["Completed"] = true, ["Completed With Warnings"] = true }

-- Attempts that failed since the last good one count as far as the increment may
-- be to blame; those whose cause lay elsewhere say nothing about it.
local function base(job, history)
  if #history == 0 then return nil end -- the first run: as the job says
  local failed, is_first, is_good_seen = 0, true, false
  for i = #history, 1, -1 do
    local record = history[i]
    local kind = kinds[record.ErrorCode]
    if is_good[record.JobState] then
      is_good_seen = true
      is_first = is_first and (record.run_number - 1) // set.chain
        ~= (job.run_number - 1) // set.chain
    elseif record.JobState == "Exception" and not is_good_seen
      and not (kind and kind.is_elsewhere) then
      failed = failed + 1
    end
  end
  return (is_first or failed >= set.full_after) and "none" or "latest"
end

-- The ids of the last keep_short exports and of what they are based on, and how
-- many others there are.
local function last_chains(points)
  local by_id, exports = {}, {}
  for _, point in ipairs(points) do -- by sequence
    if point.kind == "export" and point.CollectionId == farm_id then
      by_id[point.ReferencePointGroupId] = point
      exports[#exports + 1] = point
    end
  end
  local ids, is_kept = {}, {}
  for i = math.max(1, #exports - set.keep_short + 1), #exports do
    local point = exports[i]
    while point and not is_kept[point] do
      is_kept[point] = true
      ids[#ids + 1] = point.ReferencePointGroupId
      point = by_id[point.BaseReferencePointGroupId]
    end
  end
  return ids, #exports - #ids
end

-- The body of the look at the space.
local function make_room(job)
  local report, message, code = cairn.doctor(set.directory)
  if not report then
    if code == "not_found" then return end -- nothing yet, or it is away
    error { code = code, message = message }
  end
  local free = 100 * report.free_bytes / report.total_bytes
  if free >= set.free_percent then return end
  local points
  points, message, code = cairn.points(set.directory)
  if not points then error { code = code, message = message } end
  local what = ("%s: %.1f %% free, less than %d; "):format(set.directory, free,
    set.free_percent)
  local ids, others = last_chains(points)
  if others == 0 then
    job:warn(what .. "there is no chain that can go")
    return
  end
  local pruned
  pruned, message, code = cairn.prune { directory = set.directory,
    collection = farm, keep = { ids = ids } }
  if pruned then
    job:warn(("%s%d points removed"):format(what, #pruned.removed))
  elseif code ~= "directory_locked" then -- else an export is on: it has room
    error { code = code, message = message }
  end
end

-- ---- tests: run whenever the file is loaded by a service ----------------

local function points_of(count)
  local points = {}
  for i = 1, count do -- chains of three
    points[i] = { kind = "export", CollectionId = farm_id, sequence = i,
      ReferencePointGroupId = "p" .. i,
      BaseReferencePointGroupId = i % 3 ~= 1 and "p" .. i - 1 or nil }
  end
  return points
end

local function failures(...)
  local history = { { JobState = "Completed", ErrorCode = 0, run_number = 1 } }
  for _, code in ipairs { ... } do
    history[#history + 1] = { JobState = "Exception", ErrorCode = code,
      run_number = 1 }
  end
  return history
end

-- A run within the first chain.
local early = { run_number = 1 }

local tests = {
  ["what passes is tried after 1, 5 and 30 minutes"] = function(policy)
    local nightly = policy.jobs.nightly
    for attempt, minutes in ipairs { 1, 5, 30 } do
      local answer = nightly.on_failure({}, { ErrorCode = 34 }, attempt)
      assert(answer.action == "Re-run Job" and answer.delay == minutes * 60)
    end
    assert(nightly.on_failure({}, { ErrorCode = 34 }, 4)
      == "Continue With Next Job")
  end,
  ["a full disk has more time"] = function(policy)
    local nightly = policy.jobs.nightly
    assert(nightly.on_failure({}, { ErrorCode = 19 }, 1).delay == 1800)
    assert(nightly.on_failure({}, { ErrorCode = 19 }, 3).delay == 7200)
  end,
  ["what a person must put right is not tried again"] = function(policy)
    for _, code in ipairs { 3, 4, 17, 24, 25, 37 } do
      assert(policy.jobs.nightly.on_failure({}, { ErrorCode = code }, 1)
        == "Continue With Next Job", code)
    end
  end,
  ["an increment that keeps failing becomes a full"] = function(policy)
    local nightly, codes = policy.jobs.nightly, {}
    assert(nightly.base(early, {}) == nil)
    for i = 1, set.full_after do
      assert(nightly.base(early, failures(table.unpack(codes))) == "latest")
      codes[i] = 42
    end
    local history = failures(table.unpack(codes))
    assert(nightly.base(early, history) == "none")
    history[#history + 1] = { JobState = "Completed With Warnings",
      run_number = 1 }
    assert(nightly.base(early, history) == "latest")
  end,
  ["the first good one of every chain is a full"] = function(policy)
    local nightly, history = policy.jobs.nightly, failures()
    if set.chain > 1 then
      assert(nightly.base({ run_number = set.chain }, history) == "latest")
    end
    assert(nightly.base({ run_number = set.chain + 1 }, history) == "none")
    history[2] = { JobState = "Exception", ErrorCode = 19,
      run_number = set.chain + 1 }
    assert(nightly.base({ run_number = set.chain + 2 }, history) == "none")
    history[3] = { JobState = "Completed", ErrorCode = 0,
      run_number = set.chain + 2 }
    assert(nightly.base({ run_number = set.chain + 3 }, history)
      == (set.chain > 2 and "latest" or "none"))
  end,
  ["whole chains go"] = function()
    local count = 3 * set.keep_short + 2
    local ids, others = last_chains(points_of(count))
    assert(#ids + others == count and #ids - set.keep_short <= 2)
    local is_kept = {}
    for _, id in ipairs(ids) do is_kept[id] = true end
    for i = 1, count do
      assert(not is_kept["p" .. i] or i % 3 == 1 or is_kept["p" .. i - 1])
    end
    assert(is_kept["p" .. count])
    assert(select(2, last_chains(points_of(1))) == 0)
  end,
  ["a full disk, a lost source, a skipped run are no reason"] = function(policy)
    local history = failures()
    for _ = 1, set.full_after do
      history[#history + 1] = { JobState = "Exception", ErrorCode = 19 }
      history[#history + 1] = { JobState = "Exception", ErrorCode = 20 }
      history[#history + 1] = { skipped = 1, reason = "missed" }
    end
    assert(policy.jobs.nightly.base(early, history) == "latest")
  end,
}

local where = set.zone ~= "" and set.zone or nil

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm nightly",
      RunStartInterval = seconds, -- after midnight
      JobRunTimes = 0,            -- without limit
      zone = where,
      Notify = set.notify,
      on_failure = on_failure,
      base = base,
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
    room = {
      Name = "web-farm room",
      RunStartInterval = (seconds - 900) % 86400,
      JobRunTimes = 0,
      zone = where,
      Notify = set.notify,
      run = make_room,
    },
  },
  tests = tests,
}
