-- The module's surface: names, options, errors, datetimes, JSON, engines.

local cairn = require "cairn"
local support = _G.support

describe("the module", function()
  it("sets no globals", function()
    local code, _, output = support.run({ "lua5.4", "-e", ([[
      package.path = %q .. package.path
      package.cpath = %q .. package.cpath
      local before = {}
      for name in pairs(_G) do before[name] = true end
      require "cairn"
      for name in pairs(_G) do
        if not before[name] then error("global " .. name) end
      end]]):format(support.build .. "/share/lua/5.4/?.lua;",
      support.build .. "/lib/lua/5.4/?.so;") })
    assert.equal(0, code, output)
  end)

  it("exports one symbol and needs no liblua of its own", function()
    local core = support.build .. "/lib/lua/5.4/cairn/core.so"
    local _, _, defined = support.run { "nm", "-D", "--defined-only", core }
    for name in defined:gmatch("%x+ %a ([^\n]+)") do
      if not name:find("^__asan") and not name:find("^__ubsan") then
        assert.equal("luaopen_cairn_core", name)
      end
    end
    assert.truthy(defined:find("luaopen_cairn_core", 1, true))
    local _, _, dynamic = support.run { "readelf", "-d", core }
    assert.is_nil(dynamic:find("liblua", 1, true))
    assert.is_nil(dynamic:find("libuv", 1, true))
  end)

  it("has every name of its documentation", function()
    local api = require "cairn.api"
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function() end })
    local owners = { cairn = cairn, engine = engine, job = job,
      schedule = cairn.schedule { RunDay = 1, zone = "UTC" } }
    -- what has no owner is a global of the console
    local console = require "cairn.evaluator".new { engine = engine }.env
    for _, section in ipairs(api.sections) do
      for _, entry in ipairs(section.entries) do
        local owner, name = entry.name:match("^(%a+)[.:](.*)$")
        local fn
        if owner then
          fn = owners[owner][name]
        else
          fn = rawget(console, entry.name)
        end
        assert.equal("function", type(fn), entry.name)
      end
    end
  end)

  it("documents every name it has", function()
    local api = require "cairn.api"
    local known = {}
    for _, section in ipairs(api.sections) do
      for _, entry in ipairs(section.entries) do known[entry.name] = true end
      for _, field in ipairs(section.fields or {}) do known[field[1]] = true end
    end
    for name in pairs(cairn) do
      assert.truthy(known[name] or known["cairn." .. name], name)
    end
    local core = require "cairn.core"
    for name in pairs(core.engine_methods) do
      assert.truthy(known["engine:" .. name], name)
    end
    for name in pairs(core.job_methods) do
      assert.truthy(known["job:" .. name], name)
    end
  end)

  it("helps with functions, properties and mistakes", function()
    assert.matches("engine:submit%(spec%)", cairn.help())
    assert.matches("Creates a job", cairn.help "submit")
    assert.matches("0 January", cairn.help "RunMonth")
    assert.matches("did you mean 'submit'", cairn.help "sbmit")
  end)

  it("lists the errors by place and by code", function()
    assert.equal(19, cairn.errors.disk_full.ErrorCode)
    assert.equal(3, cairn.errors.disk_full.exit_code)
    assert.equal("internal", cairn.errors[1].code)
    for _, row in ipairs(cairn.errors) do
      assert.equal(row, cairn.errors[row.code])
    end
  end)
end)

describe("cairn.open", function()
  it("refuses an unknown option with the nearest one", function()
    assert.error_matches(function() cairn.open { stoer = "x" } end,
      "unknown key 'stoer'; did you mean 'store'")
  end)

  it("refuses options of the wrong type or value", function()
    assert.error_matches(function() cairn.open { store = 3 } end,
      "store must be a string, got number")
    assert.error_matches(function() cairn.open { log = "x" } end,
      "log must be a function")
    assert.error_matches(function() cairn.open { codes = "cim" } end,
      "valid are 'dmtf' and 'vendor'")
    assert.error_matches(function() cairn.open { clock = "fast" } end,
      "valid is 'virtual'")
    assert.error_matches(function() cairn.open { start = 0 } end,
      "start is for clock = 'virtual'")
    assert.error_matches(function() cairn.open "x" end, "a table expected")
  end)

  it("returns what the world refuses", function()
    local engine, message, code = cairn.open { queues = { default = print } }
    assert.is_nil(engine)
    assert.matches("queues: default: a function cannot stand here", message)
    assert.equal("wrong_type", code)
    engine, message, code = cairn.open { store = "/nonexistent/cairn.db" }
    assert.is_nil(engine)
    assert.equal("string", type(message))
    assert.equal("not_found", code)
  end)

  it("starts a virtual clock where it is told", function()
    local engine <close> = support.engine(cairn, { start = 86400 })
    assert.equal("19700102000000.000000+000", tostring(engine:now()))
    assert.is_true(engine:advance(1.5))
    assert.equal("19700102000001.500000+000", tostring(engine:now()))
  end)

  it("gives jobs their owner", function()
    local engine <close> = support.engine(cairn, { owner = "ops" })
    local job = assert(engine:submit { Name = "a", run = function() end })
    assert.equal("ops", job.Owner)
  end)
end)

describe("an engine", function()
  it("closes more than once and then refuses everything", function()
    local engine = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function() end })
    assert.is_true(engine:close())
    assert.is_true(engine:close())
    assert.equal("cairn.engine (closed)", tostring(engine))
    for _, call in ipairs {
      function() engine:step() end, function() engine:submit {} end,
      function() engine:jobs() end, function() engine:pollfd() end,
      function() engine:flush() end,
      function() engine:on("JobState", print) end,
      function() return job.JobState end,
      function() job:set { Priority = 1 } end,
    } do
      assert.error_matches(call, "closed engine")
    end
    assert.equal(5, (engine:ExportReferencePoint({}, "x")))
  end)

  it("names the nearest method for one it has not", function()
    local engine <close> = support.engine(cairn)
    assert.error_matches(function() engine:sumbit {} end,
      "no method 'sumbit'; did you mean 'submit'")
  end)

  it("raises when a method is called with a dot", function()
    local engine <close> = support.engine(cairn)
    assert.error_matches(function() engine.step(1) end, "with a colon")
    assert.error_matches(function() engine.jobs {} end, "with a colon")
  end)

  it("finds jobs by InstanceID, GUID and prefix", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function() end })
    local guid = job.InstanceID:match ":(.*)"
    assert.equal(job, engine:job(job.InstanceID))
    assert.equal(job, engine:job(guid))
    assert.equal(job, engine:job(guid:sub(1, 6):lower()))
    local _, message, code = engine:job "00000000-0000-0000-0000-000000000000"
    assert.equal("not_found", code)
    assert.equal("string", type(message))
    assert.error_matches(function() engine:job(3) end, "expected, got number")
  end)

  it("filters jobs by any property", function()
    local engine <close> = support.engine(cairn)
    local a = assert(engine:submit { Name = "a", run = function() end })
    local b = assert(engine:submit { Name = "b", Priority = 7,
      run = function(job) job:sleep(9) end })
    support.reach(engine, b, "Running")
    support.reach(engine, a, "Completed")
    assert.same({ a, b }, engine:jobs())
    assert.same({ a }, engine:jobs { JobState = "completed" })
    assert.same({ b }, engine:jobs { JobState = 4 })
    assert.same({ b }, engine:jobs { phase = "running", Priority = 7 })
    assert.same({ a }, engine:jobs { OperationalStatus = "OK",
      Priority = cairn.null })
    assert.same({}, engine:jobs { Name = "c" })
    assert.error_matches(function() engine:jobs { Nmae = "a" } end,
      "no property 'Nmae'; did you mean 'Name'")
    assert.error_matches(function() engine:jobs { JobState = "Runing" } end,
      "did you mean 'Running'")
  end)

  it("submits all or none", function()
    local engine <close> = support.engine(cairn)
    local made, message, code = engine:submit_all {
      { Name = "a", run = function() end }, { Name = "b", Prioriti = 1,
        run = function() end } }
    assert.is_nil(made)
    assert.matches("Priority", message)
    assert.equal("unknown_key", code)
    assert.same({}, engine:jobs())
    made = assert(engine:submit_all { { Name = "a", run = function() end },
      { Name = "b", run = function() end } })
    assert.equal(2, #made)
    assert.equal("a", made[1].Name)
    assert.equal("Completed", made[2]:wait())
    assert.same({}, engine:submit_all {})
  end)

  it("submits no part of a list with a hole or with names", function()
    local engine <close> = support.engine(cairn)
    local spec = { Name = "a", run = function() end }
    assert.error_matches(function() engine:submit_all(spec) end,
      "a list of tables expected, got a table with named keys", 1, true)
    assert.error_matches(function()
      engine:submit_all { spec, nil, spec }
    end, "a list of tables expected, got one with a hole (a nil) in it", 1,
      true)
    assert.same({}, engine:jobs())
  end)

  it("refuses specifications that are none, naming the place", function()
    local engine <close> = support.engine(cairn)
    local cases = {
      { { Name = "a" }, "invalid_argument", "run" },
      { { Name = "a", run = 3 }, "wrong_type", "run must be a function" },
      { { Name = "a", run = function() end, Notify = print }, "wrong_type",
        "Notify: a function cannot stand here" },
      { { Name = "a\xff", run = function() end }, "invalid_argument",
        "Name: the string is not UTF%-8" },
      { { Name = "a", verify = { directory = { 1, x = 2 } } }, "wrong_type",
        "verify%.directory: the table has both" },
      { { Name = "a", Priority = 0 / 0, run = function() end },
        "invalid_argument", "Priority: not a finite number" },
      { { Name = "a", run = function() end, RunMonth = 12 }, "out_of_range",
        "RunMonth" },
      { { Name = "a", run = function() end, JobState = 4 }, nil, "JobState" },
    }
    for _, case in ipairs(cases) do
      local job, message, code = engine:submit(case[1])
      assert.is_nil(job)
      assert.matches(case[3], message)
      if case[2] then assert.equal(case[2], code) end
    end
    assert.error_matches(function() engine:submit "x" end, "a table expected")
  end)

  it("delivers events in order and ends subscriptions", function()
    local engine <close> = support.engine(cairn)
    local seen, last = {}, 0
    local stop = engine:on("JobState", function(event)
      assert.is_true(event.sequence > last)
      last = event.sequence
      seen[#seen + 1] = event.PreviousJobState .. ">" .. event.JobState
      assert.equal("a", event.job.Name)
      assert.equal(event.job.InstanceID, event.InstanceID)
    end)
    assert(engine:submit { Name = "a", run = function() end }):wait()
    assert.same({ "New>Starting", "Starting>Running", "Running>Shutting Down",
      "Shutting Down>Completed" }, seen)
    stop()
    stop()
    assert(engine:submit { Name = "b", run = function() end }):wait()
    assert.equal(4, #seen)
  end)

  it("logs an error of a handler with its line and goes on", function()
    local engine, log = support.engine(cairn)
    local _ <close> = engine
    local others = 0
    engine:on("Submitted", function() error "this handler is broken" end)
    engine:on("Submitted", function() others = others + 1 end)
    local job = assert(engine:submit { Name = "a", run = function() end })
    assert.equal("Completed", job:wait())
    assert.equal(1, others)
    assert.equal(1, #log)
    assert.matches("handler of Submitted: .*module_spec%.lua:%d+: this handler "
      .. "is broken", log[1])
  end)

  it("survives a log function that raises", function()
    local engine <close> = assert(cairn.open { clock = "virtual",
      log = function() error { "no" } end })
    local stderr, said = io.stderr, {}
    rawset(io, "stderr", { write = function(_, ...)
      said[#said + 1] = table.concat { ... }
    end })
    engine:on("Submitted", function() error "broken" end)
    local job = assert(engine:submit { Name = "a", run = function() end })
    local state = job:wait()
    rawset(io, "stderr", stderr)
    assert.equal("Completed", state)
    assert.matches("broken", said[1])
  end)

  it("names the nearest event for one it has not", function()
    local engine <close> = support.engine(cairn)
    assert.error_matches(function() engine:on("jobState", print) end,
      "did you mean 'JobState'")
    assert.error_matches(function() engine:on("JobState", 3) end,
      "a function expected")
  end)

  it("explains a job", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function(self)
      self:ask { question = "go on?" }
    end })
    support.reach(engine, job, "Query Pending")
    local text, data = engine:why(job.InstanceID)
    assert.matches("go on%?", text)
    assert.equal("running", data.phase)
    assert.equal("go on?", data.query.question)
    local none, _, code = engine:why "ffffffff"
    assert.is_nil(none)
    assert.equal("not_found", code)
  end)

  it("returns vendor codes when asked to", function()
    local engine <close> = support.engine(cairn, { codes = "vendor" })
    local job = assert(engine:submit { Name = "a", run = function(self)
      self:sleep(100)
    end })
    support.reach(engine, job, "Running")
    assert.equal(32775, (job:RequestStateChange "Start"))
    assert.equal(32773, (job:RequestStateChange(99)))
    assert.equal(0, (job:RequestStateChange("Terminate", 5)))
    local ok, _, code = job:resume()
    assert.is_nil(ok)
    assert.equal("invalid_state", code)
  end)
end)

describe("datetimes", function()
  it("are made from text, seconds and units", function()
    assert.equal("00000000020000.000000:000", tostring(cairn.interval "2h"))
    assert.equal("00000001120000.000000:000", tostring(cairn.interval "1d12h"))
    assert.equal("00000000000130.500000:000", tostring(cairn.interval(90.5)))
    assert.equal("00000000000000.250000:000",
      tostring(cairn.interval "250ms"))
    assert.equal("19700101000001.000000+000", tostring(cairn.datetime(1)))
    assert.equal("19980525133015.000000-300",
      tostring(cairn.datetime "19980525133015.000000-300"))
  end)

  it("raise for what is none", function()
    for _, text in ipairs { "2x", "", "2", "h", "1h1h", "1m2h", "-1s", "1..5s",
      "99999999999999999999d" } do
      assert.error_matches(function() cairn.interval(text) end,
        "cairn%.interval: ")
    end
    assert.error_matches(function() cairn.interval(-1) end, "cannot be")
    assert.error_matches(function() cairn.interval(0 / 0) end, "cannot be")
    assert.error_matches(function() cairn.datetime {} end, "expected")
    assert.error_matches(function() cairn.datetime() end, "expected, got nil")
    assert.error_matches(function()
      cairn.interval "19980525133015.000000-300"
    end, "an interval expected, got a timestamp")
  end)

  it("calculate by the rules of the class", function()
    local day = cairn.interval "1d"
    local t = cairn.datetime "20240228120000.000000+000"
    assert.equal("20240229120000.000000+000", tostring(t + day))
    assert.equal(day, (t + day) - t)
    assert.equal(24, day / cairn.interval "1h")
    assert.equal(cairn.interval "12h", day / 2)
    assert.equal(cairn.interval "2d", 2 * day)
    assert.is_true(t < t + 1)
    assert.is_true(t <= t)
    assert.is_false(t == day)
    assert.error_matches(function() return t + t end, ".")
    assert.error_matches(function() return t < day end, ".")
    assert.error_matches(function() return day - cairn.interval "2d" end, ".")
    assert.error_matches(function() return t.secnds end,
      "did you mean 'seconds'")
    assert.error_matches(function() t.seconds = 1 end, "cannot be changed")
    assert.equal("interval", day.kind)
    assert.equal(86400.0, day.seconds)
    assert.equal("at 00000001000000.000000:000", "at " .. day)
  end)
end)

describe("JSON", function()
  it("comes back as it went", function()
    local value = { a = { 1, 2.5, "x\"\\\n\1é", true }, b = { c = {} },
      big = math.maxinteger, small = math.mininteger }
    assert.same(value, cairn.json_decode(cairn.json_encode(value)))
    assert.equal('{"a":1,"b":2,"c":3}',
      cairn.json_encode { c = 3, a = 1.0, b = 2 })
    assert.equal("[null,1]", cairn.json_encode { cairn.null, 1 })
    assert.equal("0.1", cairn.json_encode(0.1))
    assert.equal('{"a":[],"b":{}}',
      cairn.json_encode(cairn.json_decode '{"a":[],"b":{}}'))
  end)

  it("names the place of what has no JSON form", function()
    local loop = {}
    loop.a = { loop }
    local deep = {}
    local inner = deep
    for _ = 1, 40 do
      inner.k = {}
      inner = inner.k
    end
    local cases = {
      { { a = { b = print } }, "^a%.b: a function" },
      { { a = { 1, nil, 3 } }, "^a: the list has a hole" },
      { { [true] = 1 }, "a boolean as a key" },
      { { [1.5] = 1 }, "a number as a key" },
      { loop, "^a%[1%]: the table contains itself" },
      { deep, "nested more than 32 deep" },
      { { x = 1 / 0 }, "^x: not a finite number" },
      { { x = "\xed\xa0\x80" }, "^x: the string is not UTF%-8" },
      { { x = "a\0b" }, "^x: the string has a NUL" },
      { setmetatable({}, { __index = { 1 } }), "has a metatable" },
      { coroutine.create(print), "a thread cannot stand here" },
    }
    for _, case in ipairs(cases) do
      local text, message, code = cairn.json_encode(case[1])
      assert.is_nil(text)
      assert.matches(case[2], message)
      assert.equal("string", type(code))
    end
  end)

  it("refuses text that is not JSON", function()
    for _, text in ipairs { "", "{", "[1,]", '{"a":1,"a":2}', "nul" } do
      local value, message, code = cairn.json_decode(text)
      assert.is_nil(value)
      assert.matches("not JSON, line 1", message)
      assert.equal("invalid_argument", code)
    end
  end)
end)

describe("collections", function()
  local function farm(change)
    local t = { CollectionId = "11111111-2222-3333-4444-555555555555",
      machines = { { VirtualMachineId = "A1111111-2222-3333-4444-555555555555",
        disks = { { id = "vda", path = "x.raw", format = "raw" } } } } }
    if change then change(t, t.machines[1], t.machines[1].disks[1]) end
    return t
  end

  it("become absolute where they are written, tail calls included",
    function()
      local path, remove = support.directory()
      support.write(path .. "/farm.lua", [[
        local cairn = require "cairn"
        return cairn.collection { CollectionId = "C", machines = { {
          VirtualMachineId = "V", config = { "./etc/a b.xml", "/abs" },
          disks = { { id = "vda", path = "x/../y.raw", format = "raw" } } } } }
      ]])
      local c = dofile(path .. "/farm.lua")
      remove()
      assert.equal(path .. "/x/../y.raw", c.machines[1].disks[1].path)
      assert.same({ path .. "/etc/a b.xml", "/abs" }, c.machines[1].config)
      assert.same({}, c.machines[1].runtime)
    end)

  it("are checked, with file, line and place", function()
    local cases = {
      { function(t) t.CollectonId = "x" end,
        "unknown key 'CollectonId'; did you mean 'CollectionId'" },
      { function(t) t.CollectionId = nil end, "CollectionId is missing" },
      { function(t) t.machines = {} end, "machines is empty" },
      { function(t) t.machines = "x" end, "machines must be a list" },
      { function(_, m) m.disks = { a = 1 } end,
        "machines%[1%]: disks must be a list" },
      { function(_, m) m.disks = { m.disks[1], nil, m.disks[1] } end,
        "machines%[1%]: disks must be a list, got one with a hole" },
      { function(_, m) m.config = { "/a", nil, "/b" } end,
        "config must be a list, got one with a hole" },
      { function(t) t.machines = { nil, t.machines[1] } end,
        "machines must be a list, got one with a hole" },
      { function(_, m) m.config = { 3 } end, "config%[1%]: a path expected" },
      { function(_, _, d) d.id = "../x" end, "is no disk id" },
      { function(_, _, d) d.id = ("x"):rep(65) end, "is no disk id" },
      { function(_, _, d) d.format = "vmdk" end,
        "valid are 'raw' and 'qcow2'" },
      { function(_, _, d) d.path = "" end, "path is empty" },
      { function(_, _, d) d.path = nil end, "path is missing" },
      { function(_, _, d) d.assume_quiescent = 1 end, "must be a boolean" },
    }
    for _, case in ipairs(cases) do
      local ok, err = pcall(cairn.collection, farm(case[1]))
      assert.is_false(ok)
      assert.matches(case[2], tostring(err))
      assert.matches("module_spec%.lua:%d+: cairn%.collection",
        tostring(err))
      assert.truthy(cairn.errors[err.code], err.code)
    end
  end)

  it("are completed for a file that returned a plain table", function()
    local c = assert(cairn.collection_from(farm(), "/srv/farm/farm.lua"))
    assert.equal("/srv/farm/x.raw", c.machines[1].disks[1].path)
    assert.equal(c, cairn.collection_from(c, "/elsewhere/x.lua"))
    local none, message, code = cairn.collection_from({}, "/srv/farm.lua")
    assert.is_nil(none)
    assert.matches("^/srv/farm%.lua: CollectionId is missing", message)
    assert.equal("invalid_argument", code)
  end)
end)
