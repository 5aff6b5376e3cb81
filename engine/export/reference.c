/* reference.c: the kind "reference_point": reference points as objects.
 *
 *   create       a marker: the sources locked together for a moment, what keeps
 *                their content made, and the point noted in the index
 *   destroy      a point or marker with all that is kept for it; nothing while
 *                another point is based on it, unless those go too
 *   remove_data  only what is kept for it: a marker stays a marker, an export
 *                stays an export
 *
 * Each has one moment before which nothing has happened and after which it is
 * done: the index is replaced, or the point's directory renamed. What is then
 * still to be removed was noted before (index.h, "unfinished"), so that a crash
 * leaves nothing behind that the next change of the directory does not end. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "collection.h"
#include "error.h"
#include "index.h"
#include "kinds.h"
#include "manifest.h"
#include "marker.h"
#include "members.h"
#include "memory.h"
#include "published.h"
#include "publish.h"
#include "spec.h"
#include "tracked.h"

#define ID_PREFIX_MIN 4

struct act {
  struct cairn__run *run;
  const struct cairn_io *io;
  const json_t *spec;
  struct cairn__publication publication;
  json_t *index;
  json_t *points; /* as cairn__points_read gives them */
};

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int is_action(const json_t *spec, const char *name)
{
  return strcmp(text_of(spec, "action"), name) == 0;
}

/* ---- the specification --------------------------------------------------- */

static const char *const actions[] = {"create", "destroy", "remove_data", NULL};
static const struct cairn__spec_key keys[] = {
    {"action", CAIRN__SPEC_STRING, 1, actions, NULL},
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"collection", CAIRN__SPEC_OBJECT, 0, NULL, NULL},
    {"tracker", CAIRN__SPEC_STRING, 0, cairn__tracker_names, NULL},
    {"point", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"CollectionId", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"dependants", CAIRN__SPEC_BOOLEAN, 0, NULL, NULL},
};

static int refuse_key(const json_t *spec, const char *name,
                      struct cairn_error *err)
{
  if (!json_object_get(spec, name))
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "reference_point: \"%s\" has no meaning for \"%s\"", name,
                     text_of(spec, "action"));
}

static int need_key(const json_t *spec, const char *name,
                    struct cairn_error *err)
{
  if (json_object_get(spec, name))
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "reference_point: \"%s\" is missing", name);
}

/* A GUID in canonical form, where it is one. */
static int settle_id(json_t *spec, const char *name, struct cairn_error *err)
{
  json_t *v = json_object_get(spec, name);
  char id[37];

  if (!v || cairn__guid_canonical(json_string_value(v), id) != 0)
    return 0;
  return json_string_set(v, id) == 0 ? 0 : cairn__fail_memory(err);
}

static int check_spec(json_t *spec, struct cairn_error *err)
{
  if (cairn__spec_check(spec, "reference_point", keys,
                        sizeof keys / sizeof keys[0], err) != 0)
    return -1;
  if (is_action(spec, "create")) {
    if (refuse_key(spec, "point", err) != 0 ||
        refuse_key(spec, "dependants", err) != 0 ||
        refuse_key(spec, "CollectionId", err) != 0 ||
        need_key(spec, "collection", err) != 0)
      return -1;
    return cairn__collection_check(json_object_get(spec, "collection"),
                                   "reference_point.collection", err);
  }
  if (refuse_key(spec, "collection", err) != 0 ||
      refuse_key(spec, "tracker", err) != 0 ||
      need_key(spec, "point", err) != 0 ||
      (!is_action(spec, "destroy") && refuse_key(spec, "dependants", err) != 0))
    return -1;
  return settle_id(spec, "point", err) == 0
             ? settle_id(spec, "CollectionId", err)
             : -1;
}

/* ---- opening ------------------------------------------------------------- */

static void tracked_of(struct act *a, struct cairn__tracked *t)
{
  *t = (struct cairn__tracked){.io = a->io,
                               .run = a->run,
                               .dirfd = a->publication.dirfd,
                               .path = a->publication.path,
                               .index = a->index,
                               .spared = a->publication.resumable};
}

static int write_index(struct act *a, struct cairn_error *err)
{
  return cairn__index_write(a->io, a->publication.dirfd, a->publication.path,
                            a->index, err);
}

/* A directory that is not there holds no point: it is not made for that. */
static int check_there(const struct cairn_io *io, const char *directory,
                       struct cairn_error *err)
{
  struct stat st;
  char shown[512];

  if (io->fstatat(io, AT_FDCWD, directory, &st, 0) != 0)
    return cairn__fail_errno(err, errno, directory, -1,
                             "cannot open the export directory \"%s\"",
                             cairn__printable(directory, shown, sizeof shown));
  if (S_ISDIR(st.st_mode))
    return 0;
  return cairn__fail(err, CAIRN_E_BAD_PATH, "\"%s\" is not a directory",
                     cairn__printable(directory, shown, sizeof shown));
}

/* Markers that have an export: a crash came between the two. */
static void drop_exported(struct act *a)
{
  size_t i;
  json_t *p;

  json_array_foreach(a->points, i, p)
  {
    if (!json_object_get(p, "error"))
      cairn__index_remove_marker(a->index, text_of(p, "ReferencePointGroupId"));
  }
}

static int open_directory(struct act *a, struct cairn_error *err)
{
  const char *directory = text_of(a->spec, "directory");
  struct cairn__tracked t;

  if ((!is_action(a->spec, "create") &&
       check_there(a->io, directory, err) != 0) ||
      cairn__publication_open(&a->publication, directory, err) != 0 ||
      cairn__index_read(a->io, a->publication.dirfd, a->publication.path,
                        &a->index, err) != 0 ||
      cairn__publication_clean(&a->publication, a->run, NULL, 0, err) != 0)
    return -1;
  tracked_of(a, &t);
  if (cairn__points_read(a->io, a->publication.path, &a->points, err) != 0)
    return -1;
  drop_exported(a);
  return cairn__tracked_clean(&t, err);
}

/* ---- create -------------------------------------------------------------- */

/* The highest sequence of the collection, of points and markers, here. */
static json_int_t last_sequence(const struct act *a, const char *collection)
{
  json_int_t n = cairn__publication_last_sequence(&a->publication, collection);
  json_int_t other = cairn__index_sequence(a->index, collection);
  size_t i;
  json_t *p;

  if (other > n)
    n = other;
  json_array_foreach(a->points, i, p)
  {
    const char *id = text_of(p, "CollectionId");

    other = json_integer_value(json_object_get(p, "sequence"));
    if (id && strcmp(id, collection) == 0 && other > n)
      n = other;
  }
  return n;
}

/* Of this collection, oldest first: what trackers drop when they need room. */
static json_t *points_of(const struct act *a, const char *collection)
{
  json_t *list = json_array(), *p;
  size_t i;

  json_array_foreach(a->points, i, p)
  {
    const char *id = text_of(p, "CollectionId");

    if (id && strcmp(id, collection) == 0)
      (void)json_array_append(list, p);
  }
  return list;
}

/* What is going to be made is noted before it is. */
static int note_intents(struct act *a, const json_t *collection,
                        struct cairn_error *err)
{
  const char *directory = text_of(collection, "clone_directory");
  json_t *disks;

  if (directory && cairn__index_add_clone_directory(a->index, directory, err))
    return -1;
  if (cairn__marker_intents(a->run->point_uuid, collection,
                            text_of(a->spec, "tracker"), &disks, err) != 0)
    return -1;
  if (json_array_size(disks) == 0) {
    json_decref(disks);
    return 0;
  }
  if (cairn__index_add_unfinished(a->index, a->run->point_uuid, disks, err) !=
      0)
    return -1;
  return write_index(a, err);
}

static int take_moment(struct act *a, const json_t *collection,
                       struct cairn__members *members, int64_t *unix_us,
                       struct cairn_error *err)
{
  struct cairn__members_options o = {
      .io = a->io,
      .run = a->run,
      .collection = collection,
      .work_directory = a->publication.work_path,
      .target_fd = a->publication.dirfd,
      .target_path = a->publication.path,
      .point = a->run->point_uuid,
      .tracker = text_of(a->spec, "tracker"),
  };

  if (cairn__members_open(&o, members, err) != 0)
    return -1;
  *unix_us = a->run->clock->wall(a->run->clock);
  for (size_t i = 0; i < members->count; i++) {
    if (cairn__member_check_still(&members->list[i], err) != 0)
      return -1;
  }
  return 0;
}

/* The one moment: the marker is in, what is unfinished out. */
static int note_marker(struct act *a, const json_t *collection,
                       json_int_t sequence, json_t *marker,
                       struct cairn_error *err)
{
  if (cairn__publication_keep_sequence(&a->publication,
                                       text_of(collection, "CollectionId"),
                                       sequence, err) != 0 ||
      cairn__index_add_marker(a->index, json_incref(marker), err) != 0)
    return -1;
  cairn__index_remove_unfinished(a->index, a->run->point_uuid);
  if (write_index(a, err) != 0)
    return -1;
  a->publication.is_published = 1; /* the directory stays */
  return 0;
}

static void warn_of_disks(struct act *a, const json_t *marker)
{
  size_t i;
  json_t *disk;

  json_array_foreach(json_object_get(marker, "disks"), i, disk)
  {
    const char *wanted = text_of(a->spec, "tracker");

    if (strcmp(text_of(disk, "tracker"), "none") == 0 && wanted &&
        (strcmp(wanted, "clone") == 0 || strcmp(wanted, "bitmap") == 0))
      cairn__run_warn(a->run, "nothing is kept of disk %s of machine %s: %s",
                      text_of(disk, "disk"), text_of(disk, "VirtualMachineId"),
                      text_of(disk, "reason"));
  }
}

static int make_marker(struct act *a, const json_t *collection,
                       struct cairn__members *members, json_t **marker,
                       struct cairn_error *err)
{
  struct cairn__marker_facts f = {
      .id = a->run->point_uuid,
      .instance_id = a->run->instance_id,
      .run_number = a->run->number,
      .collection = collection,
      .sequence = last_sequence(a, text_of(collection, "CollectionId")) + 1,
      .is_own_clones = !text_of(collection, "clone_directory"),
  };

  if (f.sequence > CAIRN__SEQUENCE_MAX)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "no higher sequence is left in this directory");
  if (take_moment(a, collection, members, &f.unix_us, err) != 0 ||
      cairn__marker_make(&f, members, marker, err) != 0 ||
      cairn__run_gate(a->run, err) != 0)
    return -1;
  warn_of_disks(a, *marker);
  return note_marker(a, collection, f.sequence, *marker, err);
}

/* What a marker that came to nothing has left, as it stands in the index. */
static void undo(struct act *a)
{
  struct cairn__publication *p = &a->publication;
  struct cairn_error why;
  struct cairn__tracked t;

  cairn__error_clear(&why);
  json_decref(a->index);
  if (cairn__index_read(a->io, p->dirfd, p->path, &a->index, &why) != 0)
    return;
  tracked_of(a, &t);
  t.is_ending = 1;
  if (cairn__tracked_clean(&t, &why) != 0 || !p->is_new ||
      json_array_size(json_object_get(a->index, "unfinished")) > 0)
    return;
  /* the directory was made for this, and goes again */
  (void)a->io->unlinkat(a->io, p->dirfd, CAIRN__INDEX_NAME, 0);
  (void)a->io->unlinkat(a->io, p->dirfd, CAIRN__CLONES_DIRECTORY, AT_REMOVEDIR);
}

static int create(struct act *a, struct cairn_error *err)
{
  const json_t *collection = json_object_get(a->spec, "collection");
  struct cairn__members members = {0};
  const json_t *made = cairn__published_marker(a->run, a->index);
  json_t *marker = NULL, *points;
  int result;

  if (made) {
    a->run->report = cairn__marker_show(made, a->publication.path);
    return a->run->report ? 0 : cairn__fail_memory(err);
  }
  if (cairn__publication_begin(&a->publication, a->run, err) != 0 ||
      note_intents(a, collection, err) != 0)
    return -1;
  result = make_marker(a, collection, &members, &marker, err);
  cairn__members_close_sources(&members);
  if (result == 0 || !err || err->id != CAIRN_E_KILLED) {
    points = points_of(a, text_of(collection, "CollectionId"));
    cairn__members_end(&members, result == 0, points);
    json_decref(points);
    if (result != 0)
      undo(a);
  }
  cairn__members_free(&members);
  if (result == 0)
    a->run->report = cairn__marker_show(marker, a->publication.path);
  json_decref(marker);
  return result;
}

/* ---- finding ------------------------------------------------------------- */

static int matches(const char *id, const char *wanted)
{
  size_t n = strlen(wanted);

  return n >= ID_PREFIX_MIN && strncasecmp(id, wanted, n) == 0;
}

/* The id that is meant, of a point or a marker; borrowed from one of them. */
static int find_id(const struct act *a, const char **out,
                   struct cairn_error *err)
{
  const char *wanted = text_of(a->spec, "point"), *found = NULL;
  const json_t *lists[] = {a->points, json_object_get(a->index, "markers")};
  char shown[200];

  for (size_t l = 0; l < 2; l++) {
    for (size_t i = 0; i < json_array_size(lists[l]); i++) {
      const char *id =
          text_of(json_array_get(lists[l], i), "ReferencePointGroupId");

      if (!matches(id, wanted) || (found && strcmp(found, id) == 0))
        continue;
      if (found)
        return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                           "\"%s\" is more than one reference point: %s and %s",
                           cairn__printable(wanted, shown, sizeof shown), found,
                           id);
      found = id;
    }
  }
  if (!found)
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "%s holds no reference point \"%s\"",
                       a->publication.path ? a->publication.path
                                           : text_of(a->spec, "directory"),
                       cairn__printable(wanted, shown, sizeof shown));
  *out = found;
  return 0;
}

/* The entry of the list of points; NULL when there is none. */
static const json_t *find_point(const struct act *a, const char *id)
{
  size_t i;
  json_t *p;

  json_array_foreach(a->points, i, p)
  {
    if (strcmp(text_of(p, "ReferencePointGroupId"), id) == 0)
      return p;
  }
  return NULL;
}

/* Two directories with one point: which of them is meant nobody knows. */
static int check_single(const struct act *a, const char *id,
                        struct cairn_error *err)
{
  const json_t *first = NULL;
  size_t i;
  json_t *p;

  json_array_foreach(a->points, i, p)
  {
    if (strcmp(text_of(p, "ReferencePointGroupId"), id) != 0)
      continue;
    if (first)
      return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                         "%s and %s hold the same reference point; move one "
                         "of them elsewhere",
                         text_of(first, "directory"), text_of(p, "directory"));
    first = p;
  }
  return 0;
}

static int check_collection(const struct act *a, const char *id,
                            struct cairn_error *err)
{
  const char *wanted = text_of(a->spec, "CollectionId");
  const json_t *p = find_point(a, id);
  const char *its =
      text_of(p ? p : cairn__index_marker(a->index, id), "CollectionId");

  if (!wanted || !its || strcmp(wanted, its) == 0)
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "the reference point %s is of collection %s, not of %s",
                     id, its, wanted);
}

/* ---- what is based on what ----------------------------------------------- */

static int is_based_on(const json_t *point, const char *id)
{
  size_t i;
  json_t *file;

  json_array_foreach(json_object_get(point, "files"), i, file)
  {
    const char *base = text_of(file, "base");

    if (base && strcmp(base, id) == 0)
      return 1;
  }
  return 0;
}

static int has_id(const json_t *ids, const char *id)
{
  for (size_t i = 0; i < json_array_size(ids); i++) {
    if (strcmp(json_string_value(json_array_get(ids, i)), id) == 0)
      return 1;
  }
  return 0;
}

/* ids: those that go. Adds what is based on one of them; the list of points is
 * by sequence, and a base is older than what is based on it, so that one pass
 * finds all. */
static int add_dependants(const struct act *a, json_t *ids,
                          struct cairn_error *err)
{
  size_t i;
  json_t *p;

  json_array_foreach(a->points, i, p)
  {
    const char *id = text_of(p, "ReferencePointGroupId");
    int is_dependant = 0;

    if (has_id(ids, id))
      continue;
    for (size_t j = 0; j < json_array_size(ids) && !is_dependant; j++)
      is_dependant = is_based_on(p, json_string_value(json_array_get(ids, j)));
    if (is_dependant && json_array_append_new(ids, json_string(id)) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

/* A point that cannot be read may be based on any other. */
static int check_readable(const struct act *a, const json_t *ids,
                          struct cairn_error *err)
{
  size_t i;
  json_t *p;

  json_array_foreach(a->points, i, p)
  {
    const char *why = text_of(p, "error");

    if (why && !has_id(ids, text_of(p, "ReferencePointGroupId")))
      return cairn__fail(err, CAIRN_E_INVALID_STATE,
                         "%s cannot be read, and may be based on it: %s. "
                         "Repair it, or destroy it first",
                         text_of(p, "directory"), why);
  }
  return 0;
}

static int refuse_dependants(const json_t *ids, struct cairn_error *err)
{
  char names[400] = "";
  size_t n = json_array_size(ids) - 1, shown = n < 4 ? n : 4, used = 0;

  for (size_t i = 1; i <= shown; i++)
    used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                             i > 1 ? ", " : "",
                             json_string_value(json_array_get(ids, i)));
  return cairn__fail(err, CAIRN_E_INVALID_STATE,
                     "the reference point %s is the base of %zu other%s: %s%s. "
                     "Destroy %s first, or ask for dependants to go too",
                     json_string_value(json_array_get(ids, 0)), n,
                     n > 1 ? "s" : "", names, n > shown ? ", ..." : "",
                     n > 1 ? "them" : "it");
}

/* The points that are to go, oldest first. *ids: new reference. */
static int choose(const struct act *a, json_t **ids, struct cairn_error *err)
{
  const char *id;
  json_t *list;
  int result;

  if (find_id(a, &id, err) != 0 || check_single(a, id, err) != 0 ||
      check_collection(a, id, err) != 0)
    return -1;
  list = json_pack("[s]", id);
  if (!list)
    return cairn__fail_memory(err);
  result = check_readable(a, list, err);
  if (result == 0)
    result = add_dependants(a, list, err);
  if (result == 0 && json_array_size(list) > 1 &&
      !json_is_true(json_object_get(a->spec, "dependants")))
    result = refuse_dependants(list, err);
  for (size_t i = 1; i < json_array_size(list) && result == 0; i++)
    result = check_single(a, json_string_value(json_array_get(list, i)), err);
  if (result == 0)
    *ids = list;
  else
    json_decref(list);
  return result;
}

/* ---- destroy ------------------------------------------------------------- */

static int kept_of(struct act *a, const char *id, json_t **disks,
                   struct cairn_error *err)
{
  return cairn__tracked_of_point(a->io, a->publication.dirfd,
                                 a->publication.path, a->index, id,
                                 find_point(a, id), disks, err);
}

static int destroy_one(struct act *a, const char *id, struct cairn_error *err)
{
  struct cairn__tracked t;

  tracked_of(a, &t);
  return cairn__tracked_destroy(&t, &a->publication, find_point(a, id), id,
                                err);
}

static int destroy(struct act *a, struct cairn_error *err)
{
  json_t *ids, *gone = json_array();
  int result = gone ? choose(a, &ids, err) : cairn__fail_memory(err);

  if (result != 0) {
    json_decref(gone);
    return -1;
  }
  for (size_t i = json_array_size(ids); i-- > 0 && result == 0;) {
    const char *id = json_string_value(json_array_get(ids, i));

    result = cairn__run_gate(a->run, err);
    if (result == 0)
      result = destroy_one(a, id, err);
    if (result == 0)
      (void)json_array_append_new(gone, json_string(id));
  }
  json_decref(ids);
  a->run->report =
      json_pack("{s:s, s:s, s:o}", "action", "destroy", "directory",
                a->publication.path, "destroyed", gone);
  return result;
}

/* ---- remove_data --------------------------------------------------------- */

/* A marker's disks without what was kept of them. */
static int release_marker(json_t *marker, struct cairn_error *err)
{
  size_t i;
  json_t *disk;

  json_array_foreach(json_object_get(marker, "disks"), i, disk)
  {
    if (strcmp(text_of(disk, "tracker"), "none") == 0)
      continue;
    if (json_object_set_new(disk, "tracker", json_string("none")) != 0 ||
        json_object_set_new(disk, "reason",
                            json_string("its data was removed")) != 0)
      return cairn__fail_memory(err);
    (void)json_object_del(disk, "name");
    (void)json_object_del(disk, "directory");
  }
  return 0;
}

static int remove_data(struct act *a, struct cairn_error *err)
{
  struct cairn__tracked t;
  json_t *disks = NULL, *marker;
  const char *id;
  size_t count;
  int result;

  if (find_id(a, &id, err) != 0 || check_collection(a, id, err) != 0 ||
      kept_of(a, id, &disks, err) != 0)
    return -1;
  count = json_array_size(disks);
  marker = cairn__index_marker(a->index, id);
  result = marker      ? release_marker(marker, err)
           : count > 0 ? cairn__index_add_released(a->index, id, err)
                       : 0;
  tracked_of(a, &t);
  if (result == 0)
    result = cairn__tracked_remove(&t, id, disks, err);
  json_decref(disks);
  if (result == 0)
    a->run->report =
        json_pack("{s:s, s:s, s:s, s:I}", "action", "remove_data", "directory",
                  a->publication.path, "ReferencePointGroupId", id, "removed",
                  (json_int_t)count);
  return result;
}

/* ---- the run, the dry run ------------------------------------------------ */

static void act_free(struct act *a)
{
  json_decref(a->index);
  json_decref(a->points);
}

static void reference_main(struct cairn__run *run)
{
  struct act a = {.run = run, .io = run->io, .spec = run->spec};
  struct cairn_error err;
  int result;

  cairn__error_clear(&err);
  cairn__publication_init(&a.publication, run->io);
  cairn__run_enter(run);
  result = open_directory(&a, &err);
  if (result == 0)
    result = is_action(a.spec, "create")    ? create(&a, &err)
             : is_action(a.spec, "destroy") ? destroy(&a, &err)
                                            : remove_data(&a, &err);
  cairn__run_leave(run);
  cairn__publication_close(&a.publication, run,
                           result != 0 && err.id == CAIRN_E_KILLED);
  act_free(&a);
  if (result != 0)
    run->error = err;
}

/* Whether it would be refused, as far as can be told without a lock: the
 * points and the index are read. */
static int reference_plan(const struct cairn_io *io, const json_t *spec,
                          json_t **plan, struct cairn_error *err)
{
  const char *directory = text_of(spec, "directory"), *id = NULL;
  struct act a = {.io = io, .spec = spec};
  json_t *ids = NULL;
  int fd, result;

  *plan = NULL;
  if (is_action(spec, "create")) {
    *plan =
        json_pack("{s:s, s:s}", "kind", "reference_point", "action", "create");
    return *plan ? 0 : cairn__fail_memory(err);
  }
  if (check_there(io, directory, err) != 0)
    return -1;
  fd = io->openat(io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0)
    return cairn__fail_errno(err, errno, directory, -1, "cannot open \"%s\"",
                             directory);
  result = cairn__index_read(io, fd, directory, &a.index, err);
  (void)io->close(io, fd);
  if (result == 0)
    result = cairn__points_read(io, directory, &a.points, err);
  if (result == 0 && is_action(spec, "destroy"))
    result = choose(&a, &ids, err);
  else if (result == 0)
    result = find_id(&a, &id, err) == 0 ? check_collection(&a, id, err) : -1;
  if (result == 0) {
    *plan = json_pack("{s:s, s:s, s:o}", "kind", "reference_point", "action",
                      text_of(spec, "action"), "points",
                      ids ? json_incref(ids) : json_pack("[s]", id));
    if (!*plan)
      result = cairn__fail_memory(err);
  }
  json_decref(ids);
  act_free(&a);
  return result;
}

const struct cairn__kind cairn__kind_reference = {.name = "reference_point",
                                                  .check = check_spec,
                                                  .main = reference_main,
                                                  .plan = reference_plan};
