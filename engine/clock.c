/* The system's clocks, and a virtual pair that only tests and simulations move.
 *
 * Invariant: the virtual monotonic clock never goes back, whatever is done to
 * the virtual wall clock. */
#include "clock.h"

#include <stdatomic.h>
#include <time.h>

static int64_t read_clock(clockid_t id)
{
  struct timespec now;
  clock_gettime(id, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int64_t system_wall(const struct cairn_clock *c)
{
  (void)c;
  return read_clock(CLOCK_REALTIME);
}

static int64_t system_monotonic(const struct cairn_clock *c)
{
  (void)c;
  return read_clock(CLOCK_MONOTONIC);
}

const struct cairn_clock cairn__system_clock = {
    .wall = system_wall,
    .monotonic = system_monotonic,
};

static int64_t virtual_wall(const struct cairn_clock *c)
{
  return atomic_load(&((const struct cairn_virtual_clock *)c)->wall_us);
}

static int64_t virtual_monotonic(const struct cairn_clock *c)
{
  return atomic_load(&((const struct cairn_virtual_clock *)c)->monotonic_us);
}

void cairn__virtual_clock_init(struct cairn_virtual_clock *c, int64_t wall_us)
{
  c->clock.wall = virtual_wall;
  c->clock.monotonic = virtual_monotonic;
  atomic_init(&c->wall_us, wall_us);
  atomic_init(&c->monotonic_us, 0);
}

void cairn__virtual_clock_advance(struct cairn_virtual_clock *c, int64_t us)
{
  if (us <= 0)
    return; /* monotonic time never goes back */
  atomic_fetch_add(&c->monotonic_us, us);
  atomic_fetch_add(&c->wall_us, us);
}

void cairn__virtual_clock_jump(struct cairn_virtual_clock *c, int64_t us)
{
  atomic_fetch_add(&c->wall_us, us);
}
