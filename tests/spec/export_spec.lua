-- Exports through the public module on small real images. What came out is
-- judged by qemu-img and cmp, not by Cairn.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local FARM = "6F1D0000-0000-4000-8000-000000000001"
local WEB = "6F1D0000-0000-4000-8000-000000000002"
local DB = "6F1D0000-0000-4000-8000-000000000003"

local directory, remove

local function at(name) return directory .. "/" .. name end

local function must(...)
  local code, signal, output = support.run { ... }
  assert.equal(0, code, table.concat({ ... }, " ") .. ": "
    .. tostring(signal) .. " " .. output)
  return output
end

-- Bytes that do not repeat, the same in each run.
local function bytes(count, seed)
  local out, x = {}, seed
  for i = 1, count // 4 do
    x = (x * 1103515245 + 12345) % 2147483648
    out[i] = string.pack("<I4", x)
  end
  return table.concat(out)
end

-- A sparse raw disk of an odd length, a qcow2 overlay on a qcow2 base, a
-- 1-byte disk, and files.
local function make_sources()
  local raw = assert(io.open(at "data.raw", "wb"))
  raw:write(bytes(200000, 1))
  raw:seek("set", 3000000)
  raw:write(bytes(70000, 2), "tail.")
  raw:seek("set", 5000001 - 1)
  raw:write "\0"
  raw:close()
  support.write(at "base.raw", bytes(1048576, 3) .. ("\0"):rep(2097152))
  must("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c",
    at "base.raw", at "base.qcow2")
  must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F",
    "qcow2", at "web ü.qcow2", "4M")
  must("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 100k 300k", "-c",
    "write -z 1500k 64k", at "web ü.qcow2")
  support.write(at "one.raw", "x")
  assert(uv.fs_mkdir(at "etc", 448))
  support.write(at "etc/web.xml", "<domain/>\n")
  support.write(at "web.save", "runtime state")
end

local function farm(change)
  local t = {
    CollectionId = FARM, ElementName = "farm",
    machines = {
      { VirtualMachineId = WEB, ElementName = "web",
        disks = { { id = "vda", path = at "web ü.qcow2", format = "qcow2" },
          { id = "vdb", path = at "data.raw", format = "raw" } },
        config = { at "etc/web.xml" }, runtime = { at "web.save" } },
      { VirtualMachineId = DB, ElementName = "db",
        disks = { { id = "sda", path = at "one.raw", format = "raw" } } },
    },
  }
  if change then change(t, t.machines[1], t.machines[1].disks[1]) end
  return cairn.collection(t)
end

local function export(engine, more, collection)
  local spec = { collection = collection or farm(), directory = at "out" }
  for key, value in pairs(more or {}) do spec[key] = value end
  return assert(engine:submit { Name = "export", export = spec })
end

local function restored(name) return at("back/" .. name) end

describe("a full export", function()
  setup(function()
    directory, remove = support.directory()
    make_sources()
  end)
  teardown(function() remove() end)

  local engine
  before_each(function() engine = assert(cairn.open()) end)
  after_each(function()
    engine:close { mode = "kill" }
    support.run { "rm", "-rf", at "out", at "back" }
  end)

  it("is what was asked for, and qemu-img and cmp say so", function()
    local job = export(engine)
    assert.equal("Completed", job:wait(60), job.ErrorSummaryDescription)
    assert.equal(100, job.PercentComplete)
    assert.equal(FARM, job.CollectionId)
    assert.is_nil(job.BaseReferencePointGroupId)
    assert.same({ WEB, DB }, job.VirtualMachineId)
    assert.same({ WEB .. "/vda", WEB .. "/vdb", DB .. "/sda" },
      job.ExportedDisks)
    assert.equal(at "out", job.ExportDirectory)
    local point = at("out/" .. job.ReferencePointGroupId)
    assert.same({ point .. "/" .. WEB .. "/vda.qcow2",
      point .. "/" .. WEB .. "/vdb.qcow2", point .. "/" .. DB .. "/sda.qcow2" },
      job.ExportedLogFilePaths)
    assert.same({ point .. "/" .. WEB .. "/config/web.xml", "" },
      job.ExportedConfigFilePaths)
    assert.same({ point .. "/" .. WEB .. "/runtime/web.save", "" },
      job.ExportedRuntimeFilePaths)
    assert.same({ "", "" }, job.ExportedGuestStateFilePaths)
    local report = job:report()
    assert.equal(2, #report.machines)

    for _, file in ipairs(job.ExportedLogFilePaths) do
      must("qemu-img", "check", "-q", "-f", "qcow2", file)
    end
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2",
      at "web ü.qcow2", job.ExportedLogFilePaths[1])
    must("cmp", at "etc/web.xml", job.ExportedConfigFilePaths[1])
    must("cmp", at "web.save", job.ExportedRuntimeFilePaths[1])

    local verified = assert(cairn.verify { directory = at "out" })
    assert.equal("ok", verified.points[1].result)
    assert(cairn.restore { directory = at "out",
      point = job.ReferencePointGroupId, to = at "back" })
    must("cmp", at "data.raw", restored(WEB .. "/vdb.raw"))
    must("cmp", at "one.raw", restored(DB .. "/sda.raw"))
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw",
      at "web ü.qcow2", restored(WEB .. "/vda.raw"))
    must("cmp", at "etc/web.xml", restored(WEB .. "/config/web.xml"))
  end)

  it("may be raw, with another digest, and restored to qcow2", function()
    local job = export(engine, { format = "raw", digest = "sha-256" })
    assert.equal("Completed", job:wait(60), job.ErrorSummaryDescription)
    local paths = job.ExportedLogFilePaths
    assert.matches("vdb%.raw$", paths[2])
    must("cmp", "-n", "5000001", at "data.raw", paths[2])
    assert(cairn.restore { directory = at "out", format = "qcow2",
      point = job.ReferencePointGroupId, to = at "back", machine = WEB,
      disk = "vda" })
    must("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2",
      at "web ü.qcow2", restored(WEB .. "/vda.qcow2"))
    assert.is_nil(uv.fs_stat(restored(WEB .. "/vdb.qcow2")))
  end)

  it("counts up its points, and verifies each depth", function()
    assert.equal("Completed", export(engine):wait(60))
    assert.equal("Completed", export(engine):wait(60))
    local points = assert(cairn.points(at "out"))
    assert.equal(2, #points)
    assert.equal(1, points[1].sequence)
    assert.equal(2, points[2].sequence)
    assert.equal(FARM, points[2].CollectionId)
    for _, depth in ipairs { "set", "chain", "content" } do
      assert(cairn.verify { directory = at "out", depth = depth })
      assert(cairn.verify { directory = at "out", depth = depth,
        point = points[2].ReferencePointGroupId:lower() })
    end
    assert(cairn.verify { directory = at "out", source = farm(),
      point = points[2].ReferencePointGroupId })
  end)

  it("waits for its turn where another exports into the directory", function()
    local a, b = export(engine), export(engine)
    assert.equal("Completed", b:wait(60))
    assert.equal("Completed", a:wait(60))
    assert.equal(2, #cairn.points(at "out"))
  end)

  it("runs on a luv loop, in tasks, with a job that waits for it", function()
    local percents = {}
    engine:on("PercentComplete", function(event)
      percents[#percents + 1] = event.PercentComplete
    end)
    support.on_loop(cairn, engine, function()
      local job = export(engine)
      local watcher = assert(engine:submit { Name = "watcher",
        run = function(self) assert(self:wait_for(job) == "Completed") end })
      assert.equal("Completed", watcher:wait(60))
      -- a private engine inside of a task: the task's own goes on
      local report = assert(cairn.verify { directory = at "out" })
      assert.equal("ok", report.points[1].result)
    end)
    for i = 2, #percents do
      assert.is_true(percents[i] > percents[i - 1] or percents[i] == 100)
    end
  end)

  it("is planned without a trace", function()
    local plan = assert(engine:plan { Name = "a", export = {
      collection = farm(), directory = at "out" } })
    assert.equal(2, #plan.machines)
    assert.is_nil(uv.fs_stat(at "out"))
    assert.same({}, engine:jobs())
  end)

  it("is terminated or killed without publishing", function()
    for _, how in ipairs { "Terminate", "Kill" } do
      local job = export(engine)
      engine:step()
      local code = job:RequestStateChange(how)
      assert.is_true(code == 0 or code == 4096)
      local state = job:wait(60)
      assert.equal(how == "Kill" and "Killed" or "Terminated", state)
      assert.is_nil(job.ExportedLogFilePaths
        and job.ExportedLogFilePaths[1])
      assert.equal(0, #(cairn.points(at "out") or {}))
    end
  end)

  it("finds a flipped bit", function()
    local job = export(engine)
    assert.equal("Completed", job:wait(60))
    local path = job.ExportedLogFilePaths[2]
    local text = support.read(path)
    local place = #text // 2
    support.write(path, text:sub(1, place)
      .. string.char(text:byte(place + 1) ~ 1) .. text:sub(place + 2))
    local report, message, code, details = cairn.verify {
      directory = at "out" }
    assert.is_nil(report)
    assert.matches("vdb", message)
    assert.equal(1, cairn.errors[code].exit_code)
    assert.equal("table", type(details))
    local restore
    restore, message, code = cairn.restore { directory = at "out",
      point = job.ReferencePointGroupId, to = at "back" }
    assert.is_nil(restore)
    assert.equal("string", type(message))
    assert.truthy(cairn.errors[code])
  end)

  it("fails naming machine, disk, path and cause", function()
    local cases = {
      { function(_, _, disk) disk.path = at "no such.qcow2" end,
        "source_missing", "no such%.qcow2" },
      { function(_, _, disk)
          disk.path = at "data.raw"
        end, nil, "data%.raw" },
      { function(_, machine) machine.config = { at "etc/none.xml" } end,
        "source_missing", "etc/none%.xml" },
    }
    for i, case in ipairs(cases) do
      local job = export(engine, nil, farm(case[1]))
      assert.equal("Exception", job:wait(60), tostring(i))
      local message = job.ErrorSummaryDescription
      assert.matches(WEB:gsub("%-", "%%-"), message)
      assert.matches(case[3], message)
      if case[2] then
        assert.equal(cairn.errors[case[2]].ErrorCode, job.ErrorCode)
      end
      local _, err = job:GetError()
      assert.equal(message, err.Message)
      assert.equal(0, #(cairn.points(at "out") or {}))
    end
  end)

  it("is refused at once when it makes no sense", function()
    local cases = {
      { { collection = farm(function(_, machine)
          machine.disks[2].id = "vda"
        end), directory = at "out" }, "duplicate_id", "vda" },
      { { collection = farm(), directory = at "out", bas = "none" },
        "unknown_key", "bas" },
      { { collection = farm(), directory = at "out", format = "vmdk" }, nil,
        "format" },
      { { collection = farm() }, nil, "directory" },
      { { directory = at "out" }, nil, "collection" },
      { { collection = { CollectionId = FARM }, directory = at "out" },
        "invalid_argument", "machines is missing" },
    }
    for _, case in ipairs(cases) do
      local job, message, code = engine:submit { Name = "a", export = case[1] }
      assert.is_nil(job)
      assert.matches(case[3], message)
      if case[2] then assert.equal(case[2], code) end
      assert.truthy(cairn.errors[code])
    end
    assert.same({}, engine:jobs())
  end)

  it("never restores over what is there, unless asked to", function()
    local job = export(engine)
    assert.equal("Completed", job:wait(60))
    local options = { directory = at "out", to = at "back",
      point = job.ReferencePointGroupId }
    assert(cairn.restore(options))
    local before = support.read(restored(WEB .. "/vdb.raw"))
    local report, message, code = cairn.restore(options)
    assert.is_nil(report)
    assert.equal("exists", code)
    assert.matches("back", message)
    assert.equal(before, support.read(restored(WEB .. "/vdb.raw")))
    options.overwrite = true
    assert(cairn.restore(options))
  end)

  it("resolves paths of a call in the working directory", function()
    local old = uv.cwd()
    assert(uv.chdir(directory))
    local ok, err = pcall(function()
      local job = export(engine, { directory = "./out" })
      assert.equal("Completed", job:wait(60))
      assert.equal(1, #cairn.points "out")
      assert(cairn.verify { directory = "out" })
      assert(cairn.restore { directory = "out", to = "back",
        point = job.ReferencePointGroupId })
    end)
    assert(uv.chdir(old))
    if not ok then error(err, 0) end
    must("cmp", at "data.raw", restored(WEB .. "/vdb.raw"))
  end)
end)

describe("cairn.points, verify and restore", function()
  it("say what is no export", function()
    local path, gone = support.directory()
    local points, message, code = cairn.points(path .. "/none")
    assert.is_nil(points)
    assert.matches("none", message)
    assert.truthy(cairn.errors[code])
    local report
    report, message, code = cairn.verify { directory = path .. "/none" }
    assert.is_nil(report)
    assert.matches("none", message)
    assert.truthy(cairn.errors[code])
    report, message, code = cairn.restore { directory = path, point = FARM,
      to = path .. "/back" }
    assert.is_nil(report)
    assert.equal("string", type(message))
    assert.truthy(cairn.errors[code])
    gone()
  end)

  it("refuse what they do not know", function()
    local report, message, code = cairn.verify { directory = "x", dept = 1 }
    assert.is_nil(report)
    assert.matches("cairn%.verify: unknown key 'dept'", message)
    assert.equal("unknown_key", code)
    report, message, code = cairn.restore { directory = "x" }
    assert.is_nil(report)
    assert.matches("is missing", message)
    assert.equal("invalid_argument", code)
    assert.error_matches(function() cairn.points() end,
      "an export directory expected")
  end)
end)

describe("ExportReferencePoint", function()
  setup(function()
    directory, remove = support.directory()
    make_sources()
  end)
  teardown(function() remove() end)

  it("answers with the service's own codes", function()
    local engine <close> = support.engine(cairn, { codes = "vendor" })
    local function code_of(...) return (engine:ExportReferencePoint(...)) end
    assert.equal(6, code_of(nil, at "out"))
    assert.equal(6, code_of("farm", at "out"))
    assert.equal(4, code_of({ ReferencePointGroupId = FARM }, at "absent"))
    assert.equal(4, code_of({}, at "out"))
    assert.equal(4, code_of(farm()))
    assert.equal(4, code_of(farm(), ""))
    assert.equal(4, code_of(farm(), at "out", { bse = "none" }))
    assert.equal(4, code_of(farm(), at "out", { machines = { {
      VirtualMachineId = FARM } } }))
    local code, job, message = engine:ExportReferencePoint(farm(), at "out",
      { machines = { { VirtualMachineId = WEB, disks = { "vdz" } } } })
    assert.equal(4, code)
    assert.is_nil(job)
    assert.matches("has no disk 'vdz'", message)
    assert.same({}, engine:jobs())
  end)

  it("exports the machines and disks of its setting data", function()
    local engine <close> = assert(cairn.open())
    local code, job = engine:ExportReferencePoint(farm(), at "out",
      { Name = "some", machines = {
        { VirtualMachineId = "{" .. DB:lower() .. "}", disks = { "sda" } },
        { VirtualMachineId = WEB } } })
    assert.equal(4096, code)
    assert.is_true(job.DeleteOnCompletion)
    assert.equal("some", job.Name)
    assert.equal("Completed", job:wait(60), job.ErrorSummaryDescription)
    assert.same({ DB .. "/sda" }, job.ExportedDisks)
    assert.same({ DB, WEB }, job.VirtualMachineId)
    assert.matches("config/web%.xml$", job.ExportedConfigFilePaths[2])
    assert(cairn.verify { directory = at "out" })
  end)
end)
