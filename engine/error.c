/* Error records and the error table. Whatever a caller formats, a message that
 * leaves here is valid UTF-8, free of control characters other than newline
 * and tab, and ends at a whole character: it can go to a terminal, a log and
 * JSON as it is. The path field keeps the bytes of the path. */
#include "error.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- the table --------------------------------------------------------- */

#define MESSAGE_ID(n)                                                          \
  ((const char[]){'C', 'A', 'I', 'R', 'N', '0' + (n) / 1000 % 10,              \
                  '0' + (n) / 100 % 10, '0' + (n) / 10 % 10, '0' + (n) % 10,   \
                  '\0'})

static const struct cairn_error_info rows[] = {
#define CAIRN_ERROR(ID, text, number, type, cause, status, exit, what, act)    \
  {.id = (number),                                                             \
   .code = (text),                                                             \
   .message_id = MESSAGE_ID(number),                                           \
   .summary = (what),                                                          \
   .recommended_action = (act),                                                \
   .error_type = (type),                                                       \
   .probable_cause = (cause),                                                  \
   .cim_status_code = (status),                                                \
   .exit_code = (exit)},
#include "cairn/errors.def"
#undef CAIRN_ERROR
};

#define ROW_COUNT (sizeof rows / sizeof rows[0])

const struct cairn_error_info *cairn_error_info_at(size_t index)
{
  return index < ROW_COUNT ? &rows[index] : NULL;
}

const struct cairn_error_info *cairn_error_info(int id)
{
  /* Codes are handed out in order, so the first guess is right as long as no
   * number has been left out. */
  if (id >= 1 && (size_t)id <= ROW_COUNT && rows[id - 1].id == id)
    return &rows[id - 1];
  if (id < 1)
    return NULL;
  for (size_t i = 0; i < ROW_COUNT; i++)
    if (rows[i].id == id)
      return &rows[i];
  return NULL;
}

const char *cairn__error_advice(int id, int system_errno)
{
  const struct cairn_error_info *info = cairn_error_info(id);
  switch (system_errno) {
  case EROFS:
    return "Choose a place on a file system that is mounted for writing.";
  case EMFILE:
    return "Raise the limit of open files (ulimit -n): every disk keeps some "
           "open during the whole export.";
  case ENFILE:
    return "Raise the system's limit of open files (sysctl fs.file-max).";
  default:
    return info != NULL ? info->recommended_action : "";
  }
}

/* ---- text -------------------------------------------------------------- */

size_t cairn__utf8_length(const unsigned char *s)
{
  if (s[0] < 0x80)
    return 1;
  size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
  if (s[0] < 0xC2 || s[0] > 0xF4)
    return 0;
  for (size_t i = 1; i < length; i++)
    if ((s[i] & 0xC0) != 0x80)
      return 0;
  if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
      (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
    return 0;
  return length;
}

static int is_control(const unsigned char *s, size_t length)
{
  return s[0] < 0x20 || s[0] == 0x7F ||
         (length == 2 && s[0] == 0xC2 && s[1] < 0xA0); /* C1 controls */
}

/* Copies s into out, escaping what cannot be shown, and ending in "..." when
 * it does not fit. */
static void copy_printable(const char *s, char *out, size_t size,
                           const char *allowed)
{
  static const char dots[] = "...";
  size_t used = 0;
  size_t cut = 0; /* the last place at which "..." still fits */
  while (*s != '\0' && size > 0) {
    const unsigned char *u = (const unsigned char *)s;
    size_t length = cairn__utf8_length(u);
    char escaped[5];
    const char *piece = s;
    size_t piece_length = length;
    if (length == 0 || (is_control(u, length) && strchr(allowed, *s) == NULL)) {
      snprintf(escaped, sizeof escaped, "\\x%02X", u[0]);
      piece = escaped;
      piece_length = 4;
      length = 1;
    }
    if (used + sizeof dots <= size)
      cut = used;
    if (used + piece_length >= size) {
      size_t room = size - 1 - cut;
      size_t count = room < sizeof dots - 1 ? room : sizeof dots - 1;
      memcpy(out + cut, dots, count);
      used = cut + count;
      break;
    }
    memcpy(out + used, piece, piece_length);
    used += piece_length;
    s += length;
  }
  if (size > 0)
    out[used] = '\0';
}

const char *cairn__printable(const char *s, char *buffer, size_t size)
{
  copy_printable(s, buffer, size, "");
  return buffer;
}

static void copy_field(char *field, size_t size, const char *s)
{
  copy_printable(s != NULL ? s : "", field, size, "");
}

#ifdef __clang_analyzer__
#undef cairn__fail
#undef cairn__fail_errno
#undef cairn__fail_memory
#endif

/* ---- filling ----------------------------------------------------------- */

void cairn__error_clear(struct cairn_error *err)
{
  if (err == NULL)
    return;
  err->id = CAIRN_OK;
  err->system_errno = 0;
  err->offset = -1;
  err->message[0] = '\0';
  err->machine[0] = '\0';
  err->disk[0] = '\0';
  err->path[0] = '\0';
}

/* Formats into a buffer of its own first: an argument may be the message that
 * is being replaced. */
__attribute__((format(printf, 4, 0))) static void fill(struct cairn_error *err,
                                                       int id, const char *tail,
                                                       const char *fmt,
                                                       va_list arguments)
{
  char text[CAIRN_MESSAGE_MAX + 1]; /* one more: a cut is seen as one */
  if (vsnprintf(text, sizeof text, fmt, arguments) < 0)
    snprintf(text, sizeof text, "%s", fmt);
  cairn__error_clear(err);
  err->id = id;
  /* the cause matters more than the end of a long text before it */
  size_t tail_length = tail != NULL ? strlen(tail) + 2 : 0;
  copy_printable(text, err->message, sizeof err->message - tail_length, "\n\t");
  if (tail != NULL) {
    size_t length = strlen(err->message);
    snprintf(err->message + length, sizeof err->message - length, ": %s", tail);
  }
}

int cairn__fail(struct cairn_error *err, int id, const char *fmt, ...)
{
  if (err == NULL)
    return -1;
  va_list arguments;
  va_start(arguments, fmt);
  fill(err, id, NULL, fmt, arguments);
  va_end(arguments);
  return -1;
}

static int id_of_errno(int errnum)
{
  switch (errnum) {
  case ENOSPC:
  case EDQUOT:
  case EFBIG:
    return CAIRN_E_DISK_FULL;
  case EACCES:
  case EPERM:
  case EROFS:
    return CAIRN_E_PERMISSION_DENIED;
  case ENOMEM:
    return CAIRN_E_NO_MEMORY;
  case ENOENT:
    return CAIRN_E_NOT_FOUND;
  case EEXIST:
    return CAIRN_E_EXISTS;
  case ENAMETOOLONG:
  case ENOTDIR:
  case EISDIR:
  case ELOOP:
    return CAIRN_E_BAD_PATH;
  default:
    return CAIRN_E_IO_ERROR;
  }
}

int cairn__fail_errno(struct cairn_error *err, int errnum, const char *path,
                      int64_t offset, const char *fmt, ...)
{
  if (err == NULL)
    return -1;
  char buffer[128];
  const char *reason = errnum == EMFILE
                           ? "Too many open files (the limit is ulimit -n)"
                           : strerror_r(errnum, buffer, sizeof buffer);
  char path_copy[sizeof err->path];
  int has_path = path != NULL;
  if (path == err->path) { /* fill() clears it */
    memcpy(path_copy, path, sizeof path_copy);
    path = path_copy;
  }
  va_list arguments;
  va_start(arguments, fmt);
  fill(err, id_of_errno(errnum), reason, fmt, arguments);
  va_end(arguments);
  err->system_errno = errnum;
  if (has_path || offset >= 0)
    cairn__error_set_path(err, path, offset);
  return -1;
}

int cairn__fail_memory(struct cairn_error *err)
{
  return cairn__fail(err, CAIRN_E_NO_MEMORY, "out of memory");
}

void cairn__error_set_path(struct cairn_error *err, const char *path,
                           int64_t offset)
{
  if (err == NULL)
    return;
  err->offset = offset >= 0 ? offset : -1;
  if (path == err->path)
    return;
  if (path == NULL)
    path = "";
  size_t length = strlen(path);
  if (length < sizeof err->path) {
    memcpy(err->path, path, length + 1);
    return;
  }
  static const char dots[] = "...";
  size_t kept = sizeof err->path - 1 - (sizeof dots - 1);
  size_t head = kept / 2, tail = kept - head;
  /* whole characters on both sides of the cut */
  while (head > 0 && ((unsigned char)path[head] & 0xC0) == 0x80)
    head--;
  while (tail > 0 && ((unsigned char)path[length - tail] & 0xC0) == 0x80)
    tail--;
  memcpy(err->path, path, head);
  memcpy(err->path + head, dots, sizeof dots - 1);
  memcpy(err->path + head + sizeof dots - 1, path + length - tail, tail + 1);
}

/* "machine M, disk D: ", without what is empty; "" when both are. */
static size_t location(const struct cairn_error *err, char *out, size_t size)
{
  int has_machine = err->machine[0] != '\0', has_disk = err->disk[0] != '\0';
  if (!has_machine && !has_disk) {
    out[0] = '\0';
    return 0;
  }
  return (size_t)snprintf(
      out, size, "%s%s%s%s%s: ", has_machine ? "machine " : "", err->machine,
      has_machine && has_disk ? ", " : "", has_disk ? "disk " : "", err->disk);
}

void cairn__error_locate(struct cairn_error *err, const char *machine,
                         const char *disk)
{
  if (err == NULL || err->id == CAIRN_OK)
    return;
  char head[sizeof err->machine + sizeof err->disk + 24];
  size_t old_length = location(err, head, sizeof head);
  const char *rest = err->message;
  if (old_length > 0 && strncmp(rest, head, old_length) == 0)
    rest += old_length;
  if (machine != NULL && machine != err->machine)
    copy_field(err->machine, sizeof err->machine, machine);
  if (disk != NULL && disk != err->disk)
    copy_field(err->disk, sizeof err->disk, disk);
  size_t length = location(err, head, sizeof head);
  if (strncmp(rest, head, length) == 0)
    length = 0;
  char text[sizeof head + CAIRN_MESSAGE_MAX];
  snprintf(text, sizeof text, "%.*s%s", (int)length, head, rest);
  copy_printable(text, err->message, sizeof err->message, "\n\t");
}

void cairn__error_name_machine(struct cairn_error *err, const char *name)
{
  if (err == NULL || err->machine[0] == '\0' || name == NULL || name[0] == '\0')
    return;
  char head[sizeof err->machine + sizeof "machine "], shown[128];
  int length = snprintf(head, sizeof head, "machine %s", err->machine);
  if (strncmp(err->message, head, (size_t)length) != 0)
    return;
  char text[sizeof head + sizeof shown + CAIRN_MESSAGE_MAX];
  snprintf(text, sizeof text, "machine %s (%s)%s",
           cairn__printable(name, shown, sizeof shown), err->machine,
           err->message + length);
  copy_printable(text, err->message, sizeof err->message, "\n\t");
}

void cairn__error_prefix(struct cairn_error *err, const char *head)
{
  if (err == NULL)
    return;
  char text[2 * CAIRN_MESSAGE_MAX];
  snprintf(text, sizeof text, "%s: %s", head, err->message);
  copy_printable(text, err->message, sizeof err->message, "\n\t");
}

/* ---- the nearest word -------------------------------------------------- */

#define WORD_MAX 64 /* longer words are compared by their beginnings */

/* What it costs to turn a typed word into a candidate. Leaving letters out is
 * the commonest slip (half a name is typed), so it is the cheapest: "Day" is
 * nearer to "RunDay" than to "gap". */
enum { COST_MISSING = 2, COST_SWAPPED = 2, COST_EXTRA = 3, COST_WRONG = 4 };

static unsigned distance(const char *word, const char *candidate)
{
  size_t n = strnlen(word, WORD_MAX), m = strnlen(candidate, WORD_MAX);
  unsigned lines[3][WORD_MAX + 1];
  unsigned *before = lines[0], *above = lines[1], *line = lines[2];
  for (size_t j = 0; j <= m; j++)
    line[j] = (unsigned)j * COST_MISSING;
  int last = 0;
  for (size_t i = 1; i <= n; i++) {
    unsigned *recycled = before;
    before = above;
    above = line;
    line = recycled;
    int c = tolower((unsigned char)word[i - 1]);
    line[0] = (unsigned)i * COST_EXTRA;
    int left = 0;
    for (size_t j = 1; j <= m; j++) {
      int d = tolower((unsigned char)candidate[j - 1]);
      unsigned best = above[j - 1] + (c == d ? 0 : COST_WRONG);
      if (above[j] + COST_EXTRA < best)
        best = above[j] + COST_EXTRA;
      if (line[j - 1] + COST_MISSING < best)
        best = line[j - 1] + COST_MISSING;
      if (i > 1 && j > 1 && c == left && last == d &&
          before[j - 2] + COST_SWAPPED < best)
        best = before[j - 2] + COST_SWAPPED;
      line[j] = best;
      left = d;
    }
    last = c;
  }
  return line[m];
}

const char *cairn__nearest(const char *word, const char *const *candidates,
                           size_t count)
{
  const char *nearest = NULL;
  unsigned least = 0;
  for (size_t i = 0; i < count; i++) {
    unsigned d = distance(word, candidates[i]);
    if (nearest == NULL || d < least) {
      nearest = candidates[i];
      least = d;
    }
  }
  return nearest;
}
