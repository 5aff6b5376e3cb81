/* A chain of exported layers as one disk.
 *
 * For each slice of 8192 blocks the layers are asked from the top down which
 * of them holds each block; the answer is kept in a slot and shared by all
 * readers. A slot is filled under the lock and read without it while it is
 * held; there is one slot more than readers, so a free one always exists.
 *
 * A layer ends at its own virtual size: what lies beyond it below is not seen
 * through it. limits[k] is the smallest end from layer k to the top; bytes of
 * layer k at or beyond it read as zero. */
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"

#define READERS_MAX   64
#define LAYERS_MAX    4096
#define NO_LAYER      UINT16_MAX
#define NO_SLICE      UINT64_MAX
#define EXTENT_SLICES 64 /* that one extent may run through */

struct slot {
  uint64_t slice; /* NO_SLICE: empty */
  unsigned holders;
  uint64_t last_use;
  int is_zero; /* no block of it is in any layer */
  uint16_t layer[CAIRN__PAGE_BLOCKS];
  uint64_t position[CAIRN__PAGE_BLOCKS];
};

struct layers_source {
  struct cairn__source source; /* first */
  struct cairn__layer **layers;
  uint64_t *limits;
  size_t count;
  pthread_mutex_t lock; /* slots' headers, and the layers' own caches */
  struct slot **slots;
  size_t slot_count;
  uint64_t uses;
  /* for filling a slot */
  uint8_t *states;
  uint64_t *positions;
};

static struct layers_source *layers_of(struct cairn__source *s)
{
  return (struct layers_source *)s;
}

static int fill_slot_locked(struct layers_source *s, struct slot *slot,
                            uint64_t slice, struct cairn_error *err)
{
  uint64_t first = slice * CAIRN__PAGE_BLOCKS;
  unsigned char *is_settled = s->states + CAIRN__PAGE_BLOCKS;
  size_t k = s->count, b;

  memset(is_settled, 0, CAIRN__PAGE_BLOCKS);
  for (b = 0; b < CAIRN__PAGE_BLOCKS; b++) {
    slot->layer[b] = NO_LAYER;
  }
  slot->is_zero = 1;
  while (k-- > 0) {
    uint64_t end = (s->limits[k] + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
    size_t n;
    int is_empty;

    if (end <= first) {
      break; /* from here down nothing is seen */
    }
    n = end - first < CAIRN__PAGE_BLOCKS ? (size_t)(end - first)
                                         : CAIRN__PAGE_BLOCKS;
    if (cairn__layer_is_empty(s->layers[k], slice, &is_empty, err) != 0) {
      return -1;
    }
    if (is_empty) {
      continue;
    }
    if (cairn__layer_blocks(s->layers[k], first, n, s->states, s->positions,
                            err) != 0) {
      return -1;
    }
    for (b = 0; b < n; b++) {
      if (s->states[b] == CAIRN__UNCHANGED || is_settled[b]) {
        continue;
      }
      is_settled[b] = 1;
      if (s->states[b] == CAIRN__DATA) {
        slot->layer[b] = (uint16_t)k;
        slot->position[b] = s->positions[b];
        slot->is_zero = 0;
      }
    }
  }
  return 0;
}

/* The slot of a slice, held until slot_release. */
static int slot_take(struct layers_source *s, uint64_t slice, struct slot **out,
                     struct cairn_error *err)
{
  struct slot *found = NULL;
  size_t i;

  pthread_mutex_lock(&s->lock);
  for (i = 0; i < s->slot_count; i++) {
    struct slot *slot = s->slots[i];

    if (slot->slice == slice) {
      found = slot;
      break;
    }
    if (slot->holders == 0 &&
        (found == NULL || slot->last_use < found->last_use)) {
      found = slot;
    }
  }
  if (found == NULL) {
    pthread_mutex_unlock(&s->lock);
    cairn__fail(err, CAIRN_E_INTERNAL, "more readers than announced");
    return -1;
  }
  if (found->slice != slice) {
    found->slice = NO_SLICE;
    if (fill_slot_locked(s, found, slice, err) != 0) {
      pthread_mutex_unlock(&s->lock);
      return -1;
    }
    found->slice = slice;
  }
  found->holders++;
  found->last_use = ++s->uses;
  *out = found;
  pthread_mutex_unlock(&s->lock);
  return 0;
}

static void slot_release(struct layers_source *s, struct slot *slot)
{
  pthread_mutex_lock(&s->lock);
  slot->holders--;
  pthread_mutex_unlock(&s->lock);
}

static int layers_extent(struct cairn__source *source, uint64_t offset,
                         uint64_t most, struct cairn__extent *out,
                         struct cairn_error *err)
{
  struct layers_source *s = layers_of(source);
  uint64_t block = offset / CAIRN__BLOCK, end = offset;
  uint64_t blocks = (source->length + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  int is_zero = 0, slices;

  (void)most;
  for (slices = 0; slices < EXTENT_SLICES && block < blocks; slices++) {
    struct slot *slot;
    uint64_t stop = (block / CAIRN__PAGE_BLOCKS + 1) * CAIRN__PAGE_BLOCKS;

    if (slot_take(s, block / CAIRN__PAGE_BLOCKS, &slot, err) != 0) {
      return -1;
    }
    if (slices == 0) {
      is_zero = slot->layer[block % CAIRN__PAGE_BLOCKS] == NO_LAYER;
    }
    if (stop > blocks) {
      stop = blocks;
    }
    if (is_zero && slot->is_zero) {
      block = stop;
    }
    while (block < stop &&
           (slot->layer[block % CAIRN__PAGE_BLOCKS] == NO_LAYER) == is_zero) {
      block++;
    }
    slot_release(s, slot);
    end = block * CAIRN__BLOCK;
    if (block < stop) {
      break;
    }
  }
  out->offset = offset;
  out->length = (end < source->length ? end : source->length) - offset;
  out->is_zero = is_zero;
  return 0;
}

/* Bytes of one slice: offset .. offset + n lies in it. */
static int read_slice(struct layers_source *s, const struct slot *slot,
                      unsigned char *buf, size_t n, uint64_t offset,
                      struct cairn_error *err)
{
  uint64_t length = s->source.length;

  while (n > 0) {
    size_t at = (size_t)(offset / CAIRN__BLOCK % CAIRN__PAGE_BLOCKS);
    size_t within = (size_t)(offset % CAIRN__BLOCK);
    size_t part = CAIRN__BLOCK - within, there;
    unsigned k = slot->layer[at];
    uint64_t limit;

    /* as many blocks as lie side by side */
    while (part < n && slot->layer[at + 1] == k &&
           (k == NO_LAYER ||
            slot->position[at + 1] == slot->position[at] + CAIRN__BLOCK)) {
      at++;
      part += CAIRN__BLOCK;
    }
    if (part > n) {
      part = n;
    }
    at = (size_t)(offset / CAIRN__BLOCK % CAIRN__PAGE_BLOCKS);
    limit = k == NO_LAYER ? 0 : s->limits[k];
    if (limit > length) {
      limit = length;
    }
    there = offset >= limit         ? 0
            : limit - offset < part ? (size_t)(limit - offset)
                                    : part;
    if (there > 0 &&
        cairn__layer_read_bytes(s->layers[k], slot->position[at] + within,
                                there, buf, err) != 0) {
      return -1;
    }
    memset(buf + there, 0, part - there);
    buf += part;
    offset += part;
    n -= part;
  }
  return 0;
}

static int layers_read(struct cairn__source *source, unsigned reader, void *buf,
                       size_t n, uint64_t offset, struct cairn_error *err)
{
  const uint64_t slice_bytes = (uint64_t)CAIRN__PAGE_BLOCKS * CAIRN__BLOCK;
  struct layers_source *s = layers_of(source);
  unsigned char *p = buf;

  (void)reader;
  while (n > 0) {
    uint64_t slice = offset / slice_bytes;
    size_t part = (size_t)(slice_bytes - offset % slice_bytes);
    struct slot *slot;
    int rc;

    if (offset >= source->length) {
      memset(p, 0, n);
      return 0;
    }
    if (part > n) {
      part = n;
    }
    if (slot_take(s, slice, &slot, err) != 0) {
      return -1;
    }
    rc = read_slice(s, slot, p, part, offset, err);
    slot_release(s, slot);
    if (rc != 0) {
      return -1;
    }
    p += part;
    offset += part;
    n -= part;
  }
  return 0;
}

static int layers_check_still(struct cairn__source *source,
                              struct cairn_error *err)
{
  struct layers_source *s = layers_of(source);
  size_t i;

  for (i = 0; i < s->count; i++) {
    if (cairn__layer_check_still(s->layers[i], err) != 0) {
      return -1;
    }
  }
  return 0;
}

/* Frees all but the layers themselves. */
static void layers_free(struct layers_source *s)
{
  size_t i;

  for (i = 0; s->slots != NULL && i < s->slot_count; i++) {
    cairn__free(s->slots[i]);
  }
  cairn__free(s->slots);
  cairn__free(s->states);
  cairn__free(s->positions);
  cairn__free(s->limits);
  cairn__free(s->layers);
  cairn__free(s->source.path);
  pthread_mutex_destroy(&s->lock);
  cairn__free(s);
}

static void layers_close(struct cairn__source *source)
{
  struct layers_source *s = layers_of(source);
  size_t i;

  for (i = 0; i < s->count; i++) {
    cairn__layer_close(s->layers[i]);
  }
  layers_free(s);
}

static const struct cairn__source_ops layers_ops = {
    .extent = layers_extent,
    .read = layers_read,
    .check_still = layers_check_still,
    .close = layers_close,
};

int cairn__source_open_layers(struct cairn__layer **layers, size_t count,
                              uint64_t length, const char *path,
                              unsigned readers, struct cairn__source **out,
                              struct cairn_error *err)
{
  struct layers_source *s;
  uint64_t limit = UINT64_MAX;
  size_t i;

  *out = NULL;
  if (count == 0 || count > LAYERS_MAX) {
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "%s: a chain of %zu layers; 1 to %d are possible", path,
                       count, LAYERS_MAX);
  }
  s = cairn__calloc(1, sizeof *s);
  if (s == NULL) {
    return cairn__fail_memory(err);
  }
  pthread_mutex_init(&s->lock, NULL);
  s->source.ops = &layers_ops;
  s->source.length = length;
  s->source.virtual_size =
      cairn__layer_get_info(layers[count - 1])->virtual_size;
  s->source.readers = readers < 1             ? 1
                      : readers > READERS_MAX ? READERS_MAX
                                              : readers;
  s->count = count;
  s->slot_count = s->source.readers + 1;
  s->source.path = cairn__strdup(path);
  s->layers = cairn__calloc(count, sizeof(struct cairn__layer *));
  s->limits = cairn__calloc(count, sizeof *s->limits);
  s->states = cairn__malloc((size_t)2 * CAIRN__PAGE_BLOCKS);
  s->positions = cairn__calloc(CAIRN__PAGE_BLOCKS, sizeof *s->positions);
  s->slots = cairn__calloc(s->slot_count, sizeof(struct slot *));
  if (s->source.path == NULL || s->layers == NULL || s->limits == NULL ||
      s->states == NULL || s->positions == NULL || s->slots == NULL) {
    layers_free(s);
    return cairn__fail_memory(err);
  }
  for (i = 0; i < s->slot_count; i++) {
    s->slots[i] = cairn__calloc(1, sizeof *s->slots[i]);
    if (s->slots[i] == NULL) {
      layers_free(s);
      return cairn__fail_memory(err);
    }
    s->slots[i]->slice = NO_SLICE;
  }
  for (i = count; i-- > 0;) {
    uint64_t end = cairn__layer_get_info(layers[i])->virtual_size;

    limit = end < limit ? end : limit;
    s->limits[i] = limit;
    s->layers[i] = layers[i];
  }
  if (length > s->source.virtual_size ||
      s->source.virtual_size - length >= 512) {
    uint64_t virtual_size = s->source.virtual_size;

    layers_free(s);
    return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                       "%s: %" PRIu64
                       " bytes of content in a disk with a size of %" PRIu64,
                       path, length, virtual_size);
  }
  *out = &s->source;
  return 0;
}
