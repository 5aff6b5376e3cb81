-- Reference points as objects: markers, their export, destroying, what is kept
-- for them. qemu-img, cmp and the files themselves judge, not Cairn.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local FARM = "6F1D0000-0000-4000-8000-000000000001"
local OTHER = "6F1D0000-0000-4000-8000-000000000009"
local WEB = "6F1D0000-0000-4000-8000-000000000002"
local UNKNOWN = "00000000-0000-4000-8000-000000000000"

local directory, remove, engine

local function at(name) return directory .. "/" .. name end

local function must(...)
  local code, signal, output = support.run { ... }
  assert.equal(0, code, table.concat({ ... }, " ") .. ": "
    .. tostring(signal) .. " " .. output)
  return output
end

local function exists(path) return uv.fs_lstat(path) ~= nil end

local function names(path)
  local out = {}
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(path)) do
    out[#out + 1] = name
  end
  table.sort(out)
  return out
end

local function farm(disks, more)
  local list = {}
  for i, d in ipairs(disks) do
    list[i] = { id = d[1], path = at(d[2]), format = d[3], tracker = d[4] }
  end
  local machine = { VirtualMachineId = WEB, ElementName = "web",
    disks = list }
  local t = { CollectionId = FARM, ElementName = "farm",
    machines = { machine } }
  for key, value in pairs(more or {}) do
    if key == "config" then machine.config = value else t[key] = value end
  end
  return cairn.collection(t)
end

local function done(code, job, message)
  assert.equal(4096, code, message)
  local state = job:wait()
  assert.equal("Completed", state, job.ErrorSummaryDescription
    or (job:GetErrorEx() and state))
  return job:report(), job
end

local function refused(wanted, pattern, code, job, message)
  assert.equal(wanted, code, message)
  assert.is_nil(job)
  assert.truthy(message:find(pattern), message)
end

local function export(collection, more)
  local settings = { base = "latest" }
  for key, value in pairs(more or {}) do settings[key] = value end
  return done(engine:ExportReferencePoint(collection, at "out", settings))
end

local function create(collection, more)
  return done(engine:CreateReferencePoint(collection, at "out", more))
end

local function listed()
  local out, points = {}, assert(cairn.points(at "out"))
  for i, p in ipairs(points) do
    out[i] = p.ReferencePointGroupId
    out[p.ReferencePointGroupId] = p
  end
  return out
end

local function raw(name, ...)
  local file = assert(io.open(at(name), "wb"))
  for _, seed in ipairs { ... } do
    file:write(seed == 0 and ("\0"):rep(65536) or string.char(seed):rep(65536))
  end
  file:close()
end

local function qemu_io(name, ...)
  local argv = { "qemu-io", "-f", "qcow2" }
  for _, command in ipairs { ... } do
    argv[#argv + 1] = "-c"
    argv[#argv + 1] = command
  end
  argv[#argv + 1] = at(name)
  must(table.unpack(argv))
end

local function bitmaps(name)
  local n = 0
  for _ in must("qemu-img", "info", "--output=json", "-f", "qcow2", at(name))
    :gmatch '"name": "cairn%-' do
    n = n + 1
  end
  return n
end

local function image(id, disk)
  return ("%s/%s/%s/%s.qcow2"):format(at "out", id, WEB, disk or "vda")
end

local function open_engine()
  directory, remove = support.directory()
  engine = assert(cairn.open { store = ":memory:" })
end

local function close_engine()
  engine:close { mode = "kill" }
  remove()
end

-- A file system with reflinks, mounted in the directory; or why there is none.
local function mount_xfs()
  must("truncate", "-s", "320M", at "fs.img")
  local code, _, output = support.run { "mkfs.xfs", "-q", "-m", "reflink=1",
    at "fs.img" }
  if code ~= 0 then return nil, "mkfs.xfs: " .. output end
  uv.fs_mkdir(at "fs", tonumber("755", 8))
  code, _, output = support.run { "mount", "-o", "loop", at "fs.img",
    at "fs" }
  if code ~= 0 then return nil, "mount: " .. output end
  return true
end

describe("a marker", function()
  before_each(open_engine)
  after_each(close_engine)

  it("of disks that nothing tracks says what was there and keeps nothing",
    function()
      raw("a.raw", 1, 2, 3)
      local report = create(farm { { "vda", "a.raw", "raw" } })
      assert.equal("marker", report.kind)
      assert.is_false(report.has_associated_data)
      assert.equal("none", report.disks[1].tracker)
      assert.equal(3 * 65536, report.disks[1].length)
      local list = listed()
      assert.equal(1, #list)
      assert.equal(report.ReferencePointGroupId, list[1])
      assert.same({ ".cairn.index", ".cairn.lock" }, names(at "out"))
      refused(5, "disk vda of machine " .. WEB:gsub("%-", "%%-")
        .. ": nothing keeps its content", engine:ExportReferencePoint(
          list[list[1]], at "out"))
      local code, has_data = engine:HasAssociatedData(at "out", list[1])
      assert.equal(0, code)
      assert.is_false(has_data)
    end)

  it("takes its place among the points by its sequence", function()
    raw("a.raw", 1)
    local collection = farm { { "vda", "a.raw", "raw" } }
    local first = export(collection)
    local marker = create(collection)
    local second = export(collection)
    local list = listed()
    assert.equal(3, #list)
    assert.equal(first.ReferencePointGroupId, list[1])
    assert.equal(marker.ReferencePointGroupId, list[2])
    assert.equal(second.ReferencePointGroupId, list[3])
    for i = 1, 3 do assert.equal(i, list[list[i]].sequence) end
    -- and is nobody's base
    assert.equal(first.ReferencePointGroupId, second.machines[1].disks[1].base)
  end)

  it("with a bitmap is exported while nothing was written", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "16M")
    qemu_io("a.qcow2", "write -P 1 0 4M")
    local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" } }
    local report = create(collection)
    local id = report.ReferencePointGroupId
    assert.is_true(report.has_associated_data)
    assert.equal(2, bitmaps "a.qcow2")
    local _, has_data = engine:HasAssociatedData(at "out", report)
    assert.is_true(has_data)
    local exported, job = done(engine:ExportReferencePoint(listed()[id],
      at "out"))
    assert.equal(id, job.ReferencePointGroupId)
    assert.equal(FARM, job.CollectionId)
    assert.equal(id, exported.ReferencePointGroupId)
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", image(id),
      at "a.qcow2")
    local list = listed()
    assert.equal(1, #list)
    assert.equal("export", list[id].kind)
    assert.equal(report.time, list[id].time)
    assert.equal(report.sequence, list[id].sequence)
    assert(cairn.verify { directory = at "out" })
    -- what was kept goes on to serve the next increment
    qemu_io("a.qcow2", "write -P 2 1M 64k")
    local second = export(collection)
    assert.equal("bitmap", second.machines[1].disks[1].tracker)
    assert.equal(id, second.machines[1].disks[1].base)
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2",
      image(second.ReferencePointGroupId), at "a.qcow2")
    refused(5, "has its export", engine:ExportReferencePoint(list[id],
      at "out"))
  end)

  it("with a bitmap is refused once something was written", function()
    for _, name in ipairs { "a.qcow2", "b.qcow2", "c.qcow2", "d.qcow2" } do
      must("qemu-img", "create", "-q", "-f", "qcow2", at(name), "16M")
      qemu_io(name, "write -P 1 0 16M")
    end
    local function marker(name)
      return create(farm { { "vda", name, "qcow2", "bitmap" } })
    end
    local written = marker "a.qcow2"
    qemu_io("a.qcow2", "write -P 2 8M 512")
    refused(5, "disk vda .* was written since",
      engine:ExportReferencePoint(written, at "out"))
    -- shrunk and grown again by less than the bitmap can tell
    local cut = marker "b.qcow2"
    must("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", at "b.qcow2",
      "15M")
    must("qemu-img", "resize", "-q", "-f", "qcow2", at "b.qcow2", "16M")
    refused(5, "disk vda", engine:ExportReferencePoint(cut, at "out"))
    -- by more
    local deep = marker "c.qcow2"
    must("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", at "c.qcow2",
      "9M")
    must("qemu-img", "resize", "-q", "-f", "qcow2", at "c.qcow2", "16M")
    refused(5, "disk vda", engine:ExportReferencePoint(deep, at "out"))
    -- grown
    local grown = marker "d.qcow2"
    must("qemu-img", "resize", "-q", "-f", "qcow2", at "d.qcow2", "17M")
    refused(5, "length has changed", engine:ExportReferencePoint(grown,
      at "out"))
    for _, p in ipairs(cairn.points(at "out")) do
      assert.equal("marker", p.kind)
    end
  end)

  it("names the first disk, or the file, that has changed", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    must("qemu-img", "create", "-q", "-f", "qcow2", at "b.qcow2", "1M")
    support.write(at "web.xml", "<domain/>")
    local marker = create(farm({ { "vda", "a.qcow2", "qcow2", "bitmap" },
      { "vdb", "b.qcow2", "qcow2", "bitmap" } }, { config = { at "web.xml" } }))
    support.write(at "web.xml", "<domain>2</domain>")
    refused(5, "web%.xml.* was changed since", engine:ExportReferencePoint(
      marker, at "out"))
    qemu_io("b.qcow2", "write 0 512")
    refused(5, "disk vdb", engine:ExportReferencePoint(marker, at "out"))
  end)

  it("with a clone is exported when the disk has long changed", function()
    if uv.getuid() ~= 0 then
      pending "needs root to mount a file system with reflinks"
      return
    end
    local ok, why = mount_xfs()
    if not ok then
      pending(why)
      return
    end
    local home = directory
    finally(function() must("umount", home .. "/fs") end)
    directory = home .. "/fs"
    raw("a.raw", 1, 0, 3, 4)
    must("cp", "--sparse=never", at "a.raw", home .. "/was.raw")
    local collection = farm { { "vda", "a.raw", "raw", "clone" } }
    local marker = create(collection)
    local id = marker.ReferencePointGroupId
    local clone = ("%s/.cairn.clones/%s.%s.vda.raw"):format(at "out", id, WEB)
    assert.is_true(exists(clone))
    raw("a.raw", 9, 8, 7, 4, 5)
    local newer = export(collection)
    -- the newer point has a higher sequence, and so is no base for it
    local code, job = engine:ExportReferencePoint(marker, at "out",
      { base = newer.ReferencePointGroupId })
    assert.equal(4096, code)
    assert.equal("Exception", job:wait())
    assert.truthy(job.ErrorSummaryDescription:find("is newer than the one",
      1, true), job.ErrorSummaryDescription)
    assert.is_true(exists(clone))
    local exported = done(engine:ExportReferencePoint(marker, at "out",
      { base = "latest" }))
    assert.equal("disk", exported.machines[1].disks[1].role)
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image(id),
      home .. "/was.raw")
    local list = listed()
    assert.equal(id, list[1])
    assert.equal(newer.ReferencePointGroupId, list[2])
    -- a clone that was touched is none
    local third = create(collection)
    local path = ("%s/.cairn.clones/%s.%s.vda.raw"):format(at "out",
      third.ReferencePointGroupId, WEB)
    must("chmod", "600", path)
    local file = assert(io.open(path, "r+b"))
    file:write(("\0"):rep(512))
    file:close()
    refused(5, "its clone was changed", engine:ExportReferencePoint(third,
      at "out"))
    directory = home
  end)

  it("is refused to who names another collection, or what is not there",
    function()
      raw("a.raw", 1)
      local marker = create(farm { { "vda", "a.raw", "raw" } })
      marker.CollectionId = OTHER
      refused(4, "is of collection", engine:ExportReferencePoint(marker,
        at "out"))
      refused(4, "is of collection", engine:DestroyReferencePoint(at "out",
        marker))
      refused(4, "no marker", engine:ExportReferencePoint(
        { ReferencePointGroupId = UNKNOWN }, at "out"))
      refused(4, "holds no reference point", engine:DestroyReferencePoint(
        at "out", UNKNOWN))
      refused(4, "holds no reference point", engine:RemoveAssociatedData(
        at "out", UNKNOWN))
      refused(4, "holds no reference point", engine:HasAssociatedData(
        at "out", UNKNOWN))
      refused(6, "a point or its id", engine:DestroyReferencePoint(at "out",
        42))
      refused(6, "cairn.collection expected", engine:CreateReferencePoint(
        "farm", at "out"))
      refused(4, "a path expected", engine:CreateReferencePoint(
        farm { { "vda", "a.raw", "raw" } }, ""))
      refused(4, "did you mean 'dependants'", engine:DestroyReferencePoint(
        at "out", UNKNOWN, { dependents = true }))
      refused(4, "did you mean 'tracker'", engine:CreateReferencePoint(
        farm { { "vda", "a.raw", "raw" } }, at "out", { traker = "clone" }))
      assert.equal(1, #listed())
    end)

  it("leaves nothing when a source cannot be locked", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" },
      { "vdb", "missing.raw", "raw" } }
    local code, job = engine:CreateReferencePoint(collection, at "out")
    assert.equal(4096, code)
    assert.equal("Exception", job:wait())
    assert.truthy(job.ErrorSummaryDescription:find "missing.raw")
    assert.equal(0, bitmaps "a.qcow2")
    assert.is_false(exists(at "out"))
  end)
end)

describe("destroying a point", function()
  before_each(open_engine)
  after_each(close_engine)

  local function chain(n)
    local ids = {}
    for i = 1, n do
      raw("a.raw", i, i + 1, 3)
      ids[i] = export(farm { { "vda", "a.raw", "raw" } }).ReferencePointGroupId
    end
    return ids
  end

  it("is refused while another is based on it, which is named", function()
    local ids = chain(3)
    refused(5, "is the base of 2 others: " .. ids[2]:gsub("%-", "%%-"),
      engine:DestroyReferencePoint(at "out", ids[1]))
    refused(5, "is the base of 1 other: " .. ids[3]:gsub("%-", "%%-"),
      engine:DestroyReferencePoint(at "out", ids[2]))
    assert.equal(3, #listed())
    done(engine:DestroyReferencePoint(at "out", ids[3]))
    assert.same({ ids[1], ids[2] }, { table.unpack(listed()) })
    assert.is_false(exists(at "out/" .. ids[3]))
    assert(cairn.verify { directory = at "out" })
  end)

  it("takes dependants along when asked, newest first", function()
    local ids = chain(4)
    local report = done(engine:DestroyReferencePoint(at "out",
      ids[2]:sub(1, 8):lower(), { dependants = true }))
    assert.same({ ids[4], ids[3], ids[2] }, report.destroyed)
    assert.same({ ".cairn.lock", ids[1] }, names(at "out"))
    assert(cairn.verify { directory = at "out" })
  end)

  it("takes a damaged one, and no other while one is damaged", function()
    local ids = chain(2)
    support.write(at("out/" .. ids[2] .. "/manifest.json"), "{}")
    refused(5, "cannot be read, and may be based on it",
      engine:DestroyReferencePoint(at "out", ids[1]))
    done(engine:DestroyReferencePoint(at "out", ids[2]))
    done(engine:DestroyReferencePoint(at "out", ids[1]))
    assert.equal(0, #listed())
  end)

  it("does not choose between two directories of one point", function()
    local ids = chain(1)
    must("cp", "-a", at("out/" .. ids[1]), at "out/copy")
    refused(4, "hold the same reference point",
      engine:DestroyReferencePoint(at "out", ids[1]))
    must("rm", "-r", at("out/" .. ids[1]))
    done(engine:DestroyReferencePoint(at "out", ids[1])) -- by its id
    assert.is_false(exists(at "out/copy"))
  end)

  it("removes its bitmaps, and a marker's", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" } }
    local point = export(collection)
    local marker = create(collection)
    assert.equal(3, bitmaps "a.qcow2")
    done(engine:DestroyReferencePoint(at "out", point.ReferencePointGroupId))
    assert.equal(2, bitmaps "a.qcow2")
    done(engine:DestroyReferencePoint(at "out", marker))
    assert.equal(0, bitmaps "a.qcow2")
    assert.equal(0, #listed())
    must("qemu-img", "check", "-q", "-f", "qcow2", at "a.qcow2")
  end)

  it("waits with a bitmap whose image is in use, and removes it later",
    function()
      must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
      raw("b.raw", 1)
      local marker = create(farm { { "vda", "a.qcow2", "qcow2", "bitmap" } })
      local server = assert(uv.spawn("qemu-nbd", { args = { "-f", "qcow2",
        "-t", "-k", at "socket", at "a.qcow2" } }, function() end))
      for _ = 1, 500 do
        if exists(at "socket") then break end
        uv.sleep(10)
      end
      assert.is_true(exists(at "socket"))
      local code, job = engine:DestroyReferencePoint(at "out", marker)
      assert.equal(4096, code)
      assert.equal("Completed With Warnings", job:wait())
      assert.equal(0, #listed())
      server:kill "sigterm"
      while server:is_active() do uv.run "once" end
      server:close()
      assert.equal(2, bitmaps "a.qcow2")
      -- the next change of the directory ends it
      export(farm { { "vdb", "b.raw", "raw" } })
      assert.equal(0, bitmaps "a.qcow2")
    end)

  it("fails in a directory that another process has locked", function()
    local ids = chain(1)
    local code, _, output = support.run { "python3", "-c", [[
import fcntl, struct, subprocess, sys
lock = open(sys.argv[1], "r+")
fcntl.fcntl(lock, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
sys.exit(subprocess.run(sys.argv[2:]).returncode)
]], at "out/.cairn.lock", support.build .. "/bin/cairn", "console", "-e",
      ([[local code, job = engine:DestroyReferencePoint("%s", "%s")
         print(code, job:wait(), job.ErrorSummaryDescription)]]):format(
        at "out", ids[1]) }
    assert.equal(0, code, output)
    assert.truthy(output:find "4096\tException\t.*in use by another export",
      output)
    assert.equal(1, #listed())
  end)

  it("fails in a directory that may not be written, and changes nothing",
    function()
      local ids = chain(1)
      local before = names(at("out/" .. ids[1]))
      if uv.getuid() == 0 then
        local path = at "out"
        must("mount", "--bind", path, path)
        finally(function() must("umount", path) end)
        must("mount", "-o", "remount,bind,ro", path)
      else
        must("chmod", "500", at "out")
        finally(function() must("chmod", "700", at "out") end)
      end
      for _, call in ipairs { { "DestroyReferencePoint", at "out", ids[1] },
        { "RemoveAssociatedData", at "out", ids[1] },
        { "CreateReferencePoint", farm { { "vda", "a.raw", "raw" } },
          at "out" } } do
        local code, job = engine[call[1]](engine, call[2], call[3])
        assert.equal(4096, code)
        assert.equal("Exception", job:wait(), call[1])
        assert.truthy(job.ErrorSummaryDescription:find ".cairn.lock",
          job.ErrorSummaryDescription)
      end
      assert.same(before, names(at("out/" .. ids[1])))
      assert.same({ ".cairn.lock", ids[1] }, names(at "out"))
    end)
end)

describe("what is kept for a point", function()
  before_each(open_engine)
  after_each(close_engine)

  it("is removed, the point stays", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" } }
    local point = export(collection)
    local marker = create(collection)
    assert.is_true(listed()[point.ReferencePointGroupId].has_associated_data)
    done(engine:RemoveAssociatedData(at "out", point.ReferencePointGroupId))
    assert.equal(2, bitmaps "a.qcow2")
    done(engine:RemoveAssociatedData(at "out", marker))
    assert.equal(0, bitmaps "a.qcow2")
    local list = listed()
    assert.equal(2, #list)
    for _, id in ipairs(list) do
      assert.is_false(list[id].has_associated_data)
      local code, has_data = engine:HasAssociatedData(at "out", id)
      assert.equal(0, code)
      assert.is_false(has_data)
    end
    refused(5, "nothing keeps its content", engine:ExportReferencePoint(
      list[marker.ReferencePointGroupId], at "out"))
    assert(cairn.verify { directory = at "out" })
    local again = done(engine:RemoveAssociatedData(at "out", marker))
    assert.equal(0, again.removed)
  end)
end)
