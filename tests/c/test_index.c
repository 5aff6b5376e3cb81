/* The index of an export directory: the old one or the new one, whatever
 * happens, and nothing that is damaged is believed. */
#include "scratch.h"

#include "error.h"
#include "index.h"
#include "memory.h"
#include "small_export.h"

#define A "A0000000-0000-4000-8000-000000000001"
#define B "B0000000-0000-4000-8000-000000000002"
#define C "C0000000-0000-4000-8000-000000000003"

static json_t *read_index(void)
{
  json_t *index;

  MUST(cairn__index_read(IO, scratch_fd, ".", &index, &small_err));
  return index;
}

static json_t *marker(const char *id, int sequence)
{
  json_t *m = json_pack(
      "{s:s, s:s, s:n, s:s, s:i, s:s, s:i, s:{}, s:[{s:s, s:s, s:s, s:s, s:s, "
      "s:s, s:s, s:i, s:{s:i, s:s}}], s:[]}",
      "ReferencePointGroupId", id, "CollectionId", C, "ElementName",
      "InstanceID", "Cairn:" A, "sequence", sequence, "time",
      "20250101000000.000000+000", "unix_us", 1, "collection", "disks",
      "VirtualMachineId", B, "disk", "vda", "source", "/images/a.raw", "format",
      "raw", "tracker", "clone", "name", "x.raw", "directory", ".cairn.clones",
      "length", 65536, "state", "length", 65536, "identity", "v1", "files");

  assert_non_null(m);
  return m;
}

static void write_one(const char *id, int sequence)
{
  json_t *index = read_index();

  MUST(cairn__index_add_marker(index, marker(id, sequence), &small_err));
  MUST(cairn__index_write(IO, scratch_fd, ".", index, &small_err));
  json_decref(index);
}

static void is_empty_where_none_is(void **state)
{
  json_t *index = read_index();
  struct stat st;

  (void)state;
  assert_null(cairn__index_marker(index, A));
  assert_null(cairn__index_suspect(index, A));
  assert_int_equal(cairn__index_sequence(index, C), 0);
  MUST(cairn__index_write(IO, scratch_fd, ".", index, &small_err));
  assert_int_equal(fstatat(scratch_fd, CAIRN__INDEX_NAME, &st, 0), -1);
  json_decref(index);
}

static void keeps_what_is_written(void **state)
{
  struct stat st;
  json_t *index;

  (void)state;
  write_one(A, 3);
  write_one(B, 7);
  MUST(cairn__index_mark_suspect(IO, scratch_fd, ".", A, "an audit", 5,
                                 &small_err));
  MUST(cairn__index_mark_suspect(IO, scratch_fd, ".", A, "another", 6,
                                 &small_err));
  index = read_index();
  assert_non_null(cairn__index_marker(index, A));
  assert_non_null(cairn__index_marker(index, B));
  assert_int_equal(cairn__index_sequence(index, C), 7);
  assert_string_equal(cairn__index_suspect(index, A), "an audit");
  assert_int_equal(fstatat(scratch_fd, CAIRN__INDEX_NAME, &st, 0), 0);
  assert_int_equal(st.st_mode & 0777, 0600);
  json_decref(index);
  MUST(cairn__index_clear_suspect(IO, scratch_fd, ".", A, &small_err));
  index = read_index();
  assert_null(cairn__index_suspect(index, A));
  cairn__index_forget(index, B);
  assert_null(cairn__index_marker(index, B));
  json_decref(index);
  assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, 0), 0);
}

static void adds_what_is_unfinished_once(void **state)
{
  json_t *index = read_index();
  json_t *m = marker(A, 1), *disks = json_object_get(m, "disks"), *list;

  (void)state;
  for (int i = 0; i < 3; i++)
    MUST(cairn__index_add_unfinished(index, A, json_deep_copy(disks),
                                     &small_err));
  list = json_object_get(index, "unfinished");
  assert_int_equal(json_array_size(list), 1);
  assert_int_equal(
      json_array_size(json_object_get(json_array_get(list, 0), "disks")), 1);
  cairn__index_remove_unfinished(index, A);
  assert_int_equal(json_array_size(list), 0);
  json_decref(m);
  json_decref(index);
}

/* Every single bit: an error, and never another content. */
static void finds_every_flipped_bit(void **state)
{
  unsigned char *bytes;
  struct stat st;
  int fd;

  (void)state;
  write_one(A, 3);
  fd = openat(scratch_fd, CAIRN__INDEX_NAME, O_RDWR);
  assert_int_equal(fstat(fd, &st), 0);
  bytes = malloc((size_t)st.st_size);
  assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
  for (off_t i = 0; i < st.st_size; i++) {
    for (int bit = 0; bit < 8; bit++) {
      unsigned char c = bytes[i] ^ (unsigned char)(1 << bit);
      struct cairn_error err = {0};
      json_t *index;

      assert_int_equal(pwrite(fd, &c, 1, i), 1);
      assert_int_equal(cairn__index_read(IO, scratch_fd, ".", &index, &err),
                       -1);
      assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
      assert_null(index);
      assert_non_null(strstr(err.message, CAIRN__INDEX_NAME));
    }
    assert_int_equal(pwrite(fd, &bytes[i], 1, i), 1);
  }
  for (off_t n = 0; n < st.st_size; n += 7) { /* cut off anywhere */
    struct cairn_error err = {0};
    json_t *index;

    assert_int_equal(ftruncate(fd, n), 0);
    assert_int_equal(cairn__index_read(IO, scratch_fd, ".", &index, &err), -1);
  }
  free(bytes);
  close(fd);
  assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, 0), 0);
}

static void refuses_what_is_no_file(void **state)
{
  struct cairn_error err = {0};
  json_t *index;

  (void)state;
  assert_int_equal(symlinkat("elsewhere", scratch_fd, CAIRN__INDEX_NAME), 0);
  assert_int_equal(cairn__index_read(IO, scratch_fd, ".", &index, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, 0), 0);
  assert_int_equal(mkdirat(scratch_fd, CAIRN__INDEX_NAME, 0700), 0);
  assert_int_equal(cairn__index_read(IO, scratch_fd, ".", &index, &err), -1);
  assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, AT_REMOVEDIR), 0);
}

/* What a reader would refuse is not written. */
static void refuses_to_write_nonsense(void **state)
{
  static const struct {
    const char *name;
    const char *value;
  } wrong[] = {{"ReferencePointGroupId", "\"x\""},
               {"CollectionId", "null"},
               {"sequence", "\"1\""},
               {"collection", "[]"},
               {"disks", "[{}]"},
               {"files", "[1]"},
               {"time", "null"},
               {"disks", "[null]"}};

  (void)state;
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    struct cairn_error err = {0};
    json_t *index = read_index(), *m = marker(A, 1);
    struct stat st;

    json_object_set_new(m, wrong[i].name,
                        json_loads(wrong[i].value, JSON_DECODE_ANY, NULL));
    MUST(cairn__index_add_marker(index, m, &small_err));
    assert_int_equal(cairn__index_write(IO, scratch_fd, ".", index, &err), -1);
    assert_int_equal(err.id, CAIRN_E_INTERNAL);
    assert_int_equal(fstatat(scratch_fd, CAIRN__INDEX_NAME, &st, 0), -1);
    json_decref(index);
  }
}

/* Every call fails in turn: the old index or the new one is there, nothing else
 * is, and the write that follows succeeds. */
static void is_old_or_new_when_a_call_fails(void **state)
{
  int seen_old = 0, seen_new = 0;

  (void)state;
  for (uint64_t at = 1;; at++) {
    struct cairn__fault_io fault;
    struct cairn_error err = {0};
    json_t *index, *read;
    struct stat st;
    int result, has_b;

    write_one(A, 1);
    index = read_index();
    MUST(cairn__index_add_marker(index, marker(B, 2), &small_err));
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_ERRNO, EIO);
    result = cairn__index_write(&fault.io, scratch_fd, ".", index, &err);
    read = read_index();
    assert_non_null(cairn__index_marker(read, A));
    has_b = cairn__index_marker(read, B) != NULL;
    seen_old |= !has_b;
    seen_new |= has_b && result != 0;
    if (result == 0)
      assert_true(has_b);
    json_decref(read);
    MUST(cairn__index_write(IO, scratch_fd, ".", index, &small_err));
    assert_int_equal(fstatat(scratch_fd, CAIRN__INDEX_NAME ".new", &st, 0), -1);
    json_decref(index);
    assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, 0), 0);
    if (!fault.has_fired)
      break;
  }
  assert_true(seen_old && seen_new);
}

/* The process ends before every call in turn. */
static void is_old_or_new_when_killed(void **state)
{
  uint64_t killed = 0;

  (void)state;
  for (uint64_t at = 1;; at++) {
    int status;
    json_t *index;
    pid_t pid;

    write_one(A, 1);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
      struct cairn__fault_io fault;
      struct cairn_error err = {0};

      index = read_index();
      if (cairn__index_add_marker(index, marker(B, 2), &err) != 0)
        _exit(9);
      cairn__fault_io_init(&fault, at, CAIRN__FAULT_KILL, 0);
      _exit(cairn__index_write(&fault.io, scratch_fd, ".", index, &err) ? 8
                                                                        : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    index = read_index();
    assert_non_null(cairn__index_marker(index, A));
    if (WEXITSTATUS(status) == 0)
      assert_non_null(cairn__index_marker(index, B));
    json_decref(index);
    write_one(C, 3); /* over whatever is left */
    index = read_index();
    assert_non_null(cairn__index_marker(index, C));
    json_decref(index);
    assert_int_equal(unlinkat(scratch_fd, CAIRN__INDEX_NAME, 0), 0);
    if (WEXITSTATUS(status) == 0)
      break;
    assert_int_equal(WEXITSTATUS(status), 137);
    killed++;
  }
  assert_true(killed > 5);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(is_empty_where_none_is),
      cmocka_unit_test(keeps_what_is_written),
      cmocka_unit_test(adds_what_is_unfinished_once),
      cmocka_unit_test(finds_every_flipped_bit),
      cmocka_unit_test(refuses_what_is_no_file),
      cmocka_unit_test(refuses_to_write_nonsense),
      cmocka_unit_test(is_old_or_new_when_a_call_fails),
      cmocka_unit_test(is_old_or_new_when_killed),
  };

  return cmocka_run_group_tests_name("index", tests, scratch_open,
                                     scratch_close);
}
