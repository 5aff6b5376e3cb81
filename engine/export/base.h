/* Which earlier point an increment is made from, chosen for every disk.
 *
 * A base has to be usable by everybody who will read the increment: our own
 * reader, which finds points by their ids, and QEMU, which follows the relative
 * backing name. So it lies in the export directory under its id, it and all it
 * rests on are complete, its digest map is the one its manifest speaks of, and
 * there is room for one more level. What was written to after its manifest is
 * proved first, every byte of it.
 *
 * "latest" takes the newest point of the collection that has the disk and is
 * usable, and says why where there is none; an id is taken or refused. */
#ifndef CAIRN_EXPORT_BASE_H
#define CAIRN_EXPORT_BASE_H

#include <jansson.h>

#include "points.h"
#include "run.h"

/* Levels of a chain that an export makes without being asked. */
#define CAIRN__DEPTH_DEFAULT 32u

/* Of one disk. */
struct cairn__base {
  const struct cairn__point *point; /* NULL: none, the disk becomes a full;
                                       belongs to the bases */
  const json_t *image;              /* of its manifest */
  size_t depth;                     /* images from it down to the full */
  char *backing_name;               /* relative, as the new image has it */
  char *reason;                     /* why there is none; or NULL */
  int is_notable;                   /* the reason is worth a warning */
};

struct cairn__bases_options {
  const struct cairn_io *io;
  struct cairn__run *run; /* entered */
  const char *directory;  /* the export directory */
  const char *collection; /* CollectionId */
  const char *wanted;     /* "none", "latest", or an id (a prefix of it) */
  unsigned depth_limit;   /* 0: the default */
  int algorithm;
};

struct cairn__bases {
  struct cairn__bases_options o;
  struct cairn__exports x;
  json_t *points;      /* manifests of this collection that can be read, oldest
                          first, as cairn__points_read() gives them */
  json_int_t sequence; /* the highest of them; 0 = none */
  const struct cairn__point *point; /* `wanted` when it is an id */
  int has_key; /* the digester has the secret of the points to come */
  struct cairn__digester digester;
  char *real_path; /* of the directory, for what QEMU makes of it */
};

/* Reads the directory. NOT_FOUND, AMBIGUOUS, INVALID_ARGUMENT (the base of
 * another collection), EXPORT_CORRUPT, ... when `wanted` is an id and cannot be
 * had; OUT_OF_RANGE when depth_limit is more than QEMU opens. On failure it is
 * still to be closed. */
int cairn__bases_open(const struct cairn__bases_options *o,
                      struct cairn__bases *out, struct cairn_error *err);
/* Chooses for one disk. After the last of them `digester` is that of the new
 * point when has_key is set; else any secret will do. */
int cairn__bases_choose(struct cairn__bases *b, const char *vm,
                        const char *disk, struct cairn__base *out,
                        struct cairn_error *err);
/* The newest point of the collection, or the base asked for: what the
 * collection is compared with. A manifest, or NULL; borrowed. */
const json_t *cairn__bases_reference(const struct cairn__bases *b);
void cairn__base_free(struct cairn__base *base); /* idempotent */
void cairn__bases_close(struct cairn__bases *b); /* idempotent */

/* How many images of a chain QEMU opens in this directory: it joins relative
 * names as it goes down, and a path has 4095 bytes at most. */
size_t cairn__qemu_depth(size_t directory_length, size_t file_name_length);

#endif
