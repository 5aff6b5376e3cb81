#!/usr/bin/env python3
"""The property: whatever happens to the disks between two exports, every
point of the chain gives back what the disks held at that point.

    tests/random/property.py [--seconds N | --sequences N] [--seed S]
                             [--only N] [--jobs N] [--place NAME...] [--keep]
    tests/random/property.py --self-test

A sequence changes 1 to 3 disks at random (see disks.py) and exports them from
the latest point, an older one or none, in full or as a log. Before each export
a flat copy of every disk is taken by Python or qemu-img: its shadow. Some
exports are killed, terminated, or run out of space, and are run again. In the
end every point, restored by `cairn restore` and read by `qemu-img convert`,
equals its shadow in every byte and in length; every log holds exactly the
blocks that changed, each zero among them; `qemu-img check` and `cairn verify`
are content; and any flipped bit makes verify fail.

  --seconds N    go on for N seconds (default: CAIRN_RANDOM_SECONDS, or 60)
  --sequences N  run N sequences, however long it takes
  --seed S       default: CAIRN_SEED, or 1
  --only N       sequence N of this seed alone
  --jobs N       that many at once
  --place NAME... only on: disk, tmpfs, ext4, xfs, btrfs (the latter three are
                 loop devices and need root)
  --keep         keep the directories of all sequences, not of failed ones only
  --self-test    show that the judges see a lost zero, a stale base, a wrong
                 length, a missed change and a helper that is left

Thousands of sequences: tests/random/property.py --sequences 2000 --seed 1
Output is TAP. A failed sequence leaves its directory and says how to run it
again: its steps are the same; when a kill hits is not.
"""
import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid

sys.dont_write_bytecode = True
from disks import Disk
from judges import (BLOCK, TIMEOUT_S, Failure, check_states, check_with_qemu,
                    difference, expect, must, no_helper_left, points_in, run,
                    sparse_copy)
from places import Ballast, Places
from selftest import self_test
from tree import CAIRN, Point, write_collection

# What a disk's `tracker` may be. None: the key is left out. Those that this
# version does not have are taken away when the suite begins.
TRACKERS = [None, "digest", "clone", "bitmap"]
DIGESTS = ["xxh3-128", "sha-256", "blake2b-256"]
COUNTS = ["steps", "exports", "logs", "fulls", "fallbacks", "faults",
          "by clone", "by bitmap", "failed exports", "merges", "prunes",
          "restores", "flips", "refused"]


class Features:
    """What this version of the command has."""

    def __init__(self, note):
        self.trackers = [None]
        with tempfile.TemporaryDirectory(prefix="cairn-property-") as d:
            disk = os.path.join(d, "a.raw")
            with open(disk, "wb") as f:
                f.truncate(BLOCK)
            for tracker in TRACKERS[1:]:
                listing = os.path.join(d, "c.lua")
                write_collection(listing, str(uuid.uuid4()).upper(), [
                    (str(uuid.uuid4()).upper(), [("vda", disk, "raw", tracker)],
                     [])], None)
                code, output = run([CAIRN, "export", "--collection", listing,
                                    "--to", os.path.join(d, "out"),
                                    "--dry-run"])
                if code == 2 and "tracker" in output:
                    note("no tracker \"%s\" in this version" % tracker)
                else:
                    self.trackers.append(tracker)
        self.commands = set()
        for name in ("merge", "prune"):
            if run([CAIRN, "help", name])[0] == 0:
                self.commands.add(name)
            else:
                note("no cairn %s in this version" % name)


class Sequence:
    def __init__(self, seed, number, places, features):
        self.seed, self.number = seed, number
        self.rng = random.Random("%s:%d" % (seed, number))
        self.features = features
        self.counts = dict.fromkeys(COUNTS, 0)
        self.refused = 0
        self.place = self.rng.choice(sorted(places.paths))
        self.can_fill = self.place in places.fillable
        self.directory = tempfile.mkdtemp(prefix="sequence-%d-" % number,
                                          dir=places.paths[self.place])
        self.images = os.path.join(self.directory, "images")
        self.out = os.path.join(self.directory, "out")
        self.shadow_directory = os.path.join(self.directory, "shadows")
        self.log = open(os.path.join(self.directory, "steps.log"), "w")
        for d in (self.images, self.shadow_directory):
            os.mkdir(d)
        self.points, self.shadow_count, self.disk_count = [], 0, 0
        self.collection = self.guid()
        self.machines = [self.guid() for _ in
                         range(self.rng.choice([1, 1, 2]))]
        self.digest = self.rng.choice(DIGESTS[:1] * 4 + DIGESTS)
        self.took = 0.1
        self.config = b"one\n"
        self.disks = []
        self.is_deep = self.rng.random() < 0.03
        self.say("seed %s, on %s, digest %s" % (seed, self.place, self.digest))
        for _ in range(1 if self.is_deep else self.rng.randint(1, 3)):
            self.new_disk()

    def say(self, text):
        self.log.write(text + "\n")
        self.log.flush()

    def guid(self):
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4)).upper()

    def scratch(self, name):
        return os.path.join(self.directory, name)

    def new_shadow(self, name):
        self.shadow_count += 1
        return os.path.join(self.shadow_directory, "%s-%d.raw" %
                            (name, self.shadow_count))

    def new_disk(self):
        self.disk_count += 1
        machines = self.rng.sample(self.machines, 1 if self.rng.random() < 0.8
                                   else len(self.machines))
        disk = Disk(self, machines, "vd%d" % self.disk_count)
        self.choose_tracker(disk)
        self.disks.append(disk)
        for _ in range(self.rng.randint(0, 3)):
            disk.step()

    def choose_tracker(self, disk):
        """Any, but more often one that is for this format."""
        trackers = list(self.features.trackers)
        fitting = "clone" if disk.format == "raw" else "bitmap"
        disk.tracker = self.rng.choice(trackers +
                                       [fitting] * 4 * (fitting in trackers))

    # ---- one sequence -------------------------------------------------------

    def play(self):
        if self.is_deep:
            self.play_deep()
        else:
            self.play_any()
        self.judge()

    def play_any(self):
        for _ in range(self.rng.randint(3, 9)):
            for _ in range(self.rng.randint(0, 5)):
                self.step()
            if self.rng.random() < 0.04:
                self.digest = self.rng.choice(DIGESTS)
            self.export(self.choose_base())
            if self.rng.random() < 0.2:
                self.maintain()

    def play_deep(self):
        """More increments in a row than a chain may be deep."""
        for _ in range(self.rng.choice([34, 40, 60])):
            for _ in range(self.rng.randint(0, 2)):
                self.step()
            self.export("latest")

    def step(self):
        self.counts["steps"] += 1
        roll = self.rng.random()
        if roll < 0.03 and len(self.disks) < 4:
            self.new_disk()
        elif roll < 0.05 and len(self.disks) > 1:
            gone = self.disks.pop(self.rng.randrange(len(self.disks)))
            self.say(gone.name + ": removed")
        elif roll < 0.10:
            self.say("configuration changed")
            self.config = self.rng.randbytes(self.rng.randint(0, 200))
        elif roll < 0.12:
            self.choose_tracker(self.rng.choice(self.disks))
        else:
            self.rng.choice(self.disks).step()

    # ---- exports ------------------------------------------------------------

    def choose_base(self):
        roll = self.rng.random()
        if roll < 0.08 or (roll < 0.25 and not self.points):
            return "none"
        if roll < 0.25:
            # A base that is named has to have this digest.
            older = [p.id for p in self.points
                     if p.manifest["algorithm"] == self.digest]
            return self.rng.choice(older) if older else "none"
        return "latest"

    def write_collection(self):
        path = self.scratch("farm.lua")
        config = self.scratch("machine.xml")
        with open(config, "wb") as f:
            f.write(self.config)
        machines = []
        for machine in self.machines:
            disks = [(d.name, d.path, d.format, d.tracker)
                     for d in self.disks if machine in d.machines]
            machines.append((machine, disks, [config]))
        write_collection(path, self.collection, machines, None)
        return path

    def export(self, base):
        """One export, often after some that were made to fail."""
        fmt = "raw" if self.rng.random() < 0.15 else "qcow2"
        argv = [CAIRN, "export", "--collection", self.write_collection(),
                "--to", self.out, "--base", base, "--format", fmt, "--digest",
                self.digest, "--json"]
        shadows = {(m, d.name): d.take_shadow() for d in self.disks
                   for m in d.machines}
        while self.rng.random() < (0.02 if self.is_deep else 0.3):
            if self.disturb(argv, shadows):
                # Published all the same, a moment before. What comes next is
                # one more point of the same content.
                self.say("published before it was disturbed")
        if self.rng.random() < (0.01 if self.is_deep else 0.1) and \
                self.write_meanwhile(argv, shadows):
            return
        self.say("export --base %s --format %s" % (base, fmt))
        before = points_in(self.out)
        start = time.monotonic()
        code, output = run(argv, stderr=subprocess.PIPE)
        self.took = time.monotonic() - start
        if code != 0:
            raise Failure("export ended with %d: %s\n%s" % (
                code, output, run(argv)[1]))
        new = points_in(self.out) - before
        expect(len(new) == 1, "an export made %d points" % len(new))
        point = self.add(new.pop(), shadows)
        self.check_job(point, output)
        self.check_bases(point, base)

    def disturb(self, argv, shadows):
        """An export that is likely to fail. True when it was published."""
        how = self.rng.choice(["kill", "kill", "terminate", "limit"] +
                              ["fill", "fill"] * self.can_fill)
        self.counts["faults"] += 1
        before = points_in(self.out)
        if how in ("kill", "terminate"):
            after = self.rng.uniform(0, 1.3 * self.took)
            self.say("export: %s after %.3f s" % (how, after))
            signals = ([signal.SIGKILL] if how == "kill" else
                       [signal.SIGTERM, signal.SIGINT])
            code, output = self.interrupted(argv, after,
                                            self.rng.choice(signals))
        elif how == "limit":
            size = self.rng.randint(0, 1 << self.rng.randint(10, 22))
            ignored = self.rng.random() < 0.5
            self.say("export: files of %d bytes at most%s" % (
                size, ", SIGXFSZ ignored" if ignored else ""))

            def limit():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN if ignored
                              else signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            code, output = run(argv, preexec_fn=limit)
        else:
            free = self.rng.randint(0, 1 << self.rng.randint(12, 22))
            self.say("export: %d bytes free" % free)
            with Ballast(self.directory, free):
                code, output = run(argv)
        new = points_in(self.out) - before
        self.say("ended with %d" % code)
        expect(code >= 0 or how in ("kill", "terminate", "limit"),
               "killed by a signal: %d\n%s" % (code, output))
        expect(code >= 0 or -code in (signal.SIGKILL, signal.SIGTERM,
                                      signal.SIGINT, signal.SIGXFSZ),
               "crashed with signal %d\n%s" % (-code, output))
        # A signal may also come when all is done and said.
        is_done = code == 0 or \
            code < 0 and '"JobState":"Completed"' in output
        expect(is_done == bool(new) or code == -signal.SIGKILL,
               "exit code %d and %d new points: %s" % (code, len(new), output))
        expect(len(new) <= 1, "an export made %d points" % len(new))
        if not new:
            self.counts["failed exports"] += 1
            return False
        self.add(new.pop(), shadows, was_killed=code == -signal.SIGKILL)
        return True

    def interrupted(self, argv, after, number):
        output = self.scratch("output")
        with open(output, "wb") as f, \
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=f,
                                 stderr=f) as p:
            try:
                p.wait(after)
            except subprocess.TimeoutExpired:
                p.send_signal(number)
            try:
                code = p.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                p.kill()
                raise Failure("signal %d: not ended after %d s" %
                              (number, TIMEOUT_S))
        with open(output, errors="replace") as f:
            return code, f.read()

    def write_meanwhile(self, argv, shadows):
        """A writer that does not know the locks changes one place of a raw
        disk while it is exported: that fails, or the point has the content
        from before or from after."""
        raw = [d for d in self.disks if d.format == "raw" and d.size()]
        if not raw:
            return False
        disk = self.rng.choice(raw)
        size = disk.size()
        offset = self.rng.randrange(size)
        keys = [(m, disk.name) for m in disk.machines]
        old, new = shadows[keys[0]], self.new_shadow(disk.name)
        sparse_copy(old, new)
        with open(new, "r+b") as f:
            value = bytes([os.pread(f.fileno(), 1, offset)[0] ^ 0x5a])
            os.pwrite(f.fileno(), value, offset)
        delay = self.rng.uniform(0, self.took)
        self.say("export, and %s changes at %d after %.3f s" % (
            disk.name, offset, delay))

        def write():
            with open(disk.path, "r+b") as f:
                os.pwrite(f.fileno(), value, offset)
        timer = threading.Timer(delay, write)
        before = points_in(self.out)
        timer.start()
        code, output = run(argv)
        timer.join()
        disk.shadow, disk.last_shadow = new, old
        made = points_in(self.out) - before
        expect((code == 0) == (len(made) == 1),
               "exit code %d and %d new points: %s" % (code, len(made), output))
        if code != 0:
            expect("chang" in output, "failed, but not because the source "
                   "changed: " + output)
            shadows.update(dict.fromkeys(keys, new))
            return False
        ident = made.pop()
        f = Point(self.out, ident, {}, b"").disks[keys[0]]
        path = os.path.join(self.out, ident, f["path"])
        scratch = self.scratch("meanwhile.raw")
        must(["qemu-img", "convert", "-f", f["format"], "-O", "raw", path,
              scratch])
        os.truncate(scratch, size)
        is_new = difference(scratch, new) is None
        os.unlink(scratch)
        self.add(ident, shadows |
                 dict.fromkeys(keys, new if is_new else old))
        return True

    def add(self, ident, shadows, was_killed=False):
        """A new point: what can be said at once."""
        point = Point(self.out, ident, dict(shadows), self.config)
        self.say("point %s" % ident)
        self.counts["exports"] += 1
        expect(set(point.disks) == set(shadows),
               "the manifest of %s has the disks %s, not %s" % (
                   ident, sorted(point.disks), sorted(shadows)))
        for key, f in sorted(point.disks.items()):
            self.counts["logs" if f["role"] == "log" else "fulls"] += 1
            if f["tracker"] in ("clone", "bitmap"):
                self.counts["by " + f["tracker"]] += 1
            self.counts["fallbacks"] += f["fallback"] is not None
            shadow = shadows[key]
            expect(f["length"] == os.stat(shadow).st_size,
                   "%s: length %d in the manifest, %d in its shadow" % (
                       f["path"], f["length"], os.stat(shadow).st_size))
            self.say("  %s: %s, tracker %s, base %s%s" % (
                key[1], f["role"], f["tracker"], f["base"],
                ", fallback: " + f["fallback"] if f["fallback"] else ""))
            base = None
            if f["role"] == "log":
                bases = [p for p in self.points if p.id == f["base"]]
                expect(bases, "%s: its base %s is not there" % (f["path"],
                                                                f["base"]))
                base = bases[0].shadows[key]
            else:
                expect(f["base"] is None, f["path"] + ": a full with a base")
            if f["format"] == "qcow2":
                check_states(point.file(f), shadow, base)
        # Killed after the one rename: the next export clears away.
        left = [n for n in os.listdir(self.out) if n.startswith(".partial")]
        expect(was_killed or not left,
               "left in the export directory: %s" % left)
        self.points.append(point)
        return point

    def check_job(self, point, output):
        """The job names exactly the files of the manifest."""
        job = json.loads(output.strip().splitlines()[-1])
        expect(job["ReferencePointGroupId"] == point.id,
               "the job names another point: " + output)
        have = dict(zip(job["ExportedDisks"], job["ExportedLogFilePaths"]))
        want = {"%s/%s" % key: point.file(f)
                for key, f in point.disks.items()}
        expect(len(job["ExportedDisks"]) == len(want) ==
               len(job["ExportedLogFilePaths"]) and have == want,
               "the job's disks are %s, the manifest's %s" % (have, want))
        order = [d.split("/")[0] for d in job["ExportedDisks"]]
        expect(order == sorted(order, key=job["VirtualMachineId"].index),
               "disks not grouped by machine: %s" % order)

    def check_bases(self, point, base):
        """Each disk has the base that was asked for, or says why not."""
        for key, f in point.disks.items():
            older = [p for p in self.points[:-1] if key in p.disks]
            if base == "none":
                want = None
            elif base == "latest":
                want = older[-1].id if older else None
            else:
                want = base if any(p.id == base for p in older) else None
            expect(f["base"] == want or f["fallback"],
                   "%s: its base is %s, not %s, and no reason is given" % (
                       f["path"], f["base"], want))

    # ---- merge and prune ----------------------------------------------------

    def maintain(self):
        commands = sorted(self.features.commands) * 3 + ["move", "remove"]
        getattr(self, self.rng.choice(commands))()

    def move(self):
        """An export directory may be moved as a whole."""
        self.say("the export directory is moved")
        moved = self.scratch("out-%d" % len(self.points))
        os.rename(self.out, moved)
        self.out = moved
        for p in self.points:
            p.directory = os.path.join(moved, p.id)

    def remove(self):
        """A point that nothing is based on may be deleted by hand."""
        bases = {f["base"] for p in self.points for f in p.disks.values()}
        free = [p for p in self.points if p.id not in bases]
        if len(self.points) > 1:
            gone = self.rng.choice(free)
            self.say("deleted by hand: " + gone.id)
            shutil.rmtree(gone.directory)
            self.points.remove(gone)

    def merge(self):
        """A merged copy of a point equals the point."""
        point = self.rng.choice(self.points)
        to = tempfile.mkdtemp(prefix="merged-", dir=self.directory)
        self.say("merge %s" % point.id)
        self.counts["merges"] += 1
        must([CAIRN, "merge", point.directory, "--to", to])
        made = points_in(to)
        expect(len(made) == 1, "a merge made %d points" % len(made))
        merged = Point(to, made.pop(), point.shadows, point.config)
        for key, f in merged.disks.items():
            expect(f["role"] == "disk", f["path"] + ": not a full")
        self.judge_point(merged)
        must([CAIRN, "verify", to])
        shutil.rmtree(to)

    def prune(self):
        keep = self.rng.randint(1, 4)
        self.say("prune --keep last=%d" % keep)
        self.counts["prunes"] += 1
        must([CAIRN, "prune", self.out, "--keep", "last=%d" % keep])
        left = points_in(self.out)
        expect({p.id for p in self.points[-keep:]} <= left,
               "pruned what was to be kept")
        self.points = [p for p in self.points if p.id in left]
        for p in self.points:
            p.read()

    # ---- the end ------------------------------------------------------------

    def judge(self):
        for point in self.points:
            self.judge_point(point)
        must([CAIRN, "verify", self.out])
        for _ in range(2):
            self.flip()
        must([CAIRN, "verify", self.out])
        no_helper_left(self.directory)

    def judge_point(self, point):
        self.counts["restores"] += 1
        to = self.scratch("restored")
        self.say("judge %s" % point.id)
        must([CAIRN, "restore", point.directory, "--to", to])
        for key, f in point.disks.items():
            wrong = difference(os.path.join(to, key[0], key[1] + ".raw"),
                               point.shadows[key])
            expect(not wrong, "point %s by cairn restore: %s" % (point.id,
                                                                 wrong))
            check_with_qemu(point.file(f), f["format"], f["length"],
                            point.shadows[key], self.scratch("converted"))
        for machine in point.manifest["machines"]:
            with open(os.path.join(to, machine["VirtualMachineId"], "config",
                                   "machine.xml"), "rb") as f:
                expect(f.read() == point.config, "another configuration")
        shutil.rmtree(to)

    def flip(self):
        """One bit anywhere in one file of one point."""
        point = self.rng.choice(self.points)
        files = []
        for d, _, names in os.walk(point.directory):
            files += [os.path.join(d, n) for n in names]
        path = self.rng.choice(sorted(files))
        size = os.stat(path).st_size
        if not size:
            return
        offset, bit = self.rng.randrange(size), self.rng.randrange(8)
        self.say("flip bit %d of byte %d of %s" % (bit, offset, path))
        self.counts["flips"] += 1
        with open(path, "r+b") as f:
            value = os.pread(f.fileno(), 1, offset)[0]
            os.pwrite(f.fileno(), bytes([value ^ 1 << bit]), offset)
            code, output = run([CAIRN, "verify", self.rng.choice(
                [self.out, point.directory])])
            os.pwrite(f.fileno(), bytes([value]), offset)
        expect(code == 1, "verify ended with %d although bit %d of byte %d of "
               "%s was flipped\n%s" % (code, bit, offset, path, output))


# ---- the suite ---------------------------------------------------------------

def play(options, number, places, features, totals):
    """One sequence as one line of TAP."""
    sequence = Sequence(options.seed, number, places, features)
    start, problem = time.monotonic(), None
    try:
        sequence.play()
    except Failure as e:
        problem = str(e)
    except Exception:
        problem = traceback.format_exc()
    sequence.counts["refused"] = sequence.refused
    for name, n in [("sequences", 1)] + list(sequence.counts.items()):
        totals[name] = totals.get(name, 0) + n
    sequence.log.close()
    text = "sequence %d on %s: %s, %.1f s" % (
        number, sequence.place,
        ", ".join("%d %s" % (sequence.counts[n], n) for n in
                  ("steps", "exports", "logs", "faults", "restores")),
        time.monotonic() - start)
    kept = None
    if problem or options.keep:
        kept = keep(sequence)
    shutil.rmtree(sequence.directory, ignore_errors=True)
    return text, problem, kept


def keep(sequence):
    """Copies a sequence's directory out of the mounts of this process."""
    kept = tempfile.mkdtemp(prefix="cairn-property-%s-%d-" % (
        sequence.seed, sequence.number))
    subprocess.run(["cp", "-a", "--sparse=always", sequence.directory + "/.",
                    kept], timeout=600)
    return kept


def report(count, text, problem, kept, options, number):
    print("%s %d - %s" % ("not ok" if problem else "ok", count, text))
    if problem:
        for line in problem.splitlines():
            print("#   " + line)
        print("#   again: tests/random/property.py --seed %s --only %d" % (
            options.seed, number))
    if kept:
        print("# note kept: %s (steps.log in it)" % kept)
    sys.stdout.flush()


def note(text):
    print("# note " + text, flush=True)


def totals_line(totals):
    return "# ran " + ", ".join("%d %s" % (totals.get(n, 0), n)
                                for n in ["sequences"] + COUNTS)


def suite(options):
    """All sequences of this process, as TAP."""
    print("# seed %s" % options.seed, flush=True)
    must([CAIRN, "--version"])
    if shutil.which("qemu-img") is None:
        print("1..1\nok 1 - property # SKIP no qemu-img")
        return 0
    features, places = Features(note), Places(note, options.place)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    count = failed = 0
    totals = {}
    number = options.only if options.only is not None else options.first
    start = time.monotonic()
    try:
        while True:
            if options.only is not None:
                done = count == 1
            elif options.sequences is not None:
                done = number > options.sequences
            else:
                done = count and time.monotonic() - start > options.seconds
            if done or failed >= 5:
                break
            count += 1
            text, problem, kept = play(options, number, places, features,
                                       totals)
            failed += problem is not None
            report(count, text, problem, kept, options, number)
            number += options.stride
    finally:
        places.close()
    if options.only is None and not failed:
        # Fulls alone would make all of this easy.
        count += 1
        failed = not totals["logs"]
        print("%s %d - some exports were logs" % (
            "not ok" if failed else "ok", count))
    print("1..%d" % count)
    print(totals_line(totals))
    return 1 if failed else 0


def parallel(options):
    """Runs itself `jobs` times, each on every n-th sequence."""
    argv = [sys.executable, os.path.realpath(__file__), "--seed", options.seed,
            "--stride", str(options.jobs)]
    for name in ("sequences", "seconds"):
        if getattr(options, name) is not None:
            argv += ["--" + name, str(getattr(options, name))]
    argv += ["--place", *options.place] if options.place else []
    argv += ["--keep"] if options.keep else []
    children = [subprocess.Popen(argv + ["--first", str(i + 1)],
                                 stdout=subprocess.PIPE, text=True)
                for i in range(options.jobs)]
    lock, totals, state = threading.Lock(), {}, {"count": 0, "failed": 0}

    def forward(child, is_first):
        for line in child.stdout:
            with lock:
                match = re.match(r"((?:not )?ok) \d+ (.*)", line)
                if match:
                    state["count"] += 1
                    state["failed"] += match.group(1) == "not ok"
                    line = "%s %d %s\n" % (match.group(1), state["count"],
                                           match.group(2))
                elif line.startswith("# ran "):
                    for n, name in re.findall(r"(\d+) ([a-z ]+)", line):
                        totals[name] = totals.get(name, 0) + int(n)
                    continue
                elif line.startswith("1.."):
                    continue
                elif line.startswith(("# seed", "# note no")) and not is_first:
                    continue
                sys.stdout.write(line)
                sys.stdout.flush()

    threads = [threading.Thread(target=forward, args=(c, i == 0))
               for i, c in enumerate(children)]
    for t in threads:
        t.start()
    try:
        for t in threads:
            t.join()
    except BaseException:
        for c in children:
            c.terminate()
        raise
    codes = [c.wait() for c in children]
    print("1..%d" % state["count"])
    print(totals_line(totals))
    return 1 if state["failed"] or any(codes) else 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("seconds", float), ("sequences", int), ("seed", str),
                       ("only", int), ("jobs", int)):
        parser.add_argument("--" + name, type=kind, help=argparse.SUPPRESS)
    for name in ("stride", "first"):
        parser.add_argument("--" + name, type=int, default=1,
                            help=argparse.SUPPRESS)
    parser.add_argument("--place", nargs="+", help=argparse.SUPPRESS)
    for name in ("keep", "self-test"):
        parser.add_argument("--" + name, action="store_true",
                            help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.seed = options.seed or os.environ.get("CAIRN_SEED") or "1"
    if options.seconds is None and options.sequences is None:
        options.seconds = float(os.environ.get("CAIRN_RANDOM_SECONDS") or 60)
    if not os.access(CAIRN, os.X_OK):
        print("property.py: no %s; build first" % CAIRN, file=sys.stderr)
        return 3
    if options.self_test:
        return self_test()
    if options.jobs and options.jobs > 1:
        return parallel(options)
    return suite(options)


if __name__ == "__main__":
    sys.exit(main())
