/* marker.c: see marker.h. */
#include "marker.h"

#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "bitmap.h"
#include "chain.h"
#include "clone.h"
#include "datetime.h"
#include "error.h"
#include "memory.h"
#include "tracked.h"

#define PIECE (1u << 20) /* bytes read at once */

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static json_int_t number_of(const json_t *object, const char *name)
{
  return json_integer_value(json_object_get(object, name));
}

/* ---- making -------------------------------------------------------------- */

static json_int_t nanoseconds(const struct timespec *t)
{
  return (json_int_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static json_t *describe_file(const struct cairn__held *h)
{
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "path", h->path, "device",
                   (json_int_t)h->st.st_dev, "inode", (json_int_t)h->st.st_ino,
                   "size", (json_int_t)h->size, "mtime_ns",
                   nanoseconds(&h->st.st_mtim), "ctime_ns",
                   nanoseconds(&h->st.st_ctim));
}

/* The files that a source reads, the image first. */
static json_t *describe_layers(const struct cairn__source *s)
{
  const struct cairn__chain *chain = cairn__source_chain(s);
  const struct cairn__held *held = cairn__source_raw_held(s);
  json_t *layers = json_array();
  int failed = !layers;

  if (held && !failed)
    failed = json_array_append_new(layers, describe_file(held)) != 0;
  for (size_t i = 0; chain && i < chain->count && !failed; i++)
    failed = json_array_append_new(layers,
                                   describe_file(&chain->layers[i].held)) != 0;
  if (!failed)
    return layers;
  json_decref(layers);
  return NULL;
}

/* The digest of what a bitmap is not sure about: 2 MiB at most. */
static int digest_tail(struct cairn__source *s, char text[33],
                       struct cairn_error *err)
{
  unsigned char *buf = cairn__malloc_aligned(PIECE);
  XXH3_state_t *state = XXH3_createState();
  XXH128_canonical_t digest;
  uint64_t at = cairn__bitmap_tail(s->length);
  int result = buf && state ? 0 : cairn__fail_memory(err);

  if (result == 0)
    (void)XXH3_128bits_reset(state);
  for (; result == 0 && at < s->length; at += PIECE) {
    uint64_t left = s->length - at;

    result = s->ops->read(s, 0, buf, PIECE, at, err);
    if (result == 0)
      (void)XXH3_128bits_update(state, buf, left < PIECE ? left : PIECE);
  }
  if (result == 0) {
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    for (size_t i = 0; i < sizeof digest.digest; i++)
      snprintf(text + 2 * i, 3, "%02x", digest.digest[i]);
  }
  XXH3_freeState(state);
  cairn__free_aligned(buf);
  return result;
}

static int add_state(const struct cairn__member_disk *d, json_t *state,
                     struct cairn_error *err)
{
  const struct cairn__tracking *t = &d->tracking;
  struct cairn__source *s = cairn__member_source(d);
  char tail[33];
  int failed = 0;

  if (t->clone_name[0])
    failed = json_object_set_new(state, "identity",
                                 json_string(t->clone_identity)) != 0;
  if (t->bitmap_state) {
    if (digest_tail(s, tail, err) != 0)
      return -1;
    failed = json_object_set(state, "bitmap", t->bitmap_state) != 0 ||
             json_object_set_new(state, "tail", json_string(tail)) != 0;
  }
  return failed ? cairn__fail_memory(err) : 0;
}

/* The source that was locked, where a clone is read in its place. */
static const struct cairn__source *
original_of(const struct cairn__member_disk *d)
{
  const struct cairn__member_disk *own = d->twin ? d->twin : d;

  return own->tracking.original ? own->tracking.original : own->source;
}

/* Why nothing is kept of a disk. */
static const char *reason_of(const struct cairn__member_disk *d)
{
  if (d->twin)
    return "its source is another disk's too, which see";
  if (d->tracking.reason)
    return d->tracking.reason;
  return d->tracking.wanted == CAIRN__TRACKER_CLONE ||
                 d->tracking.wanted == CAIRN__TRACKER_BITMAP
             ? "nothing could be kept"
             : "no tracker that keeps anything was asked for";
}

static json_t *base_entry(const struct cairn__marker_facts *f,
                          const struct cairn__members *all,
                          const struct cairn__member *m,
                          const struct cairn__member_disk *d)
{
  const struct cairn__member_disk *own = d->twin ? d->twin : d;
  const struct cairn__tracking *t = &own->tracking;

  (void)all;
  if (!d->twin && t->clone_name[0])
    return cairn__tracked_clone(f->id, m->id, d->id, d->path,
                                f->is_own_clones ? CAIRN__CLONES_DIRECTORY
                                                 : t->clone_path);
  if (t->bitmap_state)
    return cairn__tracked_bitmap(f->id, m->id, d->id, d->path);
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "VirtualMachineId", m->id,
                   "disk", d->id, "source", d->path, "format", d->format,
                   "tracker", "none", "reason", reason_of(d));
}

static int add_disk(const struct cairn__marker_facts *f,
                    const struct cairn__members *all,
                    const struct cairn__member *m,
                    const struct cairn__member_disk *d, json_t *disks,
                    struct cairn_error *err)
{
  const struct cairn__source *s = original_of(d);
  json_t *entry = base_entry(f, all, m, d);
  json_t *layers = describe_layers(s);
  json_t *state = layers ? json_pack("{s:I, s:o}", "length",
                                     (json_int_t)s->length, "layers", layers)
                         : NULL;

  if (!entry || !state ||
      json_object_set_new(entry, "length",
                          json_integer((json_int_t)s->length)) != 0) {
    json_decref(entry);
    json_decref(state);
    return cairn__fail_memory(err);
  }
  if (add_state(d->twin ? d->twin : d, state, err) != 0) {
    json_decref(entry);
    json_decref(state);
    return -1;
  }
  if (json_object_set_new(entry, "state", state) != 0) {
    json_decref(entry);
    return cairn__fail_memory(err);
  }
  return json_array_append_new(disks, entry) == 0 ? 0 : cairn__fail_memory(err);
}

static json_t *describe_machine_file(const struct cairn__member *m,
                                     const struct cairn__machine_file *f)
{
  return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "VirtualMachineId", m->id,
                   "role", f->role, "source", f->source, "size",
                   (json_int_t)f->st.st_size, "mtime_ns",
                   nanoseconds(&f->st.st_mtim), "inode",
                   (json_int_t)f->st.st_ino);
}

static int add_member(const struct cairn__marker_facts *f,
                      const struct cairn__members *all,
                      const struct cairn__member *m, json_t *disks,
                      json_t *files, struct cairn_error *err)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    if (add_disk(f, all, m, &m->disks[i], disks, err) != 0)
      return -1;
  }
  for (size_t i = 0; i < m->files.count; i++) {
    if (json_array_append_new(files,
                              describe_machine_file(m, &m->files.list[i])) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

int cairn__marker_make(const struct cairn__marker_facts *f,
                       const struct cairn__members *members, json_t **marker,
                       struct cairn_error *err)
{
  struct cairn_datetime t = cairn__datetime_from_unix(f->unix_us, 0);
  json_t *disks = json_array(), *files = json_array();
  char time[CAIRN_DATETIME_SIZE];
  int result = disks && files ? 0 : cairn__fail_memory(err);

  cairn_datetime_format(&t, time);
  for (size_t i = 0; i < members->count && result == 0; i++)
    result = add_member(f, members, &members->list[i], disks, files, err);
  *marker = NULL;
  if (result == 0) {
    *marker =
        json_pack("{s:s, s:s, s:s?, s:s, s:I, s:I, s:s, s:I, s:O, s:O, s:O}",
                  "ReferencePointGroupId", f->id, "CollectionId",
                  text_of(f->collection, "CollectionId"), "ElementName",
                  text_of(f->collection, "ElementName"), "InstanceID",
                  f->instance_id, "run", (json_int_t)f->run_number, "sequence",
                  f->sequence, "time", time, "unix_us", (json_int_t)f->unix_us,
                  "collection", f->collection, "disks", disks, "files", files);
    if (!*marker)
      result = cairn__fail_memory(err);
  }
  json_decref(disks);
  json_decref(files);
  return result;
}

int cairn__marker_intents(const char *id, const json_t *collection,
                          const char *tracker, json_t **disks,
                          struct cairn_error *err)
{
  const char *directory = text_of(collection, "clone_directory");
  json_t *list = json_array(), *machine, *disk;
  size_t i, j;
  int failed = !list;

  json_array_foreach(json_object_get(collection, "machines"), i, machine)
  {
    const char *vm = text_of(machine, "VirtualMachineId");

    json_array_foreach(json_object_get(machine, "disks"), j, disk)
    {
      const char *its = text_of(disk, "tracker");
      const char *name = text_of(disk, "id"), *path = text_of(disk, "path");
      json_t *entry = NULL;

      if (!its)
        its = tracker;
      if (its && strcmp(its, "clone") == 0)
        entry = cairn__tracked_clone(id, vm, name, path,
                                     directory ? directory
                                               : CAIRN__CLONES_DIRECTORY);
      else if (its && strcmp(its, "bitmap") == 0 &&
               strcmp(text_of(disk, "format"), "qcow2") == 0)
        entry = cairn__tracked_bitmap(id, vm, name, path);
      else
        continue;
      failed |= json_array_append_new(list, entry) != 0;
    }
  }
  if (!failed) {
    *disks = list;
    return 0;
  }
  json_decref(list);
  return cairn__fail_memory(err);
}

int cairn__marker_has_data(const json_t *marker)
{
  size_t i;
  json_t *disk;

  json_array_foreach(json_object_get(marker, "disks"), i, disk)
  {
    if (strcmp(text_of(disk, "tracker"), "none") != 0)
      return 1;
  }
  return 0;
}

/* ---- exporting ----------------------------------------------------------- */

/* The disk's entry in the marker. */
static const json_t *find_disk(const json_t *marker, const char *machine,
                               const char *disk)
{
  size_t i;
  json_t *entry;

  json_array_foreach(json_object_get(marker, "disks"), i, entry)
  {
    if (strcmp(text_of(entry, "VirtualMachineId"), machine) == 0 &&
        strcmp(text_of(entry, "disk"), disk) == 0)
      return entry;
  }
  return NULL;
}

static int fail_state(const json_t *marker, const char *machine,
                      const char *disk, const char *why,
                      struct cairn_error *err)
{
  char shown[CAIRN_MESSAGE_MAX];

  return cairn__fail(err, CAIRN_E_INVALID_STATE,
                     "reference point %s cannot be exported any more: %s%s of "
                     "machine %s: %s",
                     text_of(marker, "ReferencePointGroupId"),
                     disk ? "disk " : "", disk ? disk : "a file", machine,
                     cairn__printable(why, shown, sizeof shown));
}

/* An entry with the same source that has a clone: that of its twin. */
static const json_t *with_clone(const json_t *marker, const json_t *entry)
{
  size_t i;
  json_t *other;

  if (strcmp(text_of(entry, "tracker"), "clone") == 0)
    return entry;
  json_array_foreach(json_object_get(marker, "disks"), i, other)
  {
    if (strcmp(text_of(other, "tracker"), "clone") == 0 &&
        strcmp(text_of(other, "source"), text_of(entry, "source")) == 0)
      return other;
  }
  return NULL;
}

/* Settles where a disk of the collection is read from. */
static int settle_disk(const json_t *marker, const char *path, const char *vm,
                       json_t *disk, struct cairn_error *err)
{
  const char *id = text_of(disk, "id");
  const json_t *entry = find_disk(marker, vm, id), *clone;
  const char *directory;
  char *where, why[600];
  int result;

  /* what was kept is kept: nothing is made for the point again */
  if (json_object_set_new(disk, "tracker", json_string("digest")) != 0)
    return cairn__fail_memory(err);
  if (!entry)
    return fail_state(marker, vm, id, "it is not in the point", err);
  clone = with_clone(marker, entry);
  if (!clone && strcmp(text_of(entry, "tracker"), "bitmap") == 0)
    return 0;
  if (!clone) {
    snprintf(why, sizeof why,
             "nothing keeps its content, or proves that it has not changed "
             "(%.300s)",
             text_of(entry, "reason") ? text_of(entry, "reason")
                                      : "it was given up");
    return fail_state(marker, vm, id, why, err);
  }
  directory = text_of(clone, "directory");
  where =
      directory[0] == '/'
          ? cairn__format("%s/%s", directory, text_of(clone, "name"))
          : cairn__format("%s/%s/%s", path, directory, text_of(clone, "name"));
  result =
      where && json_object_set_new(disk, "read_from", json_string(where)) == 0
          ? 0
          : cairn__fail_memory(err);
  cairn__free(where);
  return result;
}

int cairn__marker_collection(const json_t *marker, const char *path,
                             json_t **collection, struct cairn_error *err)
{
  json_t *copy = json_deep_copy(json_object_get(marker, "collection"));
  json_t *machine, *disk;
  size_t i, j;
  int result = copy ? 0 : cairn__fail_memory(err);

  json_array_foreach(json_object_get(copy, "machines"), i, machine)
  {
    json_array_foreach(json_object_get(machine, "disks"), j, disk)
    {
      if (result == 0)
        result = settle_disk(marker, path, text_of(machine, "VirtualMachineId"),
                             disk, err);
    }
  }
  if (result == 0)
    *collection = copy;
  else
    json_decref(copy);
  return result;
}

static int check_clone(const struct cairn_io *io, const json_t *marker,
                       const char *machine, const char *disk,
                       const json_t *entry, const struct cairn__source *s,
                       struct cairn_error *err)
{
  const struct cairn__held *held = cairn__source_raw_held(s);
  char identity[CAIRN__CLONE_IDENTITY_SIZE];

  if (!held)
    return cairn__fail(err, CAIRN_E_INTERNAL, "a clone is a raw file");
  if (cairn__clone_identity(io, held->fd, held->path, identity, err) != 0)
    return -1;
  if (strcmp(identity, text_of(json_object_get(entry, "state"), "identity")) ==
      0)
    return 0;
  return fail_state(marker, machine, disk,
                    "its clone was changed after it was made", err);
}

static int check_bitmap(const json_t *marker, const char *machine,
                        const char *disk, const json_t *entry,
                        struct cairn__source *s, struct cairn_error *err)
{
  const json_t *state = json_object_get(entry, "state");
  char reason[CAIRN__BITMAP_REASON_MAX] = "", tail[33];
  int result = cairn__source_bitmap_is_unchanged(
      s, text_of(marker, "ReferencePointGroupId"),
      json_object_get(state, "bitmap"), reason, sizeof reason, err);

  if (result < 0)
    return -1;
  if (result > 0)
    return fail_state(marker, machine, disk, reason, err);
  if (digest_tail(s, tail, err) != 0)
    return -1;
  if (strcmp(tail, text_of(state, "tail")) == 0)
    return 0;
  return fail_state(marker, machine, disk, "its last part was written since",
                    err);
}

static int check_disk(const struct cairn_io *io, const json_t *marker,
                      const struct cairn__member *m,
                      const struct cairn__member_disk *d,
                      struct cairn_error *err)
{
  const json_t *entry = find_disk(marker, m->id, d->id);
  const json_t *clone = with_clone(marker, entry);
  struct cairn__source *s = cairn__member_source(d);

  if (number_of(json_object_get(entry, "state"), "length") !=
      (json_int_t)s->length)
    return fail_state(marker, m->id, d->id, "its length has changed", err);
  return clone ? check_clone(io, marker, m->id, d->id, clone, s, err)
               : check_bitmap(marker, m->id, d->id, entry, s, err);
}

static int check_file(const json_t *marker, const struct cairn__member *m,
                      const struct cairn__machine_file *f,
                      struct cairn_error *err)
{
  char why[600];
  size_t i;
  json_t *entry;

  json_array_foreach(json_object_get(marker, "files"), i, entry)
  {
    if (strcmp(text_of(entry, "VirtualMachineId"), m->id) == 0 &&
        strcmp(text_of(entry, "role"), f->role) == 0 &&
        strcmp(text_of(entry, "source"), f->source) == 0 &&
        number_of(entry, "size") == (json_int_t)f->st.st_size &&
        number_of(entry, "mtime_ns") == nanoseconds(&f->st.st_mtim) &&
        number_of(entry, "inode") == (json_int_t)f->st.st_ino)
      return 0;
  }
  snprintf(why, sizeof why, "\"%.400s\" was changed since", f->source);
  return fail_state(marker, m->id, NULL, why, err);
}

int cairn__marker_check(const struct cairn_io *io, const json_t *marker,
                        const struct cairn__members *members,
                        struct cairn_error *err)
{
  for (size_t i = 0; i < members->count; i++) {
    const struct cairn__member *m = &members->list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      if (check_disk(io, marker, m, &m->disks[j], err) != 0)
        return -1;
    }
    for (size_t j = 0; j < m->files.count; j++) {
      if (check_file(marker, m, &m->files.list[j], err) != 0)
        return -1;
    }
  }
  return 0;
}

int cairn__marker_describe(const json_t *marker, const char *machine,
                           const char *disk, json_t *entry,
                           struct cairn_error *err)
{
  const json_t *its = find_disk(marker, machine, disk);
  const json_t *state = json_object_get(its, "state");
  const char *tracker = text_of(its, "tracker");
  int failed = 0;

  if (tracker && strcmp(tracker, "clone") == 0)
    failed = json_object_set(entry, "clone",
                             json_object_get(state, "identity")) != 0;
  if (tracker && strcmp(tracker, "bitmap") == 0)
    failed = json_object_set(entry, "bitmap_state",
                             json_object_get(state, "bitmap")) != 0;
  return failed ? cairn__fail_memory(err) : 0;
}

/* ---- showing ------------------------------------------------------------- */

json_t *cairn__marker_show(const json_t *marker, const char *path)
{
  static const char *const members[] = {"ReferencePointGroupId",
                                        "CollectionId",
                                        "ElementName",
                                        "InstanceID",
                                        "sequence",
                                        "time",
                                        "unix_us",
                                        "disks"};
  json_t *o =
      json_pack("{s:s, s:n, s:s, s:b, s:[]}", "kind", "marker",
                "BaseReferencePointGroupId", "directory", path,
                "has_associated_data", cairn__marker_has_data(marker), "files");
  json_t *machines = json_array(), *machine;
  int failed = !o || !machines;
  size_t i;

  for (i = 0; !failed && i < sizeof members / sizeof members[0]; i++)
    failed = json_object_set(o, members[i],
                             json_object_get(marker, members[i])) != 0;
  json_array_foreach(
      json_object_get(json_object_get(marker, "collection"), "machines"), i,
      machine)
  {
    if (!failed)
      failed = json_array_append_new(
                   machines, json_pack("{s:s, s:s?}", "VirtualMachineId",
                                       text_of(machine, "VirtualMachineId"),
                                       "ElementName",
                                       text_of(machine, "ElementName"))) != 0;
  }
  if (!failed && json_object_set(o, "machines", machines) != 0)
    failed = 1;
  json_decref(machines);
  if (!failed)
    return o;
  json_decref(o);
  return NULL;
}
