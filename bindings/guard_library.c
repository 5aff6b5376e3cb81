/* What scripts find in an isolated state: the base library, coroutine, string,
 * table, math and utf8 of Lua, as far as a decision may have them.
 *
 * Each function of the library is one of these:
 *   - left out: it reaches outside or makes code (the name raises an error that
 *     says why);
 *   - our own: it loops in C by the value of an argument, calls back, or could
 *     keep the error that stops a decision;
 *   - metered: its work follows the sizes of its arguments, which are charged
 *     before it begins;
 *   - the library's: it does little.
 *
 * The rest of C that instructions run into (long strings compared, tables that
 * grow, collections) is bounded by the limit of memory, see guard.c. */
#include "guard.h"

#include <limits.h>
#include <string.h>

#include <lualib.h>

#include "cairn.h"
#include "policy_settings.h"

enum {
  BYTES = 32,      /* that C does in the time of an instruction */
  PCALL_COST = 20, /* in instructions */
  RESUME_COST = 20,
  FORMAT_COST = 100 /* of an item of string.format */
};

/* ---- what is left out
 * ----------------------------------------------------------- */

static int unavailable(lua_State *L, const char *name, const char *field)
{
  return luaL_error(
      L,
      "%s%s%s is not available to decision functions; a policy that has any is "
      "loaded a second time, in an isolated state without io, os, debug, "
      "package, load and luv (give it what it needs as a setting, or use it in "
      "a run function only)",
      name, *field ? "." : "", field);
}

/* Upvalue: the name of the function. */
static int refuse_call(lua_State *L)
{
  return unavailable(L, lua_tostring(L, lua_upvalueindex(1)), "");
}

/* Upvalue: the name of the table. */
static int refuse_field(lua_State *L)
{
  const char *field =
      lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "(...)";
  return unavailable(L, lua_tostring(L, lua_upvalueindex(1)), field);
}

static void leave_out(lua_State *L, const char *const *names)
{
  for (; *names != NULL; names++) {
    lua_pushstring(L, *names);
    lua_pushcclosure(L, refuse_call, 1);
    lua_setfield(L, -2, *names);
  }
}

/* Makes reading and writing fields raise that the table on top has not. */
static void refuse_fields(lua_State *L, const char *name)
{
  static const char *const events[] = {"__index", "__newindex", "__pairs"};
  lua_createtable(L, 0, 4);
  for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
    lua_pushstring(L, name);
    lua_pushcclosure(L, refuse_field, 1);
    lua_setfield(L, -2, events[i]);
  }
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_setmetatable(L, -2);
}

/* ---- metered functions
 * ---------------------------------------------------------- */

/* Charges the arguments, and returns how many bytes they have: also numbers
 * written as long strings cost when they are read. */
static size_t charge_arguments(lua_State *L)
{
  size_t bytes = 0;
  int count = lua_gettop(L);
  for (int i = 1; i <= count; i++)
    if (lua_type(L, i) == LUA_TSTRING)
      bytes += (size_t)lua_rawlen(L, i);
  cairn__guard_charge(L, 1 + (uint64_t)count / 4 + bytes / BYTES);
  return bytes;
}

/* Upvalue: the library's function, one without upvalues. It runs in this
 * call's frame, so that its messages name arguments as ever. */
static int metered(lua_State *L)
{
  lua_CFunction f = lua_tocfunction(L, lua_upvalueindex(1));
  charge_arguments(L);
  return f(L);
}

/* The same for what makes a string of about that size. */
static int metered_text(lua_State *L)
{
  lua_CFunction f = lua_tocfunction(L, lua_upvalueindex(1));
  cairn__guard_room(L, charge_arguments(L));
  return f(L);
}

static int metered_format(lua_State *L)
{
  lua_CFunction f = lua_tocfunction(L, lua_upvalueindex(1));
  size_t length, items = 0;
  const char *format = luaL_checklstring(L, 1, &length);
  for (size_t i = 0; i < length; i++)
    items += format[i] == '%';
  cairn__guard_charge(L, items * FORMAT_COST);
  cairn__guard_room(L, charge_arguments(L));
  return f(L);
}

/* Wraps functions of the table on top. */
static void meter(lua_State *L, const char *const *names, lua_CFunction wrapper)
{
  for (; *names != NULL; names++) {
    lua_getfield(L, -1, *names);
    lua_pushcclosure(L, wrapper, 1);
    lua_setfield(L, -2, *names);
  }
}

/* ---- base
 * ----------------------------------------------------------------------- */

static int finish_pcall(lua_State *L, int status, lua_KContext extra)
{
  cairn__guard_check(L, status);
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_pushboolean(L, 0);
    lua_pushvalue(L, -2);
    return 2;
  }
  return lua_gettop(L) - (int)extra;
}

static int base_pcall(lua_State *L)
{
  luaL_checkany(L, 1);
  cairn__guard_charge(L, PCALL_COST);
  lua_pushboolean(L, 1);
  lua_insert(L, 1);
  int status =
      lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 0, 0, finish_pcall);
  return finish_pcall(L, status, 0);
}

/* Upvalue: the script's message handler, which is not asked about a stop: it
 * would run within the hook, where no hook runs. */
static int handle_error(lua_State *L)
{
  if (cairn__guard_is_stopped(L))
    return 1;
  cairn__guard_charge(L, PCALL_COST);
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, 1, 1);
  return 1;
}

static int base_xpcall(lua_State *L)
{
  luaL_checktype(L, 2, LUA_TFUNCTION);
  cairn__guard_charge(L, PCALL_COST);
  int count = lua_gettop(L) - 2;
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, handle_error, 1);
  lua_replace(L, 2);
  lua_pushboolean(L, 1); /* f, handler, arguments, true */
  lua_insert(L, 3);
  lua_pushvalue(L, 1);
  lua_insert(L, 4); /* f, handler, true, f, arguments */
  int status = lua_pcallk(L, count, LUA_MULTRET, 2, 2, finish_pcall);
  return finish_pcall(L, status, 2);
}

static int base_setmetatable(lua_State *L)
{
  int type = lua_type(L, 2);
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_argexpected(L, type == LUA_TNIL || type == LUA_TTABLE, 2,
                   "nil or table");
  if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
    return luaL_error(L, "cannot change a protected metatable");
  lua_settop(L, 2);
  if (type == LUA_TTABLE) {
    lua_pushliteral(L, "__gc");
    if (lua_rawget(L, 2) != LUA_TNIL)
      return luaL_error(L, "__gc is not available to decision functions: "
                           "finalizers would run outside of every limit");
    /* looked for by the collector, in time that grows with the square */
    lua_pushliteral(L, "__mode");
    if (lua_rawget(L, 2) == LUA_TSTRING) {
      const char *mode = lua_tostring(L, -1);
      if (strchr(mode, 'k') != NULL && strchr(mode, 'v') == NULL)
        return luaL_error(L, "__mode = \"k\" is not available to decision "
                             "functions (\"v\" and \"kv\" are)");
    }
    lua_settop(L, 2);
  }
  lua_setmetatable(L, 1);
  return 1;
}

static int base_print(lua_State *L)
{
  int count = lua_gettop(L);
  for (int i = 1; i <= count; i++) {
    size_t length;
    const char *text = luaL_tolstring(L, i, &length);
    if (i > 1)
      cairn__guard_print(L, "\t", 1);
    cairn__guard_print(L, text, length);
    cairn__guard_charge(L, 1 + length / BYTES);
    lua_pop(L, 1);
  }
  cairn__guard_print(L, "\n", 1);
  return 0;
}

/* Upvalue: the module cairn. */
static int base_require(lua_State *L)
{
  const char *name = luaL_checkstring(L, 1);
  if (strcmp(name, "cairn") == 0) {
    lua_pushvalue(L, lua_upvalueindex(1));
    return 1;
  }
  lua_pushfstring(L, "require \"%s\"", name);
  return unavailable(L, lua_tostring(L, -1), "");
}

/* ---- the module cairn
 * ----------------------------------------------------------- */

static int plain_table(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  return 1;
}

static int plain_value(lua_State *L)
{
  luaL_checkany(L, 1);
  lua_settop(L, 1);
  return 1;
}

static int module_settings(lua_State *L)
{
  return cairn__lua_settings(L, cairn__guard_charge);
}

static const luaL_Reg module[] = {
    {"policy", plain_table},     {"settings", module_settings},
    {"collection", plain_table}, {"interval", plain_value},
    {"datetime", plain_value},   {NULL, NULL}};

/* ---- coroutine
 * ------------------------------------------------------------------ */

static lua_State *check_coroutine(lua_State *L)
{
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co != NULL, 1, "thread");
  return co;
}

static const char *status_of(lua_State *L, lua_State *co)
{
  lua_Debug ar;
  if (co == L)
    return "running";
  switch (lua_status(co)) {
  case LUA_YIELD:
    return "suspended";
  case LUA_OK:
    if (lua_getstack(co, 0, &ar))
      return "normal";
    return lua_gettop(co) == 0 ? "dead" : "suspended";
  default:
    return "dead";
  }
}

/* Resumes with the arguments on top. The results, or the error alone, are on
 * top then: their number, -1 for the error. */
static int resume(lua_State *L, lua_State *co, int arguments)
{
  const char *status = status_of(L, co);
  int results;
  cairn__guard_charge(L, RESUME_COST + (uint64_t)arguments / 4);
  if (*status != 's') {
    lua_pushfstring(L, "cannot resume %s coroutine",
                    *status == 'd' ? "dead" : "non-suspended");
    return -1;
  }
  if (!lua_checkstack(co, arguments + 1)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  lua_xmove(L, co, arguments);
  int rc = cairn__guard_resume(L, co, arguments, &results);
  cairn__guard_check(L, rc);
  if (rc != LUA_OK && rc != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  cairn__guard_charge(L, (uint64_t)results / 4);
  if (!lua_checkstack(L, results + 2)) {
    lua_pop(co, results);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, results);
  return results;
}

static int coroutine_create(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = cairn__guard_thread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  return 1;
}

static int coroutine_resume(lua_State *L)
{
  lua_State *co = check_coroutine(L);
  int n = resume(L, co, lua_gettop(L) - 1);
  lua_pushboolean(L, n >= 0);
  if (n < 0)
    n = 1;
  lua_insert(L, -(n + 1));
  return n + 1;
}

/* Upvalue: the coroutine. */
static int wrapped(lua_State *L)
{
  lua_State *co = lua_tothread(L, lua_upvalueindex(1));
  int n = resume(L, co, lua_gettop(L));
  if (n >= 0)
    return n;
  if (lua_status(co) > LUA_YIELD) { /* its pending __close have a say */
    lua_pop(L, 1);
    int rc = cairn__guard_reset(L, co);
    cairn__guard_check(L, rc);
    lua_xmove(co, L, 1);
  }
  if (lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int coroutine_wrap(lua_State *L)
{
  coroutine_create(L);
  lua_pushcclosure(L, wrapped, 1);
  return 1;
}

static int coroutine_close(lua_State *L)
{
  lua_State *co = check_coroutine(L);
  const char *status = status_of(L, co);
  if (*status != 's' && *status != 'd')
    return luaL_error(L, "cannot close a %s coroutine", status);
  cairn__guard_charge(L, RESUME_COST);
  int rc = cairn__guard_reset(L, co);
  cairn__guard_check(L, rc);
  lua_pushboolean(L, rc == LUA_OK);
  if (rc == LUA_OK)
    return 1;
  lua_xmove(co, L, 1);
  return 2;
}

static int coroutine_status(lua_State *L)
{
  lua_pushstring(L, status_of(L, check_coroutine(L)));
  return 1;
}

static int coroutine_running(lua_State *L)
{
  lua_pushthread(L);
  lua_pushboolean(L, cairn__guard_is_main(L));
  return 2;
}

static int coroutine_isyieldable(lua_State *L)
{
  lua_State *co = lua_isnone(L, 1) ? L : check_coroutine(L);
  lua_pushboolean(L, !cairn__guard_is_main(co) && lua_isyieldable(co));
  return 1;
}

static int coroutine_yield(lua_State *L)
{
  if (cairn__guard_is_main(L))
    return luaL_error(L, "attempt to yield from outside a coroutine");
  return lua_yield(L, lua_gettop(L));
}

static const luaL_Reg coroutines[] = {{"create", coroutine_create},
                                      {"resume", coroutine_resume},
                                      {"wrap", coroutine_wrap},
                                      {"close", coroutine_close},
                                      {"status", coroutine_status},
                                      {"running", coroutine_running},
                                      {"isyieldable", coroutine_isyieldable},
                                      {"yield", coroutine_yield},
                                      {NULL, NULL}};

static int open_coroutines(lua_State *L)
{
  luaL_newlib(L, coroutines);
  return 1;
}

/* ---- string
 * ------------------------------------------------------------------- */

static int string_rep(lua_State *L)
{
  size_t length, gap;
  const char *s = luaL_checklstring(L, 1, &length);
  lua_Integer n = luaL_checkinteger(L, 2);
  const char *between = luaL_optlstring(L, 3, "", &gap);
  luaL_Buffer b;
  size_t total;
  if (n <= 0 || length + gap == 0) {
    lua_pushliteral(L, "");
    return 1;
  }
  if (__builtin_mul_overflow(length + gap, (size_t)n, &total) ||
      total - gap > PTRDIFF_MAX)
    return luaL_error(L, "resulting string too large");
  total -= gap;
  cairn__guard_room(L, total);
  cairn__guard_charge(L, (uint64_t)n / 4 + total / BYTES);
  char *at = luaL_buffinitsize(L, &b, total);
  while (n-- > 0) {
    memcpy(at, s, length);
    at += length;
    if (n > 0) {
      memcpy(at, between, gap);
      at += gap;
    }
  }
  luaL_pushresultsize(&b, total);
  return 1;
}

/* ---- table
 * ---------------------------------------------------------------------- */

/* A table, or what behaves as one; its length. */
static lua_Integer check_list(lua_State *L, int index,
                              const char *const *events)
{
  if (lua_type(L, index) != LUA_TTABLE) {
    if (!lua_getmetatable(L, index))
      luaL_checktype(L, index, LUA_TTABLE);
    for (; *events != NULL; events++) {
      lua_pushstring(L, *events);
      if (lua_rawget(L, -2) == LUA_TNIL)
        luaL_checktype(L, index, LUA_TTABLE);
      lua_pop(L, 1);
    }
    lua_pop(L, 1);
  }
  return luaL_len(L, index);
}

static const char *const reads[] = {"__index", "__len", NULL};
static const char *const both[] = {"__index", "__newindex", "__len", NULL};
static const char *const no_length[] = {"__index", NULL};

/* t[to] = t[from], one charged step of a loop. */
static void shift(lua_State *L, lua_Integer from, lua_Integer to)
{
  cairn__guard_charge(L, 2);
  lua_geti(L, 1, from);
  lua_seti(L, 1, to);
}

static int table_insert(lua_State *L)
{
  lua_Integer at = check_list(L, 1, both);
  at = (lua_Integer)((lua_Unsigned)at + 1);
  switch (lua_gettop(L)) {
  case 2:
    break;
  case 3: {
    lua_Integer end = at;
    at = luaL_checkinteger(L, 2);
    luaL_argcheck(L, (lua_Unsigned)at - 1 < (lua_Unsigned)end, 2,
                  "position out of bounds");
    for (lua_Integer i = end; i > at; i--)
      shift(L, i - 1, i);
    break;
  }
  default:
    return luaL_error(L, "wrong number of arguments to 'insert'");
  }
  lua_seti(L, 1, at);
  return 0;
}

static int table_remove(lua_State *L)
{
  lua_Integer size = check_list(L, 1, both);
  lua_Integer at = luaL_optinteger(L, 2, size);
  if (at != size)
    luaL_argcheck(L, (lua_Unsigned)at - 1 <= (lua_Unsigned)size, 2,
                  "position out of bounds");
  lua_geti(L, 1, at);
  for (; at < size; at++)
    shift(L, at + 1, at);
  lua_pushnil(L);
  lua_seti(L, 1, at);
  return 1;
}

static int table_move(lua_State *L)
{
  lua_Integer from = luaL_checkinteger(L, 2), end = luaL_checkinteger(L, 3);
  lua_Integer to = luaL_checkinteger(L, 4);
  int target = lua_isnoneornil(L, 5) ? 1 : 5;
  static const char *const writes[] = {"__newindex", NULL};
  if (lua_type(L, 1) != LUA_TTABLE)
    check_list(L, 1, no_length);
  if (lua_type(L, target) != LUA_TTABLE)
    check_list(L, target, writes);
  if (end >= from) {
    luaL_argcheck(L, from > 0 || end < LUA_MAXINTEGER + from, 3,
                  "too many elements to move");
    lua_Integer n = end - from + 1;
    luaL_argcheck(L, to <= LUA_MAXINTEGER - n + 1, 4,
                  "destination wrap around");
    /* backwards where the places overlap and the other way would overwrite */
    int is_up = to > end || to <= from ||
                (target != 1 && !lua_compare(L, 1, target, LUA_OPEQ));
    for (lua_Integer k = 0; k < n; k++) {
      lua_Integer i = is_up ? k : n - 1 - k;
      cairn__guard_charge(L, 2);
      lua_geti(L, 1, from + i);
      lua_seti(L, target, to + i);
    }
  }
  lua_pushvalue(L, target);
  return 1;
}

static int table_concat(lua_State *L)
{
  size_t gap, room = 0, length;
  lua_Integer size = check_list(L, 1, reads);
  const char *between = luaL_optlstring(L, 2, "", &gap);
  lua_Integer i = luaL_optinteger(L, 3, 1);
  lua_Integer last = luaL_optinteger(L, 4, size);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int is_first = 1; i <= last; i++, is_first = 0) {
    if (!is_first)
      luaL_addlstring(&b, between, gap);
    lua_geti(L, 1, i);
    if (!lua_isstring(L, -1))
      return luaL_error(L,
                        "invalid value (%s) at index %I in table for 'concat'",
                        luaL_typename(L, -1), (LUAI_UACINT)i);
    lua_tolstring(L, -1, &length);
    cairn__guard_charge(L, 2 + (length + gap) / BYTES);
    if ((room += length + gap) > 65536) {
      cairn__guard_room(L, luaL_bufflen(&b) + room);
      room = 0;
    }
    luaL_addvalue(&b);
    if (i == LUA_MAXINTEGER)
      break;
  }
  luaL_pushresult(&b);
  return 1;
}

static int table_unpack(lua_State *L)
{
  lua_Integer i = luaL_optinteger(L, 2, 1);
  lua_Integer last =
      lua_isnoneornil(L, 3) ? luaL_len(L, 1) : luaL_checkinteger(L, 3);
  if (i > last)
    return 0;
  lua_Unsigned n = (lua_Unsigned)last - (lua_Unsigned)i;
  if (n >= INT_MAX || !lua_checkstack(L, (int)++n))
    return luaL_error(L, "too many results to unpack");
  for (lua_Unsigned k = 0; k < n; k++) {
    cairn__guard_charge(L, 1);
    lua_geti(L, 1, (lua_Integer)((lua_Unsigned)i + k));
  }
  return (int)n;
}

/* Whether the value at a comes before the one at b. */
static int is_before(lua_State *L, int a, int b)
{
  uint64_t cost = 2;
  if (lua_type(L, a) == LUA_TSTRING && lua_type(L, b) == LUA_TSTRING) {
    size_t x = (size_t)lua_rawlen(L, a), y = (size_t)lua_rawlen(L, b);
    cost += (x < y ? x : y) / BYTES;
  }
  cairn__guard_charge(L, cost);
  if (lua_isnil(L, 2))
    return lua_compare(L, a, b, LUA_OPLT);
  lua_pushvalue(L, 2);
  lua_pushvalue(L, a);
  lua_pushvalue(L, b);
  lua_call(L, 2, 1);
  int result = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return result;
}

/* Of the heap t[1..end], whose top is the value on the stack: lets it sink from
 * `at` to its place, and pops it. */
static void sink(lua_State *L, lua_Integer at, lua_Integer end)
{
  int value = lua_gettop(L);
  for (lua_Integer child; (child = 2 * at) <= end; at = child) {
    lua_geti(L, 1, child);
    if (child < end) {
      lua_geti(L, 1, child + 1);
      if (is_before(L, value + 1, value + 2)) {
        child++;
        lua_remove(L, value + 1);
      } else {
        lua_pop(L, 1);
      }
    }
    if (!is_before(L, value, value + 1)) {
      lua_pop(L, 1);
      break;
    }
    lua_seti(L, 1, at);
  }
  lua_seti(L, 1, at);
}

/* A heap sort: whatever the order function says, it ends after the same number
 * of steps and stays within the list. */
static int table_sort(lua_State *L)
{
  lua_Integer n = check_list(L, 1, both);
  if (n < 2)
    return 0;
  luaL_argcheck(L, n < INT_MAX, 1, "array too big");
  if (!lua_isnoneornil(L, 2))
    luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  for (lua_Integer i = n / 2; i >= 1; i--) {
    lua_geti(L, 1, i);
    sink(L, i, n);
  }
  for (lua_Integer end = n; end > 1; end--) {
    lua_geti(L, 1, end);
    lua_geti(L, 1, 1);
    lua_seti(L, 1, end);
    sink(L, 1, end - 1);
  }
  return 0;
}

static const luaL_Reg tables[] = {{"insert", table_insert},
                                  {"remove", table_remove},
                                  {"move", table_move},
                                  {"concat", table_concat},
                                  {"unpack", table_unpack},
                                  {"sort", table_sort},
                                  {NULL, NULL}};

/* ---- opening
 * -------------------------------------------------------------------- */

static const luaL_Reg base[] = {{"pcall", base_pcall},
                                {"xpcall", base_xpcall},
                                {"setmetatable", base_setmetatable},
                                {"print", base_print},
                                {NULL, NULL}};

static void open_base(lua_State *L)
{
  static const char *const out[] = {"load",     "loadstring",     "dofile",
                                    "loadfile", "collectgarbage", NULL};
  static const char *const tables_out[] = {"io", "os", "debug", "package",
                                           NULL};
  static const char *const heavy[] = {"tonumber", "select", "rawequal", NULL};
  luaL_requiref(L, LUA_GNAME, luaopen_base, 1);
  leave_out(L, out);
  meter(L, heavy, metered);
  luaL_setfuncs(L, base, 0);
  for (const char *const *name = tables_out; *name != NULL; name++) {
    lua_newtable(L);
    refuse_fields(L, *name);
    lua_setfield(L, -2, *name);
  }
  luaL_newlib(L, module);
  lua_pushstring(L, cairn_version());
  lua_setfield(L, -2, "version");
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
  refuse_fields(L, "cairn");
  lua_pushcclosure(L, base_require, 1);
  lua_setfield(L, -2, "require");
  lua_pop(L, 1);
}

static void open_string(lua_State *L)
{
  static const char *const out[] = {"dump", NULL};
  static const char *const heavy[] = {"byte",     "char",   "len", "sub",
                                      "packsize", "unpack", NULL};
  static const char *const text[] = {"lower", "upper", "reverse", "pack", NULL};
  static const char *const format[] = {"format", NULL};
  luaL_requiref(L, LUA_STRLIBNAME, luaopen_string, 1);
  leave_out(L, out);
  meter(L, heavy, metered);
  meter(L, text, metered_text);
  meter(L, format, metered_format);
  cairn__guard_open_patterns(L);
  lua_pushcfunction(L, string_rep);
  lua_setfield(L, -2, "rep");
  /* what all strings share is not one decision's to change */
  lua_pushliteral(L, "");
  lua_getmetatable(L, -1);
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 3);
}

void cairn__guard_open_library(lua_State *L)
{
  static const char *const heavy_table[] = {"pack", NULL};
  static const char *const heavy_math[] = {"max", "min", NULL};
  static const char *const heavy_utf8[] = {"char", "codepoint", "len", "offset",
                                           NULL};
  open_base(L);
  open_string(L);
  luaL_requiref(L, LUA_TABLIBNAME, luaopen_table, 1);
  meter(L, heavy_table, metered);
  luaL_setfuncs(L, tables, 0);
  luaL_requiref(L, LUA_MATHLIBNAME, luaopen_math, 1);
  meter(L, heavy_math, metered);
  luaL_requiref(L, LUA_UTF8LIBNAME, luaopen_utf8, 1);
  meter(L, heavy_utf8, metered);
  luaL_requiref(L, LUA_COLIBNAME, open_coroutines, 1);
  lua_pop(L, 4);
}
