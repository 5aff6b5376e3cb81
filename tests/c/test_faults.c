/* Every system call of an export fails in turn: with EIO, with ENOSPC from
 * there on, by moving a byte less, and by the end of the process.
 *
 * What must hold each time: the run says success if and only if the point is
 * published and verifies; a failure has a code and a message; nothing stays
 * open, no child stays; and the next run in the same directory succeeds and
 * leaves no work directory.
 *
 * CAIRN_LONG=1 visits every call; otherwise each sweep visits as many, spread
 * over the whole export, as a quarter of CAIRN_SECONDS (default 20) allows. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "error.h"
#include "export/kinds.h"
#include "io.h"
#include "run.h"

/* A process that ends before a call leaves threads that nobody has joined:
 * that is the point of it, not a leak. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
  return "report_thread_leaks=0";
}

static char top[64];
static char fullest[256]; /* the call that failed last, for messages */

static void shell(const char *fmt, ...)
{
  char command[2048];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(command, sizeof command, fmt, ap);
  va_end(ap);
  if (system(command) != 0)
    fail_msg("%s", command);
}

static double seconds_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double budget(void)
{
  const char *text = getenv("CAIRN_SECONDS");
  return text ? atof(text) : 20;
}

static unsigned long seed(void)
{
  const char *text = getenv("CAIRN_SEED");
  return text ? strtoul(text, NULL, 10) : 1;
}

static int open_descriptors(void)
{
  DIR *dir = opendir("/proc/self/fd");
  int n = 0;
  assert_non_null(dir);
  while (readdir(dir))
    n++;
  closedir(dir);
  return n;
}

/* Entries of the export directory: points, work directories, others. */
static void count(const char *directory, int *points, int *partial)
{
  DIR *dir = opendir(directory);
  struct dirent *entry;
  *points = *partial = 0;
  if (!dir)
    return;
  while ((entry = readdir(dir))) {
    if (strncmp(entry->d_name, ".partial-", 9) == 0)
      ++*partial;
    else if (entry->d_name[0] != '.')
      ++*points;
  }
  closedir(dir);
}

static json_t *specification(int with_qcow2, const char *target)
{
  char text[4096];
  json_error_t e;
  json_t *spec;
  snprintf(
      text, sizeof text,
      "{\"collection\":{\"CollectionId\":"
      "\"11111111-2222-3333-4444-555555555555\",\"machines\":["
      "{\"VirtualMachineId\":\"AAAAAAAA-0000-0000-0000-000000000001\","
      "\"disks\":[%s{\"id\":\"vdb\",\"path\":\"%s/b.raw\",\"format\":\"raw\"}],"
      "\"config\":[\"%s/a.xml\"]}]},\"directory\":\"%s/%s\"}",
      with_qcow2 ? "{\"id\":\"vda\",\"path\":\"TOP/a.qcow2\",\"format\":"
                   "\"qcow2\"},"
                 : "",
      top, top, top, target);
  char *at = strstr(text, "TOP/");
  if (at) {
    char rest[4096];
    snprintf(rest, sizeof rest, "%s", at + 3);
    snprintf(at, sizeof text - (size_t)(at - text), "%s%s", top, rest);
  }
  spec = json_loads(text, 0, &e);
  assert_non_null(spec);
  struct cairn_error err;
  if (cairn__kind_export.check(spec, &err))
    fail_msg("%s", err.message);
  return spec;
}

static struct cairn__run *new_run(void (*main)(struct cairn__run *),
                                  const struct cairn_io *io, json_t *spec)
{
  static unsigned serial;
  struct cairn__run *run = cairn__run_new(NULL);
  assert_non_null(run);
  serial++;
  run->main = main;
  run->io = io;
  run->clock = &cairn__system_clock;
  run->spec = spec;
  snprintf(run->job_uuid, sizeof run->job_uuid, "DDDDDDDD-0000-0000-0000-%012u",
           serial);
  snprintf(run->instance_id, sizeof run->instance_id, "Cairn:%s",
           run->job_uuid);
  snprintf(run->point_uuid, sizeof run->point_uuid,
           "BBBBBBBB-0000-0000-%04X-%012u", (unsigned)getpid() & 0xffff,
           serial);
  run->number = 1;
  run->epoch = 1;
  return run;
}

static int run_export(const struct cairn_io *io, int with_qcow2,
                      struct cairn_error *err)
{
  struct cairn__run *run =
      new_run(cairn__kind_export.main, io, specification(with_qcow2, "out"));
  cairn__run_here(run);
  *err = run->error;
  int id = run->error.id;
  cairn__run_release(run);
  return id;
}

static void expect_verified(void)
{
  char text[256];
  struct cairn_error err;
  snprintf(text, sizeof text, "{\"directory\":\"%s/out\"}", top);
  json_t *spec = json_loads(text, 0, NULL);
  assert_int_equal(cairn__kind_verify.check(spec, &err), 0);
  struct cairn__run *run =
      new_run(cairn__kind_verify.main, &cairn__system_io, spec);
  cairn__run_here(run);
  if (run->error.id)
    fail_msg("after a fault in %s: verify: %s", fullest, run->error.message);
  cairn__run_release(run);
}

static void expect_clean_run(int with_qcow2)
{
  struct cairn_error err;
  int points, partial;
  if (run_export(&cairn__system_io, with_qcow2, &err))
    fail_msg("after a fault in %s, the next run: %s", fullest, err.message);
  char out[128];
  snprintf(out, sizeof out, "%s/out", top);
  count(out, &points, &partial);
  assert_true(points >= 1);
  if (partial)
    fail_msg("after a fault in %s a work directory stayed", fullest);
}

static uint64_t calls_of_a_run(int with_qcow2)
{
  struct cairn__fault_io f;
  struct cairn_error err;
  shell("rm -rf %s/out && mkdir %s/out", top, top);
  cairn__fault_io_init(&f, 0, CAIRN__FAULT_NONE, 0);
  if (run_export(&f.io, with_qcow2, &err))
    fail_msg("%s", err.message);
  expect_verified();
  return f.calls;
}

/* Which calls a sweep visits: every stride-th from a random start, then the
 * next residue class, until all have been seen or the time is over. */
#define AT_LEAST 30u /* few of the calls can be short */

struct sweep {
  uint64_t calls, at, start, classes, stride;
  double deadline;
  unsigned visited;
};

static void sweep_start(struct sweep *s, uint64_t calls)
{
  int is_long = getenv("CAIRN_LONG") != NULL;
  s->calls = calls + 4; /* a few that are not reached */
  s->stride = is_long ? 1 : 7;
  s->deadline = is_long ? 1e300 : seconds_now() + budget() / 4;
  s->start = seed() % s->stride;
  s->classes = 1;
  s->at = 1 + s->start;
  s->visited = 0;
}

static int sweep_next(struct sweep *s)
{
  s->visited++;
  s->at += s->stride;
  if (s->at > s->calls) {
    if (s->classes++ == s->stride)
      return 0;
    s->start = (s->start + 1) % s->stride;
    s->at = 1 + s->start;
  }
  return seconds_now() < s->deadline || s->visited < AT_LEAST;
}

static void sweep_errors(int with_qcow2, int kind, int errnum, const char *what)
{
  uint64_t calls = calls_of_a_run(with_qcow2);
  int before = open_descriptors();
  struct sweep s;
  unsigned fired = 0;
  sweep_start(&s, calls);
  do {
    struct cairn__fault_io f;
    struct cairn_error err;
    int points, partial;
    char out[128];
    snprintf(out, sizeof out, "%s/out", top);
    shell("rm -rf %s && mkdir %s", out, out);
    cairn__fault_io_init(&f, s.at, kind, errnum);
    int id = run_export(&f.io, with_qcow2, &err);
    snprintf(fullest, sizeof fullest, "%s at call %llu (%s)", what,
             (unsigned long long)s.at,
             f.has_fired ? (const char *)f.fired_at : "not reached");
    count(out, &points, &partial);
    if (f.has_fired)
      fired++;
    if (id == CAIRN_OK) {
      if (points != 1)
        fail_msg("%s: success without a point", fullest);
      expect_verified();
    } else {
      if (points != 0)
        fail_msg("%s: failed (%s), yet published", fullest, err.message);
      if (!f.has_fired)
        fail_msg("%s: failed without a fault: %s", fullest, err.message);
      if (!err.message[0] || !cairn_error_info(id))
        fail_msg("%s: no clear error", fullest);
      if (kind == CAIRN__FAULT_SHORT)
        fail_msg("%s: a short transfer is not an error: %s", fullest,
                 err.message);
      if (kind == CAIRN__FAULT_ENOSPC_ON && id != CAIRN_E_DISK_FULL)
        fail_msg("%s: not reported as a full disk: %s", fullest, err.message);
    }
    if (open_descriptors() != before)
      fail_msg("%s: %d descriptors open, %d before", fullest,
               open_descriptors(), before);
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
      fail_msg("%s: a child process is left", fullest);
    if (partial || s.visited % 16 == 0)
      expect_clean_run(with_qcow2);
  } while (sweep_next(&s));
  printf("# ran %u faults of kind %s over the %llu calls of an export, %u "
         "reached (seed %lu)\n",
         s.visited, what, (unsigned long long)calls, fired, seed());
  assert_true(fired > 0);
}

static void reports_every_io_error(void **state)
{
  (void)state;
  sweep_errors(0, CAIRN__FAULT_ERRNO, EIO, "EIO");
}

static void reports_a_full_disk_at_every_call(void **state)
{
  (void)state;
  sweep_errors(0, CAIRN__FAULT_ENOSPC_ON, ENOSPC, "ENOSPC");
}

static void is_not_disturbed_by_short_transfers(void **state)
{
  (void)state;
  sweep_errors(0, CAIRN__FAULT_SHORT, 0, "short transfer");
}

static void reports_every_io_error_with_a_qcow2_source(void **state)
{
  (void)state;
  sweep_errors(1, CAIRN__FAULT_ERRNO, EIO, "EIO with qcow2");
}

/* The process ends before the n-th call, without a chance to clean up. */
static void sweep_kill(int with_qcow2)
{
  uint64_t calls = calls_of_a_run(with_qcow2);
  struct sweep s;
  unsigned killed = 0;
  char out[128];
  snprintf(out, sizeof out, "%s/out", top);
  sweep_start(&s, calls);
  do {
    int status, points, partial;
    shell("rm -rf %s && mkdir %s", out, out);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      struct cairn__fault_io f;
      struct cairn_error err;
      cairn__fault_io_init(&f, s.at, CAIRN__FAULT_KILL, 0);
      _exit(run_export(&f.io, with_qcow2, &err) ? 1 : 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    snprintf(fullest, sizeof fullest, "the end of the process at call %llu",
             (unsigned long long)s.at);
    if (WEXITSTATUS(status) == 137)
      killed++;
    else
      assert_int_equal(WEXITSTATUS(status), 0);
    count(out, &points, &partial);
    if (points)
      expect_verified(); /* published means whole */
    expect_clean_run(with_qcow2);
    expect_verified();
  } while (sweep_next(&s));
  printf("# ran %u ends of the process over the %llu calls of an export%s, %u "
         "reached (seed %lu)\n",
         s.visited, (unsigned long long)calls, with_qcow2 ? " with qcow2" : "",
         killed, seed());
  assert_true(killed > 0);
}

static void publishes_nothing_half_when_killed(void **state)
{
  (void)state;
  sweep_kill(0);
}

static void publishes_nothing_half_when_killed_with_a_qcow2_source(void **state)
{
  (void)state;
  sweep_kill(1);
}

static int set_up(void **state)
{
  (void)state;
  strcpy(top, "/tmp/cairn-faults-XXXXXX");
  if (!mkdtemp(top))
    return -1;
  shell(
      "cd %s && truncate -s 700001 b.raw && "
      "dd if=/dev/urandom of=b.raw bs=64k count=3 conv=notrunc "
      "status=none && dd if=/dev/urandom of=b.raw bs=1 seek=600000 count=5000 "
      "conv=notrunc status=none && printf '<domain/>\\n' >a.xml && "
      "qemu-img create -q -f qcow2 a.qcow2 1M && "
      "qemu-io -f qcow2 -c 'write -P 7 64k 200k' a.qcow2 >/dev/null",
      top);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  shell("rm -rf %s", top);
  return 0;
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reports_every_io_error),
      cmocka_unit_test(reports_a_full_disk_at_every_call),
      cmocka_unit_test(is_not_disturbed_by_short_transfers),
      cmocka_unit_test(publishes_nothing_half_when_killed),
      cmocka_unit_test(reports_every_io_error_with_a_qcow2_source),
      cmocka_unit_test(publishes_nothing_half_when_killed_with_a_qcow2_source),
  };
  printf("# seed %lu\n", seed());
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
