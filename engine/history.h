/* What has become of runs: one record for each attempt at a run that has ended,
 * and one for each row of due times that have no run. Records outlive their
 * jobs; there are at most so many of them, and the oldest go.
 *
 * A record for which memory is missing is left out: a run's end, which has its
 * event, is never held up by its record. Owner thread. */
#ifndef CAIRN_HISTORY_H
#define CAIRN_HISTORY_H

#include <stddef.h>
#include <stdint.h>

struct cairn_engine;
struct cairn_event;
struct cairn__job;
struct cairn__record;

#define CAIRN__HISTORY_LIMIT 10000

struct cairn__history {
  struct cairn__record *first, *last;
  size_t count, limit; /* limit >= 1 */
};

/* Also pushes a RunEnded event. The run of the job has ended as `state` says (a
 * JobState in which a job that does not go on would be now). Before its error,
 * its progress or its times are changed by anything else. */
void cairn__history_run(struct cairn_engine *e, const struct cairn__job *j,
                        int state);
/* What a Skipped event tells. */
void cairn__history_skipped(struct cairn_engine *e, const struct cairn__job *j,
                            const struct cairn_event *event);
void cairn__history_free(struct cairn_engine *e);

#endif
