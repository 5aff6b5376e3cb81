"""Disks that are changed at random, by Python (raw) and by qemu-io and
qemu-img (qcow2), and the flat copies that say what they held."""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time

from judges import BLOCK, Failure, must, run, sparse_copy

MIB = 1 << 20
SIZES = [1, 511, 512, 513, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 512,
         MIB, 2 * MIB + 17, 5 * MIB]
LARGE = [512 * MIB + 1, 600 * MIB, 1100 * MIB - 511, 1536 * MIB + BLOCK]
LIMIT = 2048 * MIB

_libc = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE, KEEP_SIZE = 2, 1


def punch(fd, offset, length):
    return _libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE,
                           ctypes.c_long(offset), ctypes.c_long(length)) == 0


def up(size):
    return (size + 511) // 512 * 512


class Disk:
    """chain: (path, format), bottom first; the last is what a guest has."""

    def __init__(self, sequence, machines, name):
        self.sequence, self.rng = sequence, sequence.rng
        self.machines, self.name = machines, name
        self.files = 0
        self.chain = []
        self.tracker = None
        self.shadow = None      # of the content as it is, None: changed
        self.last_shadow = None  # of a former content
        self.snapshots = 0
        size = self.rng.choice(LARGE if self.rng.random() < 0.12 else SIZES)
        if self.rng.random() < 0.5:
            path = self.new_path("raw")
            with open(path, "wb") as f:
                f.truncate(size)
            self.chain.append((path, "raw"))
        else:
            path = self.new_path("qcow2")
            options = self.rng.choice([
                "compat=1.1", "compat=1.1", "compat=1.1", "compat=0.10",
                "cluster_size=4096", "cluster_size=2M", "lazy_refcounts=on",
                "extended_l2=on,cluster_size=128k"])
            must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options,
                  path, str(up(size))])
            self.chain.append((path, "qcow2"))
        self.say("new, %s of %d bytes, of %d machines" %
                 (self.format, size, len(machines)))

    @property
    def path(self):
        return self.chain[-1][0]

    @property
    def format(self):
        return self.chain[-1][1]

    def say(self, text):
        self.sequence.say("%s: %s" % (self.name, text))

    def new_path(self, fmt):
        self.files += 1
        return os.path.join(self.sequence.images, "%s-%d.%s" %
                            (self.name, self.files, fmt))

    def size(self):
        if self.format == "raw":
            return os.stat(self.path).st_size
        with open(self.path, "rb") as f:
            return int.from_bytes(f.read(32)[24:32], "big")

    def changed(self):
        self.last_shadow = self.shadow or self.last_shadow
        self.shadow = None

    def take_shadow(self):
        """A flat copy of the content as it is now."""
        if not self.shadow:
            path = self.sequence.new_shadow(self.name)
            if self.format == "raw":
                sparse_copy(self.path, path)
            else:
                must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw",
                      self.path, path])
            self.shadow = path
        return self.shadow

    # ---- steps --------------------------------------------------------------

    def range(self, size):
        """A range in a disk of size >= 1 bytes: often a block, or at an
        edge."""
        rng = self.rng
        length = rng.choice([1, 511, 512, 4096, BLOCK, BLOCK, 2 * BLOCK,
                             rng.randint(1, 5 * BLOCK)])
        offset = rng.choice([rng.randrange(size), rng.randrange(size),
                             rng.randrange(size) // BLOCK * BLOCK,
                             max(0, size - length), 0])
        return offset, min(length, size - offset)

    def new_size(self, direction):
        rng, size = self.rng, self.size()
        if direction < 0:
            size = rng.choice([rng.randint(0, size), size // 2,
                               max(0, size - 1), size // BLOCK * BLOCK,
                               max(0, size - 3 * BLOCK)])
        else:
            size += rng.choice([1, 511, 512, BLOCK - 1, BLOCK,
                                rng.randint(1, 4 * MIB)])
            if rng.random() < 0.03:
                size += 520 * MIB
        return min(size, LIMIT)

    def step(self):
        """One random change; the same content afterwards is allowed."""
        steps = [("write", 8), ("same", 2), ("old", 2), ("zero", 4),
                 ("discard", 4), ("grow", 1), ("shrink", 1), ("regrow", 2),
                 ("snapshot", 1), ("replace", 1)]
        if self.format == "qcow2":
            steps += [("compressed", 1), ("internal", 1), ("kill", 1)]
            if self.snapshots:
                steps += [("revert", 2)]
            if len(self.chain) > 1:
                steps += [("rebase", 1), ("rebase_changed", 1), ("commit", 1),
                          ("flatten", 1)]
        names, weights = zip(*steps)
        name = self.rng.choices(names, weights)[0]
        count = self.rng.randint(1, 4)
        if self.format == "raw":
            getattr(self, "raw_" + name, getattr(self, name, None))(count)
        else:
            getattr(self, "qcow2_" + name, getattr(self, name, None))(count)
        self.changed()
        return name

    def raw_write(self, count):
        with open(self.path, "r+b") as f:
            for _ in range(count if self.size() else 0):
                offset, length = self.range(self.size())
                self.say("write %d at %d" % (length, offset))
                if self.rng.random() < 0.5:
                    data = self.rng.randbytes(length)
                else:
                    data = bytes([self.rng.randint(1, 255)]) * length
                os.pwrite(f.fileno(), data, offset)

    def raw_same(self, count):
        with open(self.path, "r+b") as f:
            for _ in range(count if self.size() else 0):
                offset, length = self.range(self.size())
                self.say("write the same %d at %d" % (length, offset))
                os.pwrite(f.fileno(), os.pread(f.fileno(), length, offset),
                          offset)

    def old(self, count):
        """What was there at some former time."""
        if not self.last_shadow or not self.size():
            return
        commands = []
        with open(self.last_shadow, "rb") as old:
            for i in range(count):
                offset, length = self.range(self.size())
                data = os.pread(old.fileno(), length, offset)
                if not data:
                    continue
                self.say("write the former %d at %d" % (len(data), offset))
                if self.format == "raw":
                    with open(self.path, "r+b") as f:
                        os.pwrite(f.fileno(), data, offset)
                else:
                    pattern = self.sequence.scratch("pattern-%d" % i)
                    with open(pattern, "wb") as f:
                        f.write(data)
                    commands.append("write -s %s %d %d" %
                                    (pattern, offset, len(data)))
        self.io(commands)

    def raw_zero(self, count):
        with open(self.path, "r+b") as f:
            for _ in range(count if self.size() else 0):
                offset, length = self.range(self.size())
                self.say("zero %d at %d" % (length, offset))
                os.pwrite(f.fileno(), bytes(length), offset)

    def raw_discard(self, count):
        with open(self.path, "r+b") as f:
            for _ in range(count if self.size() else 0):
                offset, length = self.range(self.size())
                self.say("punch %d at %d" % (length, offset))
                if not punch(f.fileno(), offset, length):
                    os.pwrite(f.fileno(), bytes(length), offset)

    def raw_grow(self, _):
        self.resize([self.new_size(1)])

    qcow2_grow = raw_grow

    def raw_shrink(self, _):
        self.resize([self.new_size(-1)])

    qcow2_shrink = raw_shrink

    def raw_regrow(self, _):
        before = self.size()
        after = self.rng.choice([before, self.new_size(1)])
        self.resize([self.new_size(-1), after])

    qcow2_regrow = raw_regrow

    def resize(self, sizes):
        if self.format == "raw":
            self.say("size to " + ", then ".join(map(str, sizes)))
            for size in sizes:
                os.truncate(self.path, size)
        else:
            self.io(["truncate %d" % up(size) for size in sizes])

    def replace(self, _):
        """The same content in a new inode."""
        path = self.new_path(self.format)
        self.say("moved to a copy, %s" % os.path.basename(path))
        shutil.copyfile(self.path, path)
        os.unlink(self.path)
        self.chain[-1] = (path, self.format)

    def snapshot(self, _):
        path = self.new_path("qcow2")
        name = self.path
        if self.rng.random() < 0.5:
            name = os.path.basename(name)
        self.say("external snapshot %s" % os.path.basename(path))
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-F", self.format,
              "-b", name, path])
        if self.format == "qcow2" and self.rng.random() < 0.6:
            for bitmap in self.bitmaps():
                self.say("bitmap %s in it too" % bitmap)
                must(["qemu-img", "bitmap", "--add", "-g", "65536", path,
                      bitmap])
        self.chain.append((path, "qcow2"))
        self.snapshots = 0

    def bitmaps(self):
        info = json.loads(must(["qemu-img", "info", "--output=json", "-f",
                                "qcow2", self.path]))
        found = info["format-specific"]["data"].get("bitmaps", [])
        return [b["name"] for b in found if b["name"].startswith("cairn-")]

    # ---- qcow2 only ---------------------------------------------------------

    def io(self, commands):
        if not commands:
            return
        argv = ["qemu-io", "-d", "unmap", "-f", "qcow2"]
        for c in commands:
            argv += ["-c", c]
        self.say("qemu-io " + "; ".join(commands))
        code, output = run(argv + [self.path])
        if code != 0 or "failed" in output or "rror" in output:
            self.refused(output)

    def refused(self, output):
        """QEMU may refuse a step: it is then no change."""
        self.sequence.refused += 1
        self.say("refused: " + output.strip())

    def commands(self, count, make):
        size = self.size()
        self.io([make(*self.range(size)) for _ in range(count if size else 0)])

    def write_command(self, offset, length):
        return "write -P %d %d %d" % (self.rng.randint(1, 255), offset, length)

    def qcow2_write(self, count):
        self.commands(count, self.write_command)

    def qcow2_same(self, count):
        """What is there, when nothing has changed since the last export."""
        self.last_shadow = self.shadow or self.last_shadow
        self.old(count)

    def qcow2_zero(self, count):
        how = self.rng.choice(["write -z", "write -z -u", "write -P 0"])
        self.commands(count, lambda o, n: "%s %d %d" % (how, o, n))

    def qcow2_discard(self, count):
        self.commands(count, lambda o, n: "discard %d %d" % (o, n))

    def qcow2_compressed(self, count):
        size = self.size() // BLOCK
        if not size:
            return
        self.io(["write -c -P %d %d %d" %
                 (self.rng.randint(1, 255), self.rng.randrange(size) * BLOCK,
                  BLOCK) for _ in range(count)])

    def qcow2_internal(self, _):
        self.say("internal snapshot")
        code, output = run(["qemu-img", "snapshot", "-c",
                            "s%d" % self.snapshots, self.path])
        if code != 0:
            self.refused(output)
        else:
            self.snapshots += 1

    def qcow2_revert(self, _):
        name = "s%d" % self.rng.randrange(self.snapshots)
        self.say("back to internal snapshot " + name)
        code, output = run(["qemu-img", "snapshot", "-a", name, self.path])
        if code != 0:
            self.refused(output)

    def qcow2_kill(self, count):
        """kill -9 of what writes to the image."""
        size = self.size()
        if not size:
            return
        commands = []
        for _ in range(count):
            commands += ["-c", self.write_command(*self.range(size))]
        self.say("killed within: " + " ".join(commands))
        with subprocess.Popen(["qemu-io", "-f", "qcow2"] + commands +
                              ["-c", "sleep 20000", self.path],
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as p:
            time.sleep(self.rng.uniform(0, 0.06))
            p.send_signal(signal.SIGKILL)
            p.wait(60)
        code, output = run(["qemu-img", "check", "-q", "-r", "all", "-f",
                            "qcow2", self.path])
        if code not in (0, 3):
            raise Failure("the source is damaged: " + output)

    def copy_of_backing(self):
        path, fmt = self.chain[-2]
        copy = self.new_path(fmt)
        sparse_copy(path, copy)
        return copy, fmt

    def rebase_to(self, copy, fmt):
        must(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", fmt, "-b", copy,
              self.path])
        self.chain[-2] = (copy, fmt)

    def qcow2_rebase(self, _):
        copy, fmt = self.copy_of_backing()
        self.say("rebase -u to a copy of its backing file")
        self.rebase_to(copy, fmt)

    def qcow2_rebase_changed(self, _):
        copy, fmt = self.copy_of_backing()
        size = os.stat(copy).st_size if fmt == "raw" else 512
        offset, length = self.range(size) if size else (0, 0)
        self.say("rebase -u to a changed copy of its backing file")
        if fmt == "raw" and size:
            with open(copy, "r+b") as f:
                os.pwrite(f.fileno(), self.rng.randbytes(length), offset)
        elif fmt == "qcow2":
            run(["qemu-io", "-f", "qcow2", "-c",
                 self.write_command(offset, length), copy])
        self.rebase_to(copy, fmt)

    def qcow2_commit(self, _):
        self.say("commit")
        code, output = run(["qemu-img", "commit", "-q", "-f", "qcow2",
                            self.path])
        if code != 0:
            self.refused(output)
        elif self.rng.random() < 0.6:
            self.say("goes on with its backing file")
            self.chain.pop()
            self.snapshots = 0

    def qcow2_flatten(self, _):
        self.say("rebase to no backing file")
        code, output = run(["qemu-img", "rebase", "-f", "qcow2", "-b", "",
                            self.path])
        if code != 0:
            self.refused(output)
        else:
            self.chain = self.chain[-1:]
