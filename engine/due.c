/* due.c: see due.h. */
#include "due.h"

#include <string.h>

#include "engine.h"
#include "error.h"
#include "job.h"
#include "memory.h"

/* ---- zones ---- */

struct cairn__zone_entry {
  struct cairn__zone_entry *next;
  struct cairn__zone *zone;
  uintptr_t number;
  char name[]; /* as it was asked for; "" is the host's */
};

/* A million jobs have a few zones. */
int cairn__engine_zone(struct cairn_engine *e, const char *name,
                       const struct cairn__zone **out, struct cairn_error *err)
{
  struct cairn__zone_entry *z;
  struct cairn_error why;

  for (z = e->zones; z && strcmp(z->name, name) != 0;)
    z = z->next;
  if (!z) {
    z = cairn__malloc(sizeof *z + strlen(name) + 1);
    if (!z)
      return cairn__fail_memory(err);
    memcpy(z->name, name, strlen(name) + 1);
    cairn__error_clear(&why);
    if (cairn__zone_load(name, &z->zone, &why) != 0) {
      cairn__free(z);
      return cairn__fail(err, why.id, "zone: %s", why.message);
    }
    z->number = e->zones ? e->zones->number + 1 : 1;
    z->next = e->zones;
    e->zones = z;
  }
  *out = z->zone;
  return 0;
}

uintptr_t cairn__zone_number(const struct cairn_engine *e,
                             const struct cairn__zone *zone)
{
  const struct cairn__zone_entry *z = e->zones;

  while (z->zone != zone)
    z = z->next;
  return z->number;
}

const struct cairn__zone *cairn__zone_of_number(const struct cairn_engine *e,
                                                uintptr_t number)
{
  const struct cairn__zone_entry *z = e->zones;

  while (z->number != number)
    z = z->next;
  return z->zone;
}

void cairn__zones_free(struct cairn_engine *e)
{
  while (e->zones) {
    struct cairn__zone_entry *z = e->zones;

    e->zones = z->next;
    cairn__zone_free(z->zone);
    cairn__free(z);
  }
}

/* ---- from settings to a schedule ---- */

struct cairn__schedule cairn__due_schedule(const struct cairn_engine *e,
                                           const struct cairn__job *j,
                                           const struct cairn__settings *s,
                                           const struct cairn__zone *zone)
{
  struct cairn__schedule out = {
      .zone = zone,
      .start_us = s->start_interval.microseconds,
      .local_or_utc = s->set & CAIRN__SET_LOCAL_OR_UTC ? s->local_or_utc : 0,
      .month = s->month,
      .day = s->day,
      .weekday = s->day_of_week,
      /* 0 is null, which is the first of the labels */
      .gap = j->gap ? j->gap - 1 : CAIRN__GAP_FIRST,
      .overlap = j->overlap ? j->overlap - 1 : CAIRN__OVERLAP_FIRST,
  };

  if (s->set & CAIRN__SET_MONTH)
    out.set |= CAIRN__SCHEDULE_MONTH;
  if (s->set & CAIRN__SET_DAY)
    out.set |= CAIRN__SCHEDULE_DAY;
  if (s->set & CAIRN__SET_DAY_OF_WEEK)
    out.set |= CAIRN__SCHEDULE_WEEKDAY;
  if (s->set & CAIRN__SET_START_INTERVAL)
    out.set |= CAIRN__SCHEDULE_START;
  if ((s->set & CAIRN__SET_UNTIL) && s->until.kind != CAIRN_NEVER) {
    out.set |= CAIRN__SCHEDULE_UNTIL;
    out.until_us = s->until.microseconds;
    if (s->until.kind == CAIRN_INTERVAL &&
        __builtin_add_overflow(s->until.microseconds - cairn__monotonic(e),
                               cairn__wall(e), &out.until_us))
      out.until_us = INT64_MAX;
  }
  return out;
}

/* The instant that ScheduledStartTime names: nothing is due before it. */
static int64_t not_before(const struct cairn_engine *e,
                          const struct cairn__settings *s)
{
  const struct cairn_datetime *t = &s->scheduled;
  int64_t us;

  if (!(s->set & CAIRN__SET_SCHEDULED))
    return INT64_MIN;
  if (t->kind != CAIRN_INTERVAL)
    return t->microseconds;
  return __builtin_add_overflow(t->microseconds - cairn__monotonic(e),
                                cairn__wall(e), &us)
             ? INT64_MAX
             : us;
}

int cairn__due_check(struct cairn_engine *e, const struct cairn__job *j,
                     const struct cairn__settings *s, const char *zone_name,
                     const struct cairn__zone **zone, struct cairn_error *err)
{
  struct cairn__schedule schedule;
  struct cairn_error why;
  int64_t begin;

  *zone = NULL;
  if (!(s->set & CAIRN__SET_CALENDAR))
    return 0;
  if (cairn__engine_zone(e, zone_name ? zone_name : "", zone, err) != 0)
    return -1;
  schedule = cairn__due_schedule(e, j, s, *zone);
  begin = not_before(e, s);
  if (begin < cairn__wall(e))
    begin = cairn__wall(e);
  if (cairn__schedule_check(&schedule, begin, NULL, 0, &why) == 0) {
    if (j->is_once)
      *zone = NULL; /* checked, not followed */
    return 0;
  }
  if (err)
    *err = why;
  return -1;
}

/* ---- as time passes ---- */

int cairn__due_is_allowed(const struct cairn_engine *e,
                          const struct cairn__job *j)
{
  struct cairn__schedule s =
      cairn__due_schedule(e, j, &j->settings, j->due.zone);

  return j->due.next_us != CAIRN__NEVER_US &&
         (!(s.set & CAIRN__SCHEDULE_UNTIL) || j->due.next_us <= s.until_us);
}

/* Computes the next time anew. */
static void find_next(struct cairn_engine *e, struct cairn__job *j)
{
  struct cairn__schedule s =
      cairn__due_schedule(e, j, &j->settings, j->due.zone);
  int64_t after = j->due.after_us, begin = not_before(e, &j->settings);
  struct cairn__due due;

  s.set &= (uint8_t)~CAIRN__SCHEDULE_UNTIL;
  if (begin > after)
    after = begin - 1;
  j->due.has_come = 0;
  j->due.next_us = j->due.zone && cairn__schedule_next(&s, after, &due)
                       ? due.unix_us
                       : CAIRN__NEVER_US;
}

void cairn__due_begin(struct cairn_engine *e, struct cairn__job *j)
{
  j->due.after_us = cairn__wall(e);
  find_next(e, j);
}

void cairn__due_revive(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->due.has_come || !j->due.zone)
    find_next(e, j);
}

struct skipping {
  int64_t first_us, last_us;
  uint64_t count;
};

static void note_skipped(void *context, const struct cairn__due *due,
                         const char *reason)
{
  struct skipping *s = context;

  (void)reason;
  if (s->count++ == 0)
    s->first_us = due->unix_us;
  s->last_us = due->unix_us;
}

static void tell_skipped(struct cairn_engine *e, struct cairn__job *j,
                         const struct skipping *s, enum cairn__skip why)
{
  struct cairn_event *event;

  if (s->count == 0)
    return;
  event = cairn__event_push(e, CAIRN_EVENT_SKIPPED, j);
  event->due = s->first_us;
  event->due_last = s->last_us;
  event->count = s->count < UINT32_MAX ? (uint32_t)s->count : UINT32_MAX;
  event->code = (uint16_t)why;
  cairn__history_skipped(e, j, event);
}

/* From when on times are looked for: what lies before ScheduledStartTime is
 * not due, hence not missed either. */
static int64_t looked_at_from(const struct cairn__job *j)
{
  return j->due.next_us - 1 > j->due.after_us ? j->due.next_us - 1
                                              : j->due.after_us;
}

/* Settles what is due up to `now`, but for what is to be run, of which the
 * first becomes the next. 1 when there is one. */
static int settle(struct cairn_engine *e, struct cairn__job *j, int mode,
                  enum cairn__skip why, int64_t now)
{
  struct cairn__schedule s =
      cairn__due_schedule(e, j, &j->settings, j->due.zone);
  struct cairn__due runs[CAIRN__CATCH_UP_MAX];
  struct skipping skipping = {0};
  struct cairn__missed missed;

  s.run_times = j->settings.run_times;
  s.runs_done = j->run_number;
  cairn__schedule_catch_up(&s, mode, looked_at_from(j), now, runs,
                           CAIRN__CATCH_UP_MAX, note_skipped, &skipping,
                           &missed);
  tell_skipped(e, j, &skipping, why);
  if (missed.to_run == 0) {
    j->due.after_us = now > j->due.after_us ? now : j->due.after_us;
    find_next(e, j);
    return 0;
  }
  j->due.after_us = runs[0].unix_us - 1;
  j->due.next_us = runs[0].unix_us;
  return 1;
}

static int catch_up_mode(const struct cairn__job *j)
{
  return j->catch_up ? j->catch_up - 1 : CAIRN__CATCH_UP_LATEST;
}

/* Exactly one time has come, and just now. */
static int is_in_time(struct cairn_engine *e, struct cairn__job *j, int64_t now)
{
  struct cairn__schedule s =
      cairn__due_schedule(e, j, &j->settings, j->due.zone);
  struct cairn__due due;

  return now - j->due.next_us <= CAIRN__LATE_US &&
         !(cairn__schedule_next(&s, j->due.next_us, &due) &&
           due.unix_us <= now);
}

int cairn__due_has_come(struct cairn_engine *e, struct cairn__job *j)
{
  int64_t now = cairn__wall(e);
  int has_come;

  if (j->due.has_come) /* and waits for its turn */
    return 1;
  if (j->due.next_us > now || !cairn__due_is_allowed(e, j))
    return 0;
  has_come = is_in_time(e, j, now) ||
             settle(e, j, catch_up_mode(j), CAIRN__SKIP_CATCH_UP, now);
  j->due.has_come = (uint8_t)has_come;
  return has_come;
}

void cairn__due_skip(struct cairn_engine *e, struct cairn__job *j,
                     enum cairn__skip why)
{
  int64_t now = cairn__wall(e);

  if (j->due.has_come && j->due.next_us > now)
    now = j->due.next_us; /* the clock was set back */
  if (j->due.next_us > now ||
      (why == CAIRN__SKIP_ACTIVE && catch_up_mode(j) == CAIRN__CATCH_UP_ALL))
    return;
  settle(e, j, CAIRN__CATCH_UP_NONE, why, now);
}

void cairn__due_run(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->due.has_come && j->due.next_us > cairn__wall(e)) {
    j->due.run_us = CAIRN__NEVER_US;
    return;
  }
  j->due.run_us = j->due.after_us = j->due.next_us;
  find_next(e, j);
}
