/* .cairn.index: what an export directory knows besides its manifests.
 *
 *   markers     reference points without an export: what was locked when, and
 *               what keeps the content or tells what has changed since
 *   unfinished  data of trackers (bitmaps, clones) that is to go: of markers
 *               that were being made, or of points that were being destroyed.
 *               Written before the first of it is made and after the last of
 *               it is gone, so that a crash leaves nothing that nobody knows
 *   suspect     points that an audit has found doubtful, and why
 *   released    points whose tracker data was removed
 *   clone_directories
 *               where collections have had their clones put
 *
 * No index is an empty one. It is replaced as a whole: a new file, synced, then
 * one rename, then the directory synced; so it is the old one or the new one at
 * any time. It ends in its own digest as manifests do. Only who holds the
 * directory's lock (publish.h) writes it; reading needs no lock. */
#ifndef CAIRN_EXPORT_INDEX_H
#define CAIRN_EXPORT_INDEX_H

#include <jansson.h>

#include "cairn.h"
#include "io.h"

#define CAIRN__INDEX_NAME    ".cairn.index"
#define CAIRN__INDEX_VERSION 1
#define CAIRN__INDEX_MAX     (64u << 20) /* bytes */

/* ---- the file; `path` names the directory in messages ---------------------
 */

/* *index: new reference, with all its lists. EXPORT_CORRUPT, VERSION, ... when
 * what is there cannot be used; the message says what to do. */
int cairn__index_read(const struct cairn_io *io, int dirfd, const char *path,
                      json_t **index, struct cairn_error *err);
/* What a reader would refuse is refused here: INTERNAL. Nothing is written when
 * the file has these very bytes already, nor an empty index where none is. */
int cairn__index_write(const struct cairn_io *io, int dirfd, const char *path,
                       const json_t *index, struct cairn_error *err);

/* ---- its lists, in memory --------------------------------------------------
 * Ids are canonical. What is returned is borrowed. */

json_t *cairn__index_marker(const json_t *index, const char *id); /* or NULL */
/* The highest sequence of a marker of the collection; 0 = none. */
json_int_t cairn__index_sequence(const json_t *index, const char *collection);
/* Appends; takes the reference in any case. */
int cairn__index_add_marker(json_t *index, json_t *marker,
                            struct cairn_error *err);
/* Of which point, and `disks` as a marker has them: takes that reference. */
int cairn__index_add_unfinished(json_t *index, const char *id, json_t *disks,
                                struct cairn_error *err);
void cairn__index_remove_marker(json_t *index, const char *id);
void cairn__index_remove_unfinished(json_t *index, const char *id);
int cairn__index_add_released(json_t *index, const char *id,
                              struct cairn_error *err);
int cairn__index_is_released(const json_t *index, const char *id);
/* Absolute; once. */
int cairn__index_add_clone_directory(json_t *index, const char *directory,
                                     struct cairn_error *err);
/* Why a point is suspect, or NULL when it is not. */
const char *cairn__index_suspect(const json_t *index, const char *id);
int cairn__index_add_suspect(json_t *index, const char *id, const char *reason,
                             int64_t unix_us, struct cairn_error *err);
void cairn__index_remove_suspect(json_t *index, const char *id);
/* Removes everything that is about this point, but for what is unfinished. */
void cairn__index_forget(json_t *index, const char *id);

/* ---- whole steps: read, change, write -------------------------------------
 * For who holds the lock. A reason given earlier stays. */

int cairn__index_mark_suspect(const struct cairn_io *io, int dirfd,
                              const char *path, const char *id,
                              const char *reason, int64_t unix_us,
                              struct cairn_error *err);
int cairn__index_clear_suspect(const struct cairn_io *io, int dirfd,
                               const char *path, const char *id,
                               struct cairn_error *err);

#endif
