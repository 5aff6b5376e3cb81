/* The engine: opening, stepping, and the descriptor that says when to.
 *
 * pollfd is an epoll descriptor over
 *   wake_fd       an eventfd, readable while events are queued or work is left
 *                 that needs no outside cause (cairn__engine_settle)
 *   the mailbox   threads have reported
 *   wall_fd       a timerfd on the absolute wall clock; it is cancelled, hence
 *                 readable, when somebody sets the clock
 *   monotonic_fd  a timerfd for intervals and time-outs
 *   processes     their pidfds and pipes (process.c)
 *
 * A step does at most BATCH of each kind of work, and reserves room for an
 * action's events before each action; without memory for them the step ends
 * early, says that there is more to do, and loses nothing.
 *
 * Timerfds are set lazily: only when something is due before they would wake
 * us. A wake-up that finds nothing due sets them anew. */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "error.h"
#include "memory.h"
#include "store.h"

#define LAST_INSTANT_US 253402300799999999 /* of the year 9999 */

#define BATCH         256
#define VIRTUAL_START INT64_C(1735689600000000) /* 2025-01-01T00:00:00Z */

/* ---- time ---- */

int64_t cairn__wall(const struct cairn_engine *e)
{
  return e->clock->wall(e->clock);
}

int64_t cairn__monotonic(const struct cairn_engine *e)
{
  return e->clock->monotonic(e->clock);
}

int64_t cairn_engine_now(const cairn_engine *e)
{
  return cairn__wall(e);
}

int64_t cairn_engine_monotonic(const cairn_engine *e)
{
  return cairn__monotonic(e);
}

int cairn_engine_advance(cairn_engine *e, int64_t microseconds,
                         struct cairn_error *err)
{
  cairn__error_clear(err);
  if (!e->is_virtual)
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "advance: only an engine opened with a virtual clock "
                       "can be advanced");
  if (microseconds < 0)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "advance: time moves forward only, not by %lld us",
                       (long long)microseconds);
  if (microseconds > LAST_INSTANT_US - cairn_engine_now(e))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "advance: %lld us from now is past the year 9999, where "
                       "CIM datetimes end",
                       (long long)microseconds);
  cairn__virtual_clock_advance(cairn__mailbox_clock(e->mailbox), microseconds);
  cairn__engine_settle(e);
  return 0;
}

int cairn__engine_reserve_timers(struct cairn_engine *e, size_t more_jobs,
                                 size_t more_timers)
{
  const struct cairn__roster *r = &e->roster;
  size_t total = 3 * (r->awake + more_jobs) + e->work_count +
                 e->user_timer_count + more_timers + 1;

  return cairn__timers_reserve(&e->monotonic, total + r->asleep_on[0]) == 0 &&
                 cairn__timers_reserve(&e->wall, total + r->asleep_on[1]) == 0
             ? 0
             : -1;
}

int cairn__engine_reserve_jobs(struct cairn_engine *e, size_t more)
{
  return cairn__engine_reserve_timers(e, more, 0) == 0 &&
                 cairn__roster_reserve(&e->roster, more) == 0
             ? 0
             : -1;
}

/* ---- waking ---- */

/* Something can be done now without any outside cause. */
static int has_work(const struct cairn_engine *e)
{
  const struct cairn__timer *wall, *monotonic;

  if (e->is_close_left || e->is_rouse_left ||
      (e->closing < 0 && !cairn__store_error(e) && cairn__queue_is_ready(e)))
    return 1;
  if (!e->is_virtual)
    return 0; /* the timerfds tell */
  wall = cairn__timers_first(&e->wall);
  monotonic = cairn__timers_first(&e->monotonic);
  return (wall && wall->when <= cairn__wall(e)) ||
         (monotonic && monotonic->when <= cairn__monotonic(e));
}

static void set_timer(int fd, int flags, const struct cairn__timer *first,
                      int64_t *set)
{
  struct itimerspec spec = {0};
  int64_t when;

  if (!first || first->when >= *set)
    return;
  when = first->when > 0 ? first->when : 1; /* 0 would disarm */
  spec.it_value.tv_sec = when / 1000000;
  spec.it_value.tv_nsec = when % 1000000 * 1000;
  /* With CANCEL_ON_SET it fails with ECANCELED when the clock was set since
   * the last read, armed all the same. */
  if (timerfd_settime(fd, flags, &spec, NULL) == 0 || errno == ECANCELED)
    *set = first->when;
}

void cairn__engine_settle(struct cairn_engine *e)
{
  int is_awake;
  uint64_t counter = 1;

  cairn__store_turn(e);
  cairn__roster_rest(e);
  is_awake = cairn__events_ready(e) > 0 || has_work(e);
  if (is_awake != e->is_awake) {
    ssize_t n = is_awake ? write(e->wake_fd, &counter, sizeof counter)
                         : read(e->wake_fd, &counter, sizeof counter);

    if (n == (ssize_t)sizeof counter)
      e->is_awake = is_awake;
  }
  if (!e->is_virtual) {
    set_timer(e->wall_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET,
              cairn__timers_first(&e->wall), &e->wall_set);
    set_timer(e->monotonic_fd, TFD_TIMER_ABSTIME,
              cairn__timers_first(&e->monotonic), &e->monotonic_set);
  }
}

/* ---- ids ---- */

int cairn__engine_id(struct cairn_engine *e, unsigned char id[16],
                     struct cairn_error *err)
{
  while (e->pool_left < 16) {
    ssize_t n = getrandom(e->pool, sizeof e->pool, 0);

    if (n < 0 && errno != EINTR)
      return cairn__fail_errno(err, errno, NULL, -1, "getrandom");
    if (n > 0)
      e->pool_left = (size_t)n;
  }
  e->pool_left -= 16;
  memcpy(id, e->pool + e->pool_left, 16);
  id[6] = (unsigned char)((id[6] & 0x0f) | 0x40);
  id[8] = (unsigned char)((id[8] & 0x3f) | 0x80);
  return 0;
}

/* ---- open and free ---- */

static char *user_name(void)
{
  struct passwd entry, *found = NULL;
  char buffer[4096];

  if (getpwuid_r(geteuid(), &entry, buffer, sizeof buffer, &found) == 0 &&
      found)
    return cairn__strdup(entry.pw_name);
  return cairn__format("uid %u", (unsigned)geteuid());
}

/* The pointer tells what is ready: a timerfd's field here, something of
 * process.c, or NULL for what is looked at in every step anyway. */
static int watch(struct cairn_engine *e, int fd, void *what,
                 struct cairn_error *err)
{
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};

  if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "epoll_ctl");
  return 0;
}

static int open_descriptors(struct cairn_engine *e, struct cairn_error *err)
{
  e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (e->epoll_fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "epoll_create1");
  e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (e->wake_fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "eventfd");
  e->wall_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
  e->monotonic_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (e->wall_fd < 0 || e->monotonic_fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "timerfd_create");
  if (watch(e, e->wake_fd, NULL, err) != 0 ||
      watch(e, e->wall_fd, &e->wall_fd, err) != 0 ||
      watch(e, e->monotonic_fd, &e->monotonic_fd, err) != 0 ||
      watch(e, cairn__mailbox_fd(e->mailbox), NULL, err) != 0)
    return -1;
  return 0;
}

static int check_options(const struct cairn_engine_options *o,
                         struct cairn_error *err)
{
  if (o->size != sizeof *o)
    return cairn__fail(err, CAIRN_E_VERSION,
                       "open: the options are those of another version of "
                       "cairn.h: %u bytes, not %zu",
                       o->size, sizeof *o);
  if (o->virtual_start < 0)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "open: virtual_start must not be negative");
  if (o->is_simulated && !o->is_virtual_clock)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "open: is_simulated needs is_virtual_clock: a run that "
                       "does nothing must not be due by the real clock");
  if (o->is_simulated && o->store && strcmp(o->store, ":memory:") != 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "open: is_simulated is for \":memory:\": a store must "
                       "not say that something was exported");
  return 0;
}

static int open_parts(struct cairn_engine *e,
                      const struct cairn_engine_options *o,
                      struct cairn_error *err)
{
  e->mailbox = cairn__mailbox_new(err);
  if (!e->mailbox)
    return -1;
  if (o->is_virtual_clock) {
    struct cairn_virtual_clock *clock = cairn__mailbox_clock(e->mailbox);

    cairn__virtual_clock_init(clock, o->virtual_start ? o->virtual_start
                                                      : VIRTUAL_START);
    e->clock = &clock->clock;
  }
  if (open_descriptors(e, err) != 0)
    return -1;
  e->owner = o->owner ? cairn__strdup(o->owner) : user_name();
  if (!e->owner)
    return cairn__fail_memory(err);
  cairn__utf8_clean(e->owner);
  if (cairn__roster_open(&e->roster) != 0 ||
      cairn__table_init(&e->directories) != 0 ||
      cairn__table_init(&e->user_timers) != 0 ||
      cairn__engine_reserve_timers(e, 0, 0) != 0)
    return cairn__fail_memory(err);
  if (cairn__processes_open(e, err) != 0)
    return -1;
  if (cairn__queues_open(e, o->queues_json, err) != 0)
    return -1;
  return cairn__roster_begin(e) == 0 ? 0 : cairn__fail_memory(err);
}

int cairn_engine_open(const struct cairn_engine_options *options,
                      cairn_engine **out, struct cairn_error *err)
{
  static const struct cairn_engine_options defaults = {.size = sizeof defaults};
  const struct cairn_engine_options *o = options ? options : &defaults;
  struct cairn_engine *e;

  cairn__error_clear(err);
  *out = NULL;
  if (check_options(o, err) != 0)
    return -1;
  e = cairn__calloc(1, sizeof *e);
  if (!e)
    return cairn__fail_memory(err);
  e->clock = &cairn__system_clock;
  e->io = o->io ? o->io : &cairn__system_io;
  e->is_virtual = o->is_virtual_clock != 0;
  e->is_vendor_codes = o->is_vendor_codes != 0;
  e->is_simulated = o->is_simulated != 0;
  e->epoll_fd = e->wake_fd = e->wall_fd = e->monotonic_fd = -1;
  e->wall_set = e->monotonic_set = INT64_MAX;
  e->closing = -1;
  e->history.limit = o->history_limit ? o->history_limit : CAIRN__HISTORY_LIMIT;
  e->sample.kind = CAIRN__TIMER_SAMPLE;
  if (open_parts(e, o, err) != 0 ||
      (o->store && strcmp(o->store, ":memory:") != 0 &&
       cairn__store_open(e, o->store, err) != 0)) {
    cairn_engine_free(e);
    return -1;
  }
  *out = e;
  return 0;
}

static void close_fd(int fd)
{
  if (fd >= 0)
    close(fd);
}

static void free_user_timers(struct cairn_engine *e);

void cairn_engine_free(cairn_engine *e)
{
  if (!e)
    return;
  /* Threads end on their own; what they still touch is counted. */
  while (e->works) {
    struct cairn__work *work = e->works;

    e->works = work->next;
    cairn__run_request(work->run, CAIRN__RUN_KILL);
    cairn__run_release(work->run);
    cairn__free(work);
  }
  cairn__store_close(e);
  cairn__mailbox_release(e->mailbox);
  cairn__processes_free(e);
  cairn__roster_free_jobs(e);
  free_user_timers(e);
  cairn__directories_free(e);
  cairn__queues_free(e);
  cairn__zones_free(e);
  cairn__names_free(e);
  cairn__history_free(e);
  cairn__roster_free(&e->roster);
  cairn__table_free(&e->directories);
  cairn__table_free(&e->user_timers);
  cairn__timers_free(&e->wall);
  cairn__timers_free(&e->monotonic);
  close_fd(e->epoll_fd);
  close_fd(e->wake_fd);
  close_fd(e->wall_fd);
  close_fd(e->monotonic_fd);
  cairn__events_free(e);
  cairn__free(e->strings);
  cairn__free(e->owner);
  cairn__free(e);
}

/* ---- closing ---- */

void cairn_engine_close(cairn_engine *e, enum cairn_close_mode mode)
{
  if ((int)mode <= e->closing)
    return; /* only harder */
  e->closing = (int)mode;
  e->is_close_left = 1;
  e->closed_up_to = 0;
  cairn__engine_settle(e);
}

int cairn_engine_is_working(const cairn_engine *e)
{
  for (const struct cairn__work *work = e->works; work; work = work->next) {
    int state = work->job ? work->job->state : 0;

    if (state == CAIRN_STARTING || state == CAIRN_RUNNING ||
        state == CAIRN_SHUTTING_DOWN)
      return 1;
  }
  return 0;
}

int cairn_engine_is_idle(const cairn_engine *e)
{
  size_t busy = e->busy;

  /* A question waits for its answer and nothing runs meanwhile. */
  if (e->closing == CAIRN_CLOSE_SUSPEND)
    busy -= e->querying;
  if (e->is_close_left || busy > 0 || e->orphans > 0 ||
      cairn__processes_running(e) > 0)
    return 0;
  if (cairn__store_is_pending(e) && !cairn__store_error(e))
    return 0;
  return e->closing >= 0 || !cairn__queue_is_ready(e);
}

/* ---- timers of the embedding program ---- */

struct user_timer {
  struct cairn__timer timer;
  struct cairn__link link; /* key: the cookie */
};

static void user_timer_free(struct cairn_engine *e, struct user_timer *t)
{
  cairn__timer_disarm(&t->timer);
  cairn__table_remove(&e->user_timers, &t->link);
  e->user_timer_count--;
  cairn__free(t);
}

static void free_user_timers(struct cairn_engine *e)
{
  for (size_t i = 0; i < e->user_timers.size; i++) {
    while (e->user_timers.buckets && e->user_timers.buckets[i])
      user_timer_free(
          e, CAIRN__OF(e->user_timers.buckets[i], struct user_timer, link));
  }
}

int cairn_timer_start(cairn_engine *e, int64_t delay_us, uint64_t cookie,
                      struct cairn_error *err)
{
  struct user_timer *t;
  int64_t when;

  cairn__error_clear(err);
  if (delay_us < 0)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "timer: the delay must not be negative");
  if (cairn__engine_reserve_timers(e, 0, 1) != 0)
    return cairn__fail_memory(err);
  t = cairn__calloc(1, sizeof *t);
  if (!t)
    return cairn__fail_memory(err);
  if (__builtin_add_overflow(cairn__monotonic(e), delay_us, &when))
    when = INT64_MAX;
  t->timer.kind = CAIRN__TIMER_USER;
  e->user_timer_count++;
  cairn__table_add(&e->user_timers, &t->link, cookie);
  cairn__timer_arm(&e->monotonic, &t->timer, when);
  cairn__engine_settle(e);
  return 0;
}

void cairn_timer_stop(cairn_engine *e, uint64_t cookie)
{
  struct cairn__link *link;

  while ((link = cairn__table_find(&e->user_timers, cookie, NULL)) != NULL)
    user_timer_free(e, CAIRN__OF(link, struct user_timer, link));
}

/* ---- stepping ---- */

/* Each of these returns 1 when it left something undone. */

static int step_descriptors(struct cairn_engine *e)
{
  struct epoll_event ready[64];
  int n = epoll_wait(e->epoll_fd, ready, 64, 0), is_left = n == 64;
  uint64_t counter;

  for (int i = 0; i < n; i++) {
    void *what = ready[i].data.ptr;

    if (what == &e->wall_fd) {
      /* ECANCELED: the clock was set. Either way the due times are looked at
       * below, and the timer is set anew. */
      if (read(e->wall_fd, &counter, sizeof counter) >= 0 || errno == ECANCELED)
        e->wall_set = INT64_MAX;
    } else if (what == &e->monotonic_fd) {
      if (read(e->monotonic_fd, &counter, sizeof counter) >= 0)
        e->monotonic_set = INT64_MAX;
    } else if (what && !cairn__process_ready(e, what)) {
      is_left = 1;
    }
  }
  return is_left;
}

static int step_notices(struct cairn_engine *e)
{
  for (int i = 0; i < BATCH; i++) {
    struct cairn__run *run;
    unsigned notices;

    if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
      return 1;
    run = cairn__mailbox_take(e->mailbox, &notices);
    if (!run)
      return 0;
    cairn__job_notice(e, run, notices);
  }
  return 1;
}

static int step_timers(struct cairn_engine *e, struct cairn__timers *timers,
                       int64_t now)
{
  for (int i = 0; i < BATCH; i++) {
    struct cairn__timer *timer = cairn__timers_first(timers);

    if (!timer || timer->when > now)
      return 0;
    if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
      return 1;
    if (timer->kind == CAIRN__TIMER_SLEEPER) {
      if (cairn__roster_timer(e, timer) != 0)
        return 1;
      continue; /* its job's timer is in its place now */
    }
    cairn__timer_disarm(timer);
    if (timer->kind == CAIRN__TIMER_USER) {
      struct user_timer *t = CAIRN__OF(timer, struct user_timer, timer);

      cairn__event_push(e, CAIRN_EVENT_TIMER, NULL)->cookie = t->link.key;
      user_timer_free(e, t);
    } else if (timer->kind == CAIRN__TIMER_SAMPLE) {
      cairn__work_sample(e);
    } else {
      cairn__job_timer(e, timer);
    }
  }
  return 1;
}

static int step_closing(struct cairn_engine *e)
{
  for (int i = 0; i < BATCH && e->is_close_left; i++) {
    struct cairn__entry *entry =
        cairn__roster_after(&e->roster, e->closed_up_to);
    uint64_t serial = entry ? entry->serial : 0;
    struct cairn__job *j;

    if (!entry) {
      e->is_close_left = 0;
      break;
    }
    /* none that sleeps is to be suspended */
    if (!entry->is_asleep || e->closing != CAIRN_CLOSE_SUSPEND) {
      if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
        return 1;
      j = cairn__roster_wake(e, entry);
      if (!j)
        return 1;
      cairn__job_close(e, j);
    }
    e->closed_up_to = serial;
  }
  return e->is_close_left;
}

static int step_queues(struct cairn_engine *e)
{
  if (e->closing >= 0 || cairn__store_error(e))
    return 0;
  for (int i = 0; i < BATCH; i++) {
    struct cairn__job *j;

    if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
      return 1;
    j = cairn__queue_next(e);
    if (!j)
      return 0;
    cairn__job_start(e, j);
  }
  return 1;
}

int cairn_engine_step(cairn_engine *e)
{
  int is_left = step_descriptors(e);

  cairn__store_poll(e);
  is_left |= step_notices(e);
  is_left |= step_timers(e, &e->monotonic, cairn__monotonic(e));
  is_left |= step_timers(e, &e->wall, cairn__wall(e));
  is_left |= step_closing(e);
  is_left |= cairn__code_rouse(e);
  is_left |= step_queues(e);
  cairn__engine_settle(e);
  return is_left || cairn__events_ready(e) > 0 || has_work(e);
}

int cairn_engine_pollfd(const cairn_engine *e)
{
  return e->epoll_fd;
}

int64_t cairn_engine_timeout(const cairn_engine *e)
{
  const struct cairn__timer *wall = cairn__timers_first(&e->wall);
  const struct cairn__timer *monotonic = cairn__timers_first(&e->monotonic);
  int64_t left = -1, t;

  if (cairn__events_ready(e) > 0 || has_work(e))
    return 0;
  if (wall) {
    t = wall->when - cairn__wall(e);
    left = t > 0 ? t : 0;
  }
  if (monotonic) {
    t = monotonic->when - cairn__monotonic(e);
    if (t < 0)
      t = 0;
    if (left < 0 || t < left)
      left = t;
  }
  return left;
}

int cairn_engine_wait(cairn_engine *e, int64_t timeout_us)
{
  struct pollfd poller = {.fd = e->epoll_fd, .events = POLLIN};
  struct timespec limit = {.tv_sec = timeout_us / 1000000,
                           .tv_nsec = timeout_us % 1000000 * 1000};

  if (cairn_engine_step(e))
    return 1;
  /* Nothing outside could end the wait, and virtual time does not pass. */
  if (e->is_virtual && !e->works && cairn__processes_running(e) == 0 &&
      !cairn__store_is_pending(e))
    return 0;
  if (ppoll(&poller, 1, timeout_us < 0 ? NULL : &limit, NULL) <= 0)
    return 0;
  return cairn_engine_step(e);
}

/* ---- jobs by name and number ---- */

struct cairn__job *cairn__engine_job(struct cairn_engine *e, cairn_job serial,
                                     struct cairn_error *err)
{
  return cairn__engine_awake(e, cairn__roster_find(&e->roster, serial), serial,
                             err);
}

struct cairn__job *cairn__engine_awake(struct cairn_engine *e,
                                       struct cairn__entry *entry,
                                       cairn_job serial,
                                       struct cairn_error *err)
{
  struct cairn__job *j = entry ? cairn__roster_wake(e, entry) : NULL;

  if (!entry)
    cairn__fail(err, CAIRN_E_NOT_FOUND, "job %llu does not exist (any more)",
                (unsigned long long)serial);
  else if (!j)
    cairn__fail_memory(err);
  return j;
}

struct cairn__job *cairn__engine_asked(struct cairn_engine *e, cairn_job serial,
                                       struct cairn_error *err)
{
  cairn__roster_rest(e);
  return cairn__engine_job(e, serial, err);
}

uint32_t cairn__engine_absent(const struct cairn_engine *e, cairn_job serial,
                              uint32_t gone, uint32_t failed)
{
  return cairn__roster_find(&e->roster, serial) ? failed : gone;
}

cairn_job cairn_job_next(cairn_engine *e, cairn_job after)
{
  const struct cairn__entry *entry = cairn__roster_after(&e->roster, after);

  return entry ? entry->serial : 0;
}

int cairn__id_digits(const char *id, char digits[33])
{
  size_t length = strlen(id);
  int n = 0;

  if (strncasecmp(id, "Cairn:", 6) == 0) {
    id += 6;
    length -= 6;
  }
  if (length > 1 && id[0] == '{' && id[length - 1] == '}') {
    id++;
    length -= 2;
  }
  for (size_t i = 0; i < length; i++) {
    char c = id[i];

    if (c == '-')
      continue;
    if (c >= 'a' && c <= 'f')
      c = (char)(c - 'a' + 'A');
    if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F')) || n == 32)
      return -1;
    digits[n++] = c;
  }
  digits[n] = '\0';
  return n;
}

int cairn__id_begins(const char *instance_id, const char *digits)
{
  const char *id = instance_id + 6;

  for (; *digits; digits++, id++) {
    if (*id == '-')
      id++;
    if (*id != *digits)
      return 0;
  }
  return 1;
}

static const struct cairn__entry *whole_id(const struct cairn_engine *e,
                                           const char digits[33])
{
  unsigned char uuid[16];

  for (size_t i = 0; i < 16; i++) {
    const char pair[3] = {digits[2 * i], digits[2 * i + 1], '\0'};

    uuid[i] = (unsigned char)strtoul(pair, NULL, 16);
  }
  return cairn__roster_of_uuid(&e->roster, uuid);
}

/* A whole id costs a look-up, a prefix a walk over all jobs. */
int cairn_job_find(cairn_engine *e, const char *id, cairn_job *out,
                   struct cairn_error *err)
{
  const struct cairn__entry *found = NULL, *entry;
  char digits[33], shown[128], this_id[48], other_id[48];
  int n = cairn__id_digits(id, digits);

  cairn__error_clear(err);
  *out = 0;
  if (n < 4)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "\"%s\" is no job id: give an InstanceID, its GUID or "
                       "4 or more of the GUID's first digits",
                       cairn__printable(id, shown, sizeof shown));
  if (n == 32)
    found = whole_id(e, digits);
  entry = n < 32 ? cairn__roster_after(&e->roster, 0) : NULL;
  for (; entry; entry = cairn__roster_after(&e->roster, entry->serial)) {
    cairn__entry_id(entry, this_id);
    if (!cairn__id_begins(this_id, digits))
      continue;
    if (found) {
      cairn__entry_id(found, other_id);
      return cairn__fail(err, CAIRN_E_AMBIGUOUS,
                         "\"%s\" is the beginning of more than one job's id: "
                         "%s, %s",
                         cairn__printable(id, shown, sizeof shown), other_id,
                         this_id);
    }
    found = entry;
  }
  if (!found)
    return cairn__fail(err, CAIRN_E_NOT_FOUND, "there is no job \"%s\"",
                       cairn__printable(id, shown, sizeof shown));
  *out = found->serial;
  return 0;
}
