/* The events an engine hands out. sequence is gap-free: it is given when an
 * event is pushed, and a pushed event stays until it was handed out. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"

int cairn__events_reserve(struct cairn_engine *e, size_t more)
{
  struct cairn__events *r = &e->events;
  struct cairn_event *items;
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

struct cairn_event *cairn__event_push(struct cairn_engine *e, int type,
                                      const struct cairn__job *j)
{
  struct cairn__events *r = &e->events;
  struct cairn_event *event;

  if (r->count == r->capacity)
    abort(); /* the caller did not reserve: a bug */
  event = &r->items[(r->head + r->count++) & (r->capacity - 1)];
  memset(event, 0, sizeof *event);
  event->sequence = ++r->sequence;
  event->type = (uint32_t)type;
  event->time = cairn__wall(e);
  if (j) {
    event->job = j->by_serial.key;
    event->run = j->run_number;
    memcpy(event->instance_id, j->instance_id, sizeof event->instance_id);
  }
  return event;
}

struct cairn_event *cairn__event_last(struct cairn_engine *e)
{
  struct cairn__events *r = &e->events;

  return &r->items[(r->head + r->count - 1) & (r->capacity - 1)];
}

size_t cairn_engine_next_events(cairn_engine *e, struct cairn_event *out,
                                size_t max)
{
  struct cairn__events *r = &e->events;
  size_t n = r->count < max ? r->count : max, first = r->capacity - r->head;

  if (n == 0)
    return 0;
  if (first > n)
    first = n;
  memcpy(out, r->items + r->head, first * sizeof *out);
  memcpy(out + first, r->items, (n - first) * sizeof *out);
  r->head = (r->head + n) & (r->capacity - 1);
  r->count -= n;
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
      [CAIRN_EVENT_TASK_START] = "TaskStart",
      [CAIRN_EVENT_TASK_SUSPEND] = "TaskSuspend",
      [CAIRN_EVENT_TASK_RESUME] = "TaskResume",
      [CAIRN_EVENT_TASK_TERMINATE] = "TaskTerminate",
      [CAIRN_EVENT_TASK_KILL] = "TaskKill",
      [CAIRN_EVENT_TASK_ANSWER] = "TaskAnswer",
  };

  return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}
