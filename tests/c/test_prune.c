/* The kind "prune": exactly the points that the rules keep are left (by a
 * computation of Python's), each of them whole and with its content (by QEMU),
 * whatever happens on the way. */
#include <sys/wait.h>

#include "small_chain.h"
#include "sweep.h"

static json_t *keep_spec(json_t *keep)
{
  return json_pack("{s:s, s:o}", "directory", chain.directory, "keep", keep);
}

static int run_prune_io(const struct cairn_io *io, json_t *spec,
                        json_t **report)
{
  struct cairn__run *run = new_run(&cairn__kind_prune, io, spec);
  int id;
  cairn__run_here(run);
  small_err = run->error;
  id = run->error.id;
  if (report)
    *report = json_incref(run->report);
  cairn__run_release(run);
  return id;
}

static json_t *must_prune(json_t *keep)
{
  json_t *report;
  if (run_prune_io(IO, keep_spec(keep), &report) != CAIRN_OK)
    fail_msg("prune: %s", small_err.message);
  return report;
}

static json_t *must_plan(json_t *keep)
{
  json_t *spec = keep_spec(keep), *plan;
  MUST(cairn__kind_prune.check(spec, &small_err));
  MUST(cairn__kind_prune.plan(IO, spec, &plan, &small_err));
  json_decref(spec);
  return plan;
}

static int is_there(size_t i)
{
  char path[700];
  snprintf(path, sizeof path, "%s/%s", chain.directory, id_of(i));
  return access(path, F_OK) == 0;
}

/* The points that are there, as digits: "0245". */
static const char *there(void)
{
  static char text[64];
  size_t n = 0;
  for (size_t i = 0; i < chain.count && n < sizeof text - 1; i++)
    if (is_there(i))
      text[n++] = (char)('0' + i);
  text[n] = '\0';
  return text;
}

static void must_all_hold(void)
{
  for (size_t i = 0; i < chain.count; i++)
    if (is_there(i))
      must_hold(i, chain.directory);
  must_verify(chain.directory);
  must_be_clean(chain.directory);
}

static json_t *find(json_t *report, const char *list, size_t point)
{
  size_t i;
  json_t *entry;
  json_array_foreach(json_object_get(report, list), i, entry)
  {
    const char *id =
        json_string_value(json_object_get(entry, "ReferencePointGroupId"));
    if (id && strcmp(id, id_of(point)) == 0)
      return entry;
  }
  return NULL;
}

static size_t size_of(json_t *report, const char *list)
{
  return json_array_size(json_object_get(report, list));
}

static const char *reasons(json_t *report, size_t point)
{
  static char text[400];
  json_t *array = json_object_get(find(report, "kept", point), "reasons"), *r;
  size_t i;
  text[0] = '\0';
  json_array_foreach(array, i, r)
  {
    strcat(text, i ? "," : "");
    strcat(text, json_string_value(r));
  }
  return text;
}

/* One full and increments, a point a day at noon from the 1st of March. */
static void build_days(size_t n)
{
  chain_begin(in_top("a"));
  for (size_t i = 0; i < n; i++) {
    char time[32], pattern[9] = "abcdefgh";
    for (size_t k = 0; k <= i; k++)
      pattern[k % 8] = k % 3 == 2 ? '.' : (char)('A' + k);
    snprintf(time, sizeof time, "202503%02u120000.000000+060",
             (unsigned)(i + 1) % 100);
    chain_add_on(i ? i - 1 : SIZE_MAX, 8 * BLOCK,
                 small_content(pattern, 8 * BLOCK), "qcow2", "xxh3-128", time);
  }
}

/* ---- what it does -------------------------------------------------------- */

static void keeps_the_last_and_merges_past_the_rest(void **state)
{
  json_t *plan, *report;
  (void)state;
  build_days(6);
  plan = must_plan(json_pack("{s:i}", "last", 2));
  assert_string_equal(there(), "012345");
  report = must_prune(json_pack("{s:i}", "last", 2));
  assert_string_equal(there(), "45");
  must_be(4, chain.directory, "disk", NULL, 2);
  must_be(5, chain.directory, "log", id_of(4), 1);
  must_all_hold();
  assert_string_equal(reasons(report, 5), "newest,last");
  assert_string_equal(reasons(report, 4), "last");
  /* the dry run said just that */
  assert_int_equal(size_of(plan, "kept"), 2);
  assert_int_equal(size_of(plan, "merged"), 1);
  assert_int_equal(size_of(plan, "removed"), 4);
  assert_int_equal(size_of(report, "merged"), 1);
  assert_true(json_equal(json_object_get(plan, "kept"),
                         json_object_get(report, "kept")));
  assert_true(json_equal(json_object_get(plan, "removed"),
                         json_object_get(report, "removed")));
  assert_true(json_is_true(json_object_get(plan, "has_space")));
  assert_true(json_integer_value(json_object_get(plan, "bytes_freed")) > 0);
  assert_true(json_integer_value(json_object_get(plan, "bytes_to_write")) >
              8 * (json_int_t)BLOCK);
  /* newest first */
  assert_string_equal(json_string_value(json_object_get(
                          json_array_get(json_object_get(report, "removed"), 0),
                          "ReferencePointGroupId")),
                      id_of(3));
  json_decref(plan);
  json_decref(report);
  /* once more: nothing to do */
  report = must_prune(json_pack("{s:i}", "last", 2));
  assert_int_equal(size_of(report, "removed") + size_of(report, "merged"), 0);
  assert_string_equal(there(), "45");
  json_decref(report);
  chain_end();
}

static void merges_onto_the_nearest_that_stays(void **state)
{
  json_t *report;
  (void)state;
  build_days(7);
  report =
      must_prune(json_pack("{s:[s,s,s]}", "ids", id_of(0), id_of(3), id_of(5)));
  assert_string_equal(there(), "0356");
  must_be(0, chain.directory, "disk", NULL, 1);
  must_be(3, chain.directory, "log", id_of(0), 2);
  must_be(5, chain.directory, "log", id_of(3), 2);
  must_be(6, chain.directory, "log", id_of(5), 1);
  assert_int_equal(size_of(report, "merged"), 2);
  must_all_hold();
  json_decref(report);
  chain_end();
}

/* Two branches from one full, and a full of its own. */
static void merges_every_branch(void **state)
{
  json_t *report;
  (void)state;
  chain_begin(in_top("a"));
  chain_add_on(SIZE_MAX, 4 * BLOCK, small_content("abcd", 4 * BLOCK), "qcow2",
               "xxh3-128", NULL);
  chain_add_on(0, 4 * BLOCK, small_content("aBcd", 4 * BLOCK), "", "xxh3-128",
               NULL);
  chain_add_on(1, 4 * BLOCK, small_content("aBCd", 4 * BLOCK), "", "xxh3-128",
               NULL);
  chain_add_on(1, 4 * BLOCK, small_content("aB.d", 4 * BLOCK), "", "xxh3-128",
               NULL);
  chain_add_on(SIZE_MAX, 4 * BLOCK, small_content("xxxx", 4 * BLOCK), "qcow2",
               "xxh3-128", NULL);
  report = must_prune(json_pack("{s:[s,s]}", "ids", id_of(2), id_of(3)));
  assert_string_equal(there(), "234");
  must_be(2, chain.directory, "disk", NULL, 2);
  must_be(3, chain.directory, "disk", NULL, 2);
  must_all_hold();
  json_decref(report);
  chain_end();
}

static void keeps_days_weeks_months_and_years(void **state)
{
  /* sequence order; local days: the offset is the recorded one */
  static const char *const times[] = {
      "20231231120000.000000+000", /* 0: Sunday, week 2023-52 */
      "20240101120000.000000+000", /* 1: Monday, week 2024-01 */
      "20241229120000.000000+000", /* 2: Sunday, 2024-52 */
      "20241230120000.000000+000", /* 3: Monday, ISO week 2025-01 */
      "20250101003000.000000+060", /* 4: January there, December in UTC */
      "20250105120000.000000+000", /* 5: Sunday of ISO week 2025-01 */
      "20250106060000.000000+000", /* 6 */
      "20250106180000.000000+000"  /* 7 */
  };
  static const struct {
    const char *rule;
    int n;
    const char *left;
  } cases[] = {{"daily", 2, "57"},     {"daily", 3, "457"},
               {"weekly", 2, "57"},    {"weekly", 3, "257"},
               {"weekly", 5, "01257"}, {"monthly", 1, "7"},
               {"monthly", 2, "37"},   {"yearly", 2, "37"},
               {"yearly", 9, "037"},   {"last", 100, "01234567"}};
  (void)state;
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    json_t *report;
    chain_begin(in_top("a"));
    for (size_t i = 0; i < 8; i++)
      chain_add_on(i ? i - 1 : SIZE_MAX, BLOCK,
                   small_content((char[2]){(char)('a' + (char)i), 0}, BLOCK),
                   "qcow2", "xxh3-128", times[i]);
    report = must_prune(json_pack("{s:i}", cases[c].rule, cases[c].n));
    if (strcmp(there(), cases[c].left) != 0)
      fail_msg("%s=%d: %s, not %s", cases[c].rule, cases[c].n, there(),
               cases[c].left);
    must_all_hold();
    json_decref(report);
    chain_end();
  }
}

static void counts_within_from_the_newest(void **state)
{
  json_t *report;
  (void)state;
  build_days(6);
  report = must_prune(json_pack("{s:s}", "within", "1d12h"));
  assert_string_equal(there(), "45");
  assert_string_equal(reasons(report, 4), "within");
  json_decref(report);
  chain_end();
  build_days(6);
  report = must_prune(json_pack("{s:i}", "within", 3 * 86400));
  assert_string_equal(there(), "2345");
  json_decref(report);
  chain_end();
}

/* ---- collections --------------------------------------------------------- */

static void treats_each_collection_by_itself(void **state)
{
  static const char other[] = "6F1D0000-0000-4000-8000-00000000C022";
  json_t *report, *spec;
  (void)state;
  for (int k = 0; k < 2; k++) {
    build_days(2);
    for (size_t i = 2; i < 5; i++) {
      struct small *s = &chain.points[i];
      chain.count++;
      chain.length[i] = BLOCK;
      chain.content[i] = small_content("q", BLOCK);
      small_begin(s, chain.directory, id_of(i), (int)i - 1, "xxh3-128", NULL);
      json_object_set_new(s->manifest, "CollectionId", json_string(other));
      small_machine(s, VM1, "db");
      small_disk(s, VM1, "vda", "qcow2", BLOCK, chain.content[i], NULL, NULL,
                 0);
      small_publish(s);
    }
    spec = keep_spec(json_pack("{s:i}", "last", 1));
    if (k)
      json_object_set_new(
          spec, "collection",
          json_string("{6f1d0000-0000-4000-8000-00000000c022}"));
    assert_int_equal(run_prune_io(IO, spec, &report), CAIRN_OK);
    assert_string_equal(there(), k ? "014" : "14");
    if (k)
      assert_string_equal(reasons(report, 0), "of another collection");
    must_all_hold();
    json_decref(report);
    spec = keep_spec(json_pack("{s:i}", "last", 1));
    json_object_set_new(spec, "collection", json_string(VM1));
    assert_int_equal(run_prune_io(IO, spec, NULL), CAIRN_E_NOT_FOUND);
    chain_end();
  }
}

/* ---- what is refused ----------------------------------------------------- */

static void must_refuse(json_t *spec, int id, const char *what)
{
  struct cairn_error err;
  assert_non_null(spec);
  cairn__error_clear(&err);
  if (cairn__kind_prune.check(spec, &err) == 0 || err.id != id ||
      !strstr(err.message, what))
    fail_msg("wanted %s (%d), got %d: %s", what, id, err.id, err.message);
  json_decref(spec);
}

static void never_runs_without_a_rule(void **state)
{
  (void)state;
  chain_begin(in_top("a"));
  must_refuse(json_pack("{s:s}", "directory", "/x"), CAIRN_E_INVALID_ARGUMENT,
              "\"keep\" is missing");
  must_refuse(keep_spec(json_object()), CAIRN_E_INVALID_ARGUMENT,
              "no rule that keeps anything");
  must_refuse(keep_spec(json_pack("{s:i, s:i, s:[], s:i}", "last", 0, "daily",
                                  0, "ids", "within", 0)),
              CAIRN_E_INVALID_ARGUMENT, "no rule that keeps anything");
  must_refuse(keep_spec(json_pack("{s:i}", "last", -1)), CAIRN_E_WRONG_TYPE,
              "a whole number from 0");
  must_refuse(keep_spec(json_pack("{s:f}", "last", 1.5)), CAIRN_E_WRONG_TYPE,
              "a whole number from 0");
  must_refuse(keep_spec(json_pack("{s:i}", "weakly", 1)), CAIRN_E_UNKNOWN_KEY,
              "weekly");
  must_refuse(keep_spec(json_pack("{s:s}", "within", "3 days")),
              CAIRN_E_WRONG_TYPE, "a duration");
  must_refuse(keep_spec(json_pack("{s:s}", "within", "")), CAIRN_E_WRONG_TYPE,
              "a duration");
  must_refuse(keep_spec(json_pack("{s:i}", "within", -3)), CAIRN_E_WRONG_TYPE,
              "a duration");
  must_refuse(json_pack("{s:s, s:s, s:{s:i}}", "directory", "/x", "collection",
                        "farm", "keep", "last", 1),
              CAIRN_E_INVALID_ARGUMENT, "CollectionId");
}

static void refuses_ids_that_are_not_there(void **state)
{
  (void)state;
  build_days(2);
  assert_int_equal(
      run_prune_io(IO, keep_spec(json_pack("{s:[s]}", "ids", id_of(7))), NULL),
      CAIRN_E_NOT_FOUND);
  assert_non_null(strstr(small_err.message, "no such reference point"));
  assert_string_equal(there(), "01");
  must_be_clean(chain.directory);
  chain_end();
}

static void needs_an_export_directory(void **state)
{
  (void)state;
  build_days(1);
  assert_int_equal(run_prune_io(IO,
                                json_pack("{s:s, s:{s:i}}", "directory",
                                          in_top("none"), "keep", "last", 1),
                                NULL),
                   CAIRN_E_NOT_FOUND);
  assert_int_not_equal(access(in_top("none"), F_OK), 0);
  assert_int_equal(
      run_prune_io(IO,
                   json_pack("{s:s, s:{s:i}}", "directory",
                             chain.points[0].path, "keep", "last", 1),
                   NULL),
      CAIRN_E_NOT_AN_EXPORT);
  chain_end();
}

/* ---- damage -------------------------------------------------------------- */

/* Data of the middle is damaged, which nobody knows before it is read. */
static void keeps_what_a_point_needs_that_cannot_be_merged(void **state)
{
  json_t *report, *refused;
  (void)state;
  build_days(6);
  small_flip(image_of(3, chain.directory), 8ull * (BLOCK + 4000));
  assert_int_equal(
      run_prune_io(IO, keep_spec(json_pack("{s:[s]}", "ids", id_of(1))),
                   &report),
      CAIRN_E_DIGEST_MISMATCH);
  assert_non_null(strstr(small_err.message, "cannot merge"));
  /* 5 is kept and needs 4, which needs 3, and so on down to 1, a full now */
  assert_string_equal(there(), "12345");
  refused = find(report, "refused", 5);
  assert_string_equal(json_string_value(json_object_get(refused, "what")),
                      "cannot merge");
  assert_non_null(find(report, "removed", 0));
  must_be(1, chain.directory, "disk", NULL, 2);
  must_be_clean(chain.directory);
  json_decref(report);
  small_flip(image_of(3, chain.directory), 8ull * (BLOCK + 4000));
  must_all_hold();
  chain_end();
}

static void leaves_damaged_points_and_what_they_name(void **state)
{
  json_t *report;
  char path[700];
  (void)state;
  build_days(6);
  /* a flipped bit in a manifest: its text still names its base */
  snprintf(path, sizeof path, "%s/manifest.json", chain.points[2].path);
  small_flip(path, 8ull * 300);
  report = must_plan(json_pack("{s:i}", "last", 1));
  json_decref(report);
  assert_int_equal(
      run_prune_io(IO, keep_spec(json_pack("{s:i}", "last", 1)), &report),
      CAIRN_OK);
  /* 3, 4 and 5 are based on what cannot be read: they are left as well */
  assert_string_equal(there(), "12345");
  assert_string_equal(reasons(report, 2), "damaged");
  assert_string_equal(reasons(report, 5), "damaged");
  must_be(1, chain.directory, "disk", NULL, 2);
  json_decref(report);
  small_flip(path, 8ull * 300);
  must_all_hold();
  chain_end();
}

/* A file is missing: known without reading content. */
static void makes_nothing_from_what_is_damaged(void **state)
{
  json_t *report;
  (void)state;
  build_days(5);
  shell_quiet("rm %s/" VM1 "/config/web1.xml", chain.points[1].path);
  assert_int_equal(
      run_prune_io(IO, keep_spec(json_pack("{s:i}", "last", 1)), &report),
      CAIRN_E_EXPORT_CORRUPT);
  assert_non_null(find(report, "refused", 4));
  /* 1 is damaged and keeps 0; 4 cannot be merged and keeps 3, which keeps 2 */
  assert_string_equal(there(), "01234");
  json_decref(report);
  for (size_t i = 0; i < 5; i++)
    must_hold(i, chain.directory);
  chain_end();
}

static void leaves_both_copies_of_a_point(void **state)
{
  json_t *report;
  (void)state;
  build_days(4);
  shell_quiet("cp -a %s %s/copy", chain.points[1].path, chain.directory);
  report = must_prune(json_pack("{s:i}", "last", 1));
  assert_string_equal(there(), "13");
  shell_quiet("test -e %s/copy/manifest.json", chain.directory);
  json_decref(report);
  chain_end();
}

/* ---- space and faults ---------------------------------------------------- */

static struct cairn_io full;
static _Atomic int full_after;

static ssize_t full_pwrite(const struct cairn_io *io, int fd, const void *buf,
                           size_t n, off_t offset)
{
  (void)io;
  if (n >= BLOCK) {
    errno = ENOSPC;
    return -1;
  }
  return IO->pwrite(IO, fd, buf, n, offset);
}

static ssize_t full_pwritev(const struct cairn_io *io, int fd,
                            const struct iovec *iov, int count, off_t offset)
{
  (void)io, (void)fd, (void)iov, (void)count, (void)offset;
  full_after++;
  errno = ENOSPC;
  return -1;
}

static void loses_nothing_when_there_is_no_space(void **state)
{
  json_t *report;
  (void)state;
  build_days(6);
  full = cairn__system_io;
  full.pwrite = full_pwrite;
  full.pwritev = full_pwritev;
  assert_int_equal(
      run_prune_io(&full, keep_spec(json_pack("{s:[s]}", "ids", id_of(3))),
                   &report),
      CAIRN_E_DISK_FULL);
  assert_string_equal(there(), "012345");
  /* 3, what kept 2 and 1, and 5, what kept 4 */
  assert_true(size_of(report, "refused") >= 2);
  assert_int_equal(size_of(report, "removed"), 0);
  must_all_hold();
  json_decref(report);
  chain_end();
}

static void fresh(void)
{
  shell_quiet("rm -rf %s/w && cp -a %s %s/w", top, chain.directory, top);
}

static json_t *fault_spec(void)
{
  return json_pack("{s:s, s:{s:[s,s]}}", "directory", in_top("w"), "keep",
                   "ids", id_of(1), id_of(3));
}

/* After any fault: what is there is whole; 1, 3 and 4 are there; and the next
 * prune ends the work. */
static void expect_whole(const char *what)
{
  static const size_t stay[] = {1, 3, 4};
  char path[700];
  must_verify(in_top("w"));
  for (size_t i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", in_top("w"), id_of(stay[i]));
    if (access(path, F_OK) != 0)
      fail_msg("%s: point %zu is gone", what, stay[i]);
  }
  if (run_prune_io(IO, fault_spec(), NULL) != CAIRN_OK)
    fail_msg("%s: the next prune: %s", what, small_err.message);
  must_verify(in_top("w"));
  must_be_clean(in_top("w"));
  snprintf(path, sizeof path, "%s/%s", in_top("w"), id_of(0));
  if (access(path, F_OK) == 0)
    fail_msg("%s: a point that goes is left", what);
}

static void is_whole_after_every_fault(void **state)
{
  static const struct {
    int fault, errnum;
  } faults[] = {{CAIRN__FAULT_ERRNO, EIO},
                {CAIRN__FAULT_ENOSPC_ON, ENOSPC},
                {CAIRN__FAULT_KILL, 0}};
  struct cairn__fault_io f;
  int is_long = getenv("CAIRN_LONG") != NULL;
  unsigned long seed =
      getenv("CAIRN_SEED") ? strtoul(getenv("CAIRN_SEED"), NULL, 10) : 1;
  unsigned visited = 0, killed = 0;
  uint64_t calls;
  (void)state;
  build_days(5);
  fresh();
  cairn__fault_io_init(&f, 0, CAIRN__FAULT_NONE, 0);
  assert_int_equal(run_prune_io(&f.io, fault_spec(), NULL), CAIRN_OK);
  calls = f.calls + 3;
  for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
    double end = seconds_now() + 3;
    uint64_t step = is_long ? 1 : 23, at = 1 + seed % step;
    unsigned here = 0;
    for (; at <= calls; at += step) {
      char what[160];
      int before = open_descriptors();
      if (!is_long && here >= 24 / SWEEP_SLOWER && seconds_now() > end)
        break;
      here++;
      fresh();
      cairn__fault_io_init(&f, at, faults[k].fault, faults[k].errnum);
      if (faults[k].fault == CAIRN__FAULT_KILL) {
        int status;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
          _exit(run_prune_io(&f.io, fault_spec(), NULL) ? 1 : 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        killed += WEXITSTATUS(status) == 137;
      } else {
        (void)run_prune_io(&f.io, fault_spec(), NULL);
      }
      snprintf(what, sizeof what, "fault %d at call %llu (%s)", faults[k].fault,
               (unsigned long long)at,
               f.has_fired ? (const char *)f.fired_at : "?");
      if (open_descriptors() != before)
        fail_msg("%s: descriptors are left open", what);
      expect_whole(what);
    }
    visited += here;
  }
  printf("# ran %u faults over the %llu calls of a prune, %u ends of the "
         "process (seed %lu)\n",
         visited, (unsigned long long)calls, killed, seed);
  assert_true(killed > 0);
  chain_end();
}

/* ---- at random ----------------------------------------------------------- */

/* What the rules keep, worked out by somebody else. */
static const char judge[] =
    "import sys, json, os, datetime\n"
    "top, keep = sys.argv[1], json.loads(sys.argv[2])\n"
    "points = []\n"
    "for name in os.listdir(top):\n"
    "    if not name.startswith('.'):\n"
    "        points.append(json.load(open(f'{top}/{name}/manifest.json')))\n"
    "points.sort(key=lambda p: -p['sequence'])\n"
    "def local(p):\n"
    "    t = p['time']\n"
    "    return datetime.date(int(t[0:4]), int(t[4:6]), int(t[6:8]))\n"
    "kept = {points[0]['ReferencePointGroupId']}\n"
    "kept |= {p['ReferencePointGroupId'] for p in points[:keep.get('last', "
    "0)]}\n"
    "kept |= set(keep.get('ids', []))\n"
    "for p in points:\n"
    "    age = (points[0]['unix_us'] - p['unix_us']) / 1e6\n"
    "    if 'within' in keep and age <= keep['within']:\n"
    "        kept.add(p['ReferencePointGroupId'])\n"
    "periods = {'daily': lambda d: d.toordinal(),\n"
    "           'weekly': lambda d: d.isocalendar()[:2],\n"
    "           'monthly': lambda d: (d.year, d.month),\n"
    "           'yearly': lambda d: d.year}\n"
    "for rule, of in periods.items():\n"
    "    newest = {}\n"
    "    for p in points:\n"
    "        newest.setdefault(of(local(p)), p)\n"
    "    for p in list(newest.values())[:keep.get(rule, 0)]:\n"
    "        kept.add(p['ReferencePointGroupId'])\n"
    "for p in sorted(kept):\n"
    "    print(p)\n";

static json_t *random_keep(void)
{
  static const char *const rules[] = {"last", "daily", "weekly", "monthly",
                                      "yearly"};
  json_t *keep = json_object();
  for (size_t i = 0; i < 5; i++)
    if (random_below(3) == 0)
      json_object_set_new(keep, rules[i],
                          json_integer((json_int_t)random_below(4) + 1));
  if (random_below(4) == 0)
    json_object_set_new(keep, "within",
                        json_integer((json_int_t)random_below(20) * 43200 + 1));
  if (json_object_size(keep) == 0 || random_below(4) == 0) {
    size_t i = random_below(chain.count);
    while (!is_there(i))
      i = (i + 1) % chain.count;
    json_object_set_new(keep, "ids", json_pack("[s]", id_of(i)));
  }
  return keep;
}

static void random_points(void)
{
  size_t n = 3 + random_below(8);
  int64_t now = 1735689600 + (int64_t)random_below(86400 * 400);
  chain_begin(in_top("a"));
  for (size_t i = 0; i < n; i++) {
    static const int offsets[] = {0, 60, -300, 330};
    int offset = offsets[random_below(4)];
    size_t base =
        i && random_below(5) ? i - 1 - random_below(i < 3 ? i : 3) : SIZE_MAX;
    char time_text[CAIRN_DATETIME_SIZE];
    struct cairn_datetime t;
    uint64_t length;
    unsigned char *content = random_next_content(base, &length);
    now += (int64_t)random_below(random_below(3) ? 86400 : 86400 * 40);
    t = cairn__datetime_from_unix(now * 1000000, offset);
    cairn_datetime_format(&t, time_text);
    chain_add_on(base, length, content, "qcow2", "xxh3-128", time_text);
  }
}

static void leaves_exactly_what_python_keeps(void **state)
{
  const char *seconds = getenv("CAIRN_SECONDS"), *text = getenv("CAIRN_SEED");
  uint64_t seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
  double end = seconds_now() + (seconds ? atof(seconds) : 6);
  unsigned prunes = 0, merges = 0, removals = 0;
  FILE *f;
  (void)state;
  printf("# seed %llu\n", (unsigned long long)seed);
  random_state = seed;
  while (seconds_now() < end || prunes < 5) {
    random_points();
    f = fopen(in_top("judge.py"), "w");
    assert_non_null(f);
    fputs(judge, f);
    fclose(f);
    for (int k = 0; k < 2; k++) {
      json_t *keep = random_keep(), *report;
      char *shown = json_dumps(keep, JSON_COMPACT);
      shell_quiet("python3 %s %s '%s' > %s", in_top("judge.py"),
                  chain.directory, shown, in_top("wanted"));
      if (run_prune_io(IO, keep_spec(keep), &report) != CAIRN_OK)
        fail_msg("seed %llu: %s: %s", (unsigned long long)seed, shown,
                 small_err.message);
      merges += (unsigned)size_of(report, "merged");
      removals += (unsigned)size_of(report, "removed");
      json_decref(report);
      shell_quiet(
          "LC_ALL=C ls %s | cmp - %s || { echo 'keep %s, seed %llu'; ls %s; "
          "cat %s; exit 1; } >&2",
          chain.directory, in_top("wanted"), shown, (unsigned long long)seed,
          chain.directory, in_top("wanted"));
      free(shown);
      must_all_hold();
      prunes++;
    }
    chain_end();
  }
  printf("# ran %u prunes with %u merges and %u removals (seed %llu)\n", prunes,
         merges, removals, (unsigned long long)seed);
  assert_true(merges > 0 && removals > 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(keeps_the_last_and_merges_past_the_rest),
      cmocka_unit_test(merges_onto_the_nearest_that_stays),
      cmocka_unit_test(merges_every_branch),
      cmocka_unit_test(keeps_days_weeks_months_and_years),
      cmocka_unit_test(counts_within_from_the_newest),
      cmocka_unit_test(treats_each_collection_by_itself),
      cmocka_unit_test(never_runs_without_a_rule),
      cmocka_unit_test(refuses_ids_that_are_not_there),
      cmocka_unit_test(needs_an_export_directory),
      cmocka_unit_test(keeps_what_a_point_needs_that_cannot_be_merged),
      cmocka_unit_test(leaves_damaged_points_and_what_they_name),
      cmocka_unit_test(makes_nothing_from_what_is_damaged),
      cmocka_unit_test(leaves_both_copies_of_a_point),
      cmocka_unit_test(loses_nothing_when_there_is_no_space),
      cmocka_unit_test(is_whole_after_every_fault),
      cmocka_unit_test(leaves_exactly_what_python_keeps),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
