/* verify: passes on what is right, names what is not, goes on after a finding,
 * and never passes on something it could not look at. */
#include "small_export.h"

#include "points.h"
#include "skip.h"
#include "sweep.h"

static struct small point;
static unsigned char *content;

/* web1: vda qcow2 with data, holes and data; vdb raw; files. db: one disk. */
static void build(struct small *s, const char *id, const char *algorithm)
{
  unsigned char *other = small_content("..xy.", 5 * BLOCK - 100);
  small_begin(s, in_scratch("out"), id, 1, algorithm, NULL);
  small_machine(s, VM1, "web1");
  small_machine(s, VM2, "db");
  small_disk(s, VM1, "vda", "qcow2", 4 * BLOCK, content, NULL, NULL, 0);
  small_disk(s, VM1, "vdb", "raw", 5 * BLOCK - 100, other, NULL, NULL, 0);
  small_disk(s, VM2, "vda", "qcow2", 1, content, NULL, NULL, 0);
  small_file(s, VM1, "config", "web1.xml", "<domain/>", 9, 0644, 0);
  small_file(s, VM1, "runtime", "web1.save", content, 100000, 0600, 0);
  small_file(s, VM2, "guest-state", "vars", "", 0, 0600, 0);
  free(other);
}

static int setup(void **state)
{
  if (scratch_make(state) != 0)
    return -1;
  content = small_content("ab.c", 4 * BLOCK);
  /* vda of VM2 is one byte of it */
  build(&point, POINT1, "xxh3-128");
  return 0;
}

static int teardown(void **state)
{
  small_end(&point);
  free(content);
  return scratch_remove(state);
}

static struct cairn__run *verify(const char *id, const char *depth)
{
  json_t *spec =
      json_pack("{s:s, s:s}", "directory", in_scratch("out"), "depth", depth);
  if (id)
    json_object_set_new(spec, "point", json_string(id));
  return small_run(&cairn__kind_verify, spec);
}

static json_t *report_of(struct cairn__run *run, size_t i)
{
  return json_array_get(json_object_get(run->report, "points"), i);
}

static json_t *finding_of(struct cairn__run *run, size_t i)
{
  return json_array_get(json_object_get(report_of(run, 0), "findings"), i);
}

static const char *text(json_t *o, const char *key)
{
  return json_string_value(json_object_get(o, key));
}

static int64_t number(json_t *o, const char *key)
{
  json_t *v = json_object_get(o, key);
  return json_is_integer(v) ? json_integer_value(v) : -1;
}

static void expect_ok(const char *id)
{
  static const char *const depths[] = {"set", "chain", "content"};
  for (int i = 0; i < 3; i++) {
    struct cairn__run *run = verify(id, depths[i]);
    if (run->error.id != CAIRN_OK)
      fail_msg("%s: %s", depths[i], run->error.message);
    assert_string_equal(text(report_of(run, 0), "result"), "ok");
    assert_null(run->warnings);
    assert_true(run->bytes_done == run->bytes_total);
    assert_true(i < 2 || run->bytes_total > 0);
    assert_true(number(report_of(run, 0), "bytes") >= 0);
    cairn__run_release(run);
  }
}

/* One finding at least, the first in this file and with these words. */
static void expect_finding(const char *depth, const char *file,
                           const char *words, int64_t offset, int64_t guest)
{
  struct cairn__run *run = verify(POINT1, depth);
  json_t *f = finding_of(run, 0);
  if (!f)
    fail_msg("%s: nothing found", words);
  if (strcmp(text(f, "file"), file) != 0 || !strstr(text(f, "what"), words) ||
      number(f, "offset") != offset || number(f, "guest_offset") != guest)
    fail_msg("wanted %s: %s (%lld, %lld); found %s", file, words,
             (long long)offset, (long long)guest, json_dumps(f, 0));
  assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
  /* the error alone says where: whole path and both offsets */
  char whole[1024], place[64];
  snprintf(whole, sizeof whole, "%s/%s", point.path, file);
  assert_non_null(strstr(run->error.message, whole));
  assert_string_equal(run->error.path, whole);
  snprintf(place, sizeof place, "at offset %lld", (long long)offset);
  if (offset >= 0 && !strstr(run->error.message, place))
    fail_msg("\"%s\" is not in: %s", place, run->error.message);
  snprintf(place, sizeof place, "%lld of the disk", (long long)guest);
  if (guest >= 0 && !strstr(run->error.message, place))
    fail_msg("\"%s\" is not in: %s", place, run->error.message);
  assert_string_equal(text(report_of(run, 0), "result"), "damaged");
  cairn__run_release(run);
}

/* ---- what is right ------------------------------------------------------- */

static void passes_on_a_whole_point(void **state)
{
  (void)state;
  small_publish(&point);
  expect_ok(POINT1);
  expect_ok(NULL);
}

static void takes_no_notice_of_others_manifests(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("echo '{\"name\": \"an app\"}' > %s/manifest.json",
              in_scratch("out"));
  expect_ok(POINT1);
  expect_ok(NULL);
}

static void passes_with_every_algorithm(void **state)
{
  (void)state;
  static const char *const names[] = {"sha-256", "blake2b-256"};
  for (int i = 0; i < 2; i++) {
    struct small s;
    int algorithm;
    if (cairn__digest_algorithm_parse(names[i], &algorithm, NULL) != 0)
      skip_because("needs a build with libgcrypt, and its consent");
    build(&s, i ? POINT2 : POINT3, names[i]);
    small_publish(&s);
    small_end(&s);
    expect_ok(i ? POINT2 : POINT3);
  }
}

static void passes_on_odd_lengths(void **state)
{
  (void)state;
  static const uint64_t lengths[] = {0,         1,         511,      512,
                                     BLOCK - 1, BLOCK + 1, 2 * BLOCK};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    unsigned char *c = small_content("pqr", lengths[i]);
    char id[16];
    snprintf(id, sizeof id, "odd%zu", i);
    small_disk(&point, VM2, id, "qcow2", lengths[i], c, NULL, NULL, 0);
    snprintf(id, sizeof id, "odd%zu.r", i);
    small_disk(&point, VM2, id, "raw", lengths[i], c, NULL, NULL, 0);
    free(c);
  }
  small_publish(&point);
  expect_ok(POINT1);
}

static void accepts_any_name_of_a_point(void **state)
{
  (void)state;
  small_publish(&point);
  static const char *const names[] = {"a0000000-0000-4000-8000-000000000001",
                                      "{A0000000-0000-4000-8000-000000000001}",
                                      "a000", "monday"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (i == 3)
      assert_int_equal(rename(point.path, in_scratch("out/monday")), 0);
    struct cairn__run *run = verify(names[i], "content");
    if (run->error.id != CAIRN_OK)
      fail_msg("%s: %s", names[i], run->error.message);
    cairn__run_release(run);
  }
  /* renamed, by its id; and the directory of the point itself */
  struct cairn__run *run = verify(POINT1, "content");
  assert_int_equal(run->error.id, CAIRN_OK);
  cairn__run_release(run);
  run = small_run(&cairn__kind_verify,
                  json_pack("{s:s}", "directory", in_scratch("out/monday")));
  assert_int_equal(run->error.id, CAIRN_OK);
  cairn__run_release(run);
}

/* ---- the set ------------------------------------------------------------- */

static void finds_what_is_not_in_the_manifest(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("touch %s/extra", point.path);
  expect_finding("set", "extra", "not in the manifest", -1, -1);
  small_shell("rm %s/extra; mkdir %s/" VM1 "/more", point.path, point.path);
  expect_finding("set", VM1 "/more", "the directory is not", -1, -1);
  small_shell("rmdir %s/" VM1 "/more; ln -s /etc/passwd %s/" VM1 "/config/link",
              point.path, point.path);
  expect_finding("set", VM1 "/config/link", "not in the manifest", -1, -1);
}

static void finds_what_is_missing_or_of_another_kind(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("mv %s/" VM1 "/config/web1.xml %s/web1.xml", point.path, scratch);
  expect_finding("set", VM1 "/config/web1.xml", "missing", -1, -1);
  {
    struct cairn__exports x;
    struct cairn__point *p;
    int fd;
    MUST(cairn__exports_open(IO, in_scratch("out"), &x, &small_err));
    MUST(cairn__exports_find(&x, POINT1, &p, &small_err));
    assert_int_equal(
        cairn__open_file(IO, p, VM1 "/config/web1.xml", &fd, NULL, &small_err),
        -1);
    assert_non_null(strstr(small_err.message, point.path));
    assert_non_null(strstr(small_err.path, point.path));
    cairn__point_close(IO, p);
    cairn__exports_close(&x);
  }
  small_shell("ln -s %s/web1.xml %s/" VM1 "/config/web1.xml", scratch,
              point.path);
  expect_finding("content", VM1 "/config/web1.xml", "symbolic link", -1, -1);
  small_shell("rm %s/" VM1 "/config/web1.xml; mkfifo -m 600 %s/" VM1
              "/config/web1.xml",
              point.path, point.path);
  expect_finding("content", VM1 "/config/web1.xml", "no regular file", -1, -1);
  small_shell("rm %s/" VM1 "/config/web1.xml; mkdir -m 700 %s/" VM1
              "/config/web1.xml",
              point.path, point.path);
  expect_finding("content", VM1 "/config/web1.xml", "no regular file", -1, -1);
}

static void finds_a_directory_replaced_by_a_link(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("mv %s/" VM1 " %s/away && ln -s %s/away %s/" VM1, point.path,
              scratch, scratch, point.path);
  struct cairn__run *run = verify(POINT1, "content");
  assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
  /* the link itself, and the six files that are not reached through it */
  assert_int_equal(
      json_array_size(json_object_get(report_of(run, 0), "findings")), 7);
  cairn__run_release(run);
}

static void finds_a_wrong_size(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("truncate -s +1 %s/" VM1 "/vda.qcow2", point.path);
  expect_finding("set", VM1 "/vda.qcow2", "bytes, not", -1, -1);
  expect_finding("content", VM1 "/vda.qcow2", "bytes, not", -1, -1);
}

static void goes_on_without_a_digest_map(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("rm %s/" VM1 "/vda.digests", point.path);
  small_flip(in_scratch("out/%s/%s/vda.qcow2", POINT1, VM1), 8 * 70000);
  struct cairn__run *run = verify(POINT1, "content");
  assert_int_equal(
      json_array_size(json_object_get(report_of(run, 0), "findings")), 2);
  assert_string_equal(text(finding_of(run, 0), "file"), VM1 "/vda.digests");
  assert_string_equal(text(finding_of(run, 1), "file"), VM1 "/vda.qcow2");
  cairn__run_release(run);
}

static void warns_of_wide_modes(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("chmod 644 %s/" VM1 "/vda.qcow2; chmod 755 %s/" VM1, point.path,
              point.path);
  struct cairn__run *run = verify(POINT1, "set");
  assert_int_equal(run->error.id, CAIRN_OK);
  assert_int_equal(json_array_size(run->warnings), 1);
  assert_non_null(strstr(json_string_value(json_array_get(run->warnings, 0)),
                         "on 2 directories"));
  cairn__run_release(run);
}

/* ---- the content --------------------------------------------------------- */

static void says_where_a_bit_has_changed(void **state)
{
  (void)state;
  small_publish(&point);
  const char *qcow2 = in_scratch("out/%s/%s/vda.qcow2", POINT1, VM1);
  /* "ab.c": the third data cluster is the disk's fourth block */
  small_flip(qcow2, 8 * (3 * BLOCK + 17));
  expect_finding("content", VM1 "/vda.qcow2", "differ from the digest map",
                 3 * BLOCK, 3 * BLOCK);
  small_flip(qcow2, 8 * (3 * BLOCK + 17));
  const char *raw = in_scratch("out/%s/%s/vdb.raw", POINT1, VM1);
  small_flip(raw, 8 * (2 * BLOCK + 5) + 1);
  expect_finding("content", VM1 "/vdb.raw", "differ from the digest map",
                 2 * BLOCK, 2 * BLOCK);
  small_flip(raw, 8 * (2 * BLOCK + 5) + 1);
  small_flip(raw, 8 * 3); /* in a hole */
  expect_finding("content", VM1 "/vdb.raw", "differ from the digest map", 0, 0);
  small_flip(raw, 8 * 3);
  const char *xml = in_scratch("out/%s/%s/config/web1.xml", POINT1, VM1);
  small_flip(xml, 0);
  expect_finding("content", VM1 "/config/web1.xml", "differ from its digest",
                 -1, -1);
  small_flip(xml, 0);
  const char *secret = in_scratch("out/%s/chain.secret", POINT1);
  small_flip(secret, 1535);
  expect_finding("content", "chain.secret", "differs from its digest", -1, -1);
  small_flip(secret, 1535);
  expect_ok(POINT1);
}

static void finds_damage_of_the_digest_map(void **state)
{
  (void)state;
  small_publish(&point);
  const char *map = in_scratch("out/%s/%s/vda.digests", POINT1, VM1);
  static const struct {
    uint64_t byte;
    int64_t offset, guest;
  } cases[] = {{20, 4080, -1},                 /* header */
               {4096 + 5, 4096, 0},            /* a digest */
               {4096 + 100, 4096, 0},          /* padding behind the last */
               {4096 + 131072, 4096, 0},       /* the page's digest */
               {4096 + 131072 + 3000, -2, 0}}; /* padding behind that */
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    small_flip(map, 8 * cases[i].byte);
    struct cairn__run *run = verify(POINT1, "content");
    json_t *f = finding_of(run, 0);
    assert_non_null(f);
    assert_string_equal(text(f, "file"), VM1 "/vda.digests");
    assert_int_equal(number(f, "guest_offset"), cases[i].guest);
    cairn__run_release(run);
    small_flip(map, 8 * cases[i].byte);
  }
  expect_ok(POINT1);
}

static void goes_on_after_a_finding(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("touch %s/extra", point.path);
  small_flip(in_scratch("out/%s/%s/vda.qcow2", POINT1, VM1), 8 * BLOCK);
  small_flip(in_scratch("out/%s/%s/vda.qcow2", POINT1, VM1), 8 * 2 * BLOCK);
  small_flip(in_scratch("out/%s/%s/vdb.raw", POINT1, VM1), 8 * 3 * BLOCK);
  small_flip(in_scratch("out/%s/%s/vda.digests", POINT1, VM2), 8 * 5000);
  struct cairn__run *run = verify(NULL, "content");
  json_t *r = report_of(run, 0);
  static const char *const files[] = {"extra", VM1 "/vda.qcow2",
                                      VM1 "/vda.qcow2", VM1 "/vdb.raw",
                                      VM2 "/vda.digests"};
  assert_int_equal(json_array_size(json_object_get(r, "findings")), 5);
  for (size_t i = 0; i < 5; i++)
    assert_string_equal(text(finding_of(run, i), "file"), files[i]);
  assert_string_equal(text(finding_of(run, 1), "machine"), VM1);
  assert_string_equal(text(finding_of(run, 1), "disk"), "vda");
  assert_non_null(strstr(run->error.message, "5 findings in 1 of 1"));
  assert_non_null(strstr(run->error.message, "extra"));
  cairn__run_release(run);
}

static void bounds_the_findings(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("cd %s && seq -f extra%%g 150 | xargs touch", point.path);
  struct cairn__run *run = verify(POINT1, "set");
  json_t *r = report_of(run, 0);
  assert_int_equal(json_array_size(json_object_get(r, "findings")), 100);
  assert_int_equal(number(r, "findings_left_out"), 50);
  cairn__run_release(run);
}

/* Files that agree with the manifest and are wrong all the same: what a fault
 * in a writer would give. */
static void finds_wrong_tables_with_right_digests(void **state)
{
  (void)state;
  const char *path = VM1 "/vda.qcow2";
  /* clusters: 0 header, 1 2 3 data, 4 L2, 5 L1, 6 refcounts, 7 their table */
  static const struct {
    uint64_t offset;
    unsigned char bytes[8];
    size_t n;
    const char *words;
  } cases[] = {
      {6 * BLOCK + 2, {0, 0}, 2, "the refcount of cluster 1 is 0"},
      {6 * BLOCK + 4, {0, 2}, 2, "the refcount of cluster 2 is 2"},
      {6 * BLOCK + 16, {0, 1}, 2, "the refcount of cluster 8 is 1"},
      {7 * BLOCK + 8, {0, 0, 0, 0, 0, 6, 0, 0}, 8, "refcount table entry 1"},
      {4 * BLOCK, {0x80, 0, 0, 0, 0, 2, 0, 0}, 8, "differ from the digest"},
      {4 * BLOCK + 8, {0x80, 0, 0, 0, 0, 1, 0, 0}, 8, "lies where something"},
      {4 * BLOCK + 16, {0x80, 0, 0, 0, 0, 5, 0, 0}, 8, "lies where something"},
      {4 * BLOCK + 16, {0, 0, 0, 0, 0, 3, 0, 0}, 8, "of no kind"},
      {4 * BLOCK + 16, {0xc0, 0, 0, 0, 0, 3, 0, 0}, 8, "of no kind"},
      {4 * BLOCK + 24, {0x80, 0, 0, 0, 0, 3, 0, 1}, 8, "of no kind"},
      {4 * BLOCK + 24, {0x80, 0, 0, 0, 1, 0, 0, 0}, 8, "outside the file"},
      {4 * BLOCK + 24, {0, 0, 0, 0, 0, 0, 0, 0}, 8, "stored as zero"},
      {4 * BLOCK + 32, {0, 0, 0, 0, 0, 0, 0, 1}, 8, "beyond the end"},
      {5 * BLOCK, {0, 0, 0, 0, 0, 0, 0, 0}, 8, "stored as zero"},
      {5 * BLOCK, {0x80, 0, 0, 0, 1, 4, 0, 0}, 8, "outside the file"},
      {5 * BLOCK, {0, 0, 0, 0, 0, 4, 0, 0}, 8, "of no kind"},
  };
  small_publish(&point);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    unsigned char before[8];
    int fd = openat(point.fd, path, O_RDONLY), has_it = 0;
    assert_int_equal(pread(fd, before, cases[i].n, (off_t)cases[i].offset),
                     (ssize_t)cases[i].n);
    close(fd);
    small_poke(&point, path, cases[i].offset, cases[i].bytes, cases[i].n);
    small_resign(&point, path);
    unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
    json_object_del(point.manifest, "digest");
    small_publish(&point);
    struct cairn__run *run = verify(POINT1, "content");
    assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
    for (size_t k = 0; finding_of(run, k); k++)
      has_it |=
          strstr(text(finding_of(run, k), "what"), cases[i].words) != NULL;
    if (!has_it)
      fail_msg("case %zu, \"%s\": %s", i, cases[i].words,
               json_dumps(run->report, 0));
    cairn__run_release(run);
    small_poke(&point, path, cases[i].offset, before, cases[i].n);
  }
}

static void finds_swapped_and_leaked_clusters(void **state)
{
  (void)state;
  const char *path = VM1 "/vda.qcow2";
  /* the first two data clusters change places, and their entries with them */
  static const unsigned char entries[] = {0x80, 0, 0, 0, 0, 2, 0, 0,
                                          0x80, 0, 0, 0, 0, 1, 0, 0};
  small_poke(&point, path, BLOCK, content + BLOCK, BLOCK);
  small_poke(&point, path, 2 * BLOCK, content, BLOCK);
  small_poke(&point, path, 4 * BLOCK, entries, sizeof entries);
  small_resign(&point, path);
  small_publish(&point);
  struct cairn__run *run = verify(POINT1, "content");
  /* the content is right: order is all there is to find */
  assert_int_equal(
      json_array_size(json_object_get(report_of(run, 0), "findings")), 1);
  assert_non_null(strstr(text(finding_of(run, 0), "what"), "disk's order"));
  cairn__run_release(run);

  static const unsigned char right[] = {0x80, 0, 0, 0, 0, 1, 0, 0,
                                        0x80, 0, 0, 0, 0, 2, 0, 0};
  small_poke(&point, path, BLOCK, content, 2 * BLOCK);
  small_poke(&point, path, 4 * BLOCK, right, sizeof right);
  small_shell("truncate -s +65536 %s/%s", point.path, path);
  small_poke(&point, path, 6 * BLOCK + 17, "\x01", 1);
  small_resign(&point, path);
  unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
  json_object_del(point.manifest, "digest");
  small_publish(&point);
  expect_finding("content", path, "belongs to nothing", 8 * BLOCK, -1);
}

static void finds_headers_that_contradict_the_manifest(void **state)
{
  (void)state;
  const char *path = VM1 "/vda.qcow2";
  static const struct {
    uint64_t offset;
    const char *bytes;
    size_t n;
    const char *words;
  } cases[] = {
      {31, "\x02", 1, "virtual size"},
      {112 + 8 + 8, "\x11", 1, "another reference point"},
      {79, "\x04", 1, "incompatible"},
      {67, "\x01", 1, "snapshot"},
      {0, "x", 1, "qcow2"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    unsigned char before[8];
    int fd = openat(point.fd, path, O_RDONLY);
    assert_true(pread(fd, before, 8, (off_t)cases[i].offset) == 8);
    close(fd);
    small_poke(&point, path, cases[i].offset, cases[i].bytes, cases[i].n);
    small_resign(&point, path);
    unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
    json_object_del(point.manifest, "digest");
    small_publish(&point);
    struct cairn__run *run = verify(POINT1, "chain");
    assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
    if (!strstr(text(finding_of(run, 0), "what"), cases[i].words))
      fail_msg("%s: %s", cases[i].words, text(finding_of(run, 0), "what"));
    cairn__run_release(run);
    small_poke(&point, path, cases[i].offset, before, 8);
  }
}

static void finds_a_map_of_other_content(void **state)
{
  (void)state;
  /* everything agrees but "content" */
  json_t *file = small_entry(&point, VM1 "/vda.qcow2");
  json_object_set_new(file, "content",
                      json_string("xxh3-128:00112233445566778899aabbccddeeff"));
  small_publish(&point);
  expect_finding("content", VM1 "/vda.digests", "root differs", -1, -1);
}

/* ---- chains -------------------------------------------------------------- */

static struct small increment;
static unsigned char *later;

static void build_chain(void)
{
  later = small_content("a..dee", 6 * BLOCK);
  small_publish(&point);
  small_begin(&increment, in_scratch("out"), POINT2, 2, "xxh3-128", &point);
  small_machine(&increment, VM1, "web1");
  small_disk(&increment, VM1, "vda", "qcow2", 6 * BLOCK, later, &point, content,
             4);
}

static void end_chain(void)
{
  small_end(&increment);
  free(later);
}

static json_t *increment_finding(const char *depth)
{
  struct cairn__run *run = verify(POINT2, depth);
  json_t *f = json_deep_copy(finding_of(run, 0));
  assert_int_equal(run->error.id, f ? CAIRN_E_EXPORT_CORRUPT : CAIRN_OK);
  cairn__run_release(run);
  return f;
}

static void passes_on_an_increment(void **state)
{
  (void)state;
  build_chain();
  small_publish(&increment);
  expect_ok(POINT2);
  expect_ok(NULL);
  end_chain();
}

static void finds_a_missing_or_other_base(void **state)
{
  (void)state;
  build_chain();
  small_publish(&increment);
  assert_int_equal(rename(point.path, in_scratch("elsewhere")), 0);
  json_t *f = increment_finding("chain");
  assert_non_null(strstr(text(f, "what"), "base is missing"));
  json_decref(f);
  /* the same id with another content */
  struct small other;
  unsigned char *c = small_content("az.c", 4 * BLOCK);
  small_begin(&other, in_scratch("out"), POINT1, 1, "xxh3-128", &point);
  small_machine(&other, VM1, "web1");
  small_disk(&other, VM1, "vda", "qcow2", 4 * BLOCK, c, NULL, NULL, 0);
  small_publish(&other);
  small_end(&other);
  f = increment_finding("chain");
  assert_non_null(strstr(text(f, "what"), "another content"));
  json_decref(f);
  free(c);
  end_chain();
}

static void finds_a_block_taken_wrongly_from_the_base(void **state)
{
  (void)state;
  build_chain();
  /* block 1 was written in between and is zero now: its entry says 1 */
  const char *path = VM1 "/vda.qcow2";
  static const unsigned char zero[8];
  struct stat st;
  assert_int_equal(fstatat(increment.fd, path, &st, 0), 0);
  assert_int_equal(st.st_size, 8 * BLOCK); /* 3 data, as in the full */
  small_poke(&increment, path, 4 * BLOCK + 8, zero, sizeof zero);
  small_resign(&increment, path);
  small_publish(&increment);
  json_t *f = increment_finding("content");
  assert_non_null(strstr(text(f, "what"), "taken from the base"));
  assert_int_equal(number(f, "guest_offset"), BLOCK);
  json_decref(f);
  end_chain();
}

static void finds_another_backing_name(void **state)
{
  (void)state;
  build_chain();
  const char *path = VM1 "/vda.qcow2";
  unsigned char head[1024];
  int fd = openat(increment.fd, path, O_RDONLY);
  assert_int_equal(pread(fd, head, sizeof head, 0), (ssize_t)sizeof head);
  close(fd);
  unsigned char *name = memmem(head, sizeof head, "../../", 6);
  assert_non_null(name);
  small_poke(&increment, path, (uint64_t)(name - head), "/etc/x", 6);
  small_resign(&increment, path);
  small_publish(&increment);
  json_t *f = increment_finding("chain");
  assert_non_null(strstr(text(f, "what"), "names the backing file \"/etc/x"));
  json_decref(f);
  end_chain();
}

/* ---- several points, and none -------------------------------------------- */

static void reports_a_damaged_manifest_and_goes_on(void **state)
{
  (void)state;
  struct small other;
  small_publish(&point);
  build(&other, POINT2, "xxh3-128");
  small_publish(&other);
  small_end(&other);
  small_flip(in_scratch("out/%s/manifest.json", POINT1), 999);
  small_shell("mkdir %s/%s %s/foreign", in_scratch("out"), POINT3,
              in_scratch("out"));
  struct cairn__run *run = verify(NULL, "content");
  assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(json_array_size(json_object_get(run->report, "points")), 3);
  assert_string_equal(text(report_of(run, 0), "result"), "damaged");
  assert_string_equal(text(finding_of(run, 0), "file"), "manifest.json");
  assert_string_equal(text(report_of(run, 1), "result"), "ok");
  assert_string_equal(text(report_of(run, 2), "result"), "damaged");
  cairn__run_release(run);
  run = verify(POINT1, "content");
  assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
  assert_string_equal(text(finding_of(run, 0), "file"), "manifest.json");
  cairn__run_release(run);
}

static void refuses_what_holds_no_point(void **state)
{
  (void)state;
  struct cairn__run *run = verify(NULL, "set");
  /* the directory is there; its manifest is not: a point that was damaged */
  assert_int_equal(run->error.id, CAIRN_E_EXPORT_CORRUPT);
  cairn__run_release(run);
  small_publish(&point);
  run = verify(POINT2, "set");
  assert_int_equal(run->error.id, CAIRN_E_NOT_FOUND);
  assert_non_null(strstr(run->error.message, POINT1));
  cairn__run_release(run);
  mkdir(in_scratch("empty"), 0700);
  run = small_run(&cairn__kind_verify,
                  json_pack("{s:s}", "directory", in_scratch("empty")));
  assert_int_equal(run->error.id, CAIRN_E_NOT_AN_EXPORT);
  cairn__run_release(run);
  run = small_run(&cairn__kind_verify,
                  json_pack("{s:s}", "directory", in_scratch("nowhere")));
  assert_int_equal(run->error.id, CAIRN_E_NOT_FOUND);
  cairn__run_release(run);
}

/* ---- against the sources ------------------------------------------------- */

static struct cairn__run *verify_source(const char *path, const char *disk)
{
  json_t *spec =
      json_pack("{s:s, s:{s:s, s:[{s:s, s:[{s:s, s:s, s:s}]}]}}", "directory",
                in_scratch("out"), "source", "CollectionId", COLLECTION,
                "machines", "VirtualMachineId", VM1, "disks", "id", disk,
                "path", path, "format", "raw");
  return small_run(&cairn__kind_verify, spec);
}

static void compares_with_the_source(void **state)
{
  (void)state;
  small_publish(&point);
  const char *image = in_scratch("live.raw");
  FILE *f = fopen(image, "w");
  assert_int_equal(fwrite(content, 1, 4 * BLOCK, f), 4 * BLOCK);
  fclose(f);
  struct cairn__run *run = verify_source(image, "vda");
  if (run->error.id != CAIRN_OK)
    fail_msg("%s", run->error.message);
  json_t *source = json_object_get(report_of(run, 0), "source");
  assert_int_equal(json_array_size(source), 3);
  assert_string_equal(text(json_array_get(source, 0), "result"),
                      "not in the collection");
  assert_string_equal(text(json_array_get(source, 2), "result"), "same");
  assert_true(run->bytes_done == run->bytes_total);
  cairn__run_release(run);

  small_flip(image, 8 * (2 * BLOCK + 9)); /* in a block of zeros */
  run = verify_source(image, "vda");
  assert_int_equal(run->error.id, CAIRN_E_SOURCE_DIFFERS);
  assert_string_equal(run->error.machine, VM1);
  assert_string_equal(run->error.disk, "vda");
  assert_int_equal(run->error.offset, 2 * BLOCK);
  assert_non_null(strstr(run->error.message, "differs from the point"));
  assert_non_null(strstr(run->error.message, "machine web1 (" VM1 "), disk"));
  /* nothing is wrong with the point */
  assert_non_null(
      strstr(cairn__error_advice(run->error.id, 0), "Nothing was found wrong"));
  source = json_object_get(report_of(run, 0), "source");
  assert_string_equal(text(json_array_get(source, 2), "result"), "different");
  assert_int_equal(number(json_array_get(source, 2), "offset"), 2 * BLOCK);
  cairn__run_release(run);

  assert_int_equal(truncate(image, 4 * BLOCK + 1), 0);
  run = verify_source(image, "vda");
  assert_int_equal(run->error.id, CAIRN_E_SOURCE_DIFFERS);
  cairn__run_release(run);
  run = verify_source(image, "vdx");
  assert_int_equal(run->error.id, CAIRN_OK);
  source = json_object_get(report_of(run, 0), "source");
  assert_string_equal(text(json_array_get(source, 0), "result"),
                      "not in the point");
  cairn__run_release(run);
  run = verify_source(in_scratch("none.raw"), "vda");
  assert_int_equal(run->error.id, CAIRN_E_SOURCE_MISSING);
  cairn__run_release(run);
}

/* ---- moved and copied points ----------------------------------------------
 */

static void expect_warning(struct cairn__run *run, const char *words)
{
  const char *warning = json_string_value(json_array_get(run->warnings, 0));
  if (run->error.id != CAIRN_OK)
    fail_msg("%s", run->error.message);
  if (!warning || !strstr(warning, words))
    fail_msg("\"%s\" is not in: %s", words, warning ? warning : "nothing");
  assert_int_equal(json_array_size(run->warnings), 1);
  cairn__run_release(run);
}

static void warns_of_points_that_were_renamed_or_copied(void **state)
{
  (void)state;
  small_publish(&point);
  small_shell("cp -a %s %s/out/B0000000-0000-4000-8000-000000000009",
              point.path, scratch);
  expect_warning(verify(NULL, "content"), "holds the same reference point");
  expect_warning(verify("B0000000-0000-4000-8000-000000000009", "set"),
                 "is not named after its reference point (" POINT1 ")");
  small_shell("rm -r %s", point.path);
  small_shell("mv %s/out/B0000000-0000-4000-8000-000000000009 %s/out/monday",
              scratch, scratch);
  expect_warning(verify(NULL, "chain"), "/out/monday is not named after");
  /* the whole tree elsewhere: nothing to say */
  small_shell("mv %s/out/monday %s && mv %s/out %s/else && ln -s else %s/out",
              scratch, point.path, scratch, scratch, scratch);
  expect_ok(NULL);
}

/* ---- ends and faults ----------------------------------------------------- */

static void ends_when_asked(void **state)
{
  (void)state;
  small_publish(&point);
  static const int requests[] = {CAIRN__RUN_TERMINATE, CAIRN__RUN_KILL};
  for (int i = 0; i < 2; i++) {
    struct cairn__run *run = cairn__run_new(NULL);
    run->spec = json_pack("{s:s}", "directory", in_scratch("out"));
    run->main = cairn__kind_verify.main;
    MUST(cairn__kind_verify.check(run->spec, &small_err));
    cairn__run_request(run, requests[i]);
    cairn__run_here(run);
    assert_int_equal(run->error.id, i ? CAIRN_E_KILLED : CAIRN_E_TERMINATED);
    cairn__run_release(run);
  }
}

static void checks_its_specification(void **state)
{
  (void)state;
  static const struct {
    const char *json;
    int id;
    const char *words;
  } cases[] = {
      {"[]", CAIRN_E_WRONG_TYPE, "object"},
      {"{}", CAIRN_E_INVALID_ARGUMENT, "\"directory\" is missing"},
      {"{\"directory\":\"x\"}", CAIRN_E_BAD_PATH, "absolute"},
      {"{\"directory\":7}", CAIRN_E_WRONG_TYPE, "not a number"},
      {"{\"directory\":\"/x\",\"dept\":\"set\"}", CAIRN_E_UNKNOWN_KEY,
       "\"depth\""},
      {"{\"directory\":\"/x\",\"depth\":\"deep\"}", CAIRN_E_INVALID_ARGUMENT,
       "\"set\", \"chain\", \"content\""},
      {"{\"directory\":\"/x\",\"source\":[]}", CAIRN_E_WRONG_TYPE, "object"},
      {"{\"directory\":\"/x\",\"source\":{}}", CAIRN_E_INVALID_ARGUMENT,
       "verify.source"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct cairn_error err;
    json_t *spec = json_loads(cases[i].json, 0, NULL);
    cairn__error_clear(&err);
    assert_int_equal(cairn__kind_verify.check(spec, &err), -1);
    if (err.id != cases[i].id || !strstr(err.message, cases[i].words))
      fail_msg("%s: %s", cases[i].json, err.message);
    json_decref(spec);
  }
  json_t *spec = json_loads("{\"directory\":\"/x\",\"point\":null}", 0, NULL);
  MUST(cairn__kind_verify.check(spec, &small_err));
  assert_string_equal(text(spec, "depth"), "content");
  json_decref(spec);
}

static void plans_what_it_would_read(void **state)
{
  (void)state;
  json_t *plan, *spec = json_pack("{s:s}", "directory", in_scratch("out"));
  small_publish(&point);
  MUST(cairn__kind_verify.check(spec, &small_err));
  MUST(cairn__kind_verify.plan(IO, spec, &plan, &small_err));
  struct cairn__run *run = verify(NULL, "content");
  assert_int_equal(number(plan, "bytes_to_read"), run->bytes_total);
  cairn__run_release(run);
  json_decref(plan);
  json_decref(spec);
}

/* Either the run fails and says why, or it has seen every byte all the same. */
static void expect_seen_or_said(struct cairn__run *run, uint64_t bytes,
                                const char *fault)
{
  uint64_t seen = 0;
  if (run->error.id != CAIRN_OK) {
    assert_true(run->error.message[0] != 0);
    return;
  }
  for (size_t i = 0; report_of(run, i); i++) {
    assert_string_equal(text(report_of(run, i), "result"), "ok");
    seen += (uint64_t)number(report_of(run, i), "bytes");
  }
  if (seen != bytes)
    fail_msg("%s: passed having seen %llu of %llu bytes", fault,
             (unsigned long long)seen, (unsigned long long)bytes);
}

static void never_passes_when_a_call_fails(void **state)
{
  (void)state;
  static const struct {
    int kind, errnum;
  } faults[] = {{CAIRN__FAULT_ERRNO, EIO},
                {CAIRN__FAULT_ERRNO, EMFILE},
                {CAIRN__FAULT_SHORT, 0}};
  build_chain();
  small_publish(&increment);
  struct cairn__run *clean = verify(NULL, "content");
  uint64_t bytes = clean->bytes_done;
  cairn__run_release(clean);
  uint64_t stride = sweep_stride(1);
  for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
    unsigned failures = 0;
    for (uint64_t at = sweep_first(stride);; at += stride) {
      struct cairn__fault_io fault;
      struct cairn__run *run = cairn__run_new(NULL);
      cairn__fault_io_init(&fault, at, faults[k].kind, faults[k].errnum);
      run->io = &fault.io;
      run->spec = json_pack("{s:s, s:s}", "directory", in_scratch("out"),
                            "depth", "content");
      run->main = cairn__kind_verify.main;
      cairn__run_here(run);
      expect_seen_or_said(run, bytes, fault.has_fired ? fault.fired_at : "-");
      failures += run->error.id != CAIRN_OK;
      if (faults[k].kind == CAIRN__FAULT_SHORT && run->error.id != CAIRN_OK)
        fail_msg("a short %s: %s", fault.fired_at, run->error.message);
      cairn__run_release(run);
      if (!fault.has_fired)
        break;
    }
    assert_true(faults[k].kind == CAIRN__FAULT_SHORT || failures > 50 / stride);
  }
  end_chain();
}

static long countdown;

static void *failing_realloc(void *p, size_t n)
{
  return __atomic_sub_fetch(&countdown, 1, __ATOMIC_RELAXED) == 0
             ? NULL
             : realloc(p, n);
}

static void survives_every_failing_allocation(void **state)
{
  (void)state;
  small_publish(&point);
  json_t *spec = json_pack("{s:s, s:s}", "directory", in_scratch("out"),
                           "depth", "content");
  cairn_set_allocator(failing_realloc, free);
  for (long at = 1;; at++) {
    struct cairn__run *run = cairn__run_new(NULL);
    run->spec = json_deep_copy(spec);
    run->main = cairn__kind_verify.main;
    countdown = at;
    cairn__run_here(run);
    int has_fired = countdown <= 0;
    countdown = 0;
    if (run->error.id != CAIRN_OK && run->error.id != CAIRN_E_NO_MEMORY)
      fail_msg("allocation %ld: %s", at, run->error.message);
    if (run->error.id == CAIRN_OK)
      assert_string_equal(text(report_of(run, 0), "result"), "ok");
    cairn__run_release(run);
    if (!has_fired)
      break;
  }
  cairn_set_allocator(NULL, NULL);
  json_decref(spec);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
  const struct CMUnitTest tests[] = {
      TEST(passes_on_a_whole_point),
      TEST(takes_no_notice_of_others_manifests),
      TEST(passes_with_every_algorithm),
      TEST(passes_on_odd_lengths),
      TEST(accepts_any_name_of_a_point),
      TEST(finds_what_is_not_in_the_manifest),
      TEST(finds_what_is_missing_or_of_another_kind),
      TEST(finds_a_directory_replaced_by_a_link),
      TEST(finds_a_wrong_size),
      TEST(goes_on_without_a_digest_map),
      TEST(warns_of_wide_modes),
      TEST(says_where_a_bit_has_changed),
      TEST(finds_damage_of_the_digest_map),
      TEST(goes_on_after_a_finding),
      TEST(bounds_the_findings),
      TEST(finds_wrong_tables_with_right_digests),
      TEST(finds_swapped_and_leaked_clusters),
      TEST(finds_headers_that_contradict_the_manifest),
      TEST(finds_a_map_of_other_content),
      TEST(passes_on_an_increment),
      TEST(finds_a_missing_or_other_base),
      TEST(finds_a_block_taken_wrongly_from_the_base),
      TEST(finds_another_backing_name),
      TEST(reports_a_damaged_manifest_and_goes_on),
      TEST(refuses_what_holds_no_point),
      TEST(compares_with_the_source),
      TEST(warns_of_points_that_were_renamed_or_copied),
      TEST(ends_when_asked),
      TEST(checks_its_specification),
      TEST(plans_what_it_would_read),
      TEST(never_passes_when_a_call_fails),
      TEST(survives_every_failing_allocation),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
