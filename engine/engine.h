/* The engine, for the files of its owner thread. */
#ifndef CAIRN_ENGINE_H
#define CAIRN_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"
#include "clock.h"
#include "history.h"
#include "io.h"
#include "job.h"
#include "queue.h"
#include "roster.h"
#include "run.h"
#include "table.h"
#include "timer.h"

enum cairn__timer_kind {
  CAIRN__TIMER_SCHEDULE,
  CAIRN__TIMER_UNTIL,
  CAIRN__TIMER_CONTROL,
  CAIRN__TIMER_ESCALATE,
  CAIRN__TIMER_SAMPLE,
  CAIRN__TIMER_SLEEPER,
  CAIRN__TIMER_USER
};

struct cairn__ring {
  struct cairn__pushed *items;
  size_t head, count, capacity; /* capacity is a power of two */
};

/* Room is reserved before an action, so that no event is ever lost: pushing
 * cannot fail. Positions among the events of jobs count from the first that
 * this engine has pushed. */
struct cairn__events {
  struct cairn__ring of_jobs, of_host;
  uint64_t order;    /* of pushing, over both */
  uint64_t sequence; /* the last one given */
  uint64_t pushed;   /* events of jobs */
  uint64_t written;  /* of these, given to the store */
  uint64_t visible;  /* of these, durable */
};

struct cairn_engine {
  const struct cairn_clock *clock;
  const struct cairn_io *io;
  struct cairn__mailbox *mailbox;
  struct cairn__store *store; /* NULL: ":memory:" */
  int is_virtual, is_vendor_codes;
  int is_simulated; /* every job is a task: cairn__job_is_task() */
  char *owner;

  /* what pollfd watches */
  int epoll_fd, wake_fd, wall_fd, monotonic_fd;
  int is_awake;                    /* wake_fd is readable */
  int64_t wall_set, monotonic_set; /* what the timerfds wait for */

  struct cairn__events events;
  struct cairn__timers wall, monotonic;
  struct cairn__timer sample;
  struct cairn__table user_timers;

  struct cairn__roster roster;
  int is_rouse_left; /* some that slept for want of code have it, and sleep on
                      */
  uint64_t next_serial;
  struct cairn__queue *queues;
  struct cairn__zone_entry *zones; /* those that jobs have named */

  struct { /* the specification that was last looked at */
    const struct cairn__job *job;
    json_t *value;
  } spec;
  struct cairn__name *codes;    /* bodies of tasks that there are */
  struct cairn__name *handlers; /* of OtherRecoveryAction */
  struct cairn__history history;
  struct cairn__table directories;
  struct cairn__work *works;
  size_t work_count, user_timer_count;
  size_t busy, querying; /* jobs in 3, 4, 6, 12; of them in 12 */
  size_t orphans;        /* works without a job */

  int closing;           /* -1, or enum cairn_close_mode */
  int is_close_left;     /* jobs were not asked to end yet: those... */
  uint64_t closed_up_to; /* ...behind this serial */

  struct cairn__processes *processes;

  /* borrowed values live here until the next call */
  char text[CAIRN_MESSAGE_MAX + 512]; /* a message and what introduces it */
  const char **strings;
  size_t string_capacity;
  uint16_t integers[4];
  const char *descriptions[4];

  unsigned char pool[4096]; /* of random bytes, for ids */
  size_t pool_left;
};

/* ---- engine.c ---- */

int64_t cairn__wall(const struct cairn_engine *e);
int64_t cairn__monotonic(const struct cairn_engine *e);
/* Called at the end of every public function that could have left work. */
void cairn__engine_settle(struct cairn_engine *e);
/* Room for all timers that could be armed at once, with so many more jobs awake
 * and other timers; 0, or -1 when out of memory. */
int cairn__engine_reserve_timers(struct cairn_engine *e, size_t more_jobs,
                                 size_t more_timers);
/* The same, and room for so many jobs more. */
int cairn__engine_reserve_jobs(struct cairn_engine *e, size_t more);
/* A fresh random id (RFC 9562 version 4); 0, or -1 without any change. */
int cairn__engine_id(struct cairn_engine *e, unsigned char id[16],
                     struct cairn_error *err);
/* The job, awake. NULL: there is none, or memory is lacking to wake it. */
struct cairn__job *cairn__engine_job(struct cairn_engine *e, cairn_job serial,
                                     struct cairn_error *err);

/* The same of one that was found, or was not (NULL). */
struct cairn__job *cairn__engine_awake(struct cairn_engine *e,
                                       struct cairn__entry *entry,
                                       cairn_job serial,
                                       struct cairn_error *err);
/* The same for whoever has just called the engine: no other job is in use, and
 * those that could sleep may. */
struct cairn__job *cairn__engine_asked(struct cairn_engine *e, cairn_job serial,
                                       struct cairn_error *err);
/* Why there was none: `gone`, or `failed` when there is one that cannot wake.
 */
uint32_t cairn__engine_absent(const struct cairn_engine *e, cairn_job serial,
                              uint32_t gone, uint32_t failed);

/* The hexadecimal digits of an id, upper case, without "Cairn:", braces and
 * dashes; their number, or -1 when there is anything else. */
int cairn__id_digits(const char *id, char digits[33]);
/* Whether the GUID of an InstanceID begins with these digits. */
int cairn__id_begins(const char *instance_id, const char *digits);

/* ---- task.c ---- */

/* The embedding program has said to have this code. */
int cairn__has_code(const struct cairn_engine *e, const char *name,
                    size_t length);
/* Goes on with jobs that slept when their code came, and could not be woken;
 * returns 1 when some still cannot. */
int cairn__code_rouse(struct cairn_engine *e);

void cairn__names_free(struct cairn_engine *e);
/* The embedding program has said to have this handler. */
int cairn__has_handler(const struct cairn_engine *e, const char *name);

/* ---- event.c ---- */

int cairn__events_reserve(struct cairn_engine *e, size_t more);
void cairn__events_free(struct cairn_engine *e);
/* The event, its common fields filled; j may be NULL. */
struct cairn_event *cairn__event_push(struct cairn_engine *e, int type,
                                      struct cairn__job *j);
/* The one of a job that was pushed last. */
struct cairn_event *cairn__event_last(struct cairn_engine *e);
/* That of a position, which was not handed out yet. */
const struct cairn_event *cairn__event_at(const struct cairn_engine *e,
                                          uint64_t position);
/* It has a sequence, and a store keeps it: it tells what has become of a job.
 * The others are progress, or said to the embedding program alone. */
int cairn__event_is_kept(uint32_t type);
/* How many could be handed out now. */
size_t cairn__events_ready(const struct cairn_engine *e);

/* ---- process.c ---- */

int cairn__processes_open(struct cairn_engine *e, struct cairn_error *err);
void cairn__processes_free(struct cairn_engine *e); /* kills them all */
/* epoll said that something of a process is ready. Returns 0 when it could
 * not be handled for want of memory and must be tried again. */
int cairn__process_ready(struct cairn_engine *e, void *source);
void cairn__processes_kill(struct cairn_engine *e, cairn_job serial);
size_t cairn__processes_running(const struct cairn_engine *e);

#endif
