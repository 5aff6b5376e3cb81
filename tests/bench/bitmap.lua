-- Increments by a dirty bitmap: the time follows the bytes that changed, not
-- the size of the disk.
--
--   lua5.4 tests/bench/bitmap.lua [--runs N] [--gib N] [--piece KIB] [--disk DIR]
--
-- A qcow2 of 100 GiB virtual size with 2 GiB of data spread over it; before each
-- run 4, 40 or 400 MiB of it are written at random places. Data and writes come
-- in pieces of 1 MiB, as files make them; --piece 64 is the worst case, 32768
-- places and every block somewhere else. The page cache is dropped (as root),
-- and then has the programs again, not the disk. Every seventh run compares the
-- whole disk: that is the upper end of the range.
-- Target: 40 MiB in less than 0.5 s. Never part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"

local quote, sh = measure.quote, measure.sh
local options = measure.options { runs = 7, gib = 100, piece = 1024, disk = "/var/tmp" }

local places = (2 << 20) // options.piece -- spread evenly over the disk
local stride = (options.gib << 20) // places -- KiB

local function change(disk, script, mib)
  local f = assert(io.open(script, "w"))
  for _ = 1, (mib << 10) // options.piece do
    f:write(("write -P %d %dk %dk\n"):format(math.random(1, 255), math.random(0, places - 1) * stride,
      options.piece))
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
  local f = assert(io.open(script, "w"))
  for i = 0, places - 1 do
    f:write(("write -P %d %dk %dk\n"):format(i % 255 + 1, i * stride, options.piece))
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
      change(disk, script, mib)
      measure.cold()
      sh(("(%s --version; qemu-img --version; qemu-nbd --version; nbdinfo --version) >/dev/null"):format(
        quote(measure.cairn)))
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
