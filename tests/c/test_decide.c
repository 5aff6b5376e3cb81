/* Decisions of the embedding program: before a run and after a failure, and the
 * rate of a run. The kind is a fake that shows what it was given; virtual
 * clock, but for the rate. */
#include "scratch.h"

#include <jansson.h>

#include "asleep.h"
#include "engine.h"
#include "error.h"
#include "jobs.h"

#define SECOND INT64_C(1000000)
#define START  INT64_C(1735689600000000)

static _Atomic int begun, is_failing;
static _Atomic uint64_t bytes_wanted;
static char given[256];

static int fake_check(json_t *spec, struct cairn_error *err)
{
  return json_object_get(spec, "bad")
             ? cairn__fail(err, CAIRN_E_INVALID_ARGUMENT, "bad is not valid")
             : 0;
}

static void fake_main(struct cairn__run *run)
{
  const char *base = json_string_value(json_object_get(run->spec, "base"));

  snprintf(given, sizeof given, "%s", base ? base : "");
  atomic_fetch_add(&begun, 1);
  cairn__run_enter(run);
  if (atomic_load(&is_failing)) {
    cairn__fail(&run->error, CAIRN_E_DISK_FULL, "it fails");
  } else {
    while (atomic_load(&run->bytes_done) < atomic_load(&bytes_wanted)) {
      atomic_fetch_add(&run->bytes_done, 1000);
      if (cairn__run_gate(run, &run->error) != 0)
        break;
    }
  }
  cairn__run_leave(run);
}

static const struct cairn__kind fake = {
    .name = "export", .check = fake_check, .main = fake_main};

#define JOB                                                                    \
  "{\"Name\":\"a\",\"decisions\":\"p\",\"export\":{\"directory\":\"/d\","      \
  "\"base\":\"none\"}%s}"

static cairn_engine *open_engine(const char *store, int is_virtual)
{
  struct cairn_engine_options options = {.size = sizeof options,
                                         .store = store,
                                         .is_virtual_clock = is_virtual,
                                         .virtual_start =
                                             is_virtual ? START : 0};
  struct cairn_error err;
  cairn_engine *e;

  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("open: %s", err.message);
  atomic_store(&begun, 0);
  atomic_store(&is_failing, 0);
  atomic_store(&bytes_wanted, 0);
  given[0] = '\0';
  return e;
}

static cairn_job add(cairn_engine *e, const char *more)
{
  char json[512];

  snprintf(json, sizeof json, JOB, more);
  return submit(e, json);
}

static void add_code(cairn_engine *e)
{
  assert_int_equal(cairn_code_add(e, "p", NULL), 0);
}

/* Drives the engine until an event of this type, which is given back. */
static struct cairn_event await(cairn_engine *e, uint32_t type)
{
  struct cairn_event events[64];

  for (int i = 0; i < 5000; i++) {
    int n;

    cairn_engine_step(e);
    while ((n = cairn_engine_next_events(e, events, 1)) > 0) {
      if (events[0].type == type)
        return events[0];
    }
    cairn_engine_wait(e, 1000);
  }
  fail_msg("no %s came", cairn_event_name(type));
  return events[0];
}

static void await_state(cairn_engine *e, cairn_job job, int state)
{
  struct cairn_event events[64];

  for (int i = 0; i < 5000 && state_of(e, job) != state; i++) {
    cairn_engine_step(e);
    while (cairn_engine_next_events(e, events, 64) > 0)
      ;
    cairn_engine_wait(e, 1000);
  }
  assert_int_equal(state_of(e, job), state);
}

static int decide(cairn_engine *e, const struct cairn_event *event,
                  const char *json, struct cairn_error *err)
{
  return cairn_job_decide(e, event->job, event->run, (uint32_t)event->status,
                          json, json ? strlen(json) : 0, err);
}

static void a_run_waits_for_its_decision(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  cairn_job job = add(e, "");
  struct cairn_event event;
  struct cairn_error err;

  (void)state;
  /* nobody has the functions */
  cairn_engine_step(e);
  assert_int_equal(state_of(e, job), CAIRN_NEW);
  assert_int_equal(decide(e, &(struct cairn_event){.job = job}, NULL, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  add_code(e);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(event.run, 1);
  assert_int_equal(event.status, 1);
  for (int i = 0; i < 20; i++) {
    cairn_engine_wait(e, 1000);
    cairn_engine_step(e);
  }
  assert_int_equal(atomic_load(&begun), 0);
  assert_int_equal(state_of(e, job), CAIRN_RUNNING);
  /* what cannot be changes nothing */
  assert_int_equal(decide(e, &event, "{\"bad\":1}", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(decide(e, &event, "[]", &err), -1);
  assert_int_equal(err.id, CAIRN_E_WRONG_TYPE);
  assert_int_equal(decide(e, &event, "{\"directory\":\"/other\"}", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(
      decide(e, &event, "{\"directory\":\"/d\",\"to\":\"/x\"}", &err), -1);
  event.status = 2;
  assert_int_equal(decide(e, &event, NULL, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  event.status = 1;
  assert_int_equal(atomic_load(&begun), 0);
  assert_int_equal(
      decide(e, &event, "{\"directory\":\"/d\",\"base\":\"latest\"}", &err), 0);
  await_state(e, job, CAIRN_COMPLETED);
  assert_string_equal(given, "latest");
  assert_int_equal(decide(e, &event, NULL, &err), -1);
  cairn_engine_free(e);
}

static void without_another_it_has_its_own(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  cairn_job job;
  char *spec;

  (void)state;
  add_code(e);
  job = add(e, "");
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  spec = cairn_job_spec(e, job, NULL);
  assert_non_null(strstr(spec, "\"none\""));
  cairn_free(spec);
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  await_state(e, job, CAIRN_COMPLETED);
  assert_string_equal(given, "none");
  cairn_engine_free(e);
}

static void what_waits_can_be_asked_anything(void **state)
{
  static const struct {
    int request, state;
  } cases[] = {{CAIRN_REQUEST_TERMINATE, CAIRN_TERMINATED},
               {CAIRN_REQUEST_KILL, CAIRN_KILLED}};

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cairn_engine *e = open_engine(NULL, 1);
    struct cairn_event event;
    cairn_job job;

    add_code(e);
    job = add(e, "");
    event = await(e, CAIRN_EVENT_TASK_DECIDE);
    cairn_job_request_state_change(e, job, cases[i].request, NULL, NULL);
    await_state(e, job, cases[i].state);
    assert_int_equal(decide(e, &event, NULL, NULL), -1);
    assert_int_equal(atomic_load(&begun), 0);
    cairn_engine_free(e);
  }
}

static void it_can_be_decided_about_while_it_stands_still(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  cairn_job job;

  (void)state;
  add_code(e);
  job = add(e, "");
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  cairn_job_request_state_change(e, job, CAIRN_REQUEST_SUSPEND, NULL, NULL);
  await_state(e, job, CAIRN_SUSPENDED);
  assert_int_equal(
      decide(e, &event, "{\"directory\":\"/d\",\"base\":\"x\"}", NULL), 0);
  for (int i = 0; i < 20; i++) {
    cairn_engine_wait(e, 1000);
    cairn_engine_step(e);
  }
  assert_int_equal(atomic_load(&begun), 0);
  cairn_job_resume(e, job, NULL);
  await_state(e, job, CAIRN_COMPLETED);
  assert_string_equal(given, "x");
  cairn_engine_free(e);
}

/* Until the answer it backs off, to no time. */
static struct cairn_event failed(cairn_engine *e, cairn_job *job,
                                 const char *more)
{
  struct cairn_event event;

  atomic_store(&is_failing, 1);
  add_code(e);
  *job = add(e, more);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  event = await(e, CAIRN_EVENT_TASK_RECOVER);
  assert_int_equal(event.status, 2);
  assert_int_equal(state_of(e, *job), CAIRN_SUSPENDED);
  assert_int_equal(cairn_engine_advance(e, 86400 * SECOND, NULL), 0);
  cairn_engine_step(e);
  assert_int_equal(state_of(e, *job), CAIRN_SUSPENDED);
  return event;
}

static void an_update_changes_no_run_that_waits(void **state)
{
  static const char elsewhere[] =
      "{\"Name\":\"a\",\"decisions\":\"p\",\"export\":{\"directory\":"
      "\"/other\",\"base\":\"none\"}}";
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  struct cairn_error err;
  cairn_job job;
  char *spec;

  (void)state;
  add_code(e);
  job = add(e, "");
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(
      cairn_job_update(e, job, elsewhere, sizeof elsewhere - 1, &err), 0);
  /* it has /d, and nobody has /other */
  spec = cairn_job_spec(e, job, &err);
  assert_non_null(strstr(spec, "\"/d\""));
  cairn_free(spec);
  assert_int_equal(
      decide(e, &event, "{\"directory\":\"/other\",\"base\":\"x\"}", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(
      decide(e, &event, "{\"directory\":\"/d\",\"base\":\"x\"}", &err), 0);
  spec = cairn_job_spec(e, job, &err);
  assert_non_null(strstr(spec, "\"/other\""));
  cairn_free(spec);
  await_state(e, job, CAIRN_COMPLETED);
  assert_string_equal(given, "x");
  cairn_engine_free(e);
}

static void a_failure_is_decided_about_first(void **state)
{
  struct cairn_event event;
  struct cairn_error err;
  cairn_engine *e = open_engine(NULL, 1);
  cairn_job job;

  (void)state;
  /* RecoveryAction would end it */
  failed(e, &job, ",\"RecoveryAction\":\"Do Not Continue\"");
  assert_int_equal(cairn_job_recover(e, job, 1, 0, &err), -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  assert_int_equal(cairn_job_recover(e, job, 4, 30 * SECOND, &err), 1);
  assert_int_equal(cairn_job_recover(e, job, 4, 0, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  assert_int_equal(cairn_engine_advance(e, 29 * SECOND, NULL), 0);
  cairn_engine_step(e);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  assert_int_equal(cairn_engine_advance(e, SECOND, NULL), 0);
  atomic_store(&is_failing, 0);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(event.run, 1);
  assert_int_equal(event.status, 2); /* its second beginning */
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  await_state(e, job, CAIRN_COMPLETED);
  cairn_engine_free(e);
}

static void a_failure_can_be_left_to_the_properties(void **state)
{
  static const struct {
    const char *more;
    int64_t wait; /* of the next attempt; 0: the job ends */
  } cases[] = {{"", 0},
               {",\"RecoveryAction\":\"Do Not Continue\"", 0},
               {",\"RecoveryAction\":\"Re-run Job\"", 60 * SECOND}};

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cairn_engine *e = open_engine(NULL, 1);
    cairn_job job;

    failed(e, &job, cases[i].more);
    assert_int_equal(
        cairn_job_recover(e, job, CAIRN_RECOVER_BY_PROPERTIES, 0, NULL),
        cases[i].wait != 0);
    if (cases[i].wait) {
      assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
      assert_int_equal(cairn_engine_advance(e, cases[i].wait, NULL), 0);
      await(e, CAIRN_EVENT_TASK_DECIDE);
    } else {
      assert_int_equal(state_of(e, job), CAIRN_EXCEPTION);
    }
    cairn_engine_free(e);
  }
}

static void a_handler_is_asked_after_the_policy(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  cairn_job job;

  (void)state;
  assert_int_equal(cairn_recovery_add(e, "h", NULL), 0);
  failed(e, &job,
         ",\"RecoveryAction\":\"Other\",\"OtherRecoveryAction\":"
         "\"h\"");
  assert_int_equal(
      cairn_job_recover(e, job, CAIRN_RECOVER_BY_PROPERTIES, 0, NULL), 1);
  event = await(e, CAIRN_EVENT_TASK_RECOVER);
  assert_int_equal(event.status, 1);
  /* a handler cannot pass it on */
  assert_int_equal(
      cairn_job_recover(e, job, CAIRN_RECOVER_BY_PROPERTIES, 0, NULL), -1);
  assert_int_equal(cairn_job_recover(e, job, 2, 0, NULL), 0);
  assert_int_equal(state_of(e, job), CAIRN_EXCEPTION);
  cairn_engine_free(e);
}

static void a_restart_asks_again(void **state)
{
  cairn_engine *e = open_engine("decide.db", 1);
  struct cairn_event event;
  cairn_job job;

  (void)state;
  failed(e, &job, "");
  cairn_engine_free(e);
  e = open_engine("decide.db", 1);
  cairn_engine_step(e);
  assert_int_equal(state_of(e, job), CAIRN_SUSPENDED);
  add_code(e);
  event = await(e, CAIRN_EVENT_TASK_RECOVER);
  assert_int_equal(event.status, 2);
  assert_int_equal(cairn_job_recover(e, job, 4, 0, NULL), 1);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  /* now the engine goes while its run waits */
  cairn_engine_free(e);
  e = open_engine("decide.db", 1);
  assert_int_equal(atomic_load(&begun), 0);
  add_code(e);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(event.run, 1);
  assert_int_equal(event.status, 3);
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  await_state(e, job, CAIRN_COMPLETED);
  cairn_engine_free(e);
}

static int64_t now_us(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * SECOND + t.tv_nsec / 1000;
}

/* Never faster than the limit; how much slower is the machine's business. */
static void a_run_keeps_to_its_rate(void **state)
{
  cairn_engine *e = open_engine(NULL, 0);
  struct cairn_event event;
  struct cairn_error err;
  cairn_job job;
  int64_t began;

  (void)state;
  add_code(e);
  job = add(e, "");
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  atomic_store(&bytes_wanted, 400000);
  assert_int_equal(cairn_job_throttle(e, job, 1000000, &err), 0);
  began = now_us();
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  await_state(e, job, CAIRN_COMPLETED);
  assert_true(now_us() - began >= 390000);
  assert_int_equal(cairn_job_throttle(e, job, 1000000, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  cairn_engine_free(e);
}

static void a_rate_of_nothing_can_be_lifted_and_ended(void **state)
{
  cairn_engine *e = open_engine(NULL, 0);
  struct cairn_event event;
  cairn_job jobs[2];

  (void)state;
  add_code(e);
  atomic_store(&bytes_wanted, 1000000);
  for (int i = 0; i < 2; i++) {
    jobs[i] = add(e, "");
    event = await(e, CAIRN_EVENT_TASK_DECIDE);
    assert_int_equal(cairn_job_throttle(e, jobs[i], 1, NULL), 0);
    assert_int_equal(decide(e, &event, NULL, NULL), 0);
    while (atomic_load(&begun) <= i)
      cairn_engine_wait(e, 1000);
    /* it would take 11 days */
    if (i == 0) {
      assert_int_equal(cairn_job_throttle(e, jobs[i], 0, NULL), 0);
      await_state(e, jobs[i], CAIRN_COMPLETED);
    } else {
      cairn_job_request_state_change(e, jobs[i], CAIRN_REQUEST_SUSPEND, NULL,
                                     NULL);
      await_state(e, jobs[i], CAIRN_SUSPENDED);
      cairn_job_request_state_change(e, jobs[i], CAIRN_REQUEST_TERMINATE, NULL,
                                     NULL);
      await_state(e, jobs[i], CAIRN_TERMINATED);
    }
  }
  cairn_engine_free(e);
}

static void a_warning_is_for_a_run(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  struct cairn_error err;
  cairn_job job;

  (void)state;
  job = add(e, "");
  assert_int_equal(cairn_job_warn(e, job, "early", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
  add_code(e);
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  assert_int_equal(cairn_job_warn(e, job, "in time", &err), 0);
  assert_int_equal(decide(e, &event, NULL, NULL), 0);
  await_state(e, job, CAIRN_COMPLETED_WITH_WARNINGS);
  assert_int_equal(cairn_job_warn(e, job, "late", &err), -1);
  cairn_engine_free(e);
}

/* Each allocation of a decision fails once; the run waits on. */
static void without_memory_it_waits_on(void **state)
{
  cairn_engine *e = open_engine(NULL, 1);
  struct cairn_event event;
  struct cairn_error err;
  cairn_job job;
  int failures = 0;

  (void)state;
  add_code(e);
  job = add(e, "");
  event = await(e, CAIRN_EVENT_TASK_DECIDE);
  for (int at = 1;; at++) {
    int rc;

    atomic_store(&alloc_countdown, at);
    rc = decide(e, &event, "{\"directory\":\"/d\",\"base\":\"y\"}", &err);
    atomic_store(&alloc_countdown, 0);
    if (rc == 0)
      break;
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    assert_int_equal(atomic_load(&begun), 0);
    failures++;
  }
  assert_true(failures > 3);
  await_state(e, job, CAIRN_COMPLETED);
  assert_string_equal(given, "y");
  cairn_engine_free(e);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_run_waits_for_its_decision),
      cmocka_unit_test(without_another_it_has_its_own),
      cmocka_unit_test(what_waits_can_be_asked_anything),
      cmocka_unit_test(it_can_be_decided_about_while_it_stands_still),
      cmocka_unit_test(an_update_changes_no_run_that_waits),
      cmocka_unit_test(a_failure_is_decided_about_first),
      cmocka_unit_test(a_failure_can_be_left_to_the_properties),
      cmocka_unit_test(a_handler_is_asked_after_the_policy),
      cmocka_unit_test(a_restart_asks_again),
      cmocka_unit_test(a_run_keeps_to_its_rate),
      cmocka_unit_test(a_rate_of_nothing_can_be_lifted_and_ended),
      cmocka_unit_test(a_warning_is_for_a_run),
      cmocka_unit_test(without_memory_it_waits_on),
  };

  cairn__kind_register(&fake);
  /* for good: threads of runs may free at any time */
  cairn_set_allocator(failing_realloc, failing_free);
  return run_awake_and_asleep(tests, scratch_open, scratch_close);
}
