/* Datetimes made by the engine itself; parsing and arithmetic are public
 * (cairn.h). All results are exact and can be formatted: what lies outside
 * the format's range becomes its nearest end. */
#ifndef CAIRN_DATETIME_H
#define CAIRN_DATETIME_H

#include <stdint.h>

#include "cairn.h"

/* The longest interval: 99999999 days, 23:59:59.999999. */
#define CAIRN__INTERVAL_MAX INT64_C(8639999999999999999)

/* A timestamp as a clock that many minutes east of Greenwich shows it. */
struct cairn_datetime cairn__datetime_from_unix(int64_t unix_us,
                                                int utc_offset);
/* Negative lengths become 0. */
struct cairn_datetime cairn__datetime_interval(int64_t us);
struct cairn_datetime cairn__datetime_never(void);

/* The proleptic Gregorian calendar, in any thread: days since 1970-01-01, any
 * year, months from 1, any day of the month from 1 up. */
int64_t cairn__days_from_date(int64_t year, int month, int day);
void cairn__date_from_days(int64_t days, int64_t *year, int *month, int *day);
int cairn__days_in_month(int64_t year, int month);

#endif
