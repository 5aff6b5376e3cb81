/* The store: what is acknowledged outlives the process, whatever ends it and
 * whatever the disk does. Judged by opening the file again, and by sqlite3. */
#include "scratch.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <jansson.h>

#include "asleep.h"
#include "database.h"
#include "engine.h"
#include "error.h"
#include "faulty_vfs.h"
#include "jobs.h"
#include "skip.h"
#include "source.h"
#include "store.h"

#define SECOND INT64_C(1000000)
#define HOUR   (3600 * SECOND)
#define START  INT64_C(1735689600000000) /* 2025-01-01T00:00:00Z, Wednesday */
#define TASK   "{\"Name\":\"task\",\"run\":true}"
#define HOURLY                                                                 \
  "{\"Name\":\"hourly\",\"run\":true,\"JobRunTimes\":0,\"zone\":\"UTC\","      \
  "\"RunStartInterval\":\"00000000000000.000000:000\"}"

/* ---- helpers ------------------------------------------------------------- */

static int64_t open_at = START;

static int try_open(const char *path, cairn_engine **out,
                    struct cairn_error *err)
{
  struct cairn_engine_options options = {.size = sizeof options,
                                         .store = path,
                                         .is_virtual_clock = 1,
                                         .virtual_start = open_at,
                                         .owner = "tester",
                                         .history_limit = 50};

  return cairn_engine_open(&options, out, err);
}

static cairn_engine *open_store(const char *path)
{
  struct cairn_error err;
  cairn_engine *e;

  if (try_open(path, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  return e;
}

static void remove_store(const char *path)
{
  run(NULL, "rm -f %s %s-wal %s-shm %s-lock %s-journal", path, path, path, path,
      path);
}

/* An engine on a new a.db, its clock at that time. */
static cairn_engine *new_store_at(int64_t time)
{
  remove_store("a.db");
  open_at = time;
  return open_store("a.db");
}

static cairn_engine *new_store(void)
{
  return new_store_at(START);
}

static void flush(cairn_engine *e)
{
  struct cairn_error err;

  if (cairn_engine_flush(e, 20 * SECOND, &err) != 0)
    fail_msg("%s", err.message);
}

/* 0 for null, too */
static int error_of(cairn_engine *e, cairn_job job)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, CAIRN_PROPERTY_ErrorCode, &v, NULL),
                   0);
  return v.kind == CAIRN_VALUE_INTEGER ? (int)v.as.integer : 0;
}

static const char *word(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  return v.kind == CAIRN_VALUE_STRING ? v.as.string : "";
}

/* All that can be done without time passing, and the commits of it. */
static void settle(cairn_engine *e)
{
  struct cairn_event events[64];

  for (;;) {
    while (cairn_engine_step(e))
      cairn_engine_next_events(e, events, 64);
    if (cairn_engine_durable(e) >= cairn_engine_turn(e))
      break;
    flush(e);
  }
}

static void await(cairn_engine *e, cairn_job job, int state)
{
  struct cairn_event events[64];

  for (int i = 0; state_of(e, job) != state; i++) {
    if (i > 20000)
      fail_msg("state %d instead of %d", state_of(e, job), state);
    cairn_engine_wait(e, 1000);
    cairn_engine_next_events(e, events, 64);
  }
}

static uint32_t request(cairn_engine *e, cairn_job job, int what)
{
  return cairn_job_request_state_change(e, job, what, NULL, NULL);
}

/* As a crash does, but that what was changed is on disk. */
static cairn_engine *crash(cairn_engine *e, const char *path)
{
  flush(e);
  open_at = cairn_engine_now(e);
  cairn_engine_free(e);
  return open_store(path);
}

static void sql(char *out, size_t size, const char *path, const char *query)
{
  char *said;
  int code = run(&said, "sqlite3 -batch %s \"%s\"", path, query);

  if (code != 0)
    fail_msg("sqlite3 %s: %s", query, said);
  said[strcspn(said, "\n")] = '\0';
  snprintf(out, size, "%s", said);
  free(said);
}

#define assert_sql(path, query, expected)                                      \
  do {                                                                         \
    char said_[256];                                                           \
    sql(said_, sizeof said_, path, query);                                     \
    assert_string_equal(said_, expected);                                      \
  } while (0)

/* ---- a kind of work ------------------------------------------------------ */

static _Atomic int is_released;
static _Atomic unsigned last_run, last_epoch, begun;

static int fake_check(json_t *spec, struct cairn_error *err)
{
  (void)spec;
  (void)err;
  return 0;
}

static void fake_main(struct cairn__run *r)
{
  last_run = r->number;
  last_epoch = (unsigned)r->epoch;
  begun++;
  cairn__run_enter(r);
  while (cairn__run_gate(r, &r->error) == 0 && !is_released)
    poll(NULL, 0, 1);
  cairn__run_leave(r);
  r->report = json_pack("{s:i}", "epoch", (int)r->epoch);
}

static const struct cairn__kind fake_kind = {
    .name = "verify", .check = fake_check, .main = fake_main};

#define THREAD "{\"Name\":\"thread\",\"verify\":{\"directory\":\"/x\"}}"

/* ---- what is kept -------------------------------------------------------- */

static void a_job_is_kept_whole(void **state)
{
  static const char *const spec =
      "{\"Name\":\"nightly\",\"run\":{\"name\":\"x\"},\"Caption\":\"c\","
      "\"Description\":\"d\",\"ElementName\":\"e\",\"queue\":\"default\","
      "\"zone\":\"Europe/Berlin\",\"gap\":\"skip\",\"overlap\":\"both\","
      "\"catch_up\":\"all\",\"RunMonth\":\"March\",\"RunDay\":-1,"
      "\"RunDayOfWeek\":\"Friday\",\"JobRunTimes\":7,\"Priority\":12,"
      "\"RunStartInterval\":\"00000000023000.000000:000\","
      "\"ScheduledStartTime\":\"20250101120000.000000+060\","
      "\"UntilTime\":\"20300101120000.000000+060\",\"Notify\":\"ops\","
      "\"DeleteOnCompletion\":false,"
      "\"TimeBeforeRemoval\":\"00000000001000.000000:000\","
      "\"RecoveryAction\":\"Other\",\"OtherRecoveryAction\":\"ask\","
      "\"policy\":\"p\",\"policy_key\":\"k\",\"LocalOrUtcTime\":\"UTC Time\"}";
  cairn_engine *e;
  cairn_job job;
  char *before, *after;

  (void)state;
  e = new_store();
  job = submit(e, spec);
  settle(e);
  assert_int_equal(cairn_job_json(e, job, 0, &before, NULL), 0);
  e = crash(e, "a.db");
  assert_int_equal(cairn_job_json(e, job, 0, &after, NULL), 0);
  assert_string_equal(before, after);
  cairn_free(before);
  cairn_free(after);
  cairn_engine_free(e);
  assert_sql("a.db",
             "SELECT Name, Priority, more ->> 'RunDay', JobState FROM job "
             "JOIN state USING (serial)",
             "nightly|12|-1|2");
  assert_sql("a.db", "PRAGMA integrity_check", "ok");
  assert_sql("a.db", "PRAGMA application_id", "1130459758");
}

static void intervals_count_on_while_no_engine_runs(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  e = new_store();
  job = submit(e, "{\"Name\":\"later\",\"run\":true,\"ScheduledStartTime\":"
                  "\"00000000020000.000000:000\"}");
  settle(e);
  flush(e);
  cairn_engine_free(e);
  open_at = START + HOUR;
  e = open_store("a.db");
  settle(e);
  assert_string_equal(word(e, job, CAIRN_PROPERTY_phase), "waiting");
  cairn_engine_advance(e, HOUR - SECOND, NULL);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  cairn_engine_advance(e, SECOND, NULL);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  cairn_engine_free(e);
}

static void numbers_are_never_given_twice(void **state)
{
  cairn_engine *e;
  cairn_job first, second;
  struct cairn_event event;
  uint64_t last = 0;

  (void)state;
  e = new_store();
  first = submit(e, TASK);
  request(e, first, CAIRN_REQUEST_KILL);
  assert_int_equal(cairn_job_delete(e, first, NULL), 0);
  flush(e);
  while (cairn_engine_next_events(e, &event, 1) == 1)
    last = event.sequence > last ? event.sequence : last;
  assert_int_equal(last, 3); /* submitted, killed, removed */
  cairn_engine_free(e);
  assert_sql("a.db", "SELECT count(*) FROM job", "0");
  e = open_store("a.db");
  second = submit(e, TASK);
  assert_true(second > first);
  flush(e);
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 1);
  assert_int_equal(event.sequence, last + 1);
  cairn_engine_free(e);
}

/* ---- what was on when the engine ended ----------------------------------- */

static void a_run_is_begun_again_as_the_same_run(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  begun = 0;
  e = open_store("a.db");
  job = submit(e, THREAD);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  for (int i = 0; begun == 0 && i < 10000; i++)
    poll(NULL, 0, 1);
  assert_int_equal(last_epoch, 1);
  for (unsigned epoch = 2; epoch < 5; epoch++) {
    begun = 0;
    e = crash(e, "a.db");
    assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
    settle(e);
    assert_int_equal(state_of(e, job), CAIRN_RUNNING);
    for (int i = 0; begun == 0 && i < 10000; i++)
      poll(NULL, 0, 1);
    assert_int_equal(last_epoch, epoch);
    assert_int_equal(last_run, 1);
    assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 1);
  }
  is_released = 1;
  await(e, job, CAIRN_COMPLETED);
  e = crash(e, "a.db");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  cairn_engine_free(e);
}

/* What a client had asked for stands after the crash. */
static void what_was_asked_stands(void **state)
{
  cairn_engine *e;
  cairn_job held, suspended, terminated, query, killed;
  struct cairn_error err;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  e = open_store("a.db");
  held = submit(e, TASK);
  request(e, held, CAIRN_REQUEST_SUSPEND);
  suspended = submit(e, THREAD);
  settle(e);
  request(e, suspended, CAIRN_REQUEST_SUSPEND);
  await(e, suspended, CAIRN_SUSPENDED);
  terminated = submit(e, TASK);
  settle(e);
  request(e, terminated, CAIRN_REQUEST_TERMINATE); /* its body never ends */
  query = submit(e, TASK);
  settle(e);
  assert_int_equal(state_of(e, terminated), CAIRN_SHUTTING_DOWN);
  assert_int_equal(cairn_task_ask(e, query, "which?", "[\"a\",\"b\"]", &err),
                   0);
  killed = submit(e, TASK);
  request(e, killed, CAIRN_REQUEST_KILL);
  settle(e);

  e = crash(e, "a.db");
  settle(e);
  assert_int_equal(state_of(e, held), CAIRN_SUSPENDED);
  assert_string_equal(word(e, held, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(state_of(e, suspended), CAIRN_SUSPENDED);
  assert_string_equal(word(e, suspended, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(state_of(e, terminated), CAIRN_TERMINATED);
  assert_int_equal(error_of(e, terminated), CAIRN_E_TERMINATED);
  assert_int_equal(state_of(e, killed), CAIRN_KILLED);
  assert_int_equal(state_of(e, query), CAIRN_RUNNING); /* begun again */

  assert_int_equal(cairn_job_resume(e, suspended, NULL), 4096);
  request(e, query, CAIRN_REQUEST_KILL);
  settle(e);
  assert_int_equal(state_of(e, suspended), CAIRN_RUNNING);
  assert_int_equal(number(e, suspended, CAIRN_PROPERTY_run_number), 1);
  is_released = 1;
  await(e, suspended, CAIRN_COMPLETED);
  cairn_engine_free(e);
}

/* An orderly end is no client's hold: the next engine goes on. */
static void what_a_close_suspends_goes_on(void **state)
{
  struct cairn_event events[16];
  cairn_engine *e;
  cairn_job job, by_client;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  e = open_store("a.db");
  job = submit(e, THREAD);
  by_client = submit(e, THREAD);
  settle(e);
  request(e, by_client, CAIRN_REQUEST_SUSPEND);
  await(e, by_client, CAIRN_SUSPENDED);
  cairn_engine_close(e, CAIRN_CLOSE_SUSPEND);
  for (int i = 0; !cairn_engine_is_idle(e) && i < 20000; i++) {
    cairn_engine_wait(e, 1000);
    cairn_engine_next_events(e, events, 16);
  }
  assert_true(cairn_engine_is_idle(e));
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  cairn_engine_free(e);
  e = open_store("a.db");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  assert_int_equal(state_of(e, by_client), CAIRN_SUSPENDED);
  is_released = 1;
  await(e, job, CAIRN_COMPLETED);
  cairn_engine_free(e);
}

/* Not even when the process ends before the run has come to its stand. */
static void a_close_that_is_cut_off_holds_nothing(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  e = new_store();
  job = submit(e, TASK);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  cairn_engine_close(e, CAIRN_CLOSE_SUSPEND);
  settle(e); /* its body does not answer */
  assert_int_equal(cairn_task_warn(e, job, "not yet", NULL), 0);
  e = crash(e, "a.db");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  cairn_engine_free(e);
}

/* A job that its policy has lost is held, and released by the next update; one
 * that a client held stays so. */
static void a_disowned_job_is_released_by_an_update(void **state)
{
  cairn_engine *e;
  cairn_job stray, held;
  struct cairn_error err;

  (void)state;
  e = new_store_at(START + HOUR);
  stray = submit(e, HOURLY);
  held = submit(e, HOURLY);
  request(e, held, CAIRN_REQUEST_SUSPEND);
  assert_int_equal(cairn_job_disown(e, stray, &err), 0);
  assert_int_equal(cairn_job_disown(e, held, &err), 0);
  assert_string_equal(word(e, stray, CAIRN_PROPERTY_phase), "held");
  e = crash(e, "a.db");
  assert_string_equal(word(e, stray, CAIRN_PROPERTY_phase), "held");
  assert_int_equal(cairn_job_update(e, stray, HOURLY, strlen(HOURLY), &err), 0);
  assert_int_equal(cairn_job_update(e, held, HOURLY, strlen(HOURLY), &err), 0);
  assert_string_equal(word(e, stray, CAIRN_PROPERTY_phase), "waiting");
  assert_string_equal(word(e, held, CAIRN_PROPERTY_phase), "held");
  cairn_engine_free(e);
}

/* Also one that was running when it was disowned. */
static void a_disowned_run_goes_on_after_an_update(void **state)
{
  cairn_engine *e;
  struct cairn_error err;
  cairn_job job;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  e = open_store("a.db");
  job = submit(e, THREAD);
  settle(e);
  /* asked to stand still, and not yet */
  assert_int_equal(cairn_job_disown(e, job, &err), 0);
  assert_int_equal(cairn_job_update(e, job, THREAD, strlen(THREAD), &err), 0);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  /* and when it does */
  assert_int_equal(cairn_job_disown(e, job, &err), 0);
  await(e, job, CAIRN_SUSPENDED);
  assert_int_equal(cairn_job_update(e, job, THREAD, strlen(THREAD), &err), 0);
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  is_released = 1;
  await(e, job, CAIRN_COMPLETED);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 1);
  cairn_engine_free(e);
}

static void jobs_do_not_recover_each_other(void **state)
{
  cairn_engine *e;
  struct cairn_error err;
  cairn_job a, b;
  char spec[256];

  (void)state;
  e = new_store();
  a = submit(e, HOURLY);
  snprintf(spec, sizeof spec,
           "{\"Name\":\"b\",\"run\":true,\"held\":true,\"RecoveryJob\":\"%s\"}",
           cairn__engine_job(e, a, NULL)->instance_id);
  b = submit(e, spec);
  for (int i = 0; i < 2; i++) { /* itself, and through the other */
    snprintf(
        spec, sizeof spec,
        "{\"Name\":\"a\",\"run\":true,\"held\":true,\"RecoveryJob\":\"%s\"}",
        cairn__engine_job(e, i ? b : a, NULL)->instance_id);
    assert_int_equal(cairn_job_update(e, a, spec, strlen(spec), &err), -1);
    assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "circle"));
  }
  cairn_engine_free(e);
}

/* A run whose first commit fails can be suspended, so that an engine with a
 * failing store can be closed. */
static void a_run_that_waits_for_its_commit_can_be_suspended(void **state)
{
  struct cairn_event events[16];
  cairn_engine *e;
  cairn_job job;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  begun = 0;
  e = open_store("a.db");
  flush(e);
  vfs_hold(1);
  job = submit(e, THREAD);
  cairn_engine_step(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  request(e, job, CAIRN_REQUEST_SUSPEND);
  await(e, job, CAIRN_SUSPENDED);
  cairn_job_resume(e, job, NULL);
  for (int i = 0; i < 5; i++)
    cairn_engine_step(e);
  cairn_engine_next_events(e, events, 16);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  assert_int_equal(begun, 0);
  vfs_hold(0);
  for (int i = 0; begun == 0 && i < 10000; i++)
    poll(NULL, 0, 1);
  assert_int_equal(begun, 1);
  is_released = 1;
  await(e, job, CAIRN_COMPLETED);
  cairn_engine_free(e);
}

static void an_interrupted_run_that_cannot_go_on_has_a_record(void **state)
{
  cairn_engine *e;
  cairn_job job;
  char *history;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  e = open_store("a.db");
  job = submit(e, "{\"Name\":\"t\",\"verify\":{\"directory\":\"/x\"},"
                  "\"UntilTime\":\"20250101010000.000000+000\"}");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  flush(e);
  cairn_engine_free(e);
  open_at = START + 2 * HOUR; /* UntilTime has passed */
  e = open_store("a.db");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_TERMINATED);
  assert_non_null(strstr(word(e, job, CAIRN_PROPERTY_ErrorSummaryDescription),
                         "UntilTime has passed"));
  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  assert_non_null(strstr(history, "\"JobState\":\"Terminated\""));
  assert_non_null(strstr(history, "\"run_number\":1"));
  cairn_free(history);
  cairn_engine_free(e);
  is_released = 1;
}

/* ---- the calendar -------------------------------------------------------- */

static void finish_tasks(cairn_engine *e, int *count)
{
  struct cairn_event event;

  for (;;) {
    int is_more = cairn_engine_step(e);

    while (cairn_engine_next_events(e, &event, 1) == 1) {
      if (event.type == CAIRN_EVENT_TASK_START) {
        (*count)++;
        cairn_task_finish(e, event.job, NULL, NULL);
      }
      is_more = 1;
    }
    if (!is_more && cairn_engine_durable(e) >= cairn_engine_turn(e))
      return;
    flush(e);
  }
}

static void missed_times_are_accounted_for(void **state)
{
  cairn_engine *e;
  cairn_job job;
  char *history;
  int runs = 0;

  (void)state;
  e = new_store_at(START + HOUR);
  job = submit(e, HOURLY); /* every day at midnight */
  finish_tasks(e, &runs);
  assert_int_equal(runs, 0);
  flush(e);
  cairn_engine_free(e);
  /* four midnights later, and an hour */
  open_at = START + 4 * 24 * HOUR + HOUR;
  e = open_store("a.db");
  finish_tasks(e, &runs);
  assert_int_equal(runs, 1); /* catch_up: the latest */
  assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 1);
  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  assert_non_null(strstr(history, "\"skipped\":3"));
  assert_non_null(strstr(history, "\"reason\":\"missed\""));
  cairn_free(history);
  flush(e);
  cairn_engine_free(e);
  /* and the same again, once more opened: nothing is made up twice */
  e = open_store("a.db");
  finish_tasks(e, &runs);
  assert_int_equal(runs, 1);
  cairn_engine_free(e);
}

static void jobs_with_missed_times_sleep_soon(void **state)
{
  size_t max = cairn__awake_max;
  cairn_engine *e;

  (void)state;
  e = new_store();
  for (int i = 0; i < 500; i++)
    submit(e, "{\"Name\":\"h\",\"run\":true,\"JobRunTimes\":0,"
              "\"zone\":\"UTC\",\"catch_up\":\"none\","
              "\"RunStartInterval\":\"00000000000000.000000:000\"}");
  flush(e);
  open_at = cairn_engine_now(e) + 72 * HOUR;
  cairn_engine_free(e);
  cairn__awake_max = 10;
  e = open_store("a.db");
  flush(e);
  for (int i = 0; i < 3; i++)
    cairn_engine_step(e);
  assert_int_equal(e->roster.count, 500);
  assert_true(e->roster.awake <= 20);
  cairn_engine_free(e);
  cairn__awake_max = max;
}

static void a_retry_survives(void **state)
{
  cairn_engine *e;
  cairn_job job;
  struct cairn_error failure = {.id = CAIRN_E_IO_ERROR, .message = "broken"};
  int runs = 0;

  (void)state;
  e = new_store();
  job = submit(e, "{\"Name\":\"again\",\"run\":true,"
                  "\"RecoveryAction\":\"Re-run Job\"}");
  settle(e);
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), 0);
  assert_string_equal(word(e, job, CAIRN_PROPERTY_phase), "backoff");
  e = crash(e, "a.db");
  settle(e);
  assert_string_equal(word(e, job, CAIRN_PROPERTY_phase), "backoff");
  assert_int_equal(error_of(e, job), CAIRN_E_IO_ERROR);
  assert_non_null(
      strstr(word(e, job, CAIRN_PROPERTY_ErrorSummaryDescription), "broken"));
  cairn_engine_advance(e, 60 * SECOND, NULL);
  finish_tasks(e, &runs);
  assert_int_equal(runs, 1);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  assert_int_equal(number(e, job, CAIRN_PROPERTY_attempts), 2);
  cairn_engine_free(e);
}

static void removal_survives(void **state)
{
  cairn_engine *e;
  cairn_job job, kept;
  char *history;
  int runs = 0;

  (void)state;
  e = new_store();
  job = submit(e, "{\"Name\":\"gone\",\"run\":true,\"DeleteOnCompletion\":"
                  "true,\"TimeBeforeRemoval\":\"00000000000500.000000:000\"}");
  kept = submit(e, "{\"Name\":\"kept\",\"run\":true,\"DeleteOnCompletion\":"
                   "false}");
  finish_tasks(e, &runs);
  assert_int_equal(runs, 2);
  flush(e);
  cairn_engine_free(e);
  open_at = START + 299 * SECOND;
  e = open_store("a.db");
  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_COMPLETED);
  cairn_engine_advance(e, SECOND, NULL);
  settle(e);
  assert_null(cairn__engine_job(e, job, NULL));
  assert_int_equal(state_of(e, kept), CAIRN_COMPLETED);
  /* its history stays */
  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  assert_non_null(strstr(history, "\"Name\":\"gone\""));
  cairn_free(history);
  e = crash(e, "a.db");
  assert_null(cairn__engine_job(e, job, NULL));
  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  assert_non_null(strstr(history, "\"Name\":\"gone\""));
  cairn_free(history);
  cairn_engine_free(e);
}

static void history_has_its_limit(void **state)
{
  cairn_engine *e;
  int runs = 0;
  char *history;
  json_t *records;

  (void)state;
  e = new_store();
  for (int i = 0; i < 120; i++) {
    submit(e, TASK);
    finish_tasks(e, &runs);
  }
  e = crash(e, "a.db");
  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  records = json_loads(history, 0, NULL);
  assert_int_equal(json_array_size(records), 50);
  json_decref(records);
  cairn_free(history);
  cairn_engine_free(e);
  assert_sql("a.db", "SELECT count(*), min(id), max(id) FROM history",
             "50|71|120");
}

/* The last record of the history, a new reference. */
static json_t *last_record(cairn_engine *e)
{
  char *history;
  json_t *records, *last;

  assert_int_equal(cairn_history(e, NULL, &history, NULL), 0);
  records = json_loads(history, 0, NULL);
  cairn_free(history);
  last = json_array_get(records, json_array_size(records) - 1);
  assert_non_null(last);
  json_incref(last);
  json_decref(records);
  return last;
}

static const char *member(const json_t *record, const char *name)
{
  return json_string_value(json_object_get(record, name));
}

/* How many warnings the job tells of itself. */
static int warnings_now(cairn_engine *e, cairn_job job)
{
  char *text;
  json_t *array;
  int count;

  assert_int_equal(cairn_job_warnings(e, job, &text, NULL), 0);
  array = json_loads(text, 0, NULL);
  cairn_free(text);
  assert_true(json_is_array(array));
  count = (int)json_array_size(array);
  json_decref(array);
  return count;
}

/* Whichever allocation fails, a history is whole or there is none. */
static void expect_whole_history(cairn_engine *e)
{
  char *whole, *out;
  struct cairn_error err;
  long live = alloc_live;

  assert_int_equal(cairn_history(e, NULL, &whole, NULL), 0);
  for (long n = 1;; n++) {
    int code;

    alloc_countdown = n;
    code = cairn_history(e, NULL, &out, &err);
    if (alloc_countdown > 0)
      n = -1; /* none has failed */
    alloc_countdown = 0;
    if (code == 0)
      assert_string_equal(out, whole);
    else
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    assert_true(code == 0 || n > 0);
    cairn_free(out);
    if (n < 0)
      break;
  }
  cairn_free(whole);
  assert_int_equal(alloc_live, live);
}

/* Lets the run of a task begin, and says so many warnings in it. */
static void warn_in_run(cairn_engine *e, cairn_job job, int count)
{
  char text[1001];

  settle(e);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  for (int i = 1; i <= count; i++) {
    snprintf(text, sizeof text, "%-1000d", i);
    assert_int_equal(cairn_task_warn(e, job, text, NULL), 0);
    assert_int_equal(warnings_now(e, job), i);
  }
}

static void end_run(cairn_engine *e, cairn_job job)
{
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  settle(e);
}

#define VERSIONED(version)                                                     \
  "{\"Name\":\"v\",\"run\":true,\"policy_version\":\"" version "\"}"

static void history_has_warnings_and_versions(void **state)
{
  struct cairn_error err;
  cairn_engine *e;
  cairn_job job;
  json_t *record, *warnings;

  (void)state;
  e = new_store();
  for (int i = 0; i < 4; i++) {
    static const char *const wrong[] = {
        VERSIONED("00f"), VERSIONED("000000000000000g"),
        VERSIONED("0000000000000000"), VERSIONED("00000000000000001")};

    assert_int_equal(cairn_submit(e, wrong[i], strlen(wrong[i]), &job, &err),
                     -1);
    assert_non_null(strstr(err.message, "policy_version: 16 hexadecimal"));
  }
  job = submit(e, VERSIONED("00ffEEdd00000001"));
  warn_in_run(e, job, 2);
  /* the run keeps its version */
  assert_int_equal(cairn_job_update(e, job, VERSIONED("fedcba9876543210"),
                                    strlen(VERSIONED("fedcba9876543210")),
                                    &err),
                   0);
  end_run(e, job);
  for (int life = 0; life < 2; life++) {
    record = last_record(e);
    warnings = json_object_get(record, "warnings");
    assert_int_equal(json_array_size(warnings), 2);
    assert_int_equal(atoi(json_string_value(json_array_get(warnings, 1))), 2);
    assert_string_equal(member(record, "policy_version"), "00ffeedd00000001");
    assert_string_equal(member(record, "JobState"), "Completed With Warnings");
    json_decref(record);
    assert_int_equal(warnings_now(e, job), 2);
    expect_whole_history(e);
    e = crash(e, "a.db");
  }
  /* of very many, the first ones and how many there are */
  job = submit(e, VERSIONED("fedcba9876543210"));
  warn_in_run(e, job, 30);
  end_run(e, job);
  e = crash(e, "a.db");
  record = last_record(e);
  warnings = json_object_get(record, "warnings");
  assert_int_equal(json_array_size(warnings), 4);
  assert_int_equal(json_integer_value(json_object_get(record, "lost_warnings")),
                   26);
  assert_int_equal(warnings_now(e, job), 30);
  assert_string_equal(member(record, "policy_version"), "fedcba9876543210");
  json_decref(record);
  /* and none is none */
  job = submit(e, TASK);
  settle(e);
  end_run(e, job);
  record = last_record(e);
  assert_true(json_is_null(json_object_get(record, "warnings")));
  assert_true(json_is_null(json_object_get(record, "policy_version")));
  json_decref(record);
  cairn_engine_free(e);
}

/* tests/data/store-1.sql is what an engine of version 1 left behind. */
static void a_file_of_version_1_is_brought_up_to_date(void **state)
{
  static const struct {
    cairn_job job;
    const char *property, *value; /* value NULL: null */
  } kept[] = {
      {1, "JobState", "\"Completed\""},
      {1, "PercentComplete", "100"},
      {1, "ElapsedTime", "\"00000000000000.001273:000\""},
      {2, "JobState", "\"Exception\""},
      {2, "Notify", "\"ops\""},
      {2, "run_number", "1"},
      {3, "Description", "\"on the last day\""},
      {3, "Notify", "\"ops\""},
      {3, "Priority", "12"},
      {3, "RunMonth", "\"March\""},
      {3, "RunDay", "-1"},
      {3, "RunDayOfWeek", NULL},
      {3, "RunStartInterval", "\"00000000023000.000000:000\""},
      {3, "LocalOrUtcTime", "\"Local Time\""},
      {3, "JobRunTimes", "0"},
      {3, "zone", "\"Europe/Berlin\""},
      {3, "UntilTime", "\"20991231235959.000000+060\""},
      {4, "RunDay", "-1"},
      {4, "RunDayOfWeek", "\"-Thursday\""},
      {4, "RunStartInterval", "\"00000000******.******:000\""},
      {4, "JobRunTimes", "7"},
      {4, "DeleteOnCompletion", "true"},
      {4, "TimeBeforeRemoval", "\"00000001000000.000000:000\""},
      {5, "ScheduledStartTime", "\"20400101000000.000000+000\""},
      {6, "JobState", "\"Suspended\""},
      {6, "phase", "\"backoff\""},
      {6, "attempts", "1"},
      {7, "ScheduledStartTime", "\"00008999235959.000000:000\""},
      {8, "phase", "\"held\""},
  };
  cairn_engine *e;
  cairn_job job;
  json_t *record;

  (void)state;
  remove_store("a.db");
  must_run("sqlite3 a.db < '%s'", source_path("tests/data/store-1.sql"));
  open_at = INT64_C(1795894662001748); /* a second after job 7 was submitted */
  for (int life = 0; life < 2; life++) {
    e = open_store("a.db");
    /* the codes are there; otherwise jobs would wait for these alone */
    assert_int_equal(cairn_code_add(e, "ok", NULL), 0);
    assert_int_equal(cairn_code_add(e, "bad", NULL), 0);
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
      json_t *object, *value;
      char *text;

      assert_int_equal(cairn_job_json(e, kept[i].job, 0, &text, NULL), 0);
      object = json_loads(text, 0, NULL);
      cairn_free(text);
      value = json_object_get(object, kept[i].property);
      text = json_dumps(value, JSON_ENCODE_ANY);
      if (strcmp(text, kept[i].value ? kept[i].value : "null") != 0)
        fail_msg("%s of job %d is %s", kept[i].property, (int)kept[i].job,
                 text);
      free(text);
      json_decref(object);
    }
    record = last_record(e);
    assert_string_equal(member(record, "Name"), "again");
    assert_true(json_is_null(json_object_get(record, "warnings")));
    json_decref(record);
    flush(e);
    cairn_engine_free(e);
  }
  e = open_store("a.db");
  job = submit(e, VERSIONED("fedcba9876543210"));
  warn_in_run(e, job, 1);
  end_run(e, job);
  flush(e);
  cairn_engine_free(e);
  assert_sql("a.db", "PRAGMA user_version", "3");
  assert_sql("a.db", "PRAGMA integrity_check", "ok");
  assert_sql(
      "a.db",
      "SELECT count(*), count(warnings), min(policy_version) FROM history",
      "4|1|-81985529216486896");
}

static void volatile_jobs_are_not_kept(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  e = new_store();
  job = submit(e, "{\"Name\":\"v\",\"run\":true,\"volatile\":true}");
  settle(e);
  e = crash(e, "a.db");
  assert_null(cairn__engine_job(e, job, NULL));
  cairn_engine_free(e);
}

/* ---- events -------------------------------------------------------------- */

static void events_follow_the_commit(void **state)
{
  struct cairn_event event;
  cairn_engine *e;
  cairn_job job;

  (void)state;
  e = new_store();
  flush(e);
  vfs_hold(1);
  job = submit(e, TASK);
  assert_int_equal(state_of(e, job), CAIRN_NEW); /* memory has it */
  for (int i = 0; i < 50; i++) {
    cairn_engine_step(e);
    assert_int_equal(cairn_engine_next_events(e, &event, 1), 0);
    poll(NULL, 0, 1);
  }
  assert_true(cairn_engine_durable(e) < cairn_engine_turn(e));
  /* what the program asked for itself comes all the same */
  assert_int_equal(cairn_timer_start(e, 0, 77, NULL), 0);
  cairn_engine_step(e);
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 1);
  assert_int_equal(event.type, CAIRN_EVENT_TIMER);
  vfs_hold(0);
  flush(e);
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 1);
  assert_int_equal(event.type, CAIRN_EVENT_SUBMITTED);
  cairn_engine_free(e);
}

/* Progress is not stored: it needs no commit, and never comes before what was
 * there before it. */
static void progress_keeps_its_place(void **state)
{
  struct cairn_event events[16];
  cairn_engine *e;
  cairn_job job;
  int last = 0;

  (void)state;
  e = new_store();
  job = submit(e, TASK);
  settle(e);
  assert_int_equal(cairn_task_progress(e, job, 5, NULL), 0);
  assert_int_equal(cairn_engine_next_events(e, events, 16), 1);
  assert_int_equal(events[0].percent, 5);
  assert_int_equal(events[0].sequence, 0);
  vfs_hold(1);
  submit(e, TASK);
  assert_int_equal(cairn_task_progress(e, job, 6, NULL), 0);
  cairn_engine_step(e);
  assert_int_equal(cairn_engine_next_events(e, events, 16), 0);
  vfs_hold(0);
  flush(e);
  for (size_t n = cairn_engine_next_events(e, events, 16), i = 0; i < n; i++) {
    assert_true(events[i].type != CAIRN_EVENT_PERCENT || last > 0);
    last += events[i].type == CAIRN_EVENT_SUBMITTED;
  }
  assert_int_equal(last, 1);
  cairn_engine_free(e);
}

/* A run begins when the store knows of it, not before. */
static void a_run_waits_for_its_commit(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  begun = 0;
  e = open_store("a.db");
  flush(e);
  vfs_hold(1);
  job = submit(e, THREAD);
  for (int i = 0; i < 50; i++) {
    cairn_engine_step(e);
    poll(NULL, 0, 1);
  }
  assert_int_equal(state_of(e, job), CAIRN_RUNNING); /* in memory */
  assert_int_equal(begun, 0);
  vfs_hold(0);
  for (int i = 0; begun == 0 && i < 10000; i++)
    poll(NULL, 0, 1);
  assert_int_equal(begun, 1);
  /* one that is killed meanwhile never begins */
  vfs_hold(1);
  job = submit(e, THREAD);
  cairn_engine_step(e);
  cairn_engine_step(e);
  request(e, job, CAIRN_REQUEST_KILL);
  await(e, job, CAIRN_KILLED);
  vfs_hold(0);
  flush(e);
  assert_int_equal(begun, 1);
  is_released = 1;
  cairn_engine_free(e);
}

static void changes_are_read_by_cursor(void **state)
{
  struct cairn_event seen[512], event;
  size_t count = 0, n, told = 0;
  uint64_t cursor = 0;
  cairn_engine *e;
  struct cairn_error err;
  int runs = 0;

  (void)state;
  e = new_store();
  for (int i = 0; i < 30; i++)
    submit(e, TASK);
  finish_tasks(e, &runs);
  /* 30 x (submitted, four changes, run ended), by seven at a time */
  while (cairn_changes(e, cursor, seen + count, 7, &n, &err) == 0 && n > 0) {
    assert_true(n <= 7);
    count += n;
    cursor = seen[count - 1].sequence;
  }
  assert_int_equal(count, 180);
  for (size_t i = 0; i < count; i++) {
    assert_int_equal(seen[i].sequence, i + 1);
    told += seen[i].type == CAIRN_EVENT_RUN_ENDED;
  }
  assert_int_equal(told, 30);
  assert_string_equal(seen[0].instance_id,
                      cairn__engine_job(e, 1, NULL)->instance_id);
  /* the cursor is good in the next life */
  e = crash(e, "a.db");
  submit(e, TASK);
  assert_int_equal(cairn_changes(e, cursor, &event, 1, &n, &err), 0);
  assert_int_equal(n, 1);
  assert_int_equal(event.sequence, 181);
  assert_int_equal(event.type, CAIRN_EVENT_SUBMITTED);
  assert_int_equal(cairn_changes(e, 5000, &event, 1, &n, &err), -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  cairn_engine_free(e);
  /* what is gone is said to be gone */
  must_run("sqlite3 a.db 'DELETE FROM event WHERE first <= 60'");
  e = open_store("a.db");
  assert_int_equal(cairn_changes(e, 10, &event, 1, &n, &err), -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  assert_int_equal(cairn_changes(e, 0, &event, 1, &n, &err), 0);
  assert_int_equal(n, 1);
  assert_true(event.sequence > 10);
  cairn_engine_free(e);
}

static void an_engine_in_memory_keeps_no_changes(void **state)
{
  struct cairn_event event;
  struct cairn_error err;
  cairn_engine *e;
  size_t n;

  (void)state;
  e = open_store(":memory:");
  assert_int_equal(cairn_changes(e, 0, &event, 1, &n, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_SUPPORTED);
  assert_int_equal(cairn_backup_start(e, "b.db", 1, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_SUPPORTED);
  assert_int_equal(cairn_engine_flush(e, -1, &err), 0);
  cairn_engine_free(e);
}

/* ---- files that are no store --------------------------------------------- */

static void one_engine_has_it(void **state)
{
  cairn_engine *e, *other;
  struct cairn_error err;
  char pid[32];
  int status, ends[2];
  pid_t child;

  (void)state;
  e = new_store();
  snprintf(pid, sizeof pid, "process %ld", (long)getpid());
  assert_int_equal(try_open("a.db", &other, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_LOCKED);
  assert_non_null(strstr(err.message, pid));
  /* by another name */
  assert_int_equal(symlink("a.db", "link.db"), 0);
  assert_int_equal(try_open("link.db", &other, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_LOCKED);
  unlink("link.db");
  /* by another name that has a lock beside it of its own */
  assert_int_equal(link("a.db", "hard.db"), 0);
  assert_int_equal(try_open("hard.db", &other, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_LOCKED);
  assert_true(run(NULL, "sqlite3 a.db 'SELECT count(*) FROM job'") != 0);
  unlink("hard.db");
  child = fork();
  if (child == 0) {
    int code = try_open("a.db", &other, &err);

    _exit(code == -1 && err.id == CAIRN_E_STORE_LOCKED &&
                  strstr(err.message, pid)
              ? 0
              : 1);
  }
  waitpid(child, &status, 0);
  assert_int_equal(status, 0);
  /* and it is still ours, also against sqlite3 */
  assert_true(run(NULL, "sqlite3 a.db 'SELECT count(*) FROM job'") != 0);
  submit(e, TASK);
  flush(e);
  cairn_engine_free(e);
  /* a program that is no engine */
  assert_int_equal(pipe(ends), 0);
  child = fork();
  if (child == 0) {
    sqlite3 *db;
    char c;

    close(ends[0]);
    if (sqlite3_open_v2("a.db", &db, SQLITE_OPEN_READWRITE, "unix") != 0 ||
        sqlite3_exec(db, "BEGIN IMMEDIATE; UPDATE counter SET id = 1", 0, 0,
                     0) != 0)
      _exit(1);
    c = (char)(write(ends[1], "x", 1) != 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* also where the test fails */
    pause();
    _exit(c);
  }
  close(ends[1]);
  assert_int_equal(read(ends[0], pid, 1), 1);
  snprintf(pid, sizeof pid, "process %ld", (long)child);
  assert_int_equal(try_open("a.db", &other, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_LOCKED);
  if (!strstr(err.message, pid))
    fail_msg("%s: %s", pid, err.message);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  close(ends[0]);
  e = open_store("a.db");
  assert_int_equal(state_of(e, 1), CAIRN_NEW);
  cairn_engine_free(e);
}

static void expect_refused(const char *path, int id, const char *words)
{
  cairn_engine *e;
  struct cairn_error err;

  if (try_open(path, &e, &err) == 0)
    fail_msg("%s was opened; expected: %s", path, words);
  assert_null(e);
  if (err.id != id || !strstr(err.message, words))
    fail_msg("%s: error %d: %s", path, err.id, err.message);
}

static void other_files_are_refused_and_left_alone(void **state)
{
  char before[256], after[256];

  (void)state;
  remove_store("a.db");
  spill("text.db", "this is some text, and no database at all\n", 42);
  expect_refused("text.db", CAIRN_E_STORE_FAILED, "no SQLite database");
  must_run("sqlite3 other.db 'CREATE TABLE t (a); INSERT INTO t VALUES (1)'");
  sql(before, sizeof before, "other.db", "SELECT sql FROM sqlite_schema");
  must_run("cp other.db other.copy");
  expect_refused("other.db", CAIRN_E_STORE_FAILED, "no store of Cairn's");
  must_run("cmp other.db other.copy");
  sql(after, sizeof after, "other.db", "SELECT sql FROM sqlite_schema");
  assert_string_equal(before, after);
  cairn_engine_free(open_store("a.db"));
  must_run("sqlite3 a.db 'PRAGMA user_version = 99'");
  expect_refused("a.db", CAIRN_E_STORE_FAILED, "version 99");
  must_run("sqlite3 a.db 'PRAGMA user_version = 0'");
  expect_refused("a.db", CAIRN_E_STORE_FAILED, "has no version");
  remove_store("a.db");
  expect_refused("missing/a.db", CAIRN_E_NOT_FOUND, "missing");
  expect_refused("", CAIRN_E_BAD_PATH, "file expected");
  expect_refused("./", CAIRN_E_BAD_PATH, "file expected");
  assert_int_equal(mkdir("directory.db", 0700), 0);
  expect_refused("directory.db", CAIRN_E_BAD_PATH, "not a regular file");
  assert_int_equal(mkfifo("fifo.db", 0600), 0);
  expect_refused("fifo.db", CAIRN_E_BAD_PATH, "not a regular file");
}

static void a_damaged_store_says_what_is_left(void **state)
{
  cairn_engine *e;
  struct cairn_error err;
  struct stat st;
  int fd, runs = 0;

  (void)state;
  e = new_store();
  for (int i = 0; i < 400; i++)
    submit(e, TASK);
  finish_tasks(e, &runs);
  flush(e);
  cairn_engine_free(e);
  assert_int_equal(stat("a.db", &st), 0);
  must_run("cp a.db whole.db");
  fd = open("a.db", O_WRONLY | O_CLOEXEC);
  assert_true(fd >= 0);
  /* everything but the schema's page and the roots after it */
  for (off_t at = st.st_size / 16384 * 4096; at < st.st_size; at += 4096)
    assert_int_equal(pwrite(fd, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, at), 8);
  close(fd);
  assert_int_equal(try_open("a.db", &e, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  assert_non_null(strstr(err.message, "damaged"));
  assert_non_null(strstr(err.message, " jobs and "));
  /* what the README advises works */
  must_run("rm -f saved.db; version=$(sqlite3 a.db 'PRAGMA user_version'); "
           "sqlite3 a.db .dump | sed 's/^ROLLBACK.*/COMMIT;/' "
           "| sqlite3 saved.db; sqlite3 saved.db \"PRAGMA application_id = %d; "
           "PRAGMA user_version = $version\"; "
           "test $(sqlite3 saved.db 'PRAGMA user_version') -eq %d",
           CAIRN__STORE_APPLICATION, CAIRN__STORE_VERSION);
  assert_sql("saved.db", "SELECT count(*) > 50 FROM job", "1");
  /* a row that cannot be */
  must_run(
      "sqlite3 whole.db 'UPDATE state SET JobState = 77 WHERE serial = 9'");
  expect_refused("whole.db", CAIRN_E_STORE_FAILED, "job 9");
  must_run("sqlite3 whole.db 'UPDATE state SET JobState = 7 WHERE serial = 9'");
  must_run("sqlite3 whole.db 'UPDATE state SET flags = -1 WHERE serial = 9'");
  expect_refused("whole.db", CAIRN_E_STORE_FAILED, "job 9");
  must_run("sqlite3 whole.db 'UPDATE state SET flags = 0 WHERE serial = 9'");
  for (int i = 0; i < 6; i++) {
    /* within double quotes of the shell */
    static const char *const wrong[] = {"[",
                                        "[]",
                                        "{\\\"x\\\":1}",
                                        "{\\\"RunMonth\\\":\\\"3\\\"}",
                                        "{\\\"RunMonth\\\":300}",
                                        "{\\\"asked\\\":9}"};

    must_run("sqlite3 whole.db \"UPDATE state SET more = '%s' "
             "WHERE serial = 9\"",
             wrong[i]);
    expect_refused("whole.db", CAIRN_E_STORE_FAILED, "job 9");
  }
  must_run("sqlite3 whole.db 'UPDATE state SET more = NULL'");
  must_run("sqlite3 whole.db \"UPDATE job SET spec = '{' WHERE serial = 3\"");
  expect_refused("whole.db", CAIRN_E_STORE_FAILED, "job 3");
  must_run(
      "sqlite3 whole.db \"UPDATE job SET spec = 'true' WHERE serial = 3\"");
  /* warnings that are none */
  for (int i = 0; i < 4; i++) {
    static const char *const wrong[] = {"[", "{}", "[[]]", "[null]"};

    must_run("sqlite3 whole.db \"UPDATE history SET warnings = '%s' "
             "WHERE id = (SELECT max(id) FROM history)\"",
             wrong[i]);
    expect_refused("whole.db", CAIRN_E_STORE_FAILED, "of its history");
  }
  must_run("sqlite3 whole.db 'UPDATE history SET warnings = NULL'");
  must_run("sqlite3 whole.db 'ALTER TABLE state DROP COLUMN epoch'");
  expect_refused("whole.db", CAIRN_E_STORE_FAILED, "no column epoch");
}

/* Of a log that was cut the whole transactions in front of the cut are there,
 * in order: the jobs are 1 to n. */
static void a_cut_log_keeps_what_lies_before_the_cut(void **state)
{
  cairn_engine *e;
  struct stat st;
  int64_t last = -1;
  struct cairn_error err;
  cairn_job job;
  int64_t n;

  (void)state;
  e = new_store();
  for (int i = 0; i < 100; i++) {
    submit(e, "{\"Name\":\"held\",\"run\":true,\"held\":true}");
    flush(e);
  }
  must_run("cp a.db cut.db.whole && cp a.db-wal cut.db-wal.whole");
  cairn_engine_free(e);
  assert_int_equal(stat("cut.db-wal.whole", &st), 0);
  for (off_t size = st.st_size; size > 0; size -= st.st_size / 9 + 7) {
    remove_store("cut.db");
    must_run("cp cut.db.whole cut.db && cp cut.db-wal.whole cut.db-wal");
    assert_int_equal(truncate("cut.db-wal", size), 0);
    if (try_open("cut.db", &e, &err) != 0) {
      /* not even the tables are left: a file without any is a new one, so
       * this must be one that says what it is */
      fail_msg("%s", err.message);
    }
    n = 0;
    for (job = cairn_job_next(e, 0); job; job = cairn_job_next(e, job))
      assert_int_equal(job, ++n);
    if (last >= 0)
      assert_true(n <= last);
    else
      assert_int_equal(n, 100);
    last = n;
    cairn_engine_free(e);
  }
  assert_true(last < 100);
}

static void a_file_that_cannot_be_written_is_refused(void **state)
{
  cairn_engine *e;
  struct rlimit old, small = {.rlim_cur = 8192, .rlim_max = RLIM_INFINITY};
  struct cairn_error err;

  (void)state;
  remove_store("a.db");
  cairn_engine_free(open_store("a.db"));
  if (geteuid() != 0) {
    assert_int_equal(chmod("a.db", 0400), 0);
    expect_refused("a.db", CAIRN_E_STORE_FAILED, "cannot be written");
    assert_int_equal(chmod("a.db", 0600), 0);
  }
  remove_store("a.db");
  /* a full disk, as the kernel plays it */
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
  small.rlim_max = old.rlim_max;
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
  assert_int_equal(try_open("a.db", &e, &err), -1);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  e = open_store("a.db");
  submit(e, TASK);
  flush(e);
  cairn_engine_free(e);
}

static void a_job_of_an_unknown_kind_says_so(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  e = new_store();
  job = submit(e, "{\"Name\":\"k\",\"verify\":{\"directory\":\"/x\"},"
                  "\"held\":true,\"queue\":\"default\"}");
  flush(e);
  cairn_engine_free(e);
  must_run("sqlite3 a.db \"UPDATE job SET kind = 'teleport', queue = 'slow'\"");
  e = open_store("a.db");
  assert_string_equal(word(e, job, CAIRN_PROPERTY_queue), "slow");
  request(e, job, CAIRN_REQUEST_START);
  for (int i = 0; error_of(e, job) == 0 && i < 10000; i++) {
    settle(e);
    poll(NULL, 0, 1);
  }
  assert_int_equal(error_of(e, job), CAIRN_E_NOT_SUPPORTED);
  e = crash(e, "a.db");
  cairn_engine_free(e);
  /* a zone that the system has no more: nothing is due, and the job says why */
  remove_store("a.db");
  e = open_store("a.db");
  job = submit(e, HOURLY);
  flush(e);
  cairn_engine_free(e);
  must_run("sqlite3 a.db \"UPDATE job SET zone = 'Mars/Olympus'\"");
  e = open_store("a.db");
  settle(e);
  assert_string_equal(word(e, job, CAIRN_PROPERTY_phase), "held");
  assert_non_null(strstr(word(e, job, CAIRN_PROPERTY_ErrorSummaryDescription),
                         "Mars/Olympus"));
  cairn_engine_free(e);
}

/* ---- backup -------------------------------------------------------------- */

static int await_backup(cairn_engine *e, uint64_t cookie)
{
  struct cairn_event event;

  /* a wait for the descriptor may end at once, for other work */
  for (int i = 0; i < 60000; i++) {
    poll(NULL, 0, 1);
    cairn_engine_step(e);
    while (cairn_engine_next_events(e, &event, 1) == 1) {
      if (event.type == CAIRN_EVENT_BACKUP) {
        assert_int_equal(event.cookie, cookie);
        return event.code;
      }
    }
  }
  fail_msg("no BACKUP event");
  return -1;
}

static void a_backup_is_made_while_the_engine_works(void **state)
{
  cairn_engine *e, *copy;
  struct cairn_error err;
  cairn_job job = 0;

  (void)state;
  remove_store("a.db");
  run(NULL, "rm -f b.db*");
  open_at = START;
  e = open_store("a.db");
  for (int i = 0; i < 3000; i++)
    submit(e, "{\"Name\":\"held\",\"run\":true,\"held\":true}");
  assert_int_equal(cairn_backup_start(e, "b.db", 5, &err), 0);
  assert_int_equal(cairn_backup_start(e, "c.db", 6, &err), -1);
  assert_int_equal(err.id, CAIRN_E_BUSY);
  for (int i = 0; i < 500; i++)
    submit(e, "{\"Name\":\"held\",\"run\":true,\"held\":true}");
  if (await_backup(e, 5) != 0) {
    cairn_backup_error(e, &err);
    fail_msg("%s", err.message);
  }
  assert_int_equal(cairn_backup_error(e, &err), 0);
  assert_int_equal(access("b.db.partial", F_OK), -1);
  assert_sql("b.db", "PRAGMA integrity_check", "ok");
  copy = open_store("b.db");
  for (cairn_job i = cairn_job_next(copy, 0); i; i = cairn_job_next(copy, i))
    job = i;
  assert_true(job >= 3000);
  cairn_engine_free(copy);
  /* nothing is replaced */
  assert_int_equal(cairn_backup_start(e, "b.db", 7, &err), 0);
  assert_int_equal(await_backup(e, 7), CAIRN_E_EXISTS);
  assert_int_equal(cairn_backup_error(e, &err), -1);
  assert_non_null(strstr(err.message, "b.db"));
  assert_int_equal(cairn_backup_start(e, "missing/b.db", 8, &err), 0);
  assert_int_equal(await_backup(e, 8), CAIRN_E_NOT_FOUND);
  cairn_engine_free(e);
}

/* ---- a store that fails -------------------------------------------------- */

static void while_the_store_fails_nothing_new_happens(void **state)
{
  struct cairn_event event;
  struct cairn_error err;
  cairn_engine *e;
  cairn_job job, running, waiting;
  unsigned stood;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  begun = 0;
  e = open_store("a.db");
  running = submit(e, THREAD);
  waiting = submit(e, "{\"Name\":\"later\",\"run\":true,"
                      "\"ScheduledStartTime\":"
                      "\"00000000000100.000000:000\"}");
  settle(e);
  for (int i = 0; begun == 0 && i < 10000; i++)
    poll(NULL, 0, 1);
  vfs_arm(1, SQLITE_FULL, 1);
  job = submit(e, TASK); /* the first commit that fails: not known yet */
  for (int i = 0; !cairn__store_error(e) && i < 20000; i++)
    cairn_engine_wait(e, 1000);
  assert_int_equal(cairn_engine_store_error(e, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  assert_non_null(strstr(err.message, "full"));
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 1);
  assert_int_equal(event.type, CAIRN_EVENT_STORE);
  assert_int_equal(event.code, CAIRN_E_STORE_FAILED);
  assert_int_equal(cairn_engine_next_events(e, &event, 1), 0);
  /* refused */
  assert_int_equal(cairn_submit(e, TASK, strlen(TASK), &job, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  assert_int_equal(cairn_job_set(e, waiting,
                                 &(struct cairn_change){
                                     .name = "Priority",
                                     .value = {.kind = CAIRN_VALUE_INTEGER,
                                               .as.integer = 3}},
                                 1, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  assert_int_equal(cairn_engine_flush(e, SECOND, &err), -1);
  assert_int_equal(err.id, CAIRN_E_STORE_FAILED);
  /* not started */
  cairn_engine_advance(e, 120 * SECOND, NULL);
  for (int i = 0; i < 50; i++) {
    cairn_engine_step(e);
    poll(NULL, 0, 1);
  }
  assert_string_equal(word(e, waiting, CAIRN_PROPERTY_phase), "queued");
  /* the run stands in the gate: it does not see that it may end */
  stood = begun;
  is_released = 1;
  poll(NULL, 0, 100);
  cairn_engine_step(e);
  assert_int_equal(state_of(e, running), CAIRN_RUNNING);
  assert_int_equal(stood, 1);
  /* out of it again */
  vfs_arm(0, 0, 0);
  for (int i = 0; cairn__store_error(e) && i < 20000; i++)
    cairn_engine_wait(e, 1000);
  assert_null(cairn__store_error(e));
  await(e, running, CAIRN_COMPLETED);
  settle(e);
  assert_int_equal(state_of(e, waiting), CAIRN_RUNNING);
  e = crash(e, "a.db");
  assert_int_equal(state_of(e, running), CAIRN_COMPLETED);
  assert_int_equal(state_of(e, 3), CAIRN_SUSPENDED); /* the one that was not
                                                        undone either */
  cairn_engine_free(e);
}

/* A run that stands in the gate can be ended all the same. */
static void a_failing_store_does_not_keep_a_run_from_its_end(void **state)
{
  cairn_engine *e;
  cairn_job job;

  (void)state;
  remove_store("a.db");
  open_at = START;
  is_released = 0;
  e = open_store("a.db");
  job = submit(e, THREAD);
  settle(e);
  vfs_arm(1, SQLITE_IOERR_WRITE, 1);
  submit(e, TASK);
  for (int i = 0; !cairn__store_error(e) && i < 20000; i++)
    cairn_engine_wait(e, 1000);
  request(e, job, CAIRN_REQUEST_TERMINATE);
  await(e, job, CAIRN_TERMINATED);
  cairn_engine_free(e); /* what is not written is lost, and nothing hangs */
  vfs_arm(0, 0, 0);
  e = open_store("a.db");
  assert_int_equal(number(e, job, CAIRN_PROPERTY_run_number), 1);
  cairn_engine_free(e);
  is_released = 1;
}

/* One life with all that a store does; acknowledged submissions are counted.
 * Stops where a call fails. */
static int live(int *acknowledged)
{
  struct cairn_event events[64];
  struct cairn_error err;
  cairn_engine *e;
  cairn_job job;
  int had_error = 0;

  if (try_open("f.db", &e, &err) != 0)
    return err.id;
  for (int i = 0; i < 6; i++) {
    if (cairn_submit(e, i % 2 ? TASK : HOURLY, strlen(i % 2 ? TASK : HOURLY),
                     &job, &err) != 0 ||
        cairn_engine_flush(e, 5 * SECOND, &err) != 0) {
      had_error = err.id;
      break;
    }
    ++*acknowledged;
    for (int j = 0; j < 4; j++) {
      cairn_engine_step(e);
      for (size_t n = cairn_engine_next_events(e, events, 64), k = 0; k < n;
           k++) {
        if (events[k].type == CAIRN_EVENT_TASK_START)
          cairn_task_finish(e, events[k].job, NULL, NULL);
      }
    }
  }
  cairn_engine_free(e);
  return had_error;
}

/* Every call of SQLite's to the file system fails, once or from then on: what
 * was acknowledged before is there afterwards. */
static void sweep_faults(int code, int is_lasting)
{
  int fired = 0, n;

  for (n = 1; n < 2000; n++) {
    int acknowledged = 0, found = 0, has_fired, id;
    cairn_engine *e;

    remove_store("f.db");
    vfs_arm(n, code, is_lasting);
    id = live(&acknowledged);
    has_fired = vfs_fault.has_fired;
    vfs_arm(0, 0, 0);
    if (id != CAIRN_OK && id != CAIRN_E_STORE_FAILED && id != CAIRN_E_TIMEOUT)
      fail_msg("call %d: error %d", n, id);
    e = open_store("f.db");
    for (cairn_job j = cairn_job_next(e, 0); j; j = cairn_job_next(e, j))
      found++;
    if (found < acknowledged)
      fail_msg("call %d: %d jobs of %d", n, found, acknowledged);
    cairn_engine_free(e);
    assert_sql("f.db", "PRAGMA integrity_check", "ok");
    if (!has_fired) {
      assert_int_equal(acknowledged, 6);
      break; /* beyond the last call */
    }
    fired++;
  }
  printf("# ran %d faults of the store's calls (%d%s)\n", fired, code,
         is_lasting ? ", lasting" : "");
}

static void no_fault_loses_what_was_acknowledged(void **state)
{
  (void)state;
  open_at = START;
  cairn__store_retry_ms = 1;
  sweep_faults(SQLITE_IOERR_WRITE, 0);
  sweep_faults(SQLITE_FULL, 1);
  cairn__store_retry_ms = 1000;
}

/* ---- ends of the process ------------------------------------------------- */

/* A child submits and says over a pipe what was acknowledged, until it is
 * killed at some instant. */
static void child_submits(int out)
{
  struct cairn_event events[64];
  struct cairn_error err;
  cairn_engine *e;
  cairn_job job;

  if (try_open("k.db", &e, &err) != 0)
    _exit(3);
  for (;;) {
    const char *spec = random_below(2) ? TASK : HOURLY;
    uint64_t serial;

    if (cairn_submit(e, spec, strlen(spec), &job, &err) != 0 ||
        cairn_engine_flush(e, -1, &err) != 0)
      _exit(4);
    serial = job;
    if (write(out, &serial, sizeof serial) != sizeof serial)
      _exit(5);
    cairn_engine_step(e);
    for (size_t n = cairn_engine_next_events(e, events, 64), k = 0; k < n;
         k++) {
      if (events[k].type == CAIRN_EVENT_TASK_START && random_below(3) > 0)
        cairn_task_finish(e, events[k].job, NULL, NULL);
    }
    if (random_below(20) == 0)
      cairn_engine_advance(e, HOUR, NULL);
  }
}

static void whatever_kills_it_what_was_acknowledged_is_there(void **state)
{
  const char *seconds_text = getenv("CAIRN_SECONDS");
  const char *kills_text = getenv("CAIRN_KILLS");
  long limit = kills_text ? strtol(kills_text, NULL, 10) : 100000;
  time_t end = time(NULL) + (kills_text     ? 1000000
                             : seconds_text ? strtol(seconds_text, NULL, 10)
                                            : 10);
  uint64_t acknowledged = 0;
  long lives = 0;

  (void)state;
  random_begin("kill");
  remove_store("k.db");
  open_at = START;
  while (lives < limit && (lives < 3 || time(NULL) < end)) {
    int ends[2], status;
    pid_t child;
    uint64_t serial;
    cairn_engine *e;
    uint64_t latest = 0;

    assert_int_equal(pipe(ends), 0);
    random_next();
    child = fork();
    if (child == 0) {
      close(ends[0]);
      child_submits(ends[1]);
    }
    close(ends[1]);
    usleep((useconds_t)(1000 + random_below(40000)));
    kill(child, SIGKILL);
    while (read(ends[0], &serial, sizeof serial) == sizeof serial)
      acknowledged = serial;
    close(ends[0]);
    waitpid(child, &status, 0);
    if (WIFEXITED(status))
      fail_msg("the child ended with %d", WEXITSTATUS(status));
    lives++;
    /* all of them, each with a next step, or removed after its end */
    e = open_store("k.db");
    assert_true(e->next_serial >= acknowledged);
    for (serial = 0; (serial = cairn_job_next(e, serial)) != 0;) {
      struct cairn__job *j = cairn__engine_job(e, serial, NULL);
      int phase = cairn__job_phase(j);

      assert_true(serial > latest);
      latest = serial;
      assert_true(j->state == CAIRN_NEW || j->state == CAIRN_SUSPENDED ||
                  cairn_state_is_final(j->state));
      assert_true(phase == CAIRN__PHASE_QUEUED ||
                  phase == CAIRN__PHASE_WAITING || phase == CAIRN__PHASE_DONE);
    }
    if (acknowledged > 0) { /* they are never removed here but by time */
      struct cairn__job *j = cairn__engine_job(e, acknowledged, NULL);

      assert_non_null(j);
    }
    open_at = cairn_engine_now(e);
    cairn_engine_free(e);
    if (lives % 50 == 0) {
      remove_store("k.db");
      acknowledged = 0;
    }
  }
  printf("# ran %ld ends of a process\n", lives);
}

/* ---- memory -------------------------------------------------------------- */

static void without_memory_a_turn_waits(void **state)
{
  cairn_engine *e;
  struct cairn_error err;
  cairn_job job;
  long live_before;

  (void)state;
  open_at = START;
  for (long n = 1;; n++) {
    int code;

    remove_store("m.db");
    live_before = alloc_live;
    alloc_countdown = n;
    code = try_open("m.db", &e, &err);
    if (code == 0) {
      code = cairn_submit(e, HOURLY, strlen(HOURLY), &job, &err);
      cairn_engine_step(e);
      cairn_engine_step(e);
      if (alloc_countdown > 0 && code == 0)
        n = -1; /* nothing failed: the end of the sweep */
      alloc_countdown = 0;
      if (code == 0) {
        flush(e);
        cairn_engine_step(e);
        e = crash(e, "m.db");
        assert_int_equal(state_of(e, job), CAIRN_NEW);
      }
      cairn_engine_free(e);
    } else {
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    }
    alloc_countdown = 0;
    assert_int_equal(alloc_live, live_before);
    if (n < 0)
      break;
  }
}

static void nothing_is_left_open(void **state)
{
  cairn_engine *e;
  int before;

  (void)state;
  remove_store("a.db");
  open_at = START;
  cairn_engine_free(open_store("a.db"));
  before = count_fds();
  for (int i = 0; i < 5; i++) {
    e = open_store("a.db");
    submit(e, TASK);
    cairn_engine_free(e);
  }
  assert_int_equal(count_fds(), before);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_job_is_kept_whole),
      cmocka_unit_test(intervals_count_on_while_no_engine_runs),
      cmocka_unit_test(numbers_are_never_given_twice),
      cmocka_unit_test(a_run_is_begun_again_as_the_same_run),
      cmocka_unit_test(what_was_asked_stands),
      cmocka_unit_test(what_a_close_suspends_goes_on),
      cmocka_unit_test(a_close_that_is_cut_off_holds_nothing),
      cmocka_unit_test(a_disowned_job_is_released_by_an_update),
      cmocka_unit_test(a_disowned_run_goes_on_after_an_update),
      cmocka_unit_test(jobs_do_not_recover_each_other),
      cmocka_unit_test(a_run_that_waits_for_its_commit_can_be_suspended),
      cmocka_unit_test(an_interrupted_run_that_cannot_go_on_has_a_record),
      cmocka_unit_test(missed_times_are_accounted_for),
      cmocka_unit_test(jobs_with_missed_times_sleep_soon),
      cmocka_unit_test(a_retry_survives),
      cmocka_unit_test(removal_survives),
      cmocka_unit_test(history_has_its_limit),
      cmocka_unit_test(history_has_warnings_and_versions),
      cmocka_unit_test(a_file_of_version_1_is_brought_up_to_date),
      cmocka_unit_test(volatile_jobs_are_not_kept),
      cmocka_unit_test(events_follow_the_commit),
      cmocka_unit_test(progress_keeps_its_place),
      cmocka_unit_test(a_run_waits_for_its_commit),
      cmocka_unit_test(changes_are_read_by_cursor),
      cmocka_unit_test(an_engine_in_memory_keeps_no_changes),
      cmocka_unit_test(one_engine_has_it),
      cmocka_unit_test(other_files_are_refused_and_left_alone),
      cmocka_unit_test(a_damaged_store_says_what_is_left),
      cmocka_unit_test(a_cut_log_keeps_what_lies_before_the_cut),
      cmocka_unit_test(a_file_that_cannot_be_written_is_refused),
      cmocka_unit_test(a_job_of_an_unknown_kind_says_so),
      cmocka_unit_test(a_backup_is_made_while_the_engine_works),
      cmocka_unit_test(while_the_store_fails_nothing_new_happens),
      cmocka_unit_test(a_failing_store_does_not_keep_a_run_from_its_end),
      cmocka_unit_test(no_fault_loses_what_was_acknowledged),
      cmocka_unit_test(without_memory_a_turn_waits),
      cmocka_unit_test(nothing_is_left_open),
      cmocka_unit_test(whatever_kills_it_what_was_acknowledged_is_there),
  };

  cairn_set_allocator(failing_realloc, failing_free);
  vfs_install();
  cairn__kind_register(&fake_kind);
  return run_awake_and_asleep(tests, scratch_open, scratch_close);
}
