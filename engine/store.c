/* store.c: see store.h. One lock, held for copying a buffer and never across
 * I/O. What the writer owns (the database, `working`) nobody else touches while
 * it lives. */
#include "store.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "database.h"
#include "engine.h"
#include "error.h"
#include "memory.h"
#include "record.h"

#define EVENTS_KEPT  100000
#define EVENTS_A_ROW 10000
#define BUFFER_KEPT  (4u << 20)

_Atomic int cairn__store_retry_ms = 1000;

/* Something that the writer does between commits while the owner waits. */
struct request {
  struct request *next;
  void (*run)(struct cairn__database *db, struct request *request);
  int is_done;
};

struct cairn__store {
  struct cairn__mailbox *mailbox; /* lives longer: the store is closed first */
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t work;     /* the writer waits for it */
  pthread_cond_t answered; /* the owner waits for it */
  int fd;                  /* eventfd: the writer has something to tell */
  int has_locks, has_thread;

  /* of the writer */
  struct cairn__database *db;
  struct cairn__rows working;
  uint64_t working_turn, working_visible;
  struct cairn__backup *backup;

  /* under the lock */
  struct cairn__rows pending;
  uint64_t pending_turn, pending_visible;
  uint64_t durable, visible; /* what the last commit had */
  struct cairn_error error;  /* of the last commit; id CAIRN_OK: it was well */
  struct request *requests, **last_request;
  char *backup_to; /* one that is to be begun; NULL: none */
  struct cairn_error backup_error;
  int is_backup_on, is_backup_over, is_stopping;

  /* of the owner */
  uint64_t turn;              /* the last one given to the writer */
  uint64_t seen;              /* of these, durable when the owner last looked */
  struct cairn_error failure; /* what the owner knows of `error` */
  struct cairn__job *first_touched;
  uint64_t events_removed; /* up to this sequence, as far as was asked for */
  struct stored_event *packed; /* kept: a large block made with every turn has
                                  the allocator tidy up with every turn */
  size_t packed_room;
  uint64_t backup_cookie;
  int64_t opened; /* how often, this time included */
};

/* ---- the writer ---------------------------------------------------------- */

static void notify(struct cairn__store *s)
{
  uint64_t one = 1;

  /* EAGAIN: it is readable already */
  if (write(s->fd, &one, sizeof one) < 0)
    return;
}

/* Takes what is pending, unless something is left that could not be written. */
static int take_locked(struct cairn__store *s)
{
  struct cairn__rows empty = s->working;

  if (s->working.length > 0)
    return 1;
  if (s->pending.length == 0)
    return 0;
  s->working = s->pending;
  s->pending = empty;
  s->working_turn = s->pending_turn;
  s->working_visible = s->pending_visible;
  return 1;
}

static int commit(struct cairn__store *s)
{
  struct cairn_error error;
  int is_well;

  cairn__error_clear(&error);
  is_well = cairn__database_apply(s->db, &s->working, &error) == 0;
  pthread_mutex_lock(&s->lock);
  s->error = error;
  if (is_well) {
    s->working.length = 0;
    if (s->working.capacity > BUFFER_KEPT) {
      cairn__free(s->working.bytes);
      s->working = (struct cairn__rows){NULL, 0, 0};
    }
    s->durable = s->working_turn;
    s->visible = s->working_visible;
  }
  pthread_mutex_unlock(&s->lock);
  cairn__mailbox_durable(s->mailbox, is_well ? s->working_turn : 0, !is_well);
  notify(s);
  return is_well;
}

static void begin_backup(struct cairn__store *s, char *to)
{
  struct cairn_error error;

  cairn__error_clear(&error);
  if (cairn__database_backup(s->db, to, &s->backup, &error) != 0) {
    pthread_mutex_lock(&s->lock);
    s->backup_error = error;
    s->is_backup_over = 1;
    pthread_mutex_unlock(&s->lock);
    notify(s);
  }
  cairn__free(to);
}

static void step_backup(struct cairn__store *s)
{
  struct cairn_error error;
  int code;

  cairn__error_clear(&error);
  code = cairn__backup_step(s->backup, &error);
  if (code == 0)
    return;
  s->backup = NULL;
  pthread_mutex_lock(&s->lock);
  s->backup_error = error;
  s->is_backup_over = 1;
  pthread_mutex_unlock(&s->lock);
  notify(s);
}

static void answer(struct cairn__store *s, struct request *r)
{
  while (r) {
    struct request *next = r->next;

    r->run(s->db, r);
    pthread_mutex_lock(&s->lock);
    r->is_done = 1;
    pthread_cond_broadcast(&s->answered);
    pthread_mutex_unlock(&s->lock);
    r = next;
  }
}

/* Until there is something to do; `retry`: not before that moment, when what
 * is left could not be written. */
static void wait_locked(struct cairn__store *s, const struct timespec *retry)
{
  while (!s->is_stopping && !s->requests && !s->backup && !s->backup_to &&
         (retry || s->pending.length == 0)) {
    if (!retry)
      pthread_cond_wait(&s->work, &s->lock);
    else if (pthread_cond_timedwait(&s->work, &s->lock, retry) == ETIMEDOUT)
      return;
  }
}

static int is_past(const struct timespec *t)
{
  struct timespec now;

  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec > t->tv_sec ||
         (now.tv_sec == t->tv_sec && now.tv_nsec >= t->tv_nsec);
}

static void write_rest(struct cairn__store *s)
{
  int has_work;

  pthread_mutex_lock(&s->lock);
  has_work = take_locked(s);
  pthread_mutex_unlock(&s->lock);
  if (has_work)
    (void)commit(s);
}

static void *writer(void *argument)
{
  struct cairn__store *s = argument;
  struct timespec retry;
  int is_failing = 0, is_stopping;

  do {
    struct request *requests;
    char *to;
    int has_work;

    pthread_mutex_lock(&s->lock);
    wait_locked(s, is_failing ? &retry : NULL);
    is_stopping = s->is_stopping;
    requests = s->requests;
    s->requests = NULL;
    s->last_request = &s->requests;
    to = s->backup_to;
    s->backup_to = NULL;
    has_work = take_locked(s);
    pthread_mutex_unlock(&s->lock);

    if (has_work && (!is_failing || is_stopping || is_past(&retry))) {
      is_failing = !commit(s);
      clock_gettime(CLOCK_MONOTONIC, &retry);
      retry.tv_sec += cairn__store_retry_ms / 1000;
      retry.tv_nsec += cairn__store_retry_ms % 1000 * 1000000L;
      if (retry.tv_nsec >= 1000000000L) {
        retry.tv_sec++;
        retry.tv_nsec -= 1000000000L;
      }
    }
    if (is_stopping && !is_failing) /* what came while that was written */
      write_rest(s);
    answer(s, requests);
    if (to)
      begin_backup(s, to);
    if (s->backup && !is_stopping)
      step_backup(s);
  } while (!is_stopping);
  cairn__backup_abandon(s->backup);
  s->backup = NULL;
  return NULL;
}

static int start(struct cairn__store *s, struct cairn_error *err)
{
  sigset_t all, old;
  int code;

  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  code = pthread_create(&s->thread, NULL, writer, s);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (code != 0)
    return cairn__fail_errno(err, code, NULL, -1, "cannot start a thread");
  s->has_thread = 1;
  return 0;
}

/* Has the writer do something and waits until it is done: after everything that
 * was changed before, unless that cannot be written. */
static void ask(struct cairn__store *s, struct request *r)
{
  r->next = NULL;
  r->is_done = 0;
  pthread_mutex_lock(&s->lock);
  *s->last_request = r;
  s->last_request = &r->next;
  pthread_cond_signal(&s->work);
  while (!r->is_done)
    pthread_cond_wait(&s->answered, &s->lock);
  pthread_mutex_unlock(&s->lock);
}

/* ---- turns --------------------------------------------------------------- */

void cairn__store_touch(struct cairn_engine *e, struct cairn__job *j, int what)
{
  struct cairn__store *s = e->store;

  if (!s || j->is_volatile)
    return;
  if (!j->touched) {
    j->touched_prev = NULL;
    j->touched_next = s->first_touched;
    if (s->first_touched)
      s->first_touched->touched_prev = j;
    s->first_touched = j;
  }
  j->touched |= (uint8_t)what;
}

void cairn__store_forget(struct cairn_engine *e, struct cairn__job *j)
{
  if (!j->touched)
    return;
  j->touched = 0;
  if (j->touched_prev)
    j->touched_prev->touched_next = j->touched_next;
  else
    e->store->first_touched = j->touched_next;
  if (j->touched_next)
    j->touched_next->touched_prev = j->touched_prev;
}

/* An event in the column "events"; its sequence follows from its place. All
 * numbers are little-endian. */
struct stored_event {
  uint64_t job;
  int64_t time, due, due_last;
  uint32_t type, run, count, status;
  uint16_t old_state, new_state, code, reserved;
  char id[36]; /* the GUID of InstanceID */
  char padding[4];
};

static void pack(const struct cairn_event *event, struct stored_event *out)
{
  *out = (struct stored_event){
      .job = htole64(event->job),
      .time = (int64_t)htole64((uint64_t)event->time),
      .due = (int64_t)htole64((uint64_t)event->due),
      .due_last = (int64_t)htole64((uint64_t)event->due_last),
      .type = htole32(event->type),
      .run = htole32(event->run),
      .count = htole32(event->count),
      .status = htole32((uint32_t)event->status),
      .old_state = htole16(event->old_state),
      .new_state = htole16(event->new_state),
      .code = htole16(event->code),
  };
  memcpy(out->id, event->instance_id + 6, sizeof out->id);
}

static void unpack(const struct stored_event *in, uint64_t sequence,
                   struct cairn_event *out)
{
  *out = (struct cairn_event){
      .sequence = sequence,
      .job = le64toh(in->job),
      .time = (int64_t)le64toh((uint64_t)in->time),
      .due = (int64_t)le64toh((uint64_t)in->due),
      .due_last = (int64_t)le64toh((uint64_t)in->due_last),
      .type = le32toh(in->type),
      .run = le32toh(in->run),
      .count = le32toh(in->count),
      .status = (int32_t)le32toh(in->status),
      .old_state = le16toh(in->old_state),
      .new_state = le16toh(in->new_state),
      .code = le16toh(in->code),
  };
  memcpy(out->instance_id, "Cairn:", 6);
  memcpy(out->instance_id + 6, in->id, sizeof in->id);
}

static int put_row(struct cairn__rows *rows, uint64_t first,
                   const struct stored_event *events, size_t count)
{
  const int64_t row[CAIRN__EVENT_INTEGER_COUNT] = {
      [CAIRN__EVENT_first] = (int64_t)first,
      [CAIRN__EVENT_count] = (int64_t)count};
  const struct cairn__text bytes = {(const char *)events,
                                    count * sizeof *events};

  return count > 0 ? cairn__rows_put(rows, CAIRN__TABLE_EVENT, row, &bytes) : 0;
}

/* The events that are kept: one row, unless there are very many. */
static int put_events(struct cairn_engine *e, struct cairn__rows *rows)
{
  const struct cairn__events *events = &e->events;
  size_t room = (size_t)(events->pushed - events->written), n = 0;
  struct cairn__store *s = e->store;
  struct stored_event *packed;
  uint64_t first = 0;
  int result = 0;

  if (room == 0)
    return 0;
  if (room > EVENTS_A_ROW)
    room = EVENTS_A_ROW;
  if (room > s->packed_room) {
    packed = cairn__realloc(s->packed, room * sizeof *packed);
    if (!packed)
      return -1;
    s->packed = packed;
    s->packed_room = room;
  }
  packed = s->packed;
  for (uint64_t i = events->written; i < events->pushed && result == 0; i++) {
    const struct cairn_event *event = cairn__event_at(e, i);

    if (!cairn__event_is_kept(event->type))
      continue;
    if (n == room) {
      result = put_row(rows, first, packed, n);
      n = 0;
    }
    if (n == 0)
      first = event->sequence;
    pack(event, &packed[n++]);
  }
  if (result == 0)
    result = put_row(rows, first, packed, n);
  return result;
}

static int put_removals(struct cairn_engine *e, struct cairn__rows *rows)
{
  for (uint64_t i = e->events.written; i < e->events.pushed; i++) {
    const struct cairn_event *event = cairn__event_at(e, i);
    int64_t serial = (int64_t)event->job;

    if (event->type == CAIRN_EVENT_REMOVED &&
        (cairn__rows_remove(rows, CAIRN__TABLE_JOB, serial) != 0 ||
         cairn__rows_remove(rows, CAIRN__TABLE_STATE, serial) != 0 ||
         cairn__rows_remove(rows, CAIRN__TABLE_TEXT, serial) != 0))
      return -1;
  }
  return 0;
}

/* 0, with *has_any when there is something to be committed; *removed is up to
 * where events are removed with it. */
static int put_turn(struct cairn_engine *e, struct cairn__rows *rows,
                    int *has_any, uint64_t *removed)
{
  struct cairn__store *s = e->store;
  size_t before = rows->length;
  uint64_t keep_from = e->events.sequence - EVENTS_KEPT;
  int64_t counter[CAIRN__COUNTER_INTEGER_COUNT] = {1};

  for (const struct cairn__job *j = s->first_touched; j; j = j->touched_next) {
    if (cairn__record_put(e, j, rows) != 0)
      return -1;
  }
  if (put_removals(e, rows) != 0 || cairn__history_put(e, rows) != 0 ||
      put_events(e, rows) != 0)
    return -1;
  *has_any = rows->length > before;
  if (!*has_any)
    return 0;
  /* a row of many events goes when its first is old enough; now and then */
  if (e->events.sequence > EVENTS_KEPT &&
      keep_from - s->events_removed >= EVENTS_KEPT / 10) {
    if (cairn__rows_remove_to(rows, CAIRN__TABLE_EVENT, (int64_t)keep_from) !=
        0)
      return -1;
    *removed = keep_from;
  }
  counter[CAIRN__COUNTER_serial] = (int64_t)e->next_serial;
  counter[CAIRN__COUNTER_sequence] = (int64_t)e->events.sequence;
  counter[CAIRN__COUNTER_opened] = s->opened;
  counter[CAIRN__COUNTER_history] = (int64_t)e->history.last_id;
  return cairn__rows_put(rows, CAIRN__TABLE_COUNTER, counter, NULL);
}

/* What is visible when the writer has nothing left: also what needed no
 * commit. */
static void update_visible(struct cairn_engine *e, uint64_t durable,
                           uint64_t visible_then)
{
  struct cairn__store *s = e->store;

  s->seen = durable;
  if (durable == s->turn)
    e->events.visible = e->events.written;
  else if (visible_then > e->events.visible)
    e->events.visible = visible_then;
}

void cairn__store_turn(struct cairn_engine *e)
{
  struct cairn__store *s = e->store;
  uint64_t durable, visible, removed = s ? s->events_removed : 0;
  size_t before;
  int has_any = 0;

  if (!s || (!s->first_touched && e->events.written == e->events.pushed &&
             !cairn__history_is_changed(e)))
    return;
  pthread_mutex_lock(&s->lock);
  before = s->pending.length;
  if (put_turn(e, &s->pending, &has_any, &removed) != 0) {
    s->pending.length = before;
    pthread_mutex_unlock(&s->lock);
    return; /* with the next turn */
  }
  if (has_any) {
    s->pending_turn = ++s->turn;
    s->pending_visible = e->events.pushed;
    pthread_cond_signal(&s->work);
  }
  durable = s->durable;
  visible = s->visible;
  pthread_mutex_unlock(&s->lock);
  while (s->first_touched) {
    cairn__store_forget(e, s->first_touched);
    e->roster.fresh++; /* it may sleep now */
  }
  cairn__history_written(e);
  s->events_removed = removed;
  e->events.written = e->events.pushed;
  update_visible(e, durable, visible);
}

/* ---- what the writer tells ----------------------------------------------- */

static void tell_store(struct cairn_engine *e, const struct cairn_error *error)
{
  struct cairn__store *s = e->store;

  if (error->id == s->failure.id &&
      strcmp(error->message, s->failure.message) == 0)
    return;
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return; /* looked at again in the next step */
  s->failure = *error;
  cairn__event_push(e, CAIRN_EVENT_STORE, NULL)->code = (uint16_t)error->id;
}

static void tell_backup(struct cairn_engine *e)
{
  struct cairn__store *s = e->store;
  struct cairn_event *event;

  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return;
  event = cairn__event_push(e, CAIRN_EVENT_BACKUP, NULL);
  event->cookie = s->backup_cookie;
  pthread_mutex_lock(&s->lock);
  event->code = (uint16_t)s->backup_error.id;
  s->is_backup_on = s->is_backup_over = 0;
  pthread_mutex_unlock(&s->lock);
}

void cairn__store_poll(struct cairn_engine *e)
{
  struct cairn__store *s = e->store;
  struct cairn_error error;
  uint64_t counter, durable, visible;
  int is_backup_over;

  if (!s)
    return;
  if (read(s->fd, &counter, sizeof counter) < 0 && errno != EAGAIN)
    return;
  pthread_mutex_lock(&s->lock);
  durable = s->durable;
  visible = s->visible;
  error = s->error;
  is_backup_over = s->is_backup_over;
  pthread_mutex_unlock(&s->lock);
  update_visible(e, durable, visible);
  tell_store(e, &error);
  if (is_backup_over)
    tell_backup(e);
}

int cairn__store_is_pending(const struct cairn_engine *e)
{
  const struct cairn__store *s = e->store;

  return s && (s->seen < s->turn || s->first_touched ||
               e->events.written < e->events.pushed);
}

const struct cairn_error *cairn__store_error(const struct cairn_engine *e)
{
  return e->store && e->store->failure.id != CAIRN_OK ? &e->store->failure
                                                      : NULL;
}

int cairn__store_accepts(const struct cairn_engine *e, struct cairn_error *err)
{
  const struct cairn_error *error = cairn__store_error(e);

  if (!error)
    return 0;
  if (err)
    *err = *error;
  cairn__error_prefix(err, "nothing new is accepted while the store fails");
  if (err)
    err->id = CAIRN_E_STORE_FAILED;
  return -1;
}

/* ---- for everybody (cairn.h) --------------------------------------------- */

/* There is something that the next turn will commit: progress is not. */
static int has_unwritten(const struct cairn_engine *e)
{
  if (e->store->first_touched || cairn__history_is_changed(e))
    return 1;
  for (uint64_t i = e->events.written; i < e->events.pushed; i++) {
    if (cairn__event_is_kept(cairn__event_at(e, i)->type))
      return 1;
  }
  return 0;
}

uint64_t cairn_engine_turn(const cairn_engine *e)
{
  return e->store ? e->store->turn + (uint64_t)has_unwritten(e) : 0;
}

uint64_t cairn_engine_durable(const cairn_engine *e)
{
  return e->store ? e->store->seen : 0;
}

int cairn_engine_store_error(const cairn_engine *e, struct cairn_error *err)
{
  const struct cairn_error *error = cairn__store_error(e);

  cairn__error_clear(err);
  if (error && err)
    *err = *error;
  return error ? -1 : 0;
}

int cairn_engine_flush(cairn_engine *e, int64_t timeout_us,
                       struct cairn_error *err)
{
  uint64_t turn;
  int64_t end;

  cairn__error_clear(err);
  if (!e->store)
    return 0;
  cairn__engine_settle(e);
  turn = cairn_engine_turn(e);
  if (__builtin_add_overflow(
          cairn__system_clock.monotonic(&cairn__system_clock), timeout_us,
          &end) ||
      timeout_us < 0)
    end = INT64_MAX;
  for (;;) {
    int64_t left;
    struct timespec t;
    struct pollfd poller = {.fd = e->store->fd, .events = POLLIN};

    cairn__store_poll(e);
    cairn__engine_settle(e);
    if (e->store->seen >= turn)
      return 0;
    if (cairn_engine_store_error(e, err) != 0)
      return -1;
    left = end - cairn__system_clock.monotonic(&cairn__system_clock);
    if (left <= 0)
      return cairn__fail(err, CAIRN_E_TIMEOUT,
                         "flush: the store has not committed in time");
    if (left > 100000)
      left = 100000;
    t.tv_sec = 0;
    t.tv_nsec = left * 1000;
    if (ppoll(&poller, 1, &t, NULL) < 0 && errno != EINTR)
      return cairn__fail_errno(err, errno, NULL, -1, "flush");
  }
}

struct reading {
  struct request request; /* first */
  uint64_t cursor;
  struct cairn_event *out;
  size_t max, count;
  uint64_t first; /* the oldest that is kept; 0: none */
  int result;
  struct cairn_error error;
};

static int read_row(void *context, const int64_t *integers,
                    const struct cairn__text *texts, struct cairn_error *err)
{
  struct reading *r = context;
  uint64_t sequence = (uint64_t)integers[CAIRN__EVENT_first];
  size_t n = (size_t)integers[CAIRN__EVENT_count];
  struct stored_event packed;

  if (texts[CAIRN__EVENT_events].length != n * sizeof packed)
    return cairn__fail(err, CAIRN_E_STORE_FAILED,
                       "the store is damaged: the events from %llu on",
                       (unsigned long long)sequence);
  for (size_t i = 0; i < n; i++, sequence++) {
    if (sequence <= r->cursor)
      continue;
    if (r->count == r->max)
      return 1;
    memcpy(&packed, texts[CAIRN__EVENT_events].bytes + i * sizeof packed,
           sizeof packed);
    unpack(&packed, sequence, &r->out[r->count++]);
  }
  return r->count == r->max;
}

static void read_events(struct cairn__database *db, struct request *request)
{
  struct reading *r = (struct reading *)(void *)request;
  int64_t from;

  r->result =
      cairn__database_event_from(db, r->cursor, &from, &r->first, &r->error);
  if (r->result == 0 && r->first != 0)
    r->result = cairn__database_each(db, CAIRN__TABLE_EVENT, from, read_row, r,
                                     &r->error);
}

int cairn_changes(cairn_engine *e, uint64_t cursor, struct cairn_event *out,
                  size_t max, size_t *count, struct cairn_error *err)
{
  struct reading r = {.request = {.run = read_events},
                      .cursor = cursor,
                      .out = out,
                      .max = max};

  cairn__error_clear(err);
  *count = 0;
  if (!e->store)
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "changes: an engine in memory keeps none; open one with "
                       "a store");
  if (cursor > e->events.sequence)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "changes: the cursor %llu is beyond the last event, "
                       "which is %llu",
                       (unsigned long long)cursor,
                       (unsigned long long)e->events.sequence);
  if (max == 0)
    return 0;
  ask(e->store, &r.request);
  if (r.result != 0) {
    if (err)
      *err = r.error;
    return -1;
  }
  if (cursor > 0 && r.first > cursor + 1)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "changes: the events after %llu are not kept any more; "
                       "the first that is, is %llu",
                       (unsigned long long)cursor, (unsigned long long)r.first);
  *count = r.count;
  return 0;
}

int cairn_backup_start(cairn_engine *e, const char *to, uint64_t cookie,
                       struct cairn_error *err)
{
  struct cairn__store *s = e->store;
  char *copy;

  cairn__error_clear(err);
  if (!s)
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "backup: an engine in memory has no store");
  copy = cairn__strdup(to);
  if (!copy)
    return cairn__fail_memory(err);
  pthread_mutex_lock(&s->lock);
  if (s->is_backup_on) {
    pthread_mutex_unlock(&s->lock);
    cairn__free(copy);
    return cairn__fail(err, CAIRN_E_BUSY, "backup: another one is on");
  }
  s->is_backup_on = 1;
  cairn__error_clear(&s->backup_error);
  s->backup_to = copy;
  s->backup_cookie = cookie;
  pthread_cond_signal(&s->work);
  pthread_mutex_unlock(&s->lock);
  return 0;
}

int cairn_backup_error(cairn_engine *e, struct cairn_error *err)
{
  struct cairn__store *s = e->store;
  int is_well = 1;

  cairn__error_clear(err);
  if (s) {
    pthread_mutex_lock(&s->lock);
    is_well = s->backup_error.id == CAIRN_OK;
    if (err)
      *err = s->backup_error;
    pthread_mutex_unlock(&s->lock);
  }
  return is_well ? 0 : -1;
}

/* ---- open and close ------------------------------------------------------ */

static int load_counter(void *context, const int64_t *v,
                        const struct cairn__text *texts,
                        struct cairn_error *err)
{
  struct cairn_engine *e = context;

  (void)texts;
  if (v[CAIRN__COUNTER_serial] < 0 || v[CAIRN__COUNTER_sequence] < 0 ||
      v[CAIRN__COUNTER_history] < 0)
    return cairn__fail(err, CAIRN_E_STORE_FAILED,
                       "the store is damaged: its counters");
  e->store->opened = v[CAIRN__COUNTER_opened];
  e->next_serial = (uint64_t)v[CAIRN__COUNTER_serial];
  e->events.sequence = (uint64_t)v[CAIRN__COUNTER_sequence];
  e->history.last_id = (uint64_t)v[CAIRN__COUNTER_history];
  return 0;
}

static int load_record(void *context, const int64_t *v,
                       const struct cairn__text *texts, struct cairn_error *err)
{
  return cairn__history_load(context, v, texts, err);
}

/* Brings a cursor to the row of this serial, which ascend. 1: it is there; 0:
 * there is none; -1: failed. */
static int row_of(struct cairn__cursor *c, int64_t serial,
                  struct cairn_error *err)
{
  while (c->has_row && c->integers[0] < serial) {
    if (cairn__cursor_next(c, err) != 0)
      return -1;
  }
  return c->has_row && c->integers[0] == serial;
}

static int load_job(struct cairn_engine *e, struct cairn__cursor *job,
                    struct cairn__cursor *state, struct cairn__cursor *text,
                    struct cairn_error *err)
{
  int64_t serial = job->integers[0];
  struct cairn__job *j;
  int is_there;

  if (serial > (int64_t)e->next_serial)
    return cairn__fail(err, CAIRN_E_STORE_FAILED,
                       "the store is damaged: job %lld, but the last one is "
                       "%llu",
                       (long long)serial, (unsigned long long)e->next_serial);
  j = cairn__record_job(e, job->integers, job->texts, err);
  if (!j)
    return -1;
  is_there = row_of(state, serial, err);
  if (is_there < 0 || (is_there && cairn__record_state(e, j, state->integers,
                                                       state->texts, err) != 0))
    return -1;
  is_there = row_of(text, serial, err);
  if (is_there < 0 || (is_there && cairn__record_text(j, text->integers,
                                                      text->texts, err) != 0))
    return -1;
  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return cairn__fail_memory(err);
  if (cairn__job_revive(e, j, err) != 0)
    return -1;
  cairn__roster_rest_one(e, j);
  return 0;
}

/* One after the other, so that each is asleep before the next one is read. */
static int load_jobs(struct cairn_engine *e, struct cairn_error *err)
{
  struct cairn__database *db = e->store->db;
  struct cairn__cursor job = {0}, state = {0}, text = {0};
  int code = -1;

  if (cairn__cursor_open(db, CAIRN__TABLE_JOB, INT64_MIN, &job, err) == 0 &&
      cairn__cursor_open(db, CAIRN__TABLE_STATE, INT64_MIN, &state, err) == 0 &&
      cairn__cursor_open(db, CAIRN__TABLE_TEXT, INT64_MIN, &text, err) == 0) {
    code = 0;
    while (code == 0 && job.has_row) {
      code = load_job(e, &job, &state, &text, err);
      if (code == 0)
        code = cairn__cursor_next(&job, err);
    }
  }
  cairn__cursor_close(&job);
  cairn__cursor_close(&state);
  cairn__cursor_close(&text);
  return code;
}

static int load(struct cairn_engine *e, struct cairn_error *err)
{
  struct cairn__database *db = e->store->db;

  return cairn__database_each(db, CAIRN__TABLE_COUNTER, INT64_MIN, load_counter,
                              e, err) == 0 &&
                 cairn__database_each(db, CAIRN__TABLE_HISTORY, INT64_MIN,
                                      load_record, e, err) == 0 &&
                 load_jobs(e, err) == 0 && cairn__database_ready(db, err) == 0
             ? 0
             : -1;
}

static int make_parts(struct cairn__store *s, struct cairn_error *err)
{
  pthread_condattr_t attributes;
  int code;

  s->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (s->fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "eventfd");
  code = pthread_condattr_init(&attributes);
  if (code == 0) {
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, &attributes);
    pthread_cond_init(&s->answered, NULL);
    pthread_condattr_destroy(&attributes);
    s->has_locks = 1;
  }
  return code == 0 ? 0
                   : cairn__fail_errno(err, code, NULL, -1,
                                       "cannot create a condition");
}

int cairn__store_open(struct cairn_engine *e, const char *path,
                      struct cairn_error *err)
{
  struct cairn__store *s = cairn__calloc(1, sizeof *s);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

  if (!s)
    return cairn__fail_memory(err);
  s->fd = -1;
  s->last_request = &s->requests;
  s->mailbox = e->mailbox;
  cairn__error_clear(&s->error);
  cairn__error_clear(&s->failure);
  cairn__error_clear(&s->backup_error);
  e->store = s;
  if (make_parts(s, err) != 0 || cairn__database_open(path, &s->db, err) != 0 ||
      load(e, err) != 0)
    return -1; /* the engine is freed, and closes it */
  if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, s->fd, &event) != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "epoll_ctl");
  if (start(s, err) != 0)
    return -1;
  cairn__engine_settle(e);
  return 0;
}

void cairn__store_close(struct cairn_engine *e)
{
  struct cairn__store *s = e->store;

  if (!s)
    return;
  if (s->has_thread) {
    cairn__store_turn(e);
    pthread_mutex_lock(&s->lock);
    s->is_stopping = 1;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
  }
  cairn__database_close(s->db);
  while (s->first_touched)
    cairn__store_forget(e, s->first_touched);
  e->store = NULL;
  if (s->has_locks) {
    pthread_cond_destroy(&s->answered);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
  }
  if (s->fd >= 0)
    close(s->fd);
  cairn__free(s->backup_to);
  cairn__free(s->packed);
  cairn__free(s->pending.bytes);
  cairn__free(s->working.bytes);
  cairn__free(s);
}
