/* Chains of small exports whose content is known, for tests of what rewrites
 * and removes points; and the judges of what became of them. */
#ifndef TESTS_SMALL_CHAIN_H
#define TESTS_SMALL_CHAIN_H

#include <dirent.h>
#include <time.h>

#include "datetime.h"
#include "small_export.h"

#define POINTS_MAX 210

/* A chain of points of one collection: what each holds is known. */
struct chain {
  char directory[512];
  size_t count;
  struct small points[POINTS_MAX];
  uint64_t length[POINTS_MAX];
  unsigned char *content[POINTS_MAX];
};

static char top[64]; /* on a file system that programs are given */
static struct chain chain;

__attribute__((format(printf, 1, 2))) static inline void
shell_quiet(const char *fmt, ...)
{
  char command[4096];
  va_list args;
  int n;
  va_start(args, fmt);
  strcpy(command, "{ ");
  n = vsnprintf(command + 2, sizeof command - 32, fmt, args);
  va_end(args);
  strcpy(command + 2 + n, "\n} >/dev/null");
  if (system(command) != 0)
    fail_msg("failed: %s", command);
}

static inline const char *id_of(size_t i)
{
  static char ids[4][37];
  static unsigned next;
  char *id = ids[next++ % 4];
  snprintf(id, sizeof ids[0], "A0000000-0000-4000-8000-%012u",
           (unsigned)(i + 1) % 1000000u);
  return id;
}

static inline void chain_begin(const char *directory)
{
  memset(&chain, 0, sizeof chain);
  shell_quiet("rm -rf %s/*", top); /* what a failed test has left */
  snprintf(chain.directory, sizeof chain.directory, "%s", directory);
}

/* The next point, based on `base` (SIZE_MAX: a full): one disk with this
 * content (taken) and a configuration file. `time`: a CIM datetime, or NULL. */
static inline void chain_add_on(size_t base, uint64_t length,
                                unsigned char *content, const char *format,
                                const char *algorithm, const char *time)
{
  size_t i = chain.count++;
  struct small *s = &chain.points[i];
  struct cairn_datetime t;
  chain.length[i] = length;
  chain.content[i] = content;
  small_begin(s, chain.directory, id_of(i), (int)i + 1, algorithm,
              i ? &chain.points[0] : NULL);
  if (base != SIZE_MAX)
    json_object_set_new(s->manifest, "BaseReferencePointGroupId",
                        json_string(id_of(base)));
  if (time) {
    MUST(cairn_datetime_parse(time, strlen(time), &t, &small_err));
    json_object_set_new(s->manifest, "time", json_string(time));
    json_object_set_new(s->manifest, "unix_us", json_integer(t.microseconds));
  }
  small_machine(s, VM1, "web1");
  small_file(s, VM1, "config", "web1.xml", id_of(i), 36, 0640, 0);
  if (base == SIZE_MAX)
    small_disk(s, VM1, "vda", format, length, content, NULL, NULL, 0);
  else
    small_disk(s, VM1, "vda", "qcow2", length, content, &chain.points[base],
               chain.content[base], small_blocks(chain.length[base]));
  small_publish(s);
}

static inline void chain_add(uint64_t length, unsigned char *content,
                             const char *format, const char *algorithm)
{
  chain_add_on(chain.count ? chain.count - 1 : SIZE_MAX, length, content,
               format, algorithm, NULL);
}

static inline void chain_pattern(const char *pattern)
{
  uint64_t length = strlen(pattern) * BLOCK;
  chain_add(length, small_content(pattern, length), "qcow2", "xxh3-128");
}

static inline void chain_end(void)
{
  for (size_t i = 0; i < chain.count; i++) {
    small_end(&chain.points[i]);
    free(chain.content[i]);
  }
  chain.count = 0;
  shell_quiet("rm -rf %s", chain.directory);
}

static inline const char *image_of(size_t i, const char *directory)
{
  static char paths[4][700];
  static unsigned next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s/" VM1 "/vda.qcow2", directory,
           id_of(i));
  return path;
}

/* ---- running ------------------------------------------------------------- */

static inline struct cairn__run *
new_run(const struct cairn__kind *kind, const struct cairn_io *io, json_t *spec)
{
  static unsigned serial;
  struct cairn__run *run = cairn__run_new(NULL);
  assert_non_null(run);
  assert_non_null(spec);
  MUST(kind->check(spec, &small_err));
  run->spec = spec;
  run->main = kind->main;
  run->io = io;
  run->number = 1;
  run->epoch = 1;
  snprintf(run->job_uuid, sizeof run->job_uuid, "DDDDDDDD-0000-0000-0000-%012u",
           ++serial);
  return run;
}

/* The error's number; the report in *report when asked for. */
static inline int run_merge_io(const struct cairn_io *io, json_t *spec,
                               json_t **report)
{
  struct cairn__run *run = new_run(&cairn__kind_merge, io, spec);
  int id;
  cairn__run_here(run);
  small_err = run->error;
  id = run->error.id;
  if (report)
    *report = json_incref(run->report);
  cairn__run_release(run);
  return id;
}

static inline json_t *spec_of(size_t point, const char *into, const char *to)
{
  return json_pack("{s:s, s:s, s:s*, s:s*}", "directory", chain.directory,
                   "point", id_of(point), "into", into, "to", to);
}

static inline void must_merge(size_t point, const char *into, const char *to)
{
  if (run_merge_io(IO, spec_of(point, into, to), NULL) != CAIRN_OK)
    fail_msg("merge: %s", small_err.message);
}

static inline void must_fail(int id, const char *what, json_t *spec)
{
  if (run_merge_io(IO, spec, NULL) != id || !strstr(small_err.message, what))
    fail_msg("wanted %s (%d), got %d: %s", what, id, small_err.id,
             small_err.message);
}

static inline void must_verify(const char *directory)
{
  struct cairn__run *run = new_run(&cairn__kind_verify, IO,
                                   json_pack("{s:s}", "directory", directory));
  cairn__run_here(run);
  if (run->error.id)
    fail_msg("verify %s: %s", directory, run->error.message);
  cairn__run_release(run);
}

/* Point i, through its chain, is what it was: by QEMU. */
static inline void must_hold(size_t i, const char *directory)
{
  uint64_t size = (chain.length[i] + 511) / 512 * 512;
  char shadow[128];
  FILE *f;
  snprintf(shadow, sizeof shadow, "%s/shadow.raw", top);
  f = fopen(shadow, "w");
  assert_non_null(f);
  assert_int_equal(fwrite(chain.content[i], 1, size, f), size);
  assert_int_equal(fclose(f), 0);
  shell_quiet("qemu-img convert -f qcow2 -O raw %s %s/back.raw && "
              "cmp %s %s/back.raw",
              image_of(i, directory), top, shadow, top);
}

static inline json_t *manifest_of(size_t i, const char *directory)
{
  char path[700];
  json_t *manifest;
  int fd;
  snprintf(path, sizeof path, "%s/%s", directory, id_of(i));
  fd = open(path, O_RDONLY | O_DIRECTORY);
  assert_true(fd >= 0);
  MUST(cairn__manifest_read(IO, fd, path, &manifest, &small_err));
  close(fd);
  return manifest;
}

static inline json_t *image_entry(json_t *manifest)
{
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(manifest, "files"), i, file)
  {
    if (json_object_get(file, "content"))
      return file;
  }
  fail_msg("no disk");
  return NULL;
}

static inline void must_be(size_t i, const char *directory, const char *role,
                           const char *base, int generation)
{
  json_t *manifest = manifest_of(i, directory), *file = image_entry(manifest);
  const char *top_base =
      json_string_value(json_object_get(manifest, "BaseReferencePointGroupId"));
  assert_string_equal(json_string_value(json_object_get(file, "role")), role);
  assert_int_equal(json_integer_value(json_object_get(manifest, "generation")),
                   generation);
  assert_int_equal(json_integer_value(json_object_get(manifest, "sequence")),
                   (json_int_t)i + 1);
  if (base) {
    assert_string_equal(json_string_value(json_object_get(file, "base")), base);
    assert_string_equal(top_base, base);
  } else {
    assert_null(top_base);
    assert_true(json_is_null(json_object_get(file, "base")));
  }
  json_decref(manifest);
}

/* Nothing but points, the lock file, and no work directory. */
static inline void must_be_clean(const char *directory)
{
  DIR *dir = opendir(directory);
  struct dirent *e;
  assert_non_null(dir);
  while ((e = readdir(dir))) {
    if (e->d_name[0] == '.' && strcmp(e->d_name, ".") != 0 &&
        strcmp(e->d_name, "..") != 0 && strcmp(e->d_name, ".cairn.lock") != 0)
      fail_msg("%s is left", e->d_name);
  }
  closedir(dir);
}

static inline char *in_top(const char *name)
{
  static char paths[4][128];
  static unsigned next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", top, name);
  return path;
}

/* ---- time, descriptors, chance ------------------------------------------- */

static inline double seconds_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline int open_descriptors(void)
{
  DIR *dir = opendir("/proc/self/fd");
  int n = 0;
  assert_non_null(dir);
  while (readdir(dir))
    n++;
  closedir(dir);
  return n;
}

static uint64_t random_state;

static inline uint64_t random_below(uint64_t n)
{
  uint64_t x = (random_state += UINT64_C(0x9e3779b97f4a7c15));
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (x ^ (x >> 31)) % n;
}

/* The content of the next point: blocks written, zeroed, left; the end moved,
 * also down and up again in the same step. */
static inline unsigned char *random_next_content(size_t base, uint64_t *length)
{
  int i = base != SIZE_MAX;
  uint64_t old = i ? chain.length[base] : 0, kept = old;
  unsigned char *content;
  *length = i && random_below(3) ? old : 1 + random_below(20 * BLOCK);
  if (*length < kept)
    kept = *length;
  if (random_below(6) == 0)
    kept = random_below(kept + 1);
  content = calloc(small_blocks(*length) + 1, BLOCK);
  assert_non_null(content);
  if (kept)
    memcpy(content, chain.content[base], kept);
  for (uint64_t b = 0; b < small_blocks(*length); b++) {
    uint64_t what = random_below(i ? 8 : 2);
    if (what == 0)
      memset(content + b * BLOCK, 0, BLOCK);
    else if (what == 1)
      memset(content + b * BLOCK, 1 + (int)random_below(255), BLOCK);
    else if (what == 2)
      content[b * BLOCK + random_below(BLOCK)] ^= 0x40;
  }
  memset(content + *length, 0, small_blocks(*length) * BLOCK - *length);
  return content;
}

/* ---- around all tests ------------------------------------------------------
 */

static inline int set_up(void **state)
{
  (void)state;
  strcpy(top, access("/dev/shm", W_OK) == 0 ? "/dev/shm/cairn-merge-XXXXXX"
                                            : "/tmp/cairn-merge-XXXXXX");
  return mkdtemp(top) ? 0 : -1;
}

static inline int tear_down(void **state)
{
  (void)state;
  return nftw(top, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
