/* Jobs as the owner thread keeps them, and what its files do with them.
 *
 * A job is in one of these situations:
 *
 *   JobState 2, 5      idle: no run, or a run that stands still (is_live); in
 *                      its queue's heap, in its directory's, or in neither
 *   JobState 3, 4, 12  live: a run is on, the job holds a slot of its queue
 *   JobState 6         live: the run was asked to end
 *   final              no run, no slot, in no heap; perhaps a removal timer
 *
 * Everything that can fail for want of memory is reserved before an action
 * changes anything: room in the heaps when the job is made or wakes, room for
 * an action's events (CAIRN__EVENTS_PER_ACTION) right before the action. Where
 * memory is missing only for a text, the job keeps the error's number and the
 * text comes from the table of errors.
 *
 * SLOTS. A queue runs `concurrency` jobs at once. A suspended run gives its
 * slot back, since a client suspends to make room, and queues for one when it
 * is resumed; it keeps its thread, its locks and its export directory. */
#ifndef CAIRN_JOB_H
#define CAIRN_JOB_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "cairn.h"
#include "due.h"
#include "export/kinds.h"
#include "json.h"
#include "queue.h"
#include "roster.h"
#include "run.h"
#include "timer.h"

#define CAIRN__EVENTS_PER_ACTION 16
#define CAIRN__NEVER_US          INT64_MAX /* a TimeBeforeRemoval of nines */
#define CAIRN__KILL_GRACE_US     1000000
#define CAIRN__SAMPLE_US         100000
#define CAIRN__SAMPLES           32
#define CAIRN__ATTEMPTS          3        /* of a run that is to be re-run */
#define CAIRN__BACKOFF_US        60000000 /* doubles with each attempt */

/* The writable properties. A bit of `set` is 1 when the property is not null;
 * it is that of the property's place in enum cairn__setting. */
enum cairn__setting {
  CAIRN__SET_SCHEDULED = 1 << 0,
  CAIRN__SET_MONTH = 1 << 1,
  CAIRN__SET_DAY = 1 << 2,
  CAIRN__SET_DAY_OF_WEEK = 1 << 3,
  CAIRN__SET_START_INTERVAL = 1 << 4,
  CAIRN__SET_LOCAL_OR_UTC = 1 << 5,
  CAIRN__SET_UNTIL = 1 << 6,
  CAIRN__SET_PRIORITY = 1 << 7,
  CAIRN__SET_DELETE = 1 << 8
};
#define CAIRN__SET_CALENDAR                                                    \
  (CAIRN__SET_MONTH | CAIRN__SET_DAY | CAIRN__SET_DAY_OF_WEEK |                \
   CAIRN__SET_START_INTERVAL)

struct cairn__settings {
  /* An interval is kept as the moment on the monotonic clock that it meant
   * when it was written; a timestamp in Unix microseconds. */
  struct cairn_datetime scheduled, until;
  struct cairn_datetime start_interval;
  int64_t removal_us; /* TimeBeforeRemoval, or CAIRN__NEVER_US */
  char *notify;       /* NULL = null */
  uint32_t run_times, priority;
  uint16_t set;
  uint8_t month, local_or_utc;
  int8_t day, day_of_week;
  uint8_t is_delete, removal_precision;
  uint8_t is_start_now; /* zeros were written to ScheduledStartTime */
};

/* What few jobs have; made when one of them is given. */
struct cairn__details {
  char *caption, *description, *element_name, *other_recovery, *recovery_job;
  char *zone, *policy, *policy_key, *policy_file;
  char *decisions; /* the name under which the embedding program decides */
  char *code;      /* of a task: the name of its body, from its specification */
  char *question, *answer;
  json_t *choices; /* NULL = free text */
};

struct cairn__failure {
  int system_errno;
  int64_t offset;
  const char *message, *machine, *disk, *path; /* into text */
  char text[];
};

/* A run on a thread of the engine's. It outlives its job's interest in it when
 * the job was killed and the thread has not ended yet: job is NULL then. */
struct cairn__work {
  struct cairn__work *prev, *next;
  struct cairn__job *job;
  struct cairn__run *run;
  struct cairn__directory *directory; /* held until the thread has ended */
  struct cairn__timer escalate;
  struct {
    int64_t time;
    uint64_t bytes;
  } samples[CAIRN__SAMPLES];
  unsigned sample_next, sample_count;
};

enum cairn__asked { /* what the live run was asked and has not done yet */
                    CAIRN__ASKED_NOTHING,
                    CAIRN__ASKED_SUSPEND,
                    CAIRN__ASKED_TERMINATE,
                    CAIRN__ASKED_KILL
};

enum cairn__deciding { /* who says what becomes of a failed run */
                       CAIRN__DECIDED,
                       CAIRN__BY_HANDLER, /* OtherRecoveryAction */
                       CAIRN__BY_POLICY   /* decisions */
};

struct cairn__job {
  struct cairn__entry entry;
  struct cairn__job *awake_prev, *awake_next; /* roster.h */
  char instance_id[48];
  char *name;
  struct cairn__details *details;
  const struct cairn__kind *kind; /* NULL: a task ("run") */
  char *spec; /* checked; compact JSON, as the store has it */
  struct cairn__settings settings;

  struct cairn__queue *queue;
  struct cairn__directory *directory; /* what is written into, or NULL */
  struct cairn__directory *taken; /* by a simulated run, which has no work */
  struct cairn__job_heap *heap;   /* the queue's, the directory's, NULL */
  uint32_t heap_index;
  int64_t eligible_us; /* monotonic: since when it could start */

  struct cairn__timer schedule; /* for the next time to start */
  struct cairn__timer until;    /* UntilTime */
  struct cairn__timer control;  /* TimeoutPeriod; when final: removal */

  int64_t submitted_us, changed_us, started_us; /* Unix */
  int64_t executing_since_us; /* monotonic; of the part not yet in elapsed */
  int64_t elapsed_us, finished_us; /* monotonic */

  uint64_t policy_version; /* of the file that it is from; 0: none */
  uint64_t run_version;    /* the same when its last attempt began */

  struct cairn__job_due due;
  int64_t retry_us; /* monotonic: backing off until then */

  struct cairn__work *work; /* live and not a task */
  uint64_t bytes_total, bytes_done;
  double rate, eta; /* negative: unknown */
  json_t *warnings; /* of the last run, or NULL */
  json_t *report;
  /* both as JSON, in a job that has slept, until cairn__job_unfold() */
  char *folded_warnings, *folded_report;
  struct cairn__failure *failure;
  unsigned char point[16]; /* ReferencePointGroupId of the last run */

  struct cairn__job *touched_prev, *touched_next; /* store.h */

  uint32_t run_number, runs_succeeded;
  uint32_t attempts; /* at the last run */
  uint32_t epoch;    /* of the last run: how often it was begun, from 1 */
  uint32_t lost_warnings;
  uint16_t state; /* assigned by cairn__job_set_state alone */
  uint16_t error_id, percent;
  uint16_t deadline_state; /* what a TimeoutPeriod waits for */
  uint8_t recovery_action, has_recovery_action;
  uint8_t gap, overlap, catch_up; /* 1 + position in the value map; 0 null */
  uint8_t asked;                  /* enum cairn__asked */
  uint8_t touched;                /* enum cairn__touched */
  uint8_t has_changed, is_once, is_volatile, is_held, is_start_asked, is_live;
  uint8_t has_slot, is_executing, is_until_passed, is_removable;
  uint8_t is_backing_off;  /* the last run has failed and will be tried again */
  uint8_t is_on_demand;    /* "held": between its runs a client holds it */
  uint8_t is_recovering;   /* it runs, or will, for a job that has failed */
  uint8_t is_beyond_until; /* its run began at the last moment of UntilTime,
                              which does not end it */
  uint8_t has_ended;       /* a run has ended since the last Starting */
  uint8_t is_last_well;    /* and it ended well */
  uint8_t is_interrupted;  /* its last run was on when an engine ended; it is
                              begun again, as the same run */
  uint8_t is_deciding; /* enum cairn__deciding: it has failed, and the embedding
                          program says what becomes of that; it backs off
                          meanwhile, until no time */
  uint8_t misses_code; /* what its body or its decisions need; it waits */
  uint8_t is_stray;    /* held because its policy has it no more */
  uint8_t is_closing;  /* asked to suspend by cairn_engine_close(): nobody holds
                           it, the next engine goes on */
};

/* ---- kinds ---- */

/* 1 when the embedding program has the bodies of its runs: a "run" job, or any
 * in a simulation. */
int cairn__job_is_task(const struct cairn_engine *e,
                       const struct cairn__job *j);
/* The kind of this name, or NULL. */
const struct cairn__kind *cairn__kind_find(const char *name);
/* Adds one, for tests; before an engine is open. */
void cairn__kind_register(const struct cairn__kind *kind);

/* ---- submit.c ---- */

/* A job from its specification, not yet known to the engine. NULL: err. */
struct cairn__job *cairn__job_make(struct cairn_engine *e, json_t *spec,
                                   struct cairn_error *err);

/* One that nothing knows, in the state New; NULL: out of memory. */
struct cairn__job *cairn__job_blank(void);
/* Makes one of this memory. */
void cairn__job_init(struct cairn__job *j);
/* Its kind, directory and queue, when it comes from a store. A kind that this
 * build lacks becomes one whose runs say so, a queue that the engine was not
 * opened with is made. */
int cairn__job_place(struct cairn_engine *e, struct cairn__job *j,
                     const char *kind, const char *queue, const json_t *spec,
                     struct cairn_error *err);
/* Its specification as a value, which lives until the next call for another
 * job, or until the job is freed or gets another. NULL: out of memory. */
const json_t *cairn__job_spec(struct cairn_engine *e,
                              const struct cairn__job *j);
/* Nobody may have the value of that job any more; NULL: of any. */
void cairn__job_forget_spec(struct cairn_engine *e, const struct cairn__job *j);
/* A value of its own, which the caller frees. NULL: out of memory. */
json_t *cairn__job_copy_spec(const struct cairn__job *j);
/* The engine knows it from now on. There must be room (cairn__engine_reserve).
 */
void cairn__job_link(struct cairn_engine *e, struct cairn__job *j,
                     uint64_t serial);

/* ---- job.c: the state machine ---- */

/* The error of its last run; the text is left out without memory. */
void cairn__job_set_error(struct cairn__job *j,
                          const struct cairn_error *error);
/* Once it was read from a store: one whose run was on is interrupted, one that
 * was asked to end has ended, any other waits for what it waited for.
 * There must be room for events. -1: out of memory. */
int cairn__job_revive(struct cairn_engine *e, struct cairn__job *j,
                      struct cairn_error *err);

/* The one writer of JobState. There must be room for an event. */
void cairn__job_set_state(struct cairn_engine *e, struct cairn__job *j,
                          int state);
/* Frees a job that no list, table, heap or timer knows any more. */
void cairn__job_free(struct cairn_engine *e, struct cairn__job *j);
void cairn__job_remove(struct cairn_engine *e, struct cairn__job *j);
/* Settles where an idle job belongs: queued, waiting, held, or done. Called
 * after whatever could change the answer; does nothing to a live job. */
void cairn__job_reconsider(struct cairn_engine *e, struct cairn__job *j);
/* Brings timers and place in line with settings that have just changed; with
 * another calendar what was due by the old one is forgotten. */
void cairn__job_settings_changed(struct cairn_engine *e, struct cairn__job *j,
                                 int is_calendar_new);
/* The job has come to the head of its queue: Starting, Running. */
void cairn__job_start(struct cairn_engine *e, struct cairn__job *j);
/* A notice of a run came in; takes over the reference to the run. */
void cairn__job_notice(struct cairn_engine *e, struct cairn__run *run,
                       unsigned notices);
void cairn__job_timer(struct cairn_engine *e, struct cairn__timer *timer);
/* The run is over. `error` with id CAIRN_OK: well. */
void cairn__job_run_ended(struct cairn_engine *e, struct cairn__job *j,
                          const struct cairn_error *error);
void cairn__job_parked(struct cairn_engine *e, struct cairn__job *j);
/* Makes values of what it has as text; -1: out of memory. */
int cairn__job_unfold(struct cairn__job *j);
/* Adds a warning to the run that is on. */
void cairn__job_warn(struct cairn_engine *e, struct cairn__job *j,
                     const char *message);
/* Takes new values of progress from the threads. */
void cairn__work_sample(struct cairn_engine *e);
void cairn__job_set_percent(struct cairn_engine *e, struct cairn__job *j,
                            unsigned percent);
/* Asks the job to end as cairn_engine_close() was told. */
void cairn__job_close(struct cairn_engine *e, struct cairn__job *j);
/* One of the words of the value map "phase", as a number of that map. */
int cairn__job_phase(const struct cairn__job *j);
int cairn__job_has_runs_left(const struct cairn__job *j);
/* The handler that a job with RecoveryAction Other waits for, or NULL. */
const char *cairn__job_handler(const struct cairn__job *j);
/* The name of the body that a task needs, or of the decisions that a job needs,
 * and that the embedding program has not said to have (cairn_code_add); NULL:
 * none. */
const char *cairn__job_missing_code(const struct cairn_engine *e,
                                    const struct cairn__job *j);

/* ---- settings.c ---- */

void cairn__settings_init(struct cairn__settings *s);
/* Puts one value in, checked; notify is fresh memory then, the old one is left
 * alone. */
int cairn__settings_apply(struct cairn_engine *e, struct cairn__settings *s,
                          const struct cairn_property_info *p,
                          const struct cairn_value *value,
                          struct cairn_error *err);
/* They name the same times, but for UntilTime and JobRunTimes. */
int cairn__settings_same_calendar(const struct cairn__settings *a,
                                  const struct cairn__settings *b);
/* A string for a property: valid UTF-8, no NUL, not too long. */
int cairn__text_check(const struct cairn_property_info *p, const char *text,
                      size_t length, struct cairn_error *err);
/* A label or number of a property with a value map. */
int cairn__number_from(const struct cairn_property_info *p,
                       const struct cairn_value *value, int64_t *out,
                       struct cairn_error *err);
int cairn__value_from_json(const json_t *json, const char *name,
                           struct cairn_value *out, struct cairn_error *err);

/* ---- property.c ---- */

/* The message of the job's error, NULL when it has none. */
const char *cairn__job_message(const struct cairn__job *j);
/* An object or array; duplicates are refused. `what` begins the message. */
json_t *cairn__json_parse(const char *what, const char *text, size_t length,
                          struct cairn_error *err);
/* The same in a region, or NULL. */
json_t *cairn__json_parse_in(struct cairn__json_region *region,
                             const char *what, const char *text, size_t length,
                             struct cairn_error *err);
/* Prints a value and drops it; NULL: out of memory. The caller frees *out. */
int cairn__json_give(json_t *json, char **out, struct cairn_error *err);

#endif
