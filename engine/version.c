/* The version of the library at run time, which may differ from the
 * CAIRN_VERSION that a program was compiled with. */
#include "cairn.h"

const char *cairn_version(void)
{
  return CAIRN_VERSION;
}
