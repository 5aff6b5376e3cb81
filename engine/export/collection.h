/* Checking the specification of an export, and of a collection, before
 * anything is touched: pure, no I/O. What passes is completed in place (ids in
 * upper case without braces, lists that were left out empty, defaults set), so
 * that later code reads members without asking whether they are there. Every
 * message has the JSON path of what it is about, as in
 * export.collection.machines[2].disks[1].format. */
#ifndef CAIRN_EXPORT_COLLECTION_H
#define CAIRN_EXPORT_COLLECTION_H

#include <jansson.h>

#include "cairn.h"

/* where: the JSON path of the object, "export.collection" */
int cairn__collection_check(json_t *collection, const char *where,
                            struct cairn_error *err);
/* The check of the kind "export". */
int cairn__export_check(json_t *spec, struct cairn_error *err);

#endif
