/* Where the project's own files are, for tests that read one. */
#ifndef CAIRN_TEST_SOURCE_H
#define CAIRN_TEST_SOURCE_H

#include <stdio.h>
#include <string.h>

/* Of a file below the project's directory; good until the next call. */
static const char *source_path(const char *below)
{
  static char path[4096];
  const char *slash = strstr(__FILE__, "tests/c/");

  snprintf(path, sizeof path, "%.*s%s", (int)(slash - __FILE__), __FILE__,
           below);
  return path;
}

#endif
