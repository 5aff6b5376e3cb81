-- An increment against its peers: a disk of which 1 % has changed, cold cache,
-- every candidate from its own copy of the same earlier state.
--
--   lua5.4 tests/bench/incremental.lua [--runs N] [--size MIB] [--disk DIR] [--only PEER]
--
-- Before each turn new random data is written into 1 % of the disk's 64 KiB
-- blocks, chosen at random; then each candidate brings its copy up to date, so
-- that all see the same change from the same state. dd only reads the disk: it
-- says what one pass costs. The disk holds random bytes, which nothing can
-- compress. As root the page cache is dropped before each candidate. Cairn
-- finds the changes by digests (tracker "digest"). PEER: dd, rsync, borg, restic.
--
-- Targets: within 1.15 of dd; at least 2 times faster than rsync, 3 times than
-- borg, 5 times than restic. Needs dd, qemu-img, rsync, borg and restic, and
-- room for six copies of the disk. Never part of the tests.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local measure = require "measure"

local quote, sh = measure.quote, measure.sh
local options = measure.options { runs = 7, size = 4096, disk = "/var/tmp", only = false }
local BLOCK = 65536

-- Writes new random data into `count` blocks of the disk.
local function change(path, count, blocks)
  local random = assert(io.open("/dev/urandom", "rb"))
  local f = assert(io.open(path, "r+b"))
  local taken = {}
  while count > 0 do
    local i = math.random(0, blocks - 1)
    if not taken[i] then
      taken[i], count = true, count - 1
      assert(f:seek("set", i * BLOCK))
      assert(f:write(random:read(BLOCK)))
    end
  end
  assert(f:close())
  random:close()
end

local function verdict(seconds, ours, peer)
  local ratio = measure.median(seconds[ours]) / measure.median(seconds[peer])
  print(("  target: cairn / %s <= %.2f: %.2f, %s"):format(peer.name:match("^%S+"), peer.target, ratio,
    ratio <= peer.target and "met" or "MISSED"))
end

measure.main(function()
  measure.need(options.disk, 6.5 * options.size * 1048576)
  local w = measure.workspace(options.disk)
  local disk, out, list = w .. "/disk.raw", w .. "/out", w .. "/c.lua"
  local copy, borg, restic = w .. "/copy.raw", w .. "/borg", w .. "/restic"
  local blocks = options.size * 1048576 // BLOCK
  local changed = math.max(1, blocks // 100)
  measure.fill(disk, options.size)
  measure.collection(list, disk, "raw", measure.has_tracker("digest") and "digest")

  local environment = { "env", "BORG_BASE_DIR=" .. w .. "/borg-home", "XDG_CACHE_HOME=" .. w .. "/cache",
    "RESTIC_PASSWORD=benchmark", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes" }
  local function with_environment(argv)
    return table.move(argv, 1, #argv, #environment + 1, { table.unpack(environment) })
  end
  local init = { borg = { "borg", "init", "-e", "none", borg },
    restic = { "restic", "--quiet", "-r", restic, "init" } }
  local all = {
    { name = "cairn export --base latest",
      argv = { measure.cairn, "export", "--collection", list, "--to", out, "--base", "latest" } },
    { name = "dd iflag=direct bs=1M", target = 1.15,
      argv = { "dd", "if=" .. disk, "of=/dev/null", "iflag=direct", "bs=1M", "status=none" } },
    { name = "rsync --inplace --no-whole-file", target = 1 / 2,
      argv = { "sh", "-c", ("rsync --inplace --no-whole-file %s %s && sync -d %s"):format(quote(disk), quote(copy),
        quote(copy)) } },
    { name = "borg create", target = 1 / 3,
      argv = with_environment { "borg", "create", borg .. "::{now:%H%M%S%f}", disk } },
    { name = "restic backup", target = 1 / 5,
      argv = with_environment { "restic", "--quiet", "-r", restic, "backup", disk } },
  }
  local peers = {}
  for i, c in ipairs(all) do
    local tool = c.name:match("^%S+")
    if i == 1 or not options.only or options.only == tool then
      peers[#peers + 1] = c
      if init[tool] then
        measure.timed(with_environment(init[tool]))
      end
      measure.timed(c.argv) -- the state from before
      c.prepare = measure.cold
    end
  end
  local seconds, memory = measure.in_turn(options.runs, peers, function()
    change(disk, changed, blocks)
  end)
  measure.print(("%d MiB, %d blocks of 64 KiB changed"):format(options.size, changed), options.runs, peers, seconds,
    memory)
  for _, c in ipairs(peers) do
    if c.target then
      verdict(seconds, peers[1], c)
    end
  end

  -- A fast export of something else would be no result.
  local newest = measure.newest(out)
  sh(("qemu-img compare -q -f raw -F qcow2 %s %s/*/vda.qcow2"):format(quote(disk), quote(newest)))
  print(("  the last log holds %.1f MiB and, with its chain, equals the disk (qemu-img compare)"):format(
    tonumber(measure.output(("stat -c %%s %s/*/vda.qcow2"):format(quote(newest)))) / 1048576))
end)
