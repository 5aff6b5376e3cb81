/* The tracker "bitmap", against what QEMU does to images: qemu-img and qemu-io
 * change them, "qemu-img convert" before and after says what differs, and every
 * block that does must be marked, or the tracker must say why it knows nothing.
 *
 * Random: CAIRN_SEED, CAIRN_SECONDS (default 20). */
#include "scratch.h"

#include <poll.h>
#include <signal.h>
#include <sys/mount.h>

#include "export/tracker.h"
#include "memory.h"
#include "skip.h"

#define KIB    UINT64_C(1024)
#define MIB    (KIB << 10)
#define POINTS 4

static struct cairn_error err;
static char reason[CAIRN__BITMAP_REASON_MAX];
static struct cairn__digester digester;
static const struct cairn_io *io = &cairn__system_io;

/* A point that was taken of an image. */
struct point {
  char id[37];
  json_t *state;
  unsigned char *content;
  size_t size;
  char map[16];
};
static struct point points[POINTS];

static struct cairn__source_options options(const char *name)
{
  static char path[512];
  struct cairn__source_options o = {
      .io = io, .path = path, .format = "qcow2", .readers = 1};

  snprintf(path, sizeof path, "%s/%s", scratch_path, name);
  memset(&err, 0, sizeof err);
  reason[0] = '\0';
  return o;
}

static const char *id_of(unsigned n)
{
  snprintf(points[n].id, sizeof points[n].id, "ABCDEF00-0000-4000-8000-%012u",
           n);
  return points[n].id;
}

static int add(const char *name, unsigned n)
{
  struct cairn__source_options o = options(name);

  return cairn__bitmap_add(&o, id_of(n), NULL, reason, sizeof reason, &err);
}

static void must_add(const char *name, unsigned n)
{
  int result = add(name, n);

  if (result != 0)
    fail_msg("%d: %s%s", result, reason, err.message);
}

static int take_away(const char *name, unsigned n)
{
  struct cairn__source_options o = options(name);

  return cairn__bitmap_remove(&o, id_of(n), NULL, &err);
}

static void expect_reason(int result, const char *says)
{
  if (result != 1)
    fail_msg("%d, not 1: %s", result, err.message);
  if (!strstr(reason, says))
    fail_msg("\"%s\" is not in: %s", says, reason);
}

static struct cairn__source *open_source(const char *name)
{
  struct cairn__source_options o = options(name);
  struct cairn__source *s;

  if (cairn__source_open_qcow2(&o, NULL, &s, &err) != 0)
    fail_msg("%s", err.message);
  return s;
}

static unsigned char *content_of(const char *name, size_t *size)
{
  must_run("qemu-img convert -f qcow2 -O raw %s content.raw", name);
  return slurp("content.raw", size);
}

/* ---- points -------------------------------------------------------------- */

static void drop_point(struct point *p)
{
  json_decref(p->state);
  free(p->content);
  p->state = NULL;
  p->content = NULL;
}

static void write_map(struct point *p)
{
  static const unsigned char nobody[16];
  unsigned char block[CAIRN__BLOCK], digest[CAIRN__DIGEST_MAX],
      root[CAIRN__DIGEST_MAX], file[CAIRN__DIGEST_MAX];
  struct cairn__map_writer *w;
  uint64_t bytes;

  (void)unlinkat(scratch_fd, p->map, 0);
  assert_int_equal(cairn__map_create(io, scratch_fd, p->map, NULL, &digester,
                                     p->size, p->size, nobody, &w, &err),
                   0);
  for (size_t at = 0; at < p->size; at += CAIRN__BLOCK) {
    size_t n = p->size - at < CAIRN__BLOCK ? p->size - at : CAIRN__BLOCK;

    memset(block, 0, sizeof block);
    memcpy(block, p->content + at, n);
    (void)cairn__digest_block(&digester, block, digest);
    assert_int_equal(cairn__map_append(w, at / CAIRN__BLOCK, digest, 1, &err),
                     0);
  }
  assert_int_equal(cairn__map_finish(w, root, file, &bytes, &err), 0);
}

/* All but the adding. */
static void settle_point(const char *name, unsigned n)
{
  struct point *p = &points[n];
  struct cairn__source *s = open_source(name);

  drop_point(p);
  if (cairn__source_bitmap_is_clean(s, p->id, reason, sizeof reason, &err) != 0)
    fail_msg("%s%s", reason, err.message);
  assert_int_equal(cairn__bitmap_state(s, &p->state, &err), 0);
  cairn__source_close(s);
  p->content = content_of(name, &p->size);
  snprintf(p->map, sizeof p->map, "map%u", n);
  write_map(p);
}

static void take_point(const char *name, unsigned n)
{
  must_add(name, n);
  settle_point(name, n);
}

/* Fills *out; the result of the tracker. */
static int find_changes(const char *name, unsigned n, json_t *state,
                        struct cairn__changes **out)
{
  struct cairn__source *s = open_source(name);
  struct cairn__map *map;
  int result;

  assert_int_equal(cairn__map_open(io, scratch_fd, points[n].map, NULL,
                                   &digester, &map, &err),
                   0);
  assert_int_equal(cairn__changes_new(s->length, out, &err), 0);
  result =
      cairn__source_bitmap_changes(s, points[n].id, state, &digester, map, NULL,
                                   *out, reason, sizeof reason, &err);
  cairn__map_close(map);
  cairn__source_close(s);
  if (result == 1)
    assert_true(strlen(reason) > 10);
  else
    assert_string_equal(reason, "");
  return result;
}

static int track(const char *name, unsigned n)
{
  struct cairn__changes *c;
  int result = find_changes(name, n, points[n].state, &c);

  cairn__changes_free(c);
  return result;
}

/* Every block that differs from point n is marked; the number of those that
 * are. */
static uint64_t check_marks(const char *name, unsigned n,
                            const struct cairn__changes *c)
{
  const struct point *p = &points[n];
  size_t size;
  unsigned char *now = content_of(name, &size);
  uint64_t differ = 0;

  for (size_t at = 0; at < size; at += CAIRN__BLOCK) {
    static const unsigned char zeros[CAIRN__BLOCK];
    size_t length = size - at < CAIRN__BLOCK ? size - at : CAIRN__BLOCK;
    size_t was = at >= p->size           ? 0
                 : p->size - at < length ? p->size - at
                                         : length;

    if (memcmp(now + at, p->content + at, was) == 0 &&
        memcmp(now + at + was, zeros, length - was) == 0)
      continue;
    differ++;
    if (!cairn__changes_is_set(c, at / CAIRN__BLOCK))
      fail_msg("%s: block %zu of %zu differs from point %u and is not marked",
               name, at / CAIRN__BLOCK, size / CAIRN__BLOCK, n);
  }
  free(now);
  return differ;
}

/* The number of blocks marked, all that differ among them. */
static uint64_t must_track(const char *name, unsigned n)
{
  struct cairn__changes *c;
  int result = find_changes(name, n, points[n].state, &c);
  uint64_t count;

  if (result != 0)
    fail_msg("%d: %s%s", result, reason, err.message);
  check_marks(name, n, c);
  count = cairn__changes_count(c);
  cairn__changes_free(c);
  return count;
}

/* The last 2 MiB are counted always. */
#define TAIL (2 * MIB / CAIRN__BLOCK)

static void make(const char *name, const char *more)
{
  must_run("rm -f %s && qemu-img create -q -f qcow2 %s %s 16M && qemu-io -f "
           "qcow2 -c 'write -P 1 0 16M' %s",
           name, more, name, name);
}

static void write_at(const char *name, uint64_t kib)
{
  must_run("qemu-io -f qcow2 -c 'write -P 7 %lluk 1k' %s",
           (unsigned long long)kib, name);
}

/* ---- reading them -------------------------------------------------------- */

static void lists_what_qemu_has_written(void **state)
{
  struct cairn__source_options o;
  struct cairn__bitmaps all;

  (void)state;
  make("img", "");
  o = options("img");
  assert_int_equal(cairn__bitmaps_list(&o, &all, &err), 0);
  assert_int_equal(all.count, 0);
  must_run("qemu-img bitmap --add -g 4k img some && qemu-img bitmap --add "
           "--disable -g 1M img 'other one'");
  assert_int_equal(cairn__bitmaps_list(&o, &all, &err), 0);
  assert_int_equal(all.count, 2);
  assert_true(all.is_current);
  assert_string_equal(all.list[0].name, "some");
  assert_int_equal(all.list[0].granularity_bits, 12);
  assert_true(all.list[0].is_auto && !all.list[0].is_in_use);
  assert_string_equal(all.list[1].name, "other one");
  assert_int_equal(all.list[1].granularity_bits, 20);
  assert_true(!all.list[1].is_auto && all.list[1].is_known);
  cairn__bitmaps_free(&all);
  cairn__bitmaps_free(&all);
}

static void knows_its_own_names(void **state)
{
  static const char guid[] = "ABCDEF00-0000-4000-8000-00000000000A";
  char point[37], name[128];
  int is_guard;

  (void)state;
  snprintf(name, sizeof name, "cairn-%s", guid);
  assert_true(cairn__bitmap_point(name, point, &is_guard));
  assert_string_equal(point, guid);
  assert_false(is_guard);
  snprintf(name, sizeof name, "cairn-%s-0123456789abcdef", guid);
  assert_true(cairn__bitmap_point(name, point, &is_guard));
  assert_true(is_guard);
  snprintf(name, sizeof name, "cairn-%s-0123456789abcde", guid);
  assert_false(cairn__bitmap_point(name, point, &is_guard));
  snprintf(name, sizeof name, "cairn-%sx", guid);
  assert_false(cairn__bitmap_point(name, point, &is_guard));
  assert_false(cairn__bitmap_point("cairn-", point, &is_guard));
  assert_false(cairn__bitmap_point("backup", point, &is_guard));
}

/* Where the directory is, and its size. */
static uint64_t find_directory(const char *name, uint64_t *size)
{
  struct cairn__source_options o = options(name);
  struct cairn__qcow2_header q;
  struct cairn__held h;
  unsigned char raw[24];
  uint64_t offset = 0;

  assert_int_equal(cairn__held_open(io, o.path, 0, &h, &err), 0);
  assert_int_equal(cairn__qcow2_header_read(&h, &q, &err), 0);
  assert_int_equal(q.bitmaps_length, sizeof raw);
  assert_int_equal(pread(h.fd, raw, sizeof raw, (off_t)q.bitmaps_offset),
                   sizeof raw);
  *size = 0;
  for (int i = 0; i < 8; i++) {
    *size = *size << 8 | raw[8 + i];
    offset = offset << 8 | raw[16 + i];
  }
  cairn__held_close(&h);
  return offset;
}

/* Any byte of the directory, the extension and the first table changed: an
 * error that says so, or other bitmaps; nothing else. */
static void survives_a_corrupt_directory(void **state)
{
  struct cairn__source_options o;
  struct cairn__bitmaps all;
  uint64_t size, directory, table;
  unsigned corrupt = 0, listed = 0;
  unsigned char *good;
  size_t n;

  (void)state;
  make("img", "-o cluster_size=4k");
  must_add("img", 0);
  directory = find_directory("img", &size);
  good = slurp("img", &n);
  table = 0;
  for (int i = 0; i < 8; i++)
    table = table << 8 | good[directory + (uint64_t)i];
  o = options("img");
  for (uint64_t i = 0; i < 104 + 64 + size + 8; i++) {
    uint64_t at = i < 168          ? i
                  : i < 168 + size ? directory + i - 168
                                   : table + i - 168 - size;
    static const unsigned char flips[] = {0x01, 0x80, 0xff};

    for (size_t k = 0; k < sizeof flips; k++) {
      int fd = openat(scratch_fd, "img", O_WRONLY);
      unsigned char b = good[at] ^ flips[k];

      assert_int_equal(pwrite(fd, &b, 1, (off_t)at), 1);
      memset(&err, 0, sizeof err);
      if (cairn__bitmaps_list(&o, &all, &err) == 0) {
        listed++;
        cairn__bitmaps_free(&all);
      } else {
        assert_true(err.id == CAIRN_E_SOURCE_CORRUPT ||
                    err.id == CAIRN_E_SOURCE_FORMAT);
        assert_int_equal(all.count, 0);
        corrupt++;
      }
      assert_int_equal(pwrite(fd, &good[at], 1, (off_t)at), 1);
      close(fd);
    }
  }
  free(good);
  assert_true(corrupt > 50 && listed > 50);
  must_run("truncate -s %llu img", (unsigned long long)directory);
  assert_int_equal(cairn__bitmaps_list(&o, &all, &err), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_CORRUPT);
  assert_non_null(strstr(err.message, "corrupt"));
}

/* ---- adding, removing ---------------------------------------------------- */

static int count_names(const char *name, const char *pattern)
{
  char *text;
  int n;

  assert_int_equal(
      run(&text, "qemu-img info %s | grep -c 'name: %s'", name, pattern) & ~1,
      0);
  n = atoi(text);
  free(text);
  return n;
}

static void adds_a_bitmap_and_its_guard_and_removes_both(void **state)
{
  int before = count_fds();

  (void)state;
  make("img", "");
  must_run("qemu-img bitmap --add img theirs");
  must_add("img", 0);
  must_add("img", 0); /* it is there */
  must_add("img", 1);
  assert_int_equal(count_names("img", "cairn-"), 3); /* they share a guard */
  must_run("qemu-img check -q -f qcow2 img");
  assert_int_equal(take_away("img", 0), 0);
  assert_int_equal(count_names("img", "cairn-"), 2);
  assert_int_equal(take_away("img", 0), 0);
  assert_int_equal(take_away("img", 1), 0);
  assert_int_equal(count_names("img", "cairn-"), 0);
  assert_int_equal(count_names("img", "theirs"), 1);
  must_run("qemu-img check -q -f qcow2 img");
  assert_int_equal(count_fds(), before);
}

/* A guard that was cut is none for the next point, and stays for those that
 * have it. */
static void makes_another_guard_when_one_was_cut(void **state)
{
  (void)state;
  make("img", "");
  must_add("img", 0);
  must_add("img", 1);
  assert_int_equal(count_names("img", "cairn-"), 3);
  must_run("qemu-img resize -q --shrink -f qcow2 img 3M && "
           "qemu-img resize -q -f qcow2 img 40M");
  must_add("img", 2);
  assert_int_equal(count_names("img", "cairn-"), 5);
  must_add("img", 3);
  assert_int_equal(count_names("img", "cairn-"), 6);
  assert_int_equal(take_away("img", 2), 0); /* its guard is whole */
  assert_int_equal(count_names("img", "cairn-"), 5);
  assert_int_equal(take_away("img", 0), 0); /* its guard is another's, too */
  assert_int_equal(count_names("img", "cairn-"), 4);
  assert_int_equal(take_away("img", 1), 0);
  assert_int_equal(count_names("img", "cairn-"), 3);
  assert_int_equal(take_away("img", 3), 0);
  assert_int_equal(count_names("img", "cairn-"), 0);
  must_run("qemu-img check -q -f qcow2 img");
}

static void adds_none_where_there_can_be_none(void **state)
{
  struct cairn__source_options o;

  (void)state;
  make("img", "-o compat=0.10");
  expect_reason(add("img", 0), "version 2");
  assert_int_equal(take_away("img", 0), 0);
  make("img", "");
  must_run("qemu-img snapshot -c one img");
  expect_reason(add("img", 0), "internal snapshots");
  o = options("img");
  o.format = "raw";
  expect_reason(
      cairn__bitmap_add(&o, id_of(0), NULL, reason, sizeof reason, &err),
      "raw");
  must_run("head -c 4096 /dev/zero >plain");
  assert_int_equal(add("plain", 0), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_FORMAT);
  assert_int_equal(add("nothing", 0), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_MISSING);
}

static void has_the_bitmaps_of_eight_points_and_a_left_one_at_most(void **state)
{
  (void)state;
  make("img", "");
  must_run("for i in 1 2 3 4 5 6 7 8 0; do qemu-img bitmap --add img "
           "cairn-ABCDEF00-0000-4000-8000-99999999999$i; done");
  expect_reason(add("img", 0), "9 points");
  must_run("qemu-img bitmap --remove img "
           "cairn-ABCDEF00-0000-4000-8000-999999999991");
  must_add("img", 0);
}

/* A client that asks the run to end once the point is published is too late:
 * what was kept for too long still goes. */
static void drops_the_oldest_of_a_published_point_in_any_case(void **state)
{
  static const char oldest[] = "ABCDEF00-0000-4000-8000-999999999991";
  struct cairn__tracking_options o = {.io = io};
  struct cairn__source_options s;
  struct cairn__tracking t;
  json_t *manifests = json_pack("[{s:s}]", "ReferencePointGroupId", oldest);

  (void)state;
  o.run = cairn__run_new(NULL);
  assert_non_null(o.run);
  o.point = "ABCDEF00-0000-4000-8000-999999999998";
  cairn__tracking_init(&t, CAIRN__TRACKER_BITMAP);
  t.has_bitmap = 1;
  t.bitmap_state = json_object();
  make("img", "");
  must_run("for i in 1 2 3 4 5 6 7 8 0; do qemu-img bitmap --add img "
           "cairn-ABCDEF00-0000-4000-8000-99999999999$i; done");
  s = options("img");
  cairn__run_request(o.run, CAIRN__RUN_TERMINATE);
  cairn__tracking_end(&t, &o, &s, 1, manifests);
  assert_null(o.run->warnings);
  assert_int_equal(count_names("img", oldest), 0);
  assert_int_equal(count_names("img", "cairn-"), 8);
  cairn__tracking_free(&t);
  cairn__run_release(o.run);
  json_decref(manifests);
}

static void writes_nothing_that_it_must_not_write(void **state)
{
  int result;

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("rm -rf ro && mkdir ro");
  make("ro/img", "");
  if (run(NULL, "mount --bind ro ro && mount -o remount,ro,bind ro") != 0) {
    (void)umount("ro");
    skip_because("needs bind mounts");
  }
  result = add("ro/img", 0);
  must_run("umount ro");
  expect_reason(result, "Read-only file system");
}

struct qemu {
  pid_t pid;
  int in, out;
};

/* qemu-io on the image, waiting for commands until its input ends. */
static struct qemu start_qemu_io(const char *name, const char *command)
{
  struct pollfd p = {.events = POLLIN};
  int in[2], out[2];
  struct qemu q;

  assert_int_equal(pipe2(in, O_CLOEXEC), 0);
  assert_int_equal(pipe2(out, O_CLOEXEC), 0);
  q.pid = fork();
  assert_true(q.pid >= 0);
  if (q.pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    execlp("qemu-io", "qemu-io", "-f", "qcow2", name, (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  q.in = in[1];
  q.out = out[0];
  assert_int_equal(write(q.in, command, strlen(command)), strlen(command));
  p.fd = q.out;
  assert_int_equal(poll(&p, 1, 20000), 1);
  return q;
}

static void stop_qemu_io(struct qemu q, int is_kill)
{
  char rest[512];

  if (is_kill)
    kill(q.pid, SIGKILL);
  close(q.in);
  while (read(q.out, rest, sizeof rest) > 0)
    continue;
  close(q.out);
  assert_int_equal(waitpid(q.pid, NULL, 0), q.pid);
}

static void touches_no_image_that_somebody_has_open(void **state)
{
  struct cairn__source *s;
  struct qemu q;

  (void)state;
  make("img", "");
  q = start_qemu_io("img", "length\n");
  assert_int_equal(add("img", 0), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
  stop_qemu_io(q, 0);
  must_add("img", 0);
  /* nor one that somebody reads, us included */
  s = open_source("img");
  assert_int_equal(add("img", 1), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
  assert_non_null(strstr(err.message, "being read"));
  assert_int_equal(take_away("img", 0), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
  cairn__source_close(s);
  assert_int_equal(take_away("img", 0), 0);
}

/* Whatever the image says is below it is not looked at. */
static void follows_no_backing_file(void **state)
{
  (void)state;
  must_run("rm -f img base fifo && qemu-img create -q -f qcow2 base 16M && "
           "qemu-img create -q -f qcow2 -b base -F qcow2 img && rm base && "
           "mkfifo base");
  must_add("img", 0);
  must_run("rm base && qemu-img rebase -u -f qcow2 -F raw -b "
           "nbd://127.0.0.1:1/x img");
  must_add("img", 1);
  assert_int_equal(take_away("img", 0), 0);
  assert_int_equal(count_names("img", "cairn-"), 2);
  must_run("qemu-img info img | grep -q 'backing file: nbd://127.0.0.1:1/x'");
}

static void says_when_qemu_img_is_missing(void **state)
{
  const char *was = getenv("PATH");
  char *path = strdup(was ? was : "/usr/bin:/bin");
  int result;

  (void)state;
  make("img", "");
  setenv("PATH", "/nowhere", 1);
  result = add("img", 0);
  setenv("PATH", path, 1);
  free(path);
  assert_int_equal(result, -1);
  assert_int_equal(err.id, CAIRN_E_HELPER_MISSING);
  assert_non_null(strstr(err.message, "qemu-utils"));
}

/* ---- what was written ---------------------------------------------------- */

static void finds_every_kind_of_write(void **state)
{
  (void)state;
  make("img", "");
  take_point("img", 0);
  assert_int_equal(must_track("img", 0), TAIL);
  must_run("qemu-io -f qcow2 -c 'write -P 1 1M 64k' -c 'write -P 9 130k 1k' "
           "-c 'write -z 4M 128k' -c 'discard 6M 64k' -c 'write -z -u 7M 64k' "
           "img");
  assert_int_equal(must_track("img", 0), TAIL + 1 + 1 + 2 + 1 + 1);
  take_point("img", 1);
  write_at("img", 0);
  /* each answers "since me" */
  assert_int_equal(must_track("img", 1), TAIL + 1);
  assert_int_equal(must_track("img", 0), TAIL + 7);
  assert_int_equal(take_away("img", 1), 0);
  assert_int_equal(must_track("img", 0), TAIL + 7);
  expect_reason(track("img", 1), "is not in");
}

/* What we read in the file is what QEMU serves. */
static void reads_the_bits_as_qemu_serves_them(void **state)
{
  static const char *const clusters[] = {"512", "64k", "2M"};

  (void)state;
  for (size_t i = 0; i < sizeof clusters / sizeof clusters[0]; i++) {
    struct cairn__changes *c;
    char *text, *line, *rest;
    uint64_t dirty = 0;

    must_run("rm -f img && qemu-img create -q -f qcow2 -o cluster_size=%s img "
             "64M",
             clusters[i]);
    take_point("img", 0);
    must_run("qemu-io -f qcow2 -c 'write -P 1 1k 1k' -c 'write 16M 3M' -c "
             "'write 59M 1k' -c 'write 45M 3k' -c 'discard 30M 4M' img");
    must_run("qemu-nbd -r -t -f qcow2 -B cairn-%s -k $PWD/sock img >/dev/null "
             "2>&1 & echo $! "
             ">pid; while ! [ -S sock ]; do sleep 0.01; done",
             points[0].id);
    (void)run(&text,
              "qemu-img map --output=json --image-opts driver=nbd,"
              "server.type=unix,server.path=$PWD/sock,"
              "x-dirty-bitmap=qemu:dirty-bitmap:cairn-%s; kill $(cat pid); "
              "rm -f sock",
              points[0].id);
    assert_int_equal(find_changes("img", 0, points[0].state, &c), 0);
    /* "data" is what is clean there */
    for (line = strtok_r(text, "{", &rest); line;
         line = strtok_r(NULL, "{", &rest)) {
      unsigned long long start, length;

      if (sscanf(line, " \"start\": %llu, \"length\": %llu", &start, &length) !=
              2 ||
          strstr(line, "\"data\": true"))
        continue;
      for (uint64_t b = start / CAIRN__BLOCK;
           b < (start + length) / CAIRN__BLOCK; b++, dirty++)
        assert_true(cairn__changes_is_set(c, b));
    }
    free(text);
    assert_int_equal(dirty, 1 + 48 + 1 + 1 + 64);
    assert_int_equal(cairn__changes_count(c), dirty + TAIL);
    cairn__changes_free(c);
  }
}

static void sees_a_writer_between_adding_and_opening(void **state)
{
  struct cairn__source *s;

  (void)state;
  make("img", "");
  must_add("img", 0);
  write_at("img", 15 * KIB);
  s = open_source("img");
  expect_reason(
      cairn__source_bitmap_is_clean(s, id_of(0), reason, sizeof reason, &err),
      "was written");
  cairn__source_close(s);
  assert_int_equal(take_away("img", 0), 0);
  take_point("img", 0);
  assert_int_equal(must_track("img", 0), TAIL);
}

/* ---- bitmaps that do not count ------------------------------------------- */

static void trusts_no_bitmap_that_a_kill_left_in_use(void **state)
{
  struct cairn__source *s;
  struct qemu q;

  (void)state;
  make("img", "");
  take_point("img", 0);
  q = start_qemu_io("img", "write -P 5 1M 64k\n");
  stop_qemu_io(q, 1);
  expect_reason(track("img", 0), "in-use");
  s = open_source("img");
  expect_reason(cairn__source_bitmap_is_clean(s, points[0].id, reason,
                                              sizeof reason, &err),
                "in-use");
  cairn__source_close(s);
  /* Such a bitmap stops QEMU from resizing the image: the next point clears
   * it away. */
  assert_int_not_equal(run(NULL, "qemu-img resize -f qcow2 img 32M"), 0);
  take_point("img", 1);
  assert_int_equal(count_names("img", "cairn-"), 2);
  must_run("qemu-img resize -q -f qcow2 img 32M");
  expect_reason(track("img", 0), "is not in");
}

static void trusts_no_bitmap_that_was_disabled(void **state)
{
  (void)state;
  make("img", "");
  take_point("img", 0);
  must_run("qemu-img bitmap --disable img cairn-%s", points[0].id);
  write_at("img", 1024);
  expect_reason(track("img", 0), "disabled");
}

/* A program that knows no bitmaps clears their autoclear bit. */
static void trusts_no_bitmap_after_a_program_without_bitmaps(void **state)
{
  int fd;

  (void)state;
  make("img", "");
  take_point("img", 0);
  fd = openat(scratch_fd, "img", O_WRONLY);
  assert_int_equal(pwrite(fd, "\0\0\0\0\0\0\0\0", 8, 88), 8);
  close(fd);
  expect_reason(track("img", 0), "knows no bitmaps");
  must_add("img", 1);
}

/* The bitmaps of a point have one name on all disks. */
static void knows_a_disk_from_another(void **state)
{
  (void)state;
  make("a", "");
  make("b", "");
  must_run("qemu-io -f qcow2 -c 'write -P 2 0 16M' b");
  take_point("a", 0);
  must_add("b", 0);
  must_run("cat a >c && cat b >a && cat c >b");
  expect_reason(track("a", 0), "is not in");
  /* The image itself may be anywhere. */
  write_at("b", 512);
  assert_int_equal(must_track("b", 0), TAIL + 1);
}

static void keeps_internal_snapshots_out(void **state)
{
  (void)state;
  make("img", "");
  must_run("qemu-img snapshot -c one img; qemu-img snapshot -d one img");
  take_point("img", 0);
  must_run("qemu-img snapshot -c two img");
  expect_reason(track("img", 0), "internal snapshots");
  /* While there are bitmaps QEMU reverts to none, or content would change
   * without a mark. */
  assert_int_not_equal(run(NULL, "qemu-img snapshot -a two img"), 0);
}

static void takes_corrupt_bitmaps_for_a_reason(void **state)
{
  struct cairn__source *s;
  struct cairn__changes *c;
  uint64_t size, directory;
  int fd;

  (void)state;
  make("img", "");
  take_point("img", 0);
  directory = find_directory("img", &size);
  s = open_source("img"); /* which QEMU would not do later */
  assert_int_equal(cairn__changes_new(s->length, &c, &err), 0);
  fd = openat(scratch_fd, "img", O_WRONLY);
  assert_int_equal(pwrite(fd, "\xff", 1, (off_t)directory + 17), 1);
  close(fd);
  expect_reason(cairn__source_bitmap_is_clean(s, points[0].id, reason,
                                              sizeof reason, &err),
                "corrupt bitmaps");
  expect_reason(cairn__source_bitmap_changes(s, points[0].id, points[0].state,
                                             &digester, NULL, NULL, c, reason,
                                             sizeof reason, &err),
                "corrupt bitmaps");
  cairn__changes_free(c);
  cairn__source_close(s);
  expect_reason(add("img", 1), "corrupt bitmaps");
}

static void wants_a_state_that_it_understands(void **state)
{
  static const char *const bad[] = {
      "{}",
      "[]",
      "null",
      "7",
      "{\"version\": 2}",
      "{\"version\": 1, \"guard\": 3, \"virtual_size\": 1, \"layers\": [1]}",
      "{\"version\": 1, \"guard\": \"g\", \"virtual_size\": 1, \"layers\": []}",
      "{\"version\": 1, \"guard\": \"g\", \"virtual_size\": 1, \"layers\": "
      "[[]]}",
      "{\"version\": 1, \"guard\": \"g\", \"virtual_size\": 1, \"layers\": "
      "[{}, {}]}"};
  struct cairn__changes *c;

  (void)state;
  make("img", "");
  take_point("img", 0);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    json_t *j = json_loads(bad[i], JSON_DECODE_ANY, NULL);

    assert_non_null(j);
    assert_int_equal(find_changes("img", 0, j, &c), 1);
    cairn__changes_free(c);
    json_decref(j);
  }
  assert_int_equal(find_changes("img", 0, NULL, &c), 1);
  cairn__changes_free(c);
}

/* ---- chains -------------------------------------------------------------- */

/* What qemu-nbd does not notice: it takes the bitmap of a layer below. */
static void takes_no_bitmap_from_further_down(void **state)
{
  (void)state;
  make("low", "");
  take_point("low", 0);
  must_run("rm -f top && qemu-img create -q -f qcow2 -b low -F qcow2 top");
  write_at("top", 1024);
  must_run("qemu-nbd -r -t -f qcow2 -B cairn-%s -k $PWD/sock top >/dev/null "
           "2>&1 & echo $! "
           ">pid; while ! [ -S sock ]; do sleep 0.01; done",
           points[0].id);
  must_run("qemu-img map --image-opts driver=nbd,server.type=unix,"
           "server.path=$PWD/sock,x-dirty-bitmap=qemu:dirty-bitmap:cairn-%s "
           ">map.txt; kill $(cat pid); rm -f sock",
           points[0].id);
  must_run("grep -q '^0 *0x1000000 ' map.txt"); /* all of it is clean */
  expect_reason(track("top", 0), "is not in");
}

static void copy_bitmap(const char *from, const char *to, unsigned n)
{
  must_run("qemu-img bitmap --add --merge cairn-%s -b %s -F qcow2 -f qcow2 %s "
           "cairn-%s",
           points[n].id, from, to, points[n].id);
}

static void joins_the_layers_that_have_the_bitmap(void **state)
{
  (void)state;
  make("low", "");
  take_point("low", 0);
  write_at("low", 1024);
  must_run("rm -f top mid && qemu-img create -q -f qcow2 -b low -F qcow2 mid");
  must_run("qemu-img bitmap --add -g 64k -f qcow2 mid cairn-%s", points[0].id);
  write_at("mid", 2048);
  must_run("qemu-img create -q -f qcow2 -b mid -F qcow2 top");
  copy_bitmap("mid", "top", 0);
  write_at("top", 3072);
  must_run("qemu-io -f qcow2 -c 'write -z 5M 64k' top");
  assert_int_equal(must_track("top", 0), TAIL + 4);
  /* one of them less */
  must_run("qemu-img bitmap --disable mid cairn-%s", points[0].id);
  expect_reason(track("top", 0), "disabled");
  must_run("qemu-img bitmap --enable mid cairn-%s", points[0].id);
  assert_int_equal(must_track("top", 0), TAIL + 4);
  must_run("qemu-img bitmap --remove low cairn-%s", points[0].id);
  expect_reason(track("top", 0), "is not in");
}

/* A bitmap that was added to a layer after it had been written. */
static void counts_what_a_new_layer_holds(void **state)
{
  (void)state;
  make("low", "");
  take_point("low", 0);
  must_run("rm -f top && qemu-img create -q -f qcow2 -b low -F qcow2 top");
  write_at("top", 2048);
  must_run("qemu-io -f qcow2 -c 'write -z 4M 64k' top");
  must_run("qemu-img bitmap --add -g 64k -f qcow2 top cairn-%s", points[0].id);
  assert_int_equal(must_track("top", 0), TAIL + 2);
  /* a layer that was too short for a while */
  must_run("qemu-img resize -q --shrink -f qcow2 top 8M && qemu-img create -q "
           "-f qcow2 -b top -F qcow2 over 16M");
  must_run("qemu-img bitmap --add -g 64k -f qcow2 over cairn-%s", points[0].id);
  assert_int_equal(must_track("over", 0), 2 + 128);
}

static void follows_a_commit_back_into_the_layer(void **state)
{
  (void)state;
  make("low", "");
  take_point("low", 0);
  must_run("rm -f top && qemu-img create -q -f qcow2 -b low -F qcow2 top");
  write_at("top", 2048);
  must_run("qemu-img commit -q -f qcow2 top");
  assert_int_equal(must_track("low", 0), TAIL + 1);
}

static void make_pair(const char *format)
{
  if (strcmp(format, "raw") == 0)
    must_run("rm -f low && head -c 16M /dev/urandom >low");
  else
    make("low", "");
  must_run("rm -f top && qemu-img create -q -f qcow2 -b low -F %s top 16M",
           format);
  take_point("top", 0);
  write_at("top", 1024);
  assert_int_equal(must_track("top", 0), TAIL + 1);
}

static void falls_back_when_a_layer_below_has_changed(void **state)
{
  (void)state;
  make_pair("qcow2");
  write_at("low", 64);
  expect_reason(track("top", 0), "differs");
  make_pair("raw");
  must_run("touch -r low stamp && printf x | dd of=low conv=notrunc bs=1 "
           "seek=3M status=none && touch -r stamp low");
  expect_reason(track("top", 0), "change time");
  make_pair("raw");
  must_run("cp -p low other && mv other low");
  expect_reason(track("top", 0), "file differs");
}

static void falls_back_after_a_rebase(void **state)
{
  (void)state;
  make_pair("raw");
  must_run("cp low other && qemu-img rebase -u -f qcow2 -F raw -b other top");
  expect_reason(track("top", 0), "differs");
  must_run("qemu-img rebase -u -f qcow2 -F raw -b low top");
  assert_int_equal(must_track("top", 0), TAIL + 1);
  /* the same file, read as something else */
  make_pair("qcow2");
  must_run("qemu-img rebase -u -f qcow2 -b '' top");
  expect_reason(track("top", 0), "layers");
  must_run("qemu-img rebase -u -f qcow2 -F qcow2 -b low top");
  assert_int_equal(must_track("top", 0), TAIL + 1);
  must_run("qemu-img rebase -f qcow2 -b '' top");
  expect_reason(track("top", 0), "layers");
}

static void trusts_no_block_device_below(void **state)
{
  char *said, loop[64];
  int result;

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("truncate -s 16M disk");
  result = run(&said, "losetup -r --find --show disk");
  snprintf(loop, sizeof loop, "%.*s", (int)strcspn(said, "\n"), said);
  free(said);
  if (result != 0)
    skip_because("needs a free loop device");
  must_run("rm -f top && qemu-img create -q -f qcow2 -b %s -F raw top 16M",
           loop);
  must_add("top", 0);
  {
    struct cairn__source_options o = options("top");
    const char *directories[] = {"/dev"};
    struct cairn__source *s;
    json_t *j;
    size_t active;

    o.directories = directories;
    o.directory_count = 1;
    result = cairn__source_open_qcow2(&o, NULL, &s, &err);
    if (result == 0) {
      assert_int_equal(cairn__bitmap_state(s, &j, &err), 0);
      result = cairn__bitmap_check_state(j, cairn__source_chain(s), &active,
                                         reason, sizeof reason, &err);
      json_decref(j);
      cairn__source_close(s);
    }
  }
  must_run("losetup -d %s", loop);
  expect_reason(result, "block device");
}

/* ---- sizes --------------------------------------------------------------- */

static const char *const cluster_sizes[] = {"512", "4k", "64k", "512k", "2M"};

static void make_sized(const char *cluster, int has_backing)
{
  must_run("rm -f img low && qemu-img create -q -f qcow2 low 8M && qemu-io -f "
           "qcow2 -c 'write -P 3 0 8M' low");
  if (has_backing)
    must_run("qemu-img create -q -f qcow2 -o cluster_size=%s -b low -F qcow2 "
             "img && qemu-io -f qcow2 -c 'write -P 1 0 5M' img",
             cluster);
  else
    must_run("qemu-img convert -f qcow2 -O qcow2 -o cluster_size=%s low img",
             cluster);
}

/* The place where a disk was cut may be anywhere in a block or a cluster. Where
 * there is a backing file QEMU then writes zeros behind it, else what was there
 * comes back; it marks neither. */
static void finds_what_shrinking_and_growing_did(void **state)
{
  static const struct {
    const char *cluster;
    int has_backing;
    uint64_t cut;
  } cases[] = {{"64k", 0, 3 * MIB},       {"64k", 1, 3 * MIB + 4096},
               {"2M", 0, 3 * MIB + 4096}, {"2M", 1, 4 * MIB - 512},
               {"4k", 0, 3 * MIB + 4096}, {"4k", 1, 4 * MIB - 512},
               {"64k", 1, 8 * MIB - 512}};

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    uint64_t cut = cases[i].cut, behind = cut / KIB + 100, marked;

    make_sized(cases[i].cluster, cases[i].has_backing);
    take_point("img", 0);
    /* marks that the cut loses */
    must_run("qemu-io -f qcow2 -c 'write -P 7 %lluk 1k' img && qemu-img resize "
             "-q --shrink -f qcow2 img %llu && qemu-img resize -q -f qcow2 img "
             "8M",
             (unsigned long long)(behind < 8191 ? behind : 8191),
             (unsigned long long)cut);
    marked = must_track("img", 0);
    assert_true(marked <= (8 * MIB - cut + 4 * MIB) / CAIRN__BLOCK);
    /* what a guest writes at the end hides nothing */
    write_at("img", 8191);
    assert_int_equal(must_track("img", 0), marked);
  }
}

static void finds_what_growing_and_shrinking_did(void **state)
{
  static const char *const steps[] = {"12M",        "10000384", "9M 8M",
                                      "12M 9M 12M", "3M",       "12M 3M 8M",
                                      "4M 6M 8M",   "512 8M"};

  (void)state;
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    make_sized(cluster_sizes[i % 5], i / 4 % 2);
    take_point("img", 0);
    must_run("for s in %s; do qemu-io -f qcow2 -c 'write -P 4 2M 1k' -c 'write "
             "-P 6 8380k 6k' -c 'write -P 8 10M 3k' img; qemu-img resize -q "
             "--shrink -f qcow2 img $s || exit 1; done",
             steps[i]);
    must_track("img", 0);
  }
}

/* Zeros that no bitmap knows of: entries of the tables taken away by hand. */
static void believes_the_allocation_more_than_the_bitmap(void **state)
{
  unsigned char b[8];
  uint64_t l1 = 0, l2 = 0;
  int fd;

  (void)state;
  make("img", "");
  take_point("img", 0);
  fd = openat(scratch_fd, "img", O_RDWR);
  assert_int_equal(pread(fd, b, 8, 40), 8);
  for (int i = 0; i < 8; i++)
    l1 = l1 << 8 | b[i];
  assert_int_equal(pread(fd, b, 8, (off_t)l1), 8);
  for (int i = 1; i < 8; i++)
    l2 = l2 << 8 | b[i];
  memset(b, 0, sizeof b);
  assert_int_equal(pwrite(fd, b, 8, (off_t)(l2 + UINT64_C(8) * 33)), 8);
  close(fd);
  assert_int_equal(must_track("img", 0), TAIL + 1);
}

static void takes_a_disk_of_no_bytes(void **state)
{
  int result;

  (void)state;
  must_run("rm -f img && qemu-img create -q -f qcow2 img 0");
  result = add("img", 0);
  if (result == 0) {
    settle_point("img", 0);
    assert_int_equal(must_track("img", 0), 0);
  } else {
    expect_reason(result, "qemu-img");
  }
}

/* ---- faults -------------------------------------------------------------- */

static int fails_one_call(uint64_t at, int kind, uint64_t *calls)
{
  struct cairn__source_options o = options("img");
  struct cairn__fault_io f;
  int result;

  cairn__fault_io_init(&f, at, kind, EIO);
  o.io = &f.io;
  result = cairn__bitmap_add(&o, id_of(0), NULL, reason, sizeof reason, &err);
  *calls = f.calls;
  if (result == 1)
    assert_true(reason[0]);
  if (result == -1)
    assert_true(err.id != CAIRN_OK);
  return result;
}

/* One that failed leaves nothing that the next one could take for good. */
static void comes_through_every_fault(void **state)
{
  uint64_t calls, all;
  int before = count_fds(), failed = 0;

  (void)state;
  make("img", "");
  assert_int_equal(fails_one_call(0, CAIRN__FAULT_NONE, &all), 0);
  assert_true(all > 20);
  assert_int_equal(take_away("img", 0), 0);
  for (uint64_t at = 1; at <= all; at++) {
    if (fails_one_call(at, CAIRN__FAULT_ERRNO, &calls) != 0) {
      failed++;
      continue;
    }
    assert_int_equal(count_names("img", "cairn-"), 2);
    assert_int_equal(take_away("img", 0), 0);
  }
  assert_true(failed > 10);
  assert_int_equal(count_fds(), before);
  assert_int_equal(take_away("img", 0), 0);
  assert_int_equal(count_names("img", "cairn-"), 0);
  must_run("qemu-img check -q -f qcow2 img");
}

static void comes_through_every_failed_allocation(void **state)
{
  struct cairn__source *s;
  struct cairn__map *map;
  struct cairn__changes *c;
  int has_failed = 1;

  (void)state;
  make("img", "");
  take_point("img", 0);
  write_at("img", 1024);
  s = open_source("img");
  assert_int_equal(cairn__map_open(io, scratch_fd, points[0].map, NULL,
                                   &digester, &map, &err),
                   0);
  assert_int_equal(cairn__changes_new(s->length, &c, &err), 0);
  for (long n = 1; has_failed; n++) {
    json_t *j = NULL;
    int result;

    assert_true(n < 1000);
    cairn_set_allocator(failing_realloc, failing_free);
    atomic_store(&alloc_countdown, n);
    result = cairn__source_bitmap_is_clean(s, points[0].id, reason,
                                           sizeof reason, &err);
    if (result == 1)
      result = cairn__bitmap_state(s, &j, &err);
    if (result == 0)
      result = cairn__source_bitmap_changes(s, points[0].id, points[0].state,
                                            &digester, map, NULL, c, reason,
                                            sizeof reason, &err);
    has_failed = atomic_load(&alloc_countdown) <= 0;
    atomic_store(&alloc_countdown, 0);
    cairn_set_allocator(NULL, NULL);
    json_decref(j);
    if (result < 0)
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    else
      assert_int_equal(result, 0);
  }
  cairn__changes_free(c);
  cairn__map_close(map);
  cairn__source_close(s);
}

/* ---- speed --------------------------------------------------------------- */

static double seconds_now(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* 100 GiB with 40 MiB changed, in 640 places. */
static void takes_as_long_as_there_are_changes(void **state)
{
  static const unsigned char nobody[16];
  unsigned char root[CAIRN__DIGEST_MAX], file[CAIRN__DIGEST_MAX];
  struct cairn__source *s;
  struct cairn__map_writer *w;
  struct cairn__map *map;
  struct cairn__changes *c;
  struct point *p = &points[0];
  uint64_t bytes, size = 100 * KIB * MIB;
  double begin, added, opened, found = 9;
  FILE *f;

  (void)state;
  must_run("rm -f img && qemu-img create -q -f qcow2 img 100G");
  begin = seconds_now();
  must_add("img", 0);
  added = seconds_now() - begin;
  s = open_source("img");
  drop_point(p);
  assert_int_equal(cairn__bitmap_state(s, &p->state, &err), 0);
  cairn__source_close(s);
  snprintf(p->map, sizeof p->map, "map0");
  (void)unlinkat(scratch_fd, p->map, 0);
  assert_int_equal(cairn__map_create(io, scratch_fd, p->map, NULL, &digester,
                                     size, size, nobody, &w, &err),
                   0);
  assert_int_equal(cairn__map_finish(w, root, file, &bytes, &err), 0);
  f = fopen("commands", "w");
  assert_non_null(f);
  for (unsigned i = 0; i < 640; i++)
    fprintf(f, "write %uM 64k\n", i * 153);
  fclose(f);
  must_run("qemu-io -f qcow2 img <commands >/dev/null");

  begin = seconds_now();
  s = open_source("img");
  opened = seconds_now() - begin;
  assert_int_equal(
      cairn__map_open(io, scratch_fd, p->map, NULL, &digester, &map, &err), 0);
  /* The best of some: others use the processors, too. */
  for (int i = 0; i < 5; i++) {
    double took;

    assert_int_equal(cairn__changes_new(s->length, &c, &err), 0);
    begin = seconds_now();
    assert_int_equal(cairn__source_bitmap_changes(s, p->id, p->state, &digester,
                                                  map, NULL, c, reason,
                                                  sizeof reason, &err),
                     0);
    took = seconds_now() - begin;
    found = took < found ? took : found;
    assert_int_equal(cairn__changes_count(c), 640 + TAIL);
    cairn__changes_free(c);
    if (i == 0)
      printf("# the first time %.3f s\n", took);
  }
  printf("# 100 GiB, 40 MiB changed: bitmaps added in %.3f s, source opened in "
         "%.3f s, changes found in %.3f s\n",
         added, opened, found);
#ifndef CAIRN_SANITIZED
  assert_true(found < 0.3);
#endif
  cairn__map_close(map);
  cairn__source_close(s);
}

/* ---- whatever comes ------------------------------------------------------ */

struct history {
  char top[16]; /* the image */
  unsigned layers, steps, points;
  uint64_t size;
};

static uint64_t random_offset(const struct history *h, uint64_t *length)
{
  uint64_t offset = random_below(h->size / 512) * 512;
  uint64_t most = (h->size - offset) / 512;

  *length = (1 + random_below(random_below(2) ? 16 : 1500)) * 512;
  if (*length > most * 512)
    *length = most * 512;
  return offset;
}

static void step_io(struct history *h, int is_kill)
{
  static const char *const kinds[] = {"write -P 3", "write -P 4",  "write -P 3",
                                      "write -z",   "write -z -u", "discard"};
  char commands[1024] = "";
  size_t used = 0;
  uint64_t n = 1 + random_below(4);

  while (n-- > 0) {
    uint64_t length, offset = random_offset(h, &length);

    used += (size_t)snprintf(commands + used, sizeof commands - used,
                             " -c '%s %llu %llu'", kinds[random_below(6)],
                             (unsigned long long)offset,
                             (unsigned long long)length);
  }
  if (is_kill)
    (void)run(NULL, "qemu-io -f qcow2 %s -c 'sigraise 9' %s", commands, h->top);
  else
    must_run("qemu-io -f qcow2 %s %s", commands, h->top);
}

static uint64_t random_size(void)
{
  /* often at a boundary */
  uint64_t size = (1 + random_below(24 * KIB)) * 512;

  return random_below(3) ? size : (size + MIB) & ~(MIB - 1);
}

/* With bitmaps in use QEMU refuses, and nothing has happened. */
static void step_resize(struct history *h, uint64_t size)
{
  if (run(NULL, "qemu-img resize -q --shrink -f qcow2 %s %llu", h->top,
          (unsigned long long)size) == 0)
    h->size = size;
}

static void step_snapshot(struct history *h)
{
  static const char *const clusters[] = {"4k", "64k", "2M"};
  char below[16];
  uint64_t how = random_below(3);

  if (h->layers == 4)
    return;
  snprintf(below, sizeof below, "%s", h->top);
  snprintf(h->top, sizeof h->top, "layer%u", h->layers++);
  must_run("rm -f %s && qemu-img create -q -f qcow2 -o cluster_size=%s -b %s "
           "-F qcow2 %s",
           h->top, clusters[random_below(3)], below, h->top);
  for (unsigned i = 0; i < h->points && how > 0; i++) {
    /* one that is missing or useless there cannot be copied */
    (void)run(NULL,
              how == 1 ? "qemu-img bitmap --add --merge cairn-%s -b %s -F "
                         "qcow2 -f qcow2 %s cairn-%s"
                       : "true %s %s; qemu-img bitmap --add -g 64k -f qcow2 %s "
                         "cairn-%s",
              points[i].id, below, h->top, points[i].id);
  }
}

static void step_point(struct history *h)
{
  int result;

  if (h->points == POINTS)
    return;
  result = add(h->top, h->points);
  if (result < 0)
    fail_msg("%s", err.message);
  if (result == 0)
    settle_point(h->top, h->points++);
}

static void step_rebase(struct history *h)
{
  char *below;

  if (h->layers == 1)
    return;
  (void)run(&below,
            "qemu-img info %s | sed -n 's/^backing file: "
            "\\([a-z0-9]*\\).*/\\1/p'",
            h->top);
  below[strcspn(below, "\n")] = '\0';
  must_run("cp %s copy%u && qemu-io -f qcow2 -c 'write -P 12 0 512' copy%u && "
           "qemu-img rebase -u -f qcow2 -F qcow2 -b copy%u %s",
           below, h->steps, h->steps, h->steps, h->top);
  free(below);
}

static void one_step(struct history *h)
{
  uint64_t which = random_below(40);

  h->steps++;
  if (which < 18)
    step_io(h, 0);
  else if (which < 26) {
    uint64_t size = h->size;

    step_resize(h, random_size());
    if (random_below(2))
      step_resize(h, size);
  } else if (which < 30)
    step_resize(h, random_size());
  else if (which < 34)
    step_snapshot(h);
  else if (which < 38)
    step_point(h);
  else if (which < 39)
    step_rebase(h);
  else
    step_io(h, 1);
}

/* By how many points the changes were told, by how many they were not. */
static void check_points(const struct history *h, unsigned tally[2])
{
  for (unsigned i = 0; i < h->points; i++) {
    struct cairn__changes *c;
    int result = find_changes(h->top, i, points[i].state, &c);

    if (result < 0)
      fail_msg("%s", err.message);
    if (result == 0)
      check_marks(h->top, i, c);
    tally[result]++;
    cairn__changes_free(c);
  }
}

static void one_history(unsigned tally[2])
{
  struct history h = {.top = "layer0", .layers = 1, .size = random_size()};
  uint64_t steps = 3 + random_below(10);

  must_run(
      "rm -f layer* copy* back && qemu-img create -q -f qcow2 back %llu && "
      "qemu-io -f qcow2 -c 'write -P 2 0 %llu' back",
      (unsigned long long)h.size, (unsigned long long)h.size);
  if (random_below(2))
    must_run("qemu-img create -q -f qcow2 -o cluster_size=%s -b back -F qcow2 "
             "layer0",
             cluster_sizes[random_below(5)]);
  else
    must_run("qemu-img convert -f qcow2 -O qcow2 -o cluster_size=%s back "
             "layer0",
             cluster_sizes[random_below(5)]);
  step_point(&h);
  while (steps-- > 0)
    one_step(&h);
  check_points(&h, tally);
}

static void marks_all_that_differs_whatever_happened(void **state)
{
  const char *seed = getenv("CAIRN_SEED"), *budget = getenv("CAIRN_SECONDS");
  uint64_t first =
      seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL) % 1000000;
  double end = seconds_now() + (budget ? atof(budget) : 20);
  unsigned tally[2] = {0}, count = 0;

  (void)state;
  printf("# seed %llu\n", (unsigned long long)first);
  do {
    /* history N of a seed is the first one of seed + N */
    random_state = first + count++;
    print_message("# history of seed %llu\n",
                  (unsigned long long)(first + count - 1));
    one_history(tally);
  } while (seconds_now() < end);
  printf("# ran %u histories: %u times the changes were told, %u times not\n",
         count, tally[0], tally[1]);
  assert_true(tally[0] > 0);
}

static int setup(void **state)
{
  static const unsigned char secret[CAIRN__SECRET_SIZE] = {1, 2, 3};

  cairn__digester_init(&digester, CAIRN__XXH3_128, secret);
  /* Hundreds of images, each synced by QEMU: in memory that is seconds. */
  if (access("/dev/shm", W_OK) == 0)
    setenv("TMPDIR", "/dev/shm", 0);
  return scratch_open(state);
}

static int teardown(void **state)
{
  for (unsigned i = 0; i < POINTS; i++)
    drop_point(&points[i]);
  return scratch_close(state);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(lists_what_qemu_has_written),
      cmocka_unit_test(knows_its_own_names),
      cmocka_unit_test(survives_a_corrupt_directory),
      cmocka_unit_test(adds_a_bitmap_and_its_guard_and_removes_both),
      cmocka_unit_test(makes_another_guard_when_one_was_cut),
      cmocka_unit_test(adds_none_where_there_can_be_none),
      cmocka_unit_test(has_the_bitmaps_of_eight_points_and_a_left_one_at_most),
      cmocka_unit_test(drops_the_oldest_of_a_published_point_in_any_case),
      cmocka_unit_test(writes_nothing_that_it_must_not_write),
      cmocka_unit_test(touches_no_image_that_somebody_has_open),
      cmocka_unit_test(follows_no_backing_file),
      cmocka_unit_test(says_when_qemu_img_is_missing),
      cmocka_unit_test(finds_every_kind_of_write),
      cmocka_unit_test(reads_the_bits_as_qemu_serves_them),
      cmocka_unit_test(sees_a_writer_between_adding_and_opening),
      cmocka_unit_test(trusts_no_bitmap_that_a_kill_left_in_use),
      cmocka_unit_test(trusts_no_bitmap_that_was_disabled),
      cmocka_unit_test(trusts_no_bitmap_after_a_program_without_bitmaps),
      cmocka_unit_test(knows_a_disk_from_another),
      cmocka_unit_test(keeps_internal_snapshots_out),
      cmocka_unit_test(takes_corrupt_bitmaps_for_a_reason),
      cmocka_unit_test(wants_a_state_that_it_understands),
      cmocka_unit_test(takes_no_bitmap_from_further_down),
      cmocka_unit_test(joins_the_layers_that_have_the_bitmap),
      cmocka_unit_test(counts_what_a_new_layer_holds),
      cmocka_unit_test(follows_a_commit_back_into_the_layer),
      cmocka_unit_test(falls_back_when_a_layer_below_has_changed),
      cmocka_unit_test(falls_back_after_a_rebase),
      cmocka_unit_test(trusts_no_block_device_below),
      cmocka_unit_test(finds_what_shrinking_and_growing_did),
      cmocka_unit_test(finds_what_growing_and_shrinking_did),
      cmocka_unit_test(believes_the_allocation_more_than_the_bitmap),
      cmocka_unit_test(takes_a_disk_of_no_bytes),
      cmocka_unit_test(comes_through_every_fault),
      cmocka_unit_test(comes_through_every_failed_allocation),
      cmocka_unit_test(takes_as_long_as_there_are_changes),
      cmocka_unit_test(marks_all_that_differs_whatever_happened),
  };

  return cmocka_run_group_tests(tests, setup, teardown);
}
