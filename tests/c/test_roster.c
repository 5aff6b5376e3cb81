/* Jobs that sleep: that they do, that nobody can tell, and that none is lost
 * where memory is lacking to wake it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "cairn.h"
#include "engine.h"
#include "error.h"
#include "jobs.h"

#define SECOND INT64_C(1000000)
#define HOUR   (3600 * SECOND)
#define START  INT64_C(1735689600000000) /* 2025-01-01T00:00:00Z, Wednesday */
#define LATER                                                                  \
  "{\"Name\":\"later\",\"run\":true,"                                          \
  "\"ScheduledStartTime\":\"20250101060000.000000+000\"}"
#define DAILY                                                                  \
  "{\"Name\":\"daily\",\"run\":true,\"JobRunTimes\":0,\"zone\":\"UTC\","       \
  "\"RunStartInterval\":\"00000000060000.000000:000\"}"

static long allocations_left = -1; /* -1: as many as wanted */

static void *limited_realloc(void *p, size_t size)
{
  if (allocations_left == 0)
    return NULL;
  if (allocations_left > 0)
    allocations_left--;
  return realloc(p, size);
}

static void failing_main(struct cairn__run *run)
{
  cairn__run_warn(run, "the disk \"vda\" is slow");
  cairn__fail(&run->error, CAIRN_E_IO_ERROR, "cannot read the disk");
  cairn__error_set_path(&run->error, "/images/a.raw", 65536);
  cairn__error_locate(&run->error, "web1", "vda");
  run->error.system_errno = 5;
  run->report = json_pack("{s:s, s:i}", "what", "\xe2\x82\xac", "bytes", 7);
}

static int no_check(json_t *spec, struct cairn_error *err)
{
  (void)spec;
  (void)err;
  return 0;
}

static const struct cairn__kind failing = {
    .name = "verify", .check = no_check, .main = failing_main};

static cairn_engine *open_engine(void)
{
  struct cairn_engine_options options = {
      .size = sizeof options,
      .is_virtual_clock = 1,
      .virtual_start = START,
      .owner = "tester",
      .queues_json = "{\"default\":{\"concurrency\":100},\"night\":{}}"};
  struct cairn_error err;
  cairn_engine *e = NULL;

  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  return e;
}

static void drain(cairn_engine *e)
{
  struct cairn_event events[64];

  for (int i = 0; i < 50; i++) {
    cairn_engine_step(e);
    while (cairn_engine_next_events(e, events, 64) > 0)
      ;
  }
}

static void pass(cairn_engine *e, int64_t us)
{
  assert_int_equal(cairn_engine_advance(e, us, NULL), 0);
  drain(e);
}

static int is_asleep(cairn_engine *e, cairn_job job)
{
  struct cairn__entry *entry = cairn__roster_find(&e->roster, job);

  assert_non_null(entry);
  return entry->is_asleep;
}

static char *json_of(cairn_engine *e, cairn_job job)
{
  char *text;

  assert_int_equal(cairn_job_json(e, job, 0, &text, NULL), 0);
  return text;
}

/* All that can be asked of a job, in one text. */
static char *all_of(cairn_engine *e, cairn_job job)
{
  char *parts[5], *all;
  struct cairn_error err;

  parts[0] = json_of(e, job);
  parts[1] = cairn_job_spec(e, job, &err);
  assert_int_equal(cairn_job_report(e, job, &parts[2], NULL), 0);
  assert_int_equal(cairn_job_warnings(e, job, &parts[3], NULL), 0);
  assert_int_equal(cairn_job_get_errors(e, job, 1, &parts[4], NULL), 0);
  assert_true(asprintf(&all, "%s\n%s\n%s\n%s\n%s", parts[0], parts[1], parts[2],
                       parts[3], parts[4]) > 0);
  for (int i = 0; i < 5; i++)
    cairn_free(parts[i]);
  return all;
}

/* Asks for something for which the job must be awake. */
static int has_settings(cairn_engine *e, cairn_job job)
{
  struct cairn_value v;

  return cairn_job_get(e, job, CAIRN_PROPERTY_Notify, &v, NULL) == 0;
}

/* ---- who sleeps ---------------------------------------------------------- */

static void what_waits_sleeps(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job later, daily, held, done, running, queued;

  (void)state;
  cairn__awake_max = 0;
  later = submit(e, LATER);
  daily = submit(e, DAILY);
  held = submit(e, "{\"Name\":\"h\",\"run\":true,\"held\":true}");
  done = submit(e, "{\"Name\":\"d\",\"run\":true}");
  running = submit(e, "{\"Name\":\"r\",\"run\":true}");
  assert_false(is_asleep(e, running)); /* it is queued */
  drain(e);
  assert_int_equal(cairn_task_finish(e, done, NULL, NULL), 0);
  drain(e);
  assert_true(is_asleep(e, later));
  assert_true(is_asleep(e, daily));
  assert_true(is_asleep(e, held));
  assert_true(is_asleep(e, done));
  assert_false(is_asleep(e, running));
  assert_int_equal(e->roster.awake, 1);
  assert_int_equal(e->roster.count, 5);

  /* who is asked for is awake, until the next question; some answers are had
   * without that */
  assert_true(has_settings(e, later));
  assert_false(is_asleep(e, later));
  assert_int_equal(state_of(e, held), CAIRN_NEW);
  assert_true(is_asleep(e, held));
  assert_true(is_asleep(e, later));

  pass(e, 6 * HOUR);
  assert_int_equal(state_of(e, later), CAIRN_RUNNING);
  assert_int_equal(state_of(e, daily), CAIRN_RUNNING);
  assert_int_equal(state_of(e, held), CAIRN_NEW);
  for (int i = 0; i < 120; i++)
    queued = submit(e, "{\"Name\":\"q\",\"run\":true}");
  drain(e);
  assert_false(is_asleep(e, queued));
  assert_int_equal(cairn_job_resume(e, held, NULL), 0);
  assert_false(is_asleep(e, held));
  cairn_engine_free(e);
}

static void those_used_last_are_awake(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job jobs[100];

  (void)state;
  cairn__awake_max = 10;
  for (int i = 0; i < 100; i++)
    jobs[i] = submit(e, LATER);
  assert_int_equal(e->roster.awake, 10);
  for (int i = 0; i < 100; i++)
    assert_int_equal(is_asleep(e, jobs[i]), i < 90);
  for (int i = 0; i < 5; i++)
    assert_true(has_settings(e, jobs[i]));
  assert_true(has_settings(e, jobs[93]));
  drain(e);
  for (int i = 0; i < 100; i++)
    assert_int_equal(is_asleep(e, jobs[i]), !(i < 5 || i == 93 || i >= 96));
  cairn_engine_free(e);
}

/* ---- nobody can tell ----------------------------------------------------- */

static void a_job_is_the_same_after_its_sleep(void **state)
{
  static const char *const specs[] = {
      LATER,
      DAILY,
      "{\"Name\":\"all\",\"Caption\":\"c\",\"Description\":\"a long text that "
      "many jobs have\",\"ElementName\":\"e\",\"Priority\":4294967295,"
      "\"Notify\":\"ops\",\"RecoveryAction\":\"Other\","
      "\"OtherRecoveryAction\":\"what the site does\",\"queue\":\"night\","
      "\"run\":{\"code\":\"backup of the web farm\",\"args\":[1,\"\\u20ac\"]},"
      "\"zone\":\"Europe/Berlin\",\"RunMonth\":\"March\",\"RunDay\":-1,"
      "\"RunDayOfWeek\":\"-Friday\",\"LocalOrUtcTime\":\"Local Time\","
      "\"RunStartInterval\":\"000000000230**.******:000\","
      "\"JobRunTimes\":7,\"UntilTime\":\"20991231235959.000000+060\","
      "\"DeleteOnCompletion\":true,\"TimeBeforeRemoval\":"
      "\"99999999999999.999999:999\",\"gap\":\"Skip\","
      "\"overlap\":\"Both\",\"catch_up\":\"all\",\"policy\":\"nightly\","
      "\"policy_key\":\"web\",\"policy_file\":\"/etc/cairn/policies/n.lua\","
      "\"decisions\":\"nightly/web\",\"policy_version\":\"fedcba9876543210\"}",
      "{\"Name\":\"i\",\"run\":true,\"ScheduledStartTime\":"
      "\"00000001000000.000000:000\"}",
      "{\"Name\":\"h\",\"run\":true,\"held\":true}",
      "{\"Name\":\"f\",\"verify\":{},\"DeleteOnCompletion\":true,"
      "\"TimeBeforeRemoval\":\"00000002000000.000000:000\"}",
      "{\"Name\":\"r\",\"verify\":{},\"RecoveryAction\":\"Re-run Job\"}",
      "{\"Name\":\"n\",\"run\":true,\"held\":true,\"Description\":\"\"}"};
  enum { COUNT = sizeof specs / sizeof specs[0] };
  cairn_engine *e = open_engine();
  struct cairn_error err;
  cairn_job jobs[COUNT];

  (void)state;
  cairn__awake_max = 1000;
  for (int i = 0; i < COUNT; i++) {
    if (cairn_submit(e, specs[i], strlen(specs[i]), &jobs[i], &err) != 0)
      fail_msg("%s", err.message);
  }
  drain(e);
  while (state_of(e, jobs[5]) != CAIRN_EXCEPTION ||
         state_of(e, jobs[6]) != CAIRN_SUSPENDED)
    cairn_engine_wait(e, 1000);
  drain(e);
  for (int round = 0; round < 3; round++) {
    char *before[COUNT], *after[COUNT];

    for (int i = 0; i < COUNT; i++)
      before[i] = all_of(e, jobs[i]);
    cairn__awake_max = 0;
    drain(e);
    assert_int_equal(e->roster.awake, 0);
    for (int i = 0; i < COUNT; i++) {
      after[i] = all_of(e, jobs[i]);
      assert_string_equal(after[i], before[i]);
      free(after[i]);
      free(before[i]);
    }
    cairn__awake_max = 1000;
  }
  /* what is there of those that nobody shares any more */
  cairn__awake_max = 0;
  drain(e);
  assert_int_not_equal(e->roster.texts.count, 0);
  cairn__awake_max = 1000;
  for (int i = 0; i < COUNT; i++)
    assert_true(has_settings(e, jobs[i]));
  assert_int_equal(e->roster.texts.count, 0);
  cairn_engine_free(e);
}

static void timers_come_while_a_job_sleeps(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job until, removed, retried, waiting;

  (void)state;
  cairn__awake_max = 0;
  until = submit(e, "{\"Name\":\"u\",\"run\":true,\"held\":true,"
                    "\"UntilTime\":\"20250101030000.000000+000\"}");
  removed =
      submit(e, "{\"Name\":\"x\",\"run\":true,\"DeleteOnCompletion\":true,"
                "\"TimeBeforeRemoval\":\"00000000020000.000000:000\"}");
  retried = submit(e, "{\"Name\":\"r\",\"verify\":{},"
                      "\"RecoveryAction\":\"Re-run Job\"}");
  /* two timers: UntilTime of the wall clock, and a moment on the other */
  waiting = submit(e, "{\"Name\":\"w\",\"run\":true,\"ScheduledStartTime\":"
                      "\"00000000010000.000000:000\",\"UntilTime\":"
                      "\"20250101030000.000000+000\"}");
  drain(e);
  assert_int_equal(cairn_task_finish(e, removed, NULL, NULL), 0);
  while (state_of(e, retried) != CAIRN_SUSPENDED)
    cairn_engine_wait(e, 1000);
  drain(e);
  assert_true(is_asleep(e, until));
  assert_true(is_asleep(e, removed));
  assert_true(is_asleep(e, retried));
  assert_false(is_asleep(e, waiting)); /* of two clocks */
  pass(e, 59 * SECOND);
  assert_int_equal(number(e, retried, CAIRN_PROPERTY_attempts), 1);
  pass(e, SECOND);
  while (number(e, retried, CAIRN_PROPERTY_attempts) != 2)
    cairn_engine_wait(e, 1000);
  pass(e, HOUR);
  assert_int_equal(state_of(e, waiting), CAIRN_RUNNING);
  assert_non_null(cairn__roster_find(&e->roster, removed));
  pass(e, HOUR);
  assert_null(cairn__roster_find(&e->roster, removed));
  assert_int_equal(state_of(e, until), CAIRN_NEW);
  pass(e, HOUR);
  assert_int_equal(state_of(e, until), CAIRN_EXCEPTION);
  cairn_engine_free(e);
}

/* Two timers of a job keep their places among those of others. */
static void timers_keep_their_order(void **state)
{
  static const char *const spec =
      "{\"Name\":\"u\",\"run\":true,\"JobRunTimes\":0,\"zone\":\"UTC\","
      "\"RunStartInterval\":\"00000000060000.000000:000\","
      "\"UntilTime\":\"20250101030000.000000+000\"}";
  cairn_engine *e = open_engine();
  struct cairn_event events[64];
  cairn_job last = 0;
  size_t n;

  (void)state;
  cairn__awake_max = 0;
  for (int i = 0; i < 5; i++)
    submit(e, spec);
  drain(e);
  assert_true(has_settings(e, 1)); /* wakes it, and it sleeps again */
  assert_true(has_settings(e, 3));
  drain(e);
  assert_int_equal(cairn_engine_advance(e, 4 * HOUR, NULL), 0);
  cairn_engine_step(e);
  while ((n = cairn_engine_next_events(e, events, 64)) > 0) {
    for (size_t i = 0; i < n; i++) {
      if (events[i].type != CAIRN_EVENT_STATE ||
          events[i].new_state != CAIRN_EXCEPTION)
        continue;
      assert_int_equal(events[i].job, ++last);
    }
  }
  assert_int_equal(last, 5);
  cairn_engine_free(e);
}

/* Whatever sleeps: those due at one moment begin in the order of submission,
 * and what comes after them is not kept waiting. */
static void many_are_due_at_once(void **state)
{
  enum { JOBS = 3000 };

  (void)state;
  for (size_t max = 0; max <= 4000; max = max == 0 ? 10 : 20 * max) {
    cairn_engine *e = open_engine();
    struct cairn_event events[64];
    cairn_job started = 0, after;
    int count = 0;
    size_t n;

    cairn__awake_max = max;
    for (int i = 0; i < JOBS; i++)
      assert_int_equal(submit(e, LATER), i + 1);
    after = submit(e, "{\"Name\":\"a\",\"run\":true,\"held\":true,"
                      "\"UntilTime\":\"20250101060001.000000+000\"}");
    drain(e);
    assert_true(has_settings(e, JOBS / 2)); /* the order of use is another */
    assert_int_equal(cairn_engine_advance(e, 6 * HOUR + 2 * SECOND, NULL), 0);
    for (int i = 0; i < 200; i++) {
      cairn_engine_step(e);
      while ((n = cairn_engine_next_events(e, events, 64)) > 0) {
        for (size_t k = 0; k < n; k++) {
          if (events[k].type != CAIRN_EVENT_TASK_START)
            continue;
          assert_int_equal(events[k].job, started + 1);
          started = events[k].job;
          count++;
          assert_int_equal(cairn_task_finish(e, started, NULL, NULL), 0);
        }
      }
    }
    assert_int_equal(count, JOBS);
    assert_int_equal(state_of(e, after), CAIRN_EXCEPTION);
    cairn_engine_free(e);
  }
}

static int compare_value(const struct cairn_value *a,
                         const struct cairn_value *b)
{
  if (a->kind != b->kind)
    return 1;
  if (a->kind == CAIRN_VALUE_STRING)
    return strcmp(a->as.string, b->as.string) != 0;
  return a->kind == CAIRN_VALUE_INTEGER && a->as.integer != b->as.integer;
}

/* Some properties are read of a job without waking it. */
static void a_look_finds_what_a_job_that_is_awake_says(void **state)
{
  static const char *const specs[] = {
      LATER,
      "{\"Name\":\"h\",\"run\":true,\"held\":true,\"policy\":\"p\","
      "\"policy_key\":\"a key that is long enough\",\"queue\":\"night\"}",
      "{\"Name\":\"r\",\"verify\":{},\"RecoveryAction\":\"Re-run Job\"}",
      "{\"Name\":\"f\",\"verify\":{}}"};
  cairn_engine *e = open_engine();
  const struct cairn_property_info *p;
  char long_name[1000];
  int seen = 0;

  (void)state;
  cairn__awake_max = 1000;
  for (size_t i = 0; i < 4; i++)
    submit(e, specs[i]);
  snprintf(long_name, sizeof long_name,
           "{\"run\":true,\"held\":true,\"Name\":\"%0200d\"}", 1);
  submit(e, long_name);
  drain(e);
  while (state_of(e, 4) != CAIRN_EXCEPTION || state_of(e, 3) != CAIRN_SUSPENDED)
    cairn_engine_wait(e, 1000);
  drain(e);
  for (cairn_job job = 1; job <= 5; job++) {
    for (size_t i = 0; (p = cairn_property_at(i)) != NULL; i++) {
      struct cairn_value asleep, awake;
      char text[2048] = "";

      cairn__awake_max = 0;
      drain(e);
      assert_true(is_asleep(e, job));
      assert_int_equal(cairn_job_get(e, job, p->id, &asleep, NULL), 0);
      seen += is_asleep(e, job);
      if (asleep.kind == CAIRN_VALUE_STRING) {
        snprintf(text, sizeof text, "%s", asleep.as.string);
        asleep.as.string = text;
      }
      cairn__awake_max = 1000;
      assert_non_null(cairn__engine_job(e, job, NULL));
      assert_int_equal(cairn_job_get(e, job, p->id, &awake, NULL), 0);
      if (compare_value(&asleep, &awake) != 0)
        fail_msg("%s of job %d", p->name, (int)job);
    }
  }
  assert_int_equal(seen, 5 * 10); /* these wake nobody */
  cairn_engine_free(e);
}

static void an_id_finds_who_sleeps(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_value v;
  struct cairn_error err;
  cairn_job job, found;
  char id[64];

  (void)state;
  cairn__awake_max = 0;
  job = submit(e, LATER);
  for (int i = 0; i < 40; i++)
    submit(e, LATER);
  assert_int_equal(cairn_job_get(e, job, CAIRN_PROPERTY_InstanceID, &v, &err),
                   0);
  snprintf(id, sizeof id, "%s", v.as.string);
  (void)state_of(e, job + 1);
  assert_true(is_asleep(e, job));
  assert_int_equal(cairn_job_find(e, id, &found, &err), 0);
  assert_int_equal(found, job);
  id[30] = '\0';
  assert_int_equal(cairn_job_find(e, id, &found, &err), 0);
  assert_int_equal(found, job);
  assert_int_equal(
      cairn_job_find(e, "00000000-0000-4000-8000-000000000000", &found, &err),
      -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  cairn_engine_free(e);
}

/* ---- code ---------------------------------------------------------------- */

#define CODED(name, code)                                                      \
  "{\"Name\":\"" name "\",\"run\":{\"code\":\"" code "\"}}"

static void code_wakes_those_that_wait_for_it(void **state)
{
  cairn_engine *e = open_engine();
  cairn_job a, b, both;

  (void)state;
  cairn__awake_max = 0;
  a = submit(e, CODED("a", "the first of the bodies"));
  b = submit(e, CODED("b", "b"));
  both = submit(e, "{\"Name\":\"c\",\"run\":{\"code\":\"b\"},"
                   "\"decisions\":\"policy/key\",\"policy\":\"p\","
                   "\"policy_key\":\"k\"}");
  drain(e);
  assert_int_equal(e->roster.awake, 0);
  assert_int_equal(cairn_code_add(e, "another", NULL), 0);
  assert_int_equal(e->roster.awake, 0);
  assert_int_equal(cairn_code_add(e, "the first of the bodies", NULL), 0);
  drain(e);
  assert_int_equal(state_of(e, a), CAIRN_RUNNING);
  assert_int_equal(state_of(e, b), CAIRN_NEW);
  assert_int_equal(cairn_code_add(e, "b", NULL), 0);
  drain(e);
  assert_int_equal(state_of(e, b), CAIRN_RUNNING);
  assert_int_equal(state_of(e, both), CAIRN_NEW);
  assert_int_equal(cairn_code_add(e, "policy/key", NULL), 0);
  drain(e);
  assert_int_equal(state_of(e, both), CAIRN_RUNNING);
  cairn_engine_free(e);
}

/* Code that comes without memory wakes them later, whatever comes between. */
static void code_that_could_not_wake_them_is_not_forgotten(void **state)
{
  enum { NOTHING, A_LOOK, ANOTHER_NAME, ALL };

  (void)state;
  for (int between = NOTHING; between < ALL; between++) {
    int is_short = 1;

    for (long n = 0; is_short; n++) {
      cairn_engine *e = open_engine();
      cairn_job jobs[3];
      int is_added;

      cairn__awake_max = 0;
      for (int i = 0; i < 3; i++)
        jobs[i] = submit(e, CODED("a", "the first of the bodies"));
      drain(e);
      allocations_left = n;
      is_added = cairn_code_add(e, "the first of the bodies", NULL) == 0;
      is_short = allocations_left == 0;
      allocations_left = -1;
      if (!is_added)
        assert_int_equal(cairn_code_add(e, "the first of the bodies", NULL), 0);
      for (int i = 0; between == A_LOOK && i < 3; i++)
        assert_true(has_settings(e, jobs[i]));
      if (between == ANOTHER_NAME)
        assert_int_equal(cairn_code_add(e, "another", NULL), 0);
      drain(e);
      for (int i = 0; i < 3; i++)
        assert_int_equal(state_of(e, jobs[i]), CAIRN_RUNNING);
      cairn_engine_free(e);
    }
  }
}

/* ---- without memory ------------------------------------------------------ */

static void without_memory_a_job_sleeps_on(void **state)
{
  cairn_engine *e = open_engine();
  struct cairn_error err;
  struct cairn_value v;
  int is_short = 1, refused = 0;
  cairn_job job;

  (void)state;
  cairn__awake_max = 1000;
  job = submit(e, "{\"Name\":\"f\",\"verify\":{},\"Notify\":\"ops\","
                  "\"Description\":\"a text that jobs have in common\"}");
  drain(e);
  while (state_of(e, job) != CAIRN_EXCEPTION)
    cairn_engine_wait(e, 1000);
  drain(e);
  cairn__awake_max = 0;
  for (long n = 0; is_short; n++) {
    char *before = all_of(e, job), *after;

    /* neither falling asleep... */
    allocations_left = n;
    cairn_engine_step(e);
    is_short = allocations_left == 0;
    allocations_left = -1;
    after = all_of(e, job);
    assert_string_equal(after, before);
    free(after);
    /* ...nor waking up loses anything */
    drain(e);
    assert_true(is_asleep(e, job));
    allocations_left = n;
    if (cairn_job_get(e, job, CAIRN_PROPERTY_Notify, &v, &err) != 0) {
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
      assert_true(is_asleep(e, job) || n > 5);
      allocations_left = 0;
      if (is_asleep(e, job)) {
        assert_int_equal(cairn_job_kill(e, job, -1, &err), 4);
        assert_int_equal(cairn_job_resume(e, job, &err), CAIRN_RC_FAILED);
        assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
      }
      refused++;
      is_short = 1;
    }
    allocations_left = -1;
    after = all_of(e, job);
    assert_string_equal(after, before);
    free(after);
    free(before);
  }
  assert_true(refused > 5);
  cairn_engine_free(e);
}

static void without_memory_nothing_due_is_lost(void **state)
{
  int is_short = 1;

  (void)state;
  cairn__awake_max = 0;
  for (long n = 0; is_short; n++) {
    cairn_engine *e = open_engine();
    cairn_job jobs[2];

    jobs[0] = submit(e, LATER);
    jobs[1] = submit(e, LATER);
    drain(e);
    assert_int_equal(cairn_engine_advance(e, 6 * HOUR, NULL), 0);
    allocations_left = n;
    for (int i = 0; i < 3; i++)
      cairn_engine_step(e);
    is_short = allocations_left == 0;
    allocations_left = -1;
    drain(e);
    assert_int_equal(state_of(e, jobs[0]), CAIRN_RUNNING);
    assert_int_equal(state_of(e, jobs[1]), CAIRN_RUNNING);
    cairn_engine_free(e);
  }
}

/* ---- the end ------------------------------------------------------------- */

static void a_close_ends_those_that_sleep(void **state)
{
  (void)state;
  cairn__awake_max = 0;
  for (int mode = CAIRN_CLOSE_SUSPEND; mode <= CAIRN_CLOSE_KILL; mode++) {
    cairn_engine *e = open_engine();
    cairn_job job = submit(e, LATER);

    for (int i = 0; i < 300; i++)
      submit(e, DAILY);
    cairn_engine_close(e, mode);
    while (!cairn_engine_is_idle(e))
      cairn_engine_step(e);
    assert_int_equal(state_of(e, job), mode == CAIRN_CLOSE_SUSPEND ? CAIRN_NEW
                                       : mode == CAIRN_CLOSE_TERMINATE
                                           ? CAIRN_TERMINATED
                                           : CAIRN_KILLED);
    cairn_engine_free(e);
  }
}

/* ---- the slots ----------------------------------------------------------- */

static void jobs_are_found_among_those_that_are_gone(void **state)
{
  enum { JOBS = 3000 };
  static unsigned char is_there[JOBS + 1];
  cairn_engine *e = open_engine();
  unsigned seed = 1;
  cairn_job job;

  (void)state;
  cairn__awake_max = 7;
  memset(is_there, 0, sizeof is_there);
  for (int i = 1; i <= JOBS; i++) {
    unsigned some;

    job = submit(e, LATER);
    assert_int_equal(job, i);
    is_there[i] = 1;
    for (int k = 0; k < 2 && i % 3 != 0; k++) { /* old ones mostly */
      seed = seed * 1103515245 + 12345;
      some = 1 + (seed >> 8) % (unsigned)(k == 0 ? i : i / 2 + 1);
      if (!is_there[some])
        continue;
      assert_int_equal(cairn_job_request_state_change(
                           e, some, CAIRN_REQUEST_TERMINATE, NULL, NULL),
                       0);
      assert_int_equal(cairn_job_delete(e, some, NULL), 0);
      is_there[some] = 0;
    }
    if (i % 500 != 0)
      continue;
    job = 0;
    for (int n = 1; n <= JOBS; n++) {
      assert_int_equal(cairn__roster_find(&e->roster, (uint64_t)n) != NULL,
                       is_there[n]);
      if (is_there[n]) {
        job = cairn_job_next(e, job);
        assert_int_equal(job, n);
      }
    }
    assert_int_equal(cairn_job_next(e, job), 0);
    assert_true(e->roster.end - e->roster.begin <= 2 * e->roster.count + 1);
  }
  assert_int_equal(cairn_job_next(e, UINT64_MAX), 0);
  cairn_engine_free(e);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_waits_sleeps),
      cmocka_unit_test(those_used_last_are_awake),
      cmocka_unit_test(a_job_is_the_same_after_its_sleep),
      cmocka_unit_test(timers_come_while_a_job_sleeps),
      cmocka_unit_test(timers_keep_their_order),
      cmocka_unit_test(many_are_due_at_once),
      cmocka_unit_test(a_look_finds_what_a_job_that_is_awake_says),
      cmocka_unit_test(an_id_finds_who_sleeps),
      cmocka_unit_test(code_wakes_those_that_wait_for_it),
      cmocka_unit_test(code_that_could_not_wake_them_is_not_forgotten),
      cmocka_unit_test(without_memory_a_job_sleeps_on),
      cmocka_unit_test(without_memory_nothing_due_is_lost),
      cmocka_unit_test(a_close_ends_those_that_sleep),
      cmocka_unit_test(jobs_are_found_among_those_that_are_gone),
  };

  cairn_set_allocator(limited_realloc, free);
  cairn__kind_register(&failing);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
