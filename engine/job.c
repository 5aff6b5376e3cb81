/* The state machine of jobs: what requests, runs, timers and queues do to
 * JobState. The tables it obeys are in state.c; the words in which a job waits
 * (queued, waiting, held) are settled by cairn__job_reconsider alone. */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "cim.h"
#include "engine.h"
#include "error.h"
#include "memory.h"
#include "state.h"
#include "store.h"

/* ---- kinds ---- */

int cairn__job_is_task(const struct cairn_engine *e, const struct cairn__job *j)
{
  return !j->kind || e->is_simulated;
}

static const struct cairn__kind *extra_kinds[16];
static size_t extra_kind_count;

void cairn__kind_register(const struct cairn__kind *kind)
{
  if (extra_kind_count == sizeof extra_kinds / sizeof extra_kinds[0])
    abort();
  extra_kinds[extra_kind_count++] = kind;
}

const struct cairn__kind *cairn__kind_find(const char *name)
{
  const struct cairn__kind *const own[] = {
      &cairn__kind_export, &cairn__kind_verify,   &cairn__kind_restore,
      &cairn__kind_stream, &cairn__kind_import,   &cairn__kind_merge,
      &cairn__kind_prune,  &cairn__kind_reference};

  for (size_t i = 0; i < extra_kind_count; i++) {
    if (strcmp(extra_kinds[i]->name, name) == 0)
      return extra_kinds[i];
  }
  for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
    if (own[i] && strcmp(own[i]->name, name) == 0)
      return own[i];
  }
  return NULL;
}

/* ---- the one writer ---- */

static int is_busy(int state)
{
  return state == CAIRN_STARTING || state == CAIRN_RUNNING ||
         state == CAIRN_SHUTTING_DOWN || state == CAIRN_QUERY_PENDING;
}

void cairn__job_set_state(struct cairn_engine *e, struct cairn__job *j,
                          int state)
{
  struct cairn_event *event;

  if (!cairn_state_can_change(j->state, state)) {
    fprintf(stderr, "cairn: bug: job %s must not change from state %u to %d\n",
            j->instance_id, j->state, state);
    abort();
  }
  event = cairn__event_push(e, CAIRN_EVENT_STATE, j);
  event->old_state = j->state;
  event->new_state = (uint16_t)state;
  e->busy += (size_t)is_busy(state) - (size_t)is_busy(j->state);
  e->querying += (size_t)(state == CAIRN_QUERY_PENDING) -
                 (size_t)(j->state == CAIRN_QUERY_PENDING);
  j->state = (uint16_t)state;
  j->changed_us = event->time;
  j->has_changed = 1;
  if (j->control.heap &&
      (state == j->deadline_state || cairn_state_is_final(state)))
    cairn__timer_disarm(&j->control);
}

/* ---- what a job knows about its last run ---- */

static void clear_error(struct cairn__job *j)
{
  cairn__free(j->failure);
  j->failure = NULL;
  j->error_id = 0;
}

/* Without memory for the text the number stays, which has a text of its own
 * in the table of errors. */
void cairn__job_set_error(struct cairn__job *j, const struct cairn_error *error)
{
  const char *const parts[] = {error->message, error->machine, error->disk,
                               error->path};
  struct cairn__failure *f;
  const char **fields[4];
  size_t size = sizeof *f;
  char *p;

  clear_error(j);
  j->error_id = (uint16_t)error->id;
  for (size_t i = 0; i < 4; i++)
    size += strlen(parts[i]) + 1;
  f = cairn__malloc(size);
  if (!f)
    return;
  f->system_errno = error->system_errno;
  f->offset = error->offset;
  fields[0] = &f->message;
  fields[1] = &f->machine;
  fields[2] = &f->disk;
  fields[3] = &f->path;
  p = f->text;
  for (size_t i = 0; i < 4; i++) {
    size_t n = strlen(parts[i]) + 1;

    memcpy(p, parts[i], n);
    cairn__utf8_clean(p);
    *fields[i] = p;
    p += n;
  }
  j->failure = f;
}

static void set_error(struct cairn_engine *e, struct cairn__job *j,
                      const struct cairn_error *error)
{
  cairn__job_set_error(j, error);
  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
}

static void set_error_text(struct cairn_engine *e, struct cairn__job *j, int id,
                           const char *message)
{
  struct cairn_error error;

  cairn__fail(&error, id, "%s", message);
  set_error(e, j, &error);
}

static int unfold(char **text, json_t **value)
{
  if (!*text)
    return 0;
  *value = cairn__json_load(*text, strlen(*text), JSON_DECODE_ANY, NULL);
  if (!*value)
    return -1;
  cairn__free(*text);
  *text = NULL;
  return 0;
}

int cairn__job_unfold(struct cairn__job *j)
{
  return unfold(&j->folded_warnings, &j->warnings) == 0 &&
                 unfold(&j->folded_report, &j->report) == 0
             ? 0
             : -1;
}

static void forget_results(struct cairn__job *j)
{
  json_decref(j->warnings);
  json_decref(j->report);
  j->warnings = j->report = NULL;
  cairn__free(j->folded_warnings);
  cairn__free(j->folded_report);
  j->folded_warnings = j->folded_report = NULL;
}

void cairn__job_warn(struct cairn_engine *e, struct cairn__job *j,
                     const char *message)
{
  char text[CAIRN_MESSAGE_MAX];

  snprintf(text, sizeof text, "%s", message);
  cairn__utf8_clean(text);
  if (cairn__job_unfold(j) == 0 && !j->warnings)
    j->warnings = json_array();
  if (!j->warnings || json_array_size(j->warnings) >= CAIRN__WARNINGS_MAX ||
      json_array_append_new(j->warnings, json_string(text)) != 0)
    j->lost_warnings++;
  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
  cairn__event_push(e, CAIRN_EVENT_WARNING, j);
}

/* Takes an array, or NULL. */
static void add_warnings(struct cairn__job *j, json_t *more, unsigned lost)
{
  j->lost_warnings += lost;
  if (!j->warnings) {
    j->warnings = more;
    return;
  }
  if (json_array_extend(j->warnings, more) != 0)
    j->lost_warnings += (uint32_t)json_array_size(more);
  json_decref(more);
}

/* Moves the results of a run that is done into its job: nothing of jansson's
 * is ever shared between threads. */
static void take_results(struct cairn_engine *e, struct cairn__job *j,
                         struct cairn__run *run)
{
  const char *point =
      json_string_value(json_object_get(run->report, "ReferencePointGroupId"));

  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
  /* an import may keep the stream's id, a run begun again find its point */
  if (point && uuid_parse(point, j->point) != 0)
    uuid_clear(j->point);
  json_decref(j->report);
  j->report = run->report;
  add_warnings(j, run->warnings, run->lost_warnings);
  run->report = run->warnings = NULL;
}

/* Of a run that is left to itself, whose thread may still warn. */
static void copy_warnings(struct cairn__job *j)
{
  json_t *warnings;
  unsigned lost;

  if (j->work && cairn__run_warnings(j->work->run, &warnings, &lost) == 0)
    add_warnings(j, warnings, lost);
  else if (j->work)
    j->lost_warnings += lost;
}

static int has_warnings(const struct cairn__job *j)
{
  return json_array_size(j->warnings) > 0 || j->folded_warnings ||
         j->lost_warnings > 0;
}

void cairn__job_set_percent(struct cairn_engine *e, struct cairn__job *j,
                            unsigned percent)
{
  if (percent == j->percent)
    return;
  j->percent = (uint16_t)percent;
  cairn__event_push(e, CAIRN_EVENT_PERCENT, j)->percent = j->percent;
}

/* ---- slots, time, and the end of a run ---- */

static void take_slot(struct cairn__job *j)
{
  j->queue->running++;
  j->has_slot = 1;
}

static void give_slot(struct cairn__job *j)
{
  if (!j->has_slot)
    return;
  j->has_slot = 0;
  j->queue->running--;
}

static void clock_on(struct cairn_engine *e, struct cairn__job *j)
{
  j->is_executing = 1;
  j->executing_since_us = cairn__monotonic(e);
}

static void clock_off(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->is_executing)
    return;
  j->is_executing = 0;
  j->elapsed_us += cairn__monotonic(e) - j->executing_since_us;
}

static void take_progress(struct cairn__job *j)
{
  if (!j->work)
    return;
  j->bytes_total = j->work->run->bytes_total;
  j->bytes_done = j->work->run->bytes_done;
}

static void work_free(struct cairn_engine *e, struct cairn__work *work)
{
  cairn__timer_disarm(&work->escalate);
  if (work->prev)
    work->prev->next = work->next;
  else
    e->works = work->next;
  if (work->next)
    work->next->prev = work->prev;
  e->work_count--;
  if (work->directory)
    cairn__directory_release(e, work->directory);
  cairn__run_release(work->run);
  cairn__free(work);
}

/* The job has no run any more. A thread that still works is on its own: it
 * keeps its export directory until it has ended. */
static void leave_run(struct cairn_engine *e, struct cairn__job *j)
{
  clock_off(e, j);
  take_progress(j);
  j->rate = j->eta = -1;
  give_slot(j);
  if (j->taken) {
    cairn__directory_release(e, j->taken);
    j->taken = NULL;
  }
  j->is_live = j->is_beyond_until = 0;
  j->asked = CAIRN__ASKED_NOTHING;
  if (j->work) {
    j->work->job = NULL;
    cairn__timer_disarm(&j->work->escalate);
    e->orphans++;
    j->work = NULL;
  }
}

static void arm_removal(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->is_removable || j->settings.removal_us == CAIRN__NEVER_US)
    cairn__timer_disarm(&j->control);
  else
    cairn__timer_arm(&e->monotonic, &j->control,
                     j->finished_us + j->settings.removal_us);
}

/* A run that was interrupted and is not begun again has ended after all. */
static void end_interrupted(struct cairn_engine *e, struct cairn__job *j,
                            int state)
{
  if (!j->is_interrupted)
    return;
  j->is_interrupted = 0;
  if (j->error_id == CAIRN_OK)
    set_error_text(e, j, CAIRN_E_TERMINATED,
                   "the engine ended while the run was on, and the job ended "
                   "before it could be begun again");
  cairn__history_run(e, j,
                     state == CAIRN_KILLED ? CAIRN_KILLED : CAIRN_TERMINATED);
}

/* The last change of state, and what comes with it. */
static void finish(struct cairn_engine *e, struct cairn__job *j, int state)
{
  end_interrupted(e, j, state);
  if (cairn__job_has_runs_left(j))
    cairn__due_skip(e, j, CAIRN__SKIP_ENDED);
  cairn__queue_leave(j);
  cairn__timer_disarm(&j->schedule);
  cairn__timer_disarm(&j->until);
  j->is_held = 0;
  j->is_start_asked = 0;
  j->is_backing_off = j->is_deciding = j->misses_code = 0;
  cairn__job_set_state(e, j, state);
  j->queue->unfinished--;
  if (state == CAIRN_COMPLETED || state == CAIRN_COMPLETED_WITH_WARNINGS)
    cairn__job_set_percent(e, j, 100);
  j->finished_us = cairn__monotonic(e);
  j->is_removable =
      (j->settings.set & CAIRN__SET_DELETE) != 0 && j->settings.is_delete;
  arm_removal(e, j);
}

/* How a run that ended well ended. */
static int well_state(const struct cairn__job *j)
{
  return has_warnings(j) ? CAIRN_COMPLETED_WITH_WARNINGS : CAIRN_COMPLETED;
}

static void complete(struct cairn_engine *e, struct cairn__job *j)
{
  if (j->state != CAIRN_SHUTTING_DOWN)
    cairn__job_set_state(e, j, CAIRN_SHUTTING_DOWN);
  finish(e, j, well_state(j));
}

static int has_calendar(const struct cairn__job *j)
{
  return !j->is_once && (j->settings.set & CAIRN__SET_CALENDAR) != 0;
}

int cairn__job_has_runs_left(const struct cairn__job *j)
{
  if (j->is_once || (!has_calendar(j) && !j->is_on_demand))
    return j->run_number == 0;
  return j->settings.run_times == 0 || j->run_number < j->settings.run_times;
}

static int has_recovery(const struct cairn__job *j, int action)
{
  return j->has_recovery_action && j->recovery_action == action;
}

/* After an error: Do Not Continue ends the job whatever is due. */
static int goes_on_after_error(const struct cairn__job *j)
{
  return cairn__job_has_runs_left(j) &&
         !has_recovery(j, CAIRN__RECOVERY_DO_NOT_CONTINUE);
}

static void until_passed(struct cairn_engine *e, struct cairn__job *j);

static int is_past_until(const struct cairn_engine *e,
                         const struct cairn__job *j)
{
  const struct cairn_datetime *t = &j->settings.until;

  return !j->is_once && (j->settings.set & CAIRN__SET_UNTIL) &&
         t->kind != CAIRN_NEVER &&
         t->microseconds <
             (t->kind == CAIRN_INTERVAL ? cairn__monotonic(e) : cairn__wall(e));
}

/* The run is over and the job is not. */
static void wait_for_next(struct cairn_engine *e, struct cairn__job *j,
                          int was_suspending)
{
  if (j->state == CAIRN_QUERY_PENDING || j->state == CAIRN_STARTING)
    cairn__job_set_state(e, j, CAIRN_RUNNING);
  if (j->state == CAIRN_RUNNING)
    cairn__job_set_state(e, j, CAIRN_SUSPENDED);
  /* The Suspend came too late for the run but not for the job. A run that
   * ended while it stood still leaves its hold to the job. */
  if (was_suspending ||
      (j->is_on_demand && !has_calendar(j) && !j->is_backing_off))
    j->is_held = 1;
  if (!j->is_backing_off)
    cairn__due_skip(e, j, CAIRN__SKIP_ACTIVE);
  if (is_past_until(e, j)) /* the run began at its last moment */
    until_passed(e, j);
  else
    cairn__job_reconsider(e, j);
}

/* Re-run Job: the same run again, later each time. */
static void back_off(struct cairn_engine *e, struct cairn__job *j,
                     int was_suspending)
{
  j->is_backing_off = 1;
  j->retry_us =
      cairn__monotonic(e) + ((int64_t)CAIRN__BACKOFF_US << (j->attempts - 1));
  wait_for_next(e, j, was_suspending);
}

/* What a client held goes on by the calendar: nothing is made up. */
static void release(struct cairn_engine *e, struct cairn__job *j)
{
  if (j->is_held && !j->is_live && !j->is_backing_off && !j->is_interrupted)
    cairn__due_skip(e, j, CAIRN__SKIP_HELD);
  j->is_held = j->is_stray = 0;
}

/* Run Recovery Job: starts the job that stands ready for this. One that has
 * failed while it did that itself starts no other. */
static void start_recovery(struct cairn_engine *e, struct cairn__job *j,
                           int was_recovering)
{
  if (was_recovering || e->closing >= 0)
    return;
  const char *id = j->details ? j->details->recovery_job : NULL;
  struct cairn__job *other = NULL;
  char text[256];
  cairn_job serial;

  int is_there = id && cairn_job_find(e, id, &serial, NULL) == 0;

  if (is_there)
    other = cairn__engine_job(e, serial, NULL);
  if (other && !other->is_live &&
      (other->state == CAIRN_NEW || other->state == CAIRN_SUSPENDED)) {
    release(e, other);
    if (!other->heap && !other->is_backing_off)
      other->is_recovering = 1; /* else it would have run anyway */
    other->is_start_asked = 1;
    cairn__job_reconsider(e, other);
    return;
  }
  snprintf(text, sizeof text, "the recovery job %s was not started: %s",
           id ? id : "(none)",
           !id         ? "RecoveryJob is not set"
           : !is_there ? "it does not exist any more"
           : !other    ? "memory has run out"
                       : "it is neither New nor Suspended");
  cairn__job_warn(e, j, text);
}

static int is_to_be_retried(const struct cairn__job *j)
{
  return has_recovery(j, CAIRN__RECOVERY_RE_RUN_JOB) &&
         j->attempts < CAIRN__ATTEMPTS;
}

const char *cairn__job_handler(const struct cairn__job *j)
{
  return j->is_deciding == CAIRN__BY_HANDLER && j->details
             ? j->details->other_recovery
             : NULL;
}

/* What is to be done after a failure is for a handler to say, which is there.
 */
static int is_handled(const struct cairn_engine *e, const struct cairn__job *j)
{
  const char *name = j->details ? j->details->other_recovery : NULL;

  return has_recovery(j, CAIRN__RECOVERY_OTHER) && name &&
         cairn__has_handler(e, name);
}

static void missing_handler(const struct cairn__job *j, char *text, size_t size)
{
  const char *name = j->details ? j->details->other_recovery : NULL;

  snprintf(text, size,
           "RecoveryAction is Other, and there is no handler \"%.128s\": as "
           "Continue With Next Job",
           name ? name : "");
}

/* It backs off until the embedding program has said what becomes of it. */
static void wait_for_decision(struct cairn_engine *e, struct cairn__job *j,
                              enum cairn__deciding by, int was_suspending,
                              int was_recovering)
{
  j->is_deciding = (uint8_t)by;
  j->is_backing_off = 1;
  j->is_recovering = was_recovering != 0;
  j->retry_us = INT64_MAX;
  wait_for_next(e, j, was_suspending);
  if (j->is_deciding)
    cairn__event_push(e, CAIRN_EVENT_TASK_RECOVER, j)->status = by;
}

/* Its policy is asked before its properties are. */
static int has_decisions(const struct cairn__job *j)
{
  return j->details && j->details->decisions;
}

/* Other: the embedding program decides, if it has the handler. */
static int ask_handler(struct cairn_engine *e, struct cairn__job *j,
                       int was_suspending, int was_recovering)
{
  char text[256];

  if (!has_recovery(j, CAIRN__RECOVERY_OTHER))
    return 0;
  if (!is_handled(e, j)) {
    missing_handler(j, text, sizeof text);
    cairn__job_warn(e, j, text);
    return 0;
  }
  wait_for_decision(e, j, CAIRN__BY_HANDLER, was_suspending, was_recovering);
  return 1;
}

static void fail_run(struct cairn_engine *e, struct cairn__job *j,
                     int was_suspending, int was_recovering)
{
  if (has_decisions(j)) {
    wait_for_decision(e, j, CAIRN__BY_POLICY, was_suspending, was_recovering);
    return;
  }
  if (is_to_be_retried(j)) {
    back_off(e, j, was_suspending);
    return;
  }
  if (ask_handler(e, j, was_suspending, was_recovering))
    return;
  if (goes_on_after_error(j))
    wait_for_next(e, j, was_suspending);
  else
    finish(e, j, CAIRN_EXCEPTION);
  if (has_recovery(j, CAIRN__RECOVERY_RUN_RECOVERY_JOB))
    start_recovery(e, j, was_recovering);
}

/* The policy leaves it to the properties: the action by them, or -1 when a
 * handler is asked next; for a re-run *delay_us is set. */
static int action_by_properties(struct cairn_engine *e, struct cairn__job *j,
                                int64_t *delay_us)
{
  char text[256];

  if (is_to_be_retried(j)) {
    *delay_us = (int64_t)CAIRN__BACKOFF_US << (j->attempts - 1);
    return CAIRN__RECOVERY_RE_RUN_JOB;
  }
  if (is_handled(e, j))
    return -1;
  if (has_recovery(j, CAIRN__RECOVERY_OTHER)) {
    missing_handler(j, text, sizeof text);
    cairn__job_warn(e, j, text);
  }
  if (has_recovery(j, CAIRN__RECOVERY_RUN_RECOVERY_JOB) ||
      has_recovery(j, CAIRN__RECOVERY_DO_NOT_CONTINUE))
    return j->recovery_action;
  return CAIRN__RECOVERY_CONTINUE_WITH_NEXT_JOB;
}

int cairn_job_recover(cairn_engine *e, cairn_job job, int action,
                      int64_t delay_us, struct cairn_error *err)
{
  struct cairn__job *j;
  int was_recovering;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (!j->is_deciding)
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: it waits for no decision about a failure (any "
                       "more)",
                       j->instance_id);
  if (!(action == CAIRN_RECOVER_BY_PROPERTIES &&
        j->is_deciding == CAIRN__BY_POLICY) &&
      (action < 0 || action > CAIRN__RECOVERY_RUN_RECOVERY_JOB ||
       action == CAIRN__RECOVERY_OTHER || delay_us < 0))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%s: RecoveryAction 0, 2, 3, 4 or 5, and a delay that "
                       "is not negative, expected",
                       j->instance_id);
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return cairn__fail_memory(err);
  cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
  if (action == CAIRN_RECOVER_BY_PROPERTIES) {
    action = action_by_properties(e, j, &delay_us);
    if (action < 0) {
      j->is_deciding = CAIRN__BY_HANDLER;
      cairn__event_push(e, CAIRN_EVENT_TASK_RECOVER, j)->status =
          CAIRN__BY_HANDLER;
      cairn__engine_settle(e);
      return 1;
    }
  }
  j->is_deciding = CAIRN__DECIDED;
  was_recovering = j->is_recovering;
  j->is_recovering = 0;
  if (action == CAIRN__RECOVERY_RE_RUN_JOB) {
    if (__builtin_add_overflow(cairn__monotonic(e), delay_us, &j->retry_us))
      j->retry_us = INT64_MAX;
    cairn__job_reconsider(e, j);
    cairn__engine_settle(e);
    return 1;
  }
  j->is_backing_off = 0;
  if (j->is_on_demand && !has_calendar(j))
    j->is_held = 1;
  if (action == CAIRN__RECOVERY_DO_NOT_CONTINUE ||
      !cairn__job_has_runs_left(j)) {
    finish(e, j, CAIRN_EXCEPTION);
  } else {
    cairn__due_skip(e, j, CAIRN__SKIP_ACTIVE);
    cairn__job_reconsider(e, j);
  }
  if (action == CAIRN__RECOVERY_RUN_RECOVERY_JOB)
    start_recovery(e, j, was_recovering);
  cairn__engine_settle(e);
  return 0;
}

void cairn__job_run_ended(struct cairn_engine *e, struct cairn__job *j,
                          const struct cairn_error *error)
{
  int asked = j->asked, was_recovering = j->is_recovering;

  j->has_ended = 1;
  j->is_recovering = 0;
  j->is_last_well = error->id == CAIRN_OK;
  leave_run(e, j);
  cairn__queue_leave(j); /* a parked run that waited to go on */
  j->is_start_asked = 0;

  if (asked == CAIRN__ASKED_KILL) {
    j->is_last_well = 0;
    set_error_text(e, j, CAIRN_E_KILLED, "killed at a client's request");
    cairn__history_run(e, j, CAIRN_KILLED);
    finish(e, j, CAIRN_KILLED);
  } else if (error->id == CAIRN_OK) {
    j->runs_succeeded++;
    cairn__history_run(e, j, well_state(j));
    if (asked != CAIRN__ASKED_TERMINATE && cairn__job_has_runs_left(j))
      wait_for_next(e, j, asked == CAIRN__ASKED_SUSPEND);
    else
      complete(e, j); /* also when a Terminate came too late */
  } else if (asked == CAIRN__ASKED_TERMINATE &&
             error->id == CAIRN_E_TERMINATED) {
    if (j->is_until_passed)
      set_error_text(e, j, CAIRN_E_TERMINATED,
                     "terminated because UntilTime has passed");
    else
      set_error(e, j, error);
    cairn__history_run(e, j, CAIRN_TERMINATED);
    finish(e, j, CAIRN_TERMINATED);
  } else {
    set_error(e, j, error);
    cairn__history_run(e, j, CAIRN_EXCEPTION);
    if (asked != CAIRN__ASKED_TERMINATE)
      cairn__event_last(e)->status =
          has_decisions(j) || is_to_be_retried(j) || is_handled(e, j);
    if (asked != CAIRN__ASKED_TERMINATE)
      fail_run(e, j, asked == CAIRN__ASKED_SUSPEND, was_recovering);
    else
      finish(e, j, CAIRN_EXCEPTION);
  }
}

/* ---- starting ---- */

static int start_thread(struct cairn_engine *e, struct cairn__job *j,
                        struct cairn_error *error)
{
  struct cairn__work *work = cairn__calloc(1, sizeof *work);
  struct cairn__run *run;

  if (!work)
    return cairn__fail_memory(error);
  if (cairn__engine_reserve_timers(e, 0, 1) != 0) {
    cairn__free(work);
    return cairn__fail_memory(error);
  }
  run = cairn__run_new(e->mailbox);
  if (!run) {
    cairn__free(work);
    return cairn__fail_memory(error);
  }
  run->main = j->kind->main;
  run->io = e->io;
  run->clock = e->clock;
  run->spec = cairn__job_copy_spec(j);
  if (!run->spec) {
    cairn__run_release(run);
    cairn__free(work);
    return cairn__fail_memory(error);
  }
  memcpy(run->instance_id, j->instance_id, sizeof run->instance_id);
  snprintf(run->job_uuid, sizeof run->job_uuid, "%s",
           strchr(j->instance_id, ':') + 1);
  if (j->directory)
    uuid_unparse_upper(j->point, run->point_uuid);
  run->number = j->run_number;
  run->epoch = j->epoch;
  run->turn = cairn_engine_turn(e);
  run->is_undecided = has_decisions(j);
  run->cookie = (uint64_t)(uintptr_t)work;
  if (cairn__run_start(run, error) != 0) {
    cairn__run_release(run);
    cairn__free(work);
    return -1;
  }
  work->run = run;
  work->job = j;
  work->escalate.kind = CAIRN__TIMER_ESCALATE;
  work->directory = j->directory;
  if (work->directory)
    cairn__directory_take(work->directory);
  work->next = e->works;
  if (e->works)
    e->works->prev = work;
  e->works = work;
  e->work_count++;
  j->work = work;
  if (!e->sample.heap)
    cairn__timer_arm(&e->monotonic, &e->sample,
                     cairn__monotonic(e) + CAIRN__SAMPLE_US);
  return 0;
}

/* A job that came to the head of its queue does not start. Its directory, which
 * is free, may have been offered to it alone. */
static void pass_directory_on(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->directory)
    return;
  cairn__directory_take(j->directory);
  cairn__directory_release(e, j->directory);
}

/* The point that this run is about: one that exists, a new one, or none. */
static int settle_point(struct cairn_engine *e, struct cairn__job *j,
                        struct cairn_error *error)
{
  const json_t *spec = cairn__job_spec(e, j);
  const char *id = json_string_value(json_object_get(spec, "point"));

  memset(j->point, 0, sizeof j->point);
  if (!spec)
    return cairn__fail_memory(error);
  if (!id)
    return strcmp(j->kind->name, "prune") == 0
               ? 0
               : cairn__engine_id(e, j->point, error);
  if (uuid_parse(id, j->point) != 0)
    memset(j->point, 0, sizeof j->point); /* the beginning of an id */
  return 0;
}

static void set_starting(struct cairn_engine *e, struct cairn__job *j)
{
  cairn__job_set_state(e, j, CAIRN_STARTING);
  if (j->due.run_us != CAIRN__NEVER_US)
    cairn__event_last(e)->due = j->due.run_us;
}

static void start_first_time(struct cairn_engine *e, struct cairn__job *j)
{
  struct cairn_error error;

  if (j->is_interrupted) {
    j->is_interrupted = 0;
    j->epoch++;
  } else if (j->is_backing_off) {
    j->is_backing_off = j->is_deciding = 0;
    j->attempts++;
    j->epoch++;
  } else {
    j->run_number++;
    j->attempts = j->epoch = 1;
    cairn__due_run(e, j);
  }
  j->run_version = j->policy_version;
  clear_error(j);
  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
  forget_results(j);
  j->lost_warnings = 0;
  j->has_ended = j->is_last_well = 0;
  j->elapsed_us = 0;
  j->bytes_total = j->bytes_done = 0;
  j->rate = j->eta = -1;
  j->started_us = cairn__wall(e);
  j->is_live = 1;
  clock_on(e, j);
  cairn__error_clear(&error);
  if (j->directory)
    (void)settle_point(e, j, &error);

  set_starting(e, j);
  cairn__job_set_percent(e, j, 0);
  if (error.id != CAIRN_OK ||
      (!cairn__job_is_task(e, j) && start_thread(e, j, &error) != 0)) {
    cairn__job_run_ended(e, j, &error);
    pass_directory_on(e, j);
    return;
  }
  if (e->is_simulated && j->directory) {
    j->taken = j->directory;
    cairn__directory_take(j->taken);
  }
  cairn__job_set_state(e, j, CAIRN_RUNNING);
  if (!j->is_once && !has_calendar(j) && !j->is_on_demand &&
      j->settings.run_times != 1) {
    char text[160];

    snprintf(text, sizeof text,
             "JobRunTimes is %u, but without RunMonth, RunDay, RunDayOfWeek "
             "or RunStartInterval no further run is ever due: run once",
             j->settings.run_times);
    cairn__job_warn(e, j, text);
  }
  if (cairn__job_is_task(e, j))
    cairn__event_push(e, CAIRN_EVENT_TASK_START, j);
  else if (has_decisions(j))
    cairn__event_push(e, CAIRN_EVENT_TASK_DECIDE, j)->status = (int)j->epoch;
}

/* The run of the job that waits for a decision, or NULL. */
static struct cairn__run *undecided(struct cairn__job *j, uint32_t number,
                                    uint32_t epoch, struct cairn_error *err)
{
  struct cairn__run *run = j->work ? j->work->run : NULL;

  if (run && run->number == number && run->epoch == epoch &&
      cairn__run_is_undecided(run))
    return run;
  cairn__fail(err, CAIRN_E_INVALID_STATE,
              "%s: run %u waits for no decision (any more)", j->instance_id,
              (unsigned)number);
  return NULL;
}

static int is_same_member(const json_t *a, const json_t *b, const char *name)
{
  const json_t *x = json_object_get(a, name), *y = json_object_get(b, name);

  return (!x && !y) || json_equal(x, y);
}

/* A specification for one run: of its kind, for the directory that it has
 * taken. Its job may have been given another meanwhile. */
static int check_decision(struct cairn_engine *e, const struct cairn__job *j,
                          json_t *spec, struct cairn_error *err)
{
  const json_t *own = j->work ? j->work->run->spec : cairn__job_spec(e, j);

  if (!own)
    return cairn__fail_memory(err);
  if (!json_is_object(spec))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be an object",
                       j->kind->name);
  if (j->kind->check(spec, err) != 0)
    return -1;
  if (is_same_member(spec, own, "directory") && is_same_member(spec, own, "to"))
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "%s: a run's directory is its own, and no decision's",
                     j->instance_id);
}

int cairn_job_decide(cairn_engine *e, cairn_job job, uint32_t number,
                     uint32_t epoch, const char *json, size_t length,
                     struct cairn_error *err)
{
  struct cairn__job *j;
  struct cairn__run *run = NULL;
  json_t *spec = NULL;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (!e->is_simulated) {
    run = undecided(j, number, epoch, err);
    if (!run)
      return -1;
  } else if (!j->kind) {
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: nothing is decided about a run job",
                       j->instance_id);
  }
  if (json) {
    spec = cairn__json_parse("decision", json, length, err);
    if (!spec)
      return -1;
    if (check_decision(e, j, spec, err) != 0) {
      json_decref(spec);
      return -1;
    }
  }
  if (run)
    cairn__run_decide(run, spec);
  else
    json_decref(spec);
  return 0;
}

int cairn_job_warn(cairn_engine *e, cairn_job job, const char *message,
                   struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (cairn_state_is_final(j->state) || (!j->is_live && !j->is_backing_off))
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: no run of it is on that could have a warning",
                       j->instance_id);
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return cairn__fail_memory(err);
  cairn__job_warn(e, j, message);
  cairn__engine_settle(e);
  return 0;
}

int cairn_job_throttle(cairn_engine *e, cairn_job job, uint64_t rate,
                       struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (!j->work)
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: no run of it copies anything now", j->instance_id);
  cairn__run_throttle(j->work->run, rate);
  return 0;
}

char *cairn_job_spec(cairn_engine *e, cairn_job job, struct cairn_error *err)
{
  struct cairn__job *j;
  char *text = NULL;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return NULL;
  /* the thread of a run that waits leaves it alone */
  if (j->work && cairn__run_is_undecided(j->work->run)) {
    (void)cairn__json_give(json_incref(j->work->run->spec), &text, err);
    return text;
  }
  text = cairn__strdup(j->spec);
  if (!text)
    cairn__fail_memory(err);
  return text;
}

static void start_again(struct cairn_engine *e, struct cairn__job *j)
{
  set_starting(e, j);
  cairn__job_set_state(e, j, CAIRN_RUNNING);
  clock_on(e, j);
  if (j->work) {
    cairn__run_request(j->work->run, CAIRN__RUN_GO);
    if (!e->sample.heap)
      cairn__timer_arm(&e->monotonic, &e->sample,
                       cairn__monotonic(e) + CAIRN__SAMPLE_US);
  } else {
    cairn__event_push(e, CAIRN_EVENT_TASK_RESUME, j);
  }
}

/* UntilTime has passed, and less than CAIRN__LATE_US ago: what was due at that
 * very moment, or queued then, may still start. */
static int is_last_moment(struct cairn_engine *e, struct cairn__job *j)
{
  const struct cairn_datetime *t = &j->settings.until;
  int64_t now =
      t->kind == CAIRN_INTERVAL ? cairn__monotonic(e) : cairn__wall(e);

  return has_calendar(j) && !j->is_held && !j->is_backing_off &&
         now - t->microseconds < CAIRN__LATE_US && cairn__due_has_come(e, j);
}

void cairn__job_start(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->is_live && is_past_until(e, j) && !is_last_moment(e, j)) {
    until_passed(e, j);
    pass_directory_on(e, j);
    return;
  }
  cairn__timer_disarm(&j->schedule);
  if (!j->is_live && is_past_until(e, j)) {
    cairn__timer_disarm(&j->until);
    j->is_beyond_until = 1;
  }
  j->is_held = j->is_stray = 0;
  j->is_start_asked = 0;
  j->settings.is_start_now = 0;
  take_slot(j);
  if (j->is_live)
    start_again(e, j);
  else
    start_first_time(e, j);
}

/* ---- where an idle job belongs ---- */

/* Microseconds until ScheduledStartTime; 0 and below: now, or not set. */
static int64_t schedule_delay(struct cairn_engine *e,
                              const struct cairn__job *j)
{
  const struct cairn_datetime *t = &j->settings.scheduled;

  if (!(j->settings.set & CAIRN__SET_SCHEDULED))
    return 0;
  if (t->kind == CAIRN_INTERVAL)
    return t->microseconds - cairn__monotonic(e);
  return t->microseconds - cairn__wall(e);
}

static int is_exhausted(const struct cairn__job *j)
{
  return j->run_number > 0 && !j->is_live && !j->is_backing_off &&
         !j->is_interrupted && !cairn__job_has_runs_left(j);
}

/* Whether an idle job that nobody holds is to start now; if not, its timer is
 * set for when it will be. */
static int is_due(struct cairn_engine *e, struct cairn__job *j)
{
  struct cairn__timers *timers = &e->wall;
  int64_t when;

  if (j->is_interrupted)
    return 1;
  if (j->is_backing_off) {
    if (!j->is_deciding && j->retry_us <= cairn__monotonic(e))
      return 1;
    timers = &e->monotonic;
    when = j->is_deciding ? CAIRN__NEVER_US : j->retry_us;
  } else if (j->is_once || j->settings.is_start_now) {
    return 1;
  } else if (has_calendar(j)) {
    if (cairn__due_has_come(e, j))
      return 1;
    /* what UntilTime does not allow may be allowed after a change of the clock,
     * but not when it has come */
    when = j->due.next_us > cairn__wall(e) ? j->due.next_us : CAIRN__NEVER_US;
  } else {
    if (schedule_delay(e, j) <= 0)
      return 1;
    if (j->settings.scheduled.kind == CAIRN_INTERVAL)
      timers = &e->monotonic;
    when = j->settings.scheduled.microseconds;
  }
  if (when != CAIRN__NEVER_US)
    cairn__timer_arm(timers, &j->schedule, when);
  return 0;
}

/* What is queued for the first time, not a run that stands still, was
 * interrupted or is tried again: these are never given up. */
static int is_run_new(const struct cairn__job *j)
{
  return !j->is_live && !j->is_interrupted && !j->is_backing_off;
}

void cairn__job_reconsider(struct cairn_engine *e, struct cairn__job *j)
{
  int is_wanted = 0;

  if (j->state != CAIRN_NEW && j->state != CAIRN_SUSPENDED)
    return;
  cairn__timer_disarm(&j->schedule);
  if (is_exhausted(j)) {
    /* JobRunTimes was lowered, or the calendar taken away. */
    if (j->error_id != CAIRN_OK)
      finish(e, j, CAIRN_EXCEPTION);
    else
      complete(e, j);
    return;
  }
  j->misses_code = cairn__job_missing_code(e, j) != NULL;
  if (j->misses_code)
    is_wanted = 0;
  else if (j->is_start_asked)
    is_wanted = 1;
  else if (!j->is_held && !j->is_live)
    is_wanted = is_due(e, j);
  if (!is_wanted) {
    cairn__queue_leave(j);
  } else if (!j->heap) {
    j->eligible_us = cairn__monotonic(e);
    cairn__queue_push(j);
  }
  if (j->heap && j->queue->max_time_us > 0 && is_run_new(j))
    cairn__timer_arm(&e->monotonic, &j->schedule,
                     j->eligible_us + j->queue->max_time_us);
}

/* MaxTimeOnQueue has passed, and no run has begun. */
static void leave_queue(struct cairn_engine *e, struct cairn__job *j)
{
  char text[256];

  cairn__queue_leave(j);
  snprintf(text, sizeof text,
           "not started: it waited longer than MaxTimeOnQueue of queue %s, "
           "which is %.0f s",
           j->queue->name, (double)j->queue->max_time_us / 1e6);
  set_error_text(e, j, CAIRN_E_TIMEOUT, text);
  j->is_start_asked = j->is_recovering = 0;
  j->settings.is_start_now = 0;
  if (!has_calendar(j) && !j->is_on_demand) {
    finish(e, j, CAIRN_EXCEPTION);
    return;
  }
  cairn__due_skip(e, j, CAIRN__SKIP_QUEUED);
  if (!has_calendar(j))
    j->is_held = 1;
  cairn__job_warn(e, j, text);
  cairn__job_reconsider(e, j);
}

void cairn__job_settings_changed(struct cairn_engine *e, struct cairn__job *j,
                                 int is_calendar_new)
{
  const struct cairn__settings *s = &j->settings;

  if (cairn_state_is_final(j->state)) {
    /* Only what was to be removed when it finished can still be. */
    if (!(s->set & CAIRN__SET_DELETE) || !s->is_delete)
      j->is_removable = 0;
    arm_removal(e, j);
    return;
  }
  if (!(s->set & CAIRN__SET_UNTIL) || s->until.kind == CAIRN_NEVER ||
      j->is_once || (j->is_beyond_until && is_past_until(e, j)))
    cairn__timer_disarm(&j->until);
  else
    /* The moment itself is still allowed. */
    cairn__timer_arm(s->until.kind == CAIRN_INTERVAL ? &e->monotonic : &e->wall,
                     &j->until, s->until.microseconds + 1);
  if (j->is_live)
    j->settings.is_start_now = 0;
  if (is_calendar_new)
    cairn__due_begin(e, j);
  cairn__queue_move(j);
  cairn__job_reconsider(e, j);
}

int cairn__job_phase(const struct cairn__job *j)
{
  if (cairn_state_is_final(j->state))
    return CAIRN__PHASE_DONE;
  if (is_busy(j->state))
    return CAIRN__PHASE_RUNNING;
  if (j->heap)
    return CAIRN__PHASE_QUEUED;
  if (j->is_held)
    return CAIRN__PHASE_HELD;
  return j->is_backing_off ? CAIRN__PHASE_BACKOFF : CAIRN__PHASE_WAITING;
}

/* ---- after another life of the engine ---- */

/* The zone that its calendar needs may be gone from the system. */
static int revive_calendar(struct cairn_engine *e, struct cairn__job *j,
                           struct cairn_error *err)
{
  const char *zone = j->details ? j->details->zone : NULL;
  struct cairn_error why;

  if (!has_calendar(j))
    return 0;
  if (cairn__engine_zone(e, zone ? zone : "", &j->due.zone, &why) != 0) {
    if (why.id == CAIRN_E_NO_MEMORY)
      return cairn__fail_memory(err);
    j->due.zone = NULL;
    j->is_held = 1;
    set_error(e, j, &why);
    cairn__job_warn(e, j, why.message);
  }
  cairn__due_revive(e, j);
  return 0;
}

/* The same run is begun again, at once, unless a client had asked for it to
 * stand still. */
static void interrupt(struct cairn_engine *e, struct cairn__job *j)
{
  j->is_live = 0;
  j->is_interrupted = 1;
  if (j->asked == CAIRN__ASKED_SUSPEND)
    j->is_held = 1;
  if (!j->is_held)
    j->is_start_asked = 1;
  if (j->state == CAIRN_QUERY_PENDING || j->state == CAIRN_STARTING)
    cairn__job_set_state(e, j, CAIRN_RUNNING);
  if (j->state == CAIRN_RUNNING)
    cairn__job_set_state(e, j, CAIRN_SUSPENDED);
}

int cairn__job_revive(struct cairn_engine *e, struct cairn__job *j,
                      struct cairn_error *err)
{
  int was_killed = j->asked == CAIRN__ASKED_KILL;

  e->busy += (size_t)is_busy(j->state);
  e->querying += (size_t)(j->state == CAIRN_QUERY_PENDING);
  if (cairn_state_is_final(j->state)) {
    j->queue->unfinished--;
    arm_removal(e, j);
    return 0;
  }
  if (revive_calendar(e, j, err) != 0)
    return -1;
  if (j->state == CAIRN_SHUTTING_DOWN) {
    j->is_interrupted = j->is_live;
    j->is_live = 0;
    set_error_text(e, j, was_killed ? CAIRN_E_KILLED : CAIRN_E_TERMINATED,
                   was_killed ? "killed at a client's request"
                   : j->is_until_passed
                       ? "terminated because UntilTime has passed"
                       : "terminated at a client's request; the engine ended "
                         "meanwhile");
    j->asked = CAIRN__ASKED_NOTHING;
    finish(e, j, was_killed ? CAIRN_KILLED : CAIRN_TERMINATED);
    return 0;
  }
  if (j->is_live)
    interrupt(e, j);
  j->asked = CAIRN__ASKED_NOTHING;
  cairn__job_settings_changed(e, j, 0);
  return 0;
}

/* ---- ending ---- */

static void terminate(struct cairn_engine *e, struct cairn__job *j)
{
  cairn__queue_leave(j);
  cairn__timer_disarm(&j->schedule);
  j->is_start_asked = 0;
  if (!j->is_live) {
    cairn__job_set_state(e, j, CAIRN_SHUTTING_DOWN);
    j->is_last_well = 0;
    set_error_text(e, j, CAIRN_E_TERMINATED,
                   "terminated at a client's request");
    finish(e, j, CAIRN_TERMINATED);
    return;
  }
  j->asked = CAIRN__ASKED_TERMINATE;
  cairn__job_set_state(e, j, CAIRN_SHUTTING_DOWN);
  if (j->work)
    cairn__run_request(j->work->run, CAIRN__RUN_TERMINATE);
  else
    cairn__event_push(e, CAIRN_EVENT_TASK_TERMINATE, j);
}

static void kill_now(struct cairn_engine *e, struct cairn__job *j)
{
  int is_task = j->is_live && !j->work, was_live = j->is_live;

  cairn__queue_leave(j);
  if (j->work)
    cairn__run_request(j->work->run, CAIRN__RUN_KILL);
  if (j->is_live) {
    j->has_ended = 1;
    copy_warnings(j);
    leave_run(e, j);
  }
  j->is_last_well = 0;
  cairn__processes_kill(e, j->entry.serial);
  set_error_text(e, j, CAIRN_E_KILLED, "killed at a client's request");
  if (was_live)
    cairn__history_run(e, j, CAIRN_KILLED);
  finish(e, j, CAIRN_KILLED);
  if (is_task)
    cairn__event_push(e, CAIRN_EVENT_TASK_KILL, j);
}

/* A working thread is given a moment to end; in every other case the job is
 * Killed at once. Returns the DMTF code. */
static uint32_t kill_job(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->work || (j->state != CAIRN_RUNNING && j->state != CAIRN_STARTING)) {
    kill_now(e, j);
    return CAIRN_RC_COMPLETED;
  }
  j->asked = CAIRN__ASKED_KILL;
  cairn__run_request(j->work->run, CAIRN__RUN_KILL);
  cairn__processes_kill(e, j->entry.serial);
  cairn__job_set_state(e, j, CAIRN_SHUTTING_DOWN);
  cairn__timer_arm(&e->monotonic, &j->work->escalate,
                   cairn__monotonic(e) + CAIRN__KILL_GRACE_US);
  return CAIRN_RC_STARTED;
}

static void suspend_run(struct cairn_engine *e, struct cairn__job *j)
{
  j->asked = CAIRN__ASKED_SUSPEND;
  if (j->work)
    cairn__run_request(j->work->run, CAIRN__RUN_SUSPEND);
  else
    cairn__event_push(e, CAIRN_EVENT_TASK_SUSPEND, j);
}

void cairn__job_parked(struct cairn_engine *e, struct cairn__job *j)
{
  if (j->asked != CAIRN__ASKED_SUSPEND || j->state != CAIRN_RUNNING)
    return;
  j->asked = CAIRN__ASKED_NOTHING;
  clock_off(e, j);
  take_progress(j);
  j->rate = j->eta = -1;
  give_slot(j);
  j->is_held = !j->is_closing;
  cairn__job_set_state(e, j, CAIRN_SUSPENDED);
}

void cairn__job_close(struct cairn_engine *e, struct cairn__job *j)
{
  if (cairn_state_is_final(j->state))
    return;
  switch (e->closing) {
  case CAIRN_CLOSE_SUSPEND:
    if (j->state == CAIRN_RUNNING && j->asked == CAIRN__ASKED_NOTHING) {
      j->is_closing = 1;
      suspend_run(e, j);
    }
    break;
  case CAIRN_CLOSE_TERMINATE:
    if (j->state != CAIRN_SHUTTING_DOWN)
      terminate(e, j);
    break;
  default:
    if (j->asked != CAIRN__ASKED_KILL)
      kill_job(e, j);
    break;
  }
}

static void until_passed(struct cairn_engine *e, struct cairn__job *j)
{
  if (j->state == CAIRN_SHUTTING_DOWN)
    return;
  if (j->is_interrupted) { /* as if it were on */
    set_error_text(e, j, CAIRN_E_TERMINATED,
                   "terminated because UntilTime has passed; the engine ended "
                   "while the run was on");
    cairn__job_set_state(e, j, CAIRN_SHUTTING_DOWN);
    finish(e, j, CAIRN_TERMINATED);
  } else if (j->is_live) {
    j->is_until_passed = 1;
    terminate(e, j);
  } else if (is_last_moment(e, j)) {
    /* It is queued, or will be at once; a full queue has its limits. */
    cairn__timer_arm(
        j->settings.until.kind == CAIRN_INTERVAL ? &e->monotonic : &e->wall,
        &j->until, j->settings.until.microseconds + CAIRN__LATE_US);
    cairn__job_reconsider(e, j);
  } else if (j->runs_succeeded > 0) {
    complete(e, j);
  } else {
    if (j->error_id == CAIRN_OK)
      set_error_text(e, j, CAIRN_E_TIMEOUT,
                     "UntilTime passed before a run of the job had started");
    finish(e, j, CAIRN_EXCEPTION);
  }
}

/* ---- notices of threads, timers ---- */

void cairn__job_notice(struct cairn_engine *e, struct cairn__run *run,
                       unsigned notices)
{
  struct cairn__work *work = (struct cairn__work *)(uintptr_t)run->cookie;
  struct cairn__job *j;

  if (notices == 0) { /* withdrawn; the work may be gone */
    cairn__run_release(run);
    return;
  }
  j = work->job;
  if (j && (notices & CAIRN__NOTICE_WARNING))
    cairn__event_push(e, CAIRN_EVENT_WARNING, j);
  if (notices & CAIRN__NOTICE_DONE) {
    if (j) {
      take_results(e, j, run);
      cairn__job_run_ended(e, j, &run->error);
    }
    e->orphans--; /* leave_run took the thread for one that still works */
    work_free(e, work);
  } else if (j && (notices & CAIRN__NOTICE_PARKED)) {
    cairn__job_parked(e, j);
  }
  cairn__run_release(run);
}

void cairn__job_timer(struct cairn_engine *e, struct cairn__timer *timer)
{
  struct cairn__job *j;

  switch (timer->kind) {
  case CAIRN__TIMER_SCHEDULE:
    j = CAIRN__OF(timer, struct cairn__job, schedule);
    if (j->heap && j->queue->max_time_us > 0 && is_run_new(j) &&
        cairn__monotonic(e) - j->eligible_us >= j->queue->max_time_us)
      leave_queue(e, j);
    else
      cairn__job_reconsider(e, j);
    break;
  case CAIRN__TIMER_UNTIL:
    until_passed(e, CAIRN__OF(timer, struct cairn__job, until));
    break;
  case CAIRN__TIMER_CONTROL:
    j = CAIRN__OF(timer, struct cairn__job, control);
    if (cairn_state_is_final(j->state))
      cairn__job_remove(e, j);
    else
      cairn__event_push(e, CAIRN_EVENT_REQUEST_TIMEOUT, j)->code =
          (uint16_t)(e->is_vendor_codes ? cairn_vendor_code(CAIRN_RC_TIMEOUT)
                                        : CAIRN_RC_TIMEOUT);
    break;
  case CAIRN__TIMER_ESCALATE:
    kill_now(e, CAIRN__OF(timer, struct cairn__work, escalate)->job);
    break;
  }
}

/* ---- progress ---- */

/* A moving window of about three seconds: long enough to be calm, short
 * enough to be true. */
static void sample_rate(struct cairn__work *work, int64_t now)
{
  struct cairn__job *j = work->job;
  unsigned n = work->sample_count, next = work->sample_next, oldest;
  int64_t span;

  work->samples[next].time = now;
  work->samples[next].bytes = j->bytes_done;
  work->sample_next = (next + 1) % CAIRN__SAMPLES;
  if (n < CAIRN__SAMPLES)
    work->sample_count = ++n;
  oldest = (next + CAIRN__SAMPLES + 1 - n) % CAIRN__SAMPLES;
  span = now - work->samples[oldest].time;
  if (span <= 0)
    return;
  j->rate = (double)(j->bytes_done - work->samples[oldest].bytes) * 1e6 /
            (double)span;
  j->eta = j->rate > 0 && j->bytes_total >= j->bytes_done && j->bytes_total > 0
               ? (double)(j->bytes_total - j->bytes_done) / j->rate
               : -1;
}

void cairn__work_sample(struct cairn_engine *e)
{
  int64_t now = cairn__monotonic(e);
  int is_any = 0;

  for (struct cairn__work *work = e->works; work; work = work->next) {
    struct cairn__job *j = work->job;
    unsigned percent = 0;

    if (!j || !j->is_executing) {
      work->sample_count = 0; /* standing still is no rate */
      continue;
    }
    if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
      break; /* the next sample tells */
    is_any = 1;
    take_progress(j);
    if (j->bytes_total > 0)
      percent =
          (unsigned)((double)j->bytes_done * 100 / (double)j->bytes_total);
    if (percent > 99)
      percent = 99;
    if (percent > j->percent)
      cairn__job_set_percent(e, j, percent);
    sample_rate(work, now);
  }
  if (is_any)
    cairn__timer_arm(&e->monotonic, &e->sample, now + CAIRN__SAMPLE_US);
}

/* ---- the class's methods ---- */

static uint32_t answer(const struct cairn_engine *e, uint32_t code)
{
  return e->is_vendor_codes ? cairn_vendor_code(code) : code;
}

static const char *state_label(int state)
{
  const char *label =
      cairn_value_label(cairn_property_at(CAIRN_PROPERTY_JobState - 1), state);

  return label ? label : "?";
}

static uint32_t refuse_state(const struct cairn__job *j, const char *verb,
                             struct cairn_error *err)
{
  cairn__fail(err, CAIRN_E_INVALID_STATE, "%s: %s is refused while %s",
              j->instance_id, verb, state_label(j->state));
  return CAIRN_RC_INVALID_TRANSITION;
}

static const char *request_label(int64_t request)
{
  size_t count;
  const struct cairn_value_label *map =
      cairn_value_map("RequestedState", &count);

  for (size_t i = 0; i < count; i++) {
    if (map[i].value == request)
      return map[i].label;
  }
  return "?";
}

static uint32_t refuse_busy(const struct cairn__job *j, int64_t request,
                            struct cairn_error *err)
{
  cairn__fail(err, CAIRN_E_BUSY,
              "%s: %s is refused while another request is being carried out "
              "(%s); Kill is always accepted",
              j->instance_id, request_label(request),
              j->asked == CAIRN__ASKED_SUSPEND ? "Suspend"
              : j->asked == CAIRN__ASKED_KILL  ? "Kill"
                                               : "Terminate");
  return CAIRN_RC_BUSY;
}

static uint32_t refuse_closing(const struct cairn__job *j, const char *verb,
                               struct cairn_error *err)
{
  cairn__fail(err, CAIRN_E_CLOSED, "%s: %s is refused, the engine is closing",
              j->instance_id, verb);
  return CAIRN_RC_FAILED;
}

static uint32_t request_start(struct cairn_engine *e, struct cairn__job *j,
                              const char *verb, struct cairn_error *err)
{
  if (e->closing >= 0)
    return refuse_closing(j, verb, err);
  release(e, j);
  j->is_start_asked = 1;
  cairn__job_reconsider(e, j);
  return CAIRN_RC_STARTED;
}

static uint32_t request_suspend(struct cairn_engine *e, struct cairn__job *j)
{
  if (j->state == CAIRN_RUNNING || j->state == CAIRN_STARTING) {
    suspend_run(e, j);
    return CAIRN_RC_STARTED;
  }
  j->is_held = 1;
  j->is_start_asked = 0;
  j->is_recovering = 0;
  j->settings.is_start_now = 0;
  cairn__job_reconsider(e, j);
  if (j->state == CAIRN_NEW)
    cairn__job_set_state(e, j, CAIRN_SUSPENDED);
  return CAIRN_RC_COMPLETED;
}

/* The checks in their order (docs/job-model.md 3.3), then the deed. */
static uint32_t request(struct cairn_engine *e, struct cairn__job *j,
                        int64_t requested, struct cairn_error *err)
{
  uint32_t code = cairn_state_request_code(j->state, (int)requested);

  /* A job that only waits is Suspended already, yet can be held. */
  if (requested == CAIRN_REQUEST_SUSPEND && j->state == CAIRN_SUSPENDED &&
      cairn__job_phase(j) != CAIRN__PHASE_HELD)
    code = CAIRN_RC_COMPLETED;
  if (code == CAIRN_RC_INVALID_TRANSITION)
    return refuse_state(j, request_label(requested), err);
  if (requested == CAIRN_REQUEST_SERVICE) {
    cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                "%s: jobs of this kind have no Service state", j->instance_id);
    return CAIRN_RC_NOT_SUPPORTED;
  }
  switch (requested) {
  case CAIRN_REQUEST_START:
    return request_start(e, j, request_label(requested), err);
  case CAIRN_REQUEST_SUSPEND:
    if (j->asked == CAIRN__ASKED_SUSPEND)
      return CAIRN_RC_STARTED;
    return request_suspend(e, j);
  case CAIRN_REQUEST_TERMINATE:
    if (j->asked == CAIRN__ASKED_TERMINATE)
      return CAIRN_RC_STARTED;
    if (j->asked != CAIRN__ASKED_NOTHING)
      return refuse_busy(j, requested, err);
    terminate(e, j);
    return code;
  default:
    return kill_job(e, j);
  }
}

static const uint16_t aims[] = {
    [CAIRN_REQUEST_START] = CAIRN_RUNNING,
    [CAIRN_REQUEST_SUSPEND] = CAIRN_SUSPENDED,
    [CAIRN_REQUEST_TERMINATE] = CAIRN_TERMINATED,
    [CAIRN_REQUEST_KILL] = CAIRN_KILLED,
};

uint32_t cairn_job_request_state_change(
    cairn_engine *e, cairn_job job, int64_t requested,
    const struct cairn_datetime *timeout_period, struct cairn_error *err)
{
  struct cairn__job *j;
  uint32_t code;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return answer(
        e, cairn__engine_absent(e, job, CAIRN_RC_UNKNOWN, CAIRN_RC_FAILED));
  if (requested < CAIRN_REQUEST_START || requested > CAIRN_REQUEST_SERVICE) {
    cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                "%s: RequestedState must be 2 (Start), 3 (Suspend), 4 "
                "(Terminate), 5 (Kill) or 6 (Service)",
                j->instance_id);
    return answer(e, CAIRN_RC_INVALID_PARAMETER);
  }
  if (timeout_period && timeout_period->kind != CAIRN_INTERVAL) {
    cairn__fail(err, CAIRN_E_WRONG_TYPE,
                "%s: TimeoutPeriod must be an interval, such as "
                "00000000000005.000000:000",
                j->instance_id);
    return answer(e, CAIRN_RC_INVALID_PARAMETER);
  }
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    return answer(e, CAIRN_RC_FAILED);
  }
  cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
  code = request(e, j, requested, err);
  /* A request that replaces another takes over its deadline too. */
  if ((code == CAIRN_RC_STARTED || code == CAIRN_RC_COMPLETED) &&
      !cairn_state_is_final(j->state) && j->deadline_state != aims[requested])
    cairn__timer_disarm(&j->control);
  if (code == CAIRN_RC_STARTED && timeout_period &&
      timeout_period->microseconds > 0 && !cairn_state_is_final(j->state)) {
    int64_t when, now = cairn__monotonic(e);

    if (__builtin_add_overflow(now, timeout_period->microseconds, &when))
      when = INT64_MAX;
    j->deadline_state = aims[requested];
    cairn__timer_arm(&e->monotonic, &j->control, when);
  }
  cairn__engine_settle(e);
  return answer(e, code);
}

uint32_t cairn_job_kill(cairn_engine *e, cairn_job job, int delete_on_kill,
                        struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return answer(e, cairn__engine_absent(e, job, CAIRN__KILL_NOT_FOUND,
                                          CAIRN__KILL_FAILED));
  if (cairn_state_is_final(j->state)) {
    refuse_state(j, "KillJob", err);
    return answer(e, CAIRN__KILL_FAILED);
  }
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    return answer(e, CAIRN__KILL_FAILED);
  }
  if (delete_on_kill >= 0) {
    j->settings.set |= CAIRN__SET_DELETE;
    j->settings.is_delete = delete_on_kill != 0;
  }
  cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
  kill_job(e, j);
  cairn__engine_settle(e);
  /* The method has no code for "started": what it promises is under way. */
  return answer(e, CAIRN__KILL_SUCCESS);
}

uint32_t cairn_job_resume(cairn_engine *e, cairn_job job,
                          struct cairn_error *err)
{
  struct cairn__job *j;
  uint32_t code = CAIRN_RC_COMPLETED;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return answer(
        e, cairn__engine_absent(e, job, CAIRN_RC_UNKNOWN, CAIRN_RC_FAILED));
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    return answer(e, CAIRN_RC_FAILED);
  }
  cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
  if (j->state == CAIRN_RUNNING && j->asked == CAIRN__ASKED_SUSPEND) {
    if (e->closing >= 0) {
      code = refuse_closing(j, "resume", err);
    } else { /* not parked yet: take the Suspend back */
      j->asked = CAIRN__ASKED_NOTHING;
      cairn__timer_disarm(&j->control);
      if (j->work)
        cairn__run_request(j->work->run, CAIRN__RUN_GO);
      else
        cairn__event_push(e, CAIRN_EVENT_TASK_RESUME, j);
    }
  } else if (j->state == CAIRN_SUSPENDED && (j->is_live || j->is_interrupted)) {
    code = request_start(e, j, "resume", err);
  } else if (j->is_held && !j->is_live) {
    release(e, j);
    cairn__job_reconsider(e, j);
  } else {
    code = refuse_state(j, "resume", err);
  }
  cairn__engine_settle(e);
  return answer(e, code);
}

int cairn_job_disown(cairn_engine *e, cairn_job job, struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return cairn__fail_memory(err);
  if (!cairn_state_is_final(j->state) && !j->is_held) {
    uint32_t code = request(e, j, CAIRN_REQUEST_SUSPEND, err);

    j->is_stray = code == CAIRN_RC_COMPLETED || code == CAIRN_RC_STARTED;
    cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
    cairn__error_clear(err); /* one that ends anyway needs no hold */
  }
  cairn__engine_settle(e);
  return 0;
}

int cairn_job_delete(cairn_engine *e, cairn_job job, struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (!cairn_state_is_final(j->state))
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: cannot be deleted while %s; only in a final state",
                       j->instance_id, state_label(j->state));
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return cairn__fail_memory(err);
  cairn__job_remove(e, j);
  cairn__engine_settle(e);
  return 0;
}

/* ---- the end ---- */

static void details_free(struct cairn__details *d)
{
  if (!d)
    return;
  cairn__free(d->caption);
  cairn__free(d->description);
  cairn__free(d->element_name);
  cairn__free(d->other_recovery);
  cairn__free(d->recovery_job);
  cairn__free(d->zone);
  cairn__free(d->policy);
  cairn__free(d->policy_key);
  cairn__free(d->policy_file);
  cairn__free(d->decisions);
  cairn__free(d->code);
  cairn__free(d->question);
  cairn__free(d->answer);
  json_decref(d->choices);
  cairn__free(d);
}

void cairn__job_free(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j)
    return;
  cairn__store_forget(e, j);
  if (j->directory)
    cairn__directory_remove_job(e, j->directory);
  if (j->queue)
    cairn__queue_remove_job(j->queue);
  details_free(j->details);
  cairn__job_forget_spec(e, j);
  cairn_free(j->spec);
  forget_results(j);
  cairn__free(j->failure);
  cairn__free(j->settings.notify);
  cairn__free(j->name);
  cairn__free(j);
}

void cairn__job_remove(struct cairn_engine *e, struct cairn__job *j)
{
  cairn__event_push(e, CAIRN_EVENT_REMOVED, j);
  cairn__queue_leave(j);
  cairn__timer_disarm(&j->schedule);
  cairn__timer_disarm(&j->until);
  cairn__timer_disarm(&j->control);
  cairn__roster_remove(&e->roster, j);
  cairn__job_free(e, j);
}
