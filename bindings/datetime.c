/* CIM datetimes as values: immutable userdata with arithmetic and comparison
 * by the rules of the class (timestamp - timestamp = interval, and so on);
 * tostring gives the 25 characters. Durations in Lua are seconds. */
#include "binding.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

static const char *const kind_names[] = {[CAIRN_TIMESTAMP] = "timestamp",
                                         [CAIRN_INTERVAL] = "interval",
                                         [CAIRN_NEVER] = "never",
                                         [CAIRN_ZERO] = "zero"};

void cairn__lua_push_datetime(lua_State *L, const struct cairn_datetime *t)
{
  struct cairn_datetime *p = lua_newuserdatauv(L, sizeof *p, 0);
  *p = *t;
  luaL_setmetatable(L, CAIRN__LUA_DATETIME);
}

const struct cairn_datetime *cairn__lua_test_datetime(lua_State *L, int index)
{
  return luaL_testudata(L, index, CAIRN__LUA_DATETIME);
}

static const struct cairn_datetime *check_datetime(lua_State *L, int index)
{
  return luaL_checkudata(L, index, CAIRN__LUA_DATETIME);
}

/* "1d12h", "90 min", "1.5h": numbers with units, each once, largest first. */
static int parse_units(const char *s, int64_t *out, struct cairn_error *err)
{
  static const struct {
    const char *name;
    double us;
  } units[] = {{"w", 604800e6}, {"d", 86400e6}, {"h", 3600e6}, {"min", 60e6},
               {"m", 60e6},     {"s", 1e6},     {"ms", 1e3},   {"us", 1}};
  enum { COUNT = sizeof units / sizeof *units };
  const char *p = s;
  double total = 0, previous = INFINITY;
  char shown[80];
  do {
    p += strspn(p, " ");
    size_t digits = strspn(p, "0123456789.");
    char number[32], name[8];
    char *end = NULL;
    if (digits == 0 || digits >= sizeof number)
      break;
    memcpy(number, p, digits);
    number[digits] = '\0';
    double amount = strtod(number, &end);
    p += digits;
    p += strspn(p, " ");
    size_t letters = strspn(p, "abcdefghijklmnopqrstuvwxyz");
    if (*end != '\0' || letters == 0 || letters >= sizeof name)
      break;
    memcpy(name, p, letters);
    name[letters] = '\0';
    size_t i = 0;
    while (i < COUNT && strcmp(units[i].name, name) != 0)
      i++;
    if (i == COUNT || units[i].us >= previous)
      break;
    previous = units[i].us;
    total += amount * units[i].us;
    p += letters;
    p += strspn(p, " ");
    if (*p == '\0' && total < 8.64e18) {
      *out = llround(total);
      return 0;
    }
  } while (*p != '\0');
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "\"%s\" is no duration; valid are seconds (90), units "
                     "(\"2h\", \"1d12h\", \"1.5h\", \"90s\", \"250ms\") and a "
                     "CIM interval (\"00000000020000.000000:000\")",
                     cairn__printable(s, shown, sizeof shown));
}

static int from_seconds(lua_Number seconds, int is_interval,
                        struct cairn_datetime *out, struct cairn_error *err)
{
  double us = seconds * 1e6;
  /* 0001-01-01 to 9999-12-31; intervals of 99999999 days */
  if (!(is_interval ? us >= 0 && us < 8.64e18
                    : us >= -62135596800e6 && us < 253402300800e6))
    return cairn__fail(err, CAIRN_E_OUT_OF_RANGE,
                       "%.14g seconds cannot be written as a CIM %s", seconds,
                       is_interval ? "interval (0 to 99999999 days)"
                                   : "timestamp (years 1 to 9999)");
  *out = (struct cairn_datetime){.microseconds = llround(us),
                                 .kind = is_interval ? CAIRN_INTERVAL
                                                     : CAIRN_TIMESTAMP,
                                 .precision = 20};
  return 0;
}

int cairn__lua_to_datetime(lua_State *L, int index, int is_interval,
                           struct cairn_datetime *out, struct cairn_error *err)
{
  const struct cairn_datetime *t = cairn__lua_test_datetime(L, index);
  const char *wanted = is_interval ? "an interval" : "a timestamp";
  if (t != NULL) {
    *out = *t;
  } else if (lua_type(L, index) == LUA_TNUMBER) {
    return from_seconds(lua_tonumber(L, index), is_interval, out, err);
  } else if (lua_type(L, index) == LUA_TSTRING) {
    size_t length;
    const char *s = lua_tolstring(L, index, &length);
    if (is_interval && length != CAIRN_DATETIME_SIZE - 1) {
      *out = (struct cairn_datetime){.kind = CAIRN_INTERVAL, .precision = 20};
      return parse_units(s, &out->microseconds, err);
    }
    if (cairn_datetime_parse(s, length, out, err) != 0)
      return -1;
  } else {
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s expected (text, seconds or a datetime), got %s",
                       wanted, luaL_typename(L, index));
  }
  if (is_interval && out->kind != CAIRN_INTERVAL && out->kind != CAIRN_NEVER)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s expected, got a timestamp",
                       wanted);
  return 0;
}

/* datetime(text | Unix seconds | datetime) -> datetime | nil, message, code */
static int new_datetime(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_datetime t;
  luaL_checkany(L, 1);
  if (cairn__lua_to_datetime(L, 1, 0, &t, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_push_datetime(L, &t);
  return 1;
}

/* interval(text | seconds | interval) -> datetime | nil, message, code */
static int new_interval(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_datetime t;
  luaL_checkany(L, 1);
  if (cairn__lua_to_datetime(L, 1, 1, &t, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_push_datetime(L, &t);
  return 1;
}

static int to_string(lua_State *L)
{
  char buffer[CAIRN_DATETIME_SIZE];
  cairn_datetime_format(check_datetime(L, 1), buffer);
  lua_pushstring(L, buffer);
  return 1;
}

static int concat(lua_State *L)
{
  luaL_tolstring(L, 1, NULL);
  luaL_tolstring(L, 2, NULL);
  lua_concat(L, 2);
  return 1;
}

static int raise(lua_State *L, const struct cairn_error *err)
{
  return luaL_error(L, "%s", err->message);
}

/* An operand: a datetime, or its text; seconds count as an interval. */
static void operand(lua_State *L, int index, struct cairn_datetime *out)
{
  struct cairn_error err = {0};
  const char *s;
  size_t length;
  if (lua_type(L, index) == LUA_TSTRING) {
    s = lua_tolstring(L, index, &length);
    if (length == CAIRN_DATETIME_SIZE - 1) {
      if (cairn_datetime_parse(s, length, out, &err) != 0)
        raise(L, &err);
      return;
    }
  }
  const struct cairn_datetime *t = cairn__lua_test_datetime(L, index);
  if (t != NULL)
    *out = *t;
  else if (cairn__lua_to_datetime(L, index, 1, out, &err) != 0)
    raise(L, &err);
}

static int combine(lua_State *L, char op)
{
  struct cairn_error err = {0};
  struct cairn_datetime a, b, result;
  operand(L, 1, &a);
  operand(L, 2, &b);
  if (cairn_datetime_add(&a, op, &b, &result, &err) != 0)
    return raise(L, &err);
  cairn__lua_push_datetime(L, &result);
  return 1;
}

static int add(lua_State *L)
{
  return combine(L, '+');
}

static int subtract(lua_State *L)
{
  return combine(L, '-');
}

static int multiply(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_datetime result;
  int at = cairn__lua_test_datetime(L, 1) != NULL ? 1 : 2;
  lua_Integer factor = luaL_checkinteger(L, 3 - at);
  if (cairn_datetime_scale(check_datetime(L, at), '*', factor, &result, &err) !=
      0)
    return raise(L, &err);
  cairn__lua_push_datetime(L, &result);
  return 1;
}

/* interval / integer = interval; interval / interval = integer */
static int divide(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_datetime result;
  const struct cairn_datetime *a = check_datetime(L, 1);
  const struct cairn_datetime *b = cairn__lua_test_datetime(L, 2);
  if (b != NULL) {
    int64_t ratio;
    if (cairn_datetime_ratio(a, b, &ratio, &err) != 0)
      return raise(L, &err);
    lua_pushinteger(L, ratio);
    return 1;
  }
  if (cairn_datetime_scale(a, '/', luaL_checkinteger(L, 2), &result, &err) != 0)
    return raise(L, &err);
  cairn__lua_push_datetime(L, &result);
  return 1;
}

static int order(lua_State *L)
{
  struct cairn_error err = {0};
  int result;
  if (cairn_datetime_compare(check_datetime(L, 1), check_datetime(L, 2),
                             &result, &err) != 0)
    raise(L, &err);
  return result;
}

static int less(lua_State *L)
{
  lua_pushboolean(L, order(L) < 0);
  return 1;
}

static int less_equal(lua_State *L)
{
  lua_pushboolean(L, order(L) <= 0);
  return 1;
}

static int equal(lua_State *L)
{
  const struct cairn_datetime *a = cairn__lua_test_datetime(L, 1);
  const struct cairn_datetime *b = cairn__lua_test_datetime(L, 2);
  struct cairn_error err = {0};
  int result = 1;
  lua_pushboolean(L, a != NULL && b != NULL &&
                         cairn_datetime_compare(a, b, &result, &err) == 0 &&
                         result == 0);
  return 1;
}

static int index_field(lua_State *L)
{
  const struct cairn_datetime *t = check_datetime(L, 1);
  const char *key = luaL_checkstring(L, 2);
  static const char *const fields[] = {"microseconds", "seconds", "utc_offset",
                                       "kind", "precision"};
  if (strcmp(key, "microseconds") == 0)
    lua_pushinteger(L, t->microseconds);
  else if (strcmp(key, "seconds") == 0)
    lua_pushnumber(L, (lua_Number)t->microseconds / 1e6);
  else if (strcmp(key, "utc_offset") == 0)
    lua_pushinteger(L, t->utc_offset);
  else if (strcmp(key, "kind") == 0)
    lua_pushstring(L, kind_names[t->kind]);
  else if (strcmp(key, "precision") == 0)
    lua_pushinteger(L, t->precision);
  else
    return luaL_error(
        L, "a datetime has no field '%s'; did you mean '%s'?", key,
        cairn__nearest(key, fields, sizeof fields / sizeof *fields));
  return 1;
}

static int new_index(lua_State *L)
{
  return luaL_error(L, "a datetime cannot be changed; make a new one");
}

static const luaL_Reg metamethods[] = {{"__tostring", to_string},
                                       {"__concat", concat},
                                       {"__add", add},
                                       {"__sub", subtract},
                                       {"__mul", multiply},
                                       {"__div", divide},
                                       {"__idiv", divide},
                                       {"__lt", less},
                                       {"__le", less_equal},
                                       {"__eq", equal},
                                       {"__index", index_field},
                                       {"__newindex", new_index},
                                       {NULL, NULL}};

static const luaL_Reg functions[] = {
    {"datetime", new_datetime}, {"interval", new_interval}, {NULL, NULL}};

void cairn__lua_open_datetime(lua_State *L)
{
  luaL_newmetatable(L, CAIRN__LUA_DATETIME);
  luaL_setfuncs(L, metamethods, 0);
  lua_pop(L, 1);
  cairn__lua_register(L, functions);
}
