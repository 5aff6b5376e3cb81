/* The kind "merge": a chain into a full and into one increment, judged by
 * qemu-img and by cmp with what is known to be the content; and that a point
 * is there, whole, whatever happens while it is replaced. */
#include <sys/wait.h>

#include "small_chain.h"
#include "sweep.h"

/* ---- what it does -------------------------------------------------------- */

static void merges_a_chain_into_a_full(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd....");
  chain_pattern("aB.d..x.");
  chain_pattern("aBC...x.");
  chain_pattern("aBCe...y");
  must_merge(2, "full", NULL);
  must_be(2, chain.directory, "disk", NULL, 2);
  for (size_t i = 0; i < chain.count; i++)
    must_hold(i, chain.directory);
  shell_quiet("qemu-img check -q %s", image_of(2, chain.directory));
  shell_quiet("! qemu-img info %s | grep -q backing",
              image_of(2, chain.directory));
  must_verify(chain.directory);
  must_be_clean(chain.directory);
  /* what is based on it stays as it was */
  must_be(3, chain.directory, "log", id_of(2), 1);
  /* the older points are not needed any more */
  shell_quiet("rm -r %s/%s %s/%s", chain.directory, id_of(0), chain.directory,
              id_of(1));
  must_hold(3, chain.directory);
  must_verify(chain.directory);
  chain_end();
}

/* A full's bytes depend on its content alone. */
static void a_merged_full_is_the_file_that_an_export_writes(void **state)
{
  struct small direct;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd....");
  chain_pattern("aB.d..x.");
  chain_pattern("aBC...x.");
  small_begin(&direct, in_top("b"), id_of(2), 3, "xxh3-128", &chain.points[0]);
  small_machine(&direct, VM1, "web1");
  small_disk(&direct, VM1, "vda", "qcow2", chain.length[2], chain.content[2],
             NULL, NULL, 0);
  small_publish(&direct);
  must_merge(2, NULL, NULL);
  shell_quiet("cmp %s %s", image_of(2, chain.directory),
              image_of(2, in_top("b")));
  shell_quiet("cmp %s/%s/" VM1 "/vda.digests %s/%s/" VM1 "/vda.digests",
              chain.directory, id_of(2), in_top("b"), id_of(2));
  small_end(&direct);
  shell_quiet("rm -r %s", in_top("b"));
  chain_end();
}

static void merges_a_chain_into_one_increment(void **state)
{
  json_t *report, *disk;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd....");
  chain_pattern("aB.d..x.");
  chain_pattern("abC...x.");
  chain_pattern("abCe...y");
  assert_int_equal(run_merge_io(IO, spec_of(3, id_of(0), NULL), &report),
                   CAIRN_OK);
  must_be(3, chain.directory, "log", id_of(0), 2);
  disk = json_array_get(json_object_get(report, "disks"), 0);
  assert_string_equal(json_string_value(json_object_get(disk, "action")),
                      "increment");
  assert_int_equal(json_integer_value(json_object_get(disk, "layers")), 3);
  /* b is as it was, x went as it came: C, e and y are all that is written */
  assert_int_equal(json_integer_value(json_object_get(disk, "bytes_written")),
                   3 * BLOCK);
  json_decref(report);
  for (size_t i = 0; i < chain.count; i++)
    must_hold(i, chain.directory);
  must_verify(chain.directory);
  shell_quiet("rm -r %s/%s %s/%s", chain.directory, id_of(1), chain.directory,
              id_of(2));
  must_hold(3, chain.directory);
  must_verify(chain.directory);
  must_be_clean(chain.directory);
  chain_end();
}

/* What was cut off in the middle and grew again reads as zero, and the base
 * still has data there. */
static void keeps_zeros_beyond_the_smallest_size(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcdefgh");
  chain_add(3 * BLOCK - 1000, small_content("abc", 3 * BLOCK - 1000), NULL,
            "xxh3-128");
  {
    /* the cut block keeps its zeros, too; one later block has data */
    unsigned char *grown = small_content("abc..f..", 8 * BLOCK);
    memset(grown + 3 * BLOCK - 1000, 0, 1000);
    chain_add(8 * BLOCK, grown, NULL, "xxh3-128");
  }
  must_merge(2, id_of(0), NULL);
  must_be(2, chain.directory, "log", id_of(0), 2);
  must_hold(2, chain.directory);
  must_verify(chain.directory);
  /* d, e, g and h are explicit zeros of this layer: by QEMU */
  shell_quiet("qemu-img map --output=json %s | python3 -c '\n"
              "import json, sys\n"
              "zero = set()\n"
              "for e in json.load(sys.stdin):\n"
              "  if e[\"zero\"] and e[\"depth\"] == 0:\n"
              "    zero.update(range(e[\"start\"] >> 16, "
              "(e[\"start\"] + e[\"length\"]) >> 16))\n"
              "assert zero == {3, 4, 6, 7}, zero'",
              image_of(2, chain.directory));
  chain_end();
}

static void merges_onto_a_raw_full(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  chain_add(5 * BLOCK - 100, small_content("ab.de", 5 * BLOCK - 100), "raw",
            "blake2b-256");
  chain_add(5 * BLOCK - 100, small_content("aB.de", 5 * BLOCK - 100), NULL,
            "blake2b-256");
  chain_add(6 * BLOCK + 1, small_content("aB..ex.", 6 * BLOCK + 1), NULL,
            "blake2b-256");
  must_merge(2, id_of(0), NULL);
  must_be(2, chain.directory, "log", id_of(0), 2);
  must_hold(2, chain.directory);
  must_verify(chain.directory);
  must_merge(1, "full", NULL);
  must_be(1, chain.directory, "disk", NULL, 2);
  must_hold(1, chain.directory);
  must_verify(chain.directory);
  chain_end();
}

static void leaves_a_point_that_is_so_already(void **state)
{
  json_t *report;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("ab");
  chain_pattern("aB");
  assert_int_equal(run_merge_io(IO, spec_of(0, "full", NULL), &report),
                   CAIRN_OK);
  assert_true(json_is_false(json_object_get(report, "is_changed")));
  json_decref(report);
  assert_int_equal(run_merge_io(IO, spec_of(1, id_of(0), NULL), &report),
                   CAIRN_OK);
  assert_true(json_is_false(json_object_get(report, "is_changed")));
  json_decref(report);
  must_be(0, chain.directory, "disk", NULL, 1);
  must_be(1, chain.directory, "log", id_of(0), 1);
  must_be_clean(chain.directory);
  chain_end();
}

/* Two disks whose bases differ, and a machine with nothing but a file. */
static void build_two_disks(void)
{
  unsigned char *a[3] = {small_content("abc", 3 * BLOCK),
                         small_content("aBc", 3 * BLOCK),
                         small_content("aBC", 3 * BLOCK)};
  chain_begin(in_top("a"));
  for (size_t i = 0; i < 3; i++) {
    struct small *s = &chain.points[i];
    small_begin(s, chain.directory, id_of(i), (int)i + 1, "xxh3-128",
                i ? &chain.points[0] : NULL);
    small_machine(s, VM1, "web1");
    small_machine(s, VM2, "web2");
    small_disk(s, VM1, "vda", "qcow2", 3 * BLOCK, a[i],
               i ? &chain.points[i - 1] : NULL, i ? a[i - 1] : NULL, 3);
    /* vdb is new in the second point */
    if (i == 1)
      small_disk(s, VM1, "vdb", "raw", 2 * BLOCK, a[0], NULL, NULL, 0);
    if (i == 2)
      small_disk(s, VM1, "vdb", "qcow2", 2 * BLOCK, a[1], &chain.points[1],
                 a[0], 2);
    small_file(s, VM2, "guest-state", "vars.fd", "vars", 4, 0600, 5);
    if (i)
      json_object_set_new(s->manifest, "BaseReferencePointGroupId",
                          json_string(id_of(i - 1)));
    small_publish(s);
    chain.content[i] = a[i];
    chain.length[i] = 3 * BLOCK;
    chain.count++;
  }
}

static void merges_what_has_the_base_and_keeps_the_rest(void **state)
{
  json_t *report, *disks, *manifest;
  struct stat before, after;
  char path[700];
  (void)state;
  build_two_disks();
  snprintf(path, sizeof path, "%s/%s/" VM1 "/vdb.qcow2", chain.directory,
           id_of(2));
  assert_int_equal(stat(path, &before), 0);
  assert_int_equal(run_merge_io(IO, spec_of(2, id_of(0), NULL), &report),
                   CAIRN_OK);
  disks = json_object_get(report, "disks");
  assert_string_equal(
      json_string_value(json_object_get(json_array_get(disks, 0), "action")),
      "increment");
  assert_string_equal(
      json_string_value(json_object_get(json_array_get(disks, 1), "action")),
      "kept");
  json_decref(report);
  assert_int_equal(stat(path, &after), 0);
  assert_true(before.st_ino == after.st_ino && after.st_nlink == 1);
  /* the point is still based on the second, through vdb */
  manifest = manifest_of(2, chain.directory);
  assert_string_equal(
      json_string_value(json_object_get(manifest, "BaseReferencePointGroupId")),
      id_of(1));
  json_decref(manifest);
  must_hold(2, chain.directory);
  must_verify(chain.directory);
  must_merge(2, "full", NULL);
  must_be(2, chain.directory, "disk", NULL, 3);
  must_hold(2, chain.directory);
  must_verify(chain.directory);
  chain_end();
}

/* ---- into another directory ---------------------------------------------- */

static void writes_into_another_directory(void **state)
{
  const char *other = in_top("other");
  (void)state;
  build_two_disks();
  must_merge(0, "full", other);
  must_merge(2, id_of(0), other); /* vdb has no base there: it is a full */
  must_be(0, other, "disk", NULL, 2);
  must_be(2, other, "log", id_of(0), 2);
  must_be(2, chain.directory, "log", id_of(1), 1);
  must_hold(0, other);
  must_hold(2, other);
  must_verify(other);
  must_verify(chain.directory);
  must_be_clean(other);
  must_be_clean(chain.directory);
  must_fail(CAIRN_E_EXISTS, "exists already", spec_of(2, "full", other));
  must_fail(CAIRN_E_NOT_FOUND, "holds no reference point",
            spec_of(2, id_of(1), other));
  shell_quiet("rm -r %s", other);
  must_fail(CAIRN_E_NOT_FOUND, "holds no reference point",
            spec_of(2, id_of(0), other));
  assert_int_not_equal(access(other, F_OK), 0); /* it was made for nothing */
  must_fail(CAIRN_E_BAD_PATH, "does not exist",
            spec_of(2, "full", in_top("no/where")));
  must_fail(CAIRN_E_BAD_PATH, "is a reference point",
            spec_of(2, "full", chain.points[1].path));
  chain_end();
}

static void refuses_a_sequence_that_is_taken(void **state)
{
  struct small s;
  unsigned char *content = small_content("z", BLOCK);
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("ab");
  chain_pattern("aB");
  small_begin(&s, in_top("other"), POINT3, 2, "xxh3-128", NULL);
  small_machine(&s, VM1, "web1");
  small_disk(&s, VM1, "vda", "qcow2", BLOCK, content, NULL, NULL, 0);
  small_publish(&s);
  must_fail(CAIRN_E_EXISTS, "sequence", spec_of(1, "full", in_top("other")));
  must_be_clean(in_top("other"));
  small_end(&s);
  free(content);
  shell_quiet("rm -r %s", in_top("other"));
  chain_end();
}

/* The base there has the id and yet another content. */
static void refuses_a_base_that_is_another_there(void **state)
{
  struct small s;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("ab");
  chain_pattern("aB");
  small_begin(&s, in_top("other"), id_of(0), 1, "xxh3-128", &chain.points[0]);
  small_machine(&s, VM1, "web1");
  small_disk(&s, VM1, "vda", "qcow2", 2 * BLOCK, chain.content[1], NULL, NULL,
             0);
  small_publish(&s);
  must_fail(CAIRN_E_EXPORT_CORRUPT, "has another content",
            spec_of(1, id_of(0), in_top("other")));
  small_end(&s);
  shell_quiet("rm -r %s", in_top("other"));
  chain_end();
}

/* ---- bad input ----------------------------------------------------------- */

static json_t *through(size_t point, size_t into, const char *a, const char *b)
{
  json_t *spec = spec_of(point, id_of(into), NULL), *list = json_array();
  if (a)
    json_array_append_new(list, json_string(a));
  if (b)
    json_array_append_new(list, json_string(b));
  json_object_set_new(spec, "through", list);
  return spec;
}

static void refuses_what_makes_no_sense(void **state)
{
  struct cairn_error err;
  json_t *spec;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("ab");
  chain_pattern("aB");
  chain_pattern("AB");
  must_fail(CAIRN_E_INVALID_ARGUMENT, "onto itself",
            spec_of(1, id_of(1), NULL));
  must_fail(CAIRN_E_INVALID_ARGUMENT, "is based on",
            spec_of(1, id_of(2), NULL));
  must_fail(CAIRN_E_INVALID_ARGUMENT, "is based on",
            spec_of(1, id_of(9), NULL));
  must_fail(CAIRN_E_NOT_FOUND, "holds no reference point",
            spec_of(8, "full", NULL));
  must_fail(CAIRN_E_NOT_FOUND, "holds no reference point",
            spec_of(1, "FFFFF", NULL));
  must_fail(CAIRN_E_INVALID_ARGUMENT, "not connected",
            through(2, 0, NULL, NULL));
  must_fail(CAIRN_E_INVALID_ARGUMENT, "not the chain",
            through(2, 0, id_of(7), NULL));
  must_fail(CAIRN_E_INVALID_ARGUMENT, "not the chain",
            through(2, 0, id_of(1), id_of(1)));
  must_fail(CAIRN_E_BAD_PATH, "is a reference point",
            json_pack("{s:s, s:s}", "directory", chain.points[1].path, "point",
                      id_of(1)));
  spec = json_pack("{s:s, s:s, s:[s]}", "directory", "/x", "point", id_of(1),
                   "through", id_of(1));
  assert_int_equal(cairn__kind_merge.check(spec, &err), -1);
  assert_non_null(strstr(err.message, "through"));
  json_decref(spec);
  spec = json_pack("{s:s, s:s, s:[i]}", "directory", "/x", "point", id_of(1),
                   "through", 1);
  assert_int_equal(cairn__kind_merge.check(spec, &err), -1);
  assert_int_equal(err.id, CAIRN_E_WRONG_TYPE);
  json_decref(spec);
  must_be_clean(chain.directory);
  if (run_merge_io(IO, through(2, 0, id_of(1), NULL), NULL) != CAIRN_OK)
    fail_msg("%s", small_err.message);
  must_be(2, chain.directory, "log", id_of(0), 2);
  must_verify(chain.directory);
  chain_end();
}

/* Whatever byte of the middle is wrong: the point stays what it was. */
static void never_uses_damaged_points(void **state)
{
  static const char *const into[] = {"full", "base"};
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd");
  chain_pattern("aBcd");
  chain_pattern("aBCd");
  for (int k = 0; k < 2; k++) {
    const char *image = image_of(1, chain.directory);
    /* the data of B, behind the header */
    small_flip(image, 8ull * (BLOCK + 4000));
    must_fail(CAIRN_E_DIGEST_MISMATCH, "",
              spec_of(2, k ? id_of(0) : into[k], NULL));
    must_be(2, chain.directory, "log", id_of(1), 1);
    must_be_clean(chain.directory);
    small_flip(image, 8ull * (BLOCK + 4000));
    must_verify(chain.directory);
  }
  /* a digest of the base: what changed could not be told */
  {
    char path[700];
    snprintf(path, sizeof path, "%s/%s/" VM1 "/vda.digests", chain.directory,
             id_of(0));
    small_flip(path, 8ull * 4100);
    must_fail(CAIRN_E_EXPORT_CORRUPT, "", spec_of(2, id_of(0), NULL));
    small_flip(path, 8ull * 4100);
  }
  /* a base that is missing */
  shell_quiet("mv %s/%s %s", chain.directory, id_of(0), in_top("away"));
  must_fail(CAIRN_E_EXPORT_CORRUPT, "its base is missing",
            spec_of(2, "full", NULL));
  shell_quiet("mv %s %s/%s", in_top("away"), chain.directory, id_of(0));
  must_verify(chain.directory);
  chain_end();
}

/* ---- file systems that cannot -------------------------------------------- */

static struct cairn_io lame;

static int no_exchange(const struct cairn_io *io, int olddir, const char *old,
                       int newdir, const char *new_, unsigned flags)
{
  if (flags & 2) { /* RENAME_EXCHANGE */
    errno = EINVAL;
    return -1;
  }
  return IO->renameat2(io, olddir, old, newdir, new_, flags);
}

static int no_link(const struct cairn_io *io, int olddir, const char *old,
                   int newdir, const char *new_)
{
  (void)io, (void)olddir, (void)old, (void)newdir, (void)new_;
  errno = EPERM;
  return -1;
}

static void refuses_where_directories_cannot_be_exchanged(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("ab");
  chain_pattern("aB");
  lame = cairn__system_io;
  lame.renameat2 = no_exchange;
  assert_int_equal(run_merge_io(&lame, spec_of(1, "full", NULL), NULL),
                   CAIRN_E_NOT_SUPPORTED);
  assert_non_null(strstr(small_err.message, "merge into another directory"));
  must_be(1, chain.directory, "log", id_of(0), 1);
  must_be_clean(chain.directory);
  /* elsewhere needs no exchange */
  assert_int_equal(
      run_merge_io(&lame, spec_of(1, "full", in_top("other")), NULL), CAIRN_OK);
  must_verify(in_top("other"));
  shell_quiet("rm -r %s", in_top("other"));
  chain_end();
}

static void copies_where_files_have_one_name_only(void **state)
{
  (void)state;
  build_two_disks();
  lame = cairn__system_io;
  lame.linkat = no_link;
  assert_int_equal(run_merge_io(&lame, spec_of(2, id_of(0), NULL), NULL),
                   CAIRN_OK);
  must_hold(2, chain.directory);
  must_verify(chain.directory);
  chain_end();
}

/* ---- depth --------------------------------------------------------------- */

static void merges_a_chain_of(size_t depth)
{
  char pattern[9];
  chain_begin(in_top("a"));
  for (size_t i = 0; i < depth; i++) {
    snprintf(pattern, sizeof pattern, "abcdefgh");
    for (size_t k = 0; k < i && k < 40; k++)
      pattern[(i - k) % 7] =
          (i - k) % 3 == 0 ? '.' : (char)('A' + (i - k) % 25);
    chain_pattern(pattern);
  }
  must_merge(depth - 1, id_of(1), NULL);
  must_be(depth - 1, chain.directory, "log", id_of(1), 2);
  must_hold(depth - 1, chain.directory);
  must_merge(depth / 2, "full", NULL);
  must_hold(depth / 2, chain.directory);
  must_merge(depth - 1, "full", NULL);
  must_hold(depth - 1, chain.directory);
  must_verify(chain.directory);
  chain_end();
}

static void merges_chains_of_40_60_and_200(void **state)
{
  (void)state;
  merges_a_chain_of(40);
  merges_a_chain_of(60);
  merges_a_chain_of(200);
}

static void refuses_a_chain_of_201(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  for (size_t i = 0; i < 201; i++)
    chain_pattern(i % 2 ? "ab" : "aB");
  must_fail(CAIRN_E_EXPORT_CORRUPT, "longer than 200",
            spec_of(200, "full", NULL));
  chain_end();
}

/* ---- faults -------------------------------------------------------------- */

/* One merge under a fault, from a fresh copy of the chain. */
static void fresh(void)
{
  shell_quiet("rm -rf %s/w && cp -a %s %s/w", top, chain.directory, top);
}

static json_t *fault_spec(int kind)
{
  return json_pack("{s:s, s:s, s:s}", "directory", in_top("w"), "point",
                   id_of(2), "into", kind ? id_of(0) : "full");
}

static int generation_now(void)
{
  json_t *manifest = manifest_of(2, in_top("w"));
  int n = (int)json_integer_value(json_object_get(manifest, "generation"));
  json_decref(manifest);
  return n;
}

/* What must hold after any fault: every point is there, whole, as before or
 * merged; the next merge succeeds and leaves nothing behind. */
static void expect_whole(const char *what)
{
  int generation = generation_now();
  if (generation != 1 && generation != 2)
    fail_msg("%s: generation %d", what, generation);
  must_verify(in_top("w"));
  if (run_merge_io(IO, fault_spec(0), NULL) != CAIRN_OK)
    fail_msg("%s: the next merge: %s", what, small_err.message);
  must_verify(in_top("w"));
  must_be_clean(in_top("w"));
}

static uint64_t calls_of(int kind)
{
  struct cairn__fault_io f;
  fresh();
  cairn__fault_io_init(&f, 0, CAIRN__FAULT_NONE, 0);
  if (run_merge_io(&f.io, fault_spec(kind), NULL) != CAIRN_OK)
    fail_msg("%s", small_err.message);
  return f.calls;
}

static void one_fault(uint64_t at, int fault, int errnum, int kind)
{
  struct cairn__fault_io f;
  struct cairn_error why;
  int before = open_descriptors(), id;
  char what[160];
  fresh();
  cairn__fault_io_init(&f, at, fault, errnum);
  id = run_merge_io(&f.io, fault_spec(kind), NULL);
  why = small_err;
  snprintf(what, sizeof what, "fault %d at call %llu (%s)", fault,
           (unsigned long long)at,
           f.has_fired ? (const char *)f.fired_at : "not reached");
  if (open_descriptors() != before)
    fail_msg("%s: descriptors are left open", what);
  if (id == CAIRN_OK ? generation_now() != 2 : generation_now() != 1)
    fail_msg("%s: result %d (%s), generation %d", what, id, why.message,
             generation_now());
  if (id != CAIRN_OK && !f.has_fired)
    fail_msg("%s: %s", what, why.message);
  if (id != CAIRN_OK && fault == CAIRN__FAULT_SHORT)
    fail_msg("%s: a short transfer is no error: %s", what, why.message);
  if (id != CAIRN_OK && fault == CAIRN__FAULT_ENOSPC_ON &&
      id != CAIRN_E_DISK_FULL)
    fail_msg("%s: not reported as a full disk: %s", what, why.message);
  expect_whole(what);
}

static void one_end(uint64_t at, int kind, unsigned *killed)
{
  char what[64];
  int status;
  pid_t child;
  fresh();
  child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    struct cairn__fault_io f;
    cairn__fault_io_init(&f, at, CAIRN__FAULT_KILL, 0);
    _exit(run_merge_io(&f.io, fault_spec(kind), NULL) ? 1 : 0);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  *killed += WEXITSTATUS(status) == 137;
  snprintf(what, sizeof what, "the end of the process at call %llu",
           (unsigned long long)at);
  expect_whole(what);
}

/* Every call with CAIRN_LONG, else as many as a few seconds allow. */
static void is_whole_after_every_fault(void **state)
{
  static const struct {
    int fault, errnum;
  } faults[] = {{CAIRN__FAULT_ERRNO, EIO},
                {CAIRN__FAULT_ENOSPC_ON, ENOSPC},
                {CAIRN__FAULT_SHORT, 0},
                {CAIRN__FAULT_KILL, 0}};
  int is_long = getenv("CAIRN_LONG") != NULL;
  unsigned long seed =
      getenv("CAIRN_SEED") ? strtoul(getenv("CAIRN_SEED"), NULL, 10) : 1;
  unsigned visited = 0, killed = 0;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd");
  chain_pattern("aB.d");
  chain_pattern("aBCd");
  chain_pattern("aBCD");
  for (int kind = 0; kind < 2; kind++) {
    uint64_t calls = calls_of(kind) + 3;
    for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
      double end = seconds_now() + 2;
      uint64_t step = is_long ? 1 : 11, at = 1 + seed % step;
      unsigned here = 0;
      for (; at <= calls; at += step) {
        if (!is_long && here >= 24 / SWEEP_SLOWER && seconds_now() > end)
          break;
        here++;
        if (faults[k].fault == CAIRN__FAULT_KILL)
          one_end(at, kind, &killed);
        else
          one_fault(at, faults[k].fault, faults[k].errnum, kind);
      }
      visited += here;
    }
  }
  printf("# ran %u faults over the calls of a merge, %u ends of the process "
         "(seed %lu)\n",
         visited, killed, seed);
  assert_true(killed > 0);
  chain_end();
}

/* The last calls are those that matter most: all of them, always, where they do
 * not take long. */
static void is_whole_after_every_fault_near_the_exchange(void **state)
{
  unsigned killed = 0;
  uint64_t calls;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd");
  chain_pattern("aB.d");
  chain_pattern("aBCd");
  calls = calls_of(0);
  for (uint64_t at = calls > 60 ? calls - 60 : 1; at <= calls;
       at += SWEEP_SLOWER) {
    one_end(at, 0, &killed);
    one_fault(at, CAIRN__FAULT_ERRNO, EIO, 0);
  }
  assert_true(killed > 50 / SWEEP_SLOWER);
  chain_end();
}

/* ---- the dry run --------------------------------------------------------- */

static void plans_what_it_will_do(void **state)
{
  json_t *spec, *plan, *report, *disk;
  (void)state;
  chain_begin(in_top("a"));
  chain_pattern("abcd....");
  chain_pattern("aB.d..x.");
  chain_pattern("aBC...x.");
  spec = spec_of(2, id_of(0), NULL);
  MUST(cairn__kind_merge.check(spec, &small_err));
  MUST(cairn__kind_merge.plan(IO, spec, &plan, &small_err));
  /* B, C and x */
  assert_int_equal(json_integer_value(json_object_get(plan, "bytes_to_read")),
                   3 * BLOCK);
  assert_true(json_is_true(json_object_get(plan, "has_space")));
  assert_true(json_is_true(json_object_get(plan, "is_changed")));
  must_be(2, chain.directory, "log", id_of(1), 1);
  must_be_clean(chain.directory);
  assert_int_equal(run_merge_io(IO, spec, &report), CAIRN_OK);
  disk = json_array_get(json_object_get(report, "disks"), 0);
  assert_int_equal(json_integer_value(json_object_get(disk, "bytes_written")),
                   3 * BLOCK);
  /* the estimate is an upper one */
  assert_true(json_integer_value(json_object_get(plan, "bytes_to_write")) >=
              json_integer_value(json_object_get(disk, "size")));
  json_decref(report);
  json_decref(plan);
  spec = spec_of(2, "full", in_top("no/where"));
  MUST(cairn__kind_merge.check(spec, &small_err));
  assert_int_equal(cairn__kind_merge.plan(IO, spec, &plan, &small_err), -1);
  json_decref(spec);
  chain_end();
}

/* ---- at random ----------------------------------------------------------- */

static void merged_equals_unmerged(void **state)
{
  const char *seconds = getenv("CAIRN_SECONDS"), *text = getenv("CAIRN_SEED");
  uint64_t seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
  double end = seconds_now() + (seconds ? atof(seconds) : 5);
  unsigned chains = 0, merges = 0;
  (void)state;
  printf("# seed %llu\n", (unsigned long long)seed);
  random_state = seed;
  while (seconds_now() < end || chains < 3) {
    size_t n = 2 + random_below(6);
    chain_begin(in_top("a"));
    for (size_t i = 0; i < n; i++) {
      uint64_t length;
      unsigned char *content = random_next_content(
          chain.count ? chain.count - 1 : SIZE_MAX, &length);
      chain_add(length, content, "qcow2", "xxh3-128");
    }
    for (unsigned k = 0; k < 3; k++) {
      size_t point = 1 + random_below(n - 1);
      size_t base = random_below(point + 1);
      int id = run_merge_io(
          IO, spec_of(point, base == point ? "full" : id_of(base), NULL), NULL);
      /* an earlier merge may have taken the base out of the chain */
      if (id != CAIRN_OK && id != CAIRN_E_INVALID_ARGUMENT)
        fail_msg("seed %llu: %s", (unsigned long long)seed, small_err.message);
      merges += id == CAIRN_OK;
      for (size_t i = 0; i < n; i++)
        must_hold(i, chain.directory);
      must_verify(chain.directory);
    }
    must_be_clean(chain.directory);
    chain_end();
    chains++;
  }
  printf("# ran %u merges in %u chains (seed %llu)\n", merges, chains,
         (unsigned long long)seed);
  assert_true(merges > 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(merges_a_chain_into_a_full),
      cmocka_unit_test(a_merged_full_is_the_file_that_an_export_writes),
      cmocka_unit_test(merges_a_chain_into_one_increment),
      cmocka_unit_test(keeps_zeros_beyond_the_smallest_size),
      cmocka_unit_test(merges_onto_a_raw_full),
      cmocka_unit_test(leaves_a_point_that_is_so_already),
      cmocka_unit_test(merges_what_has_the_base_and_keeps_the_rest),
      cmocka_unit_test(writes_into_another_directory),
      cmocka_unit_test(refuses_a_sequence_that_is_taken),
      cmocka_unit_test(refuses_a_base_that_is_another_there),
      cmocka_unit_test(refuses_what_makes_no_sense),
      cmocka_unit_test(never_uses_damaged_points),
      cmocka_unit_test(refuses_where_directories_cannot_be_exchanged),
      cmocka_unit_test(copies_where_files_have_one_name_only),
      cmocka_unit_test(merges_chains_of_40_60_and_200),
      cmocka_unit_test(refuses_a_chain_of_201),
      cmocka_unit_test(plans_what_it_will_do),
      cmocka_unit_test(is_whole_after_every_fault),
      cmocka_unit_test(is_whole_after_every_fault_near_the_exchange),
      cmocka_unit_test(merged_equals_unmerged),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
