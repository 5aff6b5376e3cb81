/* The chain of files behind a source image: the image, the file it is based
 * on, and so on. Every header is read and every file opened and locked here,
 * before any other program sees them, so that the chain can be given to QEMU
 * explicitly and nothing in it is guessed or followed by name later.
 *
 * What is refused, because reading it would be wrong or would leave what the
 * caller declared: marked or evidently corrupt images, encryption, external
 * data files, features that are not known, backing files without a recorded
 * format, with json: or protocol names, outside the allowed directories, in a
 * loop, or more than 64 deep. */
#ifndef CAIRN_EXPORT_CHAIN_H
#define CAIRN_EXPORT_CHAIN_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "lock.h"

#define CAIRN__SOURCE_CHAIN_MAX 64

struct cairn__qcow2_header {
  uint32_t version, cluster_bits, l1_size, snapshots;
  uint64_t virtual_size, l1_offset, incompatible, autoclear;
  uint64_t bitmaps_offset; /* of the bitmaps extension's data */
  uint32_t bitmaps_length; /* its length; 0: there is none */
  int has_backing;
  char backing[1024];      /* as recorded */
  char backing_format[32]; /* "" = not recorded */
};

/* Reads and checks the header of an open image. `who` names the image in
 * messages: an error's path is h->path. */
int cairn__qcow2_header_read(const struct cairn__held *h,
                             struct cairn__qcow2_header *out,
                             struct cairn_error *err);
/* Walks the tables: SOURCE_CORRUPT when one, or a cluster, is not aligned or
 * lies beyond the end of the file (QEMU reads those as zeros and says
 * nothing). `run` (may be NULL, else entered) has its gate passed. */
int cairn__qcow2_tables_check(const struct cairn__held *h,
                              const struct cairn__qcow2_header *header,
                              struct cairn__run *run, struct cairn_error *err);

/* Calls `found` for every range that the image itself holds, be it data or
 * explicit zeros: elsewhere it reads as its backing file does. `run` as
 * above. */
int cairn__qcow2_allocated(const struct cairn__held *h,
                           const struct cairn__qcow2_header *header,
                           struct cairn__run *run,
                           void (*found)(void *argument, uint64_t offset,
                                         uint64_t length),
                           void *argument, struct cairn_error *err);

/* Calls `found` (0, or -1 with *err) for every range of the disk that reads as
 * zeros, ascending, from the tables alone: of an image without a backing file
 * whose entries have no subclusters (cairn__qcow2_has_plain_zeros). `run` as
 * above. */
int cairn__qcow2_zeros(const struct cairn__held *h,
                       const struct cairn__qcow2_header *header,
                       struct cairn__run *run,
                       int (*found)(void *argument, uint64_t offset,
                                    uint64_t length, struct cairn_error *err),
                       void *argument, struct cairn_error *err);
int cairn__qcow2_has_plain_zeros(const struct cairn__qcow2_header *header);

/* n bytes at `offset` of the file, all there or SOURCE_CORRUPT; `what` names
 * them in the message. */
int cairn__held_read(const struct cairn__held *h, void *buf, size_t n,
                     uint64_t offset, const char *what,
                     struct cairn_error *err);

struct cairn__chain_layer {
  struct cairn__held held;
  int is_qcow2; /* else raw: the last */
  uint32_t snapshots;
};

struct cairn__chain {
  size_t count;
  uint64_t virtual_size; /* of the image, layers[0] */
  uint32_t snapshots;    /* internal ones, over all layers */
  struct cairn__chain_layer layers[CAIRN__SOURCE_CHAIN_MAX];
};

/* o->path is a qcow2 image. */
int cairn__chain_open(const struct cairn__source_options *o,
                      struct cairn__run *run, struct cairn__chain **out,
                      struct cairn_error *err);
int cairn__chain_check_still(const struct cairn__chain *c,
                             struct cairn_error *err);
void cairn__chain_close(struct cairn__chain *c); /* NULL allowed */

/* What a source reads, for checks of the caller's: the chain of a qcow2
 * source, the file of a raw one; NULL when it is neither. */
const struct cairn__chain *cairn__source_chain(const struct cairn__source *s);
const struct cairn__held *cairn__source_raw_held(const struct cairn__source *s);

/* The absolute path of an open file, free of links; 0 or -1 (unknown). */
int cairn__held_real_path(const struct cairn__held *h, char *path, size_t size);
/* 1 when `path` is `directory` or below it; both absolute, without links. */
int cairn__is_inside(const char *path, const char *directory);

#endif
