/* Digests of blocks, and the tree over them.
 *
 * The tree has two levels: pages of 8192 leaves, and a root over the pages'
 * digests and the size. A run of zero markers costs nothing but its place, so
 * that a sparse file of any size is digested in the time of its data.
 *
 * Invariant of a tree: page 0 is kept until the root is taken (its first leaf
 * may still change), the page being filled is kept, of every other page only
 * the digest is; there is always room for one page digest more, so that taking
 * the root cannot fail. */
#include "digest.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#ifdef CAIRN_HAVE_GCRYPT
#include <gcrypt.h>
#endif
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "memory.h"

#define READ_BLOCKS 16 /* of one request of cairn__tree_file: 1 MiB */

/* ---- algorithms -----------------------------------------------------------
 */

static const struct {
  const char *name;
  int algorithm;
  unsigned size;
} algorithms[] = {
    {"xxh3-128", CAIRN__XXH3_128, 16},
    {"sha-256", CAIRN__SHA_256, 32},
    {"blake2b-256", CAIRN__BLAKE2B_256, 32},
};

#define ALGORITHM_COUNT (sizeof algorithms / sizeof algorithms[0])

#ifdef CAIRN_HAVE_GCRYPT
static void gcrypt_start(void)
{
  /* An application that uses libgcrypt itself has done this already. */
  if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
    return;
  }
  gcry_check_version(NULL);
  gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
  gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

static int gcrypt_id(int algorithm)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;

  pthread_once(&once, gcrypt_start);
  return algorithm == CAIRN__SHA_256 ? GCRY_MD_SHA256 : GCRY_MD_BLAKE2B_256;
}
#endif

/* 1 when this build, on this machine, can compute it. */
static int is_available(int algorithm)
{
  if (algorithm == CAIRN__XXH3_128) {
    return 1;
  }
#ifdef CAIRN_HAVE_GCRYPT
  /* refused, for one, by a libgcrypt in FIPS mode */
  return gcry_md_test_algo(gcrypt_id(algorithm)) == 0;
#else
  return 0;
#endif
}

int cairn__digest_algorithm_parse(const char *name, int *algorithm,
                                  struct cairn_error *err)
{
  char printable[64];
  size_t i;

  for (i = 0; i < ALGORITHM_COUNT; i++) {
    if (strcmp(name, algorithms[i].name) != 0) {
      continue;
    }
    if (!is_available(algorithms[i].algorithm)) {
      return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                         "digest %s is not available here (it needs a build "
                         "with libgcrypt, and libgcrypt's consent); "
                         "xxh3-128 always is",
                         name);
    }
    *algorithm = algorithms[i].algorithm;
    return 0;
  }
  return cairn__fail(
      err, CAIRN_E_INVALID_ARGUMENT,
      "unknown digest algorithm \"%s\"; valid are xxh3-128, sha-256, "
      "blake2b-256",
      cairn__printable(name, printable, sizeof printable));
}

const char *cairn__digest_algorithm_name(int algorithm)
{
  size_t i;

  for (i = 0; i < ALGORITHM_COUNT; i++) {
    if (algorithms[i].algorithm == algorithm) {
      return algorithms[i].name;
    }
  }
  return "unknown";
}

void cairn__digester_init(struct cairn__digester *d, int algorithm,
                          const unsigned char secret[CAIRN__SECRET_SIZE])
{
  memset(d, 0, sizeof *d);
  d->algorithm = algorithm;
  d->size = algorithm == CAIRN__XXH3_128 ? 16 : 32;
  if (secret != NULL) {
    memcpy(d->secret, secret, CAIRN__SECRET_SIZE);
  }
#ifdef CAIRN_HAVE_GCRYPT
  if (algorithm != CAIRN__XXH3_128) {
    (void)gcrypt_id(algorithm);
  }
#endif
}

int cairn__digest_secret(unsigned char secret[CAIRN__SECRET_SIZE],
                         struct cairn_error *err)
{
  /* up to 256 bytes getrandom gives whole or not at all */
  for (;;) {
    ssize_t got = getrandom(secret, CAIRN__SECRET_SIZE, 0);

    if (got == (ssize_t)CAIRN__SECRET_SIZE) {
      return 0;
    }
    if (got < 0 && errno != EINTR) {
      return cairn__fail_errno(err, errno, NULL, -1,
                               "cannot draw a digest secret");
    }
  }
}

void cairn__digest_bytes(const struct cairn__digester *d, const void *data,
                         size_t n, unsigned char *out)
{
#ifdef CAIRN_HAVE_GCRYPT
  if (d->algorithm != CAIRN__XXH3_128) {
    gcry_md_hash_buffer(d->algorithm == CAIRN__SHA_256 ? GCRY_MD_SHA256
                                                       : GCRY_MD_BLAKE2B_256,
                        out, data, n);
    return;
  }
#endif
  XXH128_canonical_t canonical;

  XXH128_canonicalFromHash(
      &canonical,
      XXH3_128bits_withSecret(data, n, d->secret, CAIRN__SECRET_SIZE));
  memcpy(out, canonical.digest, sizeof canonical.digest);
}

/* ---- zeros -----------------------------------------------------------------
 */

typedef uint64_t words __attribute__((vector_size(32), aligned(1), may_alias));

int cairn__is_zero(const void *data, size_t n)
{
  const unsigned char *p = data;
  size_t i = 0;

  /* Content that is not zero rarely begins with zeros and rarely has zeros in
   * its middle and at its end: most blocks are decided here. */
  if (n >= 64) {
    uint64_t first, middle, last;

    memcpy(&first, p, 8);
    memcpy(&middle, p + n / 2, 8);
    memcpy(&last, p + n - 8, 8);
    if ((first | middle | last) != 0) {
      return 0;
    }
    for (; i + 256 <= n; i += 256) {
      const words *w = (const words *)(p + i);
      words a = (w[0] | w[1]) | (w[2] | w[3]);
      words b = (w[4] | w[5]) | (w[6] | w[7]);

      a |= b;
      if ((a[0] | a[1] | a[2] | a[3]) != 0) {
        return 0;
      }
    }
  }
  for (; i < n; i++) {
    if (p[i] != 0) {
      return 0;
    }
  }
  return 1;
}

int cairn__digest_block(const struct cairn__digester *d,
                        const unsigned char block[CAIRN__BLOCK],
                        unsigned char *out)
{
  if (cairn__is_zero(block, CAIRN__BLOCK)) {
    memset(out, 0, d->size);
    return 1;
  }
  cairn__digest_bytes(d, block, CAIRN__BLOCK, out);
  return 0;
}

int cairn__digest_page(const struct cairn__digester *d,
                       const unsigned char *digests, size_t count,
                       unsigned char *out)
{
  if (cairn__is_zero(digests, count * d->size)) {
    memset(out, 0, d->size);
    return 1;
  }
  cairn__digest_bytes(d, digests, count * d->size, out);
  return 0;
}

/* ---- text -------------------------------------------------------------------
 */

void cairn__text_sum(const char *text, size_t n, char out[CAIRN__SUM_TEXT])
{
  static const char hex[] = "0123456789abcdef";
  XXH128_canonical_t sum;

  XXH128_canonicalFromHash(&sum, XXH3_128bits(text, n));
  for (size_t i = 0; i < sizeof sum.digest; i++) {
    out[2 * i] = hex[sum.digest[i] >> 4];
    out[2 * i + 1] = hex[sum.digest[i] & 15];
  }
  out[2 * sizeof sum.digest] = '\0';
}

void cairn__digest_format(const struct cairn__digester *d,
                          const unsigned char *digest,
                          char out[CAIRN__DIGEST_TEXT])
{
  static const char hex[] = "0123456789abcdef";
  int at = snprintf(out, CAIRN__DIGEST_TEXT,
                    "%s:", cairn__digest_algorithm_name(d->algorithm));
  unsigned i;

  for (i = 0; i < d->size; i++) {
    out[at++] = hex[digest[i] >> 4];
    out[at++] = hex[digest[i] & 15];
  }
  out[at] = '\0';
}

static int hex_value(char c)
{
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  if (c >= 'a' && c <= 'f') {
    return c - 'a' + 10;
  }
  return -1;
}

int cairn__digest_parse(const struct cairn__digester *d, const char *text,
                        unsigned char *out, struct cairn_error *err)
{
  const char *name = cairn__digest_algorithm_name(d->algorithm);
  size_t length = strlen(name);
  char printable[128];
  size_t i;

  if (strncmp(text, name, length) != 0 || text[length] != ':' ||
      strlen(text + length + 1) != 2 * (size_t)d->size) {
    goto bad;
  }
  text += length + 1;
  for (i = 0; i < d->size; i++) {
    int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);

    if (high < 0 || low < 0) {
      text -= length + 1;
      goto bad;
    }
    out[i] = (unsigned char)(high << 4 | low);
  }
  return 0;
bad:
  return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                     "bad digest \"%s\": expected \"%s:\" and %u lower-case "
                     "hexadecimal digits",
                     cairn__printable(text, printable, sizeof printable), name,
                     2 * d->size);
}

/* ---- tree
 * -------------------------------------------------------------------- */

struct cairn__tree {
  const struct cairn__digester *digester;
  uint64_t count;       /* leaves */
  unsigned char *first; /* page 0 */
  unsigned char *page;  /* the page being filled; == first for page 0 */
  /* 8 bytes for the size, then the digests of the complete pages, then room
   * for one more: what the root is the digest of */
  unsigned char *root;
  uint64_t pages, capacity; /* complete pages; room */
};

struct cairn__tree *cairn__tree_new(const struct cairn__digester *d)
{
  struct cairn__tree *t = cairn__calloc(1, sizeof *t);

  if (t == NULL) {
    return NULL;
  }
  t->digester = d;
  t->capacity = 16;
  t->first = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * d->size);
  t->root = cairn__malloc(8 + (size_t)t->capacity * d->size);
  t->page = t->first;
  if (t->first == NULL || t->root == NULL) {
    cairn__tree_free(t);
    return NULL;
  }
  return t;
}

void cairn__tree_free(struct cairn__tree *t)
{
  if (t == NULL) {
    return;
  }
  if (t->page != t->first) {
    cairn__free(t->page);
  }
  cairn__free(t->first);
  cairn__free(t->root);
  cairn__free(t);
}

/* Makes room for `more` complete pages beside the one that is always free. */
static int tree_reserve(struct cairn__tree *t, uint64_t more)
{
  uint64_t need = t->pages + more + 1, capacity = t->capacity;
  unsigned char *fresh;
  size_t bytes;

  if (need <= capacity) {
    return 0;
  }
  while (capacity < need) {
    capacity *= 2;
  }
  if (__builtin_mul_overflow(capacity, (uint64_t)t->digester->size, &bytes) ||
      bytes > SIZE_MAX - 8) {
    errno = ENOMEM;
    return -1;
  }
  fresh = cairn__realloc(t->root, bytes + 8);
  if (fresh == NULL) {
    return -1;
  }
  t->root = fresh;
  t->capacity = capacity;
  return 0;
}

/* The page being filled is full: only its digest is kept. */
static int tree_turn(struct cairn__tree *t)
{
  unsigned size = t->digester->size;
  unsigned char *page = t->page;

  if (page == t->first) {
    page = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * size);
    if (page == NULL) {
      return -1;
    }
  }
  cairn__digest_page(t->digester, t->page, CAIRN__PAGE_BLOCKS,
                     t->root + 8 + (size_t)t->pages * size);
  t->pages++;
  t->page = page;
  return 0;
}

int cairn__tree_append(struct cairn__tree *t, const unsigned char *leaves,
                       uint64_t count)
{
  unsigned size = t->digester->size;

  if (count > UINT64_MAX / 2 - t->count) {
    errno = ENOMEM;
    return -1;
  }
  if (tree_reserve(t, (count + CAIRN__PAGE_BLOCKS) / CAIRN__PAGE_BLOCKS) != 0) {
    return -1;
  }
  while (count > 0) {
    unsigned fill = (unsigned)(t->count - t->pages * CAIRN__PAGE_BLOCKS);
    uint64_t n = CAIRN__PAGE_BLOCKS - fill;

    if (fill == CAIRN__PAGE_BLOCKS) {
      if (tree_turn(t) != 0) {
        return -1;
      }
      continue;
    }
    if (leaves == NULL && fill == 0 && t->count > 0 &&
        count > CAIRN__PAGE_BLOCKS) {
      /* whole pages of markers, followed by more */
      uint64_t whole = (count - 1) / CAIRN__PAGE_BLOCKS;

      memset(t->root + 8 + (size_t)t->pages * size, 0, (size_t)whole * size);
      t->pages += whole;
      t->count += whole * CAIRN__PAGE_BLOCKS;
      count -= whole * CAIRN__PAGE_BLOCKS;
      continue;
    }
    if (n > count) {
      n = count;
    }
    if (leaves == NULL) {
      memset(t->page + (size_t)fill * size, 0, (size_t)n * size);
    } else {
      memcpy(t->page + (size_t)fill * size, leaves, (size_t)n * size);
      leaves += n * size;
    }
    t->count += n;
    count -= n;
  }
  return 0;
}

void cairn__tree_set_first(struct cairn__tree *t, const unsigned char *leaf)
{
  if (t->count == 0) {
    return;
  }
  memcpy(t->first, leaf, t->digester->size);
  if (t->pages > 0) {
    cairn__digest_page(t->digester, t->first, CAIRN__PAGE_BLOCKS, t->root + 8);
  }
}

uint64_t cairn__tree_count(const struct cairn__tree *t)
{
  return t->count;
}

void cairn__tree_root(struct cairn__tree *t, uint64_t size, unsigned char *out)
{
  unsigned digest = t->digester->size, i;
  size_t fill = (size_t)(t->count - t->pages * CAIRN__PAGE_BLOCKS);
  size_t bytes = 8 + (size_t)t->pages * digest;

  for (i = 0; i < 8; i++) {
    t->root[i] = (unsigned char)(size >> (8 * i));
  }
  if (fill > 0) {
    cairn__digest_page(t->digester, t->page, fill, t->root + bytes);
    bytes += digest;
  }
  cairn__digest_bytes(t->digester, t->root, bytes, out);
}

/* ---- tree of a file
 * ----------------------------------------------------------- */

/* The first byte at or after `offset` that may be data, at most `size`. Where
 * the file system cannot say, everything is data. */
static int next_data(const struct cairn_io *io, int fd, uint64_t offset,
                     uint64_t size, uint64_t *data, struct cairn_error *err)
{
  off_t at = io->lseek(io, fd, (off_t)offset, SEEK_DATA);

  if (at < 0 && errno == ENXIO) {
    *data = size;
  } else if (at < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
    *data = offset;
  } else if (at < 0) {
    cairn__fail_errno(err, errno, NULL, (int64_t)offset,
                      "cannot look for data at offset %" PRIu64, offset);
    return -1;
  } else {
    *data = (uint64_t)at < size ? (uint64_t)at : size;
  }
  return 0;
}

int cairn__tree_file(const struct cairn_io *io, int fd, uint64_t size,
                     const struct cairn__digester *d,
                     int (*gate)(void *arg, struct cairn_error *err), void *arg,
                     unsigned char *root, struct cairn_error *err)
{
  struct cairn__tree *t = cairn__tree_new(d);
  unsigned char *buffer =
      cairn__malloc_aligned((size_t)READ_BLOCKS * CAIRN__BLOCK);
  unsigned char leaves[READ_BLOCKS * CAIRN__DIGEST_MAX];
  uint64_t offset = 0;
  struct stat st;
  int rc = -1;

  if (t == NULL || buffer == NULL) {
    cairn__fail_memory(err);
    goto out;
  }
  /* SEEK_DATA reports the end of a file that is too short as a hole. */
  if (io->fstat(io, fd, &st) != 0) {
    cairn__fail_errno(err, errno, NULL, -1, "cannot look at the file");
    goto out;
  }
  if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < size) {
    cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                "the file has %" PRIu64 " bytes instead of %" PRIu64,
                (uint64_t)st.st_size, size);
    cairn__error_set_path(err, "", st.st_size);
    goto out;
  }
  while (offset < size) {
    uint64_t data = offset, blocks, i;
    size_t want, n;
    ssize_t got;

    if (gate != NULL && gate(arg, err) != 0) {
      goto out;
    }
    if (next_data(io, fd, offset, size, &data, err) != 0) {
      goto out;
    }
    if (data == size) {
      blocks = (size - offset + CAIRN__BLOCK - 1) / CAIRN__BLOCK;
    } else {
      blocks = (data - offset) / CAIRN__BLOCK;
    }
    if (blocks > 0) {
      if (cairn__tree_append(t, NULL, blocks) != 0) {
        cairn__fail_memory(err);
        goto out;
      }
      offset += blocks * CAIRN__BLOCK;
      continue;
    }
    want = (size_t)READ_BLOCKS * CAIRN__BLOCK;
    n = size - offset < want ? (size_t)(size - offset) : want;
    /* Whole blocks are asked for: on a direct descriptor the last request must
     * be aligned too. */
    want = (n + CAIRN__BLOCK - 1) / CAIRN__BLOCK * CAIRN__BLOCK;
    got = cairn__io_read_full(io, fd, buffer, want, (off_t)offset);
    if (got < 0) {
      cairn__fail_errno(err, errno, NULL, (int64_t)offset,
                        "cannot read %zu bytes at offset %" PRIu64, n, offset);
      goto out;
    }
    if ((size_t)got < n) {
      cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                  "the file ends at offset %" PRIu64 " instead of %" PRIu64,
                  offset + (uint64_t)got, size);
      cairn__error_set_path(err, "", (int64_t)(offset + (uint64_t)got));
      goto out;
    }
    memset(buffer + n, 0, want - n);
    for (i = 0; i < want / CAIRN__BLOCK; i++) {
      cairn__digest_block(d, buffer + i * CAIRN__BLOCK, leaves + i * d->size);
    }
    if (cairn__tree_append(t, leaves, want / CAIRN__BLOCK) != 0) {
      cairn__fail_memory(err);
      goto out;
    }
    offset += want;
  }
  cairn__tree_root(t, size, root);
  rc = 0;
out:
  cairn__tree_free(t);
  cairn__free_aligned(buffer);
  return rc;
}
