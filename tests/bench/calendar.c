/* How fast the calendar is: evaluations of the next run, for simple schedules
 * and for those that have to look further.
 *
 *   calendar [COUNT]      default 5000000
 *
 * Prints one line a figure: name, number, unit. Each evaluation starts where
 * the last one ended, or at an instant of no order ("scattered"). */
#include "calendar.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define HOUR INT64_C(3600000000)
#define DAY  (24 * HOUR)

static int64_t sum;

static double seconds(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void measure(const char *name, const struct cairn__schedule *s,
                    long count, int is_scattered)
{
  const int64_t first = INT64_C(1735689600000000); /* 2025-01-01 */
  struct cairn__due due;
  int64_t t = first;
  uint64_t random = 88172645463325252u;
  double start = seconds();
  for (long i = 0; i < count; i++) {
    if (!cairn__schedule_next(s, t, &due))
      due.unix_us = first;
    sum += due.unix_us;
    t = due.unix_us;
    if (is_scattered) {
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      t = first + (int64_t)(random % (uint64_t)(INT64_C(20) * 365 * DAY));
    } else if (t > first + INT64_C(100) * 365 * DAY) {
      t = first;
    }
  }
  printf("%-40s %12.0f /s\n", name, (double)count / (seconds() - start));
}

int main(int argc, char **argv)
{
  enum {
    MONTH = CAIRN__SCHEDULE_MONTH,
    MONTHDAY = CAIRN__SCHEDULE_DAY,
    WEEKDAY = CAIRN__SCHEDULE_WEEKDAY,
    START = CAIRN__SCHEDULE_START
  };
  long count = argc > 1 ? atol(argv[1]) : 5000000;
  struct cairn__zone *zone;
  struct cairn_error err;
  double start = seconds();
  for (int i = 0; i < 1000; i++) {
    if (cairn__zone_load("Europe/Berlin", &zone, &err) != 0) {
      fprintf(stderr, "calendar: %s\n", err.message);
      return 1;
    }
    if (i < 999)
      cairn__zone_free(zone);
  }
  printf("%-40s %12.0f /s\n", "zones loaded", 1000 / (seconds() - start));

  struct cairn__schedule s = {.set = START, .start_us = 2 * HOUR};
  measure("daily, UTC", &s, count, 0);
  s.zone = zone;
  measure("daily, Europe/Berlin", &s, count, 0);
  measure("daily, Europe/Berlin, scattered", &s, count, 1);
  s.set |= WEEKDAY;
  s.weekday = 6;
  measure("weekly, Europe/Berlin", &s, count, 0);
  s.set |= MONTHDAY;
  s.day = -1;
  s.weekday = -6;
  measure("last Friday of a month, Europe/Berlin", &s, count, 0);
  s.set = START | MONTH | MONTHDAY;
  s.month = 1;
  s.day = 29;
  measure("29 February, Europe/Berlin", &s, count, 0);
  s.set = START;
  s.gap = CAIRN__GAP_SHIFT;
  measure("daily, Europe/Berlin, gap \"shift\"", &s, count, 0);
  cairn__zone_free(zone);
  return sum == 0;
}
