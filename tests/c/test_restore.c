/* restore: what comes out is judged by cmp and qemu-img, never by our own
 * reader; what cannot be proved, or would harm something, is not written. */
#include "small_export.h"
#include "sweep.h"

#include <sys/file.h>
#include <sys/wait.h>

static struct small full, middle, top;
static unsigned char *c1, *c2, *c3, *raw1, *raw2;

#define LENGTH1 (4 * BLOCK)
#define LENGTH2 (6 * BLOCK + 512)
#define LENGTH3 (3 * BLOCK + 100)
#define RAW     (3 * BLOCK + 77)

/* A chain of three: grown with zeros over data, then shrunk; its second disk
 * stands on a raw full. */
static int setup(void **state)
{
  if (scratch_make(state) != 0)
    return -1;
  c1 = small_content("ab.c...", LENGTH1);
  c2 = small_content("a..d.e.", LENGTH2);
  c3 = small_content("zf.d...", LENGTH3);
  raw1 = small_content("p.qr", RAW);
  raw2 = small_content("psq.", RAW);
  small_begin(&full, in_scratch("out"), POINT1, 1, "xxh3-128", NULL);
  small_machine(&full, VM1, "web1");
  small_machine(&full, VM2, "db");
  small_disk(&full, VM1, "vda", "qcow2", LENGTH1, c1, NULL, NULL, 0);
  small_disk(&full, VM2, "vdb", "raw", RAW, raw1, NULL, NULL, 0);
  small_file(&full, VM1, "config", "web 1\n\xc3\xa9.xml", "<domain/>", 9, 0640,
             1700000000123456789);
  small_file(&full, VM1, "runtime", "save", c1, 100001, 04755, -1);
  small_publish(&full);
  small_begin(&middle, in_scratch("out"), POINT2, 2, "xxh3-128", &full);
  small_machine(&middle, VM1, "web1");
  small_machine(&middle, VM2, "db");
  small_disk(&middle, VM1, "vda", "qcow2", LENGTH2, c2, &full, c1, 4);
  small_disk(&middle, VM2, "vdb", "qcow2", RAW, raw2, &full, raw1, 4);
  small_publish(&middle);
  small_begin(&top, in_scratch("out"), POINT3, 3, "xxh3-128", &middle);
  small_machine(&top, VM1, "web1");
  small_disk(&top, VM1, "vda", "qcow2", LENGTH3, c3, &middle, c2, 4);
  small_publish(&top);
  return 0;
}

static int teardown(void **state)
{
  small_end(&full);
  small_end(&middle);
  small_end(&top);
  free(c1);
  free(c2);
  free(c3);
  free(raw1);
  free(raw2);
  return scratch_remove(state);
}

static json_t *spec_of(const char *point, const char *to)
{
  return json_pack("{s:s, s:s, s:s}", "directory", in_scratch("out"), "point",
                   point, "to", to);
}

static struct cairn__run *restore(json_t *spec)
{
  return small_run(&cairn__kind_restore, spec);
}

static struct cairn__run *must_restore(json_t *spec)
{
  struct cairn__run *run = restore(spec);
  if (run->error.id != CAIRN_OK)
    fail_msg("%s", run->error.message);
  assert_true(run->bytes_done == run->bytes_total);
  return run;
}

static void must_fail(json_t *spec, int id, const char *words)
{
  struct cairn__run *run = restore(spec);
  if (run->error.id != id || !strstr(run->error.message, words))
    fail_msg("wanted \"%s\", got %d \"%s\"", words, run->error.id,
             run->error.message);
  cairn__run_release(run);
}

/* What must come out, as a plain file. */
static const char *expected(const char *name, const unsigned char *content,
                            size_t length)
{
  const char *path = in_scratch("%s", name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  assert_int_equal(fwrite(content, 1, length, f), length);
  fclose(f);
  return path;
}

static size_t files_in(const char *path)
{
  char command[1200], line[32];
  snprintf(command, sizeof command, "find '%s' 2>/dev/null | wc -l", path);
  FILE *f = popen(command, "r");
  assert_non_null(fgets(line, sizeof line, f));
  pclose(f);
  return (size_t)atol(line);
}

/* ---- what comes out ---------------------------------------------------- */

static void restores_any_point_of_a_chain_to_raw(void **state)
{
  (void)state;
  cairn__run_release(must_restore(spec_of(POINT1, in_scratch("r1"))));
  cairn__run_release(must_restore(spec_of(POINT2, in_scratch("r2"))));
  cairn__run_release(must_restore(spec_of(POINT3, in_scratch("r3"))));
  small_shell("cmp %s %s/r1/" VM1 "/vda.raw", expected("e1", c1, LENGTH1),
              scratch);
  small_shell("cmp %s %s/r2/" VM1 "/vda.raw", expected("e2", c2, LENGTH2),
              scratch);
  small_shell("cmp %s %s/r3/" VM1 "/vda.raw", expected("e3", c3, LENGTH3),
              scratch);
  small_shell("cmp %s %s/r1/" VM2 "/vdb.raw", expected("f1", raw1, RAW),
              scratch);
  small_shell("cmp %s %s/r2/" VM2 "/vdb.raw", expected("f2", raw2, RAW),
              scratch);
}

static void restores_to_qcow2(void **state)
{
  (void)state;
  static const char *const points[] = {POINT1, POINT2, POINT3};
  const unsigned char *contents[] = {c1, c2, c3};
  static const size_t lengths[] = {LENGTH1, LENGTH2, LENGTH3};
  for (int i = 0; i < 3; i++) {
    json_t *spec = spec_of(points[i], in_scratch("q%d", i));
    json_object_set_new(spec, "format", json_string("qcow2"));
    cairn__run_release(must_restore(spec));
    const char *raw = expected("e", contents[i], lengths[i]);
    small_shell("truncate -s %%512 %s", raw);
    small_shell("qemu-img check -q %s/q%d/" VM1 "/vda.qcow2 && "
                "qemu-img compare -q -f qcow2 -F raw %s/q%d/" VM1
                "/vda.qcow2 %s && qemu-img info --output=json %s/q%d/" VM1
                "/vda.qcow2 | grep -q '\"virtual-size\": %zu'",
                scratch, i, scratch, i, raw, scratch, i,
                (lengths[i] + 511) / 512 * 512);
  }
}

static void agrees_with_qemu_about_the_chain(void **state)
{
  (void)state;
  small_shell("qemu-img check -q %s/" VM1 "/vda.qcow2 && "
              "qemu-img convert -O raw %s/" VM1 "/vda.qcow2 %s/top.raw && "
              "qemu-img convert -O raw %s/" VM2 "/vdb.qcow2 %s/other.raw",
              top.path, top.path, scratch, middle.path, scratch);
  cairn__run_release(must_restore(spec_of(POINT3, in_scratch("r3"))));
  cairn__run_release(must_restore(spec_of(POINT2, in_scratch("r2"))));
  small_shell("truncate -s %%512 %s/r3/" VM1 "/vda.raw %s/r2/" VM2
              "/vdb.raw && cmp %s/top.raw %s/r3/" VM1 "/vda.raw && "
              "cmp %s/other.raw %s/r2/" VM2 "/vdb.raw",
              scratch, scratch, scratch, scratch, scratch, scratch);
}

static void restores_odd_lengths_exactly(void **state)
{
  (void)state;
  static const uint64_t lengths[] = {0, 1, 511, 512, BLOCK - 1, BLOCK + 1};
  struct small s;
  char id[16];
  small_begin(&s, in_scratch("odd"), POINT1, 1, "xxh3-128", NULL);
  small_machine(&s, VM1, "web1");
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    unsigned char *c = small_content("tu", lengths[i]);
    snprintf(id, sizeof id, "d%zu", i);
    small_disk(&s, VM1, id, i % 2 ? "raw" : "qcow2", lengths[i], c, NULL, NULL,
               0);
    snprintf(id, sizeof id, "odd%zu", i);
    expected(id, c, lengths[i]);
    free(c);
  }
  small_publish(&s);
  small_end(&s);
  json_t *spec = spec_of(POINT1, in_scratch("r"));
  json_object_set_new(spec, "directory", json_string(in_scratch("odd")));
  cairn__run_release(must_restore(spec));
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
    small_shell("cmp %s/odd%zu %s/r/" VM1 "/d%zu.raw", scratch, i, scratch, i);
}

static void restores_files_with_mode_and_time(void **state)
{
  (void)state;
  struct stat st;
  cairn__run_release(
      must_restore(spec_of(POINT1, in_scratch("a b\n\xc3\xa9"))));
  const char *path =
      in_scratch("a b\n\xc3\xa9/" VM1 "/config/web 1\n\xc3\xa9.xml");
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(st.st_mode & 07777, 0640);
  assert_int_equal(st.st_mtim.tv_sec, 1700000000);
  assert_int_equal(st.st_mtim.tv_nsec, 123456789);
  assert_int_equal(st.st_size, 9);
  path = in_scratch("a b\n\xc3\xa9/" VM1 "/runtime/save");
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(st.st_mode & 07777, 0755); /* no set-id bits */
  assert_int_equal(st.st_mtim.tv_sec, -1);
  assert_int_equal(st.st_mtim.tv_nsec, 999999999);
  small_shell("cmp '%s' %s", path, expected("e", c1, 100001));
  assert_int_equal(stat(in_scratch("a b\n\xc3\xa9/" VM1 "/vda.raw"), &st), 0);
  assert_int_equal(st.st_mode & 07777, 0600);
  assert_true(st.st_blocks * 512 < (blkcnt_t)LENGTH1); /* sparse */
}

/* ---- which files ------------------------------------------------------- */

static void restores_only_what_is_asked_for(void **state)
{
  (void)state;
  json_t *spec = spec_of(POINT1, in_scratch("m"));
  json_object_set_new(spec, "machine", json_string("db"));
  struct cairn__run *run = must_restore(spec);
  assert_int_equal(json_array_size(json_object_get(run->report, "files")), 1);
  cairn__run_release(run);
  assert_int_equal(files_in(in_scratch("m")), 3);
  spec = spec_of("a000", in_scratch("d"));
  json_object_set_new(spec, "point", json_string(POINT1));
  json_object_set_new(spec, "machine",
                      json_string("{0c5a0000-0000-4000-8000-000000000001}"));
  json_object_set_new(spec, "disk", json_string("vda"));
  cairn__run_release(must_restore(spec));
  assert_int_equal(files_in(in_scratch("d")), 3);
  assert_int_equal(access(in_scratch("d/" VM1 "/vda.raw"), F_OK), 0);
}

static void names_what_exists_when_nothing_fits(void **state)
{
  (void)state;
  json_t *spec = spec_of(POINT1, in_scratch("x"));
  json_object_set_new(spec, "machine", json_string("mail"));
  must_fail(spec, CAIRN_E_NOT_FOUND, VM2 " (db)");
  spec = spec_of(POINT1, in_scratch("x"));
  json_object_set_new(spec, "disk", json_string("vdz"));
  must_fail(spec, CAIRN_E_NOT_FOUND, VM2 "/vdb");
  must_fail(spec_of("beef", in_scratch("x")), CAIRN_E_NOT_FOUND, POINT2);
  must_fail(spec_of("A000", in_scratch("x")), CAIRN_E_AMBIGUOUS,
            "more than one");
  assert_int_equal(access(in_scratch("x"), F_OK), -1);
}

static void takes_the_directory_of_a_point(void **state)
{
  (void)state;
  json_t *spec = spec_of(POINT3, in_scratch("r"));
  json_object_del(spec, "point");
  must_fail(spec, CAIRN_E_INVALID_ARGUMENT, "no reference point");
  spec = json_pack("{s:s, s:s}", "directory", top.path, "to", in_scratch("r"));
  cairn__run_release(must_restore(spec));
  small_shell("cmp %s %s/r/" VM1 "/vda.raw", expected("e3", c3, LENGTH3),
              scratch);
}

static void restores_from_renamed_points(void **state)
{
  (void)state;
  assert_int_equal(rename(full.path, in_scratch("out/monday")), 0);
  assert_int_equal(rename(top.path, in_scratch("out/latest")), 0);
  cairn__run_release(must_restore(spec_of("latest", in_scratch("r"))));
  small_shell("cmp %s %s/r/" VM1 "/vda.raw", expected("e3", c3, LENGTH3),
              scratch);
}

/* ---- what is in the way ------------------------------------------------ */

static void never_touches_an_existing_file(void **state)
{
  (void)state;
  const char *to = in_scratch("r");
  small_shell("mkdir -p %s/" VM1 "/config; echo mine > %s/" VM1 "/vda.raw", to,
              to);
  must_fail(spec_of(POINT1, to), CAIRN_E_EXISTS, "vda.raw exists already");
  assert_int_equal(files_in(to), 4);
  small_shell("grep -q mine %s/" VM1 "/vda.raw", to);
  /* a file that is in nobody's way */
  small_shell("mv %s/" VM1 "/vda.raw %s/" VM1 "/mine", to, to);
  cairn__run_release(must_restore(spec_of(POINT1, to)));
  small_shell("grep -q mine %s/" VM1 "/mine", to);
  /* now everything is there */
  json_t *spec = spec_of(POINT2, to);
  json_object_set_new(spec, "overwrite", json_true());
  cairn__run_release(must_restore(spec));
  small_shell("cmp %s %s/" VM1 "/vda.raw && test -z \"$(find %s -name "
              "'.cairn*')\"",
              expected("e2", c2, LENGTH2), to, to);
}

static void replaces_a_link_and_not_what_it_names(void **state)
{
  (void)state;
  const char *to = in_scratch("r");
  small_shell("mkdir -p %s/" VM1 "; echo mine > %s/mine; ln -s %s/mine %s/" VM1
              "/vda.raw",
              to, scratch, scratch, to);
  must_fail(spec_of(POINT1, to), CAIRN_E_EXISTS, "exists already");
  json_t *spec = spec_of(POINT1, to);
  json_object_set_new(spec, "overwrite", json_true());
  cairn__run_release(must_restore(spec));
  small_shell("grep -q mine %s/mine && test ! -h %s/" VM1 "/vda.raw", scratch,
              to);
}

static void refuses_a_target_inside_the_export(void **state)
{
  (void)state;
  size_t before = files_in(in_scratch("out"));
  must_fail(spec_of(POINT1, in_scratch("out")), CAIRN_E_BAD_PATH, "inside");
  must_fail(spec_of(POINT1, in_scratch("out/new/deep")), CAIRN_E_BAD_PATH,
            "inside");
  must_fail(spec_of(POINT1, full.path), CAIRN_E_BAD_PATH, "inside");
  must_fail(spec_of(POINT1, in_scratch("x/../out/r")), CAIRN_E_NOT_FOUND, "x");
  small_shell("ln -s %s/out %s/alias", scratch, scratch);
  must_fail(spec_of(POINT1, in_scratch("alias/r")), CAIRN_E_BAD_PATH, "inside");
  must_fail(spec_of(POINT1, in_scratch("out/../out/r")), CAIRN_E_BAD_PATH,
            "inside");
  json_t *spec = json_pack("{s:s, s:s}", "directory", full.path, "to",
                           in_scratch("out/%s/r", POINT1));
  must_fail(spec, CAIRN_E_BAD_PATH, "inside");
  assert_int_equal(files_in(in_scratch("out")), before);
}

static void refuses_links_below_the_target(void **state)
{
  (void)state;
  small_shell("mkdir %s/r %s/away; ln -s %s/away %s/r/" VM1, scratch, scratch,
              scratch, scratch);
  must_fail(spec_of(POINT1, in_scratch("r")), CAIRN_E_BAD_PATH, VM1);
  assert_int_equal(files_in(in_scratch("away")), 1);
  small_shell("rm %s/r/" VM1 "; mkdir -p %s/r/" VM1 "/vda.raw", scratch,
              scratch);
  must_fail(spec_of(POINT1, in_scratch("r")), CAIRN_E_BAD_PATH, "vda.raw");
}

/* ---- what cannot be trusted -------------------------------------------- */

static void proves_what_it_writes(void **state)
{
  (void)state;
  /* machine, disk and place of one flipped bit; other files are complete */
  small_flip(in_scratch("out/%s/%s/vda.qcow2", POINT1, VM1),
             8 * (2 * BLOCK + 7));
  struct cairn__run *run = restore(spec_of(POINT1, in_scratch("r")));
  assert_int_equal(run->error.id, CAIRN_E_DIGEST_MISMATCH);
  assert_string_equal(run->error.machine, VM1);
  assert_string_equal(run->error.disk, "vda");
  assert_int_equal(run->error.offset, BLOCK);
  cairn__run_release(run);
  assert_int_equal(files_in(in_scratch("r")), 0);
  /* through the chain: that block is zero in the middle, so it does not
   * matter there */
  cairn__run_release(must_restore(spec_of(POINT2, in_scratch("r"))));
}

static void lists_what_was_completed_before_a_failure(void **state)
{
  (void)state;
  small_flip(in_scratch("out/%s/%s/vdb.raw", POINT1, VM2), 0);
  struct cairn__run *run = restore(spec_of(POINT1, in_scratch("r")));
  assert_int_equal(run->error.id, CAIRN_E_DIGEST_MISMATCH);
  json_t *files = json_object_get(run->report, "files");
  assert_int_equal(json_array_size(files), 1);
  assert_string_equal(
      json_string_value(json_object_get(json_array_get(files, 0), "path")),
      in_scratch("r/" VM1 "/vda.raw"));
  /* and what was not: the one that failed, then those after it */
  files = json_object_get(run->report, "not_written");
  assert_int_equal(json_array_size(files), 3);
  assert_string_equal(json_string_value(json_array_get(files, 0)),
                      in_scratch("r/" VM2 "/vdb.raw"));
  assert_string_equal(json_string_value(json_array_get(files, 2)),
                      in_scratch("r/" VM1 "/runtime/save"));
  cairn__run_release(run);
  small_shell("cmp %s %s/r/" VM1 "/vda.raw", expected("e1", c1, LENGTH1),
              scratch);
  assert_int_equal(files_in(in_scratch("r")), 3);
  run = must_restore(spec_of(POINT3, in_scratch("r2")));
  files = json_object_get(run->report, "not_written");
  assert_true(json_is_array(files) && json_array_size(files) == 0);
  cairn__run_release(run);
}

/* ---- what a killed restore leaves --------------------------------------- */

/* Runs a restore in a process that dies in the middle of writing; the name of
 * the temporary file that it leaves. */
static void die_while_restoring(const char *to, char *left, size_t size)
{
  for (uint64_t at = 1;; at++) {
    pid_t pid = fork();
    int status;
    assert_true(pid >= 0);
    if (pid == 0) {
      struct cairn__fault_io fault;
      struct cairn__run *run = cairn__run_new(NULL);
      cairn__fault_io_init(&fault, at, CAIRN__FAULT_KILL, 0);
      run->io = &fault.io;
      run->spec = spec_of(POINT1, to);
      json_object_set_new(run->spec, "format", json_string("raw"));
      run->main = cairn__kind_restore.main;
      cairn__run_here(run);
      _exit(1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(WEXITSTATUS(status), 137);
    char command[1200];
    snprintf(command, sizeof command,
             "find '%s' -name '.cairn*' -printf '%%p' 2>/dev/null", to);
    FILE *f = popen(command, "r");
    int found = fgets(left, (int)size, f) != NULL;
    pclose(f);
    if (found)
      return;
    small_shell("rm -rf '%s'", to);
  }
}

static void removes_what_a_killed_restore_left(void **state)
{
  char left[700], where[512];
  (void)state;
  snprintf(where, sizeof where, "%s", in_scratch("r"));
  die_while_restoring(where, left, sizeof left);
  /* these are nobody's */
  small_shell("touch %s/" VM1 "/.cairn-restore-mine.partial %s/" VM1
              "/.cairn-restore-0123456789abcdef-0.partial.bak; mkdir %s/" VM1
              "/config",
              where, where, where);
  /* somebody else is restoring there: nothing is touched */
  int other = open(in_scratch("r/" VM1), O_RDONLY | O_DIRECTORY);
  assert_int_equal(flock(other, LOCK_SH), 0);
  json_t *spec = spec_of(POINT3, where);
  cairn__run_release(must_restore(spec));
  assert_int_equal(access(left, F_OK), 0);
  close(other);

  spec = spec_of(POINT1, where);
  json_object_set_new(spec, "overwrite", json_true());
  struct cairn__run *run = must_restore(spec);
  assert_null(run->warnings);
  cairn__run_release(run);
  assert_int_equal(access(left, F_OK), -1);
  small_shell("test -e %s/" VM1
              "/.cairn-restore-mine.partial && test -e %s/" VM1
              "/.cairn-restore-0123456789abcdef-0.partial.bak",
              where, where);
  small_shell("cmp %s %s/" VM1 "/vda.raw", expected("e1", c1, LENGTH1), where);

  /* what cannot be removed is named */
  small_shell("mkdir %s/" VM1 "/.cairn-restore-0123456789abcdef-7.partial",
              where);
  spec = spec_of(POINT3, where);
  json_object_set_new(spec, "overwrite", json_true());
  run = must_restore(spec);
  const char *warning = json_string_value(json_array_get(run->warnings, 0));
  assert_non_null(warning);
  assert_non_null(strstr(warning, "/.cairn-restore-0123456789abcdef-7.partial "
                                  "was left by a restore"));
  cairn__run_release(run);
}

static void finds_a_directory_in_the_way_first(void **state)
{
  (void)state;
  /* of the last file: the others come first */
  small_shell("mkdir -p %s/r/" VM1 "/runtime/save", scratch);
  json_t *spec = spec_of(POINT1, in_scratch("r"));
  json_object_set_new(spec, "overwrite", json_true());
  size_t before = files_in(in_scratch("r"));
  must_fail(spec, CAIRN_E_BAD_PATH, "/runtime/save: Is a directory");
  assert_int_equal(files_in(in_scratch("r")), before);
}

static void names_whole_paths(void **state)
{
  static const char *const calls[] = {"pwritev", "pread", "fsync", "ftruncate"};
  struct cairn__fault_io fault;
  (void)state;
  for (uint64_t at = 1;; at++) {
    struct cairn__run *run = cairn__run_new(NULL);
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_ERRNO, EIO);
    run->io = &fault.io;
    run->spec = spec_of(POINT1, in_scratch("r"));
    json_object_set_new(run->spec, "format", json_string("raw"));
    run->main = cairn__kind_restore.main;
    cairn__run_here(run);
    int is_one = 0;
    for (size_t i = 0; fault.has_fired && i < 4; i++)
      is_one |= strcmp(fault.fired_at, calls[i]) == 0;
    if (is_one && run->error.id == CAIRN_E_IO_ERROR &&
        !strstr(run->error.message, scratch))
      fail_msg("call %llu (%s): %s", (unsigned long long)at, fault.fired_at,
               run->error.message);
    cairn__run_release(run);
    small_shell("rm -rf %s/r", scratch);
    if (!fault.has_fired)
      break;
  }
}

static void proves_plain_files_too(void **state)
{
  (void)state;
  small_flip(in_scratch("out/%s/%s/runtime/save", POINT1, VM1), 8 * 70000);
  json_t *spec = spec_of(POINT1, in_scratch("r"));
  json_object_set_new(spec, "machine", json_string("web1"));
  must_fail(spec, CAIRN_E_DIGEST_MISMATCH, "runtime/save");
  assert_int_equal(access(in_scratch("r/" VM1 "/runtime"), F_OK), -1);
}

static void refuses_a_damaged_manifest_map_or_secret(void **state)
{
  (void)state;
  static const char *const names[] = {"manifest.json", VM1 "/vda.digests",
                                      "chain.secret"};
  for (int i = 0; i < 3; i++) {
    const char *path = in_scratch("out/%s/%s", POINT1, names[i]);
    small_flip(path, i == 1 ? 8 * 4100 : 999);
    must_fail(spec_of(POINT1, in_scratch("r")), CAIRN_E_EXPORT_CORRUPT,
              i == 1 ? "vda.digests" : names[i]);
    small_flip(path, i == 1 ? 8 * 4100 : 999);
    assert_int_equal(access(in_scratch("r"), F_OK), -1);
  }
}

static void refuses_links_in_the_point(void **state)
{
  (void)state;
  small_shell("cp -r %s/" VM1 " %s/copy && rm -r %s/" VM1 " && ln -s %s/copy "
              "%s/" VM1,
              full.path, scratch, full.path, scratch, full.path);
  must_fail(spec_of(POINT1, in_scratch("r")), CAIRN_E_EXPORT_CORRUPT,
            "symbolic link");
  small_shell("rm %s/" VM1 " && cp -r %s/copy %s/" VM1 " && rm %s/" VM1
              "/vda.qcow2 && ln -s %s/copy/vda.qcow2 %s/" VM1 "/vda.qcow2",
              full.path, scratch, full.path, full.path, scratch, full.path);
  must_fail(spec_of(POINT1, in_scratch("r")), CAIRN_E_EXPORT_CORRUPT,
            "symbolic link");
}

static void refuses_another_backing_file(void **state)
{
  (void)state;
  small_shell("cp %s/" VM1 "/vda.qcow2 %s/evil.qcow2 && "
              "qemu-img rebase -u -F qcow2 -b %s/evil.qcow2 %s/" VM1
              "/vda.qcow2",
              full.path, scratch, scratch, top.path);
  must_fail(spec_of(POINT3, in_scratch("r")), CAIRN_E_EXPORT_CORRUPT,
            "names the backing file");
}

static void refuses_a_chain_without_its_base(void **state)
{
  (void)state;
  assert_int_equal(rename(full.path, in_scratch("gone")), 0);
  must_fail(spec_of(POINT3, in_scratch("r")), CAIRN_E_EXPORT_CORRUPT,
            "base is missing");
  assert_int_equal(access(in_scratch("r"), F_OK), -1);
}

/* ---- ends and faults --------------------------------------------------- */

static void ends_when_asked(void **state)
{
  (void)state;
  struct cairn__run *run = cairn__run_new(NULL);
  run->spec = spec_of(POINT1, in_scratch("r"));
  run->main = cairn__kind_restore.main;
  MUST(cairn__kind_restore.check(run->spec, &small_err));
  cairn__run_request(run, CAIRN__RUN_TERMINATE);
  cairn__run_here(run);
  assert_int_equal(run->error.id, CAIRN_E_TERMINATED);
  cairn__run_release(run);
  assert_int_equal(access(in_scratch("r"), F_OK), -1);
}

static void checks_its_specification(void **state)
{
  (void)state;
  static const struct {
    const char *json;
    int id;
    const char *words;
  } cases[] = {
      {"{\"directory\":\"/x\"}", CAIRN_E_INVALID_ARGUMENT, "\"to\" is missing"},
      {"{\"directory\":\"/x\",\"to\":\"y\"}", CAIRN_E_BAD_PATH, "absolute"},
      {"{\"directory\":\"/x\",\"to\":\"/y\",\"format\":\"vmdk\"}",
       CAIRN_E_INVALID_ARGUMENT, "\"raw\", \"qcow2\""},
      {"{\"directory\":\"/x\",\"to\":\"/y\",\"overwrite\":1}",
       CAIRN_E_WRONG_TYPE, "a boolean"},
      {"{\"directory\":\"/x\",\"to\":\"/y\",\"vm\":\"z\"}", CAIRN_E_UNKNOWN_KEY,
       "did you mean"},
      {"{\"directory\":\"/x\",\"to\":\"/y\\u0000z\"}", 0, ""},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct cairn_error err;
    json_t *spec = json_loads(cases[i].json, 0, NULL);
    if (!spec)
      continue; /* the JSON reader refuses a NUL already */
    cairn__error_clear(&err);
    assert_int_equal(cairn__kind_restore.check(spec, &err), -1);
    if (err.id != cases[i].id || !strstr(err.message, cases[i].words))
      fail_msg("%s: %s", cases[i].json, err.message);
    json_decref(spec);
  }
}

static void plans_without_writing(void **state)
{
  (void)state;
  json_t *plan, *spec = spec_of(POINT1, in_scratch("r"));
  MUST(cairn__kind_restore.check(spec, &small_err));
  MUST(cairn__kind_restore.plan(IO, spec, &plan, &small_err));
  assert_int_equal(access(in_scratch("r"), F_OK), -1);
  assert_int_equal(json_array_size(json_object_get(plan, "files")), 4);
  assert_int_equal(json_array_size(json_object_get(plan, "conflicts")), 0);
  assert_true(json_integer_value(json_object_get(plan, "bytes_free")) > 0);
  json_int_t bytes =
      json_integer_value(json_object_get(plan, "bytes_to_write"));
  json_decref(plan);
  struct cairn__run *run = must_restore(json_deep_copy(spec));
  assert_int_equal(bytes, run->bytes_total);
  cairn__run_release(run);
  MUST(cairn__kind_restore.plan(IO, spec, &plan, &small_err));
  assert_int_equal(json_array_size(json_object_get(plan, "conflicts")), 4);
  json_decref(plan);
  json_decref(spec);
}

/* Whatever has its final name is complete; nothing else is left. */
static void expect_whole(const char *to, int is_done, const char *fault)
{
  static const char *const names[] = {"vda.raw", "config/web 1\n\xc3\xa9.xml",
                                      "runtime/save"};
  static const char *const models[] = {"e1", "xml", "save"};
  size_t found = 0;
  for (int i = 0; i < 3; i++) {
    char path[1100];
    snprintf(path, sizeof path, "%s/" VM1 "/%s", to, names[i]);
    if (access(path, F_OK) != 0)
      continue;
    found++;
    small_shell("cmp '%s' %s/%s", path, scratch, models[i]);
  }
  if (is_done && found != 3)
    fail_msg("%s: done, with %zu files", fault, found);
}

static void leaves_only_whole_files_when_a_call_fails(void **state)
{
  (void)state;
  static const struct {
    int kind, errnum;
  } faults[] = {{CAIRN__FAULT_ERRNO, EIO},
                {CAIRN__FAULT_ENOSPC_ON, 0},
                {CAIRN__FAULT_SHORT, 0}};
  const char *to = in_scratch("r");
  char where[512];
  snprintf(where, sizeof where, "%s", to);
  expected("e1", c1, LENGTH1);
  expected("xml", (const unsigned char *)"<domain/>", 9);
  expected("save", c1, 100001);
  uint64_t stride = sweep_stride(3);
  for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
    for (uint64_t at = sweep_first(stride);; at += stride) {
      struct cairn__fault_io fault;
      struct cairn__run *run = cairn__run_new(NULL);
      cairn__fault_io_init(&fault, at, faults[k].kind, faults[k].errnum);
      run->io = &fault.io;
      run->spec = spec_of(POINT1, where);
      json_object_set_new(run->spec, "machine", json_string(VM1));
      json_object_set_new(run->spec, "format", json_string("raw"));
      run->main = cairn__kind_restore.main;
      cairn__run_here(run);
      int has_fired = fault.has_fired;
      const char *call = has_fired ? fault.fired_at : "none";
      if (run->error.id != CAIRN_OK && !run->error.message[0])
        fail_msg("%s: no message", call);
      if (run->error.id != CAIRN_OK &&
          (faults[k].kind == CAIRN__FAULT_SHORT || !has_fired))
        fail_msg("%s: %s", call, run->error.message);
      if (faults[k].kind == CAIRN__FAULT_ENOSPC_ON && has_fired &&
          run->error.id != CAIRN_OK && run->error.id != CAIRN_E_DISK_FULL)
        fail_msg("%s: %s", call, run->error.message);
      expect_whole(where, run->error.id == CAIRN_OK, call);
      char command[700];
      snprintf(command, sizeof command,
               "test -z \"$(find %s -name '.cairn*' 2>/dev/null)\"", where);
      if (strcmp(call, "unlinkat") != 0 && system(command) != 0)
        fail_msg("call %llu (%s) left a temporary file", (unsigned long long)at,
                 call);
      cairn__run_release(run);
      small_shell("rm -rf %s", where);
      if (!has_fired)
        break;
    }
  }
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
  json_t *spec = spec_of(POINT3, in_scratch("r"));
  MUST(cairn__kind_restore.check(spec, &small_err));
  cairn_set_allocator(failing_realloc, free);
  long stride = (long)sweep_stride(4);
  for (long at = (long)sweep_first((uint64_t)stride);; at += stride) {
    struct cairn__run *run = cairn__run_new(NULL);
    run->spec = json_deep_copy(spec);
    run->main = cairn__kind_restore.main;
    countdown = at;
    cairn__run_here(run);
    int has_fired = countdown <= 0;
    countdown = 0;
    if (run->error.id != CAIRN_OK && run->error.id != CAIRN_E_NO_MEMORY)
      fail_msg("allocation %ld: %s", at, run->error.message);
    cairn__run_release(run);
    small_shell("test -z \"$(find %s/r -name '.cairn*' 2>/dev/null)\" && "
                "rm -rf %s/r",
                scratch, scratch);
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
      TEST(restores_any_point_of_a_chain_to_raw),
      TEST(restores_to_qcow2),
      TEST(agrees_with_qemu_about_the_chain),
      TEST(restores_odd_lengths_exactly),
      TEST(restores_files_with_mode_and_time),
      TEST(restores_only_what_is_asked_for),
      TEST(names_what_exists_when_nothing_fits),
      TEST(takes_the_directory_of_a_point),
      TEST(restores_from_renamed_points),
      TEST(never_touches_an_existing_file),
      TEST(replaces_a_link_and_not_what_it_names),
      TEST(refuses_a_target_inside_the_export),
      TEST(refuses_links_below_the_target),
      TEST(proves_what_it_writes),
      TEST(lists_what_was_completed_before_a_failure),
      TEST(removes_what_a_killed_restore_left),
      TEST(finds_a_directory_in_the_way_first),
      TEST(names_whole_paths),
      TEST(proves_plain_files_too),
      TEST(refuses_a_damaged_manifest_map_or_secret),
      TEST(refuses_links_in_the_point),
      TEST(refuses_another_backing_file),
      TEST(refuses_a_chain_without_its_base),
      TEST(ends_when_asked),
      TEST(checks_its_specification),
      TEST(plans_without_writing),
      TEST(leaves_only_whole_files_when_a_call_fails),
      TEST(survives_every_failing_allocation),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
