/* How fast the state machine is: submits, whole empty lives of jobs through
 * the public interface, and raw changes of state through the one writer.
 *
 *   state_rate [JOBS]      default 1000000
 *
 * Prints one line a figure: name, number, unit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "cairn.h"
#include "engine.h"

enum { BATCH = 256 };

static double seconds(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void report(const char *name, double count, double time)
{
  printf("%-40s %12.0f /s\n", name, count / time);
}

static cairn_engine *open_engine(void)
{
  struct cairn_engine_options options = {
      .size = sizeof options,
      .queues_json = "{\"default\":{\"concurrency\":256}}"};
  struct cairn_error err;
  cairn_engine *e;

  if (cairn_engine_open(&options, &e, &err) != 0) {
    fprintf(stderr, "state_rate: %s\n", err.message);
    exit(1);
  }
  return e;
}

static const char spec[] =
    "{\"Name\":\"nightly\",\"Priority\":10,\"Notify\":\"ops\",\"run\":true}";

static void submit_all(cairn_engine *e, long jobs)
{
  static struct cairn_event events[BATCH];
  double start = seconds();
  cairn_job job;

  for (long i = 0; i < jobs; i++) {
    if (cairn_submit(e, spec, sizeof spec - 1, &job, NULL) != 0)
      abort();
    if (i % BATCH == 0)
      cairn_engine_next_events(e, events, BATCH);
  }
  while (cairn_engine_next_events(e, events, BATCH) > 0)
    continue;
  report("submit", (double)jobs, seconds() - start);
}

/* New, Starting, Running, Shutting Down, Completed: four changes a job. */
static void live_all(cairn_engine *e, long jobs)
{
  static struct cairn_event events[BATCH];
  double start = seconds(), time;
  long finished = 0, changes = 0;

  while (finished < jobs) {
    size_t n;

    cairn_engine_step(e);
    while ((n = cairn_engine_next_events(e, events, BATCH)) > 0) {
      for (size_t i = 0; i < n; i++) {
        changes += events[i].type == CAIRN_EVENT_STATE;
        if (events[i].type == CAIRN_EVENT_TASK_START) {
          if (cairn_task_finish(e, events[i].job, NULL, NULL) != 0)
            abort();
          finished++;
        }
      }
    }
  }
  time = seconds() - start;
  report("whole lives (start, finish, events)", (double)jobs, time);
  report("  changes of state in them", (double)changes, time);
}

static void change_states(cairn_engine *e, long changes)
{
  static const int cycle[] = {CAIRN_SUSPENDED, CAIRN_STARTING, CAIRN_RUNNING};
  static struct cairn_event events[BATCH];
  struct cairn__job *j;
  double start;
  cairn_job job;

  if (cairn_submit(e, spec, sizeof spec - 1, &job, NULL) != 0)
    abort();
  cairn_engine_step(e);
  j = cairn__engine_job(e, job, NULL);
  while (cairn_engine_next_events(e, events, BATCH) > 0)
    continue;
  start = seconds();
  for (long i = 0; i < changes; i++) {
    if (cairn__events_reserve(e, 1) != 0)
      abort();
    cairn__job_set_state(e, j, cycle[i % 3]);
    if (i % BATCH == BATCH - 1)
      cairn_engine_next_events(e, events, BATCH);
  }
  report("raw changes of state (writer, event)", (double)changes,
         seconds() - start);
}

int main(int argc, char **argv)
{
  long jobs = argc > 1 ? strtol(argv[1], NULL, 10) : 1000000;
  struct rusage usage;
  cairn_engine *e;
  double start;

  if (jobs < 1) {
    fprintf(stderr, "usage: state_rate [JOBS]\n");
    return 2;
  }
  e = open_engine();
  submit_all(e, jobs);
  getrusage(RUSAGE_SELF, &usage);
  printf("%-40s %12.0f bytes\n", "memory of a waiting job",
         (double)usage.ru_maxrss * 1024 / (double)jobs);
  live_all(e, jobs);
  change_states(e, 3 * jobs);
  start = seconds();
  cairn_engine_free(e);
  report("free", (double)jobs, seconds() - start);
  return 0;
}
