/* Programs started for jobs. Each leads its own process group and is watched
 * through a pidfd; its output comes through non-blocking pipes and the last
 * OUTPUT_MAX bytes of each are kept.
 *
 * An ended program is left unreaped until it is released: as long as its
 * process id is not free again, signalling its group cannot hit a stranger.
 * Where somebody else has reaped it, its group is not signalled any more. Its
 * pipes stay open until then too, since descendants may still write. */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

#define OUTPUT_MAX    ((size_t)1 << 20)
#define READ_AT_ONCE  65536
#define START_TIMEOUT 10000 /* milliseconds */
#define FREE_TIMEOUT  200   /* milliseconds */

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { SOURCE_EXIT, SOURCE_STDOUT, SOURCE_STDERR };

struct process;

struct source { /* what epoll hands back */
  struct process *process;
  int kind;
};

struct output {
  int fd; /* -1: at its end */
  char *data;
  size_t size, start, length; /* a ring once size is OUTPUT_MAX */
};

struct process {
  struct process *prev, *next;
  struct cairn__link link; /* key: the cookie */
  cairn_job job;
  pid_t pid;
  int pidfd;
  int is_ended;
  struct source sources[3];
  struct output outputs[2];
};

struct cairn__processes {
  struct process *first;
  struct cairn__table by_cookie;
  size_t running;
};

int cairn__processes_open(struct cairn_engine *e, struct cairn_error *err)
{
  e->processes = cairn__calloc(1, sizeof *e->processes);
  if (!e->processes)
    return cairn__fail_memory(err);
  if (cairn__table_init(&e->processes->by_cookie) != 0)
    return cairn__fail_memory(err);
  return 0;
}

size_t cairn__processes_running(const struct cairn_engine *e)
{
  return e->processes->running;
}

static struct process *find(struct cairn_engine *e, uint64_t cookie)
{
  struct cairn__link *link =
      cairn__table_find(&e->processes->by_cookie, cookie, NULL);

  return link ? CAIRN__OF(link, struct process, link) : NULL;
}

/* ---- output ---- */

/* Closing alone would leave it in epoll while a child that another thread has
 * just forked still has a copy. */
static void close_output(struct cairn_engine *e, struct output *o)
{
  if (o->fd < 0)
    return;
  epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, o->fd, NULL);
  close(o->fd);
  o->fd = -1;
}

static int make_room(struct output *o, size_t more)
{
  size_t size = o->size ? o->size : 4096;
  char *data;

  while (size < o->length + more && size < OUTPUT_MAX)
    size *= 2;
  if (size == o->size)
    return 0;
  data = cairn__realloc(o->data, size); /* start is 0 while it still grows */
  if (!data)
    return -1;
  o->data = data;
  o->size = size;
  return 0;
}

static void keep(struct output *o, const char *data, size_t n)
{
  while (n > 0) {
    size_t end = (o->start + o->length) % o->size, part = o->size - end;

    if (part > n)
      part = n;
    memcpy(o->data + end, data, part);
    data += part;
    n -= part;
    o->length += part;
    if (o->length > o->size) {
      o->start = (o->start + o->length - o->size) % o->size;
      o->length = o->size;
    }
  }
}

/* Reads at most `limit` bytes; 0 when memory is missing. */
static int read_output(struct cairn_engine *e, struct output *o, size_t limit)
{
  char buffer[READ_AT_ONCE];

  while (o->fd >= 0 && limit > 0) {
    ssize_t n;

    if (make_room(o, sizeof buffer) != 0)
      return 0;
    n = read(o->fd, buffer, sizeof buffer);
    if (n > 0) {
      keep(o, buffer, (size_t)n);
      limit -= (size_t)n < limit ? (size_t)n : limit;
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else {
      if (n == 0 || errno != EAGAIN)
        close_output(e, o);
      break;
    }
  }
  return 1;
}

/* ---- the end of a program ---- */

static int wait_status(const siginfo_t *info)
{
  switch (info->si_code) {
  case CLD_EXITED:
    return (info->si_status & 0xff) << 8;
  case CLD_DUMPED:
    return info->si_status | 0x80;
  default:
    return info->si_status;
  }
}

static int has_ended(struct cairn_engine *e, struct process *p)
{
  struct cairn_event *event;
  siginfo_t info = {0};
  int status = -1; /* somebody else has reaped it: nobody knows */

  if (cairn__events_reserve(e, CAIRN__EVENTS_PER_ACTION) != 0)
    return 0;
  if (waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &info,
             WEXITED | WNOWAIT | WNOHANG) == 0) {
    if (info.si_pid == 0)
      return 1;
    status = wait_status(&info);
  }
  if (!read_output(e, &p->outputs[0], OUTPUT_MAX) ||
      !read_output(e, &p->outputs[1], OUTPUT_MAX))
    return 0;
  epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, p->pidfd, NULL);
  p->is_ended = 1;
  e->processes->running--;
  event = cairn__event_push(e, CAIRN_EVENT_PROCESS, NULL);
  event->job = p->job;
  event->cookie = p->link.key;
  event->status = status;
  return 1;
}

int cairn__process_ready(struct cairn_engine *e, void *pointer)
{
  const struct source *source = pointer;
  struct process *p = source->process;

  if (source->kind == SOURCE_EXIT)
    return p->is_ended ? 1 : has_ended(e, p);
  return read_output(e, &p->outputs[source->kind - SOURCE_STDOUT],
                     (size_t)4 * READ_AT_ONCE);
}

static void process_free(struct cairn_engine *e, struct process *p)
{
  cairn__table_remove(&e->processes->by_cookie, &p->link);
  if (p->prev)
    p->prev->next = p->next;
  else
    e->processes->first = p->next;
  if (p->next)
    p->next->prev = p->prev;
  if (!p->is_ended)
    e->processes->running--;
  close_output(e, &p->outputs[0]);
  close_output(e, &p->outputs[1]);
  cairn__free(p->outputs[0].data);
  cairn__free(p->outputs[1].data);
  if (p->pidfd >= 0) {
    epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, p->pidfd, NULL);
    close(p->pidfd);
  }
  cairn__free(p);
}

/* 0, or -1 with errno. */
static int signal_group(const struct process *p, int number)
{
  siginfo_t info;

  if (waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &info,
             WEXITED | WNOWAIT | WNOHANG) != 0) {
    errno = ESRCH; /* reaped: the number may be another's by now */
    return -1;
  }
  return kill(-p->pid, number);
}

void cairn__processes_kill(struct cairn_engine *e, cairn_job serial)
{
  for (struct process *p = e->processes->first; p; p = p->next) {
    if (p->job == serial)
      signal_group(p, SIGKILL);
  }
}

/* Reaps a program that was killed. One in an uninterruptible call may stay; we
 * do not. */
static void reap(const struct process *p)
{
  const struct cairn_clock *clock = &cairn__system_clock;
  int64_t end = clock->monotonic(clock) + FREE_TIMEOUT * INT64_C(1000);
  struct pollfd poller = {.fd = p->pidfd, .events = POLLIN};
  siginfo_t info;
  int code;

  do { /* the SIGCHLD of another one interrupts */
    int64_t left = (end - clock->monotonic(clock)) / 1000;

    code = poll(&poller, 1, left > 0 ? (int)left : 0);
  } while (code < 0 && errno == EINTR);
  if (code > 0)
    waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG);
}

void cairn__processes_free(struct cairn_engine *e)
{
  if (!e->processes)
    return;
  for (struct process *p = e->processes->first; p; p = p->next)
    signal_group(p, SIGKILL);
  while (e->processes->first) {
    reap(e->processes->first);
    process_free(e, e->processes->first);
  }
  cairn__table_free(&e->processes->by_cookie);
  cairn__free(e->processes);
  e->processes = NULL;
}

/* ---- starting ---- */

struct start {
  const struct cairn_process_options *options;
  int input, output[2], error[2], report[2]; /* report: of a failed exec */
  pid_t parent;
};

struct report {
  int errnum;
  int is_cwd;
};

/* In the child, between fork and exec: only what is safe in a copy of a
 * program with threads. */
static void child(const struct start *s)
{
  const struct cairn_process_options *o = s->options;
  struct report report = {0};
  sigset_t none;
  int fds[3] = {s->input, s->output[1], s->error[1]};

  for (int i = 1; i < NSIG; i++)
    signal(i, SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != s->parent)
    _exit(127); /* died before the call above */
  /* Above 2 first: the three may lie at each other's places. */
  for (int i = 0; i < 3; i++) {
    fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
    if (fds[i] < 0)
      goto fail;
  }
  for (int i = 0; i < 3; i++) {
    if (dup2(fds[i], i) < 0)
      goto fail;
  }
  /* Not all of the embedding program's descriptors say O_CLOEXEC. */
  syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
  if (o->cwd && chdir(o->cwd) != 0) {
    report.is_cwd = 1;
    goto fail;
  }
  if (o->env)
    execvpe(o->argv[0], (char *const *)(uintptr_t)o->argv,
            (char *const *)(uintptr_t)o->env);
  else
    execvp(o->argv[0], (char *const *)(uintptr_t)o->argv);
fail:
  report.errnum = errno;
  if (write(s->report[1], &report, sizeof report) < 0)
    _exit(126);
  _exit(127);
}

static void close_pair(int pair[2])
{
  for (int i = 0; i < 2; i++) {
    if (pair[i] >= 0)
      close(pair[i]);
    pair[i] = -1;
  }
}

static int open_input(const struct cairn_process_options *o,
                      struct cairn_error *err)
{
  int fd;

  if (!o->input) {
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
      cairn__fail_errno(err, errno, "/dev/null", -1, "cannot open /dev/null");
    return fd;
  }
  fd = memfd_create("cairn-input", MFD_CLOEXEC);
  if (fd < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "memfd_create");
  for (size_t done = 0; done < o->input_length;) {
    ssize_t n = write(fd, o->input + done, o->input_length - done);

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0) {
      cairn__fail_errno(err, errno, NULL, -1,
                        "cannot keep a program's standard input");
      close(fd);
      return -1;
    }
    done += (size_t)n;
  }
  lseek(fd, 0, SEEK_SET);
  return fd;
}

/* Non-blocking at our end only: a pipe's two ends are two descriptions. */
static int open_pipe(int pair[2], int is_nonblocking, struct cairn_error *err)
{
  if (pipe2(pair, O_CLOEXEC) != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot make a pipe");
  if (is_nonblocking && fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "fcntl");
  return 0;
}

/* Waits until the child has become the program, or could not. */
static int await_exec(struct start *s, struct cairn_error *err)
{
  struct pollfd poller = {.fd = s->report[0], .events = POLLIN};
  struct report report;
  char shown[256];
  ssize_t n;
  int code;

  do
    code = poll(&poller, 1, START_TIMEOUT);
  while (code < 0 && errno == EINTR);
  if (code <= 0)
    return cairn__fail(
        err, CAIRN_E_TIMEOUT, "\"%s\" did not start within %d seconds",
        cairn__printable(s->options->argv[0], shown, sizeof shown),
        START_TIMEOUT / 1000);
  n = read(s->report[0], &report, sizeof report);
  if (n != (ssize_t)sizeof report)
    return 0;
  if (report.is_cwd)
    return cairn__fail_errno(
        err, report.errnum, s->options->cwd, -1, "cannot change to \"%s\"",
        cairn__printable(s->options->cwd, shown, sizeof shown));
  return cairn__fail_errno(
      err, report.errnum, s->options->argv[0], -1, "cannot start \"%s\"",
      cairn__printable(s->options->argv[0], shown, sizeof shown));
}

static int spawn(struct cairn_engine *e, struct process *p, struct start *s,
                 struct cairn_error *err)
{
  sigset_t all, old;
  pid_t pid;

  if (e->io->point(e->io, "process") != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot start a program");
  s->parent = getpid();
  /* No handler of the embedding program may run in the child. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pid = fork();
  if (pid == 0)
    child(s);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (pid < 0)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot start a program");
  setpgid(pid, pid); /* whoever is first; both are harmless */
  p->pid = pid;
  close(s->report[1]);
  s->report[1] = -1;
  if (await_exec(s, err) == 0) {
    p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (p->pidfd >= 0)
      return 0;
    cairn__fail_errno(err, errno, NULL, -1, "pidfd_open");
  }
  kill(-pid, SIGKILL);
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
    continue;
  return -1;
}

static int watch(struct cairn_engine *e, int fd, struct source *source,
                 struct cairn_error *err)
{
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};

  if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
    return cairn__fail_errno(err, errno, NULL, -1, "epoll_ctl");
  return 0;
}

static int check_options(struct cairn_engine *e, cairn_job job,
                         const struct cairn_process_options *o, uint64_t cookie,
                         struct cairn_error *err)
{
  if (o->size != sizeof *o)
    return cairn__fail(err, CAIRN_E_VERSION,
                       "process: the options are those of another version of "
                       "cairn.h");
  if (!o->argv || !o->argv[0] || !o->argv[0][0])
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "process: argv must name a program first");
  if (find(e, cookie))
    return cairn__fail(err, CAIRN_E_EXISTS,
                       "process: cookie %llu is in use by another process",
                       (unsigned long long)cookie);
  if (e->closing == CAIRN_CLOSE_KILL)
    return cairn__fail(err, CAIRN_E_CLOSED, "process: the engine is closing");
  if (job != 0) {
    struct cairn__job *j = cairn__engine_asked(e, job, err);

    if (!j)
      return -1;
    if (cairn_state_is_final(j->state))
      return cairn__fail(err, CAIRN_E_INVALID_STATE,
                         "process: %s has ended already", j->instance_id);
  }
  return 0;
}

static int start(struct cairn_engine *e, struct process *p, struct start *s,
                 struct cairn_error *err)
{
  s->input = open_input(s->options, err);
  if (s->input < 0 || open_pipe(s->output, 1, err) != 0 ||
      open_pipe(s->error, 1, err) != 0 || open_pipe(s->report, 0, err) != 0 ||
      spawn(e, p, s, err) != 0)
    return -1;
  p->outputs[0].fd = s->output[0];
  p->outputs[1].fd = s->error[0];
  s->output[0] = s->error[0] = -1;
  if (watch(e, p->pidfd, &p->sources[SOURCE_EXIT], err) == 0 &&
      watch(e, p->outputs[0].fd, &p->sources[SOURCE_STDOUT], err) == 0 &&
      watch(e, p->outputs[1].fd, &p->sources[SOURCE_STDERR], err) == 0)
    return 0;
  kill(-p->pid, SIGKILL);
  while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
    continue;
  return -1;
}

int cairn_process_start(cairn_engine *e, cairn_job job,
                        const struct cairn_process_options *options,
                        uint64_t cookie, struct cairn_error *err)
{
  struct start s = {.options = options,
                    .input = -1,
                    .output = {-1, -1},
                    .error = {-1, -1},
                    .report = {-1, -1}};
  struct process *p;
  int code;

  cairn__error_clear(err);
  if (check_options(e, job, options, cookie, err) != 0)
    return -1;
  p = cairn__calloc(1, sizeof *p);
  if (!p)
    return cairn__fail_memory(err);
  p->job = job;
  p->pidfd = p->outputs[0].fd = p->outputs[1].fd = -1;
  for (int i = 0; i < 3; i++)
    p->sources[i] = (struct source){.process = p, .kind = i};
  cairn__table_add(&e->processes->by_cookie, &p->link, cookie);
  p->next = e->processes->first;
  if (p->next)
    p->next->prev = p;
  e->processes->first = p;
  e->processes->running++;

  code = start(e, p, &s, err);
  if (s.input >= 0)
    close(s.input);
  close_pair(s.output);
  close_pair(s.error);
  close_pair(s.report);
  if (code != 0)
    process_free(e, p);
  return code;
}

/* ---- what an owner asks of one ---- */

static struct process *get(struct cairn_engine *e, uint64_t cookie,
                           struct cairn_error *err)
{
  struct process *p = find(e, cookie);

  cairn__error_clear(err);
  if (!p)
    cairn__fail(err, CAIRN_E_NOT_FOUND, "there is no process with cookie %llu",
                (unsigned long long)cookie);
  return p;
}

int cairn_process_signal(cairn_engine *e, uint64_t cookie, int number,
                         struct cairn_error *err)
{
  struct process *p = get(e, cookie, err);

  if (!p)
    return -1;
  if (signal_group(p, number) != 0)
    return cairn__fail_errno(err, errno, NULL, -1,
                             "cannot send signal %d to process group %ld",
                             number, (long)p->pid);
  return 0;
}

int cairn_process_output(cairn_engine *e, uint64_t cookie, int which,
                         char **text, size_t *length, struct cairn_error *err)
{
  struct process *p = get(e, cookie, err);
  struct output *o;
  size_t first;

  *text = NULL;
  *length = 0;
  if (!p)
    return -1;
  if (which != 1 && which != 2)
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "process: there is no output %d; valid: 1 (standard "
                       "output), 2 (standard error)",
                       which);
  o = &p->outputs[which - 1];
  *text = cairn__malloc(o->length + 1);
  if (!*text)
    return cairn__fail_memory(err);
  first = o->size - o->start;
  if (first > o->length)
    first = o->length;
  if (o->length > 0) {
    memcpy(*text, o->data + o->start, first);
    memcpy(*text + first, o->data, o->length - first);
  }
  (*text)[o->length] = '\0';
  *length = o->length;
  return 0;
}

void cairn_process_release(cairn_engine *e, uint64_t cookie)
{
  struct process *p = find(e, cookie);
  siginfo_t info;

  if (!p || !p->is_ended)
    return;
  waitid((idtype_t)P_PIDFD, (id_t)p->pidfd, &info, WEXITED | WNOHANG);
  process_free(e, p);
}
