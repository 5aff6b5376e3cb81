/* Reflink clones on real file systems: XFS and btrfs (plain, compressing, and
 * files with +C), each on a loop device over memory, mounted in a mount
 * namespace of this process so that nothing is left whatever happens. Judged by
 * shadow copies of what was written, and by cmp.
 *
 * The random property: after any steps, every block that differs from an
 * older clone is marked. CAIRN_SECONDS (default 20) is for all of it,
 * CAIRN_SEED repeats one. */
#include "scratch.h"

#include <linux/btrfs.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include "digest.h"
#include "export/clone.h"
#include "memory.h"
#include "skip.h"

#define POINT   "6F1D0000-0000-4000-8000-00000000C011"
#define MACHINE "0C5A0000-0000-4000-8000-000000000001"
#define MIB     (1u << 20)

static struct cairn_error err;
static char reason[256];

/* ---- file systems -------------------------------------------------------- */

enum { XFS, BTRFS, NOCOW, ZSTD, KINDS };
static const char *const kind_names[] = {"XFS", "btrfs", "btrfs +C",
                                         "btrfs compress-force"};
static const char *const kind_dirs[] = {"xfs", "btrfs", "nocow", "zstd"};
static const char *why_not; /* the reason to skip, or NULL */

static int shell(const char *command)
{
  char *said;
  int code = run(&said, "%s", command);

  if (code != 0)
    fprintf(stderr, "# %s: %s\n", command, said);
  free(said);
  return code;
}

static const char *mount_all(void)
{
  if (geteuid() != 0)
    return "needs root";
  if (!has_program("mkfs.xfs") || !has_program("mkfs.btrfs"))
    return "needs mkfs.xfs and mkfs.btrfs (packages xfsprogs, btrfs-progs)";
  if (unshare(CLONE_NEWNS) != 0 ||
      mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount("none", scratch_path, "tmpfs", 0, "size=1500m,mode=0700") != 0)
    return "needs a mount namespace";
  /* The old descriptor leads to what is below the mount. */
  close(scratch_fd);
  scratch_fd = open(scratch_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (scratch_fd < 0 || fchdir(scratch_fd) != 0)
    return "needs its scratch directory";
  if (shell("truncate -s 320M xfs.img && mkfs.xfs -q xfs.img && "
            "truncate -s 256M btrfs.img && mkfs.btrfs -q btrfs.img && "
            "truncate -s 256M zstd.img && mkfs.btrfs -q zstd.img && "
            "mkdir xfs btrfs zstd") != 0)
    return "needs mkfs.xfs and mkfs.btrfs to work";
  if (shell("mount -o loop xfs.img xfs && mount -o loop btrfs.img btrfs && "
            "mount -o loop,compress-force=zstd zstd.img zstd && "
            "mkdir btrfs/nocow && chattr +C btrfs/nocow && "
            "ln -s btrfs/nocow nocow") != 0)
    return "needs loop devices, XFS and btrfs";
  return NULL;
}

static int set_up(void **state)
{
  if (scratch_open(state) != 0)
    return -1;
  why_not = mount_all();
  return 0;
}

static int tear_down(void **state)
{
  (void)run(NULL,
            "cd / && for d in $(awk '{print $2}' /proc/mounts | grep ^%s | "
            "sort -r); do umount $d || umount -l $d; done",
            scratch_path);
  return scratch_close(state);
}

#define need_file_systems()                                                    \
  do {                                                                         \
    if (why_not)                                                               \
      skip_because(why_not);                                                   \
  } while (0)

/* ---- a disk with its shadow ---------------------------------------------- */

#define DISK_MAX (3 * MIB)

struct disk {
  int kind, dirfd;
  char path[512];
  int fd, direct_fd;
  unsigned char *map;   /* the file, DISK_MAX of it */
  unsigned char *bytes; /* its shadow; zeros beyond the size */
  uint64_t size;
};

/* A clone, and what it must hold. */
struct kept {
  char name[CAIRN__CLONE_NAME_SIZE], identity[CAIRN__CLONE_IDENTITY_SIZE];
  int fd;
  unsigned char *bytes;
  uint64_t size;
};

static char *path_in(int kind, const char *name)
{
  static char path[512];

  snprintf(path, sizeof path, "%s/%s/%s", scratch_path, kind_dirs[kind], name);
  return path;
}

static void disk_open(struct disk *d, int kind)
{
  memset(d, 0, sizeof *d);
  d->kind = kind;
  d->dirfd = openat(scratch_fd, kind_dirs[kind], O_RDONLY | O_DIRECTORY);
  assert_true(d->dirfd >= 0);
  snprintf(d->path, sizeof d->path, "%s", path_in(kind, "disk"));
  (void)unlink(d->path);
  d->fd = open(d->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  d->direct_fd = open(d->path, O_RDWR | O_DIRECT | O_CLOEXEC);
  assert_true(d->fd >= 0 && d->direct_fd >= 0);
  d->map = mmap(NULL, DISK_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
  assert_true(d->map != MAP_FAILED);
  d->bytes = calloc(1, DISK_MAX + CAIRN__BLOCK);
  assert_non_null(d->bytes);
}

static void disk_close(struct disk *d)
{
  munmap(d->map, DISK_MAX);
  free(d->bytes);
  close(d->fd);
  close(d->direct_fd);
  close(d->dirfd);
  (void)unlink(d->path);
}

/* A clone of the disk, checked: it holds what was written. */
static void keep(struct disk *d, struct kept *k)
{
  static unsigned number;
  struct cairn__held held;
  char id[65];
  unsigned char *found = malloc(DISK_MAX);
  int rc;

  snprintf(id, sizeof id, "d%u", number++);
  cairn__clone_name(POINT, MACHINE, id, k->name);
  assert_int_equal(cairn__held_open(&cairn__system_io, d->path, 0, &held, &err),
                   0);
  rc = cairn__clone_make(&cairn__system_io, NULL, &held, d->dirfd, k->name,
                         k->name, &k->fd, reason, sizeof reason, &err);
  if (rc != 0)
    fail_msg("%s: no clone: %s", kind_names[d->kind],
             rc == 1 ? reason : err.message);
  cairn__held_close(&held);
  assert_int_equal(cairn__clone_identity(&cairn__system_io, k->fd, k->name,
                                         k->identity, &err),
                   0);
  k->size = d->size;
  k->bytes = malloc(DISK_MAX + CAIRN__BLOCK);
  assert_true(found && k->bytes);
  memcpy(k->bytes, d->bytes, DISK_MAX + CAIRN__BLOCK);
  assert_int_equal(
      cairn__io_read_full(&cairn__system_io, k->fd, found, DISK_MAX, 0),
      (ssize_t)k->size);
  assert_memory_equal(found, k->bytes, k->size);
  free(found);
}

static void let_go(const struct disk *d, struct kept *k)
{
  assert_int_equal(
      cairn__clone_remove(&cairn__system_io, d->dirfd, k->name, d->path, &err),
      0);
  close(k->fd);
  free(k->bytes);
}

struct tally {
  uint64_t comparisons, differ, marked;
};

/* What is marked between base and new_fd, which holds `bytes`; fails when a
 * block that differs is not. The caller frees. */
static struct cairn__changes *compare(const struct kept *base, int new_fd,
                                      const unsigned char *bytes, uint64_t size,
                                      struct tally *t, const char *what)
{
  struct cairn__changes *c;
  int rc;

  assert_int_equal(cairn__changes_new(size, &c, &err), 0);
  rc = cairn__clone_changes(&cairn__system_io, NULL, base->fd, new_fd, size, c,
                            reason, sizeof reason, &err);
  if (rc != 0)
    fail_msg("%s: %d: %s", what, rc, rc == 1 ? reason : err.message);
  t->comparisons++;
  for (uint64_t b = 0; b < cairn__changes_blocks(c); b++) {
    uint64_t at = b * CAIRN__BLOCK;
    int differs = memcmp(base->bytes + at, bytes + at, CAIRN__BLOCK) != 0;

    t->differ += (uint64_t)differs;
    t->marked += (uint64_t)cairn__changes_is_set(c, b);
    if (differs && !cairn__changes_is_set(c, b))
      fail_msg("%s: block %llu differs and is not marked", what,
               (unsigned long long)b);
  }
  return c;
}

/* ---- steps --------------------------------------------------------------- */

/* Bytes that compress, or do not. */
static void make_bytes(unsigned char *buf, size_t n)
{
  if (random_below(3) == 0)
    memset(buf, (int)random_below(256), n);
  else
    random_fill(random_next(), buf, n);
}

/* A range within the disk; multiple of `unit` at both ends. n may be 0. */
static void pick_range(const struct disk *d, uint64_t unit, uint64_t *at,
                       uint64_t *n)
{
  uint64_t units = d->size / unit, most;

  *at = *n = 0;
  if (units == 0)
    return;
  *at = random_below(units);
  most = units - *at;
  if (most > 200000 / unit)
    most = 200000 / unit + 1;
  *n = (1 + random_below(most < units - *at ? most : units - *at)) * unit;
  *at *= unit;
}

static void set_size(struct disk *d, uint64_t size)
{
  if (size < d->size)
    memset(d->bytes + size, 0, d->size - size);
  d->size = size;
}

static void step_write(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, 1, &at, &n);
  make_bytes(d->bytes + at, n);
  assert_int_equal(pwrite(d->fd, d->bytes + at, n, (off_t)at), n);
}

static void step_write_page(struct disk *d)
{
  uint64_t at = random_below(d->size / 4096 + 1) * 4096, n = 4096;

  if (at + n > d->size)
    return;
  make_bytes(d->bytes + at, n);
  assert_int_equal(pwrite(d->fd, d->bytes + at, n, (off_t)at), n);
}

static void step_write_direct(struct disk *d)
{
  uint64_t at, n;
  unsigned char *buf;

  pick_range(d, 4096, &at, &n);
  if (n == 0)
    return;
  buf = aligned_alloc(4096, n);
  assert_non_null(buf);
  make_bytes(d->bytes + at, n);
  memcpy(buf, d->bytes + at, n);
  assert_int_equal(pwrite(d->direct_fd, buf, n, (off_t)at), n);
  free(buf);
}

static void step_store(struct disk *d) /* through the mapping */
{
  uint64_t at, n;

  pick_range(d, 1, &at, &n);
  make_bytes(d->bytes + at, n);
  memcpy(d->map + at, d->bytes + at, n);
}

static void step_write_same(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, 1, &at, &n);
  assert_int_equal(pwrite(d->fd, d->bytes + at, n, (off_t)at), n);
}

/* fallocate(2), which not every file system offers in every mode: 1 when it
 * was done. */
static int allocate(struct disk *d, int mode, uint64_t at, uint64_t n)
{
  if (n == 0)
    return 0;
  if (fallocate(d->fd, mode, (off_t)at, (off_t)n) == 0)
    return 1;
  assert_true(errno == EOPNOTSUPP || errno == EINVAL);
  return 0;
}

static void step_zero_range(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, random_below(2) ? 4096 : 1, &at, &n);
  if (allocate(d, FALLOC_FL_ZERO_RANGE, at, n))
    memset(d->bytes + at, 0, n);
}

static void step_punch(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, random_below(2) ? 4096 : 1, &at, &n);
  if (allocate(d, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, n))
    memset(d->bytes + at, 0, n);
}

/* Allocated, hence unwritten where it was a hole, and perhaps written. */
static void step_allocate(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, 4096, &at, &n);
  (void)allocate(d, 0, at, n);
  if (random_below(2) && n > 5000) {
    make_bytes(d->bytes + at + 1000, 3000);
    assert_int_equal(
        pwrite(d->fd, d->bytes + at + 1000, 3000, (off_t)at + 1000), 3000);
  }
}

static void step_collapse(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, 4096, &at, &n);
  if (at + n >= d->size || !allocate(d, FALLOC_FL_COLLAPSE_RANGE, at, n))
    return;
  memmove(d->bytes + at, d->bytes + at + n, d->size - at - n);
  set_size(d, d->size - n);
}

static void step_insert(struct disk *d)
{
  uint64_t at, n;

  pick_range(d, 4096, &at, &n);
  if (d->size + n > DISK_MAX || !allocate(d, FALLOC_FL_INSERT_RANGE, at, n))
    return;
  memmove(d->bytes + at + n, d->bytes + at, d->size - at);
  memset(d->bytes + at, 0, n);
  d->size += n;
}

static void step_shrink(struct disk *d)
{
  uint64_t size = d->size - random_below(d->size / 4 + 1);

  if (random_below(2))
    size &= ~(uint64_t)4095;
  assert_int_equal(ftruncate(d->fd, (off_t)size), 0);
  set_size(d, size);
}

static void step_grow(struct disk *d)
{
  uint64_t size = d->size + random_below(DISK_MAX - d->size + 1);

  if (random_below(3) == 0 && size > d->size) {
    if (allocate(d, 0, d->size, size - d->size))
      d->size = size;
    return;
  }
  assert_int_equal(ftruncate(d->fd, (off_t)size), 0);
  set_size(d, size);
}

static void step_shrink_and_regrow(struct disk *d)
{
  uint64_t size = d->size;

  step_shrink(d);
  assert_int_equal(ftruncate(d->fd, (off_t)size), 0);
  d->size = size;
}

/* Blocks of the disk shared with itself, elsewhere. */
static void step_copy_within(struct disk *d)
{
  struct file_clone_range r = {.src_fd = d->fd};
  uint64_t from, n, to = random_below(d->size / 4096 + 1) * 4096;

  pick_range(d, 4096, &from, &n);
  if (n == 0 || to + n > d->size || (from < to + n && to < from + n))
    return;
  r.src_offset = from;
  r.src_length = n;
  r.dest_offset = to;
  assert_int_equal(ioctl(d->fd, FICLONERANGE, &r), 0);
  memmove(d->bytes + to, d->bytes + from, n);
}

static void step_sync(struct disk *d)
{
  assert_int_equal(fsync(d->fd), 0);
}

static void step_defragment(struct disk *d)
{
  if (d->kind != XFS)
    assert_int_equal(ioctl(d->fd, BTRFS_IOC_DEFRAG, NULL), 0);
}

typedef void step(struct disk *);
static const struct {
  step *step;
  const char *name;
} steps[] = {
    {step_write, "write"},
    {step_write_page, "write a page"},
    {step_write_direct, "write directly"},
    {step_store, "store through a mapping"},
    {step_write_same, "write the same bytes"},
    {step_zero_range, "zero a range"},
    {step_punch, "punch a hole"},
    {step_allocate, "allocate"},
    {step_collapse, "collapse a range"},
    {step_insert, "insert a range"},
    {step_shrink, "shrink"},
    {step_grow, "grow"},
    {step_shrink_and_regrow, "shrink and regrow"},
    {step_copy_within, "copy blocks within"},
    {step_sync, "sync"},
    {step_defragment, "defragment"},
};
#define STEPS (sizeof steps / sizeof steps[0])

/* A disk with data, holes and unwritten ranges. */
static void disk_fill(struct disk *d)
{
  set_size(d, 2 * MIB + 12345);
  assert_int_equal(ftruncate(d->fd, (off_t)d->size), 0);
  for (int i = 0; i < 12; i++)
    step_write(d);
  step_allocate(d);
  step_punch(d);
}

/* ---- every step alone ---------------------------------------------------- */

/* Each a few times on each file system: that what changed is marked, and that
 * there was something to be marked. */
static void try_step(size_t number, int kind, unsigned time, struct tally *t)
{
  struct disk d;
  struct kept base, now;
  char what[128];

  random_state = 1000 + number * 10 + time;
  snprintf(what, sizeof what, "%s, %s (%u)", kind_names[kind],
           steps[number].name, time);
  disk_open(&d, kind);
  disk_fill(&d);
  if (time % 2)
    step_sync(&d);
  keep(&d, &base);
  steps[number].step(&d);
  /* The source itself, dirty as it is, and its clone. */
  cairn__changes_free(compare(&base, d.fd, d.bytes, d.size, t, what));
  keep(&d, &now);
  cairn__changes_free(compare(&base, now.fd, now.bytes, now.size, t, what));
  let_go(&d, &now);
  let_go(&d, &base);
  disk_close(&d);
}

static void marks_what_each_step_changes(void **state)
{
  (void)state;
  need_file_systems();
  for (size_t i = 0; i < STEPS; i++) {
    int is_idle = steps[i].step == step_write_same ||
                  steps[i].step == step_grow || steps[i].step == step_sync ||
                  steps[i].step == step_defragment;
    struct tally t = {0};

    for (int kind = 0; kind < KINDS; kind++)
      for (unsigned time = 0; time < 3; time++)
        try_step(i, kind, time, &t);
    if ((t.differ == 0) != is_idle)
      fail_msg("%s: %llu blocks differ", steps[i].name,
               (unsigned long long)t.differ);
  }
}

/* ---- any steps ----------------------------------------------------------- */

#define KEPT 4

/* A range of the disk gets back what an older clone has, by sharing. */
static void bring_back(struct disk *d, const struct kept *k)
{
  struct file_clone_range r = {.src_fd = k->fd};
  uint64_t at, n;

  pick_range(d, 4096, &at, &n);
  if (n == 0 || at + n > k->size)
    return;
  r.src_offset = r.dest_offset = at;
  r.src_length = n;
  assert_int_equal(ioctl(d->fd, FICLONERANGE, &r), 0);
  memcpy(d->bytes + at, k->bytes + at, n);
}

/* What moves blocks but no bytes. */
static void move_blocks(const struct disk *d, const struct kept *k)
{
  if (d->kind == XFS)
    return;
  if (random_below(8) == 0) {
    (void)run(NULL, "btrfs balance start --full-balance %s",
              kind_dirs[d->kind == NOCOW ? BTRFS : d->kind]);
  } else {
    int fd = openat(d->dirfd, k->name, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, BTRFS_IOC_DEFRAG, NULL), 0);
    close(fd);
  }
}

/* A balance that goes on while maps are read; -1 when there is none. */
static pid_t start_balance(int kind)
{
  const char *directory = kind_dirs[kind == NOCOW ? BTRFS : kind];
  pid_t pid;

  if (kind == XFS || random_below(8) != 0)
    return -1;
  pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    int null = open("/dev/null", O_WRONLY);

    dup2(null, 1);
    dup2(null, 2);
    execlp("btrfs", "btrfs", "balance", "start", "--full-balance", directory,
           (char *)NULL);
    _exit(127);
  }
  return pid;
}

/* One life of a disk: steps and clones, each compared with older ones. */
static void live(int kind, unsigned rounds, struct tally *t)
{
  struct kept kept[KEPT];
  unsigned count = 0;
  char what[128];
  pid_t balance;
  struct disk d;

  disk_open(&d, kind);
  disk_fill(&d);
  for (unsigned round = 0; round < rounds; round++) {
    unsigned n = (unsigned)random_below(10);

    snprintf(what, sizeof what, "%s, round %u", kind_names[kind], round);
    if (d.size < MIB) {
      assert_int_equal(ftruncate(d.fd, 2 * MIB), 0);
      set_size(&d, 2 * MIB);
      step_write(&d);
    }
    while (n-- > 0)
      steps[random_below(STEPS)].step(&d);
    if (count > 0 && random_below(4) == 0)
      bring_back(&d, &kept[random_below(count)]);
    if (count > 0 && random_below(6) == 0)
      move_blocks(&d, &kept[random_below(count)]);
    if (count > 0 && random_below(3) == 0)
      cairn__changes_free(
          compare(&kept[random_below(count)], d.fd, d.bytes, d.size, t, what));
    if (count == KEPT) { /* any of them makes room, and gives up its blocks */
      unsigned which = (unsigned)random_below(count);

      let_go(&d, &kept[which]);
      memmove(&kept[which], &kept[which + 1],
              (--count - which) * sizeof kept[0]);
    }
    balance = start_balance(kind);
    keep(&d, &kept[count]);
    for (unsigned i = 0; i < count; i++)
      if (i + 1 == count || balance >= 0 || random_below(2) == 0)
        cairn__changes_free(
            compare(&kept[i], kept[count].fd, d.bytes, d.size, t, what));
    count++;
    if (balance >= 0)
      assert_int_equal(waitpid(balance, NULL, 0), balance);
  }
  while (count > 0)
    let_go(&d, &kept[--count]);
  disk_close(&d);
}

static double seconds_now(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void marks_whatever_random_steps_change(void **state)
{
  const char *budget = getenv("CAIRN_SECONDS");
  const char *given = getenv("CAIRN_SEED");
  uint64_t seed = given ? strtoull(given, NULL, 10) : 1;

  (void)state;
  need_file_systems();
  printf("# seed %llu\n", (unsigned long long)seed);
  for (int kind = 0; kind < KINDS; kind++) {
    double end = seconds_now() + (budget ? atof(budget) : 20) / KINDS;
    struct tally t = {0};
    unsigned lives = 0;

    do {
      random_state = seed * 1000003 + lives++;
      live(kind, 12, &t);
    } while (seconds_now() < end);
    printf("# ran %u lives of 12 clones on %s: %llu comparisons, %llu blocks "
           "differed, %llu marked\n",
           lives, kind_names[kind], (unsigned long long)t.comparisons,
           (unsigned long long)t.differ, (unsigned long long)t.marked);
    assert_true(t.differ > 0);
    assert_true(t.marked >= t.differ);
  }
}

/* ---- exactly ------------------------------------------------------------- */

static void write_at(const char *path, const void *buf, size_t n, off_t at)
{
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  assert_true(fd >= 0);
  assert_int_equal(cairn__io_write_full(&cairn__system_io, fd, buf, n, at), 0);
  close(fd);
}

static void make_file(const char *path, uint64_t seed, size_t n)
{
  unsigned char *buf = malloc(n);

  assert_non_null(buf);
  random_fill(seed, buf, n);
  (void)unlink(path);
  write_at(path, buf, n, 0);
  free(buf);
}

static int try_clone(const struct cairn_io *io, const char *path,
                     const char *directory, const char *name, int *fd)
{
  struct cairn__held held;
  int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

  assert_true(dirfd >= 0);
  memset(&err, 0, sizeof err);
  reason[0] = '\0';
  assert_int_equal(cairn__held_open(&cairn__system_io, path, 0, &held, &err),
                   0);
  rc = cairn__clone_make(io, NULL, &held, dirfd, name, name, fd, reason,
                         sizeof reason, &err);
  cairn__held_close(&held);
  close(dirfd);
  return rc;
}

static int clone_file(const char *path, const char *directory, const char *name)
{
  int fd, rc = try_clone(&cairn__system_io, path, directory, name, &fd);

  if (rc != 0)
    fail_msg("no clone of %s: %s", path, rc == 1 ? reason : err.message);
  return fd;
}

static int try_changes(const struct cairn_io *io, int base, int now,
                       uint64_t length, struct cairn__changes **c)
{
  int rc;

  memset(&err, 0, sizeof err);
  reason[0] = '\0';
  assert_int_equal(cairn__changes_new(length, c, &err), 0);
  rc = cairn__clone_changes(io, NULL, base, now, length, *c, reason,
                            sizeof reason, &err);
  return rc;
}

static struct cairn__changes *changes_of(const struct cairn_io *io, int base,
                                         int now, uint64_t length)
{
  struct cairn__changes *c;
  int rc = try_changes(io, base, now, length, &c);

  if (rc != 0)
    fail_msg("no changes: %s", rc == 1 ? reason : err.message);
  return c;
}

static uint64_t count_changes(const struct cairn_io *io, int base, int now,
                              uint64_t length)
{
  struct cairn__changes *c = changes_of(io, base, now, length);
  uint64_t n = cairn__changes_count(c);

  cairn__changes_free(c);
  return n;
}

/* 4 KiB of 64 MiB. */
static void marks_one_block_for_one_page(void **state)
{
  static const int kinds[] = {XFS, BTRFS, NOCOW};

  (void)state;
  need_file_systems();
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    char path[512], dir[512];
    struct cairn__changes *c;
    unsigned char page[4096];
    int base, same, now;

    snprintf(path, sizeof path, "%s", path_in(kinds[i], "disk"));
    snprintf(dir, sizeof dir, "%s", path_in(kinds[i], "."));
    make_file(path, 1, 64 * MIB);
    base = clone_file(path, dir, "base");
    same = clone_file(path, dir, "same");
    assert_int_equal(count_changes(&cairn__system_io, base, same, 64 * MIB), 0);
    random_fill(2, page, sizeof page);
    write_at(path, page, sizeof page, 37 * CAIRN__BLOCK + 8192);
    now = clone_file(path, dir, "now");
    c = changes_of(&cairn__system_io, base, now, 64 * MIB);
    assert_int_equal(cairn__changes_count(c), 1);
    assert_true(cairn__changes_is_set(c, 37));
    cairn__changes_free(c);
    close(base);
    close(same);
    close(now);
    must_run("cmp %s %s/now && rm -f %s %s/base %s/same %s/now", path, dir,
             path, dir, dir, dir);
  }
}

/* More extents than one batch holds, on both sides, and of one side only. */
static void walks_maps_of_many_extents(void **state)
{
  static const int kinds[] = {XFS, BTRFS, NOCOW};
  const uint64_t blocks = 512, length = blocks * CAIRN__BLOCK;

  (void)state;
  need_file_systems();
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    char path[512], dir[512];
    struct cairn__changes *c;
    unsigned char page[4096];
    int plain, base, now;

    snprintf(path, sizeof path, "%s", path_in(kinds[i], "disk"));
    snprintf(dir, sizeof dir, "%s", path_in(kinds[i], "."));
    make_file(path, 1, length);
    must_run("sync %s", path);
    plain = clone_file(path, dir, "plain");
    for (uint64_t b = 0; b < blocks; b++)
      for (unsigned p = 0; b % 3 && p < 16; p += 2) {
        random_fill(b * 16 + p, page, sizeof page);
        write_at(path, page, sizeof page, (off_t)(b * CAIRN__BLOCK + p * 4096));
      }
    base = clone_file(path, dir, "base");
    c = changes_of(&cairn__system_io, plain, base, length);
    for (uint64_t b = 0; b < blocks; b++)
      assert_int_equal(cairn__changes_is_set(c, b), b % 3 != 0);
    cairn__changes_free(c);
    for (uint64_t b = 5; b < blocks; b += 7) {
      random_fill(b, page, sizeof page);
      write_at(path, page, sizeof page,
               (off_t)(b * CAIRN__BLOCK + b % 16 * 4096));
    }
    now = clone_file(path, dir, "now");
    c = changes_of(&cairn__system_io, base, now, length);
    for (uint64_t b = 0; b < blocks; b++)
      assert_int_equal(cairn__changes_is_set(c, b), b % 7 == 5);
    cairn__changes_free(c);
    close(plain);
    close(base);
    close(now);
    must_run("rm -f %s %s/plain %s/base %s/now", path, dir, dir, dir);
  }
}

static void marks_from_the_shorter_end_on(void **state)
{
  static const struct {
    uint64_t base, now;
    unsigned from; /* first block marked */
  } cases[] = {
      {10 * CAIRN__BLOCK, 10 * CAIRN__BLOCK, 10},
      {10 * CAIRN__BLOCK, 12 * CAIRN__BLOCK, 10},
      {10 * CAIRN__BLOCK + 1, 12 * CAIRN__BLOCK, 10},
      {10 * CAIRN__BLOCK - 1, 12 * CAIRN__BLOCK, 9},
      {12 * CAIRN__BLOCK, 10 * CAIRN__BLOCK, 10},
      {12 * CAIRN__BLOCK, 10 * CAIRN__BLOCK + 1, 10},
      {12 * CAIRN__BLOCK, 10 * CAIRN__BLOCK - 1, 9},
      {0, 3 * CAIRN__BLOCK, 0},
      {3 * CAIRN__BLOCK, 0, 0},
      {0, 0, 0},
  };

  (void)state;
  need_file_systems();
  for (int kind = XFS; kind <= BTRFS; kind++) {
    char path[512], dir[512];

    snprintf(path, sizeof path, "%s", path_in(kind, "disk"));
    snprintf(dir, sizeof dir, "%s", path_in(kind, "."));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
      struct cairn__changes *c;
      int base, now;

      make_file(path, 1, cases[i].base);
      base = clone_file(path, dir, "base");
      assert_int_equal(truncate(path, (off_t)cases[i].now), 0);
      now = clone_file(path, dir, "now");
      c = changes_of(&cairn__system_io, base, now, cases[i].now);
      for (uint64_t b = 0; b < cairn__changes_blocks(c); b++)
        assert_int_equal(cairn__changes_is_set(c, b), b >= cases[i].from);
      cairn__changes_free(c);
      close(base);
      close(now);
      must_run("rm -f %s %s/base %s/now", path, dir, dir);
    }
  }
}

/* ---- file systems that answer otherwise ---------------------------------- */

/* Another ioctl: `bend` sees every map that was read for `bent_fd` (-1: any),
 * the bend_from-th and later ones. */
static void (*bend)(struct fiemap *fm);
static int bent_fd = -1, bent_calls, bend_from, is_sync_stripped, fail_errno;
static unsigned long fail_request;

static int bent_ioctl(const struct cairn_io *io, int fd, unsigned long request,
                      void *argument)
{
  struct fiemap *fm = argument;
  int rc;

  (void)io;
  if (fail_request == request) {
    errno = fail_errno;
    return -1;
  }
  if (request == FS_IOC_FIEMAP && is_sync_stripped)
    fm->fm_flags &= ~(uint32_t)FIEMAP_FLAG_SYNC;
  rc = cairn__system_io.ioctl(&cairn__system_io, fd, request, argument);
  if (request == FS_IOC_FIEMAP && bend && (bent_fd < 0 || bent_fd == fd) &&
      bent_calls++ >= bend_from)
    bend(fm);
  return rc;
}

static struct cairn_io bent_io(void (*how)(struct fiemap *fm), int fd, int from)
{
  struct cairn_io io = cairn__system_io;

  io.ioctl = bent_ioctl;
  bend = how;
  bent_fd = fd;
  bend_from = from;
  bent_calls = is_sync_stripped = fail_errno = 0;
  fail_request = 0;
  return io;
}

/* Without FIEMAP_FLAG_SYNC what is still in the page cache is missed. */
static void needs_the_maps_to_be_synced(void **state)
{
  (void)state;
  need_file_systems();
  for (int kind = XFS; kind <= BTRFS; kind++) {
    struct cairn_io io = bent_io(NULL, -1, 0);
    unsigned char page[4096];
    char path[512], dir[512];
    int base, fd;

    snprintf(path, sizeof path, "%s", path_in(kind, "disk"));
    snprintf(dir, sizeof dir, "%s", path_in(kind, "."));
    make_file(path, 1, MIB);
    must_run("sync %s", path);
    base = clone_file(path, dir, "base");
    random_fill(2, page, sizeof page);
    write_at(path, page, sizeof page, 3 * CAIRN__BLOCK);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    is_sync_stripped = 1;
    if (kind == XFS) /* btrfs tells of delayed allocation by itself */
      assert_int_equal(count_changes(&io, base, fd, MIB), 0);
    assert_int_equal(count_changes(&cairn__system_io, base, fd, MIB), 1);
    close(base);
    close(fd);
    must_run("rm -f %s %s/base", path, dir);
  }
}

static void swap_two(struct fiemap *fm)
{
  struct fiemap_extent e = fm->fm_extents[0];

  fm->fm_extents[0] = fm->fm_extents[1];
  fm->fm_extents[1] = e;
}

static void overlap(struct fiemap *fm)
{
  fm->fm_extents[1].fe_logical = fm->fm_extents[0].fe_logical + 1;
}

static void begin_before(struct fiemap *fm)
{
  fm->fm_extents[0].fe_logical = 0;
  fm->fm_extents[0].fe_length = fm->fm_start;
}

static void begin_beyond(struct fiemap *fm)
{
  fm->fm_extents[fm->fm_mapped_extents - 1].fe_logical =
      fm->fm_start + fm->fm_length;
}

static void be_empty(struct fiemap *fm)
{
  fm->fm_extents[0].fe_length = 0;
}

static void wrap(struct fiemap *fm)
{
  fm->fm_extents[0].fe_length = UINT64_MAX - 5;
  fm->fm_extents[0].fe_logical += 6;
}

static void be_many(struct fiemap *fm)
{
  fm->fm_mapped_extents = fm->fm_extent_count + 1;
}

static uint32_t set_flags, cleared_flags;

static void change_flags(struct fiemap *fm)
{
  for (unsigned i = 0; i < fm->fm_mapped_extents; i++) {
    fm->fm_extents[i].fe_flags |= set_flags;
    fm->fm_extents[i].fe_flags &= ~cleared_flags;
  }
}

static void move(struct fiemap *fm)
{
  for (unsigned i = 0; i < fm->fm_mapped_extents; i++)
    fm->fm_extents[i].fe_physical += 4096;
}

/* The first extent given whole, as file systems may, though it was asked for
 * from its second page on. */
static unsigned begun_earlier;

static void begin_earlier(struct fiemap *fm)
{
  struct fiemap_extent *e = &fm->fm_extents[0];

  if (fm->fm_start == 0 || e->fe_logical != fm->fm_start)
    return;
  e->fe_physical -= 4096;
  e->fe_length += 4096;
  e->fe_logical -= 4096;
  begun_earlier++;
}

/* Two clones of a file with three extents on XFS, and nothing between. */
static void open_twins(char dir[512], int *base, int *now)
{
  unsigned char page[4096];
  char path[512];

  snprintf(path, sizeof path, "%s", path_in(XFS, "disk"));
  snprintf(dir, 512, "%s", path_in(XFS, "."));
  (void)unlink(path);
  random_fill(2, page, sizeof page);
  for (int i = 0; i < 3; i++)
    write_at(path, page, sizeof page, (off_t)(i + 1) * 4 * CAIRN__BLOCK);
  assert_int_equal(truncate(path, MIB), 0);
  *base = clone_file(path, dir, "base");
  *now = clone_file(path, dir, "now");
}

static void close_twins(const char *dir, int base, int now)
{
  close(base);
  close(now);
  must_run("rm -f %s/disk %s/base %s/now", dir, dir, dir);
}

static void does_not_trust_a_map_that_contradicts_itself(void **state)
{
  static void (*const lies[])(struct fiemap *) = {
      swap_two, overlap, begin_before, begin_beyond, be_empty, wrap, be_many};
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
    for (int who = 0; who < 2; who++) {
      struct cairn_io io = bent_io(lies[i], who ? now : base, 0);
      struct cairn__changes *c;

      if (try_changes(&io, base, now, MIB, &c) != 1)
        fail_msg("lie %zu is believed", i);
      assert_string_equal(
          reason, "the file system's map of extents contradicts itself");
      cairn__changes_free(c);
    }
  }
  close_twins(dir, base, now);
}

static void takes_every_flag_it_does_not_know_for_a_change(void **state)
{
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  assert_int_equal(count_changes(&cairn__system_io, base, now, MIB), 0);
  for (int bit = 0; bit < 32; bit++) {
    for (int who = 0; who < 2; who++) {
      struct cairn_io io = bent_io(change_flags, who ? now : base, 0);
      uint32_t flag = UINT32_C(1) << bit;
      int is_harmless =
          flag == FIEMAP_EXTENT_LAST || flag == FIEMAP_EXTENT_SHARED;

      set_flags = flag;
      cleared_flags = 0;
      assert_int_equal(count_changes(&io, base, now, MIB), is_harmless ? 0 : 3);
    }
  }
  for (int who = 0; who < 2; who++) { /* the same place, and not shared */
    struct cairn_io io = bent_io(change_flags, who ? now : base, 0);

    set_flags = 0;
    cleared_flags = FIEMAP_EXTENT_SHARED;
    assert_int_equal(count_changes(&io, base, now, MIB), 3);
  }
  close_twins(dir, base, now);
}

static void notices_blocks_that_move_meanwhile(void **state)
{
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  {
    struct cairn_io io = bent_io(move, base, 1); /* its second map */

    assert_int_equal(count_changes(&io, base, now, MIB), 3);
  }
  {
    struct cairn_io io = bent_io(move, now, 0);

    assert_int_equal(count_changes(&io, base, now, MIB), 3);
  }
  close_twins(dir, base, now);
}

/* 3000 pages with data, each with a hole behind it. */
static void make_islands(const char *path)
{
  unsigned char page[4096];

  (void)unlink(path);
  random_fill(3, page, sizeof page);
  for (int i = 0; i < 3000; i++)
    write_at(path, page, sizeof page, (off_t)i * 8192);
  assert_int_equal(truncate(path, 3000 * 8192), 0);
}

static void accepts_extents_that_begin_before_what_was_asked(void **state)
{
  char dir[512], path[512];
  int base, now;

  (void)state;
  need_file_systems();
  snprintf(path, sizeof path, "%s", path_in(XFS, "disk"));
  snprintf(dir, sizeof dir, "%s", path_in(XFS, "."));
  make_islands(path);
  base = clone_file(path, dir, "base");
  now = clone_file(path, dir, "now");
  assert_int_equal(count_changes(&cairn__system_io, base, now, 3000 * 8192), 0);
  /* A batch ends with an extent: the next one begins in the hole behind it,
   * unless the other map has ended it earlier. */
  for (int who = 0; who < 2; who++) {
    struct cairn_io io = bent_io(begin_earlier, who ? now : base, 0);

    assert_int_equal(count_changes(&io, base, now, 3000 * 8192), 0);
  }
  close(now);
  close(base);
  must_run("rm -f %s %s/base %s/now", path, dir, dir);
  /* One extent against 3000 within it. */
  make_file(path, 1, 3000 * 8192);
  must_run("sync %s", path);
  base = clone_file(path, dir, "base");
  for (int i = 0; i < 3000; i += 2)
    write_at(path, "x", 1, (off_t)i * 8192);
  now = clone_file(path, dir, "now");
  begun_earlier = 0;
  {
    struct cairn_io io = bent_io(begin_earlier, base, 0);

    assert_int_equal(count_changes(&io, base, now, 3000 * 8192),
                     count_changes(&cairn__system_io, base, now, 3000 * 8192));
  }
  assert_true(begun_earlier > 0);
  close(now);
  close(base);
  must_run("rm -f %s %s/base %s/now", path, dir, dir);
}

static void gives_the_reason_where_nothing_is_mapped(void **state)
{
  static const int refusals[] = {EOPNOTSUPP, ENOTTY, EBADR, EINVAL};
  struct cairn__changes *c;
  struct cairn_io io;
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
    io = bent_io(NULL, -1, 0);
    fail_request = FS_IOC_FIEMAP;
    fail_errno = refusals[i];
    assert_int_equal(try_changes(&io, base, now, MIB, &c), 1);
    assert_string_equal(reason,
                        "the file system does not tell where blocks lie");
    cairn__changes_free(c);
  }
  fail_errno = EIO;
  assert_int_equal(try_changes(&io, base, now, MIB, &c), -1);
  assert_int_equal(err.id, CAIRN_E_IO_ERROR);
  assert_non_null(strstr(err.message, "the base's clone at offset 0"));
  cairn__changes_free(c);
  assert_int_equal(try_changes(&cairn__system_io, base, now, MIB - 1, &c), 1);
  assert_string_equal(reason, "the new clone has not the disk's length");
  cairn__changes_free(c);
  close_twins(dir, base, now);
}

/* Two file systems made the same way: the addresses agree, the files do not. */
static void does_not_compare_across_file_systems(void **state)
{
  struct cairn__changes *c;
  char dir[512];
  int base, now, other;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  must_run("sync -f %s && fsfreeze -f %s && "
           "cp --sparse=always xfs.img copy.img; fsfreeze -u %s",
           dir, dir, dir);
  must_run("mkdir copy && mount -o loop,nouuid copy.img copy");
  write_at("copy/scrap", "x", 1, 0);
  other = open("copy/now", O_RDONLY | O_CLOEXEC);
  assert_true(other >= 0);
  assert_int_equal(try_changes(&cairn__system_io, base, other, MIB, &c), 1);
  assert_string_equal(
      reason, "the base's clone is on another file system or subvolume");
  cairn__changes_free(c);
  close(other);
  must_run("umount copy && rmdir copy && rm copy.img");
  close_twins(dir, base, now);
}

static int realtime_ioctl(const struct cairn_io *io, int fd,
                          unsigned long request, void *argument)
{
  int rc = cairn__system_io.ioctl(&cairn__system_io, fd, request, argument);

  (void)io;
  if (request == FS_IOC_FSGETXATTR && fd == bent_fd)
    ((struct fsxattr *)argument)->fsx_xflags |= FS_XFLAG_REALTIME;
  return rc;
}

static void does_not_compare_across_devices_of_xfs(void **state)
{
  struct cairn_io io = cairn__system_io;
  struct cairn__changes *c;
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  io.ioctl = realtime_ioctl;
  bent_fd = now;
  assert_int_equal(try_changes(&io, base, now, MIB, &c), 1);
  assert_string_equal(
      reason, "the base's clone is on another device of the file system");
  cairn__changes_free(c);
  close_twins(dir, base, now);
}

/* ext4 and tmpfs have maps, or none; neither has clones. */
static void does_not_compare_on_other_file_systems(void **state)
{
  struct cairn__changes *c;
  int fd;

  (void)state;
  need_file_systems();
  must_run("mkdir tmpfs && mount -t tmpfs none tmpfs");
  make_file("tmpfs/disk", 1, 4096);
  fd = open("tmpfs/disk", O_RDONLY | O_CLOEXEC);
  assert_int_equal(try_changes(&cairn__system_io, fd, fd, 4096, &c), 1);
  assert_string_equal(reason, "the clones are not on XFS or btrfs");
  cairn__changes_free(c);
  close(fd);
  must_run("umount tmpfs && rmdir tmpfs");
}

/* ---- what btrfs does ----------------------------------------------------- */

static void marks_what_is_compressed_or_inline(void **state)
{
  char dir[512], path[512];
  int base, now;

  (void)state;
  need_file_systems();
  snprintf(path, sizeof path, "%s", path_in(ZSTD, "disk"));
  snprintf(dir, sizeof dir, "%s", path_in(ZSTD, "."));
  /* 1 MiB of zeros that are stored, 1 MiB that does not compress */
  (void)unlink(path);
  must_run("{ yes | head -c 1M; head -c 1M /dev/urandom; } > %s", path);
  base = clone_file(path, dir, "base");
  now = clone_file(path, dir, "now");
  {
    struct cairn__changes *c =
        changes_of(&cairn__system_io, base, now, 2 * MIB);

    for (uint64_t b = 0; b < 32; b++)
      assert_int_equal(cairn__changes_is_set(c, b), b < 16);
    cairn__changes_free(c);
  }
  close(base);
  close(now);
  must_run("rm -f %s %s/base %s/now", path, dir, dir);

  snprintf(path, sizeof path, "%s", path_in(BTRFS, "disk"));
  snprintf(dir, sizeof dir, "%s", path_in(BTRFS, "."));
  make_file(path, 1, 1000);
  base = clone_file(path, dir, "base");
  now = clone_file(path, dir, "now");
  assert_int_equal(count_changes(&cairn__system_io, base, now, 1000), 1);
  close(base);
  close(now);
  must_run("rm -f %s %s/base %s/now", path, dir, dir);
}

static unsigned flags_of(const char *path)
{
  unsigned flags = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);

  assert_true(fd >= 0);
  assert_int_equal(ioctl(fd, FS_IOC_GETFLAGS, &flags), 0);
  close(fd);
  return flags;
}

/* The source with or without +C, the directory with none, +C or +c. */
static void carries_the_nocow_attribute_over(void **state)
{
  static const char *const attributes[] = {"-C", "+C", "+c"};

  (void)state;
  need_file_systems();
  for (int is_nocow = 0; is_nocow < 2; is_nocow++) {
    char path[512];

    snprintf(path, sizeof path, "%s",
             path_in(is_nocow ? NOCOW : BTRFS, "disk"));
    make_file(path, 1, MIB);
    for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++) {
      unsigned flags;

      must_run("mkdir btrfs/clones && chattr %s btrfs/clones", attributes[i]);
      close(clone_file(path, "btrfs/clones", "it"));
      flags = flags_of("btrfs/clones/it");
      assert_int_equal((flags & FS_NOCOW_FL) != 0, is_nocow);
      assert_int_equal(flags & FS_COMPR_FL, 0);
      must_run("cmp %s btrfs/clones/it && rm -r btrfs/clones", path);
    }
    (void)unlink(path);
  }
}

static void clones_into_another_subvolume(void **state)
{
  char path[512];
  int base, now;

  (void)state;
  need_file_systems();
  snprintf(path, sizeof path, "%s", path_in(BTRFS, "disk"));
  make_file(path, 1, MIB);
  must_run("btrfs subvolume create btrfs/sub");
  base = clone_file(path, "btrfs/sub", "base");
  write_at(path, "x", 1, 5 * CAIRN__BLOCK);
  now = clone_file(path, "btrfs/sub", "now");
  assert_int_equal(count_changes(&cairn__system_io, base, now, MIB), 1);
  close(base);
  close(now);
  must_run("btrfs subvolume delete btrfs/sub && rm %s", path);
}

/* ---- making, opening ----------------------------------------------------- */

static void makes_a_file_that_nobody_writes(void **state)
{
  struct stat st;
  char path[512];
  int fd;

  (void)state;
  need_file_systems();
  snprintf(path, sizeof path, "%s", path_in(XFS, "disk"));
  make_file(path, 1, MIB + 77);
  fd = clone_file(path, "xfs", "it");
  assert_int_equal(fstat(fd, &st), 0);
  assert_int_equal(st.st_mode & 07777, 0400);
  assert_int_equal(st.st_size, MIB + 77);
  assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  close(fd);
  assert_int_equal(try_clone(&cairn__system_io, path, "xfs", "it", &fd), -1);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
  assert_int_equal(fd, -1);
  must_run("cmp %s xfs/it && rm -f %s xfs/it", path, path);
}

/* The machine stops right after the call: what was not synced is lost. */
static void makes_a_clone_that_lasts(void **state)
{
  char identity[CAIRN__CLONE_IDENTITY_SIZE];
  int fd, dirfd;

  (void)state;
  need_file_systems();
  if (!has_program("xfs_io"))
    skip_because("needs xfs_io");
  must_run("truncate -s 320M last.img && mkfs.xfs -q last.img && mkdir last && "
           "mount -o loop last.img last && mkdir last/clones");
  make_file("last/disk", 1, 4 * MIB);
  must_run("cp last/disk want");
  fd = clone_file("last/disk", "last/clones", "it");
  assert_int_equal(
      cairn__clone_identity(&cairn__system_io, fd, "it", identity, &err), 0);
  must_run("xfs_io -x -c shutdown last");
  close(fd);
  must_run("umount last && mount -o loop last.img last && "
           "cmp want last/clones/it");
  dirfd = open("last/clones", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  assert_int_equal(cairn__clone_open(&cairn__system_io, dirfd, "it", "it",
                                     identity, &fd, reason, sizeof reason,
                                     &err),
                   0);
  close(fd);
  close(dirfd);
  must_run("umount last && rm -r last last.img want");
}

static void knows_a_clone_again_after_a_remount(void **state)
{
  static const char *const mounts[] = {"mount -o loop xfs.img xfs", "", "",
                                       "mount -o loop,compress-force=zstd "
                                       "zstd.img zstd"};

  (void)state;
  need_file_systems();
  for (int kind = XFS; kind < KINDS; kind += ZSTD - XFS) {
    char identity[CAIRN__CLONE_IDENTITY_SIZE];
    int fd, dirfd;

    make_file(path_in(kind, "disk"), 1, MIB);
    fd = clone_file(path_in(kind, "disk"), kind_dirs[kind], "it");
    assert_int_equal(
        cairn__clone_identity(&cairn__system_io, fd, "it", identity, &err), 0);
    close(fd);
    must_run("umount %s && %s", kind_dirs[kind], mounts[kind]);
    dirfd = openat(scratch_fd, kind_dirs[kind], O_RDONLY | O_DIRECTORY);
    assert_int_equal(cairn__clone_open(&cairn__system_io, dirfd, "it", "it",
                                       identity, &fd, reason, sizeof reason,
                                       &err),
                     0);
    close(fd);
    close(dirfd);
    must_run("rm -f %s/it %s/disk", kind_dirs[kind], kind_dirs[kind]);
  }
}

/* In a child, hence without assertions: 0, or which call failed. */
static int work_as_user(const char *directory)
{
  struct cairn__held held;
  struct cairn__changes *c;
  int fds[2], dirfd;

  if (setgid(65534) != 0 || setuid(65534) != 0 || chdir(directory) != 0)
    return 1;
  dirfd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  for (int i = 0; i < 2; i++) {
    int fd = open("disk", O_WRONLY | O_CLOEXEC);

    if (pwrite(fd, "x", 1, 0) != 1)
      return 2;
    close(fd);
    if (cairn__held_open(&cairn__system_io, "disk", 0, &held, &err) != 0)
      return 3;
    if (cairn__clone_make(&cairn__system_io, NULL, &held, dirfd,
                          i ? "now" : "base", "it", &fds[i], reason,
                          sizeof reason, &err) != 0)
      return 4;
    cairn__held_close(&held);
  }
  if (cairn__changes_new(MIB, &c, &err) != 0 ||
      cairn__clone_changes(&cairn__system_io, NULL, fds[0], fds[1], MIB, c,
                           reason, sizeof reason, &err) != 0)
    return 5;
  return cairn__changes_is_set(c, 0) ? 0 : 6;
}

static void needs_no_privilege(void **state)
{
  (void)state;
  need_file_systems();
  must_run("chmod 755 .");
  for (int kind = XFS; kind < KINDS; kind++) {
    int status;
    pid_t pid;

    must_run("mkdir %s/user && head -c 1M /dev/urandom >%s/user/disk && "
             "chown -R 65534:65534 %s/user",
             kind_dirs[kind], kind_dirs[kind], kind_dirs[kind]);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
      char directory[64];

      snprintf(directory, sizeof directory, "%s/user", kind_dirs[kind]);
      _exit(work_as_user(directory));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    must_run("rm -r %s/user", kind_dirs[kind]);
  }
}

static void refuses_a_clone_that_was_altered(void **state)
{
  static const struct {
    const char *how, *says;
  } cases[] = {
      {"true", NULL},
      {"cat xfs/c/it >/dev/null", NULL},
      {"mv xfs/c xfs/d && mkdir xfs/c && mv xfs/d/* xfs/c && rmdir xfs/d",
       "altered"}, /* renamed: also a change of the file */
      {"printf x | dd of=xfs/c/it conv=notrunc status=none", "altered"},
      {"touch -d '2020-01-01' xfs/c/it", "altered"},
      {"printf x | dd of=xfs/c/it conv=notrunc status=none && "
       "touch -r xfs/disk xfs/c/it",
       "altered"},
      {"truncate -s 1M xfs/c/it", "altered"},
      {"cp --reflink=always --preserve=all xfs/c/it xfs/c/2 && "
       "mv -f xfs/c/2 xfs/c/it",
       "altered"},
      {"rm -f xfs/c/it", "gone"},
      {"rm -f xfs/c/it && mkdir xfs/c/it", "altered"},
      {"mv xfs/c/it xfs/it && ln -s ../it xfs/c/it", "symbolic link"},
      {"rm -f xfs/c/it && mkfifo xfs/c/it", "altered"},
  };

  (void)state;
  need_file_systems();
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char identity[CAIRN__CLONE_IDENTITY_SIZE];
    int fd, dirfd, rc;

    must_run("rm -rf xfs/c xfs/it && mkdir xfs/c");
    make_file(path_in(XFS, "disk"), 1, MIB + 77);
    fd = clone_file(path_in(XFS, "disk"), "xfs/c", "it");
    assert_int_equal(
        cairn__clone_identity(&cairn__system_io, fd, "it", identity, &err), 0);
    close(fd);
    must_run("%s", cases[i].how);
    dirfd = open("xfs/c", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = cairn__clone_open(&cairn__system_io, dirfd, "it", "it", identity, &fd,
                           reason, sizeof reason, &err);
    if (rc != (cases[i].says != NULL))
      fail_msg("%s: %d", cases[i].how, rc);
    if (rc == 1) {
      assert_non_null(strstr(reason, cases[i].says));
      assert_int_equal(fd, -1);
    } else {
      close(fd);
    }
    close(dirfd);
  }
  must_run("rm -rf xfs/c xfs/it xfs/disk");
}

/* Stores through a mapping change the times too, on a file that nobody has
 * mapped for writing before. */
static void notices_stores_into_a_clone(void **state)
{
  (void)state;
  need_file_systems();
  for (int kind = XFS; kind <= NOCOW; kind++) {
    char path[512], dir[512], before[CAIRN__CLONE_IDENTITY_SIZE],
        after[CAIRN__CLONE_IDENTITY_SIZE];
    unsigned char *map;
    int fd, writable;

    snprintf(path, sizeof path, "%s", path_in(kind, "disk"));
    snprintf(dir, sizeof dir, "%s", path_in(kind, "."));
    make_file(path, 1, MIB);
    fd = clone_file(path, dir, "it");
    assert_int_equal(
        cairn__clone_identity(&cairn__system_io, fd, "it", before, &err), 0);
    /* change times have the resolution of the timer tick */
    must_run("sleep 0.02");
    writable = open(path_in(kind, "it"), O_RDWR | O_CLOEXEC);
    map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0);
    assert_true(map != MAP_FAILED);
    map[5000]++;
    munmap(map, MIB);
    close(writable);
    assert_int_equal(
        cairn__clone_identity(&cairn__system_io, fd, "it", after, &err), 0);
    assert_string_not_equal(before, after);
    close(fd);
    must_run("rm -f %s %s/it", path, dir);
  }
}

static void says_why_there_is_no_clone(void **state)
{
  int fd;

  (void)state;
  need_file_systems();
  make_file(path_in(XFS, "disk"), 1, MIB);
  make_file(path_in(BTRFS, "disk"), 1, MIB);
  must_run("mkdir tmpfs old && mount -t tmpfs none tmpfs && "
           "truncate -s 320M old.img && mkfs.xfs -q -m reflink=0 old.img && "
           "mount -o loop old.img old");
  make_file("tmpfs/disk", 1, MIB);
  make_file("old/disk", 1, MIB);
  assert_int_equal(
      try_clone(&cairn__system_io, "tmpfs/disk", "tmpfs", "it", &fd), 1);
  assert_non_null(strstr(reason, "not on XFS or btrfs"));
  assert_int_equal(try_clone(&cairn__system_io, "old/disk", "old", "it", &fd),
                   1);
  assert_string_equal(reason, "the file system has no reflink clones");
  assert_int_equal(access("old/it", F_OK), -1);
  assert_int_equal(try_clone(&cairn__system_io, "xfs/disk", "btrfs", "it", &fd),
                   1);
  assert_non_null(strstr(reason, "not on the disk's file system"));
  assert_int_equal(try_clone(&cairn__system_io, "xfs/disk", "old", "it", &fd),
                   1);
  assert_non_null(strstr(reason, "not on the disk's file system"));
  assert_int_equal(
      try_clone(&cairn__system_io, "btrfs/disk", "zstd", "it", &fd), 1);
  assert_non_null(strstr(reason, "not on the disk's file system"));
  assert_int_equal(access("zstd/it", F_OK), -1);
  must_run("umount tmpfs old && rm -r tmpfs old old.img xfs/disk btrfs/disk");
}

static void cannot_clone_a_block_device(void **state)
{
  struct cairn__held held = {.fd = -1, .is_block = 1};

  (void)state;
  assert_int_equal(cairn__clone_check(&cairn__system_io, &held, -1, reason,
                                      sizeof reason, &err),
                   1);
  assert_non_null(strstr(reason, "block device"));
}

static void tells_refusals_from_errors(void **state)
{
  static const struct {
    int errnum;
    const char *says; /* NULL: an error */
  } cases[] = {
      {EXDEV, "not on the disk's file system"},
      {EOPNOTSUPP, "no reflink clones"},
      {ENOTTY, "no reflink clones"},
      {EINVAL, "refuses to clone"},
      {ETXTBSY, "swap"},
      {EPERM, "not permitted"},
      {ENOSPC, "no space left"},
      {EDQUOT, "no space left"},
      {EIO, NULL},
      {ENOMEM, NULL},
  };

  (void)state;
  need_file_systems();
  make_file(path_in(XFS, "disk"), 1, MIB);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct cairn_io io = bent_io(NULL, -1, 0);
    int fd;

    fail_request = FICLONE;
    fail_errno = cases[i].errnum;
    assert_int_equal(try_clone(&io, "xfs/disk", "xfs", "it", &fd),
                     cases[i].says ? 1 : -1);
    if (cases[i].says)
      assert_non_null(strstr(reason, cases[i].says));
    else
      assert_int_equal(err.system_errno, cases[i].errnum);
    assert_int_equal(access("xfs/it", F_OK), -1);
  }
  (void)unlink("xfs/disk");
}

/* A file system that is full: no clone, and no remains of one. */
static void does_not_fill_the_file_system(void **state)
{
  int fd, rc;

  (void)state;
  need_file_systems();
  must_run("truncate -s 320M full.img && mkfs.xfs -q full.img && mkdir full && "
           "mount -o loop full.img full");
  make_islands("full/disk");
  must_run("! head -c 400M /dev/zero > full/rest");
  for (int i = 0; i < 2000; i++) { /* what is left goes into clones */
    char name[16];

    snprintf(name, sizeof name, "c%d", i);
    rc = try_clone(&cairn__system_io, "full/disk", "full", name, &fd);
    if (rc != 0)
      break;
    close(fd);
  }
  if (rc != 1)
    fail_msg("%d %s", rc, err.message);
  assert_string_equal(reason, "there is no space left for a clone");
  must_run("umount full && rm -r full full.img");
}

/* ---- every call fails ---------------------------------------------------- */

static void cleans_up_whatever_call_fails(void **state)
{
  int before, fd;

  (void)state;
  need_file_systems();
  for (int kind = XFS; kind <= BTRFS; kind++) {
    make_file(path_in(kind, "disk"), 1, MIB);
    before = count_fds();
    for (uint64_t at = 1, is_over = 0; !is_over; at++) {
      struct cairn__fault_io f;
      int rc;

      cairn__fault_io_init(&f, at, CAIRN__FAULT_ERRNO, EIO);
      rc = try_clone(&f.io, path_in(kind, "disk"), kind_dirs[kind], "it", &fd);
      is_over = !f.has_fired;
      if (rc == 0) { /* only the closing of what is made may fail unnoticed */
        if (!is_over)
          assert_string_equal(f.fired_at, "close");
        close(fd);
        must_run("cmp %s/it %s/disk && rm -f %s/it", kind_dirs[kind],
                 kind_dirs[kind], kind_dirs[kind]);
      } else {
        assert_int_equal(rc, -1);
        assert_int_equal(err.id, CAIRN_E_IO_ERROR);
        assert_int_equal(access(path_in(kind, "it"), F_OK), -1);
      }
      if (is_over)
        assert_true(at > 8);
      assert_int_equal(count_fds(), before);
    }
    (void)unlink(path_in(kind, "disk"));
  }
}

static void never_takes_a_failed_map_for_an_answer(void **state)
{
  struct cairn__changes *c;
  char dir[512];
  int base, now;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  for (uint64_t at = 1;; at++) {
    struct cairn__fault_io f;
    int rc;

    cairn__fault_io_init(&f, at, CAIRN__FAULT_ERRNO, EIO);
    rc = try_changes(&f.io, base, now, MIB, &c);
    cairn__changes_free(c);
    if (!f.has_fired) {
      assert_int_equal(rc, 0);
      assert_true(at > 7);
      break;
    }
    assert_int_equal(rc, -1);
    assert_int_equal(err.id, CAIRN_E_IO_ERROR);
  }
  assert_int_equal(cairn__changes_new(MIB, &c, &err), 0);
  for (int at = 1;; at++) {
    int rc;

    atomic_store(&alloc_countdown, at);
    cairn_set_allocator(failing_realloc, failing_free);
    rc = cairn__clone_changes(&cairn__system_io, NULL, base, now, MIB, c,
                              reason, sizeof reason, &err);
    cairn_set_allocator(NULL, NULL);
    assert_int_equal(atomic_load(&alloc_live), 0);
    if (rc == 0)
      break;
    assert_int_equal(rc, -1);
    assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  }
  cairn__changes_free(c);
  close_twins(dir, base, now);
}

static void ends_when_asked_to(void **state)
{
  struct cairn__run *r = cairn__run_new(NULL);
  struct cairn__held held;
  struct cairn__changes *c;
  char dir[512];
  int base, now, fd, dirfd;

  (void)state;
  need_file_systems();
  open_twins(dir, &base, &now);
  dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  assert_int_equal(cairn__changes_new(MIB, &c, &err), 0);
  assert_int_equal(
      cairn__held_open(&cairn__system_io, path_in(XFS, "disk"), 0, &held, &err),
      0);
  cairn__run_enter(r);
  cairn__run_request(r, CAIRN__RUN_TERMINATE);
  assert_int_equal(cairn__clone_changes(&cairn__system_io, r, base, now, MIB, c,
                                        reason, sizeof reason, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_TERMINATED);
  assert_int_equal(cairn__clone_make(&cairn__system_io, r, &held, dirfd, "it",
                                     "it", &fd, reason, sizeof reason, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_TERMINATED);
  assert_int_equal(access("xfs/it", F_OK), -1);
  cairn__run_leave(r);
  cairn__run_release(r);
  cairn__held_close(&held);
  cairn__changes_free(c);
  close(dirfd);
  close_twins(dir, base, now);
}

/* ---- clean-up ------------------------------------------------------------ */

static void knows_its_own_names(void **state)
{
  static const char *const others[] = {
      "",
      ".",
      POINT "." MACHINE ".raw",
      POINT "." MACHINE "..raw",
      POINT "." MACHINE ".vda",
      POINT "." MACHINE ".vda.RAW",
      POINT "." MACHINE ".vda.raw~",
      POINT "." MACHINE ".vda.raw.raw/x",
      POINT "." MACHINE "..vda.raw",
      POINT "." MACHINE ".v da.raw",
      POINT "." MACHINE ".v/../../etc/passwd.raw",
      POINT "-" MACHINE ".vda.raw",
      "6f1d0000-0000-4000-8000-00000000c011." MACHINE ".vda.raw",
      "{6F1D0000-0000-4000-8000-00000000C01}." MACHINE ".vda.raw",
      "x" POINT "." MACHINE ".vda.raw",
      POINT "." MACHINE
            ".12345678901234567890123456789012345678901234567890123456789012345"
            ".raw",
  };
  static const char *const ids[] = {
      "v", "vda", "vda.raw", "a.b-c_d",
      "1234567890123456789012345678901234567890123456789012345678901234"};
  char name[CAIRN__CLONE_NAME_SIZE];
  struct cairn__clone c;

  (void)state;
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    cairn__clone_name(POINT, MACHINE, ids[i], name);
    assert_int_equal(cairn__clone_parse(name, &c), 1);
    assert_string_equal(c.name, name);
    assert_string_equal(c.point, POINT);
    assert_string_equal(c.machine, MACHINE);
    assert_string_equal(c.disk, ids[i]);
  }
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
    if (cairn__clone_parse(others[i], &c))
      fail_msg("\"%s\" is taken for a clone", others[i]);
}

static void lists_and_removes_clones_and_nothing_else(void **state)
{
  static const char *const names[] = {POINT "." MACHINE ".c.raw",
                                      POINT "." MACHINE ".a.raw",
                                      POINT "." MACHINE ".b.raw"};
  struct cairn__clone *list;
  struct timespec times[2] = {{0, 0}, {0, 0}};
  char link[128], directory[128];
  size_t count;

  (void)state;
  must_run("rm -rf list && mkdir list");
  snprintf(link, sizeof link, POINT "." MACHINE ".link.raw");
  snprintf(directory, sizeof directory, POINT "." MACHINE ".dir.raw");
  must_run("cd list && touch other .hidden %s~ && ln -s other %s && mkdir %s",
           names[0], link, directory);
  {
    int dirfd = open("list", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    assert_int_equal(cairn__clones_list(&cairn__system_io, dirfd, "list", &list,
                                        &count, &err),
                     0);
    assert_int_equal(count, 0);
    cairn__free(list);
    for (size_t i = 0; i < 3; i++) {
      int fd = openat(dirfd, names[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0400);

      times[1].tv_sec = 1000 + (time_t)i;
      assert_int_equal(futimens(fd, times), 0);
      close(fd);
    }
    assert_int_equal(cairn__clones_list(&cairn__system_io, dirfd, "list", &list,
                                        &count, &err),
                     0);
    assert_int_equal(count, 3);
    for (size_t i = 0; i < 3; i++) {
      assert_string_equal(list[i].name, names[i]);
      assert_int_equal(list[i].time.tv_sec, 1000 + i);
    }
    cairn__free(list);
    for (int at = 1;; at++) {
      int rc;

      atomic_store(&alloc_countdown, at);
      cairn_set_allocator(failing_realloc, failing_free);
      rc = cairn__clones_list(&cairn__system_io, dirfd, "list", &list, &count,
                              &err);
      if (rc == 0)
        cairn__free(list);
      cairn_set_allocator(NULL, NULL);
      assert_int_equal(atomic_load(&alloc_live), 0);
      if (rc == 0)
        break;
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
    }
    assert_int_equal(
        cairn__clone_remove(&cairn__system_io, dirfd, names[0], "list", &err),
        0);
    assert_int_equal(
        cairn__clone_remove(&cairn__system_io, dirfd, names[0], "list", &err),
        0); /* missing */
    assert_int_equal(
        cairn__clone_remove(&cairn__system_io, dirfd, "other", "list", &err),
        -1);
    assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
    assert_int_equal(
        cairn__clone_remove(&cairn__system_io, dirfd, directory, "list", &err),
        -1);
    must_run("test -e list/other -a -d list/%s -a ! -e list/%s", directory,
             names[0]);
    close(dirfd);
  }
  must_run("rm -r list");
}

/* What a removed clone has held is free only once the file system has got
 * round to it; whoever does not wait drops every clone there is. */
static void waits_for_space_that_is_being_freed(void **state)
{
  (void)state;
  need_file_systems();
  for (int kind = XFS; kind <= BTRFS; kind++) {
    int dirfd = openat(scratch_fd, kind_dirs[kind], O_RDONLY | O_DIRECTORY);
    int is_short = -1, is_late;
    struct statvfs fs;
    uint64_t before;
    struct kept k = {.fd = -1};

    must_run("sync -f %s", kind_dirs[kind]);
    /* what the tests before have removed is freed until then */
    assert_int_equal(cairn__clones_are_short(dirfd, kind_dirs[kind], UINT64_MAX,
                                             &is_short, &err),
                     0);
    assert_int_equal(fstatvfs(dirfd, &fs), 0);
    before = (uint64_t)fs.f_bavail * fs.f_frsize;
    make_file(path_in(kind, "disk"), 1, 64 * MIB);
    cairn__clone_name(POINT, MACHINE, "big", k.name);
    close(clone_file(path_in(kind, "disk"), kind_dirs[kind], k.name));
    (void)unlink(path_in(kind, "disk"));
    must_run("sync -f %s", kind_dirs[kind]);
    assert_int_equal(cairn__clones_are_short(dirfd, kind_dirs[kind],
                                             before - 16 * MIB, &is_short,
                                             &err),
                     0);
    assert_int_equal(is_short, 1);
    assert_int_equal(cairn__clone_remove(&cairn__system_io, dirfd, k.name,
                                         kind_dirs[kind], &err),
                     0);
    assert_int_equal(fstatvfs(dirfd, &fs), 0);
    is_late = (uint64_t)fs.f_bavail * fs.f_frsize < before - 16 * MIB;
    if (!is_late)
      printf("# note %s has freed the space at once\n", kind_names[kind]);
    assert_int_equal(cairn__clones_are_short(dirfd, kind_dirs[kind],
                                             before - 16 * MIB, &is_short,
                                             &err),
                     0);
    assert_int_equal(is_short, 0);
    assert_int_equal(
        cairn__clones_are_short(dirfd, kind_dirs[kind], 1, &is_short, &err), 0);
    assert_int_equal(is_short, 0);
    close(dirfd);
  }
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(marks_what_each_step_changes),
      cmocka_unit_test(marks_one_block_for_one_page),
      cmocka_unit_test(walks_maps_of_many_extents),
      cmocka_unit_test(marks_from_the_shorter_end_on),
      cmocka_unit_test(needs_the_maps_to_be_synced),
      cmocka_unit_test(does_not_trust_a_map_that_contradicts_itself),
      cmocka_unit_test(takes_every_flag_it_does_not_know_for_a_change),
      cmocka_unit_test(notices_blocks_that_move_meanwhile),
      cmocka_unit_test(accepts_extents_that_begin_before_what_was_asked),
      cmocka_unit_test(gives_the_reason_where_nothing_is_mapped),
      cmocka_unit_test(does_not_compare_across_file_systems),
      cmocka_unit_test(does_not_compare_across_devices_of_xfs),
      cmocka_unit_test(does_not_compare_on_other_file_systems),
      cmocka_unit_test(marks_what_is_compressed_or_inline),
      cmocka_unit_test(carries_the_nocow_attribute_over),
      cmocka_unit_test(clones_into_another_subvolume),
      cmocka_unit_test(makes_a_file_that_nobody_writes),
      cmocka_unit_test(makes_a_clone_that_lasts),
      cmocka_unit_test(knows_a_clone_again_after_a_remount),
      cmocka_unit_test(needs_no_privilege),
      cmocka_unit_test(refuses_a_clone_that_was_altered),
      cmocka_unit_test(notices_stores_into_a_clone),
      cmocka_unit_test(says_why_there_is_no_clone),
      cmocka_unit_test(cannot_clone_a_block_device),
      cmocka_unit_test(tells_refusals_from_errors),
      cmocka_unit_test(does_not_fill_the_file_system),
      cmocka_unit_test(cleans_up_whatever_call_fails),
      cmocka_unit_test(never_takes_a_failed_map_for_an_answer),
      cmocka_unit_test(ends_when_asked_to),
      cmocka_unit_test(knows_its_own_names),
      cmocka_unit_test(lists_and_removes_clones_and_nothing_else),
      cmocka_unit_test(waits_for_space_that_is_being_freed),
      cmocka_unit_test(marks_whatever_random_steps_change),
  };

  return cmocka_run_group_tests_name("reflink clones", tests, set_up,
                                     tear_down);
}
