/* merge_point.c: see merge_point.h.
 *
 * What changed between the new base and the point is read off their digest
 * maps: a block whose digests differ is written, as data or as an explicit
 * zero, and all others are left to the base. So a range that was cut off
 * somewhere in the chain and grew again needs no rule of its own: it is zero in
 * the point's map and was not in the base's. The maps are proved against the
 * manifests first, and every block against the map while it is read. */
#include "merge_point.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <uuid/uuid.h>

#include "datetime.h"
#include "error.h"
#include "image.h"
#include "manifest.h"
#include "memory.h"

#define READERS         4u
#define BATCH           16u /* blocks of a file copied at once */
#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW)

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
  return (uint64_t)json_integer_value(json_object_get(object, name));
}

static int is_log(const json_t *file)
{
  return strcmp(text_of(file, "role"), "log") == 0;
}

static int is_image(const json_t *file)
{
  return is_log(file) || strcmp(text_of(file, "role"), "disk") == 0;
}

static int gate(const struct cairn__merge *m, struct cairn_error *err)
{
  return m->run ? cairn__run_gate(m->run, err) : 0;
}

/* Names the disk at which it happened; returns -1. */
static int locate(const struct cairn__merge_disk *d, struct cairn_error *err)
{
  cairn__error_locate(err, text_of(d->image, "VirtualMachineId"),
                      text_of(d->image, "disk"));
  return -1;
}

/* ---- opening ------------------------------------------------------------- */

int cairn__merge_open(struct cairn__merge *m, struct cairn__point *p,
                      struct cairn_error *err)
{
  const json_t *files = json_object_get(p->manifest, "files");
  json_t *file;
  size_t i;

  m->p = p;
  if (cairn__point_digester(m->io, p, &m->digester, err) != 0)
    return -1;
  m->disks = cairn__calloc(json_array_size(files) + 1, sizeof *m->disks);
  if (!m->disks)
    return cairn__fail_memory(err);
  json_array_foreach(files, i, file)
  {
    struct cairn__merge_disk *d = &m->disks[m->disk_count];

    if (!is_image(file))
      continue;
    d->image = file;
    m->disk_count++;
    if (gate(m, err) != 0 ||
        cairn__point_links(m->x, p, file, &d->links, &d->depth, err) != 0)
      return locate(d, err);
  }
  return 0;
}

void cairn__merge_close(struct cairn__merge *m)
{
  for (size_t i = 0; i < m->disk_count; i++) {
    cairn__free(m->disks[i].links);
    cairn__changes_free(m->disks[i].changes);
    json_decref(m->disks[i].entry);
  }
  cairn__free(m->disks);
  m->disks = NULL;
  m->disk_count = 0;
  cairn__point_close(m->io, m->p);
  m->p = NULL;
  explicit_bzero(&m->digester, sizeof m->digester);
}

const char *cairn__merge_name(const struct cairn__merge *m)
{
  const char *slash = strrchr(m->p->path, '/');

  return slash ? slash + 1 : m->p->path;
}

/* ---- choosing ------------------------------------------------------------ */

/* Digests tell what changed only when both sides have the same key. */
static int check_key(const struct cairn__merge *m,
                     const struct cairn__point *base, struct cairn_error *err)
{
  struct cairn__digester d;
  int is_same, result = cairn__point_digester(m->io, base, &d, err);

  is_same = result == 0 && d.algorithm == m->digester.algorithm &&
            memcmp(d.secret, m->digester.secret, sizeof d.secret) == 0;
  explicit_bzero(&d, sizeof d);
  if (result != 0 || is_same)
    return result;
  return cairn__fail(err, CAIRN_E_NOT_SUPPORTED,
                     "the digests of %s and %s have different keys, so they "
                     "cannot be compared; merge into a full",
                     m->p->path, base->path);
}

/* The point of this id in the other directory, seen to be the same. */
static int find_in_target(struct cairn__merge *m, struct cairn__merge_disk *d,
                          struct cairn_error *err)
{
  const struct cairn__link *link = &d->links[d->base];
  const char *id = cairn__point_id(link->point), *wrong = NULL;
  const json_t *there;

  if (cairn__exports_base(m->target, id, &d->base_point, err) != 0)
    return -1;
  d->base_image =
      cairn__point_image(d->base_point, text_of(d->image, "VirtualMachineId"),
                         text_of(d->image, "disk"));
  there = d->base_point->manifest;
  if (!d->base_image)
    wrong = "does not have the disk";
  else if (strcmp(text_of(d->base_image, "content"),
                  text_of(link->image, "content")) != 0)
    wrong = "has another content";
  else if (strcmp(text_of(there, "CollectionId"),
                  text_of(m->p->manifest, "CollectionId")) != 0)
    wrong = "belongs to another collection";
  else if (number_of(there, "sequence") >=
           number_of(m->p->manifest, "sequence"))
    wrong = "is not older";
  if (!wrong)
    return 0;
  return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                     "%s %s: it is not the point that %s is based on",
                     d->base_point->path, wrong, m->p->path);
}

static int settle_base(struct cairn__merge *m, struct cairn__merge_disk *d,
                       struct cairn_error *err)
{
  if (m->target) {
    if (find_in_target(m, d, err) != 0)
      return -1;
  } else {
    d->base_point = d->links[d->base].point;
    d->base_image = d->links[d->base].image;
  }
  return check_key(m, d->base_point, err);
}

int cairn__merge_choose(struct cairn__merge *m,
                        int (*is_base)(const void *context, const char *id),
                        const void *context, int is_kept_without,
                        size_t *written, struct cairn_error *err)
{
  *written = 0;
  for (size_t i = 0; i < m->disk_count; i++) {
    struct cairn__merge_disk *d = &m->disks[i];

    d->base = 0;
    for (size_t k = 1; k < d->depth && d->base == 0; k++) {
      if (is_base(context, cairn__point_id(d->links[k].point)))
        d->base = k;
    }
    d->is_kept = !m->is_elsewhere && (d->depth == 1 || d->base == 1 ||
                                      (d->base == 0 && is_kept_without));
    if (d->is_kept)
      continue;
    if (d->base > 0 && settle_base(m, d, err) != 0)
      return locate(d, err);
    ++*written;
  }
  return 0;
}

/* ---- measuring ----------------------------------------------------------- */

/* A digest map that is read once, page by page, and proved by its root. */
struct proof {
  const struct cairn__point *point;
  const json_t *image;
  struct cairn__map *map;
  struct cairn__tree *tree;
  unsigned char *page;
};

static int proof_open(const struct cairn__merge *m, struct proof *f,
                      const struct cairn__point *p, const json_t *image,
                      struct cairn_error *err)
{
  f->point = p;
  f->image = image;
  f->page = cairn__malloc((size_t)CAIRN__PAGE_BLOCKS * m->digester.size);
  f->tree = cairn__tree_new(&m->digester);
  if (!f->page || !f->tree)
    return cairn__fail_memory(err);
  return cairn__point_open_map(m->io, p, image, &m->digester, &f->map, err);
}

static void proof_close(struct proof *f)
{
  cairn__map_close(f->map);
  cairn__tree_free(f->tree);
  cairn__free(f->page);
}

/* Fills f->page; markers beyond the end. */
static int proof_page(const struct cairn__merge *m, struct proof *f,
                      uint64_t first, struct cairn_error *err)
{
  uint64_t blocks = cairn__map_get_info(f->map)->blocks;
  uint64_t count = first < blocks ? blocks - first : 0;

  if (count > CAIRN__PAGE_BLOCKS)
    count = CAIRN__PAGE_BLOCKS;
  memset(f->page + count * m->digester.size, 0,
         (size_t)(CAIRN__PAGE_BLOCKS - count) * m->digester.size);
  if (count == 0)
    return 0;
  if (cairn__map_read(f->map, first, count, f->page, err) != 0)
    return -1;
  return cairn__tree_append(f->tree, f->page, count) == 0
             ? 0
             : cairn__fail_memory(err);
}

static int proof_end(const struct cairn__merge *m, struct proof *f,
                     struct cairn_error *err)
{
  unsigned char root[CAIRN__DIGEST_MAX], wanted[CAIRN__DIGEST_MAX];

  if (cairn__digest_parse(&m->digester, text_of(f->image, "content"), wanted,
                          err) != 0)
    return -1;
  cairn__tree_root(f->tree, cairn__map_get_info(f->map)->virtual_size, root);
  if (memcmp(root, wanted, m->digester.size) == 0)
    return 0;
  return cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                     "%s/%s: the digest map differs from \"content\" in the "
                     "manifest",
                     f->point->path, text_of(f->image, "path"));
}

/* What one page of the disk will cost. below: the base's digests, or NULL. */
static void measure_page(const struct cairn__merge *m,
                         struct cairn__merge_disk *d, uint64_t first,
                         uint64_t count, const unsigned char *page,
                         const unsigned char *below)
{
  unsigned size = m->digester.size;
  uint64_t changed = 0, digested = 0;

  for (uint64_t i = 0; i < count; i++) {
    const unsigned char *digest = page + i * size;
    int is_zero = cairn__is_zero(digest, size);

    digested += !is_zero;
    if (below ? memcmp(digest, below + i * size, size) == 0 : is_zero)
      continue;
    changed++;
    if (below)
      cairn__changes_mark(d->changes, (first + i) * CAIRN__BLOCK, 1);
    if (!is_zero)
      d->data_bytes += CAIRN__BLOCK;
  }
  if (changed > 0) /* an L2 table, and what counts the references */
    d->target_bytes += 2ull * CAIRN__BLOCK;
  if (digested > 0)
    d->target_bytes += (uint64_t)CAIRN__PAGE_BLOCKS * size + 4096;
}

static int measure_disk(struct cairn__merge *m, struct cairn__merge_disk *d,
                        struct cairn_error *err)
{
  struct proof top = {0}, base = {0};
  uint64_t length = number_of(d->image, "length"), blocks, all, first;
  int result = 0;

  d->data_bytes = d->target_bytes = 0;
  if (d->base > 0)
    result = cairn__changes_new(length, &d->changes, err);
  if (result == 0)
    result = proof_open(m, &top, m->p, d->image, err);
  if (result == 0 && d->base > 0)
    result = proof_open(m, &base, d->base_point, d->base_image, err);
  blocks = result == 0 ? cairn__map_get_info(top.map)->blocks : 0;
  all = blocks;
  if (result == 0 && base.map && cairn__map_get_info(base.map)->blocks > all)
    all = cairn__map_get_info(base.map)->blocks;
  for (first = 0; result == 0 && first < all; first += CAIRN__PAGE_BLOCKS) {
    uint64_t count = first < blocks ? blocks - first : 0;

    if (count > CAIRN__PAGE_BLOCKS)
      count = CAIRN__PAGE_BLOCKS;
    result = gate(m, err);
    if (result == 0)
      result = proof_page(m, &top, first, err);
    if (result == 0 && base.map)
      result = proof_page(m, &base, first, err);
    if (result == 0)
      measure_page(m, d, first, count, top.page, base.map ? base.page : NULL);
  }
  if (result == 0)
    result = proof_end(m, &top, err);
  if (result == 0 && base.map)
    result = proof_end(m, &base, err);
  proof_close(&top);
  proof_close(&base);
  /* header, L1 table, refcounts, and the map's header */
  d->target_bytes += d->data_bytes + 4ull * CAIRN__BLOCK + 4096;
  return result;
}

int cairn__merge_measure(struct cairn__merge *m, struct cairn_error *err)
{
  m->data_bytes = m->target_bytes = 0;
  for (size_t i = 0; i < m->disk_count; i++) {
    struct cairn__merge_disk *d = &m->disks[i];

    if (d->is_kept)
      continue;
    if (measure_disk(m, d, err) != 0)
      return locate(d, err);
    m->data_bytes += d->data_bytes;
    m->target_bytes += d->target_bytes;
  }
  return 0;
}

/* ---- where it is written ------------------------------------------------- */

static int fail_at(const struct cairn__publication *pub, int errnum,
                   const char *what, const char *path, struct cairn_error *err)
{
  char full[2 * PATH_MAX], shown[1024];

  snprintf(full, sizeof full, "%s/%s", pub->point_path, path);
  return cairn__fail_errno(err, errnum, full, -1, "cannot %s \"%s\"", what,
                           cairn__printable(full, shown, sizeof shown));
}

/* Walks to the directory that `path` (as in the manifest) lies in, making what
 * is missing when is_made. *name points into path. Returns a descriptor, -1. */
static int open_parent(const struct cairn__merge *m,
                       const struct cairn__publication *pub, const char *path,
                       int is_made, const char **name, struct cairn_error *err)
{
  const struct cairn_io *io = m->io;
  char component[NAME_MAX + 1];
  const char *at = path, *slash;
  int fd = io->openat(io, pub->pointfd, ".", DIRECTORY_FLAGS, 0);

  if (fd < 0)
    return fail_at(pub, errno, "open", "", err);
  for (; (slash = strchr(at, '/')); at = slash + 1) {
    int next, errnum = 0;

    /* components are checked by the manifest's reader */
    memcpy(component, at, (size_t)(slash - at));
    component[slash - at] = '\0';
    if (is_made && io->mkdirat(io, fd, component, 0700) != 0 && errno != EEXIST)
      errnum = errno;
    next = errnum ? -1 : io->openat(io, fd, component, DIRECTORY_FLAGS, 0);
    if (next < 0 && !errnum)
      errnum = errno;
    (void)io->close(io, fd);
    if (next < 0)
      return fail_at(pub, errnum, "make the directory of", path, err);
    fd = next;
  }
  *name = at;
  return fd;
}

/* Every directory that holds a file of the manifest, from the bottom up: a
 * directory is synced once for each run of files in it. */
static int sync_directories(const struct cairn__merge *m,
                            const struct cairn__publication *pub,
                            const json_t *files, struct cairn_error *err)
{
  const struct cairn_io *io = m->io;
  char last[PATH_MAX] = "", path[PATH_MAX];
  json_t *file;
  size_t i;

  json_array_foreach(files, i, file)
  {
    char *slash;

    snprintf(path, sizeof path, "%s", text_of(file, "path"));
    slash = strrchr(path, '/');
    if (!slash || ((size_t)(slash - path) == strlen(last) &&
                   strncmp(last, path, strlen(last)) == 0))
      continue;
    snprintf(last, sizeof last, "%.*s", (int)(slash - path), path);
    for (; (slash = strrchr(path, '/')); *slash = '\0') {
      const char *name;
      int fd = open_parent(m, pub, path, 0, &name, err), result;

      if (fd < 0)
        return -1;
      result = io->fsync(io, fd);
      if (result != 0)
        result = fail_at(pub, errno, "sync the directory of", path, err);
      (void)io->close(io, fd);
      if (result != 0)
        return -1;
    }
  }
  return 0;
}

/* ---- files that stay as they are ----------------------------------------- */

/* Blocks of zeros become holes; the file is proved when the root holds. */
static int copy_bytes(struct cairn__merge *m,
                      const struct cairn__publication *pub, const json_t *file,
                      int from, int to, struct cairn_error *err)
{
  const struct cairn_io *io = m->io;
  const char *path = text_of(file, "path");
  uint64_t size = number_of(file, "size"), at = 0;
  unsigned char leaf[CAIRN__DIGEST_MAX], root[CAIRN__DIGEST_MAX];
  unsigned char *buf = cairn__malloc_aligned((size_t)BATCH * CAIRN__BLOCK);
  struct cairn__tree *tree = cairn__tree_new(&m->digester);
  int result = buf && tree ? 0 : cairn__fail_memory(err);

  if (result == 0 && io->ftruncate(io, to, (off_t)size) != 0)
    result = fail_at(pub, errno, "write", path, err);
  while (result == 0 && at < size) {
    size_t n = (size_t)BATCH * CAIRN__BLOCK;
    ssize_t got;

    if (n > size - at)
      n = (size_t)(size - at);
    result = gate(m, err);
    if (result != 0)
      break;
    got = cairn__io_read_full(io, from, buf, n, (off_t)at);
    if (got < 0)
      result = cairn__fail_errno(err, errno, path, (int64_t)at,
                                 "cannot read %s/%s", m->p->path, path);
    else if ((size_t)got != n)
      result = cairn__fail(err, CAIRN_E_EXPORT_CORRUPT,
                           "%s/%s is shorter than its manifest says",
                           m->p->path, path);
    memset(buf + n, 0, (size_t)BATCH * CAIRN__BLOCK - n);
    for (size_t i = 0; result == 0 && i * CAIRN__BLOCK < n; i++) {
      size_t part = n - i * CAIRN__BLOCK < CAIRN__BLOCK ? n - i * CAIRN__BLOCK
                                                        : CAIRN__BLOCK;

      if (!cairn__digest_block(&m->digester, buf + i * CAIRN__BLOCK, leaf) &&
          cairn__io_write_full(io, to, buf + i * CAIRN__BLOCK, part,
                               (off_t)(at + i * CAIRN__BLOCK)) != 0)
        result = fail_at(pub, errno, "write", path, err);
      if (result == 0 && cairn__tree_append(tree, leaf, 1) != 0)
        result = cairn__fail_memory(err);
    }
    at += n;
  }
  if (result == 0)
    result =
        cairn__digest_parse(&m->digester, text_of(file, "digest"), leaf, err);
  if (result == 0) {
    cairn__tree_root(tree, size, root);
    if (memcmp(root, leaf, m->digester.size) != 0)
      result = cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
                           "%s/%s: its bytes differ from its digest in the "
                           "manifest",
                           m->p->path, path);
  }
  cairn__tree_free(tree);
  cairn__free_aligned(buf);
  return result;
}

static int copy_file(struct cairn__merge *m,
                     const struct cairn__publication *pub, const json_t *file,
                     int parent, const char *name, struct cairn_error *err)
{
  const struct cairn_io *io = m->io;
  const char *path = text_of(file, "path");
  int from, to, result;

  if (cairn__open_file(io, m->p, path, &from, NULL, err) != 0)
    return -1;
  to = io->openat(io, parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                  0600);
  if (to < 0) {
    result = fail_at(pub, errno, "create", path, err);
    (void)io->close(io, from);
    return result;
  }
  result = copy_bytes(m, pub, file, from, to, err);
  if (result == 0 && io->fsync(io, to) != 0)
    result = fail_at(pub, errno, "sync", path, err);
  if (io->close(io, to) != 0 && result == 0)
    result = fail_at(pub, errno, "close", path, err);
  (void)io->close(io, from);
  return result;
}

/* 0 linked, 1 the file system has no more, or no, second names; -1 */
static int link_file(const struct cairn__merge *m,
                     const struct cairn__publication *pub, const char *path,
                     int parent, const char *name, struct cairn_error *err)
{
  const struct cairn_io *io = m->io;
  const char *old;
  int from, result, errnum;

  if (cairn__point_open_parent(io, m->p, path, &from, &old, err) != 0)
    return -1;
  result = io->linkat(io, from, old, parent, name);
  errnum = errno;
  (void)io->close(io, from);
  if (result == 0)
    return 0;
  if (errnum == EPERM || errnum == EMLINK || errnum == EOPNOTSUPP ||
      errnum == ENOSYS || errnum == EXDEV)
    return 1;
  return fail_at(pub, errnum, "link", path, err);
}

static int keep_file(struct cairn__merge *m,
                     const struct cairn__publication *pub, const json_t *file,
                     struct cairn_error *err)
{
  const char *path = text_of(file, "path"), *name;
  int parent = open_parent(m, pub, path, 1, &name, err), result = 1;

  if (parent < 0)
    return -1;
  if (!m->is_elsewhere)
    result = link_file(m, pub, path, parent, name, err);
  if (result > 0)
    result = copy_file(m, pub, file, parent, name, err);
  (void)m->io->close(m->io, parent);
  return result;
}

/* ---- disks that are written ---------------------------------------------- */

struct disk_job {
  struct cairn__merge *m;
  struct cairn__merge_disk *d;
  const struct cairn__publication *pub;
  int parent;
  char name[96], map_name[96]; /* in it */
  char path[2 * PATH_MAX];     /* for messages */
  char map_path[2 * PATH_MAX];
  struct cairn__copy copy;
  struct cairn__file_result image, map;
  unsigned char content[CAIRN__DIGEST_MAX];
  int64_t started_us;
};

static int64_t wall_us(const struct cairn__merge *m)
{
  return m->run->clock->wall(m->run->clock);
}

static int open_sink(struct disk_job *j, struct cairn__sink **sink,
                     struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  const struct cairn__merge_disk *d = j->d;
  char backing[256];
  unsigned char point[16], base[16];
  struct cairn__sink_options o = {
      .io = m->io,
      .dirfd = j->parent,
      .name = j->name,
      .path = j->path,
      .length = number_of(d->image, "length"),
      .virtual_size = number_of(d->image, "virtual_size"),
      .digester = &m->digester,
      .point = point,
  };

  uuid_parse(cairn__point_id(m->p), point);
  if (d->base > 0) {
    uuid_parse(cairn__point_id(d->base_point), base);
    snprintf(backing, sizeof backing, "../../%s/%s",
             cairn__point_id(d->base_point), text_of(d->base_image, "path"));
    o.backing_name = backing;
    o.backing_format = text_of(d->base_image, "format");
    o.base = base;
  }
  return strcmp(text_of(d->image, "format"), "raw") == 0
             ? cairn__sink_open_raw(&o, sink, err)
             : cairn__sink_open_qcow2(&o, sink, err);
}

static int open_source(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  struct cairn__layer **layers;
  char path[2 * PATH_MAX];
  size_t count;
  int result;

  if (cairn__point_open_chain(m->x, m->p, j->d->image, &layers, &count, err) !=
      0)
    return -1;
  snprintf(path, sizeof path, "%s/%s", m->p->path,
           text_of(j->d->image, "path"));
  result =
      cairn__source_open_layers(layers, count, number_of(j->d->image, "length"),
                                path, READERS, &j->copy.source, err);
  for (size_t i = 0; result != 0 && i < count; i++)
    cairn__layer_close(layers[i]);
  cairn__free(layers);
  return result;
}

static int open_maps(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  const struct cairn__merge_disk *d = j->d;

  if (cairn__point_open_map(m->io, m->p, d->image, &m->digester, &j->copy.map,
                            err) != 0)
    return -1;
  if (d->base == 0)
    return 0;
  j->copy.changes = d->changes;
  return cairn__point_open_map(m->io, d->base_point, d->base_image,
                               &m->digester, &j->copy.base, err);
}

/* Both files, synced. */
static int write_images(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  const json_t *image = j->d->image;
  struct cairn__map_writer *map = NULL;
  struct cairn__sink *sink = NULL;
  unsigned char point[16];

  uuid_parse(cairn__point_id(m->p), point);
  if (open_sink(j, &sink, err) != 0)
    return -1;
  if (cairn__map_create(m->io, j->parent, j->map_name, j->map_path,
                        &m->digester, number_of(image, "virtual_size"),
                        number_of(image, "length"), point, &map, err) != 0) {
    sink->ops->abort(sink);
    return -1;
  }
  j->copy.sink = sink;
  j->copy.map_writer = map;
  if (cairn__copy_run(&j->copy, err) != 0) {
    sink->ops->abort(sink);
    cairn__map_abort(map);
    return -1;
  }
  if (sink->ops->finish(sink, &j->image, err) != 0) {
    cairn__map_abort(map);
    return -1;
  }
  return cairn__map_finish(map, j->content, j->map.digest, &j->map.size, err);
}

/* Nothing may have changed: neither the content nor what it was read from. */
static int check_content(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  unsigned char wanted[CAIRN__DIGEST_MAX];

  if (cairn__digest_parse(&m->digester, text_of(j->d->image, "content"), wanted,
                          err) != 0)
    return -1;
  if (memcmp(wanted, j->content, m->digester.size) != 0)
    return cairn__fail(err, CAIRN_E_DIGEST_MISMATCH,
                       "%s/%s: what was merged has another content than the "
                       "manifest says",
                       m->p->path, text_of(j->d->image, "path"));
  return j->copy.source->ops->check_still(j->copy.source, err);
}

static void format_time(int64_t unix_us, char out[CAIRN_DATETIME_SIZE])
{
  struct cairn_datetime t = cairn__datetime_from_unix(unix_us, 0);

  cairn_datetime_format(&t, out);
}

static int describe_disk(struct disk_job *j, struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  struct cairn__merge_disk *d = j->d;
  char started[CAIRN_DATETIME_SIZE], ended[CAIRN_DATETIME_SIZE];
  char digest[CAIRN__DIGEST_TEXT];
  const char *base = d->base > 0 ? cairn__point_id(d->base_point) : NULL;
  json_t *news;
  int result;

  format_time(j->started_us, started);
  format_time(wall_us(m), ended);
  cairn__digest_format(&m->digester, j->image.digest, digest);
  news = json_pack(
      "{s:s, s:I, s:s, s:s?, s:s, s:n, s:I, s:I, s:I, s:I, s:s, s:s}", "role",
      base ? "log" : "disk", "size", (json_int_t)j->image.size, "digest",
      digest, "base", base, "tracker", base ? "digest" : "full", "fallback",
      "bytes_read", (json_int_t)j->copy.bytes_read, "bytes_written",
      (json_int_t)j->copy.bytes_written, "bytes_zero",
      (json_int_t)j->copy.bytes_zero, "bytes_skipped",
      (json_int_t)j->copy.bytes_skipped, "time_started", started, "time_ended",
      ended);
  d->entry = json_deep_copy(d->image);
  result = news && d->entry ? json_object_update(d->entry, news) : -1;
  json_decref(news);
  if (result == 0 && base)
    result = json_object_set(d->entry, "base_content",
                             json_object_get(d->base_image, "content"));
  else if (result == 0)
    (void)json_object_del(d->entry, "base_content");
  return result == 0 ? 0 : cairn__fail_memory(err);
}

/* Appends the entries of the image and its map. */
static int add_entries(const struct disk_job *j, json_t *files,
                       struct cairn_error *err)
{
  const struct cairn__merge *m = j->m;
  const json_t *old =
      cairn__point_map(m->p, text_of(j->d->image, "VirtualMachineId"),
                       text_of(j->d->image, "disk"));
  char digest[CAIRN__DIGEST_TEXT];
  json_t *entry = json_deep_copy(old);

  cairn__digest_format(&m->digester, j->map.digest, digest);
  if (entry && json_array_append(files, j->d->entry) == 0 &&
      json_object_set_new(entry, "size",
                          json_integer((json_int_t)j->map.size)) == 0 &&
      json_object_set_new(entry, "digest", json_string(digest)) == 0 &&
      json_array_append(files, entry) == 0) {
    json_decref(entry);
    return 0;
  }
  json_decref(entry);
  return cairn__fail_memory(err);
}

static int write_disk(struct cairn__merge *m, struct cairn__merge_disk *d,
                      const struct cairn__publication *pub, json_t *files,
                      struct cairn_error *err)
{
  const char *path = text_of(d->image, "path"), *name;
  struct disk_job j = {.m = m, .d = d, .pub = pub};
  int result;

  j.parent = open_parent(m, pub, path, 1, &name, err);
  if (j.parent < 0)
    return -1;
  snprintf(j.name, sizeof j.name, "%s", name);
  snprintf(j.map_name, sizeof j.map_name, "%s.digests",
           text_of(d->image, "disk"));
  snprintf(j.path, sizeof j.path, "%s/%s", pub->point_path, path);
  snprintf(j.map_path, sizeof j.map_path, "%s/%s/%s", pub->point_path,
           text_of(d->image, "VirtualMachineId"), j.map_name);
  j.copy.run = m->run;
  j.copy.digester = &m->digester;
  j.started_us = wall_us(m);
  result = open_maps(&j, err);
  if (result == 0)
    result = open_source(&j, err);
  if (result == 0)
    result = write_images(&j, err);
  if (result == 0)
    result = check_content(&j, err);
  if (result == 0)
    result = describe_disk(&j, err);
  if (result == 0)
    result = add_entries(&j, files, err);
  cairn__source_close(j.copy.source);
  cairn__map_close(j.copy.map);
  cairn__map_close(j.copy.base);
  (void)m->io->close(m->io, j.parent);
  return result == 0 ? 0 : locate(d, err);
}

/* ---- the whole ----------------------------------------------------------- */

static struct cairn__merge_disk *disk_of(struct cairn__merge *m,
                                         const json_t *file)
{
  const char *vm = text_of(file, "VirtualMachineId");
  const char *disk = text_of(file, "disk");

  for (size_t i = 0; disk && i < m->disk_count; i++) {
    const json_t *image = m->disks[i].image;

    if (strcmp(text_of(image, "VirtualMachineId"), vm) == 0 &&
        strcmp(text_of(image, "disk"), disk) == 0)
      return &m->disks[i];
  }
  return NULL;
}

/* A written disk brings its map along. */
static int write_files(struct cairn__merge *m,
                       const struct cairn__publication *pub, json_t *files,
                       struct cairn_error *err)
{
  json_t *file;
  size_t i;

  json_array_foreach(json_object_get(m->p->manifest, "files"), i, file)
  {
    struct cairn__merge_disk *d = disk_of(m, file);
    int is_written = d && !d->is_kept, result = 0;

    if (gate(m, err) != 0)
      return -1;
    if (is_written && is_image(file))
      result = write_disk(m, d, pub, files, err);
    else if (!is_written) {
      result = keep_file(m, pub, file, err);
      if (result == 0 && json_array_append(files, file) != 0)
        result = cairn__fail_memory(err);
    }
    if (result != 0)
      return -1;
  }
  return 0;
}

/* What the point as a whole is called to be based on: what it was, as long as
 * a disk still is, else the base of the first that has one. */
static const char *base_of(const json_t *files, const char *before)
{
  const char *first = NULL;
  json_t *file;
  size_t i;

  json_array_foreach(files, i, file)
  {
    const char *base = is_log(file) ? text_of(file, "base") : NULL;

    if (base && before && strcmp(base, before) == 0)
      return before;
    if (base && !first)
      first = base;
  }
  return first;
}

static int write_manifest(const struct cairn__merge *m,
                          const struct cairn__publication *pub, json_t *files,
                          struct cairn_error *err)
{
  json_t *manifest = json_deep_copy(m->p->manifest);
  const char *before = text_of(m->p->manifest, "BaseReferencePointGroupId");
  const char *base = base_of(files, before);
  json_int_t generation =
      json_integer_value(json_object_get(manifest, "generation"));
  int result = -1;

  if (manifest && json_object_del(manifest, "digest") == 0 &&
      json_object_set_new(manifest, "generation",
                          json_integer(generation + 1)) == 0 &&
      json_object_set_new(manifest, "BaseReferencePointGroupId",
                          base ? json_string(base) : json_null()) == 0 &&
      json_object_set(manifest, "files", files) == 0)
    result = cairn__manifest_write(m->io, pub->pointfd, manifest,
                                   pub->point_path, err);
  else
    cairn__fail_memory(err);
  json_decref(manifest);
  return result;
}

int cairn__merge_write(struct cairn__merge *m, struct cairn__publication *pub,
                       struct cairn_error *err)
{
  json_t *files = json_array();
  int result = files ? 0 : cairn__fail_memory(err);

  if (result == 0)
    result = write_files(m, pub, files, err);
  if (result == 0)
    result = sync_directories(m, pub, files, err);
  if (result == 0)
    result = write_manifest(m, pub, files, err);
  json_decref(files);
  return result;
}

json_t *cairn__merge_report(const struct cairn__merge *m)
{
  json_t *disks = json_array();

  for (size_t i = 0; disks && i < m->disk_count; i++) {
    const struct cairn__merge_disk *d = &m->disks[i];
    const json_t *now = d->entry ? d->entry : d->image;
    const char *base = d->is_kept ? text_of(d->image, "base")
                       : d->base  ? cairn__point_id(d->links[d->base].point)
                                  : NULL;
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s?, s:I, s:I, s:I}", "VirtualMachineId",
        text_of(d->image, "VirtualMachineId"), "disk",
        text_of(d->image, "disk"), "action",
        d->is_kept ? "kept"
        : d->base  ? "increment"
                   : "full",
        "base", base, "layers",
        (json_int_t)(d->is_kept ? 1
                     : d->base  ? d->base
                                : d->depth),
        "size_before", (json_int_t)number_of(d->image, "size"), "size",
        d->is_kept || d->entry ? (json_int_t)number_of(now, "size")
                               : (json_int_t)d->target_bytes);

    for (int k = 0; o && d->entry && k < 3; k++) {
      static const char *const members[] = {"bytes_read", "bytes_written",
                                            "bytes_zero"};

      (void)json_object_set(o, members[k],
                            json_object_get(d->entry, members[k]));
    }
    if (!o || json_array_append_new(disks, o) != 0) {
      json_decref(disks);
      disks = NULL;
    }
  }
  return disks;
}
