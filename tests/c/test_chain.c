/* Chains of backing files: images made by qemu-img, and images made wrong by
 * changing their bytes. */
#include "scratch.h"

#include <limits.h>

#include "export/chain.h"

static struct cairn_error err;
static struct cairn__chain *chain;

static int open_chain(const char *name, const char *directory)
{
  char path[512], allowed[512];
  const char *directories[] = {allowed};
  struct cairn__source_options o = {.io = &cairn__system_io,
                                    .path = path,
                                    .format = "qcow2",
                                    .directories = directories};

  snprintf(path, sizeof path, "%s/%s", scratch_path, name);
  if (directory) {
    snprintf(allowed, sizeof allowed, "%s/%s", scratch_path, directory);
    o.directory_count = 1;
  }
  memset(&err, 0, sizeof err);
  chain = NULL;
  return cairn__chain_open(&o, NULL, &chain, &err);
}

static void expect_opened(const char *name, size_t layers)
{
  if (open_chain(name, NULL) != 0)
    fail_msg("%s", err.message);
  assert_int_equal(chain->count, layers);
}

static void expect_refused(const char *name, int id, const char *says)
{
  int before = count_fds();

  if (open_chain(name, NULL) == 0) {
    cairn__chain_close(chain);
    fail_msg("%s was accepted", name);
  }
  assert_null(chain);
  if (err.id != id)
    fail_msg("error %d, not %d: %s", err.id, id, err.message);
  if (!strstr(err.message, says))
    fail_msg("\"%s\" is not in: %s", says, err.message);
  assert_int_equal(count_fds(), before);
}

static void patch(const char *name, off_t offset, const char *bytes, size_t n)
{
  int fd = openat(scratch_fd, name, O_RDWR);

  assert_true(fd >= 0);
  assert_int_equal(pwrite(fd, bytes, n, offset), n);
  close(fd);
}

static uint64_t number_at(const char *name, off_t offset)
{
  unsigned char b[8];
  uint64_t v = 0;
  int fd = openat(scratch_fd, name, O_RDONLY);

  assert_int_equal(pread(fd, b, 8, offset), 8);
  close(fd);
  for (int i = 0; i < 8; i++)
    v = v << 8 | b[i];
  return v;
}

static void put_number(const char *name, off_t offset, uint64_t v)
{
  char b[8];

  for (int i = 7; i >= 0; i--, v >>= 8)
    b[i] = (char)v;
  patch(name, offset, b, 8);
}

/* The entry of the first data cluster: first of the first L2 table. */
static off_t first_l2(const char *name)
{
  uint64_t l1 = number_at(name, 40);

  return (off_t)(number_at(name, (off_t)l1) & 0x00fffffffffffe00ull);
}

static void make_image(const char *name)
{
  must_run("rm -f %s && qemu-img create -q -f qcow2 %s 4M && "
           "qemu-io -f qcow2 -c 'write -P 7 0 192k' %s",
           name, name, name);
}

/* ---- good ones ----------------------------------------------------------- */

static void reads_both_versions(void **state)
{
  (void)state;
  must_run("qemu-img create -q -f qcow2 -o compat=0.10 v2 5M");
  must_run("qemu-img create -q -f qcow2 -o "
           "cluster_size=4k,extended_l2=off,refcount_bits=1 v3 6M");
  expect_opened("v2", 1);
  assert_int_equal(chain->virtual_size, 5 << 20);
  cairn__chain_close(chain);
  expect_opened("v3", 1);
  assert_int_equal(chain->virtual_size, 6 << 20);
  assert_int_equal(chain->snapshots, 0);
  cairn__chain_close(chain);
}

static void takes_every_kind_of_cluster(void **state)
{
  static const char *const options[] = {"cluster_size=512",
                                        "cluster_size=2M",
                                        "extended_l2=on,cluster_size=64k",
                                        "compression_type=zstd",
                                        "lazy_refcounts=on",
                                        "preallocation=metadata",
                                        "preallocation=full"};

  (void)state;
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    must_run("qemu-img create -q -f qcow2 -o %s kinds 1M && qemu-io -f qcow2 "
             "-c 'write -P 3 1000 70000' -c 'write -z 200k 100k' -c 'discard "
             "64k 64k' kinds",
             options[i]);
    expect_opened("kinds", 1);
    cairn__chain_close(chain);
  }
  must_run("head -c 525000 /dev/urandom | base64 >text && "
           "qemu-img convert -c -f raw -O qcow2 text kinds");
  expect_opened("kinds", 1);
  cairn__chain_close(chain);
  must_run("qemu-img convert -c -f raw -O qcow2 -o cluster_size=2M text "
           "kinds");
  expect_opened("kinds", 1);
  cairn__chain_close(chain);
}

static void follows_a_chain_to_a_raw_file(void **state)
{
  (void)state;
  must_run("truncate -s 3M base.raw && mkdir -p sub && "
           "qemu-img create -q -f qcow2 -b ../base.raw -F raw sub/mid && "
           "qemu-img create -q -f qcow2 -b sub/mid -F qcow2 top");
  assert_int_equal(open_chain("top", NULL), 0);
  assert_int_equal(chain->count, 3);
  assert_true(chain->layers[0].is_qcow2);
  assert_true(chain->layers[1].is_qcow2);
  assert_false(chain->layers[2].is_qcow2);
  assert_int_equal(chain->virtual_size, 3 << 20);
  assert_int_equal(cairn__chain_check_still(chain, &err), 0);
  /* every layer is locked, and watched */
  assert_int_not_equal(run(NULL, "qemu-io -f raw -c 'write 0 512' base.raw"),
                       0);
  assert_int_not_equal(run(NULL, "qemu-io -f qcow2 -c 'write 0 512' sub/mid"),
                       0);
  must_run("printf x | dd of=base.raw conv=notrunc status=none");
  assert_int_equal(cairn__chain_check_still(chain, &err), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_CHANGED);
  assert_non_null(strstr(err.message, "base.raw"));
  cairn__chain_close(chain);
}

static void counts_internal_snapshots(void **state)
{
  (void)state;
  make_image("snap");
  must_run("qemu-img snapshot -c one snap && qemu-img snapshot -c two snap");
  expect_opened("snap", 1);
  assert_int_equal(chain->snapshots, 2);
  cairn__chain_close(chain);
}

static void holds_a_chain_of_64_and_no_more(void **state)
{
  (void)state;
  must_run("qemu-img create -q -f qcow2 l1 1M; for i in $(seq 2 65); do "
           "qemu-img create -q -u -f qcow2 -b l$((i-1)) -F qcow2 l$i 1M; "
           "done");
  expect_opened("l64", 64);
  cairn__chain_close(chain);
  expect_refused("l65", CAIRN_E_BACKING_FILE, "64 layers");
}

/* ---- headers made wrong -------------------------------------------------- */

static void refuses_what_is_no_qcow2(void **state)
{
  (void)state;
  must_run("truncate -s 1M noqcow && : > empty && printf 'QFI\\373' > four");
  expect_refused("noqcow", CAIRN_E_SOURCE_FORMAT, "no qcow2 header");
  expect_refused("empty", CAIRN_E_SOURCE_FORMAT, "no qcow2 header");
  expect_refused("four", CAIRN_E_SOURCE_CORRUPT, "cut off");
  make_image("img");
  patch("img", 7, "\4", 1);
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "version 4");
}

static void refuses_features_it_must_not_ignore(void **state)
{
  (void)state;
  make_image("img");
  patch("img", 79, "\2", 1);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "marked corrupt");
  patch("img", 79, "\1", 1); /* dirty: a crash of QEMU, data are well */
  expect_opened("img", 1);
  cairn__chain_close(chain);
  patch("img", 79, "\4", 1);
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "external data file");
  patch("img", 79, "\100", 1);
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "0x40");
  make_image("img");
  patch("img", 35, "\2", 1);
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "encrypted (method 2)");
  make_image("img");
  put_number("img", 24, (4 << 20) + 1);
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "qemu-img resize");
}

static void refuses_impossible_geometry(void **state)
{
  (void)state;
  make_image("img");
  patch("img", 23, "\10", 1);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "cluster bits 8");
  patch("img", 23, "\26", 1);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "cluster bits 22");
  make_image("img");
  put_number("img", 24, UINT64_C(1) << 40);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "L1 table of 1 entries");
  make_image("img");
  put_number("img", 40, 0x30001);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "not aligned");
  make_image("img");
  patch("img", 100, "\0\0\0\110", 4);
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "header length 72");
}

/* ---- tables made wrong: QEMU reads these as zeros, and says nothing ------ */

static void finds_an_image_that_was_cut_off(void **state)
{
  (void)state;
  make_image("img");
  must_run("truncate -s 384k img"); /* two of three data clusters are left */
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "beyond the end of the file");
  assert_true(err.offset > 0);
  make_image("img");
  must_run("truncate -s 256k img"); /* the L2 table is gone */
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "L2 table");
  make_image("img");
  must_run("truncate -s 64k img");
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "L1 table");
  must_run("head -c 525000 /dev/urandom | base64 >text && "
           "qemu-img convert -c -f raw -O qcow2 text img && "
           "truncate -s 400k img");
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "compressed cluster");
}

static void finds_entries_that_point_nowhere(void **state)
{
  off_t l2;

  (void)state;
  make_image("img");
  l2 = first_l2("img");
  put_number("img", l2 + 8, UINT64_C(0x8000000000050200));
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT,
                 "data cluster for guest offset 65536");
  assert_int_equal(err.offset, l2 + 8);
  put_number("img", l2 + 8, UINT64_C(0x8000000900000000));
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "beyond the end");
  make_image("img");
  put_number("img", (off_t)number_at("img", 40), UINT64_C(0x8000000000040200));
  expect_refused("img", CAIRN_E_SOURCE_CORRUPT, "L2 table for guest offset 0");
}

/* ---- backing files made wrong -------------------------------------------- */

static void wants_the_format_recorded(void **state)
{
  (void)state;
  make_image("low");
  must_run("qemu-img create -q -u -f qcow2 -b low -F qcow2 img 4M");
  /* the extension's type, so that it is one that nobody knows */
  patch("img", 112, "\1\1\1\1", 4);
  expect_refused("img", CAIRN_E_BACKING_FILE, "qemu-img rebase -u -F");
  must_run("rm img; qemu-img create -q -u -f qcow2 -b low -F vmdk img 4M");
  expect_refused("img", CAIRN_E_BACKING_FILE, "\"vmdk\"");
  must_run("rm img; qemu-img create -q -u -f qcow2 -b low -F raw img 4M");
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "has a qcow2 header");
  must_run("truncate -s 4M plain; rm img; "
           "qemu-img create -q -u -f qcow2 -b plain -F qcow2 img 4M");
  expect_refused("img", CAIRN_E_SOURCE_FORMAT, "no qcow2 header");
}

static void follows_nothing_but_file_names(void **state)
{
  static const char *const names[] = {"json:{\"driver\":\"null-co\"}",
                                      "nbd:localhost:1", "http://localhost/x",
                                      "file:low", "fat:/etc"};

  (void)state;
  make_image("low");
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    must_run("rm -f img; qemu-img create -q -u -f qcow2 -b '%s' -F raw img 4M",
             names[i]);
    expect_refused("img", CAIRN_E_BACKING_FILE, "plain file names");
  }
}

static void stays_in_the_declared_directories(void **state)
{
  (void)state;
  must_run("rm -rf in out; mkdir -p in out out/deep; "
           "qemu-img create -q -f qcow2 out/deep/base 4M; "
           "qemu-img create -q -u -f qcow2 -b ../out/deep/base -F qcow2 in/up "
           "4M; ln -s ../out/deep/base in/link; "
           "qemu-img create -q -u -f qcow2 -b link -F qcow2 in/sneak 4M; "
           "qemu-img create -q -u -f qcow2 -b /etc/passwd -F raw in/etc 4M");
  expect_refused("in/up", CAIRN_E_BACKING_FILE, "source_directories");
  assert_non_null(strstr(err.message, "out/deep\""));
  /* a name inside that leads outside */
  expect_refused("in/sneak", CAIRN_E_BACKING_FILE, "out/deep/base");
  expect_refused("in/etc", CAIRN_E_BACKING_FILE, "/etc/passwd");
  /* a directory whose name begins the same is another one */
  must_run("mkdir -p in2 && cp in/up in2/up && mkdir -p ou");
  assert_int_equal(open_chain("in/up", "ou"), -1);
  assert_int_equal(err.id, CAIRN_E_BACKING_FILE);
  assert_int_equal(open_chain("in/up", "out"), 0);
  assert_int_equal(chain->count, 2);
  cairn__chain_close(chain);
  assert_int_equal(open_chain("in/sneak", "out/deep"), 0);
  cairn__chain_close(chain);
  assert_int_equal(open_chain("in/up", "absent"), -1);
  assert_non_null(strstr(err.message, "source_directories[1]"));
}

static void resolves_names_from_where_the_image_was_named(void **state)
{
  (void)state;
  must_run("rm -rf pool named; mkdir -p pool named; "
           "qemu-img create -q -f qcow2 named/base 4M; "
           "qemu-img create -q -u -f qcow2 -b base -F qcow2 pool/img 4M; "
           "ln -s ../pool/img named/img");
  expect_opened("named/img", 2);
  cairn__chain_close(chain);
  expect_refused("pool/img", CAIRN_E_SOURCE_MISSING, "backing file of layer 1");
}

static void finds_loops(void **state)
{
  (void)state;
  must_run("rm -f la lb; qemu-img create -q -u -f qcow2 -b lb -F qcow2 la 4M; "
           "qemu-img create -q -u -f qcow2 -b la -F qcow2 lb 4M; "
           "qemu-img create -q -f qcow2 self 4M; "
           "qemu-img rebase -u -b self -F qcow2 self");
  expect_refused("la", CAIRN_E_BACKING_FILE, "form a loop");
  expect_refused("self", CAIRN_E_BACKING_FILE, "form a loop");
}

static void says_which_backing_file_is_missing(void **state)
{
  (void)state;
  must_run("rm -f img; qemu-img create -q -u -f qcow2 -b gone -F qcow2 img "
           "4M");
  expect_refused("img", CAIRN_E_SOURCE_MISSING, "/gone");
}

/* ---- anything at all ----------------------------------------------------- */

static void survives_random_bytes(void **state)
{
  unsigned char *data;
  size_t n;
  int opened = 0, refused = 0;

  (void)state;
  random_begin("survives_random_bytes");
  must_run("rm -f img low; qemu-img create -q -f qcow2 -o cluster_size=512 "
           "low 64k; qemu-img create -q -f qcow2 -o cluster_size=512 -b low "
           "-F qcow2 img 64k && qemu-io -f qcow2 -c 'write 0 30000' img");
  data = slurp("img", &n);
  for (int i = 0; i < 1500; i++) {
    size_t bits = 1 + random_below(4);

    for (size_t j = 0; j < bits; j++) {
      size_t range = random_below(2) ? 600 : n < 4096 ? n : 4096;

      data[random_below(range)] ^= (unsigned char)(1u << random_below(8));
    }
    spill("wild", data, n);
    if (open_chain("wild", NULL) == 0) {
      cairn__chain_close(chain);
      opened++;
    } else {
      assert_true(err.id != CAIRN_OK && err.message[0] != '\0');
      refused++;
    }
    if (i % 4 == 3) {
      free(data);
      data = slurp("img", &n);
    }
  }
  free(data);
  print_message("# %d opened, %d refused\n", opened, refused);
  assert_true(opened > 0 && refused > 0);
}

/* ---- zeros --------------------------------------------------------------- */

static uint64_t next_zeros; /* the end of the last range */
static FILE *ranges;

static int print_range(void *argument, uint64_t offset, uint64_t length,
                       struct cairn_error *e)
{
  (void)e;
  assert_int_equal(*(int *)argument, 7);
  assert_true(length > 0 && (offset > next_zeros || next_zeros == 0));
  next_zeros = offset + length;
  fprintf(ranges, "%llu %llu\n", (unsigned long long)offset,
          (unsigned long long)length);
  return 0;
}

/* As qemu-img map has them, the neighbouring ones joined. */
static void expect_zeros_of_qemu(const char *name)
{
  struct cairn__qcow2_header header;
  char path[512];
  int argument = 7;

  expect_opened(name, 1);
  assert_int_equal(
      cairn__qcow2_header_read(&chain->layers[0].held, &header, &err), 0);
  assert_true(cairn__qcow2_has_plain_zeros(&header));
  snprintf(path, sizeof path, "%s/ours", scratch_path);
  ranges = fopen(path, "w");
  assert_non_null(ranges);
  next_zeros = 0;
  assert_int_equal(cairn__qcow2_zeros(&chain->layers[0].held, &header, NULL,
                                      print_range, &argument, &err),
                   0);
  fclose(ranges);
  cairn__chain_close(chain);
  must_run("qemu-img map --output=json %s | python3 -c 'import json, sys\n"
           "end = None\n"
           "for e in json.load(sys.stdin):\n"
           "  if not e[\"zero\"]: continue\n"
           "  if end == e[\"start\"]: size += e[\"length\"]\n"
           "  else:\n"
           "    if end is not None: print(start, size)\n"
           "    start, size = e[\"start\"], e[\"length\"]\n"
           "  end = start + size\n"
           "if end is not None: print(start, size)' >theirs && "
           "cmp ours theirs",
           name);
}

static void finds_what_reads_as_zeros(void **state)
{
  (void)state;
  must_run("qemu-img create -q -f qcow2 z 2000M && "
           "qemu-io -f qcow2 -c 'write 0 1m' -c 'write -z 128k 192k' "
           "-c 'discard 512k 64k' -c 'write -z -u 640k 64k' "
           "-c 'write -c 2m 64k' -c 'write 600m 64k' -c 'write 1990m 10m' z");
  expect_zeros_of_qemu("z");
  must_run("qemu-img create -q -f qcow2 z 70000 && "
           "qemu-io -f qcow2 -c 'write 0 68k' z");
  expect_zeros_of_qemu("z");
  must_run("qemu-img create -q -f qcow2 -o cluster_size=4k z 77M && "
           "qemu-io -f qcow2 -c 'write 4k 4k' -c 'write 30m 12k' "
           "-c 'write -z 30m 4k' z");
  expect_zeros_of_qemu("z");
  must_run("qemu-img create -q -f qcow2 z 0");
  expect_zeros_of_qemu("z");
}

static void leaves_other_zeros_to_qemu(void **state)
{
  struct cairn__qcow2_header header;

  (void)state;
  make_image("below");
  must_run("qemu-img create -q -f qcow2 -b below -F qcow2 above && "
           "qemu-img create -q -f qcow2 -o extended_l2=on fine 4M");
  expect_opened("above", 2);
  assert_int_equal(
      cairn__qcow2_header_read(&chain->layers[0].held, &header, &err), 0);
  assert_false(cairn__qcow2_has_plain_zeros(&header));
  cairn__chain_close(chain);
  expect_opened("fine", 1);
  assert_int_equal(
      cairn__qcow2_header_read(&chain->layers[0].held, &header, &err), 0);
  assert_false(cairn__qcow2_has_plain_zeros(&header));
  cairn__chain_close(chain);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_both_versions),
      cmocka_unit_test(finds_what_reads_as_zeros),
      cmocka_unit_test(leaves_other_zeros_to_qemu),
      cmocka_unit_test(takes_every_kind_of_cluster),
      cmocka_unit_test(follows_a_chain_to_a_raw_file),
      cmocka_unit_test(counts_internal_snapshots),
      cmocka_unit_test(holds_a_chain_of_64_and_no_more),
      cmocka_unit_test(refuses_what_is_no_qcow2),
      cmocka_unit_test(refuses_features_it_must_not_ignore),
      cmocka_unit_test(refuses_impossible_geometry),
      cmocka_unit_test(finds_an_image_that_was_cut_off),
      cmocka_unit_test(finds_entries_that_point_nowhere),
      cmocka_unit_test(wants_the_format_recorded),
      cmocka_unit_test(follows_nothing_but_file_names),
      cmocka_unit_test(stays_in_the_declared_directories),
      cmocka_unit_test(resolves_names_from_where_the_image_was_named),
      cmocka_unit_test(finds_loops),
      cmocka_unit_test(says_which_backing_file_is_missing),
      cmocka_unit_test(survives_random_bytes),
  };

  return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
