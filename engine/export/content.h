/* Proving that the stored bytes of one file are those that were written, and
 * that an image holds the content its digest map names.
 *
 * A check goes on after a finding. Findings are damage of the export; errors
 * (memory, a request to end, no permission) end the check. */
#ifndef CAIRN_EXPORT_CONTENT_H
#define CAIRN_EXPORT_CONTENT_H

#include <jansson.h>

#include "points.h"
#include "run.h"

#define CAIRN__FINDINGS_MAX 100u

/* Of one file or one point; belongs to one thread at a time. */
struct cairn__findings {
  json_t *array; /* {file, machine, disk, offset, guest_offset, what} */
  size_t count;  /* all, also those beyond FINDINGS_MAX, which are left out */
  int has_lost;  /* memory ran out for one: the check must not pass */
};

/* file: path in the point; NULL takes entry's. machine and disk come from
 * `entry`, a member of the manifest's files or NULL. offset and guest_offset:
 * bytes into the file and into the disk, -1 = none. */
void cairn__finding_add(struct cairn__findings *f, const json_t *entry,
                        const char *file, int64_t offset, int64_t guest_offset,
                        const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* 1 when the error says that the export is damaged, rather than that looking
 * at it was not possible. */
int cairn__error_is_damage(const struct cairn_error *err);

struct cairn__content_check {
  struct cairn__run *run; /* io, gate, bytes_done */
  const struct cairn__point *point;
  const struct cairn__digester *digester;
  const json_t *file; /* of the manifest; a digest map is checked together
                         with its image */
  const struct cairn__point *base; /* of a log: where its base is; NULL: not
                                      known, then its unchanged blocks cannot
                                      be judged */
  int has_no_map; /* its map is known to be missing or cut off */
  /* results */
  struct cairn__findings found;
  uint64_t bytes; /* of the files read */
};

/* Reads every byte of the file once. 0 also when something was found. */
int cairn__content_check_file(struct cairn__content_check *c,
                              struct cairn_error *err);

#endif
