/* Reference points on disk: listing them, finding one, and walking from an
 * image to the full that it rests on.
 *
 * Everything is opened relative to a descriptor of the directory above it and
 * never through a symbolic link, so that a tree which somebody else prepared
 * leads nowhere but into itself. What a manifest says is trusted only after
 * its digest held; what a file says about itself (sizes, ids, backing name) is
 * compared with the manifest before anything is read through it. */
#include "points.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <uuid/uuid.h>

#include "error.h"
#include "manifest.h"
#include "memory.h"

#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOCTTY)
#define PREFIX_MIN      4 /* characters that abbreviate an id, at least */

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* Errors that say something about the process, not about what is on disk:
 * no search goes on after them. */
static int is_ours(const struct cairn_error *err)
{
  return err->id == CAIRN_E_NO_MEMORY ||
         (err->id == CAIRN_E_IO_ERROR &&
          (err->system_errno == EMFILE || err->system_errno == ENFILE));
}

/* ---- opening ------------------------------------------------------------ */

void cairn__point_close(const struct cairn_io *io, struct cairn__point *p)
{
  if (!p)
    return;
  if (p->fd >= 0)
    io->close(io, p->fd);
  json_decref(p->manifest);
  cairn__free(p->path);
  cairn__free(p);
}

/* Takes fd, whatever happens. */
static int point_from(const struct cairn_io *io, int fd, const char *directory,
                      const char *name, struct cairn__point **out,
                      struct cairn_error *err)
{
  struct cairn__point *p = cairn__calloc(1, sizeof *p);
  if (!p) {
    io->close(io, fd);
    return cairn__fail_memory(err);
  }
  p->fd = fd;
  p->path =
      name ? cairn__format("%s/%s", directory, name) : cairn__strdup(directory);
  if (!p->path) {
    cairn__point_close(io, p);
    return cairn__fail_memory(err);
  }
  if (cairn__manifest_read(io, fd, p->path, &p->manifest, err) != 0) {
    cairn__point_close(io, p);
    return -1;
  }
  *out = p;
  return 0;
}

int cairn__exports_point(const struct cairn__exports *x, const char *name,
                         struct cairn__point **out, struct cairn_error *err)
{
  char printable[1024];
  cairn__printable(x->path, printable, sizeof printable);
  if (x->fd < 0)
    return cairn__fail(err, CAIRN_E_PERMISSION_DENIED,
                       "the directory %s cannot be read", x->path);
  int fd = x->io->openat(x->io, x->fd, name, DIRECTORY_FLAGS | O_NOFOLLOW, 0);
  if (fd < 0)
    return cairn__fail_errno(err, errno, x->path, -1, "cannot open %s/%s",
                             printable, name);
  return point_from(x->io, fd, x->path, name, out, err);
}

void cairn__exports_forget_bases(struct cairn__exports *x)
{
  while (x->bases) {
    struct cairn__point *p = x->bases;
    x->bases = p->next;
    cairn__point_close(x->io, p);
  }
}

void cairn__exports_close(struct cairn__exports *x)
{
  cairn__exports_forget_bases(x);
  cairn__point_close(x->io, x->self);
  x->self = NULL;
  if (x->fd >= 0)
    x->io->close(x->io, x->fd);
  x->fd = -1;
  cairn__free(x->path);
  x->path = NULL;
}

/* Whether the directory is itself a point: then `self` is set and x->fd is its
 * parent. A manifest of somebody else's makes no point. */
static int look_for_self(struct cairn__exports *x, const char *directory,
                         struct cairn_error *err)
{
  const struct cairn_io *io = x->io;
  char printable[1024];
  struct cairn_error why;
  struct stat st;
  cairn__printable(directory, printable, sizeof printable);
  if (io->fstatat(io, x->fd, CAIRN__MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) !=
      0)
    return errno == ENOENT
               ? 0
               : cairn__fail_errno(err, errno, directory, -1,
                                   "cannot look into %s", printable);
  int fd = io->openat(io, x->fd, ".", DIRECTORY_FLAGS, 0);
  if (fd < 0)
    return cairn__fail_errno(err, errno, directory, -1, "cannot open %s",
                             printable);
  cairn__error_clear(&why);
  if (point_from(io, fd, directory, NULL, &x->self, &why) != 0) {
    if (why.id == CAIRN_E_NOT_AN_EXPORT)
      return 0;
    if (err)
      *err = why;
    return -1;
  }
  char *above = cairn__format("%s/..", directory);
  if (!above)
    return cairn__fail_memory(err);
  cairn__free(x->path);
  x->path = above;
  fd = x->fd;
  x->fd = io->openat(io, fd, "..", DIRECTORY_FLAGS, 0);
  io->close(io, fd);
  return 0;
}

int cairn__exports_open(const struct cairn_io *io, const char *directory,
                        struct cairn__exports *x, struct cairn_error *err)
{
  char printable[1024];
  *x = (struct cairn__exports){.io = io, .fd = -1};
  x->fd = io->openat(io, AT_FDCWD, directory, DIRECTORY_FLAGS, 0);
  if (x->fd < 0)
    return cairn__fail_errno(
        err, errno, directory, -1, "cannot open export directory %s",
        cairn__printable(directory, printable, sizeof printable));
  x->path = cairn__strdup(directory);
  if (!x->path || look_for_self(x, directory, err) != 0) {
    if (!x->path)
      cairn__fail_memory(err);
    cairn__exports_close(x);
    return -1;
  }
  return 0;
}

/* ---- listing ------------------------------------------------------------ */

static int compare_names(const void *a, const void *b)
{
  return strcmp(json_string_value(*(json_t *const *)a),
                json_string_value(*(json_t *const *)b));
}

/* Sorts an array in place. */
static int sort_array(json_t *array, int (*compare)(const void *, const void *),
                      struct cairn_error *err)
{
  size_t n = json_array_size(array);
  json_t **items = cairn__calloc(n ? n : 1, sizeof(void *));
  if (!items)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < n; i++)
    items[i] = json_incref(json_array_get(array, i));
  qsort(items, n, sizeof(void *), compare);
  for (size_t i = 0; i < n; i++)
    json_array_set_new(array, i, items[i]); /* within bounds: cannot fail */
  cairn__free(items);
  return 0;
}

int cairn__exports_names(const struct cairn__exports *x, json_t **names,
                         struct cairn_error *err)
{
  const struct cairn_io *io = x->io;
  char printable[1024];
  int result = -1;
  cairn__printable(x->path, printable, sizeof printable);
  json_t *array = json_array();
  DIR *dir = array && x->fd >= 0 ? io->fdopendir(io, x->fd) : NULL;
  if (!array)
    return cairn__fail_memory(err);
  if (!dir) {
    cairn__fail_errno(err, x->fd < 0 ? EACCES : errno, x->path, -1,
                      "cannot list %s", printable);
    goto out;
  }
  rewinddir(dir); /* the offset is shared with every earlier listing */
  for (;;) {
    struct stat st;
    errno = 0;
    const struct dirent *e = readdir(dir);
    if (!e && errno) {
      cairn__fail_errno(err, errno, x->path, -1, "cannot list %s", printable);
      goto out;
    }
    if (!e)
      break;
    if (e->d_name[0] == '.' || (e->d_type != DT_DIR && e->d_type != DT_UNKNOWN))
      continue;
    if (e->d_type == DT_UNKNOWN &&
        (io->fstatat(io, x->fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
         !S_ISDIR(st.st_mode)))
      continue;
    errno = 0;
    json_t *name = json_string(e->d_name);
    if (!name && errno != ENOMEM)
      continue; /* not UTF-8: no name that was ever written here */
    if (json_array_append_new(array, name) != 0) {
      cairn__fail_memory(err);
      goto out;
    }
  }
  result = sort_array(array, compare_names, err);
out:
  if (dir)
    closedir(dir);
  if (result == 0)
    *names = array;
  else
    json_decref(array);
  return result;
}

static int compare_points(const void *a, const void *b)
{
  const json_t *p = *(json_t *const *)a, *q = *(json_t *const *)b;
  int p_bad = json_object_get(p, "error") != NULL;
  int q_bad = json_object_get(q, "error") != NULL;
  static const char *const keys[] = {"sequence", "unix_us", NULL};
  if (p_bad != q_bad)
    return p_bad - q_bad;
  for (int i = 0; keys[i] && !p_bad; i++) {
    json_int_t m = json_integer_value(json_object_get(p, keys[i]));
    json_int_t n = json_integer_value(json_object_get(q, keys[i]));
    if (m != n)
      return m < n ? -1 : 1;
  }
  return strcmp(text_of(p, "directory"), text_of(q, "directory"));
}

int cairn__points_sort(json_t *points, struct cairn_error *err)
{
  return sort_array(points, compare_points, err);
}

static int set_text(json_t *object, const char *name, const char *text)
{
  json_t *value = json_string(text);
  if (!value)
    value = json_string("(not UTF-8)");
  return json_object_set_new(object, name, value);
}

/* What to say about a point that can be used but is not as it was written. */
static int add_remarks(json_t *points, struct cairn_error *err)
{
  size_t i;
  json_t *point;
  json_t *seen = json_object();
  int failed = !seen;
  json_array_foreach(points, i, point)
  {
    char remark[NAME_MAX + PATH_MAX + 200];
    const char *id = text_of(point, "ReferencePointGroupId");
    const char *directory = text_of(point, "directory");
    const char *name = strrchr(directory, '/') + 1;
    if (failed || json_object_get(point, "error"))
      continue;
    const char *other = text_of(seen, id);
    remark[0] = 0;
    if (other)
      snprintf(remark, sizeof remark, "%s holds the same reference point",
               other);
    else if (strcmp(name, id) != 0)
      snprintf(remark, sizeof remark,
               "the directory is named \"%s\", not after its reference "
               "point: points based on it do not find it in QEMU",
               name);
    failed |= remark[0] && set_text(point, "remark", remark) != 0;
    failed |= !other && set_text(seen, id, directory) != 0;
  }
  json_decref(seen);
  return failed ? cairn__fail_memory(err) : 0;
}

/* Appends what the directory `name` holds, if it is anything of ours. */
static int add_point(const struct cairn__exports *x, const char *name,
                     json_t *points, struct cairn_error *err)
{
  struct cairn__point *p = NULL;
  struct cairn_error why;
  char id[37];
  json_t *entry;
  int failed;
  int is_guid = cairn__guid_canonical(name, id) == 0;
  cairn__error_clear(&why);
  if (cairn__exports_point(x, name, &p, &why) == 0) {
    entry = json_incref(p->manifest);
    failed = set_text(entry, "directory", p->path) != 0;
    cairn__point_close(x->io, p);
  } else if (is_ours(&why)) {
    if (err)
      *err = why;
    return -1;
  } else if (why.id == CAIRN_E_NOT_AN_EXPORT && !is_guid) {
    return 0; /* somebody else's directory */
  } else {
    const struct cairn_error_info *info = cairn_error_info(why.id);
    char *path = cairn__format("%s/%s", x->path, name);
    entry = json_object();
    failed =
        !entry || !path ||
        set_text(entry, "ReferencePointGroupId", is_guid ? id : name) != 0 ||
        set_text(entry, "directory", path) != 0 ||
        set_text(entry, "error", why.message) != 0 ||
        set_text(entry, "error_code", info ? info->code : "internal") != 0;
    cairn__free(path);
  }
  if (failed || json_array_append(points, entry) != 0) {
    json_decref(entry);
    return cairn__fail_memory(err);
  }
  json_decref(entry);
  return 0;
}

int cairn__points_read(const struct cairn_io *io, const char *directory,
                       json_t **points, struct cairn_error *err)
{
  struct cairn__exports x;
  json_t *names = NULL, *array = NULL, *name;
  size_t i;
  int result = -1;
  if (cairn__exports_open(io, directory, &x, err) != 0)
    return -1;
  if (x.self) {
    char printable[1024];
    cairn__fail(err, CAIRN_E_NOT_AN_EXPORT,
                "%s is one reference point (%s); name the export directory "
                "that holds it",
                cairn__printable(directory, printable, sizeof printable),
                cairn__point_id(x.self));
    goto out;
  }
  if (cairn__exports_names(&x, &names, err) != 0)
    goto out;
  array = json_array();
  if (!array) {
    cairn__fail_memory(err);
    goto out;
  }
  json_array_foreach(names, i, name)
  {
    if (add_point(&x, json_string_value(name), array, err) != 0)
      goto out;
  }
  if (cairn__points_sort(array, err) != 0)
    goto out;
  result = add_remarks(array, err);
out:
  json_decref(names);
  cairn__exports_close(&x);
  if (result == 0)
    *points = array;
  else
    json_decref(array);
  return result;
}

/* ---- finding ------------------------------------------------------------ */

const char *cairn__point_id(const struct cairn__point *p)
{
  return text_of(p->manifest, "ReferencePointGroupId");
}

static const char *last_name(const struct cairn__point *p)
{
  const char *slash = strrchr(p->path, '/');
  return slash ? slash + 1 : p->path;
}

/* `wanted`: an id as a client writes it. */
static int matches(const struct cairn__point *p, const char *wanted)
{
  char id[37];
  if (strcmp(last_name(p), wanted) == 0)
    return 1;
  if (cairn__guid_canonical(wanted, id) == 0)
    return strcmp(cairn__point_id(p), id) == 0;
  size_t n = strlen(wanted);
  return n >= PREFIX_MIN && strncasecmp(cairn__point_id(p), wanted, n) == 0;
}

/* A second handle on a point that is open already. */
static int reopen(const struct cairn__exports *x, const struct cairn__point *p,
                  struct cairn__point **out, struct cairn_error *err)
{
  int fd = x->io->openat(x->io, p->fd, ".", DIRECTORY_FLAGS, 0);
  if (fd < 0)
    return cairn__fail_errno(err, errno, p->path, -1, "cannot open %s",
                             p->path);
  return point_from(x->io, fd, p->path, NULL, out, err);
}

/* Appends to a list that a message shows, up to a length. */
static void list_append(char *list, size_t size, const char *item)
{
  size_t used = strlen(list);
  if (used + strlen(item) + 8 < size)
    snprintf(list + used, size - used, "%s%s", used ? ", " : "", item);
  else if (used + 6 < size && strcmp(list + used - 3, "...") != 0)
    snprintf(list + used, size - used, ", ...");
}

static int scan(struct cairn__exports *x, const char *wanted,
                struct cairn__point **out, struct cairn_error *err)
{
  json_t *names, *name;
  size_t i, found = 0;
  char there[512] = "", same[512] = "", printable[200];
  struct cairn__point *match = NULL;
  int result = -1;
  if (cairn__exports_names(x, &names, err) != 0)
    return -1;
  json_array_foreach(names, i, name)
  {
    struct cairn__point *p;
    struct cairn_error why;
    cairn__error_clear(&why);
    int failed = cairn__exports_point(x, json_string_value(name), &p, &why);
    /* a damaged directory that has exactly the name asked for is an answer */
    if (failed &&
        (is_ours(&why) || (strcmp(json_string_value(name), wanted) == 0 &&
                           why.id != CAIRN_E_NOT_AN_EXPORT))) {
      if (err)
        *err = why;
      goto out;
    }
    if (failed)
      continue;
    list_append(there, sizeof there, cairn__point_id(p));
    if (matches(p, wanted) && ++found == 1) {
      match = p;
      continue;
    }
    if (found > 1 && matches(p, wanted))
      list_append(same, sizeof same, p->path);
    cairn__point_close(x->io, p);
  }
  cairn__printable(wanted, printable, sizeof printable);
  if (found == 1) {
    *out = match;
    match = NULL;
    result = 0;
  } else if (found > 1) {
    cairn__fail(err, CAIRN_E_AMBIGUOUS,
                "\"%s\" is more than one reference point: %s, %s", printable,
                match->path, same);
  } else if (strlen(wanted) < PREFIX_MIN) {
    cairn__fail(err, CAIRN_E_NOT_FOUND,
                "\"%s\" is too short for a reference point of %s: an id or %d "
                "or more of its first characters are needed",
                printable, x->path, PREFIX_MIN);
  } else if (there[0]) {
    cairn__fail(err, CAIRN_E_NOT_FOUND,
                "%s holds no reference point \"%s\"; it holds %s", x->path,
                printable, there);
  } else {
    cairn__fail(err, CAIRN_E_NOT_FOUND,
                "%s holds no reference point \"%s\", nor any other that can "
                "be read",
                x->path, printable);
  }
out:
  cairn__point_close(x->io, match);
  json_decref(names);
  return result;
}

int cairn__exports_find(struct cairn__exports *x, const char *id,
                        struct cairn__point **out, struct cairn_error *err)
{
  char canonical[37];
  struct cairn__point *p;
  struct cairn_error why;
  if (x->self && (!id || matches(x->self, id)))
    return reopen(x, x->self, out, err);
  if (x->self)
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "%s is the reference point %s, not \"%s\"",
                       x->self->path, cairn__point_id(x->self), id);
  if (!id)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s is no reference point; name one of those in it",
                       x->path);
  if (cairn__guid_canonical(id, canonical) != 0)
    return scan(x, id, out, err);
  cairn__error_clear(&why);
  if (cairn__exports_point(x, canonical, &p, &why) == 0) {
    if (strcmp(cairn__point_id(p), canonical) == 0) {
      *out = p;
      return 0;
    }
    cairn__point_close(x->io, p); /* misnamed: the right one may be elsewhere */
  } else if (why.id != CAIRN_E_NOT_FOUND && why.id != CAIRN_E_NOT_AN_EXPORT) {
    if (err)
      *err = why;
    return -1;
  }
  return scan(x, id, out, err);
}

int cairn__exports_base(struct cairn__exports *x, const char *id,
                        const struct cairn__point **out,
                        struct cairn_error *err)
{
  struct cairn__point *p;
  if (x->self && strcmp(cairn__point_id(x->self), id) == 0) {
    *out = x->self;
    return 0;
  }
  for (p = x->bases; p; p = p->next)
    if (strcmp(cairn__point_id(p), id) == 0) {
      *out = p;
      return 0;
    }
  int result = -1;
  if (x->self) {
    /* the siblings of a point are searched as any export directory is */
    struct cairn__point *self = x->self;
    x->self = NULL;
    if (x->fd < 0)
      cairn__fail(err, CAIRN_E_PERMISSION_DENIED,
                  "the directory above %s cannot be read", self->path);
    else
      result = cairn__exports_find(x, id, &p, err);
    x->self = self;
  } else {
    result = cairn__exports_find(x, id, &p, err);
  }
  if (result != 0)
    return -1;
  p->next = x->bases;
  x->bases = p;
  *out = p;
  return 0;
}

/* ---- the files of a point ----------------------------------------------- */

static const json_t *find_file(const struct cairn__point *p, const char *vm,
                               const char *disk, int is_map)
{
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(p->manifest, "files"), i, file)
  {
    const char *role = text_of(file, "role");
    int fits = is_map ? strcmp(role, "digests") == 0
                      : strcmp(role, "disk") == 0 || strcmp(role, "log") == 0;
    if (fits && strcmp(text_of(file, "VirtualMachineId"), vm) == 0 &&
        strcmp(text_of(file, "disk"), disk) == 0)
      return file;
  }
  return NULL;
}

const json_t *cairn__point_image(const struct cairn__point *p, const char *vm,
                                 const char *disk)
{
  return find_file(p, vm, disk, 0);
}

const json_t *cairn__point_map(const struct cairn__point *p, const char *vm,
                               const char *disk)
{
  return find_file(p, vm, disk, 1);
}

const json_t *cairn__point_machine(const struct cairn__point *p, const char *id)
{
  size_t i;
  json_t *machine;
  json_array_foreach(json_object_get(p->manifest, "machines"), i, machine)
  {
    if (strcmp(text_of(machine, "VirtualMachineId"), id) == 0)
      return machine;
  }
  return NULL;
}

int cairn__point_find_machine(const struct cairn__point *p, const char *wanted,
                              const char **id, struct cairn_error *err)
{
  size_t i, found = 0;
  json_t *machine;
  char canonical[37] = "", list[700] = "", printable[200];
  cairn__guid_canonical(wanted, canonical);
  json_array_foreach(json_object_get(p->manifest, "machines"), i, machine)
  {
    const char *vm = text_of(machine, "VirtualMachineId");
    const char *name = text_of(machine, "ElementName");
    if (strcmp(vm, canonical) == 0) {
      *id = vm;
      return 0;
    }
    if (name && strcmp(name, wanted) == 0) {
      *id = vm;
      found++;
    }
    size_t used = strlen(list);
    if (used < sizeof list - 160)
      snprintf(list + used, sizeof list - used, "%s%s (%s)", used ? ", " : "",
               vm,
               cairn__printable(name ? name : "no name", printable,
                                sizeof printable < 64 ? sizeof printable : 64));
    else if (strcmp(list + used - 3, "...") != 0)
      snprintf(list + used, sizeof list - used, ", ...");
  }
  if (found == 1)
    return 0;
  cairn__printable(wanted, printable, sizeof printable);
  if (found > 1)
    return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                       "%zu machines are named \"%s\"; give an id: %s", found,
                       printable, list);
  return cairn__fail(err, CAIRN_E_NOT_FOUND,
                     "reference point %s has no machine \"%s\"; it has %s",
                     cairn__point_id(p), printable, list[0] ? list : "none");
}

static int is_image(const json_t *file, const char *vm, const char *disk)
{
  const char *role = text_of(file, "role");
  return (strcmp(role, "disk") == 0 || strcmp(role, "log") == 0) &&
         (!vm || strcmp(vm, text_of(file, "VirtualMachineId")) == 0) &&
         (!disk || strcmp(disk, text_of(file, "disk")) == 0);
}

int cairn__point_fail_disk(const struct cairn__point *p, const char *vm,
                           const char *disk, size_t found,
                           struct cairn_error *err)
{
  char list[700] = "", item[160], printable[200];
  const json_t *files = json_object_get(p->manifest, "files");
  size_t i;
  json_t *file;
  json_array_foreach(files, i, file)
  {
    if (!is_image(file, vm, found ? disk : NULL))
      continue;
    snprintf(item, sizeof item, "%s/%s", text_of(file, "VirtualMachineId"),
             text_of(file, "disk"));
    list_append(list, sizeof list, item);
  }
  if (found > 1)
    return cairn__fail(
        err, CAIRN_E_AMBIGUOUS,
        "reference point %s has %zu such disks; name the machine "
        "and the disk of one: %s",
        cairn__point_id(p), found, list);
  if (!disk)
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "reference point %s has no disk%s%s", cairn__point_id(p),
                       vm ? " of machine " : "", vm ? vm : "");
  return cairn__fail(err, CAIRN_E_NOT_FOUND,
                     "reference point %s has no disk \"%s\"; it has %s",
                     cairn__point_id(p),
                     cairn__printable(disk, printable, sizeof printable),
                     list[0] ? list : "none");
}

int cairn__point_choose_disk(const struct cairn__point *p, const char *machine,
                             const char *disk, const json_t **image,
                             struct cairn_error *err)
{
  const char *vm = NULL;
  size_t i, found = 0;
  json_t *file;
  if (machine && cairn__point_find_machine(p, machine, &vm, err) != 0)
    return -1;
  json_array_foreach(json_object_get(p->manifest, "files"), i, file)
  {
    if (is_image(file, vm, disk)) {
      *image = file;
      found++;
    }
  }
  return found == 1 ? 0 : cairn__point_fail_disk(p, vm, disk, found, err);
}

/* A failed open below a point: what is missing or not a plain file there is
 * damage, the rest is the system's trouble. */
static int fail_open(struct cairn_error *err, int errnum,
                     const struct cairn__point *p, const char *path)
{
  char whole[2 * PATH_MAX], printable[1024];
  snprintf(whole, sizeof whole, "%s/%s", p->path, path);
  cairn__printable(whole, printable, sizeof printable);
  if (errnum == ENOENT)
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT, "%s is missing", printable);
  else if (errnum == ELOOP || errnum == ENOTDIR || errnum == ENXIO)
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                "%s is a symbolic link or special, or lies below one; "
                "a regular file is wanted",
                printable);
  else
    cairn__fail_errno(err, errnum, whole, -1, "cannot open %s", printable);
  cairn__error_set_path(err, whole, -1);
  return -1;
}

/* Walks to the directory that holds `path` (relative, as in a manifest).
 * *name points into path. The caller closes *parent. */
static int open_parent(const struct cairn_io *io, const struct cairn__point *p,
                       const char *path, int *parent, const char **name,
                       struct cairn_error *err)
{
  char component[NAME_MAX + 1];
  const char *whole = path;
  *parent = -1;
  *name = path;
  int fd = io->openat(io, p->fd, ".", DIRECTORY_FLAGS, 0);
  if (fd < 0)
    return fail_open(err, errno, p, whole);
  for (const char *slash; (slash = strchr(path, '/')); path = slash + 1) {
    size_t n = (size_t)(slash - path);
    if (n > NAME_MAX) {
      io->close(io, fd);
      return fail_open(err, ENAMETOOLONG, p, whole);
    }
    memcpy(component, path, n);
    component[n] = 0;
    int next = io->openat(io, fd, component, DIRECTORY_FLAGS | O_NOFOLLOW, 0);
    int saved = errno;
    io->close(io, fd);
    if (next < 0)
      return fail_open(err, saved, p, whole);
    fd = next;
  }
  *parent = fd;
  *name = path;
  return 0;
}

int cairn__open_file(const struct cairn_io *io, const struct cairn__point *p,
                     const char *path, int *fd, struct stat *st,
                     struct cairn_error *err)
{
  int parent;
  const char *name;
  struct stat here;
  *fd = -1;
  if (open_parent(io, p, path, &parent, &name, err) != 0)
    return -1;
  int opened = io->openat(io, parent, name,
                          O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
  int saved = errno;
  io->close(io, parent);
  if (opened < 0)
    return fail_open(err, saved, p, path);
  if (io->fstat(io, opened, &here) != 0) {
    saved = errno;
    io->close(io, opened);
    return fail_open(err, saved, p, path);
  }
  if (!S_ISREG(here.st_mode)) {
    io->close(io, opened);
    return fail_open(err, ENOTDIR, p, path);
  }
  if (st)
    *st = here;
  *fd = opened;
  return 0;
}

/* The parent of a file that was seen to be a regular one. Layers and maps are
 * opened by name below it. */
int cairn__point_open_parent(const struct cairn_io *io,
                             const struct cairn__point *p, const char *path,
                             int *parent, const char **name,
                             struct cairn_error *err)
{
  int fd;
  if (cairn__open_file(io, p, path, &fd, NULL, err) != 0)
    return -1;
  io->close(io, fd);
  return open_parent(io, p, path, parent, name, err);
}

int cairn__point_digester(const struct cairn_io *io,
                          const struct cairn__point *p,
                          struct cairn__digester *d, struct cairn_error *err)
{
  unsigned char secret[CAIRN__SECRET_SIZE] = {0};
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  const json_t *entry = NULL;
  json_t *file;
  size_t i;
  int algorithm;
  if (cairn__digest_algorithm_parse(text_of(p->manifest, "algorithm"),
                                    &algorithm, err) != 0)
    return -1;
  json_array_foreach(json_object_get(p->manifest, "files"), i, file)
  {
    if (strcmp(text_of(file, "role"), "secret") == 0)
      entry = file;
  }
  if (entry && cairn__secret_read(io, p->fd, p->path, secret, err) != 0)
    return -1;
  cairn__digester_init(d, algorithm, secret);
  if (!entry)
    return 0;
  /* a flipped bit here would make everything else look damaged */
  unsigned char *block = cairn__malloc_aligned(CAIRN__BLOCK);
  struct cairn__tree *tree = cairn__tree_new(d);
  int result = -1;
  if (block && tree) {
    memset(block, 0, CAIRN__BLOCK);
    memcpy(block, secret, sizeof secret);
    cairn__digest_block(d, block, wanted);
    result = cairn__tree_append(tree, wanted, 1);
  }
  if (result == 0)
    cairn__tree_root(tree, sizeof secret, root);
  else
    cairn__fail_memory(err);
  cairn__tree_free(tree);
  cairn__free_aligned(block);
  if (result == 0)
    result = cairn__digest_parse(d, text_of(entry, "digest"), wanted, err);
  if (result == 0 && memcmp(root, wanted, d->size) != 0)
    result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                         "%s/" CAIRN__SECRET_NAME
                         " differs from its digest: nothing else here can be "
                         "checked",
                         p->path);
  return result;
}

__attribute__((format(printf, 4, 5))) static int
fail_image(struct cairn_error *err, const struct cairn__point *p,
           const json_t *image, const char *fmt, ...)
{
  char printable[1024], what[CAIRN_MESSAGE_MAX];
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  cairn__fail(err, CAIRN_E_EXPORT_CORRUPT, "%s/%s: %s",
              cairn__printable(p->path, printable, sizeof printable),
              text_of(image, "path"), what);
  snprintf(what, sizeof what, "%s/%s", p->path, text_of(image, "path"));
  cairn__error_set_path(err, what, -1);
  return -1;
}

static int is_same_id(const char *text, const unsigned char bytes[16])
{
  uuid_t id;
  return uuid_parse(text, id) == 0 && memcmp(id, bytes, 16) == 0;
}

/* The entry that `image` of `p` is based on, having checked that it fits. */
static int step_down(struct cairn__exports *x, const struct cairn__point *p,
                     const json_t *image, const struct cairn__point **base,
                     const json_t **below, struct cairn_error *err)
{
  struct cairn_error why;
  const char *id = text_of(image, "base");
  cairn__error_clear(&why);
  if (cairn__exports_base(x, id, base, &why) != 0) {
    if (why.id == CAIRN_E_NOT_FOUND)
      fail_image(err, p, image, "its base is missing: %s", why.message);
    else if (err)
      *err = why;
    return -1;
  }
  *below = cairn__point_image(*base, text_of(image, "VirtualMachineId"),
                              text_of(image, "disk"));
  const json_t *upper = p->manifest, *lower = (*base)->manifest;
  const char *wrong = NULL;
  if (!*below)
    wrong = "does not have the disk";
  else if (strcmp(text_of(*below, "content"), text_of(image, "base_content")) !=
           0)
    wrong = "has another content than the one this file was made from";
  else if (strcmp(text_of(lower, "CollectionId"),
                  text_of(upper, "CollectionId")) != 0)
    wrong = "belongs to another collection";
  else if (number_of(lower, "sequence") >= number_of(upper, "sequence"))
    wrong = "is not older";
  if (!wrong)
    return 0;
  fail_image(err, p, image, "its base %s %s", id, wrong);
  return -1;
}

/* What the header of a qcow2 says about its place in the chain. */
static int check_layer(struct cairn__exports *x, const struct cairn__point *p,
                       const json_t *image,
                       const struct cairn__layer_info *info,
                       struct cairn_error *err)
{
  char name[256] = "", printable[1024];
  const char *base_id = text_of(image, "base");
  const char *format = "";
  if (info->file_size != number_of(image, "size"))
    return fail_image(err, p, image, "%llu bytes, not %llu",
                      (unsigned long long)info->file_size,
                      (unsigned long long)number_of(image, "size"));
  if (strcmp(text_of(image, "format"), "raw") == 0)
    return 0;
  if (info->virtual_size != number_of(image, "virtual_size"))
    return fail_image(err, p, image,
                      "virtual size %llu in the header, %llu in the manifest",
                      (unsigned long long)info->virtual_size,
                      (unsigned long long)number_of(image, "virtual_size"));
  if (base_id) {
    const struct cairn__point *base;
    const json_t *below;
    if (step_down(x, p, image, &base, &below, err) != 0)
      return -1;
    snprintf(name, sizeof name, "../../%s/%s", base_id, text_of(below, "path"));
    format = text_of(below, "format");
  }
  if (strcmp(info->backing_name, name) != 0 ||
      strcmp(info->backing_format, format) != 0)
    return fail_image(
        err, p, image,
        "its header names the backing file \"%s\" (%s); by the manifest it is "
        "\"%s\" (%s)",
        cairn__printable(info->backing_name, printable, sizeof printable),
        info->backing_format, name, format);
  if (info->has_point && !is_same_id(cairn__point_id(p), info->point))
    return fail_image(err, p, image,
                      "its header names another reference point");
  if (info->has_base && (!base_id || !is_same_id(base_id, info->base)))
    return fail_image(err, p, image, "its header names another base");
  return 0;
}

int cairn__point_open_layer(struct cairn__exports *x,
                            const struct cairn__point *p, const json_t *image,
                            struct cairn__layer **out, struct cairn_error *err)
{
  int parent;
  const char *name;
  struct cairn__layer *layer;
  if (cairn__point_open_parent(x->io, p, text_of(image, "path"), &parent, &name,
                               err) != 0)
    return -1;
  char *path = cairn__format("%s/%s", p->path, text_of(image, "path"));
  int result = path ? cairn__layer_open(x->io, parent, name, path,
                                        text_of(image, "format"),
                                        number_of(image, "length"), &layer, err)
                    : cairn__fail_memory(err);
  cairn__free(path);
  x->io->close(x->io, parent);
  if (result != 0)
    return -1;
  if (check_layer(x, p, image, cairn__layer_get_info(layer), err) != 0) {
    cairn__layer_close(layer);
    return -1;
  }
  *out = layer;
  return 0;
}

int cairn__point_open_map(const struct cairn_io *io,
                          const struct cairn__point *p, const json_t *image,
                          const struct cairn__digester *d,
                          struct cairn__map **out, struct cairn_error *err)
{
  int parent;
  const char *name;
  struct cairn__map *map;
  const json_t *entry = cairn__point_map(p, text_of(image, "VirtualMachineId"),
                                         text_of(image, "disk"));
  if (cairn__point_open_parent(io, p, text_of(entry, "path"), &parent, &name,
                               err) != 0)
    return -1;
  char *path = cairn__format("%s/%s", p->path, text_of(entry, "path"));
  int result = path ? cairn__map_open(io, parent, name, path, d, &map, err)
                    : cairn__fail_memory(err);
  cairn__free(path);
  io->close(io, parent);
  if (result != 0)
    return -1;
  const struct cairn__map_info *info = cairn__map_get_info(map);
  const char *what = NULL;
  if (info->virtual_size != number_of(image, "virtual_size") ||
      info->length != number_of(image, "length"))
    what = "its header gives the disk another size than the manifest";
  else if (info->algorithm != d->algorithm)
    what = "its header names another algorithm than the manifest";
  else if (!is_same_id(cairn__point_id(p), info->point))
    what = "its header names another reference point";
  if (what) {
    cairn__map_close(map);
    return fail_image(err, p, entry, "%s", what);
  }
  *out = map;
  return 0;
}

/* ---- chains ------------------------------------------------------------ */

int cairn__point_links(struct cairn__exports *x, const struct cairn__point *p,
                       const json_t *image, struct cairn__link **links,
                       size_t *count, struct cairn_error *err)
{
  struct cairn__link *array =
      cairn__calloc(CAIRN__POINT_CHAIN_MAX, sizeof *array);
  size_t depth = 1;
  if (!array)
    return cairn__fail_memory(err);
  array[0] = (struct cairn__link){p, image};
  while (strcmp(text_of(array[depth - 1].image, "role"), "log") == 0) {
    int result =
        depth == CAIRN__POINT_CHAIN_MAX
            ? fail_image(err, p, image, "its chain is longer than %u points",
                         CAIRN__POINT_CHAIN_MAX)
            : step_down(x, array[depth - 1].point, array[depth - 1].image,
                        &array[depth].point, &array[depth].image, err);
    if (result != 0) {
      cairn__free(array);
      return -1;
    }
    depth++;
  }
  *links = array;
  *count = depth;
  return 0;
}

int cairn__point_open_chain(struct cairn__exports *x,
                            const struct cairn__point *p, const json_t *image,
                            struct cairn__layer ***layers, size_t *count,
                            struct cairn_error *err)
{
  struct cairn__link *links;
  size_t depth;
  int result = 0;
  if (cairn__point_links(x, p, image, &links, &depth, err) != 0)
    return -1;
  if (count)
    *count = depth;
  struct cairn__layer **array =
      layers ? cairn__calloc(depth, sizeof(void *)) : NULL;
  if (layers && !array)
    result = cairn__fail_memory(err);
  for (size_t i = 0; array && result == 0 && i < depth; i++) {
    const struct cairn__link *from = &links[depth - 1 - i];
    result =
        cairn__point_open_layer(x, from->point, from->image, &array[i], err);
    if (result != 0) {
      while (i > 0)
        cairn__layer_close(array[--i]);
    }
  }
  if (result != 0)
    cairn__free(array);
  else if (layers)
    *layers = array;
  cairn__free(links);
  return result;
}
