/* target.c: see target.h. From the directory down: its device, the disk that
 * a partition belongs to, the devices that a volume is made of, the file
 * behind a loop device and the device under that file's file system. */
#include "target.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "error.h"

#define MAX_DEPTH 16

static int is_on(dev_t device, const struct stat *source, int depth);

/* The "major:minor" in a file; 0 or -1 */
static int read_device(const char *path, dev_t *device)
{
  unsigned major_number, minor_number;
  int n;
  FILE *f = fopen(path, "re");

  if (!f)
    return -1;
  n = fscanf(f, "%u:%u", &major_number, &minor_number);
  fclose(f);
  if (n != 2)
    return -1;
  *device = makedev(major_number, minor_number);
  return 0;
}

static int is_partition_on(const char *sys, const struct stat *source,
                           int depth)
{
  char path[PATH_MAX];
  dev_t disk;

  if (snprintf(path, sizeof path, "%s/partition", sys) >= (int)sizeof path ||
      access(path, F_OK) != 0 ||
      snprintf(path, sizeof path, "%s/../dev", sys) >= (int)sizeof path ||
      read_device(path, &disk) != 0)
    return 0;
  return is_on(disk, source, depth + 1);
}

static int is_volume_on(const char *sys, const struct stat *source, int depth)
{
  char path[PATH_MAX];
  struct dirent *e;
  int result = 0;
  DIR *slaves;

  if (snprintf(path, sizeof path, "%s/slaves", sys) >= (int)sizeof path)
    return 0;
  slaves = opendir(path);
  if (!slaves)
    return 0;
  while (!result && (e = readdir(slaves)) != NULL) {
    dev_t device;

    if (e->d_name[0] == '.' || snprintf(path, sizeof path, "%s/slaves/%s/dev",
                                        sys, e->d_name) >= (int)sizeof path)
      continue;
    if (read_device(path, &device) == 0)
      result = is_on(device, source, depth + 1);
  }
  closedir(slaves);
  return result;
}

static int is_loop_on(const char *sys, const struct stat *source, int depth)
{
  char path[PATH_MAX], file[PATH_MAX];
  struct stat st;
  FILE *f;
  char *got;

  if (snprintf(path, sizeof path, "%s/loop/backing_file", sys) >=
      (int)sizeof path)
    return 0;
  f = fopen(path, "re");
  if (!f)
    return 0;
  got = fgets(file, sizeof file, f);
  fclose(f);
  if (!got)
    return 0;
  file[strcspn(file, "\n")] = '\0';
  if (stat(file, &st) != 0)
    return 0;
  if (S_ISBLK(st.st_mode))
    return is_on(st.st_rdev, source, depth + 1);
  if (!S_ISBLK(source->st_mode) && st.st_dev == source->st_dev &&
      st.st_ino == source->st_ino)
    return 1;
  return is_on(st.st_dev, source, depth + 1);
}

static int is_on(dev_t device, const struct stat *source, int depth)
{
  char sys[64], path[PATH_MAX];

  if (S_ISBLK(source->st_mode) && source->st_rdev == device)
    return 1;
  if (depth == MAX_DEPTH)
    return 0;
  snprintf(sys, sizeof sys, "/sys/dev/block/%u:%u", major(device),
           minor(device));
  if (!realpath(sys, path))
    return 0;
  return is_partition_on(path, source, depth) ||
         is_volume_on(path, source, depth) || is_loop_on(path, source, depth);
}

/* btrfs and others show a device number of their own: the mount table knows
 * the device. 0 or -1. */
static int mounted_device(int dirfd, dev_t *device)
{
  char line[2 * PATH_MAX];
  struct statx stx;
  int result = -1;
  FILE *f;

  if (statx(dirfd, "", AT_EMPTY_PATH, STATX_MNT_ID, &stx) != 0 ||
      !(stx.stx_mask & STATX_MNT_ID))
    return -1;
  f = fopen("/proc/self/mountinfo", "re");
  if (!f)
    return -1;
  while (fgets(line, sizeof line, f)) {
    char *rest, *at;
    struct stat st;

    if (strtoull(line, &rest, 10) != stx.stx_mnt_id || *rest != ' ')
      continue;
    /* "... - type source options" */
    at = strstr(rest, " - ");
    if (at && strtok_r(at + 3, " \n", &rest) &&
        (at = strtok_r(NULL, " \n", &rest)) != NULL && at[0] == '/' &&
        stat(at, &st) == 0 && S_ISBLK(st.st_mode)) {
      *device = st.st_rdev;
      result = 0;
    }
    break;
  }
  fclose(f);
  return result;
}

int cairn__target_check(int dirfd, const char *directory,
                        const struct stat *source, const char *source_path,
                        struct cairn_error *err)
{
  char shown[512], shown_source[512];
  struct stat st;
  dev_t device;

  if (fstat(dirfd, &st) != 0)
    return 0;
  if (!is_on(st.st_dev, source, 0) &&
      (mounted_device(dirfd, &device) != 0 || !is_on(device, source, 0)))
    return 0;
  cairn__fail(err, CAIRN_E_TARGET_IN_SOURCE,
              "the export directory \"%s\" lies inside \"%s\", which is to be "
              "exported; choose one on another disk",
              cairn__printable(directory, shown, sizeof shown),
              cairn__printable(source_path, shown_source, sizeof shown_source));
  cairn__error_set_path(err, source_path, -1);
  return -1;
}
