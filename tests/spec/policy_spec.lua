-- Policy files: what they may say, and how mistakes are told.

local cairn = require "cairn"
local support = _G.support

local GUID = "11111111-2222-3333-4444-555555555555"

describe("a policy file", function()
  local directory, remove
  before_each(function() directory, remove = support.directory() end)
  after_each(function() remove() end)

  local function load_text(text, settings, name)
    return cairn.policy_load(support.write(directory .. "/"
      .. (name or "nightly.lua"), text), settings)
  end

  it("gives its jobs, ready to be submitted", function()
    local policy = assert(load_text [[#!/usr/bin/env cairn
      local set = ...
      local cairn = require "cairn"
      local farm = cairn.collection {
        CollectionId = "11111111-2222-3333-4444-555555555555",
        machines = { { VirtualMachineId =
          "A1111111-2222-3333-4444-555555555555",
          disks = { { id = "vda", path = "img/a b.raw", format = "raw" } } } } }
      return cairn.policy { jobs = {
        nightly = { Priority = 3, Notify = "ops", RecoveryAction = "Re-run Job",
          export = { collection = farm, directory = "out" } },
        weekly = { Name = "check", verify = { directory = "/srv/out" } },
        tidy = { run = function(job) job:progress(50) end },
      } }]])
    assert.equal("nightly", policy.name)
    assert.equal(directory .. "/nightly.lua", policy.file)
    local nightly = policy.jobs.nightly
    assert.equal("nightly", nightly.Name)
    assert.equal(directory .. "/out", nightly.export.directory)
    assert.equal(directory .. "/img/a b.raw",
      nightly.export.collection.machines[1].disks[1].path)
    assert.equal("/srv/out", policy.jobs.weekly.verify.directory)
    assert.equal("check", policy.jobs.weekly.Name)
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit(policy.jobs.tidy))
    assert.equal("nightly", job.policy)
    assert.equal("tidy", job.policy_key)
    assert.equal("Completed", job:wait())
  end)

  it("has handlers for its notices", function()
    local policy = assert(load_text([[
      local cairn = require "cairn"
      return cairn.policy { jobs = {
          a = { Notify = "ops", run = function() end },
          b = { Notify = "file", run = function() end } },
        handlers = { ops = function(notice) _G.notice_told = notice.Name end,
          file = { "/bin/sh", "-c", "cat >'" .. (...).to .. "'" } } }]],
      { to = directory .. "/told" }))
    local engine <close> = support.engine(cairn, { notify = {
      ops = function() error "the policy's own comes first" end } })
    for _, key in ipairs { "a", "b" } do
      assert(engine:submit(policy.jobs[key])):wait()
    end
    engine:run()
    assert.equal("a", _G.notice_told)
    _G.notice_told = nil
    assert.matches('"Name":"b"', support.read(directory .. "/told"))
  end)

  it("reads settings in the types of their defaults", function()
    local defaults = { text = "x", n = 5, some = { 5, 0, 9 }, least = { 1, 1 },
      x = { 0.5, 0, 1 }, yes = true }
    assert.same({ text = "x", n = 5, some = 5, least = 1, x = 0.5, yes = true },
      cairn.settings(nil, defaults))
    local set = cairn.settings({ text = "", n = "-3", some = "9", least = 2.0,
      x = "1e-1", yes = "false", file = "/a.lua" }, defaults)
    assert.same({ text = "", n = -3, some = 9, least = 2, x = 0.1, yes = false,
      file = "/a.lua" }, set)
    assert.equal("integer", math.type(set.least))
    assert.equal("float", math.type(cairn.settings({ x = 1 }, defaults).x))
    for _, case in ipairs {
      { "n", "1.5", "setting n is '1.5'; a whole number expected" },
      { "n", "", "setting n is ''; a whole number expected" },
      { "n", true, "setting n is 'true'; a whole number" },
      { "some", "10", "setting some is '10'; a whole number from 0 to 9" },
      { "some", -1, "setting some is '%-1'; a whole" },
      { "least", "0", "a whole number, 1 or more, expected" },
      { "x", "nan", "setting x is 'nan'; a number from 0 to 1 expected" },
      { "x", 0 / 0, "a number from 0 to 1 expected" },
      { "x", "1.01", "a number from 0 to 1 expected" },
      { "yes", "yes", "setting yes is 'yes'; true or false expected" },
      { "text", {}, "setting text is 'a table'; text expected" },
      { "txet", "", "no setting is called 'txet'; did you mean 'text'%? "
        .. "%(valid: least, n, some, text, x, yes%)" },
      { 1, "", "no setting is called '1'" },
    } do
      assert.error_matches(function()
        return (cairn.settings({ [case[1]] = case[2] }, defaults))
      end, case[3])
    end
    assert.error_matches(function() cairn.settings({ a = 1 }, {}) end,
      "there are none")
  end)

  it("refuses settings that are declared wrongly", function()
    local many = {}
    for i = 1, 65 do many["n" .. i] = 1 end
    for message, defaults in pairs {
      ["three numbers"] = { a = { "x" } },
      ["least and most must be whole"] = { a = { 1, 0.5 } },
      ["its default is not within"] = { a = { 1, 2, 3 } },
      ["the default must be text.*got a function"] = { a = print },
      ["names expected as keys"] = { "a" },
      ["file is the path of the policy"] = { file = "x" },
      ["at most 64"] = many,
    } do
      assert.error_matches(function() cairn.settings({}, defaults) end, message)
    end
    assert.error_matches(function() cairn.settings("x", {}) end,
      "table expected")
    assert.error_matches(function() cairn.settings({}) end, "table expected")
  end)

  it("gets its settings and its own name", function()
    local policy = assert(load_text([[
      local set = ...
      assert(set.file == ]] .. ("%q"):format(directory .. "/nightly.lua")
      .. [[)
      return { name = set.name, jobs = { [set.key] =
        { run = function() end } } }]], { name = "site", key = "one" }))
    assert.equal("site", policy.name)
    assert.equal("one", policy.jobs.one.Name)
  end)

  it("may return a plain table, checked all the same", function()
    local policy, message, code = load_text
      [[return { jobs = { a = { verify = { directory = "d", dept = 1 } } } }]]
    assert.is_nil(policy)
    assert.matches("nightly%.lua:.*jobs%.a%.verify: unknown key 'dept'; did "
      .. "you mean 'depth'", message)
    assert.equal("unknown_key", code)
  end)

  it("keeps its globals to itself", function()
    assert(load_text [[leaked = 1
      return { jobs = {} }]])
    assert.is_nil(rawget(_G, "leaked"))
  end)

  -- text, code, message, line
  local function policy_of(body)
    return 'local cairn = require "cairn"\nreturn cairn.policy {\n' .. body
      .. "\n}"
  end
  local mistakes = {
    ["a syntax error"] = { "return {\n  jobs = = {}\n}", "script_syntax",
      "unexpected symbol near '='", 2 },
    ["a runtime error"] = { "local x = nil\n\nreturn x.y", "script_error",
      "attempt to index a nil value", 3 },
    ["an error object of its own"] = { "error { code = 'x', message = 'm' }",
      "script_error", "nightly%.lua raised: m" },
    ["nothing returned"] = { "local x = 1", "wrong_type",
      "this one returns nothing" },
    ["a string returned"] = { "return 'x'", "wrong_type",
      "this one returns a string" },
    ["no jobs"] = { policy_of "", "invalid_argument", "jobs is missing", 2 },
    ["an unknown key"] = { policy_of "  jobs = {},\n  tets = print,",
      "unknown_key", "unknown key 'tets'; did you mean 'tests'", 4 },
    ["a job with an unknown key"] = {
      policy_of "jobs = { a = {\n  run = print,\n  Priorty = 1 } }",
      "unknown_key", "jobs%.a: unknown key 'Priorty'; did you mean 'Priority'",
      5 },
    ["a job with a wrong type"] = {
      policy_of "jobs = { a = {\n  run = print,\n  Notify = 1 } }",
      "wrong_type", "jobs%.a: Notify must be a string, got number", 5 },
    ["a job that is no table"] = { policy_of "jobs = { a = 3 }",
      "wrong_type", "jobs%.a: a table expected, got number", 2 },
    ["a list of jobs"] = { policy_of "jobs = { { run = print } }",
      "wrong_type", "jobs: names expected as keys", 2 },
    ["no kind"] = { policy_of "jobs = { a = { Name = 'x' } }",
      "invalid_argument", "exactly one of export, verify", 2 },
    ["two kinds"] = {
      policy_of "jobs = { a = { run = print, verify = { directory = 'd' } } }",
      "invalid_argument", "both verify and run", 2 },
    ["a merge without a point"] = {
      policy_of "jobs = { a = { merge = { directory = 'd' } } }",
      "invalid_argument", "point is missing", 2 },
    ["a prune without a rule"] = {
      policy_of "jobs = { a = { prune = { directory = 'd' } } }",
      "invalid_argument", "keep is missing", 2 },
    ["a handler that is none"] = {
      policy_of "jobs = {}, handlers = { ops = 3 }", "wrong_type",
      "handlers%.ops: a function, { program, argument, ... }", 2 },
    ["a decision that says nothing about the kind"] = {
      policy_of "jobs = { a = { verify = { directory = 'd' }, base = print } }",
      "invalid_argument", "jobs%.a: base says nothing about .* verify", 2 },
    ["a decision function of a job"] = {
      policy_of "jobs = { a = { run = print, select = print } }",
      "invalid_argument", "jobs%.a: select says nothing about .* run", 2 },
    ["a collection with a mistake"] = {
      policy_of("jobs = { a = { export = { directory = 'd', collection = {\n"
        .. "CollectionId = '" .. GUID .. "', machnes = {} } } } }"),
      "unknown_key", "jobs%.a%.export%.collection: unknown key 'machnes'", 4 },
    ["a declared collection with a mistake"] = {
      'local cairn = require "cairn"\nlocal c = cairn.collection {\n'
        .. "  CollectionId = 3, machines = {} }\nreturn {}", "wrong_type",
      "cairn%.collection: CollectionId must be a string", 3 },
  }
  local names = {}
  for name in pairs(mistakes) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    it("is refused with file and line: " .. name, function()
      local text, code, pattern, line = table.unpack(mistakes[name], 1, 4)
      local policy, message, got = load_text(text)
      assert.is_nil(policy)
      assert.matches(pattern, message)
      assert.equal(code, got, message)
      assert.truthy(cairn.errors[got])
      if line then
        assert.equal(directory .. "/nightly.lua:" .. line .. ":",
          message:match "^[^\n]-:%d+:")
      end
    end)
  end

  it("is refused when it cannot be read", function()
    local policy, message, code = cairn.policy_load(directory .. "/none.lua")
    assert.is_nil(policy)
    assert.matches("cannot open .*none%.lua", message)
    assert.equal("not_found", code)
    policy, message, code = cairn.policy_load(directory)
    assert.is_nil(policy)
    assert.matches("is a directory", message)
    assert.equal("bad_path", code)
    assert.error_matches(function() cairn.policy_load() end, "expected")
    assert.error_matches(function() cairn.policy_load("x", "y") end,
      "a table of settings")
  end)

  it("is refused as bytecode", function()
    local policy, message, code = load_text(string.dump(function() end))
    assert.is_nil(policy)
    assert.matches("binary chunk", message)
    assert.equal("script_syntax", code)
  end)

  it("may have any name", function()
    local policy = assert(load_text("return { jobs = {} }", nil,
      "a b\nc ü.lua"))
    assert.equal("a b\nc ü", policy.name)
  end)
end)

describe("cairn.policy in a program", function()
  it("raises an error object", function()
    local ok, err = pcall(cairn.policy, { jobs = { a = { run = 3 } } })
    assert.is_false(ok)
    assert.equal("wrong_type", err.code)
    assert.matches("policy_spec%.lua:%d+: cairn%.policy: jobs%.a: run must be "
      .. "a function", tostring(err))
  end)
end)
