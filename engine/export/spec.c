/* Specifications come from policies and from the command line, so every
 * message says what would have been right. */
#include "spec.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

#define KEYS_MAX 32

const char *cairn__json_type_text(const json_t *v)
{
  switch (json_typeof(v)) {
  case JSON_OBJECT:
    return "an object";
  case JSON_ARRAY:
    return "an array";
  case JSON_STRING:
    return "a string";
  case JSON_INTEGER:
  case JSON_REAL:
    return "a number";
  case JSON_TRUE:
  case JSON_FALSE:
    return "a boolean";
  default:
    return "null";
  }
}

static int check_names(const json_t *spec, const char *kind,
                       const struct cairn__spec_key *keys, size_t count,
                       struct cairn_error *err)
{
  const char *names[KEYS_MAX], *key;
  json_t *v;
  for (size_t i = 0; i < count; i++)
    names[i] = keys[i].name;
  json_object_foreach((json_t *)spec, key, v)
  {
    size_t i = 0;
    while (i < count && strcmp(names[i], key) != 0)
      i++;
    if (i < count)
      continue;
    char printable[200];
    return cairn__fail(err, CAIRN_E_UNKNOWN_KEY,
                       "%s: there is no key \"%s\"; did you mean \"%s\"?", kind,
                       cairn__printable(key, printable, sizeof printable),
                       cairn__nearest(key, names, count));
  }
  return 0;
}

static int check_choice(const char *kind, const struct cairn__spec_key *k,
                        const char *value, struct cairn_error *err)
{
  char list[256] = "", printable[200];
  for (size_t i = 0; k->choices[i]; i++) {
    if (strcmp(k->choices[i], value) == 0)
      return 0;
    size_t used = strlen(list);
    snprintf(list + used, sizeof list - used, "%s\"%s\"", used ? ", " : "",
             k->choices[i]);
  }
  return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                     "%s: \"%s\" must be one of %s, not \"%s\"", kind, k->name,
                     list,
                     cairn__printable(value, printable, sizeof printable));
}

static int is_strings(const json_t *v)
{
  size_t i;
  json_t *element;
  json_array_foreach(v, i, element)
  {
    if (!json_is_string(element) ||
        strlen(json_string_value(element)) != json_string_length(element))
      return 0;
  }
  return json_is_array(v);
}

/* "1d12h": numbers with units, from weeks down to seconds. */
static int text_seconds(const char *text, double *seconds)
{
  static const struct {
    char unit;
    double seconds;
  } units[] = {{'w', 604800}, {'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};
  *seconds = 0;
  if (!*text)
    return -1;
  while (*text) {
    double n = 0;
    size_t u = 0, digits = strspn(text, "0123456789");
    for (size_t i = 0; i < digits; i++)
      n = n * 10 + (text[i] - '0');
    text += digits;
    while (u < sizeof units / sizeof *units && units[u].unit != *text)
      u++;
    if (digits == 0 || digits > 9 || u == sizeof units / sizeof *units)
      return -1;
    *seconds += n * units[u].seconds;
    text++;
  }
  return 0;
}

int cairn__spec_seconds(const json_t *v, double *seconds)
{
  if (json_is_string(v))
    return text_seconds(json_string_value(v), seconds);
  *seconds = json_number_value(v);
  return json_is_number(v) && *seconds >= 0 ? 0 : -1;
}

static int has_type(int type, const json_t *v)
{
  switch (type) {
  case CAIRN__SPEC_BOOLEAN:
    return json_is_boolean(v);
  case CAIRN__SPEC_OBJECT:
    return json_is_object(v);
  case CAIRN__SPEC_INTEGER:
    return json_is_integer(v) && json_integer_value(v) >= 0;
  case CAIRN__SPEC_STRINGS:
    return is_strings(v);
  case CAIRN__SPEC_STREAM:
    return json_is_string(v) ||
           (json_is_integer(v) && json_integer_value(v) >= 0 &&
            json_integer_value(v) <= INT_MAX);
  case CAIRN__SPEC_DURATION: {
    double seconds;
    return cairn__spec_seconds(v, &seconds) == 0;
  }
  default:
    return json_is_string(v);
  }
}

static int check_value(const char *kind, const struct cairn__spec_key *k,
                       const json_t *v, struct cairn_error *err)
{
  static const char *const wanted[] = {
      "",
      "a string",
      "a boolean",
      "an object",
      "an absolute path",
      "a whole number from 0",
      "an array of strings",
      "a duration (seconds, or text such as \"30d\")",
      "an absolute path or the number of a descriptor"};
  int is_right = has_type(k->type, v);
  if (!is_right)
    return cairn__fail(err, CAIRN_E_WRONG_TYPE, "%s: \"%s\" must be %s, not %s",
                       kind, k->name, wanted[k->type],
                       cairn__json_type_text(v));
  if (!json_is_string(v))
    return 0;
  const char *text = json_string_value(v);
  if (strlen(text) != json_string_length(v))
    return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT,
                       "%s: \"%s\" must not contain a NUL character", kind,
                       k->name);
  if ((k->type == CAIRN__SPEC_ABSOLUTE || k->type == CAIRN__SPEC_STREAM) &&
      text[0] != '/') {
    char printable[1024];
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "%s: \"%s\" must be %s, not \"%s\"", kind, k->name,
                       wanted[k->type],
                       cairn__printable(text, printable, sizeof printable));
  }
  return k->choices ? check_choice(kind, k, text, err) : 0;
}

int cairn__spec_check(json_t *spec, const char *kind,
                      const struct cairn__spec_key *keys, size_t count,
                      struct cairn_error *err)
{
  if (!json_is_object(spec))
    return cairn__fail(err, CAIRN_E_WRONG_TYPE,
                       "%s: an object of settings is wanted", kind);
  if (check_names(spec, kind, keys, count, err) != 0)
    return -1;
  for (size_t i = 0; i < count; i++) {
    const struct cairn__spec_key *k = &keys[i];
    json_t *v = json_object_get(spec, k->name);
    if (json_is_null(v)) {
      json_object_del(spec, k->name);
      v = NULL;
    }
    if (v && check_value(kind, k, v, err) != 0)
      return -1;
    if (!v && k->is_required)
      return cairn__fail(err, CAIRN_E_INVALID_ARGUMENT, "%s: \"%s\" is missing",
                         kind, k->name);
    if (!v && k->fallback &&
        json_object_set_new(spec, k->name, json_string(k->fallback)) != 0)
      return cairn__fail_memory(err);
  }
  return 0;
}
