/* CIM datetime: what is accepted, what it means, what is refused and how the
 * refusal reads; arithmetic and comparison; and, over many random instants,
 * agreement with the C library's calendar. */
#include "cairn.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "datetime.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SECOND       INT64_C(1000000)

static struct cairn_datetime parse(const char *text)
{
  struct cairn_datetime t;
  struct cairn_error err;
  if (cairn_datetime_parse(text, strlen(text), &t, &err) != 0)
    fail_msg("%s", err.message);
  return t;
}

static void assert_formats(const struct cairn_datetime *t, const char *expected)
{
  char text[CAIRN_DATETIME_SIZE];
  memset(text, 'x', sizeof text);
  cairn_datetime_format(t, text);
  assert_int_equal(text[25], '\0');
  assert_string_equal(text, expected);
}

static void reads_timestamps(void **state)
{
  (void)state;
  static const struct {
    const char *text;
    int64_t unix_us;
    int offset;
  } cases[] = {
      {"19700101000000.000000+000", 0, 0},
      {"19980525133015.000000-300", INT64_C(896121015000000), -300},
      {"19980525133015.000001-300", INT64_C(896121015000001), -300},
      {"20250101000000.000000+060", INT64_C(1735686000000000), 60},
      {"20240229235959.999999+000", INT64_C(1709251199999999), 0},
      {"20000229000000.000000+000", INT64_C(951782400000000), 0},
      {"19691231235959.999999+000", -1, 0},
      {"00000101000000.000000+000", INT64_C(-62167219200000000), 0},
      {"00000229000000.000000+000", INT64_C(-62162121600000000), 0},
      {"00000101000000.000000+999", INT64_C(-62167279140000000), 999},
      {"99991231235959.999999+000", INT64_C(253402300799999999), 0},
      {"99991231235959.999999-999", INT64_C(253402360739999999), -999},
      {"20140124061515.342572+000", INT64_C(1390544115342572), 0},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime t = parse(cases[i].text);
    assert_int_equal(t.kind, CAIRN_TIMESTAMP);
    assert_int_equal(t.microseconds, cases[i].unix_us);
    assert_int_equal(t.utc_offset, cases[i].offset);
    assert_int_equal(t.precision, 20);
    assert_formats(&t, cases[i].text);
  }
}

static void takes_minus_zero_as_utc(void **state)
{
  (void)state;
  struct cairn_datetime t = parse("20140124061515.342572-000");
  assert_int_equal(t.microseconds, INT64_C(1390544115342572));
  assert_int_equal(t.utc_offset, 0);
  assert_formats(&t, "20140124061515.342572+000");
}

static void reads_intervals(void **state)
{
  (void)state;
  static const struct {
    const char *text;
    int64_t us;
  } cases[] = {
      {"00000000000000.000000:000", 0},
      {"00000000000000.000001:000", 1},
      {"00000000000500.000000:000", 300 * SECOND},
      {"00000000020000.000000:000", 7200 * SECOND},
      {"00000001120032.000000:000", 129632 * SECOND},
      {"99999999235959.999999:000", INT64_C(8639999999999999999)},
      {"99999999000000.000000:000", INT64_C(8639999913600000000)},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime t = parse(cases[i].text);
    assert_int_equal(t.kind, CAIRN_INTERVAL);
    assert_true(t.microseconds == cases[i].us);
    assert_int_equal(t.utc_offset, 0);
    assert_int_equal(t.precision, 20);
    assert_formats(&t, cases[i].text);
  }
}

static void knows_the_all_zero_timestamp(void **state)
{
  (void)state;
  struct cairn_datetime t = parse("00000000000000.000000+000");
  assert_int_equal(t.kind, CAIRN_ZERO);
  assert_formats(&t, "00000000000000.000000+000");
  t = parse("00000000000000.000000-000");
  assert_int_equal(t.kind, CAIRN_ZERO);
  assert_formats(&t, "00000000000000.000000+000");
  /* an interval of nothing is no sentinel */
  t = parse("00000000000000.000000:000");
  assert_int_equal(t.kind, CAIRN_INTERVAL);
}

static void knows_the_six_spellings_of_never(void **state)
{
  (void)state;
  static const char *const tails[] = {":000", ":999", "+000",
                                      "+999", "-000", "-999"};
  for (size_t i = 0; i < COUNT(tails); i++) {
    char text[26];
    snprintf(text, sizeof text, "99999999999999.999999%s", tails[i]);
    struct cairn_datetime t = parse(text);
    assert_int_equal(t.kind, CAIRN_NEVER);
    assert_formats(&t, "99999999999999.999999:000");
  }
}

static void keeps_asterisks_as_precision(void **state)
{
  (void)state;
  static const struct {
    const char *text;
    int precision;
    const char *lower_bound;
  } cases[] = {
      {"20220510113045.000***-480", 17, "20220510113045.000000-480"},
      {"20220510113045.123***-480", 17, "20220510113045.123000-480"},
      {"20220510113045.12345*+000", 19, "20220510113045.123450+000"},
      {"20220510113045.1*****+000", 15, "20220510113045.100000+000"},
      {"20220510113045.******+000", 14, "20220510113045.000000+000"},
      {"202205101130**.******+060", 12, "20220510113000.000000+060"},
      {"2022051011****.******+060", 10, "20220510110000.000000+060"},
      {"20220510******.******+060", 8, "20220510000000.000000+060"},
      {"202205********.******-060", 6, "20220501000000.000000-060"},
      {"2022**********.******+000", 4, "20220101000000.000000+000"},
      {"00000001132312.125***:000", 17, "00000001132312.125000:000"},
      {"000000011323**.******:000", 12, "00000001132300.000000:000"},
      {"00000001******.******:000", 8, "00000001000000.000000:000"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime t = parse(cases[i].text);
    struct cairn_datetime bound = parse(cases[i].lower_bound);
    assert_int_equal(t.precision, cases[i].precision);
    assert_true(t.microseconds == bound.microseconds);
    assert_int_equal(t.utc_offset, bound.utc_offset);
    assert_formats(&t, cases[i].text);
  }
}

struct refusal {
  const char *text;
  int id;
  const char *message; /* part of it */
};

static void assert_refused(const struct refusal *r, size_t count)
{
  for (size_t i = 0; i < count; i++) {
    struct cairn_error err;
    struct cairn_datetime t = {.microseconds = 4711, .kind = 77};
    if (cairn_datetime_parse(r[i].text, strlen(r[i].text), &t, &err) != -1)
      fail_msg("\"%s\" was accepted", r[i].text);
    if (strstr(err.message, r[i].message) == NULL)
      fail_msg("\"%s\": got \"%s\", expected \"%s\"", r[i].text, err.message,
               r[i].message);
    if (err.id != r[i].id)
      fail_msg("\"%s\": error %d, expected %d", r[i].text, err.id, r[i].id);
    assert_int_equal(t.microseconds, 4711); /* untouched */
    assert_int_equal(t.kind, 77);
    assert_int_equal(
        cairn_datetime_parse(r[i].text, strlen(r[i].text), &t, NULL), -1);
  }
}

static void refuses_a_wrong_shape_and_says_where(void **state)
{
  (void)state;
  static const struct refusal cases[] = {
      {"", CAIRN_E_INVALID_ARGUMENT, "has 0 characters; expected 25"},
      {"2025-01-01T00:00:00Z", CAIRN_E_INVALID_ARGUMENT,
       "\"2025-01-01T00:00:00Z\" has 20 characters; expected 25"},
      {"20250101000000.000000+00", CAIRN_E_INVALID_ARGUMENT, "24 characters"},
      {"20250101000000.000000+0000", CAIRN_E_INVALID_ARGUMENT, "26 characters"},
      {"20250101000000,000000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 15 is ','; expected '.'"},
      {"20250101000000.000000Z000", CAIRN_E_INVALID_ARGUMENT,
       "character 22 is 'Z'; expected '+' or '-' (a time) or ':'"},
      {"2O250101000000.000000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 2 is 'O'; expected a digit (year)"},
      {"20250101 00000.000000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 9 is byte 0x20; expected a digit (hour)"},
      {"20250101000000.00000x+000", CAIRN_E_INVALID_ARGUMENT,
       "character 21 is 'x'; expected a digit (microsecond)"},
      {"20250101000000.000000+0x0", CAIRN_E_INVALID_ARGUMENT,
       "character 24 is 'x'; expected a digit (minutes of the offset"},
      {"-0250101000000.000000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 1 is '-'"},
      {"00000000020000.000000:001", CAIRN_E_INVALID_ARGUMENT,
       "character 25 is '1'; expected '0': an interval ends in \":000\""},
      {"00000000020000.000000:***", CAIRN_E_INVALID_ARGUMENT,
       "character 23 is '*'"},
      {"20250101000000.000000+00\xff", CAIRN_E_INVALID_ARGUMENT,
       "character 25 is byte 0xFF"},
  };
  assert_refused(cases, COUNT(cases));
}

static void refuses_fields_out_of_range_and_says_what_is_valid(void **state)
{
  (void)state;
  static const struct refusal cases[] = {
      {"20251301000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 5-6 (month) are 13; valid is 01-12"},
      {"20250001000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 5-6 (month) are 00; valid is 01-12"},
      {"20250132000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 7-8 (day) are 32; valid is 01-31"},
      {"20250100000000.000000+000", CAIRN_E_OUT_OF_RANGE, "(day) are 00"},
      {"20250229000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "(day) are 29; valid is 01-28 in February 2025"},
      {"19000229000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "valid is 01-28 in February 1900"},
      {"20240230000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "valid is 01-29 in February 2024"},
      {"00000230000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "valid is 01-29 in February 0000"},
      {"20250431000000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "valid is 01-30 in April 2025"},
      {"20250101240000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 9-10 (hour) are 24; valid is 00-23"},
      {"20250101006000.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 11-12 (minute) are 60; valid is 00-59"},
      {"20161231235960.000000+000", CAIRN_E_OUT_OF_RANGE,
       "characters 13-14 (second) are 60; valid is 00-59"},
      {"00000000240000.000000:000", CAIRN_E_OUT_OF_RANGE, "(hour) are 24"},
      {"00000000006000.000000:000", CAIRN_E_OUT_OF_RANGE, "(minute) are 60"},
      {"00000000000060.000000:000", CAIRN_E_OUT_OF_RANGE, "(second) are 60"},
      /* nearly a sentinel */
      {"00000000000000.000000+001", CAIRN_E_OUT_OF_RANGE, "(month) are 00"},
      {"00000000000000.000001+000", CAIRN_E_OUT_OF_RANGE, "(month) are 00"},
      {"99999999999999.999998:000", CAIRN_E_OUT_OF_RANGE, "(hour) are 99"},
      {"99999999999999.999999:001", CAIRN_E_OUT_OF_RANGE, "(hour) are 99"},
      {"99999999999999.999999+001", CAIRN_E_OUT_OF_RANGE, "(month) are 99"},
  };
  assert_refused(cases, COUNT(cases));
}

static void refuses_asterisks_other_than_a_run_of_whole_fields(void **state)
{
  (void)state;
  static const struct refusal cases[] = {
      /* wildcards in the manner of WMI */
      {"****0401******.******+000", CAIRN_E_INVALID_ARGUMENT,
       "character 5 is '0'; expected '*' (month), because asterisks run on"},
      {"20250401******.000000+***", CAIRN_E_INVALID_ARGUMENT,
       "character 16 is '0'"},
      {"20250401000000.******+***", CAIRN_E_INVALID_ARGUMENT,
       "character 23 is '*'; expected a digit: the offset from UTC is never "
       "starred"},
      {"20250401**0000.000000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 11 is '0'"},
      /* parts of fields */
      {"2025040*******.******+000", CAIRN_E_INVALID_ARGUMENT,
       "character 8 is '*'; expected a digit (day)"},
      {"202504*1******.******+000", CAIRN_E_INVALID_ARGUMENT,
       "character 8 is '1'; expected '*', because the day is starred whole"},
      {"0000000*******.******:000", CAIRN_E_INVALID_ARGUMENT,
       "character 8 is '*'; expected a digit (days)"},
      {"20250401000000.***000+000", CAIRN_E_INVALID_ARGUMENT,
       "character 19 is '0'"},
      /* nothing left */
      {"**************.******+000", CAIRN_E_INVALID_ARGUMENT,
       "every digit is '*'; expected at least the year"},
      {"**************.******:000", CAIRN_E_INVALID_ARGUMENT,
       "expected at least the days"},
  };
  assert_refused(cases, COUNT(cases));
}

static void refuses_a_nul_inside(void **state)
{
  (void)state;
  char text[26] = "20250101000000.000000+000";
  text[8] = '\0';
  struct cairn_datetime t;
  struct cairn_error err;
  assert_int_equal(cairn_datetime_parse(text, 25, &t, &err), -1);
  assert_non_null(strstr(err.message, "character 9 is byte 0x00"));
}

static void does_not_read_past_the_length_given(void **state)
{
  (void)state;
  /* no NUL after it: the sanitizers watch */
  static const char whole[] = "20250101000000.000000+000";
  char text[25];
  for (size_t i = 0; i < sizeof text; i++)
    text[i] = whole[i];
  struct cairn_datetime t;
  assert_int_equal(cairn_datetime_parse(text, 25, &t, NULL), 0);
  for (size_t length = 0; length < 25; length++)
    assert_int_equal(cairn_datetime_parse(text, length, &t, NULL), -1);
}

static void adds_and_subtracts(void **state)
{
  (void)state;
  static const struct {
    const char *a;
    char op;
    const char *b, *result;
  } cases[] = {
      {"20250102000000.000000+000", '-', "20250101000000.000000+000",
       "00000001000000.000000:000"},
      /* offsets are taken into account */
      {"20250101010000.000000+060", '-', "20250101000000.000000+000",
       "00000000000000.000000:000"},
      {"20250101000000.000000-300", '-', "20250101000000.000000+060",
       "00000000060000.000000:000"},
      {"20240228120000.000000+060", '+', "00000001000000.000000:000",
       "20240229120000.000000+060"},
      {"20240301000000.000000+060", '-', "00000000000000.000001:000",
       "20240229235959.999999+060"},
      {"20241231235959.999999-480", '+', "00000000000000.000001:000",
       "20250101000000.000000-480"},
      {"00000000020000.000000:000", '+', "00000000220000.500000:000",
       "00000001000000.500000:000"},
      {"00000001000000.000000:000", '-', "00000001000000.000000:000",
       "00000000000000.000000:000"},
      {"99991231235959.999999+000", '-', "00000101000000.000000+000",
       "03652424235959.999999:000"},
      {"00000101000000.000000+000", '+', "03652424235959.999999:000",
       "99991231235959.999999+000"},
      /* the result is as precise as the less precise one, rounded down */
      {"20250101113045.999999+000", '+', "00000001******.******:000",
       "20250102******.******+000"},
      {"20250101113045.123***+060", '+', "00000000000000.000001:000",
       "20250101113045.123***+060"},
      {"20250131******.******+060", '+', "00000001000000.000000:000",
       "20250201******.******+060"},
      {"202501********.******+000", '+', "00000031000000.000000:000",
       "202502********.******+000"},
      {"20250103******.******+000", '-', "20250101235959.999999+000",
       "00000001******.******:000"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime a = parse(cases[i].a), b = parse(cases[i].b), sum;
    struct cairn_error err;
    if (cairn_datetime_add(&a, cases[i].op, &b, &sum, &err) != 0)
      fail_msg("%s", err.message);
    assert_formats(&sum, cases[i].result);
    struct cairn_datetime again = parse(cases[i].result);
    assert_true(sum.microseconds == again.microseconds);
    assert_int_equal(sum.precision, again.precision);
  }
}

static void refuses_undefined_sums_and_results_out_of_range(void **state)
{
  (void)state;
  static const struct {
    const char *a;
    char op;
    const char *b;
    int id;
    const char *message;
  } cases[] = {
      {"20250101000000.000000+000", '+', "20250101000000.000000+000",
       CAIRN_E_INVALID_ARGUMENT, "a time + a time is not defined; valid are"},
      {"00000001000000.000000:000", '-', "20250101000000.000000+000",
       CAIRN_E_INVALID_ARGUMENT, "an interval - a time is not defined"},
      {"00000001000000.000000:000", '+', "20250101000000.000000+000",
       CAIRN_E_INVALID_ARGUMENT, "an interval + a time is not defined"},
      {"00000001000000.000000:000", '*', "00000001000000.000000:000",
       CAIRN_E_INVALID_ARGUMENT, "unknown operator"},
      {"99999999999999.999999:000", '-', "00000001000000.000000:000",
       CAIRN_E_INVALID_ARGUMENT, "the end of time (all nines) -"},
      {"00000000000000.000000+000", '+', "00000001000000.000000:000",
       CAIRN_E_INVALID_ARGUMENT, "the unset time (all zeros) +"},
      {"20250101000000.000000+000", '-', "20250102000000.000000+000",
       CAIRN_E_OUT_OF_RANGE, "is below zero"},
      {"00000001000000.000000:000", '-', "00000001000000.000001:000",
       CAIRN_E_OUT_OF_RANGE, "is below zero"},
      {"99999999235959.999999:000", '+', "00000000000000.000001:000",
       CAIRN_E_OUT_OF_RANGE, "longer than 99999999 days"},
      {"99999999235959.999999:000", '+', "99999999235959.999999:000",
       CAIRN_E_OUT_OF_RANGE, "beyond what a datetime can hold"},
      {"99991231235959.999999+000", '+', "00000000000000.000001:000",
       CAIRN_E_OUT_OF_RANGE, "outside the years 0000-9999"},
      {"00000101000000.000000+000", '-', "00000000000000.000001:000",
       CAIRN_E_OUT_OF_RANGE, "outside the years 0000-9999"},
      /* it is the year on the value's own clock that counts */
      {"00000101000000.000000-060", '-', "00000000000000.000001:000",
       CAIRN_E_OUT_OF_RANGE, "outside the years 0000-9999"},
      {"20250101000000.000000+000", '+', "99999999235959.999999:000",
       CAIRN_E_OUT_OF_RANGE, "outside the years 0000-9999"},
      {"202501********.******+000", '-', "20240101000000.000000+000",
       CAIRN_E_INVALID_ARGUMENT, "both days must be known"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime a = parse(cases[i].a), b = parse(cases[i].b);
    struct cairn_datetime sum = {.microseconds = 4711};
    struct cairn_error err;
    if (cairn_datetime_add(&a, cases[i].op, &b, &sum, &err) != -1)
      fail_msg("%s %c %s was accepted", cases[i].a, cases[i].op, cases[i].b);
    if (strstr(err.message, cases[i].message) == NULL)
      fail_msg("got \"%s\", expected \"%s\"", err.message, cases[i].message);
    assert_int_equal(err.id, cases[i].id);
    assert_int_equal(sum.microseconds, 4711);
  }
}

static void multiplies_and_divides_intervals(void **state)
{
  (void)state;
  static const struct {
    const char *a;
    char op;
    int64_t n;
    const char *result; /* NULL: refused */
    int id;
  } cases[] = {
      {"00000000000500.000000:000", '*', 3, "00000000001500.000000:000", 0},
      {"00000000000500.000000:000", '*', 0, "00000000000000.000000:000", 0},
      {"00000000000500.000000:000", '/', 3, "00000000000140.000000:000", 0},
      {"00000001000000.000000:000", '/', 7, "00000000032542.857142:000", 0},
      {"00000000000000.000001:000", '/', INT64_MAX, "00000000000000.000000:000",
       0},
      {"00000001******.******:000", '*', 3, "00000003******.******:000", 0},
      {"00000003******.******:000", '/', 2, "00000001******.******:000", 0},
      {"00000000000500.000000:000", '/', 0, NULL, CAIRN_E_INVALID_ARGUMENT},
      {"00000000000500.000000:000", '/', -1, NULL, CAIRN_E_INVALID_ARGUMENT},
      {"00000000000500.000000:000", '*', -1, NULL, CAIRN_E_OUT_OF_RANGE},
      {"00000000000500.000000:000", '+', 1, NULL, CAIRN_E_INVALID_ARGUMENT},
      {"00000001000000.000000:000", '*', 100000000, NULL, CAIRN_E_OUT_OF_RANGE},
      {"00000001000000.000000:000", '*', 99999999, "99999999000000.000000:000",
       0},
      {"00000001000000.000000:000", '*', INT64_MAX, NULL, CAIRN_E_OUT_OF_RANGE},
      {"00000001000000.000000:000", '*', INT64_MIN, NULL, CAIRN_E_OUT_OF_RANGE},
      {"20250101000000.000000+000", '*', 2, NULL, CAIRN_E_INVALID_ARGUMENT},
      {"99999999999999.999999:000", '*', 1, NULL, CAIRN_E_INVALID_ARGUMENT},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime a = parse(cases[i].a), out;
    struct cairn_error err;
    int rc = cairn_datetime_scale(&a, cases[i].op, cases[i].n, &out, &err);
    if (cases[i].result != NULL) {
      assert_int_equal(rc, 0);
      assert_formats(&out, cases[i].result);
    } else {
      assert_int_equal(rc, -1);
      assert_int_equal(err.id, cases[i].id);
    }
  }
}

static void divides_intervals_by_intervals(void **state)
{
  (void)state;
  struct cairn_datetime day = parse("00000001000000.000000:000");
  struct cairn_datetime hours = parse("00000000050000.000000:000");
  struct cairn_datetime nothing = parse("00000000000000.000000:000");
  struct cairn_datetime time = parse("20250101000000.000000+000");
  struct cairn_error err;
  int64_t n = 77;
  assert_int_equal(cairn_datetime_ratio(&day, &hours, &n, &err), 0);
  assert_int_equal(n, 4);
  assert_int_equal(cairn_datetime_ratio(&hours, &day, &n, &err), 0);
  assert_int_equal(n, 0);
  assert_int_equal(cairn_datetime_ratio(&day, &nothing, &n, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_int_equal(cairn_datetime_ratio(&time, &day, &n, &err), -1);
  assert_int_equal(cairn_datetime_ratio(&day, &time, &n, &err), -1);
}

static void compares_values_of_one_kind(void **state)
{
  (void)state;
  static const struct {
    const char *a, *b;
    int order; /* 2: refused */
  } cases[] = {
      {"20250101000000.000000+000", "20250101000000.000000+000", 0},
      {"20250101000000.000000+000", "20250101000000.000001+000", -1},
      {"20250101000000.000000+060", "20250101000000.000000+000", -1},
      {"20250101010000.000000+060", "20250101000000.000000+000", 0},
      {"00000101000000.000000+000", "99991231235959.999999+000", -1},
      {"00000001000000.000000:000", "00000000235959.999999:000", 1},
      {"99999999999999.999999:000", "99991231235959.999999+000", 1},
      {"99999999999999.999999:000", "99999999235959.999999:000", 1},
      {"00000000000000.000000+000", "99999999999999.999999:000", -1},
      {"99999999999999.999999:000", "99999999999999.999999+999", 0},
      {"00000000000000.000000+000", "00000000000000.000000-000", 0},
      {"00000001000000.000000:000", "20250101000000.000000+000", 2},
      {"20250101000000.000000+000", "00000001000000.000000:000", 2},
      {"00000000000000.000000+000", "20250101000000.000000+000", 2},
      {"00000000000000.000000+000", "00000000000000.000000:000", 2},
      /* only what both know counts */
      {"20250101******.******+000", "20250101235959.999999+000", 0},
      {"20250101******.******+000", "20250102000000.000000+000", -1},
      {"2025**********.******+000", "20251231235959.999999+000", 0},
      {"202502********.******+000", "20250131235959.999999+000", 1},
      {"20250101113045.12****+000", "20250101113045.129999+000", 0},
      {"20250101113045.12****+000", "20250101113045.130000+000", -1},
      {"00000001******.******:000", "00000001235959.999999:000", 0},
      /* one clock: its digits; two clocks: those of UTC */
      {"20250101******.******+060", "20250101003000.000000+060", 0},
      {"20250101******.******+060", "20250101103000.000000+060", 0},
      {"2025010112****.******+060", "20250101113000.000000+000", 0},
      {"2025010112****.******+060", "20250101123000.000000+000", -1},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_datetime a = parse(cases[i].a), b = parse(cases[i].b);
    struct cairn_error err;
    int order = 77, reverse = 77;
    int rc = cairn_datetime_compare(&a, &b, &order, &err);
    int rc_reverse = cairn_datetime_compare(&b, &a, &reverse, NULL);
    assert_int_equal(rc, rc_reverse);
    if (cases[i].order == 2) {
      assert_int_equal(rc, -1);
      assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
      assert_non_null(strstr(err.message, "does not compare with"));
    } else {
      assert_int_equal(rc, 0);
      if (order != cases[i].order)
        fail_msg("%s against %s gave %d", cases[i].a, cases[i].b, order);
      assert_int_equal(reverse, -order);
    }
  }
}

/* xorshift64*: the same instants in every run */
static uint64_t next_random(uint64_t *seed)
{
  *seed ^= *seed >> 12;
  *seed ^= *seed << 25;
  *seed ^= *seed >> 27;
  return *seed * UINT64_C(2685821657736338717);
}

static void agrees_with_the_c_library_on_every_day(void **state)
{
  (void)state;
  uint64_t seed = 20250101;
  int64_t first = INT64_C(-62167219200), last = INT64_C(253402300799);
  for (int64_t day = first / 86400; day <= last / 86400; day++) {
    int64_t seconds = day * 86400 + (int64_t)(next_random(&seed) % 86400);
    int64_t micro = (int64_t)(next_random(&seed) % 1000000);
    struct cairn_datetime t =
        cairn__datetime_from_unix(seconds * SECOND + micro, 0);
    char text[CAIRN_DATETIME_SIZE], expected[80];
    cairn_datetime_format(&t, text);
    time_t clock = (time_t)seconds;
    struct tm tm;
    assert_non_null(gmtime_r(&clock, &tm));
    snprintf(expected, sizeof expected,
             "%04d%02d%02d%02d%02d%02d.%06" PRId64 "+000", tm.tm_year + 1900,
             tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
             micro);
    if (strcmp(text, expected) != 0)
      fail_msg("%" PRId64 " is \"%s\", expected \"%s\"", seconds, text,
               expected);
    struct cairn_datetime back = parse(text);
    assert_true(back.microseconds == seconds * SECOND + micro);
    assert_true(timegm(&tm) == clock);
  }
}

static void survives_formatting_and_parsing_at_any_offset(void **state)
{
  (void)state;
  uint64_t seed = 7;
  static const int precisions[] = {4, 6, 8, 10, 12, 14, 15, 16, 17, 18, 19, 20};
  for (int i = 0; i < 200000; i++) {
    int64_t span = INT64_C(315569519999999999);
    int64_t us = INT64_C(-62167219200000000) +
                 (int64_t)(next_random(&seed) % (uint64_t)span);
    int offset = (int)(next_random(&seed) % 1999) - 999;
    struct cairn_datetime t = cairn__datetime_from_unix(us, offset);
    char text[CAIRN_DATETIME_SIZE], again[CAIRN_DATETIME_SIZE];
    cairn_datetime_format(&t, text);
    struct cairn_datetime back = parse(text);
    assert_true(back.microseconds == t.microseconds);
    assert_int_equal(back.utc_offset, offset);
    /* starring never raises a value, and stays */
    t.precision = (uint8_t)precisions[next_random(&seed) % COUNT(precisions)];
    cairn_datetime_format(&t, text);
    back = parse(text);
    assert_int_equal(back.precision, t.precision);
    assert_true(back.microseconds <= t.microseconds);
    cairn_datetime_format(&back, again);
    assert_string_equal(again, text);
  }
}

static void differences_undo_sums(void **state)
{
  (void)state;
  uint64_t seed = 99;
  for (int i = 0; i < 100000; i++) {
    int64_t us = (int64_t)(next_random(&seed) % UINT64_C(4000000000000000));
    int64_t length = (int64_t)(next_random(&seed) % UINT64_C(4000000000000000));
    int offset = (int)(next_random(&seed) % 1681) - 840;
    struct cairn_datetime a = cairn__datetime_from_unix(us, offset);
    struct cairn_datetime d = cairn__datetime_interval(length);
    struct cairn_datetime sum, difference;
    int order;
    assert_int_equal(cairn_datetime_add(&a, '+', &d, &sum, NULL), 0);
    assert_int_equal(sum.utc_offset, offset);
    assert_int_equal(cairn_datetime_add(&sum, '-', &a, &difference, NULL), 0);
    assert_int_equal(cairn_datetime_compare(&difference, &d, &order, NULL), 0);
    assert_int_equal(order, 0);
  }
}

static void bounds_what_the_engine_makes(void **state)
{
  (void)state;
  struct cairn_datetime t = cairn__datetime_interval(-5);
  assert_formats(&t, "00000000000000.000000:000");
  t = cairn__datetime_interval(INT64_MAX);
  assert_formats(&t, "99999999235959.999999:000");
  t = cairn__datetime_from_unix(INT64_MAX, 999);
  assert_formats(&t, "99991231235959.999999+999");
  t = cairn__datetime_from_unix(INT64_MIN, -999);
  assert_formats(&t, "00000101000000.000000-999");
  t = cairn__datetime_from_unix(0, 5000);
  assert_formats(&t, "19700101163900.000000+999");
  t = cairn__datetime_never();
  assert_formats(&t, "99999999999999.999999:000");
  /* a struct nobody filled in properly still formats */
  t = (struct cairn_datetime){.kind = CAIRN_TIMESTAMP};
  assert_formats(&t, "19700101000000.000000+000");
  t = (struct cairn_datetime){.kind = CAIRN_INTERVAL,
                              .microseconds = INT64_MIN};
  assert_formats(&t, "00000000000000.000000:000");
  t = (struct cairn_datetime){.kind = CAIRN_TIMESTAMP, .precision = 9};
  assert_formats(&t, "19700101******.******+000");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_timestamps),
      cmocka_unit_test(takes_minus_zero_as_utc),
      cmocka_unit_test(reads_intervals),
      cmocka_unit_test(knows_the_all_zero_timestamp),
      cmocka_unit_test(knows_the_six_spellings_of_never),
      cmocka_unit_test(keeps_asterisks_as_precision),
      cmocka_unit_test(refuses_a_wrong_shape_and_says_where),
      cmocka_unit_test(refuses_fields_out_of_range_and_says_what_is_valid),
      cmocka_unit_test(refuses_asterisks_other_than_a_run_of_whole_fields),
      cmocka_unit_test(refuses_a_nul_inside),
      cmocka_unit_test(does_not_read_past_the_length_given),
      cmocka_unit_test(adds_and_subtracts),
      cmocka_unit_test(refuses_undefined_sums_and_results_out_of_range),
      cmocka_unit_test(multiplies_and_divides_intervals),
      cmocka_unit_test(divides_intervals_by_intervals),
      cmocka_unit_test(compares_values_of_one_kind),
      cmocka_unit_test(agrees_with_the_c_library_on_every_day),
      cmocka_unit_test(survives_formatting_and_parsing_at_any_offset),
      cmocka_unit_test(differences_undo_sums),
      cmocka_unit_test(bounds_what_the_engine_makes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
