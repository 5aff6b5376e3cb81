/* run.c: engine threads, their safe points, and the mailbox they report to.
 *
 * Two locks, taken in this order and never held across foreign code:
 *
 *   run->lock   entered, parked, warnings, writes of request
 *   box->lock   the list and, of every run, notices, next_notice, is_queued
 *
 * The list's nodes are members of the runs and a queued run is referenced by
 * the list, so a report needs no memory and its run cannot vanish. The eventfd
 * is written when the list becomes non-empty and read when it becomes empty,
 * both under box->lock: it is readable exactly while there is something to
 * take, however many runs the owner takes at a time.
 *
 * Invariant of parking: 0 <= parked <= entered. PARKED is posted whenever the
 * two meet above zero while SUSPEND is the request; any other request takes a
 * PARKED that was not yet read back, so the owner never sees one that belongs
 * to an earlier suspension. */
#include "run.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

struct cairn__mailbox {
  pthread_mutex_t lock;
  struct cairn__run *head, *tail;
  int fd;
  int is_closed;
  int references; /* the owner and every run that may post; under lock */
  pthread_cond_t committed; /* durable or is_failing has changed, or a run was
                               asked something */
  uint64_t durable;         /* turns, under lock */
  _Atomic int is_failing;   /* written under lock */
  struct cairn_virtual_clock clock;
};

/* ---- text ---- */

void cairn__utf8_clean(char *text)
{
  unsigned char *s = (unsigned char *)text;

  while (*s) {
    size_t n = cairn__utf8_length(s);

    if (n == 0)
      *s++ = '?';
    else
      s += n;
  }
}

int cairn__utf8_is_valid(const char *text, size_t length)
{
  for (size_t i = 0; i < length;) {
    unsigned char s[5] = {0};
    size_t left = length - i, n;

    memcpy(s, text + i, left < 4 ? left : 4);
    n = s[0] ? cairn__utf8_length(s) : 0;
    if (n == 0)
      return 0;
    i += n;
  }
  return 1;
}

/* ---- the mailbox ---- */

struct cairn__mailbox *cairn__mailbox_new(struct cairn_error *err)
{
  struct cairn__mailbox *box = cairn__calloc(1, sizeof *box);
  int code;

  if (!box) {
    cairn__fail_memory(err);
    return NULL;
  }
  box->references = 1;
  box->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (box->fd < 0) {
    cairn__fail_errno(err, errno, NULL, -1, "cannot create an eventfd");
    cairn__free(box);
    return NULL;
  }
  code = pthread_mutex_init(&box->lock, NULL);
  if (code != 0) {
    cairn__fail_errno(err, code, NULL, -1, "cannot create a mutex");
    close(box->fd);
    cairn__free(box);
    return NULL;
  }
  pthread_cond_init(&box->committed, NULL); /* never fails here */
  return box;
}

static void mailbox_ref(struct cairn__mailbox *box)
{
  pthread_mutex_lock(&box->lock);
  box->references++;
  pthread_mutex_unlock(&box->lock);
}

static void mailbox_unref(struct cairn__mailbox *box)
{
  int is_last;

  pthread_mutex_lock(&box->lock);
  is_last = --box->references == 0;
  pthread_mutex_unlock(&box->lock);
  if (is_last) {
    close(box->fd);
    pthread_cond_destroy(&box->committed);
    pthread_mutex_destroy(&box->lock);
    cairn__free(box);
  }
}

static void wake_locked(struct cairn__mailbox *box)
{
  uint64_t one = 1;

  /* The counter is 0 here, so the write cannot block; EINTR cannot happen to
   * a write that does not block. */
  if (write(box->fd, &one, sizeof one) != (ssize_t)sizeof one)
    return;
}

static void sleep_locked(struct cairn__mailbox *box)
{
  uint64_t counter;

  if (read(box->fd, &counter, sizeof counter) != (ssize_t)sizeof counter)
    return;
}

static void post(struct cairn__run *run, unsigned notice)
{
  struct cairn__mailbox *box = run->mailbox;

  if (!box)
    return;
  pthread_mutex_lock(&box->lock);
  if (!box->is_closed) {
    run->notices |= notice;
    if (!run->is_queued) {
      run->is_queued = 1;
      run->next_notice = NULL;
      atomic_fetch_add(&run->references, 1);
      if (box->tail)
        box->tail->next_notice = run;
      else
        box->head = run;
      box->tail = run;
      if (box->head == run)
        wake_locked(box);
    }
  }
  pthread_mutex_unlock(&box->lock);
}

/* A run whose last notice is withdrawn stays in the list: taking it yields no
 * notices, which the owner ignores. */
static void withdraw(struct cairn__run *run, unsigned notice)
{
  if (!run->mailbox)
    return;
  pthread_mutex_lock(&run->mailbox->lock);
  run->notices &= ~notice;
  pthread_mutex_unlock(&run->mailbox->lock);
}

static struct cairn__run *pop_locked(struct cairn__mailbox *box,
                                     unsigned *notices)
{
  struct cairn__run *run = box->head;

  if (!run)
    return NULL;
  box->head = run->next_notice;
  if (!box->head) {
    box->tail = NULL;
    sleep_locked(box);
  }
  run->next_notice = NULL;
  run->is_queued = 0;
  *notices = run->notices;
  run->notices = 0;
  return run;
}

struct cairn__run *cairn__mailbox_take(struct cairn__mailbox *box,
                                       unsigned *notices)
{
  struct cairn__run *run;

  pthread_mutex_lock(&box->lock);
  run = pop_locked(box, notices);
  pthread_mutex_unlock(&box->lock);
  return run;
}

void cairn__mailbox_release(struct cairn__mailbox *box)
{
  struct cairn__run *run;
  unsigned notices;

  if (!box)
    return;
  pthread_mutex_lock(&box->lock);
  box->is_closed = 1;
  pthread_mutex_unlock(&box->lock);
  while ((run = cairn__mailbox_take(box, &notices)) != NULL)
    cairn__run_release(run);
  mailbox_unref(box);
}

void cairn__mailbox_durable(struct cairn__mailbox *box, uint64_t turn,
                            int is_failing)
{
  pthread_mutex_lock(&box->lock);
  if (turn > box->durable)
    box->durable = turn;
  atomic_store(&box->is_failing, is_failing);
  pthread_cond_broadcast(&box->committed);
  pthread_mutex_unlock(&box->lock);
}

struct cairn_virtual_clock *cairn__mailbox_clock(struct cairn__mailbox *box)
{
  return &box->clock;
}

int cairn__mailbox_fd(const struct cairn__mailbox *box)
{
  return box->fd;
}

/* ---- life ---- */

struct cairn__run *cairn__run_new(struct cairn__mailbox *mailbox)
{
  struct cairn__run *run = cairn__calloc(1, sizeof *run);

  if (!run)
    return NULL;
  if (pthread_mutex_init(&run->lock, NULL) != 0) {
    cairn__free(run);
    return NULL;
  }
  if (pthread_cond_init(&run->changed, NULL) != 0) {
    pthread_mutex_destroy(&run->lock);
    cairn__free(run);
    return NULL;
  }
  run->io = &cairn__system_io;
  run->clock = &cairn__system_clock;
  run->number = 1;
  run->error.offset = -1;
  atomic_init(&run->references, 1);
  atomic_init(&run->request, CAIRN__RUN_GO);
  atomic_init(&run->bytes_total, 0);
  atomic_init(&run->bytes_done, 0);
  atomic_init(&run->limit, 0);
  run->mailbox = mailbox;
  if (mailbox)
    mailbox_ref(mailbox);
  return run;
}

void cairn__run_release(struct cairn__run *run)
{
  if (!run || atomic_fetch_sub(&run->references, 1) != 1)
    return;
  json_decref(run->spec);
  json_decref(run->warnings);
  json_decref(run->report);
  if (run->mailbox)
    mailbox_unref(run->mailbox);
  pthread_cond_destroy(&run->changed);
  pthread_mutex_destroy(&run->lock);
  cairn__free(run);
}

/* Until the store has the turn and the run is decided about, or it is asked
 * for something. */
static int wait_for_commit(struct cairn__run *run)
{
  struct cairn__mailbox *box = run->mailbox;
  int is_ready;

  pthread_mutex_lock(&box->lock);
  /* the engine does not go without having killed its runs */
  while ((box->durable < run->turn || run->is_undecided) &&
         atomic_load(&run->request) == CAIRN__RUN_GO)
    pthread_cond_wait(&box->committed, &box->lock);
  is_ready = box->durable >= run->turn && !run->is_undecided;
  pthread_mutex_unlock(&box->lock);
  return is_ready;
}

/* Nothing is done before the store has the turn, and all is decided: 0; or -1,
 * the run was asked to end before. It can be suspended meanwhile. */
static int wait_for_turn(struct cairn__run *run)
{
  if (!run->mailbox)
    return 0;
  while (!wait_for_commit(run)) {
    if (cairn__run_is_ending(run))
      return cairn__run_gate(run, &run->error);
    cairn__run_enter(run); /* stands still while it is asked to */
    cairn__run_leave(run);
  }
  return 0;
}

static void *thread_main(void *argument)
{
  struct cairn__run *run = argument;

  if (wait_for_turn(run) == 0)
    run->main(run);
  post(run, CAIRN__NOTICE_DONE);
  cairn__run_release(run);
  return NULL;
}

int cairn__run_start(struct cairn__run *run, struct cairn_error *err)
{
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, old;
  int code;

  code = pthread_attr_init(&attributes);
  if (code != 0)
    return cairn__fail_errno(err, code, NULL, -1, "cannot start a thread");
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  /* Signals belong to the embedding program's threads. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  atomic_fetch_add(&run->references, 1);
  code = pthread_create(&thread, &attributes, thread_main, run);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attributes);
  if (code != 0) {
    cairn__run_release(run);
    return cairn__fail_errno(err, code, NULL, -1, "cannot start a thread");
  }
  return 0;
}

void cairn__run_here(struct cairn__run *run)
{
  run->main(run);
}

int cairn__run_is_undecided(struct cairn__run *run)
{
  int is_undecided;

  pthread_mutex_lock(&run->mailbox->lock);
  is_undecided = run->is_undecided;
  pthread_mutex_unlock(&run->mailbox->lock);
  return is_undecided;
}

int cairn__run_warnings(struct cairn__run *run, json_t **out, unsigned *lost)
{
  int result = 0;

  *out = NULL;
  pthread_mutex_lock(&run->lock);
  *lost = run->lost_warnings;
  if (run->warnings) {
    *out = json_deep_copy(run->warnings);
    if (!*out) {
      *lost += (unsigned)json_array_size(run->warnings);
      result = -1;
    }
  }
  pthread_mutex_unlock(&run->lock);
  return result;
}

void cairn__run_decide(struct cairn__run *run, json_t *spec)
{
  json_t *old = spec ? run->spec : NULL;

  pthread_mutex_lock(&run->mailbox->lock);
  if (spec)
    run->spec = spec;
  run->is_undecided = 0;
  pthread_cond_broadcast(&run->mailbox->committed);
  pthread_mutex_unlock(&run->mailbox->lock);
  json_decref(old);
}

/* ---- safe points ---- */

static void report_parked_locked(struct cairn__run *run)
{
  if (run->parked > 0 && run->parked == run->entered &&
      atomic_load(&run->request) == CAIRN__RUN_SUSPEND)
    post(run, CAIRN__NOTICE_PARKED);
}

static void park_locked(struct cairn__run *run)
{
  if (atomic_load(&run->request) != CAIRN__RUN_SUSPEND)
    return;
  run->parked++;
  report_parked_locked(run);
  while (atomic_load(&run->request) == CAIRN__RUN_SUSPEND)
    pthread_cond_wait(&run->changed, &run->lock);
  run->parked--;
}

void cairn__run_enter(struct cairn__run *run)
{
  pthread_mutex_lock(&run->lock);
  run->entered++;
  park_locked(run);
  pthread_mutex_unlock(&run->lock);
}

void cairn__run_leave(struct cairn__run *run)
{
  pthread_mutex_lock(&run->lock);
  run->entered--;
  report_parked_locked(run);
  pthread_mutex_unlock(&run->lock);
}

/* The store fails: stands still until it does not, or something is asked. */
static void wait_for_store(struct cairn__run *run)
{
  struct cairn__mailbox *box = run->mailbox;

  pthread_mutex_lock(&box->lock);
  while (atomic_load(&box->is_failing) &&
         atomic_load(&run->request) == CAIRN__RUN_GO)
    pthread_cond_wait(&box->committed, &box->lock);
  pthread_mutex_unlock(&box->lock);
}

static int64_t monotonic_us(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void cairn__run_throttle(struct cairn__run *run, uint64_t bytes_per_second)
{
  pthread_mutex_lock(&run->lock);
  if (atomic_load(&run->limit) != bytes_per_second) {
    atomic_store(&run->limit, bytes_per_second);
    run->limit_base = atomic_load(&run->bytes_done);
    run->limit_since_us = monotonic_us();
    pthread_cond_broadcast(&run->changed);
  }
  pthread_mutex_unlock(&run->lock);
}

/* When what is done will be within the limit; 0: it is now. What a run has not
 * used (it stood still, or waited for a disk) is not saved up beyond a second.
 */
static int64_t limit_reached_us(struct cairn__run *run)
{
  uint64_t limit = atomic_load(&run->limit);
  double used, left, now = (double)monotonic_us();

  if (limit == 0)
    return 0;
  used = (double)(atomic_load(&run->bytes_done) - run->limit_base) * 1e6 /
         (double)limit;
  left = (double)run->limit_since_us + used - now;
  if (left < -1e6) {
    run->limit_base = atomic_load(&run->bytes_done);
    run->limit_since_us = (int64_t)now - 1000000;
  }
  return left > 0 ? (int64_t)(now + left) : 0;
}

static void hold_back(struct cairn__run *run)
{
  int64_t until;

  pthread_mutex_lock(&run->lock);
  while (atomic_load(&run->request) == CAIRN__RUN_GO &&
         (until = limit_reached_us(run)) > 0) {
    struct timespec t = {.tv_sec = until / 1000000,
                         .tv_nsec = until % 1000000 * 1000};

    pthread_cond_clockwait(&run->changed, &run->lock, CLOCK_MONOTONIC, &t);
  }
  pthread_mutex_unlock(&run->lock);
}

int cairn__run_gate(struct cairn__run *run, struct cairn_error *err)
{
  if (atomic_load(&run->limit) > 0)
    hold_back(run);
  if (run->mailbox && atomic_load(&run->mailbox->is_failing))
    wait_for_store(run);
  if (atomic_load(&run->request) == CAIRN__RUN_SUSPEND) {
    pthread_mutex_lock(&run->lock);
    park_locked(run);
    pthread_mutex_unlock(&run->lock);
  }
  switch (atomic_load(&run->request)) {
  case CAIRN__RUN_TERMINATE:
    return cairn__fail(err, CAIRN_E_TERMINATED,
                       "terminated at a client's request");
  case CAIRN__RUN_KILL:
    return cairn__fail(err, CAIRN_E_KILLED, "killed at a client's request");
  default:
    /* SUSPEND, when it came after the check above, waits for the next gate. */
    return 0;
  }
}

struct together {
  struct cairn__run *run;
  void (*body)(void *argument, unsigned i);
  void *argument;
  unsigned i;
  pthread_t thread;
};

static void *together_main(void *argument)
{
  struct together *t = argument;

  cairn__run_enter(t->run);
  t->body(t->argument, t->i);
  cairn__run_leave(t->run);
  return NULL;
}

void cairn__run_together(struct cairn__run *run, unsigned count,
                         void (*body)(void *argument, unsigned i),
                         void *argument)
{
  struct together threads[CAIRN__TOGETHER_MAX];
  sigset_t all, old;
  unsigned started = 1;

  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (; started < count && started < CAIRN__TOGETHER_MAX; started++) {
    threads[started] = (struct together){
        .run = run, .body = body, .argument = argument, .i = started};
    if (pthread_create(&threads[started].thread, NULL, together_main,
                       &threads[started]) != 0)
      break;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  body(argument, 0);
  if (started == 1)
    return;
  cairn__run_leave(run);
  for (unsigned i = 1; i < started; i++)
    pthread_join(threads[i].thread, NULL);
  cairn__run_enter(run);
}

int cairn__run_is_ending(struct cairn__run *run)
{
  return atomic_load(&run->request) >= CAIRN__RUN_TERMINATE;
}

void cairn__run_request(struct cairn__run *run, int request)
{
  pthread_mutex_lock(&run->lock);
  if (atomic_load(&run->request) != CAIRN__RUN_KILL) {
    atomic_store(&run->request, request);
    if (request == CAIRN__RUN_SUSPEND)
      report_parked_locked(run);
    else
      withdraw(run, CAIRN__NOTICE_PARKED);
    pthread_cond_broadcast(&run->changed);
    if (run->mailbox) {
      pthread_mutex_lock(&run->mailbox->lock);
      pthread_cond_broadcast(&run->mailbox->committed);
      pthread_mutex_unlock(&run->mailbox->lock);
    }
  }
  pthread_mutex_unlock(&run->lock);
}

void cairn__run_warn(struct cairn__run *run, const char *fmt, ...)
{
  char text[CAIRN_MESSAGE_MAX];
  va_list args;

  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cairn__utf8_clean(text);

  pthread_mutex_lock(&run->lock);
  if (!run->warnings)
    run->warnings = json_array();
  if (!run->warnings || json_array_size(run->warnings) >= CAIRN__WARNINGS_MAX ||
      json_array_append_new(run->warnings, json_string(text)) != 0)
    run->lost_warnings++;
  pthread_mutex_unlock(&run->lock);
  post(run, CAIRN__NOTICE_WARNING);
}
