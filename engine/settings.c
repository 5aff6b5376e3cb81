/* Writing a job's properties: each value checked on its own, all of them
 * together, then all or none.
 *
 * Writing works on a copy of the settings, which replaces them once every value
 * was accepted. Intervals that count from the moment of writing are kept as the
 * moment on the monotonic clock that they mean. */
#include "job.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "error.h"
#include "memory.h"
#include "store.h"

#define REMOVAL_DEFAULT_US INT64_C(300000000)
#define REMOVAL_MIN_US     INT64_C(1000000)
#define DAY_US             INT64_C(86400000000)
#define REMOVAL_FOR_EVER   (99999999 * DAY_US)

/* ---- checking what comes in ---- */

static const char *kind_word(const struct cairn_value *v)
{
  static const char *const words[] = {
      [CAIRN_VALUE_NULL] = "null",
      [CAIRN_VALUE_BOOLEAN] = "a boolean",
      [CAIRN_VALUE_INTEGER] = "an integer",
      [CAIRN_VALUE_REAL] = "a number with a fraction",
      [CAIRN_VALUE_STRING] = "a string",
      [CAIRN_VALUE_DATETIME] = "a datetime",
      [CAIRN_VALUE_INTEGER_ARRAY] = "an array",
      [CAIRN_VALUE_STRING_ARRAY] = "an array",
  };

  if (v->kind == CAIRN_VALUE_REAL && v->as.real == trunc(v->as.real))
    return "a number beyond all integers";
  return v->kind < sizeof words / sizeof words[0] ? words[v->kind] : "?";
}

static int wrong_type(const struct cairn_property_info *p,
                      const struct cairn_value *v, const char *expected,
                      struct cairn_error *err)
{
  return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be %s, not %s", p->name,
                     expected, kind_word(v));
}

int cairn__value_from_json(const json_t *json, const char *name,
                           struct cairn_value *out, struct cairn_error *err)
{
  *out = (struct cairn_value){0};
  switch (json_typeof(json)) {
  case JSON_NULL:
    return 0;
  case JSON_TRUE:
  case JSON_FALSE:
    out->kind = CAIRN_VALUE_BOOLEAN;
    out->as.boolean = json_is_true(json);
    return 0;
  case JSON_INTEGER:
    out->kind = CAIRN_VALUE_INTEGER;
    out->as.integer = json_integer_value(json);
    return 0;
  case JSON_REAL:
    out->kind = CAIRN_VALUE_REAL;
    out->as.real = json_real_value(json);
    return 0;
  case JSON_STRING:
    out->kind = CAIRN_VALUE_STRING;
    out->as.string = json_string_value(json);
    out->count = json_string_length(json);
    return 0;
  default:
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s must be a single value, not an %s", name,
                       json_is_array(json) ? "array" : "object");
  }
}

int cairn__text_check(const struct cairn_property_info *p, const char *text,
                      size_t length, struct cairn_error *err)
{
  size_t characters = 0;

  if (!cairn__utf8_is_valid(text, length))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s must be UTF-8 text without NUL bytes", p->name);
  for (size_t i = 0; i < length; i++)
    characters += ((unsigned char)text[i] & 0xc0) != 0x80;
  if (p->max_length > 0 && characters > p->max_length)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%s has %zu characters, valid: at most %u", p->name,
                       characters, p->max_length);
  return 0;
}

static void list_labels(const struct cairn_property_info *p, char *out,
                        size_t size)
{
  size_t used = 0;

  out[0] = '\0';
  for (size_t i = 0; i < p->value_count && used < size; i++) {
    int n = snprintf(out + used, size - used, "%s\"%s\"", i ? ", " : "",
                     p->values[i].label);

    used += n > 0 ? (size_t)n : 0;
  }
}

static void type_range(const struct cairn_property_info *p, int64_t *min,
                       int64_t *max)
{
  if (p->has_range) {
    *min = p->min;
    *max = p->max;
    return;
  }
  *min = p->type == CAIRN_TYPE_SINT8 ? INT8_MIN : 0;
  *max = p->type == CAIRN_TYPE_SINT8    ? INT8_MAX
         : p->type == CAIRN_TYPE_UINT8  ? UINT8_MAX
         : p->type == CAIRN_TYPE_UINT16 ? UINT16_MAX
         : p->type == CAIRN_TYPE_UINT32 ? UINT32_MAX
                                        : INT64_MAX;
}

int cairn__number_from(const struct cairn_property_info *p,
                       const struct cairn_value *v, int64_t *out,
                       struct cairn_error *err)
{
  int64_t min, max;
  char labels[512], shown[128];

  if (v->kind == CAIRN_VALUE_STRING && p->values) {
    if (strlen(v->as.string) == v->count &&
        cairn_value_number(p, v->as.string, out) == 0)
      return 0;
    list_labels(p, labels, sizeof labels);
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: \"%s\" is none of its labels; valid: %s", p->name,
                       cairn__printable(v->as.string, shown, sizeof shown),
                       labels);
  }
  if (v->kind == CAIRN_VALUE_REAL && v->as.real == trunc(v->as.real) &&
      fabs(v->as.real) < 9e15)
    *out = (int64_t)v->as.real;
  else if (v->kind == CAIRN_VALUE_INTEGER)
    *out = v->as.integer;
  else
    return wrong_type(p, v, p->values ? "an integer or a label" : "an integer",
                      err);
  type_range(p, &min, &max);
  if (*out < min || *out > max)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%s is %lld, valid: %lld to %lld", p->name,
                       (long long)*out, (long long)min, (long long)max);
  return 0;
}

static int datetime_from(const struct cairn_property_info *p,
                         const struct cairn_value *v,
                         struct cairn_datetime *out, struct cairn_error *err)
{
  struct cairn_error why;

  if (v->kind == CAIRN_VALUE_DATETIME) {
    *out = v->as.datetime;
    return 0;
  }
  if (v->kind != CAIRN_VALUE_STRING)
    return wrong_type(p, v, p->is_interval ? "an interval" : "a datetime", err);
  if (cairn_datetime_parse(v->as.string, v->count, out, &why) != 0)
    return cairn__fail(err, why.id, "%s: %s", p->name, why.message);
  return 0;
}

/* ---- settings ---- */

void cairn__settings_init(struct cairn__settings *s)
{
  *s = (struct cairn__settings){
      .removal_us = REMOVAL_DEFAULT_US,
      .removal_precision = 20,
      .run_times = 1,
      .set = CAIRN__SET_DELETE, /* false */
  };
}

static int apply_scheduled(struct cairn_engine *e, struct cairn__settings *s,
                           const struct cairn_property_info *p,
                           const struct cairn_value *v, struct cairn_error *err)
{
  struct cairn_datetime t;

  if (datetime_from(p, v, &t, err) != 0)
    return -1;
  if (t.kind == CAIRN_NEVER)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s must be a time, an interval from now on, zeros "
                       "(start now) or null",
                       p->name);
  s->set &= (uint16_t)~CAIRN__SET_SCHEDULED;
  s->is_start_now = 0;
  if (t.kind == CAIRN_ZERO || (t.kind == CAIRN_INTERVAL && !t.microseconds)) {
    s->is_start_now = 1;
    return 0;
  }
  if (t.kind == CAIRN_INTERVAL &&
      __builtin_add_overflow(t.microseconds, cairn__monotonic(e),
                             &t.microseconds))
    t.microseconds = INT64_MAX;
  s->scheduled = t;
  s->set |= CAIRN__SET_SCHEDULED;
  return 0;
}

static int apply_until(struct cairn_engine *e, struct cairn__settings *s,
                       const struct cairn_property_info *p,
                       const struct cairn_value *v, struct cairn_error *err)
{
  struct cairn_datetime t;

  if (datetime_from(p, v, &t, err) != 0)
    return -1;
  if (t.kind == CAIRN_ZERO)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s must be a time, an interval from now on, nines (for "
                       "ever) or null",
                       p->name);
  if (t.kind == CAIRN_INTERVAL &&
      (__builtin_add_overflow(t.microseconds, cairn__monotonic(e),
                              &t.microseconds) ||
       t.microseconds == INT64_MAX))
    t.microseconds = INT64_MAX - 1;
  s->until = t;
  s->set |= CAIRN__SET_UNTIL;
  return 0;
}

static int apply_removal(struct cairn__settings *s,
                         const struct cairn_property_info *p,
                         const struct cairn_value *v, struct cairn_error *err)
{
  struct cairn_datetime t;

  if (datetime_from(p, v, &t, err) != 0)
    return -1;
  if (t.kind == CAIRN_NEVER ||
      (t.kind == CAIRN_INTERVAL && t.microseconds >= REMOVAL_FOR_EVER)) {
    s->removal_us = CAIRN__NEVER_US;
    return 0;
  }
  if (t.kind != CAIRN_INTERVAL)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s must be an interval, such as "
                       "00000000000500.000000:000, or nines (for ever)",
                       p->name);
  s->removal_us = t.microseconds;
  s->removal_precision = t.precision;
  if (t.microseconds < REMOVAL_MIN_US) {
    s->removal_us = REMOVAL_MIN_US;
    s->removal_precision = 20;
  }
  return 0;
}

static int apply_start_interval(struct cairn__settings *s,
                                const struct cairn_property_info *p,
                                const struct cairn_value *v,
                                struct cairn_error *err)
{
  struct cairn_datetime t;

  if (datetime_from(p, v, &t, err) != 0)
    return -1;
  if (t.kind != CAIRN_INTERVAL)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s must be an interval after midnight, such as "
                       "00000000020000.000000:000",
                       p->name);
  s->start_interval = t;
  s->set |= CAIRN__SET_START_INTERVAL;
  return 0;
}

static int apply_notify(struct cairn__settings *s,
                        const struct cairn_property_info *p,
                        const struct cairn_value *v, struct cairn_error *err)
{
  char *copy;

  if (v->kind != CAIRN_VALUE_STRING)
    return wrong_type(p, v, "a string", err);
  if (cairn__text_check(p, v->as.string, v->count, err) != 0)
    return -1;
  copy = cairn__strndup(v->as.string, v->count);
  if (!copy)
    return cairn__fail_memory(err);
  s->notify = copy;
  return 0;
}

static int apply_number(struct cairn__settings *s,
                        const struct cairn_property_info *p,
                        const struct cairn_value *v, struct cairn_error *err)
{
  int64_t n;

  if (cairn__number_from(p, v, &n, err) != 0)
    return -1;
  switch (p->id) {
  case CAIRN_PROPERTY_JobRunTimes:
    s->run_times = (uint32_t)n;
    break;
  case CAIRN_PROPERTY_RunMonth:
    s->month = (uint8_t)n;
    s->set |= CAIRN__SET_MONTH;
    break;
  case CAIRN_PROPERTY_RunDay:
    s->day = (int8_t)n;
    s->set |= CAIRN__SET_DAY;
    break;
  case CAIRN_PROPERTY_RunDayOfWeek:
    s->day_of_week = (int8_t)n;
    s->set |= CAIRN__SET_DAY_OF_WEEK;
    break;
  case CAIRN_PROPERTY_LocalOrUtcTime:
    s->local_or_utc = (uint8_t)n;
    s->set |= CAIRN__SET_LOCAL_OR_UTC;
    break;
  default:
    s->priority = (uint32_t)n;
    s->set |= CAIRN__SET_PRIORITY;
    break;
  }
  return 0;
}

/* The bit of a property that may be null, or 0. */
static uint16_t null_bit(int id)
{
  switch (id) {
  case CAIRN_PROPERTY_ScheduledStartTime:
    return CAIRN__SET_SCHEDULED;
  case CAIRN_PROPERTY_RunMonth:
    return CAIRN__SET_MONTH;
  case CAIRN_PROPERTY_RunDay:
    return CAIRN__SET_DAY;
  case CAIRN_PROPERTY_RunDayOfWeek:
    return CAIRN__SET_DAY_OF_WEEK;
  case CAIRN_PROPERTY_RunStartInterval:
    return CAIRN__SET_START_INTERVAL;
  case CAIRN_PROPERTY_LocalOrUtcTime:
    return CAIRN__SET_LOCAL_OR_UTC;
  case CAIRN_PROPERTY_UntilTime:
    return CAIRN__SET_UNTIL;
  case CAIRN_PROPERTY_Priority:
    return CAIRN__SET_PRIORITY;
  case CAIRN_PROPERTY_DeleteOnCompletion:
    return CAIRN__SET_DELETE;
  default:
    return 0;
  }
}

static int apply_null(struct cairn__settings *s,
                      const struct cairn_property_info *p,
                      struct cairn_error *err)
{
  if (p->id == CAIRN_PROPERTY_Notify) {
    s->notify = NULL;
    return 0;
  }
  if (null_bit(p->id) == 0)
    return cairn__fail(
        err, CAIRN_E_WRONG_TYPE, "%s must not be null%s", p->name,
        p->is_required ? ", it is required" : "; 0 sets no limit, 1 runs once");
  s->set &= (uint16_t)~null_bit(p->id);
  if (p->id == CAIRN_PROPERTY_ScheduledStartTime)
    s->is_start_now = 0;
  return 0;
}

int cairn__settings_apply(struct cairn_engine *e, struct cairn__settings *s,
                          const struct cairn_property_info *p,
                          const struct cairn_value *v, struct cairn_error *err)
{
  if (!p->is_writable)
    return cairn__fail(err, CAIRN_E_READ_ONLY,
                       "%s is read-only; it cannot be set", p->name);
  if (v->kind == CAIRN_VALUE_NULL)
    return apply_null(s, p, err);
  switch (p->id) {
  case CAIRN_PROPERTY_ScheduledStartTime:
    return apply_scheduled(e, s, p, v, err);
  case CAIRN_PROPERTY_UntilTime:
    return apply_until(e, s, p, v, err);
  case CAIRN_PROPERTY_TimeBeforeRemoval:
    return apply_removal(s, p, v, err);
  case CAIRN_PROPERTY_RunStartInterval:
    return apply_start_interval(s, p, v, err);
  case CAIRN_PROPERTY_Notify:
    return apply_notify(s, p, v, err);
  case CAIRN_PROPERTY_DeleteOnCompletion:
    if (v->kind != CAIRN_VALUE_BOOLEAN)
      return wrong_type(p, v, "a boolean", err);
    s->is_delete = v->as.boolean != 0;
    s->set |= CAIRN__SET_DELETE;
    return 0;
  case CAIRN_PROPERTY_JobRunTimes:
  case CAIRN_PROPERTY_RunMonth:
  case CAIRN_PROPERTY_RunDay:
  case CAIRN_PROPERTY_RunDayOfWeek:
  case CAIRN_PROPERTY_LocalOrUtcTime:
  case CAIRN_PROPERTY_Priority:
    return apply_number(s, p, v, err);
  default:
    return cairn__fail(err, CAIRN_E_INTERNAL, "%s is writable but not handled",
                       p->name);
  }
}

/* Values that are not set are left over from when they were. */
int cairn__settings_same_calendar(const struct cairn__settings *a,
                                  const struct cairn__settings *b)
{
  const uint16_t mask =
      CAIRN__SET_CALENDAR | CAIRN__SET_SCHEDULED | CAIRN__SET_LOCAL_OR_UTC;
  const uint16_t set = a->set & mask;

  return set == (b->set & mask) &&
         (!(set & CAIRN__SET_MONTH) || a->month == b->month) &&
         (!(set & CAIRN__SET_DAY) || a->day == b->day) &&
         (!(set & CAIRN__SET_DAY_OF_WEEK) ||
          a->day_of_week == b->day_of_week) &&
         (!(set & CAIRN__SET_START_INTERVAL) ||
          a->start_interval.microseconds == b->start_interval.microseconds) &&
         (!(set & CAIRN__SET_LOCAL_OR_UTC) ||
          a->local_or_utc == b->local_or_utc) &&
         (!(set & CAIRN__SET_SCHEDULED) ||
          (a->scheduled.kind == b->scheduled.kind &&
           a->scheduled.microseconds == b->scheduled.microseconds));
}

int cairn_job_set(cairn_engine *e, cairn_job job,
                  const struct cairn_change *changes, size_t count,
                  struct cairn_error *err)
{
  struct cairn__job *j;
  struct cairn__settings s;
  const struct cairn__zone *zone;
  int is_calendar_new, notify_is_new;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j || cairn__store_accepts(e, err) != 0)
    return -1;
  s = j->settings;
  for (size_t i = 0; i < count; i++) {
    const struct cairn_property_info *p = cairn_property_find(changes[i].name);
    char *notify = s.notify, shown[128];

    if (!p) {
      cairn__fail(err, CAIRN_E_NO_SUCH_PROPERTY,
                  "there is no property \"%s\"; the nearest one is \"%s\"",
                  cairn__printable(changes[i].name, shown, sizeof shown),
                  cairn_property_nearest(changes[i].name));
      goto fail;
    }
    if (cairn__settings_apply(e, &s, p, &changes[i].value, err) != 0)
      goto fail;
    /* Given twice: the last one counts. */
    if (s.notify != notify && notify != j->settings.notify)
      cairn__free(notify);
  }
  if (cairn__due_check(e, j, &s, j->details ? j->details->zone : NULL, &zone,
                       err) != 0)
    goto fail;
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    goto fail;
  }
  notify_is_new = s.notify != j->settings.notify;
  if (notify_is_new)
    cairn__free(j->settings.notify);
  is_calendar_new = !cairn__settings_same_calendar(&s, &j->settings);
  j->settings = s;
  j->due.zone = zone;
  cairn__store_touch(e, j,
                     notify_is_new ? CAIRN__TOUCHED_JOB : CAIRN__TOUCHED_STATE);
  cairn__event_push(e, CAIRN_EVENT_CHANGED, j);
  cairn__job_settings_changed(e, j, is_calendar_new);
  cairn__engine_settle(e);
  return 0;

fail:
  if (s.notify != j->settings.notify)
    cairn__free(s.notify);
  return -1;
}
