/* Markers: reference points without an export (index.h). What a marker says of
 * a disk, and whether the disk still is what it was.
 *
 * A marker's `state` of a disk:
 *   length        bytes of content
 *   layers        the files that were read, the image first: path, device,
 *                 inode, size, mtime_ns, ctime_ns. They tell what has surely
 *                 changed; that they agree proves nothing (times can be
 *                 set, and mapped memory writes without them)
 *   identity      tracker "clone": of the clone (clone.h)
 *   bitmap        tracker "bitmap": the state that bitmap.h gives
 *   tail          tracker "bitmap": digest of the last bytes, from
 *                 cairn__bitmap_tail() on, of which the bitmap is not sure */
#ifndef CAIRN_EXPORT_MARKER_H
#define CAIRN_EXPORT_MARKER_H

#include <jansson.h>

#include "index.h"
#include "members.h"
#include "run.h"

struct cairn__marker_facts {
  const char *id, *instance_id;
  uint32_t run_number;
  const json_t *collection;
  json_int_t sequence;
  int64_t unix_us;
  int is_own_clones; /* clones lie in the export directory */
};

/* A marker of what is open and locked. *marker: new reference. */
int cairn__marker_make(const struct cairn__marker_facts *f,
                       const struct cairn__members *members, json_t **marker,
                       struct cairn_error *err);
/* What the trackers would make for these disks, before any of it is there: for
 * the list of what is unfinished. tracker: of disks that name none. */
int cairn__marker_intents(const char *id, const json_t *collection,
                          const char *tracker, json_t **disks,
                          struct cairn_error *err);
/* Whether something is kept for it. */
int cairn__marker_has_data(const json_t *marker);

/* The marker's collection, each disk that has a clone to be read from that
 * ("read_from"), for an export of the marker. `path`: the export directory,
 * absolute. INVALID_STATE, naming the first disk of which nothing is kept. */
int cairn__marker_collection(const json_t *marker, const char *path,
                             json_t **collection, struct cairn_error *err);
/* With the members of that collection open: INVALID_STATE, naming the first
 * disk or file, unless all of them are what they were at the point. */
int cairn__marker_check(const struct cairn_io *io, const json_t *marker,
                        const struct cairn__members *members,
                        struct cairn_error *err);
/* The members of a disk's entry in a manifest that tell of what is kept. */
int cairn__marker_describe(const json_t *marker, const char *machine,
                           const char *disk, json_t *entry,
                           struct cairn_error *err);

/* A marker as lists of points show it. NULL when out of memory. */
json_t *cairn__marker_show(const json_t *marker, const char *path);

#endif
