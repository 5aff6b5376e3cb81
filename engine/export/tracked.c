/* tracked.c: see tracked.h. */
#include "tracked.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bitmap.h"
#include "clone.h"
#include "error.h"
#include "index.h"
#include "memory.h"

#define IN_USE_NAPS   40 /* for images that are in use, all together */
#define IN_USE_NAP_MS 25

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int is_kept(const json_t *disk)
{
  return strcmp(text_of(disk, "tracker"), "none") != 0;
}

static int is_clone(const json_t *disk)
{
  return strcmp(text_of(disk, "tracker"), "clone") == 0;
}

/* ---- lists --------------------------------------------------------------- */

json_t *cairn__tracked_bitmap(const char *point, const char *machine,
                              const char *disk, const char *source)
{
  char name[64];

  snprintf(name, sizeof name, "cairn-%s", point);
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "VirtualMachineId",
                   machine, "disk", disk, "source", source, "format", "qcow2",
                   "tracker", "bitmap", "name", name);
}

json_t *cairn__tracked_clone(const char *point, const char *machine,
                             const char *disk, const char *source,
                             const char *directory)
{
  char name[CAIRN__CLONE_NAME_SIZE];

  cairn__clone_name(point, machine, disk, name);
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "VirtualMachineId",
                   machine, "disk", disk, "source", source, "format", "raw",
                   "tracker", "clone", "name", name, "directory", directory);
}

/* Bitmap entries are told apart by machine and disk, clones by their place. */
static int has_entry(const json_t *list, const json_t *entry)
{
  size_t i;
  json_t *there;

  json_array_foreach((json_t *)list, i, there)
  {
    const char *a = text_of(there, "directory");
    const char *b = text_of(entry, "directory");

    if (strcmp(text_of(there, "tracker"), text_of(entry, "tracker")) == 0 &&
        strcmp(text_of(there, "name"), text_of(entry, "name")) == 0 &&
        (a && b
             ? strcmp(a, b) == 0
             : strcmp(text_of(there, "source"), text_of(entry, "source")) == 0))
      return 1;
  }
  return 0;
}

/* Takes the reference in any case. */
static int add(json_t *list, json_t *entry, struct cairn_error *err)
{
  if (entry && has_entry(list, entry)) {
    json_decref(entry);
    return 0;
  }
  return json_array_append_new(list, entry) == 0 ? 0 : cairn__fail_memory(err);
}

static int add_marker(json_t *list, const json_t *marker,
                      struct cairn_error *err)
{
  size_t i;
  json_t *disk;

  json_array_foreach(json_object_get(marker, "disks"), i, disk)
  {
    const char *vm = text_of(disk, "VirtualMachineId");
    const char *id = text_of(disk, "disk");
    const char *point = text_of(marker, "ReferencePointGroupId");

    if (!is_kept(disk))
      continue;
    if (add(list,
            is_clone(disk)
                ? cairn__tracked_clone(point, vm, id, text_of(disk, "source"),
                                       text_of(disk, "directory"))
                : cairn__tracked_bitmap(point, vm, id, text_of(disk, "source")),
            err) != 0)
      return -1;
  }
  return 0;
}

/* The entries of a manifest that have had a bitmap. Clones are found by their
 * names. */
static int add_manifest(json_t *list, const char *point, const json_t *manifest,
                        struct cairn_error *err)
{
  size_t i;
  json_t *file;

  json_array_foreach(json_object_get(manifest, "files"), i, file)
  {
    if (json_object_get(file, "bitmap_state") &&
        add(list,
            cairn__tracked_bitmap(point, text_of(file, "VirtualMachineId"),
                                  text_of(file, "disk"),
                                  text_of(file, "source")),
            err) != 0)
      return -1;
  }
  return 0;
}

static int open_clones(const struct cairn_io *io, int dirfd,
                       const char *directory)
{
  return io->openat(
      io, dirfd, directory,
      O_RDONLY | O_DIRECTORY | (directory[0] == '/' ? 0 : O_NOFOLLOW), 0);
}

static int is_gone(int errnum)
{
  return errnum == ENOENT || errnum == ENOTDIR || errnum == ELOOP;
}

static int add_clones(json_t *list, const struct cairn_io *io, int dirfd,
                      const char *directory, const char *point,
                      struct cairn_error *err)
{
  struct cairn__clone *clones = NULL;
  int fd = open_clones(io, dirfd, directory), result;
  size_t count = 0;

  if (fd < 0 && is_gone(errno))
    return 0;
  if (fd < 0)
    return cairn__fail_errno(err, errno, directory, -1, "cannot open \"%s\"",
                             directory);
  result = cairn__clones_list(io, fd, directory, &clones, &count, err);
  for (size_t i = 0; i < count && result == 0; i++) {
    if (strcmp(clones[i].point, point) == 0)
      result = add(list,
                   cairn__tracked_clone(point, clones[i].machine,
                                        clones[i].disk, "", directory),
                   err);
  }
  cairn__free(clones);
  (void)io->close(io, fd);
  return result;
}

int cairn__tracked_of_point(const struct cairn_io *io, int dirfd,
                            const char *path, const json_t *index,
                            const char *point, const json_t *manifest,
                            json_t **disks, struct cairn_error *err)
{
  json_t *list = json_array(), *directory;
  const json_t *marker = cairn__index_marker(index, point);
  size_t i;
  int result = list ? 0 : cairn__fail_memory(err);

  (void)path;
  if (result == 0 && marker)
    result = add_marker(list, marker, err);
  if (result == 0 && manifest && !cairn__index_is_released(index, point))
    result = add_manifest(list, point, manifest, err);
  if (result == 0)
    result = add_clones(list, io, dirfd, CAIRN__CLONES_DIRECTORY, point, err);
  json_array_foreach(json_object_get(index, "clone_directories"), i, directory)
  {
    if (result == 0)
      result =
          add_clones(list, io, dirfd, json_string_value(directory), point, err);
  }
  if (result == 0)
    *disks = list;
  else
    json_decref(list);
  return result;
}

/* ---- one of them --------------------------------------------------------- */

static void source_options(const struct cairn_io *io, const json_t *disk,
                           struct cairn__source_options *o)
{
  *o = (struct cairn__source_options){.io = io,
                                      .path = text_of(disk, "source"),
                                      .format = text_of(disk, "format"),
                                      .readers = 1};
}

static int has_bitmap(const struct cairn_io *io, const json_t *disk,
                      struct cairn_error *err)
{
  struct cairn__source_options o;
  struct cairn__bitmaps all = {0};
  int found = 0;

  source_options(io, disk, &o);
  if (cairn__bitmaps_list(&o, &all, err) != 0)
    return err && err->id == CAIRN_E_SOURCE_MISSING ? 0 : -1;
  for (size_t i = 0; i < all.count; i++)
    found |= strcmp(all.list[i].name, text_of(disk, "name")) == 0;
  cairn__bitmaps_free(&all);
  return found;
}

int cairn__tracked_exists(const struct cairn_io *io, int dirfd,
                          const json_t *disk, struct cairn_error *err)
{
  struct stat st;
  int fd, result, errnum;

  if (!is_kept(disk))
    return 0;
  if (!is_clone(disk))
    return has_bitmap(io, disk, err);
  fd = open_clones(io, dirfd, text_of(disk, "directory"));
  if (fd < 0 && is_gone(errno))
    return 0;
  result = fd < 0 ? -1
                  : io->fstatat(io, fd, text_of(disk, "name"), &st,
                                AT_SYMLINK_NOFOLLOW);
  errnum = errno;
  if (fd >= 0)
    (void)io->close(io, fd);
  if (result == 0)
    return 1;
  if (errnum == ENOENT)
    return 0;
  return cairn__fail_errno(err, errnum, text_of(disk, "directory"), -1,
                           "cannot look for the clone %s",
                           text_of(disk, "name"));
}

/* ---- removing ------------------------------------------------------------ */

static int remove_clone(struct cairn__tracked *t, const json_t *disk,
                        struct cairn_error *err)
{
  const char *directory = text_of(disk, "directory");
  int fd = open_clones(t->io, t->dirfd, directory), result;

  if (fd < 0 && is_gone(errno))
    return 0;
  if (fd < 0)
    return cairn__fail_errno(err, errno, directory, -1, "cannot open \"%s\"",
                             directory);
  result =
      cairn__clone_remove(t->io, fd, text_of(disk, "name"), directory, err);
  (void)t->io->close(t->io, fd);
  return result;
}

static void nap(long ms)
{
  struct timespec t = {.tv_nsec = ms * 1000000};

  (void)nanosleep(&t, NULL);
}

/* A run that was killed leaves its qemu-img to end by itself, which it does
 * soon: to wait for it, once, is better than to find the image in use. */
static int remove_bitmap(struct cairn__tracked *t, const char *point,
                         const json_t *disk, struct cairn_error *err)
{
  struct cairn__source_options o;

  source_options(t->io, disk, &o);
  while (cairn__bitmap_remove(&o, point, t->is_ending ? NULL : t->run, err) !=
         0) {
    if (err->id == CAIRN_E_SOURCE_MISSING)
      return 0;
    if (err->id != CAIRN_E_SOURCE_IN_USE || t->is_ending ||
        t->naps == IN_USE_NAPS || cairn__run_gate(t->run, NULL) != 0)
      return -1;
    t->naps++;
    nap(IN_USE_NAP_MS);
    cairn__error_clear(err);
  }
  return 0;
}

/* 0 it is gone, 1 it is not (a warning was given), -1 the run ends. */
static int remove_one(struct cairn__tracked *t, const char *point,
                      const json_t *disk, struct cairn_error *err)
{
  struct cairn_error why;
  int result;

  cairn__error_clear(&why);
  if (!t->is_ending && cairn__run_gate(t->run, err) != 0)
    return -1;
  result = is_clone(disk) ? remove_clone(t, disk, &why)
                          : remove_bitmap(t, point, disk, &why);
  if (result == 0)
    return 0;
  if (why.id == CAIRN_E_NO_MEMORY || why.id == CAIRN_E_TERMINATED ||
      why.id == CAIRN_E_KILLED) {
    if (err)
      *err = why;
    return -1;
  }
  cairn__run_warn(t->run,
                  "the %s of reference point %s could not be removed now, the "
                  "next change of this directory tries again: %s",
                  text_of(disk, "tracker"), point, why.message);
  return 1;
}

/* Removes what is noted of the point and takes out the note, or what of it is
 * done. */
static int remove_noted(struct cairn__tracked *t, const char *point,
                        const json_t *disks, struct cairn_error *err)
{
  json_t *left = json_array();
  size_t i;
  json_t *disk;
  int result = left ? 0 : cairn__fail_memory(err);

  json_array_foreach((json_t *)disks, i, disk)
  {
    int is_left = result == 0 ? remove_one(t, point, disk, err) : 0;

    if (is_left < 0)
      result = -1;
    if (is_left > 0 && json_array_append(left, disk) != 0)
      result = cairn__fail_memory(err);
  }
  if (result == 0) {
    cairn__index_remove_unfinished(t->index, point);
    if (json_array_size(left) > 0)
      result =
          cairn__index_add_unfinished(t->index, point, json_incref(left), err);
  }
  json_decref(left);
  return result;
}

int cairn__tracked_remove(struct cairn__tracked *t, const char *point,
                          json_t *disks, struct cairn_error *err)
{
  json_t *noted;
  int result;

  if (json_array_size(disks) == 0)
    return cairn__index_write(t->io, t->dirfd, t->path, t->index, err);
  noted = json_deep_copy(disks);
  if (!noted)
    return cairn__fail_memory(err);
  result = cairn__index_add_unfinished(t->index, point, noted, err);
  if (result == 0)
    result = cairn__index_write(t->io, t->dirfd, t->path, t->index, err);
  if (result == 0)
    result = remove_noted(t, point, disks, err);
  if (result == 0)
    result = cairn__index_write(t->io, t->dirfd, t->path, t->index, err);
  return result;
}

int cairn__tracked_clean(struct cairn__tracked *t, struct cairn_error *err)
{
  json_t *list = json_deep_copy(json_object_get(t->index, "unfinished"));
  size_t i;
  json_t *entry;
  int result = list ? 0 : cairn__fail_memory(err);

  json_array_foreach(list, i, entry)
  {
    const char *point = text_of(entry, "ReferencePointGroupId");

    if (json_object_get(t->spared, point) ||
        (t->only && strcmp(t->only, point) != 0))
      continue;
    if (result == 0)
      result = remove_noted(t, point, json_object_get(entry, "disks"), err);
  }
  json_decref(list);
  if (result == 0)
    result = cairn__index_write(t->io, t->dirfd, t->path, t->index, err);
  return result;
}

/* ---- the whole point ----------------------------------------------------- */

static int note(struct cairn__tracked *t, const char *id, const json_t *disks,
                struct cairn_error *err)
{
  json_t *noted;

  if (json_array_size(disks) == 0)
    return 0;
  noted = json_deep_copy(disks);
  if (!noted)
    return cairn__fail_memory(err);
  if (cairn__index_add_unfinished(t->index, id, noted, err) != 0)
    return -1;
  return cairn__index_write(t->io, t->dirfd, t->path, t->index, err);
}

int cairn__tracked_destroy(struct cairn__tracked *t,
                           struct cairn__publication *p, const json_t *point,
                           const char *id, struct cairn_error *err)
{
  json_t *disks;
  int result;

  if (cairn__tracked_of_point(t->io, t->dirfd, t->path, t->index, id, point,
                              &disks, err) != 0)
    return -1;
  result = note(t, id, disks, err);
  if (result == 0 && point)
    result = cairn__publication_remove_point(
        p, t->run,
        strrchr(json_string_value(json_object_get(point, "directory")), '/') +
            1,
        id, err);
  if (result == 0) {
    cairn__index_forget(t->index, id);
    result = cairn__tracked_remove(t, id, disks, err);
  }
  json_decref(disks);
  return result;
}
