-- An export that was interrupted goes on when the command runs again. A limit
-- on the size of files is what interrupts it. qemu-img judges.

local support = _G.support

local module = require "cairn"

local bin = (os.getenv("CAIRN_BUILD") or "build") .. "/bin/cairn"
local directory, remove

local function at(name) return directory .. "/" .. name end

local function shell(line)
  local code, _, output = support.run { "sh", "-c", line }
  return code, output or ""
end

local function must(line)
  local code, output = shell(line)
  assert.equal(0, code, line .. ": " .. output)
  return output
end

local function cairn(more, limit)
  return shell(("%s %s export --collection %s --to %s %s 2>&1"):format(
    limit and "ulimit -f 16384;" or "", bin, at "farm.lua", at "out",
    more or ""))
end

local function resumed()
  return tonumber(must("cat " .. at "out" .. "/*/manifest.json"):match(
    '"bytes_resumed": (%d+)'))
end

describe("an interrupted export", function()
  before_each(function()
    directory, remove = support.directory()
    must(("dd if=/dev/urandom of=%s bs=1M count=24 status=none"):format(
      at "a.raw"))
    support.write(at "farm.lua", [[
      return require("cairn").collection {
        CollectionId = "6F1D0000-0000-4000-8000-000000000001",
        machines = { { VirtualMachineId = "6F1D0000-0000-4000-8000-000000000002",
          disks = { { id = "vda", path = "a.raw", format = "raw" } } } } }]])
    local code, output = cairn("", true)
    assert.equal(1, code, output)
    assert.matches("bytes of what was exported stay in", output, 1, true)
  end)

  after_each(function() remove() end)

  it("goes on when the command runs again", function()
    local code, output = cairn "--dry-run"
    assert.equal(0, code, output)
    assert.matches("goes on from .partial-", output, 1, true)
    code, output = cairn()
    assert.equal(0, code, output)
    assert.is_true(resumed() > 2 * 1024 * 1024)
    must(("qemu-img compare -q -f qcow2 -F raw %s/*/*/vda.qcow2 %s"):format(
      at "out", at "a.raw"))
    must(bin .. " verify " .. at "out")
    assert.is_true((shell("ls -d " .. at "out" .. "/.partial-*"))
      ~= 0)
  end)

  it("is forgotten with --no-resume", function()
    local _, output = cairn "--no-resume --dry-run"
    assert.is_nil(output:find("goes on from", 1, true))
    assert.equal(0, (cairn "--no-resume"))
    assert.is_nil(resumed())
    must(bin .. " verify " .. at "out")
  end)
end)

-- The target is a file system that becomes full, and is then made larger; the
-- trackers of the interrupted export tell what the sources have had since.
describe("what a tracker proves about an interrupted export", function()
  local mib = 1024 * 1024
  local mounted

  local function can_mount()
    if must "id -u" ~= "0\n" then return false, "mounting needs root" end
    return true
  end

  local function mount(path, arguments)
    must(("mkdir -p %s && mount %s %s"):format(path, arguments, path))
    mounted[#mounted + 1] = path
  end

  before_each(function()
    mounted = {}
    directory, remove = support.directory()
    if can_mount() then mount(at "out", "-t tmpfs -o size=14m,mode=700 tmpfs") end
  end)

  after_each(function()
    for i = #mounted, 1, -1 do must("umount " .. mounted[i]) end
    remove()
  end)

  local function write_farm(disk, more)
    support.write(at "farm.lua", ([[
      return require("cairn").collection {
        CollectionId = "6F1D0000-0000-4000-8000-000000000003", %s
        machines = { { VirtualMachineId = "6F1D0000-0000-4000-8000-000000000004",
          disks = { { id = "vda", %s } } } } }]]):format(more or "", disk))
  end

  -- bytes_read, bytes_resumed and bytes_written of the one disk
  local function counts()
    local text = must("cat " .. at "out" .. "/*/manifest.json")
    local function number(name)
      return tonumber(text:match('"' .. name .. '": (%d+)'))
    end
    return number "bytes_read", number "bytes_resumed", number "bytes_written"
  end

  local function interrupted(more)
    local code, output = cairn(more)
    assert.equal(1, code, output)
    assert.matches("bytes of what was exported stay in", output, 1, true)
  end

  local function goes_on(more)
    must("mount -o remount,size=200m " .. at "out")
    local code, output = cairn(more)
    assert.equal(0, code, output)
    must(bin .. " verify " .. at "out")
    must(bin .. " doctor " .. at "out")
  end

  local function make_clones()
    must(("truncate -s 400M %s && mkfs.xfs -q -m reflink=1 %s"):format(
      at "xfs.img", at "xfs.img"))
    mount(at "xfs", "-o loop " .. at "xfs.img")
    must(("mkdir %s && dd if=/dev/urandom of=%s bs=1M count=24 status=none")
      :format(at "xfs/clones", at "xfs/a.raw"))
    write_farm([[path = "xfs/a.raw", format = "raw", tracker = "clone"]],
      ('clone_directory = "%s",'):format(at "xfs/clones"))
  end

  local function is_right(format, source)
    must(("qemu-img compare -q -f qcow2 -F %s %s/*/*/vda.qcow2 %s"):format(
      format, at "out", at(source)))
  end

  it("spares reading what a clone shows to be the same", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_clones()
    interrupted()
    goes_on()
    local read, kept, written = counts()
    assert.is_true(kept > 8 * mib)
    assert.equal(24 * mib, kept + written)
    assert.equal(24 * mib, read + kept)
    is_right("raw", "xfs/a.raw")
    assert.equal("1\n", must("ls " .. at "xfs/clones" .. " | wc -l"))
  end)

  it("reads what a clone shows to be another", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_clones()
    interrupted()
    must(("dd if=/dev/urandom of=%s bs=64k seek=5 count=2 conv=notrunc"
      .. " status=none && sync %s"):format(at "xfs/a.raw", at "xfs/a.raw"))
    interrupted()
    must(("dd if=/dev/urandom of=%s bs=64k seek=9 count=1 conv=notrunc"
      .. " status=none"):format(at "xfs/a.raw"))
    goes_on()
    local read, kept, written = counts()
    assert.equal(24 * mib, kept + written)
    assert.equal(24 * mib, read + kept)
    assert.is_true(kept > 8 * mib)
    is_right("raw", "xfs/a.raw")
  end)

  local function make_bitmaps()
    must(("qemu-img create -q -f qcow2 %s 64M && qemu-io -f qcow2"
      .. " -c 'write -P 7 1M 24M' %s"):format(at "a.qcow2", at "a.qcow2"))
    write_farm [[path = "a.qcow2", format = "qcow2", tracker = "bitmap"]]
  end

  local function bitmaps()
    return must(("qemu-img info --output=json %s | grep -c '\"name\": \"cairn'")
      :format(at "a.qcow2"))
  end

  it("spares reading what a bitmap shows to be the same", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    interrupted()
    assert.equal("2\n", bitmaps())
    interrupted()
    assert.equal("2\n", bitmaps()) -- the first one's are gone
    goes_on()
    local read, kept, written = counts()
    assert.is_true(kept > 8 * mib)
    assert.equal(24 * mib, kept + written)
    assert.equal(24 * mib, read + kept)
    is_right("qcow2", "a.qcow2")
    assert.equal("2\n", bitmaps())
  end)

  it("reads all of a disk that a bitmap shows to be another", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    interrupted()
    must("qemu-io -f qcow2 -c 'write -P 9 2M 64k' " .. at "a.qcow2")
    goes_on()
    local read, kept, written = counts()
    assert.equal(24 * mib, read)
    assert.is_true(kept > 8 * mib)
    assert.equal(24 * mib, kept + written)
    is_right("qcow2", "a.qcow2")
  end)

  it("spares reading a marker that is exported again", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    local engine <close> = assert(module.open())
    local code, created = engine:CreateReferencePoint(
      dofile(at "farm.lua"), at "out")
    assert.equal(4096, code)
    assert.equal("Completed", created:wait())
    local marker = created:report()
    local function export()
      local result, job = engine:ExportReferencePoint(marker, at "out")
      assert.equal(4096, result)
      return job:wait(), job
    end
    local state, job = export()
    assert.equal("Exception", state)
    assert.matches("no space", job.ErrorDescription:lower(), 1, true)
    -- another export of the collection does not take what is the marker's
    assert.equal(1, (cairn "--on-disk-error fail"))
    must("mount -o remount,size=200m " .. at "out")
    state, job = export()
    assert.equal("Completed", state, job.ErrorDescription)
    local read, kept, written = counts()
    assert.is_true(kept > 5 * mib)
    assert.equal(24 * mib, kept + written)
    assert.equal(24 * mib, read + kept)
    is_right("qcow2", "a.qcow2")
    must(bin .. " verify " .. at "out")
  end)

  it("stays while other jobs work in the directory", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    interrupted()
    local _, output = shell(bin .. " doctor " .. at "out")
    assert.matches("stale_work", output, 1, true)
    assert.matches("from which the next one goes on", output, 1, true)
    assert.is_nil(output:find("unfinished", 1, true))
    shell(bin .. " doctor --fix " .. at "out")
    assert.equal("2\n", bitmaps())
    must("mount -o remount,size=16m " .. at "out")
    local engine <close> = assert(module.open())
    must("truncate -s 1M " .. at "small.raw")
    local other = module.collection {
      CollectionId = "6F1D0000-0000-4000-8000-000000000005",
      machines = { { VirtualMachineId = "6F1D0000-0000-4000-8000-000000000006",
        disks = { { id = "vda", path = at "small.raw", format = "raw" } } } } }
    local _, job = engine:CreateReferencePoint(other, at "out")
    assert.equal("Completed", job:wait())
    assert.equal("2\n", bitmaps())
    goes_on()
    local read, kept = counts()
    assert.is_true(kept > 5 * mib)
    assert.equal(24 * mib, read + kept)
    is_right("qcow2", "a.qcow2")
  end)

  it("goes with its marker", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    local engine <close> = assert(module.open())
    local _, created = engine:CreateReferencePoint(dofile(at "farm.lua"),
      at "out")
    assert.equal("Completed", created:wait())
    local marker = created:report()
    local _, job = engine:ExportReferencePoint(marker, at "out")
    assert.equal("Exception", job:wait())
    must("ls -d " .. at "out" .. "/.partial-*")
    local _, gone = engine:DestroyReferencePoint(at "out", marker)
    assert.equal("Completed", gone:wait())
    local _, output = shell(bin .. " doctor " .. at "out")
    assert.is_nil(output:find("from which the next one goes on", 1, true))
    must(bin .. " doctor --fix " .. at "out")
    assert.equal("0\n", must("ls -A " .. at "out" .. " | grep -c partial; true"))
  end)

  it("is given up with the work", function()
    local can, why = can_mount()
    if not can then pending(why) return end
    make_bitmaps()
    interrupted()
    assert.equal(1, (cairn "--no-resume --on-disk-error fail"))
    must("mount -o remount,size=200m " .. at "out")
    assert.equal(0, (cairn "--no-resume"))
    assert.equal("2\n", bitmaps())
    is_right("qcow2", "a.qcow2")
  end)
end)
