-- For specs of what rewrites and removes points: an export directory with real
-- exports of one raw disk, each with a copy of what the disk held.

local cairn = require "cairn"
local support = _G.support

local BLOCK = 65536

local points = {
  FARM = "6F1D0000-0000-4000-8000-000000000001",
  WEB = "6F1D0000-0000-4000-8000-000000000002",
}

local function must(...)
  local code, signal, output = support.run { ... }
  assert(code == 0, table.concat({ ... }, " ") .. ": " .. tostring(signal)
    .. " " .. output)
  return output
end
points.must = must

-- Exports n times into directory/out, the disk changing in between: each point
-- has a block of its own, loses one, and the third one is short. A list of
-- { id, shadow, path }.
function points.export(directory, n)
  local disk, list = directory .. "/disk.raw", {}
  local collection = cairn.collection { CollectionId = points.FARM,
    machines = { { VirtualMachineId = points.WEB, ElementName = "web",
      disks = { { id = "vda", path = disk, format = "raw" } } } } }
  local file = assert(io.open(disk, "wb"))
  for i = 1, 12 do file:write(string.char(64 + i):rep(BLOCK)) end
  file:close()
  local engine <close> = assert(cairn.open {})
  for i = 1, n do
    file = assert(io.open(disk, "r+b"))
    file:seek("set", i * BLOCK)
    file:write(string.char(96 + i):rep(BLOCK))
    file:seek("set", (i + 2) % 12 * BLOCK)
    file:write(("\0"):rep(BLOCK))
    file:close()
    must("truncate", "-s", i == 3 and "300000" or tostring(12 * BLOCK + 100),
      disk)
    local job = assert(engine:submit { Name = "export", export = {
      collection = collection, directory = directory .. "/out",
      base = "latest" } })
    assert(job:wait() == "Completed", job.ErrorSummaryDescription)
    local shadow = ("%s/shadow.%d"):format(directory, i)
    must("cp", "--sparse=always", disk, shadow)
    list[i] = { id = job.ReferencePointGroupId, shadow = shadow,
      path = job:report().path }
  end
  return list
end

function points.image(point, directory)
  return ("%s/%s/vda.qcow2"):format(directory and directory .. "/" .. point.id
    or point.path, points.WEB)
end

-- The point holds what the disk held, to the byte: by QEMU, and restored.
function points.expect_content(point, directory)
  must("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", point.shadow,
    points.image(point, directory))
  must("qemu-img", "check", "-q", "-f", "qcow2", points.image(point, directory))
  local to = os.tmpname()
  os.remove(to)
  assert(cairn.restore { directory = directory
    or point.path:match "^(.*)/[^/]+$", point = point.id, to = to })
  must("cmp", point.shadow, to .. "/" .. points.WEB .. "/vda.raw")
  must("rm", "-r", to)
end

-- What is in the directory, by id.
function points.list(directory)
  local by_id = {}
  for _, point in ipairs(assert(cairn.points(directory))) do
    by_id[point.ReferencePointGroupId] = point
  end
  return by_id
end

-- The command: exit code, output and errors together.
function points.cairn(...)
  local code, _, output = support.run { support.build .. "/bin/cairn", ... }
  return code, output
end

return points
