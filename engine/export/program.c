/* program.c: see program.h. The end of the program is the end of its standard
 * error: an embedding program may collect every child there is, so its exit
 * code is nothing to rely on. */
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

#define WAIT_US (60 * 1000000ll)
/* Where no number of the program's own can be run over. */
#define LIFTED (CAIRN__PROGRAM_FILE + CAIRN__PROGRAM_MAX)

char *cairn__program_find(const char *name)
{
  const char *path = getenv("PATH");

  if (!path || !path[0])
    path = "/usr/local/bin:/usr/bin:/bin";
  while (*path) {
    size_t n = strcspn(path, ":");

    if (n > 0 && path[0] == '/') {
      char *full = cairn__format("%.*s/%s", (int)n, path, name);

      if (!full) {
        errno = ENOMEM;
        return NULL;
      }
      if (access(full, X_OK) == 0)
        return full;
      cairn__free(full);
    }
    path += n;
    path += *path == ':';
  }
  errno = ENOENT;
  return NULL;
}

/* ---- starting ------------------------------------------------------------ */

struct launch {
  int fds[2 + CAIRN__PROGRAM_MAX]; /* null, standard error, files; lifted */
  size_t count;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

/* Numbers 0 to 2 and those of the files; everything else is closed. 0 or an
 * errno. */
static int lay_out(struct launch *l)
{
  int result = posix_spawn_file_actions_adddup2(&l->actions, l->fds[0], 0);

  for (int i = 1; i <= 2 && result == 0; i++)
    result = posix_spawn_file_actions_adddup2(&l->actions, l->fds[1], i);
  for (size_t i = 2; i < l->count && result == 0; i++)
    result = posix_spawn_file_actions_adddup2(&l->actions, l->fds[i],
                                              CAIRN__PROGRAM_FILE + (int)i - 2);
  if (result == 0)
    result = posix_spawn_file_actions_addclosefrom_np(
        &l->actions, CAIRN__PROGRAM_FILE + (int)l->count - 2);
  return result;
}

static int set_attributes(posix_spawnattr_t *a)
{
  sigset_t none, all;
  int result;

  sigemptyset(&none);
  sigfillset(&all);
  result = posix_spawnattr_setsigmask(a, &none);
  if (result == 0)
    result = posix_spawnattr_setsigdefault(a, &all);
  if (result == 0)
    result = posix_spawnattr_setpgroup(a, 0);
  if (result == 0)
    result = posix_spawnattr_setflags(a, POSIX_SPAWN_SETSIGMASK |
                                             POSIX_SPAWN_SETSIGDEF |
                                             POSIX_SPAWN_SETPGROUP);
  return result;
}

/* 0 or an errno. */
static int spawn(struct launch *l, const char *program, const char *const *argv,
                 pid_t *pid)
{
  extern char **environ;
  int result = posix_spawn_file_actions_init(&l->actions);

  if (result != 0)
    return result;
  result = posix_spawnattr_init(&l->attributes);
  if (result == 0) {
    result = set_attributes(&l->attributes);
    if (result == 0)
      result = lay_out(l);
    if (result == 0)
      result = posix_spawn(pid, program, &l->actions, &l->attributes,
                           (char *const *)(uintptr_t)argv, environ);
    posix_spawnattr_destroy(&l->attributes);
  }
  posix_spawn_file_actions_destroy(&l->actions);
  return result;
}

/* A duplicate that is ours to close; 0 or an errno. */
static int add_lifted(struct launch *l, int fd)
{
  int lifted = fcntl(fd, F_DUPFD_CLOEXEC, LIFTED);

  if (lifted < 0)
    return errno;
  l->fds[l->count++] = lifted;
  return 0;
}

/* *error_fd: the reading end of its standard error. 0 or an errno. */
static int start(const char *program, const char *const *argv, const int *files,
                 size_t count, pid_t *pid, int *error_fd)
{
  struct launch l = {.count = 0};
  int ends[2] = {-1, -1}, null_fd, result = 0;

  null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null_fd < 0 || pipe2(ends, O_CLOEXEC) != 0)
    result = errno;
  if (result == 0)
    result = add_lifted(&l, null_fd);
  if (result == 0)
    result = add_lifted(&l, ends[1]);
  for (size_t i = 0; i < count && result == 0; i++)
    result = add_lifted(&l, files[i]);
  if (result == 0)
    result = spawn(&l, program, argv, pid);
  for (size_t i = 0; i < l.count; i++)
    close(l.fds[i]);
  if (null_fd >= 0)
    close(null_fd);
  if (ends[1] >= 0)
    close(ends[1]);
  if (result != 0 && ends[0] >= 0)
    close(ends[0]);
  *error_fd = result == 0 ? ends[0] : -1;
  return result;
}

/* ---- waiting ------------------------------------------------------------- */

/* Reads to the end; what does not fit is left out. 0, or -1 when it takes too
 * long. */
static int listen_to(int fd, char *said, size_t size)
{
  int64_t end = cairn__system_clock.monotonic(&cairn__system_clock) + WAIT_US;
  size_t used = 0;

  for (;;) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int64_t left = end - cairn__system_clock.monotonic(&cairn__system_clock);
    char piece[512];
    ssize_t n;

    if (left <= 0)
      return -1;
    if (poll(&p, 1, (int)(left / 1000) + 1) <= 0)
      continue;
    n = read(fd, piece, sizeof piece);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    for (ssize_t i = 0; i < n && used + 1 < size; i++)
      said[used++] = piece[i];
  }
  said[used] = '\0';
  return 0;
}

/* "qemu-img: reason\nmore\n" becomes "reason; more". */
static void tidy(const char *name, char *said, size_t size)
{
  char raw[1024], line_start = 1, *to = said, *end = said + size - 3;
  size_t n = strlen(name);
  const char *from = raw;

  strncpy(raw, said, sizeof raw - 1);
  raw[sizeof raw - 1] = '\0';
  while (*from && to < end) {
    if (line_start && strncmp(from, name, n) == 0 && from[n] == ':')
      from += n + 1 + (from[n + 1] == ' ');
    line_start = *from == '\n';
    if (!line_start) {
      *to++ = *from && (unsigned char)*from < ' ' ? '?' : *from;
    } else if (from[1]) {
      *to++ = ';';
      *to++ = ' ';
    }
    from += *from != '\0';
  }
  *to = '\0';
  cairn__utf8_clean(said);
}

static int run_found(const char *program, const char *const *argv,
                     const int *files, size_t count, struct cairn__run *run,
                     char *said, size_t size, struct cairn_error *err)
{
  int error_fd, result;
  siginfo_t info;
  pid_t pid;

  result = start(program, argv, files, count, &pid, &error_fd);
  if (result != 0)
    return cairn__fail_errno(err, result, program, -1, "cannot start %s",
                             program);
  if (run)
    cairn__run_leave(run);
  result = listen_to(error_fd, said, size);
  close(error_fd);
  (void)waitid(P_PID, (id_t)pid, &info,
               result == 0 ? WEXITED : WEXITED | WNOHANG);
  if (run)
    cairn__run_enter(run);
  if (result != 0)
    return cairn__fail(err, CAIRN_E_TIMEOUT,
                       "%s (process %d) did not end within %lld seconds",
                       argv[0], (int)pid, WAIT_US / 1000000);
  tidy(argv[0], said, size);
  return 0;
}

int cairn__program_run(const char *package, const char *const *argv,
                       const int *files, size_t count, struct cairn__run *run,
                       char *said, size_t size, struct cairn_error *err)
{
  char *program;
  int result;

  said[0] = '\0';
  if (run && cairn__run_gate(run, err) != 0)
    return -1;
  errno = 0;
  program = cairn__program_find(argv[0]);
  if (!program && errno == ENOENT)
    return cairn__fail(err, CAIRN_E_HELPER_MISSING,
                       "%s, which is needed for dirty bitmaps, is not in PATH; "
                       "install the package %s",
                       argv[0], package);
  if (!program)
    return cairn__fail_memory(err);
  result = run_found(program, argv, files, count, run, said, size, err);
  cairn__free(program);
  return result;
}
