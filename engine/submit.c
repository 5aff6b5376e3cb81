/* From a specification (docs/job-model.md, "Submitting") to a job.
 *
 * A job is made whole before the engine hears of it: every key checked, every
 * byte of memory that its life needs reserved. cairn_submit_all makes all its
 * jobs first and only then lets the engine know them, which cannot fail. */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "engine.h"
#include "error.h"
#include "memory.h"
#include "store.h"
#include "submit.h"

enum what {
  SETTING,
  TEXT,
  LABEL,
  FLAG,
  NAME,
  RECOVERY,
  RECOVERY_JOB,
  ZONE,
  VERSION,
  QUEUE,
  KIND
};

/* Every key of a specification. */
static const struct key {
  const char *name;
  enum what what;
  size_t offset; /* TEXT: in details; LABEL, FLAG: in the job */
} keys[] = {
#define DETAIL(member) offsetof(struct cairn__details, member)
#define MEMBER(member) offsetof(struct cairn__job, member)
    {"ScheduledStartTime", SETTING, 0},
    {"JobRunTimes", SETTING, 0},
    {"RunMonth", SETTING, 0},
    {"RunDay", SETTING, 0},
    {"RunDayOfWeek", SETTING, 0},
    {"RunStartInterval", SETTING, 0},
    {"LocalOrUtcTime", SETTING, 0},
    {"UntilTime", SETTING, 0},
    {"Notify", SETTING, 0},
    {"Priority", SETTING, 0},
    {"DeleteOnCompletion", SETTING, 0},
    {"TimeBeforeRemoval", SETTING, 0},
    {"Name", NAME, 0},
    {"Caption", TEXT, DETAIL(caption)},
    {"Description", TEXT, DETAIL(description)},
    {"ElementName", TEXT, DETAIL(element_name)},
    {"RecoveryAction", RECOVERY, 0},
    {"OtherRecoveryAction", TEXT, DETAIL(other_recovery)},
    {"RecoveryJob", RECOVERY_JOB, 0},
    {"queue", QUEUE, 0},
    {"zone", ZONE, 0},
    {"gap", LABEL, MEMBER(gap)},
    {"overlap", LABEL, MEMBER(overlap)},
    {"catch_up", LABEL, MEMBER(catch_up)},
    {"policy", TEXT, DETAIL(policy)},
    {"policy_key", TEXT, DETAIL(policy_key)},
    {"policy_file", TEXT, DETAIL(policy_file)},
    {"policy_version", VERSION, 0},
    {"decisions", TEXT, DETAIL(decisions)},
    {"once", FLAG, MEMBER(is_once)},
    {"volatile", FLAG, MEMBER(is_volatile)},
    {"held", FLAG, MEMBER(is_on_demand)},
    {"export", KIND, 0},
    {"verify", KIND, 0},
    {"restore", KIND, 0},
    {"reference_point", KIND, 0},
    {"stream", KIND, 0},
    {"import", KIND, 0},
    {"run", KIND, 0},
    {"merge", KIND, 0},
    {"prune", KIND, 0},
#undef DETAIL
#undef MEMBER
};

#define KEY_COUNT (sizeof keys / sizeof keys[0])

/* ---- single keys ---- */

static int expect_string(const char *key, const json_t *value,
                         struct cairn_error *err)
{
  if (json_is_string(value))
    return 0;
  return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be a string", key);
}

static struct cairn__details *details_of(struct cairn__job *j,
                                         struct cairn_error *err)
{
  if (!j->details)
    j->details = cairn__calloc(1, sizeof *j->details);
  if (!j->details)
    cairn__fail_memory(err);
  return j->details;
}

static int copy_text(const char *key, const json_t *value, char **out,
                     struct cairn_error *err)
{
  const struct cairn_property_info *p = cairn_property_find(key);

  if (expect_string(key, value, err) != 0)
    return -1;
  if (p && cairn__text_check(p, json_string_value(value),
                             json_string_length(value), err) != 0)
    return -1;
  *out = cairn__strdup(json_string_value(value));
  return *out ? 0 : cairn__fail_memory(err);
}

static int read_text(struct cairn__job *j, const char *key, const json_t *value,
                     size_t offset, struct cairn_error *err)
{
  struct cairn__details *d = details_of(j, err);

  return d ? copy_text(key, value, (char **)(void *)((char *)d + offset), err)
           : -1;
}

static int read_name(struct cairn__job *j, const json_t *value,
                     struct cairn_error *err)
{
  if (copy_text("Name", value, &j->name, err) != 0)
    return -1;
  if (j->name[0] == '\0')
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT, "Name must not be empty");
  return 0;
}

static int read_setting(struct cairn_engine *e, struct cairn__job *j,
                        const char *key, const json_t *value,
                        struct cairn_error *err)
{
  struct cairn_value v;

  if (cairn__value_from_json(value, key, &v, err) != 0)
    return -1;
  return cairn__settings_apply(e, &j->settings, cairn_property_find(key), &v,
                               err);
}

static int read_label(struct cairn__job *j, const char *key,
                      const json_t *value, size_t offset,
                      struct cairn_error *err)
{
  struct cairn_value v;
  int64_t n;

  if (expect_string(key, value, err) != 0 ||
      cairn__value_from_json(value, key, &v, err) != 0 ||
      cairn__number_from(cairn_property_find(key), &v, &n, err) != 0)
    return -1;
  *((uint8_t *)j + offset) = (uint8_t)(n + 1);
  return 0;
}

static int read_flag(struct cairn__job *j, const char *key, const json_t *value,
                     size_t offset, struct cairn_error *err)
{
  if (!json_is_boolean(value))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be true or false",
                       key);
  *((uint8_t *)j + offset) = json_is_true(value);
  return 0;
}

static int read_recovery(struct cairn__job *j, const json_t *value,
                         struct cairn_error *err)
{
  struct cairn_value v;
  int64_t n;

  if (cairn__value_from_json(value, "RecoveryAction", &v, err) != 0 ||
      cairn__number_from(cairn_property_find("RecoveryAction"), &v, &n, err) !=
          0)
    return -1;
  j->recovery_action = (uint8_t)n;
  j->has_recovery_action = 1;
  return 0;
}

static int read_recovery_job(struct cairn_engine *e, struct cairn__job *j,
                             const json_t *value, struct cairn_error *err)
{
  struct cairn__details *d = details_of(j, err);
  struct cairn_error why;
  cairn_job other;

  if (!d || expect_string("RecoveryJob", value, err) != 0)
    return -1;
  const struct cairn__job *found = NULL;

  if (cairn_job_find(e, json_string_value(value), &other, &why) == 0)
    found = cairn__engine_job(e, other, &why);
  if (!found)
    return cairn__fail(err, why.id, "RecoveryJob: %s", why.message);
  d->recovery_job = cairn__strdup(found->instance_id);
  return d->recovery_job ? 0 : cairn__fail_memory(err);
}

/* "" would be the host's, which is what no zone at all is. */
static int read_zone(struct cairn_engine *e, struct cairn__job *j,
                     const json_t *value, struct cairn_error *err)
{
  const struct cairn__zone *zone;

  if (expect_string("zone", value, err) != 0)
    return -1;
  if (json_string_length(value) == 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "zone: a name such as \"Europe/Berlin\" expected");
  if (cairn__engine_zone(e, json_string_value(value), &zone, err) != 0)
    return -1;
  return read_text(j, "zone", value, offsetof(struct cairn__details, zone),
                   err);
}

/* A fingerprint: 16 hexadecimal digits, of which not all are 0. */
static int read_version(struct cairn__job *j, const json_t *value,
                        struct cairn_error *err)
{
  const char *text = json_string_value(value);

  if (!text || strlen(text) != 16 ||
      strspn(text, "0123456789abcdefABCDEF") != 16 || strspn(text, "0") == 16)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "policy_version: 16 hexadecimal digits expected, not "
                       "all of them 0");
  j->policy_version = strtoull(text, NULL, 16);
  return 0;
}

static int read_queue(struct cairn_engine *e, const json_t *value,
                      struct cairn__queue **queue, struct cairn_error *err)
{
  char names[512] = "", shown[128];
  size_t used = 0;

  if (expect_string("queue", value, err) != 0)
    return -1;
  *queue = cairn__queue_find(e, json_string_value(value));
  if (*queue)
    return 0;
  for (struct cairn__queue *q = e->queues; q && used < sizeof names;
       q = q->next) {
    int n = snprintf(names + used, sizeof names - used, "%s\"%s\"",
                     used ? ", " : "", q->name);

    used += n > 0 ? (size_t)n : 0;
  }
  return cairn__fail(
      err, CAIRN_E_INVALID_ARGUMENT,
      "queue: there is no queue \"%s\"; valid: %s",
      cairn__printable(json_string_value(value), shown, sizeof shown), names);
}

/* ---- the kind ---- */

/* A path as a key for comparison: no doubled or trailing slashes, no "/.". */
static char *path_key(const char *path)
{
  char *key = cairn__malloc(strlen(path) + 2), *p = key;

  if (!key)
    return NULL;
  while (*path) {
    size_t n = strcspn(path, "/");

    if (n > 0 && !(n == 1 && path[0] == '.')) {
      *p++ = '/';
      memcpy(p, path, n);
      p += n;
    }
    path += n;
    path += *path == '/';
  }
  if (p == key)
    *p++ = '/';
  *p = '\0';
  return key;
}

/* The directory that a job writes into: one job at a time in each. */
static const char *written_directory(const json_t *spec, const char *kind)
{
  const char *to = json_string_value(json_object_get(spec, "to"));

  if (strcmp(kind, "merge") == 0 && to)
    return to;
  return json_string_value(json_object_get(spec, "directory"));
}

/* The others add to a directory, or change it. */
static int writes_directory(const char *kind)
{
  return strcmp(kind, "verify") != 0 && strcmp(kind, "restore") != 0 &&
         strcmp(kind, "stream") != 0 && strcmp(kind, "unknown") != 0;
}

static int read_directory(struct cairn_engine *e, struct cairn__job *j,
                          const char *kind, const json_t *spec,
                          struct cairn_error *err)
{
  const char *path = written_directory(spec, kind);
  char *key;

  if (!path)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s: directory must be a string, an absolute path",
                       kind);
  key = path_key(path);
  if (!key)
    return cairn__fail_memory(err);
  j->directory = cairn__directory_add_job(e, key);
  cairn__free(key);
  return j->directory ? 0 : cairn__fail_memory(err);
}

static int keep_spec(struct cairn__job *j, const json_t *value,
                     struct cairn_error *err)
{
  j->spec = cairn__json_dump(value, JSON_COMPACT | JSON_ENCODE_ANY);
  return j->spec ? 0 : cairn__fail_memory(err);
}

const json_t *cairn__job_spec(struct cairn_engine *e,
                              const struct cairn__job *j)
{
  json_t *value;

  if (e->spec.job == j)
    return e->spec.value;
  value = cairn__job_copy_spec(j);
  if (!value)
    return NULL;
  cairn__job_forget_spec(e, NULL);
  e->spec.job = j;
  e->spec.value = value;
  return value;
}

void cairn__job_forget_spec(struct cairn_engine *e, const struct cairn__job *j)
{
  if (j && e->spec.job != j)
    return;
  json_decref(e->spec.value);
  e->spec.job = NULL;
  e->spec.value = NULL;
}

json_t *cairn__job_copy_spec(const struct cairn__job *j)
{
  return cairn__json_load(j->spec, strlen(j->spec), JSON_DECODE_ANY, NULL);
}

static int read_task(struct cairn__job *j, const json_t *value,
                     struct cairn_error *err)
{
  const char *code = json_string_value(json_object_get(value, "code"));
  struct cairn__details *d;

  if (!json_is_true(value) && !json_is_string(value) && !json_is_object(value))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "run must be true, a string or an object");
  /* ResumeWithInput must not fail for want of room. */
  d = details_of(j, err);
  if (!d)
    return -1;
  d->code = code ? cairn__strdup(code) : NULL;
  if (code && !d->code)
    return cairn__fail_memory(err);
  return keep_spec(j, value, err);
}

static int read_kind(struct cairn_engine *e, struct cairn__job *j,
                     const char *name, json_t *value, struct cairn_error *err)
{
  struct cairn_error why;

  if (strcmp(name, "run") == 0)
    return read_task(j, value, err);
  j->kind = cairn__kind_find(name);
  if (!j->kind)
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "%s: this build has no such kind of job", name);
  if (!json_is_object(value))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s must be an object", name);
  cairn__error_clear(&why);
  if (j->kind->check(value, &why) != 0) {
    if (err)
      *err = why;
    return -1;
  }
  if (writes_directory(name) && read_directory(e, j, name, value, err) != 0)
    return -1;
  return keep_spec(j, value, err);
}

/* ---- the whole ---- */

static int unknown_key(const char *name, struct cairn_error *err)
{
  const char *names[KEY_COUNT];
  char shown[128];

  if (cairn_property_find(name))
    return cairn__fail(err, CAIRN_E_READ_ONLY,
                       "%s is a read-only property; it cannot be submitted",
                       name);
  for (size_t i = 0; i < KEY_COUNT; i++)
    names[i] = keys[i].name;
  return cairn__fail(err, CAIRN_E_UNKNOWN_KEY,
                     "unknown key \"%s\"; the nearest valid one is \"%s\"",
                     cairn__printable(name, shown, sizeof shown),
                     cairn__nearest(name, names, KEY_COUNT));
}

struct parts { /* what is looked at after all other keys */
  const char *kind;
  json_t *kind_value;
  struct cairn__queue *queue;
};

static int read_key(struct cairn_engine *e, struct cairn__job *j,
                    const char *name, json_t *value, struct parts *parts,
                    struct cairn_error *err)
{
  const struct key *key = NULL;

  for (size_t i = 0; i < KEY_COUNT && !key; i++) {
    if (strcmp(keys[i].name, name) == 0)
      key = &keys[i];
  }
  if (!key)
    return unknown_key(name, err);
  /* An absent key and null say the same, but for settings that must not be
   * null and for a kind. */
  if (json_is_null(value) && key->what != SETTING && key->what != KIND &&
      key->what != NAME)
    return 0;
  switch (key->what) {
  case SETTING:
    return read_setting(e, j, name, value, err);
  case TEXT:
    return read_text(j, name, value, key->offset, err);
  case LABEL:
    return read_label(j, name, value, key->offset, err);
  case FLAG:
    return read_flag(j, name, value, key->offset, err);
  case NAME:
    return read_name(j, value, err);
  case RECOVERY:
    return read_recovery(j, value, err);
  case RECOVERY_JOB:
    return read_recovery_job(e, j, value, err);
  case ZONE:
    return read_zone(e, j, value, err);
  case VERSION:
    return read_version(j, value, err);
  case QUEUE:
    return read_queue(e, value, &parts->queue, err);
  default: /* KIND */
    if (parts->kind)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "a job has exactly one kind, not both \"%s\" and "
                         "\"%s\"",
                         parts->kind, name);
    parts->kind = key->name;
    parts->kind_value = value;
    return 0;
  }
}

static int check_together(const struct cairn__job *j, struct cairn_error *err)
{
  if (!j->name)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "Name is missing; every job needs one");
  if (j->details && j->details->other_recovery &&
      !(j->has_recovery_action && j->recovery_action == 1))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "OtherRecoveryAction is allowed only when "
                       "RecoveryAction is 1 (Other)");
  return 0;
}

/* "It must already be in the queue from which it will run." */
static int check_recovery_queue(struct cairn_engine *e,
                                const struct cairn__job *j,
                                const struct cairn__queue *queue,
                                struct cairn_error *err)
{
  const char *id = j->details ? j->details->recovery_job : NULL;
  const struct cairn__job *other;
  cairn_job serial;

  if (!id || cairn_job_find(e, id, &serial, err) != 0)
    return id ? -1 : 0;
  other = cairn__engine_job(e, serial, err);
  if (!other || other->queue == queue)
    return other ? 0 : -1;
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "RecoveryJob: %s is in the queue \"%s\", this job in "
                     "\"%s\"; both must be in one",
                     other->instance_id, other->queue->name, queue->name);
}

static int make_id(struct cairn_engine *e, struct cairn__job *j,
                   struct cairn_error *err)
{
  unsigned char id[16];

  if (cairn__engine_id(e, id, err) != 0)
    return -1;
  memcpy(j->instance_id, "Cairn:", 6);
  uuid_unparse_upper(id, j->instance_id + 6);
  cairn__entry_set_uuid(&j->entry, id);
  return 0;
}

static int fill(struct cairn_engine *e, struct cairn__job *j, json_t *spec,
                struct cairn_error *err)
{
  struct parts parts = {.queue = e->queues}; /* the first is "default" */
  const char *name;
  json_t *value;

  if (!json_is_object(spec))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "a job's specification must be an object");
  json_object_foreach(spec, name, value)
  {
    if (read_key(e, j, name, value, &parts, err) != 0)
      return -1;
  }
  if (check_together(j, err) != 0)
    return -1;
  if (!parts.kind)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "what the job does is missing; give one of export, "
                       "verify, restore, stream, import, merge, prune, run");
  if (read_kind(e, j, parts.kind, parts.kind_value, err) != 0)
    return -1;
  if (cairn__due_check(e, j, &j->settings, j->details ? j->details->zone : NULL,
                       &j->due.zone, err) != 0 ||
      check_recovery_queue(e, j, parts.queue, err) != 0)
    return -1;
  if (cairn__queue_add_job(parts.queue) != 0)
    return cairn__fail_memory(err);
  j->queue = parts.queue;
  return make_id(e, j, err);
}

void cairn__job_init(struct cairn__job *j)
{
  memset(j, 0, sizeof *j);
  j->state = CAIRN_NEW; /* where every job begins; no change, no event */
  j->rate = j->eta = -1;
  j->due.next_us = j->due.run_us = CAIRN__NEVER_US;
  cairn__settings_init(&j->settings);
  j->schedule.kind = CAIRN__TIMER_SCHEDULE;
  j->until.kind = CAIRN__TIMER_UNTIL;
  j->control.kind = CAIRN__TIMER_CONTROL;
}

struct cairn__job *cairn__job_blank(void)
{
  struct cairn__job *j = cairn__malloc(sizeof *j);

  if (j)
    cairn__job_init(j);
  return j;
}

struct cairn__job *cairn__job_make(struct cairn_engine *e, json_t *spec,
                                   struct cairn_error *err)
{
  struct cairn__job *j = cairn__job_blank();

  if (!j) {
    cairn__fail_memory(err);
    return NULL;
  }
  if (fill(e, j, spec, err) != 0) {
    cairn__job_free(e, j);
    return NULL;
  }
  return j;
}

/* For a job whose kind this build does not have. */
static void unknown_main(struct cairn__run *run)
{
  cairn__fail(&run->error, CAIRN_E_NOT_SUPPORTED,
              "this build has no such kind of job");
}

static const struct cairn__kind unknown_kind = {.name = "unknown",
                                                .main = unknown_main};

int cairn__job_place(struct cairn_engine *e, struct cairn__job *j,
                     const char *kind, const char *queue, const json_t *spec,
                     struct cairn_error *err)
{
  struct cairn__queue *q = cairn__queue_find(e, queue);

  if (!q && cairn__queue_make(e, queue, &q, err) != 0)
    return -1;
  if (strcmp(kind, "run") != 0) {
    j->kind = cairn__kind_find(kind);
    if (!j->kind)
      j->kind = &unknown_kind;
    if (writes_directory(j->kind->name) &&
        read_directory(e, j, j->kind->name, spec, err) != 0)
      return -1;
  }
  if (cairn__queue_add_job(q) != 0)
    return cairn__fail_memory(err);
  j->queue = q;
  return 0;
}

void cairn__job_link(struct cairn_engine *e, struct cairn__job *j,
                     uint64_t serial)
{
  j->queue->unfinished++; /* until finish(); or, from a store, recovery */
  cairn__roster_add(&e->roster, j, serial);
}

/* The engine gets to know the job. Cannot fail. */
static cairn_job adopt(struct cairn_engine *e, struct cairn__job *j)
{
  j->submitted_us = cairn__wall(e);
  cairn__job_link(e, j, ++e->next_serial);
  cairn__store_touch(e, j, CAIRN__TOUCHED_JOB);
  cairn__event_push(e, CAIRN_EVENT_SUBMITTED, j);
  if (j->is_once)
    j->is_on_demand = 0;
  j->is_held = j->is_on_demand;
  cairn__job_settings_changed(e, j, 1);
  return j->entry.serial;
}

/* Far below what a row of a store can hold. */
#define LENGTH_MAX ((size_t)256 << 20)

static int check_length(size_t length, struct cairn_error *err)
{
  if (length <= LENGTH_MAX)
    return 0;
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "the specification has %zu bytes, valid: at most %zu",
                     length, LENGTH_MAX);
}

static int check_open(struct cairn_engine *e, struct cairn_error *err)
{
  cairn__error_clear(err);
  if (e->closing < 0)
    return cairn__store_accepts(e, err);
  return cairn__fail(err, CAIRN_E_CLOSED,
                     "the engine is closing and takes no new jobs");
}

static int reserve(struct cairn_engine *e, size_t jobs, struct cairn_error *err)
{
  /* Submitted, and Skipped when the clock is set meanwhile */
  if (cairn__events_reserve(e, 2 * jobs) != 0 ||
      cairn__engine_reserve_jobs(e, jobs) != 0)
    return cairn__fail_memory(err);
  return 0;
}

int cairn__submit(cairn_engine *e, json_t *spec, size_t length, cairn_job *out,
                  struct cairn_error *err)
{
  struct cairn__job *j;

  *out = 0;
  if (check_open(e, err) != 0 || check_length(length, err) != 0)
    return -1;
  j = cairn__job_make(e, spec, err);
  if (!j)
    return -1;
  if (cairn__queue_accepts(j->queue, 1, err) != 0 || reserve(e, 1, err) != 0) {
    cairn__job_free(e, j);
    return -1;
  }
  *out = adopt(e, j);
  cairn__engine_settle(e);
  return 0;
}

/* NULL when it cannot be, or the engine takes no jobs. */
static json_t *parse(struct cairn_engine *e, struct cairn__json_region *region,
                     const char *json, size_t length, struct cairn_error *err)
{
  if (check_open(e, err) != 0 || check_length(length, err) != 0)
    return NULL;
  return cairn__json_parse_in(region, "specification", json, length, err);
}

int cairn_submit(cairn_engine *e, const char *json, size_t length,
                 cairn_job *out, struct cairn_error *err)
{
  struct cairn__json_region region; /* a job keeps no value of it */
  json_t *spec;
  int code = -1;

  *out = 0;
  cairn__json_region_open(&region);
  spec = parse(e, &region, json, length, err);
  if (spec)
    code = cairn__submit(e, spec, length, out, err);
  json_decref(spec);
  cairn__json_region_close(&region);
  return code;
}

/* Says which of several specifications it was. */
static void name_index(struct cairn_error *err, size_t index)
{
  char message[CAIRN_MESSAGE_MAX];

  if (!err)
    return;
  snprintf(message, sizeof message, "%s", err->message);
  snprintf(err->message, sizeof err->message, "specification %zu: %.*s",
           index + 1, CAIRN_MESSAGE_MAX - 64, message);
  cairn__utf8_clean(err->message);
}

/* All of them together. */
static int queues_accept(struct cairn_engine *e, struct cairn__job **jobs,
                         size_t count, struct cairn_error *err)
{
  for (struct cairn__queue *q = e->queues; q; q = q->next) {
    size_t more = 0;

    for (size_t i = 0; q->max_jobs > 0 && i < count; i++)
      more += jobs[i]->queue == q;
    if (more > 0 && cairn__queue_accepts(q, more, err) != 0)
      return -1;
  }
  return 0;
}

static int make_all(struct cairn_engine *e, json_t *array,
                    struct cairn__job **jobs, size_t count,
                    struct cairn_error *err)
{
  size_t i;

  for (i = 0; i < count; i++) {
    jobs[i] = cairn__job_make(e, json_array_get(array, i), err);
    if (!jobs[i]) {
      name_index(err, i);
      break;
    }
  }
  if (i == count && queues_accept(e, jobs, count, err) == 0 &&
      reserve(e, count, err) == 0)
    return 0;
  while (i > 0)
    cairn__job_free(e, jobs[--i]);
  return -1;
}

int cairn__submit_all(cairn_engine *e, json_t *array, size_t length,
                      cairn_job *out, size_t count, struct cairn_error *err)
{
  struct cairn__job **jobs;
  int code;

  if (check_open(e, err) != 0 || check_length(length, err) != 0)
    return -1;
  if (!json_is_array(array))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "the specifications must be an array of objects");
  if (json_array_size(array) != count)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "the array has %zu specifications, room was given for "
                       "%zu",
                       json_array_size(array), count);
  jobs = cairn__calloc(count ? count : 1, sizeof(void *));
  if (!jobs)
    return cairn__fail_memory(err);
  code = make_all(e, array, jobs, count, err);
  if (code == 0) {
    for (size_t i = 0; i < count; i++)
      out[i] = adopt(e, jobs[i]);
    cairn__engine_settle(e);
  }
  cairn__free(jobs);
  return code;
}

int cairn_submit_all(cairn_engine *e, const char *json, size_t length,
                     cairn_job *out, size_t count, struct cairn_error *err)
{
  struct cairn__json_region region;
  json_t *array;
  int code = -1;

  cairn__json_region_open(&region);
  array = parse(e, &region, json, length, err);
  if (array)
    code = cairn__submit_all(e, array, length, out, count, err);
  json_decref(array);
  cairn__json_region_close(&region);
  return code;
}

/* ---- another specification ---- */

#define SWAP(a, b)                                                             \
  do {                                                                         \
    __typeof__(a) swapped_ = (a);                                              \
    (a) = (b);                                                                 \
    (b) = swapped_;                                                            \
  } while (0)

/* What the run that is on has asked, or was answered, stays. */
static void keep_query(struct cairn__details *from, struct cairn__details *to)
{
  if (!from || !to)
    return;
  SWAP(from->question, to->question);
  SWAP(from->answer, to->answer);
  SWAP(from->choices, to->choices);
}

/* Gives a job the definition of another one, which takes over the old one. */
static void exchange(struct cairn_engine *e, struct cairn__job *j,
                     struct cairn__job *other)
{
  int is_calendar_new =
      !cairn__settings_same_calendar(&j->settings, &other->settings) ||
      j->due.zone != other->due.zone || j->gap != other->gap ||
      j->overlap != other->overlap || j->is_once != other->is_once;

  cairn__queue_leave(j);
  if (j->has_slot) {
    j->queue->running--;
    other->queue->running++;
  }
  j->queue->unfinished--;
  other->queue->unfinished++;
  keep_query(j->details, other->details);
  SWAP(j->name, other->name);
  SWAP(j->details, other->details);
  SWAP(j->kind, other->kind);
  SWAP(j->spec, other->spec); /* other's is not asked for any more */
  cairn__job_forget_spec(e, j);
  SWAP(j->settings, other->settings);
  SWAP(j->queue, other->queue);
  SWAP(j->directory, other->directory);
  SWAP(j->due.zone, other->due.zone);
  j->policy_version = other->policy_version;
  j->gap = other->gap;
  j->overlap = other->overlap;
  j->catch_up = other->catch_up;
  j->is_once = other->is_once;
  j->is_on_demand = other->is_once ? 0 : other->is_on_demand;
  j->recovery_action = other->recovery_action;
  j->has_recovery_action = other->has_recovery_action;
  cairn__store_touch(e, j, CAIRN__TOUCHED_JOB | CAIRN__TOUCHED_TEXT);
  cairn__event_push(e, CAIRN_EVENT_CHANGED, j);
  cairn__job_settings_changed(e, j, is_calendar_new);
}

/* Of jobs that start each other after failures none may come round to the one
 * that is updated. When it was submitted it could name older ones only. */
static int check_no_cycle(struct cairn_engine *e, const struct cairn__job *j,
                          const struct cairn__job *other,
                          struct cairn_error *err)
{
  const char *id = other->details ? other->details->recovery_job : NULL;
  cairn_job serial;

  for (size_t i = 0; id && i <= e->roster.count; i++) {
    const struct cairn__job *next;

    if (strcmp(id, j->instance_id) == 0)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "RecoveryJob: %s would be started for its own "
                         "failure: the jobs close a circle",
                         j->instance_id);
    if (cairn_job_find(e, id, &serial, NULL) != 0)
      break;
    next = cairn__engine_job(e, serial, err);
    if (!next)
      return -1;
    id = next->details ? next->details->recovery_job : NULL;
  }
  return 0;
}

static int check_update(struct cairn_engine *e, const struct cairn__job *j,
                        const struct cairn__job *other, struct cairn_error *err)
{
  if (cairn_state_is_final(j->state))
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s has ended; submit it anew", j->instance_id);
  if ((j->is_live || j->is_interrupted) && j->kind != other->kind)
    return cairn__fail(err, CAIRN_E_BUSY,
                       "%s: its run is of another kind; wait for its end",
                       j->instance_id);
  if (j->is_volatile != other->is_volatile)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: volatile cannot change", j->instance_id);
  if (check_no_cycle(e, j, other, err) != 0)
    return -1;
  return other->queue == j->queue ? 0
                                  : cairn__queue_accepts(other->queue, 1, err);
}

int cairn_job_update(cairn_engine *e, cairn_job job, const char *json,
                     size_t length, struct cairn_error *err)
{
  struct cairn__job *j, *other;
  json_t *spec;
  int code;

  if (check_open(e, err) != 0 || check_length(length, err) != 0)
    return -1;
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  spec = cairn__json_parse("specification", json, length, err);
  if (!spec)
    return -1;
  other = cairn__job_make(e, spec, err);
  json_decref(spec);
  if (!other)
    return -1;
  code = check_update(e, j, other, err);
  if (code == 0 && cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    code = cairn__fail_memory(err);
  if (code == 0) {
    int was_stray = j->is_stray;

    exchange(e, j, other);
    if (was_stray) /* without memory it stays one, until the next update */
      (void)cairn_job_resume(e, job, NULL);
  }
  cairn__job_free(e, other);
  cairn__engine_settle(e);
  return code;
}

const char *cairn_job_policy_file(cairn_engine *e, cairn_job job)
{
  struct cairn__job *j = cairn__engine_asked(e, job, NULL);

  return j && j->details ? j->details->policy_file : NULL;
}

static int plan_spec(struct cairn_engine *e, const struct cairn__job *j,
                     json_t **plan, struct cairn_error *err)
{
  json_t *spec = cairn__job_copy_spec(j);
  int code =
      spec ? j->kind->plan(e->io, spec, plan, err) : cairn__fail_memory(err);

  json_decref(spec);
  return code;
}

int cairn_plan(cairn_engine *e, const char *json, size_t length, char **plan,
               struct cairn_error *err)
{
  struct cairn__job *j;
  json_t *spec, *result = NULL;
  int code = 0;

  *plan = NULL;
  cairn__error_clear(err);
  spec = cairn__json_parse("specification", json, length, err);
  if (!spec)
    return -1;
  j = cairn__job_make(e, spec, err);
  json_decref(spec);
  if (!j)
    return -1;
  if (!j->kind)
    result = json_pack("{s:s}", "kind", "run");
  else if (!j->kind->plan)
    code =
        cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                    "%s: jobs of this kind cannot be planned", j->kind->name);
  else
    code = plan_spec(e, j, &result, err);
  cairn__job_free(e, j);
  return code == 0 ? cairn__json_give(result, plan, err) : -1;
}
