/* When a job with a calendar is due: the calendar (calendar.h) applied to a job
 * as time passes, and what becomes of the times at which it could not run.
 *
 * A job has settled every due time up to due.after_us: it ran for it, or the
 * time was skipped and an event says why. The next one is due.next_us. A time
 * that comes while the job waits makes it eligible; one that comes while a run
 * is on, waits in its queue or will be tried again is skipped when that run is
 * over; one that comes while a client holds the job is skipped when it is
 * released. So there are never two runs of one job at a time, and never one
 * that nobody can account for.
 *
 * When more than one time has passed, or one more than CAIRN__LATE_US ago, the
 * engine was not there (it was stopped, the host was asleep, somebody set the
 * clock), and catch_up says which of them are run. With "all", times that come
 * during a run are not skipped either.
 *
 * A clock that is set back repeats nothing: what is settled stays so. UntilTime
 * is looked at when a time comes, since it may be an interval and the clock may
 * be set. */
#ifndef CAIRN_DUE_H
#define CAIRN_DUE_H

#include <stdint.h>

#include "calendar.h"

struct cairn_engine;
struct cairn__job;
struct cairn__settings;

#define CAIRN__LATE_US      60000000
#define CAIRN__CATCH_UP_MAX 32 /* runs made up with catch_up "all" */

enum cairn__skip {
  CAIRN__SKIP_CATCH_UP, /* missed, and catch_up has it so */
  CAIRN__SKIP_ACTIVE,   /* the run before it was not over */
  CAIRN__SKIP_HELD,     /* a client held the job */
  CAIRN__SKIP_ENDED,    /* the job has ended before it could run */
  CAIRN__SKIP_QUEUED    /* it waited longer than MaxTimeOnQueue */
};

struct cairn__job_due {
  const struct cairn__zone *zone; /* the engine's; NULL: no calendar yet */
  int64_t after_us;               /* Unix: settled up to here */
  int64_t next_us;                /* the first one after that, or NEVER */
  int64_t run_us;   /* what the last run was due at, or NEVER: at no time */
  uint8_t has_come; /* next_us has, whatever the clock says by now */
};

/* The zone of this name, loaded once; "" is the host's. It lives as long as the
 * engine. */
int cairn__engine_zone(struct cairn_engine *e, const char *name,
                       const struct cairn__zone **out, struct cairn_error *err);
/* The zones are numbered in the order in which they were loaded, from 1. */
uintptr_t cairn__zone_number(const struct cairn_engine *e,
                             const struct cairn__zone *zone);
const struct cairn__zone *cairn__zone_of_number(const struct cairn_engine *e,
                                                uintptr_t number);
/* Checks settings that have a calendar and finds the zone of this name (NULL:
 * the host's). 0 with *zone; NULL when there is no calendar. */
int cairn__due_check(struct cairn_engine *e, const struct cairn__job *j,
                     const struct cairn__settings *s, const char *zone_name,
                     const struct cairn__zone **zone, struct cairn_error *err);
/* The schedule that these settings are; what they leave to JobRunTimes is the
 * job's business. */
struct cairn__schedule cairn__due_schedule(const struct cairn_engine *e,
                                           const struct cairn__job *j,
                                           const struct cairn__settings *s,
                                           const struct cairn__zone *zone);
/* The calendar counts from now on: the job is new, or was given another. */
void cairn__due_begin(struct cairn_engine *e, struct cairn__job *j);
/* After the job was loaded from a store: what it waits for next, by what its
 * zone says now. What had come already has come. */
void cairn__due_revive(struct cairn_engine *e, struct cairn__job *j);
/* 1 when the idle job is to run for a time that has come; times that are not
 * made up are skipped. Otherwise next_us is in the future or NEVER. */
int cairn__due_has_come(struct cairn_engine *e, struct cairn__job *j);
/* 1 when the next time is one that UntilTime allows. */
int cairn__due_is_allowed(const struct cairn_engine *e,
                          const struct cairn__job *j);
/* Skips what has come. There must be room for an event. */
void cairn__due_skip(struct cairn_engine *e, struct cairn__job *j,
                     enum cairn__skip why);
/* A run starts: for a time that has come, or because a client wants it. */
void cairn__due_run(struct cairn_engine *e, struct cairn__job *j);
/* Frees the zones. */
void cairn__zones_free(struct cairn_engine *e);

#endif
