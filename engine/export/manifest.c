/* manifest.json: written once, as text whose last line is the digest of all
 * bytes before that line; read by computing that digest anew and comparing
 * the last line byte for byte. So the check covers the text, not the values:
 * a changed bit is found wherever it lies, in white space too.
 *
 * The shape is one table per object. A manifest that passes has every member
 * of its version with its type, and none besides: later code reads members
 * without asking whether they are there. The writer runs the same check, so
 * that nothing is published which a reader would refuse. */
#include "manifest.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "error.h"
#include "json.h"
#include "memory.h"

enum {
  IS_STRING = 1,
  IS_INTEGER = 2,
  IS_NULL = 4,
  IS_ARRAY = 8,
  IS_GUID = 16,   /* a string that is one */
  IS_DIGEST = 32, /* a string "algorithm:hex" */
  IS_OPTIONAL = 64,
  IS_OBJECT = 128
};

enum {
  ROLE_DISK = 1,
  ROLE_LOG = 2,
  ROLE_DIGESTS = 4,
  ROLE_CONFIG = 8,
  ROLE_RUNTIME = 16,
  ROLE_GUEST_STATE = 32,
  ROLE_SECRET = 64,
  ROLES_IMAGE = ROLE_DISK | ROLE_LOG,
  ROLES_OF_DISK = ROLES_IMAGE | ROLE_DIGESTS,
  ROLES_COPIED = ROLE_CONFIG | ROLE_RUNTIME | ROLE_GUEST_STATE,
  ROLES_ALL = 127
};

static const struct role {
  const char *name;
  unsigned bit;
} roles[] = {{"disk", ROLE_DISK},       {"log", ROLE_LOG},
             {"digests", ROLE_DIGESTS}, {"config", ROLE_CONFIG},
             {"runtime", ROLE_RUNTIME}, {"guest-state", ROLE_GUEST_STATE},
             {"secret", ROLE_SECRET}};

struct member {
  const char *name;
  unsigned type;
  unsigned roles; /* of a file: where it belongs; else ROLES_ALL */
  int64_t min;    /* integers */
};

static const struct member top_members[] = {
    {"format", IS_STRING, ROLES_ALL, 0},
    {"version", IS_INTEGER, ROLES_ALL, 1},
    {"note", IS_STRING, ROLES_ALL, 0},
    {"CollectionId", IS_GUID, ROLES_ALL, 0},
    {"ElementName", IS_STRING | IS_NULL, ROLES_ALL, 0},
    {"ReferencePointGroupId", IS_GUID, ROLES_ALL, 0},
    {"BaseReferencePointGroupId", IS_GUID | IS_NULL, ROLES_ALL, 0},
    {"InstanceID", IS_STRING, ROLES_ALL, 0},
    {"run", IS_INTEGER, ROLES_ALL, 0},
    {"epoch", IS_INTEGER, ROLES_ALL, 0},
    {"sequence", IS_INTEGER, ROLES_ALL, 1},
    {"generation", IS_INTEGER, ROLES_ALL, 1},
    {"time", IS_STRING, ROLES_ALL, 0},
    {"unix_us", IS_INTEGER, ROLES_ALL, INT64_MIN},
    {"algorithm", IS_STRING, ROLES_ALL, 0},
    {"machines", IS_ARRAY, ROLES_ALL, 0},
    {"files", IS_ARRAY, ROLES_ALL, 0},
    {"failed", IS_ARRAY, ROLES_ALL, 0},
    {"removed", IS_ARRAY | IS_OPTIONAL, ROLES_ALL, 0},
    {"warnings", IS_ARRAY, ROLES_ALL, 0},
    {"digest", IS_STRING | IS_OPTIONAL, ROLES_ALL, 0},
    {NULL, 0, 0, 0}};

static const struct member machine_members[] = {
    {"VirtualMachineId", IS_GUID, ROLES_ALL, 0},
    {"ElementName", IS_STRING | IS_NULL, ROLES_ALL, 0},
    {"result", IS_STRING, ROLES_ALL, 0},
    {NULL, 0, 0, 0}};

static const struct member file_members[] = {
    {"role", IS_STRING, ROLES_ALL, 0},
    {"path", IS_STRING, ROLES_ALL, 0},
    {"size", IS_INTEGER, ROLES_ALL, 0},
    {"digest", IS_DIGEST, ROLES_ALL, 0},
    {"VirtualMachineId", IS_GUID, ROLES_ALL & ~ROLE_SECRET, 0},
    {"VirtualMachineId", IS_NULL, ROLE_SECRET, 0},
    {"disk", IS_STRING, ROLES_OF_DISK, 0},
    {"format", IS_STRING, ROLES_IMAGE, 0},
    {"length", IS_INTEGER, ROLES_IMAGE, 0},
    {"virtual_size", IS_INTEGER, ROLES_IMAGE, 0},
    {"content", IS_DIGEST, ROLES_IMAGE, 0},
    {"base", IS_NULL, ROLE_DISK, 0},
    {"base", IS_GUID, ROLE_LOG, 0},
    {"base_content", IS_DIGEST, ROLE_LOG, 0},
    {"tracker", IS_STRING, ROLES_IMAGE, 0},
    {"fallback", IS_STRING | IS_NULL, ROLES_IMAGE, 0},
    {"shared_with", IS_STRING | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"clone", IS_STRING | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"bitmap_state", IS_OBJECT | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"runs_since_compared", IS_INTEGER | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"blocks_audited", IS_INTEGER | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"source", IS_STRING, ROLES_IMAGE | ROLES_COPIED, 0},
    {"source_format", IS_STRING, ROLES_IMAGE, 0},
    {"internal_snapshots", IS_INTEGER | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"bytes_read", IS_INTEGER, ROLES_IMAGE, 0},
    {"bytes_written", IS_INTEGER, ROLES_IMAGE, 0},
    {"bytes_zero", IS_INTEGER, ROLES_IMAGE, 0},
    {"bytes_skipped", IS_INTEGER, ROLES_IMAGE, 0},
    {"bytes_resumed", IS_INTEGER | IS_OPTIONAL, ROLES_IMAGE, 0},
    {"time_started", IS_STRING, ROLES_IMAGE, 0},
    {"time_ended", IS_STRING, ROLES_IMAGE, 0},
    {"mode", IS_INTEGER, ROLES_COPIED, 0},
    {"mtime_ns", IS_INTEGER, ROLES_COPIED, INT64_MIN},
    {NULL, 0, 0, 0}};

/* What one check carries: where it stands, and the error it gives. */
struct check {
  const char *path;      /* of the directory, for messages */
  const char *algorithm; /* once known */
  unsigned digest_size;
  int id; /* EXPORT_CORRUPT, or INTERNAL when writing */
  struct cairn_error *err;
};

/* ---- small things ------------------------------------------------------- */

int cairn__guid_is_canonical(const char *s)
{
  for (int i = 0; i < 36; i++) {
    char c = s[i];
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (c != '-')
        return 0;
    } else if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'))) {
      return 0;
    }
  }
  return s[36] == 0;
}

int cairn__guid_canonical(const char *s, char out[37])
{
  int has_brace = s[0] == '{';
  s += has_brace;
  for (int i = 0; i < 36; i++) {
    if (!s[i])
      return -1;
    out[i] = s[i] >= 'a' && s[i] <= 'f' ? (char)(s[i] - 'a' + 'A') : s[i];
  }
  out[36] = 0;
  if (strcmp(s + 36, has_brace ? "}" : "") != 0)
    return -1;
  return cairn__guid_is_canonical(out) ? 0 : -1;
}

/* A path that a manifest may have: relative, no empty component, no "." or
 * "..", no component longer than 255 bytes. */
static int path_is_beneath(const char *path)
{
  if (strlen(path) >= PATH_MAX)
    return 0;
  for (;;) {
    size_t n = strcspn(path, "/");
    if (n == 0 || n > NAME_MAX || (n == 1 && path[0] == '.') ||
        (n == 2 && path[0] == '.' && path[1] == '.'))
      return 0;
    if (!path[n])
      return 1;
    path += n + 1;
  }
}

/* 16 for xxh3-128, 32 for the others, 0 for anything else. */
static unsigned digest_size_of(const char *algorithm)
{
  if (strcmp(algorithm, "xxh3-128") == 0)
    return 16;
  if (strcmp(algorithm, "sha-256") == 0 ||
      strcmp(algorithm, "blake2b-256") == 0)
    return 32;
  return 0;
}

static int is_digest(const char *text, const char *algorithm, unsigned size)
{
  size_t n = algorithm ? strlen(algorithm) : 0;
  if (n == 0 || strncmp(text, algorithm, n) != 0 || text[n] != ':')
    return 0;
  text += n + 1;
  return strlen(text) == 2 * (size_t)size &&
         strspn(text, "0123456789abcdef") == 2 * (size_t)size;
}

/* The digest of the manifest's own text. XXH3 runs without a secret: the
 * manifest is checked before the chain's is known. */
static int text_digest(const char *algorithm, const char *text, size_t n,
                       char out[CAIRN__DIGEST_TEXT], struct cairn_error *err)
{
  static const unsigned char no_secret[CAIRN__SECRET_SIZE];
  unsigned char digest[CAIRN__DIGEST_MAX];
  struct cairn__digester d;
  int id;
  if (cairn__digest_algorithm_parse(algorithm, &id, err) != 0)
    return -1;
  cairn__digester_init(&d, id, no_secret);
  if (id == CAIRN__XXH3_128) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(text, n));
    memcpy(digest, canonical.digest, sizeof canonical.digest);
  } else {
    cairn__digest_bytes(&d, text, n, digest);
  }
  cairn__digest_format(&d, digest, out);
  return 0;
}

/* ---- the shape ---------------------------------------------------------- */

#define WHERE_MAX 320

static int refuse(const struct check *c, const char *what, const char *where)
{
  char printable[1024];
  return cairn__fail(c->err, c->id, "%s/" CAIRN__MANIFEST_NAME ": %s%s%s",
                     cairn__printable(c->path, printable, sizeof printable),
                     where, where[0] ? ": " : "", what);
}

static const char *type_text(unsigned type)
{
  switch (type & ~IS_OPTIONAL) {
  case IS_STRING:
    return "a string";
  case IS_STRING | IS_NULL:
    return "a string or null";
  case IS_INTEGER:
    return "an integer in its range";
  case IS_NULL:
    return "null";
  case IS_ARRAY:
    return "an array";
  case IS_OBJECT:
    return "an object";
  case IS_GUID:
    return "a GUID in upper case";
  case IS_GUID | IS_NULL:
    return "a GUID in upper case, or null";
  default:
    return "a digest of the manifest's algorithm";
  }
}

static int has_type(const struct check *c, const json_t *v,
                    const struct member *m)
{
  if (json_is_null(v))
    return !!(m->type & IS_NULL);
  if (json_is_array(v))
    return !!(m->type & IS_ARRAY);
  if (json_is_object(v))
    return !!(m->type & IS_OBJECT);
  if (json_is_integer(v))
    return (m->type & IS_INTEGER) && json_integer_value(v) >= m->min;
  if (!json_is_string(v))
    return 0;
  if (m->type & IS_GUID)
    return cairn__guid_is_canonical(json_string_value(v));
  if (m->type & IS_DIGEST)
    return is_digest(json_string_value(v), c->algorithm, c->digest_size);
  return !!(m->type & IS_STRING);
}

/* Every member of the table that belongs to `role` is there with its type, and
 * nothing else. */
static int check_members(const struct check *c, const json_t *object,
                         const struct member *table, unsigned role,
                         const char *where)
{
  char what[WHERE_MAX];
  if (!json_is_object(object))
    return refuse(c, "an object is wanted", where);
  size_t known = 0;
  for (const struct member *m = table; m->name; m++) {
    if (!(m->roles & role))
      continue;
    const json_t *v = json_object_get(object, m->name);
    if (!v && (m->type & IS_OPTIONAL))
      continue;
    if (!v || !has_type(c, v, m)) {
      snprintf(what, sizeof what, "member \"%s\" %s%s", m->name,
               v ? "must be " : "is missing", v ? type_text(m->type) : "");
      return refuse(c, what, where);
    }
    known++;
  }
  if (known == json_object_size(object))
    return 0;
  const char *key;
  json_t *v;
  json_object_foreach((json_t *)object, key, v)
  {
    const struct member *m = table;
    while (m->name && !((m->roles & role) && strcmp(m->name, key) == 0))
      m++;
    if (m->name)
      continue;
    char printable[200];
    snprintf(what, sizeof what, "member \"%s\" is not one of version %d",
             cairn__printable(key, printable, sizeof printable),
             CAIRN__MANIFEST_VERSION);
    return refuse(c, what, where);
  }
  return 0;
}

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int64_t integer_of(const json_t *object, const char *name)
{
  return json_integer_value(json_object_get(object, name));
}

static unsigned role_of(const char *name)
{
  for (size_t i = 0; name && i < sizeof roles / sizeof *roles; i++)
    if (strcmp(name, roles[i].name) == 0)
      return roles[i].bit;
  return 0;
}

int cairn__is_disk_id(const char *s)
{
  static const char alnum[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  char all[sizeof alnum + 3];
  snprintf(all, sizeof all, "%s._-", alnum);
  size_t n = strlen(s);
  return n >= 1 && n <= 64 && strchr(alnum, s[0]) && strspn(s, all) == n;
}

static int set_add(json_t *set, const char *key, struct cairn_error *err)
{
  return json_object_set_new(set, key, json_true()) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* Where a file of this role must lie. */
static int path_is_right(const json_t *file, unsigned role, const char *name)
{
  const char *path = text_of(file, "path");
  const char *vm = text_of(file, "VirtualMachineId");
  char wanted[160];
  if (!path_is_beneath(path))
    return 0;
  if (role == ROLE_SECRET)
    return strcmp(path, CAIRN__SECRET_NAME) == 0;
  if (role & ROLES_OF_DISK) {
    snprintf(wanted, sizeof wanted, "%s/%s.%s", vm, text_of(file, "disk"),
             role == ROLE_DIGESTS ? "digests" : text_of(file, "format"));
    return strcmp(path, wanted) == 0;
  }
  int n = snprintf(wanted, sizeof wanted, "%s/%s/", vm, name);
  return strncmp(path, wanted, (size_t)n) == 0 && !strchr(path + n, '/');
}

static int check_image(const struct check *c, const json_t *file, unsigned role,
                       const char *where)
{
  const char *format = text_of(file, "format");
  int is_raw = strcmp(format, "raw") == 0;
  if (!is_raw && strcmp(format, "qcow2") != 0)
    return refuse(c, "format must be \"qcow2\" or \"raw\"", where);
  if (role == ROLE_LOG && is_raw)
    return refuse(c, "a log file must be of format \"qcow2\"", where);
  uint64_t length = (uint64_t)integer_of(file, "length");
  uint64_t size = (uint64_t)integer_of(file, "virtual_size");
  if (length > INT64_MAX - CAIRN__BLOCK)
    return refuse(c, "length is out of range", where);
  if (size != (length + 511) / 512 * 512)
    return refuse(c, "virtual_size must be length rounded up to 512", where);
  if (is_raw && (uint64_t)integer_of(file, "size") != length)
    return refuse(c, "size of a raw file must be its length", where);
  return 0;
}

static int check_digests_size(const struct check *c, const json_t *image,
                              const json_t *map, const char *where)
{
  uint64_t size = (uint64_t)integer_of(image, "virtual_size");
  uint64_t blocks = size / CAIRN__BLOCK + (size % CAIRN__BLOCK != 0);
  uint64_t pages =
      blocks / CAIRN__PAGE_BLOCKS + (blocks % CAIRN__PAGE_BLOCKS != 0);
  uint64_t stride = (uint64_t)CAIRN__PAGE_BLOCKS * c->digest_size + 4096;
  if ((uint64_t)integer_of(map, "size") != 4096 + pages * stride)
    return refuse(c, "size of the digest map does not fit its disk", where);
  return 0;
}

/* `paths`, `disks`: what earlier files have taken. */
static int check_file(const struct check *c, const json_t *file, size_t index,
                      const json_t *manifest, const json_t *machines,
                      json_t *paths, json_t *disks)
{
  char where[WHERE_MAX], key[160];
  snprintf(where, sizeof where, "files[%zu]", index + 1);
  if (!json_is_object(file))
    return refuse(c, "an object is wanted", where);
  const char *name = text_of(file, "role");
  unsigned role = role_of(name);
  if (!role)
    return refuse(c,
                  "member \"role\" must be disk, log, digests, config, "
                  "runtime, guest-state or secret",
                  where);
  if (check_members(c, file, file_members, role, where) != 0)
    return -1;

  const char *vm = text_of(file, "VirtualMachineId");
  if (vm && !json_object_get(machines, vm))
    return refuse(c, "VirtualMachineId is none of \"machines\"", where);
  if ((role & ROLES_OF_DISK) && !cairn__is_disk_id(text_of(file, "disk")))
    return refuse(c, "disk is no disk id", where);
  if ((role & ROLES_IMAGE) && check_image(c, file, role, where) != 0)
    return -1;
  if (role == ROLE_SECRET && integer_of(file, "size") != CAIRN__SECRET_SIZE)
    return refuse(c, "size of the secret must be 192", where);
  if (role == ROLE_LOG &&
      strcmp(text_of(file, "base"),
             text_of(manifest, "ReferencePointGroupId")) == 0)
    return refuse(c, "base must be another point", where);
  if (!path_is_right(file, role, name))
    return refuse(c,
                  "path must be relative, without \"..\", and where the "
                  "format has a file of this role",
                  where);

  const char *path = text_of(file, "path");
  if (json_object_get(paths, path))
    return refuse(c, "path occurs twice", where);
  if (set_add(paths, path, c->err) != 0)
    return -1;
  if (!(role & ROLES_OF_DISK))
    return 0;
  /* one image and one map per disk: they are matched at the end */
  snprintf(key, sizeof key, "%s/%s/%s", vm, text_of(file, "disk"),
           role == ROLE_DIGESTS ? "map" : "image");
  if (json_object_get(disks, key))
    return refuse(c, "the disk has another file of this kind", where);
  if (json_object_set(disks, key, (json_t *)file) != 0)
    return cairn__fail_memory(c->err);
  return 0;
}

static int check_files(const struct check *c, const json_t *manifest,
                       const json_t *machines)
{
  int result = -1;
  json_t *paths = json_object(), *disks = json_object();
  const json_t *files = json_object_get(manifest, "files");
  size_t i;
  json_t *file;
  if (!paths || !disks) {
    cairn__fail_memory(c->err);
    goto out;
  }
  json_array_foreach(files, i, file)
  {
    if (check_file(c, file, i, manifest, machines, paths, disks) != 0)
      goto out;
  }
  json_array_foreach(files, i, file)
  {
    char where[WHERE_MAX], key[160];
    snprintf(where, sizeof where, "files[%zu]", i + 1);
    unsigned role = role_of(text_of(file, "role"));
    if (!(role & ROLES_OF_DISK))
      continue;
    snprintf(key, sizeof key, "%s/%s/%s", text_of(file, "VirtualMachineId"),
             text_of(file, "disk"), role == ROLE_DIGESTS ? "image" : "map");
    const json_t *other = json_object_get(disks, key);
    if (!other) {
      refuse(c,
             role == ROLE_DIGESTS ? "a digest map without its disk"
                                  : "the disk has no digest map",
             where);
      goto out;
    }
    if (role == ROLE_DIGESTS && check_digests_size(c, other, file, where) != 0)
      goto out;
  }
  if (strcmp(c->algorithm, "xxh3-128") == 0 && json_array_size(files) > 0 &&
      !json_object_get(paths, CAIRN__SECRET_NAME)) {
    refuse(c, "algorithm xxh3-128 wants the file " CAIRN__SECRET_NAME, "files");
    goto out;
  }
  result = 0;
out:
  json_decref(paths);
  json_decref(disks);
  return result;
}

static int check_machines(const struct check *c, const json_t *manifest,
                          json_t *seen)
{
  size_t i;
  json_t *machine;
  char where[WHERE_MAX];
  json_array_foreach(json_object_get(manifest, "machines"), i, machine)
  {
    snprintf(where, sizeof where, "machines[%zu]", i + 1);
    if (check_members(c, machine, machine_members, ROLES_ALL, where) != 0)
      return -1;
    if (strcmp(text_of(machine, "result"), "ok") != 0)
      return refuse(c, "result must be \"ok\"", where);
    const char *id = text_of(machine, "VirtualMachineId");
    if (json_object_get(seen, id))
      return refuse(c, "VirtualMachineId occurs twice", where);
    if (set_add(seen, id, c->err) != 0)
      return -1;
  }
  json_array_foreach(json_object_get(manifest, "failed"), i, machine)
  {
    snprintf(where, sizeof where, "failed[%zu]", i + 1);
    const char *id = text_of(machine, "VirtualMachineId");
    if (!id || !cairn__guid_is_canonical(id))
      return refuse(c, "an object with a VirtualMachineId is wanted", where);
  }
  json_array_foreach(json_object_get(manifest, "removed"), i, machine)
  {
    snprintf(where, sizeof where, "removed[%zu]", i + 1);
    const char *id = text_of(machine, "VirtualMachineId");
    const char *disk = text_of(machine, "disk");
    if (!id || !cairn__guid_is_canonical(id) || !disk ||
        !cairn__is_disk_id(disk))
      return refuse(c, "an object with a VirtualMachineId and a disk is wanted",
                    where);
  }
  json_array_foreach(json_object_get(manifest, "warnings"), i, machine)
  {
    snprintf(where, sizeof where, "warnings[%zu]", i + 1);
    if (!json_is_string(machine))
      return refuse(c, "a string is wanted", where);
  }
  return 0;
}

static int check_shape(struct check *c, const json_t *manifest)
{
  /* the digests of files are judged by the algorithm, so it comes first */
  c->algorithm = text_of(manifest, "algorithm");
  c->digest_size = c->algorithm ? digest_size_of(c->algorithm) : 0;
  if (check_members(c, manifest, top_members, ROLES_ALL, "") != 0)
    return -1;
  if (!c->digest_size)
    return refuse(c,
                  "algorithm must be \"xxh3-128\", \"sha-256\" or "
                  "\"blake2b-256\"",
                  "");
  struct cairn_datetime time;
  const char *text = text_of(manifest, "time");
  if (cairn_datetime_parse(text, strlen(text), &time, NULL) != 0 ||
      time.kind != CAIRN_TIMESTAMP ||
      time.microseconds != integer_of(manifest, "unix_us"))
    return refuse(c, "time and unix_us must be the same instant", "");
  if (integer_of(manifest, "sequence") > CAIRN__SEQUENCE_MAX)
    return refuse(c, "sequence has more than 18 digits", "");
  json_t *machines = json_object();
  if (!machines)
    return cairn__fail_memory(c->err);
  int result = check_machines(c, manifest, machines);
  if (result == 0)
    result = check_files(c, manifest, machines);
  json_decref(machines);
  return result;
}

/* ---- writing ------------------------------------------------------------ */

static int write_new_file(const struct cairn_io *io, int dirfd,
                          const char *name, const void *bytes, size_t n,
                          const char *path, struct cairn_error *err)
{
  char printable[1024];
  cairn__printable(path, printable, sizeof printable);
  int fd = io->openat(io, dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                      0600);
  if (fd < 0)
    return cairn__fail_errno(err, errno, path, -1, "cannot create %s/%s",
                             printable, name);
  int result = cairn__io_write_full(io, fd, bytes, n, 0);
  if (result != 0)
    cairn__fail_errno(err, errno, path, 0, "cannot write %s/%s", printable,
                      name);
  if (result == 0 && (result = io->fsync(io, fd)) != 0)
    cairn__fail_errno(err, errno, path, -1, "cannot sync %s/%s", printable,
                      name);
  if (io->close(io, fd) != 0 && result == 0)
    result = cairn__fail_errno(err, errno, path, -1, "cannot close %s/%s",
                               printable, name);
  return result;
}

int cairn__manifest_write(const struct cairn_io *io, int dirfd,
                          json_t *manifest, const char *path,
                          struct cairn_error *err)
{
  struct check c = {path, NULL, 0, CAIRN_E_INTERNAL, err};
  const size_t flags = JSON_INDENT(2) | JSON_PRESERVE_ORDER;
  char digest[CAIRN__DIGEST_TEXT];
  if (json_object_get(manifest, "digest"))
    return refuse(&c, "the digest is there before it can be", "");
  if (check_shape(&c, manifest) != 0)
    return -1;
  if (strcmp(text_of(manifest, "format"), "cairn-export") != 0 ||
      integer_of(manifest, "version") != CAIRN__MANIFEST_VERSION)
    return refuse(&c, "format or version is not what is written here", "");
  size_t n = json_dumpb(manifest, NULL, 0, flags);
  if (n < 4)
    return cairn__fail_memory(err);
  if (n > CAIRN__MANIFEST_MAX - 256)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "the manifest would have %zu bytes; the limit is %u: "
                       "export fewer files in one collection",
                       n, CAIRN__MANIFEST_MAX);
  char *text = cairn__malloc(n + 256);
  if (!text)
    return cairn__fail_memory(err);
  int result = -1;
  if (json_dumpb(manifest, text, n, flags) != n) {
    cairn__fail_memory(err);
    goto out;
  }
  n -= 2; /* the closing "\n}" moves behind the digest */
  memcpy(text + n, ",\n", 2);
  n += 2;
  if (text_digest(c.algorithm, text, n, digest, err) != 0)
    goto out;
  int tail = snprintf(text + n, 256, "  \"digest\": \"%s\"\n}\n", digest);
  if (write_new_file(io, dirfd, CAIRN__MANIFEST_NAME, text, n + (size_t)tail,
                     path, err) != 0)
    goto out;
  if (json_object_set_new(manifest, "digest", json_string(digest)) != 0) {
    cairn__fail_memory(err);
    goto out;
  }
  result = 0;
out:
  cairn__free(text);
  return result;
}

/* ---- reading ------------------------------------------------------------ */

int cairn__small_file_read(const struct cairn_io *io, int dirfd,
                           const char *name, size_t max, const char *path,
                           char **out, size_t *size, struct cairn_error *err)
{
  char printable[1024], *text = NULL;
  struct stat st;
  int result = -1;
  cairn__printable(path, printable, sizeof printable);
  int fd = io->openat(io, dirfd, name,
                      O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0 && errno == ENOENT)
    return cairn__fail(err, CAIRN_E_NOT_AN_EXPORT, "%s holds no %s", printable,
                       name);
  if (fd < 0 && errno == ELOOP)
    return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                       "%s/%s is a symbolic link; a regular file is wanted",
                       printable, name);
  if (fd < 0)
    return cairn__fail_errno(err, errno, path, -1, "cannot open %s/%s",
                             printable, name);
  if (io->fstat(io, fd, &st) != 0) {
    cairn__fail_errno(err, errno, path, -1, "cannot look at %s/%s", printable,
                      name);
    goto out;
  }
  if (!S_ISREG(st.st_mode)) {
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT, "%s/%s is no regular file",
                printable, name);
    goto out;
  }
  if (st.st_size < 0 || (uint64_t)st.st_size > max) {
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                "%s/%s has %lld bytes; at most %zu are possible", printable,
                name, (long long)st.st_size, max);
    goto out;
  }
  *size = (size_t)st.st_size;
  text = cairn__malloc(*size + 1);
  if (!text) {
    cairn__fail_memory(err);
    goto out;
  }
  ssize_t n = cairn__io_read_full(io, fd, text, *size, 0);
  if (n < 0) {
    cairn__fail_errno(err, errno, path, 0, "cannot read %s/%s", printable,
                      name);
    goto out;
  }
  if ((size_t)n != *size) {
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                "%s/%s became shorter while it was read", printable, name);
    goto out;
  }
  text[*size] = 0;
  *out = text;
  text = NULL;
  result = 0;
out:
  io->close(io, fd);
  cairn__free(text);
  return result;
}

/* Splits the text before its last member. Returns the length of what the
 * digest covers, or 0 when the text does not end in a digest line. */
static size_t split(const char *text, size_t n, char algorithm[32])
{
  static const char head[] = "  \"digest\": \"", end[] = "\"\n}\n";
  const size_t head_size = sizeof head - 1, end_size = sizeof end - 1;
  if (n < end_size + head_size + 3 ||
      memcmp(text + n - end_size, end, end_size) != 0)
    return 0;
  const char *line = memrchr(text, '\n', n - end_size);
  if (!line)
    return 0;
  line++;
  size_t length = (size_t)(text + n - line);
  if (length < head_size + end_size || memcmp(line, head, head_size) != 0)
    return 0;
  const char *name = line + head_size;
  const char *colon = memchr(name, ':', length - head_size);
  if (!colon || colon - name > 31)
    return 0;
  memcpy(algorithm, name, (size_t)(colon - name));
  algorithm[colon - name] = 0;
  return (size_t)(line - text);
}

/* Whether the text is ours at all, however damaged. */
static int looks_like_manifest(const char *text, size_t n)
{
  static const char *const marks[] = {"\"cairn-export\"",
                                      "\"ReferencePointGroupId\"",
                                      "\"BaseReferencePointGroupId\""};
  for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
    if (memmem(text, n, marks[i], strlen(marks[i])))
      return 1;
  return 0;
}

/* NOT_AN_EXPORT for a file that only has the name, VERSION for one of a newer
 * version whose digest this one cannot judge, EXPORT_CORRUPT otherwise. */
static int refuse_unproved(const struct check *c, const char *text, size_t n,
                           const char *algorithm, const char *what)
{
  char printable[1024];
  cairn__printable(c->path, printable, sizeof printable);
  if (!looks_like_manifest(text, n))
    return cairn__fail(c->err, CAIRN_E_NOT_AN_EXPORT,
                       "%s/" CAIRN__MANIFEST_NAME " is not an export's",
                       printable);
  if (algorithm[0] && !digest_size_of(algorithm)) {
    json_t *value = cairn__json_load(text, n, 0, NULL);
    json_int_t version = integer_of(value, "version");
    json_decref(value);
    if (version > CAIRN__MANIFEST_VERSION)
      return cairn__fail(c->err, CAIRN_E_VERSION,
                         "%s/" CAIRN__MANIFEST_NAME
                         " has version %lld; up to %d is understood",
                         printable, (long long)version,
                         CAIRN__MANIFEST_VERSION);
  }
  return refuse(c, what, "");
}

static int parse(struct check *c, const char *text, size_t n, json_t **manifest)
{
  char algorithm[32] = "", digest[CAIRN__DIGEST_TEXT], tail[160], what[400];
  size_t covered = split(text, n, algorithm);
  if (!covered)
    return refuse_unproved(c, text, n, algorithm,
                           "the file does not end in its digest: it is cut "
                           "off or damaged");
  if (!digest_size_of(algorithm))
    return refuse_unproved(c, text, n, algorithm,
                           "the algorithm of its digest is unknown");
  if (text_digest(algorithm, text, covered, digest, c->err) != 0)
    return -1;
  snprintf(tail, sizeof tail, "  \"digest\": \"%s\"\n}\n", digest);
  if (n - covered != strlen(tail) ||
      memcmp(text + covered, tail, n - covered) != 0)
    return refuse_unproved(c, text, n, algorithm,
                           "its bytes differ from its digest");

  json_error_t je;
  json_t *value = cairn__json_load(text, n, JSON_REJECT_DUPLICATES, &je);
  if (!value && errno == ENOMEM)
    return cairn__fail_memory(c->err);
  if (!value) {
    snprintf(what, sizeof what, "line %d: %s", je.line, je.text);
    return refuse(c, what, "");
  }
  int result = -1;
  char printable[1024];
  const char *format = text_of(value, "format");
  const json_t *version = json_object_get(value, "version");
  cairn__printable(c->path, printable, sizeof printable);
  if (!format || strcmp(format, "cairn-export") != 0)
    cairn__fail(c->err, CAIRN_E_NOT_AN_EXPORT,
                "%s/" CAIRN__MANIFEST_NAME
                " is not an export's: \"format\" is not \"cairn-export\"",
                printable);
  else if (!json_is_integer(version) || json_integer_value(version) < 1)
    refuse(c, "member \"version\" must be an integer from 1", "");
  else if (json_integer_value(version) > CAIRN__MANIFEST_VERSION)
    cairn__fail(c->err, CAIRN_E_VERSION,
                "%s/" CAIRN__MANIFEST_NAME
                " has version %lld; up to %d is understood",
                printable, (long long)json_integer_value(version),
                CAIRN__MANIFEST_VERSION);
  else
    result = check_shape(c, value);
  if (result == 0 && strcmp(c->algorithm, algorithm) != 0)
    result = refuse(c, "algorithm is not that of its own digest", "");
  if (result == 0)
    *manifest = value;
  else
    json_decref(value);
  return result;
}

int cairn__manifest_read(const struct cairn_io *io, int dirfd, const char *path,
                         json_t **manifest, struct cairn_error *err)
{
  struct check c = {path, NULL, 0, CAIRN_E_EXPORT_CORRUPT, err};
  char *text;
  size_t n;
  if (cairn__small_file_read(io, dirfd, CAIRN__MANIFEST_NAME,
                             CAIRN__MANIFEST_MAX, path, &text, &n, err) != 0)
    return -1;
  int result = parse(&c, text, n, manifest);
  cairn__free(text);
  return result;
}

/* ---- the secret ---------------------------------------------------------- */

int cairn__secret_write(const struct cairn_io *io, int dirfd, const char *path,
                        const unsigned char secret[CAIRN__SECRET_SIZE],
                        struct cairn_error *err)
{
  return write_new_file(io, dirfd, CAIRN__SECRET_NAME, secret,
                        CAIRN__SECRET_SIZE, path, err);
}

int cairn__secret_publish(const struct cairn_io *io, int dirfd,
                          const char *path, const struct cairn__digester *d,
                          json_t *files, struct cairn_error *err)
{
  unsigned char leaf[CAIRN__DIGEST_MAX], root[CAIRN__DIGEST_MAX];
  char text[CAIRN__DIGEST_TEXT];
  if (d->algorithm != CAIRN__XXH3_128)
    return 0;
  if (cairn__secret_write(io, dirfd, path, d->secret, err) != 0)
    return -1;
  unsigned char *block = cairn__calloc(1, CAIRN__BLOCK);
  struct cairn__tree *tree = cairn__tree_new(d);
  int result = -1;
  if (block && tree) {
    memcpy(block, d->secret, CAIRN__SECRET_SIZE);
    cairn__digest_block(d, block, leaf);
    result = cairn__tree_append(tree, leaf, 1);
  }
  if (result == 0) {
    cairn__tree_root(tree, CAIRN__SECRET_SIZE, root);
    cairn__digest_format(d, root, text);
    result = json_array_append_new(
        files, json_pack("{s:s, s:s, s:i, s:s, s:n}", "role", "secret", "path",
                         CAIRN__SECRET_NAME, "size", (int)CAIRN__SECRET_SIZE,
                         "digest", text, "VirtualMachineId"));
  }
  cairn__tree_free(tree);
  cairn__free(block);
  return result == 0 ? 0 : cairn__fail_memory(err);
}

int cairn__secret_read(const struct cairn_io *io, int dirfd, const char *path,
                       unsigned char secret[CAIRN__SECRET_SIZE],
                       struct cairn_error *err)
{
  char *bytes;
  size_t n;
  struct cairn_error why;
  cairn__error_clear(&why);
  if (cairn__small_file_read(io, dirfd, CAIRN__SECRET_NAME, CAIRN__SECRET_SIZE,
                             path, &bytes, &n, &why) != 0) {
    /* the manifest promised it: missing is damage, not "no export" */
    if (why.id == CAIRN_E_NOT_AN_EXPORT)
      why.id = CAIRN_E_EXPORT_CORRUPT;
    if (err)
      *err = why;
    return -1;
  }
  int result = 0;
  if (n == CAIRN__SECRET_SIZE) {
    memcpy(secret, bytes, n);
  } else {
    char printable[1024];
    result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                         "%s/" CAIRN__SECRET_NAME " has %zu bytes, not %u",
                         cairn__printable(path, printable, sizeof printable), n,
                         CAIRN__SECRET_SIZE);
  }
  cairn__free(bytes);
  return result;
}
