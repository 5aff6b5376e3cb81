/* Time behind an interface: the system's, or a virtual clock that tests and
 * simulations move. Wall time is for the calendar and for time stamps only;
 * intervals and time-outs use the monotonic one. Thread-safe. */
#ifndef CAIRN_CLOCK_H
#define CAIRN_CLOCK_H

#include <stdint.h>

struct cairn_clock {
  int64_t (*wall)(const struct cairn_clock *c);      /* Unix microseconds */
  int64_t (*monotonic)(const struct cairn_clock *c); /* microseconds */
};

extern const struct cairn_clock cairn__system_clock;

struct cairn_virtual_clock {
  struct cairn_clock clock; /* first */
  _Atomic int64_t wall_us, monotonic_us;
};
void cairn__virtual_clock_init(struct cairn_virtual_clock *c, int64_t wall_us);
/* Moves both forward. */
void cairn__virtual_clock_advance(struct cairn_virtual_clock *c, int64_t us);
/* Moves wall time only, in either direction (somebody set the clock). */
void cairn__virtual_clock_jump(struct cairn_virtual_clock *c, int64_t us);

#endif
