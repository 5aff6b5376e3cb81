/* Every system call of the copy path, behind one table, so that faults are
 * tests: cairn__fault_io wraps another table, counts the calls and makes the
 * chosen one fail. Calls return what the system call returns and set errno.
 * Thread-safe. Partial reads and writes are handled by the helpers below and
 * nowhere else.
 *
 * A call that is not a file's (an NBD read, starting a program) passes by
 * `point`, which returns 0 or, under a fault, -1 with errno set. */
#ifndef CAIRN_IO_H
#define CAIRN_IO_H

#include <dirent.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "cairn.h"

struct cairn_io {
  int (*openat)(const struct cairn_io *io, int dirfd, const char *path,
                int flags, mode_t mode); /* adds O_CLOEXEC */
  int (*close)(const struct cairn_io *io, int fd);
  ssize_t (*pread)(const struct cairn_io *io, int fd, void *buf, size_t n,
                   off_t offset);
  ssize_t (*pwrite)(const struct cairn_io *io, int fd, const void *buf,
                    size_t n, off_t offset);
  ssize_t (*pwritev)(const struct cairn_io *io, int fd, const struct iovec *iov,
                     int count, off_t offset);
  /* of pipes and sockets, which have no offset */
  ssize_t (*read)(const struct cairn_io *io, int fd, void *buf, size_t n);
  ssize_t (*write)(const struct cairn_io *io, int fd, const void *buf,
                   size_t n);
  int (*fsync)(const struct cairn_io *io, int fd);
  int (*fdatasync)(const struct cairn_io *io, int fd);
  int (*ftruncate)(const struct cairn_io *io, int fd, off_t length);
  int (*fstat)(const struct cairn_io *io, int fd, struct stat *st);
  int (*fstatat)(const struct cairn_io *io, int dirfd, const char *path,
                 struct stat *st, int flags);
  off_t (*lseek)(const struct cairn_io *io, int fd, off_t offset, int whence);
  int (*mkdirat)(const struct cairn_io *io, int dirfd, const char *path,
                 mode_t mode);
  int (*renameat2)(const struct cairn_io *io, int olddir, const char *old,
                   int newdir, const char *new_, unsigned flags);
  int (*linkat)(const struct cairn_io *io, int olddir, const char *old,
                int newdir, const char *new_); /* follows no symbolic link */
  int (*unlinkat)(const struct cairn_io *io, int dirfd, const char *path,
                  int flags);
  int (*fchmod)(const struct cairn_io *io, int fd, mode_t mode);
  int (*futimens)(const struct cairn_io *io, int fd,
                  const struct timespec times[2]);
  /* OFD locks: fcntl(F_OFD_SETLK / F_OFD_GETLK) */
  int (*ofd_lock)(const struct cairn_io *io, int fd, int command,
                  struct flock *lock);
  int (*ioctl)(const struct cairn_io *io, int fd, unsigned long request,
               void *argument);
  /* A new DIR over a duplicate of dirfd; read with readdir(3) directly. */
  DIR *(*fdopendir)(const struct cairn_io *io, int dirfd);
  int (*point)(const struct cairn_io *io, const char *what);
  /* Starts writing a range back without waiting for it, so that a later fsync
   * is short; 0 where the file system does not offer it. */
  int (*write_behind)(const struct cairn_io *io, int fd, off_t offset, off_t n);
  /* Makes a range a hole, which reads as zeros; the size stays. EOPNOTSUPP
   * where the file system has none. */
  int (*punch)(const struct cairn_io *io, int fd, off_t offset, off_t n);
};

extern const struct cairn_io cairn__system_io;

/* ---- faults ------------------------------------------------------------- */

enum cairn__fault_kind {
  CAIRN__FAULT_NONE,
  CAIRN__FAULT_ERRNO,     /* the call fails with errnum and does nothing */
  CAIRN__FAULT_SHORT,     /* a read or write moves one byte less (on a direct
                             descriptor 4096, of several pieces the last one
                             less; where nothing is left: EINTR once) */
  CAIRN__FAULT_ENOSPC_ON, /* this and every later write-like call: ENOSPC */
  CAIRN__FAULT_KILL       /* _exit(137) before the call */
};

struct cairn__fault_io {
  struct cairn_io io; /* first */
  const struct cairn_io *base;
  _Atomic uint64_t calls; /* calls seen so far */
  uint64_t at;            /* the call that fails, from 1; 0 = none */
  int kind, errnum;
  _Atomic int has_fired;
  const char *_Atomic fired_at; /* name of the call that failed */
};
void cairn__fault_io_init(struct cairn__fault_io *f, uint64_t at, int kind,
                          int errnum);

/* ---- whole transfers ------------------------------------------------------
 */

/* Reads exactly n bytes unless the file ends first: returns the bytes read or
 * -1 with errno. Retries EINTR and short reads. */
ssize_t cairn__io_read_full(const struct cairn_io *io, int fd, void *buf,
                            size_t n, off_t offset);
/* Writes exactly n bytes: 0 or -1 with errno. */
int cairn__io_write_full(const struct cairn_io *io, int fd, const void *buf,
                         size_t n, off_t offset);
int cairn__io_writev_full(const struct cairn_io *io, int fd,
                          const struct iovec *iov, int count, off_t offset);
/* Removes a directory tree below dirfd without following links; 0 or -1 with
 * the first errno, after having removed what it could. Missing is 0. */
int cairn__io_remove_tree(const struct cairn_io *io, int dirfd,
                          const char *name);

#endif
