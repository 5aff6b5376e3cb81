/* Writes a qcow2 whose bytes depend on its content alone.
 *
 * Layout, in clusters: the header; then for each 512 MiB slice of the disk
 * that has anything in it, its data in ascending order and its L2 table; then
 * the L1 table, the refcount blocks and the refcount table. reserve() walks
 * this order, so a place is settled before its bytes exist and no two writers
 * meet. Every cluster of the file is used exactly once: all refcounts are 1,
 * and nothing has to be remembered of them.
 *
 * The file's tree digest grows in the same order: a data cluster is one file
 * block whose digest the caller already has, only tables and the header are
 * digested here. The header is written last; its leaf is set last. Until then
 * the file begins with zeros and no reader takes it for an image.
 *
 * Memory: one L2 table, 8 bytes per slice, and the tree. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"
#include "qcow2.h"
#include "sink_file.h"

struct qcow2_sink {
  struct cairn__sink sink; /* first */
  struct cairn__sink_file file;
  const struct cairn__digester *digester;
  struct cairn__tree *tree;
  uint64_t virtual_size, blocks;
  char *backing_name, *backing_format; /* or NULL */
  int has_point, has_base;
  unsigned char point[16], base[16];

  uint64_t next_block;   /* reserve() has passed everything below */
  uint64_t next_cluster; /* where the next cluster of the file goes */
  uint64_t slice;        /* slice whose L2 table is in l2 */
  int is_l2_used;
  unsigned char *l2; /* one cluster, 4096-aligned */
  uint64_t *l1;      /* file offsets; 0 = none */
  uint64_t l1_size;
};

static struct qcow2_sink *qcow2_of(struct cairn__sink *s)
{
  return (struct qcow2_sink *)s;
}

static void qcow2_free(struct qcow2_sink *q)
{
  cairn__tree_free(q->tree);
  cairn__free(q->backing_name);
  cairn__free(q->backing_format);
  cairn__free_aligned(q->l2);
  cairn__free(q->l1);
  cairn__free(q);
}

static void qcow2_abort(struct cairn__sink *s)
{
  struct qcow2_sink *q = qcow2_of(s);

  cairn__sink_file_abort(&q->file);
  qcow2_free(q);
}

/* Writes one cluster of tables at the next place and digests it. */
static int put_cluster(struct qcow2_sink *q, const unsigned char *cluster,
                       uint64_t *position, struct cairn_error *err)
{
  unsigned char leaf[CAIRN__DIGEST_MAX];

  *position = q->next_cluster * CAIRN__BLOCK;
  if (cairn__sink_file_write(&q->file, cluster, CAIRN__BLOCK, *position, err) !=
      0) {
    return -1;
  }
  cairn__digest_block(q->digester, cluster, leaf);
  if (cairn__tree_append(q->tree, leaf, 1) != 0) {
    return cairn__fail_memory(err);
  }
  q->next_cluster++;
  return 0;
}

/* The slice is complete: its L2 table follows its data. */
static int end_slice(struct qcow2_sink *q, struct cairn_error *err)
{
  if (!q->is_l2_used) {
    return 0;
  }
  if (put_cluster(q, q->l2, &q->l1[q->slice], err) != 0) {
    return -1;
  }
  memset(q->l2, 0, CAIRN__BLOCK);
  q->is_l2_used = 0;
  return 0;
}

static int qcow2_reserve(struct cairn__sink *s, uint64_t first, size_t count,
                         const uint8_t *states, const unsigned char *digests,
                         uint64_t *positions, struct cairn_error *err)
{
  struct qcow2_sink *q = qcow2_of(s);
  size_t i;

  if (first < q->next_block || first > q->blocks || count > q->blocks - first) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: blocks %" PRIu64
                       "+%zu reserved after block %" PRIu64 " of %" PRIu64,
                       q->file.path, first, count, q->next_block, q->blocks);
  }
  q->next_block = first + count;
  for (i = 0; i < count; i++) {
    uint64_t block = first + i;
    uint64_t entry = 0;

    positions[i] = 0;
    if (states[i] == CAIRN__DATA) {
      /* entry: below, the place depends on the slice */
    } else if (states[i] == CAIRN__ZERO && q->backing_name != NULL) {
      entry = CAIRN__QCOW2_ZERO;
    } else {
      continue;
    }
    if (block / CAIRN__PAGE_BLOCKS != q->slice) {
      if (end_slice(q, err) != 0) {
        return -1;
      }
      q->slice = block / CAIRN__PAGE_BLOCKS;
    }
    if (states[i] == CAIRN__DATA) {
      if (cairn__tree_append(q->tree, digests + i * q->digester->size, 1) !=
          0) {
        return cairn__fail_memory(err);
      }
      positions[i] = q->next_cluster++ * CAIRN__BLOCK;
      cairn__sink_file_reserve(&q->file, positions[i]);
      entry = positions[i] | CAIRN__QCOW2_COPIED;
    }
    cairn__put_be64(q->l2 + 8 * (block % CAIRN__PAGE_BLOCKS), entry);
    q->is_l2_used = 1;
  }
  return 0;
}

static int qcow2_write(struct cairn__sink *s, uint64_t first, size_t count,
                       const uint8_t *states, const uint64_t *positions,
                       const unsigned char *buf, struct cairn_error *err)
{
  (void)first;
  return cairn__sink_file_write_blocks(&qcow2_of(s)->file, count, states,
                                       positions, buf, INT64_MAX, err);
}

/* The L1 table, a cluster at a time through the L2 buffer, which is free
 * by now. */
static int write_l1(struct qcow2_sink *q, uint64_t *offset,
                    struct cairn_error *err)
{
  uint64_t i, position;

  *offset = 0;
  for (i = 0; i < q->l1_size; i++) {
    size_t at = (size_t)(i % CAIRN__PAGE_BLOCKS);

    if (q->l1[i] != 0) {
      cairn__put_be64(q->l2 + 8 * at, q->l1[i] | CAIRN__QCOW2_COPIED);
    }
    if (at == CAIRN__PAGE_BLOCKS - 1 || i == q->l1_size - 1) {
      if (put_cluster(q, q->l2, &position, err) != 0) {
        return -1;
      }
      if (*offset == 0) {
        *offset = position;
      }
      memset(q->l2, 0, CAIRN__BLOCK);
    }
  }
  return 0;
}

/* How many refcount blocks and clusters of their table cover `used` clusters
 * and themselves; returns the clusters of the whole file. */
static uint64_t count_refcounts(uint64_t used, uint64_t *blocks,
                                uint64_t *tables)
{
  uint64_t total = used;

  *blocks = *tables = 0;
  for (;;) {
    uint64_t b = (total + CAIRN__QCOW2_REFCOUNTS - 1) / CAIRN__QCOW2_REFCOUNTS;
    uint64_t t = (b + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;

    if (b == *blocks && t == *tables)
      return total;
    *blocks = b;
    *tables = t;
    total = used + b + t;
  }
}

uint64_t cairn__qcow2_file_size(uint64_t virtual_size, uint64_t data_blocks,
                                uint64_t slices)
{
  uint64_t page_bytes = (uint64_t)CAIRN__PAGE_BLOCKS * CAIRN__BLOCK;
  uint64_t l1_size = (virtual_size + page_bytes - 1) / page_bytes;
  uint64_t l1 = (l1_size + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;
  uint64_t blocks, tables;

  return count_refcounts(1 + data_blocks + slices + l1, &blocks, &tables) *
         CAIRN__BLOCK;
}

/* All clusters up to the last of the refcount table itself have refcount 1. */
static int write_refcounts(struct qcow2_sink *q, uint64_t *offset,
                           uint64_t *table_clusters, struct cairn_error *err)
{
  uint64_t used = q->next_cluster, blocks, tables;
  uint64_t total = count_refcounts(used, &blocks, &tables);
  uint64_t i, position, first = used * CAIRN__BLOCK;

  for (i = 0; i < blocks; i++) {
    uint64_t left = total - i * CAIRN__QCOW2_REFCOUNTS, j;

    if (i == 0 || left < CAIRN__QCOW2_REFCOUNTS) {
      memset(q->l2, 0, CAIRN__BLOCK);
      for (j = 0; j < left && j < CAIRN__QCOW2_REFCOUNTS; j++) {
        q->l2[2 * j + 1] = 1;
      }
    }
    if (put_cluster(q, q->l2, &position, err) != 0) {
      return -1;
    }
  }
  *offset = q->next_cluster * CAIRN__BLOCK;
  *table_clusters = tables;
  for (i = 0; i < tables; i++) {
    uint64_t j;

    memset(q->l2, 0, CAIRN__BLOCK);
    for (j = 0; j < CAIRN__PAGE_BLOCKS; j++) {
      uint64_t block = i * CAIRN__PAGE_BLOCKS + j;

      if (block < blocks) {
        cairn__put_be64(q->l2 + 8 * j, first + block * CAIRN__BLOCK);
      }
    }
    if (put_cluster(q, q->l2, &position, err) != 0) {
      return -1;
    }
  }
  return 0;
}

/* Appends a header extension; returns where the next one goes. */
static size_t put_extension(unsigned char *header, size_t at, uint32_t magic,
                            const void *data, size_t n)
{
  cairn__put_be32(header + at, magic);
  cairn__put_be32(header + at + 4, (uint32_t)n);
  if (n > 0) {
    memcpy(header + at + 8, data, n);
  }
  return at + 8 + (n + 7) / 8 * 8;
}

static void make_header(const struct qcow2_sink *q, unsigned char *header,
                        uint64_t l1_offset, uint64_t refcount_offset,
                        uint64_t refcount_clusters)
{
  size_t at = CAIRN__QCOW2_HEADER_LENGTH;

  memset(header, 0, CAIRN__BLOCK);
  cairn__put_be32(header + CAIRN__QCOW2_AT_MAGIC, CAIRN__QCOW2_MAGIC);
  cairn__put_be32(header + CAIRN__QCOW2_AT_VERSION, 3);
  cairn__put_be32(header + CAIRN__QCOW2_AT_CLUSTER_BITS,
                  CAIRN__QCOW2_CLUSTER_BITS);
  cairn__put_be64(header + CAIRN__QCOW2_AT_SIZE, q->virtual_size);
  cairn__put_be32(header + CAIRN__QCOW2_AT_L1_SIZE, (uint32_t)q->l1_size);
  cairn__put_be64(header + CAIRN__QCOW2_AT_L1_OFFSET, l1_offset);
  cairn__put_be64(header + CAIRN__QCOW2_AT_REFCOUNT_OFFSET, refcount_offset);
  cairn__put_be32(header + CAIRN__QCOW2_AT_REFCOUNT_CLUSTERS,
                  (uint32_t)refcount_clusters);
  cairn__put_be32(header + CAIRN__QCOW2_AT_REFCOUNT_ORDER,
                  CAIRN__QCOW2_REFCOUNT_ORDER);
  cairn__put_be32(header + CAIRN__QCOW2_AT_HEADER_LENGTH,
                  CAIRN__QCOW2_HEADER_LENGTH);
  if (q->backing_name != NULL) {
    at = put_extension(header, at, CAIRN__QCOW2_EXT_BACKING, q->backing_format,
                       strlen(q->backing_format));
  }
  if (q->has_point || q->has_base) {
    unsigned char origin[CAIRN__QCOW2_ORIGIN_SIZE] = {0};

    cairn__put_be32(origin, 1);
    cairn__put_be32(origin + 4,
                    (q->has_point ? CAIRN__QCOW2_ORIGIN_POINT : 0) |
                        (q->has_base ? CAIRN__QCOW2_ORIGIN_BASE : 0));
    memcpy(origin + 8, q->point, 16);
    memcpy(origin + 24, q->base, 16);
    at = put_extension(header, at, CAIRN__QCOW2_EXT_ORIGIN, origin,
                       sizeof origin);
  }
  at = put_extension(header, at, CAIRN__QCOW2_EXT_END, NULL, 0);
  if (q->backing_name != NULL) {
    size_t n = strlen(q->backing_name);

    memcpy(header + at, q->backing_name, n);
    cairn__put_be64(header + CAIRN__QCOW2_AT_BACKING_OFFSET, at);
    cairn__put_be32(header + CAIRN__QCOW2_AT_BACKING_SIZE, (uint32_t)n);
  }
}

static int qcow2_finish(struct cairn__sink *s,
                        struct cairn__file_result *result,
                        struct cairn_error *err)
{
  struct qcow2_sink *q = qcow2_of(s);
  uint64_t l1_offset, refcount_offset, refcount_clusters, size;
  unsigned char leaf[CAIRN__DIGEST_MAX];

  if (cairn__sink_file_check(&q->file, err) != 0 || end_slice(q, err) != 0 ||
      write_l1(q, &l1_offset, err) != 0 ||
      write_refcounts(q, &refcount_offset, &refcount_clusters, err) != 0) {
    qcow2_abort(s);
    return -1;
  }
  size = q->next_cluster * CAIRN__BLOCK;
  make_header(q, q->l2, l1_offset, refcount_offset, refcount_clusters);
  if (cairn__sink_file_write(&q->file, q->l2, CAIRN__BLOCK, 0, err) != 0) {
    qcow2_abort(s);
    return -1;
  }
  cairn__digest_block(q->digester, q->l2, leaf);
  cairn__tree_set_first(q->tree, leaf);
  if (cairn__sink_file_finish(&q->file, err) != 0) {
    qcow2_free(q);
    return -1;
  }
  memset(result, 0, sizeof *result);
  result->size = size;
  cairn__tree_root(q->tree, size, result->digest);
  qcow2_free(q);
  return 0;
}

static const struct cairn__sink_ops qcow2_ops = {
    .reserve = qcow2_reserve,
    .write = qcow2_write,
    .finish = qcow2_finish,
    .abort = qcow2_abort,
};

static int check_options(const struct cairn__sink_options *o,
                         struct cairn_error *err)
{
  char path[512];

  cairn__printable(o->path != NULL ? o->path : o->name, path, sizeof path);
  if (o->virtual_size % 512 != 0) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: virtual size %" PRIu64 " is not a multiple of 512",
                       path, o->virtual_size);
  }
  if (o->virtual_size >
      (uint64_t)CAIRN__QCOW2_L1_MAX / 8 * CAIRN__PAGE_BLOCKS * CAIRN__BLOCK) {
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "%s: a qcow2 holds 2 PiB at most, the disk has %" PRIu64
                       " bytes",
                       path, o->virtual_size);
  }
  if (o->backing_name == NULL) {
    return 0;
  }
  if (o->backing_name[0] == '\0' ||
      strlen(o->backing_name) > CAIRN__QCOW2_BACKING_MAX) {
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%s: the name of the backing file has %zu bytes; 1 to "
                       "%d are possible",
                       path, strlen(o->backing_name), CAIRN__QCOW2_BACKING_MAX);
  }
  if (o->backing_format == NULL || o->backing_format[0] == '\0' ||
      strlen(o->backing_format) > CAIRN__QCOW2_FORMAT_MAX) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: a backing file without a usable format", path);
  }
  return 0;
}

int cairn__sink_open_qcow2(const struct cairn__sink_options *o,
                           struct cairn__sink **out, struct cairn_error *err)
{
  struct qcow2_sink *q;

  *out = NULL;
  if (check_options(o, err) != 0) {
    return -1;
  }
  q = cairn__calloc(1, sizeof *q);
  if (q == NULL) {
    return cairn__fail_memory(err);
  }
  q->sink.ops = &qcow2_ops;
  q->digester = o->digester;
  q->virtual_size = o->virtual_size;
  q->blocks = (o->virtual_size + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  q->l1_size = (q->blocks + CAIRN__PAGE_BLOCKS - 1) / CAIRN__PAGE_BLOCKS;
  q->next_cluster = 1;
  if (o->point != NULL) {
    q->has_point = 1;
    memcpy(q->point, o->point, 16);
  }
  if (o->base != NULL) {
    q->has_base = 1;
    memcpy(q->base, o->base, 16);
  }
  q->tree = cairn__tree_new(o->digester);
  q->l2 = cairn__malloc_aligned(CAIRN__BLOCK);
  q->l1 = cairn__calloc((size_t)q->l1_size, sizeof *q->l1);
  if (o->backing_name != NULL) {
    q->backing_name = cairn__strdup(o->backing_name);
    q->backing_format = cairn__strdup(o->backing_format);
  }
  if (q->tree == NULL || q->l2 == NULL || q->l1 == NULL ||
      (o->backing_name != NULL &&
       (q->backing_name == NULL || q->backing_format == NULL)) ||
      cairn__tree_append(q->tree, NULL, 1) != 0) {
    qcow2_free(q);
    return cairn__fail_memory(err);
  }
  memset(q->l2, 0, CAIRN__BLOCK);
  if (cairn__sink_file_open(&q->file, o, err) != 0) {
    qcow2_free(q);
    return -1;
  }
  *out = &q->sink;
  return 0;
}
