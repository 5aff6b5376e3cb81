/* Jobs that sleep. Packed, a job is
 *
 *   1 byte      what it has (enum has)
 *   words       the memory of struct cairn__job, without what is below, where
 *               it differs from that of a blank job; their length before them
 *   timers      of each that is armed: 0 for the first of them, for the others
 *               1 and how much later they come, and how much later they were
 *               armed
 *   number      a bit for each of its texts
 *   texts       in their order; those that many jobs have in common as a
 *               pointer to one copy of all, the others with their length
 *
 * so that no member is ever forgotten: what nobody has thought of here goes the
 * long way. Numbers are LEB128. Objects that live as long as the engine (queue,
 * kind, zone) and the directory, of which the job is counted as one of the
 * users, stay pointers. */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <xxhash.h>

#include "engine.h"
#include "error.h"
#include "job.h"
#include "memory.h"
#include "roster.h"
#include "state.h"

size_t cairn__awake_max = 4096;

enum {
  STEPS = 8,       /* jobs that are looked at even when no other woke up */
  SHARED_MIN = 12, /* bytes of a text of which one copy is worth it */
  TIMERS = 3,
  SKIP_MAX = 3 /* words */
};

enum has {
  HAS_WALL = 1 << 0,  /* timers of the wall clock, not the monotonic one */
  HAS_TIMER = 1 << 1, /* and the next two bits: each of the three */
  HAS_DETAILS = 1 << 4,
  HAS_FAILURE = 1 << 5,
  MISSES_CODE = 1 << 6
};

/* ---- texts that jobs have in common -------------------------------------- */

struct shared {
  struct cairn__link link; /* key: hash of the text */
  uint32_t users;
  char text[];
};

/* NULL: out of memory. */
static struct shared *share(struct cairn__roster *r, const char *text,
                            size_t length)
{
  uint64_t hash = XXH3_64bits(text, length);
  struct cairn__link *link = NULL;
  struct shared *s;

  while ((link = cairn__table_find(&r->texts, hash, link)) != NULL) {
    s = CAIRN__OF(link, struct shared, link);
    if (strcmp(s->text, text) == 0 && s->users < UINT32_MAX) {
      s->users++;
      return s;
    }
  }
  s = cairn__malloc(sizeof *s + length + 1);
  if (!s)
    return NULL;
  s->users = 1;
  memcpy(s->text, text, length + 1);
  cairn__table_add(&r->texts, &s->link, hash);
  return s;
}

static void drop(struct cairn__roster *r, struct shared *s)
{
  if (--s->users > 0)
    return;
  cairn__table_remove(&r->texts, &s->link);
  cairn__free(s);
}

/* ---- bytes and numbers --------------------------------------------------- */

/* The job that is being packed, and what must be undone when it cannot be. */
struct packing {
  struct cairn_engine *engine;
  struct cairn__job *job;
  struct shared *shared[32];
  size_t shared_count;
};

/* Room for so many bytes more; 0: out of memory. */
static int make_room(struct packing *p, size_t more)
{
  struct cairn__roster *r = &p->engine->roster;
  size_t room = r->packed_room ? r->packed_room : 512;
  unsigned char *fresh;

  if (r->packed_room - r->packed_size >= more)
    return 1;
  while (room - r->packed_size < more)
    room *= 2;
  fresh = cairn__realloc(r->packed, room);
  if (!fresh)
    return 0;
  r->packed = fresh;
  r->packed_room = room;
  return 1;
}

static int put_bytes(struct packing *p, const void *bytes, size_t length)
{
  struct cairn__roster *r = &p->engine->roster;

  if (!make_room(p, length))
    return 0;
  memcpy(r->packed + r->packed_size, bytes, length);
  r->packed_size += length;
  return 1;
}

static int put_number(struct packing *p, uint64_t n)
{
  unsigned char bytes[10];
  size_t length = 0;

  for (; n > 127; n >>= 7)
    bytes[length++] = (unsigned char)((n & 127) | 128);
  bytes[length++] = (unsigned char)n;
  return put_bytes(p, bytes, length);
}

static uint64_t take_number(const unsigned char **p)
{
  uint64_t n = 0;

  for (int shift = 0;; shift += 7) {
    unsigned char c = *(*p)++;

    n |= (uint64_t)(c & 127) << shift;
    if (c < 128)
      return n;
  }
}

static int put_text(struct packing *p, const char *text)
{
  size_t length = strlen(text);

  return put_number(p, length) && put_bytes(p, text, length);
}

/* Borrowed, without a zero behind it. */
struct slice {
  const char *text;
  size_t length;
};

static struct slice take_slice(const unsigned char **p)
{
  size_t length = take_number(p);
  struct slice s = {(const char *)*p, length};

  *p += length;
  return s;
}

/* ---- the rest of the job's memory ---------------------------------------- */

enum { WORDS = sizeof(struct cairn__job) / 8, WORD_MAX = 10 };
_Static_assert(sizeof(struct cairn__job) % 8 == 0, "a job has whole words");
_Static_assert((int)WORDS < 256, "how many are left out is one byte");

static int64_t difference(int64_t a, int64_t b)
{
  return (int64_t)((uint64_t)a - (uint64_t)b);
}

static int64_t sum(int64_t a, int64_t b)
{
  return (int64_t)((uint64_t)a + (uint64_t)b);
}

/* Without what lies between its members, which may be anything. */
static void tidy_datetime(struct cairn_datetime *t)
{
  struct cairn_datetime clean;

  memset(&clean, 0, sizeof clean);
  clean.microseconds = t->microseconds;
  clean.utc_offset = t->utc_offset;
  clean.kind = t->kind;
  clean.precision = t->precision;
  memcpy(t, &clean, sizeof clean);
}

/* A copy without texts, timers and what only an awake job has; its times as
 * what has passed from one to the next, which is little, and its zone as a
 * number. */
static void strip(const struct cairn_engine *e, const struct cairn__job *j,
                  struct cairn__job *out)
{
  memcpy(out, j, sizeof *out); /* with what is between the members */
  memset(&out->entry, 0, sizeof out->entry);
  memset(&out->schedule, 0, sizeof out->schedule);
  memset(&out->until, 0, sizeof out->until);
  memset(&out->control, 0, sizeof out->control);
  out->name = out->spec = out->settings.notify = NULL;
  out->details = NULL;
  out->failure = NULL;
  out->warnings = out->report = NULL;
  out->folded_warnings = out->folded_report = NULL;
  tidy_datetime(&out->settings.scheduled);
  tidy_datetime(&out->settings.until);
  out->touched_prev = out->touched_next = NULL;
  out->awake_prev = out->awake_next = NULL;
  out->heap_index = 0;
  memset(out->instance_id, 0, sizeof out->instance_id);
  out->changed_us = difference(out->changed_us, out->submitted_us);
  if (out->due.zone) {
    uintptr_t number = cairn__zone_number(e, out->due.zone);

    memcpy(&out->due.zone, &number, sizeof number);
    /* a blank job has NEVER there */
    out->due.next_us =
        difference(out->due.next_us, out->due.after_us) ^ CAIRN__NEVER_US;
    out->due.after_us = difference(out->due.after_us, out->submitted_us);
  }
}

/* What strip() has left, in a blank job that keeps what only it has. */
static void unstrip(const struct cairn_engine *e, const uint64_t words[WORDS],
                    struct cairn__job *j)
{
  struct cairn__job blank = *j;

  memcpy(j, words, sizeof *j);
  j->entry = blank.entry;
  j->schedule = blank.schedule;
  j->until = blank.until;
  j->control = blank.control;
  cairn__entry_id(&j->entry, j->instance_id);
  j->changed_us = sum(j->changed_us, j->submitted_us);
  if (j->due.zone) {
    uintptr_t number;

    memcpy(&number, &j->due.zone, sizeof number);
    j->due.zone = cairn__zone_of_number(e, number);
    j->due.after_us = sum(j->due.after_us, j->submitted_us);
    j->due.next_us = sum(j->due.next_us ^ CAIRN__NEVER_US, j->due.after_us);
  }
}

/* The words with which those of a job are compared: what they are in a blank
 * job, in the first of the queues. */
int cairn__roster_begin(struct cairn_engine *e)
{
  struct cairn__roster *r = &e->roster;
  struct cairn__job blank, stripped;

  r->usual = cairn__malloc(sizeof blank);
  if (!r->usual)
    return -1;
  cairn__job_init(&blank);
  blank.queue = e->queues;
  strip(e, &blank, &stripped);
  memcpy(r->usual, &stripped, sizeof stripped);
  return 0;
}

/* Each word that differs: a byte with how many words before it do not (2 bits;
 * SKIP_MAX: as many as the byte that follows says), how many of its low bytes
 * are zero (3) and how many follow (3, one less), and these. */
static int put_words(struct packing *p)
{
  const uint64_t *usual = p->engine->roster.usual;
  struct cairn__job stripped;
  uint64_t words[WORDS];
  unsigned char bytes[WORDS * WORD_MAX];
  unsigned skipped = 0;
  size_t length = 0;

  strip(p->engine, p->job, &stripped);
  memcpy(words, &stripped, sizeof words);
  for (size_t i = 0; i < WORDS; i++) {
    uint64_t word = words[i] ^ usual[i];
    unsigned zeros = 0, count = 1;

    if (word == 0) {
      skipped++;
      continue;
    }
    for (; (word & 255) == 0; word >>= 8)
      zeros++;
    while (count < 8 && word >> 8 * count != 0)
      count++;
    bytes[length++] =
        (unsigned char)((skipped < SKIP_MAX ? skipped : SKIP_MAX) << 6 |
                        zeros << 3 | (count - 1));
    if (skipped >= SKIP_MAX)
      bytes[length++] = (unsigned char)skipped;
    for (unsigned k = 0; k < count; k++)
      bytes[length++] = (unsigned char)(word >> 8 * k);
    skipped = 0;
  }
  return put_number(p, length) && put_bytes(p, bytes, length);
}

static void take_words(const struct cairn_engine *e, struct cairn__job *j,
                       const unsigned char **p)
{
  struct slice s = take_slice(p);
  const unsigned char *c = (const unsigned char *)s.text, *end = c + s.length;
  uint64_t words[WORDS];
  size_t i = 0;

  memcpy(words, e->roster.usual, sizeof words);
  while (c < end) {
    unsigned head = *c++, skipped = head >> 6, zeros = head >> 3 & 7;
    uint64_t word = 0;

    if (skipped == SKIP_MAX)
      skipped = *c++;
    for (unsigned k = 0; k <= (head & 7); k++)
      word |= (uint64_t)*c++ << 8 * (k + zeros);
    i += skipped;
    words[i++] ^= word;
  }
  unstrip(e, words, j);
}

/* ---- the texts of a job -------------------------------------------------- */

enum { OF_JOB, OF_DETAILS };

struct text {
  uint8_t owner, is_shared;
  uint8_t peeked; /* enum cairn__peeked_text, or 0 */
  uint16_t offset;
};

#define JOB(member, peeked)                                                    \
  {                                                                            \
    OF_JOB, 0, peeked, offsetof(struct cairn__job, member)                     \
  }
#define DETAIL(member, peeked)                                                 \
  {                                                                            \
    OF_DETAILS, 0, peeked, offsetof(struct cairn__details, member)             \
  }
#define COMMON(member, peeked)                                                 \
  {                                                                            \
    OF_DETAILS, 1, peeked, offsetof(struct cairn__details, member)             \
  }

enum { NAMES = 2 }; /* the first ones are those of what must be there */

static const struct text texts[] = {COMMON(code, 0),
                                    COMMON(decisions, 0),
                                    JOB(name, CAIRN__PEEKED_NAME),
                                    JOB(spec, 0),
                                    JOB(settings.notify, 0),
                                    COMMON(caption, 0),
                                    COMMON(description, 0),
                                    COMMON(element_name, 0),
                                    COMMON(other_recovery, 0),
                                    DETAIL(recovery_job, 0),
                                    COMMON(zone, 0),
                                    COMMON(policy, CAIRN__PEEKED_POLICY),
                                    DETAIL(policy_key, CAIRN__PEEKED_KEY),
                                    COMMON(policy_file, 0),
                                    DETAIL(question, 0),
                                    DETAIL(answer, 0)};

#define TEXT_COUNT (sizeof texts / sizeof texts[0])

/* Behind these: values as JSON; the first two are parsed when somebody asks. */
enum { WARNINGS = TEXT_COUNT, REPORT, CHOICES, ALL_TEXTS };

static char **text_of(struct cairn__job *j, const struct text *t)
{
  char *owner = t->owner == OF_JOB ? (char *)j : (char *)j->details;

  return owner ? (char **)(void *)(owner + t->offset) : NULL;
}

static json_t **value_of(struct cairn__job *j, size_t i)
{
  return i == WARNINGS ? &j->warnings
         : i == REPORT ? &j->report
         : j->details  ? &j->details->choices
                       : NULL;
}

/* The same as text, in a job that nobody has asked for it since it slept. */
static char **folded_of(struct cairn__job *j, size_t i)
{
  return i == WARNINGS ? &j->folded_warnings
         : i == REPORT ? &j->folded_report
                       : NULL;
}

static uint64_t texts_of(struct cairn__job *j)
{
  uint64_t mask = 0;

  for (size_t i = 0; i < ALL_TEXTS; i++) {
    char **text = i < TEXT_COUNT ? text_of(j, &texts[i]) : NULL;
    json_t **value = i < TEXT_COUNT ? NULL : value_of(j, i);
    char **folded = folded_of(j, i);

    if ((text && *text) || (folded && *folded) ||
        (value && *value && (i != WARNINGS || json_array_size(*value) > 0)))
      mask |= (uint64_t)1 << i;
  }
  return mask;
}

/* One that jobs may have in common: its length and the text, when that is no
 * longer than a pointer, or a pointer, which is a larger number than that. */
static int put_common(struct packing *p, const char *text)
{
  size_t length = strlen(text);
  struct shared *s;

  if (length < SHARED_MIN)
    return put_number(p, length) && put_bytes(p, text, length);
  s = share(&p->engine->roster, text, length);
  if (!s)
    return 0;
  p->shared[p->shared_count++] = s;
  return put_number(p, (uintptr_t)s);
}

/* *shared: NULL, or what the text is in. */
static struct slice take_common(const unsigned char **p, struct shared **shared)
{
  uint64_t number = take_number(p);
  struct slice s = {(const char *)*p, number};

  *shared = NULL;
  if (number < SHARED_MIN) {
    *p += number;
    return s;
  }
  *shared = (struct shared *)(uintptr_t)number;
  return (struct slice){(*shared)->text, strlen((*shared)->text)};
}

static int put_value(struct packing *p, size_t i)
{
  char **folded = folded_of(p->job, i), *text;
  int is_well;

  if (folded && *folded)
    return put_text(p, *folded);
  text = cairn__json_dump(*value_of(p->job, i), JSON_COMPACT | JSON_ENCODE_ANY);
  is_well = text && put_text(p, text);
  cairn_free(text);
  return is_well;
}

static int put_texts(struct packing *p)
{
  struct cairn__job *j = p->job;
  uint64_t mask = texts_of(j);

  if (!put_number(p, mask))
    return 0;
  for (size_t i = 0; i < ALL_TEXTS; i++) {
    int is_well;

    if (!(mask & (uint64_t)1 << i))
      continue;
    if (i >= TEXT_COUNT)
      is_well = put_value(p, i);
    else if (texts[i].is_shared)
      is_well = put_common(p, *text_of(j, &texts[i]));
    else
      is_well = put_text(p, *text_of(j, &texts[i]));
    if (!is_well)
      return 0;
  }
  return 1;
}

static int take_texts(struct cairn__job *j, const unsigned char **p)
{
  uint64_t mask = take_number(p);

  for (size_t i = 0; i < ALL_TEXTS; i++) {
    struct shared *shared;
    struct slice s;
    void *made;

    if (!(mask & (uint64_t)1 << i))
      continue;
    s = i < TEXT_COUNT && texts[i].is_shared ? take_common(p, &shared)
                                             : take_slice(p);
    if (i < TEXT_COUNT)
      made = *text_of(j, &texts[i]) = cairn__strndup(s.text, s.length);
    else if (folded_of(j, i))
      made = *folded_of(j, i) = cairn__strndup(s.text, s.length);
    else
      made = *value_of(j, i) =
          cairn__json_load(s.text, s.length, JSON_DECODE_ANY, NULL);
    if (!made)
      return 0;
  }
  return 1;
}

/* The texts begin at `p`; those in common lose a user. */
static void leave_texts(struct cairn__roster *r, const unsigned char *p)
{
  uint64_t mask = take_number(&p);

  for (size_t i = 0; i < TEXT_COUNT; i++) {
    struct shared *shared = NULL;

    if (!(mask & (uint64_t)1 << i))
      continue;
    if (texts[i].is_shared)
      (void)take_common(&p, &shared);
    else
      (void)take_slice(&p);
    if (shared)
      drop(r, shared);
  }
}

static int put_failure(struct packing *p)
{
  const struct cairn__failure *f = p->job->failure;

  return !f || (put_number(p, (uint64_t)f->system_errno) &&
                put_number(p, (uint64_t)f->offset) && put_text(p, f->message) &&
                put_text(p, f->machine) && put_text(p, f->disk) &&
                put_text(p, f->path));
}

static void take_part(const unsigned char **p, char *out, size_t size)
{
  struct slice s = take_slice(p);

  if (s.length >= size)
    s.length = size - 1; /* it came from such an array */
  memcpy(out, s.text, s.length);
  out[s.length] = '\0';
}

static int take_failure(struct cairn__job *j, const unsigned char **p)
{
  struct cairn_error error;

  cairn__error_clear(&error);
  error.id = j->error_id;
  error.system_errno = (int)take_number(p);
  error.offset = (int64_t)take_number(p);
  take_part(p, error.message, sizeof error.message);
  take_part(p, error.machine, sizeof error.machine);
  take_part(p, error.disk, sizeof error.disk);
  take_part(p, error.path, sizeof error.path);
  cairn__job_set_error(j, &error);
  return j->failure != NULL;
}

/* ---- timers -------------------------------------------------------------- */

static struct cairn__timer *timer_of(struct cairn__job *j, int i)
{
  return i == 0 ? &j->schedule : i == 1 ? &j->until : &j->control;
}

/* The first of those that are armed, or NULL; *is_one: all on one clock. */
static struct cairn__timer *first_timer(struct cairn__job *j, int *is_one)
{
  struct cairn__timer *first = NULL;

  *is_one = 1;
  for (int i = 0; i < TIMERS; i++) {
    struct cairn__timer *t = timer_of(j, i);

    if (!t->heap)
      continue;
    if (first && t->heap != first->heap)
      *is_one = 0;
    if (!first || (t->heap == first->heap && cairn__timer_is_before(t, first)))
      first = t;
  }
  return first;
}

static int put_timers(struct packing *p, const struct cairn__timer *first)
{
  for (int i = 0; i < TIMERS; i++) {
    const struct cairn__timer *t = timer_of(p->job, i);

    if (!t->heap)
      continue;
    if (t == first
            ? !put_number(p, 0)
            : !put_number(p, 1 + (uint64_t)t->when - (uint64_t)first->when) ||
                  !put_number(p, t->order - first->order))
      return 0;
  }
  return 1;
}

/* ---- falling asleep ------------------------------------------------------ */

/* A job whose timer has come already would be woken at once. */
static int is_due(const struct cairn_engine *e, const struct cairn__timer *t)
{
  return t && t->when <=
                  (t->heap == &e->wall ? cairn__wall(e) : cairn__monotonic(e));
}

static int can_sleep(const struct cairn__job *j)
{
  return !j->touched && !j->heap && !j->is_live && !j->work && !j->taken &&
         !j->has_slot && !j->is_deciding && !j->is_start_asked &&
         (j->state == CAIRN_NEW || j->state == CAIRN_SUSPENDED ||
          cairn_state_is_final(j->state));
}

/* What the job is, into the roster's bytes; 0: out of memory. */
static int pack(struct packing *p, const struct cairn__timer *first)
{
  struct cairn__job *j = p->job;
  unsigned char has = 0;

  p->engine->roster.packed_size = 0;
  if (first && first->heap == &p->engine->wall)
    has |= HAS_WALL;
  for (int i = 0; i < TIMERS; i++) {
    if (timer_of(j, i)->heap)
      has |= (unsigned char)(HAS_TIMER << i);
  }
  if (j->details)
    has |= HAS_DETAILS;
  if (j->failure)
    has |= HAS_FAILURE;
  if (j->misses_code)
    has |= MISSES_CODE;
  return put_bytes(p, &has, 1) && put_words(p) && put_timers(p, first) &&
         put_texts(p) && put_failure(p);
}

/* 0: it stays awake. */
static int fall_asleep(struct cairn_engine *e, struct cairn__job *j)
{
  struct packing p = {.engine = e, .job = j};
  struct cairn__roster *r = &e->roster;
  struct cairn__sleeper *s = NULL;
  struct cairn__timer *first;
  int is_one;

  first = first_timer(j, &is_one);
  if (!is_one || !can_sleep(j) || is_due(e, first))
    return 0;
  if (pack(&p, first))
    s = cairn__calloc(1, sizeof *s + r->packed_size);
  if (!s) {
    while (p.shared_count > 0)
      drop(r, p.shared[--p.shared_count]);
    return 0;
  }
  s->entry = j->entry;
  s->entry.is_asleep = 1;
  s->timer.kind = CAIRN__TIMER_SLEEPER;
  memcpy(s->bytes, r->packed, r->packed_size);
  if (first) {
    r->asleep_on[first->heap == &e->wall]++;
    cairn__timer_replace(first, &s->timer);
  }
  for (int i = 0; i < TIMERS; i++)
    cairn__timer_disarm(timer_of(j, i));
  cairn__roster_replace(r, &j->entry, &s->entry);
  cairn__roster_not_awake(r, j);
  j->directory = NULL; /* the sleeper is counted as one of its jobs */
  cairn__job_free(e, j);
  return 1;
}

/* How many may be awake: those that run, stand still in a run or are queued
 * cannot sleep. */
static size_t awake_max(const struct cairn_engine *e)
{
  size_t n = cairn__awake_max + e->busy + e->work_count;

  for (const struct cairn__queue *q = e->queues; q; q = q->next)
    n += q->heap.count;
  return n;
}

void cairn__roster_rest(struct cairn_engine *e)
{
  struct cairn__roster *r = &e->roster;
  size_t steps = STEPS + 2 * r->fresh, max;

  r->fresh = 0;
  if (r->awake <= cairn__awake_max)
    return;
  max = awake_max(e);
  while (r->awake > max && steps-- > 0) {
    struct cairn__job *j = r->first_awake;

    if (fall_asleep(e, j))
      continue;
    cairn__roster_not_awake(r, j);
    cairn__roster_awake(r, j);
  }
}

void cairn__roster_rest_one(struct cairn_engine *e, struct cairn__job *j)
{
  (void)fall_asleep(e, j);
}

/* ---- waking up ----------------------------------------------------------- */

/* Where the texts begin. */
static const unsigned char *texts_at(const struct cairn__sleeper *s)
{
  const unsigned char *p = s->bytes;
  unsigned has = *p++;

  (void)take_slice(&p);
  for (int i = 0; i < TIMERS; i++) {
    if ((has & (unsigned)(HAS_TIMER << i)) && take_number(&p) != 0)
      (void)take_number(&p);
  }
  return p;
}

static int has_timer(const struct cairn__sleeper *s)
{
  return (s->bytes[0] & (HAS_TIMER * 7)) != 0;
}

/* Frees what is asleep, whose timer is not armed any more; the job, if there is
 * one, has everything else. */
static void sleeper_free(struct cairn_engine *e, struct cairn__sleeper *s)
{
  leave_texts(&e->roster, texts_at(s));
  if (has_timer(s))
    e->roster.asleep_on[(s->bytes[0] & HAS_WALL) != 0]--;
  cairn__free(s);
}

void cairn__roster_free_jobs(struct cairn_engine *e)
{
  struct cairn__roster *r = &e->roster;
  struct cairn__entry *entry;

  while ((entry = cairn__roster_pop(r)) != NULL) {
    struct cairn__job *j;

    if (entry->is_asleep) {
      sleeper_free(e, CAIRN__OF(entry, struct cairn__sleeper, entry));
      continue;
    }
    j = CAIRN__OF(entry, struct cairn__job, entry);
    j->directory = NULL; /* the engine frees them, all at once */
    cairn__job_free(e, j);
  }
  r->awake = 0;
  r->first_awake = r->last_awake = NULL;
}

/* Fills a blank job, but for its texts. */
static void unpack(const struct cairn_engine *e, const struct cairn__sleeper *s,
                   struct cairn__job *j)
{
  const unsigned char *p = s->bytes + 1;

  j->entry = s->entry;
  j->entry.is_asleep = 0;
  take_words(e, j, &p);
}

static int unpack_texts(const struct cairn__sleeper *s, struct cairn__job *j)
{
  const unsigned char *p = texts_at(s);

  if (s->bytes[0] & HAS_DETAILS) {
    j->details = cairn__calloc(1, sizeof *j->details);
    if (!j->details)
      return 0;
  }
  return take_texts(j, &p) &&
         (!(s->bytes[0] & HAS_FAILURE) || take_failure(j, &p));
}

/* There is room: see wake(). */
static void arm_timers(struct cairn_engine *e, struct cairn__sleeper *s,
                       struct cairn__job *j)
{
  struct cairn__timers *timers =
      s->bytes[0] & HAS_WALL ? &e->wall : &e->monotonic;
  const unsigned char *p = s->bytes + 1;
  int64_t when = s->timer.when;
  uint32_t order = s->timer.order;

  (void)take_slice(&p);
  for (int i = 0; i < TIMERS; i++) {
    uint64_t later;

    if (!(s->bytes[0] & (unsigned)(HAS_TIMER << i)))
      continue;
    later = take_number(&p);
    if (later == 0)
      cairn__timer_replace(&s->timer, timer_of(j, i));
    else
      cairn__timer_arm_as(timers, timer_of(j, i),
                          sum(when, (int64_t)(later - 1)),
                          order + (uint32_t)take_number(&p));
  }
}

static struct cairn__job *wake(struct cairn_engine *e, struct cairn__sleeper *s)
{
  struct cairn__job *j = cairn__job_blank();

  if (!j)
    return NULL;
  unpack(e, s, j);
  if (!unpack_texts(s, j) || cairn__engine_reserve_timers(e, 1, 0) != 0 ||
      cairn__queue_add_job(j->queue) != 0) {
    j->queue = NULL; /* both are still the sleeper's */
    j->directory = NULL;
    cairn__job_free(e, j);
    return NULL;
  }
  cairn__roster_replace(&e->roster, &s->entry, &j->entry);
  cairn__roster_awake(&e->roster, j);
  e->roster.fresh++;
  arm_timers(e, s, j);
  sleeper_free(e, s);
  return j;
}

void cairn__roster_peek(const struct cairn_engine *e,
                        const struct cairn__entry *entry,
                        struct cairn__job *out)
{
  cairn__job_init(out);
  unpack(e, CAIRN__OF(entry, struct cairn__sleeper, entry), out);
}

int cairn__roster_peek_text(const struct cairn__entry *entry,
                            enum cairn__peeked_text which, char *out,
                            size_t size)
{
  const unsigned char *p =
      texts_at(CAIRN__OF(entry, struct cairn__sleeper, entry));
  uint64_t mask = take_number(&p);

  for (size_t i = 0; i < TEXT_COUNT; i++) {
    struct shared *shared;
    struct slice s;

    if (!(mask & (uint64_t)1 << i))
      continue;
    s = texts[i].is_shared ? take_common(&p, &shared) : take_slice(&p);
    if (texts[i].peeked != which)
      continue;
    if (s.length >= size)
      return -1;
    memcpy(out, s.text, s.length);
    out[s.length] = '\0';
    return 1;
  }
  return 0;
}

struct cairn__job *cairn__roster_wake(struct cairn_engine *e,
                                      struct cairn__entry *entry)
{
  struct cairn__job *j;

  if (entry->is_asleep)
    return wake(e, CAIRN__OF(entry, struct cairn__sleeper, entry));
  j = CAIRN__OF(entry, struct cairn__job, entry);
  if (j->awake_next) { /* used last */
    cairn__roster_not_awake(&e->roster, j);
    cairn__roster_awake(&e->roster, j);
  }
  return j;
}

int cairn__roster_timer(struct cairn_engine *e, struct cairn__timer *timer)
{
  return wake(e, CAIRN__OF(timer, struct cairn__sleeper, timer)) ? 0 : -1;
}

int cairn__roster_is_roused(const struct cairn_engine *e,
                            const struct cairn__entry *entry, const char *name)
{
  const struct cairn__sleeper *s =
      CAIRN__OF(entry, struct cairn__sleeper, entry);
  const unsigned char *p;
  uint64_t mask;

  if (!(s->bytes[0] & MISSES_CODE))
    return 0;
  p = texts_at(s);
  mask = take_number(&p);
  for (size_t i = 0; i < NAMES; i++) {
    struct shared *shared;
    struct slice text;

    if (!(mask & (uint64_t)1 << i))
      continue;
    text = take_common(&p, &shared);
    if (!name && !cairn__has_code(e, text.text, text.length))
      return 0;
    if (name && strlen(name) == text.length &&
        memcmp(name, text.text, text.length) == 0)
      return 1;
  }
  return !name;
}
