/* The jobs of an engine: found by serial and by UUID, in the order of
 * submission, which is that of their serials.
 *
 * A job is awake (struct cairn__job) or asleep. One that only waits, for a
 * moment or for a client, needs little: all but the latest few thousand of
 * these are asleep, packed into one block each (sleep.c). Whoever asks for a
 * job by its serial gets it awake (cairn__engine_job); its timer wakes it, too.
 * Jobs fall asleep when a function for everybody ends or begins
 * (cairn__roster_rest), and where nobody has them when they were read from a
 * store, or have got their code (cairn__roster_rest_one); never in between: a
 * pointer to a job is good until then. */
#ifndef CAIRN_ROSTER_H
#define CAIRN_ROSTER_H

#include <stddef.h>
#include <stdint.h>

#include "table.h"
#include "timer.h"

struct cairn_engine;
struct cairn__job;

/* So many may be awake that could sleep: those that were used last. */
extern size_t cairn__awake_max;

/* The beginning of a job and of one that is asleep. */
struct cairn__entry {
  struct cairn__link by_uuid; /* key: the first 8 bytes of the UUID */
  uint64_t uuid_rest;         /* the others */
  uint64_t serial : 63;
  uint64_t is_asleep : 1;
};

struct cairn__sleeper {
  struct cairn__entry entry;
  struct cairn__timer timer; /* for the first of the job's timers, if any */
  unsigned char bytes[];     /* all else: sleep.c */
};

struct cairn__roster {
  /* By ascending serial: an entry, or 2 * serial + 1 of a job that is gone. */
  uintptr_t *slots;
  size_t begin, end, capacity, count;
  struct cairn__table by_uuid;
  struct cairn__table texts; /* those that jobs asleep have in common */

  struct cairn__job *first_awake, *last_awake; /* least recently used first */
  size_t awake;
  size_t fresh; /* woke up, or may sleep, since jobs were last looked at */
  size_t asleep_on[2]; /* timers of jobs asleep: on the monotonic clock, on the
                          wall clock */
  uint64_t *usual;     /* a job's words, where it is as most jobs are */
  unsigned char *packed;
  size_t packed_size, packed_room;
};

int cairn__roster_open(struct cairn__roster *r);
/* Once there are queues; 0, or -1 when out of memory. */
int cairn__roster_begin(struct cairn_engine *e);
void cairn__roster_free(struct cairn__roster *r);
/* Frees all jobs, when the engine goes. */
void cairn__roster_free_jobs(struct cairn_engine *e);
/* Room for so many jobs more; 0, or -1 when out of memory. */
int cairn__roster_reserve(struct cairn__roster *r, size_t more);
/* An awake job that is younger than all others. There must be room. */
void cairn__roster_add(struct cairn__roster *r, struct cairn__job *j,
                       uint64_t serial);
void cairn__roster_remove(struct cairn__roster *r, struct cairn__job *j);
/* Takes the last one out of the slots, and nowhere else; NULL: there is none.
 */
struct cairn__entry *cairn__roster_pop(struct cairn__roster *r);
/* The job of this serial, or NULL. */
struct cairn__entry *cairn__roster_find(const struct cairn__roster *r,
                                        uint64_t serial);
/* The first one with a larger serial, or NULL. */
struct cairn__entry *cairn__roster_after(const struct cairn__roster *r,
                                         uint64_t serial);
/* The one of this UUID, or NULL. */
struct cairn__entry *cairn__roster_of_uuid(const struct cairn__roster *r,
                                           const unsigned char uuid[16]);
void cairn__entry_set_uuid(struct cairn__entry *entry,
                           const unsigned char uuid[16]);
/* Its InstanceID. */
void cairn__entry_id(const struct cairn__entry *entry, char id[48]);

/* The job, woken when it slept. NULL: out of memory; it sleeps on. */
struct cairn__job *cairn__roster_wake(struct cairn_engine *e,
                                      struct cairn__entry *entry);
/* What a job has that is asleep, which it stays: all but texts, and what lies
 * in its heaps. */
void cairn__roster_peek(const struct cairn_engine *e,
                        const struct cairn__entry *entry,
                        struct cairn__job *out);
enum cairn__peeked_text {
  CAIRN__PEEKED_NAME = 1,
  CAIRN__PEEKED_POLICY,
  CAIRN__PEEKED_KEY
};
/* The same of a text. 1: it is in `out`; 0: there is none; -1: it is longer. */
int cairn__roster_peek_text(const struct cairn__entry *entry,
                            enum cairn__peeked_text which, char *out,
                            size_t size);
/* The timer of one that is asleep has come: wakes it, so that its own timers
 * are armed. -1: out of memory; its timer is armed still. */
int cairn__roster_timer(struct cairn_engine *e, struct cairn__timer *timer);
/* Lets jobs fall asleep that could, if too many are awake. */
void cairn__roster_rest(struct cairn_engine *e);
/* Lets one fall asleep if it can, however few are awake: nobody uses it. */
void cairn__roster_rest_one(struct cairn_engine *e, struct cairn__job *j);
/* The job, which is asleep, cannot run for want of code, of which this is one
 * name; or (NULL) all of it is there by now. */
int cairn__roster_is_roused(const struct cairn_engine *e,
                            const struct cairn__entry *entry, const char *name);

/* For the roster: its list of jobs that are awake. */
void cairn__roster_awake(struct cairn__roster *r, struct cairn__job *j);
void cairn__roster_not_awake(struct cairn__roster *r, struct cairn__job *j);
/* Another block is the job now. */
void cairn__roster_replace(struct cairn__roster *r, struct cairn__entry *from,
                           struct cairn__entry *to);

#endif
