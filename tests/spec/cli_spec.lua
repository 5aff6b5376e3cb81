-- The parts of the command that need no engine: command lines, help, text for
-- terminals, progress, the guard around luv.

local build = os.getenv "CAIRN_BUILD" or "build"
package.path = build .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = build .. "/lib/lua/5.4/?.so;" .. package.cpath

local uv = require "luv"
local commands = require "cairn.cli.commands"
local options = require "cairn.cli.options"
local progress = require "cairn.cli.progress"
local summary = require "cairn.cli.summary"
local text = require "cairn.cli.text"

local function parse(name, ...)
  return options.parse(commands.by_name[name], { ... })
end

describe("a command line", function()
  it("takes values attached and detached", function()
    local a = assert(parse("export", "--collection", "f.lua", "--to=dir"))
    assert.equal("f.lua", a.collection)
    assert.equal("dir", a.to)
    assert.is_nil(a.json)
  end)

  it("collects repeated options in order", function()
    local a = assert(parse("run", "--job", "b", "p.lua", "--job=a",
      "--set", "x=1=2", "--json"))
    assert.same({ "b", "a" }, a.job)
    assert.same({ "x=1=2" }, a.set)
    assert.equal("p.lua", a.policy)
    assert.is_true(a.json)
  end)

  it("ends options at --", function()
    local a = assert(parse("points", "--", "--json"))
    assert.equal("--json", a.directory)
    assert.is_nil(a.json)
  end)

  it("leaves a script its own options", function()
    local a = assert(parse("console", "--json", "x.lua", "-e", "--json", "--"))
    assert.equal("x.lua", a.file)
    assert.same({ "-e", "--json", "--" }, a.args)
    assert.is_nil(a.eval)
    assert.is_true(a.json)
  end)

  it("takes chunks that look like options", function()
    local a = assert(parse("console", "-e", "--json", "-e1+1", "-e", ""))
    assert.same({ "--json", "1+1", "" }, a.eval)
  end)

  local refused = {
    { "an unknown option", "nearest is --depth", "verify", "d", "--dept", "set" },
    { "an unknown short option", "unknown option -x", "points", "-x", "d" },
    { "a flag with a value", "takes no value", "points", "--json=yes", "d" },
    { "an option without its value", "--to wants a value (DIR)", "restore",
      "d/i", "--to" },
    { "an option in place of a value", "--to=--json", "restore", "d/i", "--to",
      "--json" },
    { "an empty value", "not an empty one", "restore", "d/i", "--to", "" },
    { "a value that is none of the choices", "valid are set, chain, content",
      "verify", "d", "--depth", "deep" },
    { "an option given twice", "--to is given twice", "restore", "d/i",
      "--to", "a", "--to", "b" },
    { "a missing argument", "POLICY.lua is missing", "run", "--json" },
    { "an empty argument", "DIR is empty", "points", "" },
    { "one argument too many", "one argument too many: b", "points", "a", "b" },
    { "a missing required option", "--to DIR is missing", "restore", "d/i" },
    { "--set without =", "wants K=V", "run", "p.lua", "--set", "x" },
    { "a store without a name", "not an empty one", "run", "p.lua",
      "--store", "" },
  }
  for _, case in ipairs(refused) do
    it("refuses " .. case[1], function()
      local a, message = parse(table.unpack(case, 3))
      assert.is_nil(a)
      assert.truthy(message:find(case[2], 1, true), message)
    end)
  end

  it("takes a store", function()
    assert.equal(":memory:", parse("run", "p.lua", "--store", ":memory:").store)
    assert.equal("x.db", parse("run", "p.lua", "--store=x.db").store)
  end)

  it("never lets control characters through into a message", function()
    local _, message = parse("points", "a", "\27[31mred\7")
    assert.is_nil(message:find("[\1-\9\11-\31]"))
  end)
end)

describe("a plan", function()
  it("is known to fail without space, or where files exist", function()
    local GIB = 1 << 30
    assert.is_nil(summary.obstacle { target_bytes = 2 * GIB,
      free_bytes = 3 * GIB, has_space = true })
    assert.is_nil(summary.obstacle { conflicts = {} })
    local code, message = summary.obstacle { target_bytes = 2 * GIB,
      free_bytes = GIB, has_space = false }
    assert.matches("needs 2.00 GiB and 1.00 GiB while it is made, 2.50 GiB free",
      select(2, summary.obstacle { target_bytes = 2 * GIB, work_bytes = GIB,
        free_bytes = 5 * GIB // 2, has_space = false }), 1, true)
    assert.equal(3, code)
    assert.equal("not enough space: needs 2.00 GiB, 1.00 GiB free", message)
    code, message = summary.obstacle { conflicts = { "/a\27", "/b" },
      overwrite = false, has_space = true }
    assert.equal(2, code)
    assert.equal("/a\\x1b exists, and 1 more; --overwrite replaces it", message)
    assert.is_nil(summary.obstacle { conflicts = { "/a" }, overwrite = true,
      has_space = true })
  end)
end)

describe("the help", function()
  it("fits 80 columns, for every command", function()
    for _, command in ipairs(commands.list) do
      for line in options.help(command):gmatch("[^\n]+") do
        assert.is_true(#line < 80, line)
      end
    end
    for line in options.overview(commands):gmatch("[^\n]+") do
      assert.is_true(#line < 80, line)
    end
  end)

  it("names every option that is not hidden, exit codes and an example",
    function()
      for _, command in ipairs(commands.list) do
        local help = options.help(command)
        for _, option in ipairs(command.options) do
          local is_there = help:find("--" .. option.name, 1, true) ~= nil
          assert.equal(not option.is_hidden, is_there,
            command.name .. " " .. option.name)
        end
        assert.truthy(help:find("Exit codes:", 1, true))
        assert.truthy(help:find("Examples:\n  [%a]"))
      end
    end)

  it("and the manual page of docs/man agree", function()
    local file = assert(io.open("docs/man/cairn.1"))
    local page = file:read "a"
    file:close()
    local version = page:match('"cairn ([%d.]+)"')
    assert.equal(page, require "cairn.cli.manual".page(commands, version))
    -- and the page has every command and option, as a reader sees them
    local plain = page:gsub("\\f.", ""):gsub("\\%-", "-")
    for _, command in ipairs(commands.list) do
      assert.truthy(plain:find("cairn " .. command.name, 1, true))
      for _, option in ipairs(command.options) do
        if not option.is_hidden then
          assert.truthy(plain:find("--" .. option.name, 1, true))
        end
      end
    end
  end)

  it("makes a completion script that bash accepts and that completes",
    function()
      local script = require "cairn.cli.manual".bash(commands)
      local path = os.tmpname()
      local file = assert(io.open(path, "w"))
      file:write(script, [[
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _cairn
  echo "${COMPREPLY[*]}"; }
try cairn re
try cairn verify --de
try cairn verify --depth c
try cairn run --job x
try cairn help poi
]])
      file:close()
      local pipe = assert(io.popen("bash " .. path .. " 2>&1"))
      local out = pipe:read "a"
      pipe:close()
      os.remove(path)
      assert.equal("restore resume reload\n--depth\nchain content\n\npoints\n", out)
    end)
end)

describe("text", function()
  it("escapes what a terminal could obey, and what is not UTF-8", function()
    assert.equal("plain", text.printable "plain")
    assert.equal("a\\x1b[2Jb", text.printable "a\27[2Jb")
    assert.equal("a\\nb\\tc\\x00", text.printable "a\nb\tc\0")
    assert.equal("grün \\xff\\xfe ok", text.printable "grün \xff\xfe ok")
    assert.equal("\\x9b", text.printable "\u{9b}")
    assert.equal("\\u{202e}abc", text.printable "\u{202e}abc")
    assert.equal("\\xed\\xa0\\x80", text.printable "\xed\xa0\x80")
  end)

  it("knows how wide characters are", function()
    assert.equal(3, text.width "abc")
    assert.equal(4, text.width "grün")
    assert.equal(4, text.width "備份")
    assert.equal(1, text.width "e\u{301}")
    assert.equal(2, text.width "\u{1f600}")
  end)

  it("cuts and pads by columns and never inside a character", function()
    assert.equal("備", (text.cut("備份", 3)))
    assert.equal("備~ ", text.fit("備份備份", 4))
    assert.equal("ab   ", text.fit("ab", 5))
    for columns = 0, 12 do
      local fitted = text.fit("日本 grün é\u{301} x", columns)
      assert.equal(columns, text.width(fitted))
      assert.truthy(utf8.len(fitted))
    end
  end)

  it("writes sizes and durations", function()
    local cases = {
      { 0, "0 B" }, { 999, "999 B" }, { 1000, "0.98 KiB" },
      { 1024, "1.00 KiB" }, { 1536, "1.50 KiB" }, { 1048576, "1.00 MiB" },
      { 1023 * 1048576, "1.00 GiB" }, { 20 * 1048576, "20.0 MiB" },
      { 123 * 2 ^ 30, "123 GiB" }, { 2 ^ 62, "4.00 EiB" },
    }
    for _, case in ipairs(cases) do
      assert.equal(case[2], text.bytes(case[1]))
    end
    assert.equal("0:00", text.duration(0))
    assert.equal("0:07", text.duration(6.6))
    assert.equal("59:59", text.duration(3599))
    assert.equal("1:02:03", text.duration(3723))
    assert.equal("2d 03:04", text.duration(2 * 86400 + 3 * 3600 + 240))
    assert.equal("--:--", text.duration(math.huge))
    assert.equal("--:--", text.duration(0 / 0))
  end)

  it("aligns tables by columns, not bytes", function()
    local lines = text.table({ { title = "name" }, { title = "n",
      is_number = true }, { title = "x" } },
      { { "grün", "1", "a" }, { "b", "1000", "" } })
    assert.same({ "name     n  x", "grün     1  a", "b     1000" }, lines)
  end)

  it("shows values as Lua, bounded, and survives cycles and bad metamethods",
    function()
      assert.equal('{ 1, "a\\n", ["end"] = {}, x = true }',
        text.show { 1, "a\n", x = true, ["end"] = {} })
      local cycle = { name = "me" }
      cycle.self = cycle
      assert.truthy(text.show(cycle):find("self = <cycle>", 1, true))
      local bad = setmetatable({}, { __tostring = function() error "no" end })
      assert.truthy(text.show(bad):find("no", 1, true))
      local silly = setmetatable({}, { __tostring = function() return 1 end })
      assert.is_string(text.show(silly))
      local big = {}
      for i = 1, 100000 do big[i] = i end
      local shown = text.show(big)
      assert.is_true(#shown < 4000)
      assert.truthy(shown:find("... 99800 more", 1, true))
      assert.is_true(#text.show(("x"):rep(1e6)) < 2100)
      local deep = {}
      local at = deep
      for _ = 1, 100 do
        at[1] = {}
        at = at[1]
      end
      assert.is_true(#text.show(deep) < 200)
      assert.equal("nil", text.show(nil))
      assert.equal('"\\\\\\""', text.show '\\"')
      -- what is shown of plain data is Lua that gives the data back
      local data = { a = { 1, 2, { b = "c" } }, ["x-y"] = 1.5, [10] = false }
      assert.same(data, load("return " .. text.show(data))())
    end)
end)

-- ---- progress --------------------------------------------------------------------

-- A terminal of `columns` x `lines` that understands what Bars writes; raises
-- on anything else, and when a line is too long for it.
local function terminal(columns, lines)
  local screen = { columns = columns, lines = lines, cells = { "" }, row = 1,
    is_visible = true }
  function screen.write(s)
    local at = 1
    while at <= #s do
      local number, verb = s:match("^\27%[%??(%d*)([A-Za-z])", at)
      if verb then
        local n = tonumber(number)
        if verb == "A" then
          screen.row = screen.row - n
          assert(screen.row >= 1, "moved above the first line")
        elseif verb == "J" then
          for i = screen.row, #screen.cells do screen.cells[i] = "" end
        elseif verb == "h" or verb == "l" then
          if n == 25 then screen.is_visible = verb == "h" end
        else
          assert(verb == "m", "unknown control " .. verb)
        end
        at = s:find(verb, at, true) + 1
      elseif s:find("^\n", at) then
        screen.row = screen.row + 1
        screen.cells[screen.row] = screen.cells[screen.row] or ""
        at = at + 1
      elseif s:find("^\r", at) then
        screen.cells[screen.row] = screen.cells[screen.row]
        screen.is_home = true
        at = at + 1
      else
        local piece = s:match("^[^\r\n\27]+", at)
        assert(piece, "unknown control at " .. s:sub(at, at + 8))
        screen.cells[screen.row] = (screen.cells[screen.row] or "") .. piece
        assert(text.width(screen.cells[screen.row]) <= screen.columns,
          "line too long: " .. screen.cells[screen.row])
        at = at + #piece
      end
    end
  end
  function screen.text()
    local out = {}
    for i, line in ipairs(screen.cells) do out[i] = line end
    while #out > 0 and out[#out] == "" do out[#out] = nil end
    return table.concat(out, "\n")
  end
  return screen
end

local function bars_on(screen, style)
  style = style or {}
  return progress.bars {
    write = screen.write,
    size = function() return screen.columns, screen.lines end,
    unicode = style.unicode, colour = style.colour,
  }
end

local running = { key = 1, name = "web-farm nightly", state = "Running",
  percent = 42, rate = 118 * 2 ^ 20, eta = 12 }

describe("a progress line", function()
  it("has name, bar, percent, rate and time left", function()
    assert.equal(
      "web-farm nightly         [===========                ]"
        .. "  42 %  118 MiB/s  0:12 left",
      progress.line(running, 82, {}))
  end)

  it("fits every width, whatever the name", function()
    for _, name in ipairs { "x", "web-farm nightly", "備份備份備份備份備份備份",
      ("long "):rep(40), "e\u{301}", "bad\27[2Jname\xff" } do
      for columns = 1, 200 do
        for _, unicode in ipairs { false, true } do
          local line = progress.line({ name = name, state = "Running",
            percent = 100, rate = 1e9, eta = 3600 }, columns,
            { unicode = unicode })
          assert.is_true(text.width(line) <= columns, line)
          assert.truthy(utf8.len(line))
          assert.is_nil(line:find("%c"))
        end
      end
    end
  end)

  it("shows 0 % with an empty and 100 % with a full bar", function()
    local row = { name = "a", state = "Running", percent = 0 }
    assert.is_nil(progress.line(row, 60, {}):find("=", 1, true))
    row.percent = 100
    assert.truthy(progress.line(row, 60, {}):find("%[=+%]"))
  end)

  it("names the state of a job that does not run", function()
    local line = progress.line({ name = "a", state = "Query Pending",
      percent = 10 }, 80, {})
    assert.truthy(line:find("10 %%  Query Pending"))
  end)
end)

describe("progress bars", function()
  it("are redrawn in place, with messages above, and leave nothing", function()
    local screen = terminal(80, 24)
    local bars = bars_on(screen)
    bars:show { running }
    assert.is_false(screen.is_visible)
    local other = { key = 2, name = "db", state = "Starting" }
    bars:show { running, other }
    bars:say "disk web1/vda: a warning"
    bars:show { running, other }
    local shown = screen.text()
    assert.truthy(shown:find("^disk web1/vda: a warning\nweb%-farm[^\n]*\ndb "))
    bars:finish()
    assert.equal("disk web1/vda: a warning", screen.text())
    assert.is_true(screen.is_visible)
  end)

  it("keep inside a terminal with fewer lines than jobs", function()
    local screen = terminal(40, 5)
    local bars = bars_on(screen)
    local rows = {}
    for i = 1, 30 do
      rows[i] = { key = i, name = "job " .. i, state = "Running", percent = i }
    end
    for _ = 1, 3 do bars:show(rows) end
    assert.equal(4, #screen.cells)
    assert.equal("... and 27 more", screen.cells[4])
  end)

  it("follow a resized terminal", function()
    local screen = terminal(100, 24)
    local bars = bars_on(screen)
    bars:show { running, running }
    screen.columns = 50
    -- as a terminal that wraps: each line of 99 columns now takes two
    screen.cells = { "a", "b", "c", "d" }
    screen.row = 4
    bars:show { running, running }
    assert.equal(2, select(2, screen.text():gsub("web%-farm", "")))
    assert.is_nil(screen.text():find("^a"))
    for _, cell in ipairs(screen.cells) do
      assert.is_true(text.width(cell) < 50)
    end
    bars:finish()
    assert.equal("", screen.text())
    assert.is_true(screen.is_visible)
  end)

  it("stand aside for a prompt and come back", function()
    local screen = terminal(80, 24)
    local bars = bars_on(screen, { unicode = true })
    bars:show { running }
    bars:pause()
    assert.equal("", screen.text())
    assert.is_true(screen.is_visible)
    bars:show { running }
    assert.equal("", screen.text())
    bars:resume()
    assert.truthy(screen.text():find("42 %", 1, true))
    bars:finish()
    bars:finish()
    assert.is_true(screen.is_visible)
  end)

  it("have colour only where it is wanted", function()
    local line = progress.line(running, 80, { colour = true })
    assert.truthy(line:find("\27[32m", 1, true))
    assert.is_nil(progress.line(running, 80, {}):find("\27", 1, true))
  end)
end)

describe("progress without a terminal", function()
  local function lines()
    local out, clock = {}, { now = 0 }
    local view = progress.lines {
      write = function(s) out[#out + 1] = s end,
      now = function() return clock.now end,
    }
    return view, out, clock
  end

  it("is a line every 10 percent", function()
    local view, out, clock = lines()
    for percent = 0, 100 do
      clock.now = percent / 2
      view:show { { key = 1, name = "a", state = "Running", percent = percent } }
    end
    assert.equal(10, #out)
    assert.equal("a: 10 %\n", out[1])
  end)

  it("is at most a line a second, and one every 10 s at least", function()
    local view, out, clock = lines()
    for percent = 0, 99 do
      clock.now = percent / 100
      view:show { { key = 1, name = "a", state = "Running", percent = percent } }
    end
    assert.equal(0, #out)
    for second = 1, 40 do
      clock.now = 1 + second
      view:show { { key = 1, name = "a", state = "Running", percent = 99,
        rate = 2048, eta = 90 } }
    end
    assert.equal(4, #out)
    assert.equal("a: 99 %, 2.00 KiB/s, 1:30 left\n", out[1])
  end)

  it("says state changes", function()
    local view, out = lines()
    view:state { name = "a\27b", state = "Starting" }
    assert.same({ "a\\x1bb: Starting\n" }, out)
  end)
end)

describe("the guard around luv", function()
  it("catches what a callback raises, reports it, and goes on", function()
    -- in a process of its own: the guard changes luv for good
    local script = os.tmpname()
    local file = assert(io.open(script, "w"))
    file:write(([[
      package.path = %q
      local uv = require "luv"
      require "cairn.cli.guard".install(uv)
      local a, b = uv.new_timer(), uv.new_timer()
      uv.timer_start(a, 1, 0, function() error "first" end)
      b:start(2, 0, function() error { "second" } end)
      local idle = uv.new_idle()
      uv.fs_stat("/", function(err, stat) assert(stat.size) error(nil) end)
      uv.run()
      print("alive", require "cairn.cli.guard".count)
    ]]):format(package.path))
    file:close()
    local pipe = assert(io.popen("lua5.4 " .. script .. " 2>&1"))
    local out = pipe:read "a"
    local ok = pipe:close()
    os.remove(script)
    assert.is_true(ok, out)
    assert.truthy(out:find("alive\t3\n", 1, true), out)
    assert.truthy(out:find("uncaught error in a callback: .-first"), out)
    assert.is_not_nil(uv)
  end)
end)
