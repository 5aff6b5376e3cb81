/* Every allocation that the Lua module makes fails in turn, Lua's own and the
 * engine's: no crash, no hang, no leak, and the same Lua state goes on working.
 *
 * One Lua state runs a scenario (open, submit, read, write, requests, events,
 * a task, errors, close) again and again, with the n-th allocation failing:
 * once with everything after it failing too, once with only that one (and the
 * repeat that Lua makes after an emergency collection).
 *
 * CAIRN_LONG=1 visits every allocation; otherwise each sweep visits as many,
 * spread over the whole scenario, as a quarter of CAIRN_SECONDS (default 20)
 * allows. CAIRN_SEED says where it begins. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <lauxlib.h>
#include <lualib.h>

#include "binding.h"
#include "cairn.h"

/* ---- allocators that count and fail ---- */

enum { FAIL_NONE, FAIL_ONE, FAIL_REST };

static int mode;
static long countdown; /* allocations until the first failure */
static long failures;
static long lua_blocks, engine_blocks;

static int must_fail(void)
{
  if (mode == FAIL_NONE || countdown-- > 0)
    return 0;
  if (mode == FAIL_ONE && countdown < -2)
    return 0;
  failures++;
  return 1;
}

static void *lua_allocator(void *context, void *p, size_t old, size_t size)
{
  (void)context;
  if (size == 0) {
    lua_blocks -= p != NULL;
    free(p);
    return NULL;
  }
  if ((p == NULL || size > old) && must_fail())
    return NULL;
  void *fresh = realloc(p, size);
  lua_blocks += p == NULL && fresh != NULL;
  return fresh;
}

static void *engine_realloc(void *p, size_t size)
{
  if (must_fail())
    return NULL;
  void *fresh = realloc(p, size);
  engine_blocks += p == NULL && fresh != NULL;
  return fresh;
}

static void engine_free(void *p)
{
  engine_blocks -= p != NULL;
  free(p);
}

/* ---- the scenario ---- */

static const char setup[] =
    "local cairn = require 'cairn'\n"
    "local events = 0\n"
    "function scenario()\n"
    "  local engine <close> = assert(cairn.open { clock = 'virtual',\n"
    "    log = function() end, queues = { default = { concurrency = 2 } } })\n"
    "  local function turns(n)\n"
    "    for _ = 1, n do engine:step() end\n"
    "  end\n"
    "  engine:on('JobState', function(event)\n"
    "    events = events + 1\n"
    "    return event.job.JobState\n"
    "  end)\n"
    "  local job = assert(engine:submit { Name = 'a', Notify = 'ops',\n"
    "    RunMonth = 'May', run = function(self)\n"
    "      self:progress(10)\n"
    "      self:warn 'careful'\n"
    "      local answer = self:ask { question = '?', choices = { 'a' } }\n"
    "      self:sleep(1)\n"
    "      error { code = 'disk_full', message = answer }\n"
    "    end })\n"
    "  job:RequestStateChange 'Start'\n"
    "  turns(8)\n"
    "  for name, value in job:properties() do\n"
    "    assert(name and (value or true) and (job:number(name) or true))\n"
    "  end\n"
    "  assert(job:query())\n"
    "  assert(engine:why(job.InstanceID))\n"
    "  assert(job:set { Priority = 3, RunMonth = 1, Notify = 'me',\n"
    "    TimeBeforeRemoval = cairn.interval '1h' })\n"
    "  job.Priority = 4\n"
    "  assert(not pcall(function() return job.NoSuch end))\n"
    "  assert(not job:set { RunDay = 99 })\n"
    "  assert(engine:job(job.InstanceID) == job)\n"
    "  assert(#engine:jobs { JobState = 'Query Pending' } == 1)\n"
    "  job:ResumeWithInput 'a'\n"
    "  turns(8)\n"
    "  engine:advance(2)\n"
    "  turns(8)\n"
    "  assert(job.JobState == 'Exception', job.JobState)\n"
    "  assert(select(2, job:GetError()).Message == 'a')\n"
    "  assert(select(2, job:GetErrorEx())[1])\n"
    "  assert(cairn.json_decode(job:json()).InstanceID == job.InstanceID)\n"
    "  job:report()\n"
    "  local two = assert(engine:submit_all { { Name = 'b',\n"
    "    run = function() while true do end end }, { Name = 'c',\n"
    "    run = function(self) local x <close> = setmetatable({},\n"
    "      { __close = function() end }) self:sleep(100) end } })\n"
    "  turns(8)\n"
    /* refused for want of memory, it would hold the virtual clock still */
    "  assert(two[1]:RequestStateChange 'Terminate' == 4096)\n"
    "  assert(two[2]:KillJob(false) == 0)\n"
    "  turns(8)\n"
    "  local task = cairn.spawn(function() cairn.sleep(1) return 'x' end)\n"
    "  assert(task:wait() == 'x')\n"
    "  assert(not engine:submit { Name = 'd', run = {} })\n"
    "  assert(engine:submit { Name = 'd', verify = { directory =\n"
    "    '/nonexistent', source = cairn.collection { CollectionId =\n"
    "      '11111111-2222-3333-4444-555555555555', machines = { {\n"
    "      VirtualMachineId = 'A1111111-2222-3333-4444-555555555555',\n"
    "      config = { '/nonexistent' } } } } } }):RequestStateChange "
    "'Terminate'\n"
    "  assert(engine:close { mode = 'kill', timeout = 5 })\n"
    "end\n"
    "function rest() collectgarbage() collectgarbage() end\n";

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
  cairn_set_allocator(engine_realloc, engine_free);
  L = lua_newstate(lua_allocator, NULL);
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

/* Runs the scenario with the n-th allocation failing; whether it was refused.
 * What the engines took must have come back. */
static int fails_at(int how, long n)
{
  lua_getglobal(L, "scenario");
  failures = 0;
  countdown = n;
  mode = how;
  int status = lua_pcall(L, 0, 0, 0);
  mode = FAIL_NONE;
  if (status != LUA_OK) {
    if (failures == 0)
      fail_msg("nothing failed, but: %s", lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  run_function("rest");
  if (engine_blocks != 0)
    fail_msg("allocation %ld failing leaks %ld blocks of the engine", n,
             engine_blocks);
  assert_int_equal(lua_gettop(L), 0);
  return status != LUA_OK;
}

static double seconds_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long number_from(const char *name, long otherwise)
{
  const char *text = getenv(name);
  return text != NULL ? strtol(text, NULL, 10) : otherwise;
}

static long common_divisor(long a, long b)
{
  return b == 0 ? a : common_divisor(b, a % b);
}

static void sweep(int how)
{
  enum { VISITS_MIN = 50 };
  int is_long = getenv("CAIRN_LONG") != NULL;
  long visits = 0, refused = 0;
  run_function("scenario"); /* fills what is made once */
  run_function("rest");
  assert_false(fails_at(FAIL_ONE, LONG_MAX));
  long total = LONG_MAX - countdown;
  /* in leaps that meet every number once and soon have been everywhere */
  long leap = is_long ? 1 : total * 5 / 8;
  while (common_divisor(total, leap) != 1)
    leap++;
  long n = is_long ? 0 : (number_from("CAIRN_SEED", 1) & 0xffffff) % total;
  double end = seconds_now() + (double)number_from("CAIRN_SECONDS", 20) / 4;
  while (visits < total &&
         (is_long || visits < VISITS_MIN || seconds_now() < end)) {
    refused += fails_at(how, n);
    visits++;
    n = (n + leap) % total;
  }
  print_message("%ld of %ld allocations, %ld refused, %ld overcome\n", visits,
                total, refused, visits - refused);
  assert_true(refused > visits / 2);
  run_function("scenario");
}

static void all_from_the_nth_on_fail(void **state)
{
  (void)state;
  sweep(FAIL_REST);
}

static void only_the_nth_fails(void **state)
{
  (void)state;
  sweep(FAIL_ONE);
}

/* Loading the C half into a fresh state, and freeing that state. */
static void loading_fails_cleanly(void **state)
{
  (void)state;
  long before = lua_blocks;
  int is_through = 0;
  for (long n = 0; !is_through; n++) {
    mode = FAIL_NONE;
    lua_State *fresh = lua_newstate(lua_allocator, NULL);
    assert_non_null(fresh);
    failures = 0;
    countdown = n;
    mode = FAIL_REST;
    lua_pushcfunction(fresh, luaopen_cairn_core);
    int status = lua_pcall(fresh, 0, 1, 0);
    mode = FAIL_NONE;
    is_through = failures == 0;
    assert_int_equal(status == LUA_OK, is_through);
    lua_close(fresh);
    assert_int_equal(lua_blocks, before);
    assert_true(n < 100000);
  }
}

/* Closing the state with an open engine frees it. */
static void an_open_engine_is_freed(void **state)
{
  (void)state;
  assert_int_equal(
      luaL_dostring(L, "local e = require 'cairn'.open { clock = "
                       "'virtual' } e:submit { Name = 'a', run = "
                       "function(j) j:sleep(9) end } e:step() e:step()"),
      LUA_OK);
  assert_true(engine_blocks > 0);
  run_function("rest");
  assert_int_equal(engine_blocks, 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(loading_fails_cleanly),
      cmocka_unit_test(an_open_engine_is_freed),
      cmocka_unit_test(all_from_the_nth_on_fail),
      cmocka_unit_test(only_the_nth_fails),
  };
  int failed = cmocka_run_group_tests_name("binding: allocations", tests,
                                           open_state, close_state);
  if (failed == 0 && (lua_blocks != 0 || engine_blocks != 0)) {
    fprintf(stderr, "leaked: %ld blocks of Lua, %ld of the engine\n",
            lua_blocks, engine_blocks);
    return 1;
  }
  return failed;
}
