"""No judge that cannot object: damages copies of a good tree and sees every
judge of the property find the damage, and accept the tree as it was."""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid

from judges import (BLOCK, ZERO, Failure, check_states, check_with_qemu,
                    difference, expect, must, no_helper_left, points_in,
                    qcow2_states, sparse_copy)
from tree import CAIRN, Point, write_collection


def self_test():
    """Damages copies of a good tree and sees each judge object."""
    tests = []

    def objects(name, action, *arguments):
        try:
            action(*arguments)
        except Failure as e:
            tests.append((True, name, str(e).splitlines()[0]))
        else:
            tests.append((False, name, "nobody objected"))

    def agrees(name, action, *arguments):
        try:
            action(*arguments)
        except Failure as e:
            tests.append((False, name, str(e)))
        else:
            tests.append((True, name, ""))

    with tempfile.TemporaryDirectory(prefix="cairn-self-test-") as d:
        disk, machine = os.path.join(d, "a.raw"), str(uuid.uuid4()).upper()
        out, listing = os.path.join(d, "out"), os.path.join(d, "c.lua")
        write_collection(listing, str(uuid.uuid4()).upper(),
                         [(machine, [("vda", disk, "raw", None)], [])], None)
        size = 40 * BLOCK + 1
        with open(disk, "wb") as f:
            f.write(random.Random(1).randbytes(size))
        shadows, points, key = [], [], (machine, "vda")

        def export(base):
            shadows.append(os.path.join(d, "shadow-%d" % len(shadows)))
            sparse_copy(disk, shadows[-1])
            before = points_in(out)
            must([CAIRN, "export", "--collection", listing, "--to", out,
                  "--base", base])
            points.append(Point(out, (points_in(out) - before).pop(),
                                {key: shadows[-1]}, b""))

        export("none")
        with open(disk, "r+b") as f:
            os.pwrite(f.fileno(), bytes(3 * BLOCK), 5 * BLOCK)
            os.pwrite(f.fileno(), b"x" * BLOCK, 20 * BLOCK)
        export("latest")

        def tree(name):
            copy = os.path.join(d, name)
            shutil.copytree(out, copy)
            return copy

        def by_qemu(directory, index=1, length=size):
            f = points[index].disks[key]
            check_with_qemu(os.path.join(directory, points[index].id,
                                         f["path"]), f["format"], length,
                            shadows[index], os.path.join(d, "scratch"))

        def by_states(directory):
            f = points[1].disks[key]
            check_states(os.path.join(directory, points[1].id, f["path"]),
                         shadows[1], shadows[0])

        def by_verify(directory):
            must([CAIRN, "verify", directory])

        def path_in(directory, index):
            return os.path.join(directory, points[index].id,
                                points[index].disks[key]["path"])

        def patch(path, offset, data):
            with open(path, "r+b") as f:
                os.pwrite(f.fileno(), data, offset)

        for judge in (by_qemu, by_states, by_verify):
            agrees("%s accepts the tree as it is" % judge.__name__, judge, out)

        lost = tree("lost-zero")
        states, entries = qcow2_states(path_in(lost, 1))
        zero = next(i for i in sorted(states) if states[i] == ZERO)
        patch(path_in(lost, 1), entries[zero], bytes(8))
        for judge in (by_qemu, by_states, by_verify):
            objects("%s sees a lost zero" % judge.__name__, judge, lost)

        missed = tree("missed-change")
        patch(path_in(missed, 1), entries[20], bytes(8))
        for judge in (by_qemu, by_states, by_verify):
            objects("%s sees a missed change" % judge.__name__, judge, missed)

        stale = tree("stale-base")
        patch(path_in(stale, 0), 3 * BLOCK, b"\x55" * 512)
        for judge in (by_qemu, by_verify):
            objects("%s sees a stale base" % judge.__name__, judge, stale)

        for length in (size - 1, size + 1, size - 512, size + 512):
            objects("by_qemu sees the length %+d" % (length - size), by_qemu,
                    out, 1, length)
        restored = os.path.join(d, "restored")
        must([CAIRN, "restore", points[1].directory, "--to", restored])
        target = os.path.join(restored, machine, "vda.raw")

        def restored_equals(shadow):
            wrong = difference(target, shadow)
            expect(not wrong, wrong)
        agrees("difference accepts what was restored", restored_equals,
               shadows[1])
        objects("difference sees the content of another point",
                restored_equals, shadows[0])
        os.truncate(target, size - 1)
        objects("difference sees a length that is one less", restored_equals,
                shadows[1])
        os.truncate(target, size + 1)
        objects("difference sees a length that is one more", restored_equals,
                shadows[1])

        helper = subprocess.Popen([sys.executable, "-c", "import time; "
                                   "time.sleep(600)", disk])
        try:
            # until it has become that program its arguments are ours
            while os.fsencode(disk) not in open(
                    "/proc/%d/cmdline" % helper.pid, "rb").read():
                time.sleep(0.01)
            objects("no_helper_left sees a program", no_helper_left, d)
        finally:
            helper.kill()
            helper.wait(60)
    for i, (is_ok, name, text) in enumerate(tests):
        print("%s %d - %s" % ("ok" if is_ok else "not ok", i + 1, name))
        if text:
            print("#   " + text)
    print("1..%d" % len(tests))
    return 0 if all(t[0] for t in tests) else 1
