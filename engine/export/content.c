/* The content check. Every file is read front to back, once, in blocks of
 * 64 KiB whose digests are the leaves of its tree; that alone finds any changed
 * bit. For images the same pass proves more: an uncompressed cluster is one
 * file block, so its leaf is the digest of that part of the disk and must be
 * the one in the digest map, and the tables that say where clusters lie are
 * checked as a whole: every cluster of the file has exactly one owner and the
 * refcount 1.
 *
 * Data clusters are written in the disk's order, so walking the tables in the
 * disk's order walks the file forwards; what lies between two data clusters
 * (tables) is read on the way. A cluster that lies behind is damage; it is read
 * by itself, so that the walk still covers each block once.
 *
 * The tables are read here by code of its own, not by the reader that restore
 * uses: a mistake in one is not repeated in the other. Memory: a page of
 * digests and one bit per 64 KiB of file. */
#include "content.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "memory.h"
#include "qcow2.h"

#define BATCH 16u /* blocks read at once: the gate is passed each MiB */

#define ENTRY_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* The medium, not the system, refuses these reads. */
static int is_media_error(int errnum)
{
  return errnum == EIO || errnum == EBADMSG || errnum == EUCLEAN ||
         errnum == ENODATA || errnum == EREMOTEIO;
}

int cairn__error_is_damage(const struct cairn_error *err)
{
  switch (err->id) {
  case CAIRN_E_EXPORT_CORRUPT:
  case CAIRN_E_DIGEST_MISMATCH:
  case CAIRN_E_SOURCE_CORRUPT:
  case CAIRN_E_SOURCE_FORMAT:
  case CAIRN_E_NOT_AN_EXPORT:
    return 1;
  case CAIRN_E_IO_ERROR:
    return is_media_error(err->system_errno);
  default:
    return 0;
  }
}

/* ---- findings ----------------------------------------------------------- */

static json_t *offset_or_null(int64_t offset)
{
  return offset < 0 ? json_null() : json_integer(offset);
}

void cairn__finding_add(struct cairn__findings *f, const json_t *entry,
                        const char *file, int64_t offset, int64_t guest_offset,
                        const char *fmt, ...)
{
  char what[CAIRN_MESSAGE_MAX], name[1024];
  va_list args;
  f->count++;
  if (f->count > CAIRN__FINDINGS_MAX)
    return;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  cairn__utf8_clean(what);
  cairn__printable(file ? file : text_of(entry, "path"), name, sizeof name);
  if (!f->array)
    f->array = json_array();
  json_t *finding =
      json_pack("{s:s, s:s?, s:s?, s:o, s:o, s:s}", "file", name, "machine",
                text_of(entry, "VirtualMachineId"), "disk",
                text_of(entry, "disk"), "offset", offset_or_null(offset),
                "guest_offset", offset_or_null(guest_offset), "what", what);
  if (!f->array || !finding || json_array_append_new(f->array, finding) != 0)
    f->has_lost = 1;
}

/* ---- one file, front to back -------------------------------------------- */

struct stream {
  struct cairn__content_check *c;
  const json_t *entry;
  int fd;
  uint64_t size, blocks, next; /* next: first block not yet read */
  struct cairn__tree *tree;
  unsigned char *buf;    /* BATCH blocks, or the whole file */
  uint8_t is_bad[BATCH]; /* of the last batch: could not be read */
  unsigned char leaves[BATCH * CAIRN__DIGEST_MAX]; /* of the last batch */
  size_t findings_before;
};

/* Idempotent. */
static void stream_close(struct stream *s)
{
  if (s->fd >= 0)
    s->c->run->io->close(s->c->run->io, s->fd);
  s->fd = -1;
  cairn__tree_free(s->tree);
  s->tree = NULL;
  cairn__free_aligned(s->buf);
  s->buf = NULL;
}

/* 1 = cannot be opened, which is a finding. Otherwise the caller closes it. */
static int stream_open(struct stream *s, struct cairn__content_check *c,
                       const json_t *entry, struct cairn_error *err)
{
  struct cairn_error why;
  struct stat st;
  *s = (struct stream){.c = c, .entry = entry, .fd = -1};
  s->findings_before = c->found.count;
  cairn__error_clear(&why);
  if (cairn__open_file(c->run->io, c->point, text_of(entry, "path"), &s->fd,
                       &st, &why) != 0) {
    if (cairn__error_is_damage(&why)) {
      cairn__finding_add(&c->found, entry, NULL, -1, -1, "%s", why.message);
      return 1;
    }
    if (err)
      *err = why;
    return -1;
  }
  s->size = number_of(entry, "size");
  s->blocks = s->size / CAIRN__BLOCK + (s->size % CAIRN__BLOCK != 0);
  if ((uint64_t)st.st_size != s->size) {
    cairn__finding_add(&c->found, entry, NULL, -1, -1, "%lld bytes, not %llu",
                       (long long)st.st_size, (unsigned long long)s->size);
    stream_close(s);
    return 1;
  }
  /* Ask the storage, not the cache that the export has just filled. Advice
   * only: where it is not taken, the check holds for what readers see. */
  posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED);
  posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  s->tree = cairn__tree_new(c->digester);
  /* at least one block: stray clusters are read into it */
  uint64_t room = s->blocks < BATCH ? s->blocks + !s->blocks : BATCH;
  s->buf = cairn__malloc_aligned((size_t)room * CAIRN__BLOCK);
  if (!s->tree || !s->buf) {
    stream_close(s);
    return cairn__fail_memory(err);
  }
  return 0;
}

/* Reads n bytes; 1 when they cannot be had (a finding), -1 for errors. */
static int read_or_find(struct stream *s, void *buf, size_t n, uint64_t offset,
                        struct cairn_error *err)
{
  const struct cairn_io *io = s->c->run->io;
  ssize_t got = cairn__io_read_full(io, s->fd, buf, n, (off_t)offset);
  if (got == (ssize_t)n)
    return 0;
  if (got < 0 && !is_media_error(errno))
    return cairn__fail_errno(err, errno, text_of(s->entry, "path"),
                             (int64_t)offset, "cannot read %s",
                             text_of(s->entry, "path"));
  cairn__finding_add(&s->c->found, s->entry, NULL, (int64_t)offset, -1,
                     got < 0 ? "cannot be read: %s" : "became shorter (%s)",
                     got < 0 ? "the storage reports an error" : "while read");
  return 1;
}

/* Reads the next `count` (<= BATCH) blocks and appends their leaves. */
static int stream_read(struct stream *s, uint64_t count,
                       struct cairn_error *err)
{
  const struct cairn__digester *d = s->c->digester;
  const struct cairn_io *io = s->c->run->io;
  uint64_t at = s->next * CAIRN__BLOCK;
  size_t n = count * CAIRN__BLOCK;
  if (n > s->size - at)
    n = (size_t)(s->size - at);
  if (cairn__run_gate(s->c->run, err) != 0)
    return -1;
  memset(s->is_bad, 0, sizeof s->is_bad);
  memset(s->buf + n, 0, count * CAIRN__BLOCK - n);
  if (cairn__io_read_full(io, s->fd, s->buf, n, (off_t)at) != (ssize_t)n) {
    /* block by block, to say which ones */
    for (uint64_t i = 0; i < count; i++) {
      size_t from = i * CAIRN__BLOCK;
      size_t part = n - from < CAIRN__BLOCK ? n - from : CAIRN__BLOCK;
      int result = read_or_find(s, s->buf + from, part, at + from, err);
      if (result < 0)
        return -1;
      s->is_bad[i] = (uint8_t)result;
    }
  }
  for (uint64_t i = 0; i < count; i++)
    if (!s->is_bad[i])
      cairn__digest_block(d, s->buf + i * CAIRN__BLOCK,
                          s->leaves + i * d->size);
  if (cairn__tree_append(s->tree, s->leaves, count) != 0)
    return cairn__fail_memory(err);
  s->next += count;
  s->c->bytes += n;
  s->c->run->bytes_done += n;
  return 0;
}

static int stream_read_to(struct stream *s, uint64_t block,
                          struct cairn_error *err)
{
  while (s->next < block) {
    uint64_t n = block - s->next;
    if (stream_read(s, n < BATCH ? n : BATCH, err) != 0)
      return -1;
  }
  return 0;
}

/* Reads the rest and compares the root, unless the file has findings already:
 * then the root can only say the same once more. */
static int stream_finish(struct stream *s, struct cairn_error *err)
{
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  const struct cairn__digester *d = s->c->digester;
  if (stream_read_to(s, s->blocks, err) != 0)
    return -1;
  posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED);
  if (s->c->found.count > s->findings_before)
    return 0;
  cairn__tree_root(s->tree, s->size, root);
  if (cairn__digest_parse(d, text_of(s->entry, "digest"), wanted, err) != 0)
    return -1;
  if (memcmp(root, wanted, d->size) != 0)
    cairn__finding_add(&s->c->found, s->entry, NULL, -1, -1,
                       "its bytes differ from its digest in the manifest");
  return 0;
}

static int check_plain(struct cairn__content_check *c, const json_t *entry,
                       struct cairn_error *err)
{
  struct stream s;
  int result = stream_open(&s, c, entry, err);
  if (result != 0)
    return result < 0 ? -1 : 0;
  result = stream_finish(&s, err);
  stream_close(&s);
  return result;
}

/* ---- images ------------------------------------------------------------- */

struct image {
  struct cairn__content_check *c;
  struct stream s;
  int is_log;
  uint64_t virtual_size, blocks; /* of the disk */
  /* what the disk holds, block by block: one page each of its map and of its
   * base's; NULL maps or false flags: not known, not judged */
  struct cairn__map *map, *below_map;
  unsigned char *want, *below;
  int has_want, has_below;
  uint64_t page;
  /* qcow2 */
  unsigned char *used; /* one bit per cluster of the file */
  uint64_t clusters, l1_offset, l1_size, table_offset, table_clusters;
  unsigned char *table; /* one cluster */
  int has_disorder;
};

#define FIND(im, offset, guest, ...)                                           \
  cairn__finding_add(&(im)->c->found, (im)->s.entry, NULL, (int64_t)(offset),  \
                     (int64_t)(guest), __VA_ARGS__)

/* Opens a map; a damaged one is a finding of this image's map (`entry`). */
static int open_map(struct image *im, const struct cairn__point *point,
                    const json_t *image, const json_t *entry,
                    struct cairn__map **map, struct cairn_error *err)
{
  struct cairn_error why;
  cairn__error_clear(&why);
  if (cairn__point_open_map(im->c->run->io, point, image, im->c->digester, map,
                            &why) == 0)
    return 0;
  *map = NULL;
  if (!cairn__error_is_damage(&why)) {
    if (err)
      *err = why;
    return -1;
  }
  cairn__finding_add(&im->c->found, entry, NULL, why.offset, -1, "%s",
                     why.message);
  return 0;
}

/* Every page of the map, and the root over them. */
static int check_pages(struct image *im, const json_t *entry,
                       struct cairn_error *err)
{
  struct cairn__content_check *c = im->c;
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  const size_t before = c->found.count;
  struct cairn__tree *tree = cairn__tree_new(c->digester);
  int result = tree ? 0 : cairn__fail_memory(err);
  for (uint64_t first = 0; result == 0 && first < im->blocks;
       first += CAIRN__PAGE_BLOCKS) {
    struct cairn_error why;
    uint64_t count = im->blocks - first;
    if (count > CAIRN__PAGE_BLOCKS)
      count = CAIRN__PAGE_BLOCKS;
    cairn__error_clear(&why);
    result = cairn__run_gate(c->run, err);
    if (result != 0)
      break;
    if (cairn__map_read(im->map, first, count, im->want, &why) == 0) {
      if (cairn__tree_append(tree, im->want, count) != 0)
        result = cairn__fail_memory(err);
    } else if (cairn__error_is_damage(&why)) {
      cairn__finding_add(&c->found, entry, NULL, why.offset,
                         (int64_t)(first * CAIRN__BLOCK), "%s", why.message);
    } else {
      result = -1;
      if (err)
        *err = why;
    }
  }
  if (result == 0)
    result = cairn__digest_parse(c->digester, text_of(c->file, "content"),
                                 wanted, err);
  /* pages that are damaged have been named; the others still serve */
  if (result == 0 && c->found.count == before) {
    cairn__tree_root(tree, im->virtual_size, root);
    if (memcmp(root, wanted, c->digester->size) != 0) {
      cairn__finding_add(&c->found, entry, NULL, -1, -1,
                         "its root differs from \"content\" in the manifest");
      cairn__map_close(im->map);
      im->map = NULL;
    }
  }
  cairn__tree_free(tree);
  return result;
}

/* The digest map as a file and as a tree. Leaves im->map open when its pages
 * can be used to judge the image. */
static int check_map(struct image *im, struct cairn_error *err)
{
  struct cairn__content_check *c = im->c;
  const json_t *entry = cairn__point_map(
      c->point, text_of(c->file, "VirtualMachineId"), text_of(c->file, "disk"));
  size_t before = c->found.count;
  if (c->has_no_map)
    return 0;
  if (open_map(im, c->point, c->file, entry, &im->map, err) != 0)
    return -1;
  if (im->map && check_pages(im, entry, err) != 0)
    return -1;
  if (c->found.count == before)
    return check_plain(c, entry, err);
  c->run->bytes_done += number_of(entry, "size");
  return 0;
}

/* The digests of page `page` of the disk. A page that is damaged has been found
 * already and judges nothing. */
static int load_page(struct image *im, uint64_t page, struct cairn_error *err)
{
  const unsigned size = im->c->digester->size;
  struct cairn_error why;
  uint64_t first = page * CAIRN__PAGE_BLOCKS;
  uint64_t count = im->blocks - first;
  if (count > CAIRN__PAGE_BLOCKS)
    count = CAIRN__PAGE_BLOCKS;
  cairn__error_clear(&why);
  im->page = page;
  im->has_want =
      im->map && cairn__map_read(im->map, first, count, im->want, &why) == 0;
  if (im->map && !im->has_want && !cairn__error_is_damage(&why)) {
    if (err)
      *err = why;
    return -1;
  }
  im->has_below = 0;
  if (!im->below_map)
    return 0;
  /* beyond the base's end there is nothing: zero */
  uint64_t below_blocks = cairn__map_get_info(im->below_map)->blocks;
  uint64_t there = below_blocks > first ? below_blocks - first : 0;
  if (there > count)
    there = count;
  memset(im->below + there * size, 0, (count - there) * size);
  im->has_below = 1;
  if (there > 0 &&
      cairn__map_read(im->below_map, first, there, im->below, &why) != 0) {
    if (!cairn__error_is_damage(&why)) {
      if (err)
        *err = why;
      return -1;
    }
    im->has_below = 0;
    FIND(im, -1, first * CAIRN__BLOCK,
         "the digest map of its base cannot be used: %s", why.message);
  }
  return 0;
}

/* Block `i` of the page is stored and has this digest. */
static void judge_data(struct image *im, uint64_t i, const unsigned char *leaf,
                       uint64_t position)
{
  const unsigned size = im->c->digester->size;
  if (im->has_want && memcmp(leaf, im->want + i * size, size) != 0)
    FIND(im, position, (im->page * CAIRN__PAGE_BLOCKS + i) * CAIRN__BLOCK,
         "its data differ from the digest map");
}

/* Blocks of the page that are not stored in this file. */
static void judge_absent(struct image *im, uint64_t i, uint64_t count,
                         int is_unchanged)
{
  static const unsigned char marker[CAIRN__DIGEST_MAX];
  const unsigned size = im->c->digester->size;
  int is_below = is_unchanged && im->is_log;
  if (!im->has_want || (is_below && !im->has_below))
    return;
  for (uint64_t end = i + count; i < end; i++) {
    const unsigned char *wanted = is_below ? im->below + i * size : marker;
    if (memcmp(wanted, im->want + i * size, size) != 0)
      FIND(im, -1, (im->page * CAIRN__PAGE_BLOCKS + i) * CAIRN__BLOCK,
           is_below ? "the block is taken from the base, whose content "
                      "differs from the digest map"
                    : "the block is stored as zero, which differs from the "
                      "digest map");
  }
}

/* ---- raw ---------------------------------------------------------------- */

/* Blocks first..end-1 of the file are these blocks of the disk. */
static int raw_part(struct image *im, uint64_t end, int is_hole,
                    struct cairn_error *err)
{
  struct stream *s = &im->s;
  const unsigned size = im->c->digester->size;
  while (s->next < end) {
    uint64_t first = s->next, i = first % CAIRN__PAGE_BLOCKS;
    uint64_t count = CAIRN__PAGE_BLOCKS - i;
    if (count > end - first)
      count = end - first;
    if (first / CAIRN__PAGE_BLOCKS != im->page &&
        load_page(im, first / CAIRN__PAGE_BLOCKS, err) != 0)
      return -1;
    if (is_hole) {
      uint64_t bytes = s->size - first * CAIRN__BLOCK;
      if (bytes > count * CAIRN__BLOCK)
        bytes = count * CAIRN__BLOCK;
      if (cairn__run_gate(im->c->run, err) != 0)
        return -1;
      if (cairn__tree_append(s->tree, NULL, count) != 0)
        return cairn__fail_memory(err);
      judge_absent(im, i, count, 0);
      s->next += count;
      im->c->bytes += bytes;
      im->c->run->bytes_done += bytes;
      continue;
    }
    if (count > BATCH)
      count = BATCH;
    if (stream_read(s, count, err) != 0)
      return -1;
    for (uint64_t k = 0; k < count; k++)
      if (!s->is_bad[k])
        judge_data(im, i + k, s->leaves + k * size, (first + k) * CAIRN__BLOCK);
  }
  return 0;
}

static int check_raw(struct image *im, struct cairn_error *err)
{
  const struct cairn_io *io = im->c->run->io;
  struct stream *s = &im->s;
  im->page = UINT64_MAX;
  while (s->next < s->blocks) {
    off_t at = (off_t)(s->next * CAIRN__BLOCK);
    off_t data = io->lseek(io, s->fd, at, SEEK_DATA);
    uint64_t from = s->blocks; /* ENXIO: nothing but a hole to the end */
    if (data < 0 && errno != ENXIO)
      from = s->next; /* no answer: read */
    else if (data >= 0)
      from = (uint64_t)data / CAIRN__BLOCK;
    if (from > s->next && raw_part(im, from, 1, err) != 0)
      return -1;
    if (s->next >= s->blocks)
      break;
    off_t hole = data < 0 ? -1 : io->lseek(io, s->fd, data, SEEK_HOLE);
    uint64_t to = s->blocks;
    if (hole > data && (uint64_t)hole < s->size)
      to = ((uint64_t)hole + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
    if (raw_part(im, to, 0, err) != 0)
      return -1;
  }
  return stream_finish(s, err);
}

/* ---- qcow2 -------------------------------------------------------------- */

/* Gives clusters an owner. 0, or 1 when they cannot be had: a finding. */
static int claim(struct image *im, uint64_t offset, uint64_t count,
                 const char *what, uint64_t guest)
{
  uint64_t first = offset / CAIRN__BLOCK;
  if (offset % CAIRN__BLOCK || first > im->clusters ||
      count > im->clusters - first) {
    FIND(im, offset, guest, "%s lies outside the file or between clusters",
         what);
    return 1;
  }
  for (uint64_t i = first; i < first + count; i++) {
    if (im->used[i / 8] & 1u << i % 8) {
      FIND(im, i * CAIRN__BLOCK, guest,
           "%s lies where something else does already", what);
      return 1;
    }
    im->used[i / 8] |= (unsigned char)(1u << i % 8);
  }
  return 0;
}

static int read_header(struct image *im, struct cairn_error *err)
{
  static const struct {
    unsigned at, bytes;
    uint64_t value;
    const char *name;
  } fixed[] = {{CAIRN__QCOW2_AT_MAGIC, 4, CAIRN__QCOW2_MAGIC, "magic"},
               {CAIRN__QCOW2_AT_VERSION, 4, 3, "version"},
               {CAIRN__QCOW2_AT_CLUSTER_BITS, 4, CAIRN__QCOW2_CLUSTER_BITS,
                "cluster_bits"},
               {CAIRN__QCOW2_AT_CRYPT, 4, 0, "crypt_method"},
               {CAIRN__QCOW2_AT_SNAPSHOTS, 4, 0, "nb_snapshots"},
               {CAIRN__QCOW2_AT_SNAPSHOTS_OFFSET, 8, 0, "snapshots_offset"},
               {CAIRN__QCOW2_AT_INCOMPATIBLE, 8, 0, "incompatible_features"},
               {CAIRN__QCOW2_AT_COMPATIBLE, 8, 0, "compatible_features"},
               {CAIRN__QCOW2_AT_AUTOCLEAR, 8, 0, "autoclear_features"},
               {CAIRN__QCOW2_AT_REFCOUNT_ORDER, 4, CAIRN__QCOW2_REFCOUNT_ORDER,
                "refcount_order"},
               {CAIRN__QCOW2_AT_HEADER_LENGTH, 4, CAIRN__QCOW2_HEADER_LENGTH,
                "header_length"},
               {CAIRN__QCOW2_AT_COMPRESSION, 8, 0, "compression_type"}};
  const unsigned char *h = im->table;
  uint64_t size = number_of(im->c->file, "size");
  int result;
  if (size % CAIRN__BLOCK || size < UINT64_C(2) * CAIRN__BLOCK) {
    FIND(im, -1, -1, "%llu bytes are no whole number of clusters",
         (unsigned long long)size);
    return 1;
  }
  if ((result = read_or_find(&im->s, im->table, CAIRN__BLOCK, 0, err)) != 0)
    return result;
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
    const unsigned char *field = h + fixed[i].at;
    uint64_t v =
        fixed[i].bytes == 4 ? cairn__get_be32(field) : cairn__get_be64(field);
    if (v != fixed[i].value) {
      FIND(im, fixed[i].at, -1, "%s in the header is 0x%llx, not 0x%llx",
           fixed[i].name, (unsigned long long)v,
           (unsigned long long)fixed[i].value);
      return 1;
    }
  }
  uint64_t slice = (uint64_t)CAIRN__PAGE_BLOCKS * CAIRN__BLOCK;
  uint64_t needed = im->virtual_size / slice + (im->virtual_size % slice != 0);
  if (cairn__get_be64(h + CAIRN__QCOW2_AT_SIZE) != im->virtual_size) {
    FIND(im, CAIRN__QCOW2_AT_SIZE, -1,
         "the virtual size in the header is %llu, not %llu",
         (unsigned long long)cairn__get_be64(h + CAIRN__QCOW2_AT_SIZE),
         (unsigned long long)im->virtual_size);
    return 1;
  }
  im->l1_size = cairn__get_be32(h + CAIRN__QCOW2_AT_L1_SIZE);
  im->l1_offset = cairn__get_be64(h + CAIRN__QCOW2_AT_L1_OFFSET);
  im->table_offset = cairn__get_be64(h + CAIRN__QCOW2_AT_REFCOUNT_OFFSET);
  im->table_clusters = cairn__get_be32(h + CAIRN__QCOW2_AT_REFCOUNT_CLUSTERS);
  im->clusters = size / CAIRN__BLOCK;
  if (im->l1_size != needed) {
    FIND(im, CAIRN__QCOW2_AT_L1_SIZE, -1,
         "l1_size is %llu; the disk needs %llu",
         (unsigned long long)im->l1_size, (unsigned long long)needed);
    return 1;
  }
  im->used = cairn__calloc(1, im->clusters / 8 + 1);
  if (!im->used)
    return cairn__fail_memory(err);
  uint64_t l1_clusters = (im->l1_size * 8 + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  return claim(im, 0, 1, "the header", (uint64_t)-1) |
         claim(im, im->l1_offset, l1_clusters, "the L1 table", (uint64_t)-1) |
         claim(im, im->table_offset, im->table_clusters, "the refcount table",
               (uint64_t)-1);
}

/* A data cluster that lies before one that belongs earlier in the disk. */
static int check_stray(struct image *im, uint64_t i, uint64_t position,
                       struct cairn_error *err)
{
  unsigned char leaf[CAIRN__DIGEST_MAX];
  if (!im->has_disorder)
    FIND(im, position, (im->page * CAIRN__PAGE_BLOCKS + i) * CAIRN__BLOCK,
         "data clusters are not in the disk's order");
  im->has_disorder = 1;
  if (cairn__run_gate(im->c->run, err) != 0)
    return -1;
  int result = read_or_find(&im->s, im->s.buf, CAIRN__BLOCK, position, err);
  if (result != 0)
    return result < 0 ? -1 : 0;
  cairn__digest_block(im->c->digester, im->s.buf, leaf);
  judge_data(im, i, leaf, position);
  return 0;
}

static int is_data_entry(uint64_t entry)
{
  return (entry & CAIRN__QCOW2_COPIED) && (entry & ENTRY_OFFSET_MASK) &&
         !(entry & ~(CAIRN__QCOW2_COPIED | ENTRY_OFFSET_MASK)) &&
         !(entry & (CAIRN__BLOCK - 1));
}

/* The data clusters from entry i on that lie in one piece; *next: the entry
 * behind them. */
static int check_data(struct image *im, const unsigned char *l2, uint64_t i,
                      uint64_t count, uint64_t *next, struct cairn_error *err)
{
  const unsigned size = im->c->digester->size;
  struct stream *s = &im->s;
  uint64_t guest = (im->page * CAIRN__PAGE_BLOCKS + i) * CAIRN__BLOCK;
  uint64_t position = cairn__get_be64(l2 + i * 8) & ENTRY_OFFSET_MASK;
  uint64_t block = position / CAIRN__BLOCK, run = 1;
  *next = i + 1;
  if (claim(im, position, 1, "a data cluster", guest) != 0)
    return 0;
  if (block < s->next)
    return check_stray(im, i, position, err);
  while (run < BATCH && i + run < count) {
    uint64_t entry = cairn__get_be64(l2 + (i + run) * 8);
    if (!is_data_entry(entry) ||
        (entry & ENTRY_OFFSET_MASK) != position + run * CAIRN__BLOCK ||
        claim(im, position + run * CAIRN__BLOCK, 1, "a data cluster",
              guest + run * CAIRN__BLOCK) != 0)
      break;
    run++;
  }
  *next = i + run;
  if (stream_read_to(s, block, err) != 0 || stream_read(s, run, err) != 0)
    return -1;
  for (uint64_t k = 0; k < run; k++)
    if (!s->is_bad[k])
      judge_data(im, i + k, s->leaves + k * size, position + k * CAIRN__BLOCK);
  return 0;
}

/* One L2 table (NULL: not allocated) against one page of the map. */
static int check_slice(struct image *im, const unsigned char *l2,
                       uint64_t l2_offset, struct cairn_error *err)
{
  uint64_t first = im->page * CAIRN__PAGE_BLOCKS;
  uint64_t count = im->blocks - first, i = 0;
  if (count > CAIRN__PAGE_BLOCKS)
    count = CAIRN__PAGE_BLOCKS;
  if (!l2) {
    judge_absent(im, 0, count, 1);
    return 0;
  }
  while (i < count) {
    uint64_t entry = cairn__get_be64(l2 + i * 8);
    if (entry <= 1) {
      judge_absent(im, i, 1, entry == 0);
      i++;
    } else if (is_data_entry(entry)) {
      if (check_data(im, l2, i, count, &i, err) != 0)
        return -1;
    } else {
      FIND(im, l2_offset + i * 8, (first + i) * CAIRN__BLOCK,
           "the L2 entry 0x%016llx is of no kind that is written",
           (unsigned long long)entry);
      i++;
    }
  }
  for (; i < CAIRN__PAGE_BLOCKS; i++)
    if (cairn__get_be64(l2 + i * 8) != 0)
      FIND(im, l2_offset + i * 8, -1,
           "an L2 entry beyond the end of the disk is not 0");
  return 0;
}

static int check_slices(struct image *im, struct cairn_error *err)
{
  unsigned char *l1 = cairn__malloc(im->l1_size * 8 + 1);
  int result = l1 ? 0 : cairn__fail_memory(err);
  if (l1)
    result = read_or_find(&im->s, l1, im->l1_size * 8, im->l1_offset, err);
  for (uint64_t i = 0; result == 0 && i < im->l1_size; i++) {
    uint64_t entry = cairn__get_be64(l1 + i * 8),
             offset = entry & ENTRY_OFFSET_MASK;
    uint64_t guest = i * CAIRN__PAGE_BLOCKS * CAIRN__BLOCK;
    const unsigned char *l2 = NULL;
    if (entry != 0 && (entry != (offset | CAIRN__QCOW2_COPIED) || !offset)) {
      FIND(im, im->l1_offset + i * 8, guest,
           "the L1 entry 0x%016llx is of no kind that is written",
           (unsigned long long)entry);
      continue;
    }
    if (offset) {
      if (claim(im, offset, 1, "an L2 table", guest) != 0)
        continue;
      result = read_or_find(&im->s, im->table, CAIRN__BLOCK, offset, err);
      if (result > 0) {
        result = 0;
        continue;
      }
      l2 = im->table;
    }
    if (result == 0)
      result = cairn__run_gate(im->c->run, err);
    if (result == 0)
      result = load_page(im, i, err);
    if (result == 0)
      result = check_slice(im, l2, offset, err);
  }
  cairn__free(l1);
  return result < 0 ? -1 : 0;
}

/* One refcount block: 1 for every cluster of the file, 0 beyond. */
static int check_refcount_block(struct image *im, uint64_t index,
                                uint64_t offset, struct cairn_error *err)
{
  if (claim(im, offset, 1, "a refcount block", (uint64_t)-1) != 0)
    return 0;
  int result = read_or_find(&im->s, im->table, CAIRN__BLOCK, offset, err);
  if (result != 0)
    return result < 0 ? -1 : 0;
  for (uint64_t i = 0; i < CAIRN__QCOW2_REFCOUNTS; i++) {
    uint64_t cluster = index * CAIRN__QCOW2_REFCOUNTS + i;
    uint64_t wanted = cluster < im->clusters,
             is = (uint64_t)im->table[i * 2] << 8 | im->table[i * 2 + 1];
    if (is != wanted)
      FIND(im, offset + i * 2, -1,
           "the refcount of cluster %llu is %llu, not %llu",
           (unsigned long long)cluster, (unsigned long long)is,
           (unsigned long long)wanted);
  }
  return 0;
}

static int check_refcounts(struct image *im, struct cairn_error *err)
{
  uint64_t needed =
      (im->clusters + CAIRN__QCOW2_REFCOUNTS - 1) / CAIRN__QCOW2_REFCOUNTS;
  uint64_t entries = im->table_clusters * (CAIRN__BLOCK / 8);
  unsigned char *table = cairn__malloc_aligned(CAIRN__BLOCK);
  int result = table ? 0 : cairn__fail_memory(err);
  if (table && entries < needed)
    FIND(im, im->table_offset, -1, "the refcount table is too short");
  for (uint64_t i = 0; result == 0 && i < entries; i++) {
    uint64_t at = i % (CAIRN__BLOCK / 8) * 8;
    if (at == 0) {
      result = cairn__run_gate(im->c->run, err);
      if (result == 0)
        result = read_or_find(&im->s, table, CAIRN__BLOCK,
                              im->table_offset + i * 8, err);
      if (result != 0)
        break;
    }
    uint64_t offset = cairn__get_be64(table + at);
    if (i >= needed ? offset != 0 : offset == 0)
      FIND(im, im->table_offset + i * 8, -1,
           "refcount table entry %llu is 0x%llx", (unsigned long long)i,
           (unsigned long long)offset);
    else if (offset)
      result = check_refcount_block(im, i, offset, err);
  }
  cairn__free_aligned(table);
  if (result != 0)
    return result < 0 ? -1 : 0;
  for (uint64_t i = 0; i < im->clusters; i++)
    if (!(im->used[i / 8] & 1u << i % 8))
      FIND(im, i * CAIRN__BLOCK, -1, "the cluster belongs to nothing");
  return 0;
}

static int check_qcow2(struct image *im, struct cairn_error *err)
{
  im->table = cairn__malloc_aligned(CAIRN__BLOCK);
  if (!im->table)
    return cairn__fail_memory(err);
  int result = read_header(im, err);
  if (result < 0)
    return -1;
  /* with a broken header the tables cannot be found; the bytes still count */
  if (result == 0 &&
      (check_slices(im, err) != 0 || check_refcounts(im, err) != 0))
    return -1;
  return stream_finish(&im->s, err);
}

static int check_image(struct cairn__content_check *c, struct cairn_error *err)
{
  struct image im = {.c = c,
                     .s = {.c = c, .fd = -1},
                     .is_log = strcmp(text_of(c->file, "role"), "log") == 0,
                     .virtual_size = number_of(c->file, "virtual_size")};
  im.blocks =
      im.virtual_size / CAIRN__BLOCK + (im.virtual_size % CAIRN__BLOCK != 0);
  const size_t page = (size_t)CAIRN__PAGE_BLOCKS * c->digester->size;
  int result = -1;
  im.want = cairn__malloc(page);
  im.below = cairn__malloc(page);
  if (!im.want || !im.below) {
    cairn__fail_memory(err);
    goto out;
  }
  if (check_map(&im, err) != 0)
    goto out;
  if (im.is_log && c->base) {
    const json_t *below =
        cairn__point_image(c->base, text_of(c->file, "VirtualMachineId"),
                           text_of(c->file, "disk"));
    if (below &&
        open_map(&im, c->base, below, c->file, &im.below_map, err) != 0)
      goto out;
  }
  result = stream_open(&im.s, c, c->file, err);
  if (result != 0) {
    result = result < 0 ? -1 : 0;
    goto out;
  }
  result = strcmp(text_of(c->file, "format"), "raw") == 0
               ? check_raw(&im, err)
               : check_qcow2(&im, err);
out:
  stream_close(&im.s);
  cairn__map_close(im.map);
  cairn__map_close(im.below_map);
  cairn__free(im.want);
  cairn__free(im.below);
  cairn__free(im.used);
  cairn__free_aligned(im.table);
  return result;
}

int cairn__content_check_file(struct cairn__content_check *c,
                              struct cairn_error *err)
{
  const char *role = text_of(c->file, "role");
  int is_image = strcmp(role, "disk") == 0 || strcmp(role, "log") == 0;
  int result = is_image ? check_image(c, err) : check_plain(c, c->file, err);
  if (result == 0 && c->found.has_lost)
    return cairn__fail_memory(err);
  return result;
}
