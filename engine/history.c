/* history.c: see history.h. */
#include "history.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "cim.h"
#include "datetime.h"
#include "engine.h"
#include "error.h"
#include "job.h"
#include "memory.h"

enum { WARNINGS_BYTES = 4096 }; /* of the warnings that a record keeps */

struct cairn__record {
  uint64_t id;
  int64_t time; /* when it was made: the end of the run; Unix */
  int64_t due, due_last;
  int64_t started, elapsed;
  uint64_t bytes_done;
  uint64_t policy_version;
  uint32_t run, attempt, count, lost_warnings;
  uint16_t state, error_id;
  uint8_t is_skipped, reason;
  char instance_id[48];
  unsigned char point[16];
  char *message;  /* into text; NULL: none */
  char *warnings; /* into text; a JSON array of texts; NULL: none */
  char text[];    /* the job's name, the message, the warnings */
};

static struct cairn__record *record_at(const struct cairn__history *h, size_t i)
{
  return h->ring[(h->begin + i) & (h->capacity - 1)];
}

/* The index of the first record with this id or a higher one. */
static size_t index_of(const struct cairn__history *h, uint64_t id)
{
  size_t low = 0, high = h->count;

  while (low < high) {
    size_t middle = low + (high - low) / 2;

    if (record_at(h, middle)->id < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static void drop_first(struct cairn__history *h)
{
  struct cairn__record *r = record_at(h, 0);

  h->begin = (h->begin + 1) & (h->capacity - 1);
  h->count--;
  if (h->unwritten == r->id)
    h->unwritten = h->count > 0 ? record_at(h, 0)->id : 0;
  h->dropped = r->id;
  cairn__free(r);
}

void cairn__history_free(struct cairn_engine *e)
{
  struct cairn__history *h = &e->history;

  while (h->count > 0)
    drop_first(h);
  cairn__free(h->ring);
  h->ring = NULL;
  h->capacity = 0;
}

/* Room for one more; -1 when out of memory. */
static int reserve(struct cairn__history *h)
{
  size_t capacity = h->capacity ? 2 * h->capacity : 16;
  struct cairn__record **ring;

  if (h->count < h->capacity)
    return 0;
  ring = cairn__malloc(capacity * sizeof(void *));
  if (!ring)
    return -1;
  for (size_t i = 0; i < h->count; i++)
    ring[i] = record_at(h, i);
  cairn__free(h->ring);
  h->ring = ring;
  h->capacity = capacity;
  h->begin = 0;
  return 0;
}

static size_t size_of(const struct cairn__text *t)
{
  return t->bytes ? t->length + 1 : 0;
}

/* Copies a text to where it has room, and a zero; NULL where there is none. */
static char *put_behind(char *to, const struct cairn__text *t)
{
  if (!t->bytes)
    return NULL;
  memcpy(to, t->bytes, t->length);
  to[t->length] = '\0';
  return to;
}

/* A record that is in no list yet. The name has bytes. */
static struct cairn__record *make(const char *id,
                                  const struct cairn__text *name,
                                  const struct cairn__text *message,
                                  const struct cairn__text *warnings)
{
  size_t size = size_of(name) + size_of(message) + size_of(warnings);
  struct cairn__record *r = cairn__malloc(sizeof *r + size);

  if (!r)
    return NULL;
  memset(r, 0, sizeof *r);
  memcpy(r->instance_id, id, sizeof r->instance_id - 1);
  (void)put_behind(r->text, name);
  r->message = put_behind(r->text + size_of(name), message);
  r->warnings =
      put_behind(r->text + size_of(name) + size_of(message), warnings);
  return r;
}

/* Takes the record; -1, with nothing changed, when out of memory. */
static int append(struct cairn__history *h, struct cairn__record *r)
{
  if (reserve(h) != 0)
    return -1;
  h->ring[(h->begin + h->count++) & (h->capacity - 1)] = r;
  if (h->count > h->limit)
    drop_first(h);
  return 0;
}

static struct cairn__text text(const char *bytes)
{
  return (struct cairn__text){bytes, bytes ? strlen(bytes) : 0};
}

static struct cairn__record *add(struct cairn_engine *e,
                                 const struct cairn__job *j,
                                 const char *message, const char *warnings)
{
  struct cairn__history *h = &e->history;
  struct cairn__text name = text(j->name), error = text(message),
                     more = text(warnings);
  struct cairn__record *r = make(j->instance_id, &name, &error, &more);

  if (!r)
    return NULL;
  r->time = cairn__wall(e);
  r->id = h->last_id + 1;
  if (append(h, r) != 0) {
    cairn__free(r);
    return NULL;
  }
  h->last_id = r->id;
  if (h->unwritten == 0)
    h->unwritten = r->id;
  return r;
}

/* The warnings of the job's run as a JSON array, of as many as a record keeps:
 * freed by the caller (cairn_free). NULL: none, or no memory. *lost: how many
 * there were besides. */
static char *warnings_of(const struct cairn__job *j, uint32_t *lost)
{
  size_t count = json_array_size(j->warnings), i, bytes = 0;
  json_t *array, *warning;
  char *out = NULL;

  *lost = j->lost_warnings + (j->folded_warnings != NULL);
  if (count == 0)
    return NULL;
  array = json_array();
  json_array_foreach(j->warnings, i, warning)
  {
    bytes += json_string_length(warning);
    if (!array || (i > 0 && bytes > WARNINGS_BYTES) ||
        json_array_append(array, warning) != 0)
      break;
  }
  if (cairn__json_give(array, &out, NULL) != 0)
    i = 0;
  *lost += (uint32_t)(count - i);
  return out;
}

/* Whether there is the point that the run was about: it went well, or what went
 * wrong came after the publication, of which the report tells. */
static int has_point(const struct cairn__job *j, int state)
{
  return state == CAIRN_COMPLETED || state == CAIRN_COMPLETED_WITH_WARNINGS ||
         json_is_string(json_object_get(j->report, "ReferencePointGroupId")) ||
         (j->folded_report &&
          strstr(j->folded_report, "\"ReferencePointGroupId\":\""));
}

void cairn__history_run(struct cairn_engine *e, struct cairn__job *j, int state)
{
  int64_t due = j->due.run_us == CAIRN__NEVER_US ? 0 : j->due.run_us;
  struct cairn_event *event = cairn__event_push(e, CAIRN_EVENT_RUN_ENDED, j);
  struct cairn__record *r;
  uint32_t lost;
  char *warnings;

  (void)cairn__job_unfold(j); /* without memory its warnings count as lost */
  warnings = warnings_of(j, &lost);
  event->new_state = (uint16_t)state;
  event->code = j->error_id;
  event->count = j->attempts;
  event->due = due;
  r = add(e, j, cairn__job_message(j), warnings);
  cairn_free(warnings);
  if (!r)
    return;
  r->due = due;
  r->started = j->started_us;
  r->elapsed = j->elapsed_us;
  r->bytes_done = j->bytes_done;
  r->run = j->run_number;
  r->attempt = j->attempts;
  r->state = (uint16_t)state;
  r->error_id = j->error_id;
  r->policy_version = j->run_version;
  r->lost_warnings = lost;
  if (has_point(j, state))
    memcpy(r->point, j->point, sizeof r->point);
}

void cairn__history_skipped(struct cairn_engine *e, const struct cairn__job *j,
                            const struct cairn_event *event)
{
  struct cairn__record *r = add(e, j, NULL, NULL);

  if (!r)
    return;
  r->is_skipped = 1;
  r->reason = (uint8_t)event->code;
  r->due = event->due;
  r->due_last = event->due_last;
  r->count = event->count;
}

/* ---- in the store ---- */

int cairn__history_is_changed(const struct cairn_engine *e)
{
  return e->history.unwritten > 0 ||
         e->history.dropped_written < e->history.dropped;
}

static int put_record(const struct cairn__record *r, struct cairn__rows *rows)
{
  const int64_t v[CAIRN__HISTORY_INTEGER_COUNT] = {
      [CAIRN__HISTORY_id] = (int64_t)r->id,
      [CAIRN__HISTORY_time] = r->time,
      [CAIRN__HISTORY_due] = r->due,
      [CAIRN__HISTORY_due_last] = r->due_last,
      [CAIRN__HISTORY_StartTime] = r->started,
      [CAIRN__HISTORY_ElapsedTime] = r->elapsed,
      [CAIRN__HISTORY_bytes_done] = (int64_t)r->bytes_done,
      [CAIRN__HISTORY_run_number] = r->run,
      [CAIRN__HISTORY_attempt] = r->attempt,
      [CAIRN__HISTORY_count] = r->count,
      [CAIRN__HISTORY_JobState] = r->state,
      [CAIRN__HISTORY_ErrorCode] = r->error_id,
      [CAIRN__HISTORY_skipped] = r->is_skipped,
      [CAIRN__HISTORY_reason] = r->reason,
      [CAIRN__HISTORY_policy_version] = (int64_t)r->policy_version,
      [CAIRN__HISTORY_lost_warnings] = r->lost_warnings,
  };
  struct cairn__text t[CAIRN__HISTORY_TEXT_COUNT] = {
      [CAIRN__HISTORY_InstanceID] = text(r->instance_id),
      [CAIRN__HISTORY_Name] = text(r->text),
      [CAIRN__HISTORY_ErrorDescription] = text(r->message),
      [CAIRN__HISTORY_warnings] = text(r->warnings),
  };
  char point[37];

  if (!uuid_is_null(r->point)) {
    uuid_unparse_upper(r->point, point);
    t[CAIRN__HISTORY_ReferencePointGroupId] = (struct cairn__text){point, 36};
  }
  return cairn__rows_put(rows, CAIRN__TABLE_HISTORY, v, t);
}

int cairn__history_put(const struct cairn_engine *e, struct cairn__rows *rows)
{
  const struct cairn__history *h = &e->history;

  if (h->unwritten > 0) {
    for (size_t i = index_of(h, h->unwritten); i < h->count; i++)
      if (put_record(record_at(h, i), rows) != 0)
        return -1;
  }
  if (h->dropped_written == h->dropped)
    return 0;
  return cairn__rows_remove_to(rows, CAIRN__TABLE_HISTORY, (int64_t)h->dropped);
}

void cairn__history_written(struct cairn_engine *e)
{
  e->history.unwritten = 0;
  e->history.dropped_written = e->history.dropped;
}

/* 0; 1: it is no array of texts; -1: out of memory. */
static int check_warnings(const struct cairn__text *t)
{
  json_t *array, *warning;
  size_t i;
  int result = 0;

  if (!t->bytes)
    return 0;
  array = cairn__json_load(t->bytes, t->length, 0, NULL);
  if (!array)
    return errno == ENOMEM ? -1 : 1;
  if (!json_is_array(array))
    result = 1;
  json_array_foreach(array, i, warning)
  {
    if (!json_is_string(warning))
      result = 1;
  }
  json_decref(array);
  return result;
}

int cairn__history_load(struct cairn_engine *e, const int64_t *v,
                        const struct cairn__text *t, struct cairn_error *err)
{
  const struct cairn__text *id = &t[CAIRN__HISTORY_InstanceID];
  const struct cairn__text *name = &t[CAIRN__HISTORY_Name];
  const struct cairn__text *point = &t[CAIRN__HISTORY_ReferencePointGroupId];
  struct cairn__record *r;
  char instance_id[48] = "", point_id[37] = "";
  int wrong = check_warnings(&t[CAIRN__HISTORY_warnings]);

  if (wrong < 0)
    return cairn__fail_memory(err);
  if (wrong || !id->bytes || id->length != 42 || !name->bytes ||
      v[CAIRN__HISTORY_id] < 1 ||
      v[CAIRN__HISTORY_id] > (int64_t)e->history.last_id ||
      v[CAIRN__HISTORY_reason] < 0 ||
      v[CAIRN__HISTORY_reason] > CAIRN__SKIP_QUEUED)
    return cairn__fail(err, CAIRN_E_STORE_FAILED,
                       "the store is damaged: record %lld of its history",
                       (long long)v[CAIRN__HISTORY_id]);
  memcpy(instance_id, id->bytes, id->length);
  r = make(instance_id, name, &t[CAIRN__HISTORY_ErrorDescription],
           &t[CAIRN__HISTORY_warnings]);
  if (!r)
    return cairn__fail_memory(err);
  r->id = (uint64_t)v[CAIRN__HISTORY_id];
  r->time = v[CAIRN__HISTORY_time];
  r->due = v[CAIRN__HISTORY_due];
  r->due_last = v[CAIRN__HISTORY_due_last];
  r->started = v[CAIRN__HISTORY_StartTime];
  r->elapsed = v[CAIRN__HISTORY_ElapsedTime];
  r->bytes_done = (uint64_t)v[CAIRN__HISTORY_bytes_done];
  r->run = (uint32_t)v[CAIRN__HISTORY_run_number];
  r->attempt = (uint32_t)v[CAIRN__HISTORY_attempt];
  r->count = (uint32_t)v[CAIRN__HISTORY_count];
  r->state = (uint16_t)v[CAIRN__HISTORY_JobState];
  r->error_id = (uint16_t)v[CAIRN__HISTORY_ErrorCode];
  r->is_skipped = v[CAIRN__HISTORY_skipped] != 0;
  r->reason = (uint8_t)v[CAIRN__HISTORY_reason];
  r->policy_version = (uint64_t)v[CAIRN__HISTORY_policy_version];
  r->lost_warnings = (uint32_t)v[CAIRN__HISTORY_lost_warnings];
  if (point->bytes && point->length == 36) {
    memcpy(point_id, point->bytes, 36);
    if (uuid_parse(point_id, r->point) != 0)
      uuid_clear(r->point);
  }
  if (append(&e->history, r) != 0) {
    cairn__free(r);
    return cairn__fail_memory(err);
  }
  return 0;
}

/* ---- as JSON ---- */

/* A new reference, or NULL. */
static json_t *time_json(int64_t unix_us)
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);
  char text[CAIRN_DATETIME_SIZE];

  if (unix_us == 0)
    return json_null();
  cairn_datetime_format(&t, text);
  return json_string(text);
}

static json_t *interval_json(int64_t us)
{
  struct cairn_datetime t = cairn__datetime_interval(us);
  char text[CAIRN_DATETIME_SIZE];

  cairn_datetime_format(&t, text);
  return json_string(text);
}

static json_t *point_json(const unsigned char point[16])
{
  char text[37];

  if (uuid_is_null(point))
    return json_null();
  uuid_unparse_upper(point, text);
  return json_string(text);
}

/* NULL: out of memory. */
static json_t *warnings_json(const struct cairn__record *r)
{
  return r->warnings
             ? cairn__json_load(r->warnings, strlen(r->warnings), 0, NULL)
             : json_null();
}

static json_t *version_json(uint64_t version)
{
  char text[17];

  if (version == 0)
    return json_null();
  snprintf(text, sizeof text, "%016" PRIx64, version);
  return json_string(text);
}

static json_t *record_json(const struct cairn__record *r)
{
  static const char *const reasons[] = {"missed", "running", "held", "ended",
                                        "queued"};

  if (r->is_skipped)
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:i, s:s}", "InstanceID",
                     r->instance_id, "Name", r->text, "time",
                     time_json(r->time), "due", time_json(r->due), "due_last",
                     time_json(r->due_last), "skipped", (int)r->count, "reason",
                     reasons[r->reason]);
  return json_pack(
      "{s:s, s:s, s:o, s:o, s:o, s:o, s:I, s:I, s:s?, s:i, s:s?, s:o, s:I, "
      "s:I, s:o, s:o}",
      "InstanceID", r->instance_id, "Name", r->text, "time", time_json(r->time),
      "due", time_json(r->due), "StartTime", time_json(r->started),
      "ElapsedTime", interval_json(r->elapsed), "run_number",
      (json_int_t)r->run, "attempt", (json_int_t)r->attempt, "JobState",
      cairn_value_label(cairn_property_at(CAIRN_PROPERTY_JobState - 1),
                        r->state),
      "ErrorCode", (int)r->error_id, "ErrorDescription", r->message, "warnings",
      warnings_json(r), "lost_warnings", (json_int_t)r->lost_warnings,
      "bytes_done", (json_int_t)r->bytes_done, "ReferencePointGroupId",
      point_json(r->point), "policy_version", version_json(r->policy_version));
}

/* Whose records are wanted: a job that exists, or one that records tell of. */
static int find_id(cairn_engine *e, const char *id, char found[48],
                   struct cairn_error *err)
{
  const struct cairn__history *h = &e->history;
  char digits[33];
  cairn_job job;

  if (cairn_job_find(e, id, &job, err) == 0) {
    cairn__entry_id(cairn__roster_find(&e->roster, job), found);
    return 0;
  }
  if (!err || err->id != CAIRN_E_NOT_FOUND)
    return -1;
  cairn__id_digits(id, digits);
  found[0] = '\0';
  for (size_t i = 0; i < h->count; i++) {
    const struct cairn__record *r = record_at(h, i);

    if (!cairn__id_begins(r->instance_id, digits) ||
        strcmp(found, r->instance_id) == 0)
      continue;
    if (found[0])
      return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                         "\"%s\" is the beginning of more than one job's id: "
                         "%s, %s",
                         id, found, r->instance_id);
    memcpy(found, r->instance_id, sizeof r->instance_id);
  }
  if (!found[0])
    return -1;
  cairn__error_clear(err);
  return 0;
}

/* Where the last `max` records of a job (NULL: of all) begin. */
static size_t begin_of_last(const struct cairn__history *h, const char *id,
                            size_t begin, size_t max)
{
  size_t i = h->count;

  if (!id)
    return h->count - begin > max ? h->count - max : begin;
  while (i > begin && max > 0)
    if (strcmp(id, record_at(h, --i)->instance_id) == 0)
      max--;
  return max > 0 ? begin : i;
}

int cairn_history_range(cairn_engine *e,
                        const struct cairn_history_range *range, char **out,
                        uint64_t *next, struct cairn_error *err)
{
  const struct cairn__history *h = &e->history;
  size_t i, max = range->max ? range->max : SIZE_MAX, count = 0;
  uint64_t last = 0;
  struct cairn_error why;
  char found[48];
  const char *id = range->id ? found : NULL;
  json_t *array;

  cairn__error_clear(err);
  *out = NULL;
  if (next)
    *next = 0;
  if (id && find_id(e, range->id, found, &why) != 0) {
    if (why.id == CAIRN_E_NOT_FOUND && range->after > 0)
      return cairn__json_give(json_array(), out, err);
    if (err)
      *err = why;
    return -1;
  }
  array = json_array();
  if (!array)
    return cairn__fail_memory(err);
  i = range->after < h->last_id ? index_of(h, range->after + 1) : h->count;
  if (range->is_last)
    i = begin_of_last(h, id, i, max);
  for (; i < h->count; i++) {
    const struct cairn__record *r = record_at(h, i);

    if (id && strcmp(id, r->instance_id) != 0)
      continue;
    if (count++ == max) {
      if (next)
        *next = last;
      break;
    }
    last = r->id;
    if (json_array_append_new(array, record_json(r)) != 0) {
      json_decref(array);
      return cairn__fail_memory(err);
    }
  }
  if (cairn__json_give(array, out, err) == 0)
    return 0;
  if (next)
    *next = 0;
  return -1;
}

int cairn_history(cairn_engine *e, const char *id, char **out,
                  struct cairn_error *err)
{
  const struct cairn_history_range all = {.id = id};

  return cairn_history_range(e, &all, out, NULL, err);
}
