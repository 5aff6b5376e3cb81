/* stream.c: the kind "stream": one disk of a point as `rbd diff v1`, into a
 * file or down a pipe.
 *
 * What is in the stream is decided by two digest maps, that of the point and
 * that of the base, after both have been proved against their manifests: a
 * block with the same digest is left out, one that is zero now and was not in
 * the base is a record of zeros, any other is data. So nothing but data is
 * read, and any two points whose digests were made alike can be compared,
 * whether or not one was made from the other. Beyond its end a disk is zero,
 * so disks that grew or shrank need no rule of their own.
 *
 * Every block is checked against the map before its record is begun. A stream
 * that could not be completed has no end record, and no reader takes it for a
 * whole one; a file gets its name only when it is complete. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/statvfs.h>

#include "error.h"
#include "image.h"
#include "kinds.h"
#include "memory.h"
#include "pipe.h"
#include "points.h"
#include "publish.h"
#include "rbd_diff.h"
#include "spec.h"

#define PIECE_BLOCKS 16u /* of data in one record */
#define HEAD_ROOM    4096u

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1 << 0)
#endif

static const struct cairn__spec_key keys[] = {
    {"directory", CAIRN__SPEC_ABSOLUTE, 1, NULL, NULL},
    {"point", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"machine", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"disk", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"base", CAIRN__SPEC_STRING, 0, NULL, NULL},
    {"output", CAIRN__SPEC_STREAM, 1, NULL, NULL}};

static int stream_check(json_t *spec, struct cairn_error *err)
{
  return cairn__spec_check(spec, "stream", keys, sizeof keys / sizeof *keys,
                           err);
}

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* The disk at one of the two points. */
struct side {
  const struct cairn__point *point; /* NULL: nothing, all is zero */
  const json_t *image;
  struct cairn__digester digester;
  struct cairn__map *map;
  uint64_t blocks;
  unsigned char *page; /* digests of the page at hand, markers beyond the end */
};

struct stream {
  const struct cairn_io *io;
  struct cairn__run *run;
  const json_t *spec;
  struct cairn__exports x;
  struct cairn__point *point;
  struct side now, then;
  struct cairn__source *source;
  uint64_t length;
  struct cairn__pipe out;
  unsigned char *buf; /* HEAD_ROOM, then PIECE_BLOCKS blocks */
  /* a file that is written */
  int dirfd, is_there;
  const char *name; /* in the path given */
  char temporary[48];
  /* sums */
  uint64_t data_bytes, zero_bytes, records;
};

/* ---- the two sides ------------------------------------------------------- */

/* The map against the manifest: it decides what is left out. */
static int prove_map(struct stream *s, struct side *side,
                     struct cairn_error *err)
{
  const struct cairn__digester *d = &side->digester;
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];
  struct cairn__tree *tree = cairn__tree_new(d);
  int result = tree ? 0 : cairn__fail_memory(err);

  for (uint64_t first = 0; result == 0 && first < side->blocks;) {
    uint64_t n = side->blocks - first;

    if (n > CAIRN__PAGE_BLOCKS)
      n = CAIRN__PAGE_BLOCKS;
    if (cairn__run_gate(s->run, err) != 0 ||
        cairn__map_read(side->map, first, n, side->page, err) != 0)
      result = -1;
    else if (cairn__tree_append(tree, side->page, n) != 0)
      result = cairn__fail_memory(err);
    first += n;
  }
  if (result == 0)
    result =
        cairn__digest_parse(d, text_of(side->image, "content"), wanted, err);
  if (result == 0) {
    cairn__tree_root(tree, number_of(side->image, "virtual_size"), root);
    if (memcmp(root, wanted, d->size) != 0)
      result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                           "%s/%s: the digest map differs from \"content\" in "
                           "the manifest",
                           side->point->path, text_of(side->image, "path"));
  }
  cairn__tree_free(tree);
  return result;
}

static int open_side(struct stream *s, struct side *side,
                     struct cairn_error *err)
{
  if (cairn__point_digester(s->io, side->point, &side->digester, err) != 0 ||
      cairn__point_open_map(s->io, side->point, side->image, &side->digester,
                            &side->map, err) != 0)
    return -1;
  side->blocks = cairn__map_get_info(side->map)->blocks;
  side->page = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * side->digester.size);
  if (!side->page)
    return cairn__fail_memory(err);
  return prove_map(s, side, err);
}

static void close_side(struct side *side)
{
  cairn__map_close(side->map);
  cairn__free(side->page);
  explicit_bzero(&side->digester, sizeof side->digester);
}

/* The digests of a page of blocks that begins at `first`. */
static int load(struct side *side, uint64_t first, struct cairn_error *err)
{
  uint64_t n = side->blocks > first ? side->blocks - first : 0;
  size_t size = side->digester.size;

  if (n > CAIRN__PAGE_BLOCKS)
    n = CAIRN__PAGE_BLOCKS;
  memset(side->page + n * size, 0, (CAIRN__PAGE_BLOCKS - n) * size);
  return n > 0 ? cairn__map_read(side->map, first, n, side->page, err) : 0;
}

/* ---- the base ------------------------------------------------------------ */

static int check_base(const struct stream *s, struct cairn_error *err)
{
  const struct cairn__digester *a = &s->now.digester, *b = &s->then.digester;
  const char *now = cairn__point_id(s->now.point);
  const char *then = cairn__point_id(s->then.point);

  if (a->algorithm != b->algorithm)
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT,
        "reference point %s has digests of %s and %s has digests "
        "of %s, so that they cannot be compared; base \"none\" "
        "gives the whole content",
        now, cairn__digest_algorithm_name(a->algorithm), then,
        cairn__digest_algorithm_name(b->algorithm));
  if (memcmp(a->secret, b->secret, sizeof a->secret) != 0)
    return cairn__fail(
        err, CAIRN_E_INVALID_ARGUMENT,
        "reference points %s and %s are of different chains: "
        "their digests are keyed by different secrets and cannot "
        "be compared; base \"none\" gives the whole content",
        now, then);
  return 0;
}

/* spec.base, else what the image itself is based on. */
static int choose_base(struct stream *s, struct cairn_error *err)
{
  const char *wanted = text_of(s->spec, "base");
  const char *vm = text_of(s->now.image, "VirtualMachineId");
  const char *disk = text_of(s->now.image, "disk");

  if (!wanted)
    wanted = text_of(s->now.image, "base");
  if (!wanted || strcmp(wanted, "none") == 0)
    return 0;
  if (cairn__exports_base(&s->x, wanted, &s->then.point, err) != 0)
    return -1;
  if (strcmp(cairn__point_id(s->then.point), cairn__point_id(s->point)) == 0)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "reference point %s cannot be its own base",
                       cairn__point_id(s->point));
  s->then.image = cairn__point_image(s->then.point, vm, disk);
  if (!s->then.image)
    return cairn__fail(err, CAIRN_E_NOT_FOUND,
                       "the base, reference point %s, does not have disk %s of "
                       "machine %s; base \"none\" gives the whole content",
                       cairn__point_id(s->then.point), disk, vm);
  if (open_side(s, &s->then, err) != 0)
    return -1;
  return check_base(s, err);
}

/* ---- the differences ----------------------------------------------------- */

/* Neighbouring blocks that differ. */
struct change {
  int is_zero; /* now; else data */
  uint64_t first, count;
};

/* Is given every change, ascending; those of data are PIECE_BLOCKS long at
 * most, and their digests are in now.page. */
typedef int (*visitor)(struct stream *s, const struct change *c,
                       struct cairn_error *err);

static int end_change(struct stream *s, struct change *c, visitor visit,
                      struct cairn_error *err)
{
  int result = c->count > 0 ? visit(s, c, err) : 0;

  c->count = 0;
  return result;
}

/* One block; c: the change at hand. */
static int walk_block(struct stream *s, uint64_t block, struct change *c,
                      visitor visit, struct cairn_error *err)
{
  size_t size = s->now.digester.size;
  size_t at = (size_t)(block % CAIRN__PAGE_BLOCKS) * size;
  const unsigned char *now = s->now.page + at;
  int is_zero = cairn__is_zero(now, size);
  int is_same =
      s->then.map ? memcmp(now, s->then.page + at, size) == 0 : is_zero;

  if (is_same)
    return end_change(s, c, visit, err);
  if (c->count > 0 &&
      (c->is_zero != is_zero || (!is_zero && c->count == PIECE_BLOCKS)) &&
      end_change(s, c, visit, err) != 0)
    return -1;
  if (c->count++ == 0) {
    c->first = block;
    c->is_zero = is_zero;
  }
  return 0;
}

static int walk(struct stream *s, visitor visit, struct cairn_error *err)
{
  struct change c = {0};

  for (uint64_t first = 0; first < s->now.blocks; first += CAIRN__PAGE_BLOCKS) {
    uint64_t end = first + CAIRN__PAGE_BLOCKS;

    if (cairn__run_gate(s->run, err) != 0 || load(&s->now, first, err) != 0 ||
        (s->then.map && load(&s->then, first, err) != 0))
      return -1;
    for (uint64_t b = first; b < end && b < s->now.blocks; b++) {
      if (walk_block(s, b, &c, visit, err) != 0)
        return -1;
    }
    if (!c.is_zero && end_change(s, &c, visit, err) != 0)
      return -1;
  }
  return end_change(s, &c, visit, err);
}

static uint64_t bytes_of(const struct stream *s, const struct change *c)
{
  uint64_t offset = c->first * CAIRN__BLOCK, n = c->count * CAIRN__BLOCK;

  return n < s->length - offset ? n : s->length - offset;
}

static int count_change(struct stream *s, const struct change *c,
                        struct cairn_error *err)
{
  (void)err;
  s->records++;
  *(c->is_zero ? &s->zero_bytes : &s->data_bytes) += bytes_of(s, c);
  return 0;
}

static uint64_t stream_bytes(const struct stream *s)
{
  const char *from = s->then.map ? cairn__point_id(s->then.point) : NULL;

  return cairn__rbd_header_size(from, cairn__point_id(s->point)) +
         s->records * CAIRN__RBD_HEAD + s->data_bytes + 1;
}

/* ---- writing ------------------------------------------------------------- */

static int check_blocks(struct stream *s, const struct change *c,
                        struct cairn_error *err)
{
  const struct side *now = &s->now;
  size_t size = now->digester.size;
  unsigned char digest[CAIRN__DIGEST_MAX];
  char shown[512];

  for (uint64_t i = 0; i < c->count; i++) {
    uint64_t block = c->first + i;

    cairn__digest_block(&now->digester, s->buf + HEAD_ROOM + i * CAIRN__BLOCK,
                        digest);
    if (memcmp(digest, now->page + block % CAIRN__PAGE_BLOCKS * size, size) ==
        0)
      continue;
    cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
                "\"%s\" differs from its digest map at offset %" PRIu64
                " (%u bytes): the stream ends here, without its end record",
                cairn__printable(s->source->path, shown, sizeof shown),
                block * CAIRN__BLOCK, CAIRN__BLOCK);
    cairn__error_set_path(err, s->source->path,
                          (int64_t)(block * CAIRN__BLOCK));
    return -1;
  }
  return 0;
}

static int write_change(struct stream *s, const struct change *c,
                        struct cairn_error *err)
{
  unsigned char *data = s->buf + HEAD_ROOM, *head = data - CAIRN__RBD_HEAD;
  uint64_t offset = c->first * CAIRN__BLOCK, n = bytes_of(s, c);

  cairn__rbd_put_head(head, c->is_zero ? 'z' : 'w', offset, n);
  if (c->is_zero)
    return cairn__pipe_write(&s->out, head, CAIRN__RBD_HEAD, err);
  if (s->source->ops->read(s->source, 0, data, (size_t)c->count * CAIRN__BLOCK,
                           offset, err) != 0 ||
      check_blocks(s, c, err) != 0 ||
      cairn__pipe_write(&s->out, head, CAIRN__RBD_HEAD + (size_t)n, err) != 0)
    return -1;
  atomic_fetch_add(&s->run->bytes_done, n);
  return 0;
}

static int write_stream(struct stream *s, struct cairn_error *err)
{
  const char *from = s->then.map ? cairn__point_id(s->then.point) : NULL;

  s->buf = cairn__malloc_aligned(HEAD_ROOM + PIECE_BLOCKS * CAIRN__BLOCK);
  if (!s->buf)
    return cairn__fail_memory(err);
  if (cairn__rbd_write_header(&s->out, from, cairn__point_id(s->point),
                              s->length, err) != 0 ||
      walk(s, write_change, err) != 0 ||
      s->source->ops->check_still(s->source, err) != 0 ||
      cairn__rbd_write_end(&s->out, err) != 0)
    return -1;
  return cairn__pipe_finish(&s->out, err);
}

/* ---- where it goes ------------------------------------------------------- */

static int fail_path(struct cairn_error *err, int errnum, const char *what,
                     const char *path)
{
  char shown[512];

  return cairn__fail_errno(err, errnum, path, -1, "cannot %s \"%s\"", what,
                           cairn__printable(path, shown, sizeof shown));
}

/* Opens the directory that the file is to be in; nothing may be there yet, and
 * a reference point takes no further files. */
static int open_directory(struct stream *s, const char *path,
                          struct cairn_error *err)
{
  const char *slash = strrchr(path, '/');
  char *directory = cairn__strndup(path, slash == path ? 1 : slash - path);
  char shown[512];
  struct stat st;
  int result = 0;

  if (!directory)
    return cairn__fail_memory(err);
  s->name = slash + 1;
  s->dirfd =
      s->io->openat(s->io, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
  if (s->dirfd < 0)
    result =
        fail_path(err, errno, "open the directory of the stream,", directory);
  else if (s->name[0] == '\0')
    result = cairn__fail(err, CAIRN_E_BAD_PATH,
                         "\"%s\" is a directory; the name of a file is wanted",
                         cairn__printable(path, shown, sizeof shown));
  if (result == 0)
    result = cairn__publication_check_target(s->io, s->dirfd, directory, err);
  cairn__free(directory);
  if (result != 0)
    return -1;
  if (s->io->fstatat(s->io, s->dirfd, s->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
    return cairn__fail(err, CAIRN_E_EXISTS,
                       "\"%s\" exists already; nothing is ever replaced",
                       cairn__printable(path, shown, sizeof shown));
  return errno == ENOENT ? 0 : fail_path(err, errno, "look for", path);
}

/* A descriptor that is given: looked at before anything else is opened, which
 * might get the number of one that is closed. */
static int open_descriptor(struct stream *s, struct cairn_error *err)
{
  const json_t *where = json_object_get(s->spec, "output");
  int fd = (int)json_integer_value(where);
  char name[32];

  if (!json_is_integer(where))
    return 0;
  cairn__pipe_name(fd, name, sizeof name);
  return cairn__pipe_open_output(s->io, s->run, fd, 0, name, &s->out, err);
}

static int open_file(struct stream *s, struct cairn_error *err)
{
  const char *path = text_of(s->spec, "output");
  uint64_t token;
  int fd;

  if (!path)
    return 0;
  if (getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token)
    return cairn__fail_errno(err, errno, NULL, -1, "cannot draw a name");
  snprintf(s->temporary, sizeof s->temporary,
           ".cairn-stream-%016" PRIx64 ".partial", token);
  fd = s->io->openat(s->io, s->dirfd, s->temporary,
                     O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (fd < 0)
    return fail_path(err, errno, "create", path);
  s->is_there = 1;
  return cairn__pipe_open_output(s->io, s->run, fd, 1, path, &s->out, err);
}

/* Gives the finished file its name. */
static int name_file(struct stream *s, struct cairn_error *err)
{
  const char *path = text_of(s->spec, "output");
  const struct cairn_io *io = s->io;
  struct stat st;
  int result;

  if (!path)
    return 0;
  result = io->renameat2(io, s->dirfd, s->temporary, s->dirfd, s->name,
                         RENAME_NOREPLACE);
  if (result != 0 && (errno == EINVAL || errno == ENOSYS)) {
    /* a file system that does not know the flag: look, then rename */
    if (io->fstatat(io, s->dirfd, s->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
      errno = EEXIST;
    else if (errno == ENOENT)
      result = io->renameat2(io, s->dirfd, s->temporary, s->dirfd, s->name, 0);
  }
  if (result != 0)
    return fail_path(err, errno, "give its name to", path);
  s->is_there = 0;
  if (io->fsync(io, s->dirfd) != 0)
    return fail_path(err, errno, "sync the directory of", path);
  return 0;
}

/* ---- the run ------------------------------------------------------------- */

static int open_source(struct stream *s, struct cairn_error *err)
{
  struct cairn__layer **layers;
  size_t count;
  char path[PATH_MAX + 256];
  int result;

  if (cairn__point_open_chain(&s->x, s->point, s->now.image, &layers, &count,
                              err) != 0)
    return -1;
  snprintf(path, sizeof path, "%s/%s", s->point->path,
           text_of(s->now.image, "path"));
  result = cairn__source_open_layers(layers, count, s->length, path, 1,
                                     &s->source, err);
  for (size_t i = 0; result != 0 && i < count; i++)
    cairn__layer_close(layers[i]);
  cairn__free(layers);
  return result;
}

/* Everything but the output: opened, proved and counted. */
static int prepare(struct stream *s, struct cairn_error *err)
{
  const char *path = text_of(s->spec, "output");

  if (cairn__exports_open(s->io, text_of(s->spec, "directory"), &s->x, err) !=
          0 ||
      cairn__exports_find(&s->x, text_of(s->spec, "point"), &s->point, err) !=
          0)
    return -1;
  s->now.point = s->point;
  if (cairn__point_choose_disk(s->point, text_of(s->spec, "machine"),
                               text_of(s->spec, "disk"), &s->now.image,
                               err) != 0)
    return -1;
  s->length = number_of(s->now.image, "length");
  if ((path && open_directory(s, path, err) != 0) ||
      open_side(s, &s->now, err) != 0 || choose_base(s, err) != 0 ||
      open_source(s, err) != 0)
    return -1;
  return walk(s, count_change, err);
}

static void stream_open(struct stream *s, const struct cairn_io *io,
                        struct cairn__run *run, const json_t *spec)
{
  *s = (struct stream){.io = io,
                       .run = run,
                       .spec = spec,
                       .x = {.io = io, .fd = -1},
                       .out = {.fd = -1},
                       .dirfd = -1};
}

static void stream_close(struct stream *s, int is_kept)
{
  cairn__pipe_close(&s->out);
  if (s->is_there && !is_kept)
    (void)s->io->unlinkat(s->io, s->dirfd, s->temporary, 0);
  if (s->dirfd >= 0)
    (void)s->io->close(s->io, s->dirfd);
  cairn__source_close(s->source);
  close_side(&s->now);
  close_side(&s->then);
  cairn__free_aligned(s->buf);
  cairn__point_close(s->io, s->point);
  cairn__exports_close(&s->x);
}

static int do_stream(struct stream *s, struct cairn_error *err)
{
  if (open_descriptor(s, err) != 0 || prepare(s, err) != 0)
    return -1;
  atomic_store(&s->run->bytes_total, s->data_bytes);
  if (open_file(s, err) != 0 || write_stream(s, err) != 0)
    return -1;
  return name_file(s, err);
}

/* What is known of the stream; NULL without memory. */
static json_t *describe(const struct stream *s)
{
  const json_t *image = s->now.image;
  json_t *o;

  if (!image)
    return json_pack("{s:O}", "output", json_object_get(s->spec, "output"));
  o = json_pack(
      "{s:s, s:s?, s:s, s:s, s:O, s:I, s:I, s:I, s:I, s:I}",
      "ReferencePointGroupId", cairn__point_id(s->point),
      "BaseReferencePointGroupId",
      s->then.map ? cairn__point_id(s->then.point) : NULL, "VirtualMachineId",
      text_of(image, "VirtualMachineId"), "disk", text_of(image, "disk"),
      "output", json_object_get(s->spec, "output"), "length",
      (json_int_t)s->length, "records", (json_int_t)s->records, "bytes_data",
      (json_int_t)s->data_bytes, "bytes_zero", (json_int_t)s->zero_bytes,
      "bytes_stream", (json_int_t)stream_bytes(s));
  return o;
}

static void stream_main(struct cairn__run *run)
{
  struct stream s;
  struct cairn_error *err = &run->error;
  int result;

  cairn__error_clear(err);
  stream_open(&s, run->io, run, run->spec);
  cairn__run_enter(run);
  result = do_stream(&s, err);
  cairn__run_leave(run);
  if (result != 0 && s.now.image && err->id != CAIRN_E_TERMINATED &&
      err->id != CAIRN_E_KILLED)
    cairn__error_locate(err, text_of(s.now.image, "VirtualMachineId"),
                        text_of(s.now.image, "disk"));
  run->report = describe(&s);
  stream_close(&s, result != 0 && err->id == CAIRN_E_KILLED);
}

/* ---- the dry run --------------------------------------------------------- */

static int add_space(const struct stream *s, json_t *plan,
                     struct cairn_error *err)
{
  struct statvfs fs;
  uint64_t available;

  if (s->dirfd < 0 || fstatvfs(s->dirfd, &fs) != 0)
    return 0;
  available = (uint64_t)fs.f_bavail * fs.f_frsize;
  if (json_object_set_new(plan, "free_bytes",
                          json_integer((json_int_t)available)) != 0 ||
      json_object_set_new(plan, "target_bytes",
                          json_integer((json_int_t)stream_bytes(s))) != 0 ||
      json_object_set_new(plan, "has_space",
                          json_boolean(stream_bytes(s) <= available)) != 0)
    return cairn__fail_memory(err);
  return 0;
}

static int do_plan(struct stream *s, json_t **plan, struct cairn_error *err)
{
  if (prepare(s, err) != 0)
    return -1;
  *plan = describe(s);
  if (!*plan || json_object_set_new(*plan, "kind", json_string("stream")) != 0)
    return cairn__fail_memory(err);
  return add_space(s, *plan, err);
}

static int stream_plan(const struct cairn_io *io, const json_t *spec,
                       json_t **plan, struct cairn_error *err)
{
  struct cairn__run *run = cairn__run_new(NULL);
  struct stream s;
  int result;

  *plan = NULL;
  if (!run)
    return cairn__fail_memory(err);
  stream_open(&s, io, run, spec);
  cairn__run_enter(run);
  result = do_plan(&s, plan, err);
  cairn__run_leave(run);
  stream_close(&s, 0);
  cairn__run_release(run);
  if (result != 0) {
    json_decref(*plan);
    *plan = NULL;
  }
  return result;
}

const struct cairn__kind cairn__kind_stream = {.name = "stream",
                                               .check = stream_check,
                                               .main = stream_main,
                                               .plan = stream_plan};
