/* How fast the store acknowledges, in the directory that is given:
 *
 *   build/bench/bench_store DIRECTORY [FIGURE...]     default: all of them
 *
 * F is the median of an append of 4 KiB and fdatasync in that directory, which
 * no commit can beat. The producer works live: specifications are formatted and
 * parsed within the time. Each line: what, rate, and its ratio to 1/F where
 * that says something.
 *
 *   one        one caller: submit, wait for the commit
 *   many       64 callers, each with one submit outstanding; p99 of its wait
 *   bulk       1,000 specifications of 300 bytes a call, two calls outstanding
 *   life       submit, start, end of tasks that do nothing, all of it durable
 *   due        10,000 jobs due at one moment: when the last of them has started
 *   resident   a million jobs with a calendar: memory of each, and how long
 *              it takes to open them again
 *
 * Beside other programs: tests/bench/store.py. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cairn.h"

#define CALLERS  64
#define BULK     1000
#define DUE      10000
#define RESIDENT 1000000
#define WAITS    "{\"code\":\"none\"}" /* for a body that nobody has */

static char path[4096];

static double now(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_value(const void *a, const void *b)
{
  double x = *(const double *)a, y = *(const double *)b;

  return (x > y) - (x < y);
}

static void fail(const char *what, const struct cairn_error *err)
{
  fprintf(stderr, "store: %s: %s\n", what, err->message);
  exit(1);
}

static double measure_f(const char *directory)
{
  static double times[501];
  char block[4096] = {1}, name[4200];
  int fd;

  snprintf(name, sizeof name, "%s/bench-f", directory);
  fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
  for (int i = 0; i < 501; i++) {
    double begin = now();

    if (write(fd, block, sizeof block) != sizeof block || fdatasync(fd) != 0) {
      perror(name);
      exit(1);
    }
    times[i] = now() - begin;
  }
  close(fd);
  unlink(name);
  qsort(times, 501, sizeof times[0], by_value);
  return times[250];
}

static cairn_engine *open_new(int is_new)
{
  struct cairn_engine_options options = {
      .size = sizeof options,
      .store = path,
      .history_limit = 1000,
      .queues_json = "{\"default\":{\"concurrency\":1000}}"};
  struct cairn_error err;
  cairn_engine *e;
  char name[4200];

  if (is_new) {
    static const char *const ends[] = {"", "-wal", "-lock"};

    for (int i = 0; i < 3; i++) {
      snprintf(name, sizeof name, "%s%s", path, ends[i]);
      unlink(name);
    }
  }
  if (cairn_engine_open(&options, &e, &err) != 0)
    fail("open", &err);
  return e;
}

/* About 300 bytes. */
static int format(char *out, size_t size, unsigned n, const char *run)
{
  return snprintf(
      out, size,
      "{\"Name\":\"job %u\",\"Description\":\"a payload of the usual size, as "
      "a site would have it: what it is for, whom to ask, which machines it is "
      "about, and since when\",\"ElementName\":\"web-farm\",\"Priority\":%u,"
      "\"Notify\":\"ops\",\"RecoveryAction\":\"Re-run Job\","
      "\"run\":%s}",
      n, n % 100, run);
}

static void drain(cairn_engine *e)
{
  struct cairn_event events[256];

  cairn_engine_step(e);
  while (cairn_engine_next_events(e, events, 256) > 0)
    ;
}

static void one(double least)
{
  cairn_engine *e = open_new(1);
  struct cairn_error err;
  char spec[512];
  cairn_job job;
  double begin = now();
  unsigned n = 0;

  for (; now() - begin < 2; n++) {
    int length = format(spec, sizeof spec, n, WAITS);

    if (cairn_submit(e, spec, (size_t)length, &job, &err) != 0 ||
        cairn_engine_flush(e, -1, &err) != 0)
      fail("one", &err);
    if (n % 64 == 0)
      drain(e);
  }
  begin = (now() - begin) / n;
  printf("one       %9.0f jobs/s   %.2f x 1/F\n", 1 / begin, least / begin);
  cairn_engine_free(e);
}

static void many(void)
{
  cairn_engine *e = open_new(1);
  struct cairn_error err;
  uint64_t turn[CALLERS] = {0};
  double since[CALLERS], begin = now(), *waits;
  size_t count = 0, room = 4000000;
  char spec[512];
  cairn_job job;
  unsigned n = 0;

  waits = malloc(room * sizeof *waits);
  if (!waits)
    return;
  while (now() - begin < 3) {
    uint64_t durable = cairn_engine_durable(e);

    for (int i = 0; i < CALLERS; i++) {
      int length;

      if (turn[i] > durable)
        continue;
      if (turn[i] > 0 && count < room)
        waits[count++] = now() - since[i];
      length = format(spec, sizeof spec, n++, WAITS);
      since[i] = now();
      if (cairn_submit(e, spec, (size_t)length, &job, &err) != 0)
        fail("many", &err);
      turn[i] = cairn_engine_turn(e);
    }
    drain(e);
    if (cairn_engine_durable(e) == durable)
      cairn_engine_wait(e, 1000);
  }
  begin = now() - begin;
  qsort(waits, count, sizeof waits[0], by_value);
  printf("many      %9.0f jobs/s   p99 %.2f ms\n", (double)count / begin,
         waits[count * 99 / 100] * 1e3);
  free(waits);
  cairn_engine_free(e);
}

static size_t format_bulk(char *text, size_t size, unsigned first,
                          const char *run)
{
  size_t length = 0;

  text[length++] = '[';
  for (unsigned i = 0; i < BULK; i++) {
    if (i > 0)
      text[length++] = ',';
    length += (size_t)format(text + length, size - length, first + i, run);
  }
  text[length++] = ']';
  return length;
}

static void bulk(void)
{
  static char text[BULK * 600];
  static cairn_job jobs[BULK];
  cairn_engine *e = open_new(1);
  struct cairn_error err;
  double begin = now();
  uint64_t before = 0;
  unsigned n = 0;

  for (; now() - begin < 3; n += BULK) {
    size_t length = format_bulk(text, sizeof text, n, WAITS);

    if (cairn_submit_all(e, text, length, jobs, BULK, &err) != 0)
      fail("bulk", &err);
    drain(e);
    while (cairn_engine_durable(e) < before)
      cairn_engine_wait(e, 1000);
    before = cairn_engine_turn(e);
  }
  if (cairn_engine_flush(e, -1, &err) != 0)
    fail("bulk", &err);
  printf("bulk      %9.0f jobs/s\n", n / (now() - begin));
  cairn_engine_free(e);
}

static void life(void)
{
  static char text[BULK * 64];
  static cairn_job jobs[BULK];
  cairn_engine *e = open_new(1);
  struct cairn_event events[256];
  struct cairn_error err;
  double begin = now();
  unsigned submitted = 0, ended = 0;
  size_t length = 0;

  text[length++] = '[';
  for (unsigned i = 0; i < BULK; i++)
    length += (size_t)sprintf(text + length, "%s{\"Name\":\"x\",\"run\":true}",
                              i ? "," : "");
  text[length++] = ']';
  while (now() - begin < 3) {
    if (submitted - ended < 2 * BULK) {
      if (cairn_submit_all(e, text, length, jobs, BULK, &err) != 0)
        fail("life", &err);
      submitted += BULK;
    }
    if (!cairn_engine_step(e))
      cairn_engine_wait(e, 1000);
    for (size_t k; (k = cairn_engine_next_events(e, events, 256)) > 0;) {
      for (size_t i = 0; i < k; i++) {
        if (events[i].type == CAIRN_EVENT_TASK_START)
          cairn_task_finish(e, events[i].job, NULL, NULL);
        else if (events[i].type == CAIRN_EVENT_STATE &&
                 events[i].new_state == CAIRN_COMPLETED) {
          cairn_job_delete(e, events[i].job, NULL);
          ended++;
        }
      }
    }
  }
  printf("life      %9.0f jobs/s\n", ended / (now() - begin));
  cairn_engine_free(e);
}

static void due(void)
{
  cairn_engine *e = open_new(1);
  struct cairn_event events[256];
  struct cairn_error err;
  time_t moment = time(NULL) + 3;
  char when[32], spec[200];
  int64_t last = 0;
  unsigned started = 0;
  cairn_job job;
  struct tm tm;

  gmtime_r(&moment, &tm);
  strftime(when, sizeof when, "%Y%m%d%H%M%S.000000+000", &tm);
  for (unsigned n = 0; n < DUE; n++) {
    int length = snprintf(spec, sizeof spec,
                          "{\"Name\":\"job %u\",\"run\":true,"
                          "\"ScheduledStartTime\":\"%s\"}",
                          n, when);

    if (cairn_submit(e, spec, (size_t)length, &job, &err) != 0)
      fail("due", &err);
  }
  if (cairn_engine_flush(e, -1, &err) != 0)
    fail("due", &err);
  while (started < DUE) {
    cairn_engine_wait(e, 100000);
    for (size_t k; (k = cairn_engine_next_events(e, events, 256)) > 0;) {
      for (size_t i = 0; i < k; i++) {
        if (events[i].type != CAIRN_EVENT_TASK_START)
          continue;
        started++;
        last = cairn_engine_now(e);
        cairn_task_finish(e, events[i].job, NULL, NULL);
      }
    }
  }
  printf("due       %9u jobs, the last started after %.3f s\n", started,
         (double)(last - (int64_t)moment * 1000000) / 1e6);
  cairn_engine_free(e);
}

static void resident(void)
{
  static char text[BULK * 600];
  static cairn_job jobs[BULK];
  cairn_engine *e = open_new(1);
  struct cairn_error err;
  struct mallinfo2 before;
  double begin;
  unsigned n;

  for (n = 0; n < RESIDENT; n += BULK) {
    size_t length = format_bulk(text, sizeof text, n,
                                "true,\"JobRunTimes\":0,"
                                "\"zone\":\"Europe/Berlin\","
                                "\"RunStartInterval\":"
                                "\"00000000020000.000000:000\"");

    if (cairn_submit_all(e, text, length, jobs, BULK, &err) != 0)
      fail("resident", &err);
    drain(e);
  }
  if (cairn_engine_flush(e, -1, &err) != 0)
    fail("resident", &err);
  cairn_engine_free(e);
  before = mallinfo2();
  begin = now();
  e = open_new(0);
  begin = now() - begin;
  printf("resident  %9u jobs, opened in %.2f s, %.0f bytes a job\n", n, begin,
         (double)(mallinfo2().uordblks - before.uordblks) / n);
  cairn_engine_free(e);
}

static double f;

static void one_with_f(void)
{
  one(f);
}

int main(int argc, char **argv)
{
  static const struct {
    const char *name;
    void (*run)(void);
  } figures[] = {{"one", one_with_f}, {"many", many}, {"bulk", bulk},
                 {"life", life},      {"due", due},   {"resident", resident}};

  if (argc < 2) {
    fprintf(stderr,
            "usage: %s DIRECTORY [one|many|bulk|life|due|resident]...\n",
            argv[0]);
    return 2;
  }
  snprintf(path, sizeof path, "%s/bench.db", argv[1]);
  f = measure_f(argv[1]);
  printf("F         %9.3f ms, append and fdatasync of 4 KiB\n", f * 1e3);
  for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
    int is_wanted = argc == 2;

    for (int j = 2; j < argc; j++)
      is_wanted |= strcmp(argv[j], figures[i].name) == 0;
    if (is_wanted)
      figures[i].run();
  }
  unlink(path);
  return 0;
}
