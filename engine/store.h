/* The store of an engine: what outlives its process.
 *
 * A TURN is what one public call or step has changed. At its end
 * (cairn__engine_settle) the owner thread appends the rows of the jobs it has
 * touched, its records of history and its events to a buffer; the writer thread
 * takes whole buffers, which may hold many turns, and commits each in one
 * transaction. So callers share commits, and the owner never waits for a disk.
 * Turns are numbered; what a turn has changed is durable when its number is.
 *
 * VISIBLE, hence handed out as an event, is what is durable. In the process
 * everything is as memory has it, at once.
 *
 * DEGRADED. When a commit fails, the writer tries it again every second, and
 * until it succeeds nothing starts, nothing is published (run.h: the gate), no
 * job is accepted; nothing that was visible is undone.
 *
 * Memory that is missing for a turn's rows delays the turn: it is tried again
 * with the next one.
 *
 * All functions are for the owner thread. An engine without a store
 * (":memory:") has store == NULL, and they do nothing then. */
#ifndef CAIRN_STORE_H
#define CAIRN_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"

struct cairn_engine;
struct cairn__job;
struct cairn__store;

/* What of a job has changed. */
enum cairn__touched {
  CAIRN__TOUCHED_STATE = 1,
  CAIRN__TOUCHED_TEXT = 2, /* and state */
  CAIRN__TOUCHED_JOB = 4   /* and state: it is new, or defined anew */
};

/* After so long a commit that failed is tried again; tests make it short. */
extern _Atomic int cairn__store_retry_ms;

/* Opens the file, makes its jobs and its history those of the engine, and
 * starts the writer. A run that was on when the last engine ended is
 * interrupted (job.h). Blocks on I/O. */
int cairn__store_open(struct cairn_engine *e, const char *path,
                      struct cairn_error *err);
/* Commits what is left, once, and closes the file. Blocks on I/O. */
void cairn__store_close(struct cairn_engine *e);
/* The job is to be written at the end of the turn. Never fails; nothing for
 * volatile jobs. */
void cairn__store_touch(struct cairn_engine *e, struct cairn__job *j, int what);
/* Before a job is freed. */
void cairn__store_forget(struct cairn_engine *e, struct cairn__job *j);
/* The end of a turn: see above. */
void cairn__store_turn(struct cairn_engine *e);
/* What the writer has done since: which events are visible, whether it is
 * degraded. */
void cairn__store_poll(struct cairn_engine *e);
/* Something is not durable yet. */
int cairn__store_is_pending(const struct cairn_engine *e);
/* The error of the last commit, or NULL. */
const struct cairn_error *cairn__store_error(const struct cairn_engine *e);
/* 0, or -1 and STORE_FAILED: a degraded store takes nothing new. */
int cairn__store_accepts(const struct cairn_engine *e, struct cairn_error *err);

#endif
