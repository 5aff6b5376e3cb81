/* A sink that writes nothing: it remembers which blocks an image would hold,
 * for dry runs. What the image takes on disk is then known to the byte. */
#ifndef CAIRN_EXPORT_SINK_PLAN_H
#define CAIRN_EXPORT_SINK_PLAN_H

#include <jansson.h>

#include "image.h"

/* Ranges that are listed; what is beyond is counted only. */
#define CAIRN__PLAN_RANGES 10000u

struct cairn__sink_plan {
  struct cairn__sink sink; /* first; finish() and abort() do nothing */
  uint64_t length, virtual_size;
  json_t *ranges; /* {offset, length, state: "data"|"zero"}, ascending; bytes of
                     the disk */
  size_t ranges_left_out;
  uint64_t data_blocks, zero_blocks, slices;
  uint64_t last_data; /* the last of data_blocks */
  unsigned digest_size;
  uint64_t journal_pages, last_page; /* of 4 KiB: what a journal of the data
                                        takes, and where it ends */
  /* the range that grows */
  uint64_t first, next, last_slice;
  int state;
};

int cairn__sink_plan_init(struct cairn__sink_plan *p, uint64_t length,
                          uint64_t virtual_size, unsigned digest_size,
                          struct cairn_error *err);
/* After the copy: bytes that a qcow2 takes on disk, or a raw file, which has
 * holes. */
int cairn__sink_plan_end(struct cairn__sink_plan *p, int is_raw, uint64_t *size,
                         struct cairn_error *err);
void cairn__sink_plan_free(struct cairn__sink_plan *p); /* idempotent */

#endif
