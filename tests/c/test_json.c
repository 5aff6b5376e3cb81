/* The parser is left at the allocation that fails, whichever it is: one that
 * went on would write past a block (an escape at the end of a token whose
 * buffer could not grow) or end the process (a number cut before its
 * exponent). */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cairn.h"
#include "json.h"
#include "memory.h"

static long countdown, blocks;
static int is_lasting;

static void *counting_realloc(void *p, size_t size)
{
  if (countdown-- <= 0 && (is_lasting || countdown == -1))
    return NULL;
  void *fresh = realloc(p, size);
  blocks += p == NULL && fresh != NULL;
  return fresh;
}

static void counting_free(void *p)
{
  blocks -= p != NULL;
  free(p);
}

static int setup(void **state)
{
  (void)state;
  cairn_set_allocator(counting_realloc, counting_free);
  return 0;
}

static int teardown(void **state)
{
  (void)state;
  cairn_set_allocator(NULL, NULL);
  return 0;
}

/* Tokens of every length around those at which the buffer grows, ending in
 * what the parser looks at again. */
static char *text_of_tokens(void)
{
  static const char *const ends[] = {"\\\"", "\\u00e9", "\\ud83d\\ude00", ""};
  char *text = NULL;
  size_t length;
  FILE *f = open_memstream(&text, &length);
  assert_non_null(f);
  fputs("[", f);
  for (int n = 1; n < 140; n++) {
    fprintf(f, "{\"%0*d%s\": \"", n, 1, ends[n % 4]);
    for (int i = 0; i < n; i++)
      fputc('a' + i % 26, f);
    fprintf(f, "%s\", \"n\": 1%0*d.5e-3, \"i\": -%d},", ends[(n + 1) % 4],
            n % 40 + 1, 0, n);
  }
  fputs("[], true, null]", f);
  assert_int_equal(fclose(f), 0);
  return text;
}

static void sweep(int lasting)
{
  char *text = text_of_tokens();
  json_t *whole, *value;
  long visits = 0;

  countdown = LONG_MAX;
  is_lasting = lasting;
  whole = cairn__json_load(text, strlen(text), JSON_REJECT_DUPLICATES, NULL);
  assert_non_null(whole);
  long held = blocks;
  for (;; visits++) {
    json_error_t error;
    countdown = visits;
    value = cairn__json_load(text, strlen(text), 0, &error);
    countdown = LONG_MAX;
    if (value)
      break;
    assert_int_equal(errno, ENOMEM);
    assert_string_equal(error.text, "out of memory");
    assert_int_equal(blocks, held);
  }
  assert_true(visits > 1000);
  assert_true(json_equal(value, whole));
  json_decref(value);
  json_decref(whole);
  assert_int_equal(blocks, 0);
  free(text);
}

static void one_allocation_fails(void **state)
{
  (void)state;
  sweep(0);
}

static void all_from_one_on_fail(void **state)
{
  (void)state;
  sweep(1);
}

/* Whichever allocation fails, what is written is whole or is not there. */
static void what_is_written_lacks_nothing(void **state)
{
  (void)state;
  char *text = text_of_tokens(), *whole, *again;
  long visits = 0;

  is_lasting = 0;
  countdown = LONG_MAX;
  json_t *value = cairn__json_load(text, strlen(text), 0, NULL);
  assert_non_null(value);
  long held = blocks;
  whole = cairn__json_dump(value, JSON_COMPACT);
  assert_non_null(whole);
  assert_true(strlen(whole) > 10000);
  for (int lasting = 0; lasting < 2; lasting++) {
    is_lasting = lasting;
    for (long n = 0;; n++) {
      countdown = n;
      again = cairn__json_dump(value, JSON_COMPACT);
      int is_done = countdown > 0;
      countdown = LONG_MAX;
      if (again)
        assert_string_equal(again, whole);
      visits += again == NULL;
      cairn_free(again);
      assert_int_equal(blocks, held + 1);
      if (is_done)
        break;
    }
  }
  assert_true(visits > 20);
  cairn_free(whole);
  json_decref(value);
  assert_int_equal(blocks, 0);
  free(text);
}

static void a_text_that_is_wrong_is_no_lack_of_memory(void **state)
{
  (void)state;
  json_error_t error;
  countdown = LONG_MAX;
  errno = ENOMEM;
  assert_null(cairn__json_load("{\"a\": [1, {}", 12, 0, &error));
  assert_int_equal(errno, 0);
  assert_int_equal(error.line, 1);
  assert_int_equal(blocks, 0);
  assert_null(cairn__json_load("1", 1, 0, NULL));
}

/* What was read of a damaged text goes at once, not in the square of its size.
 */
static void a_large_text_that_is_cut_off_is_let_go(void **state)
{
  (void)state;
  const size_t count = 400000, length = 1 + 3 * count;
  char *text = malloc(length);
  assert_non_null(text);
  countdown = LONG_MAX;
  text[0] = '[';
  for (size_t i = 0; i < count; i++)
    memcpy(text + 1 + 3 * i, "[],", 3);
  assert_null(cairn__json_load(text, length, 0, NULL));
  assert_int_equal(errno, 0);
  assert_int_equal(blocks, 0);
  free(text);
}

/* Whichever of a region's few allocations fails, nothing is left of it. */
static void a_region_is_closed_whole(void **state)
{
  (void)state;
  char *text = text_of_tokens();
  struct cairn__json_region region;
  json_t *whole, *value = NULL;
  long visits = 0;

  is_lasting = 0;
  countdown = LONG_MAX;
  whole = cairn__json_load(text, strlen(text), 0, NULL);
  assert_non_null(whole);
  long held = blocks;
  for (; !value; visits++) {
    json_error_t error;
    cairn__json_region_open(&region);
    countdown = visits;
    value = cairn__json_load_in(&region, text, strlen(text), 0, &error);
    countdown = LONG_MAX;
    if (!value) {
      assert_string_equal(error.text, "out of memory");
    } else {
      assert_true(json_equal(value, whole));
      assert_in_range(blocks - held, 1, 8); /* of thousands of values */
      json_decref(value);
    }
    cairn__json_region_close(&region);
    assert_int_equal(blocks, held);
  }
  assert_true(visits > 2);
  /* what is no JSON */
  cairn__json_region_open(&region);
  assert_null(cairn__json_load_in(&region, text, strlen(text) - 1, 0, NULL));
  assert_int_equal(errno, 0);
  cairn__json_region_close(&region);
  assert_int_equal(blocks, held);
  json_decref(whole);
  free(text);
}

/* Values of a region, of another one and of none in each other, changed as the
 * checks of specifications do. */
static void values_of_a_region_are_as_any_others(void **state)
{
  static const char first[] = "{\"a\": {\"s\": \"x\"}, \"l\": [1, [2], {}]}",
                    second[] = "[{\"deep\": [\"text\"]}]";
  (void)state;
  struct cairn__json_region outer, inner;
  json_t *value, *more, *object, *kept;
  char key[32];

  countdown = LONG_MAX;
  cairn__json_region_open(&outer);
  value = cairn__json_load_in(&outer, first, strlen(first), 0, NULL);
  assert_non_null(value);
  object = json_object_get(value, "a");
  for (int i = 0; i < 200; i++) { /* its table grows */
    snprintf(key, sizeof key, "k%d", i);
    assert_int_equal(json_object_set_new(object, key, json_integer(i)), 0);
  }
  assert_int_equal(json_string_set(json_object_get(object, "s"),
                                   "longer than it was before"),
                   0);
  assert_int_equal(json_object_del(object, "k7"), 0);
  assert_int_equal(json_array_remove(json_object_get(value, "l"), 1), 0);
  for (int i = 0; i < 50; i++)
    assert_int_equal(
        json_array_append_new(json_object_get(value, "l"), json_object()), 0);

  cairn__json_region_open(&inner);
  more = cairn__json_load_in(&inner, second, strlen(second), 0, NULL);
  assert_non_null(more);
  assert_int_equal(json_array_append(more, object), 0);
  kept = json_deep_copy(json_array_get(more, 0)); /* of none */
  json_decref(more);
  cairn__json_region_close(&inner);

  assert_int_equal(json_object_set_new(value, "kept", kept), 0);
  kept = json_incref(kept);
  assert_string_equal(json_string_value(json_object_get(object, "s")),
                      "longer than it was before");
  assert_int_equal(json_object_size(object), 200);
  json_decref(value);
  cairn__json_region_close(&outer);
  assert_string_equal(
      json_string_value(json_array_get(json_object_get(kept, "deep"), 0)),
      "text");
  json_decref(kept);
  assert_int_equal(blocks, 0);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_allocation_fails),
      cmocka_unit_test(all_from_one_on_fail),
      cmocka_unit_test(what_is_written_lacks_nothing),
      cmocka_unit_test(a_text_that_is_wrong_is_no_lack_of_memory),
      cmocka_unit_test(a_large_text_that_is_cut_off_is_let_go),
      cmocka_unit_test(a_region_is_closed_whole),
      cmocka_unit_test(values_of_a_region_are_as_any_others),
  };
  return cmocka_run_group_tests_name("json", tests, setup, teardown);
}
