/* The kinds of work an engine thread can do, and the checks of their
 * specifications. Each kind has: a check (pure, no I/O: called at submit; the
 * specification object is completed with defaults in place), a main (the body
 * of a run, see run.h), and a plan (a dry run: reads, writes nothing).
 *
 * Specification objects (docs/job-model.md, "Submitting"):
 *
 * export:  { collection: { CollectionId, ElementName?, source_directories?: [],
 *                          machines: [ { VirtualMachineId, ElementName?,
 *                            disks: [ { id, path, format: "raw"|"qcow2",
 *                                       assume_quiescent?: bool } ],
 *                            config?: [path], runtime?: [path],
 *                            guest_state?: [path] } ] },
 *            directory, base?: "none"|"latest"|id, format?: "qcow2"|"raw",
 *            digest?: "xxh3-128"|"sha-256"|"blake2b-256",
 *            on_disk_error?: "fail"|"continue", depth_limit?, resume?: bool }
 * verify:  { directory, point?: id (all points when absent),
 *            depth?: "set"|"chain"|"content" (default), source?: collection }
 * reference_point:
 *          { action: "create", directory, collection,
 *            tracker?: "clone"|"bitmap"|... } or
 *          { action: "destroy"|"remove_data", directory, point: id,
 *            CollectionId?, dependants?: bool }
 * restore: { directory, point, to, machine?: id, disk?: id,
 *            format?: "raw"|"qcow2" (default: raw), overwrite?: bool }
 * stream:  { directory, point, machine?: id, disk?: id,
 *            base?: "none"|id (default: what the disk is based on),
 *            output: path|descriptor }
 * import:  { input: path|descriptor, directory, collection,
 *            machine?: id, disk?: id,
 *            base?: "none"|id (default: what the stream starts from),
 *            format?: "qcow2"|"raw" (of a full),
 *            digest?: "xxh3-128"|"sha-256"|"blake2b-256" }
 * merge:   { directory, point, into?: "full" (default)|id, through?: [id]
 *            (the points between, oldest first: checked), to?: directory }
 * prune:   { directory, collection?: id, keep: { last?, daily?, weekly?,
 *            monthly?, yearly?: n, within?: "30d"|seconds, ids?: [id] } }
 */
#ifndef CAIRN_EXPORT_KINDS_H
#define CAIRN_EXPORT_KINDS_H

#include <jansson.h>

#include "run.h"

struct cairn__kind {
  const char *name; /* "export" */
  int (*check)(json_t *spec, struct cairn_error *err);
  void (*main)(struct cairn__run *run);
  /* *plan: new reference */
  int (*plan)(const struct cairn_io *io, const json_t *spec, json_t **plan,
              struct cairn_error *err);
};

extern const struct cairn__kind cairn__kind_export;
extern const struct cairn__kind cairn__kind_verify;
extern const struct cairn__kind cairn__kind_restore;
extern const struct cairn__kind cairn__kind_stream;
extern const struct cairn__kind cairn__kind_import;
extern const struct cairn__kind cairn__kind_merge;
extern const struct cairn__kind cairn__kind_prune;
extern const struct cairn__kind cairn__kind_reference;

#endif
