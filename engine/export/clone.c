/* clone.c: see clone.h.
 *
 * The two maps are walked in windows: at most MAP_EXTENTS extents of each
 * file, as far as both reach. Each window costs what it maps, and uses up one
 * of the two maps, so the whole is linear in the extents of both. The base is
 * mapped a second time after the new one: what lay at a place before and after
 * lay there in between, so the two maps speak of the same moment even while a
 * balance or a defragmentation moves blocks about. */
#include "clone.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "error.h"
#include "manifest.h"
#include "memory.h"

#define MAP_EXTENTS 1024u
/* What may accompany an extent that counts as unchanged. A flag that is not
 * listed, known today or not, is a doubt. */
#define HARMLESS_FLAGS                                                         \
  (FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_SHARED)

static int decline(char *reason, size_t size, const char *text)
{
  snprintf(reason, size, "%s", text);
  return 1;
}

static int fail_file(struct cairn_error *err, const char *what,
                     const char *path)
{
  int errnum = errno;
  char shown[512];

  return cairn__fail_errno(err, errnum, path, -1, "cannot %s \"%s\"", what,
                           cairn__printable(path, shown, sizeof shown));
}

static int pass_gate(struct cairn__run *run, struct cairn_error *err)
{
  return run ? cairn__run_gate(run, err) : 0;
}

static int call_ioctl(const struct cairn_io *io, int fd, unsigned long request,
                      void *argument)
{
  int rc;

  do {
    rc = io->ioctl(io, fd, request, argument);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

/* ---- names --------------------------------------------------------------- */

void cairn__clone_name(const char *point, const char *machine, const char *disk,
                       char out[CAIRN__CLONE_NAME_SIZE])
{
  snprintf(out, CAIRN__CLONE_NAME_SIZE, "%.36s.%.36s.%.64s.raw", point, machine,
           disk);
}

int cairn__clone_parse(const char *name, struct cairn__clone *out)
{
  struct cairn__clone c = {{0}, {0}, {0}, {0}, {0, 0}};
  size_t length = strlen(name);
  const size_t fixed = 36 + 1 + 36 + 1, tail = 4;

  if (length <= fixed + tail || length >= sizeof c.name || name[36] != '.' ||
      name[73] != '.' || strcmp(name + length - tail, ".raw") != 0)
    return 0;
  memcpy(c.name, name, length);
  memcpy(c.point, name, 36);
  memcpy(c.machine, name + 37, 36);
  memcpy(c.disk, name + fixed, length - fixed - tail);
  if (!cairn__guid_is_canonical(c.point) ||
      !cairn__guid_is_canonical(c.machine) || !cairn__is_disk_id(c.disk))
    return 0;
  if (out)
    *out = c;
  return 1;
}

/* ---- making -------------------------------------------------------------- */

static int is_reflink_type(const struct statfs *fs)
{
  return fs->f_type == XFS_SUPER_MAGIC || fs->f_type == BTRFS_SUPER_MAGIC;
}

/* Why a call that was to make a clone has failed, where that is no error. */
static const char *reason_of(int errnum)
{
  switch (errnum) {
  case EXDEV:
    return "the directory for clones is not on the disk's file system";
  case EOPNOTSUPP:
  case ENOTTY:
  case ENOSYS:
    return "the file system has no reflink clones";
  case EINVAL:
    return "the file system refuses to clone this file";
  case ETXTBSY:
    return "the file is in use as a swap area";
  case EPERM:
    return "cloning is not permitted";
  case ENOSPC:
  case EDQUOT:
    return "there is no space left for a clone";
  default:
    return NULL;
  }
}

int cairn__clone_check(const struct cairn_io *io,
                       const struct cairn__held *source, int dirfd,
                       char *reason, size_t reason_size,
                       struct cairn_error *err)
{
  struct statfs of_source, of_clones;
  struct stat st;

  if (source->is_block)
    return decline(reason, reason_size, "a block device cannot be cloned");
  if (fstatfs(source->fd, &of_source) != 0)
    return fail_file(err, "look at the file system of", source->path);
  if (!is_reflink_type(&of_source))
    return decline(reason, reason_size,
                   "the disk is not on XFS or btrfs, whose clones can be "
                   "compared");
  if (fstatfs(dirfd, &of_clones) != 0 || io->fstat(io, dirfd, &st) != 0)
    return fail_file(err, "look at", "the directory for clones");
  /* Subvolumes of one btrfs are different devices to stat(2). */
  if (of_clones.f_type != of_source.f_type ||
      (of_source.f_type == XFS_SUPER_MAGIC && st.st_dev != source->st.st_dev))
    return decline(reason, reason_size, reason_of(EXDEV));
  return 0;
}

/* Files of which only one is NOCOW, and thus without checksums, cannot share
 * blocks. The attribute can be set while a file is empty, and not in one step
 * with clearing that of compression, which the directory may have passed on.
 * 0, -1 with errno. */
static int carry_attributes(const struct cairn_io *io, int from, int to)
{
  unsigned wanted = 0, flags = 0;
  struct statfs fs;

  if (fstatfs(to, &fs) != 0)
    return -1;
  if (fs.f_type != BTRFS_SUPER_MAGIC)
    return 0;
  if (call_ioctl(io, from, FS_IOC_GETFLAGS, &wanted) != 0 ||
      call_ioctl(io, to, FS_IOC_GETFLAGS, &flags) != 0)
    return -1;
  flags &= ~(unsigned)(FS_NOCOW_FL | FS_COMPR_FL);
  if (call_ioctl(io, to, FS_IOC_SETFLAGS, &flags) != 0)
    return -1;
  if (!(wanted & FS_NOCOW_FL))
    return 0;
  flags |= FS_NOCOW_FL;
  return call_ioctl(io, to, FS_IOC_SETFLAGS, &flags);
}

/* Fills the new, empty file. 0, -1 with errno. */
static int fill_clone(const struct cairn_io *io,
                      const struct cairn__held *source, int fd, int dirfd)
{
  if (carry_attributes(io, source->fd, fd) != 0 ||
      call_ioctl(io, fd, FICLONE, (void *)(intptr_t)source->fd) != 0)
    return -1;
  return io->fsync(io, fd) == 0 && io->fsync(io, dirfd) == 0 ? 0 : -1;
}

/* A descriptor for reading in place of the one for writing; what it names has
 * to be what was made. */
static int open_made(const struct cairn_io *io,
                     const struct cairn__held *source, int made, int dirfd,
                     const char *name, const char *path, int *fd,
                     struct cairn_error *err)
{
  struct stat a, b;
  char shown[512];

  *fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (*fd < 0)
    return fail_file(err, "open", path);
  if (io->fstat(io, made, &a) != 0 || io->fstat(io, *fd, &b) != 0)
    return fail_file(err, "look at", path);
  if (a.st_ino != b.st_ino || a.st_dev != b.st_dev)
    return cairn__fail(err, CAIRN_E_IO_ERROR,
                       "\"%s\" became another file while it was made; nobody "
                       "else may write in the directory for clones",
                       cairn__printable(path, shown, sizeof shown));
  if ((uint64_t)a.st_size == source->size)
    return 0;
  cairn__fail(err, CAIRN_E_SOURCE_CHANGED,
              "\"%s\" changed while it was cloned: its size is not what it was",
              cairn__printable(source->path, shown, sizeof shown));
  cairn__error_set_path(err, source->path, -1);
  return -1;
}

int cairn__clone_make(const struct cairn_io *io, struct cairn__run *run,
                      const struct cairn__held *source, int dirfd,
                      const char *name, const char *path, int *fd, char *reason,
                      size_t reason_size, struct cairn_error *err)
{
  const char *why = NULL;
  int made, rc;

  *fd = -1;
  rc = cairn__clone_check(io, source, dirfd, reason, reason_size, err);
  if (rc != 0)
    return rc;
  if (pass_gate(run, err) != 0)
    return -1;
  made =
      io->openat(io, dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0400);
  if (made < 0)
    return errno == ENOSPC || errno == EDQUOT
               ? decline(reason, reason_size, reason_of(errno))
               : fail_file(err, "make", path);
  rc = fill_clone(io, source, made, dirfd);
  if (rc == 0)
    rc = open_made(io, source, made, dirfd, name, path, fd, err);
  else if ((why = reason_of(errno)) != NULL)
    rc = decline(reason, reason_size, why);
  else
    rc = fail_file(err, "make", path);
  if (rc == 0)
    rc = pass_gate(run, err);
  (void)io->close(io, made);
  if (rc == 0)
    return 0;
  if (*fd >= 0)
    (void)io->close(io, *fd);
  *fd = -1;
  (void)io->unlinkat(io, dirfd, name, 0);
  return rc;
}

/* ---- finding ------------------------------------------------------------- */

static void print_identity(const struct stat *st,
                           char out[CAIRN__CLONE_IDENTITY_SIZE])
{
  snprintf(out, CAIRN__CLONE_IDENTITY_SIZE,
           "inode %llu size %lld modified %lld.%09ld changed %lld.%09ld",
           (unsigned long long)st->st_ino, (long long)st->st_size,
           (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
           (long long)st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
}

int cairn__clone_identity(const struct cairn_io *io, int fd, const char *path,
                          char out[CAIRN__CLONE_IDENTITY_SIZE],
                          struct cairn_error *err)
{
  struct stat st;

  if (io->fstat(io, fd, &st) != 0)
    return fail_file(err, "look at", path);
  print_identity(&st, out);
  return 0;
}

int cairn__clone_open(const struct cairn_io *io, int dirfd, const char *name,
                      const char *path, const char *identity, int *fd,
                      char *reason, size_t reason_size, struct cairn_error *err)
{
  char found[CAIRN__CLONE_IDENTITY_SIZE];
  struct stat st;
  int rc = 0;

  *fd = io->openat(io, dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  if (*fd < 0 && errno == ENOENT)
    return decline(reason, reason_size, "the base's clone is gone");
  if (*fd < 0 && errno == ELOOP)
    return decline(reason, reason_size,
                   "a symbolic link is in the place of the base's clone");
  if (*fd < 0)
    return fail_file(err, "open", path);
  if (io->fstat(io, *fd, &st) != 0) {
    rc = fail_file(err, "look at", path);
  } else {
    print_identity(&st, found);
    if (!S_ISREG(st.st_mode) || strcmp(found, identity) != 0)
      rc = decline(reason, reason_size,
                   "the base's clone was altered since it was made");
  }
  if (rc == 0)
    return 0;
  (void)io->close(io, *fd);
  *fd = -1;
  return rc;
}

/* ---- maps ---------------------------------------------------------------- */

struct map {
  int fd;
  uint64_t end;      /* up to where it speaks */
  struct fiemap *fm; /* room for MAP_EXTENTS; clipped to what was asked */
};

struct comparison {
  const struct cairn_io *io;
  struct map base, now, again; /* again: the base once more */
  struct cairn__changes *out;
  char *reason;
  size_t reason_size;
};

static int map_new(struct map *m, int fd, struct cairn_error *err)
{
  m->fd = fd;
  m->fm =
      cairn__malloc(sizeof *m->fm + MAP_EXTENTS * sizeof(struct fiemap_extent));
  return m->fm ? 0 : cairn__fail_memory(err);
}

/* Ascending, within what was asked, nothing twice; cut to [from, to). The
 * first may begin earlier and the last end later than asked. */
static int clip_extents(struct fiemap *fm, uint64_t from, uint64_t to)
{
  uint64_t at = from;

  if (fm->fm_mapped_extents > MAP_EXTENTS)
    return -1;
  for (unsigned i = 0; i < fm->fm_mapped_extents; i++) {
    struct fiemap_extent *e = &fm->fm_extents[i];
    uint64_t skip = 0, end = e->fe_logical + e->fe_length;

    if (e->fe_length == 0 || end <= at || end < e->fe_logical ||
        e->fe_logical >= to)
      return -1;
    if (e->fe_logical < at) {
      if (i > 0)
        return -1;
      skip = at - e->fe_logical;
    }
    e->fe_logical += skip;
    e->fe_physical += skip;
    at = end < to ? end : to;
    e->fe_length = at - e->fe_logical;
  }
  return 0;
}

/* The extents in [from, to), as many as there is room for. 0, 1, -1. */
static int read_map(const struct comparison *c, struct map *m, uint64_t from,
                    uint64_t to, struct cairn_error *err)
{
  struct fiemap *fm = m->fm;

  memset(fm, 0, sizeof *fm);
  fm->fm_start = from;
  fm->fm_length = to - from;
  fm->fm_flags = FIEMAP_FLAG_SYNC;
  fm->fm_extent_count = MAP_EXTENTS;
  if (call_ioctl(c->io, m->fd, FS_IOC_FIEMAP, fm) != 0) {
    if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EBADR ||
        errno == EINVAL)
      return decline(c->reason, c->reason_size,
                     "the file system does not tell where blocks lie");
    return cairn__fail_errno(err, errno, NULL, (int64_t)from,
                             "cannot map the extents of %s clone at offset "
                             "%" PRIu64,
                             m == &c->now ? "the new" : "the base's", from);
  }
  if (clip_extents(fm, from, to) != 0)
    return decline(c->reason, c->reason_size,
                   "the file system's map of extents contradicts itself");
  m->end = to;
  if (fm->fm_mapped_extents == MAP_EXTENTS) {
    const struct fiemap_extent *last = &fm->fm_extents[MAP_EXTENTS - 1];

    m->end = last->fe_logical + last->fe_length;
  }
  return 0;
}

/* The extent at `at`, NULL in a hole; *stop is lowered to where that ends. *i
 * only grows. */
static const struct fiemap_extent *extent_at(const struct map *m, unsigned *i,
                                             uint64_t at, uint64_t *stop)
{
  const struct fiemap_extent *e = m->fm->fm_extents;
  uint64_t edge;

  while (*i < m->fm->fm_mapped_extents &&
         e[*i].fe_logical + e[*i].fe_length <= at)
    ++*i;
  if (*i == m->fm->fm_mapped_extents)
    return NULL;
  e += *i;
  edge = e->fe_logical > at ? e->fe_logical : e->fe_logical + e->fe_length;
  if (edge < *stop)
    *stop = edge;
  return e->fe_logical > at ? NULL : e;
}

static uint64_t place_of(const struct fiemap_extent *e, uint64_t at)
{
  return e->fe_physical + (at - e->fe_logical);
}

/* Both are known to hold the same bytes at `at`. */
static int is_same_content(const struct fiemap_extent *a,
                           const struct fiemap_extent *b, uint64_t at)
{
  if (!a || !b)
    return !a && !b;
  return ((a->fe_flags | b->fe_flags) & ~(uint32_t)HARMLESS_FLAGS) == 0 &&
         (a->fe_flags & b->fe_flags & FIEMAP_EXTENT_SHARED) != 0 &&
         ((a->fe_flags ^ b->fe_flags) & FIEMAP_EXTENT_UNWRITTEN) == 0 &&
         place_of(a, at) == place_of(b, at);
}

/* The same file, mapped twice: nothing has moved. */
static int is_same_place(const struct fiemap_extent *a,
                         const struct fiemap_extent *b, uint64_t at)
{
  if (!a || !b)
    return !a && !b;
  return place_of(a, at) == place_of(b, at);
}

static void compare_maps(const struct map *a, const struct map *b,
                         uint64_t from, uint64_t to,
                         int (*is_same)(const struct fiemap_extent *a,
                                        const struct fiemap_extent *b,
                                        uint64_t at),
                         struct cairn__changes *out)
{
  unsigned i = 0, j = 0;

  while (from < to) {
    uint64_t stop = to;
    const struct fiemap_extent *x = extent_at(a, &i, from, &stop);
    const struct fiemap_extent *y = extent_at(b, &j, from, &stop);

    if (!is_same(x, y, from))
      cairn__changes_mark(out, from, stop - from);
    from = stop;
  }
}

static int compare_window(struct comparison *c, uint64_t from, uint64_t to,
                          uint64_t *end, struct cairn_error *err)
{
  int rc = read_map(c, &c->base, from, to, err);

  if (rc == 0)
    rc = read_map(c, &c->now, from, c->base.end, err);
  if (rc == 0)
    rc = read_map(c, &c->again, from, c->now.end, err);
  if (rc != 0)
    return rc;
  *end = c->again.end;
  compare_maps(&c->base, &c->now, from, *end, is_same_content, c->out);
  compare_maps(&c->base, &c->again, from, *end, is_same_place, c->out);
  return 0;
}

/* XFS may keep a file's data on its realtime device, whose addresses begin at
 * 0 too. */
static int is_realtime(const struct cairn_io *io, int fd, int *is_so)
{
  struct fsxattr x = {0};

  if (call_ioctl(io, fd, FS_IOC_FSGETXATTR, &x) != 0)
    return -1;
  *is_so = (x.fsx_xflags & FS_XFLAG_REALTIME) != 0;
  return 0;
}

/* Whether addresses of the two can be compared, and their sizes. */
static int check_pair(const struct comparison *c, uint64_t *base_size,
                      uint64_t *new_size, struct cairn_error *err)
{
  const struct cairn_io *io = c->io;
  struct stat a, b;
  struct statfs x, y;
  int base_device = 0, new_device = 0;

  if (io->fstat(io, c->base.fd, &a) != 0 || io->fstat(io, c->now.fd, &b) != 0 ||
      fstatfs(c->base.fd, &x) != 0 || fstatfs(c->now.fd, &y) != 0)
    return fail_file(err, "look at", "a clone");
  *base_size = (uint64_t)a.st_size;
  *new_size = (uint64_t)b.st_size;
  if (!is_reflink_type(&x) || !is_reflink_type(&y))
    return decline(c->reason, c->reason_size,
                   "the clones are not on XFS or btrfs");
  if (a.st_dev != b.st_dev)
    return decline(c->reason, c->reason_size,
                   "the base's clone is on another file system or subvolume");
  if (x.f_type == XFS_SUPER_MAGIC &&
      (is_realtime(io, c->base.fd, &base_device) != 0 ||
       is_realtime(io, c->now.fd, &new_device) != 0))
    return fail_file(err, "look at the attributes of", "a clone");
  if (base_device != new_device)
    return decline(c->reason, c->reason_size,
                   "the base's clone is on another device of the file system");
  return 0;
}

static int compare(struct comparison *c, struct cairn__run *run,
                   uint64_t length, struct cairn_error *err)
{
  uint64_t base_size = 0, new_size = 0, common, at = 0;
  int rc = check_pair(c, &base_size, &new_size, err);

  if (rc != 0)
    return rc;
  if (new_size != length)
    return decline(c->reason, c->reason_size,
                   "the new clone has not the disk's length");
  common = base_size < length ? base_size : length;
  /* From the block on in which the shorter one ends. */
  if (base_size != length)
    cairn__changes_mark(c->out, common, UINT64_MAX - common);
  while (rc == 0 && at < common) {
    rc = pass_gate(run, err);
    if (rc == 0)
      rc = compare_window(c, at, common, &at, err);
  }
  return rc;
}

int cairn__clone_changes(const struct cairn_io *io, struct cairn__run *run,
                         int base_fd, int new_fd, uint64_t length,
                         struct cairn__changes *out, char *reason,
                         size_t reason_size, struct cairn_error *err)
{
  struct comparison c = {
      .io = io, .out = out, .reason = reason, .reason_size = reason_size};
  int rc = -1;

  if (map_new(&c.base, base_fd, err) == 0 &&
      map_new(&c.now, new_fd, err) == 0 && map_new(&c.again, base_fd, err) == 0)
    rc = compare(&c, run, length, err);
  cairn__free(c.base.fm);
  cairn__free(c.now.fm);
  cairn__free(c.again.fm);
  return rc;
}

/* ---- clean-up ------------------------------------------------------------ */

static int compare_ages(const void *a, const void *b)
{
  const struct cairn__clone *x = a, *y = b;

  if (x->time.tv_sec != y->time.tv_sec)
    return x->time.tv_sec < y->time.tv_sec ? -1 : 1;
  if (x->time.tv_nsec != y->time.tv_nsec)
    return x->time.tv_nsec < y->time.tv_nsec ? -1 : 1;
  return strcmp(x->name, y->name);
}

/* 1: added; 0: not a clone; -1. */
static int add_clone(const struct cairn_io *io, DIR *dir, const char *name,
                     struct cairn__clone **list, size_t *count, size_t *room)
{
  struct cairn__clone c;
  struct stat st;

  if (!cairn__clone_parse(name, &c))
    return 0;
  if (io->fstatat(io, dirfd(dir), name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    return errno == ENOENT ? 0 : -1;
  if (!S_ISREG(st.st_mode))
    return 0;
  if (*count == *room) {
    size_t more = *room ? *room * 2 : 16;
    struct cairn__clone *grown = cairn__realloc(*list, more * sizeof **list);

    if (!grown) {
      errno = ENOMEM;
      return -1;
    }
    *list = grown;
    *room = more;
  }
  c.time = st.st_mtim;
  (*list)[(*count)++] = c;
  return 1;
}

int cairn__clones_list(const struct cairn_io *io, int dirfd, const char *path,
                       struct cairn__clone **list, size_t *count,
                       struct cairn_error *err)
{
  DIR *dir = io->fdopendir(io, dirfd);
  struct dirent *entry;
  size_t room = 0;
  int rc = 0;

  *list = NULL;
  *count = 0;
  if (!dir)
    return fail_file(err, "read", path);
  do {
    errno = 0;
    entry = readdir(dir);
    if (entry)
      rc = add_clone(io, dir, entry->d_name, list, count, &room);
    else if (errno != 0)
      rc = -1;
  } while (rc >= 0 && entry);
  if (rc < 0)
    fail_file(err, "list the clones in", path);
  closedir(dir);
  if (rc < 0) {
    cairn__free(*list);
    *list = NULL;
    *count = 0;
    return -1;
  }
  if (*count > 0)
    qsort(*list, *count, sizeof **list, compare_ages);
  return 0;
}

int cairn__clone_remove(const struct cairn_io *io, int dirfd, const char *name,
                        const char *path, struct cairn_error *err)
{
  char shown[512], in[512];

  cairn__printable(name, shown, sizeof shown);
  cairn__printable(path, in, sizeof in);
  if (!cairn__clone_parse(name, NULL))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "\"%s\" in \"%s\" is not a clone's name, which is "
                       "<ReferencePointGroupId>.<VirtualMachineId>.<disk "
                       "id>.raw: it is not removed",
                       shown, in);
  if (io->unlinkat(io, dirfd, name, 0) != 0 && errno != ENOENT)
    return cairn__fail_errno(err, errno, path, -1,
                             "cannot remove the clone \"%s\" in \"%s\"", shown,
                             in);
  return 0;
}

/* Pauses of 10 ms without any growth after which space is no longer awaited. */
#define STILL_PAUSES 50

static int read_free(int fd, uint64_t *bytes)
{
  struct statvfs fs;

  if (fstatvfs(fd, &fs) != 0)
    return -1;
  *bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
  return 0;
}

int cairn__clones_are_short(int dirfd, const char *path, uint64_t minimum,
                            int *is_short, struct cairn_error *err)
{
  const struct timespec pause = {.tv_nsec = 10000000};
  uint64_t bytes = 0;
  int rc = read_free(dirfd, &bytes);

  if (rc == 0 && bytes < minimum)
    rc = syncfs(dirfd);
  /* XFS frees what was removed in the background, after the sync too */
  for (int still = 0; rc == 0 && bytes < minimum && still < STILL_PAUSES;
       still++) {
    uint64_t was = bytes;

    if (still > 0)
      (void)nanosleep(&pause, NULL);
    rc = read_free(dirfd, &bytes);
    if (bytes > was)
      still = 0;
  }
  if (rc != 0)
    return fail_file(err, "tell how much space is left in", path);
  *is_short = bytes < minimum;
  return 0;
}
