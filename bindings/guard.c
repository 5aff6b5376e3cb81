/* cairn.decisions: the decision functions of a policy, in a Lua state of their
 * own, which nothing they do can take the program with.
 *
 * The state is made from the policy's text, with an allocator that has a limit.
 * One coroutine of it runs all decisions, so that after an error the stack is
 * still there to be told. Values cross by copying, both ways.
 *
 * STOPPING. A budget has instructions, time and memory. Instructions are
 * counted by a hook, which every coroutine inherits, and by what C functions
 * charge (guard_library.c, pattern.c). When any of the three is used up, `stop`
 * is set for good and an error raised; pcall, xpcall and coroutines raise it
 * again, and every hook fires with the next instruction, so that no handler and
 * no __close outlives it. The state may then be in the middle of anything: it
 * is thrown away, and the next call makes a new one from the text.
 *
 * ONE INSTRUCTION is not always short: it may compare, convert or copy a
 * string, or move a table, as large as the limit of memory. So hooks come the
 * closer the larger the largest block is, and the allocator looks at the clock,
 * too, whenever it is asked for a large block (a chain of __call lets Lua
 * itself loop with no instruction in between, but not without growing its
 * stack).
 *
 * LUA'S UNPROTECTED PLACES. An error in a state without a protected call would
 * end the process. All that can fail is done below lua_pcall on the main thread
 * (`enter`), and the few strings that lua_resume makes on its own are made
 * beforehand. Reading a state (lua_next, lua_tolstring of a string, ...) cannot
 * fail; so the copying in, which runs in the isolated state, only reads the
 * host's (whose stack may grow, which is asked for and not raised), and the
 * copying out only reads the isolated one. */
#include "guard.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "error.h"
#include "memory.h"

#define DECISIONS "cairn.decisions"

enum {
  HOOK_COUNT = 100,    /* instructions between two looks at the clock */
  LARGE_BLOCK = 65536, /* from here on they come closer */
  CLOCK_COST = 1000,   /* charged instructions between two looks */
  COROUTINE_COST = HOOK_COUNT + 100, /* what its own hook may not have seen */
  NESTED_MAX = 100,                  /* coroutines within each other */
  DEPTH_MAX = 32,                    /* of data that crosses */
  VALUES_MAX = 100000,
  MESSAGE_SIZE = 1024,
  TRACE_SIZE = 4096,
  TRACE_HEAD = 12, /* levels of a long traceback that are shown */
  TRACE_TAIL = 6,
  PRINT_SIZE = 4096,
  PAUSE = 200,           /* of the collector: percent of what is in use */
  PAUSE_LONG = 400,      /* where that is less than... */
  LITTLE_PART = 8,       /* ...this part of the limit */
  STACK_MAX = 512 << 10, /* of C, below which no coroutine begins to close */
  RECURSION = 5000       /* levels that no sensible function needs */
};

enum stop { STOP_NONE, STOP_INSTRUCTIONS, STOP_TIME, STOP_MEMORY };

struct limits {
  lua_Integer instructions;
  double seconds;
  lua_Integer bytes;
};

struct cairn__guard {
  lua_State *main;    /* NULL: to be made from the text */
  lua_State *thread;  /* runs the decisions */
  lua_State *running; /* the coroutine that runs now, of which a hook is set */
  struct limits limits;
  size_t used; /* bytes */
  int64_t left, unchecked, deadline_ns;
  int interval;                 /* instructions between two hooks */
  int pause;                    /* of the collector */
  int is_refused;               /* an allocation was, by the limit */
  int is_late;                  /* an allocation was, by the clock */
  int is_busy;                  /* a call is on */
  enum stop stop;               /* why the call must end */
  uintptr_t stack;              /* of C, where the state was entered */
  int nested;                   /* coroutines within each other */
  lua_State *outer[NESTED_MAX]; /* those that have resumed another */
  char name[LUA_IDSIZE];        /* of the file, as messages have it */
  char message[MESSAGE_SIZE];   /* of the error */
  char where[LUA_IDSIZE + 16];  /* FILE:LINE of the error, or "" */
  char trace[TRACE_SIZE];       /* "" until it is told */
  size_t printed;
  char print[PRINT_SIZE];
};

/* What one entry into the state is to do, and what came of it. */
struct request {
  lua_State *host;
  lua_CFunction entry;    /* runs in g->thread, finds the request as argument */
  const char *key, *name; /* NULL: of no job; no decision, the file */
  size_t key_length;
  int first, last;          /* of the arguments on the host's stack */
  const char *text, *chunk; /* to load: the text and what it is called */
  size_t text_length;
  int code; /* a CAIRN_E_ id, when the entry knows better */
};

static const char functions_key = 'f';

static int64_t now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct cairn__guard *cairn__guard_of(lua_State *L)
{
  struct cairn__guard *g;
  memcpy(&g, lua_getextraspace(L), sizeof(void *));
  return g;
}

/* ---- telling where it happened ----------------------------------------------
 */

/* Adds to the text in an array, as far as there is room. */
#define append(array, ...)                                                     \
  snprintf((array) + strlen(array), sizeof(array) - strlen(array), __VA_ARGS__)

static int level_count(lua_State *L)
{
  lua_Debug ar;
  int low = 0, high = 1; /* low: there is one, but for 0 */
  if (!lua_getstack(L, 0, &ar))
    return 0;
  while (lua_getstack(L, high, &ar)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    int middle = low + (high - low) / 2;
    if (lua_getstack(L, middle, &ar))
      low = middle;
    else
      high = middle;
  }
  return low + 1;
}

static void trace_level(struct cairn__guard *g, lua_State *L, lua_Debug *ar)
{
  lua_getinfo(L, "nSl", ar);
  int is_c = *ar->what == 'C';
  if (!is_c && *g->where == '\0')
    snprintf(g->where, sizeof g->where, "%s:%d", ar->short_src,
             ar->currentline);
  if (is_c)
    append(g->trace, "\n\t[C]: in ");
  else
    append(g->trace, "\n\t%s:%d: in ", ar->short_src, ar->currentline);
  if (*ar->namewhat != '\0')
    append(g->trace, "%s '%.60s'", ar->namewhat, ar->name);
  else if (*ar->what == 'm')
    append(g->trace, "main chunk");
  else if (is_c)
    append(g->trace, "?");
  else
    append(g->trace, "function <%s:%d>", ar->short_src, ar->linedefined);
}

/* The stack of one coroutine; of the main one without the entry, which is ours.
 * Nothing here allocates. */
static void trace_thread(struct cairn__guard *g, lua_State *L)
{
  lua_Debug ar;
  int count = level_count(L) - (L == g->thread);
  for (int level = 0; level < count && lua_getstack(L, level, &ar); level++) {
    if (level == TRACE_HEAD && count > TRACE_HEAD + TRACE_TAIL) {
      level = count - TRACE_TAIL;
      append(g->trace, "\n\t...\t(%d levels left out)", level - TRACE_HEAD);
      if (!lua_getstack(L, level, &ar))
        break;
    }
    trace_level(g, L, &ar);
  }
}

/* Notes the stack of L and of those that have resumed it, unless one is noted.
 */
static void tell(struct cairn__guard *g, lua_State *L)
{
  if (*g->trace != '\0')
    return;
  append(g->trace, "stack traceback:");
  trace_thread(g, L);
  for (int i = g->nested - 1; i >= 0; i--) {
    append(g->trace, "\n\t(resumed by)");
    trace_thread(g, g->outer[i]);
  }
}

/* ---- budget
 * --------------------------------------------------------------------- */

static void hook(lua_State *L, lua_Debug *ar);

static void set_hook(lua_State *L, int count)
{
  if (lua_gethook(L) != hook || lua_gethookcount(L) != count)
    lua_sethook(L, hook, LUA_MASKCOUNT, count);
}

/* What a call leaves behind is little against the library, which each round of
 * the collector goes through. So its rounds are rarer while so little is in use
 * that the next one still comes at half of the limit. */
static void set_pause(struct cairn__guard *g)
{
  int pause =
      g->used > (size_t)g->limits.bytes / LITTLE_PART ? PAUSE : PAUSE_LONG;
  if (pause == g->pause)
    return;
  g->pause = pause;
  lua_gc(g->main, LUA_GCINC, pause, 0, 0);
}

/* Where it can, a stop leaves a coroutine by a yield, which nobody resumes:
 * an error would be raised anew by each pcall of thousands within each other,
 * and each time Lua walks the whole stack. Returns in a hook only. */
static int raise_stop(lua_State *L)
{
  set_hook(L, 1);
  if (lua_isyieldable(L))
    return lua_yield(L, 0);
  lua_pushlightuserdata(L, NULL); /* nobody looks at it */
  return lua_error(L);
}

static int stop(lua_State *L, enum stop why)
{
  struct cairn__guard *g = cairn__guard_of(L);
  if (g->stop == STOP_NONE) {
    g->stop = why;
    g->interval = 1;
    tell(g, L);
  }
  return raise_stop(L);
}

static void hook(lua_State *L, lua_Debug *ar)
{
  struct cairn__guard *g = cairn__guard_of(L);
  (void)ar;
  if (g->stop != STOP_NONE) {
    raise_stop(L);
    return;
  }
  set_pause(g);
  g->left -= lua_gethookcount(L);
  if (g->left < 0)
    stop(L, STOP_INSTRUCTIONS);
  else if (now_ns() > g->deadline_ns)
    stop(L, STOP_TIME);
  else
    set_hook(L, g->interval);
}

void cairn__guard_charge(lua_State *L, uint64_t steps)
{
  struct cairn__guard *g = cairn__guard_of(L);
  if (g->stop != STOP_NONE)
    raise_stop(L);
  if (steps > (uint64_t)g->left)
    stop(L, STOP_INSTRUCTIONS);
  g->left -= (int64_t)steps;
  g->unchecked += (int64_t)steps;
  if (g->unchecked < CLOCK_COST)
    return;
  g->unchecked = 0;
  if (now_ns() > g->deadline_ns)
    stop(L, STOP_TIME);
}

void cairn__guard_room(lua_State *L, size_t bytes)
{
  struct cairn__guard *g = cairn__guard_of(L);
  size_t limit = (size_t)g->limits.bytes;
  if (bytes > limit) {
    g->is_refused = 1;
    stop(L, STOP_MEMORY);
  }
  if (g->used <= limit && bytes <= (limit - g->used) / 2)
    return;
  cairn__guard_charge(L, g->used / 64);
  lua_gc(L, LUA_GCCOLLECT, 0);
}

void cairn__guard_check(lua_State *L, int status)
{
  struct cairn__guard *g = cairn__guard_of(L);
  if (g->stop != STOP_NONE)
    raise_stop(L);
  if (status == LUA_ERRMEM)
    stop(L, g->is_late ? STOP_TIME : STOP_MEMORY);
}

int cairn__guard_is_stopped(lua_State *L)
{
  return cairn__guard_of(L)->stop != STOP_NONE;
}

int cairn__guard_is_main(lua_State *L)
{
  return L == cairn__guard_of(L)->thread;
}

static void *allocate(void *context, void *p, size_t old, size_t size)
{
  struct cairn__guard *g = context;
  if (p == NULL)
    old = 0; /* it was the kind of object */
  if (size == 0) {
    g->used -= old;
    cairn__free(p);
    return NULL;
  }
  if (size > old) {
    size_t more = size - old, limit = (size_t)g->limits.bytes;
    if (g->used > limit || more > limit - g->used) {
      /* each such request collects all garbage: too long for the usual pace */
      g->is_refused = 1;
      g->interval = 1;
      if (g->running != NULL)
        set_hook(g->running, 1);
      return NULL;
    }
    if (size >= LARGE_BLOCK) {
      if (g->running != NULL && now_ns() > g->deadline_ns) {
        g->is_late = 1;
        return NULL;
      }
      size_t count = (size_t)HOOK_COUNT * LARGE_BLOCK / size;
      if ((int)count < g->interval) {
        g->interval = count > 0 ? (int)count : 1;
        if (g->running != NULL)
          set_hook(g->running, g->interval);
      }
    }
  }
  void *fresh = cairn__realloc(p, size);
  if (fresh == NULL) {
    if (size > old)
      return NULL;
    fresh = p; /* Lua relies on it that what becomes smaller does not fail */
  }
  g->used = g->used - old + size;
  return fresh;
}

/* ---- coroutines
 * ----------------------------------------------------------------- */

lua_State *cairn__guard_thread(lua_State *L)
{
  cairn__guard_charge(L, COROUTINE_COST);
  return lua_newthread(L); /* which inherits the hook */
}

static struct cairn__guard *descend(lua_State *L, lua_State *co)
{
  struct cairn__guard *g = cairn__guard_of(L);
  if (g->stop != STOP_NONE)
    raise_stop(L);
  if (g->nested == NESTED_MAX)
    luaL_error(L, "too many coroutines within each other (%d)", NESTED_MAX);
  g->outer[g->nested++] = L;
  g->running = co;
  set_hook(co, g->interval);
  return g;
}

static int ascend(struct cairn__guard *g, lua_State *L, lua_State *co,
                  int status)
{
  if (status == LUA_ERRMEM)
    tell(g, co); /* its stack is still there */
  g->nested--;
  g->running = L;
  set_hook(L, g->interval);
  return status;
}

int cairn__guard_resume(lua_State *L, lua_State *co, int arguments,
                        int *results)
{
  struct cairn__guard *g = descend(L, co);
  return ascend(g, L, co, lua_resume(co, L, arguments, results));
}

/* lua_resetthread begins to count C levels anew, so that each coroutine that is
 * closed within another would have all of them: what there is of the stack is
 * measured instead. */
int cairn__guard_reset(lua_State *L, lua_State *co)
{
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  struct cairn__guard *g = cairn__guard_of(L);
  if ((g->stack > here ? g->stack - here : here - g->stack) > STACK_MAX)
    luaL_error(L, "C stack overflow");
  g = descend(L, co);
  return ascend(g, L, co, lua_resetthread(co));
}

void cairn__guard_print(lua_State *L, const char *text, size_t length)
{
  static const char mark[] = "... (more was printed)\n";
  struct cairn__guard *g = cairn__guard_of(L);
  if (g->printed > sizeof g->print - sizeof mark)
    return;
  size_t room = sizeof g->print - sizeof mark - g->printed;
  if (length <= room) {
    memcpy(g->print + g->printed, text, length);
    g->printed += length;
    return;
  }
  memcpy(g->print + g->printed, text, room);
  memcpy(g->print + g->printed + room, mark, sizeof mark - 1);
  g->printed = sizeof g->print - 1;
}

/* ---- data that crosses ------------------------------------------------------
 */

struct copy {
  struct cairn__guard *g;
  int depth, values;
  size_t bytes;
  int is_short;                /* a stack could not grow */
  const void *path[DEPTH_MAX]; /* the tables around this one */
  char why[160];               /* "" or what cannot cross */
};

/* Makes room on both stacks, or notes that memory is lacking; never raises. */
static int make_room(struct copy *c, lua_State *from, lua_State *to, int slots)
{
  if (lua_checkstack(from, slots) && lua_checkstack(to, slots))
    return 0;
  c->is_short = 1;
  snprintf(c->why, sizeof c->why, "more than there is memory for");
  return -1;
}

/* Notes what cannot cross; -1. */
#define cannot(c, ...) (snprintf((c)->why, sizeof(c)->why, __VA_ARGS__), -1)

static int copy_value(struct copy *c, lua_State *from, int index,
                      lua_State *to);

static int copy_string(struct copy *c, lua_State *from, int index,
                       lua_State *to)
{
  size_t length;
  const char *s = lua_tolstring(from, index, &length);
  c->bytes += length;
  if (c->bytes > (size_t)c->g->limits.bytes)
    return cannot(c, "more than %lld bytes of text",
                  (long long)c->g->limits.bytes);
  lua_pushlstring(to, s, length);
  return 0;
}

static int copy_table(struct copy *c, lua_State *from, int index, lua_State *to)
{
  const void *self = lua_topointer(from, index);
  for (int i = 0; i < c->depth; i++)
    if (c->path[i] == self)
      return cannot(c, "a table that contains itself");
  if (c->depth == DEPTH_MAX)
    return cannot(c, "tables more than %d levels deep", DEPTH_MAX);
  if (make_room(c, from, to, 6) != 0)
    return -1;
  if (lua_getmetatable(from, index)) {
    lua_pop(from, 1);
    return cannot(c, "a table with a metatable");
  }
  int count = 0, room = VALUES_MAX - c->values;
  for (lua_pushnil(from); lua_next(from, index); lua_pop(from, 1))
    if (++count > room) {
      lua_pop(from, 2);
      return cannot(c, "more than %d values", VALUES_MAX);
    }
  lua_Unsigned length = lua_rawlen(from, index);
  int list = length > (lua_Unsigned)count ? 0 : (int)length;
  c->values += count;
  c->path[c->depth++] = self;
  lua_createtable(to, list, count - list);
  for (lua_pushnil(from); lua_next(from, index); lua_pop(from, 1)) {
    int key = lua_type(from, -2), top = lua_gettop(from);
    if (key == LUA_TTABLE || key == LUA_TUSERDATA)
      return cannot(c, "a %s as a key", lua_typename(from, key));
    if (copy_value(c, from, top - 1, to) != 0 ||
        copy_value(c, from, top, to) != 0)
      return -1;
    lua_rawset(to, -3);
  }
  c->depth--;
  return 0;
}

/* A view becomes a table. */
static int copy_view(struct copy *c, lua_State *from, int index, lua_State *to)
{
  const struct cairn__lua_view *v = cairn__lua_test_view(from, index);
  if (v == NULL)
    return cannot(c, "a %s", luaL_typename(from, index));
  if (c->depth + cairn__lua_view_depth(v) > DEPTH_MAX)
    return cannot(c, "tables more than %d levels deep", DEPTH_MAX);
  c->bytes += cairn__lua_view_bytes(v);
  if (c->bytes > (size_t)c->g->limits.bytes)
    return cannot(c, "more than %lld bytes of text",
                  (long long)c->g->limits.bytes);
  size_t values = cairn__lua_view_values(v);
  if (values > (size_t)(VALUES_MAX - c->values))
    return cannot(c, "more than %d values", VALUES_MAX);
  c->values += (int)values;
  if (make_room(c, from, to, cairn__lua_view_stack(v)) != 0)
    return -1;
  cairn__lua_thaw(from, index, to);
  return 0;
}

/* Pushes a copy onto `to`; -1: with a reason in c->why, and both stacks left as
 * they are then. Reads `from` without any call that could raise there. */
static int copy_value(struct copy *c, lua_State *from, int index, lua_State *to)
{
  switch (lua_type(from, index)) {
  case LUA_TNIL:
    lua_pushnil(to);
    return 0;
  case LUA_TBOOLEAN:
    lua_pushboolean(to, lua_toboolean(from, index));
    return 0;
  case LUA_TNUMBER:
    if (lua_isinteger(from, index))
      lua_pushinteger(to, lua_tointeger(from, index));
    else
      lua_pushnumber(to, lua_tonumber(from, index));
    return 0;
  case LUA_TSTRING:
    return copy_string(c, from, index, to);
  case LUA_TTABLE:
    return copy_table(c, from, index, to);
  case LUA_TUSERDATA:
    return copy_view(c, from, index, to);
  default:
    return cannot(c, "a %s", luaL_typename(from, index));
  }
}

/* ---- entering the state -----------------------------------------------------
 */

/* Ends the entry with an error of its own. */
static int entry_error(lua_State *L, struct request *r, int code)
{
  r->code = code;
  return lua_error(L);
}

/* Copies the host's values from r->first to r->last onto the stack. */
static int copy_in(lua_State *L, struct request *r)
{
  struct cairn__guard *g = cairn__guard_of(L);
  struct copy c = {.g = g};
  int count = r->last - r->first + 1;
  if (!lua_checkstack(L, count))
    cairn__guard_check(L, LUA_ERRMEM);
  for (int i = r->first; i <= r->last; i++) {
    c.depth = 0;
    if (copy_value(&c, r->host, i, L) != 0) {
      lua_settop(r->host, r->last);
      if (c.is_short)
        cairn__guard_check(L, LUA_ERRMEM);
      char what[40] = "the settings";
      if (r->name != NULL)
        snprintf(what, sizeof what, "%.16s: argument %d", r->name,
                 i - r->first + 1);
      lua_pushfstring(L,
                      "%s: %s: %s cannot be given to a decision; only nil, "
                      "booleans, numbers, strings and plain tables can",
                      g->name, what, c.why);
      return entry_error(L, r, CAIRN_E_WRONG_TYPE);
    }
  }
  cairn__guard_charge(L, (uint64_t)c.values / 2 + c.bytes / 32);
  return count;
}

/* What the error that ended the entry says, into g->message. Runs in the main
 * thread, protected; the error is on its stack. */
static int error_text(lua_State *L)
{
  struct cairn__guard *g = cairn__guard_of(L);
  const char *text;
  if (lua_type(L, 1) == LUA_TTABLE && !luaL_getmetafield(L, 1, "__tostring")) {
    lua_pushliteral(L, "message");
    if (lua_rawget(L, 1) == LUA_TNIL)
      lua_rawgeti(L, 1, 1);
    text = lua_type(L, -1) == LUA_TSTRING
               ? lua_tostring(L, -1)
               : "(a table without a message was raised)";
  } else {
    text = luaL_tolstring(L, 1, NULL);
  }
  snprintf(g->message, sizeof g->message, "%s", text);
  return 0;
}

/* Runs in the main thread, protected: one entry, in g->thread. */
static int enter_protected(lua_State *L)
{
  struct cairn__guard *g = cairn__guard_of(L);
  struct request *r = lua_touserdata(L, 1);
  lua_State *co = g->thread;
  int results;
  lua_pushcfunction(co, r->entry);
  lua_pushlightuserdata(co, r);
  g->running = co;
  set_hook(co, g->interval);
  int status = lua_resume(co, L, 1, &results);
  g->running = L;
  if (status == LUA_OK)
    return 0;
  tell(g, co);
  if (status == LUA_ERRMEM && g->stop == STOP_NONE)
    g->stop = g->is_late ? STOP_TIME : STOP_MEMORY;
  if (g->stop != STOP_NONE)
    return 0;
  if (r->code == CAIRN_OK)
    r->code = CAIRN_E_DECISION_FAILED;
  lua_settop(L, 0);
  lua_xmove(co, L, 1);
  lua_pushcfunction(L, error_text);
  lua_insert(L, 1);
  status = lua_pcall(L, 1, 0, 0);
  if (status == LUA_ERRMEM && g->stop == STOP_NONE)
    g->stop = STOP_MEMORY;
  if (status != LUA_OK)
    snprintf(g->message, sizeof g->message,
             "(an error object that cannot be shown)");
  if (g->stop != STOP_NONE)
    return 0;
  /* what it had to close, within what is left of the budget */
  g->running = co;
  set_hook(co, g->interval);
  status = lua_resetthread(co);
  if (status == LUA_ERRMEM && g->stop == STOP_NONE)
    g->stop = STOP_MEMORY;
  return 0;
}

static void throw_away(struct cairn__guard *g)
{
  lua_State *L = g->main;
  g->main = g->thread = g->running = NULL;
  if (L != NULL)
    lua_close(L);
}

static void stop_message(struct cairn__guard *g, struct request *r)
{
  char what[200], key[80];
  lua_Debug ar;
  if (r->name == NULL)
    snprintf(what, sizeof what, "the file, read for its decision functions,");
  else if (r->key != NULL)
    snprintf(what, sizeof what, "%s%s %.60s", r->name,
             strcmp(r->name, "test") == 0 ? "" : " of job",
             cairn__printable(r->key, key, sizeof key));
  else
    snprintf(what, sizeof what, "%s", r->name);
  snprintf(g->message, sizeof g->message, "%s: %s ",
           *g->where ? g->where : g->name, what);
  if (g->stop == STOP_INSTRUCTIONS) {
    append(g->message, "was stopped after %lld instructions",
           (long long)g->limits.instructions);
  } else if (g->stop == STOP_TIME) {
    append(g->message, "was stopped after %g seconds", g->limits.seconds);
  } else if (g->is_refused) {
    append(g->message, "needed more than %lld bytes",
           (long long)g->limits.bytes);
    if (g->thread != NULL && lua_getstack(g->thread, RECURSION, &ar))
      append(g->message, " (a recursion that does not end?)");
  } else {
    append(g->message, "found no memory");
  }
  r->code =
      g->stop == STOP_MEMORY ? CAIRN_E_NO_MEMORY : CAIRN_E_DECISION_BUDGET;
}

static void fill_budget(struct cairn__guard *g)
{
  size_t used = g->used, large = (size_t)LARGE_BLOCK * 16;
  g->left = g->limits.instructions;
  g->unchecked = 0;
  g->deadline_ns = now_ns() + (int64_t)(g->limits.seconds * 1e9);
  g->interval = used <= large ? HOOK_COUNT : (int)(HOOK_COUNT * large / used);
  if (g->interval < 1)
    g->interval = 1;
  g->is_refused = g->is_late = 0;
  g->stop = STOP_NONE;
  g->nested = 0;
  *g->message = *g->where = *g->trace = '\0';
}

/* Does a request; 0, or r->code and the message; what it returns lies on the
 * stack of g->thread. */
static int enter(struct cairn__guard *g, struct request *r)
{
  fill_budget(g);
  set_pause(g);
  g->stack = (uintptr_t)__builtin_frame_address(0);
  lua_settop(g->main, 0);
  lua_settop(g->thread, 0);
  lua_pushcfunction(g->main, enter_protected);
  lua_pushlightuserdata(g->main, r);
  int status = lua_pcall(g->main, 1, 0, 0);
  lua_settop(r->host, r->last); /* a copy may have been left in the middle */
  g->running = NULL;
  if (status != LUA_OK && g->stop == STOP_NONE)
    g->stop = g->is_late ? STOP_TIME : STOP_MEMORY;
  if (g->stop == STOP_NONE)
    return r->code == CAIRN_OK ? 0 : -1;
  stop_message(g, r);
  throw_away(g);
  return -1;
}

/* ---- loading
 * -------------------------------------------------------------------- */

static const char *const names[] = {
    "base", "select", "on_failure", "retain", "throttle", "notify", NULL};

static int is_name(const char *name)
{
  for (const char *const *n = names; *n != NULL; n++)
    if (strcmp(*n, name) == 0)
      return 1;
  return 0;
}

/* Takes the functions of the table at `source` into the new table on top, and
 * appends { name =, key = } to the list at `list` for each. */
static void take_functions(lua_State *L, struct request *r, int source,
                           int list, int key)
{
  for (const char *const *name = names; *name != NULL; name++) {
    lua_pushstring(L, *name);
    int type = lua_rawget(L, source);
    if (type == LUA_TNIL) {
      lua_pop(L, 1);
      continue;
    }
    if (type != LUA_TFUNCTION) {
      lua_pushfstring(L, "%s: %s%s%s%s must be a function, got a %s",
                      cairn__guard_of(L)->name, key ? "job " : "",
                      key ? lua_tostring(L, key) : "", key ? ": " : "", *name,
                      lua_typename(L, type));
      entry_error(L, r, CAIRN_E_WRONG_TYPE);
    }
    lua_setfield(L, -2, *name);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, *name);
    lua_setfield(L, -2, "name");
    if (key != 0) {
      lua_pushvalue(L, key);
      lua_setfield(L, -2, "key");
    }
    lua_rawseti(L, list, (lua_Integer)lua_rawlen(L, list) + 1);
  }
}

/* Where the table of functions has the policy's tests, and the policy. */
enum { AT_TESTS = 1, AT_POLICY };

/* Appends { name = "test", key = } to the list at 3 for each test of the policy
 * at 2, and keeps them in the functions at 4. */
static void take_tests(lua_State *L, struct request *r)
{
  lua_settop(L, 4);
  lua_pushvalue(L, 2);
  lua_rawseti(L, 4, AT_POLICY);
  lua_pushliteral(L, "tests");
  if (lua_rawget(L, 2) != LUA_TTABLE)
    return;
  lua_newtable(L); /* 6 */
  for (lua_pushnil(L); lua_next(L, 5); lua_settop(L, 7)) {
    cairn__guard_charge(L, 20);
    if (lua_type(L, 7) != LUA_TSTRING || lua_type(L, 8) != LUA_TFUNCTION) {
      lua_pushfstring(L,
                      "%s: tests must be a table of functions by name, got a "
                      "%s by a %s",
                      cairn__guard_of(L)->name, luaL_typename(L, 8),
                      luaL_typename(L, 7));
      entry_error(L, r, CAIRN_E_WRONG_TYPE);
    }
    lua_createtable(L, 0, 2);
    lua_pushliteral(L, "test");
    lua_setfield(L, -2, "name");
    lua_pushvalue(L, 7);
    lua_setfield(L, -2, "key");
    lua_rawseti(L, 3, (lua_Integer)lua_rawlen(L, 3) + 1);
    lua_pushvalue(L, 7);
    lua_pushvalue(L, 8);
    lua_rawset(L, 6);
  }
  lua_pushvalue(L, 6);
  lua_rawseti(L, 4, AT_TESTS);
}

/* Entry: runs the text and keeps its functions; returns the list of them. */
static int load_entry(lua_State *L)
{
  struct request *r = lua_touserdata(L, 1);
  struct cairn__guard *g = cairn__guard_of(L);
  if (r->text_length > 0 && r->text[0] == LUA_SIGNATURE[0]) {
    lua_pushfstring(L, "%s: precompiled Lua code is refused; give the text",
                    g->name);
    return entry_error(L, r, CAIRN_E_SCRIPT_SYNTAX);
  }
  int status = luaL_loadbufferx(L, r->text, r->text_length, r->chunk, "t");
  if (status != LUA_OK) {
    cairn__guard_check(L, status);
    return entry_error(L, r, CAIRN_E_SCRIPT_SYNTAX);
  }
  r->code = CAIRN_E_SCRIPT_ERROR; /* what fails from here on */
  lua_call(L, copy_in(L, r), 1);
  if (lua_type(L, 2) != LUA_TTABLE) {
    lua_pushfstring(L,
                    "%s: a policy file returns one table, cairn.policy{ ... "
                    "}; this one returns a %s",
                    g->name, luaL_typename(L, 2));
    return entry_error(L, r, CAIRN_E_WRONG_TYPE);
  }
  lua_newtable(L); /* 3: the list */
  lua_newtable(L); /* 4: the functions: [0] or [key] -> table by name */
  lua_newtable(L);
  take_functions(L, r, 2, 3, 0);
  lua_rawseti(L, 4, 0);
  lua_pushliteral(L, "jobs");
  if (lua_rawget(L, 2) == LUA_TTABLE) {
    for (lua_pushnil(L); lua_next(L, 5); lua_settop(L, 6)) {
      cairn__guard_charge(L, 20);
      if (lua_type(L, 6) != LUA_TSTRING || lua_type(L, 7) != LUA_TTABLE)
        continue; /* the host's state says what is wrong with it */
      lua_newtable(L);
      take_functions(L, r, 7, 3, 6);
      lua_pushvalue(L, 6);
      lua_insert(L, -2);
      lua_rawset(L, 4);
    }
  }
  take_tests(L, r);
  lua_pushvalue(L, 4);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &functions_key);
  r->code = CAIRN_OK;
  lua_pushvalue(L, 3);
  return 1;
}

/* Runs in the main thread of a new state, protected. */
static int set_up(lua_State *L)
{
  /* what lua_resume and an error in an error's handling say, made before there
   * might be no memory for it */
  static const char *const fixed[] = {
      "C stack overflow", "cannot resume dead coroutine",
      "cannot resume non-suspended coroutine", "error in error handling"};
  struct cairn__guard *g = cairn__guard_of(L);
  lua_createtable(L, 4, 0);
  for (int i = 0; i < 4; i++) {
    lua_pushstring(L, fixed[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_rawsetp(L, LUA_REGISTRYINDEX, fixed);
  cairn__guard_open_library(L);
  set_hook(L, g->interval);
  g->thread = lua_newthread(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, g);
  return 0;
}

/* Makes the state from the text; 0, or r->code and the message. */
static int build(struct cairn__guard *g, struct request *r)
{
  g->used = 0;
  g->pause = 0;
  fill_budget(g);
  g->main = lua_newstate(allocate, g);
  if (g->main != NULL) {
    memcpy(lua_getextraspace(g->main), &g, sizeof(void *));
    lua_pushcfunction(g->main, set_up);
    if (lua_pcall(g->main, 0, 0, 0) == LUA_OK) {
      r->entry = load_entry;
      int rc = enter(g, r);
      if (rc !=
          0) /* a text may fail the next time, and has no functions then */
        throw_away(g);
      return rc;
    }
  }
  throw_away(g);
  g->stop = STOP_MEMORY;
  stop_message(g, r);
  return -1;
}

/* ---- calling
 * -------------------------------------------------------------------- */

/* Calls the test of this name with the policy, as the file returned it. */
static int call_test(lua_State *L, struct request *r)
{
  int type = lua_rawgeti(L, 2, AT_TESTS);
  if (type == LUA_TTABLE) {
    lua_pushlstring(L, r->key, r->key_length);
    type = lua_rawget(L, 3);
  }
  if (type != LUA_TFUNCTION) {
    lua_pushfstring(L, "%s: the policy has no such test",
                    cairn__guard_of(L)->name);
    return entry_error(L, r, CAIRN_E_NOT_FOUND);
  }
  lua_rawgeti(L, 2, AT_POLICY);
  lua_call(L, 1, 0);
  lua_pushnil(L);
  return 1;
}

/* Entry: calls the function, the job's own before the policy's. */
static int call_entry(lua_State *L)
{
  struct request *r = lua_touserdata(L, 1);
  int type = LUA_TNIL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &functions_key);
  if (strcmp(r->name, "test") == 0)
    return call_test(L, r);
  if (r->key != NULL) {
    lua_pushlstring(L, r->key, r->key_length);
    if (lua_rawget(L, 2) == LUA_TTABLE) {
      lua_pushstring(L, r->name);
      type = lua_rawget(L, 3);
    }
  }
  if (type != LUA_TFUNCTION) {
    lua_settop(L, 2);
    lua_rawgeti(L, 2, 0);
    lua_pushstring(L, r->name);
    if (lua_rawget(L, 3) != LUA_TFUNCTION) {
      lua_pushfstring(L, "%s: the policy has no %s for this job",
                      cairn__guard_of(L)->name, r->name);
      return entry_error(L, r, CAIRN_E_NOT_FOUND);
    }
  }
  lua_call(L, copy_in(L, r), 1);
  return 1;
}

struct result {
  struct cairn__guard *g;
  struct copy copy;
};

/* Runs in the host's state, protected: returns a copy of what lies on top in
 * the isolated one, or nothing and result->copy.why. */
static int copy_out(lua_State *L)
{
  struct result *result = lua_touserdata(L, 1);
  lua_State *co = result->g->thread;
  result->copy.g = result->g;
  if (copy_value(&result->copy, co, lua_gettop(co), L) == 0)
    return 1;
  return result->copy.is_short ? luaL_error(L, "not enough memory") : 0;
}

/* ---- the class
 * ------------------------------------------------------------------ */

/* User values */
enum { VALUE_TEXT = 1, VALUE_NAME, VALUE_SETTINGS };

struct decisions {
  struct cairn__guard *guard; /* NULL: not made yet, or closed */
};

static void release(struct decisions *d)
{
  struct cairn__guard *g = d->guard;
  d->guard = NULL;
  if (g == NULL)
    return;
  throw_away(g);
  cairn__free(g);
}

static struct decisions *check_decisions(lua_State *L)
{
  struct decisions *d = luaL_checkudata(L, 1, DECISIONS);
  /* the host's collector may call while a result is copied */
  if (d->guard != NULL && d->guard->is_busy)
    luaL_error(L, "one of these decisions is being made");
  return d;
}

/* Text of a script's that goes on to logs, stores and JSON: makes UTF-8 of it,
 * on lines. A NUL follows it. */
static void clean(char *text, size_t length)
{
  for (size_t i = 0; i < length;) {
    unsigned char c = (unsigned char)text[i];
    size_t n = c == '\n' || c == '\t' ? 1
               : c < ' ' || c == 127
                   ? 0
                   : cairn__utf8_length((unsigned char *)text + i);
    if (n == 0)
      text[i++] = '?';
    else
      i += n;
  }
}

/* Moves the result to the host, when the entry went well; returns the number of
 * results of the method. */
static int answer(lua_State *L, struct cairn__guard *g, struct request *r,
                  int has_failed)
{
  struct result result = {.g = g};
  int is_copied = 0;
  if (!has_failed) {
    lua_pushcfunction(L, copy_out);
    lua_pushlightuserdata(L, &result);
    has_failed = lua_pcall(L, 1, 1, 0);
    lua_settop(g->thread, 0);
    g->is_busy = 0;
    if (has_failed)
      return lua_error(L);
    is_copied = *result.copy.why == '\0';
    if (!is_copied) {
      snprintf(g->message, sizeof g->message,
               "%s: %s returned %s, which cannot leave a decision; only nil, "
               "booleans, numbers, strings and plain tables can",
               g->name, r->name ? r->name : "the list of its functions",
               result.copy.why);
      r->code = CAIRN_E_DECISION_FAILED;
    }
  }
  g->is_busy = 0;
  lua_pushboolean(L, is_copied);
  if (is_copied) {
    lua_insert(L, -2);
    lua_pushnil(L);
    lua_pushnil(L);
  } else {
    clean(g->message, strlen(g->message));
    clean(g->trace, strlen(g->trace));
    lua_pushstring(L, g->message);
    lua_pushstring(L, cairn__lua_code(r->code));
    lua_pushstring(L, g->trace);
  }
  if (g->printed == 0)
    return 4;
  g->print[g->printed] = '\0';
  clean(g->print, g->printed);
  lua_pushlstring(L, g->print, g->printed);
  return 5;
}

static void load_request(lua_State *L, int self, struct request *r)
{
  memset(r, 0, sizeof *r);
  r->host = L;
  lua_getiuservalue(L, self, VALUE_TEXT);
  r->text = lua_tolstring(L, -1, &r->text_length);
  lua_getiuservalue(L, self, VALUE_NAME);
  r->chunk = lua_tostring(L, -1);
  lua_getiuservalue(L, self, VALUE_SETTINGS);
  r->first = r->last = lua_gettop(L);
}

/* decisions:call(key | nil, name, ...) ->
 *   true, result, nil, nil[, printed]
 *   false, message, code, traceback[, printed] */
static int decisions_call(lua_State *L)
{
  struct cairn__guard *g = check_decisions(L)->guard;
  if (g == NULL)
    return luaL_error(L, "these decisions are closed");
  struct request r = {.host = L, .entry = call_entry};
  if (!lua_isnil(L, 2)) {
    luaL_checktype(L, 2, LUA_TSTRING);
    r.key = lua_tolstring(L, 2, &r.key_length);
  }
  r.name = luaL_checkstring(L, 3);
  if (!is_name(r.name) && (r.key == NULL || strcmp(r.name, "test") != 0))
    return luaL_argerror(L, 3, "the name of a decision expected");
  r.first = 4;
  r.last = lua_gettop(L);
  luaL_checkstack(L, 10, NULL);
  g->is_busy = 1;
  g->printed = 0;
  if (g->main == NULL) { /* the last call was stopped */
    struct request again;
    load_request(L, 1, &again);
    if (build(g, &again) != 0)
      return answer(L, g, &again, 1);
  }
  return answer(L, g, &r, enter(g, &r));
}

static int decisions_close(lua_State *L)
{
  release(check_decisions(L));
  return 0;
}

/* forget(): throws the state away, with all that calls have left in variables;
 * the next call makes it from the text. */
static int decisions_forget(lua_State *L)
{
  struct cairn__guard *g = check_decisions(L)->guard;
  if (g != NULL)
    throw_away(g);
  return 0;
}

/* used() -> bytes that the state has now */
static int decisions_used(lua_State *L)
{
  struct cairn__guard *g = check_decisions(L)->guard;
  lua_pushinteger(L, g != NULL && g->main != NULL ? (lua_Integer)g->used : 0);
  return 1;
}

/* decisions(text, chunk name, settings, instructions, seconds, bytes) ->
 *   decisions, list of { name =, key = }, nil, nil[, printed]
 *   nil, message, code, traceback[, printed] */
static int new_decisions(lua_State *L)
{
  struct request r;
  luaL_checktype(L, 1, LUA_TSTRING);
  const char *chunk = luaL_checkstring(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  struct limits limits = {luaL_checkinteger(L, 4), luaL_checknumber(L, 5),
                          luaL_checkinteger(L, 6)};
  luaL_argcheck(L, limits.instructions > 0, 4, "more than 0 expected");
  luaL_argcheck(L, limits.seconds > 0 && limits.seconds <= 1e6, 5,
                "0 to a million expected");
  luaL_argcheck(L, limits.bytes > 0, 6, "more than 0 expected");
  lua_settop(L, 3);
  struct decisions *d = lua_newuserdatauv(L, sizeof *d, 3);
  d->guard = NULL;
  luaL_setmetatable(L, DECISIONS);
  for (int i = VALUE_TEXT; i <= VALUE_SETTINGS; i++) {
    lua_pushvalue(L, i);
    lua_setiuservalue(L, 4, i);
  }
  struct cairn__guard *g = cairn__calloc(1, sizeof *g);
  if (g == NULL) {
    struct cairn_error err = {0};
    cairn__fail_memory(&err);
    cairn__lua_fail(L, &err);
    lua_pushliteral(L, ""); /* the traceback */
    return 4;
  }
  d->guard = g;
  g->limits = limits;
  luaL_checkstack(L, 10, NULL);
  snprintf(g->name, sizeof g->name, "%s", chunk + (*chunk == '@'));
  load_request(L, 4, &r);
  g->is_busy = 1;
  int n = answer(L, g, &r, build(g, &r));
  /* true, list ... becomes decisions, list ...; false, ... nil, ... */
  int first = lua_gettop(L) - n + 1;
  if (lua_toboolean(L, first)) {
    lua_pushvalue(L, 4);
  } else {
    release(d);
    lua_pushnil(L);
  }
  lua_replace(L, first);
  return n;
}

static const luaL_Reg methods[] = {{"call", decisions_call},
                                   {"close", decisions_close},
                                   {"forget", decisions_forget},
                                   {"used", decisions_used},
                                   {NULL, NULL}};

static const luaL_Reg metamethods[] = {
    {"__gc", decisions_close}, {"__close", decisions_close}, {NULL, NULL}};

static const luaL_Reg functions[] = {{"decisions", new_decisions},
                                     {NULL, NULL}};

void cairn__lua_open_guard(lua_State *L)
{
  luaL_newmetatable(L, DECISIONS);
  luaL_setfuncs(L, metamethods, 0);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  cairn__lua_register(L, functions);
}
