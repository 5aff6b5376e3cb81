/* A hash table of nodes that live inside what they name. Keys are 64 bits and
 * are expected to be spread already or dense; several nodes may share one. */
#ifndef CAIRN_TABLE_H
#define CAIRN_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct cairn__link {
  struct cairn__link *next;
  uint64_t key;
};

struct cairn__table {
  struct cairn__link **buckets;
  size_t size, count; /* size is a power of two */
};

/* What a node is part of. */
#define CAIRN__OF(link, type, member)                                          \
  ((type *)(void *)((char *)(link)-offsetof(type, member)))

/* 0, or -1 when out of memory. */
int cairn__table_init(struct cairn__table *t);
/* Never fails: a table that cannot grow gets slower. */
void cairn__table_add(struct cairn__table *t, struct cairn__link *link,
                      uint64_t key);
void cairn__table_remove(struct cairn__table *t, struct cairn__link *link);
/* Another node, which has the same key, takes the place of one. */
void cairn__table_replace(struct cairn__table *t, struct cairn__link *old,
                          struct cairn__link *link);
/* The first node of a key, or the next one after `after`; NULL: none. */
struct cairn__link *cairn__table_find(const struct cairn__table *t,
                                      uint64_t key,
                                      const struct cairn__link *after);
void cairn__table_free(struct cairn__table *t);

#endif
