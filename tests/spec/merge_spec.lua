-- Merging through the module and the command, on real exports. qemu-img and
-- cmp judge, not Cairn.

local cairn = require "cairn"
local support = _G.support
local points = dofile "tests/spec/points.lua"

describe("merge", function()
  local directory, remove, out, list

  before_each(function()
    directory, remove = support.directory()
    out = directory .. "/out"
    list = points.export(directory, 5)
  end)
  after_each(function() remove() end)

  local function expect_all()
    for _, point in ipairs(list) do points.expect_content(point) end
    assert(cairn.verify { directory = out })
  end

  it("makes a full of a point, and leaves all others as they are", function()
    local report = assert(cairn.merge { directory = out, point = list[4].id })
    assert.is_true(report.is_changed)
    assert.equal("full", report.disks[1].action)
    assert.equal(4, report.disks[1].layers)
    local now = points.list(out)
    assert.is_nil(now[list[4].id].BaseReferencePointGroupId)
    assert.equal(2, now[list[4].id].generation)
    assert.equal(4, now[list[4].id].sequence)
    assert.equal(list[4].id, now[list[5].id].BaseReferencePointGroupId)
    expect_all()
    for i = 1, 3 do points.must("rm", "-r", list[i].path) end
    points.expect_content(list[5])
  end)

  it("makes one increment, with zeros where the disk was short", function()
    local report = assert(cairn.merge { directory = out, point = list[5].id,
      into = list[1].id, through = { list[2].id, list[3].id, list[4].id } })
    assert.equal("increment", report.disks[1].action)
    assert.equal(list[1].id, report.disks[1].base)
    assert.equal(list[1].id,
      points.list(out)[list[5].id].BaseReferencePointGroupId)
    expect_all()
    for i = 2, 4 do points.must("rm", "-r", list[i].path) end
    points.expect_content(list[5])
    assert(cairn.verify { directory = out })
  end)

  it("lets the next export go on from a merged point", function()
    assert(cairn.merge { directory = out, point = list[5].id })
    local more = points.export(directory .. "/", 1) -- the same out
    local now = points.list(out)
    assert.equal(list[5].id, now[more[1].id].BaseReferencePointGroupId)
    points.expect_content(more[1])
    assert(cairn.verify { directory = out })
  end)

  it("plans without writing", function()
    local plan = assert(cairn.merge { directory = out, point = list[3].id,
      dry_run = true })
    assert.equal("merge", plan.kind)
    assert.is_true(plan.has_space)
    assert.is_true(plan.bytes_to_write > plan.bytes_to_read)
    assert.equal(1, points.list(out)[list[3].id].generation)
  end)

  it("is a job like any other", function()
    local engine <close> = assert(cairn.open {})
    local job = assert(engine:submit { Name = "merge", merge = {
      directory = out, point = list[2].id } })
    assert.equal("Completed", job:wait())
    assert.is_nil(job.ReferencePointGroupId)
    assert.is_nil(job.ExportDirectory)
    assert.equal(list[2].id, job:report().ReferencePointGroupId)
    expect_all()
  end)

  it("refuses what makes no sense, and says what would", function()
    for _, case in ipairs {
      { { point = list[2].id }, "directory is missing" },
      { { directory = out }, "point is missing" },
      { { directory = out, point = list[2].id, onto = "x" }, "did you mean" },
      { { directory = out, point = list[2].id, into = list[4].id },
        "no disk of .* is based on" },
      { { directory = out, point = list[2].id, into = list[2].id },
        "onto itself" },
      { { directory = out, point = list[5].id, into = list[1].id,
        through = { list[3].id } }, "are not the chain" },
      { { directory = out, point = "ABCDEF" }, "no reference point" },
      { { directory = out, point = list[2].id, through = { 7 } },
        "an array of strings" },
    } do
      local report, message, code = cairn.merge(case[1])
      assert.is_nil(report)
      assert.matches(case[2], message)
      assert.is_string(code)
    end
    expect_all()
  end)

  it("waits for whoever writes into the directory, in one engine", function()
    local engine <close> = assert(cairn.open {
      queues = { default = { concurrency = 4 } } })
    local jobs = assert(engine:submit_all {
      { Name = "a", merge = { directory = out, point = list[5].id } },
      { Name = "b", merge = { directory = out, point = list[4].id } },
      { Name = "c", prune = { directory = out, keep = { last = 3 } } } })
    for _, job in ipairs(jobs) do
      assert.equal("Completed", job:wait(), job.ErrorSummaryDescription)
    end
    for i = 3, 5 do points.expect_content(list[i]) end
    assert(cairn.verify { directory = out })
  end)

  describe("as a command", function()
    it("merges one point into a full", function()
      local code, output = points.cairn("merge", list[3].path)
      assert.equal(0, code, output)
      assert.matches("a full", output)
      assert.is_nil(points.list(out)[list[3].id].BaseReferencePointGroupId)
      expect_all()
      code, output = points.cairn("merge", list[3].path)
      assert.equal(0, code, output)
      assert.matches("is so already; nothing was written", output)
    end)

    it("merges a chain onto its first", function()
      local code, output = points.cairn("merge", list[2].path, list[3].path,
        list[4].path, "--dry-run")
      assert.equal(0, code, output)
      assert.truthy(output:find("an increment on " .. list[2].id, 1, true), output)
      assert.equal(1, points.list(out)[list[4].id].generation)
      code, output = points.cairn("merge", list[2].path, list[3].path,
        list[4].path, "--json")
      assert.equal(0, code, output)
      local report = cairn.json_decode(output:match "(%b{})\n$")
      assert.equal("Completed", report.JobState)
      assert.equal(list[2].id, report.into)
      expect_all()
    end)

    it("writes into another directory", function()
      local other = directory .. "/other"
      local code, output = points.cairn("merge", list[1].path, "--to", other)
      assert.equal(0, code, output)
      code, output = points.cairn("merge", list[1].path, list[5].path, "--to",
        other)
      assert.equal(0, code, output)
      points.expect_content(list[1], other)
      points.expect_content(list[5], other)
      assert(cairn.verify { directory = other })
      expect_all()
      code, output = points.cairn("merge", list[5].path, "--to", other)
      assert.equal(2, code)
      assert.matches("exists already", output)
    end)

    it("ends with 2 for wrong use and 1 for damage", function()
      local code, output = points.cairn("merge")
      assert.equal(2, code)
      assert.matches("DIR/ID is missing", output)
      code, output = points.cairn("merge", out)
      assert.equal(2, code)
      assert.matches("a point in it is needed", output)
      code, output = points.cairn("merge", list[4].path, list[2].path)
      assert.equal(2, code)
      assert.matches("is based on", output)
      code, output = points.cairn("merge", list[1].path, list[3].path,
        list[5].path)
      assert.equal(2, code)
      assert.matches("are not the chain", output)
      local file = assert(io.open(points.image(list[2]), "r+b"))
      file:seek("set", 65536 + 500)
      file:write "?"
      file:close()
      code, output = points.cairn("merge", list[4].path)
      assert.equal(1, code, output)
      assert.matches("differs", output)
      assert.equal(1, points.list(out)[list[4].id].generation)
    end)
  end)
end)
