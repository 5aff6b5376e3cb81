-- Merging ten logs into a full against `qemu-img convert` of the same chain:
-- same data, same target file system, synced on both sides, in turn, medians
-- and their ratio.
--
--   lua5.4 tests/bench/merge.lua [--runs N] [--mib N] [--disk DIR]
--
-- The ratio is cairn / qemu-img: below 1 is faster. Cairn's time includes the
-- check of every block against its digest, the new file's own digests and the
-- manifest; the whole command is timed. Needs qemu-img and room for three
-- times N MiB. Never part of the tests.

local uv = require "luv"

local here = arg[0]:match("^(.*)/[^/]*$") or "."
local build = os.getenv("CAIRN_BUILD") or (here .. "/../../build")
local cairn = uv.fs_realpath(build .. "/bin/cairn")
if not cairn then
  io.stderr:write("merge.lua: no build/bin/cairn; build first\n")
  os.exit(3)
end

local options = { runs = 7, mib = 1024, disk = "/var/tmp" }
for i = 1, #arg, 2 do
  local name = arg[i]:match("^%-%-(%a+)$")
  if not name or not options[name] or not arg[i + 1] then
    io.stderr:write("merge.lua: usage: merge.lua [--runs N] [--mib N] "
      .. "[--disk DIR]\n")
    os.exit(2)
  end
  options[name] = tonumber(arg[i + 1]) or arg[i + 1]
end

local function sh(command, ...)
  command = command:format(...)
  local ok, _, code = os.execute(command)
  if not ok then
    error(("%s: exit code %s"):format(command, tostring(code)), 0)
  end
end

local function timed(command, ...)
  local start = uv.hrtime()
  sh(command, ...)
  return (uv.hrtime() - start) / 1e9
end

local function median(values)
  table.sort(values)
  local n = #values
  return n % 2 == 1 and values[(n + 1) // 2]
    or (values[n // 2] + values[n // 2 + 1]) / 2
end

local top = assert(uv.fs_mkdtemp(options.disk .. "/cairn-bench-XXXXXX"))
local ok, message = xpcall(function()
  local mib, disk = options.mib, top .. "/disk.raw"
  local file = assert(io.open(top .. "/farm.lua", "w"))
  file:write(([[
return require "cairn".collection {
  CollectionId = "6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A01", ElementName = "bench",
  machines = { { VirtualMachineId = "0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001",
    disks = { { id = "vda", path = %q, format = "raw" } } } } }
]]):format(disk))
  file:close()
  -- a full of three quarters of the disk, then ten logs of a twentieth each,
  -- in pieces over all of it
  sh("truncate -s %dM %s && dd if=/dev/urandom of=%s bs=1M count=%d "
    .. "conv=notrunc status=none", mib, disk, disk, mib * 3 // 4)
  for log = 0, 10 do
    if log > 0 then
      for piece = 0, 9 do
        sh("dd if=/dev/urandom of=%s bs=64k count=%d seek=%d conv=notrunc "
          .. "status=none", disk, mib * 16 // 200,
          (piece * mib * 16 // 10 + log * mib * 16 // 110))
      end
    end
    sh("%s export --collection %s/farm.lua --to %s/out --base latest "
      .. ">/dev/null 2>&1", cairn, top, top)
  end
  local pipe = assert(io.popen(("ls -d %s/out/*"):format(top)))
  local newest, highest = nil, 0
  for path in pipe:lines() do
    file = assert(io.open(path .. "/manifest.json"))
    local sequence = tonumber(file:read("a"):match('"sequence": (%d+)'))
    file:close()
    if sequence > highest then newest, highest = path, sequence end
  end
  pipe:close()
  assert(highest == 11)
  local image = newest .. "/0C5A3E0E-7C7B-4B0E-8F70-55E0C2F40001/vda.qcow2"
  local ours, theirs = {}, {}
  for run = 0, options.runs do -- run 0 warms up
    sh("rm -rf %s/merged %s/merged.old %s/peer.qcow2; sync", top, top, top)
    local a = timed("%s merge %s --to %s/merged >/dev/null 2>&1", cairn, newest,
      top)
    sh("mv %s/merged %s/merged.old; sync", top, top, top)
    local b = timed("qemu-img convert -f qcow2 -O qcow2 %s %s/peer.qcow2 && "
      .. "sync -d %s/peer.qcow2", image, top, top)
    if run > 0 then
      ours[run], theirs[run] = a, b
    else
      sh("qemu-img compare -q -f qcow2 -F qcow2 %s/merged.old/*/*/vda.qcow2 "
        .. "%s/peer.qcow2", top, top)
    end
  end
  local a, b = median(ours), median(theirs)
  print(("merge of ten logs, %d MiB disk (%d runs in turn, medians)"):format(mib,
    options.runs))
  print(("  cairn merge        %7.2f s"):format(a))
  print(("  qemu-img convert   %7.2f s   ratio %.2f"):format(b, a / b))
end, debug.traceback)
os.execute("rm -rf " .. top)
if not ok then
  io.stderr:write("merge.lua: ", message, "\n")
  os.exit(1)
end
