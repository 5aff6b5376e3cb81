/* What tests of an engine do with jobs; everything fails the test. */
#ifndef CAIRN_TESTS_JOBS_H
#define CAIRN_TESTS_JOBS_H

#include <string.h>

#include "cairn.h"

static inline cairn_job submit(cairn_engine *e, const char *json)
{
  struct cairn_error err;
  cairn_job job;

  if (cairn_submit(e, json, strlen(json), &job, &err) != 0)
    fail_msg("submit %s: %s", json, err.message);
  return job;
}

/* A property that is a number and not null. */
static inline int64_t number(cairn_engine *e, cairn_job job, int id)
{
  struct cairn_value v;
  struct cairn_error err;

  if (cairn_job_get(e, job, id, &v, &err) != 0)
    fail_msg("%s", err.message);
  assert_int_equal(v.kind, CAIRN_VALUE_INTEGER);
  return v.as.integer;
}

static inline int state_of(cairn_engine *e, cairn_job job)
{
  return (int)number(e, job, CAIRN_PROPERTY_JobState);
}

#endif
