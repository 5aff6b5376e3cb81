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

#define DEFAULT_CONCURRENCY 2
#define MAX_CONCURRENCY     1000
#define MAX_NAME            64
#define DEFAULT_PRIORITY    65535

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
                                               : DEFAULT_PRIORITY;
}

static int is_before(const struct cairn__job *a, const struct cairn__job *b)
{
  uint32_t pa = priority_of(a), pb = priority_of(b);

  if (pa != pb)
    return pa < pb;
  if (a->eligible_us != b->eligible_us)
    return a->eligible_us < b->eligible_us;
  return a->by_serial.key < b->by_serial.key;
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
    abort(); /* room is made when a job is made: a bug */
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

static int read_queue(struct cairn_engine *e, const char *name,
                      const json_t *options, struct cairn_error *err)
{
  uint32_t concurrency = DEFAULT_CONCURRENCY;
  const char *key;
  json_t *value;
  size_t length = strlen(name);

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
  json_object_foreach((json_t *)options, key, value)
  {
    if (strcmp(key, "concurrency") != 0)
      return cairn__fail(err, CAIRN_E_UNKNOWN_KEY,
                         "queues: \"%s\" has the unknown key \"%s\"; valid: "
                         "concurrency",
                         name, key);
    if (!json_is_integer(value))
      return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                         "queues: concurrency of \"%s\" must be an integer",
                         name);
    if (json_integer_value(value) < 1 ||
        json_integer_value(value) > MAX_CONCURRENCY)
      return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                         "queues: concurrency of \"%s\" must be 1 to %d", name,
                         MAX_CONCURRENCY);
    concurrency = (uint32_t)json_integer_value(value);
  }
  if (strcmp(name, "default") == 0) {
    e->queues->concurrency = concurrency;
    return 0;
  }
  return queue_add(e, name, concurrency) ? 0 : cairn__fail_memory(err);
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
