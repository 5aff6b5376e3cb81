/* Checking the specification of a kind against a table of its keys, with
 * messages that name the key, what was given and what would be valid. */
#ifndef CAIRN_EXPORT_SPEC_H
#define CAIRN_EXPORT_SPEC_H

#include <jansson.h>

#include "cairn.h"

enum cairn__spec_type {
  CAIRN__SPEC_STRING = 1,
  CAIRN__SPEC_BOOLEAN,
  CAIRN__SPEC_OBJECT,
  CAIRN__SPEC_ABSOLUTE, /* a string: an absolute path */
  CAIRN__SPEC_INTEGER,  /* from 0 */
  CAIRN__SPEC_STRINGS,  /* an array of strings */
  CAIRN__SPEC_DURATION, /* seconds, or a string such as "30d" or "1d12h" */
  CAIRN__SPEC_STREAM    /* an absolute path, or the number of a descriptor */
};

struct cairn__spec_key {
  const char *name;
  int type; /* enum cairn__spec_type */
  int is_required;
  const char *const *choices; /* of a string, NULL-terminated; or NULL */
  const char *fallback;       /* of a string: put in when absent; or NULL */
};

/* "an object", "a string", ... for messages. */
const char *cairn__json_type_text(const json_t *v);

/* The seconds of a duration: 0, or -1 when it is none. */
int cairn__spec_seconds(const json_t *v, double *seconds);

/* 0 when `spec` is an object with these keys and no others; absent ones have
 * got their defaults then, and members that are null are gone. `kind` heads
 * the messages. UNKNOWN_KEY, WRONG_TYPE, INVALID_ARGUMENT, BAD_PATH. */
int cairn__spec_check(json_t *spec, const char *kind,
                      const struct cairn__spec_key *keys, size_t count,
                      struct cairn_error *err);

#endif
