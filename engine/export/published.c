/* published.c: see published.h. */
#include "published.h"

#include <stdio.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"
#include "points.h"

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int is_of_run(const struct cairn__run *run, const json_t *entry)
{
  const char *id = text_of(entry, "InstanceID");

  return id && strcmp(id, run->instance_id) == 0 &&
         json_integer_value(json_object_get(entry, "run")) == run->number;
}

const json_t *cairn__published_marker(const struct cairn__run *run,
                                      const json_t *index)
{
  const json_t *markers = json_object_get(index, "markers");

  for (size_t i = 0; run->epoch > 1 && i < json_array_size(markers); i++) {
    const json_t *marker = json_array_get(markers, i);

    if (is_of_run(run, marker))
      return marker;
  }
  return NULL;
}

/* ---- the report ---------------------------------------------------------- */

static int append_path(json_t *array, const char *point, const char *path)
{
  char *whole = cairn__format("%s/%s", point, path);
  int result = whole ? json_array_append_new(array, json_string(whole)) : -1;

  cairn__free(whole);
  return result;
}

/* The one file of this role, the directory of several, or "". */
static int append_role(json_t *array, const json_t *manifest, const char *vm,
                       const char *role, const char *point)
{
  const json_t *files = json_object_get(manifest, "files");
  const char *only = NULL;
  char directory[128];
  size_t count = 0;

  for (size_t i = 0; i < json_array_size(files); i++) {
    const json_t *file = json_array_get(files, i);
    const char *its = text_of(file, "VirtualMachineId");

    if (its && strcmp(its, vm) == 0 &&
        strcmp(text_of(file, "role"), role) == 0) {
      only = text_of(file, "path");
      count++;
    }
  }
  if (count == 0)
    return json_array_append_new(array, json_string(""));
  snprintf(directory, sizeof directory, "%s/%s", vm, role);
  return append_path(array, point, count == 1 ? only : directory);
}

static int append_images(const json_t *manifest, const char *point, json_t *ids,
                         json_t *logs)
{
  const json_t *files = json_object_get(manifest, "files");

  for (size_t i = 0; i < json_array_size(files); i++) {
    const json_t *file = json_array_get(files, i);
    const char *role = text_of(file, "role");
    char *id;
    int result;

    if (strcmp(role, "disk") != 0 && strcmp(role, "log") != 0)
      continue;
    id = cairn__format("%s/%s", text_of(file, "VirtualMachineId"),
                       text_of(file, "disk"));
    result = id ? json_array_append_new(ids, json_string(id)) : -1;
    cairn__free(id);
    if (result != 0 || append_path(logs, point, text_of(file, "path")) != 0)
      return -1;
  }
  return 0;
}

/* New reference, or NULL: out of memory. */
static json_t *properties_of(const json_t *manifest, const char *point)
{
  static const char *const roles[] = {"config", "runtime", "guest_state"};
  const json_t *machines = json_object_get(manifest, "machines");
  json_t *ids = json_array(), *disks = json_array(), *logs = json_array();
  json_t *files[3] = {json_array(), json_array(), json_array()};
  json_t *out = NULL;
  int result = ids && disks && logs && files[0] && files[1] && files[2]
                   ? append_images(manifest, point, disks, logs)
                   : -1;

  for (size_t i = 0; i < json_array_size(machines) && result == 0; i++) {
    const char *vm = text_of(json_array_get(machines, i), "VirtualMachineId");

    result = json_array_append_new(ids, json_string(vm));
    for (int k = 0; k < 3 && result == 0; k++)
      result = append_role(files[k], manifest, vm, roles[k], point);
  }
  if (result == 0)
    out = json_pack(
        "{s:s, s:s?, s:O, s:O, s:O, s:O, s:O, s:O}", "ReferencePointGroupId",
        text_of(manifest, "ReferencePointGroupId"), "BaseReferencePointGroupId",
        text_of(manifest, "BaseReferencePointGroupId"), "VirtualMachineId", ids,
        "ExportedDisks", disks, "ExportedLogFilePaths", logs,
        "ExportedConfigFilePaths", files[0], "ExportedRuntimeFilePaths",
        files[1], "ExportedGuestStateFilePaths", files[2]);
  json_decref(ids);
  json_decref(disks);
  json_decref(logs);
  for (int k = 0; k < 3; k++)
    json_decref(files[k]);
  return out;
}

/* The warnings that the run had given are the manifest's. */
static int tell(struct cairn__run *run, const struct cairn__point *point,
                struct cairn_error *err)
{
  const json_t *warnings = json_object_get(point->manifest, "warnings");
  json_t *properties = properties_of(point->manifest, point->path);

  if (properties)
    run->report = json_pack(
        "{s:s?, s:s, s:s?, s:s, s:O, s:o, s:b}", "CollectionId",
        text_of(point->manifest, "CollectionId"), "ReferencePointGroupId",
        cairn__point_id(point), "BaseReferencePointGroupId",
        text_of(point->manifest, "BaseReferencePointGroupId"), "path",
        point->path, "machines", json_object_get(point->manifest, "machines"),
        "properties", properties, "was_published", 1);
  if (!run->report)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < json_array_size(warnings); i++)
    cairn__run_warn(run, "%s", json_string_value(json_array_get(warnings, i)));
  return 1;
}

int cairn__published_point(struct cairn__run *run, const char *directory,
                           struct cairn_error *err)
{
  struct cairn__exports x;
  struct cairn_error why;
  json_t *names = NULL;
  int result = 0;

  if (run->epoch < 2)
    return 0;
  cairn__error_clear(&why);
  if (cairn__exports_open(run->io, directory, &x, &why) != 0) {
    /* what is no export directory has no point of ours; the export itself
     * says what it is */
    if (why.id != CAIRN_E_IO_ERROR && why.id != CAIRN_E_NO_MEMORY)
      return 0;
    if (err)
      *err = why;
    return -1;
  }
  if (cairn__exports_names(&x, &names, err) != 0)
    result = -1;
  for (size_t i = 0; i < json_array_size(names) && result == 0; i++) {
    struct cairn__point *point = NULL;

    if (cairn__run_gate(run, err) != 0) {
      result = -1;
      break;
    }
    cairn__error_clear(&why);
    /* a damaged one is the business of whoever uses it */
    if (cairn__exports_point(&x, json_string_value(json_array_get(names, i)),
                             &point, &why) != 0)
      continue;
    if (is_of_run(run, point->manifest))
      result = tell(run, point, err);
    cairn__point_close(run->io, point);
  }
  json_decref(names);
  cairn__exports_close(&x);
  return result;
}
