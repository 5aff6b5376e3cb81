/* doctor.c: see doctor.h. What cannot be found out (an image in use, no
 * permission) is no finding about the directory and is passed over, or said as
 * such; only want of memory and an export directory that cannot be read end the
 * whole. */
#include "doctor.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "bitmap.h"
#include "clone.h"
#include "collection.h"
#include "error.h"
#include "export.h"
#include "index.h"
#include "json.h"
#include "kinds.h"
#include "listing.h"
#include "manifest.h"
#include "memory.h"
#include "publish.h"
#include "server.h"
#include "spec.h"
#include "tracked.h"

#define SPARE_PERCENT 5u
#define OWNER_LOCK    "owner.lock"

struct doctor {
  const struct cairn_io *io;
  const char *directory;
  json_t *options;
  int dirfd;
  json_t *points; /* as listed */
  json_t *index;
  json_t *known, *resumable; /* sets of ids */
  json_t *sources; /* path -> { VirtualMachineId, disk } of qcow2 images */
  json_t *report, *findings, *fixed;
  int has_failed; /* no memory */
};

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

/* ---- findings ------------------------------------------------------------ */

__attribute__((format(printf, 6, 7))) static void
find(struct doctor *d, const char *what, const char *subject, int is_fixable,
     const char *advice, const char *fmt, ...)
{
  char text[CAIRN_MESSAGE_MAX], shown[1024];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cairn__utf8_clean(text);
  cairn__printable(subject, shown, sizeof shown);
  cairn__utf8_clean(shown);
  if (json_array_append_new(d->findings,
                            json_pack("{s:s, s:s, s:s, s:s, s:b}", "what", what,
                                      "subject", shown, "text", text, "advice",
                                      advice, "is_fixable", is_fixable)) != 0)
    d->has_failed = 1;
}

__attribute__((format(printf, 2, 3))) static void
say_fixed(struct doctor *d, const char *fmt, ...)
{
  char text[CAIRN_MESSAGE_MAX];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cairn__utf8_clean(text);
  if (json_array_append_new(d->fixed, json_string(text)) != 0)
    d->has_failed = 1;
}

static int is_fixing(const struct doctor *d)
{
  return json_is_true(json_object_get(d->options, "fix"));
}

/* ---- what is known ------------------------------------------------------- */

static void know(struct doctor *d, const char *id)
{
  char canonical[37];

  if (id && cairn__guid_canonical(id, canonical) == 0 &&
      json_object_set_new(d->known, canonical, json_true()) != 0)
    d->has_failed = 1;
}

static int is_known(const struct doctor *d, const char *id)
{
  return json_object_get(d->known, id) != NULL;
}

static void know_all(struct doctor *d, const json_t *list)
{
  size_t i;
  json_t *p;

  json_array_foreach((json_t *)list, i, p)
  {
    const char *directory = text_of(p, "directory");

    know(d, text_of(p, "ReferencePointGroupId"));
    if (directory && strrchr(directory, '/'))
      know(d, strrchr(directory, '/') + 1);
  }
}

static void know_others(struct doctor *d)
{
  size_t i;
  json_t *also;

  json_array_foreach(json_object_get(d->options, "also"), i, also)
  {
    const char *directory = json_string_value(also);
    struct cairn_error why;
    json_t *points;

    cairn__error_clear(&why);
    if (cairn__points_list(d->io, directory, &points, &why) != 0) {
      find(d, "unreadable", directory, 0, "name a directory that can be read",
           "%s", why.message);
      continue;
    }
    know_all(d, points);
    json_decref(points);
  }
}

static void add_source(struct doctor *d, const char *path, const char *format,
                       const char *vm, const char *disk)
{
  if (!path || !format || strcmp(format, "qcow2") != 0)
    return;
  if (json_object_set_new(
          d->sources, path,
          json_pack("{s:s, s:s}", "VirtualMachineId", vm, "disk", disk)) != 0)
    d->has_failed = 1;
}

static void add_sources_of(struct doctor *d, const json_t *point)
{
  size_t i;
  json_t *o;

  json_array_foreach(json_object_get(point, "files"), i, o)
  {
    if (text_of(o, "source_format"))
      add_source(d, text_of(o, "source"), text_of(o, "source_format"),
                 text_of(o, "VirtualMachineId"), text_of(o, "disk"));
  }
  json_array_foreach(json_object_get(point, "disks"), i, o)
  {
    add_source(d, text_of(o, "source"), text_of(o, "format"),
               text_of(o, "VirtualMachineId"), text_of(o, "disk"));
  }
}

static void add_collection(struct doctor *d)
{
  size_t i, j;
  json_t *machine, *disk;

  json_array_foreach(
      json_object_get(json_object_get(d->options, "collection"), "machines"), i,
      machine)
  {
    json_array_foreach(json_object_get(machine, "disks"), j, disk)
    {
      add_source(d, text_of(disk, "path"), text_of(disk, "format"),
                 text_of(machine, "VirtualMachineId"), text_of(disk, "id"));
    }
  }
}

/* ---- points -------------------------------------------------------------- */

static const json_t *find_point(const struct doctor *d, const char *id)
{
  size_t i;
  json_t *p;

  json_array_foreach(d->points, i, p)
  {
    if (!json_object_get(p, "error") &&
        strcmp(text_of(p, "kind"), "export") == 0 &&
        strcmp(text_of(p, "ReferencePointGroupId"), id) == 0)
      return p;
  }
  return NULL;
}

static const json_t *find_image(const json_t *point, const char *vm,
                                const char *disk)
{
  const struct cairn__point p = {.manifest = (json_t *)point};

  return cairn__point_image(&p, vm, disk);
}

/* The directory of a point is named after it. */
static int is_named_right(const json_t *point)
{
  return strcmp(strrchr(text_of(point, "directory"), '/') + 1,
                text_of(point, "ReferencePointGroupId")) == 0;
}

static void check_base(struct doctor *d, const json_t *point,
                       const json_t *image)
{
  const char *id = text_of(image, "base");
  const json_t *base = find_point(d, id);
  const char *where = text_of(point, "directory");

  if (!base)
    find(d, "missing_base", where, 0,
         "put the base's directory back; without it this disk cannot be read",
         "disk %s of machine %s is based on reference point %s, which is not "
         "here",
         text_of(image, "disk"), text_of(image, "VirtualMachineId"), id);
  else if (!find_image(base, text_of(image, "VirtualMachineId"),
                       text_of(image, "disk")))
    find(d, "missing_base", where, 0,
         "this disk cannot be read; verify the point, and export anew",
         "disk %s of machine %s is based on reference point %s, which does not "
         "have it",
         text_of(image, "disk"), text_of(image, "VirtualMachineId"), id);
  else if (!is_named_right(base))
    find(d, "base_elsewhere", where, 0,
         "give the base's directory back its name; Cairn finds it as it is",
         "disk %s of machine %s is based on reference point %s, which lies in "
         "%s: QEMU does not find it there",
         text_of(image, "disk"), text_of(image, "VirtualMachineId"), id,
         text_of(base, "directory"));
}

/* Images from one down to its full, as far as they are here. */
static size_t depth_of(const struct doctor *d, const json_t *image)
{
  size_t depth = 1;

  while (image && text_of(image, "base") && depth < CAIRN__POINT_CHAIN_MAX) {
    const json_t *base = find_point(d, text_of(image, "base"));

    image = base ? find_image(base, text_of(image, "VirtualMachineId"),
                              text_of(image, "disk"))
                 : NULL;
    depth += image != NULL;
  }
  return depth;
}

/* The newest point that has the disk gives the chain's depth. */
static void add_chain(struct doctor *d, json_t *chains, const json_t *point,
                      const json_t *image)
{
  size_t i;
  json_t *o;

  json_array_foreach(chains, i, o)
  {
    if (strcmp(text_of(o, "VirtualMachineId"),
               text_of(image, "VirtualMachineId")) == 0 &&
        strcmp(text_of(o, "disk"), text_of(image, "disk")) == 0 &&
        strcmp(text_of(o, "CollectionId"), text_of(point, "CollectionId")) == 0)
      break;
  }
  o = json_pack("{s:s, s:s, s:s, s:s, s:I}", "CollectionId",
                text_of(point, "CollectionId"), "VirtualMachineId",
                text_of(image, "VirtualMachineId"), "disk",
                text_of(image, "disk"), "ReferencePointGroupId",
                text_of(point, "ReferencePointGroupId"), "depth",
                (json_int_t)depth_of(d, image));
  if ((i < json_array_size(chains) ? json_array_set_new(chains, i, o)
                                   : json_array_append_new(chains, o)) != 0)
    d->has_failed = 1;
}

struct modes {
  size_t count;
  char first[PATH_MAX];
};

static void look_at_mode(struct doctor *d, int fd, const char *path,
                         struct modes *m)
{
  struct stat st;

  if (d->io->fstatat(d->io, fd, path[0] ? path : ".", &st,
                     AT_SYMLINK_NOFOLLOW) != 0 ||
      (st.st_mode & 077) == 0 || S_ISLNK(st.st_mode))
    return;
  if (m->count++ == 0)
    snprintf(m->first, sizeof m->first, "%s", path[0] ? path : ".");
}

static void check_modes(struct doctor *d, const json_t *point)
{
  const char *where = text_of(point, "directory");
  struct modes m = {0};
  int fd = d->io->openat(d->io, AT_FDCWD, where, O_RDONLY | O_DIRECTORY, 0);
  size_t i;
  json_t *o;

  if (fd < 0)
    return;
  look_at_mode(d, fd, "", &m);
  look_at_mode(d, fd, CAIRN__MANIFEST_NAME, &m);
  json_array_foreach(json_object_get(point, "machines"), i, o)
  {
    look_at_mode(d, fd, text_of(o, "VirtualMachineId"), &m);
  }
  json_array_foreach(json_object_get(point, "files"), i, o)
  {
    look_at_mode(d, fd, text_of(o, "path"), &m);
  }
  (void)d->io->close(d->io, fd);
  if (m.count > 0)
    find(d, "wide_modes", where, 0, "chmod -R go= on it",
         "%zu of its directories and files may be used by others, the first "
         "is %s",
         m.count, m.first);
}

static void check_point(struct doctor *d, const json_t *point, json_t *chains)
{
  const char *remark = text_of(point, "remark");
  size_t i;
  json_t *file;

  if (remark && strstr(remark, "an audit found"))
    find(d, "suspect", text_of(point, "directory"), 0,
         "cairn verify it; the remark goes when it is found sound", "%s",
         remark);
  else if (remark)
    find(d, strstr(remark, "holds the same") ? "duplicate" : "misnamed",
         text_of(point, "directory"), 0,
         strstr(remark, "holds the same")
             ? "move one of the two elsewhere"
             : "rename the directory to its ReferencePointGroupId",
         "%s", remark);
  json_array_foreach(json_object_get(point, "files"), i, file)
  {
    const char *role = text_of(file, "role");

    if (strcmp(role, "log") == 0)
      check_base(d, point, file);
    if (strcmp(role, "log") == 0 || strcmp(role, "disk") == 0)
      add_chain(d, chains, point, file);
  }
  check_modes(d, point);
}

/* A marker of which something was kept that is gone. */
static void check_marker(struct doctor *d, const json_t *marker)
{
  size_t i;
  json_t *disk;

  json_array_foreach(json_object_get(marker, "disks"), i, disk)
  {
    struct cairn_error why;
    int exists;

    cairn__error_clear(&why);
    if (strcmp(text_of(disk, "tracker"), "none") == 0)
      continue;
    exists = cairn__tracked_exists(d->io, d->dirfd, disk, &why);
    if (exists == 0)
      find(d, "lost_data", text_of(marker, "ReferencePointGroupId"), 0,
           "destroy the marker: it cannot be exported any more",
           "the %s kept for disk %s of machine %s is gone",
           text_of(disk, "tracker"), text_of(disk, "disk"),
           text_of(disk, "VirtualMachineId"));
  }
}

static void check_points(struct doctor *d)
{
  json_t *chains = json_object_get(d->report, "chains"), *p;
  size_t i;

  json_array_foreach(d->points, i, p)
  {
    const char *error = text_of(p, "error"), *kind = text_of(p, "kind");

    if (error && strcmp(kind, "index") == 0)
      find(d, "index", text_of(p, "directory"), 0,
           "put back a copy of .cairn.index, or remove it", "%s", error);
    else if (error)
      find(d, "damaged", text_of(p, "directory"), 0,
           "verify it; what is based on it cannot be read either", "%s", error);
    else if (strcmp(kind, "marker") == 0)
      check_marker(d, p);
    else
      check_point(d, p, chains);
    add_sources_of(d, p);
  }
}

/* Doubts and releases of points that are gone. */
static void check_index(struct doctor *d)
{
  size_t i;
  json_t *o;

  json_array_foreach(json_object_get(d->index, "unfinished"), i, o)
  {
    /* that of a run that can be gone on with is still of use */
    if (json_object_get(d->resumable, text_of(o, "ReferencePointGroupId")))
      continue;
    find(d, "unfinished", text_of(o, "ReferencePointGroupId"), 1,
         "the next change of this directory removes it, and so does --fix",
         "a clone or bitmap of a point that was being made or destroyed is "
         "still to be removed");
  }
  json_array_foreach(json_object_get(d->index, "suspect"), i, o)
  {
    if (!is_known(d, text_of(o, "ReferencePointGroupId")))
      find(d, "index", text_of(o, "ReferencePointGroupId"), 1,
           "--fix takes it out",
           "a point that is not here is listed as "
           "doubtful");
  }
}

/* ---- what runs have left ------------------------------------------------- */

static uint64_t tree_bytes(const struct cairn_io *io, int parent,
                           const char *name, int depth)
{
  struct dirent *e;
  struct stat st;
  uint64_t sum = 0;
  DIR *dir;
  int fd;

  if (io->fstatat(io, parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    return 0;
  sum = (uint64_t)st.st_blocks * 512;
  if (!S_ISDIR(st.st_mode) || depth > 8)
    return sum;
  fd = io->openat(io, parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  dir = fd >= 0 ? io->fdopendir(io, fd) : NULL;
  while (dir && (e = readdir(dir)) != NULL) {
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
      sum += tree_bytes(io, fd, e->d_name, depth + 1);
  }
  if (dir)
    closedir(dir);
  if (fd >= 0)
    (void)io->close(io, fd);
  return sum;
}

/* 1 when a living process has the lock, 0 when not, -1 cannot tell. */
static int is_held(const struct cairn_io *io, int dirfd, const char *name)
{
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  int result;

  if (fd < 0)
    return errno == ENOENT ? 0 : -1;
  result = io->ofd_lock(io, fd, F_OFD_GETLK, &lock);
  (void)io->close(io, fd);
  return result != 0 ? -1 : lock.l_type != F_UNLCK;
}

/* Whether an interrupted export can be gone on with. What its trackers have
 * made for the point that it is to become is then somebody's. */
static int is_resumable(struct doctor *d, int workfd)
{
  json_t *plan = cairn__plan_read(d->io, workfd);
  int result = plan && !cairn__plan_is_orphan(plan, d->index);

  if (result) {
    const char *point = text_of(plan, "ReferencePointGroupId");

    know(d, point);
    if (json_object_set_new(d->resumable, point, json_true()) != 0)
      d->has_failed = 1;
  }
  json_decref(plan);
  return result;
}

static size_t count_records(const struct doctor *d, int workfd)
{
  DIR *dir = d->io->fdopendir(d->io, workfd);
  struct dirent *e;
  size_t n = 0;

  while (dir && (e = readdir(dir)) != NULL)
    n += cairn__server_is_record(e->d_name) != 0;
  if (dir)
    closedir(dir);
  return n;
}

static void check_work(struct doctor *d, const char *name)
{
  const struct cairn_io *io = d->io;
  int fd =
      io->openat(io, d->dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  int held, has_future;
  size_t records;
  double mib;

  if (fd < 0)
    return;
  held = is_held(io, fd, OWNER_LOCK);
  has_future = is_resumable(d, fd);
  records = count_records(d, fd);
  (void)io->close(io, fd);
  if (held != 0)
    return; /* at work, or not ours to judge */
  mib = (double)tree_bytes(io, d->dirfd, name, 0) / (1 << 20);
  find(d, "stale_work", name, !has_future,
       has_future ? "export the same again: it goes on from there"
                  : "the next export removes it, and so does --fix",
       "an export that did not end has left %.1f MiB%s%s", mib,
       has_future ? ", from which the next one goes on" : "",
       records > 0 ? ", and records of servers that may still run" : "");
}

static void check_entries(struct doctor *d)
{
  DIR *dir = d->io->fdopendir(d->io, d->dirfd);
  struct dirent *e;
  struct stat st;

  if (!dir)
    return;
  rewinddir(dir);
  while ((e = readdir(dir)) != NULL) {
    if (cairn__publication_is_work(e->d_name))
      check_work(d, e->d_name);
    else if (cairn__publication_is_removed(e->d_name))
      find(d, "half_removed", e->d_name, 1,
           "the next export removes it, and so does --fix",
           "what is left of a point that was destroyed, %.1f MiB",
           (double)tree_bytes(d->io, d->dirfd, e->d_name, 0) / (1 << 20));
  }
  closedir(dir);
  if (d->io->fstatat(d->io, d->dirfd, ".", &st, 0) == 0 &&
      (st.st_mode & 022) != 0)
    find(d, "wide_modes", d->directory, 0, "chmod go-w on it",
         "others may write into the export directory (mode %03o)",
         st.st_mode & 0777u);
}

/* ---- clones and bitmaps of nobody ---------------------------------------- */

/* Calls `each` for every clone in the directory's own place for them whose
 * point nobody knows. */
static void each_orphan(struct doctor *d,
                        void (*each)(struct doctor *d, int fd,
                                     const struct cairn__clone *clone))
{
  struct cairn__clone *clones = NULL;
  struct cairn_error why;
  size_t count = 0;
  int fd = d->io->openat(d->io, d->dirfd, CAIRN__CLONES_DIRECTORY,
                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);

  if (fd < 0)
    return;
  cairn__error_clear(&why);
  if (cairn__clones_list(d->io, fd, CAIRN__CLONES_DIRECTORY, &clones, &count,
                         &why) != 0)
    find(d, "unreadable", CAIRN__CLONES_DIRECTORY, 0, "see the message", "%s",
         why.message);
  for (size_t i = 0; i < count; i++) {
    if (!is_known(d, clones[i].point))
      each(d, fd, &clones[i]);
  }
  cairn__free(clones);
  (void)d->io->close(d->io, fd);
}

static void report_orphan(struct doctor *d, int fd,
                          const struct cairn__clone *clone)
{
  (void)fd;
  find(d, "left_clone", clone->name, 1, "--fix removes it",
       "a clone of disk %s of machine %s, of reference point %s, which is not "
       "here",
       clone->disk, clone->machine, clone->point);
}

static void remove_orphan(struct doctor *d, int fd,
                          const struct cairn__clone *clone)
{
  struct cairn_error why;

  cairn__error_clear(&why);
  if (cairn__clone_remove(d->io, fd, clone->name, CAIRN__CLONES_DIRECTORY,
                          &why) == 0)
    say_fixed(d, "removed the clone %s of a point that is not here",
              clone->name);
}

/* Whether a bitmap is of no use to anybody: 1 of a point that nobody knows, 2
 * left open by a QEMU that was killed. */
static int is_left(const struct doctor *d, const struct cairn__bitmap *b,
                   char point[37])
{
  int is_guard;

  if (!cairn__bitmap_point(b->name, point, &is_guard) || is_guard)
    return 0;
  return !is_known(d, point) ? 1 : b->is_in_use ? 2 : 0;
}

static void report_bitmap(struct doctor *d, const char *path,
                          const struct cairn__bitmap *b, int why,
                          const char *point)
{
  if (why == 1)
    find(d, "left_bitmap", path, 1,
         "--fix removes it; name other export directories of this machine with "
         "--also, so that their bitmaps are known",
         "it has the bitmap %s, of reference point %s, which is not here",
         b->name, point);
  else
    find(d, "bitmap_in_use", path, 1,
         "nothing is lost: the next export reads the whole disk; --fix removes "
         "the bitmap",
         "its bitmap %s was left open by a QEMU that was killed", b->name);
}

static void look_at_bitmaps(struct doctor *d, const char *path,
                            struct cairn__run *run)
{
  struct cairn__source_options o = {
      .io = d->io, .path = path, .format = "qcow2", .readers = 1};
  struct cairn__bitmaps all = {0};
  struct cairn_error why;

  cairn__error_clear(&why);
  if (cairn__bitmaps_list(&o, &all, &why) != 0)
    return; /* in use, gone, not to be read: no trouble of this directory */
  for (size_t i = 0; i < all.count; i++) {
    char point[37];
    int left = is_left(d, &all.list[i], point);

    if (left == 0)
      continue;
    if (!run)
      report_bitmap(d, path, &all.list[i], left, point);
    else if (cairn__bitmap_remove(&o, point, run, &why) == 0)
      say_fixed(d, "removed the bitmap %s from %s", all.list[i].name, path);
  }
  cairn__bitmaps_free(&all);
}

static void look_at_sources(struct doctor *d, struct cairn__run *run)
{
  const char *path;
  json_t *value;

  json_object_foreach(d->sources, path, value)
  {
    look_at_bitmaps(d, path, run);
  }
}

/* ---- what the next export will do ---------------------------------------- */

/* The disk as a collection has it, with the tracker that was at work. */
static json_t *disk_of(const json_t *file)
{
  const char *tracker = json_object_get(file, "clone")          ? "clone"
                        : json_object_get(file, "bitmap_state") ? "bitmap"
                                                                : "digest";

  return json_pack("{s:s, s:s, s:s, s:s}", "id", text_of(file, "disk"), "path",
                   text_of(file, "source"), "format",
                   text_of(file, "source_format"), "tracker", tracker);
}

/* The collection that a point was made of, as far as its manifest tells. */
static json_t *collection_of(struct doctor *d, const json_t *point)
{
  json_t *machines = json_array(), *m, *file;
  size_t i, j;

  json_array_foreach(json_object_get(point, "machines"), i, m)
  {
    json_t *disks = json_array();

    json_array_foreach(json_object_get(point, "files"), j, file)
    {
      const char *vm = text_of(file, "VirtualMachineId");

      if (text_of(file, "source_format") && vm &&
          strcmp(vm, text_of(m, "VirtualMachineId")) == 0)
        (void)json_array_append_new(disks, disk_of(file));
    }
    (void)json_array_append_new(
        machines, json_pack("{s:s, s:s?, s:o}", "VirtualMachineId",
                            text_of(m, "VirtualMachineId"), "ElementName",
                            text_of(m, "ElementName"), "disks", disks));
  }
  m = json_pack("{s:s, s:s?, s:o}", "CollectionId",
                text_of(point, "CollectionId"), "ElementName",
                text_of(point, "ElementName"), "machines", machines);
  if (!m)
    d->has_failed = 1;
  return m;
}

static const json_t *newest_point(const struct doctor *d)
{
  const json_t *newest = NULL;
  json_int_t time = 0;
  size_t i;
  json_t *p;

  json_array_foreach(d->points, i, p)
  {
    json_int_t its = json_integer_value(json_object_get(p, "unix_us"));

    if (json_object_get(p, "error") ||
        strcmp(text_of(p, "kind"), "export") != 0 || (newest && its < time))
      continue;
    newest = p;
    time = its;
  }
  return newest;
}

static void plan_next(struct doctor *d)
{
  const json_t *newest = newest_point(d);
  json_t *collection = json_object_get(d->options, "collection"), *spec;
  json_t *plan = NULL;
  struct cairn_error why;

  collection = collection ? json_deep_copy(collection)
               : newest   ? collection_of(d, newest)
                          : NULL;
  if (!collection)
    return;
  spec = json_pack("{s:o, s:s, s:s, s:s}", "collection", collection,
                   "directory", d->directory, "base", "latest", "digest",
                   newest ? text_of(newest, "algorithm") : "xxh3-128");
  cairn__error_clear(&why);
  if (!spec) {
    d->has_failed = 1;
    return;
  }
  if (cairn__kind_export.check(spec, &why) == 0 &&
      cairn__export_outlook(d->io, spec, &plan, &why) == 0)
    d->has_failed |= json_object_set_new(d->report, "next", plan) != 0;
  else
    d->has_failed |= json_object_set_new(d->report, "next_error",
                                         json_string(why.message)) != 0;
  if (why.id != CAIRN_OK)
    find(d, "next_export", d->directory, 0, cairn__error_advice(why.id, 0),
         "the next export would fail: %s", why.message);
  else if (!json_is_true(json_object_get(plan, "has_space")))
    find(d, "low_space", d->directory, 0,
         "free space: prune old points, or choose another directory",
         "the next export may need more than the file system has left");
  json_decref(spec);
}

static void check_space(struct doctor *d)
{
  struct statvfs fs;
  uint64_t free_bytes, total;

  if (fstatvfs(d->dirfd, &fs) != 0)
    return;
  free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  total = (uint64_t)fs.f_blocks * fs.f_frsize;
  d->has_failed |=
      json_object_set_new(d->report, "free_bytes",
                          json_integer((json_int_t)free_bytes)) != 0 ||
      json_object_set_new(d->report, "total_bytes",
                          json_integer((json_int_t)total)) != 0;
  if (free_bytes < total / 100 * SPARE_PERCENT)
    find(d, "low_space", d->directory, 0,
         "free space: prune old points, or choose another directory",
         "its file system has %.1f MiB left, less than %u %%",
         (double)free_bytes / (1 << 20), SPARE_PERCENT);
}

/* ---- fixing -------------------------------------------------------------- */

/* Names of work directories and of half removed points. */
static json_t *left_names(const struct doctor *d)
{
  DIR *dir = d->io->fdopendir(d->io, d->dirfd);
  json_t *names = json_object();
  struct dirent *e;

  if (dir)
    rewinddir(dir);
  while (dir && (e = readdir(dir)) != NULL) {
    if (cairn__publication_is_work(e->d_name) ||
        cairn__publication_is_removed(e->d_name))
      (void)json_object_set_new(names, e->d_name, json_true());
  }
  if (dir)
    closedir(dir);
  return names;
}

static int fix_left(struct doctor *d, struct cairn__publication *p,
                    struct cairn__run *run, struct cairn_error *err)
{
  json_t *before = left_names(d), *after, *value;
  const char *name;
  /* no collection's, and no marker's but those that are no more */
  const struct cairn__wanted nobody = {
      .collection = "", .marker = "", .index = d->index};
  int result = cairn__publication_clean(p, run, &nobody, 0, err);

  after = left_names(d);
  json_object_foreach(before, name, value)
  {
    if (!json_object_get(after, name))
      say_fixed(d, "removed %s, which a run had left", name);
  }
  json_decref(before);
  json_decref(after);
  return result;
}

static void drop_doubts(struct doctor *d, json_t *index)
{
  json_t *list = json_object_get(index, "suspect");
  size_t i = json_array_size(list);

  while (i-- > 0) {
    const char *id = text_of(json_array_get(list, i), "ReferencePointGroupId");

    if (is_known(d, id))
      continue;
    say_fixed(d,
              "took the doubtful point %s, which is not here, out of the "
              "index",
              id);
    cairn__index_remove_suspect(index, id);
  }
}

static int fix_index(struct doctor *d, struct cairn__publication *p,
                     struct cairn__run *run, struct cairn_error *err)
{
  struct cairn__tracked t = {.io = d->io,
                             .run = run,
                             .dirfd = p->dirfd,
                             .path = p->path,
                             .spared = p->resumable};
  size_t before, after;
  int result;

  if (!d->index)
    return 0; /* damaged: said in the report */
  result = cairn__index_read(d->io, p->dirfd, p->path, &t.index, err);
  before = json_array_size(json_object_get(t.index, "unfinished"));
  if (result == 0) {
    drop_doubts(d, t.index);
    result = cairn__tracked_clean(&t, err);
  }
  after = json_array_size(json_object_get(t.index, "unfinished"));
  if (before > after)
    say_fixed(d,
              "removed what was left of %zu points that were being made or "
              "destroyed",
              before - after);
  json_decref(t.index);
  return result;
}

/* What a run that still could go on keeps is known by its plan. */
static void know_plans(struct doctor *d)
{
  json_t *names = left_names(d), *value;
  const char *name;

  json_object_foreach(names, name, value)
  {
    int fd = d->io->openat(d->io, d->dirfd, name,
                           O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);

    if (fd < 0)
      continue;
    (void)is_resumable(d, fd);
    (void)d->io->close(d->io, fd);
  }
  json_decref(names);
}

static int fix_locked(struct doctor *d, struct cairn__publication *p,
                      struct cairn__run *run, struct cairn_error *err)
{
  if (cairn__publication_open(p, d->directory, err) != 0 ||
      fix_left(d, p, run, err) != 0 || fix_index(d, p, run, err) != 0)
    return -1;
  know_plans(d);
  /* Without the index nobody can say what belongs to a marker. */
  if (!d->index)
    return 0;
  each_orphan(d, remove_orphan);
  look_at_sources(d, run);
  return 0;
}

static int fix(struct doctor *d, struct cairn_error *err)
{
  struct cairn__publication p;
  struct cairn__run *run = cairn__run_new(NULL);
  size_t i;
  json_t *warning, *point;
  int result;

  if (!run)
    return cairn__fail_memory(err);
  json_array_foreach(d->points, i, point)
  {
    add_sources_of(d, point);
  }
  run->io = d->io;
  cairn__publication_init(&p, d->io);
  cairn__run_enter(run);
  result = fix_locked(d, &p, run, err);
  cairn__run_leave(run);
  cairn__publication_close(&p, run, 0);
  json_array_foreach(run->warnings, i, warning)
  {
    find(d, "not_fixed", d->directory, 0, "see the message", "%s",
         json_string_value(warning));
  }
  cairn__run_release(run);
  return result;
}

/* ---- the whole ----------------------------------------------------------- */

static int check_options(json_t *options, struct cairn_error *err)
{
  static const char *const names[] = {"collection", "fix", "also"};
  const char *key;
  json_t *v;

  json_object_foreach(options, key, v)
  {
    size_t i = 0;

    while (i < 3 && strcmp(names[i], key) != 0)
      i++;
    if (i == 3)
      return cairn__fail(err, CAIRN_E_UNKNOWN_KEY,
                         "doctor: there is no key \"%s\"; did you mean \"%s\"?",
                         key, cairn__nearest(key, names, 3));
    if (i == 0 && cairn__collection_check(v, "doctor.collection", err) != 0)
      return -1;
    if ((i == 1 && !json_is_boolean(v)) || (i == 2 && !json_is_array(v)))
      return cairn__fail(err, CAIRN_E_WRONG_TYPE, "doctor: \"%s\" must be %s",
                         key, i == 1 ? "true or false" : "a list of paths");
    for (size_t j = 0; i == 2 && j < json_array_size(v); j++) {
      const char *path = json_string_value(json_array_get(v, j));

      if (!path || path[0] != '/')
        return cairn__fail(err, CAIRN_E_BAD_PATH,
                           "doctor: also[%zu] must be an absolute path", j + 1);
    }
  }
  return 0;
}

static int read_directory(struct doctor *d, struct cairn_error *err)
{
  struct cairn_error why;

  if (cairn__points_list(d->io, d->directory, &d->points, err) != 0)
    return -1;
  d->dirfd =
      d->io->openat(d->io, AT_FDCWD, d->directory, O_RDONLY | O_DIRECTORY, 0);
  if (d->dirfd < 0)
    return cairn__fail_errno(err, errno, d->directory, -1, "cannot open \"%s\"",
                             d->directory);
  cairn__error_clear(&why);
  (void)cairn__index_read(d->io, d->dirfd, d->directory, &d->index, &why);
  know_all(d, d->points);
  know_all(d, json_object_get(d->index, "unfinished"));
  return 0;
}

static void forget(struct doctor *d)
{
  json_decref(d->points);
  json_decref(d->index);
  d->points = d->index = NULL;
  if (d->dirfd >= 0)
    (void)d->io->close(d->io, d->dirfd);
  d->dirfd = -1;
}

static void count_kinds(struct doctor *d)
{
  json_int_t points = 0, markers = 0;
  size_t i;
  json_t *p;

  json_array_foreach(d->points, i, p)
  {
    points += strcmp(text_of(p, "kind"), "export") == 0;
    markers += strcmp(text_of(p, "kind"), "marker") == 0;
  }
  d->has_failed |= json_object_set_new(d->report, "point_count",
                                       json_integer(points)) != 0 ||
                   json_object_set_new(d->report, "marker_count",
                                       json_integer(markers)) != 0;
}

/* An export is at work: what it makes belongs to no point yet. */
static int is_busy(struct doctor *d)
{
  int is_locked = is_held(d->io, d->dirfd, ".cairn.lock") > 0;

  d->has_failed |=
      json_object_set_new(d->report, "is_busy", json_boolean(is_locked)) != 0;
  return is_locked;
}

static int examine(struct doctor *d, struct cairn_error *err)
{
  if (read_directory(d, err) != 0)
    return -1;
  know_others(d);
  add_collection(d);
  if (is_fixing(d)) {
    if (fix(d, err) != 0)
      return -1;
    forget(d);
    if (read_directory(d, err) != 0)
      return -1;
  }
  count_kinds(d);
  check_points(d);
  check_entries(d);
  check_index(d);
  if (!is_busy(d)) {
    each_orphan(d, report_orphan);
    look_at_sources(d, NULL);
  }
  check_space(d);
  plan_next(d);
  return d->has_failed ? cairn__fail_memory(err) : 0;
}

int cairn__doctor(const struct cairn_io *io, const char *directory,
                  json_t *options, json_t **report, struct cairn_error *err)
{
  struct doctor d = {
      .io = io, .directory = directory, .options = options, .dirfd = -1};
  int result;

  if (check_options(options, err) != 0)
    return -1;
  d.known = json_object();
  d.resumable = json_object();
  d.sources = json_object();
  d.report =
      json_pack("{s:s, s:[], s:[], s:[], s:n, s:n}", "directory", directory,
                "findings", "fixed", "chains", "next", "next_error");
  d.findings = json_object_get(d.report, "findings");
  d.fixed = json_object_get(d.report, "fixed");
  result = d.known && d.resumable && d.sources && d.report
               ? examine(&d, err)
               : cairn__fail_memory(err);
  forget(&d);
  json_decref(d.known);
  json_decref(d.resumable);
  json_decref(d.sources);
  if (result == 0)
    *report = d.report;
  else
    json_decref(d.report);
  return result;
}

int cairn_doctor(const char *directory, const char *options, char **json,
                 struct cairn_error *err)
{
  json_t *parsed = NULL, *report;
  size_t n;
  char *text;
  int result;

  cairn__error_clear(err);
  if (!directory || directory[0] != '/' || !json)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "an absolute directory and a place for the result are "
                       "wanted");
  if (options) {
    parsed = cairn__json_load(options, strlen(options), JSON_REJECT_DUPLICATES,
                              NULL);
    if (!json_is_object(parsed)) {
      json_decref(parsed);
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "the options must be a JSON object");
    }
  }
  result = cairn__doctor(&cairn__system_io, directory, parsed, &report, err);
  json_decref(parsed);
  if (result != 0)
    return -1;
  n = json_dumpb(report, NULL, 0, JSON_COMPACT);
  text = n ? cairn__malloc(n + 1) : NULL;
  if (text && json_dumpb(report, text, n, JSON_COMPACT) == n) {
    text[n] = '\0';
    *json = text;
  } else {
    cairn__free(text);
    result = cairn__fail_memory(err);
  }
  json_decref(report);
  return result;
}
