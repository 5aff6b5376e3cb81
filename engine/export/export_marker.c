/* export_marker.c: the export of a marker, a reference point that was made
 * before (marker.h): its sources are the clones that were kept, or the disks
 * themselves where a bitmap proves that they have not changed. What is
 * published has the marker's id, time and sequence, and so the place among the
 * points that it was given when it was made. */
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "export.h"
#include "index.h"
#include "marker.h"
#include "tracked.h"

static const char *text_of(const json_t *object, const char *name)
{
  return cairn__text_of(object, name);
}

static int fail_no_marker(const struct cairn__export *x, int dirfd,
                          const char *path, const char *id,
                          struct cairn_error *err)
{
  struct stat st;

  if (x->io->fstatat(x->io, dirfd, id, &st, AT_SYMLINK_NOFOLLOW) == 0)
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "the reference point %s has its export already, in "
                       "\"%s/%s\"",
                       id, path, id);
  return cairn__fail(err, CAIRN_E_NOT_FOUND,
                     "\"%s\" holds no marker %s: nothing is known of a "
                     "reference point of this id that could be exported",
                     path, id);
}

static int find_marker(struct cairn__export *x, const json_t *index, int dirfd,
                       const char *path, struct cairn_error *err)
{
  const char *id = text_of(x->spec, "point");
  const char *wanted = text_of(x->spec, "CollectionId");
  json_t *marker = cairn__index_marker(index, id);

  if (!marker)
    return fail_no_marker(x, dirfd, path, id, err);
  if (wanted && strcmp(wanted, text_of(marker, "CollectionId")) != 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "the reference point %s is of collection %s, not of %s",
                       id, text_of(marker, "CollectionId"), wanted);
  x->marker = json_incref(marker);
  return cairn__marker_collection(marker, path, &x->own_collection, err);
}

int cairn__export_take_marker(struct cairn__export *x, int dirfd,
                              const char *path, struct cairn_error *err)
{
  json_t *index;
  int result;

  if (!text_of(x->spec, "point"))
    return 0;
  if (cairn__index_read(x->io, dirfd, path, &index, err) != 0)
    return -1;
  result = find_marker(x, index, dirfd, path, err);
  json_decref(index);
  if (result == 0)
    x->collection = x->own_collection;
  return result;
}

int cairn__export_check_marker(struct cairn__export *x, struct cairn_error *err)
{
  if (!x->marker)
    return 0;
  x->time_us = json_integer_value(json_object_get(x->marker, "unix_us"));
  return cairn__marker_check(x->io, x->marker, &x->members, err);
}

/* The point has its export: it is a marker no more. */
static int drop_marker(struct cairn__export *x, struct cairn_error *err)
{
  const struct cairn__publication *p = &x->publication;
  json_t *index;
  int result = cairn__index_read(x->io, p->dirfd, p->path, &index, err);

  if (result == 0) {
    cairn__index_remove_marker(index, x->run->point_uuid);
    result = cairn__index_write(x->io, p->dirfd, p->path, index, err);
  }
  json_decref(index);
  return result;
}

void cairn__export_drop_marker(struct cairn__export *x)
{
  struct cairn_error why;

  cairn__error_clear(&why);
  if (x->marker && drop_marker(x, &why) != 0)
    cairn__run_warn(x->run,
                    "the point is complete, but its marker is still "
                    "listed: %s",
                    why.message);
}

void cairn__export_free_marker(struct cairn__export *x)
{
  json_decref(x->marker);
  json_decref(x->own_collection);
  x->marker = x->own_collection = NULL;
}

/* ---- what earlier changes of the directory have left ----------------------
 */

static int look_after_index(struct cairn__export *x, struct cairn_error *err)
{
  const struct cairn__publication *p = &x->publication;
  const char *directory = text_of(x->collection, "clone_directory");
  struct cairn__tracked t = {.io = x->io,
                             .run = x->run,
                             .dirfd = p->dirfd,
                             .path = p->path,
                             .spared = p->resumable};
  int result = cairn__index_read(x->io, p->dirfd, p->path, &t.index, err);

  if (result == 0 && directory)
    result = cairn__index_add_clone_directory(t.index, directory, err);
  if (result == 0)
    result = cairn__tracked_clean(&t, err);
  json_decref(t.index);
  return result;
}

int cairn__export_look_after_index(struct cairn__export *x,
                                   struct cairn_error *err)
{
  struct cairn_error why;

  cairn__error_clear(&why);
  if (look_after_index(x, &why) == 0)
    return 0;
  if (why.id == CAIRN_E_NO_MEMORY || why.id == CAIRN_E_TERMINATED ||
      why.id == CAIRN_E_KILLED) {
    if (err)
      *err = why;
    return -1;
  }
  /* no export needs it */
  cairn__run_warn(x->run, "%s", why.message);
  return 0;
}

/* ---- what its trackers make -----------------------------------------------
 */

static int note_intents(struct cairn__export *x, json_t *disks,
                        struct cairn_error *err)
{
  const struct cairn__publication *p = &x->publication;
  json_t *index = NULL;
  int result = cairn__index_read(x->io, p->dirfd, p->path, &index, err);

  if (result == 0)
    result = cairn__index_add_unfinished(index, x->run->point_uuid,
                                         json_incref(disks), err);
  if (result == 0)
    result = cairn__index_write(x->io, p->dirfd, p->path, index, err);
  json_decref(index);
  return result;
}

int cairn__export_note_intents(struct cairn__export *x, struct cairn_error *err)
{
  struct cairn_error why;
  json_t *disks;

  if (x->marker)
    return 0;
  if (cairn__marker_intents(x->run->point_uuid, x->collection,
                            text_of(x->spec, "tracker"), &disks, err) != 0)
    return -1;
  cairn__error_clear(&why);
  if (json_array_size(disks) > 0) {
    x->has_intents = note_intents(x, disks, &why) == 0;
    /* a damaged index was warned of already; a full disk is the run's end */
    if (!x->has_intents && why.id != CAIRN_E_EXPORT_CORRUPT &&
        why.id != CAIRN_E_VERSION) {
      json_decref(disks);
      if (err)
        *err = why;
      return -1;
    }
  }
  json_decref(disks);
  return 0;
}

void cairn__export_forget_intents(struct cairn__export *x)
{
  const struct cairn__publication *p = &x->publication;
  struct cairn_error why;
  json_t *index = NULL;

  if (!x->has_intents)
    return;
  cairn__error_clear(&why);
  if (cairn__index_read(x->io, p->dirfd, p->path, &index, &why) == 0) {
    cairn__index_remove_unfinished(index, x->run->point_uuid);
    (void)cairn__index_write(x->io, p->dirfd, p->path, index, &why);
  }
  json_decref(index);
  if (why.id != CAIRN_OK)
    cairn__run_warn(x->run,
                    "the index of the export directory still says "
                    "that this export is under way: %s",
                    why.message);
}

void cairn__export_drop_left(struct cairn__export *x)
{
  const struct cairn__publication *p = &x->publication;
  struct cairn__tracked t = {.io = x->io,
                             .run = x->run,
                             .dirfd = p->dirfd,
                             .path = p->path,
                             .only = cairn__export_left_point(x),
                             .is_ending = 1};
  struct cairn_error why;

  if (!t.only || x->marker)
    return;
  cairn__error_clear(&why);
  if (cairn__index_read(x->io, p->dirfd, p->path, &t.index, &why) == 0)
    (void)cairn__tracked_clean(&t, &why);
  json_decref(t.index);
  if (why.id != CAIRN_OK)
    cairn__run_warn(x->run, "%s", why.message);
}

void cairn__export_mark_suspect(struct cairn__export *x,
                                const struct cairn__member *m,
                                const struct cairn__member_disk *d)
{
  const struct cairn__publication *p = &x->publication;
  const struct cairn__point *point = d->base.point;
  const json_t *image = d->base.image;
  struct cairn_error why;
  char reason[256];

  cairn__error_clear(&why);
  snprintf(reason, sizeof reason,
           "the %s tracker of disk %s of machine %s was found to have missed a "
           "change",
           cairn__tracker_names[d->tracking.wanted], d->id, m->id);
  while (point && image && why.id == CAIRN_OK) {
    const char *tracker = text_of(image, "tracker");
    const char *base = text_of(image, "base");

    if (strcmp(tracker, "clone") != 0 && strcmp(tracker, "bitmap") != 0 &&
        !json_object_get(image, "runs_since_compared"))
      return;
    if (cairn__index_mark_suspect(x->io, p->dirfd, p->path,
                                  cairn__point_id(point), reason, x->time_us,
                                  &why) != 0 ||
        !base || cairn__exports_base(&x->bases.x, base, &point, &why) != 0)
      break;
    image = cairn__point_image(point, m->id, d->id);
  }
  if (why.id != CAIRN_OK)
    cairn__run_warn(x->run, "cannot note which points are suspect: %s",
                    why.message);
}
