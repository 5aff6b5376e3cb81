/* Finding reference points, and the files of a disk, in a tree of exports.
 *
 * An export directory holds points; a point is a subdirectory with a manifest,
 * whatever its name is (people rename and move directories). The directory of
 * one point may be given in place of the export directory: `self` is then that
 * point, and its parent is where bases are looked for.
 *
 * Nothing here follows a symbolic link below the directory that was given. */
#ifndef CAIRN_EXPORT_POINTS_H
#define CAIRN_EXPORT_POINTS_H

#include <jansson.h>

#include "digest.h"
#include "image.h"
#include "io.h"

#define CAIRN__POINT_CHAIN_MAX 200u

struct cairn__point {
  int fd;
  char *path;       /* for messages */
  json_t *manifest; /* read and checked */
  struct cairn__point *next;
};

struct cairn__exports {
  const struct cairn_io *io;
  int fd;                     /* the export directory; -1 when `self` is set
                                 and its parent cannot be read */
  char *path;                 /* for messages */
  struct cairn__point *self;  /* or NULL */
  struct cairn__point *bases; /* those that have been asked for */
};

int cairn__exports_open(const struct cairn_io *io, const char *directory,
                        struct cairn__exports *x, struct cairn_error *err);
void cairn__exports_close(struct cairn__exports *x); /* idempotent */
/* The names of the subdirectories that could be points, sorted: no dot files,
 * so no work directories. *names: new reference, array of strings. */
int cairn__exports_names(const struct cairn__exports *x, json_t **names,
                         struct cairn_error *err);
/* Opens a subdirectory as a point. NOT_AN_EXPORT when it has no manifest. */
int cairn__exports_point(const struct cairn__exports *x, const char *name,
                         struct cairn__point **out, struct cairn_error *err);
/* By ReferencePointGroupId (any case, braces, or a unique prefix of 4 or more
 * characters) or by the directory's name. id NULL: `self`. The caller closes
 * the point. */
int cairn__exports_find(struct cairn__exports *x, const char *id,
                        struct cairn__point **out, struct cairn_error *err);
/* The point with exactly this id, kept open until the exports are closed or
 * forgotten. Not for several threads. */
int cairn__exports_base(struct cairn__exports *x, const char *id,
                        const struct cairn__point **out,
                        struct cairn_error *err);
void cairn__exports_forget_bases(struct cairn__exports *x);
void cairn__point_close(const struct cairn_io *io, struct cairn__point *p);

const char *cairn__point_id(const struct cairn__point *p);
/* The digester of the point's manifest; reads and proves the secret. */
int cairn__point_digester(const struct cairn_io *io,
                          const struct cairn__point *p,
                          struct cairn__digester *d, struct cairn_error *err);
/* The entry of the manifest that holds the disk ("disk" or "log"), and that of
 * its digest map; NULL when there is none. Borrowed. */
const json_t *cairn__point_image(const struct cairn__point *p, const char *vm,
                                 const char *disk);
const json_t *cairn__point_map(const struct cairn__point *p, const char *vm,
                               const char *disk);

/* A step of a chain: a point and the entry of its manifest for the disk. */
struct cairn__link {
  const struct cairn__point *point;
  const json_t *image;
};
/* The steps from an image down to its full, top first, every base found and
 * seen to fit. The caller frees the array; the points stay open as
 * cairn__exports_base() says. */
int cairn__point_links(struct cairn__exports *x, const struct cairn__point *p,
                       const json_t *image, struct cairn__link **links,
                       size_t *count, struct cairn_error *err);
/* The directory that holds a regular file of the point, for the caller to
 * close, and the file's name in it. EXPORT_CORRUPT as cairn__open_file(). */
int cairn__point_open_parent(const struct cairn_io *io,
                             const struct cairn__point *p, const char *path,
                             int *parent, const char **name,
                             struct cairn_error *err);
/* Of "machines" in the manifest; NULL when it is not there. Borrowed. */
const json_t *cairn__point_machine(const struct cairn__point *p,
                                   const char *id);
/* By id in any form, or by ElementName. *id: of the only one that matches. */
int cairn__point_find_machine(const struct cairn__point *p, const char *wanted,
                              const char **id, struct cairn_error *err);
/* The only image of the machine (as above) and the disk; both may be NULL.
 * NOT_FOUND, AMBIGUOUS. */
int cairn__point_choose_disk(const struct cairn__point *p, const char *machine,
                             const char *disk, const json_t **image,
                             struct cairn_error *err);
/* The error when not one but `found` images are of this machine (an id) and
 * disk: names those that are there. */
int cairn__point_fail_disk(const struct cairn__point *p, const char *vm,
                           const char *disk, size_t found,
                           struct cairn_error *err);

/* Opens a regular file of the point for reading (`path` relative, as in its
 * manifest). EXPORT_CORRUPT when it is missing, a symbolic link or no regular
 * file. *st may be NULL. */
int cairn__open_file(const struct cairn_io *io, const struct cairn__point *p,
                     const char *path, int *fd, struct stat *st,
                     struct cairn_error *err);

/* Opens image and map of a manifest entry, having checked that both are what
 * the manifest says: sizes, ids, format, backing name. */
int cairn__point_open_layer(struct cairn__exports *x,
                            const struct cairn__point *p, const json_t *image,
                            struct cairn__layer **out, struct cairn_error *err);
int cairn__point_open_map(const struct cairn_io *io,
                          const struct cairn__point *p, const json_t *image,
                          const struct cairn__digester *d,
                          struct cairn__map **out, struct cairn_error *err);
/* Walks from an image down to its full. With `layers`: all opened, bottom
 * first, as cairn__source_open_layers() wants them; the caller owns them and
 * frees the array. NULL: only checks that every base is there and fits. */
int cairn__point_open_chain(struct cairn__exports *x,
                            const struct cairn__point *p, const json_t *image,
                            struct cairn__layer ***layers, size_t *count,
                            struct cairn_error *err);

#endif
