/* history.c: see history.h. */
#include "history.h"

#include <string.h>

#include <uuid/uuid.h>

#include "cim.h"
#include "datetime.h"
#include "engine.h"
#include "error.h"
#include "job.h"
#include "memory.h"

struct cairn__record {
  struct cairn__record *next;
  int64_t time; /* when it was made: the end of the run; Unix */
  int64_t due, due_last;
  int64_t started, elapsed;
  uint64_t bytes_done;
  uint32_t run, attempt, count;
  uint16_t state, error_id;
  uint8_t is_skipped, reason;
  char instance_id[48];
  unsigned char point[16];
  char *message; /* into text; NULL: none */
  char text[];   /* the job's name, the message */
};

static void drop_first(struct cairn__history *h)
{
  struct cairn__record *r = h->first;

  h->first = r->next;
  if (!h->first)
    h->last = NULL;
  h->count--;
  cairn__free(r);
}

void cairn__history_free(struct cairn_engine *e)
{
  while (e->history.first)
    drop_first(&e->history);
}

static struct cairn__record *
add(struct cairn_engine *e, const struct cairn__job *j, const char *message)
{
  struct cairn__history *h = &e->history;
  size_t name = strlen(j->name) + 1, more = message ? strlen(message) + 1 : 0;
  struct cairn__record *r = cairn__malloc(sizeof *r + name + more);

  if (!r)
    return NULL;
  memset(r, 0, sizeof *r);
  r->time = cairn__wall(e);
  memcpy(r->instance_id, j->instance_id, sizeof r->instance_id);
  memcpy(r->text, j->name, name);
  if (message) {
    r->message = r->text + name;
    memcpy(r->message, message, more);
  }
  if (h->last)
    h->last->next = r;
  else
    h->first = r;
  h->last = r;
  h->count++;
  if (h->count > h->limit)
    drop_first(h);
  return r;
}

void cairn__history_run(struct cairn_engine *e, const struct cairn__job *j,
                        int state)
{
  int64_t due = j->due.run_us == CAIRN__NEVER_US ? 0 : j->due.run_us;
  struct cairn_event *event = cairn__event_push(e, CAIRN_EVENT_RUN_ENDED, j);
  struct cairn__record *r;

  event->new_state = (uint16_t)state;
  event->code = j->error_id;
  event->count = j->attempts;
  event->due = due;
  r = add(e, j, cairn__job_message(j));
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
  memcpy(r->point, j->point, sizeof r->point);
}

void cairn__history_skipped(struct cairn_engine *e, const struct cairn__job *j,
                            const struct cairn_event *event)
{
  struct cairn__record *r = add(e, j, NULL);

  if (!r)
    return;
  r->is_skipped = 1;
  r->reason = (uint8_t)event->code;
  r->due = event->due;
  r->due_last = event->due_last;
  r->count = event->count;
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

static json_t *record_json(const struct cairn__record *r)
{
  static const char *const reasons[] = {"missed", "running", "held", "ended"};

  if (r->is_skipped)
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:i, s:s}", "InstanceID",
                     r->instance_id, "Name", r->text, "time",
                     time_json(r->time), "due", time_json(r->due), "due_last",
                     time_json(r->due_last), "skipped", (int)r->count, "reason",
                     reasons[r->reason]);
  return json_pack(
      "{s:s, s:s, s:o, s:o, s:o, s:o, s:I, s:I, s:s?, s:i, s:s?, s:I, s:o}",
      "InstanceID", r->instance_id, "Name", r->text, "time", time_json(r->time),
      "due", time_json(r->due), "StartTime", time_json(r->started),
      "ElapsedTime", interval_json(r->elapsed), "run_number",
      (json_int_t)r->run, "attempt", (json_int_t)r->attempt, "JobState",
      cairn_value_label(cairn_property_at(CAIRN_PROPERTY_JobState - 1),
                        r->state),
      "ErrorCode", (int)r->error_id, "ErrorDescription", r->message,
      "bytes_done", (json_int_t)r->bytes_done, "ReferencePointGroupId",
      point_json(r->point));
}

/* Whose records are wanted: a job that exists, or one that records tell of. */
static int find_id(cairn_engine *e, const char *id, char found[48],
                   struct cairn_error *err)
{
  const struct cairn__record *r;
  char digits[33];
  cairn_job job;

  if (cairn_job_find(e, id, &job, err) == 0) {
    memcpy(found, cairn__engine_job(e, job, err)->instance_id, 48);
    return 0;
  }
  if (!err || err->id != CAIRN_E_NOT_FOUND)
    return -1;
  cairn__id_digits(id, digits);
  found[0] = '\0';
  for (r = e->history.first; r; r = r->next) {
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

int cairn_history(cairn_engine *e, const char *id, char **out,
                  struct cairn_error *err)
{
  struct cairn_error why;
  char found[48];
  json_t *array;

  cairn__error_clear(err);
  *out = NULL;
  if (id && find_id(e, id, found, &why) != 0) {
    if (err)
      *err = why;
    return -1;
  }
  array = json_array();
  if (!array)
    return cairn__fail_memory(err);
  for (const struct cairn__record *r = e->history.first; r; r = r->next) {
    if (id && strcmp(found, r->instance_id) != 0)
      continue;
    if (json_array_append_new(array, record_json(r)) != 0) {
      json_decref(array);
      return cairn__fail_memory(err);
    }
  }
  return cairn__json_give(array, out, err);
}
