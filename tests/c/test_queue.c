/* Queues: who is next, who is refused, who has waited too long. On a virtual
 * clock; every job is a task that the test begins and ends. */
#include "scratch.h"

#include <jansson.h>

#include "asleep.h"
#include "engine.h"
#include "error.h"

#define SECOND INT64_C(1000000)
#define START  INT64_C(1735689600000000)

static cairn_engine *open_queues(const char *queues)
{
  struct cairn_engine_options options = {.size = sizeof options,
                                         .is_virtual_clock = 1,
                                         .virtual_start = START,
                                         .queues_json = queues};
  struct cairn_error err;
  cairn_engine *e;

  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  return e;
}

static cairn_job submit(cairn_engine *e, const char *name, const char *more)
{
  struct cairn_error err;
  char json[512];
  cairn_job job;

  snprintf(json, sizeof json, "{\"Name\":\"%s\",\"run\":true%s}", name, more);
  if (cairn_submit(e, json, strlen(json), &job, &err) != 0)
    fail_msg("submit %s: %s", json, err.message);
  return job;
}

static void step(cairn_engine *e)
{
  struct cairn_event events[64];

  while (cairn_engine_step(e))
    cairn_engine_next_events(e, events, 64);
}

static void pass(cairn_engine *e, int64_t us)
{
  assert_int_equal(cairn_engine_advance(e, us, NULL), 0);
  step(e);
}

static struct cairn__job *job_of(cairn_engine *e, cairn_job job)
{
  return cairn__engine_job(e, job, NULL);
}

/* Ends what runs, and returns the name of what runs then. */
static const char *next(cairn_engine *e)
{
  step(e);
  for (cairn_job job = 0; (job = cairn_job_next(e, job)) != 0;) {
    struct cairn__job *j = job_of(e, job);

    if (j->state == CAIRN_RUNNING) {
      static char name[64];

      snprintf(name, sizeof name, "%s", j->name);
      assert_int_equal(cairn_task_finish(e, job, NULL, NULL), 0);
      return name;
    }
  }
  return "";
}

static void the_lowest_priority_is_first(void **state)
{
  cairn_engine *e = open_queues("{\"default\":{\"concurrency\":1,"
                                "\"DefaultJobPriority\":7}}");

  (void)state;
  submit(e, "a", ",\"Priority\":9");
  submit(e, "b", "");
  submit(e, "c", ",\"Priority\":7");
  submit(e, "d", ",\"Priority\":1");
  submit(e, "e", ",\"Priority\":4294967295");
  assert_string_equal(next(e), "d");
  assert_string_equal(next(e), "b"); /* null is 7: before c, which is later */
  assert_string_equal(next(e), "c");
  assert_string_equal(next(e), "a");
  assert_string_equal(next(e), "e");
  assert_string_equal(next(e), "");
  cairn_engine_free(e);
}

/* A job is overtaken for so long as it has steps of priority more. */
static void nobody_waits_for_ever(void **state)
{
  cairn_engine *e = open_queues("{\"default\":{\"concurrency\":1,"
                                "\"ageing\":60}}");
  int overtaken = 0;

  (void)state;
  submit(e, "first", ",\"Priority\":0");
  step(e);
  submit(e, "patient", ",\"Priority\":10");
  for (;; overtaken++) {
    const char *name;

    submit(e, "urgent", ",\"Priority\":0");
    pass(e, 59 * SECOND);
    name = next(e);
    if (strcmp(name, "patient") == 0)
      break;
    assert_true(overtaken < 100);
  }
  /* ten minutes, in steps of 59 seconds */
  assert_true(overtaken >= 10 && overtaken <= 12);
  cairn_engine_free(e);

  e = open_queues("{\"default\":{\"concurrency\":1,\"ageing\":0}}");
  submit(e, "urgent", ",\"Priority\":0");
  submit(e, "patient", ",\"Priority\":10");
  for (int i = 0; i < 50; i++) {
    submit(e, "urgent", ",\"Priority\":0");
    pass(e, 3600 * SECOND);
    assert_string_equal(next(e), "urgent");
  }
  cairn_engine_free(e);
}

static void a_full_queue_refuses(void **state)
{
  static const char *const two = "[{\"Name\":\"x\",\"run\":true},"
                                 "{\"Name\":\"y\",\"run\":true}]";
  static const char *const spec = "{\"Name\":\"x\",\"run\":true,\"held\":true}";
  cairn_engine *e = open_queues("{\"default\":{\"MaxJobsOnQueue\":3},"
                                "\"free\":{}}");
  struct cairn_error err;
  cairn_job jobs[4], job;
  char *json;
  json_t *queues, *row;

  (void)state;
  jobs[0] = submit(e, "a", ",\"held\":true");
  submit(e, "b", ",\"held\":true");
  /* all or none */
  assert_int_equal(cairn_submit_all(e, two, strlen(two), jobs + 1, 2, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_QUEUE_FULL);
  assert_int_equal(e->roster.count, 2);
  submit(e, "c", ",\"held\":true");
  assert_int_equal(cairn_submit(e, spec, strlen(spec), &job, &err), -1);
  assert_int_equal(err.id, CAIRN_E_QUEUE_FULL);
  assert_non_null(strstr(err.message, "MaxJobsOnQueue is 3"));
  submit(e, "d", ",\"queue\":\"free\"");
  /* one that has ended makes room */
  cairn_job_kill(e, jobs[0], 0, NULL);
  submit(e, "e", ",\"held\":true");
  assert_int_equal(cairn_queues(e, &json, &err), 0);
  queues = json_loads(json, 0, NULL);
  row = json_array_get(queues, 0);
  assert_string_equal(json_string_value(json_object_get(row, "QueueStatus")),
                      "Active");
  assert_int_equal(json_integer_value(json_object_get(row, "unfinished")), 3);
  assert_int_equal(json_array_size(queues), 2);
  json_decref(queues);
  cairn_free(json);
  cairn_engine_free(e);
}

static void what_waits_too_long_is_given_up(void **state)
{
  cairn_engine *e = open_queues("{\"default\":{\"concurrency\":1,"
                                "\"MaxTimeOnQueue\":90}}");
  cairn_job running, once, daily, asked;
  struct cairn_event events[64];
  int skipped = 0;

  (void)state;
  running = submit(e, "running", "");
  step(e);
  once = submit(e, "once", "");
  daily = submit(e, "daily",
                 ",\"zone\":\"UTC\",\"JobRunTimes\":0,"
                 "\"RunStartInterval\":\"00000000000100.000000:000\"");
  asked = submit(e, "asked", ",\"held\":true");
  cairn_job_request_state_change(e, asked, CAIRN_REQUEST_START, NULL, NULL);
  pass(e, 60 * SECOND); /* daily is due: 00:01 */
  assert_int_equal(cairn__job_phase(job_of(e, daily)), CAIRN__PHASE_QUEUED);
  pass(e, 29 * SECOND);
  assert_int_equal(job_of(e, once)->state, CAIRN_NEW);
  pass(e, SECOND);
  assert_int_equal(job_of(e, once)->state, CAIRN_EXCEPTION);
  assert_int_equal(job_of(e, once)->error_id, CAIRN_E_TIMEOUT);
  assert_int_equal(cairn__job_phase(job_of(e, asked)), CAIRN__PHASE_HELD);
  assert_int_equal(cairn__job_phase(job_of(e, daily)), CAIRN__PHASE_QUEUED);
  cairn_engine_advance(e, 60 * SECOND, NULL);
  while (cairn_engine_step(e)) {
    size_t n = cairn_engine_next_events(e, events, 64);

    for (size_t i = 0; i < n; i++) {
      if (events[i].type == CAIRN_EVENT_SKIPPED) {
        assert_int_equal(events[i].code, CAIRN__SKIP_QUEUED);
        assert_int_equal(events[i].due, START + 60 * SECOND);
        skipped++;
      }
    }
  }
  assert_int_equal(skipped, 1);
  assert_int_equal(cairn__job_phase(job_of(e, daily)), CAIRN__PHASE_WAITING);
  /* and it runs at its next time */
  assert_int_equal(cairn_task_finish(e, running, NULL, NULL), 0);
  pass(e, 24 * 3600 * SECOND);
  assert_int_equal(job_of(e, daily)->state, CAIRN_RUNNING);
  /* a run that stands still is never given up */
  cairn_job_request_state_change(e, daily, CAIRN_REQUEST_SUSPEND, NULL, NULL);
  step(e);
  assert_int_equal(cairn_task_parked(e, daily, NULL), 0);
  submit(e, "other", "");
  step(e);
  cairn_job_resume(e, daily, NULL);
  pass(e, 1000 * SECOND);
  assert_int_equal(cairn__job_phase(job_of(e, daily)), CAIRN__PHASE_QUEUED);
  cairn_engine_free(e);
}

static void options_are_checked(void **state)
{
  static const struct {
    const char *queues;
    int id;
  } cases[] = {
      {"{\"a\":{\"MaxTimeOnQueue\":-1}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"MaxTimeOnQueue\":\"1h\"}}", CAIRN_E_WRONG_TYPE},
      {"{\"a\":{\"MaxTimeOnQueue\":1e300}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"MaxJobsOnQueue\":4294967296}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"MaxJobsOnQueue\":1.5}}", CAIRN_E_WRONG_TYPE},
      {"{\"a\":{\"ageing\":-0.5}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"DefaultJobPriority\":-1}}", CAIRN_E_OUT_OF_RANGE},
      {"{\"a\":{\"agein\":1}}", CAIRN_E_UNKNOWN_KEY},
  };
  struct cairn_engine_options options = {.size = sizeof options};
  struct cairn_error err;
  cairn_engine *e;

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    options.queues_json = cases[i].queues;
    assert_int_equal(cairn_engine_open(&options, &e, &err), -1);
    if (err.id != cases[i].id)
      fail_msg("%s: %d: %s", cases[i].queues, err.id, err.message);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_lowest_priority_is_first),
      cmocka_unit_test(nobody_waits_for_ever),
      cmocka_unit_test(a_full_queue_refuses),
      cmocka_unit_test(what_waits_too_long_is_given_up),
      cmocka_unit_test(options_are_checked),
  };

  return run_awake_and_asleep(tests, NULL, NULL);
}
