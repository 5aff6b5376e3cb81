/* The calendar of a job: when RunMonth, RunDay, RunDayOfWeek and
 * RunStartInterval make it due.
 *
 * A date that these name, with the time of day, is nominal: a reading of the
 * local clock. A run is due at the first instant at which the clock reads that
 * or later, counting only the first time it gets there. So what falls into a
 * gap is due at its end, what is shown twice is due once, and a month that
 * lacks the day is skipped. `gap` and `overlap` can say otherwise.
 *
 * All times are microseconds: instants are Unix time, nominal times are the
 * clock's face as if it were UTC. Nothing here allocates, and all functions
 * may be called in any thread; the zone is borrowed. */
#ifndef CAIRN_CALENDAR_H
#define CAIRN_CALENDAR_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"
#include "cim.h"
#include "zone.h"

/* Which properties are set; one that is not constrains nothing. */
enum {
  CAIRN__SCHEDULE_MONTH = 1,
  CAIRN__SCHEDULE_DAY = 2, /* RunDay 0 is as if not set */
  CAIRN__SCHEDULE_WEEKDAY = 4,
  CAIRN__SCHEDULE_START = 8,
  CAIRN__SCHEDULE_UNTIL = 16,
};

/* CAIRN__GAP_FIRST, CAIRN__OVERLAP_LAST, CAIRN__CATCH_UP_ALL, ...: cim.h. */
enum { CAIRN__DUE_NORMAL, CAIRN__DUE_GAP, CAIRN__DUE_OVERLAP };

struct cairn__schedule {
  const struct cairn__zone *zone; /* of local time; NULL is UTC */
  int64_t start_us;               /* RunStartInterval; days move the date */
  int64_t until_us;               /* UntilTime, the last instant allowed */
  uint32_t run_times, runs_done;  /* JobRunTimes: 0 is no limit */
  uint16_t local_or_utc;          /* 2: the zone is ignored; 0 is local */
  uint8_t set;
  uint8_t month;  /* 0 to 11 */
  int8_t day;     /* 1 to 31, -1 is the last of the month */
  int8_t weekday; /* 1 is Sunday; on or after, negative on or before */
  uint8_t gap, overlap;
};

#define CAIRN__NOMINAL_MAX 4

struct cairn__due {
  int64_t unix_us;
  int64_t offset_us; /* what the local clock adds to UTC then */
  /* The nominal times that are due, rising; more than one when a gap swallowed
   * several. */
  int64_t nominal_us[CAIRN__NOMINAL_MAX];
  uint8_t nominal_count;
  uint8_t kind; /* of the first of them */
};

/* "normal", "gap" or "overlap". */
const char *cairn__due_kind(int kind);

/* Whether the schedule is one: 0, or -1 with OUT_OF_RANGE for a value beyond
 * its range, and INVALID_ARGUMENT for none of the four set and for what never
 * comes after `now_us`. UntilTime and JobRunTimes may be reached: that ends a
 * schedule and is no mistake. Where it is likely to mean something else than
 * it says, `warning` gets a text, else "". */
int cairn__schedule_check(const struct cairn__schedule *s, int64_t now_us,
                          char *warning, size_t warning_size,
                          struct cairn_error *err);

/* The first time due strictly after an instant: 1, or 0 when none is left:
 * because of UntilTime, JobRunTimes, the end of the year 9999, or none within
 * 400 years. Calling it with what it returned gives rising times. It does not
 * count runs: who lists several adds to runs_done in between. */
int cairn__schedule_next(const struct cairn__schedule *s, int64_t after_us,
                         struct cairn__due *out);

struct cairn__missed {
  uint64_t count; /* all that were due */
  size_t to_run;  /* how many of them are to be run now */
};

/* Called for each missed time that is not to be run, in order; the reason is a
 * static text. */
typedef void (*cairn__skipped_fn)(void *context, const struct cairn__due *due,
                                  const char *reason);

/* What is to be done about the times due after `from_us` and not after
 * `until_us`, through which nothing could run: they are the latest `maximum` of
 * them at most (CATCH_UP_ALL), one (LATEST) or none (NONE), and never more than
 * JobRunTimes leaves. `runs` has room for `maximum` and gets them in order;
 * `skipped` may be NULL. */
void cairn__schedule_catch_up(const struct cairn__schedule *s, int mode,
                              int64_t from_us, int64_t until_us,
                              struct cairn__due *runs, size_t maximum,
                              cairn__skipped_fn skipped, void *context,
                              struct cairn__missed *out);

#endif
