#include "json.h"

#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

/* What the parser holds while it reads, so that it can be left at any
 * allocation. Belongs to the thread that reads. */
struct load {
  jmp_buf out;
  void **blocks;
  size_t count, capacity;
};

static _Thread_local struct load *current;
static json_malloc_t under_malloc = malloc;
static json_free_t under_free = free;

static int remember(struct load *load, void *block)
{
  if (load->count == load->capacity) {
    size_t capacity = load->capacity ? load->capacity * 2 : 64;
    void **blocks =
        cairn__realloc(load->blocks, capacity * sizeof load->blocks[0]);
    if (!blocks)
      return -1;
    load->blocks = blocks;
    load->capacity = capacity;
  }
  load->blocks[load->count++] = block;
  return 0;
}

static void *guarded_malloc(size_t size)
{
  struct load *load = current;
  void *block = under_malloc(size);

  if (!load)
    return block;
  if (block && remember(load, block) == 0)
    return block;
  if (block)
    under_free(block);
  longjmp(load->out, 1);
}

static void guarded_free(void *block)
{
  struct load *load = current;

  if (load && block)
    for (size_t i = load->count; i-- > 0;) /* mostly among the last */
      if (load->blocks[i] == block) {
        load->blocks[i] = load->blocks[--load->count];
        break;
      }
  under_free(block);
}

json_t *cairn__json_load(const char *text, size_t length, size_t flags,
                         json_error_t *error)
{
  struct load load = {.blocks = NULL};
  json_error_t unused;
  json_t *value;

  if (setjmp(load.out) != 0) {
    current = NULL;
    while (load.count > 0)
      under_free(load.blocks[--load.count]);
    cairn__free(load.blocks);
    if (error) {
      memset(error, 0, sizeof *error);
      strcpy(error->text, "out of memory");
    }
    errno = ENOMEM;
    return NULL;
  }
  current = &load;
  value = json_loadb(text, length, flags, error ? error : &unused);
  current = NULL;
  cairn__free(load.blocks);
  errno = 0;
  return value;
}

void cairn__json_set_allocator(void *(*malloc_fn)(size_t),
                               void (*free_fn)(void *))
{
  under_malloc = malloc_fn;
  under_free = free_fn;
}

/* The parser's functions are the process's: what an application has set stays
 * below ours, and is there again when the library is unloaded. */
__attribute__((constructor)) static void guard(void)
{
  json_get_alloc_funcs(&under_malloc, &under_free);
  json_set_alloc_funcs(guarded_malloc, guarded_free);
}

__attribute__((destructor)) static void unguard(void)
{
  json_malloc_t malloc_fn;
  json_free_t free_fn;

  json_get_alloc_funcs(&malloc_fn, &free_fn);
  if (malloc_fn == guarded_malloc)
    json_set_alloc_funcs(under_malloc, under_free);
}
