/* A run: what an engine thread executes for a job, and the only thing that it
 * shares with the owner thread.
 *
 * The owner fills the frozen part, calls cairn__run_start and forgets the rest
 * until a notice arrives. The thread calls main(run), which works, passes
 * cairn__run_gate() at every safe point (at least every 100 ms of work), fills
 * the result part and returns. Notices (parked, warning, done) travel through
 * a mutex-protected list whose nodes live in the run, so that reporting never
 * allocates; the eventfd of the engine is written after each.
 *
 * Requests: the owner sets one with cairn__run_request; a later one replaces
 * an earlier, KILL is never replaced. At the gate: SUSPEND parks the calling
 * thread until the request changes; TERMINATE and KILL make the gate return
 * -1 with CAIRN_E_TERMINATED / CAIRN_E_KILLED, and main is expected to undo
 * and return: after TERMINATE it removes its work directory, after KILL it
 * leaves it.
 *
 * Several threads of one run (the copy pipeline) each enter and leave, the one
 * that executes main too; nobody is entered to begin with. The run counts as
 * parked when all that have entered stand in the gate. A thread that only
 * waits for others of its own run must have left. Entering parks while the run
 * is suspended, so that a parked run stays parked.
 *
 * With a store, nothing of a run happens before the commit that says that it is
 * on; and while the store fails, every thread stands in the gate, which is what
 * keeps it from publishing; one that is to be decided about waits for that.
 * Neither is parking: the owner is told nothing.
 *
 * Lifetime: reference counted; the owner holds one, the thread one. The owner
 * may drop its own (cairn_engine_free) while the thread still unwinds. */
#ifndef CAIRN_RUN_H
#define CAIRN_RUN_H

#include <pthread.h>
#include <stdint.h>

#include <jansson.h>

#include "cairn.h"
#include "clock.h"
#include "io.h"

enum cairn__run_request_kind {
  CAIRN__RUN_GO = 0,
  CAIRN__RUN_SUSPEND,
  CAIRN__RUN_TERMINATE,
  CAIRN__RUN_KILL
};

enum { /* bits of cairn__run.notices */
       CAIRN__NOTICE_PARKED = 1,
       CAIRN__NOTICE_WARNING = 2,
       CAIRN__NOTICE_DONE = 4
};

struct cairn__mailbox; /* the engine's, see engine.c */

/* So many are kept of a run, or of who decides about it; the rest is counted.
 */
#define CAIRN__WARNINGS_MAX 1000

struct cairn__run {
  /* frozen before the thread starts */
  void (*main)(struct cairn__run *run);
  const struct cairn_io *io;
  const struct cairn_clock *clock;
  json_t *spec;      /* own deep copy of the "export"/... object */
  char job_uuid[37]; /* upper case, without the OrgID */
  char instance_id[48];
  char point_uuid[37]; /* export: the ReferencePointGroupId of this run */
  uint32_t number;     /* run number, from 1 */
  uint64_t epoch;
  uint64_t turn;    /* the store must have committed it before main begins */
  uint64_t cookie;  /* the owner's; nobody else's business */
  int is_undecided; /* main waits for cairn__run_decide; under the box's lock
                       once the thread has started */

  /* atomics: written by the thread, read by the owner at any time */
  _Atomic uint64_t bytes_total; /* 0 = not known yet; set once, before the
                                   first byte counts */
  _Atomic uint64_t bytes_done;

  /* bytes_done per second, written by the owner; 0: no limit. The allowance
   * counts from limit_base and limit_since_us (monotonic), under lock. */
  _Atomic uint64_t limit;
  uint64_t limit_base;
  int64_t limit_since_us;

  /* request and parking */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  _Atomic int request; /* written under lock, read without */
  int entered, parked;
  unsigned notices;
  struct cairn__run *next_notice;
  int is_queued;
  struct cairn__mailbox *mailbox;
  _Atomic int references;

  /* result: written by the thread before it returns from main, read by the
   * owner after DONE. Warnings may be appended at any time under lock. */
  struct cairn_error error; /* id CAIRN_OK: done well */
  json_t *warnings;         /* array of strings, under lock; may be NULL */
  unsigned lost_warnings;   /* beyond CAIRN__WARNINGS_MAX, or given while memory
                               had run out; under lock */
  json_t *report;           /* object; what cairn_job_report gives, and for an
                               export its "properties" object: the CIM
                               properties of the run, ExportedDisks etc. */
};

/* ---- for main ------------------------------------------------------------ */

void cairn__run_enter(struct cairn__run *run);
void cairn__run_leave(struct cairn__run *run);
/* The safe point: 0 = go on, -1 = end (err filled). Cheap when nothing is
 * asked. Call it between enter and leave. */
int cairn__run_gate(struct cairn__run *run, struct cairn_error *err);
/* Calls body(argument, i) on several threads at once, i = 0 .. count - 1, and
 * returns when all have ended. The caller has entered and is one of them;
 * while it waits for the others it has left. Where fewer can be started fewer
 * are: the work has to be taken from what all share. */
#define CAIRN__TOGETHER_MAX 16u
void cairn__run_together(struct cairn__run *run, unsigned count,
                         void (*body)(void *argument, unsigned i),
                         void *argument);
/* 1 when TERMINATE or KILL was asked: for loops that wait in poll(2). */
int cairn__run_is_ending(struct cairn__run *run);
/* Adds to the job's warnings (it then ends Completed With Warnings). */
void cairn__run_warn(struct cairn__run *run, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Replaces every byte that is not part of valid UTF-8 by '?', in place. */
void cairn__utf8_clean(char *text);
/* 1 when the bytes are UTF-8 and none of them is NUL. */
int cairn__utf8_is_valid(const char *text, size_t length);

/* ---- for the owner ---------------------------------------------------------
 */

/* Allocates a run with its defaults; NULL when out of memory. */
struct cairn__run *cairn__run_new(struct cairn__mailbox *mailbox);
int cairn__run_start(struct cairn__run *run, struct cairn_error *err);
void cairn__run_request(struct cairn__run *run, int request);
void cairn__run_release(struct cairn__run *run);
int cairn__run_is_undecided(struct cairn__run *run);
/* A copy of its warnings, which the caller frees, NULL: none; and how many were
 * lost. -1: out of memory, all are lost. Owner. */
int cairn__run_warnings(struct cairn__run *run, json_t **out, unsigned *lost);
/* Lets main begin, with another specification (taken over) or NULL: its own. */
void cairn__run_decide(struct cairn__run *run, json_t *spec);
/* From now on the gate holds the run back to so many of its bytes_done per
 * second; 0: no limit. */
void cairn__run_throttle(struct cairn__run *run, uint64_t bytes_per_second);
/* Runs main on the calling thread without an engine (mailbox NULL): for tests
 * and for cairn_plan. */
void cairn__run_here(struct cairn__run *run);

/* ---- the mailbox ------------------------------------------------------------
 */

/* Threads post to it, the owner takes from it. Reference counted: threads of
 * runs that outlive their engine keep it. */
struct cairn__mailbox *cairn__mailbox_new(struct cairn_error *err);
/* By the owner, once: closes the box. What is in it is dropped, later posts
 * vanish, and it is freed with the last run that knows it. */
void cairn__mailbox_release(struct cairn__mailbox *box);
/* Room for the engine's virtual clock, which the threads may outlive it with;
 * the owner initialises it. */
struct cairn_virtual_clock *cairn__mailbox_clock(struct cairn__mailbox *box);
/* By the store's writer: all turns up to this one are durable (0: as before),
 * and whether the store fails. */
void cairn__mailbox_durable(struct cairn__mailbox *box, uint64_t turn,
                            int is_failing);
int cairn__mailbox_fd(const struct cairn__mailbox *box); /* eventfd */
/* The next run with notices (which are taken into *notices), or NULL. The
 * descriptor is readable exactly while runs with notices are left. The caller
 * owns a reference to the run returned. */
struct cairn__run *cairn__mailbox_take(struct cairn__mailbox *box,
                                       unsigned *notices);

#endif
