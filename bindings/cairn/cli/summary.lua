-- What a job came to, and what it would do, in a few lines for people.

local policies = require "cairn.cli.policies"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local summary = {}

local function is_list(value) return type(value) == "table" and #value > 0 end

-- One line on a job that has ended.
function summary.line(outcome)
  local p = outcome.properties
  local parts = { outcome.state }
  if is_list(p.VirtualMachineId) then
    parts[#parts + 1] = text.count(#p.VirtualMachineId, "machine")
  end
  if is_list(p.ExportedDisks) then
    parts[#parts + 1] = text.count(#p.ExportedDisks, "disk")
  end
  if (p.bytes_done or 0) > 0 then
    parts[#parts + 1] = text.bytes(p.bytes_done)
  end
  local line = ("%s: %s in %s"):format(text.printable(outcome.name),
    table.concat(parts, ", "), text.took(outcome.seconds))
  if is_list(p.ExportedDisks) and p.ExportDirectory
    and p.ReferencePointGroupId then
    line = ("%s\n  %s/%s"):format(line, text.printable(p.ExportDirectory),
      p.ReferencePointGroupId)
  end
  return line
end

-- ---- dry runs -----------------------------------------------------------------

-- What is needed, also beside it for as long as it is made (work; nil: nothing).
local function needs(needed, work)
  return ("needs %s%s"):format(text.bytes(needed or 0), (work or 0) > 0
    and (" and %s while it is made"):format(text.bytes(work)) or "")
end

local function space(needed, free, has_space, work)
  return ("  %s, %s free%s"):format(needs(needed, work), text.bytes(free or 0),
    has_space == false and ": NOT ENOUGH" or "")
end

-- Plain data as indented lines "key: value", lists numbered by "-".
local function tree(value)
  local out = {}
  local function add(v, indent, head)
    if type(v) ~= "table" then
      local shown = text.printable(v)
      if math.type(v) == "integer" and v >= 1024
        and (head:find "bytes" or head:find "length" or head:find "size") then
        shown = ("%s (%s)"):format(shown, text.bytes(v))
      end
      out[#out + 1] = indent .. head .. shown
      return
    end
    local keys = {}
    for key in pairs(v) do keys[#keys + 1] = key end
    table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
    if head ~= "" and #keys > 0 and #v == 0 then
      out[#out + 1] = indent .. head:gsub(" $", "")
      indent = indent .. "  "
    elseif head ~= "" and #v > 0 then
      out[#out + 1] = indent .. head:gsub(" $", "")
    end
    if #v > 0 then
      for _, element in ipairs(v) do
        if type(element) == "table" then
          local first = #out + 1
          add(element, indent .. "    ", "")
          if out[first] then
            out[first] = indent .. "  - " .. out[first]:sub(#indent + 5)
          end
        else
          out[#out + 1] = indent .. "  - " .. text.printable(element)
        end
      end
      return
    end
    for _, key in ipairs(keys) do
      add(v[key], indent, text.printable(key) .. ": ")
    end
  end
  add(value, "  ", "")
  return out
end

local render = {}

function render.export(plan)
  local out = { ("  an export of %s as %s, base %s, %s, into %s%s"):format(
    text.printable(plan.ElementName or plan.CollectionId), plan.format,
    plan.base, plan.digest, text.printable(plan.directory),
    plan.is_new_directory and " (new)" or "") }
  for _, machine in ipairs(plan.machines or {}) do
    out[#out + 1] = ("  machine %s (%s)"):format(text.printable(
      machine.ElementName or "-"), machine.VirtualMachineId)
    for _, disk in ipairs(machine.disks or {}) do
      out[#out + 1] = ("    disk %s: %s, %s with %s of data, tracker %s: %s")
        :format(disk.id, disk.format, text.bytes(disk.length),
          text.bytes(disk.data_bytes), disk.tracker,
          text.printable(disk.path))
      if disk.base then
        out[#out + 1] = ("      since %s: %s changed, %s zeroed"):format(
          disk.base, text.bytes(disk.changed_bytes or 0),
          text.bytes(disk.zeroed_bytes or 0))
      end
    end
    for _, file in ipairs(machine.files or {}) do
      out[#out + 1] = ("    %s %s: %s"):format(file.role,
        text.bytes(file.size), text.printable(file.path))
    end
  end
  for _, warning in ipairs(plan.warnings or {}) do
    out[#out + 1] = "  warning: " .. text.printable_lines(warning)
  end
  if plan.resumes then
    out[#out + 1] = ("  goes on from %s, which holds %s"):format(plan.resumes,
      text.bytes(plan.kept_bytes))
  end
  out[#out + 1] = space(plan.target_bytes, plan.free_bytes, plan.has_space,
    plan.work_bytes)
  return out
end

function render.restore(plan)
  local out = { ("  a restore of point %s as %s"):format(
    plan.ReferencePointGroupId, plan.format) }
  for _, file in ipairs(plan.files or {}) do
    out[#out + 1] = ("    %s %s: %s%s"):format(file.role,
      text.bytes(file.length), text.printable(file.path),
      not file.exists and "" or plan.overwrite and " (replaces what is there)"
        or " (EXISTS: give --overwrite to replace it)")
  end
  out[#out + 1] = space(plan.bytes_to_write, plan.bytes_free, plan.has_space)
  return out
end

local become = { full = "a full", kept = "kept as it is" }

-- What becomes, or became, of the disks of a merged point.
function summary.merged_disks(disks)
  local out = {}
  for _, disk in ipairs(disks or {}) do
    out[#out + 1] = ("    disk %s/%s: %s%s"):format(disk.VirtualMachineId,
      disk.disk, become[disk.action]
        or ("an increment on %s"):format(disk.base),
      disk.action == "kept" and "" or (", %s from %s"):format(
        text.bytes(disk.bytes_written or disk.size),
        text.count(disk.layers, "layer")))
  end
  return out
end

function render.merge(plan)
  local out = { ("  a merge of point %s %s%s"):format(
    plan.ReferencePointGroupId, plan.into == "full" and "into a full"
      or "onto " .. plan.into,
    plan.to and ", into " .. text.printable(plan.to) or "") }
  table.move(summary.merged_disks(plan.disks), 1, #(plan.disks or {}), 2, out)
  if not plan.is_changed then
    out[#out + 1] = "  it is so already; nothing would be written"
  end
  out[#out + 1] = space(plan.bytes_to_write, plan.free_bytes, plan.has_space)
  return out
end

-- Members of a prune's report and plan that are lists.
summary.prune_lists = { kept = true, merged = true, removed = true,
  refused = true, left = true, disks = true, reasons = true }

-- A prune's report, or its plan, line by line.
function summary.pruned(report, is_plan)
  local out = {}
  for _, point in ipairs(report.kept or {}) do
    out[#out + 1] = ("  keep    %s (%s)"):format(text.printable(
      point.ReferencePointGroupId), text.printable(table.concat(
        point.reasons or {}, ", ")))
    if point.damage then
      out[#out + 1] = "    " .. text.printable_lines(point.damage)
    end
  end
  for _, point in ipairs(report.merged or {}) do
    out[#out + 1] = ("  %-7s %s"):format(is_plan and "merge" or "merged",
      point.ReferencePointGroupId)
    for _, line in ipairs(summary.merged_disks(point.disks)) do
      out[#out + 1] = line
    end
  end
  for _, point in ipairs(report.removed or {}) do
    out[#out + 1] = ("  %-7s %s (%s)"):format(is_plan and "remove"
      or "removed", point.ReferencePointGroupId, text.bytes(point.bytes))
  end
  for _, id in ipairs(report.left or {}) do
    out[#out + 1] = "  left    " .. id
  end
  for _, point in ipairs(report.refused or {}) do
    out[#out + 1] = ("  %s %s: %s"):format(point.what,
      text.printable(point.ReferencePointGroupId),
      text.printable_lines(point.error))
  end
  out[#out + 1] = ("  %s %s, %s %s"):format(is_plan and "frees" or "freed",
    text.bytes(report.bytes_freed or 0), is_plan and "writes" or "wrote",
    text.bytes(report.bytes_written or 0))
  return out
end

function render.prune(plan)
  local out = summary.pruned(plan, true)
  out[#out + 1] = space(plan.bytes_to_write, plan.free_bytes, plan.has_space)
  return out
end

function render.run() return { "  a Lua function" } end

-- Why a run of this plan is known to fail: nil, or exit code, message.
function summary.obstacle(plan)
  if plan.conflicts and #plan.conflicts > 0 and not plan.overwrite then
    return 2, ("%s exists%s; --overwrite replaces it"):format(
      text.printable(plan.conflicts[1]), #plan.conflicts > 1
      and (", and %d more"):format(#plan.conflicts - 1) or "")
  elseif plan.refused and #plan.refused > 0 then
    local first = plan.refused[1]
    return 1, ("%s %s: %s"):format(first.what, text.printable(
      first.ReferencePointGroupId), text.printable_lines(first.error))
  elseif plan.has_space == false then
    return 3, ("not enough space: %s, %s free"):format(
      needs(plan.target_bytes or plan.bytes_to_write, plan.work_bytes),
      text.bytes(plan.free_bytes or plan.bytes_free or 0))
  end
end

-- --dry-run: checks and plans every specification; nothing is written. Prints
-- one plan a job; the exit code, of the first that would fail.
function summary.plan(cairn, specs, options)
  local engine, message, code = cairn.open { store = ":memory:",
    queues = policies.queues(options.queue) }
  if not engine then say.fail_with(cairn, message, code) end
  local plans = {}
  for i, spec in ipairs(specs) do
    local ok, plan
    ok, plan, message, code = pcall(engine.plan, engine, spec)
    if not ok or not plan then
      engine:close { mode = "kill", timeout = 1 }
      if not ok then say.fail(2, "%s", text.printable_lines(plan)) end
      say.fail_with(cairn, message, code)
    end
    plans[i] = plan
    plan.Name = spec.Name
  end
  engine:close { mode = "kill", timeout = 1 }
  local exit = 0
  for _, plan in ipairs(plans) do
    if options.json then
      say.json(cairn, plan, { machines = true, files = true,
        disks = true, conflicts = true, points = true, kept = true,
        merged = true, removed = true, refused = true, left = true,
        reasons = true, warnings = true, ranges = true })
    else
      say.result(("%s would run:"):format(text.printable(plan.Name)))
      local lines = (render[plan.kind] or tree)(plan)
      for _, line in ipairs(lines) do say.result(line) end
    end
    code, message = summary.obstacle(plan)
    if code then
      say.note(("cairn: %s would fail: %s"):format(text.printable(plan.Name),
        message))
      if exit == 0 then exit = code end
    end
  end
  return exit
end

return summary
