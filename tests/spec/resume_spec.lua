-- An export that was interrupted goes on when the command runs again. A limit
-- on the size of files is what interrupts it. qemu-img judges.

local support = _G.support

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
