/* See sink_file.h. Neighbouring blocks go out in one request: blocks whose
 * places in the file follow each other are gathered, even where blocks that
 * are not written lie between them in memory. */
#include "sink_file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "memory.h"

#define GATHER 64 /* pieces of one request */

static int file_errno(const struct cairn__sink_file *f, uint64_t offset,
                      const char *what, struct cairn_error *err)
{
  int errnum = errno;
  char path[512];

  cairn__printable(f->path, path, sizeof path);
  return cairn__fail_errno(err, errnum, f->path, (int64_t)offset,
                           "cannot %s %s at offset %" PRIu64, what, path,
                           offset);
}

/* Opens the direct descriptor; without one where there is no direct I/O. */
static int open_direct(struct cairn__sink_file *f,
                       const struct cairn__sink_options *o,
                       struct cairn_error *err)
{
  struct stat a, b;
  int fd = f->io->openat(f->io, o->dirfd, o->name,
                         (f->is_resumed ? O_RDWR : O_WRONLY) | O_DIRECT |
                             O_NOFOLLOW | O_NONBLOCK,
                         0);

  if (fd < 0) {
    if (errno == EINVAL || errno == EOPNOTSUPP) {
      return 0;
    }
    return file_errno(f, 0, "open", err);
  }
  f->direct_fd = fd;
  if (f->io->fstat(f->io, f->fd, &a) != 0 || f->io->fstat(f->io, fd, &b) != 0) {
    return file_errno(f, 0, "look at", err);
  }
  if (a.st_dev != b.st_dev || a.st_ino != b.st_ino) {
    char path[512];

    cairn__fail(err, CAIRN_E_IO_ERROR,
                "%s was replaced by another file while it was created",
                cairn__printable(f->path, path, sizeof path));
    cairn__error_set_path(err, f->path, -1);
    return -1;
  }
  atomic_store(&f->is_direct, 1);
  return 0;
}

int cairn__sink_file_open(struct cairn__sink_file *f,
                          const struct cairn__sink_options *o,
                          struct cairn_error *err)
{
  char path[512];

  memset(f, 0, sizeof *f);
  f->io = o->io;
  f->is_resumed = o->is_resumed;
  f->fd = f->direct_fd = -1;
  f->path = cairn__strdup(o->path != NULL ? o->path : o->name);
  if (f->path == NULL) {
    return cairn__fail_memory(err);
  }
  f->fd = o->io->openat(o->io, o->dirfd, o->name,
                        O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK |
                            (o->is_resumed ? 0 : O_EXCL),
                        0600);
  if (f->fd < 0) {
    cairn__fail_errno(err, errno, f->path, -1, "cannot create %s",
                      cairn__printable(f->path, path, sizeof path));
    cairn__sink_file_abort(f);
    return -1;
  }
  if (open_direct(f, o, err) != 0) {
    cairn__sink_file_abort(f);
    return -1;
  }
  return 0;
}

static uint64_t hash_position(uint64_t position)
{
  uint64_t x = position / CAIRN__BLOCK + UINT64_C(0x9e3779b97f4a7c15);

  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

void cairn__sink_file_reserve(struct cairn__sink_file *f, uint64_t position)
{
  atomic_fetch_add_explicit(&f->pending, 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&f->pending_sum, hash_position(position),
                            memory_order_relaxed);
}

int cairn__sink_file_check(struct cairn__sink_file *f, struct cairn_error *err)
{
  uint64_t pending = atomic_load(&f->pending);
  char path[512];

  if (pending == 0 && atomic_load(&f->pending_sum) == 0) {
    return 0;
  }
  cairn__fail(err, CAIRN_E_INTERNAL,
              "%s: %" PRId64 " more blocks were reserved than written",
              cairn__printable(f->path, path, sizeof path), (int64_t)pending);
  cairn__error_set_path(err, f->path, -1);
  return -1;
}

static int write_gathered(struct cairn__sink_file *f, const struct iovec *iov,
                          int count, uint64_t offset, size_t n,
                          struct cairn_error *err)
{
  if (n % CAIRN__BLOCK == 0 &&
      atomic_load_explicit(&f->is_direct, memory_order_relaxed)) {
    if (cairn__io_writev_full(f->io, f->direct_fd, iov, count, (off_t)offset) ==
        0) {
      return 0;
    }
    if (errno != EINVAL) {
      return file_errno(f, offset, "write", err);
    }
    /* It was opened, yet does not work (a device with larger blocks). */
    atomic_store(&f->is_direct, 0);
  }
  if (cairn__io_writev_full(f->io, f->fd, iov, count, (off_t)offset) != 0 ||
      f->io->write_behind(f->io, f->fd, (off_t)offset, (off_t)n) != 0) {
    return file_errno(f, offset, "write", err);
  }
  return 0;
}

int cairn__sink_file_write_blocks(struct cairn__sink_file *f, size_t count,
                                  const uint8_t *states,
                                  const uint64_t *positions,
                                  const unsigned char *buf, uint64_t end,
                                  struct cairn_error *err)
{
  struct iovec iov[GATHER];
  int pieces = 0;
  uint64_t start = 0, next = 0; /* of the request being gathered */
  uint64_t blocks = 0, sum = 0; /* written, for the account */
  size_t i;

  for (i = 0; i < count; i++) {
    unsigned char *block = (unsigned char *)(uintptr_t)buf + i * CAIRN__BLOCK;
    size_t n = CAIRN__BLOCK;

    if (states[i] == CAIRN__KEPT) {
      blocks++;
      sum += hash_position(positions[i]);
    }
    if (states[i] != CAIRN__DATA) {
      continue;
    }
    if (positions[i] >= end) {
      return cairn__fail(err, CAIRN_E_INTERNAL,
                         "a block at offset %" PRIu64
                         " of a file that ends at %" PRIu64,
                         positions[i], end);
    }
    if (end - positions[i] < n) {
      n = (size_t)(end - positions[i]);
    }
    /* A short block goes alone: it cannot be written directly. */
    if (pieces > 0 &&
        (positions[i] != next || n < CAIRN__BLOCK ||
         (pieces == GATHER &&
          (unsigned char *)iov[pieces - 1].iov_base + iov[pieces - 1].iov_len !=
              block))) {
      if (write_gathered(f, iov, pieces, start, (size_t)(next - start), err) !=
          0) {
        return -1;
      }
      pieces = 0;
    }
    if (pieces == 0) {
      start = next = positions[i];
    }
    if (pieces > 0 &&
        (unsigned char *)iov[pieces - 1].iov_base + iov[pieces - 1].iov_len ==
            block) {
      iov[pieces - 1].iov_len += n;
    } else {
      iov[pieces].iov_base = block;
      iov[pieces].iov_len = n;
      pieces++;
    }
    next += n;
    blocks++;
    sum += hash_position(positions[i]);
  }
  if (pieces > 0 &&
      write_gathered(f, iov, pieces, start, (size_t)(next - start), err) != 0) {
    return -1;
  }
  atomic_fetch_sub_explicit(&f->pending, blocks, memory_order_relaxed);
  atomic_fetch_sub_explicit(&f->pending_sum, sum, memory_order_relaxed);
  return 0;
}

int cairn__sink_file_write(struct cairn__sink_file *f, const void *buf,
                           size_t n, uint64_t offset, struct cairn_error *err)
{
  if (cairn__io_write_full(f->io, f->fd, buf, n, (off_t)offset) != 0) {
    return file_errno(f, offset, "write", err);
  }
  return 0;
}

int cairn__sink_file_read(struct cairn__sink_file *f, uint64_t position,
                          size_t n, unsigned char *buf)
{
  int is_direct =
      atomic_load_explicit(&f->is_direct, memory_order_relaxed) != 0;
  ssize_t got = cairn__io_read_full(f->io, is_direct ? f->direct_fd : f->fd,
                                    buf, n, (off_t)position);

  if (got >= 0 && (size_t)got < n) {
    errno = EIO;
  }
  return got >= 0 && (size_t)got == n ? 0 : -1;
}

static int write_zeros(struct cairn__sink_file *f, uint64_t offset, uint64_t n,
                       struct cairn_error *err)
{
  static const unsigned char zeros[CAIRN__BLOCK];

  while (n > 0) {
    size_t piece = n < sizeof zeros ? (size_t)n : sizeof zeros;

    if (cairn__sink_file_write(f, zeros, piece, offset, err) != 0) {
      return -1;
    }
    offset += piece;
    n -= piece;
  }
  return 0;
}

int cairn__sink_file_clear(struct cairn__sink_file *f, uint64_t offset,
                           uint64_t n, struct cairn_error *err)
{
  if (n == 0 || f->io->punch(f->io, f->fd, (off_t)offset, (off_t)n) == 0) {
    return 0;
  }
  if (errno != EOPNOTSUPP && errno != ENOSYS) {
    return file_errno(f, offset, "clear", err);
  }
  return write_zeros(f, offset, n, err);
}

int cairn__sink_file_truncate(struct cairn__sink_file *f, uint64_t size,
                              struct cairn_error *err)
{
  if (f->io->ftruncate(f->io, f->fd, (off_t)size) != 0) {
    return file_errno(f, size, "set the length of", err);
  }
  return 0;
}

int cairn__sink_file_finish(struct cairn__sink_file *f, struct cairn_error *err)
{
  int rc = 0, fd;

  /* one inode: this covers what the direct descriptor wrote, too */
  if (f->io->fsync(f->io, f->fd) != 0) {
    rc = file_errno(f, 0, "sync", err);
  }
  if (f->direct_fd >= 0) {
    fd = f->direct_fd;
    f->direct_fd = -1;
    if (f->io->close(f->io, fd) != 0 && rc == 0) {
      rc = file_errno(f, 0, "close", err);
    }
  }
  fd = f->fd;
  f->fd = -1;
  if (f->io->close(f->io, fd) != 0 && rc == 0) {
    rc = file_errno(f, 0, "close", err);
  }
  cairn__sink_file_abort(f);
  return rc;
}

void cairn__sink_file_abort(struct cairn__sink_file *f)
{
  if (f->direct_fd >= 0) {
    (void)f->io->close(f->io, f->direct_fd);
  }
  if (f->fd >= 0) {
    (void)f->io->close(f->io, f->fd);
  }
  f->fd = f->direct_fd = -1;
  cairn__free(f->path);
  f->path = NULL;
}
