/* export_resume.c: what an interrupted export leaves in its work directory, and
 * how the next one of the collection goes on from there.
 *
 * The new run is a point of its own: it shows its sources as they are now. Of
 * the old one it takes the secret, so that digests agree, and the images, into
 * which it need not write what they hold already. So no point is ever put
 * together from two moments, whatever happened to the sources in between.
 *
 * What need not be read from the source either is what is proved to be the same
 * still: by the clone or the bitmap that the old run's tracker has left, or
 * because both export the same marker. It is read from the old image. The
 * content goes by a name, its origin, which it keeps where all of it is proved.
 */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "export.h"
#include "memory.h"

struct cairn__wanted cairn__export_wanted(const struct cairn__export *x)
{
  return (struct cairn__wanted){
      .collection = cairn__text_of(x->collection, "CollectionId"),
      .algorithm = cairn__text_of(x->spec, "digest"),
      .image_format = cairn__text_of(x->spec, "format"),
      .marker = cairn__text_of(x->spec, "point"),
  };
}

const char *cairn__export_left_point(const struct cairn__export *x)
{
  return cairn__text_of(x->publication.left, "ReferencePointGroupId");
}

int cairn__export_secret(struct cairn__export *x, struct cairn_error *err)
{
  unsigned char secret[CAIRN__SECRET_SIZE];

  if (!(x->publication.left &&
        cairn__plan_secret(x->publication.left, secret)) &&
      cairn__digest_secret(secret, err) != 0)
    return -1;
  cairn__digester_init(&x->digester, x->bases.o.algorithm, secret);
  explicit_bzero(secret, sizeof secret);
  return 0;
}

/* ---- the plan ------------------------------------------------------------ */

/* What the source still shows of what it showed to the run that is taken up:
 * d->is_still and the tracking's `since`. */
static int look_back(struct cairn__export *x, const struct cairn__member *m,
                     struct cairn__member_disk *d, struct cairn_error *err)
{
  const json_t *left = cairn__plan_find(x->publication.left, m->id, d->id);

  if (!left)
    return 0;
  /* The work is of the same marker (cairn__plan_is_of), and both runs have seen
   * that its disks are what they were (cairn__marker_check). */
  if (x->marker) {
    d->is_still = 1;
    return 0;
  }
  if (d->twin)
    return 0;
  return cairn__tracking_since(&d->tracking, &x->members.tracking, m->id, d->id,
                               cairn__export_left_point(x), left, d->source,
                               &d->is_still, err);
}

static int plan_disk(struct cairn__export *x, const struct cairn__member *m,
                     struct cairn__member_disk *d, struct cairn_error *err)
{
  const struct cairn__point *base = d->base.point;
  unsigned char origin[16];
  int is_still;
  char name[96];

  if (x->publication.left && look_back(x, m, d, err) != 0)
    return -1;
  is_still = d->is_still &&
             cairn__plan_origin(x->publication.left, m->id, d->id, origin);
  snprintf(name, sizeof name, "%s.%s", d->id, base ? "qcow2" : x->format);
  if (cairn__plan_add(
          x->plan, m->id, d->id, name, base ? cairn__point_id(base) : NULL,
          cairn__member_source(d)->length, is_still ? origin : NULL) != 0 ||
      (!x->marker && !d->twin &&
       cairn__tracking_describe_kept(
           &d->tracking, cairn__plan_find(x->plan, m->id, d->id)) != 0))
    return cairn__fail_memory(err);
  return 0;
}

static int make_plan(struct cairn__export *x, struct cairn_error *err)
{
  x->plan = cairn__plan_new(cairn__text_of(x->collection, "CollectionId"),
                            x->run->instance_id, x->run->point_uuid, x->time_us,
                            x->format, x->marker != NULL, &x->digester);
  if (!x->plan)
    return cairn__fail_memory(err);
  for (size_t i = 0; i < x->members.count; i++) {
    struct cairn__member *m = &x->members.list[i];

    for (size_t j = 0; j < m->disk_count && m->result != CAIRN__MEMBER_FAILED;
         j++) {
      if (plan_disk(x, m, &m->disks[j], err) != 0)
        return -1;
    }
  }
  return 0;
}

int cairn__export_begin(struct cairn__export *x, struct cairn_error *err)
{
  struct cairn__publication *p = &x->publication;

  if (make_plan(x, err) != 0 ||
      (p->left && cairn__resume_tidy(x->io, p->workfd, p->pointfd, p->work_path,
                                     p->left, x->plan, err) != 0))
    return -1;
  if (cairn__plan_write(x->io, p->workfd, p->work_path, x->plan, err) != 0)
    return -1;
  x->has_begun = 1;
  return 0;
}

/* ---- journals ------------------------------------------------------------ */

/* A tracked disk with fewer bytes to read than these is sooner done again than
 * its journal, of which each slot lies in a page of its own, is removed. */
#define JOURNAL_MIN (UINT64_C(64) << 20)

/* The export does not depend on it. */
static void warn_of_journal(const struct cairn__export *x,
                            const struct cairn__member *m,
                            const struct cairn__member_disk *d,
                            const struct cairn_error *why)
{
  cairn__run_warn(x->run,
                  "disk %s of machine %s would be written anew if this export "
                  "were interrupted: %s",
                  d->id, m->id, why->message);
}

void cairn__export_open_journal(struct cairn__export *x,
                                const struct cairn__member *m,
                                const struct cairn__member_disk *d,
                                int is_resumed, struct cairn__copy *copy)
{
  char name[CAIRN__JOURNAL_NAME_MAX], path[PATH_MAX];
  unsigned char known[16];
  struct cairn_error why;
  struct cairn__journal_options o = {
      .io = x->io,
      .dirfd = x->publication.workfd,
      .name = name,
      .path = path,
      .digester = &x->digester,
      .virtual_size = copy->source->virtual_size,
  };

  if (d->tracking.changes && d->data_bytes < JOURNAL_MIN)
    return;
  cairn__journal_name(m->id, d->id, name);
  snprintf(path, sizeof path, "%s/%s", x->publication.work_path, name);
  if (is_resumed && (d->is_still || d->tracking.since) &&
      cairn__plan_origin(x->publication.left, m->id, d->id, known)) {
    o.known = known;
    o.since = d->tracking.since;
  }
  cairn__error_clear(&why);
  if (!cairn__plan_origin(x->plan, m->id, d->id, o.origin))
    cairn__fail(&why, CAIRN_E_INTERNAL, "the disk is not in the plan");
  else
    (void)cairn__journal_open(&o, &copy->journal, &why);
  if (!copy->journal)
    warn_of_journal(x, m, d, &why);
  copy->is_resumed = is_resumed && copy->journal;
}

void cairn__export_close_journal(struct cairn__export *x,
                                 const struct cairn__member *m,
                                 const struct cairn__member_disk *d,
                                 struct cairn__copy *copy)
{
  struct cairn_error why;

  if (!copy->journal)
    return;
  cairn__error_clear(&why);
  if (cairn__journal_check(copy->journal, &why) != 0)
    warn_of_journal(x, m, d, &why);
  /* a journal that broke off tells of what was written before */
  if (copy->bytes_written > 0)
    x->has_written = 1;
  cairn__journal_close(copy->journal);
  copy->journal = NULL;
}

/* ---- after a failure ----------------------------------------------------- */

/* What passes: the same run may succeed later. */
static int may_pass(int id)
{
  switch (id) {
  case CAIRN_E_DISK_FULL:
  case CAIRN_E_IO_ERROR:
  case CAIRN_E_HELPER_FAILED:
  case CAIRN_E_NBD:
  case CAIRN_E_TIMEOUT:
  case CAIRN_E_NO_MEMORY:
    return 1;
  default:
    return 0;
  }
}

int cairn__export_is_kept(struct cairn__export *x, int id)
{
  const struct cairn__publication *p = &x->publication;
  char shown[512];

  if (id == CAIRN_E_TERMINATED)
    return 0;
  if (id == CAIRN_E_KILLED)
    return 1;
  if (p->pointfd < 0 || !(p->left || (x->has_written && may_pass(id))))
    return p->left != NULL;
  cairn__run_warn(x->run,
                  "%llu bytes of what was exported stay in \"%s\": the next "
                  "export of this collection goes on from there",
                  (unsigned long long)cairn__resume_bytes(x->io, p->pointfd),
                  cairn__printable(p->work_path, shown, sizeof shown));
  return 1;
}
