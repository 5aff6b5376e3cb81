/* The file beneath a sink, qcow2 or raw: created exclusively (or, resumed,
 * taken over), written with direct I/O where the file system has it, and with
 * an account of what was reserved and what was written.
 *
 * Blocks go through a second, direct descriptor: they reach the disk while the
 * copy runs, in parallel, and push nobody's data out of the page cache. Where
 * there is none they are written buffered and write-back is started at once,
 * so that the final sync finds little to do. Tables and a short last block are
 * always buffered; no page is ever touched by both.
 *
 * Thread: cairn__sink_file_write_blocks and _read from any; the rest from one
 * at a time. */
#ifndef CAIRN_EXPORT_SINK_FILE_H
#define CAIRN_EXPORT_SINK_FILE_H

#include <stdatomic.h>
#include <stdint.h>

#include "image.h"

struct cairn__sink_file {
  const struct cairn_io *io;
  int is_resumed;
  char *path; /* for messages */
  int fd, direct_fd;
  _Atomic int is_direct;
  /* Blocks reserved and not written yet: their number, and the sum of a hash
   * of their positions. A block written twice and another not at all leave
   * the number right, but not the sum. */
  _Atomic uint64_t pending, pending_sum;
};

int cairn__sink_file_open(struct cairn__sink_file *f,
                          const struct cairn__sink_options *o,
                          struct cairn_error *err);
void cairn__sink_file_reserve(struct cairn__sink_file *f, uint64_t position);
/* Writes the DATA blocks among `count` and accounts for the KEPT ones; what
 * lies at `end` or beyond it in the file is left out (the last block of a raw
 * file). */
int cairn__sink_file_write_blocks(struct cairn__sink_file *f, size_t count,
                                  const uint8_t *states,
                                  const uint64_t *positions,
                                  const unsigned char *buf, uint64_t end,
                                  struct cairn_error *err);
int cairn__sink_file_write(struct cairn__sink_file *f, const void *buf,
                           size_t n, uint64_t offset, struct cairn_error *err);
/* n bytes from the storage; see struct cairn__sink_ops. */
int cairn__sink_file_read(struct cairn__sink_file *f, uint64_t position,
                          size_t n, unsigned char *buf);
/* What an earlier run left in a range reads as zeros. */
int cairn__sink_file_clear(struct cairn__sink_file *f, uint64_t offset,
                           uint64_t n, struct cairn_error *err);
int cairn__sink_file_truncate(struct cairn__sink_file *f, uint64_t size,
                              struct cairn_error *err);
/* CAIRN_E_INTERNAL when a reserved block was not written. */
int cairn__sink_file_check(struct cairn__sink_file *f, struct cairn_error *err);
/* Syncs and closes; a failed one is closed too. */
int cairn__sink_file_finish(struct cairn__sink_file *f,
                            struct cairn_error *err);
/* Closes what is open. */
void cairn__sink_file_abort(struct cairn__sink_file *f);

#endif
