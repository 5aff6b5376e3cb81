/* The engine through its public interface: jobs in every reachable state
 * against a literal copy of the request table, time on a virtual clock, and
 * threads played by kinds of work that do what a test tells them. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "asleep.h"
#include "cairn.h"
#include "engine.h"
#include "error.h"
#include "jobs.h"

#define SECOND INT64_C(1000000)
#define LIMIT  20000000 /* microseconds that anything outside may take */
#define START  INT64_C(1735689600000000)

/* ---- work that does as it is told ---- */

static _Atomic uint64_t told_bytes; /* "progress" mode: how far to be */
static _Atomic int is_released;     /* "deaf" mode: whether to end */
static _Atomic int deaf_running;
static _Atomic int in_directory, most_in_directory;

static int fake_check(json_t *spec, struct cairn_error *err)
{
  if (!json_is_string(json_object_get(spec, "mode")))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "mode must be a string");
  return 0;
}

static void fake_wait(void)
{
  poll(NULL, 0, 1);
}

static void fake_loop(struct cairn__run *run, int is_progress)
{
  cairn__run_enter(run);
  while (cairn__run_gate(run, &run->error) == 0) {
    if (is_progress) {
      uint64_t n = atomic_load(&told_bytes);

      atomic_store(&run->bytes_total, 1000);
      atomic_store(&run->bytes_done, n);
      if (n == 1000)
        break;
    }
    fake_wait();
  }
  cairn__run_leave(run);
}

static void fake_main(struct cairn__run *run)
{
  const char *mode = json_string_value(json_object_get(run->spec, "mode"));
  json_int_t warnings =
      json_integer_value(json_object_get(run->spec, "warnings"));
  int here = atomic_fetch_add(&in_directory, 1) + 1;

  if (here > atomic_load(&most_in_directory))
    atomic_store(&most_in_directory, here);
  for (json_int_t i = 0; i < warnings; i++)
    cairn__run_warn(run, "warning %d", (int)i + 1);
  if (strcmp(mode, "fail") == 0) {
    cairn__fail(&run->error, CAIRN_E_IO_ERROR, "cannot read the disk");
    cairn__error_set_path(&run->error, "/images/a.raw", 65536);
    cairn__error_locate(&run->error, "web1", "vda");
    run->error.system_errno = 5;
  } else if (strcmp(mode, "loop") == 0) {
    fake_loop(run, 0);
  } else if (strcmp(mode, "progress") == 0) {
    fake_loop(run, 1);
  } else if (strcmp(mode, "deaf") == 0) {
    atomic_fetch_add(&deaf_running, 1);
    while (!atomic_load(&is_released))
      fake_wait();
    atomic_fetch_sub(&deaf_running, 1);
  }
  run->report = json_pack(
      "{s:s, s:{s:[s], s:[s], s:[], s:[], s:[]}}", "point", run->point_uuid,
      "properties", "ExportedDisks", "0C5A/vda", "ExportedLogFilePaths",
      "/export/x/vda.qcow2", "ExportedConfigFilePaths",
      "ExportedRuntimeFilePaths", "ExportedGuestStateFilePaths");
  if (strcmp(mode, "late") == 0) { /* what fails has been published */
    json_object_set_new(run->report, "ReferencePointGroupId",
                        json_string(run->point_uuid));
    cairn__fail(&run->error, CAIRN_E_IO_ERROR, "too late");
  }
  atomic_fetch_sub(&in_directory, 1);
}

static int fake_plan(const struct cairn_io *io, const json_t *spec,
                     json_t **plan, struct cairn_error *err)
{
  (void)io;
  (void)err;
  *plan = json_pack("{s:O}", "mode", json_object_get(spec, "mode"));
  return 0;
}

static const struct cairn__kind fake_verify = {.name = "verify",
                                               .check = fake_check,
                                               .main = fake_main,
                                               .plan = fake_plan};
static const struct cairn__kind fake_export = {.name = "export",
                                               .check = fake_check,
                                               .main = fake_main,
                                               .plan = fake_plan};

/* ---- helpers ---- */

static cairn_engine *open_with(int is_vendor, const char *queues)
{
  struct cairn_engine_options options = {.size = sizeof options,
                                         .is_virtual_clock = 1,
                                         .virtual_start = START,
                                         .is_vendor_codes = is_vendor,
                                         .queues_json = queues,
                                         .owner = "tester"};
  struct cairn_error err;
  cairn_engine *e = NULL;

  atomic_store(&told_bytes, 0);
  atomic_store(&is_released, 0);
  atomic_store(&in_directory, 0);
  atomic_store(&most_in_directory, 0);
  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  return e;
}

static cairn_engine *open_engine(void)
{
  return open_with(0, NULL);
}

static void step(cairn_engine *e)
{
  struct cairn_event events[64];

  while (cairn_engine_step(e))
    cairn_engine_next_events(e, events, 64);
}

static void advance(cairn_engine *e, int64_t us)
{
  assert_int_equal(cairn_engine_advance(e, us, NULL), 0);
  step(e);
}

static const char *text(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_STRING);
  return v.as.string;
}

static int is_null(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  return v.kind == CAIRN_VALUE_NULL;
}

static struct cairn_datetime datetime(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_DATETIME);
  return v.as.datetime;
}

/* Lets threads and programs work until the job is in the state. */
static void await(cairn_engine *e, cairn_job job, int state)
{
  struct cairn_event events[64];

  for (int64_t waited = 0; state_of(e, job) != state; waited += 1000) {
    if (waited > LIMIT)
      fail_msg("state %d instead of %d", state_of(e, job), state);
    cairn_engine_wait(e, 1000);
    cairn_engine_next_events(e, events, 64);
  }
}

static uint32_t request(cairn_engine *e, cairn_job job, int what)
{
  struct cairn_error err;

  return cairn_job_request_state_change(e, job, what, NULL, &err);
}

static int set(cairn_engine *e, cairn_job job, const char *name,
               struct cairn_value value, struct cairn_error *err)
{
  struct cairn_change change = {.name = name, .value = value};

  return cairn_job_set(e, job, &change, 1, err);
}

static struct cairn_value a_string(const char *s)
{
  return (struct cairn_value){
      .kind = CAIRN_VALUE_STRING, .count = strlen(s), .as.string = s};
}

static struct cairn_value an_integer(int64_t n)
{
  return (struct cairn_value){.kind = CAIRN_VALUE_INTEGER, .as.integer = n};
}

static struct cairn_value a_boolean(int b)
{
  return (struct cairn_value){.kind = CAIRN_VALUE_BOOLEAN, .as.boolean = b};
}

static const struct cairn_value nothing = {.kind = CAIRN_VALUE_NULL};

static void set_well(cairn_engine *e, cairn_job job, const char *name,
                     struct cairn_value value)
{
  struct cairn_error err;

  if (set(e, job, name, value, &err) != 0)
    fail_msg("set %s: %s", name, err.message);
}

static struct cairn_datetime seconds(int64_t n)
{
  return (struct cairn_datetime){
      .kind = CAIRN_INTERVAL, .microseconds = n * SECOND, .precision = 20};
}

static json_t *get_json(char *owned)
{
  json_t *json = json_loads(owned, JSON_DECODE_ANY, NULL);

  assert_non_null(json);
  cairn_free(owned);
  return json;
}

static json_t *errors_of(cairn_engine *e, cairn_job job, int is_ex)
{
  char *out;

  assert_int_equal(cairn_job_get_errors(e, job, is_ex, &out, NULL), 0);
  return get_json(out);
}

/* ---- jobs in every state ---- */

#define TASK         "{\"Name\":\"task\",\"run\":true}"
#define THREAD(mode) "{\"Name\":\"thread\",\"verify\":{\"mode\":\"" mode "\"}}"

static cairn_job a_new(cairn_engine *e)
{
  return submit(e, TASK);
}

static cairn_job a_running_task(cairn_engine *e)
{
  cairn_job job = a_new(e);

  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  return job;
}

static cairn_job a_running_thread(cairn_engine *e)
{
  cairn_job job = submit(e, THREAD("loop"));

  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  return job;
}

static cairn_job a_suspending_task(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 4096);
  step(e);
  return job;
}

static cairn_job a_held(cairn_engine *e)
{
  cairn_job job = a_new(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 0);
  return job;
}

static cairn_job a_parked_task(cairn_engine *e)
{
  cairn_job job = a_suspending_task(e);

  assert_int_equal(cairn_task_parked(e, job, NULL), 0);
  return job;
}

static cairn_job a_parked_thread(cairn_engine *e)
{
  cairn_job job = a_running_thread(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 4096);
  await(e, job, CAIRN_SUSPENDED);
  return job;
}

static cairn_job a_waiting(cairn_engine *e)
{
  cairn_job job = submit(e, "{\"Name\":\"w\",\"JobRunTimes\":0,\"RunDay\":1,"
                            "\"run\":true}");

  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
  step(e);
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  return job;
}

static cairn_job a_terminating_task(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_TERMINATE), 4096);
  return job;
}

static cairn_job a_deaf_thread(cairn_engine *e)
{
  cairn_job job = submit(e, THREAD("deaf"));

  step(e);
  for (int i = 0; atomic_load(&deaf_running) == 0; i++) {
    assert_true(i < 20000);
    fake_wait();
  }
  return job;
}

static cairn_job a_terminating_thread(cairn_engine *e)
{
  cairn_job job = a_deaf_thread(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_TERMINATE), 4096);
  return job;
}

static cairn_job a_killing_thread(cairn_engine *e)
{
  cairn_job job = a_deaf_thread(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 4096);
  return job;
}

static cairn_job an_asking(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(cairn_task_ask(e, job, "go on?", "[\"yes\",\"no\"]", NULL),
                   0);
  return job;
}

static cairn_job a_completed(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  return job;
}

static cairn_job a_warned(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(cairn_task_warn(e, job, "mind the gap", NULL), 0);
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  return job;
}

static cairn_job a_terminated(cairn_engine *e)
{
  cairn_job job = a_new(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_TERMINATE), 0);
  return job;
}

static cairn_job a_killed(cairn_engine *e)
{
  cairn_job job = a_running_task(e);

  assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 0);
  return job;
}

static cairn_job a_failed(cairn_engine *e)
{
  cairn_job job = submit(e, THREAD("fail"));

  await(e, job, CAIRN_EXCEPTION);
  return job;
}

/* The table of the job model once more, with what this engine's kinds of job
 * make of the cells that depend on them: Service is not supported (1), Kill of
 * a working thread takes a moment (4096), Suspend of a waiting job holds it,
 * Terminate while something else is under way is Busy (4099). */
static const struct situation {
  const char *name;
  cairn_job (*make)(cairn_engine *e);
  int state;
  const char *phase;
  struct {
    uint32_t code;
    int then;    /* the state right after the request */
  } requests[5]; /* Start, Suspend, Terminate, Kill, Service */
} situations[] = {
    /* clang-format off */
    /*                             state phase     Start      Suspend    Terminate  Kill       Service */
    {"New", a_new,                     2, "queued",  {{4096, 2}, {0, 5},    {0, 8},    {0, 9},    {1, 2}}},
    {"Running task", a_running_task,   4, "running", {{4097, 4}, {4096, 4}, {4096, 6}, {0, 9},    {1, 4}}},
    {"Running thread",
     a_running_thread,                 4, "running", {{4097, 4}, {4096, 4}, {4096, 6}, {4096, 6}, {1, 4}}},
    {"Running, to be suspended",
     a_suspending_task,                4, "running", {{4097, 4}, {4096, 4}, {4099, 4}, {0, 9},    {1, 4}}},
    {"Suspended, never ran", a_held,   5, "held",    {{4096, 5}, {4097, 5}, {4096, 8}, {0, 9},    {1, 5}}},
    {"Suspended task", a_parked_task,  5, "held",    {{4096, 5}, {4097, 5}, {4096, 6}, {0, 9},    {1, 5}}},
    {"Suspended thread",
     a_parked_thread,                  5, "held",    {{4096, 5}, {4097, 5}, {4096, 6}, {0, 9},    {1, 5}}},
    {"Suspended, waiting", a_waiting,  5, "waiting", {{4096, 5}, {0, 5},    {4096, 8}, {0, 9},    {1, 5}}},
    {"Shutting Down task",
     a_terminating_task,               6, "running", {{4097, 6}, {4097, 6}, {4096, 6}, {0, 9}, {4097, 6}}},
    {"Shutting Down thread",
     a_terminating_thread,             6, "running", {{4097, 6}, {4097, 6}, {4096, 6}, {0, 9}, {4097, 6}}},
    {"Shutting Down, being killed",
     a_killing_thread,                 6, "running", {{4097, 6}, {4097, 6}, {4099, 6}, {0, 9}, {4097, 6}}},
    {"Query Pending", an_asking,      12, "running", {{4097, 12}, {4097, 12}, {4096, 6}, {0, 9}, {4097, 12}}},
    {"Completed", a_completed,         7, "done",    {{4097, 7}, {4097, 7}, {4097, 7}, {4097, 7}, {4097, 7}}},
    {"Completed With Warnings",
     a_warned,                     32768, "done",    {{4097, 32768}, {4097, 32768}, {4097, 32768}, {4097, 32768}, {4097, 32768}}},
    {"Terminated", a_terminated,       8, "done",    {{4097, 8}, {4097, 8}, {4097, 8}, {4097, 8}, {4097, 8}}},
    {"Killed", a_killed,               9, "done",    {{4097, 9}, {4097, 9}, {4097, 9}, {4097, 9}, {4097, 9}}},
    {"Exception", a_failed,           10, "done",    {{4097, 10}, {4097, 10}, {4097, 10}, {4097, 10}, {4097, 10}}},
    /* clang-format on */
};
enum { SITUATIONS = sizeof situations / sizeof situations[0] };

/* Frees the engine once its threads are gone, so that they neither outlive a
 * test nor count as leaks. */
static void free_engine(cairn_engine *e)
{
  atomic_store(&is_released, 1);
  cairn_engine_close(e, CAIRN_CLOSE_KILL);
  for (int i = 0; !cairn_engine_is_idle(e); i++) {
    struct cairn_event events[64];

    assert_true(i < 20000);
    cairn_engine_wait(e, 1000);
    cairn_engine_next_events(e, events, 64);
  }
  cairn_engine_free(e);
}

static void every_request_in_every_state_follows_the_table(void **state)
{
  (void)state;
  for (int i = 0; i < SITUATIONS; i++) {
    const struct situation *s = &situations[i];

    for (int r = 0; r < 5; r++) {
      cairn_engine *e = open_engine();
      cairn_job job = s->make(e);
      struct cairn_datetime before, after;
      struct cairn_error err;
      uint32_t code;

      assert_int_equal(state_of(e, job), s->state);
      assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), s->phase);
      assert_int_equal(cairn_engine_advance(e, 1, NULL), 0);
      before = datetime(e, job, CAIRN_PROPERTY_TimeOfLastStateChange);
      code = cairn_job_request_state_change(e, job, r + 2, NULL, &err);
      if (code != s->requests[r].code ||
          state_of(e, job) != s->requests[r].then)
        fail_msg("%s, request %d: code %u (not %u), state %d (not %d)", s->name,
                 r + 2, code, s->requests[r].code, state_of(e, job),
                 s->requests[r].then);
      after = datetime(e, job, CAIRN_PROPERTY_TimeOfLastStateChange);
      /* Refused or still to be done: the time stands. */
      assert_int_equal(after.microseconds != before.microseconds ||
                           after.kind != before.kind,
                       s->requests[r].then != s->state);
      if (code != 0 && code != 4096) {
        assert_int_not_equal(err.id, CAIRN_OK);
        assert_non_null(strstr(err.message, "Cairn:"));
      } else {
        assert_int_equal(err.id, CAIRN_OK);
      }
      free_engine(e);
    }
  }
}

static void what_a_request_started_comes_true(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job;

  (void)state;
  /* Start: New, held, parked task, parked thread */
  job = a_new(e);
  request(e, job, CAIRN_REQUEST_START);
  await(e, job, CAIRN_RUNNING);
  cairn_task_finish(e, job, NULL, NULL);

  job = a_held(e);
  request(e, job, CAIRN_REQUEST_START);
  await(e, job, CAIRN_RUNNING);
  cairn_task_finish(e, job, NULL, NULL);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);

  job = a_parked_task(e);
  request(e, job, CAIRN_REQUEST_START);
  await(e, job, CAIRN_RUNNING);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 1);
  cairn_task_finish(e, job, NULL, NULL);

  job = a_parked_thread(e);
  request(e, job, CAIRN_REQUEST_START);
  await(e, job, CAIRN_RUNNING);
  /* Terminate: a working thread, and one that is parked */
  request(e, job, CAIRN_REQUEST_TERMINATE);
  await(e, job, CAIRN_TERMINATED);
  job = a_parked_thread(e);
  request(e, job, CAIRN_REQUEST_TERMINATE);
  await(e, job, CAIRN_TERMINATED);
  /* Kill of a thread that listens */
  job = a_running_thread(e);
  assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 4096);
  await(e, job, CAIRN_KILLED);
  free_engine(e);
}

static void vendor_codes_replace_every_return_code(void **state)
{
  cairn_engine *e = open_with(1, NULL);
  cairn_job job = a_new(e);
  struct cairn_datetime zero = {.kind = CAIRN_ZERO};
  char *errors;

  (void)state;
  assert_int_equal(request(e, job, 99), 32773);
  assert_int_equal(cairn_job_request_state_change(e, job, 2, &zero, NULL),
                   32773);
  assert_int_equal(request(e, job, CAIRN_REQUEST_SERVICE), 32770);
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
  step(e);
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 32775);
  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 4096);
  assert_int_equal(request(e, job, CAIRN_REQUEST_TERMINATE), 32774);
  assert_int_equal(cairn_job_resume_with_input(e, job, "x", NULL), 32775);
  assert_int_equal(cairn_job_kill(e, job, -1, NULL), 0);
  assert_int_equal(cairn_job_kill(e, job, -1, NULL), 32768);
  assert_int_equal(cairn_job_resume(e, job, NULL), 32775);
  assert_int_equal(cairn_job_delete(e, job, NULL), 0);
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 32771);
  assert_int_equal(cairn_job_kill(e, job, -1, NULL), 32771);
  assert_int_equal(cairn_job_get_errors(e, job, 0, &errors, NULL), 32771);
  assert_null(errors);
  free_engine(e);
}

static void wrong_parameters_come_before_the_state(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_completed(e);
  struct cairn_datetime timestamp = {.kind = CAIRN_TIMESTAMP,
                                     .microseconds = START};
  struct cairn_error err;

  (void)state;
  assert_int_equal(request(e, job, 0), 5);
  assert_int_equal(request(e, job, 1), 5);
  assert_int_equal(request(e, job, 7), 5);
  assert_int_equal(request(e, job, 32768), 5);
  assert_int_equal(request(e, job, -1), 5);
  assert_int_equal(cairn_job_request_state_change(e, job, 2, &timestamp, &err),
                   5);
  assert_int_equal(err.id, CAIRN_E_WRONG_TYPE);
  assert_int_equal(cairn_job_request_state_change(e, 4711, 2, NULL, &err), 2);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  free_engine(e);
}

/* ---- time-outs ---- */

/* Events of one type that came up; the last one in *last. */
static int drain(cairn_engine *e, uint32_t type, struct cairn_event *last)
{
  struct cairn_event event;
  int n = 0;

  while (cairn_engine_next_events(e, &event, 1) == 1) {
    if (event.type == type) {
      n++;
      if (last)
        *last = event;
    }
  }
  return n;
}

static void a_request_that_takes_too_long_is_reported_and_stands(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_running_task(e);
  struct cairn_datetime limit = seconds(5);
  struct cairn_event event;

  (void)state;
  assert_int_equal(cairn_job_request_state_change(e, job, CAIRN_REQUEST_SUSPEND,
                                                  &limit, NULL),
                   4096);
  drain(e, 0, NULL);
  assert_int_equal(cairn_engine_timeout(e), 5 * SECOND);
  cairn_engine_advance(e, 5 * SECOND - 1, NULL);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_REQUEST_TIMEOUT, NULL), 0);
  cairn_engine_advance(e, 1, NULL);
  assert_int_equal(cairn_engine_timeout(e), 0);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_REQUEST_TIMEOUT, &event), 1);
  assert_int_equal(event.code, 3);
  assert_int_equal(event.job, job);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  assert_int_equal(cairn_task_parked(e, job, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  free_engine(e);
}

static void a_request_in_time_is_not_reported(void **state)
{
  static const struct {
    int what, then;
  } cases[] = {{CAIRN_REQUEST_SUSPEND, CAIRN_SUSPENDED},
               {CAIRN_REQUEST_TERMINATE, CAIRN_TERMINATED}};
  struct cairn_datetime limit = seconds(5);

  (void)state;
  for (int i = 0; i < 2; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = a_running_thread(e);

    assert_int_equal(
        cairn_job_request_state_change(e, job, cases[i].what, &limit, NULL),
        4096);
    await(e, job, cases[i].then);
    cairn_engine_advance(e, 10 * SECOND, NULL);
    cairn_engine_step(e);
    assert_int_equal(drain(e, CAIRN_EVENT_REQUEST_TIMEOUT, NULL), 0);
    free_engine(e);
  }
}

static void a_start_that_finds_no_slot_in_time_is_reported(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job first = a_running_task(e), second = a_held(e);
  struct cairn_datetime limit = seconds(1);

  (void)state;
  assert_int_equal(cairn_job_request_state_change(
                       e, second, CAIRN_REQUEST_START, &limit, NULL),
                   4096);
  cairn_engine_advance(e, SECOND, NULL);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_REQUEST_TIMEOUT, NULL), 1);
  assert_int_equal(state_of(e, second), CAIRN_SUSPENDED);
  assert_int_equal(cairn_task_finish(e, first, NULL, NULL), 0);
  step(e);
  assert_int_equal(state_of(e, second), CAIRN_RUNNING);
  free_engine(e);
}

static void a_request_that_replaces_another_drops_its_deadline(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job first = a_running_task(e), second = a_held(e);
  struct cairn_datetime limit = seconds(1);

  (void)state;
  (void)first;
  assert_int_equal(cairn_job_request_state_change(
                       e, second, CAIRN_REQUEST_START, &limit, NULL),
                   4096);
  assert_int_equal(request(e, second, CAIRN_REQUEST_SUSPEND), 0);
  cairn_engine_advance(e, 2 * SECOND, NULL);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_REQUEST_TIMEOUT, NULL), 0);
  free_engine(e);
}

/* ---- TimeOfLastStateChange ---- */

static void the_time_of_the_last_change_starts_as_a_zero_interval(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_new(e);
  struct cairn_datetime t =
      datetime(e, job, CAIRN_PROPERTY_TimeOfLastStateChange);

  (void)state;
  assert_int_equal(t.kind, CAIRN_INTERVAL);
  assert_int_equal(t.microseconds, 0);
  advance(e, 7 * SECOND);
  t = datetime(e, job, CAIRN_PROPERTY_TimeOfLastStateChange);
  assert_int_equal(t.kind, CAIRN_TIMESTAMP);
  assert_int_equal(t.microseconds, START + 7 * SECOND);
  cairn_engine_advance(e, SECOND, NULL);
  /* Percent and settings do not move it. */
  assert_int_equal(cairn_task_progress(e, job, 50, NULL), 0);
  set_well(e, job, "Priority", an_integer(1));
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4097);
  t = datetime(e, job, CAIRN_PROPERTY_TimeOfLastStateChange);
  assert_int_equal(t.microseconds, START + 7 * SECOND);
  free_engine(e);
}

/* ---- killing ---- */

static void a_thread_that_does_not_end_is_given_up_after_a_second(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_killing_thread(e);

  (void)state;
  advance(e, SECOND - 1);
  assert_int_equal(state_of(e, job), CAIRN_SHUTTING_DOWN);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_OperatingStatus), 13);
  advance(e, 1);
  assert_int_equal(state_of(e, job), CAIRN_KILLED);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode), CAIRN_E_KILLED);
  assert_false(cairn_engine_is_idle(e)); /* the thread is still there */
  atomic_store(&is_released, 1);
  for (int i = 0; !cairn_engine_is_idle(e); i++) {
    assert_true(i < 20000);
    cairn_engine_wait(e, 1000);
    drain(e, 0, NULL);
  }
  /* Its late success changes nothing. */
  assert_int_equal(state_of(e, job), CAIRN_KILLED);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode), CAIRN_E_KILLED);
  free_engine(e);
}

/* The last record's. */
static const char *recorded_point(cairn_engine *e)
{
  static char id[40];
  json_t *records, *record;
  char *text;

  assert_int_equal(cairn_history(e, NULL, &text, NULL), 0);
  records = json_loads(text, 0, NULL);
  cairn_free(text);
  record = json_array_get(records, json_array_size(records) - 1);
  snprintf(id, sizeof id, "%s",
           json_is_null(json_object_get(record, "ReferencePointGroupId"))
               ? "none"
               : json_string_value(
                     json_object_get(record, "ReferencePointGroupId")));
  json_decref(records);
  return id;
}

static void a_record_names_a_point_where_there_is_one(void **state)
{
  static const struct {
    const char *mode;
    int end, has_point;
  } cases[] = {{"ok", CAIRN_COMPLETED, 1},
               {"fail", CAIRN_EXCEPTION, 0},
               {"late", CAIRN_EXCEPTION, 1}};
  cairn_engine *e = open_engine();

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char spec[200];

    snprintf(spec, sizeof spec,
             "{\"Name\":\"x\",\"export\":{\"directory\":\"/x\","
             "\"mode\":\"%s\"}}",
             cases[i].mode);
    await(e, submit(e, spec), cases[i].end);
    assert_int_equal(strlen(recorded_point(e)), cases[i].has_point ? 36 : 4);
  }
  free_engine(e);
}

static void a_thousand_warnings_are_kept_and_the_rest_is_counted(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_running_task(e), thread;
  struct cairn_error err;
  json_t *list;
  char *text;

  (void)state;
  for (int i = 0; i < 1500; i++)
    assert_int_equal(cairn_task_warn(e, job, "again", &err), 0);
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  thread = submit(e, "{\"Name\":\"w\",\"verify\":{\"directory\":\"/x\","
                     "\"mode\":\"ok\",\"warnings\":1500}}");
  await(e, thread, CAIRN_COMPLETED_WITH_WARNINGS);
  for (int i = 0; i < 2; i++, job = thread) {
    assert_int_equal(cairn_job_warnings(e, job, &text, NULL), 0);
    list = json_loads(text, 0, NULL);
    cairn_free(text);
    assert_int_equal(json_array_size(list), 1000);
    json_decref(list);
    assert_int_equal(cairn_job_get_errors(e, job, 1, &text, NULL), 0);
    assert_non_null(strstr(text, "500 more warnings"));
    cairn_free(text);
  }
  free_engine(e);
}

static void what_a_thread_that_is_given_up_has_warned_of_is_kept(void **state)
{
  static const char spec[] = "{\"Name\":\"w\",\"verify\":{\"directory\":\"/x\","
                             "\"mode\":\"deaf\",\"warnings\":2}}";
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, spec);
  char *text;

  (void)state;
  step(e);
  for (int i = 0; atomic_load(&deaf_running) == 0; i++) {
    assert_true(i < 20000);
    fake_wait();
  }
  for (int is_over = 0; is_over < 2; is_over++) {
    assert_int_equal(cairn_job_warnings(e, job, &text, NULL), 0);
    assert_string_equal(text, "[\"warning 1\",\"warning 2\"]");
    cairn_free(text);
    if (is_over)
      break;
    assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 4096);
    assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 0);
  }
  assert_int_equal(state_of(e, job), CAIRN_KILLED);
  assert_int_equal(cairn_history(e, NULL, &text, NULL), 0);
  assert_non_null(strstr(text, "[\"warning 1\",\"warning 2\"]"));
  cairn_free(text);
  atomic_store(&is_released, 1);
  free_engine(e);
}

static void a_killed_job_may_be_deleted_before_its_thread_ends(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_killing_thread(e);

  (void)state;
  assert_int_equal(request(e, job, CAIRN_REQUEST_KILL), 0);
  assert_int_equal(state_of(e, job), CAIRN_KILLED);
  assert_int_equal(cairn_job_delete(e, job, NULL), 0);
  atomic_store(&is_released, 1);
  free_engine(e);
}

static void an_engine_can_be_freed_while_its_threads_run(void **state)
{
  cairn_engine *e = open_engine();

  (void)state;
  a_parked_thread(e);
  submit(e, THREAD("loop"));
  submit(e, THREAD("loop"));
  step(e);
  cairn_engine_free(e);
  for (int i = 0; atomic_load(&in_directory) > 0; i++) {
    assert_true(i < 20000);
    fake_wait();
  }
}

static void kill_job_decides_about_the_removal(void **state)
{
  static const struct {
    int before, on_kill, is_removed;
  } cases[] = {{0, 1, 1}, {1, 0, 0}, {0, -1, 0}, {1, -1, 1}};

  (void)state;
  for (int i = 0; i < 4; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = a_running_task(e);
    struct cairn_error err;

    set_well(e, job, "DeleteOnCompletion", a_boolean(cases[i].before));
    assert_int_equal(cairn_job_kill(e, job, cases[i].on_kill, NULL), 0);
    assert_int_equal(state_of(e, job), CAIRN_KILLED);
    advance(e, 300 * SECOND);
    assert_int_equal(cairn_job_find(e, "0000000000", &job, &err), -1);
    assert_int_equal(cairn_job_next(e, 0) == 0, cases[i].is_removed);
    free_engine(e);
  }
}

static void kill_job_knows_finished_and_missing_jobs(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_error err;

  (void)state;
  assert_int_equal(cairn_job_kill(e, a_completed(e), 1, &err), 4);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  assert_int_equal(cairn_job_kill(e, 4711, 1, &err), 7);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  free_engine(e);
}

static void only_finished_jobs_can_be_deleted(void **state)
{
  (void)state;
  for (int i = 0; i < SITUATIONS; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = situations[i].make(e);
    struct cairn_error err;
    int is_final = cairn_state_is_final(situations[i].state);
    struct cairn_value v;

    assert_int_equal(cairn_job_delete(e, job, &err), is_final ? 0 : -1);
    if (is_final) {
      assert_int_equal(cairn_job_get(e, job, 1, &v, &err), -1);
      assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
    } else {
      assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
      assert_int_equal(state_of(e, job), situations[i].state);
    }
    free_engine(e);
  }
}

/* ---- suspend and resume ---- */

static void a_hold_on_a_waiting_job_leaves_its_state(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_waiting(e);

  (void)state;
  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 0);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 4097);
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), "waiting");
  assert_int_equal(cairn_job_resume(e, job, NULL), 4097);
  free_engine(e);
}

static void resume_releases_a_hold_and_nothing_more(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_held(e), later;

  (void)state;
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  step(e); /* it is due, so it starts by itself */
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);

  later = submit(e, "{\"Name\":\"l\",\"run\":true,\"ScheduledStartTime\":"
                    "\"00000000010000.000000:000\"}");
  assert_int_equal(request(e, later, CAIRN_REQUEST_SUSPEND), 0);
  assert_int_equal(cairn_job_resume(e, later, NULL), 0);
  assert_string_equal(text(e, later, CAIRN_PROPERTY_phase), "waiting");
  advance(e, 3599 * SECOND);
  assert_int_equal(state_of(e, later), CAIRN_SUSPENDED);
  advance(e, SECOND);
  assert_int_equal(state_of(e, later), CAIRN_RUNNING);
  free_engine(e);
}

static void a_hold_outlasts_the_due_time(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"l\",\"run\":true,"
                            "\"ScheduledStartTime\":"
                            "\"00000000010000.000000:000\"}");

  (void)state;
  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 0);
  advance(e, 7200 * SECOND);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

static void a_suspend_not_yet_done_can_be_taken_back(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_suspending_task(e);
  struct cairn_error err;

  (void)state;
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  assert_int_equal(drain(e, CAIRN_EVENT_TASK_RESUME, NULL), 1);
  assert_int_equal(cairn_task_parked(e, job, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

static void a_run_that_ends_before_it_parks_has_ended(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_suspending_task(e);

  (void)state;
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  free_engine(e);
}

static void a_suspended_run_gives_its_slot_back(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job first = a_parked_task(e), second = a_running_task(e);

  (void)state;
  assert_int_equal(request(e, first, CAIRN_REQUEST_START), 4096);
  step(e);
  assert_int_equal(state_of(e, first), CAIRN_SUSPENDED);
  assert_string_equal(text(e, first, CAIRN_PROPERTY_phase), "queued");
  /* Asked again, or held again, while it queues */
  assert_int_equal(request(e, first, CAIRN_REQUEST_START), 4096);
  assert_int_equal(request(e, first, CAIRN_REQUEST_SUSPEND), 0);
  assert_string_equal(text(e, first, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(request(e, first, CAIRN_REQUEST_START), 4096);
  assert_int_equal(cairn_task_finish(e, second, NULL, NULL), 0);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_TASK_RESUME, NULL), 1);
  assert_int_equal(state_of(e, first), CAIRN_RUNNING);
  free_engine(e);
}

/* ---- questions ---- */

static void a_question_waits_for_one_of_its_choices(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = an_asking(e);
  struct cairn_error err;
  char *query;
  json_t *json;

  (void)state;
  assert_int_equal(cairn_job_query(e, job, &query, NULL), 0);
  json = get_json(query);
  assert_string_equal(json_string_value(json_object_get(json, "question")),
                      "go on?");
  assert_int_equal(json_array_size(json_object_get(json, "choices")), 2);
  json_decref(json);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_JobStatus),
                      "waiting for an answer: go on?");

  assert_int_equal(cairn_job_resume_with_input(e, job, "perhaps", &err), 5);
  assert_non_null(strstr(err.message, "\"yes\",\"no\""));
  assert_int_equal(state_of(e, job), CAIRN_QUERY_PENDING);
  assert_int_equal(cairn_job_resume_with_input(e, job, "\xff", &err), 5);
  drain(e, 0, NULL);
  assert_int_equal(cairn_job_resume_with_input(e, job, "yes", &err), 0);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  assert_int_equal(drain(e, CAIRN_EVENT_TASK_ANSWER, NULL), 1);
  assert_string_equal(cairn_task_answer_text(e, job), "yes");
  assert_int_equal(cairn_job_resume_with_input(e, job, "yes", &err), 4097);
  assert_int_equal(cairn_job_query(e, job, &query, NULL), 0);
  assert_string_equal(query, "null");
  cairn_free(query);

  assert_int_equal(cairn_task_ask(e, job, "why?", NULL, NULL), 0);
  assert_null(cairn_task_answer_text(e, job));
  assert_int_equal(cairn_job_resume_with_input(e, job, "because", NULL), 0);
  assert_string_equal(cairn_task_answer_text(e, job), "because");
  assert_int_equal(cairn_task_ask(e, job, "?", "[1]", &err), -1);
  assert_int_equal(err.id, CAIRN_E_WRONG_TYPE);
  assert_int_equal(cairn_task_ask(e, job, "?", "[]", &err), -1);
  assert_int_equal(cairn_task_ask(e, job, "?", "nonsense", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

/* ---- tasks ---- */

static void a_task_can_be_driven_only_while_its_run_is_on(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job jobs[] = {a_held(e), a_completed(e), a_killed(e),
                      a_running_thread(e), 4711};
  struct cairn_error err;

  (void)state;
  for (int i = 0; i < 5; i++) {
    int id = i == 4 ? CAIRN_E_NOT_FOUND : CAIRN_E_INVALID_STATE;

    assert_int_equal(cairn_task_progress(e, jobs[i], 1, &err), -1);
    assert_int_equal(err.id, id);
    assert_int_equal(cairn_task_ask(e, jobs[i], "?", NULL, &err), -1);
    assert_int_equal(err.id, id);
    assert_int_equal(cairn_task_parked(e, jobs[i], &err), -1);
    assert_int_equal(err.id, id);
    assert_int_equal(cairn_task_warn(e, jobs[i], "w", &err), -1);
    assert_int_equal(err.id, id);
    assert_int_equal(cairn_task_finish(e, jobs[i], NULL, &err), -1);
    assert_int_equal(err.id, id);
  }
  free_engine(e);
}

static void a_task_ends_as_it_says(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_error failure;
  cairn_job job;

  (void)state;
  job = a_running_task(e);
  cairn__fail(&failure, CAIRN_E_SCRIPT_ERROR, "nightly.lua:12: oops");
  assert_int_equal(cairn_task_finish(e, job, &failure, &failure), 0);
  assert_int_equal(state_of(e, job), CAIRN_EXCEPTION);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode),
                   CAIRN_E_SCRIPT_ERROR);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_ErrorSummaryDescription),
                      "nightly.lua:12: oops");
  assert_string_equal(text(e, job, CAIRN_PROPERTY_ErrorDescription),
                      "a Lua function raised an error");

  job = a_terminating_task(e);
  cairn__fail(&failure, CAIRN_E_TERMINATED, "ended");
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_TERMINATED);

  job = a_terminating_task(e); /* too late: it had done its work */
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);

  job = a_terminating_task(e); /* its clean-up failed */
  cairn__fail(&failure, CAIRN_E_SCRIPT_ERROR, "no");
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_EXCEPTION);

  job = an_asking(e);
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);

  job = a_running_task(e);
  failure.id = 9999;
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), -1);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

/* ---- queues ---- */

/* Lets every running task finish; the order in which jobs started. */
static void run_all(cairn_engine *e, cairn_job *order, int count)
{
  struct cairn_event event;
  int n = 0;

  while (n < count) {
    cairn_engine_step(e);
    if (cairn_engine_next_events(e, &event, 1) == 0)
      fail_msg("only %d of %d started", n, count);
    if (event.type == CAIRN_EVENT_TASK_START) {
      order[n++] = event.job;
      assert_int_equal(cairn_task_finish(e, event.job, NULL, NULL), 0);
    }
  }
}

static void urgent_jobs_go_first_then_those_that_waited_longer(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job null_first, low, high, same, null_second, order[5];

  (void)state;
  null_first = submit(e, TASK);
  low = submit(e, "{\"Name\":\"b\",\"Priority\":65536,\"run\":true}");
  high = submit(e, "{\"Name\":\"c\",\"Priority\":10,\"run\":true}");
  same = submit(e, "{\"Name\":\"d\",\"Priority\":10,\"run\":true}");
  null_second = submit(e, TASK);
  run_all(e, order, 5);
  assert_int_equal(order[0], high);
  assert_int_equal(order[1], same);
  assert_int_equal(order[2], null_first);
  assert_int_equal(order[3], null_second);
  assert_int_equal(order[4], low);
  free_engine(e);
}

static void a_changed_priority_moves_a_waiting_job(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job a = submit(e, TASK), b = submit(e, TASK), c = submit(e, TASK);
  cairn_job order[3];

  (void)state;
  set_well(e, c, "Priority", an_integer(1));
  set_well(e, a, "Priority", an_integer(4294967295));
  run_all(e, order, 3);
  assert_int_equal(order[0], c);
  assert_int_equal(order[1], b);
  assert_int_equal(order[2], a);
  free_engine(e);
}

static void a_queue_runs_as_many_as_it_may(void **state)
{
  cairn_engine *e = open_with(
      0, "{\"default\":{\"concurrency\":3},\"slow\":{\"concurrency\":1}}");
  cairn_job jobs[10];
  int running = 0;

  (void)state;
  for (int i = 0; i < 10; i++)
    jobs[i] = submit(e, i < 6 ? TASK
                              : "{\"Name\":\"s\",\"queue\":\"slow\","
                                "\"run\":true}");
  step(e);
  for (int i = 0; i < 10; i++)
    running += state_of(e, jobs[i]) == CAIRN_RUNNING;
  assert_int_equal(running, 4);
  assert_int_equal(state_of(e, jobs[2]), CAIRN_RUNNING);
  assert_int_equal(state_of(e, jobs[3]), CAIRN_NEW);
  assert_int_equal(state_of(e, jobs[6]), CAIRN_RUNNING);
  assert_int_equal(state_of(e, jobs[7]), CAIRN_NEW);
  assert_string_equal(text(e, jobs[7], CAIRN_PROPERTY_queue), "slow");
  free_engine(e);
}

#define EXPORT(directory, mode)                                                \
  "{\"Name\":\"x\",\"export\":{\"mode\":\"" mode                               \
  "\",\"directory\":\"" directory "\",\"collection\":{\"CollectionId\":"       \
  "\"6F1D\",\"machines\":[{\"VirtualMachineId\":\"0C5A\"},"                    \
  "{\"VirtualMachineId\":\"0C5B\"}]}}}"

static void one_directory_takes_one_export_at_a_time(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":8}}");
  cairn_job first = submit(e, EXPORT("/export/a", "loop"));
  cairn_job second = submit(e, EXPORT("/export//a/", "loop"));
  cairn_job third = submit(e, EXPORT("/export/./a", "well"));
  cairn_job other = submit(e, EXPORT("/export/b", "loop"));

  (void)state;
  step(e);
  assert_int_equal(state_of(e, first), CAIRN_RUNNING);
  assert_int_equal(state_of(e, second), CAIRN_NEW);
  assert_int_equal(state_of(e, other), CAIRN_RUNNING);
  assert_string_equal(text(e, second, CAIRN_PROPERTY_phase), "queued");
  assert_string_equal(text(e, second, CAIRN_PROPERTY_JobStatus),
                      "queued: another job exports into /export/a");
  /* A suspended export keeps its directory. */
  assert_int_equal(request(e, first, CAIRN_REQUEST_SUSPEND), 4096);
  await(e, first, CAIRN_SUSPENDED);
  step(e);
  assert_int_equal(state_of(e, second), CAIRN_NEW);
  assert_int_equal(request(e, first, CAIRN_REQUEST_TERMINATE), 4096);
  await(e, first, CAIRN_TERMINATED);
  await(e, second, CAIRN_RUNNING);
  assert_int_equal(state_of(e, third), CAIRN_NEW);
  assert_int_equal(request(e, second, CAIRN_REQUEST_TERMINATE), 4096);
  await(e, third, CAIRN_COMPLETED);
  free_engine(e);
}

static void a_job_that_leaves_the_queue_passes_the_directory_on(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":2}}");
  cairn_job first = submit(e, EXPORT("/export/a", "loop"));
  cairn_job second = submit(e, EXPORT("/export/a", "well"));
  cairn_job third = submit(e, EXPORT("/export/a", "well"));
  cairn_job blocker = submit(e, TASK);
  cairn_job blocker2;

  (void)state;
  step(e);
  blocker2 = submit(e, "{\"Name\":\"b\",\"Priority\":1,\"run\":true}");
  assert_int_equal(state_of(e, first), CAIRN_RUNNING);
  assert_int_equal(state_of(e, blocker), CAIRN_RUNNING);
  assert_int_equal(request(e, first, CAIRN_REQUEST_TERMINATE), 4096);
  await(e, first, CAIRN_TERMINATED);
  step(e); /* the directory is free, but blocker2 has the slot */
  assert_int_equal(state_of(e, blocker2), CAIRN_RUNNING);
  assert_int_equal(state_of(e, second), CAIRN_NEW);
  /* The one that was offered the directory is held: the next gets it. */
  assert_int_equal(request(e, second, CAIRN_REQUEST_SUSPEND), 0);
  assert_int_equal(cairn_task_finish(e, blocker, NULL, NULL), 0);
  await(e, third, CAIRN_COMPLETED);
  assert_int_equal(cairn_job_resume(e, second, NULL), 0);
  await(e, second, CAIRN_COMPLETED);
  free_engine(e);
}

static void
a_changed_priority_moves_a_job_that_waits_for_a_directory(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":2}}");
  cairn_job first = submit(e, EXPORT("/export/a", "loop"));
  cairn_job second = submit(e, EXPORT("/export/a", "loop"));
  cairn_job third = submit(e, EXPORT("/export/a", "loop"));
  cairn_job blocker = submit(e, TASK);

  (void)state;
  step(e);
  submit(e, "{\"Name\":\"b\",\"Priority\":1,\"run\":true}");
  assert_int_equal(request(e, first, CAIRN_REQUEST_TERMINATE), 4096);
  await(e, first, CAIRN_TERMINATED);
  step(e);
  /* The directory is free and offered to the second, but no slot is. */
  set_well(e, third, "Priority", an_integer(1));
  assert_int_equal(cairn_task_finish(e, blocker, NULL, NULL), 0);
  await(e, third, CAIRN_RUNNING);
  assert_int_equal(state_of(e, second), CAIRN_NEW);
  free_engine(e);
}

static void a_killed_export_keeps_its_directory_until_it_has_ended(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job first = submit(e, EXPORT("/export/a", "deaf"));
  cairn_job second = submit(e, EXPORT("/export/a", "well"));

  (void)state;
  step(e);
  assert_int_equal(request(e, first, CAIRN_REQUEST_KILL), 4096);
  advance(e, SECOND);
  assert_int_equal(state_of(e, first), CAIRN_KILLED);
  assert_int_equal(state_of(e, second), CAIRN_NEW);
  atomic_store(&is_released, 1);
  await(e, second, CAIRN_COMPLETED);
  assert_int_equal(atomic_load(&most_in_directory), 1);
  free_engine(e);
}

/* ---- runs and what they report ---- */

static size_t count_of(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_STRING_ARRAY);
  return v.count;
}

static void an_export_tells_what_it_exported(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, EXPORT("/export/a", "progress"));
  char point[40], *report;
  json_t *json;

  (void)state;
  assert_string_equal(text(e, job, CAIRN_PROPERTY_CollectionId), "6F1D");
  assert_string_equal(text(e, job, CAIRN_PROPERTY_ExportDirectory),
                      "/export/a");
  assert_true(is_null(e, job, CAIRN_PROPERTY_ReferencePointGroupId));
  assert_true(is_null(e, job, CAIRN_PROPERTY_VirtualMachineId));
  assert_true(is_null(e, job, CAIRN_PROPERTY_ExportedDisks));
  assert_true(is_null(e, job, CAIRN_PROPERTY_ErrorCode));
  step(e);
  snprintf(point, sizeof point, "%s",
           text(e, job, CAIRN_PROPERTY_ReferencePointGroupId));
  assert_int_equal(strlen(point), 36);
  assert_int_equal(count_of(e, job, CAIRN_PROPERTY_VirtualMachineId), 2);
  assert_int_equal(count_of(e, job, CAIRN_PROPERTY_ExportedDisks), 0);
  assert_int_equal(cairn_job_report(e, job, &report, NULL), 0);
  assert_string_equal(report, "null");
  cairn_free(report);
  atomic_store(&told_bytes, 1000);
  await(e, job, CAIRN_COMPLETED);
  assert_int_equal(count_of(e, job, CAIRN_PROPERTY_ExportedDisks), 1);
  assert_int_equal(count_of(e, job, CAIRN_PROPERTY_ExportedConfigFilePaths), 0);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_ReferencePointGroupId),
                      point);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode), 0);
  assert_true(is_null(e, job, CAIRN_PROPERTY_ErrorDescription));
  assert_int_equal(cairn_job_report(e, job, &report, NULL), 0);
  json = get_json(report);
  assert_string_equal(json_string_value(json_object_get(json, "point")), point);
  json_decref(json);

  job = submit(e, EXPORT("/export/a", "fail"));
  await(e, job, CAIRN_EXCEPTION);
  assert_int_equal(count_of(e, job, CAIRN_PROPERTY_ExportedDisks), 0);
  job = submit(e, THREAD("well"));
  await(e, job, CAIRN_COMPLETED);
  assert_true(is_null(e, job, CAIRN_PROPERTY_ExportedDisks));
  assert_true(is_null(e, job, CAIRN_PROPERTY_CollectionId));
  free_engine(e);
}

static void percent_never_goes_back_and_is_100_only_at_the_end(void **state)
{
  static const uint64_t told[] = {0, 100, 555, 400, 999, 1000};
  static const int shown[] = {0, 10, 55, 55, 99};
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, THREAD("progress"));
  struct cairn_event event;
  int last = 0;

  (void)state;
  cairn_engine_step(e);
  drain(e, 0, NULL);
  assert_true(is_null(e, job, CAIRN_PROPERTY_rate));
  for (int i = 0; i < 5; i++) {
    atomic_store(&told_bytes, told[i]);
    for (int t = 0;
         is_null(e, job, CAIRN_PROPERTY_bytes_total) ||
         number(e, job, CAIRN_PROPERTY_bytes_done) != (int64_t)told[i];
         t++) {
      assert_true(t < 20000);
      fake_wait();
    }
    cairn_engine_advance(e, SECOND / 10, NULL);
    cairn_engine_step(e);
    assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), shown[i]);
    while (cairn_engine_next_events(e, &event, 1) == 1) {
      if (event.type == CAIRN_EVENT_PERCENT) {
        assert_true(event.percent > last);
        assert_int_equal(event.percent, shown[i]);
        last = event.percent;
      }
    }
  }
  assert_int_equal(last, 99);
  atomic_store(&told_bytes, 1000);
  await(e, job, CAIRN_COMPLETED);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), 100);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_bytes_done), 1000);
  assert_true(is_null(e, job, CAIRN_PROPERTY_rate));
  assert_true(is_null(e, job, CAIRN_PROPERTY_eta));

  /* Tasks say it themselves. */
  job = a_running_task(e);
  assert_int_equal(cairn_task_progress(e, job, 250, NULL), 0);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), 99);
  assert_int_equal(cairn_task_progress(e, job, -5, NULL), 0);
  assert_int_equal(cairn_task_progress(e, job, 0.0 / 0.0, NULL), 0);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), 99);
  assert_int_equal(cairn_job_kill(e, job, -1, NULL), 0);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), 99);
  free_engine(e);
}

static void rate_and_time_left_come_from_the_last_seconds(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, THREAD("progress"));
  struct cairn_value v;

  (void)state;
  step(e);
  for (int i = 0; i <= 10; i++) { /* 50 bytes each 100 ms: 500 bytes/s */
    uint64_t bytes = (uint64_t)i * 50;

    atomic_store(&told_bytes, bytes);
    for (int t = 0; is_null(e, job, CAIRN_PROPERTY_bytes_total) ||
                    number(e, job, CAIRN_PROPERTY_bytes_done) != (int64_t)bytes;
         t++) {
      assert_true(t < 20000);
      fake_wait();
    }
    advance(e, SECOND / 10);
  }
  assert_int_equal(cairn_job_get(e, job, CAIRN_PROPERTY_rate, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_REAL);
  assert_float_equal(v.as.real, 500, 1);
  assert_int_equal(cairn_job_get(e, job, CAIRN_PROPERTY_eta, &v, NULL), 0);
  assert_float_equal(v.as.real, 1, 0.01);
  free_engine(e);
}

static void elapsed_time_leaves_suspension_out(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_running_task(e);

  (void)state;
  advance(e, 3 * SECOND);
  assert_int_equal(datetime(e, job, CAIRN_PROPERTY_ElapsedTime).microseconds,
                   3 * SECOND);
  request(e, job, CAIRN_REQUEST_SUSPEND);
  cairn_task_parked(e, job, NULL);
  advance(e, 60 * SECOND);
  assert_int_equal(datetime(e, job, CAIRN_PROPERTY_ElapsedTime).microseconds,
                   3 * SECOND);
  request(e, job, CAIRN_REQUEST_START);
  step(e);
  advance(e, 2 * SECOND);
  cairn_task_finish(e, job, NULL, NULL);
  advance(e, 9 * SECOND);
  assert_int_equal(datetime(e, job, CAIRN_PROPERTY_ElapsedTime).microseconds,
                   5 * SECOND);
  assert_int_equal(datetime(e, job, CAIRN_PROPERTY_StartTime).microseconds,
                   START);
  free_engine(e);
}

/* ---- errors ---- */

static const char *member(const json_t *errors, size_t i, const char *name)
{
  return json_string_value(json_object_get(json_array_get(errors, i), name));
}

static void a_failure_is_a_cim_error_of_fifteen_properties(void **state)
{
  static const char *const names[] = {"ErrorType",
                                      "OtherErrorType",
                                      "OwningEntity",
                                      "MessageID",
                                      "Message",
                                      "MessageArguments",
                                      "PerceivedSeverity",
                                      "ProbableCause",
                                      "ProbableCauseDescription",
                                      "RecommendedActions",
                                      "ErrorSource",
                                      "ErrorSourceFormat",
                                      "OtherErrorSourceFormat",
                                      "CIMStatusCode",
                                      "CIMStatusCodeDescription"};
  cairn_engine *e = open_engine();
  cairn_job job = a_failed(e);
  json_t *errors = errors_of(e, job, 0), *error, *arguments;

  (void)state;
  assert_int_equal(json_array_size(errors), 1);
  error = json_array_get(errors, 0);
  assert_int_equal(json_object_size(error), 15);
  for (int i = 0; i < 15; i++)
    assert_non_null(json_object_get(error, names[i]));
  assert_int_equal(json_integer_value(json_object_get(error, "ErrorType")), 5);
  assert_true(json_is_null(json_object_get(error, "OtherErrorType")));
  assert_string_equal(member(errors, 0, "MessageID"), "CAIRN0018");
  assert_non_null(strstr(member(errors, 0, "Message"), "cannot read the disk"));
  assert_int_equal(json_integer_value(json_object_get(error, "ProbableCause")),
                   24);
  assert_string_equal(member(errors, 0, "ProbableCauseDescription"),
                      "I/O Device Error");
  assert_int_equal(
      json_integer_value(json_object_get(error, "PerceivedSeverity")), 5);
  assert_int_equal(json_integer_value(json_object_get(error, "CIMStatusCode")),
                   1);
  assert_string_equal(member(errors, 0, "ErrorSource"),
                      text(e, job, CAIRN_PROPERTY_InstanceID));
  arguments = json_object_get(error, "MessageArguments");
  assert_int_equal(json_array_size(arguments), 5);
  assert_string_equal(json_string_value(json_array_get(arguments, 0)), "web1");
  assert_string_equal(json_string_value(json_array_get(arguments, 1)), "vda");
  assert_string_equal(json_string_value(json_array_get(arguments, 2)),
                      "/images/a.raw");
  assert_string_equal(json_string_value(json_array_get(arguments, 3)), "65536");
  assert_string_equal(json_string_value(json_array_get(arguments, 4)),
                      "Input/output error");
  json_decref(errors);
  free_engine(e);
}

static void errors_follow_the_state(void **state)
{
  (void)state;
  for (int i = 0; i < SITUATIONS; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = situations[i].make(e);
    json_t *one = errors_of(e, job, 0), *all = errors_of(e, job, 1);
    int s = situations[i].state;

    if (s == 8 || s == 9 || s == 10) {
      assert_int_equal(json_array_size(one), 1);
      assert_true(json_equal(json_array_get(one, 0), json_array_get(all, 0)));
      assert_int_not_equal(number(e, job, CAIRN_PROPERTY_ErrorCode), 0);
    } else {
      assert_true(json_is_null(one));
    }
    if (s == 32768) {
      assert_int_equal(json_array_size(all), 1);
      assert_string_equal(member(all, 0, "Message"), "mind the gap");
      assert_int_equal(json_integer_value(json_object_get(
                           json_array_get(all, 0), "PerceivedSeverity")),
                       3);
      assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode), 0);
    } else if (json_is_null(one)) {
      assert_true(json_is_null(all));
    }
    json_decref(one);
    json_decref(all);
    free_engine(e);
  }
}

static void warnings_follow_the_error_in_get_error_ex(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"w\",\"verify\":{\"mode\":\"fail\","
                            "\"warnings\":2}}");
  json_t *errors;

  (void)state;
  await(e, job, CAIRN_EXCEPTION);
  errors = errors_of(e, job, 1);
  assert_int_equal(json_array_size(errors), 3);
  assert_string_equal(member(errors, 0, "MessageID"), "CAIRN0018");
  assert_string_equal(member(errors, 1, "Message"), "warning 1");
  assert_string_equal(member(errors, 2, "Message"), "warning 2");
  json_decref(errors);
  job = submit(e, "{\"Name\":\"w\",\"verify\":{\"mode\":\"well\","
                  "\"warnings\":2}}");
  await(e, job, CAIRN_COMPLETED_WITH_WARNINGS);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_JobStatus),
                      "completed with 2 warnings");
  assert_int_equal(number(e, job, CAIRN_PROPERTY_PercentComplete), 100);
  free_engine(e);
}

/* ---- schedule ---- */

static void a_job_waits_for_its_scheduled_start(void **state)
{
  /* At 01:00 with an offset of one hour: START. */
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"s\",\"run\":true,"
                            "\"ScheduledStartTime\":"
                            "\"20250101020000.000000+060\"}");
  struct cairn_datetime t;

  (void)state;
  step(e);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), "waiting");
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  t = datetime(e, job, CAIRN_PROPERTY_ScheduledStartTime);
  assert_int_equal(t.kind, CAIRN_TIMESTAMP);
  assert_int_equal(t.microseconds, START + 3600 * SECOND);
  assert_int_equal(t.utc_offset, 60);
  assert_non_null(strstr(text(e, job, CAIRN_PROPERTY_JobStatus),
                         "20250101020000.000000+060"));
  assert_int_equal(cairn_engine_timeout(e), 3600 * SECOND);
  advance(e, 3600 * SECOND - 1);
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  advance(e, 1);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  t = datetime(e, job, CAIRN_PROPERTY_ScheduledStartTime);
  assert_int_equal(t.kind, CAIRN_ZERO);
  cairn_task_finish(e, job, NULL, NULL);
  assert_true(is_null(e, job, CAIRN_PROPERTY_ScheduledStartTime));
  free_engine(e);
}

static void an_interval_is_anchored_when_written_and_shrinks(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"s\",\"run\":true,"
                            "\"ScheduledStartTime\":"
                            "\"00000000000100.000000:000\","
                            "\"UntilTime\":\"00000000010000.000000:000\"}");
  struct cairn_datetime t;

  (void)state;
  advance(e, 20 * SECOND);
  t = datetime(e, job, CAIRN_PROPERTY_ScheduledStartTime);
  assert_int_equal(t.kind, CAIRN_INTERVAL);
  assert_int_equal(t.microseconds, 40 * SECOND);
  t = datetime(e, job, CAIRN_PROPERTY_UntilTime);
  assert_int_equal(t.kind, CAIRN_INTERVAL);
  assert_int_equal(t.microseconds, 3580 * SECOND);
  advance(e, 40 * SECOND);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

static void zeros_mean_start_now(void **state)
{
  static const char *const zeros[] = {"00000000000000.000000+000",
                                      "00000000000000.000000:000"};

  (void)state;
  for (int i = 0; i < 2; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = submit(e, "{\"Name\":\"s\",\"run\":true,"
                              "\"ScheduledStartTime\":"
                              "\"00000001000000.000000:000\"}");

    step(e);
    assert_int_equal(state_of(e, job), CAIRN_NEW);
    set_well(e, job, "ScheduledStartTime", a_string(zeros[i]));
    step(e);
    assert_int_equal(state_of(e, job), CAIRN_RUNNING);
    set_well(e, job, "ScheduledStartTime", a_string(zeros[i]));
    cairn_task_finish(e, job, NULL, NULL);
    step(e);
    assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
    free_engine(e);
  }
}

static void a_moved_start_moves(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"s\",\"run\":true,"
                            "\"ScheduledStartTime\":"
                            "\"00000000000100.000000:000\"}");

  (void)state;
  set_well(e, job, "ScheduledStartTime", a_string("20250101000005.000000+000"));
  advance(e, 5 * SECOND - 1);
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  set_well(e, job, "ScheduledStartTime", a_string("20250101001000.000000+000"));
  advance(e, 60 * SECOND);
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  set_well(e, job, "ScheduledStartTime", nothing);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

static void setting_the_clock_moves_times_but_no_intervals(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job at = submit(e, "{\"Name\":\"a\",\"run\":true,"
                           "\"ScheduledStartTime\":"
                           "\"20250101010000.000000+000\"}");
  cairn_job in = submit(e, "{\"Name\":\"i\",\"run\":true,"
                           "\"ScheduledStartTime\":"
                           "\"00000000010000.000000:000\"}");

  (void)state;
  /* An hour ahead: the one is due, the other is not. */
  cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox), 3600 * SECOND);
  step(e);
  assert_int_equal(state_of(e, at), CAIRN_RUNNING);
  assert_int_equal(state_of(e, in), CAIRN_NEW);
  /* A day back: what runs has run no time, and the interval goes on. */
  cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox), -86400 * SECOND);
  advance(e, 3600 * SECOND);
  assert_int_equal(datetime(e, at, CAIRN_PROPERTY_ElapsedTime).microseconds,
                   3600 * SECOND);
  assert_int_equal(state_of(e, in), CAIRN_RUNNING);
  free_engine(e);
}

static void once_ignores_the_calendar(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"c\",\"run\":true,\"JobRunTimes\":0,"
                            "\"once\":true,\"RunDay\":1,"
                            "\"UntilTime\":\"20200101000000.000000+000\","
                            "\"ScheduledStartTime\":"
                            "\"00000001000000.000000:000\"}");

  (void)state;
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  cairn_task_finish(e, job, NULL, NULL);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  free_engine(e);
}

static void several_runs_without_a_calendar_are_one_and_a_warning(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"c\",\"run\":true,\"JobRunTimes\":0}");
  json_t *errors;

  (void)state;
  step(e);
  cairn_task_finish(e, job, NULL, NULL);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED_WITH_WARNINGS);
  errors = errors_of(e, job, 1);
  assert_non_null(strstr(member(errors, 0, "Message"), "JobRunTimes is 0"));
  json_decref(errors);
  free_engine(e);
}

static void a_failed_run_of_a_recurring_job_leaves_it_waiting(void **state)
{
  static const struct {
    const char *recovery;
    int then;
  } cases[] = {
      {"", CAIRN_SUSPENDED},
      {"\"RecoveryAction\":\"Continue With Next Job\",", CAIRN_SUSPENDED},
      {"\"RecoveryAction\":2,", CAIRN_EXCEPTION}};

  (void)state;
  for (int i = 0; i < 3; i++) {
    cairn_engine *e = open_engine();
    char spec[256];
    cairn_job job;
    json_t *errors;
    struct cairn_value v;

    snprintf(spec, sizeof spec,
             "{\"Name\":\"c\",%s\"JobRunTimes\":2,\"RunDay\":1,"
             "\"verify\":{\"mode\":\"fail\"}}",
             cases[i].recovery);
    job = submit(e, spec);
    assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
    await(e, job, cases[i].then);
    assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode),
                     CAIRN_E_IO_ERROR);
    errors = errors_of(e, job, 0);
    assert_int_equal(json_array_size(errors), 1);
    json_decref(errors);
    if (cases[i].then == CAIRN_SUSPENDED) {
      assert_int_equal(
          cairn_job_get(e, job, CAIRN_PROPERTY_OperationalStatus, &v, NULL), 0);
      assert_int_equal(v.count, 2);
      assert_int_equal(v.as.integers[0], 15);
      assert_int_equal(v.as.integers[1], 6);
      assert_int_equal(number(e, job, CAIRN_PROPERTY_HealthState), 20);
      assert_non_null(strstr(text(e, job, CAIRN_PROPERTY_JobStatus),
                             "the last run failed: machine web1, disk vda: "
                             "cannot read the disk"));
      /* No run left: the failure is the job's. */
      assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
      await(e, job, CAIRN_EXCEPTION);
    }
    free_engine(e);
  }
}

static void fewer_runs_than_done_complete_the_job(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_waiting(e);

  (void)state;
  set_well(e, job, "JobRunTimes", an_integer(1));
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  free_engine(e);
}

static void runs_beyond_the_limit_are_not_made_on_request_either(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":1}}");
  cairn_job job = a_waiting(e);

  (void)state;
  a_running_task(e); /* has the only slot */
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
  set_well(e, job, "JobRunTimes", an_integer(1));
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  free_engine(e);
}

static void a_hold_outlasts_a_run_that_ends_while_suspended(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_waiting(e);

  (void)state;
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
  step(e);
  assert_int_equal(request(e, job, CAIRN_REQUEST_SUSPEND), 4096);
  assert_int_equal(cairn_task_parked(e, job, NULL), 0);
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_phase), "held");
  free_engine(e);
}

/* More of them than one step takes on. */
static void no_job_starts_after_its_until_time(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":9}}");

  (void)state;
  for (int i = 0; i < 900; i++)
    submit(e, i % 3 == 0   ? "{\"Name\":\"n\",\"verify\":{\"mode\":\"loop\"},"
                             "\"UntilTime\":\"20200101000000.000000+000\"}"
              : i % 3 == 1 ? "{\"Name\":\"n\",\"run\":true,"
                             "\"UntilTime\":\"00000000000000.000000:000\"}"
                           : "{\"Name\":\"n\",\"export\":{\"mode\":\"loop\","
                             "\"directory\":\"/d\"},"
                             "\"UntilTime\":\"20241231000000.000000+000\"}");
  cairn_engine_advance(e, 1, NULL);
  step(e);
  for (cairn_job job = cairn_job_next(e, 0); job;
       job = cairn_job_next(e, job)) {
    assert_int_equal(state_of(e, job), CAIRN_EXCEPTION);
    assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 0);
  }
  free_engine(e);
}

static void a_completed_job_has_no_error_whatever_its_last_run_had(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_waiting(e);
  struct cairn_error failure;
  json_t *errors;

  (void)state;
  assert_int_equal(request(e, job, CAIRN_REQUEST_START), 4096);
  step(e);
  cairn__fail(&failure, CAIRN_E_IO_ERROR, "broken");
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), 0);
  set_well(e, job, "UntilTime", a_string("00000000000010.000000:000"));
  advance(e, 11 * SECOND); /* one run went well: Completed */
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  for (int is_ex = 0; is_ex < 2; is_ex++) {
    errors = errors_of(e, job, is_ex);
    assert_true(json_is_null(errors));
    json_decref(errors);
  }
  free_engine(e);
}

static void until_time_ends_a_job(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job never, running, waiting, late;
  struct cairn_error failure;

  (void)state;
  running = a_running_task(e);
  waiting = a_waiting(e);
  never = submit(e, "{\"Name\":\"n\",\"run\":true,\"RunDay\":1,"
                    "\"UntilTime\":\"20250101000010.000000+000\"}");
  set_well(e, running, "UntilTime", a_string("20250101000010.000000+000"));
  set_well(e, waiting, "UntilTime", a_string("00000000000010.000000:000"));
  advance(e, 10 * SECOND); /* the moment itself is allowed */
  assert_int_equal(state_of(e, never), CAIRN_NEW);
  assert_int_equal(state_of(e, running), CAIRN_RUNNING);
  assert_int_equal(state_of(e, waiting), CAIRN_SUSPENDED);
  advance(e, 1);
  assert_int_equal(state_of(e, never), CAIRN_EXCEPTION);
  assert_int_equal(state_of(e, waiting), CAIRN_COMPLETED);
  assert_int_equal(state_of(e, running), CAIRN_SHUTTING_DOWN);
  cairn__fail(&failure, CAIRN_E_TERMINATED, "ended");
  assert_int_equal(cairn_task_finish(e, running, &failure, NULL), 0);
  assert_int_equal(state_of(e, running), CAIRN_TERMINATED);
  assert_non_null(strstr(
      text(e, running, CAIRN_PROPERTY_ErrorSummaryDescription), "UntilTime"));
  late = submit(e, "{\"Name\":\"n\",\"run\":true,"
                   "\"UntilTime\":\"20200101000000.000000+000\"}");
  step(e);
  assert_int_equal(state_of(e, late), CAIRN_EXCEPTION);
  free_engine(e);
}

/* ---- removal ---- */

static int exists(cairn_engine *e, cairn_job job)
{
  struct cairn_value v;

  return cairn_job_get(e, job, CAIRN_PROPERTY_Name, &v, NULL) == 0;
}

static cairn_job finished(cairn_engine *e, int is_delete)
{
  cairn_job job = a_running_task(e);

  set_well(e, job, "DeleteOnCompletion", a_boolean(is_delete));
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000010.000000:000"));
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  return job;
}

static void finished_jobs_are_removed_in_time(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job;

  (void)state;
  job = finished(e, 1);
  drain(e, 0, NULL);
  cairn_engine_advance(e, 10 * SECOND - 1, NULL);
  cairn_engine_step(e);
  assert_true(exists(e, job));
  cairn_engine_advance(e, 1, NULL);
  cairn_engine_step(e);
  assert_int_equal(drain(e, CAIRN_EVENT_REMOVED, NULL), 1);
  assert_false(exists(e, job));

  job = finished(e, 0); /* false: stays, also when set later */
  advance(e, 86400 * SECOND);
  assert_true(exists(e, job));
  set_well(e, job, "DeleteOnCompletion", a_boolean(1));
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000001.000000:000"));
  advance(e, 86400 * SECOND);
  assert_true(exists(e, job));

  job = finished(e, 1); /* taken back, and given again */
  set_well(e, job, "DeleteOnCompletion", a_boolean(0));
  advance(e, 20 * SECOND);
  assert_true(exists(e, job));
  set_well(e, job, "DeleteOnCompletion", a_boolean(1));
  advance(e, 20 * SECOND);
  assert_true(exists(e, job));

  job = finished(e, 1); /* null is like false */
  set_well(e, job, "DeleteOnCompletion", nothing);
  advance(e, 20 * SECOND);
  assert_true(exists(e, job));

  job = finished(e, 1); /* longer */
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000030.000000:000"));
  advance(e, 29 * SECOND);
  assert_true(exists(e, job));
  advance(e, SECOND);
  assert_false(exists(e, job));

  job = finished(e, 1); /* shorter, and already past */
  advance(e, 5 * SECOND);
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000002.000000:000"));
  step(e);
  assert_false(exists(e, job));

  job = finished(e, 1); /* for ever, and not any more */
  set_well(e, job, "TimeBeforeRemoval", a_string("99999999999999.999999:000"));
  advance(e, INT64_C(3650) * 86400 * SECOND);
  assert_true(exists(e, job));
  assert_int_equal(datetime(e, job, CAIRN_PROPERTY_TimeBeforeRemoval).kind,
                   CAIRN_NEVER);
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000001.000000:000"));
  step(e);
  assert_false(exists(e, job));

  job = finished(e, 1); /* zero is one second */
  set_well(e, job, "TimeBeforeRemoval", a_string("00000000000000.000000:000"));
  assert_int_equal(
      datetime(e, job, CAIRN_PROPERTY_TimeBeforeRemoval).microseconds, SECOND);
  step(e);
  assert_true(exists(e, job));
  advance(e, SECOND);
  assert_false(exists(e, job));
  free_engine(e);
}

static void a_suspended_job_is_not_removed(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"w\",\"JobRunTimes\":0,\"RunDay\":1,"
                            "\"DeleteOnCompletion\":true,\"run\":true}");

  (void)state;
  request(e, job, CAIRN_REQUEST_START);
  step(e);
  cairn_task_finish(e, job, NULL, NULL);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  advance(e, 86400 * SECOND);
  assert_true(exists(e, job));
  free_engine(e);
}

/* ---- writing properties ---- */

static void every_property_takes_what_it_may_and_nothing_else(void **state)
{
  const struct cairn_value boolean = a_boolean(1),
                           real = {.kind = CAIRN_VALUE_REAL, .as.real = 1.5};
  static const char *const interval = "00000000020000.000000:000";
  static const char *const time = "20300101000000.000000+000";
  const struct {
    const char *name;
    struct cairn_value value;
    int id; /* CAIRN_OK: taken */
  } cases[] = {
      {"ScheduledStartTime", a_string(time), 0},
      {"ScheduledStartTime", a_string(interval), 0},
      {"ScheduledStartTime", nothing, 0},
      {"ScheduledStartTime", a_string("99999999999999.999999:000"),
       CAIRN_E_INVALID_ARGUMENT},
      {"ScheduledStartTime", a_string("tomorrow"), CAIRN_E_INVALID_ARGUMENT},
      {"ScheduledStartTime", an_integer(0), CAIRN_E_WRONG_TYPE},
      {"JobRunTimes", an_integer(0), 0},
      {"JobRunTimes", an_integer(4294967295), 0},
      {"JobRunTimes", an_integer(4294967296), CAIRN_E_OUT_OF_RANGE},
      {"JobRunTimes", an_integer(-1), CAIRN_E_OUT_OF_RANGE},
      {"JobRunTimes", nothing, CAIRN_E_WRONG_TYPE},
      {"JobRunTimes", boolean, CAIRN_E_WRONG_TYPE},
      {"RunMonth", an_integer(0), 0},
      {"RunMonth", an_integer(11), 0},
      {"RunMonth", a_string("february"), 0},
      {"RunMonth", an_integer(12), CAIRN_E_OUT_OF_RANGE},
      {"RunMonth", a_string("Brumaire"), CAIRN_E_INVALID_ARGUMENT},
      {"RunMonth", nothing, 0},
      {"RunDay", an_integer(-31), 0},
      {"RunDay", an_integer(31), 0},
      {"RunDay", an_integer(32), CAIRN_E_OUT_OF_RANGE},
      {"RunDay", an_integer(-32), CAIRN_E_OUT_OF_RANGE},
      {"RunDay", a_string("1"), CAIRN_E_WRONG_TYPE},
      {"RunDay", real, CAIRN_E_WRONG_TYPE},
      {"RunDay", nothing, 0},
      {"RunDayOfWeek", an_integer(-7), 0},
      {"RunDayOfWeek", a_string("-friday"), 0},
      {"RunDayOfWeek", an_integer(8), CAIRN_E_OUT_OF_RANGE},
      {"RunDayOfWeek", nothing, 0},
      {"RunStartInterval", a_string(interval), 0},
      {"RunStartInterval", a_string(time), CAIRN_E_WRONG_TYPE},
      {"RunStartInterval", a_string("99999999999999.999999:000"),
       CAIRN_E_WRONG_TYPE},
      {"RunStartInterval", nothing, 0},
      {"LocalOrUtcTime", an_integer(1), 0},
      {"LocalOrUtcTime", a_string("utc time"), 0},
      {"LocalOrUtcTime", an_integer(0), CAIRN_E_OUT_OF_RANGE},
      {"LocalOrUtcTime", an_integer(3), CAIRN_E_OUT_OF_RANGE},
      {"LocalOrUtcTime", nothing, 0},
      {"UntilTime", a_string(time), 0},
      {"UntilTime", a_string("99999999999999.999999+000"), 0},
      {"UntilTime", a_string("00000000000000.000000+000"),
       CAIRN_E_INVALID_ARGUMENT},
      {"UntilTime", nothing, 0},
      {"Notify", a_string("ops"), 0},
      {"Notify", a_string(""), 0},
      {"Notify", a_string("\xff"), CAIRN_E_INVALID_ARGUMENT},
      {"Notify", an_integer(1), CAIRN_E_WRONG_TYPE},
      {"Notify", nothing, 0},
      {"Priority", an_integer(4294967295), 0},
      {"Priority", an_integer(-1), CAIRN_E_OUT_OF_RANGE},
      {"Priority", nothing, 0},
      {"DeleteOnCompletion", boolean, 0},
      {"DeleteOnCompletion", an_integer(1), CAIRN_E_WRONG_TYPE},
      {"DeleteOnCompletion", nothing, 0},
      {"TimeBeforeRemoval", a_string(interval), 0},
      {"TimeBeforeRemoval", a_string(time), CAIRN_E_WRONG_TYPE},
      {"TimeBeforeRemoval", nothing, CAIRN_E_WRONG_TYPE},
  };
  cairn_engine *e = open_engine();
  cairn_job job = a_waiting(e);
  const struct cairn_property_info *p;
  struct cairn_error err;

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    int code = set(e, job, cases[i].name, cases[i].value, &err);

    if (code != (cases[i].id ? -1 : 0) || err.id != cases[i].id)
      fail_msg("case %zu, %s: code %d, error %d (%s)", i, cases[i].name, code,
               err.id, err.message);
    if (cases[i].id)
      assert_non_null(strstr(err.message, cases[i].name));
    /* Keep it waiting: what the next case needs. */
    if (!cases[i].id)
      set_well(e, job, "RunDay", an_integer(1));
    set_well(e, job, "JobRunTimes", an_integer(0));
  }
  for (size_t i = 0; (p = cairn_property_at(i)) != NULL; i++) {
    if (!p->is_writable) {
      assert_int_equal(set(e, job, p->name, an_integer(1), &err), -1);
      assert_int_equal(err.id, CAIRN_E_READ_ONLY);
    }
  }
  assert_int_equal(set(e, job, "Prioritty", an_integer(1), &err), -1);
  assert_int_equal(err.id, CAIRN_E_NO_SUCH_PROPERTY);
  assert_non_null(strstr(err.message, "\"Priority\""));
  free_engine(e);
}

static void set_does_all_or_nothing(void **state)
{
  /* Every writable property with a good value, and as the last change one
   * that is refused. */
  struct cairn_change changes[] = {
      {"ScheduledStartTime", a_string("20300101000000.000000+000")},
      {"JobRunTimes", an_integer(7)},
      {"RunMonth", an_integer(1)},
      {"RunDay", an_integer(28)},
      {"RunDayOfWeek", an_integer(6)},
      {"RunStartInterval", a_string("00000000020000.000000:000")},
      {"LocalOrUtcTime", an_integer(2)},
      {"UntilTime", a_string("20400101000000.000000+000")},
      {"Notify", a_string("first")},
      {"Notify", a_string("ops")},
      {"Priority", an_integer(3)},
      {"DeleteOnCompletion", a_boolean(1)},
      {"TimeBeforeRemoval", a_string("00000000001000.000000:000")},
      {"JobState", an_integer(7)},
  };
  enum { COUNT = sizeof changes / sizeof changes[0] };
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, "{\"Name\":\"a\",\"run\":true,\"Notify\":\"me\"}");
  char *before, *after;
  struct cairn_error err;

  (void)state;
  drain(e, 0, NULL);
  assert_int_equal(cairn_job_json(e, job, 1, &before, NULL), 0);
  for (size_t n = 0; n < COUNT; n++) {
    struct cairn_change some[COUNT];

    /* n good ones, then the bad one */
    memcpy(some, changes, sizeof some);
    some[n] = changes[COUNT - 1];
    assert_int_equal(cairn_job_set(e, job, some, n + 1, &err), -1);
    assert_int_equal(err.id, CAIRN_E_READ_ONLY);
    assert_int_equal(cairn_job_json(e, job, 1, &after, NULL), 0);
    assert_string_equal(before, after);
    cairn_free(after);
  }
  assert_int_equal(drain(e, CAIRN_EVENT_CHANGED, NULL), 0);
  assert_int_equal(cairn_job_set(e, job, changes, COUNT - 1, &err), 0);
  assert_int_equal(drain(e, CAIRN_EVENT_CHANGED, NULL), 1);
  cairn_free(before);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_JobRunTimes), 7);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_RunMonth), 1);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_RunDay), 28);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_RunDayOfWeek), 6);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_LocalOrUtcTime), 2);
  assert_string_equal(text(e, job, CAIRN_PROPERTY_Notify), "ops");
  assert_int_equal(number(e, job, CAIRN_PROPERTY_Priority), 3);
  assert_int_equal(
      datetime(e, job, CAIRN_PROPERTY_RunStartInterval).microseconds,
      7200 * SECOND);
  assert_int_equal(
      datetime(e, job, CAIRN_PROPERTY_TimeBeforeRemoval).microseconds,
      600 * SECOND);
  /* 30 February */
  set_well(e, job, "RunMonth", an_integer(1));
  assert_int_equal(set(e, job, "RunDay", an_integer(30), &err), -1);
  assert_non_null(strstr(err.message, "never comes"));
  assert_int_equal(number(e, job, CAIRN_PROPERTY_RunDay), 28);
  free_engine(e);
}

/* ---- submitting ---- */

static void bad_specifications_are_refused_whole(void **state)
{
  static const struct {
    const char *spec;
    int id;
    const char *says;
  } cases[] = {
      {"", CAIRN_E_INVALID_ARGUMENT, "not JSON"},
      {"[]", CAIRN_E_WRONG_TYPE, "object"},
      {"7", CAIRN_E_INVALID_ARGUMENT, "not JSON"},
      {"{\"Name\":\"a\",\"Name\":\"b\",\"run\":true}", CAIRN_E_INVALID_ARGUMENT,
       "duplicate"},
      {"{\"run\":true}", CAIRN_E_INVALID_ARGUMENT, "Name"},
      {"{\"Name\":null,\"run\":true}", CAIRN_E_WRONG_TYPE, "Name"},
      {"{\"Name\":\"\",\"run\":true}", CAIRN_E_INVALID_ARGUMENT, "Name"},
      {"{\"Name\":\"a\"}", CAIRN_E_INVALID_ARGUMENT, "export"},
      {"{\"Name\":\"a\",\"run\":true,\"verify\":{\"mode\":\"well\"}}",
       CAIRN_E_INVALID_ARGUMENT, "exactly one"},
      {"{\"Name\":\"a\",\"run\":7}", CAIRN_E_WRONG_TYPE, "run"},
      {"{\"Name\":\"a\",\"verify\":7}", CAIRN_E_WRONG_TYPE, "verify"},
      {"{\"Name\":\"a\",\"verify\":{}}", CAIRN_E_WRONG_TYPE, "mode"},
      {"{\"Name\":\"a\",\"merge\":{}}", CAIRN_E_INVALID_ARGUMENT,
       "\"directory\" is missing"},
      {"{\"Name\":\"a\",\"prune\":{\"directory\":\"/x\"}}",
       CAIRN_E_INVALID_ARGUMENT, "\"keep\" is missing"},
      {"{\"Name\":\"a\",\"run\":true,\"Prioritty\":1}", CAIRN_E_UNKNOWN_KEY,
       "\"Priority\""},
      {"{\"Name\":\"a\",\"run\":true,\"JobState\":4}", CAIRN_E_READ_ONLY,
       "JobState"},
      {"{\"Name\":\"a\",\"run\":true,\"RunMonth\":12}", CAIRN_E_OUT_OF_RANGE,
       "0 to 11"},
      {"{\"Name\":\"a\",\"run\":true,\"RunMonth\":[1]}", CAIRN_E_WRONG_TYPE,
       "RunMonth"},
      {"{\"Name\":\"a\",\"run\":true,\"RunMonth\":1,\"RunDay\":-30}",
       CAIRN_E_INVALID_ARGUMENT, "never"},
      {"{\"Name\":\"a\",\"run\":true,\"TimeBeforeRemoval\":null}",
       CAIRN_E_WRONG_TYPE, "TimeBeforeRemoval"},
      {"{\"Name\":\"a\",\"run\":true,\"RecoveryAction\":\"Panic\"}",
       CAIRN_E_INVALID_ARGUMENT, "Re-run Job"},
      {"{\"Name\":\"a\",\"run\":true,\"OtherRecoveryAction\":\"x\"}",
       CAIRN_E_INVALID_ARGUMENT, "RecoveryAction is 1"},
      {"{\"Name\":\"a\",\"run\":true,\"RecoveryJob\":\"DEADBEEF\"}",
       CAIRN_E_NOT_FOUND, "RecoveryJob"},
      {"{\"Name\":\"a\",\"run\":true,\"queue\":\"fast\"}",
       CAIRN_E_INVALID_ARGUMENT, "\"default\""},
      {"{\"Name\":\"a\",\"run\":true,\"zone\":\"Mars/Olympus\"}",
       CAIRN_E_INVALID_ARGUMENT, "zone"},
      {"{\"Name\":\"a\",\"run\":true,\"zone\":\"../etc/passwd\"}",
       CAIRN_E_INVALID_ARGUMENT, "zone"},
      {"{\"Name\":\"a\",\"run\":true,\"gap\":\"wide\"}",
       CAIRN_E_INVALID_ARGUMENT, "\"shift\""},
      {"{\"Name\":\"a\",\"run\":true,\"once\":1}", CAIRN_E_WRONG_TYPE, "once"},
      {"{\"Name\":\"a\",\"run\":true,\"Caption\":"
       "\"12345678901234567890123456789012345678901234567890123456789012345\"}",
       CAIRN_E_OUT_OF_RANGE, "64"},
      {"{\"Name\":\"a\",\"verify\":{\"mode\":\"well\"},\"UntilTime\":\"x\"}",
       CAIRN_E_INVALID_ARGUMENT, "UntilTime"},
  };
  cairn_engine *e = open_engine();
  struct cairn_error err;
  cairn_job job;

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const char *spec = cases[i].spec;
    int code = cairn_submit(e, spec, strlen(spec), &job, &err);

    if (code != -1 || err.id != cases[i].id ||
        !strstr(err.message, cases[i].says))
      fail_msg("%s: code %d, error %d: %s", spec, code, err.id, err.message);
    assert_int_equal(job, 0);
  }
  assert_int_equal(cairn_job_next(e, 0), 0);
  assert_int_equal(cairn_engine_timeout(e), -1); /* and no event */
  free_engine(e);
}

static void a_full_specification_is_read_back(void **state)
{
  static const char spec[] =
      "{\"Name\":\"n\xc3\xa4me\",\"Caption\":\"c\",\"Description\":\"d\","
      "\"ElementName\":\"e\",\"RecoveryAction\":\"other\","
      "\"OtherRecoveryAction\":\"mine\",\"queue\":\"default\","
      "\"zone\":\"UTC\",\"gap\":\"shift\",\"overlap\":\"both\","
      "\"catch_up\":\"none\",\"policy\":\"p\",\"policy_key\":\"k\","
      "\"RunDayOfWeek\":\"-Friday\",\"volatile\":true,\"run\":{\"a\":1}}";
  static const struct {
    const char *name, *value;
  } expected[] = {
      {"Name", "n\xc3\xa4me"},
      {"Caption", "c"},
      {"Description", "d"},
      {"ElementName", "e"},
      {"RecoveryAction", "Other"},
      {"OtherRecoveryAction", "mine"},
      {"queue", "default"},
      {"zone", "UTC"},
      {"gap", "shift"},
      {"overlap", "both"},
      {"catch_up", "none"},
      {"policy", "p"},
      {"policy_key", "k"},
      {"RunDayOfWeek", "-Friday"},
      {"JobState", "New"},
      {"phase", "waiting"},
      {"Owner", "tester"},
      {"Status", "Stopped"},
      {"TimeSubmitted", "20250101000000.000000+000"},
      {"TimeOfLastStateChange", "00000000000000.000000:000"},
      {"TimeBeforeRemoval", "00000000000500.000000:000"},
  };
  cairn_engine *e = open_engine();
  cairn_job job = submit(e, spec);
  const struct cairn_property_info *p;
  json_t *json;
  char *out;
  size_t i;

  (void)state;
  assert_int_equal(cairn_job_json(e, job, 0, &out, NULL), 0);
  json = get_json(out);
  for (i = 0; (p = cairn_property_at(i)) != NULL; i++)
    assert_non_null(json_object_get(json, p->name));
  assert_int_equal(json_object_size(json), i);
  for (i = 0; i < sizeof expected / sizeof expected[0]; i++) {
    const char *value =
        json_string_value(json_object_get(json, expected[i].name));

    if (!value || strcmp(value, expected[i].value) != 0)
      fail_msg("%s: %s", expected[i].name, value ? value : "no string");
  }
  assert_true(json_is_false(json_object_get(json, "DeleteOnCompletion")));
  assert_true(json_is_null(json_object_get(json, "Priority")));
  assert_string_equal(json_string_value(json_array_get(
                          json_object_get(json, "OperationalStatus"), 0)),
                      "Dormant");
  json_decref(json);
  assert_int_equal(cairn_job_json(e, job, 1, &out, NULL), 0);
  json = get_json(out);
  assert_int_equal(json_integer_value(json_object_get(json, "JobState")), 2);
  assert_int_equal(json_integer_value(json_object_get(json, "RunDayOfWeek")),
                   -6);
  json_decref(json);
  free_engine(e);
}

static void submit_all_is_all_or_nothing(void **state)
{
  static const char good[] = "[" TASK "," TASK "," TASK "]";
  static const char bad[] = "[" TASK ",{\"Name\":\"x\"}," TASK "]";
  cairn_engine *e = open_engine();
  cairn_job jobs[3];
  struct cairn_error err;

  (void)state;
  assert_int_equal(cairn_submit_all(e, bad, strlen(bad), jobs, 3, &err), -1);
  assert_non_null(strstr(err.message, "specification 2"));
  assert_int_equal(cairn_job_next(e, 0), 0);
  assert_int_equal(cairn_submit_all(e, good, strlen(good), jobs, 2, &err), -1);
  assert_int_equal(cairn_submit_all(e, "{}", 2, jobs, 1, &err), -1);
  assert_int_equal(cairn_submit_all(e, "[]", 2, jobs, 0, &err), 0);
  assert_int_equal(cairn_job_next(e, 0), 0);
  assert_int_equal(cairn_submit_all(e, good, strlen(good), jobs, 3, &err), 0);
  assert_int_equal(cairn_job_next(e, 0), jobs[0]);
  assert_int_equal(cairn_job_next(e, jobs[0]), jobs[1]);
  assert_int_equal(cairn_job_next(e, jobs[1]), jobs[2]);
  assert_int_equal(cairn_job_next(e, jobs[2]), 0);
  assert_int_equal(drain(e, CAIRN_EVENT_SUBMITTED, NULL), 3);
  /* The walk goes on over a job that has gone. */
  cairn_job_kill(e, jobs[1], -1, NULL);
  assert_int_equal(cairn_job_delete(e, jobs[1], NULL), 0);
  assert_int_equal(cairn_job_next(e, jobs[0]), jobs[2]);
  assert_int_equal(cairn_job_next(e, jobs[1]), jobs[2]);
  free_engine(e);
}

static void jobs_are_found_by_their_ids(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job jobs[200], found;
  char id[64], variant[64];
  struct cairn_error err;
  int ambiguous = 0;

  (void)state;
  for (int i = 0; i < 200; i++)
    jobs[i] = submit(e, TASK);
  for (int i = 0; i < 200; i++) {
    snprintf(id, sizeof id, "%s", text(e, jobs[i], CAIRN_PROPERTY_InstanceID));
    assert_int_equal(strlen(id), 42);
    assert_int_equal(cairn_job_find(e, id, &found, NULL), 0);
    assert_int_equal(found, jobs[i]);
    snprintf(variant, sizeof variant, "{%s}", id + 6);
    for (char *p = variant; *p; p++)
      *p = (char)(*p >= 'A' && *p <= 'F' ? *p + 32 : *p);
    assert_int_equal(cairn_job_find(e, variant, &found, NULL), 0);
    assert_int_equal(found, jobs[i]);
    snprintf(variant, sizeof variant, "cairn:%.20s", id + 6);
    assert_int_equal(cairn_job_find(e, variant, &found, NULL), 0);
    assert_int_equal(found, jobs[i]);
    snprintf(variant, sizeof variant, "%.4s", id + 6);
    if (cairn_job_find(e, variant, &found, &err) != 0) {
      assert_int_equal(err.id, CAIRN_E_AMBIGUOUS);
      ambiguous++;
    } else {
      assert_int_equal(found, jobs[i]);
    }
    assert_int_equal(cairn_job_find(e, "123", &found, &err), -1);
    assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  }
  assert_true(ambiguous < 50); /* 200 ids over 65536 beginnings */
  assert_int_equal(cairn_job_find(e, "nonsense", &found, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(
      cairn_job_find(e, "00000000-0000-0000-0000-000000000000", &found, &err),
      -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  free_engine(e);
}

static void a_plan_runs_nothing(void **state)
{
  cairn_engine *e = open_engine();
  const char *spec = THREAD("loop");
  struct cairn_error err;
  char *plan;

  (void)state;
  assert_int_equal(cairn_plan(e, spec, strlen(spec), &plan, NULL), 0);
  assert_string_equal(plan, "{\"mode\":\"loop\"}");
  cairn_free(plan);
  assert_int_equal(cairn_plan(e, TASK, strlen(TASK), &plan, NULL), 0);
  assert_string_equal(plan, "{\"kind\":\"run\"}");
  cairn_free(plan);
  assert_int_equal(cairn_plan(e, "{}", 2, &plan, &err), -1);
  assert_null(plan);
  assert_int_equal(cairn_job_next(e, 0), 0);
  free_engine(e);
}

/* ---- opening and closing ---- */

static void options_are_checked(void **state)
{
  static const struct {
    const char *queues;
    int id;
  } cases[] = {
      {"{", CAIRN_E_INVALID_ARGUMENT},
      {"[]", CAIRN_E_WRONG_TYPE},
      {"{\"a\":1}", CAIRN_E_WRONG_TYPE},
      {"{\"a\":{\"concurency\":1}}", CAIRN_E_UNKNOWN_KEY},
      {"{\"a\":{\"concurrency\":0}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"concurrency\":\"2\"}}", CAIRN_E_WRONG_TYPE},
      {"{\"\":{}}", CAIRN_E_INVALID_ARGUMENT},
  };
  struct cairn_engine_options options = {.size = sizeof options};
  struct cairn_error err;
  cairn_engine *e;

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    options.queues_json = cases[i].queues;
    assert_int_equal(cairn_engine_open(&options, &e, &err), -1);
    assert_int_equal(err.id, cases[i].id);
    assert_null(e);
  }
  options.queues_json = NULL;
  options.store = ":memory:";
  assert_int_equal(cairn_engine_open(&options, &e, &err), 0);
  assert_int_equal(cairn_engine_advance(e, 1, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_SUPPORTED);
  cairn_engine_free(e);
  options.size = 4;
  assert_int_equal(cairn_engine_open(&options, &e, &err), -1);
  assert_int_equal(err.id, CAIRN_E_VERSION);
  assert_int_equal(cairn_engine_open(NULL, &e, &err), 0);
  cairn_engine_free(e);
  cairn_engine_free(NULL);
}

static void close_until_idle(cairn_engine *e, enum cairn_close_mode mode)
{
  struct cairn_event event;

  cairn_engine_close(e, mode);
  for (int i = 0; !cairn_engine_is_idle(e); i++) {
    assert_true(i < 20000);
    cairn_engine_wait(e, 1000);
    while (cairn_engine_next_events(e, &event, 1) == 1) {
      struct cairn_error failure;

      /* what a host of tasks does */
      cairn__fail(&failure, CAIRN_E_TERMINATED, "ended");
      if (event.type == CAIRN_EVENT_TASK_SUSPEND)
        cairn_task_parked(e, event.job, NULL);
      if (event.type == CAIRN_EVENT_TASK_TERMINATE)
        cairn_task_finish(e, event.job, &failure, NULL);
    }
  }
}

static void closing_ends_every_job_as_asked(void **state)
{
  static const struct {
    cairn_job (*make)(cairn_engine *e);
    int then[3]; /* after suspend, terminate, kill */
  } cases[] = {
      {a_new, {2, 8, 9}},
      {a_running_task, {5, 8, 9}},
      {a_running_thread, {5, 8, 9}},
      {a_suspending_task, {5, 8, 9}},
      {a_parked_thread, {5, 8, 9}},
      {a_waiting, {5, 8, 9}},
      {an_asking, {12, 8, 9}},
      {a_completed, {7, 7, 7}},
  };
  enum { CASES = sizeof cases / sizeof cases[0] };

  (void)state;
  for (int mode = 0; mode < 3; mode++) {
    for (int i = 0; i < CASES; i++) {
      cairn_engine *e = open_engine();
      cairn_job job = cases[i].make(e), other;
      struct cairn_error err;

      /* No draining in between: a suspending task keeps its event. */
      if (cases[i].make == a_suspending_task)
        cairn_task_parked(e, job, NULL);
      close_until_idle(e, (enum cairn_close_mode)mode);
      if (state_of(e, job) != cases[i].then[mode])
        fail_msg("mode %d, case %d: state %d, not %d", mode, i,
                 state_of(e, job), cases[i].then[mode]);
      assert_int_equal(cairn_submit(e, TASK, strlen(TASK), &other, &err), -1);
      assert_int_equal(err.id, CAIRN_E_CLOSED);
      cairn_engine_free(e);
    }
  }
}

static void closing_can_be_made_harder_only(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job = a_deaf_thread(e);

  (void)state;
  cairn_engine_close(e, CAIRN_CLOSE_SUSPEND);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  cairn_engine_close(e, CAIRN_CLOSE_TERMINATE);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_SHUTTING_DOWN);
  cairn_engine_close(e, CAIRN_CLOSE_SUSPEND);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_SHUTTING_DOWN);
  cairn_engine_close(e, CAIRN_CLOSE_KILL);
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_KILLED);
  free_engine(e);
}

/* What a client does meanwhile must not keep the engine from closing. */
static void a_closing_engine_suspends_what_would_go_on(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job task = a_suspending_task(e), asking = an_asking(e);
  struct cairn_error err;

  (void)state;
  cairn_engine_close(e, CAIRN_CLOSE_SUSPEND);
  step(e);
  assert_int_equal(cairn_job_resume(e, task, &err), CAIRN_RC_FAILED);
  assert_int_equal(err.id, CAIRN_E_CLOSED);
  assert_int_equal(cairn_task_parked(e, task, NULL), 0);
  assert_true(cairn_engine_is_idle(e));
  assert_int_equal(cairn_job_resume_with_input(e, asking, "yes", NULL), 0);
  close_until_idle(e, CAIRN_CLOSE_SUSPEND);
  assert_int_equal(state_of(e, asking), CAIRN_SUSPENDED);
  free_engine(e);
}

/* ---- events, timers, the descriptor ---- */

static int is_readable(cairn_engine *e)
{
  struct pollfd poller = {.fd = cairn_engine_pollfd(e), .events = POLLIN};

  return poll(&poller, 1, 0) == 1;
}

static void the_sequence_of_events_has_no_gap(void **state)
{
  cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":100}}");
  struct cairn_event event;
  uint64_t next = 1;
  int states[5] = {0}, count = 0;

  (void)state;
  for (int i = 0; i < 300; i++)
    submit(e, TASK);
  while (cairn_engine_step(e) || cairn_engine_next_events(e, &event, 0)) {
    while (cairn_engine_next_events(e, &event, 1) == 1) {
      /* what no store would keep has no number */
      if (event.type == CAIRN_EVENT_TASK_START ||
          event.type == CAIRN_EVENT_PERCENT)
        assert_int_equal(event.sequence, 0);
      else
        assert_int_equal(event.sequence, next++);
      if (event.job == 1 && event.type == CAIRN_EVENT_STATE)
        states[count++] = event.old_state * 100 + event.new_state;
      if (event.type == CAIRN_EVENT_TASK_START)
        cairn_task_finish(e, event.job, NULL, NULL);
    }
  }
  assert_int_equal(count, 4);
  assert_int_equal(states[0], 203);
  assert_int_equal(states[1], 304);
  assert_int_equal(states[2], 406);
  assert_int_equal(states[3], 607);
  /* submitted, four changes, run ended: six a job */
  assert_int_equal(next, 300 * 6 + 1);
  free_engine(e);
}

static void
the_descriptor_is_readable_while_there_is_something_to_do(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job job;
  struct cairn_event events[16];

  (void)state;
  assert_false(is_readable(e));
  job = submit(e, TASK);
  assert_true(is_readable(e)); /* an event, and a job to start */
  assert_int_equal(cairn_engine_next_events(e, events, 16), 1);
  assert_true(is_readable(e));
  assert_int_equal(cairn_engine_step(e), 1);
  assert_int_equal(cairn_engine_next_events(e, events, 1), 1);
  assert_true(is_readable(e)); /* more events */
  cairn_engine_next_events(e, events, 16);
  assert_false(is_readable(e));
  assert_int_equal(cairn_engine_step(e), 0);
  cairn_task_progress(e, job, 10, NULL);
  assert_true(is_readable(e));
  drain(e, 0, NULL);
  assert_false(is_readable(e));
  assert_int_equal(cairn_timer_start(e, SECOND, 7, NULL), 0);
  assert_false(is_readable(e));
  cairn_engine_advance(e, SECOND, NULL);
  assert_true(is_readable(e));
  free_engine(e);
}

static void timers_fire_in_order(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_event event;
  struct cairn_error err;
  uint64_t expected[] = {3, 1, 4, 2};
  int n = 0;

  (void)state;
  cairn_timer_start(e, 200, 1, NULL);
  cairn_timer_start(e, 300, 2, NULL);
  cairn_timer_start(e, 100, 3, NULL);
  cairn_timer_start(e, 200, 4, NULL);
  cairn_timer_start(e, 150, 5, NULL);
  cairn_timer_stop(e, 5);
  cairn_timer_stop(e, 6);
  assert_int_equal(cairn_timer_start(e, -1, 7, &err), -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  assert_int_equal(cairn_timer_start(e, INT64_MAX, 8, NULL), 0);
  assert_int_equal(cairn_engine_timeout(e), 100);
  cairn_engine_advance(e, 1000, NULL);
  cairn_engine_step(e);
  while (cairn_engine_next_events(e, &event, 1) == 1) {
    assert_int_equal(event.type, CAIRN_EVENT_TIMER);
    assert_true(n < 4);
    assert_int_equal(event.cookie, expected[n++]);
  }
  assert_int_equal(n, 4);
  free_engine(e);
}

static void the_real_clock_wakes_the_descriptor(void **state)
{
  cairn_engine *e;
  struct pollfd poller;
  struct cairn_event event;
  cairn_job job;
  int64_t then;

  (void)state;
  assert_int_equal(cairn_engine_open(NULL, &e, NULL), 0);
  poller = (struct pollfd){.fd = cairn_engine_pollfd(e), .events = POLLIN};
  then = cairn_engine_monotonic(e);
  assert_int_equal(cairn_timer_start(e, 20000, 9, NULL), 0);
  assert_int_equal(cairn_timer_start(e, 60 * SECOND, 10, NULL), 0);
  assert_int_equal(poll(&poller, 1, 20000), 1);
  assert_true(cairn_engine_monotonic(e) - then >= 20000);
  assert_int_equal(cairn_engine_step(e), 1);
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 1);
  assert_int_equal(event.cookie, 9);
  cairn_engine_step(e);
  assert_false(is_readable(e));
  assert_int_equal(cairn_engine_wait(e, 1000), 0);
  /* and the wall clock */
  {
    struct cairn_datetime soon = {.kind = CAIRN_TIMESTAMP,
                                  .precision = 20,
                                  .microseconds = cairn_engine_now(e) + 20000};
    char text_of[CAIRN_DATETIME_SIZE], spec[200];

    cairn_datetime_format(&soon, text_of);
    snprintf(spec, sizeof spec,
             "{\"Name\":\"a\",\"run\":true,\"ScheduledStartTime\":\"%s\"}",
             text_of);
    job = submit(e, spec);
    drain(e, 0, NULL);
    await(e, job, CAIRN_RUNNING);
    assert_true(cairn_engine_now(e) >= soon.microseconds);
  }
  cairn_engine_free(e);
}

/* ---- memory ---- */

/* Of this thread alone: an engine's threads always have memory. */
static _Thread_local int allocations_left = -1; /* no limit */

static void *limited_realloc(void *p, size_t n)
{
  if (allocations_left == 0)
    return NULL;
  if (allocations_left > 0)
    allocations_left--;
  return realloc(p, n);
}

/* Makes every allocation of a call fail in turn. Nothing may have changed. */
static void without_memory_nothing_happens(void **state)
{
  static const char spec[] =
      "{\"Name\":\"n\",\"Caption\":\"c\",\"Notify\":\"x\",\"export\":{\"mode\":"
      "\"loop\",\"directory\":\"/d\"}}";
  cairn_engine *e;
  cairn_job job, task, again;
  struct cairn_error err;
  char *before, *after;
  int code, n;

  (void)state;
  for (n = 0;; n++) { /* open */
    allocations_left = n;
    code = cairn_engine_open(NULL, &e, &err);
    allocations_left = -1;
    if (code == 0)
      break;
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    assert_null(e);
  }
  assert_true(n > 5);
  for (n = 0;; n++) { /* submit */
    allocations_left = n;
    code = cairn_submit(e, spec, strlen(spec), &job, &err);
    allocations_left = -1;
    if (code == 0)
      break;
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    assert_int_equal(cairn_job_next(e, 0), 0);
    assert_int_equal(e->events.of_jobs.count, 0);
    assert_int_equal(e->queues->jobs, 0);
    assert_int_equal(e->directories.count, 0);
  }
  assert_true(n > 10);
  assert_int_equal(cairn_job_json(e, job, 1, &before, NULL), 0);
  for (n = 0;; n++) { /* set */
    struct cairn_change changes[] = {{"Priority", an_integer(3)},
                                     {"Notify", a_string("other")}};

    allocations_left = n;
    code = cairn_job_set(e, job, changes, 2, &err);
    allocations_left = -1;
    if (code == 0)
      break;
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    assert_int_equal(cairn_job_json(e, job, 1, &after, NULL), 0);
    assert_string_equal(before, after);
    cairn_free(after);
  }
  assert_true(n > 0);
  cairn_free(before);
  for (n = 0;; n++) { /* reading */
    char *out;

    allocations_left = n;
    code = cairn_job_json(e, job, 0, &out, &err);
    allocations_left = -1;
    if (code == 0) {
      cairn_free(out);
      break;
    }
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  }
  /* A request without room for its events: fill the ring first. */
  task = a_new(e);
  while (e->events.of_jobs.capacity - e->events.of_jobs.count >=
         CAIRN__EVENTS_PER_ACTION) {
    assert_int_equal(cairn_submit(e, TASK, strlen(TASK), &again, NULL), 0);
    if (e->events.of_jobs.count == 0)
      break;
  }
  allocations_left = 0;
  assert_int_equal(cairn_job_request_state_change(
                       e, task, CAIRN_REQUEST_SUSPEND, NULL, &err),
                   CAIRN_RC_FAILED);
  assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  assert_int_equal(state_of(e, task), CAIRN_NEW);
  /* A step does nothing, says so, and goes on when memory is back. */
  assert_int_equal(cairn_engine_step(e), 1);
  assert_int_equal(state_of(e, task), CAIRN_NEW);
  allocations_left = -1;
  step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  free_engine(e);
}

static void try_start(cairn_engine *e, cairn_job job)
{
  cairn_job_request_state_change(e, job, CAIRN_REQUEST_START, NULL, NULL);
}

static void try_suspend(cairn_engine *e, cairn_job job)
{
  cairn_job_request_state_change(e, job, CAIRN_REQUEST_SUSPEND, NULL, NULL);
}

static void try_terminate(cairn_engine *e, cairn_job job)
{
  cairn_job_request_state_change(e, job, CAIRN_REQUEST_TERMINATE, NULL, NULL);
}

static void try_kill(cairn_engine *e, cairn_job job)
{
  cairn_job_request_state_change(e, job, CAIRN_REQUEST_KILL, NULL, NULL);
}

static void try_kill_job(cairn_engine *e, cairn_job job)
{
  cairn_job_kill(e, job, 1, NULL);
}

static void try_resume(cairn_engine *e, cairn_job job)
{
  cairn_job_resume(e, job, NULL);
}

static void try_answer(cairn_engine *e, cairn_job job)
{
  cairn_job_resume_with_input(e, job, "yes", NULL);
}

static void try_delete(cairn_engine *e, cairn_job job)
{
  cairn_job_delete(e, job, NULL);
}

static void try_set(cairn_engine *e, cairn_job job)
{
  struct cairn_change changes[] = {{"Priority", an_integer(3)},
                                   {"DeleteOnCompletion", a_boolean(1)}};

  cairn_job_set(e, job, changes, 2, NULL);
}

static void try_progress(cairn_engine *e, cairn_job job)
{
  cairn_task_progress(e, job, 50, NULL);
}

static void try_ask(cairn_engine *e, cairn_job job)
{
  cairn_task_ask(e, job, "and now?", "[\"on\"]", NULL);
}

static void try_parked(cairn_engine *e, cairn_job job)
{
  cairn_task_parked(e, job, NULL);
}

static void try_warn(cairn_engine *e, cairn_job job)
{
  cairn_task_warn(e, job, "a warning", NULL);
}

static void try_finish(cairn_engine *e, cairn_job job)
{
  cairn_task_finish(e, job, NULL, NULL);
}

/* Every call that changes a job, in every situation of a job, without room for
 * its events and without memory to make some: the job and the queue of events
 * stay what they were. */
static void without_room_for_events_no_call_changes_a_job(void **state)
{
  static void (*const calls[])(cairn_engine *, cairn_job) = {
      try_start,  try_suspend, try_terminate, try_kill,  try_kill_job,
      try_resume, try_answer,  try_delete,    try_set,   try_progress,
      try_ask,    try_parked,  try_warn,      try_finish};

  (void)state;
  for (int i = 0; i < SITUATIONS; i++) {
    cairn_engine *e = open_engine();
    cairn_job job = situations[i].make(e);
    char *before, *after;

    assert_int_equal(cairn__events_reserve(e, 1), 0);
    while (e->events.of_jobs.count < e->events.of_jobs.capacity)
      cairn__event_push(e, CAIRN_EVENT_PERCENT, NULL);
    assert_int_equal(cairn_job_json(e, job, 1, &before, NULL), 0);
    for (size_t c = 0; c < sizeof calls / sizeof calls[0]; c++) {
      allocations_left = 0;
      calls[c](e, job);
      cairn_engine_step(e);
      allocations_left = -1;
      assert_int_equal(e->events.of_jobs.count, e->events.of_jobs.capacity);
      assert_int_equal(cairn_job_json(e, job, 1, &after, NULL), 0);
      if (strcmp(before, after) != 0)
        fail_msg("%s, call %zu: %s\nbecame %s", situations[i].name, c, before,
                 after);
      cairn_free(after);
    }
    cairn_free(before);
    free_engine(e);
  }
}

/* Steps with every kind of work before them, in which the n-th allocation and
 * all after it fail. Nothing that happened may go untold, or be told twice. */
static void without_memory_a_step_loses_no_event(void **state)
{
  enum { TASKS = 30, TIMERS = 20, KINDS = CAIRN_EVENT_TASK_RECOVER + 1 };
  static const char *const argv[] = {"echo", "hello", NULL};
  struct cairn_process_options options = {.size = sizeof options, .argv = argv};
  int n, is_short = 1;

  (void)state;
  for (n = 0; is_short; n++) {
    cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":100}}");
    cairn_job late = submit(e, "{\"Name\":\"l\",\"run\":true,\"UntilTime\":"
                               "\"20200101000000.000000+000\"}");
    cairn_job gone = submit(e, "{\"Name\":\"g\",\"run\":true,"
                               "\"DeleteOnCompletion\":true}");
    cairn_job ending = a_deaf_thread(e);
    int told[KINDS] = {0};
    struct cairn_event event;
    uint64_t next = 0;
    char *output;
    size_t length;

    assert_int_equal(cairn_task_finish(e, gone, NULL, NULL), 0);
    drain(e, 0, NULL);
    next = e->events.sequence + 1;
    for (int i = 0; i < TASKS; i++)
      submit(e, TASK);
    for (int i = 0; i < TIMERS; i++)
      assert_int_equal(cairn_timer_start(e, SECOND, 1, NULL), 0);
    assert_int_equal(cairn_process_start(e, 0, &options, 1, NULL), 0);
    atomic_store(&is_released, 1);
    while (atomic_load(&deaf_running) > 0)
      fake_wait();
    poll(NULL, 0, 3); /* let it report, and the program end */
    assert_int_equal(cairn_engine_advance(e, 300 * SECOND, NULL), 0);
    allocations_left = n;
    for (int i = 0; i < 3; i++)
      cairn_engine_step(e);
    is_short = allocations_left == 0;
    allocations_left = -1;
    if (is_short)
      assert_true(is_readable(e)); /* what is left wakes us */
    for (int i = 0; !told[CAIRN_EVENT_PROCESS] ||
                    state_of(e, ending) != CAIRN_COMPLETED || i < 3;
         i++) {
      assert_true(i < 20000);
      cairn_engine_wait(e, 1000);
      while (cairn_engine_next_events(e, &event, 1) == 1) {
        if (event.sequence != 0)
          assert_int_equal(event.sequence, next++);
        told[event.type]++;
      }
    }
    assert_int_equal(told[CAIRN_EVENT_SUBMITTED], TASKS);
    assert_int_equal(told[CAIRN_EVENT_TASK_START], TASKS);
    assert_int_equal(told[CAIRN_EVENT_TIMER], TIMERS);
    assert_int_equal(told[CAIRN_EVENT_PROCESS], 1);
    assert_int_equal(told[CAIRN_EVENT_REMOVED], 1);
    /* the thread's two; the late job's went by before */
    assert_int_equal(told[CAIRN_EVENT_STATE], 2 * TASKS + 2);
    assert_int_equal(state_of(e, late), CAIRN_EXCEPTION);
    assert_int_equal(cairn_process_output(e, 1, 1, &output, &length, NULL), 0);
    assert_string_equal(output, "hello\n");
    cairn_free(output);
    free_engine(e);
  }
  assert_true(n > 3);
}

static void a_run_that_finds_no_memory_fails_for_that_reason(void **state)
{
  (void)state;
  for (int n = 0; n < 30; n++) {
    cairn_engine *e = open_engine();
    cairn_job job = submit(e, THREAD("well"));
    json_t *errors;

    assert_int_equal(cairn__events_reserve(e, 64), 0);
    allocations_left = n;
    cairn_engine_step(e);
    allocations_left = -1;
    if (state_of(e, job) == CAIRN_EXCEPTION) {
      assert_int_equal(number(e, job, CAIRN_PROPERTY_ErrorCode),
                       CAIRN_E_NO_MEMORY);
      errors = errors_of(e, job, 0);
      assert_string_equal(member(errors, 0, "MessageID"), "CAIRN0002");
      json_decref(errors);
      assert_int_equal(e->queues->running, 0);
    } else {
      assert_true(n > 0);
      await(e, job, CAIRN_COMPLETED);
      n = 30;
    }
    free_engine(e);
  }
}

/* ---- random requests ---- */

/* Whatever is asked in whatever order, the counts of the engine stay true and
 * no illegal change is tried (the writer would abort). */
static void random_requests_leave_the_engine_consistent(void **state)
{
  uint64_t seed = 88172645463325252u;

  (void)state;
  for (int round = 0; round < 20; round++) {
    cairn_engine *e = open_with(0, "{\"default\":{\"concurrency\":3}}");
    size_t running = 0, busy = 0;
    cairn_job job;

    for (int i = 0; i < 400; i++) {
      static const char *const specs[] = {
          TASK,
          THREAD("well"),
          THREAD("fail"),
          THREAD("loop"),
          EXPORT("/a", "loop"),
          EXPORT("/a", "well"),
          "{\"Name\":\"r\",\"run\":true,\"RunDay\":1,\"JobRunTimes\":0}",
          "{\"Name\":\"d\",\"run\":true,\"DeleteOnCompletion\":true}"};
      struct cairn_event events[8];
      size_t n;

      seed ^= seed << 13;
      seed ^= seed >> 7;
      seed ^= seed << 17;
      job = cairn_job_next(e, seed >> 8 & 31);
      switch (seed % 14) {
      case 0:
      case 1:
        submit(e, specs[seed >> 16 & 7]);
        break;
      case 2:
        cairn_job_kill(e, job, (int)(seed >> 20 & 1), NULL);
        break;
      case 3:
        cairn_job_resume(e, job, NULL);
        break;
      case 4:
        cairn_task_finish(e, job, NULL, NULL);
        break;
      case 5:
        cairn_task_parked(e, job, NULL);
        break;
      case 6:
        cairn_task_ask(e, job, "?", NULL, NULL);
        break;
      case 7:
        cairn_job_resume_with_input(e, job, "!", NULL);
        break;
      case 8:
        cairn_engine_advance(e, (int64_t)(seed >> 20 & 0xfffff), NULL);
        break;
      case 9:
        cairn_job_delete(e, job, NULL);
        break;
      default:
        cairn_job_request_state_change(e, job, (int64_t)(seed >> 16 & 3) + 2,
                                       NULL, NULL);
        break;
      }
      /* No wake-up is lost: what could be done now wakes us. */
      if (cairn_engine_timeout(e) == 0)
        assert_true(is_readable(e));
      if (cairn_engine_wait(e, 100) > 0)
        assert_true(is_readable(e));
      n = cairn_engine_next_events(e, events, 8);
      (void)n;
    }
    for (job = cairn_job_next(e, 0); job; job = cairn_job_next(e, job)) {
      int s = state_of(e, job);

      running += s == 3 || s == 4 || s == 6 || s == 12;
      busy += cairn__engine_job(e, job, NULL)->has_slot;
    }
    assert_int_equal(running, e->busy);
    assert_int_equal(busy, e->queues->running);
    assert_true(busy <= 3);
    free_engine(e);
  }
}

static void a_virtual_clock_stops_where_datetimes_end(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_error err;
  int64_t before = cairn_engine_now(e);

  (void)state;
  assert_int_equal(cairn_engine_advance(e, INT64_MAX, &err), -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  assert_non_null(strstr(err.message, "9999"));
  assert_int_equal(cairn_engine_now(e), before);
  assert_int_equal(cairn_engine_advance(e, 1, &err), 0);
  assert_int_equal(cairn_engine_now(e), before + 1);
  cairn_engine_free(e);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_request_in_every_state_follows_the_table),
      cmocka_unit_test(what_a_request_started_comes_true),
      cmocka_unit_test(vendor_codes_replace_every_return_code),
      cmocka_unit_test(wrong_parameters_come_before_the_state),
      cmocka_unit_test(a_request_that_takes_too_long_is_reported_and_stands),
      cmocka_unit_test(a_request_in_time_is_not_reported),
      cmocka_unit_test(a_start_that_finds_no_slot_in_time_is_reported),
      cmocka_unit_test(a_request_that_replaces_another_drops_its_deadline),
      cmocka_unit_test(the_time_of_the_last_change_starts_as_a_zero_interval),
      cmocka_unit_test(a_thread_that_does_not_end_is_given_up_after_a_second),
      cmocka_unit_test(a_record_names_a_point_where_there_is_one),
      cmocka_unit_test(a_thousand_warnings_are_kept_and_the_rest_is_counted),
      cmocka_unit_test(what_a_thread_that_is_given_up_has_warned_of_is_kept),
      cmocka_unit_test(a_killed_job_may_be_deleted_before_its_thread_ends),
      cmocka_unit_test(an_engine_can_be_freed_while_its_threads_run),
      cmocka_unit_test(kill_job_decides_about_the_removal),
      cmocka_unit_test(kill_job_knows_finished_and_missing_jobs),
      cmocka_unit_test(only_finished_jobs_can_be_deleted),
      cmocka_unit_test(a_hold_on_a_waiting_job_leaves_its_state),
      cmocka_unit_test(resume_releases_a_hold_and_nothing_more),
      cmocka_unit_test(a_hold_outlasts_the_due_time),
      cmocka_unit_test(a_suspend_not_yet_done_can_be_taken_back),
      cmocka_unit_test(a_run_that_ends_before_it_parks_has_ended),
      cmocka_unit_test(a_suspended_run_gives_its_slot_back),
      cmocka_unit_test(a_question_waits_for_one_of_its_choices),
      cmocka_unit_test(a_task_can_be_driven_only_while_its_run_is_on),
      cmocka_unit_test(a_task_ends_as_it_says),
      cmocka_unit_test(urgent_jobs_go_first_then_those_that_waited_longer),
      cmocka_unit_test(a_changed_priority_moves_a_waiting_job),
      cmocka_unit_test(a_queue_runs_as_many_as_it_may),
      cmocka_unit_test(one_directory_takes_one_export_at_a_time),
      cmocka_unit_test(a_job_that_leaves_the_queue_passes_the_directory_on),
      cmocka_unit_test(
          a_changed_priority_moves_a_job_that_waits_for_a_directory),
      cmocka_unit_test(a_killed_export_keeps_its_directory_until_it_has_ended),
      cmocka_unit_test(an_export_tells_what_it_exported),
      cmocka_unit_test(percent_never_goes_back_and_is_100_only_at_the_end),
      cmocka_unit_test(rate_and_time_left_come_from_the_last_seconds),
      cmocka_unit_test(elapsed_time_leaves_suspension_out),
      cmocka_unit_test(a_failure_is_a_cim_error_of_fifteen_properties),
      cmocka_unit_test(errors_follow_the_state),
      cmocka_unit_test(warnings_follow_the_error_in_get_error_ex),
      cmocka_unit_test(a_job_waits_for_its_scheduled_start),
      cmocka_unit_test(an_interval_is_anchored_when_written_and_shrinks),
      cmocka_unit_test(zeros_mean_start_now),
      cmocka_unit_test(a_moved_start_moves),
      cmocka_unit_test(setting_the_clock_moves_times_but_no_intervals),
      cmocka_unit_test(once_ignores_the_calendar),
      cmocka_unit_test(several_runs_without_a_calendar_are_one_and_a_warning),
      cmocka_unit_test(a_failed_run_of_a_recurring_job_leaves_it_waiting),
      cmocka_unit_test(fewer_runs_than_done_complete_the_job),
      cmocka_unit_test(runs_beyond_the_limit_are_not_made_on_request_either),
      cmocka_unit_test(a_hold_outlasts_a_run_that_ends_while_suspended),
      cmocka_unit_test(no_job_starts_after_its_until_time),
      cmocka_unit_test(a_completed_job_has_no_error_whatever_its_last_run_had),
      cmocka_unit_test(until_time_ends_a_job),
      cmocka_unit_test(finished_jobs_are_removed_in_time),
      cmocka_unit_test(a_suspended_job_is_not_removed),
      cmocka_unit_test(every_property_takes_what_it_may_and_nothing_else),
      cmocka_unit_test(set_does_all_or_nothing),
      cmocka_unit_test(bad_specifications_are_refused_whole),
      cmocka_unit_test(a_full_specification_is_read_back),
      cmocka_unit_test(submit_all_is_all_or_nothing),
      cmocka_unit_test(jobs_are_found_by_their_ids),
      cmocka_unit_test(a_plan_runs_nothing),
      cmocka_unit_test(options_are_checked),
      cmocka_unit_test(closing_ends_every_job_as_asked),
      cmocka_unit_test(closing_can_be_made_harder_only),
      cmocka_unit_test(a_closing_engine_suspends_what_would_go_on),
      cmocka_unit_test(the_sequence_of_events_has_no_gap),
      cmocka_unit_test(
          the_descriptor_is_readable_while_there_is_something_to_do),
      cmocka_unit_test(timers_fire_in_order),
      cmocka_unit_test(the_real_clock_wakes_the_descriptor),
      cmocka_unit_test(without_memory_nothing_happens),
      cmocka_unit_test(without_room_for_events_no_call_changes_a_job),
      cmocka_unit_test(without_memory_a_step_loses_no_event),
      cmocka_unit_test(a_run_that_finds_no_memory_fails_for_that_reason),
      cmocka_unit_test(a_virtual_clock_stops_where_datetimes_end),
      cmocka_unit_test(random_requests_leave_the_engine_consistent),
  };

  cairn_set_allocator(limited_realloc, free);
  cairn__kind_register(&fake_verify);
  cairn__kind_register(&fake_export);
  return run_awake_and_asleep(tests, NULL, NULL);
}
