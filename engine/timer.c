/* The heap property holds between calls: an item is not due before its parent,
 * and items[i]->index == i. */
#include "timer.h"

#include <stdlib.h>

#include "memory.h"

int cairn__timers_reserve(struct cairn__timers *t, size_t total)
{
  struct cairn__timer **items;
  size_t capacity = t->capacity ? t->capacity : 64;

  if (total <= t->capacity)
    return 0;
  if (total > CAIRN__TIMERS_MAX)
    return -1;
  while (capacity < total)
    capacity *= 2;
  items = cairn__realloc(t->items, capacity * sizeof(void *));
  if (!items)
    return -1;
  t->items = items;
  t->capacity = capacity;
  return 0;
}

int cairn__timer_is_before(const struct cairn__timer *a,
                           const struct cairn__timer *b)
{
  return a->when != b->when ? a->when < b->when
                            : (int32_t)(a->order - b->order) < 0;
}

static void place(struct cairn__timers *t, size_t i, struct cairn__timer *timer)
{
  t->items[i] = timer;
  timer->index = (uint32_t)i & (CAIRN__TIMERS_MAX - 1);
}

static void sift_up(struct cairn__timers *t, size_t i,
                    struct cairn__timer *timer)
{
  while (i > 0 && cairn__timer_is_before(timer, t->items[(i - 1) / 2])) {
    place(t, i, t->items[(i - 1) / 2]);
    i = (i - 1) / 2;
  }
  place(t, i, timer);
}

static void sift_down(struct cairn__timers *t, size_t i,
                      struct cairn__timer *timer)
{
  for (;;) {
    size_t child = 2 * i + 1;

    if (child >= t->count)
      break;
    if (child + 1 < t->count &&
        cairn__timer_is_before(t->items[child + 1], t->items[child]))
      child++;
    if (!cairn__timer_is_before(t->items[child], timer))
      break;
    place(t, i, t->items[child]);
    i = child;
  }
  place(t, i, timer);
}

void cairn__timer_disarm(struct cairn__timer *timer)
{
  struct cairn__timers *t = timer->heap;
  struct cairn__timer *last;
  size_t i = timer->index;

  if (!t)
    return;
  timer->heap = NULL;
  last = t->items[--t->count];
  if (last == timer)
    return;
  if (i > 0 && cairn__timer_is_before(last, t->items[(i - 1) / 2]))
    sift_up(t, i, last);
  else
    sift_down(t, i, last);
}

void cairn__timer_replace(struct cairn__timer *old, struct cairn__timer *timer)
{
  timer->when = old->when;
  timer->order = old->order;
  timer->heap = old->heap;
  place(old->heap, old->index, timer);
  old->heap = NULL;
}

void cairn__timer_arm_as(struct cairn__timers *t, struct cairn__timer *timer,
                         int64_t when, uint32_t order)
{
  cairn__timer_disarm(timer);
  if (t->count == t->capacity)
    abort(); /* the caller did not reserve: a bug */
  timer->when = when;
  timer->order = order;
  timer->heap = t;
  sift_up(t, t->count++, timer);
}

void cairn__timer_arm(struct cairn__timers *t, struct cairn__timer *timer,
                      int64_t when)
{
  cairn__timer_arm_as(t, timer, when, t->next_order++);
}

struct cairn__timer *cairn__timers_first(const struct cairn__timers *t)
{
  return t->count > 0 ? t->items[0] : NULL;
}

void cairn__timers_free(struct cairn__timers *t)
{
  cairn__free(t->items);
  *t = (struct cairn__timers){0};
}
