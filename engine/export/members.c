/* members.c: see members.h. */
#include "members.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chain.h"
#include "error.h"
#include "memory.h"
#include "target.h"

#define READERS    4 /* of one source */
#define OPEN_TRIES 3 /* when somebody writes to a disk with bitmaps */

int cairn__member_fail(struct cairn__member *m, struct cairn__member_disk *d,
                       struct cairn_error *err)
{
  /* To end at a client's request is nobody's failure. */
  if (err && (err->id == CAIRN_E_TERMINATED || err->id == CAIRN_E_KILLED))
    return -1;
  m->result = CAIRN__MEMBER_FAILED;
  if (d)
    d->result = CAIRN__MEMBER_FAILED;
  cairn__error_locate(err, m->id, d ? d->id : NULL);
  cairn__error_name_machine(
      err, json_string_value(json_object_get(m->spec, "ElementName")));
  return -1;
}

/* ---- opening ------------------------------------------------------------- */

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int tracker_of(const struct cairn__members_options *o,
                      const json_t *disk)
{
  const char *name = text_of(disk, "tracker");

  if (!name)
    name = o->tracker;
  for (int i = 0; name && cairn__tracker_names[i]; i++) {
    if (strcmp(cairn__tracker_names[i], name) == 0)
      return i;
  }
  return CAIRN__TRACKER_DIGEST;
}

static int prepare_member(const struct cairn__members_options *o,
                          struct cairn__member *m, const json_t *spec,
                          struct cairn_error *err)
{
  const json_t *disks = json_object_get(spec, "disks");
  size_t count = json_array_size(disks);

  m->spec = spec;
  m->id = text_of(spec, "VirtualMachineId");
  if (count == 0)
    return 0;
  m->disks = cairn__calloc(count, sizeof *m->disks);
  if (!m->disks)
    return cairn__fail_memory(err);
  m->disk_count = count;
  for (size_t i = 0; i < count; i++) {
    struct cairn__member_disk *d = &m->disks[i];

    d->spec = json_array_get(disks, i);
    d->id = text_of(d->spec, "id");
    d->path = text_of(d->spec, "path");
    d->read_from = text_of(d->spec, "read_from");
    if (!d->read_from)
      d->read_from = d->path;
    d->format = text_of(d->spec, "format");
    cairn__tracking_init(&d->tracking, tracker_of(o, d->spec));
  }
  return 0;
}

/* The block device is held exclusively by an earlier disk: so is this one. */
static int is_held_already(const struct cairn__members *all,
                           const struct stat *st)
{
  for (size_t i = 0; i < all->count; i++) {
    for (size_t j = 0; j < all->list[i].disk_count; j++) {
      const struct cairn__source *s = all->list[i].disks[j].source;
      const struct cairn__held *h = s ? cairn__source_raw_held(s) : NULL;

      if (h && h->is_block && h->st.st_rdev == st->st_rdev)
        return 1;
    }
  }
  return 0;
}

/* One file that the source reads: the target must not lie in it, nor it in
 * what this export writes. */
static int check_file(const struct cairn__members_options *o,
                      const struct cairn__held *h, struct cairn_error *err)
{
  char real[PATH_MAX], work[PATH_MAX], shown[512];

  if (o->target_fd >= 0 && cairn__target_check(o->target_fd, o->target_path,
                                               &h->st, h->path, err) != 0)
    return -1;
  if (!o->work_directory || !realpath(o->work_directory, work) ||
      cairn__held_real_path(h, real, sizeof real) != 0 ||
      !cairn__is_inside(real, work))
    return 0;
  cairn__fail(err, CAIRN_E_TARGET_IN_SOURCE,
              "\"%s\" lies in the work directory of this very export",
              cairn__printable(h->path, shown, sizeof shown));
  cairn__error_set_path(err, h->path, -1);
  return -1;
}

static int check_source(const struct cairn__members_options *o,
                        const struct cairn__source *s, struct cairn_error *err)
{
  const struct cairn__chain *chain = cairn__source_chain(s);
  const struct cairn__held *held = cairn__source_raw_held(s);

  if (held && check_file(o, held, err) != 0)
    return -1;
  for (size_t i = 0; chain && i < chain->count; i++) {
    if (check_file(o, &chain->layers[i].held, err) != 0)
      return -1;
  }
  return 0;
}

struct cairn__source *cairn__member_source(const struct cairn__member_disk *d)
{
  return d->twin ? d->twin->source : d->source;
}

/* The file or device itself, not what lies below it. */
static const struct cairn__held *top_of(const struct cairn__source *s)
{
  const struct cairn__chain *chain = cairn__source_chain(s);

  return chain ? &chain->layers[0].held : cairn__source_raw_held(s);
}

static int is_same_file(const struct stat *a, const struct stat *b)
{
  if (S_ISBLK(a->st_mode) || S_ISBLK(b->st_mode))
    return S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode) &&
           a->st_rdev == b->st_rdev;
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* An earlier disk with the same source, which then is read once. */
static void find_twin(const struct cairn__members *all,
                      struct cairn__member_disk *d, const struct stat *st)
{
  for (size_t i = 0; i < all->count; i++) {
    const struct cairn__member *m = &all->list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      struct cairn__member_disk *other = &m->disks[j];

      if (!other->source || strcmp(other->format, d->format) != 0 ||
          !is_same_file(&other->st, st))
        continue;
      d->twin = other;
      d->twin_member = m;
      return;
    }
  }
}

static void make_options(const struct cairn__members *all,
                         const struct cairn__member_disk *d,
                         struct cairn__source_options *out)
{
  *out = (struct cairn__source_options){
      .io = all->tracking.io,
      .path = d->read_from,
      .format = d->format,
      .directories = all->directories,
      .directory_count = all->directory_count,
      .assume_quiescent =
          json_is_true(json_object_get(d->spec, "assume_quiescent")),
      .readers = READERS,
      .work_directory = all->work_directory,
  };
}

static int open_source(const struct cairn__members_options *o,
                       const struct cairn__source_options *s,
                       struct cairn__member_disk *d, struct cairn_error *err)
{
  if ((strcmp(d->format, "raw") == 0
           ? cairn__source_open_raw(s, &d->source, err)
           : cairn__source_open_qcow2(s, o->run, &d->source, err)) != 0)
    return -1;
  d->st = top_of(d->source)->st;
  return check_source(o, d->source, err);
}

/* Opens a source and has its tracker take the point; again when somebody came
 * between the two. */
static int open_tracked(const struct cairn__members_options *o,
                        struct cairn__members *all, struct cairn__member *m,
                        struct cairn__member_disk *d,
                        const struct cairn__source_options *s,
                        struct cairn_error *err)
{
  struct cairn__tracking *t = &d->tracking;

  for (int tries = 1;; tries++) {
    int result;

    if (cairn__tracking_prepare(t, &all->tracking, s, err) != 0 ||
        open_source(o, s, d, err) != 0)
      return -1;
    result = cairn__tracking_opened(t, &all->tracking, s, m->id, d->id,
                                    &d->source, err);
    if (result <= 0)
      return result;
    if (tries == OPEN_TRIES)
      return cairn__tracking_fall_back(t,
                                       "its new bitmap was not clean, or did "
                                       "not count, whenever it was opened",
                                       err);
    cairn__source_close(d->source);
    d->source = NULL;
    if (cairn__bitmap_remove(s, all->tracking.point, o->run, err) != 0)
      return -1;
  }
}

static int open_disk(const struct cairn__members_options *o,
                     struct cairn__members *all, struct cairn__member *m,
                     struct cairn__member_disk *d, struct cairn_error *err)
{
  struct cairn__source_options options;
  int is_raw = strcmp(d->format, "raw") == 0;
  struct stat st;

  make_options(all, d, &options);
  /* Before it is opened: a device that carries the target is mounted, and
   * "in use" would be the lesser truth. */
  if (o->io->fstatat(o->io, AT_FDCWD, d->read_from, &st, 0) == 0) {
    if (o->target_fd >= 0 && (S_ISBLK(st.st_mode) || S_ISREG(st.st_mode)) &&
        cairn__target_check(o->target_fd, o->target_path, &st, d->read_from,
                            err) != 0)
      return -1;
    find_twin(all, d, &st);
    if (d->twin)
      return 0;
    if (S_ISBLK(st.st_mode) && is_raw && is_held_already(all, &st))
      options.assume_quiescent = 1;
  }
  return open_tracked(o, all, m, d, &options, err);
}

static int open_member(const struct cairn__members_options *o,
                       struct cairn__members *all, struct cairn__member *m,
                       struct cairn_error *err)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    if ((o->run &&
         (cairn__run_gate(o->run, err) != 0 ||
          cairn__held_await(o->io, m->disks[i].read_from, o->run, err) != 0)) ||
        open_disk(o, all, m, &m->disks[i], err) != 0)
      return cairn__member_fail(m, &m->disks[i], err);
  }
  if (cairn__machine_files_find(o->io, m->spec, &m->files, err) != 0)
    return cairn__member_fail(m, NULL, err);
  return 0;
}

static void close_member(struct cairn__member *m)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    cairn__source_close(m->disks[i].source);
    m->disks[i].source = NULL;
    m->disks[i].twin = NULL;
    cairn__tracking_release(&m->disks[i].tracking);
  }
}

int cairn__member_leave_out(const struct cairn__members *all,
                            struct cairn__member *m, struct cairn_error *err)
{
  if (!err || m->result != CAIRN__MEMBER_FAILED || !all->may_leave_out ||
      !all->may_leave_out(all->argument, err))
    return 0;
  m->error = *err;
  cairn__error_clear(err);
  return 1;
}

static int open_all(const struct cairn__members_options *o,
                    struct cairn__members *all, struct cairn_error *err)
{
  for (size_t i = 0; i < all->count; i++) {
    struct cairn__member *m = &all->list[i];

    if (open_member(o, all, m, err) == 0)
      continue;
    if (!cairn__member_leave_out(all, m, err))
      return -1;
    close_member(m);
  }
  return 0;
}

int cairn__members_open(const struct cairn__members_options *o,
                        struct cairn__members *out, struct cairn_error *err)
{
  const json_t *machines = json_object_get(o->collection, "machines");
  const json_t *list = json_object_get(o->collection, "source_directories");
  size_t count = json_array_size(machines);

  memset(out, 0, sizeof *out);
  out->work_directory = o->work_directory;
  out->may_leave_out = o->may_leave_out;
  out->argument = o->argument;
  out->tracking = (struct cairn__tracking_options){
      .io = o->io,
      .run = o->run,
      .point = o->point,
      .clone_directory = text_of(o->collection, "clone_directory"),
      .target_fd = o->target_fd,
      .target_path = o->target_path,
  };
  out->directory_count = json_array_size(list);
  out->directories =
      cairn__calloc(out->directory_count + 1, sizeof *out->directories);
  out->list = cairn__calloc(count, sizeof *out->list);
  if (!out->directories || !out->list)
    return cairn__fail_memory(err);
  out->count = count;
  for (size_t i = 0; i < out->directory_count; i++)
    out->directories[i] = json_string_value(json_array_get(list, i));
  for (size_t i = 0; i < count; i++) {
    if (prepare_member(o, &out->list[i], json_array_get(machines, i), err) != 0)
      return -1;
  }
  return open_all(o, out, err);
}

void cairn__members_release(struct cairn__members *all)
{
  for (size_t i = 0; i < all->count; i++) {
    for (size_t j = 0; j < all->list[i].disk_count; j++)
      cairn__tracking_release(&all->list[i].disks[j].tracking);
  }
}

/* ---- looking ------------------------------------------------------------- */

static int measure_disk(struct cairn__member_disk *d, struct cairn__run *run,
                        uint64_t *bytes, struct cairn_error *err)
{
  if (d->twin) {
    d->data_bytes = d->twin->data_bytes;
    return 0;
  }
  if ((run && cairn__run_gate(run, err) != 0) ||
      cairn__source_data_bytes(d->source, d->tracking.changes, run,
                               &d->data_bytes, err) != 0)
    return -1;
  *bytes += d->data_bytes;
  return 0;
}

static int measure_member(struct cairn__member *m, struct cairn__run *run,
                          uint64_t *bytes, struct cairn_error *err)
{
  *bytes = 0;
  for (size_t j = 0; j < m->disk_count; j++) {
    if (measure_disk(&m->disks[j], run, bytes, err) != 0)
      return cairn__member_fail(m, &m->disks[j], err);
  }
  for (size_t j = 0; j < m->files.count; j++)
    *bytes += (uint64_t)m->files.list[j].st.st_size;
  return 0;
}

int cairn__members_measure(struct cairn__members *all, struct cairn__run *run,
                           struct cairn_error *err)
{
  all->bytes = 0;
  for (size_t i = 0; i < all->count; i++) {
    struct cairn__member *m = &all->list[i];

    uint64_t bytes;

    if (m->result == CAIRN__MEMBER_FAILED)
      continue;
    if (measure_member(m, run, &bytes, err) == 0)
      all->bytes += bytes;
    else if (!cairn__member_leave_out(all, m, err))
      return -1;
  }
  return 0;
}

int cairn__member_check_still(struct cairn__member *m, struct cairn_error *err)
{
  for (size_t j = 0; j < m->disk_count; j++) {
    struct cairn__source *s = cairn__member_source(&m->disks[j]);

    if (s->ops->check_still(s, err) != 0)
      return cairn__member_fail(m, &m->disks[j], err);
  }
  return 0;
}

uint32_t cairn__member_snapshots(const struct cairn__member_disk *d)
{
  const struct cairn__chain *chain =
      cairn__source_chain(cairn__member_source(d));

  return chain ? chain->snapshots : 0;
}

/* ---- the end ------------------------------------------------------------- */

void cairn__members_close_sources(struct cairn__members *all)
{
  for (size_t i = 0; i < all->count; i++)
    close_member(&all->list[i]);
}

int cairn__members_end(struct cairn__members *all, int is_published,
                       const json_t *points)
{
  int is_left = 0;

  for (size_t i = 0; i < all->count; i++) {
    struct cairn__member *m = &all->list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      struct cairn__source_options s;

      make_options(all, &m->disks[j], &s);
      is_left |= cairn__tracking_end(
          &m->disks[j].tracking, &all->tracking, &s,
          is_published && m->result != CAIRN__MEMBER_FAILED, points);
    }
  }
  return is_left;
}

void cairn__members_free(struct cairn__members *all)
{
  cairn__members_close_sources(all);
  for (size_t i = 0; i < all->count; i++) {
    struct cairn__member *m = &all->list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      json_decref(m->disks[j].entry);
      cairn__base_free(&m->disks[j].base);
      cairn__tracking_free(&m->disks[j].tracking);
    }
    cairn__free(m->disks);
    cairn__machine_files_free(&m->files);
  }
  cairn__free(all->list);
  cairn__free(all->directories);
  memset(all, 0, sizeof *all);
}
