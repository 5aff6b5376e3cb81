-- Increments for ever, and a synthetic full when their chain has become long.
--
-- Only the first export is a full. From then on every night is an increment;
-- when the chain of the newest point has `levels` points, it is merged into a
-- full, out of what is in the export directory: nothing more is read from the
-- machines. The merged point keeps its id and its content, every block is checked
-- against its digest on the way, and the next increment goes on from it. Points
-- stay for keep_days, a chain as a whole.
--
-- To change: the settings and the machines below. To try it:
--
--   cairn preview synthetic.lua
--   cairn simulate synthetic.lua
--   cairn run synthetic.lua --set directory=/tmp/out --job nightly --dry-run
--   cairn run synthetic.lua --follow --store /var/lib/cairn/cairn.db
--   cp synthetic.lua /etc/cairn/policies/ && cairn serve

local cairn = require "cairn"

-- ---- settings -----------------------------------------------------------

local set = cairn.settings(..., {
  directory = "/srv/backup/web-farm",
  time = "1h",                  -- of the increment
  merge_time = "4h",            -- of the merge, after midnight
  zone = "",                    -- Europe/Berlin; "": the host's
  levels = { 14, 2, 31 },       -- a chain of 32 ends by itself
  keep_days = { 60, 0, 36500 }, -- 0: for ever
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

local DAY = 86400
local PATIENCE_S, RETRY_S = 6 * 3600, 60 -- while another has the directory

local farm_id = farm.CollectionId:gsub("[{}]", ""):upper() -- as points have it

-- The exports of the collection, by id, and the newest of them.
local function exports_of(points)
  local by_id, newest = {}, nil
  for _, point in ipairs(points) do
    if point.kind == "export" and point.CollectionId == farm_id then
      by_id[point.ReferencePointGroupId] = point
      if not newest or point.sequence > newest.sequence then newest = point end
    end
  end
  return by_id, newest
end

-- The newest point, when its chain is long enough to be merged, and its length.
local function due_for_merge(points)
  local by_id, newest = exports_of(points)
  local length, point = 0, newest
  while point do
    length = length + 1
    point = by_id[point.BaseReferencePointGroupId]
  end
  return length >= set.levels and newest or nil, length
end

-- The body of the merge. The night's increment may still be on: then the
-- directory is locked, and the look at the chain is taken anew.
local function merge_chain(job)
  for _ = 1, PATIENCE_S // RETRY_S do
    local points, message, code = cairn.points(set.directory)
    if not points then error { code = code, message = message } end
    local point = due_for_merge(points)
    if not point then return end
    local ok
    ok, message, code = cairn.merge { directory = set.directory,
      point = point.ReferencePointGroupId }
    if ok then return end
    if code ~= "directory_locked" then
      error { code = code, message = message }
    end
    job:sleep(RETRY_S)
  end
  error { code = "timeout", message = set.directory
    .. ": another had it all the time; the chain is merged tomorrow" }
end

-- The points of the last keep_days, and what they are based on. Markers are
-- left alone by a prune, and not named.
local function retain(points)
  local by_id, newest = exports_of(points)
  if set.keep_days == 0 or not newest then return nil end
  local keep = {}
  for id, point in pairs(by_id) do
    if newest.time.unix - point.time.unix <= set.keep_days * DAY then
      while point and not keep[id] do
        keep[id] = true
        id = point.BaseReferencePointGroupId
        point = by_id[id]
      end
    end
  end
  return keep
end

-- ---- tests: run whenever the file is loaded by a service ----------------

local function chain_of(count, first)
  local points = {}
  for i = 1, count do
    points[i] = { ReferencePointGroupId = "p" .. i, sequence = i,
      BaseReferencePointGroupId = i > (first or 1) and "p" .. i - 1 or nil,
      CollectionId = farm_id, kind = "export",
      time = { unix = 1767488400 + i * DAY } }
  end
  return points
end

local tests = {
  ["a chain is merged when it is long enough"] = function()
    assert(due_for_merge {} == nil)
    assert(due_for_merge(chain_of(set.levels - 1)) == nil)
    local point, length = due_for_merge(chain_of(set.levels))
    assert(point.ReferencePointGroupId == "p" .. set.levels and length == set.levels)
    -- merged: the newest is a full now
    assert(due_for_merge(chain_of(set.levels, set.levels)) == nil)
  end,
  ["other collections have chains of their own"] = function()
    local points = chain_of(set.levels)
    for _, point in ipairs(points) do point.CollectionId = "another" end
    assert(due_for_merge(points) == nil)
  end,
  ["chains go as a whole"] = function(policy)
    if set.keep_days == 0 then return end
    local count = set.keep_days + 10
    local keep = policy.retain(chain_of(count)) -- one chain: all of it stays
    for i = 1, count do assert(keep["p" .. i]) end
    local points = chain_of(count)
    points[6].BaseReferencePointGroupId = nil
    keep = policy.retain(points) -- p10 is as old as may be
    assert(keep.p6 and keep["p" .. count] and not keep.p5 and not keep.p1)
  end,
}

local where = set.zone ~= "" and set.zone or nil

return cairn.policy {
  jobs = {
    nightly = {
      Name = "web-farm increment",
      RunStartInterval = set.time,
      JobRunTimes = 0, -- without limit
      zone = where,
      RecoveryAction = "Re-run Job",
      export = { collection = farm, directory = set.directory, base = "latest" },
    },
    synthetic = {
      Name = "web-farm synthetic full",
      RunStartInterval = set.merge_time,
      JobRunTimes = 0,
      zone = where,
      run = merge_chain,
    },
  },
  retain = retain,
  tests = tests,
}
