/* Jobs as rows of the store (database.h) and back. What counts from a moment on
 * the monotonic clock is stored as the same moment on the wall clock: the time
 * between two lives of an engine has passed. */
#ifndef CAIRN_RECORD_H
#define CAIRN_RECORD_H

#include <stdint.h>

#include "cairn.h"
#include "database.h"

struct cairn_engine;
struct cairn__job;

/* Appends the rows of what was touched (enum cairn__touched); 0, or -1 when out
 * of memory. */
int cairn__record_put(struct cairn_engine *e, const struct cairn__job *j,
                      struct cairn__rows *rows);
/* A job of the table "job", known to the engine, in the state New. What it does
 * is not checked again: if this engine has no such kind, its runs will say so.
 * NULL: err. */
struct cairn__job *cairn__record_job(struct cairn_engine *e,
                                     const int64_t *integers,
                                     const struct cairn__text *texts,
                                     struct cairn_error *err);
/* The rest of it. STORE_FAILED: the row cannot be a job's. */
int cairn__record_state(struct cairn_engine *e, struct cairn__job *j,
                        const int64_t *integers,
                        const struct cairn__text *texts,
                        struct cairn_error *err);
int cairn__record_text(struct cairn__job *j, const int64_t *integers,
                       const struct cairn__text *texts,
                       struct cairn_error *err);

#endif
