/* The class as tables: properties.def and values.def, expanded once. All of it
 * is constant; nothing here allocates or locks.
 *
 * values.def is included several times, each time for one kind of its entries:
 * the labels of a map, its reserved ranges, and the list of maps. */
#include "cairn.h"

#include <string.h>

#include "cim.h"
#include "error.h"

/* ---- value maps -------------------------------------------------------- */

/* clang-format off */
#define CAIRN_VALUES_BEGIN(map)                                                \
  static const struct cairn_value_label map##_values[] = {
#define CAIRN_VALUE(number, label) {number, label},
#define CAIRN_VALUES_END(map) };
#include "cairn/values.def"

/* Numbers that a map sets aside. label NULL ends the list. */
struct reserved {
  int64_t first, last;
  const char *label;
};

#define CAIRN_VALUES_BEGIN(map)                                                \
  static const struct reserved map##_reserved[] = {
#define CAIRN_RESERVED(first, last, label) {first, last, label},
#define CAIRN_VALUES_END(map) {0, 0, NULL}};
#include "cairn/values.def"
/* clang-format on */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const struct {
  const char *name;
  const struct cairn_value_label *values;
  size_t count;
} maps[] = {
#define CAIRN_VALUES_BEGIN(map) {#map, map##_values, COUNT(map##_values)},
#include "cairn/values.def"
};

const struct cairn_value_label *cairn_value_map(const char *name, size_t *count)
{
  for (size_t i = 0; i < COUNT(maps); i++) {
    if (strcmp(maps[i].name, name) == 0) {
      *count = maps[i].count;
      return maps[i].values;
    }
  }
  *count = 0;
  return NULL;
}

/* ---- properties -------------------------------------------------------- */

/* the words of properties.def */
enum {
  READ = 0,
  WRITE = 1,
  ARRAY = 2,
  KEY = 4,
  REQUIRED = 8,
  DEPRECATED = 16,
  INTERVAL = 32
};
#define MANAGED_ELEMENT        "CIM_ManagedElement"
#define MANAGED_SYSTEM_ELEMENT "CIM_ManagedSystemElement"
#define JOB                    "CIM_Job"
#define CONCRETE_JOB           "CIM_ConcreteJob"
#define OWN                    "Msvm_CollectionReferencePointExportJob"
#define CAIRN                  "Cairn"

/* the map "none" */
#define none_values   NULL
#define none_reserved NULL
#define none_count    0
enum {
#define CAIRN_VALUES_BEGIN(map) map##_count = COUNT(map##_values),
#include "cairn/values.def"
};

static const struct cairn_property_info properties[] = {
#define CAIRN_PROPERTY(text, TYPE, flags, default_value, low, high, length,    \
                       map, from, what)                                        \
  {.id = CAIRN_PROPERTY_##text,                                                \
   .name = #text,                                                              \
   .type = CAIRN_TYPE_##TYPE,                                                  \
   .is_array = ((flags)&ARRAY) != 0,                                           \
   .is_writable = ((flags)&WRITE) != 0,                                        \
   .is_key = ((flags)&KEY) != 0,                                               \
   .is_required = ((flags)&REQUIRED) != 0,                                     \
   .is_deprecated = ((flags)&DEPRECATED) != 0,                                 \
   .is_addition = CAIRN_PROPERTY_##text > CAIRN_PROPERTY_CLASS_COUNT,          \
   .is_interval = ((flags)&INTERVAL) != 0,                                     \
   .default_text = (default_value),                                            \
   .has_range = (low) != (high),                                               \
   .min = (low),                                                               \
   .max = (high),                                                              \
   .max_length = (length),                                                     \
   .values = map##_values,                                                     \
   .value_count = map##_count,                                                 \
   .origin = (from),                                                           \
   .description = (what)},
#include "cairn/properties.def"
#undef CAIRN_PROPERTY
};

static const struct reserved *const reserved_of[CAIRN_PROPERTY_END] = {
#define CAIRN_PROPERTY(text, type, flags, default_value, low, high, length,    \
                       map, ...)                                               \
  [CAIRN_PROPERTY_##text] = map##_reserved,
#include "cairn/properties.def"
#undef CAIRN_PROPERTY
};

static const char *const names[] = {
#define CAIRN_PROPERTY(text, ...) #text,
#include "cairn/properties.def"
#undef CAIRN_PROPERTY
};

static const uint8_t lengths[] = {
#define CAIRN_PROPERTY(text, ...) sizeof #text - 1,
#include "cairn/properties.def"
#undef CAIRN_PROPERTY
};

const struct cairn_property_info *cairn_property_at(size_t index)
{
  return index < COUNT(properties) ? &properties[index] : NULL;
}

const struct cairn_property_info *cairn_property_find(const char *name)
{
  size_t length = strlen(name);
  for (size_t i = 0; i < COUNT(names); i++)
    if (lengths[i] == length && memcmp(names[i], name, length) == 0)
      return &properties[i];
  return NULL;
}

const char *cairn_property_nearest(const char *name)
{
  return cairn__nearest(name, names, COUNT(names));
}

/* ---- labels ------------------------------------------------------------ */

const char *cairn_value_label(const struct cairn_property_info *p,
                              int64_t value)
{
  if (p->values == NULL)
    return NULL;
  /* Most maps have no holes, and then the first guess is the label. */
  size_t guess = (size_t)((uint64_t)value - (uint64_t)p->values[0].value);
  if (guess < p->value_count && p->values[guess].value == value)
    return p->values[guess].label;
  for (size_t i = 0; i < p->value_count; i++)
    if (p->values[i].value == value)
      return p->values[i].label;
  for (const struct reserved *r = reserved_of[p->id]; r->label != NULL; r++)
    if (value >= r->first && value <= r->last)
      return r->label;
  return NULL;
}

/* The next character that counts, in lower case; 0 at the end. Not tolower():
 * labels must not depend on the locale. */
static int next_letter(const char **s)
{
  while (**s == ' ' || **s == '-')
    ++*s;
  int c = (unsigned char)**s;
  if (c != 0)
    ++*s;
  return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
}

static int has_sign(const char *s)
{
  while (*s == ' ')
    s++;
  return *s == '-';
}

static int is_same_label(const char *a, const char *b)
{
  for (;;) {
    int c = next_letter(&a);
    if (c != next_letter(&b))
      return 0;
    if (c == 0)
      return 1;
  }
}

int cairn_value_number(const struct cairn_property_info *p, const char *label,
                       int64_t *out)
{
  /* In a map with negative numbers the sign tells "-Friday" from "Friday". */
  int is_signed = p->value_count > 0 && p->values[0].value < 0;
  for (size_t i = 0; i < p->value_count; i++) {
    const char *candidate = p->values[i].label;
    if (is_signed && has_sign(candidate) != has_sign(label))
      continue;
    if (is_same_label(candidate, label)) {
      *out = p->values[i].value;
      return 0;
    }
  }
  return -1;
}
