/* resume.c: see resume.h. */
#include "resume.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "error.h"
#include "index.h"
#include "journal.h"
#include "json.h"
#include "manifest.h"
#include "memory.h"

#define PLAN_NEW     CAIRN__PLAN_NAME ".new"
#define PLAN_MAX     (16u << 20)
#define PLAN_FORMAT  "cairn-work"
#define PLAN_VERSION 1
#define HEX_SIZE     (2 * CAIRN__SECRET_SIZE + 1)

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static int fail_path(struct cairn_error *err, int errnum, const char *what,
                     const char *path, const char *name)
{
  char shown[512];

  return cairn__fail_errno(err, errnum, path, -1, "cannot %s \"%s/%s\"", what,
                           cairn__printable(path, shown, sizeof shown), name);
}

/* ---- the plan ------------------------------------------------------------ */

static void write_hex(const unsigned char *secret, char out[HEX_SIZE])
{
  for (size_t i = 0; i < CAIRN__SECRET_SIZE; i++)
    snprintf(out + 2 * i, 3, "%02x", secret[i]);
}

static int read_hex(const char *text, unsigned char *secret)
{
  static const char digits[] = "0123456789abcdef";

  if (!text || strlen(text) != HEX_SIZE - 1)
    return 0;
  for (size_t i = 0; i < CAIRN__SECRET_SIZE; i++) {
    const char *high = strchr(digits, text[2 * i]);
    const char *low = strchr(digits, text[2 * i + 1]);

    if (!high || !low)
      return 0;
    secret[i] = (unsigned char)((high - digits) << 4 | (low - digits));
  }
  return 1;
}

json_t *cairn__plan_new(const char *collection, const char *instance,
                        const char *point, int64_t unix_us,
                        const char *image_format, int is_marker,
                        const struct cairn__digester *digester)
{
  char hex[HEX_SIZE];
  json_t *plan;

  write_hex(digester->secret, hex);
  plan =
      json_pack("{s:s, s:i, s:s, s:s, s:s, s:I, s:s, s:s, s:s?, s:b, s:[]}",
                "format", PLAN_FORMAT, "version", PLAN_VERSION, "CollectionId",
                collection, "InstanceID", instance, "ReferencePointGroupId",
                point, "unix_us", (json_int_t)unix_us, "algorithm",
                cairn__digest_algorithm_name(digester->algorithm),
                "image_format", image_format, "secret",
                digester->algorithm == CAIRN__XXH3_128 ? hex : NULL,
                "is_marker", is_marker, "disks");
  explicit_bzero(hex, sizeof hex);
  return plan;
}

int cairn__plan_add(json_t *plan, const char *machine, const char *disk,
                    const char *name, const char *base, uint64_t length,
                    const unsigned char *origin)
{
  char text[37];
  uuid_t id;

  if (origin)
    uuid_copy(id, origin);
  else
    uuid_generate_random(id);
  uuid_unparse_upper(id, text);
  return json_array_append_new(
      json_object_get(plan, "disks"),
      json_pack("{s:s, s:s, s:s, s:s?, s:I, s:s}", "VirtualMachineId", machine,
                "disk", disk, "name", name, "base", base, "length",
                (json_int_t)length, "origin", text));
}

static int write_text(const struct cairn_io *io, int workfd, const char *path,
                      const char *text, struct cairn_error *err)
{
  int fd, result = 0;

  if (io->unlinkat(io, workfd, PLAN_NEW, 0) != 0 && errno != ENOENT)
    return fail_path(err, errno, "remove", path, PLAN_NEW);
  fd = io->openat(io, workfd, PLAN_NEW, O_WRONLY | O_CREAT | O_EXCL, 0600);
  if (fd < 0)
    return fail_path(err, errno, "create", path, PLAN_NEW);
  if (cairn__io_write_full(io, fd, text, strlen(text), 0) != 0 ||
      io->fsync(io, fd) != 0)
    result = fail_path(err, errno, "write", path, PLAN_NEW);
  (void)io->close(io, fd);
  if (result == 0 &&
      (io->renameat2(io, workfd, PLAN_NEW, workfd, CAIRN__PLAN_NAME, 0) != 0 ||
       io->fsync(io, workfd) != 0))
    result = fail_path(err, errno, "write", path, CAIRN__PLAN_NAME);
  return result;
}

int cairn__plan_write(const struct cairn_io *io, int workfd, const char *path,
                      const json_t *plan, struct cairn_error *err)
{
  char *text = cairn__json_dump(plan, JSON_INDENT(2)), *whole = NULL;
  char sum[CAIRN__SUM_TEXT];
  int result;

  if (text) {
    cairn__text_sum(text, strlen(text), sum);
    whole = cairn__format("%s\n%s\n", text, sum);
  }
  cairn__free(text);
  if (!whole)
    return cairn__fail_memory(err);
  result = write_text(io, workfd, path, whole, err);
  cairn__free(whole);
  return result;
}

/* The sum is the last line: how many bytes it proves, or 0. A plan that was
 * damaged might be taken for that of another collection, and stay. */
static size_t proved(const char *text, size_t n)
{
  char sum[CAIRN__SUM_TEXT];
  size_t tail = 1 + (CAIRN__SUM_TEXT - 1) + 1;

  if (n <= tail || text[n - tail] != '\n' || text[n - 1] != '\n')
    return 0;
  cairn__text_sum(text, n - tail, sum);
  return memcmp(text + n - tail + 1, sum, CAIRN__SUM_TEXT - 1) == 0 ? n - tail
                                                                    : 0;
}

static json_t *parse(const struct cairn_io *io, int fd)
{
  char *text = cairn__malloc(PLAN_MAX);
  ssize_t n = text ? cairn__io_read_full(io, fd, text, PLAN_MAX, 0) : -1;
  size_t length = n > 0 ? proved(text, (size_t)n) : 0;
  json_t *plan = NULL;

  if (length > 0)
    plan = cairn__json_load(text, length, JSON_REJECT_DUPLICATES, NULL);
  cairn__free(text);
  return plan;
}

static int is_sound(const json_t *plan)
{
  const char *format = text_of(plan, "format");

  return format && strcmp(format, PLAN_FORMAT) == 0 &&
         json_integer_value(json_object_get(plan, "version")) == PLAN_VERSION &&
         text_of(plan, "CollectionId") && text_of(plan, "algorithm") &&
         text_of(plan, "ReferencePointGroupId") &&
         text_of(plan, "image_format") &&
         json_is_array(json_object_get(plan, "disks"));
}

json_t *cairn__plan_read(const struct cairn_io *io, int workfd)
{
  int fd = io->openat(io, workfd, CAIRN__PLAN_NAME,
                      O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
  json_t *plan;

  if (fd < 0)
    return NULL;
  plan = parse(io, fd);
  (void)io->close(io, fd);
  if (plan && is_sound(plan))
    return plan;
  json_decref(plan);
  return NULL;
}

int cairn__plan_is_of(const json_t *plan, const struct cairn__wanted *wanted)
{
  int is_marker = json_is_true(json_object_get(plan, "is_marker"));

  if (!wanted->marker)
    return !is_marker &&
           strcmp(text_of(plan, "CollectionId"), wanted->collection) == 0;
  return is_marker &&
         strcmp(text_of(plan, "ReferencePointGroupId"), wanted->marker) == 0;
}

int cairn__plan_is_orphan(const json_t *plan, const json_t *index)
{
  return json_is_true(json_object_get(plan, "is_marker")) && index &&
         !cairn__index_marker(index, text_of(plan, "ReferencePointGroupId"));
}

int cairn__plan_is_alike(const json_t *plan, const struct cairn__wanted *wanted)
{
  return strcmp(text_of(plan, "algorithm"), wanted->algorithm) == 0 &&
         strcmp(text_of(plan, "image_format"), wanted->image_format) == 0;
}

int cairn__plan_secret(const json_t *plan,
                       unsigned char secret[CAIRN__SECRET_SIZE])
{
  const json_t *d;
  size_t i;

  json_array_foreach(json_object_get(plan, "disks"), i, d)
  {
    if (!json_is_null(json_object_get(d, "base")))
      return 0;
  }
  return read_hex(text_of(plan, "secret"), secret);
}

json_t *cairn__plan_find(const json_t *plan, const char *machine,
                         const char *disk)
{
  json_t *d;
  size_t i;

  json_array_foreach(json_object_get(plan, "disks"), i, d)
  {
    const char *m = text_of(d, "VirtualMachineId"), *n = text_of(d, "disk");

    if (m && n && strcmp(m, machine) == 0 && strcmp(n, disk) == 0)
      return d;
  }
  return NULL;
}

int cairn__plan_origin(const json_t *plan, const char *machine,
                       const char *disk, unsigned char origin[16])
{
  const char *text = text_of(cairn__plan_find(plan, machine, disk), "origin");

  return text && uuid_parse(text, origin) == 0;
}

static int has_same(const json_t *a, const json_t *b, const char *const *names,
                    size_t count)
{
  for (size_t i = 0; i < count; i++) {
    const json_t *in_a = json_object_get(a, names[i]);

    if (!in_a || !json_equal(in_a, json_object_get(b, names[i])))
      return 0;
  }
  return 1;
}

int cairn__plan_has_same(const json_t *a, const json_t *b, const char *machine,
                         const char *disk)
{
  static const char *const shared[] = {"algorithm", "image_format", "secret"};
  static const char *const own[] = {"name", "base", "length"};

  return has_same(a, b, shared, 3) &&
         has_same(cairn__plan_find(a, machine, disk),
                  cairn__plan_find(b, machine, disk), own, 3);
}

/* ---- the work directory -------------------------------------------------- */

void cairn__journal_name(const char *machine, const char *disk,
                         char out[CAIRN__JOURNAL_NAME_MAX])
{
  snprintf(out, CAIRN__JOURNAL_NAME_MAX, "%s.%s" CAIRN__JOURNAL_SUFFIX, machine,
           disk);
}

static int is_journal(const char *name)
{
  size_t n = strlen(name), suffix = strlen(CAIRN__JOURNAL_SUFFIX);

  return n > suffix && strcmp(name + n - suffix, CAIRN__JOURNAL_SUFFIX) == 0;
}

/* Removes the entries of a directory that `is_kept` does not want. Again until
 * there is nothing more: what is left would be published. */
static int sweep(const struct cairn_io *io, int dirfd, const char *path,
                 int (*is_kept)(const void *argument, int dirfd,
                                const char *name),
                 const void *argument, struct cairn_error *err)
{
  DIR *directory = io->fdopendir(io, dirfd);
  unsigned removed = 1;
  int result = 0;

  if (!directory)
    return fail_path(err, errno, "list", path, "");
  while (removed > 0 && result == 0) {
    struct dirent *e;

    removed = 0;
    rewinddir(directory);
    while (result == 0 && (errno = 0, e = readdir(directory)) != NULL) {
      if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
          is_kept(argument, dirfd, e->d_name))
        continue;
      removed++;
      if (cairn__io_remove_tree(io, dirfd, e->d_name) != 0)
        result = fail_path(err, errno, "remove what an earlier run has left,",
                           path, e->d_name);
    }
    if (result == 0 && errno != 0)
      result = fail_path(err, errno, "list", path, "");
  }
  closedir(directory);
  return result;
}

static int is_ours(const void *argument, int dirfd, const char *name)
{
  static const char *const names[] = {"owner.lock", "point", CAIRN__PLAN_NAME};

  (void)argument;
  (void)dirfd;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    if (strcmp(name, names[i]) == 0)
      return 1;
  }
  return is_journal(name);
}

int cairn__resume_clear(const struct cairn_io *io, int workfd, const char *path,
                        struct cairn_error *err)
{
  return sweep(io, workfd, path, is_ours, NULL, err);
}

struct tidying {
  const struct cairn_io *io;
  const char *path;
  const json_t *before, *after;
  const char *machine;
};

static int is_wanted_journal(const void *argument, int dirfd, const char *name)
{
  const struct tidying *t = argument;
  char wanted[CAIRN__JOURNAL_NAME_MAX];
  const json_t *d;
  size_t i;

  (void)dirfd;
  if (!is_journal(name))
    return 1;
  json_array_foreach(json_object_get(t->after, "disks"), i, d)
  {
    const char *machine = text_of(d, "VirtualMachineId");

    cairn__journal_name(machine, text_of(d, "disk"), wanted);
    if (strcmp(name, wanted) == 0)
      return cairn__plan_has_same(t->before, t->after, machine,
                                  text_of(d, "disk"));
  }
  return 0;
}

/* A file that we alone can have made. */
static int is_plain(const struct cairn_io *io, int dirfd, const char *name,
                    struct stat *st)
{
  return io->fstatat(io, dirfd, name, st, AT_SYMLINK_NOFOLLOW) == 0 &&
         S_ISREG(st->st_mode) && st->st_nlink == 1;
}

static int is_wanted_image(const void *argument, int dirfd, const char *name)
{
  const struct tidying *t = argument;
  const json_t *d;
  struct stat st;
  size_t i;

  json_array_foreach(json_object_get(t->after, "disks"), i, d)
  {
    if (strcmp(text_of(d, "VirtualMachineId"), t->machine) == 0 &&
        strcmp(text_of(d, "name"), name) == 0)
      return cairn__plan_has_same(t->before, t->after, t->machine,
                                  text_of(d, "disk")) &&
             is_plain(t->io, dirfd, name, &st);
  }
  return 0;
}

static int is_wanted_machine(const void *argument, int dirfd, const char *name)
{
  const struct tidying *t = argument;
  const json_t *d;
  struct stat st;
  size_t i;

  if (t->io->fstatat(t->io, dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISDIR(st.st_mode))
    return 0;
  json_array_foreach(json_object_get(t->after, "disks"), i, d)
  {
    if (strcmp(text_of(d, "VirtualMachineId"), name) == 0 &&
        cairn__plan_has_same(t->before, t->after, name, text_of(d, "disk")))
      return 1;
  }
  return 0;
}

/* What the files of a directory occupy. */
static uint64_t occupied(const struct cairn_io *io, int dirfd)
{
  DIR *directory = io->fdopendir(io, dirfd);
  uint64_t bytes = 0;
  struct dirent *e;
  struct stat st;

  if (!directory)
    return 0;
  while ((e = readdir(directory)) != NULL) {
    if (is_plain(io, dirfd, e->d_name, &st))
      bytes += (uint64_t)st.st_blocks * 512;
  }
  closedir(directory);
  return bytes;
}

/* The next of the directories in `directory`, opened; -1 at the end. */
static int next_directory(const struct cairn_io *io, DIR *directory, int parent,
                          const char **name)
{
  struct dirent *e;

  while ((e = readdir(directory)) != NULL) {
    int fd;

    if (e->d_name[0] == '.')
      continue;
    fd = io->openat(io, parent, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
                    0);
    *name = e->d_name;
    if (fd >= 0)
      return fd;
  }
  return -1;
}

uint64_t cairn__resume_bytes(const struct cairn_io *io, int pointfd)
{
  DIR *directory = io->fdopendir(io, pointfd);
  uint64_t bytes = 0;
  const char *name;
  int fd;

  if (!directory)
    return 0;
  while ((fd = next_directory(io, directory, pointfd, &name)) >= 0) {
    bytes += occupied(io, fd);
    (void)io->close(io, fd);
  }
  closedir(directory);
  return bytes;
}

static int tidy_machines(struct tidying *t, int pointfd,
                         struct cairn_error *err)
{
  DIR *directory = t->io->fdopendir(t->io, pointfd);
  int fd, result = 0;

  if (!directory)
    return fail_path(err, errno, "list", t->path, "point");
  while (result == 0 &&
         (fd = next_directory(t->io, directory, pointfd, &t->machine)) >= 0) {
    result = sweep(t->io, fd, t->path, is_wanted_image, t, err);
    (void)t->io->close(t->io, fd);
  }
  closedir(directory);
  return result;
}

int cairn__resume_tidy(const struct cairn_io *io, int workfd, int pointfd,
                       const char *path, const json_t *before,
                       const json_t *after, struct cairn_error *err)
{
  struct tidying t = {.io = io, .path = path, .before = before, .after = after};

  if (sweep(io, workfd, path, is_wanted_journal, &t, err) != 0 ||
      sweep(io, pointfd, path, is_wanted_machine, &t, err) != 0 ||
      tidy_machines(&t, pointfd, err) != 0)
    return -1;
  return 0;
}
