/* What a run has made before its process ended. The store knows that the run
 * was on, not that it had published its point: the point says so itself, by the
 * InstanceID and the run in its manifest. Only a run that is begun again (epoch
 * above 1) looks. */
#ifndef CAIRN_EXPORT_PUBLISHED_H
#define CAIRN_EXPORT_PUBLISHED_H

#include <jansson.h>

#include "cairn.h"
#include "run.h"

/* Looks among the points of an export directory, which may not exist. 1: the
 * run has its point, the run's report tells of it as an export's does; 0: it
 * has none; -1: err. */
int cairn__published_point(struct cairn__run *run, const char *directory,
                           struct cairn_error *err);
/* The marker of this run among those of the directory's index; borrowed, or
 * NULL. */
const json_t *cairn__published_marker(const struct cairn__run *run,
                                      const json_t *index);

#endif
