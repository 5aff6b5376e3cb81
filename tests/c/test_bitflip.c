/* Every bit of a small export, made by a real export run, is flipped in turn;
 * verify must find each one, in padding and tables too, and must find nothing
 * before and after.
 *
 * All bits are visited with CAIRN_LONG=1 (some ten million: a good while).
 * Otherwise one bit of every byte of the small files, and in the large ones one
 * random bit of one random byte in each stretch of as many bytes as the time
 * allows (CAIRN_SECONDS, default 20, is for all of this program); CAIRN_SEED
 * repeats a choice. */
#include "small_export.h"

#include <sys/wait.h>
#include <time.h>

#define WORKERS    2
#define SMALL_FILE 8192u

static char export_path[80]; /* the export directory */
static char point_path[160];

struct victim {
  char path[512];
  uint64_t size;
};
static struct victim victims[32];
static size_t victim_count;

static double seconds_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void write_file(const char *path, const void *bytes, size_t n)
{
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static int add_victim(const char *path, const struct stat *st, int type,
                      struct FTW *ftw)
{
  (void)ftw;
  if (type == FTW_F) {
    struct victim *v = &victims[victim_count++];
    snprintf(v->path, sizeof v->path, "%s", path);
    v->size = (uint64_t)st->st_size;
  }
  return 0;
}

static int group_setup(void **state)
{
  if (scratch_make(state) != 0)
    return -1;
  unsigned char *qcow2 = small_content("a.b", 3 * BLOCK - 1000);
  unsigned char *raw = small_content(".c", BLOCK + 3000);
  write_file(in_scratch("vda.raw"), qcow2, 3 * BLOCK - 1000);
  write_file(in_scratch("vdb.raw"), raw, BLOCK + 3000);
  write_file(in_scratch("web.xml"), "<domain type='kvm'/>\n", 21);
  write_file(in_scratch("empty"), "", 0);
  free(qcow2);
  free(raw);
  snprintf(export_path, sizeof export_path, "%s/out", scratch);
  static const char *const formats[] = {"qcow2", "raw"};
  for (int i = 0; i < 2; i++) {
    json_t *spec = json_pack(
        "{s:{s:s, s:[{s:s, s:s, s:[{s:s, s:s, s:s}], s:[s], s:[s]}]}, s:s, "
        "s:s}",
        "collection", "CollectionId", COLLECTION, "machines",
        "VirtualMachineId", VM1, "ElementName", "web1", "disks", "id", "vda",
        "path", in_scratch(i ? "vdb.raw" : "vda.raw"), "format", "raw",
        "config", in_scratch("web.xml"), "guest_state", in_scratch("empty"),
        "directory", in_scratch(i ? "out2" : "out"), "format", formats[i]);
    struct cairn__run *run = cairn__run_new(NULL);
    MUST(cairn__kind_export.check(spec, &small_err));
    run->spec = spec;
    run->main = cairn__kind_export.main;
    snprintf(run->point_uuid, sizeof run->point_uuid, "%s",
             i ? POINT2 : POINT1);
    snprintf(run->job_uuid, sizeof run->job_uuid, "%s", POINT3);
    snprintf(run->instance_id, sizeof run->instance_id, "Cairn:%s", POINT3);
    cairn__run_here(run);
    if (run->error.id != CAIRN_OK)
      fail_msg("export: %s", run->error.message);
    cairn__run_release(run);
  }
  return 0;
}

static int choose(const char *directory, const char *id)
{
  snprintf(export_path, sizeof export_path, "%s/%s", scratch, directory);
  snprintf(point_path, sizeof point_path, "%s/%s", export_path, id);
  victim_count = 0;
  return nftw(point_path, add_victim, 16, FTW_PHYS);
}

static int verify(char *message, size_t size)
{
  struct cairn__run *run = small_run(
      &cairn__kind_verify, json_pack("{s:s}", "directory", export_path));
  int id = run->error.id;
  snprintf(message, size, "%s", run->error.message);
  cairn__run_release(run);
  return id;
}

static unsigned long flips;

static void flip_one(const struct victim *v, uint64_t bit)
{
  char message[CAIRN_MESSAGE_MAX];
  small_flip(v->path, bit);
  int id = verify(message, sizeof message);
  small_flip(v->path, bit);
  flips++;
  if (id != CAIRN_E_EXPORT_CORRUPT)
    fail_msg("%s: bit %d of byte %llu: %s", v->path, (int)(bit % 8),
             (unsigned long long)(bit / 8),
             id == CAIRN_OK ? "not found" : message);
}

/* One of WORKERS processes; each has a copy of the point of its own. */
static void flip_part(unsigned worker, unsigned seed, double seconds)
{
  char copy[80];
  snprintf(copy, sizeof copy, "%s/part%u", scratch, worker);
  small_shell("mkdir %s && cp -a %s %s/", copy, point_path, copy);
  for (size_t i = 0; i < victim_count; i++) {
    char rest[400];
    snprintf(rest, sizeof rest, "%s", victims[i].path + strlen(export_path));
    snprintf(victims[i].path, sizeof victims[i].path, "%s%s", copy, rest);
  }
  snprintf(export_path, sizeof export_path, "%s", copy);

  int is_long = getenv("CAIRN_LONG") != NULL;
  uint64_t large = 0;
  double end = seconds_now() + seconds, before = seconds_now();
  for (size_t i = 0; i < victim_count; i++) {
    const struct victim *v = &victims[i];
    if (v->size > SMALL_FILE && !is_long) {
      large += v->size;
      continue;
    }
    for (uint64_t byte = worker; byte < v->size; byte += WORKERS)
      for (unsigned bit = 0; bit < 8; bit++)
        if (is_long || bit == (byte * 5 + seed) % 8)
          flip_one(v, byte * 8 + bit);
  }
  if (is_long || !large)
    return;
  double each = 0;
  uint64_t done = 0, step = 4096;
  for (int round = 0; seconds_now() < end; round++) {
    before = seconds_now();
    done = 0;
    for (size_t i = 0; i < victim_count; i++) {
      const struct victim *v = &victims[i];
      if (v->size <= SMALL_FILE)
        continue;
      for (uint64_t at = worker * step; at < v->size; at += WORKERS * step) {
        uint64_t room = v->size - at < step ? v->size - at : step;
        uint64_t byte = at + (uint64_t)rand_r(&seed) % room;
        flip_one(v, byte * 8 + (uint64_t)rand_r(&seed) % 8);
        done++;
      }
    }
    each = (seconds_now() - before) / (double)done;
    if (round > 0)
      break;
    /* the second round takes what is left of the time */
    double left = end - seconds_now();
    double wanted = (double)large / (left > 0.1 ? left / each * WORKERS : 1);
    step = wanted < 1 ? 1 : wanted > 4096 ? 4096 : (uint64_t)wanted + 1;
  }
}

static void flip_all(const char *directory, const char *id)
{
  char message[CAIRN_MESSAGE_MAX];
  const char *text = getenv("CAIRN_SEED");
  const char *budget = getenv("CAIRN_SECONDS");
  unsigned seed =
      text ? (unsigned)strtoul(text, NULL, 10) : (unsigned)time(NULL);
  double seconds = (budget ? atof(budget) : 20) / 2;
  pid_t children[WORKERS];
  assert_int_equal(choose(directory, id), 0);
  if (verify(message, sizeof message) != CAIRN_OK)
    fail_msg("before: %s", message);
  print_message("seed %u\n", seed);
  fflush(NULL);
  for (unsigned i = 0; i < WORKERS; i++) {
    children[i] = fork();
    assert_true(children[i] >= 0);
    if (children[i] == 0) {
      /* a failure must end the child, not return to the runner */
      setenv("CMOCKA_TEST_ABORT", "1", 1);
      flip_part(i, seed + i, seconds);
      if (verify(message, sizeof message) != CAIRN_OK)
        abort();
      printf("worker %u: %lu bits\n", i, flips);
      fflush(stdout);
      _exit(0);
    }
  }
  int failed = 0;
  for (unsigned i = 0; i < WORKERS; i++) {
    int status;
    assert_int_equal(waitpid(children[i], &status, 0), children[i]);
    failed |= status != 0;
  }
  small_shell("rm -rf %s/part*", scratch);
  if (failed)
    fail_msg("a flipped bit was not found (seed %u; see above)", seed);
}

static void finds_every_bit_of_a_qcow2_export(void **state)
{
  (void)state;
  flip_all("out", POINT1);
}

static void finds_every_bit_of_a_raw_export(void **state)
{
  (void)state;
  flip_all("out2", POINT2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finds_every_bit_of_a_qcow2_export),
      cmocka_unit_test(finds_every_bit_of_a_raw_export),
  };
  return cmocka_run_group_tests(tests, group_setup, scratch_remove);
}
