/* CIM datetime (DSP0004): 25 characters, of which 20 are digits.
 *
 *   timestamp  yyyymmddhhmmss.mmmmmm+ooo   o: minutes from Greenwich
 *   interval   ddddddddhhmmss.mmmmmm:000
 *
 * A value is kept as microseconds (a timestamp's in UTC), its offset, and how
 * many of the 20 digits are significant. Invariant: microseconds is the lower
 * bound of what the significant digits say, so that formatting and parsing
 * again gives the same value, asterisks included.
 *
 * Years are proleptic Gregorian, 0000 to 9999 as the value's own offset shows
 * them. Two sentinels are no values of the format: all nines (NEVER) and the
 * all-zero timestamp (ZERO). */
#include "datetime.h"

#include <stdio.h>
#include <string.h>

#include "error.h"

#define LENGTH    25
#define DIGITS    20
#define DOT       14 /* index of '.' */
#define TAIL      21 /* index of the sign or ':' */
#define SECOND_US INT64_C(1000000)
#define MINUTE_US (60 * SECOND_US)
#define DAY_US    (INT64_C(86400) * SECOND_US)
#define YEAR_MAX  9999

/* ---- the calendar -------------------------------------------------------- */

static const int64_t days_per_400_years = 146097;
static const int64_t epoch_days = 719528; /* 0000-01-01 to 1970-01-01 */

static const int16_t days_before_month[2][13] = {
    {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365},
    {0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335, 366},
};

static const char *const month_names[] = {
    "January", "February", "March",     "April",   "May",      "June",
    "July",    "August",   "September", "October", "November", "December",
};

static int is_leap(int64_t year)
{
  return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

int cairn__days_in_month(int64_t year, int month)
{
  const int16_t *before = days_before_month[is_leap(year)];
  return before[month] - before[month - 1];
}

/* Days from 0000-01-01 to the first of January; year >= 0. Year 0 is a leap
 * year, hence the rounding up. */
static int64_t days_before_year(int64_t year)
{
  return 365 * year + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
}

static int64_t floor_divide(int64_t a, int64_t b)
{
  return a / b - (a % b < 0);
}

int64_t cairn__days_from_date(int64_t year, int month, int day)
{
  int64_t cycles = floor_divide(year, 400);
  int64_t in_cycle = year - cycles * 400;
  return cycles * days_per_400_years + days_before_year(in_cycle) +
         days_before_month[is_leap(in_cycle)][month - 1] + day - 1 - epoch_days;
}

void cairn__date_from_days(int64_t days, int64_t *year, int *month, int *day)
{
  days += epoch_days;
  int64_t cycles = floor_divide(days, days_per_400_years);
  int64_t rest = days - cycles * days_per_400_years;
  int64_t y = rest / 366; /* never too late, at most two years too early */
  while (days_before_year(y + 1) <= rest)
    y++;
  rest -= days_before_year(y);
  const int16_t *before = days_before_month[is_leap(y)];
  int m = 1;
  while (before[m] <= rest)
    m++;
  *year = cycles * 400 + y;
  *month = m;
  *day = (int)(rest - before[m - 1]) + 1;
}

/* ---- range and precision ------------------------------------------------- */

static int64_t offset_us(const struct cairn_datetime *t)
{
  return t->utc_offset * MINUTE_US;
}

/* A precision that ends at a field: what lies within one is the field's
 * beginning. A zeroed struct is exact. */
static int precision_of(const struct cairn_datetime *t)
{
  int least = t->kind == CAIRN_INTERVAL ? 8 : 4;
  if (t->precision == 0 || t->precision > DIGITS)
    return DIGITS;
  if (t->precision < least)
    return least;
  return t->precision < DOT ? t->precision & ~1 : t->precision;
}

/* The first and the last microsecond that four digits of year can show. */
static int64_t first_us(void)
{
  return cairn__days_from_date(0, 1, 1) * DAY_US;
}

static int64_t last_us(void)
{
  return cairn__days_from_date(YEAR_MAX + 1, 1, 1) * DAY_US - 1;
}

/* The lower bound of the first `precision` digits of a local time or, when
 * is_interval, of a length. */
static int64_t floor_to_precision(int64_t us, int precision, int is_interval)
{
  static const int64_t units[] = {
      [8] = DAY_US,
      [10] = 3600 * SECOND_US,
      [12] = MINUTE_US,
      [14] = SECOND_US,
      [15] = SECOND_US / 10,
      [16] = SECOND_US / 100,
      [17] = SECOND_US / 1000,
      [18] = 100,
      [19] = 10,
      [20] = 1,
  };
  if (precision >= 8 || is_interval)
    return floor_divide(us, units[precision]) * units[precision];
  int64_t year;
  int month, day;
  cairn__date_from_days(floor_divide(us, DAY_US), &year, &month, &day);
  return cairn__days_from_date(year, precision >= 6 ? month : 1, 1) * DAY_US;
}

static struct cairn_datetime make(int kind, int64_t us, int offset,
                                  int precision)
{
  return (struct cairn_datetime){
      .microseconds = us,
      .utc_offset = (int16_t)offset,
      .kind = (uint8_t)kind,
      .precision = (uint8_t)precision,
  };
}

struct cairn_datetime cairn__datetime_never(void)
{
  return make(CAIRN_NEVER, INT64_MAX, 0, DIGITS);
}

struct cairn_datetime cairn__datetime_interval(int64_t us)
{
  if (us < 0)
    us = 0;
  if (us > CAIRN__INTERVAL_MAX)
    us = CAIRN__INTERVAL_MAX;
  return make(CAIRN_INTERVAL, us, 0, DIGITS);
}

static int64_t clamp_local(int64_t unix_us, int64_t offset)
{
  int64_t local;
  if (__builtin_add_overflow(unix_us, offset, &local))
    local = unix_us;
  if (local < first_us())
    return first_us();
  return local > last_us() ? last_us() : local;
}

struct cairn_datetime cairn__datetime_from_unix(int64_t unix_us, int utc_offset)
{
  if (utc_offset > 999)
    utc_offset = 999;
  if (utc_offset < -999)
    utc_offset = -999;
  int64_t offset = utc_offset * MINUTE_US;
  return make(CAIRN_TIMESTAMP, clamp_local(unix_us, offset) - offset,
              utc_offset, DIGITS);
}

/* ---- parsing ------------------------------------------------------------- */

struct field {
  const char *name;
  int start, width, min, max;
};

/* Microseconds count as six fields of one digit: each may be starred. */
#define MICROSECOND(start)                                                     \
  {                                                                            \
    "microsecond", start, 1, 0, 9                                              \
  }
#define TIME_FIELDS                                                            \
  {"hour", 8, 2, 0, 23}, {"minute", 10, 2, 0, 59}, {"second", 12, 2, 0, 59},   \
      MICROSECOND(15), MICROSECOND(16), MICROSECOND(17), MICROSECOND(18),      \
      MICROSECOND(19), MICROSECOND(20)

static const struct field timestamp_fields[] = {
    {"year", 0, 4, 0, 9999},
    {"month", 4, 2, 1, 12},
    {"day", 6, 2, 1, 31},
    TIME_FIELDS,
};

static const struct field interval_fields[] = {
    {"days", 0, 8, 0, 99999999},
    TIME_FIELDS,
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define TIME_COUNT   9 /* the last fields of both kinds, from "hour" */

/* The text as messages quote it. */
struct quoted {
  char text[4 * 40 + 4];
};

static const char *quote(const char *text, size_t length, struct quoted *q)
{
  char start[41] = "";
  if (length >= sizeof start)
    snprintf(start, sizeof start, "%.37s...", text);
  else if (length > 0)
    memcpy(start, text, length); /* a NUL inside ends the quotation */
  return cairn__printable(start, q->text, sizeof q->text);
}

static const char *name_character(char c, char out[12])
{
  if (c > 0x20 && c < 0x7F)
    snprintf(out, 12, "'%c'", c);
  else
    snprintf(out, 12, "byte 0x%02X", (unsigned char)c);
  return out;
}

/* Positions in messages count from 1. */
static int fail_character(struct cairn_error *err, const char *text, int index,
                          const char *expected)
{
  struct quoted q;
  char c[12];
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "datetime \"%s\": character %d is %s; expected %s",
                     quote(text, LENGTH, &q), index + 1,
                     name_character(text[index], c), expected);
}

static int fail_range(struct cairn_error *err, const char *text,
                      const struct field *f, const char *valid)
{
  struct quoted q;
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "datetime \"%s\": characters %d-%d (%s) are %.*s; "
                     "valid is %s",
                     quote(text, LENGTH, &q), f->start + 1, f->start + f->width,
                     f->name, f->width, text + f->start, valid);
}

static int is_digit(char c)
{
  return c >= '0' && c <= '9';
}

/* Reads one field: 1 = digits, value filled; 0 = asterisks; -1 = an error. */
static int parse_field(const char *text, const struct field *f, int is_starred,
                       int *value, struct cairn_error *err)
{
  char expected[96];
  *value = 0;
  if (is_starred || text[f->start] == '*') {
    for (int i = f->start; i < f->start + f->width; i++) {
      if (text[i] == '*')
        continue;
      if (is_starred)
        snprintf(expected, sizeof expected,
                 "'*' (%s), because asterisks run on to the sign or ':'",
                 f->name);
      else
        snprintf(expected, sizeof expected,
                 "'*', because the %s is starred whole or not at all", f->name);
      return fail_character(err, text, i, expected);
    }
    return 0;
  }
  for (int i = f->start; i < f->start + f->width; i++) {
    if (!is_digit(text[i])) {
      snprintf(expected, sizeof expected, "a digit (%s)%s", f->name,
               i == f->start ? ", or '*' from here to the sign or ':'" : "");
      return fail_character(err, text, i, expected);
    }
    *value = *value * 10 + (text[i] - '0');
  }
  if (*value < f->min || *value > f->max) {
    char valid[32];
    snprintf(valid, sizeof valid, "%0*d-%0*d", f->width, f->min, f->width,
             f->max);
    return fail_range(err, text, f, valid);
  }
  return 1;
}

/* Reads all fields of one kind; those that are starred get their least value.
 * Returns the precision or -1. */
static int parse_fields(const char *text, const struct field *fields,
                        size_t count, int *values, struct cairn_error *err)
{
  int precision = 0, is_starred = 0;
  for (size_t i = 0; i < count; i++) {
    const struct field *f = &fields[i];
    int rc = parse_field(text, f, is_starred, &values[i], err);
    if (rc < 0)
      return -1;
    if (rc > 0) {
      precision += f->width;
    } else {
      is_starred = 1;
      values[i] = f->min;
    }
  }
  if (precision == 0) {
    struct quoted q;
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "datetime \"%s\": every digit is '*'; expected at least "
                       "the %s",
                       quote(text, LENGTH, &q), fields[0].name);
  }
  return precision;
}

static int64_t time_of_day(const int *values)
{
  int64_t us = ((int64_t)values[0] * 60 + values[1]) * 60 + values[2];
  for (int i = 3; i < TIME_COUNT; i++)
    us = us * 10 + values[i];
  return us;
}

static int parse_interval(const char *text, struct cairn_datetime *out,
                          struct cairn_error *err)
{
  int values[COUNT(interval_fields)];
  int precision =
      parse_fields(text, interval_fields, COUNT(values), values, err);
  if (precision < 0)
    return -1;
  for (int i = TAIL + 1; i < LENGTH; i++)
    if (text[i] != '0')
      return fail_character(err, text, i, "'0': an interval ends in \":000\"");
  *out = make(CAIRN_INTERVAL, values[0] * DAY_US + time_of_day(values + 1), 0,
              precision);
  return 0;
}

static int parse_timestamp(const char *text, struct cairn_datetime *out,
                           struct cairn_error *err)
{
  int values[COUNT(timestamp_fields)];
  int precision =
      parse_fields(text, timestamp_fields, COUNT(values), values, err);
  if (precision < 0)
    return -1;
  int days = cairn__days_in_month(values[0], values[1]);
  if (values[2] > days) {
    char valid[64];
    snprintf(valid, sizeof valid, "01-%02d in %s %04d", days,
             month_names[values[1] - 1], values[0]);
    return fail_range(err, text, &timestamp_fields[2], valid);
  }
  int offset = 0;
  for (int i = TAIL + 1; i < LENGTH; i++) {
    if (!is_digit(text[i]))
      return fail_character(err, text, i,
                            text[i] == '*'
                                ? "a digit: the offset from UTC is never "
                                  "starred (wildcards of WMI are not accepted)"
                                : "a digit (minutes of the offset from UTC)");
    offset = offset * 10 + (text[i] - '0');
  }
  if (text[TAIL] == '-')
    offset = -offset;
  int64_t local =
      cairn__days_from_date(values[0], values[1], values[2]) * DAY_US +
      time_of_day(values + 3);
  *out = make(CAIRN_TIMESTAMP, local - offset * MINUTE_US, offset, precision);
  return 0;
}

/* The sentinels are looked for before any field is: they break the ranges. */
static int parse_sentinel(const char *text, struct cairn_datetime *out)
{
  const char *tail = text + TAIL;
  if (memcmp(text, "00000000000000.000000", TAIL) == 0 &&
      (memcmp(tail, "+000", 4) == 0 || memcmp(tail, "-000", 4) == 0)) {
    *out = make(CAIRN_ZERO, 0, 0, DIGITS);
    return 1;
  }
  if (memcmp(text, "99999999999999.999999", TAIL) == 0 &&
      strchr(":+-", tail[0]) != NULL && tail[0] != '\0' &&
      (memcmp(tail + 1, "000", 3) == 0 || memcmp(tail + 1, "999", 3) == 0)) {
    *out = cairn__datetime_never();
    return 1;
  }
  return 0;
}

int cairn_datetime_parse(const char *text, size_t length,
                         struct cairn_datetime *out, struct cairn_error *err)
{
  struct quoted q;
  if (length != LENGTH)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "datetime \"%s\" has %zu characters; expected 25: "
                       "yyyymmddhhmmss.mmmmmm+ooo (a time) or "
                       "ddddddddhhmmss.mmmmmm:000 (an interval)",
                       quote(text, length, &q), length);
  if (parse_sentinel(text, out))
    return 0;
  struct cairn_datetime result;
  int rc;
  if (text[DOT] != '.')
    return fail_character(err, text, DOT, "'.'");
  if (text[TAIL] == ':')
    rc = parse_interval(text, &result, err);
  else if (text[TAIL] == '+' || text[TAIL] == '-')
    rc = parse_timestamp(text, &result, err);
  else
    return fail_character(err, text, TAIL,
                          "'+' or '-' (a time) or ':' (an interval)");
  if (rc == 0)
    *out = result;
  return rc;
}

/* ---- formatting ---------------------------------------------------------- */

static void put(char *out, int64_t value, int width)
{
  for (int i = width - 1; i >= 0; i--) {
    out[i] = (char)('0' + value % 10);
    value /= 10;
  }
}

void cairn_datetime_format(const struct cairn_datetime *t,
                           char out[CAIRN_DATETIME_SIZE])
{
  if (t->kind == CAIRN_NEVER || t->kind == CAIRN_ZERO) {
    memcpy(out,
           t->kind == CAIRN_NEVER ? "99999999999999.999999:000"
                                  : "00000000000000.000000+000",
           CAIRN_DATETIME_SIZE);
    return;
  }
  int is_interval = t->kind == CAIRN_INTERVAL;
  int offset = 0;
  int64_t us;
  if (is_interval) {
    us = cairn__datetime_interval(t->microseconds).microseconds;
  } else {
    struct cairn_datetime shown =
        cairn__datetime_from_unix(t->microseconds, t->utc_offset);
    offset = shown.utc_offset;
    us = shown.microseconds + offset_us(&shown);
  }
  int64_t days = floor_divide(us, DAY_US);
  us -= days * DAY_US;
  if (is_interval) {
    put(out, days, 8);
  } else {
    int64_t year;
    int month, day;
    cairn__date_from_days(days, &year, &month, &day);
    put(out, year, 4);
    put(out + 4, month, 2);
    put(out + 6, day, 2);
  }
  put(out + 8, us / (3600 * SECOND_US), 2);
  put(out + 10, us / MINUTE_US % 60, 2);
  put(out + 12, us / SECOND_US % 60, 2);
  out[DOT] = '.';
  put(out + DOT + 1, us % SECOND_US, 6);
  out[TAIL] = is_interval ? ':' : offset < 0 ? '-' : '+';
  put(out + TAIL + 1, offset < 0 ? -offset : offset, 3);
  out[LENGTH] = '\0';
  int precision = precision_of(t);
  for (int digit = precision; digit < DIGITS; digit++)
    out[digit < DOT ? digit : digit + 1] = '*';
}

/* ---- arithmetic ---------------------------------------------------------- */

static const char *kind_name(const struct cairn_datetime *t)
{
  switch (t->kind) {
  case CAIRN_TIMESTAMP:
    return "a time";
  case CAIRN_INTERVAL:
    return "an interval";
  case CAIRN_NEVER:
    return "the end of time (all nines)";
  case CAIRN_ZERO:
    return "the unset time (all zeros)";
  default:
    return "no datetime";
  }
}

/* "A op B", both written out, for messages. */
static const char *expression(const struct cairn_datetime *a, char op,
                              const struct cairn_datetime *b, char *out,
                              size_t size)
{
  char left[CAIRN_DATETIME_SIZE], right[CAIRN_DATETIME_SIZE];
  cairn_datetime_format(a, left);
  cairn_datetime_format(b, right);
  snprintf(out, size, "%s %c %s", left, op, right);
  return out;
}

#define EXPRESSION_SIZE (2 * CAIRN_DATETIME_SIZE + 4)

static int fail_overflow(struct cairn_error *err, const char *what)
{
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "%s is beyond what a datetime can hold", what);
}

/* Takes us as the result of `what` if the format can show it. */
static int finish(struct cairn_datetime *out, int kind, int64_t us, int offset,
                  int precision, const char *what, struct cairn_error *err)
{
  int64_t shift = offset * MINUTE_US;
  int64_t local;
  if (__builtin_add_overflow(us, shift, &local))
    return fail_overflow(err, what);
  if (kind == CAIRN_INTERVAL) {
    if (us < 0)
      return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                         "%s is below zero; an interval is never negative",
                         what);
    if (us > CAIRN__INTERVAL_MAX)
      return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                         "%s is longer than 99999999 days, the longest "
                         "interval",
                         what);
  } else if (local < first_us() || local > last_us()) {
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%s lies outside the years 0000-9999", what);
  }
  local = floor_to_precision(local, precision, kind == CAIRN_INTERVAL);
  *out = make(kind, local - shift, offset, precision);
  return 0;
}

int cairn_datetime_add(const struct cairn_datetime *a, char op,
                       const struct cairn_datetime *b,
                       struct cairn_datetime *out, struct cairn_error *err)
{
  char what[EXPRESSION_SIZE];
  expression(a, op, b, what, sizeof what);
  if (op != '+' && op != '-')
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: unknown operator; valid are '+' and '-'", what);
  int is_difference =
      a->kind == CAIRN_TIMESTAMP && b->kind == CAIRN_TIMESTAMP && op == '-';
  int is_shift = (a->kind == CAIRN_TIMESTAMP || a->kind == CAIRN_INTERVAL) &&
                 b->kind == CAIRN_INTERVAL;
  if (!is_difference && !is_shift)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: %s %c %s is not defined; valid are time - time, "
                       "time + or - interval, interval + or - interval",
                       what, kind_name(a), op, kind_name(b));
  int precision = precision_of(a);
  if (precision_of(b) < precision)
    precision = precision_of(b);
  if (is_difference && precision < 8)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: both days must be known", what);
  int64_t us;
  if (op == '+' ? __builtin_add_overflow(a->microseconds, b->microseconds, &us)
                : __builtin_sub_overflow(a->microseconds, b->microseconds, &us))
    return fail_overflow(err, what);
  if (is_difference)
    return finish(out, CAIRN_INTERVAL, us, 0, precision, what, err);
  return finish(out, a->kind, us, a->utc_offset, precision, what, err);
}

int cairn_datetime_scale(const struct cairn_datetime *a, char op, int64_t n,
                         struct cairn_datetime *out, struct cairn_error *err)
{
  char left[CAIRN_DATETIME_SIZE], what[EXPRESSION_SIZE];
  cairn_datetime_format(a, left);
  snprintf(what, sizeof what, "%s %c %lld", left, op, (long long)n);
  if (op != '*' && op != '/')
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: unknown operator; valid are '*' and '/'", what);
  if (a->kind != CAIRN_INTERVAL)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: only an interval can be multiplied or divided, "
                       "this is %s",
                       what, kind_name(a));
  if (op == '/' && n <= 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: the divisor must be above 0", what);
  int64_t us;
  if (op == '/')
    us = a->microseconds / n;
  else if (__builtin_mul_overflow(a->microseconds, n, &us))
    return fail_overflow(err, what);
  return finish(out, CAIRN_INTERVAL, us, 0, precision_of(a), what, err);
}

int cairn_datetime_ratio(const struct cairn_datetime *a,
                         const struct cairn_datetime *b, int64_t *out,
                         struct cairn_error *err)
{
  char what[EXPRESSION_SIZE];
  expression(a, '/', b, what, sizeof what);
  if (a->kind != CAIRN_INTERVAL || b->kind != CAIRN_INTERVAL)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: %s / %s is not defined; valid is interval / "
                       "interval",
                       what, kind_name(a), kind_name(b));
  if (b->microseconds <= 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: the divisor must be above 0", what);
  *out = a->microseconds / b->microseconds;
  return 0;
}

int cairn_datetime_compare(const struct cairn_datetime *a,
                           const struct cairn_datetime *b, int *out,
                           struct cairn_error *err)
{
  if (a->kind == CAIRN_NEVER || b->kind == CAIRN_NEVER) {
    *out = (a->kind == CAIRN_NEVER) - (b->kind == CAIRN_NEVER);
    return 0;
  }
  if (a->kind != b->kind) {
    char what[EXPRESSION_SIZE];
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT, "%s: %s does not compare with %s",
        expression(a, '<', b, what, sizeof what), kind_name(a), kind_name(b));
  }
  int precision = precision_of(a);
  if (precision_of(b) < precision)
    precision = precision_of(b);
  int64_t x = a->microseconds, y = b->microseconds;
  if (precision < DIGITS) {
    /* Digits of the same clock are compared: the common one if there is,
     * otherwise UTC's. */
    int64_t shift = a->utc_offset == b->utc_offset ? offset_us(a) : 0;
    int is_interval = a->kind == CAIRN_INTERVAL;
    if (__builtin_add_overflow(x, shift, &x) ||
        __builtin_add_overflow(y, shift, &y))
      return fail_overflow(err, "the comparison");
    x = floor_to_precision(x, precision, is_interval);
    y = floor_to_precision(y, precision, is_interval);
  }
  *out = (x > y) - (x < y);
  return 0;
}
