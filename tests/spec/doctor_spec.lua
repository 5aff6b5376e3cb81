-- Doctor: what it finds, what it leaves alone, what --fix removes. The files
-- and qemu-img judge.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local FARM = "6F1D0000-0000-4000-8000-000000000001"
local WEB = "6F1D0000-0000-4000-8000-000000000002"
local UNKNOWN = "11111111-0000-4000-8000-000000000000"

local directory, remove, engine

local function at(name) return directory .. "/" .. name end

local function must(...)
  local code, signal, output = support.run { ... }
  assert.equal(0, code, table.concat({ ... }, " ") .. ": "
    .. tostring(signal) .. " " .. output)
  return output
end

local function exists(path) return uv.fs_lstat(path) ~= nil end

local function farm(disks)
  local list = {}
  for i, d in ipairs(disks) do
    list[i] = { id = d[1], path = at(d[2]), format = d[3], tracker = d[4] }
  end
  return cairn.collection { CollectionId = FARM, ElementName = "farm",
    machines = { { VirtualMachineId = WEB, ElementName = "web",
      disks = list } } }
end

local function done(code, job, message)
  assert.equal(4096, code, message)
  assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
  return job:report().ReferencePointGroupId
end

local function export(collection, to)
  return done(engine:ExportReferencePoint(collection, to or at "out",
    { base = "latest" }))
end

local function create(collection)
  return done(engine:CreateReferencePoint(collection, at "out"))
end

local function doctor(options)
  return assert(cairn.doctor(at "out", options))
end

-- The words of the findings, sorted, and the findings by word.
local function found(options)
  local report = doctor(options)
  local words = {}
  for i, f in ipairs(report.findings) do
    words[i] = f.what
    words[f.what] = f
    assert.is_true(#f.advice > 0 and #f.text > 0)
  end
  table.sort(words)
  return words, report
end

local function expect(wanted, words)
  assert.equal(table.concat(wanted, " "), table.concat(words, " "))
end

local function raw(name, ...)
  local file = assert(io.open(at(name), "wb"))
  for _, seed in ipairs { ... } do
    file:write(string.char(seed):rep(65536))
  end
  file:close()
end

local function bitmaps(name)
  local n = 0
  for _ in must("qemu-img", "info", "--output=json", "-f", "qcow2", at(name))
    :gmatch '"name": "cairn%-' do
    n = n + 1
  end
  return n
end

local function command(...)
  return support.run { support.build .. "/bin/cairn", "doctor", at "out", ... }
end

describe("doctor", function()
  before_each(function()
    directory, remove = support.directory()
    engine = assert(cairn.open { store = ":memory:" })
  end)
  after_each(function()
    engine:close { mode = "kill" }
    remove()
  end)

  it("finds nothing in a sound directory, and says what comes next",
    function()
      raw("a.raw", 1, 2)
      raw("b.raw", 3)
      export(farm { { "vda", "a.raw", "raw" } })
      local newest = export(farm { { "vda", "a.raw", "raw" },
        { "vdb", "b.raw", "raw" } })
      local before = must("find", at "out", "-printf", "%p %T@ %C@ %s\n")
      local words, report = found()
      expect({}, words)
      assert.equal(2, report.point_count)
      local depths = {}
      for _, chain in ipairs(report.chains) do
        assert.equal(newest, chain.ReferencePointGroupId)
        depths[chain.disk] = chain.depth
      end
      assert.same({ vda = 2, vdb = 1 }, depths)
      local disk = report.next.machines[1].disks[1]
      assert.equal(newest, disk.base)
      assert.equal("digest", disk.tracker)
      assert.is_true(report.free_bytes > 0)
      local code, _, output = command()
      assert.equal(0, code, output)
      assert.truthy(output:find("next export: disk vda of web: an increment on "
        .. newest, 1, true), output)
      assert.truthy(output:find "nothing found", output)
      -- a given collection is planned instead
      report = doctor { collection = farm { { "vdc", "b.raw", "raw" } } }
      assert.is_nil(report.next.machines[1].disks[1].base)
      assert.truthy(report.next.machines[1].disks[1].fallback)
      -- and nothing was touched
      assert.equal(before, must("find", at "out", "-printf",
        "%p %T@ %C@ %s\n"))
    end)

  it("finds missing bases, moved ones, copies, damage and wide modes",
    function()
      local ids = {}
      for i = 1, 4 do
        raw("a.raw", i, 9)
        ids[i] = export(farm { { "vda", "a.raw", "raw" } })
      end
      local function out(i, rest) return at("out/" .. ids[i] .. (rest or "")) end
      uv.fs_rename(out(1), at "moved")
      local words = found()
      expect({ "missing_base" }, words)
      assert.truthy(words.missing_base.text:find(ids[1], 1, true))
      assert.truthy(words.missing_base.subject:find(ids[2], 1, true))
      uv.fs_rename(at "moved", at "out/renamed")
      words = found()
      expect({ "base_elsewhere", "misnamed" }, words)
      assert.truthy(words.base_elsewhere.text:find("out/renamed", 1, true))
      uv.fs_rename(at "out/renamed", out(1))
      must("cp", "-a", out(4), at "out/copy")
      expect({ "duplicate" }, (found()))
      must("rm", "-r", at "out/copy")
      uv.fs_chmod(out(3, "/manifest.json"), tonumber("644", 8))
      words = found()
      expect({ "wide_modes" }, words)
      assert.truthy(words.wide_modes.text:find "manifest.json")
      uv.fs_chmod(out(3, "/manifest.json"), tonumber("600", 8))
      expect({}, (found()))
      support.write(out(4, "/manifest.json"), "{}")
      words = found()
      expect({ "damaged" }, words)
      local code, _, output = command()
      assert.equal(1, code)
      assert.truthy(output:find "damaged: " and output:find "to do: ", output)
    end)

  it("finds and removes what runs have left, and no run that lives",
    function()
      raw("a.raw", 1)
      export(farm { { "vda", "a.raw", "raw" } })
      local job = "22222222-0000-4000-8000-000000000000"
      local work = at("out/.partial-" .. job .. "-1-1")
      must("mkdir", "-m", "700", work, work .. "/point",
        at("out/.removed-" .. job))
      support.write(work .. "/owner.lock", "1\n")
      support.write(work .. "/point/x", ("x"):rep(2 << 20))
      local words = found()
      expect({ "half_removed", "stale_work" }, words)
      assert.truthy(words.stale_work.text:find "2%.0 MiB")
      -- one that is at work is none
      local holder = uv.new_pipe(false)
      local process = assert(uv.spawn("python3", { args = { "-c", [[
import fcntl, struct, sys
f = open(sys.argv[1], "r+")
fcntl.fcntl(f, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
print("locked", flush=True)
sys.stdin.read()
]], work .. "/owner.lock" }, stdio = { uv.new_pipe(false), holder, nil } },
        function() end))
      local said = ""
      holder:read_start(function(_, data) said = said .. (data or "\n") end)
      while not said:find "\n" do uv.run "once" end
      assert.equal("locked\n", said)
      expect({ "half_removed" }, (found()))
      local report = doctor { fix = true }
      assert.equal(1, #report.fixed)
      assert.is_true(exists(work .. "/point/x"))
      process:kill "sigkill"
      while process:is_active() do uv.run "once" end
      process:close()
      holder:close()
      local code, _, output = command "--fix"
      assert.equal(0, code, output)
      assert.truthy(output:find("fixed: removed .partial-" .. job, 1, true),
        output)
      assert.is_false(exists(work))
      expect({}, (found()))
    end)

  it("finds bitmaps and clones of nobody, and knows those of other directories",
    function()
      must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
      local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" } }
      local gone = export(collection)
      local stays = export(collection)
      local marker = create(collection)
      local other = export(collection, at "other")
      assert.equal(5, bitmaps "a.qcow2")
      must("qemu-img", "bitmap", "--add", "-f", "qcow2", at "a.qcow2", "mine")
      expect({ "left_bitmap" }, (found()))
      expect({}, (found { also = { at "other" } }))
      must("rm", "-r", at("out/" .. stays), at("out/" .. gone))
      raw("b.raw", 1)
      export(farm { { "vda", "a.qcow2", "qcow2" } })
      local clone = ("%s/.cairn.clones/%s.%s.vda.raw"):format(at "out", UNKNOWN,
        WEB)
      must("mkdir", "-p", "-m", "700", at "out/.cairn.clones")
      support.write(clone, "x")
      support.write(at "out/.cairn.clones/not-ours", "x")
      local words = found { also = { at "other" } }
      expect({ "left_bitmap", "left_bitmap", "left_clone" }, words)
      local code, _, output = command("--also", at "other", "--fix")
      assert.equal(0, code, output)
      assert.is_false(exists(clone))
      assert.is_true(exists(at "out/.cairn.clones/not-ours"))
      local info = must("qemu-img", "info", "--output=json", "-f", "qcow2",
        at "a.qcow2")
      for _, id in ipairs { marker, other } do
        assert.truthy(info:find("cairn-" .. id, 1, true))
      end
      for _, id in ipairs { stays, gone } do
        assert.is_nil(info:find('"cairn-' .. id .. '"', 1, true))
      end
      assert.truthy(info:find('"mine"', 1, true))
      expect({}, (found { also = { at "other" } }))
      must("qemu-img", "check", "-q", "-f", "qcow2", at "a.qcow2")
    end)

  it("finds a bitmap that a killed QEMU has left open", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    export(farm { { "vda", "a.qcow2", "qcow2", "bitmap" } })
    local process = assert(uv.spawn("qemu-nbd", { args = { "-f", "qcow2", "-t",
      "-k", at "socket", at "a.qcow2" } }, function() end))
    for _ = 1, 500 do
      if exists(at "socket") then break end
      uv.sleep(10)
    end
    -- a writer, so that the bitmaps are marked as in use
    must("qemu-io", "-f", "raw", "-c", "write 0 512",
      "nbd+unix:///?socket=" .. at "socket")
    process:kill "sigkill"
    while process:is_active() do uv.run "once" end
    process:close()
    local words = found()
    assert.truthy(words.bitmap_in_use)
    assert.is_true(words.bitmap_in_use.is_fixable)
    local report = doctor { fix = true }
    assert.equal(0, #report.findings)
    assert.equal(0, bitmaps "a.qcow2")
  end)

  it("finds a damaged index, removes nothing then, and exports go on",
    function()
      must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
      local collection = farm { { "vda", "a.qcow2", "qcow2", "bitmap" } }
      local marker = create(collection)
      export(farm { { "vda", "a.qcow2", "qcow2" } })
      local index = support.read(at "out/.cairn.index")
      support.write(at "out/.cairn.index", (index:gsub("farm", "FARM")))
      local words = found()
      expect({ "index", "left_bitmap" }, words)
      local report = doctor { fix = true }
      assert.equal(0, #report.fixed)
      assert.equal(2, bitmaps "a.qcow2")
      local code, job = engine:CreateReferencePoint(collection, at "out")
      assert.equal(4096, code)
      assert.equal("Exception", job:wait())
      assert.truthy(job.ErrorSummaryDescription:find(".cairn.index", 1, true))
      code, job = engine:ExportReferencePoint(farm { { "vda", "a.qcow2",
        "qcow2" } }, at "out")
      assert.equal(4096, code)
      assert.equal("Completed With Warnings", job:wait())
      support.write(at "out/.cairn.index", index)
      expect({}, (found()))
      assert.equal(marker, cairn.points(at "out")[1].ReferencePointGroupId)
    end)

  it("finds that a marker has lost what was kept for it", function()
    must("qemu-img", "create", "-q", "-f", "qcow2", at "a.qcow2", "1M")
    local marker = create(farm { { "vda", "a.qcow2", "qcow2", "bitmap" } })
    must("qemu-img", "bitmap", "--remove", "-f", "qcow2", at "a.qcow2",
      "cairn-" .. marker)
    local words = found()
    expect({ "lost_data" }, words)
    assert.equal(marker, words.lost_data.subject)
  end)

  it("finds that the next export would fail", function()
    raw("a.raw", 1)
    export(farm { { "vda", "a.raw", "raw" } })
    uv.fs_unlink(at "a.raw")
    local words, report = found()
    expect({ "next_export" }, words)
    assert.truthy(report.next_error:find("a.raw", 1, true))
  end)

  it("refuses what it does not know", function()
    raw("a.raw", 1)
    local result, message, code = cairn.doctor(at "nowhere")
    assert.is_nil(result)
    assert.truthy(message:find "nowhere")
    assert.equal("not_found", code)
    result, message, code = cairn.doctor(at "out", { fixx = true })
    assert.is_nil(result)
    assert.truthy(message:find "did you mean 'fix'", message)
    assert.equal("unknown_key", code)
    assert.equal(2, (support.run { support.build .. "/bin/cairn", "doctor",
      at "nowhere" }))
  end)
end)
