-- cairn doctor: what may be wrong in an export directory.

local exports = require "cairn.cli.exports"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local doctor = {}

local function print_findings(report)
  for _, line in ipairs(report.fixed) do
    say.result("fixed: " .. text.printable_lines(line))
  end
  for _, finding in ipairs(report.findings) do
    say.result(("%s: %s: %s"):format(finding.what,
      text.printable(finding.subject), text.printable_lines(finding.text)))
    say.result("  to do: " .. text.printable_lines(finding.advice)
      .. (finding.is_fixable and " (--fix)" or ""))
  end
end

local function print_chains(report)
  local rows = {}
  for i, chain in ipairs(report.chains) do
    rows[i] = { chain.VirtualMachineId, text.printable(chain.disk),
      tostring(chain.depth), chain.ReferencePointGroupId }
  end
  if #rows == 0 then return end
  for _, line in ipairs(text.table({ { title = "MACHINE" }, { title = "DISK" },
    { title = "DEPTH", is_number = true }, { title = "NEWEST" } }, rows)) do
    say.result(line)
  end
end

-- One line a disk: what the next export does with it, and why.
local function print_next(report)
  for _, machine in ipairs(report.next and report.next.machines or {}) do
    for _, disk in ipairs(machine.disks) do
      local what = disk.base and ("an increment on %s, found by %s"):format(
        disk.base, disk.tracker) or "in full"
      say.result(("next export: disk %s of %s: %s%s"):format(
        text.printable(disk.id), machine.ElementName
          and text.printable(machine.ElementName) or machine.VirtualMachineId,
        what, disk.fallback and "; " .. text.printable_lines(disk.fallback)
          or ""))
    end
  end
end

function doctor.doctor(cairn, uv, options)
  local also = {}
  for i, directory in ipairs(options.also or {}) do
    also[i] = exports.absolute(uv, directory)
  end
  local report, message, code = cairn.doctor(
    exports.absolute(uv, options.directory), {
      fix = options.fix,
      also = #also > 0 and also or nil,
      collection = options.collection
        and exports.load_collection(cairn, options.collection) or nil })
  if not report then say.fail_with(cairn, message, code) end
  if options.json then
    say.result(assert(cairn.json_encode(report)))
  else
    print_findings(report)
    print_chains(report)
    print_next(report)
    say.result(("%d point%s, %d marker%s, %s free: %s"):format(
      report.point_count, report.point_count == 1 and "" or "s",
      report.marker_count, report.marker_count == 1 and "" or "s",
      text.bytes(report.free_bytes), #report.findings == 0 and "nothing found"
        or ("%d finding%s"):format(#report.findings,
          #report.findings == 1 and "" or "s")))
  end
  return #report.findings > 0 and 1 or 0
end

return doctor
