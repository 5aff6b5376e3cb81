/* chain.c: see chain.h. Relative backing names are resolved as QEMU does it,
 * against the name that an image was opened by; what is compared with the
 * allowed directories is the file itself, with every link resolved, before it
 * is opened and again once it is. */
#include "chain.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "qcow2.h"

enum {
  MIN_CLUSTER_BITS = 9,
  MAX_CLUSTER_BITS = 21,
  V2_HEADER = 72,
  V3_HEADER = 104,
  MAX_BACKING = 1023,
  MAX_EXTENSIONS = 64,
  MAX_L1_BYTES = 32 << 20
};

#define EXTENSION_END     0u
#define EXTENSION_BACKING 0xe2792acau
#define EXTENSION_BITMAPS 0x23852875u

#define INCOMPATIBLE_DIRTY       (1u << 0)
#define INCOMPATIBLE_CORRUPT     (1u << 1)
#define INCOMPATIBLE_DATA_FILE   (1u << 2)
#define INCOMPATIBLE_COMPRESSION (1u << 3)
#define INCOMPATIBLE_EXTENDED_L2 (1u << 4)

#define OFFSET_MASK 0x00fffffffffffe00ull
#define COMPRESSED  (1ull << 62)
#define READS_ZERO  1ull /* version 3 */

#define TABLES_AHEAD 16u /* L2 tables asked for before they are needed */

__attribute__((format(printf, 5, 6))) static void
say(struct cairn_error *err, int id, const struct cairn__held *h,
    int64_t offset, const char *fmt, ...)
{
  char text[1536], shown[512];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cairn__fail(err, id, "\"%s\" %s",
              cairn__printable(h->path, shown, sizeof shown), text);
  cairn__error_set_path(err, h->path, offset);
}

/* Always -1: a macro, so that those who analyse the callers can see it. */
#define fail_image(...) (say(__VA_ARGS__), -1)

/* ---- the header ---------------------------------------------------------- */

int cairn__held_read(const struct cairn__held *h, void *buf, size_t n,
                     uint64_t offset, const char *what, struct cairn_error *err)
{
  ssize_t got = 0;
  char shown[512];

  if (offset <= h->size && n <= h->size - offset) {
    got = cairn__io_read_full(h->io, h->fd, buf, n, (off_t)offset);
    if (got < 0)
      return cairn__fail_errno(err, errno, h->path, (int64_t)offset,
                               "cannot read the %s of \"%s\"", what,
                               cairn__printable(h->path, shown, sizeof shown));
  }
  if ((size_t)got != n)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, (int64_t)offset,
                      "is a corrupt qcow2 image: its %s lies beyond the end "
                      "of the file (%llu bytes), which was probably cut off",
                      what, (unsigned long long)h->size);
  return 0;
}

static int check_features(const struct cairn__held *h,
                          const struct cairn__qcow2_header *q,
                          uint32_t crypt_method, struct cairn_error *err)
{
  const uint64_t known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT |
                         INCOMPATIBLE_DATA_FILE | INCOMPATIBLE_COMPRESSION |
                         INCOMPATIBLE_EXTENDED_L2;

  if (q->incompatible & INCOMPATIBLE_CORRUPT)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 72,
                      "is marked corrupt; repair it with "
                      "\"qemu-img check -r all\" before it is exported");
  if (crypt_method != 0)
    return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 32,
                      "is encrypted (method %u); encrypted images are not "
                      "supported",
                      crypt_method);
  if (q->incompatible & INCOMPATIBLE_DATA_FILE)
    return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 72,
                      "keeps its data in an external data file, which is not "
                      "supported; convert it with \"qemu-img convert\"");
  if (q->incompatible & ~known)
    return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 72,
                      "uses qcow2 features that this version does not know "
                      "(incompatible bits 0x%llx)",
                      (unsigned long long)(q->incompatible & ~known));
  return 0;
}

static int check_geometry(const struct cairn__held *h,
                          const struct cairn__qcow2_header *q,
                          struct cairn_error *err)
{
  unsigned entry_bits = q->incompatible & INCOMPATIBLE_EXTENDED_L2 ? 4 : 3;
  unsigned l2_bits;
  uint64_t needed;

  if (q->cluster_bits < MIN_CLUSTER_BITS || q->cluster_bits > MAX_CLUSTER_BITS)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 20,
                      "is a corrupt qcow2 image: cluster bits %u, valid are "
                      "%d to %d",
                      q->cluster_bits, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS);
  l2_bits = q->cluster_bits + q->cluster_bits - entry_bits;
  needed = q->virtual_size >> l2_bits;
  if (q->virtual_size & (((uint64_t)1 << l2_bits) - 1))
    needed++;
  if (q->l1_size > MAX_L1_BYTES / 8 || needed > q->l1_size)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 36,
                      "is a corrupt qcow2 image: an L1 table of %u entries "
                      "for a virtual size of %llu",
                      q->l1_size, (unsigned long long)q->virtual_size);
  if (q->virtual_size % 512 != 0)
    return fail_image(
        err, CAIRN_E_SOURCE_FORMAT, h, 24,
        "has a virtual size of %llu, which is not a multiple of 512: QEMU "
        "reads "
        "it rounded down and would lose the end; \"qemu-img resize\" it to "
        "%llu",
        (unsigned long long)q->virtual_size,
        (unsigned long long)((q->virtual_size + 511) & ~(uint64_t)511));
  return 0;
}

static int read_extensions(const struct cairn__held *h,
                           struct cairn__qcow2_header *q, uint64_t at,
                           uint64_t end, struct cairn_error *err)
{
  for (int i = 0; i < MAX_EXTENSIONS; i++) {
    unsigned char head[8];
    uint32_t type, length;

    if (at + sizeof head > end)
      return 0;
    if (cairn__held_read(h, head, sizeof head, at, "header extension", err) !=
        0)
      return -1;
    type = cairn__get_be32(head);
    length = cairn__get_be32(head + 4);
    at += sizeof head;
    if (type == EXTENSION_END)
      return 0;
    if (length > end - at)
      return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, (int64_t)at - 8,
                        "is a corrupt qcow2 image: header extension 0x%08x "
                        "of %u bytes is too long",
                        type, length);
    if (type == EXTENSION_BACKING) {
      if (length >= sizeof q->backing_format)
        return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, (int64_t)at,
                          "records a backing format with a name of %u bytes; "
                          "supported are qcow2 and raw",
                          length);
      if (cairn__held_read(h, q->backing_format, length, at, "backing format",
                           err) != 0)
        return -1;
      q->backing_format[length] = '\0';
    }
    if (type == EXTENSION_BITMAPS) {
      q->bitmaps_offset = at;
      q->bitmaps_length = length;
    }
    at += ((uint64_t)length + 7) & ~(uint64_t)7;
  }
  return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, (int64_t)at,
                    "is a corrupt qcow2 image: its header extensions do not "
                    "end");
}

int cairn__qcow2_header_read(const struct cairn__held *h,
                             struct cairn__qcow2_header *q,
                             struct cairn_error *err)
{
  unsigned char raw[V3_HEADER] = {0};
  uint64_t backing_offset, header_length = V2_HEADER, cluster;
  uint32_t backing_length;

  memset(q, 0, sizeof *q);
  if (h->size >= 4 && cairn__held_read(h, raw, 4, 0, "header", err) != 0)
    return -1;
  if (memcmp(raw, "QFI\xfb", 4) != 0)
    return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 0,
                      "is declared qcow2 but has no qcow2 header; name its "
                      "real format (\"qemu-img info\" shows it)");
  if (cairn__held_read(h, raw, V2_HEADER, 0, "header", err) != 0)
    return -1;
  q->version = cairn__get_be32(raw + 4);
  if (q->version != 2 && q->version != 3)
    return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 4,
                      "is a qcow2 image of version %u; supported are 2 and 3",
                      q->version);
  if (q->version == 3) {
    if (cairn__held_read(h, raw, V3_HEADER, 0, "header", err) != 0)
      return -1;
    q->incompatible = cairn__get_be64(raw + 72);
    q->autoclear = cairn__get_be64(raw + 88);
    header_length = cairn__get_be32(raw + 100);
  }
  backing_offset = cairn__get_be64(raw + 8);
  backing_length = cairn__get_be32(raw + 16);
  q->cluster_bits = cairn__get_be32(raw + 20);
  q->virtual_size = cairn__get_be64(raw + 24);
  q->l1_size = cairn__get_be32(raw + 36);
  q->l1_offset = cairn__get_be64(raw + 40);
  q->snapshots = cairn__get_be32(raw + 60);
  if (check_features(h, q, cairn__get_be32(raw + 32), err) != 0 ||
      check_geometry(h, q, err) != 0)
    return -1;
  cluster = (uint64_t)1 << q->cluster_bits;
  if ((q->version == 3 && header_length < V3_HEADER) || header_length > cluster)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 100,
                      "is a corrupt qcow2 image: header length %llu",
                      (unsigned long long)header_length);
  if (backing_offset != 0 &&
      (backing_length > MAX_BACKING || backing_offset > cluster ||
       backing_length > cluster - backing_offset ||
       backing_offset < header_length))
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 8,
                      "is a corrupt qcow2 image: a backing file name of %u "
                      "bytes at offset %llu",
                      backing_length, (unsigned long long)backing_offset);
  if (read_extensions(h, q, header_length,
                      backing_offset != 0 ? backing_offset : cluster, err) != 0)
    return -1;
  if (backing_offset == 0 || backing_length == 0)
    return 0;
  if (cairn__held_read(h, q->backing, backing_length, backing_offset,
                       "backing file name", err) != 0)
    return -1;
  q->backing[backing_length] = '\0';
  if (strlen(q->backing) != backing_length)
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, (int64_t)backing_offset,
                      "is a corrupt qcow2 image: a NUL in its backing file "
                      "name");
  q->has_backing = 1;
  return 0;
}

/* ---- the tables ---------------------------------------------------------- */

static int fail_cluster(const struct cairn__held *h, uint64_t at,
                        uint64_t guest, const char *what, uint64_t offset,
                        const char *why, struct cairn_error *err)
{
  return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, (int64_t)at,
                    "is a corrupt qcow2 image: the %s for guest offset %llu, "
                    "at file offset %llu, %s (\"qemu-img check\" shows more)",
                    what, (unsigned long long)guest, (unsigned long long)offset,
                    why);
}

static int check_entry(const struct cairn__held *h,
                       const struct cairn__qcow2_header *q, uint64_t entry,
                       uint64_t at, uint64_t guest, struct cairn_error *err)
{
  static const char beyond[] = "lies beyond the end of the file";
  uint64_t cluster = (uint64_t)1 << q->cluster_bits, offset;

  if (entry & COMPRESSED) {
    unsigned shift = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (entry >> shift) & ((1ull << (q->cluster_bits - 8)) - 1);

    offset = entry & ((1ull << shift) - 1);
    /* The last of its sectors may be cut short by the end of the file. */
    if ((offset & ~511ull) + sectors * 512 >= h->size)
      return fail_cluster(h, at, guest, "compressed cluster", offset, beyond,
                          err);
    return 0;
  }
  offset = entry & OFFSET_MASK;
  if (offset & (cluster - 1))
    return fail_cluster(h, at, guest, "data cluster", offset, "is not aligned",
                        err);
  if (offset >= h->size && offset != 0 &&
      !(q->version == 3 && entry & READS_ZERO))
    return fail_cluster(h, at, guest, "data cluster", offset, beyond, err);
  return 0;
}

/* What is done with an L2 table that was read: `guest` is the offset of its
 * first entry, `at` that of the table in the file. */
struct table_visit {
  int (*visit)(const struct table_visit *v, const unsigned char *table,
               uint64_t at, uint64_t guest, struct cairn_error *err);
  const struct cairn__held *h;
  const struct cairn__qcow2_header *q;
  void (*found)(void *argument, uint64_t offset, uint64_t length);
  void *argument;
};

static size_t entry_size(const struct cairn__qcow2_header *q)
{
  return q->incompatible & INCOMPATIBLE_EXTENDED_L2 ? 16 : 8;
}

static int check_l2(const struct table_visit *v, const unsigned char *table,
                    uint64_t offset, uint64_t guest, struct cairn_error *err)
{
  const struct cairn__qcow2_header *q = v->q;
  size_t cluster = (size_t)1 << q->cluster_bits, step = entry_size(q);

  for (size_t i = 0; i < cluster; i += step) {
    uint64_t entry = cairn__get_be64(table + i);
    uint64_t at = guest + (uint64_t)(i / step) * cluster;

    if (entry == 0)
      continue;
    if (at >= q->virtual_size)
      break;
    if (check_entry(v->h, q, entry, offset + i, at, err) != 0)
      return -1;
  }
  return 0;
}

/* With extended entries the second word has the state of the subclusters. */
static int find_l2(const struct table_visit *v, const unsigned char *table,
                   uint64_t offset, uint64_t guest, struct cairn_error *err)
{
  const struct cairn__qcow2_header *q = v->q;
  size_t cluster = (size_t)1 << q->cluster_bits, step = entry_size(q);

  (void)offset;
  (void)err;
  for (size_t i = 0; i < cluster; i += step) {
    uint64_t at = guest + (uint64_t)(i / step) * cluster;

    if (at < q->virtual_size && !cairn__is_zero(table + i, step))
      v->found(v->argument, at, cluster);
  }
  return 0;
}

static int visit_tables(const struct table_visit *v, struct cairn__run *run,
                        struct cairn_error *err)
{
  const struct cairn__held *h = v->h;
  const struct cairn__qcow2_header *q = v->q;
  size_t cluster = (size_t)1 << q->cluster_bits;
  uint64_t slice = (uint64_t)cluster * (cluster / entry_size(q));
  uint64_t count = (q->virtual_size + slice - 1) / slice;
  unsigned char *table = NULL, *l1 = NULL;
  int result = -1;

  if (count == 0)
    return 0;
  if (q->l1_offset & (cluster - 1))
    return fail_image(err, CAIRN_E_SOURCE_CORRUPT, h, 40,
                      "is a corrupt qcow2 image: its L1 table at offset %llu "
                      "is not aligned",
                      (unsigned long long)q->l1_offset);
  l1 = cairn__malloc((size_t)count * 8);
  table = cairn__malloc(cluster);
  if (!l1 || !table) {
    cairn__fail_memory(err);
    goto out;
  }
  if (cairn__held_read(h, l1, (size_t)count * 8, q->l1_offset, "L1 table",
                       err) != 0)
    goto out;
  for (uint64_t i = 0; i < count; i++) {
    uint64_t offset = cairn__get_be64(l1 + i * 8) & OFFSET_MASK;

    /* They lie all over the file: the next ones come while this is read. */
    if (i + TABLES_AHEAD < count)
      (void)posix_fadvise(
          h->fd,
          (off_t)(cairn__get_be64(l1 + (i + TABLES_AHEAD) * 8) & OFFSET_MASK),
          (off_t)cluster, POSIX_FADV_WILLNEED);
    if (offset == 0)
      continue;
    if (run && cairn__run_gate(run, err) != 0)
      goto out;
    if (offset & (cluster - 1)) {
      fail_cluster(h, q->l1_offset + i * 8, i * slice, "L2 table", offset,
                   "is not aligned", err);
      goto out;
    }
    if (cairn__held_read(h, table, cluster, offset, "L2 table", err) != 0 ||
        v->visit(v, table, offset, i * slice, err) != 0)
      goto out;
  }
  result = 0;
out:
  cairn__free(l1);
  cairn__free(table);
  return result;
}

int cairn__qcow2_tables_check(const struct cairn__held *h,
                              const struct cairn__qcow2_header *q,
                              struct cairn__run *run, struct cairn_error *err)
{
  struct table_visit v = {.visit = check_l2, .h = h, .q = q};

  return visit_tables(&v, run, err);
}

int cairn__qcow2_allocated(const struct cairn__held *h,
                           const struct cairn__qcow2_header *q,
                           struct cairn__run *run,
                           void (*found)(void *argument, uint64_t offset,
                                         uint64_t length),
                           void *argument, struct cairn_error *err)
{
  struct table_visit v = {
      .visit = find_l2, .h = h, .q = q, .found = found, .argument = argument};

  return visit_tables(&v, run, err);
}

struct zeros {
  int (*found)(void *argument, uint64_t offset, uint64_t length,
               struct cairn_error *err);
  void *argument;
  uint64_t edge; /* what lies before it was looked at */
};

static int find_zeros(const struct table_visit *v, const unsigned char *table,
                      uint64_t offset, uint64_t guest, struct cairn_error *err)
{
  struct zeros *z = v->argument;
  const struct cairn__qcow2_header *q = v->q;
  size_t cluster = (size_t)1 << q->cluster_bits;

  (void)offset;
  for (size_t i = 0; i < cluster; i += 8) {
    uint64_t entry = cairn__get_be64(table + i);
    uint64_t at = guest + (uint64_t)(i / 8) * cluster;

    if (at >= q->virtual_size)
      break;
    if (!(entry & COMPRESSED) &&
        (!(entry & OFFSET_MASK) || (q->version == 3 && (entry & READS_ZERO))))
      continue;
    if (at > z->edge && z->found(z->argument, z->edge, at - z->edge, err) != 0)
      return -1;
    z->edge = at + cluster;
  }
  return 0;
}

int cairn__qcow2_has_plain_zeros(const struct cairn__qcow2_header *q)
{
  return !q->has_backing && !(q->incompatible & INCOMPATIBLE_EXTENDED_L2);
}

int cairn__qcow2_zeros(const struct cairn__held *h,
                       const struct cairn__qcow2_header *q,
                       struct cairn__run *run,
                       int (*found)(void *argument, uint64_t offset,
                                    uint64_t length, struct cairn_error *err),
                       void *argument, struct cairn_error *err)
{
  struct zeros z = {.found = found, .argument = argument};
  struct table_visit v = {.visit = find_zeros, .h = h, .q = q, .argument = &z};

  if (visit_tables(&v, run, err) != 0)
    return -1;
  return z.edge < q->virtual_size
             ? found(argument, z.edge, q->virtual_size - z.edge, err)
             : 0;
}

/* ---- places -------------------------------------------------------------- */

int cairn__is_inside(const char *path, const char *directory)
{
  size_t n = strlen(directory);

  while (n > 0 && directory[n - 1] == '/')
    n--;
  return strncmp(path, directory, n) == 0 &&
         (path[n] == '/' || path[n] == '\0');
}

int cairn__held_real_path(const struct cairn__held *h, char *path, size_t size)
{
  char name[32];
  struct stat st;
  ssize_t n;

  snprintf(name, sizeof name, "/proc/self/fd/%d", h->fd);
  n = readlink(name, path, size - 1);
  if (n <= 0 || (size_t)n >= size - 1)
    return -1;
  path[n] = '\0';
  if (path[0] != '/' || stat(path, &st) != 0)
    return -1;
  return st.st_dev == h->st.st_dev && st.st_ino == h->st.st_ino ? 0 : -1;
}

struct allowed {
  char **directories; /* real paths */
  size_t count;
};

static void allowed_free(struct allowed *a)
{
  for (size_t i = 0; i < a->count; i++)
    cairn__free(a->directories[i]);
  cairn__free(a->directories);
}

static int allowed_add(struct allowed *a, const char *directory)
{
  a->directories[a->count] = cairn__strdup(directory);
  if (!a->directories[a->count])
    return -1;
  a->count++;
  return 0;
}

static void cut_last(char *path)
{
  char *slash = strrchr(path, '/');

  if (slash == path)
    slash++;
  if (slash)
    *slash = '\0';
}

/* The directory the image was named in, the one it really lies in, and those
 * that the collection declares. */
static int allowed_init(struct allowed *a,
                        const struct cairn__source_options *o,
                        const struct cairn__held *image,
                        struct cairn_error *err)
{
  char real[PATH_MAX], named[PATH_MAX], shown[512];

  a->count = 0;
  a->directories =
      cairn__calloc(o->directory_count + 2, sizeof *a->directories);
  if (!a->directories)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < o->directory_count; i++) {
    if (!realpath(o->directories[i], real))
      return cairn__fail_errno(
          err, errno, o->directories[i], -1,
          "source_directories[%zu], \"%s\", cannot be used", i + 1,
          cairn__printable(o->directories[i], shown, sizeof shown));
    if (allowed_add(a, real) != 0)
      return cairn__fail_memory(err);
  }
  if (cairn__held_real_path(image, real, sizeof real) == 0) {
    cut_last(real);
    if (allowed_add(a, real) != 0)
      return cairn__fail_memory(err);
  }
  if (strlen(o->path) < sizeof named) {
    snprintf(named, sizeof named, "%s", o->path);
    cut_last(named);
    if (realpath(named, real) && allowed_add(a, real) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

static int is_allowed(const struct allowed *a, const char *real)
{
  for (size_t i = 0; i < a->count; i++) {
    if (cairn__is_inside(real, a->directories[i]))
      return 1;
  }
  return 0;
}

/* ---- the chain ----------------------------------------------------------- */

static int fail_outside(const struct cairn__held *by, size_t layer,
                        const char *real, struct cairn_error *err)
{
  char shown[512], place[PATH_MAX], shown_place[512];

  snprintf(place, sizeof place, "%s", real);
  cut_last(place);
  return fail_image(err, CAIRN_E_BACKING_FILE, by, -1,
                    "(layer %zu) names a backing file, \"%s\", outside the "
                    "image's own directory and the declared ones; if it is "
                    "meant to be read, add \"%s\" to source_directories",
                    layer, cairn__printable(real, shown, sizeof shown),
                    cairn__printable(place, shown_place, sizeof shown_place));
}

/* Checks the backing name that layer `layer` records and makes *path of it. */
static int resolve(const struct cairn__held *by, size_t layer,
                   const struct cairn__qcow2_header *q,
                   const struct allowed *allowed, char **path,
                   struct cairn_error *err)
{
  const char *name = q->backing;
  char real[PATH_MAX], shown[512];
  int errnum;

  cairn__printable(name, shown, sizeof shown);
  if (name[strcspn(name, ":/")] == ':')
    return fail_image(err, CAIRN_E_BACKING_FILE, by, -1,
                      "(layer %zu) has a backing file \"%s\" with a json: or "
                      "protocol name; only plain file names are followed. "
                      "Correct it with \"qemu-img rebase -u\"",
                      layer, shown);
  if (q->backing_format[0] == '\0')
    return fail_image(err, CAIRN_E_BACKING_FILE, by, -1,
                      "(layer %zu) does not record the format of its backing "
                      "file \"%s\", and formats are never guessed; record it "
                      "with: qemu-img rebase -u -F qcow2|raw -b NAME IMAGE",
                      layer, shown);
  if (strcmp(q->backing_format, "qcow2") != 0 &&
      strcmp(q->backing_format, "raw") != 0)
    return fail_image(err, CAIRN_E_BACKING_FILE, by, -1,
                      "(layer %zu) has a backing file of format \"%s\"; "
                      "supported are qcow2 and raw",
                      layer,
                      cairn__printable(q->backing_format, shown, sizeof shown));
  if (name[0] == '/') {
    *path = cairn__strdup(name);
  } else {
    const char *slash = strrchr(by->path, '/');
    int n = slash ? (int)(slash - by->path) + 1 : 0;

    *path = cairn__format("%.*s%s", n, by->path, name);
  }
  if (!*path)
    return cairn__fail_memory(err);
  if (!realpath(*path, real)) {
    errnum = errno;
    cairn__printable(*path, shown, sizeof shown);
    cairn__fail_errno(err, errnum, *path, -1,
                      "cannot find \"%s\", the backing file of layer %zu",
                      shown, layer);
    if (err && errnum == ENOENT)
      err->id = CAIRN_E_SOURCE_MISSING;
    return -1;
  }
  if (!is_allowed(allowed, real))
    return fail_outside(by, layer, real, err);
  return 0;
}

static int open_layer(struct cairn__chain *c,
                      const struct cairn__source_options *o, const char *path,
                      struct cairn_error *err)
{
  struct cairn__held *h = &c->layers[c->count].held;

  if (cairn__held_open(o->io, path, o->assume_quiescent, h, err) != 0)
    return -1;
  c->count++;
  for (size_t i = 0; i + 1 < c->count; i++) {
    const struct stat *st = &c->layers[i].held.st;

    if (st->st_dev == h->st.st_dev && st->st_ino == h->st.st_ino)
      return fail_image(err, CAIRN_E_BACKING_FILE, h, -1,
                        "is reached twice, as layer %zu and as layer %zu: "
                        "the backing files form a loop",
                        i + 1, c->count);
  }
  return 0;
}

static int check_raw_layer(const struct cairn__held *h, struct cairn_error *err)
{
  unsigned char magic[4];

  if (h->size < sizeof magic)
    return 0;
  if (cairn__held_read(h, magic, sizeof magic, 0, "beginning", err) != 0)
    return -1;
  if (memcmp(magic, "QFI\xfb", sizeof magic) != 0)
    return 0;
  return fail_image(err, CAIRN_E_SOURCE_FORMAT, h, 0,
                    "is recorded as a raw backing file but has a qcow2 "
                    "header; record its real format with "
                    "\"qemu-img rebase -u -F qcow2\"");
}

static int walk(struct cairn__chain *c, const struct cairn__source_options *o,
                struct cairn__run *run, struct allowed *allowed,
                struct cairn_error *err)
{
  struct cairn__qcow2_header q;
  char real[PATH_MAX];
  char *path = NULL;

  if (open_layer(c, o, o->path, err) != 0 ||
      allowed_init(allowed, o, &c->layers[0].held, err) != 0)
    return -1;
  for (;;) {
    size_t number = c->count;
    struct cairn__chain_layer *layer = &c->layers[number - 1];
    int result;

    layer->is_qcow2 = 1;
    if (cairn__qcow2_header_read(&layer->held, &q, err) != 0 ||
        cairn__qcow2_tables_check(&layer->held, &q, run, err) != 0)
      return -1;
    layer->snapshots = q.snapshots;
    c->snapshots += q.snapshots;
    if (number == 1)
      c->virtual_size = q.virtual_size;
    if (!q.has_backing)
      return 0;
    if (number == CAIRN__SOURCE_CHAIN_MAX)
      return fail_image(err, CAIRN_E_BACKING_FILE, &layer->held, -1,
                        "is layer %d and has a backing file again; chains "
                        "may have %d layers. Shorten it with "
                        "\"qemu-img commit\" or \"qemu-img convert\"",
                        CAIRN__SOURCE_CHAIN_MAX, CAIRN__SOURCE_CHAIN_MAX);
    result = resolve(&layer->held, number, &q, allowed, &path, err);
    if (result == 0)
      result = open_layer(c, o, path, err);
    cairn__free(path);
    path = NULL;
    if (result != 0)
      return -1;
    /* The file that was opened, not the one that had the name before. */
    if (cairn__held_real_path(&c->layers[number].held, real, sizeof real) !=
            0 ||
        !is_allowed(allowed, real))
      return fail_outside(&layer->held, number, c->layers[number].held.path,
                          err);
    if (strcmp(q.backing_format, "raw") == 0)
      return check_raw_layer(&c->layers[number].held, err);
  }
}

int cairn__chain_open(const struct cairn__source_options *o,
                      struct cairn__run *run, struct cairn__chain **out,
                      struct cairn_error *err)
{
  struct cairn__chain *c = cairn__calloc(1, sizeof *c);
  struct allowed allowed = {0};
  int result;

  *out = NULL;
  if (!c)
    return cairn__fail_memory(err);
  result = walk(c, o, run, &allowed, err);
  allowed_free(&allowed);
  if (result != 0) {
    cairn__chain_close(c);
    return -1;
  }
  *out = c;
  return 0;
}

int cairn__chain_check_still(const struct cairn__chain *c,
                             struct cairn_error *err)
{
  for (size_t i = 0; i < c->count; i++) {
    if (cairn__held_check_still(&c->layers[i].held, err) != 0)
      return -1;
  }
  return 0;
}

void cairn__chain_close(struct cairn__chain *c)
{
  if (!c)
    return;
  for (size_t i = 0; i < c->count; i++)
    cairn__held_close(&c->layers[i].held);
  cairn__free(c);
}
