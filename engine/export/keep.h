/* Which points of a collection are kept: the rules of "prune".
 *
 * A point is kept when any rule keeps it. Points are looked at from the newest
 * (highest sequence) down; days, weeks (ISO 8601), months and years are those
 * of the point's own `time`, in the zone that it was recorded in. "within"
 * counts back from the newest point's time, not from now: so points do not
 * vanish because exports have stopped. The newest is always kept. */
#ifndef CAIRN_EXPORT_KEEP_H
#define CAIRN_EXPORT_KEEP_H

#include <stdint.h>

#include <jansson.h>

#include "cairn.h"

/* The member "keep" of a specification: completed and checked. */
int cairn__keep_check(json_t *keep, struct cairn_error *err);

struct cairn__keep_point {
  const char *time; /* CIM datetime */
  int64_t unix_us;
  int is_named;    /* one of "ids" */
  json_t *reasons; /* array of strings, appended to */
};
/* points: of one collection, newest first. Appends the reasons to keep each;
 * those that get none may go. */
int cairn__keep_apply(const json_t *keep, struct cairn__keep_point *points,
                      size_t count, struct cairn_error *err);

#endif
