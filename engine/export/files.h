/* The files of a machine beside its disks (configuration, saved runtime state,
 * guest state): found and looked at when the point is taken, copied later,
 * byte for byte, with mode and times in the manifest. Symbolic links are
 * followed: the file is copied under the link's name. */
#ifndef CAIRN_EXPORT_FILES_H
#define CAIRN_EXPORT_FILES_H

#include <sys/stat.h>

#include <jansson.h>

#include "digest.h"
#include "run.h"

struct cairn__machine_file {
  const char *role;   /* "config", "runtime", "guest-state" */
  size_t index;       /* in the specification's list of this role, from 1 */
  const char *source; /* absolute; the specification's */
  char *name;         /* in the directory of the role */
  struct stat st;     /* when the point was taken */
};

struct cairn__machine_files {
  struct cairn__machine_file *list;
  size_t count;
};

/* The roles in their order, NULL at the end. */
extern const char *const cairn__file_roles[];

/* Looks at all files of a machine and gives each a name of its own: the base
 * name, with a numbered prefix where another file of the role has that (upper
 * and lower case count as the same). Nothing but regular files: BAD_PATH;
 * SOURCE_MISSING, PERMISSION_DENIED, ... */
int cairn__machine_files_find(const struct cairn_io *io, const json_t *machine,
                              struct cairn__machine_files *out,
                              struct cairn_error *err);
void cairn__machine_files_free(struct cairn__machine_files *f);

/* Copies one into dirfd, the directory of its role, which messages call `path`;
 * syncs it. *entry: what the manifest says of it, without VirtualMachineId and
 * path. SOURCE_CHANGED when it is not what it was. */
int cairn__machine_file_copy(struct cairn__run *run,
                             const struct cairn__machine_file *file, int dirfd,
                             const char *path,
                             const struct cairn__digester *digester,
                             json_t **entry, struct cairn_error *err);

#endif
