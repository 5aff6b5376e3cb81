/* Chains of intrusive nodes; there are at most as many buckets as it takes to
 * hold one node each, unless memory for more was missing. */
#include "table.h"

#include "memory.h"

int cairn__table_init(struct cairn__table *t)
{
  t->size = 64;
  t->count = 0;
  t->buckets = cairn__calloc(t->size, sizeof(void *));
  return t->buckets ? 0 : -1;
}

/* Serials are dense, cookies may be multiples of something: mix. */
static struct cairn__link **bucket_of(const struct cairn__table *t,
                                      uint64_t key)
{
  key *= UINT64_C(0x9e3779b97f4a7c15);
  return &t->buckets[(key >> 32) & (t->size - 1)];
}

static void grow(struct cairn__table *t)
{
  struct cairn__table bigger = {.size = t->size * 2, .count = t->count};

  bigger.buckets = cairn__calloc(bigger.size, sizeof(void *));
  if (!bigger.buckets)
    return;
  for (size_t i = 0; i < t->size; i++) {
    struct cairn__link *link = t->buckets[i];

    while (link) {
      struct cairn__link *next = link->next, **bucket;

      bucket = bucket_of(&bigger, link->key);
      link->next = *bucket;
      *bucket = link;
      link = next;
    }
  }
  cairn__free(t->buckets);
  *t = bigger;
}

void cairn__table_add(struct cairn__table *t, struct cairn__link *link,
                      uint64_t key)
{
  struct cairn__link **bucket;

  if (t->count >= t->size && t->size < (size_t)1 << 31)
    grow(t);
  bucket = bucket_of(t, key);
  link->key = key;
  link->next = *bucket;
  *bucket = link;
  t->count++;
}

void cairn__table_remove(struct cairn__table *t, struct cairn__link *link)
{
  struct cairn__link **p = bucket_of(t, link->key);

  while (*p && *p != link)
    p = &(*p)->next;
  if (*p) {
    *p = link->next;
    t->count--;
  }
}

void cairn__table_replace(struct cairn__table *t, struct cairn__link *old,
                          struct cairn__link *link)
{
  struct cairn__link **p = bucket_of(t, old->key);

  while (*p != old)
    p = &(*p)->next;
  *link = *old;
  *p = link;
}

struct cairn__link *cairn__table_find(const struct cairn__table *t,
                                      uint64_t key,
                                      const struct cairn__link *after)
{
  struct cairn__link *link = after ? after->next : *bucket_of(t, key);

  while (link && link->key != key)
    link = link->next;
  return link;
}

void cairn__table_free(struct cairn__table *t)
{
  cairn__free(t->buckets);
  *t = (struct cairn__table){0};
}
