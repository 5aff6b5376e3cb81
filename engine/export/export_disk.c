/* export_disk.c: one disk of an export, from its base to its entries in the
 * manifest.
 *
 * A disk with a base becomes an increment: what has another digest than in the
 * base's map. A source that two machines share is read once, for the first of
 * them; the other takes what was written, and so has the same bytes even if it
 * rests on another base. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "datetime.h"
#include "error.h"
#include "export.h"
#include "marker.h"
#include "memory.h"

static const char *text_of(const json_t *object, const char *name)
{
  return cairn__text_of(object, name);
}

/* ---- the base ------------------------------------------------------------ */

static const char *name_of(const struct cairn__member *m, char *buf, size_t n)
{
  const char *name = text_of(m->spec, "ElementName");

  return name ? cairn__printable(name, buf, n) : m->id;
}

static void warn_of_base(struct cairn__export *x, const struct cairn__member *m,
                         const struct cairn__member_disk *d)
{
  char shown[200];

  if (!d->base.reason || !d->base.is_notable)
    return;
  if (d->base.point)
    cairn__run_warn(x->run,
                    "disk %s of machine %s is based on reference point %s, "
                    "which is not the newest: %s",
                    d->id, name_of(m, shown, sizeof shown),
                    cairn__point_id(d->base.point), d->base.reason);
  else
    cairn__run_warn(x->run, "disk %s of machine %s is exported in full: %s",
                    d->id, name_of(m, shown, sizeof shown), d->base.reason);
}

static int is_member(const struct cairn__export *x, const char *vm,
                     const char *disk)
{
  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    if (strcmp(m->id, vm) != 0)
      continue;
    for (size_t j = 0; j < m->disk_count; j++) {
      if (strcmp(m->disks[j].id, disk) == 0)
        return 1;
    }
  }
  return 0;
}

/* Disks that the reference has and the collection has not. */
static int find_removed(struct cairn__export *x, struct cairn_error *err)
{
  const json_t *reference = cairn__bases_reference(&x->bases);
  size_t i;
  json_t *file;

  x->removed = json_array();
  if (!x->removed)
    return cairn__fail_memory(err);
  json_array_foreach(json_object_get(reference, "files"), i, file)
  {
    const char *role = text_of(file, "role");
    const char *vm = text_of(file, "VirtualMachineId");
    const char *disk = text_of(file, "disk");

    if ((strcmp(role, "disk") != 0 && strcmp(role, "log") != 0) ||
        is_member(x, vm, disk))
      continue;
    cairn__run_warn(x->run,
                    "disk %s of machine %s is in reference point %s and no "
                    "longer in the collection",
                    disk, vm, text_of(reference, "ReferencePointGroupId"));
    if (json_array_append_new(
            x->removed,
            json_pack("{s:s, s:s}", "VirtualMachineId", vm, "disk", disk)) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

/* ---- what its tracker says ----------------------------------------------- */

static const char *fallback_of(const struct cairn__member_disk *d)
{
  return d->base.reason ? d->base.reason : d->tracking.reason;
}

static int find_changes(struct cairn__export *x, struct cairn__member *m,
                        struct cairn__member_disk *d, struct cairn_error *err)
{
  struct cairn__tracking *t = &d->tracking;
  char shown[200];

  if (d->twin) {
    t->used = d->base.point ? CAIRN__TRACKER_DIGEST : CAIRN__TRACKER_FULL;
    return 0;
  }
  if (cairn__tracking_changes(t, &x->members.tracking, m->id, d->id, &d->base,
                              x->bases.points, &x->digester, d->source,
                              err) != 0)
    return cairn__member_fail(m, d, err);
  if (t->is_refuted && x->members.tracking.point)
    cairn__export_mark_suspect(x, m, d);
  if (t->reason && t->is_notable)
    cairn__run_warn(x->run,
                    "disk %s of machine %s goes without the %s tracker: %s",
                    d->id, name_of(m, shown, sizeof shown),
                    cairn__tracker_names[t->wanted], t->reason);
  return 0;
}

static int find_all_changes(struct cairn__export *x, struct cairn_error *err)
{
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];

    for (size_t j = 0; j < m->disk_count && m->result != CAIRN__MEMBER_FAILED;
         j++) {
      if ((cairn__run_gate(x->run, err) != 0 ||
           find_changes(x, m, &m->disks[j], err) != 0) &&
          !cairn__member_leave_out(&x->members, m, err))
        return -1;
    }
  }
  return 0;
}

static int settle_digester(struct cairn__export *x, struct cairn_error *err)
{
  if (x->bases.has_key) {
    x->digester = x->bases.digester;
    return 0;
  }
  return cairn__export_secret(x, err);
}

int cairn__export_choose_bases(struct cairn__export *x, struct cairn_error *err)
{
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];

    for (size_t j = 0; j < m->disk_count && m->result != CAIRN__MEMBER_FAILED;
         j++) {
      struct cairn__member_disk *d = &m->disks[j];

      if (cairn__run_gate(x->run, err) != 0)
        return -1;
      if (d->tracking.wanted == CAIRN__TRACKER_FULL)
        continue;
      if (cairn__bases_choose(&x->bases, m->id, d->id, &d->base, err) != 0)
        return cairn__member_fail(m, d, err);
      warn_of_base(x, m, d);
    }
  }
  if (find_removed(x, err) != 0 || settle_digester(x, err) != 0)
    return -1;
  return find_all_changes(x, err);
}

/* ---- a disk -------------------------------------------------------------- */

struct disk_job {
  struct cairn__export *x;
  struct cairn__member *m;
  struct cairn__member_disk *d;
  int dirfd; /* of the machine */
  const char *format;
  char name[96]; /* the image */
  char map_name[96];
  uint64_t length, virtual_size;
  struct cairn__file_result image, map;
  unsigned char content[CAIRN__DIGEST_MAX];
  struct cairn__copy copy;
  /* what the copy reads besides the source */
  struct cairn__source *written; /* the twin's image with its bases */
  struct cairn__map *base, *twin_map;
  struct cairn__changes *changes;
  int64_t started_us;
  int is_resumed; /* an image that is there is taken over */
};

static int64_t wall_us(const struct cairn__export *x)
{
  return x->run->clock->wall(x->run->clock);
}

static int open_sink(struct disk_job *j, struct cairn__sink **sink,
                     struct cairn_error *err)
{
  const struct cairn__export *x = j->x;
  const struct cairn__base *base = &j->d->base;
  unsigned char base_id[16];
  char path[PATH_MAX];
  struct cairn__sink_options o = {
      .io = x->io,
      .dirfd = j->dirfd,
      .name = j->name,
      .is_resumed = j->is_resumed,
      .path = path,
      .length = j->length,
      .virtual_size = j->virtual_size,
      .digester = &x->digester,
      .point = x->point,
  };

  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, j->m->id,
           j->name);
  if (base->point) {
    if (uuid_parse(cairn__point_id(base->point), base_id) != 0)
      return cairn__fail(err, CAIRN_E_INTERNAL, "the base has no id");
    o.base = base_id;
    o.backing_name = base->backing_name;
    o.backing_format = text_of(base->image, "format");
  }
  return strcmp(j->format, "raw") == 0 ? cairn__sink_open_raw(&o, sink, err)
                                       : cairn__sink_open_qcow2(&o, sink, err);
}

/* ---- what it reads ------------------------------------------------------- */

/* The image that was written for the twin, as a source: it is in the work
 * directory, its bases are published. */
static int open_written(struct disk_job *j, int fd, struct cairn_error *err)
{
  struct cairn__export *x = j->x;
  const struct cairn__member_disk *twin = j->d->twin;
  struct cairn__layer *top, **below = NULL, **all;
  const char *name = strrchr(text_of(twin->entry, "path"), '/') + 1;
  char path[PATH_MAX]; /* absolute: whose failure it is, is told from it */
  size_t n = 0, i;
  int result;

  snprintf(path, sizeof path, "%s/%s", x->publication.point_path,
           text_of(twin->entry, "path"));
  if (cairn__layer_open(x->io, fd, name, path, text_of(twin->entry, "format"),
                        j->length, &top, err) != 0)
    return -1;
  if (twin->base.point &&
      cairn__point_open_chain(&x->bases.x, twin->base.point, twin->base.image,
                              &below, &n, err) != 0) {
    cairn__layer_close(top);
    return -1;
  }
  all = cairn__calloc(n + 1, sizeof(struct cairn__layer *));
  result = all ? 0 : cairn__fail_memory(err);
  for (i = 0; i < n && all; i++)
    all[i] = below[i];
  if (all) {
    all[n] = top;
    result = cairn__source_open_layers(all, n + 1, j->length, path, 2,
                                       &j->written, err);
  }
  if (result != 0) {
    for (i = 0; i < n; i++)
      cairn__layer_close(below[i]);
    cairn__layer_close(top);
  }
  cairn__free(below);
  cairn__free(all);
  return result;
}

/* The source itself where the twin's machine was left out. */
static int open_twin(struct disk_job *j, struct cairn_error *err)
{
  struct cairn__export *x = j->x;
  const struct cairn__member_disk *twin = j->d->twin;
  char map_name[96], path[PATH_MAX];
  int fd, result;

  if (j->d->twin_member->result == CAIRN__MEMBER_FAILED)
    return 0;
  fd = x->io->openat(x->io, x->publication.pointfd, j->d->twin_member->id,
                     O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (fd < 0)
    return cairn__fail_errno(err, errno, x->publication.point_path, -1,
                             "cannot open \"%s/%s\"", x->publication.point_path,
                             j->d->twin_member->id);
  snprintf(map_name, sizeof map_name, "%s.digests", twin->id);
  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path,
           j->d->twin_member->id, map_name);
  result = cairn__map_open(x->io, fd, map_name, path, &x->digester,
                           &j->twin_map, err);
  if (result == 0)
    result = open_written(j, fd, err);
  if (result == 0 && j->base)
    result = cairn__map_changes(j->twin_map, j->base, &j->changes, err);
  (void)x->io->close(x->io, fd);
  return result;
}

static int open_inputs(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__base *base = &j->d->base;
  struct cairn__source *s = cairn__member_source(j->d);

  j->length = s->length;
  j->virtual_size = s->virtual_size;
  if (base->point && cairn__point_open_map(j->x->io, base->point, base->image,
                                           &j->x->digester, &j->base, err) != 0)
    return -1;
  if (j->d->twin && open_twin(j, err) != 0)
    return -1;
  j->copy.source = j->written ? j->written : s;
  j->copy.is_uncounted = j->d->twin != NULL;
  j->copy.map = j->twin_map;
  j->copy.base = j->base;
  j->copy.changes = j->changes ? j->changes : j->d->tracking.changes;
  j->copy.claims = j->d->tracking.claims;
  return 0;
}

static void close_inputs(struct disk_job *j)
{
  cairn__source_close(j->written);
  cairn__map_close(j->base);
  cairn__map_close(j->twin_map);
  cairn__changes_free(j->changes);
}

static int copy_disk(struct disk_job *j, struct cairn_error *err)
{
  int result;

  cairn__export_open_journal(j->x, j->m, j->d, j->is_resumed, &j->copy);
  result = cairn__copy_run(&j->copy, err);
  cairn__export_close_journal(j->x, j->m, j->d, &j->copy);
  return result;
}

static int write_disk(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__export *x = j->x;
  struct cairn__map_writer *map = NULL;
  struct cairn__sink *sink = NULL;
  char path[PATH_MAX];

  if (open_sink(j, &sink, err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s/%s", x->publication.point_path, j->m->id,
           j->map_name);
  if (cairn__map_create(x->io, j->dirfd, j->map_name, path, &x->digester,
                        j->virtual_size, j->length, x->point, &map, err) != 0) {
    sink->ops->abort(sink);
    return -1;
  }
  j->copy.run = x->run;
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
  return j->copy.source->ops->check_still(j->copy.source, err);
}

/* ---- the manifest -------------------------------------------------------- */

static void format_time(int64_t unix_us, char out[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);

  cairn_datetime_format(&t, out);
}

/* Members that only some images have. */
static int describe_more(const struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__member_disk *d = j->d;
  json_t *entry = d->entry;
  char text[128];

  if (d->base.point &&
      json_object_set(entry, "base_content",
                      json_object_get(d->base.image, "content")) != 0)
    return cairn__fail_memory(err);
  if (j->is_resumed &&
      json_object_set_new(entry, "bytes_resumed",
                          json_integer((json_int_t)j->copy.bytes_resumed)) != 0)
    return cairn__fail_memory(err);
  if (cairn__tracking_describe(&d->tracking, entry) != 0)
    return cairn__fail_memory(err);
  if (j->x->marker &&
      cairn__marker_describe(j->x->marker, j->m->id, d->id, entry, err) != 0)
    return -1;
  if (!d->twin || d->twin_member->result == CAIRN__MEMBER_FAILED)
    return 0;
  snprintf(text, sizeof text, "%s/%s", d->twin_member->id, d->twin->id);
  return json_object_set_new(entry, "shared_with", json_string(text)) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* The two entries of the manifest. */
static int describe_disk(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__export *x = j->x;
  const struct cairn__member_disk *d = j->d;
  const struct cairn__base *base = &d->base;
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
      "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:s?, s:s, s:s?, "
      "s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}",
      "role", base->point ? "log" : "disk", "path", path, "size",
      (json_int_t)j->image.size, "digest", image, "VirtualMachineId", j->m->id,
      "disk", d->id, "format", j->format, "length", (json_int_t)j->length,
      "virtual_size", (json_int_t)j->virtual_size, "content", content, "base",
      base->point ? cairn__point_id(base->point) : NULL, "tracker",
      cairn__tracker_names[d->tracking.used], "fallback", fallback_of(d),
      "source", d->path, "source_format", d->format, "internal_snapshots",
      (json_int_t)cairn__member_snapshots(d), "bytes_read",
      (json_int_t)j->copy.bytes_read, "bytes_written",
      (json_int_t)j->copy.bytes_written, "bytes_zero",
      (json_int_t)j->copy.bytes_zero, "bytes_skipped",
      (json_int_t)j->copy.bytes_skipped, "time_started", started, "time_ended",
      ended);
  if (!j->d->entry || json_array_append(x->files, j->d->entry) != 0)
    return cairn__fail_memory(err);
  if (describe_more(j, err) != 0)
    return -1;
  if (json_array_append_new(
          x->files,
          json_pack("{s:s, s:s, s:I, s:s, s:s, s:s}", "role", "digests", "path",
                    map_path, "size", (json_int_t)j->map.size, "digest", map,
                    "VirtualMachineId", j->m->id, "disk", d->id)) != 0)
    return cairn__fail_memory(err);
  return 0;
}

/* The whole disk was compared, and the tracker would have missed something. */
static void warn_of_refuted(struct disk_job *j)
{
  char shown[200];

  if (j->copy.blocks_refuted == 0)
    return;
  cairn__export_mark_suspect(j->x, j->m, j->d);
  cairn__run_warn(j->x->run,
                  "disk %s of machine %s: the %s tracker missed %llu of %llu "
                  "changed blocks; this point is right, those back to the last "
                  "one that compared the whole disk are doubtful",
                  j->d->id, name_of(j->m, shown, sizeof shown),
                  cairn__tracker_names[j->d->tracking.wanted],
                  (unsigned long long)j->copy.blocks_refuted,
                  (unsigned long long)j->copy.blocks_changed);
}

int cairn__export_disk(struct cairn__export *x, struct cairn__member *m,
                       struct cairn__member_disk *d, int dirfd,
                       struct cairn_error *err)
{
  struct disk_job j = {.x = x, .m = m, .d = d, .dirfd = dirfd};
  int result;

  j.format = d->base.point ? "qcow2" : x->format;
  snprintf(j.name, sizeof j.name, "%s.%s", d->id, j.format);
  snprintf(j.map_name, sizeof j.map_name, "%s.digests", d->id);
  j.started_us = wall_us(x);
  j.is_resumed =
      x->publication.left &&
      cairn__plan_has_same(x->publication.left, x->plan, m->id, d->id);
  result = open_inputs(&j, err);
  if (result == 0)
    result = write_disk(&j, err);
  if (result == 0)
    result = describe_disk(&j, err);
  if (result == 0)
    warn_of_refuted(&j);
  close_inputs(&j);
  if (result != 0)
    return cairn__member_fail(m, d, err);
  d->result = CAIRN__MEMBER_OK;
  return 0;
}
