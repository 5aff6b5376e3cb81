/* What may be wrong in an export directory, and what to do about it.
 *
 * A report, read-only: nothing is locked but source images for a look at their
 * bitmaps. Every finding has `what` (a word for programs), `subject` (a path, a
 * point, a disk), `text`, `advice`, and `is_fixable`.
 *
 * With "fix": what is surely ours and nobody's any more is removed first, under
 * the directory's lock: what crashed runs have left, clones and bitmaps of
 * points that neither this directory nor one of `also` knows. */
#ifndef CAIRN_EXPORT_DOCTOR_H
#define CAIRN_EXPORT_DOCTOR_H

#include <jansson.h>

#include "cairn.h"
#include "io.h"

/* options: { collection?: object, fix?: bool, also?: [export directories] }, or
 * NULL. *report: { directory, is_busy (somebody changes it now: clones and
 * bitmaps are not looked at), free_bytes, total_bytes, point_count,
 * marker_count, findings: [], fixed: [texts], chains: [ { VirtualMachineId,
 * disk, ReferencePointGroupId, depth } ], next: a plan (kinds.h) or null,
 * next_error: text or null }. */
int cairn__doctor(const struct cairn_io *io, const char *directory,
                  json_t *options, json_t **report, struct cairn_error *err);

#endif
