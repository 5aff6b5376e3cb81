/* The restore kind: writes the disks and files of one point of any chain.
 *
 * Every file is made under a temporary name beside its target, proved while it
 * is written (disks block by block against the digest map, other files against
 * their tree digest), synced, and only then given its name. So a name that
 * exists is a file that is complete, and a failure leaves nothing but files
 * that were completed before it; the report lists these, and those that were
 * not written. What a process that was killed has left under a temporary name
 * is removed by the next restore into the same directory.
 *
 * An existing file is never touched unless `overwrite` is set; then the new one
 * takes its name in one step. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"
#include "image.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "points.h"
#include "spec.h"

#define BATCH           16u /* blocks of a plain file copied at once */
#define SYNC_BYTES      ((uint64_t)32 << 20)
#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOCTTY)
#define WALK_FLAGS      (O_PATH | O_DIRECTORY) /* needs no right to read */
#define TEMPORARY       ".cairn-restore-"      /* token "-" number ".partial" */
#define SHARE_WAIT_MS   10
#define SHARE_TRIES     100

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* ---- the specification -------------------------------------------------- */

static const char *const formats[] = {"raw", "qcow2", NULL};

static const struct cairn__spec_key keys[] = {
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"point", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"to", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"machine", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"disk", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"format", CAIRN__SPEC_STRING, 0, formats, "raw"},
    {"overwrite", CAIRN__SPEC_BOOLEAN, 0, NULL, NULL}};

static int check_spec(json_t *spec, struct cairn_error *err)
{
  return cairn__spec_check(spec, "restore", keys, sizeof keys / sizeof *keys,
                           err);
}

/* ---- what is to be written ---------------------------------------------- */

struct target {
  const json_t *file; /* the manifest's entry */
  int is_disk;
  char *path; /* below `to` */
  char *full; /* with it: for messages and the report */
};

struct restore {
  const struct cairn_io *io;
  struct cairn__run *run; /* NULL in a dry run */
  const json_t *spec;
  struct cairn__exports x;
  struct cairn__point *p;
  struct cairn__digester digester;
  struct target *targets;
  size_t count;
  size_t written; /* targets before it are complete */
  int to_fd;      /* -1: does not exist (yet) */
  json_t *made;   /* absolute paths of the directories that we made */
  json_t *report; /* array of files completed */
  char token[17]; /* in the names of temporary files */
  unsigned serial;
  const struct target *cleaned; /* left-overs beside it are gone */
};

static const char *to_of(const struct restore *r)
{
  return text_of(r->spec, "to");
}

static int choose_targets(struct restore *r, struct cairn_error *err)
{
  const char *machine = text_of(r->spec, "machine");
  const char *disk = text_of(r->spec, "disk");
  const char *format = text_of(r->spec, "format");
  const json_t *files = json_object_get(r->p->manifest, "files");
  const char *vm = NULL;
  size_t i;
  json_t *file;
  if (machine && cairn__point_find_machine(r->p, machine, &vm, err) != 0)
    return -1;
  r->targets = cairn__calloc(json_array_size(files) + 1, sizeof *r->targets);
  if (!r->targets)
    return cairn__fail_memory(err);
  json_array_foreach(files, i, file)
  {
    const char *role = text_of(file, "role");
    const char *its_vm = text_of(file, "VirtualMachineId");
    int is_disk = strcmp(role, "disk") == 0 || strcmp(role, "log") == 0;
    if (strcmp(role, "secret") == 0 || strcmp(role, "digests") == 0 ||
        (vm && strcmp(vm, its_vm) != 0) ||
        (disk && (!is_disk || strcmp(disk, text_of(file, "disk")) != 0)))
      continue;
    struct target *t = &r->targets[r->count];
    t->file = file;
    t->is_disk = is_disk;
    t->path = is_disk ? cairn__format("%s/%s.%s", its_vm, text_of(file, "disk"),
                                      format)
                      : cairn__strdup(text_of(file, "path"));
    r->count++;
    if (t->path)
      t->full = cairn__format("%s/%s", to_of(r), t->path);
    if (!t->full)
      return cairn__fail_memory(err);
  }
  if (r->count > 0)
    return 0;
  if (disk)
    return cairn__point_fail_disk(r->p, vm, disk, 0, err);
  return cairn__fail(
      err, CAIRN_E_NOT_FOUND, "reference point %s has no files%s%s to restore",
      cairn__point_id(r->p), vm ? " of machine " : "", vm ? vm : "");
}

/* ---- the target directory ----------------------------------------------- */

static int fail_to(const struct restore *r, int errnum, const char *what,
                   const char *path, struct cairn_error *err)
{
  char full[2 * PATH_MAX], printable[1024];
  snprintf(full, sizeof full, "%s%s%s", to_of(r), path[0] ? "/" : "", path);
  return cairn__fail_errno(err, errnum, full, -1, "cannot %s %s", what,
                           cairn__printable(full, printable, sizeof printable));
}

static int is_same(const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether the open directory is, or lies below, the export that is read. */
static int refuse_inside(const struct restore *r, int fd,
                         struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  struct stat forbidden[2], here, above;
  size_t count = 0;
  char printable[1024];
  if (io->fstat(io, r->p->fd, &forbidden[count++]) != 0 ||
      (!r->x.self && io->fstat(io, r->x.fd, &forbidden[count++]) != 0))
    return fail_to(r, errno, "look above", "", err);
  int at = io->openat(io, fd, ".", O_PATH | O_DIRECTORY, 0);
  if (at < 0 || io->fstat(io, at, &here) != 0) {
    int saved = errno;
    if (at >= 0)
      io->close(io, at);
    return fail_to(r, saved, "look at", "", err);
  }
  for (;;) {
    for (size_t i = 0; i < count; i++)
      if (is_same(&here, &forbidden[i])) {
        io->close(io, at);
        return cairn__fail(
            err, CAIRN_E_BAD_PATH,
            "the target %s lies inside the export directory %s; choose one "
            "outside",
            cairn__printable(to_of(r), printable, sizeof printable), r->x.path);
      }
    int next = io->openat(io, at, "..", O_PATH | O_DIRECTORY, 0);
    int saved = errno;
    io->close(io, at);
    at = next;
    if (at < 0 || io->fstat(io, at, &above) != 0) {
      if (at >= 0) {
        saved = errno;
        io->close(io, at);
      }
      return fail_to(r, saved, "look above", "", err);
    }
    if (is_same(&here, &above)) { /* the root */
      io->close(io, at);
      return 0;
    }
    here = above;
  }
}

/* Makes a new directory entry durable. A directory that may be written and not
 * read cannot be synced; the files in it are, which is what counts. */
static int sync_directory(struct restore *r, int dirfd)
{
  const struct cairn_io *io = r->io;
  int fd = io->openat(io, dirfd, ".", DIRECTORY_FLAGS, 0);
  if (fd < 0)
    return errno == EACCES ? 0 : -1;
  int result = io->fsync(io, fd);
  int saved = errno;
  io->close(io, fd);
  errno = saved;
  return result;
}

/* Opens a directory below dirfd, making it if `path` (absolute, for undoing)
 * is given. Returns the descriptor or -1 with errno. */
static int open_or_make(struct restore *r, int dirfd, const char *name,
                        int flags, const char *path)
{
  const struct cairn_io *io = r->io;
  int fd = io->openat(io, dirfd, name, flags, 0);
  if (fd >= 0 || errno != ENOENT || !path)
    return fd;
  if (io->mkdirat(io, dirfd, name, 0700) == 0) {
    if (json_array_append_new(r->made, json_string(path)) != 0) {
      io->unlinkat(io, dirfd, name, AT_REMOVEDIR);
      errno = ENOMEM;
      return -1;
    }
    if (sync_directory(r, dirfd) != 0)
      return -1;
  } else if (errno != EEXIST) {
    return -1;
  }
  return io->openat(io, dirfd, name, flags, 0);
}

static int has_parent_step(const char *path)
{
  for (const char *at = strstr(path, "/.."); at; at = strstr(at + 1, "/.."))
    if (at[3] == '/' || at[3] == 0)
      return 1;
  return 0;
}

/* Walks to `to`. With is_made, missing directories are made; otherwise
 * r->to_fd stays -1 when it does not exist. *nearest: the deepest directory
 * that exists, for the caller to close. Links in the path are the user's. */
static int walk_to(struct restore *r, int is_made, int *nearest,
                   struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  const char *to = to_of(r), *at = to;
  char component[NAME_MAX + 1];
  int fd = io->openat(io, AT_FDCWD, "/", WALK_FLAGS, 0);
  if (fd < 0)
    return fail_to(r, errno, "open", "", err);
  while (*(at += strspn(at, "/"))) {
    size_t n = strcspn(at, "/");
    if (n > NAME_MAX) {
      io->close(io, fd);
      return fail_to(r, ENAMETOOLONG, "open", "", err);
    }
    memcpy(component, at, n);
    component[n] = 0;
    at += n;
    char *made = is_made ? cairn__strndup(to, (size_t)(at - to)) : NULL;
    if (is_made && !made) {
      io->close(io, fd);
      return cairn__fail_memory(err);
    }
    int next = open_or_make(r, fd, component, WALK_FLAGS, made);
    int saved = errno;
    cairn__free(made);
    /* what is missing can be made, unless the way leads back out of it */
    if (next < 0 && saved == ENOENT && !is_made && !has_parent_step(at)) {
      *nearest = fd;
      return 0;
    }
    io->close(io, fd);
    if (next < 0)
      return fail_to(r, saved, is_made ? "make" : "open", "", err);
    fd = next;
  }
  *nearest = fd;
  r->to_fd = io->openat(io, fd, ".", DIRECTORY_FLAGS, 0);
  if (r->to_fd < 0) {
    int saved = errno;
    io->close(io, fd);
    *nearest = -1;
    return fail_to(r, saved, "open", "", err);
  }
  return 0;
}

/* Walks to the directory of a target below `to`. Returns a descriptor, or -1
 * with err, or -2 when a directory is missing (and is not to be made). */
static int open_parent(struct restore *r, const char *path, int is_made,
                       const char **name, struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  char component[NAME_MAX + 1];
  const char *at = path;
  int fd = io->openat(io, r->to_fd, ".", DIRECTORY_FLAGS, 0);
  if (fd < 0)
    return fail_to(r, errno, "open", "", err);
  for (const char *slash; (slash = strchr(at, '/')); at = slash + 1) {
    /* components are checked by the manifest's reader */
    memcpy(component, at, (size_t)(slash - at));
    component[slash - at] = 0;
    char *made =
        is_made ? cairn__format("%s/%.*s", to_of(r), (int)(slash - path), path)
                : NULL;
    if (is_made && !made) {
      io->close(io, fd);
      return cairn__fail_memory(err);
    }
    int next =
        open_or_make(r, fd, component, DIRECTORY_FLAGS | O_NOFOLLOW, made);
    int saved = errno;
    cairn__free(made);
    io->close(io, fd);
    if (next < 0 && saved == ENOENT && !is_made)
      return -2;
    if (next < 0)
      return fail_to(r, saved, is_made ? "make the directory of" : "look at",
                     path, err);
    fd = next;
  }
  *name = at;
  return fd;
}

/* 1 = something has the target's name, 0 = nothing, -1 = err. */
static int exists(struct restore *r, const struct target *t,
                  struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  const char *name;
  struct stat st;
  if (r->to_fd < 0)
    return 0;
  int parent = open_parent(r, t->path, 0, &name, err);
  if (parent == -2)
    return 0;
  if (parent < 0)
    return -1;
  int result = io->fstatat(io, parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
  int saved = errno;
  io->close(io, parent);
  if (!result && saved != ENOENT)
    return fail_to(r, saved, "look at", t->path, err);
  if (result && S_ISDIR(st.st_mode))
    return fail_to(r, EISDIR, "replace", t->path, err);
  return result;
}

/* *conflicts: new reference, array of paths. */
static int find_conflicts(struct restore *r, json_t **conflicts,
                          struct cairn_error *err)
{
  json_t *array = json_array();
  if (!array)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < r->count; i++) {
    int result = exists(r, &r->targets[i], err);
    if (result > 0 &&
        json_array_append_new(array, json_string(r->targets[i].path)) != 0)
      result = cairn__fail_memory(err);
    if (result < 0) {
      json_decref(array);
      return -1;
    }
  }
  *conflicts = array;
  return 0;
}

static int refuse_conflicts(struct restore *r, struct cairn_error *err)
{
  json_t *conflicts = NULL;
  char printable[1024], to[1024];
  int is_overwriting = json_is_true(json_object_get(r->spec, "overwrite"));
  /* also when overwriting: a directory is never replaced */
  if (find_conflicts(r, &conflicts, err) != 0)
    return -1;
  size_t n = json_array_size(conflicts);
  int result = 0;
  if (n > 0 && !is_overwriting)
    result = cairn__fail(
        err, CAIRN_E_EXISTS,
        "%s/%s exists already%s; choose another target, or restore with "
        "overwrite",
        cairn__printable(to_of(r), to, sizeof to),
        cairn__printable(json_string_value(json_array_get(conflicts, 0)),
                         printable, sizeof printable),
        n > 1 ? ", and further files" : "");
  json_decref(conflicts);
  return result;
}

static void locate(const struct restore *r, const struct target *t,
                   struct cairn_error *err)
{
  const char *vm = text_of(t->file, "VirtualMachineId");
  cairn__error_locate(err, vm, text_of(t->file, "disk"));
  if (vm)
    cairn__error_name_machine(
        err, text_of(cairn__point_machine(r->p, vm), "ElementName"));
}

/* ---- writing ------------------------------------------------------------ */

struct output {
  int parent;
  const char *name;
  char temporary[64];
  int is_there; /* the temporary file exists */
};

/* Whether the name is that of a temporary file of a restore. */
static int is_temporary(const char *name)
{
  size_t n = strlen(TEMPORARY);
  if (strncmp(name, TEMPORARY, n) != 0)
    return 0;
  name += n;
  for (n = 0; n < 16; n++)
    if (!isxdigit((unsigned char)name[n]))
      return 0;
  name += n;
  if (*name++ != '-' || !isdigit((unsigned char)*name))
    return 0;
  while (isdigit((unsigned char)*name))
    name++;
  return strcmp(name, ".partial") == 0;
}

/* Best effort: what cannot be removed is named in a warning. */
static void remove_left_overs(struct restore *r, int dirfd,
                              const struct target *t, int is_alone)
{
  const struct cairn_io *io = r->io;
  const struct dirent *e;
  DIR *dir = io->fdopendir(io, dirfd);
  if (!dir)
    return;
  rewinddir(dir);
  while ((e = readdir(dir))) {
    if (!is_temporary(e->d_name) ||
        (is_alone && io->unlinkat(io, dirfd, e->d_name, 0) == 0))
      continue;
    char printable[1024];
    cairn__printable(t->full, printable, sizeof printable);
    cairn__run_warn(r->run,
                    "%.*s/%s was left by a restore that did not end, and "
                    "cannot be removed; remove it when nothing restores there",
                    (int)(strrchr(printable, '/') - printable), printable,
                    e->d_name);
  }
  closedir(dir);
}

static int is_beside(const struct target *t, const struct target *other)
{
  size_t n = (size_t)(strrchr(t->full, '/') - t->full);
  return strncmp(t->full, other->full, n + 1) == 0 &&
         strchr(other->full + n + 1, '/') == NULL;
}

/* Who has temporary files in a directory holds a shared lock on it, so whoever
 * gets it alone may remove those of the dead. On a file system without such
 * locks nothing is removed. The lock lasts until the descriptor is closed. */
static void share_directory(struct restore *r, int dirfd,
                            const struct target *t)
{
  if (!r->cleaned || !is_beside(t, r->cleaned)) {
    int is_alone = flock(dirfd, LOCK_EX | LOCK_NB) == 0;
    if (is_alone || errno != EWOULDBLOCK)
      remove_left_overs(r, dirfd, t, is_alone);
    r->cleaned = t;
  }
  /* somebody may be cleaning; a stranger's lock is not waited for for long */
  for (int i = 0; i < SHARE_TRIES; i++) {
    if (flock(dirfd, LOCK_SH | LOCK_NB) == 0 ||
        (errno != EWOULDBLOCK && errno != EINTR))
      break;
    (void)poll(NULL, 0, SHARE_WAIT_MS);
  }
}

static int output_open(struct restore *r, const struct target *t,
                       struct output *o, struct cairn_error *err)
{
  *o = (struct output){.parent = -1};
  o->parent = open_parent(r, t->path, 1, &o->name, err);
  if (o->parent < 0)
    return -1;
  share_directory(r, o->parent, t);
  snprintf(o->temporary, sizeof o->temporary, TEMPORARY "%s-%u.partial",
           r->token, r->serial++);
  return 0;
}

/* Gives the finished file its name. */
static int output_commit(struct restore *r, const struct target *t,
                         struct output *o, struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  int is_overwriting = json_is_true(json_object_get(r->spec, "overwrite"));
  struct stat st;
  int result = io->renameat2(io, o->parent, o->temporary, o->parent, o->name,
                             is_overwriting ? 0 : RENAME_NOREPLACE);
  if (result != 0 && errno == EINVAL && !is_overwriting) {
    /* a file system that does not know the flag: look, then rename */
    if (io->fstatat(io, o->parent, o->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
      errno = EEXIST;
    else if (errno == ENOENT)
      result =
          io->renameat2(io, o->parent, o->temporary, o->parent, o->name, 0);
  }
  if (result != 0)
    return fail_to(r, errno, "give its name to", t->path, err);
  o->is_there = 0;
  if (io->fsync(io, o->parent) != 0)
    return fail_to(r, errno, "sync the directory of", t->path, err);
  return 0;
}

static void output_close(struct restore *r, struct output *o,
                         const struct cairn_error *err)
{
  if (o->parent < 0)
    return;
  /* a killed run leaves what it has, as it would without us */
  if (o->is_there && !(err && err->id == CAIRN_E_KILLED))
    r->io->unlinkat(r->io, o->parent, o->temporary, 0);
  r->io->close(r->io, o->parent);
}

static int report_file(struct restore *r, const struct target *t,
                       const struct cairn__copy *copy, struct cairn_error *err)
{
  json_t *entry = json_pack(
      "{s:s, s:s?, s:s?, s:o, s:I}", "role", text_of(t->file, "role"),
      "VirtualMachineId", text_of(t->file, "VirtualMachineId"), "disk",
      text_of(t->file, "disk"), "path", json_string(t->full), "length",
      (json_int_t)number_of(t->file, t->is_disk ? "length" : "size"));
  if (entry && copy &&
      (json_object_set_new(entry, "format",
                           json_string(text_of(r->spec, "format"))) != 0 ||
       json_object_set_new(entry, "bytes_read",
                           json_integer((json_int_t)copy->bytes_read)) != 0 ||
       json_object_set_new(entry, "bytes_written",
                           json_integer((json_int_t)copy->bytes_written)) !=
           0)) {
    json_decref(entry);
    entry = NULL;
  }
  if (!entry || json_array_append_new(r->report, entry) != 0)
    return cairn__fail_memory(err);
  return 0;
}

/* The map against the manifest, before anything is judged by it. */
static int check_map(struct restore *r, const json_t *image,
                     struct cairn__map *map, struct cairn_error *err)
{
  const struct cairn__digester *d = &r->digester;
  const struct cairn__map_info *info = cairn__map_get_info(map);
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  unsigned char *page = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * d->size);
  struct cairn__tree *tree = cairn__tree_new(d);
  int result = page && tree ? 0 : cairn__fail_memory(err);
  for (uint64_t first = 0; result == 0 && first < info->blocks;
       first += CAIRN__PAGE_BLOCKS) {
    uint64_t count = info->blocks - first;
    if (count > CAIRN__PAGE_BLOCKS)
      count = CAIRN__PAGE_BLOCKS;
    result = cairn__run_gate(r->run, err);
    if (result == 0)
      result = cairn__map_read(map, first, count, page, err);
    if (result == 0 && cairn__tree_append(tree, page, count) != 0)
      result = cairn__fail_memory(err);
  }
  if (result == 0)
    result = cairn__digest_parse(d, text_of(image, "content"), wanted, err);
  if (result == 0) {
    cairn__tree_root(tree, info->virtual_size, root);
    if (memcmp(root, wanted, d->size) != 0)
      result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                           "%s/%s: the digest map differs from \"content\" "
                           "in the manifest",
                           r->p->path, text_of(image, "path"));
  }
  cairn__tree_free(tree);
  cairn__free(page);
  return result;
}

static int open_source(struct restore *r, const json_t *image,
                       struct cairn__source **source, struct cairn_error *err)
{
  struct cairn__layer **layers;
  size_t count;
  char path[PATH_MAX + 256];
  if (cairn__point_open_chain(&r->x, r->p, image, &layers, &count, err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s", r->p->path, text_of(image, "path"));
  int result = cairn__source_open_layers(
      layers, count, number_of(image, "length"), path, 2, source, err);
  for (size_t i = 0; result != 0 && i < count; i++)
    cairn__layer_close(layers[i]);
  cairn__free(layers);
  return result;
}

static int copy_disk(struct restore *r, const struct target *t,
                     struct output *o, struct cairn__copy *copy,
                     struct cairn_error *err)
{
  const json_t *image = t->file;
  struct cairn__file_result made;
  struct cairn__sink_options options = {.io = r->io,
                                        .dirfd = o->parent,
                                        .name = o->temporary,
                                        .path = t->full,
                                        .length = number_of(image, "length"),
                                        .virtual_size =
                                            number_of(image, "virtual_size"),
                                        .digester = &r->digester};
  o->is_there = 1; /* also when opening fails half-way */
  int is_raw = strcmp(text_of(r->spec, "format"), "raw") == 0;
  if ((is_raw ? cairn__sink_open_raw
              : cairn__sink_open_qcow2)(&options, &copy->sink, err) != 0)
    return -1;
  if (cairn__copy_run(copy, err) != 0) {
    copy->sink->ops->abort(copy->sink);
    return -1;
  }
  return copy->sink->ops->finish(copy->sink, &made, err);
}

static int restore_disk(struct restore *r, const struct target *t,
                        struct output *o, struct cairn_error *err)
{
  struct cairn__copy copy = {.run = r->run, .digester = &r->digester};
  struct cairn__source *source = NULL;
  struct cairn__map *map = NULL;
  int result =
      cairn__point_open_map(r->io, r->p, t->file, &r->digester, &map, err);
  if (result == 0)
    result = check_map(r, t->file, map, err);
  if (result == 0)
    result = open_source(r, t->file, &source, err);
  copy.source = source;
  copy.map = map;
  if (result == 0)
    result = copy_disk(r, t, o, &copy, err);
  cairn__source_close(source);
  cairn__map_close(map);
  if (result == 0)
    result = output_commit(r, t, o, err);
  return result == 0 ? report_file(r, t, &copy, err) : -1;
}

/* Copies and digests; the file is proved when the root holds. */
static int copy_bytes(struct restore *r, const struct target *t, int from,
                      int to, struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  const struct cairn__digester *d = &r->digester;
  uint64_t size = number_of(t->file, "size");
  unsigned char leaf[CAIRN__DIGEST_MAX], root[CAIRN__DIGEST_MAX];
  unsigned char *buf = cairn__malloc_aligned((size_t)BATCH * CAIRN__BLOCK);
  struct cairn__tree *tree = cairn__tree_new(d);
  int result = buf && tree ? 0 : cairn__fail_memory(err);
  for (uint64_t at = 0; result == 0 && at < size;) {
    size_t n = (size_t)BATCH * CAIRN__BLOCK;
    if (n > size - at)
      n = (size_t)(size - at);
    result = cairn__run_gate(r->run, err);
    if (result != 0)
      break;
    ssize_t got = cairn__io_read_full(io, from, buf, n, (off_t)at);
    if (got < 0)
      result = cairn__fail_errno(err, errno, text_of(t->file, "path"),
                                 (int64_t)at, "cannot read %s/%s", r->p->path,
                                 text_of(t->file, "path"));
    else if ((size_t)got != n)
      result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                           "%s/%s became shorter while it was read", r->p->path,
                           text_of(t->file, "path"));
    if (result == 0 && cairn__io_write_full(io, to, buf, n, (off_t)at) != 0)
      result = fail_to(r, errno, "write", t->path, err);
    size_t blocks = (n + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
    memset(buf + n, 0, blocks * CAIRN__BLOCK - n);
    for (size_t i = 0; result == 0 && i < blocks; i++) {
      cairn__digest_block(d, buf + i * CAIRN__BLOCK, leaf);
      if (cairn__tree_append(tree, leaf, 1) != 0)
        result = cairn__fail_memory(err);
    }
    at += n;
    r->run->bytes_done += n;
    /* not all in the last fsync, which no request interrupts */
    if (result == 0 && at % SYNC_BYTES == 0 && io->fdatasync(io, to) != 0)
      result = fail_to(r, errno, "write", t->path, err);
  }
  if (result == 0)
    result = cairn__digest_parse(d, text_of(t->file, "digest"), leaf, err);
  if (result == 0) {
    cairn__tree_root(tree, size, root);
    if (memcmp(root, leaf, d->size) != 0)
      result = cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
                           "%s/%s: its bytes differ from its digest in the "
                           "manifest",
                           r->p->path, text_of(t->file, "path"));
  }
  cairn__tree_free(tree);
  cairn__free_aligned(buf);
  return result;
}

static int set_attributes(struct restore *r, const struct target *t, int fd,
                          struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  int64_t mtime = json_integer_value(json_object_get(t->file, "mtime_ns"));
  int64_t seconds = mtime / 1000000000, rest = mtime % 1000000000;
  if (rest < 0) {
    rest += 1000000000;
    seconds--;
  }
  const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                    {.tv_sec = seconds, .tv_nsec = rest}};
  /* set-id bits do not survive a way through a directory of somebody's */
  if (io->fchmod(io, fd, (mode_t)number_of(t->file, "mode") & 0777) != 0)
    return fail_to(r, errno, "set the mode of", t->path, err);
  if (io->futimens(io, fd, times) != 0)
    return fail_to(r, errno, "set the time of", t->path, err);
  if (io->fsync(io, fd) != 0)
    return fail_to(r, errno, "sync", t->path, err);
  return 0;
}

static int restore_plain(struct restore *r, const struct target *t,
                         struct output *o, struct cairn_error *err)
{
  const struct cairn_io *io = r->io;
  struct stat st;
  int from, to = -1, result = -1;
  if (cairn__open_file(io, r->p, text_of(t->file, "path"), &from, &st, err) !=
      0)
    return -1;
  if ((uint64_t)st.st_size != number_of(t->file, "size")) {
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                "%s/%s: %" PRIu64 " bytes, not %" PRIu64, r->p->path,
                text_of(t->file, "path"), (uint64_t)st.st_size,
                number_of(t->file, "size"));
    goto out;
  }
  to = io->openat(io, o->parent, o->temporary,
                  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (to < 0) {
    fail_to(r, errno, "create", t->path, err);
    goto out;
  }
  o->is_there = 1;
  if (copy_bytes(r, t, from, to, err) != 0 ||
      set_attributes(r, t, to, err) != 0)
    goto out;
  int closed = io->close(io, to);
  to = -1;
  if (closed != 0) {
    fail_to(r, errno, "close", t->path, err);
    goto out;
  }
  if (output_commit(r, t, o, err) == 0)
    result = report_file(r, t, NULL, err);
out:
  if (to >= 0)
    io->close(io, to);
  io->close(io, from);
  return result;
}

static int restore_target(struct restore *r, const struct target *t,
                          struct cairn_error *err)
{
  struct output o;
  if (cairn__run_gate(r->run, err) != 0)
    return -1;
  int result = output_open(r, t, &o, err);
  if (result == 0)
    result = (t->is_disk ? restore_disk : restore_plain)(r, t, &o, err);
  output_close(r, &o, err);
  if (result != 0)
    locate(r, t, err);
  return result;
}

/* ---- the run ------------------------------------------------------------ */

static int restore_prepare(struct restore *r, struct cairn_error *err)
{
  int nearest = -1;
  r->to_fd = -1;
  r->made = json_array();
  r->report = json_array();
  if (!r->made || !r->report)
    return cairn__fail_memory(err);
  if (cairn__exports_open(r->io, text_of(r->spec, "directory"), &r->x, err) !=
      0)
    return -1;
  if (cairn__exports_find(&r->x, text_of(r->spec, "point"), &r->p, err) != 0 ||
      cairn__point_digester(r->io, r->p, &r->digester, err) != 0 ||
      choose_targets(r, err) != 0 || walk_to(r, 0, &nearest, err) != 0)
    return -1;
  int result = refuse_inside(r, nearest, err);
  r->io->close(r->io, nearest);
  return result;
}

static void restore_close(struct restore *r)
{
  for (size_t i = 0; i < r->count; i++) {
    cairn__free(r->targets[i].path);
    cairn__free(r->targets[i].full);
  }
  cairn__free(r->targets);
  if (r->to_fd >= 0)
    r->io->close(r->io, r->to_fd);
  cairn__point_close(r->io, r->p);
  cairn__exports_close(&r->x);
  json_decref(r->made);
  json_decref(r->report);
}

/* What a target costs: the data of a disk, the bytes of another file. */
static int target_bytes(struct restore *r, const struct target *t,
                        uint64_t *bytes, struct cairn_error *err)
{
  struct cairn__source *source;
  if (!t->is_disk) {
    *bytes = number_of(t->file, "size");
    return 0;
  }
  int result = open_source(r, t->file, &source, err);
  if (result == 0) {
    result = cairn__source_data_bytes(source, NULL, r->run, bytes, err);
    cairn__source_close(source);
  }
  if (result != 0)
    locate(r, t, err);
  return result;
}

static int restore(struct restore *r, struct cairn_error *err)
{
  uint64_t total = 0, bytes, token;
  int nearest;
  if (restore_prepare(r, err) != 0 || refuse_conflicts(r, err) != 0)
    return -1;
  if (getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot draw a name");
  snprintf(r->token, sizeof r->token, "%016" PRIx64, token);
  for (size_t i = 0; i < r->count; i++) {
    if (target_bytes(r, &r->targets[i], &bytes, err) != 0)
      return -1;
    total += bytes;
  }
  r->run->bytes_total = total;
  if (r->to_fd < 0) {
    if (walk_to(r, 1, &nearest, err) != 0)
      return -1;
    int result = refuse_inside(r, nearest, err);
    r->io->close(r->io, nearest);
    if (result != 0)
      return -1;
  }
  for (; r->written < r->count; r->written++)
    if (restore_target(r, &r->targets[r->written], err) != 0)
      return -1;
  return 0;
}

/* Paths of the files that were wanted and are not complete. */
static json_t *list_not_written(const struct restore *r)
{
  json_t *array = json_array();
  for (size_t i = r->written; i < r->count; i++)
    if (json_array_append_new(array, json_string(r->targets[i].full)) != 0) {
      json_decref(array);
      return NULL;
    }
  return array;
}

/* After a failure: the directories that we made and that stayed empty. */
static void remove_made(struct restore *r)
{
  for (size_t i = json_array_size(r->made); i > 0; i--)
    r->io->unlinkat(r->io, AT_FDCWD,
                    json_string_value(json_array_get(r->made, i - 1)),
                    AT_REMOVEDIR);
}

static void restore_main(struct cairn__run *run)
{
  struct restore r = {.io = run->io,
                      .run = run,
                      .spec = run->spec,
                      .x = {.io = run->io, .fd = -1}};
  struct cairn_error *err = &run->error;
  cairn__error_clear(err);
  cairn__run_enter(run);
  int result = restore(&r, err);
  if (result != 0 && err->id != CAIRN_E_KILLED)
    remove_made(&r);
  run->report =
      json_pack("{s:s?, s:s, s:s, s:s, s:O?, s:o?}", "ReferencePointGroupId",
                r.p ? cairn__point_id(r.p) : NULL, "directory",
                text_of(run->spec, "directory"), "to", to_of(&r), "format",
                text_of(run->spec, "format"), "files", r.report, "not_written",
                list_not_written(&r));
  if (!run->report && result == 0)
    cairn__fail_memory(err);
  restore_close(&r);
  cairn__run_leave(run);
}

/* ---- the dry run -------------------------------------------------------- */

static int plan_targets(struct restore *r, json_t *files, json_t *conflicts,
                        uint64_t *total, struct cairn_error *err)
{
  for (size_t i = 0; i < r->count; i++) {
    const struct target *t = &r->targets[i];
    const json_t *machine =
        cairn__point_machine(r->p, text_of(t->file, "VirtualMachineId"));
    uint64_t bytes;
    int is_there = exists(r, t, err);
    if (is_there < 0 || target_bytes(r, t, &bytes, err) != 0)
      return -1;
    *total += bytes;
    json_t *path = json_string(t->full);
    if (is_there && json_array_append(conflicts, path) != 0) {
      json_decref(path);
      return cairn__fail_memory(err);
    }
    json_t *entry = json_pack(
        "{s:s, s:s?, s:s?, s:s?, s:o, s:I, s:I, s:b}", "role",
        text_of(t->file, "role"), "VirtualMachineId",
        text_of(t->file, "VirtualMachineId"), "ElementName",
        text_of(machine, "ElementName"), "disk", text_of(t->file, "disk"),
        "path", path, "length",
        (json_int_t)number_of(t->file, t->is_disk ? "length" : "size"), "bytes",
        (json_int_t)bytes, "exists", is_there);
    if (!entry || json_array_append_new(files, entry) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

static int free_bytes(struct restore *r, uint64_t *bytes,
                      struct cairn_error *err)
{
  struct statvfs fs;
  int nearest = r->to_fd, opened = -1;
  if (nearest < 0) {
    if (walk_to(r, 0, &opened, err) != 0)
      return -1;
    nearest = opened;
  }
  int result = fstatvfs(nearest, &fs);
  int saved = errno;
  if (opened >= 0)
    r->io->close(r->io, opened);
  if (result != 0)
    return fail_to(r, saved, "ask for the free space of", "", err);
  *bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  return 0;
}

static int plan_restore(const struct cairn_io *io, const json_t *spec,
                        json_t **plan, struct cairn_error *err)
{
  struct restore r = {.io = io, .spec = spec, .x = {.io = io, .fd = -1}};
  json_t *files = json_array(), *conflicts = json_array();
  uint64_t total = 0, available = 0;
  int result = files && conflicts ? 0 : cairn__fail_memory(err);
  if (result == 0 && (restore_prepare(&r, err) != 0 ||
                      plan_targets(&r, files, conflicts, &total, err) != 0 ||
                      free_bytes(&r, &available, err) != 0))
    result = -1;
  if (result == 0) {
    *plan = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:O, s:O, s:b, s:I, s:I, s:b}", "kind",
        "restore", "ReferencePointGroupId", cairn__point_id(r.p), "directory",
        text_of(spec, "directory"), "to", text_of(spec, "to"), "format",
        text_of(spec, "format"), "files", files, "conflicts", conflicts,
        "overwrite", json_is_true(json_object_get(spec, "overwrite")),
        "bytes_to_write", (json_int_t)total, "bytes_free",
        (json_int_t)available, "has_space", total <= available);
    if (!*plan)
      result = cairn__fail_memory(err);
  }
  json_decref(files);
  json_decref(conflicts);
  restore_close(&r);
  return result;
}

const struct cairn__kind cairn__kind_restore = {.name = "restore",
                                                .check = check_spec,
                                                .main = restore_main,
                                                .plan = plan_restore};
