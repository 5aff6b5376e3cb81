-- The copy against its peers: same data, same targets, synced on both sides,
-- candidates in turn, medians and ratios.
--
--   lua5.4 tests/bench/copy.lua [--runs N] [--mib N] [--disk DIR] [--only NAME]
--
-- NAME: tmpfs, disk, qcow2, sparse. A ratio is cairn / peer: below 1 is
-- faster. Cairn's time includes its digests, its map and its manifest; the
-- whole command is timed, start-up included. Needs qemu-img, nbdcopy
-- (libnbd-bin) and room for three copies. Never part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"

local cairn, quote, sh, timed = measure.cairn, measure.quote, measure.sh, measure.timed
local options = measure.options { runs = 7, mib = 2048, disk = "/var/tmp", only = false }

local function compare(title, candidates)
  measure.print(title, options.runs, candidates, measure.in_turn(options.runs, candidates))
end

local function wanted(name)
  return not options.only or options.only == name
end

local function raw_to(base, title)
  local w = measure.workspace(base)
  local disk, out, list = w .. "/disk.raw", w .. "/out", w .. "/c.lua"
  measure.fill(disk, options.mib)
  measure.collection(list, disk, "raw")
  local function clean()
    sh(("rm -rf %s; mkdir %s"):format(quote(out), quote(out)))
    if base ~= "/dev/shm" then
      measure.cold()
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
  local w = measure.workspace("/dev/shm")
  local raw, disk, out, list = w .. "/disk.raw", w .. "/disk.qcow2", w .. "/out", w .. "/c.lua"
  measure.fill(raw, options.mib)
  sh(("qemu-img convert -f raw -O qcow2 -m16 -W %s %s && rm %s"):format(raw, disk, raw))
  measure.collection(list, disk, "qcow2")
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
  local w = measure.workspace(options.disk)
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
    measure.collection(list, disk, format)
    sh(("rm -rf %s; mkdir %s"):format(quote(out), quote(out)))
    local s, m = timed({ cairn, "export", "--collection", list, "--to", out })
    print(("1 TiB sparse %s with 1 GiB of data: export %.2f s, peak %.0f MiB, children included"):format(
      format, s, m / 1048576))
    s, m = timed({ cairn, "verify", out })
    print(("  its verify: %.2f s, peak %.0f MiB"):format(s, m / 1048576))
  end
  sh("rm -rf " .. quote(w))
end

measure.main(function()
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
