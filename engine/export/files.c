/* files.c: see files.h. */
#include "files.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "error.h"
#include "memory.h"

#define CHUNK_BLOCKS 16u
#define CHUNK        ((size_t)CHUNK_BLOCKS * CAIRN__BLOCK)
/* Synced each time so much was written: a saved state has gigabytes, and who
 * waits in one fsync for all of them ends at nobody's request. */
#define SYNC_BYTES ((uint64_t)32 << 20)

const char *const cairn__file_roles[] = {"config", "runtime", "guest-state",
                                         NULL};

static const char *role_key(const char *role)
{
  return strcmp(role, "guest-state") == 0 ? "guest_state" : role;
}

/* ---- finding ------------------------------------------------------------- */

static int fail_file(struct cairn_error *err, int id, const char *path,
                     const char *what)
{
  char shown[512];

  cairn__fail(err, id, "\"%s\" %s", cairn__printable(path, shown, sizeof shown),
              what);
  cairn__error_set_path(err, path, -1);
  return -1;
}

static int fail_file_errno(struct cairn_error *err, int errnum,
                           const char *path, const char *what)
{
  char shown[512];

  cairn__fail_errno(err, errnum, path, -1, "cannot %s \"%s\"", what,
                    cairn__printable(path, shown, sizeof shown));
  if (err && errnum == ENOENT)
    err->id = CAIRN_E_SOURCE_MISSING;
  return -1;
}

static int is_taken(const struct cairn__machine_files *f, const char *role,
                    const char *name)
{
  for (size_t i = 0; i < f->count; i++) {
    if (strcmp(f->list[i].role, role) == 0 &&
        strcasecmp(f->list[i].name, name) == 0)
      return 1;
  }
  return 0;
}

static char *free_name(const struct cairn__machine_files *f, const char *role,
                       const char *base)
{
  char *name = cairn__strdup(base);

  for (unsigned i = 2; name && is_taken(f, role, name); i++) {
    cairn__free(name);
    name = cairn__format("%u-%s", i, base);
  }
  return name;
}

#define MADE_WHEN_READ                                                         \
  "as files do that the kernel makes when they are read; copy it to an "       \
  "ordinary file and name that"

/* A file of /proc has no size and content all the same. */
static int refuse_hidden_content(const struct cairn_io *io, const char *source,
                                 struct cairn_error *err)
{
  char byte;
  ssize_t got;
  int fd =
      io->openat(io, AT_FDCWD, source, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);

  if (fd < 0)
    return fail_file_errno(err, errno, source, "open");
  got = cairn__io_read_full(io, fd, &byte, 1, 0);
  if (got < 0)
    fail_file_errno(err, errno, source, "read");
  (void)io->close(io, fd);
  if (got > 0)
    return fail_file(err, CAIRN_E_BAD_PATH, source,
                     "holds data although its size is 0, " MADE_WHEN_READ);
  return got < 0 ? -1 : 0;
}

/* Names the list and the place in it: "runtime[2]: ..." */
static int fail_in_list(struct cairn_error *err, const char *role, size_t index)
{
  char where[64];

  if (err && (err->id == CAIRN_E_TERMINATED || err->id == CAIRN_E_KILLED))
    return -1;
  snprintf(where, sizeof where, "%s[%zu]", role_key(role), index);
  cairn__error_prefix(err, where);
  return -1;
}

static int find_one(const struct cairn_io *io, struct cairn__machine_files *f,
                    const char *role, size_t index, const char *source,
                    struct cairn_error *err)
{
  struct cairn__machine_file *file = &f->list[f->count];
  const char *base = strrchr(source, '/') + 1;

  if (base[0] == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
    return fail_file(err, CAIRN_E_BAD_PATH, source,
                     "names a directory; name the files in it");
  if (io->fstatat(io, AT_FDCWD, source, &file->st, 0) != 0)
    return fail_file_errno(err, errno, source, "open");
  if (!S_ISREG(file->st.st_mode))
    return fail_file(err, CAIRN_E_BAD_PATH, source,
                     S_ISDIR(file->st.st_mode)
                         ? "is a directory; name the files in it"
                         : "is a fifo, a device or a socket; only regular "
                           "files can be exported");
  if (file->st.st_size == 0 && refuse_hidden_content(io, source, err) != 0)
    return -1;
  file->name = free_name(f, role, base);
  if (!file->name)
    return cairn__fail_memory(err);
  file->role = role;
  file->index = index;
  file->source = source;
  f->count++;
  return 0;
}

int cairn__machine_files_find(const struct cairn_io *io, const json_t *machine,
                              struct cairn__machine_files *out,
                              struct cairn_error *err)
{
  size_t count = 0, i;
  json_t *v;

  out->list = NULL;
  out->count = 0;
  for (const char *const *role = cairn__file_roles; *role; role++)
    count += json_array_size(json_object_get(machine, role_key(*role)));
  if (count == 0)
    return 0;
  out->list = cairn__calloc(count, sizeof *out->list);
  if (!out->list)
    return cairn__fail_memory(err);
  for (const char *const *role = cairn__file_roles; *role; role++) {
    json_array_foreach(json_object_get(machine, role_key(*role)), i, v)
    {
      if (find_one(io, out, *role, i + 1, json_string_value(v), err) != 0) {
        cairn__machine_files_free(out);
        return fail_in_list(err, *role, i + 1);
      }
    }
  }
  return 0;
}

void cairn__machine_files_free(struct cairn__machine_files *f)
{
  for (size_t i = 0; i < f->count; i++)
    cairn__free(f->list[i].name);
  cairn__free(f->list);
  f->list = NULL;
  f->count = 0;
}

/* ---- copying ------------------------------------------------------------- */

struct transfer {
  struct cairn__run *run;
  const struct cairn_io *io;
  const struct cairn__machine_file *file;
  const char *path; /* of the copy */
  const struct cairn__digester *digester;
  struct cairn__tree *tree;
  unsigned char *buf;
  int from, to;
};

static int fail_changed(const struct transfer *t, struct cairn_error *err)
{
  return fail_file(err, CAIRN_E_SOURCE_CHANGED, t->file->source,
                   "changed while it was exported: its size or times are not "
                   "what they were");
}

static int is_same(const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
         a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
         a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
         a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
         a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static int check_same(const struct transfer *t, struct cairn_error *err)
{
  struct stat now;

  if (t->io->fstat(t->io, t->from, &now) != 0)
    return fail_file_errno(err, errno, t->file->source, "look at");
  return is_same(&now, &t->file->st) ? 0 : fail_changed(t, err);
}

static int fail_write(const struct transfer *t, int errnum, int64_t offset,
                      struct cairn_error *err)
{
  char shown[512];

  return cairn__fail_errno(err, errnum, t->path, offset, "cannot write \"%s\"",
                           cairn__printable(t->path, shown, sizeof shown));
}

/* One chunk: read, digest, write what is not zero. */
static int copy_chunk(const struct transfer *t, uint64_t offset, size_t n,
                      struct cairn_error *err)
{
  unsigned char digest[CAIRN__DIGEST_MAX];
  ssize_t got = cairn__io_read_full(t->io, t->from, t->buf, n, (off_t)offset);

  if (got < 0)
    return fail_file_errno(err, errno, t->file->source, "read");
  if ((size_t)got < n)
    return check_same(t, err) != 0
               ? -1
               : fail_file(
                     err, CAIRN_E_BAD_PATH, t->file->source,
                     "holds less data than its size tells, " MADE_WHEN_READ);
  memset(t->buf + n, 0, CHUNK - n);
  for (size_t at = 0; at < n; at += CAIRN__BLOCK) {
    size_t piece = n - at < CAIRN__BLOCK ? n - at : CAIRN__BLOCK;
    int is_zero = cairn__digest_block(t->digester, t->buf + at, digest);

    if (cairn__tree_append(t->tree, digest, 1) != 0)
      return cairn__fail_memory(err);
    if (!is_zero && cairn__io_write_full(t->io, t->to, t->buf + at, piece,
                                         (off_t)(offset + at)) != 0)
      return fail_write(t, errno, (int64_t)(offset + at), err);
  }
  atomic_fetch_add(&t->run->bytes_done, n);
  return 0;
}

static int copy_content(const struct transfer *t, struct cairn_error *err)
{
  uint64_t size = (uint64_t)t->file->st.st_size;
  struct timespec times[2] = {t->file->st.st_mtim, t->file->st.st_mtim};

  if (check_same(t, err) != 0)
    return -1;
  for (uint64_t offset = 0; offset < size; offset += CHUNK) {
    if (cairn__run_gate(t->run, err) != 0 ||
        copy_chunk(t, offset,
                   size - offset < CHUNK ? (size_t)(size - offset) : CHUNK,
                   err) != 0)
      return -1;
    if ((offset + CHUNK) % SYNC_BYTES == 0 &&
        t->io->fdatasync(t->io, t->to) != 0)
      return fail_write(t, errno, (int64_t)offset, err);
  }
  /* Zeros at the end were not written. */
  if (t->io->ftruncate(t->io, t->to, (off_t)size) != 0 ||
      t->io->futimens(t->io, t->to, times) != 0 ||
      t->io->fsync(t->io, t->to) != 0)
    return fail_write(t, errno, -1, err);
  return check_same(t, err);
}

static json_t *describe(const struct transfer *t)
{
  unsigned char root[CAIRN__DIGEST_MAX];
  char text[CAIRN__DIGEST_TEXT];
  const struct stat *st = &t->file->st;

  cairn__tree_root(t->tree, (uint64_t)st->st_size, root);
  cairn__digest_format(t->digester, root, text);
  return json_pack(
      "{s:s, s:I, s:s, s:s, s:i, s:I}", "role", t->file->role, "size",
      (json_int_t)st->st_size, "digest", text, "source", t->file->source,
      "mode", (int)(st->st_mode & 07777), "mtime_ns",
      (json_int_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec);
}

int cairn__machine_file_copy(struct cairn__run *run,
                             const struct cairn__machine_file *file, int dirfd,
                             const char *path,
                             const struct cairn__digester *digester,
                             json_t **entry, struct cairn_error *err)
{
  struct transfer t = {.run = run,
                       .io = run->io,
                       .file = file,
                       .path = path,
                       .digester = digester,
                       .from = -1,
                       .to = -1};
  int result = -1;

  *entry = NULL;
  t.buf = cairn__malloc_aligned(CHUNK);
  t.tree = cairn__tree_new(digester);
  if (!t.buf || !t.tree) {
    cairn__fail_memory(err);
    goto out;
  }
  t.from = t.io->openat(t.io, AT_FDCWD, file->source,
                        O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
  if (t.from < 0) {
    fail_file_errno(err, errno, file->source, "open");
    goto out;
  }
  t.to =
      t.io->openat(t.io, dirfd, file->name, O_WRONLY | O_CREAT | O_EXCL, 0600);
  if (t.to < 0) {
    fail_write(&t, errno, -1, err);
    goto out;
  }
  if (copy_content(&t, err) != 0)
    goto out;
  *entry = describe(&t);
  if (!*entry)
    cairn__fail_memory(err);
  else
    result = 0;
out:
  /* What close() can report of a synced file is not about its content. */
  if (t.to >= 0)
    (void)t.io->close(t.io, t.to);
  if (t.from >= 0)
    (void)t.io->close(t.io, t.from);
  cairn__tree_free(t.tree);
  cairn__free_aligned(t.buf);
  return result == 0 ? 0 : fail_in_list(err, file->role, file->index);
}
