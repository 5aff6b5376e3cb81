-- Sessions of chunks: what they answer, what they keep for themselves, and that
-- no chunk, and nothing a chunk has made, keeps the engine from others.

local uv = require "luv"
local cairn = require "cairn"
local evaluator = require "cairn.evaluator"

local engine, log

-- A session whose prints are kept in .out.
local function session(options)
  local s
  local all = { engine = engine, uv = uv, name = "tester",
    print = function(text) s.out = (s.out or "") .. text end }
  for key, value in pairs(options or {}) do all[key] = value end
  s = evaluator.new(all)
  return s
end

-- Drives the loop until fn() is true; a watchdog fails the test.
local function until_true(fn, ms)
  local timer, is_late = assert(uv.new_timer()), false
  timer:start(ms or 10000, 0, function() is_late = true end)
  while not is_late and not fn() do uv.run "once" end
  timer:close()
  assert(fn(), "this did not become true in time")
end

local function eval(s, source, options)
  local outcome, count = nil, 0
  s:eval(source, function(o)
    outcome, count = o, count + 1
  end, options)
  until_true(function() return outcome end)
  uv.run "nowait"
  assert.equal(1, count)
  return outcome
end

local function values(s, source)
  local outcome = eval(s, source)
  assert.is_nil(outcome.error)
  assert.equal(outcome.n, #outcome.values)
  return table.concat(outcome.values, " ")
end

local function fails(pattern, s, source)
  local outcome = eval(s, source)
  assert.truthy(outcome.error, source .. " did not fail")
  assert.truthy(outcome.error:find(pattern), outcome.error)
  return outcome.error
end

-- Starts a chunk, interrupts it after ms (and when is_enough() says so), and
-- returns its error and how long that took from the interrupt on.
local function interrupted(s, source, ms, is_enough)
  local outcome
  s:eval(source, function(o) outcome = o end)
  local timer, at = assert(uv.new_timer()), nil
  timer:start(ms or 30, 10, function()
    if at or is_enough and not is_enough() then return end
    at = uv.hrtime()
    assert(s:interrupt())
  end)
  until_true(function() return outcome end)
  local took = (uv.hrtime() - at) / 1e9
  timer:close()
  assert.is_false(s:is_busy())
  return outcome.error, took
end

describe("an evaluator's session", function()
  before_each(function()
    log = {}
    engine = assert(cairn.open { log = function(m) log[#log + 1] = m end })
    assert(cairn.attach(engine, uv))
  end)

  after_each(function()
    engine:close { mode = "kill" }
    uv.run "nowait"
  end)

  it("evaluates expressions, statements and several values", function()
    local s = session()
    assert.equal("2", values(s, "1 + 1"))
    assert.equal('1 nil "two" { 3 }', values(s, "1, nil, 'two', { 3 }"))
    assert.equal("", values(s, "x = 5"))
    assert.equal("5", values(s, "x"))
    assert.equal("6", values(s, "local y = x + 1 return y"))
    assert.equal("", values(s, "  \n "))
    assert.equal("1", values(s, "1 -- a comment"))
  end)

  it("knows what is incomplete from what is wrong", function()
    local s = session()
    for _, source in ipairs { "1 +", "x =", "for i = 1, 2 do", "f(", "[[a",
      "function f()", "if x then y()", "return", "{ 1,", "--[[ a", "'a\\" } do
      local outcome = eval(s, source)
      if source ~= "return" then
        assert.is_true(outcome.incomplete, source)
      end
    end
    for _, source in ipairs { "x x", "'abc", "end", "return x\n 'abc", ")", "1 + + 2" } do
      fails("^%(console%):[12]: ", s, source)
    end
    assert.equal("3", values(s, "1 +\n2"))
  end)

  it("keeps the last value, and globals of its own over _G", function()
    local a, b = session(), session()
    values(a, "41, 'second'")
    assert.equal("41 41", values(a, "_, it"))
    values(a, "x = 1 _G.y = 2 load 'z = 3' () string.q = nil")
    assert.equal("1 2 3 2", values(a, "x, y, z, _G.y"))
    assert.equal("nil nil nil nil", values(b, "x, y, z, _"))
    assert.is_nil(rawget(_G, "x") or rawget(_G, "y") or rawget(_G, "z"))
    assert.equal("true true true",
      values(a, "math.pi > 3, cairn == require 'cairn', engine:now() ~= nil"))
    -- nor does a session's strictness stop the evaluator
    values(a, "setmetatable(_G, { __newindex = error, __index = _G }) return 1")
    assert.equal("7", values(a, "7"))
    local own = { print = print }
    local c = session { globals = own }
    values(c, "w = 9")
    assert.equal(9, own.w)
  end)

  it("gives errors with the chunk's own frames", function()
    local s = session()
    local message = fails("^%(console%):1: boom\nstack traceback:", s,
      "local function f() error 'boom' end f()")
    assert.truthy(message:find("in main chunk$"), message)
    assert.is_nil(message:find("evaluator", 1, true), message)
    fails("code = \"x\"", s, "error { code = 'x' }")
    fails("^nil was raised", s, "error()")
    fails("store", s, "error(require 'cairn.failure'.new('closed', 'store'))")
    fails("stack overflow", s, "local function f() return 1 + f() end f()")
    fails("<table: .*no>", s, "error(setmetatable({}, "
      .. "{ __tostring = function() error 'no' end }))")
    -- the session goes on
    assert.equal("1", values(s, "1"))
    assert.same({}, log)
  end)

  it("runs chunks as tasks, which may wait", function()
    local s = session()
    assert.equal('"Completed"', values(s, [[
      local j = assert(engine:submit { Name = "j",
        run = function(job) job:sleep(0.01) end })
      return (j:wait(5))]]))
    local other, done = session(), nil
    s:eval("cairn.sleep(0.05) return 'slow'", function(o) done = o end)
    assert.is_true(s:is_busy())
    assert.equal("2", values(other, "1 + 1"))
    assert.is_nil(done)
    until_true(function() return done end)
    assert.equal('"slow"', done.values[1])
  end)

  it("runs one chunk at a time", function()
    local s, first = session(), nil
    s:eval("cairn.sleep(0.02)", function(o) first = o end)
    assert.truthy(fails("another chunk", s, "1"))
    until_true(function() return first end)
    assert.equal("1", values(s, "1"))
  end)

  it("ends any chunk, but not the engine", function()
    local s = session()
    for _, source in ipairs { "while true do end",
      "while true do pcall(error, 'x') end",
      "while true do pcall(function() while true do end end) end",
      "cairn.sleep(100)", "repeat local ok = pcall(cairn.sleep, 100) until ok",
      "engine:submit { Name = 'j', run = function(job) job:sleep(100) end }"
        .. ":wait()",
      "local t <close> = setmetatable({}, { __close = function() "
        .. "while true do end end }) cairn.sleep(100)",
      "while true do print(('x'):rep(1000)) end" } do
      local message, took = interrupted(s, source)
      assert.equal("interrupted", message, source)
      assert.is_true(took < 1, source)
    end
    -- where a hook cannot yield, it takes up to a second
    for _, source in ipairs {
      "coroutine.wrap(function() while true do pcall(error) end end)()",
      "table.sort({ 1, 2, 3 }, function() while true do end end)" } do
      local message, took = interrupted(s, source)
      assert.truthy(message:find "interrupted" or message:find "gave? way",
        message)
      assert.is_true(took < 2, source)
    end
    assert.equal("2", values(s, "1 + 1"))
    assert.is_false(s:interrupt())
    assert.equal(1, #engine:jobs())
  end)

  it("stalls nobody while chunks run that never wait", function()
    local busy = {}
    for i = 1, 5 do
      busy[i] = session()
      busy[i]:eval("while true do end", function() end)
    end
    local s, ticks = session(), 0
    local timer = uv.new_timer()
    timer:start(0, 5, function() ticks = ticks + 1 end)
    local t0 = uv.hrtime()
    assert.equal("2", values(s, "1 + 1"))
    assert.is_true((uv.hrtime() - t0) / 1e9 < 0.5)
    until_true(function() return ticks >= 5 end, 2000)
    timer:close()
    for i = 1, 5 do busy[i]:close() end
  end)

  it("bounds what is shown", function()
    local s = session()
    local shown = values(s, "local t = {} for i = 1, 1e5 do t[i] = i end "
      .. "for i = 1, 1e4 do t['k' .. i] = i end return t")
    assert.is_true(#shown < 4000)
    assert.truthy(shown:find("... 109800 more", 1, true), shown)
    assert.truthy(values(s, "('x'):rep(1e7)"):find("10000000 bytes%)$"))
    assert.equal("<cycle>", values(s, "local t = {} t.t = t return t")
      :match "t = (.-) }")
    assert.equal("{ { { { { ... } } } } }", values(s, "{{{{{{1}}}}}}"))
    local outcome = eval(s, "table.unpack({}, 1, 250)")
    assert.equal(250, outcome.n)
    assert.equal("... 150 more values", outcome.values[101])
    outcome = eval(s, "local t = {} for i = 1, 200 do t[i] = ('\"'):rep(2000) "
      .. "end return t, t, t, t, t, t, t, t, t, t")
    assert.is_true(#table.concat(outcome.values) < 400000)
    assert.truthy(utf8.len(values(s, "'\\xff\\0\\27[31m'")))
    assert.is_nil(values(s, "'\\27[31m'"):find("\27", 1, true))
  end)

  it("survives metamethods that raise, lie and never end", function()
    local s = session()
    local function of(meta)
      return values(s, ("setmetatable({ 1 }, { %s })"):format(meta))
    end
    assert.equal("shown", of "__tostring = function() return 'shown' end")
    assert.truthy(of "__tostring = function() error 'no' end":find "no>$")
    assert.truthy(of "__tostring = function() return 1 end":find "must return")
    assert.truthy(of "__tostring = 5":find "^<table: ")
    assert.truthy(of "__pairs = function() error 'no' end":find "__pairs raised")
    assert.truthy(of("__pairs = function() return function(_, k) "
      .. "return (k or 0) + 1, 'again' end end"):find "%.%.%. more\n}$")
    assert.equal('{ k = "v" }', of("__pairs = function() return next, "
      .. "{ k = 'v' } end"))
    assert.equal("{ 1 }", of("__index = error, __len = error, "
      .. "__metatable = 'locked'"))
    local t0 = uv.hrtime()
    assert.truthy(of "__tostring = function() while true do end end"
      :find "not shown: that took more than 2 s")
    assert.is_true((uv.hrtime() - t0) / 1e9 < 4)
    local message = interrupted(s, "setmetatable({}, { __pairs = function() "
      .. "while true do end end })")
    assert.equal("interrupted", message)
    message = interrupted(s, "error(setmetatable({}, { __tostring = function() "
      .. "while true do end end }))")
    assert.equal("interrupted", message)
  end)

  it("prints to its own, as text that is safe, before the outcome", function()
    local a, b = session(), session()
    local seen
    a:eval("print(1, 'two', nil) print '\27[2J' print '\\xff' return 1",
      function() seen = a.out end)
    until_true(function() return seen end)
    assert.equal("1\ttwo\tnil\n\\x1b[2J\n\\xff\n", (seen:gsub("    ", "\t")))
    assert.is_nil(b.out)
    local raw = session { is_raw = true }
    values(raw, "print '\\27[2J'")
    assert.equal("\27[2J\n", raw.out)
    -- while the chunk still runs
    a.out = nil
    a:eval("print 'early' cairn.sleep(100)", function() end)
    until_true(function() return a.out == "early\n" end)
    a:close()
  end)

  it("holds little of what a chunk prints without end", function()
    local largest, total = 0, 0
    local s = session { print = function(text)
      largest, total = math.max(largest, #text), total + #text
    end }
    assert.equal("interrupted", (interrupted(s,
      "while true do print(('x'):rep(1e6)) end", 100, function()
        return total > 200000
      end)))
    assert.is_true(largest < 300000)
    assert.equal("interrupted", (interrupted(s, "coroutine.wrap(function() "
      .. "while true do print(('x'):rep(1e4)) end end)()", 200)))
    assert.is_true(largest <= 1048576)
  end)

  it("survives who prints and who is told raising", function()
    local s = session { print = function() error "print is broken" end }
    local told
    s:eval("print 'x' return 1", function()
      told = true
      error "done is broken"
    end)
    until_true(function() return told and #log >= 2 end)
    assert.truthy(log[1]:find "print is broken")
    assert.truthy(log[2]:find "done is broken")
    assert.equal("2", values(s, "1 + 1"))
  end)

  it("tells the outcome when it or the engine is closed", function()
    local s, outcome = session(), nil
    s:eval("while true do end", function(o) outcome = o end)
    s:close()
    s:close()
    assert.equal("interrupted", outcome.error)
    fails("session was closed", s, "1")
    s = session()
    s:eval("cairn.sleep(100)", function(o) outcome = o end)
    outcome = nil
    engine:close { mode = "kill" }
    assert.truthy(outcome.error)
    s:eval("1", function(o) outcome = o end)
    assert.equal("the engine was closed", outcome.error)
    assert.has_error(function() session() end)
  end)

  it("logs what a job prints when its session has gone", function()
    local s = session()
    values(s, "engine:submit { Name = 'j', run = function(job) "
      .. "job:sleep(0.02) print 'from the job' end } return 1")
    s:close()
    until_true(function() return #log > 0 end)
    assert.equal("tester: from the job", log[1])
    assert.is_nil(s.out)
  end)

  it("gives values as JSON", function()
    local s = session()
    local outcome = eval(s, "1, nil, { a = 'b' }, print, engine:submit { "
      .. "Name = 'j', run = function() end }", { json = true })
    assert.is_true(outcome.json)
    assert.equal("1", outcome.values[1])
    assert.equal("null", outcome.values[2])
    assert.same({ a = "b" }, cairn.json_decode(outcome.values[3]))
    assert.truthy(outcome.values[4]:find '^"function: ')
    assert.equal("j", cairn.json_decode(outcome.values[5]).Name)
    assert.truthy(eval(s, "('x'):rep(1e6)", { json = true }).error
      :find "more than 262144 bytes")
  end)

  it("helps with every name of the API", function()
    local s = session()
    for _, section in ipairs(require "cairn.api".sections) do
      for _, entry in ipairs(section.entries) do
        s.out = nil
        values(s, ("help %q"):format(entry.name))
        assert.truthy(s.out:find(entry.name .. "(", 1, true), entry.name)
      end
    end
    for source, wanted in pairs { ["help()"] = "engine:submit%(",
      ["help(engine.submit)"] = "^engine:submit%(",
      ["help(cairn.open)"] = "^cairn%.open%(", ["help(help)"] = "help%(%[name",
      ["help(engine)"] = "^engine\n.*engine:why",
      ["help 'JobState'"] = "^job%.JobState",
      ["help 'sumbit'"] = "did you mean 'submit'" } do
      s.out = nil
      values(s, source)
      assert.truthy(s.out:find(wanted), source .. ": " .. s.out)
    end
    fails("a name such as", s, "help {}")
  end)

  it("completes from live objects", function()
    local s = session()
    values(s, [[
      job = engine:submit { Name = "j", run = function() end }
      farm = { web1 = { disks = { { id = "vda" } } }, ["web 2"] = 1, say =
        function() end }
      class = setmetatable({}, { __index = { method = function() end } })
      when = cairn.datetime(0)]])
    local function completes(line, ...)
      assert.same({ ... }, s:complete(line))
    end
    completes("engine:jo", "engine:job", "engine:jobs")
    completes("x = engine:jo", "x = engine:job", "x = engine:jobs")
    completes("job:wai", "job:wait", "job:wait_for")
    completes("job.JobSt", "job.JobState", "job.JobStatus")
    completes("job.Name:upp", "job.Name:upper")
    completes("far", "farm")
    completes("farm.", "farm.say", "farm.web1")
    completes("farm:", "farm:say")
    completes("farm.web1.disks[1].i", "farm.web1.disks[1].id")
    completes("farm['web", "farm['web 2']", "farm['web1']")
    completes('farm["web 2', 'farm["web 2"]')
    completes("farm['web1'].di", "farm['web1'].disks")
    completes("class:me", "class:method")
    completes("when.mic", "when.microseconds")
    completes("'a'..cairn.sche", "'a'..cairn.schedule")
    completes("print(cairn.sche", "print(cairn.schedule")
    completes("help 'subm", "help 'submit", "help 'submit_all")
    completes("help(\"engine:subm", "help(\"engine:submit",
      "help(\"engine:submit_all")
    completes("whil", "while")
    for _, nothing in ipairs { "f().x", "1.", "nosuch.x", "job.Nosuch.x",
      "farm.nosuch.", ")", "engine:job().", "farm.web1:x.", "'x", "\xff" } do
      completes(nothing)
    end
    assert.is_true(#s:complete "" > 20)
  end)

  it("runs nothing of the user's to complete", function()
    local s = session()
    values(s, [[
      touched = 0
      local function touch() touched = touched + 1 return {} end
      trap = setmetatable({}, { __index = touch, __pairs = touch,
        __len = touch, __call = touch, __tostring = touch })
      deep = setmetatable({}, { __index = trap })
      loop = {} setmetatable(loop, loop) loop.__index = loop
      big = {} for i = 1, 1e5 do big["key" .. i] = i end]])
    for _, line in ipairs { "trap.", "trap.x.", "trap:", "deep.x.", "loop.x.",
      "loop:", "trap['" } do
      s:complete(line)
    end
    assert.equal("0", values(s, "touched"))
    assert.equal(200, #s:complete "big.")
  end)

  it("leaves nothing behind", function()
    local S = require "cairn.core".state(engine)
    values(session(), "1")
    local before = 0
    for _ in pairs(S.timers) do before = before + 1 end
    for _ = 1, 200 do
      local s = session()
      values(s, "print 'x' return { 1 }")
      s:eval("while true do print 'y' end", function() end)
      s:close()
    end
    for _ = 1, 5 do uv.run "nowait" end
    local after = 0
    for _ in pairs(S.timers) do after = after + 1 end
    assert.equal(before, after)
    assert.is_nil(next(S.background))
    local weak = setmetatable({ session() }, { __mode = "v" })
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
  end)

  it("refuses options that are wrong", function()
    for pattern, options in pairs { ["an engine expected"] = { engine = 1 },
      ["unknown key 'pritn'"] = { pritn = print },
      ["print must be a function"] = { print = 1 } } do
      local ok, message = pcall(session, options)
      assert.is_false(ok)
      assert.truthy(message:find(pattern), message)
    end
    assert.has_error(function() session():eval(1, print) end)
    assert.has_error(function() session():eval("1") end)
    assert.has_error(function() session():complete(1) end)
  end)
end)
