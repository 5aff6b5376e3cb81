-- The points that there would be in a simulation's export directories: which
-- base each disk of an export has, which points a prune lets go, what is merged.
--
-- A point has an image of each of its disks, { point =, base = an image or nil,
-- bytes =, whole = what a full one takes }, by "MACHINE/DISK". What lay in a
-- directory before has one image, "*", for all: of its disks nothing is known.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"

local M = {}

local DEPTH_LIMIT = 32

-- A GUID that the n-th simulated point has, each time: its beginnings differ, as
-- those of real ones do.
local function id_of(n)
  return ("%08X-%04X-4000-8000-%012X"):format(n * 0x9E3779B1 & 0xFFFFFFFF,
    n & 0xFFFF, n)
end

-- What a point is based on as a whole, and its bytes, from its images.
local function sum_up(point)
  point.base, point.bytes = nil, 0
  for _, image in pairs(point.images) do
    local base = image.base and image.base.point
    if base and (not point.base or base.sequence > point.base.sequence) then
      point.base = base
    end
    point.bytes = point.bytes + image.bytes
  end
end

local function note_size(d)
  local bytes = 0
  for _, point in ipairs(d.points) do bytes = bytes + point.bytes end
  d.bytes = bytes
  d.most = math.max(d.most, #d.points)
  d.most_bytes = math.max(d.most_bytes, bytes)
end

-- A directory: its points, oldest first, as the simulation left them.
function M.directory(sim, name)
  local d = sim.directories[name]
  if d then return d end
  d = { name = name, points = {}, made = 0, pruned = 0, most = 0,
    most_bytes = 0, sequence = 0 }
  sim.directories[name] = d
  sim.directory_names[#sim.directory_names + 1] = name
  local by_id = {}
  for _, found in ipairs(sim.options.points and sim.options.points(name)
    or {}) do
    local us = math.tointeger(found.unix_us)
    if found.kind ~= "marker" and not found.error and us
      and us <= sim.from_us then
      local point = { unix_us = us, time = found.time, is_old = true,
        id = found.ReferencePointGroupId, collection = found.CollectionId,
        sequence = math.tointeger(found.sequence) or 0 }
      local base = by_id[found.BaseReferencePointGroupId]
      point.images = { ["*"] = { point = point, base = base
        and base.images["*"], bytes = math.tointeger(found.bytes) or 0 } }
      sum_up(point)
      by_id[point.id] = point
      d.points[#d.points + 1] = point
      d.sequence = math.max(d.sequence, point.sequence)
    end
  end
  d.found = #d.points
  note_size(d)
  return d
end

-- The points of a directory, as cairn.points gives exports.
function M.listed(sim, name)
  local list = {}
  for i, point in ipairs(M.directory(sim, name).points) do
    list[i] = { ReferencePointGroupId = point.id, kind = "export",
      BaseReferencePointGroupId = point.base and point.base.id,
      CollectionId = point.collection, sequence = point.sequence,
      time = point.time }
  end
  return list
end

local function is_id(point, beginning)
  return point.id:sub(1, #beginning):upper() == beginning
end

-- ---- an export ------------------------------------------------------------------------

-- The point that has an id, or the beginning of one; raises as an export does.
local function wanted(d, spec)
  local found
  local beginning = spec.base:gsub("[{}]", ""):upper()
  for _, point in ipairs(d.points) do
    if is_id(point, beginning) then
      if found then
        failure.raise("ambiguous", "\"%s\" is the beginning of more than one "
          .. "reference point in %s", spec.base, d.name)
      end
      found = point
    end
  end
  if not found then
    failure.raise("not_found", "%s holds no reference point \"%s\"", d.name,
      spec.base)
  elseif found.collection ~= spec.collection.CollectionId then
    failure.raise("invalid_argument", "export.base: the reference point %s is "
      .. "of collection %s, not of %s", found.id, found.collection,
      spec.collection.CollectionId)
  end
  return found
end

local function image_of(point, key)
  return point.images[key] or point.images["*"]
end

-- The image that one of this disk would be based on | nil, why there is none.
local function base_of(d, spec, point, key)
  local base
  if point then
    base = image_of(point, key)
    if not base then return nil, "the base does not have this disk" end
  else
    local is_first = true
    for i = #d.points, 1, -1 do
      if d.points[i].collection == spec.collection.CollectionId then
        base, is_first = image_of(d.points[i], key), false
        if base then break end
      end
    end
    if not base then
      return nil, is_first and "there is no base yet"
        or "no earlier point has this disk"
    end
  end
  local depth, image = 0, base
  while image do
    depth, image = depth + 1, image.base
  end
  if depth >= (spec.depth_limit or DEPTH_LIMIT) then
    return nil, "the chain is at its limit"
  end
  return base
end

-- The disks that an export has, in order: { key =, disk =, base = its image or
-- nil, why = why it has none }. Raises what the export fails with.
function M.disks(d, spec)
  local list = {}
  local point = spec.base ~= "none" and spec.base ~= "latest"
    and wanted(d, spec) or nil
  for _, machine in ipairs(spec.collection.machines) do
    for _, disk in ipairs(machine.disks) do
      local entry = { disk = disk,
        key = machine.VirtualMachineId .. "/" .. disk.id }
      if spec.base ~= "none" then
        entry.base, entry.why = base_of(d, spec, point, entry.key)
      end
      list[#list + 1] = entry
    end
  end
  return list
end

-- What the export of these disks leaves: a point of that time. Each entry has
-- bytes (of its image) and whole besides.
function M.add(sim, d, spec, disks, started_us)
  sim.last_id, d.sequence = sim.last_id + 1, d.sequence + 1
  local point = { unix_us = started_us, time = sim.clock:local_time(started_us),
    id = id_of(sim.last_id), sequence = d.sequence,
    collection = spec.collection.CollectionId, images = {} }
  for _, entry in ipairs(disks) do
    point.images[entry.key] = { point = point, base = entry.base,
      bytes = entry.bytes, whole = entry.whole }
  end
  sum_up(point)
  d.points[#d.points + 1] = point
  d.made = d.made + 1
  note_size(d)
  return point
end

-- ---- a prune --------------------------------------------------------------------------

-- Names of points that are not there make a prune fail.
local function check_ids(d, ids)
  local is_there = {}
  for _, point in ipairs(d.points) do is_there[point.id:upper()] = true end
  for _, name in ipairs(ids) do
    local beginning = name:upper():gsub("^{(.*)}$", "%1")
    local found = is_there[beginning]
    for i = 1, (found or #beginning < 4) and 0 or #d.points do
      found = found or is_id(d.points[i], beginning)
    end
    if not found then
      failure.raise("not_found", "prune: \"ids\" names \"%s\", and %s holds no "
        .. "such reference point", name, d.name)
    end
  end
end

-- What has to be merged before the points that go can: { image =, onto = an image
-- or nil, bytes = }.
local function merges_of(d, goes)
  local merges = {}
  for _, point in ipairs(d.points) do
    for _, image in pairs(goes[point] and {} or point.images) do
      local onto, bytes = image.base, image.bytes
      if onto and goes[onto.point] then
        while onto and goes[onto.point] do
          bytes = bytes + onto.bytes
          onto = onto.base
        end
        if not onto then bytes = image.whole or bytes end
        merges[#merges + 1] = { image = image, onto = onto,
          bytes = math.min(bytes, image.whole or bytes) }
      end
    end
  end
  return merges
end

-- What a prune would do: which points go (a set), the reasons of the others, what
-- is merged, how many points that are. Raises what the prune fails with.
function M.judge(d, spec)
  local groups, order = {}, {}
  for _, point in ipairs(d.points) do
    local id = point.collection
    if not spec.collection or spec.collection == id then
      if not groups[id] then
        groups[id] = {}
        order[#order + 1] = id
      end
      table.insert(groups[id], point)
    end
  end
  check_ids(d, spec.keep.ids or {})
  local goes, reasons = {}, {}
  for _, id in ipairs(order) do
    local list = {}
    for i, point in ipairs(groups[id]) do
      list[i] = { time = point.time, id = point.id }
    end
    local kept, message = core.keep(assert(core.json_encode {
      keep = spec.keep, points = list }))
    if not kept then failure.raise("invalid_argument", "%s", message) end
    for i, point in ipairs(groups[id]) do
      if #kept[i] == 0 then goes[point] = true else reasons[point] = kept[i] end
    end
  end
  local merges, is_merged, count = merges_of(d, goes), {}, 0
  for _, merge in ipairs(merges) do
    count = count + (is_merged[merge.image.point] and 0 or 1)
    is_merged[merge.image.point] = true
  end
  return goes, reasons, merges, count
end

-- Does what M.judge said; the points that went, oldest first.
function M.prune(d, goes, reasons, merges)
  local left, gone = {}, {}
  for _, merge in ipairs(merges) do
    merge.image.base, merge.image.bytes = merge.onto, merge.bytes
  end
  for _, point in ipairs(d.points) do
    if goes[point] then
      gone[#gone + 1] = point
    else
      left[#left + 1] = point
      sum_up(point)
      point.reasons = reasons[point] or point.reasons
    end
  end
  d.points, d.pruned = left, d.pruned + #gone
  note_size(d)
  return gone
end

return M
