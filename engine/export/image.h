/* Images: where the bytes of a disk come from (sources), where they go
 * (sinks), and the copy between them.
 *
 * Everything counts in blocks of 64 KiB (CAIRN__BLOCK). Content beyond a
 * source's length is zero. */
#ifndef CAIRN_EXPORT_IMAGE_H
#define CAIRN_EXPORT_IMAGE_H

#include <stdint.h>

#include "changes.h"
#include "digest.h"
#include "journal.h"
#include "run.h"

enum cairn__block_state {
  CAIRN__UNCHANGED = 0, /* not in this image: the base has it, or zero */
  CAIRN__DATA = 1,
  CAIRN__ZERO = 2, /* explicitly zero, the base not consulted */
  CAIRN__KEPT = 3  /* only for write(): DATA that lies in its place already */
};

/* ---- sources ----------------------------------------------------------------
 * A source is opened before its run's point in time and stays open, and
 * locked, until the last byte is read. */

struct cairn__extent {
  uint64_t offset, length; /* bytes; length >= 1 */
  int is_zero;             /* reads as zero: need not be read */
};

struct cairn__source;
struct cairn__source_ops {
  /* The extent that begins at `offset` (< length). Only the first `most` bytes
   * (>= 1) matter to the caller: it may be told as ending there although it
   * goes on. One thread at a time. */
  int (*extent)(struct cairn__source *s, uint64_t offset, uint64_t most,
                struct cairn__extent *out, struct cairn_error *err);
  /* Reads n bytes; beyond the length zeros. `reader` in 0..readers-1, one
   * thread each. buf is 4096-aligned, offset and n multiples of 4096. */
  int (*read)(struct cairn__source *s, unsigned reader, void *buf, size_t n,
              uint64_t offset, struct cairn_error *err);
  /* Proof that the source stood still since it was opened:
   * CAIRN_E_SOURCE_CHANGED when it did not. */
  int (*check_still)(struct cairn__source *s, struct cairn_error *err);
  void (*close)(struct cairn__source *s);
};
struct cairn__source {
  const struct cairn__source_ops *ops;
  uint64_t length;       /* bytes of content */
  uint64_t virtual_size; /* length rounded up to 512 */
  unsigned readers;      /* parallel readers that it allows */
  int is_direct;         /* reads bypass the page cache */
  char *path;            /* for messages */
};

struct cairn__source_options {
  const struct cairn_io *io;
  const char *path, *format;      /* "raw" or "qcow2" */
  const char *const *directories; /* where backing files may lie, besides
                                     the image's own directory */
  size_t directory_count;
  int assume_quiescent;       /* block devices: the caller vouches */
  unsigned readers;           /* wanted */
  const char *work_directory; /* absolute; sockets and pid files of
                                 helpers */
};
/* Raw file or block device, under QEMU's lock protocol. */
int cairn__source_open_raw(const struct cairn__source_options *o,
                           struct cairn__source **out, struct cairn_error *err);
/* qcow2 through one qemu-nbd, chain checked and given explicitly. `run` (may
 * be NULL) lets the wait for the server end early. The kernel ends the server
 * with the calling thread, which therefore has to live until the source is
 * closed. work_directory NULL: a private one below /tmp. */
int cairn__source_open_qcow2(const struct cairn__source_options *o,
                             struct cairn__run *run, struct cairn__source **out,
                             struct cairn_error *err);
void cairn__source_close(struct cairn__source *s); /* NULL allowed */

/* ---- sinks
 * ------------------------------------------------------------------- reserve()
 * is called in ascending block order by one thread at a time; it settles where
 * the blocks will lie, so that the file's bytes do not depend on timing.
 * write() may be called by any thread, in any order, for reserved blocks.
 * finish() writes what remains (tables, then the header, last), syncs and
 * frees; abort() closes and frees, leaving the file to whoever removes the work
 * directory. */

struct cairn__file_result {
  uint64_t size;                           /* bytes of the file */
  unsigned char digest[CAIRN__DIGEST_MAX]; /* tree digest of the file */
};

struct cairn__sink;
struct cairn__sink_ops {
  /* states[i], digests + i * digest size for block first + i. positions[i]:
   * file offset of a DATA block, else 0. */
  int (*reserve)(struct cairn__sink *s, uint64_t first, size_t count,
                 const uint8_t *states, const unsigned char *digests,
                 uint64_t *positions, struct cairn_error *err);
  /* buf: count whole blocks, 4096-aligned; only those in state DATA are
   * written, neighbours in one call, and those in state KEPT accounted for. */
  int (*write)(struct cairn__sink *s, uint64_t first, size_t count,
               const uint8_t *states, const uint64_t *positions,
               const unsigned char *buf, struct cairn_error *err);
  /* Reads n bytes back from the storage, past the page cache where possible;
   * -1 (errno) when they cannot be had. Any thread. */
  int (*read)(struct cairn__sink *s, uint64_t position, size_t n,
              unsigned char *buf);
  int (*finish)(struct cairn__sink *s, struct cairn__file_result *result,
                struct cairn_error *err);
  void (*abort)(struct cairn__sink *s);
};
struct cairn__sink {
  const struct cairn__sink_ops *ops;
};

struct cairn__sink_options {
  const struct cairn_io *io;
  int dirfd;
  const char *name; /* created, O_EXCL, 0600 */
  int is_resumed;   /* an unfinished file of this name is taken over: what is
                       not written (or KEPT) does not stay in it */
  const char *path; /* for messages */
  uint64_t length, virtual_size;
  const struct cairn__digester *digester;
  const char *backing_name, *backing_format; /* qcow2 overlay, or NULL */
  const unsigned char *point, *base; /* 16 bytes each or NULL: origin header
                                        extension */
};
int cairn__sink_open_qcow2(const struct cairn__sink_options *o,
                           struct cairn__sink **out, struct cairn_error *err);
int cairn__sink_open_raw(const struct cairn__sink_options *o,
                         struct cairn__sink **out, struct cairn_error *err);

/* ---- reading what an export holds
 * -------------------------------------------- Our own reader of our own files:
 * version 3, 64 KiB clusters, no compression, encryption, snapshots or external
 * data. `layer` walks one file; it never opens a backing file by itself. */

struct cairn__layer;
struct cairn__layer_info {
  uint64_t virtual_size, file_size;
  char backing_name[1024], backing_format[16]; /* "" = none */
  int has_point, has_base;
  unsigned char point[16], base[16];
};
/* format "qcow2" or "raw" (length then gives the content's length). path: what
 * messages call it (NULL: name). */
int cairn__layer_open(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const char *format, uint64_t length,
                      struct cairn__layer **out, struct cairn_error *err);
const struct cairn__layer_info *
cairn__layer_get_info(const struct cairn__layer *l);
/* States and file offsets of blocks first..first+count-1, within one page of
 * 8192 blocks. One thread. raw: holes are ZERO, the rest DATA. */
int cairn__layer_blocks(struct cairn__layer *l, uint64_t first, size_t count,
                        uint8_t *states, uint64_t *positions,
                        struct cairn_error *err);
/* Reads one DATA block (short at the end of a raw file: padded). Any thread. */
int cairn__layer_read(const struct cairn__layer *l, uint64_t position,
                      size_t blocks, unsigned char *buf,
                      struct cairn_error *err);
/* Reads n bytes at a file offset; beyond a raw file's end zeros. Any thread. */
int cairn__layer_read_bytes(const struct cairn__layer *l, uint64_t position,
                            size_t n, unsigned char *buf,
                            struct cairn_error *err);
/* 1 in *is_empty when every block of this page of 8192 is UNCHANGED. One
 * thread. */
int cairn__layer_is_empty(struct cairn__layer *l, uint64_t page, int *is_empty,
                          struct cairn_error *err);
/* The file's size and modification time are what they were when it was opened:
 * else CAIRN_E_SOURCE_CHANGED. */
int cairn__layer_check_still(const struct cairn__layer *l,
                             struct cairn_error *err);
void cairn__layer_close(struct cairn__layer *l); /* NULL allowed */

/* A chain of layers (bottom first) as a source; takes ownership of the layers
 * when it succeeds. length as the manifest has it. */
int cairn__source_open_layers(struct cairn__layer **layers, size_t count,
                              uint64_t length, const char *path,
                              unsigned readers, struct cairn__source **out,
                              struct cairn_error *err);

/* ---- the copy
 * ------------------------------------------------------------------ */

struct cairn__copy {
  struct cairn__run *run; /* gate and bytes_done; its io and clock */
  struct cairn__source *source;
  struct cairn__sink *sink; /* NULL: read and check only */
  const struct cairn__digester *digester;
  struct cairn__map_writer *map_writer; /* gets the digests, or NULL */
  struct cairn__map *map;               /* checked against, or NULL:
                                           CAIRN_E_DIGEST_MISMATCH */
  struct cairn__map *base;              /* of the base's content, same digester:
                                           what agrees with it is UNCHANGED. NULL:
                                           a full */
  const struct cairn__changes *changes; /* with base: blocks that are clear here
                                           are not looked at. NULL: all are */
  const struct cairn__changes *claims;  /* with base: what a tracker would have
                                           said; or NULL */
  struct cairn__journal *journal;       /* is told what was written, or NULL */
  int is_resumed;                       /* and knows what an earlier run wrote
                                           into the sink's file */
  unsigned threads;                     /* 0 = choose */
  int is_uncounted;                     /* bytes_done stays as it is */
  /* results, also of a failure; written: without what was there already,
   * which is resumed */
  uint64_t bytes_read, bytes_written, bytes_zero, bytes_skipped;
  uint64_t bytes_resumed;
  uint64_t blocks_changed; /* DATA or ZERO */
  uint64_t blocks_refuted; /* of these, clear in claims */
};
/* One pass over the source with several threads: read, find zeros, digest,
 * write. Nothing of the source's holes is read, nor what did not change.
 *
 * With a base, a block is UNCHANGED when its digest is the base's, which is the
 * zero marker beyond the base's end; else it is DATA, or ZERO when it holds
 * zeros now. The sink has the base's image as its backing file.
 *
 * With is_resumed, a block whose place holds it already is not written again;
 * and where the journal is of the very content that the source shows, what the
 * file holds is read instead of the source. Both only after the bytes have been
 * read back: the first are compared with the source's, the second have the
 * journal's digest.
 *
 * bytes_done of the run rises by the length of every extent that is read. The
 * calling thread has entered the run (cairn__run_enter) and works along; it has
 * entered again when this returns. */
int cairn__copy_run(struct cairn__copy *c, struct cairn_error *err);
/* The bytes that cairn__copy_run will count: for bytes_total. changes (may be
 * NULL) as in struct cairn__copy. `run` (may be NULL) has its gate passed now
 * and then; entered as above. */
int cairn__source_data_bytes(struct cairn__source *s,
                             const struct cairn__changes *changes,
                             struct cairn__run *run, uint64_t *bytes,
                             struct cairn_error *err);

#endif
