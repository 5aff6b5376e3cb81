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

#include "clone.h"
#include "error.h"
#include "index.h"
#include "manifest.h"
#include "memory.h"
#include "resume.h"
#include "server.h"

#define DIRECTORY_LOCK ".cairn.lock"
#define LOCK_FILE_MAX  (1u << 20) /* bytes of it that are read */
#define OWNER_LENGTH   16
#define OWNER_LOCK     "owner.lock"
#define POINT          "point"
#define PREFIX         ".partial-"
#define EXCHANGE       "exchange" /* the other directory of a try */
#define REMOVED        ".removed-"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1 << 0)
#endif
#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE (1 << 1)
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

/* For people who look: the lock itself does not need it. Always of one length,
 * so that what follows it in the lock file of the directory stays. */
static int write_owner(const struct cairn_io *io, int fd)
{
  char text[OWNER_LENGTH + 1];

  snprintf(text, sizeof text, "%-*ld\n", OWNER_LENGTH - 1, (long)getpid());
  return cairn__io_write_full(io, fd, text, OWNER_LENGTH, 0);
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

/* ---- sequences -----------------------------------------------------------
 * Behind the owner's line: "CollectionId sequence", a line each, appended. A
 * manifest that is damaged no longer says which number it has; without this
 * the number would be given again. */

/* Lines of another form say nothing: the file is an aid, what manifests say
 * counts besides. */
static int add_sequence(json_t *sequences, const char *line)
{
  char id[37] = "";
  long long n = 0;
  int end = 0;

  if (sscanf(line, "%36s %18lld%n", id, &n, &end) != 2 || line[end] != '\0' ||
      !cairn__guid_is_canonical(id) ||
      n <= json_integer_value(json_object_get(sequences, id)))
    return 0;
  return json_object_set_new(sequences, id, json_integer(n));
}

static int read_sequences(struct cairn__publication *p, struct cairn_error *err)
{
  char *text = cairn__malloc(LOCK_FILE_MAX + 1), *line, *rest;
  ssize_t n;
  int result = 0;

  p->sequences = json_object();
  if (!text || !p->sequences) {
    cairn__free(text);
    return cairn__fail_memory(err);
  }
  n = cairn__io_read_full(p->io, p->lock_fd, text, LOCK_FILE_MAX, 0);
  if (n < 0)
    result = fail_name(err, errno, "read", p->path, DIRECTORY_LOCK);
  text[n > 0 ? n : 0] = '\0';
  for (line = strtok_r(text, "\n", &rest); line && result == 0;
       line = strtok_r(NULL, "\n", &rest)) {
    if (add_sequence(p->sequences, line) != 0)
      result = cairn__fail_memory(err);
  }
  cairn__free(text);
  return result;
}

json_int_t cairn__publication_last_sequence(const struct cairn__publication *p,
                                            const char *collection)
{
  return json_integer_value(json_object_get(p->sequences, collection));
}

int cairn__publication_next_sequence(const struct cairn__publication *p,
                                     const char *collection, json_int_t highest,
                                     json_int_t *next, struct cairn_error *err)
{
  char shown[512];

  *next = cairn__publication_last_sequence(p, collection);
  if (*next < highest)
    *next = highest;
  if (++*next <= CAIRN__SEQUENCE_MAX)
    return 0;
  return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                     "\"%s\" holds a point of this collection with the "
                     "sequence %lld, and none is higher; export into "
                     "another directory",
                     cairn__printable(p->path, shown, sizeof shown),
                     (long long)CAIRN__SEQUENCE_MAX);
}

/* Every line has its length and keeps its place, so what is written over is
 * what was there, but for the one that changes. */
int cairn__publication_keep_sequence(struct cairn__publication *p,
                                     const char *collection,
                                     json_int_t sequence,
                                     struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  const char *id;
  json_t *n;
  off_t at = OWNER_LENGTH;

  if (json_object_set_new(p->sequences, collection, json_integer(sequence)) !=
      0)
    return cairn__fail_memory(err);
  json_object_foreach(p->sequences, id, n)
  {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %018lld\n", id,
                          (long long)json_integer_value(n));

    if (cairn__io_write_full(io, p->lock_fd, line, (size_t)length, at) != 0)
      return fail_name(err, errno, "write", p->path, DIRECTORY_LOCK);
    at += length;
  }
  if (io->fsync(io, p->lock_fd) != 0)
    return fail_name(err, errno, "sync", p->path, DIRECTORY_LOCK);
  return 0;
}

static int lock_directory(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char shown[512], who[48] = "";
  struct stat st;
  long pid;
  int result;

  p->lock_fd = io->openat(io, p->dirfd, DIRECTORY_LOCK,
                          O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (p->lock_fd < 0)
    return fail_name(err, errno, "create", p->path, DIRECTORY_LOCK);
  result = lock_file(io, p->lock_fd);
  if (result < 0 || io->fstat(io, p->lock_fd, &st) != 0)
    return fail_name(err, errno, "lock", p->path, DIRECTORY_LOCK);
  /* Without a name: another export has just given the directory up. */
  if (result > 0 || st.st_nlink == 0) {
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
  p->is_locked = 1;
  if (read_sequences(p, err) != 0)
    return -1;
  if (write_owner(io, p->lock_fd) != 0)
    return fail_name(err, errno, "write", p->path, DIRECTORY_LOCK);
  return 0;
}

/* ---- the export directory ------------------------------------------------ */

/* 1 when the directory holds a point's manifest, sound or not; 0, -1. */
static int is_point(const struct cairn_io *io, int dirfd, const char *path,
                    struct cairn_error *err)
{
  struct cairn_error why;
  json_t *manifest = NULL;

  cairn__error_clear(&why);
  if (cairn__manifest_read(io, dirfd, path, &manifest, &why) == 0) {
    json_decref(manifest);
    return 1;
  }
  if (why.id == CAIRN_E_EXPORT_CORRUPT || why.id == CAIRN_E_VERSION)
    return 1;
  if (why.id == CAIRN_E_NOT_AN_EXPORT || why.id == CAIRN_E_PERMISSION_DENIED)
    return 0;
  if (err)
    *err = why;
  return -1;
}

int cairn__publication_check_target(const struct cairn_io *io, int dirfd,
                                    const char *path, struct cairn_error *err)
{
  struct stat here, above;
  char shown[512];
  int fd = io->openat(io, dirfd, ".", O_PATH | O_DIRECTORY, 0), result = 0;

  if (fd < 0 || io->fstat(io, fd, &here) != 0)
    result = fail_path(err, errno, "look at", path);
  while (result == 0) {
    int next, found = is_point(io, fd, path, err);

    if (found < 0)
      result = -1;
    if (found > 0) {
      result = cairn__fail(err, CAIRN_E_BAD_PATH,
                           "the export directory \"%s\" is a reference point "
                           "or lies in one; name the directory that holds "
                           "the points, or another",
                           cairn__printable(path, shown, sizeof shown));
      cairn__error_set_path(err, path, -1);
    }
    if (result != 0)
      break;
    next = io->openat(io, fd, "..", O_PATH | O_DIRECTORY, 0);
    if (next < 0 && errno == EACCES)
      break; /* what is above cannot be told, nor could it hold a point */
    if (next < 0 || io->fstat(io, next, &above) != 0)
      result = fail_path(err, errno, "look above", path);
    close_fd(io, &fd);
    fd = next;
    if (result == 0 && above.st_dev == here.st_dev &&
        above.st_ino == here.st_ino)
      break; /* the root */
    here = above;
  }
  close_fd(io, &fd);
  return result;
}

/* Opens what the export directory is, or is to be, created in. */
static int open_above(struct cairn__publication *p, struct cairn_error *err)
{
  const char *slash = strrchr(p->path, '/');
  char *parent =
      cairn__strndup(p->path, slash == p->path ? 1 : (size_t)(slash - p->path));
  char shown[512];
  int fd;

  if (!parent)
    return cairn__fail_memory(err);
  fd = p->io->openat(p->io, AT_FDCWD, parent, O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) {
    int errnum = errno;

    if (errnum == ENOENT) {
      cairn__fail(err, CAIRN_E_BAD_PATH,
                  "cannot create the export directory \"%s\": the directory "
                  "that it would be in does not exist; make it first",
                  cairn__printable(p->path, shown, sizeof shown));
      cairn__error_set_path(err, p->path, -1);
    } else {
      fail_path(err, errnum, "open what is to hold the export directory",
                p->path);
    }
  }
  cairn__free(parent);
  return fd;
}

static int open_directory(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char shown[512];
  int errnum, above, result;

  p->dirfd = io->openat(io, AT_FDCWD, p->path, O_RDONLY | O_DIRECTORY, 0);
  if (p->dirfd >= 0)
    return cairn__publication_check_target(io, p->dirfd, p->path, err);
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
  above = open_above(p, err);
  if (above < 0)
    return -1;
  result = cairn__publication_check_target(io, above, p->path, err);
  if (result == 0) {
    p->is_new = io->mkdirat(io, AT_FDCWD, p->path, 0700) == 0;
    if (!p->is_new && errno != EEXIST)
      result = fail_path(err, errno, "create the export directory", p->path);
  }
  if (result == 0) {
    p->dirfd = io->openat(io, AT_FDCWD, p->path, O_RDONLY | O_DIRECTORY, 0);
    if (p->dirfd < 0)
      result = fail_path(err, errno, "open the export directory", p->path);
  }
  if (result == 0 && io->fsync(io, above) != 0)
    result =
        fail_path(err, errno, "sync what holds the export directory", p->path);
  close_fd(io, &above);
  return result;
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

/* What follows the prefix and a GUID; NULL when it does not begin so. */
static const char *after_id(const char *name, const char *prefix)
{
  static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  size_t n = strlen(prefix);

  if (strncmp(name, prefix, n) != 0)
    return NULL;
  name += n;
  for (n = 0; shape[n]; n++) {
    if (shape[n] == '-' ? name[n] != '-' : !isxdigit((unsigned char)name[n]))
      return NULL;
  }
  return name + n;
}

int cairn__publication_is_removed(const char *name)
{
  name = after_id(name, REMOVED);
  return name && *name == '\0';
}

/* ".partial-<GUID>-<digits>-<digits>" */
int cairn__publication_is_work(const char *name)
{
  name = after_id(name, PREFIX);
  if (!name)
    return 0;
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

/* Removes a work directory: the plan first, so that it is nothing to go on
 * from, and the lock last, so that it is ours until then. 0, or -1 errno. */
static int remove_work(const struct cairn_io *io, int dirfd, const char *name)
{
  int first = 0, workfd;
  struct dirent *e;
  DIR *directory;

  workfd = io->openat(io, dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (workfd < 0)
    return errno == ENOENT ? 0 : -1;
  if (io->unlinkat(io, workfd, CAIRN__PLAN_NAME, 0) != 0 && errno != ENOENT)
    first = errno;
  directory = io->fdopendir(io, workfd);
  while (directory && (e = readdir(directory)) != NULL) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
        strcmp(e->d_name, OWNER_LOCK) == 0)
      continue;
    if (cairn__io_remove_tree(io, workfd, e->d_name) != 0 && first == 0)
      first = errno;
  }
  if (directory)
    closedir(directory);
  close_fd(io, &workfd);
  if (first != 0) {
    errno = first;
    return -1;
  }
  return cairn__io_remove_tree(io, dirfd, name);
}

/* What is planted in a directory that others may write into is no work of
 * ours. */
static int is_our_own(const struct cairn_io *io, int workfd)
{
  struct stat st;

  return io->fstat(io, workfd, &st) == 0 && st.st_uid == geteuid();
}

/* A plan stays: so does what its run's trackers have made. Without memory that
 * may go; it is only of use. */
static void note_resumable(struct cairn__publication *p, const json_t *plan)
{
  const char *point =
      json_string_value(json_object_get(plan, "ReferencePointGroupId"));

  if (!p->resumable)
    p->resumable = json_object();
  (void)json_object_set_new(p->resumable, point, json_true());
}

/* With the lock held. 1: it was taken over, with both descriptors. */
static int deal_with(struct cairn__publication *p, const char *name, int workfd,
                     int owner, const struct cairn__wanted *wanted,
                     int is_fresh)
{
  const struct cairn_io *io = p->io;
  json_t *plan = NULL;
  int is_of, is_alike, is_others;

  end_servers(io, workfd);
  if (is_our_own(io, workfd))
    plan = cairn__plan_read(io, workfd);
  is_of = plan && wanted && cairn__plan_is_of(plan, wanted);
  is_alike = is_of && cairn__plan_is_alike(plan, wanted);
  is_others =
      plan && !is_of && !(wanted && cairn__plan_is_orphan(plan, wanted->index));
  if (is_alike && !is_fresh && !p->left) {
    p->left_name = cairn__strdup(name);
    if (p->left_name) {
      note_resumable(p, plan);
      p->left = plan;
      p->workfd = workfd;
      p->owner_fd = owner;
      return 1;
    }
  }
  if (is_others)
    note_resumable(p, plan);
  json_decref(plan);
  return is_others ? 0 : remove_work(io, p->dirfd, name);
}

/* One that nobody owns any more; leaves any other. 0, or -1 errno. */
static int clean_one(struct cairn__publication *p, const char *name,
                     const struct cairn__wanted *wanted, int is_fresh)
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
    result = deal_with(p, name, workfd, owner, wanted, is_fresh);
    if (result > 0)
      return 0;
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
                             struct cairn__run *run,
                             const struct cairn__wanted *wanted, int is_fresh,
                             struct cairn_error *err)
{
  DIR *directory = p->io->fdopendir(p->io, p->dirfd);
  struct dirent *e;
  struct cairn_error why;
  int result = 0, is_removed;

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
    is_removed = cairn__publication_is_removed(e->d_name);
    if (!is_removed && !cairn__publication_is_work(e->d_name))
      continue;
    if (is_removed ? cairn__io_remove_tree(p->io, p->dirfd, e->d_name) != 0
                   : clean_one(p, e->d_name, wanted, is_fresh) != 0) {
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

/* 1: this one would be taken over; 0; -1 errno. A lock is only looked at. */
static int is_to_be_taken(const struct cairn_io *io, int dirfd,
                          const char *name, const struct cairn__wanted *wanted,
                          uint64_t *bytes)
{
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int workfd, owner = -1, pointfd, is_taken = 0;
  json_t *plan = NULL;

  workfd = io->openat(io, dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (workfd < 0)
    return 0;
  owner =
      io->openat(io, workfd, OWNER_LOCK, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (owner >= 0 && io->ofd_lock(io, owner, F_OFD_GETLK, &lock) == 0 &&
      lock.l_type == F_UNLCK && is_our_own(io, workfd))
    plan = cairn__plan_read(io, workfd);
  if (plan && cairn__plan_is_of(plan, wanted) &&
      cairn__plan_is_alike(plan, wanted)) {
    pointfd =
        io->openat(io, workfd, POINT, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    *bytes = pointfd >= 0 ? cairn__resume_bytes(io, pointfd) : 0;
    close_fd(io, &pointfd);
    is_taken = 1;
  }
  json_decref(plan);
  close_fd(io, &owner);
  close_fd(io, &workfd);
  return is_taken;
}

int cairn__publication_find(const struct cairn_io *io, int dirfd,
                            const struct cairn__wanted *wanted, char **name,
                            uint64_t *bytes, struct cairn_error *err)
{
  DIR *directory = io->fdopendir(io, dirfd);
  struct dirent *e;

  *name = NULL;
  *bytes = 0;
  if (!directory)
    return cairn__fail_errno(err, errno, NULL, -1,
                             "cannot list the export directory");
  while (!*name && (e = readdir(directory)) != NULL) {
    if (!cairn__publication_is_work(e->d_name) ||
        !is_to_be_taken(io, dirfd, e->d_name, wanted, bytes))
      continue;
    *name = cairn__strdup(e->d_name);
    if (!*name) {
      closedir(directory);
      return cairn__fail_memory(err);
    }
  }
  closedir(directory);
  return 0;
}

/* ---- the work directory -------------------------------------------------- */

/* The directory that becomes the point; one that is there is taken. */
static int open_point(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;

  if (io->mkdirat(io, p->workfd, POINT, 0700) != 0 && errno != EEXIST)
    return fail_path(err, errno, "create", p->point_path);
  p->pointfd =
      io->openat(io, p->workfd, POINT, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (p->pointfd < 0 && (errno == ENOTDIR || errno == ELOOP) &&
      cairn__io_remove_tree(io, p->workfd, POINT) == 0 &&
      io->mkdirat(io, p->workfd, POINT, 0700) == 0)
    p->pointfd = io->openat(io, p->workfd, POINT,
                            O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (p->pointfd < 0)
    return fail_path(err, errno, "open", p->point_path);
  return 0;
}

/* The rename is the fence. */
static int take_over(struct cairn__publication *p, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;

  if (strcmp(p->left_name, p->work_name) != 0 &&
      io->renameat2(io, p->dirfd, p->left_name, p->dirfd, p->work_name, 0) !=
          0) {
    int errnum = errno;

    cairn__free(p->work_name);
    p->work_name = NULL;
    return fail_name(err, errnum, "take over the work directory", p->path,
                     p->left_name);
  }
  if (write_owner(io, p->owner_fd) != 0)
    return fail_name(err, errno, "write", p->work_path, OWNER_LOCK);
  if (cairn__resume_clear(io, p->workfd, p->work_path, err) != 0)
    return -1;
  return open_point(p, err);
}

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
  return open_point(p, err);
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
  if (!p->work_name || !p->point_path) {
    cairn__free(p->work_name);
    p->work_name = NULL; /* nothing there to be removed */
    return cairn__fail_memory(err);
  }
  return p->left_name ? take_over(p, err) : make_work(p, err);
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

/* ---- replacing and removing ---------------------------------------------- */

int cairn__publication_check_exchange(struct cairn__publication *p,
                                      struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  char shown[512];
  int errnum;

  if (io->mkdirat(io, p->workfd, EXCHANGE, 0700) != 0)
    return fail_name(err, errno, "create", p->work_path, EXCHANGE);
  errnum = io->renameat2(io, p->workfd, POINT, p->workfd, EXCHANGE,
                         RENAME_EXCHANGE) == 0
               ? 0
               : errno;
  if (errnum == 0) {
    /* point/ is the other directory now; both are empty */
    close_fd(io, &p->pointfd);
    p->pointfd = io->openat(io, p->workfd, POINT,
                            O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (p->pointfd < 0)
      return fail_path(err, errno, "open", p->point_path);
  }
  if (io->unlinkat(io, p->workfd, EXCHANGE, AT_REMOVEDIR) != 0)
    return fail_name(err, errno, "remove", p->work_path, EXCHANGE);
  if (errnum == EINVAL || errnum == ENOSYS || errnum == EOPNOTSUPP)
    return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                       "the file system of \"%s\" cannot exchange two "
                       "directories in one step, so a point there cannot be "
                       "replaced safely; merge into another directory",
                       cairn__printable(p->path, shown, sizeof shown));
  if (errnum != 0)
    return fail_path(err, errnum, "exchange directories in", p->work_path);
  return 0;
}

static void sync_for(struct cairn__publication *p, struct cairn__run *run,
                     int fd, const char *path, const char *name)
{
  struct cairn_error why;

  if (p->io->fsync(p->io, fd) == 0)
    return;
  cairn__error_clear(&why);
  fail_path(&why, errno, "sync", path);
  cairn__run_warn(run,
                  "the point %s may be what it was before if the system fails "
                  "now: %s",
                  name, why.message);
}

static void remove_old(struct cairn__publication *p, struct cairn__run *run,
                       const char *work_name, const char *name)
{
  struct cairn_error why;

  if (cairn__io_remove_tree(p->io, p->workfd, work_name) == 0)
    return;
  cairn__error_clear(&why);
  fail_name(&why, errno, "remove", p->work_path, work_name);
  cairn__run_warn(run,
                  "what the point %s was before takes space until the next "
                  "run here removes it: %s",
                  name, why.message);
}

/* Whether the name leads to the directory that was read. */
static int check_same(struct cairn__publication *p, const char *name, int fd,
                      struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  struct stat there, open;
  char shown[512];

  if (io->fstatat(io, p->dirfd, name, &there, AT_SYMLINK_NOFOLLOW) != 0)
    return fail_name(err, errno, "look at", p->path, name);
  if (io->fstat(io, fd, &open) != 0)
    return fail_name(err, errno, "look at", p->path, name);
  if (there.st_dev == open.st_dev && there.st_ino == open.st_ino)
    return 0;
  return cairn__fail(err, CAIRN_E_SOURCE_CHANGED,
                     "\"%s/%s\" is another directory than the one that was "
                     "read",
                     cairn__printable(p->path, shown, sizeof shown), name);
}

int cairn__publication_exchange(struct cairn__publication *p,
                                struct cairn__run *run, const char *name,
                                int old_fd, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;

  if (io->fsync(io, p->pointfd) != 0)
    return fail_path(err, errno, "sync", p->point_path);
  if (check_same(p, name, old_fd, err) != 0)
    return -1;
  if (io->renameat2(io, p->workfd, POINT, p->dirfd, name, RENAME_EXCHANGE) != 0)
    return fail_name(err, errno, "replace", p->path, name);
  p->is_published = 1;
  sync_for(p, run, p->dirfd, p->path, name);
  sync_for(p, run, p->workfd, p->work_path, name);
  close_fd(io, &p->pointfd);
  remove_old(p, run, POINT, name);
  return 0;
}

int cairn__publication_renew(struct cairn__publication *p,
                             struct cairn_error *err)
{
  close_fd(p->io, &p->pointfd);
  if (cairn__io_remove_tree(p->io, p->workfd, POINT) != 0)
    return fail_path(err, errno, "remove", p->point_path);
  return open_point(p, err);
}

int cairn__publication_remove_point(struct cairn__publication *p,
                                    struct cairn__run *run, const char *name,
                                    const char *id, struct cairn_error *err)
{
  const struct cairn_io *io = p->io;
  struct cairn_error why;
  char removed[64];

  snprintf(removed, sizeof removed, REMOVED "%.36s", id);
  if (io->renameat2(io, p->dirfd, name, p->dirfd, removed, 0) != 0)
    return fail_name(err, errno, "take away", p->path, name);
  cairn__error_clear(&why);
  if (io->fsync(io, p->dirfd) != 0)
    fail_path(&why, errno, "sync", p->path);
  else if (cairn__io_remove_tree(io, p->dirfd, removed) != 0)
    fail_name(&why, errno, "remove", p->path, removed);
  if (why.id != CAIRN_OK)
    cairn__run_warn(run, "%s", why.message);
  return 0;
}

void cairn__publication_close(struct cairn__publication *p,
                              struct cairn__run *run, int is_kept)
{
  const struct cairn_io *io = p->io;

  close_fd(io, &p->pointfd);
  if (p->work_name && !is_kept &&
      remove_work(io, p->dirfd, p->work_name) != 0 && run) {
    struct cairn_error why;

    cairn__error_clear(&why);
    fail_path(&why, errno, "remove the work directory", p->work_path);
    cairn__run_warn(run, "%s", why.message);
  }
  close_fd(io, &p->owner_fd);
  close_fd(io, &p->workfd);
  if (p->is_new && !p->is_published && !is_kept) {
    /* Whoever opened the lock file meanwhile sees that it has no name. */
    if (p->is_locked) {
      (void)io->unlinkat(io, p->dirfd, CAIRN__CLONES_DIRECTORY, AT_REMOVEDIR);
      (void)io->unlinkat(io, p->dirfd, CAIRN__INDEX_NAME, 0);
      (void)io->unlinkat(io, p->dirfd, DIRECTORY_LOCK, 0);
    }
    (void)io->unlinkat(io, AT_FDCWD, p->path, AT_REMOVEDIR);
  }
  close_fd(io, &p->lock_fd);
  close_fd(io, &p->dirfd);
  cairn__free(p->point_path);
  cairn__free(p->work_path);
  cairn__free(p->work_name);
  cairn__free(p->path);
  cairn__free(p->left_name);
  json_decref(p->left);
  json_decref(p->resumable);
  json_decref(p->sequences);
  cairn__publication_init(p, io);
}
