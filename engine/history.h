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

#include "database.h"

struct cairn_engine;
struct cairn_error;
struct cairn_event;
struct cairn__job;
struct cairn__record;

#define CAIRN__HISTORY_LIMIT 10000

struct cairn__history {
  struct cairn__record **ring; /* ascending ids, the first at `begin` */
  size_t begin, count;
  size_t capacity;          /* of the ring: 0 or a power of two */
  size_t limit;             /* of count, >= 1 */
  uint64_t last_id;         /* of records, from 1; never used again */
  uint64_t unwritten;       /* the first one that the store has not; 0: none */
  uint64_t dropped;         /* ids up to this one are gone */
  uint64_t dropped_written; /* and the store knows of these */
};

/* Also pushes a RunEnded event. The run of the job has ended as `state` says (a
 * JobState in which a job that does not go on would be now). Before its error,
 * its progress or its times are changed by anything else. */
void cairn__history_run(struct cairn_engine *e, struct cairn__job *j,
                        int state);
/* What a Skipped event tells. */
void cairn__history_skipped(struct cairn_engine *e, const struct cairn__job *j,
                            const struct cairn_event *event);
/* For the store: whether it lacks anything; the rows it lacks (0, or -1 when
 * out of memory); that it has them now; and a row of an earlier life. */
int cairn__history_is_changed(const struct cairn_engine *e);
int cairn__history_put(const struct cairn_engine *e, struct cairn__rows *rows);
void cairn__history_written(struct cairn_engine *e);
int cairn__history_load(struct cairn_engine *e, const int64_t *integers,
                        const struct cairn__text *texts,
                        struct cairn_error *err);
void cairn__history_free(struct cairn_engine *e);

#endif
