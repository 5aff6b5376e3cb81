/* The state machine's tables against literals: which state may follow which,
 * what a request gets, what a state says about a job's status. */
#include "state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cairn.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const int states[] = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 32768};

/* For each state those that may follow, 0 at the end. */
static const int successors[][9] = {
    {2, 3, 5, 6, 8, 9, 10, 11, 0},
    {3, 4, 6, 9, 10, 0},
    {4, 5, 6, 9, 10, 11, 12, 0},
    {5, 3, 6, 9, 10, 11, 0},
    {6, 7, 8, 9, 10, 32768, 0},
    {7, 0},
    {8, 0},
    {9, 0},
    {10, 0},
    {11, 3, 6, 9, 10, 0},
    {12, 4, 6, 9, 10, 0},
    {32768, 0},
};

/* Start, Suspend, Terminate, Kill, Service */
static const struct {
  int state;
  unsigned codes[5];
} requests[] = {
    {2, {4096, 0, 0, 0, 0}},
    {3, {4097, 4096, 4096, 0, 4097}},
    {4, {4097, 4096, 4096, 0, 4096}},
    {5, {4096, 4097, 4096, 0, 0}},
    {6, {4097, 4097, 4096, 0, 4097}},
    {7, {4097, 4097, 4097, 4097, 4097}},
    {8, {4097, 4097, 4097, 4097, 4097}},
    {9, {4097, 4097, 4097, 4097, 4097}},
    {10, {4097, 4097, 4097, 4097, 4097}},
    {11, {4096, 4097, 4096, 0, 4097}},
    {12, {4097, 4097, 4096, 0, 4097}},
    {32768, {4097, 4097, 4097, 4097, 4097}},
};

static int is_listed(int from, int to)
{
  for (size_t i = 0; i < COUNT(successors); i++)
    if (successors[i][0] == from)
      for (size_t k = 1; successors[i][k] != 0; k++)
        if (successors[i][k] == to)
          return 1;
  return 0;
}

static void permits_exactly_the_changes_of_the_matrix(void **state)
{
  (void)state;
  assert_int_equal(COUNT(states), COUNT(successors));
  for (size_t i = 0; i < COUNT(states); i++) {
    for (int other = -1; other <= 65537; other++) {
      if (cairn_state_can_change(states[i], other) !=
          is_listed(states[i], other))
        fail_msg("%d -> %d", states[i], other);
      if (cairn_state_can_change(other, states[i]) !=
          is_listed(other, states[i]))
        fail_msg("%d -> %d", other, states[i]);
    }
  }
}

static void permits_no_change_of_what_is_no_state(void **state)
{
  (void)state;
  static const int edges[] = {
      -2147483647 - 1, -32768, -1,    0,     1,         13,
      32767,           32769,  65535, 65536, 2147483647};
  for (size_t i = 0; i < COUNT(edges); i++)
    for (size_t k = 0; k < COUNT(edges); k++)
      assert_false(cairn_state_can_change(edges[i], edges[k]));
}

static void leaves_no_final_state(void **state)
{
  (void)state;
  for (int from = -1; from <= 65537; from++) {
    int is_final =
        from == 7 || from == 8 || from == 9 || from == 10 || from == 32768;
    assert_int_equal(cairn_state_is_final(from), is_final);
    if (is_final)
      for (size_t i = 0; i < COUNT(states); i++)
        assert_false(cairn_state_can_change(from, states[i]));
  }
}

static void answers_requests_as_the_matrix_says(void **state)
{
  (void)state;
  assert_int_equal(COUNT(requests), COUNT(states));
  for (size_t i = 0; i < COUNT(requests); i++)
    for (int request = 2; request <= 6; request++)
      if (cairn_state_request_code(requests[i].state, request) !=
          requests[i].codes[request - 2])
        fail_msg("request %d in state %d", request, requests[i].state);
}

static void refuses_requests_that_do_not_exist(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(states); i++)
    for (int request = -3; request <= 65537; request++)
      if (request < 2 || request > 6)
        assert_int_equal(cairn_state_request_code(states[i], request), 5);
  assert_int_equal(cairn_state_request_code(4, 2147483647), 5);
  assert_int_equal(cairn_state_request_code(4, -2147483647 - 1), 5);
}

static void refuses_requests_in_what_is_no_state(void **state)
{
  (void)state;
  static const int edges[] = {-1, 0, 1, 13, 32767, 32769, 65535, 2147483647};
  for (size_t i = 0; i < COUNT(edges); i++) {
    for (int request = 2; request <= 6; request++)
      assert_int_equal(cairn_state_request_code(edges[i], request), 4097);
    assert_int_equal(cairn_state_request_code(edges[i], 7), 5);
  }
}

/* A request that is accepted must be able to reach what it asks for. */
static void accepts_only_requests_that_have_a_way(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(requests); i++) {
    int from = requests[i].state;
    const unsigned *codes = requests[i].codes;
    if (codes[0] != 4097)
      assert_true(cairn_state_can_change(from, 3));
    if (codes[1] == 0)
      assert_true(cairn_state_can_change(from, 5));
    if (codes[2] != 4097)
      assert_true(from == 6 || cairn_state_can_change(from, 6));
    if (codes[3] != 4097)
      assert_true(cairn_state_can_change(from, 9));
    if (codes[4] != 4097)
      assert_true(cairn_state_can_change(from, 11));
  }
}

static void translates_return_codes_for_the_vendor(void **state)
{
  (void)state;
  static const unsigned codes[][2] = {
      {0, 0},         {1, 32770},     {2, 32771},     {3, 32772},
      {4, 32768},     {5, 32773},     {6, 32774},     {4096, 4096},
      {4097, 32775},  {4098, 4098},   {4099, 32774},  {7, 32771},
      {4095, 32771},  {4100, 32771},  {32767, 32771}, {32768, 32768},
      {32769, 32769}, {32778, 32778}, {65535, 65535},
  };
  for (size_t i = 0; i < COUNT(codes); i++)
    assert_int_equal(cairn_vendor_code(codes[i][0]), codes[i][1]);
}

struct expected {
  int state;
  struct cairn__status_flags flags;
  int operational[2], count;
  const char *status;
  int health, detailed, operating, primary;
};

static const struct expected statuses[] = {
    {2, {0}, {15}, 1, "Stopped", 5, 1, 7, 1},
    {3, {0}, {8}, 1, "Starting", 5, 1, 3, 1},
    {4, {0}, {2}, 1, "OK", 5, 1, 16, 1},
    {5, {0}, {2}, 1, "OK", 5, 1, 7, 1},
    {6, {0}, {9}, 1, "Stopping", 5, 1, 4, 1},
    {7, {0}, {2, 17}, 2, "OK", 5, 1, 8, 1},
    {8, {0}, {10}, 1, "Stopped", 5, 1, 5, 1},
    {9, {0}, {14}, 1, "Error", 15, 1, 6, 3},
    {10, {0}, {6, 17}, 2, "Error", 25, 4, 8, 3},
    {11, {0}, {11}, 1, "Service", 5, 1, 2, 1},
    {12, {0}, {4}, 1, "Stressed", 5, 2, 15, 2},
    {32768, {0}, {3, 17}, 2, "Degraded", 10, 1, 8, 2},
    /* the phases of Suspended */
    {5, {.is_waiting = 1}, {15}, 1, "Stopped", 5, 1, 7, 1},
    {5, {.is_held = 1}, {10}, 1, "Stopped", 5, 1, 7, 1},
    {5, {.is_held = 1, .is_waiting = 1}, {10}, 1, "Stopped", 5, 1, 7, 1},
    /* a run failed, the job goes on */
    {5, {.is_waiting = 1, .run_failed = 1}, {15, 6}, 2, "Stopped", 20, 1, 7, 2},
    {5, {.is_held = 1, .run_failed = 1}, {10, 6}, 2, "Stopped", 20, 1, 7, 2},
    {5,
     {.is_waiting = 1, .run_failed = 1, .is_cause_outside = 1},
     {15, 6},
     2,
     "Stopped",
     20,
     5,
     7,
     2},
    {6, {.is_killing = 1}, {9}, 1, "Stopping", 5, 1, 13, 1},
    {10, {.is_retryable = 1}, {6, 17}, 2, "Error", 20, 1, 8, 3},
    {10, {.is_cause_outside = 1}, {6, 17}, 2, "Error", 25, 5, 8, 3},
    {10,
     {.is_retryable = 1, .is_cause_outside = 1},
     {6, 17},
     2,
     "Error",
     20,
     5,
     8,
     3},
    /* flags of other states change nothing */
    {4,
     {.is_waiting = 1, .is_held = 1, .is_killing = 1, .is_retryable = 1},
     {2},
     1,
     "OK",
     5,
     1,
     16,
     1},
    {7, {.run_failed = 1, .is_held = 1}, {2, 17}, 2, "OK", 5, 1, 8, 1},
    {2, {.is_waiting = 1, .is_held = 1}, {15}, 1, "Stopped", 5, 1, 7, 1},
};

static void derives_the_status_properties(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(statuses); i++) {
    const struct expected *e = &statuses[i];
    struct cairn__status s = cairn__status_of(e->state, e->flags);
    if (s.count != e->count || s.operational_status[0] != e->operational[0] ||
        s.operational_status[1] != e->operational[1] ||
        s.health_state != e->health || s.detailed_status != e->detailed ||
        s.operating_status != e->operating || s.primary_status != e->primary)
      fail_msg("row %zu, state %d", i, e->state);
    assert_string_equal(s.status, e->status);
    assert_int_equal(s.communication_status, 2);
    for (int k = 0; k < s.count; k++) {
      assert_non_null(s.descriptions[k]);
      assert_true(strlen(s.descriptions[k]) > 0);
    }
    for (int k = s.count; k < 2; k++)
      assert_null(s.descriptions[k]);
  }
}

static void keeps_status_within_the_value_maps(void **state)
{
  (void)state;
  for (int number = -1; number <= 32770; number++) {
    struct cairn__status_flags flags = {.is_waiting = number & 1,
                                        .run_failed = number >> 1 & 1};
    struct cairn__status s = cairn__status_of(number, flags);
    static const char *const names[] = {"HealthState", "CommunicationStatus",
                                        "DetailedStatus", "OperatingStatus",
                                        "PrimaryStatus"};
    const int values[] = {s.health_state, s.communication_status,
                          s.detailed_status, s.operating_status,
                          s.primary_status};
    for (size_t i = 0; i < COUNT(names); i++) {
      const char *label =
          cairn_value_label(cairn_property_find(names[i]), values[i]);
      assert_non_null(label);
      assert_null(strstr(label, "Reserved"));
    }
    assert_in_range(s.count, 1, 2);
    assert_true(strlen(s.status) <= 10);
    int64_t n;
    assert_int_equal(
        cairn_value_number(cairn_property_find("Status"), s.status, &n), 0);
  }
}

static void says_unknown_of_what_is_no_state(void **state)
{
  (void)state;
  struct cairn__status s =
      cairn__status_of(13, (struct cairn__status_flags){0});
  assert_int_equal(s.count, 1);
  assert_int_equal(s.operational_status[0], 0);
  assert_string_equal(s.status, "Unknown");
  assert_int_equal(s.health_state, 0);
  assert_int_equal(s.primary_status, 0);
}

static void tells_causes_outside_from_the_jobs_own(void **state)
{
  (void)state;
  static const int outside[] = {CAIRN_E_DISK_FULL,       CAIRN_E_IO_ERROR,
                                CAIRN_E_SOURCE_MISSING,  CAIRN_E_NBD,
                                CAIRN_E_STORE_FAILED,    CAIRN_E_SOURCE_CHANGED,
                                CAIRN_E_DIRECTORY_LOCKED};
  static const int own[] = {CAIRN_OK,
                            CAIRN_E_INTERNAL,
                            CAIRN_E_SCRIPT_ERROR,
                            CAIRN_E_NO_MEMORY,
                            CAIRN_E_TERMINATED,
                            CAIRN_E_INVALID_ARGUMENT,
                            -1,
                            60000};
  for (size_t i = 0; i < COUNT(outside); i++)
    assert_true(cairn__cause_is_outside(outside[i]));
  for (size_t i = 0; i < COUNT(own); i++)
    assert_false(cairn__cause_is_outside(own[i]));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(permits_exactly_the_changes_of_the_matrix),
      cmocka_unit_test(permits_no_change_of_what_is_no_state),
      cmocka_unit_test(leaves_no_final_state),
      cmocka_unit_test(answers_requests_as_the_matrix_says),
      cmocka_unit_test(refuses_requests_that_do_not_exist),
      cmocka_unit_test(refuses_requests_in_what_is_no_state),
      cmocka_unit_test(accepts_only_requests_that_have_a_way),
      cmocka_unit_test(translates_return_codes_for_the_vendor),
      cmocka_unit_test(derives_the_status_properties),
      cmocka_unit_test(keeps_status_within_the_value_maps),
      cmocka_unit_test(says_unknown_of_what_is_no_state),
      cmocka_unit_test(tells_causes_outside_from_the_jobs_own),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
