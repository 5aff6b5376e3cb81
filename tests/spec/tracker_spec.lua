-- Trackers in real exports: what they say is used, what cannot be trusted
-- falls back for that disk alone, and the content is right either way.
-- qemu-img and cmp judge, not Cairn.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local FARM = "6F1D0000-0000-4000-8000-000000000001"
local WEB = "6F1D0000-0000-4000-8000-000000000002"

local io_open = io.open
local directory, remove, engine

local function at(name) return directory .. "/" .. name end

local function must(...)
  local code, signal, output = support.run { ... }
  assert.equal(0, code, table.concat({ ... }, " ") .. ": "
    .. tostring(signal) .. " " .. output)
  return output
end

local function farm(disks, more)
  for i, d in ipairs(disks) do
    disks[i] = { id = d[1], path = at(d[2]), format = d[3], tracker = d[4] }
  end
  local t = { CollectionId = FARM, machines = { { VirtualMachineId = WEB,
    ElementName = "web", disks = disks } } }
  for key, value in pairs(more or {}) do t[key] = value end
  return cairn.collection(t)
end

local function export(collection, more)
  local spec = { collection = collection, directory = at "out",
    base = "latest" }
  for key, value in pairs(more or {}) do spec[key] = value end
  local job = assert(engine:submit { Name = "export", export = spec })
  local state = job:wait()
  return job:report(), job, state
end

local function exported(...)
  local report, job, state = export(...)
  assert.equal("Completed", state, job.ErrorSummaryDescription
    or table.concat(report and report.warnings or {}, "\n"))
  return report, job
end

local function disk_of(report, id)
  for _, d in ipairs(report.machines[1].disks) do
    if d.id == (id or "vda") then return d end
  end
end

local function image(report, id)
  return ("%s/%s/%s.qcow2"):format(report.path, WEB, id or "vda")
end

local function expect_same(report, source, format, id)
  must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", format,
    image(report, id), at(source))
end

local function warnings_of(job)
  local lines = {}
  local _, errors = job:GetErrorEx()
  for _, e in ipairs(errors or {}) do lines[#lines + 1] = e.Message end
  return table.concat(lines, "\n")
end

-- The bitmaps of an image as QEMU lists them.
local function bitmaps(name)
  local out = {}
  local info = must("qemu-img", "info", "--output=json", "-f", "qcow2",
    at(name))
  for found in info:gmatch '"name": "(cairn%-[^"]+)"' do
    out[#out + 1] = found
  end
  return out
end

local function has_bitmap(name, id)
  for _, found in ipairs(bitmaps(name)) do
    if found == "cairn-" .. id then return true end
  end
  return false
end

local function io(name, ...)
  local argv = { "qemu-io", "-f", "qcow2" }
  for _, command in ipairs { ... } do
    argv[#argv + 1] = "-c"
    argv[#argv + 1] = command
  end
  argv[#argv + 1] = at(name)
  must(table.unpack(argv))
end

local function open_engine()
  directory, remove = support.directory()
  engine = assert(cairn.open { store = ":memory:" })
end

local function close_engine()
  engine:close { mode = "kill" }
  remove()
end

describe("the bitmap tracker", function()
  before_each(open_engine)
  after_each(close_engine)

  local function make(name)
    must("qemu-img", "create", "-q", "-f", "qcow2", at(name), "64M")
    io(name, "write -P 1 0 32M")
  end

  it("reads what the bitmap says and no more", function()
    make "a.qcow2"
    local function all() return farm { { "vda", "a.qcow2", "qcow2",
      "bitmap" } } end
    local first = exported(all())
    assert.equal("full", disk_of(first).tracker)
    assert.is_true(has_bitmap("a.qcow2", first.ReferencePointGroupId))
    io("a.qcow2", "write -P 2 1M 128k", "write -P 1 2M 64k", "write -z 3M 64k",
      "discard 4M 64k")
    local second = exported(all())
    local d = disk_of(second)
    assert.equal("bitmap", d.tracker)
    assert.is_true(d.bytes_read <= 5 * 65536, d.bytes_read)
    assert.is_true(d.blocks_audited > 0)
    expect_same(second, "a.qcow2", "qcow2")
    assert(cairn.verify { directory = at "out" })
    -- no change at all
    local third = exported(all())
    assert.equal("bitmap", disk_of(third).tracker)
    assert.equal(0, disk_of(third).bytes_read)
    expect_same(third, "a.qcow2", "qcow2")
  end)

  it("leaves no bitmap behind a failed export", function()
    make "a.qcow2"
    local _, _, state = export(farm { { "vda", "a.qcow2", "qcow2", "bitmap" },
      { "vdb", "absent.raw", "raw" } })
    assert.equal("Exception", state)
    assert.same({}, bitmaps "a.qcow2")
  end)

  it("falls back where the bitmap is not one to trust", function()
    make "a.qcow2"
    local function all() return farm { { "vda", "a.qcow2", "qcow2",
      "bitmap" } } end
    local first = exported(all())
    must("qemu-img", "bitmap", "--disable", at "a.qcow2",
      "cairn-" .. first.ReferencePointGroupId)
    io("a.qcow2", "write -P 2 1M 128k")
    local second, job, state = export(all())
    assert.equal("Completed With Warnings", state)
    assert.equal("digest", disk_of(second).tracker)
    assert.is_truthy(disk_of(second).fallback)
    assert.is_truthy(warnings_of(job):find("without the bitmap tracker", 1,
      true), warnings_of(job))
    expect_same(second, "a.qcow2", "qcow2")
    local third = exported(all())
    assert.equal("bitmap", disk_of(third).tracker)
  end)

  it("falls back on images that hold no bitmaps, alone", function()
    make "a.qcow2"
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10",
      at "old.qcow2", "1M")
    must("truncate", "-s", "1M", at "b.raw")
    local report, _, state = export(farm({
      { "vda", "a.qcow2", "qcow2" }, { "vdb", "old.qcow2", "qcow2" },
      { "vdc", "b.raw", "raw" } }), { tracker = "bitmap" })
    assert.equal("Completed With Warnings", state)
    assert.is_nil(disk_of(report, "vda").fallback)
    assert.is_truthy(disk_of(report, "vdb").fallback)
    assert.is_truthy(disk_of(report, "vdc").fallback)
  end)

  it("keeps eight points in an image and drops the oldest", function()
    make "a.qcow2"
    local ids = {}
    for i = 1, 10 do
      io("a.qcow2", ("write -P %d %dM 64k"):format(i, i))
      local report, job = export(farm { { "vda", "a.qcow2", "qcow2",
        "bitmap" } })
      ids[i] = report.ReferencePointGroupId
      local tracker = disk_of(report).tracker
      assert.equal(i == 1 and "full" or (i == 8) and "digest" or "bitmap",
        tracker, i .. ": " .. warnings_of(job))
      if i == 8 then
        assert.is_truthy(disk_of(report).fallback:find("every 7th run", 1,
          true))
      end
      expect_same(report, "a.qcow2", "qcow2")
    end
    assert.is_false(has_bitmap("a.qcow2", ids[1]))
    assert.is_true(has_bitmap("a.qcow2", ids[10]))
    -- and those that are left still tell
    io("a.qcow2", "write -P 99 20M 64k")
    local report = exported(farm { { "vda", "a.qcow2", "qcow2", "bitmap" } },
      { base = ids[9] })
    assert.equal("bitmap", disk_of(report).tracker)
    expect_same(report, "a.qcow2", "qcow2")
  end)

  it("is caught when it misses a change, and the points are suspect", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "4M")
    io("a.qcow2", "write -P 1 0 4M")
    local function all() return farm { { "vda", "a.qcow2", "qcow2",
      "bitmap" } } end
    local first = exported(all())
    local second = exported(all())
    assert.equal("bitmap", disk_of(second).tracker)
    -- behind QEMU's back: bytes of the data clusters themselves
    local map = must("qemu-img", "map", "--output=json", "-f", "qcow2",
      at "a.qcow2")
    local file = assert(io_open(at "a.qcow2", "r+b"))
    for start, length, offset in map:gmatch
      '"start": (%d+), "length": (%d+),[^}]-"offset": (%d+)' do
      for i = 0, tonumber(length) - 1, 65536 do
        if tonumber(start) + i < 2097152 then
          file:seek("set", math.tointeger(offset) + i + 100)
          file:write "x"
        end
      end
    end
    file:close()
    local third, job, state = export(all())
    assert.equal("Completed With Warnings", state)
    assert.equal("digest", disk_of(third).tracker)
    assert.is_truthy(warnings_of(job):find("are doubtful", 1, true),
      warnings_of(job))
    expect_same(third, "a.qcow2", "qcow2")
    local remarks = {}
    for _, point in ipairs(cairn.points(at "out")) do
      remarks[point.ReferencePointGroupId] = point.remark or ""
    end
    assert.is_truthy(remarks[second.ReferencePointGroupId]:find("suspect", 1,
      true) or remarks[second.ReferencePointGroupId]:find("missed", 1, true),
      remarks[second.ReferencePointGroupId])
    assert.equal("", remarks[first.ReferencePointGroupId])
    assert.equal("", remarks[third.ReferencePointGroupId])
  end)

  it("leaves nothing in the source after kill -9 and another run", function()
    make "a.qcow2"
    io("a.qcow2", "write -P 3 0 64M")
    support.write(at "farm.lua", ([[
      return require "cairn".collection { CollectionId = %q, machines = { {
        VirtualMachineId = %q, disks = { { id = "vda", path = "a.qcow2",
        format = "qcow2", tracker = "bitmap" } } } } }]]):format(FARM, WEB))
    local build = assert(os.getenv "CAIRN_BUILD")
    must("sh", "-c", ([[
      cd '%s' && ulimit -c 0
      '%s/bin/cairn' export --collection farm.lua --to out >/dev/null 2>&1 &
      pid=$!
      i=0
      until [ -n "$(ls out/.partial-*/point/*/vda.qcow2 2>/dev/null)" ] ||
        [ $i -gt 2000 ]; do i=$((i + 1)); sleep 0.005; done
      kill -9 $pid 2>/dev/null
      wait $pid 2>/dev/null
      true]]):format(directory, build))
    if #cairn.points(at "out") == 0 then
      assert.is_true(#bitmaps "a.qcow2" > 0)
    end
    local report = exported(farm { { "vda", "a.qcow2", "qcow2", "bitmap" } })
    for _, name in ipairs(bitmaps "a.qcow2") do
      local id = name:match "^cairn%-(%x+%-%x+%-%x+%-%x+%-%x+)"
      local is_known = id == report.ReferencePointGroupId
      for _, point in ipairs(cairn.points(at "out")) do
        is_known = is_known or id == point.ReferencePointGroupId
      end
      -- a guard may be of a point that is gone
      assert.is_true(is_known or name:find "%-%x+%-%x+%-%x+%-%x+%-%x+%-%x+$"
        ~= nil, name)
    end
    expect_same(report, "a.qcow2", "qcow2")
  end)

  it("is checked where the disk has data, however little", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "8G")
    io("a.qcow2", "write -P 1 1M 128k")
    local function all() return farm { { "vda", "a.qcow2", "qcow2",
      "bitmap" } } end
    exported(all())
    -- behind QEMU's back
    local map = must("qemu-img", "map", "--output=json", "-f", "qcow2",
      at "a.qcow2")
    local offset = assert(map:match '"data": true[^}]-"offset": (%d+)')
    local file = assert(io_open(at "a.qcow2", "r+b"))
    file:seek("set", math.tointeger(offset))
    file:write(("\7"):rep(65536))
    file:close()
    local report, job = export(all())
    assert.equal("digest", disk_of(report).tracker)
    assert.is_truthy(warnings_of(job):find("are doubtful", 1, true),
      warnings_of(job))
    expect_same(report, "a.qcow2", "qcow2")
  end)

  it("is believed six times in a row, whatever the chain is like", function()
    make "a.qcow2"
    make "b.qcow2"
    local function one(name) return farm { { "vda", name, "qcow2",
      "bitmap" } } end
    -- all from one base
    local base = exported(one "a.qcow2").ReferencePointGroupId
    for i = 2, 8 do
      local report = exported(one "a.qcow2", { base = base })
      assert.equal(i == 8 and "digest" or "bitmap", disk_of(report).tracker, i)
    end
    -- merged in between: the chain is short then
    must("rm", "-r", at "out")
    for i = 1, 8 do
      local report = exported(one "b.qcow2")
      assert.equal(i == 1 and "full" or i == 8 and "digest" or "bitmap",
        disk_of(report).tracker, i)
      if i == 5 then
        assert(cairn.merge { directory = at "out",
          point = report.ReferencePointGroupId })
      end
    end
  end)

  it("plans without writing into the source", function()
    make "a.qcow2"
    local spec = { Name = "x", export = { collection = farm { { "vda",
      "a.qcow2", "qcow2", "bitmap" } }, directory = at "out",
      base = "latest" } }
    assert(engine:plan(spec))
    assert.same({}, bitmaps "a.qcow2")
    exported(spec.export.collection)
    io("a.qcow2", "write -P 2 1M 128k")
    local count = #bitmaps "a.qcow2"
    local plan = assert(engine:plan(spec))
    local d = plan.machines[1].disks[1]
    assert.equal("bitmap", d.tracker)
    assert.equal(2 * 65536, d.changed_bytes)
    assert.equal(count, #bitmaps "a.qcow2")
  end)
end)

describe("the clone tracker", function()
  local mounted

  -- A file system of its own, with the sources and the export directory.
  local function mount(kind, options)
    must("truncate", "-s", "400M", at(kind .. ".img"))
    must("mkfs." .. kind, "-q", at(kind .. ".img"))
    assert(uv.fs_mkdir(at(kind), 448))
    must("mount", "-o", options and "loop," .. options or "loop",
      at(kind .. ".img"), at(kind))
    mounted = at(kind)
    directory = mounted
  end

  local function can_mount()
    if not uv.getuid or uv.getuid() ~= 0 then
      return false, "mounting needs root"
    end
    local code = support.run { "losetup", "-f" }
    return code == 0, "there are no loop devices"
  end

  before_each(open_engine)
  after_each(function()
    engine:close { mode = "kill" }
    if mounted then must("umount", mounted) end
    mounted = nil
    remove()
  end)

  for _, case in ipairs { { "xfs" }, { "btrfs" },
    { "btrfs", "compress-force=zstd" } } do
    it("compares clones on " .. case[1] .. (case[2] and " " .. case[2] or ""),
      function()
        local able, why = can_mount()
        if not able then return pending(why) end
        mount(case[1], case[2])
        local function write(offset, seed, blocks)
          must("dd", "if=/dev/urandom", "of=" .. at "a.raw", "bs=64k",
            "conv=notrunc", "seek=" .. offset, "count=" .. blocks,
            "status=none")
          assert.is_truthy(seed)
        end
        must("truncate", "-s", "64M", at "a.raw")
        write(0, 1, 256)
        local function all() return farm { { "vda", "a.raw", "raw",
          "clone" } } end
        local first = exported(all())
        assert.equal("full", disk_of(first).tracker)
        assert.is_truthy(uv.fs_stat(at("out/.cairn.clones/"
          .. first.ReferencePointGroupId .. "." .. WEB .. ".vda.raw")))
        write(100, 2, 3)
        must("fallocate", "-p", "-o", "1M", "-l", "128k", at "a.raw")
        local second = exported(all())
        local d = disk_of(second)
        assert.equal("clone", d.tracker)
        if not case[2] then
          assert.equal(3 * 65536, d.bytes_read)
        end
        expect_same(second, "a.raw", "raw")
        must("truncate", "-s", "70M", at "a.raw")
        local third = exported(all())
        assert.equal("clone", disk_of(third).tracker)
        expect_same(third, "a.raw", "raw")
        assert(cairn.verify { directory = at "out" })
        -- a clone that somebody wrote to is not the base's
        must("chmod", "600", at("out/.cairn.clones/"
          .. third.ReferencePointGroupId .. "." .. WEB .. ".vda.raw"))
        local fourth, _, state = export(all())
        assert.equal("Completed With Warnings", state)
        assert.equal("digest", disk_of(fourth).tracker)
        expect_same(fourth, "a.raw", "raw")
        -- a failed export leaves no clone
        local before = #must("ls", at "out/.cairn.clones")
        local _, _, failed = export(farm { { "vda", "a.raw", "raw", "clone" },
          { "vdb", "absent.raw", "raw" } })
        assert.equal("Exception", failed)
        assert.equal(before, #must("ls", at "out/.cairn.clones"))
        -- a dry run compares with the source itself
        write(200, 3, 1)
        local plan = assert(engine:plan { Name = "x", export = {
          collection = all(), directory = at "out", base = "latest" } })
        assert.equal("clone", plan.machines[1].disks[1].tracker)
      end)
  end

  it("falls back where nothing can be cloned", function()
    must("truncate", "-s", "1M", at "a.raw")
    local report, job, state = export(farm { { "vda", "a.raw", "raw",
      "clone" } })
    assert.equal("Completed With Warnings", state)
    assert.is_truthy(disk_of(report).fallback)
    assert.is_truthy(warnings_of(job):find("without the clone tracker", 1,
      true))
  end)
end)
