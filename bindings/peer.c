/* What the control socket needs of the system and luv has not: a socket file
 * that is never another's, who is at the other end, and the service manager's
 * datagrams.
 *
 * THE SOCKET FILE lies in a directory that nobody but its owner can write to.
 * FILE.lock, a lock that ends with the process, says whether its server lives:
 * who has it may remove a socket file that is left over, and nothing that is no
 * socket is ever removed. The lock file goes while it is locked, so whoever has
 * locked one looks whether it is still the one that has the name. Mode and
 * group are set before the first connection is possible, whatever the umask. */
#include "binding.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <poll.h>
#include <unistd.h>

#include "error.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

#define LISTENER "cairn.listener"
#define BACKLOG  128

enum { GROUPS_MAX = 65536, LOCK_TRIES = 100, SHOWN = 300 };

struct listener {
  int socket, directory, lock; /* -1: not open, or given away */
  int is_bound;
  dev_t device;
  ino_t inode; /* of the socket file */
  char name[sizeof((struct sockaddr_un *)0)->sun_path];
  char lock_name[sizeof((struct sockaddr_un *)0)->sun_path + 8];
};

static void close_fd(int *fd)
{
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

/* Removes the socket file if it is still ours, then the lock, then lets go. */
static void let_go(struct listener *l)
{
  struct stat st;

  if (l->is_bound &&
      fstatat(l->directory, l->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      S_ISSOCK(st.st_mode) && st.st_dev == l->device && st.st_ino == l->inode)
    unlinkat(l->directory, l->name, 0);
  l->is_bound = 0;
  if (l->lock >= 0)
    unlinkat(l->directory, l->lock_name, 0);
  close_fd(&l->socket);
  close_fd(&l->lock);
  close_fd(&l->directory);
}

static struct listener *check_listener(lua_State *L)
{
  return luaL_checkudata(L, 1, LISTENER);
}

/* listener_close(listener): also what the collector does */
static int listener_close(lua_State *L)
{
  let_go(check_listener(L));
  return 0;
}

/* listener_take(listener) -> the descriptor, the caller's from now on */
static int listener_take(lua_State *L)
{
  struct listener *l = check_listener(L);
  if (l->socket < 0)
    return luaL_error(L, "the listener has no socket to give");
  lua_pushinteger(L, l->socket);
  l->socket = -1;
  return 1;
}

/* ---- the directory
 * ------------------------------------------------------------- */

static int fail_at(struct cairn_error *err, const char *what, const char *path)
{
  return cairn__fail_errno(err, errno, NULL, -1, "%s %.*s", what, SHOWN, path);
}

/* Opens the directory; makes it, as group's, when it is missing. */
static int open_directory(struct listener *l, const char *path, mode_t mode,
                          gid_t group, struct cairn_error *err)
{
  int is_made = mkdir(path, 0700) == 0;
  struct stat st;

  if (!is_made && errno != EEXIST)
    return fail_at(err, "cannot make the socket's directory", path);
  l->directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (l->directory < 0 && (errno == ENOTDIR || errno == ELOOP))
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%.*s is no directory, or a symbolic link; the socket "
                       "needs a directory of its own",
                       SHOWN, path);
  if (l->directory < 0 || fstat(l->directory, &st) != 0)
    return fail_at(err, "cannot open the socket's directory", path);
  /* one that was just made can have been exchanged in a parent that others
   * write to */
  if ((st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & 022) != 0)
    return cairn__fail(err, CAIRN_E_PERMISSION_DENIED,
                       "others can write to the directory %.*s and could "
                       "exchange the socket; name one in a directory of its "
                       "own, which is made when it is missing",
                       SHOWN, path);
  if (is_made && group != (gid_t)-1 &&
      fchown(l->directory, (uid_t)-1, group) != 0)
    return fail_at(err, "cannot give the group its directory", path);
  if (is_made && fchmod(l->directory, mode) != 0)
    return fail_at(err, "cannot set the mode of", path);
  return 0;
}

/* ---- the lock, and what a dead server has left
 * ----------------------------------- */

static int fail_alive(struct cairn_error *err, const char *path, long pid)
{
  return cairn__fail(err, CAIRN_E_BUSY,
                     "%.*s: process %ld serves this socket already", SHOWN,
                     path, pid);
}

static long pid_in(int fd)
{
  char text[24] = "";
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  return n > 0 ? strtol(text, NULL, 10) : 0;
}

static int take_lock(struct listener *l, const char *path,
                     struct cairn_error *err)
{
  char text[24];

  for (int i = 0; i < LOCK_TRIES; i++) {
    struct stat ours, named;

    close_fd(&l->lock);
    int fd =
        openat(l->directory, l->lock_name,
               O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0 || fstat(fd, &ours) != 0 || !S_ISREG(ours.st_mode)) {
      int rc = fd >= 0 && !S_ISREG(ours.st_mode)
                   ? cairn__fail(err, CAIRN_E_BAD_PATH,
                                 "%.*s.lock is not a regular file", SHOWN, path)
                   : fail_at(err, "cannot open the lock of", path);
      close_fd(&fd);
      return rc;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      int rc = errno == EWOULDBLOCK ? fail_alive(err, path, pid_in(fd))
                                    : fail_at(err, "cannot lock", path);
      close(fd);
      return rc;
    }
    l->lock = fd;
    if (fstatat(l->directory, l->lock_name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        named.st_dev == ours.st_dev && named.st_ino == ours.st_ino) {
      int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
      if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        return fail_at(err, "cannot write the lock of", path);
      return 0;
    }
    /* its last holder has removed it meanwhile */
  }
  close_fd(&l->lock); /* not ours: it must not be removed */
  return cairn__fail(err, CAIRN_E_BUSY, "%.*s: other servers come and go",
                     SHOWN, path);
}

/* The address of the socket through the open directory. */
static void address_of(const struct listener *l, struct sockaddr_un *address)
{
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  snprintf(address->sun_path, sizeof address->sun_path,
           "/proc/self/fd/%d/%.80s", l->directory, l->name);
}

/* Somebody who has not our lock may listen there: another program. */
static int remove_stale(struct listener *l, const char *path,
                        struct cairn_error *err)
{
  struct sockaddr_un address;
  struct ucred peer = {0};
  socklen_t size = sizeof peer;
  struct stat st;

  if (fstatat(l->directory, l->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    return errno == ENOENT ? 0 : fail_at(err, "cannot look at", path);
  if (!S_ISSOCK(st.st_mode))
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%.*s exists and is %s; it is left alone, name another "
                       "socket",
                       SHOWN, path,
                       S_ISLNK(st.st_mode) ? "a symbolic link" : "no socket");
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return fail_at(err, "cannot make a socket for", path);
  address_of(l, &address);
  int rc = connect(fd, (struct sockaddr *)&address, sizeof address);
  int errnum = rc == 0 ? 0 : errno;
  if (rc == 0)
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
  close(fd);
  if (errnum == 0 || errnum == EAGAIN)
    return fail_alive(err, path, (long)peer.pid);
  if (errnum != ECONNREFUSED && errnum != ENOENT) {
    errno = errnum;
    return fail_at(err, "cannot tell whether anybody serves", path);
  }
  if (unlinkat(l->directory, l->name, 0) != 0 && errno != ENOENT)
    return fail_at(err, "cannot remove the socket that is left over at", path);
  return 0;
}

static int bind_there(struct listener *l, const char *path, mode_t mode,
                      gid_t group, struct cairn_error *err)
{
  struct sockaddr_un address;
  struct stat st;

  l->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  /* the file gets the mode that the socket has, without the umask's bits */
  if (l->socket < 0 || fchmod(l->socket, 0600) != 0)
    return fail_at(err, "cannot make a socket for", path);
  address_of(l, &address);
  if (bind(l->socket, (struct sockaddr *)&address, sizeof address) != 0)
    return fail_at(err, "cannot make the socket", path);
  if (fstatat(l->directory, l->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    return fail_at(err, "cannot look at", path);
  l->is_bound = 1;
  l->device = st.st_dev;
  l->inode = st.st_ino;
  if (group != (gid_t)-1 && fchownat(l->directory, l->name, (uid_t)-1, group,
                                     AT_SYMLINK_NOFOLLOW) != 0)
    return fail_at(err, "cannot give the group its socket", path);
  if (fchmodat(l->directory, l->name, mode, 0) != 0)
    return fail_at(err, "cannot set the mode of", path);
  if (listen(l->socket, BACKLOG) != 0)
    return fail_at(err, "cannot listen at", path);
  return 0;
}

/* "/a/b" -> "/a" and "b" */
static int split(const char *path, char *directory, size_t size,
                 struct listener *l, struct cairn_error *err)
{
  const char *slash = strrchr(path, '/');
  struct sockaddr_un address;

  if (path[0] != '/' || slash[1] == '\0')
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%.*s: the absolute path of a socket expected", SHOWN,
                       path);
  if (strlen(path) >= sizeof address.sun_path || strlen(slash + 1) > 80)
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%.*s: a socket's path has at most %zu bytes and its "
                       "name 80",
                       SHOWN, path, sizeof address.sun_path - 1);
  size_t length = slash == path ? 1 : (size_t)(slash - path);
  snprintf(directory, size, "%.*s", (int)length, path);
  snprintf(l->name, sizeof l->name, "%s", slash + 1);
  snprintf(l->lock_name, sizeof l->lock_name, "%s.lock", l->name);
  return 0;
}

/* listener_open(path, access, [group]) -> listener | nil, message, code.
 * access: "owner" (0600), "group" (0660, that group's) or "all" (0666: the
 * server looks at every peer) */
static int listener_open(lua_State *L)
{
  static const char *const accesses[] = {"owner", "group", "all", NULL};
  static const mode_t modes[] = {0600, 0660, 0666};
  static const mode_t directory_modes[] = {0700, 0750, 0755};
  const char *path = luaL_checkstring(L, 1);
  int access = luaL_checkoption(L, 2, NULL, accesses);
  gid_t group = access == 1 ? (gid_t)luaL_checkinteger(L, 3) : (gid_t)-1;
  struct cairn_error err = {0};
  char directory[sizeof((struct sockaddr_un *)0)->sun_path];
  struct listener *l = lua_newuserdatauv(L, sizeof *l, 0);

  memset(l, 0, sizeof *l);
  l->socket = l->directory = l->lock = -1;
  luaL_setmetatable(L, LISTENER);
  if (split(path, directory, sizeof directory, l, &err) == 0 &&
      open_directory(l, directory, directory_modes[access], group, &err) == 0 &&
      take_lock(l, path, &err) == 0 && remove_stale(l, path, &err) == 0 &&
      bind_there(l, path, modes[access], group, &err) == 0)
    return 1;
  let_go(l);
  return cairn__lua_fail(L, &err);
}

/* ---- who is there
 * --------------------------------------------------------------- */

/* peer(fd) -> { pid =, uid =, gid =, groups = { gid, ... } } | nil, message,
 * code: as they were when the other end connected */
static int peer(lua_State *L)
{
  int fd = (int)luaL_checkinteger(L, 1);
  struct cairn_error err = {0};
  struct ucred peer_id;
  socklen_t size = sizeof peer_id;
  gid_t *groups;

  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer_id, &size) != 0) {
    cairn__fail_errno(&err, errno, NULL, -1, "cannot tell who has connected");
    return cairn__lua_fail(L, &err);
  }
  size = 64 * sizeof *groups;
  groups = lua_newuserdatauv(L, size, 0);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) != 0) {
    if (errno != ERANGE || size > GROUPS_MAX * sizeof *groups)
      size = 0; /* an old kernel: the primary group has to do */
    else {
      groups = lua_newuserdatauv(L, size, 0);
      if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) != 0)
        size = 0;
    }
  }
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, peer_id.pid);
  lua_setfield(L, -2, "pid");
  lua_pushinteger(L, peer_id.uid);
  lua_setfield(L, -2, "uid");
  lua_pushinteger(L, peer_id.gid);
  lua_setfield(L, -2, "gid");
  lua_createtable(L, (int)(size / sizeof *groups), 0);
  for (size_t i = 0; i < size / sizeof *groups; i++) {
    lua_pushinteger(L, groups[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "groups");
  return 1;
}

/* peer_is_gone(fd): the other end is closed, not only for writing */
static int peer_is_gone(lua_State *L)
{
  struct pollfd p = {.fd = (int)luaL_checkinteger(L, 1)};
  lua_pushboolean(L, poll(&p, 1, 0) == 1 &&
                         (p.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0);
  return 1;
}

/* user_name(uid) -> name | nil */
static int user_name(lua_State *L)
{
  struct passwd entry, *found = NULL;
  uid_t uid = (uid_t)luaL_checkinteger(L, 1);
  char *buffer = lua_newuserdatauv(L, 16384, 0);

  if (getpwuid_r(uid, &entry, buffer, 16384, &found) != 0 || found == NULL)
    return 0;
  lua_pushstring(L, entry.pw_name);
  return 1;
}

/* group_id(name or number) -> gid | nil, message, code */
static int group_id(lua_State *L)
{
  const char *name = luaL_checkstring(L, 1);
  struct cairn_error err = {0};
  struct group entry, *found = NULL;
  char *end, shown[80];

  for (size_t room = 16384; room <= 1 << 20; room *= 4) {
    char *buffer = lua_newuserdatauv(L, room, 0);
    int errnum = getgrnam_r(name, &entry, buffer, room, &found);
    if (errnum != ERANGE)
      break;
  }
  if (found != NULL) {
    lua_pushinteger(L, entry.gr_gid);
    return 1;
  }
  errno = 0;
  unsigned long number = strtoul(name, &end, 10);
  if (name[0] >= '0' && name[0] <= '9' && *end == '\0' && errno == 0 &&
      number < UINT32_MAX) {
    lua_pushinteger(L, (lua_Integer)number);
    return 1;
  }
  cairn__fail(&err, CAIRN_E_NOT_FOUND,
              "there is no group \"%s\"; give a name of the system's or its "
              "number",
              cairn__printable(name, shown, sizeof shown));
  return cairn__lua_fail(L, &err);
}

/* ---- the service manager
 * --------------------------------------------------------- */

/* service_notify(address, text) -> true | nil, message, code: one datagram to
 * what NOTIFY_SOCKET was: a path, or "@" and an abstract name */
static int service_notify(lua_State *L)
{
  size_t name_length, length;
  const char *name = luaL_checklstring(L, 1, &name_length);
  const char *text = luaL_checklstring(L, 2, &length);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  struct cairn_error err = {0};

  if ((name[0] != '/' && name[0] != '@') || name_length < 2 ||
      name_length >= sizeof address.sun_path) {
    cairn__fail(&err, CAIRN_E_INVALID_ARGUMENT,
                "NOTIFY_SOCKET is neither a path nor an abstract name");
    return cairn__lua_fail(L, &err);
  }
  memcpy(address.sun_path, name, name_length);
  if (name[0] == '@')
    address.sun_path[0] = '\0';
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
                               name_length + (name[0] == '/' ? 1 : 0));
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ssize_t sent = -1;
  if (fd >= 0)
    do
      sent = sendto(fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT,
                    (struct sockaddr *)&address, size);
    while (sent < 0 && errno == EINTR);
  int errnum = errno;
  close_fd(&fd);
  if (sent >= 0) {
    lua_pushboolean(L, 1);
    return 1;
  }
  cairn__fail_errno(&err, errnum, NULL, -1, "cannot tell the service manager");
  return cairn__lua_fail(L, &err);
}

static const luaL_Reg functions[] = {{"listener_open", listener_open},
                                     {"listener_take", listener_take},
                                     {"listener_close", listener_close},
                                     {"peer", peer},
                                     {"peer_is_gone", peer_is_gone},
                                     {"user_name", user_name},
                                     {"group_id", group_id},
                                     {"service_notify", service_notify},
                                     {NULL, NULL}};

void cairn__lua_open_peer(lua_State *L)
{
  cairn__lua_register(L, functions);
  luaL_newmetatable(L, LISTENER);
  lua_pushcfunction(L, listener_close);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
}
