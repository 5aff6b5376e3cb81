/* What an interrupted export leaves for the next one.
 *
 * Its work directory has a plan, "plan.json": which collection, how, and for
 * each disk what its image is made from. It is written, whole, before the first
 * image is begun. A later export of the same collection in the same directory
 * takes the work directory over (publish.h), and keeps of it the images and
 * journals of those disks for which the plan says the same as its own;
 * everything else in it goes. What a plan says is only ever a reason to look:
 * every block is compared before it counts (journal.h). */
#ifndef CAIRN_EXPORT_RESUME_H
#define CAIRN_EXPORT_RESUME_H

#include <jansson.h>

#include "cairn.h"
#include "digest.h"
#include "io.h"

#define CAIRN__PLAN_NAME "plan.json"

/* { format: "cairn-work", version: 1, CollectionId, InstanceID,
 *   ReferencePointGroupId, unix_us, algorithm, image_format,
 *   secret: hex or null,
 *   is_marker,
 *   disks: [ { VirtualMachineId, disk, name, base: id or null, length,
 *              origin: id, clone: identity, bitmap_state: object } ] }
 * origin: of the content that the source showed (journal.h); drawn anew by
 * every run, except for a disk of which it is proved to show the same still.
 * clone, bitmap_state: as in a manifest, where the run's tracker has left one
 * by which the next run sees what the source still shows. is_marker: the point
 * was made before (export_marker.c); its work is nobody else's. */

/* What an export can go on from. */
struct cairn__wanted {
  const char *collection, *algorithm, *image_format;
  const char *marker;  /* the marker that is exported, or NULL */
  const json_t *index; /* of the directory, or NULL: it is not known */
};

/* A new plan without disks; NULL when out of memory. */
json_t *cairn__plan_new(const char *collection, const char *instance,
                        const char *point, int64_t unix_us,
                        const char *image_format, int is_marker,
                        const struct cairn__digester *digester);
/* name: of the image, below the machine's directory; origin NULL: a new one. 0,
 * -1 memory. */
int cairn__plan_add(json_t *plan, const char *machine, const char *disk,
                    const char *name, const char *base, uint64_t length,
                    const unsigned char *origin);
/* Written beside and renamed, synced. */
int cairn__plan_write(const struct cairn_io *io, int workfd, const char *path,
                      const json_t *plan, struct cairn_error *err);
/* New reference, or NULL: there is none that says anything. */
json_t *cairn__plan_read(const struct cairn_io *io, int workfd);
/* The disk's entry, borrowed, or NULL. */
json_t *cairn__plan_find(const json_t *plan, const char *machine,
                         const char *disk);
/* It is of the same collection, or of the same marker. */
int cairn__plan_is_of(const json_t *plan, const struct cairn__wanted *wanted);
/* It is the export of a marker that the index does not have any more. */
int cairn__plan_is_orphan(const json_t *plan, const json_t *index);
/* An export with these settings can go on from it. */
int cairn__plan_is_alike(const json_t *plan,
                         const struct cairn__wanted *wanted);
/* 1 and the secret of its digests; 0 when that is a chain's already. */
int cairn__plan_secret(const json_t *plan,
                       unsigned char secret[CAIRN__SECRET_SIZE]);
/* 1 and what identifies the content of the disk's source, or 0. */
int cairn__plan_origin(const json_t *plan, const char *machine,
                       const char *disk, unsigned char origin[16]);
/* The disk has the same entry in both, but for the origin. */
int cairn__plan_has_same(const json_t *a, const json_t *b, const char *machine,
                         const char *disk);

/* "<VirtualMachineId>.<disk>.journal" */
#define CAIRN__JOURNAL_NAME_MAX 128
void cairn__journal_name(const char *machine, const char *disk,
                         char out[CAIRN__JOURNAL_NAME_MAX]);

/* Removes from a work directory all but its lock, plan, journals and point. */
int cairn__resume_clear(const struct cairn_io *io, int workfd, const char *path,
                        struct cairn_error *err);
/* Removes the journals and, of the point, everything for which `after` has not
 * the same disk as `before`. */
int cairn__resume_tidy(const struct cairn_io *io, int workfd, int pointfd,
                       const char *path, const json_t *before,
                       const json_t *after, struct cairn_error *err);
/* What the images of a work directory occupy; best effort. */
uint64_t cairn__resume_bytes(const struct cairn_io *io, int pointfd);

#endif
