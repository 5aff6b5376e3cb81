/* The images of an export: written through the sinks by several threads in
 * random order, judged by qemu-img, and read back by our own reader, whole and
 * damaged. */
#include "scratch.h"

#include <pthread.h>
#include <stdarg.h>

#include <jansson.h>

#include "error.h"
#include "export/image.h"
#include "export/qcow2.h"
#include "memory.h"
#include "sweep.h"

#define BLOCK CAIRN__BLOCK
#define MIB   (UINT64_C(1) << 20)
#define TIB   (UINT64_C(1) << 40)

static const struct cairn_io *const io = &cairn__system_io;
static struct cairn__digester digester;
static int has_qemu;

static int setup(void **state)
{
  unsigned char secret[CAIRN__SECRET_SIZE];

  random_fill(42, secret, sizeof secret);
  cairn__digester_init(&digester, CAIRN__XXH3_128, secret);
  if (scratch_open(state) != 0) {
    return -1;
  }
  has_qemu = has_program("qemu-img");
  if (!has_qemu) {
    print_message("qemu-img is missing: its judgements are left out\n");
  }
  return 0;
}

/* ---- model ------------------------------------------------------------------
 */

struct item { /* a block that is in the image */
  uint64_t block, seed;
  uint8_t state; /* CAIRN__DATA or CAIRN__ZERO */
};

struct disk { /* what one image holds; items ascend */
  uint64_t length, virtual_size, blocks;
  struct item *items;
  size_t count;
};

static struct disk disk_new(uint64_t length)
{
  struct disk d = {0};

  d.length = length;
  d.virtual_size = (length + 511) / 512 * 512;
  d.blocks = (d.virtual_size + BLOCK - 1) / BLOCK;
  return d;
}

static void disk_add(struct disk *d, uint64_t block, uint8_t state)
{
  assert_true(block < d->blocks);
  assert_true(d->count == 0 || d->items[d->count - 1].block < block);
  if ((d->count & (d->count - 1)) == 0) {
    d->items = realloc(d->items, 2 * (d->count + 1) * sizeof *d->items);
    assert_non_null(d->items);
  }
  d->items[d->count].block = block;
  d->items[d->count].state = state;
  d->items[d->count++].seed = random_next();
}

static void disk_free(struct disk *d)
{
  free(d->items);
  memset(d, 0, sizeof *d);
}

/* Runs of data, zeros and nothing. */
static struct disk disk_random(uint64_t length)
{
  struct disk d = disk_new(length);
  uint64_t block = 0;

  while (block < d.blocks) {
    uint64_t n = 1 + random_below(random_below(4) ? 4 : 40);
    unsigned state = (unsigned)random_below(3);

    for (; n > 0 && block < d.blocks; n--, block++) {
      if (state != CAIRN__UNCHANGED) {
        disk_add(&d, block, (uint8_t)state);
      }
    }
  }
  return d;
}

static const struct item *disk_find(const struct disk *d, uint64_t block)
{
  size_t low = 0, high = d->count;

  while (low < high) {
    size_t middle = (low + high) / 2;

    if (d->items[middle].block < block) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < d->count && d->items[low].block == block ? &d->items[low] : NULL;
}

/* A block's bytes, zero beyond the disk's length. */
static void item_bytes(const struct disk *d, const struct item *item,
                       unsigned char *out)
{
  uint64_t offset = item->block * BLOCK, left = d->length - offset;

  if (offset >= d->length || item->state != CAIRN__DATA) {
    memset(out, 0, BLOCK);
    return;
  }
  random_fill(item->seed, out, BLOCK);
  if (left < BLOCK) {
    memset(out + left, 0, BLOCK - (size_t)left);
  }
}

/* What a guest sees of a block through a chain, bottom first: a layer that
 * ends hides what is below its end. */
static void chain_bytes(const struct disk *chain, size_t layers, uint64_t block,
                        unsigned char *out)
{
  uint64_t limit = UINT64_MAX, offset = block * BLOCK;
  size_t k = layers;

  while (k-- > 0) {
    const struct item *item;

    limit = chain[k].virtual_size < limit ? chain[k].virtual_size : limit;
    item = disk_find(&chain[k], block);
    if (item != NULL) {
      item_bytes(&chain[k], item, out);
      if (offset >= limit) {
        memset(out, 0, BLOCK);
      } else if (limit - offset < BLOCK) {
        memset(out + (limit - offset), 0, BLOCK - (size_t)(limit - offset));
      }
      return;
    }
  }
  memset(out, 0, BLOCK);
}

/* The chain's content as a sparse raw file of the top's virtual size. */
static void write_expected(const char *name, const struct disk *chain,
                           size_t layers)
{
  const struct disk *top = &chain[layers - 1];
  unsigned char *block = malloc(BLOCK);
  int fd =
      openat(scratch_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  size_t k, i;

  assert_true(fd >= 0);
  assert_int_equal(ftruncate(fd, (off_t)top->virtual_size), 0);
  for (k = 0; k < layers; k++) {
    for (i = 0; i < chain[k].count; i++) {
      uint64_t offset = chain[k].items[i].block * BLOCK;
      size_t n = BLOCK;

      if (offset >= top->virtual_size) {
        continue;
      }
      if (top->virtual_size - offset < n) {
        n = (size_t)(top->virtual_size - offset);
      }
      chain_bytes(chain, layers, chain[k].items[i].block, block);
      if (!cairn__is_zero(block, n)) {
        assert_int_equal(pwrite(fd, block, n, (off_t)offset), n);
      }
    }
  }
  close(fd);
  free(block);
}

/* ---- writing through a sink
 * ---------------------------------------------------- */

#define BATCH 24
struct job {
  uint64_t first;
  size_t count;
  uint8_t states[BATCH];
  uint64_t positions[BATCH];
  unsigned char *buf;
  struct job *next;
};

struct writers {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct cairn__sink *sink;
  struct job *jobs;
  size_t waiting;
  int is_end, rc;
  uint64_t seed; /* under the lock: the threads' own random numbers */
  struct cairn_error err;
};

/* Takes any of the waiting jobs and writes it. */
static void *writer(void *arg)
{
  struct writers *w = arg;

  pthread_mutex_lock(&w->lock);
  for (;;) {
    struct cairn_error err;
    struct job **at, *job;
    size_t skip_over;
    int rc;

    while (w->jobs == NULL && !w->is_end) {
      pthread_cond_wait(&w->changed, &w->lock);
    }
    if (w->jobs == NULL) {
      break;
    }
    at = &w->jobs;
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    for (skip_over = (w->seed >> 33) % w->waiting; skip_over > 0; skip_over--) {
      at = &(*at)->next;
    }
    job = *at;
    *at = job->next;
    w->waiting--;
    pthread_mutex_unlock(&w->lock);
    rc = w->sink->ops->write(w->sink, job->first, job->count, job->states,
                             job->positions, job->buf, &err);
    free(job->buf);
    free(job);
    pthread_mutex_lock(&w->lock);
    if (rc != 0 && w->rc == 0) {
      w->rc = rc;
      w->err = err;
    }
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

struct image {
  const struct cairn_io *io;
  const char *name, *format, *backing, *backing_format;
  const unsigned char *point, *base;
  int threads; /* 0: written by the caller itself */
};

static int write_image(const struct image *image, const struct disk *d,
                       struct cairn__file_result *result,
                       struct cairn_error *err)
{
  struct cairn__sink_options o = {
      .io = image->io != NULL ? image->io : io,
      .dirfd = scratch_fd,
      .name = image->name,
      .path = image->name,
      .length = d->length,
      .virtual_size = d->virtual_size,
      .digester = &digester,
      .backing_name = image->backing,
      .backing_format = image->backing_format,
      .point = image->point,
      .base = image->base,
  };
  struct writers w = {.lock = PTHREAD_MUTEX_INITIALIZER,
                      .changed = PTHREAD_COND_INITIALIZER,
                      .seed = image->threads > 0 ? random_next() : 0};
  pthread_t threads[8];
  size_t i = 0;
  int t, rc = 0;

  unlinkat(scratch_fd, image->name, 0);
  if ((strcmp(image->format, "raw") == 0
           ? cairn__sink_open_raw(&o, &w.sink, err)
           : cairn__sink_open_qcow2(&o, &w.sink, err)) != 0) {
    return -1;
  }
  for (t = 0; t < image->threads; t++) {
    assert_int_equal(pthread_create(&threads[t], NULL, writer, &w), 0);
  }
  while (i < d->count && rc == 0) {
    unsigned char digests[BATCH * CAIRN__DIGEST_MAX] = {0};
    struct job *job = calloc(1, sizeof *job);
    size_t n = image->threads == 0 ? BATCH : 1 + random_below(BATCH), b;

    job->first = d->items[i].block;
    if (n > d->blocks - job->first) {
      n = (size_t)(d->blocks - job->first);
    }
    job->count = n;
    job->buf = aligned_alloc(4096, n * BLOCK);
    assert_non_null(job->buf);
    for (b = 0; b < n; b++) {
      if (i < d->count && d->items[i].block == job->first + b) {
        job->states[b] = d->items[i].state;
        item_bytes(d, &d->items[i], job->buf + b * BLOCK);
        cairn__digest_block(&digester, job->buf + b * BLOCK,
                            digests + b * digester.size);
        i++;
      } else {
        memset(job->buf + b * BLOCK, 0xee, BLOCK); /* must not be written */
        job->states[b] = CAIRN__UNCHANGED;
      }
    }
    rc = w.sink->ops->reserve(w.sink, job->first, n, job->states, digests,
                              job->positions, err);
    if (rc != 0 || image->threads == 0) {
      if (rc == 0) {
        rc = w.sink->ops->write(w.sink, job->first, n, job->states,
                                job->positions, job->buf, err);
      }
      free(job->buf);
      free(job);
      continue;
    }
    pthread_mutex_lock(&w.lock);
    job->next = w.jobs;
    w.jobs = job;
    w.waiting++;
    pthread_cond_signal(&w.changed);
    pthread_mutex_unlock(&w.lock);
  }
  pthread_mutex_lock(&w.lock);
  w.is_end = 1;
  pthread_cond_broadcast(&w.changed);
  pthread_mutex_unlock(&w.lock);
  for (t = 0; t < image->threads; t++) {
    pthread_join(threads[t], NULL);
  }
  if (rc == 0 && w.rc != 0) {
    rc = -1;
    *err = w.err;
  }
  if (rc != 0) {
    w.sink->ops->abort(w.sink);
    return -1;
  }
  return w.sink->ops->finish(w.sink, result, err);
}

/* Writes it, checks size and digest of the file against a reader's. */
static void make_image(const struct image *image, const struct disk *d)
{
  struct cairn__file_result result;
  struct cairn_error err;
  unsigned char found[CAIRN__DIGEST_MAX];
  struct stat st;
  int fd;

  if (write_image(image, d, &result, &err) != 0) {
    fail_msg("%s: %s", image->name, err.message);
  }
  fd = openat(scratch_fd, image->name, O_RDONLY | O_CLOEXEC);
  assert_int_equal(fstat(fd, &st), 0);
  assert_int_equal(st.st_size, result.size);
  assert_int_equal(st.st_mode & 07777, 0600);
  assert_int_equal(
      cairn__tree_file(io, fd, result.size, &digester, NULL, NULL, found, &err),
      0);
  assert_memory_equal(found, result.digest, digester.size);
  close(fd);
}

/* ---- judges
 * ---------------------------------------------------------------------- */

static json_t *json_of(const char *command, const char *name)
{
  json_error_t why;
  json_t *json;
  char *said;

  assert_int_equal(run(&said, "qemu-img %s %s", command, name), 0);
  json = json_loads(said, 0, &why);
  if (json == NULL) {
    fail_msg("qemu-img %s: %s: %s", command, why.text, said);
  }
  free(said);
  return json;
}

static const char *text_of(const json_t *object, const char *key)
{
  const char *text = json_string_value(json_object_get(object, key));

  return text != NULL ? text : "";
}

/* check: not a leaked cluster; info: sizes, names; map: every block. */
static void judge_structure(const struct image *image, const struct disk *d)
{
  json_t *info, *map, *entry;
  size_t index, i = 0;
  uint64_t end = 0;

  if (!has_qemu) {
    return;
  }
  must_run("qemu-img check -f qcow2 %s", image->name);
  info = json_of("info -f qcow2 --output=json", image->name);
  assert_int_equal(json_integer_value(json_object_get(info, "virtual-size")),
                   d->virtual_size);
  assert_int_equal(json_integer_value(json_object_get(info, "cluster-size")),
                   65536);
  assert_string_equal(text_of(info, "backing-filename"),
                      image->backing != NULL ? image->backing : "");
  assert_string_equal(text_of(info, "backing-filename-format"),
                      image->backing != NULL ? image->backing_format : "");
  json_decref(info);
  map = json_of("map -f qcow2 --output=json", image->name);
  json_array_foreach(map, index, entry)
  {
    uint64_t start =
        (uint64_t)json_integer_value(json_object_get(entry, "start"));
    uint64_t length =
        (uint64_t)json_integer_value(json_object_get(entry, "length"));
    int depth = (int)json_integer_value(json_object_get(entry, "depth"));
    int is_zero = json_is_true(json_object_get(entry, "zero"));
    int is_data = json_is_true(json_object_get(entry, "data"));

    assert_int_equal(start, end);
    end = start + length;
    for (; i < d->count && d->items[i].block * BLOCK < end; i++) {
      if (d->items[i].state == CAIRN__DATA) {
        assert_int_equal(depth, 0);
        assert_true(is_data && !is_zero);
      } else {
        assert_true(is_zero && !is_data);
        if (image->backing != NULL) {
          assert_int_equal(depth, 0);
        }
      }
    }
    if (depth == 0 && is_data) {
      /* data here is data of ours, from end to end */
      uint64_t b;

      for (b = start / BLOCK; b * BLOCK < end; b++) {
        const struct item *item = disk_find(d, b);

        assert_non_null(item);
        assert_int_equal(item->state, CAIRN__DATA);
      }
    }
  }
  assert_int_equal(end, d->virtual_size);
  assert_int_equal(i, d->count);
  json_decref(map);
}

static void judge_content(const char *name, const struct disk *chain,
                          size_t layers)
{
  if (!has_qemu) {
    return;
  }
  write_expected("expected.raw", chain, layers);
  must_run("qemu-img compare -f qcow2 -F raw %s expected.raw", name);
}

/* ---- reading back
 * ------------------------------------------------------------------- */

static struct cairn__layer *open_layer(const char *name, const char *format,
                                       uint64_t length)
{
  struct cairn__layer *layer;
  struct cairn_error err;

  if (cairn__layer_open(io, scratch_fd, name, NULL, format, length, &layer,
                        &err) != 0) {
    fail_msg("%s", err.message);
  }
  return layer;
}

/* States and bytes of one layer are the model's. */
static void read_back_layer(const char *name, const struct disk *d,
                            int has_backing)
{
  struct cairn__layer *layer = open_layer(name, "qcow2", 0);
  uint8_t *states = malloc(CAIRN__PAGE_BLOCKS);
  uint64_t *positions = malloc(CAIRN__PAGE_BLOCKS * sizeof *positions);
  unsigned char *want = malloc(BLOCK), *got = malloc(BLOCK);
  struct cairn_error err;
  uint64_t page;
  size_t i = 0;

  assert_int_equal(cairn__layer_get_info(layer)->virtual_size, d->virtual_size);
  for (page = 0; page * CAIRN__PAGE_BLOCKS < d->blocks; page++) {
    uint64_t first = page * CAIRN__PAGE_BLOCKS;
    size_t n = d->blocks - first < CAIRN__PAGE_BLOCKS
                   ? (size_t)(d->blocks - first)
                   : CAIRN__PAGE_BLOCKS;
    size_t b;
    int is_empty, is_any = 0;

    assert_int_equal(cairn__layer_is_empty(layer, page, &is_empty, &err), 0);
    assert_int_equal(
        cairn__layer_blocks(layer, first, n, states, positions, &err), 0);
    for (b = 0; b < n; b++) {
      uint8_t state = CAIRN__UNCHANGED;

      if (i < d->count && d->items[i].block == first + b) {
        state = d->items[i++].state;
      }
      if (state == CAIRN__ZERO && !has_backing) {
        state = CAIRN__UNCHANGED;
      }
      is_any |= state != CAIRN__UNCHANGED;
      if (states[b] != state) {
        fail_msg("block %llu: %d instead of %d",
                 (unsigned long long)(first + b), states[b], state);
      }
      if (state == CAIRN__DATA) {
        item_bytes(d, &d->items[i - 1], want);
        assert_int_equal(cairn__layer_read(layer, positions[b], 1, got, &err),
                         0);
        assert_memory_equal(want, got, BLOCK);
      } else {
        assert_int_equal(positions[b], 0);
      }
    }
    assert_int_equal(is_empty, !is_any);
  }
  assert_int_equal(i, d->count);
  cairn__layer_close(layer);
  free(states);
  free(positions);
  free(want);
  free(got);
}

static struct cairn__source *open_chain(const char *const *names,
                                        const char *const *formats,
                                        const struct disk *chain, size_t count,
                                        unsigned readers)
{
  struct cairn__layer *layers[256];
  struct cairn__source *source;
  struct cairn_error err;
  size_t k;

  for (k = 0; k < count; k++) {
    layers[k] = open_layer(names[k], formats[k], chain[k].length);
  }
  if (cairn__source_open_layers(layers, count, chain[count - 1].length, "chain",
                                readers, &source, &err) != 0) {
    fail_msg("%s", err.message);
  }
  return source;
}

struct reading {
  struct cairn__source *source;
  const struct disk *chain;
  size_t count;
  unsigned reader;
  uint64_t from, to; /* bytes */
  uint64_t seed;
};

/* Reads pieces of random size and compares with the model. Also a thread's
 * body, from which cmocka's own failures cannot return. */
static void *read_part(void *arg)
{
  const struct reading *r = arg;
  struct cairn__source *source = r->source;
  unsigned char *got = aligned_alloc(4096, 5 * BLOCK);
  unsigned char *want = malloc(BLOCK);
  uint64_t offset = r->from, seed = r->seed;

  while (offset < r->to) {
    struct cairn_error err;
    uint64_t at, n;

    seed = seed * 6364136223846793005u + 1442695040888963407u;
    n = (1 + (seed >> 33) % 80) * 4096;
    if (source->ops->read(source, r->reader, got, (size_t)n, offset, &err) !=
        0) {
      print_error("%s\n", err.message);
      abort();
    }
    for (at = offset; at < offset + n;) {
      uint64_t within = at % BLOCK, part = BLOCK - within;

      if (part > offset + n - at) {
        part = offset + n - at;
      }
      memset(want, 0, BLOCK);
      if (at < source->virtual_size) {
        chain_bytes(r->chain, r->count, at / BLOCK, want);
        /* a lower layer may go on where the content ends */
        if (at / BLOCK * BLOCK + BLOCK > source->length) {
          memset(want + source->length % BLOCK, 0,
                 BLOCK - source->length % BLOCK);
        }
      }
      if (memcmp(want + within, got + (at - offset), part) != 0) {
        print_error("bytes at %llu differ\n", (unsigned long long)at);
        abort();
      }
      at += part;
    }
    offset += n;
  }
  free(got);
  free(want);
  return NULL;
}

/* Extents partition the disk and never call zero what is not. */
static void read_back_chain(struct cairn__source *source,
                            const struct disk *chain, size_t count)
{
  unsigned char *want = malloc(BLOCK);
  uint64_t offset = 0;

  while (offset < source->length) {
    struct cairn__extent extent;
    struct cairn_error err;
    uint64_t b;

    assert_int_equal(
        source->ops->extent(source, offset, UINT64_MAX, &extent, &err), 0);
    assert_int_equal(extent.offset, offset);
    assert_true(extent.length > 0 && extent.length <= source->length - offset);
    if (extent.is_zero && extent.length < 64 * MIB) {
      for (b = offset / BLOCK; b * BLOCK < offset + extent.length; b++) {
        chain_bytes(chain, count, b, want);
        assert_true(cairn__is_zero(want, BLOCK));
      }
    } else if (!extent.is_zero) {
      struct reading r = {
          source,       chain, count, 0, offset, offset + extent.length,
          random_next()};

      read_part(&r);
    }
    offset += extent.length;
  }
  free(want);
}

/* ---- tests: writing
 * -------------------------------------------------------------- */

static const uint64_t small_lengths[] = {0,
                                         1,
                                         511,
                                         512,
                                         513,
                                         65024,
                                         65535,
                                         65536,
                                         65537,
                                         131072,
                                         3 * 65536u,
                                         1 << 20,
                                         1234567,
                                         5 << 20,
                                         7 << 20,
                                         (8 << 20) - 1,
                                         (8 << 20) + 4097};
#define LENGTHS (sizeof small_lengths / sizeof small_lengths[0])

static void full_disks_of_any_length_are_what_qemu_expects(void **state)
{
  size_t i, n = 0;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < 2 * LENGTHS; i++) {
    struct disk d = disk_random(small_lengths[i % LENGTHS]);
    struct image image = {
        .name = "full.qcow2", .format = "qcow2", .threads = 3};

    make_image(&image, &d);
    judge_structure(&image, &d);
    judge_content("full.qcow2", &d, 1);
    read_back_layer("full.qcow2", &d, 0);
    disk_free(&d);
    n++;
  }
  print_message("%zu disks\n", n);
}

static void overlays_hold_three_states(void **state)
{
  static const unsigned char point[16] = {1}, base[16] = {2};
  size_t i, n = 0;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < LENGTHS + 6; i++) {
    /* the same length, or grown, or shrunk */
    uint64_t length = small_lengths[i % LENGTHS];
    struct disk chain[2] = {
        disk_random(i < LENGTHS ? length : random_below(4 * MIB)),
        disk_random(length)};
    int is_raw = (int)random_below(2);
    struct image below = {.name = is_raw ? "base.raw" : "base.qcow2",
                          .format = is_raw ? "raw" : "qcow2",
                          .threads = 2};
    struct image over = {.name = "over.qcow2",
                         .format = "qcow2",
                         .backing = below.name,
                         .backing_format = below.format,
                         .point = point,
                         .base = base,
                         .threads = 2};
    const char *names[2] = {below.name, over.name};
    const char *formats[2] = {below.format, over.format};
    struct cairn__source *source;
    struct cairn__layer *layer;
    const struct cairn__layer_info *info;

    make_image(&below, &chain[0]);
    make_image(&over, &chain[1]);
    judge_structure(&over, &chain[1]);
    judge_content("over.qcow2", chain, 2);
    read_back_layer("over.qcow2", &chain[1], 1);
    layer = open_layer("over.qcow2", "qcow2", 0);
    info = cairn__layer_get_info(layer);
    assert_string_equal(info->backing_name, below.name);
    assert_string_equal(info->backing_format, below.format);
    assert_true(info->has_point && info->has_base);
    assert_memory_equal(info->point, point, 16);
    assert_memory_equal(info->base, base, 16);
    cairn__layer_close(layer);
    source = open_chain(names, formats, chain, 2, 1);
    read_back_chain(source, chain, 2);
    source->ops->close(source);
    disk_free(&chain[0]);
    disk_free(&chain[1]);
    n++;
  }
  print_message("%zu overlays\n", n);
}

static void large_sparse_disks_cross_every_table(void **state)
{
  static const uint64_t lengths[] = {
      512 * MIB - 100, 512 * MIB,  512 * MIB + 100, 1536 * MIB + 1, TIB,
      TIB + 65537,     5 * TIB / 2};
  size_t i, k;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    struct disk d = disk_new(lengths[i]);
    struct image image = {
        .name = "large.qcow2", .format = "qcow2", .threads = 2};
    const char *names[] = {"large.qcow2"}, *formats[] = {"qcow2"};
    struct cairn__source *source;
    uint64_t block = 0;

    for (k = 0; k < 40 && block < d.blocks; k++) {
      disk_add(&d, block, CAIRN__DATA);
      switch (random_below(4)) {
      case 0: /* around the next slice's beginning */
        block = (block / 8192 + 1) * 8192 - (block % 8192 < 8190 ? 1 : 0);
        break;
      case 1:
        block += 1 + random_below(d.blocks / 20);
        break;
      default:
        block++;
        break;
      }
    }
    if (d.items[d.count - 1].block < d.blocks - 1) {
      disk_add(&d, d.blocks - 1, CAIRN__DATA);
    }
    make_image(&image, &d);
    judge_structure(&image, &d);
    judge_content("large.qcow2", &d, 1);
    read_back_layer("large.qcow2", &d, 0);
    source = open_chain(names, formats, &d, 1, 1);
    read_back_chain(source, &d, 1);
    source->ops->close(source);
    disk_free(&d);
  }
}

static void a_disk_of_64_tib_has_a_large_l1_table(void **state)
{
  struct disk d = disk_new(64 * TIB);
  struct image image = {.name = "huge.qcow2", .format = "qcow2", .threads = 1};

  (void)state;
  random_begin(__func__);
  disk_add(&d, 0, CAIRN__DATA);
  disk_add(&d, d.blocks / 2, CAIRN__DATA);
  disk_add(&d, d.blocks - 1, CAIRN__DATA);
  make_image(&image, &d);
  judge_structure(&image, &d);
  disk_free(&d);
  unlinkat(scratch_fd, "huge.qcow2", 0);
}

/* Data is left out, so that a large image costs nothing: its clusters are
 * holes. */
static ssize_t data_is_dropped(const struct cairn_io *table, int fd,
                               const struct iovec *iov, int count, off_t offset)
{
  ssize_t n = 0;
  int i;

  (void)table;
  (void)fd;
  (void)offset;
  for (i = 0; i < count; i++) {
    n += (ssize_t)iov[i].iov_len;
  }
  return n;
}

static void large_files_have_several_refcount_blocks(void **state)
{
  /* clusters around the number where one refcount block more is needed:
   * header, data, L2 and L1 tables, refcount blocks and table together */
  static const uint64_t blocks[] = {32768 - 9, 32768 - 8, 32768 - 7,
                                    32768,     65536,     3 * 32768 + 17};
  struct cairn_io table = *io;
  unsigned char *buf = aligned_alloc(4096, 512 * BLOCK);
  uint8_t states[512];
  uint64_t positions[512];
  unsigned char digests[512 * 16];
  size_t i;

  (void)state;
  table.pwritev = data_is_dropped;
  memset(states, CAIRN__DATA, sizeof states);
  memset(buf, 0, 512 * BLOCK);
  memset(digests, 0, sizeof digests);
  for (i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
    struct cairn__sink_options o = {.io = &table,
                                    .dirfd = scratch_fd,
                                    .name = "counts",
                                    .path = "counts",
                                    .length = blocks[i] * BLOCK,
                                    .virtual_size = blocks[i] * BLOCK,
                                    .digester = &digester};
    unsigned char found[CAIRN__DIGEST_MAX];
    struct cairn__file_result result;
    struct cairn__sink *sink;
    struct cairn_error err;
    uint64_t at;
    int fd;

    unlinkat(scratch_fd, "counts", 0);
    assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), 0);
    for (at = 0; at < blocks[i]; at += 512) {
      size_t n = blocks[i] - at < 512 ? (size_t)(blocks[i] - at) : 512;

      assert_int_equal(
          sink->ops->reserve(sink, at, n, states, digests, positions, &err), 0);
      assert_int_equal(
          sink->ops->write(sink, at, n, states, positions, buf, &err), 0);
    }
    assert_int_equal(sink->ops->finish(sink, &result, &err), 0);
    if (has_qemu) {
      must_run("qemu-img check -f qcow2 counts");
    }
    fd = openat(scratch_fd, "counts", O_RDONLY | O_CLOEXEC);
    assert_int_equal(cairn__tree_file(io, fd, result.size, &digester, NULL,
                                      NULL, found, &err),
                     0);
    assert_memory_equal(found, result.digest, digester.size);
    close(fd);
  }
  free(buf);
}

static void the_same_content_gives_the_same_bytes(void **state)
{
  size_t i;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < 6; i++) {
    struct disk d = disk_random(6 * MIB + 1000);
    struct image one = {.name = "one.qcow2",
                        .format = "qcow2",
                        .backing = "b.raw",
                        .backing_format = "raw",
                        .threads = 0};
    struct image two = one;

    two.name = "two.qcow2";
    two.threads = 4;
    make_image(&one, &d);
    make_image(&two, &d);
    must_run("cmp one.qcow2 two.qcow2");
    one.format = two.format = "raw";
    one.backing = two.backing = NULL;
    make_image(&one, &d);
    make_image(&two, &d);
    must_run("cmp one.qcow2 two.qcow2");
    disk_free(&d);
  }
}

static void raw_disks_are_sparse_and_exactly_as_long(void **state)
{
  size_t i, n = 0;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < LENGTHS; i++) {
    struct disk d = disk_random(small_lengths[i]);
    struct image image = {.name = "disk.raw", .format = "raw", .threads = 3};
    const char *names[] = {"disk.raw"}, *formats[] = {"raw"};
    struct cairn__source *source;
    struct cairn_error err;
    struct cairn__layer *layer;
    struct stat st;
    size_t data = 0, k;

    make_image(&image, &d);
    write_expected("expected.raw", &d, 1);
    must_run("truncate -s %llu expected.raw && cmp disk.raw expected.raw",
             (unsigned long long)d.length);
    for (k = 0; k < d.count; k++) {
      data += d.items[k].state == CAIRN__DATA;
    }
    assert_int_equal(fstatat(scratch_fd, "disk.raw", &st, 0), 0);
    assert_true((uint64_t)st.st_blocks * 512 <= data * BLOCK + 65536);
    source = open_chain(names, formats, &d, 1, 1);
    read_back_chain(source, &d, 1);
    source->ops->close(source);
    if (d.length > 0) {
      assert_int_equal(cairn__layer_open(io, scratch_fd, "disk.raw", NULL,
                                         "raw", d.length - 1, &layer, &err),
                       -1);
      assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
    }
    disk_free(&d);
    n++;
  }
  print_message("%zu disks\n", n);
}

/* ---- tests: misuse, names, fallbacks
 * --------------------------------------------- */

static struct cairn__sink *open_sink(const char *format, uint64_t length)
{
  struct cairn__sink_options o = {.io = io,
                                  .dirfd = scratch_fd,
                                  .name = "misuse",
                                  .path = "misuse",
                                  .length = length,
                                  .virtual_size = length,
                                  .digester = &digester};
  struct cairn__sink *sink;
  struct cairn_error err;

  unlinkat(scratch_fd, "misuse", 0);
  assert_int_equal((strcmp(format, "raw") == 0
                        ? cairn__sink_open_raw
                        : cairn__sink_open_qcow2)(&o, &sink, &err),
                   0);
  return sink;
}

static void a_block_that_was_not_written_is_noticed(void **state)
{
  static const char *const formats[] = {"qcow2", "raw"};
  unsigned char *buf = aligned_alloc(4096, 4 * BLOCK), digests[4 * 16];
  uint8_t states[4] = {CAIRN__DATA, CAIRN__DATA, CAIRN__DATA, CAIRN__DATA};
  size_t f;
  int round;

  (void)state;
  random_fill(1, buf, 4 * BLOCK);
  random_fill(2, digests, sizeof digests);
  for (f = 0; f < 2; f++) {
    for (round = 0; round < 4; round++) {
      struct cairn__sink *sink = open_sink(formats[f], 8 * BLOCK);
      struct cairn__file_result result;
      struct cairn_error err;
      uint64_t positions[4];
      int rc;

      assert_int_equal(
          sink->ops->reserve(sink, 2, 4, states, digests, positions, &err), 0);
      if (round > 0) { /* all but the last */
        assert_int_equal(
            sink->ops->write(sink, 2, 3, states, positions, buf, &err), 0);
      }
      if (round == 2) { /* one twice instead of it */
        assert_int_equal(
            sink->ops->write(sink, 2, 1, states, positions, buf, &err), 0);
      }
      if (round == 3) {
        assert_int_equal(
            sink->ops->write(sink, 5, 1, states, positions + 3, buf, &err), 0);
      }
      rc = sink->ops->finish(sink, &result, &err);
      assert_int_equal(rc, round == 3 ? 0 : -1);
      if (rc != 0) {
        assert_int_equal(err.id, CAIRN_E_INTERNAL);
      }
    }
  }
  free(buf);
}

static void reservations_must_ascend(void **state)
{
  static const char *const formats[] = {"qcow2", "raw"};
  unsigned char digests[4 * 16] = {1};
  uint8_t states[4] = {CAIRN__ZERO, CAIRN__ZERO, CAIRN__ZERO, CAIRN__ZERO};
  uint64_t positions[4];
  struct cairn_error err;
  size_t f;

  (void)state;
  for (f = 0; f < 2; f++) {
    struct cairn__sink *sink = open_sink(formats[f], 8 * BLOCK);

    assert_int_equal(
        sink->ops->reserve(sink, 2, 4, states, digests, positions, &err), 0);
    assert_int_equal(
        sink->ops->reserve(sink, 5, 1, states, digests, positions, &err), -1);
    assert_int_equal(err.id, CAIRN_E_INTERNAL);
    assert_int_equal(
        sink->ops->reserve(sink, 6, 3, states, digests, positions, &err), -1);
    assert_int_equal(err.id, CAIRN_E_INTERNAL);
    assert_int_equal(
        sink->ops->reserve(sink, 9, 1, states, digests, positions, &err), -1);
    sink->ops->abort(sink);
  }
}

static void bad_options_are_refused(void **state)
{
  char name[1100];
  struct cairn__sink_options o = {.io = io,
                                  .dirfd = scratch_fd,
                                  .name = "options",
                                  .path = "options",
                                  .length = 512,
                                  .virtual_size = 512,
                                  .digester = &digester,
                                  .backing_name = name,
                                  .backing_format = "qcow2"};
  struct cairn__sink *sink;
  struct cairn_error err;

  (void)state;
  memset(name, 'n', sizeof name);
  name[1024] = '\0';
  assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  assert_null(sink);
  name[0] = '\0';
  assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  strcpy(name, "base");
  assert_int_equal(cairn__sink_open_raw(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INTERNAL);
  o.backing_name = NULL;
  o.virtual_size = 3 * 1024 * TIB;
  assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_SUPPORTED);
  o.virtual_size = 513;
  assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), -1);
  o.virtual_size = 512;
  assert_int_equal(faccessat(scratch_fd, "options", F_OK, 0), -1);
  spill("options", "mine", 4);
  assert_int_equal(cairn__sink_open_qcow2(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
  assert_int_equal(cairn__sink_open_raw(&o, &sink, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
  must_run("grep -q '^mine$' options");
}

static void the_longest_backing_name_and_the_origin_survive(void **state)
{
  static const unsigned char point[16] = "point of origin";
  char name[1024];
  struct disk d = disk_new(MIB);
  struct image image = {.name = "long.qcow2",
                        .format = "qcow2",
                        .backing = name,
                        .backing_format = "qcow2",
                        .point = point};
  struct cairn__layer *layer;
  unsigned char *bytes;
  size_t n, i;

  (void)state;
  random_begin(__func__);
  disk_add(&d, 3, CAIRN__DATA);
  for (i = 0; i < 1023; i++) {
    name[i] = i % 100 == 99 ? '/' : 'd';
  }
  name[1023] = '\0';
  make_image(&image, &d);
  layer = open_layer("long.qcow2", "qcow2", 0);
  assert_string_equal(cairn__layer_get_info(layer)->backing_name, name);
  assert_true(cairn__layer_get_info(layer)->has_point);
  assert_false(cairn__layer_get_info(layer)->has_base);
  cairn__layer_close(layer);
  if (has_qemu) {
    /* QEMU rewrites the header and keeps an extension it does not know */
    must_run("qemu-img rebase -u -f qcow2 -F raw -b other.raw long.qcow2");
    bytes = slurp("long.qcow2", &n);
    for (i = 112; i < 4096 && memcmp(bytes + i, "CARN", 4) != 0; i += 8) {
    }
    assert_true(i < 4096);
    assert_memory_equal(bytes + i + 16, point, 16);
    free(bytes);
    /* our reader ignores the extensions that QEMU added */
    layer = open_layer("long.qcow2", "qcow2", 0);
    assert_string_equal(cairn__layer_get_info(layer)->backing_name,
                        "other.raw");
    assert_memory_equal(cairn__layer_get_info(layer)->point, point, 16);
    cairn__layer_close(layer);
  }
  disk_free(&d);
}

static int no_direct_openat(const struct cairn_io *table, int dirfd,
                            const char *path, int flags, mode_t mode)
{
  (void)table;
  if (flags & O_DIRECT) {
    errno = EINVAL;
    return -1;
  }
  return io->openat(io, dirfd, path, flags, mode);
}

static ssize_t no_direct_pwritev(const struct cairn_io *table, int fd,
                                 const struct iovec *iov, int count,
                                 off_t offset)
{
  (void)table;
  if (fcntl(fd, F_GETFL) & O_DIRECT) {
    errno = EINVAL;
    return -1;
  }
  return io->pwritev(io, fd, iov, count, offset);
}

static void without_direct_io_the_bytes_are_the_same(void **state)
{
  struct disk d = disk_random(4 * MIB + 700);
  struct cairn_io tables[2] = {*io, *io};
  int i;

  (void)state;
  random_begin(__func__);
  tables[0].openat = no_direct_openat;
  tables[1].pwritev = no_direct_pwritev;
  for (i = 0; i < 4; i++) {
    struct image one = {.name = "one", .format = i < 2 ? "qcow2" : "raw"};
    struct image two = {.io = &tables[i % 2],
                        .name = "two",
                        .format = one.format,
                        .threads = 2};

    make_image(&one, &d);
    make_image(&two, &d);
    must_run("cmp one two");
  }
  disk_free(&d);
}

/* ---- tests: chains
 * ------------------------------------------------------------------ */

static void chains_of_any_sizes_read_as_qemu_reads_them(void **state)
{
  int round;

  (void)state;
  random_begin(__func__);
  for (round = 0; round < 12; round++) {
    static const char *const all_names[] = {"c0", "c1", "c2", "c3",
                                            "c4", "c5", "c6"};
    size_t count = 2 + random_below(6), k;
    struct disk chain[7];
    const char *formats[7];
    struct cairn__source *source;

    for (k = 0; k < count; k++) {
      struct image image = {.name = all_names[k], .threads = 1};

      chain[k] = disk_random(random_below(2 * MIB));
      formats[k] = k == 0 && round % 3 == 0 ? "raw" : "qcow2";
      image.format = formats[k];
      if (k > 0) {
        image.backing = all_names[k - 1];
        image.backing_format = formats[k - 1];
      }
      make_image(&image, &chain[k]);
    }
    judge_content(all_names[count - 1], chain, count);
    source = open_chain(all_names, formats, chain, count, 2);
    assert_int_equal(source->length, chain[count - 1].length);
    assert_int_equal(source->virtual_size, chain[count - 1].virtual_size);
    read_back_chain(source, chain, count);
    source->ops->close(source);
    for (k = 0; k < count; k++) {
      disk_free(&chain[k]);
    }
  }
  print_message("%d chains\n", round);
}

static void a_chain_of_200_layers_is_read_by_parallel_readers(void **state)
{
  enum { LAYERS = 200, READERS = 4 };
  static char names[LAYERS][8];
  static struct disk chain[LAYERS];
  const char *pointers[LAYERS], *formats[LAYERS];
  struct reading readings[READERS];
  pthread_t threads[READERS];
  struct cairn__source *source;
  struct cairn_error err;
  int k, fds = count_fds();

  (void)state;
  random_begin(__func__);
  for (k = 0; k < LAYERS; k++) {
    struct image image = {.name = names[k], .format = "qcow2"};
    uint64_t b;

    snprintf(names[k], sizeof names[k], "l%d", k);
    pointers[k] = names[k];
    formats[k] = "qcow2";
    /* over the end of a slice */
    chain[k] = disk_new(514 * MIB + 513);
    for (b = 8180; b < chain[k].blocks; b++) {
      if (random_below(100) == 0) {
        disk_add(&chain[k], b, random_below(3) ? CAIRN__DATA : CAIRN__ZERO);
      }
    }
    if (k > 0) {
      image.backing = names[k - 1];
      image.backing_format = "qcow2";
    }
    make_image(&image, &chain[k]);
  }
  source = open_chain(pointers, formats, chain, LAYERS, READERS);
  read_back_chain(source, chain, LAYERS);
  for (k = 0; k < READERS; k++) {
    struct reading r = {source,       chain,     LAYERS,
                        (unsigned)k,  510 * MIB, source->length + 1,
                        random_next()};

    readings[k] = r;
    assert_int_equal(pthread_create(&threads[k], NULL, read_part, &readings[k]),
                     0);
  }
  for (k = 0; k < READERS; k++) {
    pthread_join(threads[k], NULL);
  }
  assert_int_equal(source->ops->check_still(source, &err), 0);
  spill(names[100], "x", 1);
  assert_int_equal(source->ops->check_still(source, &err), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_CHANGED);
  assert_string_equal(err.path, names[100]);
  source->ops->close(source);
  for (k = 0; k < LAYERS; k++) {
    disk_free(&chain[k]);
    unlinkat(scratch_fd, names[k], 0);
  }
  assert_int_equal(count_fds(), fds);
}

static void a_length_that_does_not_fit_the_top_is_refused(void **state)
{
  struct disk d = disk_random(1000000);
  struct image image = {.name = "fit", .format = "qcow2"};
  static const uint64_t bad[] = {0, 1000000 - 64, 1000000 + 512, UINT64_MAX};
  struct cairn__source *source;
  struct cairn_error err;
  size_t i;

  (void)state;
  make_image(&image, &d);
  for (i = 0; i < 4; i++) {
    struct cairn__layer *layer = open_layer("fit", "qcow2", 0);

    /* 1000000 is 1953.125 sectors: 999937..1000448 fit */
    if (cairn__source_open_layers(&layer, 1, bad[i], "fit", 1, &source, &err) ==
        0) {
      assert_int_equal(i, 1); /* one byte more than a sector less: it fits */
      source->ops->close(source);
      continue;
    }
    assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
    assert_null(source);
    cairn__layer_close(layer); /* still ours */
  }
  disk_free(&d);
}

/* ---- tests: damage
 * ------------------------------------------------------------------ */

/* Opens, walks and reads everything; the error's id, or CAIRN_OK. */
static int walk(const char *name)
{
  static uint8_t states[CAIRN__PAGE_BLOCKS];
  static uint64_t positions[CAIRN__PAGE_BLOCKS];
  static unsigned char buf[BLOCK];
  struct cairn__layer *layer;
  struct cairn_error err;
  uint64_t blocks, first;

  cairn__error_clear(&err);
  if (cairn__layer_open(io, scratch_fd, name, NULL, "qcow2", 0, &layer, &err) !=
      0) {
    assert_string_equal(err.path, name);
    assert_true(err.offset >= 0);
    return err.id;
  }
  blocks = (cairn__layer_get_info(layer)->virtual_size + BLOCK - 1) / BLOCK;
  for (first = 0; first < blocks; first += CAIRN__PAGE_BLOCKS) {
    size_t n = blocks - first < CAIRN__PAGE_BLOCKS ? (size_t)(blocks - first)
                                                   : CAIRN__PAGE_BLOCKS;
    size_t i;

    if (cairn__layer_blocks(layer, first, n, states, positions, &err) != 0) {
      break;
    }
    for (i = 0; i < n; i++) {
      if (states[i] == CAIRN__DATA &&
          cairn__layer_read(layer, positions[i], 1, buf, &err) != 0) {
        fail_msg("a place that was let through cannot be read: %s",
                 err.message);
      }
    }
  }
  cairn__layer_close(layer);
  return err.id;
}

static void damaged_headers_and_tables_are_refused_or_read(void **state)
{
  struct disk d = disk_new(514 * MIB);
  struct image image = {.name = "damaged",
                        .format = "qcow2",
                        .backing = "base.qcow2",
                        .backing_format = "qcow2",
                        .point = (const unsigned char *)"0123456789abcdef",
                        .base = (const unsigned char *)"fedcba9876543210"};
  unsigned char *bytes;
  size_t n, at, tried = 0, refused = 0, c;
  int fd, k;

  (void)state;
  random_begin(__func__);
  for (at = 0; at < 6; at++) {
    disk_add(&d, at * 3, at % 2 ? CAIRN__ZERO : CAIRN__DATA);
  }
  disk_add(&d, 8193, CAIRN__DATA);
  make_image(&image, &d);
  assert_int_equal(walk("damaged"), CAIRN_OK);
  bytes = slurp("damaged", &n);
  fd = openat(scratch_fd, "damaged", O_RDWR | O_CLOEXEC);
  for (c = 0; c < n / BLOCK; c++) {
    /* of each cluster the part that means something, and some that is padding;
     * data is not looked at by this reader */
    size_t part = c == 0 ? 400 : 160, i;

    if (c >= 1 && c <= 3) {
      continue;
    }
    for (i = 0; i < part; i++) {
      for (k = 0; k < 5; k++) {
        unsigned char damage[8];
        size_t m = k < 3 ? 1 : i % 8 == 0 ? 8 : 4;
        int id;

        at = c * BLOCK + i;
        random_fill(random_next(), damage, 8);
        if (k == 4) { /* small numbers reach further than random ones */
          memset(damage, 0, 8);
          damage[7] = (unsigned char)random_next();
          damage[5] = (unsigned char)random_below(8);
          damage[0] = (unsigned char)(random_below(2) << 7);
        }
        assert_int_equal(pwrite(fd, damage, m, (off_t)at), m);
        id = walk("damaged");
        if (id != CAIRN_OK && id != CAIRN_E_EXPORT_CORRUPT) {
          fail_msg("damage at %zu: error %d", at, id);
        }
        tried++;
        refused += id != CAIRN_OK;
        assert_int_equal(pwrite(fd, bytes + at, m, (off_t)at), m);
      }
    }
  }
  assert_int_equal(walk("damaged"), CAIRN_OK);
  assert_true(refused > tried / 20);
  /* cut anywhere */
  for (at = n; at-- > 0; at -= at > 9000 ? 8191 : at > 1000 ? 900 : 0) {
    assert_int_equal(ftruncate(fd, (off_t)at), 0);
    assert_int_equal(walk("damaged"), CAIRN_E_EXPORT_CORRUPT);
  }
  close(fd);
  free(bytes);
  disk_free(&d);
  print_message("%zu damaged images, %zu refused\n", tried, refused);
}

static void what_others_make_of_qcow2_is_refused(void **state)
{
  /* header field, bytes, value */
  static const struct {
    unsigned at, n;
    uint64_t value;
  } cases[] = {
      {0, 4, 0x514649fa},
      {4, 4, 2},
      {4, 4, 4},
      {20, 4, 17},
      {20, 4, 9},
      {24, 8, MIB + 1},
      {24, 8, UINT64_MAX},
      {24, 8, 3 * 1024 * TIB},
      {24, 8, 1024 * MIB},
      {32, 4, 1},
      {32, 4, 2},
      {36, 4, 2},
      {36, 4, 0xffffffff},
      {36, 4, 0},
      {40, 8, 0},
      {40, 8, 65537},
      {40, 8, UINT64_MAX},
      {40, 8, UINT64_C(1) << 40},
      {48, 8, 0},
      {48, 8, 1},
      {56, 4, 0},
      {56, 4, 0xffffffff},
      {60, 4, 1},
      {64, 8, 65536},
      {72, 8, 1},
      {72, 8, 4},
      {72, 8, 8},
      {72, 8, 16},
      {80, 8, 1},
      {88, 8, 1},
      {96, 4, 3},
      {100, 4, 96},
      {100, 4, 120},
      {100, 4, 0xffffffff},
      {104, 1, 1},
      {8, 8, 8},
      {8, 8, 65536 - 1},
      {8, 8, UINT64_MAX},
      {16, 4, 0},
      {16, 4, 1024},
      {16, 4, 0xffffffff},
      {112, 4, 0},
      {112, 4, 0x12345678},
      {116, 4, 0},
      {116, 4, 16},
      {116, 4, 0xffffffff},
      {120, 1, 'z'},
      {120, 1, 0},
  };
  struct disk d = disk_new(MIB);
  struct image image = {.name = "foreign",
                        .format = "qcow2",
                        .backing = "base.qcow2",
                        .backing_format = "qcow2"};
  unsigned char *bytes;
  struct cairn__layer *layer;
  struct cairn_error err;
  size_t n, i;
  int fd;

  (void)state;
  random_begin(__func__);
  disk_add(&d, 2, CAIRN__DATA);
  make_image(&image, &d);
  bytes = slurp("foreign", &n);
  fd = openat(scratch_fd, "foreign", O_RDWR | O_CLOEXEC);
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    unsigned char value[8];
    unsigned k;

    for (k = 0; k < cases[i].n; k++) {
      value[k] = (unsigned char)(cases[i].value >> 8 * (cases[i].n - 1 - k));
    }
    assert_int_equal(pwrite(fd, value, cases[i].n, cases[i].at), cases[i].n);
    if (walk("foreign") != CAIRN_E_EXPORT_CORRUPT) {
      fail_msg("value %llx at %u was taken", (unsigned long long)cases[i].value,
               cases[i].at);
    }
    assert_int_equal(pwrite(fd, bytes + cases[i].at, cases[i].n, cases[i].at),
                     cases[i].n);
  }
  assert_int_equal(walk("foreign"), CAIRN_OK);
  close(fd);
  free(bytes);
  disk_free(&d);
  assert_int_equal(cairn__layer_open(io, scratch_fd, "foreign", NULL, "vmdk", 0,
                                     &layer, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  must_run("ln -sf foreign aside; mkdir -p folder; rm -f pipe; mkfifo pipe");
  assert_int_equal(walk("aside"), CAIRN_E_BAD_PATH);
  assert_int_equal(walk("folder"), CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(walk("pipe"), CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(walk("nowhere"), CAIRN_E_NOT_FOUND);
  if (has_qemu) {
    must_run("qemu-img create -q -f qcow2 -o compat=0.10 other 1M");
    assert_int_equal(walk("other"), CAIRN_E_EXPORT_CORRUPT);
    must_run("qemu-img create -q -f qcow2 -o cluster_size=4k other 1M");
    assert_int_equal(walk("other"), CAIRN_E_EXPORT_CORRUPT);
    must_run("qemu-img create -q -f qcow2 -o extended_l2=on other 1M");
    assert_int_equal(walk("other"), CAIRN_E_EXPORT_CORRUPT);
    must_run("qemu-img create -q -f qcow2 other 1M; "
             "qemu-img snapshot -c s other");
    assert_int_equal(walk("other"), CAIRN_E_EXPORT_CORRUPT);
  }
}

/* ---- tests: failures
 * ------------------------------------------------------------------ */

/* An overlay and its base written, opened as a chain and read. */
static int whole_life(const struct cairn_io *table, const struct disk chain[2],
                      const char *format, struct cairn_error *err)
{
  struct image below = {.io = table, .name = "life0", .format = format};
  struct image over = {.io = table,
                       .name = "life1",
                       .format = "qcow2",
                       .backing = "life0",
                       .backing_format = format};
  struct cairn__layer *layers[2] = {NULL, NULL};
  struct cairn__source *source = NULL;
  struct cairn__file_result result;
  struct cairn__extent extent;
  unsigned char *buf = NULL, *want = malloc(BLOCK);
  uint64_t offset = 0;
  int rc = -1;

  if (write_image(&below, &chain[0], &result, err) != 0 ||
      write_image(&over, &chain[1], &result, err) != 0 ||
      cairn__layer_open(table, scratch_fd, "life0", NULL, format,
                        chain[0].length, &layers[0], err) != 0 ||
      cairn__layer_open(table, scratch_fd, "life1", NULL, "qcow2", 0,
                        &layers[1], err) != 0 ||
      cairn__source_open_layers(layers, 2, chain[1].length, "life", 1, &source,
                                err) != 0) {
    goto out;
  }
  layers[0] = layers[1] = NULL;
  buf = aligned_alloc(4096, BLOCK);
  while (offset < source->length) {
    uint64_t at;

    if (source->ops->extent(source, offset, UINT64_MAX, &extent, err) != 0) {
      goto out;
    }
    for (at = offset; at < offset + extent.length; at += BLOCK) {
      if (source->ops->read(source, 0, buf, BLOCK, at, err) != 0) {
        goto out;
      }
      chain_bytes(chain, 2, at / BLOCK, want);
      assert_memory_equal(buf, want, BLOCK);
    }
    offset += extent.length;
  }
  rc = source->ops->check_still(source, err);
out:
  free(buf);
  free(want);
  cairn__layer_close(layers[0]);
  cairn__layer_close(layers[1]);
  if (source != NULL) {
    source->ops->close(source);
  }
  return rc;
}

static void life_disks(struct disk chain[2])
{
  uint64_t b;

  chain[0] = disk_new(20 * BLOCK - 100);
  chain[1] = disk_new(24 * BLOCK - 700);
  for (b = 0; b < 20; b += 3) {
    disk_add(&chain[0], b, CAIRN__DATA);
  }
  disk_add(&chain[0], 19, CAIRN__DATA);
  for (b = 1; b < 24; b += 2) {
    disk_add(&chain[1], b, b % 3 ? CAIRN__DATA : CAIRN__ZERO);
  }
}

static void every_call_can_fail(void **state)
{
  static const int kinds[] = {CAIRN__FAULT_ERRNO, CAIRN__FAULT_ENOSPC_ON,
                              CAIRN__FAULT_SHORT};
  uint64_t stride = sweep_stride(1);
  struct disk chain[2];
  int k, r, fds = count_fds();

  (void)state;
  random_begin(__func__);
  life_disks(chain);
  for (r = 0; r < 2; r++) {
    for (k = 0; k < 3; k++) {
      uint64_t at, calls, fired = 0, unnoticed = 0;
      struct cairn__fault_io f;
      struct cairn_error err;

      cairn__fault_io_init(&f, 0, CAIRN__FAULT_NONE, 0);
      assert_int_equal(whole_life(&f.io, chain, r ? "raw" : "qcow2", &err), 0);
      calls = f.calls;
      for (at = sweep_first(stride); at <= calls; at += stride) {
        int rc;

        cairn__fault_io_init(&f, at, kinds[k], EIO);
        cairn__error_clear(&err);
        rc = whole_life(&f.io, chain, r ? "raw" : "qcow2", &err);
        assert_int_equal(count_fds(), fds);
        fired += (uint64_t)f.has_fired;
        if (!f.has_fired || kinds[k] == CAIRN__FAULT_SHORT) {
          assert_int_equal(rc, 0);
          continue;
        }
        if (rc == 0 && strcmp(f.fired_at, "close") == 0) {
          unnoticed++; /* of a file that was only read */
          continue;
        }
        if (rc != -1) {
          fail_msg("%s (call %d) failed unnoticed", f.fired_at, (int)at);
        }
        if (err.id != (kinds[k] == CAIRN__FAULT_ERRNO ? CAIRN_E_IO_ERROR
                                                      : CAIRN_E_DISK_FULL)) {
          fail_msg("%s (call %d): %d %s", f.fired_at, (int)at, err.id,
                   err.message);
        }
        assert_true(err.path[0] != '\0');
      }
      assert_true(fired > 10 / stride);
      assert_true(unnoticed <= 2); /* the two layers */
      print_message("%s, fault %d: %d of %d calls failed\n",
                    r ? "raw" : "qcow2", kinds[k], (int)fired, (int)calls);
    }
  }
  disk_free(&chain[0]);
  disk_free(&chain[1]);
}

static void every_allocation_can_fail(void **state)
{
  struct disk chain[2];
  int r, fds = count_fds();

  (void)state;
  life_disks(chain);
  for (r = 0; r < 2; r++) {
    struct cairn_error err;
    long n;

    cairn_set_allocator(failing_realloc, failing_free);
    atomic_store(&alloc_live, 0);
    for (n = 1;; n++) {
      int rc;

      atomic_store(&alloc_countdown, n);
      rc = whole_life(io, chain, r ? "raw" : "qcow2", &err);
      assert_int_equal(atomic_load(&alloc_live), 0);
      assert_int_equal(count_fds(), fds);
      if (atomic_load(&alloc_countdown) > 0) {
        assert_int_equal(rc, 0);
        break;
      }
      assert_int_equal(rc, -1);
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    }
    cairn_set_allocator(NULL, NULL);
    assert_true(n > 20);
    print_message("%ld allocations failed\n", n - 1);
  }
  disk_free(&chain[0]);
  disk_free(&chain[1]);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(full_disks_of_any_length_are_what_qemu_expects),
      cmocka_unit_test(overlays_hold_three_states),
      cmocka_unit_test(large_sparse_disks_cross_every_table),
      cmocka_unit_test(a_disk_of_64_tib_has_a_large_l1_table),
      cmocka_unit_test(large_files_have_several_refcount_blocks),
      cmocka_unit_test(the_same_content_gives_the_same_bytes),
      cmocka_unit_test(raw_disks_are_sparse_and_exactly_as_long),
      cmocka_unit_test(a_block_that_was_not_written_is_noticed),
      cmocka_unit_test(reservations_must_ascend),
      cmocka_unit_test(bad_options_are_refused),
      cmocka_unit_test(the_longest_backing_name_and_the_origin_survive),
      cmocka_unit_test(without_direct_io_the_bytes_are_the_same),
      cmocka_unit_test(chains_of_any_sizes_read_as_qemu_reads_them),
      cmocka_unit_test(a_chain_of_200_layers_is_read_by_parallel_readers),
      cmocka_unit_test(a_length_that_does_not_fit_the_top_is_refused),
      cmocka_unit_test(damaged_headers_and_tables_are_refused_or_read),
      cmocka_unit_test(what_others_make_of_qcow2_is_refused),
      cmocka_unit_test(every_call_can_fail),
      cmocka_unit_test(every_allocation_can_fail),
  };

  return cmocka_run_group_tests(tests, setup, scratch_close);
}
