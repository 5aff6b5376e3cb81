/* export_plan.c: the dry run. Opens everything as the run would, locks
 * included, and lets go again; writes nothing.
 *
 * Disks are planned to the byte: they are read, and compared with their base,
 * since nothing else can tell. For an outlook they are not read, and estimated
 * from above, from what the sources say of their holes. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "error.h"
#include "export.h"
#include "memory.h"
#include "sink_plan.h"

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

/* What is needed on the target: for the point, and beside it while it is made.
 */
struct space {
  uint64_t target, work;
};

/* What a disk comes to. */
struct disk_plan {
  uint64_t target_bytes; /* image and digest map */
  uint64_t work_bytes;   /* the journal, until the point is published */
  uint64_t changed_bytes, zeroed_bytes;
  json_t *ranges; /* NULL: it was not read */
  size_t ranges_left_out;
};

/* An upper estimate: data, tables (one entry and one refcount for each
 * cluster) and the map's pages that are none of holes, which are whole ones. */
static uint64_t estimate_disk(const struct cairn__member_disk *d,
                              unsigned digest_size)
{
  const struct cairn__source *s = cairn__member_source(d);
  uint64_t blocks = (d->data_bytes + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  uint64_t pages = s->length / (CAIRN__BLOCK * 8192ull) + 1;

  if (pages > blocks)
    pages = blocks;
  return blocks * (CAIRN__BLOCK + 10) + (pages + 4) * CAIRN__BLOCK + 4096 +
         pages * (CAIRN__PAGE_BLOCKS * (uint64_t)digest_size + 4096);
}

/* Reads the disk, and compares it with its base, if it has one. */
static int read_disk(struct cairn__export *x, struct cairn__member_disk *d,
                     struct disk_plan *out, struct cairn_error *err)
{
  struct cairn__source *s = cairn__member_source(d);
  struct cairn__sink_plan sink;
  struct cairn__copy copy = {
      .run = x->run, .source = s, .sink = &sink.sink, .digester = &x->digester};
  uint64_t image = 0, map = 0;
  int is_raw = !d->base.point && strcmp(x->format, "raw") == 0;
  int result = cairn__sink_plan_init(&sink, s->length, s->virtual_size,
                                     x->digester.size, err);

  if (result == 0 && d->base.point)
    result = cairn__point_open_map(x->io, d->base.point, d->base.image,
                                   &x->digester, &copy.base, err);
  if (result == 0)
    result = cairn__map_measure(&x->digester, s->virtual_size, s->length,
                                &copy.map_writer, err);
  if (result == 0)
    result = cairn__copy_run(&copy, err);
  if (result == 0)
    result = s->ops->check_still(s, err);
  if (result == 0)
    result = cairn__sink_plan_end(&sink, is_raw, &image, err);
  if (result == 0) {
    result = cairn__map_measured(copy.map_writer, &map, err);
    copy.map_writer = NULL;
  }
  if (result == 0) {
    out->target_bytes = image + map;
    out->work_bytes = sink.journal_pages * 4096;
    out->changed_bytes = sink.data_blocks * CAIRN__BLOCK;
    out->zeroed_bytes = sink.zero_blocks * CAIRN__BLOCK;
    out->ranges = json_incref(sink.ranges);
    out->ranges_left_out = sink.ranges_left_out;
  }
  cairn__map_abort(copy.map_writer);
  cairn__map_close(copy.base);
  cairn__sink_plan_free(&sink);
  return result;
}

static json_t *describe_disk(const struct cairn__member_disk *d,
                             const struct disk_plan *p)
{
  const struct cairn__source *s = cairn__member_source(d);
  const struct cairn__base *base = &d->base;
  json_t *o = json_pack(
      "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s?, s:I, s:s?, s:b}", "id",
      d->id, "path", d->path, "format", d->format, "length",
      (json_int_t)s->length, "virtual_size", (json_int_t)s->virtual_size,
      "data_bytes", (json_int_t)d->data_bytes, "target_bytes",
      (json_int_t)p->target_bytes, "tracker",
      cairn__tracker_names[d->tracking.used], "fallback",
      base->reason ? base->reason : d->tracking.reason, "internal_snapshots",
      (json_int_t)cairn__member_snapshots(d), "base",
      base->point ? cairn__point_id(base->point) : NULL, "is_exact",
      p->ranges != NULL);

  if (!o || !p->ranges)
    return o;
  if (json_object_set(o, "ranges", p->ranges) != 0 ||
      json_object_set_new(o, "ranges_left_out",
                          json_integer((json_int_t)p->ranges_left_out)) != 0 ||
      json_object_set_new(o, "changed_bytes",
                          json_integer((json_int_t)p->changed_bytes)) != 0 ||
      json_object_set_new(o, "zeroed_bytes",
                          json_integer((json_int_t)p->zeroed_bytes)) != 0) {
    json_decref(o);
    return NULL;
  }
  return o;
}

static int plan_disk(struct cairn__export *x, struct cairn__member *m,
                     struct cairn__member_disk *d, json_t *disks,
                     struct space *space, struct cairn_error *err)
{
  unsigned digest_size = x->digester.size;
  struct disk_plan p = {.target_bytes = estimate_disk(d, digest_size)};
  int result = 0;

  if (!x->is_outlook && read_disk(x, d, &p, err) != 0)
    return cairn__member_fail(m, d, err);
  space->target += p.target_bytes;
  space->work += p.work_bytes;
  if (json_array_append_new(disks, describe_disk(d, &p)) != 0)
    result = cairn__fail_memory(err);
  json_decref(p.ranges);
  return result;
}

static int plan_files(const struct cairn__member *m, json_t *files,
                      struct space *space, struct cairn_error *err)
{
  for (size_t i = 0; i < m->files.count; i++) {
    const struct cairn__machine_file *f = &m->files.list[i];

    space->target += ((uint64_t)f->st.st_size + 4095) / 4096 * 4096;
    if (json_array_append_new(files, json_pack("{s:s, s:s, s:s, s:I}", "role",
                                               f->role, "path", f->source,
                                               "name", f->name, "size",
                                               (json_int_t)f->st.st_size)) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

static int plan_machine(struct cairn__export *x, struct cairn__member *m,
                        json_t *machines, struct space *space,
                        struct cairn_error *err)
{
  json_t *disks = json_array(), *files = json_array();
  int result = disks && files ? plan_files(m, files, space, err)
                              : cairn__fail_memory(err);

  for (size_t i = 0; i < m->disk_count && result == 0; i++)
    result = plan_disk(x, m, &m->disks[i], disks, space, err);
  if (result == 0 &&
      json_array_append_new(machines,
                            json_pack("{s:s, s:s?, s:O, s:O}",
                                      "VirtualMachineId", m->id, "ElementName",
                                      cairn__text_of(m->spec, "ElementName"),
                                      "disks", disks, "files", files)) != 0)
    result = cairn__fail_memory(err);
  json_decref(disks);
  json_decref(files);
  return result;
}

/* Those that would not be left out. */
static int plan_machines(struct cairn__export *x, json_t *machines,
                         struct space *space, struct cairn_error *err)
{
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];
    struct space more = {0, 0};

    if (m->result == CAIRN__MEMBER_FAILED)
      continue;
    if (plan_machine(x, m, machines, &more, err) == 0) {
      space->target += more.target;
      space->work += more.work;
    } else if (!cairn__member_leave_out(&x->members, m, err))
      return -1;
  }
  if (cairn__export_check_any(x, err) != 0)
    return -1;
  cairn__export_warn_of_failed(x);
  return 0;
}

static int write_plan(struct cairn__export *x, int is_new, int fd,
                      json_t **plan, struct cairn_error *err)
{
  const json_t *spec = x->spec;
  json_t *machines = json_array(), *warnings;
  const struct cairn__wanted wanted = cairn__export_wanted(x);
  struct space space = {.target = 2ull * CAIRN__BLOCK};
  uint64_t free_bytes = 0, kept = 0;
  char *left = NULL;
  struct statvfs fs;
  int result = machines ? 0 : cairn__fail_memory(err);

  if (result == 0)
    result = plan_machines(x, machines, &space, err);
  if (result == 0 && !is_new && !json_is_false(json_object_get(spec, "resume")))
    result = cairn__publication_find(x->io, fd, &wanted, &left, &kept, err);
  if (result != 0) {
    json_decref(machines);
    return -1;
  }
  if (fstatvfs(fd, &fs) == 0)
    free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  warnings = x->run->warnings ? json_incref(x->run->warnings) : json_array();
  *plan = json_pack(
      "{s:s, s:s, s:s?, s:s, s:b, s:s, s:s, s:s, s:s?, s:I, s:I, s:I, s:b, "
      "s:o, s:o, s:s?, s:I, s:I}",
      "kind", "export", "CollectionId",
      cairn__text_of(x->collection, "CollectionId"), "ElementName",
      cairn__text_of(x->collection, "ElementName"), "directory",
      cairn__text_of(spec, "directory"), "is_new_directory", is_new, "format",
      x->format, "digest", cairn__text_of(spec, "digest"), "base",
      cairn__text_of(spec, "base"), "BaseReferencePointGroupId",
      cairn__export_base_id(x), "bytes_total", (json_int_t)x->members.bytes,
      "target_bytes", (json_int_t)space.target, "free_bytes",
      (json_int_t)free_bytes, "has_space",
      space.target + space.work <= free_bytes + kept, "machines", machines,
      "warnings", warnings, "resumes", left, "kept_bytes", (json_int_t)kept,
      "work_bytes", (json_int_t)space.work);
  cairn__free(left);
  return *plan ? 0 : cairn__fail_memory(err);
}

static int open_bases(struct cairn__export *x, int is_new,
                      struct cairn_error *err)
{
  struct cairn__bases_options o = {
      .io = x->io,
      .run = x->run,
      .directory = cairn__text_of(x->spec, "directory"),
      .collection = cairn__text_of(x->collection, "CollectionId"),
      .wanted = cairn__text_of(x->spec, "base"),
      .before = json_integer_value(json_object_get(x->marker, "sequence")),
      .depth_limit =
          (unsigned)json_integer_value(json_object_get(x->spec, "depth_limit")),
  };

  if (cairn__digest_algorithm_parse(cairn__text_of(x->spec, "digest"),
                                    &o.algorithm, err) != 0)
    return -1;
  if (is_new) {
    x->bases.o = o;
    x->bases.o.wanted = strcmp(o.wanted, "latest") == 0 ? "none" : o.wanted;
    if (strcmp(x->bases.o.wanted, "none") == 0)
      return 0;
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "\"%s\" does not exist yet, so it holds no reference "
                       "point \"%s\"",
                       o.directory, o.wanted);
  }
  return cairn__bases_open(&o, &x->bases, err);
}

static int make_plan(struct cairn__export *x, int is_new, int fd, json_t **plan,
                     struct cairn_error *err)
{
  struct cairn__members_options o = {
      .io = x->io,
      .run = x->run,
      .target_fd = fd,
      .target_path = cairn__text_of(x->spec, "directory"),
      .tracker = cairn__text_of(x->spec, "tracker"),
      .may_leave_out = cairn__export_may_leave_out,
      .argument = x,
  };

  if (cairn__publication_check_target(x->io, fd, o.target_path, err) != 0 ||
      cairn__export_take_marker(x, fd, o.target_path, err) != 0)
    return -1;
  o.collection = x->collection;
  if (open_bases(x, is_new, err) != 0 ||
      cairn__members_open(&o, &x->members, err) != 0 ||
      cairn__export_check_marker(x, err) != 0 ||
      cairn__export_check_any(x, err) != 0 ||
      cairn__export_choose_bases(x, err) != 0 ||
      cairn__members_measure(&x->members, x->run, err) != 0)
    return -1;
  return write_plan(x, is_new, fd, plan, err);
}

static int plan_export(const struct cairn_io *io, const json_t *spec,
                       int is_outlook, json_t **plan, struct cairn_error *err)
{
  struct cairn__export x = {.io = io,
                            .spec = spec,
                            .is_outlook = is_outlook,
                            .bases = {.x = {.fd = -1}}};
  int is_new, fd, result;

  *plan = NULL;
  x.collection = json_object_get(spec, "collection");
  x.format = cairn__text_of(spec, "format");
  fd = open_target(io, cairn__text_of(spec, "directory"), &is_new, err);
  if (fd < 0)
    return -1;
  x.run = cairn__run_new(NULL);
  if (!x.run) {
    (void)io->close(io, fd);
    return cairn__fail_memory(err);
  }
  x.run->io = io;
  cairn__run_enter(x.run);
  result = make_plan(&x, is_new, fd, plan, err);
  cairn__run_leave(x.run);
  cairn__members_free(&x.members);
  cairn__bases_close(&x.bases);
  json_decref(x.removed);
  cairn__export_free_marker(&x);
  explicit_bzero(&x.digester, sizeof x.digester);
  cairn__run_release(x.run);
  (void)io->close(io, fd);
  return result;
}

int cairn__export_plan(const struct cairn_io *io, const json_t *spec,
                       json_t **plan, struct cairn_error *err)
{
  return plan_export(io, spec, 0, plan, err);
}

int cairn__export_outlook(const struct cairn_io *io, const json_t *spec,
                          json_t **plan, struct cairn_error *err)
{
  return plan_export(io, spec, 1, plan, err);
}
