/* The lock protocol, judged by processes that hold QEMU's locks and by QEMU
 * itself; and what may be opened as a source at all. */
#include "scratch.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "export/lock.h"
#include "skip.h"

static struct cairn_error err;

static char *path_of(const char *name)
{
  static char path[512];

  snprintf(path, sizeof path, "%s/%s", scratch_path, name);
  return path;
}

static void make_file(const char *name, size_t n)
{
  unsigned char *data = malloc(n + 1);

  assert_non_null(data);
  random_fill(n, data, n);
  spill(name, data, n);
  free(data);
}

static int open_held(const char *name, struct cairn__held *h)
{
  memset(&err, 0, sizeof err);
  return cairn__held_open(&cairn__system_io, path_of(name), 0, h, &err);
}

static void expect_refused(const char *name, int id, const char *says)
{
  struct cairn__held h;

  assert_int_equal(open_held(name, &h), -1);
  assert_int_equal(err.id, id);
  if (!strstr(err.message, says))
    fail_msg("\"%s\" is not in: %s", says, err.message);
  assert_int_equal(h.fd, -1);
}

/* A child that holds a lock on one byte. */
struct holder {
  const char *file, *name; /* what /proc calls the process; NULL: as it is */
  off_t byte;
  short type;
  int ms;        /* until it ends; -1: until it is ended */
  int is_thread; /* its first thread has ended, and the rest is not seen to have
                    the file */
  int ready;     /* it is as it shall be: a byte is written there */
};

static void stay(const struct holder *h)
{
  if (write(h->ready, "x", 1) == 1)
    poll(NULL, 0, h->ms);
  _exit(0);
}

static void *stay_without_the_first(void *holder)
{
  DIR *files = opendir("/proc/self/fd");

  while (files) { /* until it has ended there are "." and ".." and more */
    closedir(files);
    poll(NULL, 0, 1);
    files = opendir("/proc/self/fd");
    if (files && readdir(files) && readdir(files) && !readdir(files))
      break;
  }
  stay(holder);
  return NULL;
}

static void hold_here(struct holder *h)
{
  struct flock lock = {
      .l_type = h->type, .l_whence = SEEK_SET, .l_start = h->byte, .l_len = 1};
  int fd = open(path_of(h->file), O_RDWR);
  pthread_t thread;

  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || fd < 0 ||
      fcntl(fd, F_OFD_SETLK, &lock) != 0 ||
      (h->name && prctl(PR_SET_NAME, h->name) != 0))
    _exit(1);
  if (!h->is_thread)
    stay(h);
  if (pthread_create(&thread, NULL, stay_without_the_first, h) == 0)
    syscall(SYS_exit, 0);
  _exit(1);
}

static pid_t hold(struct holder h)
{
  int ready[2];
  char c;
  pid_t pid;

  assert_int_equal(pipe(ready), 0);
  h.ready = ready[1];
  pid = fork();
  assert_true(pid >= 0);
  if (pid == 0)
    hold_here(&h);
  close(ready[1]);
  assert_int_equal(read(ready[0], &c, 1), 1);
  close(ready[0]);
  return pid;
}

static pid_t hold_byte(const char *file, off_t byte, short type)
{
  return hold(
      (struct holder){.file = file, .byte = byte, .type = type, .ms = -1});
}

/* As one who writes. */
static pid_t hold_as(const char *file, const char *name, int ms)
{
  return hold((struct holder){
      .file = file, .name = name, .byte = 101, .type = F_WRLCK, .ms = ms});
}

static void end_child(pid_t pid)
{
  kill(pid, SIGKILL);
  assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* ---- processes with locks ------------------------------------------------ */

static void refuses_what_a_writer_holds_and_names_it(void **state)
{
  static const off_t bytes[] = {101, 103, 200};

  (void)state;
  make_file("disk", 5000);
  for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
    pid_t pid = hold_byte("disk", bytes[i], F_RDLCK);
    char who[32];

    snprintf(who, sizeof who, "process %d (", (int)pid);
    expect_refused("disk", CAIRN_E_SOURCE_IN_USE, who);
    end_child(pid);
  }
}

/* What a killed export has left, until it is gone; a machine is not waited for.
 */
static void waits_for_tools_and_for_nobody_else(void **state)
{
  struct cairn__held h;
  pid_t pid;

  (void)state;
  make_file("disk", 5000);
  pid = hold_as("disk", "qemu-img", 200);
  assert_int_equal(
      cairn__held_await(&cairn__system_io, path_of("disk"), NULL, &err), 0);
  assert_int_equal(open_held("disk", &h), 0);
  cairn__held_close(&h);
  assert_int_equal(waitpid(pid, NULL, 0), pid);

  /* of which only a thread is left, and nothing is seen */
  pid = hold((struct holder){
      .file = "disk", .byte = 101, .type = F_WRLCK, .ms = 200, .is_thread = 1});
  assert_int_equal(open_held("disk", &h), -1);
  assert_int_equal(
      cairn__held_await(&cairn__system_io, path_of("disk"), NULL, &err), 0);
  assert_int_equal(open_held("disk", &h), 0);
  cairn__held_close(&h);
  assert_int_equal(waitpid(pid, NULL, 0), pid);

  pid = hold_as("disk", "qemu-system-x86", -1);
  assert_int_equal(
      cairn__held_await(&cairn__system_io, path_of("disk"), NULL, &err), 0);
  expect_refused("disk", CAIRN_E_SOURCE_IN_USE, "(qemu-system-x86)");
  end_child(pid);

  pid = hold_as("disk", "qemu-nbd", -1); /* a server that stays */
  assert_int_equal(
      cairn__held_await(&cairn__system_io, path_of("disk"), NULL, &err), 0);
  expect_refused("disk", CAIRN_E_SOURCE_IN_USE, "(qemu-nbd)");
  end_child(pid);
  assert_int_equal(
      cairn__held_await(&cairn__system_io, path_of("missing"), NULL, &err), 0);
}

static void refuses_an_exclusive_lock(void **state)
{
  pid_t pid;

  (void)state;
  make_file("disk", 5000);
  pid = hold_byte("disk", 100, F_WRLCK);
  expect_refused("disk", CAIRN_E_SOURCE_IN_USE, "locked exclusively");
  end_child(pid);
}

static void lets_other_readers_be(void **state)
{
  struct cairn__held a, b;
  pid_t pid;

  (void)state;
  make_file("disk", 5000);
  pid = hold_byte("disk", 100, F_RDLCK);
  assert_int_equal(open_held("disk", &a), 0);
  assert_int_equal(open_held("disk", &b), 0);
  assert_int_equal(a.size, 5000);
  assert_false(a.is_block);
  assert_true(a.is_locked);
  cairn__held_close(&a);
  cairn__held_close(&b);
  cairn__held_close(&b); /* idempotent */
  end_child(pid);
}

/* ---- QEMU ---------------------------------------------------------------- */

/* qemu-io on the disk, waiting for commands until its input ends. */
struct qemu {
  pid_t pid;
  int in;
};

static struct qemu start_qemu_io(const char *name, int is_read_only)
{
  int in[2], out[2];
  struct qemu q;
  struct pollfd p;

  assert_int_equal(pipe(in), 0);
  assert_int_equal(pipe(out), 0);
  q.pid = fork();
  assert_true(q.pid >= 0);
  if (q.pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    close(in[0]);
    close(in[1]);
    close(out[0]);
    close(out[1]);
    if (is_read_only)
      execlp("qemu-io", "qemu-io", "-r", "-f", "raw", path_of(name),
             (char *)NULL);
    else
      execlp("qemu-io", "qemu-io", "-f", "raw", path_of(name), (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  q.in = in[1];
  /* An answer means that the image is open. */
  assert_int_equal(write(q.in, "length\n", 7), 7);
  p.fd = out[0];
  p.events = POLLIN;
  assert_int_equal(poll(&p, 1, 20000), 1);
  close(out[0]);
  return q;
}

static void stop_qemu_io(struct qemu q)
{
  close(q.in);
  end_child(q.pid);
}

static void refuses_a_disk_that_qemu_writes(void **state)
{
  struct qemu q;

  (void)state;
  make_file("disk", 1 << 20);
  q = start_qemu_io("disk", 0);
  expect_refused("disk", CAIRN_E_SOURCE_IN_USE, "open for writing");
  stop_qemu_io(q);
}

static void accepts_a_disk_that_qemu_reads(void **state)
{
  struct cairn__held h;
  struct qemu q;

  (void)state;
  make_file("disk", 1 << 20);
  q = start_qemu_io("disk", 1);
  assert_int_equal(open_held("disk", &h), 0);
  cairn__held_close(&h);
  stop_qemu_io(q);
}

static void keeps_qemu_from_writing(void **state)
{
  struct cairn__held h;
  char *said;

  (void)state;
  make_file("disk", 1 << 20);
  assert_int_equal(open_held("disk", &h), 0);
  assert_int_not_equal(run(&said, "qemu-io -f raw -c 'write 0 512' disk"), 0);
  assert_non_null(strstr(said, "lock"));
  free(said);
  must_run("qemu-io -r -f raw -c 'read 0 512' disk");
  assert_int_equal(cairn__held_check_still(&h, &err), 0);
  cairn__held_close(&h);
  must_run("qemu-io -f raw -c 'write 0 512' disk");
}

/* ---- what may be opened -------------------------------------------------- */

static void opens_nothing_but_files_and_block_devices(void **state)
{
  struct cairn__held h;

  (void)state;
  assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
  assert_int_equal(mkdir(path_of("dir"), 0700), 0);
  alarm(20); /* a fifo must not be waited for */
  expect_refused("fifo", CAIRN_E_BAD_PATH, "a fifo");
  alarm(0);
  expect_refused("dir", CAIRN_E_BAD_PATH, "a directory");
  expect_refused("absent", CAIRN_E_SOURCE_MISSING, "absent");
  expect_refused("dir/absent/x", CAIRN_E_SOURCE_MISSING, "absent");
  assert_int_equal(
      cairn__held_open(&cairn__system_io, "/dev/null", 0, &h, &err), -1);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  assert_non_null(strstr(err.message, "a character device"));
}

static void names_a_source_that_may_not_be_read(void **state)
{
  (void)state;
  if (geteuid() == 0) {
    pid_t pid;
    int status;

    make_file("secret", 10);
    assert_int_equal(chmod(path_of("secret"), 0), 0);
    assert_int_equal(chmod(scratch_path, 0755), 0);
    pid = fork();
    if (pid == 0) {
      struct cairn__held h;

      if (setgid(65534) != 0 || setuid(65534) != 0)
        _exit(2);
      _exit(open_held("secret", &h) == -1 && err.id == CAIRN_E_PERMISSION_DENIED
                ? 0
                : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    return;
  }
  make_file("secret", 10);
  assert_int_equal(chmod(path_of("secret"), 0), 0);
  expect_refused("secret", CAIRN_E_PERMISSION_DENIED, "secret");
}

/* ---- standing still ------------------------------------------------------ */

static void expect_changed(const struct cairn__held *h, const char *what)
{
  memset(&err, 0, sizeof err);
  assert_int_equal(cairn__held_check_still(h, &err), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_CHANGED);
  if (!strstr(err.message, what))
    fail_msg("\"%s\" is not in: %s", what, err.message);
}

static void sees_every_change_of_a_file(void **state)
{
  struct timespec old = {.tv_sec = 1000};
  struct cairn__held h;

  (void)state;
  make_file("disk", 8192);
  assert_int_equal(open_held("disk", &h), 0);
  assert_int_equal(cairn__held_check_still(&h, &err), 0);
  make_file("disk", 8192);
  expect_changed(&h, "time");
  cairn__held_close(&h);

  assert_int_equal(open_held("disk", &h), 0);
  assert_int_equal(truncate(path_of("disk"), 8191), 0);
  expect_changed(&h, "size");
  cairn__held_close(&h);

  /* Its times put back, the change time tells. */
  assert_int_equal(open_held("disk", &h), 0);
  {
    struct timespec times[2] = {old, h.st.st_mtim};
    int fd = open(path_of("disk"), O_WRONLY);

    assert_int_equal(pwrite(fd, "!", 1, 0), 1);
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
  }
  expect_changed(&h, "change time");
  cairn__held_close(&h);

  /* Replaced by another: the one that is open was unlinked. */
  assert_int_equal(open_held("disk", &h), 0);
  make_file("other", 8191);
  assert_int_equal(renameat(scratch_fd, "other", scratch_fd, "disk"), 0);
  expect_changed(&h, "time");
  cairn__held_close(&h);
}

/* ---- block devices ------------------------------------------------------- */

static void takes_a_block_device_only_when_it_is_free(void **state)
{
  char *loop, device[64];
  struct cairn__held h, again;
  size_t n;

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("truncate -s 8M image && mkfs.ext4 -q -F image");
  if (run(&loop, "losetup --find --show image") != 0) {
    free(loop);
    skip_because("needs a free loop device");
    return;
  }
  snprintf(device, sizeof device, "%s", loop);
  free(loop);
  device[strcspn(device, "\n")] = '\0';

  n = 8 << 20;
  assert_int_equal(cairn__held_open(&cairn__system_io, device, 0, &h, &err), 0);
  assert_true(h.is_block);
  assert_int_equal(h.size, n);
  assert_int_equal(cairn__held_check_still(&h, &err), 0);
  /* held: nobody else gets it exclusively, nor can it be mounted */
  assert_int_equal(cairn__held_open(&cairn__system_io, device, 0, &again, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
  assert_non_null(strstr(err.message, "assume_quiescent"));
  must_run("mkdir -p mnt");
  assert_int_not_equal(run(NULL, "mount %s mnt", device), 0);
  cairn__held_close(&h);

  if (run(NULL, "mount %s mnt", device) == 0) {
    int code = cairn__held_open(&cairn__system_io, device, 0, &h, &err);
    int id = err.id;
    int vouched = cairn__held_open(&cairn__system_io, device, 1, &again, &err);

    if (vouched == 0)
      cairn__held_close(&again);
    must_run("umount mnt");
    assert_int_equal(code, -1);
    assert_int_equal(id, CAIRN_E_SOURCE_IN_USE);
    assert_int_equal(vouched, 0);
  }
  must_run("losetup -d %s", device);
}

static void
takes_a_file_behind_a_loop_device_only_when_it_is_still(void **state)
{
  static const char *const options[] = {"", "-r"};

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  make_file("backing", 1 << 20);
  for (int is_read_only = 0; is_read_only < 2; is_read_only++) {
    char *loop;
    struct cairn__held h, vouched;
    int code, vouched_code;

    if (run(&loop, "losetup %s --find --show backing", options[is_read_only]) !=
        0) {
      free(loop);
      skip_because("needs a free loop device");
      return;
    }
    loop[strcspn(loop, "\n")] = '\0';
    vouched_code = cairn__held_open(&cairn__system_io, path_of("backing"), 1,
                                    &vouched, &err);
    code = open_held("backing", &h);
    must_run("losetup -d %s", loop);
    assert_int_equal(vouched_code, 0);
    assert_int_equal(code, is_read_only ? 0 : -1);
    if (code != 0) {
      assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
      assert_non_null(strstr(err.message, loop));
    }
    cairn__held_close(&h);
    cairn__held_close(&vouched);
    free(loop);
  }
  {
    struct cairn__held h;

    assert_int_equal(open_held("backing", &h), 0);
    cairn__held_close(&h);
  }
}

static void leaves_no_descriptor_behind(void **state)
{
  struct cairn__held h;
  int before = count_fds();

  (void)state;
  make_file("disk", 4096);
  assert_int_equal(open_held("disk", &h), 0);
  cairn__held_close(&h);
  expect_refused("nothing", CAIRN_E_SOURCE_MISSING, "nothing");
  assert_int_equal(count_fds(), before);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(refuses_what_a_writer_holds_and_names_it),
      cmocka_unit_test(waits_for_tools_and_for_nobody_else),
      cmocka_unit_test(refuses_an_exclusive_lock),
      cmocka_unit_test(lets_other_readers_be),
      cmocka_unit_test(refuses_a_disk_that_qemu_writes),
      cmocka_unit_test(accepts_a_disk_that_qemu_reads),
      cmocka_unit_test(keeps_qemu_from_writing),
      cmocka_unit_test(opens_nothing_but_files_and_block_devices),
      cmocka_unit_test(names_a_source_that_may_not_be_read),
      cmocka_unit_test(sees_every_change_of_a_file),
      cmocka_unit_test(takes_a_block_device_only_when_it_is_free),
      cmocka_unit_test(takes_a_file_behind_a_loop_device_only_when_it_is_still),
      cmocka_unit_test(leaves_no_descriptor_behind),
  };

  return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
