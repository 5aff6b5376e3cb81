/* Small exports for tests, built from sinks, maps and manifest directly, so
 * that they can have every form the format knows (also increments, which no
 * job writes yet) and every kind of damage. Everything fails the test. */
#ifndef TESTS_SMALL_EXPORT_H
#define TESTS_SMALL_EXPORT_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>
#include <uuid/uuid.h>

#include "cairn.h"
#include "digest.h"
#include "error.h"
#include "image.h"
#include "io.h"
#include "kinds.h"
#include "manifest.h"
#include "memory.h"
#include "run.h"

#define COLLECTION "6F1D0000-0000-4000-8000-00000000C011"
#define VM1        "0C5A0000-0000-4000-8000-000000000001"
#define VM2        "0C5A0000-0000-4000-8000-000000000002"
#define POINT1     "A0000000-0000-4000-8000-000000000001"
#define POINT2     "A0000000-0000-4000-8000-000000000002"
#define POINT3     "A0000000-0000-4000-8000-000000000003"
#define BLOCK      CAIRN__BLOCK

#define IO (&cairn__system_io)

/* ---- a directory for one test ------------------------------------------- */

static char scratch[64];

static inline int scratch_remove_one(const char *path, const struct stat *st,
                                     int type, struct FTW *ftw)
{
  (void)st;
  (void)type;
  (void)ftw;
  return remove(path);
}

/* In memory where the system has that: the tests flip many bits. */
static inline int scratch_make(void **state)
{
  (void)state;
  int has_shm = access("/dev/shm", W_OK) == 0;
  snprintf(scratch, sizeof scratch, "%s/cairn-test-XXXXXX",
           has_shm ? "/dev/shm" : "/tmp");
  return mkdtemp(scratch) ? 0 : -1;
}

static inline int scratch_remove(void **state)
{
  (void)state;
  return nftw(scratch, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline const char *in_scratch(const char *fmt, ...)
{
  static char paths[8][1024];
  static unsigned next;
  char *path = paths[next++ % 8], name[768];
  va_list args;
  va_start(args, fmt);
  vsnprintf(name, sizeof name, fmt, args);
  va_end(args);
  snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
  return path;
}

/* ---- building ----------------------------------------------------------- */

struct small {
  char directory[512]; /* the export directory */
  char path[600];      /* of the point */
  char id[37];
  int fd; /* of the point */
  struct cairn__digester d;
  json_t *manifest;
};

static struct cairn_error small_err;

#define MUST(call)                                                             \
  do {                                                                         \
    cairn__error_clear(&small_err);                                            \
    if ((call) != 0)                                                           \
      fail_msg("%s: %s", #call, small_err.message);                            \
  } while (0)

static inline const char *small_digest(const struct small *s,
                                       const unsigned char *digest)
{
  static char text[CAIRN__DIGEST_TEXT];
  cairn__digest_format(&s->d, digest, text);
  return text;
}

static inline void small_add(struct small *s, json_t *file)
{
  assert_non_null(file);
  json_array_append_new(json_object_get(s->manifest, "files"), file);
}

static inline int small_parent(struct small *s, const char *vm,
                               const char *role)
{
  char path[256];
  mkdirat(s->fd, vm, 0700);
  snprintf(path, sizeof path, "%s%s%s", vm, role ? "/" : "", role ? role : "");
  mkdirat(s->fd, path, 0700);
  int fd = openat(s->fd, path, O_RDONLY | O_DIRECTORY);
  assert_true(fd >= 0);
  return fd;
}

/* `like` (may be NULL): a point whose secret is taken: one of its chain. */
static inline void small_begin(struct small *s, const char *directory,
                               const char *id, int sequence,
                               const char *algorithm, const struct small *like)
{
  unsigned char secret[CAIRN__SECRET_SIZE];
  int number;
  memset(s, 0, sizeof *s);
  snprintf(s->directory, sizeof s->directory, "%s", directory);
  snprintf(s->path, sizeof s->path, "%s/%s", directory, id);
  snprintf(s->id, sizeof s->id, "%s", id);
  mkdir(directory, 0700);
  assert_int_equal(mkdir(s->path, 0700), 0);
  s->fd = open(s->path, O_RDONLY | O_DIRECTORY);
  assert_true(s->fd >= 0);
  MUST(cairn__digest_algorithm_parse(algorithm, &number, &small_err));
  MUST(cairn__digest_secret(secret, &small_err));
  cairn__digester_init(&s->d, number, like ? like->d.secret : secret);
  s->manifest = json_pack(
      "{s:s, s:i, s:s, s:s, s:s, s:s, s:n, s:s, s:i, s:i, s:i, s:i, s:s, s:I, "
      "s:s, s:[], s:[], s:[], s:[]}",
      "format", "cairn-export", "version", 1, "note", CAIRN__MANIFEST_NOTE,
      "CollectionId", COLLECTION, "ElementName", "web-farm",
      "ReferencePointGroupId", id, "BaseReferencePointGroupId", "InstanceID",
      "Cairn:B0000000-0000-4000-8000-000000000001", "run", 1, "epoch", 1,
      "sequence", sequence, "generation", 1, "time",
      "20250101000000.000000+000", "unix_us", (json_int_t)1735689600000000,
      "algorithm", algorithm, "machines", "files", "failed", "warnings");
  assert_non_null(s->manifest);
  if (number != CAIRN__XXH3_128)
    return;
  unsigned char root[CAIRN__DIGEST_MAX];
  MUST(cairn__secret_write(IO, s->fd, s->path, s->d.secret, &small_err));
  int fd = openat(s->fd, CAIRN__SECRET_NAME, O_RDONLY);
  MUST(cairn__tree_file(IO, fd, CAIRN__SECRET_SIZE, &s->d, NULL, NULL, root,
                        &small_err));
  close(fd);
  small_add(s, json_pack("{s:s, s:s, s:i, s:s, s:n}", "role", "secret", "path",
                         CAIRN__SECRET_NAME, "size", CAIRN__SECRET_SIZE,
                         "digest", small_digest(s, root), "VirtualMachineId"));
}

static inline void small_machine(struct small *s, const char *vm,
                                 const char *name)
{
  json_array_append_new(json_object_get(s->manifest, "machines"),
                        json_pack("{s:s, s:s, s:s}", "VirtualMachineId", vm,
                                  "ElementName", name, "result", "ok"));
}

static inline uint64_t small_blocks(uint64_t length)
{
  return (length + BLOCK - 1) / BLOCK;
}

/* Content is given in whole blocks, zero behind `length`. With `base` (whose
 * disk holds `below`, base_blocks of it) an increment is written. */
static inline void small_disk(struct small *s, const char *vm, const char *id,
                              const char *format, uint64_t length,
                              const unsigned char *content,
                              const struct small *base,
                              const unsigned char *below, uint64_t base_blocks)
{
  uint64_t size = (length + 511) / 512 * 512, blocks = small_blocks(length);
  char name[80], map_name[80], backing[256] = "", path[200];
  unsigned char root[CAIRN__DIGEST_MAX], map_digest[CAIRN__DIGEST_MAX];
  const json_t *lower = NULL;
  uuid_t point, base_point;
  int parent = small_parent(s, vm, NULL);
  snprintf(name, sizeof name, "%s.%s", id, format);
  snprintf(map_name, sizeof map_name, "%s.digests", id);
  uuid_parse(s->id, point);
  struct cairn__sink_options o = {.io = IO,
                                  .dirfd = parent,
                                  .name = name,
                                  .path = name,
                                  .length = length,
                                  .virtual_size = size,
                                  .digester = &s->d,
                                  .point = point};
  if (base) {
    size_t i;
    json_t *f;
    json_array_foreach(json_object_get(base->manifest, "files"), i, f)
    {
      const char *disk = json_string_value(json_object_get(f, "disk"));
      const char *its =
          json_string_value(json_object_get(f, "VirtualMachineId"));
      if (disk && strcmp(disk, id) == 0 && strcmp(its, vm) == 0 &&
          json_object_get(f, "content"))
        lower = f;
    }
    assert_non_null(lower);
    uuid_parse(base->id, base_point);
    snprintf(backing, sizeof backing, "../../%s/%s", base->id,
             json_string_value(json_object_get(lower, "path")));
    o.backing_name = backing;
    o.backing_format = json_string_value(json_object_get(lower, "format"));
    o.base = base_point;
  }
  struct cairn__sink *sink;
  struct cairn__map_writer *map;
  struct cairn__file_result result;
  uint64_t map_size;
  if (strcmp(format, "raw") == 0)
    MUST(cairn__sink_open_raw(&o, &sink, &small_err));
  else
    MUST(cairn__sink_open_qcow2(&o, &sink, &small_err));
  MUST(cairn__map_create(IO, parent, map_name, NULL, &s->d, size, length, point,
                         &map, &small_err));
  unsigned char *buf = cairn__malloc_aligned(BLOCK);
  for (uint64_t i = 0; i < blocks; i++) {
    unsigned char digest[CAIRN__DIGEST_MAX];
    uint64_t position;
    memcpy(buf, content + i * BLOCK, BLOCK);
    int is_zero = cairn__digest_block(&s->d, buf, digest);
    uint8_t state = is_zero ? CAIRN__UNCHANGED : CAIRN__DATA;
    if (base && i < base_blocks)
      state = memcmp(buf, below + i * BLOCK, BLOCK) == 0 ? CAIRN__UNCHANGED
              : is_zero                                  ? CAIRN__ZERO
                                                         : CAIRN__DATA;
    MUST(cairn__map_append(map, i, digest, 1, &small_err));
    MUST(sink->ops->reserve(sink, i, 1, &state, digest, &position, &small_err));
    if (state == CAIRN__DATA)
      MUST(sink->ops->write(sink, i, 1, &state, &position, buf, &small_err));
  }
  cairn__free_aligned(buf);
  MUST(sink->ops->finish(sink, &result, &small_err));
  MUST(cairn__map_finish(map, root, map_digest, &map_size, &small_err));
  close(parent);
  snprintf(path, sizeof path, "%s/%s", vm, name);
  json_t *file = json_pack(
      "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I}", "role",
      base ? "log" : "disk", "path", path, "size", (json_int_t)result.size,
      "digest", small_digest(s, result.digest), "VirtualMachineId", vm, "disk",
      id, "format", format, "length", (json_int_t)length, "virtual_size",
      (json_int_t)size);
  json_object_set_new(file, "content", json_string(small_digest(s, root)));
  json_object_set_new(file, "base", base ? json_string(base->id) : json_null());
  if (base)
    json_object_set(file, "base_content", json_object_get(lower, "content"));
  json_t *rest = json_pack(
      "{s:s, s:n, s:s, s:s, s:I, s:I, s:i, s:i, s:s, s:s}", "tracker",
      base ? "digest" : "full", "fallback", "source", "/images/disk",
      "source_format", "raw", "bytes_read", (json_int_t)length, "bytes_written",
      (json_int_t)length, "bytes_zero", 0, "bytes_skipped", 0, "time_started",
      "20250101000000.000000+000", "time_ended", "20250101000001.000000+000");
  json_object_update(file, rest);
  json_decref(rest);
  small_add(s, file);
  snprintf(path, sizeof path, "%s/%s", vm, map_name);
  small_add(s, json_pack("{s:s, s:s, s:I, s:s, s:s, s:s}", "role", "digests",
                         "path", path, "size", (json_int_t)map_size, "digest",
                         small_digest(s, map_digest), "VirtualMachineId", vm,
                         "disk", id));
}

static inline void small_file(struct small *s, const char *vm, const char *role,
                              const char *name, const void *bytes, size_t n,
                              int mode, int64_t mtime_ns)
{
  unsigned char root[CAIRN__DIGEST_MAX];
  char path[300];
  int parent = small_parent(s, vm, role);
  int fd = openat(parent, name, O_RDWR | O_CREAT | O_EXCL, 0600);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, bytes, n), (ssize_t)n);
  MUST(cairn__tree_file(IO, fd, n, &s->d, NULL, NULL, root, &small_err));
  close(fd);
  close(parent);
  snprintf(path, sizeof path, "%s/%s/%s", vm, role, name);
  small_add(s, json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:i, s:I}", "role",
                         role, "path", path, "size", (json_int_t)n, "digest",
                         small_digest(s, root), "VirtualMachineId", vm,
                         "source", "/etc/machine", "mode", mode, "mtime_ns",
                         (json_int_t)mtime_ns));
}

/* The entry of a file, by path. */
static inline json_t *small_entry(struct small *s, const char *path)
{
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(s->manifest, "files"), i, file)
  {
    if (strcmp(json_string_value(json_object_get(file, "path")), path) == 0)
      return file;
  }
  fail_msg("no file %s", path);
  return NULL;
}

/* Makes the manifest agree with a file that was changed on purpose. */
static inline void small_resign(struct small *s, const char *path)
{
  unsigned char root[CAIRN__DIGEST_MAX];
  struct stat st;
  json_t *file = small_entry(s, path);
  int fd = openat(s->fd, path, O_RDONLY);
  assert_true(fd >= 0);
  assert_int_equal(fstat(fd, &st), 0);
  MUST(cairn__tree_file(IO, fd, (uint64_t)st.st_size, &s->d, NULL, NULL, root,
                        &small_err));
  close(fd);
  json_object_set_new(file, "size", json_integer(st.st_size));
  json_object_set_new(file, "digest", json_string(small_digest(s, root)));
}

/* Changes bytes of a file of the point. */
static inline void small_poke(struct small *s, const char *path,
                              uint64_t offset, const void *bytes, size_t n)
{
  int fd = openat(s->fd, path, O_WRONLY);
  assert_true(fd >= 0);
  assert_int_equal(pwrite(fd, bytes, n, (off_t)offset), (ssize_t)n);
  close(fd);
}

static inline void small_publish(struct small *s)
{
  MUST(cairn__manifest_write(IO, s->fd, s->manifest, s->path, &small_err));
}

static inline void small_end(struct small *s)
{
  close(s->fd);
  json_decref(s->manifest);
}

/* ---- content ------------------------------------------------------------ */

/* Blocks of bytes that depend on the seed; '.' in the pattern is a zero block,
 * any other letter one of its own content. */
static inline unsigned char *small_content(const char *pattern, uint64_t length)
{
  size_t n = strlen(pattern);
  assert_true(n >= small_blocks(length));
  unsigned char *content = calloc(n ? n : 1, BLOCK);
  for (size_t i = 0; i < n; i++) {
    uint32_t x = (uint32_t)pattern[i] * 2654435761u + 1;
    for (size_t k = 0; pattern[i] != '.' && k < BLOCK; k++) {
      x = x * 1664525u + 1013904223u;
      content[i * BLOCK + k] = (unsigned char)(x >> 24);
    }
  }
  if (n * BLOCK > length)
    memset(content + length, 0, n * BLOCK - length);
  return content;
}

/* ---- running a kind ----------------------------------------------------- */

/* Checks the specification (taken) and runs it here. The caller releases. */
static inline struct cairn__run *small_run(const struct cairn__kind *kind,
                                           json_t *spec)
{
  struct cairn__run *run = cairn__run_new(NULL);
  assert_non_null(run);
  assert_non_null(spec);
  MUST(kind->check(spec, &small_err));
  run->spec = spec;
  run->main = kind->main;
  cairn__run_here(run);
  return run;
}

static inline void small_flip(const char *path, uint64_t bit)
{
  unsigned char c;
  int fd = open(path, O_RDWR);
  assert_true(fd >= 0);
  assert_int_equal(pread(fd, &c, 1, (off_t)(bit / 8)), 1);
  c ^= (unsigned char)(1u << bit % 8);
  assert_int_equal(pwrite(fd, &c, 1, (off_t)(bit / 8)), 1);
  close(fd);
}

static inline uint64_t small_size(const char *path)
{
  struct stat st;
  if (stat(path, &st) != 0)
    fail_msg("%s: %s", path, strerror(errno));
  return (uint64_t)st.st_size;
}

static inline void small_shell(const char *fmt, ...)
{
  char command[4096];
  va_list args;
  va_start(args, fmt);
  vsnprintf(command, sizeof command, fmt, args);
  va_end(args);
  if (system(command) != 0)
    fail_msg("failed: %s", command);
}

#endif
