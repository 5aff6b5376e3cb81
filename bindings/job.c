/* A job in Lua: a number that names it and the engine it belongs to (its user
 * value), looked up at every use, so that a job that is gone is an error and
 * never a dangling pointer. Equal jobs are the same userdata (the engine's
 * weak table). Methods come first, then properties; every other name raises
 * with the nearest one. */
#include "binding.h"

#include <string.h>

#include "error.h"

/* Whatever allocates in Lua may run a finalizer, which may close the engine:
 * each function allocates first, then looks the engine up and calls it. */

/* ---- the userdata
 * -------------------------------------------------------------- */

void cairn__lua_push_job(lua_State *L, int engine, cairn_job serial)
{
  struct cairn__lua_engine *e = lua_touserdata(L, engine);
  struct cairn_value value;
  engine = lua_absindex(L, engine);
  luaL_checkstack(L, 6, NULL);
  lua_getiuservalue(L, engine, CAIRN__LUA_JOBS);
  if (lua_rawgeti(L, -1, (lua_Integer)serial) == LUA_TUSERDATA) {
    lua_remove(L, -2);
    return;
  }
  lua_pop(L, 1);
  struct cairn__lua_job *job = lua_newuserdatauv(L, sizeof *job, 1);
  memset(job, 0, sizeof *job);
  job->serial = serial;
  luaL_setmetatable(L, CAIRN__LUA_JOB);
  lua_pushvalue(L, engine);
  lua_setiuservalue(L, -2, 1);
  if (e->engine != NULL &&
      cairn_job_get(e->engine, serial, CAIRN_PROPERTY_InstanceID, &value,
                    NULL) == 0 &&
      value.kind == CAIRN_VALUE_STRING) {
    strncpy(job->instance_id, value.as.string, sizeof job->instance_id - 1);
  }
  lua_pushvalue(L, -1);
  lua_rawseti(L, -3, (lua_Integer)serial);
  lua_remove(L, -2);
}

struct cairn__lua_job *cairn__lua_check_job(lua_State *L, int index,
                                            cairn_engine **engine)
{
  struct cairn__lua_job *job = luaL_checkudata(L, index, CAIRN__LUA_JOB);
  lua_getiuservalue(L, index, 1);
  struct cairn__lua_engine *e = lua_touserdata(L, -1);
  lua_pop(L, 1); /* the job keeps it */
  if (e == NULL || e->engine == NULL) {
    luaL_error(L, "attempt to use job %s of a closed engine", job->instance_id);
    return NULL;
  }
  *engine = e->engine;
  return job;
}

/* The engine knows a job that is gone by its serial only; people know it by
 * its InstanceID. */
static const struct cairn_error *about(const struct cairn__lua_job *job,
                                       struct cairn_error *err)
{
  if (err->id == CAIRN_E_NOT_FOUND)
    cairn__fail(err, CAIRN_E_NOT_FOUND, "job %s is gone", job->instance_id);
  return err;
}

/* ---- labels of the maps that belong to methods
 * ------------------------------------ */

const char *cairn__lua_label(const char *map, int64_t value)
{
  size_t count;
  const struct cairn_value_label *values = cairn_value_map(map, &count);
  for (size_t i = 0; values != NULL && i < count; i++)
    if (values[i].value == value)
      return values[i].label;
  return NULL;
}

int cairn__lua_number(const char *map, const char *label, int64_t *out)
{
  struct cairn_property_info p = {.name = map};
  p.values = cairn_value_map(map, &p.value_count);
  return p.values == NULL ? -1 : cairn_value_number(&p, label, out);
}

/* ---- properties to Lua
 * --------------------------------------------------------- */

static void push_integer(lua_State *L, const struct cairn_property_info *p,
                         int64_t value, int is_number)
{
  const char *label =
      is_number || p->values == NULL ? NULL : cairn_value_label(p, value);
  if (label != NULL)
    lua_pushstring(L, label);
  else
    lua_pushinteger(L, value);
}

static void push_datetime(lua_State *L, const struct cairn_datetime *t,
                          int is_number)
{
  if (!is_number) {
    char buffer[CAIRN_DATETIME_SIZE];
    cairn_datetime_format(t, buffer);
    lua_pushstring(L, buffer);
  } else if (t->kind == CAIRN_NEVER) {
    lua_pushinteger(L, INT64_MAX);
  } else if (t->kind == CAIRN_ZERO) {
    lua_pushinteger(L, 0);
  } else {
    lua_pushinteger(L, t->microseconds);
  }
}

/* Bytes that a copy of an array takes; strings with their NULs. */
static size_t array_size(const struct cairn_value *v)
{
  if (v->kind == CAIRN_VALUE_INTEGER_ARRAY)
    return v->count * sizeof *v->as.integers;
  size_t size = 0;
  for (size_t i = 0; i < v->count; i++)
    size += strlen(v->as.strings[i]) + 1;
  return size;
}

/* The borrowed array is read after the allocation and copied at once; only the
 * copy is used while Lua allocates further. */
static int push_array(lua_State *L, int index,
                      const struct cairn_property_info *p, int is_number,
                      struct cairn_error *err)
{
  struct cairn_value v;
  cairn_engine *engine;
  size_t room = 256, size;
  char *copy;
  for (;;) {
    copy = lua_newuserdatauv(L, room, 0);
    struct cairn__lua_job *job = cairn__lua_check_job(L, index, &engine);
    if (cairn_job_get(engine, job->serial, p->id, &v, err) != 0)
      return -1;
    if (v.kind != CAIRN_VALUE_INTEGER_ARRAY &&
        v.kind != CAIRN_VALUE_STRING_ARRAY) {
      lua_pushnil(L);
      return 0;
    }
    size = array_size(&v);
    if (size <= room)
      break;
    room = size + size / 4;
    lua_pop(L, 1);
  }
  if (v.kind == CAIRN_VALUE_INTEGER_ARRAY) {
    if (size > 0)
      memcpy(copy, v.as.integers, size);
    lua_createtable(L, (int)v.count, 0);
    for (size_t i = 0; i < v.count; i++) {
      push_integer(L, p, ((uint16_t *)copy)[i], is_number);
      lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    return 0;
  }
  char *end = copy;
  for (size_t i = 0; i < v.count; i++)
    end = stpcpy(end, v.as.strings[i]) + 1;
  lua_createtable(L, (int)v.count, 0);
  for (size_t i = 0; i < v.count; i++) {
    lua_pushstring(L, copy);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
    copy += strlen(copy) + 1;
  }
  return 0;
}

static void push_value(lua_State *L, const struct cairn_property_info *p,
                       const struct cairn_value *v, int is_number)
{
  switch (v->kind) {
  case CAIRN_VALUE_BOOLEAN:
    lua_pushboolean(L, v->as.boolean);
    break;
  case CAIRN_VALUE_INTEGER:
    push_integer(L, p, v->as.integer, is_number);
    break;
  case CAIRN_VALUE_REAL:
    lua_pushnumber(L, v->as.real);
    break;
  case CAIRN_VALUE_STRING:
    lua_pushstring(L, v->as.string);
    break;
  case CAIRN_VALUE_DATETIME:
    push_datetime(L, &v->as.datetime, is_number);
    break;
  default:
    lua_pushnil(L);
    break;
  }
}

static void push_property(lua_State *L, int index,
                          const struct cairn_property_info *p, int is_number)
{
  struct cairn_error err;
  struct cairn_value v;
  cairn_engine *engine;
  struct cairn__lua_job *job = cairn__lua_check_job(L, index, &engine);
  if (p->is_array) {
    if (push_array(L, index, p, is_number, &err) != 0)
      luaL_error(L, "%s", about(job, &err)->message);
    return;
  }
  if (cairn_job_get(engine, job->serial, p->id, &v, &err) != 0)
    luaL_error(L, "%s", about(job, &err)->message);
  push_value(L, p, &v, is_number);
}

static const struct cairn_property_info *check_property(lua_State *L,
                                                        const char *name)
{
  const struct cairn_property_info *p = cairn_property_find(name);
  if (p == NULL) {
    char shown[80];
    luaL_error(L, "a job has no property or method '%s'; did you mean '%s'?",
               cairn__printable(name, shown, sizeof shown),
               cairn_property_nearest(name));
  }
  return p;
}

/* upvalue 1: the methods; 2: what is known of each property, by its name */
static int job_index(lua_State *L)
{
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) {
    push_property(L, 1, lua_touserdata(L, 3), 0);
    return 1;
  }
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
    return 1;
  if (lua_type(L, 2) != LUA_TSTRING)
    return luaL_error(L, "a job is indexed by names, not by a %s",
                      luaL_typename(L, 2));
  luaL_checkudata(L, 1, CAIRN__LUA_JOB);
  push_property(L, 1, check_property(L, lua_tostring(L, 2)), 0);
  return 1;
}

/* job:number(name) -> the number behind a label, the microseconds behind a
 * datetime; what has no number comes as it is */
static int job_number(lua_State *L)
{
  luaL_checkudata(L, 1, CAIRN__LUA_JOB);
  push_property(L, 1, check_property(L, luaL_checkstring(L, 2)), 1);
  return 1;
}

/* ---- properties from Lua
 * ------------------------------------------------------- */

/* A duration, as Lua has them: seconds, or text such as "2h". 1 when it was
 * one, 0 for what is left to the engine, -1. */
static int to_duration(lua_State *L, int index, const char *name,
                       struct cairn_value *out, struct cairn_error *err)
{
  const struct cairn_property_info *p = cairn_property_find(name);
  struct cairn_error why;
  if (p == NULL || !p->is_interval || !p->is_writable ||
      (lua_type(L, index) != LUA_TNUMBER &&
       (lua_type(L, index) != LUA_TSTRING ||
        lua_rawlen(L, index) == CAIRN_DATETIME_SIZE - 1)))
    return 0;
  if (cairn__lua_to_datetime(L, index, 1, &out->as.datetime, &why) != 0)
    return cairn__fail(err, why.id, "%s: %s", name, why.message);
  out->kind = CAIRN_VALUE_DATETIME;
  return 1;
}

/* The value at `index`, its string borrowed from there; -1: no such value. */
static int to_value(lua_State *L, int index, const char *name,
                    struct cairn_value *out, struct cairn_error *err)
{
  const struct cairn_datetime *t;
  char shown[80];
  int code;
  memset(out, 0, sizeof *out);
  code = to_duration(L, index, name, out, err);
  if (code != 0)
    return code > 0 ? 0 : -1;
  switch (lua_type(L, index)) {
  case LUA_TNIL:
    out->kind = CAIRN_VALUE_NULL;
    return 0;
  case LUA_TBOOLEAN:
    out->kind = CAIRN_VALUE_BOOLEAN;
    out->as.boolean = lua_toboolean(L, index);
    return 0;
  case LUA_TNUMBER: {
    int is_integer;
    lua_Integer i = lua_tointegerx(L, index, &is_integer);
    if (is_integer) {
      out->kind = CAIRN_VALUE_INTEGER;
      out->as.integer = i;
    } else {
      out->kind = CAIRN_VALUE_REAL;
      out->as.real = lua_tonumber(L, index);
    }
    return 0;
  }
  case LUA_TSTRING:
    out->kind = CAIRN_VALUE_STRING;
    out->as.string = lua_tolstring(L, index, &out->count);
    if (strlen(out->as.string) != out->count)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "%s: the string has a NUL byte in it",
                         cairn__printable(name, shown, sizeof shown));
    return 0;
  case LUA_TLIGHTUSERDATA:
    if (lua_touserdata(L, index) == NULL) {
      out->kind = CAIRN_VALUE_NULL;
      return 0;
    }
    break;
  case LUA_TUSERDATA:
    if ((t = cairn__lua_test_datetime(L, index)) != NULL) {
      out->kind = CAIRN_VALUE_DATETIME;
      out->as.datetime = *t;
      return 0;
    }
    break;
  default:
    break;
  }
  return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                     "%s cannot be a %s; a number, a string, a boolean, a "
                     "datetime or nil is expected",
                     cairn__printable(name, shown, sizeof shown),
                     luaL_typename(L, index));
}

/* job.Priority = 3 */
static int job_newindex(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  struct cairn_change change;
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  if (lua_type(L, 2) != LUA_TSTRING)
    return luaL_error(L, "a job is indexed by names, not by a %s",
                      luaL_typename(L, 2));
  change.name = lua_tostring(L, 2);
  check_property(L, change.name);
  if (to_value(L, 3, change.name, &change.value, &err) != 0 ||
      cairn_job_set(engine, job->serial, &change, 1, &err) != 0)
    return luaL_error(L, "%s", about(job, &err)->message);
  return 0;
}

/* job:set { RunMonth = 1, RunDay = 28 } -> true | nil, message, code */
static int job_set(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  luaL_checkudata(L, 1, CAIRN__LUA_JOB);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2); /* the strings stay in the table */
  size_t room = 0, count = 0;
  lua_pushnil(L);
  while (lua_next(L, 2) != 0) {
    lua_pop(L, 1);
    luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, 2,
                  "names of properties expected as keys");
    room++;
  }
  struct cairn_change *changes =
      lua_newuserdatauv(L, (room + 1) * sizeof *changes, 0);
  lua_pushnil(L);
  while (lua_next(L, 2) != 0) {
    if (count >= room) /* a finalizer added one: as if it came later */
      break;
    changes[count].name = lua_tostring(L, -2);
    if (to_value(L, -1, changes[count].name, &changes[count].value, &err) != 0)
      return cairn__lua_fail(L, &err);
    count++;
    lua_pop(L, 1);
  }
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  if (cairn_job_set(engine, job->serial, changes, count, &err) != 0)
    return cairn__lua_fail(L, about(job, &err));
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- methods of the class
 * ------------------------------------------------------- */

/* Pushes a return code of the class and, when err is filled, its message. */
static int push_code(lua_State *L, const struct cairn__lua_job *job,
                     uint32_t code, struct cairn_error *err)
{
  about(job, err);
  lua_pushinteger(L, code);
  if (err->id == CAIRN_OK || err->message[0] == '\0')
    return 1;
  lua_pushnil(L);
  lua_pushstring(L, err->message);
  return 3;
}

/* request(job, state, timeout) -> code, nil, message. A state or a time-out
 * that is none gives the code for an invalid parameter, as published. */
static int job_request(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0}, ignored = {0};
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  struct cairn_datetime timeout;
  int64_t state = -1;
  int has_timeout = !lua_isnoneornil(L, 3);
  if (lua_type(L, 2) == LUA_TNUMBER) {
    int is_integer;
    state = lua_tointegerx(L, 2, &is_integer);
    if (!is_integer)
      state = -1;
  } else if (lua_type(L, 2) == LUA_TSTRING) {
    if (cairn__lua_number("RequestedState", lua_tostring(L, 2), &state) != 0)
      state = -1;
  } else if (!lua_isnoneornil(L, 2)) {
    return luaL_typeerror(L, 2, "state (\"Suspend\" or its number)");
  }
  if (has_timeout && cairn__lua_to_datetime(L, 3, 1, &timeout, &ignored) != 0) {
    if (ignored.id == CAIRN_E_WRONG_TYPE &&
        cairn__lua_test_datetime(L, 3) == NULL && lua_type(L, 3) != LUA_TSTRING)
      return luaL_typeerror(L, 3, "interval");
    /* not an interval: the engine says which code that is */
    timeout = (struct cairn_datetime){.kind = CAIRN_TIMESTAMP, .precision = 20};
  }
  uint32_t code = cairn_job_request_state_change(
      engine, job->serial, state, has_timeout ? &timeout : NULL, &err);
  return push_code(L, job, code, &err);
}

static int job_kill(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  int delete_on_kill = -1;
  if (!lua_isnoneornil(L, 2)) {
    luaL_checktype(L, 2, LUA_TBOOLEAN);
    delete_on_kill = lua_toboolean(L, 2);
  }
  return push_code(
      L, job, cairn_job_kill(engine, job->serial, delete_on_kill, &err), &err);
}

static int get_errors(lua_State *L, int is_ex)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  lua_settop(L, 1);
  char **errors = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  uint32_t code =
      cairn_job_get_errors(engine, job->serial, is_ex, errors, &err);
  if (*errors == NULL)
    return push_code(L, job, code, &err);
  lua_pushinteger(L, code);
  cairn__lua_decode(L, *errors, strlen(*errors));
  cairn__lua_unbox(L, box);
  if (!is_ex && lua_istable(L, -1) && lua_rawgeti(L, -1, 1) == LUA_TNIL)
    lua_pop(L, 1); /* the object itself, not an array of it */
  else if (!is_ex && lua_istable(L, -1))
    lua_remove(L, -2);
  return 2;
}

static int job_get_error(lua_State *L)
{
  return get_errors(L, 0);
}

static int job_get_error_ex(lua_State *L)
{
  return get_errors(L, 1);
}

/* job:DeleteInstance() -> 0 | CIM status code, message */
static int job_delete(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  if (cairn_job_delete(engine, job->serial, &err) == 0) {
    lua_pushinteger(L, 0);
    return 1;
  }
  const struct cairn_error_info *info = cairn_error_info(err.id);
  lua_pushinteger(L, info != NULL ? info->cim_status_code : 1);
  lua_pushstring(L, about(job, &err)->message);
  return 2;
}

/* resume_code(job) -> code, nil, message */
static int job_resume_code(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  return push_code(L, job, cairn_job_resume(engine, job->serial, &err), &err);
}

static int job_resume_with_input(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  const char *text = luaL_checkstring(L, 2);
  return push_code(L, job,
                   cairn_job_resume_with_input(engine, job->serial, text, &err),
                   &err);
}

/* ---- what the engine gives as JSON
 * -------------------------------------------------- */

static int push_json(lua_State *L, int (*get)(cairn_engine *, cairn_job,
                                              char **, struct cairn_error *))
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  lua_settop(L, 1);
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  if (get(engine, job->serial, json, &err) != 0)
    return cairn__lua_fail(L, about(job, &err));
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

static int job_report(lua_State *L)
{
  return push_json(L, cairn_job_report);
}

static int job_warnings(lua_State *L)
{
  return push_json(L, cairn_job_warnings);
}

static int job_query(lua_State *L)
{
  return push_json(L, cairn_job_query);
}

/* job:json([numbers]) -> the whole job as JSON text | nil, message, code */
static int job_json(lua_State *L)
{
  cairn_engine *engine;
  struct cairn_error err = {0};
  lua_settop(L, 2);
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  struct cairn__lua_job *job = cairn__lua_check_job(L, 1, &engine);
  if (cairn_job_json(engine, job->serial, lua_toboolean(L, 2), json, &err) != 0)
    return cairn__lua_fail(L, about(job, &err));
  lua_pushstring(L, *json);
  cairn__lua_unbox(L, box);
  return 1;
}

static int job_tostring(lua_State *L)
{
  struct cairn__lua_job *job = luaL_checkudata(L, 1, CAIRN__LUA_JOB);
  lua_pushfstring(L, "cairn.job (%s)", job->instance_id);
  return 1;
}

/* ---- for the Lua side
 * ------------------------------------------------------------ */

/* job_engine(job) -> engine, serial, InstanceID; also of a closed engine */
static int core_job_engine(lua_State *L)
{
  struct cairn__lua_job *job = luaL_checkudata(L, 1, CAIRN__LUA_JOB);
  lua_getiuservalue(L, 1, 1);
  lua_pushinteger(L, (lua_Integer)job->serial);
  lua_pushstring(L, job->instance_id);
  return 3;
}

/* is_job(value) */
static int core_is_job(lua_State *L)
{
  lua_pushboolean(L, luaL_testudata(L, 1, CAIRN__LUA_JOB) != NULL);
  return 1;
}

/* requested_state(label) -> number | nil */
static int core_requested_state(lua_State *L)
{
  int64_t state;
  if (cairn__lua_number("RequestedState", luaL_checkstring(L, 1), &state) != 0)
    return 0;
  lua_pushinteger(L, state);
  return 1;
}

static const luaL_Reg methods[] = {{"number", job_number},
                                   {"set", job_set},
                                   {"KillJob", job_kill},
                                   {"GetError", job_get_error},
                                   {"GetErrorEx", job_get_error_ex},
                                   {"DeleteInstance", job_delete},
                                   {"ResumeWithInput", job_resume_with_input},
                                   {"report", job_report},
                                   {"warnings", job_warnings},
                                   {"query", job_query},
                                   {"json", job_json},
                                   {NULL, NULL}};

static const luaL_Reg metamethods[] = {
    {"__newindex", job_newindex}, {"__tostring", job_tostring}, {NULL, NULL}};

static const luaL_Reg functions[] = {
    {"job_engine", core_job_engine},           {"is_job", core_is_job},
    {"requested_state", core_requested_state}, {"job_request", job_request},
    {"job_resume_code", job_resume_code},      {NULL, NULL}};

static void push_properties(lua_State *L)
{
  const struct cairn_property_info *p;
  lua_newtable(L);
  for (size_t i = 0; (p = cairn_property_at(i)) != NULL; i++) {
    lua_pushlightuserdata(L, (void *)(uintptr_t)p);
    lua_setfield(L, -2, p->name);
  }
}

void cairn__lua_open_job(lua_State *L)
{
  cairn__lua_register(L, functions);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  luaL_newmetatable(L, CAIRN__LUA_JOB);
  luaL_setfuncs(L, metamethods, 0);
  lua_pushvalue(L, -2);
  push_properties(L);
  lua_pushcclosure(L, job_index, 2);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  lua_setfield(L, -2, "job_methods");
}
