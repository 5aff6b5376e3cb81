-- The commands that ask a running service, over its control socket.

local client = require "cairn.client"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local remote = {}

local TIMEOUT_S = 60 -- a store on a busy disk may take its time

local function absolute(uv, path)
  return path:sub(1, 1) == "/" and path or uv.cwd() .. "/" .. path
end

-- A connection to the service that --socket or the environment names.
function remote.connect(uv, options)
  local path, message, _, exit = options.socket, nil, nil, nil
  if path then
    path = absolute(uv, path)
  else
    path, message, _, exit = client.default_socket(uv)
  end
  local c
  if path then c, message, _, exit = client.connect(uv, path) end
  if not c then
    say.fail(exit or 3, "%s", text.printable_lines(message))
  end
  return c
end

local function ask(c, call, arguments)
  local result, message, _, exit = c:request({ call = call,
    arguments = arguments }, { timeout = TIMEOUT_S })
  if result == nil then
    c:close()
    say.fail(exit or 1, "%s", text.printable_lines(message))
  end
  return result
end

-- One call on a connection of its own.
local function once(uv, options, call, arguments)
  local c = remote.connect(uv, options)
  local result = ask(c, call, arguments)
  c:close()
  return result
end

local function is_value(value, null) return value ~= nil and value ~= null end

-- "20261128050421.149478+060" as 2026-11-28 05:04:21 +01:00
local function time(cairn, value)
  if not is_value(value, cairn.null) then return "" end
  local y, mo, d, h, mi, s, sign, offset = tostring(value):match(
    "^(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)(%d%d)%.[%d%*]+([+-])(%d%d%d)$")
  if not y then return text.printable(value) end
  local minutes = math.tointeger(offset)
  return ("%s-%s-%s %s:%s:%s %s%02d:%02d"):format(y, mo, d, h, mi, s, sign,
    minutes // 60, minutes % 60)
end

-- Of a job that was started by hand ScheduledStartTime is all zeros.
local function next_run(cairn, job)
  local at = job.ScheduledStartTime
  if job.phase == "done" or tostring(at):find "^00000000000000" then return "" end
  return time(cairn, at)
end

local function guid(id) return (tostring(id):gsub("^Cairn:", "")) end

-- The beginnings of ids that a table shows: 8 digits where they tell all apart.
local function short_ids(ids)
  local count = {}
  for _, id in ipairs(ids) do
    local short = guid(id):sub(1, 8)
    count[short] = count[short] or {}
    count[short][id] = true
  end
  local out = {}
  for i, id in ipairs(ids) do
    local short = guid(id):sub(1, 8)
    local first = next(count[short])
    out[i] = next(count[short], first) == nil and short or guid(id)
  end
  return out
end

local function print_table(columns, rows)
  for _, line in ipairs(text.table(columns, rows)) do say.result(line) end
end

-- A job as JSON, in the order of the class; what is null has been lost on the
-- way, as in every Lua table.
local function json_of(cairn, job)
  local parts = {}
  for i, row in ipairs(cairn.properties) do
    local value = job[row.name]
    parts[i] = ('"%s":%s'):format(row.name, value == nil and "null"
      or assert(cairn.json_encode(value)))
  end
  return "{" .. table.concat(parts, ",") .. "}"
end
remote.json_of = json_of

-- All jobs of the service, as it tells them.
function remote.list(_, uv, options)
  local c = remote.connect(uv, options)
  local list, after = {}, 0
  repeat
    local page = ask(c, "jobs", { after = after })
    table.move(page.jobs, 1, #page.jobs, #list + 1, list)
    after = page.next
  until after == nil
  c:close()
  return list
end

-- ---- jobs ----------------------------------------------------------------------------

function remote.jobs(cairn, uv, options)
  local c = remote.connect(uv, options)
  local filter = { JobState = options.state, phase = options.phase,
    queue = options.queue, policy = options.policy }
  local list, after = {}, 0
  repeat
    local page = ask(c, "jobs", { filter = filter, name = options.name,
      after = after, numbers = options.json and options.numbers })
    for _, job in ipairs(page.jobs) do
      if options.json then
        say.result(json_of(cairn, job))
      else
        list[#list + 1] = job
      end
    end
    after = page.next
  until after == nil
  c:close()
  if options.json then return 0 end
  if #list == 0 then
    say.note("no job matches")
    return 0
  end
  local ids, rows = {}, {}
  for i, job in ipairs(list) do ids[i] = job.InstanceID end
  ids = short_ids(ids)
  for i, job in ipairs(list) do
    rows[i] = { ids[i], text.printable(job.Name), job.JobState, job.phase,
      is_value(job.PercentComplete, cairn.null)
        and tostring(job.PercentComplete) or "",
      next_run(cairn, job),
      text.printable(job.queue or ""), text.printable(job.policy or "") }
  end
  print_table({ { title = "ID" }, { title = "NAME" }, { title = "STATE" },
    { title = "PHASE" }, { title = "%", is_number = true },
    { title = "NEXT RUN" }, { title = "QUEUE" }, { title = "POLICY" } }, rows)
  return 0
end

local function print_properties(cairn, job)
  local width = 0
  for _, row in ipairs(cairn.properties) do
    if is_value(job[row.name], cairn.null) then
      width = math.max(width, #row.name)
    end
  end
  for _, row in ipairs(cairn.properties) do
    local value = job[row.name]
    if type(value) == "table" then
      local parts = {}
      for i, element in ipairs(value) do
        parts[i] = text.printable(element)
      end
      value = table.concat(parts, ", ")
    elseif row.type == "datetime" and is_value(value, cairn.null)
      and not row.is_interval then
      value = time(cairn, value)
    end
    if is_value(value, cairn.null) and value ~= "" then
      say.result(text.fit(row.name, width) .. "  " .. text.printable(value))
    end
  end
end

function remote.show(cairn, uv, options)
  local result = once(uv, options, "show", { job = options.id,
    numbers = options.json and options.numbers })
  if options.json then
    say.result(json_of(cairn, result.job))
    return 0
  end
  print_properties(cairn, result.job)
  if result.query then
    say.result("It asks: " .. text.printable_lines(result.query.question))
    if type(result.query.choices) == "table" then
      local choices = {}
      for i, choice in ipairs(result.query.choices) do
        choices[i] = text.printable(choice)
      end
      say.result("  one of: " .. table.concat(choices, ", "))
    end
    say.result(("  cairn answer %s TEXT"):format(
      guid(result.job.InstanceID):sub(1, 8)))
  end
  for _, err in ipairs(result.errors or {}) do
    say.result(("[%s] %s"):format(err.MessageID or "?",
      text.printable_lines(err.Message or "unknown error")))
    local todo = err.RecommendedActions
    if type(todo) == "table" then todo = table.concat(todo, " ") end
    if is_value(todo, cairn.null) and todo ~= "" then
      say.result("  to do: " .. text.printable(todo))
    end
  end
  return 0
end

function remote.why(cairn, uv, options)
  local result = once(uv, options, "why", { job = options.id })
  if options.json then
    say.json(cairn, result, {})
  else
    say.result(text.printable_lines(result.text))
  end
  return 0
end

local function print_history(cairn, list)
  local ids, rows = {}, {}
  for i, record in ipairs(list) do ids[i] = record.InstanceID end
  ids = short_ids(ids)
  for i, record in ipairs(list) do
    local what = record.JobState or ""
    if record.skipped then
      what = ("%s skipped: %s"):format(text.count(record.skipped, "time"),
        record.reason or "")
    elseif is_value(record.ErrorDescription, cairn.null) then
      what = what .. ": " .. record.ErrorDescription
    elseif not is_value(record.warnings, cairn.null)
      and record.lost_warnings > 0 then
      what = ("%s: %d that could not be kept"):format(what,
        record.lost_warnings)
    elseif is_value(record.warnings, cairn.null) then
      local more = #record.warnings - 1 + record.lost_warnings
      what = ("%s: %s%s"):format(what, record.warnings[1], more > 0
        and (" (and %d more)"):format(more) or "")
    end
    rows[i] = { ids[i], text.printable(record.Name or ""),
      record.run_number and tostring(record.run_number) or "",
      time(cairn, record.StartTime or record.due or record.time),
      record.bytes_done and record.bytes_done > 0
        and text.bytes(record.bytes_done) or "",
      text.printable(what) }
  end
  print_table({ { title = "ID" }, { title = "NAME" },
    { title = "RUN", is_number = true }, { title = "BEGAN" },
    { title = "BYTES", is_number = true }, { title = "RESULT" } }, rows)
end

function remote.history(cairn, uv, options)
  local c = remote.connect(uv, options)
  local list, after, id = {}, 0, options.id
  repeat
    local page = ask(c, "history", { job = id, after = after })
    for _, record in ipairs(page.records) do
      id = id and record.InstanceID -- whoever comes meanwhile
      if options.json then
        say.json(cairn, record, {})
      else
        list[#list + 1] = record
      end
    end
    after = page.next
  until after == nil
  c:close()
  if options.json then return 0 end
  if #list == 0 then
    say.note "no run has ended"
    return 0
  end
  print_history(cairn, list)
  return 0
end

-- ---- changes -------------------------------------------------------------------------

-- What a person wants to know of where a job is: "New" says nothing of one that
-- waits, "done" nothing beside how it ended.
local function state_of(job)
  if job.phase == "done" then return job.JobState end
  if job.JobState == "New" then return job.phase end
  return ("%s, %s"):format(job.JobState, job.phase)
end

local function changed(cairn, options, result, what)
  if options.json then
    say.json(cairn, result, {})
  else
    say.result(("%s (%s): %s"):format(text.printable(result.Name),
      guid(result.InstanceID):sub(1, 8), what or state_of(result)))
  end
  return 0
end

for _, name in ipairs { "start", "suspend", "resume", "terminate" } do
  remote[name] = function(cairn, uv, options)
    return changed(cairn, options, once(uv, options, name,
      { job = options.id }))
  end
end

function remote.kill(cairn, uv, options)
  return changed(cairn, options, once(uv, options, "kill",
    { job = options.id, delete = options.delete }))
end

function remote.answer(cairn, uv, options)
  return changed(cairn, options, once(uv, options, "answer",
    { job = options.id, text = options.text }))
end

function remote.delete(cairn, uv, options)
  return changed(cairn, options, once(uv, options, "delete",
    { job = options.id }), "deleted")
end

-- What K=V means for the property K. A name that is none goes as it is: the
-- service says which is the nearest.
local function value_of(cairn, name, value)
  local row
  for _, other in ipairs(cairn.properties) do
    if other.name == name then row = other end
  end
  if not row then return value end
  if row.type == "boolean" then
    if value == "true" then return true end
    if value == "false" then return false end
    say.fail(2, "set: %s=%s: true or false expected", name,
      text.printable(value))
  elseif row.type ~= "string" and row.type ~= "datetime" then
    local number = math.tointeger(value) or tonumber(value)
    if number then return number end
    if row.values then return value end
    say.fail(2, "set: %s=%s: a number expected (%s)", name,
      text.printable(value), row.type)
  end
  return value
end

function remote.set(cairn, uv, options)
  local properties, clear, seen = {}, {}, {}
  if #options.pairs == 0 then
    say.fail(2, "set: K=V is missing, such as Priority=3; K= unsets a property")
  end
  for _, pair in ipairs(options.pairs) do
    local name, value = pair:match "^([^=]+)=(.*)$"
    if not name then
      say.fail(2, "set: %s: K=V expected, such as Priority=3; K= unsets a "
        .. "property", text.printable(pair))
    elseif seen[name] then
      say.fail(2, "set: %s is given twice", text.printable(name))
    end
    seen[name] = true
    if value == "" then
      clear[#clear + 1] = name
    else
      properties[name] = value_of(cairn, name, value)
    end
  end
  return changed(cairn, options, once(uv, options, "set", { job = options.id,
    properties = properties, clear = #clear > 0 and clear or nil }))
end

-- ---- the service itself --------------------------------------------------------------

function remote.reload(cairn, uv, options)
  local result = once(uv, options, "reload")
  local failed = result.failed or {}
  if options.json then
    say.json(cairn, result, { failed = true, changes = true,
      differences = true })
  else
    say.result(("%s loaded"):format(text.count(result.loaded, "policy")
      :gsub("policys", "policies")))
    for _, change in ipairs(result.changes or {}) do
      for _, difference in ipairs(change.differences or {}) do
        say.result(("  %s: %s"):format(text.printable(change.name),
          text.printable(difference)))
      end
    end
    for _, row in ipairs(failed) do
      say.note(("cairn: %s: %s"):format(text.printable(row.file),
        text.printable_lines(row.message)))
    end
  end
  return #failed > 0 and 1 or 0
end

function remote.policies(cairn, uv, options)
  local list = once(uv, options, "policies")
  local rows, has_failed = {}, false
  for i, row in ipairs(list) do
    has_failed = has_failed or is_value(row.error, cairn.null)
    if options.json then
      say.json(cairn, row, {})
    else
      rows[i] = { text.printable(row.name or ""), row.version or "",
        ("%d"):format(row.jobs), is_value(row.loaded_at, cairn.null)
          and os.date("%F %T", row.loaded_at) or "", text.printable(row.file) }
    end
  end
  if not options.json and #list > 0 then
    print_table({ { title = "NAME" }, { title = "VERSION" },
      { title = "JOBS", right = true }, { title = "LOADED" },
      { title = "FILE" } }, rows)
  end
  for _, row in ipairs(list) do
    if is_value(row.error, cairn.null) then
      say.note(("cairn: %s: not loaded: %s"):format(text.printable(row.file),
        text.printable_lines(row.error)))
    end
  end
  return has_failed and 1 or 0
end

function remote.metrics(cairn, uv, options)
  local result = once(uv, options, "metrics")
  if options.json then
    say.json(cairn, result, {})
  else
    say.result((result.text:gsub("\n$", "")))
  end
  return 0
end

return remote
