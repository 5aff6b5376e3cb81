/* Tasks: jobs of the kind "run", whose bodies the embedding program runs. The
 * engine posts TASK_ events, the program answers with these functions. */
#include "job.h"

#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "error.h"
#include "memory.h"
#include "store.h"

/* ---- the names of bodies ---- */

struct cairn__name {
  struct cairn__name *next;
  char name[];
};

static const char *code_of(const struct cairn__job *j)
{
  return j->kind || !j->details ? NULL : j->details->code;
}

static const char *decisions_of(const struct cairn__job *j)
{
  return j->details ? j->details->decisions : NULL;
}

static int has_name(const struct cairn__name *c, const char *name)
{
  while (c && strcmp(c->name, name) != 0)
    c = c->next;
  return c != NULL;
}

int cairn__has_code(const struct cairn_engine *e, const char *name,
                    size_t length)
{
  const struct cairn__name *c = e->codes;

  while (c && (strlen(c->name) != length || memcmp(c->name, name, length) != 0))
    c = c->next;
  return c != NULL;
}

const char *cairn__job_missing_code(const struct cairn_engine *e,
                                    const struct cairn__job *j)
{
  const char *name = code_of(j);

  if (!name || has_name(e->codes, name))
    name = decisions_of(j);
  return name && !has_name(e->codes, name) ? name : NULL;
}

static int is_same(const char *a, const char *b)
{
  return a && b && strcmp(a, b) == 0;
}

/* Adds the name, with room for the events of so many jobs that wait for it. */
static int add_name(struct cairn_engine *e, struct cairn__name **list,
                    const char *name, size_t waiting, struct cairn_error *err)
{
  struct cairn__name *c = cairn__malloc(sizeof *c + strlen(name) + 1);

  if (!c || cairn__events_reserve(e, waiting * CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__free(c);
    return cairn__fail_memory(err);
  }
  memcpy(c->name, name, strlen(name) + 1);
  c->next = *list;
  *list = c;
  return 0;
}

/* A job that is awake and waits for this code or, when `name` is NULL, for code
 * that is there by now. */
static int is_roused(const struct cairn_engine *e, const struct cairn__job *j,
                     const char *name)
{
  if (name)
    return is_same(code_of(j), name) || is_same(decisions_of(j), name);
  return j->misses_code && !cairn__job_missing_code(e, j);
}

/* Settles where the jobs belong that wait for this code; NULL: those for which
 * it was there before, but no memory to wake them. There is room for the events
 * of so many that are awake. */
static void rouse(struct cairn_engine *e, const char *name, size_t waiting)
{
  size_t room = (waiting + 1) * CAIRN__EVENTS_PER_ACTION;
  struct cairn__entry *entry;
  uint64_t last = 0;

  while ((entry = cairn__roster_after(&e->roster, last)) != NULL) {
    int was_asleep = entry->is_asleep;
    struct cairn__job *j;

    last = entry->serial;
    if (was_asleep
            ? !cairn__roster_is_roused(e, entry, name)
            : !is_roused(e, CAIRN__OF(entry, struct cairn__job, entry), name))
      continue;
    j = !name || was_asleep ? cairn__events_reserve(e, room) == 0
                                  ? cairn__roster_wake(e, entry)
                                  : NULL
                            : CAIRN__OF(entry, struct cairn__job, entry);
    if (!j) {
      e->is_rouse_left = 1;
      continue;
    }
    if (j->is_deciding == CAIRN__BY_POLICY && is_same(decisions_of(j), name))
      cairn__event_push(e, CAIRN_EVENT_TASK_RECOVER, j)->status =
          CAIRN__BY_POLICY;
    cairn__job_reconsider(e, j);
    if (was_asleep)
      cairn__roster_rest_one(e, j);
  }
}

int cairn__code_rouse(struct cairn_engine *e)
{
  if (e->is_rouse_left) {
    e->is_rouse_left = 0;
    rouse(e, NULL, 0);
  }
  return e->is_rouse_left;
}

int cairn_code_add(cairn_engine *e, const char *name, struct cairn_error *err)
{
  size_t waiting = 0;

  cairn__error_clear(err);
  if (has_name(e->codes, name))
    return 0;
  for (struct cairn__job *j = e->roster.first_awake; j; j = j->awake_next)
    waiting +=
        (size_t)(is_same(code_of(j), name) || is_same(decisions_of(j), name));
  if (add_name(e, &e->codes, name, waiting, err) != 0)
    return -1;
  rouse(e, name, waiting);
  cairn__engine_settle(e);
  return 0;
}

int cairn__has_handler(const struct cairn_engine *e, const char *name)
{
  return has_name(e->handlers, name);
}

int cairn_recovery_add(cairn_engine *e, const char *name,
                       struct cairn_error *err)
{
  size_t waiting = 0;

  cairn__error_clear(err);
  if (has_name(e->handlers, name))
    return 0;
  /* a job that waits for it is awake */
  for (struct cairn__job *j = e->roster.first_awake; j; j = j->awake_next)
    waiting += (size_t)is_same(cairn__job_handler(j), name);
  if (add_name(e, &e->handlers, name, waiting, err) != 0)
    return -1;
  for (struct cairn__job *j = e->roster.first_awake; j; j = j->awake_next) {
    if (is_same(cairn__job_handler(j), name))
      cairn__event_push(e, CAIRN_EVENT_TASK_RECOVER, j)->status =
          CAIRN__BY_HANDLER;
  }
  cairn__engine_settle(e);
  return 0;
}

static void free_names(struct cairn__name *c)
{
  while (c) {
    struct cairn__name *next = c->next;

    cairn__free(c);
    c = next;
  }
}

void cairn__names_free(struct cairn_engine *e)
{
  free_names(e->codes);
  free_names(e->handlers);
}

const char *cairn_task_code(cairn_engine *e, cairn_job job)
{
  struct cairn__job *j = cairn__engine_asked(e, job, NULL);

  return j ? code_of(j) : NULL;
}

/* ---- the program's side of a run ---- */

/* The task, when it has a run that is on and no other thread's. */
static struct cairn__job *live_task(struct cairn_engine *e, cairn_job job,
                                    struct cairn_error *err)
{
  struct cairn__job *j;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return NULL;
  if (!cairn__job_is_task(e, j)) {
    cairn__fail(err, CAIRN_E_INVALID_STATE,
                "%s: an %s job has no body outside the engine", j->instance_id,
                j->kind->name);
    return NULL;
  }
  if (!j->is_live) {
    cairn__fail(err, CAIRN_E_INVALID_STATE, "%s: no run of it is on",
                j->instance_id);
    return NULL;
  }
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__fail_memory(err);
    return NULL;
  }
  return j;
}

int cairn_task_progress(cairn_engine *e, cairn_job job, double percent,
                        struct cairn_error *err)
{
  struct cairn__job *j = live_task(e, job, err);
  unsigned n;

  if (!j)
    return -1;
  /* 100 belongs to Completed; "not above 0" catches NaN too. */
  n = !(percent > 0) ? 0 : percent > 99 ? 99 : (unsigned)percent;
  if (n > j->percent)
    cairn__job_set_percent(e, j, n);
  cairn__engine_settle(e);
  return 0;
}

static int read_choices(const char *json, json_t **out, struct cairn_error *err)
{
  json_t *choices, *choice;
  size_t i;

  *out = NULL;
  if (!json)
    return 0;
  choices = cairn__json_parse("choices", json, strlen(json), err);
  if (!choices)
    return -1;
  if (!json_is_array(choices) || json_array_size(choices) == 0) {
    json_decref(choices);
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "choices must be an array of one or more strings");
  }
  json_array_foreach(choices, i, choice)
  {
    if (!json_is_string(choice)) {
      json_decref(choices);
      return cairn__fail(err, CAIRN_E_WRONG_TYPE, "choice %zu must be a string",
                         i + 1);
    }
  }
  *out = choices;
  return 0;
}

int cairn_task_ask(cairn_engine *e, cairn_job job, const char *question,
                   const char *choices_json, struct cairn_error *err)
{
  struct cairn__job *j = live_task(e, job, err);
  json_t *choices;
  char *copy;

  if (!j)
    return -1;
  if (j->state != CAIRN_RUNNING)
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: a question can be asked only while Running",
                       j->instance_id);
  if (!question || !cairn__utf8_is_valid(question, strlen(question)))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "the question must be UTF-8 text");
  if (read_choices(choices_json, &choices, err) != 0)
    return -1;
  copy = cairn__strdup(question);
  if (!copy) {
    json_decref(choices);
    return cairn__fail_memory(err);
  }
  cairn__free(j->details->question);
  cairn__free(j->details->answer);
  json_decref(j->details->choices);
  j->details->question = copy;
  j->details->answer = NULL;
  j->details->choices = choices;
  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
  cairn__job_set_state(e, j, CAIRN_QUERY_PENDING);
  cairn__engine_settle(e);
  return 0;
}

static int is_choice(const json_t *choices, const char *text)
{
  json_t *choice;
  size_t i;

  if (!choices)
    return 1;
  json_array_foreach((json_t *)(uintptr_t)choices, i, choice)
  {
    if (strcmp(json_string_value(choice), text) == 0)
      return 1;
  }
  return 0;
}

static uint32_t resume_with_input(struct cairn_engine *e, struct cairn__job *j,
                                  const char *text, struct cairn_error *err)
{
  char *copy;

  if (j->state != CAIRN_QUERY_PENDING) {
    cairn__fail(err, CAIRN_E_INVALID_STATE,
                "%s: no question is open; only a job in Query Pending can be "
                "answered",
                j->instance_id);
    return CAIRN_RC_INVALID_TRANSITION;
  }
  if (!text || !cairn__utf8_is_valid(text, strlen(text))) {
    cairn__fail(err, CAIRN_E_INVALID_ARGUMENT, "the answer must be UTF-8 text");
    return CAIRN_RC_INVALID_PARAMETER;
  }
  if (!is_choice(j->details->choices, text)) {
    char *choices = cairn__json_dump(j->details->choices, JSON_COMPACT);
    char shown[128];

    cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                "\"%s\" is none of the choices: %s",
                cairn__printable(text, shown, sizeof shown),
                choices ? choices : "see the question");
    cairn_free(choices);
    return CAIRN_RC_INVALID_PARAMETER;
  }
  copy = cairn__strdup(text);
  if (!copy || cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0) {
    cairn__free(copy);
    cairn__fail_memory(err);
    return CAIRN_RC_FAILED;
  }
  cairn__free(j->details->answer);
  j->details->answer = copy;
  cairn__store_touch(e, j, CAIRN__TOUCHED_TEXT);
  cairn__job_set_state(e, j, CAIRN_RUNNING);
  cairn__event_push(e, CAIRN_EVENT_TASK_ANSWER, j);
  /* When the engine was told to close, this job had nothing to suspend. */
  if (e->closing >= 0)
    cairn__job_close(e, j);
  return CAIRN_RC_COMPLETED;
}

uint32_t cairn_job_resume_with_input(cairn_engine *e, cairn_job job,
                                     const char *text, struct cairn_error *err)
{
  struct cairn__job *j;
  uint32_t code;

  cairn__error_clear(err);
  j = cairn__engine_asked(e, job, err);
  if (j) {
    code = resume_with_input(e, j, text, err);
    cairn__engine_settle(e);
  } else {
    code = cairn__engine_absent(e, job, CAIRN_RC_UNKNOWN, CAIRN_RC_FAILED);
  }
  return e->is_vendor_codes ? cairn_vendor_code(code) : code;
}

int cairn_job_query(cairn_engine *e, cairn_job job, char **out,
                    struct cairn_error *err)
{
  struct cairn__job *j;
  json_t *query;

  cairn__error_clear(err);
  *out = NULL;
  j = cairn__engine_asked(e, job, err);
  if (!j)
    return -1;
  if (j->state != CAIRN_QUERY_PENDING)
    query = json_null();
  else
    query = json_pack("{s:s, s:O?}", "question", j->details->question,
                      "choices", j->details->choices);
  return cairn__json_give(query, out, err);
}

const char *cairn_task_answer_text(cairn_engine *e, cairn_job job)
{
  struct cairn__job *j = cairn__engine_asked(e, job, NULL);

  return j && j->details ? j->details->answer : NULL;
}

int cairn_task_parked(cairn_engine *e, cairn_job job, struct cairn_error *err)
{
  struct cairn__job *j = live_task(e, job, err);

  if (!j)
    return -1;
  if (j->asked != CAIRN__ASKED_SUSPEND || j->state != CAIRN_RUNNING)
    return cairn__fail(err, CAIRN_E_INVALID_STATE,
                       "%s: it was not asked to suspend, or not any more",
                       j->instance_id);
  cairn__job_parked(e, j);
  cairn__engine_settle(e);
  return 0;
}

int cairn_task_warn(cairn_engine *e, cairn_job job, const char *message,
                    struct cairn_error *err)
{
  struct cairn__job *j = live_task(e, job, err);

  if (!j)
    return -1;
  cairn__job_warn(e, j, message);
  cairn__engine_settle(e);
  return 0;
}

int cairn_task_finish(cairn_engine *e, cairn_job job,
                      const struct cairn_error *failure,
                      struct cairn_error *err)
{
  static const struct cairn_error well = {.offset = -1};
  struct cairn_error copy;
  struct cairn__job *j;

  if (failure)
    copy = *failure; /* may be the same as err */
  j = live_task(e, job, err);
  if (!j)
    return -1;
  if (failure && !cairn_error_info(copy.id))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%s: %d is no error of the table of errors",
                       j->instance_id, copy.id);
  cairn__job_run_ended(e, j, failure ? &copy : &well);
  cairn__engine_settle(e);
  return 0;
}
