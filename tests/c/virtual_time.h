/* Time on a virtual clock, passing as it really does: the engine is stepped
 * whenever something is due, so nobody is late. */
#ifndef CAIRN_TESTS_VIRTUAL_TIME_H
#define CAIRN_TESTS_VIRTUAL_TIME_H

#include "cairn.h"

/* `step` steps the engine until nothing is left and takes its events. */
static void pass_time(cairn_engine *engine, int64_t us, void (*step)(void))
{
  int64_t end = cairn_engine_monotonic(engine) + us;

  step();
  for (;;) {
    int64_t left = end - cairn_engine_monotonic(engine);
    int64_t next = cairn_engine_timeout(engine);

    if (left <= 0)
      break;
    if (next < 0 || next > left)
      next = left;
    assert_int_equal(cairn_engine_advance(engine, next, NULL), 0);
    step();
  }
}

#endif
