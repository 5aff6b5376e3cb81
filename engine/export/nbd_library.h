/* libnbd, loaded when the first image needs it and never unloaded: it brings
 * TLS, XML and with them thirty megabytes of libraries, which would be most of
 * the time that a command takes to start with a cold cache. */
#ifndef CAIRN_EXPORT_NBD_LIBRARY_H
#define CAIRN_EXPORT_NBD_LIBRARY_H

#include <libnbd.h>

#include "cairn.h"

/* What is called of it: X(name), libnbd's nbd_<name>. */
#define CAIRN__NBD_CALLS(X)                                                    \
  X(create)                                                                    \
  X(close)                                                                     \
  X(set_pread_initialize)                                                      \
  X(add_meta_context)                                                          \
  X(can_meta_context)                                                          \
  X(aio_connect_socket)                                                        \
  X(aio_is_connecting)                                                         \
  X(aio_is_ready)                                                              \
  X(aio_block_status)                                                          \
  X(aio_pread)                                                                 \
  X(poll)                                                                      \
  X(get_size)                                                                  \
  X(get_errno)

struct cairn__nbd_library {
#define CAIRN__NBD_MEMBER(name) __typeof__(nbd_##name) *(name);
  CAIRN__NBD_CALLS(CAIRN__NBD_MEMBER)
#undef CAIRN__NBD_MEMBER
};

/* The library, or NULL with CAIRN_E_HELPER_MISSING when it is not installed.
 * Any thread. */
const struct cairn__nbd_library *cairn__nbd_library(struct cairn_error *err);

#endif
