/* Faults on demand: every entry counts its call, asks whether this is the one
 * that fails, and otherwise passes on to the table beneath. Calls are numbered
 * from 1 in the order in which they begin, over all threads.
 *
 * A call that fails has no effect, except that close() always closes: a
 * descriptor must not leak because its close was chosen. */
#include "io.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* what a short transfer on a direct descriptor leaves out */
#define PIECE 4096

static struct cairn__fault_io *fault_of(const struct cairn_io *io)
{
  return (struct cairn__fault_io *)(uintptr_t)io;
}

static void fire(struct cairn__fault_io *f, const char *name)
{
  if (!atomic_exchange(&f->has_fired, 1)) {
    atomic_store(&f->fired_at, name);
  }
}

/* What happens to this call: 0 it is made, otherwise the kind of its fault.
 * is_write: ENOSPC_ON applies; is_transfer: SHORT applies. */
static int fault(struct cairn__fault_io *f, const char *name, int is_write,
                 int is_transfer)
{
  uint64_t call = atomic_fetch_add(&f->calls, 1) + 1;

  if (f->at == 0 || call < f->at) {
    return CAIRN__FAULT_NONE;
  }
  if (f->kind == CAIRN__FAULT_ENOSPC_ON) {
    if (!is_write) {
      return CAIRN__FAULT_NONE;
    }
    fire(f, name);
    errno = ENOSPC;
    return CAIRN__FAULT_ENOSPC_ON;
  }
  if (call != f->at) {
    return CAIRN__FAULT_NONE;
  }
  switch (f->kind) {
  case CAIRN__FAULT_ERRNO:
    fire(f, name);
    errno = f->errnum;
    return CAIRN__FAULT_ERRNO;
  case CAIRN__FAULT_SHORT:
    return is_transfer ? CAIRN__FAULT_SHORT : CAIRN__FAULT_NONE;
  case CAIRN__FAULT_KILL:
    fire(f, name);
    _exit(137);
  default:
    return CAIRN__FAULT_NONE;
  }
}

static int fault_openat(const struct cairn_io *io, int dirfd, const char *path,
                        int flags, mode_t mode)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "openat", (flags & O_CREAT) != 0, 0)) {
    return -1;
  }
  return f->base->openat(f->base, dirfd, path, flags, mode);
}

static int fault_close(const struct cairn_io *io, int fd)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "close", 0, 0)) {
    int saved = errno;

    (void)f->base->close(f->base, fd);
    errno = saved;
    return -1;
  }
  return f->base->close(f->base, fd);
}

/* The n to try instead of n when a transfer is to be short; 0 = interrupted
 * before anything moved. */
static size_t shorter(size_t n, int attempt)
{
  size_t less = attempt == 0 ? 1 : PIECE;

  return n > less ? n - less : 0;
}

static ssize_t fault_pread(const struct cairn_io *io, int fd, void *buf,
                           size_t n, off_t offset)
{
  struct cairn__fault_io *f = fault_of(io);
  int kind = fault(f, "pread", 0, 1), attempt;

  if (kind == CAIRN__FAULT_NONE) {
    return f->base->pread(f->base, fd, buf, n, offset);
  }
  if (kind != CAIRN__FAULT_SHORT) {
    return -1;
  }
  fire(f, "pread");
  for (attempt = 0; shorter(n, attempt) > 0; attempt++) {
    ssize_t got = f->base->pread(f->base, fd, buf, shorter(n, attempt), offset);

    if (got >= 0 || errno != EINVAL || attempt == 1) {
      return got;
    }
  }
  errno = EINTR;
  return -1;
}

static ssize_t fault_pwrite(const struct cairn_io *io, int fd, const void *buf,
                            size_t n, off_t offset)
{
  struct cairn__fault_io *f = fault_of(io);
  int kind = fault(f, "pwrite", 1, 1), attempt;

  if (kind == CAIRN__FAULT_NONE) {
    return f->base->pwrite(f->base, fd, buf, n, offset);
  }
  if (kind != CAIRN__FAULT_SHORT) {
    return -1;
  }
  fire(f, "pwrite");
  for (attempt = 0; shorter(n, attempt) > 0; attempt++) {
    ssize_t put =
        f->base->pwrite(f->base, fd, buf, shorter(n, attempt), offset);

    if (put >= 0 || errno != EINVAL || attempt == 1) {
      return put;
    }
  }
  errno = EINTR;
  return -1;
}

static ssize_t fault_pwritev(const struct cairn_io *io, int fd,
                             const struct iovec *iov, int count, off_t offset)
{
  struct cairn__fault_io *f = fault_of(io);
  int kind = fault(f, "pwritev", 1, 1), attempt;

  if (kind == CAIRN__FAULT_NONE) {
    return f->base->pwritev(f->base, fd, iov, count, offset);
  }
  if (kind != CAIRN__FAULT_SHORT) {
    return -1;
  }
  fire(f, "pwritev");
  if (count > 1) {
    /* all but the last piece: short by more than a byte, and aligned */
    return f->base->pwritev(f->base, fd, iov, count - 1, offset);
  }
  for (attempt = 0; count == 1 && shorter(iov->iov_len, attempt) > 0;
       attempt++) {
    ssize_t put = f->base->pwrite(f->base, fd, iov->iov_base,
                                  shorter(iov->iov_len, attempt), offset);

    if (put >= 0 || errno != EINVAL || attempt == 1) {
      return put;
    }
  }
  errno = EINTR;
  return -1;
}

static ssize_t fault_read(const struct cairn_io *io, int fd, void *buf,
                          size_t n)
{
  struct cairn__fault_io *f = fault_of(io);
  int kind = fault(f, "read", 0, 1);

  if (kind == CAIRN__FAULT_NONE) {
    return f->base->read(f->base, fd, buf, n);
  }
  if (kind != CAIRN__FAULT_SHORT) {
    return -1;
  }
  fire(f, "read");
  if (shorter(n, 0) > 0) {
    return f->base->read(f->base, fd, buf, shorter(n, 0));
  }
  errno = EINTR;
  return -1;
}

static ssize_t fault_write(const struct cairn_io *io, int fd, const void *buf,
                           size_t n)
{
  struct cairn__fault_io *f = fault_of(io);
  int kind = fault(f, "write", 1, 1);

  if (kind == CAIRN__FAULT_NONE) {
    return f->base->write(f->base, fd, buf, n);
  }
  if (kind != CAIRN__FAULT_SHORT) {
    return -1;
  }
  fire(f, "write");
  if (shorter(n, 0) > 0) {
    return f->base->write(f->base, fd, buf, shorter(n, 0));
  }
  errno = EINTR;
  return -1;
}

static int fault_fsync(const struct cairn_io *io, int fd)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fsync", 1, 0)) {
    return -1;
  }
  return f->base->fsync(f->base, fd);
}

static int fault_fdatasync(const struct cairn_io *io, int fd)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fdatasync", 1, 0)) {
    return -1;
  }
  return f->base->fdatasync(f->base, fd);
}

static int fault_ftruncate(const struct cairn_io *io, int fd, off_t length)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "ftruncate", 1, 0)) {
    return -1;
  }
  return f->base->ftruncate(f->base, fd, length);
}

static int fault_fstat(const struct cairn_io *io, int fd, struct stat *st)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fstat", 0, 0)) {
    return -1;
  }
  return f->base->fstat(f->base, fd, st);
}

static int fault_fstatat(const struct cairn_io *io, int dirfd, const char *path,
                         struct stat *st, int flags)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fstatat", 0, 0)) {
    return -1;
  }
  return f->base->fstatat(f->base, dirfd, path, st, flags);
}

static off_t fault_lseek(const struct cairn_io *io, int fd, off_t offset,
                         int whence)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "lseek", 0, 0)) {
    return -1;
  }
  return f->base->lseek(f->base, fd, offset, whence);
}

static int fault_mkdirat(const struct cairn_io *io, int dirfd, const char *path,
                         mode_t mode)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "mkdirat", 1, 0)) {
    return -1;
  }
  return f->base->mkdirat(f->base, dirfd, path, mode);
}

static int fault_renameat2(const struct cairn_io *io, int olddir,
                           const char *old, int newdir, const char *new_,
                           unsigned flags)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "renameat2", 1, 0)) {
    return -1;
  }
  return f->base->renameat2(f->base, olddir, old, newdir, new_, flags);
}

static int fault_linkat(const struct cairn_io *io, int olddir, const char *old,
                        int newdir, const char *new_)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "linkat", 1, 0)) {
    return -1;
  }
  return f->base->linkat(f->base, olddir, old, newdir, new_);
}

static int fault_unlinkat(const struct cairn_io *io, int dirfd,
                          const char *path, int flags)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "unlinkat", 0, 0)) {
    return -1;
  }
  return f->base->unlinkat(f->base, dirfd, path, flags);
}

static int fault_fchmod(const struct cairn_io *io, int fd, mode_t mode)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fchmod", 0, 0)) {
    return -1;
  }
  return f->base->fchmod(f->base, fd, mode);
}

static int fault_futimens(const struct cairn_io *io, int fd,
                          const struct timespec times[2])
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "futimens", 0, 0)) {
    return -1;
  }
  return f->base->futimens(f->base, fd, times);
}

static int fault_ofd_lock(const struct cairn_io *io, int fd, int command,
                          struct flock *lock)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "ofd_lock", 0, 0)) {
    return -1;
  }
  return f->base->ofd_lock(f->base, fd, command, lock);
}

static int fault_ioctl(const struct cairn_io *io, int fd, unsigned long request,
                       void *argument)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "ioctl", 0, 0)) {
    return -1;
  }
  return f->base->ioctl(f->base, fd, request, argument);
}

static DIR *fault_fdopendir(const struct cairn_io *io, int dirfd)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "fdopendir", 0, 0)) {
    return NULL;
  }
  return f->base->fdopendir(f->base, dirfd);
}

static int fault_point(const struct cairn_io *io, const char *what)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, what, 0, 0)) {
    return -1;
  }
  return f->base->point(f->base, what);
}

static int fault_write_behind(const struct cairn_io *io, int fd, off_t offset,
                              off_t n)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "write_behind", 0, 0)) {
    return -1;
  }
  return f->base->write_behind(f->base, fd, offset, n);
}

static int fault_punch(const struct cairn_io *io, int fd, off_t offset, off_t n)
{
  struct cairn__fault_io *f = fault_of(io);

  if (fault(f, "punch", 1, 0)) {
    return -1;
  }
  return f->base->punch(f->base, fd, offset, n);
}

void cairn__fault_io_init(struct cairn__fault_io *f, uint64_t at, int kind,
                          int errnum)
{
  static const struct cairn_io table = {
      .openat = fault_openat,
      .close = fault_close,
      .pread = fault_pread,
      .pwrite = fault_pwrite,
      .pwritev = fault_pwritev,
      .read = fault_read,
      .write = fault_write,
      .fsync = fault_fsync,
      .fdatasync = fault_fdatasync,
      .ftruncate = fault_ftruncate,
      .fstat = fault_fstat,
      .fstatat = fault_fstatat,
      .lseek = fault_lseek,
      .mkdirat = fault_mkdirat,
      .renameat2 = fault_renameat2,
      .linkat = fault_linkat,
      .unlinkat = fault_unlinkat,
      .fchmod = fault_fchmod,
      .futimens = fault_futimens,
      .ofd_lock = fault_ofd_lock,
      .ioctl = fault_ioctl,
      .fdopendir = fault_fdopendir,
      .point = fault_point,
      .write_behind = fault_write_behind,
      .punch = fault_punch,
  };

  memset(f, 0, sizeof *f);
  f->io = table;
  f->base = &cairn__system_io;
  f->at = at;
  f->kind = kind;
  f->errnum = errnum;
}
