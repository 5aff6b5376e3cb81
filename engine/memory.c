/* One replaceable pair of functions behind every allocation, jansson's
 * included. Sizes of 0 are rounded up to 1, so that NULL always means out of
 * memory, and errno is ENOMEM then, whatever the replacement does. */
#include "memory.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cairn.h"
#include "json.h"

#define ALIGNMENT 4096

typedef void *realloc_function(void *, size_t);
typedef void free_function(void *);

static _Atomic(realloc_function *) current_realloc = realloc;
static _Atomic(free_function *) current_free = free;

void cairn_set_allocator(void *(*realloc_fn)(void *, size_t),
                         void (*free_fn)(void *))
{
  int is_complete = realloc_fn != NULL && free_fn != NULL;
  atomic_store(&current_realloc, is_complete ? realloc_fn : realloc);
  atomic_store(&current_free, is_complete ? free_fn : free);
  cairn__json_set_allocator(is_complete ? cairn__malloc : NULL,
                            is_complete ? cairn__free : NULL);
}

void cairn_free(void *p)
{
  cairn__free(p);
}

void *cairn__realloc(void *p, size_t size)
{
  realloc_function *f =
      atomic_load_explicit(&current_realloc, memory_order_relaxed);
  void *fresh = f(p, size != 0 ? size : 1);
  if (fresh == NULL)
    errno = ENOMEM;
  return fresh;
}

void *cairn__malloc(size_t size)
{
  return cairn__realloc(NULL, size);
}

void *cairn__calloc(size_t count, size_t size)
{
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  void *p = cairn__malloc(bytes);
  if (p != NULL)
    memset(p, 0, bytes);
  return p;
}

void cairn__free(void *p)
{
  if (p != NULL)
    atomic_load_explicit(&current_free, memory_order_relaxed)(p);
}

char *cairn__strndup(const char *s, size_t n)
{
  size_t length = strnlen(s, n);
  char *copy = cairn__malloc(length + 1);
  if (copy == NULL)
    return NULL;
  memcpy(copy, s, length);
  copy[length] = '\0';
  return copy;
}

char *cairn__strdup(const char *s)
{
  return cairn__strndup(s, strlen(s));
}

char *cairn__format(const char *fmt, ...)
{
  va_list arguments;
  va_start(arguments, fmt);
  int length = vsnprintf(NULL, 0, fmt, arguments);
  va_end(arguments);
  if (length < 0) {
    errno = ENOMEM;
    return NULL;
  }
  char *text = cairn__malloc((size_t)length + 1);
  if (text == NULL)
    return NULL;
  va_start(arguments, fmt);
  vsnprintf(text, (size_t)length + 1, fmt, arguments);
  va_end(arguments);
  return text;
}

/* The block that was really allocated is remembered in the word before the
 * aligned one. */
void *cairn__malloc_aligned(size_t size)
{
  size_t bytes;
  if (__builtin_add_overflow(size, ALIGNMENT + sizeof(void *), &bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  char *block = cairn__malloc(bytes);
  if (block == NULL)
    return NULL;
  uintptr_t start = (uintptr_t)block + sizeof(void *);
  char *aligned = block + sizeof(void *) + (-start & (ALIGNMENT - 1));
  memcpy(aligned - sizeof(void *), &block, sizeof block);
  return aligned;
}

void cairn__free_aligned(void *p)
{
  if (p == NULL)
    return;
  char *block;
  memcpy(&block, (char *)p - sizeof(void *), sizeof block);
  cairn__free(block);
}
