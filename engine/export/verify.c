/* The verify kind: proves that points are what was written, in three depths,
 * each with everything of the one before.
 *
 *   set      every file of the manifest is there with its size, and nothing
 *            else is: no further file, link or special file
 *   chain    headers agree with the manifest (ids, sizes, backing names), and
 *            every base down to the full is there and has the content that
 *            was recorded
 *   content  every stored byte is read once (content.c)
 *
 * What is wrong with a point is a finding: it is reported and the check goes
 * on, and the run fails in the end with the first of them. What keeps the check
 * from looking (memory, permission, a request) ends it.
 *
 * The files of a point are checked by several threads; each file's findings
 * are its own until all are done, so the report's order is the manifest's. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "collection.h"
#include "content.h"
#include "error.h"
#include "image.h"
#include "index.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "points.h"
#include "publish.h"
#include "spec.h"

#define THREADS_MAX 4

enum depth { DEPTH_SET, DEPTH_CHAIN, DEPTH_CONTENT };

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

static int is_image(const json_t *file)
{
  const char *role = text_of(file, "role");
  return strcmp(role, "disk") == 0 || strcmp(role, "log") == 0;
}

static void name_machine(const struct cairn__point *p, const char *id,
                         struct cairn_error *err)
{
  size_t i;
  json_t *machine;
  json_array_foreach(json_object_get(p->manifest, "machines"), i, machine)
  {
    if (strcmp(text_of(machine, "VirtualMachineId"), id) == 0)
      cairn__error_name_machine(err, text_of(machine, "ElementName"));
  }
}

/* Says of which machine and disk an error is. */
static void locate(const struct cairn__point *p, const json_t *file,
                   struct cairn_error *err)
{
  const char *vm = text_of(file, "VirtualMachineId");
  cairn__error_locate(err, vm, text_of(file, "disk"));
  if (vm)
    name_machine(p, vm, err);
}

/* ---- the specification -------------------------------------------------- */

static const char *const depths[] = {"set", "chain", "content", NULL};

static const struct cairn__spec_key keys[] = {
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"point", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"depth", CAIRN__SPEC_STRING, 0, depths, "content"},
    {"source", CAIRN__SPEC_OBJECT, 0, NULL, NULL}};

static int check_spec(json_t *spec, struct cairn_error *err)
{
  if (cairn__spec_check(spec, "verify", keys, sizeof keys / sizeof *keys,
                        err) != 0)
    return -1;
  json_t *source = json_object_get(spec, "source");
  return source ? cairn__collection_check(source, "verify.source", err) : 0;
}

static enum depth depth_of(const json_t *spec)
{
  const char *text = text_of(spec, "depth");
  for (int i = 0; text && depths[i]; i++)
    if (strcmp(depths[i], text) == 0)
      return (enum depth)i;
  return DEPTH_CONTENT;
}

/* ---- one point ---------------------------------------------------------- */

struct item {
  struct cairn__content_check check;
  struct cairn_error err; /* id != CAIRN_OK: it could not be checked */
};

struct verify {
  struct cairn__run *run;
  struct cairn__exports x;
  enum depth depth;
  json_t *points; /* the report's */
  json_t *seen;   /* ReferencePointGroupId -> the directory that has it */
  size_t point_count, damaged, findings;
  struct cairn_error first; /* the first finding as an error */
};

struct point_check {
  struct verify *v;
  const struct cairn__point *p;
  struct cairn__digester digester;
  struct cairn__findings found; /* of the point itself: set and chain */
  json_t *bad;                  /* set of paths that are not worth opening */
  json_t *expected, *directories, *seen; /* of the set check */
  size_t wide_count;                     /* files that others may read */
  char wide[512];                        /* the first of them */
  struct item *items;
  size_t item_count, files;
  uint64_t bytes;
  _Atomic size_t next;
  _Atomic int is_stopping;
};

static int add_key(json_t *set, const char *key, struct cairn_error *err)
{
  return json_object_set_new(set, key, json_true()) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* ---- depth: set --------------------------------------------------------- */

static int expect_files(struct point_check *c, struct cairn_error *err)
{
  size_t i;
  json_t *file;
  if (json_object_set_new(c->expected, CAIRN__MANIFEST_NAME, json_null()) != 0)
    return cairn__fail_memory(err);
  /* a machine without files may have its directory */
  json_array_foreach(json_object_get(c->p->manifest, "machines"), i, file)
  {
    if (add_key(c->directories, text_of(file, "VirtualMachineId"), err) != 0)
      return -1;
  }
  json_array_foreach(json_object_get(c->p->manifest, "files"), i, file)
  {
    const char *path = text_of(file, "path");
    if (json_object_set(c->expected, path, file) != 0)
      return cairn__fail_memory(err);
    for (const char *slash = strchr(path, '/'); slash;
         slash = strchr(slash + 1, '/')) {
      char *parent = cairn__strndup(path, (size_t)(slash - path));
      int result = parent ? add_key(c->directories, parent, err)
                          : cairn__fail_memory(err);
      cairn__free(parent);
      if (result != 0)
        return -1;
    }
  }
  return 0;
}

static void note_mode(struct point_check *c, const char *path, mode_t mode)
{
  if ((mode & 077) && c->wide_count++ == 0)
    cairn__printable(path[0] ? path : c->p->path, c->wide, sizeof c->wide);
}

static int walk(struct point_check *c, int dirfd, const char *prefix,
                struct cairn_error *err);

/* One directory entry; `path` is relative to the point. */
static int walk_entry(struct point_check *c, int dirfd, const char *name,
                      const char *path, struct cairn_error *err)
{
  const struct cairn_io *io = c->v->run->io;
  struct stat st;
  json_t *file = json_object_get(c->expected, path);
  if (io->fstatat(io, dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
    char printable[1024];
    return cairn__fail_errno(
        err, errno, path, -1, "cannot look at %s/%s", c->p->path,
        cairn__printable(path, printable, sizeof printable));
  }
  if (S_ISDIR(st.st_mode) && json_object_get(c->directories, path)) {
    note_mode(c, path, st.st_mode);
    int fd =
        io->openat(io, dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0)
      return cairn__fail_errno(err, errno, path, -1, "cannot open %s/%s",
                               c->p->path, path);
    int result = walk(c, fd, path, err);
    io->close(io, fd);
    return result;
  }
  if (!file) {
    cairn__finding_add(&c->found, NULL, path, -1, -1,
                       S_ISDIR(st.st_mode)
                           ? "the directory is not in the manifest"
                           : "the file is not in the manifest");
    return 0;
  }
  if (add_key(c->seen, path, err) != 0)
    return -1;
  note_mode(c, path, st.st_mode);
  c->files++;
  if (!S_ISREG(st.st_mode)) {
    cairn__finding_add(&c->found, file, path, -1, -1,
                       S_ISLNK(st.st_mode)
                           ? "a symbolic link in place of a regular file"
                           : "no regular file");
    return add_key(c->bad, path, err);
  }
  if (json_is_null(file) || (uint64_t)st.st_size == number_of(file, "size"))
    return 0;
  cairn__finding_add(&c->found, file, path, -1, -1,
                     "%" PRIu64 " bytes, not %" PRIu64, (uint64_t)st.st_size,
                     number_of(file, "size"));
  return add_key(c->bad, path, err);
}

static int walk(struct point_check *c, int dirfd, const char *prefix,
                struct cairn_error *err)
{
  const struct cairn_io *io = c->v->run->io;
  DIR *dir = io->fdopendir(io, dirfd);
  int result = 0;
  if (!dir)
    return cairn__fail_errno(err, errno, prefix, -1, "cannot list %s/%s",
                             c->p->path, prefix);
  rewinddir(dir);
  while (result == 0) {
    errno = 0;
    const struct dirent *e = readdir(dir);
    if (!e && errno)
      result = cairn__fail_errno(err, errno, prefix, -1, "cannot list %s/%s",
                                 c->p->path, prefix);
    if (!e)
      break;
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
      continue;
    char *path =
        cairn__format("%s%s%s", prefix, prefix[0] ? "/" : "", e->d_name);
    result = path ? walk_entry(c, dirfd, e->d_name, path, err)
                  : cairn__fail_memory(err);
    cairn__free(path);
    if (result == 0)
      result = cairn__run_gate(c->v->run, err);
  }
  closedir(dir);
  return result;
}

static int check_set(struct point_check *c, struct cairn_error *err)
{
  const struct cairn_io *io = c->v->run->io;
  struct stat st;
  size_t i;
  json_t *file;
  c->expected = json_object();
  c->directories = json_object();
  c->seen = json_object();
  c->bad = json_object();
  if (!c->expected || !c->directories || !c->seen || !c->bad)
    return cairn__fail_memory(err);
  if (io->fstat(io, c->p->fd, &st) != 0)
    return cairn__fail_errno(err, errno, c->p->path, -1, "cannot look at %s",
                             c->p->path);
  note_mode(c, "", st.st_mode);
  if (expect_files(c, err) != 0 || walk(c, c->p->fd, "", err) != 0)
    return -1;
  json_array_foreach(json_object_get(c->p->manifest, "files"), i, file)
  {
    const char *path = text_of(file, "path");
    if (json_object_get(c->seen, path))
      continue;
    cairn__finding_add(&c->found, file, NULL, -1, -1, "the file is missing");
    if (add_key(c->bad, path, err) != 0)
      return -1;
  }
  return 0;
}

/* ---- depth: chain ------------------------------------------------------- */

/* Turns an error that says "damaged" into a finding; others stay errors. */
static int find_or_fail(struct point_check *c, const json_t *entry,
                        const char *file, const struct cairn_error *why,
                        struct cairn_error *err)
{
  if (!cairn__error_is_damage(why)) {
    if (err)
      *err = *why;
    return -1;
  }
  cairn__finding_add(&c->found, entry, file, why->offset, -1, "%s",
                     why->message);
  return 0;
}

static const json_t *map_of(const struct cairn__point *p, const json_t *image)
{
  return cairn__point_map(p, text_of(image, "VirtualMachineId"),
                          text_of(image, "disk"));
}

/* The set check has said already that this file cannot be used. */
static int is_bad(const struct point_check *c, const json_t *file)
{
  return json_object_get(c->bad, text_of(file, "path")) != NULL;
}

static int check_chain_of(struct point_check *c, const json_t *image,
                          struct cairn_error *err)
{
  struct cairn__exports *x = &c->v->x;
  struct cairn__layer *layer;
  struct cairn__map *map;
  struct cairn_error why;
  cairn__error_clear(&why);
  if (cairn__run_gate(c->v->run, err) != 0)
    return -1;
  if (cairn__point_open_chain(x, c->p, image, NULL, NULL, &why) != 0 ||
      cairn__point_open_layer(x, c->p, image, &layer, &why) != 0)
    return find_or_fail(c, image, NULL, &why, err);
  cairn__layer_close(layer);
  /* the content check opens the map too, and would find the same */
  if (c->v->depth == DEPTH_CONTENT || is_bad(c, map_of(c->p, image)))
    return 0;
  if (cairn__point_open_map(c->v->run->io, c->p, image, &c->digester, &map,
                            &why) != 0)
    return find_or_fail(c, map_of(c->p, image), NULL, &why, err);
  cairn__map_close(map);
  return 0;
}

/* A base must be digested with the same secret, or its map says nothing. */
static int check_base(struct point_check *c, const json_t *image,
                      const struct cairn__point **base, struct cairn_error *err)
{
  struct cairn__digester below;
  struct cairn_error why;
  cairn__error_clear(&why);
  *base = NULL;
  const char *id = text_of(image, "base");
  if (!id)
    return 0;
  const struct cairn__point *p;
  if (cairn__exports_base(&c->v->x, id, &p, &why) != 0) {
    /* missing: the chain check has found it */
    if (why.id == CAIRN_E_NOT_FOUND)
      return 0;
    return find_or_fail(c, image, NULL, &why, err);
  }
  if (cairn__point_digester(c->v->run->io, p, &below, &why) != 0)
    return find_or_fail(c, image, NULL, &why, err);
  if (below.algorithm != c->digester.algorithm ||
      memcmp(below.secret, c->digester.secret, sizeof below.secret) != 0) {
    cairn__finding_add(&c->found, image, NULL, -1, -1,
                       "its base %s has another algorithm or secret", id);
    return 0;
  }
  *base = p;
  return 0;
}

/* ---- depth: content ----------------------------------------------------- */

static void *content_thread(void *argument)
{
  struct point_check *c = argument;
  cairn__run_enter(c->v->run);
  for (;;) {
    size_t i = atomic_fetch_add(&c->next, 1);
    if (i >= c->item_count || atomic_load(&c->is_stopping))
      break;
    if (cairn__content_check_file(&c->items[i].check, &c->items[i].err) != 0)
      atomic_store(&c->is_stopping, 1);
  }
  cairn__run_leave(c->v->run);
  return NULL;
}

/* Called within the run (entered); is one of the threads. */
static void run_items(struct point_check *c)
{
  pthread_t threads[THREADS_MAX];
  size_t count = 0;
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  size_t wanted = processors > THREADS_MAX ? THREADS_MAX
                  : processors < 1         ? 1
                                           : (size_t)processors;
  if (wanted > c->item_count)
    wanted = c->item_count;
  cairn__run_leave(c->v->run);
  /* fewer threads than wanted are no failure: this one does it all */
  while (count + 1 < wanted &&
         pthread_create(&threads[count], NULL, content_thread, c) == 0)
    count++;
  content_thread(c);
  while (count > 0)
    pthread_join(threads[--count], NULL);
  cairn__run_enter(c->v->run);
}

static int merge(struct cairn__findings *into, struct cairn__findings *from)
{
  size_t i;
  json_t *finding;
  if (from->array && !into->array)
    into->array = json_array();
  json_array_foreach(from->array, i, finding)
  {
    if (json_array_size(into->array) < CAIRN__FINDINGS_MAX &&
        json_array_append(into->array, finding) != 0)
      into->has_lost = 1;
  }
  into->count += from->count;
  into->has_lost |= from->has_lost;
  return into->has_lost ? -1 : 0;
}

static int check_content(struct point_check *c, struct cairn_error *err)
{
  const json_t *files = json_object_get(c->p->manifest, "files");
  size_t i;
  json_t *file;
  int result = -1;
  c->items = cairn__calloc(json_array_size(files) + 1, sizeof *c->items);
  if (!c->items)
    return cairn__fail_memory(err);
  json_array_foreach(files, i, file)
  {
    if (strcmp(text_of(file, "role"), "digests") == 0 || is_bad(c, file))
      continue;
    struct item *item = &c->items[c->item_count++];
    cairn__error_clear(&item->err);
    item->check = (struct cairn__content_check){.run = c->v->run,
                                                .point = c->p,
                                                .digester = &c->digester,
                                                .file = file};
    if (!is_image(file))
      continue;
    item->check.has_no_map = is_bad(c, map_of(c->p, file));
    if (check_base(c, file, &item->check.base, err) != 0)
      return -1;
  }
  run_items(c);
  result = 0;
  for (i = 0; i < c->item_count; i++) {
    struct item *item = &c->items[i];
    c->bytes += item->check.bytes;
    if (item->err.id != CAIRN_OK && result == 0) {
      if (err)
        *err = item->err;
      locate(c->p, item->check.file, err);
      result = -1;
    }
    if (merge(&c->found, &item->check.found) != 0 && result == 0)
      result = cairn__fail_memory(err);
  }
  return result;
}

/* ---- the report --------------------------------------------------------- */

/* " (at offset N of the file, M of the disk)", as far as it is known and
 * `what` does not say it already. */
static void format_place(const json_t *finding, const char *what, char *text,
                         size_t size)
{
  const json_t *offset = json_object_get(finding, "offset");
  const json_t *guest = json_object_get(finding, "guest_offset");
  int has_offset = json_is_integer(offset) && !strstr(what, "at offset");
  int has_guest = json_is_integer(guest);
  char file[64] = "", disk[64] = "";
  if (has_offset)
    snprintf(file, sizeof file, "%lld of the file",
             (long long)json_integer_value(offset));
  if (has_guest)
    snprintf(disk, sizeof disk, "%lld of the disk",
             (long long)json_integer_value(guest));
  text[0] = 0;
  if (has_offset || has_guest)
    snprintf(text, size, " (at offset %s%s%s)", file,
             has_offset && has_guest ? ", " : "", disk);
}

/* Remembers the first thing that is wrong, as the error of the run. */
static void note_first(struct verify *v, const struct cairn__point *p,
                       const json_t *finding)
{
  char path[1024], place[160], whole[2 * PATH_MAX];
  if (v->first.id != CAIRN_OK)
    return;
  const char *file = text_of(finding, "file");
  const char *what = text_of(finding, "what");
  const json_t *offset = json_object_get(finding, "offset");
  cairn__printable(p->path, path, sizeof path);
  format_place(finding, what, place, sizeof place);
  /* some name the file already */
  if (strstr(what, path))
    cairn__fail(&v->first, CAIRN_E_EXPORT_CORRUPT, "%s%s", what, place);
  else
    cairn__fail(&v->first, CAIRN_E_EXPORT_CORRUPT, "%s/%s: %s%s", path, file,
                what, place);
  v->first.offset = -1;
  snprintf(whole, sizeof whole, "%s/%s", p->path, file);
  cairn__error_set_path(&v->first, whole,
                        json_is_integer(offset) ? json_integer_value(offset)
                                                : -1);
  if (text_of(finding, "machine")) {
    cairn__error_locate(&v->first, text_of(finding, "machine"),
                        text_of(finding, "disk"));
    name_machine(p, text_of(finding, "machine"), &v->first);
  }
}

static int report_point(struct point_check *c, struct cairn_error *err)
{
  struct verify *v = c->v;
  size_t shown = json_array_size(c->found.array);
  json_t *findings =
      c->found.array ? json_incref(c->found.array) : json_array();
  json_t *entry = json_pack(
      "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "ReferencePointGroupId",
      cairn__point_id(c->p), "directory", c->p->path, "result",
      c->found.count ? "damaged" : "ok", "depth", depths[v->depth], "files",
      (json_int_t)c->files, "bytes", (json_int_t)c->bytes, "findings_left_out",
      (json_int_t)(c->found.count - shown), "findings", findings);
  if (c->wide_count)
    cairn__run_warn(v->run,
                    "%s: modes wider than 0700 and 0600 on %zu directories "
                    "and files, the first: %s",
                    c->p->path, c->wide_count, c->wide);
  v->point_count++;
  v->findings += c->found.count;
  v->damaged += c->found.count != 0;
  if (shown)
    note_first(v, c->p, json_array_get(c->found.array, 0));
  if (!entry || json_array_append_new(v->points, entry) != 0)
    return cairn__fail_memory(err);
  return 0;
}

/* A directory whose manifest cannot be used. */
static int report_unreadable(struct verify *v, const char *directory,
                             const char *id, const struct cairn_error *why,
                             struct cairn_error *err)
{
  struct cairn__findings found = {0};
  cairn__finding_add(&found, NULL, CAIRN__MANIFEST_NAME, why->offset, -1, "%s",
                     why->message);
  char name[1024];
  json_t *entry = json_pack(
      "{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:o?}", "ReferencePointGroupId", id,
      "directory", cairn__printable(directory, name, sizeof name), "result",
      cairn__error_is_damage(why) ? "damaged" : "not checked", "depth",
      depths[v->depth], "files", 0, "bytes", 0, "findings_left_out", 0,
      "findings", found.array);
  v->point_count++;
  v->findings++;
  v->damaged++;
  if (v->first.id == CAIRN_OK)
    v->first = *why;
  /* the point is there and its manifest is not: that is damage */
  if (v->first.id == CAIRN_E_NOT_AN_EXPORT)
    v->first.id = CAIRN_E_EXPORT_CORRUPT;
  if (found.has_lost || !entry || json_array_append_new(v->points, entry) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int check_point(struct point_check *c, struct cairn_error *err)
{
  struct cairn_error why;
  size_t i;
  json_t *file;
  if (check_set(c, err) != 0)
    return -1;
  if (c->v->depth == DEPTH_SET)
    return 0;
  cairn__error_clear(&why);
  if (json_object_get(c->bad, CAIRN__SECRET_NAME))
    return 0; /* found; without it nothing more can be said */
  if (cairn__point_digester(c->v->run->io, c->p, &c->digester, &why) != 0)
    return find_or_fail(c, NULL, CAIRN__SECRET_NAME, &why, err);
  json_array_foreach(json_object_get(c->p->manifest, "files"), i, file)
  {
    if (is_image(file) && !is_bad(c, file) &&
        check_chain_of(c, file, err) != 0) {
      locate(c->p, file, err);
      return -1;
    }
  }
  return c->v->depth == DEPTH_CONTENT ? check_content(c, err) : 0;
}

/* A point that was moved or copied is whole, but not what it was made as. */
static int warn_of_place(struct verify *v, const struct cairn__point *p,
                         struct cairn_error *err)
{
  const char *id = cairn__point_id(p);
  const char *other = text_of(v->seen, id);
  const char *name = strrchr(p->path, '/');
  char shown[512];
  cairn__printable(p->path, shown, sizeof shown);
  name = name ? name + 1 : p->path;
  if (other)
    cairn__run_warn(v->run,
                    "%s holds the same reference point (%s) as \"%s\": one of "
                    "them is a copy, move it elsewhere",
                    shown, id, other);
  else if (strcasecmp(name, id) != 0 && name[0] && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0)
    cairn__run_warn(v->run,
                    "%s is not named after its reference point (%s): points "
                    "based on it do not find it in QEMU",
                    shown, id);
  if (!other && json_object_set_new(v->seen, id, json_string(shown)) != 0)
    return cairn__fail_memory(err);
  return 0;
}

/* What was doubtful is proved: the mark goes, if the directory can be changed
 * now; else it stays, and a warning says so. */
static void clear_doubt(struct verify *v, const char *id)
{
  const struct cairn_io *io = v->run->io;
  struct cairn__publication publication;
  struct cairn_error why;
  json_t *index = NULL;
  int result;
  cairn__error_clear(&why);
  if (v->x.fd < 0 ||
      cairn__index_read(io, v->x.fd, v->x.path, &index, &why) != 0)
    return;
  const char *reason = cairn__index_suspect(index, id);
  if (reason) {
    cairn__publication_init(&publication, io);
    result = cairn__publication_open(&publication, v->x.path, &why);
    if (result == 0)
      result = cairn__index_clear_suspect(io, publication.dirfd, v->x.path, id,
                                          &why);
    cairn__publication_close(&publication, v->run, 0);
    if (result != 0)
      cairn__run_warn(v->run,
                      "%s is sound, but stays marked as doubtful for now: %s",
                      id, why.message);
  }
  json_decref(index);
}

static int verify_point(struct verify *v, const struct cairn__point *p,
                        struct cairn_error *err)
{
  if (warn_of_place(v, p, err) != 0)
    return -1;
  struct point_check c = {.v = v, .p = p};
  int result = check_point(&c, err);
  if (result == 0 && c.found.has_lost)
    result = cairn__fail_memory(err);
  if (result == 0)
    result = report_point(&c, err);
  if (result == 0 && c.found.count == 0 && v->depth == DEPTH_CONTENT)
    clear_doubt(v, cairn__point_id(p));
  for (size_t i = 0; i < c.item_count; i++)
    json_decref(c.items[i].check.found.array);
  cairn__free(c.items);
  json_decref(c.found.array);
  json_decref(c.bad);
  json_decref(c.expected);
  json_decref(c.directories);
  json_decref(c.seen);
  cairn__exports_forget_bases(&v->x);
  return result;
}

/* ---- which points ------------------------------------------------------- */

/* Errors of one point that say nothing about the next. */
static int is_of_point(const struct cairn_error *why)
{
  return cairn__error_is_damage(why) || why->id == CAIRN_E_VERSION ||
         why->id == CAIRN_E_PERMISSION_DENIED;
}

/* Calls `each` for every point of the directory; one that cannot be opened is
 * given as an error. */
static int for_each_point(struct cairn__exports *x,
                          int (*each)(void *arg, const struct cairn__point *p,
                                      const char *name,
                                      const struct cairn_error *why,
                                      struct cairn_error *err),
                          void *arg, struct cairn_error *err)
{
  json_t *names, *name;
  size_t i;
  int result = 0;
  char id[37];
  if (cairn__exports_names(x, &names, err) != 0)
    return -1;
  json_array_foreach(names, i, name)
  {
    const char *text = json_string_value(name);
    struct cairn__point *p;
    struct cairn_error why;
    cairn__error_clear(&why);
    if (cairn__exports_point(x, text, &p, &why) == 0) {
      result = each(arg, p, text, NULL, err);
      cairn__point_close(x->io, p);
    } else if (why.id == CAIRN_E_NOT_AN_EXPORT &&
               cairn__guid_canonical(text, id) != 0) {
      continue; /* somebody else's directory */
    } else if (is_of_point(&why)) {
      result = each(arg, NULL, text, &why, err);
    } else {
      result = -1;
      if (err)
        *err = why;
    }
    if (result != 0)
      break;
  }
  json_decref(names);
  return result;
}

static uint64_t bytes_of(const struct cairn__point *p)
{
  uint64_t bytes = 0;
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(p->manifest, "files"), i, file)
  {
    bytes += number_of(file, "size");
  }
  return bytes;
}

static int sum_one(void *arg, const struct cairn__point *p, const char *name,
                   const struct cairn_error *why, struct cairn_error *err)
{
  (void)name;
  (void)why;
  (void)err;
  if (p)
    *(uint64_t *)arg += bytes_of(p);
  return 0;
}

static int verify_one(void *arg, const struct cairn__point *p, const char *name,
                      const struct cairn_error *why, struct cairn_error *err)
{
  struct verify *v = arg;
  if (p)
    return verify_point(v, p, err);
  char *path = cairn__format("%s/%s", v->x.path, name);
  int result = path ? report_unreadable(v, path, name, why, err)
                    : cairn__fail_memory(err);
  cairn__free(path);
  return result;
}

static int verify_all(struct verify *v, struct cairn_error *err)
{
  uint64_t bytes = 0;
  if (v->depth == DEPTH_CONTENT) {
    if (for_each_point(&v->x, sum_one, &bytes, err) != 0)
      return -1;
    v->run->bytes_total = bytes;
  }
  if (for_each_point(&v->x, verify_one, v, err) != 0)
    return -1;
  if (v->point_count == 0)
    return cairn__fail(err, CAIRN_E_NOT_AN_EXPORT,
                       "%s holds no reference point", v->x.path);
  return 0;
}

/* ---- against the sources ------------------------------------------------ */

/* A disk of the point and where it lives. */
struct live {
  const json_t *machine, *disk; /* of the collection */
  const json_t *image;          /* of the point's manifest, or NULL */
  struct cairn__source *source; /* NULL when image is */
};

struct comparison {
  struct verify *v;
  const struct cairn__point *p;
  struct live *lives;
  size_t count, differing;
  const char **directories;
  size_t directory_count;
  json_t *report;
};

static int report_live(struct comparison *c, const char *vm, const char *disk,
                       const char *result, int64_t offset, const char *what,
                       struct cairn_error *err)
{
  json_t *entry =
      json_pack("{s:s, s:s, s:s, s:o, s:s?}", "machine", vm, "disk", disk,
                "result", result, "offset",
                offset < 0 ? json_null() : json_integer(offset), "what", what);
  if (!entry || json_array_append_new(c->report, entry) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int open_live(struct comparison *c, struct live *l,
                     struct cairn_error *err)
{
  struct cairn__source_options o = {
      .io = c->v->run->io,
      .path = text_of(l->disk, "path"),
      .format = text_of(l->disk, "format"),
      .directories = c->directories,
      .directory_count = c->directory_count,
      .assume_quiescent =
          json_is_true(json_object_get(l->disk, "assume_quiescent")),
      .readers = 2};
  if (cairn__run_gate(c->v->run, err) != 0)
    return -1;
  return strcmp(o.format, "raw") == 0
             ? cairn__source_open_raw(&o, &l->source, err)
             : cairn__source_open_qcow2(&o, c->v->run, &l->source, err);
}

static int collect(struct comparison *c, const json_t *collection,
                   struct cairn_error *err)
{
  const json_t *machines = json_object_get(collection, "machines");
  const json_t *directories = json_object_get(collection, "source_directories");
  json_t *machine, *disk, *directory;
  size_t i, j, total = 0;
  json_array_foreach(machines, i, machine)
  {
    total += json_array_size(json_object_get(machine, "disks"));
  }
  c->lives = cairn__calloc(total + 1, sizeof *c->lives);
  c->directories =
      cairn__calloc(json_array_size(directories) + 1, sizeof *c->directories);
  c->report = json_array();
  if (!c->lives || !c->directories || !c->report)
    return cairn__fail_memory(err);
  json_array_foreach(directories, i, directory)
  {
    c->directories[c->directory_count++] = json_string_value(directory);
  }
  json_array_foreach(machines, i, machine)
  {
    const char *vm = text_of(machine, "VirtualMachineId");
    json_array_foreach(json_object_get(machine, "disks"), j, disk)
    {
      struct live *l = &c->lives[c->count++];
      l->machine = machine;
      l->disk = disk;
      l->image = cairn__point_image(c->p, vm, text_of(disk, "id"));
      if (!l->image) {
        if (report_live(c, vm, text_of(disk, "id"), "not in the point", -1,
                        NULL, err) != 0)
          return -1;
      } else if (open_live(c, l, err) != 0) {
        cairn__error_locate(err, vm, text_of(disk, "id"));
        cairn__error_name_machine(err, text_of(machine, "ElementName"));
        return -1;
      }
    }
  }
  return 0;
}

/* Disks of the point that the collection does not have. */
static int report_absent(struct comparison *c, struct cairn_error *err)
{
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(c->p->manifest, "files"), i, file)
  {
    size_t k = 0;
    if (!is_image(file))
      continue;
    while (k < c->count && c->lives[k].image != file)
      k++;
    if (k == c->count &&
        report_live(c, text_of(file, "VirtualMachineId"), text_of(file, "disk"),
                    "not in the collection", -1, NULL, err) != 0)
      return -1;
  }
  return 0;
}

/* The copy speaks of a digest map; here it is the source that is judged. */
static void describe_difference(const struct live *l, struct cairn_error *why)
{
  char shown[512];
  int64_t offset = why->offset;
  cairn__fail(why, CAIRN_E_SOURCE_DIFFERS,
              "the source \"%s\" differs from the point, first in the %u bytes "
              "from offset %" PRId64,
              cairn__printable(l->source->path, shown, sizeof shown),
              CAIRN__BLOCK, offset);
  cairn__error_set_path(why, l->source->path, offset);
}

static int compare_live(struct comparison *c, struct live *l,
                        const struct cairn__digester *d,
                        struct cairn_error *err)
{
  const char *vm = text_of(l->image, "VirtualMachineId");
  const char *disk = text_of(l->image, "disk");
  struct cairn_error why;
  struct cairn__map *map;
  cairn__error_clear(&why);
  if (l->source->length != number_of(l->image, "length")) {
    char shown[512];
    cairn__fail(&why, CAIRN_E_SOURCE_DIFFERS,
                "the source \"%s\" has %" PRIu64 " bytes, the point %" PRIu64,
                cairn__printable(l->source->path, shown, sizeof shown),
                l->source->length, number_of(l->image, "length"));
    cairn__error_set_path(&why, l->source->path, -1);
  } else {
    if (cairn__point_open_map(c->v->run->io, c->p, l->image, d, &map, err) != 0)
      return -1;
    struct cairn__copy copy = {
        .run = c->v->run, .source = l->source, .digester = d, .map = map};
    int result = cairn__copy_run(&copy, &why);
    cairn__map_close(map);
    /* a source that changed meanwhile proves nothing either way */
    struct cairn_error moved;
    cairn__error_clear(&moved);
    if ((result == 0 || why.id == CAIRN_E_DIGEST_MISMATCH) &&
        l->source->ops->check_still(l->source, &moved) != 0)
      why = moved;
    else if (result == 0)
      return report_live(c, vm, disk, "same", -1, NULL, err);
    else if (why.id == CAIRN_E_DIGEST_MISMATCH)
      describe_difference(l, &why);
  }
  if (why.id != CAIRN_E_SOURCE_DIFFERS) {
    locate(c->p, l->image, &why);
    if (err)
      *err = why;
    return -1;
  }
  c->differing++;
  if (report_live(c, vm, disk, "different", why.offset, why.message, err) != 0)
    return -1;
  locate(c->p, l->image, &why);
  if (c->v->first.id == CAIRN_OK)
    c->v->first = why;
  return 0;
}

static void comparison_close(struct comparison *c)
{
  for (size_t i = 0; i < c->count; i++)
    cairn__source_close(c->lives[i].source);
  cairn__free(c->lives);
  cairn__free(c->directories);
  json_decref(c->report);
}

static int compare_sources(struct comparison *c, struct cairn_error *err)
{
  struct cairn__digester d;
  if (cairn__point_digester(c->v->run->io, c->p, &d, err) != 0 ||
      report_absent(c, err) != 0)
    return -1;
  for (size_t i = 0; i < c->count; i++)
    if (c->lives[i].image && compare_live(c, &c->lives[i], &d, err) != 0)
      return -1;
  return 0;
}

/* ---- the run ------------------------------------------------------------ */

static int verify_selected(struct verify *v, const struct cairn__point *p,
                           struct cairn_error *err)
{
  const json_t *source = json_object_get(v->run->spec, "source");
  struct comparison c = {.v = v, .p = p};
  uint64_t total = v->depth == DEPTH_CONTENT ? bytes_of(p) : 0;
  int result = 0;
  if (source) {
    result = collect(&c, source, err);
    for (size_t i = 0; result == 0 && i < c.count; i++) {
      uint64_t bytes = 0;
      if (c.lives[i].image)
        result = cairn__source_data_bytes(c.lives[i].source, NULL, v->run,
                                          &bytes, err);
      total += bytes;
    }
  }
  v->run->bytes_total = total;
  /* the point first: what differs from a damaged one proves nothing */
  if (result == 0)
    result = verify_point(v, p, err);
  if (result == 0 && source && v->damaged == 0)
    result = compare_sources(&c, err);
  if (result == 0 && source &&
      json_object_set(json_array_get(v->points, 0), "source", c.report) != 0)
    result = cairn__fail_memory(err);
  comparison_close(&c);
  return result;
}

static int refuse_choice(const struct cairn__exports *x, size_t count,
                         struct cairn_error *err)
{
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "verify: with \"source\" one point must be named; %s "
                     "holds %zu",
                     x->path, count);
}

/* `point` of the specification, the directory itself, or the only one. */
static int find_selected(struct verify *v, const char *id,
                         struct cairn__point **p, struct cairn_error *err)
{
  json_t *points = NULL;
  *p = NULL;
  if (id || v->x.self)
    return cairn__exports_find(&v->x, id, p, err);
  if (!json_object_get(v->run->spec, "source"))
    return 0; /* all of them */
  if (cairn__points_read(v->run->io, text_of(v->run->spec, "directory"),
                         &points, err) != 0)
    return -1;
  size_t n = json_array_size(points);
  int result;
  if (n == 1)
    result = cairn__exports_find(
        &v->x, text_of(json_array_get(points, 0), "ReferencePointGroupId"), p,
        err);
  else
    result = refuse_choice(&v->x, n, err);
  json_decref(points);
  return result;
}

static int verify(struct verify *v, struct cairn_error *err)
{
  const json_t *spec = v->run->spec;
  const char *id = text_of(spec, "point");
  struct cairn__point *p;
  struct cairn_error why;
  cairn__error_clear(&why);
  if (cairn__exports_open(v->run->io, text_of(spec, "directory"), &v->x,
                          &why) != 0 ||
      find_selected(v, id, &p, &why) != 0) {
    if (cairn__error_is_damage(&why) && why.id != CAIRN_E_NOT_AN_EXPORT &&
        report_unreadable(v, text_of(spec, "directory"), id ? id : "", &why,
                          err) != 0)
      return -1;
    if (err)
      *err = why;
    return -1;
  }
  if (!p)
    return verify_all(v, err);
  int result = verify_selected(v, p, err);
  cairn__point_close(v->x.io, p);
  return result;
}

static void verify_main(struct cairn__run *run)
{
  struct verify v = {.run = run,
                     .x = {.io = run->io, .fd = -1},
                     .depth = depth_of(run->spec),
                     .points = json_array(),
                     .seen = json_object()};
  struct cairn_error *err = &run->error;
  cairn__error_clear(err);
  cairn__error_clear(&v.first);
  int result = v.points && v.seen ? 0 : cairn__fail_memory(err);
  cairn__run_enter(run);
  if (result == 0)
    result = verify(&v, err);
  cairn__exports_close(&v.x);
  if (result == 0 && v.first.id != CAIRN_OK) {
    *err = v.first;
    if (v.findings > 1) {
      char first[CAIRN_MESSAGE_MAX - 200];
      memcpy(first, v.first.message, sizeof first - 1);
      first[sizeof first - 1] = 0;
      snprintf(err->message, sizeof err->message,
               "%zu findings in %zu of %zu reference points; the first: %s",
               v.findings, v.damaged, v.point_count, first);
      cairn__utf8_clean(err->message);
    }
  }
  json_decref(v.seen);
  run->report = json_pack("{s:o?}", "points", v.points);
  if (!run->report && result == 0)
    cairn__fail_memory(err);
  cairn__run_leave(run);
}

/* ---- the dry run -------------------------------------------------------- */

struct plan {
  json_t *points;
  uint64_t bytes;
  const char *directory;
};

static int plan_one(void *arg, const struct cairn__point *p, const char *name,
                    const struct cairn_error *why, struct cairn_error *err)
{
  struct plan *plan = arg;
  json_t *entry;
  if (p) {
    uint64_t bytes = bytes_of(p);
    plan->bytes += bytes;
    entry = json_pack(
        "{s:s, s:s, s:I, s:I}", "ReferencePointGroupId", cairn__point_id(p),
        "directory", p->path, "files",
        (json_int_t)json_array_size(json_object_get(p->manifest, "files")),
        "bytes", (json_int_t)bytes);
  } else {
    entry = json_pack("{s:s, s:s}", "ReferencePointGroupId", name, "error",
                      why->message);
  }
  if (!entry || json_array_append_new(plan->points, entry) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int plan_verify(const struct cairn_io *io, const json_t *spec,
                       json_t **out, struct cairn_error *err)
{
  const char *id = text_of(spec, "point");
  struct plan plan = {.points = json_array()};
  struct cairn__exports x;
  int result = -1;
  if (!plan.points)
    return cairn__fail_memory(err);
  if (cairn__exports_open(io, text_of(spec, "directory"), &x, err) != 0) {
    json_decref(plan.points);
    return -1;
  }
  if (id || x.self) {
    struct cairn__point *p;
    if (cairn__exports_find(&x, id, &p, err) == 0) {
      result = plan_one(&plan, p, NULL, NULL, err);
      cairn__point_close(io, p);
    }
  } else {
    result = for_each_point(&x, plan_one, &plan, err);
    if (result == 0 && json_array_size(plan.points) == 0)
      result = cairn__fail(err, CAIRN_E_NOT_AN_EXPORT,
                           "%s holds no reference point", x.path);
    if (result == 0 && json_object_get(spec, "source") &&
        json_array_size(plan.points) > 1)
      result = refuse_choice(&x, json_array_size(plan.points), err);
  }
  enum depth depth = depth_of(spec);
  if (result == 0) {
    *out = json_pack("{s:s, s:s, s:s, s:O, s:I}", "kind", "verify", "directory",
                     text_of(spec, "directory"), "depth", depths[depth],
                     "points", plan.points, "bytes_to_read",
                     (json_int_t)(depth == DEPTH_CONTENT ? plan.bytes : 0));
    if (!*out)
      result = cairn__fail_memory(err);
  }
  json_decref(plan.points);
  cairn__exports_close(&x);
  return result;
}

const struct cairn__kind cairn__kind_verify = {.name = "verify",
                                               .check = check_spec,
                                               .main = verify_main,
                                               .plan = plan_verify};
