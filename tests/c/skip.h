/* Skipping a test with its reason, which scripts/test repeats. */
#ifndef CAIRN_TESTS_SKIP_H
#define CAIRN_TESTS_SKIP_H

#include <stdio.h>

#define skip_because(reason)                                                   \
  do {                                                                         \
    printf("# skipped: %s: %s\n", __func__, reason);                           \
    skip();                                                                    \
  } while (0)

#endif
