/* listing.c: see listing.h. */
#include "listing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "index.h"
#include "manifest.h"
#include "marker.h"
#include "memory.h"
#include "tracked.h"

struct listing {
  const struct cairn_io *io;
  const char *path;
  int dirfd;
  json_t *index, *points;
};

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

/* The index, or an empty one and an entry that says what is wrong. */
static int read_index(struct listing *l, struct cairn_error *err)
{
  const struct cairn_error_info *info;
  struct cairn_error why;
  json_t *entry;

  cairn__error_clear(&why);
  if (cairn__index_read(l->io, l->dirfd, l->path, &l->index, &why) == 0)
    return 0;
  if (why.id == CAIRN_E_NO_MEMORY)
    return cairn__fail_memory(err);
  info = cairn_error_info(why.id);
  entry = json_pack("{s:s, s:s, s:s, s:s, s:s}", "kind", "index",
                    "ReferencePointGroupId", CAIRN__INDEX_NAME, "directory",
                    l->path, "error", why.message, "error_code",
                    info ? info->code : "internal");
  return json_array_append_new(l->points, entry) == 0 ? 0
                                                      : cairn__fail_memory(err);
}

static int listing_open(struct listing *l, const char *directory,
                        struct cairn_error *err)
{
  char shown[512];

  l->path = directory;
  if (cairn__points_read(l->io, directory, &l->points, err) != 0)
    return -1;
  l->dirfd =
      l->io->openat(l->io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  if (l->dirfd < 0)
    return cairn__fail_errno(err, errno, directory, -1, "cannot open \"%s\"",
                             cairn__printable(directory, shown, sizeof shown));
  return read_index(l, err);
}

static void listing_close(struct listing *l)
{
  if (l->dirfd >= 0)
    (void)l->io->close(l->io, l->dirfd);
  json_decref(l->index);
  json_decref(l->points);
}

/* Adds to the remark that is there. */
static int add_remark(json_t *point, const char *text)
{
  const char *there = text_of(point, "remark");
  char remark[2 * CAIRN_MESSAGE_MAX];

  snprintf(remark, sizeof remark, "%s%s%s", there ? there : "",
           there ? "; " : "", text);
  return json_object_set_new(point, "remark", json_string(remark));
}

static int complete_point(struct listing *l, json_t *point,
                          struct cairn_error *err)
{
  const char *id = text_of(point, "ReferencePointGroupId");
  const char *reason = l->index ? cairn__index_suspect(l->index, id) : NULL;
  char text[CAIRN_MESSAGE_MAX + 100];
  json_t *disks = NULL;
  size_t kept;

  if (text_of(point, "kind"))
    return 0; /* the index's own entry */
  if (json_object_set_new(point, "kind", json_string("export")) != 0)
    return cairn__fail_memory(err);
  if (!l->index || json_object_get(point, "error"))
    return 0;
  if (cairn__tracked_of_point(l->io, l->dirfd, l->path, l->index, id, point,
                              &disks, err) != 0)
    return -1;
  kept = json_array_size(disks);
  json_decref(disks);
  if (json_object_set_new(point, "has_associated_data",
                          json_boolean(kept > 0)) != 0)
    return cairn__fail_memory(err);
  if (!reason)
    return 0;
  snprintf(text, sizeof text, "an audit found it doubtful: %s; verify it",
           reason);
  return add_remark(point, text) == 0 ? 0 : cairn__fail_memory(err);
}

static int has_export(const struct listing *l, const char *id)
{
  size_t i;
  json_t *p;

  json_array_foreach(l->points, i, p)
  {
    if (!json_object_get(p, "error") &&
        strcmp(text_of(p, "ReferencePointGroupId"), id) == 0)
      return 1;
  }
  return 0;
}

static int add_markers(struct listing *l, struct cairn_error *err)
{
  json_t *markers = json_array(), *marker;
  size_t i;
  int failed = !markers;

  json_array_foreach(json_object_get(l->index, "markers"), i, marker)
  {
    if (!failed && !has_export(l, text_of(marker, "ReferencePointGroupId")))
      failed = json_array_append_new(markers,
                                     cairn__marker_show(marker, l->path)) != 0;
  }
  if (!failed)
    failed = json_array_extend(l->points, markers) != 0;
  json_decref(markers);
  return failed ? cairn__fail_memory(err) : 0;
}

int cairn__points_list(const struct cairn_io *io, const char *directory,
                       json_t **points, struct cairn_error *err)
{
  struct listing l = {.io = io, .dirfd = -1};
  int result = listing_open(&l, directory, err);
  size_t i;
  json_t *p;

  json_array_foreach(l.points, i, p)
  {
    if (result == 0)
      result = complete_point(&l, p, err);
  }
  if (result == 0)
    result = add_markers(&l, err);
  if (result == 0)
    result = cairn__points_sort(l.points, err);
  if (result == 0)
    *points = json_incref(l.points);
  listing_close(&l);
  return result;
}

/* ---- what is kept for a point -------------------------------------------- */

static int complete_data(struct listing *l, json_t *disk,
                         struct cairn_error *err)
{
  struct cairn_error why;
  int exists, failed;

  cairn__error_clear(&why);
  exists = cairn__tracked_exists(l->io, l->dirfd, disk, &why);
  if (exists < 0 && why.id == CAIRN_E_NO_MEMORY)
    return cairn__fail_memory(err);
  failed = exists < 0
               ? json_object_set_new(disk, "error", json_string(why.message))
               : json_object_set_new(disk, "exists", json_boolean(exists));
  return failed ? cairn__fail_memory(err) : 0;
}

static int find_data(struct listing *l, const char *id, json_t **data,
                     struct cairn_error *err)
{
  const json_t *point = NULL;
  json_t *list, *p;
  size_t i;
  int result = 0;

  if (!l->index)
    return cairn__fail(
        err, CAIRN_E_EXPORT_CORRUPT, "%s",
        text_of(json_array_get(l->points, json_array_size(l->points) - 1),
                "error"));
  json_array_foreach(l->points, i, p)
  {
    if (strcmp(text_of(p, "ReferencePointGroupId"), id) == 0)
      point = p;
  }
  if (!point && !cairn__index_marker(l->index, id))
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "%s holds no reference point \"%s\"", l->path, id);
  if (cairn__tracked_of_point(l->io, l->dirfd, l->path, l->index, id, point,
                              &list, err) != 0)
    return -1;
  json_array_foreach(list, i, p)
  {
    if (result == 0)
      result = complete_data(l, p, err);
  }
  if (result == 0)
    *data = list;
  else
    json_decref(list);
  return result;
}

int cairn__point_data(const struct cairn_io *io, const char *directory,
                      const char *id, json_t **data, struct cairn_error *err)
{
  struct listing l = {.io = io, .dirfd = -1};
  int result = listing_open(&l, directory, err);

  if (result == 0)
    result = find_data(&l, id, data, err);
  listing_close(&l);
  return result;
}

/* ---- for clients --------------------------------------------------------- */

/* Takes the reference. */
static int give(json_t *value, char **json, struct cairn_error *err)
{
  size_t n = json_dumpb(value, NULL, 0, JSON_COMPACT);
  char *text = n ? cairn__malloc(n + 1) : NULL;
  int result = 0;

  if (text && json_dumpb(value, text, n, JSON_COMPACT) == n) {
    text[n] = '\0';
    *json = text;
  } else {
    cairn__free(text);
    result = cairn__fail_memory(err);
  }
  json_decref(value);
  return result;
}

int cairn_points(const char *directory, char **json, struct cairn_error *err)
{
  json_t *points;

  cairn__error_clear(err);
  if (!directory || !json)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "a directory and a place for the result are wanted");
  if (cairn__points_list(&cairn__system_io, directory, &points, err) != 0)
    return -1;
  return give(points, json, err);
}

int cairn_point_data(const char *directory, const char *id, char **json,
                     struct cairn_error *err)
{
  char canonical[37];
  json_t *data;

  cairn__error_clear(err);
  if (!directory || !id || !json)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "a directory, an id and a place for the result are "
                       "wanted");
  if (cairn__guid_canonical(id, canonical) != 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "a whole ReferencePointGroupId is wanted");
  if (cairn__point_data(&cairn__system_io, directory, canonical, &data, err) !=
      0)
    return -1;
  return give(data, json, err);
}
