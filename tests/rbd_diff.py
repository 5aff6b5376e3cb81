"""Applies a stream `rbd diff v1` to a file, written from the format's public
description (Ceph: doc/dev/rbd-diff.rst) and nothing else, as a judge.

    rbd_diff.py STREAM TARGET      TARGET is changed in place, made if missing
    rbd_diff.py --show STREAM      one line a record

Ends with 1 and says why when the stream is not one that `rbd import-diff`
would take: records out of order, beyond the size, without an end.
"""
import os
import struct
import sys


def records(f):
    def take(n):
        data = f.read(n)
        if len(data) != n:
            raise ValueError("the stream is cut off")
        return data

    if take(12) != b"rbd diff v1\n":
        raise ValueError("no banner")
    size, last = None, 0
    while True:
        tag = take(1)
        if tag in b"ft":
            if last or size is not None:
                raise ValueError("a name behind the size or data")
            name = take(struct.unpack("<I", take(4))[0])
            yield tag.decode(), name.decode(), None
        elif tag == b"s":
            size, = struct.unpack("<Q", take(8))
            yield "s", size, None
        elif tag in b"wz":
            offset, length = struct.unpack("<QQ", take(16))
            if size is None or length == 0:
                raise ValueError("a record before the size, or empty")
            if offset < last or offset + length > size:
                raise ValueError("overlap, or beyond the size")
            last = offset + length
            yield tag.decode(), offset, take(length) if tag == b"w" else length
        elif tag == b"e":
            if f.read(1):
                raise ValueError("something behind the end")
            return
        else:
            raise ValueError("unknown tag %r" % tag)


def main(argv):
    is_show = argv[1] == "--show"
    with open(argv[2] if is_show else argv[1], "rb") as f:
        if is_show:
            for tag, a, b in records(f):
                print(tag, a, len(b) if tag == "w" else b or "")
            return
        out = os.open(argv[2], os.O_RDWR | os.O_CREAT, 0o600)
        for tag, a, b in records(f):
            if tag == "s":
                os.ftruncate(out, a)
            elif tag == "w":
                os.pwrite(out, b, a)
            elif tag == "z":
                os.pwrite(out, bytes(b), a)


if __name__ == "__main__":
    try:
        main(sys.argv)
    except ValueError as e:
        sys.exit("rbd_diff.py: %s" % e)
