/* manifest.json: what makes a directory an export. Fields: docs/export-format
 * ("manifest.json"). Written last, with a self-digest as its last member that
 * covers every byte before it, so that any changed bit is found; it is not
 * evidence against tampering. */
#ifndef CAIRN_EXPORT_MANIFEST_H
#define CAIRN_EXPORT_MANIFEST_H

#include <jansson.h>

#include "cairn.h"
#include "digest.h"
#include "io.h"

#define CAIRN__MANIFEST_NAME    "manifest.json"
#define CAIRN__MANIFEST_VERSION 1
#define CAIRN__MANIFEST_MAX     (64u << 20) /* bytes */
#define CAIRN__SEQUENCE_MAX     INT64_C(999999999999999999)
#define CAIRN__SECRET_NAME      "chain.secret"
/* The text of the member "note". */
#define CAIRN__MANIFEST_NOTE                                                   \
  "The digest finds accidental damage. It is no evidence against tampering: "  \
  "whoever can write here can compute it anew."

/* Writes it into dirfd, 0600, O_EXCL, synced. `manifest` lacks "digest", which
 * is added ("xxh3-128:hex" of the bytes before it, no secret; with
 * manifest.algorithm "sha-256"/"blake2b-256": that one). What a reader would
 * refuse is refused here, before the file exists: CAIRN_E_INTERNAL. */
int cairn__manifest_write(const struct cairn_io *io, int dirfd,
                          json_t *manifest, const char *path,
                          struct cairn_error *err);
/* Reads and checks: size limit, JSON, version, self-digest, required members
 * and their types, every file's path relative, without "..", unique. `path`
 * names the directory in messages. NOT_AN_EXPORT, VERSION, EXPORT_CORRUPT. */
int cairn__manifest_read(const struct cairn_io *io, int dirfd, const char *path,
                         json_t **manifest, struct cairn_error *err);
/* All points of an export directory, sorted by sequence: array of manifests
 * plus "directory" (and "remark" when the directory is not named after its
 * point, or two hold the same one); a damaged one is {"ReferencePointGroupId",
 * "directory", "error", "error_code"} and comes last. */
int cairn__points_read(const struct cairn_io *io, const char *directory,
                       json_t **points, struct cairn_error *err);

/* By sequence, then time; those with "error" last. In place. */
int cairn__points_sort(json_t *points, struct cairn_error *err);

/* "chain.secret": the 192 random bytes that key XXH3-128 in this point and in
 * everything based on it. 0600, nothing but the bytes. Write: O_EXCL, synced.
 * `path` names the directory in messages. */
int cairn__secret_write(const struct cairn_io *io, int dirfd, const char *path,
                        const unsigned char secret[CAIRN__SECRET_SIZE],
                        struct cairn_error *err);
/* Writes that of the digester where its algorithm has one, and appends the
 * file's entry to `files`. */
int cairn__secret_publish(const struct cairn_io *io, int dirfd,
                          const char *path, const struct cairn__digester *d,
                          json_t *files, struct cairn_error *err);
int cairn__secret_read(const struct cairn_io *io, int dirfd, const char *path,
                       unsigned char secret[CAIRN__SECRET_SIZE],
                       struct cairn_error *err);

/* Reads a regular file of at most `max` bytes; *out (cairn__free) ends in a
 * NUL. NOT_AN_EXPORT when there is none, EXPORT_CORRUPT when it is anything
 * else or longer. */
int cairn__small_file_read(const struct cairn_io *io, int dirfd,
                           const char *name, size_t max, const char *path,
                           char **out, size_t *size, struct cairn_error *err);

/* 1 when the text is a GUID as manifests have it: 36 characters, upper case,
 * no braces. */
int cairn__guid_is_canonical(const char *s);
/* [A-Za-z0-9][A-Za-z0-9._-]{0,63}: also a file's name. */
int cairn__is_disk_id(const char *s);
/* Takes a GUID in any case, with or without braces; 0, or -1. */
int cairn__guid_canonical(const char *s, char out[37]);

#endif
