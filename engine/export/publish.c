/* publish.c: see publish.h. Nothing is removed here that does not carry our
 * name and our lock file, with the lock in our hands. */
#include "publish.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "server.h"

#define DIRECTORY_LOCK ".cairn.lock"
#define OWNER_LOCK     "owner.lock"
#define POINT          "point"
#define PREFIX         ".partial-"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1 << 0)
#endif

static int fail_path(struct cairn_error *err, int errnum, const char *what,
                     const char *path)
{
  char shown[512];

  return cairn__fail_errno(err, errnum, path, -1, "cannot %s \"%s\"", what,
                           cairn__printable(path, shown, sizeof shown));
}

static int fail_name(struct cairn_error *err, int errnum, const char *what,
                     const char *directory, const char *name)
{
  char path[PATH_MAX];

  snprintf(path, sizeof path, "%s/%s", directory, name);
  return fail_path(err, errnum, what, path);
}

static void close_fd(const struct cairn_io *io, int *fd)
{
  if (*fd >= 0)
    (void)io->close(io, *fd);
  *fd = -1;
}

void cairn__publication_init(struct cairn__publication *p,
                             const struct cairn_io *io)
{
  memset(p, 0, sizeof *p);
  p->io = io;
  p->dirfd = p->lock_fd = p->workfd = p->owner_fd = p->pointfd = -1;
}

/* ---- locks --------------------------------------------------------------- */

/* 0 locked, 1 somebody else has it, -1 errno */
static int lock_file(const struct cairn_io *io, int fd)
{
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int result;

  do {
    result = io->ofd_lock(io, fd, F_OFD_SETLK, &lock);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && (errno == EAGAIN || errno == EACCES))
    return 1;
  return result;
}

/* For people who look: the lock itself does not need it. */
static int write_owner(const struct cairn_io *io, int fd)
{
  char text[32];

  snprintf(text, sizeof text, "%ld\n", (long)getpid());
  return io->ftruncate(io, fd, 0) != 0 ||
                 cairn__io_write_full(io, fd, text, strlen(text), 0) != 0
             ? -1
             : 0;
}

static long read_owner(const struct cairn_io *io, int fd)
{
  char text[32];
  ssize_t n = cairn__io_read_full(io, fd, text, sizeof text - 1, 0);

  if (n <= 0)
    return 0;
  text[n] = '\0';
  return strtol(text, NULL, 10);
}

static int lock_directory(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char shown[512], who[48] = "";
  long pid;
  int result;

  p->lock_fd = io->openat(io, p->dirfd, DIRECTORY_LOCK,
                          O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (p->lock_fd < 0)
    return fail_name(err, errno, "create", p->path, DIRECTORY_LOCK);
  result = lock_file(io, p->lock_fd);
  if (result < 0)
    return fail_name(err, errno, "lock", p->path, DIRECTORY_LOCK);
  if (result > 0) {
    pid = read_owner(io, p->lock_fd);
    if (pid > 0)
      snprintf(who, sizeof who, ", by process %ld", pid);
    cairn__fail(err, CAIRN_E_DIRECTORY_LOCKED,
                "the export directory \"%s\" is in use by another export%s; "
                "wait for it, or choose another directory",
                cairn__printable(p->path, shown, sizeof shown), who);
    cairn__error_set_path(err, p->path, -1);
    return -1;
  }
  if (write_owner(io, p->lock_fd) != 0)
    return fail_name(err, errno, "write", p->path, DIRECTORY_LOCK);
  return 0;
}

/* ---- the export directory ------------------------------------------------ */

static int sync_parent(struct cairn__publication *p, struct cairn_error *err)
{
  const char *slash = strrchr(p->path, '/');
  char *parent =
      cairn__strndup(p->path, slash == p->path ? 1 : (size_t)(slash - p->path));
  int fd, result = 0;

  if (!parent)
    return cairn__fail_memory(err);
  fd = p->io->openat(p->io, AT_FDCWD, parent, O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0 || p->io->fsync(p->io, fd) != 0)
    result = fail_path(err, errno, "sync", parent);
  close_fd(p->io, &fd);
  cairn__free(parent);
  return result;
}

static int open_directory(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char shown[512];
  int errnum;

  p->dirfd = io->openat(io, AT_FDCWD, p->path, O_RDONLY | O_DIRECTORY, 0);
  if (p->dirfd >= 0)
    return 0;
  errnum = errno;
  if (errnum == ENOTDIR) {
    cairn__fail(err, CAIRN_E_BAD_PATH,
                "the export directory \"%s\" is not a directory, or is below "
                "something that is not one",
                cairn__printable(p->path, shown, sizeof shown));
    cairn__error_set_path(err, p->path, -1);
    return -1;
  }
  if (errnum != ENOENT)
    return fail_path(err, errnum, "open the export directory", p->path);
  if (io->mkdirat(io, AT_FDCWD, p->path, 0700) != 0 && errno != EEXIST) {
    errnum = errno;
    fail_path(err, errnum,
              errnum == ENOENT
                  ? "create the export directory (its parent has to exist)"
                  : "create the export directory",
              p->path);
    if (err && errnum == ENOENT)
      err->id = CAIRN_E_BAD_PATH;
    return -1;
  }
  p->dirfd = io->openat(io, AT_FDCWD, p->path, O_RDONLY | O_DIRECTORY, 0);
  if (p->dirfd < 0)
    return fail_path(err, errno, "open the export directory", p->path);
  return sync_parent(p, err);
}

int cairn__publication_open(struct cairn__publication *p, const char *directory,
                            struct cairn_error *err)
{
  size_t n = strlen(directory);

  while (n > 1 && directory[n - 1] == '/')
    n--;
  p->path = cairn__strndup(directory, n);
  if (!p->path)
    return cairn__fail_memory(err);
  if (open_directory(p, err) != 0)
    return -1;
  return lock_directory(p, err);
}

int cairn__publication_check_free(struct cairn__publication *p,
                                  const char *name, struct cairn_error *err)
{
  struct stat st;
  char shown[512];

  if (p->io->fstatat(p->io, p->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT)
      return 0;
    return fail_name(err, errno, "look for", p->path, name);
  }
  cairn__fail(err, CAIRN_E_EXISTS,
              "\"%s/%s\" exists already; nothing is ever replaced",
              cairn__printable(p->path, shown, sizeof shown), name);
  cairn__error_set_path(err, p->path, -1);
  return -1;
}

/* ---- what others have left ----------------------------------------------- */

/* ".partial-<GUID>-<digits>-<digits>" */
static int is_work_name(const char *name)
{
  static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  size_t n = strlen(PREFIX);

  if (strncmp(name, PREFIX, n) != 0)
    return 0;
  name += n;
  for (n = 0; shape[n]; n++) {
    if (shape[n] == '-' ? name[n] != '-' : !isxdigit((unsigned char)name[n]))
      return 0;
  }
  name += n;
  for (int i = 0; i < 2; i++) {
    if (*name++ != '-' || !isdigit((unsigned char)*name))
      return 0;
    while (isdigit((unsigned char)*name))
      name++;
  }
  return *name == '\0';
}

static void end_servers(const struct cairn_io *io, int workfd)
{
  DIR *directory = io->fdopendir(io, workfd);
  struct dirent *e;

  if (!directory)
    return;
  while ((e = readdir(directory)) != NULL) {
    if (cairn__server_is_record(e->d_name))
      cairn__server_end_recorded(io, workfd, e->d_name);
  }
  closedir(directory);
}

/* Removes one that nobody owns any more; leaves any other. 0, or -1 errno. */
static int clean_one(struct cairn__publication *p, const char *name)
{
  const struct cairn_io *io = p->io;
  int workfd, owner, result;

  workfd =
      io->openat(io, p->dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (workfd < 0)
    return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -1;
  owner =
      io->openat(io, workfd, OWNER_LOCK, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
  if (owner < 0) {
    result = errno == ENOENT || errno == ELOOP ? 0 : -1;
    close_fd(io, &workfd);
    /* Made, but not yet locked, when its owner died: then it is empty. */
    if (result == 0)
      (void)io->unlinkat(io, p->dirfd, name, AT_REMOVEDIR);
    return result;
  }
  result = lock_file(io, owner);
  if (result == 0) {
    end_servers(io, workfd);
    result = cairn__io_remove_tree(io, p->dirfd, name);
  } else if (result > 0) {
    result = 0;
  }
  if (result != 0) {
    int saved = errno;

    close_fd(io, &owner);
    close_fd(io, &workfd);
    errno = saved;
    return -1;
  }
  close_fd(io, &owner);
  close_fd(io, &workfd);
  return 0;
}

int cairn__publication_clean(struct cairn__publication *p,
                             struct cairn__run *run, struct cairn_error *err)
{
  DIR *directory = p->io->fdopendir(p->io, p->dirfd);
  struct dirent *e;
  struct cairn_error why;
  int result = 0;

  if (!directory)
    return fail_path(err, errno, "list", p->path);
  while (result == 0) {
    errno = 0;
    e = readdir(directory);
    if (!e) {
      if (errno != 0)
        result = fail_path(err, errno, "list", p->path);
      break;
    }
    if (!is_work_name(e->d_name))
      continue;
    if (clean_one(p, e->d_name) != 0) {
      cairn__error_clear(&why);
      fail_name(&why, errno, "remove what an earlier run has left,", p->path,
                e->d_name);
      cairn__run_warn(run, "%s", why.message);
    }
    result = cairn__run_gate(run, err);
  }
  closedir(directory);
  return result;
}

/* ---- the work directory -------------------------------------------------- */

static int make_work(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;

  if (io->mkdirat(io, p->dirfd, p->work_name, 0700) != 0) {
    int errnum = errno;

    /* Not ours: an owner who lives, or something we do not know. */
    cairn__free(p->work_name);
    p->work_name = NULL;
    return fail_path(err, errnum, "create the work directory", p->work_path);
  }
  p->workfd = io->openat(io, p->dirfd, p->work_name,
                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (p->workfd < 0)
    return fail_path(err, errno, "open", p->work_path);
  p->owner_fd =
      io->openat(io, p->workfd, OWNER_LOCK, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (p->owner_fd < 0 || lock_file(io, p->owner_fd) != 0 ||
      write_owner(io, p->owner_fd) != 0)
    return fail_name(err, errno, "create", p->work_path, OWNER_LOCK);
  if (io->mkdirat(io, p->workfd, POINT, 0700) != 0)
    return fail_path(err, errno, "create", p->point_path);
  p->pointfd =
      io->openat(io, p->workfd, POINT, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (p->pointfd < 0)
    return fail_path(err, errno, "open", p->point_path);
  return 0;
}

int cairn__publication_begin(struct cairn__publication *p,
                             const struct cairn__run *run,
                             struct cairn_error *err)
{
  p->work_name =
      cairn__format(PREFIX "%s-%lu-%llu", run->job_uuid,
                    (unsigned long)run->number, (unsigned long long)run->epoch);
  if (p->work_name)
    p->work_path = cairn__format("%s/%s", p->path, p->work_name);
  if (p->work_path)
    p->point_path = cairn__format("%s/" POINT, p->work_path);
  if (!p->point_path) {
    cairn__free(p->work_name);
    p->work_name = NULL; /* nothing there to be removed */
    return cairn__fail_memory(err);
  }
  return make_work(p, err);
}

/* ---- publication --------------------------------------------------------- */

static int rename_point(struct cairn__publication *p, const char *name)
{
  const struct cairn_io *io = p->io;
  struct stat st;

  if (io->renameat2(io, p->workfd, POINT, p->dirfd, name, RENAME_NOREPLACE) ==
      0)
    return 0;
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
    return -1;
  /* A file system that cannot do it. The id is new and the directory locked:
   * whoever came between look and rename would not be one of us. */
  if (io->fstatat(io, p->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
    errno = EEXIST;
    return -1;
  }
  if (errno != ENOENT)
    return -1;
  return io->renameat2(io, p->workfd, POINT, p->dirfd, name, 0);
}

int cairn__publication_publish(struct cairn__publication *p,
                               struct cairn__run *run, const char *name,
                               struct cairn_error *err)
{
  struct cairn_error why;

  if (p->io->fsync(p->io, p->pointfd) != 0)
    return fail_path(err, errno, "sync", p->point_path);
  if (rename_point(p, name) != 0)
    return fail_name(err, errno, "publish the point as", p->path, name);
  p->is_published = 1;
  if (p->io->fsync(p->io, p->dirfd) != 0) {
    cairn__error_clear(&why);
    fail_path(&why, errno, "sync", p->path);
    cairn__run_warn(run,
                    "the point %s is complete, but may vanish if the system "
                    "fails now: %s",
                    name, why.message);
  }
  return 0;
}

void cairn__publication_close(struct cairn__publication *p,
                              struct cairn__run *run, int is_kept)
{
  const struct cairn_io *io = p->io;

  close_fd(io, &p->pointfd);
  if (p->work_name && !is_kept &&
      cairn__io_remove_tree(io, p->dirfd, p->work_name) != 0 && run) {
    struct cairn_error why;

    cairn__error_clear(&why);
    fail_path(&why, errno, "remove the work directory", p->work_path);
    cairn__run_warn(run, "%s", why.message);
  }
  close_fd(io, &p->owner_fd);
  close_fd(io, &p->workfd);
  close_fd(io, &p->lock_fd);
  close_fd(io, &p->dirfd);
  cairn__free(p->point_path);
  cairn__free(p->work_path);
  cairn__free(p->work_name);
  cairn__free(p->path);
  cairn__publication_init(p, io);
}
