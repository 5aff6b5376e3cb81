/* base.c: see base.h. */
#include "base.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "error.h"
#include "manifest.h"
#include "memory.h"

#define ID_LENGTH 36

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

size_t cairn__qemu_depth(size_t directory_length, size_t file_name_length)
{
  /* DIR/<id>/<vm>/, then ../../<id>/<vm>/ for each level below */
  size_t top = directory_length + 3 + (size_t)2 * ID_LENGTH + file_name_length;
  size_t level = strlen("../../") + 2 + (size_t)2 * ID_LENGTH;

  return top > PATH_MAX - 1 ? 0 : 1 + (PATH_MAX - 1 - top) / level;
}

/* ---- opening ------------------------------------------------------------- */

static int is_named(const char *wanted, const char *what)
{
  return strcmp(wanted, what) == 0;
}

static int is_before(const struct cairn__bases *b, const json_t *manifest)
{
  return b->o.before == 0 ||
         json_integer_value(json_object_get(manifest, "sequence")) <
             b->o.before;
}

/* Keeps the manifests of our collection. */
static int keep_points(struct cairn__bases *b, struct cairn_error *err)
{
  json_t *all, *p;
  size_t i;
  int result = 0;

  if (cairn__points_read(b->o.io, b->o.directory, &all, err) != 0)
    return -1;
  b->points = json_array();
  if (!b->points)
    result = cairn__fail_memory(err);
  json_array_foreach(all, i, p)
  {
    const char *id = text_of(p, "CollectionId");

    if (text_of(p, "error") && is_named(b->o.wanted, "latest"))
      cairn__run_warn(b->o.run,
                      "reference point %s cannot be read, so nothing is based "
                      "on it: %s",
                      text_of(p, "ReferencePointGroupId"), text_of(p, "error"));
    if (result != 0 || !id || strcmp(id, b->o.collection) != 0 ||
        !is_before(b, p))
      continue;
    if (json_array_append(b->points, p) != 0)
      result = cairn__fail_memory(err);
    b->sequence = json_integer_value(json_object_get(p, "sequence"));
  }
  json_decref(all);
  return result;
}

static int check_depth_limit(struct cairn__bases *b, struct cairn_error *err)
{
  size_t most = cairn__qemu_depth(strlen(b->real_path), strlen("x.qcow2"));

  if (b->o.depth_limit <= most)
    return 0;
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "export.depth_limit is %u; QEMU opens at most %zu levels "
                     "below \"%s\"",
                     b->o.depth_limit, most, b->o.directory);
}

/* The base that was asked for by its id. */
static int find_wanted(struct cairn__bases *b, struct cairn_error *err)
{
  struct cairn__point *p;
  const char *collection;
  char id[37];

  if (cairn__exports_find(&b->x, b->o.wanted, &p, err) != 0)
    return -1;
  snprintf(id, sizeof id, "%s", cairn__point_id(p));
  cairn__point_close(b->o.io, p);
  if (cairn__exports_base(&b->x, id, &b->point, err) != 0)
    return -1;
  collection = text_of(b->point->manifest, "CollectionId");
  if (strcmp(collection, b->o.collection) == 0 &&
      !is_before(b, b->point->manifest))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "export.base: the reference point %s is newer than the "
                       "one that is exported",
                       id);
  if (strcmp(collection, b->o.collection) == 0) {
    json_int_t n =
        json_integer_value(json_object_get(b->point->manifest, "sequence"));

    /* read again, it may be readable only now; what is based on it is newer */
    if (b->sequence < n)
      b->sequence = n;
    return 0;
  }
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "export.base: the reference point %s is of collection %s, "
                     "not of %s",
                     id, collection, b->o.collection);
}

int cairn__bases_open(const struct cairn__bases_options *o,
                      struct cairn__bases *out, struct cairn_error *err)
{
  *out = (struct cairn__bases){.o = *o, .x = {.io = o->io, .fd = -1}};
  out->real_path = realpath(o->directory, NULL);
  if (!out->real_path)
    return cairn__fail_errno(err, errno, o->directory, -1,
                             "cannot find out where \"%s\" is", o->directory);
  if (check_depth_limit(out, err) != 0 || keep_points(out, err) != 0)
    return -1;
  if (is_named(o->wanted, "none"))
    return 0;
  if (cairn__exports_open(o->io, o->directory, &out->x, err) != 0)
    return -1;
  return is_named(o->wanted, "latest") ? 0 : find_wanted(out, err);
}

const json_t *cairn__bases_reference(const struct cairn__bases *b)
{
  size_t n = json_array_size(b->points);

  if (b->point)
    return b->point->manifest;
  return n > 0 && !is_named(b->o.wanted, "none")
             ? json_array_get(b->points, n - 1)
             : NULL;
}

void cairn__bases_close(struct cairn__bases *b)
{
  if (b->x.io)
    cairn__exports_close(&b->x);
  json_decref(b->points);
  free(b->real_path);
  explicit_bzero(&b->digester, sizeof b->digester);
  memset(b, 0, sizeof *b);
  b->x.fd = -1;
}

void cairn__base_free(struct cairn__base *base)
{
  cairn__free(base->backing_name);
  cairn__free(base->reason);
  memset(base, 0, sizeof *base);
}

/* ---- whether a point will do --------------------------------------------- */

/* Looking at one candidate. What is wrong with the candidate is in `why`. */
struct look {
  struct cairn__bases *b;
  const struct cairn__point *point;
  const json_t *image;
  const char *vm, *disk;
  struct cairn__digester digester;
  size_t depth;
  int is_full; /* nothing is wrong but that there is no room above it */
  struct cairn_error why;
};

__attribute__((format(printf, 3, 4))) static int unfit(struct look *l, int id,
                                                       const char *fmt, ...)
{
  char text[CAIRN_MESSAGE_MAX];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return cairn__fail(&l->why, id, "%s", text);
}

static int check_name(struct look *l)
{
  const char *slash = strrchr(l->point->path, '/');
  const char *name = slash ? slash + 1 : l->point->path;

  if (strcmp(name, cairn__point_id(l->point)) == 0)
    return 0;
  return unfit(l, CAIRN_E_BAD_PATH,
               "the directory of reference point %s is named \"%s\", so that "
               "QEMU would not find it; give it back its name",
               cairn__point_id(l->point), name);
}

/* Digests can be compared only where they were made alike. */
static int check_digester(struct look *l)
{
  struct cairn__bases *b = l->b;
  const char *name = text_of(l->point->manifest, "algorithm");
  struct cairn__digester *d = &l->digester;
  int algorithm;

  if (cairn__digest_algorithm_parse(name, &algorithm, &l->why) != 0)
    return -1;
  if (algorithm != b->o.algorithm)
    return unfit(l, CAIRN_E_INVALID_ARGUMENT,
                 "reference point %s has digests of %s, this export is to have "
                 "%s",
                 cairn__point_id(l->point), name,
                 cairn__digest_algorithm_name(b->o.algorithm));
  if (cairn__point_digester(b->o.io, l->point, d, &l->why) != 0)
    return -1;
  if (b->has_key &&
      memcmp(d->secret, b->digester.secret, sizeof d->secret) != 0)
    return unfit(l, CAIRN_E_INVALID_ARGUMENT,
                 "the digests of reference point %s are keyed by another "
                 "secret than those of the other disks' base",
                 cairn__point_id(l->point));
  return 0;
}

/* Every image down to the full can be opened and is what its manifest says. */
static int check_chain(struct look *l)
{
  struct cairn__layer **layers = NULL;

  if (cairn__point_open_chain(&l->b->x, l->point, l->image, &layers, &l->depth,
                              &l->why) != 0)
    return -1;
  for (size_t i = 0; i < l->depth; i++)
    cairn__layer_close(layers[i]);
  cairn__free(layers);
  return 0;
}

static int check_depth(struct look *l)
{
  const struct cairn__bases *b = l->b;
  size_t limit = b->o.depth_limit ? b->o.depth_limit : CAIRN__DEPTH_DEFAULT;
  size_t most = cairn__qemu_depth(strlen(b->real_path),
                                  strlen(l->disk) + strlen(".qcow2"));

  if (limit > most)
    limit = most;
  if (l->depth < limit)
    return 0;
  l->is_full = 1;
  return unfit(l, CAIRN_E_OUT_OF_RANGE,
               "the chain below reference point %s has %zu levels, and the "
               "limit is %zu",
               cairn__point_id(l->point), l->depth, limit);
}

/* The map decides what is left out, so it has to be the right one. */
static int check_map(struct look *l)
{
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  struct cairn__map *map;
  int result;

  if (cairn__point_open_map(l->b->o.io, l->point, l->image, &l->digester, &map,
                            &l->why) != 0)
    return -1;
  result = cairn__digest_parse(&l->digester, text_of(l->image, "content"),
                               wanted, &l->why);
  if (result == 0)
    result = cairn__map_root(map, root, &l->why);
  if (result == 0 && memcmp(root, wanted, l->digester.size) != 0)
    result = unfit(l, CAIRN_E_EXPORT_CORRUPT,
                   "%s/%s: the digest map is not the one that the manifest "
                   "speaks of",
                   l->point->path, text_of(l->image, "path"));
  cairn__map_close(map);
  return result;
}

static int is_later(const struct timespec *a, const struct timespec *b)
{
  return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec
                                : a->tv_nsec > b->tv_nsec;
}

/* The content of one image of the chain against its digests. */
static int prove_image(struct look *l, const struct cairn__point *p,
                       const json_t *image)
{
  struct cairn__bases *b = l->b;
  struct cairn__digester digester;
  struct cairn__content_check c = {
      .run = b->o.run, .point = p, .digester = &digester, .file = image};
  const char *base = text_of(image, "base");
  int result;

  if (cairn__point_digester(b->o.io, p, &digester, &l->why) != 0 ||
      (base && cairn__exports_base(&b->x, base, &c.base, &l->why) != 0))
    return -1;
  c.found.array = json_array();
  result = c.found.array ? cairn__content_check_file(&c, &l->why)
                         : cairn__fail_memory(&l->why);
  if (result == 0 && (c.found.count > 0 || c.found.has_lost))
    result = unfit(l, CAIRN_E_EXPORT_CORRUPT,
                   "%s/%s was changed after it was written: %s", p->path,
                   text_of(image, "path"),
                   json_string_value(json_object_get(
                       json_array_get(c.found.array, 0), "what")));
  json_decref(c.found.array);
  return result;
}

/* A point is complete when its manifest is written. A file that was written to
 * later is not what it was, unless it was copied here: it is read to see. */
static int check_touched(struct look *l, const struct cairn__point *p,
                         const json_t *image)
{
  const struct cairn_io *io = l->b->o.io;
  struct stat manifest, st;
  int fd;

  if (io->fstatat(io, p->fd, CAIRN__MANIFEST_NAME, &manifest,
                  AT_SYMLINK_NOFOLLOW) != 0)
    return cairn__fail_errno(&l->why, errno, p->path, -1,
                             "cannot look at the manifest of \"%s\"", p->path);
  if (cairn__open_file(io, p, text_of(image, "path"), &fd, &st, &l->why) != 0)
    return -1;
  (void)io->close(io, fd);
  if (!is_later(&st.st_mtim, &manifest.st_mtim))
    return 0;
  return prove_image(l, p, image);
}

static int check_all_touched(struct look *l)
{
  const struct cairn__point *p = l->point;
  const json_t *image = l->image;

  for (;;) {
    const char *base = text_of(image, "base");

    if (check_touched(l, p, image) != 0)
      return -1;
    if (!base)
      return 0;
    if (cairn__exports_base(&l->b->x, base, &p, &l->why) != 0)
      return -1;
    image = cairn__point_image(p, l->vm, l->disk);
    if (!image)
      return unfit(l, CAIRN_E_EXPORT_CORRUPT, "%s lacks the disk", p->path);
  }
}

/* 0 it will do, 1 it will not (l->why), -1 err */
static int look_at(struct look *l, struct cairn_error *err)
{
  cairn__error_clear(&l->why);
  if (check_name(l) == 0 && check_digester(l) == 0 && check_chain(l) == 0 &&
      check_depth(l) == 0 && check_map(l) == 0 && check_all_touched(l) == 0)
    return 0;
  if (l->why.id != CAIRN_E_NO_MEMORY && l->why.id != CAIRN_E_TERMINATED &&
      l->why.id != CAIRN_E_KILLED)
    return 1;
  if (err)
    *err = l->why;
  return -1;
}

/* ---- choosing ------------------------------------------------------------ */

static int give_reason(struct cairn__base *out, const char *text,
                       int is_notable, struct cairn_error *err)
{
  char shown[CAIRN_MESSAGE_MAX];

  /* of several the first, which is about the newest point */
  if (out->reason)
    return 0;
  out->reason = cairn__strdup(cairn__printable(text, shown, sizeof shown));
  out->is_notable = is_notable;
  return out->reason ? 0 : cairn__fail_memory(err);
}

static int take(const struct look *l, struct cairn__base *out,
                struct cairn_error *err)
{
  struct cairn__bases *b = l->b;

  out->point = l->point;
  out->image = l->image;
  out->depth = l->depth;
  out->backing_name = cairn__format("../../%s/%s", cairn__point_id(l->point),
                                    text_of(l->image, "path"));
  if (!out->backing_name)
    return cairn__fail_memory(err);
  b->digester = l->digester;
  b->has_key = 1;
  return 0;
}

enum { UNFIT = 0, TAKEN = 1, CHAIN_FULL = 2 };

/* The disk in a point; -1 err. Unless it is TAKEN a reason is given. */
static int try_point(struct cairn__bases *b, const struct cairn__point *p,
                     const char *vm, const char *disk, struct cairn__base *out,
                     struct cairn_error *err)
{
  struct look l = {.b = b,
                   .point = p,
                   .image = cairn__point_image(p, vm, disk),
                   .vm = vm,
                   .disk = disk};
  int result = look_at(&l, err);

  if (result == 0)
    return take(&l, out, err) == 0 ? TAKEN : -1;
  if (result < 0)
    return -1;
  /* An id is a demand; that a chain is long enough is no fault of its. */
  if (b->point && !l.is_full) {
    if (err)
      *err = l.why;
    return -1;
  }
  if (give_reason(out, l.why.message, 1, err) != 0)
    return -1;
  return l.is_full ? CHAIN_FULL : UNFIT;
}

static int has_disk(const json_t *manifest, const char *vm, const char *disk)
{
  const struct cairn__point p = {.manifest = (json_t *)manifest};

  return cairn__point_image(&p, vm, disk) != NULL;
}

static int choose_latest(struct cairn__bases *b, const char *vm,
                         const char *disk, struct cairn__base *out,
                         struct cairn_error *err)
{
  size_t n = json_array_size(b->points);

  while (n-- > 0) {
    const json_t *manifest = json_array_get(b->points, n);
    const struct cairn__point *p;
    struct cairn_error why;
    int found;

    if (!has_disk(manifest, vm, disk))
      continue;
    cairn__error_clear(&why);
    if (cairn__exports_base(&b->x, text_of(manifest, "ReferencePointGroupId"),
                            &p, &why) != 0) {
      if (why.id == CAIRN_E_NO_MEMORY) {
        if (err)
          *err = why;
        return -1;
      }
      if (give_reason(out, why.message, 1, err) != 0)
        return -1;
      continue;
    }
    found = try_point(b, p, vm, disk, out, err);
    /* A long chain is no damage: what lies further back is not better. A base
     * that is not the newest keeps the reason for it. */
    if (found != UNFIT)
      return found < 0 ? -1 : 0;
  }
  if (out->reason || json_array_size(b->points) == 0)
    return 0;
  return give_reason(out, "no earlier point has this disk", 0, err);
}

int cairn__bases_choose(struct cairn__bases *b, const char *vm,
                        const char *disk, struct cairn__base *out,
                        struct cairn_error *err)
{
  char text[200];
  int found;

  memset(out, 0, sizeof *out);
  if (is_named(b->o.wanted, "none"))
    return 0;
  if (!b->point)
    return choose_latest(b, vm, disk, out, err);
  if (!cairn__point_image(b->point, vm, disk)) {
    snprintf(text, sizeof text, "reference point %s does not have this disk",
             cairn__point_id(b->point));
    return give_reason(out, text, 0, err);
  }
  found = try_point(b, b->point, vm, disk, out, err);
  return found < 0 ? -1 : 0;
}
