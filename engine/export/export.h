/* The parts of an export, shared by the files that do it:
 *
 *   export.c         the run: order, machines, manifest, publication
 *   export_disk.c    one disk: its base, its image, its digest map
 *   export_resume.c  what an interrupted run leaves and the next one takes
 *   export_report.c  what the job says of it: properties and report
 *   export_marker.c  where the point is a marker's
 *   export_plan.c    the dry run */
#ifndef CAIRN_EXPORT_EXPORT_H
#define CAIRN_EXPORT_EXPORT_H

#include <jansson.h>

#include "base.h"
#include "members.h"
#include "publish.h"
#include "resume.h"

struct cairn__export {
  struct cairn__run *run;
  const struct cairn_io *io;
  const json_t *spec, *collection;
  const char *format; /* of fulls; increments are qcow2 */
  struct cairn__publication publication;
  struct cairn__bases bases;
  struct cairn__members members;
  struct cairn__digester digester;
  int is_outlook; /* a plan that does not read the disks */
  unsigned char point[16];
  json_int_t sequence;
  int64_t time_us;
  json_t *files;          /* of the manifest */
  json_t *marker;         /* the point that is exported, made before; or NULL */
  json_t *own_collection; /* the marker's */
  json_t *removed; /* {VirtualMachineId, disk}: in the reference point of the
                      bases, and no longer in the collection */
  json_t *plan;    /* of the work directory */
  int has_begun;   /* its plan is in the work directory */
  int has_written; /* what a later run can use */
  int has_intents; /* noted in the index */
};

static inline const char *cairn__text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

/* ---- export.c */

/* of struct cairn__members_options; arg: the export */
int cairn__export_may_leave_out(void *arg, const struct cairn_error *error);
/* At least one machine is left, or the first failure is that of the run. */
int cairn__export_check_any(const struct cairn__export *x,
                            struct cairn_error *err);
void cairn__export_warn_of_failed(const struct cairn__export *x);

/* ---- export_disk.c */

/* Chooses the base of every disk of the machines that have not failed, and
 * settles the digester. Reasons and removed disks become warnings. */
int cairn__export_choose_bases(struct cairn__export *x,
                               struct cairn_error *err);
/* Writes image and map of a disk into dirfd, the directory of its machine, and
 * their entries into x->files and d->entry. Errors are located. */
int cairn__export_disk(struct cairn__export *x, struct cairn__member *m,
                       struct cairn__member_disk *d, int dirfd,
                       struct cairn_error *err);

/* ---- export_resume.c */

/* What a run with these settings can go on from; its collection is known. */
struct cairn__wanted cairn__export_wanted(const struct cairn__export *x);
/* The secret of the work directory that is taken over, else a new one. */
int cairn__export_secret(struct cairn__export *x, struct cairn_error *err);
/* With sources and bases known: makes the plan, removes from the work directory
 * what is not part of it, and writes it there. */
int cairn__export_begin(struct cairn__export *x, struct cairn_error *err);
/* Opens the journal of a disk for its copy, which may go on from the image that
 * is there when is_resumed. Without one it begins anew: with a warning, or
 * because that is sooner done. */
void cairn__export_open_journal(struct cairn__export *x,
                                const struct cairn__member *m,
                                const struct cairn__member_disk *d,
                                int is_resumed, struct cairn__copy *copy);
/* After the copy, however it ended. */
void cairn__export_close_journal(struct cairn__export *x,
                                 const struct cairn__member *m,
                                 const struct cairn__member_disk *d,
                                 struct cairn__copy *copy);
/* 1: the work directory stays after this failure; a warning says where. */
int cairn__export_is_kept(struct cairn__export *x, int id);
/* The point of the run whose work is taken over, or NULL. */
const char *cairn__export_left_point(const struct cairn__export *x);

/* ---- export_marker.c: nothing where the export is of a collection */

/* Finds the marker in the directory and sets the collection: NOT_FOUND,
 * INVALID_STATE. */
int cairn__export_take_marker(struct cairn__export *x, int dirfd,
                              const char *path, struct cairn_error *err);
/* With all sources open: sets the time; INVALID_STATE when something has
 * changed. */
int cairn__export_check_marker(struct cairn__export *x,
                               struct cairn_error *err);
/* After publication. */
void cairn__export_drop_marker(struct cairn__export *x);
void cairn__export_free_marker(struct cairn__export *x); /* idempotent */
/* Of any export: removes what is noted as unfinished, but for what the run has
 * left that is taken up, and notes the directory for clones. An index that
 * cannot be used is a warning. */
int cairn__export_look_after_index(struct cairn__export *x,
                                   struct cairn_error *err);
/* Before the sources are opened: notes the bitmaps and clones that are going to
 * be made, so that a crash leaves none that nobody knows. */
int cairn__export_note_intents(struct cairn__export *x,
                               struct cairn_error *err);
/* In the end, when none of them is left that is to go. */
void cairn__export_forget_intents(struct cairn__export *x);
/* With the sources closed: removes what the run has left that was taken up. */
void cairn__export_drop_left(struct cairn__export *x);
/* A tracker has missed a change: the base, and what lies below it back to the
 * last image that was compared as a whole, are noted as suspect. */
void cairn__export_mark_suspect(struct cairn__export *x,
                                const struct cairn__member *m,
                                const struct cairn__member_disk *d);

/* ---- export_report.c */

/* The run's CIM properties (in pairs, final paths, member order). Made before
 * the rename: afterwards nothing may fail. *out: new reference. */
int cairn__export_properties(const struct cairn__export *x, json_t **out,
                             struct cairn_error *err);
/* Fills run->report; properties may be NULL. */
void cairn__export_report(struct cairn__export *x,
                          const struct cairn_error *error, json_t *properties);
/* The newest of the points that disks are based on, or NULL. */
const char *cairn__export_base_id(const struct cairn__export *x);

/* ---- export_plan.c: struct cairn__kind.plan */

int cairn__export_plan(const struct cairn_io *io, const json_t *spec,
                       json_t **plan, struct cairn_error *err);
/* The same without reading the disks: sizes are estimated from above. */
int cairn__export_outlook(const struct cairn_io *io, const json_t *spec,
                          json_t **plan, struct cairn_error *err);

#endif
