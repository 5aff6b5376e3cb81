/* The journal of a disk: what has been written of its image, so that a run that
 * was interrupted can be taken up again. "<VirtualMachineId>.<disk>.journal" in
 * the work directory.
 *
 * It is an array with a slot for each block of the disk, 64 bytes from the
 * beginning, sparse: a look-up is one small read, nothing is held in memory,
 * and writing costs one small request for each piece of the copy. A slot is
 * written after the block, and says that a block with this digest was written
 * to this place when the source showed this content ("origin").
 *
 * Nothing is believed that it says. The block may never have reached the disk,
 * the slot may be torn, old, or damaged: whoever uses it reads the block back
 * and compares. So its writes need neither order nor a sync. The one thing that
 * cannot be seen in the block is what the source holds there; for that a slot
 * is bound to its origin and its block by a checksum, and it is vouched for
 * only when it carries the origin that the caller knows, and the block is none
 * that may have changed since.
 *
 * Little endian. Header: "CAIRNJN\0", version 1 (4), bytes of a digest (4),
 * virtual size (8), zeros. Slot: digest (16 or 32); place | 1 (8), 0 = none;
 * XXH3-64 of origin, block, digest and place word (8).
 *
 * Thread: reads and writes from any, for blocks that no other is at. */
#ifndef CAIRN_EXPORT_JOURNAL_H
#define CAIRN_EXPORT_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include "changes.h"
#include "digest.h"
#include "io.h"

#define CAIRN__JOURNAL_SUFFIX ".journal"

struct cairn__journal;

struct cairn__journal_options {
  const struct cairn_io *io;
  int dirfd;
  const char *name, *path; /* path: for messages */
  const struct cairn__digester *digester;
  uint64_t virtual_size;
  unsigned char origin[16];   /* names what the source shows, in slots that are
                                 written */
  const unsigned char *known; /* names what the source showed to an earlier run,
                                 16 bytes; NULL: nothing is known of that */
  const struct cairn__changes *since; /* what may differ from it; NULL: nothing;
                                         the caller's, for as long as it is
                                         open */
};

/* Opens it, or makes it, or makes it anew when it does not fit. */
int cairn__journal_open(const struct cairn__journal_options *o,
                        struct cairn__journal **out, struct cairn_error *err);
void cairn__journal_close(struct cairn__journal *j); /* NULL allowed */
/* The bytes [*from, *to) of a journal that the slot of a block takes: to know
 * what space it will need. */
void cairn__journal_place(unsigned digest_size, uint64_t block, uint64_t *from,
                          uint64_t *to);

struct cairn__journal_slot {
  int is_written; /* a block with this digest, there */
  int is_vouched; /* and the caller's source has it */
  uint64_t position;
  unsigned char digest[CAIRN__DIGEST_MAX];
};
/* What cannot be read counts as not written. */
void cairn__journal_read(struct cairn__journal *j, uint64_t first, size_t count,
                         struct cairn__journal_slot *slots);
/* Blocks in state DATA or KEPT lie at positions[i]; of the others nothing is
 * known any more. At most CAIRN__JOURNAL_MOST. Never fails for the copy: the
 * first error ends the journal, and is kept. */
#define CAIRN__JOURNAL_MOST 64u
void cairn__journal_write(struct cairn__journal *j, uint64_t first,
                          size_t count, const uint8_t *states,
                          const uint64_t *positions,
                          const unsigned char *digests);
/* 0, or -1 with what ended it. */
int cairn__journal_check(struct cairn__journal *j, struct cairn_error *err);

#endif
