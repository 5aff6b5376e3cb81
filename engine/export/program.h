/* A helper program that runs to its end (qemu-img). It has its own process
 * group and inherits the files that it is given, and nothing else.
 *
 * It changes an image: so it is never ended in the middle of that, not even
 * when we are. The files that it was given are locked by descriptors that it
 * shares, for as long as it lives. */
#ifndef CAIRN_EXPORT_PROGRAM_H
#define CAIRN_EXPORT_PROGRAM_H

#include <stddef.h>

#include "run.h"

/* The number under which the program has files[0]; the next ones follow. */
#define CAIRN__PROGRAM_FILE 3
#define CAIRN__PROGRAM_MAX  4 /* files */

/* The absolute path of a program in PATH (caller frees), or NULL with errno. */
char *cairn__program_find(const char *name);

/* Runs it and waits, at most a minute. argv[0] is looked for in PATH
 * (HELPER_MISSING names the package). What it wrote to standard error, on one
 * line and printable, is in `said`. 0 when it has ended, however it did: the
 * caller looks at what it was to do. `run` (may be NULL, else entered) is left
 * for the wait. */
int cairn__program_run(const char *package, const char *const *argv,
                       const int *files, size_t count, struct cairn__run *run,
                       char *said, size_t size, struct cairn_error *err);

#endif
