/* Runs: safe points, parking with several threads, ending, warnings, and the
 * mailbox. Waits are on conditions, never on time alone. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "memory.h"
#include "run.h"

#define LIMIT_MS 20000

/* Takes notices of `run` until all of `wanted` came; fails after LIMIT_MS. */
static unsigned await(struct cairn__mailbox *box, struct cairn__run *run,
                      unsigned wanted)
{
  unsigned seen = 0;

  while ((seen & wanted) != wanted) {
    struct pollfd poller = {.fd = cairn__mailbox_fd(box), .events = POLLIN};
    struct cairn__run *from;
    unsigned notices;

    assert_int_equal(poll(&poller, 1, LIMIT_MS), 1);
    while ((from = cairn__mailbox_take(box, &notices)) != NULL) {
      assert_ptr_equal(from, run);
      seen |= notices;
      cairn__run_release(from);
    }
  }
  return seen;
}

static int is_readable(struct cairn__mailbox *box)
{
  struct pollfd poller = {.fd = cairn__mailbox_fd(box), .events = POLLIN};

  return poll(&poller, 1, 0) == 1;
}

/* ---- bodies ---- */

static _Atomic int steps; /* of all threads */

static void work_until_told(struct cairn__run *run, struct cairn_error *err)
{
  cairn__run_enter(run);
  while (cairn__run_gate(run, err) == 0)
    atomic_fetch_add(&steps, 1);
  cairn__run_leave(run);
}

static void endless_main(struct cairn__run *run)
{
  work_until_told(run, &run->error);
}

static void *endless_worker(void *run)
{
  struct cairn_error ignored;

  work_until_told(run, &ignored);
  return NULL;
}

enum { WORKERS = 4 };

/* The thread of main only waits for its workers: it is not entered. */
static void many_main(struct cairn__run *run)
{
  pthread_t threads[WORKERS];

  for (int i = 0; i < WORKERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, endless_worker, run), 0);
  for (int i = 0; i < WORKERS; i++)
    pthread_join(threads[i], NULL);
  cairn__run_enter(run);
  cairn__run_gate(run, &run->error);
  cairn__run_leave(run);
}

static void warning_main(struct cairn__run *run)
{
  for (int i = 0; i < 3; i++)
    cairn__run_warn(run, "number %d\xff", i);
  run->report = json_pack("{s:i}", "answer", 42);
}

static void quick_main(struct cairn__run *run)
{
  (void)run;
}

/* Ends only when the flag is set, whatever it is asked. */
static _Atomic int is_released;

static void deaf_main(struct cairn__run *run)
{
  struct pollfd none = {.fd = -1};

  while (!atomic_load(&is_released))
    poll(&none, 0, 1);
  run->error.id = CAIRN_OK;
}

/* ---- tests ---- */

static struct cairn__run *begin(struct cairn__mailbox *box,
                                void (*main)(struct cairn__run *))
{
  struct cairn__run *run = cairn__run_new(box);

  assert_non_null(run);
  run->main = main;
  atomic_store(&steps, 0);
  assert_int_equal(cairn__run_start(run, NULL), 0);
  return run;
}

static struct cairn__mailbox *new_box(void)
{
  struct cairn__mailbox *box = cairn__mailbox_new(NULL);

  assert_non_null(box);
  return box;
}

static void await_steps(int n)
{
  struct pollfd none = {.fd = -1};

  for (int i = 0; atomic_load(&steps) < n; i++) {
    assert_true(i < LIMIT_MS);
    poll(&none, 0, 1);
  }
}

static void goes_through_the_gate_until_it_is_terminated(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, endless_main);

  (void)state;
  await_steps(1000);
  assert_false(cairn__run_is_ending(run));
  cairn__run_request(run, CAIRN__RUN_TERMINATE);
  assert_true(cairn__run_is_ending(run));
  await(box, run, CAIRN__NOTICE_DONE);
  assert_int_equal(run->error.id, CAIRN_E_TERMINATED);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void parks_when_its_only_thread_stands_in_the_gate(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, endless_main);
  int before;

  (void)state;
  await_steps(1);
  for (int i = 0; i < 50; i++) {
    cairn__run_request(run, CAIRN__RUN_SUSPEND);
    await(box, run, CAIRN__NOTICE_PARKED);
    before = atomic_load(&steps);
    assert_int_equal(atomic_load(&steps), before);
    cairn__run_request(run, CAIRN__RUN_GO);
    await_steps(before + 1);
  }
  cairn__run_request(run, CAIRN__RUN_KILL);
  await(box, run, CAIRN__NOTICE_DONE);
  assert_int_equal(run->error.id, CAIRN_E_KILLED);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void is_parked_only_when_all_threads_are(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, many_main);
  struct pollfd none = {.fd = -1};
  int before;

  (void)state;
  await_steps(1000);
  for (int i = 0; i < 20; i++) {
    cairn__run_request(run, CAIRN__RUN_SUSPEND);
    await(box, run, CAIRN__NOTICE_PARKED);
    before = atomic_load(&steps);
    poll(&none, 0, 5);
    /* A worker that had not entered yet would enter parked. */
    assert_int_equal(atomic_load(&steps), before);
    cairn__run_request(run, CAIRN__RUN_GO);
    await_steps(before + 100);
  }
  cairn__run_request(run, CAIRN__RUN_SUSPEND);
  await(box, run, CAIRN__NOTICE_PARKED);
  /* Ending wakes the parked. */
  cairn__run_request(run, CAIRN__RUN_TERMINATE);
  await(box, run, CAIRN__NOTICE_DONE);
  assert_int_equal(run->error.id, CAIRN_E_TERMINATED);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void a_withdrawn_suspend_leaves_no_parked_notice(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, endless_main);
  unsigned notices;
  struct cairn__run *from;

  (void)state;
  await_steps(1);
  for (int i = 0; i < 1000; i++) {
    cairn__run_request(run, CAIRN__RUN_SUSPEND);
    cairn__run_request(run, CAIRN__RUN_GO);
    while ((from = cairn__mailbox_take(box, &notices)) != NULL) {
      assert_int_equal(notices, 0);
      cairn__run_release(from);
    }
  }
  cairn__run_request(run, CAIRN__RUN_TERMINATE);
  await(box, run, CAIRN__NOTICE_DONE);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void suspending_a_parked_run_again_is_reported_again(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, endless_main);

  (void)state;
  await_steps(1);
  cairn__run_request(run, CAIRN__RUN_SUSPEND);
  await(box, run, CAIRN__NOTICE_PARKED);
  cairn__run_request(run, CAIRN__RUN_GO);
  cairn__run_request(run, CAIRN__RUN_SUSPEND); /* it may not have woken */
  await(box, run, CAIRN__NOTICE_PARKED);
  cairn__run_request(run, CAIRN__RUN_KILL);
  await(box, run, CAIRN__NOTICE_DONE);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void kill_is_never_replaced(void **state)
{
  struct cairn__run *run = cairn__run_new(NULL);
  struct cairn_error err;

  (void)state;
  cairn__run_request(run, CAIRN__RUN_TERMINATE);
  assert_int_equal(cairn__run_gate(run, &err), -1);
  assert_int_equal(err.id, CAIRN_E_TERMINATED);
  cairn__run_request(run, CAIRN__RUN_KILL);
  cairn__run_request(run, CAIRN__RUN_GO);
  cairn__run_request(run, CAIRN__RUN_SUSPEND);
  assert_int_equal(cairn__run_gate(run, &err), -1);
  assert_int_equal(err.id, CAIRN_E_KILLED);
  cairn__run_release(run);
}

static void warnings_are_kept_and_are_text(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, warning_main);

  (void)state;
  assert_int_equal(await(box, run, CAIRN__NOTICE_WARNING | CAIRN__NOTICE_DONE),
                   CAIRN__NOTICE_WARNING | CAIRN__NOTICE_DONE);
  assert_int_equal(json_array_size(run->warnings), 3);
  assert_string_equal(json_string_value(json_array_get(run->warnings, 2)),
                      "number 2?");
  assert_int_equal(json_integer_value(json_object_get(run->report, "answer")),
                   42);
  assert_int_equal(run->lost_warnings, 0);
  cairn__run_release(run);
  cairn__mailbox_release(box);
}

static void *no_memory(void *p, size_t n)
{
  (void)p;
  (void)n;
  return NULL;
}

static void a_warning_without_memory_is_counted(void **state)
{
  struct cairn__run *run = cairn__run_new(NULL);

  (void)state;
  cairn_set_allocator(no_memory, free);
  cairn__run_warn(run, "lost");
  cairn_set_allocator(NULL, NULL);
  assert_int_equal(run->lost_warnings, 1);
  cairn__run_release(run);
}

static void
the_mailbox_is_readable_exactly_while_it_holds_something(void **state)
{
  enum { RUNS = 40 };
  struct cairn__mailbox *box = new_box();
  struct cairn__run *runs[RUNS], *from;
  struct pollfd none = {.fd = -1};
  unsigned notices;
  int left = RUNS;

  (void)state;
  assert_false(is_readable(box));
  for (int i = 0; i < RUNS; i++)
    runs[i] = begin(box, quick_main);
  while (left > 0) {
    struct pollfd poller = {.fd = cairn__mailbox_fd(box), .events = POLLIN};

    assert_int_equal(poll(&poller, 1, LIMIT_MS), 1);
    /* One at a time: what is left keeps it readable. */
    from = cairn__mailbox_take(box, &notices);
    assert_non_null(from);
    assert_int_equal(notices, CAIRN__NOTICE_DONE);
    cairn__run_release(from);
    left--;
  }
  assert_null(cairn__mailbox_take(box, &notices));
  assert_false(is_readable(box));
  poll(&none, 0, 2);
  for (int i = 0; i < RUNS; i++)
    cairn__run_release(runs[i]);
  cairn__mailbox_release(box);
}

/* Under a leak checker this shows that nothing stays. */
static void a_run_outlives_its_owner(void **state)
{
  struct cairn__mailbox *box = new_box(), *other = new_box();
  struct cairn__run *run, *witness;

  (void)state;
  atomic_store(&is_released, 0);
  run = begin(box, deaf_main);
  cairn__run_request(run, CAIRN__RUN_KILL);
  cairn__run_release(run);
  cairn__mailbox_release(box);
  atomic_store(&is_released, 1);
  /* It must be able to report into the closed mailbox before we leave. */
  witness = begin(other, deaf_main);
  await(other, witness, CAIRN__NOTICE_DONE);
  cairn__run_release(witness);
  cairn__mailbox_release(other);
}

static void the_mailbox_drops_what_nobody_took(void **state)
{
  struct cairn__mailbox *box = new_box();
  struct cairn__run *run = begin(box, quick_main);
  struct pollfd poller = {.fd = cairn__mailbox_fd(box), .events = POLLIN};

  (void)state;
  assert_int_equal(poll(&poller, 1, LIMIT_MS), 1);
  cairn__mailbox_release(box);
  cairn__run_release(run);
}

static void run_here_needs_no_mailbox(void **state)
{
  struct cairn__run *run = cairn__run_new(NULL);

  (void)state;
  run->main = warning_main;
  cairn__run_here(run);
  assert_int_equal(json_array_size(run->warnings), 3);
  cairn__run_release(run);
}

static void knows_utf8(void **state)
{
  static const struct {
    const char *text, *cleaned;
  } cases[] = {
      {"plain", "plain"},
      {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
      {"\xe2\x82\xac\xf0\x9f\x98\x80", "\xe2\x82\xac\xf0\x9f\x98\x80"},
      {"\xff", "?"},
      {"a\xc3", "a?"},         /* cut */
      {"\xc0\xaf", "??"},      /* overlong */
      {"\xed\xa0\x80", "???"}, /* a surrogate */
      {"\xf4\x90\x80\x80", "????"},
      {"\x80x", "?x"},
  };

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char text[32];

    snprintf(text, sizeof text, "%s", cases[i].text);
    assert_int_equal(cairn__utf8_is_valid(text, strlen(text)),
                     strcmp(cases[i].text, cases[i].cleaned) == 0);
    cairn__utf8_clean(text);
    assert_string_equal(text, cases[i].cleaned);
  }
  assert_false(cairn__utf8_is_valid("a\0b", 3));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(goes_through_the_gate_until_it_is_terminated),
      cmocka_unit_test(parks_when_its_only_thread_stands_in_the_gate),
      cmocka_unit_test(is_parked_only_when_all_threads_are),
      cmocka_unit_test(a_withdrawn_suspend_leaves_no_parked_notice),
      cmocka_unit_test(suspending_a_parked_run_again_is_reported_again),
      cmocka_unit_test(kill_is_never_replaced),
      cmocka_unit_test(warnings_are_kept_and_are_text),
      cmocka_unit_test(a_warning_without_memory_is_counted),
      cmocka_unit_test(
          the_mailbox_is_readable_exactly_while_it_holds_something),
      cmocka_unit_test(a_run_outlives_its_owner),
      cmocka_unit_test(the_mailbox_drops_what_nobody_took),
      cmocka_unit_test(run_here_needs_no_mailbox),
      cmocka_unit_test(knows_utf8),
  };

  return cmocka_run_group_tests_name("run", tests, NULL, NULL);
}
