/* collection.c: see collection.h. One table of keys per object. */
#include "collection.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "digest.h"
#include "error.h"
#include "manifest.h"
#include "spec.h"
#include "tracker.h"

#define WHERE_MAX     256
#define DISK_ID_MAX   64
#define ID_PREFIX_MIN 4
#define DEPTH_MAX     200

enum type {
  TYPE_STRING = 1,
  TYPE_BOOLEAN,
  TYPE_INTEGER,
  TYPE_ARRAY,
  TYPE_OBJECT,
  TYPE_GUID,
  TYPE_PATH,
  TYPE_PATHS
};

struct key {
  const char *name;
  int type; /* enum type */
  int is_required;
};

static const struct key export_keys[] = {
    {"collection", TYPE_OBJECT, 1},   {"directory", TYPE_PATH, 1},
    {"base", TYPE_STRING, 0},         {"format", TYPE_STRING, 0},
    {"digest", TYPE_STRING, 0},       {"on_disk_error", TYPE_STRING, 0},
    {"depth_limit", TYPE_INTEGER, 0}, {"tracker", TYPE_STRING, 0},
};
static const struct key collection_keys[] = {
    {"CollectionId", TYPE_GUID, 1},        {"ElementName", TYPE_STRING, 0},
    {"source_directories", TYPE_PATHS, 0}, {"clone_directory", TYPE_PATH, 0},
    {"machines", TYPE_ARRAY, 1},
};
static const struct key machine_keys[] = {
    {"VirtualMachineId", TYPE_GUID, 1}, {"ElementName", TYPE_STRING, 0},
    {"disks", TYPE_ARRAY, 0},           {"config", TYPE_PATHS, 0},
    {"runtime", TYPE_PATHS, 0},         {"guest_state", TYPE_PATHS, 0},
};
static const struct key disk_keys[] = {
    {"id", TYPE_STRING, 1},      {"path", TYPE_PATH, 1},
    {"format", TYPE_STRING, 1},  {"assume_quiescent", TYPE_BOOLEAN, 0},
    {"tracker", TYPE_STRING, 0},
};

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

/* ---- values -------------------------------------------------------------- */

static int check_type(const json_t *v, int type, const char *where,
                      struct cairn_error *err)
{
  static const char *const wanted[] = {
      [TYPE_STRING] = "a string",
      [TYPE_BOOLEAN] = "true or false",
      [TYPE_INTEGER] = "a whole number",
      [TYPE_ARRAY] = "an array",
      [TYPE_OBJECT] = "an object",
      [TYPE_GUID] = "a GUID",
      [TYPE_PATH] = "an absolute path",
      [TYPE_PATHS] = "an array of absolute paths"};
  int is_right = type == TYPE_BOOLEAN                       ? json_is_boolean(v)
                 : type == TYPE_INTEGER                     ? json_is_integer(v)
                 : type == TYPE_ARRAY || type == TYPE_PATHS ? json_is_array(v)
                 : type == TYPE_OBJECT                      ? json_is_object(v)
                                                            : json_is_string(v);

  if (is_right)
    return 0;
  return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be %s, not %s", where,
                     wanted[type], cairn__json_type_text(v));
}

static int check_text(const json_t *v, const char *where,
                      struct cairn_error *err)
{
  if (strlen(json_string_value(v)) == json_string_length(v))
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "%s must not contain a NUL character", where);
}

static int check_path(const json_t *v, const char *where,
                      struct cairn_error *err)
{
  const char *text = json_string_value(v);
  char shown[512];

  if (strlen(text) != json_string_length(v))
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%s must not contain a NUL character", where);
  if (text[0] == '/')
    return 0;
  return cairn__fail(err, CAIRN_E_BAD_PATH,
                     "%s must be an absolute path, not \"%s\"", where,
                     cairn__printable(text, shown, sizeof shown));
}

static int check_paths(const json_t *array, const char *where,
                       struct cairn_error *err)
{
  char item[WHERE_MAX + 32];
  json_t *v;
  size_t i;

  json_array_foreach(array, i, v)
  {
    snprintf(item, sizeof item, "%s[%zu]", where, i + 1);
    if (check_type(v, TYPE_PATH, item, err) != 0 ||
        check_path(v, item, err) != 0)
      return -1;
  }
  return 0;
}

static int check_guid(json_t *v, const char *where, struct cairn_error *err)
{
  char guid[37], shown[200];

  if (check_text(v, where, err) != 0)
    return -1;
  if (cairn__guid_canonical(json_string_value(v), guid) != 0)
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT,
        "%s must be a GUID such as "
        "\"0C5A9B1E-7D42-4F0B-9C55-3A1F7E2D8B60\", not \"%s\"",
        where, cairn__printable(json_string_value(v), shown, sizeof shown));
  return json_string_set(v, guid) == 0 ? 0 : cairn__fail_memory(err);
}

static int check_value(json_t *v, const struct key *k, const char *where,
                       struct cairn_error *err)
{
  if (check_type(v, k->type, where, err) != 0)
    return -1;
  switch (k->type) {
  case TYPE_STRING:
    return check_text(v, where, err);
  case TYPE_GUID:
    return check_guid(v, where, err);
  case TYPE_PATH:
    return check_path(v, where, err);
  case TYPE_PATHS:
    return check_paths(v, where, err);
  default:
    return 0;
  }
}

/* ---- objects ------------------------------------------------------------- */

static int check_names(json_t *object, const char *where,
                       const struct key *keys, size_t count,
                       struct cairn_error *err)
{
  const char *names[16], *name;
  char shown[200];
  json_t *v;
  size_t i;

  for (i = 0; i < count; i++)
    names[i] = keys[i].name;
  json_object_foreach(object, name, v)
  {
    for (i = 0; i < count && strcmp(name, names[i]) != 0; i++)
      continue;
    if (i < count)
      continue;
    cairn__printable(name, shown, sizeof shown);
    return cairn__fail(err, CAIRN_E_UNKNOWN_KEY,
                       "%s.%s: there is no such key; did you mean \"%s\"?",
                       where, shown, cairn__nearest(name, names, count));
  }
  return 0;
}

/* Lists that were left out become empty ones; null is as good as left out. */
static int check_object(json_t *object, const char *where,
                        const struct key *keys, size_t count,
                        struct cairn_error *err)
{
  if (check_type(object, TYPE_OBJECT, where, err) != 0 ||
      check_names(object, where, keys, count, err) != 0)
    return -1;
  for (size_t i = 0; i < count; i++) {
    const struct key *k = &keys[i];
    json_t *v = json_object_get(object, k->name);
    char member[WHERE_MAX];

    snprintf(member, sizeof member, "%s.%s", where, k->name);
    if (json_is_null(v)) {
      json_object_del(object, k->name);
      v = NULL;
    }
    if (!v && k->is_required)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT, "%s is missing",
                         member);
    if (v && check_value(v, k, member, err) != 0)
      return -1;
    if (!v && (k->type == TYPE_ARRAY || k->type == TYPE_PATHS) &&
        json_object_set_new(object, k->name, json_array()) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}

/* An optional string: the default when absent, else one of the choices. */
static int check_choice(json_t *object, const char *where, const char *name,
                        const char *const *choices, const char *fallback,
                        struct cairn_error *err)
{
  const char *value = json_string_value(json_object_get(object, name));
  char list[128] = "", shown[200];

  if (!value && fallback)
    return json_object_set_new(object, name, json_string(fallback)) == 0
               ? 0
               : cairn__fail_memory(err);
  for (size_t i = 0; value && choices[i]; i++) {
    size_t used = strlen(list);

    if (strcmp(value, choices[i]) == 0)
      return 0;
    snprintf(list + used, sizeof list - used, "%s\"%s\"", used ? ", " : "",
             choices[i]);
  }
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "%s.%s must be one of %s, not \"%s\"", where, name, list,
                     cairn__printable(value ? value : "", shown, sizeof shown));
}

/* ---- the collection ------------------------------------------------------ */

/* File systems may fold case, and disk ids become file names. */
static int add_disk_id(json_t *seen, const char *id, const char *where,
                       struct cairn_error *err)
{
  char folded[DISK_ID_MAX + 1];
  const char *earlier;
  size_t i;

  for (i = 0; id[i]; i++)
    folded[i] = (char)tolower((unsigned char)id[i]);
  folded[i] = '\0';
  earlier = json_string_value(json_object_get(seen, folded));
  if (earlier)
    return cairn__fail(err, CAIRN_E_DUPLICATE_ID,
                       "%s.id: another disk of this machine has the id "
                       "\"%s\"%s",
                       where, earlier,
                       strcmp(earlier, id) == 0
                           ? ""
                           : ", which differs in upper and lower case only");
  return json_object_set_new(seen, folded, json_string(id)) == 0
             ? 0
             : cairn__fail_memory(err);
}

static int check_tracker(json_t *object, const char *where,
                         struct cairn_error *err)
{
  return json_object_get(object, "tracker")
             ? check_choice(object, where, "tracker", cairn__tracker_names,
                            NULL, err)
             : 0;
}

static int check_disk(json_t *disk, const char *where, json_t *seen,
                      struct cairn_error *err)
{
  static const char *const formats[] = {"raw", "qcow2", NULL};
  const char *id;
  char shown[200];

  if (check_object(disk, where, disk_keys, COUNT(disk_keys), err) != 0)
    return -1;
  id = json_string_value(json_object_get(disk, "id"));
  if (!cairn__is_disk_id(id))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s.id must be 1 to %d letters, digits, \".\", \"_\" "
                       "or \"-\", beginning with a letter or digit, not "
                       "\"%s\"",
                       where, DISK_ID_MAX,
                       cairn__printable(id, shown, sizeof shown));
  if (check_choice(disk, where, "format", formats, NULL, err) != 0 ||
      check_tracker(disk, where, err) != 0 ||
      add_disk_id(seen, id, where, err) != 0)
    return -1;
  if (!json_object_get(disk, "assume_quiescent") &&
      json_object_set_new(disk, "assume_quiescent", json_false()) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int check_machine(json_t *machine, const char *where,
                         struct cairn_error *err)
{
  json_t *seen, *disk;
  char item[WHERE_MAX];
  int result = 0;
  size_t i;

  if (check_object(machine, where, machine_keys, COUNT(machine_keys), err) != 0)
    return -1;
  seen = json_object();
  if (!seen)
    return cairn__fail_memory(err);
  json_array_foreach(json_object_get(machine, "disks"), i, disk)
  {
    snprintf(item, sizeof item, "%.180s.disks[%zu]", where, i + 1);
    result = check_disk(disk, item, seen, err);
    if (result != 0)
      break;
  }
  json_decref(seen);
  return result;
}

int cairn__collection_check(json_t *collection, const char *where,
                            struct cairn_error *err)
{
  json_t *machines, *machine, *seen;
  char item[WHERE_MAX];
  int result = 0;
  size_t i;

  if (check_object(collection, where, collection_keys, COUNT(collection_keys),
                   err) != 0)
    return -1;
  machines = json_object_get(collection, "machines");
  if (json_array_size(machines) == 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s.machines must name at least one machine", where);
  seen = json_object();
  if (!seen)
    return cairn__fail_memory(err);
  json_array_foreach(machines, i, machine)
  {
    const char *id;

    snprintf(item, sizeof item, "%.180s.machines[%zu]", where, i + 1);
    result = check_machine(machine, item, err);
    if (result != 0)
      break;
    id = json_string_value(json_object_get(machine, "VirtualMachineId"));
    if (json_object_get(seen, id))
      result = cairn__fail(err, CAIRN_E_DUPLICATE_ID,
                           "%s.VirtualMachineId: another machine of this "
                           "collection has the id %s",
                           item, id);
    else if (json_object_set_new(seen, id, json_true()) != 0)
      result = cairn__fail_memory(err);
    if (result != 0)
      break;
  }
  json_decref(seen);
  return result;
}

/* ---- the export ---------------------------------------------------------- */

static int check_base(json_t *spec, struct cairn_error *err)
{
  json_t *base = json_object_get(spec, "base");
  const char *text;
  char guid[37], shown[200];

  if (!base)
    return json_object_set_new(spec, "base", json_string("none")) == 0
               ? 0
               : cairn__fail_memory(err);
  text = json_string_value(base);
  if (strcmp(text, "none") == 0 || strcmp(text, "latest") == 0)
    return 0;
  if (cairn__guid_canonical(text, guid) == 0)
    return json_string_set(base, guid) == 0 ? 0 : cairn__fail_memory(err);
  if (strlen(text) >= ID_PREFIX_MIN &&
      strspn(text, "0123456789ABCDEFabcdef-") == strlen(text))
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "export.base must be \"none\", \"latest\" or the id of a "
                     "reference point (or %d or more of its first characters), "
                     "not \"%s\"",
                     ID_PREFIX_MIN,
                     cairn__printable(text, shown, sizeof shown));
}

static int check_depth_limit(const json_t *spec, struct cairn_error *err)
{
  const json_t *v = json_object_get(spec, "depth_limit");
  json_int_t n = json_integer_value(v);

  if (!v || (n >= 1 && n <= DEPTH_MAX))
    return 0;
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "export.depth_limit must be 1 to %d levels, not %lld",
                     DEPTH_MAX, (long long)n);
}

int cairn__export_check(json_t *spec, struct cairn_error *err)
{
  static const char *const formats[] = {"qcow2", "raw", NULL};
  static const char *const digests[] = {"xxh3-128", "sha-256", "blake2b-256",
                                        NULL};
  static const char *const on_disk_error[] = {"fail", "continue", NULL};
  int algorithm;

  if (check_object(spec, "export", export_keys, COUNT(export_keys), err) != 0 ||
      cairn__collection_check(json_object_get(spec, "collection"),
                              "export.collection", err) != 0 ||
      check_base(spec, err) != 0 ||
      check_choice(spec, "export", "format", formats, "qcow2", err) != 0 ||
      check_choice(spec, "export", "digest", digests, "xxh3-128", err) != 0 ||
      check_choice(spec, "export", "on_disk_error", on_disk_error, "fail",
                   err) != 0 ||
      check_tracker(spec, "export", err) != 0 ||
      check_depth_limit(spec, err) != 0)
    return -1;
  return cairn__digest_algorithm_parse(
      json_string_value(json_object_get(spec, "digest")), &algorithm, err);
}
