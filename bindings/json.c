/* Lua values <-> JSON.
 *
 * Encoding refuses what has no JSON form (functions, cycles, tables that are
 * neither arrays nor objects, NaN, bytes that are not UTF-8) and names the
 * place by its keys ("export.collection.machines[2].disks"). Object keys are
 * sorted, so that the same table always gives the same text and the same
 * first error. It reads tables raw: a table whose metatable could answer for
 * it is refused, never half read.
 *
 * What comes of it is text or, for what goes into the engine, jansson's values:
 * each of them hangs on the one around it as soon as it is made, and the first
 * in a box, so that none is lost when Lua raises. */
#include "binding.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "error.h"
#include "json.h"

enum {
  DEPTH_MAX = 32,
  SORTED_MAX = 64,
  REAL_SIZE = 24 /* bytes of text at most */
};

/* A growing text in a userdata at a fixed stack slot. */
struct text {
  lua_State *L;
  int slot;
  char *p;
  size_t length, capacity;
};

static void text_add(struct text *t, const char *s, size_t n)
{
  if (n > t->capacity - t->length) {
    size_t want = t->capacity + t->capacity / 2;
    if (want < t->length + n)
      want = t->length + n + 64;
    char *p = lua_newuserdatauv(t->L, want, 0);
    memcpy(p, t->p, t->length);
    lua_replace(t->L, t->slot);
    t->p = p;
    t->capacity = want;
  }
  memcpy(t->p + t->length, s, n);
  t->length += n;
}

static void text_char(struct text *t, char c)
{
  text_add(t, &c, 1);
}

struct step {
  const char *key; /* NULL: an index */
  lua_Integer index;
};

struct encoder {
  lua_State *L;
  struct text text;
  int is_tree;                   /* not text, but values */
  json_t **root;                 /* then: where the first one goes */
  json_t *around[DEPTH_MAX + 1]; /* the values that have this one */
  size_t length;                 /* then: bytes that the text would have */
  struct cairn_error *err;
  int depth;
  struct step path[DEPTH_MAX + 1];
  const void *tables[DEPTH_MAX + 1];
};

static int refuse(struct encoder *e, int id, const char *what)
{
  char where[512];
  size_t used = 0;
  where[0] = '\0';
  for (int i = 0; i < e->depth && used < sizeof where - 1; i++) {
    char printable[96];
    int n =
        e->path[i].key != NULL
            ? snprintf(
                  where + used, sizeof where - used, "%s%s", i > 0 ? "." : "",
                  cairn__printable(e->path[i].key, printable, sizeof printable))
            : snprintf(where + used, sizeof where - used, "[%lld]",
                       (long long)e->path[i].index);
    if (n > 0)
      used += (size_t)n;
  }
  return cairn__fail(e->err, id, "%s%s%s", where, *where != '\0' ? ": " : "",
                     what);
}

/* Length of the UTF-8 sequence at s, 0 when there is none. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
  unsigned c = s[0];
  size_t length = c < 0x80   ? 1
                  : c < 0xc2 ? 0
                  : c < 0xe0 ? 2
                  : c < 0xf0 ? 3
                  : c < 0xf5 ? 4
                             : 0;
  if (length == 0 || length > n)
    return 0;
  for (size_t i = 1; i < length; i++)
    if ((s[i] & 0xc0) != 0x80)
      return 0;
  if ((c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] > 0x9f) ||
      (c == 0xf0 && s[1] < 0x90) || (c == 0xf4 && s[1] > 0x8f))
    return 0;
  return length;
}

/* ASCII that stands for itself in a JSON string. */
static int is_plain(unsigned char c)
{
  return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

static const char not_utf8[] =
    "the string is not UTF-8, which is what names and paths must be";
static const char has_nul[] = "the string has a NUL byte in it";

/* Takes the value over. */
static int attach(struct encoder *e, json_t *value)
{
  if (value == NULL)
    return cairn__fail_memory(e->err);
  if (e->depth == 0) {
    *e->root = value;
    return 0;
  }
  json_t *around = e->around[e->depth - 1];
  const char *key = e->path[e->depth - 1].key;
  int rc = key != NULL ? json_object_set_new_nocheck(around, key, value)
                       : json_array_append_new(around, value);
  return rc == 0 ? 0 : cairn__fail_memory(e->err);
}

static int check_string(struct encoder *e, const char *s, size_t n)
{
  for (size_t i = 0; i < n;) {
    size_t length = utf8_length((const unsigned char *)s + i, n - i);
    if (length == 0)
      return refuse(e, CAIRN_E_INVALID_ARGUMENT, not_utf8);
    if (s[i] == '\0')
      return refuse(e, CAIRN_E_INVALID_ARGUMENT, has_nul);
    if (s[i] == '"' || s[i] == '\\')
      e->length++;
    else if ((unsigned char)s[i] < 0x20)
      e->length += 5; /* \u0001 */
    i += length;
  }
  e->length += n + 2;
  return 0;
}

/* A string as text. */
static int encode_text(struct encoder *e, const char *s, size_t n)
{
  struct text *t = &e->text;
  text_char(t, '"');
  for (size_t i = 0; i < n;) {
    size_t plain = 0;
    while (i + plain < n && is_plain((unsigned char)s[i + plain]))
      plain++;
    if (plain > 0) {
      text_add(t, s + i, plain);
      i += plain;
      continue;
    }
    unsigned char c = (unsigned char)s[i];
    char buffer[8];
    size_t length = utf8_length((const unsigned char *)s + i, n - i);
    if (length == 0)
      return refuse(e, CAIRN_E_INVALID_ARGUMENT, not_utf8);
    if (c == '\0')
      return refuse(e, CAIRN_E_INVALID_ARGUMENT, has_nul);
    if (c == '"' || c == '\\') {
      buffer[0] = '\\';
      buffer[1] = (char)c;
      text_add(t, buffer, 2);
    } else if (c < 0x20) {
      snprintf(buffer, sizeof buffer, "\\u%04x", c);
      text_add(t, buffer, 6);
    } else {
      text_add(t, s + i, length);
    }
    i += length;
  }
  text_char(t, '"');
  return 0;
}

static int encode_string(struct encoder *e, const char *s, size_t n)
{
  if (!e->is_tree)
    return encode_text(e, s, n);
  return check_string(e, s, n) == 0 ? attach(e, json_stringn_nocheck(s, n))
                                    : -1;
}

static int encode_integer(struct encoder *e, lua_Integer i)
{
  char buffer[40];
  int n = snprintf(buffer, sizeof buffer, "%lld", (long long)i);
  if (e->is_tree) {
    e->length += (size_t)n;
    return attach(e, json_integer(i));
  }
  text_add(&e->text, buffer, (size_t)n);
  return 0;
}

static int encode_number(struct encoder *e, int index)
{
  char buffer[40];
  int n = 0;
  lua_Integer i;
  if (lua_isinteger(e->L, index))
    return encode_integer(e, lua_tointeger(e->L, index));
  lua_Number x = lua_tonumber(e->L, index);
  if (isnan(x) || isinf(x))
    return refuse(e, CAIRN_E_INVALID_ARGUMENT,
                  "not a finite number (NaN or infinity)");
  if (lua_numbertointeger(x, &i) && (lua_Number)i == x)
    return encode_integer(e, i);
  if (e->is_tree) {
    e->length += REAL_SIZE;
    return attach(e, json_real(x));
  }
  for (int digits = 15; digits <= 17; digits++) { /* the shortest exact */
    n = snprintf(buffer, sizeof buffer, "%.*g", digits, x);
    if (strtod(buffer, NULL) == x)
      break;
  }
  text_add(&e->text, buffer, (size_t)n);
  return 0;
}

/* An empty table says nothing about what it is: an empty list that came from
 * JSON is marked; else by its key it is one of the lists of a specification,
 * or an object. */
#define LIST "cairn.list"

static int is_marked_list(lua_State *L, int index)
{
  if (!lua_getmetatable(L, index))
    return 0;
  luaL_getmetatable(L, LIST);
  int is_same = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return is_same;
}

static int is_list_key(const char *key)
{
  static const char *const lists[] = {
      "machines",           "disks",   "config",  "runtime", "guest_state",
      "source_directories", "choices", "warnings"};
  for (size_t i = 0; key != NULL && i < sizeof lists / sizeof *lists; i++)
    if (strcmp(key, lists[i]) == 0)
      return 1;
  return 0;
}

static int encode(struct encoder *e, int index);

static int encode_array(struct encoder *e, int index, lua_Integer count)
{
  lua_State *L = e->L;
  if (!e->is_tree)
    text_char(&e->text, '[');
  for (lua_Integer i = 1; i <= count; i++) {
    if (i > 1 && !e->is_tree)
      text_char(&e->text, ',');
    e->path[e->depth - 1] = (struct step){NULL, i};
    lua_rawgeti(L, index, i);
    if (encode(e, lua_gettop(L)) != 0)
      return -1;
    lua_pop(L, 1);
  }
  if (!e->is_tree)
    text_char(&e->text, ']');
  return 0;
}

static int encode_object(struct encoder *e, int index, lua_Integer count)
{
  lua_State *L = e->L;
  int base = lua_gettop(L);
  luaL_checkstack(L, (int)count + 8, "table too large");
  lua_pushnil(L);
  while (lua_next(L, index) != 0) {
    lua_pop(L, 1);
    lua_pushvalue(L, -1); /* one copy stays, the other drives lua_next */
  }
  int found = lua_gettop(L) - base;
  int order[SORTED_MAX];
  int is_sorted = found <= SORTED_MAX;
  for (int i = 0; is_sorted && i < found; i++) {
    const char *key = lua_tostring(L, base + 1 + i);
    int at = i;
    while (at > 0 && strcmp(lua_tostring(L, order[at - 1]), key) > 0) {
      order[at] = order[at - 1];
      at--;
    }
    order[at] = base + 1 + i;
  }
  if (!e->is_tree)
    text_char(&e->text, '{');
  for (int i = 0; i < found; i++) {
    int slot = is_sorted ? order[i] : base + 1 + i;
    size_t length;
    const char *key = lua_tolstring(L, slot, &length);
    if (i > 0 && !e->is_tree)
      text_char(&e->text, ',');
    e->path[e->depth - 1] = (struct step){key, 0};
    if (e->is_tree ? check_string(e, key, length) != 0
                   : encode_text(e, key, length) != 0)
      return -1;
    if (!e->is_tree)
      text_char(&e->text, ':');
    lua_pushvalue(L, slot);
    lua_rawget(L, index);
    if (encode(e, lua_gettop(L)) != 0)
      return -1;
    lua_pop(L, 1);
  }
  if (!e->is_tree)
    text_char(&e->text, '}');
  lua_settop(L, base);
  return 0;
}

static int encode_table(struct encoder *e, int index)
{
  lua_State *L = e->L;
  const void *identity = lua_topointer(L, index);
  lua_Integer strings = 0, integers = 0, highest = 0;
  for (int i = 0; i < e->depth; i++)
    if (e->tables[i] == identity)
      return refuse(e, CAIRN_E_INVALID_ARGUMENT, "the table contains itself");
  if (e->depth >= DEPTH_MAX)
    return refuse(e, CAIRN_E_INVALID_ARGUMENT,
                  "tables are nested more than 32 deep");
  if (luaL_getmetafield(L, index, "__index") != LUA_TNIL ||
      luaL_getmetafield(L, index, "__pairs") != LUA_TNIL)
    return refuse(e, CAIRN_E_WRONG_TYPE,
                  "a plain table is expected; this one has a metatable with "
                  "__index or __pairs");
  lua_pushnil(L);
  while (lua_next(L, index) != 0) {
    lua_pop(L, 1);
    if (lua_type(L, -1) == LUA_TSTRING) {
      strings++;
    } else if (lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1) {
      integers++;
      if (lua_tointeger(L, -1) > highest)
        highest = lua_tointeger(L, -1);
    } else {
      int type = lua_type(L, -1);
      char what[96];
      lua_pop(L, 1);
      snprintf(what, sizeof what,
               "keys must be names, or 1 to n; this table has a %s as a key",
               lua_typename(L, type));
      return refuse(e, CAIRN_E_WRONG_TYPE, what);
    }
  }
  if (strings > 0 && integers > 0)
    return refuse(e, CAIRN_E_WRONG_TYPE,
                  "the table has both names and numbers as keys; it must be "
                  "a list or a record");
  if (integers != highest)
    return refuse(e, CAIRN_E_WRONG_TYPE, "the list has a hole (a nil) in it");
  if (strings > 100000)
    return refuse(e, CAIRN_E_INVALID_ARGUMENT, "the table has too many keys");
  luaL_checkstack(L, 8, "tables nested too deep");
  const char *key = e->depth > 0 ? e->path[e->depth - 1].key : NULL;
  int is_list =
      integers > 0 ||
      (strings == 0 && (is_list_key(key) || is_marked_list(L, index)));
  if (e->is_tree) {
    json_t *value = is_list ? json_array() : json_object();
    e->length += 2 + (size_t)integers + 2 * (size_t)strings; /* [,,] {:,:,} */
    e->around[e->depth] = value;
    if (attach(e, value) != 0)
      return -1;
  }
  e->tables[e->depth++] = identity;
  int rc = is_list ? encode_array(e, index, integers)
                   : encode_object(e, index, strings);
  if (rc == 0)
    e->depth--;
  return rc;
}

static int encode_constant(struct encoder *e, const char *text,
                           json_t *(*make)(void))
{
  if (e->is_tree) {
    e->length += strlen(text);
    return attach(e, make());
  }
  text_add(&e->text, text, strlen(text));
  return 0;
}

static int encode(struct encoder *e, int index)
{
  lua_State *L = e->L;
  const struct cairn_datetime *datetime;
  size_t length;
  const char *s;
  char what[96];
  switch (lua_type(L, index)) {
  case LUA_TNIL:
    return encode_constant(e, "null", json_null);
  case LUA_TBOOLEAN:
    return lua_toboolean(L, index) ? encode_constant(e, "true", json_true)
                                   : encode_constant(e, "false", json_false);
  case LUA_TNUMBER:
    return encode_number(e, index);
  case LUA_TSTRING:
    s = lua_tolstring(L, index, &length);
    return encode_string(e, s, length);
  case LUA_TTABLE:
    return encode_table(e, index);
  case LUA_TLIGHTUSERDATA:
    if (lua_touserdata(L, index) == NULL)
      return encode_constant(e, "null", json_null);
    break;
  case LUA_TUSERDATA:
    datetime = cairn__lua_test_datetime(L, index);
    if (datetime != NULL) {
      char buffer[CAIRN_DATETIME_SIZE];
      cairn_datetime_format(datetime, buffer);
      return encode_string(e, buffer, strlen(buffer));
    }
    break;
  default:
    break;
  }
  snprintf(what, sizeof what, "a %s cannot stand here; only plain data can",
           luaL_typename(L, index));
  return refuse(e, CAIRN_E_WRONG_TYPE, what);
}

int cairn__lua_encode(lua_State *L, int index, const char **text,
                      size_t *length, struct cairn_error *err)
{
  struct encoder e;
  index = lua_absindex(L, index);
  luaL_checkstack(L, 16, NULL);
  e.L = L;
  e.is_tree = 0;
  e.err = err;
  e.depth = 0;
  e.text = (struct text){.L = L, .length = 0, .capacity = 512};
  e.text.p = lua_newuserdatauv(L, e.text.capacity, 0);
  e.text.slot = lua_gettop(L);
  if (encode(&e, index) != 0) {
    lua_settop(L, e.text.slot - 1);
    return -1;
  }
  text_char(&e.text, '\0');
  *text = e.text.p;
  *length = e.text.length - 1;
  lua_settop(L, e.text.slot);
  return 0;
}

static void free_tree(void *tree)
{
  json_decref(tree);
}

int cairn__lua_to_json(lua_State *L, int index, json_t **value, size_t *length,
                       struct cairn_error *err)
{
  struct encoder e;
  index = lua_absindex(L, index);
  luaL_checkstack(L, 16, NULL);
  e.L = L;
  e.err = err;
  e.depth = 0;
  e.length = 0;
  e.is_tree = 1;
  e.root = (json_t **)cairn__lua_box(L, free_tree);
  int box = lua_gettop(L);
  if (encode(&e, index) != 0) {
    lua_settop(L, box);
    cairn__lua_unbox(L, box);
    lua_pop(L, 1);
    return -1;
  }
  *value = *e.root;
  *length = e.length;
  lua_settop(L, box);
  return 0;
}

/* ---- JSON to Lua
 * ---------------------------------------------------------------- */

/* null is nil in an object and at the top, the null of the module in an
 * array, where nil would make a hole. */
static void push_tree(lua_State *L, const json_t *tree, int is_element)
{
  size_t i;
  const char *key;
  json_t *child;
  luaL_checkstack(L, 4, "JSON nested too deep");
  switch (json_typeof(tree)) {
  case JSON_OBJECT:
    lua_createtable(L, 0, (int)json_object_size(tree));
    json_object_foreach((json_t *)tree, key, child)
    {
      lua_pushstring(L, key);
      push_tree(L, child, 0);
      lua_rawset(L, -3);
    }
    break;
  case JSON_ARRAY:
    lua_createtable(L, (int)json_array_size(tree), 0);
    if (json_array_size(tree) == 0)
      luaL_setmetatable(L, LIST);
    json_array_foreach(tree, i, child)
    {
      push_tree(L, child, 1);
      lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    break;
  case JSON_STRING:
    lua_pushlstring(L, json_string_value(tree), json_string_length(tree));
    break;
  case JSON_INTEGER:
    lua_pushinteger(L, json_integer_value(tree));
    break;
  case JSON_REAL:
    lua_pushnumber(L, json_real_value(tree));
    break;
  case JSON_TRUE:
    lua_pushboolean(L, 1);
    break;
  case JSON_FALSE:
    lua_pushboolean(L, 0);
    break;
  case JSON_NULL:
    if (is_element)
      lua_pushlightuserdata(L, NULL);
    else
      lua_pushnil(L);
    break;
  }
}

static int decode(lua_State *L, const char *text, size_t length,
                  json_error_t *error)
{
  void **tree = cairn__lua_box(L, free_tree);
  int box = lua_gettop(L);
  *tree = cairn__json_load(text, length,
                           JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, error);
  if (*tree == NULL) {
    lua_pop(L, 1);
    return -1;
  }
  push_tree(L, *tree, 0);
  cairn__lua_unbox(L, box);
  lua_remove(L, box);
  return 0;
}

void cairn__lua_decode(lua_State *L, const char *text, size_t length)
{
  json_error_t error;
  if (decode(L, text, length, &error) != 0)
    luaL_error(L, "cannot read the engine's JSON: %s", error.text);
}

/* ---- functions
 * -------------------------------------------------------------------- */

/* json_encode(value) -> text | nil, message, code */
static int json_encode(lua_State *L)
{
  struct cairn_error err = {0};
  const char *text;
  size_t length;
  luaL_checkany(L, 1);
  if (cairn__lua_encode(L, 1, &text, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  lua_pushlstring(L, text, length);
  return 1;
}

/* json_decode(text) -> value | nil, message, code */
static int json_decode(lua_State *L)
{
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  json_error_t error;
  if (decode(L, text, length, &error) != 0) {
    struct cairn_error err = {0};
    cairn__fail(&err, CAIRN_E_INVALID_ARGUMENT,
                "not JSON, line %d column %d: %s", error.line, error.column,
                error.text);
    return cairn__lua_fail(L, &err);
  }
  return 1;
}

static const luaL_Reg functions[] = {
    {"json_encode", json_encode}, {"json_decode", json_decode}, {NULL, NULL}};

void cairn__lua_open_json(lua_State *L)
{
  luaL_newmetatable(L, LIST);
  lua_pop(L, 1);
  cairn__lua_register(L, functions);
}
