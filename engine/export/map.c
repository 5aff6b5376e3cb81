/* The digest map: a file of pages, each the digests of 512 MiB of disk and,
 * behind them, the digest of the page itself. A page of markers is a hole.
 *
 * The writer sees the blocks in ascending order and holds one page; the tree
 * over the file's own bytes grows as the pages leave it, so that nothing is
 * read back. The reader believes nothing: a page counts only when its digest
 * agrees and its padding is zero. */
#include "digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "memory.h"

#define HEADER_SIZE  4096u
#define HEADER_SUM   4080u /* offset of the header's checksum */
#define PAGE_TRAILER 4096u /* page digest and zeros behind the digests */
#define MAP_VERSION  1u
#define NO_PAGE      UINT64_MAX
#define READ_AHEAD   ((off_t)64 << 20) /* of a map, when it is opened */

static const unsigned char map_magic[8] = {'C', 'A', 'I', 'R',
                                           'N', 'D', 'G', '\0'};

static void put_le32(unsigned char *p, uint32_t v)
{
  int i;

  for (i = 0; i < 4; i++) {
    p[i] = (unsigned char)(v >> (8 * i));
  }
}

static void put_le64(unsigned char *p, uint64_t v)
{
  put_le32(p, (uint32_t)v);
  put_le32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t get_le32(const unsigned char *p)
{
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
         (uint32_t)p[3] << 24;
}

static uint64_t get_le64(const unsigned char *p)
{
  return get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

static uint64_t page_stride(const struct cairn__digester *d)
{
  return (uint64_t)CAIRN__PAGE_BLOCKS * d->size + PAGE_TRAILER;
}

static void header_checksum(const unsigned char *header, unsigned char *sum)
{
  XXH128_canonical_t canonical;

  XXH128_canonicalFromHash(&canonical, XXH3_128bits(header, HEADER_SUM));
  memcpy(sum, canonical.digest, sizeof canonical.digest);
}

/* virtual_size and length given: what follows from them. 0 or -1 when they do
 * not belong together. */
static int derive(struct cairn__map_info *info)
{
  if (info->length > INT64_MAX / 2 ||
      info->virtual_size != (info->length + 511) / 512 * 512) {
    return -1;
  }
  info->blocks = (info->virtual_size + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  info->pages = (info->blocks + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;
  return 0;
}

/* ---- writer ---------------------------------------------------------------
 */

struct cairn__map_writer {
  const struct cairn_io *io;
  const struct cairn__digester *digester;
  struct cairn__map_info info;
  int fd; /* -1: the file is only measured */
  char *name;
  uint64_t used;               /* bytes of the pages that are no holes */
  uint64_t next;               /* block that comes next */
  uint64_t page_index;         /* page in `page` */
  int is_page_used;            /* something was put into it */
  unsigned char *page;         /* stride bytes */
  struct cairn__tree *content; /* over the digests */
  /* over the file itself: the tree, and the file block being filled */
  struct cairn__tree *file;
  unsigned char *block;
  size_t block_fill;
};

static void writer_free(struct cairn__map_writer *w)
{
  cairn__tree_free(w->content);
  cairn__tree_free(w->file);
  cairn__free(w->page);
  cairn__free(w->block);
  cairn__free(w->name);
  cairn__free(w);
}

static int writer_errno(struct cairn__map_writer *w, uint64_t offset,
                        const char *what, struct cairn_error *err)
{
  char name[512];

  return cairn__fail_errno(
      err, errno, w->name, (int64_t)offset, "cannot %s %s at offset %" PRIu64,
      what, cairn__printable(w->name, name, sizeof name), offset);
}

/* The file's next n bytes, for its digest; NULL = zeros. */
static int feed(struct cairn__map_writer *w, const unsigned char *data,
                uint64_t n)
{
  unsigned char leaf[CAIRN__DIGEST_MAX];

  while (n > 0) {
    uint64_t part = CAIRN__BLOCK - w->block_fill;

    if (data == NULL && w->block_fill == 0 && n >= CAIRN__BLOCK) {
      uint64_t whole = n / CAIRN__BLOCK;

      if (cairn__tree_append(w->file, NULL, whole) != 0) {
        return -1;
      }
      n -= whole * CAIRN__BLOCK;
      continue;
    }
    if (part > n) {
      part = n;
    }
    if (data == NULL) {
      memset(w->block + w->block_fill, 0, (size_t)part);
    } else {
      memcpy(w->block + w->block_fill, data, (size_t)part);
      data += part;
    }
    w->block_fill += (size_t)part;
    n -= part;
    if (w->block_fill == CAIRN__BLOCK) {
      cairn__digest_block(w->digester, w->block, leaf);
      if (cairn__tree_append(w->file, leaf, 1) != 0) {
        return -1;
      }
      w->block_fill = 0;
    }
  }
  return 0;
}

/* The last file block, padded with zeros. */
static int feed_end(struct cairn__map_writer *w)
{
  if (w->block_fill == 0) {
    return 0;
  }
  return feed(w, NULL, CAIRN__BLOCK - w->block_fill);
}

static void make_header(const struct cairn__map_writer *w,
                        unsigned char header[HEADER_SIZE])
{
  memset(header, 0, HEADER_SIZE);
  memcpy(header, map_magic, sizeof map_magic);
  put_le32(header + 8, MAP_VERSION);
  put_le32(header + 12, HEADER_SIZE);
  put_le32(header + 16, (uint32_t)w->info.algorithm);
  put_le32(header + 20, w->digester->size);
  put_le32(header + 24, CAIRN__BLOCK);
  put_le32(header + 28, CAIRN__PAGE_BLOCKS);
  put_le64(header + 32, w->info.virtual_size);
  put_le64(header + 40, w->info.length);
  memcpy(header + 48, w->info.point, 16);
  put_le64(header + 64, w->info.pages);
  header_checksum(header, header + HEADER_SUM);
}

/* Lets the current page go: to the file, or as a hole. */
static int flush_page(struct cairn__map_writer *w, struct cairn_error *err)
{
  const struct cairn__digester *d = w->digester;
  uint64_t stride = page_stride(d);
  uint64_t offset = HEADER_SIZE + w->page_index * stride;
  uint64_t left = w->info.blocks - w->page_index * CAIRN__PAGE_BLOCKS;
  size_t count = left < CAIRN__PAGE_BLOCKS ? (size_t)left : CAIRN__PAGE_BLOCKS;
  int is_hole = 1;

  if (w->is_page_used) {
    is_hole = cairn__digest_page(
        d, w->page, count, w->page + (size_t)CAIRN__PAGE_BLOCKS * d->size);
  }
  if (!is_hole)
    w->used += stride;
  if (!is_hole && w->fd >= 0 &&
      (cairn__io_write_full(w->io, w->fd, w->page, (size_t)stride,
                            (off_t)offset) != 0 ||
       w->io->write_behind(w->io, w->fd, (off_t)offset, (off_t)stride) != 0)) {
    return writer_errno(w, offset, "write", err);
  }
  if (cairn__tree_append(w->content, is_hole ? NULL : w->page, count) != 0 ||
      feed(w, is_hole ? NULL : w->page, stride) != 0) {
    return cairn__fail_memory(err);
  }
  if (w->is_page_used) {
    memset(w->page, 0, (size_t)stride);
    w->is_page_used = 0;
  }
  w->page_index++;
  return 0;
}

/* Makes `page` the current one; those left out are holes. */
static int go_to_page(struct cairn__map_writer *w, uint64_t page,
                      struct cairn_error *err)
{
  while (w->page_index < page) {
    if (flush_page(w, err) != 0) {
      return -1;
    }
  }
  return 0;
}

static int writer_new(const struct cairn__digester *d, const char *name,
                      uint64_t virtual_size, uint64_t length,
                      struct cairn__map_writer **out, struct cairn_error *err)
{
  struct cairn__map_writer *w = cairn__calloc(1, sizeof *w);

  *out = NULL;
  if (w == NULL) {
    return cairn__fail_memory(err);
  }
  w->digester = d;
  w->fd = -1;
  w->info.algorithm = d->algorithm;
  w->info.virtual_size = virtual_size;
  w->info.length = length;
  if (derive(&w->info) != 0) {
    writer_free(w);
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "digest map of %" PRIu64
                       " bytes with a virtual size of %" PRIu64,
                       length, virtual_size);
  }
  w->name = cairn__strdup(name);
  w->page = cairn__calloc(1, (size_t)page_stride(d));
  w->block = cairn__malloc(CAIRN__BLOCK);
  w->content = cairn__tree_new(d);
  w->file = cairn__tree_new(d);
  if (w->name == NULL || w->page == NULL || w->block == NULL ||
      w->content == NULL || w->file == NULL) {
    writer_free(w);
    return cairn__fail_memory(err);
  }
  *out = w;
  return 0;
}

int cairn__map_create(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const struct cairn__digester *d,
                      uint64_t virtual_size, uint64_t length,
                      const unsigned char point[16],
                      struct cairn__map_writer **out, struct cairn_error *err)
{
  struct cairn__map_writer *w;
  unsigned char header[HEADER_SIZE];
  char printable[512];

  *out = NULL;
  if (writer_new(d, path != NULL ? path : name, virtual_size, length, &w,
                 err) != 0) {
    return -1;
  }
  w->io = io;
  memcpy(w->info.point, point, 16);
  make_header(w, header);
  if (feed(w, header, HEADER_SIZE) != 0) {
    writer_free(w);
    return cairn__fail_memory(err);
  }
  w->fd = io->openat(io, dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                     0600);
  if (w->fd < 0) {
    cairn__fail_errno(err, errno, w->name, -1, "cannot create %s",
                      cairn__printable(w->name, printable, sizeof printable));
    writer_free(w);
    return -1;
  }
  *out = w;
  return 0;
}

int cairn__map_measure(const struct cairn__digester *d, uint64_t virtual_size,
                       uint64_t length, struct cairn__map_writer **out,
                       struct cairn_error *err)
{
  return writer_new(d, "a digest map", virtual_size, length, out, err);
}

int cairn__map_measured(struct cairn__map_writer *w, uint64_t *bytes,
                        struct cairn_error *err)
{
  int result = go_to_page(w, w->info.pages, err);

  *bytes = HEADER_SIZE + w->used;
  cairn__map_abort(w);
  return result;
}

int cairn__map_append(struct cairn__map_writer *w, uint64_t first_block,
                      const unsigned char *digests, uint64_t count,
                      struct cairn_error *err)
{
  unsigned size = w->digester->size;

  if (first_block < w->next || first_block > w->info.blocks ||
      count > w->info.blocks - first_block) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "digest map: blocks %" PRIu64 "+%" PRIu64
                       " after block %" PRIu64 " of %" PRIu64,
                       first_block, count, w->next, w->info.blocks);
  }
  w->next = first_block + count;
  while (count > 0) {
    unsigned at = (unsigned)(first_block % CAIRN__PAGE_BLOCKS);
    uint64_t n = CAIRN__PAGE_BLOCKS - at;

    if (n > count) {
      n = count;
    }
    if (go_to_page(w, first_block / CAIRN__PAGE_BLOCKS, err) != 0) {
      return -1;
    }
    memcpy(w->page + (size_t)at * size, digests, (size_t)n * size);
    w->is_page_used = 1;
    digests += n * size;
    first_block += n;
    count -= n;
  }
  return 0;
}

int cairn__map_finish(struct cairn__map_writer *w, unsigned char *root,
                      unsigned char *file_digest, uint64_t *size,
                      struct cairn_error *err)
{
  unsigned char header[HEADER_SIZE];
  uint64_t bytes = HEADER_SIZE + w->info.pages * page_stride(w->digester);
  int fd;

  if (go_to_page(w, w->info.pages, err) != 0) {
    goto fail;
  }
  if (feed_end(w) != 0) {
    cairn__fail_memory(err);
    goto fail;
  }
  if (w->io->ftruncate(w->io, w->fd, (off_t)bytes) != 0) {
    writer_errno(w, bytes, "extend", err);
    goto fail;
  }
  make_header(w, header);
  if (cairn__io_write_full(w->io, w->fd, header, HEADER_SIZE, 0) != 0) {
    writer_errno(w, 0, "write", err);
    goto fail;
  }
  if (w->io->fsync(w->io, w->fd) != 0) {
    writer_errno(w, 0, "sync", err);
    goto fail;
  }
  fd = w->fd;
  w->fd = -1;
  if (w->io->close(w->io, fd) != 0) {
    writer_errno(w, 0, "close", err);
    goto fail;
  }
  cairn__tree_root(w->content, w->info.virtual_size, root);
  cairn__tree_root(w->file, bytes, file_digest);
  *size = bytes;
  writer_free(w);
  return 0;
fail:
  cairn__map_abort(w);
  return -1;
}

void cairn__map_abort(struct cairn__map_writer *w)
{
  if (w == NULL) {
    return;
  }
  if (w->fd >= 0) {
    (void)w->io->close(w->io, w->fd);
  }
  writer_free(w);
}

/* ---- reader ---------------------------------------------------------------
 */

struct cairn__map {
  const struct cairn_io *io;
  const struct cairn__digester *digester;
  struct cairn__map_info info;
  int fd;
  char *name;
  uint64_t loaded;     /* page in `page`, or NO_PAGE */
  unsigned char *page; /* stride bytes */
};

static int corrupt(const struct cairn__map *m, uint64_t offset,
                   const char *what, struct cairn_error *err)
{
  char name[512];

  cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
              "digest map %s is damaged at offset %" PRIu64 ": %s",
              cairn__printable(m->name, name, sizeof name), offset, what);
  cairn__error_set_path(err, m->name, (int64_t)offset);
  return -1;
}

static int reader_errno(const struct cairn__map *m, uint64_t offset,
                        const char *what, struct cairn_error *err)
{
  char name[512];

  return cairn__fail_errno(err, errno, m->name, (int64_t)offset,
                           "cannot %s digest map %s", what,
                           cairn__printable(m->name, name, sizeof name));
}

static int check_header(struct cairn__map *m, const unsigned char *header,
                        uint64_t file_size, struct cairn_error *err)
{
  const struct cairn__digester *d = m->digester;
  struct cairn__map_info *info = &m->info;
  unsigned char sum[16];
  char name[512];

  if (memcmp(header, map_magic, sizeof map_magic) != 0) {
    return corrupt(m, 0, "it does not begin as a digest map", err);
  }
  header_checksum(header, sum);
  if (memcmp(header + HEADER_SUM, sum, sizeof sum) != 0) {
    return corrupt(m, HEADER_SUM, "the header's checksum does not agree", err);
  }
  if (get_le32(header + 8) != MAP_VERSION) {
    cairn__fail(err, CAIRN_E_VERSION,
                "digest map %s has version %" PRIu32 "; this Cairn knows %u",
                cairn__printable(m->name, name, sizeof name),
                get_le32(header + 8), MAP_VERSION);
    cairn__error_set_path(err, m->name, 8);
    return -1;
  }
  if (get_le32(header + 12) != HEADER_SIZE) {
    return corrupt(m, 12, "the header's size is not 4096", err);
  }
  if (get_le32(header + 16) != (uint32_t)d->algorithm) {
    return corrupt(m, 16, "its digest algorithm is not the export's", err);
  }
  if (get_le32(header + 20) != d->size) {
    return corrupt(m, 20, "the digest size does not fit the algorithm", err);
  }
  if (get_le32(header + 24) != CAIRN__BLOCK) {
    return corrupt(m, 24, "the block size is not 65536", err);
  }
  if (get_le32(header + 28) != CAIRN__PAGE_BLOCKS) {
    return corrupt(m, 28, "a page has not 8192 blocks", err);
  }
  info->algorithm = d->algorithm;
  info->virtual_size = get_le64(header + 32);
  info->length = get_le64(header + 40);
  memcpy(info->point, header + 48, 16);
  if (derive(info) != 0) {
    return corrupt(m, 32, "virtual size and length do not agree", err);
  }
  if (get_le64(header + 64) != info->pages) {
    return corrupt(m, 64, "the number of pages does not fit the size", err);
  }
  if (!cairn__is_zero(header + 72, HEADER_SUM - 72)) {
    return corrupt(m, 72, "reserved bytes are not zero", err);
  }
  /* pages is below 2^34: no overflow */
  if (file_size != HEADER_SIZE + info->pages * page_stride(d)) {
    return corrupt(m, file_size, "the file's size does not fit its header",
                   err);
  }
  return 0;
}

int cairn__map_open(const struct cairn_io *io, int dirfd, const char *name,
                    const char *path, const struct cairn__digester *d,
                    struct cairn__map **out, struct cairn_error *err)
{
  struct cairn__map *m;
  unsigned char header[HEADER_SIZE];
  struct stat st;
  ssize_t got;

  *out = NULL;
  m = cairn__calloc(1, sizeof *m);
  if (m == NULL) {
    return cairn__fail_memory(err);
  }
  m->io = io;
  m->digester = d;
  m->fd = -1;
  m->loaded = NO_PAGE;
  m->name = cairn__strdup(path != NULL ? path : name);
  m->page = cairn__malloc((size_t)page_stride(d));
  if (m->name == NULL || m->page == NULL) {
    cairn__fail_memory(err);
    goto fail;
  }
  m->fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (m->fd < 0) {
    reader_errno(m, 0, "open", err);
    goto fail;
  }
  if (io->fstat(io, m->fd, &st) != 0) {
    reader_errno(m, 0, "look at", err);
    goto fail;
  }
  if (!S_ISREG(st.st_mode)) {
    corrupt(m, 0, "it is not a regular file", err);
    goto fail;
  }
  got = cairn__io_read_full(io, m->fd, header, HEADER_SIZE, 0);
  if (got < 0) {
    reader_errno(m, 0, "read", err);
    goto fail;
  }
  if (got < (ssize_t)HEADER_SIZE) {
    corrupt(m, (uint64_t)got, "it ends inside its header", err);
    goto fail;
  }
  if (check_header(m, header, (uint64_t)st.st_size, err) != 0) {
    goto fail;
  }
  /* It will be read from end to end, a page between other work. */
  (void)posix_fadvise(m->fd, 0, READ_AHEAD, POSIX_FADV_WILLNEED);
  *out = m;
  return 0;
fail:
  cairn__map_close(m);
  return -1;
}

const struct cairn__map_info *cairn__map_get_info(const struct cairn__map *m)
{
  return &m->info;
}

/* Digests in this page; page < pages. */
static size_t page_count(const struct cairn__map *m, uint64_t page)
{
  uint64_t left = m->info.blocks - page * CAIRN__PAGE_BLOCKS;

  return left < CAIRN__PAGE_BLOCKS ? (size_t)left : CAIRN__PAGE_BLOCKS;
}

static int load(struct cairn__map *m, uint64_t page, struct cairn_error *err)
{
  const struct cairn__digester *d = m->digester;
  size_t stride = (size_t)page_stride(d), count = page_count(m, page);
  size_t tail = (size_t)CAIRN__PAGE_BLOCKS * d->size;
  uint64_t offset = HEADER_SIZE + page * stride;
  unsigned char digest[CAIRN__DIGEST_MAX];
  ssize_t got;

  if (m->loaded == page) {
    return 0;
  }
  m->loaded = NO_PAGE;
  got = cairn__io_read_full(m->io, m->fd, m->page, stride, (off_t)offset);
  if (got < 0) {
    return reader_errno(m, offset, "read", err);
  }
  if ((size_t)got < stride) {
    return corrupt(m, offset + (uint64_t)got, "it ends inside a page", err);
  }
  cairn__digest_page(d, m->page, count, digest);
  if (memcmp(m->page + tail, digest, d->size) != 0) {
    return corrupt(m, offset, "a page does not agree with its digest", err);
  }
  if (!cairn__is_zero(m->page + count * d->size, tail - count * d->size)) {
    return corrupt(m, offset + count * d->size, "the padding is not zero", err);
  }
  if (!cairn__is_zero(m->page + tail + d->size, stride - tail - d->size)) {
    return corrupt(m, offset + tail + d->size, "the padding is not zero", err);
  }
  m->loaded = page;
  return 0;
}

int cairn__map_read(struct cairn__map *m, uint64_t first, uint64_t count,
                    unsigned char *out, struct cairn_error *err)
{
  uint64_t page = first / CAIRN__PAGE_BLOCKS;
  unsigned size = m->digester->size;

  if (count == 0) {
    return 0;
  }
  if (first >= m->info.blocks || count > m->info.blocks - first ||
      (first + count - 1) / CAIRN__PAGE_BLOCKS != page) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "digest map: blocks %" PRIu64 "+%" PRIu64
                       " asked for, of %" PRIu64,
                       first, count, m->info.blocks);
  }
  if (load(m, page, err) != 0) {
    return -1;
  }
  memcpy(out, m->page + (size_t)(first % CAIRN__PAGE_BLOCKS) * size,
         (size_t)count * size);
  return 0;
}

int cairn__map_root(struct cairn__map *m, unsigned char *root,
                    struct cairn_error *err)
{
  struct cairn__tree *t = cairn__tree_new(m->digester);
  uint64_t page;

  if (t == NULL) {
    return cairn__fail_memory(err);
  }
  for (page = 0; page < m->info.pages; page++) {
    if (load(m, page, err) != 0) {
      cairn__tree_free(t);
      return -1;
    }
    if (cairn__tree_append(t, m->page, page_count(m, page)) != 0) {
      cairn__tree_free(t);
      return cairn__fail_memory(err);
    }
  }
  cairn__tree_root(t, m->info.virtual_size, root);
  cairn__tree_free(t);
  return 0;
}

/* A page of one map against the same page of another. */
static int mark_page(struct cairn__map *map, struct cairn__map *base,
                     uint64_t page, struct cairn__changes *changes,
                     struct cairn_error *err)
{
  static const unsigned char marker[CAIRN__DIGEST_MAX];
  unsigned size = map->digester->size;
  size_t count = page_count(map, page), there = 0;

  if (load(map, page, err) != 0) {
    return -1;
  }
  if (page < base->info.pages) {
    there = page_count(base, page);
    if (load(base, page, err) != 0) {
      return -1;
    }
  }
  for (size_t i = 0; i < count; i++) {
    const unsigned char *is = map->page + i * size;
    const unsigned char *was = i < there ? base->page + i * size : marker;

    if (memcmp(is, was, size) != 0) {
      cairn__changes_mark(changes,
                          (page * CAIRN__PAGE_BLOCKS + i) * CAIRN__BLOCK, 1);
    }
  }
  return 0;
}

int cairn__map_changes(struct cairn__map *map, struct cairn__map *base,
                       struct cairn__changes **out, struct cairn_error *err)
{
  struct cairn__changes *changes;

  *out = NULL;
  if (cairn__changes_new(map->info.virtual_size, &changes, err) != 0) {
    return -1;
  }
  for (uint64_t page = 0; page < map->info.pages; page++) {
    if (mark_page(map, base, page, changes, err) != 0) {
      cairn__changes_free(changes);
      return -1;
    }
  }
  *out = changes;
  return 0;
}

void cairn__map_close(struct cairn__map *m)
{
  if (m == NULL) {
    return;
  }
  if (m->fd >= 0) {
    (void)m->io->close(m->io, m->fd);
  }
  cairn__free(m->page);
  cairn__free(m->name);
  cairn__free(m);
}
