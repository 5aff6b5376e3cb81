"""Where sequences work: directories on different file systems.

As root, file systems of their own (ext4, XFS, btrfs) on loop devices, so that
reflinks are there and so that one can be filled up. They are mounted in a
mount namespace of this process: however it ends, the kernel unmounts them and
frees the loop devices, and their images have no name left by then.
"""
import ctypes
import os
import shutil
import subprocess
import tempfile

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
SIZE = 4 << 30  # of a file system; the images are sparse

_libc = ctypes.CDLL(None, use_errno=True)

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


def _unshare():
    return (_libc.unshare(CLONE_NEWNS) == 0 and
            _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0)


class Places:
    """paths: name -> directory; fillable: the names that may be filled up."""

    def __init__(self, note, wanted=None):
        self.root = tempfile.mkdtemp(prefix="cairn-property-")
        self.paths = {"disk": os.path.join(self.root, "disk")}
        os.mkdir(self.paths["disk"])
        self.fillable = []
        self._shm = None
        if os.access("/dev/shm", os.W_OK):
            self._shm = tempfile.mkdtemp(prefix="cairn-property-",
                                         dir="/dev/shm")
            self.paths["tmpfs"] = self._shm
        if os.geteuid() != 0 or not _unshare():
            note("not root: no file systems on loop devices, none is filled up")
        else:
            for name in MAKE:
                if wanted and name not in wanted:
                    continue
                error = self._mount(name)
                if error:
                    note("no %s: %s" % (name, error))
        if wanted:
            self.paths = {n: p for n, p in self.paths.items() if n in wanted}
            self.fillable = [n for n in self.fillable if n in wanted]

    def _mount(self, name):
        if not shutil.which(MAKE[name][0]):
            return "no " + MAKE[name][0]
        image = os.path.join(self.root, name + ".img")
        path = os.path.join(self.root, name)
        with open(image, "wb") as f:
            f.truncate(SIZE)
        os.mkdir(path)
        try:
            for argv in (MAKE[name] + [image],
                         ["mount", "-o", "loop,discard", image, path]):
                done = subprocess.run(argv, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, timeout=120)
                if done.returncode != 0:
                    os.rmdir(path)
                    return done.stdout.decode(errors="replace").strip()
        finally:
            os.unlink(image)
        self.paths[name] = path
        self.fillable.append(name)
        return None

    def close(self):
        for name in MAKE:
            path = os.path.join(self.root, name)
            if os.path.ismount(path):
                subprocess.run(["umount", "-l", path], timeout=120)
        shutil.rmtree(self.root, ignore_errors=True)
        if self._shm:
            shutil.rmtree(self._shm, ignore_errors=True)


class Ballast:
    """Fills the file system of a directory until about `free` bytes are left;
    leaving the block frees them again."""

    def __init__(self, directory, free):
        self.path = os.path.join(directory, ".ballast")
        self.free = free

    def __enter__(self):
        s = os.statvfs(os.path.dirname(self.path))
        size = s.f_bavail * s.f_frsize - self.free
        if size > 0:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                pass  # nearly full is good enough
            finally:
                os.close(fd)
        return self

    def __exit__(self, *_):
        if os.path.exists(self.path):
            os.unlink(self.path)
