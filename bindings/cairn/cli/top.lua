-- cairn top: the jobs of a service as they run.
--
-- top.render is a pure function of a view (what is known), a size and a style
-- to lines; everything else fetches views and puts lines on a terminal. Where
-- there is no terminal that can move its cursor, one view is printed.

local client = require "cairn.client"
local remote = require "cairn.cli.remote"
local say = require "cairn.cli.say"
local signals = require "cairn.cli.signals"
local text = require "cairn.cli.text"

local top = {}

local TIMEOUT_S = 10
local BAR_MIN, BAR_MAX = 10, 30
local NAME_MIN = 10

-- ---- what a row says ---------------------------------------------------------------

local function is_value(value) return value ~= nil and type(value) ~= "userdata" end

local ranks = { running = 1, queued = 2, backoff = 3, waiting = 4, held = 5,
  done = 6 }
local shown_states = { ["Completed With Warnings"] = "Warnings" }

local function state_of(job)
  if job.phase == "running" or job.phase == "done" then
    return shown_states[job.JobState] or text.printable(job.JobState or "?")
  end
  return text.printable(job.phase or job.JobState or "?")
end

-- What the colour of a row is about.
local function mood_of(job)
  if job.phase == "running" then
    return job.JobState == "Query Pending" and "attention" or "active"
  elseif job.phase == "backoff" then
    return "attention"
  elseif job.phase == "done" then
    return (job.JobState == "Exception" or job.JobState == "Killed")
      and "bad" or "quiet"
  end
end

local function number_of(value) return is_value(value) and tonumber(value) end

local function percent_of(job)
  local percent = number_of(job.PercentComplete)
  if job.phase ~= "running" then return nil end
  local total, done = number_of(job.bytes_total), number_of(job.bytes_done)
  if total and done and total > 0 then percent = done * 100 // total end
  return percent and math.max(0, math.min(100, percent // 1 | 0))
end

-- "in 2:13:05", or for how long it has been due.
local function due_of(job, now_us)
  if job.phase ~= "waiting" and job.phase ~= "backoff" or not job.due_us then
    return ""
  end
  local seconds = (job.due_us - now_us) / 1e6
  if seconds < 0.5 then return "now" end
  return "in " .. text.duration(seconds)
end

local columns = {
  { id = "name", title = "NAME", value = function(job)
      return text.printable(job.Name or "?")
    end },
  { id = "state", title = "STATE", keep = 1, value = state_of },
  { id = "bar", title = "PROGRESS", keep = 5 },
  { id = "percent", title = "%", keep = 2, is_right = true,
    value = function(job)
      local percent = percent_of(job)
      return percent and ("%d"):format(percent) or ""
    end },
  { id = "rate", title = "RATE", keep = 4, is_right = true,
    value = function(job)
      local rate = number_of(job.rate)
      return job.phase == "running" and rate and rate > 0
        and text.bytes(rate) .. "/s" or ""
    end },
  { id = "left", title = "LEFT", keep = 3, is_right = true,
    value = function(job)
      local eta = number_of(job.eta)
      return job.phase == "running" and eta and text.duration(eta) or ""
    end },
  { id = "bytes", title = "DONE", keep = 7, is_right = true,
    value = function(job)
      local done = number_of(job.bytes_done)
      return job.phase == "running" and done and text.bytes(done) or ""
    end },
  { id = "queue", title = "QUEUE", keep = 8, value = function(job)
      return text.printable(is_value(job.queue) and job.queue or "")
    end },
  { id = "due", title = "NEXT", keep = 6, is_right = true, value = due_of },
}

-- ---- order ---------------------------------------------------------------------------

top.sorts = { "state", "progress", "name", "due", "queue" }

local keys_of = {
  state = function(job)
    return ranks[job.phase] or 9, job.due_us or math.maxinteger
  end,
  progress = function(job) return -(percent_of(job) or -1), 0 end,
  name = function() return 0, 0 end,
  due = function(job) return job.due_us or math.maxinteger, 0 end,
  queue = function(job) return tostring(job.queue), ranks[job.phase] or 9 end,
}

-- A new list; of equal ones the order is that of names, then of ids.
function top.sorted(jobs, sort)
  local key = keys_of[sort]
  local list = {}
  for i, job in ipairs(jobs) do
    local first, second = key(job)
    list[i] = { first, second, tostring(job.Name), tostring(job.InstanceID),
      job = job }
  end
  table.sort(list, function(a, b)
    for i = 1, 4 do
      if a[i] ~= b[i] then return a[i] < b[i] end
    end
    return false
  end)
  for i, entry in ipairs(list) do list[i] = entry.job end
  return list
end

-- ---- lines ---------------------------------------------------------------------------

local colours = { active = "\27[32m", attention = "\27[33m", bad = "\27[31m",
  quiet = "\27[2m" }
local RESET, REVERSE = "\27[0m", "\27[7m"

local function bar(percent, width, style)
  if not percent then return (" "):rep(width) end
  local inner = width - 2
  local full = percent * inner // 100
  if style.unicode then
    return " " .. ("━"):rep(full) .. ("─"):rep(inner - full) .. " "
  end
  return "[" .. ("="):rep(full) .. (" "):rep(inner - full) .. "]"
end

-- Which columns there is room for, and how wide each is. width nil: as wide as
-- it takes.
local function layout(rows, width)
  local shown, widths = {}, {}
  for i, column in ipairs(columns) do
    if column.id == "bar" then
      widths[i] = BAR_MIN
    else
      widths[i] = #column.title
      for _, row in ipairs(rows) do
        widths[i] = math.max(widths[i], text.width(row[i]))
      end
    end
    shown[i] = true
  end
  local names = widths[1]
  widths[1] = math.min(names, NAME_MIN)
  -- a column with nothing in it says nothing
  for i, column in ipairs(columns) do
    local is_empty = column.id ~= "bar" and column.id ~= "name"
    for _, row in ipairs(rows) do is_empty = is_empty and row[i] == "" end
    if column.id == "bar" then
      local percents = {}
      for _, row in ipairs(rows) do percents[#percents + 1] = row.percent end
      is_empty = #percents == 0
    end
    if is_empty then shown[i] = false end
  end
  local function used()
    local sum, count = 0, 0
    for i in ipairs(columns) do
      if shown[i] then sum, count = sum + widths[i], count + 1 end
    end
    return sum + 2 * (count - 1)
  end
  while width and used() > width do
    local last
    for i, column in ipairs(columns) do
      if shown[i] and column.keep
        and (not last or column.keep > columns[last].keep) then
        last = i
      end
    end
    if not last then break end
    shown[last] = false
  end
  local spare = width and math.max(0, width - used()) or math.maxinteger
  local more = math.min(spare, names - widths[1])
  widths[1], spare = widths[1] + more, spare - more
  for i, column in ipairs(columns) do
    if column.id == "bar" and shown[i] then
      widths[i] = widths[i] + math.min(spare, width and BAR_MAX - BAR_MIN
        or BAR_MIN)
    end
  end
  if width then widths[1] = math.min(widths[1], width) end
  return shown, widths
end

local function row_line(cells, shown, widths, style)
  local out, last = {}, nil
  for i, column in ipairs(columns) do
    if shown[i] then
      local cell = cells[i]
      if column.is_right then
        cell = text.pad_left(cell, widths[i])
      else
        cell = text.fit(cell, widths[i], style.unicode and "…" or "~")
      end
      out[#out + 1] = cell
      last = cell
    end
  end
  return last and (table.concat(out, "  "):gsub(" +$", "")) or ""
end

local function summary_of(view)
  local count = {}
  for _, job in ipairs(view.jobs) do
    count[job.phase or "?"] = (count[job.phase or "?"] or 0) + 1
  end
  local parts = {}
  for _, phase in ipairs { "running", "queued", "backoff", "waiting", "held",
    "done" } do
    if count[phase] then
      parts[#parts + 1] = ("%d %s"):format(count[phase], phase)
    end
  end
  return ("cairn %s: %s%s"):format(text.printable(view.version or "?"),
    text.count(#view.jobs, "job"), parts[1] and " (" .. table.concat(parts,
    ", ") .. ")" or "")
end

local function queues_of(view)
  local parts = {}
  for _, queue in ipairs(view.queues or {}) do
    parts[#parts + 1] = ("%s %d/%d%s"):format(text.printable(queue.Name or "?"),
      queue.running or 0, queue.concurrency or 0, (queue.queued or 0) > 0
        and (" +%d"):format(queue.queued) or "")
  end
  return parts[1] and "queues: " .. table.concat(parts, ", ") or ""
end

-- render(view, width, height, style) -> lines, of at most `width` columns and
-- `height` many (nil: no limit), and how far it is scrolled.
--   view: jobs (as the service tells them, and due_us), queues, version, now_us,
--   sort, offset (rows left out at the top), problem (a text), store_error,
--   keys (whether to tell what the keys do). style: unicode, colour.
function top.render(view, width, height, style)
  local jobs = top.sorted(view.jobs, view.sort or "state")
  local rows = {}
  for i, job in ipairs(jobs) do
    local row = { percent = percent_of(job), mood = mood_of(job) }
    for k, column in ipairs(columns) do
      row[k] = column.value and column.value(job, view.now_us) or ""
    end
    rows[i] = row
  end
  local head, foot = { summary_of(view) }, {}
  local queues = queues_of(view)
  if queues ~= "" then head[#head + 1] = queues end
  if view.store_error then
    head[#head + 1] = "THE STORE FAILS, nothing starts: "
      .. text.printable(view.store_error)
  end
  if view.problem then head[#head + 1] = text.printable(view.problem) end
  if view.keys then
    foot[1] = ("%sq quit  s sort: %s  p %s  %s scroll"):format(
      view.is_paused and "PAUSED  " or "", view.sort or "state",
      view.is_paused and "go on" or "pause", style.unicode and "↑↓"
      or "arrows")
  end
  local room = height and height - #head - #foot - 1 or #rows
  if height and room < 1 then -- what is most wanted
    head, foot = { head[#head] }, {}
    room = math.max(0, height - 2)
  end
  local offset = math.max(0, math.min(view.offset or 0, #rows - room))
  local seen = table.move(rows, offset + 1, math.min(#rows, offset + room), 1,
    {})
  -- by all rows, so that nothing moves when they are scrolled
  local shown, widths = layout(rows, width)
  local lines = {}
  local function add(line, before)
    if width then line = (text.cut(line, width)) end
    if before and style.colour and line ~= "" then
      line = before .. line .. RESET
    end
    lines[#lines + 1] = line
  end
  for i, line in ipairs(head) do
    add(line, i > 1 and (view.store_error or view.problem) and i == #head
      and "\27[31m" or nil)
  end
  if #rows == 0 then
    add "no jobs"
  elseif not height or height > 1 then
    local titles = {}
    for i, column in ipairs(columns) do titles[i] = column.title end
    local line = row_line(titles, shown, widths, style)
    if width and style.colour then line = text.fit(line, width, "") end
    add(line, REVERSE)
  end
  for _, row in ipairs(seen) do
    for i, column in ipairs(columns) do
      if column.id == "bar" then row[i] = bar(row.percent, widths[i], style) end
    end
    add(row_line(row, shown, widths, style), colours[row.mood])
  end
  local left = #rows - offset - #seen
  if foot[1] then
    if left > 0 or offset > 0 then
      foot[1] = ("%d-%d of %d  %s"):format(math.min(offset + 1, #rows),
        offset + #seen, #rows, foot[1])
    end
    if height then
      for _ = #lines + 2, height do lines[#lines + 1] = "" end
    end
    add(foot[1], colours.quiet)
  end
  if height then
    for i = #lines, height + 1, -1 do lines[i] = nil end
  end
  return lines, offset
end

-- ---- views from the service ------------------------------------------------------------

-- When a job is due, in Unix microseconds, or nil.
local function due_us_of(cairn, job)
  if not is_value(job.ScheduledStartTime) then return nil end
  local ok, t = pcall(cairn.datetime, job.ScheduledStartTime)
  return ok and t.kind == "timestamp" and t.microseconds > 0
    and t.microseconds or nil
end

-- view | nil, message, exit
local function fetch(cairn, c)
  local view = { jobs = {}, version = c.server.version }
  local function ask(call, arguments)
    local result, message, _, exit = c:request({ call = call,
      arguments = arguments }, { timeout = TIMEOUT_S })
    if result == nil then return nil, message, exit end
    return result
  end
  local hello, message, exit = ask "hello"
  if not hello then return nil, message, exit end
  view.store_error = is_value(hello.store_error) and hello.store_error or nil
  view.queues, message, exit = ask "queues"
  if not view.queues then return nil, message, exit end
  local after = 0
  repeat
    local page
    page, message, exit = ask("jobs", { after = after })
    if not page then return nil, message, exit end
    for _, job in ipairs(page.jobs) do
      job.due_us = due_us_of(cairn, job)
      view.jobs[#view.jobs + 1] = job
    end
    after = number_of(page.next)
  until not after
  return view
end

local function now_us(uv)
  local seconds, us = uv.gettimeofday()
  return seconds * 1000000 + us
end

-- ---- the terminal ------------------------------------------------------------------------

local ENTER, LEAVE = "\27[?1049h\27[?25l", "\27[?25h\27[?1049l"
local BEGIN, END = "\27[?2026h\27[H", "\27[J\27[?2026l"

local Screen = {}
Screen.__index = Screen

local function size_of(tty)
  local width, height = tty:get_winsize()
  if not width or width == 0 or not height or height == 0 then return 80, 24 end
  return width, height
end

function Screen:draw()
  local width, height = size_of(self.tty)
  local view = self.view
  view.sort, view.offset, view.keys = self.sort, self.offset, true
  view.is_paused, view.problem = self.is_paused, self.problem
  if not self.is_paused then view.now_us = now_us(self.uv) end
  local lines
  -- the last column stays free: some terminals wrap when it is written
  lines, self.offset = top.render(view, math.max(1, width - 1), height,
    self.style)
  io.stdout:write(BEGIN, table.concat(lines, "\27[K\r\n"), "\27[K", END)
  io.stdout:flush()
end

local function index_of(list, wanted)
  for i, value in ipairs(list) do
    if value == wanted then return i end
  end
end

-- One key, by what a terminal sends for it.
function Screen:key(key)
  local _, height = size_of(self.tty)
  local page = math.max(1, height - 5)
  local moves = { ["\27[A"] = -1, ["\27OA"] = -1, k = -1, ["\27[B"] = 1,
    ["\27OB"] = 1, j = 1, ["\27[5~"] = -page, ["\27[6~"] = page,
    ["\27[H"] = -1000000, ["\27[1~"] = -1000000, g = -1000000,
    ["\27[F"] = 1000000, ["\27[4~"] = 1000000, G = 1000000 }
  if key == "q" or key == "Q" or key == "\3" or key == "\4" then
    self.is_over = true
  elseif moves[key] then
    self.offset = math.max(0, self.offset + moves[key])
  elseif key == "s" then
    self.sort = top.sorts[index_of(top.sorts, self.sort) % #top.sorts + 1]
    self.offset = 0
  elseif key == "p" then
    self.is_paused = not self.is_paused
  elseif key ~= " " then
    return
  else
    self.is_wanted = true
  end
end

-- The keys in what was typed: escape sequences whole, what is unknown singly.
function top.keys(data)
  local keys, at = {}, 1
  while at <= #data do
    local key = data:match("^\27%[[%d;]*[%a~]", at)
      or data:match("^\27O%a", at) or data:sub(at, at)
    keys[#keys + 1] = key
    at = at + #key
  end
  return keys
end

function Screen:open(uv, handles)
  io.stdout:write(ENTER)
  io.stdout:flush()
  signals.set_cursor(true)
  self.input = uv.guess_handle(0) == "tty" and say.tty(uv, 0, true) or nil
  if self.input then
    self.input:set_mode(1)
    self.input:read_start(function(_, data)
      if not data then
        self.is_over = true
        return
      end
      for _, key in ipairs(top.keys(data)) do self:key(key) end
      if not self.is_over then self:draw() end
    end)
    handles[#handles + 1] = self.input
  end
  local winch = uv.new_signal()
  winch:start("sigwinch", function() self:draw() end)
  handles[#handles + 1] = winch
  for _, handle in ipairs(signals.watch(uv, function(name)
    self.is_over, self.signal = true, name
  end)) do
    handles[#handles + 1] = handle
  end
end

function Screen:close(uv, handles)
  if self.input then self.input:set_mode(0) end
  for _, handle in ipairs(handles) do
    if not handle:is_closing() then handle:close() end
  end
  uv.run "nowait"
  io.stdout:write(LEAVE)
  io.stdout:flush()
  signals.set_cursor(false)
end

-- Waits, with the keyboard alive, until it is time to ask again.
function Screen:wait(uv, seconds)
  local timer, is_due = uv.new_timer(), false
  timer:start(math.max(1, seconds * 1000 // 1 | 0), 0, function()
    is_due = true
  end)
  while not is_due and not self.is_over and not self.is_wanted do
    uv.run "once"
  end
  timer:close()
  self.is_wanted = false
end

-- Until somebody quits. A service that goes away is looked for again.
function Screen:run(cairn, uv, c, path, interval)
  while not self.is_over do
    if not self.is_paused then
      local view, message
      if c then view, message = fetch(cairn, c) end
      if view then
        self.view, self.problem = view, nil
      else
        self.problem = message or self.problem
        if c then c:close() end
        c, message = client.connect(uv, path, { timeout = 2 })
        if not c then self.problem = message end
        self.is_wanted = c ~= nil
      end
    end
    if self.is_over then break end
    self:draw()
    self:wait(uv, interval)
  end
  if c then c:close() end
end

-- ---- the command -----------------------------------------------------------------------

local function print_once(cairn, uv, c, options)
  local view, message, exit = fetch(cairn, c)
  c:close()
  if not view then say.fail(exit or 3, "%s", text.printable_lines(message)) end
  if options.json then
    for _, job in ipairs(top.sorted(view.jobs, options.sort or "state")) do
      job.due_us = nil
      say.result(remote.json_of(cairn, job))
    end
    return 0
  end
  view.now_us, view.sort = now_us(uv), options.sort
  for _, line in ipairs((top.render(view, nil, nil, { unicode = false }))) do
    say.result(line)
  end
  return 0
end

function top.top(cairn, uv, options)
  local c = remote.connect(uv, options)
  local terminal = say.terminal(uv, 1)
  if options.once or options.json or not terminal then
    return print_once(cairn, uv, c, options)
  end
  local view, message, exit = fetch(cairn, c)
  if not view then
    c:close()
    say.fail(exit or 3, "%s", text.printable_lines(message))
  end
  local tty = assert(say.tty(uv, 1, false))
  local handles = { tty }
  local screen = setmetatable({ uv = uv, tty = tty, view = view, offset = 0,
    sort = options.sort or "state", style = terminal, is_over = false },
    Screen)
  screen:open(uv, handles)
  local ok, err = xpcall(screen.run, debug.traceback, screen, cairn, uv, c,
    c.path, tonumber(options.interval) or 1)
  screen:close(uv, handles)
  if not ok then error(err, 0) end
  return 0
end

return top
