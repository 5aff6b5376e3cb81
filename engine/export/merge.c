/* merge.c: the kind "merge": one point of a chain as a full, or as one
 * increment on an older point of the chain.
 *
 * In the same directory it takes the place of the point by one exchange of
 * directories: at every instant, and after any crash, one of the two is there,
 * whole. In another directory it is published as an export is. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "error.h"
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
    {"point", CAIRN__SPEC_STRING, 1, NULL, NULL},
    {"into", CAIRN__SPEC_STRING, 0, NULL, "full"},
    {"through", CAIRN__SPEC_STRINGS, 0, NULL, NULL},
    {"to", CAIRN__SPEC_ABSOLUTE, 0, NULL, NULL}};

static int check_spec(json_t *spec, struct cairn_error *err)
{
  if (cairn__spec_check(spec, "merge", keys, sizeof keys / sizeof *keys, err) !=
      0)
    return -1;
  if (json_array_size(json_object_get(spec, "through")) > 0 &&
      strcmp(text_of(spec, "into"), "full") == 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "merge: \"through\" names the points between \"into\" "
                       "and \"point\"; \"into\" must be a point then");
  return 0;
}

/* ---- what both the run and the dry run do -------------------------------- */

struct merging {
  struct cairn__run *run; /* NULL: a dry run */
  const struct cairn_io *io;
  const json_t *spec;
  struct cairn__exports x, target;
  struct cairn__publication publication;
  struct cairn__merge merge;
  char into[37]; /* "" = a full */
  size_t written;
  int is_changed; /* something was published */
};

static int is_into(const void *context, const char *id)
{
  return strcmp(context, id) == 0;
}

/* The id of a point that is named by a part of it. */
static int resolve(struct merging *m, const char *name, char id[37],
                   struct cairn_error *err)
{
  struct cairn__point *p;

  if (cairn__guid_canonical(name, id) == 0)
    return 0;
  if (cairn__exports_find(&m->x, name, &p, err) != 0)
    return -1;
  snprintf(id, 37, "%s", cairn__point_id(p));
  cairn__point_close(m->io, p);
  return 0;
}

/* The points that the caller named are those, and all those, between. */
static int check_through(struct merging *m, const struct cairn__merge_disk *d,
                         struct cairn_error *err)
{
  const json_t *through = json_object_get(m->spec, "through");
  size_t n = json_array_size(through);
  char id[37];

  if (!through || d->base == 0)
    return 0;
  for (size_t i = 0; i < n; i++) {
    if (resolve(m, json_string_value(json_array_get(through, i)), id, err) != 0)
      return -1;
    if (n != d->base - 1 ||
        strcmp(cairn__point_id(d->links[d->base - 1 - i].point), id) != 0)
      return cairn__fail(
          err, CAIRN_E_INVALID_ARGUMENT,
          "the points named are not the chain of disk %s from %s to %s: there "
          "are %zu between, and number %zu is %s",
          text_of(d->image, "disk"), m->into, cairn__point_id(m->merge.p),
          d->base - 1, i + 1,
          d->base >= 2 + i ? cairn__point_id(d->links[d->base - 1 - i].point)
                           : "not there");
  }
  if (n != d->base - 1)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "the points named are not connected: disk %s has %zu "
                       "points between %s and %s",
                       text_of(d->image, "disk"), d->base - 1, m->into,
                       cairn__point_id(m->merge.p));
  return 0;
}

static int check_into(struct merging *m, struct cairn_error *err)
{
  size_t found = 0;

  for (size_t i = 0; i < m->merge.disk_count; i++) {
    found += m->merge.disks[i].base > 0;
    if (check_through(m, &m->merge.disks[i], err) != 0)
      return -1;
  }
  if (found > 0)
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "no disk of %s is based on %s, directly or through "
                     "others; merge it into \"full\", or onto a point of its "
                     "chain",
                     m->merge.p->path, m->into);
}

/* Opens the point and settles what becomes of each disk. */
static int settle(struct merging *m, int is_elsewhere, struct cairn_error *err)
{
  const char *into = text_of(m->spec, "into");
  struct cairn__point *p;

  if (strcmp(into, "full") != 0 && resolve(m, into, m->into, err) != 0)
    return -1;
  if (cairn__exports_find(&m->x, text_of(m->spec, "point"), &p, err) != 0)
    return -1;
  m->merge.io = m->io;
  m->merge.run = m->run;
  m->merge.x = &m->x;
  m->merge.is_elsewhere = is_elsewhere;
  if (m->into[0] && is_elsewhere)
    m->merge.target = &m->target;
  if (cairn__merge_open(&m->merge, p, err) != 0)
    return -1;
  if (strcmp(cairn__point_id(p), m->into) == 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s cannot be merged onto itself", p->path);
  if (cairn__merge_choose(&m->merge, is_into, m->into, m->into[0] != '\0',
                          &m->written, err) != 0 ||
      (m->into[0] && check_into(m, err) != 0))
    return -1;
  return cairn__merge_measure(&m->merge, err);
}

static void merging_init(struct merging *m, struct cairn__run *run,
                         const struct cairn_io *io, const json_t *spec)
{
  memset(m, 0, sizeof *m);
  m->run = run;
  m->io = io;
  m->spec = spec;
  m->x = m->target = (struct cairn__exports){.io = io, .fd = -1};
  cairn__publication_init(&m->publication, io);
}

static void merging_close(struct merging *m, int is_kept)
{
  cairn__merge_close(&m->merge);
  cairn__exports_close(&m->target);
  cairn__exports_close(&m->x);
  cairn__publication_close(&m->publication, m->run, is_kept);
}

/* Whether the open directory is the export directory that is read. */
static int is_same_directory(const struct merging *m, int fd, int *is_same,
                             struct cairn_error *err)
{
  struct stat a, b;

  *is_same = 0;
  if (m->x.fd < 0)
    return 0;
  if (m->io->fstat(m->io, fd, &a) != 0 || m->io->fstat(m->io, m->x.fd, &b) != 0)
    return cairn__fail_errno(err, errno, m->x.path, -1, "cannot look at \"%s\"",
                             m->x.path);
  *is_same = a.st_dev == b.st_dev && a.st_ino == b.st_ino;
  return 0;
}

/* A number must not stand for two points of one collection. */
static int check_sequence(const struct merging *m, const char *directory,
                          struct cairn_error *err)
{
  const json_t *manifest = m->merge.p->manifest;
  json_t *points, *p;
  size_t i;
  int result = 0;

  if (cairn__points_read(m->io, directory, &points, err) != 0)
    return -1;
  json_array_foreach(points, i, p)
  {
    const char *collection = text_of(p, "CollectionId");

    if (result == 0 && collection &&
        strcmp(collection, text_of(manifest, "CollectionId")) == 0 &&
        json_integer_value(json_object_get(p, "sequence")) ==
            json_integer_value(json_object_get(manifest, "sequence")))
      result = cairn__fail(
          err, CAIRN_E_EXISTS,
          "%s has the sequence of %s already, so their order could not be "
          "told; choose another directory",
          text_of(p, "directory"), m->merge.p->path);
  }
  json_decref(points);
  return result;
}

/* ---- the run ------------------------------------------------------------- */

/* Locks where the point goes before it looks at anything that may change. */
static int begin(struct merging *m, int *is_elsewhere, struct cairn_error *err)
{
  const char *directory = text_of(m->spec, "directory");
  const char *to = text_of(m->spec, "to");
  int is_same;

  if (cairn__exports_open(m->io, directory, &m->x, err) != 0 ||
      cairn__publication_open(&m->publication, to ? to : directory, err) != 0 ||
      is_same_directory(m, m->publication.dirfd, &is_same, err) != 0)
    return -1;
  *is_elsewhere = !is_same;
  if (*is_elsewhere && strcmp(text_of(m->spec, "into"), "full") != 0 &&
      cairn__exports_open(m->io, m->publication.path, &m->target, err) != 0)
    return -1;
  if (cairn__publication_clean(&m->publication, m->run, err) != 0)
    return -1;
  return cairn__publication_begin(&m->publication, m->run, err);
}

static int publish_elsewhere(struct merging *m, struct cairn_error *err)
{
  const json_t *manifest = m->merge.p->manifest;
  const char *collection = text_of(manifest, "CollectionId");
  json_int_t sequence =
      json_integer_value(json_object_get(manifest, "sequence"));

  if (sequence >
          cairn__publication_last_sequence(&m->publication, collection) &&
      cairn__publication_keep_sequence(&m->publication, collection, sequence,
                                       err) != 0)
    return -1;
  return cairn__publication_publish(&m->publication, m->run,
                                    cairn__point_id(m->merge.p), err);
}

static int merge(struct merging *m, struct cairn_error *err)
{
  int is_elsewhere;

  if (begin(m, &is_elsewhere, err) != 0 || settle(m, is_elsewhere, err) != 0)
    return -1;
  if (!is_elsewhere && m->written == 0)
    return 0;
  if (is_elsewhere
          ? cairn__publication_check_free(
                &m->publication, cairn__point_id(m->merge.p), err) != 0 ||
                check_sequence(m, m->publication.path, err) != 0
          : cairn__publication_check_exchange(&m->publication, err) != 0)
    return -1;
  m->run->bytes_total = m->merge.data_bytes;
  if (cairn__merge_write(&m->merge, &m->publication, err) != 0 ||
      cairn__run_gate(m->run, err) != 0)
    return -1;
  if (is_elsewhere ? publish_elsewhere(m, err) != 0
                   : cairn__publication_exchange(&m->publication, m->run,
                                                 cairn__merge_name(&m->merge),
                                                 m->merge.p->fd, err) != 0)
    return -1;
  m->is_changed = 1;
  return 0;
}

static json_t *make_report(const struct merging *m)
{
  const struct cairn__point *p = m->merge.p;
  char *path = NULL;
  json_t *report;

  if (p)
    path =
        cairn__format("%s/%s", m->publication.path ? m->publication.path : "",
                      m->merge.is_elsewhere ? cairn__point_id(p)
                                            : cairn__merge_name(&m->merge));
  report = json_pack("{s:s?, s:s, s:s?, s:s, s:b, s:o?}",
                     "ReferencePointGroupId", p ? cairn__point_id(p) : NULL,
                     "directory", text_of(m->spec, "directory"), "path", path,
                     "into", m->into[0] ? m->into : "full", "is_changed",
                     m->is_changed, "disks", cairn__merge_report(&m->merge));
  cairn__free(path);
  return report;
}

static void merge_main(struct cairn__run *run)
{
  struct merging m;
  struct cairn_error err;
  int result;

  cairn__error_clear(&err);
  merging_init(&m, run, run->io, run->spec);
  cairn__run_enter(run);
  result = merge(&m, &err);
  run->report = make_report(&m);
  merging_close(&m, result != 0 && err.id == CAIRN_E_KILLED);
  cairn__run_leave(run);
  if (result != 0)
    run->error = err;
}

/* ---- the dry run --------------------------------------------------------- */

/* The directory, or the one that it would be made in. */
static int open_to(const struct cairn_io *io, const char *to, int *is_new,
                   struct cairn_error *err)
{
  char parent[PATH_MAX], shown[512];
  int fd = io->openat(io, AT_FDCWD, to, O_RDONLY | O_DIRECTORY, 0);
  int errnum = errno;

  *is_new = 0;
  if (fd < 0 && errnum == ENOENT && strlen(to) < sizeof parent) {
    size_t n = (size_t)snprintf(parent, sizeof parent, "%s", to);
    char *slash;

    while (n > 1 && parent[n - 1] == '/')
      parent[--n] = '\0';
    slash = strrchr(parent, '/');
    slash[slash == parent] = '\0';
    *is_new = 1;
    fd = io->openat(io, AT_FDCWD, parent, O_RDONLY | O_DIRECTORY, 0);
    errnum = errno;
  }
  if (fd < 0)
    return cairn__fail_errno(err, errnum, to, -1,
                             "cannot open the directory \"%s\"",
                             cairn__printable(to, shown, sizeof shown));
  return fd;
}

static int plan_target(struct merging *m, int *is_elsewhere, int *fd,
                       struct cairn_error *err)
{
  const char *directory = text_of(m->spec, "directory");
  const char *to = text_of(m->spec, "to");
  int is_new, is_same = 0;

  *fd = open_to(m->io, to ? to : directory, &is_new, err);
  if (*fd < 0)
    return -1;
  if (cairn__publication_check_target(m->io, *fd, to ? to : directory, err) !=
          0 ||
      (!is_new && is_same_directory(m, *fd, &is_same, err) != 0))
    return -1;
  *is_elsewhere = !is_same;
  if (is_same || strcmp(text_of(m->spec, "into"), "full") == 0)
    return 0;
  return cairn__exports_open(m->io, to, &m->target, err);
}

/* What the run would find out before it writes. */
static int plan_refusals(struct merging *m, int fd, struct cairn_error *err)
{
  const char *to = text_of(m->spec, "to"), *id = cairn__point_id(m->merge.p);
  struct stat st;

  if (m->io->fstatat(m->io, fd, id, &st, AT_SYMLINK_NOFOLLOW) == 0)
    return cairn__fail(err, CAIRN_E_EXISTS,
                       "\"%s/%s\" exists already; nothing is ever replaced", to,
                       id);
  return check_sequence(m, to, err);
}

static int merge_plan(const struct cairn_io *io, const json_t *spec,
                      json_t **plan, struct cairn_error *err)
{
  struct merging m;
  struct statvfs fs;
  uint64_t free_bytes = 0;
  int is_elsewhere = 0, fd = -1, is_new = 0, result;

  *plan = NULL;
  merging_init(&m, NULL, io, spec);
  result = cairn__exports_open(io, text_of(spec, "directory"), &m.x, err);
  if (result == 0)
    result = plan_target(&m, &is_elsewhere, &fd, err);
  if (result == 0)
    result = settle(&m, is_elsewhere, err);
  if (result == 0 && is_elsewhere) {
    struct stat st;

    is_new = io->fstatat(io, AT_FDCWD, text_of(spec, "to"), &st, 0) != 0;
    if (!is_new)
      result = plan_refusals(&m, fd, err);
  }
  if (result == 0 && fstatvfs(fd, &fs) == 0)
    free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  if (result == 0) {
    *plan = json_pack(
        "{s:s, s:s, s:s, s:s?, s:s, s:b, s:I, s:I, s:I, s:b, s:o?}", "kind",
        "merge", "ReferencePointGroupId", cairn__point_id(m.merge.p),
        "directory", text_of(spec, "directory"), "to", text_of(spec, "to"),
        "into", m.into[0] ? m.into : "full", "is_changed",
        is_elsewhere || m.written > 0, "bytes_to_write",
        (json_int_t)m.merge.target_bytes, "bytes_to_read",
        (json_int_t)m.merge.data_bytes, "free_bytes", (json_int_t)free_bytes,
        "has_space", m.merge.target_bytes <= free_bytes, "disks",
        cairn__merge_report(&m.merge));
    if (!*plan)
      result = cairn__fail_memory(err);
  }
  if (fd >= 0)
    (void)io->close(io, fd);
  merging_close(&m, 0);
  return result;
}

const struct cairn__kind cairn__kind_merge = {.name = "merge",
                                              .check = check_spec,
                                              .main = merge_main,
                                              .plan = merge_plan};
