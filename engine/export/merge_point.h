/* Writing a point anew with another base: its disks as fulls, or as increments
 * on an older point of their chains. What the point holds stays the same to
 * the last bit, and so do its id, its paths and the digests of its content:
 * increments on it stay valid.
 *
 * For the kinds "merge" and "prune". Thread: one at a time. */
#ifndef CAIRN_EXPORT_MERGE_POINT_H
#define CAIRN_EXPORT_MERGE_POINT_H

#include "changes.h"
#include "points.h"
#include "publish.h"
#include "run.h"

struct cairn__merge_disk {
  const json_t *image; /* of the point's manifest */
  struct cairn__link *links;
  size_t depth; /* of the chain, 1 = a full */
  size_t base;  /* links[base] becomes its base; 0: it becomes a full */
  int is_kept;  /* stays the file that it is */
  const struct cairn__point *base_point; /* where it will be looked for */
  const json_t *base_image;
  struct cairn__changes *changes; /* against the base */
  uint64_t data_bytes;            /* content that is read and written */
  uint64_t target_bytes;          /* files: an upper estimate */
  json_t *entry;                  /* of the new manifest, once written */
};

struct cairn__merge {
  const struct cairn_io *io;
  struct cairn__run *run;        /* NULL: a dry run; else entered */
  struct cairn__exports *x;      /* where the point is read */
  struct cairn__exports *target; /* where its base will be; NULL: in x */
  int is_elsewhere;              /* nothing of it can be linked */
  struct cairn__point *p;        /* owned */
  struct cairn__digester digester;
  struct cairn__merge_disk *disks;
  size_t disk_count;
  /* after measuring: sums over the disks that are written */
  uint64_t data_bytes, target_bytes;
};

/* Opens the point (taken) and walks its chains. x, io and run are set. */
int cairn__merge_open(struct cairn__merge *m, struct cairn__point *p,
                      struct cairn_error *err);
void cairn__merge_close(struct cairn__merge *m); /* idempotent */

/* For every disk: the nearest point below it that `is_base` says yes to becomes
 * its base. Where there is none it becomes a full, or is kept if
 * `is_kept_without`. A disk that is so already is kept, unless it is written
 * elsewhere. *written: how many are written. */
int cairn__merge_choose(struct cairn__merge *m,
                        int (*is_base)(const void *context, const char *id),
                        const void *context, int is_kept_without,
                        size_t *written, struct cairn_error *err);
/* Compares the digest maps, having proved them, and fills the estimates. */
int cairn__merge_measure(struct cairn__merge *m, struct cairn_error *err);
/* Writes all of the point, its manifest last, into the publication's point/.
 * Every block is checked against the digest map while it is read. */
int cairn__merge_write(struct cairn__merge *m, struct cairn__publication *pub,
                       struct cairn_error *err);
/* An array with an object for each disk; NULL when out of memory. */
json_t *cairn__merge_report(const struct cairn__merge *m);
/* The name of the directory that holds the point. */
const char *cairn__merge_name(const struct cairn__merge *m);

#endif
