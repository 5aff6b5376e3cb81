/* The system's own table, and the transfers that are whole or have failed.
 *
 * A short read or write is continued where it stopped. On a descriptor with
 * O_DIRECT the place where it stopped may not be a multiple of the device's
 * block, and the kernel then answers EINVAL: the transfer is taken up again
 * from the last aligned place, over bytes that were moved already. close() is
 * never repeated: on Linux the descriptor is gone even after EINTR. */
#include "io.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

#define DIRECT_ALIGNMENT 4096
#define REMOVE_DEPTH     64
/* requests in a row, taken up again, that get no further than before */
#define STALLS_MAX 64

static int system_openat(const struct cairn_io *io, int dirfd, const char *path,
                         int flags, mode_t mode)
{
  int fd;

  (void)io;
  do {
    fd = openat(dirfd, path, flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

static int system_close(const struct cairn_io *io, int fd)
{
  (void)io;
  /* EINTR: the descriptor is closed all the same */
  if (close(fd) != 0 && errno != EINTR) {
    return -1;
  }
  return 0;
}

static ssize_t system_pread(const struct cairn_io *io, int fd, void *buf,
                            size_t n, off_t offset)
{
  (void)io;
  return pread(fd, buf, n, offset);
}

static ssize_t system_pwrite(const struct cairn_io *io, int fd, const void *buf,
                             size_t n, off_t offset)
{
  (void)io;
  return pwrite(fd, buf, n, offset);
}

static ssize_t system_pwritev(const struct cairn_io *io, int fd,
                              const struct iovec *iov, int count, off_t offset)
{
  (void)io;
  return pwritev(fd, iov, count, offset);
}

static ssize_t system_read(const struct cairn_io *io, int fd, void *buf,
                           size_t n)
{
  (void)io;
  return read(fd, buf, n);
}

static ssize_t system_write(const struct cairn_io *io, int fd, const void *buf,
                            size_t n)
{
  (void)io;
  return write(fd, buf, n);
}

static int system_fsync(const struct cairn_io *io, int fd)
{
  int rc;

  (void)io;
  do {
    rc = fsync(fd);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

static int system_fdatasync(const struct cairn_io *io, int fd)
{
  int rc;

  (void)io;
  do {
    rc = fdatasync(fd);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

static int system_ftruncate(const struct cairn_io *io, int fd, off_t length)
{
  int rc;

  (void)io;
  do {
    rc = ftruncate(fd, length);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

static int system_fstat(const struct cairn_io *io, int fd, struct stat *st)
{
  (void)io;
  return fstat(fd, st);
}

static int system_fstatat(const struct cairn_io *io, int dirfd,
                          const char *path, struct stat *st, int flags)
{
  (void)io;
  return fstatat(dirfd, path, st, flags);
}

static off_t system_lseek(const struct cairn_io *io, int fd, off_t offset,
                          int whence)
{
  (void)io;
  return lseek(fd, offset, whence);
}

static int system_mkdirat(const struct cairn_io *io, int dirfd,
                          const char *path, mode_t mode)
{
  (void)io;
  return mkdirat(dirfd, path, mode);
}

static int system_renameat2(const struct cairn_io *io, int olddir,
                            const char *old, int newdir, const char *new_,
                            unsigned flags)
{
  (void)io;
  return renameat2(olddir, old, newdir, new_, flags);
}

static int system_linkat(const struct cairn_io *io, int olddir, const char *old,
                         int newdir, const char *new_)
{
  (void)io;
  return linkat(olddir, old, newdir, new_, 0);
}

static int system_unlinkat(const struct cairn_io *io, int dirfd,
                           const char *path, int flags)
{
  (void)io;
  return unlinkat(dirfd, path, flags);
}

static int system_fchmod(const struct cairn_io *io, int fd, mode_t mode)
{
  (void)io;
  return fchmod(fd, mode);
}

static int system_futimens(const struct cairn_io *io, int fd,
                           const struct timespec times[2])
{
  (void)io;
  return futimens(fd, times);
}

static int system_ofd_lock(const struct cairn_io *io, int fd, int command,
                           struct flock *lock)
{
  (void)io;
  return fcntl(fd, command, lock);
}

static int system_ioctl(const struct cairn_io *io, int fd,
                        unsigned long request, void *argument)
{
  (void)io;
  return ioctl(fd, request, argument);
}

static DIR *system_fdopendir(const struct cairn_io *io, int dirfd)
{
  DIR *dir;
  int fd, saved;

  (void)io;
  /* Opened anew rather than duplicated: a duplicate would share its position
   * with dirfd. */
  do {
    fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    return NULL;
  }
  dir = fdopendir(fd);
  if (dir == NULL) {
    saved = errno;
    close(fd);
    errno = saved;
  }
  return dir;
}

static int system_point(const struct cairn_io *io, const char *what)
{
  (void)io;
  (void)what;
  return 0;
}

static int system_write_behind(const struct cairn_io *io, int fd, off_t offset,
                               off_t n)
{
  (void)io;
  if (sync_file_range(fd, offset, n, SYNC_FILE_RANGE_WRITE) == 0) {
    return 0;
  }
  /* only a hint: what a file system does not offer is not missed */
  switch (errno) {
  case EINVAL:
  case ENOSYS:
  case EOPNOTSUPP:
  case ESPIPE:
  case EINTR:
    return 0;
  default:
    return -1;
  }
}

static int system_punch(const struct cairn_io *io, int fd, off_t offset,
                        off_t n)
{
  int rc;

  (void)io;
  do {
    rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, n);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

const struct cairn_io cairn__system_io = {
    .openat = system_openat,
    .close = system_close,
    .pread = system_pread,
    .pwrite = system_pwrite,
    .pwritev = system_pwritev,
    .read = system_read,
    .write = system_write,
    .fsync = system_fsync,
    .fdatasync = system_fdatasync,
    .ftruncate = system_ftruncate,
    .fstat = system_fstat,
    .fstatat = system_fstatat,
    .lseek = system_lseek,
    .mkdirat = system_mkdirat,
    .renameat2 = system_renameat2,
    .linkat = system_linkat,
    .unlinkat = system_unlinkat,
    .fchmod = system_fchmod,
    .futimens = system_futimens,
    .ofd_lock = system_ofd_lock,
    .ioctl = system_ioctl,
    .fdopendir = system_fdopendir,
    .point = system_point,
    .write_behind = system_write_behind,
    .punch = system_punch,
};

/* ---- whole transfers ------------------------------------------------------
 */

/* After EINVAL in mid-transfer: where to take it up again, or -1 when the
 * transfer was not made in aligned pieces anyway. */
static ssize_t aligned_restart(size_t done, off_t offset)
{
  size_t excess = done % DIRECT_ALIGNMENT;

  if (excess == 0 || offset % DIRECT_ALIGNMENT != 0) {
    return -1;
  }
  return (ssize_t)(done - excess);
}

ssize_t cairn__io_read_full(const struct cairn_io *io, int fd, void *buf,
                            size_t n, off_t offset)
{
  size_t done = 0;  /* bytes that are in buf */
  size_t start = 0; /* where the next request begins, <= done */
  int stalls = 0, is_same = 0;

  if (n > SSIZE_MAX) {
    errno = EINVAL;
    return -1;
  }
  while (done < n) {
    ssize_t got = io->pread(io, fd, (char *)buf + start, n - start,
                            offset + (off_t)start);

    if (got < 0) {
      ssize_t restart;

      if (errno == EINTR) {
        continue;
      }
      restart =
          errno == EINVAL && start == done ? aligned_restart(done, offset) : -1;
      if (restart < 0) {
        return -1;
      }
      start = (size_t)restart;
      continue;
    }
    if (got == 0 || (start + (size_t)got == done && is_same++ > 0)) {
      break; /* twice the same end: the file's */
    }
    if (start + (size_t)got <= done) {
      if (++stalls > STALLS_MAX) {
        errno = EIO;
        return -1;
      }
      continue;
    }
    done = start + (size_t)got;
    start = done;
    stalls = is_same = 0;
  }
  return (ssize_t)done;
}

int cairn__io_write_full(const struct cairn_io *io, int fd, const void *buf,
                         size_t n, off_t offset)
{
  size_t done = 0, start = 0;
  int stalls = 0;

  if (n > SSIZE_MAX) {
    errno = EINVAL;
    return -1;
  }
  while (done < n) {
    ssize_t put = io->pwrite(io, fd, (const char *)buf + start, n - start,
                             offset + (off_t)start);

    if (put < 0) {
      ssize_t restart;

      if (errno == EINTR) {
        continue;
      }
      restart =
          errno == EINVAL && start == done ? aligned_restart(done, offset) : -1;
      if (restart < 0) {
        return -1;
      }
      start = (size_t)restart;
      continue;
    }
    if (start + (size_t)put <= done) {
      if (put == 0 || ++stalls > STALLS_MAX) {
        errno = EIO; /* a write that moves nothing would never end */
        return -1;
      }
      continue;
    }
    done = start + (size_t)put;
    start = done;
    stalls = 0;
  }
  return 0;
}

int cairn__io_writev_full(const struct cairn_io *io, int fd,
                          const struct iovec *iov, int count, off_t offset)
{
  while (count > 0) {
    int batch = count < IOV_MAX ? count : IOV_MAX;
    ssize_t put;
    size_t left;

    if (iov->iov_len == 0) {
      iov++;
      count--;
      continue;
    }
    put = io->pwritev(io, fd, iov, batch, offset);
    if (put < 0 && errno == EINTR) {
      continue;
    }
    if (put < 0) {
      return -1;
    }
    if (put == 0) {
      errno = EIO;
      return -1;
    }
    left = (size_t)put;
    while (count > 0 && left >= iov->iov_len) {
      left -= iov->iov_len;
      offset += (off_t)iov->iov_len;
      iov++;
      count--;
    }
    if (left > 0) {
      /* Stopped inside a piece: that piece is written out on its own, so that
       * the next request begins with a whole, aligned one again. */
      size_t kept = left - left % DIRECT_ALIGNMENT;

      if (offset % DIRECT_ALIGNMENT != 0) {
        kept = left;
      }
      if (cairn__io_write_full(io, fd, (const char *)iov->iov_base + kept,
                               iov->iov_len - kept,
                               offset + (off_t)kept) != 0) {
        return -1;
      }
      offset += (off_t)iov->iov_len;
      iov++;
      count--;
    }
  }
  return 0;
}

/* ---- removal --------------------------------------------------------------
 */

static int remove_entry(const struct cairn_io *io, int dirfd, const char *name,
                        int depth);

/* Empties one directory. Entries that could not be removed are left and the
 * first reason is returned in *first. Returns the number removed. */
static unsigned long empty_directory(const struct cairn_io *io, DIR *dir,
                                     int depth, int *first)
{
  unsigned long removed = 0;

  for (;;) {
    struct dirent *entry;

    errno = 0;
    entry = readdir(dir);
    if (entry == NULL) {
      if (errno != 0 && *first == 0) {
        *first = errno;
      }
      return removed;
    }
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
      continue;
    }
    if (remove_entry(io, dirfd(dir), entry->d_name, depth) == 0) {
      removed++;
    } else if (*first == 0) {
      *first = errno;
    }
  }
}

static int remove_directory(const struct cairn_io *io, int dirfd,
                            const char *name, int depth)
{
  int fd, first, saved;
  DIR *dir;

  if (depth >= REMOVE_DEPTH) {
    errno = ELOOP;
    return -1;
  }
  fd = io->openat(io, dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (fd < 0) {
    return errno == ENOENT ? 0 : -1;
  }
  dir = io->fdopendir(io, fd);
  saved = errno;
  (void)io->close(io, fd);
  if (dir == NULL) {
    errno = saved;
    return -1;
  }
  for (;;) {
    unsigned long removed;

    first = 0;
    removed = empty_directory(io, dir, depth + 1, &first);
    if (first != 0) {
      break;
    }
    if (io->unlinkat(io, dirfd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
      break;
    }
    if ((errno != ENOTEMPTY && errno != EEXIST) || removed == 0) {
      first = errno;
      break;
    }
    /* Some file systems skip entries while others are removed. */
    rewinddir(dir);
  }
  closedir(dir);
  if (first != 0) {
    errno = first;
    return -1;
  }
  return 0;
}

static int remove_entry(const struct cairn_io *io, int dirfd, const char *name,
                        int depth)
{
  int saved;

  if (io->unlinkat(io, dirfd, name, 0) == 0 || errno == ENOENT) {
    return 0;
  }
  if (errno != EISDIR && errno != EPERM) {
    return -1;
  }
  saved = errno;
  if (remove_directory(io, dirfd, name, depth) == 0) {
    return 0;
  }
  if (errno == ENOTDIR) {
    errno = saved; /* not a directory after all */
  }
  return -1;
}

int cairn__io_remove_tree(const struct cairn_io *io, int dirfd,
                          const char *name)
{
  return remove_entry(io, dirfd, name, 0);
}
