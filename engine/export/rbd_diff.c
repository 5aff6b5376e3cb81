/* rbd_diff.c: see rbd_diff.h. A reader believes nothing: a stream may come from
 * anywhere, cut off or mixed up. */
#include "rbd_diff.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

#define BANNER      "rbd diff v1\n"
#define BANNER_SIZE (sizeof BANNER - 1)

static void put_le(unsigned char *to, uint64_t v, size_t n)
{
  for (size_t i = 0; i < n; i++)
    to[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get_le(const unsigned char *from, size_t n)
{
  uint64_t v = 0;

  for (size_t i = 0; i < n; i++)
    v |= (uint64_t)from[i] << 8 * i;
  return v;
}

/* ---- writing ------------------------------------------------------------- */

static int write_name(struct cairn__pipe *p, char tag, const char *name,
                      struct cairn_error *err)
{
  unsigned char head[5] = {(unsigned char)tag};
  size_t n = strlen(name);

  put_le(head + 1, n, 4);
  if (cairn__pipe_write(p, head, sizeof head, err) != 0)
    return -1;
  return cairn__pipe_write(p, name, n, err);
}

int cairn__rbd_write_header(struct cairn__pipe *p, const char *from,
                            const char *to, uint64_t size,
                            struct cairn_error *err)
{
  unsigned char head[9] = {'s'};

  put_le(head + 1, size, 8);
  if (cairn__pipe_write(p, BANNER, BANNER_SIZE, err) != 0 ||
      (from && write_name(p, 'f', from, err) != 0) ||
      write_name(p, 't', to, err) != 0)
    return -1;
  return cairn__pipe_write(p, head, sizeof head, err);
}

uint64_t cairn__rbd_header_size(const char *from, const char *to)
{
  return BANNER_SIZE + (from ? 5 + strlen(from) : 0) + 5 + strlen(to) + 9;
}

void cairn__rbd_put_head(unsigned char head[CAIRN__RBD_HEAD], char tag,
                         uint64_t offset, uint64_t length)
{
  head[0] = (unsigned char)tag;
  put_le(head + 1, offset, 8);
  put_le(head + 9, length, 8);
}

int cairn__rbd_write_end(struct cairn__pipe *p, struct cairn_error *err)
{
  return cairn__pipe_write(p, "e", 1, err);
}

/* ---- reading ------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static int
damaged(const struct cairn__rbd_reader *r, struct cairn_error *err,
        const char *fmt, ...)
{
  char what[400];
  va_list args;

  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  cairn__fail(err, CAIRN_E_SOURCE_CORRUPT,
              "%s, byte %" PRIu64 " of the stream: %s", r->pipe->name,
              r->consumed, what);
  cairn__error_set_path(err, r->pipe->name, (int64_t)r->consumed);
  return -1;
}

/* Exactly n bytes. */
static int need(struct cairn__rbd_reader *r, void *buf, size_t n,
                struct cairn_error *err)
{
  size_t got;

  if (cairn__pipe_read(r->pipe, buf, n, &got, err) != 0)
    return -1;
  r->consumed += got;
  if (got == n)
    return 0;
  return damaged(r, err,
                 "it ends here, before its end record 'e': it was cut off, or "
                 "whoever wrote it has failed");
}

static int read_name(struct cairn__rbd_reader *r, char tag, int *has,
                     char name[CAIRN__RBD_NAME_MAX + 1],
                     struct cairn_error *err)
{
  unsigned char length[4];
  uint64_t n;

  if (*has)
    return damaged(r, err, "a second record '%c'", tag);
  if (need(r, length, sizeof length, err) != 0)
    return -1;
  n = get_le(length, sizeof length);
  if (n > CAIRN__RBD_NAME_MAX)
    return damaged(r, err,
                   "a name of %" PRIu64 " bytes in record '%c'; up to %u are "
                   "read",
                   n, tag, CAIRN__RBD_NAME_MAX);
  if (need(r, name, (size_t)n, err) != 0)
    return -1;
  name[n] = '\0';
  if (strlen(name) != n)
    return damaged(r, err, "the name in record '%c' has a NUL in it", tag);
  *has = 1;
  return 0;
}

static int read_size(struct cairn__rbd_reader *r, int *has,
                     struct cairn_error *err)
{
  unsigned char size[8];

  if (*has)
    return damaged(r, err, "a second record 's'");
  if (need(r, size, sizeof size, err) != 0)
    return -1;
  r->header.size = get_le(size, sizeof size);
  if (r->header.size > INT64_MAX - 65536)
    return damaged(r, err, "a size of %" PRIu64 " bytes is not possible",
                   r->header.size);
  *has = 1;
  return 0;
}

static int check_banner(struct cairn__rbd_reader *r, struct cairn_error *err)
{
  static const char any[] = "rbd diff v";
  char banner[BANNER_SIZE + 1] = "", shown[64];
  size_t got;

  if (cairn__pipe_read(r->pipe, banner, BANNER_SIZE, &got, err) != 0)
    return -1;
  r->consumed += got;
  if (got == BANNER_SIZE && memcmp(banner, BANNER, BANNER_SIZE) == 0)
    return 0;
  if (got == 0)
    return cairn__fail(err, CAIRN_E_SOURCE_FORMAT,
                       "%s is empty; it must be a stream \"rbd diff v1\", as "
                       "`rbd export-diff` and `cairn export --stream` write it",
                       r->pipe->name);
  for (size_t i = 0; i < got; i++) {
    if (banner[i] == '\0' || banner[i] == '\n')
      banner[i] = ' ';
  }
  cairn__printable(banner, shown, sizeof shown);
  if (strncmp(banner, any, sizeof any - 1) == 0)
    return cairn__fail(err, CAIRN_E_SOURCE_FORMAT,
                       "%s is a stream of another version (\"%s\"); only \"rbd "
                       "diff v1\" is read",
                       r->pipe->name, shown);
  return cairn__fail(err, CAIRN_E_SOURCE_FORMAT,
                     "%s begins with \"%s\"; it must be a stream \"rbd diff "
                     "v1\", as `rbd export-diff` and `cairn export --stream` "
                     "write it",
                     r->pipe->name, shown);
}

int cairn__rbd_open(struct cairn__pipe *p, struct cairn__rbd_reader *out,
                    struct cairn_error *err)
{
  struct cairn__rbd_header *h = &out->header;
  int has_size = 0, result = 0;
  unsigned char tag;

  *out = (struct cairn__rbd_reader){.pipe = p};
  if (check_banner(out, err) != 0)
    return -1;
  while (result == 0) {
    if (need(out, &tag, 1, err) != 0)
      return -1;
    if (tag == 'f')
      result = read_name(out, 'f', &h->has_from, h->from, err);
    else if (tag == 't')
      result = read_name(out, 't', &h->has_to, h->to, err);
    else if (tag == 's')
      result = read_size(out, &has_size, err);
    else
      break;
  }
  if (result != 0)
    return -1;
  if (!has_size)
    return damaged(out, err,
                   "the size (record 's') must come before everything else "
                   "than names, not a record '%c'",
                   tag >= ' ' && tag < 127 ? tag : '?');
  out->tag = tag;
  return 0;
}

/* Nothing may follow. */
static int check_end(struct cairn__rbd_reader *r, struct cairn_error *err)
{
  unsigned char byte;
  size_t got;

  if (cairn__pipe_read(r->pipe, &byte, 1, &got, err) != 0)
    return -1;
  return got == 0
             ? 0
             : damaged(r, err, "there is something behind the end record 'e'");
}

static int check_record(struct cairn__rbd_reader *r,
                        const struct cairn__rbd_record *record,
                        struct cairn_error *err)
{
  uint64_t size = r->header.size;

  if (record->offset > size || record->length > size - record->offset)
    return damaged(r, err,
                   "a record of %" PRIu64 " bytes at offset %" PRIu64
                   " lies beyond the size, %" PRIu64,
                   record->length, record->offset, size);
  if (record->offset < r->next)
    return damaged(r, err,
                   "a record at offset %" PRIu64 " behind one that goes up to "
                   "%" PRIu64 ": records must ascend and not overlap",
                   record->offset, r->next);
  return 0;
}

int cairn__rbd_next(struct cairn__rbd_reader *r, struct cairn__rbd_record *out,
                    struct cairn_error *err)
{
  for (;;) {
    unsigned char tag = (unsigned char)r->tag, head[CAIRN__RBD_HEAD - 1];

    r->tag = 0;
    if (tag == 0 && need(r, &tag, 1, err) != 0)
      return -1;
    if (tag == 'e')
      return check_end(r, err);
    if (tag == 'f' || tag == 't' || tag == 's')
      return damaged(r, err, "a record '%c' behind the first data", tag);
    if (tag != 'w' && tag != 'z')
      return damaged(r, err,
                     "0x%02x is no record of a stream \"rbd diff v1\"; known "
                     "are f, t, s, w, z and e",
                     tag);
    if (need(r, head, sizeof head, err) != 0)
      return -1;
    out->is_zero = tag == 'z';
    out->offset = get_le(head, 8);
    out->length = get_le(head + 8, 8);
    if (check_record(r, out, err) != 0)
      return -1;
    r->next = out->offset + out->length;
    r->unread = out->is_zero ? 0 : out->length;
    if (out->length > 0)
      return 1;
  }
}

int cairn__rbd_data(struct cairn__rbd_reader *r, void *buf, size_t n,
                    struct cairn_error *err)
{
  if (n > r->unread)
    return cairn__fail(err, CAIRN_E_INTERNAL,
                       "more data asked for than the record has");
  if (need(r, buf, n, err) != 0)
    return -1;
  r->unread -= n;
  return 0;
}
