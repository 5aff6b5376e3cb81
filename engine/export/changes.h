/* Which blocks of a disk may differ from a base: what a tracker has found out.
 * One bit for each block of 64 KiB, 2 MiB for 1 TiB of disk.
 *
 * A bit that is set promises nothing; a bit that is clear promises that the
 * block reads as it did at the base. So whoever is in doubt sets it.
 *
 * Thread: one at a time while it is filled, shared freely afterwards. */
#ifndef CAIRN_EXPORT_CHANGES_H
#define CAIRN_EXPORT_CHANGES_H

#include <stdint.h>

#include "cairn.h"

struct cairn__changes;

/* For a disk of `length` bytes; all bits clear. */
int cairn__changes_new(uint64_t length, struct cairn__changes **out,
                       struct cairn_error *err);
void cairn__changes_free(struct cairn__changes *c); /* NULL allowed */

/* Sets every block that the bytes offset .. offset + n - 1 touch; what lies
 * beyond the end is left out. */
void cairn__changes_mark(struct cairn__changes *c, uint64_t offset, uint64_t n);

uint64_t cairn__changes_blocks(const struct cairn__changes *c);
/* How many bits are set. */
uint64_t cairn__changes_count(const struct cairn__changes *c);
int cairn__changes_is_set(const struct cairn__changes *c, uint64_t block);
/* The number of blocks from `block` (< blocks) on that are alike, >= 1;
 * *is_set: what they are. */
uint64_t cairn__changes_run(const struct cairn__changes *c, uint64_t block,
                            int *is_set);

#endif
