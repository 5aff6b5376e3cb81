/* A zone is kept as segments: segment i lasts from at[i - 1] up to at[i] and
 * adds offset[i] to UTC. Only changes of the offset divide segments; summer
 * time's flag and abbreviations are not kept.
 *
 * A rule at the end of a file (POSIX TZ) is written out when the file is read,
 * for the 400 years after which the Gregorian calendar repeats, weekdays
 * included. What comes later is looked up in those, so that no rule is
 * evaluated after loading. */
#include "zone.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datetime.h"
#include "error.h"
#include "memory.h"

#define SECOND_US  INT64_C(1000000)
#define DAY_S      INT64_C(86400)
#define CYCLE_US   (INT64_C(146097) * DAY_S * SECOND_US)
#define OFFSET_MAX 93600 /* seconds: what RFC 9636 allows, 26 hours */
#define AT_MAX     INT64_C(4000000000000) /* seconds; beyond year 120000 */
#define FILE_MAX   ((size_t)1 << 20)
#define NAME_MAX_  255
#define DATABASE   "/usr/share/zoneinfo"
#define HOST_FILE  "/etc/localtime"

struct cairn__zone {
  size_t count;          /* of changes */
  const int64_t *at;     /* count: their instants, rising */
  const int64_t *offset; /* count + 1 */
  const int64_t *ended;  /* count + 1: no reading from here on was shown before
                          * this segment */
  int64_t cycle_from;    /* what is later is 400 years earlier too */
  const char *name;
};

static const int64_t utc_offset[1] = {0};
static const int64_t utc_ended[1] = {INT64_MIN / 2};
static const struct cairn__zone utc = {.offset = utc_offset,
                                       .ended = utc_ended,
                                       .cycle_from = INT64_MAX,
                                       .name = "UTC"};

const struct cairn__zone *cairn__zone_utc(void)
{
  return &utc;
}

const char *cairn__zone_name(const struct cairn__zone *z)
{
  return z->name;
}

void cairn__zone_free(struct cairn__zone *z)
{
  if (z != &utc)
    cairn__free(z);
}

/* ---- looking up ---------------------------------------------------------- */

/* How many of the changes are at `us` or before. */
static size_t changes_until(const struct cairn__zone *z, int64_t us)
{
  const int64_t *base = z->at;
  size_t n = z->count;
  if (n == 0)
    return 0;
  while (n > 1) {
    size_t half = n / 2;
    base += base[half - 1] <= us ? half : 0;
    n -= half;
  }
  return (size_t)(base - z->at) + (*base <= us);
}

/* How far to go back to come into the 400 years that are written out. */
static int64_t cycles_us(const struct cairn__zone *z, int64_t us)
{
  if (us < z->cycle_from)
    return 0;
  return ((us - z->cycle_from) / CYCLE_US + 1) * CYCLE_US;
}

int64_t cairn__zone_offset_us(const struct cairn__zone *z, int64_t unix_us)
{
  return z->offset[changes_until(z, unix_us - cycles_us(z, unix_us))];
}

int64_t cairn__zone_reached(const struct cairn__zone *z, int64_t unix_us)
{
  int64_t back = cycles_us(z, unix_us);
  size_t i = changes_until(z, unix_us - back);
  int64_t now = unix_us - back + z->offset[i];
  return (now >= z->ended[i] ? now : z->ended[i] - 1) + back;
}

void cairn__zone_find(const struct cairn__zone *z, int64_t local_us,
                      struct cairn__reading *out)
{
  int64_t back = cycles_us(z, local_us), local = local_us - back;
  /* Segments that end before this have not reached it. */
  size_t i = changes_until(z, local - OFFSET_MAX * SECOND_US);
  while (i < z->count && z->at[i] + z->offset[i] <= local)
    i++;
  int64_t first = local - z->offset[i];
  *out =
      (struct cairn__reading){first + back, first + back, first + back, 0, 0};
  if (i > 0 && first < z->at[i - 1]) {
    out->first_us = out->last_us = z->at[i - 1] + back;
    out->shift_us = local_us - z->offset[i - 1];
    out->is_gap = 1;
    return;
  }
  while (++i <= z->count && z->at[i - 1] <= local + OFFSET_MAX * SECOND_US) {
    int64_t again = local - z->offset[i];
    if (again < z->at[i - 1] || (i < z->count && again >= z->at[i]))
      continue;
    out->last_us = again + back;
    out->is_overlap = 1;
  }
}

/* ---- building ------------------------------------------------------------ */

struct change {
  int64_t at; /* seconds */
  int32_t offset;
};

struct builder {
  const char *name;
  struct cairn_error *err;
  struct change *changes;
  size_t count, capacity;
  int32_t first_offset;
  int64_t cycle_from; /* seconds; INT64_MAX: none */
};

static int damaged(const struct builder *b, const char *why)
{
  char shown[160];
  return cairn__fail(b->err, CAIRN_E_INVALID_ARGUMENT,
                     "zone \"%s\": no usable time zone file (%s)",
                     cairn__printable(b->name, shown, sizeof shown), why);
}

/* Changes are sorted as they come; of two at one instant the later holds. */
static int add_change(struct builder *b, int64_t at, int32_t offset)
{
  if (b->count == b->capacity) {
    size_t capacity = b->capacity > 0 ? 2 * b->capacity : 256;
    struct change *more =
        cairn__realloc(b->changes, capacity * sizeof *b->changes);
    if (more == NULL)
      return cairn__fail_memory(b->err);
    b->changes = more;
    b->capacity = capacity;
  }
  size_t i = b->count++;
  for (; i > 0 && b->changes[i - 1].at > at; i--)
    b->changes[i] = b->changes[i - 1];
  b->changes[i] = (struct change){at, offset};
  return 0;
}

/* Drops what changes nothing; returns how many are left. */
static size_t reduce(struct builder *b)
{
  size_t kept = 0;
  for (size_t i = 0; i < b->count; i++) {
    if (i + 1 < b->count && b->changes[i + 1].at == b->changes[i].at)
      continue;
    int32_t before = kept > 0 ? b->changes[kept - 1].offset : b->first_offset;
    if (b->changes[i].offset != before)
      b->changes[kept++] = b->changes[i];
  }
  return b->count = kept;
}

static int finish(struct builder *b, struct cairn__zone **out)
{
  size_t count = reduce(b), name_size = strlen(b->name) + 1;
  struct cairn__zone *z =
      cairn__malloc(sizeof *z + (3 * count + 2) * sizeof(int64_t) + name_size);
  if (z == NULL)
    return cairn__fail_memory(b->err);
  int64_t *at = (int64_t *)(z + 1), *offset = at + count;
  int64_t *ended = offset + count + 1;
  char *name = (char *)(ended + count + 1);
  memcpy(name, b->name, name_size);
  *z = (struct cairn__zone){
      .count = count,
      .at = at,
      .offset = offset,
      .ended = ended,
      .cycle_from =
          b->cycle_from < AT_MAX ? b->cycle_from * SECOND_US : INT64_MAX,
      .name = name,
  };
  offset[0] = b->first_offset * SECOND_US;
  ended[0] = INT64_MIN / 2;
  for (size_t i = 0; i < count; i++) {
    at[i] = b->changes[i].at * SECOND_US;
    offset[i + 1] = b->changes[i].offset * SECOND_US;
    int64_t end = at[i] + offset[i];
    ended[i + 1] = end > ended[i] ? end : ended[i];
  }
  *out = z;
  return 0;
}

/* ---- the rule of a file's end (POSIX TZ) -----------------------------------
 */

struct rule_day {
  char form; /* 'M', 'J' or '0' */
  int month, week, day;
  int32_t seconds; /* of the clock before the change, from midnight */
};

struct rule {
  int32_t standard, summer; /* offsets, seconds */
  int has_summer;
  struct rule_day start, end; /* of summer time */
};

static int read_number(const char **p, int max, int *out)
{
  int n = 0;
  const char *s = *p;
  while (*s >= '0' && *s <= '9' && n <= max)
    n = n * 10 + (*s++ - '0');
  if (s == *p || n > max)
    return -1;
  *p = s;
  *out = n;
  return 0;
}

/* [+-]h[:m[:s]] in seconds */
static int read_time(const char **p, int hours_max, int32_t *out)
{
  int sign = **p == '-' ? -1 : 1, h, m = 0, s = 0;
  if (**p == '+' || **p == '-')
    ++*p;
  if (read_number(p, hours_max, &h) != 0)
    return -1;
  if (**p == ':') {
    ++*p;
    if (read_number(p, 59, &m) != 0)
      return -1;
    if (**p == ':') {
      ++*p;
      if (read_number(p, 59, &s) != 0)
        return -1;
    }
  }
  *out = sign * (h * 3600 + m * 60 + s);
  return 0;
}

static int is_letter(char c)
{
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static int read_abbreviation(const char **p)
{
  const char *s = *p;
  int length = 0;
  if (*s == '<') {
    for (s++;
         is_letter(*s) || (*s >= '0' && *s <= '9') || *s == '+' || *s == '-';
         s++)
      length++;
    if (*s++ != '>')
      return -1;
  } else {
    for (; is_letter(*s); s++)
      length++;
  }
  *p = s;
  return length >= 3 ? 0 : -1;
}

static int read_rule_day(const char **p, struct rule_day *d)
{
  if (*(*p)++ != ',')
    return -1;
  d->form = **p == 'M' || **p == 'J' ? *(*p)++ : '0';
  if (d->form != 'M') {
    if (read_number(p, 365, &d->day) != 0 || (d->form == 'J' && d->day == 0))
      return -1;
  } else if (read_number(p, 12, &d->month) != 0 || *(*p)++ != '.' ||
             read_number(p, 5, &d->week) != 0 || *(*p)++ != '.' ||
             read_number(p, 6, &d->day) != 0 || d->month == 0 || d->week == 0) {
    return -1;
  }
  d->seconds = 7200;
  if (**p != '/')
    return 0;
  ++*p;
  return read_time(p, 167, &d->seconds);
}

/* 0 when the text is a rule, with the days of summer time in it if it has
 * one. */
static int read_rule(const char *text, struct rule *r)
{
  const char *p = text;
  *r = (struct rule){0};
  if (read_abbreviation(&p) != 0 || read_time(&p, 24, &r->standard) != 0)
    return -1;
  r->standard = -r->standard;
  if (*p == '\0')
    return 0;
  r->has_summer = 1;
  r->summer = r->standard + 3600;
  if (read_abbreviation(&p) != 0)
    return -1;
  if (*p != ',') {
    if (read_time(&p, 24, &r->summer) != 0)
      return -1;
    r->summer = -r->summer;
  }
  if (read_rule_day(&p, &r->start) != 0 || read_rule_day(&p, &r->end) != 0)
    return -1;
  return *p == '\0' ? 0 : -1;
}

/* The instant of a change when the clock is `offset` before it. */
static int64_t rule_instant(const struct rule_day *d, int64_t year,
                            int32_t offset)
{
  int64_t day = cairn__days_from_date(year, 1, 1);
  if (d->form == '0') {
    day += d->day;
  } else if (d->form == 'J') {
    int is_leap = cairn__days_in_month(year, 2) == 29;
    day += d->day - 1 + (is_leap && d->day >= 60);
  } else {
    int64_t first = cairn__days_from_date(year, d->month, 1);
    int weekday = (int)(((first + 4) % 7 + 7) % 7); /* 1970-01-01: Thursday */
    int date = (d->day - weekday + 7) % 7 + 7 * (d->week - 1);
    while (date >= cairn__days_in_month(year, d->month))
      date -= 7;
    day = first + date;
  }
  return day * DAY_S + d->seconds - offset;
}

static int64_t year_of(int64_t seconds)
{
  int64_t year;
  int month, day;
  cairn__date_from_days(seconds / DAY_S - (seconds % DAY_S < 0), &year, &month,
                        &day);
  return year;
}

/* Writes the rule out, after the last change. */
static int apply_rule(struct builder *b, const struct rule *r)
{
  if (!r->has_summer) {
    if (b->count == 0)
      b->first_offset = r->standard;
    return 0;
  }
  /* A rule without changes before it holds in all years of the calendar. */
  int64_t last = INT64_MIN, year = -2;
  if (b->count > 0) {
    last = b->changes[b->count - 1].at;
    year = year_of(last);
  } else {
    b->first_offset = r->standard;
  }
  b->cycle_from = cairn__days_from_date(year + 402, 1, 1) * DAY_S;
  for (int64_t y = year; y <= year + 404; y++) {
    int64_t start = rule_instant(&r->start, y, r->standard);
    int64_t end = rule_instant(&r->end, y, r->summer);
    int is_start_first = start <= end;
    for (int i = 0; i < 2; i++) {
      int is_start = i == 0 ? is_start_first : !is_start_first;
      if ((is_start ? start : end) > last &&
          add_change(b, is_start ? start : end,
                     is_start ? r->summer : r->standard) != 0)
        return -1;
    }
  }
  return 0;
}

/* ---- TZif ------------------------------------------------------------------
 */

#define HEADER 44

struct header {
  uint32_t isut, isstd, leap, time, type, chars;
  size_t size; /* of what follows the header */
};

static uint32_t read_be32(const unsigned char *p)
{
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
         p[3];
}

static int64_t read_be(const unsigned char *p, size_t width)
{
  if (width == 4)
    return (int32_t)read_be32(p);
  return (int64_t)((uint64_t)read_be32(p) << 32 | read_be32(p + 4));
}

static int read_header(const struct builder *b, const unsigned char *p,
                       size_t size, size_t width, struct header *h)
{
  if (size < HEADER)
    return damaged(b, "cut off in a header");
  if (memcmp(p, "TZif", 4) != 0)
    return damaged(b, "does not begin with TZif");
  *h = (struct header){read_be32(p + 20),
                       read_be32(p + 24),
                       read_be32(p + 28),
                       read_be32(p + 32),
                       read_be32(p + 36),
                       read_be32(p + 40),
                       0};
  if (h->isut > FILE_MAX || h->isstd > FILE_MAX || h->leap > FILE_MAX ||
      h->time > FILE_MAX || h->type > FILE_MAX || h->chars > FILE_MAX)
    return damaged(b, "counts beyond its size");
  h->size = h->time * (width + 1) + (size_t)h->type * 6 + h->chars +
            h->leap * (width + 4) + h->isstd + h->isut;
  if (size - HEADER < h->size)
    return damaged(b, "cut off");
  if ((h->isut != 0 && h->isut != h->type) ||
      (h->isstd != 0 && h->isstd != h->type))
    return damaged(b, "counts that contradict each other");
  return 0;
}

static int read_types(struct builder *b, const unsigned char *types,
                      const struct header *h, int32_t offsets[256])
{
  if (h->type == 0 || h->type > 256)
    return damaged(b, "no kind of local time, or too many");
  for (size_t i = 0; i < h->type; i++) {
    const unsigned char *p = types + 6 * i;
    offsets[i] = (int32_t)read_be32(p);
    if (offsets[i] <= -OFFSET_MAX || offsets[i] >= OFFSET_MAX)
      return damaged(b, "an offset of 26 hours or more");
    if (p[4] > 1 || p[5] >= h->chars)
      return damaged(b, "a kind of local time without name or flag");
  }
  return 0;
}

/* The block after a header. */
static int read_block(struct builder *b, const unsigned char *p, size_t width,
                      const struct header *h)
{
  const unsigned char *indexes = p + h->time * width;
  const unsigned char *types = indexes + h->time;
  int32_t offsets[256] = {0};
  if (read_types(b, types, h, offsets) != 0)
    return -1;
  if (h->leap > 0)
    return cairn__fail(b->err, CAIRN_E_NOT_SUPPORTED,
                       "zone \"%s\" counts leap seconds, as nothing else does "
                       "here; take the one without \"right/\"",
                       b->name);
  b->first_offset = offsets[0];
  int64_t previous = INT64_MIN;
  for (size_t i = 0; i < h->time; i++) {
    int64_t at = read_be(p + i * width, width);
    if (indexes[i] >= h->type)
      return damaged(b, "a change to what it does not define");
    if (i > 0 && at <= previous)
      return damaged(b, "changes out of order");
    previous = at;
    if (at < -AT_MAX)
      b->first_offset = offsets[indexes[i]];
    else if (at <= AT_MAX && add_change(b, at, offsets[indexes[i]]) != 0)
      return -1;
  }
  return 0;
}

static int read_footer(struct builder *b, const unsigned char *p, size_t size)
{
  char text[128];
  struct rule r;
  const unsigned char *end =
      size > 1 && p[0] == '\n' ? memchr(p + 1, '\n', size - 1) : NULL;
  if (end == NULL)
    return damaged(b, "cut off in its last line");
  size_t length = (size_t)(end - p) - 1;
  if (length == 0)
    return 0;
  if (length >= sizeof text || memchr(p, '\0', length + 1) != NULL)
    return damaged(b, "a last line that is no rule");
  memcpy(text, p + 1, length);
  text[length] = '\0';
  if (read_rule(text, &r) != 0)
    return damaged(b, "a last line that is no rule");
  return apply_rule(b, &r);
}

static int read_file(struct builder *b, const unsigned char *p, size_t size)
{
  struct header h;
  if (read_header(b, p, size, 4, &h) != 0)
    return -1;
  unsigned char version = p[4];
  if (version == 0)
    return read_block(b, p + HEADER, 4, &h);
  if (version < '2' || version > '9')
    return damaged(b, "a version that there is not");
  p += HEADER + h.size;
  size -= HEADER + h.size;
  if (read_header(b, p, size, 8, &h) != 0 ||
      read_block(b, p + HEADER, 8, &h) != 0)
    return -1;
  return read_footer(b, p + HEADER + h.size, size - HEADER - h.size);
}

static int build(const unsigned char *data, size_t size, const char *name,
                 const struct rule *rule, struct cairn__zone **out,
                 struct cairn_error *err)
{
  struct builder b = {.name = name, .err = err, .cycle_from = INT64_MAX};
  *out = NULL;
  int rc = rule != NULL ? apply_rule(&b, rule) : read_file(&b, data, size);
  if (rc == 0)
    rc = finish(&b, out);
  cairn__free(b.changes);
  return rc;
}

int cairn__zone_parse(const void *data, size_t size, const char *name,
                      struct cairn__zone **out, struct cairn_error *err)
{
  cairn__error_clear(err);
  return build(data, size, name, NULL, out, err);
}

/* ---- the zone database
 * ------------------------------------------------------- */

static const char *database(void)
{
  const char *path = getenv("TZDIR");
  return path != NULL && path[0] == '/' ? path : DATABASE;
}

/* The whole of a regular file, freed by the caller; NULL with errno, EINVAL
 * for what is no file or too long. */
static unsigned char *read_whole(const char *path, size_t *size)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0)
    return NULL;
  struct stat st;
  unsigned char *data = NULL;
  int error = EINVAL;
  if (fstat(fd, &st) != 0) {
    error = errno;
  } else if (S_ISREG(st.st_mode) && (size_t)st.st_size <= FILE_MAX) {
    size_t wanted = (size_t)st.st_size, have = 0;
    data = cairn__malloc(wanted + 1);
    error = data == NULL ? ENOMEM : 0;
    while (data != NULL && have < wanted) {
      ssize_t n = read(fd, data + have, wanted - have);
      if (n < 0 && errno == EINTR)
        continue;
      if (n < 0) {
        error = errno;
        cairn__free(data);
        data = NULL;
      } else if (n == 0) {
        break;
      } else {
        have += (size_t)n;
      }
    }
    *size = have;
    if (data != NULL)
      data[have] = '\0';
  }
  close(fd);
  errno = error;
  return data;
}

/* The name in the database's table (tzdata.zi: "Z name ...", "L target name")
 * that is most like `name`; "" when there is none. */
static void nearest_name(const char *name, char *out, size_t size)
{
  char path[512];
  size_t length = 0, count = 0;
  enum { MOST = 2048 };
  out[0] = '\0';
  snprintf(path, sizeof path, "%s/tzdata.zi", database());
  char *table = (char *)read_whole(path, &length);
  const char **names = cairn__calloc(MOST, sizeof *names);
  char *rest = NULL;
  for (char *line = table != NULL ? strtok_r(table, "\n", &rest) : NULL;
       names != NULL && line != NULL && count < MOST;
       line = strtok_r(NULL, "\n", &rest)) {
    char *word = NULL;
    if (strncmp(line, "Z ", 2) == 0)
      word = line + 2;
    else if (strncmp(line, "L ", 2) == 0 && strchr(line + 2, ' ') != NULL)
      word = strchr(line + 2, ' ') + 1;
    if (word == NULL)
      continue;
    word[strcspn(word, " ")] = '\0';
    names[count++] = word;
  }
  if (count > 0)
    snprintf(out, size, "%s", cairn__nearest(name, names, count));
  cairn__free(names);
  cairn__free(table);
}

/* Parts of letters, digits and "_+-", not "." and "..", with '/' between. */
static int is_name(const char *name)
{
  if (strlen(name) > NAME_MAX_ || name[0] == '/' || name[0] == '\0')
    return 0;
  for (const char *p = name; *p != '\0'; p++)
    if (!is_letter(*p) && !(*p >= '0' && *p <= '9') && !strchr("_+-/.", *p))
      return 0;
  return strstr(name, "..") == NULL && strstr(name, "//") == NULL &&
         strstr(name, "./") == NULL && strstr(name, "/.") == NULL &&
         name[0] != '.' && name[strlen(name) - 1] != '/';
}

static int unknown(const char *name, struct cairn_error *err)
{
  char shown[160], near[80] = "";
  cairn__printable(name, shown, sizeof shown);
  if (strlen(name) <= 64)
    nearest_name(name, near, sizeof near);
  if (near[0] != '\0')
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "\"%s\" is no time zone of this host; did you mean "
                       "\"%s\"?",
                       shown, near);
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "\"%s\" is no time zone of this host (see %s); valid are "
                     "IANA names such as \"Europe/Berlin\", and \"UTC\"",
                     shown, database());
}

static int load_file(const char *path, const char *name,
                     struct cairn__zone **out, struct cairn_error *err)
{
  size_t size = 0;
  unsigned char *data = read_whole(path, &size);
  if (data == NULL) {
    if (errno == ENOMEM)
      return cairn__fail_memory(err);
    if (errno == ENOENT || errno == ENOTDIR || errno == EINVAL)
      return unknown(name, err);
    return cairn__fail_errno(err, errno, path, -1, "zone \"%s\"", name);
  }
  int rc = build(data, size, name, NULL, out, err);
  cairn__free(data);
  return rc;
}

static int load_name(const char *name, struct cairn__zone **out,
                     struct cairn_error *err)
{
  char path[4096];
  static const struct rule utc_rule = {0};
  if (strcmp(name, "UTC") == 0)
    return build(NULL, 0, name, &utc_rule, out, err);
  if (!is_name(name) || snprintf(path, sizeof path, "%s/%s", database(),
                                 name) >= (int)sizeof path)
    return unknown(name, err);
  return load_file(path, name, out, err);
}

static int load_host(struct cairn__zone **out, struct cairn_error *err)
{
  const char *tz = getenv("TZ"), *name = HOST_FILE;
  char target[1024];
  struct rule rule;
  if (tz != NULL) {
    tz += tz[0] == ':';
    if (tz[0] == '\0')
      return load_name("UTC", out, err);
    if (tz[0] == '/')
      return load_file(tz, tz, out, err);
    if (read_rule(tz, &rule) == 0)
      return build(NULL, 0, tz, &rule, out, err);
    return load_name(tz, out, err);
  }
  ssize_t n = readlink(HOST_FILE, target, sizeof target - 1);
  if (n > 0) {
    target[n] = '\0';
    const char *marker = strstr(target, "/zoneinfo/");
    if (marker != NULL && is_name(marker + 10))
      name = marker + 10;
  }
  if (access(HOST_FILE, F_OK) != 0)
    return load_name("UTC", out, err);
  return load_file(HOST_FILE, name, out, err);
}

int cairn__zone_load(const char *name, struct cairn__zone **out,
                     struct cairn_error *err)
{
  *out = NULL;
  cairn__error_clear(err);
  if (name == NULL || name[0] == '\0')
    return load_host(out, err);
  return load_name(name, out, err);
}
