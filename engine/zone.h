/* Time zones: what the clocks of a place show at an instant, and when they
 * show it. Read from the host's zone database (TZif, RFC 9636), never through
 * the C library's one zone per process.
 *
 * Instants and readings are microseconds: Unix time in UTC, and a clock's face
 * as if it were UTC. A reading may come twice or never. A zone never changes
 * after it was loaded: all functions but cairn__zone_free may be called on it
 * in any thread at the same time. */
#ifndef CAIRN_ZONE_H
#define CAIRN_ZONE_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"

struct cairn__zone;

/* Loads a zone by its IANA name from $TZDIR or /usr/share/zoneinfo; "UTC"
 * needs no file. NULL or "" is the host's zone: TZ where it is set (a name, a
 * rule or a path), else /etc/localtime, else UTC. The zone is the caller's
 * (cairn__zone_free). Returns 0, or -1: INVALID_ARGUMENT for what is no zone's
 * name (the message has the name most like it) and for a damaged file,
 * NOT_SUPPORTED for one that counts leap seconds, NO_MEMORY, IO_ERROR. Reads
 * the environment and files: not while another thread calls setenv. */
int cairn__zone_load(const char *name, struct cairn__zone **out,
                     struct cairn_error *err);
/* The same from the bytes of a TZif file of any version. `name` is copied. */
int cairn__zone_parse(const void *data, size_t size, const char *name,
                      struct cairn__zone **out, struct cairn_error *err);
void cairn__zone_free(struct cairn__zone *z); /* NULL is ignored */

/* UTC; not to be freed. */
const struct cairn__zone *cairn__zone_utc(void);
/* Borrowed, for as long as the zone is there. */
const char *cairn__zone_name(const struct cairn__zone *z);

/* Instants and readings may be from -2^62 to 2^62 (years -144000 to 148000).
 */

/* What is to be added to UTC at that instant, in microseconds. */
int64_t cairn__zone_offset_us(const struct cairn__zone *z, int64_t unix_us);
/* The latest reading that the clock has shown up to that instant, that one
 * included: more than its reading now while an hour is repeated. */
int64_t cairn__zone_reached(const struct cairn__zone *z, int64_t unix_us);

/* When a reading is shown. */
struct cairn__reading {
  int64_t first_us;   /* the first instant at which it is shown or, in a gap,
                       * at which a later one is shown for the first time */
  int64_t last_us;    /* the last instant at which it is shown */
  int64_t shift_us;   /* in a gap: shown by a clock that was not put forward;
                       * else first_us */
  uint8_t is_gap;     /* never shown */
  uint8_t is_overlap; /* shown more than once */
};

/* first_us never falls as `local_us` rises. */
void cairn__zone_find(const struct cairn__zone *z, int64_t local_us,
                      struct cairn__reading *out);

#endif
