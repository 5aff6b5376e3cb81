/* Timers: binary heaps of nodes that live inside their owners, so that arming
 * one never allocates once room for it was made.
 *
 * Nodes due at the same time come in the order in which they were armed. A
 * node is in at most one heap; arming it again moves it. */
#ifndef CAIRN_TIMER_H
#define CAIRN_TIMER_H

#include <stddef.h>
#include <stdint.h>

struct cairn__timers;

struct cairn__timer {
  int64_t when;               /* microseconds on the heap's clock */
  struct cairn__timers *heap; /* NULL: not armed */
  uint32_t order;             /* arming order, which comes round */
  uint32_t index : 29;        /* in the heap */
  uint32_t kind : 3;          /* the owner's */
};

#define CAIRN__TIMERS_MAX ((size_t)1 << 29)

struct cairn__timers {
  struct cairn__timer **items;
  size_t count, capacity;
  uint32_t next_order;
};

/* Makes room for `total` nodes armed at once; 0, or -1 when out of memory. */
int cairn__timers_reserve(struct cairn__timers *t, size_t total);
/* There must be room, unless the node is armed in this heap already. */
void cairn__timer_arm(struct cairn__timers *t, struct cairn__timer *timer,
                      int64_t when);
void cairn__timer_disarm(struct cairn__timer *timer);
/* As if it had been armed when that order was given. */
void cairn__timer_arm_as(struct cairn__timers *t, struct cairn__timer *timer,
                         int64_t when, uint32_t order);
/* Another node takes the place of one that is armed, which is not any more: due
 * at the same time, before and after the same others. */
void cairn__timer_replace(struct cairn__timer *old, struct cairn__timer *timer);
/* Both are armed in the same heap: a comes first. */
int cairn__timer_is_before(const struct cairn__timer *a,
                           const struct cairn__timer *b);
/* The next one, or NULL. */
struct cairn__timer *cairn__timers_first(const struct cairn__timers *t);
void cairn__timers_free(struct cairn__timers *t);

#endif
