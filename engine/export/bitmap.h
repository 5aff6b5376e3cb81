/* The tracker "bitmap": dirty bitmaps that live in a qcow2 image, where QEMU
 * keeps them up to date.
 *
 * A point has a bitmap in the image that was active when it was taken, and
 * shares a guard with those before it:
 *   cairn-<point>          64 KiB, enabled: what was written since
 *   cairn-<point>-<nonce>  a guard: 2 MiB, disabled, every bit set; made for
 *                          that point, and used by later ones as long as it is
 *                          whole
 * Nobody writes the guard, but QEMU cuts every bitmap off when the image
 * shrinks and fills none up when it grows: the bits that the guard has lost say
 * from where on the other one has forgotten what it knew. The nonce, which the
 * manifest records, tells the image from another disk's, whose bitmap of that
 * point has the same name.
 *
 * The bitmaps are read here, from the files, while they are locked: QEMU's NBD
 * server has one name for a whole chain and takes the first bitmap that it
 * finds, however far down, which knows nothing of the layers above it.
 *
 * A bitmap counts only if QEMU would go on with it: it is "auto" (enabled), not
 * "in-use" (left open by a QEMU that was killed), and no program that knows
 * nothing of bitmaps has written the image since (autoclear). Where anything is
 * not as it should be the disk is not tracked: the functions return 1 with the
 * reason as text, and the caller takes another tracker.
 *
 * Order, for the disks of a machine: cairn__bitmap_add for each; open their
 * sources, which locks them; cairn__source_bitmap_is_clean for each, else close
 * the sources, remove and start again; cairn__bitmap_state into the manifest;
 * cairn__source_bitmap_changes; copy; publish; cairn__bitmap_remove of points
 * that are given up, or of the new one when the export has failed. */
#ifndef CAIRN_EXPORT_BITMAP_H
#define CAIRN_EXPORT_BITMAP_H

#include <jansson.h>

#include "chain.h"
#include "changes.h"
#include "digest.h"
#include "image.h"

#define CAIRN__BITMAP_REASON_MAX 512 /* room for a reason */
/* Points with bitmaps in one image; and one that an interrupted run has left.
 */
#define CAIRN__BITMAP_POINTS_MAX 8

/* ---- what is in an image ------------------------------------------------- */

struct cairn__bitmap {
  char *name;
  uint64_t table_offset;
  uint32_t table_size;       /* entries */
  unsigned granularity_bits; /* 1 << that many bytes a bit */
  int is_in_use, is_auto;
  int is_known; /* a dirty bitmap without data that we do not know */
};

struct cairn__bitmaps {
  size_t count;
  struct cairn__bitmap *list;
  int is_current; /* 0: a program without bitmaps has written the image */
};

/* Of an open image. SOURCE_CORRUPT when they are not what they must be. */
int cairn__bitmaps_read(const struct cairn__held *h,
                        const struct cairn__qcow2_header *q,
                        struct cairn__bitmaps *out, struct cairn_error *err);
/* Of the image o->path, which is opened for it (SOURCE_IN_USE, ...); none when
 * its format is raw. */
int cairn__bitmaps_list(const struct cairn__source_options *o,
                        struct cairn__bitmaps *out, struct cairn_error *err);
void cairn__bitmaps_free(struct cairn__bitmaps *b); /* idempotent */

/* 1 when a bitmap's name is one of ours, and then the point that it belongs
 * to. */
int cairn__bitmap_point(const char *name, char point[37], int *is_guard);
/* How many points have a bitmap of ours, or (guards = 1) how many guards there
 * are. */
size_t cairn__bitmaps_count(const struct cairn__bitmaps *all, int guards);

/* ---- adding, removing ------------------------------------------------------
 * Both run qemu-img on the image, under locks of our own that keep everybody
 * else away meanwhile, so no source of the image may be open here either:
 * SOURCE_IN_USE. Its backing files are neither opened nor looked at. `run` may
 * be NULL, else it is entered. */

/* Adds the bitmap of `point` (upper case), and a guard where none is whole;
 * bitmaps of ours that a killed QEMU has made useless go first. 0 done (or they
 * are there), 1 not possible (reason), -1 error. */
int cairn__bitmap_add(const struct cairn__source_options *o, const char *point,
                      struct cairn__run *run, char *reason, size_t size,
                      struct cairn_error *err);
/* Removes the bitmap, should it be there, and with the last one the guards. Not
 * from the files below: a bitmap that an external snapshot has left
 * behind stays in its file. */
int cairn__bitmap_remove(const struct cairn__source_options *o,
                         const char *point, struct cairn__run *run,
                         struct cairn_error *err);

/* ---- of an open qcow2 source --------------------------------------------- */

/* 0 when the bitmap of `point` is in the image, counts and has no bit set; 1
 * when it does not (reason). */
int cairn__source_bitmap_is_clean(struct cairn__source *s, const char *point,
                                  char *reason, size_t size,
                                  struct cairn_error *err);
/* What is to be known later of a point that has a bitmap: an object for the
 * disk's entry in the manifest ("bitmap_state"). 1: the guard is gone, or was
 * cut, since the bitmap was added. */
int cairn__bitmap_state(const struct cairn__source *s, json_t **out,
                        struct cairn_error *err);
/* Whether the chain of `s` is, up to new layers on top of it, that of which the
 * state tells: *active is then the layer that was the image. 0, 1 (reason),
 * -1. */
int cairn__bitmap_check_state(const json_t *state, const struct cairn__chain *c,
                              size_t *active, char *reason, size_t size,
                              struct cairn_error *err);
/* Where the part of a disk begins whose end the guard cannot vouch for. */
uint64_t cairn__bitmap_tail(uint64_t virtual_size);
/* 0 when the disk reads up to cairn__bitmap_tail() as it did at `point`, of
 * which `state` tells, and has the size that it had: no layer was put on top,
 * no bit is set, the guard is whole. 1 (reason) when not, or when that cannot
 * be told. The tail is the caller's to compare. */
int cairn__source_bitmap_is_unchanged(struct cairn__source *s,
                                      const char *point, const json_t *state,
                                      char *reason, size_t size,
                                      struct cairn_error *err);
/* Marks in `changes` (of s->length, clear) what may differ from the base point,
 * of which `state` tells and `map` has the digests. 0; 1 nothing is known
 * (reason; `changes` is then of no use); -1. `run` (may be NULL, else entered)
 * has its gate passed. */
int cairn__source_bitmap_changes(struct cairn__source *s,
                                 const char *base_point, const json_t *state,
                                 const struct cairn__digester *digester,
                                 struct cairn__map *map, struct cairn__run *run,
                                 struct cairn__changes *changes, char *reason,
                                 size_t size, struct cairn_error *err);

#endif
