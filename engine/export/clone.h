/* Reflink clones of raw disks on XFS and btrfs: a copy that shares the blocks
 * of its source until one of the two is written, made in one call and without
 * reading; and what has changed between two of them, found from where their
 * blocks lie.
 *
 * Why the same place means the same content. The clone of the base and the
 * clone of the new point are files of one file system, and nobody writes
 * either. A block that both of them have at the same offset exists once; while
 * two files refer to it the file system never writes it in place, but moves
 * the one that is written to another place. So what both refer to now is what
 * each of them has held since it was made. Everything else counts as changed:
 * a clear bit needs the same place in both maps, and both maps calling it
 * shared, and no flag with it that is not known to be harmless.
 *
 * What the argument rests on, and who sees to it:
 *
 * - Both are clones. The source itself, as the new one, is compared as
 *   correctly but can change a moment later; read and compare the clone.
 * - Physical addresses mean what they say: XFS and btrfs only (SMB, for one,
 *   reports the offset in the file as the address), one file system, one
 *   device of it. cairn__clone_changes checks that.
 * - The clone of the base still is what it was. It is made with mode 0400 in a
 *   directory of ours, and its identity (inode, size, times) is recorded in
 *   the point's manifest when it is made. cairn__clone_open compares: whoever
 *   writes, truncates, replaces or restores the file leaves another change
 *   time, which no program can set. Root with a changed clock, or with the
 *   raw device, can; the sampled audit and every Nth run by digest map are for
 *   that. What moves blocks without changing bytes (btrfs defragment and
 *   balance, xfs_fsr) costs blocks marked without need, no more.
 *
 * A clone costs the space of what its source has overwritten since. How much
 * that is cannot be told exactly: an extent that two clones share belongs to
 * neither, and btrfs keeps whole extents of which a part is used. So the
 * budget is in what the file system has left: while cairn__clones_are_short
 * says so, the caller drops the oldest. */
#ifndef CAIRN_EXPORT_CLONE_H
#define CAIRN_EXPORT_CLONE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "changes.h"
#include "io.h"
#include "lock.h"
#include "run.h"

/* In an export directory, 0700: the clones of its points, unless the
 * collection names a directory for them. */
#define CAIRN__CLONES_DIRECTORY ".cairn.clones"

/* GUID "." GUID "." disk id ".raw", and a NUL */
#define CAIRN__CLONE_NAME_SIZE     (36 + 1 + 36 + 1 + 64 + 4 + 1)
#define CAIRN__CLONE_IDENTITY_SIZE 128

struct cairn__clone {
  char name[CAIRN__CLONE_NAME_SIZE];
  char point[37], machine[37], disk[65]; /* what the name says */
  struct timespec time;                  /* when it was made (mtime) */
};

/* "<point>.<machine>.<disk>.raw"; both GUIDs in canonical form, the disk's id
 * a valid one. */
void cairn__clone_name(const char *point, const char *machine, const char *disk,
                       char out[CAIRN__CLONE_NAME_SIZE]);
/* 1 when the name is exactly of that form; out (may be NULL) then gets its
 * parts, without the time. */
int cairn__clone_parse(const char *name, struct cairn__clone *out);

/* ---- making and finding ---------------------------------------------------
 * These return 0, or 1 with the reason why this disk has to do without a clone
 * (for the manifest's `fallback`), or -1 with an error. */

/* Whether a clone in dirfd could be made, as far as can be told without
 * writing: for plans. */
int cairn__clone_check(const struct cairn_io *io,
                       const struct cairn__held *source, int dirfd,
                       char *reason, size_t reason_size,
                       struct cairn_error *err);
/* Makes `name` in dirfd (which must not exist: EXISTS), mode 0400, and syncs
 * file and directory. One ioctl: the source as it stands at one moment,
 * including what is still in the page cache, but not a program's private
 * buffers, so the source is held. *fd is for reading. What fails leaves no
 * file behind. No space left is a reason (1), not an error. `path` is what
 * messages call the file; `run` (may be NULL, else entered) has its gate
 * passed, though not during the ioctl, which takes seconds for millions of
 * extents. */
int cairn__clone_make(const struct cairn_io *io, struct cairn__run *run,
                      const struct cairn__held *source, int dirfd,
                      const char *name, const char *path, int *fd, char *reason,
                      size_t reason_size, struct cairn_error *err);
/* What tells this file, as it is, from every other and from itself after a
 * change: text, to be recorded and compared as a whole. Stays the same over a
 * remount and a renamed directory. */
int cairn__clone_identity(const struct cairn_io *io, int fd, const char *path,
                          char out[CAIRN__CLONE_IDENTITY_SIZE],
                          struct cairn_error *err);
/* Opens an older clone for reading: 1 when there is none, or it is not what
 * `identity` says. */
int cairn__clone_open(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const char *identity, int *fd,
                      char *reason, size_t reason_size,
                      struct cairn_error *err);

/* ---- comparing ------------------------------------------------------------
 */

/* Marks in `out`, which is for a disk of `length` bytes, every block of new_fd
 * that may differ from base_fd. The lengths may differ: what lies beyond the
 * shorter one is marked. 1 with a reason when the maps cannot be trusted (`out`
 * is then of no use). Maps are read in batches: memory does not depend on the
 * number of extents. */
int cairn__clone_changes(const struct cairn_io *io, struct cairn__run *run,
                         int base_fd, int new_fd, uint64_t length,
                         struct cairn__changes *out, char *reason,
                         size_t reason_size, struct cairn_error *err);

/* ---- clean-up -------------------------------------------------------------
 */

/* The clones in a directory, oldest first: regular files whose names
 * cairn__clone_parse accepts, nothing else. *list is freed with cairn__free. */
int cairn__clones_list(const struct cairn_io *io, int dirfd, const char *path,
                       struct cairn__clone **list, size_t *count,
                       struct cairn_error *err);
/* Removes a clone; missing is 0. INVALID_ARGUMENT for any name that is not a
 * clone's. `path` names the directory in messages. */
int cairn__clone_remove(const struct cairn_io *io, int dirfd, const char *name,
                        const char *path, struct cairn_error *err);
/* *is_short = 1 when the file system of dirfd has less than `minimum` bytes
 * free. What clones held counts as free only some time after their removal;
 * this waits for it (it syncs the file system, and then goes on while what is
 * free grows, half a second longer at least) before it says that space is
 * short. */
int cairn__clones_are_short(int dirfd, const char *path, uint64_t minimum,
                            int *is_short, struct cairn_error *err);

#endif
