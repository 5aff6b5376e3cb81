/* Whether an export would be written into what it reads: the export
 * directory's file system lies on the source block device, on a partition of
 * it, on a volume made of it, or on a loop device over the source file. */
#ifndef CAIRN_EXPORT_TARGET_H
#define CAIRN_EXPORT_TARGET_H

#include <sys/stat.h>

#include "cairn.h"

/* dirfd: the export directory, called `directory` in messages. TARGET_IN_SOURCE
 * when it is. What cannot be found out (no /sys) counts as outside. */
int cairn__target_check(int dirfd, const char *directory,
                        const struct stat *source, const char *source_path,
                        struct cairn_error *err);

#endif
