/* Digests: of a block, of a file (a tree over its blocks), and of a disk's
 * content (the digest map, "<disk>.digests").
 *
 * A block is 64 KiB, the last one padded with zeros. The digest of a block
 * that is all zero is the zero marker: all bytes 0 (no algorithm is run).
 * A page is 8192 block digests, the last one as many as remain; the page's
 * digest is H(those bytes), the zero marker when all are markers. The root is
 * H(LE64 size || page digests), size being the file's size in bytes (for a
 * map: the disk's virtual size).
 * H is XXH3-128 with the chain's random 192-byte secret (canonical, big-endian
 * bytes), SHA-256 or BLAKE2b-256; the last two are keyed by nothing.
 *
 * Digests are named "algorithm:hex" in manifests: "xxh3-128:...",
 * "sha-256:...", "blake2b-256:...".
 *
 * Thread: a struct cairn__digester is read-only after init and shared freely;
 * trees and maps belong to one thread at a time. */
#ifndef CAIRN_EXPORT_DIGEST_H
#define CAIRN_EXPORT_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"
#include "changes.h"
#include "io.h"

#define CAIRN__BLOCK       65536u
#define CAIRN__PAGE_BLOCKS 8192u
#define CAIRN__DIGEST_MAX  32u
#define CAIRN__SECRET_SIZE 192u

enum cairn__digest_algorithm {
  CAIRN__XXH3_128 = 1,
  CAIRN__SHA_256 = 2,
  CAIRN__BLAKE2B_256 = 3
};

struct cairn__digester {
  int algorithm;
  unsigned size; /* bytes of one digest: 16 or 32 */
  unsigned char secret[CAIRN__SECRET_SIZE];
};

/* name: "xxh3-128" ...; CAIRN_E_NOT_SUPPORTED when it was not built in. */
int cairn__digest_algorithm_parse(const char *name, int *algorithm,
                                  struct cairn_error *err);
const char *cairn__digest_algorithm_name(int algorithm);
void cairn__digester_init(struct cairn__digester *d, int algorithm,
                          const unsigned char secret[CAIRN__SECRET_SIZE]);
/* Draws a fresh secret from the system. */
int cairn__digest_secret(unsigned char secret[CAIRN__SECRET_SIZE],
                         struct cairn_error *err);
/* H(data), no zero rule. */
void cairn__digest_bytes(const struct cairn__digester *d, const void *data,
                         size_t n, unsigned char *out);
/* One whole block: 1 when it is all zero (out = marker), else 0. */
int cairn__digest_block(const struct cairn__digester *d,
                        const unsigned char block[CAIRN__BLOCK],
                        unsigned char *out);
int cairn__is_zero(const void *data, size_t n);
/* The digest of a page of `count` block digests (the last page has fewer than
 * 8192): 1 when all are markers (out = marker), else 0. */
int cairn__digest_page(const struct cairn__digester *d,
                       const unsigned char *digests, size_t count,
                       unsigned char *out);
/* XXH3-128 of a text, without a secret, in hexadecimal: against accidents, for
 * small files that are checked before any secret is known. */
#define CAIRN__SUM_TEXT 33
void cairn__text_sum(const char *text, size_t n, char out[CAIRN__SUM_TEXT]);
/* "algorithm:hex" <-> bytes */
#define CAIRN__DIGEST_TEXT 80
void cairn__digest_format(const struct cairn__digester *d,
                          const unsigned char *digest,
                          char out[CAIRN__DIGEST_TEXT]);
int cairn__digest_parse(const struct cairn__digester *d, const char *text,
                        unsigned char *out, struct cairn_error *err);

/* ---- tree: leaves in order, root at the end ------------------------------ */

struct cairn__tree; /* memory: two pages and 16 or 32 bytes per page */
struct cairn__tree *cairn__tree_new(const struct cairn__digester *d);
void cairn__tree_free(struct cairn__tree *t);
/* Appends `count` leaves; NULL = that many zero markers. 0 or -1 (memory). */
int cairn__tree_append(struct cairn__tree *t, const unsigned char *leaves,
                       uint64_t count);
/* Leaf 0 may be given late: append a marker first, then set it before the
 * root is taken (a header is written last). */
void cairn__tree_set_first(struct cairn__tree *t, const unsigned char *leaf);
uint64_t cairn__tree_count(const struct cairn__tree *t);
void cairn__tree_root(struct cairn__tree *t, uint64_t size, unsigned char *out);

/* The tree digest of an open file of this size, read once through io; holes
 * are not read. The optional gate is called between requests of 1 MiB;
 * non-zero stops with -1. Errors carry the offset; the caller adds the path
 * (cairn__error_set_path). */
int cairn__tree_file(const struct cairn_io *io, int fd, uint64_t size,
                     const struct cairn__digester *d,
                     int (*gate)(void *arg, struct cairn_error *err), void *arg,
                     unsigned char *root, struct cairn_error *err);

/* ---- digest map -------------------------------------------------------------
 *
 * "<disk>.digests", little endian:
 *    0  8 "CAIRNDG\0"      8  4 version 1         12  4 header size 4096
 *   16  4 algorithm       20  4 digest size       24  4 block size
 *   28  4 blocks a page   32  8 virtual size      40  8 length
 *   48 16 ReferencePointGroupId (network order)   64  8 pages
 *   72..  zero, and at 4080: XXH3-128 (no secret) of bytes 0..4079
 * then for page p, at 4096 + p * stride: its digests (short in the last page,
 * padded with zeros), then the page digest. stride = 8192 * digest size + 4096
 * (page digest at offset 8192 * digest size, then zeros). A page of markers is
 * a hole. The file's size is 4096 + pages * stride. */

struct cairn__map_info {
  int algorithm;
  uint64_t virtual_size, length, blocks, pages;
  unsigned char point[16];
};

struct cairn__map_writer;
/* path: what messages call it (NULL: name). */
int cairn__map_create(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const struct cairn__digester *d,
                      uint64_t virtual_size, uint64_t length,
                      const unsigned char point[16],
                      struct cairn__map_writer **out, struct cairn_error *err);
/* Ascending; blocks left out are zero markers. */
int cairn__map_append(struct cairn__map_writer *w, uint64_t first_block,
                      const unsigned char *digests, uint64_t count,
                      struct cairn_error *err);
/* Ends and syncs the file. root: content root over the whole disk;
 * file_digest: the tree digest of the .digests file itself; size: its bytes.
 * Frees the writer whatever happens. */
int cairn__map_finish(struct cairn__map_writer *w, unsigned char *root,
                      unsigned char *file_digest, uint64_t *size,
                      struct cairn_error *err);
void cairn__map_abort(struct cairn__map_writer *w); /* NULL allowed */
/* A writer without a file, for cairn__map_append; it is ended by
 * cairn__map_measured or cairn__map_abort. */
int cairn__map_measure(const struct cairn__digester *d, uint64_t virtual_size,
                       uint64_t length, struct cairn__map_writer **out,
                       struct cairn_error *err);
/* *bytes: what the file would take on disk, without its holes. Frees the writer
 * whatever happens. */
int cairn__map_measured(struct cairn__map_writer *w, uint64_t *bytes,
                        struct cairn_error *err);

struct cairn__map;
/* Opens and checks header and size. path: what messages call it (NULL: name).
 */
int cairn__map_open(const struct cairn_io *io, int dirfd, const char *name,
                    const char *path, const struct cairn__digester *d,
                    struct cairn__map **out, struct cairn_error *err);
const struct cairn__map_info *cairn__map_get_info(const struct cairn__map *m);
/* Digests of blocks first..first+count-1 (within one page). Each page's own
 * digest is checked when it is loaded: CAIRN_E_EXPORT_CORRUPT. One thread. */
int cairn__map_read(struct cairn__map *m, uint64_t first, uint64_t count,
                    unsigned char *out, struct cairn_error *err);
/* Root over all pages (reads every page). */
int cairn__map_root(struct cairn__map *m, unsigned char *root,
                    struct cairn_error *err);
/* The blocks of `map` that have another digest in `base` (zero beyond its end);
 * *out as large as map's disk, the caller frees it. Both of one digester. */
int cairn__map_changes(struct cairn__map *map, struct cairn__map *base,
                       struct cairn__changes **out, struct cairn_error *err);
void cairn__map_close(struct cairn__map *m); /* NULL allowed */

#endif
