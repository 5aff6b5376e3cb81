/* The calendar: the conformance cases (tests/data/schedule-cases.json), what
 * is refused, and order. Zones: names, rules, and files that are cut off or
 * changed in any bit. */
#include "calendar.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "datetime.h"
#include "memory.h"
#include "skip.h"
#include "source.h"

#define SECOND INT64_C(1000000)
#define HOUR   (3600 * SECOND)
#define DAY    (24 * HOUR)

static char *read_file(const char *path, size_t *size)
{
  FILE *file = fopen(path, "rb");
  if (file == NULL)
    return NULL;
  char *data = malloc(1 << 20);
  assert_non_null(data);
  *size = fread(data, 1, 1 << 20, file);
  fclose(file);
  return data;
}

static int has_database(void)
{
  return access("/usr/share/zoneinfo/Europe/Berlin", R_OK) == 0;
}

static struct cairn__zone *load(const char *name)
{
  struct cairn__zone *z;
  struct cairn_error err;
  if (cairn__zone_load(name, &z, &err) != 0)
    fail_msg("%s", err.message);
  return z;
}

/* "2025-03-10T01:59:59[.ffffff]...", as the clock shows it */
static int64_t face(const char *text)
{
  int year, month, day, hour, minute, second, read = 0;
  char fraction[7] = "000000";
  assert_int_equal(sscanf(text, "%d-%d-%dT%d:%d:%d%n", &year, &month, &day,
                          &hour, &minute, &second, &read),
                   6);
  if (text[read] == '.')
    memcpy(fraction, text + read + 1, 6);
  return cairn__days_from_date(year, month, day) * DAY + hour * HOUR +
         minute * (60 * SECOND) + second * SECOND + atoi(fraction);
}

static int64_t instant(const json_t *json)
{
  const char *text = json_string_value(json);
  assert_non_null(text);
  assert_int_equal(text[strlen(text) - 1], 'Z');
  return face(text);
}

/* ---- the conformance cases -------------------------------------------------
 */

static json_t *load_cases(void)
{
  json_error_t error;
  json_t *root =
      json_load_file(source_path("tests/data/schedule-cases.json"), 0, &error);
  if (root == NULL)
    fail_msg("schedule-cases.json: %s", error.text);
  return root;
}

static int get_integer(const json_t *object, const char *key, int flag,
                       struct cairn__schedule *s)
{
  const json_t *value = json_object_get(object, key);
  if (!json_is_integer(value))
    return 0;
  s->set |= (uint8_t)flag;
  return (int)json_integer_value(value);
}

static void read_schedule(const json_t *json, const struct cairn__zone *zone,
                          struct cairn__schedule *s)
{
  struct cairn_datetime t;
  struct cairn_error err;
  *s = (struct cairn__schedule){.zone = zone};
  s->month = (uint8_t)get_integer(json, "RunMonth", CAIRN__SCHEDULE_MONTH, s);
  s->day = (int8_t)get_integer(json, "RunDay", CAIRN__SCHEDULE_DAY, s);
  s->weekday =
      (int8_t)get_integer(json, "RunDayOfWeek", CAIRN__SCHEDULE_WEEKDAY, s);
  s->local_or_utc = (uint16_t)get_integer(json, "LocalOrUtcTime", 0, s);
  s->run_times = (uint32_t)get_integer(json, "JobRunTimes", 0, s);
  s->runs_done = (uint32_t)get_integer(json, "RunsDone", 0, s);
  const json_t *start = json_object_get(json, "RunStartInterval");
  if (json_is_string(start)) {
    assert_int_equal(cairn_datetime_parse(json_string_value(start),
                                          json_string_length(start), &t, &err),
                     0);
    s->start_us = t.microseconds;
    s->set |= CAIRN__SCHEDULE_START;
  }
  const json_t *until = json_object_get(json, "UntilTime");
  if (json_is_string(until)) {
    s->until_us = instant(until);
    s->set |= CAIRN__SCHEDULE_UNTIL;
  }
}

static void compare_runs(const json_t *c, const char *id,
                         struct cairn__schedule s, const json_t *expected,
                         int is_plain)
{
  size_t count = (size_t)json_integer_value(json_object_get(c, "count"));
  int64_t t = instant(json_object_get(c, "after_utc"));
  size_t i = 0;
  struct cairn__due due;
  for (; i < count && cairn__schedule_next(&s, t, &due); i++) {
    assert_true(due.unix_us > t);
    t = due.unix_us;
    s.runs_done++;
    if (i >= json_array_size(expected))
      fail_msg("%s: one run too many, %" PRId64, id, t);
    if (instant(json_array_get(expected, i)) != t)
      fail_msg("%s: run %zu is %" PRId64 ", not %s", id, i + 1, t,
               json_string_value(json_array_get(expected, i)));
    if (!is_plain)
      continue;
    const json_t *nominal =
        json_array_get(json_object_get(c, "nominal_local"), i);
    assert_int_equal(due.nominal_count, json_array_size(nominal));
    for (size_t k = 0; k < due.nominal_count; k++)
      assert_int_equal(due.nominal_us[k],
                       face(json_string_value(json_array_get(nominal, k))));
    assert_string_equal(
        cairn__due_kind(due.kind),
        json_string_value(json_array_get(json_object_get(c, "kind"), i)));
    assert_int_equal(t + due.offset_us,
                     face(json_string_value(json_array_get(
                         json_object_get(c, "expect_local"), i))));
  }
  if (i != json_array_size(expected))
    fail_msg("%s: %zu runs, not %zu", id, i, json_array_size(expected));
}

static void all_cases_give_their_next_runs(void **state)
{
  (void)state;
  if (!has_database())
    skip_because("no zone database");
  json_t *root = load_cases(), *c;
  size_t i, done = 0, refused = 0;
  json_array_foreach(json_object_get(root, "cases"), i, c)
  {
    const char *id = json_string_value(json_object_get(c, "id"));
    struct cairn__zone *zone =
        load(json_string_value(json_object_get(c, "zone")));
    struct cairn__schedule s;
    struct cairn_error err;
    char warning[256];
    read_schedule(json_object_get(c, "schedule"), zone, &s);
    const char *tag =
        json_string_value(json_array_get(json_object_get(c, "tags"), 0));
    int is_never = strcmp(tag, "never") == 0;
    int rc = cairn__schedule_check(&s, 0, warning, sizeof warning, &err);
    if (rc != (is_never ? -1 : 0))
      fail_msg("%s: check gives %d: %s", id, rc, err.message);
    refused += is_never;
    compare_runs(c, id, s, json_object_get(c, "expect_utc"), 1);
    const json_t *others = json_object_get(c, "alternatives"), *other;
    if ((other = json_object_get(others, "gap_skip")) != NULL) {
      s.gap = CAIRN__GAP_SKIP;
      compare_runs(c, id, s, other, 0);
      s.gap = CAIRN__GAP_FIRST;
    }
    if ((other = json_object_get(others, "gap_shift")) != NULL) {
      s.gap = CAIRN__GAP_SHIFT;
      compare_runs(c, id, s, other, 0);
      s.gap = CAIRN__GAP_FIRST;
    }
    if ((other = json_object_get(others, "overlap_twice")) != NULL) {
      s.overlap = CAIRN__OVERLAP_BOTH;
      compare_runs(c, id, s, other, 0);
    }
    cairn__zone_free(zone);
    done++;
  }
  json_decref(root);
  assert_int_equal(done, 91);
  assert_int_equal(refused, 2);
}

static void all_cases_catch_up(void **state)
{
  (void)state;
  if (!has_database())
    skip_because("no zone database");
  static const char *const modes[] = {"latest", "none", "all"};
  json_t *root = load_cases(), *c;
  size_t i, done = 0;
  json_array_foreach(json_object_get(root, "catch_up_cases"), i, c)
  {
    struct cairn__zone *zone =
        load(json_string_value(json_object_get(c, "zone")));
    struct cairn__schedule s;
    read_schedule(json_object_get(c, "schedule"), zone, &s);
    int64_t from = instant(json_object_get(c, "down_from_utc"));
    int64_t until = instant(json_object_get(c, "down_until_utc"));
    const json_t *missed = json_object_get(c, "missed_utc");
    struct cairn__due runs[8], due;
    struct cairn__missed m;
    for (int k = 0; k < 3; k++) {
      int64_t mode;
      assert_int_equal(
          cairn_value_number(cairn_property_find("catch_up"), modes[k], &mode),
          0);
      cairn__schedule_catch_up(&s, (int)mode, from, until, runs, 8, NULL, NULL,
                               &m);
      assert_int_equal(m.count, json_array_size(missed));
      size_t wanted = (size_t)json_integer_value(
          json_object_get(json_object_get(c, "catch_up"), modes[k]));
      assert_int_equal(m.to_run, wanted);
      for (size_t n = 0; n < wanted; n++)
        assert_int_equal(runs[n].unix_us,
                         instant(json_array_get(missed, m.count - wanted + n)));
    }
    assert_int_equal(cairn__schedule_next(&s, until, &due), 1);
    assert_int_equal(due.unix_us,
                     instant(json_object_get(c, "next_regular_utc")));
    cairn__zone_free(zone);
    done++;
  }
  json_decref(root);
  assert_int_equal(done, 6);
}

static void the_cases_are_those_of_the_specification(void **state)
{
  (void)state;
  size_t size = 0, shared_size = 0;
  char *shared = read_file(source_path("../shared/spec/schedule-cases.json"),
                           &shared_size);
  if (shared == NULL)
    skip_because("the specification is not beside the sources");
  char *ours = read_file(source_path("tests/data/schedule-cases.json"), &size);
  assert_non_null(ours);
  assert_int_equal(size, shared_size);
  assert_memory_equal(ours, shared, size);
  free(ours);
  free(shared);
}

/* ---- catching up
 * ------------------------------------------------------------- */

struct skipped {
  size_t count;
  int64_t last_us;
  const char *reason;
};

static void note_skipped(void *context, const struct cairn__due *due,
                         const char *reason)
{
  struct skipped *s = context;
  assert_true(s->count == 0 || due->unix_us > s->last_us);
  s->count++;
  s->last_us = due->unix_us;
  s->reason = reason;
}

static void what_is_not_caught_up_is_told_in_order(void **state)
{
  (void)state;
  struct cairn__schedule s = {.set = CAIRN__SCHEDULE_START, .start_us = HOUR};
  struct cairn__due runs[3];
  struct cairn__missed m;
  struct skipped k = {0};
  cairn__schedule_catch_up(&s, CAIRN__CATCH_UP_ALL, 0, 10 * DAY, runs, 3,
                           note_skipped, &k, &m);
  assert_int_equal(m.count, 10);
  assert_int_equal(m.to_run, 3);
  assert_int_equal(runs[0].unix_us, 7 * DAY + HOUR);
  assert_int_equal(runs[2].unix_us, 9 * DAY + HOUR);
  assert_int_equal(k.count, 7);
  assert_int_equal(k.last_us, 6 * DAY + HOUR);
  assert_non_null(strstr(k.reason, "more than"));

  k = (struct skipped){0};
  cairn__schedule_catch_up(&s, CAIRN__CATCH_UP_NONE, 0, 10 * DAY, runs, 3,
                           note_skipped, &k, &m);
  assert_int_equal(m.to_run, 0);
  assert_int_equal(k.count, 10);

  s.run_times = 5;
  s.runs_done = 3;
  cairn__schedule_catch_up(&s, CAIRN__CATCH_UP_ALL, 0, 10 * DAY, runs, 3, NULL,
                           NULL, &m);
  assert_int_equal(m.count, 10);
  assert_int_equal(m.to_run, 2);
  assert_int_equal(runs[1].unix_us, 9 * DAY + HOUR);
}

/* ---- checking
 * ------------------------------------------------------------------ */

static void refuses(struct cairn__schedule s, int id, const char *part)
{
  struct cairn_error err;
  char warning[256];
  assert_int_equal(cairn__schedule_check(&s, 0, warning, sizeof warning, &err),
                   -1);
  assert_int_equal(err.id, id);
  if (strstr(err.message, part) == NULL)
    fail_msg("\"%s\" is not in \"%s\"", part, err.message);
}

static void impossible_schedules_are_refused(void **state)
{
  (void)state;
  enum { M = CAIRN__SCHEDULE_MONTH, D = CAIRN__SCHEDULE_DAY };
  refuses((struct cairn__schedule){0}, CAIRN_E_INVALID_ARGUMENT, "needs one");
  refuses((struct cairn__schedule){.set = M | D, .month = 1, .day = 30},
          CAIRN_E_INVALID_ARGUMENT,
          "RunDay 30 with RunMonth February never comes");
  refuses((struct cairn__schedule){.set = M | D, .month = 3, .day = -31},
          CAIRN_E_INVALID_ARGUMENT, "at most 30 days");
  refuses((struct cairn__schedule){.set = M, .month = 12}, CAIRN_E_OUT_OF_RANGE,
          "RunMonth is 12");
  refuses((struct cairn__schedule){.set = D, .day = 32}, CAIRN_E_OUT_OF_RANGE,
          "RunDay is 32");
  refuses(
      (struct cairn__schedule){.set = CAIRN__SCHEDULE_WEEKDAY, .weekday = -8},
      CAIRN_E_OUT_OF_RANGE, "RunDayOfWeek is -8");
  refuses((struct cairn__schedule){.set = D, .day = 1, .local_or_utc = 3},
          CAIRN_E_OUT_OF_RANGE, "LocalOrUtcTime is 3");
  refuses(
      (struct cairn__schedule){.set = CAIRN__SCHEDULE_START, .start_us = -1},
      CAIRN_E_OUT_OF_RANGE, "RunStartInterval");
}

static void a_time_that_is_always_in_a_gap_is_refused(void **state)
{
  (void)state;
  if (!has_database())
    skip_because("no zone database");
  struct cairn__zone *zone = load("Europe/Berlin");
  struct cairn__schedule s = {
      .zone = zone,
      .set = CAIRN__SCHEDULE_MONTH | CAIRN__SCHEDULE_DAY |
             CAIRN__SCHEDULE_WEEKDAY | CAIRN__SCHEDULE_START,
      .month = 2,
      .day = -1,
      .weekday = -1,
      .start_us = 2 * HOUR,
      .gap = CAIRN__GAP_SKIP,
  };
  struct cairn_error err;
  int64_t now = face("2025-01-01T00:00:00");
  assert_int_equal(cairn__schedule_check(&s, now, NULL, 0, &err), -1);
  assert_non_null(strstr(err.message, "gaps of the local clock"));
  assert_non_null(strstr(err.message, "Europe/Berlin"));
  s.gap = CAIRN__GAP_FIRST;
  assert_int_equal(cairn__schedule_check(&s, now, NULL, 0, &err), 0);
  cairn__zone_free(zone);
}

static void a_weekday_on_the_wrong_side_is_warned_of(void **state)
{
  (void)state;
  struct cairn__schedule s = {.set =
                                  CAIRN__SCHEDULE_DAY | CAIRN__SCHEDULE_WEEKDAY,
                              .day = -1,
                              .weekday = 6};
  struct cairn_error err;
  char warning[256];
  assert_int_equal(cairn__schedule_check(&s, 0, warning, sizeof warning, &err),
                   0);
  assert_non_null(strstr(warning, "-Friday"));
  s.day = -7; /* stays in the month */
  assert_int_equal(cairn__schedule_check(&s, 0, warning, sizeof warning, &err),
                   0);
  assert_string_equal(warning, "");
}

static void the_search_ends(void **state)
{
  (void)state;
  struct cairn__schedule s = {.set =
                                  CAIRN__SCHEDULE_MONTH | CAIRN__SCHEDULE_DAY,
                              .month = 1,
                              .day = 30};
  struct cairn__due due;
  for (int gap = 0; gap < 3; gap++) {
    s.gap = (uint8_t)gap;
    assert_int_equal(cairn__schedule_next(&s, 0, &due), 0);
  }
  s = (struct cairn__schedule){.set = CAIRN__SCHEDULE_START};
  assert_int_equal(cairn__schedule_next(&s, INT64_MIN, &due), 1);
  assert_int_equal(due.unix_us, face("0000-01-02T00:00:00"));
  assert_int_equal(cairn__schedule_next(&s, INT64_MAX, &due), 0);
  int64_t last = face("9999-12-31T00:00:00");
  assert_int_equal(cairn__schedule_next(&s, last - 1, &due), 1);
  assert_int_equal(cairn__schedule_next(&s, last, &due), 0);
  s.start_us = CAIRN__INTERVAL_MAX;
  assert_int_equal(cairn__schedule_next(&s, 0, &due), 1);
  assert_int_equal(due.unix_us, DAY - 1);
}

/* ---- zones
 * ----------------------------------------------------------------------- */

static void only_names_of_the_database_are_zones(void **state)
{
  (void)state;
  static const char *const names[] = {
      "../../etc/passwd", "/etc/localtime", "Europe/../UTC", "Europe",
      "Europe//Berlin",   "Europe/Berlin/", "./UTC",         "a b",
      "Mars/Olympus",     "tzdata.zi",      "zone.tab",      "\n",
  };
  struct cairn__zone *z;
  struct cairn_error err;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (cairn__zone_load(names[i], &z, &err) == 0)
      fail_msg("\"%s\" was loaded", names[i]);
    assert_null(z);
    assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  }
  assert_int_equal(cairn__zone_load("Mars/Olympus", &z, &err), -1);
  assert_non_null(strstr(err.message, "\"Mars/Olympus\" is no time zone"));
  if (access("/usr/share/zoneinfo/tzdata.zi", R_OK) != 0)
    skip_because("the zone database has no list of names");
  assert_int_equal(cairn__zone_load("Europe/Berln", &z, &err), -1);
  assert_non_null(strstr(err.message, "did you mean \"Europe/Berlin\"?"));
}

static void utc_needs_no_database(void **state)
{
  (void)state;
  setenv("TZDIR", "/nowhere", 1);
  struct cairn__zone *z = load("UTC"), *none;
  struct cairn_error err;
  assert_int_equal(cairn__zone_load("Europe/Berlin", &none, &err), -1);
  unsetenv("TZDIR");
  assert_non_null(strstr(err.message, "/nowhere"));
  assert_int_equal(cairn__zone_offset_us(z, face("2025-07-01T00:00:00")), 0);
  assert_string_equal(cairn__zone_name(z), "UTC");
  cairn__zone_free(z);
}

static void the_zone_of_the_host_follows_TZ(void **state)
{
  (void)state;
  int64_t summer = face("2025-07-01T00:00:00");
  setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
  struct cairn__zone *z = load(NULL);
  assert_int_equal(cairn__zone_offset_us(z, summer), 2 * HOUR);
  assert_int_equal(cairn__zone_offset_us(z, face("2025-03-30T00:59:59")), HOUR);
  assert_int_equal(cairn__zone_offset_us(z, face("2025-03-30T01:00:00")),
                   2 * HOUR);
  assert_int_equal(cairn__zone_offset_us(z, face("9999-10-31T01:00:00")), HOUR);
  cairn__zone_free(z);
  setenv("TZ", "<-0330>3:30", 1);
  z = load("");
  assert_int_equal(cairn__zone_offset_us(z, summer), -7 * HOUR / 2);
  cairn__zone_free(z);
  setenv("TZ", "", 1);
  z = load(NULL);
  assert_string_equal(cairn__zone_name(z), "UTC");
  cairn__zone_free(z);
  if (has_database()) {
    setenv("TZ", ":Asia/Tokyo", 1);
    z = load(NULL);
    assert_string_equal(cairn__zone_name(z), "Asia/Tokyo");
    assert_int_equal(cairn__zone_offset_us(z, summer), 9 * HOUR);
    cairn__zone_free(z);
    setenv("TZ", "/usr/share/zoneinfo/Asia/Tokyo", 1);
    z = load(NULL);
    assert_int_equal(cairn__zone_offset_us(z, summer), 9 * HOUR);
    cairn__zone_free(z);
  }
  unsetenv("TZ");
  z = load(NULL);
  cairn__zone_free(z);
}

static void summer_time_all_year_has_no_changes(void **state)
{
  (void)state;
  setenv("TZ", "XXX3EDT4,0/0,J365/23", 1);
  struct cairn__zone *z = load(NULL);
  unsetenv("TZ");
  for (int64_t t = face("2024-12-25T00:00:00"); t < face("2025-01-10T00:00:00");
       t += HOUR)
    assert_int_equal(cairn__zone_offset_us(z, t), -4 * HOUR);
  cairn__zone_free(z);
}

/* Changes at Unix second 0 (to +1 h) and 86400 (back), then a rule. */
static const unsigned char small[] = {
    /* version 2; the block of version 1: one kind of local time */
    'T', 'Z', 'i', 'f', '2', 0,   0,   0,   0,   0,    0,    0,    0,    0,
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,    0,    0,    0,    0,
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,    0,    1,    0,    0,
    0,   1,   0,   0,   0,   0,   0,   0,   0,   'T',  'Z',  'i',  'f',  '2',
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,    0,    0,    0,    0,
    0,   0,   0,   0,   2,   0,   0,   0,   2,   0,    0,    0,    0,    0,
    0,   0,   2,   0,   0,   0,   2,   0,   0,   0,    8,    0,    0,    0,
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,    1,    0x51, 0x80, 1,
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0x0e, 0x10, 1,    4,    'S',
    'T', 'D', 0,   'D', 'S', 'T', 0,   0,   0,   0,    0,    '\n', 'S',  'T',
    'D', '0', 'D', 'S', 'T', ',', 'J', '6', '0', '/',  '0',  ',',  'M',  '1',
    '0', '.', '5', '.', '0', '\n'};

/* A copy of exactly that size, so that reading beyond it is seen. */
static int parse(const unsigned char *data, size_t size, struct cairn__zone **z,
                 struct cairn_error *err)
{
  unsigned char *copy = malloc(size > 0 ? size : 1);
  assert_non_null(copy);
  memcpy(copy, data, size);
  int rc = cairn__zone_parse(copy, size, "test", z, err);
  free(copy);
  return rc;
}

static void a_small_file_is_read(void **state)
{
  (void)state;
  struct cairn__zone *z;
  struct cairn_error err;
  if (parse(small, sizeof small, &z, &err) != 0)
    fail_msg("%s", err.message);
  assert_int_equal(cairn__zone_offset_us(z, -1), 0);
  assert_int_equal(cairn__zone_offset_us(z, 0), HOUR);
  assert_int_equal(cairn__zone_offset_us(z, DAY - 1), HOUR);
  assert_int_equal(cairn__zone_offset_us(z, DAY), 0);
  /* J60 is the first of March in all years */
  assert_int_equal(cairn__zone_offset_us(z, face("2024-02-29T23:59:59")), 0);
  assert_int_equal(cairn__zone_offset_us(z, face("2024-03-01T00:00:00")), HOUR);
  assert_int_equal(cairn__zone_offset_us(z, face("2999-03-01T00:00:00")), HOUR);
  assert_int_equal(cairn__zone_reached(z, DAY), DAY + HOUR - 1);
  assert_int_equal(cairn__zone_reached(z, DAY + 2 * HOUR), DAY + 2 * HOUR);
  struct cairn__reading r;
  cairn__zone_find(z, HOUR / 2, &r);
  assert_true(r.is_gap && !r.is_overlap);
  assert_int_equal(r.first_us, 0);
  assert_int_equal(r.shift_us, HOUR / 2);
  cairn__zone_find(z, DAY + HOUR / 2, &r);
  assert_true(r.is_overlap && !r.is_gap);
  assert_int_equal(r.first_us, DAY - HOUR / 2);
  assert_int_equal(r.last_us, DAY + HOUR / 2);
  cairn__zone_free(z);
}

static void probe(const struct cairn__zone *z)
{
  struct cairn__reading r;
  int64_t previous = INT64_MIN;
  for (int64_t t = -face("2100-01-01T00:00:00");
       t < face("2500-01-01T00:00:00"); t += 211 * DAY + 12345678) {
    cairn__zone_find(z, t, &r);
    assert_true(r.first_us >= previous && r.last_us >= r.first_us);
    previous = r.first_us;
    assert_true(cairn__zone_reached(z, t) >= t + cairn__zone_offset_us(z, t));
    assert_true(cairn__zone_reached(z, r.first_us) >= t);
  }
}

/* Cut off at every byte; one bit of each byte changed, or all of them. */
static void damage(const unsigned char *data, size_t size, size_t step)
{
  struct cairn__zone *z;
  struct cairn_error err;
  for (size_t n = 0; n < size; n++) {
    if (parse(data, n, &z, &err) == 0)
      fail_msg("cut off after %zu of %zu bytes and accepted", n, size);
    assert_null(z);
    assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  }
  unsigned char *copy = malloc(size);
  assert_non_null(copy);
  for (size_t bit = 0; bit < 8 * size; bit += step) {
    memcpy(copy, data, size);
    copy[bit / 8] ^= (unsigned char)(1 << bit % 8);
    if (parse(copy, size, &z, &err) == 0)
      probe(z);
    cairn__zone_free(z);
  }
  free(copy);
}

static void damaged_files_are_refused_or_harmless(void **state)
{
  (void)state;
  static const char *const names[] = {"Europe/Berlin", "America/Sao_Paulo"};
  damage(small, sizeof small, 1);
  for (size_t i = 0; has_database() && i < 2; i++) {
    char path[128];
    size_t size = 0;
    snprintf(path, sizeof path, "/usr/share/zoneinfo/%s", names[i]);
    char *data = read_file(path, &size);
    assert_non_null(data);
    damage((unsigned char *)data, size, 9);
    free(data);
  }
}

static long countdown;

static void *failing_realloc(void *p, size_t size)
{
  return countdown-- <= 0 ? NULL : realloc(p, size);
}

static void a_lack_of_memory_is_told(void **state)
{
  (void)state;
  if (!has_database())
    skip_because("no zone database");
  struct cairn__zone *z;
  struct cairn_error err;
  int rc = -1;
  long n = 0;
  cairn_set_allocator(failing_realloc, free);
  for (; rc != 0 && n < 100; n++) {
    countdown = n;
    rc = cairn__zone_load("Europe/Berlin", &z, &err);
    if (rc != 0)
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  }
  cairn__zone_free(z);
  cairn_set_allocator(NULL, NULL);
  assert_int_equal(rc, 0);
  assert_true(n > 2);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(all_cases_give_their_next_runs),
      cmocka_unit_test(all_cases_catch_up),
      cmocka_unit_test(the_cases_are_those_of_the_specification),
      cmocka_unit_test(what_is_not_caught_up_is_told_in_order),
      cmocka_unit_test(impossible_schedules_are_refused),
      cmocka_unit_test(a_time_that_is_always_in_a_gap_is_refused),
      cmocka_unit_test(a_weekday_on_the_wrong_side_is_warned_of),
      cmocka_unit_test(the_search_ends),
      cmocka_unit_test(only_names_of_the_database_are_zones),
      cmocka_unit_test(utc_needs_no_database),
      cmocka_unit_test(the_zone_of_the_host_follows_TZ),
      cmocka_unit_test(summer_time_all_year_has_no_changes),
      cmocka_unit_test(a_small_file_is_read),
      cmocka_unit_test(damaged_files_are_refused_or_harmless),
      cmocka_unit_test(a_lack_of_memory_is_told),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
