-- Peak memory of a full and an incremental export, a verify and a restore of a
-- disk of 1 TiB, raw and qcow2.
--
--   lua5.4 tests/bench/memory.lua [--disk DIR]
--
-- The disk is sparse, with 1 MiB of data in each of 1024 places spread over it;
-- 10 of them have changed for the increment. What is measured is the sum of the
-- resident sizes of the command and its descendants, sampled every 20 ms.
-- Target: less than 256 MiB. Never part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"

local quote, sh = measure.quote, measure.sh
local options = measure.options { disk = "/var/tmp" }
local TARGET = 256 * 1048576

measure.main(function()
  measure.need(options.disk, 6 << 30)
  for _, format in ipairs { "raw", "qcow2" } do
    local w = measure.workspace(options.disk)
    local disk, out, list, script = w .. "/disk." .. format, w .. "/out", w .. "/c.lua", w .. "/q"
    local function write(step, pattern)
      local f = assert(io.open(script, "w"))
      for i = 0, 1023, step do
        f:write(("write -P %d %dG 1M\n"):format((i + pattern) % 255 + 1, i))
      end
      f:close()
      sh(("qemu-io -f %s %s <%s >/dev/null"):format(format, quote(disk), quote(script)))
    end
    local function show(name, argv)
      local s, m = measure.timed(argv)
      print(("1 TiB %-5s  %-11s %6.2f s  peak %3.0f MiB  %s"):format(format, name, s, m / 1048576,
        m < TARGET and "met" or "MISSED"))
    end
    sh(("qemu-img create -q -f %s %s 1T"):format(format, quote(disk)))
    write(1, 0)
    measure.collection(list, disk, format)
    local export = { measure.cairn, "export", "--collection", list, "--to", out, "--base", "latest" }
    show("full", export)
    write(103, 7)
    show("incremental", export)
    local newest = measure.newest(out)
    show("verify", { measure.cairn, "verify", out })
    show("restore", { measure.cairn, "restore", newest, "--to", w .. "/back" })
    sh("rm -rf " .. quote(w))
  end
end)
