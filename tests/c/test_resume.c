/* An export that was interrupted goes on, and ends with the bytes of one that
 * was not.
 *
 * The judge is cmp: with SHA-256 there is no secret, so that with the same
 * point id image and digest map of a resumed export have to be those of an
 * export of the same source that ran through. What the interruption may have
 * left, and what the storage may have lost of it, is made up at random;
 * CAIRN_SEED and CAIRN_SECONDS (default 20, shared by the sweeps) choose,
 * CAIRN_LONG=1 visits every system call; CAIRN_SWEEP is how many ends of the
 * process each sweep has at least (12). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "error.h"
#include "export/image.h"
#include "export/kinds.h"
#include "io.h"
#include "memory.h"
#include "run.h"
#include "skip.h"

#define VM        "AAAAAAAA-0000-0000-0000-000000000001"
#define POINT     "BBBBBBBB-0000-0000-0000-000000000001"
#define KIB       1024u
#define MIB       (1024u * 1024u)
#define PATH_SIZE 600

/* A process that ends before a call leaves threads that nobody has joined. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
  return "report_thread_leaks=0";
}

static char top[64];
static uint64_t random_state;

static void shell(const char *fmt, ...)
{
  char command[4096];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(command, sizeof command, fmt, ap);
  va_end(ap);
  if (system(command) != 0)
    fail_msg("%s", command);
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
  return text ? atof(text) : 20;
}

static unsigned long seed(void)
{
  const char *text = getenv("CAIRN_SEED");
  return text ? strtoul(text, NULL, 10) : 1;
}

static uint64_t draw(uint64_t below)
{
  random_state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t x = random_state;
  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (x ^ (x >> 31)) % below;
}

/* ---- exports ------------------------------------------------------------- */

/* What is exported, and how. */
struct form {
  const char *disks;      /* JSON, $ = top */
  const char *format;     /* of fulls */
  const char *base;       /* "none" or "latest" */
  const char *collection; /* last digit of its id */
  const char *more;       /* further settings */
};

static json_t *specification(const struct form *f, const char *target)
{
  char text[4096], spread[8192];
  json_error_t e;
  struct cairn_error err;
  snprintf(text, sizeof text,
           "{\"collection\":{\"CollectionId\":\"11111111-2222-3333-4444-"
           "55555555555%s\",\"machines\":[{\"VirtualMachineId\":\"" VM
           "\",\"disks\":[%s],\"config\":[\"$/a.xml\"]}]},\"directory\":"
           "\"$/%s\",\"digest\":\"sha-256\",\"format\":\"%s\",\"base\":\"%s\"%s"
           "}",
           f->collection ? f->collection : "1", f->disks, target,
           f->format ? f->format : "qcow2", f->base ? f->base : "none",
           f->more ? f->more : "");
  size_t n = 0;
  for (const char *s = text; *s; s++) {
    if (*s == '$')
      n += (size_t)snprintf(spread + n, sizeof spread - n, "%s", top);
    else
      spread[n++] = *s;
  }
  spread[n] = '\0';
  json_t *spec = json_loads(spread, 0, &e);
  if (!spec)
    fail_msg("%s: %s", e.text, spread);
  cairn__error_clear(&err);
  if (cairn__kind_export.check(spec, &err))
    fail_msg("%s", err.message);
  return spec;
}

static struct cairn__run *new_run(void (*main)(struct cairn__run *),
                                  const struct cairn_io *io, json_t *spec,
                                  const char *point)
{
  static unsigned serial;
  struct cairn__run *run = cairn__run_new(NULL);
  assert_non_null(run);
  serial++;
  run->main = main;
  run->io = io;
  run->clock = &cairn__system_clock;
  run->spec = spec;
  /* A new job each time, as the command makes one. */
  snprintf(run->job_uuid, sizeof run->job_uuid, "DDDDDDDD-0000-0000-%04X-%012u",
           (unsigned)getpid() & 0xffff, serial);
  snprintf(run->instance_id, sizeof run->instance_id, "Cairn:%s",
           run->job_uuid);
  snprintf(run->point_uuid, sizeof run->point_uuid, "%s", point);
  run->number = 1;
  run->epoch = 1;
  return run;
}

static struct cairn__run *export_as(const struct form *f, const char *target,
                                    const char *point,
                                    const struct cairn_io *io)
{
  struct cairn__run *run =
      new_run(cairn__kind_export.main, io ? io : &cairn__system_io,
              specification(f, target), point);
  cairn__run_here(run);
  return run;
}

static void must_export(const struct form *f, const char *target,
                        const char *point)
{
  struct cairn__run *run = export_as(f, target, point, NULL);
  if (run->error.id != CAIRN_OK)
    fail_msg("%s", run->error.message);
  cairn__run_release(run);
}

/* Those that the process has left behind become ours (set_up), and have the
 * sources locked until the kernel has killed them. */
static void reap_orphans(void)
{
  for (int i = 0; i < 10000; i++) {
    pid_t pid = waitpid(-1, NULL, WNOHANG);
    if (pid < 0)
      return;
    if (pid == 0)
      poll(NULL, 0, 1);
  }
  fail_msg("a helper outlives its process");
}

/* 1 when the process ended before this call of the export. */
static int export_killed_at(const struct form *f, const char *target,
                            uint64_t call)
{
  int status;
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    struct cairn__fault_io fault;
    cairn__fault_io_init(&fault, call, CAIRN__FAULT_KILL, 0);
    _exit(export_as(f, target, POINT, &fault.io)->error.id ? 1 : 0);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  reap_orphans();
  assert_true(WIFEXITED(status));
  if (WEXITSTATUS(status) != 137 && WEXITSTATUS(status) != 0)
    fail_msg("killed at call %llu, it ended with %d", (unsigned long long)call,
             WEXITSTATUS(status));
  return WEXITSTATUS(status) == 137;
}

static uint64_t calls_of(const struct form *f, const char *target)
{
  struct cairn__fault_io fault;
  cairn__fault_io_init(&fault, 0, CAIRN__FAULT_NONE, 0);
  struct cairn__run *run = export_as(f, target, POINT, &fault.io);
  if (run->error.id != CAIRN_OK)
    fail_msg("%s", run->error.message);
  cairn__run_release(run);
  return fault.calls;
}

static int partials(const char *target, char name[PATH_SIZE])
{
  char path[256];
  int n = 0;
  snprintf(path, sizeof path, "%s/%s", top, target);
  DIR *dir = opendir(path);
  struct dirent *e;
  while (dir && (e = readdir(dir))) {
    if (strncmp(e->d_name, ".partial-", 9) != 0)
      continue;
    n++;
    if (name)
      snprintf(name, PATH_SIZE, "%s/%s", path, e->d_name);
  }
  if (dir)
    closedir(dir);
  return n;
}

static int is_published(const char *target)
{
  char path[256];
  snprintf(path, sizeof path, "%s/%s/" POINT, top, target);
  return access(path, F_OK) == 0;
}

static void expect_verified(const char *target, const char *what)
{
  char text[256];
  struct cairn_error err;
  snprintf(text, sizeof text, "{\"directory\":\"%s/%s\"}", top, target);
  json_t *spec = json_loads(text, 0, NULL);
  assert_int_equal(cairn__kind_verify.check(spec, &err), 0);
  struct cairn__run *run =
      new_run(cairn__kind_verify.main, &cairn__system_io, spec, POINT);
  cairn__run_here(run);
  if (run->error.id)
    fail_msg("%s: verify: %s", what, run->error.message);
  cairn__run_release(run);
}

/* Point and content are those of an export that ran through. */
static void expect_same(const char *target, const char *reference,
                        const char *what)
{
  char command[1024];
  snprintf(command, sizeof command,
           "cd %s && diff -rq -x manifest.json %s/" POINT " %s/" POINT, top,
           target, reference);
  if (system(command) != 0)
    fail_msg("%s: other bytes than without an interruption", what);
  if (partials(target, NULL) != 0)
    fail_msg("%s: a work directory stayed", what);
  expect_verified(target, what);
}

static json_int_t of_disk(const struct cairn__run *run, size_t i,
                          const char *name)
{
  const json_t *machine =
      json_array_get(json_object_get(run->report, "machines"), 0);
  const json_t *disk = json_array_get(json_object_get(machine, "disks"), i);
  return json_integer_value(json_object_get(disk, name));
}

/* The directory as it is before the export that is interrupted. */
static void prepare_target(const struct form *f, const char *target)
{
  shell("cd %s && rm -rf %s && mkdir %s", top, target, target);
  if (f->base)
    shell("cp -r %s/with-base/. %s/%s/", top, top, target);
}

/* ---- killed anywhere ----------------------------------------------------- */

#define RAW_DISK "{\"id\":\"vda\",\"path\":\"$/a.raw\",\"format\":\"raw\"}"
#define QCOW2_DISK                                                             \
  "{\"id\":\"vdb\",\"path\":\"$/b.qcow2\",\"format\":\"qcow2\"}"

#define BITMAP_DISK                                                            \
  "{\"id\":\"vdb\",\"path\":\"$/b.qcow2\",\"format\":\"qcow2\","               \
  "\"tracker\":\"bitmap\"}"

/* How many ends of the process a sweep has at least (CAIRN_SWEEP). */
static unsigned least(void)
{
  const char *text = getenv("CAIRN_SWEEP");

  return text ? (unsigned)strtoul(text, NULL, 10) : 12;
}

static void sweep_kills(const struct form *f, const char *what)
{
  double deadline = seconds_now() + budget() / 4;
  unsigned killed = 0, twice = 0;
  uint64_t calls, stride, at;

  prepare_target(f, "ref");
  calls = calls_of(f, "ref");
  stride = getenv("CAIRN_LONG") ? 1 : 1 + draw(7);
  if (getenv("CAIRN_LONG"))
    deadline = 1e300;
  for (at = 1 + draw(stride);
       at <= calls && (seconds_now() < deadline || killed < least());
       at += killed < least() && seconds_now() > deadline ? calls / least()
                                                          : stride) {
    char text[128];
    prepare_target(f, "out");
    if (!export_killed_at(f, "out", at))
      continue;
    killed++;
    snprintf(text, sizeof text, "%s, killed at call %llu of %llu", what,
             (unsigned long long)at, (unsigned long long)calls);
    /* Killed again, on the way to where it was or behind it. */
    if (!is_published("out") && draw(2) == 0)
      twice += (unsigned)export_killed_at(f, "out", 1 + draw(calls));
    if (!is_published("out"))
      must_export(f, "out", POINT);
    else
      must_export(&(struct form){.disks = RAW_DISK}, "out",
                  "BBBBBBBB-0000-0000-0000-000000000009");
    expect_same("out", "ref", text);
  }
  printf("# ran %u ends of the process over the %llu calls of an export (%s), "
         "%u of them followed by another (seed %lu)\n",
         killed, (unsigned long long)calls, what, twice, seed());
  assert_true(killed >= least());
}

static void ends_with_the_same_bytes_wherever_it_was_killed(void **state)
{
  (void)state;
  sweep_kills(&(struct form){.disks = RAW_DISK}, "raw to qcow2");
  sweep_kills(&(struct form){.disks = RAW_DISK "," QCOW2_DISK, .format = "raw"},
              "to raw");
  sweep_kills(&(struct form){.disks = QCOW2_DISK}, "qcow2");
  sweep_kills(&(struct form){.disks = BITMAP_DISK}, "qcow2 with bitmaps");
  shell("cd %s && qemu-img check -q b.qcow2", top);
  sweep_kills(&(struct form){.disks = RAW_DISK, .base = "latest"}, "increment");
}

/* ---- what is saved ------------------------------------------------------- */

#define BIG_DISK "{\"id\":\"vda\",\"path\":\"$/big.raw\",\"format\":\"raw\"}"

static _Atomic uint64_t direct_bytes;

static ssize_t counting_pwritev(const struct cairn_io *io, int fd,
                                const struct iovec *iov, int count,
                                off_t offset)
{
  ssize_t n = cairn__system_io.pwritev(io, fd, iov, count, offset);
  if (n > 0)
    atomic_fetch_add(&direct_bytes, (uint64_t)n);
  return n;
}

/* An export of big.raw ends when about this share of its calls is made. */
static void interrupt_big(const struct form *f, double share)
{
  prepare_target(f, "ref");
  uint64_t calls = calls_of(f, "ref");
  prepare_target(f, "out");
  assert_true(export_killed_at(f, "out", (uint64_t)((double)calls * share)));
  assert_int_equal(partials("out", NULL), 1);
}

static void writes_nothing_twice(void **state)
{
  const struct form forms[] = {{.disks = BIG_DISK},
                               {.disks = BIG_DISK, .format = "raw"}};
  (void)state;
  for (size_t i = 0; i < 2; i++) {
    struct cairn_io io = cairn__system_io;
    interrupt_big(&forms[i], 0.7);
    io.pwritev = counting_pwritev;
    atomic_store(&direct_bytes, 0);
    struct cairn__run *run = export_as(&forms[i], "out", POINT, &io);
    if (run->error.id)
      fail_msg("%s", run->error.message);
    json_int_t resumed = of_disk(run, 0, "bytes_resumed");
    json_int_t written = of_disk(run, 0, "bytes_written");
    printf("# of %u bytes %lld were there, %llu were written (%s)\n", 24 * MIB,
           (long long)resumed, (unsigned long long)atomic_load(&direct_bytes),
           forms[i].format ? "raw" : "qcow2");
    assert_int_equal(resumed + written, 24 * MIB);
    assert_true(resumed > 8 * (json_int_t)MIB);
    assert_int_equal(atomic_load(&direct_bytes), written);
    cairn__run_release(run);
    expect_same("out", "ref", "resumed");
  }
}

/* Another process of the same job, as one that the store remembers. */
static void says_beforehand_that_it_will_go_on(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  struct cairn_error err;
  json_t *plan, *spec;
  char name[PATH_SIZE];
  (void)state;
  interrupt_big(&f, 0.7);
  assert_int_equal(partials("out", name), 1);
  spec = specification(&f, "out");
  cairn__error_clear(&err);
  if (cairn__kind_export.plan(&cairn__system_io, spec, &plan, &err) != 0)
    fail_msg("%s", err.message);
  assert_string_equal(json_string_value(json_object_get(plan, "resumes")),
                      strrchr(name, '/') + 1);
  assert_true(json_integer_value(json_object_get(plan, "kept_bytes")) >
              8 * (json_int_t)MIB);
  json_decref(plan);
  json_object_set_new(spec, "resume", json_false());
  assert_int_equal(
      cairn__kind_export.plan(&cairn__system_io, spec, &plan, &err), 0);
  assert_true(json_is_null(json_object_get(plan, "resumes")));
  json_decref(plan);
  json_decref(spec);
  assert_int_equal(partials("out", NULL), 1); /* a plan changes nothing */
}

/* ---- what the storage has lost ------------------------------------------- */

static void scribble(const char *path, uint64_t length)
{
  struct stat st;
  unsigned char buf[4096];
  int fd = open(path, O_RDWR);
  if (fd < 0 || fstat(fd, &st) != 0 || st.st_size == 0) {
    if (fd >= 0)
      close(fd);
    return;
  }
  uint64_t at = draw((uint64_t)st.st_size), n = 1 + draw(length);
  switch (draw(4)) {
  case 0: /* a bit */
    assert_true(pread(fd, buf, 1, (off_t)at) == 1);
    buf[0] ^= (unsigned char)(1u << draw(8));
    assert_true(pwrite(fd, buf, 1, (off_t)at) == 1);
    break;
  case 1: /* never arrived */
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               (off_t)(at / 4096 * 4096), (off_t)n),
                     0);
    break;
  case 2: /* ends early */
    if (draw(4) == 0)
      assert_int_equal(ftruncate(fd, (off_t)at), 0);
    break;
  default: /* something else */
    for (size_t i = 0; i < sizeof buf; i++)
      buf[i] = (unsigned char)draw(256);
    n = n < sizeof buf ? n : sizeof buf;
    assert_true(pwrite(fd, buf, n, (off_t)at) == (ssize_t)n);
  }
  close(fd);
}

static void damage(const char *partial, const char *image)
{
  char path[1000];
  for (uint64_t i = 1 + draw(6); i > 0; i--) {
    snprintf(path, sizeof path, "%s/point/" VM "/%s", partial, image);
    scribble(path, 300 * KIB);
    snprintf(path, sizeof path, "%s/" VM ".vda.journal", partial);
    scribble(path, 3000);
  }
  switch (draw(10)) {
  case 0:
    snprintf(path, sizeof path, "%s/plan.json", partial);
    scribble(path, 30);
    break;
  case 1:
    shell("rm -f %s/plan.json", partial);
    break;
  case 2:
    shell("rm -f %s/*.journal", partial);
    break;
  case 3:
    shell("cd %s && touch plan.json.new nbd-7.sock strange point/strange && "
          "mkdir -p point/lost point/" VM "/config point/" VM "/x && "
          "echo 1 >point/" VM "/x/y && echo 2 >point/manifest.json && "
          "echo 3 >point/" VM "/vda.digests",
          partial);
    break;
  case 4:
    shell("cd %s/point && rm -rf * && ln -s ../.. " VM, partial);
    break;
  case 5:
    shell("cd %s && rm -rf point && ln -s .. point", partial);
    break;
  case 6: /* a file that somebody else has, too */
    shell("mkdir -p %s/point/" VM " && cd %s/point/" VM
          " && rm -f %s && ln %s/precious %s",
          partial, partial, image, top, image);
    break;
  default:
    break;
  }
}

static void believes_nothing_that_it_finds(void **state)
{
  const struct form forms[] = {{.disks = RAW_DISK},
                               {.disks = RAW_DISK, .format = "raw"},
                               {.disks = RAW_DISK, .base = "latest"}};
  double deadline = seconds_now() + budget() / 2;
  unsigned ran = 0;
  (void)state;
  shell("cp %s/a.raw %s/precious && cp %s/a.raw %s/precious.is", top, top, top,
        top);
  for (size_t k = 0; k < 3; k++) {
    const struct form *f = &forms[k];
    prepare_target(f, "ref");
    uint64_t calls = calls_of(f, "ref");
    for (unsigned i = 0;
         i < 12 || seconds_now() < deadline - (double)(2 - k) * budget() / 6;
         i++) {
      char name[PATH_SIZE], text[64];
      uint64_t kill_at = calls / 3 + draw(calls * 2 / 3);
      snprintf(text, sizeof text, "form %zu, damage %u", k, i);
      prepare_target(f, "out");
      if (!export_killed_at(f, "out", kill_at) || is_published("out") ||
          partials("out", name) != 1)
        continue;
      damage(name, f->format ? "vda.raw" : "vda.qcow2");
      must_export(f, "out", POINT);
      expect_same("out", "ref", text);
      ran++;
    }
  }
  shell("cmp %s/precious %s/precious.is", top, top);
  printf("# ran %u exports on work directories with random damage (seed %lu)\n",
         ran, seed());
  assert_true(ran > 12);
}

/* ---- sources that move on ------------------------------------------------ */

static void change_source(const char *path)
{
  struct stat st;
  int fd = open(path, O_RDWR);
  assert_true(fd >= 0 && fstat(fd, &st) == 0);
  for (uint64_t i = 1 + draw(8); i > 0; i--) {
    unsigned char buf[4096];
    uint64_t at = draw((uint64_t)st.st_size);
    for (size_t k = 0; k < sizeof buf; k++)
      buf[k] = (unsigned char)draw(256);
    switch (draw(3)) {
    case 0:
      assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                 (off_t)(at / 65536 * 65536),
                                 (off_t)(65536 * (1 + draw(4)))),
                       0);
      break;
    case 1:
      memset(buf, 0, sizeof buf);
      /* fall through */
    default:
      if (at + sizeof buf <= (uint64_t)st.st_size)
        assert_true(pwrite(fd, buf, sizeof buf, (off_t)at) == sizeof buf);
    }
  }
  close(fd);
}

static void exports_what_is_there_now(void **state)
{
  const struct form forms[] = {{.disks = RAW_DISK},
                               {.disks = RAW_DISK, .format = "raw"},
                               {.disks = RAW_DISK, .base = "latest"}};
  double deadline = seconds_now() + budget() / 4;
  unsigned ran = 0;
  (void)state;
  shell("cp --sparse=always %s/a.raw %s/a.saved", top, top);
  for (unsigned i = 0; i < 9 || seconds_now() < deadline; i++) {
    const struct form *f = &forms[i % 3];
    struct stat is, wanted;
    char text[64], path[PATH_SIZE];
    shell("cp --sparse=always %s/a.saved %s/a.raw", top, top);
    prepare_target(f, "out");
    prepare_target(f, "ref");
    uint64_t calls = calls_of(f, "ref");
    if (!export_killed_at(f, "out", calls / 3 + draw(calls / 2)))
      continue;
    snprintf(text, sizeof text, "change %u", i);
    char source[128];
    snprintf(source, sizeof source, "%s/a.raw", top);
    change_source(source);
    prepare_target(f, "ref");
    must_export(f, "ref", POINT);
    if (!is_published("out")) {
      must_export(f, "out", POINT);
      expect_same("out", "ref", text);
      shell("cd %s/out/" POINT "/" VM " && qemu-img compare -q -f %s -F raw "
            "vda.%s %s/a.raw",
            top, f->format ? f->format : "qcow2",
            f->format ? f->format : "qcow2", top);
    }
    if (f->format) { /* what is zero now is a hole */
      snprintf(path, sizeof path, "%s/out/" POINT "/" VM "/vda.raw", top);
      assert_int_equal(stat(path, &is), 0);
      snprintf(path, sizeof path, "%s/ref/" POINT "/" VM "/vda.raw", top);
      assert_int_equal(stat(path, &wanted), 0);
      assert_true(is.st_blocks <= wanted.st_blocks + 16);
    }
    ran++;
  }
  shell("mv %s/a.saved %s/a.raw", top, top);
  printf("# ran %u exports whose source had changed (seed %lu)\n", ran, seed());
  assert_true(ran >= 6);
}

/* ---- what it is resumed from --------------------------------------------- */

static void begins_anew_with_other_settings(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  const struct form others[] = {
      {.disks = BIG_DISK, .format = "raw"},
      {.disks = BIG_DISK, .more = ",\"resume\":false"},
      {.disks = "{\"id\":\"vdz\",\"path\":\"$/big.raw\",\"format\":\"raw\"}"}};
  (void)state;
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
    interrupt_big(&f, 0.7);
    struct cairn__run *run = export_as(&others[i], "out", POINT, NULL);
    if (run->error.id)
      fail_msg("%s", run->error.message);
    assert_int_equal(of_disk(run, 0, "bytes_resumed"), 0);
    assert_int_equal(of_disk(run, 0, "bytes_written"), 24 * MIB);
    cairn__run_release(run);
    prepare_target(&others[i], "ref");
    must_export(&others[i], "ref", POINT);
    expect_same("out", "ref", "other settings");
  }
}

static void begins_a_disk_anew_that_has_another_base(void **state)
{
  const struct form full = {.disks = BIG_DISK};
  const struct form increment = {.disks = BIG_DISK, .base = "latest"};
  struct cairn__run *run;
  (void)state;
  /* A full is interrupted where there is a point to build on, then asked for
   * as an increment. */
  shell("cd %s && rm -rf ref out", top);
  must_export(&full, "out", "BBBBBBBB-0000-0000-0000-000000000007");
  assert_true(export_killed_at(&full, "out", 120));
  assert_int_equal(partials("out", NULL), 1);
  shell("cp -r %s/out %s/ref && rm -rf %s/ref/.partial-*", top, top, top);
  run = export_as(&increment, "out", POINT, NULL);
  if (run->error.id)
    fail_msg("%s", run->error.message);
  assert_int_equal(of_disk(run, 0, "bytes_resumed"), 0);
  assert_int_equal(of_disk(run, 0, "bytes_written"), 0);
  cairn__run_release(run);
  must_export(&increment, "ref", POINT);
  expect_same("out", "ref", "another base");
}

static void leaves_the_work_of_other_collections(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  const struct form other = {.disks = RAW_DISK, .collection = "9"};
  char before[PATH_SIZE], after[PATH_SIZE];
  (void)state;
  interrupt_big(&f, 0.7);
  assert_int_equal(partials("out", before), 1);
  must_export(&other, "out", "BBBBBBBB-0000-0000-0000-000000000002");
  assert_int_equal(partials("out", after), 1);
  assert_string_equal(before, after);
  struct cairn__run *run = export_as(&f, "out", POINT, NULL);
  assert_int_equal(run->error.id, CAIRN_OK);
  assert_true(of_disk(run, 0, "bytes_resumed") > 8 * (json_int_t)MIB);
  cairn__run_release(run);
  expect_same("out", "ref", "beside another collection");
}

/* A run that fails before it begins does not lose what is there. */
static void keeps_what_is_left_through_failures(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  (void)state;
  interrupt_big(&f, 0.7);
  shell("mv %s/big.raw %s/away.raw", top, top);
  struct cairn__run *run = export_as(&f, "out", POINT, NULL);
  assert_int_equal(run->error.id, CAIRN_E_SOURCE_MISSING);
  cairn__run_release(run);
  assert_int_equal(partials("out", NULL), 1);
  shell("mv %s/away.raw %s/big.raw", top, top);
  run = export_as(&f, "out", POINT, NULL);
  assert_int_equal(run->error.id, CAIRN_OK);
  assert_true(of_disk(run, 0, "bytes_resumed") > 8 * (json_int_t)MIB);
  cairn__run_release(run);
  expect_same("out", "ref", "after a failure");
}

/* ---- other ends ---------------------------------------------------------- */

static void expect_kept(const struct cairn__run *run, const char *target)
{
  char name[PATH_SIZE];
  const char *warning = json_string_value(json_array_get(run->warnings, 0));
  assert_int_equal(partials(target, name), 1);
  assert_non_null(warning);
  if (!strstr(warning, name))
    fail_msg("\"%s\" is not in: %s", name, warning);
}

static void goes_on_when_there_is_space_again(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  (void)state;
  if (geteuid() != 0)
    skip_because("only root can mount a file system");
  shell("cd %s && rm -rf full ref full.img && mkdir full && truncate -s 48M "
        "full.img && mkfs.ext4 -q full.img && mount -o loop full.img full && "
        "dd if=/dev/zero of=full/ballast bs=1M count=28 status=none",
        top);
  prepare_target(&f, "ref");
  must_export(&f, "ref", POINT);
  struct cairn__run *run = export_as(&f, "full/out", POINT, NULL);
  int id = run->error.id;
  if (id == CAIRN_E_DISK_FULL)
    expect_kept(run, "full/out");
  cairn__run_release(run);
  shell("rm -f %s/full/ballast", top);
  run = export_as(&f, "full/out", POINT, NULL);
  json_int_t resumed = of_disk(run, 0, "bytes_resumed");
  int then = run->error.id;
  cairn__run_release(run);
  if (then == CAIRN_OK)
    expect_same("full/out", "ref", "after a full disk");
  shell("umount %s/full", top);
  assert_int_equal(id, CAIRN_E_DISK_FULL);
  assert_int_equal(then, CAIRN_OK);
  printf("# %lld bytes were there when there was space again\n",
         (long long)resumed);
  assert_true(resumed > 2 * (json_int_t)MIB);
}

static _Atomic int writes_left;

static ssize_t server_killing_pwritev(const struct cairn_io *io, int fd,
                                      const struct iovec *iov, int count,
                                      off_t offset)
{
  if (atomic_fetch_sub(&writes_left, 1) == 1)
    shell("kill -9 $(cut -d' ' -f1 %s/out/.partial-*/nbd-*.pid)", top);
  return cairn__system_io.pwritev(io, fd, iov, count, offset);
}

static void goes_on_after_its_server_died(void **state)
{
  const struct form f = {
      .disks =
          "{\"id\":\"vda\",\"path\":\"$/big.qcow2\",\"format\":\"qcow2\"}"};
  struct cairn_io io = cairn__system_io;
  (void)state;
  shell("cd %s && qemu-img convert -f raw -O qcow2 big.raw big.qcow2", top);
  prepare_target(&f, "ref");
  must_export(&f, "ref", POINT);
  prepare_target(&f, "out");
  io.pwritev = server_killing_pwritev;
  atomic_store(&writes_left, 32); /* of half a MiB */
  struct cairn__run *run = export_as(&f, "out", POINT, &io);
  assert_int_equal(run->error.id, CAIRN_E_HELPER_FAILED);
  expect_kept(run, "out");
  cairn__run_release(run);
  run = export_as(&f, "out", POINT, NULL);
  assert_int_equal(run->error.id, CAIRN_OK);
  assert_true(of_disk(run, 0, "bytes_resumed") >= 8 * (json_int_t)MIB);
  cairn__run_release(run);
  expect_same("out", "ref", "after its server died");
}

static struct cairn__run *_Atomic asked;
static int asked_for;

static ssize_t asking_pwritev(const struct cairn_io *io, int fd,
                              const struct iovec *iov, int count, off_t offset)
{
  if (atomic_fetch_sub(&writes_left, 1) == 1)
    cairn__run_request(atomic_load(&asked), asked_for);
  return cairn__system_io.pwritev(io, fd, iov, count, offset);
}

/* Kill leaves what can be resumed, Terminate nothing. */
static void ends_as_it_was_asked_to(void **state)
{
  const struct form f = {.disks = BIG_DISK};
  struct cairn_io io = cairn__system_io;
  const int requests[] = {CAIRN__RUN_KILL, CAIRN__RUN_TERMINATE};
  const int ids[] = {CAIRN_E_KILLED, CAIRN_E_TERMINATED};
  (void)state;
  io.pwritev = asking_pwritev;
  prepare_target(&f, "ref");
  must_export(&f, "ref", POINT);
  for (int i = 0; i < 2; i++) {
    prepare_target(&f, "out");
    struct cairn__run *run =
        new_run(cairn__kind_export.main, &io, specification(&f, "out"), POINT);
    atomic_store(&asked, run);
    asked_for = requests[i];
    atomic_store(&writes_left, 12);
    cairn__run_here(run);
    assert_int_equal(run->error.id, ids[i]);
    cairn__run_release(run);
    assert_int_equal(partials("out", NULL), i == 0);
    run = export_as(&f, "out", POINT, NULL);
    assert_int_equal(run->error.id, CAIRN_OK);
    assert_int_equal(of_disk(run, 0, "bytes_resumed") > 0, i == 0);
    cairn__run_release(run);
    expect_same("out", "ref", "asked to end");
  }
}

/* ---- a source that stood still ------------------------------------------- */

static uint64_t source_bytes;

static ssize_t limited_pwritev(const struct cairn_io *io, int fd,
                               const struct iovec *iov, int count, off_t offset)
{
  if (atomic_fetch_sub(&writes_left, 1) <= 0) {
    errno = EIO;
    return -1;
  }
  return cairn__system_io.pwritev(io, fd, iov, count, offset);
}

/* What a copy of big.raw knows: how its content is called, and what of it was
 * seen by an earlier one. */
struct knowledge {
  const char *origin, *known; /* 16 characters; known NULL: nothing */
  const struct cairn__changes *since;
};

/* One copy of big.raw into `image`; how often it may write. */
static int copy_once(const char *image, int writes, int is_resumed,
                     struct knowledge k, struct cairn__copy *copy)
{
  struct cairn__source_options so = {
      .io = &cairn__system_io, .format = "raw", .readers = 4};
  struct cairn_io io = cairn__system_io;
  struct cairn__digester digester;
  struct cairn__file_result result;
  struct cairn_error err;
  char path[128], name[64];
  int dirfd = open(top, O_RDONLY | O_DIRECTORY), id;
  io.pwritev = limited_pwritev;
  atomic_store(&writes_left, writes);
  snprintf(path, sizeof path, "%s/big.raw", top);
  so.path = path;
  cairn__digester_init(&digester, CAIRN__SHA_256, NULL);
  struct cairn__sink_options o = {.io = &io,
                                  .dirfd = dirfd,
                                  .name = image,
                                  .is_resumed = is_resumed,
                                  .digester = &digester};
  snprintf(name, sizeof name, "%s.journal", image);
  struct cairn__journal_options jo = {.io = &cairn__system_io,
                                      .dirfd = dirfd,
                                      .name = name,
                                      .digester = &digester,
                                      .known = (const unsigned char *)k.known,
                                      .since = k.since};
  memcpy(jo.origin, k.origin, 16);
  memset(copy, 0, sizeof *copy);
  cairn__error_clear(&err);
  if (cairn__source_open_raw(&so, &copy->source, &err) != 0)
    fail_msg("%s", err.message);
  o.length = copy->source->length;
  o.virtual_size = jo.virtual_size = copy->source->virtual_size;
  if (cairn__sink_open_qcow2(&o, &copy->sink, &err) != 0 ||
      cairn__journal_open(&jo, &copy->journal, &err) != 0)
    fail_msg("%s", err.message);
  copy->run = cairn__run_new(NULL);
  copy->digester = &digester;
  copy->is_resumed = is_resumed;
  cairn__run_enter(copy->run);
  id = cairn__copy_run(copy, &err) == 0 ? CAIRN_OK : (int)err.id;
  cairn__run_leave(copy->run);
  if (id == CAIRN_OK && copy->sink->ops->finish(copy->sink, &result, &err) != 0)
    fail_msg("%s", err.message);
  if (id != CAIRN_OK)
    copy->sink->ops->abort(copy->sink);
  source_bytes = copy->bytes_read;
  cairn__journal_close(copy->journal);
  cairn__source_close(copy->source);
  cairn__run_release(copy->run);
  close(dirfd);
  return id;
}

#define ONE "point-one-------"
#define TWO "point-two-------"

static void reads_the_image_where_the_source_stood_still(void **state)
{
  const struct knowledge first = {ONE, NULL, NULL}, again = {ONE, ONE, NULL};
  struct cairn__copy copy;
  (void)state;
  shell("rm -f %s/still* %s/whole*", top, top);
  assert_int_equal(copy_once("whole", 1000, 0, first, &copy), 0);
  assert_int_equal(source_bytes, 24 * MIB);
  assert_int_equal(copy_once("still", 24, 0, first, &copy), CAIRN_E_IO_ERROR);
  assert_int_equal(copy_once("still", 1000, 1, again, &copy), 0);
  assert_int_equal(copy.bytes_resumed, 12 * MIB);
  assert_int_equal(copy.bytes_written, 12 * MIB);
  assert_int_equal(source_bytes, 12 * MIB);
  shell("cmp %s/still %s/whole", top, top);
  /* and what the disk lost comes from the source again */
  char path[128];
  snprintf(path, sizeof path, "%s/still", top);
  for (int i = 0; i < 20; i++) {
    scribble(path, 200 * KIB);
    assert_int_equal(copy_once("still", 1000, 1, again, &copy), 0);
    assert_int_equal(copy.bytes_resumed + copy.bytes_written, 24 * MIB);
    shell("cmp %s/still %s/whole", top, top);
  }
}

static void change_big(void)
{
  shell("dd if=/dev/urandom of=%s/big.raw bs=64k seek=100 count=3 "
        "conv=notrunc status=none",
        top);
}

static void expect_still_is_big(void)
{
  shell("cd %s && qemu-img compare -q -f qcow2 -F raw still big.raw && "
        "mv big.saved big.raw",
        top);
}

/* An export of half of big.raw, and a change of that. */
static void interrupt_and_change(struct cairn__copy *copy)
{
  shell("cd %s && rm -f still* && cp big.raw big.saved", top);
  assert_int_equal(
      copy_once("still", 24, 0, (struct knowledge){ONE, NULL, NULL}, copy),
      CAIRN_E_IO_ERROR);
  change_big();
}

/* The journal has nothing to say about another point's source. */
static void reads_a_source_that_was_not_proved_to_stand_still(void **state)
{
  const struct knowledge second = {TWO, NULL, NULL}, third = {TWO, TWO, NULL};
  struct cairn__copy copy;
  (void)state;
  interrupt_and_change(&copy);
  /* killed in the second run, too: the third has slots of both points */
  assert_int_equal(copy_once("still", 1, 1, second, &copy), CAIRN_E_IO_ERROR);
  assert_int_equal(copy_once("still", 1000, 1, third, &copy), 0);
  assert_int_equal(copy.bytes_resumed + copy.bytes_written, 24 * MIB);
  expect_still_is_big();
}

/* Of a source that has changed what did not change is proved all the same; and
 * only for the run that comes next: what that has not looked at goes by the old
 * name. */
static void reads_what_may_have_changed(void **state)
{
  struct cairn__changes *since, *none;
  struct cairn__copy copy;
  struct cairn_error err;
  (void)state;
  assert_int_equal(cairn__changes_new(40 * MIB, &since, &err), 0);
  assert_int_equal(cairn__changes_new(40 * MIB, &none, &err), 0);
  cairn__changes_mark(since, 6400 * KIB, 192 * KIB);
  interrupt_and_change(&copy);
  /* the change is not reached before the second run ends */
  assert_int_equal(
      copy_once("still", 0, 1, (struct knowledge){TWO, ONE, since}, &copy),
      CAIRN_E_IO_ERROR);
  assert_int_equal(
      copy_once("still", 1000, 1, (struct knowledge){TWO, TWO, none}, &copy),
      0);
  expect_still_is_big();
  /* all at once */
  interrupt_and_change(&copy);
  assert_int_equal(
      copy_once("still", 1000, 1, (struct knowledge){TWO, ONE, since}, &copy),
      0);
  assert_int_equal(source_bytes, 12 * MIB + 192 * KIB);
  expect_still_is_big();
  cairn__changes_free(since);
  cairn__changes_free(none);
}

/* ---- */

static int set_up(void **state)
{
  if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0)
    return -1;
  (void)state;
  random_state = seed();
  strcpy(top, "/tmp/cairn-resume-XXXXXX");
  if (!mkdtemp(top))
    return -1;
  shell("cd %s && truncate -s 1500001 a.raw && "
        "dd if=/dev/urandom of=a.raw bs=64k count=7 seek=2 conv=notrunc "
        "status=none && dd if=/dev/urandom of=a.raw bs=1 seek=1400000 "
        "count=5000 conv=notrunc status=none && echo '<domain/>' >a.xml && "
        "qemu-img create -q -f qcow2 b.qcow2 3M && "
        "qemu-io -f qcow2 -c 'write -P 7 64k 1200k' b.qcow2 >/dev/null && "
        "truncate -s 40M big.raw && dd if=/dev/urandom of=big.raw bs=1M "
        "count=24 seek=5 conv=notrunc status=none",
        top);
  /* an earlier point, and what has changed since */
  must_export(&(struct form){.disks = RAW_DISK}, "with-base",
              "BBBBBBBB-0000-0000-0000-000000000005");
  shell("cd %s && dd if=/dev/urandom of=a.raw bs=64k count=5 seek=4 "
        "conv=notrunc status=none && fallocate -p -o 131072 -l 65536 a.raw",
        top);
  return 0;
}

static int tear_down(void **state)
{
  (void)state;
  shell("! mountpoint -q %s/full || umount %s/full; rm -rf %s", top, top, top);
  return 0;
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(writes_nothing_twice),
      cmocka_unit_test(says_beforehand_that_it_will_go_on),
      cmocka_unit_test(begins_anew_with_other_settings),
      cmocka_unit_test(begins_a_disk_anew_that_has_another_base),
      cmocka_unit_test(leaves_the_work_of_other_collections),
      cmocka_unit_test(keeps_what_is_left_through_failures),
      cmocka_unit_test(goes_on_when_there_is_space_again),
      cmocka_unit_test(goes_on_after_its_server_died),
      cmocka_unit_test(ends_as_it_was_asked_to),
      cmocka_unit_test(reads_the_image_where_the_source_stood_still),
      cmocka_unit_test(reads_a_source_that_was_not_proved_to_stand_still),
      cmocka_unit_test(reads_what_may_have_changed),
      cmocka_unit_test(exports_what_is_there_now),
      cmocka_unit_test(believes_nothing_that_it_finds),
      cmocka_unit_test(ends_with_the_same_bytes_wherever_it_was_killed),
  };
  printf("# seed %lu\n", seed());
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
