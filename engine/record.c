/* record.c: see record.h. */
#include "record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <uuid/uuid.h>

#include "engine.h"
#include "error.h"
#include "job.h"
#include "json.h"
#include "memory.h"
#include "store.h"

enum { FULL_PRECISION = 20, MORE_MAX = 1024 };

/* ---- members that are stored as they are --------------------------------- */

/* A member that is stored as it is: in a column of "state", or by its name in
 * the column "more". */
struct field {
  const char *name; /* NULL: it has a column */
  uint8_t column, size, is_signed;
  uint16_t offset;
};

#define TYPE_OF(member) __typeof__(((struct cairn__job *)0)->member)
#define FIELD(NAME, COLUMN, member)                                            \
  {                                                                            \
    NAME, COLUMN, sizeof(TYPE_OF(member)),                                     \
        (TYPE_OF(member)) - 1 < (TYPE_OF(member))1,                            \
        offsetof(struct cairn__job, member)                                    \
  }
#define COLUMN(name, member) FIELD(NULL, CAIRN__STATE_##name, member)
#define MORE(name, member)   FIELD(#name, 0, member)

static const struct field fields[] = {
    COLUMN(JobState, state),
    COLUMN(ErrorCode, error_id),
    COLUMN(TimeOfLastStateChange, changed_us),
    COLUMN(StartTime, started_us),
    COLUMN(PercentComplete, percent),
    COLUMN(run_number, run_number),
    COLUMN(runs_succeeded, runs_succeeded),
    COLUMN(attempts, attempts),
    COLUMN(epoch, epoch),
    COLUMN(settings, settings.set),
    COLUMN(JobRunTimes, settings.run_times),
    COLUMN(Priority, settings.priority),
    COLUMN(RunStartInterval, settings.start_interval.microseconds),
    COLUMN(TimeBeforeRemoval, settings.removal_us),
    COLUMN(due_settled, due.after_us),
    COLUMN(due_run, due.run_us),
    COLUMN(due_next, due.next_us),
    MORE(bytes_total, bytes_total),
    MORE(bytes_done, bytes_done),
    MORE(lost_warnings, lost_warnings),
    MORE(RunMonth, settings.month),
    MORE(RunDay, settings.day),
    MORE(RunDayOfWeek, settings.day_of_week),
    MORE(RunStartInterval_precision, settings.start_interval.precision),
    MORE(LocalOrUtcTime, settings.local_or_utc),
    MORE(TimeBeforeRemoval_precision, settings.removal_precision),
    MORE(ScheduledStartTime_kind, settings.scheduled.kind),
    MORE(ScheduledStartTime_offset, settings.scheduled.utc_offset),
    MORE(ScheduledStartTime_precision, settings.scheduled.precision),
    MORE(UntilTime_kind, settings.until.kind),
    MORE(UntilTime_offset, settings.until.utc_offset),
    MORE(UntilTime_precision, settings.until.precision),
    MORE(asked, asked),
    MORE(is_deciding, is_deciding),
};

#define FIELD_COUNT (sizeof fields / sizeof fields[0])

static int64_t get_field(const struct cairn__job *j, const struct field *f)
{
  const unsigned char *p = (const unsigned char *)j + f->offset;
  int64_t v64;
  uint32_t v32;
  uint16_t v16;

  switch (f->size) {
  case 8:
    memcpy(&v64, p, 8);
    return v64;
  case 4:
    memcpy(&v32, p, 4);
    return f->is_signed ? (int64_t)(int32_t)v32 : (int64_t)v32;
  case 2:
    memcpy(&v16, p, 2);
    return f->is_signed ? (int64_t)(int16_t)v16 : (int64_t)v16;
  default:
    return f->is_signed ? (int64_t)(int8_t)*p : (int64_t)*p;
  }
}

/* Returns 0 when the value does not fit. */
static int set_field(struct cairn__job *j, const struct field *f, int64_t value)
{
  unsigned char *p = (unsigned char *)j + f->offset;
  uint32_t v32 = (uint32_t)value;
  uint16_t v16 = (uint16_t)value;

  switch (f->size) {
  case 8:
    memcpy(p, &value, 8);
    break;
  case 4:
    memcpy(p, &v32, 4);
    break;
  case 2:
    memcpy(p, &v16, 2);
    break;
  default:
    *p = (unsigned char)value;
  }
  return get_field(j, f) == value;
}

struct flag {
  uint8_t bit;
  uint16_t offset; /* of a uint8_t */
};

#define FLAG(name, member)                                                     \
  {                                                                            \
    CAIRN__FLAG_##name, offsetof(struct cairn__job, member)                    \
  }

static const struct flag flags[] = {
    FLAG(due_has_come, due.has_come),
    FLAG(has_changed, has_changed),
    FLAG(is_start_now, settings.is_start_now),
    FLAG(is_held, is_held),
    FLAG(is_start_asked, is_start_asked),
    FLAG(is_live, is_live),
    FLAG(is_until_passed, is_until_passed),
    FLAG(is_removable, is_removable),
    FLAG(is_backing_off, is_backing_off),
    FLAG(is_recovering, is_recovering),
    FLAG(is_interrupted, is_interrupted),
    FLAG(is_stray, is_stray),
    FLAG(has_ended, has_ended),
    FLAG(is_last_well, is_last_well),
    FLAG(DeleteOnCompletion, settings.is_delete),
};

_Static_assert(sizeof flags / sizeof flags[0] == CAIRN__FLAG_COUNT,
               "every flag has a member");

static int64_t get_flags(const struct cairn__job *j)
{
  int64_t bits = 0;

  for (size_t i = 0; i < CAIRN__FLAG_COUNT; i++)
    bits |= (int64_t)(((const uint8_t *)j)[flags[i].offset] != 0)
            << flags[i].bit;
  return bits;
}

/* Returns 0 when there are others. */
static int set_flags(struct cairn__job *j, int64_t bits)
{
  for (size_t i = 0; i < CAIRN__FLAG_COUNT; i++)
    ((uint8_t *)j)[flags[i].offset] = (uint8_t)(bits >> flags[i].bit & 1);
  return bits >> CAIRN__FLAG_COUNT == 0;
}

/* What a member has that is not in "more": what most jobs have there. */
static void set_usual(struct cairn__settings *s, uint16_t set)
{
  s->scheduled.precision = set & CAIRN__SET_SCHEDULED ? FULL_PRECISION : 0;
  s->until.precision = set & CAIRN__SET_UNTIL ? FULL_PRECISION : 0;
  s->start_interval.precision =
      set & CAIRN__SET_START_INTERVAL ? FULL_PRECISION : 0;
}

/* ---- moments ------------------------------------------------------------- */

static int64_t moved(int64_t moment, int64_t by)
{
  int64_t sum;

  if (__builtin_add_overflow(moment, by, &sum))
    sum = by > 0 ? INT64_MAX : INT64_MIN;
  return sum;
}

static int64_t to_wall(const struct cairn_engine *e, int64_t monotonic)
{
  return moved(monotonic, cairn__wall(e) - cairn__monotonic(e));
}

static int64_t to_monotonic(const struct cairn_engine *e, int64_t wall)
{
  return moved(wall, cairn__monotonic(e) - cairn__wall(e));
}

static int64_t stored_time(const struct cairn_engine *e,
                           const struct cairn_datetime *t)
{
  return t->kind == CAIRN_INTERVAL ? to_wall(e, t->microseconds)
                                   : t->microseconds;
}

static int64_t loaded_time(const struct cairn_engine *e,
                           const struct cairn_datetime *t, int64_t stored)
{
  return t->kind == CAIRN_INTERVAL ? to_monotonic(e, stored) : stored;
}

/* ---- to rows ------------------------------------------------------------- */

/* Appends a member of a JSON object, whose first one has no comma. */
static void add_more(char **p, const char *name, int64_t value)
{
  *p += sprintf(*p, ",\"%s\":%lld", name, (long long)value);
}

/* What the column "more" has, without the braces; at most MORE_MAX bytes. */
static void format_more(const struct cairn_engine *e,
                        const struct cairn__job *j, char *out)
{
  struct cairn__job usual;
  char *p = out;

  *p = '\0';
  cairn__job_init(&usual);
  set_usual(&usual.settings, j->settings.set);
  for (size_t i = 0; i < FIELD_COUNT; i++) {
    const struct field *f = &fields[i];
    int64_t value = get_field(j, f);

    if (f->name && value != get_field(&usual, f) &&
        !(f->offset == offsetof(struct cairn__job, asked) && j->is_closing &&
          value == CAIRN__ASKED_SUSPEND)) /* no client's wish */
      add_more(&p, f->name, value);
  }
  if (j->settings.set & CAIRN__SET_SCHEDULED)
    add_more(&p, "ScheduledStartTime", stored_time(e, &j->settings.scheduled));
  if (j->settings.set & CAIRN__SET_UNTIL)
    add_more(&p, "UntilTime", stored_time(e, &j->settings.until));
  if (j->is_backing_off)
    add_more(&p, "time_of_retry", to_wall(e, j->retry_us));
}

static int put_state(struct cairn_engine *e, const struct cairn__job *j,
                     struct cairn__rows *rows)
{
  int64_t v[CAIRN__STATE_INTEGER_COUNT] = {0};
  struct cairn__text t[CAIRN__STATE_TEXT_COUNT] = {{NULL, 0}};
  char more[1 + MORE_MAX + 2];
  size_t length;

  v[CAIRN__STATE_serial] = (int64_t)j->entry.serial;
  for (size_t i = 0; i < FIELD_COUNT; i++)
    if (!fields[i].name)
      v[fields[i].column] = get_field(j, &fields[i]);
  v[CAIRN__STATE_flags] = get_flags(j);
  v[CAIRN__STATE_ElapsedTime] = j->elapsed_us;
  if (j->is_executing)
    v[CAIRN__STATE_ElapsedTime] += cairn__monotonic(e) - j->executing_since_us;
  v[CAIRN__STATE_time_finished] =
      cairn_state_is_final(j->state) ? to_wall(e, j->finished_us) : 0;
  format_more(e, j, more);
  length = strlen(more);
  if (length > 0) {
    more[0] = '{'; /* for the first comma */
    more[length] = '}';
    t[CAIRN__STATE_more] = (struct cairn__text){more, length + 1};
  }
  return cairn__rows_put(rows, CAIRN__TABLE_STATE, v, t);
}

static struct cairn__text text(const char *s)
{
  return (struct cairn__text){s, s ? strlen(s) : 0};
}

/* A new string, or NULL for null; *is_well is cleared without memory. */
static char *dump(const json_t *value, int *is_well)
{
  char *s =
      value ? cairn__json_dump(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

  if (value && !s)
    *is_well = 0;
  return s;
}

static int put_text(const struct cairn__job *j, struct cairn__rows *rows)
{
  const struct cairn__failure *f = j->failure;
  const struct cairn__details *d = j->details;
  struct cairn__text t[CAIRN__TEXT_TEXT_COUNT] = {{NULL, 0}};
  int64_t v[CAIRN__TEXT_INTEGER_COUNT] = {(int64_t)j->entry.serial, 0, -1};
  char *warnings, *report, *choices, point[37];
  int is_well = 1, has_any = 0;

  warnings = j->folded_warnings ? NULL : dump(j->warnings, &is_well);
  report = j->folded_report ? NULL : dump(j->report, &is_well);
  choices = dump(d ? d->choices : NULL, &is_well);
  if (f) {
    v[CAIRN__TEXT_errno_of_failure] = f->system_errno;
    v[CAIRN__TEXT_offset] = f->offset;
    t[CAIRN__TEXT_ErrorDescription] = text(f->message);
    t[CAIRN__TEXT_machine] = text(f->machine);
    t[CAIRN__TEXT_disk] = text(f->disk);
    t[CAIRN__TEXT_path] = text(f->path);
  }
  t[CAIRN__TEXT_warnings] = text(warnings ? warnings : j->folded_warnings);
  t[CAIRN__TEXT_report] = text(report ? report : j->folded_report);
  t[CAIRN__TEXT_question] = text(d ? d->question : NULL);
  t[CAIRN__TEXT_choices] = text(choices);
  t[CAIRN__TEXT_answer] = text(d ? d->answer : NULL);
  if (!uuid_is_null(j->point)) {
    uuid_unparse_upper(j->point, point);
    t[CAIRN__TEXT_ReferencePointGroupId] = text(point);
  }
  for (int i = 0; i < CAIRN__TEXT_TEXT_COUNT; i++)
    has_any |= t[i].bytes != NULL;
  if (is_well)
    is_well =
        (has_any ? cairn__rows_put(rows, CAIRN__TABLE_TEXT, v, t)
                 : cairn__rows_remove(rows, CAIRN__TABLE_TEXT, v[0])) == 0;
  cairn_free(warnings);
  cairn_free(report);
  cairn_free(choices);
  return is_well ? 0 : -1;
}

static int put_job(const struct cairn__job *j, struct cairn__rows *rows)
{
  const struct cairn__details *d = j->details;
  struct cairn__text t[CAIRN__JOB_TEXT_COUNT] = {{NULL, 0}};
  int64_t v[CAIRN__JOB_INTEGER_COUNT];

  v[CAIRN__JOB_serial] = (int64_t)j->entry.serial;
  v[CAIRN__JOB_TimeSubmitted] = j->submitted_us;
  v[CAIRN__JOB_policy_version] = (int64_t)j->policy_version;
  v[CAIRN__JOB_RecoveryAction] =
      j->has_recovery_action ? 1 + j->recovery_action : 0;
  v[CAIRN__JOB_gap] = j->gap;
  v[CAIRN__JOB_overlap] = j->overlap;
  v[CAIRN__JOB_catch_up] = j->catch_up;
  v[CAIRN__JOB_once] = j->is_once;
  v[CAIRN__JOB_held] = j->is_on_demand;
  t[CAIRN__JOB_InstanceID] = text(j->instance_id);
  t[CAIRN__JOB_Name] = text(j->name);
  t[CAIRN__JOB_kind] = text(j->kind ? j->kind->name : "run");
  t[CAIRN__JOB_spec] = text(j->spec);
  t[CAIRN__JOB_queue] = text(j->queue->name);
  t[CAIRN__JOB_Notify] = text(j->settings.notify);
  if (d) {
    t[CAIRN__JOB_Caption] = text(d->caption);
    t[CAIRN__JOB_Description] = text(d->description);
    t[CAIRN__JOB_ElementName] = text(d->element_name);
    t[CAIRN__JOB_OtherRecoveryAction] = text(d->other_recovery);
    t[CAIRN__JOB_RecoveryJob] = text(d->recovery_job);
    t[CAIRN__JOB_zone] = text(d->zone);
    t[CAIRN__JOB_policy] = text(d->policy);
    t[CAIRN__JOB_policy_key] = text(d->policy_key);
    t[CAIRN__JOB_policy_file] = text(d->policy_file);
    t[CAIRN__JOB_decisions] = text(d->decisions);
  }
  return cairn__rows_put(rows, CAIRN__TABLE_JOB, v, t);
}

int cairn__record_put(struct cairn_engine *e, const struct cairn__job *j,
                      struct cairn__rows *rows)
{
  if ((j->touched & CAIRN__TOUCHED_JOB) && put_job(j, rows) != 0)
    return -1;
  if ((j->touched & CAIRN__TOUCHED_TEXT) && put_text(j, rows) != 0)
    return -1;
  return put_state(e, j, rows);
}

/* ---- from rows ----------------------------------------------------------- */

static int damaged(struct cairn_error *err, int64_t serial, const char *column)
{
  return cairn__fail(err, CAIRN_E_STORE_FAILED,
                     "the store is damaged: job %lld: what it has as %s cannot "
                     "be",
                     (long long)serial, column);
}

/* 1: fresh memory in *out, or NULL for null; 0: memory. */
static int copy(const struct cairn__text *t, char **out)
{
  *out = t->bytes ? cairn__strndup(t->bytes, t->length) : NULL;
  return !t->bytes || *out;
}

/* 0 and *out, NULL for null; 1: it is no JSON; -1: memory. */
static int parse(const struct cairn__text *t, json_t **out)
{
  *out = NULL;
  if (!t->bytes)
    return 0;
  *out = cairn__json_load(t->bytes, t->length, JSON_DECODE_ANY, NULL);
  return *out ? 0 : errno == ENOMEM ? -1 : 1;
}

static int load_details(struct cairn__job *j, const struct cairn__text *t)
{
  struct cairn__details *d = j->details;

  return copy(&t[CAIRN__JOB_Caption], &d->caption) &&
         copy(&t[CAIRN__JOB_Description], &d->description) &&
         copy(&t[CAIRN__JOB_ElementName], &d->element_name) &&
         copy(&t[CAIRN__JOB_OtherRecoveryAction], &d->other_recovery) &&
         copy(&t[CAIRN__JOB_RecoveryJob], &d->recovery_job) &&
         copy(&t[CAIRN__JOB_zone], &d->zone) &&
         copy(&t[CAIRN__JOB_policy], &d->policy) &&
         copy(&t[CAIRN__JOB_policy_key], &d->policy_key) &&
         copy(&t[CAIRN__JOB_policy_file], &d->policy_file) &&
         copy(&t[CAIRN__JOB_decisions], &d->decisions);
}

static int has_details(const struct cairn__text *t)
{
  return t[CAIRN__JOB_Caption].bytes || t[CAIRN__JOB_Description].bytes ||
         t[CAIRN__JOB_ElementName].bytes ||
         t[CAIRN__JOB_OtherRecoveryAction].bytes ||
         t[CAIRN__JOB_RecoveryJob].bytes || t[CAIRN__JOB_zone].bytes ||
         t[CAIRN__JOB_policy].bytes || t[CAIRN__JOB_policy_key].bytes ||
         t[CAIRN__JOB_policy_file].bytes || t[CAIRN__JOB_decisions].bytes;
}

static int digit_of(char c)
{
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/* "Cairn:" and a GUID in upper case. */
static int load_id(struct cairn__job *j, const struct cairn__text *t)
{
  unsigned char id[16];
  const char *p;

  if (!t->bytes || t->length != 42 || memcmp(t->bytes, "Cairn:", 6) != 0)
    return 0;
  p = t->bytes + 6;
  for (int i = 0; i < 16; i++, p += 2) {
    int high, low;

    if (i == 4 || i == 6 || i == 8 || i == 10) {
      if (*p++ != '-')
        return 0;
    }
    high = digit_of(p[0]);
    low = digit_of(p[1]);
    if (high < 0 || low < 0)
      return 0;
    id[i] = (unsigned char)(high << 4 | low);
  }
  memcpy(j->instance_id, t->bytes, 42);
  cairn__entry_set_uuid(&j->entry, id);
  return 1;
}

static int is_word(int64_t value, int property)
{
  const struct cairn_property_info *p = cairn_property_at((size_t)property - 1);

  return value == 0 || (value > 0 && cairn_value_label(p, value - 1));
}

static const char *load_integers(struct cairn__job *j, const int64_t *v)
{
  int64_t recovery = v[CAIRN__JOB_RecoveryAction];

  if (recovery < 0 || recovery > 1 + CAIRN__RECOVERY_RUN_RECOVERY_JOB)
    return "RecoveryAction";
  if (!is_word(v[CAIRN__JOB_gap], CAIRN_PROPERTY_gap))
    return "gap";
  if (!is_word(v[CAIRN__JOB_overlap], CAIRN_PROPERTY_overlap))
    return "overlap";
  if (!is_word(v[CAIRN__JOB_catch_up], CAIRN_PROPERTY_catch_up))
    return "catch_up";
  j->has_recovery_action = recovery != 0;
  j->recovery_action = (uint8_t)(recovery ? recovery - 1 : 0);
  j->gap = (uint8_t)v[CAIRN__JOB_gap];
  j->overlap = (uint8_t)v[CAIRN__JOB_overlap];
  j->catch_up = (uint8_t)v[CAIRN__JOB_catch_up];
  j->is_once = v[CAIRN__JOB_once] != 0;
  j->is_on_demand = v[CAIRN__JOB_held] != 0;
  j->submitted_us = v[CAIRN__JOB_TimeSubmitted];
  j->policy_version = (uint64_t)v[CAIRN__JOB_policy_version];
  j->run_version = j->policy_version; /* an update may have come since */
  return NULL;
}

/* What the specification says is needed without looking at it again. */
static int load_spec(struct cairn_engine *e, struct cairn__job *j,
                     const struct cairn__text *t, const char *kind,
                     const json_t *spec, struct cairn_error *err)
{
  const char *code = json_string_value(json_object_get(spec, "code"));
  int is_task = strcmp(kind, "run") == 0;
  char *queue = NULL;
  int result;

  /* a task's answers must not fail for want of room */
  if (has_details(t) || is_task) {
    j->details = cairn__calloc(1, sizeof *j->details);
    if (!j->details || !load_details(j, t))
      return cairn__fail_memory(err);
  }
  if (is_task && code) {
    j->details->code = cairn__strdup(code);
    if (!j->details->code)
      return cairn__fail_memory(err);
  }
  if (!copy(&t[CAIRN__JOB_queue], &queue))
    return cairn__fail_memory(err);
  result = cairn__job_place(e, j, kind, queue, spec, err);
  cairn__free(queue);
  return result;
}

static int load_job(struct cairn_engine *e, struct cairn__job *j,
                    const int64_t *v, const struct cairn__text *t,
                    struct cairn_error *err)
{
  const struct cairn__text *text = &t[CAIRN__JOB_spec];
  const char *column = load_integers(j, v);
  struct cairn__json_region region; /* the job keeps no value of it */
  json_t *spec;
  char *kind = NULL;
  int code;

  if (column)
    return damaged(err, v[0], column);
  if (v[0] < 1)
    return damaged(err, v[0], "serial");
  if (!load_id(j, &t[CAIRN__JOB_InstanceID]))
    return damaged(err, v[0], "InstanceID");
  if (!t[CAIRN__JOB_Name].bytes || !t[CAIRN__JOB_kind].bytes ||
      !t[CAIRN__JOB_queue].bytes)
    return damaged(err, v[0], "Name, kind or queue");
  if (!text->bytes)
    return damaged(err, v[0], "spec");
  cairn__json_region_open(&region);
  spec = cairn__json_load_in(&region, text->bytes, text->length,
                             JSON_DECODE_ANY, NULL);
  if (!spec)
    code =
        errno == ENOMEM ? cairn__fail_memory(err) : damaged(err, v[0], "spec");
  else if (copy(&t[CAIRN__JOB_Name], &j->name) &&
           copy(&t[CAIRN__JOB_Notify], &j->settings.notify) &&
           copy(&t[CAIRN__JOB_spec], &j->spec) &&
           copy(&t[CAIRN__JOB_kind], &kind))
    code = load_spec(e, j, t, kind, spec, err);
  else
    code = cairn__fail_memory(err);
  cairn__free(kind);
  json_decref(spec);
  cairn__json_region_close(&region);
  return code;
}

struct cairn__job *cairn__record_job(struct cairn_engine *e, const int64_t *v,
                                     const struct cairn__text *t,
                                     struct cairn_error *err)
{
  struct cairn__job *j = cairn__job_blank();

  if (!j) {
    cairn__fail_memory(err);
    return NULL;
  }
  if (load_job(e, j, v, t, err) != 0 || cairn__engine_reserve_jobs(e, 1) != 0) {
    cairn__job_free(e, j);
    return NULL;
  }
  cairn__job_link(e, j, (uint64_t)v[CAIRN__JOB_serial]);
  return j;
}

/* What the members are used for without another look. */
static const char *check_state(const struct cairn__job *j)
{
  const struct cairn__settings *s = &j->settings;

  /* a value map has labels for what it reserves, too */
  if ((j->state < CAIRN_NEW || j->state > CAIRN_QUERY_PENDING ||
       j->state == CAIRN_SERVICE) &&
      j->state != CAIRN_COMPLETED_WITH_WARNINGS)
    return "JobState";
  if (j->error_id != CAIRN_OK && !cairn_error_info(j->error_id))
    return "ErrorCode";
  if (j->asked > CAIRN__ASKED_KILL)
    return "asked";
  if ((s->set & CAIRN__SET_MONTH) && s->month > 11)
    return "RunMonth";
  if ((s->set & CAIRN__SET_DAY) && (s->day < -31 || s->day > 31))
    return "RunDay";
  if ((s->set & CAIRN__SET_DAY_OF_WEEK) &&
      (s->day_of_week < -7 || s->day_of_week > 7))
    return "RunDayOfWeek";
  if ((s->set & CAIRN__SET_LOCAL_OR_UTC) && (s->local_or_utc > 2))
    return "LocalOrUtcTime";
  if (s->start_interval.microseconds < 0)
    return "RunStartInterval";
  if ((s->set & CAIRN__SET_SCHEDULED) &&
      (s->scheduled.kind < CAIRN_TIMESTAMP || s->scheduled.kind > CAIRN_ZERO))
    return "ScheduledStartTime_kind";
  if ((s->set & CAIRN__SET_UNTIL) &&
      (s->until.kind < CAIRN_TIMESTAMP || s->until.kind > CAIRN_NEVER))
    return "UntilTime_kind";
  return NULL;
}

static const struct field *field_named(const char *name)
{
  for (size_t i = 0; i < FIELD_COUNT; i++) {
    if (fields[i].name && strcmp(fields[i].name, name) == 0)
      return &fields[i];
  }
  return NULL;
}

/* One member of "more"; 0 when it cannot be. Times are those of the wall. */
static int set_more(struct cairn__job *j, const char *name, const json_t *value)
{
  const struct field *f = field_named(name);
  int64_t n = json_integer_value(value);

  if (!json_is_integer(value))
    return 0;
  if (f)
    return set_field(j, f, n);
  if (strcmp(name, "ScheduledStartTime") == 0)
    j->settings.scheduled.microseconds = n;
  else if (strcmp(name, "UntilTime") == 0)
    j->settings.until.microseconds = n;
  else if (strcmp(name, "time_of_retry") == 0)
    j->retry_us = n;
  else
    return 0;
  return 1;
}

/* 0; 1: it cannot be; -1: memory. */
static int load_more(struct cairn__job *j, const struct cairn__text *more)
{
  const char *name;
  json_t *object, *value;
  int code = parse(more, &object);

  if (code != 0 || !object)
    return code;
  if (!json_is_object(object))
    code = 1;
  json_object_foreach(object, name, value)
  {
    if (!set_more(j, name, value))
      code = 1;
  }
  json_decref(object);
  return code;
}

int cairn__record_state(struct cairn_engine *e, struct cairn__job *j,
                        const int64_t *v, const struct cairn__text *t,
                        struct cairn_error *err)
{
  struct cairn__settings *s = &j->settings;
  const char *column = NULL;
  int code;

  for (size_t i = 0; i < FIELD_COUNT && !column; i++) {
    if (!fields[i].name && !set_field(j, &fields[i], v[fields[i].column]))
      column = "a value out of its range";
  }
  set_usual(s, s->set);
  if (!set_flags(j, v[CAIRN__STATE_flags]))
    column = "flags";
  code = load_more(j, &t[CAIRN__STATE_more]);
  if (code < 0)
    return cairn__fail_memory(err);
  if (code > 0)
    column = "more";
  if (!column)
    column = check_state(j);
  if (column)
    return damaged(err, v[0], column);
  s->start_interval.kind = CAIRN_INTERVAL;
  s->scheduled.microseconds =
      loaded_time(e, &s->scheduled, s->scheduled.microseconds);
  s->until.microseconds = loaded_time(e, &s->until, s->until.microseconds);
  j->elapsed_us = v[CAIRN__STATE_ElapsedTime];
  if (cairn_state_is_final(j->state))
    j->finished_us = to_monotonic(e, v[CAIRN__STATE_time_finished]);
  if (j->is_backing_off)
    j->retry_us = to_monotonic(e, j->retry_us);
  return 0;
}

int cairn__record_text(struct cairn__job *j, const int64_t *v,
                       const struct cairn__text *t, struct cairn_error *err)
{
  const struct {
    int column;
    json_t **out;
    int is_object;
  } values[] = {
      {CAIRN__TEXT_warnings, &j->warnings, 0},
      {CAIRN__TEXT_report, &j->report, 1},
      {CAIRN__TEXT_choices, j->details ? &j->details->choices : NULL, 0}};

  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    int code;

    if (!values[i].out || *values[i].out)
      continue;
    code = parse(&t[values[i].column], values[i].out);
    if (code < 0)
      return cairn__fail_memory(err);
    if (code > 0 || (*values[i].out && !values[i].is_object &&
                     !json_is_array(*values[i].out)))
      return damaged(err, v[0], "warnings, report or choices");
  }
  if (j->details && (!copy(&t[CAIRN__TEXT_question], &j->details->question) ||
                     !copy(&t[CAIRN__TEXT_answer], &j->details->answer)))
    return cairn__fail_memory(err);
  if (t[CAIRN__TEXT_ReferencePointGroupId].bytes) {
    char id[37] = "";

    if (t[CAIRN__TEXT_ReferencePointGroupId].length == 36)
      memcpy(id, t[CAIRN__TEXT_ReferencePointGroupId].bytes, 36);
    if (uuid_parse(id, j->point) != 0)
      return damaged(err, v[0], "ReferencePointGroupId");
  }
  if (t[CAIRN__TEXT_ErrorDescription].bytes && j->error_id != CAIRN_OK) {
    struct cairn_error error;
    const struct cairn__text *parts = t;

    cairn__error_clear(&error);
    error.id = j->error_id;
    error.system_errno = (int)v[CAIRN__TEXT_errno_of_failure];
    error.offset = v[CAIRN__TEXT_offset];
#define TAKE(column, member)                                                   \
  do {                                                                         \
    const struct cairn__text *p = &parts[CAIRN__TEXT_##column];                \
    size_t n = p->length < sizeof error.member - 1 ? p->length                 \
                                                   : sizeof error.member - 1;  \
    if (p->bytes)                                                              \
      memcpy(error.member, p->bytes, n);                                       \
  } while (0)
    TAKE(ErrorDescription, message);
    TAKE(machine, machine);
    TAKE(disk, disk);
    TAKE(path, path);
#undef TAKE
    cairn__job_set_error(j, &error);
  }
  return 0;
}
