#include "cairn.h"

const char *cairn_version(void)
{
  return CAIRN_VERSION;
}
