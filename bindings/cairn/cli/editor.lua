-- A line editor on a terminal: what is typed, drawn below whatever else is
-- printed. It owns no loop and no descriptor: bytes are fed to it, what it
-- draws is written by a function, so that it is the same on a terminal and in
-- a test.
--
--   local e = editor.new { write = , size = function() return columns, lines end,
--     history = history, on_line = function(line) end,     -- nil: Ctrl-D
--     on_interrupt = function() end, on_suspend = function() end,
--     complete = function(line, reply) end }
--   e:prompt "> "    e:feed(bytes)    e:above(lines)    e:resize()
--
-- A line may have several lines (a paste, Alt-Enter). It is laid out in rows
-- that are wrapped here, never by the terminal, and drawn whole at every
-- change. Invariant: while `is_shown`, the cursor is in the row `row` (from 0)
-- of the rows that are drawn, whose widths are in `widths`.

local text = require "cairn.cli.text"

local editor = {}

local Editor = {}
Editor.__index = Editor

local MORE = ">> "
local TAB = "    "
local LISTED_MAX = 200
local LINE_MAX = 524288 -- bytes: it would not go through a socket
-- DEC 2026: terminals that know it show a change whole, others ignore it.
local BEGIN, END = "\27[?2026h", "\27[?2026l"
editor.PASTE_ON, editor.PASTE_OFF = "\27[?2004h", "\27[?2004l"

function editor.new(options)
  return setmetatable({ write = options.write, size = options.size,
    history = options.history or { entries = {} },
    on_line = options.on_line, on_interrupt = options.on_interrupt,
    on_suspend = options.on_suspend, complete = options.complete,
    line = "", at = 1, -- the cursor is before this byte
    label = "", input = "", killed = "", is_active = false, is_shown = false,
    row = 0, widths = {}, change = 0 }, Editor)
end

-- ---- characters ------------------------------------------------------------------------

-- As it is drawn, and its columns.
local function drawn(piece)
  if piece == "\t" then return TAB, #TAB end
  if piece:find "^[\x20-\x7e]$" then return piece, 1 end
  local s = text.printable(piece)
  return s, text.width(s)
end

-- The place behind the character at `at`, with the marks that combine with it.
local function after(line, at)
  if at > #line then return at end
  local to = utf8.offset(line, 2, at)
  while to <= #line do
    local next_to = utf8.offset(line, 2, to)
    local piece = line:sub(to, next_to - 1)
    if #piece == 1 or select(2, drawn(piece)) > 0 then break end
    to = next_to
  end
  return to
end

local function before(line, at)
  if at <= 1 then return 1 end
  local from = utf8.offset(line, -1, at)
  while from > 1 do
    local piece = line:sub(from, at - 1)
    piece = piece:sub(1, utf8.offset(piece, 2) - 1)
    if #piece == 1 or select(2, drawn(piece)) > 0 then break end
    from = utf8.offset(line, -1, from)
  end
  return from
end

-- Words are of letters, digits, '_' and all that is not ASCII.
local function word_after(line, at)
  local to = line:match("^[^%w_\x80-\xff]*[%w_\x80-\xff]*()", at)
  return to
end

local function word_before(line, at)
  local from = line:sub(1, at - 1):match "()[%w_\x80-\xff]*[^%w_\x80-\xff]*$"
  return from
end

-- What of typed or pasted bytes may be in a line: valid UTF-8 without control
-- characters but tabs and ends of lines.
local function clean(s)
  s = s:gsub("\r\n?", "\n"):gsub("[%z\1-\8\11-\31\127]", "")
  if utf8.len(s) then return s end
  local out, at = {}, 1
  while at <= #s do
    local good, bad = utf8.len(s, at)
    out[#out + 1] = s:sub(at, good and #s or bad - 1)
    at = good and #s + 1 or bad + 1
  end
  return table.concat(out)
end

-- ---- drawing ---------------------------------------------------------------------------

-- The rows of the line in `columns`, their widths, and the cursor's place.
local function layout(self, columns)
  local rows, widths = {}, {}
  local parts, used = {}, 0
  local row, column
  local function put(piece, width)
    if used + width > columns and used > 0 then
      rows[#rows + 1], widths[#widths + 1] = table.concat(parts), used
      parts, used = {}, 0
    end
    parts[#parts + 1], used = piece, used + width
  end
  local function finish_row()
    rows[#rows + 1], widths[#widths + 1] = table.concat(parts), used
    parts, used = {}, 0
  end
  local function put_label(label)
    for _, code in utf8.codes(label) do
      local piece = utf8.char(code)
      put(drawn(piece))
    end
  end
  put_label(self.search and self.search.label or self.label)
  local line, at = self.line, 1
  while true do
    -- the cursor stands where the next character will
    if at == self.at then
      local width = 0
      local piece = line:match("^" .. utf8.charpattern, at)
      if piece and piece ~= "" and piece ~= "\n" then
        width = select(2, drawn(piece))
      end
      if used + math.max(width, 1) > columns then finish_row() end
      row, column = #rows, used
    end
    if at > #line then break end
    local byte = line:byte(at)
    if byte == 10 then
      finish_row()
      put_label(MORE)
      at = at + 1
    elseif byte >= 0x20 and byte < 0x7f then
      put(line:sub(at, at), 1)
      at = at + 1
    else
      local piece = line:match("^" .. utf8.charpattern, at)
      put(drawn(piece))
      at = at + #piece
    end
  end
  finish_row()
  return rows, widths, row, column
end

local function columns_and_lines(self)
  local columns, lines = self.size()
  if not columns or columns < 1 then columns = 80 end
  if not lines or lines < 1 then lines = 24 end
  return math.max(columns, 4), math.max(lines, 2)
end

-- To the first column of the first row that is drawn, and clear from there.
local function erasure(self)
  if not self.is_shown then return "" end
  return (self.row > 0 and ("\27[%dA"):format(self.row) or "") .. "\r\27[J"
end

local function draw(self, lead)
  local columns, lines = columns_and_lines(self)
  local rows, widths, row, column = layout(self, columns)
  -- Of more rows than the terminal has, those around the cursor.
  local first, last = 1, #rows
  if #rows > lines then
    first = math.max(1, math.min(row + 1 - lines // 2, #rows - lines + 1))
    last = first + lines - 1
  end
  local out = { BEGIN, erasure(self), lead or "",
    table.concat(rows, "\r\n", first, last) }
  local up = last - 1 - row
  if up > 0 then out[#out + 1] = ("\27[%dA"):format(up) end
  out[#out + 1] = column > 0 and ("\r\27[%dC"):format(column) or "\r"
  out[#out + 1] = END
  self.write(table.concat(out))
  self.is_shown = true
  self.row = row - (first - 1)
  self.widths = table.move(widths, first, last, 1, {})
end

local function changed(self)
  self.change = self.change + 1
  draw(self)
end

-- Leaves what is drawn on the screen, the cursor behind it.
local function leave(self, mark)
  if not self.is_shown then return end
  self.at = #self.line + 1
  self.search = nil
  draw(self)
  self.write((mark or "") .. "\r\n")
  self.is_shown, self.row, self.widths = false, 0, {}
end

-- The terminal has another size, and has wrapped what was drawn anew: the
-- cursor is further down, or up.
function Editor:resize()
  if not self.is_shown then return end
  local columns = columns_and_lines(self)
  local row = 0
  for i = 1, self.row do
    row = row + math.max(1, (self.widths[i] + columns - 1) // columns)
  end
  self.row = row
  draw(self)
end

-- Prints lines (with their ends) above the line that is being typed.
function Editor:above(lines)
  lines = lines:gsub("\r?\n", "\r\n")
  if not lines:find "\n$" then lines = lines .. "\r\n" end
  if self.is_shown then
    draw(self, lines)
  else
    self.write(lines)
  end
end

-- ---- editing ---------------------------------------------------------------------------

local function set(self, line, at)
  self.line, self.at = line, at or #line + 1
  self.listed = nil
  changed(self)
end

local function insert(self, s)
  if s == "" then return end
  if #self.line + #s > LINE_MAX then
    self:above(("too long: %d bytes, a line has at most %d"):format(
      #self.line + #s, LINE_MAX))
    return
  end
  set(self, self.line:sub(1, self.at - 1) .. s .. self.line:sub(self.at),
    self.at + #s)
end

-- Removes bytes from..to-1; what was killed can be yanked.
local function remove(self, from, to, is_kill)
  if from >= to then return end
  if is_kill then self.killed = self.line:sub(from, to - 1) end
  set(self, self.line:sub(1, from - 1) .. self.line:sub(to), from)
end

local function move(self, at)
  self.at = at
  self.listed = nil
  draw(self)
end

local function line_start(self)
  return self.line:sub(1, self.at - 1):match ".*\n()" or 1
end

local function line_end(self)
  return self.line:find("\n", self.at, true) or #self.line + 1
end

-- Another line of the same text, about as far to the right.
local function vertical(self, step)
  local start = line_start(self)
  local offset = utf8.len(self.line, start, self.at - 1, true) or 0
  local target
  if step < 0 then
    if start == 1 then return false end
    target = self.line:sub(1, start - 2):match ".*\n()" or 1
  else
    local stop = line_end(self)
    if stop > #self.line then return false end
    target = stop + 1
  end
  local stop = self.line:find("\n", target, true) or #self.line + 1
  local at = target
  while offset > 0 and at < stop do
    at, offset = after(self.line, at), offset - 1
  end
  move(self, at)
  return true
end

-- ---- history ---------------------------------------------------------------------------

-- What was typed and not entered is kept while older lines are looked at.
local function recall(self, step)
  local entries = self.history.entries
  local place = (self.place or #entries + 1) + step
  if place < 1 or place > #entries + 1 then return end
  if not self.place then self.draft = self.line end
  self.place = place <= #entries and place or nil
  set(self, self.place and entries[place] or self.draft or "")
end

-- From `place` down, the next entry that has the query.
local function search_from(self, place)
  local search = self.search
  local entries = self.history.entries
  search.is_failing = false
  if search.query == "" then
    search.place = nil
  else
    local found
    for i = math.min(place, #entries), 1, -1 do
      local start = entries[i]:find(search.query, 1, true)
      if start then
        found = i
        self.line, self.at = entries[i], start
        break
      end
    end
    search.is_failing = not found
    search.place = found or search.place
  end
  search.label = ("%ssearch '%s': "):format(
    search.is_failing and "failed " or "", search.query)
  changed(self)
end

local function start_search(self)
  self.search = { query = "", line = self.line, at = self.at, label = "" }
  search_from(self, #self.history.entries)
end

local function end_search(self, is_cancelled)
  local search = self.search
  self.search = nil
  if is_cancelled then
    set(self, search.line, search.at)
  else
    self.place = search.place
    if search.place and not self.draft then self.draft = search.line end
    draw(self)
  end
end

-- Whether the key was the search's own.
local function search_key(self, key, piece)
  local search = self.search
  if key == "insert" then
    search.query = search.query .. piece
    search_from(self, search.place or #self.history.entries)
  elseif key == "\18" then
    if search.query == "" then search.query = self.last_query or "" end
    search_from(self, (search.place or #self.history.entries + 1) - 1)
  elseif key == "\8" or key == "\127" then
    search.query = search.query:sub(1,
      before(search.query, #search.query + 1) - 1)
    search_from(self, #self.history.entries)
  elseif key == "\7" or key == "\3" then
    end_search(self, true)
  else
    self.last_query = search.query
    end_search(self)
    return false
  end
  self.last_query = search.query
  return true
end

-- ---- completion ------------------------------------------------------------------------

local function common_start(list)
  local start = list[1]
  for i = 2, #list do
    local n = 0
    while n < #start and start:byte(n + 1) == list[i]:byte(n + 1) do
      n = n + 1
    end
    start = start:sub(1, n)
  end
  while not utf8.len(start) do start = start:sub(1, -2) end
  return start
end

-- Names in columns, as many as fit, down first.
local function in_columns(names, columns)
  local widest = 0
  for _, name in ipairs(names) do
    widest = math.max(widest, text.width(name))
  end
  local across = math.max(1, (columns + 1) // (widest + 2))
  local down = (#names + across - 1) // across
  local lines = {}
  for i = 1, down do
    local cells = {}
    for j = 0, across - 1 do
      local name = names[i + j * down]
      if name then cells[#cells + 1] = text.fit(name, widest) end
    end
    lines[i] = table.concat(cells, "  "):gsub(" +$", "")
  end
  return table.concat(lines, "\n")
end

local function show_list(self, list, typed)
  local names = {}
  -- from the last name on: what is before it is typed already
  local from = typed:match ".*[.:%[\"'%s(,;=]()" or 1
  for i = 1, math.min(#list, LISTED_MAX) do
    names[i] = text.printable(list[i]:sub(from))
  end
  local lines = in_columns(names, (columns_and_lines(self)))
  if #list > LISTED_MAX then
    lines = ("%s\n... %d more"):format(lines, #list - LISTED_MAX)
  end
  self:above(lines)
end

local function tab(self)
  local typed = self.line:sub(1, self.at - 1)
  -- an indent, where nothing was typed yet
  if not typed:find "[^%s]" or not self.complete then
    return insert(self, "  ")
  end
  local start = line_start(self)
  typed = self.line:sub(start, self.at - 1)
  local change = self.change
  -- What is typed meanwhile waits: the answer may come from far away.
  self.is_asking = true
  self.complete(typed, function(list)
    -- answered twice, given up with Ctrl-C, or another prompt
    if not self.is_asking or self.change ~= change then return end
    self.is_asking = false
    local common = list[1] and common_start(list) or ""
    if common:sub(1, #typed) == typed then
      if #common > #typed then
        insert(self, common:sub(#typed + 1))
      elseif #list > 1 then
        show_list(self, list, typed)
      end
    end
    self:take()
  end)
end

-- ---- keys --------------------------------------------------------------------------------

local function enter(self)
  local line = self.line
  leave(self)
  self.is_active = false
  self.place, self.draft = nil, nil
  self.line, self.at = "", 1
  self.on_line(line)
end

local function interrupt(self)
  leave(self, "^C")
  self.line, self.at, self.place, self.draft = "", 1, nil, nil
  self.is_active = false
  self.on_interrupt()
end

local keys = {
  ["\1"] = function(self) move(self, line_start(self)) end,
  ["\2"] = function(self) move(self, before(self.line, self.at)) end,
  ["\3"] = interrupt,
  ["\4"] = function(self)
    if self.line ~= "" then
      return remove(self, self.at, after(self.line, self.at))
    end
    leave(self)
    self.is_active = false
    self.on_line(nil)
  end,
  ["\5"] = function(self) move(self, line_end(self)) end,
  ["\6"] = function(self) move(self, after(self.line, self.at)) end,
  ["\8"] = function(self)
    remove(self, before(self.line, self.at), self.at)
  end,
  ["\9"] = tab,
  ["\11"] = function(self)
    local to = line_end(self)
    -- at the end of one of several lines, the end itself
    if to == self.at and to <= #self.line then to = to + 1 end
    remove(self, self.at, to, true)
  end,
  ["\12"] = function(self)
    self.row = 0
    self.write "\27[H\27[2J"
    draw(self)
  end,
  ["\13"] = enter,
  ["\14"] = function(self)
    if not vertical(self, 1) then recall(self, 1) end
  end,
  ["\16"] = function(self)
    if not vertical(self, -1) then recall(self, -1) end
  end,
  ["\18"] = start_search,
  ["\21"] = function(self)
    remove(self, line_start(self), self.at, true)
  end,
  ["\23"] = function(self)
    remove(self, (self.line:sub(1, self.at - 1):match "()%S*%s*$"), self.at,
      true)
  end,
  ["\25"] = function(self) insert(self, self.killed) end,
  ["\26"] = function(self)
    if self.on_suspend then
      leave(self)
      self.on_suspend()
      draw(self)
    end
  end,
  delete = function(self)
    remove(self, self.at, after(self.line, self.at))
  end,
  word_left = function(self) move(self, word_before(self.line, self.at)) end,
  word_right = function(self) move(self, word_after(self.line, self.at)) end,
  kill_word = function(self)
    remove(self, self.at, word_after(self.line, self.at), true)
  end,
  kill_word_left = function(self)
    remove(self, word_before(self.line, self.at), self.at, true)
  end,
  newline = function(self) insert(self, "\n") end,
  first = function(self) move(self, 1) end,
  last = function(self) move(self, #self.line + 1) end,
}
keys["\10"], keys["\127"] = enter, keys["\8"]

-- Sequences behind ESC.
local sequences = {
  ["[A"] = "\16", ["[B"] = "\14", ["[C"] = "\6", ["[D"] = "\2",
  ["OA"] = "\16", ["OB"] = "\14", ["OC"] = "\6", ["OD"] = "\2",
  ["[H"] = "\1", ["[F"] = "\5", ["OH"] = "\1", ["OF"] = "\5",
  ["[1~"] = "\1", ["[4~"] = "\5", ["[7~"] = "\1", ["[8~"] = "\5",
  ["[3~"] = "delete",
  ["[1;5C"] = "word_right", ["[1;5D"] = "word_left",
  ["[1;3C"] = "word_right", ["[1;3D"] = "word_left",
  ["[1;5H"] = "first", ["[1;5F"] = "last",
  b = "word_left", f = "word_right", d = "kill_word",
  ["\127"] = "kill_word_left", ["\8"] = "kill_word_left",
  ["\13"] = "newline", ["\10"] = "newline",
  ["<"] = "first", [">"] = "last",
}

-- The first key of the input and how many bytes it has; nil while that is not
-- known yet. What is no key is "nothing".
local function next_key(s)
  local byte = s:byte()
  if byte == 27 then
    if s:find "^\27%[200~" then
      local stop, last = s:find("\27[201~", 7, true)
      if not stop then return nil end
      return "paste", last, s:sub(7, stop - 1)
    end
    local sequence = s:match "^\27(%[[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e])"
      or s:match "^\27(O[\x20-\x7e])"
    if not sequence then
      local rest = s:sub(2)
      if rest == "" or rest == "O" or rest:find "^%[[\x20-\x3f]*$"
        and #rest < 64 then
        return nil
      end
      -- an ESC before another sequence, or before a character
      sequence = rest:find "^\27" and "" or rest:sub(1, 1)
    end
    return sequences[sequence] or "nothing", 1 + #sequence
  elseif byte < 0x20 or byte == 0x7f then
    return s:sub(1, 1), 1
  end
  -- as much text as there is, so that a paste is one change
  local run = s:match "^[\x20-\x7e]+"
  if run then return "insert", #run, run end
  local size = byte >= 0xf0 and byte < 0xf8 and 4 or byte >= 0xe0
    and byte < 0xf0 and 3 or byte >= 0xc2 and byte < 0xe0 and 2 or 1
  local piece = s:match("^[\xc2-\xf7][\x80-\xbf]*"):sub(1, size)
  if #piece < size and #piece == #s then return nil end
  return "insert", #piece, piece
end

local function key_of(s)
  -- a byte that begins no character
  if s:find "^[\x80-\xc1\xf8-\xff]" then return "nothing", 1 end
  return next_key(s)
end

-- Takes what keys are there as long as somebody edits; the rest waits for the
-- next prompt.
local function take(self)
  while self.is_active and not self.is_asking and self.input ~= "" do
    local key, size, piece = key_of(self.input)
    if not key then
      if #self.input > LINE_MAX * 2 then self.input = "" end -- a paste's start
      break
    end
    self.input = self.input:sub(size + 1)
    if key == "paste" then
      key, piece = "insert", clean(piece):gsub("\n+$", "")
    elseif key == "insert" then
      piece = clean(piece)
    end
    if self.search and search_key(self, key, piece) then
      key = "nothing"
    end
    if key == "insert" then
      insert(self, piece)
    elseif keys[key] then
      keys[key](self)
    end
  end
end

-- Whoever is called for a key may call this again.
function Editor:take()
  if self.is_taking then return end
  self.is_taking = true
  local ok, err = pcall(take, self)
  self.is_taking = false
  if not ok then error(err, 0) end
end

-- Bytes from the terminal.
function Editor:feed(bytes)
  -- Ctrl-C of one who does not edit is not to wait for the next prompt.
  if not self.is_active then
    local last = bytes:match ".*()\3"
    if last then
      self.input = ""
      for _ in bytes:gmatch "\3" do self.on_interrupt() end
      bytes = bytes:sub(last + 1)
    end
  elseif bytes == "\3" and self.input:find "^\27%[200~" then
    self.input = "" -- a paste that lost its end would swallow it
  end
  if self.is_asking and bytes:find("\3", 1, true) then
    self.is_asking, self.input = false, ""
    bytes = bytes:match "\3.*"
  end
  self.input = self.input .. bytes
  self:take()
end

-- Whether Ctrl-C was typed behind the line that was entered last. What was typed
-- before it goes, as a terminal's driver does it.
function Editor:has_interrupt()
  local last = self.input:match ".*()\3"
  if last then self.input = self.input:sub(last + 1) end
  return last ~= nil
end

-- Shows a prompt and lets a line be typed. `line`: what is there already.
function Editor:prompt(label, line)
  self.label = label
  if line then self.line, self.at = line, #line + 1 end
  self.is_active = true
  self.write(editor.PASTE_ON)
  self.is_asking = false
  self.change = self.change + 1
  draw(self)
  self:take()
end

-- Takes the prompt away: somebody else has the terminal.
function Editor:hide()
  if self.is_shown then
    self.write(erasure(self))
    self.is_shown, self.row, self.widths = false, 0, {}
  end
  self.is_active, self.search = false, nil
  self.write(editor.PASTE_OFF)
end

return editor
