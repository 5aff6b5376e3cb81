-- Increments by a dirty bitmap: the time follows the bytes that changed, not
-- the size of the disk.
--
--   lua5.4 tests/bench/bitmap.lua [--runs N] [--gib N] [--disk DIR]
--
-- A qcow2 of 100 GiB virtual size with 2 GiB of data in it; before each run
-- 4, 40 or 400 MiB of it are written at random places in pieces of 64 KiB. The
-- page cache is dropped (as root), and then has the programs again, not the disk.
-- Target: 40 MiB in less than 0.5 s. Never part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"

local quote, sh = measure.quote, measure.sh
local options = measure.options { runs = 7, gib = 100, disk = "/var/tmp" }

-- count writes of 64 KiB among the first `blocks` places, which are spread
-- evenly over the disk.
local function change(disk, script, count, blocks)
  local stride = options.gib * 16384 // blocks
  local f = assert(io.open(script, "w"))
  for _ = 1, count do
    f:write(("write -P %d %dk 64k\n"):format(math.random(1, 255), math.random(0, blocks - 1) * stride * 64))
  end
  f:close()
  sh(("qemu-io -f qcow2 %s <%s >/dev/null"):format(quote(disk), quote(script)))
end

measure.main(function()
  if not measure.has_tracker("bitmap") then
    print("no tracker \"bitmap\" in this version: nothing to measure")
    return
  end
  local w = measure.workspace(options.disk)
  local disk, out, list, script = w .. "/disk.qcow2", w .. "/out", w .. "/c.lua", w .. "/q"
  sh(("qemu-img create -q -f qcow2 %s %dG"):format(quote(disk), options.gib))
  measure.need(options.disk, 12 << 30)
  local blocks = 2 * 16384
  local stride = options.gib * 16384 // blocks
  local f = assert(io.open(script, "w"))
  for i = 0, blocks - 1 do
    f:write(("write -P %d %dk 64k\n"):format(i % 255 + 1, i * stride * 64))
  end
  f:close()
  sh(("qemu-io -f qcow2 %s <%s >/dev/null"):format(quote(disk), quote(script)))
  measure.collection(list, disk, "qcow2", "bitmap")
  local export = { measure.cairn, "export", "--collection", list, "--to", out, "--base", "latest" }
  measure.timed(export)
  local medians = {}
  for _, mib in ipairs { 4, 40, 400 } do
    local seconds, peak = {}, 0
    for run = 0, options.runs do
      change(disk, script, mib * 16, blocks)
      measure.cold()
      sh(("(%s --version; qemu-img --version; qemu-nbd --version) >/dev/null"):format(quote(measure.cairn)))
      local s, m = measure.timed(export)
      if run > 0 then
        seconds[run], peak = s, math.max(peak, m)
      end
    end
    medians[mib] = measure.median(seconds)
    table.sort(seconds)
    print(("%d GiB virtual, %3d MiB changed: %.2f s (%.2f to %.2f), %d runs, peak %.0f MiB"):format(options.gib, mib,
      medians[mib], seconds[1], seconds[#seconds], options.runs, peak / 1048576))
  end
  local newest = measure.newest(out)
  local tracker = measure.output(("grep -o '\"tracker\": \"[a-z]*\"' %s/manifest.json"):format(quote(newest)))
  print(("  the last one by %s; 40 MiB in less than 0.5 s: %s"):format(tracker,
    medians[40] < 0.5 and "met" or "MISSED"))
  sh(("qemu-img compare -q -f qcow2 -F qcow2 %s %s/*/vda.qcow2"):format(quote(disk), quote(newest)))
end)
