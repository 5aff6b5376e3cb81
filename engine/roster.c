/* Where the jobs are. A serial is searched in the slots, which ascend; where no
 * job was taken out it is found at once. */
#include "roster.h"

#include <string.h>

#include <uuid/uuid.h>

#include "job.h"
#include "memory.h"

static struct cairn__entry *entry_at(const struct cairn__roster *r, size_t i)
{
  return r->slots[i] & 1 ? NULL : (struct cairn__entry *)r->slots[i];
}

static uint64_t serial_at(const struct cairn__roster *r, size_t i)
{
  struct cairn__entry *entry = entry_at(r, i);

  return entry ? entry->serial : r->slots[i] >> 1;
}

int cairn__roster_open(struct cairn__roster *r)
{
  return cairn__table_init(&r->by_uuid) == 0 &&
                 cairn__table_init(&r->texts) == 0
             ? 0
             : -1;
}

void cairn__roster_free(struct cairn__roster *r)
{
  cairn__table_free(&r->by_uuid);
  cairn__table_free(&r->texts);
  cairn__free(r->slots);
  cairn__free(r->packed);
  cairn__free(r->usual);
  *r = (struct cairn__roster){0};
}

/* Takes out the slots of jobs that are gone; the array never becomes smaller.
 */
static void tidy(struct cairn__roster *r)
{
  size_t n = 0;

  for (size_t i = r->begin; i < r->end; i++) {
    if (entry_at(r, i))
      r->slots[n++] = r->slots[i];
  }
  r->begin = 0;
  r->end = n;
}

int cairn__roster_reserve(struct cairn__roster *r, size_t more)
{
  size_t capacity = r->capacity ? r->capacity : 64;
  uintptr_t *slots;

  if (r->capacity - r->end >= more)
    return 0;
  if (r->end - r->count >= r->end / 2)
    tidy(r);
  if (r->capacity - r->end >= more)
    return 0;
  while (capacity - r->end < more)
    capacity *= 2;
  slots = cairn__realloc(r->slots, capacity * sizeof *slots);
  if (!slots)
    return -1;
  r->slots = slots;
  r->capacity = capacity;
  return 0;
}

/* The slot of the first serial that is not below this one; `end`: none. */
static size_t slot_from(const struct cairn__roster *r, uint64_t serial)
{
  size_t low = r->begin, high = r->end;

  if (low < high && serial >= serial_at(r, low)) {
    uint64_t guess = serial - serial_at(r, low);

    if (guess < high - low && serial_at(r, low + guess) == serial)
      return low + guess;
  }
  while (low < high) {
    size_t middle = low + (high - low) / 2;

    if (serial_at(r, middle) < serial)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct cairn__entry *cairn__roster_find(const struct cairn__roster *r,
                                        uint64_t serial)
{
  size_t i = slot_from(r, serial);

  return i < r->end && serial_at(r, i) == serial ? entry_at(r, i) : NULL;
}

struct cairn__entry *cairn__roster_after(const struct cairn__roster *r,
                                         uint64_t serial)
{
  if (serial == UINT64_MAX)
    return NULL;
  for (size_t i = slot_from(r, serial + 1); i < r->end; i++) {
    if (entry_at(r, i))
      return entry_at(r, i);
  }
  return NULL;
}

struct cairn__entry *cairn__roster_pop(struct cairn__roster *r)
{
  while (r->end > r->begin) {
    struct cairn__entry *entry = entry_at(r, --r->end);

    if (entry) {
      r->count--;
      return entry;
    }
  }
  return NULL;
}

/* ---- UUIDs --------------------------------------------------------------- */

static uint64_t number_of(const unsigned char *p)
{
  uint64_t n = 0;

  for (int i = 0; i < 8; i++)
    n = n << 8 | p[i];
  return n;
}

void cairn__entry_set_uuid(struct cairn__entry *entry,
                           const unsigned char uuid[16])
{
  entry->by_uuid.key = number_of(uuid);
  entry->uuid_rest = number_of(uuid + 8);
}

void cairn__entry_id(const struct cairn__entry *entry, char id[48])
{
  unsigned char uuid[16];

  for (int i = 0; i < 8; i++) {
    uuid[i] = (unsigned char)(entry->by_uuid.key >> (56 - 8 * i));
    uuid[8 + i] = (unsigned char)(entry->uuid_rest >> (56 - 8 * i));
  }
  memset(id, 0, 48);
  memcpy(id, "Cairn:", 7);
  uuid_unparse_upper(uuid, id + 6);
}

struct cairn__entry *cairn__roster_of_uuid(const struct cairn__roster *r,
                                           const unsigned char uuid[16])
{
  struct cairn__link *link = NULL;

  while ((link = cairn__table_find(&r->by_uuid, number_of(uuid), link)) !=
         NULL) {
    struct cairn__entry *entry = CAIRN__OF(link, struct cairn__entry, by_uuid);

    if (entry->uuid_rest == number_of(uuid + 8))
      return entry;
  }
  return NULL;
}

/* ---- coming and going ---------------------------------------------------- */

void cairn__roster_awake(struct cairn__roster *r, struct cairn__job *j)
{
  j->awake_next = NULL;
  j->awake_prev = r->last_awake;
  if (r->last_awake)
    r->last_awake->awake_next = j;
  else
    r->first_awake = j;
  r->last_awake = j;
  r->awake++;
}

void cairn__roster_not_awake(struct cairn__roster *r, struct cairn__job *j)
{
  if (j->awake_prev)
    j->awake_prev->awake_next = j->awake_next;
  else
    r->first_awake = j->awake_next;
  if (j->awake_next)
    j->awake_next->awake_prev = j->awake_prev;
  else
    r->last_awake = j->awake_prev;
  r->awake--;
}

void cairn__roster_add(struct cairn__roster *r, struct cairn__job *j,
                       uint64_t serial)
{
  j->entry.serial = serial & ((uint64_t)-1 >> 1);
  cairn__table_add(&r->by_uuid, &j->entry.by_uuid, j->entry.by_uuid.key);
  r->slots[r->end++] = (uintptr_t)&j->entry;
  r->count++;
  cairn__roster_awake(r, j);
  r->fresh++;
}

void cairn__roster_remove(struct cairn__roster *r, struct cairn__job *j)
{
  size_t i = slot_from(r, j->entry.serial);

  cairn__roster_not_awake(r, j);
  cairn__table_remove(&r->by_uuid, &j->entry.by_uuid);
  r->slots[i] = 2 * (uintptr_t)j->entry.serial + 1;
  r->count--;
  while (r->begin < r->end && !entry_at(r, r->begin))
    r->begin++;
  if (r->begin == r->end)
    r->begin = r->end = 0;
  else if (r->end - r->begin > 2 * r->count)
    tidy(r);
}

void cairn__roster_replace(struct cairn__roster *r, struct cairn__entry *from,
                           struct cairn__entry *to)
{
  cairn__table_replace(&r->by_uuid, &from->by_uuid, &to->by_uuid);
  r->slots[slot_from(r, to->serial)] = (uintptr_t)to;
}
