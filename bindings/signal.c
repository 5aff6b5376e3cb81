/* What the process of the command needs of signals and limits, and only it:
 * nothing here is called by the module for other programs.
 *
 * Signals are handled by luv, that is, when the loop turns. Lua code that does
 * not return (io.popen():read(), os.execute, a bad pattern, a finalizer) keeps
 * it from turning. So guard() puts a handler of ours before luv's, which counts
 * the signals that no callback has seen yet. After PATIENCE_S without a
 * callback the person is told; two unseen signals that have waited so long, or
 * one more after that message, end the process there and then, as the signal
 * itself would have. Exports are crash-safe, so nothing half written is
 * published.
 *
 * When luv stops watching a signal it restores the system's handling, and ours
 * is gone with it. When that happens because the jobs have ended, a signal
 * comes too late: what they did is told all the same, and is how the command
 * ends. */
#include "binding.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_S 2
#define TIMER_SIG  (SIGRTMAX)
#define FILES_MAX                                                              \
  1048576 /* programs exist that walk over all they may open                   \
           */

#define SHOW_CURSOR "\033[?25h"

static const struct {
  int number;
  const char *name, *luv_name;
} watched[] = {{SIGINT, "SIGINT", "sigint"},
               {SIGTERM, "SIGTERM", "sigterm"},
               {SIGHUP, "SIGHUP", "sighup"}};

#define WATCHED (sizeof watched / sizeof watched[0])

static void (*inner[WATCHED])(int); /* luv's handlers */
static atomic_int unseen, late;
static volatile sig_atomic_t last;      /* place in watched */
static volatile sig_atomic_t is_warned; /* that it does not get through */
static volatile sig_atomic_t is_cursor_hidden;
static timer_t patience;
static int has_patience;

/* ---- in handlers: async-signal-safe functions only
 * ----------------------------- */

static void put(const char *text)
{
  ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
  (void)ignored;
}

static size_t place_of(int number)
{
  size_t i = 0;
  while (i < WATCHED - 1 && watched[i].number != number)
    i++;
  return i;
}

/* Ends the process by a signal, so that whoever waits for it sees which. */
static void end_by(size_t i, const char *why)
{
  struct sigaction action = {.sa_handler = SIG_DFL};
  sigset_t set;

  if (is_cursor_hidden)
    put(SHOW_CURSOR "\n");
  put("cairn: ");
  put(watched[i].name);
  put(why);
  sigaction(watched[i].number, &action, NULL);
  sigemptyset(&set);
  sigaddset(&set, watched[i].number);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  raise(watched[i].number);
  _exit(128 + watched[i].number);
}

static void end_stuck(size_t i)
{
  end_by(i, ": ended at once, for Lua code did not return; nothing half "
            "written was published\n");
}

/* Before luv watches: options and Lua files are read, no job exists. */
static void on_early(int number)
{
  end_by(place_of(number), ": ended; no job had begun\n");
}

/* When all jobs have ended. */
static void on_late(int number)
{
  if (atomic_fetch_add(&late, 1) > 0)
    end_by(place_of(number), ": ended; all jobs had ended before\n");
}

static void set_patience(int seconds)
{
  struct itimerspec t = {.it_value.tv_sec = seconds};
  if (has_patience)
    timer_settime(patience, 0, &t, NULL);
}

static void on_signal(int number)
{
  int errnum = errno;
  size_t i = place_of(number);

  last = (sig_atomic_t)i;
  atomic_fetch_add(&unseen, 1);
  if (is_warned)
    end_stuck(i);
  set_patience(PATIENCE_S);
  inner[i](number);
  errno = errnum;
}

static void on_patience(int number)
{
  int errnum = errno, waiting = atomic_load(&unseen);

  (void)number;
  if (waiting > 1)
    end_stuck((size_t)last);
  if (waiting == 1) {
    is_warned = 1;
    put("cairn: ");
    put(watched[last].name);
    put(" waits for Lua code that does not return; one more ends the "
        "process at once\n");
  }
  errno = errnum;
}

/* ---- for cairn.cli
 * --------------------------------------------------------------- */

static void handle(int number, void (*handler)(int))
{
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigfillset(&action.sa_mask);
  sigaction(number, &action, NULL);
}

/* Children that are executed get the default back, other than with SIG_IGN. */
static void on_pipe(int number)
{
  (void)number;
}

static int is_ignored(int number)
{
  struct sigaction action;
  return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/* process_start(): a closed pipe is an error of write(), the limit of
 * descriptors is as high as it may be, a signal ends the process in words.
 * What nohup and the like ignore stays ignored. */
static int process_start(lua_State *L)
{
  struct rlimit limit;

  (void)L;
  if (!is_ignored(SIGPIPE))
    handle(SIGPIPE, on_pipe);
  for (size_t i = 0; i < WATCHED; i++) {
    if (!is_ignored(watched[i].number))
      handle(watched[i].number, on_early);
  }
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    rlim_t wanted = limit.rlim_max < FILES_MAX ? limit.rlim_max : FILES_MAX;
    if (limit.rlim_cur < wanted) {
      limit.rlim_cur = wanted;
      setrlimit(RLIMIT_NOFILE, &limit); /* if not, as many as there are */
    }
  }
  return 0;
}

/* process_signals() -> array of the signals to watch, in luv's names */
static int process_signals(lua_State *L)
{
  lua_newtable(L);
  for (size_t i = 0; i < WATCHED; i++) {
    if (is_ignored(watched[i].number))
      continue;
    lua_pushstring(L, watched[i].luv_name);
    lua_rawseti(L, -2, luaL_len(L, -2) + 1);
  }
  return 1;
}

/* process_guard(): our handler before those that luv has installed */
static int process_guard(lua_State *L)
{
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL,
                           .sigev_signo = TIMER_SIG};

  (void)L;
  if (!has_patience) {
    handle(TIMER_SIG, on_patience);
    has_patience = timer_create(CLOCK_MONOTONIC, &event, &patience) == 0;
  }
  for (size_t i = 0; i < WATCHED; i++) {
    struct sigaction action;

    if (sigaction(watched[i].number, NULL, &action) != 0 ||
        action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN ||
        action.sa_handler == on_signal || action.sa_handler == on_early)
      continue;
    inner[i] = action.sa_handler;
    handle(watched[i].number, on_signal);
  }
  return 0;
}

/* process_seen(): a callback runs, so signals get through */
static int process_seen(lua_State *L)
{
  (void)L;
  set_patience(0);
  atomic_store(&unseen, 0);
  is_warned = 0;
  return 0;
}

static void watched_set(sigset_t *set)
{
  sigemptyset(set);
  for (size_t i = 0; i < WATCHED; i++)
    sigaddset(set, watched[i].number);
}

/* process_hold(): signals wait for process_late() */
static int process_hold(lua_State *L)
{
  sigset_t set;

  (void)L;
  set_patience(0);
  watched_set(&set);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  return 0;
}

/* process_late(): all jobs have ended, luv does not watch any more. One signal
 * is passed over. */
static int process_late(lua_State *L)
{
  sigset_t set;

  (void)L;
  for (size_t i = 0; i < WATCHED; i++) {
    if (!is_ignored(watched[i].number))
      handle(watched[i].number, on_late);
  }
  watched_set(&set);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
  return 0;
}

/* process_cursor(is_hidden): whether an end has to show the cursor again */
static int process_cursor(lua_State *L)
{
  is_cursor_hidden = lua_toboolean(L, 1);
  return 0;
}

static const luaL_Reg functions[] = {
    {"process_start", process_start},   {"process_signals", process_signals},
    {"process_guard", process_guard},   {"process_seen", process_seen},
    {"process_cursor", process_cursor}, {"process_hold", process_hold},
    {"process_late", process_late},     {NULL, NULL}};

void cairn__lua_open_signal(lua_State *L)
{
  cairn__lua_register(L, functions);
}
