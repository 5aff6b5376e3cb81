/* Filling a caller-owned struct cairn_error. All take err == NULL and return
 * -1, so that `return cairn__fail(...)` is the idiom. errno is read by
 * cairn__fail_errno first thing and kept in system_errno. */
#ifndef CAIRN_ERROR_H
#define CAIRN_ERROR_H

#include "cairn.h"

void cairn__error_clear(struct cairn_error *err);
int cairn__fail(struct cairn_error *err, int id, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The message ends in ": " and the errno's text. The id is taken from the
 * errno (ENOSPC, EDQUOT, EFBIG: DISK_FULL; EACCES, EPERM, EROFS:
 * PERMISSION_DENIED; ENOMEM: NO_MEMORY; ENOENT: NOT_FOUND; EEXIST: EXISTS;
 * ENAMETOOLONG, ENOTDIR, EISDIR, ELOOP: BAD_PATH; else IO_ERROR). `path` goes
 * into err->path, `offset` into err->offset (-1 none); both may be absent. */
int cairn__fail_errno(struct cairn_error *err, int errnum, const char *path,
                      int64_t offset, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
int cairn__fail_memory(struct cairn_error *err);
/* Names the machine and the disk an error belongs to, in its fields and, if
 * they are not there yet, at the head of its message:
 * "machine M, disk D: ..." */
void cairn__error_locate(struct cairn_error *err, const char *machine,
                         const char *disk);
/* After cairn__error_locate: has the message call the machine by its name as
 * well, "machine web1 (M), ..."; nothing when it has none (NULL or ""). */
void cairn__error_name_machine(struct cairn_error *err, const char *name);
/* "HEAD: " before the message. */
void cairn__error_prefix(struct cairn_error *err, const char *head);
void cairn__error_set_path(struct cairn_error *err, const char *path,
                           int64_t offset);
/* What to do about an error: the table's advice, or a better one where the
 * errno (0 = none) tells more. */
const char *cairn__error_advice(int id, int system_errno);
/* A path or name made printable (control bytes as \xHH), for messages; the
 * buffer is returned. */
const char *cairn__printable(const char *s, char *buffer, size_t size);
/* Bytes of the UTF-8 character (RFC 3629) at s, 0 when there is none: cut off,
 * overlong, a surrogate or beyond U+10FFFF. s ends in a NUL. */
size_t cairn__utf8_length(const unsigned char *s);
/* The candidate most like `word` (edit distance, case ignored). */
const char *cairn__nearest(const char *word, const char *const *candidates,
                           size_t count);

#ifdef __clang_analyzer__
/* The analyzer looks into one file at a time; it must know that these never
 * return 0, or it follows paths that do not exist. */
#define cairn__fail(...)        (cairn__fail(__VA_ARGS__), -1)
#define cairn__fail_errno(...)  (cairn__fail_errno(__VA_ARGS__), -1)
#define cairn__fail_memory(err) (cairn__fail_memory(err), -1)
#endif

#endif
