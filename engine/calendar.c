/* calendar.c: see calendar.h.
 *
 * Nominal times come in order, at least a day apart, and the first instant of
 * a reading never falls as the reading rises. So the next time due is that of
 * the first nominal time beyond all the clock has shown up to now: one step of
 * the calendar and two searches in the zone. Only what `gap` and `overlap`
 * move about makes it necessary to look at the neighbours. */
#include "calendar.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "datetime.h"
#include "error.h"

#define DAY_US INT64_C(86400000000)
/* 0000-01-01, and the last microsecond of 9999 */
#define FIRST_US INT64_C(-62167219200000000)
#define LAST_US  INT64_C(253402300799999999)
/* After 400 years all dates have the same weekdays again. */
#define SEARCH_US (INT64_C(146097) * DAY_US)
/* All instants of a reading lie within less than this: offsets are below 26
 * hours. */
#define SPREAD_US (5 * DAY_US)

static const char *const kinds[] = {"normal", "gap", "overlap"};

const char *cairn__due_kind(int kind)
{
  return kinds[kind];
}

/* ---- dates -----------------------------------------------------------------
 */

static int64_t floor_divide(int64_t a, int64_t b)
{
  return a / b - (a % b < 0);
}

static int modulo(int64_t a, int b)
{
  return (int)(a % b < 0 ? a % b + b : a % b);
}

static int has_day(const struct cairn__schedule *s)
{
  return (s->set & CAIRN__SCHEDULE_DAY) && s->day != 0;
}

static int has_weekday(const struct cairn__schedule *s)
{
  return (s->set & CAIRN__SCHEDULE_WEEKDAY) && s->weekday != 0;
}

/* The next day from `day` on that is the weekday, 1 Sunday to 7 Saturday;
 * 1970-01-01 was a Thursday. */
static int64_t weekday_from(int64_t day, int weekday)
{
  return day + modulo(weekday - 5 - day, 7);
}

/* The first date from `day` on without RunDay. */
static int64_t next_free(const struct cairn__schedule *s, int64_t day)
{
  int weekday = !has_weekday(s) ? 0 : s->weekday < 0 ? -s->weekday : s->weekday;
  int64_t found = weekday ? weekday_from(day, weekday) : day, year;
  int month, date;
  if (!(s->set & CAIRN__SCHEDULE_MONTH))
    return found;
  cairn__date_from_days(day, &year, &month, &date);
  if (month == s->month + 1 &&
      date + (found - day) <= cairn__days_in_month(year, month))
    return found;
  day = cairn__days_from_date(year + (month > s->month), s->month + 1, 1);
  return weekday ? weekday_from(day, weekday) : day;
}

/* Steps through the months; 0 when RunDay is in none of 400 years. The weekday
 * may be up to six days from RunDay, months have their RunDay at least 28 days
 * apart: dates come in the order of the months. */
static int next_anchored(const struct cairn__schedule *s, int64_t day,
                         int64_t *found)
{
  int weekday = has_weekday(s) ? s->weekday : 0;
  int is_yearly = (s->set & CAIRN__SCHEDULE_MONTH) != 0;
  int64_t year;
  int month, date;
  cairn__date_from_days(weekday > 0 ? day - 6 : day, &year, &month, &date);
  if (is_yearly) {
    year += month > s->month + 1;
    month = s->month + 1;
  }
  for (int i = 0; i < 12 * 401; i++) {
    int length = cairn__days_in_month(year, month);
    date = s->day > 0 ? s->day : length + 1 + s->day;
    if (date >= 1 && date <= length) {
      *found = cairn__days_from_date(year, month, date);
      if (weekday > 0)
        *found = weekday_from(*found, weekday);
      else if (weekday < 0)
        *found = weekday_from(*found - 6, -weekday);
      if (*found >= day)
        return 1;
    }
    if (is_yearly || ++month > 12)
      year++;
    if (month > 12)
      month = 1;
  }
  return 0;
}

/* The first nominal time after a reading. */
static int next_nominal(const struct cairn__schedule *s, int64_t local_us,
                        int64_t *nominal_us)
{
  int64_t start = s->set & CAIRN__SCHEDULE_START ? s->start_us : 0;
  int64_t day = floor_divide(local_us - start, DAY_US) + 1;
  if (!has_day(s))
    day = next_free(s, day);
  else if (!next_anchored(s, day, &day))
    return 0;
  *nominal_us = day * DAY_US + start;
  return *nominal_us <= LAST_US;
}

/* ---- the next run
 * ------------------------------------------------------------ */

static const struct cairn__zone *zone_of(const struct cairn__schedule *s)
{
  return s->local_or_utc == 2 || s->zone == NULL ? cairn__zone_utc() : s->zone;
}

static int kind_of(const struct cairn__reading *r)
{
  return r->is_gap       ? CAIRN__DUE_GAP
         : r->is_overlap ? CAIRN__DUE_OVERLAP
                         : CAIRN__DUE_NORMAL;
}

static void add_nominal(struct cairn__due *due, int64_t nominal_us)
{
  if (due->nominal_count < CAIRN__NOMINAL_MAX)
    due->nominal_us[due->nominal_count++] = nominal_us;
}

static void set_due(struct cairn__due *due, int64_t unix_us, int kind,
                    int64_t nominal_us)
{
  due->unix_us = unix_us;
  due->kind = (uint8_t)kind;
  due->nominal_us[0] = nominal_us;
  due->nominal_count = 1;
}

static int next_first(const struct cairn__schedule *s,
                      const struct cairn__zone *zone, int64_t after_us,
                      struct cairn__due *out)
{
  struct cairn__reading r;
  int64_t nominal;
  if (!next_nominal(s, cairn__zone_reached(zone, after_us), &nominal))
    return 0;
  cairn__zone_find(zone, nominal, &r);
  set_due(out, r.first_us, kind_of(&r), nominal);
  /* Others in the same gap, and what the clock shows at its end. */
  while (r.is_gap && next_nominal(s, nominal, &nominal)) {
    cairn__zone_find(zone, nominal, &r);
    if (r.first_us != out->unix_us)
      break;
    add_nominal(out, nominal);
  }
  return 1;
}

/* The instants that the schedule makes of a reading, at most two. */
static int instants_of(const struct cairn__schedule *s,
                       const struct cairn__reading *r, int64_t out[2])
{
  if (r->is_gap) {
    out[0] = s->gap == CAIRN__GAP_SHIFT ? r->shift_us : r->first_us;
    return s->gap != CAIRN__GAP_SKIP;
  }
  out[0] = s->overlap == CAIRN__OVERLAP_LAST ? r->last_us : r->first_us;
  out[1] = r->last_us;
  return r->is_overlap && s->overlap == CAIRN__OVERLAP_BOTH ? 2 : 1;
}

static int next_moved(const struct cairn__schedule *s,
                      const struct cairn__zone *zone, int64_t after_us,
                      struct cairn__due *out)
{
  struct cairn__reading r;
  int64_t nominal = cairn__zone_reached(zone, after_us - SPREAD_US);
  int64_t end = nominal + SPREAD_US + SEARCH_US;
  int is_found = 0;
  while (next_nominal(s, nominal, &nominal) && nominal <= end) {
    int64_t at[2];
    cairn__zone_find(zone, nominal, &r);
    if (is_found && r.first_us > out->unix_us)
      break;
    for (int i = 0, n = instants_of(s, &r, at); i < n; i++) {
      if (at[i] <= after_us)
        continue;
      if (!is_found || at[i] < out->unix_us)
        set_due(out, at[i], kind_of(&r), nominal);
      else if (at[i] == out->unix_us)
        add_nominal(out, nominal);
      is_found = 1;
    }
  }
  return is_found;
}

int cairn__schedule_next(const struct cairn__schedule *s, int64_t after_us,
                         struct cairn__due *out)
{
  const struct cairn__zone *zone = zone_of(s);
  if ((s->run_times > 0 && s->runs_done >= s->run_times) || after_us >= LAST_US)
    return 0;
  if (after_us < FIRST_US)
    after_us = FIRST_US;
  int is_plain =
      s->gap == CAIRN__GAP_FIRST && s->overlap == CAIRN__OVERLAP_FIRST;
  if (!(is_plain ? next_first(s, zone, after_us, out)
                 : next_moved(s, zone, after_us, out)) ||
      ((s->set & CAIRN__SCHEDULE_UNTIL) && out->unix_us > s->until_us))
    return 0;
  out->offset_us = cairn__zone_offset_us(zone, out->unix_us);
  return 1;
}

/* ---- what was missed
 * ----------------------------------------------------------- */

void cairn__schedule_catch_up(const struct cairn__schedule *s, int mode,
                              int64_t from_us, int64_t until_us,
                              struct cairn__due *runs, size_t maximum,
                              cairn__skipped_fn skipped, void *context,
                              struct cairn__missed *out)
{
  struct cairn__due due;
  uint64_t count = 0, left = UINT64_MAX, i = 0;
  const char *reason =
      mode == CAIRN__CATCH_UP_NONE     ? "missed, and catch_up is \"none\""
      : mode == CAIRN__CATCH_UP_LATEST ? "missed; a later run is caught up "
                                         "instead (catch_up is \"latest\")"
                                       : "missed; more than are caught up";
  for (int64_t t = from_us; cairn__schedule_next(s, t, &due); count++) {
    t = due.unix_us;
    if (t > until_us)
      break;
  }
  if (s->run_times > 0)
    left = s->runs_done < s->run_times ? s->run_times - s->runs_done : 0;
  if (mode == CAIRN__CATCH_UP_LATEST && left > 1)
    left = 1;
  if (mode == CAIRN__CATCH_UP_NONE)
    left = 0;
  if (left > maximum)
    left = maximum;
  if (left > count)
    left = count;
  *out = (struct cairn__missed){count, (size_t)left};
  if (skipped == NULL && left == 0)
    return;
  for (int64_t t = from_us; i < count && cairn__schedule_next(s, t, &due);
       i++) {
    t = due.unix_us;
    if (i >= count - left)
      runs[i - (count - left)] = due;
    else if (skipped != NULL)
      skipped(context, &due, reason);
  }
}

/* ---- checking
 * --------------------------------------------------------------------- */

static const char *label_of(int property, int64_t value)
{
  return cairn_value_label(cairn_property_at((size_t)property - 1), value);
}

static int check_ranges(const struct cairn__schedule *s,
                        struct cairn_error *err)
{
  if ((s->set & CAIRN__SCHEDULE_MONTH) && s->month > 11)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "RunMonth is %d, valid: 0 to 11 (0 is January)",
                       s->month);
  if ((s->set & CAIRN__SCHEDULE_DAY) && (s->day < -31 || s->day > 31))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "RunDay is %d, valid: -31 to 31", s->day);
  if ((s->set & CAIRN__SCHEDULE_WEEKDAY) && (s->weekday < -7 || s->weekday > 7))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "RunDayOfWeek is %d, valid: -7 to 7", s->weekday);
  if ((s->set & CAIRN__SCHEDULE_START) &&
      (s->start_us < 0 || s->start_us > CAIRN__INTERVAL_MAX))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "RunStartInterval is out of range; valid: 0 to "
                       "99999999 days");
  if (s->local_or_utc > 2)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "LocalOrUtcTime is %d, valid: 1 (local) and 2 (UTC)",
                       s->local_or_utc);
  if (s->gap > CAIRN__GAP_SKIP || s->overlap > CAIRN__OVERLAP_BOTH)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "gap or overlap is out of range");
  return 0;
}

/* A day that the month has in no year. */
static int check_day(int month, int day, struct cairn_error *err)
{
  int most = cairn__days_in_month(2000, month + 1); /* a leap year */

  if (day >= -most && day <= most)
    return 0;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "RunDay %d with RunMonth %s never comes: that month has "
                     "at most %d days",
                     day, label_of(CAIRN_PROPERTY_RunMonth, month), most);
}

int cairn__schedule_check(const struct cairn__schedule *s, int64_t now_us,
                          char *warning, size_t warning_size,
                          struct cairn_error *err)
{
  struct cairn__schedule endless = *s;
  struct cairn__due due;

  cairn__error_clear(err);
  if (warning_size > 0)
    warning[0] = '\0';
  if (check_ranges(s, err) != 0)
    return -1;
  if (!(s->set & (CAIRN__SCHEDULE_MONTH | CAIRN__SCHEDULE_DAY |
                  CAIRN__SCHEDULE_WEEKDAY | CAIRN__SCHEDULE_START)))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "a schedule needs one of RunMonth, RunDay, RunDayOfWeek "
                       "and RunStartInterval");
  if ((s->set & CAIRN__SCHEDULE_MONTH) && has_day(s) &&
      check_day(s->month, s->day, err) != 0)
    return -1;
  endless.set &= (uint8_t)~CAIRN__SCHEDULE_UNTIL;
  endless.run_times = 0;
  if (now_us < LAST_US - SEARCH_US &&
      !cairn__schedule_next(&endless, now_us, &due))
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT,
        s->gap == CAIRN__GAP_SKIP
            ? "the schedule never comes: its times lie in gaps of the local "
              "clock (zone \"%s\"), and gap is \"skip\""
            : "the schedule never comes (zone \"%s\")",
        cairn__zone_name(zone_of(s)));
  if (has_day(s) && s->day < 0 && s->day > -7 && has_weekday(s) &&
      s->weekday > 0 && warning_size > 0)
    snprintf(warning, warning_size,
             "RunDay %d with RunDayOfWeek %s means the first one on or after "
             "that day, often in the next month; -%s is the last one on or "
             "before it",
             s->day, label_of(CAIRN_PROPERTY_RunDayOfWeek, s->weekday),
             label_of(CAIRN_PROPERTY_RunDayOfWeek, s->weekday));
  return 0;
}
