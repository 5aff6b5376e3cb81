/* json.c: see json.h. */
#include "json.h"

#include <errno.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

/* A list of blocks. */
struct blocks {
  void **list;
  size_t count, capacity;
};

enum {
  CHUNK_MIN =
      8 << 10, /* bytes of a region's first one; each is twice the last */
  CHUNK_MAX = 8 << 20,
  ALIGNMENT = _Alignof(max_align_t)
};

struct cairn__json_chunk {
  struct cairn__json_chunk *next;
  char *end;
  _Alignas(max_align_t) char bytes[];
};

/* What the parser has taken while it reads, so that it can be left at any
 * allocation. What it gives back stays until it is done: then all is known to
 * go, or only that. In a region nothing has to be known. Belongs to the thread
 * that reads. */
struct load {
  jmp_buf out;
  struct cairn__json_region *region; /* or NULL */
  struct blocks taken, given;
};

static _Thread_local struct load *current;
static _Thread_local struct cairn__json_region *region_of_thread;
/* Below ours: what is set now, and what was there before us. Changed only while
 * no other thread is here (cairn_set_allocator). */
static json_malloc_t under_malloc = malloc, before_malloc = malloc;
static json_free_t under_free = free, before_free = free;

static int append(struct blocks *b, void *block)
{
  if (b->count == b->capacity) {
    size_t capacity = b->capacity ? b->capacity * 2 : 64;
    void **list = cairn__realloc(b->list, capacity * sizeof list[0]);

    if (!list)
      return -1;
    b->list = list;
    b->capacity = capacity;
  }
  b->list[b->count++] = block;
  return 0;
}

static void free_all(const struct blocks *b)
{
  for (size_t i = 0; i < b->count; i++)
    under_free(b->list[i]);
}

/* Room for so many bytes in a region; NULL: out of memory. */
static void *take(struct cairn__json_region *r, size_t size)
{
  size_t next =
      r->chunks ? 2 * (size_t)(r->chunks->end - r->chunks->bytes) : CHUNK_MIN;
  struct cairn__json_chunk *c;
  char *block = r->at;

  if (size > SIZE_MAX / 2)
    return NULL;
  size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (r->chunks && size <= (size_t)(r->end - r->at)) {
    r->at += size;
    return block;
  }
  if (next > CHUNK_MAX)
    next = CHUNK_MAX;
  if (next < size)
    next = size;
  c = under_malloc(sizeof *c + next);
  if (!c)
    return NULL;
  c->next = r->chunks;
  c->end = c->bytes + next;
  r->chunks = c;
  r->at = c->bytes + size;
  r->end = c->end;
  return c->bytes;
}

/* Whether a block is in a region of this thread. */
static int is_in_region(const void *block)
{
  uintptr_t at = (uintptr_t)block;

  for (const struct cairn__json_region *r = region_of_thread; r; r = r->outer)
    for (const struct cairn__json_chunk *c = r->chunks; c; c = c->next)
      if (at >= (uintptr_t)c->bytes && at < (uintptr_t)c->end)
        return 1;
  return 0;
}

static void *guarded_malloc(size_t size)
{
  struct load *load = current;
  void *block =
      load && load->region ? take(load->region, size) : under_malloc(size);

  if (load && load->region && block)
    return block;
  if (!load)
    return block;
  if (block && append(&load->taken, block) == 0)
    return block;
  if (block)
    under_free(block);
  longjmp(load->out, 1);
}

static void guarded_free(void *block)
{
  struct load *load = current;

  if (region_of_thread && block && is_in_region(block))
    return;
  if (!load)
    under_free(block);
  else if (block && append(&load->given, block) != 0)
    longjmp(load->out, 1);
}

/* -1: memory was lacking; else *value may be NULL. */
static int read_text(struct load *load, const char *text, size_t length,
                     size_t flags, json_error_t *error, json_t **value)
{
  if (setjmp(load->out) != 0)
    return -1;
  *value = json_loadb(text, length, flags, error);
  return 0;
}

void cairn__json_region_open(struct cairn__json_region *region)
{
  *region = (struct cairn__json_region){.outer = region_of_thread};
  region_of_thread = region;
}

void cairn__json_region_close(struct cairn__json_region *region)
{
  region_of_thread = region->outer;
  while (region->chunks) {
    struct cairn__json_chunk *c = region->chunks;

    region->chunks = c->next;
    under_free(c);
  }
}

json_t *cairn__json_load(const char *text, size_t length, size_t flags,
                         json_error_t *error)
{
  return cairn__json_load_in(NULL, text, length, flags, error);
}

json_t *cairn__json_load_in(struct cairn__json_region *region, const char *text,
                            size_t length, size_t flags, json_error_t *error)
{
  struct load load = {.region = region};
  json_error_t unused;
  json_t *value = NULL;
  int result;

  if (!error)
    error = &unused;
  errno = 0;
  current = &load;
  result = read_text(&load, text, length, flags, error, &value);
  current = NULL;
  free_all(result == 0 && value ? &load.given : &load.taken);
  cairn__free(load.taken.list);
  cairn__free(load.given.list);
  /* Without our functions under the parser errno still tells of memory. */
  if (result == 0 && (value || errno != ENOMEM)) {
    errno = 0;
    return value;
  }
  memset(error, 0, sizeof *error);
  strcpy(error->text, "out of memory");
  errno = ENOMEM;
  return NULL;
}

/* ---- writing ---------------------------------------------------------------
 */

struct dump {
  char *text;
  size_t length, capacity;
  int has_failed; /* for good, whatever jansson makes of it */
};

static int add_text(const char *bytes, size_t length, void *data)
{
  struct dump *d = data;

  if (d->has_failed || length >= SIZE_MAX / 4 - d->length)
    d->has_failed = 1;
  if (!d->has_failed && d->capacity - d->length <= length) {
    size_t capacity = 2 * (d->length + length) + 128;
    char *text = cairn__realloc(d->text, capacity);

    if (text) {
      d->text = text;
      d->capacity = capacity;
    } else {
      d->has_failed = 1;
    }
  }
  if (d->has_failed)
    return -1;
  memcpy(d->text + d->length, bytes, length);
  d->length += length;
  return 0;
}

char *cairn__json_dump(const json_t *value, size_t flags)
{
  struct dump d = {0};
  char *text;

  if (json_dump_callback(value, add_text, &d, flags) != 0 || d.has_failed ||
      d.length == 0) {
    cairn__free(d.text);
    return NULL;
  }
  d.text[d.length] = '\0';
  text = cairn__realloc(d.text, d.length + 1); /* a shorter one */
  return text ? text : d.text;
}

/* ---- the allocator ---------------------------------------------------------
 */

void cairn__json_set_allocator(void *(*malloc_fn)(size_t),
                               void (*free_fn)(void *))
{
  under_malloc = malloc_fn ? malloc_fn : before_malloc;
  under_free = free_fn ? free_fn : before_free;
}

/* The parser's functions are the process's: what an application has set before
 * stays below ours, and is there again when the library is unloaded. One that
 * sets its own later takes ours away. */
__attribute__((constructor)) static void guard(void)
{
  json_get_alloc_funcs(&before_malloc, &before_free);
  cairn__json_set_allocator(NULL, NULL);
  json_set_alloc_funcs(guarded_malloc, guarded_free);
}

__attribute__((destructor)) static void unguard(void)
{
  json_malloc_t malloc_fn;
  json_free_t free_fn;

  json_get_alloc_funcs(&malloc_fn, &free_fn);
  if (malloc_fn == guarded_malloc)
    json_set_alloc_funcs(before_malloc, before_free);
}
