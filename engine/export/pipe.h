/* Bytes in one direction, through a descriptor that may be a pipe, a socket or
 * a file. Who waits for the other end passes the gate of his run every 100 ms,
 * so that a job can be suspended or ended while nobody reads or writes there.
 *
 * A descriptor that was given by its number stays the caller's: it is not
 * closed, and it must stay open until the job has ended. A reader that is gone
 * is an error like any other (SIGPIPE is blocked in the threads of a run).
 *
 * Thread: one at a time, entered into the run. */
#ifndef CAIRN_EXPORT_PIPE_H
#define CAIRN_EXPORT_PIPE_H

#include <jansson.h>

#include "io.h"
#include "run.h"

struct cairn__pipe {
  const struct cairn_io *io;
  struct cairn__run *run;
  int fd;             /* -1: closed */
  int is_owned;       /* to be closed */
  int is_file;        /* never waits for anybody */
  int is_patient;     /* a write may wait: at most PIPE_BUF bytes at once */
  uint64_t size;      /* of a file that is read; else 0 */
  uint64_t bytes;     /* read or written so far */
  char name[512];     /* for messages */
  unsigned char *buf; /* of small reads */
  size_t at, end;     /* what is left in it */
};

/* where: a path, or the number of a descriptor. INVALID_ARGUMENT when that is
 * not open, or a terminal. */
int cairn__pipe_open_input(const struct cairn_io *io, struct cairn__run *run,
                           const json_t *where, struct cairn__pipe *out,
                           struct cairn_error *err);
/* The descriptor of a file that was just created (is_owned), or of whatever the
 * caller has there. */
int cairn__pipe_open_output(const struct cairn_io *io, struct cairn__run *run,
                            int fd, int is_owned, const char *name,
                            struct cairn__pipe *out, struct cairn_error *err);
/* Reads n bytes, fewer only where the input ends: *got. */
int cairn__pipe_read(struct cairn__pipe *p, void *buf, size_t n, size_t *got,
                     struct cairn_error *err);
int cairn__pipe_write(struct cairn__pipe *p, const void *buf, size_t n,
                      struct cairn_error *err);
/* A file is synced; then, also when that failed, closed as below. */
int cairn__pipe_finish(struct cairn__pipe *p, struct cairn_error *err);
void cairn__pipe_close(struct cairn__pipe *p); /* idempotent; also all zero */

/* "standard output", "descriptor 7", ...: what messages call it. */
void cairn__pipe_name(int fd, char *name, size_t size);

#endif
