"""The judges: Python, cmp's rule (every byte and the exact length) and
qemu-img. Nothing of Cairn's own code decides whether Cairn is right."""
import errno
import os
import re
import struct
import subprocess
import time

BLOCK = 65536
TIMEOUT_S = 300
GUID = re.compile(r"^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$")


class Failure(Exception):
    """The property does not hold."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


def run(argv, **options):
    """Runs a program to its end; returns (exit code, output)."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.STDOUT)
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=TIMEOUT_S,
                              **options)
    except subprocess.TimeoutExpired:
        raise Failure("did not end within %d s: %s" %
                      (TIMEOUT_S, " ".join(argv)))
    return done.returncode, done.stdout.decode(errors="replace")


def must(argv, **options):
    code, output = run(argv, **options)
    expect(code == 0, "%s\nended with %d: %s" % (" ".join(argv), code, output))
    return output


# ---- content ----------------------------------------------------------------

def data_extents(fd):
    """The ranges of a file that are not holes."""
    at, out = 0, []
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return out
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        out.append((start, at))


def data_blocks(fd):
    blocks = set()
    for start, end in data_extents(fd):
        blocks.update(range(start // BLOCK, (end + BLOCK - 1) // BLOCK))
    return blocks


def block(fd, i):
    """A block of a file, padded with zeros."""
    return os.pread(fd, BLOCK, i * BLOCK).ljust(BLOCK, b"\0")


def difference(path, shadow):
    """None when two files agree in every byte and in length, else what does
    not."""
    with open(path, "rb") as a, open(shadow, "rb") as b:
        sizes = os.fstat(a.fileno()).st_size, os.fstat(b.fileno()).st_size
        if sizes[0] != sizes[1]:
            return "%s has %d bytes, its shadow %d" % (path, *sizes)
        for i in sorted(data_blocks(a.fileno()) | data_blocks(b.fileno())):
            x, y = block(a.fileno(), i), block(b.fileno(), i)
            if x != y:
                at = next(j for j in range(BLOCK) if x[j] != y[j])
                return "%s differs from its shadow at %d (block %d): " \
                    "0x%02x, not 0x%02x" % (path, i * BLOCK + at, i, x[at],
                                            y[at])
    return None


def sparse_copy(source, target):
    with open(source, "rb") as a, open(target, "wb") as b:
        for start, end in data_extents(a.fileno()):
            while start < end:
                data = os.pread(a.fileno(), min(1 << 20, end - start), start)
                if not data:
                    break
                if data.count(0) != len(data):
                    os.pwrite(b.fileno(), data, start)
                start += len(data)
        b.truncate(os.fstat(a.fileno()).st_size)


# ---- what an export holds ----------------------------------------------------

DATA, ZERO = 1, 2


def qcow2_states(path):
    """block -> DATA or ZERO, from the file's own tables, and the offsets of
    the L2 entries."""
    states, entries = {}, {}
    with open(path, "rb") as f:
        header = f.read(112)
        expect(header[:4] == b"QFI\xfb", path + " is no qcow2")
        l1_size, l1_offset = struct.unpack(">IQ", header[36:48])
        for i in range(l1_size):
            f.seek(l1_offset + 8 * i)
            table = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
            if not table:
                continue
            f.seek(table)
            l2 = f.read(BLOCK)
            if l2.count(0) == len(l2):
                continue
            for j, entry in enumerate(struct.unpack(">8192Q", l2)):
                if entry:
                    states[i * 8192 + j] = ZERO if entry & 1 else DATA
                    entries[i * 8192 + j] = table + 8 * j
    return states, entries


def expected_states(shadow, base):
    """What an image with this content has to hold when its base (a path, or
    None) has that one."""
    states, zeros = {}, bytes(BLOCK)
    with open(shadow, "rb") as a, open(base or os.devnull, "rb") as b:
        blocks = data_blocks(a.fileno())
        if base:
            blocks |= data_blocks(b.fileno())
        size = os.fstat(a.fileno()).st_size
        for i in blocks:
            if i * BLOCK >= size:
                continue
            now = block(a.fileno(), i)
            before = block(b.fileno(), i) if base else zeros
            if now != before:
                states[i] = ZERO if now == zeros else DATA
    return states


def check_states(path, shadow, base):
    """Exactly what changed is stored: no more, and no zero is lost."""
    have, want = qcow2_states(path)[0], expected_states(shadow, base)
    if have != want:
        names = {None: "nothing", DATA: "data", ZERO: "zero"}
        wrong = sorted(i for i in set(have) | set(want)
                       if have.get(i) != want.get(i))
        raise Failure("%s: %d blocks are not what changed; block %d has %s, "
                      "not %s" % (path, len(wrong), wrong[0],
                                  names[have.get(wrong[0])],
                                  names[want.get(wrong[0])]))


def check_with_qemu(path, fmt, length, shadow, scratch):
    """The disk of a point, read by qemu-img through its whole chain."""
    must(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, scratch])
    try:
        size = os.stat(scratch).st_size
        expect(size == (length + 511) // 512 * 512 or
               (fmt == "raw" and size == length),
               "%s: qemu-img reads %d bytes, not %d rounded up to 512" %
               (path, size, length))
        with open(scratch, "r+b") as f:
            f.seek(length)
            expect(f.read().count(0) == size - length,
                   path + ": what lies beyond the length is not zero")
            f.truncate(length)
        wrong = difference(scratch, shadow)
        expect(not wrong, "%s by qemu-img convert: %s" % (path, wrong))
    finally:
        os.unlink(scratch)
    if fmt == "qcow2":
        must(["qemu-img", "check", "-q", "-f", "qcow2", path])


def points_in(directory):
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {n for n in names if GUID.match(n) and
            os.path.exists(os.path.join(directory, n, "manifest.json"))}


def no_helper_left(directory):
    """No program with this directory in its arguments outlives an export."""
    needle = os.fsencode(directory)
    deadline = time.monotonic() + 10
    while True:
        left = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid, "rb") as f:
                    line = f.read()
            except OSError:
                continue
            if needle in line and int(pid) != os.getpid():
                left.append("%s %s" % (pid, line.replace(b"\0", b" ")))
        if not left:
            return
        expect(time.monotonic() < deadline,
               "programs that are left: " + "; ".join(left))
        time.sleep(0.05)
