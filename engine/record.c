/* record.c: see record.h. */
#include "record.h"

#include <errno.h>
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

/* ---- members that are stored as they are --------------------------------- */

struct field {
  uint8_t column, size, is_signed;
  uint16_t offset;
};

#define TYPE_OF(member) __typeof__(((struct cairn__job *)0)->member)
#define FIELD(name, member)                                                    \
  {                                                                            \
    CAIRN__STATE_##name, sizeof(TYPE_OF(member)),                              \
        (TYPE_OF(member)) - 1 < (TYPE_OF(member))1,                            \
        offsetof(struct cairn__job, member)                                    \
  }

static const struct field fields[] = {
    FIELD(JobState, state),
    FIELD(ErrorCode, error_id),
    FIELD(TimeOfLastStateChange, changed_us),
    FIELD(StartTime, started_us),
    FIELD(PercentComplete, percent),
    FIELD(run_number, run_number),
    FIELD(runs_succeeded, runs_succeeded),
    FIELD(attempts, attempts),
    FIELD(epoch, epoch),
    FIELD(bytes_total, bytes_total),
    FIELD(bytes_done, bytes_done),
    FIELD(lost_warnings, lost_warnings),
    FIELD(settings, settings.set),
    FIELD(JobRunTimes, settings.run_times),
    FIELD(Priority, settings.priority),
    FIELD(RunMonth, settings.month),
    FIELD(RunDay, settings.day),
    FIELD(RunDayOfWeek, settings.day_of_week),
    FIELD(RunStartInterval, settings.start_interval.microseconds),
    FIELD(RunStartInterval_precision, settings.start_interval.precision),
    FIELD(LocalOrUtcTime, settings.local_or_utc),
    FIELD(DeleteOnCompletion, settings.is_delete),
    FIELD(TimeBeforeRemoval, settings.removal_us),
    FIELD(TimeBeforeRemoval_precision, settings.removal_precision),
    FIELD(ScheduledStartTime_kind, settings.scheduled.kind),
    FIELD(ScheduledStartTime_offset, settings.scheduled.utc_offset),
    FIELD(ScheduledStartTime_precision, settings.scheduled.precision),
    FIELD(UntilTime_kind, settings.until.kind),
    FIELD(UntilTime_offset, settings.until.utc_offset),
    FIELD(UntilTime_precision, settings.until.precision),
    FIELD(due_settled, due.after_us),
    FIELD(due_run, due.run_us),
    FIELD(due_next, due.next_us),
    FIELD(due_has_come, due.has_come),
    FIELD(asked, asked),
    FIELD(has_changed, has_changed),
    FIELD(is_start_now, settings.is_start_now),
    FIELD(is_held, is_held),
    FIELD(is_start_asked, is_start_asked),
    FIELD(is_live, is_live),
    FIELD(is_until_passed, is_until_passed),
    FIELD(is_removable, is_removable),
    FIELD(is_backing_off, is_backing_off),
    FIELD(is_recovering, is_recovering),
    FIELD(is_interrupted, is_interrupted),
    FIELD(is_deciding, is_deciding),
    FIELD(is_stray, is_stray),
    FIELD(has_ended, has_ended),
    FIELD(is_last_well, is_last_well),
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

static int put_state(struct cairn_engine *e, const struct cairn__job *j,
                     struct cairn__rows *rows)
{
  int64_t v[CAIRN__STATE_INTEGER_COUNT] = {0};

  v[CAIRN__STATE_serial] = (int64_t)j->by_serial.key;
  for (size_t i = 0; i < FIELD_COUNT; i++)
    v[fields[i].column] = get_field(j, &fields[i]);
  if (j->is_closing && j->asked == CAIRN__ASKED_SUSPEND)
    v[CAIRN__STATE_asked] = CAIRN__ASKED_NOTHING; /* no client's wish */
  v[CAIRN__STATE_ElapsedTime] = j->elapsed_us;
  if (j->is_executing)
    v[CAIRN__STATE_ElapsedTime] += cairn__monotonic(e) - j->executing_since_us;
  v[CAIRN__STATE_time_finished] =
      cairn_state_is_final(j->state) ? to_wall(e, j->finished_us) : 0;
  v[CAIRN__STATE_time_of_retry] =
      j->is_backing_off ? to_wall(e, j->retry_us) : 0;
  v[CAIRN__STATE_ScheduledStartTime] = stored_time(e, &j->settings.scheduled);
  v[CAIRN__STATE_UntilTime] = stored_time(e, &j->settings.until);
  return cairn__rows_put(rows, CAIRN__TABLE_STATE, v, NULL);
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
  int64_t v[CAIRN__TEXT_INTEGER_COUNT] = {(int64_t)j->by_serial.key, 0, -1};
  char *warnings, *report, *choices, point[37];
  int is_well = 1, has_any = 0;

  warnings = dump(j->warnings, &is_well);
  report = dump(j->report, &is_well);
  choices = dump(d ? d->choices : NULL, &is_well);
  t[CAIRN__TEXT_Notify] = text(j->settings.notify);
  if (f) {
    v[CAIRN__TEXT_errno_of_failure] = f->system_errno;
    v[CAIRN__TEXT_offset] = f->offset;
    t[CAIRN__TEXT_ErrorDescription] = text(f->message);
    t[CAIRN__TEXT_machine] = text(f->machine);
    t[CAIRN__TEXT_disk] = text(f->disk);
    t[CAIRN__TEXT_path] = text(f->path);
  }
  t[CAIRN__TEXT_warnings] = text(warnings);
  t[CAIRN__TEXT_report] = text(report);
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

  v[CAIRN__JOB_serial] = (int64_t)j->by_serial.key;
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
  if ((j->touched & (CAIRN__TOUCHED_JOB | CAIRN__TOUCHED_TEXT)) &&
      put_text(j, rows) != 0)
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

static int load_id(struct cairn__job *j, const struct cairn__text *t)
{
  unsigned char id[16];
  uint64_t key = 0;

  if (!t->bytes || t->length != 42 || strncmp(t->bytes, "Cairn:", 6) != 0)
    return 0;
  memcpy(j->instance_id, t->bytes, 42);
  if (uuid_parse(j->instance_id + 6, id) != 0)
    return 0;
  for (int i = 0; i < 8; i++)
    key = key << 8 | id[i];
  j->by_uuid.key = key;
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
  const char *column = load_integers(j, v);
  json_t *spec = NULL;
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
  code = parse(&t[CAIRN__JOB_spec], &spec);
  if (code > 0 || (code == 0 && !spec))
    return damaged(err, v[0], "spec");
  if (code < 0)
    return cairn__fail_memory(err);
  if (copy(&t[CAIRN__JOB_Name], &j->name) &&
      copy(&t[CAIRN__JOB_spec], &j->spec) && copy(&t[CAIRN__JOB_kind], &kind))
    code = load_spec(e, j, t, kind, spec, err);
  else
    code = cairn__fail_memory(err);
  cairn__free(kind);
  json_decref(spec);
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
  if (load_job(e, j, v, t, err) != 0 ||
      cairn__engine_reserve_timers(e, 1, 0) != 0) {
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

int cairn__record_state(struct cairn_engine *e, struct cairn__job *j,
                        const int64_t *v, struct cairn_error *err)
{
  struct cairn__settings *s = &j->settings;
  const char *column = NULL;

  for (size_t i = 0; i < FIELD_COUNT && !column; i++) {
    if (!set_field(j, &fields[i], v[fields[i].column]))
      column = "a value out of its range";
  }
  if (!column)
    column = check_state(j);
  if (column)
    return damaged(err, v[0], column);
  s->start_interval.kind = CAIRN_INTERVAL;
  s->scheduled.microseconds =
      loaded_time(e, &s->scheduled, v[CAIRN__STATE_ScheduledStartTime]);
  s->until.microseconds = loaded_time(e, &s->until, v[CAIRN__STATE_UntilTime]);
  j->elapsed_us = v[CAIRN__STATE_ElapsedTime];
  j->finished_us = to_monotonic(e, v[CAIRN__STATE_time_finished]);
  j->retry_us = to_monotonic(e, v[CAIRN__STATE_time_of_retry]);
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
  char *notify;

  if (!copy(&t[CAIRN__TEXT_Notify], &notify))
    return cairn__fail_memory(err);
  cairn__free(j->settings.notify);
  j->settings.notify = notify;
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
