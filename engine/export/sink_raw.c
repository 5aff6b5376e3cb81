/* A raw disk: the content at its own offsets, holes where it is zero, and
 * exactly the content's length. A file block is a block of the disk, so the
 * file's tree digest is made of the content's digests alone. In a file that was
 * taken over, what is zero now is made a hole again. */
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"
#include "sink_file.h"

struct raw_sink {
  struct cairn__sink sink; /* first */
  struct cairn__sink_file file;
  const struct cairn__digester *digester;
  struct cairn__tree *tree;
  uint64_t length, blocks;
  uint64_t next_block; /* reserve() has passed everything below */
  uint64_t settled;    /* so many are in the tree; zeros up to next_block */
};

static struct raw_sink *raw_of(struct cairn__sink *s)
{
  return (struct raw_sink *)s;
}

static void raw_free(struct raw_sink *r)
{
  cairn__tree_free(r->tree);
  cairn__free(r);
}

static void raw_abort(struct cairn__sink *s)
{
  struct raw_sink *r = raw_of(s);

  cairn__sink_file_abort(&r->file);
  raw_free(r);
}

/* The blocks from `settled` up to `end` hold zeros. */
static int pass_zeros(struct raw_sink *r, uint64_t end, struct cairn_error *err)
{
  uint64_t from = r->settled * CAIRN__BLOCK, to = end * CAIRN__BLOCK;

  if (cairn__tree_append(r->tree, NULL, end - r->settled) != 0) {
    return cairn__fail_memory(err);
  }
  r->settled = end;
  if (to > r->length) {
    to = r->length;
  }
  if (!r->file.is_resumed || from >= to) {
    return 0;
  }
  return cairn__sink_file_clear(&r->file, from, to - from, err);
}

static int raw_reserve(struct cairn__sink *s, uint64_t first, size_t count,
                       const uint8_t *states, const unsigned char *digests,
                       uint64_t *positions, struct cairn_error *err)
{
  struct raw_sink *r = raw_of(s);
  size_t i;

  if (first < r->next_block || first > r->blocks || count > r->blocks - first) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: blocks %" PRIu64
                       "+%zu reserved after block %" PRIu64 " of %" PRIu64,
                       r->file.path, first, count, r->next_block, r->blocks);
  }
  r->next_block = first + count;
  for (i = 0; i < count; i++) {
    positions[i] = 0;
    if (states[i] != CAIRN__DATA) {
      continue; /* with those that follow it */
    }
    if (pass_zeros(r, first + i, err) != 0) {
      return -1;
    }
    if (cairn__tree_append(r->tree, digests + i * r->digester->size, 1) != 0) {
      return cairn__fail_memory(err);
    }
    positions[i] = (first + i) * CAIRN__BLOCK;
    cairn__sink_file_reserve(&r->file, positions[i]);
    r->settled++;
  }
  return 0;
}

static int raw_write(struct cairn__sink *s, uint64_t first, size_t count,
                     const uint8_t *states, const uint64_t *positions,
                     const unsigned char *buf, struct cairn_error *err)
{
  struct raw_sink *r = raw_of(s);

  (void)first;
  return cairn__sink_file_write_blocks(&r->file, count, states, positions, buf,
                                       r->length, err);
}

static int raw_read(struct cairn__sink *s, uint64_t position, size_t n,
                    unsigned char *buf)
{
  return cairn__sink_file_read(&raw_of(s)->file, position, n, buf);
}

static int raw_finish(struct cairn__sink *s, struct cairn__file_result *result,
                      struct cairn_error *err)
{
  struct raw_sink *r = raw_of(s);

  if (cairn__sink_file_check(&r->file, err) != 0) {
    raw_abort(s);
    return -1;
  }
  if (pass_zeros(r, r->blocks, err) != 0) {
    raw_abort(s);
    return -1;
  }
  if (cairn__sink_file_finish(&r->file, err) != 0) {
    raw_free(r);
    return -1;
  }
  memset(result, 0, sizeof *result);
  result->size = r->length;
  cairn__tree_root(r->tree, r->length, result->digest);
  raw_free(r);
  return 0;
}

static const struct cairn__sink_ops raw_ops = {
    .reserve = raw_reserve,
    .write = raw_write,
    .read = raw_read,
    .finish = raw_finish,
    .abort = raw_abort,
};

int cairn__sink_open_raw(const struct cairn__sink_options *o,
                         struct cairn__sink **out, struct cairn_error *err)
{
  struct raw_sink *r;

  *out = NULL;
  if (o->backing_name != NULL || o->length > INT64_MAX - CAIRN__BLOCK) {
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "%s: a raw file of %" PRIu64 " bytes%s",
                       o->path != NULL ? o->path : o->name, o->length,
                       o->backing_name != NULL ? " with a backing file" : "");
  }
  r = cairn__calloc(1, sizeof *r);
  if (r == NULL) {
    return cairn__fail_memory(err);
  }
  r->sink.ops = &raw_ops;
  r->digester = o->digester;
  r->length = o->length;
  r->blocks = (o->length + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
  r->tree = cairn__tree_new(o->digester);
  if (r->tree == NULL) {
    raw_free(r);
    return cairn__fail_memory(err);
  }
  if (cairn__sink_file_open(&r->file, o, err) != 0) {
    raw_free(r);
    return -1;
  }
  if (cairn__sink_file_truncate(&r->file, r->length, err) != 0) {
    raw_abort(&r->sink);
    return -1;
  }
  *out = &r->sink;
  return 0;
}
