/* lock.c: see lock.h. Everything here fails closed: a source that cannot be
 * proved free is not read. */
#include "lock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "run.h"

#define NAMED_PROCESSES 4 /* as many as a message can use */

/* How long a lock is waited for that a tool has, which will end by itself. */
enum { PATIENCE_MS = 2000, LOOK_MS = 50 };

enum { BYTE_READ = 100, BYTE_WRITE = 101, BYTE_RESIZE = 103 };
enum { BYTE_NO_READ = 200, BYTE_NO_WRITE = 201, BYTE_NO_RESIZE = 203 };

/* ---- who has it (best effort, for the message only) ---------------------- */

/* 1 when descriptor `fd` of process `pid` holds a lock on one of the bytes
 * that a writer locks. */
static int has_writer_lock(const char *pid, const char *fd)
{
  char path[64], line[256];
  int has_lock = 0;
  FILE *f;

  snprintf(path, sizeof path, "/proc/%.16s/fdinfo/%.16s", pid, fd);
  f = fopen(path, "re");
  if (!f)
    return 0;
  while (!has_lock && fgets(line, sizeof line, f)) {
    unsigned long long start, end = (unsigned long long)-1;
    char *to, *from;

    if (strncmp(line, "lock:", 5) != 0)
      continue;
    line[strcspn(line, "\n")] = '\0';
    to = strrchr(line, ' ');
    if (!to)
      continue;
    *to++ = '\0';
    from = strrchr(line, ' ');
    if (!from)
      continue;
    start = strtoull(from, NULL, 10);
    if (strcmp(to, "EOF") != 0)
      end = strtoull(to, NULL, 10);
    has_lock = (start <= BYTE_RESIZE && end >= BYTE_WRITE) ||
               (start <= BYTE_NO_READ && end >= BYTE_NO_READ);
  }
  fclose(f);
  return has_lock;
}

static int is_same_file(const struct stat *a, const struct stat *b)
{
  if (S_ISBLK(a->st_mode))
    return S_ISBLK(b->st_mode) && a->st_rdev == b->st_rdev;
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

struct holders {
  char text[256]; /* "process 12 (qemu-system-x86), ...", or "" */
  int count, tools;
};

/* Those that an export starts, and others for a moment. */
static int is_tool(const char *name)
{
  return strcmp(name, "qemu-img") == 0 || strcmp(name, "qemu-nbd") == 0;
}

static void append_process(struct holders *h, const char *pid)
{
  char path[64], name[32] = "", *text = h->text;
  size_t used = strlen(text), size = sizeof h->text;
  FILE *f;

  snprintf(path, sizeof path, "/proc/%.16s/comm", pid);
  f = fopen(path, "re");
  if (f) {
    if (!fgets(name, sizeof name, f))
      name[0] = '\0';
    fclose(f);
    name[strcspn(name, "\n")] = '\0';
  }
  snprintf(text + used, size - used, "%sprocess %.16s%s%s%s",
           used > 0 ? ", " : "", pid, name[0] ? " (" : "", name,
           name[0] ? ")" : "");
  h->count++;
  h->tools += is_tool(name);
}

/* With has_lock only those that hold a writer's lock, else all that have it
 * open except this process; none when none is visible. */
static void find_holders(const struct stat *st, int has_lock,
                         struct holders *out)
{
  DIR *processes = opendir("/proc");
  struct dirent *p, *f;

  memset(out, 0, sizeof *out);
  if (!processes)
    return;
  while (out->count < NAMED_PROCESSES && (p = readdir(processes)) != NULL) {
    char path[64];
    struct stat other;
    int is_holder = 0;
    DIR *files;

    if (!isdigit((unsigned char)p->d_name[0]))
      continue;
    if (!has_lock && strtol(p->d_name, NULL, 10) == (long)getpid())
      continue;
    snprintf(path, sizeof path, "/proc/%.16s/fd", p->d_name);
    files = opendir(path);
    if (!files)
      continue;
    while (!is_holder && (f = readdir(files)) != NULL) {
      if (fstatat(dirfd(files), f->d_name, &other, 0) == 0 &&
          is_same_file(st, &other))
        is_holder = !has_lock || has_writer_lock(p->d_name, f->d_name);
    }
    closedir(files);
    if (is_holder)
      append_process(out, p->d_name);
  }
  closedir(processes);
}

static int fail_in_use(struct cairn_error *err, const char *path,
                       const struct stat *st, int has_lock, const char *why,
                       const char *advice)
{
  struct holders holders;
  char shown[512];

  find_holders(st, has_lock, &holders);
  cairn__fail(err, CAIRN_E_SOURCE_IN_USE,
              "\"%s\" is in use by another process%s%s%s: %s; %s",
              cairn__printable(path, shown, sizeof shown),
              holders.count ? " (" : "", holders.text, holders.count ? ")" : "",
              why, advice);
  cairn__error_set_path(err, path, -1);
  return -1;
}

/* ---- the protocol -------------------------------------------------------- */

static int lock_byte(const struct cairn_io *io, int fd, off_t byte)
{
  struct flock lock = {
      .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
  int result;

  do {
    result = io->ofd_lock(io, fd, F_OFD_SETLK, &lock);
  } while (result != 0 && errno == EINTR);
  return result;
}

/* 1 held by somebody else, 0 free, -1 errno */
static int is_byte_held(const struct cairn_io *io, int fd, off_t byte)
{
  struct flock lock = {
      .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
  int result;

  do {
    result = io->ofd_lock(io, fd, F_OFD_GETLK, &lock);
  } while (result != 0 && errno == EINTR);
  return result != 0 ? -1 : lock.l_type != F_UNLCK;
}

struct watched_byte {
  off_t byte;
  const char *meaning; /* of somebody else's lock on it */
};

/* Locks `ours`, then looks whether somebody else holds one of `theirs`. */
static int lock_and_look(const struct cairn_io *io, int fd, const char *path,
                         const off_t *ours, size_t our_count,
                         const struct watched_byte *theirs, size_t their_count,
                         const char *advice, struct cairn_error *err)
{
  struct stat st = {0};
  char shown[512];

  for (size_t i = 0; i < our_count; i++) {
    if (lock_byte(io, fd, ours[i]) == 0)
      continue;
    if (errno == EAGAIN || errno == EACCES) {
      (void)fstat(fd, &st);
      return fail_in_use(err, path, &st, 1, "it is locked exclusively", advice);
    }
    return cairn__fail_errno(err, errno, path, -1, "cannot lock \"%s\"",
                             cairn__printable(path, shown, sizeof shown));
  }
  for (size_t i = 0; i < their_count; i++) {
    int is_held = is_byte_held(io, fd, theirs[i].byte);

    if (is_held < 0)
      return cairn__fail_errno(err, errno, path, -1,
                               "cannot query the locks of \"%s\"",
                               cairn__printable(path, shown, sizeof shown));
    if (is_held) {
      (void)fstat(fd, &st);
      return fail_in_use(err, path, &st, 1, theirs[i].meaning, advice);
    }
  }
  return 0;
}

/* The lock protocol of a reader, on an open file. */
static int qemu_lock(const struct cairn_io *io, int fd, const char *path,
                     struct cairn_error *err)
{
  static const off_t ours[] = {BYTE_READ, BYTE_NO_WRITE, BYTE_NO_RESIZE};
  static const struct watched_byte theirs[] = {
      {BYTE_WRITE, "it is open for writing"},
      {BYTE_RESIZE, "it is open for resizing"},
      {BYTE_NO_READ, "its user lets nobody read it"},
  };

  return lock_and_look(
      io, fd, path, ours, sizeof ours / sizeof ours[0], theirs,
      sizeof theirs / sizeof theirs[0],
      "shut its machine down, or export a snapshot of the disk", err);
}

/* What a writer locks besides. Whoever comes later sees it, whoever came
 * before is seen here. */
int cairn__held_claim(struct cairn__held *h, struct cairn_error *err)
{
  static const off_t ours[] = {BYTE_WRITE, BYTE_RESIZE};
  static const struct watched_byte theirs[] = {
      {BYTE_WRITE, "it is open for writing"},
      {BYTE_RESIZE, "it is open for resizing"},
      {BYTE_NO_WRITE, "it is being read, and must not change meanwhile"},
      {BYTE_NO_RESIZE, "it is being read, and must not change meanwhile"},
  };

  return lock_and_look(
      h->io, h->fd, h->path, ours, sizeof ours / sizeof ours[0], theirs,
      sizeof theirs / sizeof theirs[0], "wait until that has ended", err);
}

/* ---- waiting for tools --------------------------------------------------- */

/* Whether a file is locked as a writer locks it, and nobody is seen to have it
 * who stays. A process that was killed is not seen while its threads end. */
static int is_passing(const struct cairn_io *io, int fd)
{
  static const off_t bytes[] = {BYTE_WRITE, BYTE_RESIZE, BYTE_NO_READ};
  struct holders holders;
  struct stat st;
  int is_held = 0;

  for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
    is_held |= is_byte_held(io, fd, bytes[i]) == 1;
  if (!is_held || fstat(fd, &st) != 0)
    return 0;
  find_holders(&st, 1, &holders);
  return holders.tools == holders.count;
}

static int64_t now_ms(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int cairn__held_await(const struct cairn_io *io, const char *path,
                      struct cairn__run *run, struct cairn_error *err)
{
  const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
  int64_t until = now_ms() + PATIENCE_MS;
  int fd = -1, result = 0;
  struct stat st;

  if (io->fstatat(io, AT_FDCWD, path, &st, 0) == 0 &&
      (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
    fd = io->openat(io, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
  while (fd >= 0 && result == 0 && is_passing(io, fd) && now_ms() < until) {
    nanosleep(&pause, NULL);
    result = run ? cairn__run_gate(run, err) : 0;
  }
  if (fd >= 0)
    io->close(io, fd);
  return result;
}

/* ---- loop devices -------------------------------------------------------- */

/* The first line of a file; 0 or -1. */
static int read_line(const char *path, char *line, size_t size)
{
  FILE *f = fopen(path, "re");
  int is_read = f && fgets(line, (int)size, f) != NULL;

  if (f)
    fclose(f);
  if (!is_read)
    return -1;
  line[strcspn(line, "\n")] = '\0';
  return 0;
}

/* A loop device writes its file without any lock. One that may (not read-only)
 * is refused. Best effort: what /sys does not show is left to
 * cairn__held_check_still. */
static int refuse_loop(const struct cairn__held *h, struct cairn_error *err)
{
  DIR *devices = opendir("/sys/block");
  struct dirent *e;
  char shown[512];
  int result = 0;

  if (!devices)
    return 0;
  while (result == 0 && (e = readdir(devices)) != NULL) {
    char path[64], file[PATH_MAX], is_read_only[8];
    struct stat st;

    if (strncmp(e->d_name, "loop", 4) != 0)
      continue;
    snprintf(path, sizeof path, "/sys/block/%.16s/loop/backing_file",
             e->d_name);
    if (read_line(path, file, sizeof file) != 0 || stat(file, &st) != 0 ||
        !is_same_file(&h->st, &st))
      continue;
    snprintf(path, sizeof path, "/sys/block/%.16s/ro", e->d_name);
    if (read_line(path, is_read_only, sizeof is_read_only) == 0 &&
        strcmp(is_read_only, "1") == 0)
      continue;
    cairn__fail(err, CAIRN_E_SOURCE_IN_USE,
                "\"%s\" is in use: /dev/%.16s may write it; detach that loop "
                "device (losetup -d), attach it read-only (losetup -r), or "
                "declare assume_quiescent when nothing writes it",
                cairn__printable(h->path, shown, sizeof shown), e->d_name);
    cairn__error_set_path(err, h->path, -1);
    result = -1;
  }
  closedir(devices);
  return result;
}

/* ---- opening ------------------------------------------------------------- */

static int fail_open(struct cairn_error *err, int errnum, const char *path)
{
  char shown[512];

  cairn__fail_errno(err, errnum, path, -1, "cannot open \"%s\"",
                    cairn__printable(path, shown, sizeof shown));
  if (err && errnum == ENOENT)
    err->id = CAIRN_E_SOURCE_MISSING;
  return -1;
}

static int check_kind(const struct stat *st, const char *path,
                      struct cairn_error *err)
{
  const char *what;
  char shown[512];

  switch (st->st_mode & S_IFMT) {
  case S_IFREG:
  case S_IFBLK:
    return 0;
  case S_IFDIR:
    what = "a directory";
    break;
  case S_IFIFO:
    what = "a fifo";
    break;
  case S_IFCHR:
    what = "a character device";
    break;
  case S_IFSOCK:
    what = "a socket";
    break;
  default:
    what = "of an unknown kind";
    break;
  }
  cairn__fail(err, CAIRN_E_BAD_PATH,
              "\"%s\" is %s; a disk is a regular file or a block device",
              cairn__printable(path, shown, sizeof shown), what);
  cairn__error_set_path(err, path, -1);
  return -1;
}

static int read_size(struct cairn__held *h, uint64_t *size,
                     struct cairn_error *err)
{
  char shown[512];

  if (!h->is_block) {
    *size = (uint64_t)h->st.st_size;
    return 0;
  }
  if (h->io->ioctl(h->io, h->fd, BLKGETSIZE64, size) != 0)
    return cairn__fail_errno(err, errno, h->path, -1,
                             "cannot read the size of \"%s\"",
                             cairn__printable(h->path, shown, sizeof shown));
  return 0;
}

static int is_unlockable(int errnum)
{
  return errnum == EINVAL || errnum == ENOLCK || errnum == ENOSYS ||
         errnum == EOPNOTSUPP;
}

static int open_file(struct cairn__held *h, int assume_quiescent,
                     struct cairn_error *err)
{
  const struct cairn_io *io = h->io;
  /* O_NONBLOCK: should the path become a fifo after it was looked at. */
  int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY;
  struct cairn_error cause = {.offset = -1};

  if (io->fstatat(io, AT_FDCWD, h->path, &h->st, 0) != 0)
    return fail_open(err, errno, h->path);
  if (check_kind(&h->st, h->path, err) != 0)
    return -1;
  if (S_ISBLK(h->st.st_mode) && !assume_quiescent)
    flags |= O_EXCL;
  h->fd = io->openat(io, AT_FDCWD, h->path, flags, 0);
  if (h->fd < 0 && errno == EBUSY && (flags & O_EXCL))
    return fail_in_use(err, h->path, &h->st, 0,
                       "the block device is mounted or otherwise held",
                       "unmount it, export a snapshot of it, or declare "
                       "assume_quiescent when nothing writes it");
  if (h->fd < 0)
    return fail_open(err, errno, h->path);
  if (io->fstat(io, h->fd, &h->st) != 0)
    return fail_open(err, errno, h->path);
  if (check_kind(&h->st, h->path, err) != 0)
    return -1;
  h->is_block = S_ISBLK(h->st.st_mode);
  if (h->is_block && !assume_quiescent && !(flags & O_EXCL)) {
    char shown[512];

    return cairn__fail(err, CAIRN_E_SOURCE_CHANGED,
                       "\"%s\" became another file while it was opened",
                       cairn__printable(h->path, shown, sizeof shown));
  }
  if (qemu_lock(io, h->fd, h->path, &cause) == 0) {
    h->is_locked = 1;
  } else if (!assume_quiescent || !is_unlockable(cause.system_errno)) {
    if (err)
      *err = cause;
    return -1;
  }
  if (!h->is_block && !assume_quiescent && refuse_loop(h, err) != 0)
    return -1;
  /* The size and the times that count are those under the lock. */
  if (io->fstat(io, h->fd, &h->st) != 0)
    return fail_open(err, errno, h->path);
  return read_size(h, &h->size, err);
}

int cairn__held_open(const struct cairn_io *io, const char *path,
                     int assume_quiescent, struct cairn__held *out,
                     struct cairn_error *err)
{
  memset(out, 0, sizeof *out);
  out->io = io;
  out->fd = -1;
  out->path = cairn__strdup(path);
  if (!out->path)
    return cairn__fail_memory(err);
  if (open_file(out, assume_quiescent, err) != 0) {
    cairn__held_close(out);
    return -1;
  }
  return 0;
}

int cairn__held_check_still(const struct cairn__held *h,
                            struct cairn_error *err)
{
  struct cairn__held now = *h;
  const char *what = NULL;
  char shown[512];

  if (h->io->fstat(h->io, h->fd, &now.st) != 0)
    return cairn__fail_errno(err, errno, h->path, -1, "cannot check \"%s\"",
                             cairn__printable(h->path, shown, sizeof shown));
  if (read_size(&now, &now.size, err) != 0)
    return -1;
  /* A device's times tell of its node, not of its content. */
  if (now.size != h->size)
    what = "size";
  else if (now.st.st_ino != h->st.st_ino || now.st.st_dev != h->st.st_dev)
    what = "identity";
  else if (!h->is_block && (now.st.st_mtim.tv_sec != h->st.st_mtim.tv_sec ||
                            now.st.st_mtim.tv_nsec != h->st.st_mtim.tv_nsec))
    what = "modification time";
  else if (!h->is_block && (now.st.st_ctim.tv_sec != h->st.st_ctim.tv_sec ||
                            now.st.st_ctim.tv_nsec != h->st.st_ctim.tv_nsec))
    what = "change time";
  if (!what)
    return 0;
  cairn__fail(err, CAIRN_E_SOURCE_CHANGED,
              "\"%s\" changed while it was read: its %s is not what it was",
              cairn__printable(h->path, shown, sizeof shown), what);
  cairn__error_set_path(err, h->path, -1);
  return -1;
}

int cairn__held_refresh(struct cairn__held *h, struct cairn_error *err)
{
  char shown[512];

  if (h->io->fstat(h->io, h->fd, &h->st) != 0)
    return cairn__fail_errno(err, errno, h->path, -1, "cannot check \"%s\"",
                             cairn__printable(h->path, shown, sizeof shown));
  return read_size(h, &h->size, err);
}

void cairn__held_close(struct cairn__held *h)
{
  if (h->io && h->fd >= 0)
    (void)h->io->close(h->io, h->fd);
  h->fd = -1;
  cairn__free(h->path);
  h->path = NULL;
}
