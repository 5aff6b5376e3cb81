/* A schedule as a value: userdata that holds the properties and their zone,
 * and lists when a job with them would run. */
#include "binding.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "calendar.h"
#include "datetime.h"
#include "error.h"
#include "job.h"

#define SCHEDULE "cairn.schedule"
#define ZONE     "cairn.zone"
#define NEXT_MAX 100000

struct schedule {
  struct cairn__schedule s;
  struct cairn__zone *zone; /* NULL until it is loaded */
  char warning[256];
};

static struct schedule *check_schedule(lua_State *L, int index)
{
  return luaL_checkudata(L, index, SCHEDULE);
}

static int schedule_gc(lua_State *L)
{
  struct schedule *p = check_schedule(L, 1);
  cairn__zone_free(p->zone);
  p->zone = NULL;
  return 0;
}

static int64_t now_us(void)
{
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

/* ---- reading the table ------------------------------------------------------
 */

/* The field on top, 1 when it is set; nil and cairn.null are not. */
static int get_field(lua_State *L, const char *name)
{
  return lua_getfield(L, 1, name) > LUA_TNIL &&
         !(lua_islightuserdata(L, -1) && lua_touserdata(L, -1) == NULL);
}

/* A number or label of a property: 1, 0 when it is not set, -1. */
static int read_number(lua_State *L, int property, int64_t *out,
                       struct cairn_error *err)
{
  const struct cairn_property_info *p = cairn_property_at((size_t)property - 1);
  struct cairn_value v = {0};
  int rc = 0;
  *out = 0;
  if (get_field(L, p->name)) {
    if (lua_isinteger(L, -1)) {
      v.kind = CAIRN_VALUE_INTEGER;
      v.as.integer = lua_tointeger(L, -1);
    } else if (lua_type(L, -1) == LUA_TNUMBER) {
      v.kind = CAIRN_VALUE_REAL;
      v.as.real = lua_tonumber(L, -1);
    } else if (lua_type(L, -1) == LUA_TSTRING) {
      v.kind = CAIRN_VALUE_STRING;
      v.as.string = lua_tolstring(L, -1, &v.count);
    } else {
      return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                         "%s: a number%s expected, "
                         "got a %s",
                         p->name, p->values ? " or a label" : "",
                         luaL_typename(L, -1));
    }
    rc = cairn__number_from(p, &v, out, err) == 0 ? 1 : -1;
  }
  lua_pop(L, 1);
  return rc;
}

static int read_time(lua_State *L, const char *name, int is_interval,
                     struct cairn_datetime *out, struct cairn_error *err)
{
  struct cairn_error why = {0};
  int rc = 0;
  if (get_field(L, name)) {
    rc = 1;
    if (cairn__lua_to_datetime(L, -1, is_interval, out, &why) != 0)
      rc = cairn__fail(err, why.id, "%s: %s", name, why.message);
  }
  lua_pop(L, 1);
  return rc;
}

/* A label of this property: its number, 0 when it is not set, or -1. */
static int read_word(lua_State *L, const char *name, const char *valid,
                     struct cairn_error *err)
{
  int64_t n = 0;
  char shown[80];
  if (get_field(L, name)) {
    const char *word =
        lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    if (!word || cairn_value_number(cairn_property_find(name), word, &n) != 0)
      n = -1;
    if (!word)
      cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                  "%s: one of %s expected, got a %s", name, valid,
                  luaL_typename(L, -1));
    else if (n < 0)
      cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                  "%s: \"%s\" is not valid; "
                  "valid are %s",
                  name, cairn__printable(word, shown, sizeof shown), valid);
  }
  lua_pop(L, 1);
  return (int)n;
}

static int read_until(lua_State *L, struct cairn__schedule *s, int64_t now,
                      struct cairn_error *err)
{
  struct cairn_datetime t;
  int rc = read_time(L, "UntilTime", 0, &t, err);
  if (rc <= 0 || t.kind == CAIRN_NEVER)
    return rc < 0 ? -1 : 0;
  if (t.kind == CAIRN_ZERO)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "UntilTime must be a time, an interval from now on or "
                       "nines (for ever)");
  s->until_us = t.microseconds;
  if (t.kind == CAIRN_INTERVAL &&
      __builtin_add_overflow(now, t.microseconds, &s->until_us))
    s->until_us = INT64_MAX;
  s->set |= CAIRN__SCHEDULE_UNTIL;
  return 0;
}

static int read_numbers(lua_State *L, struct cairn__schedule *s,
                        struct cairn_error *err)
{
  static const struct {
    int property, flag;
  } numbers[] = {
      {CAIRN_PROPERTY_RunMonth, CAIRN__SCHEDULE_MONTH},
      {CAIRN_PROPERTY_RunDay, CAIRN__SCHEDULE_DAY},
      {CAIRN_PROPERTY_RunDayOfWeek, CAIRN__SCHEDULE_WEEKDAY},
      {CAIRN_PROPERTY_LocalOrUtcTime, 0},
      {CAIRN_PROPERTY_JobRunTimes, 0},
  };
  int64_t values[sizeof numbers / sizeof *numbers];
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    int rc = read_number(L, numbers[i].property, &values[i], err);
    if (rc < 0)
      return -1;
    if (rc > 0)
      s->set |= (uint8_t)numbers[i].flag;
  }
  s->month = (uint8_t)values[0];
  s->day = (int8_t)values[1];
  s->weekday = (int8_t)values[2];
  s->local_or_utc = (uint16_t)values[3];
  s->run_times = (uint32_t)values[4];
  return 0;
}

static int read_zone(lua_State *L, struct schedule *p, struct cairn_error *err)
{
  struct cairn_error why = {0};
  const char *name = NULL;
  size_t length = 0;
  if (get_field(L, "zone")) {
    if (lua_type(L, -1) != LUA_TSTRING)
      return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                         "zone: a name expected, got a %s",
                         luaL_typename(L, -1));
    name = lua_tolstring(L, -1, &length);
    if (length == 0 || strlen(name) != length)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "zone: a name such as \"Europe/Berlin\" expected");
  }
  if (cairn__zone_load(name, &p->zone, &why) != 0)
    return cairn__fail(err, why.id, "zone: %s", why.message);
  lua_pop(L, 1);
  p->s.zone = p->zone;
  return 0;
}

static int read_table(lua_State *L, struct schedule *p, struct cairn_error *err)
{
  struct cairn_datetime t;
  int64_t now = now_us();
  int gap, overlap;
  if (read_numbers(L, &p->s, err) != 0)
    return -1;
  int rc = read_time(L, "RunStartInterval", 1, &t, err);
  if (rc < 0)
    return -1;
  if (rc > 0 && t.kind != CAIRN_INTERVAL)
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "RunStartInterval must be the time from midnight on");
  if (rc > 0) {
    p->s.start_us = t.microseconds;
    p->s.set |= CAIRN__SCHEDULE_START;
  }
  if (read_until(L, &p->s, now, err) != 0)
    return -1;
  gap = read_word(L, "gap", "\"first\", \"shift\" and \"skip\"", err);
  if (gap < 0)
    return -1;
  overlap = read_word(L, "overlap", "\"first\", \"last\" and \"both\"", err);
  if (overlap < 0)
    return -1;
  p->s.gap = (uint8_t)gap;
  p->s.overlap = (uint8_t)overlap;
  if (read_zone(L, p, err) != 0)
    return -1;
  return cairn__schedule_check(&p->s, now, p->warning, sizeof p->warning, err);
}

/* schedule(table) -> schedule | nil, message, code; unknown keys are looked
 * for on the Lua side. */
static int new_schedule(lua_State *L)
{
  struct cairn_error err = {0};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  struct schedule *p = lua_newuserdatauv(L, sizeof *p, 0);
  memset(p, 0, sizeof *p);
  luaL_setmetatable(L, SCHEDULE);
  if (read_table(L, p, &err) != 0)
    return cairn__lua_fail(L, &err);
  lua_settop(L, 2);
  return 1;
}

/* ---- listing
 * ------------------------------------------------------------------ */

/* "2025-03-30 02:30:00", with a fraction if it has one */
static void push_nominal(lua_State *L, int64_t local_us)
{
  char text[CAIRN_DATETIME_SIZE], out[40];
  struct cairn_datetime t = cairn__datetime_from_unix(local_us, 0);
  cairn_datetime_format(&t, text);
  snprintf(out, sizeof out, "%.4s-%.2s-%.2s %.2s:%.2s:%.2s%.7s", text, text + 4,
           text + 6, text + 8, text + 10, text + 12,
           strncmp(text + 14, ".000000", 7) == 0 ? "" : text + 14);
  lua_pushstring(L, out);
}

static void push_due(lua_State *L, const struct cairn__due *due)
{
  char text[CAIRN_DATETIME_SIZE];
  struct cairn_datetime t =
      cairn__datetime_from_unix(due->unix_us, (int)(due->offset_us / 60000000));
  cairn_datetime_format(&t, text);
  lua_createtable(L, 0, 5);
  lua_pushinteger(L, due->unix_us);
  lua_setfield(L, -2, "unix_us");
  lua_pushstring(L, text);
  lua_setfield(L, -2, "local_time");
  lua_pushstring(L, cairn__due_kind(due->kind));
  lua_setfield(L, -2, "kind");
  push_nominal(L, due->nominal_us[0]);
  lua_setfield(L, -2, "nominal");
  if (due->nominal_count < 2)
    return;
  lua_createtable(L, due->nominal_count, 0);
  for (int i = 0; i < due->nominal_count; i++) {
    push_nominal(L, due->nominal_us[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "nominals");
}

/* schedule:next([n[, after]]) -> list */
static int schedule_next(lua_State *L)
{
  struct schedule *p = check_schedule(L, 1);
  struct cairn__schedule s = p->s;
  struct cairn_error err = {0};
  struct cairn__due due;
  lua_Integer n = luaL_optinteger(L, 2, 1);
  int64_t after = now_us();
  luaL_argcheck(L, n >= 1 && n <= NEXT_MAX, 2, "1 to 100000 expected");
  if (!lua_isnoneornil(L, 3)) {
    struct cairn_datetime t;
    if (cairn__lua_to_datetime(L, 3, 0, &t, &err) != 0)
      return luaL_argerror(L, 3, lua_pushstring(L, err.message));
    luaL_argcheck(L, t.kind == CAIRN_TIMESTAMP, 3, "a time expected");
    after = t.microseconds;
  }
  lua_settop(L, 3);
  lua_newtable(L);
  for (lua_Integer i = 1; i <= n && cairn__schedule_next(&s, after, &due);
       i++) {
    push_due(L, &due);
    lua_rawseti(L, 4, i);
    after = due.unix_us;
    s.runs_done++;
  }
  return 1;
}

/* schedule:local_time(unix microseconds) -> CIM datetime */
static int schedule_local_time(lua_State *L)
{
  struct schedule *p = check_schedule(L, 1);
  int64_t us = luaL_checkinteger(L, 2);
  int64_t offset_us = 0;
  char text[CAIRN_DATETIME_SIZE];
  struct cairn_datetime t;
  luaL_argcheck(L, us >= 0 && us < INT64_C(253402300800000000), 2,
                "Unix microseconds up to the year 9999 expected");
  if (p->s.local_or_utc != 2)
    offset_us = cairn__zone_offset_us(p->zone, us);
  t = cairn__datetime_from_unix(us, (int)(offset_us / 60000000));
  cairn_datetime_format(&t, text);
  lua_pushstring(L, text);
  return 1;
}

static int schedule_index(lua_State *L)
{
  static const char *const fields[] = {"next", "warning", "zone", "local_time"};
  struct schedule *p = check_schedule(L, 1);
  const char *key = luaL_checkstring(L, 2);
  if (strcmp(key, "next") == 0) {
    lua_pushcfunction(L, schedule_next);
  } else if (strcmp(key, "local_time") == 0) {
    lua_pushcfunction(L, schedule_local_time);
  } else if (strcmp(key, "zone") == 0) {
    lua_pushstring(L,
                   p->s.local_or_utc == 2 ? "UTC" : cairn__zone_name(p->zone));
  } else if (strcmp(key, "warning") == 0) {
    if (p->warning[0] != '\0')
      lua_pushstring(L, p->warning);
    else
      lua_pushnil(L);
  } else {
    return luaL_error(L, "a schedule has no field '%s'; did you mean '%s'?",
                      key, cairn__nearest(key, fields, 4));
  }
  return 1;
}

/* ---- zones: those that were asked about stay loaded, as in an engine ---- */

static const char zones_key = 'z';

struct loaded {
  struct cairn__zone *zone;
};

static int zone_gc(lua_State *L)
{
  struct loaded *loaded = lua_touserdata(L, 1);
  cairn__zone_free(loaded->zone);
  loaded->zone = NULL;
  return 0;
}

/* zone_offset(unix_us, zone) -> microseconds to add to UTC; raises for no zone.
 * "" is the host's. */
static int zone_offset(lua_State *L)
{
  struct cairn_error err = {0};
  int64_t at = luaL_checkinteger(L, 1);
  const char *name = luaL_checkstring(L, 2);
  lua_settop(L, 2);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &zones_key);
  lua_pushvalue(L, 2);
  struct loaded *loaded =
      lua_rawget(L, 3) == LUA_TUSERDATA ? lua_touserdata(L, 4) : NULL;
  if (!loaded) {
    loaded = lua_newuserdatauv(L, sizeof *loaded, 0);
    loaded->zone = NULL;
    luaL_setmetatable(L, ZONE);
    lua_pushvalue(L, 2);
    lua_pushvalue(L, -2);
    if (cairn__zone_load(name, &loaded->zone, &err) != 0)
      return luaL_error(L, "%s", err.message);
    lua_rawset(L, 3);
  }
  lua_pushinteger(L, cairn__zone_offset_us(loaded->zone, at));
  return 1;
}

static const luaL_Reg metamethods[] = {
    {"__gc", schedule_gc}, {"__index", schedule_index}, {NULL, NULL}};

static const luaL_Reg functions[] = {
    {"schedule", new_schedule}, {"zone_offset", zone_offset}, {NULL, NULL}};

void cairn__lua_open_schedule(lua_State *L)
{
  luaL_newmetatable(L, ZONE);
  lua_pushcfunction(L, zone_gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &zones_key);
  luaL_newmetatable(L, SCHEDULE);
  luaL_setfuncs(L, metamethods, 0);
  lua_pop(L, 1);
  cairn__lua_register(L, functions);
}
