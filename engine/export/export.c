/* export.c: the kind "export": one point in time of all machines of a
 * collection, whole or not at all.
 *
 *   lock the export directory, clean up after the dead, make a work directory
 *   open and lock every source: this moment is the point
 *   choose the base of every disk, measure
 *   copy disk after disk and file after file
 *   see that no source has moved
 *   manifest, sync, one rename
 *
 * Until the rename nothing is visible; after it the point is there, and what
 * still goes wrong is a warning. A failure ends with nothing, unless disks were
 * begun and the next run may fare better: that goes on from the work directory
 * (export_resume.c).
 *
 * With on_disk_error = "continue" a machine whose sources fail is left out as a
 * whole: what was written of it is removed, the manifest names it as failed. A
 * failure of the target is nobody's source and ends the run all the same. */
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "collection.h"
#include "datetime.h"
#include "error.h"
#include "export.h"
#include "index.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "published.h"

static const char *text_of(const json_t *object, const char *name)
{
  return cairn__text_of(object, name);
}

static void format_time(int64_t unix_us, char out[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);

  cairn_datetime_format(&t, out);
}

static int64_t wall_us(const struct cairn__export *x)
{
  return x->run->clock->wall(x->run->clock);
}

static int sync_fd(const struct cairn__export *x, int fd, const char *what,
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

/* The points of this collection that are here, the one that is the base, and
 * the place of the new one among them. */
static int open_bases(struct cairn__export *x, int algorithm,
                      struct cairn_error *err)
{
  const char *collection = text_of(x->collection, "CollectionId");
  struct cairn__bases_options o = {
      .io = x->io,
      .run = x->run,
      .directory = x->publication.path,
      .collection = collection,
      .wanted = text_of(x->spec, "base"),
      .depth_limit =
          (unsigned)json_integer_value(json_object_get(x->spec, "depth_limit")),
      .before = json_integer_value(json_object_get(x->marker, "sequence")),
      .algorithm = algorithm,
  };

  if (cairn__bases_open(&o, &x->bases, err) != 0)
    return -1;
  if (x->marker) {
    x->sequence = x->bases.o.before;
    return 0;
  }
  return cairn__publication_next_sequence(&x->publication, collection,
                                          x->bases.sequence, &x->sequence, err);
}

static int prepare(struct cairn__export *x, struct cairn_error *err)
{
  struct cairn__wanted wanted;
  json_t *index = NULL;
  int algorithm, result;

  if (cairn__digest_algorithm_parse(text_of(x->spec, "digest"), &algorithm,
                                    err) != 0)
    return -1;
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
      cairn__export_take_marker(x, x->publication.dirfd, x->publication.path,
                                err) != 0)
    return -1;
  wanted = cairn__export_wanted(x);
  /* a damaged one is warned of below */
  if (cairn__index_read(x->io, x->publication.dirfd, x->publication.path,
                        &index, NULL) == 0)
    wanted.index = index;
  result = cairn__publication_clean(
      &x->publication, x->run, &wanted,
      json_is_false(json_object_get(x->spec, "resume")), err);
  json_decref(index);
  if (result != 0 || cairn__export_look_after_index(x, err) != 0 ||
      open_bases(x, algorithm, err) != 0)
    return -1;
  return cairn__publication_begin(&x->publication, x->run, err);
}

/* ---- machines that are left out ------------------------------------------ */

static int is_continuing(const struct cairn__export *x)
{
  return strcmp(text_of(x->spec, "on_disk_error"), "continue") == 0;
}

/* Whether an error is a machine's own, so that the others may go on. Paths of
 * the target begin as the specification has them. */
static int is_of_source(const struct cairn__export *x,
                        const struct cairn_error *error)
{
  const char *target = text_of(x->spec, "directory");
  size_t n = strlen(target);

  while (n > 1 && target[n - 1] == '/')
    n--;
  switch (error->id) {
  case CAIRN_E_TERMINATED:
  case CAIRN_E_KILLED:
  case CAIRN_E_NO_MEMORY:
  case CAIRN_E_DISK_FULL:
  case CAIRN_E_TARGET_IN_SOURCE:
  case CAIRN_E_INTERNAL:
    return 0;
  default:
    return strncmp(error->path, target, n) != 0 ||
           (error->path[n] != '/' && error->path[n] != '\0');
  }
}

int cairn__export_may_leave_out(void *arg, const struct cairn_error *error)
{
  const struct cairn__export *x = arg;

  return is_continuing(x) && is_of_source(x, error);
}

/* Removes what was written of a machine. */
static int remove_machine(struct cairn__export *x, struct cairn__member *m,
                          struct cairn_error *err)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    struct cairn__member_disk *d = &m->disks[i];

    if (d->result == CAIRN__MEMBER_OK)
      d->result = CAIRN__MEMBER_NOT_DONE;
    json_decref(d->entry);
    d->entry = NULL;
  }
  for (size_t i = json_array_size(x->files); i-- > 0;) {
    const char *vm = text_of(json_array_get(x->files, i), "VirtualMachineId");

    if (vm && strcmp(vm, m->id) == 0)
      (void)json_array_remove(x->files, i);
  }
  if (cairn__io_remove_tree(x->io, x->publication.pointfd, m->id) == 0)
    return 0;
  return cairn__fail_errno(err, errno, x->publication.point_path, -1,
                           "cannot remove what was written of machine %s",
                           m->id);
}

/* The machine has failed: 0 the export goes on without it, -1 it does not. */
static int leave_out(struct cairn__export *x, struct cairn__member *m,
                     struct cairn_error *err)
{
  if (!cairn__export_may_leave_out(x, err))
    return -1;
  m->result = CAIRN__MEMBER_FAILED;
  m->error = *err;
  cairn__error_clear(err);
  return remove_machine(x, m, err);
}

int cairn__export_check_any(const struct cairn__export *x,
                            struct cairn_error *err)
{
  const struct cairn__member *first = NULL;

  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    if (m->result != CAIRN__MEMBER_FAILED)
      return 0;
    if (!first)
      first = m;
  }
  if (first && err)
    *err = first->error;
  return -1;
}

void cairn__export_warn_of_failed(const struct cairn__export *x)
{
  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    if (m->result == CAIRN__MEMBER_FAILED)
      cairn__run_warn(x->run, "left out of this point: %s", m->error.message);
  }
}

static int open_sources(struct cairn__export *x, struct cairn_error *err)
{
  struct cairn__members_options o = {
      .io = x->io,
      .run = x->run,
      .collection = x->collection,
      .work_directory = x->publication.work_path,
      .target_fd = x->publication.dirfd,
      .target_path = x->publication.path,
      .point = x->run->point_uuid,
      .tracker = text_of(x->spec, "tracker"),
      .may_leave_out = cairn__export_may_leave_out,
      .argument = x,
  };

  if (cairn__export_note_intents(x, err) != 0 ||
      cairn__members_open(&o, &x->members, err) != 0)
    return -1;
  x->time_us = wall_us(x);
  cairn__members_release(&x->members);
  if (cairn__export_check_any(x, err) != 0 ||
      cairn__export_check_marker(x, err) != 0 ||
      cairn__export_choose_bases(x, err) != 0 ||
      cairn__members_measure(&x->members, x->run, err) != 0 ||
      cairn__export_check_any(x, err) != 0)
    return -1;
  atomic_store(&x->run->bytes_total, x->members.bytes);
  return cairn__export_begin(x, err);
}

/* ---- a machine ----------------------------------------------------------- */

static int make_directory(const struct cairn__export *x, int parent,
                          const char *name, const char *path, int *fd,
                          struct cairn_error *err)
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

static int export_file(struct cairn__export *x, struct cairn__member *m,
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

static int export_role(struct cairn__export *x, struct cairn__member *m,
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

static int export_machine(struct cairn__export *x, struct cairn__member *m,
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
    result = cairn__export_disk(x, m, &m->disks[i], fd, err);
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

/* Those that are in the point, or those that failed. */
static json_t *list_machines(const struct cairn__export *x, int is_failed)
{
  json_t *machines = json_array();

  for (size_t i = 0; machines && i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];
    json_t *o;

    if ((m->result == CAIRN__MEMBER_FAILED) != is_failed)
      continue;
    o = json_pack("{s:s, s:s?}", "VirtualMachineId", m->id, "ElementName",
                  text_of(m->spec, "ElementName"));
    if (!o ||
        (!is_failed &&
         json_object_set_new(o, "result", json_string("ok")) != 0) ||
        (is_failed &&
         (json_object_set_new(
              o, "code", json_string(cairn_error_info(m->error.id)->code)) !=
              0 ||
          json_object_set_new(o, "error", json_string(m->error.message)) !=
              0)) ||
        json_array_append(machines, o) != 0) {
      json_decref(o);
      json_decref(machines);
      return NULL;
    }
    json_decref(o);
  }
  return machines;
}

static json_t *list_warnings(struct cairn__export *x)
{
  json_t *warnings;

  pthread_mutex_lock(&x->run->lock);
  warnings = x->run->warnings ? json_deep_copy(x->run->warnings) : json_array();
  pthread_mutex_unlock(&x->run->lock);
  return warnings;
}

static int write_manifest(struct cairn__export *x, struct cairn_error *err)
{
  char time[CAIRN_DATETIME_SIZE];
  json_t *manifest;
  int result;

  format_time(x->time_us, time);
  manifest = json_pack(
      "{s:s, s:i, s:s, s:s, s:s?, s:s, s:s?, s:s, s:I, s:I, s:I, s:i, s:s, "
      "s:I, s:s, s:o, s:O, s:o, s:O, s:o}",
      "format", "cairn-export", "version", CAIRN__MANIFEST_VERSION, "note",
      CAIRN__MANIFEST_NOTE, "CollectionId",
      text_of(x->collection, "CollectionId"), "ElementName",
      text_of(x->collection, "ElementName"), "ReferencePointGroupId",
      x->run->point_uuid, "BaseReferencePointGroupId", cairn__export_base_id(x),
      "InstanceID", x->run->instance_id, "run", (json_int_t)x->run->number,
      "epoch", (json_int_t)x->run->epoch, "sequence", x->sequence, "generation",
      1, "time", time, "unix_us", (json_int_t)x->time_us, "algorithm",
      text_of(x->spec, "digest"), "machines", list_machines(x, 0), "files",
      x->files, "failed", list_machines(x, 1), "removed", x->removed,
      "warnings", list_warnings(x));
  if (!manifest)
    return cairn__fail_memory(err);
  result = cairn__manifest_write(x->io, x->publication.pointfd, manifest,
                                 x->publication.point_path, err);
  json_decref(manifest);
  return result;
}

/* Every machine's sources stood still, but for those that are left out. */
static int check_still(struct cairn__export *x, struct cairn_error *err)
{
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];

    if (m->result != CAIRN__MEMBER_FAILED &&
        cairn__member_check_still(m, err) != 0 && leave_out(x, m, err) != 0)
      return -1;
  }
  return cairn__export_check_any(x, err);
}

static int publish(struct cairn__export *x, struct cairn_error *err)
{
  if (cairn__secret_publish(x->io, x->publication.pointfd,
                            x->publication.point_path, &x->digester, x->files,
                            err) != 0 ||
      write_manifest(x, err) != 0 || cairn__run_gate(x->run, err) != 0)
    return -1;
  /* a marker's was kept when it was made, and may not be the last */
  if (!x->marker && cairn__publication_keep_sequence(
                        &x->publication, text_of(x->collection, "CollectionId"),
                        x->sequence, err) != 0)
    return -1;
  if (cairn__publication_publish(&x->publication, x->run, x->run->point_uuid,
                                 err) != 0)
    return -1;
  cairn__export_drop_marker(x);
  return 0;
}

/* ---- the run ------------------------------------------------------------- */

static int do_export(struct cairn__export *x, json_t **properties,
                     struct cairn_error *err)
{
  if (prepare(x, err) != 0 || open_sources(x, err) != 0)
    return -1;
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];

    if (m->result == CAIRN__MEMBER_FAILED)
      continue;
    if (cairn__run_gate(x->run, err) != 0 ||
        (export_machine(x, m, err) != 0 && leave_out(x, m, err) != 0))
      return -1;
  }
  if (cairn__export_check_any(x, err) != 0 || check_still(x, err) != 0)
    return -1;
  cairn__export_warn_of_failed(x);
  if (cairn__export_properties(x, properties, err) != 0)
    return -1;
  return publish(x, err);
}

static void export_main(struct cairn__run *run)
{
  struct cairn__export x = {.run = run, .io = run->io, .spec = run->spec};
  struct cairn_error err;
  json_t *properties = NULL;
  int result, is_kept;

  cairn__error_clear(&err);
  x.collection = json_object_get(run->spec, "collection");
  x.format = text_of(run->spec, "format");
  cairn__publication_init(&x.publication, run->io);
  cairn__run_enter(run);
  result = cairn__published_point(run, text_of(run->spec, "directory"), &err);
  if (result > 0) {
    cairn__run_leave(run);
    return;
  }
  if (result == 0)
    result = do_export(&x, &properties, &err);
  cairn__run_leave(run);
  /* Servers and locks first: their files lie in the work directory. */
  cairn__members_close_sources(&x.members);
  is_kept = result != 0 && cairn__export_is_kept(&x, err.id);
  if (!is_kept || x.has_begun)
    cairn__export_drop_left(&x);
  /* What stays with the work shows the next run what has changed since; what
   * is not noted would stay for ever. */
  if (!(is_kept && x.has_begun && x.has_intents) &&
      cairn__members_end(&x.members, x.publication.is_published,
                         x.bases.points) == 0)
    cairn__export_forget_intents(&x);
  cairn__export_report(&x, &err, result == 0 ? properties : NULL);
  cairn__publication_close(&x.publication, run, is_kept);
  cairn__members_free(&x.members);
  cairn__bases_close(&x.bases);
  json_decref(properties);
  json_decref(x.files);
  json_decref(x.removed);
  json_decref(x.plan);
  cairn__export_free_marker(&x);
  explicit_bzero(&x.digester, sizeof x.digester);
  if (result != 0)
    run->error = err;
}

const struct cairn__kind cairn__kind_export = {
    .name = "export",
    .check = cairn__export_check,
    .main = export_main,
    .plan = cairn__export_plan,
};
