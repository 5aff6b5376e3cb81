/* cairn.core: the C half of the module. It offers what needs C (engines, jobs,
 * datetimes, JSON, the guard over task coroutines) as plain functions and two
 * method tables; the Lua half (cairn.lua and cairn/) adds everything that
 * waits or decides. C never calls Lua back. */
#include "binding.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <uuid/uuid.h>
#include <xxhash.h>

#include "error.h"
#include "memory.h"
#include "policy_settings.h"

/* ---- results
 * ----------------------------------------------------------------- */

const char *cairn__lua_code(int id)
{
  const struct cairn_error_info *info = cairn_error_info(id);
  return info != NULL ? info->code : "internal";
}

int cairn__lua_fail(lua_State *L, const struct cairn_error *err)
{
  lua_pushnil(L);
  lua_pushstring(L, err->message);
  lua_pushstring(L, cairn__lua_code(err->id));
  return 3;
}

/* ---- boxes
 * ------------------------------------------------------------------- */

#define BOX "cairn.box"

struct box {
  void *p;
  void (*free_fn)(void *);
};

/* fingerprint(text) -> 16 hexadecimal digits: XXH3 of the bytes. */
static int core_fingerprint(lua_State *L)
{
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  char digits[17];
  snprintf(digits, sizeof digits, "%016" PRIx64, XXH3_64bits(text, length));
  lua_pushstring(L, digits);
  return 1;
}

static int box_gc(lua_State *L)
{
  struct box *box = luaL_checkudata(L, 1, BOX);
  void *p = box->p;
  box->p = NULL;
  if (p != NULL)
    box->free_fn(p);
  return 0;
}

void **cairn__lua_box(lua_State *L, void (*free_fn)(void *))
{
  struct box *box = lua_newuserdatauv(L, sizeof *box, 0);
  box->p = NULL;
  box->free_fn = free_fn;
  luaL_setmetatable(L, BOX);
  return &box->p;
}

void cairn__lua_unbox(lua_State *L, int index)
{
  struct box *box = lua_touserdata(L, index);
  void *p = box->p;
  box->p = NULL;
  if (p != NULL)
    box->free_fn(p);
}

void cairn__lua_register(lua_State *L, const luaL_Reg *functions)
{
  for (const luaL_Reg *f = functions; f->name != NULL; f++) {
    if (lua_getfield(L, -1, f->name) != LUA_TNIL)
      luaL_error(L, "cairn.core.%s is registered twice", f->name);
    lua_pop(L, 1);
  }
  luaL_setfuncs(L, functions, 0);
}

/* ---- tables of the engine, as Lua tables
 * --------------------------------------- */

static void set_string(lua_State *L, const char *key, const char *value)
{
  if (value == NULL)
    return;
  lua_pushstring(L, value);
  lua_setfield(L, -2, key);
}

static void set_integer(lua_State *L, const char *key, lua_Integer value)
{
  lua_pushinteger(L, value);
  lua_setfield(L, -2, key);
}

static void set_boolean(lua_State *L, const char *key, int value)
{
  lua_pushboolean(L, value);
  lua_setfield(L, -2, key);
}

/* errors() -> array of rows */
static int core_errors(lua_State *L)
{
  const struct cairn_error_info *info;
  lua_newtable(L);
  for (size_t i = 0; (info = cairn_error_info_at(i)) != NULL; i++) {
    lua_createtable(L, 0, 9);
    set_string(L, "code", info->code);
    set_integer(L, "ErrorCode", info->id);
    set_string(L, "MessageID", info->message_id);
    set_integer(L, "ErrorType", info->error_type);
    set_integer(L, "ProbableCause", info->probable_cause);
    set_integer(L, "CIMStatusCode", info->cim_status_code);
    set_integer(L, "exit_code", info->exit_code);
    set_string(L, "summary", info->summary);
    set_string(L, "recommended_action", info->recommended_action);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static void push_labels(lua_State *L, const struct cairn_value_label *values,
                        size_t count)
{
  lua_createtable(L, (int)count, 0);
  for (size_t i = 0; i < count; i++) {
    lua_createtable(L, 0, 2);
    set_integer(L, "value", values[i].value);
    set_string(L, "label", values[i].label);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

static const char *const type_names[] = {
    [CAIRN_TYPE_STRING] = "string",   [CAIRN_TYPE_DATETIME] = "datetime",
    [CAIRN_TYPE_BOOLEAN] = "boolean", [CAIRN_TYPE_UINT8] = "uint8",
    [CAIRN_TYPE_SINT8] = "sint8",     [CAIRN_TYPE_UINT16] = "uint16",
    [CAIRN_TYPE_UINT32] = "uint32",   [CAIRN_TYPE_UINT64] = "uint64",
    [CAIRN_TYPE_REAL64] = "real64"};

/* properties() -> array of rows in declaration order */
static int core_properties(lua_State *L)
{
  const struct cairn_property_info *p;
  lua_newtable(L);
  for (size_t i = 0; (p = cairn_property_at(i)) != NULL; i++) {
    lua_createtable(L, 0, 16);
    set_string(L, "name", p->name);
    set_integer(L, "id", p->id);
    set_string(L, "type", type_names[p->type]);
    set_boolean(L, "is_array", p->is_array);
    set_boolean(L, "is_writable", p->is_writable);
    set_boolean(L, "is_key", p->is_key);
    set_boolean(L, "is_required", p->is_required);
    set_boolean(L, "is_deprecated", p->is_deprecated);
    set_boolean(L, "is_addition", p->is_addition);
    set_boolean(L, "is_interval", p->is_interval);
    set_string(L, "default", p->default_text);
    set_string(L, "origin", p->origin);
    set_string(L, "description", p->description);
    if (p->has_range) {
      set_integer(L, "min", p->min);
      set_integer(L, "max", p->max);
    }
    if (p->max_length > 0)
      set_integer(L, "max_length", p->max_length);
    if (p->values != NULL) {
      push_labels(L, p->values, p->value_count);
      lua_setfield(L, -2, "values");
    }
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* value_map(name) -> array of { value, label } | nil */
static int core_value_map(lua_State *L)
{
  size_t count;
  const struct cairn_value_label *values =
      cairn_value_map(luaL_checkstring(L, 1), &count);
  if (values == NULL)
    return 0;
  push_labels(L, values, count);
  return 1;
}

/* value_number(property, label) -> number | nil */
static int core_value_number(lua_State *L)
{
  const struct cairn_property_info *p =
      cairn_property_find(luaL_checkstring(L, 1));
  const char *label = luaL_checkstring(L, 2);
  int64_t value;
  if (p == NULL || p->values == NULL ||
      cairn_value_number(p, label, &value) != 0)
    return 0;
  lua_pushinteger(L, value);
  return 1;
}

static int core_state_is_final(lua_State *L)
{
  lua_pushboolean(L, cairn_state_is_final((int)luaL_checkinteger(L, 1)));
  return 1;
}

static int core_state_can_change(lua_State *L)
{
  lua_pushboolean(L, cairn_state_can_change((int)luaL_checkinteger(L, 1),
                                            (int)luaL_checkinteger(L, 2)));
  return 1;
}

static int core_state_request_code(lua_State *L)
{
  lua_pushinteger(L, cairn_state_request_code((int)luaL_checkinteger(L, 1),
                                              (int)luaL_checkinteger(L, 2)));
  return 1;
}

static int core_vendor_code(lua_State *L)
{
  lua_pushinteger(L, cairn_vendor_code((uint32_t)luaL_checkinteger(L, 1)));
  return 1;
}

/* ---- small services of the system
 * ---------------------------------------------- */

/* nearest(word, array of strings) -> the string most like it */
static int core_nearest(lua_State *L)
{
  const char *word = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_Integer count = luaL_len(L, 2);
  luaL_argcheck(L, count > 0 && count < 4096, 2, "1 to 4095 strings expected");
  const char **list = lua_newuserdatauv(L, (size_t)count * sizeof *list, 0);
  luaL_checkstack(L, (int)count + 4, "too many candidates");
  for (lua_Integer i = 0; i < count; i++) {
    lua_rawgeti(L, 2, i + 1);
    list[i] = luaL_checkstring(L, -1); /* stays on the stack */
  }
  lua_pushstring(L, cairn__nearest(word, list, (size_t)count));
  return 1;
}

static int core_cwd(lua_State *L)
{
  for (size_t size = 512;; size *= 2) {
    char *buffer = lua_newuserdatauv(L, size, 0);
    if (getcwd(buffer, size) != NULL) {
      lua_pushstring(L, buffer);
      return 1;
    }
    int errnum = errno;
    if (errnum != ERANGE || size > 1 << 20) {
      struct cairn_error err = {0};
      cairn__fail_errno(&err, errnum, ".", -1,
                        "cannot find the working directory");
      return cairn__lua_fail(L, &err);
    }
    lua_pop(L, 1);
  }
}

/* monotonic() -> microseconds of the system's monotonic clock */
static int core_monotonic(lua_State *L)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  lua_pushinteger(L, (lua_Integer)t.tv_sec * 1000000 + t.tv_nsec / 1000);
  return 1;
}

/* errno_code(errno) -> the code that stands for a system error */
static int core_errno_code(lua_State *L)
{
  struct cairn_error err = {0};
  cairn__fail_errno(&err, (int)luaL_checkinteger(L, 1), NULL, -1, "error");
  lua_pushstring(L, cairn__lua_code(err.id));
  return 1;
}

#define SCRIPT_MAX (16 << 20)

/* Reads the file to its end, at most SCRIPT_MAX bytes; *text is the caller's,
 * also after a failure. */
static int read_all(int fd, const char *shown, char **text, size_t *length,
                    struct cairn_error *err)
{
  size_t room = 0;
  for (*length = 0;;) {
    if (*length == room) {
      char *more = cairn__realloc(*text, room = room ? 2 * room : 65536);
      if (more == NULL)
        return cairn__fail_memory(err);
      *text = more;
    }
    ssize_t n = read(fd, *text + *length, room - *length);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return cairn__fail_errno(err, errno, NULL, -1, "cannot read %s", shown);
    *length += (size_t)n;
    if (*length > SCRIPT_MAX)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                         "%s is larger than %d MiB, which no Lua file of this "
                         "kind is",
                         shown, SCRIPT_MAX >> 20);
    if (n == 0)
      return 0;
  }
}

static int read_script(const char *path, const char *what, int is_stream_fine,
                       char **text, size_t *length, struct cairn_error *err)
{
  /* opening a FIFO that nobody writes must not hold up whoever refuses it */
  int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY;
  int fd = open(path, is_stream_fine ? flags : flags | O_NONBLOCK);
  char printable[1024], shown[1100];
  struct stat st;
  int result;

  snprintf(shown, sizeof shown, "%.64s %s", what,
           cairn__printable(path, printable, sizeof printable));
  if (fd < 0 || fstat(fd, &st) != 0)
    result = cairn__fail_errno(err, errno, NULL, -1, "cannot open %s", shown);
  else if (S_ISDIR(st.st_mode))
    result = cairn__fail(err, CAIRN_E_BAD_PATH,
                         "%s is a directory; a Lua file is expected", shown);
  else if (!S_ISREG(st.st_mode) &&
           !(is_stream_fine && (S_ISFIFO(st.st_mode) || isatty(fd))))
    result =
        cairn__fail(err, CAIRN_E_BAD_PATH, "%s is not a regular file", shown);
  else
    result = read_all(fd, shown, text, length, err);
  if (fd >= 0)
    close(fd);
  return result;
}

/* read_script(path, what[, is_stream_fine]) -> text | nil, message, code: of a
 * regular file of a sane size, or of a pipe or terminal too. `what` it is, for
 * messages: "the policy" */
static int core_read_script(lua_State *L)
{
  const char *path = luaL_checkstring(L, 1), *what = luaL_checkstring(L, 2);
  int is_stream_fine = lua_toboolean(L, 3);
  struct cairn_error err = {0};
  char **text = (char **)cairn__lua_box(L, cairn_free);
  size_t length = 0;

  if (read_script(path, what, is_stream_fine, text, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  /* a "#!" line is for the system; the lines keep their numbers */
  lua_pushstring(L, length > 0 && (*text)[0] == '#' ? "--" : "");
  lua_pushlstring(L, *text, length);
  cairn__lua_unbox(L, -3);
  lua_concat(L, 2);
  return 1;
}

/* file_size(path) -> bytes | nil: without a descriptor, whose closing would
 * drop the locks that this process has on the file */
static int core_file_size(lua_State *L)
{
  struct stat st;
  if (stat(luaL_checkstring(L, 1), &st) != 0)
    return 0;
  lua_pushinteger(L, st.st_size);
  return 1;
}

static int write_all(int fd, const char *text, size_t length)
{
  while (length > 0) {
    ssize_t n = write(fd, text, length);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return -1;
    text += n;
    length -= (size_t)n;
  }
  return fsync(fd);
}

/* The new file beside `path`, whole, in its place; the directory, open, may be
 * synced after. 0, or -1 with errno. */
static int replace(int directory, const char *temporary, const char *name,
                   const char *text, size_t length)
{
  int fd = openat(directory, temporary,
                  O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  int result, saved;
  if (fd < 0)
    return -1;
  result = write_all(fd, text, length);
  saved = errno;
  if (close(fd) != 0 && result == 0) {
    result = -1;
    saved = errno;
  }
  if (result == 0 && renameat(directory, temporary, directory, name) == 0)
    return fsync(directory);
  if (result == 0)
    saved = errno;
  unlinkat(directory, temporary, 0);
  errno = saved;
  return -1;
}

/* replace_file(path, text) -> true | nil, message, code: whoever opens the file
 * sees the old text or the new one, also after a crash */
static int core_replace_file(lua_State *L)
{
  size_t length, path_length;
  const char *path = luaL_checklstring(L, 1, &path_length);
  const char *text = luaL_checklstring(L, 2, &length);
  const char *slash = strrchr(path, '/');
  const char *name = slash ? slash + 1 : path;
  struct cairn_error err = {0};
  uuid_t id;
  char suffix[37], shown[512];
  int directory, result = -1;
  if (strlen(path) != path_length || name[0] == '\0') {
    cairn__fail(&err, CAIRN_E_BAD_PATH, "%s is not the name of a file",
                cairn__printable(path, shown, sizeof shown));
    return cairn__lua_fail(L, &err);
  }
  lua_settop(L, 2);
  if (slash)
    lua_pushlstring(L, path, slash == path ? 1 : (size_t)(slash - path));
  else
    lua_pushliteral(L, ".");
  uuid_generate(id);
  uuid_unparse_lower(id, suffix);
  const char *temporary = lua_pushfstring(L, ".%s.%s", name, suffix);
  directory = open(lua_tostring(L, 3), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0)
    result = replace(directory, temporary, name, text, length);
  if (result != 0)
    cairn__fail_errno(&err, errno, NULL, -1, "cannot write %s",
                      cairn__printable(path, shown, sizeof shown));
  if (directory >= 0)
    close(directory);
  if (result != 0)
    return cairn__lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* points(directory) -> array | nil, message, code */
static int core_points(lua_State *L)
{
  const char *directory = luaL_checkstring(L, 1);
  struct cairn_error err = {0};
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_points(directory, json, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

/* keep(points and rules as JSON) -> reasons | nil, message, code */
static int core_keep(lua_State *L)
{
  size_t length;
  const char *given = luaL_checklstring(L, 1, &length);
  struct cairn_error err = {0};
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_keep(given, length, json, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

/* point_data(directory, id) -> array | nil, message, code */
static int core_point_data(lua_State *L)
{
  const char *directory = luaL_checkstring(L, 1);
  const char *id = luaL_checkstring(L, 2);
  struct cairn_error err = {0};
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_point_data(directory, id, json, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

/* doctor(directory, options as JSON) -> report | nil, message, code */
static int core_doctor(lua_State *L)
{
  const char *directory = luaL_checkstring(L, 1);
  const char *options = luaL_optstring(L, 2, NULL);
  struct cairn_error err = {0};
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_doctor(directory, options, json, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

static int located_continue(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  return lua_gettop(L);
}

/* A C function keeps its caller's frame even in a tail call, which a Lua
 * function does not: `return cairn.collection { ... }` still knows the file. */
static int located(lua_State *L)
{
  int n = lua_gettop(L);
  lua_Debug ar;
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  for (int level = 1;; level++) {
    if (!lua_getstack(L, level, &ar)) {
      lua_pushnil(L);
      lua_pushinteger(L, 0);
      break;
    }
    lua_getinfo(L, "Sl", &ar);
    if (*ar.what != 'C') {
      lua_pushstring(L, ar.source);
      lua_pushinteger(L, ar.currentline);
      break;
    }
  }
  lua_rotate(L, 2, 2);
  lua_callk(L, n + 2, LUA_MULTRET, 0, located_continue);
  return lua_gettop(L);
}

/* with_source(f) -> function that calls f(source, line, ...), where source and
 * line are those of the Lua function that calls it */
static int core_with_source(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_pushcclosure(L, located, 1);
  return 1;
}

static int core_settings(lua_State *L)
{
  return cairn__lua_settings(L, NULL);
}

static const luaL_Reg functions[] = {
    {"errors", core_errors},
    {"properties", core_properties},
    {"value_map", core_value_map},
    {"value_number", core_value_number},
    {"state_is_final", core_state_is_final},
    {"state_can_change", core_state_can_change},
    {"state_request_code", core_state_request_code},
    {"vendor_code", core_vendor_code},
    {"nearest", core_nearest},
    {"fingerprint", core_fingerprint},
    {"cwd", core_cwd},
    {"monotonic", core_monotonic},
    {"errno_code", core_errno_code},
    {"read_script", core_read_script},
    {"file_size", core_file_size},
    {"replace_file", core_replace_file},
    {"points", core_points},
    {"keep", core_keep},
    {"point_data", core_point_data},
    {"doctor", core_doctor},
    {"with_source", core_with_source},
    {"settings", core_settings},
    {NULL, NULL}};

CAIRN_LUA_EXPORT int luaopen_cairn_core(lua_State *L)
{
  luaL_checkversion(L);
  luaL_newmetatable(L, BOX);
  lua_pushcfunction(L, box_gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  cairn__lua_register(L, functions);
  lua_pushstring(L, cairn_version());
  lua_setfield(L, -2, "version");
  /* null: where nil cannot stand, in a table for job:set and in arrays */
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
  cairn__lua_open_json(L);
  cairn__lua_open_datetime(L);
  cairn__lua_open_schedule(L);
  cairn__lua_open_engine(L);
  cairn__lua_open_job(L);
  cairn__lua_open_view(L);
  cairn__lua_open_task(L);
  cairn__lua_open_guard(L);
  cairn__lua_open_signal(L);
  cairn__lua_open_peer(L);
  return 1;
}
