/* The kind "reference_point", its process ended before every system call in
 * turn, or the call failed: afterwards a point is there or it is not, never
 * half, and after the next change of the directory no bitmap is left in the
 * image that no point knows. qemu-img tells what is in the image.
 *
 * CAIRN_LONG=1 visits every call, otherwise so many, spread over all, as
 * CAIRN_SECONDS (default 20) allows. */
#include "scratch.h"

#include <jansson.h>

#include "error.h"
#include "index.h"
#include "kinds.h"
#include "manifest.h"
#include "run.h"

#define COLLECTION "11111111-2222-4333-8444-555555555555"
#define MACHINE    "AAAAAAAA-0000-4000-8000-000000000001"

static double seconds_now(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double budget(void)
{
  const char *text = getenv("CAIRN_SECONDS");

  return text ? atof(text) : 20;
}

static void must(const char *command)
{
  char *out;

  if (run(&out, "%s", command) != 0)
    fail_msg("%s: %s", command, out);
  free(out);
}

static json_t *new_collection(void)
{
  char path[512];

  snprintf(path, sizeof path, "%s/a.qcow2", scratch_path);
  return json_pack("{s:s, s:[{s:s, s:[{s:s, s:s, s:s, s:s}]}]}", "CollectionId",
                   COLLECTION, "machines", "VirtualMachineId", MACHINE, "disks",
                   "id", "vda", "path", path, "format", "qcow2", "tracker",
                   "bitmap");
}

static json_t *new_spec(const char *action, const char *point)
{
  char path[512];
  json_t *spec;

  snprintf(path, sizeof path, "%s/out", scratch_path);
  spec = json_pack("{s:s, s:s}", "action", action, "directory", path);
  if (point)
    json_object_set_new(spec, "point", json_string(point));
  if (strcmp(action, "create") == 0)
    json_object_set_new(spec, "collection", new_collection());
  return spec;
}

/* Runs it here; the error's id. `point` gets the id of a new point. */
static int act(const struct cairn__kind *kind, const struct cairn_io *io,
               json_t *spec, char point[37])
{
  static unsigned serial;
  struct cairn__run *r = cairn__run_new(NULL);
  struct cairn_error err = {0};
  int id;

  assert_non_null(r);
  if (kind->check(spec, &err) != 0)
    fail_msg("%s", err.message);
  serial++;
  r->io = io;
  r->clock = &cairn__system_clock;
  r->main = kind->main;
  r->spec = spec;
  r->number = 1;
  r->epoch = 1;
  snprintf(r->point_uuid, sizeof r->point_uuid, "%08X-0000-4000-8000-%012X",
           (unsigned)getpid(), serial);
  snprintf(r->job_uuid, sizeof r->job_uuid, "%08X-0000-4000-9000-%012X",
           (unsigned)getpid(), serial);
  snprintf(r->instance_id, sizeof r->instance_id, "Cairn:%s", r->job_uuid);
  if (point)
    snprintf(point, 37, "%s", r->point_uuid);
  cairn__run_here(r);
  id = r->error.id;
  if (id != CAIRN_OK)
    assert_true(r->error.message[0]);
  cairn__run_release(r);
  return id;
}

/* The ids in the directory: markers and points. */
static json_t *known_points(void)
{
  json_t *ids = json_object(), *index, *points, *p;
  struct cairn_error err = {0};
  size_t i;
  int fd = openat(scratch_fd, "out", O_RDONLY | O_DIRECTORY);

  if (fd < 0)
    return ids;
  if (cairn__index_read(&cairn__system_io, fd, "out", &index, &err) != 0 ||
      cairn__points_read(&cairn__system_io, "out", &points, &err) != 0)
    fail_msg("%s", err.message);
  close(fd);
  json_array_foreach(json_object_get(index, "markers"), i, p)
  {
    json_object_set_new(
        ids, json_string_value(json_object_get(p, "ReferencePointGroupId")),
        json_true());
  }
  json_array_foreach(points, i, p)
  {
    assert_null(json_object_get(p, "error"));
    json_object_set_new(
        ids, json_string_value(json_object_get(p, "ReferencePointGroupId")),
        json_true());
  }
  json_decref(index);
  json_decref(points);
  return ids;
}

/* Bitmaps of ours in the image whose points are not in `ids`. */
static size_t count_strangers(const json_t *ids, size_t *all)
{
  char *out;
  size_t n = 0;

  assert_int_equal(run(&out, "qemu-img info --output=json -f qcow2 a.qcow2"),
                   0);
  *all = 0;
  for (const char *at = out; (at = strstr(at, "\"name\": \"cairn-")) != NULL;) {
    char id[37];

    at += strlen("\"name\": \"cairn-");
    snprintf(id, sizeof id, "%.36s", at);
    n += json_object_get(ids, id) == NULL;
    ++*all;
  }
  free(out);
  return n;
}

static void begin(void)
{
  must("rm -rf out a.qcow2 && qemu-img create -q -f qcow2 a.qcow2 4M && "
       "qemu-io -f qcow2 -c 'write -P 5 0 1M' a.qcow2");
}

/* Executes it in a process of its own, which ends before the call `at`, or has
 * that call fail. 0 the fault did not come, else 1. */
static int in_child(const struct cairn__kind *kind, json_t *spec, uint64_t at,
                    int fault_kind, uint64_t *calls)
{
  int status, box[2];
  pid_t pid;

  assert_int_equal(pipe(box), 0);
  fflush(NULL);
  pid = fork();
  if (pid == 0) {
    struct cairn__fault_io fault;
    uint64_t n;

    cairn__fault_io_init(&fault, at, fault_kind, EIO);
    act(kind, &fault.io, spec, NULL);
    n = fault.calls;
    if (write(box[1], &n, sizeof n) != (ssize_t)sizeof n)
      _exit(9);
    _exit(fault.has_fired ? 10 : 0);
  }
  json_decref(spec);
  close(box[1]);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  if (calls && read(box[0], calls, sizeof *calls) != (ssize_t)sizeof *calls)
    fail_msg("the child did not say how many calls it made");
  close(box[0]);
  assert_true(WIFEXITED(status));
  assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 10 ||
              WEXITSTATUS(status) == 137);
  return WEXITSTATUS(status) != 0;
}

/* One more change of the directory; how many bitmaps are nobody's then. */
static size_t change(uint64_t at)
{
  char point[37];
  json_t *ids;
  size_t all, strangers;
  int id = act(&cairn__kind_reference, &cairn__system_io,
               new_spec("create", NULL), point);

  if (id != CAIRN_OK)
    fail_msg("after call %llu: error %d", (unsigned long long)at, id);
  ids = known_points();
  assert_non_null(json_object_get(ids, point));
  strangers = count_strangers(ids, &all);
  assert_true(all >= 2);
  json_decref(ids);
  return strangers;
}

/* What must hold after any interruption: whoever is known is whole, and the
 * next change leaves no stranger; nor the one after it, where a server of the
 * dead process had not quite ended and the image was still in use. */
static void check_after(uint64_t at)
{
  size_t strangers = change(at);

  for (int i = 0; i < 3 && strangers > 0; i++)
    strangers = change(at);
  if (strangers > 0)
    fail_msg("after call %llu: %zu bitmaps of nobody", (unsigned long long)at,
             strangers);
  must("test -z \"$(find out -maxdepth 1 -name '.partial-*' -o -maxdepth 1 "
       "-name '.removed-*' -o -maxdepth 1 -name '.cairn.index.new')\"");
  must("qemu-img check -q -f qcow2 a.qcow2");
}

/* Sweeps an action: `prepare` makes what it needs and gives its specification.
 */
static void sweep(const char *name, int fault_kind,
                  json_t *(*prepare)(char point[37]),
                  const struct cairn__kind *kind)
{
  double end = seconds_now() + budget() / 4;
  int is_long = getenv("CAIRN_LONG") != NULL;
  uint64_t calls = 0, visited = 0, at = 0;
  char point[37];

  begin();
  in_child(kind, prepare(point), 0, CAIRN__FAULT_NONE, &calls);
  assert_true(calls > 20);
  for (uint64_t i = 0; i < calls; i++) {
    /* a stride that is prime to most counts spreads what is visited */
    at = is_long ? i + 1 : i * 37 % calls + 1;
    if (!is_long && visited >= 4 && seconds_now() > end)
      break;
    begin();
    json_t *spec = prepare(point);
    in_child(kind, spec, at, fault_kind, NULL);
    check_after(at);
    visited++;
  }
  printf("# %s: %llu of %llu calls\n", name, (unsigned long long)visited,
         (unsigned long long)calls);
  assert_true(visited >= 4);
}

static json_t *prepare_create(char point[37])
{
  (void)point;
  return new_spec("create", NULL);
}

static json_t *prepare_destroy_marker(char point[37])
{
  assert_int_equal(act(&cairn__kind_reference, &cairn__system_io,
                       new_spec("create", NULL), point),
                   CAIRN_OK);
  return new_spec("destroy", point);
}

static json_t *prepare_destroy_export(char point[37])
{
  char path[512];

  snprintf(path, sizeof path, "%s/out", scratch_path);
  assert_int_equal(act(&cairn__kind_export, &cairn__system_io,
                       json_pack("{s:o, s:s}", "collection", new_collection(),
                                 "directory", path),
                       point),
                   CAIRN_OK);
  return new_spec("destroy", point);
}

static void create_when_killed(void **state)
{
  (void)state;
  sweep("create, killed", CAIRN__FAULT_KILL, prepare_create,
        &cairn__kind_reference);
}

static void create_when_a_call_fails(void **state)
{
  (void)state;
  sweep("create, EIO", CAIRN__FAULT_ERRNO, prepare_create,
        &cairn__kind_reference);
}

static void destroy_of_a_marker_when_killed(void **state)
{
  (void)state;
  sweep("destroy a marker, killed", CAIRN__FAULT_KILL, prepare_destroy_marker,
        &cairn__kind_reference);
}

static void destroy_of_an_export_when_killed(void **state)
{
  (void)state;
  sweep("destroy an export, killed", CAIRN__FAULT_KILL, prepare_destroy_export,
        &cairn__kind_reference);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(create_when_killed),
      cmocka_unit_test(create_when_a_call_fails),
      cmocka_unit_test(destroy_of_a_marker_when_killed),
      cmocka_unit_test(destroy_of_an_export_when_killed),
  };

  return cmocka_run_group_tests_name("reference points", tests, scratch_open,
                                     scratch_close);
}
