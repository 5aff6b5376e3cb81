-- Pruning through the module and the command, on real exports. qemu-img and
-- cmp judge, not Cairn.

local cairn = require "cairn"
local support = _G.support
local points = dofile "tests/spec/points.lua"

describe("prune", function()
  local directory, remove, out, list

  before_each(function()
    directory, remove = support.directory()
    out = directory .. "/out"
    list = points.export(directory, 6)
  end)
  after_each(function() remove() end)

  -- Exactly these are left, whole.
  local function expect_left(...)
    local now, count = points.list(out), 0
    for _, i in ipairs { ... } do
      assert.is_table(now[list[i].id], ("point %d is gone"):format(i))
      points.expect_content(list[i])
      count = count + 1
    end
    for _ in pairs(now) do count = count - 1 end
    assert.equal(0, count, "more points are left")
    assert(cairn.verify { directory = out })
  end

  it("removes what no rule keeps, and merges what is on it", function()
    local report = assert(cairn.prune { directory = out,
      keep = { last = 2, ids = { list[2].id } } })
    expect_left(2, 5, 6)
    assert.equal(3, #report.kept)
    assert.equal(2, #report.merged)
    assert.equal(3, #report.removed)
    local now = points.list(out)
    assert.is_nil(now[list[2].id].BaseReferencePointGroupId)
    assert.equal(list[2].id, now[list[5].id].BaseReferencePointGroupId)
    assert.equal(list[5].id, now[list[6].id].BaseReferencePointGroupId)
  end)

  it("says in a dry run what it does then", function()
    local keep = { ids = { list[3].id:sub(1, 12) } }
    local plan = assert(cairn.prune { directory = out, keep = keep,
      dry_run = true })
    expect_left(1, 2, 3, 4, 5, 6)
    local report = assert(cairn.prune { directory = out, keep = keep })
    expect_left(3, 6)
    for _, name in ipairs { "kept", "removed" } do
      assert.same(plan[name], report[name])
    end
    assert.equal(#plan.merged, #report.merged)
    assert.equal(plan.bytes_freed, report.bytes_freed)
    assert.is_true(plan.bytes_written >= report.bytes_written)
  end)

  it("takes a collection, or its id", function()
    local other = "6F1D0000-0000-4000-8000-000000000009"
    local report, message, code = cairn.prune { directory = out,
      collection = other, keep = { last = 1 } }
    assert.is_nil(report)
    assert.equal("not_found", code)
    assert.matches("no reference point of the collection", message)
    assert(cairn.prune { directory = out, keep = { last = 1 },
      collection = cairn.collection { CollectionId = points.FARM,
        machines = { { VirtualMachineId = points.WEB } } } })
    expect_left(6)
  end)

  it("never runs without a rule", function()
    for _, case in ipairs {
      { { directory = out }, "keep is missing" },
      { { directory = out, keep = {} }, "no rule that keeps anything" },
      { { directory = out, keep = { last = 0 } }, "no rule that keeps" },
      { { directory = out, keep = { last = 1.5 } }, "a whole number" },
      { { directory = out, keep = { hourly = 3 } }, "no key \"hourly\"" },
      { { directory = out, keep = { within = "soon" } }, "a duration" },
      { { directory = out, keep = { ids = { "ABCDE" } } }, "no such" },
    } do
      local report, message = cairn.prune(case[1])
      assert.is_nil(report)
      assert.matches(case[2], message)
    end
    expect_left(1, 2, 3, 4, 5, 6)
  end)

  it("lets the next export go on", function()
    assert(cairn.prune { directory = out, keep = { last = 1 } })
    local more = points.export(directory .. "/", 1)
    local now = points.list(out)
    assert.equal(7, now[more[1].id].sequence)
    assert.equal(list[6].id, now[more[1].id].BaseReferencePointGroupId)
    points.expect_content(more[1])
  end)

  it("works from a policy", function()
    local file = support.write(directory .. "/prune.lua", [[
      local cairn = require "cairn"
      return cairn.policy { jobs = { tidy = { prune = { directory = "out",
        keep = { last = 2, daily = 1, within = "1s" } } } } }]])
    local code, output = points.cairn("run", file)
    assert.equal(0, code, output)
    local now = points.list(out)
    assert.is_table(now[list[6].id])
    assert.is_table(now[list[5].id])
    assert(cairn.verify { directory = out })
  end)

  describe("as a command", function()
    it("takes its rules as words", function()
      local code, output = points.cairn("prune", out, "--keep",
        "last=1,id=" .. list[2].id, "--keep", "id=" .. list[4].id, "--dry-run")
      assert.equal(0, code, output)
      assert.truthy(output:find("remove  " .. list[3].id, 1, true), output)
      assert.truthy(output:find("keep    " .. list[2].id, 1, true), output)
      expect_left(1, 2, 3, 4, 5, 6)
      code, output = points.cairn("prune", out, "--keep",
        "last=1,id=" .. list[2].id, "--keep", "id=" .. list[4].id)
      assert.equal(0, code, output)
      assert.truthy(output:find("removed " .. list[3].id, 1, true), output)
      expect_left(2, 4, 6)
    end)

    it("prints JSON", function()
      local code, output = points.cairn("prune", out, "--keep", "last=6",
        "--json")
      assert.equal(0, code, output)
      local text = output:match "(%b{})\n$"
      assert.matches('"removed":%[%]', text)
      assert.matches('"refused":%[%]', text)
      assert.equal(6, #cairn.json_decode(text).kept)
    end)

    it("ends with 2 for wrong use", function()
      for _, case in ipairs {
        { { "prune", out }, "--keep RULES is missing" },
        { { "prune", out, "--keep", "last=x" }, "wants a number, not x" },
        { { "prune", out, "--keep", "lats=3" }, "the nearest is last" },
        { { "prune", out, "--keep", "last" }, "wants RULE=VALUE" },
        { { "prune", out, "--keep", "last=0" }, "no rule that keeps" },
        { { "prune", out, "--keep", "within=soon" }, "a duration" },
        { { "prune", list[1].path, "--keep", "last=1" },
          "is one reference point" },
        { { "prune", directory .. "/none", "--keep", "last=1" }, "cannot open" },
      } do
        local code, output = points.cairn(table.unpack(case[1]))
        assert.equal(2, code, output)
        assert.matches(case[2], output)
      end
      expect_left(1, 2, 3, 4, 5, 6)
    end)

    it("ends with 1 when a point cannot be merged, and loses nothing",
      function()
        local image = points.image(list[4])
        local file = assert(io.open(image, "r+b"))
        file:seek("set", 65536 + 500)
        local byte = file:read(1)
        file:seek("set", 65536 + 500)
        file:write(string.char(byte:byte() ~ 1))
        file:close()
        local code, output = points.cairn("prune", out, "--keep", "last=1")
        assert.equal(1, code, output)
        assert.truthy(output:find("cannot merge " .. list[6].id, 1, true), output)
        file = assert(io.open(image, "r+b"))
        file:seek("set", 65536 + 500)
        file:write(byte)
        file:close()
        local now = points.list(out)
        for i = 4, 6 do assert.is_table(now[list[i].id]) end
        points.expect_content(list[6])
        assert(cairn.verify { directory = out })
      end)
  end)
end)
