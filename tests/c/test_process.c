/* Programs started for jobs: their output, their ends, their groups. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cairn.h"
#include "skip.h"

#define LIMIT 20000000 /* microseconds */

static cairn_engine *engine;

static int open_engine(void **state)
{
  (void)state;
  return cairn_engine_open(NULL, &engine, NULL);
}

static int free_engine(void **state)
{
  (void)state;
  cairn_engine_free(engine);
  return 0;
}

static int start(cairn_job job, uint64_t cookie, const char *script,
                 struct cairn_error *err)
{
  const char *argv[] = {"sh", "-c", script, NULL};
  struct cairn_process_options options = {.size = sizeof options, .argv = argv};

  return cairn_process_start(engine, job, &options, cookie, err);
}

static void start_well(cairn_job job, uint64_t cookie, const char *script)
{
  struct cairn_error err;

  if (start(job, cookie, script, &err) != 0)
    fail_msg("%s: %s", script, err.message);
}

/* Waits for the event of the process; its status. */
static int await_end(uint64_t cookie)
{
  struct cairn_event event;

  for (int64_t end = cairn_engine_monotonic(engine) + LIMIT;
       cairn_engine_monotonic(engine) < end;) {
    cairn_engine_wait(engine, 10000);
    while (cairn_engine_next_events(engine, &event, 1) == 1) {
      if (event.type == CAIRN_EVENT_PROCESS && event.cookie == cookie)
        return event.status;
    }
  }
  fail_msg("process %d did not end", (int)cookie);
  return -1;
}

static char *output_of(uint64_t cookie, int which, size_t *length)
{
  struct cairn_error err;
  char *text;

  if (cairn_process_output(engine, cookie, which, &text, length, &err) != 0)
    fail_msg("%s", err.message);
  return text;
}

static void expect_output(uint64_t cookie, int which, const char *expected)
{
  size_t length;
  char *text = output_of(cookie, which, &length);

  assert_string_equal(text, expected);
  assert_int_equal(length, strlen(expected));
  cairn_free(text);
}

/* Waits until the program has written something that begins so. */
static long await_number(uint64_t cookie)
{
  for (int64_t end = cairn_engine_monotonic(engine) + LIMIT;
       cairn_engine_monotonic(engine) < end;) {
    size_t length;
    char *text = output_of(cookie, 1, &length);
    long n = strchr(text, '\n') ? strtol(text, NULL, 10) : 0;

    cairn_free(text);
    if (n)
      return n;
    cairn_engine_wait(engine, 10000);
  }
  fail_msg("no number from process %d", (int)cookie);
  return 0;
}

static void await_gone(long pid)
{
  for (int i = 0; kill((pid_t)pid, 0) == 0; i++) {
    char path[64], state = 0;
    FILE *file;

    /* A zombie whose parent is not us answers too. */
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    file = fopen(path, "re");
    if (file) {
      if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
        state = 0;
      fclose(file);
    }
    if (state == 'Z')
      return;
    assert_true(i < LIMIT / 1000);
    poll(NULL, 0, 1);
  }
}

static cairn_job running_task(void)
{
  static const char spec[] = "{\"Name\":\"t\",\"run\":true}";
  cairn_job job;

  assert_int_equal(cairn_submit(engine, spec, strlen(spec), &job, NULL), 0);
  cairn_engine_step(engine);
  return job;
}

/* ---- tests ---- */

static void output_and_status_are_captured(void **state)
{
  (void)state;
  start_well(0, 1, "echo out; echo err >&2; exit 3");
  assert_false(cairn_engine_is_idle(engine));
  assert_int_equal(WEXITSTATUS(await_end(1)), 3);
  expect_output(1, 1, "out\n");
  expect_output(1, 2, "err\n");
  assert_true(cairn_engine_is_idle(engine));
  cairn_process_release(engine, 1);
  start_well(0, 1, "kill -TERM $$"); /* the cookie is free again */
  assert_true(WIFSIGNALED(await_end(1)));
  cairn_process_release(engine, 1);
}

static void input_environment_and_directory_are_given(void **state)
{
  static const char *const argv[] = {
      "sh", "-c", "cat; echo $A-$HOME; pwd; cat /proc/self/stat | cut -c1-1",
      NULL};
  static const char *const env[] = {"A=b c", NULL};
  char *input = malloc(300000);
  struct cairn_process_options options = {.size = sizeof options,
                                          .argv = argv,
                                          .env = env,
                                          .cwd = "/usr",
                                          .input = input,
                                          .input_length = 300000};
  size_t length;
  char *text;

  (void)state;
  memset(input, 'x', 300000);
  assert_int_equal(cairn_process_start(engine, 0, &options, 2, NULL), 0);
  assert_int_equal(await_end(2), 0);
  text = output_of(2, 1, &length);
  assert_memory_equal(text, input, 300000);
  assert_int_equal(strncmp(text + 300000, "b c-\n/usr\n", 10), 0);
  cairn_free(text);
  free(input);

  start_well(0, 3, "cat; ls /proc/self/fd | wc -l"); /* nothing inherited */
  assert_int_equal(await_end(3), 0);
  text = output_of(3, 1, &length);
  assert_int_equal(strtol(text, NULL, 10), 4); /* 0, 1, 2 and ls's own */
  cairn_free(text);
}

static void the_last_mebibyte_of_output_is_kept(void **state)
{
  size_t length;
  char *text;

  (void)state;
  start_well(0, 4,
             "i=0; while [ $i -lt 30000 ]; do "
             "printf '%099d\\n' $i; i=$((i+1)); done");
  assert_int_equal(await_end(4), 0);
  text = output_of(4, 1, &length);
  assert_int_equal(length, 1 << 20);
  assert_int_equal(strtol(text + length - 100, NULL, 10), 29999);
  assert_int_equal(strtol(text + length - 1000, NULL, 10), 29990);
  cairn_free(text);
}

static void what_cannot_start_says_why(void **state)
{
  static const char *const nobody[] = {"no-such-program-7", NULL};
  static const char *const good[] = {"true", NULL};
  static const char *const empty[] = {NULL};
  struct cairn_process_options options = {.size = sizeof options,
                                          .argv = nobody};
  struct cairn_error err;
  char *text;
  size_t length;

  (void)state;
  assert_int_equal(cairn_process_start(engine, 0, &options, 5, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  assert_int_equal(err.system_errno, ENOENT);
  assert_non_null(strstr(err.message, "no-such-program-7"));
  options.argv = good;
  options.cwd = "/no/such/directory";
  assert_int_equal(cairn_process_start(engine, 0, &options, 5, &err), -1);
  assert_non_null(strstr(err.message, "/no/such/directory"));
  options.cwd = NULL;
  options.argv = empty;
  assert_int_equal(cairn_process_start(engine, 0, &options, 5, &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_ARGUMENT);
  options.argv = good;
  assert_int_equal(cairn_process_start(engine, 4711, &options, 5, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
  options.size = 1;
  assert_int_equal(cairn_process_start(engine, 0, &options, 5, &err), -1);
  assert_int_equal(err.id, CAIRN_E_VERSION);
  assert_true(cairn_engine_is_idle(engine)); /* and no child is left */
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
  assert_int_equal(errno, ECHILD);

  start_well(0, 5, "exec sleep 100");
  assert_int_equal(start(0, 5, "true", &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
  assert_int_equal(cairn_process_output(engine, 5, 3, &text, &length, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_OUT_OF_RANGE);
  cairn_process_release(engine, 5); /* refused: it runs */
  assert_int_equal(cairn_process_signal(engine, 5, SIGKILL, &err), 0);
  assert_int_equal(WTERMSIG(await_end(5)), SIGKILL);
  cairn_process_release(engine, 5);
  assert_int_equal(cairn_process_signal(engine, 5, SIGKILL, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
}

static void a_signal_reaches_the_whole_group(void **state)
{
  long child;

  (void)state;
  start_well(0, 6, "sleep 100 & echo $!; wait");
  child = await_number(6);
  assert_int_equal(kill((pid_t)child, 0), 0);
  assert_int_equal(cairn_process_signal(engine, 6, SIGTERM, NULL), 0);
  assert_true(WIFSIGNALED(await_end(6)));
  await_gone(child);
}

static void killing_a_job_kills_its_programs(void **state)
{
  cairn_job job = running_task(), other = running_task();
  long child, stays;

  (void)state;
  start_well(job, 7, "trap '' TERM; sleep 100 & echo $!; wait; wait");
  start_well(other, 8, "echo $$; exec sleep 100");
  child = await_number(7);
  stays = await_number(8);
  /* Terminate does not touch them. */
  assert_int_equal(cairn_job_request_state_change(
                       engine, job, CAIRN_REQUEST_TERMINATE, NULL, NULL),
                   4096);
  cairn_engine_step(engine);
  assert_int_equal(kill((pid_t)child, 0), 0);
  assert_int_equal(cairn_job_kill(engine, job, -1, NULL), 0);
  assert_int_equal(WTERMSIG(await_end(7)), SIGKILL);
  await_gone(child);
  assert_int_equal(kill((pid_t)stays, 0), 0);
}

static void
descendants_of_an_ended_program_are_killed_with_the_job(void **state)
{
  cairn_job job = running_task();
  long child;

  (void)state;
  /* The leader ends; it is not reaped, so its group stays addressable. */
  start_well(job, 9, "sleep 100 & echo $!");
  assert_int_equal(await_end(9), 0);
  child = await_number(9);
  assert_int_equal(kill((pid_t)child, 0), 0);
  assert_int_equal(cairn_job_kill(engine, job, -1, NULL), 0);
  await_gone(child);
}

static void freeing_the_engine_kills_what_runs(void **state)
{
  long child;

  (void)state;
  start_well(0, 10, "trap '' TERM HUP; echo $$; while :; do sleep 1; done");
  child = await_number(10);
  assert_int_equal(kill((pid_t)child, 0), 0);
  cairn_engine_free(engine);
  engine = NULL;
  await_gone(child);
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* reaped */
  assert_int_equal(errno, ECHILD);
}

static void count_child(int number)
{
  (void)number;
}

/* Hosts catch SIGCHLD, and the end of one program interrupts the wait for
 * another. */
static void freeing_the_engine_leaves_no_zombie(void **state)
{
  struct sigaction catch = {.sa_handler = count_child}, old;

  (void)state;
  sigaction(SIGCHLD, &catch, &old);
  for (uint64_t i = 0; i < 40; i++)
    start_well(0, 200 + i, "exec sleep 100");
  cairn_engine_free(engine);
  engine = NULL;
  sigaction(SIGCHLD, &old, NULL);
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
  assert_int_equal(errno, ECHILD);
}

/* Forks until the child has this process id; 0 when it did not come about. */
static pid_t fork_as(pid_t wanted)
{
  for (int i = 0; i < 50; i++) {
    FILE *file = fopen("/proc/sys/kernel/ns_last_pid", "we");
    pid_t pid;

    if (!file)
      return 0;
    fprintf(file, "%ld", (long)wanted - 1);
    if (fclose(file) != 0)
      return 0;
    pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves it */
      setpgid(0, 0);
      for (;;)
        pause();
    }
    if (pid == wanted) {
      setpgid(pid, pid);
      return pid;
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
  }
  return 0;
}

/* A host that reaps every child frees the process id for somebody else. */
static void a_stranger_with_the_same_process_id_is_not_signalled(void **state)
{
  cairn_job job = running_task();
  struct cairn_error err;
  pid_t pid, stranger;

  (void)state;
  start_well(job, 13, "echo $$");
  pid = (pid_t)await_number(13);
  assert_int_equal(waitpid(pid, NULL, 0), pid);
  stranger = fork_as(pid);
  if (!stranger)
    skip_because("needs the right to choose a process id, and no other process "
                 "that takes it first");
  await_end(13); /* 0, or -1 when it was reaped too soon */
  assert_int_equal(cairn_process_signal(engine, 13, SIGKILL, &err), -1);
  assert_int_equal(err.system_errno, ESRCH);
  assert_int_equal(cairn_job_kill(engine, job, -1, NULL), 0);
  cairn_engine_free(engine);
  engine = NULL;
  assert_int_equal(waitpid(stranger, NULL, WNOHANG), 0); /* lives */
  kill(stranger, SIGKILL);
  waitpid(stranger, NULL, 0);
}

static void output_can_be_read_while_the_program_runs(void **state)
{
  static const char *const argv[] = {"sh", "-c", "echo 42; exec sleep 100",
                                     NULL};
  struct cairn_process_options options = {.size = sizeof options, .argv = argv};

  (void)state;
  assert_int_equal(cairn_process_start(engine, 0, &options, 11, NULL), 0);
  assert_int_equal(await_number(11), 42);
  assert_false(cairn_engine_is_idle(engine));
}

static void a_finished_job_starts_no_programs(void **state)
{
  cairn_job job = running_task();
  struct cairn_error err;

  (void)state;
  assert_int_equal(cairn_task_finish(engine, job, NULL, NULL), 0);
  assert_int_equal(start(job, 12, "true", &err), -1);
  assert_int_equal(err.id, CAIRN_E_INVALID_STATE);
}

static void many_programs_at_once(void **state)
{
  enum { COUNT = 30 };
  struct cairn_event event;
  int ended = 0;

  (void)state;
  for (uint64_t i = 0; i < COUNT; i++)
    start_well(0, 100 + i, "echo $$ >/dev/null; exit 7");
  for (int64_t end = cairn_engine_monotonic(engine) + LIMIT;
       ended < COUNT && cairn_engine_monotonic(engine) < end;) {
    cairn_engine_wait(engine, 10000);
    while (cairn_engine_next_events(engine, &event, 1) == 1) {
      assert_int_equal(event.type, CAIRN_EVENT_PROCESS);
      assert_int_equal(WEXITSTATUS(event.status), 7);
      cairn_process_release(engine, event.cookie);
      ended++;
    }
  }
  assert_int_equal(ended, COUNT);
  assert_true(cairn_engine_is_idle(engine));
}

#define TEST(name)                                                             \
  cmocka_unit_test_setup_teardown(name, open_engine, free_engine)

int main(void)
{
  const struct CMUnitTest tests[] = {
      TEST(output_and_status_are_captured),
      TEST(input_environment_and_directory_are_given),
      TEST(the_last_mebibyte_of_output_is_kept),
      TEST(what_cannot_start_says_why),
      TEST(a_signal_reaches_the_whole_group),
      TEST(killing_a_job_kills_its_programs),
      TEST(descendants_of_an_ended_program_are_killed_with_the_job),
      TEST(freeing_the_engine_kills_what_runs),
      TEST(freeing_the_engine_leaves_no_zombie),
      TEST(a_stranger_with_the_same_process_id_is_not_signalled),
      TEST(output_can_be_read_while_the_program_runs),
      TEST(a_finished_job_starts_no_programs),
      TEST(many_programs_at_once),
  };

  return cmocka_run_group_tests_name("process", tests, NULL, NULL);
}
