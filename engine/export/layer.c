/* Reads the disk files of an export, and nothing else: the qcow2 form of
 * sink_qcow2.c and sparse raw files. Whatever another program could have made
 * of such a file (compression, snapshots, a zero flag with an offset, a table
 * outside the file) is refused with the place where it stands.
 *
 * Nothing is sized by what a header says: one L2 table of 64 KiB is held, and
 * L1 entries are read when they are needed. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "image.h"
#include "memory.h"
#include "qcow2.h"

#define NO_PAGE UINT64_MAX

struct cairn__layer {
  const struct cairn_io *io;
  int fd;
  char *name; /* for messages */
  struct cairn__layer_info info;
  struct timespec modified;
  uint64_t blocks, pages;
  int is_raw;

  /* qcow2 */
  uint64_t l1_offset;
  uint64_t page; /* page whose table is loaded, or NO_PAGE */
  int has_l2;    /* that page has one: it is in l2 */
  uint64_t l2_offset;
  unsigned char *l2;

  /* raw: from here to data is a hole, from data to data_end is data */
  uint64_t length, from, data, data_end;
};

__attribute__((format(printf, 4, 5))) static int
corrupt(const struct cairn__layer *l, uint64_t offset, struct cairn_error *err,
        const char *fmt, ...)
{
  char name[512], text[256];
  va_list arguments;

  va_start(arguments, fmt);
  vsnprintf(text, sizeof text, fmt, arguments);
  va_end(arguments);
  cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
              "%s is damaged at offset %" PRIu64 ": %s",
              cairn__printable(l->name, name, sizeof name), offset, text);
  cairn__error_set_path(err, l->name, (int64_t)offset);
  return -1;
}

static int layer_errno(const struct cairn__layer *l, uint64_t offset,
                       const char *what, struct cairn_error *err)
{
  int errnum = errno;
  char name[512];

  cairn__printable(l->name, name, sizeof name);
  return cairn__fail_errno(err, errnum, l->name, (int64_t)offset,
                           "cannot %s %s at offset %" PRIu64, what, name,
                           offset);
}

static int read_exactly(const struct cairn__layer *l, void *buf, size_t n,
                        uint64_t offset, struct cairn_error *err)
{
  ssize_t got = cairn__io_read_full(l->io, l->fd, buf, n, (off_t)offset);

  if (got < 0) {
    return layer_errno(l, offset, "read", err);
  }
  if ((size_t)got < n) {
    return corrupt(l, offset + (uint64_t)got, err, "the file ends here");
  }
  return 0;
}

/* ---- qcow2: header ---------------------------------------------------------
 */

/* `clusters` clusters at `offset` lie behind the header and inside the file. */
static int is_inside(const struct cairn__layer *l, uint64_t offset,
                     uint64_t clusters)
{
  return offset % CAIRN__BLOCK == 0 && offset >= CAIRN__BLOCK &&
         offset <= l->info.file_size &&
         clusters <= (l->info.file_size - offset) / CAIRN__BLOCK;
}

static int parse_origin(struct cairn__layer *l, const unsigned char *data,
                        size_t n, uint64_t at, struct cairn_error *err)
{
  uint32_t flags;

  if (n != CAIRN__QCOW2_ORIGIN_SIZE || cairn__get_be32(data) != 1) {
    return corrupt(l, at, err, "an origin extension of another form");
  }
  flags = cairn__get_be32(data + 4);
  if ((flags & ~(CAIRN__QCOW2_ORIGIN_POINT | CAIRN__QCOW2_ORIGIN_BASE)) != 0) {
    return corrupt(l, at + 4, err, "unknown flags in the origin extension");
  }
  l->info.has_point = (flags & CAIRN__QCOW2_ORIGIN_POINT) != 0;
  l->info.has_base = (flags & CAIRN__QCOW2_ORIGIN_BASE) != 0;
  memcpy(l->info.point, data + 8, 16);
  memcpy(l->info.base, data + 24, 16);
  if ((!l->info.has_point && !cairn__is_zero(l->info.point, 16)) ||
      (!l->info.has_base && !cairn__is_zero(l->info.base, 16))) {
    return corrupt(l, at + 8, err, "an origin that its flags do not announce");
  }
  return 0;
}

/* Extensions from `at`, ending before `limit`; *end: behind the last. */
static int parse_extensions(struct cairn__layer *l, const unsigned char *header,
                            uint64_t at, uint64_t limit, uint64_t *end,
                            struct cairn_error *err)
{
  int has_origin = 0;

  for (;;) {
    const unsigned char *data = header + at + 8;
    uint32_t magic, n;

    if (at > limit || limit - at < 8) {
      return corrupt(l, at, err, "the header extensions have no end");
    }
    magic = cairn__get_be32(header + at);
    n = cairn__get_be32(header + at + 4);
    if (n > limit - at - 8) {
      return corrupt(
          l, at + 4, err,
          "a header extension of %" PRIu32 " bytes leaves the header", n);
    }
    switch (magic) {
    case CAIRN__QCOW2_EXT_END:
      if (n != 0) {
        return corrupt(l, at + 4, err,
                       "the last header extension is not empty");
      }
      *end = at + 8;
      return 0;
    case CAIRN__QCOW2_EXT_BACKING:
      if (l->info.backing_format[0] != '\0') {
        return corrupt(l, at, err, "a second backing format");
      }
      if (n == 0 || n > CAIRN__QCOW2_FORMAT_MAX ||
          memchr(data, '\0', n) != NULL) {
        return corrupt(l, at + 8, err, "a backing format without a name");
      }
      memcpy(l->info.backing_format, data, n);
      if (strcmp(l->info.backing_format, "qcow2") != 0 &&
          strcmp(l->info.backing_format, "raw") != 0) {
        return corrupt(l, at + 8, err,
                       "the backing format is neither qcow2 nor raw");
      }
      break;
    case CAIRN__QCOW2_EXT_ORIGIN:
      if (has_origin) {
        return corrupt(l, at, err, "a second origin extension");
      }
      has_origin = 1;
      if (parse_origin(l, data, n, at + 8, err) != 0) {
        return -1;
      }
      break;
    default: /* to be ignored by those who do not know it */
      break;
    }
    at += 8 + ((uint64_t)n + 7) / 8 * 8;
  }
}

static int parse_backing(struct cairn__layer *l, const unsigned char *header,
                         uint64_t header_length, struct cairn_error *err)
{
  uint64_t offset = cairn__get_be64(header + CAIRN__QCOW2_AT_BACKING_OFFSET);
  uint32_t n = cairn__get_be32(header + CAIRN__QCOW2_AT_BACKING_SIZE);
  uint64_t end;

  if (offset == 0) {
    if (n != 0) {
      return corrupt(l, CAIRN__QCOW2_AT_BACKING_SIZE, err,
                     "a backing name without a place");
    }
    if (parse_extensions(l, header, header_length, CAIRN__BLOCK, &end, err) !=
        0) {
      return -1;
    }
    if (l->info.backing_format[0] != '\0') {
      return corrupt(l, header_length, err,
                     "a backing format without a backing file");
    }
    return 0;
  }
  if (n == 0 || n > CAIRN__QCOW2_BACKING_MAX) {
    return corrupt(l, CAIRN__QCOW2_AT_BACKING_SIZE, err,
                   "a backing name of %" PRIu32 " bytes; 1 to %d are possible",
                   n, CAIRN__QCOW2_BACKING_MAX);
  }
  if (offset > CAIRN__BLOCK || n > CAIRN__BLOCK - offset) {
    return corrupt(l, CAIRN__QCOW2_AT_BACKING_OFFSET, err,
                   "the backing name lies outside the header's cluster");
  }
  if (parse_extensions(l, header, header_length, offset, &end, err) != 0) {
    return -1;
  }
  if (memchr(header + offset, '\0', n) != NULL) {
    return corrupt(l, offset, err, "a NUL in the backing name");
  }
  if (l->info.backing_format[0] == '\0') {
    return corrupt(l, header_length, err, "a backing file without its format");
  }
  memcpy(l->info.backing_name, header + offset, n);
  return 0;
}

static int parse_header(struct cairn__layer *l, const unsigned char *h,
                        struct cairn_error *err)
{
  /* fields that have one possible value */
  static const struct {
    unsigned at, bytes;
    uint64_t value;
    const char *what;
  } fixed[] = {
      {CAIRN__QCOW2_AT_VERSION, 4, 3, "the version is not 3"},
      {CAIRN__QCOW2_AT_CLUSTER_BITS, 4, CAIRN__QCOW2_CLUSTER_BITS,
       "the clusters are not of 64 KiB"},
      {CAIRN__QCOW2_AT_CRYPT, 4, 0, "it is encrypted"},
      {CAIRN__QCOW2_AT_SNAPSHOTS, 4, 0, "it has internal snapshots"},
      {CAIRN__QCOW2_AT_SNAPSHOTS_OFFSET, 8, 0, "it has a snapshot table"},
      {CAIRN__QCOW2_AT_INCOMPATIBLE, 8, 0, "it has incompatible features"},
      {CAIRN__QCOW2_AT_COMPATIBLE, 8, 0, "it has compatible features"},
      {CAIRN__QCOW2_AT_AUTOCLEAR, 8, 0, "it has autoclear features"},
      {CAIRN__QCOW2_AT_REFCOUNT_ORDER, 4, CAIRN__QCOW2_REFCOUNT_ORDER,
       "the refcounts are not of 16 bits"},
  };
  uint64_t l1_size, refcount_offset;
  uint32_t header_length, refcount_clusters;
  size_t i;

  if (cairn__get_be32(h) != CAIRN__QCOW2_MAGIC) {
    return corrupt(l, 0, err, "it does not begin as a qcow2 image");
  }
  for (i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
    uint64_t value = fixed[i].bytes == 4 ? cairn__get_be32(h + fixed[i].at)
                                         : cairn__get_be64(h + fixed[i].at);

    if (value != fixed[i].value) {
      return corrupt(l, fixed[i].at, err, "%s", fixed[i].what);
    }
  }
  header_length = cairn__get_be32(h + CAIRN__QCOW2_AT_HEADER_LENGTH);
  if (header_length != 104 && header_length != CAIRN__QCOW2_HEADER_LENGTH) {
    return corrupt(l, CAIRN__QCOW2_AT_HEADER_LENGTH, err,
                   "the header's length is neither 104 nor 112");
  }
  if (!cairn__is_zero(h + CAIRN__QCOW2_AT_COMPRESSION, header_length - 104)) {
    return corrupt(l, CAIRN__QCOW2_AT_COMPRESSION, err,
                   "a compression type, or padding that is not zero");
  }
  l->info.virtual_size = cairn__get_be64(h + CAIRN__QCOW2_AT_SIZE);
  if (l->info.virtual_size % 512 != 0 ||
      l->info.virtual_size > (uint64_t)CAIRN__QCOW2_L1_MAX / 8 *
                                 CAIRN__PAGE_BLOCKS * CAIRN__BLOCK) {
    return corrupt(l, CAIRN__QCOW2_AT_SIZE, err,
                   "an impossible virtual size of %" PRIu64,
                   l->info.virtual_size);
  }
  l->blocks = (l->info.virtual_size + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  l->pages = (l->blocks + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;
  l1_size = cairn__get_be32(h + CAIRN__QCOW2_AT_L1_SIZE);
  if (l1_size != l->pages) {
    return corrupt(l, CAIRN__QCOW2_AT_L1_SIZE, err,
                   "%" PRIu64 " L1 entries for a disk that needs %" PRIu64,
                   l1_size, l->pages);
  }
  l->l1_offset = cairn__get_be64(h + CAIRN__QCOW2_AT_L1_OFFSET);
  if (l1_size == 0 ? l->l1_offset != 0
                   : !is_inside(l, l->l1_offset,
                                (l1_size + CAIRN__PAGE_BLOCKS - 1) /
                                    CAIRN__PAGE_BLOCKS)) {
    return corrupt(l, CAIRN__QCOW2_AT_L1_OFFSET, err,
                   "the L1 table at %" PRIu64 " is not a part of the file",
                   l->l1_offset);
  }
  refcount_offset = cairn__get_be64(h + CAIRN__QCOW2_AT_REFCOUNT_OFFSET);
  refcount_clusters = cairn__get_be32(h + CAIRN__QCOW2_AT_REFCOUNT_CLUSTERS);
  if (refcount_clusters == 0 ||
      !is_inside(l, refcount_offset, refcount_clusters)) {
    return corrupt(l, CAIRN__QCOW2_AT_REFCOUNT_OFFSET, err,
                   "the refcount table at %" PRIu64
                   " is not a part of the file",
                   refcount_offset);
  }
  return parse_backing(l, h, header_length, err);
}

static int open_qcow2(struct cairn__layer *l, struct cairn_error *err)
{
  unsigned char *header;
  int rc;

  if (l->info.file_size < 3 * (uint64_t)CAIRN__BLOCK ||
      l->info.file_size % CAIRN__BLOCK != 0) {
    return corrupt(l, l->info.file_size, err,
                   "the file ends here, which is not at a cluster's end");
  }
  header = cairn__malloc(CAIRN__BLOCK);
  if (header == NULL) {
    return cairn__fail_memory(err);
  }
  rc = read_exactly(l, header, CAIRN__BLOCK, 0, err);
  if (rc == 0) {
    rc = parse_header(l, header, err);
  }
  cairn__free(header);
  return rc;
}

/* ---- opening ----------------------------------------------------------------
 */

static int open_raw(struct cairn__layer *l, uint64_t length,
                    struct cairn_error *err)
{
  if (l->info.file_size != length) {
    return corrupt(l, l->info.file_size < length ? l->info.file_size : length,
                   err, "the file has %" PRIu64 " bytes instead of %" PRIu64,
                   l->info.file_size, length);
  }
  if (length > INT64_MAX - CAIRN__BLOCK) {
    return corrupt(l, 0, err, "an impossible length");
  }
  l->is_raw = 1;
  l->length = length;
  l->info.virtual_size = (length + 511) / 512 * 512;
  l->blocks = (l->info.virtual_size + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  l->pages = (l->blocks + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;
  return 0;
}

int cairn__layer_open(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const char *format, uint64_t length,
                      struct cairn__layer **out, struct cairn_error *err)
{
  struct cairn__layer *l;
  struct stat st;
  char printable[64];

  *out = NULL;
  l = cairn__calloc(1, sizeof *l);
  if (l == NULL) {
    return cairn__fail_memory(err);
  }
  l->io = io;
  l->fd = -1;
  l->page = NO_PAGE;
  l->name = cairn__strdup(path != NULL ? path : name);
  if (l->name == NULL) {
    cairn__fail_memory(err);
    goto fail;
  }
  l->fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (l->fd < 0) {
    layer_errno(l, 0, "open", err);
    goto fail;
  }
  if (io->fstat(io, l->fd, &st) != 0) {
    layer_errno(l, 0, "look at", err);
    goto fail;
  }
  if (!S_ISREG(st.st_mode)) {
    corrupt(l, 0, err, "it is not a regular file");
    goto fail;
  }
  l->info.file_size = (uint64_t)st.st_size;
  l->modified = st.st_mtim;
  if (strcmp(format, "raw") == 0) {
    if (open_raw(l, length, err) != 0) {
      goto fail;
    }
  } else if (strcmp(format, "qcow2") == 0) {
    if (open_qcow2(l, err) != 0) {
      goto fail;
    }
  } else {
    cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                "unknown format \"%s\"; valid are raw and qcow2",
                cairn__printable(format, printable, sizeof printable));
    goto fail;
  }
  *out = l;
  return 0;
fail:
  cairn__layer_close(l);
  return -1;
}

void cairn__layer_close(struct cairn__layer *l)
{
  if (l == NULL) {
    return;
  }
  if (l->fd >= 0) {
    (void)l->io->close(l->io, l->fd);
  }
  cairn__free(l->l2);
  cairn__free(l->name);
  cairn__free(l);
}

const struct cairn__layer_info *
cairn__layer_get_info(const struct cairn__layer *l)
{
  return &l->info;
}

int cairn__layer_check_still(const struct cairn__layer *l,
                             struct cairn_error *err)
{
  struct stat st;
  char name[512];

  if (l->io->fstat(l->io, l->fd, &st) != 0) {
    return layer_errno(l, 0, "look at", err);
  }
  if ((uint64_t)st.st_size == l->info.file_size &&
      st.st_mtim.tv_sec == l->modified.tv_sec &&
      st.st_mtim.tv_nsec == l->modified.tv_nsec) {
    return 0;
  }
  cairn__fail(err, CAIRN_E_SOURCE_CHANGED, "%s changed while it was read",
              cairn__printable(l->name, name, sizeof name));
  cairn__error_set_path(err, l->name, -1);
  return -1;
}

/* ---- blocks
 * ------------------------------------------------------------------ */

/* An entry that points somewhere: exactly an offset and the "copied" bit. */
static int check_pointer(const struct cairn__layer *l, uint64_t entry,
                         uint64_t at, const char *what, struct cairn_error *err)
{
  if ((entry & CAIRN__QCOW2_COPIED) != 0 &&
      is_inside(l, entry & ~CAIRN__QCOW2_COPIED, 1)) {
    return 0;
  }
  return corrupt(l, at, err,
                 "%s entry %#" PRIx64
                 " is not the place of a cluster of this file",
                 what, entry);
}

/* Loads the L2 table of a page, if it has one. */
static int load_page(struct cairn__layer *l, uint64_t page,
                     struct cairn_error *err)
{
  uint64_t at = l->l1_offset + 8 * page, entry, offset, used;
  unsigned char bytes[8];

  if (l->page == page) {
    return 0;
  }
  l->page = NO_PAGE;
  if (read_exactly(l, bytes, sizeof bytes, at, err) != 0) {
    return -1;
  }
  entry = cairn__get_be64(bytes);
  l->has_l2 = entry != 0;
  if (entry != 0) {
    if (check_pointer(l, entry, at, "L1", err) != 0) {
      return -1;
    }
    offset = entry & ~CAIRN__QCOW2_COPIED;
    if (l->l2 == NULL) {
      l->l2 = cairn__malloc(CAIRN__BLOCK);
      if (l->l2 == NULL) {
        return cairn__fail_memory(err);
      }
    }
    if (read_exactly(l, l->l2, CAIRN__BLOCK, offset, err) != 0) {
      return -1;
    }
    l->l2_offset = offset;
    used = l->blocks - page * CAIRN__PAGE_BLOCKS;
    if (used < CAIRN__PAGE_BLOCKS &&
        !cairn__is_zero(l->l2 + 8 * used, CAIRN__BLOCK - 8 * (size_t)used)) {
      return corrupt(l, offset + 8 * used, err,
                     "L2 entries beyond the end of the disk");
    }
  }
  l->page = page;
  return 0;
}

static int qcow2_blocks(struct cairn__layer *l, uint64_t first, size_t count,
                        uint8_t *states, uint64_t *positions,
                        struct cairn_error *err)
{
  size_t at = (size_t)(first % CAIRN__PAGE_BLOCKS), i;

  if (load_page(l, first / CAIRN__PAGE_BLOCKS, err) != 0) {
    return -1;
  }
  if (!l->has_l2) {
    memset(states, CAIRN__UNCHANGED, count);
    memset(positions, 0, count * sizeof *positions);
    return 0;
  }
  for (i = 0; i < count; i++) {
    uint64_t entry = cairn__get_be64(l->l2 + 8 * (at + i));

    positions[i] = 0;
    if (entry == 0) {
      states[i] = CAIRN__UNCHANGED;
    } else if (entry == CAIRN__QCOW2_ZERO) {
      states[i] = CAIRN__ZERO;
    } else {
      if (check_pointer(l, entry, l->l2_offset + 8 * (at + i), "L2", err) !=
          0) {
        return -1;
      }
      states[i] = CAIRN__DATA;
      positions[i] = entry & ~CAIRN__QCOW2_COPIED;
    }
  }
  return 0;
}

/* Finds the hole and the data that begin at or behind `offset`. */
static int find_data(struct cairn__layer *l, uint64_t offset,
                     struct cairn_error *err)
{
  off_t data = l->io->lseek(l->io, l->fd, (off_t)offset, SEEK_DATA), end;

  l->from = offset;
  if (data < 0 && errno == ENXIO) { /* a hole to the end */
    l->data = l->data_end = UINT64_MAX;
    return 0;
  }
  if (data < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
    l->data = offset; /* it cannot say */
    l->data_end = UINT64_MAX;
    return 0;
  }
  end = data < 0 ? -1 : l->io->lseek(l->io, l->fd, data, SEEK_HOLE);
  if (end < 0) {
    l->data_end = 0;
    return layer_errno(l, offset, "look for data in", err);
  }
  l->data = (uint64_t)data;
  l->data_end = (uint64_t)end;
  if (end <= data || l->data_end <= offset) {
    /* it shrank meanwhile: reading will tell */
    l->data_end = UINT64_MAX;
  }
  return 0;
}

static int raw_blocks(struct cairn__layer *l, uint64_t first, size_t count,
                      uint8_t *states, uint64_t *positions,
                      struct cairn_error *err)
{
  size_t i;

  for (i = 0; i < count; i++) {
    uint64_t offset = (first + i) * CAIRN__BLOCK;

    if ((offset < l->from || offset >= l->data_end) &&
        find_data(l, offset, err) != 0) {
      return -1;
    }
    if (l->data >= offset + CAIRN__BLOCK) {
      states[i] = CAIRN__ZERO;
      positions[i] = 0;
    } else {
      states[i] = CAIRN__DATA;
      positions[i] = offset;
    }
  }
  return 0;
}

int cairn__layer_blocks(struct cairn__layer *l, uint64_t first, size_t count,
                        uint8_t *states, uint64_t *positions,
                        struct cairn_error *err)
{
  if (count == 0) {
    return 0;
  }
  if (first >= l->blocks || count > l->blocks - first ||
      first % CAIRN__PAGE_BLOCKS + count > CAIRN__PAGE_BLOCKS) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: blocks %" PRIu64 "+%zu asked for, of %" PRIu64,
                       l->name, first, count, l->blocks);
  }
  return l->is_raw ? raw_blocks(l, first, count, states, positions, err)
                   : qcow2_blocks(l, first, count, states, positions, err);
}

int cairn__layer_is_empty(struct cairn__layer *l, uint64_t page, int *is_empty,
                          struct cairn_error *err)
{
  *is_empty = 0;
  if (l->is_raw) {
    return 0;
  }
  if (page >= l->pages) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: page %" PRIu64 " asked for, of %" PRIu64, l->name,
                       page, l->pages);
  }
  if (load_page(l, page, err) != 0) {
    return -1;
  }
  *is_empty = !l->has_l2;
  return 0;
}

int cairn__layer_read_bytes(const struct cairn__layer *l, uint64_t position,
                            size_t n, unsigned char *buf,
                            struct cairn_error *err)
{
  size_t there = n;

  if (l->is_raw && position >= l->length) {
    there = 0;
  } else if (l->is_raw && n > l->length - position) {
    there = (size_t)(l->length - position);
  }
  memset(buf + there, 0, n - there);
  return there == 0 ? 0 : read_exactly(l, buf, there, position, err);
}

int cairn__layer_read(const struct cairn__layer *l, uint64_t position,
                      size_t blocks, unsigned char *buf,
                      struct cairn_error *err)
{
  return cairn__layer_read_bytes(l, position, blocks * CAIRN__BLOCK, buf, err);
}
