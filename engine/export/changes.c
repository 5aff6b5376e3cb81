/* changes.c: see changes.h. */
#include "changes.h"

#include "digest.h"
#include "error.h"
#include "memory.h"

#define WORD_BITS 64u

struct cairn__changes {
  uint64_t blocks, words;
  uint64_t *bits; /* those beyond the last block are clear */
};

int cairn__changes_new(uint64_t length, struct cairn__changes **out,
                       struct cairn_error *err)
{
  struct cairn__changes *c = cairn__calloc(1, sizeof *c);

  *out = NULL;
  if (!c)
    return cairn__fail_memory(err);
  c->blocks = length / CAIRN__BLOCK + (length % CAIRN__BLOCK != 0);
  c->words = c->blocks / WORD_BITS + (c->blocks % WORD_BITS != 0);
  c->bits = cairn__calloc(c->words ? (size_t)c->words : 1, sizeof *c->bits);
  if (!c->bits) {
    cairn__free(c);
    return cairn__fail_memory(err);
  }
  *out = c;
  return 0;
}

void cairn__changes_free(struct cairn__changes *c)
{
  if (!c)
    return;
  cairn__free(c->bits);
  cairn__free(c);
}

void cairn__changes_mark(struct cairn__changes *c, uint64_t offset, uint64_t n)
{
  uint64_t first = offset / CAIRN__BLOCK, end;

  if (n == 0 || first >= c->blocks)
    return;
  end =
      n > UINT64_MAX - offset ? c->blocks : (offset + n - 1) / CAIRN__BLOCK + 1;
  if (end > c->blocks)
    end = c->blocks;
  while (first < end) {
    uint64_t at = first % WORD_BITS, count = WORD_BITS - at;

    if (count > end - first)
      count = end - first;
    c->bits[first / WORD_BITS] |=
        (count == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1) << at;
    first += count;
  }
}

uint64_t cairn__changes_blocks(const struct cairn__changes *c)
{
  return c->blocks;
}

uint64_t cairn__changes_count(const struct cairn__changes *c)
{
  uint64_t n = 0;

  for (uint64_t i = 0; i < c->words; i++)
    n += (uint64_t)__builtin_popcountll(c->bits[i]);
  return n;
}

int cairn__changes_is_set(const struct cairn__changes *c, uint64_t block)
{
  return block < c->blocks &&
         (c->bits[block / WORD_BITS] >> block % WORD_BITS & 1) != 0;
}

uint64_t cairn__changes_run(const struct cairn__changes *c, uint64_t block,
                            int *is_set)
{
  uint64_t at = block;

  *is_set = cairn__changes_is_set(c, block);
  while (at < c->blocks) {
    uint64_t rest = c->bits[at / WORD_BITS] >> at % WORD_BITS;
    uint64_t left = WORD_BITS - at % WORD_BITS;
    uint64_t alike;

    if (*is_set)
      rest = ~rest;
    alike = rest ? (uint64_t)__builtin_ctzll(rest) : left;
    if (alike >= left) {
      at += left;
      continue;
    }
    at += alike;
    break;
  }
  return (at < c->blocks ? at : c->blocks) - block;
}
