/* Views: what the functions of a policy get of a job or a clock, fixed when it
 * is made. A view costs one block, where a table costs two and a search for
 * each field, and a decision is given one for each run of each job; what is
 * kept for engine:decisions and for replays is the view itself. It becomes a
 * plain table in the isolated state (guard.c), or in the host's (thaw).
 *
 * A shape has the names: copies of them, since Lua finds a string faster that
 * was made from the same place before. A view has the values, its texts behind
 * them, and in its user values the shape and the views within it. */
#include "binding.h"

#include <string.h>

enum {
  NAMES_MAX = 64,
  NESTING_MAX = 8, /* levels of views within each other */
  ROOM = 160,      /* bytes of text that a job mostly has */
  TEXT_MAX = 1 << 30,
  VALUE_SHAPE = 1 /* user value of a view; the views within it follow */
};

struct entry {
  const char *name;                    /* in the same block */
  const struct cairn_property_info *p; /* of a job, or NULL */
  int given;                           /* its argument, or 0 */
};

struct shape {
  size_t count;
  int given; /* arguments that have values */
  struct entry entries[];
};

enum kind { ABSENT, BOOLEAN, INTEGER, REAL, TEXT, NESTED };

union field {
  int boolean;
  int nested; /* user value */
  int64_t integer;
  double real;
  struct {
    uint32_t at, length;
  } text;
};

struct cairn__lua_view {
  size_t count, size;   /* fields; bytes of text */
  size_t present;       /* fields that have a value */
  size_t values, bytes; /* of all: with names, and what is within */
  int depth;            /* 1: there are none */
  uint8_t kinds[NAMES_MAX];
  union field fields[]; /* and the text */
};

static const char metatable_key = 'v';

static char *text_of(const struct cairn__lua_view *v)
{
  return (char *)&v->fields[v->count];
}

/* ---- reading: nothing is raised in `from` ------------------------------- */

const struct cairn__lua_view *cairn__lua_test_view(lua_State *from, int index)
{
  if (lua_type(from, index) != LUA_TUSERDATA || !lua_getmetatable(from, index))
    return NULL;
  lua_rawgetp(from, LUA_REGISTRYINDEX, &metatable_key);
  int is_view = lua_rawequal(from, -1, -2);
  lua_pop(from, 2);
  return is_view ? lua_touserdata(from, index) : NULL;
}

size_t cairn__lua_view_values(const struct cairn__lua_view *v)
{
  return v->values;
}

size_t cairn__lua_view_bytes(const struct cairn__lua_view *v)
{
  return v->bytes;
}

int cairn__lua_view_depth(const struct cairn__lua_view *v)
{
  return v->depth;
}

void cairn__lua_thaw(lua_State *from, int index, lua_State *to)
{
  const struct cairn__lua_view *v = lua_touserdata(from, index);
  lua_getiuservalue(from, index, VALUE_SHAPE);
  const struct shape *shape = lua_touserdata(from, -1);
  lua_pop(from, 1); /* the view keeps it */
  lua_createtable(to, 0, (int)v->present);
  int table = lua_gettop(to);
  for (size_t i = 0; i < v->count; i++) {
    const union field *f = &v->fields[i];
    if (v->kinds[i] == ABSENT)
      continue;
    lua_pushstring(to, shape->entries[i].name);
    switch (v->kinds[i]) {
    case BOOLEAN:
      lua_pushboolean(to, f->boolean);
      break;
    case INTEGER:
      lua_pushinteger(to, f->integer);
      break;
    case REAL:
      lua_pushnumber(to, f->real);
      break;
    case TEXT:
      lua_pushlstring(to, text_of(v) + f->text.at, f->text.length);
      break;
    default:
      lua_getiuservalue(from, index, f->nested);
      cairn__lua_thaw(from, lua_gettop(from), to);
      lua_remove(from, from == to ? -2 : -1); /* the view */
      break;
    }
    lua_rawset(to, table);
  }
}

/* Each level has its view on one stack, and a table and a key on the other,
 * with a value or a shape for a moment. */
int cairn__lua_view_stack(const struct cairn__lua_view *v)
{
  return 3 * v->depth + 2;
}

/* ---- making ------------------------------------------------------------- */

/* Appends a text as field i; 0, or -1 when there is no room. */
static int put_text(struct cairn__lua_view *v, size_t room, size_t i,
                    const char *text, size_t length)
{
  if (length > room - v->size)
    return -1;
  memcpy(text_of(v) + v->size, text, length);
  v->kinds[i] = TEXT;
  v->fields[i].text.at = (uint32_t)v->size;
  v->fields[i].text.length = (uint32_t)length;
  v->size += length;
  return 0;
}

/* As job[name] gives it. */
static int put_property(struct cairn__lua_view *v, size_t room, size_t i,
                        const struct cairn_property_info *p,
                        const struct cairn_value *value)
{
  union field *f = &v->fields[i];
  const char *label;
  switch (value->kind) {
  case CAIRN_VALUE_BOOLEAN:
    v->kinds[i] = BOOLEAN;
    f->boolean = value->as.boolean;
    return 0;
  case CAIRN_VALUE_INTEGER:
    label = p->values == NULL ? NULL : cairn_value_label(p, value->as.integer);
    if (label != NULL)
      return put_text(v, room, i, label, strlen(label));
    v->kinds[i] = INTEGER;
    f->integer = value->as.integer;
    return 0;
  case CAIRN_VALUE_REAL:
    v->kinds[i] = REAL;
    f->real = value->as.real;
    return 0;
  case CAIRN_VALUE_STRING:
    return put_text(v, room, i, value->as.string, strlen(value->as.string));
  default:
    return 0;
  }
}

/* The argument at `index`, not nil; *nested counts the user values in use. */
static int put_given(lua_State *L, int index, int view, int *nested,
                     struct cairn__lua_view *v, size_t room, size_t i)
{
  union field *f = &v->fields[i];
  size_t length;
  const char *text;
  switch (lua_type(L, index)) {
  case LUA_TBOOLEAN:
    v->kinds[i] = BOOLEAN;
    f->boolean = lua_toboolean(L, index);
    return 0;
  case LUA_TNUMBER:
    if (lua_isinteger(L, index)) {
      v->kinds[i] = INTEGER;
      f->integer = lua_tointeger(L, index);
    } else {
      v->kinds[i] = REAL;
      f->real = lua_tonumber(L, index);
    }
    return 0;
  case LUA_TSTRING:
    text = lua_tolstring(L, index, &length);
    return put_text(v, room, i, text, length);
  default:
    v->kinds[i] = NESTED;
    f->nested = VALUE_SHAPE + ++*nested;
    lua_pushvalue(L, index);
    lua_setiuservalue(L, view, f->nested);
    return 0;
  }
}

/* Fills the view on top, which has room for so many bytes of text; 0, or -1
 * when that is not enough. Nothing in here allocates in Lua: it borrows from
 * the engine. */
static int fill(lua_State *L, const struct shape *shape,
                struct cairn__lua_view *v, size_t room)
{
  int view = lua_gettop(L), nested = 0;
  cairn_engine *engine = NULL;
  struct cairn__lua_job *job = NULL;
  if (!lua_isnil(L, 1))
    job = cairn__lua_check_job(L, 1, &engine);
  for (size_t i = 0; i < shape->count; i++) {
    const struct entry *e = &shape->entries[i];
    struct cairn_value value;
    struct cairn_error err;
    v->kinds[i] = ABSENT;
    if (e->given != 0 && !lua_isnil(L, e->given)) {
      if (lua_type(L, e->given) == LUA_TLIGHTUSERDATA)
        continue; /* left out */
      if (put_given(L, e->given, view, &nested, v, room, i) != 0)
        return -1;
    } else if (e->p != NULL && job != NULL) {
      if (cairn_job_get(engine, job->serial, e->p->id, &value, &err) != 0)
        return luaL_error(
            L, err.id == CAIRN_E_NOT_FOUND ? "job %s is gone" : "%s: %s",
            job->instance_id, err.message);
      if (put_property(v, room, i, e->p, &value) != 0)
        return -1;
    }
  }
  return 0;
}

/* upvalue 1: the shape. What views() gives. */
static int make(lua_State *L)
{
  const struct shape *shape = lua_touserdata(L, lua_upvalueindex(1));
  struct cairn__lua_view *v;
  size_t room = 0, values = 0, bytes = 0; /* the last two: of views within */
  int nested = 0, depth = 1;
  luaL_argcheck(L, lua_gettop(L) <= shape->given + 1, shape->given + 2,
                "more values than names");
  luaL_checkstack(L, shape->given + 8, NULL);
  lua_settop(L, shape->given + 1);
  for (int i = 2; i <= shape->given + 1; i++) {
    const struct cairn__lua_view *inner;
    switch (lua_type(L, i)) {
    case LUA_TSTRING:
      room += (size_t)lua_rawlen(L, i);
      break;
    case LUA_TNIL:
    case LUA_TBOOLEAN:
    case LUA_TNUMBER:
      break;
    case LUA_TLIGHTUSERDATA:
      if (lua_touserdata(L, i) == NULL)
        break;
      return luaL_typeerror(L, i, "string, number, boolean, view, null or nil");
    default:
      inner = cairn__lua_test_view(L, i);
      if (inner == NULL)
        return luaL_typeerror(L, i,
                              "string, number, boolean, view, null or nil");
      luaL_argcheck(L, inner->depth < NESTING_MAX, i, "too many views within");
      if (inner->depth >= depth)
        depth = inner->depth + 1;
      values += inner->values;
      bytes += inner->bytes;
      nested++;
    }
  }
  luaL_argcheck(L, room <= TEXT_MAX, 2, "too much text");
  for (size_t more = lua_isnil(L, 1) ? 0 : ROOM;; more *= 2) {
    size_t size = sizeof *v + shape->count * sizeof v->fields[0];
    luaL_argcheck(L, more <= TEXT_MAX, 1, "too much text");
    v = lua_newuserdatauv(L, size + room + more, VALUE_SHAPE + nested);
    v->count = shape->count;
    v->present = v->size = 0;
    v->depth = depth;
    if (fill(L, shape, v, room + more) == 0)
      break;
    lua_pop(L, 1);
  }
  v->bytes = v->size + bytes;
  for (size_t i = 0; i < v->count; i++) {
    if (v->kinds[i] == ABSENT)
      continue;
    v->present++;
    v->bytes += strlen(shape->entries[i].name);
  }
  v->values = v->present + values;
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_setiuservalue(L, -2, VALUE_SHAPE);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &metatable_key);
  lua_setmetatable(L, -2);
  return 1;
}

/* Copies a list of names behind the entries of the shape. */
static void add_names(lua_State *L, int list, struct shape *shape, char **text,
                      int are_given)
{
  lua_Unsigned count = lua_rawlen(L, list);
  for (lua_Unsigned i = 1; i <= count; i++) {
    size_t at = shape->count, length;
    lua_rawgeti(L, list, (lua_Integer)i);
    const char *name = lua_tolstring(L, -1, &length);
    if (are_given)
      for (at = 0; at < shape->count; at++)
        if (strcmp(shape->entries[at].name, name) == 0)
          break;
    struct entry *e = &shape->entries[at];
    if (at < shape->count && e->given != 0) {
      lua_pop(L, 1); /* twice: the caller sees it by the count */
      continue;
    }
    if (at == shape->count) {
      shape->count++;
      *e = (struct entry){.name = *text};
      memcpy(*text, name, length + 1);
      *text += length + 1;
    }
    if (are_given)
      e->given = ++shape->given + 1;
    else
      e->p = cairn_property_find(name);
    lua_pop(L, 1);
  }
}

/* views(properties, names) -> function(job | nil, ...) -> a view of these
 * properties as job[name] gives them, none of them an array or a datetime, and
 * of the values that follow, in the order of these names: strings, numbers,
 * booleans and views. One that is nil is left out or, when a property has its
 * name, as the job has it; null leaves it out whatever the job has. */
static int core_views(lua_State *L)
{
  size_t count = 0, bytes = 0;
  lua_settop(L, 2);
  for (int list = 1; list <= 2; list++) {
    luaL_checktype(L, list, LUA_TTABLE);
    lua_Unsigned n = lua_rawlen(L, list);
    for (lua_Unsigned i = 1; i <= n; i++) {
      luaL_argcheck(L, lua_rawgeti(L, list, (lua_Integer)i) == LUA_TSTRING,
                    list, "names expected");
      bytes += (size_t)lua_rawlen(L, -1) + 1;
      if (list == 1) {
        const struct cairn_property_info *p =
            cairn_property_find(lua_tostring(L, -1));
        luaL_argcheck(
            L, p != NULL && !p->is_array && p->type != CAIRN_TYPE_DATETIME, 1,
            "properties expected, no arrays or datetimes");
      }
      lua_pop(L, 1);
    }
    count += (size_t)n;
  }
  luaL_argcheck(L, count <= NAMES_MAX, 2, "too many names");
  struct shape *shape = lua_newuserdatauv(
      L, sizeof *shape + count * sizeof shape->entries[0] + bytes, 0);
  char *text = (char *)&shape->entries[count];
  shape->count = 0;
  shape->given = 0;
  add_names(L, 1, shape, &text, 0);
  add_names(L, 2, shape, &text, 1);
  luaL_argcheck(L, shape->given == (int)lua_rawlen(L, 2), 2,
                "each name once expected");
  lua_pushcclosure(L, make, 1);
  return 1;
}

/* thaw(value) -> a view as a table; any other value as it is */
static int core_thaw(lua_State *L)
{
  lua_settop(L, 1);
  const struct cairn__lua_view *v = cairn__lua_test_view(L, 1);
  if (v != NULL) {
    luaL_checkstack(L, cairn__lua_view_stack(v), NULL);
    cairn__lua_thaw(L, 1, L);
  }
  return 1;
}

static const luaL_Reg functions[] = {
    {"views", core_views}, {"thaw", core_thaw}, {NULL, NULL}};

void cairn__lua_open_view(lua_State *L)
{
  lua_newtable(L);
  lua_pushliteral(L, "cairn.view");
  lua_setfield(L, -2, "__name");
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &metatable_key);
  cairn__lua_register(L, functions);
}
