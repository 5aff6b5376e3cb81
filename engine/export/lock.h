/* Source files, opened so that nobody writes them while they are read.
 *
 * QEMU's lock protocol: byte 100 + i of an image is read-locked by who uses
 * permission i of it, byte 200 + i by who does not let others have it
 * (0 consistent read, 1 write, 3 resize). A reader that wants the image still
 * locks 100, 201 and 203 and then looks whether anybody holds 101, 103 or 200.
 * Locks first, look second: of two that come at once at least one sees the
 * other. The locks are of the open file description, last until it is closed,
 * and keep a guest from starting on the image.
 *
 * A block device has writers that take no such lock, so it must be free:
 * opened exclusively (which a mount, a volume manager or a swap area
 * prevents), or the caller vouches for it with assume_quiescent. So has a file
 * behind a loop device, which must be read-only or vouched for. */
#ifndef CAIRN_EXPORT_LOCK_H
#define CAIRN_EXPORT_LOCK_H

#include <stdint.h>
#include <sys/stat.h>

#include "cairn.h"
#include "io.h"

struct cairn__run;

struct cairn__held {
  const struct cairn_io *io;
  int fd; /* read-only; -1 when not open */
  int is_block, is_locked;
  uint64_t size;  /* bytes */
  struct stat st; /* when it was opened */
  char *path;     /* as given, for messages */
};

/* Opens and locks. Nothing but a regular file or a block device is opened (a
 * fifo would wait for its writer). SOURCE_MISSING, BAD_PATH, SOURCE_IN_USE,
 * PERMISSION_DENIED, ... assume_quiescent also accepts a file on a file system
 * that has no locks; never one that somebody else has locked. */
int cairn__held_open(const struct cairn_io *io, const char *path,
                     int assume_quiescent, struct cairn__held *out,
                     struct cairn_error *err);
/* Before it is opened: waits, two seconds and a look at the most, while
 * somebody has it open for writing and all who are seen to are qemu-img or
 * qemu-nbd. What an export has started ends with it, but the image is not free
 * before the kernel has written what it was about to, and one that is run again
 * at once would find it in use. 0 in any case but when the run (NULL: none) is
 * to end: -1. */
int cairn__held_await(const struct cairn_io *io, const char *path,
                      struct cairn__run *run, struct cairn_error *err);
/* SOURCE_CHANGED unless size, times and identity are what they were. */
int cairn__held_check_still(const struct cairn__held *h,
                            struct cairn_error *err);
/* Makes a held image ours to write: until it is closed nobody else reads or
 * writes it. SOURCE_IN_USE when somebody reads it now. Only for one that
 * is_locked. */
int cairn__held_claim(struct cairn__held *h, struct cairn_error *err);
/* After we have had it written: takes note of its size and times. */
int cairn__held_refresh(struct cairn__held *h, struct cairn_error *err);
/* Also on one that was never opened (all zero, or fd -1). */
void cairn__held_close(struct cairn__held *h);

#endif
