/* The events an engine hands out.
 *
 * Two rings. Events of jobs wait in theirs until they are visible: at once
 * without a store, else when the turn that made them is durable. What the
 * embedding program has asked for itself (timers, ends of processes) never
 * waits, so that a program can time out while the store fails. Among what can
 * be handed out the order is that of pushing. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "store.h"

struct cairn__pushed {
  struct cairn_event event;
  uint64_t order;
};

/* ---- a ring -------------------------------------------------------------- */

static int reserve(struct cairn__ring *r, size_t more)
{
  struct cairn__pushed *items;
  size_t need = r->count + more, capacity = r->capacity ? r->capacity : 64;
  size_t first;

  if (need <= r->capacity)
    return 0;
  while (capacity < need)
    capacity *= 2;
  items = cairn__malloc(capacity * sizeof *items);
  if (!items)
    return -1;
  first = r->capacity - r->head;
  if (first > r->count)
    first = r->count;
  if (r->count > 0) {
    memcpy(items, r->items + r->head, first * sizeof *items);
    memcpy(items + first, r->items, (r->count - first) * sizeof *items);
  }
  cairn__free(r->items);
  r->items = items;
  r->head = 0;
  r->capacity = capacity;
  return 0;
}

static struct cairn__pushed *at(const struct cairn__ring *r, size_t i)
{
  return &r->items[(r->head + i) & (r->capacity - 1)];
}

static struct cairn__pushed *push(struct cairn__ring *r)
{
  if (r->count == r->capacity)
    abort(); /* the caller did not reserve: a bug */
  return at(r, r->count++);
}

static void pop(struct cairn__ring *r)
{
  r->head = (r->head + 1) & (r->capacity - 1);
  r->count--;
}

/* ---- the engine's -------------------------------------------------------- */

int cairn__events_reserve(struct cairn_engine *e, size_t more)
{
  return reserve(&e->events.of_jobs, more) == 0 &&
                 reserve(&e->events.of_host, more) == 0
             ? 0
             : -1;
}

void cairn__events_free(struct cairn_engine *e)
{
  cairn__free(e->events.of_jobs.items);
  cairn__free(e->events.of_host.items);
}

int cairn__event_is_kept(uint32_t type)
{
  switch (type) {
  case CAIRN_EVENT_SUBMITTED:
  case CAIRN_EVENT_STATE:
  case CAIRN_EVENT_CHANGED:
  case CAIRN_EVENT_REMOVED:
  case CAIRN_EVENT_WARNING:
  case CAIRN_EVENT_REQUEST_TIMEOUT:
  case CAIRN_EVENT_SKIPPED:
  case CAIRN_EVENT_RUN_ENDED:
    return 1;
  default:
    return 0;
  }
}

static int is_of_host(int type)
{
  return type == CAIRN_EVENT_TIMER || type == CAIRN_EVENT_PROCESS ||
         type == CAIRN_EVENT_STORE || type == CAIRN_EVENT_BACKUP;
}

struct cairn_event *cairn__event_push(struct cairn_engine *e, int type,
                                      struct cairn__job *j)
{
  struct cairn__events *r = &e->events;
  int is_host = is_of_host(type);
  struct cairn__pushed *pushed = push(is_host ? &r->of_host : &r->of_jobs);
  struct cairn_event *event = &pushed->event;

  pushed->order = ++r->order;
  r->pushed += !is_host;
  memset(event, 0, sizeof *event);
  if (cairn__event_is_kept((uint32_t)type)) {
    event->sequence = ++r->sequence;
    if (j)
      cairn__store_touch(e, j, CAIRN__TOUCHED_STATE);
  }
  event->type = (uint32_t)type;
  event->time = cairn__wall(e);
  if (j) {
    event->job = j->entry.serial;
    event->run = j->run_number;
    memcpy(event->instance_id, j->instance_id, sizeof event->instance_id);
  }
  return event;
}

struct cairn_event *cairn__event_last(struct cairn_engine *e)
{
  return &at(&e->events.of_jobs, e->events.of_jobs.count - 1)->event;
}

const struct cairn_event *cairn__event_at(const struct cairn_engine *e,
                                          uint64_t position)
{
  const struct cairn__events *r = &e->events;

  return &at(&r->of_jobs, (size_t)(position - (r->pushed - r->of_jobs.count)))
              ->event;
}

/* How many of the jobs' can be handed out. */
static size_t visible(const struct cairn_engine *e)
{
  const struct cairn__events *r = &e->events;
  uint64_t taken = r->pushed - r->of_jobs.count;

  return e->store ? (size_t)(r->visible - taken) : r->of_jobs.count;
}

size_t cairn__events_ready(const struct cairn_engine *e)
{
  return e->events.of_host.count + visible(e);
}

size_t cairn_engine_next_events(cairn_engine *e, struct cairn_event *out,
                                size_t max)
{
  struct cairn__events *r = &e->events;
  size_t n = 0, jobs = visible(e);

  while (n < max && (jobs > 0 || r->of_host.count > 0)) {
    struct cairn__ring *from = &r->of_jobs;

    if (jobs == 0 || (r->of_host.count > 0 &&
                      at(&r->of_host, 0)->order < at(from, 0)->order))
      from = &r->of_host;
    else
      jobs--;
    out[n++] = at(from, 0)->event;
    pop(from);
  }
  if (n > 0)
    cairn__engine_settle(e);
  return n;
}

const char *cairn_event_name(uint32_t type)
{
  static const char *const names[] = {
      [CAIRN_EVENT_SUBMITTED] = "Submitted",
      [CAIRN_EVENT_STATE] = "JobState",
      [CAIRN_EVENT_PERCENT] = "PercentComplete",
      [CAIRN_EVENT_CHANGED] = "Changed",
      [CAIRN_EVENT_REMOVED] = "Removed",
      [CAIRN_EVENT_WARNING] = "Warning",
      [CAIRN_EVENT_TIMER] = "Timer",
      [CAIRN_EVENT_PROCESS] = "Process",
      [CAIRN_EVENT_REQUEST_TIMEOUT] = "RequestTimeout",
      [CAIRN_EVENT_SKIPPED] = "Skipped",
      [CAIRN_EVENT_RUN_ENDED] = "RunEnded",
      [CAIRN_EVENT_STORE] = "Store",
      [CAIRN_EVENT_BACKUP] = "Backup",
      [CAIRN_EVENT_TASK_START] = "TaskStart",
      [CAIRN_EVENT_TASK_SUSPEND] = "TaskSuspend",
      [CAIRN_EVENT_TASK_RESUME] = "TaskResume",
      [CAIRN_EVENT_TASK_TERMINATE] = "TaskTerminate",
      [CAIRN_EVENT_TASK_KILL] = "TaskKill",
      [CAIRN_EVENT_TASK_ANSWER] = "TaskAnswer",
      [CAIRN_EVENT_TASK_RECOVER] = "TaskRecover",
      [CAIRN_EVENT_TASK_DECIDE] = "TaskDecide",
  };

  return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}
