/* The replaceable allocator, and the clocks. */
#include "memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "cairn.h"
#include "clock.h"

static long allocations, frees, fail_at;

static void *counting_realloc(void *p, size_t size)
{
  if (size == 0) {
    fail_msg("an allocation of nothing");
    return NULL;
  }
  if (fail_at != 0 && ++allocations == fail_at)
    return NULL;
  return realloc(p, size);
}

static void counting_free(void *p)
{
  frees++;
  free(p);
}

static int restore_allocator(void **state)
{
  (void)state;
  cairn_set_allocator(NULL, NULL);
  allocations = frees = fail_at = 0;
  return 0;
}

static void gives_memory_for_any_size(void **state)
{
  (void)state;
  void *none = cairn__malloc(0);
  assert_non_null(none);
  cairn__free(none);
  cairn__free(NULL);
  char *zeros = cairn__calloc(3, 5);
  assert_non_null(zeros);
  for (int i = 0; i < 15; i++)
    assert_int_equal(zeros[i], 0);
  zeros = cairn__realloc(zeros, 0);
  assert_non_null(zeros);
  cairn__free(zeros);
}

static void refuses_sizes_that_overflow(void **state)
{
  (void)state;
  errno = 0;
  assert_null(cairn__calloc(SIZE_MAX / 2, 3));
  assert_int_equal(errno, ENOMEM);
  errno = 0;
  assert_null(cairn__malloc_aligned(SIZE_MAX - 100));
  assert_int_equal(errno, ENOMEM);
}

static void copies_strings(void **state)
{
  (void)state;
  char *a = cairn__strdup("stone");
  char *b = cairn__strndup("stone", 3);
  char *c = cairn__strndup("stone", 100);
  char *d = cairn__format("%s-%04d", "cairn", 7);
  assert_string_equal(a, "stone");
  assert_string_equal(b, "sto");
  assert_string_equal(c, "stone");
  assert_string_equal(d, "cairn-0007");
  cairn__free(a);
  cairn__free(b);
  cairn__free(c);
  cairn_free(d);
}

static void aligns_for_direct_io(void **state)
{
  (void)state;
  for (size_t size = 0; size < 20000; size += 777) {
    unsigned char *p = cairn__malloc_aligned(size);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 4096, 0);
    memset(p, 0xAB, size); /* the sanitizers watch the ends */
    cairn__free_aligned(p);
  }
  cairn__free_aligned(NULL);
}

static void uses_the_replacement_and_reports_its_failures(void **state)
{
  (void)state;
  cairn_set_allocator(counting_realloc, counting_free);
  fail_at = 1;
  errno = 0;
  assert_null(cairn__malloc(8));
  assert_int_equal(errno, ENOMEM);
  allocations = 0;
  assert_null(cairn__strdup("x"));
  allocations = 0;
  assert_null(cairn__format("%d", 1));
  allocations = 0;
  assert_null(cairn__malloc_aligned(8));
  allocations = 0;
  assert_null(cairn__calloc(1, 1));
  allocations = 0;
  assert_null(json_object());
  assert_int_equal(frees, 0);
  fail_at = 1000;
  allocations = 0;
  json_t *object = json_pack("{s:i}", "a", 1);
  assert_non_null(object);
  assert_true(allocations > 0);
  json_decref(object);
  assert_true(frees > 0);
}

static void fails_jansson_cleanly_at_every_allocation(void **state)
{
  (void)state;
  int has_succeeded = 0;
  for (long at = 1; !has_succeeded && at < 200; at++) {
    restore_allocator(state);
    cairn_set_allocator(counting_realloc, counting_free);
    fail_at = at;
    json_t *object = json_loads("{\"a\":[1,2,\"x\"]}", 0, NULL);
    char *text = object != NULL ? json_dumps(object, 0) : NULL;
    has_succeeded = text != NULL;
    cairn_free(text);
    json_decref(object);
  }
  assert_true(has_succeeded);
}

static long live;

static void *living_realloc(void *p, size_t size)
{
  void *q = counting_realloc(p, size);

  live += q && !p;
  return q;
}

static void living_free(void *p)
{
  live -= p != NULL;
  counting_free(p);
}

/* The rules of a prune on given points, which also reads and answers JSON. */
static void keeps_given_points_or_nothing_is_left(void **state)
{
  static const char given[] =
      "{\"keep\":{\"last\":1,\"weekly\":2,\"ids\":[\"6f1d0\"]},\"points\":["
      "{\"time\":\"20250301020000.000000+060\",\"id\":\"6F1D0C6A-5A\"},"
      "{\"time\":\"20250302020000.000000+060\"},"
      "{\"time\":\"20250303020000.000000+060\",\"id\":\"0000\"},"
      "{\"time\":\"20250304020000.000000+060\"}]}";
  struct cairn_error err;
  int has_succeeded = 0;

  for (long at = 1; !has_succeeded && at < 1000; at++) {
    char *out = NULL;

    restore_allocator(state);
    live = 0;
    cairn_set_allocator(living_realloc, living_free);
    fail_at = at;
    if (cairn_keep(given, sizeof given - 1, &out, &err) == 0) {
      has_succeeded = 1;
      assert_string_equal(out, "[[\"ids\"],[\"weekly\"],[],"
                               "[\"newest\",\"last\",\"weekly\"]]");
      cairn_free(out);
    } else {
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
      assert_null(out);
    }
    assert_int_equal(live, 0);
  }
  assert_true(has_succeeded);
}

static void keeps_monotonic_time_going_forward(void **state)
{
  (void)state;
  const struct cairn_clock *c = &cairn__system_clock;
  int64_t before = c->monotonic(c);
  for (int i = 0; i < 1000; i++) {
    int64_t now = c->monotonic(c);
    assert_true(now >= before);
    before = now;
  }
  assert_true(c->wall(c) > INT64_C(1600000000000000));
}

static void moves_a_virtual_clock_only_when_told(void **state)
{
  (void)state;
  struct cairn_virtual_clock v;
  cairn__virtual_clock_init(&v, 1000);
  const struct cairn_clock *c = &v.clock;
  assert_int_equal(c->wall(c), 1000);
  assert_int_equal(c->monotonic(c), 0);
  cairn__virtual_clock_advance(&v, 50);
  assert_int_equal(c->wall(c), 1050);
  assert_int_equal(c->monotonic(c), 50);
  cairn__virtual_clock_jump(&v, -500);
  assert_int_equal(c->wall(c), 550);
  assert_int_equal(c->monotonic(c), 50);
  cairn__virtual_clock_advance(&v, -10); /* time does not run backwards */
  assert_int_equal(c->wall(c), 550);
  assert_int_equal(c->monotonic(c), 50);
}

static void says_its_version(void **state)
{
  (void)state;
  assert_string_equal(cairn_version(), CAIRN_VERSION);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gives_memory_for_any_size),
      cmocka_unit_test(refuses_sizes_that_overflow),
      cmocka_unit_test(copies_strings),
      cmocka_unit_test(aligns_for_direct_io),
      cmocka_unit_test_teardown(uses_the_replacement_and_reports_its_failures,
                                restore_allocator),
      cmocka_unit_test_teardown(fails_jansson_cleanly_at_every_allocation,
                                restore_allocator),
      cmocka_unit_test_teardown(keeps_given_points_or_nothing_is_left,
                                restore_allocator),
      cmocka_unit_test(keeps_monotonic_time_going_forward),
      cmocka_unit_test(moves_a_virtual_clock_only_when_told),
      cmocka_unit_test(says_its_version),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
