/* The export directory, the work directory in it, and the one rename that
 * publishes.
 *
 * In the export directory:
 *
 *   .cairn.lock              one export at a time; keeps the last sequence
 *                            given to each collection
 *   .partial-<job>-<run>-<epoch>/
 *     owner.lock             locked as long as its owner lives
 *     plan.json              what it is to become (resume.h)
 *     <machine>.<disk>.journal   what has been written (journal.h)
 *     nbd-N.sock, nbd-N.pid  of its helpers
 *     point/                 what becomes <ReferencePointGroupId>
 *   .removed-<id>/           a point that was destroyed, on its way out
 *
 * Both locks are of open file descriptions, so the kernel drops them with their
 * owner, however it ends. What is published is the directory point/, complete
 * and synced, by one rename that never replaces anything: there is no moment
 * at which a half point, or a whole one with a lock file in it, can be seen.
 *
 * A work directory whose owner is gone is taken over by the next export of its
 * collection: locked, then renamed to that run's own name, which fences off
 * whoever believes to own it still. */
#ifndef CAIRN_EXPORT_PUBLISH_H
#define CAIRN_EXPORT_PUBLISH_H

#include <jansson.h>

#include "cairn.h"
#include "io.h"
#include "resume.h"
#include "run.h"

struct cairn__publication {
  const struct cairn_io *io;
  char *path; /* the export directory, absolute, no slash at the end */
  int dirfd, lock_fd;
  json_t *sequences; /* CollectionId -> the last one given here */
  char *work_name, *work_path;
  int workfd, owner_fd;
  char *left_name;   /* the work directory that is taken over had this name */
  json_t *left;      /* and this plan; NULL: a new one */
  json_t *resumable; /* an object with the ids of the points that the plans of
                        interrupted runs are to become which were not removed;
                        or NULL */
  int pointfd;       /* what is written goes here */
  char *point_path;
  int is_new;    /* the export directory was created for this run */
  int is_locked; /* and is ours alone */
  int is_published;
};

void cairn__publication_init(struct cairn__publication *p,
                             const struct cairn_io *io);
/* Opens the export directory (a symbolic link to it is followed), creating it
 * with mode 0700 when only it is missing, and locks it: DIRECTORY_LOCKED names
 * the process that has it. BAD_PATH when it is a reference point or lies in
 * one: nothing may be added there. */
int cairn__publication_open(struct cairn__publication *p, const char *directory,
                            struct cairn_error *err);
/* BAD_PATH when the open directory is a reference point or lies in one; `path`
 * is what the message names. */
int cairn__publication_check_target(const struct cairn_io *io, int dirfd,
                                    const char *path, struct cairn_error *err);
/* Ends the servers that owners who are gone have left. Of their work
 * directories one is chosen to be taken over (`left`) when it is what is
 * wanted; those of other collections, and of markers that wanted->index has,
 * stay for these; the rest is removed. What cannot be removed becomes a
 * warning. With is_fresh none of this collection stays; with wanted NULL all
 * that have a plan do. */
int cairn__publication_clean(struct cairn__publication *p,
                             struct cairn__run *run,
                             const struct cairn__wanted *wanted, int is_fresh,
                             struct cairn_error *err);
/* Looks, without touching anything, for one to be taken over: its name and what
 * its images occupy. *name NULL: none. Free with cairn__free. */
int cairn__publication_find(const struct cairn_io *io, int dirfd,
                            const struct cairn__wanted *wanted, char **name,
                            uint64_t *bytes, struct cairn_error *err);
/* Makes the work directory of this run, or takes over the one that is left. */
int cairn__publication_begin(struct cairn__publication *p,
                             const struct cairn__run *run,
                             struct cairn_error *err);
/* The last sequence that was given to a point of the collection here, even if
 * that point is damaged or gone by now; 0 = none that is known of. */
json_int_t cairn__publication_last_sequence(const struct cairn__publication *p,
                                            const char *collection);
/* The one for the next point; `highest`: of those that are here.
 * OUT_OF_RANGE. */
int cairn__publication_next_sequence(const struct cairn__publication *p,
                                     const char *collection, json_int_t highest,
                                     json_int_t *next, struct cairn_error *err);
/* Keeps it, synced: before the point that has it can be seen. */
int cairn__publication_keep_sequence(struct cairn__publication *p,
                                     const char *collection,
                                     json_int_t sequence,
                                     struct cairn_error *err);
/* EXISTS when the directory already holds something of this name. */
int cairn__publication_check_free(struct cairn__publication *p,
                                  const char *name, struct cairn_error *err);
/* The rename. After it has succeeded this returns 0; what goes wrong then
 * becomes a warning. */
int cairn__publication_publish(struct cairn__publication *p,
                               struct cairn__run *run, const char *name,
                               struct cairn_error *err);
/* What replaces a point, or removes one: the name changes in one step, so that
 * whoever looks, at any instant and after any crash, sees the old point whole,
 * the new one whole, or none. What a name led to before lies in the work
 * directory then, which is removed with all that is in it.
 *
 * NOT_SUPPORTED unless two directories here can change places in one step. */
int cairn__publication_check_exchange(struct cairn__publication *p,
                                      struct cairn_error *err);
/* point/ becomes `name`, which must be the open directory `old_fd` now. After
 * the exchange has succeeded this returns 0; what goes wrong with the old point
 * then becomes a warning. */
int cairn__publication_exchange(struct cairn__publication *p,
                                struct cairn__run *run, const char *name,
                                int old_fd, struct cairn_error *err);
/* A new, empty point/, whatever became of the one before: for the next. */
int cairn__publication_renew(struct cairn__publication *p,
                             struct cairn_error *err);
/* Destroys the point in the directory `name`: one rename, after which there is
 * no such point, then its files go. What of them stays is a warning, and goes
 * with the next cairn__publication_clean. */
int cairn__publication_remove_point(struct cairn__publication *p,
                                    struct cairn__run *run, const char *name,
                                    const char *id, struct cairn_error *err);
/* 1 when the name is one of a work directory, or of a point on its way out. */
int cairn__publication_is_work(const char *name);
int cairn__publication_is_removed(const char *name);
/* Ends: removes the work directory, or what is left of it, and an export
 * directory that was created for nothing, unless is_kept, and lets the locks
 * go. Idempotent. */
void cairn__publication_close(struct cairn__publication *p,
                              struct cairn__run *run, int is_kept);

#endif
