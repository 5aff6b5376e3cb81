/* Heaps of jobs, the directories that hold some of them back, and who is next.
 * Invariants: j->heap->items[j->heap_index] == j for every job in a heap; a
 * heap has room for every job that could ever be pushed into it, so that
 * pushing cannot fail. */
#include "queue.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "engine.h"
#include "error.h"
#include "memory.h"
#include "store.h"

#define DEFAULT_CONCURRENCY 2
#define MAX_CONCURRENCY     1000
#define MAX_NAME            64
#define DEFAULT_PRIORITY    65535
#define DEFAULT_AGEING_US   60000000
#define MAX_SECONDS         3153600000.0        /* a hundred years */
#define STRICT_US           ((__int128)1 << 80) /* more than any time */

/* ---- heaps of jobs ---- */

static int heap_reserve(struct cairn__job_heap *h, size_t need)
{
  size_t capacity = h->capacity ? h->capacity : 16;
  struct cairn__job **items;

  if (need <= h->capacity)
    return 0;
  while (capacity < need)
    capacity *= 2;
  items = cairn__realloc(h->items, capacity * sizeof(void *));
  if (!items)
    return -1;
  h->items = items;
  h->capacity = capacity;
  return 0;
}

static uint32_t priority_of(const struct cairn__job *j)
{
  return j->settings.set & CAIRN__SET_PRIORITY ? j->settings.priority
                                               : j->queue->default_priority;
}

/* When it is its turn, on a clock on which priorities are delays. Jobs of two
 * queues meet in the heap of a directory. */
static __int128 turn_of(const struct cairn__job *j)
{
  __int128 step = j->queue->ageing_us ? j->queue->ageing_us : STRICT_US;

  return j->eligible_us + step * priority_of(j);
}

static int is_before(const struct cairn__job *a, const struct cairn__job *b)
{
  __int128 ta = turn_of(a), tb = turn_of(b);

  return ta != tb ? ta < tb : a->entry.serial < b->entry.serial;
}

static void place(struct cairn__job_heap *h, size_t i, struct cairn__job *j)
{
  h->items[i] = j;
  j->heap_index = (uint32_t)i;
}

static void sift(struct cairn__job_heap *h, size_t i, struct cairn__job *j)
{
  while (i > 0 && is_before(j, h->items[(i - 1) / 2])) {
    place(h, i, h->items[(i - 1) / 2]);
    i = (i - 1) / 2;
  }
  for (;;) {
    size_t child = 2 * i + 1;

    if (child >= h->count)
      break;
    if (child + 1 < h->count && is_before(h->items[child + 1], h->items[child]))
      child++;
    if (!is_before(h->items[child], j))
      break;
    place(h, i, h->items[child]);
    i = child;
  }
  place(h, i, j);
}

static void heap_push(struct cairn__job_heap *h, struct cairn__job *j)
{
  if (h->count == h->capacity)
    abort(); /* room is made when a job is made, or wakes: a bug */
  j->heap = h;
  h->count++;
  sift(h, h->count - 1, j);
}

static void heap_remove(struct cairn__job *j)
{
  struct cairn__job_heap *h = j->heap;
  size_t i = j->heap_index;
  struct cairn__job *last = h->items[--h->count];

  j->heap = NULL;
  if (last != j)
    sift(h, i, last);
}

/* ---- directories ---- */

static uint64_t hash_of(const char *path)
{
  uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

  for (; *path; path++)
    hash = (hash ^ (unsigned char)*path) * UINT64_C(0x100000001b3);
  return hash;
}

static struct cairn__directory *directory_find(struct cairn_engine *e,
                                               const char *path, uint64_t hash)
{
  struct cairn__link *link = NULL;

  while ((link = cairn__table_find(&e->directories, hash, link)) != NULL) {
    struct cairn__directory *d = CAIRN__OF(link, struct cairn__directory, link);

    if (strcmp(d->path, path) == 0)
      return d;
  }
  return NULL;
}

static void directory_free(struct cairn_engine *e, struct cairn__directory *d)
{
  cairn__table_remove(&e->directories, &d->link);
  cairn__free(d->waiting.items);
  cairn__free(d->path);
  cairn__free(d);
}

static void directory_unref(struct cairn_engine *e, struct cairn__directory *d)
{
  if (--d->references == 0)
    directory_free(e, d);
}

void cairn__directories_free(struct cairn_engine *e)
{
  if (!e->directories.buckets)
    return;
  for (size_t i = 0; i < e->directories.size; i++) {
    while (e->directories.buckets[i])
      directory_free(e, CAIRN__OF(e->directories.buckets[i],
                                  struct cairn__directory, link));
  }
}

struct cairn__directory *cairn__directory_add_job(struct cairn_engine *e,
                                                  const char *path)
{
  uint64_t hash = hash_of(path);
  struct cairn__directory *d = directory_find(e, path, hash);

  if (!d) {
    d = cairn__calloc(1, sizeof *d);
    if (!d)
      return NULL;
    d->path = cairn__strdup(path);
    if (!d->path) {
      cairn__free(d);
      return NULL;
    }
    cairn__table_add(&e->directories, &d->link, hash);
  }
  d->references++;
  if (heap_reserve(&d->waiting, d->jobs + 1) != 0) {
    directory_unref(e, d);
    return NULL;
  }
  d->jobs++;
  return d;
}

void cairn__directory_remove_job(struct cairn_engine *e,
                                 struct cairn__directory *d)
{
  d->jobs--;
  directory_unref(e, d);
}

static void offer(struct cairn__directory *d)
{
  if (d->is_busy || d->offered || d->waiting.count == 0)
    return;
  d->offered = d->waiting.items[0];
  heap_remove(d->offered);
  heap_push(&d->offered->queue->heap, d->offered);
}

void cairn__directory_take(struct cairn__directory *d)
{
  d->is_busy = 1;
  d->references++;
}

void cairn__directory_release(struct cairn_engine *e,
                              struct cairn__directory *d)
{
  d->is_busy = 0;
  offer(d);
  directory_unref(e, d);
}

/* ---- queues ---- */

static struct cairn__queue *queue_add(struct cairn_engine *e, const char *name,
                                      uint32_t concurrency)
{
  struct cairn__queue *q = cairn__calloc(1, sizeof *q), **p = &e->queues;

  if (!q)
    return NULL;
  q->name = cairn__strdup(name);
  if (!q->name) {
    cairn__free(q);
    return NULL;
  }
  q->concurrency = concurrency;
  q->default_priority = DEFAULT_PRIORITY;
  q->ageing_us = DEFAULT_AGEING_US;
  while (*p)
    p = &(*p)->next;
  *p = q;
  return q;
}

int cairn__queue_make(struct cairn_engine *e, const char *name,
                      struct cairn__queue **out, struct cairn_error *err)
{
  *out = queue_add(e, name, DEFAULT_CONCURRENCY);
  return *out ? 0 : cairn__fail_memory(err);
}

/* Seconds as microseconds. */
static int read_seconds(const char *queue, const char *key, const json_t *value,
                        int64_t *out, struct cairn_error *err)
{
  double seconds = json_number_value(value);

  if (!json_is_number(value))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "queues: %s of \"%s\" must be a number of seconds", key,
                       queue);
  if (!(seconds >= 0 && seconds <= MAX_SECONDS))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "queues: %s of \"%s\" must be 0 to %.0f seconds", key,
                       queue, MAX_SECONDS);
  *out = (int64_t)(seconds * 1e6);
  return 0;
}

static int read_count(const char *queue, const char *key, const json_t *value,
                      json_int_t min, json_int_t max, uint32_t *out,
                      struct cairn_error *err)
{
  if (!json_is_integer(value))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "queues: %s of \"%s\" must be an integer", key, queue);
  if (json_integer_value(value) < min || json_integer_value(value) > max)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "queues: %s of \"%s\" must be %lld to %lld", key, queue,
                       (long long)min, (long long)max);
  *out = (uint32_t)json_integer_value(value);
  return 0;
}

static int read_option(struct cairn__queue *q, const char *key,
                       const json_t *value, struct cairn_error *err)
{
  static const char *const keys[] = {"concurrency", "DefaultJobPriority",
                                     "MaxJobsOnQueue", "MaxTimeOnQueue",
                                     "ageing"};
  char shown[128];

  if (strcmp(key, "concurrency") == 0)
    return read_count(q->name, key, value, 1, MAX_CONCURRENCY, &q->concurrency,
                      err);
  if (strcmp(key, "DefaultJobPriority") == 0)
    return read_count(q->name, key, value, 0, UINT32_MAX, &q->default_priority,
                      err);
  if (strcmp(key, "MaxJobsOnQueue") == 0)
    return read_count(q->name, key, value, 0, UINT32_MAX, &q->max_jobs, err);
  if (strcmp(key, "MaxTimeOnQueue") == 0)
    return read_seconds(q->name, key, value, &q->max_time_us, err);
  if (strcmp(key, "ageing") == 0)
    return read_seconds(q->name, key, value, &q->ageing_us, err);
  return cairn__fail(
      err, CAIRN_E_UNKNOWN_KEY,
      "queues: \"%s\" has the unknown key \"%s\"; did you mean \"%s\"? (valid: "
      "concurrency, DefaultJobPriority, MaxJobsOnQueue, MaxTimeOnQueue, "
      "ageing)",
      q->name, cairn__printable(key, shown, sizeof shown),
      cairn__nearest(key, keys, sizeof keys / sizeof keys[0]));
}

static int read_queue(struct cairn_engine *e, const char *name,
                      const json_t *options, struct cairn_error *err)
{
  struct cairn__queue *q = e->queues; /* "default" */
  size_t length = strlen(name);
  const char *key;
  json_t *value;

  if (length == 0 || length > MAX_NAME)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "queues: a queue's name has 1 to %d bytes, \"%s\" has "
                       "%zu",
                       MAX_NAME, name, length);
  if (!json_is_object(options))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "queues: \"%s\" must be an object such as "
                       "{\"concurrency\": 2}",
                       name);
  if (strcmp(name, q->name) != 0)
    q = queue_add(e, name, DEFAULT_CONCURRENCY);
  if (!q)
    return cairn__fail_memory(err);
  json_object_foreach((json_t *)options, key, value)
  {
    if (read_option(q, key, value, err) != 0)
      return -1;
  }
  return 0;
}

int cairn__queue_accepts(const struct cairn__queue *q, size_t more,
                         struct cairn_error *err)
{
  if (q->max_jobs == 0 || q->unfinished + more <= q->max_jobs)
    return 0;
  return cairn__fail(err, CAIRN_E_QUEUE_FULL,
                     "queue \"%s\" has %zu jobs that have not ended, "
                     "MaxJobsOnQueue is %u",
                     q->name, q->unfinished, q->max_jobs);
}

/* What a queue does now, in a word: "Degraded" while the store fails. */
static const char *status_of(const struct cairn_engine *e,
                             const struct cairn__queue *q)
{
  if (cairn__store_error(e))
    return "Degraded";
  if (e->closing >= 0)
    return "Stopped";
  return q->running >= q->concurrency ? "Busy" : "Active";
}

int cairn_queues(cairn_engine *e, char **out, struct cairn_error *err)
{
  json_t *array = json_array();

  cairn__error_clear(err);
  *out = NULL;
  for (struct cairn__queue *q = e->queues; q && array; q = q->next) {
    json_t *row = json_pack(
        "{s:s, s:s, s:i, s:I, s:I, s:f, s:f, s:i, s:i, s:i}", "Name", q->name,
        "QueueStatus", status_of(e, q), "concurrency", (int)q->concurrency,
        "DefaultJobPriority", (json_int_t)q->default_priority, "MaxJobsOnQueue",
        (json_int_t)q->max_jobs, "MaxTimeOnQueue", (double)q->max_time_us / 1e6,
        "ageing", (double)q->ageing_us / 1e6, "running", (int)q->running,
        "queued", (int)q->heap.count, "unfinished", (int)q->unfinished);

    if (json_array_append_new(array, row) != 0) {
      json_decref(array);
      array = NULL;
    }
  }
  return array ? cairn__json_give(array, out, err) : cairn__fail_memory(err);
}

int cairn__queues_open(struct cairn_engine *e, const char *json,
                       struct cairn_error *err)
{
  json_t *queues, *options;
  const char *name;
  int code = 0;

  if (!queue_add(e, "default", DEFAULT_CONCURRENCY))
    return cairn__fail_memory(err);
  if (!json)
    return 0;
  queues = cairn__json_parse("queues", json, strlen(json), err);
  if (!queues)
    return -1;
  if (!json_is_object(queues))
    code = cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "queues: must be an object of queues by name");
  else
    json_object_foreach(queues, name, options)
    {
      code = read_queue(e, name, options, err);
      if (code != 0)
        break;
    }
  json_decref(queues);
  return code;
}

void cairn__queues_free(struct cairn_engine *e)
{
  while (e->queues) {
    struct cairn__queue *q = e->queues;

    e->queues = q->next;
    cairn__free(q->heap.items);
    cairn__free(q->name);
    cairn__free(q);
  }
}

struct cairn__queue *cairn__queue_find(struct cairn_engine *e, const char *name)
{
  struct cairn__queue *q = e->queues;

  while (q && strcmp(q->name, name) != 0)
    q = q->next;
  return q;
}

int cairn__queue_add_job(struct cairn__queue *q)
{
  if (heap_reserve(&q->heap, q->jobs + 1) != 0)
    return -1;
  q->jobs++;
  return 0;
}

void cairn__queue_remove_job(struct cairn__queue *q)
{
  q->jobs--;
}

/* ---- who is next ---- */

void cairn__queue_push(struct cairn__job *j)
{
  if (!j->heap)
    heap_push(&j->queue->heap, j);
}

void cairn__queue_leave(struct cairn__job *j)
{
  struct cairn__directory *d = j->directory;

  if (!j->heap)
    return;
  heap_remove(j);
  if (d && d->offered == j) {
    d->offered = NULL;
    offer(d);
  }
}

void cairn__queue_move(struct cairn__job *j)
{
  struct cairn__directory *d = j->directory;
  struct cairn__job *offered;

  if (!j->heap)
    return;
  sift(j->heap, j->heap_index, j);
  if (!d || !d->offered || d->waiting.count == 0 ||
      !is_before(d->waiting.items[0], d->offered))
    return;
  /* The offer is the most urgent one's, who is another now. */
  offered = d->offered;
  heap_remove(offered);
  heap_push(&d->waiting, offered);
  d->offered = NULL;
  offer(d);
}

/* Of all queues with a free slot the first one in the order of the list goes;
 * a queue's slots bound how long that can go on. */
struct cairn__job *cairn__queue_next(struct cairn_engine *e)
{
  for (struct cairn__queue *q = e->queues; q; q = q->next) {
    while (q->running < q->concurrency && q->heap.count > 0) {
      struct cairn__job *j = q->heap.items[0];
      struct cairn__directory *d = j->directory;

      heap_remove(j);
      if (!d)
        return j;
      if (d->offered == j)
        d->offered = NULL;
      /* A suspended run still has its directory. */
      if (!d->is_busy || j->is_live)
        return j;
      heap_push(&d->waiting, j);
    }
  }
  return NULL;
}

int cairn__queue_is_ready(const struct cairn_engine *e)
{
  for (const struct cairn__queue *q = e->queues; q; q = q->next) {
    if (q->running < q->concurrency && q->heap.count > 0)
      return 1;
  }
  return 0;
}
