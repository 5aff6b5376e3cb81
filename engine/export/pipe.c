/* pipe.c: see pipe.h.
 *
 * poll(2) says that a pipe takes something, not how much: a write of more than
 * PIPE_BUF bytes may still wait, out of the gate's reach. The flag that would
 * prevent it belongs to the open file description, which we share with
 * whoever gave us the descriptor. So a pipe is opened once more, without
 * waiting, by its name in /proc; where that is refused it is written to in
 * pieces of PIPE_BUF bytes. */
#include "pipe.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"

#define BUFFER_SIZE ((size_t)65536)
#define WRITE_MAX   ((size_t)1 << 20) /* at once, between two gates */
#define WAIT_MS     100

void cairn__pipe_name(int fd, char *name, size_t size)
{
  static const char *const standard[] = {"standard input", "standard output",
                                         "standard error"};

  if (fd <= STDERR_FILENO)
    snprintf(name, size, "%s", standard[fd]);
  else
    snprintf(name, size, "descriptor %d", fd);
}

/* Looks at what the descriptor is. */
static int examine(struct cairn__pipe *p, struct stat *st,
                   struct cairn_error *err)
{
  if (p->io->fstat(p->io, p->fd, st) != 0) {
    int errnum = errno;

    if (errnum == EBADF)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "%s is not open; give the number of a descriptor that "
                         "stays open until the job has ended, or a path",
                         p->name);
    return cairn__fail_errno(err, errnum, p->name, -1, "cannot look at %s",
                             p->name);
  }
  /* a closed standard descriptor may have become somebody's epoll */
  if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode) &&
      !S_ISFIFO(st->st_mode) && !S_ISSOCK(st->st_mode) && !S_ISCHR(st->st_mode))
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%s is neither a file nor a pipe nor a socket, or it is "
                       "closed",
                       p->name);
  if (S_ISCHR(st->st_mode) && isatty(p->fd))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s is a terminal; a stream is binary: redirect it to "
                       "or from a file or another program",
                       p->name);
  p->is_file = S_ISREG(st->st_mode) || S_ISBLK(st->st_mode);
  return 0;
}

/* ---- opening ------------------------------------------------------------- */

int cairn__pipe_open_input(const struct cairn_io *io, struct cairn__run *run,
                           const json_t *where, struct cairn__pipe *out,
                           struct cairn_error *err)
{
  const char *path = json_string_value(where);
  struct stat st;

  *out = (struct cairn__pipe){.io = io, .run = run, .fd = -1};
  if (path) {
    cairn__printable(path, out->name, sizeof out->name);
    /* a fifo without a writer is waited for later, in poll(2) */
    out->fd =
        io->openat(io, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    if (out->fd < 0)
      return cairn__fail_errno(err, errno, path, -1, "cannot open \"%s\"",
                               out->name);
    out->is_owned = 1;
  } else {
    out->fd = (int)json_integer_value(where);
    cairn__pipe_name(out->fd, out->name, sizeof out->name);
  }
  if (examine(out, &st, err) != 0)
    goto fail;
  out->size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
  out->buf = cairn__malloc(BUFFER_SIZE);
  if (out->buf)
    return 0;
  cairn__fail_memory(err);
fail:
  cairn__pipe_close(out);
  return -1;
}

int cairn__pipe_open_output(const struct cairn_io *io, struct cairn__run *run,
                            int fd, int is_owned, const char *name,
                            struct cairn__pipe *out, struct cairn_error *err)
{
  char path[32];
  struct stat st;

  *out = (struct cairn__pipe){
      .io = io, .run = run, .fd = fd, .is_owned = is_owned};
  cairn__printable(name, out->name, sizeof out->name);
  if (examine(out, &st, err) != 0) {
    cairn__pipe_close(out);
    return -1;
  }
  out->is_patient = !out->is_file;
  if (!S_ISFIFO(st.st_mode))
    return 0;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  fd = io->openat(io, AT_FDCWD, path, O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);
  if (fd < 0)
    return 0;
  if (is_owned)
    (void)io->close(io, out->fd);
  out->fd = fd;
  out->is_owned = 1;
  out->is_patient = 0;
  return 0;
}

void cairn__pipe_close(struct cairn__pipe *p)
{
  if (p->is_owned && p->fd >= 0)
    (void)p->io->close(p->io, p->fd);
  p->fd = -1;
  p->is_owned = 0;
  cairn__free(p->buf);
  p->buf = NULL;
}

int cairn__pipe_finish(struct cairn__pipe *p, struct cairn_error *err)
{
  int fd = p->fd, result = 0;

  if (p->is_file && p->io->fsync(p->io, fd) != 0)
    result =
        cairn__fail_errno(err, errno, p->name, -1, "cannot sync %s", p->name);
  if (p->is_owned) {
    p->fd = -1;
    if (p->io->close(p->io, fd) != 0 && result == 0)
      result = cairn__fail_errno(err, errno, p->name, -1, "cannot close %s",
                                 p->name);
  }
  cairn__pipe_close(p);
  return result;
}

/* ---- moving -------------------------------------------------------------- */

/* Until the other end has done something: POLLIN or POLLOUT. */
static int await(struct cairn__pipe *p, short events, struct cairn_error *err)
{
  for (;;) {
    struct pollfd poller = {.fd = p->fd, .events = events};
    int ready;

    if (cairn__run_gate(p->run, err) != 0)
      return -1;
    if (p->is_file)
      return 0;
    ready = poll(&poller, 1, WAIT_MS);
    if (ready > 0)
      return 0;
    if (ready < 0 && errno != EINTR)
      return cairn__fail_errno(err, errno, p->name, -1, "cannot wait for %s",
                               p->name);
  }
}

/* What is there, at most n bytes; 0 = the end. */
static int read_some(struct cairn__pipe *p, void *buf, size_t n, size_t *got,
                     struct cairn_error *err)
{
  for (;;) {
    ssize_t result;

    if (await(p, POLLIN, err) != 0)
      return -1;
    result = p->io->read(p->io, p->fd, buf, n);
    if (result >= 0) {
      *got = (size_t)result;
      p->bytes += (uint64_t)result;
      return 0;
    }
    if (errno != EINTR && errno != EAGAIN)
      return cairn__fail_errno(err, errno, p->name, (int64_t)p->bytes,
                               "cannot read %s", p->name);
  }
}

int cairn__pipe_read(struct cairn__pipe *p, void *buf, size_t n, size_t *got,
                     struct cairn_error *err)
{
  unsigned char *to = buf;
  size_t part;

  *got = 0;
  while (*got < n) {
    if (p->at == p->end && n - *got >= BUFFER_SIZE) {
      part = n - *got < WRITE_MAX ? n - *got : WRITE_MAX;
      if (read_some(p, to + *got, part, &part, err) != 0)
        return -1;
    } else {
      if (p->at == p->end) {
        p->at = p->end = 0;
        if (read_some(p, p->buf, BUFFER_SIZE, &p->end, err) != 0)
          return -1;
      }
      part = p->end - p->at < n - *got ? p->end - p->at : n - *got;
      memcpy(to + *got, p->buf + p->at, part);
      p->at += part;
    }
    if (part == 0)
      return 0;
    *got += part;
  }
  return 0;
}

static int fail_write(struct cairn__pipe *p, int errnum,
                      struct cairn_error *err)
{
  if (errnum == EPIPE)
    return cairn__fail_errno(err, errnum, p->name, (int64_t)p->bytes,
                             "whoever read %s has closed it before the stream "
                             "was complete",
                             p->name);
  return cairn__fail_errno(err, errnum, p->name, (int64_t)p->bytes,
                           "cannot write %s", p->name);
}

int cairn__pipe_write(struct cairn__pipe *p, const void *buf, size_t n,
                      struct cairn_error *err)
{
  const unsigned char *from = buf;

  while (n > 0) {
    size_t part = p->is_patient ? PIPE_BUF : WRITE_MAX;
    ssize_t put;

    if (await(p, POLLOUT, err) != 0)
      return -1;
    put = p->io->write(p->io, p->fd, from, part < n ? part : n);
    if (put < 0 && errno != EINTR && errno != EAGAIN)
      return fail_write(p, errno, err);
    if (put > 0) {
      from += put;
      n -= (size_t)put;
      p->bytes += (uint64_t)put;
    }
  }
  return 0;
}
