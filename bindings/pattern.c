/* Lua's patterns, with a budget: string.find, match, gmatch and gsub as the
 * reference manual has them (section 6.4.1), results and errors alike, but
 * every step of the matcher is charged. The library's own can take minutes in
 * one call, where no hook reaches it. tests/spec/guard_spec.lua holds one
 * against the other.
 *
 * The matcher goes through the pattern in a loop and calls itself only where
 * it may have to come back: at captures and at repetitions. Those calls may lie
 * DEPTH_MAX deep, as in the library. */
#include "guard.h"

#include <ctype.h>
#include <limits.h>
#include <string.h>

enum {
  CAPTURES_MAX = 32,
  DEPTH_MAX = 200,
  STEPS = 1024, /* of the matcher between two charges */
  BYTES = 32    /* that memchr and its like do in a step */
};

/* The length of a capture that has none: still open, or a position. */
enum { OPEN = -1, POSITION = -2 };

struct capture {
  const char *at;
  ptrdiff_t length;
};

struct matcher {
  lua_State *L;
  const char *subject, *subject_end, *pattern_end;
  int count; /* of captures, open ones too */
  int depth;
  unsigned steps;
  struct capture captures[CAPTURES_MAX];
};

static const char *match(struct matcher *m, const char *s, const char *p);

static void tick(struct matcher *m)
{
  if (++m->steps < STEPS)
    return;
  m->steps = 0;
  cairn__guard_charge(m->L, STEPS);
}

/* Charges the steps since the last charge. */
static void settle(struct matcher *m)
{
  unsigned steps = m->steps;
  m->steps = 0;
  cairn__guard_charge(m->L, steps);
}

static void matcher_init(struct matcher *m, lua_State *L, const char *s,
                         size_t length, const char *p, size_t pattern_length)
{
  m->L = L;
  m->subject = s;
  m->subject_end = s + length;
  m->pattern_end = p + pattern_length;
  m->depth = m->count = 0;
  m->steps = 0;
}

static int byte_at(const char *s)
{
  return (unsigned char)*s;
}

/* ---- single characters ------------------------------------------------------
 */

/* Where the item at p that stands for one character ends. */
static const char *item_end(struct matcher *m, const char *p)
{
  const char *end = m->pattern_end;
  if (*p == '%') {
    if (p + 1 == end)
      luaL_error(m->L, "malformed pattern (ends with '%%')");
    return p + 2;
  }
  if (*p++ != '[')
    return p;
  if (*p == '^')
    p++;
  /* the first character of a set is never its end */
  for (int is_first = 1; is_first || *p != ']'; is_first = 0) {
    tick(m);
    if (p == end)
      luaL_error(m->L, "malformed pattern (missing ']')");
    p += *p == '%' ? 2 : 1;
    if (p > end) /* an escape cut off by the end */
      p = end;
  }
  return p + 1;
}

static int is_in_class(int c, int class)
{
  int is_in;
  switch (tolower(class)) {
  case 'a':
    is_in = isalpha(c);
    break;
  case 'c':
    is_in = iscntrl(c);
    break;
  case 'd':
    is_in = isdigit(c);
    break;
  case 'g':
    is_in = isgraph(c);
    break;
  case 'l':
    is_in = islower(c);
    break;
  case 'p':
    is_in = ispunct(c);
    break;
  case 's':
    is_in = isspace(c);
    break;
  case 'u':
    is_in = isupper(c);
    break;
  case 'w':
    is_in = isalnum(c);
    break;
  case 'x':
    is_in = isxdigit(c);
    break;
  case 'z': /* deprecated, and still there */
    is_in = c == 0;
    break;
  default:
    return class == c;
  }
  return isupper(class) ? !is_in : is_in != 0;
}

/* Whether the set from its '[' at p to its ']' at last has the character. */
static int is_in_set(struct matcher *m, int c, const char *p, const char *last)
{
  int wanted = 1;
  p++;
  if (*p == '^') {
    wanted = 0;
    p++;
  }
  while (p < last) {
    tick(m);
    if (*p == '%') {
      if (is_in_class(c, byte_at(p + 1)))
        return wanted;
      p += 2;
    } else if (p[1] == '-' && p + 2 < last) {
      if (byte_at(p) <= c && c <= byte_at(p + 2))
        return wanted;
      p += 3;
    } else {
      if (byte_at(p) == c)
        return wanted;
      p++;
    }
  }
  return !wanted;
}

/* Whether the item from p to end takes the character at s. */
static int is_taken(struct matcher *m, const char *s, const char *p,
                    const char *end)
{
  tick(m);
  if (s >= m->subject_end)
    return 0;
  switch (*p) {
  case '.':
    return 1;
  case '%':
    return is_in_class(byte_at(s), byte_at(p + 1));
  case '[':
    return is_in_set(m, byte_at(s), p, end - 1);
  default:
    return *p == *s;
  }
}

/* ---- repetitions, %b, %1, captures ------------------------------------------
 */

/* The most first, then less and less. */
static const char *match_longest(struct matcher *m, const char *s,
                                 const char *p, const char *end)
{
  ptrdiff_t n = 0;
  while (is_taken(m, s + n, p, end))
    n++;
  for (; n >= 0; n--) {
    const char *found = match(m, s + n, end + 1);
    if (found != NULL)
      return found;
  }
  return NULL;
}

static const char *match_shortest(struct matcher *m, const char *s,
                                  const char *p, const char *end)
{
  for (;; s++) {
    const char *found = match(m, s, end + 1);
    if (found != NULL)
      return found;
    if (!is_taken(m, s, p, end))
      return NULL;
  }
}

/* %bxy with x at p: where the balanced text at s ends. */
static const char *match_balanced(struct matcher *m, const char *s,
                                  const char *p)
{
  if (p + 1 >= m->pattern_end)
    luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
  if (s >= m->subject_end || *s != *p)
    return NULL;
  ptrdiff_t nested = 1;
  while (++s < m->subject_end) {
    tick(m);
    if (*s == p[1]) { /* first: the two may be the same */
      if (--nested == 0)
        return s + 1;
    } else if (*s == *p) {
      nested++;
    }
  }
  return NULL;
}

/* The text of the capture that the digit names once more, at s. */
static const char *match_again(struct matcher *m, const char *s, int digit)
{
  int i = digit - '1';
  if (i < 0 || i >= m->count || m->captures[i].length == OPEN)
    luaL_error(m->L, "invalid capture index %%%d", i + 1);
  /* one that is a position has no text that could be there again */
  size_t length = (size_t)m->captures[i].length;
  if ((size_t)(m->subject_end - s) < length)
    return NULL;
  cairn__guard_charge(m->L, length / BYTES);
  return memcmp(m->captures[i].at, s, length) == 0 ? s + length : NULL;
}

static const char *match_opened(struct matcher *m, const char *s, const char *p,
                                ptrdiff_t length)
{
  if (m->count >= CAPTURES_MAX)
    luaL_error(m->L, "too many captures");
  m->captures[m->count].at = s;
  m->captures[m->count].length = length;
  m->count++;
  const char *found = match(m, s, p);
  if (found == NULL)
    m->count--;
  return found;
}

static const char *match_closed(struct matcher *m, const char *s, const char *p)
{
  int i = m->count - 1;
  while (i >= 0 && m->captures[i].length != OPEN)
    i--;
  if (i < 0)
    luaL_error(m->L, "invalid pattern capture");
  m->captures[i].length = s - m->captures[i].at;
  const char *found = match(m, s, p);
  if (found == NULL)
    m->captures[i].length = OPEN;
  return found;
}

/* %f[set] with '[' at *p: whether a frontier is at s; *p moves past it. */
static int is_frontier(struct matcher *m, const char *s, const char **p)
{
  if (**p != '[')
    luaL_error(m->L, "missing '[' after '%%f' in pattern");
  const char *set = *p, *end = item_end(m, set);
  int before = s == m->subject ? 0 : byte_at(s - 1);
  int here = s == m->subject_end ? 0 : byte_at(s);
  *p = end;
  return !is_in_set(m, before, set, end - 1) &&
         is_in_set(m, here, set, end - 1);
}

/* ---- the loop ---------------------------------------------------------------
 */

/* An item for one character and what may follow it. Returns 1 and moves *s and
 * *p when the loop goes on; 0 when *s is the answer. */
static int match_item(struct matcher *m, const char **s, const char **p)
{
  const char *end = item_end(m, *p), *found;
  int is_there = is_taken(m, *s, *p, end);
  if (*end == '?' || *end == '*' || *end == '-') {
    if (!is_there) { /* which is as good as none of it */
      *p = end + 1;
      return 1;
    }
    if (*end != '?') {
      *s = *end == '*' ? match_longest(m, *s, *p, end)
                       : match_shortest(m, *s, *p, end);
      return 0;
    }
    found = match(m, *s + 1, end + 1);
    if (found == NULL) {
      *p = end + 1;
      return 1;
    }
    *s = found;
    return 0;
  }
  if (!is_there || *end == '+') {
    *s = is_there ? match_longest(m, *s + 1, *p, end) : NULL;
    return 0;
  }
  ++*s;
  *p = end;
  return 1;
}

/* Where the match of the pattern from p on, at s, ends; NULL: there is none. */
static const char *match(struct matcher *m, const char *s, const char *p)
{
  if (++m->depth > DEPTH_MAX)
    luaL_error(m->L, "pattern too complex");
  while (s != NULL && p != m->pattern_end) {
    tick(m);
    if (*p == '(') {
      s = p[1] == ')' ? match_opened(m, s, p + 2, POSITION)
                      : match_opened(m, s, p + 1, OPEN);
      break;
    }
    if (*p == ')') {
      s = match_closed(m, s, p + 1);
      break;
    }
    if (*p == '$' && p + 1 == m->pattern_end) {
      s = s == m->subject_end ? s : NULL;
      break;
    }
    if (*p == '%' && p[1] == 'b') {
      s = match_balanced(m, s, p + 2);
      p += 4;
    } else if (*p == '%' && p[1] == 'f') {
      p += 2;
      if (!is_frontier(m, s, &p))
        s = NULL;
    } else if (*p == '%' && isdigit(byte_at(p + 1))) {
      s = match_again(m, s, byte_at(p + 1));
      p += 2;
    } else if (!match_item(m, &s, &p)) {
      break;
    }
  }
  m->depth--;
  return s;
}

/* ---- what was captured ------------------------------------------------------
 */

/* The capture i of a match from s to e, which is all of it when there are no
 * captures: its length, and its text in *text; a position is pushed. */
static ptrdiff_t captured(struct matcher *m, int i, const char *s,
                          const char *e, const char **text)
{
  if (i >= m->count) {
    if (i != 0)
      luaL_error(m->L, "invalid capture index %%%d", i + 1);
    *text = s;
    return e - s;
  }
  *text = m->captures[i].at;
  if (m->captures[i].length == OPEN)
    luaL_error(m->L, "unfinished capture");
  if (m->captures[i].length == POSITION)
    lua_pushinteger(m->L, m->captures[i].at - m->subject + 1);
  return m->captures[i].length;
}

static void push_captured(struct matcher *m, int i, const char *s,
                          const char *e)
{
  const char *text;
  ptrdiff_t length = captured(m, i, s, e, &text);
  if (length != POSITION)
    lua_pushlstring(m->L, text, (size_t)length);
}

/* All captures, or the whole match when there are none and s is not NULL. */
static int push_all(struct matcher *m, const char *s, const char *e)
{
  int count = m->count == 0 && s != NULL ? 1 : m->count;
  luaL_checkstack(m->L, count, "too many captures");
  for (int i = 0; i < count; i++)
    push_captured(m, i, s, e);
  return count;
}

/* ---- the functions ----------------------------------------------------------
 */

/* A position as scripts give it, as a place in a string from 0 on. */
static size_t start(lua_State *L, int index, size_t length)
{
  lua_Integer at = luaL_optinteger(L, index, 1);
  if (at > 0)
    return (size_t)at - 1;
  if (at == 0 || at < -(lua_Integer)length)
    return 0;
  return length - (size_t)-at;
}

static int is_plain(const char *p, size_t length)
{
  for (size_t i = 0; i < length; i++)
    if (p[i] != '\0' && strchr("^$*+?.([%-", p[i]) != NULL)
      return 0;
  return 1;
}

static int find_or_match(lua_State *L, int is_find)
{
  size_t length, pattern_length;
  const char *s = luaL_checklstring(L, 1, &length);
  const char *p = luaL_checklstring(L, 2, &pattern_length);
  size_t at = start(L, 3, length);
  struct matcher m;
  if (at > length) {
    lua_pushnil(L);
    return 1;
  }
  cairn__guard_charge(L, 1 + pattern_length / BYTES);
  if (is_find && (lua_toboolean(L, 4) || is_plain(p, pattern_length))) {
    cairn__guard_charge(L, (length - at) / BYTES);
    const char *found = memmem(s + at, length - at, p, pattern_length);
    if (found == NULL) {
      lua_pushnil(L);
      return 1;
    }
    lua_pushinteger(L, found - s + 1);
    lua_pushinteger(L, found - s + (lua_Integer)pattern_length);
    return 2;
  }
  matcher_init(&m, L, s, length, p, pattern_length);
  int is_anchored = pattern_length > 0 && *p == '^';
  p += is_anchored;
  do {
    m.count = m.depth = 0;
    const char *end = match(&m, s + at, p);
    if (end != NULL) {
      settle(&m);
      if (!is_find)
        return push_all(&m, s + at, end);
      lua_pushinteger(L, (lua_Integer)at + 1);
      lua_pushinteger(L, end - s);
      return push_all(&m, NULL, NULL) + 2;
    }
  } while (++at <= length && !is_anchored);
  settle(&m);
  lua_pushnil(L);
  return 1;
}

static int pattern_find(lua_State *L)
{
  return find_or_match(L, 1);
}

static int pattern_match(lua_State *L)
{
  return find_or_match(L, 0);
}

struct walk {
  size_t at;
  const char *last; /* end of the last match: the next may not be empty there */
};

/* Upvalues: subject, pattern, struct walk. */
static int next_match(lua_State *L)
{
  size_t length, pattern_length;
  const char *s = lua_tolstring(L, lua_upvalueindex(1), &length);
  const char *p = lua_tolstring(L, lua_upvalueindex(2), &pattern_length);
  struct walk *walk = lua_touserdata(L, lua_upvalueindex(3));
  struct matcher m;
  matcher_init(&m, L, s, length, p, pattern_length);
  for (; walk->at <= length; walk->at++) {
    m.count = m.depth = 0;
    const char *end = match(&m, s + walk->at, p);
    if (end != NULL && end != walk->last) {
      settle(&m);
      const char *from = s + walk->at;
      walk->at = (size_t)(end - s);
      walk->last = end;
      return push_all(&m, from, end);
    }
  }
  return 0;
}

static int pattern_gmatch(lua_State *L)
{
  size_t length;
  luaL_checklstring(L, 1, &length);
  luaL_checkstring(L, 2);
  size_t at = start(L, 3, length);
  lua_settop(L, 2);
  struct walk *walk = lua_newuserdatauv(L, sizeof *walk, 0);
  walk->at = at > length ? length + 1 : at;
  walk->last = NULL;
  lua_pushcclosure(L, next_match, 3);
  return 1;
}

/* A replacement string, with what its % stand for. */
static void add_string(struct matcher *m, luaL_Buffer *b, const char *s,
                       const char *e)
{
  size_t length;
  const char *r = lua_tolstring(m->L, 3, &length), *end = r + length;
  cairn__guard_charge(m->L, length / BYTES);
  for (;;) {
    const char *escape = memchr(r, '%', (size_t)(end - r)), *text;
    luaL_addlstring(b, r, (size_t)((escape != NULL ? escape : end) - r));
    if (escape == NULL)
      return;
    tick(m);
    r = escape + 2;
    if (escape[1] == '%') {
      luaL_addchar(b, '%');
    } else if (escape[1] == '0') {
      luaL_addlstring(b, s, (size_t)(e - s));
    } else if (isdigit(byte_at(escape + 1))) {
      ptrdiff_t n = captured(m, escape[1] - '1', s, e, &text);
      if (n == POSITION)
        luaL_addvalue(b);
      else
        luaL_addlstring(b, text, (size_t)n);
    } else {
      luaL_error(m->L, "invalid use of '%%' in replacement string");
    }
  }
}

/* Adds what the match from s to e is replaced by; 0: by itself. */
static int add_replaced(struct matcher *m, luaL_Buffer *b, const char *s,
                        const char *e, int type)
{
  lua_State *L = m->L;
  if (type == LUA_TFUNCTION) {
    lua_pushvalue(L, 3);
    lua_call(L, push_all(m, s, e), 1);
  } else if (type == LUA_TTABLE) {
    push_captured(m, 0, s, e);
    lua_gettable(L, 3);
  } else {
    add_string(m, b, s, e);
    return 1;
  }
  if (!lua_toboolean(L, -1)) {
    lua_pop(L, 1);
    luaL_addlstring(b, s, (size_t)(e - s));
    return 0;
  }
  if (!lua_isstring(L, -1))
    luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
  luaL_addvalue(b);
  return 1;
}

static int pattern_gsub(lua_State *L)
{
  size_t length, pattern_length;
  const char *s = luaL_checklstring(L, 1, &length), *last = NULL;
  const char *p = luaL_checklstring(L, 2, &pattern_length);
  int type = lua_type(L, 3), is_changed = 0;
  lua_Integer most = luaL_optinteger(L, 4, (lua_Integer)length + 1), n = 0;
  struct matcher m;
  luaL_Buffer b;
  if (type != LUA_TNUMBER && type != LUA_TSTRING && type != LUA_TFUNCTION &&
      type != LUA_TTABLE)
    return luaL_typeerror(L, 3, "string/function/table");
  if (type == LUA_TNUMBER)
    lua_tostring(L,
                 3); /* now, and not among what the buffer has on the stack */
  cairn__guard_charge(L, 1 + length / BYTES);
  cairn__guard_room(L, length);
  matcher_init(&m, L, s, length, p, pattern_length);
  int is_anchored = pattern_length > 0 && *p == '^';
  p += is_anchored;
  luaL_buffinit(L, &b);
  while (n < most) {
    m.count = m.depth = 0;
    const char *end = match(&m, s, p);
    if (end != NULL && end != last) {
      n++;
      is_changed |= add_replaced(&m, &b, s, end, type);
      s = last = end;
    } else if (s < m.subject_end) {
      luaL_addchar(&b, *s++);
    } else {
      break;
    }
    if (is_anchored)
      break;
  }
  settle(&m);
  if (is_changed) {
    luaL_addlstring(&b, s, (size_t)(m.subject_end - s));
    luaL_pushresult(&b);
  } else {
    lua_pushvalue(L, 1);
  }
  lua_pushinteger(L, n);
  return 2;
}

static const luaL_Reg functions[] = {{"find", pattern_find},
                                     {"match", pattern_match},
                                     {"gmatch", pattern_gmatch},
                                     {"gsub", pattern_gsub},
                                     {NULL, NULL}};

void cairn__guard_open_patterns(lua_State *L)
{
  luaL_setfuncs(L, functions, 0);
}
