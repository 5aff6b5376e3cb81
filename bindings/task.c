/* The guard over task coroutines: no body of a job can keep the program for
 * itself.
 *
 * Each task coroutine carries a count hook. Every HOOK_COUNT instructions it
 * looks at the clock; when the task has had its SLICE, the hook yields and the
 * Lua side resumes the task in a later turn. So a body that never waits stalls
 * nobody, and can be terminated and killed.
 *
 * Where a yield is not possible (inside the comparison of table.sort, the
 * callback of string.gsub) or would end up in the wrong place (an inner
 * coroutine, which inherits the hook; its resumer would see a yield that is
 * not the body's), the hook lets it go on until ESCAPE_US have passed since
 * the task was resumed, then raises, with a count of 1 from then on, so that a
 * loop around pcall cannot swallow the error. Meanwhile the task's own count is
 * set to 1: as soon as its own code runs again, it yields.
 *
 * While code of this module is on top (its files are declared with trust()),
 * the hook neither yields nor raises: the Lua side is never interrupted half
 * way through its own bookkeeping.
 *
 * What no hook reaches: one long call into C (a pathological string.find). The
 * documents say so. */
#include "binding.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cairn.h"

enum {
  HOOK_COUNT = 10000, /* about 50 to 100 microseconds of plain Lua */
  RETRY_COUNT = 7,    /* until the code on top is no longer ours */
  CLOSE_COUNT = 1000,
  CLOSE_BUDGET = 20000000, /* instructions of all __close of a closed task */
  SOURCE_MAX = 32
};
static const int64_t SLICE_US = 2000;
static const int64_t ESCAPE_US = 1000000;

enum { PENDING_NONE = 0, PENDING_TERMINATE = 1 };

/* One per Lua state, in its registry. */
struct guard {
  const lua_State *task; /* that runs now, only compared; NULL: none */
  int64_t started_us;    /* its slice */
  int pending, has_yielded, is_closing;
  int64_t budget; /* instructions left when closing */
  lua_CFunction pcall, xpcall;
  size_t source_count;
  char sources[SOURCE_MAX][LUA_IDSIZE];
};

static const char guard_key = 'g';

static int64_t now_us(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static struct guard *get_guard(lua_State *L)
{
  struct guard *guard = NULL;
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_key) == LUA_TUSERDATA)
    guard = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return guard;
}

static int is_trusted(const struct guard *guard, lua_State *L, lua_Debug *ar)
{
  lua_getinfo(L, "S", ar);
  for (size_t i = 0; i < guard->source_count; i++)
    if (strcmp(guard->sources[i], ar->short_src) == 0)
      return 1;
  return 0;
}

static void set_count(lua_State *L, lua_Hook hook, int count)
{
  if (lua_gethook(L) != hook || lua_gethookcount(L) != count)
    lua_sethook(L, hook, LUA_MASKCOUNT, count);
}

/* { code = "terminated", message = ... } with the metatable of the Lua side's
 * error objects, if that has given one */
static const char error_key = 'e';

static void push_terminated(lua_State *L)
{
  lua_createtable(L, 0, 2);
  lua_pushliteral(L, "terminated");
  lua_setfield(L, -2, "code");
  lua_pushliteral(L, "the job was asked to terminate");
  lua_setfield(L, -2, "message");
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &error_key) == LUA_TTABLE)
    lua_setmetatable(L, -2);
  else
    lua_pop(L, 1);
}

/* Whether an error raised here goes through a message handler of the body's
 * own: the innermost protected call is an xpcall, and not the module's, which
 * the body was called by. */
static int has_handler(const struct guard *guard, lua_State *L)
{
  lua_Debug ar;
  for (int level = 0; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "f", &ar);
    lua_CFunction f = lua_tocfunction(L, -1);
    lua_pop(L, 1);
    if (f != NULL && f == guard->pcall)
      return 0;
    if (f != NULL && f == guard->xpcall)
      return lua_getstack(L, level + 1, &ar) && !is_trusted(guard, L, &ar);
  }
  return 0;
}

/* A hook does not run within a hook, and a message handler of an error that a
 * hook raises runs in it: one that does not return could not be stopped. Lua
 * calls none for the error of memory, which lua_error knows by its text. */
static int raise_here(lua_State *L, const char *message)
{
  if (has_handler(get_guard(L), L)) {
    lua_pushliteral(L, "not enough memory");
    return lua_error(L);
  }
  luaL_where(L, 0);
  lua_pushstring(L, message);
  lua_concat(L, 2);
  return lua_error(L);
}

static void hook(lua_State *L, lua_Debug *ar)
{
  luaL_checkstack(L, 8, NULL);
  struct guard *guard = get_guard(L);
  if (guard == NULL || guard->task == NULL)
    return; /* made in a task, running outside of one: none of ours */
  if (guard->is_closing) {
    guard->budget -= lua_gethookcount(L);
    if (guard->budget > 0)
      return;
    set_count(L, hook, 1);
    raise_here(L, "the clean-up of a killed job took too long");
  }
  if (is_trusted(guard, L, ar)) {
    if (lua_gethookcount(L) > RETRY_COUNT)
      set_count(L, hook, RETRY_COUNT);
    return;
  }
  int64_t spent = now_us() - guard->started_us;
  if (L == guard->task && lua_isyieldable(L)) {
    if (guard->pending != PENDING_NONE) {
      guard->pending = PENDING_NONE;
      set_count(L, hook, HOOK_COUNT);
      push_terminated(L);
      lua_error(L);
    }
    if (spent >= SLICE_US) {
      guard->has_yielded = 1;
      lua_yield(L, 0);
      return;
    }
    set_count(L, hook, HOOK_COUNT);
    return;
  }
  if (L != guard->task && spent >= SLICE_US)
    set_count((lua_State *)guard->task, hook, 1);
  if (spent < ESCAPE_US) {
    set_count(L, hook, HOOK_COUNT);
    return;
  }
  set_count(L, hook, 1);
  raise_here(L, "a job's body ran for more than a second where it cannot give "
                "way (an inner coroutine, or a callback of table.sort or "
                "string.gsub); do the work in smaller parts");
}

/* ---- functions
 * ---------------------------------------------------------------------- */

static lua_State *check_thread(lua_State *L)
{
  lua_State *co = lua_tothread(L, 1);
  if (co == NULL)
    luaL_typeerror(L, 1, "thread");
  return co;
}

/* new_task(f) -> coroutine */
static int new_task(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  return 1;
}

/* resume(coroutine, is_terminating, ...) ->
 *   "done", results... | "wait", yielded... | "slice" | "error", value */
static int resume(lua_State *L)
{
  lua_State *co = check_thread(L);
  struct guard *guard = get_guard(L);
  int is_terminating = lua_toboolean(L, 2);
  int count = lua_gettop(L) - 2, results = 0;
  luaL_argcheck(L, co != L && lua_status(co) <= LUA_YIELD, 1,
                "a coroutine that can be resumed expected");
  if (!lua_checkstack(co, count))
    return luaL_error(L, "too many arguments to resume");
  lua_xmove(L, co, count);

  struct guard saved = {.task = guard->task,
                        .started_us = guard->started_us,
                        .pending = guard->pending,
                        .is_closing = guard->is_closing};
  guard->task = co;
  guard->started_us = now_us();
  guard->pending = is_terminating ? PENDING_TERMINATE : PENDING_NONE;
  guard->is_closing = 0;
  guard->has_yielded = 0;
  set_count(co, hook, is_terminating ? 1 : HOOK_COUNT);
  int status = lua_resume(co, L, count, &results);
  int has_yielded = guard->has_yielded;
  guard->task = saved.task;
  guard->started_us = saved.started_us;
  guard->pending = saved.pending;
  guard->is_closing = saved.is_closing;
  guard->has_yielded = 0;

  if (status == LUA_YIELD && has_yielded) {
    lua_pop(co, results);
    lua_pushliteral(L, "slice");
    return 1;
  }
  if (status != LUA_OK && status != LUA_YIELD)
    results = 1; /* the error value */
  if (!lua_checkstack(L, results + 1)) {
    lua_pop(co, results);
    return luaL_error(L, "too many results of a task");
  }
  lua_pushstring(L, status == LUA_OK      ? "done"
                    : status == LUA_YIELD ? "wait"
                                          : "error");
  lua_xmove(co, L, results);
  return results + 1;
}

/* close_task(coroutine) -> error of its clean-up | nil. Runs its pending
 * __close within a limit of instructions. */
static int close_task(lua_State *L)
{
  lua_State *co = check_thread(L);
  struct guard *guard = get_guard(L);
  lua_Debug ar;
  luaL_argcheck(L, co != L, 1, "a task cannot close itself");
  if (lua_status(co) == LUA_OK && lua_getstack(co, 0, &ar))
    return luaL_error(L, "cannot close a task that is running");
  struct guard saved = {.task = guard->task,
                        .is_closing = guard->is_closing,
                        .budget = guard->budget};
  guard->task = co;
  guard->is_closing = 1;
  guard->budget = CLOSE_BUDGET;
  lua_sethook(co, hook, LUA_MASKCOUNT, CLOSE_COUNT);
  int status = lua_resetthread(co);
  lua_sethook(co, NULL, 0, 0);
  guard->task = saved.task;
  guard->is_closing = saved.is_closing;
  guard->budget = saved.budget;
  if (status == LUA_OK)
    return 0;
  lua_xmove(co, L, 1);
  return 1;
}

/* trust(source): the file that calls it is part of this module */
static int trust(lua_State *L)
{
  struct guard *guard = get_guard(L);
  lua_Debug ar;
  if (!lua_getstack(L, 1, &ar))
    return luaL_error(L, "trust is called by the module's own files");
  lua_getinfo(L, "S", &ar);
  if (is_trusted(guard, L, &ar))
    return 0;
  if (guard->source_count == SOURCE_MAX)
    return luaL_error(L, "too many files of the module");
  memcpy(guard->sources[guard->source_count++], ar.short_src, LUA_IDSIZE);
  return 0;
}

/* set_error_metatable(t): of the error objects raised here */
static int set_error_metatable(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &error_key);
  return 0;
}

static const luaL_Reg functions[] = {
    {"new_task", new_task},
    {"resume", resume},
    {"close_task", close_task},
    {"trust", trust},
    {"set_error_metatable", set_error_metatable},
    {NULL, NULL}};

void cairn__lua_open_task(lua_State *L)
{
  if (get_guard(L) == NULL) {
    struct guard *guard = lua_newuserdatauv(L, sizeof *guard, 0);
    memset(guard, 0, sizeof *guard);
    lua_getglobal(L, "pcall");
    guard->pcall = lua_tocfunction(L, -1);
    lua_getglobal(L, "xpcall");
    guard->xpcall = lua_tocfunction(L, -1);
    lua_pop(L, 2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_key);
  }
  cairn__lua_register(L, functions);
}
