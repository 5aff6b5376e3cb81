/* source_raw.c: a raw file or block device as a source.
 *
 * One descriptor holds the lock and serves extents and unaligned tails; where
 * the file system allows it a second one reads around the page cache, so that
 * an export neither waits for the cache nor empties it. Both name the same
 * open inode (the second is opened through /proc), so a path that changes
 * hands meanwhile changes nothing. */
#include <errno.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "chain.h"
#include "error.h"
#include "image.h"
#include "lock.h"
#include "memory.h"

#define ALIGNMENT   4096u
#define MAX_READERS 64u

struct raw_source {
  struct cairn__source source; /* first */
  const struct cairn_io *io;
  struct cairn__held held;
  int direct_fd;
  uint64_t direct_end;   /* whole aligned units: what direct_fd reads */
  _Atomic int is_direct; /* cleared by the first refusal */
  int has_extents;       /* SEEK_DATA works; the extent thread's */
  int is_cache_dropped;  /* reads through a cache that they would fill */
};

static int fail_read(struct raw_source *r, int errnum, uint64_t offset,
                     struct cairn_error *err)
{
  char shown[512];

  return cairn__fail_errno(
      err, errnum, r->source.path, (int64_t)offset,
      "cannot read \"%s\" at offset %llu",
      cairn__printable(r->source.path, shown, sizeof shown),
      (unsigned long long)offset);
}

/* A file of /proc or /sys: its size says nothing about its content. */
static int fail_made(struct raw_source *r, struct cairn_error *err)
{
  char shown[512];

  cairn__fail(err, CAIRN_E_BAD_PATH,
              "\"%s\" holds %s data than its size (%llu bytes) tells, as "
              "files do that the kernel makes when they are read; a disk is a "
              "regular file or a block device",
              cairn__printable(r->source.path, shown, sizeof shown),
              r->source.length == 0 ? "more" : "less",
              (unsigned long long)r->source.length);
  cairn__error_set_path(err, r->source.path, -1);
  return -1;
}

static int fail_short(struct raw_source *r, uint64_t offset,
                      struct cairn_error *err)
{
  char shown[512];
  struct stat st;

  if (!r->held.is_block && r->io->fstat(r->io, r->held.fd, &st) == 0 &&
      (uint64_t)st.st_size == r->source.length)
    return fail_made(r, err);
  cairn__fail(err, CAIRN_E_SOURCE_CHANGED,
              "\"%s\" changed while it was read: it ends at offset %llu, its "
              "length was %llu",
              cairn__printable(r->source.path, shown, sizeof shown),
              (unsigned long long)offset, (unsigned long long)r->source.length);
  cairn__error_set_path(err, r->source.path, (int64_t)offset);
  return -1;
}

/* ---- extents ------------------------------------------------------------- */

static int raw_extent(struct cairn__source *s, uint64_t offset, uint64_t most,
                      struct cairn__extent *out, struct cairn_error *err)
{
  struct raw_source *r = (struct raw_source *)s;
  off_t data, hole;

  (void)most;
  out->offset = offset;
  out->length = s->length - offset;
  out->is_zero = 0;
  if (!r->has_extents)
    return 0;
  data = r->io->lseek(r->io, r->held.fd, (off_t)offset, SEEK_DATA);
  if (data < 0 && errno == ENXIO) {
    out->is_zero = 1;
    return 0;
  }
  if (data < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
    r->has_extents = 0;
    return 0;
  }
  if (data < 0)
    return fail_read(r, errno, offset, err);
  if ((uint64_t)data > offset) {
    if ((uint64_t)data < s->length)
      out->length = (uint64_t)data - offset;
    out->is_zero = 1;
    return 0;
  }
  hole = r->io->lseek(r->io, r->held.fd, (off_t)offset, SEEK_HOLE);
  if (hole < 0 && errno == ENXIO)
    return fail_short(r, offset, err);
  if (hole < 0)
    return fail_read(r, errno, offset, err);
  /* A hole at the very offset of data: the file changes under us, and taking
   * it for one would not advance. It is read; check_still tells the rest. */
  if ((uint64_t)hole > offset && (uint64_t)hole < s->length)
    out->length = (uint64_t)hole - offset;
  return 0;
}

/* ---- reading ------------------------------------------------------------- */

/* Where in a range that could not be read the unreadable part begins. */
static uint64_t locate_error(struct raw_source *r, unsigned char *buf, size_t n,
                             uint64_t offset)
{
  size_t step = CAIRN__BLOCK, at = 0;

  while (at < n) {
    size_t piece = n - at < step ? n - at : step;

    if (cairn__io_read_full(r->io, r->held.fd, buf + at, piece,
                            (off_t)(offset + at)) >= 0) {
      at += piece;
      continue;
    }
    if (step == ALIGNMENT)
      return offset + at;
    step = ALIGNMENT;
  }
  return offset;
}

static int read_range(struct raw_source *r, unsigned char *buf, size_t n,
                      uint64_t offset, struct cairn_error *err)
{
  ssize_t got = -1;
  int errnum;

  if (n == 0)
    return 0;
  if (atomic_load_explicit(&r->is_direct, memory_order_relaxed) &&
      n % ALIGNMENT == 0 && offset + n <= r->direct_end) {
    got = cairn__io_read_full(r->io, r->direct_fd, buf, n, (off_t)offset);
    errnum = errno;
    if (got == (ssize_t)n)
      return 0;
    if (got >= 0)
      return fail_short(r, offset + (uint64_t)got, err);
    if (errnum != EINVAL)
      return fail_read(r, errnum, locate_error(r, buf, n, offset), err);
    atomic_store(&r->is_direct, 0);
  }
  got = cairn__io_read_full(r->io, r->held.fd, buf, n, (off_t)offset);
  if (got < 0) {
    errnum = errno;
    return fail_read(r, errnum, locate_error(r, buf, n, offset), err);
  }
  if ((size_t)got < n)
    return fail_short(r, offset + (uint64_t)got, err);
  if (r->is_cache_dropped)
    (void)posix_fadvise(r->held.fd, (off_t)offset, (off_t)n,
                        POSIX_FADV_DONTNEED);
  return 0;
}

static int raw_read(struct cairn__source *s, unsigned reader, void *buf,
                    size_t n, uint64_t offset, struct cairn_error *err)
{
  struct raw_source *r = (struct raw_source *)s;
  unsigned char *to = buf;
  size_t inside = 0, aligned;

  (void)reader;
  if (offset < s->length)
    inside = s->length - offset < n ? (size_t)(s->length - offset) : n;
  aligned = inside - inside % ALIGNMENT;
  if (read_range(r, to, aligned, offset, err) != 0 ||
      read_range(r, to + aligned, inside - aligned, offset + aligned, err) != 0)
    return -1;
  memset(to + inside, 0, n - inside);
  return 0;
}

/* ---- opening, closing ---------------------------------------------------- */

static int raw_check_still(struct cairn__source *s, struct cairn_error *err)
{
  return cairn__held_check_still(&((struct raw_source *)s)->held, err);
}

static void raw_close(struct cairn__source *s)
{
  struct raw_source *r = (struct raw_source *)s;

  if (r->direct_fd >= 0)
    (void)r->io->close(r->io, r->direct_fd);
  cairn__held_close(&r->held);
  cairn__free(s->path);
  cairn__free(r);
}

static const struct cairn__source_ops raw_ops = {
    .extent = raw_extent,
    .read = raw_read,
    .check_still = raw_check_still,
    .close = raw_close,
};

/* One byte from a file whose size is 0. */
static int refuse_hidden_content(struct raw_source *r, struct cairn_error *err)
{
  char byte;
  ssize_t got;

  if (r->source.length > 0)
    return 0;
  got = cairn__io_read_full(r->io, r->held.fd, &byte, 1, 0);
  if (got < 0)
    return fail_read(r, errno, 0, err);
  return got == 0 ? 0 : fail_made(r, err);
}

/* The guest writes the first bytes of a raw disk, so a qcow2 header there may
 * be its doing: whoever reads this image by its looks would follow a backing
 * name that the guest chose. */
static int refuse_qcow2_header(struct raw_source *r, struct cairn_error *err)
{
  unsigned char magic[4] = {0};
  char shown[512];

  if (r->source.length < sizeof magic)
    return 0;
  if (read_range(r, magic, sizeof magic, 0, err) != 0)
    return -1;
  if (memcmp(magic, "QFI\xfb", sizeof magic) != 0)
    return 0;
  cairn__fail(err, CAIRN_E_SOURCE_FORMAT,
              "\"%s\" is declared raw but begins with a qcow2 header: if it "
              "is a qcow2 image, write format = \"qcow2\"; if it really is a "
              "raw disk, its guest has written that header, and programs that "
              "guess the format would follow it: clear its first 4 bytes",
              cairn__printable(r->source.path, shown, sizeof shown));
  cairn__error_set_path(err, r->source.path, 0);
  return -1;
}

static void choose_access(struct raw_source *r)
{
  char name[32];
  struct statfs fs;

  if (fstatfs(r->held.fd, &fs) == 0 && !r->held.is_block &&
      (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC ||
       fs.f_type == HUGETLBFS_MAGIC))
    return;
  r->is_cache_dropped = 1;
  snprintf(name, sizeof name, "/proc/self/fd/%d", r->held.fd);
  r->direct_fd = r->io->openat(r->io, AT_FDCWD, name,
                               O_RDONLY | O_DIRECT | O_NONBLOCK | O_NOCTTY, 0);
  if (r->direct_fd < 0)
    return;
  r->direct_end = r->source.length - r->source.length % ALIGNMENT;
  atomic_store(&r->is_direct, 1);
  r->source.is_direct = 1;
}

int cairn__source_open_raw(const struct cairn__source_options *o,
                           struct cairn__source **out, struct cairn_error *err)
{
  struct raw_source *r = cairn__calloc(1, sizeof *r);

  *out = NULL;
  if (!r)
    return cairn__fail_memory(err);
  r->source.ops = &raw_ops;
  r->io = o->io;
  r->direct_fd = -1;
  r->has_extents = 1;
  r->source.path = cairn__strdup(o->path);
  if (!r->source.path) {
    cairn__free(r);
    return cairn__fail_memory(err);
  }
  if (cairn__held_open(o->io, o->path, o->assume_quiescent, &r->held, err) !=
      0) {
    raw_close(&r->source);
    return -1;
  }
  r->source.length = r->held.size;
  r->source.virtual_size = (r->held.size + 511) & ~(uint64_t)511;
  r->source.readers = o->readers == 0            ? 1
                      : o->readers > MAX_READERS ? MAX_READERS
                                                 : o->readers;
  if (refuse_hidden_content(r, err) != 0 || refuse_qcow2_header(r, err) != 0) {
    raw_close(&r->source);
    return -1;
  }
  choose_access(r);
  *out = &r->source;
  return 0;
}

const struct cairn__held *cairn__source_raw_held(const struct cairn__source *s)
{
  return s->ops == &raw_ops ? &((const struct raw_source *)s)->held : NULL;
}

void cairn__source_close(struct cairn__source *s)
{
  if (s)
    s->ops->close(s);
}
