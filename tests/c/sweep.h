/* Sweeps: an action is done again and again, each time with another of its
 * calls or allocations failing. CAIRN_LONG=1 visits all of them, else every
 * stride-th, from the one that CAIRN_SEED chooses, so that other days see the
 * others. */
#ifndef CAIRN_TESTS_SWEEP_H
#define CAIRN_TESTS_SWEEP_H

#include <stdint.h>
#include <stdlib.h>

#ifdef CAIRN_SANITIZED
enum { SWEEP_SLOWER = 4 };
#else
enum { SWEEP_SLOWER = 1 };
#endif

/* `plain` without a sanitizer, which visits the fewer. */
static inline uint64_t sweep_stride(uint64_t plain)
{
  return getenv("CAIRN_LONG") != NULL ? 1 : plain * SWEEP_SLOWER;
}

/* The first that is visited, from 1. */
static inline uint64_t sweep_first(uint64_t stride)
{
  const char *text = getenv("CAIRN_SEED");
  return 1 + (text != NULL ? strtoull(text, NULL, 10) : 1) % stride;
}

#endif
