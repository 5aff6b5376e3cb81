/* Reading and writing JSON without trusting jansson with a lack of memory.
 *
 * jansson 2.14 goes on when the buffer of a token cannot grow: the token lacks
 * its end, and what was measured on the whole of it is written past a shorter
 * block. Every text is therefore read through cairn__json_load, which leaves
 * the parser at the first allocation that fails. When it writes, a key for
 * which there is no room is missing, and nothing says so: cairn__json_dump
 * does. */
#ifndef CAIRN_JSON_H
#define CAIRN_JSON_H

#include <stddef.h>

#include <jansson.h>

/* As json_loadb: flags are jansson's; error may be NULL. The value is the
 * caller's (json_decref). NULL with errno ENOMEM means that memory was
 * lacking, with any other errno (0) that the text is not what was asked for.
 * Any thread. */
json_t *cairn__json_load(const char *text, size_t length, size_t flags,
                         json_error_t *error);

/* A value as text, with a zero behind it; flags are jansson's. The caller frees
 * (cairn_free). NULL: out of memory, or what cannot be written (a value within
 * itself). Any thread. */
char *cairn__json_dump(const json_t *value, size_t flags);

/* Memory of values that go together: a million small blocks taken and given
 * back as few large ones. While it is open, on the thread that opened it,
 * values of cairn__json_load_in are in it; they are used and released
 * (json_decref) as any others, and others may be put into them, but none of
 * them may be left when it is closed. One that is opened within another is
 * closed first. */
struct cairn__json_region {
  struct cairn__json_region *outer;
  struct cairn__json_chunk *chunks; /* the last one first */
  char *at, *end;                   /* what is free of it */
};

void cairn__json_region_open(struct cairn__json_region *region);
void cairn__json_region_close(struct cairn__json_region *region);
/* As cairn__json_load, with the value in the region that was opened last. */
json_t *cairn__json_load_in(struct cairn__json_region *region, const char *text,
                            size_t length, size_t flags, json_error_t *error);

/* For cairn_set_allocator, which names the functions under the parser's; NULL:
 * those that it had before us. */
void cairn__json_set_allocator(void *(*malloc_fn)(size_t),
                               void (*free_fn)(void *));

#endif
