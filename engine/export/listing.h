/* What an export directory holds, as clients list it: points and markers. */
#ifndef CAIRN_EXPORT_LISTING_H
#define CAIRN_EXPORT_LISTING_H

#include <jansson.h>

#include "cairn.h"
#include "io.h"

/* As cairn__points_read (manifest.h), with `kind` ("export" or "marker") and
 * `has_associated_data`, and a remark where an audit has found a point
 * doubtful. An index that cannot be used is an entry of its own, of the kind
 * "index", with "error". */
int cairn__points_list(const struct cairn_io *io, const char *directory,
                       json_t **points, struct cairn_error *err);
/* What is kept for a point (a whole id, in canonical form): entries as in
 * tracked.h with `exists` (true or false), or `error` where that cannot be
 * told. NOT_FOUND when there is no such point. */
int cairn__point_data(const struct cairn_io *io, const char *directory,
                      const char *id, json_t **data, struct cairn_error *err);

#endif
