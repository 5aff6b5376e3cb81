/* cairn.settings: what --set or a table gives for the settings of a policy, or
 * their defaults, of the defaults' types. One function for both states that a
 * policy file is loaded in, which must agree. */
#include "policy_settings.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

enum {
  NAMES_MAX = 64,
  COST = 20, /* instructions that a setting is charged for */
  GIVEN = 1, /* the arguments */
  DECLARED
};

struct number {
  int is_integer;
  lua_Integer least, most; /* of an integer */
  lua_Number low, high;    /* of any other */
};

/* The value on top, as a message shows it. */
static const char *shown(lua_State *L, char *buffer, size_t size)
{
  int type = lua_type(L, -1);
  if (type == LUA_TSTRING) {
    cairn__printable(lua_tostring(L, -1), buffer, size);
  } else if (type == LUA_TNUMBER || type == LUA_TBOOLEAN) {
    snprintf(buffer, size, "%s", luaL_tolstring(L, -1, NULL));
    lua_pop(L, 1);
  } else {
    snprintf(buffer, size, "a %s", lua_typename(L, type));
  }
  return buffer;
}

static int fail_value(lua_State *L, const char *name, const char *expected)
{
  char value[80];
  shown(L, value, sizeof value);
  return luaL_error(L, "setting %s is '%s'; %s expected", name, value,
                    expected);
}

static int is_within(lua_State *L, const struct number *n)
{
  lua_Number x = lua_tonumber(L, -1);
  if (n->is_integer)
    return lua_tointeger(L, -1) >= n->least && lua_tointeger(L, -1) <= n->most;
  return x >= n->low && x <= n->high; /* not NaN */
}

/* Makes a number of the value on top, of the wanted kind; 0 when there is none
 * in it. */
static int to_number(lua_State *L, const struct number *n)
{
  int is_number;
  lua_Integer i;
  lua_Number x;
  if (lua_type(L, -1) != LUA_TNUMBER && lua_type(L, -1) != LUA_TSTRING)
    return 0;
  if (n->is_integer) {
    i = lua_tointegerx(L, -1, &is_number);
    if (is_number) {
      lua_pop(L, 1);
      lua_pushinteger(L, i);
    }
  } else {
    x = lua_tonumberx(L, -1, &is_number);
    if (is_number) {
      lua_pop(L, 1);
      lua_pushnumber(L, x);
    }
  }
  return is_number && is_within(L, n);
}

static int fail_number(lua_State *L, const char *name, const struct number *n)
{
  char expected[160];
  if (!n->is_integer)
    snprintf(expected, sizeof expected, "a number from %.14g to %.14g", n->low,
             n->high);
  else if (n->least == LUA_MININTEGER && n->most == LUA_MAXINTEGER)
    snprintf(expected, sizeof expected, "a whole number");
  else if (n->most == LUA_MAXINTEGER)
    snprintf(expected, sizeof expected, "a whole number, %lld or more,",
             (long long)n->least);
  else
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld",
             (long long)n->least, (long long)n->most);
  return fail_value(L, name, expected);
}

/* The default of a number and its range, from the table on top, which is
 * replaced by the default. */
static void read_range(lua_State *L, const char *name, struct number *n)
{
  int table = lua_gettop(L);
  int type = lua_rawgeti(L, table, 1);
  n->is_integer = lua_isinteger(L, -1);
  if (type != LUA_TNUMBER)
    luaL_error(L,
               "settings: %s: { default, least, most } expected, three "
               "numbers",
               name);
  for (int i = 2; i <= 3; i++) {
    type = lua_rawgeti(L, table, i);
    if (type == LUA_TNIL) {
      lua_pop(L, 1);
      continue;
    }
    if (type != LUA_TNUMBER || (n->is_integer && !lua_isinteger(L, -1)))
      luaL_error(L, "settings: %s: least and most must be %snumbers", name,
                 n->is_integer ? "whole " : "");
    *(i == 2 ? &n->least : &n->most) = lua_tointeger(L, -1);
    *(i == 2 ? &n->low : &n->high) = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  if (!is_within(L, n))
    luaL_error(L, "settings: %s: its default is not within its range", name);
  lua_replace(L, table);
}

static void take_text(lua_State *L, const char *name)
{
  if (lua_type(L, -1) != LUA_TSTRING && lua_type(L, -1) != LUA_TNUMBER)
    fail_value(L, name, "text");
  lua_tostring(L, -1); /* a number becomes its text */
}

static void take_flag(lua_State *L, const char *name)
{
  const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  int is_true = strcmp(text, "true") == 0;
  if (lua_type(L, -1) == LUA_TBOOLEAN)
    return;
  if (!is_true && strcmp(text, "false") != 0)
    fail_value(L, name, "true or false");
  lua_pop(L, 1);
  lua_pushboolean(L, is_true);
}

/* Replaces the declaration on top by the value that the setting has. */
static void take(lua_State *L, const char *name)
{
  struct number n = {0, LUA_MININTEGER, LUA_MAXINTEGER, -HUGE_VAL, HUGE_VAL};
  if (lua_type(L, -1) == LUA_TTABLE)
    read_range(L, name, &n);
  n.is_integer = lua_isinteger(L, -1);
  int type = lua_type(L, -1);
  if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN)
    luaL_error(L,
               "settings: %s: the default must be text, a number, true, "
               "false or { default, least, most }, got a %s",
               name, lua_typename(L, type));
  lua_pushstring(L, name);
  if (lua_rawget(L, GIVEN) == LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  if (type == LUA_TSTRING)
    take_text(L, name);
  else if (type == LUA_TBOOLEAN)
    take_flag(L, name);
  else if (!to_number(L, &n))
    fail_number(L, name, &n);
  lua_remove(L, -2); /* the default */
}

static int fail_unknown(lua_State *L, const char *const *names, size_t count)
{
  char given[80];
  luaL_Buffer valid;
  shown(L, given, sizeof given);
  if (count == 0)
    return luaL_error(L, "no setting is called '%s'; there are none", given);
  const char *nearest = cairn__nearest(given, names, count);
  luaL_buffinit(L, &valid);
  for (size_t i = 0; i < count; i++) {
    luaL_addstring(&valid, i > 0 ? ", " : "");
    luaL_addstring(&valid, names[i]);
  }
  luaL_pushresult(&valid);
  return luaL_error(L,
                    "no setting is called '%s'; did you mean '%s'? (valid: "
                    "%s)",
                    given, nearest, lua_tostring(L, -1));
}

/* Sorted, so that messages are always the same. */
static void add_name(const char **names, size_t count, const char *name)
{
  size_t at = count;
  for (; at > 0 && strcmp(names[at - 1], name) > 0; at--)
    names[at] = names[at - 1];
  names[at] = name;
}

int cairn__lua_settings(lua_State *L,
                        void (*charge)(lua_State *L, uint64_t steps))
{
  const char *names[NAMES_MAX];
  size_t count = 0;
  lua_settop(L, 2);
  if (lua_isnil(L, GIVEN)) {
    lua_newtable(L);
    lua_replace(L, GIVEN);
  }
  luaL_checktype(L, GIVEN, LUA_TTABLE);
  luaL_checktype(L, DECLARED, LUA_TTABLE);
  lua_newtable(L); /* 3 */
  lua_pushliteral(L, "file");
  if (lua_rawget(L, GIVEN) == LUA_TSTRING)
    lua_setfield(L, 3, "file");
  else
    lua_pop(L, 1);
  for (lua_pushnil(L); lua_next(L, DECLARED); lua_settop(L, 4)) {
    if (charge != NULL)
      charge(L, COST);
    if (lua_type(L, 4) != LUA_TSTRING)
      return luaL_error(L, "settings: names expected as keys, got a %s",
                        luaL_typename(L, 4));
    const char *name = lua_tostring(L, 4);
    if (strcmp(name, "file") == 0)
      return luaL_error(L, "settings: file is the path of the policy; choose "
                           "another name");
    if (count == NAMES_MAX)
      return luaL_error(L, "settings: at most %d expected", NAMES_MAX);
    add_name(names, count++, name); /* the table keeps it */
    take(L, name);
    lua_pushvalue(L, 4);
    lua_insert(L, -2);
    lua_rawset(L, 3);
  }
  for (lua_pushnil(L); lua_next(L, GIVEN);) {
    if (charge != NULL)
      charge(L, COST);
    lua_pop(L, 1);
    lua_pushvalue(L, 4);
    if (lua_rawget(L, 3) == LUA_TNIL &&
        (lua_type(L, 4) != LUA_TSTRING ||
         strcmp(lua_tostring(L, 4), "file") != 0)) {
      lua_settop(L, 4);
      return fail_unknown(L, names, count);
    }
    lua_settop(L, 4);
  }
  lua_settop(L, 3);
  return 1;
}
