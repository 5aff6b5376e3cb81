/* What the C files of the guard share. guard.c has the isolated state and its
 * budget, guard_library.c what scripts find in it, pattern.c its patterns.
 *
 * Everything here but cairn__guard_of may raise, in the isolated state. */
#ifndef CAIRN_GUARD_H
#define CAIRN_GUARD_H

#include <stddef.h>
#include <stdint.h>

#include "binding.h"

struct cairn__guard;

/* The guard of an isolated state: only ever called within one. */
struct cairn__guard *cairn__guard_of(lua_State *L);

/* Takes `steps` instructions from the budget and, now and then, looks at the
 * clock. Whatever loops in C calls it, by what it costs. */
void cairn__guard_charge(lua_State *L, uint64_t steps);

/* Before a string of this size is made: collects garbage when it would not fit
 * twice, because the buffers of strings do not; stops when it never could. */
void cairn__guard_room(lua_State *L, size_t bytes);

/* After a protected call that ended with `status`: raises again when the
 * decision has been stopped, which no script may outlive. */
void cairn__guard_check(lua_State *L, int status);

/* Whether the decision has been stopped: what is left to do is unwinding. */
int cairn__guard_is_stopped(lua_State *L);

/* lua_resume and lua_resetthread for coroutines of the script, which the budget
 * follows; they raise where the coroutines within each other are too many.
 * After both comes cairn__guard_check. */
int cairn__guard_resume(lua_State *L, lua_State *co, int arguments,
                        int *results);
int cairn__guard_reset(lua_State *L, lua_State *co);
/* A new coroutine on the stack, paid for. */
lua_State *cairn__guard_thread(lua_State *L);
/* The coroutine that decisions run in, which is the script's main one. */
int cairn__guard_is_main(lua_State *L);

/* Adds to what the decision prints; cut off where it is too much. */
void cairn__guard_print(lua_State *L, const char *text, size_t length);

/* Opens all that scripts find in an isolated state. */
void cairn__guard_open_library(lua_State *L);

/* find, match, gmatch and gsub, into the table on top. */
void cairn__guard_open_patterns(lua_State *L);

#endif
