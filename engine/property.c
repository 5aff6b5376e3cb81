/* Reading a job's properties, one by one or as JSON.
 *
 * Nothing that follows from something else is stored: status properties come
 * from JobState (state.h), intervals are what is left at the moment of the
 * read. */
#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "cim.h"
#include "datetime.h"
#include "engine.h"
#include "error.h"
#include "json.h"
#include "memory.h"
#include "store.h"
#include "state.h"

static const struct cairn_property_info *info_of(int id)
{
  return cairn_property_at((size_t)id - 1);
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

/* As the clock shows it that the job's calendar goes by. */
static struct cairn_datetime local_time(const struct cairn__job *j,
                                        int64_t unix_us)
{
  int is_utc = (j->settings.set & CAIRN__SET_LOCAL_OR_UTC) &&
               j->settings.local_or_utc == 2;
  int64_t offset =
      is_utc || !j->due.zone ? 0 : cairn__zone_offset_us(j->due.zone, unix_us);

  return cairn__datetime_from_unix(unix_us, (int)(offset / 60000000));
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
      .is_waiting = phase == CAIRN__PHASE_WAITING ||
                    phase == CAIRN__PHASE_QUEUED ||
                    phase == CAIRN__PHASE_BACKOFF,
      .is_held = phase == CAIRN__PHASE_HELD,
      .is_killing = j->asked == CAIRN__ASKED_KILL,
      .is_retryable = is_outside != 0,
      .run_failed = j->state == CAIRN_SUSPENDED && j->error_id != CAIRN_OK,
      .is_cause_outside = is_outside != 0,
  };

  return cairn__status_of(j->state, flags);
}

const char *cairn__job_message(const struct cairn__job *j)
{
  const struct cairn_error_info *info;

  if (j->error_id == CAIRN_OK)
    return NULL;
  if (j->failure)
    return j->failure->message;
  info = cairn_error_info(j->error_id);
  return info ? info->summary : "unknown error";
}

/* When the timer of an idle job goes off; a time that was given as one is shown
 * with the offset that it was given with. */
static void format_timer(struct cairn_engine *e, const struct cairn__job *j,
                         char text[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t;

  if (j->schedule.heap == &e->monotonic)
    t = local_time(j, cairn__wall(e) + j->schedule.when - cairn__monotonic(e));
  else if (!(j->settings.set & CAIRN__SET_CALENDAR))
    t = j->settings.scheduled;
  else
    t = local_time(j, j->schedule.when);
  cairn_datetime_format(&t, text);
}

static const char *waiting_status(struct cairn_engine *e,
                                  const struct cairn__job *j)
{
  char time[CAIRN_DATETIME_SIZE] = "", which[64] = "";
  const char *failed = j->error_id ? "; the last run failed: " : "";
  const char *message = j->error_id ? cairn__job_message(j) : "";

  if (j->schedule.heap)
    format_timer(e, j, time);
  if (!(j->settings.set & CAIRN__SET_CALENDAR)) {
    if (!*time)
      return "waiting to be started";
    snprintf(e->text, sizeof e->text, "waiting for ScheduledStartTime %s",
             time);
    return e->text;
  }
  if (j->settings.run_times == 0)
    snprintf(which, sizeof which, "run %u", j->run_number + 1);
  else
    snprintf(which, sizeof which, "run %u of %u", j->run_number + 1,
             j->settings.run_times);
  if (*time && cairn__due_is_allowed(e, j))
    snprintf(e->text, sizeof e->text, "waiting for %s, due %s%s%s", which, time,
             failed, message);
  else
    snprintf(e->text, sizeof e->text, "%s: %s is not due before it%s%s",
             j->settings.set & CAIRN__SET_UNTIL ? "waiting for UntilTime"
                                                : "waiting for the year 10000",
             which, failed, message);
  cairn__utf8_clean(e->text); /* in case it was cut */
  return e->text;
}

static const char *backoff_status(struct cairn_engine *e,
                                  const struct cairn__job *j)
{
  const char *handler = cairn__job_handler(j);
  char time[CAIRN_DATETIME_SIZE];

  if (handler) {
    snprintf(e->text, sizeof e->text,
             "attempt %u failed, %s \"%s\" decides what becomes of it: %s",
             j->attempts,
             cairn__has_handler(e, handler) ? "the handler"
                                            : "the missing handler",
             handler, cairn__job_message(j));
    cairn__utf8_clean(e->text);
    return e->text;
  }
  if (j->is_deciding) {
    snprintf(e->text, sizeof e->text,
             "attempt %u failed, its policy decides what becomes of it: %s",
             j->attempts, cairn__job_message(j));
    cairn__utf8_clean(e->text);
    return e->text;
  }
  format_timer(e, j, time);
  if (j->details && j->details->decisions) /* it says how many there are */
    snprintf(e->text, sizeof e->text,
             "attempt %u failed, the next is at %s: %s", j->attempts, time,
             cairn__job_message(j));
  else
    snprintf(e->text, sizeof e->text,
             "attempt %u of %d failed, the next is at %s: %s", j->attempts,
             CAIRN__ATTEMPTS, time, cairn__job_message(j));
  cairn__utf8_clean(e->text);
  return e->text;
}

static const char *queued_status(struct cairn_engine *e,
                                 const struct cairn__job *j)
{
  const struct cairn_error *error = cairn__store_error(e);

  if (error) {
    snprintf(e->text, sizeof e->text,
             "queued: nothing starts while the store fails: %s",
             error->message);
    cairn__utf8_clean(e->text);
    return e->text;
  }
  if (j->directory && j->heap == &j->directory->waiting) {
    snprintf(e->text, sizeof e->text, "queued: another job exports into %s",
             j->directory->path);
    cairn__utf8_clean(e->text);
    return e->text;
  }
  if (e->closing >= 0)
    return "queued: the engine is closing, nothing starts";
  if (j->is_interrupted)
    return "queued: its run was interrupted and will be begun again";
  return "queued";
}

static const char *idle_status(struct cairn_engine *e,
                               const struct cairn__job *j)
{
  const char *code = cairn__job_missing_code(e, j);

  switch (cairn__job_phase(j)) {
  case CAIRN__PHASE_QUEUED:
    return queued_status(e, j);
  case CAIRN__PHASE_HELD:
    return j->is_live || j->is_interrupted
               ? "suspended by a client in the middle of a run"
               : "held by a client";
  case CAIRN__PHASE_BACKOFF:
    return backoff_status(e, j);
  default:
    if (!code)
      return waiting_status(e, j);
    snprintf(e->text, sizeof e->text,
             "waiting for its code: this program has no \"%s\"", code);
    cairn__utf8_clean(e->text);
    return e->text;
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
  default:
    return cairn__job_message(j);
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
  if (j->is_live || j->is_interrupted) { /* executing */
    give_datetime(v,
                  (struct cairn_datetime){.kind = CAIRN_ZERO, .precision = 20});
    return;
  }
  if (j->is_backing_off || (j->settings.set & CAIRN__SET_CALENDAR)) {
    if (j->is_deciding)
      give_null(v);
    else if (j->is_backing_off)
      give_time(v, cairn__wall(e) + j->retry_us - cairn__monotonic(e));
    else if (!cairn__due_is_allowed(e, j) ||
             (j->is_held && j->due.next_us <= cairn__wall(e)))
      give_null(v); /* what comes while the job is held has no run */
    else
      give_datetime(v, local_time(j, j->due.next_us));
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

static int makes_point(const struct cairn__job *j)
{
  return j->kind && (strcmp(j->kind->name, "export") == 0 ||
                     strcmp(j->kind->name, "import") == 0);
}

/* An export, or what is done to a reference point, once it has begun. */
static int is_of_point(const struct cairn__job *j)
{
  return j->kind &&
         (makes_point(j) || strcmp(j->kind->name, "reference_point") == 0) &&
         j->run_number > 0 && !uuid_is_null(j->point);
}

/* A property of the run: what the report says, once it ended well; empty while
 * it runs and when it failed. */
static int give_exported(struct cairn_engine *e, const struct cairn__job *j,
                         const char *name, struct cairn_value *v,
                         struct cairn_error *err)
{
  const json_t *properties = json_object_get(j->report, "properties");

  if (!is_of_point(j)) {
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
  const json_t *spec = NULL;
  const json_t *exported = json_object_get(
      json_object_get(j->report, "properties"), "VirtualMachineId");

  if (!is_of_point(j)) {
    give_null(v);
    return 0;
  }
  /* A run that ended well may have left out a machine: the arrays pair. */
  if (j->is_last_well && exported)
    return give_strings(e, v, exported, NULL, err);
  spec = cairn__job_spec(e, j);
  if (!spec)
    return cairn__fail_memory(err);
  return give_strings(
      e, v, json_object_get(json_object_get(spec, "collection"), "machines"),
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
  const char *id;

  if (!is_of_point(j)) {
    give_null(v);
    return;
  }
  /* an import may have brought its own */
  id = json_string_value(json_object_get(
      json_object_get(j->report, "properties"), "ReferencePointGroupId"));
  if (id) {
    give_string(v, id);
    return;
  }
  uuid_unparse_upper(j->point, e->text);
  give_string(v, e->text);
}

/* Of a point that exists only its id may have been given. */
static int give_collection(struct cairn_engine *e, const struct cairn__job *j,
                           struct cairn_value *v, struct cairn_error *err)
{
  const json_t *spec, *collection;

  if (!j->kind ||
      !(makes_point(j) || strcmp(j->kind->name, "reference_point") == 0)) {
    give_null(v);
    return 0;
  }
  spec = cairn__job_spec(e, j);
  if (!spec)
    return cairn__fail_memory(err);
  collection = json_object_get(spec, "collection");
  give_string(v, json_string_value(json_object_get(
                     collection ? collection : spec, "CollectionId")));
  return 0;
}

static int give_directory(struct cairn_engine *e, const struct cairn__job *j,
                          struct cairn_value *v, struct cairn_error *err)
{
  const json_t *spec;

  if (!makes_point(j)) {
    give_null(v);
    return 0;
  }
  spec = cairn__job_spec(e, j);
  if (!spec)
    return cairn__fail_memory(err);
  give_string(v, json_string_value(json_object_get(spec, "directory")));
  return 0;
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
    if (s->removal_us == CAIRN__NEVER_US) {
      give_datetime(v, cairn__datetime_never());
    } else {
      give_interval(v, s->removal_us);
      v->as.datetime.precision = s->removal_precision;
    }
    break;
  }
}

static int get(struct cairn_engine *e, const struct cairn__job *j,
               const struct cairn_property_info *p, struct cairn_value *v,
               struct cairn_error *err)
{
  const struct cairn__details *d = j->details;
  const struct cairn_error_info *info;

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
    info = cairn_error_info(j->error_id);
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
    give_string(v, cairn__job_message(j));
    break;
  case CAIRN_PROPERTY_CollectionId:
    return give_collection(e, j, v, err);
  case CAIRN_PROPERTY_ReferencePointGroupId:
    give_point(e, j, v);
    break;
  case CAIRN_PROPERTY_BaseReferencePointGroupId:
    give_base(j, v);
    break;
  case CAIRN_PROPERTY_VirtualMachineId:
    return give_machines(e, j, v, err);
  case CAIRN_PROPERTY_ExportDirectory:
    return give_directory(e, j, v, err);
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
    give_integer(v, j->attempts);
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

/* The report and the warnings are text in a job that has slept: these read
 * them. */
static int needs_results(int id)
{
  switch (id) {
  case CAIRN_PROPERTY_ReferencePointGroupId:
  case CAIRN_PROPERTY_BaseReferencePointGroupId:
  case CAIRN_PROPERTY_VirtualMachineId:
  case CAIRN_PROPERTY_ExportedDisks:
  case CAIRN_PROPERTY_ExportedLogFilePaths:
  case CAIRN_PROPERTY_ExportedConfigFilePaths:
  case CAIRN_PROPERTY_ExportedRuntimeFilePaths:
  case CAIRN_PROPERTY_ExportedGuestStateFilePaths:
  case CAIRN_PROPERTY_JobStatus:
  case CAIRN_PROPERTY_StatusDescriptions:
    return 1;
  default:
    return 0;
  }
}

/* What lists and figures of all jobs ask for is known of a job that sleeps
 * without waking it. 1: it is in *out. */
static int peek(struct cairn_engine *e, const struct cairn__entry *entry,
                const struct cairn_property_info *p, struct cairn_value *out)
{
  struct cairn__job j;
  int code;

  switch (p->id) {
  case CAIRN_PROPERTY_InstanceID:
    cairn__entry_id(entry, e->text);
    give_string(out, e->text);
    return 1;
  case CAIRN_PROPERTY_JobState:
  case CAIRN_PROPERTY_phase:
  case CAIRN_PROPERTY_queue:
  case CAIRN_PROPERTY_run_number:
  case CAIRN_PROPERTY_attempts:
  case CAIRN_PROPERTY_ErrorCode:
    cairn__roster_peek(e, entry, &j);
    return get(e, &j, p, out, NULL) == 0;
  case CAIRN_PROPERTY_Name:
    code = cairn__roster_peek_text(entry, CAIRN__PEEKED_NAME, e->text,
                                   sizeof e->text);
    break;
  case CAIRN_PROPERTY_policy:
    code = cairn__roster_peek_text(entry, CAIRN__PEEKED_POLICY, e->text,
                                   sizeof e->text);
    break;
  case CAIRN_PROPERTY_policy_key:
    code = cairn__roster_peek_text(entry, CAIRN__PEEKED_KEY, e->text,
                                   sizeof e->text);
    break;
  default:
    return 0;
  }
  if (code > 0)
    give_string(out, e->text);
  return code >= 0;
}

int cairn_job_get(cairn_engine *e, cairn_job job, int id,
                  struct cairn_value *out, struct cairn_error *err)
{
  const struct cairn_property_info *p = id > 0 ? info_of(id) : NULL;
  struct cairn__entry *entry;
  struct cairn__job *j;

  cairn__error_clear(err);
  give_null(out);
  cairn__roster_rest(e);
  entry = cairn__roster_find(&e->roster, job);
  if (p && entry && entry->is_asleep && peek(e, entry, p, out))
    return 0;
  j = cairn__engine_awake(e, entry, job, err);
  if (!j)
    return -1;
  if (!p)
    return cairn__fail(err, CAIRN_E_NO_SUCH_PROPERTY,
                       "there is no property number %d", id);
  if (needs_results(p->id) && cairn__job_unfold(j) != 0)
    return cairn__fail_memory(err);
  return get(e, j, p, out, err);
}

/* ---- JSON ---- */

json_t *cairn__json_parse(const char *what, const char *text, size_t length,
                          struct cairn_error *err)
{
  return cairn__json_parse_in(NULL, what, text, length, err);
}

json_t *cairn__json_parse_in(struct cairn__json_region *region,
                             const char *what, const char *text, size_t length,
                             struct cairn_error *err)
{
  json_error_t where;
  json_t *json;

  json =
      cairn__json_load_in(region, text, length, JSON_REJECT_DUPLICATES, &where);
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
  *out = json ? cairn__json_dump(json, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
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
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (cairn__job_unfold(j) != 0)
    return cairn__fail_memory(err);
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
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (cairn__job_unfold(j) != 0)
    return cairn__fail_memory(err);
  return cairn__json_give(j->report ? json_incref(j->report) : json_null(), out,
                          err);
}

int cairn_job_warnings(cairn_engine *e, cairn_job job, char **out,
                       struct cairn_error *err)
{
  struct cairn__job *j;
  json_t *array, *more = NULL;
  unsigned lost;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (cairn__job_unfold(j) != 0)
    return cairn__fail_memory(err);
  array = j->warnings ? json_deep_copy(j->warnings) : json_array();
  if (array && j->work &&
      (cairn__run_warnings(j->work->run, &more, &lost) != 0 ||
       (more && json_array_extend(array, more) != 0))) {
    json_decref(array);
    array = NULL;
  }
  json_decref(more);
  return cairn__json_give(array, out, err);
}
