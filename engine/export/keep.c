/* keep.c: see keep.h. */
#include "keep.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "datetime.h"
#include "error.h"
#include "job.h"
#include "memory.h"
#include "manifest.h"
#include "spec.h"

#define LABEL_MAX 16 /* "2025-W01" and the like */

/* ---- the specification --------------------------------------------------- */

static const struct cairn__spec_key keys[] = {
    {"last", CAIRN__SPEC_INTEGER, 0, NULL, NULL},
    {"daily", CAIRN__SPEC_INTEGER, 0, NULL, NULL},
    {"weekly", CAIRN__SPEC_INTEGER, 0, NULL, NULL},
    {"monthly", CAIRN__SPEC_INTEGER, 0, NULL, NULL},
    {"yearly", CAIRN__SPEC_INTEGER, 0, NULL, NULL},
    {"within", CAIRN__SPEC_DURATION, 0, NULL, NULL},
    {"ids", CAIRN__SPEC_STRINGS, 0, NULL, NULL}};

int cairn__keep_check(json_t *keep, struct cairn_error *err)
{
  const char *name;
  json_t *v;
  double seconds;

  if (cairn__spec_check(keep, "prune: keep", keys, sizeof keys / sizeof *keys,
                        err) != 0)
    return -1;
  json_object_foreach(keep, name, v)
  {
    if (json_is_array(v) ? json_array_size(v) > 0
        : strcmp(name, "within") == 0
            ? cairn__spec_seconds(v, &seconds) == 0 && seconds > 0
            : json_integer_value(v) > 0)
      return 0;
  }
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "prune: \"keep\" has no rule that keeps anything; give "
                     "at least one of last, daily, weekly, monthly, yearly, "
                     "within and ids");
}

/* ---- the rules ----------------------------------------------------------- */

/* What two points of one day, week, ... have in common. */
static void label_of(char rule, const char *time, char out[LABEL_MAX])
{
  struct tm t = {0};

  if (rule == 'w') {
    if (sscanf(time, "%4d%2d%2d", &t.tm_year, &t.tm_mon, &t.tm_mday) == 3) {
      t.tm_year -= 1900;
      t.tm_mon -= 1;
      (void)timegm(&t); /* finds the day of the week and of the year */
    }
    if (strftime(out, LABEL_MAX, "%G-W%V", &t) == 0)
      out[0] = '\0';
    return;
  }
  snprintf(out, LABEL_MAX, "%.*s", rule == 'd' ? 8 : rule == 'm' ? 6 : 4, time);
}

static int add_reason(struct cairn__keep_point *p, const char *reason,
                      struct cairn_error *err)
{
  return json_array_append_new(p->reasons, json_string(reason)) == 0
             ? 0
             : cairn__fail_memory(err);
}

/* The newest point of each of the last n periods that have one. */
static int keep_periods(const char *rule, json_int_t n,
                        struct cairn__keep_point *points, size_t count,
                        struct cairn_error *err)
{
  json_t *seen = json_object();
  int result = seen ? 0 : cairn__fail_memory(err);

  for (size_t i = 0; i < count && result == 0; i++) {
    char label[LABEL_MAX];

    if ((json_int_t)json_object_size(seen) == n)
      break;
    label_of(rule[0], points[i].time, label);
    if (json_object_get(seen, label))
      continue;
    if (json_object_set_new(seen, label, json_true()) != 0)
      result = cairn__fail_memory(err);
    else
      result = add_reason(&points[i], rule, err);
  }
  json_decref(seen);
  return result;
}

static int keep_one(const json_t *keep, struct cairn__keep_point *points,
                    size_t i, struct cairn_error *err)
{
  struct cairn__keep_point *p = &points[i];
  const json_t *within = json_object_get(keep, "within");
  double seconds = 0;

  if (i == 0 && add_reason(p, "newest", err) != 0)
    return -1;
  if ((json_int_t)i < json_integer_value(json_object_get(keep, "last")) &&
      add_reason(p, "last", err) != 0)
    return -1;
  if (within && cairn__spec_seconds(within, &seconds) == 0 &&
      (double)(points[0].unix_us - p->unix_us) <= seconds * 1e6 &&
      add_reason(p, "within", err) != 0)
    return -1;
  return p->is_named ? add_reason(p, "ids", err) : 0;
}

int cairn__keep_apply(const json_t *keep, struct cairn__keep_point *points,
                      size_t count, struct cairn_error *err)
{
  static const char *const rules[] = {"daily", "weekly", "monthly", "yearly"};

  for (size_t i = 0; i < count; i++) {
    if (keep_one(keep, points, i, err) != 0)
      return -1;
  }
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    if (keep_periods(rules[i],
                     json_integer_value(json_object_get(keep, rules[i])),
                     points, count, err) != 0)
      return -1;
  }
  return 0;
}

/* ---- on points that somebody gives --------------------------------------- */

/* An entry may be the beginning of an id, as in a prune. */
static int is_one_of(const json_t *ids, const char *id)
{
  const json_t *entry;
  size_t i;

  json_array_foreach((json_t *)(uintptr_t)ids, i, entry)
  {
    const char *wanted = json_string_value(entry);
    size_t length = strlen(wanted);
    char canonical[37];

    if (cairn__guid_canonical(wanted, canonical) == 0
            ? strcasecmp(canonical, id) == 0
            : length >= 4 && strncasecmp(wanted, id, length) == 0)
      return 1;
  }
  return 0;
}

/* reasons: where those of this point go, borrowed. */
static int read_point(struct cairn__keep_point *p, const json_t *point,
                      size_t number, const json_t *keep, json_t *reasons,
                      struct cairn_error *err)
{
  const char *time = json_string_value(json_object_get(point, "time"));
  const char *id = json_string_value(json_object_get(point, "id"));
  struct cairn_datetime t;
  struct cairn_error why;

  if (!json_is_object(point) || !time)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "keep: point %zu must be an object with \"time\", a CIM "
                       "datetime",
                       number);
  cairn__error_clear(&why);
  if (cairn_datetime_parse(time, strlen(time), &t, &why) != 0 ||
      t.kind != CAIRN_TIMESTAMP)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "keep: point %zu: time: %s", number,
                       why.message[0] ? why.message : "a timestamp expected");
  *p = (struct cairn__keep_point){
      .time = time,
      .unix_us = t.microseconds,
      .is_named = id && is_one_of(json_object_get(keep, "ids"), id),
      .reasons = reasons};
  return 0;
}

static int keep_given(const json_t *keep, const json_t *points, json_t *out,
                      struct cairn_error *err)
{
  size_t count = json_array_size(points);
  struct cairn__keep_point *list = cairn__calloc(count + 1, sizeof *list);
  int result = list ? 0 : cairn__fail_memory(err);

  /* The rules want the newest first. */
  for (size_t i = 0; i < count && result == 0; i++) {
    json_t *reasons = json_array();

    if (!reasons || json_array_append_new(out, reasons) != 0)
      result = cairn__fail_memory(err);
    else
      result = read_point(&list[count - 1 - i], json_array_get(points, i),
                          i + 1, keep, reasons, err);
  }
  if (result == 0)
    result = cairn__keep_apply(keep, list, count, err);
  cairn__free(list);
  return result;
}

int cairn_keep(const char *json, size_t length, char **out,
               struct cairn_error *err)
{
  json_t *given, *keep, *points, *answer = NULL;
  int result = -1;

  cairn__error_clear(err);
  *out = NULL;
  given = cairn__json_parse("keep", json, length, err);
  if (!given)
    return -1;
  keep = json_object_get(given, "keep");
  points = json_object_get(given, "points");
  if (!json_is_array(points))
    cairn__fail(err, CAIRN_E_WRONG_TYPE, "keep: points must be an array");
  else if (cairn__keep_check(keep, err) == 0) {
    answer = json_array();
    result = answer ? keep_given(keep, points, answer, err)
                    : cairn__fail_memory(err);
  }
  json_decref(given);
  if (result == 0)
    return cairn__json_give(answer, out, err);
  json_decref(answer);
  return -1;
}
