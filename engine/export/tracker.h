/* The tracker of one disk in one export: how its changes are found, and what
 * it leaves behind for the next one.
 *
 *   full     no base: everything
 *   digest   the disk is read and compared with the base's map
 *   clone    raw files on XFS and btrfs: a reflink clone is kept, and compared
 *            with that of the base by where their blocks lie (clone.h)
 *   bitmap   qcow2: QEMU's own dirty bitmaps (bitmap.h)
 *
 * The last two are used where they are asked for and can be trusted; else the
 * disk falls back to digest, alone, with a reason. A tracker's word is checked:
 * a sample of what it calls unchanged is read, and every few runs the whole
 * disk is compared and the tracker's answer with it.
 *
 * What a tracker makes for the new point (a bitmap, a clone) lasts only if the
 * point is published; cairn__tracking_end undoes it otherwise. */
#ifndef CAIRN_EXPORT_TRACKER_H
#define CAIRN_EXPORT_TRACKER_H

#include <jansson.h>

#include "base.h"
#include "bitmap.h"
#include "changes.h"
#include "clone.h"
#include "image.h"
#include "run.h"

/* Every so many runs of a disk one compares all of it. */
#define CAIRN__COMPARE_EVERY 7u
/* Blocks of a disk that are read to check a tracker's word. */
#define CAIRN__AUDIT_BLOCKS 64u

enum cairn__tracker {
  CAIRN__TRACKER_DIGEST = 0,
  CAIRN__TRACKER_CLONE,
  CAIRN__TRACKER_BITMAP,
  CAIRN__TRACKER_FULL
};

/* "digest", "clone", "bitmap", "full", NULL */
extern const char *const cairn__tracker_names[];

/* Of one run, the same for all disks. */
struct cairn__tracking_options {
  const struct cairn_io *io;
  struct cairn__run *run; /* or NULL; else entered */
  const char *point;      /* the new point's id; NULL in a dry run: then nothing
                             is made */
  const char *clone_directory; /* absolute; or NULL: in the export directory */
  int target_fd;               /* the export directory; -1 when it does not
                                  exist yet */
  const char *target_path;
};

struct cairn__tracking {
  int wanted;     /* enum cairn__tracker */
  char *reason;   /* why it is not the wanted one; or NULL */
  int is_notable; /* the reason is worth a warning */
  /* clone */
  struct cairn__source *original; /* locked until all clones are made */
  const struct cairn_io *io;      /* of the two */
  int clone_dirfd, clone_fd;      /* -1 */
  char *clone_path;               /* of the directory */
  char clone_name[CAIRN__CLONE_NAME_SIZE]; /* "" = none was made */
  char clone_identity[CAIRN__CLONE_IDENTITY_SIZE];
  /* bitmap */
  int has_bitmap; /* the new point's is in the image */
  json_t *bitmap_state;
  /* what was found */
  int used;                       /* enum cairn__tracker */
  struct cairn__changes *changes; /* or NULL: all is looked at */
  struct cairn__changes *claims;  /* a run that compares all: what the tracker
                                     would have said; or NULL */
  uint64_t audited;               /* blocks that were read to check */
  int is_refuted;                 /* the audit found that it missed a change */
  struct cairn__changes *since; /* what may differ from what an interrupted run
                                   saw; or NULL: nothing is known of that, or
                                   it is the same */
  unsigned runs;                /* of the disk that took a tracker's word in a
                                   row, this one included; 0 = it is compared */
};

void cairn__tracking_init(struct cairn__tracking *t, int wanted);
/* Before the source is opened. */
int cairn__tracking_prepare(struct cairn__tracking *t,
                            const struct cairn__tracking_options *o,
                            const struct cairn__source_options *s,
                            struct cairn_error *err);
/* With the source open: 0 it will do (*source may be another one now, the
 * clone), 1 it was written since cairn__tracking_prepare: close it and begin
 * again, -1 error. */
int cairn__tracking_opened(struct cairn__tracking *t,
                           const struct cairn__tracking_options *o,
                           const struct cairn__source_options *s,
                           const char *machine, const char *disk,
                           struct cairn__source **source,
                           struct cairn_error *err);
/* Gives up on the bitmap or clone that was wanted. */
int cairn__tracking_fall_back(struct cairn__tracking *t, const char *reason,
                              struct cairn_error *err);
/* Lets go of the original behind a clone. */
void cairn__tracking_release(struct cairn__tracking *t);
/* With the base known (point NULL: none): fills used, changes and claims.
 * points: manifests of the collection, oldest first. */
int cairn__tracking_changes(
    struct cairn__tracking *t, const struct cairn__tracking_options *o,
    const char *machine, const char *disk, const struct cairn__base *base,
    const json_t *points, const struct cairn__digester *digester,
    struct cairn__source *source, struct cairn_error *err);
/* With the new point's clone or bitmap made: what the source shows of what it
 * showed to an interrupted run, whose point was left_point; `left`: the disk's
 * entry in its plan. *is_still = 1: all, but for what `since` has, which no
 * tracker of this kind can prove; else `since` is what may differ, or NULL:
 * nothing is known. -1: memory, or a request. */
int cairn__tracking_since(struct cairn__tracking *t,
                          const struct cairn__tracking_options *o,
                          const char *machine, const char *disk,
                          const char *left_point, const json_t *left,
                          struct cairn__source *source, int *is_still,
                          struct cairn_error *err);
/* The members "clone" and "bitmap_state" of the disk's entry: by these what the
 * tracker keeps is known again. */
int cairn__tracking_describe_kept(const struct cairn__tracking *t,
                                  json_t *entry);
/* Those, and "runs_since_compared" and "blocks_audited". */
int cairn__tracking_describe(const struct cairn__tracking *t, json_t *entry);
/* With the source closed. is_published: what is kept for too long is dropped,
 * `points` (manifests, oldest first) telling the age; else what was made for
 * the new point is. Troubles become warnings; 1 when something that is to go is
 * still there. */
int cairn__tracking_end(struct cairn__tracking *t,
                        const struct cairn__tracking_options *o,
                        const struct cairn__source_options *s, int is_published,
                        const json_t *points);
void cairn__tracking_free(struct cairn__tracking *t); /* idempotent */

#endif
