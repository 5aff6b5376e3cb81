/* copy.c: one pass over a source, several threads.
 *
 * A lock hands out pieces: up to 512 KiB of neighbouring blocks that hold data,
 * in ascending order, each with a ticket and with the runs of blocks before it
 * that need no reading (holes, and what did not change since the base). A
 * thread reads its piece, digests its blocks while they are in the cache, waits
 * until its ticket is due, settles digests and places with the maps and the
 * sink, calls the next ticket and writes. So map and sink see the blocks in
 * order, whatever the threads do, and the bytes of the result do not depend on
 * timing; memory is one piece per thread.
 *
 * A run that takes up an earlier one asks the journal about every block of its
 * piece. What the image holds of this very content is read there instead of in
 * the source, and has the journal's digest or is not believed. Other blocks are
 * read from the source, and those that the journal has in the place that they
 * get now are compared with what lies there. Either way the pieces, tickets and
 * places are those of a run that was never interrupted.
 *
 * A run that is suspended stands still wherever its threads are: before a
 * ticket is drawn they pass the gate, a source that waits for somebody else
 * passes it too, and whoever waits for a thread that may have parked there has
 * left the run meanwhile. The first error stops all. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"

#define PIECE_BLOCKS   8u
#define PIECE_BYTES    ((size_t)PIECE_BLOCKS * CAIRN__BLOCK)
#define GATE_STRETCHES 256u /* walked between two gates */
#define RUNS_MAX       16u

enum stretch_kind {
  STRETCH_DATA, /* to be read */
  STRETCH_HOLE, /* reads as zeros */
  STRETCH_CLEAN /* as in the base */
};

/* Neighbouring blocks of one kind. */
struct stretch {
  int kind;
  uint64_t first, count;
  uint64_t data_bytes; /* DATA: of its extents that are not holes */
};

struct piece {
  uint64_t ticket;
  struct stretch runs[RUNS_MAX]; /* HOLE and CLEAN, ascending */
  size_t run_count;
  uint64_t first_block; /* behind the runs, when count > 0 */
  size_t count;
  uint64_t data_bytes;
};

/* Goes through a disk block by block. */
struct walk {
  struct cairn__source *source;
  const struct cairn__changes *changes; /* or NULL */
  uint64_t blocks;
  struct cairn__extent extent; /* the last one asked for */
  int has_extent;
};

struct pipeline {
  struct cairn__copy *c;
  uint64_t blocks; /* of the disk */
  /* what is handed out next; held while the source looks for extents */
  pthread_mutex_t drawing;
  struct walk walk;
  struct stretch stretch; /* what is left of the last one */
  uint64_t next_block;    /* blocks before it were handed out */
  uint64_t tickets;       /* drawn */
  pthread_mutex_t lock;
  pthread_cond_t turn;
  /* under lock */
  uint64_t due; /* the ticket whose turn it is */
  int is_failed;
  struct cairn_error error;
  /* only by the thread whose ticket is due; a page each, or NULL */
  unsigned char *expected; /* digests of c->map */
  unsigned char *based;    /* digests of c->base */
  uint8_t *states;
  uint64_t *positions;
  /* sums */
  _Atomic uint64_t read, written, zero, changed, refuted, resumed;
};

struct worker {
  struct pipeline *p;
  unsigned reader;
  unsigned char *buf; /* PIECE_BYTES, aligned */
  unsigned char digests[PIECE_BLOCKS * CAIRN__DIGEST_MAX];
  unsigned char based[PIECE_BLOCKS * CAIRN__DIGEST_MAX];
  uint8_t states[PIECE_BLOCKS];
  uint64_t positions[PIECE_BLOCKS];
  /* of a resumed run */
  unsigned char *back; /* PIECE_BYTES, aligned: what lies in the image */
  struct cairn__journal_slot slots[PIECE_BLOCKS];
  uint8_t is_taken[PIECE_BLOCKS]; /* came from the image */
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

/* ---- walking ------------------------------------------------------------- */

/* The extent that holds `offset` (< length), of which no more than `most` bytes
 * are wanted. */
static int extent_at(struct walk *w, uint64_t offset, uint64_t most,
                     struct cairn_error *err)
{
  struct cairn__source *s = w->source;

  if (w->has_extent && offset >= w->extent.offset &&
      offset - w->extent.offset < w->extent.length)
    return 0;
  w->has_extent = 0;
  if (s->ops->extent(s, offset, most, &w->extent, err) != 0)
    return -1;
  if (w->extent.offset != offset || w->extent.length == 0)
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "\"%s\": an extent that does not begin at offset %llu",
                       s->path, (unsigned long long)offset);
  w->has_extent = 1;
  return 0;
}

/* The end of a block, or that of the disk within it. */
static uint64_t end_of_block(const struct walk *w, uint64_t block)
{
  uint64_t start = block * CAIRN__BLOCK, left = w->source->length - start;

  return start + (left < CAIRN__BLOCK ? left : CAIRN__BLOCK);
}

/* A block that an extent begins or ends in. */
static int walk_mixed(struct walk *w, uint64_t block, struct stretch *out,
                      struct cairn_error *err)
{
  uint64_t offset = block * CAIRN__BLOCK, end = end_of_block(w, block);

  out->count = 1;
  out->data_bytes = 0;
  while (offset < end) {
    uint64_t stop;

    if (extent_at(w, offset, end - offset, err) != 0)
      return -1;
    stop = w->extent.offset + w->extent.length;
    if (stop > end)
      stop = end;
    if (!w->extent.is_zero)
      out->data_bytes += stop - offset;
    offset = stop;
  }
  out->kind = out->data_bytes > 0 ? STRETCH_DATA : STRETCH_HOLE;
  return 0;
}

/* The stretch that begins at `block` (< blocks). */
static int walk_next(struct walk *w, uint64_t block, struct stretch *out,
                     struct cairn_error *err)
{
  uint64_t limit = w->blocks - block, offset = block * CAIRN__BLOCK, end, n;
  int is_set;

  *out = (struct stretch){.first = block};
  if (w->changes) {
    limit = cairn__changes_run(w->changes, block, &is_set);
    if (!is_set) {
      out->kind = STRETCH_CLEAN;
      out->count = limit;
      return 0;
    }
  }
  if (extent_at(w, offset, w->changes ? limit * CAIRN__BLOCK : UINT64_MAX,
                err) != 0)
    return -1;
  end = w->extent.offset + w->extent.length;
  n = end >= w->source->length ? limit : (end - offset) / CAIRN__BLOCK;
  if (n > limit)
    n = limit;
  if (n == 0)
    return walk_mixed(w, block, out, err);
  out->count = n;
  out->kind = w->extent.is_zero ? STRETCH_HOLE : STRETCH_DATA;
  if (out->kind == STRETCH_DATA)
    out->data_bytes = end_of_block(w, block + n - 1) - offset;
  return 0;
}

/* ---- handing out --------------------------------------------------------- */

/* Holes of a full are nobody's business: neither map nor image mentions them.
 */
static int is_told(const struct cairn__copy *c)
{
  return c->map || c->base;
}

/* Takes up to `most` blocks off the stretch at hand. */
static void take(struct pipeline *p, uint64_t most, struct stretch *out)
{
  struct stretch *s = &p->stretch;

  *out = *s;
  if (out->count > most) {
    out->count = most;
    out->data_bytes = most * CAIRN__BLOCK;
  }
  s->first += out->count;
  s->count -= out->count;
  s->data_bytes -= s->kind == STRETCH_DATA ? out->data_bytes : 0;
  p->next_block = s->first;
}

/* With `drawing` held. 1 a piece, 0 no more, -1 error. A piece is full with its
 * runs, or with its data, or when something else follows the data. */
static int draw_piece(struct pipeline *p, struct piece *piece,
                      struct cairn_error *err)
{
  struct stretch part;

  piece->first_block = 0;
  piece->count = piece->run_count = 0;
  piece->data_bytes = 0;
  while (p->next_block < p->blocks) {
    if (p->stretch.count == 0 &&
        walk_next(&p->walk, p->next_block, &p->stretch, err) != 0)
      return -1;
    if (p->stretch.kind != STRETCH_DATA) {
      if (piece->count > 0 || piece->run_count == RUNS_MAX)
        break;
      take(p, UINT64_MAX, &part);
      if (is_told(p->c))
        piece->runs[piece->run_count++] = part;
      continue;
    }
    if (piece->count == PIECE_BLOCKS)
      break;
    take(p, PIECE_BLOCKS - piece->count, &part);
    if (piece->count == 0)
      piece->first_block = part.first;
    piece->count += (size_t)part.count;
    piece->data_bytes += part.data_bytes;
  }
  if (piece->count == 0 && piece->run_count == 0)
    return 0;
  piece->ticket = p->tickets++;
  return 1;
}

/* ---- against the maps ---------------------------------------------------- */

/* Digests of a map, markers beyond its end. */
static int load(struct cairn__map *map, unsigned size, uint64_t first,
                uint64_t count, unsigned char *out, struct cairn_error *err)
{
  uint64_t blocks = cairn__map_get_info(map)->blocks;

  while (count > 0) {
    uint64_t n = CAIRN__PAGE_BLOCKS - first % CAIRN__PAGE_BLOCKS;

    if (n > count)
      n = count;
    if (first < blocks && n > blocks - first)
      n = blocks - first;
    if (first >= blocks)
      memset(out, 0, (size_t)n * size);
    else if (cairn__map_read(map, first, n, out, err) != 0)
      return -1;
    first += n;
    count -= n;
    out += n * size;
  }
  return 0;
}

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

/* count <= a page; digests NULL: all zero markers */
static int compare(struct pipeline *p, uint64_t first, uint64_t count,
                   const unsigned char *digests, struct cairn_error *err)
{
  unsigned size = p->c->digester->size;

  if (load(p->c->map, size, first, count, p->expected, err) != 0)
    return -1;
  for (uint64_t i = 0; i < count; i++) {
    const unsigned char *is = p->expected + i * size;

    if (digests ? memcmp(is, digests + i * size, size) != 0
                : !cairn__is_zero(is, size))
      return fail_mismatch(p, first + i, err);
  }
  return 0;
}

/* Counts a block that has changed. */
static void count_changed(struct pipeline *p, uint64_t block)
{
  const struct cairn__changes *claims = p->c->claims;

  atomic_fetch_add(&p->changed, 1);
  if (claims && !cairn__changes_is_set(claims, block))
    atomic_fetch_add(&p->refuted, 1);
}

/* At most a page of holes: what the base has there is zero now. */
static int settle_holes(struct pipeline *p, uint64_t first, uint64_t count,
                        struct cairn_error *err)
{
  struct cairn__copy *c = p->c;
  unsigned size = c->digester->size;
  uint64_t zeroed = 0;

  if (c->map && compare(p, first, count, NULL, err) != 0)
    return -1;
  if (!c->base)
    return 0;
  if (load(c->base, size, first, count, p->based, err) != 0)
    return -1;
  for (uint64_t i = 0; i < count; i++) {
    p->states[i] = cairn__is_zero(p->based + i * size, size) ? CAIRN__UNCHANGED
                                                             : CAIRN__ZERO;
    if (p->states[i] != CAIRN__ZERO)
      continue;
    zeroed++;
    count_changed(p, first + i);
  }
  if (zeroed == 0 || !c->sink)
    return 0;
  return c->sink->ops->reserve(c->sink, first, (size_t)count, p->states,
                               p->based, p->positions, err);
}

/* At most a page that is as in the base. */
static int settle_clean(struct pipeline *p, uint64_t first, uint64_t count,
                        struct cairn_error *err)
{
  struct cairn__copy *c = p->c;

  if (load(c->base, c->digester->size, first, count, p->based, err) != 0 ||
      (c->map && compare(p, first, count, p->based, err) != 0))
    return -1;
  if (c->map_writer && !cairn__is_zero(p->based, count * c->digester->size))
    return cairn__map_append(c->map_writer, first, p->based, count, err);
  return 0;
}

static int settle_run(struct pipeline *p, const struct stretch *run,
                      struct cairn_error *err)
{
  uint64_t first = run->first, end = first + run->count;

  while (first < end) {
    uint64_t n = CAIRN__PAGE_BLOCKS - first % CAIRN__PAGE_BLOCKS;

    if (n > end - first)
      n = end - first;
    if ((run->kind == STRETCH_CLEAN ? settle_clean : settle_holes)(p, first, n,
                                                                   err) != 0)
      return -1;
    first += n;
  }
  return 0;
}

/* What has the base's digest is not written. */
static int settle_based(struct pipeline *p, struct worker *w,
                        const struct piece *piece, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;
  unsigned size = c->digester->size;

  if (load(c->base, size, piece->first_block, piece->count, w->based, err) != 0)
    return -1;
  for (size_t i = 0; i < piece->count; i++) {
    if (memcmp(w->based + i * size, w->digests + i * size, size) == 0)
      w->states[i] = CAIRN__UNCHANGED;
    else if (w->states[i] == CAIRN__UNCHANGED)
      w->states[i] = CAIRN__ZERO;
  }
  return 0;
}

/* ---- a piece ------------------------------------------------------------- */

/* With the ticket due: no other thread is here. */
static int settle(struct pipeline *p, struct worker *w,
                  const struct piece *piece, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;

  for (size_t i = 0; i < piece->run_count; i++) {
    if (settle_run(p, &piece->runs[i], err) != 0)
      return -1;
  }
  if (piece->count == 0)
    return 0;
  if ((c->map &&
       compare(p, piece->first_block, piece->count, w->digests, err) != 0) ||
      (c->base && settle_based(p, w, piece, err) != 0))
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

static uint64_t least(uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* Blocks from `first` on that lie side by side in the image, as far as `wanted`
 * says yes. */
static size_t neighbours(const struct worker *w, size_t first, size_t count,
                         int (*wanted)(const struct worker *w, size_t i))
{
  size_t n = 0;

  while (first + n < count && wanted(w, first + n) &&
         w->slots[first + n].position ==
             w->slots[first].position + n * CAIRN__BLOCK)
    n++;
  return n;
}

static int is_vouched(const struct worker *w, size_t i)
{
  return w->slots[i].is_vouched;
}

/* Reads from the image what the source holds, too. */
static void take_blocks(struct pipeline *p, struct worker *w,
                        const struct piece *piece)
{
  struct cairn__copy *c = p->c;
  unsigned size = c->digester->size;

  for (size_t i = 0, n; i < piece->count; i += n ? n : 1) {
    unsigned char *buf = w->buf + i * CAIRN__BLOCK;

    n = neighbours(w, i, piece->count, is_vouched);
    if (n == 0 || c->sink->ops->read(c->sink, w->slots[i].position,
                                     n * CAIRN__BLOCK, buf) != 0)
      continue;
    for (size_t k = i; k < i + n; k++) {
      unsigned char *digest = w->digests + k * size;

      w->is_taken[k] = !cairn__digest_block(
                           c->digester, w->buf + k * CAIRN__BLOCK, digest) &&
                       memcmp(digest, w->slots[k].digest, size) == 0;
    }
  }
}

/* Reads and digests blocks of a piece from the source. */
static int read_blocks(struct pipeline *p, struct worker *w,
                       const struct piece *piece, size_t at, size_t count,
                       struct cairn_error *err)
{
  struct cairn__copy *c = p->c;
  struct cairn__source *s = c->source;
  uint64_t offset = (piece->first_block + at) * CAIRN__BLOCK;
  uint64_t left = s->length - offset, zero = 0;

  if (s->ops->read(s, w->reader, w->buf + at * CAIRN__BLOCK,
                   count * CAIRN__BLOCK, offset, err) != 0)
    return -1;
  for (size_t i = at; i < at + count; i++) {
    int is_zero = cairn__digest_block(c->digester, w->buf + i * CAIRN__BLOCK,
                                      w->digests + i * c->digester->size);

    w->states[i] = is_zero ? CAIRN__UNCHANGED : CAIRN__DATA;
    if (is_zero)
      zero += least(CAIRN__BLOCK, left - (i - at) * CAIRN__BLOCK);
  }
  atomic_fetch_add(&p->read, least(left, count * CAIRN__BLOCK));
  atomic_fetch_add(&p->zero, zero);
  return 0;
}

/* Fills a piece: DATA, or UNCHANGED for blocks of zeros. */
static int read_piece(struct pipeline *p, struct worker *w,
                      const struct piece *piece, struct cairn_error *err)
{
  if (!p->c->is_resumed)
    return read_blocks(p, w, piece, 0, piece->count, err);
  memset(w->is_taken, 0, sizeof w->is_taken);
  cairn__journal_read(p->c->journal, piece->first_block, piece->count,
                      w->slots);
  take_blocks(p, w, piece);
  for (size_t i = 0, n; i < piece->count; i += n) {
    for (n = 1; i + n < piece->count && w->is_taken[i + n] == w->is_taken[i];)
      n++;
    if (w->is_taken[i])
      memset(w->states + i, CAIRN__DATA, n);
    else if (read_blocks(p, w, piece, i, n, err) != 0)
      return -1;
  }
  return 0;
}

/* What the journal has of a block is what it is to be. */
static int is_in_place(const struct worker *w, size_t i)
{
  return w->states[i] == CAIRN__DATA && w->slots[i].is_written &&
         w->slots[i].position == w->positions[i] &&
         memcmp(w->slots[i].digest, w->digests + i * w->p->c->digester->size,
                w->p->c->digester->size) == 0;
}

static int is_to_compare(const struct worker *w, size_t i)
{
  return is_in_place(w, i) && !w->is_taken[i];
}

/* Finds the blocks that need not be written, byte by byte. */
static void keep_blocks(struct pipeline *p, struct worker *w,
                        const struct piece *piece)
{
  struct cairn__copy *c = p->c;
  uint8_t is_kept[PIECE_BLOCKS];

  for (size_t i = 0; i < piece->count; i++)
    is_kept[i] = w->is_taken[i] && is_in_place(w, i);
  for (size_t i = 0, n; i < piece->count; i += n ? n : 1) {
    n = neighbours(w, i, piece->count, is_to_compare);
    if (n == 0 ||
        c->sink->ops->read(c->sink, w->slots[i].position, n * CAIRN__BLOCK,
                           w->back + i * CAIRN__BLOCK) != 0)
      continue;
    for (size_t k = i; k < i + n; k++)
      is_kept[k] = memcmp(w->buf + k * CAIRN__BLOCK, w->back + k * CAIRN__BLOCK,
                          CAIRN__BLOCK) == 0;
  }
  for (size_t i = 0; i < piece->count; i++) {
    if (is_kept[i])
      w->states[i] = CAIRN__KEPT;
  }
}

static int write_piece(struct pipeline *p, struct worker *w,
                       const struct piece *piece, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;
  uint64_t left = c->source->length - piece->first_block * CAIRN__BLOCK;
  uint64_t bytes = 0, kept = 0;

  if (c->sink && c->is_resumed)
    keep_blocks(p, w, piece);
  for (size_t i = 0; i < piece->count; i++) {
    uint64_t n = least(CAIRN__BLOCK, left - i * CAIRN__BLOCK);

    if (w->states[i] != CAIRN__UNCHANGED)
      count_changed(p, piece->first_block + i);
    if (w->states[i] == CAIRN__DATA)
      bytes += n;
    if (w->states[i] == CAIRN__KEPT)
      kept += n;
  }
  if (!c->sink || bytes + kept == 0)
    return 0;
  atomic_fetch_add(&p->written, bytes);
  atomic_fetch_add(&p->resumed, kept);
  if (c->sink->ops->write(c->sink, piece->first_block, piece->count, w->states,
                          w->positions, w->buf, err) != 0)
    return -1;
  if (c->journal)
    cairn__journal_write(c->journal, piece->first_block, piece->count,
                         w->states, w->positions, w->digests);
  return 0;
}

/* 0, or -1 with err (whose id is CAIRN_OK when another thread has failed) */
static int copy_piece(struct pipeline *p, struct worker *w,
                      const struct piece *piece, struct cairn_error *err)
{
  if ((piece->count > 0 && read_piece(p, w, piece, err) != 0) ||
      await_turn(p, piece->ticket) != 0 || settle(p, w, piece, err) != 0)
    return -1;
  call_next(p);
  if (piece->count > 0 && write_piece(p, w, piece, err) != 0)
    return -1;
  if (!p->c->is_uncounted)
    atomic_fetch_add(&p->c->run->bytes_done, piece->data_bytes);
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

static void worker_main(void *argument, unsigned i)
{
  struct worker *workers = argument;

  work(&workers[i]);
}

/* ---- the whole ----------------------------------------------------------- */

static unsigned choose_threads(const struct cairn__copy *c)
{
  unsigned n = c->threads ? c->threads : c->source->is_direct ? 4 : 2;

  if (n > c->source->readers)
    n = c->source->readers;
  if (n > CAIRN__TOGETHER_MAX)
    n = CAIRN__TOGETHER_MAX;
  return n ? n : 1;
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
    if (p->c->is_resumed)
      workers[i].back = cairn__malloc_aligned(PIECE_BYTES);
    if (workers[i].buf && (workers[i].back || !p->c->is_resumed))
      continue;
    cairn__free_aligned(workers[i].buf);
    cairn__free_aligned(workers[i].back);
    if (i == 0) {
      cairn__free(workers);
      return NULL;
    }
    *count = i;
  }
  return workers;
}

static void workers_free(struct worker *workers, unsigned count)
{
  for (unsigned i = 0; i < count; i++) {
    cairn__free_aligned(workers[i].buf);
    cairn__free_aligned(workers[i].back);
  }
  cairn__free(workers);
}

static int finish(struct pipeline *p, struct cairn_error *err)
{
  struct cairn__copy *c = p->c;

  c->bytes_read = atomic_load(&p->read);
  c->bytes_written = atomic_load(&p->written);
  c->bytes_zero = atomic_load(&p->zero);
  c->bytes_resumed = atomic_load(&p->resumed);
  c->bytes_skipped = c->source->length - c->bytes_read;
  c->blocks_changed = atomic_load(&p->changed);
  c->blocks_refuted = atomic_load(&p->refuted);
  if (p->is_failed && err)
    *err = p->error;
  return p->is_failed ? -1 : 0;
}

static void free_pages(struct pipeline *p)
{
  cairn__free(p->expected);
  cairn__free(p->based);
  cairn__free(p->states);
  cairn__free(p->positions);
}

static int make_pages(struct pipeline *p, struct cairn_error *err)
{
  const struct cairn__copy *c = p->c;
  size_t page = (size_t)CAIRN__PAGE_BLOCKS * c->digester->size;

  if (c->map)
    p->expected = cairn__malloc(page);
  if (c->base) {
    p->based = cairn__malloc(page);
    p->states = cairn__malloc(CAIRN__PAGE_BLOCKS);
    p->positions = cairn__calloc(CAIRN__PAGE_BLOCKS, sizeof *p->positions);
  }
  if ((!c->map || p->expected) &&
      (!c->base || (p->based && p->states && p->positions)))
    return 0;
  free_pages(p);
  return cairn__fail_memory(err);
}

static uint64_t blocks_of(const struct cairn__source *s)
{
  return s->length / CAIRN__BLOCK + (s->length % CAIRN__BLOCK != 0);
}

int cairn__copy_run(struct cairn__copy *c, struct cairn_error *err)
{
  struct pipeline p = {.c = c, .error = {.offset = -1}};
  unsigned count = choose_threads(c);
  struct worker *workers;
  int result = -1;

  c->bytes_read = c->bytes_written = c->bytes_zero = c->bytes_skipped = 0;
  c->bytes_resumed = c->blocks_changed = c->blocks_refuted = 0;
  p.blocks = blocks_of(c->source);
  p.walk = (struct walk){
      .source = c->source, .changes = c->changes, .blocks = p.blocks};
  if (make_pages(&p, err) != 0)
    return -1;
  workers = workers_new(&p, &count);
  if (!workers) {
    free_pages(&p);
    return cairn__fail_memory(err);
  }
  pthread_mutex_init(&p.drawing, NULL);
  pthread_mutex_init(&p.lock, NULL);
  pthread_cond_init(&p.turn, NULL);
  cairn__run_together(c->run, count, worker_main, workers);
  result = finish(&p, err);
  pthread_cond_destroy(&p.turn);
  pthread_mutex_destroy(&p.lock);
  pthread_mutex_destroy(&p.drawing);
  workers_free(workers, count);
  free_pages(&p);
  return result;
}

int cairn__source_data_bytes(struct cairn__source *s,
                             const struct cairn__changes *changes,
                             struct cairn__run *run, uint64_t *bytes,
                             struct cairn_error *err)
{
  struct walk w = {.source = s, .changes = changes, .blocks = blocks_of(s)};
  uint64_t block = 0, sum = 0;
  struct stretch stretch;

  for (unsigned i = 1; block < w.blocks; i++) {
    if (run && i % GATE_STRETCHES == 0 && cairn__run_gate(run, err) != 0)
      return -1;
    if (walk_next(&w, block, &stretch, err) != 0)
      return -1;
    sum += stretch.data_bytes;
    block += stretch.count;
  }
  *bytes = sum;
  return 0;
}
