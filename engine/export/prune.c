/* prune.c: the kind "prune": removes the points that no rule keeps.
 *
 *   look at every point: what is damaged is left alone, with what it names
 *   ask the rules (keep.h) what stays
 *   oldest first, merge what stays past what goes, so that nothing that stays
 *   needs it; a point that cannot be merged keeps what it is based on
 *   newest first, remove what goes
 *
 * Every step leaves a directory whose points are all whole, so it may end at
 * any of them: by an error, by a request, or with the process. What has not
 * been removed by then is removed by the next prune. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "content.h"
#include "error.h"
#include "keep.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "merge_point.h"
#include "spec.h"

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

/* ---- the specification --------------------------------------------------- */

static const struct cairn__spec_key keys[] = {
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"collection", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"keep", CAIRN__SPEC_OBJECT, 0, NULL, NULL}};

static int check_spec(json_t *spec, struct cairn_error *err)
{
  char id[37], shown[200];
  const char *collection;

  if (cairn__spec_check(spec, "prune", keys, sizeof keys / sizeof *keys, err) !=
      0)
    return -1;
  collection = text_of(spec, "collection");
  if (collection && cairn__guid_canonical(collection, id) != 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "prune: \"collection\" must be a CollectionId, a GUID, "
                       "not \"%s\"",
                       cairn__printable(collection, shown, sizeof shown));
  if (!json_object_get(spec, "keep"))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "prune: \"keep\" is missing; without a rule everything "
                       "would go");
  return cairn__keep_check(json_object_get(spec, "keep"), err);
}

/* ---- the points ---------------------------------------------------------- */

struct item {
  json_t *summary;  /* as cairn__points_read() has it */
  const char *id;   /* ReferencePointGroupId, or a damaged one's name */
  const char *name; /* of its directory */
  char *damage;     /* what is wrong with it, or NULL */
  json_t *reasons;  /* to keep it; none = it goes */
  json_t *bases;    /* ids that its disks are based on: a set */
  uint64_t bytes;   /* on disk */
  int is_ruled;     /* the rules apply to it */
  int is_removed;   /* done */
  int is_refused;   /* to be merged, and cannot be */
};

struct prune {
  struct cairn__run *run; /* NULL: a dry run */
  const struct cairn_io *io;
  const json_t *spec;
  const char *directory;
  struct cairn__publication publication;
  struct cairn__exports x;
  json_t *points;
  struct item *items; /* by sequence, damaged ones last */
  size_t count;
  json_t *merged, *removed, *refused;
  uint64_t freed, written;
  int64_t used, used_most;  /* in a dry run: by the merges so far */
  int is_full;              /* no space: no further merge is tried */
  struct cairn_error error; /* the first refusal */
};

static int gate(const struct prune *p, struct cairn_error *err)
{
  return p->run ? cairn__run_gate(p->run, err) : 0;
}

static int goes(const struct item *i)
{
  return json_array_size(i->reasons) == 0 && !i->is_removed;
}

static struct item *item_of(const struct prune *p, const char *id)
{
  for (size_t i = 0; i < p->count; i++) {
    if (strcmp(p->items[i].id, id) == 0)
      return &p->items[i];
  }
  return NULL;
}

__attribute__((format(printf, 3, 4))) static int
keep_item(struct item *i, struct cairn_error *err, const char *fmt, ...)
{
  char reason[200];
  va_list args;

  va_start(args, fmt);
  vsnprintf(reason, sizeof reason, fmt, args);
  va_end(args);
  return json_array_append_new(i->reasons, json_string(reason)) == 0
             ? 0
             : cairn__fail_memory(err);
}

static int set_damage(struct item *i, const char *what, const char *code,
                      struct cairn_error *err)
{
  i->damage = cairn__strdup(what);
  if (!i->damage)
    return cairn__fail_memory(err);
  return keep_item(i, err, "%s",
                   strcmp(code, "version") == 0 ? "of a newer version"
                                                : "damaged");
}

/* What its disks are based on, and the space of its files. */
static int look_at_files(struct prune *p, struct item *item,
                         struct cairn__point *point, struct cairn_error *err)
{
  const json_t *files = json_object_get(point->manifest, "files");
  json_t *file;
  size_t i;

  json_array_foreach(files, i, file)
  {
    const char *path = text_of(file, "path"), *base = text_of(file, "base");
    struct stat st;
    int fd;

    if (gate(p, err) != 0)
      return -1;
    if (base && json_object_set_new(item->bases, base, json_true()) != 0)
      return cairn__fail_memory(err);
    if (cairn__open_file(p->io, point, path, &fd, &st, err) != 0)
      return -1;
    (void)p->io->close(p->io, fd);
    item->bytes += (uint64_t)st.st_blocks * 512;
    if (st.st_size != (off_t)json_integer_value(json_object_get(file, "size")))
      return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                         "%s/%s: %lld bytes, not what the manifest says",
                         point->path, path, (long long)st.st_size);
  }
  return 0;
}

/* Headers of images and maps, and the chain below. */
static int look_at_disks(struct prune *p, struct cairn__point *point,
                         struct cairn_error *err)
{
  struct cairn__digester d;
  json_t *file;
  size_t i;
  int result = cairn__point_digester(p->io, point, &d, err);

  json_array_foreach(json_object_get(point->manifest, "files"), i, file)
  {
    struct cairn__layer *layer;
    struct cairn__map *map;

    if (result != 0 || !json_object_get(file, "content"))
      continue;
    result = cairn__point_open_chain(&p->x, point, file, NULL, NULL, err);
    if (result == 0)
      result = cairn__point_open_layer(&p->x, point, file, &layer, err);
    if (result == 0) {
      cairn__layer_close(layer);
      result = cairn__point_open_map(p->io, point, file, &d, &map, err);
    }
    if (result == 0)
      cairn__map_close(map);
  }
  explicit_bzero(&d, sizeof d);
  return result;
}

/* What can be found out without reading content. Damage is no error. */
static int look_at(struct prune *p, struct item *item, struct cairn_error *err)
{
  struct cairn__point *point;
  struct cairn_error why;
  int result;

  if (item->damage)
    return 0;
  cairn__error_clear(&why);
  result = cairn__exports_point(&p->x, item->name, &point, &why);
  if (result == 0) {
    result = look_at_files(p, item, point, &why);
    if (result == 0)
      result = look_at_disks(p, point, &why);
    cairn__point_close(p->io, point);
  }
  if (result == 0)
    return 0;
  if (!cairn__error_is_damage(&why)) {
    if (err)
      *err = why;
    return -1;
  }
  return set_damage(item, why.message, "", err);
}

static int add_item(struct prune *p, json_t *summary, struct cairn_error *err)
{
  struct item *item = &p->items[p->count];
  const char *slash = strrchr(text_of(summary, "directory"), '/');
  const char *error = text_of(summary, "error");
  struct item *other;

  item->summary = summary;
  item->id = text_of(summary, "ReferencePointGroupId");
  item->name = slash + 1;
  item->reasons = json_array();
  item->bases = json_object();
  other = item_of(p, item->id);
  p->count++;
  if (!item->reasons || !item->bases)
    return cairn__fail_memory(err);
  if (error)
    return set_damage(item, error, text_of(summary, "error_code"), err);
  if (!other || other->damage)
    return 0;
  /* which of two copies others are based on cannot be told */
  return keep_item(item, err, "another directory holds the same point") != 0 ||
                 keep_item(other, err,
                           "another directory holds the same point") != 0
             ? -1
             : 0;
}

static int read_points(struct prune *p, struct cairn_error *err)
{
  json_t *summary;
  size_t i;

  if (cairn__points_read(p->io, p->directory, &p->points, err) != 0)
    return -1;
  p->items = cairn__calloc(json_array_size(p->points) + 1, sizeof *p->items);
  if (!p->items)
    return cairn__fail_memory(err);
  json_array_foreach(p->points, i, summary)
  {
    if (add_item(p, summary, err) != 0)
      return -1;
  }
  if (cairn__exports_open(p->io, p->directory, &p->x, err) != 0)
    return -1;
  for (i = 0; i < p->count; i++) {
    if (look_at(p, &p->items[i], err) != 0)
      return -1;
  }
  cairn__exports_forget_bases(&p->x);
  return 0;
}

/* ---- what a damaged point needs ------------------------------------------ */

/* A damaged point cannot be merged, so all that its manifest names stays, for
 * whoever wants to save what can be saved: a manifest that cannot be read any
 * more may still name points, in what is left of it. */
static int keep_named(struct prune *p, const struct item *damaged,
                      const char *text, struct cairn_error *err)
{
  for (size_t i = 0; i < p->count; i++) {
    struct item *item = &p->items[i];

    if (!item->damage && strstr(text, item->id) &&
        keep_item(item, err, "named by the damaged point %s", damaged->name) !=
            0)
      return -1;
  }
  return 0;
}

/* NULL without err: there is none. */
static char *read_manifest_text(const struct prune *p,
                                const struct item *damaged,
                                struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char path[PATH_MAX], *text = NULL;
  struct stat st;
  ssize_t n = -1;
  int fd;

  snprintf(path, sizeof path, "%s/" CAIRN__MANIFEST_NAME, damaged->name);
  fd = io->openat(io, p->x.fd, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (fd < 0 && (errno == ENOENT || errno == ELOOP))
    return NULL;
  if (fd >= 0 && io->fstat(io, fd, &st) == 0)
    text = cairn__calloc(1, CAIRN__MANIFEST_MAX < st.st_size
                                ? (size_t)CAIRN__MANIFEST_MAX + 1
                                : (size_t)st.st_size + 1);
  if (text)
    n = cairn__io_read_full(io, fd, text,
                            CAIRN__MANIFEST_MAX < st.st_size
                                ? (size_t)CAIRN__MANIFEST_MAX
                                : (size_t)st.st_size,
                            0);
  if (n < 0) {
    cairn__fail_errno(err, errno, text_of(damaged->summary, "directory"), -1,
                      "cannot read %s/" CAIRN__MANIFEST_NAME
                      ", so what it needs is not known",
                      text_of(damaged->summary, "directory"));
    cairn__free(text);
    text = NULL;
  }
  if (fd >= 0)
    (void)io->close(io, fd);
  for (ssize_t i = 0; text && i < n; i++) {
    if (text[i] == '\0')
      text[i] = ' ';
  }
  return text;
}

static int keep_what_it_names(struct prune *p, const struct item *damaged,
                              struct cairn_error *err)
{
  struct cairn_error why;
  char *text;
  int result = 0;

  cairn__error_clear(&why);
  text = read_manifest_text(p, damaged, &why);
  if (text)
    result = keep_named(p, damaged, text, err);
  cairn__free(text);
  if (why.id == CAIRN_OK)
    return result;
  if (err)
    *err = why;
  return -1;
}

/* ---- the rules ----------------------------------------------------------- */

static int is_chosen(const struct prune *p, const struct item *i)
{
  const char *wanted = text_of(p->spec, "collection");
  char id[37];

  return !wanted || (cairn__guid_canonical(wanted, id) == 0 &&
                     strcmp(id, text_of(i->summary, "CollectionId")) == 0);
}

/* Whether "ids" names the point; *used: the names that found one. */
static int is_named(const struct prune *p, const struct item *i, json_t *used)
{
  const json_t *ids = json_object_get(json_object_get(p->spec, "keep"), "ids");
  json_t *name;
  size_t k;
  int found = 0;

  json_array_foreach(ids, k, name)
  {
    const char *text = json_string_value(name);
    char id[37];

    if (cairn__guid_canonical(text, id) == 0
            ? strcmp(id, i->id) != 0
            : strlen(text) < 4 || strncasecmp(text, i->id, strlen(text)) != 0)
      continue;
    (void)json_object_set_new(used, text, json_true());
    found = 1;
  }
  return found;
}

static int check_ids(const struct prune *p, struct cairn_error *err)
{
  const json_t *ids = json_object_get(json_object_get(p->spec, "keep"), "ids");
  json_t *used = json_object(), *name;
  char shown[200];
  size_t k;
  int result = used ? 0 : cairn__fail_memory(err);

  for (size_t i = 0; i < p->count && used; i++)
    (void)is_named(p, &p->items[i], used);
  json_array_foreach(ids, k, name)
  {
    const char *text = json_string_value(name);

    if (result == 0 && !json_object_get(used, text))
      result = cairn__fail(err, CAIRN_E_NOT_FOUND,
                           "prune: \"ids\" names \"%s\", and %s holds no such "
                           "reference point",
                           cairn__printable(text, shown, sizeof shown),
                           p->directory);
  }
  json_decref(used);
  return result;
}

/* The rules on the points of one collection, which are marked. */
static int apply_rules(struct prune *p, const char *collection,
                       struct cairn_error *err)
{
  struct cairn__keep_point *points =
      cairn__calloc(p->count + 1, sizeof *points);
  size_t n = 0;
  int result;

  if (!points)
    return cairn__fail_memory(err);
  for (size_t i = p->count; i-- > 0;) {
    struct item *item = &p->items[i];

    if (item->damage || item_of(p, item->id) != item ||
        strcmp(text_of(item->summary, "CollectionId"), collection) != 0)
      continue;
    item->is_ruled = 1;
    points[n++] = (struct cairn__keep_point){
        .time = text_of(item->summary, "time"),
        .unix_us =
            json_integer_value(json_object_get(item->summary, "unix_us")),
        .is_named = is_named(p, item, NULL),
        .reasons = item->reasons};
  }
  result = cairn__keep_apply(json_object_get(p->spec, "keep"), points, n, err);
  cairn__free(points);
  return result;
}

static int choose(struct prune *p, struct cairn_error *err)
{
  int found = 0;

  if (check_ids(p, err) != 0)
    return -1;
  for (size_t i = 0; i < p->count; i++) {
    struct item *item = &p->items[i];
    int result = 0;

    if (item->damage)
      result = keep_what_it_names(p, item, err);
    else if (!is_chosen(p, item))
      result = keep_item(item, err, "of another collection");
    else if (!item->is_ruled)
      result = apply_rules(p, text_of(item->summary, "CollectionId"), err);
    found += !item->damage && is_chosen(p, item);
    if (result != 0)
      return -1;
  }
  if (found == 0 && text_of(p->spec, "collection"))
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "%s holds no reference point of the collection %s",
                       p->directory, text_of(p->spec, "collection"));
  return 0;
}

/* ---- merging ------------------------------------------------------------- */

static int is_staying(const void *context, const char *id)
{
  const struct item *item = item_of(context, id);

  return item && !goes(item) && !item->is_removed;
}

static int has_base_that_goes(const struct prune *p, const struct item *item)
{
  const char *id;
  json_t *v;

  json_object_foreach(item->bases, id, v)
  {
    const struct item *base = item_of(p, id);

    if (base && goes(base))
      return 1;
  }
  return 0;
}

/* What the disks are based on now. */
static int settle_bases(struct item *item, const struct cairn__merge *m,
                        struct cairn_error *err)
{
  json_object_clear(item->bases);
  for (size_t i = 0; i < m->disk_count; i++) {
    const struct cairn__merge_disk *d = &m->disks[i];
    const char *base = d->is_kept    ? text_of(d->image, "base")
                       : d->base > 0 ? cairn__point_id(d->links[d->base].point)
                                     : NULL;

    if (base && json_object_set_new(item->bases, base, json_true()) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

static int note_merged(struct prune *p, struct item *item,
                       const struct cairn__merge *m, struct cairn_error *err)
{
  json_t *entry = json_pack(
      "{s:s, s:O, s:s, s:I, s:o}", "ReferencePointGroupId", item->id,
      "sequence", json_object_get(item->summary, "sequence"), "directory",
      text_of(item->summary, "directory"), "bytes_to_write",
      (json_int_t)m->target_bytes, "disks", cairn__merge_report(m));

  return json_array_append_new(p->merged, entry) == 0 ? 0
                                                      : cairn__fail_memory(err);
}

static uint64_t written_before(const struct cairn__merge *m)
{
  uint64_t bytes = 0;

  for (size_t i = 0; i < m->disk_count; i++) {
    if (!m->disks[i].is_kept)
      bytes += (uint64_t)json_integer_value(
          json_object_get(m->disks[i].image, "size"));
  }
  return bytes;
}

/* In a dry run: what the merge takes while old and new are both there. */
static void count_space(struct prune *p, const struct cairn__merge *m)
{
  int64_t most = p->used + (int64_t)m->target_bytes;

  if (most > p->used_most)
    p->used_most = most;
  p->used = most - (int64_t)written_before(m);
  p->written += m->target_bytes;
}

static int replace(struct prune *p, struct cairn__merge *m,
                   struct cairn_error *err)
{
  struct cairn__publication *pub = &p->publication;

  if (cairn__publication_renew(pub, err) != 0 ||
      cairn__publication_check_exchange(pub, err) != 0)
    return -1;
  if (cairn__merge_write(m, pub, err) != 0 || gate(p, err) != 0)
    return -1;
  if (cairn__publication_exchange(pub, p->run, cairn__merge_name(m), m->p->fd,
                                  err) != 0)
    return -1;
  for (size_t i = 0; i < m->disk_count; i++)
    p->written += (uint64_t)json_integer_value(
        json_object_get(m->disks[i].entry, "size"));
  return 0;
}

/* Nothing is made from what is known to be damaged. */
static int check_sources(const struct prune *p, const struct cairn__merge *m,
                         struct cairn_error *err)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    const struct cairn__merge_disk *d = &m->disks[i];

    for (size_t k = 1; !d->is_kept && k < d->depth; k++) {
      const struct item *from = item_of(p, cairn__point_id(d->links[k].point));

      if (from && from->damage)
        return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                           "%s, which it is based on, is damaged: %.300s",
                           text_of(from->summary, "directory"), from->damage);
    }
  }
  return 0;
}

static int merge_item(struct prune *p, struct item *item,
                      struct cairn_error *err)
{
  struct cairn__merge m = {.io = p->io, .run = p->run, .x = &p->x};
  struct cairn__point *point;
  size_t written;
  int result = cairn__exports_point(&p->x, item->name, &point, err);

  if (result == 0)
    result = cairn__merge_open(&m, point, err);
  if (result == 0)
    result = cairn__merge_choose(&m, is_staying, p, 0, &written, err);
  if (result == 0)
    result = check_sources(p, &m, err);
  if (result == 0)
    result = cairn__merge_measure(&m, err);
  if (result == 0 && p->run)
    result = replace(p, &m, err);
  else if (result == 0)
    count_space(p, &m);
  if (result == 0)
    result = settle_bases(item, &m, err);
  if (result == 0)
    result = note_merged(p, item, &m, err);
  cairn__merge_close(&m);
  cairn__exports_forget_bases(&p->x);
  return result;
}

/* Errors after which nothing more is tried. */
static int ends_all(const struct cairn_error *why)
{
  return why->id == CAIRN_E_NO_MEMORY || why->id == CAIRN_E_TERMINATED ||
         why->id == CAIRN_E_KILLED;
}

static int note_refused(struct prune *p, struct item *item, const char *what,
                        const struct cairn_error *why, struct cairn_error *err)
{
  const struct cairn_error_info *info = cairn_error_info(why->id);

  item->is_refused = 1;
  if (p->error.id == CAIRN_OK) {
    p->error = *why;
    snprintf(p->error.message, sizeof p->error.message, "%s %s: %.300s", what,
             item->id, why->message);
  }
  return json_array_append_new(
             p->refused,
             json_pack("{s:s, s:s, s:s, s:s, s:s}", "ReferencePointGroupId",
                       item->id, "directory",
                       text_of(item->summary, "directory"), "what", what,
                       "error", why->message, "error_code",
                       info ? info->code : "internal")) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* It stays as it is, and so does what it is based on. */
static int refuse_merge(struct prune *p, struct item *item,
                        const struct cairn_error *why, struct cairn_error *err)
{
  const char *id;
  json_t *v;

  if (why->id == CAIRN_E_DISK_FULL)
    p->is_full = 1;
  if (note_refused(p, item, "cannot merge", why, err) != 0)
    return -1;
  json_object_foreach(item->bases, id, v)
  {
    struct item *base = item_of(p, id);

    if (base && goes(base) &&
        keep_item(base, err, "base of %s, which cannot be merged", item->id) !=
            0)
      return -1;
  }
  return 0;
}

/* One pass, oldest first; *is_again when a refusal kept a further point, whose
 * own base may go. */
static int merge_pass(struct prune *p, int *is_again, struct cairn_error *err)
{
  *is_again = 0;
  for (size_t i = 0; i < p->count; i++) {
    struct item *item = &p->items[i];
    struct cairn_error why;

    if (goes(item) || item->damage || !has_base_that_goes(p, item))
      continue;
    if (gate(p, err) != 0)
      return -1;
    cairn__error_clear(&why);
    if (p->is_full)
      cairn__fail(&why, CAIRN_E_DISK_FULL, "no space is left");
    else if (merge_item(p, item, &why) == 0)
      continue;
    if (ends_all(&why)) {
      if (err)
        *err = why;
      return -1;
    }
    if (refuse_merge(p, item, &why, err) != 0)
      return -1;
    *is_again = 1;
  }
  return 0;
}

static int merge_all(struct prune *p, struct cairn_error *err)
{
  int is_again = 1;

  while (is_again) {
    if (merge_pass(p, &is_again, err) != 0)
      return -1;
  }
  return 0;
}

/* ---- removing ------------------------------------------------------------ */

/* Whether something that is still there is based on it. */
static const struct item *user_of(const struct prune *p,
                                  const struct item *item)
{
  for (size_t i = 0; i < p->count; i++) {
    const struct item *other = &p->items[i];

    if (!other->is_removed && json_object_get(other->bases, item->id))
      return other;
  }
  return NULL;
}

static int note_removed(struct prune *p, struct item *item,
                        struct cairn_error *err)
{
  item->is_removed = 1;
  p->freed += item->bytes;
  return json_array_append_new(
             p->removed,
             json_pack("{s:s, s:O, s:s, s:s, s:I}", "ReferencePointGroupId",
                       item->id, "sequence",
                       json_object_get(item->summary, "sequence"), "time",
                       text_of(item->summary, "time"), "directory",
                       text_of(item->summary, "directory"), "bytes",
                       (json_int_t)item->bytes)) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* By sequence over all collections, so a base comes after what is on it. */
static int remove_all(struct prune *p, struct cairn_error *err)
{
  for (size_t i = p->count; i-- > 0;) {
    struct item *item = &p->items[i];
    const struct item *user;
    struct cairn_error why;

    if (!goes(item))
      continue;
    if (gate(p, err) != 0)
      return -1;
    cairn__error_clear(&why);
    user = user_of(p, item);
    if (user)
      cairn__fail(&why, CAIRN_E_INVALID_STATE,
                  "%s, which is left, is based "
                  "on it",
                  user->id);
    if (!user &&
        (!p->run || cairn__publication_remove(&p->publication, p->run,
                                              item->name, &why) == 0)) {
      if (note_removed(p, item, err) != 0)
        return -1;
      continue;
    }
    if (keep_item(item, err, "cannot be removed") != 0 ||
        note_refused(p, item, "cannot remove", &why, err) != 0)
      return -1;
  }
  return 0;
}

/* ---- the report ---------------------------------------------------------- */

static json_t *list_kept(const struct prune *p)
{
  json_t *kept = json_array();

  for (size_t i = 0; i < p->count; i++) {
    const struct item *item = &p->items[i];

    if (goes(item) || item->is_removed)
      continue;
    (void)json_array_append_new(
        kept, json_pack("{s:s, s:O?, s:s?, s:s?, s:s, s:O, s:s?}",
                        "ReferencePointGroupId", item->id, "sequence",
                        json_object_get(item->summary, "sequence"), "time",
                        text_of(item->summary, "time"), "CollectionId",
                        text_of(item->summary, "CollectionId"), "directory",
                        text_of(item->summary, "directory"), "reasons",
                        item->reasons, "damage", item->damage));
  }
  return kept;
}

/* What goes and is still there, after an early end. */
static json_t *list_left(const struct prune *p)
{
  json_t *left = json_array();

  for (size_t i = 0; i < p->count; i++) {
    if (goes(&p->items[i]))
      (void)json_array_append_new(left, json_string(p->items[i].id));
  }
  return left;
}

static json_t *make_report(const struct prune *p)
{
  return json_pack("{s:s, s:o, s:O, s:O, s:O, s:o, s:I, s:I}", "directory",
                   p->directory, "kept", list_kept(p), "merged", p->merged,
                   "removed", p->removed, "refused", p->refused, "left",
                   list_left(p), "bytes_written", (json_int_t)p->written,
                   "bytes_freed", (json_int_t)p->freed);
}

/* ---- the run and the dry run --------------------------------------------- */

static int prune_init(struct prune *p, struct cairn__run *run,
                      const struct cairn_io *io, const json_t *spec,
                      struct cairn_error *err)
{
  memset(p, 0, sizeof *p);
  p->run = run;
  p->io = io;
  p->spec = spec;
  p->directory = text_of(spec, "directory");
  p->x = (struct cairn__exports){.io = io, .fd = -1};
  p->merged = json_array();
  p->removed = json_array();
  p->refused = json_array();
  cairn__error_clear(&p->error);
  cairn__publication_init(&p->publication, io);
  return p->merged && p->removed && p->refused ? 0 : cairn__fail_memory(err);
}

static void prune_close(struct prune *p, int is_kept)
{
  for (size_t i = 0; i < p->count; i++) {
    json_decref(p->items[i].reasons);
    json_decref(p->items[i].bases);
    cairn__free(p->items[i].damage);
  }
  cairn__free(p->items);
  json_decref(p->points);
  json_decref(p->merged);
  json_decref(p->removed);
  json_decref(p->refused);
  cairn__exports_close(&p->x);
  cairn__publication_close(&p->publication, p->run, is_kept);
}

static int settle(struct prune *p, struct cairn_error *err)
{
  if (read_points(p, err) != 0 || choose(p, err) != 0 || merge_all(p, err) != 0)
    return -1;
  return remove_all(p, err);
}

static void warn_of_damage(const struct prune *p)
{
  for (size_t i = 0; i < p->count; i++) {
    if (p->items[i].damage)
      cairn__run_warn(p->run, "%s is damaged and was left alone: %s",
                      text_of(p->items[i].summary, "directory"),
                      p->items[i].damage);
  }
}

static int prune_run(struct prune *p, struct cairn_error *err)
{
  json_t *points;

  /* that it exists, before a lock file is made in it */
  if (cairn__points_read(p->io, p->directory, &points, err) != 0)
    return -1;
  json_decref(points);
  if (cairn__publication_open(&p->publication, p->directory, err) != 0 ||
      cairn__publication_clean(&p->publication, p->run, err) != 0 ||
      cairn__publication_begin(&p->publication, p->run, err) != 0 ||
      settle(p, err) != 0)
    return -1;
  warn_of_damage(p);
  if (p->error.id == CAIRN_OK)
    return 0;
  if (err)
    *err = p->error;
  return -1;
}

static void prune_main(struct cairn__run *run)
{
  struct prune p;
  struct cairn_error err;
  int result;

  cairn__error_clear(&err);
  cairn__run_enter(run);
  result = prune_init(&p, run, run->io, run->spec, &err);
  if (result == 0)
    result = prune_run(&p, &err);
  run->report = make_report(&p);
  prune_close(&p, result != 0 && err.id == CAIRN_E_KILLED);
  cairn__run_leave(run);
  if (result != 0)
    run->error = err;
}

static int prune_plan(const struct cairn_io *io, const json_t *spec,
                      json_t **plan, struct cairn_error *err)
{
  struct prune p;
  struct statvfs fs;
  int64_t free_bytes = 0;
  int result = prune_init(&p, NULL, io, spec, err);

  *plan = NULL;
  if (result == 0)
    result = settle(&p, err);
  if (result == 0 && fstatvfs(p.x.fd, &fs) == 0)
    free_bytes = (int64_t)(fs.f_bavail * fs.f_frsize);
  if (result == 0) {
    *plan = make_report(&p);
    if (!*plan ||
        json_object_set_new(*plan, "kind", json_string("prune")) != 0 ||
        json_object_set_new(*plan, "bytes_to_write",
                            json_integer(p.used_most)) != 0 ||
        json_object_set_new(*plan, "free_bytes", json_integer(free_bytes)) !=
            0 ||
        json_object_set_new(*plan, "has_space",
                            json_boolean(p.used_most <= free_bytes)) != 0)
      result = cairn__fail_memory(err);
  }
  prune_close(&p, 0);
  return result;
}

const struct cairn__kind cairn__kind_prune = {.name = "prune",
                                              .check = check_spec,
                                              .main = prune_main,
                                              .plan = prune_plan};
