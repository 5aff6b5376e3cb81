/* The machines of a collection, opened: every disk's source held and locked,
 * every other file looked at. The moment at which all of them are is the point
 * in time of an export. */
#ifndef CAIRN_EXPORT_MEMBERS_H
#define CAIRN_EXPORT_MEMBERS_H

#include <jansson.h>

#include "base.h"
#include "files.h"
#include "image.h"
#include "run.h"
#include "tracker.h"

enum cairn__member_result {
  CAIRN__MEMBER_NOT_DONE = 0,
  CAIRN__MEMBER_OK,
  CAIRN__MEMBER_FAILED
};

struct cairn__member_disk {
  const json_t *spec;
  const char *id, *path, *format;
  const char *read_from;        /* what is opened: the path, or a clone of it */
  struct cairn__source *source; /* NULL with a twin */
  /* The disk of an earlier machine, or an earlier one of this machine, that
   * has the same source; or NULL. */
  struct cairn__member_disk *twin;
  const struct cairn__member *twin_member;
  struct stat st; /* of the file or device itself, while `source` is open */
  struct cairn__base base;
  int is_still; /* proved: its source shows what it showed to the interrupted
                   run whose work directory is taken over, but for what
                   tracking.since has, which no run can prove */
  struct cairn__tracking tracking;
  uint64_t data_bytes; /* after cairn__members_measure */
  int result;          /* enum cairn__member_result */
  json_t *entry;       /* of the manifest, or NULL */
};

struct cairn__member {
  const json_t *spec;
  const char *id; /* VirtualMachineId */
  struct cairn__member_disk *disks;
  size_t disk_count;
  struct cairn__machine_files files;
  int result;
  struct cairn_error error; /* of one that was left out; else id CAIRN_OK */
};

struct cairn__members {
  struct cairn__member *list;
  size_t count;
  uint64_t bytes; /* to be read: data and files */
  struct cairn__tracking_options tracking;
  const char **directories; /* where backing files may lie */
  size_t directory_count;
  const char *work_directory;
  int (*may_leave_out)(void *argument, const struct cairn_error *error);
  void *argument; /* of may_leave_out */
};

struct cairn__members_options {
  const struct cairn_io *io;
  struct cairn__run *run;     /* or NULL */
  const json_t *collection;   /* checked */
  const char *work_directory; /* or NULL */
  int target_fd;              /* the export directory, or what it will be made
                                 in; -1: no check */
  const char *target_path;
  const char *point;   /* the new one's id; NULL: a dry run, or a look */
  const char *tracker; /* of disks that name none; or NULL: digest */
  /* Asked when a machine cannot be opened or looked at: 1 = go on without it.
     NULL: never. */
  int (*may_leave_out)(void *argument, const struct cairn_error *error);
  void *argument;
};

/* Opens all, in order; errors name the machine and the disk. TARGET_IN_SOURCE
 * when the export would be written into what it reads. On failure the member
 * and disk concerned have FAILED, and everything is still to be closed. Members
 * that may be left out have FAILED and their error. */
int cairn__members_open(const struct cairn__members_options *o,
                        struct cairn__members *out, struct cairn_error *err);
/* Lets go of what was held only until all disks were: the moment of the point
 * is over. */
void cairn__members_release(struct cairn__members *m);
/* A machine has failed before anything of it was written: 1 the export goes on
 * without it, which has its error now; 0 it does not. */
int cairn__member_leave_out(const struct cairn__members *all,
                            struct cairn__member *m, struct cairn_error *err);
/* Fills data_bytes and bytes. Machines that fail may be left out. */
int cairn__members_measure(struct cairn__members *m, struct cairn__run *run,
                           struct cairn_error *err);
/* SOURCE_CHANGED unless all disks of the machine stood still. */
int cairn__member_check_still(struct cairn__member *m, struct cairn_error *err);
/* What a disk reads: its own source, or that of its twin. */
struct cairn__source *cairn__member_source(const struct cairn__member_disk *d);
/* Internal snapshots of a disk's source, which are not exported. */
uint32_t cairn__member_snapshots(const struct cairn__member_disk *d);
void cairn__members_close_sources(struct cairn__members *m);
/* With the sources closed: keeps what trackers have made for the machines that
 * are in the published point, removes it for others. points: manifests of the
 * collection, oldest first. 1 when something that is to go is still there. */
int cairn__members_end(struct cairn__members *m, int is_published,
                       const json_t *points);
void cairn__members_free(struct cairn__members *m); /* idempotent */

/* Marks a failure (a request to end is none) and names where it happened;
 * returns -1. */
int cairn__member_fail(struct cairn__member *m, struct cairn__member_disk *d,
                       struct cairn_error *err);

#endif
