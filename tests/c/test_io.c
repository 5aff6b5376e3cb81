/* The I/O table: whole transfers over a kernel that stutters, removal of
 * trees, and faults on demand. */
#include "scratch.h"
#include "skip.h"

#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

/* ---- a table that stutters -------------------------------------------------
 */

/* Moves a random part of what is asked for, is interrupted now and then, and
 * can be as strict as a direct descriptor: offset, length and memory aligned,
 * or EINVAL, while it still stops at unaligned places. */
struct stutter {
  struct cairn_io io; /* first */
  int is_strict;
  size_t alignment;
  unsigned long calls, refused;
};

static struct stutter stutter;

static int stutters(const void *buf, size_t n, off_t offset)
{
  stutter.calls++;
  if (random_below(4) == 0) {
    errno = EINTR;
    return 1;
  }
  if (stutter.is_strict &&
      ((uintptr_t)buf % stutter.alignment != 0 || n % stutter.alignment != 0 ||
       (size_t)offset % stutter.alignment != 0)) {
    stutter.refused++;
    errno = EINVAL;
    return 1;
  }
  return 0;
}

/* How much of n bytes moves. A strict descriptor moves everything half of the
 * time: it is taken up again from before the place where it stopped. */
static size_t moved(size_t n)
{
  if (stutter.is_strict && random_below(2) == 0) {
    return n;
  }
  return 1 + random_below(n);
}

static ssize_t stutter_pread(const struct cairn_io *io, int fd, void *buf,
                             size_t n, off_t offset)
{
  (void)io;
  if (stutters(buf, n, offset)) {
    return -1;
  }
  return pread(fd, buf, moved(n), offset);
}

static ssize_t stutter_pwrite(const struct cairn_io *io, int fd,
                              const void *buf, size_t n, off_t offset)
{
  (void)io;
  if (stutters(buf, n, offset)) {
    return -1;
  }
  return pwrite(fd, buf, moved(n), offset);
}

static ssize_t stutter_pwritev(const struct cairn_io *io, int fd,
                               const struct iovec *iov, int count, off_t offset)
{
  size_t total = 0, want;
  ssize_t done = 0;
  int i;

  (void)io;
  for (i = 0; i < count; i++) {
    if (stutters(iov[i].iov_base, iov[i].iov_len, offset + (off_t)total)) {
      return -1;
    }
    total += iov[i].iov_len;
  }
  want = moved(total);
  for (i = 0; want > 0; i++) {
    size_t part = iov[i].iov_len < want ? iov[i].iov_len : want;

    assert_int_equal(pwrite(fd, iov[i].iov_base, part, offset + done), part);
    done += (ssize_t)part;
    want -= part;
  }
  return done;
}

static void stutter_begin(int is_strict, size_t alignment)
{
  memset(&stutter, 0, sizeof stutter);
  stutter.io = cairn__system_io;
  stutter.io.pread = stutter_pread;
  stutter.io.pwrite = stutter_pwrite;
  stutter.io.pwritev = stutter_pwritev;
  stutter.is_strict = is_strict;
  stutter.alignment = alignment;
}

static void transfers_are_whole(int is_strict, size_t alignment)
{
  enum { SIZE = 1 << 18 };
  unsigned char *want = aligned_alloc(4096, SIZE);
  unsigned char *got = aligned_alloc(4096, SIZE);
  struct iovec iov[32];
  int round;

  stutter_begin(is_strict, alignment);
  for (round = 0; round < 60; round++) {
    int fd = openat(scratch_fd, "transfer",
                    O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t unit = is_strict ? 4096 : 1 + random_below(5000);
    off_t offset = (off_t)(unit * random_below(8));
    size_t at = 0;
    int count = 0, i;

    assert_true(fd >= 0);
    random_fill(random_next(), want, SIZE);
    /* pieces with holes between them in memory, empty ones among them */
    for (i = 0; i < 32; i++) {
      size_t gap = unit * random_below(2), n = unit * random_below(4);

      if (at + gap + n > SIZE) {
        break;
      }
      at += gap;
      iov[count].iov_base = want + at;
      iov[count++].iov_len = n;
      at += n;
    }
    assert_int_equal(cairn__io_writev_full(&stutter.io, fd, iov, count, offset),
                     0);
    at = 0;
    for (i = 0; i < count; i++) {
      memcpy(got + at, iov[i].iov_base, iov[i].iov_len);
      at += iov[i].iov_len;
    }
    memcpy(want, got, at);
    if (at > 0 && round % 2 == 0) {
      /* and once more, in one piece, over it */
      random_fill(random_next(), want, at);
      assert_int_equal(cairn__io_write_full(&stutter.io, fd, want, at, offset),
                       0);
    }
    memset(got, 0, SIZE);
    assert_int_equal(cairn__io_read_full(&stutter.io, fd, got, at, offset), at);
    assert_memory_equal(got, want, at);
    /* the end of the file inside the request, at an unaligned place */
    if (at > 4096) {
      size_t cut = at - 1 - random_below(4095);

      assert_int_equal(ftruncate(fd, offset + (off_t)cut), 0);
      memset(got, 0, SIZE);
      assert_int_equal(cairn__io_read_full(&stutter.io, fd, got, at, offset),
                       cut);
      assert_memory_equal(got, want, cut);
    }
    close(fd);
  }
  assert_true(stutter.calls > 500);
  if (is_strict) {
    assert_true(stutter.refused > 0);
  }
  free(want);
  free(got);
}

static void transfers_are_whole_over_short_and_interrupted_calls(void **state)
{
  (void)state;
  random_begin(__func__);
  transfers_are_whole(0, 1);
}

static void transfers_are_whole_on_a_strict_direct_descriptor(void **state)
{
  (void)state;
  random_begin(__func__);
  transfers_are_whole(1, 512);
  transfers_are_whole(1, 4096);
}

static void transfers_are_whole_with_real_direct_io(void **state)
{
  enum { SIZE = 1 << 16 };
  struct cairn__fault_io fault;
  unsigned char *want = aligned_alloc(4096, SIZE);
  unsigned char *got = aligned_alloc(4096, SIZE);
  struct iovec iov = {want, SIZE};
  int fd = openat(scratch_fd, "direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC,
                  0600);

  (void)state;
  if (fd < 0) {
    free(want);
    free(got);
    skip_because("the file system has no direct I/O");
  }
  random_fill(1, want, SIZE);
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_SHORT, 0);
  assert_int_equal(cairn__io_write_full(&fault.io, fd, want, SIZE, 0), 0);
  assert_true(fault.has_fired);
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_SHORT, 0);
  assert_int_equal(cairn__io_writev_full(&fault.io, fd, &iov, 1, 0), 0);
  assert_true(fault.has_fired);
  assert_int_equal(ftruncate(fd, SIZE - 1000), 0);
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_SHORT, 0);
  assert_int_equal(cairn__io_read_full(&fault.io, fd, got, SIZE, 0),
                   SIZE - 1000);
  assert_memory_equal(got, want, SIZE - 1000);
  close(fd);
  free(want);
  free(got);
}

static void more_pieces_than_the_kernel_takes_are_written(void **state)
{
  enum { COUNT = 3000 };
  struct iovec iov[COUNT];
  static unsigned char bytes[COUNT], got[COUNT];
  int fd = openat(scratch_fd, "pieces", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  int i;

  (void)state;
  random_fill(2, bytes, COUNT);
  for (i = 0; i < COUNT; i++) {
    iov[i].iov_base = bytes + i;
    iov[i].iov_len = 1;
  }
  assert_int_equal(cairn__io_writev_full(&cairn__system_io, fd, iov, COUNT, 5),
                   0);
  assert_int_equal(cairn__io_read_full(&cairn__system_io, fd, got, COUNT, 5),
                   COUNT);
  assert_memory_equal(got, bytes, COUNT);
  close(fd);
}

static ssize_t nothing_moves(const struct cairn_io *io, int fd, const void *buf,
                             size_t n, off_t offset)
{
  (void)io;
  (void)fd;
  (void)buf;
  (void)n;
  (void)offset;
  return 0;
}

static void a_write_that_moves_nothing_is_an_error_not_a_loop(void **state)
{
  struct cairn_io io = cairn__system_io;

  (void)state;
  io.pwrite = nothing_moves;
  errno = 0;
  assert_int_equal(cairn__io_write_full(&io, -1, "x", 1, 0), -1);
  assert_int_equal(errno, EIO);
}

static void errors_come_through_with_their_errno(void **state)
{
  struct cairn__fault_io fault;
  struct iovec iov;
  char c = 0;
  int fd = openat(scratch_fd, "errors", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  (void)state;
  iov.iov_base = &c;
  iov.iov_len = 1;
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_ERRNO, EIO);
  assert_int_equal(cairn__io_read_full(&fault.io, fd, &c, 1, 0), -1);
  assert_int_equal(errno, EIO);
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_ERRNO, ENOSPC);
  assert_int_equal(cairn__io_write_full(&fault.io, fd, &c, 1, 0), -1);
  assert_int_equal(errno, ENOSPC);
  cairn__fault_io_init(&fault, 1, CAIRN__FAULT_ERRNO, EDQUOT);
  assert_int_equal(cairn__io_writev_full(&fault.io, fd, &iov, 1, 0), -1);
  assert_int_equal(errno, EDQUOT);
  close(fd);
}

static void every_descriptor_is_closed_on_exec(void **state)
{
  const struct cairn_io *io = &cairn__system_io;
  DIR *dir;
  int fd = io->openat(io, scratch_fd, "cloexec", O_RDWR | O_CREAT, 0600);

  (void)state;
  assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  assert_int_equal(io->close(io, fd), 0);
  dir = io->fdopendir(io, scratch_fd);
  assert_non_null(dir);
  assert_true(fcntl(dirfd(dir), F_GETFD) & FD_CLOEXEC);
  closedir(dir);
  /* the descriptor that was given stays open, its position where it was */
  assert_int_equal(lseek(scratch_fd, 0, SEEK_CUR), 0);
}

/* ---- removal
 * ------------------------------------------------------------------ */

static int is_there(const char *name)
{
  struct stat st;

  return fstatat(scratch_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

static void a_tree_is_removed_and_links_are_not_followed(void **state)
{
  int fds = count_fds();

  (void)state;
  must_run("mkdir -p tree/a/b/c tree/d outside && touch outside/kept "
           "tree/a/f tree/a/b/g && ln -s ../../outside tree/a/link && "
           "ln -s /nowhere tree/dangling && mkfifo tree/fifo && "
           "for i in $(seq 300); do touch tree/d/$i; done");
  assert_int_equal(cairn__io_remove_tree(&cairn__system_io, scratch_fd, "tree"),
                   0);
  assert_false(is_there("tree"));
  assert_true(is_there("outside/kept"));
  must_run("ln -s outside link");
  assert_int_equal(cairn__io_remove_tree(&cairn__system_io, scratch_fd, "link"),
                   0);
  assert_false(is_there("link"));
  assert_true(is_there("outside/kept"));
  assert_int_equal(
      cairn__io_remove_tree(&cairn__system_io, scratch_fd, "missing"), 0);
  assert_int_equal(
      cairn__io_remove_tree(&cairn__system_io, scratch_fd, "outside/kept"), 0);
  assert_false(is_there("outside/kept"));
  assert_int_equal(count_fds(), fds);
}

static void a_tree_that_is_too_deep_is_left_and_said(void **state)
{
  int fds = count_fds(), i;

  (void)state;
  must_run("d=deep; for i in $(seq 80); do d=$d/x; done; mkdir -p $d");
  errno = 0;
  assert_int_equal(cairn__io_remove_tree(&cairn__system_io, scratch_fd, "deep"),
                   -1);
  assert_int_equal(errno, ELOOP);
  assert_true(is_there("deep"));
  assert_int_equal(count_fds(), fds);
  /* from half way down it can be done */
  must_run(
      "d=x; for i in $(seq 39); do d=$d/x; done; cd deep && mv $d ../half");
  assert_int_equal(cairn__io_remove_tree(&cairn__system_io, scratch_fd, "half"),
                   0);
  for (i = 0; i < 2; i++) {
    assert_int_equal(
        cairn__io_remove_tree(&cairn__system_io, scratch_fd, "deep"), 0);
    assert_false(is_there("deep"));
  }
}

static void removal_goes_on_after_an_error_and_reports_the_first(void **state)
{
  struct cairn__fault_io fault;
  uint64_t at;
  int fds = count_fds(), failures = 0;

  (void)state;
  for (at = 1;; at++) {
    int rc;

    must_run("mkdir -p sweep/a sweep/b && touch sweep/a/1 sweep/b/2 sweep/3");
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_ERRNO, EIO);
    errno = 0;
    rc = cairn__io_remove_tree(&fault.io, scratch_fd, "sweep");
    if (!fault.has_fired) {
      assert_int_equal(rc, 0);
      break;
    }
    if (strcmp(fault.fired_at, "close") == 0) {
      assert_int_equal(rc, 0); /* of a directory that was only read */
      continue;
    }
    assert_int_equal(rc, -1);
    assert_int_equal(errno, EIO);
    failures++;
    if (at > 6) {
      /* other branches were removed all the same */
      assert_false(is_there("sweep/a/1") && is_there("sweep/b/2"));
    }
    assert_int_equal(
        cairn__io_remove_tree(&cairn__system_io, scratch_fd, "sweep"), 0);
  }
  assert_true(failures > 10);
  assert_int_equal(count_fds(), fds);
}

/* ---- faults
 * ---------------------------------------------------------------------- */

static void the_chosen_call_fails_and_only_that(void **state)
{
  struct cairn__fault_io f;
  struct stat st;

  (void)state;
  cairn__fault_io_init(&f, 2, CAIRN__FAULT_ERRNO, ENXIO);
  assert_int_equal(f.io.fstat(&f.io, scratch_fd, &st), 0);
  assert_false(f.has_fired);
  assert_int_equal(f.io.fstatat(&f.io, scratch_fd, ".", &st, 0), -1);
  assert_int_equal(errno, ENXIO);
  assert_true(f.has_fired);
  assert_string_equal(f.fired_at, "fstatat");
  assert_int_equal(f.io.fstatat(&f.io, scratch_fd, ".", &st, 0), 0);
  assert_int_equal(f.calls, 3);
}

/* Makes call number `which`; -1 or NULL counts as failed. */
static int call(struct cairn__fault_io *f, int which, const char **name,
                int *is_write)
{
  static const char *const names[] = {
      "openat",  "openat",       "close",     "pread",     "pwrite",
      "pwritev", "fsync",        "fdatasync", "ftruncate", "fstat",
      "fstatat", "lseek",        "mkdirat",   "renameat2", "unlinkat",
      "fchmod",  "futimens",     "ofd_lock",  "ioctl",     "fdopendir",
      "a point", "write_behind", "linkat"};
  const struct cairn_io *io = &f->io;
  int fd = openat(scratch_fd, "calls", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
  struct timespec times[2] = {{1, 0}, {2, 0}};
  struct stat st;
  char c = 'c';
  struct iovec iov = {&c, 1};
  DIR *dir;
  int n, rc = -1, opened;

  if (which >= (int)(sizeof names / sizeof names[0])) {
    close(fd);
    return 1;
  }
  *name = names[which];
  *is_write = which == 1 || (which >= 4 && which <= 8) || which == 12 ||
              which == 13 || which == 22;
  assert_int_equal(pwrite(fd, "12", 2, 0), 2);
  switch (which) {
  case 0:
  case 1:
    opened = io->openat(io, scratch_fd, "calls",
                        O_RDWR | (which == 1 ? O_CREAT : 0), 0600);
    rc = opened;
    if (opened >= 0) {
      close(opened);
    }
    break;
  case 2:
    rc = io->close(io, fd);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed whatever it says */
    return rc < 0 ? -1 : 0;
  case 3:
    rc = (int)io->pread(io, fd, &c, 1, 0);
    break;
  case 4:
    rc = (int)io->pwrite(io, fd, &c, 1, 0);
    break;
  case 5:
    rc = (int)io->pwritev(io, fd, &iov, 1, 0);
    break;
  case 6:
    rc = io->fsync(io, fd);
    break;
  case 7:
    rc = io->fdatasync(io, fd);
    break;
  case 8:
    rc = io->ftruncate(io, fd, 2);
    break;
  case 9:
    rc = io->fstat(io, fd, &st);
    break;
  case 10:
    rc = io->fstatat(io, scratch_fd, "calls", &st, 0);
    break;
  case 11:
    rc = (int)io->lseek(io, fd, 0, SEEK_END);
    break;
  case 12:
    rc = io->mkdirat(io, scratch_fd, "made", 0700);
    unlinkat(scratch_fd, "made", AT_REMOVEDIR);
    break;
  case 13:
    rc = io->renameat2(io, scratch_fd, "calls", scratch_fd, "calls2", 0);
    break;
  case 14:
    rc = io->unlinkat(io, scratch_fd, "calls", 0);
    break;
  case 15:
    rc = io->fchmod(io, fd, 0600);
    break;
  case 16:
    rc = io->futimens(io, fd, times);
    break;
  case 17:
    rc = io->ofd_lock(io, fd, F_OFD_SETLK, &lock);
    break;
  case 18:
    rc = io->ioctl(io, fd, FIONREAD, &n);
    break;
  case 19:
    dir = io->fdopendir(io, scratch_fd);
    rc = dir != NULL ? 0 : -1;
    if (dir != NULL) {
      closedir(dir);
    }
    break;
  case 20:
    rc = io->point(io, "a point");
    break;
  case 21:
    rc = io->write_behind(io, fd, 0, 1);
    break;
  case 22:
    rc = io->linkat(io, scratch_fd, "calls", scratch_fd, "linked");
    unlinkat(scratch_fd, "linked", 0);
    break;
  default:
    break;
  }
  close(fd);
  return rc < 0 ? -1 : 0;
}

static void every_entry_counts_works_and_can_fail(void **state)
{
  static const int kinds[] = {CAIRN__FAULT_NONE, CAIRN__FAULT_ERRNO,
                              CAIRN__FAULT_SHORT, CAIRN__FAULT_ENOSPC_ON};
  int which, k, fds = count_fds();

  (void)state;
  for (which = 0;; which++) {
    for (k = 0; k < 4; k++) {
      struct cairn__fault_io f;
      const char *name;
      int is_write, rc, is_hit;

      cairn__fault_io_init(&f, 1, kinds[k], EBADMSG);
      rc = call(&f, which, &name, &is_write);
      if (rc == 1) {
        assert_int_equal(which, 23);
        assert_int_equal(count_fds(), fds);
        return;
      }
      assert_int_equal(f.calls, 1);
      is_hit = kinds[k] == CAIRN__FAULT_ERRNO ||
               (kinds[k] == CAIRN__FAULT_ENOSPC_ON && is_write) ||
               (kinds[k] == CAIRN__FAULT_SHORT && which >= 3 && which <= 5);
      if (rc != (is_hit ? -1 : 0) || f.has_fired != is_hit) {
        fail_msg("%s under fault %d: result %d, fired %d", name, kinds[k], rc,
                 f.has_fired);
      }
      if (is_hit) {
        assert_string_equal(f.fired_at, name);
      }
    }
  }
}

static void a_full_disk_stays_full(void **state)
{
  struct cairn__fault_io f;
  struct stat st;
  int fd = openat(scratch_fd, "full", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  (void)state;
  cairn__fault_io_init(&f, 2, CAIRN__FAULT_ENOSPC_ON, 0);
  assert_int_equal(f.io.pwrite(&f.io, fd, "a", 1, 0), 1);
  assert_int_equal(f.io.fstat(&f.io, fd, &st), 0);
  assert_false(f.has_fired);
  assert_int_equal(f.io.fdatasync(&f.io, fd), -1);
  assert_int_equal(errno, ENOSPC);
  assert_int_equal(f.io.pwrite(&f.io, fd, "a", 1, 0), -1);
  assert_int_equal(f.io.mkdirat(&f.io, scratch_fd, "no", 0700), -1);
  assert_int_equal(f.io.close(&f.io, fd), 0);
  assert_string_equal(f.fired_at, "fdatasync");
}

static void a_kill_ends_the_process_before_the_call(void **state)
{
  int status;
  pid_t child = fork();

  (void)state;
  if (child == 0) {
    struct cairn__fault_io f;

    cairn__fault_io_init(&f, 1, CAIRN__FAULT_KILL, 0);
    f.io.mkdirat(&f.io, scratch_fd, "never", 0700);
    _exit(0);
  }
  assert_true(child > 0);
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 137);
  assert_false(is_there("never"));
}

static void *many_calls(void *arg)
{
  struct cairn__fault_io *f = arg;
  struct stat st;
  long failed = 0;
  int i;

  for (i = 0; i < 1000; i++) {
    failed += f->io.fstat(&f->io, scratch_fd, &st) != 0;
  }
  return (void *)failed;
}

static void one_call_fails_among_those_of_many_threads(void **state)
{
  struct cairn__fault_io f;
  pthread_t threads[4];
  long failed = 0;
  int i;

  (void)state;
  cairn__fault_io_init(&f, 1777, CAIRN__FAULT_ERRNO, EIO);
  for (i = 0; i < 4; i++) {
    assert_int_equal(pthread_create(&threads[i], NULL, many_calls, &f), 0);
  }
  for (i = 0; i < 4; i++) {
    void *result;

    pthread_join(threads[i], &result);
    failed += (long)result;
  }
  assert_int_equal(f.calls, 4000);
  assert_int_equal(failed, 1);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(transfers_are_whole_over_short_and_interrupted_calls),
      cmocka_unit_test(transfers_are_whole_on_a_strict_direct_descriptor),
      cmocka_unit_test(transfers_are_whole_with_real_direct_io),
      cmocka_unit_test(more_pieces_than_the_kernel_takes_are_written),
      cmocka_unit_test(a_write_that_moves_nothing_is_an_error_not_a_loop),
      cmocka_unit_test(errors_come_through_with_their_errno),
      cmocka_unit_test(every_descriptor_is_closed_on_exec),
      cmocka_unit_test(a_tree_is_removed_and_links_are_not_followed),
      cmocka_unit_test(a_tree_that_is_too_deep_is_left_and_said),
      cmocka_unit_test(removal_goes_on_after_an_error_and_reports_the_first),
      cmocka_unit_test(the_chosen_call_fails_and_only_that),
      cmocka_unit_test(every_entry_counts_works_and_can_fail),
      cmocka_unit_test(a_full_disk_stays_full),
      cmocka_unit_test(a_kill_ends_the_process_before_the_call),
      cmocka_unit_test(one_call_fails_among_those_of_many_threads),
  };

  return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
