/* copy.c: one pass over a source, several threads.
 *
 * A lock hands out pieces: up to 1 MiB of neighbouring blocks that hold data,
 * in ascending order, each with a ticket. A thread reads its piece, digests
 * its blocks while they are in the cache, waits until its ticket is due,
 * settles digests and places with the map and the sink, calls the next ticket
 * and writes. So map and sink see the blocks in order, whatever the threads do,
 * and the bytes of the result do not depend on timing; memory is one piece per
 * thread.
 *
 * A run that is suspended stands still wherever its threads are: before a
 * ticket is drawn they pass the gate, a source that waits for somebody else
 * passes it too, and whoever waits for a thread that may have parked there has
 * left the run meanwhile. The first error stops all. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"

#define PIECE_BLOCKS 16u
#define PIECE_BYTES  ((size_t)PIECE_BLOCKS * CAIRN__BLOCK)
#define MAX_THREADS  16u
#define GATE_EXTENTS 256u /* extents walked between two gates */

struct piece {
  uint64_t ticket;
  uint64_t first_block;
  size_t count;
  uint64_t gap_block;  /* blocks gap_block .. first_block-1 are holes */
  uint64_t data_bytes; /* of its extents that are not holes */
};

struct pipeline {
  struct cairn__copy *c;
  uint64_t blocks; /* of the disk */
  /* what is handed out next; held while the source looks for extents */
  pthread_mutex_t drawing;
  uint64_t offset;             /* extents before it were handed out */
  struct cairn__extent extent; /* holds offset, when has_extent */
  int has_extent;
  uint64_t next_block; /* blocks before it were handed out or are holes */
  uint64_t tickets;    /* drawn */
  pthread_mutex_t lock;
  pthread_cond_t turn;
  /* under lock */
  uint64_t due; /* the ticket whose turn it is */
  int is_failed;
  struct cairn_error error;
  /* only by the thread whose ticket is due */
  uint64_t settled;    /* blocks before it are in the map */
  unsigned char *page; /* of digests, to compare with */
  /* sums */
  _Atomic uint64_t read, written, zero;
};

struct worker {
  struct pipeline *p;
  unsigned reader;
  pthread_t thread;
  unsigned char *buf; /* PIECE_BYTES, aligned */
  unsigned char digests[PIECE_BLOCKS * CAIRN__DIGEST_MAX];
  uint8_t states[PIECE_BLOCKS];
  uint64_t positions[PIECE_BLOCKS];
};

static void fail_all(struct pipeline *p, const struct cairn_error *error)
{
  pthread_mutex_lock(&p->lock);
  if (!p->is_failed) {
    p->is_failed = 1;
    p->error = *error;
  }
  pthread_cond_broadcast(&p->turn);
  pthread_mutex_unlock(&p->lock);
}

/* ---- handing out --------------------------------------------------------- */

/* With `drawing` held. Extent that holds p->offset; 1 there is one, 0 the end,
 * -1 error. */
static int current_extent(struct pipeline *p, struct cairn_error *err)
{
  struct cairn__source *s = p->c->source;

  if (p->has_extent && p->offset - p->extent.offset < p->extent.length)
    return 1;
  p->has_extent = 0;
  if (p->offset >= s->length)
    return 0;
  if (s->ops->extent(s, p->offset, &p->extent, err) != 0)
    return -1;
  if (p->extent.offset != p->offset || p->extent.length == 0)
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "\"%s\": an extent that does not begin at offset %llu",
                       s->path, (unsigned long long)p->offset);
  p->has_extent = 1;
  return 1;
}

/* With `drawing` held. 1 a piece, 0 no more, -1 error. A piece grows until it
 * is full or a whole block of hole follows. */
static int draw_piece(struct pipeline *p, struct piece *piece,
                      struct cairn_error *err)
{
  uint64_t end = 0; /* of the piece, in bytes; 0 = none begun */

  memset(piece, 0, sizeof *piece);
  for (;;) {
    int found = current_extent(p, err);
    uint64_t left, stop;

    if (found < 0)
      return -1;
    if (found == 0)
      break;
    left = p->extent.offset + p->extent.length - p->offset;
    if (p->extent.is_zero) {
      /* Past the last block that the piece touches: nothing to gain. */
      if (end != 0 && p->offset + left > end)
        break;
      p->offset += left;
      continue;
    }
    if (end == 0) {
      piece->gap_block = p->next_block;
      piece->first_block = p->offset / CAIRN__BLOCK;
    }
    stop = (piece->first_block + PIECE_BLOCKS) * CAIRN__BLOCK;
    if (p->offset >= stop)
      break;
    if (left > stop - p->offset)
      left = stop - p->offset;
    p->offset += left;
    piece->data_bytes += left;
    end = (p->offset + CAIRN__BLOCK - 1) / CAIRN__BLOCK * CAIRN__BLOCK;
  }
  if (end == 0)
    return 0;
  piece->count = (size_t)(end / CAIRN__BLOCK - piece->first_block);
  piece->ticket = p->tickets++;
  p->next_block = end / CAIRN__BLOCK;
  return 1;
}

/* ---- checking against a map ---------------------------------------------- */

static int fail_mismatch(struct pipeline *p, uint64_t block,
                         struct cairn_error *err)
{
  struct cairn__source *s = p->c->source;
  uint64_t offset = block * CAIRN__BLOCK;
  char shown[512];

  cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
              "\"%s\" differs from its digest map at offset %llu (%u bytes)",
              cairn__printable(s->path, shown, sizeof shown),
              (unsigned long long)offset, CAIRN__BLOCK);
  cairn__error_set_path(err, s->path, (int64_t)offset);
  return -1;
}

/* digests NULL: all zero markers */
static int compare(struct pipeline *p, uint64_t first, uint64_t count,
                   const unsigned char *digests, struct cairn_error *err)
{
  unsigned size = p->c->digester->size;

  while (count > 0) {
    uint64_t n = CAIRN__PAGE_BLOCKS - first % CAIRN__PAGE_BLOCKS;

    if (n > count)
      n = count;
    if (cairn__map_read(p->c->map, first, n, p->page, err) != 0)
      return -1;
    for (uint64_t i = 0; i < n; i++) {
      const unsigned char *is = p->page + i * size;

      if (digests ? memcmp(is, digests + i * size, size) != 0
                  : !cairn__is_zero(is, size))
        return fail_mismatch(p, first + i, err);
    }
    first += n;
    count -= n;
    if (digests)
      digests += n * size;
  }
  return 0;
}

/* ---- a piece ------------------------------------------------------------- */

/* With the ticket due: no other thread is here. */
static int settle(struct pipeline *p, struct worker *w,
                  const struct piece *piece, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;

  if (c->map &&
      (compare(p, piece->gap_block, piece->first_block - piece->gap_block, NULL,
               err) != 0 ||
       compare(p, piece->first_block, piece->count, w->digests, err) != 0))
    return -1;
  if (c->map_writer && cairn__map_append(c->map_writer, piece->first_block,
                                         w->digests, piece->count, err) != 0)
    return -1;
  if (c->sink &&
      c->sink->ops->reserve(c->sink, piece->first_block, piece->count,
                            w->states, w->digests, w->positions, err) != 0)
    return -1;
  return 0;
}

static int await_turn(struct pipeline *p, uint64_t ticket)
{
  int is_failed, is_waiting;

  pthread_mutex_lock(&p->lock);
  is_waiting = p->due != ticket && !p->is_failed;
  if (is_waiting)
    cairn__run_leave(p->c->run);
  while (p->due != ticket && !p->is_failed)
    pthread_cond_wait(&p->turn, &p->lock);
  is_failed = p->is_failed;
  pthread_mutex_unlock(&p->lock);
  if (is_waiting)
    cairn__run_enter(p->c->run);
  return is_failed ? -1 : 0;
}

static void call_next(struct pipeline *p)
{
  pthread_mutex_lock(&p->lock);
  p->due++;
  pthread_cond_broadcast(&p->turn);
  pthread_mutex_unlock(&p->lock);
}

/* 0, or -1 with err (whose id is CAIRN_OK when another thread has failed) */
static int copy_piece(struct pipeline *p, struct worker *w,
                      const struct piece *piece, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;
  struct cairn__source *s = c->source;
  uint64_t offset = piece->first_block * CAIRN__BLOCK;
  uint64_t bytes = piece->count * CAIRN__BLOCK, zero = 0;

  if (s->ops->read(s, w->reader, w->buf, bytes, offset, err) != 0)
    return -1;
  if (bytes > s->length - offset)
    bytes = s->length - offset;
  for (size_t i = 0; i < piece->count; i++) {
    int is_zero = cairn__digest_block(c->digester, w->buf + i * CAIRN__BLOCK,
                                      w->digests + i * c->digester->size);

    w->states[i] = is_zero ? CAIRN__UNCHANGED : CAIRN__DATA;
    if (is_zero)
      zero += bytes - i * CAIRN__BLOCK < CAIRN__BLOCK ? bytes - i * CAIRN__BLOCK
                                                      : CAIRN__BLOCK;
  }
  if (await_turn(p, piece->ticket) != 0)
    return -1;
  if (settle(p, w, piece, err) != 0)
    return -1;
  call_next(p);
  if (c->sink && zero < bytes &&
      c->sink->ops->write(c->sink, piece->first_block, piece->count, w->states,
                          w->positions, w->buf, err) != 0)
    return -1;
  atomic_fetch_add(&p->read, bytes);
  atomic_fetch_add(&p->zero, zero);
  if (c->sink)
    atomic_fetch_add(&p->written, bytes - zero);
  atomic_fetch_add(&c->run->bytes_done, piece->data_bytes);
  return 0;
}

static int has_failed(struct pipeline *p)
{
  int is_failed;

  pthread_mutex_lock(&p->lock);
  is_failed = p->is_failed;
  pthread_mutex_unlock(&p->lock);
  return is_failed;
}

/* 1 a piece, 0 no more, -1 error. Whoever draws may be parked in the source. */
static int draw(struct pipeline *p, struct piece *piece,
                struct cairn_error *err)
{
  int found;

  if (pthread_mutex_trylock(&p->drawing) != 0) {
    cairn__run_leave(p->c->run);
    pthread_mutex_lock(&p->drawing);
    cairn__run_enter(p->c->run);
  }
  found = has_failed(p) ? 0 : draw_piece(p, piece, err);
  pthread_mutex_unlock(&p->drawing);
  return found;
}

/* Between enter and leave. */
static void work(struct worker *w)
{
  struct pipeline *p = w->p;
  struct cairn_error err = {.offset = -1};
  struct piece piece;

  for (;;) {
    if (cairn__run_gate(p->c->run, &err) != 0 || draw(p, &piece, &err) <= 0 ||
        copy_piece(p, w, &piece, &err) != 0)
      break;
  }
  if (err.id != CAIRN_OK)
    fail_all(p, &err);
}

static void *worker_main(void *argument)
{
  struct worker *w = argument;

  cairn__run_enter(w->p->c->run);
  work(w);
  cairn__run_leave(w->p->c->run);
  return NULL;
}

/* ---- the whole ----------------------------------------------------------- */

static unsigned choose_threads(const struct cairn__copy *c)
{
  unsigned n = c->threads ? c->threads : c->source->is_direct ? 4 : 2;

  if (n > c->source->readers)
    n = c->source->readers;
  if (n > MAX_THREADS)
    n = MAX_THREADS;
  return n ? n : 1;
}

/* The calling thread is worker 0; fewer threads than wanted are enough. */
static void run_workers(struct pipeline *p, struct worker *workers,
                        unsigned count)
{
  sigset_t all, old;
  unsigned started = 1;

  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  while (started < count && pthread_create(&workers[started].thread, NULL,
                                           worker_main, &workers[started]) == 0)
    started++;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  work(&workers[0]);
  cairn__run_leave(p->c->run);
  for (unsigned i = 1; i < started; i++)
    pthread_join(workers[i].thread, NULL);
  cairn__run_enter(p->c->run);
}

static struct worker *workers_new(struct pipeline *p, unsigned *count)
{
  struct worker *workers = cairn__calloc(*count, sizeof *workers);

  if (!workers)
    return NULL;
  for (unsigned i = 0; i < *count; i++) {
    workers[i].p = p;
    workers[i].reader = i;
    workers[i].buf = cairn__malloc_aligned(PIECE_BYTES);
    if (workers[i].buf)
      continue;
    if (i == 0) {
      cairn__free(workers);
      return NULL;
    }
    *count = i;
  }
  return workers;
}

static int finish(struct pipeline *p, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;

  if (p->is_failed) {
    if (err)
      *err = p->error;
    return -1;
  }
  /* What follows the last piece is hole. */
  if (c->map &&
      compare(p, p->next_block, p->blocks - p->next_block, NULL, err) != 0)
    return -1;
  c->bytes_read = atomic_load(&p->read);
  c->bytes_written = atomic_load(&p->written);
  c->bytes_zero = atomic_load(&p->zero);
  c->bytes_skipped = c->source->length - c->bytes_read;
  return 0;
}

int cairn__copy_run(struct cairn__copy *c, struct cairn_error *err)
{
  struct pipeline p = {.c = c, .error = {.offset = -1}};
  unsigned count = choose_threads(c);
  struct worker *workers;
  int result = -1;

  c->bytes_read = c->bytes_written = c->bytes_zero = c->bytes_skipped = 0;
  p.blocks = c->source->length / CAIRN__BLOCK +
             (c->source->length % CAIRN__BLOCK != 0);
  if (c->map) {
    p.page = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * c->digester->size);
    if (!p.page)
      return cairn__fail_memory(err);
  }
  workers = workers_new(&p, &count);
  if (!workers) {
    cairn__free(p.page);
    return cairn__fail_memory(err);
  }
  pthread_mutex_init(&p.drawing, NULL);
  pthread_mutex_init(&p.lock, NULL);
  pthread_cond_init(&p.turn, NULL);
  run_workers(&p, workers, count);
  result = finish(&p, err);
  pthread_cond_destroy(&p.turn);
  pthread_mutex_destroy(&p.lock);
  pthread_mutex_destroy(&p.drawing);
  for (unsigned i = 0; i < count; i++)
    cairn__free_aligned(workers[i].buf);
  cairn__free(workers);
  cairn__free(p.page);
  return result;
}

int cairn__source_data_bytes(struct cairn__source *s, struct cairn__run *run,
                             uint64_t *bytes, struct cairn_error *err)
{
  uint64_t offset = 0, sum = 0;
  struct cairn__extent e;

  for (unsigned i = 1; offset < s->length; i++) {
    if (run && i % GATE_EXTENTS == 0 && cairn__run_gate(run, err) != 0)
      return -1;
    if (s->ops->extent(s, offset, &e, err) != 0)
      return -1;
    if (!e.is_zero)
      sum += e.length;
    offset = e.offset + e.length;
  }
  *bytes = sum;
  return 0;
}
