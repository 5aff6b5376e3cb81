/* Digests against independent programs, the tree against a naive one, and the
 * digest map as a file. */
#include "scratch.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "export/digest.h"
#include "memory.h"
#include "skip.h"

static const int algorithms[] = {CAIRN__XXH3_128,
#ifdef CAIRN_HAVE_GCRYPT
                                 CAIRN__SHA_256, CAIRN__BLAKE2B_256
#endif
};
#define ALGORITHMS (sizeof algorithms / sizeof algorithms[0])

static unsigned char secret[CAIRN__SECRET_SIZE];
static const struct cairn_io *const io = &cairn__system_io;

static int setup(void **state)
{
  random_fill(99, secret, sizeof secret);
  return scratch_open(state);
}

static void to_hex(const unsigned char *p, size_t n, char *out)
{
  size_t i;

  for (i = 0; i < n; i++) {
    sprintf(out + 2 * i, "%02x", p[i]);
  }
}

/* ---- algorithms ---------------------------------------------------------- */

/* The published secret of XXH3: with it ours is plain XXH3-128, which other
 * programs compute. */
static void published_secret(unsigned char out[CAIRN__SECRET_SIZE])
{
  assert_true(sizeof XXH3_kSecret == CAIRN__SECRET_SIZE);
  memcpy(out, XXH3_kSecret, CAIRN__SECRET_SIZE);
}

static void digests_agree_with_other_programs(void **state)
{
  static const struct {
    int algorithm;
    const char *command, *program;
  } others[] = {{CAIRN__XXH3_128, "xxh128sum", "xxh128sum"},
                {CAIRN__SHA_256, "sha256sum", "sha256sum"},
                {CAIRN__BLAKE2B_256, "b2sum", "b2sum -l 256"}};
  static const size_t sizes[] = {0,   1,   3,    16,   17,    128,  129,
                                 240, 241, 1024, 4095, 65536, 65537};
  static unsigned char data[65537];
  size_t i, k, a, judged = 0;

  (void)state;
  random_fill(7, data, sizeof data);
  for (k = 0; k < 3; k++) {
    unsigned char plain[CAIRN__SECRET_SIZE];
    struct cairn__digester d;

    for (a = 0; a < ALGORITHMS && algorithms[a] != others[k].algorithm; a++) {
    }
    if (a == ALGORITHMS || !has_program(others[k].command)) {
      print_message("not judged: %s\n", others[k].program);
      continue;
    }
    published_secret(plain);
    cairn__digester_init(&d, others[k].algorithm, plain);
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
      unsigned char digest[CAIRN__DIGEST_MAX];
      char hex[2 * CAIRN__DIGEST_MAX + 1], *said;

      spill("vector", data, sizes[i]);
      assert_int_equal(run(&said, "%s vector", others[k].program), 0);
      cairn__digest_bytes(&d, data, sizes[i], digest);
      to_hex(digest, d.size, hex);
      if (strstr(said, hex) == NULL) {
        fail_msg("%zu bytes: %s, but %s says %s", sizes[i], hex,
                 others[k].program, said);
      }
      free(said);
      judged++;
    }
  }
  assert_true(judged > 0);
}

static void digests_have_their_published_values(void **state)
{
  (void)state;
#ifdef CAIRN_HAVE_GCRYPT
  struct cairn__digester d;
  unsigned char digest[CAIRN__DIGEST_MAX];
  char hex[65];

  cairn__digester_init(&d, CAIRN__SHA_256, NULL);
  cairn__digest_bytes(&d, "abc", 3, digest); /* FIPS 180-2, B.1 */
  to_hex(digest, 32, hex);
  assert_string_equal(
      hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
#else
  skip_because("needs a build with libgcrypt, and its consent");
#endif
}

static void the_secret_decides_the_digest(void **state)
{
  unsigned char other[CAIRN__SECRET_SIZE], a[16], b[16], data[1000];
  struct cairn__digester d;
  int i;

  (void)state;
  random_fill(3, data, sizeof data);
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  cairn__digest_bytes(&d, data, sizeof data, a);
  assert_int_equal(cairn__digest_secret(other, NULL), 0);
  cairn__digester_init(&d, CAIRN__XXH3_128, other);
  cairn__digest_bytes(&d, data, sizeof data, b);
  assert_memory_not_equal(a, b, 16);
  for (i = 0; i < 3; i++) {
    unsigned char again[CAIRN__SECRET_SIZE];

    assert_int_equal(cairn__digest_secret(again, NULL), 0);
    assert_memory_not_equal(again, other, sizeof again);
  }
}

static void algorithms_have_names(void **state)
{
  struct cairn_error err;
  size_t a;
  int algorithm;

  (void)state;
  for (a = 0; a < ALGORITHMS; a++) {
    const char *name = cairn__digest_algorithm_name(algorithms[a]);

    assert_int_equal(cairn__digest_algorithm_parse(name, &algorithm, &err), 0);
    assert_int_equal(algorithm, algorithms[a]);
  }
  assert_int_equal(cairn__digest_algorithm_parse("md5", &algorithm, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  assert_non_null(strstr(err.message, "md5"));
  assert_non_null(strstr(err.message, "blake2b-256"));
  assert_int_equal(cairn__digest_algorithm_parse("", &algorithm, NULL), -1);
#ifndef CAIRN_HAVE_GCRYPT
  assert_int_equal(cairn__digest_algorithm_parse("sha-256", &algorithm, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_NOT_SUPPORTED);
#endif
}

static void digests_are_written_and_read_as_text(void **state)
{
  struct cairn_error err;
  size_t a;

  (void)state;
  for (a = 0; a < ALGORITHMS; a++) {
    unsigned char digest[CAIRN__DIGEST_MAX], back[CAIRN__DIGEST_MAX];
    char text[CAIRN__DIGEST_TEXT], bad[CAIRN__DIGEST_TEXT + 1];
    struct cairn__digester d;
    size_t i;

    cairn__digester_init(&d, algorithms[a], secret);
    random_fill(a + 5, digest, sizeof digest);
    cairn__digest_format(&d, digest, text);
    assert_int_equal(cairn__digest_parse(&d, text, back, &err), 0);
    assert_memory_equal(digest, back, d.size);
    /* nothing but the exact text is taken */
    for (i = 0; i < strlen(text); i++) {
      strcpy(bad, text);
      bad[i] = bad[i] == ':' ? ';' : (char)(bad[i] ^ 0x20);
      if (text[i] >= '0' && text[i] <= '9') {
        bad[i] = 'G';
      }
      if (cairn__digest_parse(&d, bad, back, &err) == 0) {
        fail_msg("taken: %s", bad);
      }
      assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
    }
    strcpy(bad, text);
    bad[strlen(bad) - 1] = '\0';
    assert_int_equal(cairn__digest_parse(&d, bad, back, &err), -1);
    snprintf(bad, sizeof bad, "%s0", text);
    assert_int_equal(cairn__digest_parse(&d, bad, back, &err), -1);
    assert_int_equal(cairn__digest_parse(&d, "", back, &err), -1);
  }
}

/* ---- zeros ------------------------------------------------------------------
 */

static void a_single_bit_anywhere_is_not_zero(void **state)
{
  static unsigned char buffer[CAIRN__BLOCK + 64];
  struct cairn__digester d;
  unsigned char digest[16], marker[16] = {0};
  size_t n, i;

  (void)state;
  for (n = 0; n < 700; n++) {
    unsigned char *p = buffer + n % 9; /* any alignment */

    assert_true(cairn__is_zero(p, n));
    for (i = 0; i < n; i++) {
      p[i] = (unsigned char)(1 << (i % 8));
      if (cairn__is_zero(p, n)) {
        fail_msg("byte %zu of %zu was not seen", i, n);
      }
      p[i] = 0;
    }
    /* and nothing beyond the end is looked at */
    p[n] = 1;
    assert_true(cairn__is_zero(p, n));
    p[n] = 0;
  }
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  assert_int_equal(cairn__digest_block(&d, buffer, digest), 1);
  assert_memory_equal(digest, marker, 16);
  for (i = 0; i < CAIRN__BLOCK; i += 1 + i % 97) {
    buffer[i] = 0x80;
    assert_int_equal(cairn__digest_block(&d, buffer, digest), 0);
    assert_memory_not_equal(digest, marker, 16);
    buffer[i] = 0;
  }
}

/* ---- tree
 * -------------------------------------------------------------------- */

/* The root as digest.h defines it, from all leaves at once. */
static void naive_root(const struct cairn__digester *d,
                       const unsigned char *leaves, uint64_t count,
                       uint64_t size, unsigned char *out)
{
  uint64_t pages = (count + 8191) / 8192, p;
  unsigned char *all = calloc(1, 8 + pages * d->size);
  int i;

  for (i = 0; i < 8; i++) {
    all[i] = (unsigned char)(size >> 8 * i);
  }
  for (p = 0; p < pages; p++) {
    const unsigned char *page = leaves + p * 8192 * d->size;
    uint64_t n = (count - p * 8192 < 8192 ? count - p * 8192 : 8192) * d->size;
    uint64_t k = 0;

    while (k < n && page[k] == 0) {
      k++;
    }
    if (k < n) {
      cairn__digest_bytes(d, page, n, all + 8 + p * d->size);
    }
  }
  cairn__digest_bytes(d, all, 8 + pages * d->size, out);
  free(all);
}

static void trees_do_not_depend_on_how_leaves_arrive(void **state)
{
  static const uint64_t counts[] = {0,     1,     2,     8191,  8192, 8193,
                                    16383, 16384, 16385, 30000, 70000};
  size_t a, c, round, rounds = 0;

  (void)state;
  random_begin(__func__);
  for (a = 0; a < ALGORITHMS; a++) {
    struct cairn__digester d;

    cairn__digester_init(&d, algorithms[a], secret);
    for (c = 0; c < sizeof counts / sizeof counts[0]; c++) {
      uint64_t count = counts[c], at, n;
      unsigned char *leaves = calloc(1, (count + 1) * d.size);
      unsigned char want[CAIRN__DIGEST_MAX], got[CAIRN__DIGEST_MAX];

      random_fill(random_next(), leaves, count * d.size);
      for (at = 0; at < count; at += n) { /* runs of markers */
        n = 1 + random_below(20000);
        if (random_below(2) && at + n <= count) {
          memset(leaves + at * d.size, 0, n * d.size);
        }
      }
      naive_root(&d, leaves, count, count * 65536, want);
      for (round = 0; round < 4; round++) {
        struct cairn__tree *t = cairn__tree_new(&d);
        unsigned char zero[CAIRN__DIGEST_MAX] = {0};
        int is_late = round % 2 && count > 0;

        rounds++;
        assert_non_null(t);
        at = 0;
        if (is_late) {
          assert_int_equal(cairn__tree_append(t, NULL, 1), 0);
          at = 1;
        }
        while (at < count) {
          uint64_t run_of = 0;

          while (at + run_of < count &&
                 memcmp(leaves + (at + run_of) * d.size, zero, d.size) == 0) {
            run_of++;
          }
          if (run_of > 0) {
            n = random_below(3) ? run_of : 1 + random_below(run_of);
            assert_int_equal(cairn__tree_append(t, NULL, n), 0);
          } else {
            n = 1 + random_below(round < 2 ? 100 : 20000);
            n = n > count - at ? count - at : n;
            assert_int_equal(cairn__tree_append(t, leaves + at * d.size, n), 0);
          }
          at += n;
        }
        if (is_late) {
          cairn__tree_set_first(t, leaves);
        }
        assert_int_equal(cairn__tree_count(t), count);
        cairn__tree_root(t, count * 65536, got);
        assert_memory_equal(got, want, d.size);
        cairn__tree_root(t, count * 65536, got); /* taking it changes nothing */
        assert_memory_equal(got, want, d.size);
        cairn__tree_root(t, count * 65536 + 1, got);
        assert_memory_not_equal(got, want, d.size);
        cairn__tree_free(t);
      }
      free(leaves);
    }
  }
  print_message("%zu trees\n", rounds);
}

static void every_leaf_counts(void **state)
{
  struct cairn__digester d;
  unsigned char leaves[16 * 100], root[16], other[16];
  struct cairn__tree *t;
  int i;

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  random_fill(1, leaves, sizeof leaves);
  t = cairn__tree_new(&d);
  assert_int_equal(cairn__tree_append(t, leaves, 100), 0);
  cairn__tree_root(t, 100 * 65536, root);
  cairn__tree_free(t);
  for (i = 0; i < 16 * 100; i++) {
    leaves[i] ^= (unsigned char)(1 << i % 8);
    t = cairn__tree_new(&d);
    assert_int_equal(cairn__tree_append(t, leaves, 100), 0);
    cairn__tree_root(t, 100 * 65536, other);
    assert_memory_not_equal(root, other, 16);
    cairn__tree_free(t);
    leaves[i] ^= (unsigned char)(1 << i % 8);
  }
}

static void a_tree_over_16_tib_of_zeros_is_quick_and_small(void **state)
{
  const uint64_t count = UINT64_C(1) << 28; /* 16 TiB */
  struct cairn__digester d;
  struct cairn__tree *t, *u;
  unsigned char one[16], other[16];
  uint64_t left = count;

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  t = cairn__tree_new(&d);
  u = cairn__tree_new(&d);
  assert_int_equal(cairn__tree_append(t, NULL, count), 0);
  while (left > 0) {
    uint64_t n = left < 12345678 ? left : 12345678;

    assert_int_equal(cairn__tree_append(u, NULL, n), 0);
    left -= n;
  }
  cairn__tree_root(t, count * 65536, one);
  cairn__tree_root(u, count * 65536, other);
  assert_memory_equal(one, other, 16);
  errno = 0;
  assert_int_equal(cairn__tree_append(t, NULL, UINT64_MAX), -1);
  assert_int_equal(cairn__tree_count(t), count);
  cairn__tree_free(t);
  cairn__tree_free(u);
}

/* ---- tree of a file
 * -------------------------------------------------------------- */

static int gates_left;
static int gate(void *arg, struct cairn_error *err)
{
  assert_ptr_equal(arg, &gates_left);
  return gates_left-- > 0 ? 0 : cairn__fail(err, CAIRN_E_TERMINATED, "enough");
}

static void files_are_digested_with_and_without_holes(void **state)
{
  static const uint64_t sizes[] = {0,       1,       511,     65535,
                                   65536,   65537,   1 << 20, (1 << 20) + 1,
                                   3000000, 5 << 20, 5242881};
  size_t i, a;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    uint64_t size = sizes[i], blocks = (size + 65535) / 65536, b;
    unsigned char *data = calloc(1, blocks * 65536 + 1);
    int dense, sparse;

    for (b = 0; b < blocks; b++) {
      if (random_below(2)) {
        random_fill(random_next(), data + b * 65536, 65536);
      }
    }
    memset(data + size, 0, blocks * 65536 - size);
    spill("dense", data, size);
    dense = openat(scratch_fd, "dense", O_RDONLY | O_CLOEXEC);
    sparse = openat(scratch_fd, "sparse",
                    O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(sparse, (off_t)size), 0);
    for (b = 0; b < size; b += 4096) {
      size_t n = size - b < 4096 ? (size_t)(size - b) : 4096;

      if (!cairn__is_zero(data + b, n)) {
        assert_int_equal(pwrite(sparse, data + b, n, (off_t)b), n);
      }
    }
    for (a = 0; a < ALGORITHMS; a++) {
      unsigned char *leaves, want[CAIRN__DIGEST_MAX], got[CAIRN__DIGEST_MAX];
      struct cairn_error err;
      struct cairn__digester d;

      cairn__digester_init(&d, algorithms[a], secret);
      leaves = calloc(1, (blocks + 1) * d.size);
      for (b = 0; b < blocks; b++) {
        if (!cairn__is_zero(data + b * 65536, 65536)) {
          cairn__digest_bytes(&d, data + b * 65536, 65536, leaves + b * d.size);
        }
      }
      naive_root(&d, leaves, blocks, size, want);
      gates_left = 1000;
      assert_int_equal(
          cairn__tree_file(io, dense, size, &d, gate, &gates_left, got, &err),
          0);
      assert_memory_equal(got, want, d.size);
      assert_int_equal(
          cairn__tree_file(io, sparse, size, &d, NULL, NULL, got, &err), 0);
      assert_memory_equal(got, want, d.size);
      /* a file that goes on is digested as far as was asked */
      if (size > 0) {
        unsigned char shorter[CAIRN__DIGEST_MAX];

        assert_int_equal(cairn__tree_file(io, dense, size - 1, &d, NULL, NULL,
                                          shorter, &err),
                         0);
        assert_memory_not_equal(shorter, want, d.size);
        gates_left = 0;
        assert_int_equal(
            cairn__tree_file(io, dense, size, &d, gate, &gates_left, got, &err),
            -1);
        assert_int_equal(err.id, CAIRN_E_TERMINATED);
      }
      assert_int_equal(
          cairn__tree_file(io, dense, size + 1, &d, NULL, NULL, got, &err), -1);
      assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
      assert_int_equal(err.offset, size);
      free(leaves);
    }
    close(dense);
    close(sparse);
    free(data);
  }
}

/* ---- map
 * ---------------------------------------------------------------------------
 */

static const unsigned char point[16] = {1, 2,  3,  4,  5,  6,  7,  8,
                                        9, 10, 11, 12, 13, 14, 15, 16};

/* Writes a map with these leaves (markers are partly left out, partly given);
 * checks what finish says. */
static void write_map(const char *name, const struct cairn__digester *d,
                      uint64_t length, const unsigned char *leaves,
                      unsigned char *root, unsigned char *file_digest)
{
  uint64_t virtual_size = (length + 511) / 512 * 512, size;
  uint64_t blocks = (virtual_size + 65535) / 65536, at = 0;
  unsigned char want[CAIRN__DIGEST_MAX];
  struct cairn__map_writer *w;
  struct cairn_error err;
  struct stat st;
  int fd;

  unlinkat(scratch_fd, name, 0);
  assert_int_equal(cairn__map_create(io, scratch_fd, name, NULL, d,
                                     virtual_size, length, point, &w, &err),
                   0);
  while (at < blocks) {
    uint64_t n = 1 + random_below(random_below(2) ? 50 : 9000);

    n = n > blocks - at ? blocks - at : n;
    if (!cairn__is_zero(leaves + at * d->size, n * d->size) ||
        random_below(2)) {
      assert_int_equal(cairn__map_append(w, at, leaves + at * d->size, n, &err),
                       0);
    }
    at += n;
  }
  assert_int_equal(cairn__map_finish(w, root, file_digest, &size, &err), 0);
  naive_root(d, leaves, blocks, virtual_size, want);
  assert_memory_equal(root, want, d->size);
  fd = openat(scratch_fd, name, O_RDONLY | O_CLOEXEC);
  assert_int_equal(fstat(fd, &st), 0);
  assert_int_equal(st.st_size, size);
  assert_int_equal(st.st_mode & 0777, 0600);
  assert_int_equal(cairn__tree_file(io, fd, size, d, NULL, NULL, want, &err),
                   0);
  assert_memory_equal(file_digest, want, d->size);
  close(fd);
}

static void maps_come_back_as_they_were_written(void **state)
{
  static const uint64_t lengths[] = {0,          1,
                                     511,        512,
                                     513,        65535,
                                     65536,      65537,
                                     4 << 20,    (512u << 20) - 1,
                                     512u << 20, (512u << 20) + 1,
                                     1300u << 20};
  size_t i, a, maps = 0;

  (void)state;
  random_begin(__func__);
  for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    for (a = 0; a < ALGORITHMS; a++) {
      uint64_t virtual_size = (lengths[i] + 511) / 512 * 512, at, n;
      uint64_t blocks = (virtual_size + 65535) / 65536;
      unsigned char root[CAIRN__DIGEST_MAX], file[CAIRN__DIGEST_MAX];
      unsigned char again[CAIRN__DIGEST_MAX], file2[CAIRN__DIGEST_MAX];
      unsigned char *leaves, *got;
      const struct cairn__map_info *info;
      struct cairn__digester d;
      struct cairn_error err;
      struct cairn__map *m;

      maps++;
      cairn__digester_init(&d, algorithms[a], secret);
      leaves = calloc(1, (blocks + 1) * d.size);
      got = calloc(1, 8192 * d.size);
      random_fill(random_next(), leaves, blocks * d.size);
      for (at = 0; at < blocks; at += n) {
        n = 1 + random_below(12000);
        if (at + n <= blocks && random_below(2)) {
          memset(leaves + at * d.size, 0, n * d.size);
        }
      }
      write_map("map", &d, lengths[i], leaves, root, file);
      write_map("map2", &d, lengths[i], leaves, again, file2);
      assert_memory_equal(file, file2, d.size); /* the same bytes */
      must_run("cmp map map2");

      assert_int_equal(
          cairn__map_open(io, scratch_fd, "map", NULL, &d, &m, &err), 0);
      info = cairn__map_get_info(m);
      assert_int_equal(info->algorithm, algorithms[a]);
      assert_int_equal(info->length, lengths[i]);
      assert_int_equal(info->virtual_size, virtual_size);
      assert_int_equal(info->blocks, blocks);
      assert_int_equal(info->pages, (blocks + 8191) / 8192);
      assert_memory_equal(info->point, point, 16);
      assert_int_equal(cairn__map_root(m, again, &err), 0);
      assert_memory_equal(root, again, d.size);
      for (at = 0; at < blocks; at += n) {
        uint64_t left = 8192 - at % 8192;

        left = left > blocks - at ? blocks - at : left;
        n = 1 + random_below(left);
        assert_int_equal(cairn__map_read(m, at, n, got, &err), 0);
        assert_memory_equal(got, leaves + at * d.size, n * d.size);
      }
      assert_int_equal(cairn__map_read(m, blocks, 1, got, &err), -1);
      assert_int_equal(err.id, CAIRN_E_INTERNAL);
      cairn__map_close(m);
      free(leaves);
      free(got);
    }
  }
  print_message("%zu maps\n", maps);
}

static void the_map_of_a_sparse_tebibyte_takes_no_room(void **state)
{
  const uint64_t size = UINT64_C(1) << 40;
  unsigned char root[16], file[16], again[16], leaf[16], got[16];
  struct cairn__map_writer *w;
  struct cairn__map *m;
  struct cairn__digester d;
  struct cairn_error err;
  struct stat st;
  uint64_t bytes;

  (void)state;
  random_fill(5, leaf, 16);
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  assert_int_equal(cairn__map_create(io, scratch_fd, "tera", NULL, &d, size,
                                     size, point, &w, &err),
                   0);
  assert_int_equal(cairn__map_append(w, 9000000, leaf, 1, &err), 0);
  /* back in order only */
  assert_int_equal(cairn__map_append(w, 9000000, leaf, 1, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INTERNAL);
  assert_int_equal(cairn__map_append(w, 16777215, leaf, 1, &err), 0);
  assert_int_equal(cairn__map_append(w, 16777216, leaf, 1, &err), -1);
  assert_int_equal(cairn__map_finish(w, root, file, &bytes, &err), 0);
  assert_int_equal(fstatat(scratch_fd, "tera", &st, 0), 0);
  assert_int_equal(st.st_size, bytes);
  assert_true(st.st_blocks * 512 < 1 << 20);
  assert_int_equal(cairn__map_open(io, scratch_fd, "tera", NULL, &d, &m, &err),
                   0);
  assert_int_equal(cairn__map_read(m, 9000000, 1, got, &err), 0);
  assert_memory_equal(got, leaf, 16);
  assert_int_equal(cairn__map_read(m, 16777215, 1, got, &err), 0);
  assert_memory_equal(got, leaf, 16);
  assert_int_equal(cairn__map_read(m, 8999999, 1, got, &err), 0);
  assert_true(cairn__is_zero(got, 16));
  assert_int_equal(cairn__map_root(m, again, &err), 0);
  assert_memory_equal(root, again, 16);
  cairn__map_close(m);
}

/* Opens, reads all, and says whether anything was found to be wrong. */
static int map_is_refused(const char *name, const struct cairn__digester *d,
                          struct cairn_error *err)
{
  unsigned char root[CAIRN__DIGEST_MAX];
  struct cairn__map *m;
  int rc;

  if (cairn__map_open(io, scratch_fd, name, NULL, d, &m, err) != 0) {
    return 1;
  }
  rc = cairn__map_root(m, root, err);
  cairn__map_close(m);
  return rc != 0;
}

/* Of the padding, 130 KiB of it, one byte in so many is flipped, one bit of it.
 */
#ifdef CAIRN_SANITIZED
#define PADDING_STEP 311
#else
#define PADDING_STEP 31
#endif

static void every_flipped_bit_of_a_map_is_found(void **state)
{
  unsigned char *bytes, leaves[20 * 16], root[16], file[16], found[16];
  struct cairn__digester d;
  struct cairn_error err;
  size_t n, at, flips = 0;
  int fd, bit;

  (void)state;
  random_begin(__func__);
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  random_fill(11, leaves, sizeof leaves);
  memset(leaves + 32, 0, 48);
  write_map("flip", &d, 20 * 65536 - 600, leaves, root, file);
  bytes = slurp("flip", &n);
  fd = openat(scratch_fd, "flip", O_RDWR | O_CLOEXEC);
  assert_false(map_is_refused("flip", &d, &err));
  for (at = 0; at < n; at++) {
    int is_padding = (at >= 128 && at < 4064) ||
                     (at >= 4096 + 20 * 16 + 32 && at < n - 4096 - 32) ||
                     at >= n - 4096 + 64;

    if (is_padding && at % PADDING_STEP != 0) {
      continue;
    }
    for (bit = 0; bit < 8; bit++) {
      unsigned char b = bytes[at] ^ (unsigned char)(1 << bit);

      if (is_padding && bit != (int)(at / PADDING_STEP % 8)) {
        continue;
      }
      flips++;
      assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
      if (!map_is_refused("flip", &d, &err)) {
        fail_msg("bit %d of byte %zu: the reader did not notice", bit, at);
      }
      assert_true(err.id == CAIRN_E_EXPORT_CORRUPT ||
                  err.id == CAIRN_E_VERSION);
      assert_string_equal(err.path, "flip");
      assert_int_equal(cairn__tree_file(io, fd, n, &d, NULL, NULL, found, &err),
                       0);
      assert_memory_not_equal(file, found, 16);
    }
    assert_int_equal(pwrite(fd, &bytes[at], 1, (off_t)at), 1);
  }
  assert_false(map_is_refused("flip", &d, &err));
  /* and the lengths next to the right one */
  assert_int_equal(ftruncate(fd, (off_t)n - 1), 0);
  assert_true(map_is_refused("flip", &d, &err));
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(ftruncate(fd, 100), 0);
  assert_true(map_is_refused("flip", &d, &err));
  assert_int_equal(ftruncate(fd, 0), 0);
  assert_true(map_is_refused("flip", &d, &err));
  spill("flip", bytes, n);
  assert_int_equal(pwrite(fd, "", 1, (off_t)n), 1);
  assert_true(map_is_refused("flip", &d, &err));
  close(fd);
  free(bytes);
  print_message("%zu flips\n", flips);
}

static void a_well_summed_but_impossible_header_is_refused(void **state)
{
  /* field, its size, and values that must not pass, under a right checksum */
  static const struct {
    unsigned at, n;
    uint64_t value;
    int id;
  } cases[] = {
      {8, 4, 2, CAIRN_E_VERSION},
      {12, 4, 8192, CAIRN_E_EXPORT_CORRUPT},
      {16, 4, 2, CAIRN_E_EXPORT_CORRUPT},
      {20, 4, 32, CAIRN_E_EXPORT_CORRUPT},
      {24, 4, 4096, CAIRN_E_EXPORT_CORRUPT},
      {28, 4, 4096, CAIRN_E_EXPORT_CORRUPT},
      {32, 8, UINT64_MAX, CAIRN_E_EXPORT_CORRUPT},
      {32, 8, 513, CAIRN_E_EXPORT_CORRUPT},
      {40, 8, UINT64_MAX, CAIRN_E_EXPORT_CORRUPT},
      {40, 8, UINT64_MAX - 600, CAIRN_E_EXPORT_CORRUPT},
      {64, 8, 2, CAIRN_E_EXPORT_CORRUPT},
      {64, 8, UINT64_MAX, CAIRN_E_EXPORT_CORRUPT},
      {72, 1, 1, CAIRN_E_EXPORT_CORRUPT},
      {4079, 1, 1, CAIRN_E_EXPORT_CORRUPT},
  };
  unsigned char leaves[20 * 16], root[16], file[16], *bytes;
  struct cairn__digester d;
  struct cairn_error err;
  size_t n, i;

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  random_fill(12, leaves, sizeof leaves);
  write_map("header", &d, 20 * 65536, leaves, root, file);
  bytes = slurp("header", &n);
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    unsigned char *copy = malloc(n);
    XXH128_canonical_t sum;
    unsigned k;

    memcpy(copy, bytes, n);
    for (k = 0; k < cases[i].n; k++) {
      copy[cases[i].at + k] = (unsigned char)(cases[i].value >> 8 * k);
    }
    XXH128_canonicalFromHash(&sum, XXH3_128bits(copy, 4080));
    memcpy(copy + 4080, &sum, 16);
    spill("header", copy, n);
    free(copy);
    if (!map_is_refused("header", &d, &err)) {
      fail_msg("case %zu was taken", i);
    }
    assert_int_equal(err.id, cases[i].id);
  }
  free(bytes);
}

static void a_map_that_is_no_file_is_refused(void **state)
{
  struct cairn__digester d;
  struct cairn_error err;
  struct cairn__map *m;

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  assert_int_equal(
      cairn__map_open(io, scratch_fd, "nowhere", NULL, &d, &m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  must_run("mkfifo pipe && ln -s header aside && mkdir folder");
  assert_int_equal(cairn__map_open(io, scratch_fd, "pipe", NULL, &d, &m, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(
      cairn__map_open(io, scratch_fd, "folder", NULL, &d, &m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(cairn__map_open(io, scratch_fd, "aside", NULL, &d, &m, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  assert_null(m);
}

/* ---- failures
 * ------------------------------------------------------------------------- */

/* Everything once: a map written, read, and its file digested. Returns 0 or
 * -1, and leaves nothing open in either case. */
static int whole_life(const struct cairn_io *table,
                      const struct cairn__digester *d, struct cairn_error *err)
{
  unsigned char leaves[30 * CAIRN__DIGEST_MAX], got[30 * CAIRN__DIGEST_MAX];
  unsigned char root[CAIRN__DIGEST_MAX], file[CAIRN__DIGEST_MAX];
  unsigned char found[CAIRN__DIGEST_MAX];
  struct cairn__map_writer *w;
  struct cairn__map *m;
  uint64_t size;
  int fd, rc;

  unlinkat(scratch_fd, "life", 0);
  random_fill(2, leaves, sizeof leaves);
  if (cairn__map_create(table, scratch_fd, "life", NULL, d, UINT64_C(1) << 30,
                        UINT64_C(1) << 30, point, &w, err) != 0) {
    return -1;
  }
  if (cairn__map_append(w, 8180, leaves, 30, err) != 0) {
    cairn__map_abort(w);
    return -1;
  }
  if (cairn__map_finish(w, root, file, &size, err) != 0) {
    return -1;
  }
  if (cairn__map_open(table, scratch_fd, "life", NULL, d, &m, err) != 0) {
    return -1;
  }
  rc = cairn__map_read(m, 8180, 12, got, err) != 0 ||
               cairn__map_root(m, root, err) != 0
           ? -1
           : 0;
  cairn__map_close(m);
  if (rc != 0) {
    return -1;
  }
  assert_memory_equal(got, leaves, 12 * d->size);
  fd = openat(scratch_fd, "life", O_RDONLY | O_CLOEXEC);
  rc = cairn__tree_file(table, fd, size, d, NULL, NULL, found, err);
  close(fd);
  if (rc == 0) {
    assert_memory_equal(file, found, d->size);
  }
  return rc;
}

static void every_call_of_a_map_can_fail(void **state)
{
  static const int kinds[] = {CAIRN__FAULT_ERRNO, CAIRN__FAULT_ENOSPC_ON,
                              CAIRN__FAULT_SHORT};
  struct cairn__digester d;
  int k, fds = count_fds();

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  for (k = 0; k < 3; k++) {
    uint64_t at, calls, fired = 0;
    struct cairn__fault_io f;
    struct cairn_error err;

    cairn__fault_io_init(&f, 0, CAIRN__FAULT_NONE, 0);
    assert_int_equal(whole_life(&f.io, &d, &err), 0);
    calls = f.calls;
    for (at = 1; at <= calls; at++) {
      int rc;

      cairn__fault_io_init(&f, at, kinds[k], EIO);
      cairn__error_clear(&err);
      rc = whole_life(&f.io, &d, &err);
      fired += (uint64_t)f.has_fired;
      if (!f.has_fired || kinds[k] == CAIRN__FAULT_SHORT) {
        assert_int_equal(rc, 0);
      } else if (at < calls && strcmp(f.fired_at, "close") == 0 && rc == 0) {
        /* of the reader: nothing was lost */
        assert_true(at > calls / 2);
      } else {
        if (rc != -1) {
          fail_msg("%s (call %d) failed unnoticed", f.fired_at, (int)at);
        }
        assert_int_equal(err.id, kinds[k] == CAIRN__FAULT_ERRNO
                                     ? CAIRN_E_IO_ERROR
                                     : CAIRN_E_DISK_FULL);
        assert_true(err.message[0] != '\0');
      }
      assert_int_equal(count_fds(), fds);
    }
    assert_true(fired >= 4);
    print_message("fault %d: %d of %d calls failed\n", kinds[k], (int)fired,
                  (int)calls);
  }
}

static void every_allocation_of_a_map_can_fail(void **state)
{
  struct cairn__digester d;
  struct cairn_error err;
  int fds = count_fds();
  long n;

  (void)state;
  cairn__digester_init(&d, CAIRN__XXH3_128, secret);
  cairn_set_allocator(failing_realloc, failing_free);
  atomic_store(&alloc_live, 0);
  for (n = 1;; n++) {
    int rc;

    atomic_store(&alloc_countdown, n);
    rc = whole_life(io, &d, &err);
    assert_int_equal(atomic_load(&alloc_live), 0);
    assert_int_equal(count_fds(), fds);
    if (atomic_load(&alloc_countdown) > 0) {
      assert_int_equal(rc, 0);
      break;
    }
    assert_int_equal(rc, -1);
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  }
  cairn_set_allocator(NULL, NULL);
  assert_true(n > 10);
  print_message("%ld allocations failed\n", n - 1);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(digests_agree_with_other_programs),
      cmocka_unit_test(digests_have_their_published_values),
      cmocka_unit_test(the_secret_decides_the_digest),
      cmocka_unit_test(algorithms_have_names),
      cmocka_unit_test(digests_are_written_and_read_as_text),
      cmocka_unit_test(a_single_bit_anywhere_is_not_zero),
      cmocka_unit_test(trees_do_not_depend_on_how_leaves_arrive),
      cmocka_unit_test(every_leaf_counts),
      cmocka_unit_test(a_tree_over_16_tib_of_zeros_is_quick_and_small),
      cmocka_unit_test(files_are_digested_with_and_without_holes),
      cmocka_unit_test(maps_come_back_as_they_were_written),
      cmocka_unit_test(the_map_of_a_sparse_tebibyte_takes_no_room),
      cmocka_unit_test(every_flipped_bit_of_a_map_is_found),
      cmocka_unit_test(a_well_summed_but_impossible_header_is_refused),
      cmocka_unit_test(a_map_that_is_no_file_is_refused),
      cmocka_unit_test(every_call_of_a_map_can_fail),
      cmocka_unit_test(every_allocation_of_a_map_can_fail),
  };

  return cmocka_run_group_tests(tests, setup, scratch_close);
}
