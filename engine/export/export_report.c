/* export_report.c: what a job says of its export. The properties are those of
 * the class; the report has one object for each machine and disk, whatever
 * became of it. Best effort, but for the properties: without memory less is
 * said. */
#include <stdatomic.h>
#include <string.h>

#include "error.h"
#include "export.h"
#include "memory.h"

static const char *result_name(int result)
{
  return result == CAIRN__MEMBER_OK       ? "ok"
         : result == CAIRN__MEMBER_FAILED ? "failed"
                                          : "not done";
}

static json_t *report_disk(const struct cairn__member_disk *d)
{
  static const char *const members[] = {
      "path",         "format",        "size",        "length",
      "virtual_size", "tracker",       "fallback",    "internal_snapshots",
      "bytes_read",   "bytes_written", "bytes_zero",  "bytes_skipped",
      "time_started", "time_ended",    "digest",      "content",
      "role",         "base",          "shared_with", "blocks_audited"};
  json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "id", d->id, "result",
                        result_name(d->result), "source", d->path,
                        "source_format", d->format);

  for (size_t i = 0; o && d->entry && i < sizeof members / sizeof members[0];
       i++)
    (void)json_object_set(o, members[i], json_object_get(d->entry, members[i]));
  return o;
}

static json_t *report_machines(const struct cairn__export *x,
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
                  "ElementName", cairn__text_of(m->spec, "ElementName"),
                  "result", result_name(m->result), "disks", disks);
    if (o && m->result == CAIRN__MEMBER_FAILED)
      (void)json_object_set_new(o, "error",
                                json_string(m->error.id != CAIRN_OK
                                                ? m->error.message
                                                : error->message));
    (void)json_array_append_new(machines, o);
  }
  return machines;
}

/* What the property has for one machine: the one file, the directory of
 * several, or "". */
static json_t *files_path(const struct cairn__export *x,
                          const struct cairn__member *m, const char *role)
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

static int add_disk(const struct cairn__export *x,
                    const struct cairn__member *m,
                    const struct cairn__member_disk *d, json_t *ids,
                    json_t *logs)
{
  char *id = cairn__format("%s/%s", m->id, d->id);
  char *log = cairn__format("%s/%s/%s", x->publication.path, x->run->point_uuid,
                            cairn__text_of(d->entry, "path"));
  int result = -1;

  if (id && log && json_array_append_new(ids, json_string(id)) == 0)
    result = json_array_append_new(logs, json_string(log));
  cairn__free(id);
  cairn__free(log);
  return result;
}

const char *cairn__export_base_id(const struct cairn__export *x)
{
  const struct cairn__point *newest = NULL;
  json_int_t highest = 0;

  for (size_t i = 0; i < x->members.count; i++) {
    const struct cairn__member *m = &x->members.list[i];

    for (size_t j = 0; j < m->disk_count; j++) {
      const struct cairn__point *p = m->disks[j].base.point;
      json_int_t n =
          p ? json_integer_value(json_object_get(p->manifest, "sequence")) : 0;

      if (m->result != CAIRN__MEMBER_FAILED && n > highest) {
        highest = n;
        newest = p;
      }
    }
  }
  return newest ? cairn__point_id(newest) : NULL;
}

int cairn__export_properties(const struct cairn__export *x, json_t **out,
                             struct cairn_error *err)
{
  json_t *ids = json_array(), *disks = json_array(), *logs = json_array();
  json_t *files[3] = {json_array(), json_array(), json_array()};
  int result =
      ids && disks && logs && files[0] && files[1] && files[2] ? 0 : -1;

  for (size_t i = 0; i < x->members.count && result == 0; i++) {
    const struct cairn__member *m = &x->members.list[i];

    if (m->result == CAIRN__MEMBER_FAILED)
      continue;
    result = json_array_append_new(ids, json_string(m->id));
    for (size_t j = 0; j < m->disk_count && result == 0; j++)
      result = add_disk(x, m, &m->disks[j], disks, logs);
    for (int k = 0; k < 3 && result == 0; k++)
      result = json_array_append_new(files[k],
                                     files_path(x, m, cairn__file_roles[k]));
  }
  *out = NULL;
  if (result == 0)
    *out = json_pack("{s:s, s:s?, s:O, s:O, s:O, s:O, s:O, s:O}",
                     "ReferencePointGroupId", x->run->point_uuid,
                     "BaseReferencePointGroupId", cairn__export_base_id(x),
                     "VirtualMachineId", ids, "ExportedDisks", disks,
                     "ExportedLogFilePaths", logs, "ExportedConfigFilePaths",
                     files[0], "ExportedRuntimeFilePaths", files[1],
                     "ExportedGuestStateFilePaths", files[2]);
  json_decref(ids);
  json_decref(disks);
  json_decref(logs);
  for (int k = 0; k < 3; k++)
    json_decref(files[k]);
  return *out ? 0 : cairn__fail_memory(err);
}

void cairn__export_report(struct cairn__export *x,
                          const struct cairn_error *error, json_t *properties)
{
  char *path = NULL;

  if (x->publication.is_published)
    path = cairn__format("%s/%s", x->publication.path, x->run->point_uuid);
  x->run->report = json_pack(
      "{s:s, s:s?, s:s?, s:s?, s:I, s:o, s:O?}", "CollectionId",
      cairn__text_of(x->collection, "CollectionId"), "ReferencePointGroupId",
      path ? x->run->point_uuid : NULL, "BaseReferencePointGroupId",
      path ? cairn__export_base_id(x) : NULL, "path", path, "bytes",
      (json_int_t)atomic_load(&x->run->bytes_done), "machines",
      report_machines(x, error), "removed", x->removed);
  if (x->run->report && properties)
    (void)json_object_set(x->run->report, "properties", properties);
  cairn__free(path);
}
