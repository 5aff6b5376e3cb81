/* What trackers keep for points outside of their directories: bitmaps in
 * source images, clones. Finding it, and removing it for good.
 *
 * A list of such data is an array of disks as the index has them (index.h):
 * tracker "bitmap" or "clone", `name` of the bitmap or file, for a clone
 * `directory` (absolute, or relative to the export directory). Entries with
 * the tracker "none" are passed over.
 *
 * Nothing is touched but what bears the name that we give it for the point. */
#ifndef CAIRN_EXPORT_TRACKED_H
#define CAIRN_EXPORT_TRACKED_H

#include <jansson.h>

#include "cairn.h"
#include "io.h"
#include "publish.h"
#include "run.h"

/* An export directory whose lock is held. */
struct cairn__tracked {
  const struct cairn_io *io;
  struct cairn__run *run; /* entered; warnings go there */
  int dirfd;
  const char *path;
  json_t *index;
  int is_ending; /* requests to the run do not count any more */
  int naps;      /* it has waited so often for an image in use */
  /* of what is unfinished, or NULL: the points whose data stay (an object with
     their ids), the only one whose data go */
  const json_t *spared;
  const char *only;
};

/* An entry of a list. NULL when out of memory. */
json_t *cairn__tracked_bitmap(const char *point, const char *machine,
                              const char *disk, const char *source);
json_t *cairn__tracked_clone(const char *point, const char *machine,
                             const char *disk, const char *source,
                             const char *directory);

/* What is kept for a point: by its marker, by its manifest (either may be NULL)
 * and by the names of the clones in the directories that are known. What is
 * listed need not be there any more. *disks: new reference. */
int cairn__tracked_of_point(const struct cairn_io *io, int dirfd,
                            const char *path, const json_t *index,
                            const char *point, const json_t *manifest,
                            json_t **disks, struct cairn_error *err);
/* 1 when the bitmap or clone is there, 0 when not, -1. */
int cairn__tracked_exists(const struct cairn_io *io, int dirfd,
                          const json_t *disk, struct cairn_error *err);

/* Notes in the index what is to go, removes it, and takes out the note as far
 * as it is gone. What cannot be removed now (an image in use) gives a warning
 * and stays noted. Nothing to remove: nothing is written. */
int cairn__tracked_remove(struct cairn__tracked *t, const char *point,
                          json_t *disks, struct cairn_error *err);
/* Destroys a reference point: its directory, in one step, what is kept for it,
 * and what the index says of it. point: as cairn__points_read() has it, or NULL
 * where there is a marker only. While its directory is there the point is; what
 * is kept for it is noted before, and so goes whatever happens: a point that
 * stays after all has lost no more than its tracker's help. */
int cairn__tracked_destroy(struct cairn__tracked *t,
                           struct cairn__publication *p, const json_t *point,
                           const char *id, struct cairn_error *err);
/* Removes what is noted as unfinished: what a crash, or an image in use, has
 * left. Trouble is a warning. */
int cairn__tracked_clean(struct cairn__tracked *t, struct cairn_error *err);

#endif
