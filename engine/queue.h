/* Queues of jobs that could start, and the export directories that keep two of
 * them apart.
 *
 * A queue has a heap of its eligible jobs, the most urgent first: that of the
 * lowest priority (null counts as the queue's DefaultJobPriority), of equal
 * ones that which became eligible first, then the order of submission. So that
 * nobody waits for ever, a job that has waited goes before one that is more
 * urgent: for each step of priority it must have come so much earlier (ageing).
 * A job whose export directory is in use moves from its queue's heap to the
 * directory's; when the directory is free the most urgent job of that heap, and
 * it alone, goes back. Invariant: a directory that is free has either nobody
 * waiting, or one of its jobs in a queue's heap (is_offered), so nobody is
 * forgotten and nobody is woken for nothing. */
#ifndef CAIRN_QUEUE_H
#define CAIRN_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"
#include "table.h"

struct cairn__job;

struct cairn__job_heap {
  struct cairn__job **items;
  size_t count, capacity;
};

struct cairn__queue {
  struct cairn__queue *next;
  char *name;
  uint32_t concurrency, running;
  uint32_t default_priority, max_jobs; /* max_jobs 0: no limit */
  int64_t ageing_us;                   /* a step of priority; 0: never */
  int64_t max_time_us;                 /* on the queue; 0: no limit */
  size_t unfinished;                   /* jobs that have not ended */
  size_t jobs; /* those that are awake: room the heap must have */
  struct cairn__job_heap heap;
};

struct cairn__directory {
  struct cairn__link link; /* key: hash of the path */
  char *path;
  size_t references; /* jobs and works */
  size_t jobs;
  int is_busy;
  struct cairn__job *offered; /* the waiter that went back to its queue */
  struct cairn__job_heap waiting;
};

/* Reads {"name": {"concurrency": n, "DefaultJobPriority": n, "MaxJobsOnQueue":
 * n, "MaxTimeOnQueue": seconds, "ageing": seconds}, ...} (NULL: only
 * "default"). */
int cairn__queues_open(struct cairn_engine *e, const char *json,
                       struct cairn_error *err);
void cairn__queues_free(struct cairn_engine *e);
struct cairn__queue *cairn__queue_find(struct cairn_engine *e,
                                       const char *name);
/* One more, with the defaults: jobs of a store are in it. */
int cairn__queue_make(struct cairn_engine *e, const char *name,
                      struct cairn__queue **out, struct cairn_error *err);

/* QUEUE_FULL when the queue does not take so many jobs more. */
int cairn__queue_accepts(const struct cairn__queue *q, size_t more,
                         struct cairn_error *err);
/* Room for one more job; counted in when it was made. */
int cairn__queue_add_job(struct cairn__queue *q);
void cairn__queue_remove_job(struct cairn__queue *q);
/* The directory of this path with one more job, or NULL: out of memory. */
struct cairn__directory *cairn__directory_add_job(struct cairn_engine *e,
                                                  const char *path);
void cairn__directory_remove_job(struct cairn_engine *e,
                                 struct cairn__directory *d);
/* When the engine goes. */
void cairn__directories_free(struct cairn_engine *e);
void cairn__directory_take(struct cairn__directory *d);
void cairn__directory_release(struct cairn_engine *e,
                              struct cairn__directory *d);

/* Puts an eligible job into its queue's heap. */
void cairn__queue_push(struct cairn__job *j);
/* Takes it out of the heap it is in, if any. */
void cairn__queue_leave(struct cairn__job *j);
/* Its priority changed. */
void cairn__queue_move(struct cairn__job *j);
/* The next job that may start now, taken out of its heap; NULL: none. */
struct cairn__job *cairn__queue_next(struct cairn_engine *e);
/* 1 when cairn__queue_next could give one. */
int cairn__queue_is_ready(const struct cairn_engine *e);

#endif
