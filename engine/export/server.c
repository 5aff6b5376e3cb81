/* server.c: see server.h. Between fork and exec the child may only do what is
 * safe in a signal handler: everything it needs is laid out before. */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "program.h"

#define FIRST_FILE    10 /* below: standard streams and the socket */
#define SOCKET_NUMBER 3  /* where systemd's protocol puts it */
#define BACKLOG       64
#define EXEC_WAIT_MS  10000
#define END_WAIT_MS   500
#define KILL_WAIT_MS  10000
#define RECORD_MAX    1024
#define LAST_LINES    4

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif

static void close_fd(int *fd)
{
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

void cairn__server_init(struct cairn__server *s)
{
  memset(s, 0, sizeof *s);
  s->dirfd = s->listen_fd = s->error_fd = s->pidfd = -1;
}

int cairn__server_child_fd(const struct cairn__server *s, size_t index)
{
  return s->numbers[index];
}

/* ---- preparing ----------------------------------------------------------- */

static int open_directory(struct cairn__server *s, const char *directory,
                          struct cairn_error *err)
{
  const char *parent = getenv("XDG_RUNTIME_DIR");

  if (!directory) {
    if (!parent || parent[0] != '/' || access(parent, W_OK) != 0)
      parent = "/tmp";
    s->private_directory = cairn__format("%s/cairn-XXXXXX", parent);
    if (!s->private_directory)
      return cairn__fail_memory(err);
    if (!mkdtemp(s->private_directory)) {
      cairn__fail_errno(err, errno, parent, -1,
                        "cannot make a directory for a socket in \"%s\"",
                        parent);
      cairn__free(s->private_directory);
      s->private_directory = NULL;
      return -1;
    }
    directory = s->private_directory;
  }
  s->dirfd =
      s->io->openat(s->io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  if (s->dirfd < 0)
    return cairn__fail_errno(err, errno, directory, -1,
                             "cannot open the directory \"%s\"", directory);
  return 0;
}

/* Through the descriptor: a socket's name has room for 107 bytes only. */
static void socket_address(const struct cairn__server *s,
                           struct sockaddr_un *address)
{
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s",
           s->dirfd, s->socket_name);
}

static int make_socket(struct cairn__server *s, struct cairn_error *err)
{
  static _Atomic unsigned counter;
  unsigned number = atomic_fetch_add(&counter, 1);
  struct sockaddr_un address;

  snprintf(s->socket_name, sizeof s->socket_name, "nbd-%u.sock", number);
  snprintf(s->record_name, sizeof s->record_name, "nbd-%u.pid", number);
  socket_address(s, &address);
  s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (s->listen_fd < 0 ||
      bind(s->listen_fd, (struct sockaddr *)&address, sizeof address) != 0 ||
      listen(s->listen_fd, BACKLOG) != 0) {
    int saved = errno;

    s->socket_name[0] = '\0'; /* not ours to remove */
    return cairn__fail_errno(err, saved, NULL, -1,
                             "cannot make a socket for qemu-nbd");
  }
  return 0;
}

int cairn__server_prepare(struct cairn__server *s, const struct cairn_io *io,
                          const char *program, const char *package,
                          const char *directory, const int *files, size_t count,
                          struct cairn_error *err)
{
  s->io = io;
  errno = 0;
  s->program = cairn__program_find(program);
  if (!s->program && errno == ENOENT)
    return cairn__fail(err, CAIRN_E_HELPER_MISSING,
                       "%s, which is needed to read qcow2 images, is not in "
                       "PATH; install the package %s",
                       program, package);
  if (!s->program)
    return cairn__fail_memory(err);
  if (count > CAIRN__SERVER_FILES)
    return cairn__fail(err, CAIRN_E_INTERNAL, "too many files for %s", program);
  if (open_directory(s, directory, err) != 0 || make_socket(s, err) != 0)
    return -1;
  for (size_t i = 0; i < count; i++) {
    int fd = fcntl(files[i], F_DUPFD_CLOEXEC, FIRST_FILE);

    if (fd < 0)
      return cairn__fail_errno(err, errno, NULL, -1,
                               "cannot duplicate a descriptor");
    s->files[i] = s->numbers[i] = fd;
    s->file_count = i + 1;
  }
  return 0;
}

static void close_files(struct cairn__server *s)
{
  for (size_t i = 0; i < s->file_count; i++)
    close_fd(&s->files[i]);
  s->file_count = 0;
  close_fd(&s->listen_fd);
}

/* ---- the child ----------------------------------------------------------- */

struct launch {
  const char *program;
  char *const *argv;
  char **env;
  char *listen_pid; /* in env: "LISTEN_PID=", room for digits behind it */
  const int *files;
  size_t file_count;
  int null_fd, error_fd, listen_fd, report_fd, start_fd, start_other_fd;
  pid_t parent;
};

static void child_fail(const struct launch *l)
{
  int saved = errno;
  ssize_t n = write(l->report_fd, &saved, sizeof saved);

  (void)n;
  _exit(127);
}

__attribute__((noreturn)) static void child_main(const struct launch *l)
{
  char digits[16];
  size_t n = 0;
  pid_t pid = getpid();
  char *to = l->listen_pid;
  sigset_t none;

  for (int sig = 1; sig < NSIG; sig++)
    (void)signal(sig, SIG_DFL);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
    child_fail(l);
  if (getppid() != l->parent)
    _exit(127);
  /* Until the parent has hold of this process; its end of file: it has not. */
  close(l->start_other_fd);
  if (read(l->start_fd, digits, 1) != 1)
    _exit(127);
  (void)setpgid(0, 0);
  for (; pid > 0; pid /= 10)
    digits[n++] = (char)('0' + pid % 10);
  while (n > 0)
    *to++ = digits[--n];
  *to = '\0';
  if (dup2(l->null_fd, 0) < 0 || dup2(l->null_fd, 1) < 0 ||
      dup2(l->error_fd, 2) < 0 || dup2(l->listen_fd, SOCKET_NUMBER) < 0)
    child_fail(l);
  /* Whatever the embedding program has left open stays here. */
  (void)syscall(SYS_close_range, SOCKET_NUMBER + 1, ~0u, CLOSE_RANGE_CLOEXEC);
  for (size_t i = 0; i < l->file_count; i++) {
    if (fcntl(l->files[i], F_SETFD, 0) != 0)
      child_fail(l);
  }
  sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, NULL);
  execve(l->program, l->argv, l->env);
  child_fail(l);
  _exit(127);
}

/* The environment with the two variables of the protocol instead of any that
 * were meant for us; NULL when out of memory. Freed as one block. */
static char **make_environment(char listen_pid[32], char listen_fds[16])
{
  extern char **environ;
  size_t count = 0, used = 0;
  char **env;

  while (environ && environ[count])
    count++;
  env = cairn__malloc((count + 3) * sizeof *env);
  if (!env)
    return NULL;
  for (size_t i = 0; i < count; i++) {
    if (strncmp(environ[i], "LISTEN_", 7) != 0)
      env[used++] = environ[i];
  }
  snprintf(listen_pid, 32, "LISTEN_PID=");
  snprintf(listen_fds, 16, "LISTEN_FDS=1");
  env[used++] = listen_pid;
  env[used++] = listen_fds;
  env[used] = NULL;
  return env;
}

/* 0 when the program runs, else -1 with errno. */
static int await_exec(int fd)
{
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int saved, ready;
  ssize_t n;

  do {
    ready = poll(&p, 1, EXEC_WAIT_MS);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0)
    errno = ETIMEDOUT;
  if (ready <= 0)
    return -1;
  do {
    n = read(fd, &saved, sizeof saved);
  } while (n < 0 && errno == EINTR);
  if (n != (ssize_t)sizeof saved)
    return 0;
  errno = saved;
  return -1;
}

/* ---- the record ---------------------------------------------------------- */

static int read_text(const char *path, char *text, size_t size)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n;

  if (fd < 0)
    return -1;
  n = read(fd, text, size - 1);
  close(fd);
  if (n < 0)
    return -1;
  text[n] = '\0';
  return 0;
}

/* "start boot program" of a process: what a later one cannot share. */
static int describe_process(pid_t pid, char *text, size_t size)
{
  char path[64], stat[1024], boot[64], program[512];
  char *at, *field;
  ssize_t n;

  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  if (read_text(path, stat, sizeof stat) != 0 ||
      read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot) != 0)
    return -1;
  boot[strcspn(boot, "\n")] = '\0';
  /* The start time is the 22nd field; the 2nd, a name, may hold anything. */
  at = strrchr(stat, ')');
  if (!at)
    return -1;
  field = strtok_r(at + 1, " ", &at);
  for (int i = 3; i < 22 && field; i++)
    field = strtok_r(NULL, " ", &at);
  if (!field)
    return -1;
  snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
  n = readlink(path, program, sizeof program - 1);
  if (n < 0)
    return -1;
  program[n] = '\0';
  snprintf(text, size, "%s %s %s", field, boot, program);
  return 0;
}

static int write_record(struct cairn__server *s, struct cairn_error *err)
{
  char who[RECORD_MAX - 32], text[RECORD_MAX];
  int fd, result, saved;

  if (describe_process(s->pid, who, sizeof who) != 0) {
    int errnum = errno;

    /* One that has ended already needs no record: whoever connects will see
     * that, and its reason. */
    if (cairn__server_wait(s, 100))
      return 0;
    errno = errnum;
    return cairn__fail_errno(err, errno ? errno : EIO, NULL, -1,
                             "cannot look at process %d in /proc", (int)s->pid);
  }
  snprintf(text, sizeof text, "%d %s\n", (int)s->pid, who);
  fd = s->io->openat(s->io, s->dirfd, s->record_name,
                     O_WRONLY | O_CREAT | O_EXCL, 0600);
  if (fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot write \"%s\"",
                             s->record_name);
  result = cairn__io_write_full(s->io, fd, text, strlen(text), 0);
  saved = errno;
  (void)s->io->close(s->io, fd);
  if (result != 0)
    return cairn__fail_errno(err, saved, NULL, -1, "cannot write \"%s\"",
                             s->record_name);
  return 0;
}

int cairn__server_is_record(const char *name)
{
  size_t n = strlen(name);

  return n > 8 && strncmp(name, "nbd-", 4) == 0 &&
         strcmp(name + n - 4, ".pid") == 0;
}

void cairn__server_end_recorded(const struct cairn_io *io, int dirfd,
                                const char *name)
{
  char text[RECORD_MAX], who[RECORD_MAX - 32];
  char *rest;
  struct pollfd p = {.events = POLLIN};
  ssize_t n;
  long pid;
  int fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);

  if (fd < 0)
    return;
  n = cairn__io_read_full(io, fd, text, sizeof text - 1, 0);
  (void)io->close(io, fd);
  if (n <= 0)
    return;
  text[n] = '\0';
  text[strcspn(text, "\n")] = '\0';
  pid = strtol(text, &rest, 10);
  if (pid <= 1 || *rest != ' ')
    return;
  /* The descriptor first: then what is described is what is signalled. */
  p.fd = pidfd_open((pid_t)pid, 0);
  if (p.fd < 0)
    return;
  if (describe_process((pid_t)pid, who, sizeof who) == 0 &&
      strcmp(rest + 1, who) == 0 &&
      pidfd_send_signal(p.fd, SIGKILL, NULL, 0) == 0)
    (void)poll(&p, 1, KILL_WAIT_MS);
  close(p.fd);
}

/* ---- life ---------------------------------------------------------------- */

/* Duplicates where the child's dup2 cannot run over them; -1 with errno. */
static int lift(int *fd)
{
  int lifted = fcntl(*fd, F_DUPFD_CLOEXEC, FIRST_FILE), saved = errno;

  close_fd(fd);
  *fd = lifted;
  errno = saved;
  return lifted < 0 ? -1 : 0;
}

/* The embedding program may ignore SIGCHLD or collect every child there is:
 * a process number alone could be somebody else's by the time it is used. So
 * the child waits until there is a descriptor of it, and only that is used
 * from then on. */
static int launch(struct cairn__server *s, struct launch *l, int report[2],
                  int start[2], struct cairn_error *err)
{
  sigset_t all, old;
  int saved;

  l->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  s->error_fd = memfd_create("cairn-server-stderr", MFD_CLOEXEC);
  if (l->null_fd < 0 || s->error_fd < 0 || pipe2(report, O_CLOEXEC) != 0 ||
      pipe2(start, O_CLOEXEC) != 0 || lift(&l->null_fd) != 0 ||
      lift(&s->error_fd) != 0 || lift(&s->listen_fd) != 0 ||
      lift(&report[1]) != 0 || lift(&start[0]) != 0 || lift(&start[1]) != 0)
    return cairn__fail_errno(err, errno, NULL, -1,
                             "cannot prepare the start of %s", s->program);
  l->error_fd = s->error_fd;
  l->listen_fd = s->listen_fd;
  l->report_fd = report[1];
  l->start_fd = start[0];
  l->start_other_fd = start[1];
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  s->pid = fork();
  if (s->pid == 0)
    child_main(l);
  saved = errno;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (s->pid < 0) {
    s->pid = 0;
    return cairn__fail_errno(err, saved, NULL, -1, "cannot start %s",
                             s->program);
  }
  close_fd(&report[1]);
  s->pidfd = pidfd_open(s->pid, 0);
  if (s->pidfd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot watch %s",
                             s->program);
  if (write(start[1], "", 1) != 1)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot start %s",
                             s->program);
  if (await_exec(report[0]) != 0)
    return cairn__fail_errno(err, errno, s->program, -1, "cannot start %s",
                             s->program);
  return 0;
}

int cairn__server_start(struct cairn__server *s, const char *const *argv,
                        struct cairn_error *err)
{
  char listen_pid[32], listen_fds[16];
  int report[2] = {-1, -1}, start[2] = {-1, -1}, result = -1;
  struct launch l = {.null_fd = -1};

  l.program = s->program;
  l.argv = (char *const *)(uintptr_t)argv;
  l.env = make_environment(listen_pid, listen_fds);
  l.listen_pid = listen_pid + strlen(listen_pid);
  l.files = s->files;
  l.file_count = s->file_count;
  l.parent = getpid();
  if (l.env)
    result = launch(s, &l, report, start, err);
  else
    cairn__fail_memory(err);
  cairn__free(l.env);
  close_fd(&l.null_fd);
  close_fd(&report[0]);
  close_fd(&report[1]);
  close_fd(&start[0]);
  close_fd(&start[1]);
  /* Its copies are its own now; with ours gone, a connection to a server that
   * has died fails instead of waiting. */
  close_files(s);
  return result == 0 && !s->private_directory ? write_record(s, err) : result;
}

int cairn__server_connect(const struct cairn__server *s)
{
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  struct sockaddr_un address;

  if (fd < 0)
    return -1;
  socket_address(s, &address);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
    int saved = errno;

    close(fd);
    errno = saved;
    return -1;
  }
  return fd;
}

int cairn__server_wait(const struct cairn__server *s, int timeout_ms)
{
  struct pollfd p = {.fd = s->pidfd, .events = POLLIN};
  int ready;

  if (s->pidfd < 0)
    return 1;
  do {
    ready = poll(&p, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

int cairn__server_end_of(const struct cairn__server *s, char *text, size_t size)
{
  siginfo_t info = {0};

  snprintf(text, size, "has ended");
  if (s->pid <= 0 ||
      waitid(P_PIDFD, (id_t)s->pidfd, &info, WEXITED | WNOHANG | WNOWAIT) !=
          0 ||
      info.si_pid == 0)
    return 0;
  if (info.si_code == CLD_EXITED) {
    snprintf(text, size, "has ended with exit code %d", info.si_status);
    return 0;
  }
  snprintf(text, size, "was killed by signal %d", info.si_status);
  return info.si_status;
}

/* Cuts the text into lines and takes the last few different ones, in their
 * order. */
static size_t last_lines(char *text, char *lines[LAST_LINES])
{
  char *rest, *line;
  size_t count = 0, same;

  for (line = strtok_r(text, "\n", &rest); line;
       line = strtok_r(NULL, "\n", &rest)) {
    for (same = 0; same < count && strcmp(lines[same], line) != 0; same++)
      continue;
    /* A repeated line counts where it came last. */
    if (same == count && count < LAST_LINES)
      count++;
    else if (same == count)
      same = 0;
    memmove(&lines[same], &lines[same + 1],
            (count - 1 - same) * sizeof lines[0]);
    lines[count - 1] = line;
  }
  return count;
}

void cairn__server_last_words(const struct cairn__server *s, char *text,
                              size_t size)
{
  char raw[8192];
  char *from = raw, *quote, *lines[LAST_LINES];
  struct stat st;
  ssize_t n;
  size_t used = 0, count;

  text[0] = '\0';
  if (s->error_fd < 0 || fstat(s->error_fd, &st) != 0)
    return;
  n = pread(s->error_fd, raw, sizeof raw - 1,
            st.st_size > (off_t)sizeof raw - 1
                ? st.st_size - ((off_t)sizeof raw - 1)
                : 0);
  if (n <= 0)
    return;
  raw[n] = '\0';
  /* "Failed to blk_new_open 'json:{...}': reason": what follows the name */
  quote = strstr(raw, "}': ");
  if (quote)
    from = quote + 4;
  count = last_lines(from, lines);
  for (size_t i = 0; i < count; i++)
    used += strlen(lines[i]) + 2;
  for (size_t i = 0; i < count; i++) {
    size_t had = strlen(text);

    /* The end of it all matters most. */
    if (used < size || i + 1 == count)
      snprintf(text + had, size - had, "%s%s", had > 0 ? "; " : "", lines[i]);
    used -= strlen(lines[i]) + 2;
  }
}

static void end_process(struct cairn__server *s)
{
  siginfo_t info;

  if (s->pid <= 0)
    return;
  if (s->pidfd >= 0) {
    /* It only reads and has nothing to finish; one that is stopped would not
     * see anything milder. */
    (void)pidfd_send_signal(s->pidfd, SIGKILL, NULL, 0);
    (void)cairn__server_wait(s, END_WAIT_MS);
  }
  /* A process that not even SIGKILL ends (it hangs in the kernel) is left to
   * whoever inherits it rather than waited for. */
  if (s->pidfd >= 0)
    (void)waitid(P_PIDFD, (id_t)s->pidfd, &info, WEXITED | WNOHANG);
  else /* it was never let go and ends by itself */
    (void)waitid(P_PID, (id_t)s->pid, &info, WEXITED);
  s->pid = 0;
  close_fd(&s->pidfd);
}

void cairn__server_stop(struct cairn__server *s)
{
  close_files(s);
  end_process(s);
  close_fd(&s->error_fd);
  if (s->dirfd >= 0) {
    if (s->socket_name[0])
      (void)s->io->unlinkat(s->io, s->dirfd, s->socket_name, 0);
    if (s->record_name[0])
      (void)s->io->unlinkat(s->io, s->dirfd, s->record_name, 0);
    (void)s->io->close(s->io, s->dirfd);
    s->dirfd = -1;
  }
  s->socket_name[0] = s->record_name[0] = '\0';
  if (s->private_directory)
    (void)rmdir(s->private_directory);
  cairn__free(s->private_directory);
  s->private_directory = NULL;
  cairn__free(s->program);
  s->program = NULL;
}
