/* Every allocation around a decision fails in turn: those of the isolated
 * state, while it is made and while it decides, and those of the host while
 * values cross. No crash, no hang, no leak; what comes out is an error with a
 * code; and the same decisions work when there is memory again. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>

#include "binding.h"
#include "cairn.h"

/* ---- allocators that count and fail ---- */

enum { IN_GUARD = 1, IN_HOST = 2 };
enum { FAIL_NONE, FAIL_BRIEFLY, FAIL_ONE, FAIL_REST };

static int mode, where;
static long countdown; /* allocations until the first failure */
static long failures;
static long host_blocks, guard_blocks;

static int must_fail(int here)
{
  if (mode == FAIL_NONE || (where & here) == 0 || countdown-- > 0)
    return 0;
  /* Lua asks again after it has collected its garbage */
  if (mode < FAIL_REST && countdown < (mode == FAIL_BRIEFLY ? -1 : -2))
    return 0;
  failures++;
  return 1;
}

static void *host_allocator(void *context, void *p, size_t old, size_t size)
{
  (void)context;
  if (size == 0) {
    host_blocks -= p != NULL;
    free(p);
    return NULL;
  }
  if ((p == NULL || size > old) && must_fail(IN_HOST))
    return NULL;
  void *fresh = realloc(p, size);
  host_blocks += p == NULL && fresh != NULL;
  return fresh;
}

static void *guard_realloc(void *p, size_t size)
{
  if (must_fail(IN_GUARD))
    return NULL;
  void *fresh = realloc(p, size);
  guard_blocks += p == NULL && fresh != NULL;
  return fresh;
}

static void guard_free(void *p)
{
  guard_blocks -= p != NULL;
  free(p);
}

/* ---- the scenario ---- */

static const char setup[] =
    "local decision = require 'cairn.decision'\n"
    "local text = [[\n"
    "local set = ...\n"
    "local cairn = require 'cairn'\n"
    "local seen = {}\n"
    "local class = {}\n"
    "class.__index = class\n"
    "function class:text() return self.id .. set.suffix end\n"
    "return cairn.policy { jobs = { a = { base = function() return 'b' end } "
    "},\n"
    "  select = function(job, n)\n"
    "    local out = {}\n"
    "    seen[#seen + 1] = job.Name\n"
    "    assert(job.now.year == 2026 and job.now.zone.name == 'UTC')\n"
    "    for i = 1, n do\n"
    "      local o <close> = setmetatable({ id = job.Name .. i }, { __index =\n"
    "        class, __close = function() out[#out + 1] = 'closed' end })\n"
    "      out[#out + 1] = o:text():gsub('%d+', '<%0>'):rep(2, ',')\n"
    "    end\n"
    "    local co = coroutine.wrap(function(a)\n"
    "      return pcall(function() coroutine.yield(a) error { 'x' } end)\n"
    "    end)\n"
    "    out.first, out.second = co(1), co()\n"
    "    table.sort(out, function(a, b) return a < b end)\n"
    "    out.text = table.concat(out, ';')\n"
    "    out.caught = { xpcall(error, function(e) return e .. '!' end, 'x') }\n"
    "    print('done', n)\n"
    "    if n == 3 then error(setmetatable({}, { __tostring = function()\n"
    "      return ('no '):rep(3) end })) end\n"
    "    return out\n"
    "  end }\n"
    "]]\n"
    "local core = require 'cairn.core'\n"
    "local clock = core.views({}, { 'year', 'zone' })\n"
    "local zone = core.views({}, { 'name' })\n"
    "local function job_now()\n"
    "  return { Name = 'n', list = { 1, 2, { a = 'b' } }, x = 1.5,\n"
    "    now = clock(nil, 2026, zone(nil, 'UTC')) }\n"
    "end\n"
    "local function check(ok, result, code, traceback)\n"
    "  if ok then return result end\n"
    "  if code ~= 'no_memory' then error(result .. tostring(code), 0) end\n"
    "  assert(type(result) == 'string' and type(traceback) == 'string')\n"
    "end\n"
    "local d\n"
    "function make()\n"
    "  local result = table.pack(decision.load { text = text, name = "
    "'@p.lua',\n"
    "    set = { suffix = '!' }, log = function() end })\n"
    "  d = result[1]\n"
    "  if not d then check(false, table.unpack(result, 2, result.n)) end\n"
    "end\n"
    "function decide()\n"
    "  local job = job_now()\n"
    "  local out = check(d:call(nil, 'select', job, 5))\n"
    "  if out then assert(#out.text > 50 and out.caught[2] == 'x!') end\n"
    "  local ok, message, code = d:call('a', 'select', job, 3)\n"
    "  assert(not ok and (code == 'no_memory' or code == 'decision_failed'))\n"
    "  local b = check(d:call('a', 'base'))\n"
    "  assert(b == nil or b == 'b')\n"
    "end\n"
    "function stop()\n"
    "  if d then d:close() end\n"
    "  d = nil\n"
    "end\n"
    "function all() make() if d then decide() end stop() end\n"
    "function rest() stop() collectgarbage() collectgarbage() end\n";

static lua_State *L;

static void run_function(const char *name)
{
  lua_getglobal(L, name);
  if (lua_pcall(L, 0, 0, 0) != LUA_OK)
    fail_msg("%s: %s", name, lua_tostring(L, -1));
}

static int open_state(void **state)
{
  (void)state;
  char path[4096];
  const char *slash = strrchr(__FILE__, '/');
  mode = FAIL_NONE;
  cairn_set_allocator(guard_realloc, guard_free);
  L = lua_newstate(host_allocator, NULL);
  if (L == NULL)
    return -1;
  luaL_openlibs(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_cairn_core);
  lua_setfield(L, -2, "cairn.core");
  lua_pop(L, 1);
  snprintf(path, sizeof path, "%.*s../../bindings/?.lua",
           slash != NULL ? (int)(slash - __FILE__ + 1) : 0, __FILE__);
  lua_getglobal(L, "package");
  lua_pushstring(L, path);
  lua_setfield(L, -2, "path");
  lua_pop(L, 1);
  if (luaL_dostring(L, setup) != LUA_OK) {
    print_error("%s\n", lua_tostring(L, -1));
    return -1;
  }
  return 0;
}

static int close_state(void **state)
{
  (void)state;
  mode = FAIL_NONE;
  lua_close(L);
  cairn_set_allocator(NULL, NULL);
  return 0;
}

/* Runs the function with the n-th allocation failing; whether any did. */
static int fails_at(const char *name, int how, int in, long n)
{
  lua_getglobal(L, name);
  failures = 0;
  countdown = n;
  where = in;
  mode = how;
  int status = lua_pcall(L, 0, 0, 0);
  mode = FAIL_NONE;
  if (status != LUA_OK) {
    /* what the host itself could not allocate is raised by its own Lua */
    if ((in & IN_HOST) == 0 || failures == 0)
      fail_msg("%s with allocation %ld failing: %s", name, n,
               lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  assert_int_equal(lua_gettop(L), 0);
  return failures > 0;
}

static void sweep(int how, int in)
{
  long n = 0, again = 0;
  run_function("all");
  run_function("rest");
  while (fails_at("all", how, in, n)) {
    run_function("rest");
    if (guard_blocks != 0)
      fail_msg("allocation %ld failing leaks %ld blocks", n, guard_blocks);
    n++;
  }
  run_function("rest");
  /* decisions that live on: each failure is followed by calls that work */
  run_function("make");
  while (fails_at("decide", how, in, again)) {
    run_function("decide");
    again++;
  }
  run_function("rest");
  assert_int_equal(guard_blocks, 0);
  print_message("%ld allocations of all, %ld of calls\n", n, again);
  assert_true(n > 50 && again > 5);
}

static void each_of_the_isolated_state_fails_briefly(void **state)
{
  (void)state;
  sweep(FAIL_BRIEFLY, IN_GUARD);
}

static void each_of_the_isolated_state_fails_once(void **state)
{
  (void)state;
  sweep(FAIL_ONE, IN_GUARD);
}

static void all_of_the_isolated_state_fail_from_each_on(void **state)
{
  (void)state;
  sweep(FAIL_REST, IN_GUARD);
}

static void each_of_the_host_fails_once(void **state)
{
  (void)state;
  sweep(FAIL_ONE, IN_HOST);
}

static void all_fail_from_each_on(void **state)
{
  (void)state;
  sweep(FAIL_REST, IN_HOST | IN_GUARD);
}

/* A state is freed with the host's, closed or not. */
static void decisions_left_open_are_freed(void **state)
{
  (void)state;
  run_function("make");
  assert_true(guard_blocks > 100);
  run_function("decide");
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_of_the_isolated_state_fails_briefly),
      cmocka_unit_test(each_of_the_isolated_state_fails_once),
      cmocka_unit_test(all_of_the_isolated_state_fail_from_each_on),
      cmocka_unit_test(each_of_the_host_fails_once),
      cmocka_unit_test(all_fail_from_each_on),
      cmocka_unit_test(decisions_left_open_are_freed),
  };
  int failed = cmocka_run_group_tests_name("binding: guard", tests, open_state,
                                           close_state);
  if (failed == 0 && (host_blocks != 0 || guard_blocks != 0)) {
    fprintf(stderr, "leaked: %ld blocks of the host, %ld of the guard\n",
            host_blocks, guard_blocks);
    return 1;
  }
  return failed;
}
