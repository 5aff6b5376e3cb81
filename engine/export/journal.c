/* journal.c: see journal.h. */
#include "journal.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "image.h"
#include "memory.h"

#define HEADER_SIZE 64u
#define VERSION     1u
#define TAIL        16u /* of a slot, behind the digest */
#define SLOT_MAX    (CAIRN__DIGEST_MAX + TAIL)
#define WRITTEN     1u

static const char magic[8] = "CAIRNJN";

struct cairn__journal {
  const struct cairn_io *io;
  char *path;
  int fd;
  unsigned digest_size, slot_size;
  unsigned char origin[16], known[16];
  int has_known;
  const struct cairn__changes *since;
  _Atomic int errnum; /* what ended it */
};

static void put_le32(unsigned char *p, uint32_t v)
{
  for (int i = 0; i < 4; i++)
    p[i] = (unsigned char)(v >> (8 * i));
}

static void put_le64(unsigned char *p, uint64_t v)
{
  put_le32(p, (uint32_t)v);
  put_le32(p + 4, (uint32_t)(v >> 32));
}

static uint64_t get_le64(const unsigned char *p)
{
  uint64_t v = 0;

  for (int i = 7; i >= 0; i--)
    v = v << 8 | p[i];
  return v;
}

static int fail_journal(const char *path, int errnum, const char *what,
                        struct cairn_error *err)
{
  char shown[512];

  return cairn__fail_errno(err, errnum, path, -1, "cannot %s the journal %s",
                           what, cairn__printable(path, shown, sizeof shown));
}

/* ---- slots --------------------------------------------------------------- */

void cairn__journal_place(unsigned digest_size, uint64_t block, uint64_t *from,
                          uint64_t *to)
{
  *from = HEADER_SIZE + block * (digest_size + TAIL);
  *to = *from + digest_size + TAIL;
}

static off_t slot_offset(const struct cairn__journal *j, uint64_t block)
{
  return (off_t)(HEADER_SIZE + block * j->slot_size);
}

static uint64_t checksum(const struct cairn__journal *j,
                         const unsigned char origin[16], uint64_t block,
                         const unsigned char *slot)
{
  unsigned char text[16 + 8 + SLOT_MAX];
  size_t n = j->digest_size + 8;

  memcpy(text, origin, 16);
  put_le64(text + 16, block);
  memcpy(text + 24, slot, n);
  return XXH3_64bits(text, 24 + n);
}

static void write_slot(const struct cairn__journal *j, uint64_t block,
                       const unsigned char *digest, uint64_t position,
                       unsigned char *slot)
{
  memcpy(slot, digest, j->digest_size);
  put_le64(slot + j->digest_size, position | WRITTEN);
  put_le64(slot + j->digest_size + 8, checksum(j, j->origin, block, slot));
}

/* The slot is of content that the source still has. */
static int is_vouched(const struct cairn__journal *j, uint64_t block,
                      const unsigned char *slot)
{
  return j->has_known &&
         !(j->since && cairn__changes_is_set(j->since, block)) &&
         get_le64(slot + j->digest_size + 8) ==
             checksum(j, j->known, block, slot);
}

static void read_slot(const struct cairn__journal *j, uint64_t block,
                      const unsigned char *slot,
                      struct cairn__journal_slot *out)
{
  uint64_t place = get_le64(slot + j->digest_size);

  memset(out, 0, sizeof *out);
  if (place % CAIRN__BLOCK != WRITTEN)
    return;
  out->is_written = 1;
  out->is_vouched = is_vouched(j, block, slot);
  out->position = place - WRITTEN;
  memcpy(out->digest, slot, j->digest_size);
}

void cairn__journal_read(struct cairn__journal *j, uint64_t first, size_t count,
                         struct cairn__journal_slot *slots)
{
  unsigned char buf[CAIRN__JOURNAL_MOST * SLOT_MAX];
  size_t n = count * j->slot_size;
  ssize_t got = 0;

  if (count <= CAIRN__JOURNAL_MOST)
    got = cairn__io_read_full(j->io, j->fd, buf, n, slot_offset(j, first));
  if (got < 0)
    got = 0;
  memset(buf + got, 0, sizeof buf - (size_t)got);
  for (size_t i = 0; i < count; i++) {
    if (i < CAIRN__JOURNAL_MOST)
      read_slot(j, first + i, buf + i * j->slot_size, &slots[i]);
    else
      memset(&slots[i], 0, sizeof slots[i]);
  }
}

void cairn__journal_write(struct cairn__journal *j, uint64_t first,
                          size_t count, const uint8_t *states,
                          const uint64_t *positions,
                          const unsigned char *digests)
{
  unsigned char buf[CAIRN__JOURNAL_MOST * SLOT_MAX];

  if (atomic_load_explicit(&j->errnum, memory_order_relaxed) != 0)
    return;
  memset(buf, 0, count * j->slot_size);
  for (size_t i = 0; i < count; i++) {
    if (states[i] == CAIRN__DATA || states[i] == CAIRN__KEPT)
      write_slot(j, first + i, digests + i * j->digest_size, positions[i],
                 buf + i * j->slot_size);
  }
  if (cairn__io_write_full(j->io, j->fd, buf, count * j->slot_size,
                           slot_offset(j, first)) != 0)
    atomic_store(&j->errnum, errno);
}

int cairn__journal_check(struct cairn__journal *j, struct cairn_error *err)
{
  int errnum = atomic_load(&j->errnum);

  return errnum == 0 ? 0 : fail_journal(j->path, errnum, "write", err);
}

/* ---- opening ------------------------------------------------------------- */

static void make_header(const struct cairn__journal_options *o,
                        unsigned char header[HEADER_SIZE])
{
  memset(header, 0, HEADER_SIZE);
  memcpy(header, magic, sizeof magic);
  put_le32(header + 8, VERSION);
  put_le32(header + 12, o->digester->size);
  put_le64(header + 16, o->virtual_size);
}

/* Another header, or none: what follows says nothing about this disk. */
static int begin(struct cairn__journal *j,
                 const struct cairn__journal_options *o,
                 struct cairn_error *err)
{
  unsigned char wanted[HEADER_SIZE], found[HEADER_SIZE];
  ssize_t n;

  make_header(o, wanted);
  n = cairn__io_read_full(j->io, j->fd, found, HEADER_SIZE, 0);
  if (n == HEADER_SIZE && memcmp(found, wanted, HEADER_SIZE) == 0)
    return 0;
  if (j->io->ftruncate(j->io, j->fd, 0) != 0 ||
      cairn__io_write_full(j->io, j->fd, wanted, HEADER_SIZE, 0) != 0)
    return fail_journal(j->path, errno, "write", err);
  return 0;
}

int cairn__journal_open(const struct cairn__journal_options *o,
                        struct cairn__journal **out, struct cairn_error *err)
{
  struct cairn__journal *j = cairn__calloc(1, sizeof *j);

  *out = NULL;
  if (!j)
    return cairn__fail_memory(err);
  j->io = o->io;
  j->fd = -1;
  j->digest_size = o->digester->size;
  j->slot_size = j->digest_size + TAIL;
  memcpy(j->origin, o->origin, sizeof j->origin);
  j->has_known = o->known != NULL;
  if (o->known)
    memcpy(j->known, o->known, sizeof j->known);
  j->since = o->since;
  j->path = cairn__strdup(o->path ? o->path : o->name);
  if (!j->path) {
    cairn__journal_close(j);
    return cairn__fail_memory(err);
  }
  j->fd = o->io->openat(o->io, o->dirfd, o->name,
                        O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (j->fd < 0) {
    fail_journal(j->path, errno, "create", err);
    cairn__journal_close(j);
    return -1;
  }
  if (begin(j, o, err) != 0) {
    cairn__journal_close(j);
    return -1;
  }
  *out = j;
  return 0;
}

void cairn__journal_close(struct cairn__journal *j)
{
  if (!j)
    return;
  if (j->fd >= 0)
    (void)j->io->close(j->io, j->fd);
  cairn__free(j->path);
  cairn__free(j);
}
