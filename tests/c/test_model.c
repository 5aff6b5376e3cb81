/* The state machine against a model of it: every order of a few events, for
 * jobs of several makes. The model is written from docs/job-model.md, with no
 * look at how the engine does it; after each event state, phase and counters
 * of both must agree.
 *
 *   CAIRN_MODEL_LENGTH=6 build/tests/test_model     longer orders */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "asleep.h"
#include "cairn.h"
#include "error.h"
#include "virtual_time.h"

#define SECOND INT64_C(1000000)
#define DAY    (86400 * SECOND)
#define START  INT64_C(1735689600000000) /* 2025-01-01T00:00:00Z */

/* ---- makes of jobs ---- */

static const struct make {
  const char *name, *spec;
  int is_daily, is_held, is_rerun, run_times;
  int is_ended_by_error; /* Do Not Continue */
} makes[] = {
    {"plain", "", 0, 0, 0, 1, 0},
    {"re-run", "\"RecoveryAction\":4,", 0, 0, 1, 1, 0},
    {"daily", "\"RunStartInterval\":\"00000000020000.000000:000\",", 1, 0, 0, 2,
     0},
    {"daily re-run",
     "\"RunStartInterval\":\"00000000020000.000000:000\","
     "\"RecoveryAction\":4,",
     1, 0, 1, 2, 0},
    {"daily, one error",
     "\"RunStartInterval\":\"00000000020000.000000:000\","
     "\"RecoveryAction\":2,",
     1, 0, 0, 0, 1},
    {"on demand", "\"held\":true,", 0, 1, 0, 2, 0},
    {"on demand re-run", "\"held\":true,\"RecoveryAction\":4,", 0, 1, 1, 0, 0},
    {"daily held",
     "\"held\":true,\"RunStartInterval\":\"00000000020000.000000:000\",", 1, 1,
     0, 2, 0},
};

/* ---- events ---- */

enum event {
  REQUEST_START,
  REQUEST_SUSPEND,
  REQUEST_TERMINATE,
  REQUEST_KILL,
  RESUME,
  PARKED,     /* the body has stopped at a safe point */
  WELL,       /* the body has ended */
  BADLY,      /* with an error */
  TERMINATED, /* because it was told to */
  MINUTE,
  A_DAY,
  EVENTS
};

static const char *const event_names[] = {
    "Start", "Suspend", "Terminate",  "Kill",   "resume", "parked",
    "well",  "badly",   "terminated", "minute", "day"};

/* ---- the model ---- */

struct model {
  const struct make *make;
  int64_t now;
  int state;
  int is_on;   /* a run is on, be it suspended */
  int is_held; /* by a client */
  int asked;   /* 0, CAIRN_REQUEST_SUSPEND or _TERMINATE */
  int is_backing_off;
  int64_t retry;
  int64_t settled; /* due times up to this one have their run or reason */
  int runs, well, attempts, has_failed;
};

/* Daily at 02:00 UTC: the first after t. */
static int64_t due_after(int64_t t)
{
  int64_t first = START + INT64_C(7200) * SECOND;

  return t < first ? first : first + ((t - first) / DAY + 1) * DAY;
}

static int is_final(int state)
{
  return state == CAIRN_COMPLETED || state == CAIRN_TERMINATED ||
         state == CAIRN_KILLED || state == CAIRN_EXCEPTION;
}

static int has_runs_left(const struct model *m)
{
  if (!m->make->is_daily && !m->make->is_held)
    return m->runs == 0;
  return m->make->run_times == 0 || m->runs < m->make->run_times;
}

static void run(struct model *m)
{
  m->state = CAIRN_RUNNING;
  if (m->is_on)
    return; /* it goes on */
  m->is_on = 1;
  m->has_failed = 0;
  if (m->is_backing_off) {
    m->is_backing_off = 0;
    m->attempts++;
    return;
  }
  m->runs++;
  m->attempts = 1;
  if (m->make->is_daily && due_after(m->settled) <= m->now)
    m->settled = due_after(m->settled);
}

/* Nothing keeps an idle job: does it start by itself? */
static void look(struct model *m)
{
  if (m->is_held || m->is_on || is_final(m->state))
    return;
  if (m->is_backing_off) {
    if (m->retry <= m->now)
      run(m);
  } else if (!m->make->is_daily) {
    if (m->runs == 0 || m->make->is_held)
      run(m);
  } else if (due_after(m->settled) <= m->now) {
    run(m);
  }
}

static void end_job(struct model *m, int state)
{
  m->state = state;
  m->is_on = m->is_held = m->asked = m->is_backing_off = 0;
}

static void run_over(struct model *m, int is_well)
{
  int asked = m->asked;

  m->is_on = m->asked = 0;
  m->has_failed = !is_well;
  m->well += is_well;
  if (asked == CAIRN_REQUEST_TERMINATE) { /* it came too late */
    end_job(m, is_well ? CAIRN_COMPLETED : CAIRN_EXCEPTION);
    return;
  }
  if (!is_well && m->make->is_rerun && m->attempts < 3) {
    m->is_backing_off = 1;
    m->retry = m->now + (60 * SECOND << (m->attempts - 1));
  } else if (!has_runs_left(m) || (!is_well && m->make->is_ended_by_error)) {
    end_job(m, is_well ? CAIRN_COMPLETED : CAIRN_EXCEPTION);
    return;
  } else {
    m->settled = m->now; /* what came meanwhile is skipped */
    if (m->make->is_held && !m->make->is_daily)
      m->is_held = 1;
  }
  m->state = CAIRN_SUSPENDED;
  if (asked == CAIRN_REQUEST_SUSPEND)
    m->is_held = 1;
  look(m);
}

static void let_go(struct model *m)
{
  if (m->is_held && !m->is_on && !m->is_backing_off)
    m->settled = m->now;
  m->is_held = 0;
}

/* A request or a call; returns what it should answer, -1: it is an error. */
static int step_model(struct model *m, enum event event)
{
  switch (event) {
  case REQUEST_START:
    if (m->state != CAIRN_NEW && m->state != CAIRN_SUSPENDED)
      return 4097;
    let_go(m);
    run(m);
    return 4096;
  case REQUEST_SUSPEND:
    if (m->state == CAIRN_RUNNING) {
      m->asked = CAIRN_REQUEST_SUSPEND;
      return 4096;
    }
    if (m->state != CAIRN_NEW && m->state != CAIRN_SUSPENDED)
      return 4097;
    if (m->state == CAIRN_SUSPENDED && m->is_held)
      return 4097;
    m->is_held = 1;
    m->state = CAIRN_SUSPENDED;
    return 0;
  case REQUEST_TERMINATE:
    if (is_final(m->state))
      return 4097;
    if (m->state == CAIRN_SHUTTING_DOWN)
      return 4096;
    if (m->asked == CAIRN_REQUEST_SUSPEND)
      return 4099;
    if (m->is_on) {
      m->asked = CAIRN_REQUEST_TERMINATE;
      m->state = CAIRN_SHUTTING_DOWN;
      return 4096;
    }
    {
      int code = m->state == CAIRN_NEW ? 0 : 4096;

      end_job(m, CAIRN_TERMINATED);
      return code;
    }
  case REQUEST_KILL:
    if (is_final(m->state))
      return 4097;
    end_job(m, CAIRN_KILLED);
    return 0;
  case RESUME:
    if (m->state == CAIRN_RUNNING && m->asked == CAIRN_REQUEST_SUSPEND) {
      m->asked = 0;
      return 0;
    }
    if (m->state == CAIRN_SUSPENDED && m->is_on) {
      m->is_held = 0;
      run(m);
      return 4096;
    }
    if (m->is_held && !m->is_on) {
      let_go(m);
      look(m);
      return 0;
    }
    return 4097;
  case PARKED:
    if (m->state != CAIRN_RUNNING || m->asked != CAIRN_REQUEST_SUSPEND)
      return -1;
    m->asked = 0;
    m->is_held = 1;
    m->state = CAIRN_SUSPENDED;
    return 0;
  case WELL:
  case BADLY:
    if (!m->is_on)
      return -1;
    if (m->state == CAIRN_SUSPENDED) /* its hold stays with the job */
      m->asked = CAIRN_REQUEST_SUSPEND;
    run_over(m, event == WELL);
    return 0;
  case TERMINATED:
    if (!m->is_on)
      return -1;
    if (m->asked == CAIRN_REQUEST_TERMINATE) {
      end_job(m, CAIRN_TERMINATED);
      return 0;
    }
    if (m->state == CAIRN_SUSPENDED)
      m->asked = CAIRN_REQUEST_SUSPEND;
    run_over(m, 0);
    return 0;
  case MINUTE:
    m->now += 61 * SECOND;
    look(m);
    return 0;
  default:
    m->now += DAY;
    look(m);
    return 0;
  }
}

/* ---- the engine ---- */

static cairn_engine *e;
static cairn_job job;

static void settle(void)
{
  struct cairn_event events[64];

  while (cairn_engine_step(e))
    cairn_engine_next_events(e, events, 64);
}

static void pass(int64_t us)
{
  pass_time(e, us, settle);
}

static int step_engine(enum event event)
{
  static const int requests[] = {CAIRN_REQUEST_START, CAIRN_REQUEST_SUSPEND,
                                 CAIRN_REQUEST_TERMINATE, CAIRN_REQUEST_KILL};
  struct cairn_error failure;
  int code = 0;

  switch (event) {
  case REQUEST_START:
  case REQUEST_SUSPEND:
  case REQUEST_TERMINATE:
  case REQUEST_KILL:
    code = (int)cairn_job_request_state_change(e, job, requests[event], NULL,
                                               NULL);
    break;
  case RESUME:
    code = (int)cairn_job_resume(e, job, NULL);
    break;
  case PARKED:
    code = cairn_task_parked(e, job, NULL);
    break;
  case WELL:
    code = cairn_task_finish(e, job, NULL, NULL);
    break;
  case BADLY:
  case TERMINATED:
    cairn__fail(&failure,
                event == BADLY ? CAIRN_E_IO_ERROR : CAIRN_E_TERMINATED, "x");
    code = cairn_task_finish(e, job, &failure, NULL);
    break;
  case MINUTE:
    pass(61 * SECOND);
    break;
  default:
    pass(DAY);
    break;
  }
  settle();
  return code;
}

static void open_engine(const struct make *make, struct model *m)
{
  struct cairn_engine_options options = {
      .size = sizeof options, .is_virtual_clock = 1, .virtual_start = START};
  struct cairn_error err;
  char json[512];

  if (cairn_engine_open(&options, &e, &err) != 0)
    fail_msg("%s", err.message);
  snprintf(json, sizeof json,
           "{\"Name\":\"m\",\"run\":true,\"LocalOrUtcTime\":2,%s"
           "\"JobRunTimes\":%d}",
           make->spec, make->run_times);
  if (cairn_submit(e, json, strlen(json), &job, &err) != 0)
    fail_msg("%s", err.message);
  settle();
  *m = (struct model){.make = make,
                      .now = START,
                      .settled = START,
                      .state = CAIRN_NEW,
                      .is_held = make->is_held};
  look(m);
}

static int64_t number(int id)
{
  struct cairn_value v;

  assert_int_equal(cairn_job_get(e, job, id, &v, NULL), 0);
  return v.kind == CAIRN_VALUE_INTEGER ? v.as.integer : -1;
}

static const char *phase_of(const struct model *m)
{
  if (is_final(m->state))
    return "done";
  if (m->state != CAIRN_NEW && m->state != CAIRN_SUSPENDED)
    return "running";
  if (m->is_held)
    return "held";
  return m->is_backing_off ? "backoff" : "waiting";
}

static void complain(const struct model *m, const enum event *events,
                     size_t count, const char *what, int64_t model,
                     int64_t engine)
{
  print_error("%s:", m->make->name);
  for (size_t i = 0; i < count; i++)
    print_error(" %s", event_names[events[i]]);
  fail_msg("%s is %lld, by the model %lld", what, (long long)engine,
           (long long)model);
}

static void compare(const struct model *m, const enum event *events,
                    size_t count)
{
  struct cairn_value v;
  int64_t n = number(CAIRN_PROPERTY_JobState);

  if (n != m->state)
    complain(m, events, count, "JobState", m->state, n);
  n = number(CAIRN_PROPERTY_run_number);
  if (n != m->runs)
    complain(m, events, count, "run_number", m->runs, n);
  n = number(CAIRN_PROPERTY_attempts);
  if (n != m->attempts)
    complain(m, events, count, "attempts", m->attempts, n);
  assert_int_equal(cairn_job_get(e, job, CAIRN_PROPERTY_phase, &v, NULL), 0);
  if (strcmp(v.as.string, phase_of(m)) != 0) {
    print_error("phase %s, by the model %s\n", v.as.string, phase_of(m));
    complain(m, events, count, "phase", 0, 1);
  }
  /* a job that waits for its calendar says for what */
  assert_int_equal(
      cairn_job_get(e, job, CAIRN_PROPERTY_ScheduledStartTime, &v, NULL), 0);
  if (m->make->is_daily && strcmp(phase_of(m), "waiting") == 0 &&
      v.as.datetime.microseconds != due_after(m->settled))
    complain(m, events, count, "ScheduledStartTime", due_after(m->settled),
             v.as.datetime.microseconds);
}

static unsigned long orders;

/* All orders of `length` events that begin with the first `count` of them. */
static void try_orders(const struct make *make, enum event *events,
                       size_t count, size_t length)
{
  for (int next = 0; next < EVENTS; next++) {
    struct model m;

    events[count] = (enum event)next;
    open_engine(make, &m);
    for (size_t i = 0; i <= count; i++) {
      int wanted = step_model(&m, events[i]), code = step_engine(events[i]);

      if (code != wanted)
        complain(&m, events, i + 1, "the answer", wanted, code);
    }
    compare(&m, events, count + 1);
    cairn_engine_free(e);
    orders++;
    if (count + 1 < length && !is_final(m.state))
      try_orders(make, events, count + 1, length);
  }
}

static void every_short_order_of_events_is_as_the_model_has_it(void **state)
{
  const char *given = getenv("CAIRN_MODEL_LENGTH");
#ifdef CAIRN_SANITIZED
  size_t length = given ? strtoul(given, NULL, 10) : 3;
#else
  size_t length = given ? strtoul(given, NULL, 10) : 4;
#endif
  enum event events[16];

  (void)state;
  assert_true(length >= 1 && length <= 16);
  for (size_t i = 0; i < sizeof makes / sizeof makes[0]; i++)
    try_orders(&makes[i], events, 0, length);
  printf("# %lu orders of up to %zu events, %zu makes of jobs\n", orders,
         length, sizeof makes / sizeof makes[0]);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_short_order_of_events_is_as_the_model_has_it)};

  return run_awake_and_asleep(tests, NULL, NULL);
}
