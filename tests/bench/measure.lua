-- What the benchmarks share: running candidates in turn, timing them with the
-- memory of all their processes, medians, and files to work on.
--
-- A candidate is { name, argv, prepare }; ours comes first. Every run takes the
-- candidates one after the other, so that a busy machine is busy for all.

local uv = require "luv"

local measure = {}

local here = arg[0]:match("^(.*)/[^/]*$") or "."
local build = os.getenv("CAIRN_BUILD") or (here .. "/../../build")
measure.cairn = uv.fs_realpath(build .. "/bin/cairn")
measure.log = os.tmpname() -- what the last candidate printed

local program = arg[0]:match("[^/]*$")

function measure.fail(text, code)
  io.stderr:write(program, ": ", text, "\n")
  os.exit(code)
end

if not measure.cairn then
  measure.fail("no build/bin/cairn; build first", 3)
end

-- The values of options from the command line; `defaults` has all names, and
-- false for one that is not set.
function measure.options(defaults)
  local options, names = {}, {}
  for name, value in pairs(defaults) do
    options[name] = value
    names[#names + 1] = "[--" .. name .. " X]"
  end
  table.sort(names)
  for i = 1, #arg, 2 do
    local name = arg[i]:match("^%-%-(%a+)$")
    local value = arg[i + 1]
    if type(defaults[name]) == "number" then
      value = tonumber(value)
    end
    if not name or defaults[name] == nil or value == nil then
      measure.fail(("usage: %s %s"):format(program, table.concat(names, " ")), 2)
    end
    options[name] = value
  end
  return options
end

function measure.quote(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

function measure.sh(command)
  local ok, _, code = os.execute(command)
  if not ok then
    error(("%s: exit code %s"):format(command, tostring(code)), 0)
  end
end

-- The first line that a command prints.
function measure.output(command)
  local f = assert(io.popen(command))
  local line = f:read("l")
  f:close()
  return line
end

-- Runs argv to its end; returns seconds and the peak of the summed resident
-- size of it and its descendants, sampled every 20 ms.
function measure.timed(argv)
  local done, code, peak = false, nil, 0
  local fd = assert(uv.fs_open(measure.log, "w", 384))
  local start = uv.hrtime()
  local handle, pid = assert(uv.spawn(argv[1], {
    args = { table.unpack(argv, 2) },
    stdio = { nil, fd, fd },
  }, function(c, signal)
    code, done = signal ~= 0 and 128 + signal or c, true
  end))
  local function resident(id)
    local sum = 0
    local f = io.open(("/proc/%d/statm"):format(id))
    if f then
      sum = (tonumber((f:read("a") or ""):match("^%d+ (%d+)")) or 0) * 4096
      f:close()
    end
    local tasks = uv.fs_scandir(("/proc/%d/task"):format(id))
    while tasks do
      local task = uv.fs_scandir_next(tasks)
      if not task then
        break
      end
      local c = io.open(("/proc/%d/task/%s/children"):format(id, task))
      if c then
        for child in (c:read("a") or ""):gmatch("%d+") do
          sum = sum + resident(tonumber(child))
        end
        c:close()
      end
    end
    return sum
  end
  local timer = uv.new_timer()
  timer:start(5, 20, function()
    peak = math.max(peak, resident(pid))
  end)
  while not done do
    uv.run("once")
  end
  local seconds = (uv.hrtime() - start) / 1e9
  timer:close()
  handle:close()
  uv.run("nowait")
  uv.fs_close(fd)
  if code ~= 0 then
    local f = io.open(measure.log)
    error(("%s ended with %s\n%s"):format(table.concat(argv, " "), code, f and f:read("a") or ""), 0)
  end
  return seconds, peak
end

function measure.median(values)
  local v = { table.unpack(values) }
  table.sort(v)
  local n = #v
  return n % 2 == 1 and v[(n + 1) // 2] or (v[n // 2] + v[n // 2 + 1]) / 2
end

-- A file that returns the collection with this one disk.
function measure.collection(path, disk, format, tracker)
  local f = assert(io.open(path, "w"))
  f:write(([[
return require "cairn".collection {
  CollectionId = "6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01", ElementName = "bench",
  machines = { { VirtualMachineId = "0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001",
    disks = { { id = "vda", path = %q, format = %q%s } } } } }
]]):format(disk, format, tracker and (", tracker = %q"):format(tracker) or ""))
  f:close()
end

-- Whether this version has this tracker.
function measure.has_tracker(name)
  local w = measure.workspace("/tmp")
  measure.sh(("truncate -s 1M %s"):format(measure.quote(w .. "/a.raw")))
  measure.collection(w .. "/c.lua", w .. "/a.raw", "raw", name)
  local f = io.popen(("%s export --collection %s --to %s --dry-run 2>&1"):format(measure.quote(measure.cairn),
    measure.quote(w .. "/c.lua"), measure.quote(w .. "/out")))
  local text = f:read("a")
  local ok, _, code = f:close()
  return ok or code ~= 2 or not text:find("tracker", 1, true)
end

-- The directory of the newest point in an export directory.
function measure.newest(out)
  local path = measure.output(("ls -1td %s/*-*/ | head -n 1"):format(measure.quote(out)))
  return (path:gsub("/$", ""))
end

-- Runs the candidates `runs` times in turn, and once before to warm up;
-- before_run (may be nil) comes before each turn. Every other turn goes the
-- other way round: who comes after whom weighs on a shared disk, and no
-- candidate shall always have the better place. Returns candidate -> array of
-- seconds, and candidate -> peak bytes.
function measure.in_turn(runs, candidates, before_run)
  local seconds, memory = {}, {}
  for run = 0, runs do
    if before_run then
      before_run(run)
    end
    for i = 1, #candidates do
      local c = candidates[run % 2 == 0 and i or #candidates + 1 - i]
      if c.prepare then
        c.prepare()
      end
      local s, m = measure.timed(c.argv)
      if run > 0 then
        seconds[c] = seconds[c] or {}
        table.insert(seconds[c], s)
        memory[c] = math.max(memory[c] or 0, m)
      end
    end
  end
  return seconds, memory
end

function measure.print(title, runs, candidates, seconds, memory)
  print(("%s (%d runs in turn, medians)"):format(title, runs))
  local ours = measure.median(seconds[candidates[1]])
  for i, c in ipairs(candidates) do
    local m = measure.median(seconds[c])
    local low, high = math.huge, 0
    for _, s in ipairs(seconds[c]) do
      low, high = math.min(low, s), math.max(high, s)
    end
    print(("  %-34s %7.2f s  (%.2f to %.2f)  %4.0f MiB  %s"):format(c.name, m, low, high,
      memory[c] / 1048576, i == 1 and "" or ("cairn / this = %.2f"):format(ours / m)))
  end
end

local directories = {}

-- A new directory below `base`, removed at the end.
function measure.workspace(base)
  local path = assert(uv.fs_mkdtemp(base .. "/cairn-bench-XXXXXX"))
  directories[#directories + 1] = path
  return path
end

-- So many bytes must be free in `directory`.
function measure.need(directory, bytes)
  local s = assert(uv.fs_statfs(directory))
  local free = s.bavail * s.bsize
  if free < bytes then
    measure.fail(("%s: %.1f GiB needed, %.1f GiB free; choose another size or directory"):format(
      directory, bytes / 1073741824, free / 1073741824), 3)
  end
end

-- Writes what is dirty and, as root, forgets what is cached.
function measure.cold()
  measure.sh("sync; echo 3 2>/dev/null >/proc/sys/vm/drop_caches || true")
end

-- `mib` MiB that nothing can compress, from the kernel's generator.
function measure.fill(path, mib)
  measure.sh(("dd if=/dev/urandom of=%s bs=4M count=%d iflag=fullblock status=none conv=fsync"):format(
    measure.quote(path), mib // 4))
end

-- Runs the benchmark, removes what it made, and ends the process.
function measure.main(body)
  io.stdout:setvbuf("line")
  local ok, err = pcall(body)
  os.remove(measure.log)
  for _, d in ipairs(directories) do
    os.execute("rm -rf " .. measure.quote(d))
  end
  if not ok then
    measure.fail(tostring(err), 1)
  end
end

return measure
