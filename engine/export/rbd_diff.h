/* The records of `rbd diff v1`, the stream that `rbd export-diff` writes and
 * `rbd import-diff` and `rbd merge-diff` read. Numbers are little endian:
 *
 *   "rbd diff v1\n"
 *   'f' le32 length, name      the point that it starts from (may be absent)
 *   't' le32 length, name      the point that it leads to (may be absent)
 *   's' le64 size              of the content at its end
 *   'w' le64 offset, le64 length, data
 *   'z' le64 offset, le64 length: zeros
 *   'e'                        the end; without it a stream is not complete
 *
 * f, t and s come before the data, once each; the data ascends and does not
 * overlap. Without f the stream is the whole content: what it does not mention
 * is zero. There is no check sum in it. */
#ifndef CAIRN_EXPORT_RBD_DIFF_H
#define CAIRN_EXPORT_RBD_DIFF_H

#include "pipe.h"

#define CAIRN__RBD_NAME_MAX 1024u /* bytes of a name that is read */
/* of a 'w' or 'z' record before its data */
#define CAIRN__RBD_HEAD 17u

struct cairn__rbd_header {
  int has_from, has_to;
  char from[CAIRN__RBD_NAME_MAX + 1], to[CAIRN__RBD_NAME_MAX + 1];
  uint64_t size;
};

struct cairn__rbd_record {
  int is_zero;
  uint64_t offset, length; /* length >= 1; within the size */
};

/* ---- writing */

/* from may be NULL. */
int cairn__rbd_write_header(struct cairn__pipe *p, const char *from,
                            const char *to, uint64_t size,
                            struct cairn_error *err);
/* The bytes of that. */
uint64_t cairn__rbd_header_size(const char *from, const char *to);
/* tag 'w' or 'z' */
void cairn__rbd_put_head(unsigned char head[CAIRN__RBD_HEAD], char tag,
                         uint64_t offset, uint64_t length);
int cairn__rbd_write_end(struct cairn__pipe *p, struct cairn_error *err);

/* ---- reading */

struct cairn__rbd_reader {
  struct cairn__pipe *pipe;
  struct cairn__rbd_header header;
  int tag;           /* that was read ahead, or 0 */
  uint64_t next;     /* data lies at or behind it */
  uint64_t unread;   /* bytes of the last record's data */
  uint64_t consumed; /* bytes of the stream */
};

/* Reads up to the first record of data. SOURCE_FORMAT when it is no such
 * stream, SOURCE_CORRUPT when it is a damaged one. */
int cairn__rbd_open(struct cairn__pipe *p, struct cairn__rbd_reader *out,
                    struct cairn_error *err);
/* 1 a record, 0 the end ('e', and nothing behind it), -1 SOURCE_CORRUPT. The
 * data of a 'w' is to be read first. */
int cairn__rbd_next(struct cairn__rbd_reader *r, struct cairn__rbd_record *out,
                    struct cairn_error *err);
/* n of the bytes that are left of a 'w'. */
int cairn__rbd_data(struct cairn__rbd_reader *r, void *buf, size_t n,
                    struct cairn_error *err);

#endif
