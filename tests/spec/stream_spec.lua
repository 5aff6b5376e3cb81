-- Streams `rbd diff v1` through the command and the module: out of one export
-- directory, into another. Judges: tests/rbd_diff.py (an applier of its own),
-- rbd merge-diff and cmp.

local cairn = require "cairn"
local uv = require "luv"
local support = _G.support

local command = support.build .. "/bin/cairn"

local function quoted(s) return "'" .. s:gsub("'", "'\\''") .. "'" end

describe("a stream", function()
  local top, remove, ids

  local function at(name) return top .. "/" .. name end

  -- A shell line in the scratch directory, $cairn the command: exit code, what
  -- it printed.
  local function shell(line)
    local code, _, output = support.run { "/bin/sh", "-c",
      ("cairn=%s; judge=%s; cd %s; %s"):format(quoted(assert(uv.fs_realpath(
        command))), quoted(assert(uv.fs_realpath "tests/rbd_diff.py")),
        quoted(top), line) }
    return code, output
  end

  local function must(line)
    local code, output = shell(line)
    assert.are.equal(0, code, line .. "\n" .. output)
    return output
  end

  setup(function()
    top, remove = support.directory()
    support.write(at "c.lua", [[
      return require "cairn".collection {
        CollectionId = "11111111-2222-3333-4444-555555555555",
        machines = { { VirtualMachineId =
          "AAAAAAAA-0000-4000-8000-000000000001", ElementName = "web1",
          disks = { { id = "vda", path = "vda.raw", format = "raw" } } } },
      }]])
    must [[
      head -c 1000001 /dev/urandom > vda.raw; cp vda.raw 1.raw
      $cairn export --collection c.lua --to out
      dd if=/dev/zero of=vda.raw bs=1000 seek=200 count=300 conv=notrunc
      printf hello | dd of=vda.raw bs=1 seek=777777 conv=notrunc
      truncate -s 800003 vda.raw; cp vda.raw 2.raw
      $cairn export --collection c.lua --to out --base latest
      truncate -s 900000 vda.raw; cp vda.raw 3.raw
      $cairn export --collection c.lua --to out --base latest
    ]]
    ids = {}
    for i, point in ipairs(assert(cairn.points(at "out"))) do
      ids[i] = point.ReferencePointGroupId
    end
    assert.are.equal(3, #ids)
    must(("export P1=%s P2=%s P3=%s; env | grep ^P. | sed 's/^/export /' > ids")
      :format(table.unpack(ids)))
  end)

  teardown(function() remove() end)

  it("goes from one directory to another through pipes", function()
    must [[ . ./ids; for p in $P1 $P2 $P3; do
      $cairn export --stream out/$p | $cairn import - --to piped \
        --collection c.lua || exit 1
    done; $cairn verify piped; for i in 1 2 3; do
      eval p=\$P$i; $cairn restore piped/$p --to r$i; cmp r$i/*/vda.raw $i.raw \
        || exit 1
    done ]]
  end)

  it("is what an applier of its own and rbd make of it", function()
    must [[ . ./ids
      $cairn export --stream out/$P1 > s1; $cairn export --stream out/$P2 > s2
      $cairn export --stream out/$P3 --output s3
      for i in 1 2 3; do python3 $judge s$i applied && cmp applied $i.raw \
        || exit 1; done
      $cairn export --stream out/$P3 --base none > all
      python3 $judge all whole && cmp whole 3.raw ]]
    if shell "command -v rbd" ~= 0 then
      print "# skipped: rbd (package ceph-common) is not installed"
      return
    end
    must [[ rbd merge-diff s1 s2 s12 && rbd merge-diff s12 s3 s123 &&
      python3 $judge s123 merged && cmp merged 3.raw ]]
  end)

  it("leaves standard output to the stream alone", function()
    must [[ . ./ids; $cairn export --stream out/$P2 --base $P1 2>err > pure
      python3 $judge --show pure | grep -q '^s 800003' &&
      grep -q 'of data' err ]]
    local code, output = shell
      ". ./ids; $cairn export --stream out/$P1 --json >/dev/null"
    assert.are.equal(2, code)
    assert.matches("%-%-json prints on standard output", output)
  end)

  it("never replaces a file", function()
    local code, output = shell [[ . ./ids; echo mine > kept
      $cairn export --stream out/$P1 --output kept ]]
    assert.are.equal(2, code)
    assert.matches("exists already", output)
    assert.are.equal("mine\n", support.read(at "kept"))
  end)

  it("refuses options that mean nothing for it", function()
    for line, expected in pairs {
      ["export --stream out/$P1 --to x"] = "%-%-to does not go with",
      ["export --to x --collection c.lua --disk vda"] =
        "%-%-disk is for %-%-stream only",
      ["export --stream out"] = "names an export directory",
      ["export --stream out/$P1 --base $P1 --output n"] = "its own base",
      ["import s1 --collection c.lua"] = "%-%-to DIR is missing",
      ["import none --to x --collection c.lua --dry-run"] = "cannot open",
      ["import c.lua --to x --collection c.lua --dry-run"] =
        "must be a stream",
    } do
      local code, output = shell(". ./ids; $cairn " .. line)
      assert.are.equal(2, code, line .. "\n" .. output)
      assert.matches(expected, output)
    end
  end)

  it("leaves nothing when it is cut off", function()
    local code, output = shell [[ . ./ids
      $cairn export --stream out/$P1 | head -c 500000 > cut
      $cairn import cut --to nothing --collection c.lua ]]
    assert.are.equal(1, code)
    assert.matches("ends here, before its end record", output)
    assert.is_nil(uv.fs_stat(at "nothing"))
  end)

  it("says that its reader is gone", function()
    local code, output = shell [[ . ./ids
      { $cairn export --stream out/$P1; echo code $? >&2; } | true ]]
    assert.are.equal(0, code)
    assert.matches("code 1", output)
    assert.matches("has closed it", output)
  end)

  it("is a job like any other", function()
    local collection = assert(cairn.collection_from(dofile(at "c.lua"),
      at "c.lua"))
    local report = assert(cairn.stream { directory = at "out", point = ids[2],
      output = at "module" })
    assert.are.equal(ids[1], report.BaseReferencePointGroupId)
    assert.are.equal(uv.fs_stat(at "module").size, report.bytes_stream)
    assert(cairn.stream { directory = at "out", point = ids[1],
      output = at "first" })
    local engine = assert(cairn.open {})
    for i, name in ipairs { "first", "module" } do
      local job = assert(engine:submit { Name = name, import = {
        input = at(name), directory = at "module.out",
        collection = collection } })
      assert(job:wait())
      assert.are.equal("Completed", job.JobState)
      assert.are.equal(ids[i], job.ReferencePointGroupId)
      assert.are.same({ "AAAAAAAA-0000-4000-8000-000000000001/vda" },
        job.ExportedDisks)
    end
    engine:close()
    local nothing, message, code = cairn.import { input = at "module",
      directory = at "other", collection = collection }
    assert.is_nil(nothing)
    assert.are.equal("not_found", code)
    assert.matches("must be here first", message)
    nothing, message, code = cairn.stream { directory = at "out",
      point = ids[1], output = true }
    assert.is_nil(nothing)
    assert.are.equal("wrong_type", code)
    assert.matches("an absolute path or the number of a descriptor", message)
  end)
end)
