/* nbd_library.c: see nbd_library.h. */
#ifdef CAIRN_HAVE_LIBNBD

#include "nbd_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

#define SONAME "libnbd.so.0" /* the ABI of the header we are built with */

static struct cairn__nbd_library library;
static char trouble[256]; /* what the loader said; empty = loaded */

static void load(void)
{
  static const struct {
    const char *name;
    size_t offset;
  } calls[] = {
#define CALL(name) {"nbd_" #name, offsetof(struct cairn__nbd_library, name)},
      CAIRN__NBD_CALLS(CALL)
#undef CALL
  };
  void *handle = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
  const char *said;

  for (size_t i = 0; handle && i < sizeof calls / sizeof calls[0]; i++) {
    void *found = dlsym(handle, calls[i].name);

    if (!found)
      handle = NULL;
    else /* a function, and POSIX lets a pointer to it pass through void * */
      memcpy((char *)&library + calls[i].offset, &found, sizeof found);
  }
  if (handle)
    return;
  said = dlerror();
  snprintf(trouble, sizeof trouble, "%s", said ? said : SONAME);
}

const struct cairn__nbd_library *cairn__nbd_library(struct cairn_error *err)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;

  (void)pthread_once(&once, load);
  if (!trouble[0])
    return &library;
  cairn__fail(err, CAIRN_E_HELPER_MISSING,
              "libnbd, through which qcow2 images are read, cannot be loaded "
              "(%s); install it (Debian: libnbd0)",
              trouble);
  return NULL;
}

#endif
