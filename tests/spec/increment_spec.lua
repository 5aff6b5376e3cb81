-- Increments through the public module and the command: what changed since a
-- base, in three states. qemu-img and cmp judge, not Cairn.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local FARM = "6F1D0000-0000-4000-8000-000000000001"
local OTHER = "6F1D0000-0000-4000-8000-000000000009"
local WEB = "6F1D0000-0000-4000-8000-000000000002"
local DB = "6F1D0000-0000-4000-8000-000000000003"
local BLOCK = 65536

local directory, remove, engine

local function at(name) return directory .. "/" .. name end

local function must(...)
  local code, signal, output = support.run { ... }
  assert.equal(0, code, table.concat({ ... }, " ") .. ": "
    .. tostring(signal) .. " " .. output)
  return output
end

local function block(seed)
  local out, x = {}, seed
  for i = 1, BLOCK // 4 do
    x = (x * 1103515245 + 12345) % 2147483648
    out[i] = string.pack("<I4", x)
  end
  return table.concat(out)
end

-- A raw disk from a list: a number is a block of that seed, 0 a hole, or text.
local function write_raw(name, blocks, length)
  local file = assert(io.open(at(name), "wb"))
  for i, content in ipairs(blocks) do
    if content ~= 0 then
      file:seek("set", (i - 1) * BLOCK)
      file:write(type(content) == "string" and content or block(content))
    end
  end
  file:close()
  must("truncate", "-s", tostring(length or #blocks * BLOCK), at(name))
end

local function disk(id, path, format)
  return { id = id, path = at(path), format = format or "raw" }
end

local function farm(disks, more)
  local t = { CollectionId = FARM, ElementName = "farm",
    machines = { { VirtualMachineId = WEB, ElementName = "web",
      disks = disks } } }
  for key, value in pairs(more or {}) do t[key] = value end
  return cairn.collection(t)
end

-- Exports and waits: the job's report, its properties, its state.
local function export(collection, more)
  local spec = { collection = collection, directory = at "out",
    base = "latest" }
  for key, value in pairs(more or {}) do spec[key] = value end
  local job, message = engine:submit { Name = "export", export = spec }
  assert(job, message)
  local state = job:wait()
  return job:report(), job, state
end

local function exported(...)
  local report, job, state = export(...)
  assert.equal("Completed", state, job.ErrorSummaryDescription)
  return report, job
end

local function image(report, id, vm)
  return ("%s/%s/%s.qcow2"):format(report.path, vm or WEB, id or "vda")
end

-- The image, through its chain, is the raw file, to the byte.
local function expect_same(path, raw)
  must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, at(raw))
  must("qemu-img", "check", "-q", "-f", "qcow2", path)
end

-- The states of the blocks of one image alone, as QEMU reads its tables: "d"
-- data, "z" zero, "." nothing of its own.
local function states(path, count)
  local text = must("qemu-img", "map", "--output=json", "-f", "qcow2", path)
  local out = {}
  for entry in text:gmatch "{(.-)}" do
    local start = math.tointeger(entry:match '"start": (%d+)')
    local length = math.tointeger(entry:match '"length": (%d+)')
    local is_own = entry:match '"depth": 0' ~= nil
    local is_zero = entry:match '"zero": true' ~= nil
    local is_present = entry:match '"present": true' ~= nil
    for i = start // BLOCK, (start + length - 1) // BLOCK do
      out[i + 1] = not (is_own and is_present) and "." or is_zero and "z"
        or "d"
    end
  end
  assert.is_true(#out >= count)
  return table.concat(out, "", 1, count)
end

local function disk_of(report, id)
  for _, machine in ipairs(report.machines) do
    for _, d in ipairs(machine.disks) do
      if d.id == (id or "vda") then return d, machine end
    end
  end
end

local function verify_all()
  local report, message = cairn.verify { directory = at "out" }
  assert(report, message)
  return report
end

describe("an increment", function()
  before_each(function()
    directory, remove = support.directory()
    engine = assert(cairn.open { store = ":memory:" })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    remove()
  end)

  it("holds what changed, and what is zero now, and nothing else", function()
    write_raw("a.raw", { 1, 2, 3, 0, 5, 6, 7 })
    local first = exported(farm { disk("vda", "a.raw") })
    assert.equal("full", disk_of(first).tracker)
    assert.is_nil(first.BaseReferencePointGroupId)
    must("cp", at "a.raw", at "first.raw")
    -- data anew, the same again, data to zeros, data to a hole, hole to data
    write_raw("a.raw", { 1, 22, 3, 44, ("\0"):rep(BLOCK), 0, 7 })
    local second, job = exported(farm { disk("vda", "a.raw") })
    assert.equal(first.ReferencePointGroupId,
      second.BaseReferencePointGroupId)
    assert.equal(first.ReferencePointGroupId, job.BaseReferencePointGroupId)
    assert.equal(".d.dzz.", states(image(second), 7))
    assert.same({ WEB .. "/vda" }, job.ExportedDisks)
    assert.same({ image(second) }, job.ExportedLogFilePaths)
    expect_same(image(second), "a.raw")
    expect_same(image(first), "first.raw")
    local d = disk_of(second)
    assert.equal("digest", d.tracker)
    assert.equal("log", d.role)
    assert.equal(2 * BLOCK, d.bytes_written)
    verify_all()
  end)

  it("of a qcow2 source is the same", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1100k")
    must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512k", at "a.qcow2")
    local full = exported(farm { disk("vda", "a.qcow2", "qcow2") })
    must("qemu-io", "-f", "qcow2", "-c", "write -P 2 64k 64k", "-c",
      "write -P 1 128k 64k", "-c", "write -z 192k 64k", "-c",
      "discard 256k 64k", "-c", "write -P 3 1090k 10k", at "a.qcow2")
    local log = exported(farm { disk("vda", "a.qcow2", "qcow2") })
    assert.equal(".d.zz............d", states(image(log), 18))
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", image(log),
      at "a.qcow2")
    assert.not_equal(full.path, log.path)
    verify_all()
  end)

  it("follows a disk that grows and shrinks and grows", function()
    local shadows = {}
    for i, shape in ipairs {
      { { 1, 2, 3, 4 } }, { { 1, 2, 3, 4, 5 }, 5 * BLOCK - 1 },
      { { 1, 2 }, BLOCK + 700 }, { { 1, 0, 0, 0, 0, 0 } },
      { { 1, 2, 3 }, 2 * BLOCK + 1 }, { {}, 0 }, { { 1, 2, 3, 4 } } } do
      write_raw("a.raw", shape[1], shape[2])
      shadows[i] = ("shadow%d.raw"):format(i)
      must("cp", "--sparse=always", at "a.raw", at(shadows[i]))
      local report = exported(farm { disk("vda", "a.raw") })
      if i > 1 then assert.equal("digest", disk_of(report).tracker) end
      shadows[shadows[i]] = report
    end
    for _, shadow in ipairs(shadows) do
      local report = shadows[shadow]
      local to = at("back-" .. shadow)
      assert(cairn.restore { directory = at "out",
        point = report.ReferencePointGroupId, to = to })
      must("cmp", ("%s/%s/vda.raw"):format(to, WEB), at(shadow))
      must("qemu-img", "convert", "-O", "raw", image(report), at "qemu.raw")
      must("truncate", "-s", tostring(disk_of(report).length), at "qemu.raw")
      must("cmp", at "qemu.raw", at(shadow))
    end
    verify_all()
  end)

  it("rests on a raw full", function()
    write_raw("a.raw", { 1, 2, 0 })
    exported(farm { disk("vda", "a.raw") }, { format = "raw" })
    write_raw("a.raw", { 1, 0, 3 })
    local log = exported(farm { disk("vda", "a.raw") }, { format = "raw" })
    assert.equal("qcow2", disk_of(log).format)
    assert.equal(".zd", states(image(log), 3))
    expect_same(image(log), "a.raw")
    verify_all()
  end)

  it("is made from the point that is asked for", function()
    write_raw("a.raw", { 1, 2, 3 })
    local first = exported(farm { disk("vda", "a.raw") })
    write_raw("a.raw", { 1, 22, 3 })
    exported(farm { disk("vda", "a.raw") })
    write_raw("a.raw", { 1, 22, 33 })
    local id = first.ReferencePointGroupId
    local third = exported(farm { disk("vda", "a.raw") },
      { base = "{" .. id:lower() .. "}" })
    assert.equal(id, third.BaseReferencePointGroupId)
    assert.equal(".dd", states(image(third), 3))
    expect_same(image(third), "a.raw")
    local fourth = exported(farm { disk("vda", "a.raw") },
      { base = id:sub(1, 8) })
    assert.equal(id, fourth.BaseReferencePointGroupId)
    verify_all()
  end)

  it("is refused where the point asked for cannot be the base", function()
    write_raw("a.raw", { 1, 2, 3 })
    local first = exported(farm { disk("vda", "a.raw") })
    local id = first.ReferencePointGroupId
    local function refused(code, says, collection, more)
      more = more or {}
      more.base = more.base or id
      local _, job, state = export(collection or farm {
        disk("vda", "a.raw") }, more)
      assert.equal("Exception", state)
      assert.is_truthy(job.ErrorSummaryDescription:find(says, 1, true),
        job.ErrorSummaryDescription)
      assert.equal(cairn.errors[code].ErrorCode, job.ErrorCode)
    end
    refused("not_found", "holds no reference point", nil,
      { base = "00000000-0000-4000-8000-000000000000" })
    local other = farm({ disk("vda", "a.raw") }, { CollectionId = OTHER })
    refused("invalid_argument", "is of collection " .. FARM, other)
    refused("invalid_argument", "digests of xxh3-128", nil,
      { digest = "sha-256" })
    must("mv", first.path, at "out/renamed")
    refused("bad_path", 'is named "renamed"')
    must("mv", at "out/renamed", first.path)
    must("truncate", "-s", "-1", image(first))
    refused("export_corrupt", "is damaged at offset")
    must("truncate", "-s", "+1", image(first))
    -- the digest map of another time, sound in itself
    must("mv", first.path .. "/" .. WEB .. "/vda.digests", at "map")
    refused("export_corrupt", "is missing")
    must("mv", at "map", first.path .. "/" .. WEB .. "/vda.digests")
    exported(farm { disk("vda", "a.raw") }, { base = id })
  end)

  it("does not rest on a base that was altered by hand", function()
    write_raw("a.raw", { 1, 2, 3 })
    local first = exported(farm { disk("vda", "a.raw") })
    must("qemu-io", "-f", "qcow2", "-c", "write -P 9 64k 4k", image(first))
    local _, job, state = export(farm { disk("vda", "a.raw") },
      { base = first.ReferencePointGroupId })
    assert.equal("Exception", state)
    assert.is_truthy(job.ErrorSummaryDescription:find(
      "was changed after it was written", 1, true))
    -- latest: in full, and says so
    local second
    second, _, state = export(farm { disk("vda", "a.raw") })
    assert.equal("Completed With Warnings", state)
    assert.equal("full", disk_of(second).tracker)
    assert.is_truthy(disk_of(second).fallback:find("was changed after", 1,
      true))
    expect_same(image(second), "a.raw")
    -- the next one rests on the sound one
    local third = exported(farm { disk("vda", "a.raw") })
    assert.equal(second.ReferencePointGroupId,
      third.BaseReferencePointGroupId)
  end)

  it("rests on an older base when the newest is damaged, and says so",
    function()
      write_raw("a.raw", { 1, 2, 3 })
      local first = exported(farm { disk("vda", "a.raw") })
      write_raw("a.raw", { 1, 2, 4 })
      local second = exported(farm { disk("vda", "a.raw") })
      must("truncate", "-s", "-1", second.path .. "/manifest.json")
      write_raw("a.raw", { 1, 5, 4 })
      local third, _, state = export(farm { disk("vda", "a.raw") })
      assert.equal("Completed With Warnings", state)
      assert.equal(first.ReferencePointGroupId, disk_of(third).base)
      assert.equal(".dd", states(image(third), 3))
      expect_same(image(third), "a.raw")
      must("rm", "-r", second.path)
      -- a missing file of the newest: the same
      must("rm", image(third))
      local fourth
      fourth, _, state = export(farm { disk("vda", "a.raw") })
      assert.equal("Completed With Warnings", state)
      assert.equal(first.ReferencePointGroupId, disk_of(fourth).base)
      assert.is_truthy(disk_of(fourth).fallback:find("is missing", 1, true))
      expect_same(image(fourth), "a.raw")
    end)

  it("rests on a base that was only touched", function()
    write_raw("a.raw", { 1, 2, 3 })
    local first = exported(farm { disk("vda", "a.raw") })
    must("touch", image(first))
    local second = exported(farm { disk("vda", "a.raw") })
    assert.equal(first.ReferencePointGroupId,
      second.BaseReferencePointGroupId)
  end)

  it("goes on in a tree that was moved", function()
    write_raw("a.raw", { 1, 2, 3 })
    exported(farm { disk("vda", "a.raw") })
    write_raw("a.raw", { 1, 2, 4 })
    exported(farm { disk("vda", "a.raw") })
    must("cp", "-a", "--sparse=always", at "out", at "elsewhere")
    must("rm", "-r", at "out")
    write_raw("a.raw", { 5, 2, 4 })
    local third = exported(farm { disk("vda", "a.raw") },
      { directory = at "elsewhere" })
    assert.equal("digest", disk_of(third).tracker)
    expect_same(image(third), "a.raw")
  end)

  it("follows a link to the export directory", function()
    write_raw("a.raw", { 1, 2, 3 })
    exported(farm { disk("vda", "a.raw") })
    must("mv", at "out", at "real")
    must("ln", "-s", "real", at "out")
    write_raw("a.raw", { 1, 2, 4 })
    local second = exported(farm { disk("vda", "a.raw") })
    assert.equal("digest", disk_of(second).tracker)
    expect_same(image(second), "a.raw")
    verify_all()
  end)

  it("begins anew when the chain is as long as it may be", function()
    local bases = {}
    for i = 1, 5 do
      write_raw("a.raw", { 1, i, 3 })
      local report, job, state = export(farm { disk("vda", "a.raw") },
        { depth_limit = 3 })
      bases[i] = disk_of(report).tracker
      if i == 4 then
        assert.equal("Completed With Warnings", state)
        assert.is_truthy(disk_of(report).fallback:find("has 3 levels", 1,
          true))
      else
        assert.equal("Completed", state, job.ErrorSummaryDescription)
      end
      expect_same(image(report), "a.raw")
    end
    assert.same({ "full", "digest", "digest", "full", "digest" }, bases)
  end)

  it("refuses a chain longer than QEMU opens here, and no shorter one",
    function()
      write_raw("a.raw", { 1, 2 })
      local last
      -- what QEMU is measured to open: DIR, then 80 bytes a level
      local most = 1 + (4095 - (#uv.fs_realpath(directory) + #"/out" + 75
        + #"x.qcow2")) // 80
      local _, job, state = export(farm { disk("x", "a.raw") },
        { depth_limit = most + 1 })
      assert.equal("Exception", state)
      assert.is_truthy(job.ErrorSummaryDescription:find("QEMU opens at most "
        .. most .. " levels", 1, true), job.ErrorSummaryDescription)
      for i = 1, most do
        write_raw("a.raw", { i, 2 })
        last = exported(farm { disk("x", "a.raw") }, { depth_limit = most })
        assert.equal(i == 1 and "full" or "digest", disk_of(last, "x").tracker)
      end
      expect_same(image(last, "x"), "a.raw")
      write_raw("a.raw", { 99, 2 })
      local over = export(farm { disk("x", "a.raw") },
        { depth_limit = most })
      assert.equal("full", disk_of(over, "x").tracker)
      -- and one level more is in fact too many
      local id = "B0000000-0000-4000-8000-000000000001"
      must("mkdir", "-p", at("out/" .. id .. "/" .. WEB))
      must("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
        ("../../%s/%s/x.qcow2"):format(last.ReferencePointGroupId, WEB),
        at("out/" .. id .. "/" .. WEB .. "/x.qcow2"), "128k")
      local code, _, output = support.run { "qemu-img", "convert", "-O", "raw",
        at("out/" .. id .. "/" .. WEB .. "/x.qcow2"), at "o.raw" }
      assert.equal(1, code)
      assert.is_truthy(output:find("too long", 1, true), output)
    end)
end)

describe("a collection that changes", function()
  before_each(function()
    directory, remove = support.directory()
    engine = assert(cairn.open { store = ":memory:" })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    remove()
  end)

  it("exports a new disk in full, and names one that is gone", function()
    write_raw("a.raw", { 1, 2 })
    write_raw("b.raw", { 3, 4 })
    local first = exported(farm { disk("vda", "a.raw") })
    local second = exported(farm { disk("vda", "a.raw"), disk("vdb", "b.raw") })
    assert.equal("digest", disk_of(second, "vda").tracker)
    assert.equal("full", disk_of(second, "vdb").tracker)
    assert.equal("no earlier point has this disk",
      disk_of(second, "vdb").fallback)
    local third, job, state = export(farm { disk("vdb", "b.raw") })
    assert.equal("Completed With Warnings", state)
    assert.same({ { VirtualMachineId = WEB, disk = "vda" } }, third.removed)
    assert.equal(0, (job:GetError()))
    -- it comes back: since the last point that had it
    local fourth = exported(farm { disk("vda", "a.raw"),
      disk("vdb", "b.raw") })
    assert.equal(second.ReferencePointGroupId,
      disk_of(fourth, "vda").base)
    assert.equal(third.ReferencePointGroupId, disk_of(fourth, "vdb").base)
    assert.equal(third.ReferencePointGroupId,
      fourth.BaseReferencePointGroupId)
    assert.is_truthy(first)
    expect_same(image(fourth, "vda"), "a.raw")
    verify_all()
  end)

  it("takes new and renamed machines", function()
    write_raw("a.raw", { 1, 2 })
    exported(farm { disk("vda", "a.raw") })
    local collection = cairn.collection { CollectionId = FARM, machines = {
      { VirtualMachineId = WEB, ElementName = "frontend",
        disks = { disk("vda", "a.raw") } },
      { VirtualMachineId = DB, ElementName = "db",
        disks = { disk("vda", "a.raw") } } } }
    local second = exported(collection)
    local d = second.machines[1].disks[1]
    assert.equal("digest", d.tracker)
    assert.equal("frontend", second.machines[1].ElementName)
    d = second.machines[2].disks[1]
    assert.equal("full", d.tracker)
    assert.equal(WEB .. "/vda", d.shared_with)
    verify_all()
  end)

  it("reads a source that machines share once", function()
    write_raw("a.raw", { 1, 2, 0, 4 })
    local function both()
      return cairn.collection { CollectionId = FARM, machines = {
        { VirtualMachineId = WEB, disks = { disk("vda", "a.raw") } },
        { VirtualMachineId = DB, disks = { disk("sda", "a.raw") } } } }
    end
    local first, job = exported(both())
    assert.equal(3 * BLOCK, job.bytes_done)
    expect_same(image(first, "sda", DB), "a.raw")
    write_raw("a.raw", { 1, 22, 3, 0 })
    local second = exported(both())
    assert.equal(".ddz", states(image(second), 4))
    assert.equal(".ddz", states(image(second, "sda", DB), 4))
    expect_same(image(second), "a.raw")
    expect_same(image(second, "sda", DB), "a.raw")
    -- of one only: then the bases differ
    write_raw("a.raw", { 5, 22, 3, 0 })
    exported(cairn.collection { CollectionId = OTHER, machines = {
      { VirtualMachineId = DB, disks = { disk("sda", "a.raw") } } } })
    local third = exported(both(), { base = first.ReferencePointGroupId })
    assert.equal("dddz", states(image(third, "sda", DB), 4))
    expect_same(image(third, "sda", DB), "a.raw")
    verify_all()
  end)

  it("goes on without a machine that fails, when told to", function()
    write_raw("a.raw", { 1, 2 })
    local function both(path)
      return cairn.collection { CollectionId = FARM, machines = {
        { VirtualMachineId = WEB, ElementName = "web",
          disks = { disk("vda", "a.raw"), disk("vdb", path) } },
        { VirtualMachineId = DB, disks = { disk("sda", "a.raw") } } } }
    end
    local _, _, state = export(both "absent.raw")
    assert.equal("Exception", state)
    local report, job
    report, job, state = export(both "absent.raw",
      { on_disk_error = "continue" })
    assert.equal("Completed With Warnings", state)
    assert.equal("failed", report.machines[1].result)
    assert.is_truthy(report.machines[1].error:find("absent.raw", 1, true))
    assert.equal("ok", report.machines[2].result)
    assert.same({ DB }, job.VirtualMachineId)
    assert.same({ DB .. "/sda" }, job.ExportedDisks)
    assert.is_nil(uv.fs_stat(report.path .. "/" .. WEB))
    expect_same(image(report, "sda", DB), "a.raw")
    local point = cairn.points(at "out")[1]
    assert.equal(WEB, point.failed[1].VirtualMachineId)
    assert.equal("source_missing", point.failed[1].code)
    verify_all()
    -- the dry run says the same
    local function plan(on_disk_error)
      return engine:plan { Name = "x", export = { directory = at "out",
        collection = both "absent.raw", on_disk_error = on_disk_error } }
    end
    local planned = assert(plan "continue")
    assert.equal(1, #planned.machines)
    assert.equal(DB, planned.machines[1].VirtualMachineId)
    assert.is_truthy(planned.warnings[1]:find("left out", 1, true))
    assert.is_nil((plan "fail"))
    -- all of them: then it is the job that fails
    must("rm", at "a.raw")
    assert.is_nil((plan "continue"))
    _, _, state = export(both "absent.raw", { on_disk_error = "continue" })
    assert.equal("Exception", state)
    assert.equal(1, #cairn.points(at "out"))
  end)
end)

describe("a source that cannot be looked at", function()
  before_each(function()
    directory, remove = support.directory()
    engine = assert(cairn.open { store = ":memory:" })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    remove()
  end)

  -- Compressed: that it cannot be read shows when it is read. The end of an
  -- image counts as changed in any case, so the data is in front.
  local function make()
    must("qemu-img", "create", "-q", "-f", "raw", at "c.raw", "4M")
    must("qemu-io", "-f", "raw", "-c", "write -P 1 0 2M", at "c.raw")
    must("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", at "c.raw",
      at "a.qcow2")
  end

  local function damage()
    local file = assert(io.open(at "a.qcow2", "r+b"))
    local function be64(offset)
      file:seek("set", offset)
      return (string.unpack(">I8", file:read(8)))
    end
    local l2 = be64(be64(40)) & 0x00fffffffffffe00
    for i = 0, 31 do
      local cluster = be64(l2 + 8 * i) & ((1 << 54) - 1)
      file:seek("set", cluster)
      file:write(("\xff"):rep(16))
    end
    file:close()
  end

  local function both(tracker)
    local sick = disk("vda", "a.qcow2", "qcow2")
    sick.tracker = tracker
    return cairn.collection { CollectionId = FARM, machines = {
      { VirtualMachineId = WEB, disks = { disk("vdc", "b.raw"), sick } },
      { VirtualMachineId = DB, disks = { disk("sda", "b.raw") } } } }
  end

  it("fails its machine alone when its tracker is checked", function()
    write_raw("b.raw", { 1, 2 })
    make()
    exported(both "bitmap")
    damage()
    local _, _, state = export(both "bitmap")
    assert.equal("Exception", state)
    local report, job
    report, job, state = export(both "bitmap", { on_disk_error = "continue" })
    assert.equal("Completed With Warnings", state,
      job.ErrorSummaryDescription)
    assert.equal("failed", report.machines[1].result)
    assert.same({ DB }, job.VirtualMachineId)
    expect_same(image(report, "sda", DB), "b.raw")
    assert.is_nil(uv.fs_stat(report.path .. "/" .. WEB))
    verify_all()
  end)

  it("leaves no disk behind that was done before it", function()
    write_raw("b.raw", { 1, 2 })
    make()
    damage()
    local report, _, state = export(both "full",
      { on_disk_error = "continue" })
    assert.equal("Completed With Warnings", state)
    local d, machine = disk_of(report, "vdc")
    assert.equal("failed", machine.result)
    assert.equal("not done", d.result)
    assert.is_nil(d.path)
    assert.equal("failed", disk_of(report, "vda").result)
    -- its twin is read from the source, and is nobody's any more
    assert.is_nil(disk_of(report, "sda").shared_with)
    expect_same(image(report, "sda", DB), "b.raw")
    verify_all()
  end)
end)

describe("a dry run", function()
  before_each(function()
    directory, remove = support.directory()
    engine = assert(cairn.open { store = ":memory:" })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    remove()
  end)

  it("has lists that stay lists when they are empty", function()
    write_raw("a.raw", { 1 })
    exported(farm { disk("vda", "a.raw") })
    local file = assert(io.open(at "farm.lua", "w"))
    file:write(([[return require("cairn").collection { CollectionId = "%s",
      machines = { { VirtualMachineId = "%s", disks = { { id = "vda",
        path = "%s", format = "raw" } } } } }]]):format(FARM, WEB, at "a.raw"))
    file:close()
    local output = must(support.build .. "/bin/cairn", "export", "--dry-run",
      "--json", "--base", "latest", "--collection", at "farm.lua", "--to",
      at "out")
    assert.is_truthy(output:find('"warnings":[]', 1, true), output)
    assert.is_truthy(output:find('"ranges":[]', 1, true), output)
  end)

  -- What an export takes on disk, holes aside, and what was planned.
  local function taken_and_planned(collection, fields)
    local spec = { collection = collection, directory = at "out" }
    for key, value in pairs(fields or {}) do spec[key] = value end
    local plan = assert(engine:plan { Name = "x", export = spec })
    local d = plan.machines[1].disks[1]
    assert.is_true(d.is_exact)
    d.work_bytes = plan.work_bytes
    local report = exported(collection, fields)
    local path = report.path .. "/" .. WEB .. "/vda."
    return 512 * (uv.fs_stat(path .. (spec.format or "qcow2")).blocks
      + uv.fs_stat(path .. "digests").blocks), d
  end

  it("tells a full's ranges and size to the byte", function()
    write_raw("a.raw", { 1, 0, 3 }, 4 << 30)
    do -- zeros that are no hole: known only to who reads them
      local file = assert(io.open(at "a.raw", "r+b"))
      file:seek("set", 8 * BLOCK)
      file:write(("\0"):rep(4 * BLOCK))
      file:close()
    end
    local taken, d = taken_and_planned(farm { disk("vda", "a.raw") })
    assert.equal(taken, d.target_bytes)
    assert.same({ { offset = 0, length = BLOCK, state = "data" },
      { offset = 2 * BLOCK, length = BLOCK, state = "data" } }, d.ranges)
    assert.equal(2 * BLOCK, d.changed_bytes)
    assert.equal(0, d.zeroed_bytes)
    assert.equal(4096, d.work_bytes) -- a page of slots
  end)

  it("tells a raw full's size to the byte, its cut last block too", function()
    write_raw("a.raw", { 1, 0, 3 }, 2 * BLOCK + 5000)
    local taken, d = taken_and_planned(farm { disk("vda", "a.raw") },
      { format = "raw" })
    assert.equal(taken, d.target_bytes)
    assert.equal(2 * BLOCK + 5000,
      d.ranges[2].offset + d.ranges[2].length)
  end)

  it("counts the pages that a journal will have", function()
    write_raw("a.raw", { 1 }, 4 << 30)
    local file = assert(io.open(at "a.raw", "r+b"))
    -- slots of 32 bytes follow 64 bytes: 126 are in the first page
    for _, number in ipairs { 125, 126, 127, 40000, 65535 } do
      file:seek("set", number * BLOCK)
      file:write(("x"):rep(BLOCK))
    end
    file:close()
    local _, d = taken_and_planned(farm { disk("vda", "a.raw") })
    assert.equal(4 * 4096, d.work_bytes)
  end)

  it("knows which pages of a digest map become holes", function()
    write_raw("a.raw", { 1 }, 4 << 30)
    local file = assert(io.open(at "a.raw", "r+b"))
    file:seek("set", 3 << 30)
    file:write(("x"):rep(BLOCK))
    file:close()
    exported(farm { disk("vda", "a.raw") })
    write_raw("a.raw", { 2 }, 4 << 30) -- nothing at 3 GiB any more
    local taken, d = taken_and_planned(farm { disk("vda", "a.raw") },
      { base = "latest" })
    assert.equal(taken, d.target_bytes)
    assert.equal(BLOCK, d.zeroed_bytes)
  end)

  it("tells an increment's ranges and size to the byte", function()
    write_raw("a.raw", { 1, 2, 3, 0, 5 })
    exported(farm { disk("vda", "a.raw") })
    write_raw("a.raw", { 1, 22, 33, 4, 0 })
    local spec = { Name = "x", export = { collection = farm {
      disk("vda", "a.raw") }, directory = at "out", base = "latest" } }
    local plan = assert(engine:plan(spec))
    local d = plan.machines[1].disks[1]
    assert.same({ { offset = BLOCK, length = 3 * BLOCK, state = "data" },
      { offset = 4 * BLOCK, length = BLOCK, state = "zero" } }, d.ranges)
    assert.equal(3 * BLOCK, d.changed_bytes)
    assert.equal(BLOCK, d.zeroed_bytes)
    assert.is_true(d.is_exact)
    local report = exported(farm { disk("vda", "a.raw") })
    local map = uv.fs_stat(report.path .. "/" .. WEB .. "/vda.digests").size
    assert.equal(uv.fs_stat(image(report)).size + map, d.target_bytes)
    assert.equal(2, #cairn.points(at "out"))
  end)
end)
