/* import.c: the kind "import": a stream `rbd diff v1` becomes a reference point
 * with one disk.
 *
 * The stream goes forward only, and so do image and map: a window of
 * neighbouring blocks that records touch is put together in memory and settled
 * when something else follows. What lies between records is as it was at the
 * origin, the point that the stream starts from, or zero when it starts from
 * nothing. A block that is touched in part is read from the origin first, and
 * proved.
 *
 * Where there is a base the point is stored as an increment on it, by digest
 * as any other; else as a full. Nothing is published before the end record was
 * read and nothing follows it: half a stream leaves nothing. */
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "base.h"
#include "collection.h"
#include "datetime.h"
#include "error.h"
#include "image.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "published.h"
#include "publish.h"
#include "rbd_diff.h"
#include "spec.h"

#define WINDOW_BLOCKS 16u
#define SOURCE_FORMAT "rbd diff v1"

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int is_none(const char *base)
{
  return strcmp(base, "none") == 0;
}

/* ---- the specification --------------------------------------------------- */

static const char *const formats[] = {"qcow2", "raw", NULL};
static const char *const digests[] = {"xxh3-128", "sha-256", "blake2b-256",
                                      NULL};

static const struct cairn__spec_key keys[] = {
    {"input", CAIRN__SPEC_STREAM, 1, NULL, NULL},
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"collection", CAIRN__SPEC_OBJECT, 1, NULL, NULL},
    {"machine", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"disk", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"base", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"format", CAIRN__SPEC_STRING, 0, formats, "qcow2"},
    {"digest", CAIRN__SPEC_STRING, 0, digests, NULL}};

static int is_machine(const json_t *machine, const char *wanted)
{
  const char *name = text_of(machine, "ElementName");
  char id[37];

  if (!wanted)
    return 1;
  if (cairn__guid_canonical(wanted, id) == 0)
    return strcmp(text_of(machine, "VirtualMachineId"), id) == 0;
  return name && strcmp(name, wanted) == 0;
}

static int fail_choice(size_t found, const char *machine, const char *disk,
                       const char *list, struct cairn_error *err)
{
  char vm_shown[200], disk_shown[200];

  cairn__printable(machine ? machine : "any", vm_shown, sizeof vm_shown);
  cairn__printable(disk ? disk : "any", disk_shown, sizeof disk_shown);
  if (found > 1)
    return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                       "import: a stream is one disk, and the collection has "
                       "%zu that fit; name the machine and the disk of one: %s",
                       found, list);
  return cairn__fail(err, CAIRN_E_NOT_FOUND,
                     "import: the collection has no disk that fits (machine: "
                     "%s, disk: %s); it has %s",
                     vm_shown, disk_shown, list[0] ? list : "none");
}

/* The only disk that fits, and its machine. */
static int find_disk(const json_t *spec, const json_t **machine,
                     const json_t **disk, struct cairn_error *err)
{
  const char *wanted_vm = text_of(spec, "machine");
  const char *wanted_disk = text_of(spec, "disk");
  const json_t *list =
      json_object_get(json_object_get(spec, "collection"), "machines");
  char all[700] = "", fit[700] = "";
  json_t *m, *d;
  size_t i, j, found = 0;

  json_array_foreach(list, i, m)
  {
    json_array_foreach(json_object_get(m, "disks"), j, d)
    {
      int fits = is_machine(m, wanted_vm) &&
                 (!wanted_disk || strcmp(text_of(d, "id"), wanted_disk) == 0);
      size_t used = strlen(all);

      snprintf(all + used, sizeof all - used, "%s%s/%s", used ? ", " : "",
               text_of(m, "VirtualMachineId"), text_of(d, "id"));
      if (!fits)
        continue;
      used = strlen(fit);
      snprintf(fit + used, sizeof fit - used, "%s%s/%s", used ? ", " : "",
               text_of(m, "VirtualMachineId"), text_of(d, "id"));
      *machine = m;
      *disk = d;
      found++;
    }
  }
  if (found == 1)
    return 0;
  return fail_choice(found, wanted_vm, wanted_disk, found ? fit : all, err);
}

/* Only the disk that is imported stays in the collection: it is what the point
 * will hold. */
static int keep_disk(json_t *spec, const json_t *machine, const json_t *disk,
                     struct cairn_error *err)
{
  json_t *collection = json_object_get(spec, "collection");
  json_t *kept =
      json_pack("[{s:O, s:O?, s:[O], s:[], s:[], s:[]}]", "VirtualMachineId",
                json_object_get(machine, "VirtualMachineId"), "ElementName",
                json_object_get(machine, "ElementName"), "disks", disk,
                "config", "runtime", "guest_state");

  if (!kept)
    return cairn__fail_memory(err);
  if (json_object_set(spec, "machine",
                      json_object_get(machine, "VirtualMachineId")) != 0 ||
      json_object_set(spec, "disk", json_object_get(disk, "id")) != 0 ||
      json_object_set(collection, "machines", kept) != 0) {
    json_decref(kept);
    return cairn__fail_memory(err);
  }
  json_decref(kept);
  return 0;
}

static int import_check(json_t *spec, struct cairn_error *err)
{
  const json_t *machine = NULL, *disk = NULL;
  const char *digest;
  int algorithm;

  if (cairn__spec_check(spec, "import", keys, sizeof keys / sizeof *keys,
                        err) != 0 ||
      cairn__collection_check(json_object_get(spec, "collection"),
                              "import.collection", err) != 0 ||
      find_disk(spec, &machine, &disk, err) != 0 ||
      keep_disk(spec, machine, disk, err) != 0)
    return -1;
  digest = text_of(spec, "digest");
  return digest ? cairn__digest_algorithm_parse(digest, &algorithm, err) : 0;
}

/* ---- an import ----------------------------------------------------------- */

struct import {
  struct cairn__run *run;
  const struct cairn_io *io;
  const json_t *spec, *collection;
  const char *vm, *disk;
  struct cairn__pipe in;
  struct cairn__rbd_reader reader;
  struct cairn__publication publication;
  struct cairn__bases bases;
  struct cairn__base base; /* of an increment; its point is NULL for a full */
  int has_origin;          /* the stream changes what bases.point has */
  struct cairn__digester digester;
  struct cairn__map *below;     /* of bases.point, or NULL */
  struct cairn__source *source; /* its content, with has_origin */
  char from[37];                /* the id in the stream's header, or "" */
  char id[37];                  /* of the new point */
  unsigned char point[16];
  const char *format;
  json_int_t sequence;
  int64_t time_us, ended_us;
  json_t *files; /* of the manifest */

  /* the disk */
  uint64_t length, virtual_size, blocks;
  int dirfd; /* of the machine */
  char name[96], map_name[96];
  struct cairn__sink *sink;
  struct cairn__map_writer *map;
  struct cairn__file_result image_file, map_file;
  unsigned char content[CAIRN__DIGEST_MAX];
  uint64_t data_bytes, zero_bytes, written_bytes, records;

  /* the window */
  uint64_t next;         /* blocks before it are settled */
  uint64_t first, count; /* blocks in it */
  unsigned char *buf;    /* WINDOW_BLOCKS blocks, aligned */
  unsigned char *page;   /* digests of `below` */
  uint8_t *states;       /* of a page */
  uint64_t *positions;
};

static int64_t wall_us(const struct import *x)
{
  return x->run->clock->wall(x->run->clock);
}

/* ---- the base ------------------------------------------------------------ */

/* What the point will be based on, as base.h has it. */
static int wanted_base(struct import *x, const char **wanted,
                       struct cairn_error *err)
{
  const struct cairn__rbd_header *h = &x->reader.header;
  char shown[200];

  *wanted = text_of(x->spec, "base");
  if (*wanted) {
    if (is_none(*wanted) && h->has_from)
      cairn__run_warn(x->run,
                      "the stream holds changes since \"%s\"; as asked for "
                      "they were taken for the whole content, and all else is "
                      "zero",
                      cairn__printable(h->from, shown, sizeof shown));
    return 0;
  }
  *wanted = "none";
  if (!h->has_from)
    return 0;
  if (!x->from[0])
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "the stream holds changes since \"%s\", which is no id "
                       "of a reference point; name as base the point that "
                       "this is, or \"none\" when the stream holds everything",
                       cairn__printable(h->from, shown, sizeof shown));
  *wanted = x->from;
  return 0;
}

/* A stream that says from which point here it starts is believed. */
static int check_origin(const struct import *x, struct cairn_error *err)
{
  json_t *p;
  size_t i;

  if (!x->bases.point || strcmp(x->from, cairn__point_id(x->bases.point)) == 0)
    return 0;
  json_array_foreach(x->bases.points, i, p)
  {
    if (strcmp(text_of(p, "ReferencePointGroupId"), x->from) == 0)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "the stream holds changes since reference point %s, "
                         "which is here; it cannot be based on %s",
                         x->from, cairn__point_id(x->bases.point));
  }
  return 0;
}

static int open_bases(struct import *x, const char *directory,
                      struct cairn_error *err)
{
  const char *digest = text_of(x->spec, "digest");
  struct cairn__bases_options o = {
      .io = x->io,
      .run = x->run,
      .directory = directory,
      .collection = text_of(x->collection, "CollectionId"),
      .algorithm = CAIRN__XXH3_128,
  };
  struct cairn_error why;

  if (wanted_base(x, &o.wanted, err) != 0)
    return -1;
  cairn__error_clear(&why);
  if (cairn__bases_open(&o, &x->bases, &why) != 0) {
    if (why.id == CAIRN_E_NOT_FOUND && o.wanted == x->from)
      return cairn__fail(err, CAIRN_E_NOT_FOUND,
                         "the stream holds changes since a point that must be "
                         "here first: %s",
                         why.message);
    if (err)
      *err = why;
    return -1;
  }
  if (!digest && x->bases.point)
    digest = text_of(x->bases.point->manifest, "algorithm");
  if (digest &&
      cairn__digest_algorithm_parse(digest, &x->bases.o.algorithm, err) != 0)
    return -1;
  return check_origin(x, err);
}

/* The map that says what the base has, proved: it decides what is left out. */
static int open_below(struct import *x, const json_t *image,
                      struct cairn_error *err)
{
  const struct cairn__digester *d = &x->digester;
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];

  if (cairn__point_open_map(x->io, x->bases.point, image, d, &x->below, err) !=
          0 ||
      cairn__digest_parse(d, text_of(image, "content"), wanted, err) != 0 ||
      cairn__map_root(x->below, root, err) != 0)
    return -1;
  if (memcmp(root, wanted, d->size) == 0)
    return 0;
  return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                     "%s/%s: the digest map differs from \"content\" in the "
                     "manifest",
                     x->bases.point->path, text_of(image, "path"));
}

static int open_source(struct import *x, const json_t *image,
                       struct cairn_error *err)
{
  struct cairn__layer **layers;
  size_t count;
  char path[PATH_MAX + 256];
  int result;

  if (cairn__point_open_chain(&x->bases.x, x->bases.point, image, &layers,
                              &count, err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s", x->bases.point->path,
           text_of(image, "path"));
  result = cairn__source_open_layers(
      layers, count,
      (uint64_t)json_integer_value(json_object_get(image, "length")), path, 1,
      &x->source, err);
  for (size_t i = 0; result != 0 && i < count; i++)
    cairn__layer_close(layers[i]);
  cairn__free(layers);
  return result;
}

static int draw_digester(struct import *x, struct cairn_error *err)
{
  unsigned char secret[CAIRN__SECRET_SIZE];

  if (cairn__digest_secret(secret, err) != 0)
    return -1;
  cairn__digester_init(&x->digester, x->bases.o.algorithm, secret);
  explicit_bzero(secret, sizeof secret);
  return 0;
}

static int choose_base(struct import *x, const char *directory,
                       struct cairn_error *err)
{
  const json_t *image;

  if (open_bases(x, directory, err) != 0)
    return -1;
  if (!x->bases.point)
    return draw_digester(x, err);
  image = cairn__point_image(x->bases.point, x->vm, x->disk);
  if (!image)
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "the base, reference point %s, does not have this disk",
                       cairn__point_id(x->bases.point));
  if (cairn__bases_choose(&x->bases, x->vm, x->disk, &x->base, err) != 0)
    return -1;
  if (x->base.reason)
    cairn__run_warn(x->run, "the disk is stored in full: %s", x->base.reason);
  x->has_origin = x->reader.header.has_from;
  if (cairn__point_digester(x->io, x->bases.point, &x->digester, err) != 0 ||
      open_below(x, image, err) != 0)
    return -1;
  return x->has_origin ? open_source(x, image, err) : 0;
}

static int is_log(const struct import *x)
{
  return x->base.point != NULL;
}

/* ---- blocks -------------------------------------------------------------- */

/* Digests of `below` into x->page: `count` from `first` on, within one page;
 * markers where there is none. */
static int load(struct import *x, uint64_t first, uint64_t count,
                struct cairn_error *err)
{
  uint64_t there = x->below ? cairn__map_get_info(x->below)->blocks : 0;
  uint64_t n = there > first ? there - first : 0;
  size_t size = x->digester.size;

  if (n > count)
    n = count;
  memset(x->page + n * size, 0, (size_t)(count - n) * size);
  return n > 0 ? cairn__map_read(x->below, first, n, x->page, err) : 0;
}

/* Settles the window. */
static int flush(struct import *x, struct cairn_error *err)
{
  unsigned char found[WINDOW_BLOCKS * CAIRN__DIGEST_MAX];
  uint64_t end = (x->first + x->count) * CAIRN__BLOCK;
  size_t size = x->digester.size, count = (size_t)x->count;

  if (count == 0)
    return 0;
  if (end > x->length)
    memset(x->buf + count * CAIRN__BLOCK - (end - x->length), 0,
           (size_t)(end - x->length));
  if (is_log(x) && load(x, x->first, count, err) != 0)
    return -1;
  for (size_t i = 0; i < count; i++) {
    int is_zero = cairn__digest_block(&x->digester, x->buf + i * CAIRN__BLOCK,
                                      found + i * size);
    int is_same =
        is_log(x) && memcmp(found + i * size, x->page + i * size, size) == 0;

    x->states[i] = is_same     ? CAIRN__UNCHANGED
                   : !is_zero  ? CAIRN__DATA
                   : is_log(x) ? CAIRN__ZERO
                               : CAIRN__UNCHANGED;
    x->written_bytes += x->states[i] == CAIRN__DATA ? CAIRN__BLOCK : 0;
  }
  if (cairn__map_append(x->map, x->first, found, count, err) != 0 ||
      x->sink->ops->reserve(x->sink, x->first, count, x->states, found,
                            x->positions, err) != 0 ||
      x->sink->ops->write(x->sink, x->first, count, x->states, x->positions,
                          x->buf, err) != 0)
    return -1;
  x->next = x->first + count;
  x->count = 0;
  return 0;
}

/* Reads a block of the origin to the end of the window, and proves it. */
static int read_origin(struct import *x, uint64_t block,
                       struct cairn_error *err)
{
  unsigned char *to = x->buf + (block - x->first) * CAIRN__BLOCK;
  unsigned char digest[CAIRN__DIGEST_MAX];
  uint64_t offset = block * CAIRN__BLOCK;

  if (!x->has_origin || offset >= x->source->length) {
    memset(to, 0, CAIRN__BLOCK);
    return 0;
  }
  if (x->source->ops->read(x->source, 0, to, CAIRN__BLOCK, offset, err) != 0 ||
      load(x, block, 1, err) != 0)
    return -1;
  cairn__digest_block(&x->digester, to, digest);
  if (memcmp(digest, x->page, x->digester.size) == 0)
    return 0;
  cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
              "\"%s\", which the stream changes, differs from its digest map "
              "at offset %llu (%u bytes)",
              x->source->path, (unsigned long long)offset, CAIRN__BLOCK);
  cairn__error_set_path(err, x->source->path, (int64_t)offset);
  return -1;
}

static int settle_until(struct import *x, uint64_t end, int is_zeroed,
                        struct cairn_error *err);

/* Takes a block into the window; one that will not be covered as a whole has
 * what it held. The block at hand may be taken again. */
static int touch(struct import *x, uint64_t block, int is_whole,
                 struct cairn_error *err)
{
  if (x->count > 0 && block == x->first + x->count - 1)
    return 0;
  if (x->count == WINDOW_BLOCKS || block != x->first + x->count ||
      block % CAIRN__PAGE_BLOCKS == 0) {
    if (cairn__run_gate(x->run, err) != 0 || flush(x, err) != 0)
      return -1;
  }
  if (x->count == 0) {
    if (settle_until(x, block, 0, err) != 0)
      return -1;
    x->first = block;
  }
  x->count++;
  return is_whole ? 0 : read_origin(x, block, err);
}

/* Blocks of the origin that are as they were, into a full: it has a digest of
 * each in x->page. */
static int copy_origin(struct import *x, uint64_t first, uint64_t count,
                       struct cairn_error *err)
{
  size_t size = x->digester.size;
  unsigned char *wanted = cairn__malloc((size_t)count * size);
  int result = 0;

  if (!wanted)
    return cairn__fail_memory(err);
  memcpy(wanted, x->page, (size_t)count * size);
  for (uint64_t i = 0; i < count && result == 0; i++) {
    uint64_t block = first + i;

    if (cairn__is_zero(wanted + i * size, size))
      continue;
    if (x->count == 0 || block != x->first + x->count ||
        x->count == WINDOW_BLOCKS) {
      result = flush(x, err);
      x->next = block;
    }
    if (result == 0)
      result = touch(x, block, 0, err);
  }
  cairn__free(wanted);
  return result == 0 ? flush(x, err) : -1;
}

/* At most a page of blocks that are zero now. */
static int settle_zeros(struct import *x, uint64_t first, uint64_t count,
                        struct cairn_error *err)
{
  size_t size = x->digester.size;
  int is_any = 0;

  for (uint64_t i = 0; i < count; i++) {
    int was_zero = cairn__is_zero(x->page + i * size, size);

    x->states[i] = was_zero ? CAIRN__UNCHANGED : CAIRN__ZERO;
    is_any |= !was_zero;
  }
  return is_any ? x->sink->ops->reserve(x->sink, first, (size_t)count,
                                        x->states, x->page, x->positions, err)
                : 0;
}

/* The blocks before `end` that are not settled: zero, or as at the origin. The
 * window is empty. */
static int settle_until(struct import *x, uint64_t end, int is_zeroed,
                        struct cairn_error *err)
{
  size_t size = x->digester.size;

  while (x->next < end) {
    uint64_t first = x->next;
    uint64_t n = CAIRN__PAGE_BLOCKS - first % CAIRN__PAGE_BLOCKS;
    int result = 0;

    if (n > end - first)
      n = end - first;
    if (cairn__run_gate(x->run, err) != 0 || load(x, first, n, err) != 0)
      return -1;
    if (is_zeroed || !x->has_origin)
      result = is_log(x) ? settle_zeros(x, first, n, err) : 0;
    else if (!is_log(x))
      result = copy_origin(x, first, n, err);
    else if (!cairn__is_zero(x->page, (size_t)n * size))
      result = cairn__map_append(x->map, first, x->page, n, err);
    if (result != 0)
      return -1;
    x->next = first + n;
  }
  return 0;
}

/* ---- records ------------------------------------------------------------- */

/* The bytes offset .. offset + n - 1 lie in one block: new data from the
 * stream, or zeros. */
static int apply_part(struct import *x, uint64_t offset, size_t n, int is_zero,
                      struct cairn_error *err)
{
  uint64_t block = offset / CAIRN__BLOCK, start = block * CAIRN__BLOCK;
  uint64_t left = x->length - start;
  int is_whole =
      offset == start && n == (left < CAIRN__BLOCK ? left : CAIRN__BLOCK);
  unsigned char *to;

  if (touch(x, block, is_whole, err) != 0)
    return -1;
  to = x->buf + (block - x->first) * CAIRN__BLOCK + (offset - start);
  if (!is_zero)
    return cairn__rbd_data(&x->reader, to, n, err);
  memset(to, 0, n);
  return 0;
}

static int apply(struct import *x, const struct cairn__rbd_record *r,
                 struct cairn_error *err)
{
  uint64_t offset = r->offset, end = offset + r->length;

  while (offset < end) {
    uint64_t block = offset / CAIRN__BLOCK;
    uint64_t left = CAIRN__BLOCK - offset % CAIRN__BLOCK;
    uint64_t last = end == x->length ? x->blocks : end / CAIRN__BLOCK;

    if (r->is_zero && offset % CAIRN__BLOCK == 0 && block < last) {
      /* whole blocks, as many as there may be */
      if (flush(x, err) != 0 || settle_until(x, block, 0, err) != 0 ||
          settle_until(x, last, 1, err) != 0)
        return -1;
      offset = last * CAIRN__BLOCK;
      continue;
    }
    if (left > end - offset)
      left = end - offset;
    if (apply_part(x, offset, (size_t)left, r->is_zero, err) != 0)
      return -1;
    offset += left;
    atomic_store(&x->run->bytes_done, x->reader.consumed);
  }
  return 0;
}

/* A disk that became shorter: what its last block held beyond the end is gone,
 * although no record says so. */
static int cut_end(struct import *x, struct cairn_error *err)
{
  uint64_t last = x->blocks - 1;

  if (!x->has_origin || x->length % CAIRN__BLOCK == 0 ||
      x->source->length <= x->length || x->next > last)
    return 0;
  return touch(x, last, 0, err);
}

static int read_records(struct import *x, struct cairn_error *err)
{
  struct cairn__rbd_record r;
  int found;

  while ((found = cairn__rbd_next(&x->reader, &r, err)) > 0) {
    if (cairn__run_gate(x->run, err) != 0 || apply(x, &r, err) != 0)
      return -1;
    x->records++;
    *(r.is_zero ? &x->zero_bytes : &x->data_bytes) += r.length;
  }
  if (found != 0 || cut_end(x, err) != 0 || flush(x, err) != 0)
    return -1;
  atomic_store(&x->run->bytes_done, x->reader.consumed);
  return settle_until(x, x->blocks, 0, err);
}

/* ---- the disk ------------------------------------------------------------ */

static int make_window(struct import *x, struct cairn_error *err)
{
  size_t size = x->digester.size;

  x->buf = cairn__malloc_aligned((size_t)WINDOW_BLOCKS * CAIRN__BLOCK);
  x->page = cairn__malloc(CAIRN__PAGE_BLOCKS * size);
  x->states = cairn__malloc(CAIRN__PAGE_BLOCKS);
  x->positions = cairn__calloc(CAIRN__PAGE_BLOCKS, sizeof *x->positions);
  return x->buf && x->page && x->states && x->positions
             ? 0
             : cairn__fail_memory(err);
}

static int open_sink(struct import *x, const char *path,
                     struct cairn_error *err)
{
  unsigned char base_id[16];
  struct cairn__sink_options o = {
      .io = x->io,
      .dirfd = x->dirfd,
      .name = x->name,
      .path = path,
      .length = x->length,
      .virtual_size = x->virtual_size,
      .digester = &x->digester,
      .point = x->point,
  };

  if (is_log(x)) {
    if (uuid_parse(cairn__point_id(x->base.point), base_id) != 0)
      return cairn__fail(err, CAIRN_E_INTERNAL, "the base has no id");
    o.base = base_id;
    o.backing_name = x->base.backing_name;
    o.backing_format = text_of(x->base.image, "format");
  }
  return strcmp(x->format, "raw") == 0
             ? cairn__sink_open_raw(&o, &x->sink, err)
             : cairn__sink_open_qcow2(&o, &x->sink, err);
}

static int write_disk(struct import *x, struct cairn_error *err)
{
  struct cairn__sink *sink;
  struct cairn__map_writer *map;
  char path[PATH_MAX];

  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, x->vm,
           x->name);
  if (make_window(x, err) != 0 || open_sink(x, path, err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, x->vm,
           x->map_name);
  if (cairn__map_create(x->io, x->dirfd, x->map_name, path, &x->digester,
                        x->virtual_size, x->length, x->point, &x->map,
                        err) != 0 ||
      read_records(x, err) != 0)
    return -1;
  sink = x->sink;
  map = x->map;
  x->sink = NULL;
  if (sink->ops->finish(sink, &x->image_file, err) != 0)
    return -1;
  x->map = NULL;
  if (cairn__map_finish(map, x->content, x->map_file.digest, &x->map_file.size,
                        err) != 0)
    return -1;
  return x->source ? x->source->ops->check_still(x->source, err) : 0;
}

/* ---- the manifest -------------------------------------------------------- */

static void format_time(int64_t unix_us, char out[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);

  cairn_datetime_format(&t, out);
}

static json_t *describe_image(const struct import *x)
{
  char started[CAIRN_DATETIME_SIZE], ended[CAIRN_DATETIME_SIZE];
  char image[CAIRN__DIGEST_TEXT], content[CAIRN__DIGEST_TEXT];
  char path[160], source[600];
  json_t *o;

  format_time(x->time_us, started);
  format_time(x->ended_us, ended);
  cairn__digest_format(&x->digester, x->image_file.digest, image);
  cairn__digest_format(&x->digester, x->content, content);
  snprintf(path, sizeof path, "%s/%s", x->vm, x->name);
  snprintf(source, sizeof source, SOURCE_FORMAT " stream: %s", x->in.name);
  cairn__utf8_clean(source);
  o = json_pack(
      "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:s?, s:s, s:s?, "
      "s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s}",
      "role", is_log(x) ? "log" : "disk", "path", path, "size",
      (json_int_t)x->image_file.size, "digest", image, "VirtualMachineId",
      x->vm, "disk", x->disk, "format", x->format, "length",
      (json_int_t)x->length, "virtual_size", (json_int_t)x->virtual_size,
      "content", content, "base",
      is_log(x) ? cairn__point_id(x->base.point) : NULL, "tracker",
      is_log(x) ? "digest" : "full", "fallback", x->base.reason, "source",
      source, "source_format", SOURCE_FORMAT, "bytes_read",
      (json_int_t)x->data_bytes, "bytes_written", (json_int_t)x->written_bytes,
      "bytes_zero", (json_int_t)x->zero_bytes, "bytes_skipped",
      (json_int_t)(x->length - x->data_bytes - x->zero_bytes), "time_started",
      started, "time_ended", ended);
  if (o && is_log(x) &&
      json_object_set(o, "base_content",
                      json_object_get(x->base.image, "content")) != 0) {
    json_decref(o);
    return NULL;
  }
  return o;
}

static int describe_disk(struct import *x, struct cairn_error *err)
{
  char map[CAIRN__DIGEST_TEXT], path[160];

  cairn__digest_format(&x->digester, x->map_file.digest, map);
  snprintf(path, sizeof path, "%s/%s", x->vm, x->map_name);
  if (json_array_append_new(x->files, describe_image(x)) != 0 ||
      json_array_append_new(
          x->files,
          json_pack("{s:s, s:s, s:I, s:s, s:s, s:s}", "role", "digests", "path",
                    path, "size", (json_int_t)x->map_file.size, "digest", map,
                    "VirtualMachineId", x->vm, "disk", x->disk)) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static json_t *list_warnings(struct import *x)
{
  json_t *warnings;

  pthread_mutex_lock(&x->run->lock);
  warnings = x->run->warnings ? json_deep_copy(x->run->warnings) : json_array();
  pthread_mutex_unlock(&x->run->lock);
  return warnings;
}

static const char *machine_name(const struct import *x)
{
  return text_of(json_array_get(json_object_get(x->collection, "machines"), 0),
                 "ElementName");
}

static const char *base_id(const struct import *x)
{
  return is_log(x) ? cairn__point_id(x->base.point) : NULL;
}

static int write_manifest(struct import *x, struct cairn_error *err)
{
  char time[CAIRN_DATETIME_SIZE];
  json_t *manifest;
  int result;

  format_time(x->time_us, time);
  manifest = json_pack(
      "{s:s, s:i, s:s, s:s, s:s?, s:s, s:s?, s:s, s:I, s:I, s:I, s:i, s:s, "
      "s:I, s:s, s:[{s:s, s:s?, s:s}], s:O, s:[], s:o}",
      "format", "cairn-export", "version", CAIRN__MANIFEST_VERSION, "note",
      CAIRN__MANIFEST_NOTE, "CollectionId",
      text_of(x->collection, "CollectionId"), "ElementName",
      text_of(x->collection, "ElementName"), "ReferencePointGroupId", x->id,
      "BaseReferencePointGroupId", base_id(x), "InstanceID",
      x->run->instance_id, "run", (json_int_t)x->run->number, "epoch",
      (json_int_t)x->run->epoch, "sequence", x->sequence, "generation", 1,
      "time", time, "unix_us", (json_int_t)x->time_us, "algorithm",
      cairn__digest_algorithm_name(x->digester.algorithm), "machines",
      "VirtualMachineId", x->vm, "ElementName", machine_name(x), "result", "ok",
      "files", x->files, "failed", "warnings", list_warnings(x));
  if (!manifest)
    return cairn__fail_memory(err);
  result = cairn__manifest_write(x->io, x->publication.pointfd, manifest,
                                 x->publication.point_path, err);
  json_decref(manifest);
  return result;
}

/* ---- the run ------------------------------------------------------------- */

static int open_stream(struct import *x, struct cairn_error *err)
{
  if (cairn__pipe_open_input(x->io, x->run, json_object_get(x->spec, "input"),
                             &x->in, err) != 0 ||
      cairn__rbd_open(&x->in, &x->reader, err) != 0)
    return -1;
  atomic_store(&x->run->bytes_total, x->in.size);
  if (!x->reader.header.has_from ||
      cairn__guid_canonical(x->reader.header.from, x->from) != 0)
    x->from[0] = '\0';
  x->length = x->reader.header.size;
  x->virtual_size = (x->length + 511) / 512 * 512;
  x->blocks = x->length / CAIRN__BLOCK + (x->length % CAIRN__BLOCK != 0);
  return 0;
}

/* The stream's own where it brings one that is new here. */
static int choose_id(struct import *x, struct cairn_error *err)
{
  const struct cairn__rbd_header *h = &x->reader.header;
  struct stat st;
  char id[37];
  json_t *p;
  size_t i;
  int is_there = 0;

  snprintf(x->id, sizeof x->id, "%s", x->run->point_uuid);
  if (h->has_to && cairn__guid_canonical(h->to, id) == 0) {
    json_array_foreach(x->bases.points, i, p)
    {
      is_there |= strcmp(text_of(p, "ReferencePointGroupId"), id) == 0;
    }
    if (!is_there && x->io->fstatat(x->io, x->publication.dirfd, id, &st,
                                    AT_SYMLINK_NOFOLLOW) == 0)
      is_there = 1;
    if (is_there)
      cairn__run_warn(x->run,
                      "the stream leads to reference point %s, which is here "
                      "already: it was imported as %s",
                      id, x->id);
    else
      snprintf(x->id, sizeof x->id, "%s", id);
  }
  if (uuid_parse(x->id, x->point) != 0)
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "the run has no ReferencePointGroupId");
  return cairn__publication_check_free(&x->publication, x->id, err);
}

static int prepare(struct import *x, struct cairn_error *err)
{
  if (cairn__publication_open(&x->publication, text_of(x->spec, "directory"),
                              err) != 0 ||
      cairn__publication_clean(&x->publication, x->run, NULL, 0, err) != 0 ||
      choose_base(x, x->publication.path, err) != 0 || choose_id(x, err) != 0 ||
      cairn__publication_next_sequence(
          &x->publication, text_of(x->collection, "CollectionId"),
          x->bases.sequence, &x->sequence, err) != 0)
    return -1;
  x->format = is_log(x) ? "qcow2" : text_of(x->spec, "format");
  snprintf(x->name, sizeof x->name, "%s.%s", x->disk, x->format);
  snprintf(x->map_name, sizeof x->map_name, "%s.digests", x->disk);
  x->files = json_array();
  if (!x->files)
    return cairn__fail_memory(err);
  return cairn__publication_begin(&x->publication, x->run, err);
}

static int make_directory(struct import *x, struct cairn_error *err)
{
  const struct cairn_io *io = x->io;
  int parent = x->publication.pointfd;

  if (io->mkdirat(io, parent, x->vm, 0700) == 0) {
    x->dirfd =
        io->openat(io, parent, x->vm, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (x->dirfd >= 0)
      return 0;
  }
  return cairn__fail_errno(err, errno, x->publication.point_path, -1,
                           "cannot create the directory \"%s/%s\"",
                           x->publication.point_path, x->vm);
}

/* The run's CIM properties, made before the rename: afterwards nothing may
 * fail. */
static int make_properties(const struct import *x, json_t **out,
                           struct cairn_error *err)
{
  char *disk = cairn__format("%s/%s", x->vm, x->disk);
  char *path =
      cairn__format("%s/%s/%s/%s", x->publication.path, x->id, x->vm, x->name);

  *out = NULL;
  if (disk && path)
    *out = json_pack(
        "{s:s, s:s?, s:[s], s:[s], s:[s], s:[s], s:[s], s:[s]}",
        "ReferencePointGroupId", x->id, "BaseReferencePointGroupId", base_id(x),
        "VirtualMachineId", x->vm, "ExportedDisks", disk,
        "ExportedLogFilePaths", path, "ExportedConfigFilePaths", "",
        "ExportedRuntimeFilePaths", "", "ExportedGuestStateFilePaths", "");
  cairn__free(disk);
  cairn__free(path);
  return *out ? 0 : cairn__fail_memory(err);
}

static int publish(struct import *x, json_t **properties,
                   struct cairn_error *err)
{
  struct cairn__publication *p = &x->publication;

  x->ended_us = wall_us(x);
  if (describe_disk(x, err) != 0 ||
      cairn__secret_publish(x->io, p->pointfd, p->point_path, &x->digester,
                            x->files, err) != 0 ||
      write_manifest(x, err) != 0 || make_properties(x, properties, err) != 0 ||
      cairn__run_gate(x->run, err) != 0 ||
      cairn__publication_keep_sequence(
          p, text_of(x->collection, "CollectionId"), x->sequence, err) != 0)
    return -1;
  return cairn__publication_publish(p, x->run, x->id, err);
}

static int do_import(struct import *x, json_t **properties,
                     struct cairn_error *err)
{
  if (open_stream(x, err) != 0)
    return -1;
  x->time_us = wall_us(x);
  if (prepare(x, err) != 0 || make_directory(x, err) != 0 ||
      write_disk(x, err) != 0)
    return -1;
  if (x->io->fsync(x->io, x->dirfd) != 0)
    return cairn__fail_errno(err, errno, x->publication.point_path, -1,
                             "cannot sync \"%s/%s\"", x->publication.point_path,
                             x->vm);
  return publish(x, properties, err);
}

static void import_open(struct import *x, struct cairn__run *run,
                        const json_t *spec)
{
  *x = (struct import){.run = run,
                       .io = run->io,
                       .spec = spec,
                       .collection = json_object_get(spec, "collection"),
                       .vm = text_of(spec, "machine"),
                       .disk = text_of(spec, "disk"),
                       .in = {.fd = -1},
                       .dirfd = -1};
  cairn__publication_init(&x->publication, run->io);
}

static void import_close(struct import *x, int is_kept)
{
  if (x->sink)
    x->sink->ops->abort(x->sink);
  cairn__map_abort(x->map);
  cairn__source_close(x->source);
  cairn__map_close(x->below);
  if (x->dirfd >= 0)
    (void)x->io->close(x->io, x->dirfd);
  cairn__base_free(&x->base);
  cairn__bases_close(&x->bases);
  cairn__pipe_close(&x->in);
  cairn__publication_close(&x->publication, x->run, is_kept);
  cairn__free_aligned(x->buf);
  cairn__free(x->page);
  cairn__free(x->states);
  cairn__free(x->positions);
  json_decref(x->files);
  explicit_bzero(&x->digester, sizeof x->digester);
}

/* What is known of the stream and the point; NULL without memory. */
static json_t *report(const struct import *x)
{
  const struct cairn__rbd_header *h = &x->reader.header;
  char from[2048] = "", to[2048] = "";

  cairn__printable(h->from, from, sizeof from);
  cairn__printable(h->to, to, sizeof to);
  return json_pack(
      "{s:s, s:O, s:s, s:s, s:s?, s:s?, s:I, s:I, s:I, s:I, s:I}",
      "CollectionId", text_of(x->collection, "CollectionId"), "input",
      json_object_get(x->spec, "input"), "VirtualMachineId", x->vm, "disk",
      x->disk, "from", h->has_from ? from : NULL, "to", h->has_to ? to : NULL,
      "length", (json_int_t)x->length, "records", (json_int_t)x->records,
      "bytes_data", (json_int_t)x->data_bytes, "bytes_zero",
      (json_int_t)x->zero_bytes, "bytes_stream",
      (json_int_t)x->reader.consumed);
}

static void report_point(const struct import *x, json_t *properties,
                         json_t *out)
{
  char *path = cairn__format("%s/%s", x->publication.path, x->id);

  if (out && path) {
    (void)json_object_set_new(out, "ReferencePointGroupId", json_string(x->id));
    if (base_id(x))
      (void)json_object_set_new(out, "BaseReferencePointGroupId",
                                json_string(base_id(x)));
    (void)json_object_set_new(out, "path", json_string(path));
    (void)json_object_set(out, "properties", properties);
  }
  cairn__free(path);
}

static void import_main(struct cairn__run *run)
{
  struct import x;
  struct cairn_error err;
  json_t *properties = NULL;
  int result;

  cairn__error_clear(&err);
  import_open(&x, run, run->spec);
  cairn__run_enter(run);
  result = cairn__published_point(run, text_of(run->spec, "directory"), &err);
  if (result > 0) {
    cairn__run_leave(run);
    import_close(&x, 0);
    return;
  }
  if (result == 0)
    result = do_import(&x, &properties, &err);
  cairn__run_leave(run);
  run->report = report(&x);
  if (result == 0)
    report_point(&x, properties, run->report);
  import_close(&x, result != 0 && err.id == CAIRN_E_KILLED);
  json_decref(properties);
  if (result != 0) {
    if (err.id != CAIRN_E_TERMINATED && err.id != CAIRN_E_KILLED)
      cairn__error_locate(&err, x.vm, x.disk);
    run->error = err;
  }
}

/* ---- the dry run --------------------------------------------------------- */

/* Data that nobody wants. */
static int skip(struct import *x, uint64_t n, struct cairn_error *err)
{
  while (n > 0) {
    size_t part = (size_t)WINDOW_BLOCKS * CAIRN__BLOCK;

    if (part > n)
      part = (size_t)n;
    if (cairn__rbd_data(&x->reader, x->buf, part, err) != 0)
      return -1;
    n -= part;
  }
  return 0;
}

/* Reads all of a file's stream; a pipe's is left to the run. */
static int plan_stream(struct import *x, struct cairn_error *err)
{
  struct cairn__rbd_record r;
  int found;

  x->buf = cairn__malloc_aligned((size_t)WINDOW_BLOCKS * CAIRN__BLOCK);
  if (!x->buf)
    return cairn__fail_memory(err);
  while ((found = cairn__rbd_next(&x->reader, &r, err)) > 0) {
    if (!r.is_zero && skip(x, r.length, err) != 0)
      return -1;
    x->records++;
    *(r.is_zero ? &x->zero_bytes : &x->data_bytes) += r.length;
  }
  return found;
}

static int plan_target(struct import *x, struct cairn_error *err)
{
  const char *directory = text_of(x->spec, "directory");
  int fd = x->io->openat(x->io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  int result;

  if (fd < 0 && errno == ENOENT && !text_of(x->spec, "base") &&
      !x->reader.header.has_from)
    return 0; /* it will be made */
  if (fd < 0)
    return cairn__fail_errno(err, errno, directory, -1,
                             "cannot open the export directory \"%s\"",
                             directory);
  result = cairn__publication_check_target(x->io, fd, directory, err);
  (void)x->io->close(x->io, fd);
  return result == 0 ? choose_base(x, directory, err) : -1;
}

static int is_file(const struct import *x)
{
  const char *path = text_of(x->spec, "input");
  struct stat st;

  /* what cannot be looked at cannot be opened either, and that tells why */
  return path && (x->io->fstatat(x->io, AT_FDCWD, path, &st, 0) != 0 ||
                  S_ISREG(st.st_mode));
}

static int do_plan(struct import *x, json_t **plan, struct cairn_error *err)
{
  int is_known = is_file(x);

  if (is_known && (open_stream(x, err) != 0 || plan_target(x, err) != 0 ||
                   plan_stream(x, err) != 0))
    return -1;
  *plan = report(x);
  if (!*plan ||
      json_object_set_new(*plan, "kind", json_string("import")) != 0 ||
      json_object_set(*plan, "directory",
                      json_object_get(x->spec, "directory")) != 0 ||
      json_object_set_new(*plan, "BaseReferencePointGroupId",
                          base_id(x) ? json_string(base_id(x)) : json_null()) !=
          0 ||
      json_object_set_new(*plan, "is_read", json_boolean(is_known)) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int import_plan(const struct cairn_io *io, const json_t *spec,
                       json_t **plan, struct cairn_error *err)
{
  struct cairn__run *run = cairn__run_new(NULL);
  struct import x;
  int result;

  *plan = NULL;
  if (!run)
    return cairn__fail_memory(err);
  run->io = io;
  import_open(&x, run, spec);
  cairn__run_enter(run);
  result = do_plan(&x, plan, err);
  cairn__run_leave(run);
  import_close(&x, 0);
  cairn__run_release(run);
  if (result != 0) {
    json_decref(*plan);
    *plan = NULL;
  }
  return result;
}

const struct cairn__kind cairn__kind_import = {.name = "import",
                                               .check = import_check,
                                               .main = import_main,
                                               .plan = import_plan};
