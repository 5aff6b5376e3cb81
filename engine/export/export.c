/* export.c: the kind "export": one point in time of all machines of a
 * collection, whole or not at all.
 *
 *   lock the export directory, clean up after the dead, make a work directory
 *   open and lock every source: this moment is the point
 *   measure, then copy disk after disk and file after file
 *   see that no source has moved
 *   manifest, sync, one rename
 *
 * Until the rename nothing is visible; after it the point is there, and what
 * still goes wrong is a warning. A failure ends with nothing, except that a work
 * directory in which disks were begun stays for the next run of the collection
 * where that has a chance to fare better; every run looks for such a one. */
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include <uuid/uuid.h>

#include "collection.h"
#include "datetime.h"
#include "error.h"
#include "kinds.h"
#include "manifest.h"
#include "members.h"
#include "memory.h"
#include "publish.h"
#include "resume.h"

#define NO_INCREMENTS "incremental export is not built yet"

struct export
{
  struct cairn__run *run;
  const struct cairn_io *io;
  const json_t *spec, *collection;
  const char *format;
  struct cairn__publication publication;
  struct cairn__members members;
  struct cairn__digester digester;
  unsigned char secret[CAIRN__SECRET_SIZE];
  unsigned char point[16];
  json_int_t sequence;
  const char *fallback; /* why the disks are full although a base was asked
                           for, or NULL */
  int64_t time_us;
  json_t *files;   /* of the manifest */
  json_t *plan;    /* of the work directory */
  int has_written; /* something that a later run can use */
};

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static void format_time(int64_t unix_us, char out[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);

  cairn_datetime_format(&t, out);
}

static int64_t wall_us(const struct export *x)
{
  return x->run->clock->wall(x->run->clock);
}

static int sync_fd(const struct export *x, int fd, const char *what,
                   struct cairn_error *err)
{
  if (x->io->fsync(x->io, fd) == 0)
    return 0;
  return cairn__fail_errno(err, errno, what, -1, "cannot sync \"%s\"", what);
}

/* Takes the reference in any case. */
static int append(json_t *array, json_t *value, struct cairn_error *err)
{
  return json_array_append_new(array, value) == 0 ? 0 : cairn__fail_memory(err);
}

/* ---- before anything is read --------------------------------------------- */

/* The place of this point among those of its collection here, and whether
 * there is one that an increment could be based on. */
static int find_sequence(struct export *x, struct cairn_error *err)
{
  const char *collection = text_of(x->collection, "CollectionId");
  json_t *points, *p;
  json_int_t highest = 0;
  char shown[512];
  size_t i;

  if (cairn__points_read(x->io, x->publication.path, &points, err) != 0)
    return -1;
  json_array_foreach(points, i, p)
  {
    const char *id = text_of(p, "CollectionId");
    json_int_t n = json_integer_value(json_object_get(p, "sequence"));

    if (id && strcmp(id, collection) == 0 && n > highest)
      highest = n;
  }
  json_decref(points);
  x->sequence = cairn__publication_last_sequence(&x->publication, collection);
  if (x->sequence < highest)
    x->sequence = highest;
  if (++x->sequence > CAIRN__SEQUENCE_MAX)
    return cairn__fail(
        err, CAIRN_E_OUT_OF_RANGE,
        "\"%s\" holds a point of this collection with the "
        "sequence %lld, and none is higher; export into "
        "another directory",
        cairn__printable(x->publication.path, shown, sizeof shown),
        (long long)CAIRN__SEQUENCE_MAX);
  if (highest > 0 && strcmp(text_of(x->spec, "base"), "latest") == 0) {
    x->fallback = NO_INCREMENTS;
    cairn__run_warn(x->run, "all disks are exported in full: %s", x->fallback);
  }
  return 0;
}

static struct cairn__wanted wanted_of(const json_t *spec)
{
  return (struct cairn__wanted){
      .collection = text_of(json_object_get(spec, "collection"), "CollectionId"),
      .algorithm = text_of(spec, "digest"),
      .image_format = text_of(spec, "format")};
}

/* A run that is taken up keeps its secret: its digests could not be compared
 * otherwise. */
static int choose_secret(struct export *x, struct cairn_error *err)
{
  int algorithm;

  if (cairn__digest_algorithm_parse(text_of(x->spec, "digest"), &algorithm,
                                    err) != 0)
    return -1;
  if (!(x->publication.left &&
        cairn__plan_secret(x->publication.left, x->secret)) &&
      cairn__digest_secret(x->secret, err) != 0)
    return -1;
  cairn__digester_init(&x->digester, algorithm, x->secret);
  return 0;
}

static int prepare(struct export *x, struct cairn_error *err)
{
  const struct cairn__wanted wanted = wanted_of(x->spec);

  if (uuid_parse(x->run->point_uuid, x->point) != 0)
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "the run has no ReferencePointGroupId");
  x->files = json_array();
  if (!x->files)
    return cairn__fail_memory(err);
  if (cairn__publication_open(&x->publication, text_of(x->spec, "directory"),
                              err) != 0 ||
      cairn__publication_check_free(&x->publication, x->run->point_uuid, err) !=
          0 ||
      cairn__publication_clean(
          &x->publication, x->run, &wanted,
          json_is_false(json_object_get(x->spec, "resume")), err) != 0 ||
      choose_secret(x, err) != 0 || find_sequence(x, err) != 0)
    return -1;
  return cairn__publication_begin(&x->publication, x->run, err);
}

/* The image and the map of a disk. */
static void name_files(const struct export *x,
                       const struct cairn__member_disk *d, char name[96],
                       char map_name[96])
{
  snprintf(name, 96, "%s.%s", d->id, x->format);
  snprintf(map_name, 96, "%s.digests", d->id);
}

static int make_plan(struct export *x, struct cairn_error *err)
{
  char name[96], map_name[96];

  x->plan = cairn__plan_new(text_of(x->collection, "CollectionId"),
                            x->run->instance_id, x->run->point_uuid, x->time_us,
                            x->format, &x->digester);
  if (!x->plan)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      const struct cairn__member_disk *d = &m->disks[j];

      name_files(x, d, name, map_name);
      if (cairn__plan_add(x->plan, m->id, d->id, name, NULL,
                          d->source->length) != 0)
        return cairn__fail_memory(err);
    }
  }
  return 0;
}

/* From here on the work directory says what it is to become, and holds nothing
 * that is not part of that. */
static int begin_work(struct export *x, struct cairn_error *err)
{
  struct cairn__publication *p = &x->publication;
  uint64_t bytes = 0;

  if (make_plan(x, err) != 0 ||
      (p->left &&
       cairn__resume_tidy(x->io, p->workfd, p->pointfd, p->work_path, p->left,
                          x->plan, &bytes, err) != 0))
    return -1;
  return cairn__plan_write(x->io, p->workfd, p->work_path, x->plan, err);
}

static int open_sources(struct export *x, struct cairn_error *err)
{
  struct cairn__members_options o = {
      .io = x->io,
      .run = x->run,
      .collection = x->collection,
      .work_directory = x->publication.work_path,
      .target_fd = x->publication.dirfd,
      .target_path = x->publication.path,
  };

  if (cairn__members_open(&o, &x->members, err) != 0)
    return -1;
  x->time_us = wall_us(x);
  if (cairn__members_measure(&x->members, x->run, err) != 0)
    return -1;
  atomic_store(&x->run->bytes_total, x->members.bytes);
  return begin_work(x, err);
}

/* ---- a disk -------------------------------------------------------------- */

struct disk_job {
  struct export *x;
  struct cairn__member *m;
  struct cairn__member_disk *d;
  int dirfd;     /* of the machine */
  char name[96]; /* the image */
  char map_name[96];
  struct cairn__file_result image, map;
  unsigned char content[CAIRN__DIGEST_MAX];
  struct cairn__copy copy;
  int64_t started_us;
  int is_resumed;
};

static int open_sink(struct disk_job *j, struct cairn__sink **sink,
                     struct cairn_error *err)
{
  const struct export *x = j->x;
  const struct cairn__source *s = j->d->source;
  char path[PATH_MAX];
  struct cairn__sink_options o = {
      .io = x->io,
      .dirfd = j->dirfd,
      .name = j->name,
      .is_resumed = j->is_resumed,
      .path = path,
      .length = s->length,
      .virtual_size = s->virtual_size,
      .digester = &x->digester,
      .point = x->point,
  };

  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, j->m->id,
           j->name);
  return strcmp(x->format, "raw") == 0 ? cairn__sink_open_raw(&o, sink, err)
                                       : cairn__sink_open_qcow2(&o, sink, err);
}

/* Without a journal the disk is exported all the same. */
static void warn_journal(const struct disk_job *j, const struct cairn_error *why)
{
  cairn__run_warn(j->x->run,
                  "disk %s of machine %s: if the export is interrupted now, the "
                  "next one begins this disk anew: %s",
                  j->d->id, j->m->id, why->message);
}

static void open_journal(struct disk_job *j)
{
  const struct export *x = j->x;
  char name[CAIRN__JOURNAL_NAME_MAX], path[PATH_MAX];
  struct cairn_error why;
  struct cairn__journal_options o = {.io = x->io,
                                     .dirfd = x->publication.workfd,
                                     .name = name,
                                     .path = path,
                                     .digester = &x->digester,
                                     .virtual_size = j->d->source->virtual_size};

  cairn__journal_name(j->m->id, j->d->id, name);
  snprintf(path, sizeof path, "%s/%s", x->publication.work_path, name);
  memcpy(o.origin, x->point, sizeof o.origin);
  cairn__error_clear(&why);
  if (cairn__journal_open(&o, &j->copy.journal, &why) != 0)
    warn_journal(j, &why);
  j->copy.is_resumed = j->is_resumed && j->copy.journal;
}

static void close_journal(struct disk_job *j)
{
  struct cairn_error why;

  cairn__error_clear(&why);
  if (j->copy.journal && cairn__journal_check(j->copy.journal, &why) != 0)
    warn_journal(j, &why);
  cairn__journal_close(j->copy.journal);
  if (j->copy.journal && j->copy.bytes_written + j->copy.bytes_resumed > 0)
    j->x->has_written = 1;
  j->copy.journal = NULL;
}

static int copy_disk(struct disk_job *j, struct cairn_error *err)
{
  int result;

  open_journal(j);
  result = cairn__copy_run(&j->copy, err);
  close_journal(j);
  return result;
}

static int write_disk(struct disk_job *j, struct cairn_error *err)
{
  const struct export *x = j->x;
  struct cairn__source *s = j->d->source;
  struct cairn__map_writer *map = NULL;
  struct cairn__sink *sink = NULL;
  char path[PATH_MAX];

  if (open_sink(j, &sink, err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, j->m->id,
           j->map_name);
  if (cairn__map_create(x->io, j->dirfd, j->map_name, path, &x->digester,
                        s->virtual_size, s->length, x->point, &map, err) != 0) {
    sink->ops->abort(sink);
    return -1;
  }
  j->copy.run = x->run;
  j->copy.source = s;
  j->copy.sink = sink;
  j->copy.digester = &x->digester;
  j->copy.map_writer = map;
  if (copy_disk(j, err) != 0) {
    sink->ops->abort(sink);
    cairn__map_abort(map);
    return -1;
  }
  if (sink->ops->finish(sink, &j->image, err) != 0) {
    cairn__map_abort(map);
    return -1;
  }
  if (cairn__map_finish(map, j->content, j->map.digest, &j->map.size, err) != 0)
    return -1;
  return s->ops->check_still(s, err);
}

/* The two entries of the manifest. */
static int describe_disk(struct disk_job *j, struct cairn_error *err)
{
  const struct export *x = j->x;
  const struct cairn__member_disk *d = j->d;
  char started[CAIRN_DATETIME_SIZE], ended[CAIRN_DATETIME_SIZE];
  char image[CAIRN__DIGEST_TEXT], map[CAIRN__DIGEST_TEXT];
  char content[CAIRN__DIGEST_TEXT], path[160], map_path[160];

  format_time(j->started_us, started);
  format_time(wall_us(x), ended);
  cairn__digest_format(&x->digester, j->image.digest, image);
  cairn__digest_format(&x->digester, j->map.digest, map);
  cairn__digest_format(&x->digester, j->content, content);
  snprintf(path, sizeof path, "%s/%s", j->m->id, j->name);
  snprintf(map_path, sizeof map_path, "%s/%s", j->m->id, j->map_name);
  j->d->entry = json_pack(
      "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:n, s:s, s:s?, s:s, "
      "s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}",
      "role", "disk", "path", path, "size", (json_int_t)j->image.size, "digest",
      image, "VirtualMachineId", j->m->id, "disk", d->id, "format", x->format,
      "length", (json_int_t)d->source->length, "virtual_size",
      (json_int_t)d->source->virtual_size, "content", content, "base",
      "tracker", "full", "fallback", x->fallback, "source", d->path,
      "source_format", d->format, "internal_snapshots",
      (json_int_t)cairn__member_snapshots(d), "bytes_read",
      (json_int_t)j->copy.bytes_read, "bytes_written",
      (json_int_t)j->copy.bytes_written, "bytes_zero",
      (json_int_t)j->copy.bytes_zero, "bytes_skipped",
      (json_int_t)j->copy.bytes_skipped, "time_started", started, "time_ended",
      ended);
  if (j->is_resumed && j->d->entry &&
      json_object_set_new(j->d->entry, "bytes_resumed",
                          json_integer((json_int_t)j->copy.bytes_resumed)) != 0)
    return cairn__fail_memory(err);
  if (!j->d->entry)
    return cairn__fail_memory(err);
  if (json_array_append(x->files, j->d->entry) != 0)
    return cairn__fail_memory(err);
  return append(x->files,
                json_pack("{s:s, s:s, s:I, s:s, s:s, s:s}", "role", "digests",
                          "path", map_path, "size", (json_int_t)j->map.size,
                          "digest", map, "VirtualMachineId", j->m->id, "disk",
                          d->id),
                err);
}

static int export_disk(struct export *x, struct cairn__member *m,
                       struct cairn__member_disk *d, int dirfd,
                       struct cairn_error *err)
{
  struct disk_job j = {.x = x, .m = m, .d = d, .dirfd = dirfd};

  name_files(x, d, j.name, j.map_name);
  j.is_resumed =
      x->publication.left &&
      cairn__plan_has_same(x->publication.left, x->plan, m->id, d->id);
  j.started_us = wall_us(x);
  if (write_disk(&j, err) != 0 || describe_disk(&j, err) != 0)
    return cairn__member_fail(m, d, err);
  d->result = CAIRN__MEMBER_OK;
  return 0;
}

/* ---- a machine ----------------------------------------------------------- */

static int make_directory(const struct export *x, int parent, const char *name,
                          const char *path, int *fd, struct cairn_error *err)
{
  if (x->io->mkdirat(x->io, parent, name, 0700) != 0 &&
      !(errno == EEXIST && x->publication.left))
    return cairn__fail_errno(err, errno, path, -1,
                             "cannot create the directory \"%s\"", path);
  *fd = x->io->openat(x->io, parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
                      0);
  if (*fd < 0)
    return cairn__fail_errno(err, errno, path, -1, "cannot open \"%s\"", path);
  return 0;
}

static int export_file(struct export *x, struct cairn__member *m,
                       const struct cairn__machine_file *f, int dirfd,
                       const char *directory, struct cairn_error *err)
{
  char path[PATH_MAX + NAME_MAX + 2];
  json_t *entry;

  snprintf(path, sizeof path, "%s/%s", directory, f->name);
  if (cairn__machine_file_copy(x->run, f, dirfd, path, &x->digester, &entry,
                               err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s/%s", m->id, f->role, f->name);
  if (json_object_set_new(entry, "path", json_string(path)) != 0 ||
      json_object_set_new(entry, "VirtualMachineId", json_string(m->id)) != 0) {
    json_decref(entry);
    return cairn__fail_memory(err);
  }
  return append(x->files, entry, err);
}

static int export_role(struct export *x, struct cairn__member *m,
                       const char *role, int parent, struct cairn_error *err)
{
  char path[PATH_MAX];
  int fd = -1, result = 0;

  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, m->id,
           role);
  for (size_t i = 0; i < m->files.count && result == 0; i++) {
    const struct cairn__machine_file *f = &m->files.list[i];

    if (strcmp(f->role, role) != 0)
      continue;
    if (fd < 0)
      result = make_directory(x, parent, role, path, &fd, err);
    if (result == 0)
      result = export_file(x, m, f, fd, path, err);
  }
  if (result == 0 && fd >= 0)
    result = sync_fd(x, fd, path, err);
  if (fd >= 0)
    (void)x->io->close(x->io, fd);
  return result;
}

static int export_machine(struct export *x, struct cairn__member *m,
                          struct cairn_error *err)
{
  char path[PATH_MAX];
  int fd = -1, result;

  if (m->disk_count == 0 && m->files.count == 0) {
    const char *name = text_of(m->spec, "ElementName");
    char shown[200];

    cairn__run_warn(x->run,
                    "machine %s%s%s%s has neither disks nor files: the point "
                    "holds nothing of it",
                    name ? cairn__printable(name, shown, sizeof shown) : "",
                    name ? " (" : "", m->id, name ? ")" : "");
    m->result = CAIRN__MEMBER_OK;
    return 0;
  }
  snprintf(path, sizeof path, "%s/%s", x->publication.point_path, m->id);
  result = make_directory(x, x->publication.pointfd, m->id, path, &fd, err);
  for (size_t i = 0; i < m->disk_count && result == 0; i++)
    result = export_disk(x, m, &m->disks[i], fd, err);
  for (const char *const *role = cairn__file_roles; *role && result == 0;
       role++)
    result = export_role(x, m, *role, fd, err);
  if (result == 0)
    result = sync_fd(x, fd, path, err);
  if (fd >= 0)
    (void)x->io->close(x->io, fd);
  if (result != 0)
    return m->result == CAIRN__MEMBER_FAILED ? -1
                                             : cairn__member_fail(m, NULL, err);
  m->result = CAIRN__MEMBER_OK;
  return 0;
}

/* ---- the manifest -------------------------------------------------------- */

static int write_secret(struct export *x, struct cairn_error *err)
{
  unsigned char *block, leaf[CAIRN__DIGEST_MAX], root[CAIRN__DIGEST_MAX];
  char text[CAIRN__DIGEST_TEXT];
  struct cairn__tree *tree;
  int result = -1;

  if (x->digester.algorithm != CAIRN__XXH3_128)
    return 0;
  if (cairn__secret_write(x->io, x->publication.pointfd,
                          x->publication.point_path, x->secret, err) != 0)
    return -1;
  block = cairn__calloc(1, CAIRN__BLOCK);
  tree = cairn__tree_new(&x->digester);
  if (block && tree) {
    memcpy(block, x->secret, sizeof x->secret);
    cairn__digest_block(&x->digester, block, leaf);
    result = cairn__tree_append(tree, leaf, 1);
  }
  if (result == 0) {
    cairn__tree_root(tree, CAIRN__SECRET_SIZE, root);
    cairn__digest_format(&x->digester, root, text);
    result =
        append(x->files,
               json_pack("{s:s, s:s, s:i, s:s, s:n}", "role", "secret", "path",
                         CAIRN__SECRET_NAME, "size", (int)CAIRN__SECRET_SIZE,
                         "digest", text, "VirtualMachineId"),
               err);
  } else {
    cairn__fail_memory(err);
  }
  cairn__tree_free(tree);
  cairn__free(block);
  return result;
}

static json_t *list_machines(const struct export *x)
{
  json_t *machines = json_array();

  for (size_t i = 0; machines && i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    if (json_array_append_new(
            machines, json_pack("{s:s, s:s?, s:s}", "VirtualMachineId", m->id,
                                "ElementName", text_of(m->spec, "ElementName"),
                                "result", "ok")) != 0) {
      json_decref(machines);
      return NULL;
    }
  }
  return machines;
}

static json_t *list_warnings(struct export *x)
{
  json_t *warnings;

  pthread_mutex_lock(&x->run->lock);
  warnings = x->run->warnings ? json_deep_copy(x->run->warnings) : json_array();
  pthread_mutex_unlock(&x->run->lock);
  return warnings;
}

static int write_manifest(struct export *x, struct cairn_error *err)
{
  char time[CAIRN_DATETIME_SIZE];
  json_t *manifest;
  int result;

  format_time(x->time_us, time);
  manifest = json_pack(
      "{s:s, s:i, s:s, s:s, s:s?, s:s, s:n, s:s, s:I, s:I, s:I, s:i, s:s, s:I, "
      "s:s, s:o, s:O, s:[], s:o}",
      "format", "cairn-export", "version", CAIRN__MANIFEST_VERSION, "note",
      CAIRN__MANIFEST_NOTE, "CollectionId",
      text_of(x->collection, "CollectionId"), "ElementName",
      text_of(x->collection, "ElementName"), "ReferencePointGroupId",
      x->run->point_uuid, "BaseReferencePointGroupId", "InstanceID",
      x->run->instance_id, "run", (json_int_t)x->run->number, "epoch",
      (json_int_t)x->run->epoch, "sequence", x->sequence, "generation", 1,
      "time", time, "unix_us", (json_int_t)x->time_us, "algorithm",
      text_of(x->spec, "digest"), "machines", list_machines(x), "files",
      x->files, "failed", "warnings", list_warnings(x));
  if (!manifest)
    return cairn__fail_memory(err);
  result = cairn__manifest_write(x->io, x->publication.pointfd, manifest,
                                 x->publication.point_path, err);
  json_decref(manifest);
  return result;
}

static int publish(struct export *x, struct cairn_error *err)
{
  if (cairn__members_check_still(&x->members, err) != 0 ||
      write_secret(x, err) != 0 || write_manifest(x, err) != 0 ||
      cairn__run_gate(x->run, err) != 0 ||
      cairn__publication_keep_sequence(&x->publication,
                                       text_of(x->collection, "CollectionId"),
                                       x->sequence, err) != 0)
    return -1;
  return cairn__publication_publish(&x->publication, x->run, x->run->point_uuid,
                                    err);
}

/* ---- the report ---------------------------------------------------------- */

static const char *result_name(int result)
{
  return result == CAIRN__MEMBER_OK       ? "ok"
         : result == CAIRN__MEMBER_FAILED ? "failed"
                                          : "not done";
}

static json_t *report_disk(const struct cairn__member_disk *d)
{
  static const char *const members[] = {
      "path",         "format",        "size",       "length",
      "virtual_size", "tracker",       "fallback",   "internal_snapshots",
      "bytes_read",   "bytes_written", "bytes_zero", "bytes_skipped",
      "bytes_resumed", "time_started", "time_ended",    "digest",     "content"};
  json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "id", d->id, "result",
                        result_name(d->result), "source", d->path,
                        "source_format", d->format);

  for (size_t i = 0; o && d->entry && i < sizeof members / sizeof members[0];
       i++)
    (void)json_object_set(o, members[i], json_object_get(d->entry, members[i]));
  return o;
}

/* Best effort, as all of the report: without memory less is said. */
static json_t *report_machines(const struct export *x,
                               const struct cairn_error *error)
{
  json_t *machines = json_array();

  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];
    json_t *disks = json_array();
    json_t *o;

    for (size_t j = 0; j < m->disk_count; j++)
      (void)json_array_append_new(disks, report_disk(&m->disks[j]));
    o = json_pack("{s:s, s:s?, s:s, s:o}", "VirtualMachineId", m->id,
                  "ElementName", text_of(m->spec, "ElementName"), "result",
                  result_name(m->result), "disks", disks);
    if (o && m->result == CAIRN__MEMBER_FAILED)
      (void)json_object_set_new(o, "error", json_string(error->message));
    (void)json_array_append_new(machines, o);
  }
  return machines;
}

/* What the property has for one machine: the one file, the directory of
 * several, or "". */
static json_t *files_path(const struct export *x, const struct cairn__member *m,
                          const char *role)
{
  const struct cairn__machine_file *only = NULL;
  size_t count = 0;
  char *path;
  json_t *v;

  for (size_t i = 0; i < m->files.count; i++) {
    if (strcmp(m->files.list[i].role, role) == 0) {
      only = &m->files.list[i];
      count++;
    }
  }
  if (count == 0)
    return json_string("");
  path = cairn__format("%s/%s/%s/%s%s%s", x->publication.path,
                       x->run->point_uuid, m->id, role, count == 1 ? "/" : "",
                       count == 1 ? only->name : "");
  v = path ? json_string(path) : NULL;
  cairn__free(path);
  return v;
}

static int add_disk(const struct export *x, const struct cairn__member *m,
                    const struct cairn__member_disk *d, json_t *ids,
                    json_t *logs)
{
  char *id = cairn__format("%s/%s", m->id, d->id);
  char *log = cairn__format("%s/%s/%s/%s.%s", x->publication.path,
                            x->run->point_uuid, m->id, d->id, x->format);
  int result = -1;

  if (id && log && json_array_append_new(ids, json_string(id)) == 0)
    result = json_array_append_new(logs, json_string(log));
  cairn__free(id);
  cairn__free(log);
  return result;
}

/* The run's CIM properties (spec: in pairs, final paths, member order). Made
 * before the rename: afterwards nothing may fail. */
static int make_properties(const struct export *x, json_t **out,
                           struct cairn_error *err)
{
  json_t *ids = json_array(), *disks = json_array(), *logs = json_array();
  json_t *files[3] = {json_array(), json_array(), json_array()};
  int result =
      ids && disks && logs && files[0] && files[1] && files[2] ? 0 : -1;

  for (size_t i = 0; i < x->members.count && result == 0; i++) {
    const struct cairn__member *m = &x->members.list[i];

    result = json_array_append_new(ids, json_string(m->id));
    for (size_t j = 0; j < m->disk_count && result == 0; j++)
      result = add_disk(x, m, &m->disks[j], disks, logs);
    for (int k = 0; k < 3 && result == 0; k++)
      result = json_array_append_new(files[k],
                                     files_path(x, m, cairn__file_roles[k]));
  }
  *out = NULL;
  if (result == 0)
    *out = json_pack(
        "{s:s, s:n, s:O, s:O, s:O, s:O, s:O, s:O}", "ReferencePointGroupId",
        x->run->point_uuid, "BaseReferencePointGroupId", "VirtualMachineId",
        ids, "ExportedDisks", disks, "ExportedLogFilePaths", logs,
        "ExportedConfigFilePaths", files[0], "ExportedRuntimeFilePaths",
        files[1], "ExportedGuestStateFilePaths", files[2]);
  json_decref(ids);
  json_decref(disks);
  json_decref(logs);
  for (int k = 0; k < 3; k++)
    json_decref(files[k]);
  return *out ? 0 : cairn__fail_memory(err);
}

static void make_report(struct export *x, const struct cairn_error *error,
                        json_t *properties)
{
  char *path = NULL;

  if (x->publication.is_published)
    path = cairn__format("%s/%s", x->publication.path, x->run->point_uuid);
  x->run->report =
      json_pack("{s:s, s:s?, s:s?, s:I, s:o}", "CollectionId",
                text_of(x->collection, "CollectionId"), "ReferencePointGroupId",
                path ? x->run->point_uuid : NULL, "path", path, "bytes",
                (json_int_t)atomic_load(&x->run->bytes_done), "machines",
                report_machines(x, error));
  if (x->run->report && properties)
    (void)json_object_set(x->run->report, "properties", properties);
  cairn__free(path);
}

/* ---- the run ------------------------------------------------------------- */

static int do_export(struct export *x, json_t **properties,
                     struct cairn_error *err)
{
  if (prepare(x, err) != 0 || open_sources(x, err) != 0)
    return -1;
  for (size_t i = 0; i < x->members.count; i++) {
    if (cairn__run_gate(x->run, err) != 0 ||
        export_machine(x, &x->members.list[i], err) != 0)
      return -1;
  }
  if (make_properties(x, properties, err) != 0)
    return -1;
  return publish(x, err);
}

/* What a later run may fare better with. */
static int is_passing(int id)
{
  return id == CAIRN_E_DISK_FULL || id == CAIRN_E_IO_ERROR ||
         id == CAIRN_E_HELPER_FAILED || id == CAIRN_E_NBD ||
         id == CAIRN_E_TIMEOUT || id == CAIRN_E_NO_MEMORY;
}

static int is_to_be_kept(const struct export *x, int id)
{
  if (id == CAIRN_OK || id == CAIRN_E_TERMINATED)
    return 0;
  return id == CAIRN_E_KILLED || x->publication.left ||
         (x->has_written && is_passing(id));
}

static void say_kept(const struct export *x)
{
  const struct cairn__publication *p = &x->publication;
  char shown[512];

  if (p->pointfd < 0)
    return;
  cairn__run_warn(
      x->run,
      "%llu bytes that were exported stay in \"%s\": the next export of this "
      "collection goes on from there (or, without resume, removes them)",
      (unsigned long long)cairn__resume_bytes(x->io, p->pointfd),
      cairn__printable(p->work_path, shown, sizeof shown));
}

static void export_main(struct cairn__run *run)
{
  struct export x = {.run = run, .io = run->io, .spec = run->spec};
  struct cairn_error err;
  json_t *properties = NULL;
  int result, is_kept;

  cairn__error_clear(&err);
  x.collection = json_object_get(run->spec, "collection");
  x.format = text_of(run->spec, "format");
  cairn__publication_init(&x.publication, run->io);
  cairn__run_enter(run);
  result = do_export(&x, &properties, &err);
  cairn__run_leave(run);
  /* Servers and locks first: their files lie in the work directory. */
  cairn__members_close_sources(&x.members);
  make_report(&x, &err, result == 0 ? properties : NULL);
  is_kept = result != 0 && is_to_be_kept(&x, err.id);
  if (is_kept)
    say_kept(&x);
  cairn__publication_close(&x.publication, run, is_kept);
  cairn__members_free(&x.members);
  json_decref(properties);
  json_decref(x.files);
  json_decref(x.plan);
  explicit_bzero(x.secret, sizeof x.secret);
  if (result != 0)
    run->error = err;
}

/* ---- the plan ------------------------------------------------------------ */

/* The export directory, or the directory it would be made in. */
static int open_target(const struct cairn_io *io, const char *directory,
                       int *is_new, struct cairn_error *err)
{
  char parent[PATH_MAX], shown[512];
  char *slash;
  int fd = io->openat(io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  int errnum = errno;

  *is_new = 0;
  if (fd >= 0)
    return fd;
  if (errnum == ENOENT && strlen(directory) < sizeof parent) {
    size_t n = (size_t)snprintf(parent, sizeof parent, "%s", directory);

    while (n > 1 && parent[n - 1] == '/')
      parent[--n] = '\0';
    slash = strrchr(parent, '/');
    slash[slash == parent] = '\0';
    fd = io->openat(io, AT_FDCWD, parent, O_RDONLY | O_DIRECTORY, 0);
    *is_new = 1;
    if (fd >= 0)
      return fd;
  }
  cairn__printable(directory, shown, sizeof shown);
  if (errnum == ENOENT)
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "cannot create the export directory \"%s\": the "
                       "directory that it would be in does not exist; make it "
                       "first",
                       shown);
  cairn__fail_errno(err, errnum, directory, -1,
                    "cannot open the export directory \"%s\"", shown);
  if (err && errnum == ENOTDIR)
    err->id = CAIRN_E_BAD_PATH;
  return -1;
}

/* An upper estimate: data, tables (one entry and one refcount for each
 * cluster) and digests; pages of the map that have any. */
static uint64_t estimate_disk(const struct cairn__member_disk *d,
                              unsigned digest_size)
{
  uint64_t blocks = (d->data_bytes + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  uint64_t pages = d->source->length / (CAIRN__BLOCK * 8192ull) + 1;

  if (pages > blocks)
    pages = blocks;
  return blocks * CAIRN__BLOCK + blocks * (10 + digest_size) +
         (pages + 4) * CAIRN__BLOCK + pages * 4096;
}

static json_t *plan_disk(const struct cairn__member_disk *d,
                         const char *fallback, unsigned digest_size)
{
  return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s?, s:I}", "id",
                   d->id, "path", d->path, "format", d->format, "length",
                   (json_int_t)d->source->length, "virtual_size",
                   (json_int_t)d->source->virtual_size, "data_bytes",
                   (json_int_t)d->data_bytes, "target_bytes",
                   (json_int_t)estimate_disk(d, digest_size), "tracker", "full",
                   "fallback", fallback, "internal_snapshots",
                   (json_int_t)cairn__member_snapshots(d));
}

static json_t *plan_machine(const struct cairn__member *m, const char *fallback,
                            unsigned digest_size, uint64_t *target)
{
  json_t *disks = json_array(), *files = json_array();

  for (size_t i = 0; i < m->disk_count; i++) {
    *target += estimate_disk(&m->disks[i], digest_size);
    if (json_array_append_new(
            disks, plan_disk(&m->disks[i], fallback, digest_size)) != 0)
      goto fail;
  }
  for (size_t i = 0; i < m->files.count; i++) {
    const struct cairn__machine_file *f = &m->files.list[i];

    *target += ((uint64_t)f->st.st_size + 4095) / 4096 * 4096;
    if (json_array_append_new(files, json_pack("{s:s, s:s, s:s, s:I}", "role",
                                               f->role, "path", f->source,
                                               "name", f->name, "size",
                                               (json_int_t)f->st.st_size)) != 0)
      goto fail;
  }
  return json_pack("{s:s, s:s?, s:o, s:o}", "VirtualMachineId", m->id,
                   "ElementName", text_of(m->spec, "ElementName"), "disks",
                   disks, "files", files);
fail:
  json_decref(disks);
  json_decref(files);
  return NULL;
}

static int has_earlier_point(const struct cairn_io *io, const json_t *spec,
                             int *has, struct cairn_error *err)
{
  const char *collection =
      text_of(json_object_get(spec, "collection"), "CollectionId");
  json_t *points, *p;
  size_t i;

  *has = 0;
  if (cairn__points_read(io, text_of(spec, "directory"), &points, err) != 0)
    return -1;
  json_array_foreach(points, i, p)
  {
    const char *id = text_of(p, "CollectionId");

    if (id && strcmp(id, collection) == 0)
      *has = 1;
  }
  json_decref(points);
  return 0;
}

static int write_plan(const json_t *spec, const struct cairn__members *all,
                      const char *fallback, int is_new, int fd, json_t **plan,
                      struct cairn_error *err)
{
  unsigned digest_size =
      strcmp(text_of(spec, "digest"), "xxh3-128") == 0 ? 16 : 32;
  const json_t *collection = json_object_get(spec, "collection");
  json_t *machines = json_array();
  uint64_t target = 2ull * CAIRN__BLOCK, free_bytes = 0;
  struct statvfs fs;

  for (size_t i = 0; i < all->count; i++) {
    if (json_array_append_new(machines, plan_machine(&all->list[i], fallback,
                                                     digest_size, &target)) !=
        0) {
      json_decref(machines);
      return cairn__fail_memory(err);
    }
  }
  if (fstatvfs(fd, &fs) == 0)
    free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  *plan = json_pack(
      "{s:s, s:s, s:s?, s:s, s:b, s:s, s:s, s:s, s:s?, s:I, s:I, s:I, s:b, "
      "s:o}",
      "kind", "export", "CollectionId", text_of(collection, "CollectionId"),
      "ElementName", text_of(collection, "ElementName"), "directory",
      text_of(spec, "directory"), "is_new_directory", is_new, "format",
      text_of(spec, "format"), "digest", text_of(spec, "digest"), "base",
      text_of(spec, "base"), "fallback", fallback, "bytes_total",
      (json_int_t)all->bytes, "target_bytes", (json_int_t)target, "free_bytes",
      (json_int_t)free_bytes, "has_space", target <= free_bytes, "machines",
      machines);
  return *plan ? 0 : cairn__fail_memory(err);
}

/* Opens everything as the run would, locks included, and lets go again. */
static int export_plan(const struct cairn_io *io, const json_t *spec,
                       json_t **plan, struct cairn_error *err)
{
  struct cairn__members all = {0};
  struct cairn__members_options o = {
      .io = io,
      .collection = json_object_get(spec, "collection"),
      .target_path = text_of(spec, "directory"),
  };
  int is_new, has_earlier = 0, result;
  const char *fallback = NULL;

  *plan = NULL;
  o.target_fd = open_target(io, o.target_path, &is_new, err);
  if (o.target_fd < 0)
    return -1;
  result = cairn__publication_check_target(io, o.target_fd, o.target_path, err);
  if (result == 0 && !is_new)
    result = has_earlier_point(io, spec, &has_earlier, err);
  if (has_earlier && strcmp(text_of(spec, "base"), "latest") == 0)
    fallback = NO_INCREMENTS;
  if (result == 0)
    result = cairn__members_open(&o, &all, err);
  if (result == 0)
    result = cairn__members_measure(&all, NULL, err);
  if (result == 0)
    result = write_plan(spec, &all, fallback, is_new, o.target_fd, plan, err);
  cairn__members_free(&all);
  (void)io->close(io, o.target_fd);
  return result;
}

const struct cairn__kind cairn__kind_export = {
    .name = "export",
    .check = cairn__export_check,
    .main = export_main,
    .plan = export_plan,
};
