/* tracker.c: see tracker.h. */
#include "tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/statvfs.h>

#include "error.h"
#include "memory.h"

#define REASON_MAX CAIRN__BITMAP_REASON_MAX
/* Clones are dropped while less than this part of their file system is free.
 */
#define SPARE_PART 20u
/* Of a disk's entry in the manifest. */
#define RUNS_MEMBER "runs_since_compared"

const char *const cairn__tracker_names[] = {"digest", "clone", "bitmap", "full",
                                            NULL};

static const char *text_of(const json_t *object, const char *name)
{
  return json_string_value(json_object_get(object, name));
}

void cairn__tracking_init(struct cairn__tracking *t, int wanted)
{
  *t = (struct cairn__tracking){
      .wanted = wanted, .clone_dirfd = -1, .clone_fd = -1};
}

static int give_reason(struct cairn__tracking *t, const char *text,
                       int is_notable, struct cairn_error *err)
{
  if (t->reason)
    return 0;
  t->reason = cairn__strdup(text);
  t->is_notable = is_notable;
  return t->reason ? 0 : cairn__fail_memory(err);
}

int cairn__tracking_fall_back(struct cairn__tracking *t, const char *reason,
                              struct cairn_error *err)
{
  return give_reason(t, reason, 1, err);
}

/* ---- clones -------------------------------------------------------------- */

static int open_clones(struct cairn__tracking *t,
                       const struct cairn__tracking_options *o,
                       char reason[REASON_MAX], struct cairn_error *err)
{
  const struct cairn_io *io = o->io;
  int errnum;

  if (t->clone_dirfd >= 0)
    return 0;
  t->io = io;
  cairn__free(t->clone_path);
  t->clone_path =
      o->clone_directory
          ? cairn__strdup(o->clone_directory)
          : cairn__format("%s/" CAIRN__CLONES_DIRECTORY, o->target_path);
  if (!t->clone_path)
    return cairn__fail_memory(err);
  if (!o->clone_directory && o->point && o->target_fd >= 0 &&
      io->mkdirat(io, o->target_fd, CAIRN__CLONES_DIRECTORY, 0700) != 0 &&
      errno != EEXIST)
    return cairn__fail_errno(err, errno, t->clone_path, -1,
                             "cannot create \"%s\"", t->clone_path);
  t->clone_dirfd = o->clone_directory
                       ? io->openat(io, AT_FDCWD, o->clone_directory,
                                    O_RDONLY | O_DIRECTORY, 0)
                       : io->openat(io, o->target_fd, CAIRN__CLONES_DIRECTORY,
                                    O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
  if (t->clone_dirfd >= 0)
    return 0;
  errnum = errno;
  /* A dry run makes no directory; what it is to be made in tells as much. */
  if (errnum == ENOENT && !o->clone_directory && !o->point)
    t->clone_dirfd =
        io->openat(io, o->target_fd, ".", O_RDONLY | O_DIRECTORY, 0);
  if (t->clone_dirfd >= 0)
    return 0;
  if (errnum == ENOENT || errnum == EBADF || errnum == ENOTDIR ||
      errnum == EACCES) {
    snprintf(reason, REASON_MAX, "the directory for clones, \"%.200s\", %s",
             t->clone_path,
             errnum == EACCES ? "may not be read" : "does not exist");
    return 1;
  }
  return cairn__fail_errno(err, errnum, t->clone_path, -1, "cannot open \"%s\"",
                           t->clone_path);
}

/* The clone takes the place of its original. */
static int swap_source(struct cairn__tracking *t,
                       const struct cairn__source_options *s,
                       struct cairn__source **source, struct cairn_error *err)
{
  struct cairn__source_options own = *s;
  struct cairn__source *clone;
  char *path = cairn__format("%s/%s", t->clone_path, t->clone_name);
  int result;

  if (!path)
    return cairn__fail_memory(err);
  own.path = path;
  own.assume_quiescent = 0;
  result = cairn__source_open_raw(&own, &clone, err);
  cairn__free(path);
  if (result != 0)
    return -1;
  t->original = *source;
  *source = clone;
  return 0;
}

static int make_clone(struct cairn__tracking *t,
                      const struct cairn__tracking_options *o,
                      const struct cairn__source_options *s,
                      const char *machine, const char *disk,
                      struct cairn__source **source, struct cairn_error *err)
{
  const struct cairn__held *held = cairn__source_raw_held(*source);
  char reason[REASON_MAX] = "", name[CAIRN__CLONE_NAME_SIZE], path[1024];
  int result;

  if (!held)
    return give_reason(t, "clones are a matter of raw files", 1, err);
  result = open_clones(t, o, reason, err);
  if (result == 0 && !o->point)
    result = cairn__clone_check(o->io, held, t->clone_dirfd, reason,
                                sizeof reason, err);
  if (result == 0 && o->point) {
    cairn__clone_name(o->point, machine, disk, name);
    snprintf(path, sizeof path, "%s/%s", t->clone_path, name);
    result = cairn__clone_make(o->io, o->run, held, t->clone_dirfd, name, path,
                               &t->clone_fd, reason, sizeof reason, err);
    if (result == 0) {
      snprintf(t->clone_name, sizeof t->clone_name, "%s", name);
      result = cairn__clone_identity(o->io, t->clone_fd, path,
                                     t->clone_identity, err);
    }
    /* nobody has come between the lock and the clone */
    if (result == 0)
      result = (*source)->ops->check_still(*source, err);
    if (result == 0)
      return swap_source(t, s, source, err);
  }
  return result == 1 ? give_reason(t, reason, 1, err) : result;
}

static int find_by_clone(struct cairn__tracking *t,
                         const struct cairn__tracking_options *o,
                         const char *machine, const char *disk,
                         const struct cairn__base *base,
                         struct cairn__source *source,
                         struct cairn__changes *changes,
                         char reason[REASON_MAX], struct cairn_error *err)
{
  const char *identity = text_of(base->image, "clone");
  const struct cairn__held *held = cairn__source_raw_held(source);
  char name[CAIRN__CLONE_NAME_SIZE], path[1024];
  int fd = -1, result;

  if (!identity) {
    snprintf(reason, REASON_MAX, "reference point %s kept no clone of it",
             cairn__point_id(base->point));
    return 1;
  }
  cairn__clone_name(cairn__point_id(base->point), machine, disk, name);
  snprintf(path, sizeof path, "%s/%s", t->clone_path, name);
  result = cairn__clone_open(o->io, t->clone_dirfd, name, path, identity, &fd,
                             reason, REASON_MAX, err);
  /* A dry run makes no clone: the source, which is locked, stands in for it.
   */
  if (result == 0)
    result = cairn__clone_changes(
        o->io, o->run, fd, t->clone_fd >= 0 ? t->clone_fd : held->fd,
        source->length, changes, reason, REASON_MAX, err);
  if (fd >= 0)
    (void)o->io->close(o->io, fd);
  return result;
}

/* ---- opening ------------------------------------------------------------- */

int cairn__tracking_prepare(struct cairn__tracking *t,
                            const struct cairn__tracking_options *o,
                            const struct cairn__source_options *s,
                            struct cairn_error *err)
{
  char reason[REASON_MAX] = "";
  struct cairn_error why;
  int result;

  if (t->wanted != CAIRN__TRACKER_BITMAP || t->reason || !o->point)
    return 0;
  cairn__error_clear(&why);
  result = cairn__bitmap_add(s, o->point, o->run, reason, sizeof reason, &why);
  if (result == 0)
    t->has_bitmap = 1;
  if (result == 1)
    return give_reason(t, reason, 1, err);
  if (result == 0 || !err)
    return result;
  *err = why;
  return -1;
}

/* 1 when somebody has written between the bitmap and the lock. */
static int check_bitmap(struct cairn__tracking *t,
                        const struct cairn__tracking_options *o,
                        struct cairn__source *source, struct cairn_error *err)
{
  char reason[REASON_MAX] = "";
  int result = cairn__source_bitmap_is_clean(source, o->point, reason,
                                             sizeof reason, err);

  if (result != 0)
    return result;
  return cairn__bitmap_state(source, &t->bitmap_state, err);
}

int cairn__tracking_opened(struct cairn__tracking *t,
                           const struct cairn__tracking_options *o,
                           const struct cairn__source_options *s,
                           const char *machine, const char *disk,
                           struct cairn__source **source,
                           struct cairn_error *err)
{
  if (t->reason)
    return 0;
  if (t->wanted == CAIRN__TRACKER_CLONE)
    return make_clone(t, o, s, machine, disk, source, err);
  if (t->wanted != CAIRN__TRACKER_BITMAP || !t->has_bitmap)
    return 0;
  return check_bitmap(t, o, *source, err);
}

void cairn__tracking_release(struct cairn__tracking *t)
{
  cairn__source_close(t->original);
  t->original = NULL;
}

/* ---- changes ------------------------------------------------------------- */

/* In how many runs of the disk up to the base, and up to the newest point, a
 * tracker's word was taken since one compared all of it. What the manifests
 * say, not how long the chain is: increments may have been merged, or all be
 * made from one base. */
static unsigned count_runs(const struct cairn__base *b, const json_t *points,
                           const char *machine, const char *disk)
{
  json_int_t most = json_integer_value(json_object_get(b->image, RUNS_MEMBER));

  for (size_t i = json_array_size(points); i-- > 0;) {
    const struct cairn__point p = {.manifest = json_array_get(points, i)};
    const json_t *image = cairn__point_image(&p, machine, disk);
    json_int_t n = json_integer_value(json_object_get(image, RUNS_MEMBER));

    if (n > most)
      most = n;
    if (image)
      break;
  }
  return most < CAIRN__COMPARE_EVERY ? (unsigned)most : CAIRN__COMPARE_EVERY;
}

/* ---- the audit -----------------------------------------------------------
 * Most blocks of a disk may never have been written. A sample of them would
 * find nothing, so most of it is drawn from the blocks that held data at the
 * base, the rest from all. */

#define AUDIT_DATA (CAIRN__AUDIT_BLOCKS * 3 / 4)

struct sample {
  uint64_t random; /* the state of the generator */
  size_t count;
  struct {
    uint64_t block;
    unsigned char was[CAIRN__DIGEST_MAX]; /* its digest at the base */
  } blocks[CAIRN__AUDIT_BLOCKS];
};

static void put(struct sample *s, size_t at, uint64_t block,
                const unsigned char *was, unsigned size)
{
  s->blocks[at].block = block;
  memcpy(s->blocks[at].was, was, size);
}

/* splitmix64; a number below n, n > 0 */
static uint64_t draw(struct sample *s, uint64_t n)
{
  uint64_t r = s->random += UINT64_C(0x9e3779b97f4a7c15);

  r = (r ^ r >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  r = (r ^ r >> 27) * UINT64_C(0x94d049bb133111eb);
  return (r ^ r >> 31) % n;
}

/* Clear blocks that held data at the base, each as likely as the other. */
static int sample_data(struct sample *s, const struct cairn__changes *changes,
                       struct cairn__map *base, unsigned size,
                       unsigned char *digests, struct cairn__run *run,
                       struct cairn_error *err)
{
  uint64_t blocks = cairn__changes_blocks(changes), seen = 0;
  uint64_t in_base = cairn__map_get_info(base)->blocks;

  if (blocks > in_base)
    blocks = in_base;
  for (uint64_t first = 0; first < blocks; first += CAIRN__PAGE_BLOCKS) {
    uint64_t left = blocks - first;
    uint64_t n = left < CAIRN__PAGE_BLOCKS ? left : CAIRN__PAGE_BLOCKS;

    if ((run && cairn__run_gate(run, err) != 0) ||
        cairn__map_read(base, first, n, digests, err) != 0)
      return -1;
    for (uint64_t i = 0; i < n; i++) {
      if (cairn__changes_is_set(changes, first + i) ||
          cairn__is_zero(digests + i * size, size))
        continue;
      seen++;
      if (s->count < AUDIT_DATA) {
        put(s, s->count++, first + i, digests + i * size, size);
      } else {
        uint64_t at = draw(s, seen);

        if (at < AUDIT_DATA)
          put(s, at, first + i, digests + i * size, size);
      }
    }
  }
  return 0;
}

/* The clear block that has `rank` clear ones before it. */
static uint64_t clear_block(const struct cairn__changes *c, uint64_t rank)
{
  uint64_t block = 0;

  for (;;) {
    int is_set;
    uint64_t n = cairn__changes_run(c, block, &is_set);

    if (!is_set && rank < n)
      return block + rank;
    rank -= is_set ? 0 : n;
    block += n;
  }
}

static int make_sample(struct sample *s, const struct cairn__changes *changes,
                       struct cairn__map *base, unsigned size,
                       struct cairn__run *run, struct cairn_error *err)
{
  uint64_t clear =
      cairn__changes_blocks(changes) - cairn__changes_count(changes);
  size_t most = clear < CAIRN__AUDIT_BLOCKS ? clear : CAIRN__AUDIT_BLOCKS;
  uint64_t in_base = cairn__map_get_info(base)->blocks;
  unsigned char *digests;
  int result;

  s->count = 0;
  if (getrandom(&s->random, sizeof s->random, 0) != (ssize_t)sizeof s->random)
    s->random = (uint64_t)(uintptr_t)s; /* a poorer choice, no worse answer */
  if (clear == 0)
    return 0;
  digests = cairn__calloc(CAIRN__PAGE_BLOCKS, size);
  if (!digests)
    return cairn__fail_memory(err);
  result = sample_data(s, changes, base, size, digests, run, err);
  while (result == 0 && s->count < most) {
    uint64_t block = clear_block(changes, draw(s, clear));

    memset(digests, 0, size); /* beyond the base's end */
    if (block < in_base)
      result = cairn__map_read(base, block, 1, digests, err);
    if (result == 0)
      put(s, s->count++, block, digests, size);
  }
  cairn__free(digests);
  return result;
}

/* What the threads of an audit share. */
struct audit {
  struct cairn__source *source;
  const struct cairn__digester *d;
  struct cairn__run *run; /* or NULL: then there is one thread */
  struct sample sample;
  _Atomic size_t next; /* of the sample */
  _Atomic unsigned audited;
  pthread_mutex_t lock;
  /* under it */
  int has_failed, is_refuted;
  struct cairn_error error;
  uint64_t refuted; /* a block that has changed after all */
};

/* 0 = go on; -1 = this thread has nothing more to do. */
static int audit_block(struct audit *a, unsigned reader, size_t i,
                       unsigned char *buf)
{
  struct cairn_error err = {.offset = -1};
  unsigned char is[CAIRN__DIGEST_MAX];
  uint64_t block = a->sample.blocks[i].block;

  if ((a->run && cairn__run_gate(a->run, &err) != 0) ||
      a->source->ops->read(a->source, reader, buf, CAIRN__BLOCK,
                           block * CAIRN__BLOCK, &err) != 0) {
    pthread_mutex_lock(&a->lock);
    if (!a->has_failed)
      a->error = err;
    a->has_failed = 1;
    pthread_mutex_unlock(&a->lock);
    return -1;
  }
  cairn__digest_block(a->d, buf, is);
  atomic_fetch_add(&a->audited, 1);
  if (memcmp(is, a->sample.blocks[i].was, a->d->size) == 0)
    return 0;
  pthread_mutex_lock(&a->lock);
  if (!a->is_refuted || block < a->refuted)
    a->refuted = block;
  a->is_refuted = 1;
  pthread_mutex_unlock(&a->lock);
  return -1;
}

static void audit_main(void *argument, unsigned reader)
{
  struct audit *a = argument;
  unsigned char *buf = cairn__malloc_aligned(CAIRN__BLOCK);
  size_t i;

  if (!buf) {
    pthread_mutex_lock(&a->lock);
    if (!a->has_failed)
      cairn__fail_memory(&a->error);
    a->has_failed = 1;
    pthread_mutex_unlock(&a->lock);
    return;
  }
  while ((i = atomic_fetch_add(&a->next, 1)) < a->sample.count &&
         audit_block(a, reader, i, buf) == 0)
    ;
  atomic_store(&a->next, a->sample.count); /* the others need not go on */
  cairn__free_aligned(buf);
}

/* Reads some of what is said to be unchanged: 0, 1 with a reason when it is
 * not, -1. */
static int audit(struct cairn__tracking *t, struct cairn__source *source,
                 const struct cairn__changes *changes, struct cairn__map *base,
                 const struct cairn__digester *d, struct cairn__run *run,
                 char reason[REASON_MAX], struct cairn_error *err)
{
  struct audit a = {.source = source,
                    .d = d,
                    .run = run,
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .error = {.offset = -1}};

  if (make_sample(&a.sample, changes, base, d->size, run, err) != 0)
    return -1;
  if (run)
    cairn__run_together(run, source->readers, audit_main, &a);
  else
    audit_main(&a, 0);
  t->audited += atomic_load(&a.audited);
  if (a.has_failed) {
    if (err)
      *err = a.error;
    return -1;
  }
  if (!a.is_refuted)
    return 0;
  snprintf(reason, REASON_MAX,
           "the %s tracker said that nothing changed at offset %" PRIu64
           ", and the audit found that it did; this point is right, those "
           "back to the last one that compared the whole disk are doubtful",
           cairn__tracker_names[t->wanted], a.refuted * CAIRN__BLOCK);
  t->is_refuted = 1;
  return 1;
}

static int ask(struct cairn__tracking *t,
               const struct cairn__tracking_options *o, const char *machine,
               const char *disk, const struct cairn__base *base,
               const struct cairn__digester *digester,
               struct cairn__source *source, struct cairn__map *map,
               struct cairn__changes *changes, char reason[REASON_MAX],
               struct cairn_error *err)
{
  int result;

  if (t->wanted == CAIRN__TRACKER_CLONE)
    result =
        find_by_clone(t, o, machine, disk, base, source, changes, reason, err);
  else
    result = cairn__source_bitmap_changes(
        source, cairn__point_id(base->point),
        json_object_get(base->image, "bitmap_state"), digester, map, o->run,
        changes, reason, REASON_MAX, err);
  if (result == 0)
    result = audit(t, source, changes, map, digester, o->run, reason, err);
  return result;
}

int cairn__tracking_changes(
    struct cairn__tracking *t, const struct cairn__tracking_options *o,
    const char *machine, const char *disk, const struct cairn__base *base,
    const json_t *points, const struct cairn__digester *digester,
    struct cairn__source *source, struct cairn_error *err)
{
  struct cairn__changes *changes = NULL;
  char reason[REASON_MAX] = "";
  struct cairn__map *map = NULL;
  unsigned runs;
  int result;

  t->used = base->point ? CAIRN__TRACKER_DIGEST : CAIRN__TRACKER_FULL;
  if (!base->point || t->reason || t->wanted == CAIRN__TRACKER_DIGEST)
    return 0;
  if (cairn__changes_new(source->length, &changes, err) != 0)
    return -1;
  runs = count_runs(base, points, machine, disk) + 1;
  result = cairn__point_open_map(o->io, base->point, base->image, digester,
                                 &map, err);
  if (result == 0)
    result = ask(t, o, machine, disk, base, digester, source, map, changes,
                 reason, err);
  cairn__map_close(map);
  if (result == 0 && runs < CAIRN__COMPARE_EVERY) {
    t->runs = runs;
    t->changes = changes;
    t->used = t->wanted;
    return 0;
  }
  if (result == 0) {
    t->claims = changes;
    snprintf(reason, sizeof reason,
             "every %uth run compares the whole disk with its digests",
             CAIRN__COMPARE_EVERY);
    return give_reason(t, reason, 0, err);
  }
  cairn__changes_free(changes);
  return result == 1 ? give_reason(t, reason, 1, err) : -1;
}

/* ---- an interrupted run -------------------------------------------------- */

static int since_clone(struct cairn__tracking *t,
                       const struct cairn__tracking_options *o,
                       const char *machine, const char *disk,
                       const char *left_point, const json_t *left,
                       const struct cairn__source *source,
                       struct cairn_error *err)
{
  const char *identity = text_of(left, "clone");
  char name[CAIRN__CLONE_NAME_SIZE], path[1024], reason[REASON_MAX];
  int fd = -1, result;

  if (!identity || t->clone_fd < 0)
    return 1;
  cairn__clone_name(left_point, machine, disk, name);
  snprintf(path, sizeof path, "%s/%s", t->clone_path, name);
  result = cairn__clone_open(o->io, t->clone_dirfd, name, path, identity, &fd,
                             reason, sizeof reason, err);
  if (result == 0)
    result =
        cairn__clone_changes(o->io, o->run, fd, t->clone_fd, source->length,
                             t->since, reason, sizeof reason, err);
  if (fd >= 0)
    (void)o->io->close(o->io, fd);
  return result;
}

static int since_bitmap(struct cairn__tracking *t, const char *left_point,
                        const json_t *left, struct cairn__source *source,
                        struct cairn_error *err)
{
  const json_t *state = json_object_get(left, "bitmap_state");
  uint64_t tail = cairn__bitmap_tail(source->virtual_size);
  char reason[REASON_MAX];
  int result;

  if (!state || !t->bitmap_state)
    return 1;
  result = cairn__source_bitmap_is_unchanged(source, left_point, state, reason,
                                             sizeof reason, err);
  if (result == 0 && tail < source->length)
    cairn__changes_mark(t->since, tail, source->length - tail);
  return result;
}

int cairn__tracking_since(struct cairn__tracking *t,
                          const struct cairn__tracking_options *o,
                          const char *machine, const char *disk,
                          const char *left_point, const json_t *left,
                          struct cairn__source *source, int *is_still,
                          struct cairn_error *err)
{
  struct cairn_error why;
  int result;

  *is_still = 0;
  cairn__error_clear(&why);
  /* One that was caught, or is not used, says nothing; a run that compares all
   * looks at all. */
  if ((t->wanted != CAIRN__TRACKER_CLONE &&
       t->wanted != CAIRN__TRACKER_BITMAP) ||
      t->is_refuted || t->claims || (t->reason && t->is_notable))
    return 0;
  if (cairn__changes_new(source->length, &t->since, err) != 0)
    return -1;
  if (t->wanted == CAIRN__TRACKER_CLONE)
    result = since_clone(t, o, machine, disk, left_point, left, source, &why);
  else
    result = since_bitmap(t, left_point, left, source, &why);
  if (result == 0) {
    /* A bitmap proves all or nothing, and never the tail. */
    *is_still = t->wanted == CAIRN__TRACKER_BITMAP ||
                cairn__changes_count(t->since) == 0;
    if (t->runs == 0)
      t->runs = 1; /* this run takes the tracker's word, too */
    return 0;
  }
  cairn__changes_free(t->since);
  t->since = NULL;
  if (why.id != CAIRN_E_NO_MEMORY && why.id != CAIRN_E_TERMINATED &&
      why.id != CAIRN_E_KILLED)
    return 0; /* the source is read instead */
  if (err)
    *err = why;
  return -1;
}

/* ---- in the manifest ----------------------------------------------------- */

int cairn__tracking_describe_kept(const struct cairn__tracking *t,
                                  json_t *entry)
{
  if (t->clone_name[0] &&
      json_object_set_new(entry, "clone", json_string(t->clone_identity)) != 0)
    return -1;
  if (t->bitmap_state &&
      json_object_set(entry, "bitmap_state", t->bitmap_state) != 0)
    return -1;
  return 0;
}

int cairn__tracking_describe(const struct cairn__tracking *t, json_t *entry)
{
  if (cairn__tracking_describe_kept(t, entry) != 0)
    return -1;
  if (t->runs > 0 &&
      json_object_set_new(entry, RUNS_MEMBER,
                          json_integer((json_int_t)t->runs)) != 0)
    return -1;
  if (t->audited > 0 &&
      json_object_set_new(entry, "blocks_audited",
                          json_integer((json_int_t)t->audited)) != 0)
    return -1;
  return 0;
}

/* ---- the end ------------------------------------------------------------- */

static void warn(const struct cairn__tracking_options *o, const char *what,
                 const struct cairn_error *why)
{
  if (o->run)
    cairn__run_warn(o->run, "%s: %s", what, why->message);
}

static int has_bitmaps(const struct cairn__bitmaps *all, const char *point)
{
  char id[37];
  int is_guard;

  for (size_t i = 0; i < all->count; i++) {
    if (cairn__bitmap_point(all->list[i].name, id, &is_guard) && !is_guard &&
        strcmp(id, point) == 0)
      return 1;
  }
  return 0;
}

/* So that there is room for the next point's: the oldest of this directory's
 * goes. */
static void drop_bitmaps(const struct cairn__tracking_options *o,
                         const struct cairn__source_options *s,
                         const json_t *points)
{
  struct cairn__bitmaps all = {0};
  struct cairn_error why;
  size_t count, i;
  json_t *p;

  cairn__error_clear(&why);
  if (cairn__bitmaps_list(s, &all, &why) != 0) {
    warn(o, "cannot look at the bitmaps of the source", &why);
    return;
  }
  count = cairn__bitmaps_count(&all, 0);
  json_array_foreach(points, i, p)
  {
    const char *id = text_of(p, "ReferencePointGroupId");

    if (count < CAIRN__BITMAP_POINTS_MAX)
      break;
    if (!has_bitmaps(&all, id))
      continue;
    /* nobody has entered the run any more */
    if (cairn__bitmap_remove(s, id, NULL, &why) != 0) {
      warn(o, "cannot remove an old bitmap of the source", &why);
      break;
    }
    count--;
  }
  cairn__bitmaps_free(&all);
}

/* The oldest clones go while their file system is nearly full. */
static void drop_clones(const struct cairn__tracking *t,
                        const struct cairn__tracking_options *o)
{
  struct cairn__clone *list = NULL;
  struct cairn_error why;
  struct statvfs fs;
  size_t count = 0;
  int is_short = 0;

  cairn__error_clear(&why);
  if (fstatvfs(t->clone_dirfd, &fs) != 0)
    return;
  /* Every disk comes here, and there may be very many clones. */
  if (fs.f_bavail > fs.f_blocks / SPARE_PART)
    return;
  if (cairn__clones_list(o->io, t->clone_dirfd, t->clone_path, &list, &count,
                         &why) != 0) {
    warn(o, "cannot list the clones", &why);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    uint64_t spare = (uint64_t)fs.f_blocks * fs.f_frsize / SPARE_PART;

    if (strcmp(list[i].point, o->point) == 0)
      continue;
    if (cairn__clones_are_short(t->clone_dirfd, t->clone_path, spare, &is_short,
                                &why) != 0 ||
        !is_short)
      break;
    if (cairn__clone_remove(o->io, t->clone_dirfd, list[i].name, t->clone_path,
                            &why) != 0) {
      warn(o, "cannot remove an old clone", &why);
      break;
    }
  }
  cairn__free(list);
}

int cairn__tracking_end(struct cairn__tracking *t,
                        const struct cairn__tracking_options *o,
                        const struct cairn__source_options *s, int is_published,
                        const json_t *points)
{
  struct cairn_error why;
  int is_left = 0;

  cairn__error_clear(&why);
  /* One that was never seen clean says nothing of the point. */
  if (t->has_bitmap && is_published && t->bitmap_state) {
    drop_bitmaps(o, s, points);
  } else if (t->has_bitmap &&
             cairn__bitmap_remove(s, o->point, NULL, &why) != 0) {
    warn(o, "cannot remove the bitmap of a point that does not use it", &why);
    is_left = 1;
  }
  if (t->clone_name[0] && is_published) {
    drop_clones(t, o);
  } else if (t->clone_name[0] &&
             cairn__clone_remove(o->io, t->clone_dirfd, t->clone_name,
                                 t->clone_path, &why) != 0) {
    warn(o, "cannot remove the clone of a point that failed", &why);
    is_left = 1;
  }
  t->has_bitmap = 0;
  t->clone_name[0] = '\0';
  return is_left;
}

void cairn__tracking_free(struct cairn__tracking *t)
{
  if (t->clone_fd >= 0)
    (void)t->io->close(t->io, t->clone_fd);
  if (t->clone_dirfd >= 0)
    (void)t->io->close(t->io, t->clone_dirfd);
  cairn__source_close(t->original);
  cairn__changes_free(t->changes);
  cairn__changes_free(t->claims);
  cairn__changes_free(t->since);
  json_decref(t->bitmap_state);
  cairn__free(t->clone_path);
  cairn__free(t->reason);
  cairn__tracking_init(t, CAIRN__TRACKER_DIGEST);
}
