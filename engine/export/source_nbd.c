/* source_nbd.c: a qcow2 image as a source, read through one qemu-nbd.
 *
 * Every file of the chain is opened, checked and locked here first (chain.c);
 * the server inherits those descriptors and opens them again through its own
 * /proc/self/fd, so that it reads the files that were checked, whatever
 * happens to their names. The chain is spelled out to it, formats and all, down
 * to a bottom without a backing file: it follows nothing that an image says.
 *
 * The server gets its listening socket from us (systemd's protocol: descriptor
 * 3, LISTEN_PID, LISTEN_FDS), so connecting needs no polling: a connection
 * waits in the backlog until the image is open, and is dropped when the server
 * dies first. It lives until the source is closed. Should we die, the kernel
 * kills it with the thread that opened the source, which therefore has to
 * outlive the source; its pid is on record in the work directory besides.
 *
 * One connection per reader and one for block status, each opened at its first
 * use. qemu-nbd drops a connection on a read error: the reader connects again
 * and repeats the range in smaller pieces, which finds the unreadable place.
 * Server and locks being the same all the time, the image is as well. */
#include "chain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "image.h"
#include "memory.h"

#ifdef CAIRN_HAVE_LIBNBD

#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbd_library.h"
#include "server.h"

#define ALIGNMENT   4096u
#define MAX_READERS 16u
#define SPARE_CLIENTS                                                          \
  4u /* connections that the server has lost but                               \
        not yet noticed */
#define REQUEST         (256u << 10) /* bytes of one NBD read */
#define MAX_REQUESTS    16u          /* in flight on one connection */
#define STATUS_MAX      (4294967296ull - 65536) /* libnbd 1.14: 32 bits */
#define CONNECT_WAIT_US (60 * 1000000ll)
#define REQUEST_WAIT_US (120 * 1000000ll)
#define POLL_MS         100

/* One connection, used by one thread at a time. */
struct connection {
  struct nbd_handle *handle; /* NULL = not connected */
};

struct nbd_source {
  struct cairn__source source; /* first */
  const struct cairn_io *io;
  struct cairn__run *run; /* or NULL */
  const struct cairn__nbd_library *nbd;
  struct cairn__chain *chain;
  struct cairn__server server;
  struct connection *readers; /* [source.readers] */
  struct nbd_handle *status;  /* the extent thread's, as what follows */
  int has_status;
  struct cairn__extent *extents; /* ascending, without gaps */
  size_t extent_count, extent_room, extent_at;
};

/* ---- failing ------------------------------------------------------------- */

static int64_t now_us(void)
{
  /* Real waits, real time: a virtual clock would make them endless. */
  return cairn__system_clock.monotonic(&cairn__system_clock);
}

static int has_word(const char *text, const char *const *words)
{
  for (; *words; words++) {
    if (strcasestr(text, *words))
      return 1;
  }
  return 0;
}

static int is_corruption(const char *text)
{
  static const char *const words[] = {
      "corrupt", "unaligned",       "too large",      "too many", "too small",
      "overlap", "L1 table",        "L2 table",       "refcount", "snapshot",
      "header",  "invalid cluster", "invalid offset", NULL};

  return has_word(text, words);
}

/* What the server wrote last, with our paths instead of its descriptors. */
static void last_words(struct nbd_source *n, char *text, size_t size)
{
  cairn__server_last_words(&n->server, text, size);
  for (size_t i = 0; i < n->chain->count; i++) {
    char name[64], shown[300], copy[CAIRN_MESSAGE_MAX];
    char *at;

    snprintf(name, sizeof name, "/proc/self/fd/%d",
             cairn__server_child_fd(&n->server, i));
    at = strstr(text, name);
    if (!at || (at[strlen(name)] >= '0' && at[strlen(name)] <= '9'))
      continue;
    snprintf(copy, sizeof copy, "%s", at + strlen(name));
    snprintf(
        at, size - (size_t)(at - text), "%s%s",
        cairn__printable(n->chain->layers[i].held.path, shown, sizeof shown),
        copy);
  }
}

/* The server is gone, or would not let us in. */
static int fail_server(struct nbd_source *n, const char *what,
                       struct cairn_error *err)
{
  static const char *const busy[] = {"failed to get", "another process", NULL};
  char text[900], shown[512], end[64] = "";
  int id = CAIRN_E_HELPER_FAILED, signal_number = 0;

  /* Its connections end a moment before it does. */
  int is_gone = cairn__server_wait(&n->server, 1000);

  if (is_gone)
    signal_number = cairn__server_end_of(&n->server, end, sizeof end);
  last_words(n, text, sizeof text);
  if (text[0] && is_corruption(text))
    id = CAIRN_E_SOURCE_CORRUPT;
  else if (text[0] && has_word(text, busy))
    id = CAIRN_E_SOURCE_IN_USE;
  else if (!is_gone)
    id = CAIRN_E_NBD;
  cairn__fail(err, id, "qemu-nbd %s \"%s\"%s%s%s%s", what,
              cairn__printable(n->source.path, shown, sizeof shown),
              is_gone ? ", and " : "", end,
              text[0] || !signal_number ? ": " : "",
              text[0]          ? text
              : !signal_number ? "it gave no reason"
                               : "");
  cairn__error_set_path(err, n->source.path, -1);
  return -1;
}

static int fail_timeout(struct nbd_source *n, const char *what, int64_t offset,
                        int64_t waited_us, struct cairn_error *err)
{
  char shown[512];

  cairn__fail(err, CAIRN_E_TIMEOUT,
              "qemu-nbd did not %s \"%s\" within %lld seconds", what,
              cairn__printable(n->source.path, shown, sizeof shown),
              (long long)(waited_us / 1000000));
  cairn__error_set_path(err, n->source.path, offset);
  return -1;
}

static int fail_point(struct nbd_source *n, const char *what, int64_t offset,
                      struct cairn_error *err)
{
  char shown[512];

  return cairn__fail_errno(
      err, errno, n->source.path, offset, "cannot %s \"%s\"", what,
      cairn__printable(n->source.path, shown, sizeof shown));
}

/* Between two polls of a wait: 0 go on waiting, -1 the run is to end. A run
 * that is suspended parks here with its requests in flight, whether or not the
 * server ever answers them; the wait is prolonged by that time. */
static int pass_gate(struct nbd_source *n, int64_t *end,
                     struct cairn_error *err)
{
  int64_t before = now_us();

  if (!n->run)
    return 0;
  if (cairn__run_gate(n->run, err) != 0)
    return -1;
  *end += now_us() - before;
  return 0;
}

/* ---- connections --------------------------------------------------------- */

static void disconnect(struct nbd_source *n, struct nbd_handle **h)
{
  if (*h && n->nbd)
    n->nbd->close(*h);
  *h = NULL;
}

static int connect_handle(struct nbd_source *n, struct nbd_handle **out,
                          struct cairn_error *err)
{
  int64_t end = now_us() + CONNECT_WAIT_US;
  struct nbd_handle *h;
  int fd;

  if (n->io->point(n->io, "nbd-connect") != 0)
    return fail_point(n, "connect to the server of", -1, err);
  fd = cairn__server_connect(&n->server);
  if (fd < 0)
    return fail_server(n, "does not answer for", err);
  h = n->nbd->create();
  if (!h) {
    close(fd);
    return cairn__fail_memory(err);
  }
  (void)n->nbd->set_pread_initialize(h, 0);
  if (n->nbd->add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 ||
      n->nbd->aio_connect_socket(h, fd) != 0) {
    /* libnbd owns the descriptor as soon as it was handed over. */
    n->nbd->close(h);
    return fail_server(n, "could not serve", err);
  }
  while (n->nbd->aio_is_connecting(h)) {
    if (pass_gate(n, &end, err) != 0) {
      n->nbd->close(h);
      return -1;
    }
    if (now_us() > end) {
      n->nbd->close(h);
      return fail_timeout(n, "open", -1, CONNECT_WAIT_US, err);
    }
    if (n->nbd->poll(h, POLL_MS) < 0)
      break;
  }
  if (!n->nbd->aio_is_ready(h)) {
    n->nbd->close(h);
    return fail_server(n, "could not open", err);
  }
  if (n->nbd->get_size(h) != (int64_t)n->source.length) {
    int64_t size = n->nbd->get_size(h);

    n->nbd->close(h);
    return cairn__fail(err, CAIRN_E_SOURCE_CORRUPT,
                       "\"%s\" has a virtual size of %llu in its header, "
                       "qemu-nbd serves %lld bytes",
                       n->source.path, (unsigned long long)n->source.length,
                       (long long)size);
  }
  *out = h;
  return 0;
}

/* ---- extents ------------------------------------------------------------- */

struct status_request {
  struct nbd_source *n;
  int is_done, error, is_out_of_memory;
};

static int add_extent(struct nbd_source *n, uint64_t offset, uint64_t length,
                      int is_zero)
{
  struct cairn__extent *last;

  if (length == 0)
    return 0;
  if (n->extent_count > 0) {
    last = &n->extents[n->extent_count - 1];
    if (last->is_zero == is_zero) {
      last->length += length;
      return 0;
    }
  }
  if (n->extent_count == n->extent_room) {
    size_t room = n->extent_room ? 2 * n->extent_room : 256;
    void *p = cairn__realloc(n->extents, room * sizeof *n->extents);

    if (!p)
      return -1;
    n->extents = p;
    n->extent_room = room;
  }
  last = &n->extents[n->extent_count++];
  last->offset = offset;
  last->length = length;
  last->is_zero = is_zero;
  return 0;
}

static int on_extents(void *argument, const char *context, uint64_t offset,
                      uint32_t *entries, size_t count, int *error)
{
  struct status_request *request = argument;
  struct nbd_source *n = request->n;

  (void)error;
  if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  for (size_t i = 0; i + 1 < count; i += 2) {
    uint64_t length = entries[i];

    /* The last one may reach beyond what was asked for and is true there. */
    if (offset >= n->source.length)
      break;
    if (length > n->source.length - offset)
      length = n->source.length - offset;
    if (add_extent(n, offset, length,
                   (entries[i + 1] & LIBNBD_STATE_ZERO) != 0) != 0)
      request->is_out_of_memory = 1;
    offset += length;
  }
  return 0;
}

static int on_status_done(void *argument, int *error)
{
  struct status_request *request = argument;

  request->error = *error;
  request->is_done = 1;
  return 1; /* retire it */
}

static int query_status(struct nbd_source *n, uint64_t offset, uint64_t most,
                        struct cairn_error *err)
{
  struct status_request request = {.n = n};
  uint64_t length = n->source.length - offset;
  int64_t end = now_us() + REQUEST_WAIT_US;
  char text[900], shown[512];

  if (n->io->point(n->io, "nbd-status") != 0)
    return fail_point(n, "read the block status of", (int64_t)offset, err);
  if (!n->status && connect_handle(n, &n->status, err) != 0)
    return -1;
  if (n->nbd->can_meta_context(n->status, LIBNBD_CONTEXT_BASE_ALLOCATION) !=
      1) {
    n->has_status = 0;
    return 0;
  }
  if (length > most)
    length = most;
  if (length > STATUS_MAX)
    length = STATUS_MAX;
  n->extent_count = 0;
  n->extent_at = 0;
  if (n->nbd->aio_block_status(
          n->status, length, offset,
          (nbd_extent_callback){.callback = on_extents, .user_data = &request},
          (nbd_completion_callback){.callback = on_status_done,
                                    .user_data = &request},
          0) < 0) {
    disconnect(n, &n->status);
    return fail_server(n, "refused a block status request for", err);
  }
  while (!request.is_done) {
    if (pass_gate(n, &end, err) != 0) {
      disconnect(n, &n->status);
      return -1;
    }
    if (now_us() > end) {
      disconnect(n, &n->status);
      return fail_timeout(n, "tell the block status of", (int64_t)offset,
                          REQUEST_WAIT_US, err);
    }
    if (n->nbd->poll(n->status, POLL_MS) < 0 && !request.is_done) {
      disconnect(n, &n->status);
      return fail_server(n,
                         "dropped the connection while it told the block "
                         "status of",
                         err);
    }
  }
  if (request.is_out_of_memory)
    return cairn__fail_memory(err);
  if (request.error != 0 || n->extent_count == 0) {
    int errnum = request.error ? request.error : EIO;

    disconnect(n, &n->status);
    last_words(n, text, sizeof text);
    cairn__fail_errno(err, errnum, n->source.path, (int64_t)offset,
                      "cannot read the block status of \"%s\" at offset "
                      "%llu%s%s",
                      cairn__printable(n->source.path, shown, sizeof shown),
                      (unsigned long long)offset, text[0] ? ": " : "", text);
    if (err && is_corruption(text))
      err->id = CAIRN_E_SOURCE_CORRUPT;
    return -1;
  }
  return 0;
}

static int nbd_extent(struct cairn__source *s, uint64_t offset, uint64_t most,
                      struct cairn__extent *out, struct cairn_error *err)
{
  struct nbd_source *n = (struct nbd_source *)s;

  out->offset = offset;
  out->length = s->length - offset;
  out->is_zero = 0;
  for (int i = 0; i < 2 && n->has_status; i++) {
    if (n->extent_at >= n->extent_count ||
        n->extents[n->extent_at].offset > offset)
      n->extent_at = 0;
    for (; n->extent_at < n->extent_count; n->extent_at++) {
      const struct cairn__extent *e = &n->extents[n->extent_at];

      if (offset < e->offset)
        break;
      if (offset - e->offset < e->length) {
        out->length = e->offset + e->length - offset;
        out->is_zero = e->is_zero;
        return 0;
      }
    }
    if (query_status(n, offset, most, err) != 0)
      return -1;
  }
  return 0;
}

/* ---- reading ------------------------------------------------------------- */

struct read_batch {
  size_t outstanding;
  int error; /* the first, an errno */
};

static int on_read_done(void *argument, int *error)
{
  struct read_batch *batch = argument;

  batch->outstanding--;
  if (*error != 0 && batch->error == 0)
    batch->error = *error;
  return 1;
}

/* One try: 0 all read, 1 not (*errnum says why; the connection may be gone),
 * -1 failed for good. */
static int try_read(struct nbd_source *n, struct nbd_handle **h,
                    unsigned char *buf, size_t size, uint64_t offset,
                    int *errnum, struct cairn_error *err)
{
  struct read_batch batch = {0};
  int64_t end = now_us() + REQUEST_WAIT_US;
  size_t at = 0;

  if (!*h && connect_handle(n, h, err) != 0)
    return -1;
  while (at < size || batch.outstanding > 0) {
    while (at < size && batch.error == 0 && batch.outstanding < MAX_REQUESTS) {
      size_t piece = size - at < REQUEST ? size - at : REQUEST;

      batch.outstanding++;
      if (n->nbd->aio_pread(*h, buf + at, piece, offset + at,
                            (nbd_completion_callback){.callback = on_read_done,
                                                      .user_data = &batch},
                            0) < 0) {
        batch.outstanding--;
        *errnum = n->nbd->get_errno() ? n->nbd->get_errno() : EIO;
        disconnect(n, h);
        return 1;
      }
      at += piece;
    }
    if (batch.error != 0 && batch.outstanding == 0)
      break;
    if (batch.outstanding > 0 && n->nbd->poll(*h, POLL_MS) < 0) {
      *errnum = batch.error ? batch.error : EIO;
      disconnect(n, h);
      return 1;
    }
    if (batch.outstanding > 0 && pass_gate(n, &end, err) != 0) {
      disconnect(n, h);
      return -1;
    }
    if (batch.outstanding > 0 && now_us() > end) {
      disconnect(n, h);
      return fail_timeout(n, "read", (int64_t)offset, REQUEST_WAIT_US, err);
    }
  }
  if (batch.error == 0)
    return 0;
  *errnum = batch.error;
  if (!n->nbd->aio_is_ready(*h))
    disconnect(n, h);
  return 1;
}

static int fail_read(struct nbd_source *n, int errnum, uint64_t offset,
                     struct cairn_error *err)
{
  char text[900], shown[512];

  last_words(n, text, sizeof text);
  /* A lost connection says nothing about why. */
  if (errnum == ENOTCONN || errnum == ESHUTDOWN || errnum == ECONNRESET ||
      errnum == EPIPE || errnum == EINVAL)
    errnum = EIO;
  cairn__fail_errno(err, errnum, n->source.path, (int64_t)offset,
                    "cannot read \"%s\" at offset %llu%s%s",
                    cairn__printable(n->source.path, shown, sizeof shown),
                    (unsigned long long)offset, text[0] ? ": " : "", text);
  if (err && is_corruption(text))
    err->id = CAIRN_E_SOURCE_CORRUPT;
  return -1;
}

/* The range failed as a whole: again, in pieces, down to the unreadable one. */
static int read_in_pieces(struct nbd_source *n, struct nbd_handle **h,
                          unsigned char *buf, size_t size, uint64_t offset,
                          struct cairn_error *err)
{
  size_t step = CAIRN__BLOCK, at = 0;
  int errnum = EIO;

  while (at < size) {
    size_t piece = size - at < step ? size - at : step;
    int result;

    if (cairn__server_wait(&n->server, 0))
      return fail_server(n, "failed while it read", err);
    result = try_read(n, h, buf + at, piece, offset + at, &errnum, err);
    if (result < 0)
      return -1;
    if (result == 0) {
      at += piece;
      continue;
    }
    if (step == ALIGNMENT)
      return fail_read(n, errnum, offset + at, err);
    step = ALIGNMENT;
  }
  return 0;
}

static int nbd_read_range(struct cairn__source *s, unsigned reader, void *buf,
                          size_t size, uint64_t offset, struct cairn_error *err)
{
  struct nbd_source *n = (struct nbd_source *)s;
  size_t inside = 0;
  int errnum = 0, result;

  if (n->io->point(n->io, "nbd-read") != 0)
    return fail_point(n, "read", (int64_t)offset, err);
  if (offset < s->length)
    inside = s->length - offset < size ? (size_t)(s->length - offset) : size;
  memset((unsigned char *)buf + inside, 0, size - inside);
  if (inside == 0)
    return 0;
  result = try_read(n, &n->readers[reader].handle, buf, inside, offset, &errnum,
                    err);
  if (result <= 0)
    return result;
  return read_in_pieces(n, &n->readers[reader].handle, buf, inside, offset,
                        err);
}

/* ---- opening, closing ---------------------------------------------------- */

static int nbd_check_still(struct cairn__source *s, struct cairn_error *err)
{
  struct nbd_source *n = (struct nbd_source *)s;

  if (cairn__server_wait(&n->server, 0))
    return fail_server(n, "did not stay with", err);
  return cairn__chain_check_still(n->chain, err);
}

static void nbd_source_close(struct cairn__source *s)
{
  struct nbd_source *n = (struct nbd_source *)s;

  if (n->readers) {
    for (unsigned i = 0; i < s->readers; i++)
      disconnect(n, &n->readers[i].handle);
  }
  disconnect(n, &n->status);
  cairn__server_stop(&n->server);
  cairn__chain_close(n->chain);
  cairn__free(n->readers);
  cairn__free(n->extents);
  cairn__free(s->path);
  cairn__free(n);
}

static const struct cairn__source_ops nbd_ops = {
    .extent = nbd_extent,
    .read = nbd_read_range,
    .check_still = nbd_check_still,
    .close = nbd_source_close,
};

/* 1 when every file of the chain can be read around the page cache. */
static int can_be_direct(const struct cairn__chain *c)
{
  for (size_t i = 0; i < c->count; i++) {
    const struct cairn__held *h = &c->layers[i].held;
    struct statfs fs;
    char name[32];
    int fd;

    if (!h->is_block && (fstatfs(h->fd, &fs) != 0 || fs.f_type == TMPFS_MAGIC ||
                         fs.f_type == RAMFS_MAGIC))
      return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", h->fd);
    fd = h->io->openat(h->io, AT_FDCWD, name,
                       O_RDONLY | O_DIRECT | O_NONBLOCK | O_NOCTTY, 0);
    if (fd < 0)
      return 0;
    (void)h->io->close(h->io, fd);
  }
  return 1;
}

/* The image's "json:" name: each layer with its format, its file, and what
 * lies below it. */
static char *chain_name(const struct nbd_source *n)
{
  const struct cairn__chain *c = n->chain;
  char *text = cairn__strdup("json:");

  for (size_t i = 0; i < c->count && text; i++) {
    const struct cairn__chain_layer *layer = &c->layers[i];
    char *longer = cairn__format(
        "%s{\"driver\":\"%s\",\"file\":{\"driver\":\"%s\",\"filename\":"
        "\"/proc/self/fd/%d\",\"locking\":\"%s\"}%s",
        text, layer->is_qcow2 ? "qcow2" : "raw",
        layer->held.is_block ? "host_device" : "file",
        cairn__server_child_fd(&n->server, i),
        layer->held.is_locked ? "on" : "off",
        layer->is_qcow2 ? ",\"backing\":" : "");

    cairn__free(text);
    text = longer;
  }
  if (text && c->layers[c->count - 1].is_qcow2) {
    char *longer = cairn__format("%snull", text);

    cairn__free(text);
    text = longer;
  }
  for (size_t i = 0; i < c->count && text; i++) {
    char *longer = cairn__format("%s}", text);

    cairn__free(text);
    text = longer;
  }
  return text;
}

static int start_server(struct nbd_source *n,
                        const struct cairn__source_options *o,
                        struct cairn_error *err)
{
  const char *argv[12];
  int fds[CAIRN__SOURCE_CHAIN_MAX], argc = 0, result;
  char clients[16], *name;

  for (size_t i = 0; i < n->chain->count; i++)
    fds[i] = n->chain->layers[i].held.fd;
  if (cairn__server_prepare(&n->server, o->io, "qemu-nbd", "qemu-utils",
                            o->work_directory, fds, n->chain->count, err) != 0)
    return -1;
  name = chain_name(n);
  if (!name)
    return cairn__fail_memory(err);
  snprintf(clients, sizeof clients, "%u",
           n->source.readers + 1 + SPARE_CLIENTS);
  argv[argc++] = "qemu-nbd";
  argv[argc++] = "--read-only";
  argv[argc++] = "--persistent";
  argv[argc++] = "--shared";
  argv[argc++] = clients;
  argv[argc++] = n->source.is_direct ? "--cache=none" : "--cache=writeback";
  argv[argc++] = name;
  argv[argc] = NULL;
  result = cairn__server_start(&n->server, argv, err);
  cairn__free(name);
  return result;
}

int cairn__source_open_qcow2(const struct cairn__source_options *o,
                             struct cairn__run *run, struct cairn__source **out,
                             struct cairn_error *err)
{
  struct nbd_source *n = cairn__calloc(1, sizeof *n);
  struct cairn__source *s;

  *out = NULL;
  if (!n)
    return cairn__fail_memory(err);
  s = &n->source;
  s->ops = &nbd_ops;
  s->readers = o->readers == 0            ? 1
               : o->readers > MAX_READERS ? MAX_READERS
                                          : o->readers;
  n->io = o->io;
  n->run = run;
  n->has_status = 1;
  cairn__server_init(&n->server);
  s->path = cairn__strdup(o->path);
  n->readers = cairn__calloc(s->readers, sizeof n->readers[0]);
  if (!s->path || !n->readers) {
    cairn__fail_memory(err);
    goto fail;
  }
  n->nbd = cairn__nbd_library(err);
  if (!n->nbd || cairn__chain_open(o, run, &n->chain, err) != 0)
    goto fail;
  s->length = s->virtual_size = n->chain->virtual_size;
  s->is_direct = can_be_direct(n->chain);
  if (n->io->point(n->io, "nbd-start") != 0) {
    fail_point(n, "start the server of", -1, err);
    goto fail;
  }
  /* Connecting now finds what QEMU has to say about the image. */
  if (start_server(n, o, err) != 0 || connect_handle(n, &n->status, err) != 0)
    goto fail;
  *out = s;
  return 0;
fail:
  nbd_source_close(s);
  return -1;
}

const struct cairn__chain *cairn__source_chain(const struct cairn__source *s)
{
  return s->ops == &nbd_ops ? ((const struct nbd_source *)s)->chain : NULL;
}

#else /* no libnbd */

int cairn__source_open_qcow2(const struct cairn__source_options *o,
                             struct cairn__run *run, struct cairn__source **out,
                             struct cairn_error *err)
{
  char shown[512];

  (void)run;
  *out = NULL;
  cairn__fail(err, CAIRN_E_HELPER_MISSING,
              "\"%s\" cannot be read: this Cairn was built without libnbd; "
              "install libnbd-dev and build it again",
              cairn__printable(o->path, shown, sizeof shown));
  cairn__error_set_path(err, o->path, -1);
  return -1;
}

const struct cairn__chain *cairn__source_chain(const struct cairn__source *s)
{
  (void)s;
  return NULL;
}

#endif
