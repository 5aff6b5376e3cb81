/* Allocation through one replaceable function, so that tests can make every
 * allocation fail in turn. Never aborts: callers handle NULL. */
#ifndef CAIRN_MEMORY_H
#define CAIRN_MEMORY_H

#include <stddef.h>

void *cairn__malloc(size_t size);
void *cairn__calloc(size_t count, size_t size); /* overflow gives NULL */
void *cairn__realloc(void *p, size_t size);
void cairn__free(void *p);
char *cairn__strdup(const char *s);
char *cairn__strndup(const char *s, size_t n);
/* printf into fresh memory; NULL when out of memory */
char *cairn__format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Memory aligned for direct I/O (4096); freed with cairn__free_aligned. */
void *cairn__malloc_aligned(size_t size);
void cairn__free_aligned(void *p);

#endif
