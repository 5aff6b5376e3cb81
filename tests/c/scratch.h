/* What the C tests of files share: a scratch directory, reproducible random
 * numbers, programs to judge by, and an allocator that fails on demand. */
#ifndef CAIRN_TESTS_SCRATCH_H
#define CAIRN_TESTS_SCRATCH_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "cairn.h"
#include "io.h"

#define UNUSED __attribute__((unused))

/* ---- scratch directory ---- */

static char scratch_path[256];
static int scratch_fd = -1;
static int scratch_home = -1;

UNUSED static int scratch_open(void **state)
{
  const char *base = getenv("TMPDIR");

  (void)state;
  snprintf(scratch_path, sizeof scratch_path, "%s/cairn-test-XXXXXX",
           base != NULL ? base : "/tmp");
  if (mkdtemp(scratch_path) == NULL) {
    return -1;
  }
  scratch_home = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  scratch_fd = open(scratch_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  /* programs are given plain names */
  return scratch_fd < 0 || fchdir(scratch_fd) != 0 ? -1 : 0;
}

UNUSED static int scratch_close(void **state)
{
  (void)state;
  if (fchdir(scratch_home) != 0) {
    return -1;
  }
  close(scratch_home);
  close(scratch_fd);
  scratch_fd = -1;
  return cairn__io_remove_tree(&cairn__system_io, AT_FDCWD, scratch_path);
}

/* ---- random numbers ---- */

static uint64_t random_state;

UNUSED static uint64_t random_next(void)
{
  uint64_t x = (random_state += UINT64_C(0x9e3779b97f4a7c15));

  x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
  return x ^ (x >> 31);
}

UNUSED static uint64_t random_below(uint64_t n)
{
  return random_next() % n;
}

/* CAIRN_SEED, or the time; printed, so that a failure can be repeated. */
UNUSED static uint64_t random_begin(const char *test)
{
  const char *text = getenv("CAIRN_SEED");
  struct timespec now;

  clock_gettime(CLOCK_REALTIME, &now);
  random_state = text != NULL ? strtoull(text, NULL, 10)
                              : (uint64_t)now.tv_sec * 1000 +
                                    (uint64_t)now.tv_nsec / 1000000;
  printf("%s: CAIRN_SEED=%llu\n", test, (unsigned long long)random_state);
  return random_state;
}

UNUSED static void random_fill(uint64_t seed, void *buf, size_t n)
{
  unsigned char *p = buf;
  uint64_t x = seed * 2 + 1;

  while (n > 0) {
    size_t part = n < 8 ? n : 8;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    memcpy(p, &x, part);
    p += part;
    n -= part;
  }
}

/* ---- programs ---- */

/* Runs a shell command; its exit code. Its output, both streams, in *out
 * (caller frees) when asked for. */
__attribute__((format(printf, 2, 3))) UNUSED static int
run(char **out, const char *fmt, ...)
{
  char command[4096];
  size_t n = 0, size = 1 << 16;
  char *text = malloc(size);
  va_list arguments;
  FILE *pipe;
  size_t got;
  int status;

  va_start(arguments, fmt);
  vsnprintf(command, sizeof command - 6, fmt, arguments);
  va_end(arguments);
  strcat(command, " 2>&1");
  assert_non_null(text);
  pipe = popen(command, "r");
  assert_non_null(pipe);
  while ((got = fread(text + n, 1, size - n - 1, pipe)) > 0) {
    n += got;
    if (size - n < 4096) {
      size *= 2;
      text = realloc(text, size);
      assert_non_null(text);
    }
  }
  text[n] = '\0';
  status = pclose(pipe);
  status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  if (out != NULL) {
    *out = text;
  } else {
    free(text);
  }
  return status;
}

/* Runs a command that must succeed; shows what it said otherwise. */
#define must_run(...)                                                          \
  do {                                                                         \
    char *said_;                                                               \
    int code_ = run(&said_, __VA_ARGS__);                                      \
    if (code_ != 0) {                                                          \
      print_error("exit %d: %s\n", code_, said_);                              \
    }                                                                          \
    free(said_);                                                               \
    assert_int_equal(code_, 0);                                                \
  } while (0)

UNUSED static int has_program(const char *name)
{
  return run(NULL, "command -v %s", name) == 0;
}

/* ---- files ---- */

UNUSED static unsigned char *slurp(const char *name, size_t *n)
{
  int fd = openat(scratch_fd, name, O_RDONLY | O_CLOEXEC);
  struct stat st;
  unsigned char *data;

  assert_true(fd >= 0);
  assert_int_equal(fstat(fd, &st), 0);
  data = malloc((size_t)st.st_size + 1);
  assert_non_null(data);
  assert_int_equal(
      cairn__io_read_full(&cairn__system_io, fd, data, (size_t)st.st_size, 0),
      st.st_size);
  close(fd);
  *n = (size_t)st.st_size;
  return data;
}

UNUSED static void spill(const char *name, const void *data, size_t n)
{
  int fd =
      openat(scratch_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  assert_true(fd >= 0);
  assert_int_equal(cairn__io_write_full(&cairn__system_io, fd, data, n, 0), 0);
  close(fd);
}

UNUSED static int count_fds(void)
{
  int n = 0, fd;

  for (fd = 0; fd < 1024; fd++) {
    if (fcntl(fd, F_GETFD) >= 0) {
      n++;
    }
  }
  return n;
}

/* ---- allocations that fail ---- */

static _Atomic long alloc_countdown; /* the one that reaches 0 fails */
static _Atomic long alloc_live;

UNUSED static void *failing_realloc(void *p, size_t n)
{
  void *fresh;

  if (atomic_fetch_sub(&alloc_countdown, 1) == 1) {
    return NULL;
  }
  fresh = realloc(p, n);
  if (p == NULL && fresh != NULL) {
    atomic_fetch_add(&alloc_live, 1);
  }
  return fresh;
}

UNUSED static void failing_free(void *p)
{
  if (p != NULL) {
    atomic_fetch_sub(&alloc_live, 1);
  }
  free(p);
}

#endif
