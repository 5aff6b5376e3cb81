/* What the C files of the Lua module share.
 *
 * RULES. No lua_State, no Lua reference and no pointer into Lua memory is kept
 * in C beyond the call that got it. Memory of the engine's that must be freed
 * (JSON texts, JSON trees) is put in a box, a userdata made before the memory
 * exists, so that an error raised by Lua in between frees it. Strings borrowed
 * from the engine are copied before the next call that could run a finalizer
 * (one may use the same engine).
 *
 * WHO RAISES. Wrong use raises; what the world refuses comes back as
 * nil, message, code. */
#ifndef CAIRN_BINDING_H
#define CAIRN_BINDING_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>
#include <lauxlib.h>
#include <lua.h>

#include "cairn.h"

#if LUA_VERSION_NUM != 504
#error "this module is for Lua 5.4"
#endif

#define CAIRN_LUA_EXPORT __attribute__((visibility("default")))

#define CAIRN__LUA_ENGINE   "cairn.engine"
#define CAIRN__LUA_JOB      "cairn.job"
#define CAIRN__LUA_DATETIME "cairn.datetime"

/* User values of an engine. */
enum {
  CAIRN__LUA_STATE = 1, /* table of the Lua side: handlers, tasks, ... */
  CAIRN__LUA_JOBS,      /* serial -> job userdata, weak values */
  CAIRN__LUA_ENGINE_VALUES = CAIRN__LUA_JOBS
};

struct cairn__lua_engine {
  cairn_engine *engine; /* NULL: not open yet, or closed */
  size_t next, count;   /* of the batch of events being handed out */
  struct cairn_event batch[64];
};

struct cairn__lua_job {
  cairn_job serial;
  char instance_id[48];
};

CAIRN_LUA_EXPORT int luaopen_cairn_core(lua_State *L);

/* ---- core.c: results and boxes ------------------------------------------- */

/* Pushes nil, message, code; returns 3. */
int cairn__lua_fail(lua_State *L, const struct cairn_error *err);
/* The string programs compare with, for a CAIRN_E_ id. */
const char *cairn__lua_code(int id);
/* Pushes a box and returns the place for the pointer, NULL at first. */
void **cairn__lua_box(lua_State *L, void (*free_fn)(void *));
/* Frees what the box at `index` holds now. */
void cairn__lua_unbox(lua_State *L, int index);
/* Registers functions into the table on top; a name that it has is a bug. */
void cairn__lua_register(lua_State *L, const luaL_Reg *functions);

/* ---- engine.c ---------------------------------------------------------------
 */

void cairn__lua_open_engine(lua_State *L); /* fills the table on top */
struct cairn__lua_engine *cairn__lua_check_engine(lua_State *L, int index);

/* ---- job.c ------------------------------------------------------------------
 */

void cairn__lua_open_job(lua_State *L);
/* The one userdata of this job, from the engine at `engine`. */
void cairn__lua_push_job(lua_State *L, int engine, cairn_job serial);
/* The job at `index` and its engine, which must be open. */
struct cairn__lua_job *cairn__lua_check_job(lua_State *L, int index,
                                            cairn_engine **engine);
/* The label of a number in a value map, or NULL. */
const char *cairn__lua_label(const char *map, int64_t value);
/* The number of a label, ignoring case, spaces and '-'; 0 when found. */
int cairn__lua_number(const char *map, const char *label, int64_t *out);

/* ---- view.c
 * -------------------------------------------------------------------- */

/* Fixed fields by name, for the functions of a policy. */
struct cairn__lua_view;

void cairn__lua_open_view(lua_State *L);
/* The view at `index`, or NULL. Only reads. */
const struct cairn__lua_view *cairn__lua_test_view(lua_State *from, int index);
/* How many values it has, bytes of text and names, and levels of tables that it
 * becomes, with those of the views within it. */
size_t cairn__lua_view_values(const struct cairn__lua_view *v);
size_t cairn__lua_view_bytes(const struct cairn__lua_view *v);
int cairn__lua_view_depth(const struct cairn__lua_view *v);
/* Values that both stacks need room for, to thaw it. */
int cairn__lua_view_stack(const struct cairn__lua_view *v);
/* Pushes the view at `index`, absolute, onto `to`, which may be the same state,
 * as a table. Raises in `to` only. */
void cairn__lua_thaw(lua_State *from, int index, lua_State *to);

/* ---- datetime.c
 * --------------------------------------------------------------- */

void cairn__lua_open_datetime(lua_State *L);
void cairn__lua_push_datetime(lua_State *L, const struct cairn_datetime *t);
/* NULL when the value is no datetime userdata. */
const struct cairn_datetime *cairn__lua_test_datetime(lua_State *L, int index);
/* Reads a datetime userdata, a string or a number of seconds as an interval
 * (is_interval) or as a timestamp; 0 when it is one. */
int cairn__lua_to_datetime(lua_State *L, int index, int is_interval,
                           struct cairn_datetime *out, struct cairn_error *err);

/* ---- schedule.c ------------------------------------------------------------
 */

void cairn__lua_open_schedule(lua_State *L);

/* ---- json.c
 * ------------------------------------------------------------------ */

void cairn__lua_open_json(lua_State *L);
/* Encodes the value at `index` and pushes the text as a userdata or string
 * that stays valid while it is on the stack; -1 (nothing pushed) when the
 * value has no JSON form. */
int cairn__lua_encode(lua_State *L, int index, const char **text,
                      size_t *length, struct cairn_error *err);
/* The value at `index` as jansson has it, with the same refusals; pushes a box
 * that drops it, -1 (nothing pushed) when there is none. *length: the bytes
 * that its text would have, 24 for each number with a fraction. */
int cairn__lua_to_json(lua_State *L, int index, json_t **value, size_t *length,
                       struct cairn_error *err);
/* Pushes the value of a JSON text (null gives nil); raises when it is none. */
void cairn__lua_decode(lua_State *L, const char *text, size_t length);

/* ---- task.c
 * -------------------------------------------------------------------- */

void cairn__lua_open_task(lua_State *L);

/* ---- guard.c
 * ------------------------------------------------------------------- */

void cairn__lua_open_guard(lua_State *L);

/* ---- signal.c
 * ------------------------------------------------------------------ */

void cairn__lua_open_signal(lua_State *L); /* for the command only */

/* ---- peer.c
 * -------------------------------------------------------------------- */

void cairn__lua_open_peer(lua_State *L);

#endif
