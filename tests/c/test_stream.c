/* Streams `rbd diff v1`, out of an export and into one.
 *
 * What a stream holds is judged by `rbd merge-diff`, by an applier that was
 * written from the format's description alone (tests/rbd_diff.py) and by
 * qemu-img; what an import makes of a stream, by a model in memory, by
 * qemu-img and by our verify. The random suites take CAIRN_SECONDS (here a
 * quarter of it each) and CAIRN_SEED; CAIRN_LONG=1 makes the sweeps whole. */
#include "small_export.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>

#include "skip.h"
#include "sweep.h"

/* ---- small things ------------------------------------------------------- */

static struct {
  char name[200], path[300];
} names[64];
static size_t name_count;

/* A path in the scratch directory that stays good until the test ends. */
static const char *at(const char *fmt, ...)
{
  char name[200];
  size_t i = 0;
  va_list args;
  va_start(args, fmt);
  vsnprintf(name, sizeof name, fmt, args);
  va_end(args);
  while (i < name_count && strcmp(names[i].name, name) != 0)
    i++;
  if (i == name_count) {
    assert_true(++name_count <= sizeof names / sizeof *names);
    snprintf(names[i].name, sizeof names[i].name, "%s", name);
    snprintf(names[i].path, sizeof names[i].path, "%s/%s", scratch, name);
  }
  return names[i].path;
}

static int set_up(void **state)
{
  name_count = 0;
  return scratch_make(state);
}

static double seconds_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double budget(void)
{
  const char *text = getenv("CAIRN_SECONDS");
  return (text ? atof(text) : 20) / 4;
}

static unsigned long seed(void)
{
  const char *text = getenv("CAIRN_SEED");
  return text ? strtoul(text, NULL, 10) : 1;
}

static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return below ? random_state % below : 0;
}

static int has_rbd(void)
{
  return system("command -v rbd >/dev/null 2>&1") == 0;
}

static int exists(const char *path)
{
  struct stat st;
  return lstat(path, &st) == 0;
}

static unsigned char *read_all(const char *path, size_t *n)
{
  *n = small_size(path);
  unsigned char *bytes = malloc(*n ? *n : 1);
  int fd = open(path, O_RDONLY);
  assert_true(fd >= 0);
  assert_int_equal(read(fd, bytes, *n), (ssize_t)*n);
  close(fd);
  return bytes;
}

static void write_all(const char *path, const void *bytes, size_t n)
{
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, bytes, n), (ssize_t)n);
  close(fd);
}

/* Entries of a directory: points (or files), work directories. */
static int count(const char *path, int is_partial)
{
  DIR *dir = opendir(path);
  struct dirent *e;
  int n = 0;
  while (dir && (e = readdir(dir)))
    n +=
        is_partial ? strstr(e->d_name, "partial") != NULL : e->d_name[0] != '.';
  if (dir)
    closedir(dir);
  return n;
}

/* ---- a chain of five points --------------------------------------------- */

#define POINT4 "A0000000-0000-4000-8000-000000000004"
#define POINT5 "A0000000-0000-4000-8000-000000000005"
#define POINTS 5

static const struct {
  const char *id, *pattern;
  uint64_t length;
} steps[POINTS] = {
    /* data, zeros and a length that is no multiple of anything */
    {POINT1, "ABC..DEFGHIJKLMNOPQRSTUVWXYZ", 28 * BLOCK - 12345},
    /* changed, zeroed, appeared */
    {POINT2, "AbC.x.EFGHIJKLMNOPQRSTUVW...", 28 * BLOCK - 12345},
    /* shrunk within a block */
    {POINT3, "AbC.x.EFG", 8 * BLOCK + 777},
    /* grown again: what was cut off stays zero */
    {POINT4, "AbC.x.EFG......q", 16 * BLOCK - 1},
    /* much data at once, the old in other places */
    {POINT5, "zyxwvutsrqponmlkjihgfedcbaABCDEFGHIJKL", 38 * BLOCK}};

static unsigned char *contents[POINTS];

static void make_chain(const char *directory, const char *algorithm)
{
  struct small s[POINTS];
  for (int i = 0; i < POINTS; i++) {
    const struct small *below = i ? &s[i - 1] : NULL;
    free(contents[i]);
    contents[i] = small_content(steps[i].pattern, steps[i].length);
    small_begin(&s[i], directory, steps[i].id, i + 1, algorithm, below);
    if (below)
      json_object_set_new(s[i].manifest, "BaseReferencePointGroupId",
                          json_string(below->id));
    small_machine(&s[i], VM1, "web1");
    small_disk(&s[i], VM1, "vda", "qcow2", steps[i].length, contents[i], below,
               i ? contents[i - 1] : NULL,
               i ? small_blocks(steps[i - 1].length) : 0);
    small_publish(&s[i]);
  }
  for (int i = 0; i < POINTS; i++)
    small_end(&s[i]);
}

/* ---- running ------------------------------------------------------------ */

static int last_id;
static char last_message[CAIRN_MESSAGE_MAX];
static json_t *last_report, *last_warnings;

static int run_with(const struct cairn_io *io, const struct cairn__kind *kind,
                    json_t *spec)
{
  static unsigned serial;
  struct cairn_error err;
  struct cairn__run *run = cairn__run_new(NULL);
  assert_non_null(run);
  assert_non_null(spec);
  cairn__error_clear(&err);
  if (kind->check(spec, &err) == 0) {
    run->main = kind->main;
    run->io = io;
    run->spec = spec;
    serial++;
    snprintf(run->job_uuid, sizeof run->job_uuid,
             "DDDDDDDD-0000-4000-8000-%012u", serial);
    snprintf(run->instance_id, sizeof run->instance_id, "Cairn:%s",
             run->job_uuid);
    snprintf(run->point_uuid, sizeof run->point_uuid,
             "BBBBBBBB-0000-4000-8000-%012u", serial);
    run->epoch = 1;
    cairn__run_here(run);
    err = run->error;
  } else {
    json_decref(spec);
  }
  json_decref(last_report);
  json_decref(last_warnings);
  last_report = json_incref(run->report);
  last_warnings = json_incref(run->warnings);
  last_id = err.id;
  snprintf(last_message, sizeof last_message, "%s", err.message);
  cairn__run_release(run);
  return last_id;
}

static int stream_to(const struct cairn_io *io, const char *directory,
                     const char *point, const char *base, const char *output)
{
  return run_with(io, &cairn__kind_stream,
                  json_pack("{s:s, s:s, s:s?, s:s}", "directory", directory,
                            "point", point, "base", base, "output", output));
}

static void must_stream(const char *directory, const char *point,
                        const char *base, const char *output)
{
  if (stream_to(IO, directory, point, base, output) != 0)
    fail_msg("stream of %s: %s", point, last_message);
}

static json_t *collection(void)
{
  return json_pack("{s:s, s:s, s:[{s:s, s:s, s:[{s:s, s:s, s:s}]}]}",
                   "CollectionId", COLLECTION, "ElementName", "web-farm",
                   "machines", "VirtualMachineId", VM1, "ElementName", "web1",
                   "disks", "id", "vda", "path", "/nowhere/vda.raw", "format",
                   "raw");
}

static int import_from(const struct cairn_io *io, const char *input,
                       const char *directory, const char *base,
                       const char *format, const char *digest)
{
  return run_with(io, &cairn__kind_import,
                  json_pack("{s:s, s:s, s:o, s:s?, s:s?, s:s?}", "input", input,
                            "directory", directory, "collection", collection(),
                            "base", base, "format", format, "digest", digest));
}

static void must_import(const char *input, const char *directory,
                        const char *base)
{
  if (import_from(IO, input, directory, base, NULL, NULL) != 0)
    fail_msg("import of %s: %s", input, last_message);
}

static const char *imported(void)
{
  static char id[37];
  snprintf(
      id, sizeof id, "%s",
      json_string_value(json_object_get(last_report, "ReferencePointGroupId")));
  return id;
}

static void must_verify(const char *directory)
{
  if (run_with(IO, &cairn__kind_verify,
               json_pack("{s:s}", "directory", directory)) != 0)
    fail_msg("verify of %s: %s", directory, last_message);
}

/* By QEMU, through the chain. */
static void expect_content(const char *directory, const char *point,
                           const unsigned char *content, uint64_t length)
{
  const char *raw = at("converted");
  size_t n;
  small_shell("cd %s/%s/%s && f=$(echo vda.[qr]*) && "
              "qemu-img convert -f ${f##*.} -O raw $f %s && "
              "truncate -s %llu %s",
              directory, point, VM1, raw, (unsigned long long)length, raw);
  unsigned char *bytes = read_all(raw, &n);
  assert_int_equal(n, length);
  for (size_t i = 0; i < n; i++)
    if (bytes[i] != content[i])
      fail_msg("point %s of %s differs at byte %zu of %zu", point, directory, i,
               n);
  free(bytes);
  unlink(raw);
}

static void expect_file(const char *path, int step)
{
  size_t n;
  unsigned char *bytes = read_all(path, &n);
  assert_int_equal(n, steps[step].length);
  assert_memory_equal(bytes, contents[step], n);
  free(bytes);
}

static void apply(const char *stream, const char *target)
{
  small_shell("python3 tests/rbd_diff.py %s %s", stream, target);
}

/* ---- out ---------------------------------------------------------------- */

static void gives_the_content_and_the_changes_of_every_point(void **state)
{
  (void)state;
  const char *out = at("out"), *stream = at("s"), *target = at("t");
  make_chain(out, "xxh3-128");
  for (int i = 0; i < POINTS; i++) {
    must_stream(out, steps[i].id, "none", stream);
    unlink(target);
    apply(stream, target);
    expect_file(target, i);
    unlink(stream);
    must_stream(out, steps[i].id, NULL, stream);
    if (i > 0)
      write_all(target, contents[i - 1], steps[i - 1].length);
    apply(stream, target);
    expect_file(target, i);
    assert_int_equal(small_size(stream), json_integer_value(json_object_get(
                                             last_report, "bytes_stream")));
    unlink(stream);
    expect_content(out, steps[i].id, contents[i], steps[i].length);
  }
}

static void gives_the_difference_of_any_two_points(void **state)
{
  (void)state;
  const char *out = at("out"), *stream = at("s"), *target = at("t");
  make_chain(out, "sha-256");
  for (int i = 0; i < POINTS; i++) {
    for (int j = 0; j < POINTS; j++) {
      if (i == j)
        continue;
      must_stream(out, steps[j].id, steps[i].id, stream);
      write_all(target, contents[i], steps[i].length);
      apply(stream, target);
      expect_file(target, j);
      unlink(stream);
    }
  }
}

static void leaves_out_what_did_not_change(void **state)
{
  (void)state;
  const char *out = at("out"), *stream = at("s");
  make_chain(out, "xxh3-128");
  must_stream(out, POINT2, NULL, stream);
  small_shell("python3 tests/rbd_diff.py --show %s > %s && "
              "printf 'f %s\nt %s\ns %llu\nw 65536 65536\nw 262144 65536\n"
              "z 327680 65536\nz 1638400 %llu\n' | sed 's/ *$//' > %s && "
              "sed -i 's/ *$//' %s && cmp %s %s",
              stream, at("a"), POINT1, POINT2,
              (unsigned long long)steps[1].length,
              (unsigned long long)steps[1].length - 1638400, at("b"), at("a"),
              at("a"), at("b"));
}

/* A full and what follows, merged by Ceph's own program, are the last point's
 * whole content. */
static void is_merged_by_rbd(void **state)
{
  (void)state;
  if (!has_rbd())
    skip_because("rbd (package ceph-common) is not installed");
  const char *out = at("out"), *target = at("t");
  make_chain(out, "xxh3-128");
  for (int i = 0; i < POINTS; i++)
    must_stream(out, steps[i].id, NULL, at("s%d", i));
  small_shell("cp %s %s", at("s0"), at("m0"));
  for (int i = 1; i < POINTS; i++) {
    small_shell("rbd merge-diff %s %s %s 2>%s", at("m%d", i - 1), at("s%d", i),
                at("m%d", i), at("log"));
    unlink(target);
    apply(at("m%d", i), target);
    expect_file(target, i);
    /* the same, taken in by us */
    must_import(at("m%d", i), at("in"), NULL);
    assert_string_equal(imported(), steps[i].id);
    expect_content(at("in"), steps[i].id, contents[i], steps[i].length);
  }
  /* changes first merged with each other */
  small_shell("rbd merge-diff %s %s %s 2>%s", at("s2"), at("s3"), at("m23"),
              at("log"));
  write_all(target, contents[1], steps[1].length);
  apply(at("m23"), target);
  expect_file(target, 3);
  must_verify(at("in"));
}

static void ends_before_the_end_record_when_a_block_is_damaged(void **state)
{
  (void)state;
  const char *out = at("out"), *stream = at("s");
  make_chain(out, "xxh3-128");
  const char *image = at("out/%s/%s/vda.qcow2", POINT1, VM1);
  small_flip(image, (5ull * BLOCK + 99) * 8); /* a data cluster */
  assert_int_equal(stream_to(IO, out, POINT1, NULL, stream),
                   CAIRN_E_DIGEST_MISMATCH);
  assert_non_null(strstr(last_message, "differs from its digest map"));
  assert_int_equal(exists(stream), 0);
  assert_int_equal(count(scratch, 1), 0);
  /* down a descriptor: there is something, and nobody takes it for whole */
  int fd = open(stream, O_RDWR | O_CREAT | O_EXCL, 0600);
  assert_int_equal(run_with(IO, &cairn__kind_stream,
                            json_pack("{s:s, s:s, s:i}", "directory", out,
                                      "point", POINT1, "output", fd)),
                   CAIRN_E_DIGEST_MISMATCH);
  assert_true(small_size(stream) > 100);
  assert_int_equal(fcntl(fd, F_GETFD) >= 0, 1); /* not closed */
  close(fd);
  char command[600];
  snprintf(command, sizeof command,
           "python3 tests/rbd_diff.py --show %s >/dev/null 2>&1", stream);
  assert_int_equal(WEXITSTATUS(system(command)), 1);
  assert_int_equal(import_from(IO, stream, at("in"), NULL, NULL, NULL),
                   CAIRN_E_SOURCE_CORRUPT);
  assert_int_equal(exists(at("in")), 0);
  /* a changed map is found by its root */
  make_chain(at("out2"), "xxh3-128");
  small_flip(at("out2/%s/%s/vda.digests", POINT1, VM1), (4096 + 40) * 8);
  unlink(stream);
  assert_int_equal(stream_to(IO, at("out2"), POINT2, NULL, stream),
                   CAIRN_E_EXPORT_CORRUPT);
}

static void refuses_a_base_that_cannot_be_compared(void **state)
{
  (void)state;
  const char *out = at("out"), *stream = at("s");
  struct small other, sha, empty;
  unsigned char *content = small_content("ABC", 3 * BLOCK);
  make_chain(out, "xxh3-128");
  small_begin(&other, out, "A0000000-0000-4000-8000-0000000000A1", 10,
              "xxh3-128", NULL);
  small_machine(&other, VM1, "web1");
  small_disk(&other, VM1, "vda", "raw", 3 * BLOCK, content, NULL, NULL, 0);
  small_publish(&other);
  small_end(&other);
  small_begin(&sha, out, "A0000000-0000-4000-8000-0000000000A2", 11, "sha-256",
              NULL);
  small_machine(&sha, VM1, "web1");
  small_disk(&sha, VM1, "vda", "raw", 3 * BLOCK, content, NULL, NULL, 0);
  small_publish(&sha);
  small_end(&sha);
  small_begin(&empty, out, "A0000000-0000-4000-8000-0000000000A3", 12,
              "xxh3-128", NULL);
  small_machine(&empty, VM2, "db1");
  small_disk(&empty, VM2, "vda", "raw", 3 * BLOCK, content, NULL, NULL, 0);
  small_disk(&empty, VM2, "vdb", "raw", 3 * BLOCK, content, NULL, NULL, 0);
  small_publish(&empty);
  small_end(&empty);
  free(content);
  static const struct {
    const char *point, *base;
    int id;
    const char *text;
  } cases[] = {{POINT2, "A0000000-0000-4000-8000-0000000000A1",
                CAIRN_E_INVALID_ARGUMENT, "different chains"},
               {POINT2, "A0000000-0000-4000-8000-0000000000A2",
                CAIRN_E_INVALID_ARGUMENT, "has digests of"},
               {POINT2, "A0000000-0000-4000-8000-0000000000A3",
                CAIRN_E_NOT_FOUND, "does not have disk vda"},
               {POINT2, POINT2, CAIRN_E_INVALID_ARGUMENT, "its own base"},
               {POINT2, "A0000000-0000-4000-8000-0000000000FF",
                CAIRN_E_NOT_FOUND, "holds no reference point"},
               {"A0000000-0000-4000-8000-0000000000A3", NULL, CAIRN_E_AMBIGUOUS,
                "name the machine and the disk of one: "}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (stream_to(IO, out, cases[i].point, cases[i].base, stream) !=
            cases[i].id ||
        !strstr(last_message, cases[i].text))
      fail_msg("case %zu: %d %s", i, last_id, last_message);
    assert_int_equal(exists(stream), 0);
  }
}

static void never_replaces_a_file_nor_adds_to_a_point(void **state)
{
  (void)state;
  const char *out = at("out");
  make_chain(out, "xxh3-128");
  write_all(at("s"), "mine", 4);
  assert_int_equal(stream_to(IO, out, POINT1, NULL, at("s")), CAIRN_E_EXISTS);
  assert_int_equal(small_size(at("s")), 4);
  assert_int_equal(stream_to(IO, out, POINT1, NULL, at("out/%s/s", POINT1)),
                   CAIRN_E_BAD_PATH);
  assert_int_equal(stream_to(IO, out, POINT1, NULL, at("no/s")),
                   CAIRN_E_NOT_FOUND);
  assert_int_equal(stream_to(IO, out, POINT1, NULL, at("out/")),
                   CAIRN_E_BAD_PATH);
  assert_int_equal(stream_to(IO, out, POINT1, NULL, "relative"),
                   CAIRN_E_BAD_PATH);
  must_verify(out);
}

/* ---- pipes -------------------------------------------------------------- */

struct thread {
  struct cairn__run *run;
  pthread_t thread;
};

static void *thread_main(void *argument)
{
  struct thread *t = argument;
  t->run->main(t->run);
  return NULL;
}

static void thread_start(struct thread *t, const struct cairn__kind *kind,
                         json_t *spec)
{
  t->run = cairn__run_new(NULL);
  MUST(kind->check(spec, &small_err));
  t->run->main = kind->main;
  t->run->spec = spec;
  snprintf(t->run->point_uuid, sizeof t->run->point_uuid, "%s", POINT5);
  snprintf(t->run->job_uuid, sizeof t->run->job_uuid, "%s", POINT4);
  pthread_create(&t->thread, NULL, thread_main, t);
}

static int thread_end(struct thread *t)
{
  pthread_join(t->thread, NULL);
  int id = t->run->error.id;
  snprintf(last_message, sizeof last_message, "%s", t->run->error.message);
  cairn__run_release(t->run);
  return id;
}

static void wait_until_parked(struct cairn__run *run)
{
  int parked = 0;
  for (double end = seconds_now() + 20; !parked && seconds_now() < end;) {
    struct timespec t = {0, 1000000};
    pthread_mutex_lock(&run->lock);
    parked = run->parked > 0;
    pthread_mutex_unlock(&run->lock);
    nanosleep(&t, NULL);
  }
  assert_true(parked);
}

static void wait_until_full(int fd)
{
  int n = 0;
  for (double end = seconds_now() + 20; seconds_now() < end && n < 60000;)
    assert_int_equal(ioctl(fd, FIONREAD, &n), 0);
  assert_true(n >= 60000);
}

static void can_be_suspended_and_ended_while_nobody_reads(void **state)
{
  (void)state;
  const char *out = at("out");
  int pipes[2];
  struct thread t;
  make_chain(out, "xxh3-128");
  must_stream(out, POINT1, NULL, at("file"));
  size_t n = small_size(at("file"));
  unsigned char *bytes = malloc(n);
  for (int is_read = 0; is_read < 2; is_read++) {
    assert_int_equal(pipe(pipes), 0);
    thread_start(&t, &cairn__kind_stream,
                 json_pack("{s:s, s:s, s:i}", "directory", out, "point", POINT1,
                           "output", pipes[1]));
    wait_until_full(pipes[0]);
    cairn__run_request(t.run, CAIRN__RUN_SUSPEND);
    wait_until_parked(t.run);
    if (!is_read) {
      cairn__run_request(t.run, CAIRN__RUN_TERMINATE);
      assert_int_equal(thread_end(&t), CAIRN_E_TERMINATED);
    } else {
      cairn__run_request(t.run, CAIRN__RUN_GO);
      for (size_t all = 0; all < n;) {
        ssize_t got = read(pipes[0], bytes + all, n - all);
        assert_true(got > 0);
        all += (size_t)got;
      }
      assert_int_equal(thread_end(&t), 0);
    }
    /* the caller's as it was: open, and waiting when it is written to */
    assert_int_equal(fcntl(pipes[1], F_GETFL) & O_NONBLOCK, 0);
    close(pipes[1]);
    close(pipes[0]);
  }
  write_all(at("s"), bytes, n);
  free(bytes);
  small_shell("cmp %s %s", at("s"), at("file"));
}

static void says_that_the_reader_is_gone(void **state)
{
  (void)state;
  int pipes[2];
  make_chain(at("out"), "xxh3-128");
  assert_int_equal(pipe(pipes), 0);
  close(pipes[0]);
  assert_int_equal(run_with(IO, &cairn__kind_stream,
                            json_pack("{s:s, s:s, s:i}", "directory", at("out"),
                                      "point", POINT1, "output", pipes[1])),
                   CAIRN_E_IO_ERROR);
  assert_non_null(strstr(last_message, "has closed it"));
  close(pipes[1]);
  assert_int_equal(run_with(IO, &cairn__kind_stream,
                            json_pack("{s:s, s:s, s:i}", "directory", at("out"),
                                      "point", POINT1, "output", pipes[1])),
                   CAIRN_E_INVALID_ARGUMENT);
}

static void waits_for_a_slow_writer_and_can_be_ended(void **state)
{
  (void)state;
  int pipes[2];
  struct thread t;
  size_t n;
  make_chain(at("out"), "xxh3-128");
  must_stream(at("out"), POINT1, NULL, at("s"));
  unsigned char *bytes = read_all(at("s"), &n);
  for (int is_whole = 0; is_whole < 2; is_whole++) {
    assert_int_equal(pipe(pipes), 0);
    thread_start(&t, &cairn__kind_import,
                 json_pack("{s:i, s:s, s:o}", "input", pipes[0], "directory",
                           at("in"), "collection", collection()));
    /* in small pieces */
    for (size_t done = 0; done < (is_whole ? n : 5000);) {
      size_t part = is_whole ? 1 + done % 9973 : 1;
      if (part > n - done)
        part = n - done;
      assert_int_equal(write(pipes[1], bytes + done, part), (ssize_t)part);
      done += part;
    }
    if (is_whole) {
      close(pipes[1]);
      assert_int_equal(thread_end(&t), 0);
    } else {
      cairn__run_request(t.run, CAIRN__RUN_SUSPEND);
      wait_until_parked(t.run);
      cairn__run_request(t.run, CAIRN__RUN_TERMINATE);
      assert_int_equal(thread_end(&t), CAIRN_E_TERMINATED);
      assert_int_equal(exists(at("in")), 0);
      close(pipes[1]);
    }
    assert_true(fcntl(pipes[0], F_GETFD) >= 0);
    close(pipes[0]);
  }
  free(bytes);
  expect_content(at("in"), POINT1, contents[0], steps[0].length);
  must_verify(at("in"));
}

/* ---- in ----------------------------------------------------------------- */

static void goes_round(void **state)
{
  (void)state;
  static const char *const algorithms[] = {"xxh3-128", "sha-256"};
  for (int a = 0; a < 2; a++) {
    const char *out = at("out%d", a), *in = at("in%d", a), *stream = at("s");
    make_chain(out, algorithms[a]);
    for (int i = 0; i < POINTS; i++) {
      must_stream(out, steps[i].id, NULL, stream);
      if (import_from(IO, stream, in, NULL, a ? "raw" : "qcow2",
                      i ? NULL : algorithms[!a]) != 0)
        fail_msg("%s", last_message);
      assert_string_equal(imported(), steps[i].id);
      unlink(stream);
    }
    must_verify(in);
    for (int i = 0; i < POINTS; i++)
      expect_content(in, steps[i].id, contents[i], steps[i].length);
    /* and out again: the same changes, of blocks that are the same */
    for (int i = 0; i < POINTS; i++) {
      must_stream(in, steps[i].id, NULL, stream);
      must_stream(out, steps[i].id, NULL, at("s2"));
      small_shell("cmp %s %s", stream, at("s2"));
      unlink(stream);
      unlink(at("s2"));
    }
  }
}

/* A stream under construction, and what it makes of a content. */
struct maker {
  unsigned char *bytes;
  size_t n, capacity;
  unsigned char *model;
  uint64_t length;
};

static void put(struct maker *m, const void *bytes, size_t n)
{
  if (m->n + n > m->capacity) {
    m->capacity = 2 * (m->n + n);
    m->bytes = realloc(m->bytes, m->capacity);
  }
  memcpy(m->bytes + m->n, bytes, n);
  m->n += n;
}

static void put_number(struct maker *m, uint64_t v, size_t n)
{
  unsigned char le[8];
  for (size_t i = 0; i < n; i++)
    le[i] = (unsigned char)(v >> 8 * i);
  put(m, le, n);
}

static void put_header(struct maker *m, const char *from, const char *to,
                       uint64_t size)
{
  m->n = 0;
  put(m, "rbd diff v1\n", 12);
  if (from) {
    put(m, "f", 1);
    put_number(m, strlen(from), 4);
    put(m, from, strlen(from));
  }
  if (to) {
    put(m, "t", 1);
    put_number(m, strlen(to), 4);
    put(m, to, strlen(to));
  }
  put(m, "s", 1);
  put_number(m, size, 8);
}

static void put_record(struct maker *m, char tag, uint64_t offset, uint64_t n,
                       const unsigned char *data)
{
  put(m, &tag, 1);
  put_number(m, offset, 8);
  put_number(m, n, 8);
  if (tag == 'w')
    put(m, data, n);
}

static void set_length(struct maker *m, uint64_t length)
{
  unsigned char *model = calloc(length ? length : 1, 1);
  memcpy(model, m->model, length < m->length ? length : m->length);
  free(m->model);
  m->model = model;
  m->length = length;
}

/* Random records of any granularity over the whole disk. */
static void put_random(struct maker *m)
{
  static unsigned char data[3 * BLOCK + 5];
  uint64_t place = draw(3) ? draw(2 * BLOCK) : 0;
  while (place < m->length) {
    uint64_t kind = draw(4), n;
    switch (draw(4)) {
    case 0:
      n = 1 + draw(700);
      break;
    case 1:
      n = 512 * (1 + draw(200));
      break;
    case 2:
      n = BLOCK * (1 + draw(3));
      place = (place + BLOCK - 1) / BLOCK * BLOCK;
      break;
    default:
      n = 1 + draw(sizeof data - 1);
    }
    if (place >= m->length)
      break;
    if (n > m->length - place || !draw(12))
      n = m->length - place;
    if (n > sizeof data && kind != 0)
      n = sizeof data;
    memset(data, draw(5) ? (int)draw(256) : 0,
           n < sizeof data ? n : sizeof data);
    if (kind == 0)
      memset(m->model + place, 0, n);
    else
      memcpy(m->model + place, data, n);
    put_record(m, kind == 0 ? 'z' : 'w', place, n, data);
    place += n;
    if (draw(3))
      place += draw(draw(2) ? 400 : 5 * BLOCK);
  }
  put(m, "e", 1);
}

static void
takes_records_of_any_granularity_size_and_order_of_sizes(void **state)
{
  (void)state;
  double end = seconds_now() + budget();
  unsigned chains = 0, points = 0;
  random_state = seed() * 2654435761u + 1;
  do {
    struct maker m = {.model = calloc(1, 1)};
    const char *in = at("in");
    char from[37] = "";
    int depth = 1 + (int)draw(5);
    for (int i = 0; i < depth; i++) {
      uint64_t old = m.length;
      set_length(&m, draw(6) ? draw(40 * BLOCK) : old);
      put_header(&m, i ? from : NULL, NULL, m.length);
      put_random(&m);
      write_all(at("s"), m.bytes, m.n);
      must_import(at("s"), in, NULL);
      snprintf(from, sizeof from, "%s", imported());
      expect_content(in, from, m.model, m.length);
      points++;
    }
    must_verify(in);
    free(m.model);
    free(m.bytes);
    small_shell("rm -rf %s", in);
    chains++;
  } while (seconds_now() < end || chains < 5);
  printf("# ran %u chains of %u points (seed %lu)\n", chains, points, seed());
}

static void keeps_a_page_of_the_map_apart_from_the_next(void **state)
{
  (void)state;
  const uint64_t page = 8192ull * BLOCK;
  struct maker m = {0};
  unsigned char *data = malloc(4 * BLOCK);
  memset(data, 0x5a, 4 * BLOCK);
  /* across the border, and far beyond with nothing between */
  put_header(&m, NULL, POINT1, 4 * page + 1000);
  put_record(&m, 'w', page - 2 * BLOCK - 7, 4 * BLOCK, data);
  put_record(&m, 'w', 4 * page + 900, 100, data);
  put(&m, "e", 1);
  write_all(at("s"), m.bytes, m.n);
  must_import(at("s"), at("in"), NULL);
  /* all zeroed but a part of what was there */
  put_header(&m, POINT1, POINT2, 4 * page + 1000);
  put_record(&m, 'z', 3, page - BLOCK, NULL);
  put_record(&m, 'z', page + 5 * BLOCK, 2 * page, NULL);
  put_record(&m, 'z', 4 * page + 950, 50, NULL);
  put(&m, "e", 1);
  write_all(at("s"), m.bytes, m.n);
  must_import(at("s"), at("in"), NULL);
  must_verify(at("in"));
  must_stream(at("in"), POINT2, "none", at("all"));
  /* the stored zeros of the first are gone, the rest is as it was */
  small_shell(
      "python3 - %s %s <<'END'\n"
      "import sys; sys.argv[1:1] = []; sys.path.insert(0, 'tests')\n"
      "import rbd_diff\n"
      "page = 8192 * 65536\n"
      "got = {a + i: v for t, a, b in rbd_diff.records(open(sys.argv[1], 'rb'))"
      " if t == 'w' for i, v in enumerate(b) if v}\n"
      "want = set(range(page - 65536 + 3, page + 131072 - 7)) | "
      "set(range(4 * page + 900, 4 * page + 950))\n"
      "assert set(got) == want and set(got.values()) == {0x5a}\n"
      "END",
      at("all"), at("x"));
  free(m.bytes);
  free(data);
}

/* ---- which base --------------------------------------------------------- */

static void chooses_the_base_that_the_stream_names(void **state)
{
  (void)state;
  const char *in = at("in"), *s = at("s");
  unsigned char *model = small_content("ABCD", 4 * BLOCK);
  struct maker m = {0};
  put_header(&m, NULL, POINT1, 4 * BLOCK);
  put_record(&m, 'w', 0, 4 * BLOCK, model);
  put(&m, "e", 1);
  write_all(s, m.bytes, m.n);
  must_import(s, in, NULL);
  /* twice: under another id, and said */
  must_import(s, in, NULL);
  assert_string_not_equal(imported(), POINT1);
  assert_int_equal(json_array_size(last_warnings), 1);
  char twin[37];
  snprintf(twin, sizeof twin, "%s", imported());
  /* an id in lower case */
  put_header(&m, "a0000000-0000-4000-8000-000000000001", POINT2, 4 * BLOCK);
  put_record(&m, 'z', BLOCK, BLOCK, NULL);
  put(&m, "e", 1);
  write_all(s, m.bytes, m.n);
  must_import(s, in, NULL);
  assert_string_equal(json_string_value(json_object_get(
                          last_report, "BaseReferencePointGroupId")),
                      POINT1);
  memset(model + BLOCK, 0, BLOCK);
  expect_content(in, POINT2, model, 4 * BLOCK);
  /* one that is here is not to be talked away */
  assert_int_equal(import_from(IO, s, in, twin, NULL, NULL),
                   CAIRN_E_INVALID_ARGUMENT);
  assert_non_null(strstr(last_message, "cannot be based on"));
  /* a name, and an id that is not here */
  static const char *const wanted[] = {"monday",
                                       "A0000000-0000-4000-8000-0000000000FF"};
  static const int ids[] = {CAIRN_E_INVALID_ARGUMENT, CAIRN_E_NOT_FOUND};
  for (int i = 0; i < 2; i++) {
    put_header(&m, wanted[i], "tuesday", 4 * BLOCK);
    put_record(&m, 'w', 100, 5, model);
    put(&m, "e", 1);
    write_all(s, m.bytes, m.n);
    assert_int_equal(import_from(IO, s, in, NULL, NULL, NULL), ids[i]);
    must_import(s, in, POINT2);
    unsigned char kept[5];
    memcpy(kept, model + 100, 5);
    memcpy(model + 100, model, 5);
    expect_content(in, imported(), model, 4 * BLOCK);
    memcpy(model + 100, kept, 5);
  }
  /* taken for everything: said, and then the rest is zero */
  must_import(s, in, "none");
  assert_int_equal(json_array_size(last_warnings), 1);
  unsigned char *rest = calloc(4, BLOCK);
  memcpy(rest + 100, model, 5);
  expect_content(in, imported(), rest, 4 * BLOCK);
  /* a whole content as an increment: what it does not mention is zero */
  put_header(&m, NULL, NULL, 4 * BLOCK);
  put_record(&m, 'w', 100, 5, model);
  put(&m, "e", 1);
  write_all(s, m.bytes, m.n);
  must_import(s, in, POINT1);
  assert_string_equal(json_string_value(json_object_get(
                          last_report, "BaseReferencePointGroupId")),
                      POINT1);
  expect_content(in, imported(), rest, 4 * BLOCK);
  must_verify(in);
  free(rest);
  free(model);
  free(m.bytes);
}

static void stores_a_full_where_the_chain_is_long_enough(void **state)
{
  (void)state;
  const char *in = at("in"), *s = at("s");
  struct maker m = {.model = calloc(1, 1)};
  char from[37] = "";
  int fulls = 0;
  random_state = 5;
  for (int i = 0; i < 35; i++) {
    set_length(&m, 20 * BLOCK + 100);
    put_header(&m, i ? from : NULL, NULL, m.length);
    unsigned char byte = (unsigned char)(i + 1);
    uint64_t place = i ? draw(m.length) : 19 * BLOCK;
    m.model[place] = byte;
    put_record(&m, 'w', place, 1, &byte);
    put(&m, "e", 1);
    write_all(s, m.bytes, m.n);
    must_import(s, in, NULL);
    fulls += !json_object_get(last_report, "BaseReferencePointGroupId");
    snprintf(from, sizeof from, "%s", imported());
  }
  assert_int_equal(fulls, 2); /* the first, and one on the way */
  expect_content(in, from, m.model, m.length);
  must_verify(in);
  free(m.model);
  free(m.bytes);
}

static void proves_what_it_reads_of_the_base(void **state)
{
  (void)state;
  const char *out = at("out"), *s = at("s");
  struct maker m = {0};
  make_chain(out, "xxh3-128");
  small_shell("rm -rf %s %s %s %s", at("out/%s", POINT2), at("out/%s", POINT3),
              at("out/%s", POINT4), at("out/%s", POINT5));
  const char *image = at("out/%s/%s/vda.qcow2", POINT1, VM1);
  struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
  small_flip(image, (BLOCK + 9) * 8); /* the first block of data */
  utimensat(AT_FDCWD, image, old, 0);
  put_header(&m, POINT1, POINT2, steps[0].length);
  put_record(&m, 'w', 5, 1, (const unsigned char *)"x");
  put(&m, "e", 1);
  write_all(s, m.bytes, m.n);
  assert_int_equal(import_from(IO, s, out, NULL, NULL, NULL),
                   CAIRN_E_DIGEST_MISMATCH);
  assert_int_equal(count(out, 0), 1);
  assert_int_equal(count(out, 1), 0);
  free(m.bytes);
}

/* ---- streams that are none ---------------------------------------------- */

static void expect_refused(struct maker *m, int id, const char *text)
{
  write_all(at("s"), m->bytes, m->n);
  if (import_from(IO, at("s"), at("in"), NULL, NULL, NULL) != id ||
      !strstr(last_message, text))
    fail_msg("wanted \"%s\": %d %s", text, last_id, last_message);
  assert_int_equal(exists(at("in")), 0);
}

static void refuses_what_is_no_stream(void **state)
{
  (void)state;
  static const unsigned char data[300] = {1, 2, 3};
  struct maker m = {0};
  put(&m, "rbd diff v2\n", 12);
  expect_refused(&m, CAIRN_E_SOURCE_FORMAT, "another version (\"rbd diff v2");
  m.n = 0;
  put(&m, "QFI\xfb\0\0\0\3abcdefgh", 16);
  expect_refused(&m, CAIRN_E_SOURCE_FORMAT, "begins with \"QFI");
  m.n = 0;
  expect_refused(&m, CAIRN_E_SOURCE_FORMAT, "is empty");
  put_header(&m, NULL, "x", 1000);
  put_record(&m, 'w', 100, 300, data);
  size_t whole = m.n;
  put_record(&m, 'w', 399, 10, data);
  put(&m, "e", 1);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "must ascend and not overlap");
  m.n = whole;
  put_record(&m, 'z', 0, 10, data);
  put(&m, "e", 1);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "must ascend and not overlap");
  m.n = whole;
  put_record(&m, 'w', 900, 101, data);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "beyond the size, 1000");
  m.n = whole;
  put_record(&m, 'z', UINT64_MAX, 2, data);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "beyond the size, 1000");
  m.n = whole;
  put(&m, "q", 1);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "0x71 is no record");
  m.n = whole;
  put(&m, "ee", 2);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "behind the end record");
  m.n = whole;
  put(&m, "s", 1);
  put_number(&m, 5, 8);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "'s' behind the first data");
  put_header(&m, NULL, "x", 1000);
  put(&m, "s", 1);
  put_number(&m, 5, 8);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "a second record 's'");
  m.n = 12;
  put_record(&m, 'w', 1, 1, data);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "must come before");
  m.n = 12;
  put(&m, "t", 1);
  put_number(&m, 0xffffffff, 4);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "a name of 4294967295 bytes");
  m.n = 12;
  put(&m, "s", 1);
  put_number(&m, UINT64_MAX, 8);
  expect_refused(&m, CAIRN_E_SOURCE_CORRUPT, "is not possible");
  free(m.bytes);
}

static void refuses_a_stream_that_is_cut_off_anywhere(void **state)
{
  (void)state;
  static const unsigned char data[70] = {1, 2, 3};
  struct maker m = {0};
  put_header(&m, NULL, POINT1, 1000);
  put_record(&m, 'w', 100, 70, data);
  put_record(&m, 'z', 200, 300, data);
  put(&m, "e", 1);
  for (size_t n = m.n; n-- > 0;) {
    write_all(at("s"), m.bytes, n);
    int id = import_from(IO, at("s"), at("in"), NULL, NULL, NULL);
    if (id != (n < 12 ? CAIRN_E_SOURCE_FORMAT : CAIRN_E_SOURCE_CORRUPT))
      fail_msg("cut off at %zu: %d %s", n, id, last_message);
    assert_int_equal(exists(at("in")), 0);
  }
  free(m.bytes);
}

/* What a stream means, by a reader of its own: 0, or -1 when it is none. */
static int model_of(const unsigned char *p, size_t n, struct maker *m)
{
  const unsigned char *end = p + n;
  if (n < 12 || memcmp(p, "rbd diff v1\n", 12) != 0)
    return -1;
  set_length(m, 0);
  for (p += 12; p < end;) {
    unsigned char tag = *p++;
    uint64_t a = 0, b = 0;
    for (int i = 0; i < 8 && p + i < end; i++)
      a |= (uint64_t)p[i] << 8 * i;
    for (int i = 0; i < 8 && p + 8 + i < end; i++)
      b |= (uint64_t)p[8 + i] << 8 * i;
    if (tag == 'f' || tag == 't') {
      p += 4 + (a & 0xffffffff);
    } else if (tag == 's') {
      p += 8;
      if (a > 4096 * (uint64_t)BLOCK)
        return -1;
      set_length(m, a);
    } else if (tag == 'w' || tag == 'z') {
      p += 16;
      if (a > m->length || b > m->length - a)
        return -1;
      if (tag == 'w' && b > (uint64_t)(end - p))
        return -1;
      if (tag == 'w')
        memcpy(m->model + a, p, b);
      else
        memset(m->model + a, 0, b);
      p += tag == 'w' ? b : 0;
    } else {
      return tag == 'e' && p == end ? 0 : -1;
    }
  }
  return -1;
}

#ifdef CAIRN_SANITIZED
#define FLIPPED_MIN 25
#else
#define FLIPPED_MIN 100
#endif

/* Under a sanitizer not the high bytes of the size, which follows the banner
 * and its tag: to go through the map of a petabyte takes it minutes. */
static int may_flip(uint64_t place)
{
#ifdef CAIRN_SANITIZED
  return place < 12 + 1 + 3 || place >= 12 + 1 + 8;
#else
  (void)place;
  return 1;
#endif
}

static void survives_flipped_bits(void **state)
{
  (void)state;
  double end = seconds_now() + budget();
  unsigned tries = 0, accepted = 0;
  struct maker m = {.model = calloc(1, 1)}, model = {.model = calloc(1, 1)};
  random_state = seed() * 40503u + 7;
  do {
    set_length(&m, 1 + draw(5 * BLOCK));
    put_header(&m, NULL, NULL, m.length);
    put_random(&m);
    for (uint64_t i = 1 + draw(3); i > 0; i--) {
      /* mostly where it hurts: not in data */
      uint64_t place = draw(2) ? draw(40) : draw(m.n);
      place %= m.n;
      if (!may_flip(place))
        continue;
      m.bytes[place] ^= (unsigned char)(1u << draw(8));
    }
    write_all(at("s"), m.bytes, m.n);
    tries++;
    if (import_from(IO, at("s"), at("in"), NULL, NULL, NULL) != 0) {
      if (last_id != CAIRN_E_SOURCE_CORRUPT &&
          last_id != CAIRN_E_SOURCE_FORMAT &&
          last_id != CAIRN_E_INVALID_ARGUMENT &&
          last_id != CAIRN_E_NOT_SUPPORTED)
        fail_msg("%d %s", last_id, last_message);
      assert_int_equal(count(at("in"), 0), 0);
      continue;
    }
    accepted++;
    if (model_of(m.bytes, m.n, &model) == 0)
      expect_content(at("in"), imported(), model.model, model.length);
    small_shell("rm -rf %s", at("in"));
  } while (seconds_now() < end || tries < FLIPPED_MIN);
  printf("# flipped bits of %u streams, %u accepted (seed %lu)\n", tries,
         accepted, seed());
  assert_true(accepted > 0);
  free(m.model);
  free(m.bytes);
  free(model.model);
}

/* ---- faults ------------------------------------------------------------- */

static int open_descriptors(void)
{
  return count("/proc/self/fd", 0);
}

/* Every call of an import fails: it says so and leaves nothing, or it has
 * published a point that is whole. */
static void sweep(int kind, int errnum, const char *what)
{
  const char *in = at("in"), *s = at("s2");
  struct cairn__fault_io f;
  unsigned fired = 0, failed = 0;
  uint64_t stride = sweep_stride(4);
  make_chain(at("out"), "xxh3-128");
  must_stream(at("out"), POINT2, NULL, s);
  for (uint64_t call = sweep_first(stride);; call += stride) {
    small_shell("rm -rf %s && mkdir %s && cp -r %s %s/", in, in,
                at("out/%s", POINT1), in);
    int before = open_descriptors();
    cairn__fault_io_init(&f, call, kind, errnum);
    int id = import_from(&f.io, s, in, NULL, NULL, NULL);
    assert_int_equal(open_descriptors(), before);
    if (!f.has_fired)
      break;
    fired++;
    failed += id != 0;
    if (id != 0 && last_message[0] == '\0')
      fail_msg("%s at call %llu (%s): no message", what,
               (unsigned long long)call, f.fired_at);
    if (count(in, 0) != (id ? 1 : 2))
      fail_msg("%s at call %llu (%s): %d %s, %d points", what,
               (unsigned long long)call, f.fired_at, id, last_message,
               count(in, 0));
    if (id == 0) {
      must_verify(in);
      expect_content(in, POINT2, contents[1], steps[1].length);
    }
  }
  printf("# %s in %u calls of an import, %u failed\n", what, fired, failed);
  assert_true(fired > 120 / stride);
  assert_int_equal(failed > 0, kind != CAIRN__FAULT_SHORT);
}

static void leaves_nothing_of_an_import_that_failed(void **state)
{
  (void)state;
  sweep(CAIRN__FAULT_ERRNO, EIO, "EIO");
}

static void leaves_nothing_of_an_import_without_space(void **state)
{
  (void)state;
  sweep(CAIRN__FAULT_ENOSPC_ON, ENOSPC, "ENOSPC");
}

static void is_not_disturbed_by_short_reads_and_writes(void **state)
{
  (void)state;
  const char *in = at("in");
  struct cairn__fault_io f;
  uint64_t stride = sweep_stride(4);
  make_chain(at("out"), "xxh3-128");
  for (uint64_t call = sweep_first(stride);; call += stride) {
    small_shell("rm -rf %s %s", in, at("s"));
    cairn__fault_io_init(&f, call, CAIRN__FAULT_SHORT, 0);
    if (stream_to(&f.io, at("out"), POINT1, NULL, at("s")))
      fail_msg("%s: %s", f.fired_at, last_message);
    int is_over = call > f.calls;
    cairn__fault_io_init(&f, call, CAIRN__FAULT_SHORT, 0);
    if (import_from(&f.io, at("s"), in, NULL, NULL, NULL) != 0)
      fail_msg("%s: %s", f.fired_at, last_message);
    if (f.has_fired)
      expect_content(in, POINT1, contents[0], steps[0].length);
    if (is_over && call > f.calls)
      break;
  }
}

static void leaves_no_file_of_a_stream_that_failed(void **state)
{
  (void)state;
  struct cairn__fault_io f;
  unsigned fired = 0;
  uint64_t stride = sweep_stride(4);
  make_chain(at("out"), "xxh3-128");
  mkdir(at("d"), 0700);
  for (uint64_t call = sweep_first(stride);; call += stride) {
    int before = open_descriptors();
    cairn__fault_io_init(&f, call, CAIRN__FAULT_ERRNO, EIO);
    int id = stream_to(&f.io, at("out"), POINT2, NULL, at("d/s"));
    assert_int_equal(open_descriptors(), before);
    if (!f.has_fired)
      break;
    fired++;
    /* after the rename only the sync of the directory can fail */
    if (exists(at("d/s")) && id != 0)
      assert_string_equal(f.fired_at, "fsync");
    else
      assert_int_equal(exists(at("d/s")), id == 0);
    if (exists(at("d/s"))) {
      write_all(at("t"), contents[0], steps[0].length);
      apply(at("d/s"), at("t"));
      expect_file(at("t"), 1);
    }
    unlink(at("d/s"));
    if (strcmp(f.fired_at, "unlinkat") != 0)
      assert_int_equal(count(at("d"), 1), 0);
  }
  printf("# EIO in %u calls of a stream\n", fired);
  assert_true(fired > 80 / stride);
}

/* ---- dry runs ----------------------------------------------------------- */

static void plans_to_the_byte(void **state)
{
  (void)state;
  json_t *plan = NULL, *spec;
  make_chain(at("out"), "xxh3-128");
  spec = json_pack("{s:s, s:s, s:s}", "directory", at("out"), "point", POINT2,
                   "output", at("s"));
  MUST(cairn__kind_stream.check(spec, &small_err));
  MUST(cairn__kind_stream.plan(IO, spec, &plan, &small_err));
  assert_int_equal(exists(at("s")), 0);
  must_stream(at("out"), POINT2, NULL, at("s"));
  assert_int_equal(json_integer_value(json_object_get(plan, "bytes_stream")),
                   small_size(at("s")));
  json_decref(plan);
  json_decref(spec);
  spec = json_pack("{s:s, s:s, s:o}", "input", at("s"), "directory", at("out"),
                   "collection", collection());
  MUST(cairn__kind_import.check(spec, &small_err));
  MUST(cairn__kind_import.plan(IO, spec, &plan, &small_err));
  assert_string_equal(
      json_string_value(json_object_get(plan, "BaseReferencePointGroupId")),
      POINT1);
  assert_int_equal(json_integer_value(json_object_get(plan, "bytes_stream")),
                   small_size(at("s")));
  assert_int_equal(count(at("out"), 0), POINTS);
  json_decref(plan);
  /* a damaged one is seen here already */
  small_shell("truncate -s -1 %s", at("s"));
  assert_int_equal(cairn__kind_import.plan(IO, spec, &plan, &small_err), -1);
  assert_int_equal(small_err.id, CAIRN_E_SOURCE_CORRUPT);
  assert_null(plan);
  json_decref(spec);
}

/* An argument picks tests: test_stream 'goes_*' */
int main(int argc, char **argv)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, scratch_remove)
  const struct CMUnitTest tests[] = {
      TEST(gives_the_content_and_the_changes_of_every_point),
      TEST(gives_the_difference_of_any_two_points),
      TEST(leaves_out_what_did_not_change),
      TEST(is_merged_by_rbd),
      TEST(ends_before_the_end_record_when_a_block_is_damaged),
      TEST(refuses_a_base_that_cannot_be_compared),
      TEST(never_replaces_a_file_nor_adds_to_a_point),
      TEST(can_be_suspended_and_ended_while_nobody_reads),
      TEST(says_that_the_reader_is_gone),
      TEST(waits_for_a_slow_writer_and_can_be_ended),
      TEST(goes_round),
      TEST(takes_records_of_any_granularity_size_and_order_of_sizes),
      TEST(keeps_a_page_of_the_map_apart_from_the_next),
      TEST(chooses_the_base_that_the_stream_names),
      TEST(stores_a_full_where_the_chain_is_long_enough),
      TEST(proves_what_it_reads_of_the_base),
      TEST(refuses_what_is_no_stream),
      TEST(refuses_a_stream_that_is_cut_off_anywhere),
      TEST(survives_flipped_bits),
      TEST(leaves_nothing_of_an_import_that_failed),
      TEST(leaves_nothing_of_an_import_without_space),
      TEST(is_not_disturbed_by_short_reads_and_writes),
      TEST(leaves_no_file_of_a_stream_that_failed),
      TEST(plans_to_the_byte),
  };
  if (argc > 1)
    cmocka_set_test_filter(argv[1]);
  signal(SIGPIPE, SIG_IGN); /* as it is in the threads of an engine */
  int result = cmocka_run_group_tests(tests, NULL, NULL);
  for (int i = 0; i < POINTS; i++)
    free(contents[i]);
  json_decref(last_report);
  json_decref(last_warnings);
  return result;
}
