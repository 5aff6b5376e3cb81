-- Progress of running jobs, on standard error. On a terminal: one bar a job,
-- redrawn in place, messages scrolling above them. Elsewhere: plain lines.
-- Invariant: whatever was drawn is accounted for in `drawn`, so that clear()
-- leaves the cursor, visible, where the first bar was.

local text = require "cairn.cli.text"

local progress = {}

local Bars = {}
Bars.__index = Bars

local HIDE, SHOW = "\27[?25l", "\27[?25h"
-- DEC 2026: terminals that know it show a frame whole, others ignore it.
local BEGIN, END = "\27[?2026h", "\27[?2026l"

local states_in_motion = { Running = true }

-- What stands behind the percentage: rate and time left, or the state.
local function tail_of(row)
  if row.detail then return row.detail end
  if not states_in_motion[row.state] then return row.state end
  local parts = {}
  if row.rate and row.rate > 0 then
    parts[1] = text.bytes(row.rate) .. "/s"
  end
  if row.eta then parts[#parts + 1] = text.duration(row.eta) .. " left" end
  return table.concat(parts, "  ")
end

-- One job in at most `columns` columns. row: name, state, percent (or nil),
-- rate (bytes a second), eta (seconds), detail. style: name_columns, unicode,
-- colour.
function progress.line(row, columns, style)
  local name = text.printable(row.name)
  local percent = row.percent and ("%3d %%"):format(row.percent) or "     "
  local tail = tail_of(row)
  local name_columns = math.min(style.name_columns or 24,
    math.max(4, columns - 6))
  local mark = style.unicode and "…" or "~"
  local line = text.fit(name, name_columns, mark) .. " "
  local room = columns - name_columns - 1
  if room < 5 then return (text.cut(line, columns)) end
  local bar_columns = room - 6 - (tail ~= "" and text.width(tail) + 2 or 0)
  if style.tail_columns and tail ~= "" then
    bar_columns = math.min(bar_columns, room - 8 - style.tail_columns)
  end
  if bar_columns >= 8 then
    bar_columns = math.min(bar_columns, 50)
    local inner = bar_columns - 2
    local full = (row.percent or 0) * inner // 100
    local done, rest = "=", " "
    if style.unicode then done, rest = "━", "─" end
    local bar = done:rep(full)
    if style.colour then bar = "\27[32m" .. bar .. "\27[0m" end
    local left, right = "[", "]"
    if style.unicode then left, right = " ", " " end
    line = line .. left .. bar .. rest:rep(inner - full) .. right .. " "
  end
  line = line .. percent
  local used = text.width((line:gsub("\27%[%d*m", "")))
  if tail ~= "" and used + 2 < columns then
    local cut = text.cut(tail, columns - used - 2)
    line = line .. "  " .. cut
  end
  return line
end

-- The lines for all rows; those that have no room are counted in the last.
function progress.frame(rows, columns, lines, style)
  local longest, tail = 0, 0
  for _, row in ipairs(rows) do
    longest = math.max(longest, text.width(text.printable(row.name)))
    tail = math.max(tail, text.width(tail_of(row)))
  end
  style = {
    unicode = style.unicode,
    colour = style.colour,
    name_columns = math.min(longest, math.max(8, columns // 3)),
    tail_columns = math.min(tail, columns // 2),
  }
  local out = {}
  local most = math.max(1, lines - 1)
  for i, row in ipairs(rows) do
    if i == most and #rows > most then
      out[i] = text.cut(("... and %d more"):format(#rows - most + 1), columns)
      break
    end
    out[i] = progress.line(row, columns, style)
  end
  return out
end

-- options: write(s), size() -> columns, lines; unicode, colour.
function progress.bars(options)
  return setmetatable({
    write = options.write,
    size = options.size,
    style = { unicode = options.unicode, colour = options.colour },
    drawn = {},      -- widths of the lines on the screen
    rows = {},
    is_hidden = false, -- the cursor
    is_paused = false,
  }, Bars)
end

-- Back to the start of the first drawn line. A terminal that has become
-- narrower has wrapped the lines it shows.
function Bars:back()
  if #self.drawn == 0 then return "" end
  local columns = self.size()
  local up = 0
  for i, width in ipairs(self.drawn) do
    local taken = math.max(1, (width + columns - 1) // columns)
    up = up + (i == #self.drawn and taken - 1 or taken)
  end
  self.drawn = {}
  return "\r" .. (up > 0 and ("\27[%dA"):format(up) or "") .. "\27[J"
end

function Bars:draw()
  if self.is_paused then return "" end
  local columns, lines = self.size()
  -- The last column stays free: some terminals wrap when it is written.
  local frame = progress.frame(self.rows, math.max(1, columns - 1), lines,
    self.style)
  for i, line in ipairs(frame) do
    self.drawn[i] = text.width((line:gsub("\27%[%d*m", "")))
  end
  local out = table.concat(frame, "\n")
  if #frame > 0 and not self.is_hidden then
    self.is_hidden = true
    out = HIDE .. out
  end
  return out
end

-- rows: array as progress.line() takes them; may be empty.
function Bars:show(rows)
  self.rows = rows
  if self.is_paused then return end
  self.write(BEGIN .. self:back() .. self:draw() .. END)
end

-- A message above the bars; may have several lines.
function Bars:say(message)
  local out = message .. "\n"
  if self.is_paused then
    self.write(out)
    return
  end
  self.write(BEGIN .. self:back() .. out .. self:draw() .. END)
end

-- No bars until resume(), the cursor visible: a prompt, a stopped process.
function Bars:pause()
  if self.is_paused then return end
  self.is_paused = true
  local out = self:back()
  if self.is_hidden then
    self.is_hidden = false
    out = out .. SHOW
  end
  if out ~= "" then self.write(out) end
end

function Bars:resume()
  if not self.is_paused then return end
  self.is_paused = false
  self:show(self.rows)
end

function Bars:finish()
  self.rows = {}
  self:pause()
end

-- A state change of a job: the bars show it themselves.
function Bars.state() end

-- ---- without a terminal -----------------------------------------------------

local Lines = {}
Lines.__index = Lines

local PERCENT_STEP = 10
local QUIET_S = 10  -- at least one line in so many seconds
local SHORTEST_S = 1 -- at most one

-- options: write(s), now() -> seconds, monotonic.
function progress.lines(options)
  return setmetatable({
    write = options.write,
    now = options.now,
    last = {}, -- by row.key: { percent =, time = }
  }, Lines)
end

local function plain(row)
  local out = text.printable(row.name) .. ": "
  if row.percent then out = out .. ("%d %%"):format(row.percent) end
  local tail = tail_of(row):gsub("  ", ", ")
  if tail ~= "" then out = out .. (row.percent and ", " or "") .. tail end
  return out
end

function Lines:show(rows)
  local now = self.now()
  for _, row in ipairs(rows) do
    if states_in_motion[row.state] and row.percent then
      local last = self.last[row.key]
      if not last then
        self.last[row.key] = { percent = row.percent, time = now }
      else
        local step = row.percent // PERCENT_STEP > last.percent // PERCENT_STEP
        local age = now - last.time
        if (step and age >= SHORTEST_S) or age >= QUIET_S then
          last.percent, last.time = row.percent, now
          self.write(plain(row) .. "\n")
        end
      end
    else
      self.last[row.key] = nil
    end
  end
end

function Lines:say(message) self.write(message .. "\n") end

function Lines:state(row)
  self.write(text.printable(row.name) .. ": " .. (row.detail or row.state)
    .. "\n")
end

function Lines.pause() end
function Lines.resume() end
function Lines.finish() end

return progress
