/* bitmap.c: see bitmap.h.
 *
 * What has changed since a base point, for the layers from the image down to
 * the one that was the image then (called active here):
 *
 *   active layer   its bitmap of the base; and, from the place on where its
 *                  guard ends, everything
 *   layers above   whatever they hold, and their bitmap of the base
 *   layers below   nothing: they must be the files that they were
 *
 * The guard's last bit cannot tell a disk that was cut within its 2 MiB, so
 * these count as changed always. As the guard's unit is the largest cluster
 * there is, the cluster that a cut went through is covered as well: QEMU may
 * write zeros into it, or bring to light again what lies behind the cut, and
 * marks neither.
 *
 * In the end the allocation has its say: a block that reads as zeros now and
 * did not at the base has changed, whatever a bitmap says. */
#include "bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "error.h"
#include "manifest.h"
#include "memory.h"
#include "program.h"
#include "qcow2.h"

#define EXTENSION_BITMAPS  0x23852875u
#define EXTENSION_SIZE     24u
#define AUTOCLEAR_BITMAPS  UINT64_C(1)
#define INCOMPATIBLE_DIRTY UINT64_C(1)
#define MAX_BITMAPS        65535u
#define MAX_DIRECTORY      (UINT64_C(1024) * MAX_BITMAPS)
#define MAX_TABLE          (128u << 20)
#define ENTRY_HEAD         24u
#define MAX_NAME           1023u
#define OFFSET_MASK        UINT64_C(0x00fffffffffffe00)
#define TABLE_PIECE        512u /* entries read at once */

#define PREFIX       "cairn-"
#define NONCE_DIGITS 16
#define NAME_MAX_    80

#define GUARD_BITS  21
#define GUARD_UNIT  (UINT64_C(1) << GUARD_BITS)
#define GUARD_IN_FD "guard" /* its name in the image it is merged from */

enum { FLAG_IN_USE = 1, FLAG_AUTO = 2, FLAG_EXTRA_COMPATIBLE = 4 };

static uint64_t divide_up(uint64_t a, uint64_t b)
{
  return a / b + (a % b != 0);
}

/* ---- reasons ------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static int
because(char *reason, size_t size, const char *fmt, ...)
{
  va_list args;

  va_start(args, fmt);
  vsnprintf(reason, size, fmt, args);
  va_end(args);
  cairn__utf8_clean(reason); /* it may have been cut */
  return 1;
}

/* An error of the bitmaps alone is a reason not to use them. */
static int reason_of(const struct cairn_error *cause, char *reason, size_t size,
                     struct cairn_error *err)
{
  if (cause->id == CAIRN_E_SOURCE_CORRUPT)
    return because(reason, size, "%s", cause->message);
  if (err)
    *err = *cause;
  return -1;
}

/* ---- names --------------------------------------------------------------- */

static void name_of(const char *point, char name[NAME_MAX_])
{
  snprintf(name, NAME_MAX_, PREFIX "%.36s", point);
}

int cairn__bitmap_point(const char *name, char point[37], int *is_guard)
{
  const char *rest = name + strlen(PREFIX);

  if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || strlen(rest) < 36)
    return 0;
  memcpy(point, rest, 36);
  point[36] = '\0';
  if (!cairn__guid_is_canonical(point))
    return 0;
  rest += 36;
  *is_guard = *rest == '-';
  if (!*is_guard)
    return *rest == '\0';
  return strspn(rest + 1, "0123456789abcdef") == NONCE_DIGITS &&
         rest[1 + NONCE_DIGITS] == '\0';
}

size_t cairn__bitmaps_count(const struct cairn__bitmaps *all, int guards)
{
  char point[37];
  size_t n = 0;
  int is_guard;

  for (size_t i = 0; i < all->count; i++)
    n += cairn__bitmap_point(all->list[i].name, point, &is_guard) &&
         is_guard == guards;
  return n;
}

/* ---- the directory of bitmaps -------------------------------------------- */

__attribute__((format(printf, 4, 5))) static void
say_corrupt(struct cairn_error *err, const struct cairn__held *h,
            uint64_t offset, const char *fmt, ...)
{
  char text[512], shown[512];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cairn__fail(err, CAIRN_E_SOURCE_CORRUPT, "\"%s\" has corrupt bitmaps: %s",
              cairn__printable(h->path, shown, sizeof shown), text);
  cairn__error_set_path(err, h->path, (int64_t)offset);
}

#define corrupt(...) (say_corrupt(__VA_ARGS__), -1)

/* One entry; *used: its bytes in the directory. */
static int parse_entry(const struct cairn__held *h, const unsigned char *p,
                       uint64_t left, uint64_t at, struct cairn__bitmap *b,
                       uint64_t *used, struct cairn_error *err)
{
  uint32_t flags, extra;
  unsigned type, name;
  uint64_t length;

  if (left < ENTRY_HEAD)
    return corrupt(err, h, at, "their directory ends within an entry");
  b->table_offset = cairn__get_be64(p);
  b->table_size = cairn__get_be32(p + 8);
  flags = cairn__get_be32(p + 12);
  type = p[16];
  b->granularity_bits = p[17];
  name = (unsigned)p[18] << 8 | p[19];
  extra = cairn__get_be32(p + 20);
  length = (uint64_t)ENTRY_HEAD + extra + name;
  if (length > left || name == 0 || name > MAX_NAME)
    return corrupt(err, h, at,
                   "an entry of %" PRIu64 " bytes with a name of %u, with "
                   "%" PRIu64 " bytes of their directory left",
                   length, name, left);
  if (b->granularity_bits < 9 || b->granularity_bits > 31)
    return corrupt(err, h, at + 17, "granularity bits %u, valid are 9 to 31",
                   b->granularity_bits);
  if ((uint64_t)b->table_size * 8 > MAX_TABLE)
    return corrupt(err, h, at + 8, "a table of %u entries", b->table_size);
  b->is_in_use = (flags & FLAG_IN_USE) != 0;
  b->is_auto = (flags & FLAG_AUTO) != 0;
  b->is_known =
      type == 1 && (extra == 0 || flags & FLAG_EXTRA_COMPATIBLE) &&
      (flags & ~(uint32_t)(FLAG_IN_USE | FLAG_AUTO | FLAG_EXTRA_COMPATIBLE)) ==
          0;
  if (memchr(p + ENTRY_HEAD + extra, '\0', name))
    return corrupt(err, h, at, "a NUL in a name");
  b->name = cairn__strndup((const char *)p + ENTRY_HEAD + extra, name);
  if (!b->name)
    return cairn__fail_memory(err);
  length = (length + 7) & ~UINT64_C(7);
  *used = length < left ? length : left;
  return 0;
}

static int parse_directory(const struct cairn__held *h,
                           const unsigned char *directory, uint64_t size,
                           uint64_t offset, uint32_t count,
                           struct cairn__bitmaps *out, struct cairn_error *err)
{
  uint64_t at = 0, used = 0;

  out->list = cairn__calloc(count, sizeof *out->list);
  if (!out->list)
    return cairn__fail_memory(err);
  for (; out->count < count; at += used) {
    if (parse_entry(h, directory + at, size - at, offset + at,
                    &out->list[out->count], &used, err) != 0)
      return -1;
    out->count++;
  }
  if (at != size)
    return corrupt(err, h, offset + at,
                   "their directory has %" PRIu64
                   " bytes, its %u entries %" PRIu64,
                   size, count, at);
  return 0;
}

int cairn__bitmaps_read(const struct cairn__held *h,
                        const struct cairn__qcow2_header *q,
                        struct cairn__bitmaps *out, struct cairn_error *err)
{
  unsigned char raw[EXTENSION_SIZE], *directory;
  uint64_t size, offset;
  uint32_t count;
  int result;

  memset(out, 0, sizeof *out);
  out->is_current = q->version >= 3 && (q->autoclear & AUTOCLEAR_BITMAPS);
  if (q->bitmaps_length == 0)
    return 0;
  if (q->bitmaps_length != EXTENSION_SIZE)
    return corrupt(err, h, q->bitmaps_offset,
                   "their header extension has %u bytes", q->bitmaps_length);
  if (cairn__held_read(h, raw, sizeof raw, q->bitmaps_offset,
                       "bitmaps extension", err) != 0)
    return -1;
  count = cairn__get_be32(raw);
  size = cairn__get_be64(raw + 8);
  offset = cairn__get_be64(raw + 16);
  if (count == 0 || count > MAX_BITMAPS || size > MAX_DIRECTORY ||
      offset & ((UINT64_C(1) << q->cluster_bits) - 1) || offset > h->size ||
      size > h->size - offset)
    return corrupt(err, h, q->bitmaps_offset,
                   "%u of them in a directory of %" PRIu64
                   " bytes at offset %" PRIu64,
                   count, size, offset);
  directory = cairn__malloc((size_t)size + 1);
  if (!directory)
    return cairn__fail_memory(err);
  result = cairn__held_read(h, directory, (size_t)size, offset,
                            "directory of bitmaps", err);
  if (result == 0)
    result = parse_directory(h, directory, size, offset, count, out, err);
  cairn__free(directory);
  if (result != 0)
    cairn__bitmaps_free(out);
  return result;
}

void cairn__bitmaps_free(struct cairn__bitmaps *b)
{
  for (size_t i = 0; i < b->count; i++)
    cairn__free(b->list[i].name);
  cairn__free(b->list);
  memset(b, 0, sizeof *b);
}

int cairn__bitmaps_list(const struct cairn__source_options *o,
                        struct cairn__bitmaps *out, struct cairn_error *err)
{
  struct cairn__qcow2_header q;
  struct cairn__held h;
  int result;

  memset(out, 0, sizeof *out);
  if (strcmp(o->format, "qcow2") != 0)
    return 0;
  if (cairn__held_open(o->io, o->path, o->assume_quiescent, &h, err) != 0)
    return -1;
  result = cairn__qcow2_header_read(&h, &q, err);
  if (result == 0)
    result = cairn__bitmaps_read(&h, &q, out, err);
  cairn__held_close(&h);
  return result;
}

/* ---- the bits of one ----------------------------------------------------- */

/* One entry of a bitmap's table: the bits first .. first + count - 1. */
struct piece {
  uint64_t first, count;
  const unsigned char *bits; /* NULL: all are alike */
  int is_set;                /* then */
};

struct reading {
  const struct cairn__held *h;
  const struct cairn__qcow2_header *q;
  const struct cairn__bitmap *b;
  struct cairn__run *run; /* or NULL */
  /* 1 = that is enough */
  int (*each)(void *argument, const struct piece *p);
  void *argument;
};

static int read_piece(const struct reading *r, uint64_t entry, uint64_t at,
                      unsigned char *cluster, struct piece *p,
                      struct cairn_error *err)
{
  size_t size = (size_t)1 << r->q->cluster_bits;
  uint64_t offset = entry & OFFSET_MASK;

  p->bits = NULL;
  p->is_set = (int)(entry & 1);
  if (entry & ~(OFFSET_MASK | 1) || offset & (size - 1) ||
      (offset != 0 && entry & 1))
    return corrupt(err, r->h, at, "a table entry 0x%016" PRIx64, entry);
  if (offset == 0)
    return 0;
  p->bits = cluster;
  return cairn__held_read(r->h, cluster, (size_t)(p->count + 7) / 8, offset,
                          "bitmap", err);
}

static int read_pieces(const struct reading *r, unsigned char *table,
                       unsigned char *cluster, struct cairn_error *err)
{
  const struct cairn__bitmap *b = r->b;
  uint64_t bits =
      divide_up(r->q->virtual_size, UINT64_C(1) << b->granularity_bits);
  uint64_t in_one = UINT64_C(8) << r->q->cluster_bits;
  struct piece p = {0};
  int result;

  if (divide_up(bits, in_one) != b->table_size)
    return corrupt(err, r->h, b->table_offset,
                   "a table of %u entries for %" PRIu64 " bits", b->table_size,
                   bits);
  for (uint32_t i = 0; i < b->table_size; i++) {
    uint64_t at = b->table_offset + (uint64_t)i * 8;
    uint32_t in_piece = i % TABLE_PIECE, left = b->table_size - i;

    if (r->run && in_piece == 0 && cairn__run_gate(r->run, err) != 0)
      return -1;
    if (in_piece == 0 &&
        cairn__held_read(r->h, table,
                         (size_t)(left < TABLE_PIECE ? left : TABLE_PIECE) * 8,
                         at, "bitmap table", err) != 0)
      return -1;
    p.first = i * in_one;
    p.count = bits - p.first < in_one ? bits - p.first : in_one;
    if (read_piece(r, cairn__get_be64(table + (size_t)in_piece * 8), at,
                   cluster, &p, err) != 0)
      return -1;
    result = r->each(r->argument, &p);
    if (result != 0)
      return 0;
  }
  return 0;
}

static int read_bits(const struct reading *r, struct cairn_error *err)
{
  unsigned char *table = cairn__malloc((size_t)TABLE_PIECE * 8);
  unsigned char *cluster = cairn__malloc((size_t)1 << r->q->cluster_bits);
  int result;

  if (table && cluster)
    result = read_pieces(r, table, cluster, err);
  else
    result = cairn__fail_memory(err);
  cairn__free(table);
  cairn__free(cluster);
  return result;
}

static int bit_at(const struct piece *p, uint64_t i)
{
  return p->bits ? p->bits[i / 8] >> i % 8 & 1 : p->is_set;
}

/* The number of bits from i on that are as that one. */
static uint64_t alike_from(const struct piece *p, uint64_t i)
{
  int is_set = bit_at(p, i);
  unsigned char whole = is_set ? 0xff : 0;
  uint64_t end = i + 1;

  if (!p->bits)
    return p->count - i;
  while (end < p->count && bit_at(p, end) == is_set) {
    end++;
    while (end % 8 == 0 && end + 8 <= p->count && p->bits[end / 8] == whole)
      end += 8;
  }
  return end - i;
}

struct marking {
  struct cairn__changes *changes;
  unsigned bits;
};

static int mark_piece(void *argument, const struct piece *p)
{
  const struct marking *m = argument;
  uint64_t n;

  for (uint64_t i = 0; i < p->count; i += n) {
    n = alike_from(p, i);
    if (bit_at(p, i))
      cairn__changes_mark(m->changes, (p->first + i) << m->bits, n << m->bits);
  }
  return 0;
}

static int is_any_set(void *argument, const struct piece *p)
{
  int *is_set = argument;

  if (p->count > 0 && (bit_at(p, 0) || alike_from(p, 0) < p->count))
    *is_set = 1;
  return *is_set;
}

static int count_leading(void *argument, const struct piece *p)
{
  uint64_t *count = argument, n = 0;

  if (p->count > 0 && bit_at(p, 0))
    n = alike_from(p, 0);
  *count += n;
  return n < p->count;
}

/* ---- looking for one ----------------------------------------------------- */

static const struct cairn__bitmap *find(const struct cairn__bitmaps *all,
                                        const char *name)
{
  const struct cairn__bitmap *found = NULL;

  for (size_t i = 0; i < all->count; i++) {
    if (strcmp(all->list[i].name, name) == 0) {
      if (found) /* which of the two? */
        return NULL;
      found = &all->list[i];
    }
  }
  return found;
}

/* 0 and *found, when the bitmap counts; else 1 and why not. */
static int find_good(const struct cairn__held *h,
                     const struct cairn__bitmaps *all, const char *name,
                     int is_guard, const struct cairn__bitmap **found,
                     char *reason, size_t size)
{
  const struct cairn__bitmap *b = find(all, name);
  const char *what = NULL;
  char shown[200];

  *found = b;
  if (!b)
    what = "is not in";
  else if (!all->is_current)
    what = "does not count: a program that knows no bitmaps has written";
  else if (b->is_in_use)
    what = "is marked \"in-use\", so its changes were not saved when the last "
           "user was killed, in";
  else if (!b->is_known)
    what = "is of a kind that is not known, in";
  else if (!is_guard && !b->is_auto)
    what = "is disabled in";
  else if (is_guard && b->is_auto)
    what = "must be disabled and is not, in";
  if (!what)
    return 0;
  (void)because(reason, size, "the bitmap \"%s\" %s \"%s\"", name, what,
                cairn__printable(h->path, shown, sizeof shown));
  return 1;
}

/* The number of bits that the guard still has, from the beginning. */
static int read_guard(const struct cairn__held *h,
                      const struct cairn__qcow2_header *q,
                      const struct cairn__bitmap *b, uint64_t *bits,
                      struct cairn_error *err)
{
  struct reading r = {
      .h = h, .q = q, .b = b, .each = count_leading, .argument = bits};

  *bits = 0;
  return read_bits(&r, err);
}

/* Whether the guard has lost nothing of the disk as it is now: 1, 0, or -1 when
 * memory is lacking. What cannot be read has. */
static int is_whole(const struct cairn__held *h,
                    const struct cairn__qcow2_header *q,
                    const struct cairn__bitmaps *all,
                    const struct cairn__bitmap *guard, struct cairn_error *err)
{
  char why[CAIRN__BITMAP_REASON_MAX];
  const struct cairn__bitmap *found;
  struct cairn_error cause;
  uint64_t bits;

  if (find_good(h, all, guard->name, 1, &found, why, sizeof why) != 0 ||
      guard->granularity_bits != GUARD_BITS)
    return 0;
  cairn__error_clear(&cause);
  if (read_guard(h, q, guard, &bits, &cause) == 0)
    return bits == divide_up(q->virtual_size, GUARD_UNIT);
  return cause.id == CAIRN_E_NO_MEMORY ? cairn__fail_memory(err) : 0;
}

/* A guard that a new point can use: 1, 0 there is none, -1 memory. */
static int find_guard(const struct cairn__held *h,
                      const struct cairn__qcow2_header *q,
                      const struct cairn__bitmaps *all,
                      const struct cairn__bitmap **out, struct cairn_error *err)
{
  char point[37];
  int is_guard, result = 0;

  *out = NULL;
  for (size_t i = 0; i < all->count && result == 0; i++) {
    if (!cairn__bitmap_point(all->list[i].name, point, &is_guard) || !is_guard)
      continue;
    result = is_whole(h, q, all, &all->list[i], err);
    if (result > 0)
      *out = &all->list[i];
  }
  return result;
}

/* ---- changing an image --------------------------------------------------- */

/* An image under our locks, and what is in it now. */
struct subject {
  struct cairn__held held;
  struct cairn__qcow2_header header;
  struct cairn__bitmaps bitmaps;
  struct cairn__run *run;
};

static void subject_close(struct subject *s)
{
  cairn__bitmaps_free(&s->bitmaps);
  cairn__held_close(&s->held);
}

/* Reads it anew. */
static int subject_read(struct subject *s, struct cairn_error *err)
{
  cairn__bitmaps_free(&s->bitmaps);
  if (cairn__held_refresh(&s->held, err) != 0 ||
      cairn__qcow2_header_read(&s->held, &s->header, err) != 0)
    return -1;
  return cairn__bitmaps_read(&s->held, &s->header, &s->bitmaps, err);
}

static int subject_open(struct subject *s,
                        const struct cairn__source_options *o,
                        struct cairn__run *run, struct cairn_error *err)
{
  memset(s, 0, sizeof *s);
  s->run = run;
  if (cairn__held_open(o->io, o->path, o->assume_quiescent, &s->held, err) != 0)
    return -1;
  if (subject_read(s, err) == 0)
    return 0;
  subject_close(s);
  return -1;
}

/* Runs "qemu-img bitmap OPTIONS IMAGE NAME" on the open file, with no look at
 * its backing file and no locks beside ours. */
static int run_on(struct subject *s, const char *const *options,
                  size_t option_count, const char *name, int other_fd,
                  char *said, size_t size, struct cairn_error *err)
{
  const char *argv[24] = {"qemu-img", "bitmap"};
  int files[] = {s->held.fd, other_fd};
  size_t argc = 2;
  char image[256];

  snprintf(image, sizeof image,
           "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"%s\","
           "\"filename\":\"/proc/self/fd/%d\",\"locking\":\"off\"},"
           "\"backing\":null}",
           s->held.is_block ? "host_device" : "file", CAIRN__PROGRAM_FILE);
  for (size_t i = 0; i < option_count; i++)
    argv[argc++] = options[i];
  argv[argc++] = "-f";
  argv[argc++] = "qcow2";
  argv[argc++] = image;
  argv[argc++] = name;
  argv[argc] = NULL;
  if (s->held.io->point(s->held.io, "bitmap") != 0) {
    char shown[512];

    return cairn__fail_errno(
        err, errno, s->held.path, -1, "cannot change the bitmaps of \"%s\"",
        cairn__printable(s->held.path, shown, sizeof shown));
  }
  if (cairn__program_run("qemu-utils", argv, files, other_fd >= 0 ? 2 : 1,
                         s->run, said, size, err) != 0)
    return -1;
  return subject_read(s, err);
}

static int remove_one(struct subject *s, const char *name,
                      struct cairn_error *err)
{
  static const char *const options[] = {"--remove"};
  char said[512], shown[512];

  if (run_on(s, options, 1, name, -1, said, sizeof said, err) != 0)
    return -1;
  if (!find(&s->bitmaps, name))
    return 0;
  cairn__fail(err, CAIRN_E_HELPER_FAILED,
              "qemu-img could not remove the bitmap \"%s\" from \"%s\"%s%s",
              name, cairn__printable(s->held.path, shown, sizeof shown),
              said[0] ? ": " : "", said);
  cairn__error_set_path(err, s->held.path, -1);
  return -1;
}

static int has_bitmap_of(const struct subject *s, const char *point)
{
  char name[NAME_MAX_];

  name_of(point, name);
  return find(&s->bitmaps, name) != NULL;
}

/* Whether one of ours goes with the bitmap of `point`. Which points use a guard
 * only their manifests know: so it goes with the last point. One that was cut
 * goes before, when its own point has, if there are more of them than points;
 * who used it has the disk compared, once. */
static int goes_with(const struct subject *s, const struct cairn__bitmap *b,
                     const char *point)
{
  char of[37];
  int is_guard;

  if (!cairn__bitmap_point(b->name, of, &is_guard))
    return 0;
  if (!is_guard)
    return strcmp(of, point) == 0;
  if (cairn__bitmaps_count(&s->bitmaps, 0) == (size_t)has_bitmap_of(s, point))
    return 1;
  return cairn__bitmaps_count(&s->bitmaps, 1) > CAIRN__BITMAP_POINTS_MAX &&
         (strcmp(of, point) == 0 || !has_bitmap_of(s, of)) &&
         is_whole(&s->held, &s->header, &s->bitmaps, b, NULL) == 0;
}

/* The name of the next one that goes: with the point, or (NULL) because a
 * killed QEMU has made it useless; 0 when there is none. */
static int pick(const struct subject *s, const char *point,
                char name[NAME_MAX_])
{
  for (size_t i = 0; i < s->bitmaps.count; i++) {
    const struct cairn__bitmap *b = &s->bitmaps.list[i];
    char of[37];
    int is_guard;

    if (point ? goes_with(s, b, point)
              : b->is_in_use && cairn__bitmap_point(b->name, of, &is_guard)) {
      snprintf(name, NAME_MAX_, "%s", b->name);
      return 1;
    }
  }
  return 0;
}

static int remove_ours(struct subject *s, const char *point,
                       struct cairn_error *err)
{
  char name[NAME_MAX_];

  while (pick(s, point, name)) {
    if (remove_one(s, name, err) != 0)
      return -1;
  }
  return 0;
}

int cairn__bitmap_remove(const struct cairn__source_options *o,
                         const char *point, struct cairn__run *run,
                         struct cairn_error *err)
{
  char name[NAME_MAX_], shown[512];
  struct subject s;
  int result = 0;

  if (strcmp(o->format, "qcow2") != 0)
    return 0;
  if (subject_open(&s, o, run, err) != 0)
    return -1;
  if (pick(&s, point, name)) {
    if (!s.held.is_locked)
      result = cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                           "\"%s\" cannot be locked, so its bitmaps are not "
                           "touched",
                           cairn__printable(o->path, shown, sizeof shown));
    else
      result = cairn__held_claim(&s.held, err);
    if (result == 0)
      result = remove_ours(&s, point, err);
  }
  subject_close(&s);
  return result;
}

/* ---- the guard's bits ---------------------------------------------------- */

/* QEMU sets bits of a bitmap when it merges another one into it. That other
 * one is in an image that holds nothing else, in memory: clusters of 2 MiB,
 * the header in the first, then L1, refcount table, directory and table. */
static int make_guard_image(uint64_t virtual_size, int *out,
                            struct cairn_error *err)
{
  const uint64_t cluster = UINT64_C(1) << GUARD_BITS;
  uint64_t l1 = divide_up(virtual_size, cluster * (cluster / 8));
  uint64_t table = divide_up(divide_up(virtual_size, GUARD_UNIT), cluster * 8);
  unsigned char header[CAIRN__QCOW2_AT_COMPRESSION + 8 + EXTENSION_SIZE + 8] = {
      0};
  static const char name[8] = GUARD_IN_FD;
  unsigned char entry[ENTRY_HEAD + sizeof name] = {0}, all_set[8] = {0};
  unsigned char *ext = header + CAIRN__QCOW2_AT_COMPRESSION;
  int fd = memfd_create("cairn-guard", MFD_CLOEXEC), result = 0;

  *out = -1;
  if (fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1,
                             "cannot make a file in "
                             "memory");
  cairn__put_be32(header, CAIRN__QCOW2_MAGIC);
  cairn__put_be32(header + CAIRN__QCOW2_AT_VERSION, 3);
  cairn__put_be32(header + CAIRN__QCOW2_AT_CLUSTER_BITS, GUARD_BITS);
  cairn__put_be64(header + CAIRN__QCOW2_AT_SIZE, virtual_size);
  cairn__put_be32(header + CAIRN__QCOW2_AT_L1_SIZE, (uint32_t)(l1 ? l1 : 1));
  cairn__put_be64(header + CAIRN__QCOW2_AT_L1_OFFSET, cluster);
  cairn__put_be64(header + CAIRN__QCOW2_AT_REFCOUNT_OFFSET, 2 * cluster);
  cairn__put_be32(header + CAIRN__QCOW2_AT_REFCOUNT_CLUSTERS, 1);
  cairn__put_be64(header + CAIRN__QCOW2_AT_AUTOCLEAR, AUTOCLEAR_BITMAPS);
  cairn__put_be32(header + CAIRN__QCOW2_AT_REFCOUNT_ORDER,
                  CAIRN__QCOW2_REFCOUNT_ORDER);
  cairn__put_be32(header + CAIRN__QCOW2_AT_HEADER_LENGTH,
                  CAIRN__QCOW2_AT_COMPRESSION);
  cairn__put_be32(ext, EXTENSION_BITMAPS);
  cairn__put_be32(ext + 4, EXTENSION_SIZE);
  cairn__put_be32(ext + 8, 1);
  cairn__put_be64(ext + 16, sizeof entry);
  cairn__put_be64(ext + 24, 3 * cluster);
  cairn__put_be64(entry, 4 * cluster);
  cairn__put_be32(entry + 8, (uint32_t)table);
  cairn__put_be32(entry + 12, FLAG_AUTO);
  entry[16] = 1;
  entry[17] = GUARD_BITS;
  entry[19] = (unsigned char)strlen(name);
  memcpy(entry + ENTRY_HEAD, name, sizeof name);
  cairn__put_be64(all_set, 1);
  if (ftruncate(fd, (off_t)(5 * cluster)) != 0 ||
      cairn__io_write_full(&cairn__system_io, fd, header, sizeof header, 0) ||
      cairn__io_write_full(&cairn__system_io, fd, entry, sizeof entry,
                           (off_t)(3 * cluster)))
    result = -1;
  for (uint64_t i = 0; i < table && result == 0; i++)
    result =
        cairn__io_write_full(&cairn__system_io, fd, all_set, sizeof all_set,
                             (off_t)(4 * cluster + i * sizeof all_set));
  if (result != 0) {
    cairn__fail_errno(err, errno, NULL, -1, "cannot write a file in memory");
    close(fd);
    return -1;
  }
  *out = fd;
  return 0;
}

/* ---- adding -------------------------------------------------------------- */

/* 0 when bitmaps can be added at all, else 1 and why not; -1. */
static int check_suitable(struct subject *s, char *reason, size_t size,
                          struct cairn_error *err)
{
  const struct cairn_io *io = s->held.io;
  char name[64], text[128];
  int fd;

  if (s->header.version < 3)
    return because(reason, size,
                   "the image is qcow2 of version 2, which has no bitmaps; "
                   "\"qemu-img amend -o compat=1.1\" makes it version 3");
  if (s->header.snapshots > 0)
    return because(reason, size,
                   "the image has internal snapshots (%u), which bitmaps would "
                   "keep from being applied",
                   s->header.snapshots);
  if (s->header.incompatible & INCOMPATIBLE_DIRTY)
    return because(reason, size,
                   "the image was not closed by its last user; \"qemu-img "
                   "check -r all\" repairs it");
  if (!s->held.is_locked)
    return because(reason, size,
                   "the image lies on a file system without locks, where "
                   "nobody can be kept away while it is changed");
  snprintf(name, sizeof name, "/proc/self/fd/%d", s->held.fd);
  fd = io->openat(io, AT_FDCWD, name, O_RDWR | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0)
    return because(reason, size, "the image cannot be written: %s",
                   strerror_r(errno, text, sizeof text));
  (void)io->close(io, fd);
  return cairn__held_claim(&s->held, err);
}

/* 1 when the point has its bitmap, fit for use, and there is a guard; 0, -1. */
static int is_complete(struct subject *s, const char *point,
                       struct cairn_error *err)
{
  const struct cairn__bitmap *b, *guard;
  char name[NAME_MAX_], why[CAIRN__BITMAP_REASON_MAX];

  name_of(point, name);
  if (find_good(&s->held, &s->bitmaps, name, 0, &b, why, sizeof why) != 0)
    return 0;
  return find_guard(&s->held, &s->header, &s->bitmaps, &guard, err);
}

static int add_guard(struct subject *s, const char *point, char *said,
                     size_t size, struct cairn_error *err)
{
  char source[192], name[NAME_MAX_];
  const char *const options[] = {"--add",     "-g",        "2097152", "--merge",
                                 GUARD_IN_FD, "--disable", "-b",      source,
                                 "-F",        "qcow2"};
  uint64_t nonce;
  int fd, result;

  if (getrandom(&nonce, sizeof nonce, 0) != (ssize_t)sizeof nonce)
    return cairn__fail_errno(err, errno, NULL, -1, "getrandom");
  snprintf(name, sizeof name, PREFIX "%.36s-%016" PRIx64, point, nonce);
  if (make_guard_image(s->header.virtual_size, &fd, err) != 0)
    return -1;
  snprintf(source, sizeof source,
           "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
           "\"filename\":\"/proc/self/fd/%d\"},\"backing\":null}",
           CAIRN__PROGRAM_FILE + 1);
  result = run_on(s, options, sizeof options / sizeof options[0], name, fd,
                  said, size, err);
  close(fd);
  return result;
}

/* And a guard, where none is whole. */
static int add_bitmap(struct subject *s, const char *point, char *reason,
                      size_t size, struct cairn_error *err)
{
  static const char *const options[] = {"--add", "-g", "65536"};
  char said[512] = "", more[512], name[NAME_MAX_];
  const struct cairn__bitmap *guard;
  int result = find_guard(&s->held, &s->header, &s->bitmaps, &guard, err);

  name_of(point, name);
  if (result < 0 ||
      (result == 0 && add_guard(s, point, said, sizeof said, err) != 0) ||
      run_on(s, options, sizeof options / sizeof options[0], name, -1, more,
             sizeof more, err) != 0)
    return -1;
  result = is_complete(s, point, err);
  if (result != 0)
    return result > 0 ? 0 : -1;
  /* As far as it goes: what remains is found by its name later. */
  (void)remove_ours(s, point, NULL);
  return because(reason, size, "qemu-img could not add a bitmap: %s",
                 said[0]   ? said
                 : more[0] ? more
                           : "it gave no reason");
}

static int add_to(struct subject *s, const char *point, char *reason,
                  size_t size, struct cairn_error *err)
{
  int result = check_suitable(s, reason, size, err);
  size_t points;

  if (result != 0)
    return result;
  /* Useless ones have QEMU refuse to resize the image, too. */
  if (remove_ours(s, NULL, err) != 0)
    return -1;
  result = is_complete(s, point, err);
  if (result != 0)
    return result > 0 ? 0 : -1;
  if (remove_ours(s, point, err) != 0)
    return -1;
  points = cairn__bitmaps_count(&s->bitmaps, 0);
  if (points > CAIRN__BITMAP_POINTS_MAX)
    return because(
        reason, size,
        "the image has the bitmaps of %zu points already, as many as "
        "are kept at most",
        points);
  return add_bitmap(s, point, reason, size, err);
}

int cairn__bitmap_add(const struct cairn__source_options *o, const char *point,
                      struct cairn__run *run, char *reason, size_t size,
                      struct cairn_error *err)
{
  struct cairn_error cause = {.offset = -1};
  struct subject s;
  int result;

  reason[0] = '\0';
  if (strcmp(o->format, "qcow2") != 0)
    return because(reason, size,
                   "bitmaps are a matter of qcow2 images, and "
                   "this one is %s",
                   o->format);
  if (subject_open(&s, o, run, &cause) != 0)
    return reason_of(&cause, reason, size, err);
  result = add_to(&s, point, reason, size, &cause);
  subject_close(&s);
  return result < 0 ? reason_of(&cause, reason, size, err) : result;
}

/* ---- one layer of a source ----------------------------------------------- */

struct layer {
  const struct cairn__held *held;
  struct cairn__qcow2_header header;
  struct cairn__bitmaps bitmaps;
};

static int layer_open(const struct cairn__chain *c, size_t i, struct layer *l,
                      struct cairn_error *err)
{
  memset(l, 0, sizeof *l);
  l->held = &c->layers[i].held;
  if (!c->layers[i].is_qcow2)
    return 0;
  if (cairn__qcow2_header_read(l->held, &l->header, err) != 0)
    return -1;
  return cairn__bitmaps_read(l->held, &l->header, &l->bitmaps, err);
}

static int look_clean(const struct cairn__chain *c, const char *point,
                      char *reason, size_t size, struct cairn_error *err)
{
  char name[NAME_MAX_];
  const struct cairn__bitmap *b = NULL;
  struct layer l;
  int is_set = 0, result;

  if (layer_open(c, 0, &l, err) != 0)
    return -1;
  name_of(point, name);
  result = find_good(l.held, &l.bitmaps, name, 0, &b, reason, size);
  if (result == 0) {
    struct reading r = {.h = l.held,
                        .q = &l.header,
                        .b = b,
                        .each = is_any_set,
                        .argument = &is_set};

    result = read_bits(&r, err);
  }
  if (result == 0 && is_set)
    result = because(reason, size,
                     "\"%.200s\" was written while the point was taken",
                     l.held->path);
  cairn__bitmaps_free(&l.bitmaps);
  return result;
}

static int fail_no_chain(const struct cairn__source *s, struct cairn_error *err)
{
  return cairn__fail(err, CAIRN_E_INTERNAL,
                     "\"%s\" is no qcow2 source and has no bitmaps", s->path);
}

int cairn__source_bitmap_is_clean(struct cairn__source *s, const char *point,
                                  char *reason, size_t size,
                                  struct cairn_error *err)
{
  const struct cairn__chain *c = cairn__source_chain(s);
  struct cairn_error cause = {.offset = -1};
  int result;

  reason[0] = '\0';
  if (!c)
    return fail_no_chain(s, err);
  result = look_clean(c, point, reason, size, &cause);
  return result < 0 ? reason_of(&cause, reason, size, err) : result;
}

/* ---- the state of a point ------------------------------------------------ */

#define STATE_VERSION 1

/* A name as JSON can hold it; "" becomes null. NULL when out of memory. */
static json_t *text_of(const char *name)
{
  char shown[2048];

  if (!name[0])
    return json_null();
  cairn__printable(name, shown, sizeof shown);
  cairn__utf8_clean(shown);
  return json_string(shown);
}

static json_int_t nanoseconds(const struct timespec *t)
{
  return (json_int_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

/* What identifies a layer. Its own file is known by the guard as long as it is
 * written, so it is only said what it is based on. */
static json_t *describe_layer(const struct layer *l, int is_qcow2,
                              int is_active)
{
  const struct stat *st = &l->held->st;

  if (is_active)
    return json_pack("{so, so, so}", "path", text_of(l->held->path), "backing",
                     text_of(l->header.backing), "backing_format",
                     text_of(l->header.backing_format));
  return json_pack(
      "{so, so, so, ss, sI, sI, sI, sI}", "path", text_of(l->held->path),
      "backing", text_of(l->header.backing), "backing_format",
      text_of(l->header.backing_format), "format", is_qcow2 ? "qcow2" : "raw",
      "inode", (json_int_t)st->st_ino, "size", (json_int_t)l->held->size,
      "mtime_ns", nanoseconds(&st->st_mtim), "ctime_ns",
      nanoseconds(&st->st_ctim));
}

static int describe_layers(const struct cairn__chain *c, size_t from,
                           json_t *layers, struct cairn_error *err)
{
  for (size_t i = from; i < c->count; i++) {
    struct layer l;
    json_t *one;

    if (layer_open(c, i, &l, err) != 0)
      return -1;
    one = describe_layer(&l, c->layers[i].is_qcow2, i == from);
    cairn__bitmaps_free(&l.bitmaps);
    if (!one || json_array_append_new(layers, one) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

int cairn__bitmap_state(const struct cairn__source *s, json_t **out,
                        struct cairn_error *err)
{
  const struct cairn__chain *c = cairn__source_chain(s);
  const struct cairn__bitmap *guard;
  json_t *layers = json_array();
  struct layer l;
  int result;

  *out = NULL;
  if (!c) {
    json_decref(layers);
    return fail_no_chain(s, err);
  }
  if (!layers)
    return cairn__fail_memory(err);
  if (layer_open(c, 0, &l, err) != 0) {
    json_decref(layers);
    return -1;
  }
  result = find_guard(l.held, &l.header, &l.bitmaps, &guard, err);
  if (result >= 0)
    result = guard ? describe_layers(c, 0, layers, err) : 1;
  if (result == 0)
    *out = json_pack("{si, ss, sI, sO}", "version", STATE_VERSION, "guard",
                     guard->name, "virtual_size",
                     (json_int_t)l.header.virtual_size, "layers", layers);
  if (result == 0 && !*out)
    result = cairn__fail_memory(err);
  json_decref(layers);
  cairn__bitmaps_free(&l.bitmaps);
  return result;
}

/* Compares a layer with its description: the name of the first member that
 * differs, or NULL. */
static const char *find_difference(const json_t *was, const json_t *now)
{
  static const struct {
    const char *key, *meaning;
  } members[] = {{"format", "format"},
                 {"inode", "file"},
                 {"size", "size"},
                 {"mtime_ns", "modification time"},
                 {"ctime_ns", "change time"},
                 {"backing", "backing file's name"},
                 {"backing_format", "backing file's format"}};

  for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
    const json_t *a = json_object_get(was, members[i].key);
    const json_t *b = json_object_get(now, members[i].key);

    if ((a || b) && !json_equal(a, b))
      return members[i].meaning;
  }
  return NULL;
}

static int compare_layers(const json_t *was, const json_t *now,
                          const struct cairn__chain *c, size_t active,
                          char *reason, size_t size)
{
  for (size_t i = 0; i < json_array_size(now); i++) {
    const struct cairn__held *h = &c->layers[active + i].held;
    const char *differs =
        find_difference(json_array_get(was, i), json_array_get(now, i));
    char shown[200];

    cairn__printable(h->path, shown, sizeof shown);
    if (differs)
      return because(reason, size,
                     "layer %zu, \"%s\", is not what it was at the base point: "
                     "its %s differs",
                     active + i + 1, shown, differs);
    if (i > 0 && h->is_block)
      return because(reason, size,
                     "layer %zu, \"%s\", is a block device, and whether one "
                     "has changed cannot be seen",
                     active + i + 1, shown);
  }
  return 0;
}

int cairn__bitmap_check_state(const json_t *state, const struct cairn__chain *c,
                              size_t *active, char *reason, size_t size,
                              struct cairn_error *err)
{
  struct cairn_error cause = {.offset = -1};
  const json_t *was = json_object_get(state, "layers");
  size_t count = json_array_size(was);
  json_t *now;
  int result;

  *active = 0;
  reason[0] = '\0';
  if (json_integer_value(json_object_get(state, "version")) != STATE_VERSION ||
      !json_is_string(json_object_get(state, "guard")) ||
      !json_is_integer(json_object_get(state, "virtual_size")) || count == 0)
    return because(reason, size,
                   "the base point does not say how the disk was then");
  if (count > c->count)
    return because(reason, size,
                   "the image had %zu layers at the base point and has %zu",
                   count, c->count);
  *active = c->count - count;
  if (!c->layers[*active].is_qcow2)
    return because(reason, size, "layer %zu, \"%.200s\", is no qcow2 image",
                   *active + 1, c->layers[*active].held.path);
  now = json_array();
  if (!now)
    return cairn__fail_memory(err);
  result = describe_layers(c, *active, now, &cause);
  if (result == 0)
    result = compare_layers(was, now, c, *active, reason, size);
  json_decref(now);
  return result < 0 ? reason_of(&cause, reason, size, err) : result;
}

/* ---- what has changed ---------------------------------------------------- */

struct search {
  struct cairn__source *source;
  const struct cairn__chain *chain;
  const json_t *state;
  struct cairn__run *run;
  struct cairn__changes *changes;
  size_t active;
  char name[NAME_MAX_]; /* of the base's bitmap */
  uint64_t edge;        /* from here on all counts as changed */
  char *reason;
  size_t size;
};

static void mark_range(void *argument, uint64_t offset, uint64_t length)
{
  cairn__changes_mark(argument, offset, length);
}

/* The guard of the layer that was active at the base. */
static int apply_guard(struct search *x, const struct layer *l,
                       struct cairn_error *err)
{
  const char *name = json_string_value(json_object_get(x->state, "guard"));
  uint64_t was =
      (uint64_t)json_integer_value(json_object_get(x->state, "virtual_size"));
  uint64_t bits = 0, most, edge;
  const struct cairn__bitmap *guard;
  int result =
      find_good(l->held, &l->bitmaps, name, 1, &guard, x->reason, x->size);

  if (result != 0)
    return result;
  if (guard->granularity_bits != GUARD_BITS)
    return because(x->reason, x->size,
                   "the bitmap \"%s\" has another granularity than it had",
                   name);
  if (read_guard(l->held, &l->header, guard, &bits, err) != 0)
    return -1;
  most = divide_up(was, GUARD_UNIT);
  if (bits > most)
    bits = most;
  edge = bits > 0 ? (bits - 1) * GUARD_UNIT : 0;
  if (edge < x->edge)
    x->edge = edge;
  return 0;
}

/* A layer that was put on top since: whatever it holds counts, be it marked or
 * not, and what it is too short for. */
static int apply_new_layer(struct search *x, const struct layer *l,
                           struct cairn_error *err)
{
  if (l->header.virtual_size < x->edge)
    x->edge = l->header.virtual_size;
  return cairn__qcow2_allocated(l->held, &l->header, x->run, mark_range,
                                x->changes, err);
}

static int apply_layer(struct search *x, size_t i, const struct layer *l,
                       struct cairn_error *err)
{
  struct marking m = {.changes = x->changes};
  const struct cairn__bitmap *b;
  struct reading r = {.h = l->held,
                      .q = &l->header,
                      .run = x->run,
                      .each = mark_piece,
                      .argument = &m};

  if (l->header.snapshots > 0)
    return because(x->reason, x->size,
                   "layer %zu, \"%.200s\", has internal snapshots", i + 1,
                   l->held->path);
  if (find_good(l->held, &l->bitmaps, x->name, 0, &b, x->reason, x->size) != 0)
    return 1;
  m.bits = b->granularity_bits;
  r.b = b;
  if (read_bits(&r, err) != 0)
    return -1;
  return i == x->active ? apply_guard(x, l, err) : apply_new_layer(x, l, err);
}

static int apply_layers(struct search *x, struct cairn_error *err)
{
  int result = 0;

  for (size_t i = 0; i <= x->active && result == 0; i++) {
    struct layer l;

    if (layer_open(x->chain, i, &l, err) != 0)
      return -1;
    result = apply_layer(x, i, &l, err);
    cairn__bitmaps_free(&l.bitmaps);
  }
  return result;
}

/* ---- what is zero now ---------------------------------------------------- */

/* Marks those of the blocks, within one page, that the base has data in. */
static int mark_zeroed(struct search *x, const struct cairn__digester *d,
                       struct cairn__map *map, uint64_t first, uint64_t count,
                       unsigned char *digests, struct cairn_error *err)
{
  if (cairn__map_read(map, first, count, digests, err) != 0)
    return -1;
  for (uint64_t i = 0; i < count; i++) {
    if (!cairn__is_zero(digests + i * d->size, d->size))
      cairn__changes_mark(x->changes, (first + i) * CAIRN__BLOCK, 1);
  }
  return 0;
}

/* The blocks that lie in a range that reads as zeros, as far as they are
 * clean. */
static int look_at_zeros(struct search *x, const struct cairn__digester *d,
                         struct cairn__map *map, uint64_t first, uint64_t end,
                         unsigned char *digests, struct cairn_error *err)
{
  uint64_t blocks = cairn__map_get_info(map)->blocks, n;
  int is_set;

  if (end > blocks) /* beyond the base's end it is zero */
    end = blocks;
  for (; first < end; first += n) {
    uint64_t in_page = CAIRN__PAGE_BLOCKS - first % CAIRN__PAGE_BLOCKS;

    n = cairn__changes_run(x->changes, first, &is_set);
    if (n > end - first)
      n = end - first;
    if (n > in_page)
      n = in_page;
    if (x->run && cairn__run_gate(x->run, err) != 0)
      return -1;
    if (!is_set && mark_zeroed(x, d, map, first, n, digests, err) != 0)
      return -1;
  }
  return 0;
}

/* Looking for what the base has data in and the disk now reads as zeros. */
struct zeroed {
  struct search *x;
  const struct cairn__digester *d;
  struct cairn__map *map;
  unsigned char *digests; /* a page */
};

static int look_at_range(void *argument, uint64_t offset, uint64_t length,
                         struct cairn_error *err)
{
  const struct zeroed *z = argument;
  uint64_t end = offset + length;

  return look_at_zeros(z->x, z->d, z->map, divide_up(offset, CAIRN__BLOCK),
                       end >= z->x->source->length
                           ? divide_up(end, CAIRN__BLOCK)
                           : end / CAIRN__BLOCK,
                       z->digests, err);
}

/* As the server tells it, which knows the whole chain. */
static int look_at_extents(struct zeroed *z, struct cairn_error *err)
{
  struct search *x = z->x;
  struct cairn__source *s = x->source;
  struct cairn__extent e;

  for (uint64_t at = 0; at < s->length; at = e.offset + e.length) {
    if ((x->run && cairn__run_gate(x->run, err) != 0) ||
        s->ops->extent(s, at, UINT64_MAX, &e, err) != 0 ||
        (e.is_zero && look_at_range(z, e.offset, e.length, err) != 0))
      return -1;
  }
  return 0;
}

/* The tables of a single image were checked a moment ago and are at hand; the
 * server would read each of them from the disk again. */
static int apply_allocation(struct search *x, const struct cairn__digester *d,
                            struct cairn__map *map, struct cairn_error *err)
{
  const struct cairn__held *held = &x->chain->layers[0].held;
  struct cairn__qcow2_header header;
  struct zeroed z = {.x = x,
                     .d = d,
                     .map = map,
                     .digests =
                         cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * d->size)};
  int result;

  if (!z.digests)
    return cairn__fail_memory(err);
  result = cairn__qcow2_header_read(held, &header, err);
  if (result == 0)
    result =
        cairn__qcow2_has_plain_zeros(&header)
            ? cairn__qcow2_zeros(held, &header, x->run, look_at_range, &z, err)
            : look_at_extents(&z, err);
  cairn__free(z.digests);
  return result;
}

/* With errors in *cause that may be reasons; those of the base's map and of the
 * server are none. */
static int search_layers(struct search *x, struct cairn_error *cause)
{
  int result = cairn__bitmap_check_state(x->state, x->chain, &x->active,
                                         x->reason, x->size, cause);

  return result == 0 ? apply_layers(x, cause) : result;
}

int cairn__source_bitmap_changes(struct cairn__source *s,
                                 const char *base_point, const json_t *state,
                                 const struct cairn__digester *digester,
                                 struct cairn__map *map, struct cairn__run *run,
                                 struct cairn__changes *changes, char *reason,
                                 size_t size, struct cairn_error *err)
{
  struct cairn_error cause = {.offset = -1};
  struct search x = {.source = s,
                     .chain = cairn__source_chain(s),
                     .state = state,
                     .run = run,
                     .changes = changes,
                     .edge = UINT64_MAX,
                     .reason = reason,
                     .size = size};
  int result;

  reason[0] = '\0';
  if (!x.chain)
    return fail_no_chain(s, err);
  name_of(base_point, x.name);
  result = search_layers(&x, &cause);
  if (result < 0)
    return reason_of(&cause, reason, size, err);
  if (result > 0)
    return result;
  if (x.edge < s->length)
    cairn__changes_mark(changes, x.edge, s->length - x.edge);
  return apply_allocation(&x, digester, map, err);
}

/* ---- whether anything has changed ---------------------------------------- */

uint64_t cairn__bitmap_tail(uint64_t virtual_size)
{
  return virtual_size > 0
             ? (divide_up(virtual_size, GUARD_UNIT) - 1) * GUARD_UNIT
             : 0;
}

static int look_unchanged(const struct cairn__chain *c, const char *point,
                          const json_t *state, char *reason, size_t size,
                          struct cairn_error *err)
{
  json_int_t was = json_integer_value(json_object_get(state, "virtual_size"));
  struct search x = {
      .state = state, .edge = UINT64_MAX, .reason = reason, .size = size};
  struct layer l;
  int result =
      cairn__bitmap_check_state(state, c, &x.active, reason, size, err);

  if (result != 0)
    return result;
  if (x.active > 0)
    return because(reason, size, "\"%.200s\" was put on top of the image",
                   c->layers[0].held.path);
  if ((json_int_t)c->virtual_size != was)
    return because(reason, size, "its size was %lld and is %llu",
                   (long long)was, (unsigned long long)c->virtual_size);
  result = look_clean(c, point, reason, size, err);
  if (result == 1 && strstr(reason, "while the point was taken"))
    return because(reason, size, "\"%.200s\" was written since",
                   c->layers[0].held.path);
  if (result != 0 || layer_open(c, 0, &l, err) != 0)
    return result != 0 ? result : -1;
  result = apply_guard(&x, &l, err);
  cairn__bitmaps_free(&l.bitmaps);
  if (result == 0 && x.edge != cairn__bitmap_tail((uint64_t)was))
    return because(reason, size, "it was made smaller and larger again");
  return result;
}

int cairn__source_bitmap_is_unchanged(struct cairn__source *s,
                                      const char *point, const json_t *state,
                                      char *reason, size_t size,
                                      struct cairn_error *err)
{
  const struct cairn__chain *c = cairn__source_chain(s);
  struct cairn_error cause = {.offset = -1};
  int result;

  reason[0] = '\0';
  if (!c)
    return fail_no_chain(s, err);
  result = look_unchanged(c, point, state, reason, size, &cause);
  return result < 0 ? reason_of(&cause, reason, size, err) : result;
}
