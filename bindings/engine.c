/* An engine in Lua: the userdata exists, closed and with its metatable, before
 * the engine does; one idempotent close (engine_free) stands behind close,
 * __close and __gc. What waits, schedules tasks or calls handlers is on the
 * Lua side and pulls events from here one by one: an event leaves the batch
 * only when Lua has it whole. */
#include "binding.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "submit.h"

extern char **environ;

struct cairn__lua_engine *cairn__lua_check_engine(lua_State *L, int index)
{
  struct cairn__lua_engine *e = luaL_checkudata(L, index, CAIRN__LUA_ENGINE);
  if (e->engine == NULL)
    luaL_error(L, "attempt to use a closed engine");
  return e;
}

static cairn_engine *check(lua_State *L)
{
  return cairn__lua_check_engine(L, 1)->engine;
}

/* ---- open and close
 * --------------------------------------------------------------- */

static const char *string_field(lua_State *L, int index, const char *key)
{
  lua_getfield(L, index, key); /* stays on the stack */
  return lua_tostring(L, -1);
}

/* open { store, is_vendor, is_virtual, is_simulated, start_us, queues_json,
 *        owner }
 * -> engine | nil, message, code */
static int engine_open(lua_State *L)
{
  struct cairn_error err = {0};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  struct cairn_engine_options options = {.size = sizeof options};
  options.store = string_field(L, 1, "store");
  options.queues_json = string_field(L, 1, "queues_json");
  options.owner = string_field(L, 1, "owner");
  lua_getfield(L, 1, "history_limit");
  options.history_limit = (uint32_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  lua_getfield(L, 1, "is_vendor");
  options.is_vendor_codes = lua_toboolean(L, -1);
  lua_getfield(L, 1, "is_virtual");
  options.is_virtual_clock = lua_toboolean(L, -1);
  lua_getfield(L, 1, "is_simulated");
  options.is_simulated = lua_toboolean(L, -1);
  lua_getfield(L, 1, "start_us");
  options.virtual_start = lua_tointeger(L, -1);

  struct cairn__lua_engine *e =
      lua_newuserdatauv(L, sizeof *e, CAIRN__LUA_ENGINE_VALUES);
  memset(e, 0, sizeof *e);
  luaL_setmetatable(L, CAIRN__LUA_ENGINE);
  lua_newtable(L);
  lua_setiuservalue(L, -2, CAIRN__LUA_STATE);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "v");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_setiuservalue(L, -2, CAIRN__LUA_JOBS);
  if (cairn_engine_open(&options, &e->engine, &err) != 0) {
    e->engine = NULL;
    return cairn__lua_fail(L, &err);
  }
  return 1;
}

static int engine_free(lua_State *L)
{
  struct cairn__lua_engine *e = luaL_checkudata(L, 1, CAIRN__LUA_ENGINE);
  cairn_engine *engine = e->engine;
  e->engine = NULL;
  e->next = e->count = 0;
  cairn_engine_free(engine);
  return 0;
}

static int engine_is_open(lua_State *L)
{
  struct cairn__lua_engine *e = luaL_checkudata(L, 1, CAIRN__LUA_ENGINE);
  lua_pushboolean(L, e->engine != NULL);
  return 1;
}

static int core_is_engine(lua_State *L)
{
  lua_pushboolean(L, luaL_testudata(L, 1, CAIRN__LUA_ENGINE) != NULL);
  return 1;
}

/* state(engine) -> the table of the Lua side; also of a closed engine */
static int engine_state(lua_State *L)
{
  luaL_checkudata(L, 1, CAIRN__LUA_ENGINE);
  lua_getiuservalue(L, 1, CAIRN__LUA_STATE);
  return 1;
}

/* begin_close(engine, "suspend" | "terminate" | "kill") */
static int engine_begin_close(lua_State *L)
{
  static const char *const modes[] = {"suspend", "terminate", "kill", NULL};
  static const enum cairn_close_mode values[] = {
      CAIRN_CLOSE_SUSPEND, CAIRN_CLOSE_TERMINATE, CAIRN_CLOSE_KILL};
  cairn_engine_close(check(L), values[luaL_checkoption(L, 2, NULL, modes)]);
  return 0;
}

static int engine_is_working(lua_State *L)
{
  lua_pushboolean(L, cairn_engine_is_working(check(L)));
  return 1;
}

static int engine_is_idle(lua_State *L)
{
  lua_pushboolean(L, cairn_engine_is_idle(check(L)));
  return 1;
}

/* ---- driving
 * ---------------------------------------------------------------------- */

static int engine_step(lua_State *L)
{
  lua_pushboolean(L, cairn_engine_step(check(L)));
  return 1;
}

/* wait(engine, microseconds) -> whether there may be more to do */
static int engine_wait(lua_State *L)
{
  lua_pushboolean(L, cairn_engine_wait(check(L), luaL_checkinteger(L, 2)) > 0);
  return 1;
}

static int engine_pollfd(lua_State *L)
{
  lua_pushinteger(L, cairn_engine_pollfd(check(L)));
  return 1;
}

static int engine_timeout(lua_State *L)
{
  lua_pushinteger(L, cairn_engine_timeout(check(L)));
  return 1;
}

static int engine_advance(lua_State *L)
{
  struct cairn_error err = {0};
  if (cairn_engine_advance(check(L), luaL_checkinteger(L, 2), &err) != 0)
    return cairn__lua_fail(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* now(engine) -> Unix microseconds, monotonic microseconds of its clock */
static int engine_now(lua_State *L)
{
  cairn_engine *engine = check(L);
  lua_pushinteger(L, cairn_engine_now(engine));
  lua_pushinteger(L, cairn_engine_monotonic(engine));
  return 2;
}

/* ---- events
 * ----------------------------------------------------------------------- */

static void set_state(lua_State *L, const char *key, int state)
{
  const char *label =
      cairn_value_label(cairn_property_at(CAIRN_PROPERTY_JobState - 1), state);
  if (label != NULL)
    lua_pushstring(L, label);
  else
    lua_pushinteger(L, state);
  lua_setfield(L, -2, key);
}

static void set_integer(lua_State *L, const char *key, lua_Integer value)
{
  lua_pushinteger(L, value);
  lua_setfield(L, -2, key);
}

/* Pushes an event of the engine at stack index 1 as a table. */
static void push_event(lua_State *L, const struct cairn_event *event)
{
  const char *name = cairn_event_name(event->type);
  lua_createtable(L, 0, 12);
  set_integer(L, "type", event->type);
  lua_pushstring(L, name != NULL ? name : "");
  lua_setfield(L, -2, "name");
  set_integer(L, "sequence", (lua_Integer)event->sequence);
  set_integer(L, "time", event->time);
  if (event->cookie != 0)
    set_integer(L, "cookie", (lua_Integer)event->cookie);
  if (event->type == CAIRN_EVENT_PROCESS ||
      event->type == CAIRN_EVENT_TASK_DECIDE ||
      event->type == CAIRN_EVENT_TASK_RECOVER)
    set_integer(L, "status", event->status);
  if (event->job != 0) {
    set_integer(L, "serial", (lua_Integer)event->job);
    set_integer(L, "run_number", event->run);
    lua_pushstring(L, event->instance_id);
    lua_setfield(L, -2, "InstanceID");
    cairn__lua_push_job(L, 1, event->job);
    struct cairn__lua_job *job = lua_touserdata(L, -1);
    if (job->instance_id[0] == '\0')
      memcpy(job->instance_id, event->instance_id, sizeof job->instance_id);
    lua_setfield(L, -2, "job");
  }
  if (event->type == CAIRN_EVENT_STATE) {
    set_state(L, "JobState", event->new_state);
    set_state(L, "PreviousJobState", event->old_state);
    set_integer(L, "new_state", event->new_state);
    set_integer(L, "old_state", event->old_state);
  }
  if (event->due != 0)
    set_integer(L, "due", event->due);
  if (event->type == CAIRN_EVENT_SKIPPED) {
    static const char *const reasons[] = {"missed", "running", "held", "ended",
                                          "queued"};
    set_integer(L, "due_last", event->due_last);
    set_integer(L, "count", event->count);
    lua_pushstring(L, event->code < 5 ? reasons[event->code] : "");
    lua_setfield(L, -2, "reason");
  }
  if (event->type == CAIRN_EVENT_RUN_ENDED) {
    set_state(L, "JobState", event->new_state);
    set_integer(L, "new_state", event->new_state);
    set_integer(L, "ErrorCode", event->code);
    set_integer(L, "attempt", event->count);
    lua_pushboolean(L, event->status == 1);
    lua_setfield(L, -2, "is_retried");
  }
  if (event->type == CAIRN_EVENT_PERCENT)
    set_integer(L, "PercentComplete", event->percent);
  if (event->type == CAIRN_EVENT_REQUEST_TIMEOUT ||
      event->type == CAIRN_EVENT_STORE || event->type == CAIRN_EVENT_BACKUP)
    set_integer(L, "code", event->code);
}

/* next_event(engine) -> table | nil when there is none */
static int engine_next_event(lua_State *L)
{
  struct cairn__lua_engine *e = cairn__lua_check_engine(L, 1);
  if (e->next == e->count) {
    e->next = 0;
    e->count = cairn_engine_next_events(e->engine, e->batch,
                                        sizeof e->batch / sizeof *e->batch);
    if (e->count == 0)
      return 0;
  }
  struct cairn_event event = e->batch[e->next];
  push_event(L, &event);
  /* a finalizer may have closed the engine, which empties the batch */
  if (e->next < e->count)
    e->next++;
  return 1;
}

static int engine_has_events(lua_State *L)
{
  struct cairn__lua_engine *e = cairn__lua_check_engine(L, 1);
  lua_pushboolean(L, e->next < e->count);
  return 1;
}

/* ---- the store
 * ------------------------------------------------------------------- */

/* turn(engine) -> what was changed so far is durable when durable() is this */
static int engine_turn(lua_State *L)
{
  lua_pushinteger(L, (lua_Integer)cairn_engine_turn(check(L)));
  return 1;
}

static int engine_durable(lua_State *L)
{
  lua_pushinteger(L, (lua_Integer)cairn_engine_durable(check(L)));
  return 1;
}

/* store_error(engine) -> nil | message, code */
static int engine_store_error(lua_State *L)
{
  struct cairn_error err = {0};
  if (cairn_engine_store_error(check(L), &err) == 0)
    return 0;
  cairn__lua_fail(L, &err); /* nil, message, code */
  return 2;
}

/* changes(engine, cursor, max) -> events | nil, message, code */
static int engine_changes(lua_State *L)
{
  struct cairn_error err = {0};
  lua_Integer max = luaL_checkinteger(L, 3);
  luaL_argcheck(L, max >= 0 && max <= 1000000, 3, "0 to 1000000 expected");
  struct cairn_event *events =
      lua_newuserdatauv(L, ((size_t)max + 1) * sizeof *events, 0);
  size_t count;
  if (cairn_changes(check(L), (uint64_t)luaL_checkinteger(L, 2), events,
                    (size_t)max, &count, &err) != 0)
    return cairn__lua_fail(L, &err);
  lua_createtable(L, (int)count, 0);
  for (size_t i = 0; i < count; i++) {
    push_event(L, &events[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int finish(lua_State *L, int rc, const struct cairn_error *err);

/* backup_start(engine, to, cookie) -> true | nil, message, code */
static int engine_backup_start(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_backup_start(check(L), luaL_checkstring(L, 2),
                                   (uint64_t)luaL_checkinteger(L, 3), &err),
                &err);
}

/* backup_error(engine) -> true | nil, message, code: of the last one */
static int engine_backup_error(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L, cairn_backup_error(check(L), &err), &err);
}

/* code_add(engine, name) -> true | nil, message, code */
static int engine_code_add(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L, cairn_code_add(check(L), luaL_checkstring(L, 2), &err),
                &err);
}

/* ---- jobs
 * ------------------------------------------------------------------------- */

/* submit(engine, spec) -> job | nil, message, code */
static int engine_submit(lua_State *L)
{
  struct cairn_error err = {0};
  json_t *spec;
  size_t length;
  cairn_job job;
  check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (cairn__lua_to_json(L, 2, &spec, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  int box = lua_gettop(L);
  int rc = cairn__submit(check(L), spec, length, &job, &err);
  cairn__lua_unbox(L, box);
  if (rc != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_push_job(L, 1, job);
  return 1;
}

/* recovery_add(engine, name) -> true | nil, message, code */
static int engine_recovery_add(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L, cairn_recovery_add(check(L), luaL_checkstring(L, 2), &err),
                &err);
}

/* decide(engine, serial, run, epoch, spec or nil)
 *   -> true | nil, message, code */
static int engine_decide(lua_State *L)
{
  struct cairn_error err = {0};
  const char *text = NULL;
  size_t length = 0;
  check(L);
  if (!lua_isnoneornil(L, 5) &&
      cairn__lua_encode(L, 5, &text, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  return finish(L,
                cairn_job_decide(check(L), (cairn_job)luaL_checkinteger(L, 2),
                                 (uint32_t)luaL_checkinteger(L, 3),
                                 (uint32_t)luaL_checkinteger(L, 4), text,
                                 length, &err),
                &err);
}

/* warn(engine, serial, message) -> true | nil, message, code */
static int engine_warn(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_job_warn(check(L), (cairn_job)luaL_checkinteger(L, 2),
                               luaL_checkstring(L, 3), &err),
                &err);
}

/* throttle(engine, serial, bytes_per_second) -> true | nil, message, code */
static int engine_throttle(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_job_throttle(check(L), (cairn_job)luaL_checkinteger(L, 2),
                                   (uint64_t)luaL_checkinteger(L, 3), &err),
                &err);
}

/* spec(engine, serial) -> table | nil, message, code */
static int engine_spec(lua_State *L)
{
  struct cairn_error err = {0};
  char **json = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  *json = cairn_job_spec(check(L), (cairn_job)luaL_checkinteger(L, 2), &err);
  if (*json == NULL)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *json, strlen(*json));
  cairn__lua_unbox(L, box);
  return 1;
}

/* recover(engine, serial, action, delay_us)
 *   -> true, whether its run is over by this | nil, message, code */
static int engine_recover(lua_State *L)
{
  struct cairn_error err = {0};
  int code = cairn_job_recover(check(L), (cairn_job)luaL_checkinteger(L, 2),
                               (int)luaL_checkinteger(L, 3),
                               luaL_checkinteger(L, 4), &err);
  if (code < 0)
    return cairn__lua_fail(L, &err);
  lua_pushboolean(L, 1);
  lua_pushboolean(L, code == 0);
  return 2;
}

/* policy_file(engine, serial) -> path | nil */
static int engine_policy_file(lua_State *L)
{
  lua_pushstring(
      L, cairn_job_policy_file(check(L), (cairn_job)luaL_checkinteger(L, 2)));
  return 1;
}

/* disown(engine, serial) -> true | nil, message, code */
static int engine_disown(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(
      L, cairn_job_disown(check(L), (cairn_job)luaL_checkinteger(L, 2), &err),
      &err);
}

/* update(engine, serial, spec) -> true | nil, message, code */
static int engine_update(lua_State *L)
{
  struct cairn_error err = {0};
  const char *text;
  size_t length;
  check(L);
  luaL_checktype(L, 3, LUA_TTABLE);
  if (cairn__lua_encode(L, 3, &text, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  return finish(L,
                cairn_job_update(check(L), (cairn_job)luaL_checkinteger(L, 2),
                                 text, length, &err),
                &err);
}

/* submit_all(engine, specs) -> array of jobs | nil, message, code */
static int engine_submit_all(lua_State *L)
{
  struct cairn_error err = {0};
  json_t *specs;
  size_t length;
  check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = (size_t)luaL_len(L, 2);
  if (count == 0) {
    lua_newtable(L);
    return 1;
  }
  cairn_job *jobs = lua_newuserdatauv(L, count * sizeof *jobs, 0);
  if (cairn__lua_to_json(L, 2, &specs, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  int box = lua_gettop(L);
  int rc = cairn__submit_all(check(L), specs, length, jobs, count, &err);
  cairn__lua_unbox(L, box);
  if (rc != 0)
    return cairn__lua_fail(L, &err);
  lua_createtable(L, (int)count, 0);
  for (size_t i = 0; i < count; i++) {
    cairn__lua_push_job(L, 1, jobs[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* plan(engine, spec) -> table | nil, message, code */
static int engine_plan(lua_State *L)
{
  struct cairn_error err = {0};
  const char *text;
  size_t length;
  luaL_checktype(L, 2, LUA_TTABLE);
  char **plan = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn__lua_encode(L, 2, &text, &length, &err) != 0 ||
      cairn_plan(check(L), text, length, plan, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *plan, strlen(*plan));
  cairn__lua_unbox(L, box);
  return 1;
}

/* history(engine, [id, [after, [max, [is_last]]]]) -> records, next | nil,
 * message, code. next: what after goes on with; nil: there is nothing more. */
static int engine_history(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_history_range range = {.id = luaL_optstring(L, 2, NULL),
                                      .after =
                                          (uint64_t)luaL_optinteger(L, 3, 0),
                                      .max = (size_t)luaL_optinteger(L, 4, 0),
                                      .is_last = lua_toboolean(L, 5)};
  uint64_t next;
  lua_settop(L, 5);
  char **records = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_history_range(check(L), &range, records, &next, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *records, strlen(*records));
  cairn__lua_unbox(L, box);
  if (next == 0)
    return 1;
  lua_pushinteger(L, (lua_Integer)next);
  return 2;
}

/* queues(engine) -> array | nil, message, code */
static int engine_queues(lua_State *L)
{
  struct cairn_error err = {0};
  char **queues = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_queues(check(L), queues, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_decode(L, *queues, strlen(*queues));
  cairn__lua_unbox(L, box);
  return 1;
}

/* job(engine, id) -> job | nil, message, code */
static int engine_job(lua_State *L)
{
  struct cairn_error err = {0};
  cairn_job job;
  const char *id = luaL_checkstring(L, 2);
  if (cairn_job_find(check(L), id, &job, &err) != 0)
    return cairn__lua_fail(L, &err);
  cairn__lua_push_job(L, 1, job);
  return 1;
}

/* job_next(engine, serial) -> job, serial | nil; 0 gives the first */
static int engine_job_next(lua_State *L)
{
  cairn_job job = cairn_job_next(check(L), (cairn_job)luaL_checkinteger(L, 2));
  if (job == 0)
    return 0;
  cairn__lua_push_job(L, 1, job);
  lua_pushinteger(L, (lua_Integer)job);
  return 2;
}

/* ---- tasks
 * ------------------------------------------------------------------------ */

static int finish(lua_State *L, int rc, const struct cairn_error *err)
{
  if (rc != 0)
    return cairn__lua_fail(L, err);
  lua_pushboolean(L, 1);
  return 1;
}

static cairn_job check_serial(lua_State *L)
{
  return (cairn_job)luaL_checkinteger(L, 2);
}

static int task_progress(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_task_progress(check(L), check_serial(L),
                                    luaL_checknumber(L, 3), &err),
                &err);
}

/* task_ask(engine, serial, question, array of choices | nil) */
static int task_ask(lua_State *L)
{
  struct cairn_error err = {0};
  const char *question = luaL_checkstring(L, 3), *choices = NULL;
  size_t length;
  if (!lua_isnoneornil(L, 4) &&
      cairn__lua_encode(L, 4, &choices, &length, &err) != 0)
    return cairn__lua_fail(L, &err);
  return finish(
      L, cairn_task_ask(check(L), check_serial(L), question, choices, &err),
      &err);
}

static int task_answer(lua_State *L)
{
  lua_pushstring(L, cairn_task_answer_text(check(L), check_serial(L)));
  return 1;
}

/* task_code(engine, serial) -> the name of its body | nil */
static int task_code(lua_State *L)
{
  lua_pushstring(L, cairn_task_code(check(L), check_serial(L)));
  return 1;
}

static int task_parked(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L, cairn_task_parked(check(L), check_serial(L), &err), &err);
}

static int task_warn(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(
      L,
      cairn_task_warn(check(L), check_serial(L), luaL_checkstring(L, 3), &err),
      &err);
}

/* task_finish(engine, serial [, ErrorCode, message]) */
static int task_finish(lua_State *L)
{
  struct cairn_error err = {0}, failure = {.offset = -1};
  int is_failure = !lua_isnoneornil(L, 3);
  if (is_failure) {
    failure.id = (int)luaL_checkinteger(L, 3);
    const char *message = luaL_checkstring(L, 4);
    size_t n = strlen(message), room = sizeof failure.message - 1;
    if (n > room) /* not in the middle of a character */
      for (n = room; n > 0 && (message[n] & 0xc0) == 0x80;)
        n--;
    memcpy(failure.message, message, n);
  }
  return finish(L,
                cairn_task_finish(check(L), check_serial(L),
                                  is_failure ? &failure : NULL, &err),
                &err);
}

/* ---- timers and processes
 * ------------------------------------------------------------ */

static int timer_start(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_timer_start(check(L), luaL_checkinteger(L, 2),
                                  (uint64_t)luaL_checkinteger(L, 3), &err),
                &err);
}

static int timer_stop(lua_State *L)
{
  cairn_timer_stop(check(L), (uint64_t)luaL_checkinteger(L, 2));
  return 0;
}

/* Strings of an array as a NULL-terminated vector, which is pushed; they stay
 * owned by the array. */
static const char **string_vector(lua_State *L, int index, size_t extra)
{
  size_t count = (size_t)luaL_len(L, index);
  const char **vector =
      lua_newuserdatauv(L, (count + extra + 1) * sizeof *vector, 0);
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, index,
                  "array of strings expected");
    vector[i] = lua_tostring(L, -1);
    lua_pop(L, 1);
  }
  vector[count] = NULL;
  return vector;
}

/* The environment with the "K=V" of an array in place of what it has of them;
 * the vector is pushed. */
static const char **environment(lua_State *L, int index)
{
  size_t inherited = 0, count = (size_t)luaL_len(L, index);
  while (environ[inherited] != NULL)
    inherited++;
  const char **vector = string_vector(L, index, inherited);
  size_t n = count;
  for (size_t i = 0; i < inherited && environ[i] != NULL; i++) {
    size_t name = strcspn(environ[i], "=") + 1;
    size_t j = 0;
    while (j < count && vector[j] != NULL &&
           strncmp(vector[j], environ[i], name) != 0)
      j++;
    if (j == count)
      vector[n++] = environ[i];
  }
  vector[n] = NULL;
  return vector;
}

/* program_start(engine, serial, argv, env | nil, cwd | nil, input | nil,
 * cookie) -> true | nil, message, code */
static int process_start(lua_State *L)
{
  struct cairn_error err = {0};
  struct cairn_process_options options = {.size = sizeof options};
  uint64_t cookie = (uint64_t)luaL_checkinteger(L, 7);
  luaL_checktype(L, 3, LUA_TTABLE);
  options.argv = string_vector(L, 3, 0);
  if (!lua_isnoneornil(L, 4))
    options.env = environment(L, 4);
  options.cwd = luaL_optstring(L, 5, NULL);
  options.input = luaL_optlstring(L, 6, NULL, &options.input_length);
  return finish(
      L, cairn_process_start(check(L), check_serial(L), &options, cookie, &err),
      &err);
}

static int process_signal(lua_State *L)
{
  struct cairn_error err = {0};
  return finish(L,
                cairn_process_signal(check(L),
                                     (uint64_t)luaL_checkinteger(L, 2),
                                     (int)luaL_checkinteger(L, 3), &err),
                &err);
}

/* program_output(engine, cookie, 1 | 2) -> text | nil, message, code */
static int process_output(lua_State *L)
{
  struct cairn_error err = {0};
  size_t length = 0;
  char **text = (char **)cairn__lua_box(L, cairn_free);
  int box = lua_gettop(L);
  if (cairn_process_output(check(L), (uint64_t)luaL_checkinteger(L, 2),
                           (int)luaL_checkinteger(L, 3), text, &length,
                           &err) != 0)
    return cairn__lua_fail(L, &err);
  lua_pushlstring(L, *text != NULL ? *text : "", length);
  cairn__lua_unbox(L, box);
  return 1;
}

static int process_release(lua_State *L)
{
  cairn_process_release(check(L), (uint64_t)luaL_checkinteger(L, 2));
  return 0;
}

/* ------------------------------------------------------------------------------------
 */

static int engine_tostring(lua_State *L)
{
  struct cairn__lua_engine *e = luaL_checkudata(L, 1, CAIRN__LUA_ENGINE);
  if (e->engine == NULL)
    lua_pushliteral(L, "cairn.engine (closed)");
  else
    lua_pushfstring(L, "cairn.engine (%p)", (void *)e);
  return 1;
}

/* upvalue 1: the methods, which the Lua side fills */
static int engine_index(lua_State *L)
{
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
    return 1;
  if (lua_type(L, 2) != LUA_TSTRING)
    return luaL_error(L, "an engine is indexed by names, not by a %s",
                      luaL_typename(L, 2));
  /* the nearest method */
  const char *word = lua_tostring(L, 2), *names[64];
  size_t count = 0;
  char shown[80];
  luaL_checkstack(L, 72, NULL);
  lua_pushnil(L);
  while (count < 64 && lua_next(L, lua_upvalueindex(1)) != 0) {
    lua_pop(L, 1);
    names[count++] = lua_tostring(L, -1);
    lua_pushvalue(L, -1);
  }
  return luaL_error(L, "an engine has no method '%s'; did you mean '%s'?",
                    cairn__printable(word, shown, sizeof shown),
                    count > 0 ? cairn__nearest(word, names, count) : "close");
}

static const luaL_Reg functions[] = {{"open", engine_open},
                                     {"free", engine_free},
                                     {"is_open", engine_is_open},
                                     {"is_engine", core_is_engine},
                                     {"state", engine_state},
                                     {"begin_close", engine_begin_close},
                                     {"is_idle", engine_is_idle},
                                     {"is_working", engine_is_working},
                                     {"step", engine_step},
                                     {"wait", engine_wait},
                                     {"pollfd", engine_pollfd},
                                     {"timeout", engine_timeout},
                                     {"advance", engine_advance},
                                     {"now", engine_now},
                                     {"next_event", engine_next_event},
                                     {"has_events", engine_has_events},
                                     {"turn", engine_turn},
                                     {"durable", engine_durable},
                                     {"store_error", engine_store_error},
                                     {"changes", engine_changes},
                                     {"backup_start", engine_backup_start},
                                     {"backup_error", engine_backup_error},
                                     {"code_add", engine_code_add},
                                     {"update", engine_update},
                                     {"disown", engine_disown},
                                     {"policy_file", engine_policy_file},
                                     {"recovery_add", engine_recovery_add},
                                     {"recover", engine_recover},
                                     {"decide", engine_decide},
                                     {"throttle", engine_throttle},
                                     {"warn", engine_warn},
                                     {"spec", engine_spec},
                                     {"task_code", task_code},
                                     {"submit", engine_submit},
                                     {"submit_all", engine_submit_all},
                                     {"plan", engine_plan},
                                     {"job", engine_job},
                                     {"history", engine_history},
                                     {"queues", engine_queues},
                                     {"job_next", engine_job_next},
                                     {"task_progress", task_progress},
                                     {"task_ask", task_ask},
                                     {"task_answer", task_answer},
                                     {"task_parked", task_parked},
                                     {"task_warn", task_warn},
                                     {"task_finish", task_finish},
                                     {"timer_start", timer_start},
                                     {"timer_stop", timer_stop},
                                     {"program_start", process_start},
                                     {"program_signal", process_signal},
                                     {"program_output", process_output},
                                     {"program_release", process_release},
                                     {NULL, NULL}};

/* Event types the Lua side handles itself; the rest has public names. */
static const struct {
  const char *name;
  int type;
} event_types[] = {{"SUBMITTED", CAIRN_EVENT_SUBMITTED},
                   {"STATE", CAIRN_EVENT_STATE},
                   {"PERCENT", CAIRN_EVENT_PERCENT},
                   {"CHANGED", CAIRN_EVENT_CHANGED},
                   {"REMOVED", CAIRN_EVENT_REMOVED},
                   {"WARNING", CAIRN_EVENT_WARNING},
                   {"TIMER", CAIRN_EVENT_TIMER},
                   {"PROCESS", CAIRN_EVENT_PROCESS},
                   {"REQUEST_TIMEOUT", CAIRN_EVENT_REQUEST_TIMEOUT},
                   {"SKIPPED", CAIRN_EVENT_SKIPPED},
                   {"RUN_ENDED", CAIRN_EVENT_RUN_ENDED},
                   {"STORE", CAIRN_EVENT_STORE},
                   {"BACKUP", CAIRN_EVENT_BACKUP},
                   {"TASK_START", CAIRN_EVENT_TASK_START},
                   {"TASK_SUSPEND", CAIRN_EVENT_TASK_SUSPEND},
                   {"TASK_RESUME", CAIRN_EVENT_TASK_RESUME},
                   {"TASK_TERMINATE", CAIRN_EVENT_TASK_TERMINATE},
                   {"TASK_KILL", CAIRN_EVENT_TASK_KILL},
                   {"TASK_ANSWER", CAIRN_EVENT_TASK_ANSWER},
                   {"TASK_RECOVER", CAIRN_EVENT_TASK_RECOVER},
                   {"TASK_DECIDE", CAIRN_EVENT_TASK_DECIDE}};

void cairn__lua_open_engine(lua_State *L)
{
  cairn__lua_register(L, functions);
  lua_newtable(L); /* EVENT = number, and number = its public name */
  for (size_t i = 0; i < sizeof event_types / sizeof *event_types; i++) {
    const char *name = cairn_event_name((uint32_t)event_types[i].type);
    set_integer(L, event_types[i].name, event_types[i].type);
    if (name != NULL) {
      lua_pushstring(L, name);
      lua_rawseti(L, -2, event_types[i].type);
    }
  }
  lua_setfield(L, -2, "event");
  lua_newtable(L);
  luaL_newmetatable(L, CAIRN__LUA_ENGINE);
  lua_pushcfunction(L, engine_free);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, engine_free); /* until the Lua side's, which waits */
  lua_setfield(L, -2, "__close");
  lua_pushcfunction(L, engine_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, engine_index, 1);
  lua_setfield(L, -2, "__index");
  lua_setfield(L, -3, "engine_metatable");
  lua_setfield(L, -2, "engine_methods");
}
