-- cairn export, import, points, verify, restore, merge, prune: exports on disk.

local core = require "cairn.core"
local failure = require "cairn.failure"
local say = require "cairn.cli.say"
local session = require "cairn.cli.session"
local summary = require "cairn.cli.summary"
local text = require "cairn.cli.text"

local exports = {}

-- ---- arguments --------------------------------------------------------------------

-- Absolute, so that nothing depends on when a path is used; the file itself
-- need not exist.
local function absolute(uv, path)
  if path:sub(1, 1) == "/" then return path end
  local cwd, message = uv.cwd()
  if not cwd then
    say.fail(3, "cannot find the working directory: %s", message)
  end
  return cwd .. "/" .. path
end

local function last_part(path) return path:match("([^/]+)/*$") or path end

-- The collection that a Lua file returns. Its relative paths are relative to
-- the file, which cairn.collection sees to.
local function load_collection(cairn, path)
  local source, message, code = core.read_script(path, "the collection")
  if not source then say.fail_with(cairn, message, code) end
  local chunk
  chunk, message = load(source, "@" .. path, "t")
  if not chunk then
    say.fail(2, "syntax error in the collection: %s",
      text.printable_lines(message))
  end
  local ok, collection = pcall(chunk, path)
  if not ok then
    say.fail(2, "the collection raised an error: %s",
      text.printable_lines(failure.text(collection)))
  end
  if type(collection) ~= "table" then
    say.fail(2, "%s returns a %s; it must return cairn.collection{...}",
      text.printable(path), type(collection))
  end
  -- A plain table is completed as cairn.collection would have done it; what
  -- has been through it comes out unchanged.
  ok, collection, message, code = pcall(cairn.collection_from, collection,
    path)
  if not ok then
    say.fail(2, "%s: %s", text.printable(path), text.printable_lines(
      collection))
  elseif not collection then
    say.fail_with(cairn, message, code)
  end
  return collection
end

-- DIR[/ID] taken apart: a directory that exists and holds no manifest is an
-- export directory; else the last part is a point's id.
local function split_target(uv, target, needs_point)
  local path = target:gsub("(.)/+$", "%1")
  local stat = uv.fs_stat(path)
  local is_point = uv.fs_stat(path .. "/manifest.json") ~= nil
  if stat and stat.type == "directory" and not is_point then
    if needs_point then
      say.fail(2, "%s names an export directory; a point in it is needed: "
        .. "DIR/ID (cairn points %s lists them)", text.printable(target),
        text.printable(target))
    end
    return path, nil
  end
  local directory, id = absolute(uv, path):match("^(.*)/([^/]+)$")
  if directory == "" then directory = "/" end
  local parent, message, name = uv.fs_stat(directory)
  if name == "EACCES" then
    say.fail(3, "cannot look at %s: %s", text.printable(target),
      text.printable(message))
  elseif not parent or parent.type ~= "directory" then
    say.fail(2, "there is no directory %s", text.printable(directory))
  elseif stat and not is_point then
    say.fail(2, "%s is not a directory", text.printable(target))
  elseif not is_point and not id:find("^{?[%x-]+}?$") then
    say.fail(2, "there is no directory %s, nor is %s the id of a point",
      text.printable(target), text.printable(id))
  end
  return directory, id
end

-- What is wrong with the request itself is said before a job exists; damage is
-- left to the job, which reports it.
local is_request_error = { not_found = true, ambiguous = true,
  not_an_export = true, bad_path = true, invalid_argument = true,
  exists = true,
  permission_denied = true, version = true,
  wrong_type = true, unknown_key = true }

local function run_reporting(cairn, uv, spec)
  local engine, message, code = cairn.open { store = ":memory:" }
  if not engine then say.fail_with(cairn, message, code) end
  local plan
  plan, message, code = engine:plan(spec)
  engine:close { mode = "kill", timeout = 1 }
  if not plan and is_request_error[code] then
    say.fail_with(cairn, message, code)
  end
  local outcomes, exit = session.run({ cairn = cairn, uv = uv }, { spec })
  return outcomes[1], exit
end

-- ---- streams ----------------------------------------------------------------------

local not_with_stream = { "collection", "to", "format", "digest" }
local only_with_stream = { "vm", "disk", "output" }

local function refuse_options(options, names, what)
  for _, name in ipairs(names) do
    if options[name] ~= nil then say.fail(2, "--%s %s", name, what) end
  end
end

local function refuse_terminal(uv, descriptor, what)
  if uv.guess_handle(descriptor) == "tty" then
    say.fail(2, "%s is a terminal; a stream is binary: %s", descriptor == 0
      and "standard input" or "standard output", what)
  end
end

-- What the stream had, on a stream that is not in the way.
local function print_streamed(cairn, options, outcome)
  local report = outcome.report or {}
  report.JobState = outcome.state
  if options.json then return say.json(cairn, report) end
  local put = options.output and say.result or say.note
  if session.is_well(outcome) then
    put(("disk %s of point %s since %s: %s of data, %s of zeros, %s"):format(
      report.disk, report.ReferencePointGroupId,
      report.BaseReferencePointGroupId or "nothing",
      text.bytes(report.bytes_data), text.bytes(report.bytes_zero),
      text.count(report.records, "record")))
  end
  put(summary.line(outcome))
end

local function stream(cairn, uv, options)
  refuse_options(options, not_with_stream, "does not go with --stream")
  local directory, id = split_target(uv, options.stream, true)
  local spec = {
    Name = options.name or "stream " .. last_part(options.stream),
    once = true,
    stream = {
      directory = absolute(uv, directory),
      point = id,
      machine = options.vm,
      disk = options.disk,
      base = options.base,
      output = options.output and absolute(uv, options.output) or 1,
    },
  }
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  if not options.output then
    refuse_terminal(uv, 1, "redirect it, or give --output FILE")
    if options.json then
      say.fail(2, "--json prints on standard output, where the stream goes; "
        .. "give --output FILE")
    end
  end
  local outcome, exit = run_reporting(cairn, uv, spec)
  print_streamed(cairn, options, outcome)
  return exit
end

function exports.import(cairn, uv, options)
  local is_standard = options.file == "-"
  local spec = {
    Name = options.name or "import " .. (is_standard and "standard input"
      or last_part(options.file)),
    once = true,
    import = {
      input = is_standard and 0 or absolute(uv, options.file),
      directory = absolute(uv, options.to),
      collection = load_collection(cairn, options.collection),
      machine = options.vm,
      disk = options.disk,
      base = options.base,
      format = options.format,
      digest = options.digest,
    },
  }
  if is_standard then
    refuse_terminal(uv, 0, "redirect it, or name a file")
  end
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  local outcomes, exit = session.run({ cairn = cairn, uv = uv }, { spec })
  if options.json then
    say.result(outcomes[1].json(options.numbers))
  else
    say.result(summary.line(outcomes[1]))
  end
  return exit
end

-- ---- export -----------------------------------------------------------------------

function exports.export(cairn, uv, options)
  if options.stream then return stream(cairn, uv, options) end
  refuse_options(options, only_with_stream, "is for --stream only")
  local collection = load_collection(cairn, options.collection)
  local spec = {
    Name = options.name or ("export %s"):format(collection.ElementName
      or collection.CollectionId or "collection"),
    once = true,
    export = {
      collection = collection,
      directory = absolute(uv, options.to),
      base = options.base,
      format = options.format,
      digest = options.digest,
      on_disk_error = options.on_disk_error,
      tracker = options.tracker,
      depth_limit = options.depth_limit and math.tointeger(
        options.depth_limit),
      resume = not options.no_resume,
    },
  }
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  local outcomes, exit = session.run({ cairn = cairn, uv = uv }, { spec })
  if options.json then
    say.result(outcomes[1].json(options.numbers))
  else
    say.result(summary.line(outcomes[1]))
  end
  return exit
end

-- ---- points -----------------------------------------------------------------------

local function sum_of(point)
  local disks, bytes = 0, 0
  for _, file in ipairs(point.files or {}) do
    if file.role == "disk" or file.role == "log" then disks = disks + 1 end
    bytes = bytes + (file.size or 0)
  end
  if point.kind == "marker" then disks = #point.disks end
  return #(point.machines or {}), disks, bytes
end

-- 2025-01-31 02:00:00+00:00 from a CIM datetime
local function readable_time(time)
  local y, mo, d, h, mi, s, sign, offset = tostring(time):match(
    "^(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)(%d%d)%.%d+([+-])(%d%d%d)$")
  if not y then return text.printable(time or "?") end
  offset = math.tointeger(offset)
  return ("%s-%s-%s %s:%s:%s%s%02d:%02d"):format(y, mo, d, h, mi, s, sign,
    offset // 60, offset % 60)
end

function exports.points(cairn, uv, options)
  local points, message, code = cairn.points(absolute(uv, options.directory))
  if not points then say.fail_with(cairn, message, code) end
  local rows, damaged = {}, 0
  for i, point in ipairs(points) do
    local machines, disks, bytes = sum_of(point)
    if point.error then
      damaged = damaged + 1
      local why = type(point.error) == "table" and point.error.message
        or point.error
      say.note(("cairn: %s: %s"):format(text.printable(point.directory
        or point.ReferencePointGroupId), text.printable_lines(why)))
    end
    if point.remark then
      say.note(("cairn: %s: %s"):format(text.printable(point.directory),
        text.printable_lines(point.remark)))
    end
    if options.json then
      say.result(assert(cairn.json_encode {
        ReferencePointGroupId = point.ReferencePointGroupId,
        BaseReferencePointGroupId = point.BaseReferencePointGroupId
          or cairn.null,
        CollectionId = point.CollectionId or cairn.null,
        ElementName = point.ElementName,
        sequence = point.sequence, generation = point.generation,
        time = point.time, directory = point.directory, kind = point.kind,
        has_associated_data = point.has_associated_data,
        algorithm = point.algorithm,
        machine_count = not point.error and machines or nil,
        disk_count = not point.error and disks or nil,
        bytes = not point.error and bytes or nil,
        error = point.error, remark = point.remark,
      }))
    elseif point.error then
      rows[i] = { text.printable(point.ReferencePointGroupId or "?"),
        "damaged", "", "", "", "", "", "" }
    else
      rows[i] = { point.ReferencePointGroupId, readable_time(point.time),
        tostring(point.sequence), tostring(machines), tostring(disks),
        point.kind == "marker" and "-" or text.bytes(bytes),
        (point.kind or "export") .. (point.has_associated_data and "+" or ""),
        point.BaseReferencePointGroupId or "-" }
    end
  end
  if not options.json then
    if #points == 0 then
      say.note(("%s holds no reference point"):format(
        text.printable(options.directory)))
    else
      for _, line in ipairs(text.table({
        { title = "ID" }, { title = "TIME" },
        { title = "SEQ", is_number = true },
        { title = "MACHINES", is_number = true },
        { title = "DISKS", is_number = true },
        { title = "SIZE", is_number = true }, { title = "KIND" },
        { title = "BASE" } }, rows)) do
        say.result(line)
      end
    end
  end
  return damaged > 0 and 1 or 0
end

-- ---- verify -----------------------------------------------------------------------

-- Where something is: machine, disk, file, offset.
local function place_of(finding)
  local parts = {}
  for _, name in ipairs { "machine", "disk", "file", "offset" } do
    local value = finding[name]
    if value ~= nil and value ~= "" then
      parts[#parts + 1] = name .. " " .. text.printable(value)
    end
  end
  return table.concat(parts, ", ")
end

local function findings_of(point)
  local lines = {}
  for _, finding in ipairs(point.findings or {}) do
    lines[#lines + 1] = ("  %s: %s"):format(place_of(finding),
      text.printable_lines(finding.what))
  end
  if (point.findings_left_out or 0) > 0 then
    lines[#lines + 1] = ("  ... and %d more"):format(point.findings_left_out)
  end
  for _, disk in ipairs(point.source or {}) do
    lines[#lines + 1] = ("  source of %s: %s%s"):format(place_of {
      machine = disk.machine, disk = disk.disk }, disk.result,
      disk.what and ": " .. text.printable_lines(disk.what) or "")
  end
  return lines
end

-- One line a point with what was found, then the job's.
local function print_verified(cairn, options, outcome)
  local points = outcome.report and outcome.report.points or {}
  for _, point in ipairs(points) do
    if options.json then
      say.json(cairn, point, { findings = true, source = true })
    else
      say.result(("%s: %s (%s: %s, %s)"):format(point.ReferencePointGroupId,
        point.result, point.depth, text.count(point.files or 0, "file"),
        text.bytes(point.bytes or 0)))
      for _, line in ipairs(findings_of(point)) do say.result(line) end
    end
  end
  if not options.json then say.result(summary.line(outcome)) end
end

function exports.verify(cairn, uv, options)
  local directory, id = split_target(uv, options.target, false)
  local outcome, exit = run_reporting(cairn, uv, {
    Name = "verify " .. last_part(options.target),
    once = true,
    verify = {
      directory = absolute(uv, directory),
      point = id,
      depth = options.depth,
      source = options.source and load_collection(cairn, options.source)
        or nil,
    },
  })
  print_verified(cairn, options, outcome)
  return exit
end

-- ---- restore ----------------------------------------------------------------------

-- The files that were written and those that were not, then the job.
local function print_restored(cairn, options, outcome)
  local report = outcome.report or {}
  if options.json then
    report.JobState = outcome.state
    say.json(cairn, report, { files = true, not_written = true })
    return
  end
  for _, file in ipairs(report.files or {}) do
    say.result(("%s (%s)"):format(text.printable(file.path),
      text.bytes(file.length or 0)))
  end
  for _, path in ipairs(report.not_written or {}) do
    say.result(("not written: %s"):format(text.printable(path)))
  end
  if #(report.not_written or {}) > 0 and #(report.files or {}) > 0 then
    say.result(("%s of %d written; to repeat the restore there, remove them "
      .. "or give --overwrite"):format(text.count(#report.files, "file"),
      #report.files + #report.not_written))
  end
  say.result(summary.line(outcome))
end

function exports.restore(cairn, uv, options)
  local directory, id = split_target(uv, options.target, true)
  local spec = {
    Name = "restore " .. last_part(options.target),
    once = true,
    restore = {
      directory = absolute(uv, directory),
      point = id,
      to = absolute(uv, options.to),
      machine = options.vm,
      disk = options.disk,
      format = options.format,
      overwrite = options.overwrite,
    },
  }
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  local outcome, exit = run_reporting(cairn, uv, spec)
  print_restored(cairn, options, outcome)
  return exit
end

-- ---- merge ------------------------------------------------------------------------

local function print_merged(cairn, options, outcome)
  local report = outcome.report or {}
  if options.json then
    report.JobState = outcome.state
    say.json(cairn, report, { disks = true })
    return
  end
  for _, line in ipairs(summary.merged_disks(report.disks)) do
    say.result(line)
  end
  if report.is_changed == false and outcome.state:find "^Completed" then
    say.result(("%s is so already; nothing was written"):format(
      text.printable(report.path or report.directory)))
  elseif report.is_changed then
    say.result(text.printable(report.path))
  end
  say.result(summary.line(outcome))
end

function exports.merge(cairn, uv, options)
  local targets = { options.first, table.unpack(options.more) }
  local directory, ids = nil, {}
  for i, target in ipairs(targets) do
    local where
    where, ids[i] = split_target(uv, target, true)
    where = absolute(uv, where)
    local real = uv.fs_realpath(where) or where
    if directory and real ~= (uv.fs_realpath(directory) or directory) then
      say.fail(2, "%s and %s lie in different directories; a chain lies in one",
        text.printable(targets[1]), text.printable(target))
    end
    directory = directory or where
  end
  local spec = {
    Name = "merge " .. last_part(targets[#targets]),
    once = true,
    merge = {
      directory = directory,
      point = ids[#ids],
      into = #ids > 1 and ids[1] or nil,
      through = #ids > 2 and table.move(ids, 2, #ids - 1, 1, {}) or nil,
      to = options.to and absolute(uv, options.to) or nil,
    },
  }
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  local outcome, exit = run_reporting(cairn, uv, spec)
  print_merged(cairn, options, outcome)
  return exit
end

-- ---- prune ------------------------------------------------------------------------

local counts = { last = true, daily = true, weekly = true, monthly = true,
  yearly = true }
local rules = { "last", "daily", "weekly", "monthly", "yearly", "within",
  "id" }

-- "last=3,daily=7", ... -> { last = 3, daily = 7 }
local function read_keep(list)
  local keep = {}
  for _, words in ipairs(list) do
    for word in (words .. ","):gmatch "([^,]*)," do
      local name, value = word:match "^(%a+)=(.+)$"
      if not name then
        say.fail(2, "--keep wants RULE=VALUE, such as last=3, not %s",
          text.printable(word == "" and '""' or word))
      elseif counts[name] then
        local n = value:find "^%d+$" and math.tointeger(tonumber(value))
        if not n then
          say.fail(2, "--keep %s wants a number, not %s", name,
            text.printable(value))
        end
        keep[name] = n
      elseif name == "within" then
        keep.within = value
      elseif name == "id" then
        keep.ids = keep.ids or {}
        table.insert(keep.ids, value)
      else
        say.fail(2, "--keep has no rule %s%s", text.printable(name),
          text.valid(name, rules))
      end
    end
  end
  return keep
end

local function print_pruned(cairn, options, outcome)
  local report = outcome.report or {}
  if options.json then
    report.JobState = outcome.state
    say.json(cairn, report, summary.prune_lists)
    return
  end
  for _, line in ipairs(summary.pruned(report, false)) do say.result(line) end
  say.result(summary.line(outcome))
end

function exports.prune(cairn, uv, options)
  local directory = options.directory:gsub("(.)/+$", "%1")
  local spec = {
    Name = "prune " .. last_part(directory),
    once = true,
    prune = {
      directory = absolute(uv, directory),
      collection = options.collection,
      keep = read_keep(options.keep),
    },
  }
  if options.dry_run then return summary.plan(cairn, { spec }, options) end
  local outcome, exit = run_reporting(cairn, uv, spec)
  print_pruned(cairn, options, outcome)
  return exit
end

exports.absolute = absolute
exports.load_collection = load_collection

return exports
