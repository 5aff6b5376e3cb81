-- The copy against its peers: same data, same targets, synced on both sides,
-- candidates in turn, medians and ratios.
--
--   lua5.4 tests/bench/copy.lua [--runs N] [--mib N] [--disk DIR] [--only NAME]
--
-- NAME: tmpfs, disk, qcow2, sparse. A ratio is cairn / peer: below 1 is
-- faster. Cairn's time includes its digests, its map and its manifest; the
-- whole command is timed, start-up included. Needs qemu-img, nbdcopy
-- (libnbd-bin) and room for three copies. Never part of the tests.

local uv = require "luv"

local here = arg[0]:match("^(.*)/[^/]*$") or "."
local build = os.getenv("CAIRN_BUILD") or (here .. "/../../build")
local cairn = uv.fs_realpath(build .. "/bin/cairn")
if not cairn then
  io.stderr:write("copy.lua: no build/bin/cairn; build first\n")
  os.exit(3)
end

local options = { runs = 7, mib = 2048, disk = "/var/tmp" }
do
  local i = 1
  while arg[i] do
    local name = arg[i]:match("^%-%-(%a+)$")
    if not (name == "runs" or name == "mib" or name == "disk" or name == "only") or not arg[i + 1] then
      io.stderr:write("copy.lua: usage: copy.lua [--runs N] [--mib N] [--disk DIR] [--only NAME]\n")
      os.exit(2)
    end
    options[name] = tonumber(arg[i + 1]) or arg[i + 1]
    i = i + 2
  end
end

local function quote(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

local function sh(command)
  local ok, _, code = os.execute(command)
  if not ok then
    error(("%s: exit code %s"):format(command, tostring(code)), 0)
  end
end

-- Runs argv to its end; returns seconds and the peak of the summed resident
-- size of it and its descendants, sampled every 20 ms.
local function timed(argv, output)
  local done, code, peak = false, nil, 0
  local fd = assert(uv.fs_open(output or "/dev/null", "w", 384))
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
    local f = output and io.open(output)
    error(("%s ended with %s\n%s"):format(table.concat(argv, " "), code, f and f:read("a") or ""), 0)
  end
  return seconds, peak
end

local function median(values)
  local v = { table.unpack(values) }
  table.sort(v)
  local n = #v
  return n % 2 == 1 and v[(n + 1) // 2] or (v[n // 2] + v[n // 2 + 1]) / 2
end

local function collection(path, disk, format)
  local f = assert(io.open(path, "w"))
  f:write(([[
return require "cairn".collection {
  CollectionId = "6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01", ElementName = "bench",
  machines = { { VirtualMachineId = "0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001",
    disks = { { id = "vda", path = %q, format = %q } } } } }
]]):format(disk, format))
  f:close()
end

-- Candidates { name, argv or function, prepare }, ours first.
local function compare(title, candidates)
  local seconds, memory = {}, {}
  for run = 0, options.runs do -- run 0 warms up
    for _, c in ipairs(candidates) do
      if c.prepare then
        c.prepare()
      end
      local s, m = timed(c.argv, options.log)
      if run > 0 then
        seconds[c] = seconds[c] or {}
        table.insert(seconds[c], s)
        memory[c] = math.max(memory[c] or 0, m)
      end
    end
  end
  print(("%s (%d runs in turn, medians)"):format(title, options.runs))
  local ours = median(seconds[candidates[1]])
  for i, c in ipairs(candidates) do
    local m = median(seconds[c])
    local low, high = math.huge, 0
    for _, s in ipairs(seconds[c]) do
      low, high = math.min(low, s), math.max(high, s)
    end
    print(("  %-34s %7.2f s  (%.2f to %.2f)  %4.0f MiB  %s"):format(c.name, m, low, high,
      memory[c] / 1048576, i == 1 and "" or ("cairn / this = %.2f"):format(ours / m)))
  end
end

local function wanted(name)
  return not options.only or options.only == name
end

local function workspace(base)
  local path = assert(uv.fs_mkdtemp(base .. "/cairn-bench-XXXXXX"))
  return path
end

-- The same bytes go to both: incompressible, from the kernel's generator.
local function make_raw(path, mib)
  sh(("dd if=/dev/urandom of=%s bs=4M count=%d iflag=fullblock status=none conv=fsync"):format(
    quote(path), mib // 4))
end

local dirs = {}
local function raw_to(base, title)
  local w = workspace(base)
  dirs[#dirs + 1] = w
  local disk, out, list = w .. "/disk.raw", w .. "/out", w .. "/c.lua"
  make_raw(disk, options.mib)
  collection(list, disk, "raw")
  local cold = "sync; echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true"
  local function clean()
    sh(("rm -rf %s; mkdir %s"):format(quote(out), quote(out)))
    if base ~= "/dev/shm" then
      sh(cold)
    end
  end
  local direct = base == "/dev/shm" and "" or "-t none -T none "
  compare(("%s, %d MiB incompressible, raw to qcow2"):format(title, options.mib), {
    { name = "cairn export", prepare = clean,
      argv = { cairn, "export", "--collection", list, "--to", out } },
    { name = "qemu-img convert -m16 -W", prepare = clean,
      argv = { "sh", "-c", ("qemu-img convert %s-m16 -W -f raw -O qcow2 %s %s && sync -d %s"):format(
        direct, disk, out .. "/d.qcow2", out .. "/d.qcow2") } },
    { name = "cp --sparse=never", prepare = clean,
      argv = { "sh", "-c", ("cp --sparse=never %s %s && sync -d %s"):format(disk, out .. "/d", out .. "/d") } },
  })
  sh("rm -rf " .. quote(w))
end

local function qcow2()
  local w = workspace("/dev/shm")
  dirs[#dirs + 1] = w
  local raw, disk, out, list = w .. "/disk.raw", w .. "/disk.qcow2", w .. "/out", w .. "/c.lua"
  make_raw(raw, options.mib)
  sh(("qemu-img convert -f raw -O qcow2 -m16 -W %s %s && rm %s"):format(raw, disk, raw))
  collection(list, disk, "qcow2")
  local function clean()
    sh(("rm -rf %s; mkdir %s"):format(quote(out), quote(out)))
  end
  compare(("tmpfs to tmpfs, %d MiB incompressible, qcow2 source"):format(options.mib), {
    { name = "cairn export", prepare = clean,
      argv = { cairn, "export", "--collection", list, "--to", out } },
    { name = "nbdcopy --flush", prepare = clean,
      argv = { "sh", "-c", ("nbdcopy --flush -- [ qemu-nbd -r -f qcow2 -e 8 %s ] %s"):format(disk, out .. "/d.raw") } },
    { name = "qemu-img convert -m16 -W", prepare = clean,
      argv = { "sh", "-c", ("qemu-img convert -m16 -W -f qcow2 -O qcow2 %s %s && sync -d %s"):format(
        disk, out .. "/d.qcow2", out .. "/d.qcow2") } },
  })
  sh("rm -rf " .. quote(w))
end

local function sparse()
  local w = workspace(options.disk)
  dirs[#dirs + 1] = w
  for _, format in ipairs { "raw", "qcow2" } do
    local disk, out, list = w .. "/disk." .. format, w .. "/out", w .. "/c.lua"
    sh(("qemu-img create -q -f %s %s 1T"):format(format, disk))
    -- 1 MiB of data in each of 1024 places spread over the disk
    local commands = {}
    for i = 0, 1023 do
      commands[#commands + 1] = ("write -P %d %dG 1M"):format(i % 255 + 1, i)
    end
    local f = assert(io.open(w .. "/q", "w"))
    f:write(table.concat(commands, "\n"), "\n")
    f:close()
    sh(("qemu-io -f %s %s <%s >/dev/null"):format(format, disk, w .. "/q"))
    collection(list, disk, format)
    sh(("rm -rf %s; mkdir %s"):format(quote(out), quote(out)))
    local s, m = timed({ cairn, "export", "--collection", list, "--to", out }, options.log)
    print(("1 TiB sparse %s with 1 GiB of data: export %.2f s, peak %.0f MiB, children included"):format(
      format, s, m / 1048576))
    s, m = timed({ cairn, "verify", out }, options.log)
    print(("  its verify: %.2f s, peak %.0f MiB"):format(s, m / 1048576))
  end
  sh("rm -rf " .. quote(w))
end

options.log = os.tmpname()
local ok, err = pcall(function()
  if wanted "tmpfs" then
    raw_to("/dev/shm", "tmpfs to tmpfs")
  end
  if wanted "disk" then
    raw_to(options.disk, "disk to disk, cold")
  end
  if wanted "qcow2" then
    qcow2()
  end
  if wanted "sparse" then
    sparse()
  end
end)
os.remove(options.log)
for _, d in ipairs(dirs) do
  os.execute("rm -rf " .. quote(d))
end
if not ok then
  io.stderr:write("copy.lua: ", tostring(err), "\n")
  os.exit(1)
end
