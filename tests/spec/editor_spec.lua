-- The line editor against a model of a terminal: bytes in, and what is on the
-- screen then, where its cursor is, and what was entered.

local uv = require "luv"
local editor = require "cairn.cli.editor"
local history = require "cairn.cli.history"
local text = require "cairn.cli.text"
local support = _G.support

-- A terminal of so many columns and lines, as far as the editor uses one: it
-- wraps late, as they all do, and scrolls.
local function terminal(columns, lines)
  local t = { columns = columns, lines = lines, row = 1, column = 0,
    rows = {}, unknown = {}, scrolled = {}, wraps = 0 }
  for i = 1, lines do t.rows[i] = {} end
  local function down()
    if t.row < t.lines then
      t.row = t.row + 1
    else
      t.scrolled[#t.scrolled + 1] = table.remove(t.rows, 1)
      t.rows[t.lines] = {}
    end
  end
  function t.write(s)
    local at = 1
    while at <= #s do
      local kind, final = s:match("^\27%[([\x20-\x3f]*)([\x40-\x7e])", at)
      if kind then
        at = at + 2 + #kind + 1
        local n = math.tointeger(tonumber(kind)) or 1
        if final == "A" then
          t.row = math.max(1, t.row - n)
        elseif final == "C" then
          t.column = math.min(t.columns - 1, t.column + n)
        elseif final == "J" then
          local from = kind == "2" and 1 or t.row
          for i = from, t.lines do
            t.rows[i] = i == t.row and kind ~= "2"
              and table.move(t.rows[i], 1, t.column, 1, {}) or {}
          end
        elseif final == "H" and kind == "" then
          t.row, t.column = 1, 0
        elseif not kind:find "^%?" then
          t.unknown[#t.unknown + 1] = kind .. final
        end
      elseif s:byte(at) == 13 then
        t.column, at = 0, at + 1
      elseif s:byte(at) == 10 then
        down()
        at = at + 1
      else
        local piece = s:match("^" .. utf8.charpattern, at)
        assert(piece and piece:byte() >= 32, "a control character was drawn")
        at = at + #piece
        local width = text.width(piece)
        if width == 0 then
          local row = t.rows[t.row]
          row[t.column] = (row[t.column] or "") .. piece
        else
          if t.column + width > t.columns then
            t.wraps, t.column = t.wraps + 1, 0
            down()
          end
          for i = #t.rows[t.row] + 1, t.column do t.rows[t.row][i] = " " end
          t.rows[t.row][t.column + 1] = piece
          for i = 2, width do t.rows[t.row][t.column + i] = "" end
          t.column = t.column + width
        end
      end
    end
  end
  function t.screen()
    local out = {}
    for i = 1, t.lines do out[i] = table.concat(t.rows[i]) end
    while out[#out] == "" do out[#out] = nil end
    return table.concat(out, "\n")
  end
  return t
end

local function new(columns, lines, options)
  local t = terminal(columns or 40, lines or 10)
  local e, entered
  local all = {
    write = t.write,
    size = function() return t.columns, t.lines end,
    on_line = function(line)
      entered[#entered + 1] = line == nil and "EOF" or line
      if line ~= nil and not t.is_busy then e:prompt "> " end
    end,
    on_interrupt = function()
      t.interrupts = (t.interrupts or 0) + 1
      if not t.is_busy then e:prompt "> " end
    end,
  }
  for key, value in pairs(options or {}) do all[key] = value end
  e, entered = editor.new(all), {}
  e:prompt "> "
  return e, t, entered
end

local UP, DOWN, RIGHT, LEFT = "\27[A", "\27[B", "\27[C", "\27[D"
local function paste(s) return "\27[200~" .. s .. "\27[201~" end

describe("the line editor", function()
  it("takes lines, and shows them", function()
    local e, t, entered = new()
    e:feed "1 + 1"
    assert.equal("> 1 + 1", t.screen())
    assert.equal(7, t.column)
    e:feed "\r\n"
    assert.same({ "1 + 1", "" }, entered)
    assert.equal("> 1 + 1\n> \n> ", t.screen())
    assert.same({}, t.unknown)
  end)

  it("moves and deletes by characters, words and lines", function()
    for _, case in ipairs {
      { "abc\2\2X", "aXbc" }, { "abc\1X\5Y", "XabcY" },
      { "abc" .. LEFT .. LEFT .. RIGHT .. "X", "abXc" },
      { "abc\27[HX\27[FY", "XabcY" }, { "abc\27OHX\27OFY", "XabcY" },
      { "abc\27[1~X\27[4~Y", "XabcY" },
      { "abc\127\8", "a" }, { "abc\1\4\27[3~", "c" }, { "abc\127\127\127\127", "" },
      { "one two.three\27bX\27b\27bY", "one Ytwo.Xthree" },
      { "one two\1\27fX\27fY", "oneX twoY" },
      { "one two\27[1;5DX", "one Xtwo" }, { "one two\1\27[1;5CX", "oneX two" },
      { "one two.three\23X", "one X" }, { "one two.three\27\127X", "one two.X" },
      { "one two\1\27dX", "X two" }, { "one two\23\25\25", "one twotwo" },
      { "one two\2\2\2\11X\1\25", "twoone X" }, { "one two\2\2\2\21X", "Xtwo" },
      { "ab\3cd", "cd" }, { "\27[99~\27[1;9Z\27Qab", "ab" },
      { "a\27\27[DX", "Xa" }, { "a\0\7\28b", "ab" },
    } do
      local e, t, entered = new()
      e:feed(case[1])
      e:feed "\r"
      assert.equal(case[2], entered[1], ("%q"):format(case[1]))
      assert.same({}, t.unknown)
    end
  end)

  it("takes input byte by byte as well", function()
    local keys = "grün\27[D\27[DX\27bY" .. paste "a\r\nb" .. "中\27[3~\r"
    local e, _, entered = new()
    e:feed(keys)
    local one_by_one, _, entered_too = new()
    for i = 1, #keys do one_by_one:feed(keys:sub(i, i)) end
    assert.equal("Ya\nb中rXün", entered[1]:gsub("g", ""))
    assert.same(entered, entered_too)
  end)

  it("moves over what is several bytes, two columns, or combined", function()
    local e, t, entered = new()
    e:feed "a中é👍b"
    assert.equal(2 + 1 + 2 + 1 + 2 + 1, t.column)
    e:feed(LEFT .. LEFT)
    assert.equal(2 + 1 + 2 + 1, t.column)
    e:feed(LEFT)
    assert.equal(2 + 1 + 2, t.column)
    e:feed "\127"
    assert.equal("> aé👍b", t.screen())
    e:feed "\4\4"
    assert.equal("> ab", t.screen())
    e:feed "\r"
    assert.equal("ab", entered[1])
    -- a mark goes with what it is on
    e:feed "xe\204\129y\2\2\127\r"
    assert.equal("e\204\129y", entered[2])
  end)

  it("drops what is no text", function()
    local e, t, entered = new()
    e:feed "a\xffb\xc3c\xe4\xb8d\xed\xa0\x80e\r"
    e:feed(paste "x\27[2J\0\xff\ty" .. "\r")
    assert.same({ "abcde", "x[2J\ty" }, entered)
    assert.truthy(t.screen():find("> x[2J    y", 1, true))
  end)

  it("wraps lines, where the cursor may be anywhere", function()
    local e, t = new(10, 10)
    e:feed "abcdefghij"
    assert.equal("> abcdefgh\nij", t.screen())
    assert.same({ 2, 2 }, { t.row, t.column })
    e:feed "klmnopqr"
    assert.equal("> abcdefgh\nijklmnopqr", t.screen())
    assert.same({ 3, 0 }, { t.row, t.column }) -- where the next one will be
    e:feed(LEFT)
    assert.same({ 2, 9 }, { t.row, t.column })
    e:feed "\1"
    assert.same({ 1, 2 }, { t.row, t.column })
    e:feed "中"
    assert.equal("> 中abcdef\nghijklmnop\nqr", t.screen())
    e:feed "\1\11中中中中中"
    assert.equal("> 中中中中\n中", t.screen())
    e:feed "\1x"
    assert.equal("> x中中中\n中中", t.screen())
    e:feed "\21\11"
    assert.equal("> ", t.screen())
    assert.equal(1, t.row)
    assert.equal(0, t.wraps)
  end)

  it("lives on a terminal of 4 columns, or of no size", function()
    local e, t, entered = new(4, 3)
    e:feed "abcdefghijklmnopqrstuvw"
    assert.equal("opqr\nstuv\nw", t.screen())
    assert.equal(0, t.wraps)
    e:feed "\1"
    assert.equal(1, t.row)
    assert.equal("> ab\ncdef\nghij", t.screen())
    e:feed "\r"
    assert.equal(23, #entered[1])
    local sizeless = editor.new { write = function() end,
      size = function() return 0, 0 end, on_line = function() end }
    sizeless:prompt "> "
    sizeless:feed "abc"
    assert.equal("abc", sizeless.line)
  end)

  it("edits several lines of a paste, and enters them as one", function()
    local e, t, entered = new()
    e:feed(paste "for i = 1, 2 do\r\n  print(i)\r\nend\r\n")
    assert.same({}, entered)
    assert.equal("> for i = 1, 2 do\n>>   print(i)\n>> end", t.screen())
    e:feed(UP)
    assert.same({ 2, 6 }, { t.row, t.column })
    e:feed "\1x\5y"
    e:feed(DOWN .. "\5z\r")
    assert.equal("for i = 1, 2 do\nx  print(i)y\nendz", entered[1])
    e:feed "a\27\rb\1\127\r"
    assert.equal("ab", entered[2])
  end)

  it("shows the rows around the cursor of a paste of 1,000 lines", function()
    local e, t, entered = new(40, 10)
    local lines = {}
    for i = 1, 1000 do lines[i] = "x = " .. i end
    local t0 = uv.hrtime()
    e:feed(paste(table.concat(lines, "\r")))
    assert.is_true((uv.hrtime() - t0) / 1e9 < 1)
    assert.equal(">> x = 1000", t.screen():match "[^\n]*$")
    e:feed "\27<"
    assert.equal("> x = 1\n>> x = 2", t.screen():match "^[^\n]*\n[^\n]*")
    assert.same({ 1, 2 }, { t.row, t.column })
    for _ = 1, 500 do e:feed(DOWN) end
    assert.truthy(t.rows[t.row][6] .. t.rows[t.row][7] == "= "
      or t.screen():find(">> x = 501", 1, true))
    e:feed "\r"
    assert.equal(table.concat(lines, "\n"), entered[1])
  end)

  it("prints above the line that is typed", function()
    local e, t = new(20, 6)
    e:feed "abcdefghijklmnopqrstuvw\2\2"
    e:above "an event\nand one more"
    assert.equal("an event\nand one more\n> abcdefghijklmnopqr\nstuvw",
      t.screen())
    assert.same({ 4, 3 }, { t.row, t.column })
    for i = 1, 20 do e:above("event " .. i) end
    e:feed "X"
    assert.equal("event 17\nevent 18\nevent 19\nevent 20\n"
      .. "> abcdefghijklmnopqr\nstuXvw", t.screen())
    assert.equal("event 16", table.concat(t.scrolled[#t.scrolled]))
  end)

  it("draws anew after another size", function()
    local e, t = new(20, 6)
    e:above "before"
    e:feed "abcdefghijklmnopqrstuvw"
    -- what a terminal does that wraps its lines anew
    t.columns, t.row, t.column = 10, 4, 3
    t.rows[2] = { table.unpack(t.rows[2], 1, 10) }
    t.rows[3], t.rows[4] = { "i", "j" }, { "s", "t", "u" }
    t.row = 4
    e.row = 1
    e:resize()
    assert.equal("before\n> abcdefgh\nijklmnopqr\nstuvw", t.screen())
    t.columns = 40
    e:feed "\1\5"
    e:resize()
    assert.truthy(t.screen():find("> abcdefghijklmnopqrstuvw", 1, true))
  end)

  it("recalls what was entered, and keeps what was not", function()
    local h = history.open(uv, nil)
    for _, line in ipairs { "one", "two\nlines", "three" } do h:add(line) end
    local e, t, entered = new(nil, nil, { history = h })
    e:feed("draft" .. UP)
    assert.equal("> three", t.screen())
    e:feed(UP)
    assert.equal("> two\n>> lines", t.screen())
    e:feed(UP .. UP) -- within it, then above
    assert.equal("> one", t.screen())
    e:feed(UP)
    assert.equal("> one", t.screen())
    e:feed(DOWN .. DOWN .. DOWN .. DOWN .. DOWN)
    assert.equal("> draft", t.screen())
    e:feed("\16\16X\r")
    assert.equal("two\nlinesX", entered[1])
    assert.equal("two\nlines", h.entries[2])
  end)

  it("searches backwards", function()
    local h = history.open(uv, nil)
    for _, line in ipairs { "engine:jobs()", "x = 1", "engine:why(id)" } do
      h:add(line)
    end
    local e, t, entered = new(60, nil, { history = h })
    e:feed "typed\18eng"
    assert.equal("search 'eng': engine:why(id)", t.screen())
    e:feed "\18"
    assert.equal("search 'eng': engine:jobs()", t.screen())
    e:feed "\18"
    assert.equal("failed search 'eng': engine:jobs()", t.screen())
    e:feed "\7"
    assert.equal("> typed", t.screen())
    e:feed "\18jos"
    assert.equal("failed search 'jos': ", t.screen():match "^.*: ")
    e:feed "\127b\r"
    assert.equal("engine:jobs()", entered[1])
    e:feed "\18\18" -- the last one again
    assert.truthy(t.screen():find("search 'job': engine:jobs()", 1, true))
    e:feed "\3"
    e:feed "\18= 1\5 + 1\r"
    assert.equal("x = 1 + 1", entered[#entered])
  end)

  it("completes: what is common, then a list", function()
    local asked, reply = {}, nil
    local answers = { ["engine:jo"] = { "engine:job", "engine:jobs" },
      ["engine:job"] = { "engine:job", "engine:jobs" }, ["u"] = { "unique" },
      ["x = e"] = { "x = engine" }, ["x = engine n"] = {},
      ["t['"] = { "t['b\27[2J']", "t['中']" }, s = { "s" } }
    local e, t, entered = new(40, 10, { complete = function(line, answer)
      asked[#asked + 1] = line
      reply = answer
      if answers[line] then answer(answers[line]) end
    end })
    e:feed "engine:jo\9"
    assert.equal("> engine:job", t.screen())
    e:feed "\9"
    assert.equal("job   jobs\n> engine:job", t.screen())
    e:feed "\21u\9"
    assert.equal("> unique", t.screen():match "[^\n]*$")
    e:feed "\21x = e\9 n\9"
    assert.equal("> x = engine n", t.screen():match "[^\n]*$")
    e:feed "\21t['\9"
    assert.is_nil(t.screen():find "\27")
    e:feed "\21later\9"
    assert.equal("later", asked[#asked])
    e:feed "X" -- waits for the answer
    assert.equal("> later", t.screen():match "[^\n]*$")
    reply { "later_than_that" }
    reply { "later_than_that_again" }
    assert.equal("> later_than_thatX", t.screen():match "[^\n]*$")
    e:feed "\21never\9more\r"
    e:feed "\3" -- but not for ever
    reply { "never_asked" }
    e:feed "x\r"
    assert.same({ "x" }, entered)
    e:feed "\9y\r"
    assert.equal("  y", entered[2])
    -- the word at the cursor, whatever is behind it
    e:feed "u)\2\9\r"
    assert.equal("unique)", entered[3])
    -- on the line of several, that line
    e:feed(paste "a\nu" .. "\9\r")
    assert.equal("a\nunique", entered[4])
  end)

  it("lists many completions in columns, but not too many", function()
    local list = {}
    for i = 1, 250 do list[i] = ("name%03d"):format(i) end
    local e, t = new(80, 100, { complete = function(_, answer)
      answer(list)
    end })
    e:feed "name\9"
    local screen = t.screen()
    assert.truthy(screen:find "^name001  name0%d%d")
    assert.truthy(screen:find("... 50 more", 1, true))
    assert.truthy(screen:find "> name$")
  end)

  it("ends at Ctrl-D on an empty line only", function()
    local e, _, entered = new()
    e:feed "ab\1\4\4\4"
    assert.same({ "EOF" }, entered)
    e:feed "x\r"
    assert.same({ "EOF" }, entered)
  end)

  it("keeps what is typed while nobody reads, up to a Ctrl-C", function()
    local e, t, entered = new()
    t.is_busy = true
    e:feed "one\rtwo\rthr"
    assert.same({ "one" }, entered)
    e:prompt "> "
    assert.same({ "one", "two" }, entered)
    e:prompt "> "
    assert.equal("> thr", t.screen():match "[^\n]*$")
    e:feed "ee\rlost"
    e:feed "also lost\3kept"
    assert.equal(1, t.interrupts)
    e:prompt "> "
    assert.equal("> kept", t.screen():match "[^\n]*$")
    e:feed(" \27[200~never ended")
    e:feed "\3"
    assert.equal(2, t.interrupts)
  end)

  it("clears the screen, and suspends", function()
    local suspended = 0
    local e, t = new(20, 5, { on_suspend = function()
      suspended = suspended + 1
    end })
    e:above "something"
    e:feed "abc\2\12"
    assert.equal("> abc", t.screen())
    assert.same({ 1, 4 }, { t.row, t.column })
    e:feed "\26"
    assert.equal(1, suspended)
    assert.equal("> abc\n> abc", t.screen())
  end)

  it("refuses a line that is too long", function()
    local e, t = new(80)
    e:feed(paste(("x"):rep(600000)))
    assert.truthy(t.screen():find("too long: 600000 bytes", 1, true))
    assert.equal("", e.line)
  end)

  it("survives any bytes", function()
    math.randomseed(7)
    local special = { "\27[", "\27", "\r", "中", "e\204\129", "\18", "\9", "\3",
      "\27[200~", "\27[201~", "\127", UP, DOWN, "\23", "\25", "\21", "\xff" }
    local h = history.open(uv, nil)
    local e, t = new(13, 5, { history = h, complete = function(line, answer)
      answer { line .. "é中", line .. "é文" }
    end })
    for _ = 1, 3000 do
      local s = math.random(2) == 1 and special[math.random(#special)]
        or string.char(math.random(0, 255))
      e:feed((s:gsub("\4", "")))
      if math.random(50) == 1 then e:above(("event "):rep(5)) end
      if math.random(50) == 1 then
        t.columns = math.random(4, 30)
        for _, row in ipairs(t.rows) do
          for i = t.columns + 1, #row do row[i] = nil end
        end
        t.column = math.min(t.column, t.columns - 1)
        e:resize()
      end
      assert(utf8.len(e.line) and e.at >= 1 and e.at <= #e.line + 1)
      h:add(e.line)
    end
    assert.same({}, t.unknown)
  end)
end)

describe("the history", function()
  local top, remove
  before_each(function() top, remove = support.directory() end)
  after_each(function() remove() end)

  local function mode(path) return assert(uv.fs_stat(path)).mode & 511 end

  it("is kept from start to start, for its user alone", function()
    local path = top .. "/a/b/history"
    local h = history.open(uv, path)
    assert.is_nil(h:add "one")
    h:add "two\nlines \\n"
    h:add "two\nlines \\n"
    h:add " secret"
    h:add "  "
    assert.equal(tonumber("600", 8), mode(path))
    assert.equal(tonumber("700", 8), mode(top .. "/a"))
    assert.same({ "one", "two\nlines \\n" }, history.open(uv, path).entries)
  end)

  it("takes lines of several consoles", function()
    local path = top .. "/history"
    local a, b = history.open(uv, path), history.open(uv, path)
    a:add "a1"
    b:add "b1"
    a:add "a2"
    assert.same({ "a1", "b1", "a2" }, history.open(uv, path).entries)
  end)

  it("is bounded", function()
    local path = top .. "/history"
    local lines = {}
    for i = 1, 3000 do lines[i] = "line " .. i .. "\n" end
    support.write(path, table.concat(lines))
    local h = history.open(uv, path)
    assert.equal(1000, #h.entries)
    assert.equal("line 2001", h.entries[1])
    assert.equal("line 2001", support.read(path):match "^[^\n]*")
    h:add(("x"):rep(9000))
    assert.equal(1000, #h.entries)
    assert.is_nil(support.read(path):find "xxxx")
    support.write(path, ("y"):rep(5000000))
    assert.equal(0, #history.open(uv, path).entries)
    assert.equal(0, uv.fs_stat(path).size)
    assert.equal(tonumber("600", 8), mode(path))
  end)

  it("does without a file that cannot be had", function()
    support.write(top .. "/file", "")
    local h = history.open(uv, top .. "/file/history")
    assert.is_nil(h:add "one")
    assert.same({ "one" }, h.entries)
    assert(uv.fs_mkdir(top .. "/history", 448))
    h = history.open(uv, top .. "/history")
    assert.is_nil(h:add "one")
    support.write(top .. "/bad", "ok\n\xff\nalso\ntorn")
    assert.same({ "ok", "also" }, history.open(uv, top .. "/bad").entries)
    h = history.open(uv, top .. "/new")
    assert(uv.fs_mkdir(top .. "/new", 448))
    assert.truthy(h:add "one":find "history is not kept")
    assert.is_nil(h:add "two")
    assert.same({ "one", "two" }, h.entries)
  end)
end)
