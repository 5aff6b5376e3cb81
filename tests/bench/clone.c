/* How long it takes to clone a disk, and to find what has changed between two
 * clones, by the number of extents.
 *
 *   clone DIRECTORY [EXTENTS]      on XFS or btrfs; default 100000
 *
 * The disk is 10 GiB, sparse, with extents of 4 KiB; 1 % of them is written
 * anew between the two clones. Prints one line a figure: name, number, unit.
 * Removes what it has made. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "export/clone.h"

#define SIZE (UINT64_C(10) << 30)
#define PAGE 4096u

static double seconds(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
  perror(what);
  exit(1);
}

/* Every step-th extent. */
static void write_extents(const char *path, uint64_t extents, uint64_t step)
{
  uint64_t stride = SIZE / extents / PAGE * PAGE;
  static unsigned char page[PAGE];
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  if (fd < 0 || ftruncate(fd, (off_t)SIZE) != 0)
    die(path);
  for (uint64_t i = 0; i < extents; i += step) {
    memset(page, (int)(i % 251 + step), sizeof page);
    if (pwrite(fd, page, sizeof page, (off_t)(i * stride)) != PAGE)
      die(path);
  }
  if (fsync(fd) != 0)
    die(path);
  close(fd);
}

static int make_clone(const char *path, int dirfd, const char *name)
{
  struct cairn__held held;
  struct cairn_error err;
  char reason[256] = "";
  double start;
  int fd, rc;

  if (cairn__held_open(&cairn__system_io, path, 0, &held, &err) != 0) {
    fprintf(stderr, "clone: %s\n", err.message);
    exit(1);
  }
  start = seconds();
  rc = cairn__clone_make(&cairn__system_io, NULL, &held, dirfd, name, name, &fd,
                         reason, sizeof reason, &err);
  printf("%-32s %10.3f s\n", "make a clone", seconds() - start);
  if (rc != 0) {
    fprintf(stderr, "clone: %s\n", rc == 1 ? reason : err.message);
    exit(1);
  }
  cairn__held_close(&held);
  return fd;
}

static void find_changes(int base, int now)
{
  struct cairn__changes *c;
  struct cairn_error err;
  char reason[256] = "";
  double start;
  int rc;

  if (cairn__changes_new(SIZE, &c, &err) != 0)
    die("changes");
  start = seconds();
  rc = cairn__clone_changes(&cairn__system_io, NULL, base, now, SIZE, c, reason,
                            sizeof reason, &err);
  printf("%-32s %10.3f s\n", "find what has changed", seconds() - start);
  if (rc != 0) {
    fprintf(stderr, "clone: %s\n", rc == 1 ? reason : err.message);
    exit(1);
  }
  printf("%-32s %10llu\n", "blocks marked",
         (unsigned long long)cairn__changes_count(c));
  cairn__changes_free(c);
}

int main(int argc, char **argv)
{
  uint64_t extents = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000;
  int dirfd, base, now;

  if (argc < 2 || extents == 0 || extents > SIZE / (2 * PAGE)) {
    fprintf(stderr, "usage: clone DIRECTORY [EXTENTS]\n");
    return 2;
  }
  if (chdir(argv[1]) != 0)
    die(argv[1]);
  dirfd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  write_extents("bench-disk", extents, 1);
  printf("%-32s %10llu\n", "extents", (unsigned long long)extents);
  base = make_clone("bench-disk", dirfd, "bench-base");
  write_extents("bench-disk", extents, 100);
  now = make_clone("bench-disk", dirfd, "bench-now");
  find_changes(base, now);
  close(base);
  close(now);
  close(dirfd);
  return unlink("bench-disk") != 0 || unlink("bench-base") != 0 ||
         unlink("bench-now") != 0;
}
