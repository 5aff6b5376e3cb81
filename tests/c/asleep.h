/* Runs tests of an engine twice: as they are, and with every job asleep that
 * could be, which nobody may notice. */
#ifndef CAIRN_TESTS_ASLEEP_H
#define CAIRN_TESTS_ASLEEP_H

#include "roster.h"

#define run_awake_and_asleep(tests, set_up, tear_down)                         \
  (cmocka_run_group_tests(tests, set_up, tear_down) +                          \
   (cairn__awake_max = 0, cmocka_run_group_tests_name(                         \
                              "with jobs asleep", tests, set_up, tear_down)))

#endif
