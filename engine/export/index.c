/* index.c: see index.h. As with a manifest the digest covers the text, not the
 * values, and the shape is checked both when it is read and before it is
 * written: later code reads members without asking whether they are there. */
#include "index.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "digest.h"
#include "error.h"
#include "json.h"
#include "manifest.h"
#include "memory.h"

#define FORMAT   "cairn-index"
#define NEW_NAME CAIRN__INDEX_NAME ".new"
#define TAIL_MAX                                                               \
  96 /* bytes of the line with the digest and what follows it                  \
      */

static const char *const list_names[] = {"markers", "unfinished", "suspect",
                                         "released", "clone_directories"};

#define LIST_COUNT (sizeof list_names / sizeof list_names[0])

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static json_t *list_of(const json_t *index, const char *name)
{
  return json_object_get(index, name);
}

/* ---- the shape ----------------------------------------------------------- */

struct member {
  const char *name;
  json_type type;
  int is_optional; /* or null */
};

static const struct member marker_members[] = {
    {"ReferencePointGroupId", JSON_STRING, 0},
    {"CollectionId", JSON_STRING, 0},
    {"ElementName", JSON_STRING, 1},
    {"InstanceID", JSON_STRING, 0},
    {"run", JSON_INTEGER, 1},
    {"sequence", JSON_INTEGER, 0},
    {"time", JSON_STRING, 0},
    {"unix_us", JSON_INTEGER, 0},
    {"collection", JSON_OBJECT, 0},
    {"disks", JSON_ARRAY, 0},
    {"files", JSON_ARRAY, 0},
    {NULL, JSON_NULL, 0}};

static const struct member disk_members[] = {
    {"VirtualMachineId", JSON_STRING, 0},
    {"disk", JSON_STRING, 0},
    {"source", JSON_STRING, 0},
    {"format", JSON_STRING, 0},
    {"tracker", JSON_STRING, 0},
    {"name", JSON_STRING, 1},
    {"directory", JSON_STRING, 1},
    {"reason", JSON_STRING, 1},
    {"length", JSON_INTEGER, 1},
    {"state", JSON_OBJECT, 1},
    {NULL, JSON_NULL, 0}};

static const struct member file_members[] = {
    {"VirtualMachineId", JSON_STRING, 0},
    {"role", JSON_STRING, 0},
    {"source", JSON_STRING, 0},
    {"size", JSON_INTEGER, 0},
    {"mtime_ns", JSON_INTEGER, 0},
    {"inode", JSON_INTEGER, 0},
    {NULL, JSON_NULL, 0}};

static const struct member unfinished_members[] = {
    {"ReferencePointGroupId", JSON_STRING, 0},
    {"disks", JSON_ARRAY, 0},
    {NULL, JSON_NULL, 0}};

static const struct member suspect_members[] = {
    {"ReferencePointGroupId", JSON_STRING, 0},
    {"reason", JSON_STRING, 0},
    {"unix_us", JSON_INTEGER, 0},
    {NULL, JSON_NULL, 0}};

/* The name of the first member that is missing, has another type, or is no id
 * where one is wanted; NULL when all is well. */
static const char *wrong_member(const json_t *object,
                                const struct member *members)
{
  if (!json_is_object(object))
    return "an entry";
  for (; members->name; members++) {
    const json_t *v = json_object_get(object, members->name);
    const char *name = members->name;
    size_t n = strlen(name);
    int is_id = n > 2 && strcmp(name + n - 2, "Id") == 0;

    if (members->is_optional && (!v || json_is_null(v)))
      continue;
    if (!v || json_typeof(v) != members->type ||
        (is_id && !cairn__guid_is_canonical(json_string_value(v))))
      return name;
  }
  return NULL;
}

static const char *wrong_disk(const json_t *disk)
{
  static const char *const trackers[] = {"bitmap", "clone", "none"};
  const char *wrong = wrong_member(disk, disk_members);
  const char *tracker = text_of(disk, "tracker");
  size_t i = 0;

  if (wrong)
    return wrong;
  while (i < 3 && strcmp(trackers[i], tracker) != 0)
    i++;
  if (i == 3)
    return "tracker";
  if (i < 2 && !text_of(disk, "name"))
    return "name";
  return i == 1 && !text_of(disk, "directory") ? "directory" : NULL;
}

static const char *wrong_disks(const json_t *disks)
{
  const char *wrong = NULL;

  for (size_t i = 0; i < json_array_size(disks) && !wrong; i++)
    wrong = wrong_disk(json_array_get(disks, i));
  return wrong;
}

/* What an export of a marker goes by. */
static const char *wrong_state(const json_t *disk)
{
  const json_t *state = json_object_get(disk, "state");
  const char *tracker = text_of(disk, "tracker");

  if (!json_is_object(state) ||
      !json_is_integer(json_object_get(state, "length")))
    return "state";
  if (strcmp(tracker, "clone") == 0 && !text_of(state, "identity"))
    return "identity";
  if (strcmp(tracker, "bitmap") == 0 &&
      (!text_of(state, "tail") ||
       !json_is_object(json_object_get(state, "bitmap"))))
    return "bitmap";
  return NULL;
}

static const char *wrong_marker(const json_t *marker)
{
  const char *wrong = wrong_member(marker, marker_members);
  const json_t *files = json_object_get(marker, "files");
  const json_t *disks = json_object_get(marker, "disks");

  if (!wrong)
    wrong = wrong_disks(disks);
  for (size_t i = 0; i < json_array_size(disks) && !wrong; i++)
    wrong = wrong_state(json_array_get(disks, i));
  for (size_t i = 0; i < json_array_size(files) && !wrong; i++)
    wrong = wrong_member(json_array_get(files, i), file_members);
  return wrong;
}

static const char *wrong_entry(const char *list, const json_t *entry)
{
  const char *wrong;

  if (strcmp(list, "markers") == 0)
    return wrong_marker(entry);
  if (strcmp(list, "suspect") == 0)
    return wrong_member(entry, suspect_members);
  if (strcmp(list, "clone_directories") == 0)
    return json_is_string(entry) && json_string_value(entry)[0] == '/'
               ? NULL
               : "an absolute path";
  if (strcmp(list, "released") == 0)
    return json_is_string(entry) &&
                   cairn__guid_is_canonical(json_string_value(entry))
               ? NULL
               : "an id";
  wrong = wrong_member(entry, unfinished_members);
  return wrong ? wrong : wrong_disks(json_object_get(entry, "disks"));
}

/* What is wrong with the whole, or NULL. */
static const char *wrong_index(const json_t *index, char *text, size_t size)
{
  for (size_t i = 0; i < LIST_COUNT; i++) {
    const json_t *list = list_of(index, list_names[i]);

    if (!json_is_array(list)) {
      snprintf(text, size, "the list \"%s\" is missing", list_names[i]);
      return text;
    }
    for (size_t j = 0; j < json_array_size(list); j++) {
      const char *wrong = wrong_entry(list_names[i], json_array_get(list, j));

      if (!wrong)
        continue;
      snprintf(text, size, "%s[%zu]: %s is missing or not what it must be",
               list_names[i], j + 1, wrong);
      return text;
    }
  }
  return NULL;
}

/* ---- reading ------------------------------------------------------------- */

static json_t *new_index(struct cairn_error *err)
{
  json_t *index =
      json_pack("{s:s, s:i, s:[], s:[], s:[], s:[], s:[]}", "format", FORMAT,
                "version", CAIRN__INDEX_VERSION, "markers", "unfinished",
                "suspect", "released", "clone_directories");

  if (!index)
    cairn__fail_memory(err);
  return index;
}

static int refuse(const char *path, const char *what, struct cairn_error *err)
{
  char shown[512], whole[1024];

  cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
              "%s/" CAIRN__INDEX_NAME " cannot be used: %s; put back a copy of "
              "it, or remove it, which forgets the markers it holds (\"cairn "
              "doctor\" then finds what they kept)",
              cairn__printable(path, shown, sizeof shown), what);
  snprintf(whole, sizeof whole, "%s/" CAIRN__INDEX_NAME, path);
  cairn__error_set_path(err, whole, -1);
  return -1;
}

/* The line with the digest of `n` bytes, and what follows it. */
static int make_tail(const char *text, size_t n, char tail[TAIL_MAX])
{
  char digits[CAIRN__SUM_TEXT];

  cairn__text_sum(text, n, digits);
  return snprintf(tail, TAIL_MAX, "  \"digest\": \"xxh3-128:%s\"\n}\n", digits);
}

/* How many bytes the digest covers when it agrees, else 0. */
static size_t proved(const char *text, size_t n)
{
  char tail[TAIL_MAX];
  size_t length = (size_t)make_tail("", 0, tail);

  if (n <= length)
    return 0;
  make_tail(text, n - length, tail);
  return memcmp(text + n - length, tail, length) == 0 ? n - length : 0;
}

static int parse(const char *path, const char *text, size_t n, json_t **index,
                 struct cairn_error *err)
{
  char what[300] = "it is no index", shown[512];
  json_int_t version;
  json_t *value;

  if (proved(text, n) == 0)
    return refuse(path, "its bytes differ from its digest", err);
  value = cairn__json_load(text, n, JSON_REJECT_DUPLICATES, NULL);
  if (!value)
    return errno == ENOMEM ? cairn__fail_memory(err)
                           : refuse(path, "it is no JSON", err);
  version = json_integer_value(json_object_get(value, "version"));
  if (version > CAIRN__INDEX_VERSION) {
    json_decref(value);
    return cairn__fail(err, CAIRN_E_VERSION,
                       "%s/" CAIRN__INDEX_NAME
                       " has version %lld; up to %d is understood",
                       cairn__printable(path, shown, sizeof shown),
                       (long long)version, CAIRN__INDEX_VERSION);
  }
  if (!text_of(value, "format") ||
      strcmp(text_of(value, "format"), FORMAT) != 0 || version < 1 ||
      wrong_index(value, what, sizeof what)) {
    json_decref(value);
    return refuse(path, what, err);
  }
  (void)json_object_del(value, "digest");
  *index = value;
  return 0;
}

int cairn__index_read(const struct cairn_io *io, int dirfd, const char *path,
                      json_t **index, struct cairn_error *err)
{
  struct cairn_error why;
  char *text;
  size_t n;
  int result;

  *index = NULL;
  cairn__error_clear(&why);
  if (cairn__small_file_read(io, dirfd, CAIRN__INDEX_NAME, CAIRN__INDEX_MAX,
                             path, &text, &n, &why) != 0) {
    if (why.id == CAIRN_E_NOT_AN_EXPORT) {
      *index = new_index(err);
      return *index ? 0 : -1;
    }
    if (err)
      *err = why;
    return -1;
  }
  result = parse(path, text, n, index, err);
  cairn__free(text);
  return result;
}

/* ---- writing ------------------------------------------------------------- */

static int fail_at(const char *path, const char *what, struct cairn_error *err)
{
  int errnum = errno;
  char shown[512], whole[1024];

  snprintf(whole, sizeof whole, "%s/" CAIRN__INDEX_NAME, path);
  return cairn__fail_errno(err, errnum, whole, -1,
                           "cannot %s %s/" CAIRN__INDEX_NAME, what,
                           cairn__printable(path, shown, sizeof shown));
}

static int is_empty(const json_t *index)
{
  for (size_t i = 0; i < LIST_COUNT; i++) {
    if (json_array_size(list_of(index, list_names[i])) > 0)
      return 0;
  }
  return 1;
}

/* Text and its digest; *out is freed by the caller. */
static int seal(const json_t *index, char **out, size_t *size,
                struct cairn_error *err)
{
  const size_t flags = JSON_INDENT(2) | JSON_PRESERVE_ORDER;
  size_t n = json_dumpb(index, NULL, 0, flags);
  char *text = n > 2 ? cairn__malloc(n + 2 + TAIL_MAX) : NULL;

  if (!text || json_dumpb(index, text, n, flags) != n) {
    cairn__free(text);
    return cairn__fail_memory(err);
  }
  n -= 2; /* the closing "\n}" moves behind the digest */
  text[n++] = ',';
  text[n++] = '\n';
  n += (size_t)make_tail(text, n, text + n);
  *out = text;
  *size = n;
  return 0;
}

/* 1 when the file has these bytes; 0 when not, or when it cannot be told. */
static int is_same(const struct cairn_io *io, int dirfd, const char *path,
                   const char *text, size_t n, int *is_missing)
{
  struct cairn_error why;
  char *there;
  size_t size;
  int result;

  cairn__error_clear(&why);
  *is_missing = 0;
  if (cairn__small_file_read(io, dirfd, CAIRN__INDEX_NAME, CAIRN__INDEX_MAX,
                             path, &there, &size, &why) != 0) {
    *is_missing = why.id == CAIRN_E_NOT_AN_EXPORT;
    return 0;
  }
  result = size == n && memcmp(there, text, n) == 0;
  cairn__free(there);
  return result;
}

static int replace(const struct cairn_io *io, int dirfd, const char *path,
                   const char *text, size_t n, struct cairn_error *err)
{
  int fd;

  /* one that a crash has left; the lock is ours, so it is nobody's */
  if (io->unlinkat(io, dirfd, NEW_NAME, 0) != 0 && errno != ENOENT)
    return fail_at(path, "replace", err);
  fd = io->openat(io, dirfd, NEW_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                  0600);
  if (fd < 0)
    return fail_at(path, "create a new", err);
  if (cairn__io_write_full(io, fd, text, n, 0) != 0 || io->fsync(io, fd) != 0) {
    fail_at(path, "write", err);
    (void)io->close(io, fd);
    (void)io->unlinkat(io, dirfd, NEW_NAME, 0);
    return -1;
  }
  if (io->close(io, fd) != 0 ||
      io->renameat2(io, dirfd, NEW_NAME, dirfd, CAIRN__INDEX_NAME, 0) != 0) {
    fail_at(path, "replace", err);
    (void)io->unlinkat(io, dirfd, NEW_NAME, 0);
    return -1;
  }
  return io->fsync(io, dirfd) == 0 ? 0 : fail_at(path, "sync", err);
}

int cairn__index_write(const struct cairn_io *io, int dirfd, const char *path,
                       const json_t *index, struct cairn_error *err)
{
  char what[300], *text = NULL;
  int is_missing, result = 0;
  size_t n = 0;

  if (wrong_index(index, what, sizeof what))
    return cairn__fail(err, CAIRN_E_INTERNAL, CAIRN__INDEX_NAME ": %s", what);
  if (seal(index, &text, &n, err) != 0)
    return -1;
  if (n > CAIRN__INDEX_MAX)
    result = cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                         CAIRN__INDEX_NAME " would have %zu bytes; the limit "
                                           "is %u: destroy some markers",
                         n, CAIRN__INDEX_MAX);
  else if (!is_same(io, dirfd, path, text, n, &is_missing) &&
           !(is_missing && is_empty(index)))
    result = replace(io, dirfd, path, text, n, err);
  cairn__free(text);
  return result;
}

/* ---- the lists ----------------------------------------------------------- */

/* The position of the entry that is about the point, or (size_t)-1. */
static size_t find(const json_t *list, const char *id)
{
  size_t i;
  json_t *entry;

  json_array_foreach((json_t *)list, i, entry)
  {
    const char *its = json_is_string(entry)
                          ? json_string_value(entry)
                          : text_of(entry, "ReferencePointGroupId");

    if (strcmp(its, id) == 0)
      return i;
  }
  return (size_t)-1;
}

static void drop(json_t *index, const char *list, const char *id)
{
  size_t i = find(list_of(index, list), id);

  if (i != (size_t)-1)
    (void)json_array_remove(list_of(index, list), i);
}

static int append(json_t *index, const char *list, json_t *entry,
                  struct cairn_error *err)
{
  return json_array_append_new(list_of(index, list), entry) == 0
             ? 0
             : cairn__fail_memory(err);
}

json_t *cairn__index_marker(const json_t *index, const char *id)
{
  const json_t *markers = list_of(index, "markers");

  return json_array_get(markers, find(markers, id));
}

json_int_t cairn__index_sequence(const json_t *index, const char *collection)
{
  json_int_t highest = 0;
  size_t i;
  json_t *marker;

  json_array_foreach(list_of(index, "markers"), i, marker)
  {
    json_int_t n = json_integer_value(json_object_get(marker, "sequence"));

    if (strcmp(text_of(marker, "CollectionId"), collection) == 0 && n > highest)
      highest = n;
  }
  return highest;
}

int cairn__index_add_marker(json_t *index, json_t *marker,
                            struct cairn_error *err)
{
  return append(index, "markers", marker, err);
}

/* Of the two that are one point's, what is in both once. */
int cairn__index_add_unfinished(json_t *index, const char *id, json_t *disks,
                                struct cairn_error *err)
{
  json_t *list = list_of(index, "unfinished");
  json_t *there = json_array_get(list, find(list, id));
  json_t *its = json_object_get(there, "disks");
  int result = 0;

  if (!there)
    return append(
        index, "unfinished",
        json_pack("{s:s, s:o}", "ReferencePointGroupId", id, "disks", disks),
        err);
  for (size_t i = 0; i < json_array_size(disks) && result == 0; i++) {
    json_t *disk = json_array_get(disks, i);
    size_t j = 0;

    while (j < json_array_size(its) &&
           !json_equal(json_array_get(its, j), disk))
      j++;
    if (j == json_array_size(its) && json_array_append(its, disk) != 0)
      result = cairn__fail_memory(err);
  }
  json_decref(disks);
  return result;
}

void cairn__index_remove_marker(json_t *index, const char *id)
{
  drop(index, "markers", id);
}

void cairn__index_remove_unfinished(json_t *index, const char *id)
{
  drop(index, "unfinished", id);
}

int cairn__index_add_released(json_t *index, const char *id,
                              struct cairn_error *err)
{
  if (cairn__index_is_released(index, id))
    return 0;
  return append(index, "released", json_string(id), err);
}

int cairn__index_is_released(const json_t *index, const char *id)
{
  return find(list_of(index, "released"), id) != (size_t)-1;
}

int cairn__index_add_clone_directory(json_t *index, const char *directory,
                                     struct cairn_error *err)
{
  const json_t *list = list_of(index, "clone_directories");

  for (size_t i = 0; i < json_array_size(list); i++) {
    if (strcmp(json_string_value(json_array_get(list, i)), directory) == 0)
      return 0;
  }
  return append(index, "clone_directories", json_string(directory), err);
}

const char *cairn__index_suspect(const json_t *index, const char *id)
{
  const json_t *list = list_of(index, "suspect");

  return text_of(json_array_get(list, find(list, id)), "reason");
}

int cairn__index_add_suspect(json_t *index, const char *id, const char *reason,
                             int64_t unix_us, struct cairn_error *err)
{
  char shown[CAIRN_MESSAGE_MAX];

  if (cairn__index_suspect(index, id))
    return 0;
  return append(index, "suspect",
                json_pack("{s:s, s:s, s:I}", "ReferencePointGroupId", id,
                          "reason",
                          cairn__printable(reason, shown, sizeof shown),
                          "unix_us", (json_int_t)unix_us),
                err);
}

void cairn__index_remove_suspect(json_t *index, const char *id)
{
  drop(index, "suspect", id);
}

void cairn__index_forget(json_t *index, const char *id)
{
  drop(index, "markers", id);
  drop(index, "suspect", id);
  drop(index, "released", id);
}

/* ---- whole steps --------------------------------------------------------- */

int cairn__index_mark_suspect(const struct cairn_io *io, int dirfd,
                              const char *path, const char *id,
                              const char *reason, int64_t unix_us,
                              struct cairn_error *err)
{
  json_t *index;
  int result = cairn__index_read(io, dirfd, path, &index, err);

  if (result == 0)
    result = cairn__index_add_suspect(index, id, reason, unix_us, err);
  if (result == 0)
    result = cairn__index_write(io, dirfd, path, index, err);
  json_decref(index);
  return result;
}

int cairn__index_clear_suspect(const struct cairn_io *io, int dirfd,
                               const char *path, const char *id,
                               struct cairn_error *err)
{
  json_t *index;
  int result = cairn__index_read(io, dirfd, path, &index, err);

  if (result == 0 && cairn__index_suspect(index, id)) {
    cairn__index_remove_suspect(index, id);
    result = cairn__index_write(io, dirfd, path, index, err);
  }
  json_decref(index);
  return result;
}
