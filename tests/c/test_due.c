/* Jobs that follow their calendar, on a virtual clock: when they run, what
 * becomes of times at which they cannot, what happens after a failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "asleep.h"
#include "cairn.h"
#include "due.h"
#include "engine.h"
#include "error.h"
#include "virtual_time.h"

#define SECOND INT64_C(1000000)
#define HOUR   (3600 * SECOND)
#define DAY    (24 * HOUR)
#define START  INT64_C(1735689600000000) /* Wednesday 2025-01-01T00:00:00Z */

#define DAILY_AT_2                                                             \
  "\"RunStartInterval\":\"00000000020000.000000:000\",\"LocalOrUtcTime\":2,"

static cairn_engine *e;
static const char *store; /* NULL: in memory */

/* What the events have told. */
static struct told {
  int64_t due, due_last;
  uint32_t count;
  int code; /* -1: a run, else why it was skipped */
} told[4096];
static size_t told_count;

static void open_engine_at(int64_t start)
{
  struct cairn_engine_options options = {.size = sizeof options,
                                         .is_virtual_clock = 1,
                                         .virtual_start = start,
                                         .store = store,
                                         .history_limit = 100000,
                                         .queues_json = "{\"other\":{}}"};
  struct cairn_error err;

  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  told_count = 0;
}

static int set_up(void **state)
{
  (void)state;
  open_engine_at(START);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  cairn_engine_free(e);
  return 0;
}

static void note(const struct cairn_event *event)
{
  struct told t = {event->due, event->due_last, event->count, event->code};

  if (event->type == CAIRN_EVENT_STATE && event->new_state == CAIRN_STARTING)
    t = (struct told){event->due, event->due, 1, -1};
  else if (event->type != CAIRN_EVENT_SKIPPED)
    return;
  assert_true(told_count < sizeof told / sizeof told[0]);
  told[told_count++] = t;
}

static void step(void)
{
  struct cairn_event events[64];
  int is_left;

  do {
    size_t n;

    is_left = cairn_engine_step(e);
    n = cairn_engine_next_events(e, events, 64);
    for (size_t i = 0; i < n; i++)
      note(&events[i]);
    /* what is not durable was not told yet */
    if (!is_left && cairn_engine_durable(e) < cairn_engine_turn(e)) {
      assert_int_equal(cairn_engine_flush(e, -1, NULL), 0);
      is_left = 1;
    }
  } while (is_left);
}

static void pass(int64_t us)
{
  pass_time(e, us, step);
}

/* The engine is not there for a while. */
static void sleep_through(int64_t us)
{
  assert_int_equal(cairn_engine_advance(e, us, NULL), 0);
  step();
}

static int try_submit(const char *json, cairn_job *job, struct cairn_error *err)
{
  return cairn_submit(e, json, strlen(json), job, err);
}

static cairn_job submit(const char *json)
{
  struct cairn_error err;
  cairn_job job;

  if (try_submit(json, &job, &err) != 0)
    fail_msg("submit %s: %s", json, err.message);
  step();
  return job;
}

static void expect_refused(const char *json, int id, const char *says)
{
  struct cairn_error err;
  cairn_job job;

  assert_int_equal(try_submit(json, &job, &err), -1);
  if (err.id != id || !strstr(err.message, says))
    fail_msg("%d: %s", err.id, err.message);
}

static int64_t number(cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_INTEGER);
  return v.as.integer;
}

static const char *text(cairn_job job, int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  assert_int_equal(v.kind, CAIRN_VALUE_STRING);
  return v.as.string;
}

static void expect_text(cairn_job job, int id, const char *says)
{
  if (!strstr(text(job, id), says))
    fail_msg("\"%s\" is not in: %s", says, text(job, id));
}

/* ScheduledStartTime, or 0 when it is null. */
static int64_t planned(cairn_job job)
{
  struct cairn_value v;

  assert_int_equal(
      cairn_job_get(e, job, CAIRN_PROPERTY_ScheduledStartTime, &v, NULL), 0);
  if (v.kind == CAIRN_VALUE_NULL)
    return 0;
  assert_int_equal(v.as.datetime.kind, CAIRN_TIMESTAMP);
  return v.as.datetime.microseconds;
}

static int state_of(cairn_job job)
{
  return (int)number(job, CAIRN_PROPERTY_JobState);
}

static void expect(cairn_job job, int state, const char *phase)
{
  assert_int_equal(state_of(job), state);
  assert_string_equal(text(job, CAIRN_PROPERTY_phase), phase);
}

static void end_well(cairn_job job)
{
  assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
  step();
}

static void end_badly(cairn_job job)
{
  struct cairn_error failure;

  cairn__fail(&failure, CAIRN_E_IO_ERROR, "the disk is gone");
  assert_int_equal(cairn_task_finish(e, job, &failure, NULL), 0);
  step();
}

static uint32_t request(cairn_job job, int what)
{
  uint32_t code = cairn_job_request_state_change(e, job, what, NULL, NULL);

  step();
  return code;
}

static int set_value(cairn_job job, const char *name, struct cairn_value value,
                     struct cairn_error *err)
{
  struct cairn_change change = {name, value};
  int code = cairn_job_set(e, job, &change, 1, err);

  step();
  return code;
}

static void set_integer(cairn_job job, const char *name, int64_t n)
{
  struct cairn_value v = {.kind = CAIRN_VALUE_INTEGER, .as.integer = n};

  assert_int_equal(set_value(job, name, v, NULL), 0);
}

static void expect_told(size_t i, int64_t due, int64_t due_last, uint32_t count,
                        int code)
{
  assert_true(i < told_count);
  assert_int_equal(told[i].due, due);
  assert_int_equal(told[i].due_last, due_last);
  assert_int_equal(told[i].count, count);
  assert_int_equal(told[i].code, code);
}

/* ---- in time ---- */

static void
a_job_runs_when_it_is_due_and_is_completed_by_its_last_run(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":3," DAILY_AT_2
             "\"zone\":\"Europe/Berlin\"}");

  (void)state;
  expect(job, CAIRN_NEW, "waiting");
  assert_int_equal(planned(job), START + 2 * HOUR);
  expect_text(job, CAIRN_PROPERTY_JobStatus,
              "waiting for run 1 of 3, due 20250101020000.000000+000");
  pass(2 * HOUR - 1);
  expect(job, CAIRN_NEW, "waiting");
  pass(1);
  expect(job, CAIRN_RUNNING, "running");
  pass(HOUR);
  end_well(job);
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(planned(job), START + DAY + 2 * HOUR);
  pass(DAY);
  end_well(job);
  pass(DAY);
  end_well(job);
  expect(job, CAIRN_COMPLETED, "done");
  assert_int_equal(planned(job), 0);
  assert_int_equal(told_count, 3);
  for (size_t i = 0; i < 3; i++)
    expect_told(i, START + 2 * HOUR + (int64_t)i * DAY,
                START + 2 * HOUR + (int64_t)i * DAY, 1, -1);
  pass(400 * DAY);
  assert_int_equal(told_count, 3);
}

/* 30 March 2025: 02:00 is followed by 03:00 in Berlin; 26 October: 03:00 by
 * 02:00. */
static void local_time_is_that_of_the_zone(void **state)
{
  cairn_job job = submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0,"
                         "\"RunStartInterval\":\"00000000023000.000000:000\","
                         "\"zone\":\"Europe/Berlin\"}");

  (void)state;
  assert_int_equal(planned(job), START + 1 * HOUR + 1800 * SECOND);
  expect_text(job, CAIRN_PROPERTY_JobStatus,
              "run 1, due 20250101023000.000000+060");
  for (int day = 0; day < 365; day++) {
    pass(DAY);
    end_well(job);
  }
  assert_int_equal(told_count, 365);
  assert_int_equal(told[88].due, INT64_C(1743296400000000));  /* 01:00Z */
  assert_int_equal(told[89].due, INT64_C(1743381000000000));  /* 00:30Z */
  assert_int_equal(told[298].due, INT64_C(1761438600000000)); /* 00:30Z */
  assert_int_equal(told[299].due, INT64_C(1761528600000000)); /* 01:30Z */
}

static void scheduled_start_time_is_the_earliest(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"ScheduledStartTime\":"
             "\"20250110020000.000000+000\"}");

  (void)state;
  assert_int_equal(planned(job), START + 9 * DAY + 2 * HOUR);
  pass(9 * DAY + 2 * HOUR);
  expect(job, CAIRN_RUNNING, "running");
  assert_int_equal(told_count, 1); /* nothing was missed */
}

static void until_time_ends_the_job(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"UntilTime\":\"20250102020000.000000+000\"}");

  (void)state;
  pass(2 * HOUR);
  end_well(job);
  pass(DAY); /* the moment itself is allowed */
  expect(job, CAIRN_RUNNING, "running");
  end_well(job);
  expect(job, CAIRN_SUSPENDED, "waiting");
  pass(1);
  expect(job, CAIRN_COMPLETED, "done");
  assert_int_equal(told_count, 2);

  job = submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
               "\"UntilTime\":\"20250103010000.000000+000\"}");
  assert_int_equal(planned(job), 0);
  expect_text(job, CAIRN_PROPERTY_JobStatus,
              "waiting for UntilTime: run 1 is not due before it");
  pass(DAY);
  expect(job, CAIRN_EXCEPTION, "done");
}

/* On a real clock the step that sees a time comes after it. */
static void the_last_moment_is_in_time(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"UntilTime\":\"20250101020000.000000+000\"}");

  (void)state;
  assert_int_equal(planned(job), START + 2 * HOUR);
  sleep_through(2 * HOUR + 5);
  expect(job, CAIRN_RUNNING, "running");
  pass(HOUR); /* and is not stopped, whatever is set meanwhile */
  set_integer(job, "Priority", 3);
  pass(HOUR);
  expect(job, CAIRN_RUNNING, "running");
  end_well(job);
  expect(job, CAIRN_COMPLETED, "done");
  assert_int_equal(told_count, 1);
}

static void what_cannot_run_before_the_end_is_told(void **state)
{
  cairn_job first = submit("{\"Name\":\"a\",\"queue\":\"other\",\"run\":true}");
  cairn_job second =
      submit("{\"Name\":\"b\",\"queue\":\"other\",\"run\":true}");
  cairn_job job = submit("{\"Name\":\"d\",\"run\":true,\"queue\":\"other\","
                         "\"JobRunTimes\":0," DAILY_AT_2
                         "\"UntilTime\":\"20250101023000.000000+000\"}");
  cairn_job killed = submit("{\"Name\":\"d\",\"run\":true,"
                            "\"queue\":\"other\",\"JobRunTimes\":0," DAILY_AT_2
                            "\"zone\":\"UTC\"}");

  (void)state;
  told_count = 0;
  pass(2 * HOUR);
  expect(job, CAIRN_NEW, "queued");
  request(killed, CAIRN_REQUEST_KILL);
  assert_int_equal(told_count, 1);
  expect_told(0, START + 2 * HOUR, START + 2 * HOUR, 1, CAIRN__SKIP_ENDED);
  pass(HOUR);
  expect(job, CAIRN_EXCEPTION, "done");
  assert_int_equal(told_count, 2);
  expect_told(1, START + 2 * HOUR, START + 2 * HOUR, 1, CAIRN__SKIP_ENDED);
  end_well(first);
  end_well(second);
}

static void start_runs_it_now_and_counts(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":2," DAILY_AT_2
             "\"zone\":\"UTC\"}");

  (void)state;
  assert_int_equal(request(job, CAIRN_REQUEST_START), 4096);
  expect(job, CAIRN_RUNNING, "running");
  expect_told(0, 0, 0, 1, -1); /* at no time of the calendar */
  end_well(job);
  assert_int_equal(planned(job), START + 2 * HOUR);
  pass(2 * HOUR);
  end_well(job);
  expect(job, CAIRN_COMPLETED, "done");
}

/* ---- not in time ---- */

static void what_comes_during_a_run_is_skipped(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"zone\":\"UTC\"}");

  (void)state;
  pass(2 * HOUR);
  pass(2 * DAY + HOUR);
  assert_int_equal(number(job, CAIRN_PROPERTY_run_number), 1);
  end_well(job);
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(told_count, 2);
  expect_told(1, START + DAY + 2 * HOUR, START + 2 * DAY + 2 * HOUR, 2,
              CAIRN__SKIP_ACTIVE);
  assert_int_equal(planned(job), START + 3 * DAY + 2 * HOUR);
}

/* It came in time, though it had to wait for its turn for hours. */
static void a_time_is_not_missed_in_the_queue(void **state)
{
  cairn_job first = submit("{\"Name\":\"a\",\"queue\":\"other\",\"run\":true}");
  cairn_job second =
      submit("{\"Name\":\"b\",\"queue\":\"other\",\"run\":true}");
  cairn_job job =
      submit("{\"Name\":\"d\",\"queue\":\"other\",\"run\":true,"
             "\"JobRunTimes\":0," DAILY_AT_2 "\"catch_up\":\"none\"}");

  (void)state;
  pass(8 * HOUR);
  expect(job, CAIRN_NEW, "queued");
  set_integer(job, "Priority", 3);
  expect(job, CAIRN_NEW, "queued");
  pass(DAY);
  end_well(first);
  expect(job, CAIRN_RUNNING, "running");
  end_well(job);
  expect_told(told_count - 2, START + 2 * HOUR, START + 2 * HOUR, 1, -1);
  expect_told(told_count - 1, START + DAY + 2 * HOUR, START + DAY + 2 * HOUR, 1,
              CAIRN__SKIP_ACTIVE);
  end_well(second);
}

static void what_comes_while_a_client_holds_it_is_skipped(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"catch_up\":\"all\"}");

  (void)state;
  assert_int_equal(request(job, CAIRN_REQUEST_SUSPEND), 0);
  pass(5 * DAY);
  expect(job, CAIRN_SUSPENDED, "held");
  assert_int_equal(planned(job), 0);
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  step();
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(told_count, 1);
  expect_told(0, START + 2 * HOUR, START + 4 * DAY + 2 * HOUR, 5,
              CAIRN__SKIP_HELD);
  pass(DAY);
  expect(job, CAIRN_RUNNING, "running");
  assert_int_equal(told_count, 2);
}

static void a_clock_set_back_in_the_queue_repeats_nothing(void **state)
{
  cairn_job first = submit("{\"Name\":\"a\",\"queue\":\"other\",\"run\":true}");
  cairn_job second =
      submit("{\"Name\":\"b\",\"queue\":\"other\",\"run\":true}");
  cairn_job job = submit("{\"Name\":\"d\",\"run\":true,\"queue\":\"other\","
                         "\"JobRunTimes\":0," DAILY_AT_2 "\"zone\":\"UTC\"}");

  (void)state;
  told_count = 0;
  pass(2 * HOUR);
  cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox), -HOUR);
  step();
  set_integer(job, "Priority", 1);
  end_well(first);
  expect(job, CAIRN_RUNNING, "running");
  expect_told(0, START + 2 * HOUR, START + 2 * HOUR, 1, -1);
  end_well(job);
  pass(2 * HOUR);
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(told_count, 1);
  end_well(second);
}

static void a_clock_set_forward_brings_a_time_before_its_end(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"UntilTime\":\"00000000013000.000000:000\"}");

  (void)state;
  assert_int_equal(planned(job), 0);
  cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox), HOUR);
  assert_int_equal(planned(job), START + 2 * HOUR);
  pass(HOUR);
  expect(job, CAIRN_RUNNING, "running");
}

static void no_more_is_made_up_than_runs_are_left(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":3," DAILY_AT_2
             "\"catch_up\":\"all\"}");

  (void)state;
  sleep_through(5 * DAY);
  expect_told(0, START + 2 * HOUR, START + DAY + 2 * HOUR, 2,
              CAIRN__SKIP_CATCH_UP);
  for (int i = 0; i < 3; i++)
    end_well(job);
  expect(job, CAIRN_COMPLETED, "done");
  assert_int_equal(told_count, 4);
  expect_told(3, START + 4 * DAY + 2 * HOUR, START + 4 * DAY + 2 * HOUR, 1, -1);
}

static void catch_up_says_what_is_made_up(void **state)
{
  cairn_job latest =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"queue\":\"other\"}");

  (void)state;
  sleep_through(5 * DAY);
  expect(latest, CAIRN_RUNNING, "running");
  assert_int_equal(told_count, 2);
  expect_told(0, START + 2 * HOUR, START + 3 * DAY + 2 * HOUR, 4,
              CAIRN__SKIP_CATCH_UP);
  expect_told(1, START + 4 * DAY + 2 * HOUR, START + 4 * DAY + 2 * HOUR, 1, -1);
  cairn_engine_free(e);

  open_engine_at(START);
  latest = submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
                  "\"catch_up\":\"none\"}");
  sleep_through(5 * DAY);
  expect(latest, CAIRN_NEW, "waiting");
  assert_int_equal(told_count, 1);
  expect_told(0, START + 2 * HOUR, START + 4 * DAY + 2 * HOUR, 5,
              CAIRN__SKIP_CATCH_UP);
  assert_int_equal(planned(latest), START + 5 * DAY + 2 * HOUR);
  cairn_engine_free(e);

  open_engine_at(START);
  latest = submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
                  "\"catch_up\":\"all\"}");
  sleep_through(40 * DAY);
  for (int i = 0; i < CAIRN__CATCH_UP_MAX; i++) {
    expect(latest, CAIRN_RUNNING, "running");
    end_well(latest);
  }
  expect(latest, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(told_count, 1 + CAIRN__CATCH_UP_MAX);
  expect_told(0, START + 2 * HOUR, START + 7 * DAY + 2 * HOUR, 8,
              CAIRN__SKIP_CATCH_UP);
  for (int i = 0; i < CAIRN__CATCH_UP_MAX; i++)
    assert_int_equal(told[1 + i].due, START + (8 + i) * DAY + 2 * HOUR);
}

static void a_moment_late_is_not_missed(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"catch_up\":\"none\"}");

  (void)state;
  sleep_through(2 * HOUR + CAIRN__LATE_US);
  expect(job, CAIRN_RUNNING, "running");
  end_well(job);
  sleep_through(DAY + 1);
  expect(job, CAIRN_SUSPENDED, "waiting");
  expect_told(1, START + DAY + 2 * HOUR, START + DAY + 2 * HOUR, 1,
              CAIRN__SKIP_CATCH_UP);
}

static void a_clock_that_is_set_back_repeats_nothing(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"zone\":\"UTC\"}");

  (void)state;
  pass(2 * HOUR);
  end_well(job);
  cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox), -DAY);
  pass(2 * DAY - HOUR);
  assert_int_equal(told_count, 1);
  pass(HOUR);
  assert_int_equal(told_count, 2);
  expect_told(1, START + DAY + 2 * HOUR, START + DAY + 2 * HOUR, 1, -1);
}

/* ---- changes ---- */

static void another_calendar_counts_from_now_on(void **state)
{
  struct cairn_error err;
  struct cairn_value v = {.kind = CAIRN_VALUE_STRING};
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"zone\":\"UTC\"}");

  (void)state;
  pass(2 * HOUR);
  pass(2 * DAY); /* two times are missed while it runs */
  set_integer(job, "RunDay", 20);
  end_well(job);
  assert_int_equal(told_count, 1); /* they were of the old one */
  assert_int_equal(planned(job), START + 19 * DAY + 2 * HOUR);
  /* what never comes is refused and changes nothing */
  set_integer(job, "RunDay", 30);
  v.as.string = "February";
  v.count = 8;
  assert_int_equal(set_value(job, "RunMonth", v, &err), -1);
  assert_non_null(strstr(err.message, "never comes"));
  assert_int_equal(planned(job), START + 29 * DAY + 2 * HOUR);
  /* another priority is not another calendar */
  set_integer(job, "Priority", 7);
  assert_int_equal(planned(job), START + 29 * DAY + 2 * HOUR);
  /* without one, and not run as often as it may be, it is done */
  v.kind = CAIRN_VALUE_NULL;
  assert_int_equal(set_value(job, "RunDay", v, NULL), 0);
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(set_value(job, "RunStartInterval", v, NULL), 0);
  expect(job, CAIRN_COMPLETED, "done");
}

static void what_can_never_run_is_refused(void **state)
{
  (void)state;
  expect_refused("{\"Name\":\"d\",\"run\":true,\"RunMonth\":1,\"RunDay\":30}",
                 CAIRN_E_INVALID_ARGUMENT, "never comes");
  expect_refused("{\"Name\":\"d\",\"run\":true,\"RunDay\":1,"
                 "\"zone\":\"Europe/Berlim\"}",
                 CAIRN_E_INVALID_ARGUMENT, "Europe/Berlin");
  expect_refused("{\"Name\":\"d\",\"run\":true,\"RunMonth\":2,"
                 "\"RunDay\":30,\"RunStartInterval\":"
                 "\"00000000023000.000000:000\",\"gap\":\"skip\","
                 "\"RunDayOfWeek\":9}",
                 CAIRN_E_OUT_OF_RANGE, "RunDayOfWeek");
}

/* ---- after a failure ---- */

static void a_run_is_tried_again_later_each_time(void **state)
{
  cairn_job job =
      submit("{\"Name\":\"d\",\"run\":true,\"JobRunTimes\":0," DAILY_AT_2
             "\"RecoveryAction\":\"Re-run Job\"}");

  (void)state;
  pass(2 * HOUR);
  end_badly(job);
  expect(job, CAIRN_SUSPENDED, "backoff");
  assert_int_equal(number(job, CAIRN_PROPERTY_ErrorCode), CAIRN_E_IO_ERROR);
  assert_int_equal(planned(job), START + 2 * HOUR + 60 * SECOND);
  expect_text(job, CAIRN_PROPERTY_JobStatus,
              "attempt 1 of 3 failed, the next is at "
              "20250101020100.000000+000: the disk is gone");
  pass(60 * SECOND - 1);
  expect(job, CAIRN_SUSPENDED, "backoff");
  pass(1);
  expect(job, CAIRN_RUNNING, "running");
  assert_int_equal(number(job, CAIRN_PROPERTY_run_number), 1);
  assert_int_equal(number(job, CAIRN_PROPERTY_attempts), 2);
  end_badly(job);
  pass(120 * SECOND);
  expect(job, CAIRN_RUNNING, "running");
  end_badly(job);
  /* after the last attempt the job goes on as with Continue */
  expect(job, CAIRN_SUSPENDED, "waiting");
  assert_int_equal(number(job, CAIRN_PROPERTY_attempts), 3);
  assert_int_equal(number(job, CAIRN_PROPERTY_HealthState), 20);
  assert_int_equal(planned(job), START + DAY + 2 * HOUR);
  assert_int_equal(told_count, 3);
  for (size_t i = 0; i < 3; i++)
    expect_told(i, START + 2 * HOUR, START + 2 * HOUR, 1, -1);
  pass(DAY);
  assert_int_equal(number(job, CAIRN_PROPERTY_run_number), 2);
  assert_int_equal(number(job, CAIRN_PROPERTY_attempts), 1);
  end_well(job);
  assert_int_equal(number(job, CAIRN_PROPERTY_ErrorCode), 0);
}

static void a_single_run_is_tried_again_too(void **state)
{
  cairn_job job = submit(
      "{\"Name\":\"o\",\"run\":true,\"RecoveryAction\":4,\"once\":true}");

  (void)state;
  end_badly(job);
  expect(job, CAIRN_SUSPENDED, "backoff");
  /* held: not before it is released, and then at once */
  assert_int_equal(request(job, CAIRN_REQUEST_SUSPEND), 0);
  expect(job, CAIRN_SUSPENDED, "held");
  pass(HOUR);
  expect(job, CAIRN_SUSPENDED, "held");
  assert_int_equal(cairn_job_resume(e, job, NULL), 0);
  step();
  expect(job, CAIRN_RUNNING, "running");
  end_badly(job);
  /* Start does not wait for the delay, and makes no third run of it */
  assert_int_equal(request(job, CAIRN_REQUEST_START), 4096);
  assert_int_equal(number(job, CAIRN_PROPERTY_attempts), 3);
  end_badly(job);
  expect(job, CAIRN_EXCEPTION, "done");
  assert_int_equal(number(job, CAIRN_PROPERTY_run_number), 1);
}

static void backing_off_ends_as_waiting_does(void **state)
{
  cairn_job job = submit("{\"Name\":\"o\",\"run\":true,\"RecoveryAction\":4}");
  cairn_job until = submit("{\"Name\":\"o\",\"run\":true,\"RecoveryAction\":4,"
                           "\"UntilTime\":\"00000000000030.000000:000\"}");

  (void)state;
  end_badly(job);
  end_badly(until);
  assert_int_equal(request(job, CAIRN_REQUEST_TERMINATE), 4096);
  expect(job, CAIRN_TERMINATED, "done");
  pass(31 * SECOND);
  expect(until, CAIRN_EXCEPTION, "done");
  assert_int_equal(number(until, CAIRN_PROPERTY_ErrorCode), CAIRN_E_IO_ERROR);
  pass(DAY);
  assert_int_equal(told_count, 2);
}

static const char *id_of(cairn_job job)
{
  return text(job, CAIRN_PROPERTY_InstanceID);
}

static cairn_job submit_with_recovery(const char *id, const char *more,
                                      int is_refused)
{
  char json[512];

  snprintf(json, sizeof json,
           "{\"Name\":\"f\",\"run\":true,\"RecoveryAction\":5,"
           "\"RecoveryJob\":\"%s\"%s}",
           id, more);
  if (is_refused)
    expect_refused(json, CAIRN_E_INVALID_ARGUMENT, "is in the queue");
  return is_refused ? 0 : submit(json);
}

static void a_recovery_job_stands_ready(void **state)
{
  cairn_job recovery = submit("{\"Name\":\"r\",\"run\":true,\"held\":true,"
                              "\"JobRunTimes\":0}");
  char id[64];
  cairn_job job;

  (void)state;
  snprintf(id, sizeof id, "%s", id_of(recovery));
  submit_with_recovery(id, ",\"queue\":\"other\"", 1);
  for (uint32_t run = 1; run <= 2; run++) {
    expect(recovery, run == 1 ? CAIRN_NEW : CAIRN_SUSPENDED, "held");
    job = submit_with_recovery(id, "", 0);
    end_badly(job);
    expect(job, CAIRN_EXCEPTION, "done");
    expect(recovery, CAIRN_RUNNING, "running");
    end_well(recovery);
    assert_int_equal(number(recovery, CAIRN_PROPERTY_run_number), run);
  }
  expect(recovery, CAIRN_SUSPENDED, "held");
  /* one that runs already is not started again */
  job = submit_with_recovery(id, "", 0);
  assert_int_equal(request(recovery, CAIRN_REQUEST_START), 4096);
  end_badly(job);
  assert_int_equal(number(recovery, CAIRN_PROPERTY_run_number), 3);
  end_well(recovery);
  expect(recovery, CAIRN_SUSPENDED, "held");
}

/* What was asked as a recovery and taken back leaves no trace. */
static void a_recovery_that_was_held_has_its_own_again(void **state)
{
  cairn_job last = submit("{\"Name\":\"r\",\"run\":true,\"held\":true}");
  char id[64];
  cairn_job middle, first;

  (void)state;
  snprintf(id, sizeof id, "%s", id_of(last));
  middle = submit_with_recovery(
      id, ",\"JobRunTimes\":0," DAILY_AT_2 "\"zone\":\"UTC\"", 0);
  snprintf(id, sizeof id, "%s", id_of(middle));
  submit("{\"Name\":\"x\",\"run\":true}");
  first = submit_with_recovery(id, "", 0);
  end_badly(first); /* its place is taken by middle */
  request(middle, CAIRN_REQUEST_SUSPEND);
  if (state_of(middle) == CAIRN_RUNNING)
    end_badly(middle);
  request(middle, CAIRN_REQUEST_SUSPEND);
  cairn_job_resume(e, middle, NULL);
  pass(DAY);
  expect(middle, CAIRN_RUNNING, "running");
  end_badly(middle);
  expect(last, CAIRN_RUNNING, "running");
}

static void a_recovery_has_no_recovery(void **state)
{
  cairn_job last = submit("{\"Name\":\"r\",\"run\":true,\"held\":true}");
  char id[64];
  cairn_job middle, first;

  (void)state;
  snprintf(id, sizeof id, "%s", id_of(last));
  middle = submit_with_recovery(id, ",\"held\":true", 0);
  snprintf(id, sizeof id, "%s", id_of(middle));
  first = submit_with_recovery(id, "", 0);
  end_badly(first);
  expect(middle, CAIRN_RUNNING, "running");
  end_badly(middle);
  expect(middle, CAIRN_EXCEPTION, "done");
  expect(last, CAIRN_NEW, "held");
}

/* ---- every time has one run or one reason ---- */

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
  random_state =
      random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
  return (random_state >> 33) % n;
}

/* The process ends, and another one begins after a while. */
static void restart(int64_t us)
{
  int64_t at = cairn_engine_now(e);
  size_t count;

  step();
  count = told_count;
  cairn_engine_free(e);
  open_engine_at(at + us);
  told_count = count;
  step();
}

/* Whatever happens to the job: runs of all lengths, failures, holds, sleep, a
 * clock that is set, with a store ends of the engine, for a year and a half of
 * random calendars. */
static void live(cairn_job job)
{
  int64_t end = cairn_engine_now(e) + 550 * DAY;

  while (cairn_engine_now(e) < end) {
    int64_t n = (int64_t)random_below(UINT64_C(72) * 3600) * SECOND;

    if (random_below(40) == 0)
      sleep_through(n * (int64_t)random_below(20));
    else
      pass(n);
    if (store && random_below(8) == 0)
      restart(random_below(2) ? 0 : n * (int64_t)random_below(5));
    if (state_of(job) == CAIRN_RUNNING && random_below(3) != 0) {
      if (random_below(3) == 0)
        end_badly(job);
      else
        end_well(job);
    } else if (random_below(12) == 0) {
      request(job, CAIRN_REQUEST_SUSPEND);
      if (state_of(job) == CAIRN_RUNNING)
        assert_int_equal(cairn_task_parked(e, job, NULL), 0);
    } else if (random_below(4) == 0) {
      cairn_job_resume(e, job, NULL);
      step();
    } else if (random_below(20) == 0) {
      request(job, CAIRN_REQUEST_START);
    } else if (random_below(60) == 0) {
      cairn__virtual_clock_jump(cairn__mailbox_clock(e->mailbox),
                                -(int64_t)random_below(86400) * SECOND);
    }
  }
  /* to rest, with everything settled */
  if (strcmp(text(job, CAIRN_PROPERTY_phase), "held") == 0)
    cairn_job_resume(e, job, NULL);
  for (step(); strcmp(text(job, CAIRN_PROPERTY_phase), "waiting") != 0;
       step()) {
    if (state_of(job) == CAIRN_RUNNING)
      end_well(job);
    else
      pass(HOUR);
  }
}

/* The times after START and up to what is settled, each told once. */
static size_t check_account(cairn_job job)
{
  struct cairn__job *j = cairn__engine_job(e, job, NULL);
  struct cairn__schedule s =
      cairn__due_schedule(e, j, &j->settings, j->due.zone);
  struct cairn__due due;
  int64_t at = START;
  size_t i = 0, count = 0;

  for (;;) {
    while (i < told_count && told[i].due == 0) /* Start, at no time */
      i++;
    if (i == told_count)
      break;
    for (uint32_t k = 0; k < told[i].count; k++, count++) {
      assert_int_equal(cairn__schedule_next(&s, at, &due), 1);
      at = due.unix_us;
      if (k == 0)
        assert_int_equal(told[i].due, at);
    }
    assert_int_equal(told[i].due_last, at);
    /* further attempts at that run, and its going on after a hold */
    for (i++; i < told_count && told[i].code == -1 && told[i].due == at;)
      i++;
  }
  /* and the next one is the job's */
  assert_int_equal(cairn__schedule_next(&s, at, &due), 1);
  assert_int_equal(j->due.next_us, due.unix_us);
  return count;
}

static int64_t time_of(const json_t *record, const char *name)
{
  const char *text = json_string_value(json_object_get(record, name));
  struct cairn_datetime t;

  if (!text)
    return 0;
  assert_int_equal(cairn_datetime_parse(text, strlen(text), &t, NULL), 0);
  return t.microseconds;
}

/* The history has what the events have told: skipped times one by one, and a
 * record for each time that an attempt ended. */
static void check_history(void)
{
  json_t *records, *record;
  size_t index, skipped = 0, at = 0;
  int64_t due = 0;
  char *text;

  assert_int_equal(cairn_history(e, NULL, &text, NULL), 0);
  records = json_loads(text, 0, NULL);
  cairn_free(text);
  assert_non_null(records);
  json_array_foreach(records, index, record)
  {
    if (json_object_get(record, "skipped")) {
      while (at < told_count && told[at].code == -1)
        at++;
      assert_true(at < told_count);
      assert_int_equal(time_of(record, "due"), told[at].due);
      assert_int_equal(time_of(record, "due_last"), told[at].due_last);
      assert_int_equal(json_integer_value(json_object_get(record, "skipped")),
                       told[at].count);
      at++;
      skipped++;
    } else if (time_of(record, "due") != 0) {
      assert_true(time_of(record, "due") >= due); /* more than one: attempts */
      due = time_of(record, "due");
      assert_true(time_of(record, "time") >= time_of(record, "StartTime"));
    }
  }
  while (at < told_count && told[at].code == -1)
    at++;
  assert_int_equal(at, told_count);
  json_decref(records);
}

static void account_for(int jobs, size_t expected)
{
  static const char *const zones[] = {"UTC", "Europe/Berlin",
                                      "America/New_York", "Asia/Kathmandu",
                                      "Australia/Lord_Howe"};
  static const char *const modes[] = {"latest", "none", "all"};
  const char *seed = getenv("CAIRN_SEED");
  size_t times = 0;

  random_state = seed ? strtoull(seed, NULL, 10) : 1;
  printf("# seed %llu\n", (unsigned long long)random_state);
  for (int i = 0; i < jobs; i++) {
    char json[512], day[64] = "";
    cairn_job job;

    cairn_engine_free(e);
    e = NULL;
    if (store)
      (void)unlink(store);
    open_engine_at(START);
    if (random_below(3) == 0)
      snprintf(day, sizeof day, "\"RunDayOfWeek\":%d,",
               (int)random_below(7) + 1);
    else if (random_below(3) == 0)
      snprintf(day, sizeof day, "\"RunDay\":%d,", (int)random_below(31) - 31);
    snprintf(json, sizeof json,
             "{\"Name\":\"x\",\"run\":true,\"JobRunTimes\":0,%s"
             "\"RunStartInterval\":\"000000000%d%02d00.000000:000\","
             "\"zone\":\"%s\",\"catch_up\":\"%s\",\"RecoveryAction\":%d,"
             "\"overlap\":\"%s\"}",
             day, (int)random_below(4), (int)random_below(60),
             zones[random_below(5)], modes[random_below(3)],
             random_below(2) ? 4 : 3, random_below(2) ? "both" : "first");
    job = submit(json);
    live(job);
    times += check_account(job);
    check_history();
  }
  printf("# %d jobs, %zu times, each with one run or one reason%s\n", jobs,
         times, store ? ", over restarts" : "");
  assert_true(times > expected);
}

static void every_due_time_has_one_run_or_one_reason(void **state)
{
  (void)state;
  account_for(60, 5000);
}

static void over_restarts_too(void **state)
{
  static char path[64];
  char directory[] = "/dev/shm/cairn-test-XXXXXX", lock[80];

  (void)state;
  if (!mkdtemp(directory)) {
    strcpy(directory, "/tmp/cairn-test-XXXXXX");
    assert_non_null(mkdtemp(directory));
  }
  snprintf(path, sizeof path, "%s/due.db", directory);
  snprintf(lock, sizeof lock, "%s-lock", path);
  store = path;
  account_for(20, 2000);
  cairn_engine_free(e);
  store = NULL;
  open_engine_at(START);
  unlink(path);
  unlink(lock);
  assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
      TEST(a_job_runs_when_it_is_due_and_is_completed_by_its_last_run),
      TEST(local_time_is_that_of_the_zone),
      TEST(scheduled_start_time_is_the_earliest),
      TEST(until_time_ends_the_job),
      TEST(the_last_moment_is_in_time),
      TEST(what_cannot_run_before_the_end_is_told),
      TEST(start_runs_it_now_and_counts),
      TEST(what_comes_during_a_run_is_skipped),
      TEST(a_time_is_not_missed_in_the_queue),
      TEST(what_comes_while_a_client_holds_it_is_skipped),
      TEST(a_clock_set_back_in_the_queue_repeats_nothing),
      TEST(a_clock_set_forward_brings_a_time_before_its_end),
      TEST(no_more_is_made_up_than_runs_are_left),
      TEST(catch_up_says_what_is_made_up),
      TEST(a_moment_late_is_not_missed),
      TEST(a_clock_that_is_set_back_repeats_nothing),
      TEST(another_calendar_counts_from_now_on),
      TEST(what_can_never_run_is_refused),
      TEST(a_run_is_tried_again_later_each_time),
      TEST(a_single_run_is_tried_again_too),
      TEST(backing_off_ends_as_waiting_does),
      TEST(a_recovery_job_stands_ready),
      TEST(a_recovery_has_no_recovery),
      TEST(a_recovery_that_was_held_has_its_own_again),
      TEST(every_due_time_has_one_run_or_one_reason),
      TEST(over_restarts_too),
  };

  return run_awake_and_asleep(tests, NULL, NULL);
}
