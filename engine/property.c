/* A job's properties as values: read one by one or as JSON, written all or
 * none, and the errors of its last run.
 *
 * Nothing that follows from something else is stored: status properties come
 * from JobState (state.h), intervals are what is left at the moment of the
 * read. Writing works on a copy of the settings that replaces them when every
 * value was accepted. */
#include "job.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "cim.h"
#include "datetime.h"
#include "engine.h"
#include "error.h"
#include "memory.h"
#include "state.h"

#define REMOVAL_DEFAULT_US INT64_C(300000000)
#define REMOVAL_MIN_US     INT64_C(1000000)
#define DAY_US             INT64_C(86400000000)
#define REMOVAL_FOR_EVER   (99999999 * DAY_US)

static const struct cairn_property_info *info_of(int id)
{
  return cairn_property_at((size_t)id - 1);
}

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
  s->removal_us =
      t.microseconds < REMOVAL_MIN_US ? REMOVAL_MIN_US : t.microseconds;
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

int cairn__settings_check(const struct cairn__settings *s,
                          struct cairn_error *err)
{
  static const int8_t days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

  if ((s->set & CAIRN__SET_MONTH) && (s->set & CAIRN__SET_DAY) &&
      (s->day > days[s->month] || s->day < -days[s->month]))
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT,
        "RunDay %d with RunMonth %s never comes: that month has "
        "at most %d days",
        s->day, cairn_value_label(info_of(CAIRN_PROPERTY_RunMonth), s->month),
        days[s->month]);
  return 0;
}

int cairn_job_set(cairn_engine *e, cairn_job job,
                  const struct cairn_change *changes, size_t count,
                  struct cairn_error *err)
{
  struct cairn__job *j;
  struct cairn__settings s;

  cairn__error_clear(err);
  j = cairn__engine_job(e, job, err);
  if (!j)
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
  if (cairn__settings_check(&s, err) != 0)
    goto fail;
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    goto fail;
  }
  if (s.notify != j->settings.notify)
    cairn__free(j->settings.notify);
  j->settings = s;
  cairn__event_push(e, CAIRN_EVENT_CHANGED, j);
  cairn__job_settings_changed(e, j);
  cairn__engine_settle(e);
  return 0;

fail:
  if (s.notify != j->settings.notify)
    cairn__free(s.notify);
  return -1;
}

/* ---- making values ---- */

static void give_null(struct cairn_value *v)
{
  *v = (struct cairn_value){.kind = CAIRN_VALUE_NULL};
}

static void give_integer(struct cairn_value *v, int64_t n)
{
  *v = (struct cairn_value){.kind = CAIRN_VALUE_INTEGER, .as.integer = n};
}

static void give_boolean(struct cairn_value *v, int b)
{
  *v = (struct cairn_value){.kind = CAIRN_VALUE_BOOLEAN, .as.boolean = b != 0};
}

static void give_real(struct cairn_value *v, double x)
{
  *v = (struct cairn_value){.kind = CAIRN_VALUE_REAL, .as.real = x};
}

/* NULL gives null. */
static void give_string(struct cairn_value *v, const char *s)
{
  if (!s)
    give_null(v);
  else
    *v = (struct cairn_value){
        .kind = CAIRN_VALUE_STRING, .count = strlen(s), .as.string = s};
}

static void give_datetime(struct cairn_value *v, struct cairn_datetime t)
{
  *v = (struct cairn_value){.kind = CAIRN_VALUE_DATETIME, .as.datetime = t};
}

static void give_time(struct cairn_value *v, int64_t unix_us)
{
  give_datetime(v, cairn__datetime_from_unix(unix_us, 0));
}

static void give_interval(struct cairn_value *v, int64_t us)
{
  give_datetime(v, cairn__datetime_interval(us));
}

static int room_for_strings(struct cairn_engine *e, size_t count,
                            struct cairn_error *err)
{
  const char **strings;

  if (count <= e->string_capacity)
    return 0;
  strings = cairn__realloc(e->strings, count * sizeof *strings);
  if (!strings)
    return cairn__fail_memory(err);
  e->strings = strings;
  e->string_capacity = count;
  return 0;
}

/* The strings of an array, or of one member of each object in it. */
static int give_strings(struct cairn_engine *e, struct cairn_value *v,
                        const json_t *array, const char *member,
                        struct cairn_error *err)
{
  size_t n = json_array_size(array), i;
  json_t *element;

  if (room_for_strings(e, n, err) != 0)
    return -1;
  json_array_foreach((json_t *)(uintptr_t)array, i, element)
  {
    const char *s =
        json_string_value(member ? json_object_get(element, member) : element);

    e->strings[i] = s ? s : "";
  }
  *v = (struct cairn_value){
      .kind = CAIRN_VALUE_STRING_ARRAY, .count = n, .as.strings = e->strings};
  return 0;
}

/* ---- what lies behind single properties ---- */

static struct cairn__status status_of(const struct cairn__job *j)
{
  int phase = cairn__job_phase(j);
  int is_outside = cairn__cause_is_outside(j->error_id);
  struct cairn__status_flags flags = {
      .is_waiting =
          phase == CAIRN__PHASE_WAITING || phase == CAIRN__PHASE_QUEUED,
      .is_held = phase == CAIRN__PHASE_HELD,
      .is_killing = j->asked == CAIRN__ASKED_KILL,
      .is_retryable = is_outside != 0,
      .run_failed = j->state == CAIRN_SUSPENDED && j->error_id != CAIRN_OK,
      .is_cause_outside = is_outside != 0,
  };

  return cairn__status_of(j->state, flags);
}

static const char *error_message(const struct cairn__job *j)
{
  const struct cairn_error_info *info;

  if (j->error_id == CAIRN_OK)
    return NULL;
  if (j->failure)
    return j->failure->message;
  info = cairn_error_info(j->error_id);
  return info ? info->summary : "unknown error";
}

static const char *waiting_status(struct cairn_engine *e,
                                  const struct cairn__job *j)
{
  char time[CAIRN_DATETIME_SIZE];
  int n = 0;

  if (j->schedule.heap) {
    struct cairn_datetime t = j->settings.scheduled;

    if (t.kind == CAIRN_INTERVAL)
      t = cairn__datetime_from_unix(
          cairn__wall(e) + t.microseconds - cairn__monotonic(e), 0);
    cairn_datetime_format(&t, time);
    snprintf(e->text, sizeof e->text, "waiting for ScheduledStartTime %s",
             time);
    return e->text;
  }
  if (j->run_number > 0) {
    if (j->settings.run_times == 0)
      n = snprintf(e->text, sizeof e->text, "waiting for run %u; ",
                   j->run_number + 1);
    else
      n = snprintf(e->text, sizeof e->text, "waiting for run %u of %u; ",
                   j->run_number + 1, j->settings.run_times);
  }
  snprintf(e->text + n, sizeof e->text - (size_t)n,
           "%sthis version does not evaluate the calendar (RunMonth, RunDay, "
           "RunDayOfWeek, RunStartInterval): request Start to run the job%s%s",
           n ? "" : "waiting; ", j->error_id ? "; the last run failed: " : "",
           j->error_id ? error_message(j) : "");
  cairn__utf8_clean(e->text); /* in case it was cut */
  return e->text;
}

static const char *idle_status(struct cairn_engine *e,
                               const struct cairn__job *j)
{
  switch (cairn__job_phase(j)) {
  case CAIRN__PHASE_QUEUED:
    if (j->directory && j->heap == &j->directory->waiting) {
      snprintf(e->text, sizeof e->text, "queued: another job exports into %s",
               j->directory->path);
      cairn__utf8_clean(e->text);
      return e->text;
    }
    return e->closing >= 0 ? "queued: the engine is closing, nothing starts"
                           : "queued";
  case CAIRN__PHASE_HELD:
    return j->is_live ? "suspended by a client in the middle of a run"
                      : "held by a client";
  default:
    return waiting_status(e, j);
  }
}

static const char *job_status(struct cairn_engine *e,
                              const struct cairn__job *j)
{
  switch (j->state) {
  case CAIRN_NEW:
  case CAIRN_SUSPENDED:
    return idle_status(e, j);
  case CAIRN_STARTING:
    return "starting";
  case CAIRN_RUNNING:
    return j->asked == CAIRN__ASKED_SUSPEND
               ? "running; suspends at the next safe point"
               : "running";
  case CAIRN_SHUTTING_DOWN:
    return j->asked == CAIRN__ASKED_KILL ? "being killed" : "terminating";
  case CAIRN_QUERY_PENDING:
    snprintf(e->text, sizeof e->text, "waiting for an answer: %s",
             j->details->question);
    cairn__utf8_clean(e->text);
    return e->text;
  case CAIRN_COMPLETED:
    return "completed";
  case CAIRN_COMPLETED_WITH_WARNINGS:
    snprintf(e->text, sizeof e->text, "completed with %zu warning%s",
             json_array_size(j->warnings) + j->lost_warnings,
             json_array_size(j->warnings) + j->lost_warnings == 1 ? "" : "s");
    return e->text;
  case CAIRN_EXCEPTION:
    /* What the job was told to do then, this version does not do. */
    if (j->has_recovery_action &&
        (j->recovery_action == 1 || j->recovery_action >= 4)) {
      snprintf(e->text, sizeof e->text,
               "failed; RecoveryAction \"%s\" is not carried out by this "
               "version: %s",
               cairn_value_label(info_of(CAIRN_PROPERTY_RecoveryAction),
                                 j->recovery_action),
               error_message(j));
      cairn__utf8_clean(e->text);
      return e->text;
    }
    return error_message(j);
  default:
    return error_message(j);
  }
}

static void give_scheduled(struct cairn_engine *e, const struct cairn__job *j,
                           struct cairn_value *v)
{
  const struct cairn_datetime *t = &j->settings.scheduled;
  int64_t left;

  if (cairn_state_is_final(j->state)) {
    give_null(v);
    return;
  }
  if (j->is_live) { /* executing */
    give_datetime(v,
                  (struct cairn_datetime){.kind = CAIRN_ZERO, .precision = 20});
    return;
  }
  if (!(j->settings.set & CAIRN__SET_SCHEDULED)) {
    give_null(v);
    return;
  }
  left = t->kind == CAIRN_INTERVAL ? t->microseconds - cairn__monotonic(e)
                                   : t->microseconds - cairn__wall(e);
  if (left < 0 && j->run_number > 0)
    give_null(v); /* it was the time of a run that is over */
  else if (t->kind == CAIRN_INTERVAL)
    give_interval(v, left);
  else
    give_datetime(v, *t);
}

static void give_until(struct cairn_engine *e, const struct cairn__job *j,
                       struct cairn_value *v)
{
  const struct cairn_datetime *t = &j->settings.until;

  if (!(j->settings.set & CAIRN__SET_UNTIL))
    give_null(v);
  else if (t->kind == CAIRN_INTERVAL)
    give_interval(v, t->microseconds - cairn__monotonic(e));
  else
    give_datetime(v, *t);
}

static int64_t elapsed(struct cairn_engine *e, const struct cairn__job *j)
{
  return j->elapsed_us +
         (j->is_executing ? cairn__monotonic(e) - j->executing_since_us : 0);
}

static void give_bytes(const struct cairn__job *j, int is_total,
                       struct cairn_value *v)
{
  uint64_t total = j->bytes_total, done = j->bytes_done;

  if (j->work) {
    total = j->work->run->bytes_total;
    done = j->work->run->bytes_done;
  }
  if (!j->kind || j->run_number == 0 || (is_total && total == 0))
    give_null(v);
  else
    give_integer(v, (int64_t)(is_total ? total : done));
}

/* A property of the run: what the report says, once it ended well; empty while
 * it runs and when it failed. */
static int give_exported(struct cairn_engine *e, const struct cairn__job *j,
                         const char *name, struct cairn_value *v,
                         struct cairn_error *err)
{
  const json_t *properties = json_object_get(j->report, "properties");

  if (!j->directory || j->run_number == 0) {
    give_null(v);
    return 0;
  }
  return give_strings(
      e, v, j->is_last_well ? json_object_get(properties, name) : NULL, NULL,
      err);
}

static int give_machines(struct cairn_engine *e, const struct cairn__job *j,
                         struct cairn_value *v, struct cairn_error *err)
{
  const json_t *collection = json_object_get(j->spec, "collection");

  if (!j->directory || j->run_number == 0) {
    give_null(v);
    return 0;
  }
  return give_strings(e, v, json_object_get(collection, "machines"),
                      "VirtualMachineId", err);
}

static void give_base(const struct cairn__job *j, struct cairn_value *v)
{
  const json_t *properties = json_object_get(j->report, "properties");

  give_string(v, json_string_value(
                     json_object_get(properties, "BaseReferencePointGroupId")));
}

static void give_point(struct cairn_engine *e, const struct cairn__job *j,
                       struct cairn_value *v)
{
  if (!j->directory || j->run_number == 0) {
    give_null(v);
    return;
  }
  uuid_unparse_upper(j->point, e->text);
  give_string(v, e->text);
}

static void give_spec_string(const json_t *object, const char *name,
                             struct cairn_value *v)
{
  give_string(v, json_string_value(json_object_get(object, name)));
}

static void give_label(const struct cairn_property_info *p, int place,
                       struct cairn_value *v)
{
  give_string(v, place ? cairn_value_label(p, place - 1) : NULL);
}

static void give_if(int is_set, int64_t n, struct cairn_value *v)
{
  if (is_set)
    give_integer(v, n);
  else
    give_null(v);
}

/* ---- reading ---- */

static int get_status(struct cairn_engine *e, const struct cairn__job *j,
                      int id, struct cairn_value *v, struct cairn_error *err)
{
  struct cairn__status s = status_of(j);

  switch (id) {
  case CAIRN_PROPERTY_OperationalStatus:
    for (int i = 0; i < s.count; i++)
      e->integers[i] = s.operational_status[i];
    *v = (struct cairn_value){.kind = CAIRN_VALUE_INTEGER_ARRAY,
                              .count = s.count,
                              .as.integers = e->integers};
    return 0;
  case CAIRN_PROPERTY_StatusDescriptions:
    if (room_for_strings(e, s.count, err) != 0)
      return -1;
    for (int i = 0; i < s.count; i++)
      e->strings[i] = s.descriptions[i];
    *v = (struct cairn_value){.kind = CAIRN_VALUE_STRING_ARRAY,
                              .count = s.count,
                              .as.strings = e->strings};
    return 0;
  case CAIRN_PROPERTY_Status:
    give_string(v, s.status);
    return 0;
  case CAIRN_PROPERTY_HealthState:
    give_integer(v, s.health_state);
    return 0;
  case CAIRN_PROPERTY_CommunicationStatus:
    give_integer(v, s.communication_status);
    return 0;
  case CAIRN_PROPERTY_DetailedStatus:
    give_integer(v, s.detailed_status);
    return 0;
  case CAIRN_PROPERTY_OperatingStatus:
    give_integer(v, s.operating_status);
    return 0;
  default:
    give_integer(v, s.primary_status);
    return 0;
  }
}

static void get_setting(struct cairn_engine *e, const struct cairn__job *j,
                        int id, struct cairn_value *v)
{
  const struct cairn__settings *s = &j->settings;

  switch (id) {
  case CAIRN_PROPERTY_ScheduledStartTime:
    give_scheduled(e, j, v);
    break;
  case CAIRN_PROPERTY_JobRunTimes:
    give_integer(v, s->run_times);
    break;
  case CAIRN_PROPERTY_RunMonth:
    give_if(s->set & CAIRN__SET_MONTH, s->month, v);
    break;
  case CAIRN_PROPERTY_RunDay:
    give_if(s->set & CAIRN__SET_DAY, s->day, v);
    break;
  case CAIRN_PROPERTY_RunDayOfWeek:
    give_if(s->set & CAIRN__SET_DAY_OF_WEEK, s->day_of_week, v);
    break;
  case CAIRN_PROPERTY_RunStartInterval:
    if (s->set & CAIRN__SET_START_INTERVAL)
      give_datetime(v, s->start_interval);
    else
      give_null(v);
    break;
  case CAIRN_PROPERTY_LocalOrUtcTime:
    give_if(s->set & CAIRN__SET_LOCAL_OR_UTC, s->local_or_utc, v);
    break;
  case CAIRN_PROPERTY_UntilTime:
    give_until(e, j, v);
    break;
  case CAIRN_PROPERTY_Notify:
    give_string(v, s->notify);
    break;
  case CAIRN_PROPERTY_Priority:
    give_if(s->set & CAIRN__SET_PRIORITY, s->priority, v);
    break;
  case CAIRN_PROPERTY_DeleteOnCompletion:
    if (s->set & CAIRN__SET_DELETE)
      give_boolean(v, s->is_delete);
    else
      give_null(v);
    break;
  default:
    if (s->removal_us == CAIRN__NEVER_US)
      give_datetime(v, cairn__datetime_never());
    else
      give_interval(v, s->removal_us);
    break;
  }
}

static int get(struct cairn_engine *e, const struct cairn__job *j,
               const struct cairn_property_info *p, struct cairn_value *v,
               struct cairn_error *err)
{
  const struct cairn__details *d = j->details;
  const struct cairn_error_info *info = cairn_error_info(j->error_id);

  if (p->is_writable) {
    get_setting(e, j, p->id, v);
    return 0;
  }
  switch (p->id) {
  case CAIRN_PROPERTY_Caption:
    give_string(v, d ? d->caption : NULL);
    break;
  case CAIRN_PROPERTY_Description:
    give_string(v, d ? d->description : NULL);
    break;
  case CAIRN_PROPERTY_ElementName:
    give_string(v, d ? d->element_name : NULL);
    break;
  case CAIRN_PROPERTY_InstallDate:
    give_null(v);
    break;
  case CAIRN_PROPERTY_OperationalStatus:
  case CAIRN_PROPERTY_StatusDescriptions:
  case CAIRN_PROPERTY_Status:
  case CAIRN_PROPERTY_HealthState:
  case CAIRN_PROPERTY_CommunicationStatus:
  case CAIRN_PROPERTY_DetailedStatus:
  case CAIRN_PROPERTY_OperatingStatus:
  case CAIRN_PROPERTY_PrimaryStatus:
    return get_status(e, j, p->id, v, err);
  case CAIRN_PROPERTY_JobStatus:
    give_string(v, job_status(e, j));
    break;
  case CAIRN_PROPERTY_TimeSubmitted:
    give_time(v, j->submitted_us);
    break;
  case CAIRN_PROPERTY_StartTime:
    if (j->run_number > 0)
      give_time(v, j->started_us);
    else
      give_null(v);
    break;
  case CAIRN_PROPERTY_ElapsedTime:
    if (j->run_number > 0)
      give_interval(v, elapsed(e, j));
    else
      give_null(v);
    break;
  case CAIRN_PROPERTY_Owner:
    give_string(v, e->owner);
    break;
  case CAIRN_PROPERTY_PercentComplete:
    give_integer(v, j->percent);
    break;
  case CAIRN_PROPERTY_ErrorCode:
    give_if(j->error_id != CAIRN_OK || j->is_last_well, j->error_id, v);
    break;
  case CAIRN_PROPERTY_ErrorDescription:
    give_string(v, info ? info->summary : NULL);
    break;
  case CAIRN_PROPERTY_RecoveryAction:
    give_if(j->has_recovery_action, j->recovery_action, v);
    break;
  case CAIRN_PROPERTY_OtherRecoveryAction:
    give_string(v, d ? d->other_recovery : NULL);
    break;
  case CAIRN_PROPERTY_InstanceID:
    give_string(v, j->instance_id);
    break;
  case CAIRN_PROPERTY_Name:
    give_string(v, j->name);
    break;
  case CAIRN_PROPERTY_JobState:
    give_integer(v, j->state);
    break;
  case CAIRN_PROPERTY_TimeOfLastStateChange:
    if (j->has_changed)
      give_time(v, j->changed_us);
    else
      give_interval(v, 0);
    break;
  case CAIRN_PROPERTY_Cancellable:
    give_boolean(v, !cairn_state_is_final(j->state) &&
                        j->state != CAIRN_SHUTTING_DOWN);
    break;
  case CAIRN_PROPERTY_ErrorSummaryDescription:
    give_string(v, error_message(j));
    break;
  case CAIRN_PROPERTY_CollectionId:
    give_spec_string(j->directory ? json_object_get(j->spec, "collection")
                                  : NULL,
                     "CollectionId", v);
    break;
  case CAIRN_PROPERTY_ReferencePointGroupId:
    give_point(e, j, v);
    break;
  case CAIRN_PROPERTY_BaseReferencePointGroupId:
    give_base(j, v);
    break;
  case CAIRN_PROPERTY_VirtualMachineId:
    return give_machines(e, j, v, err);
  case CAIRN_PROPERTY_ExportDirectory:
    give_spec_string(j->directory ? j->spec : NULL, "directory", v);
    break;
  case CAIRN_PROPERTY_ExportedDisks:
  case CAIRN_PROPERTY_ExportedLogFilePaths:
  case CAIRN_PROPERTY_ExportedConfigFilePaths:
  case CAIRN_PROPERTY_ExportedRuntimeFilePaths:
  case CAIRN_PROPERTY_ExportedGuestStateFilePaths:
    return give_exported(e, j, p->name, v, err);
  case CAIRN_PROPERTY_phase:
    give_string(v, cairn_value_label(p, cairn__job_phase(j)));
    break;
  case CAIRN_PROPERTY_queue:
    give_string(v, j->queue->name);
    break;
  case CAIRN_PROPERTY_zone:
    give_string(v, d ? d->zone : NULL);
    break;
  case CAIRN_PROPERTY_gap:
    give_label(p, j->gap, v);
    break;
  case CAIRN_PROPERTY_overlap:
    give_label(p, j->overlap, v);
    break;
  case CAIRN_PROPERTY_catch_up:
    give_label(p, j->catch_up, v);
    break;
  case CAIRN_PROPERTY_RecoveryJob:
    give_string(v, d ? d->recovery_job : NULL);
    break;
  case CAIRN_PROPERTY_attempts:
    give_integer(v, j->run_number > 0);
    break;
  case CAIRN_PROPERTY_policy:
    give_string(v, d ? d->policy : NULL);
    break;
  case CAIRN_PROPERTY_policy_key:
    give_string(v, d ? d->policy_key : NULL);
    break;
  case CAIRN_PROPERTY_run_number:
    give_integer(v, j->run_number);
    break;
  case CAIRN_PROPERTY_bytes_total:
  case CAIRN_PROPERTY_bytes_done:
    give_bytes(j, p->id == CAIRN_PROPERTY_bytes_total, v);
    break;
  case CAIRN_PROPERTY_rate:
    if (j->rate >= 0)
      give_real(v, j->rate);
    else
      give_null(v);
    break;
  case CAIRN_PROPERTY_eta:
    if (j->eta >= 0)
      give_real(v, j->eta);
    else
      give_null(v);
    break;
  default:
    give_null(v);
    return cairn__fail(err, CAIRN_E_INTERNAL, "%s is declared but not handled",
                       p->name);
  }
  return 0;
}

int cairn_job_get(cairn_engine *e, cairn_job job, int id,
                  struct cairn_value *out, struct cairn_error *err)
{
  const struct cairn_property_info *p = id > 0 ? info_of(id) : NULL;
  struct cairn__job *j;

  cairn__error_clear(err);
  give_null(out);
  j = cairn__engine_job(e, job, err);
  if (!j)
    return -1;
  if (!p)
    return cairn__fail(err, CAIRN_E_NO_SUCH_PROPERTY,
                       "there is no property number %d", id);
  return get(e, j, p, out, err);
}

/* ---- JSON ---- */

json_t *cairn__json_parse(const char *what, const char *text, size_t length,
                          struct cairn_error *err)
{
  json_error_t where;
  json_t *json;

  /* jansson tells a lack of memory as whatever it was about to expect, but
   * both malloc and ours leave it in errno. */
  errno = 0;
  json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
  if (json)
    return json;
  if (errno == ENOMEM)
    cairn__fail_memory(err);
  else
    cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                "%s: not JSON: line %d, column %d: %s", what, where.line,
                where.column, where.text);
  return NULL;
}

int cairn__json_give(json_t *json, char **out, struct cairn_error *err)
{
  *out = json ? json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
  json_decref(json);
  return *out ? 0 : cairn__fail_memory(err);
}

static json_t *number_or_label(const struct cairn_property_info *p, int64_t n,
                               int is_numbers)
{
  const char *label = p->values && !is_numbers ? cairn_value_label(p, n) : NULL;

  return label ? json_string(label) : json_integer(n);
}

static json_t *array_to_json(const struct cairn_property_info *p,
                             const struct cairn_value *v, int is_numbers)
{
  json_t *array = json_array();

  for (size_t i = 0; array && i < v->count; i++) {
    json_t *element = v->kind == CAIRN_VALUE_STRING_ARRAY
                          ? json_string(v->as.strings[i])
                          : number_or_label(p, v->as.integers[i], is_numbers);

    if (json_array_append_new(array, element) != 0) {
      json_decref(array);
      return NULL;
    }
  }
  return array;
}

static json_t *value_to_json(const struct cairn_property_info *p,
                             const struct cairn_value *v, int is_numbers)
{
  char text[CAIRN_DATETIME_SIZE];

  switch (v->kind) {
  case CAIRN_VALUE_BOOLEAN:
    return json_boolean(v->as.boolean);
  case CAIRN_VALUE_INTEGER:
    return number_or_label(p, v->as.integer, is_numbers);
  case CAIRN_VALUE_REAL:
    return json_real(v->as.real);
  case CAIRN_VALUE_STRING:
    return json_string(v->as.string);
  case CAIRN_VALUE_DATETIME:
    cairn_datetime_format(&v->as.datetime, text);
    return json_string(text);
  case CAIRN_VALUE_INTEGER_ARRAY:
  case CAIRN_VALUE_STRING_ARRAY:
    return array_to_json(p, v, is_numbers);
  default:
    return json_null();
  }
}

int cairn_job_json(cairn_engine *e, cairn_job job, int is_numbers, char **out,
                   struct cairn_error *err)
{
  const struct cairn_property_info *p;
  struct cairn__job *j;
  json_t *object;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_job(e, job, err);
  if (!j)
    return -1;
  object = json_object();
  if (!object)
    return cairn__fail_memory(err);
  for (size_t i = 0; (p = cairn_property_at(i)) != NULL; i++) {
    struct cairn_value v;

    if (get(e, j, p, &v, err) != 0) {
      json_decref(object);
      return -1;
    }
    if (json_object_set_new(object, p->name,
                            value_to_json(p, &v, is_numbers)) != 0) {
      json_decref(object);
      return cairn__fail_memory(err);
    }
  }
  return cairn__json_give(object, out, err);
}

int cairn_job_report(cairn_engine *e, cairn_job job, char **out,
                     struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_job(e, job, err);
  if (!j)
    return -1;
  return cairn__json_give(j->report ? json_incref(j->report) : json_null(), out,
                          err);
}

/* ---- errors as CIM_Error ---- */

static const char *map_label(const char *map, int64_t value)
{
  size_t count;
  const struct cairn_value_label *labels = cairn_value_map(map, &count);

  for (size_t i = 0; i < count; i++) {
    if (labels[i].value == value)
      return labels[i].label;
  }
  return NULL;
}

/* Message arguments: machine, disk, path, offset, cause; "" where unknown. */
static json_t *cim_error(const struct cairn__job *j, int id,
                         const char *message, int severity,
                         const struct cairn__failure *f)
{
  const struct cairn_error_info *info = cairn_error_info(id);
  char offset[24] = "";

  if (!info)
    info = cairn_error_info(CAIRN_E_INTERNAL);
  if (f && f->offset >= 0)
    snprintf(offset, sizeof offset, "%lld", (long long)f->offset);
  return json_pack(
      "{s:i, s:s?, s:s, s:s, s:s, s:[s,s,s,s,s], s:i, s:i, s:s?, s:[s], s:s, "
      "s:i, s:n, s:I, s:s?}",
      "ErrorType", (int)info->error_type, "OtherErrorType",
      info->error_type == CAIRN__ERROR_TYPE_OTHER ? info->summary : NULL,
      "OwningEntity", "Cairn", "MessageID", info->message_id, "Message",
      message, "MessageArguments", f ? f->machine : "", f ? f->disk : "",
      f ? f->path : "", offset,
      f && f->system_errno ? strerror(f->system_errno) : info->summary,
      "PerceivedSeverity", severity, "ProbableCause", (int)info->probable_cause,
      "ProbableCauseDescription",
      map_label("ProbableCause", info->probable_cause), "RecommendedActions",
      info->recommended_action, "ErrorSource", j->instance_id,
      "ErrorSourceFormat", 0, "OtherErrorSourceFormat", "CIMStatusCode",
      (json_int_t)info->cim_status_code, "CIMStatusCodeDescription",
      map_label("CIMStatusCode", info->cim_status_code));
}

static int add(json_t *errors, json_t *error)
{
  return json_array_append_new(errors, error); /* NULL fails */
}

static int add_warnings(const struct cairn__job *j, json_t *errors)
{
  json_t *warning;
  size_t i;

  json_array_foreach(j->warnings, i, warning)
  {
    if (add(errors, cim_error(j, CAIRN_E_WARNING, json_string_value(warning),
                              CAIRN__SEVERITY_DEGRADED_WARNING, NULL)) != 0)
      return -1;
  }
  if (j->lost_warnings > 0) {
    char text[80];

    snprintf(text, sizeof text,
             "%u more warnings were given while memory had run out",
             j->lost_warnings);
    return add(errors, cim_error(j, CAIRN_E_WARNING, text,
                                 CAIRN__SEVERITY_DEGRADED_WARNING, NULL));
  }
  return 0;
}

static int severity_of(int error_id)
{
  /* A client's own will is nothing to hurry for. */
  return error_id == CAIRN_E_TERMINATED || error_id == CAIRN_E_KILLED
             ? CAIRN__SEVERITY_MINOR
             : CAIRN__SEVERITY_MAJOR;
}

uint32_t cairn_job_get_errors(cairn_engine *e, cairn_job job, int is_ex,
                              char **out, struct cairn_error *err)
{
  struct cairn__job *j;
  json_t *errors;
  uint32_t code = CAIRN_RC_COMPLETED;
  int is_ok = 1;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_job(e, job, err);
  if (!j) {
    code = CAIRN_RC_UNKNOWN;
    return e->is_vendor_codes ? cairn_vendor_code(code) : code;
  }
  errors = json_array();
  if (!errors)
    is_ok = 0;
  /* A recurring job that waits for its next run tells of the last one. */
  if (is_ok && j->error_id != CAIRN_OK &&
      (cairn_state_is_final(j->state) || j->state == CAIRN_SUSPENDED))
    is_ok = add(errors, cim_error(j, j->error_id, error_message(j),
                                  severity_of(j->error_id), j->failure)) == 0;
  if (is_ok && is_ex && cairn_state_is_final(j->state))
    is_ok = add_warnings(j, errors) == 0;
  if (is_ok && json_array_size(errors) == 0) {
    json_decref(errors);
    errors = json_null();
  }
  if (!is_ok) {
    json_decref(errors);
    errors = NULL;
  }
  if (cairn__json_give(errors, out, err) != 0)
    code = CAIRN_RC_FAILED;
  return e->is_vendor_codes ? cairn_vendor_code(code) : code;
}
