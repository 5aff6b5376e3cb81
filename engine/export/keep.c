/* keep.c: see keep.h. */
#include "keep.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "error.h"
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
