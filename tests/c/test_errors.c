/* The error table and the filling of error records. */
#include "error.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- the table ----------------------------------------------------------- */

/* ErrorCodes are stored, sent and compared by programs: these rows may never
 * change. */
static const struct {
  int id;
  const char *code;
  int exit_code;
} known[] = {
    {1, "internal", 1},
    {2, "no_memory", 3},
    {3, "invalid_argument", 2},
    {4, "unknown_key", 2},
    {5, "wrong_type", 2},
    {6, "out_of_range", 2},
    {7, "read_only", 2},
    {8, "no_such_property", 2},
    {9, "not_found", 2},
    {10, "ambiguous", 2},
    {11, "exists", 2},
    {12, "duplicate_id", 2},
    {13, "not_supported", 2},
    {14, "invalid_state", 2},
    {15, "busy", 3},
    {16, "timeout", 1},
    {17, "permission_denied", 3},
    {18, "io_error", 3},
    {19, "disk_full", 3},
    {20, "source_missing", 2},
    {21, "source_in_use", 3},
    {22, "source_changed", 1},
    {23, "source_corrupt", 1},
    {24, "source_format", 2},
    {25, "backing_file", 2},
    {26, "bad_path", 2},
    {27, "target_in_source", 2},
    {28, "directory_locked", 3},
    {29, "not_an_export", 2},
    {30, "export_corrupt", 1},
    {31, "version", 3},
    {32, "helper_missing", 3},
    {33, "helper_failed", 3},
    {34, "nbd", 3},
    {35, "script_syntax", 2},
    {36, "script_error", 2},
    {37, "terminated", 1},
    {38, "killed", 1},
    {39, "store_locked", 3},
    {40, "store_failed", 3},
    {41, "closed", 2},
    {42, "digest_mismatch", 1},
    {43, "warning", 0},
    {44, "job_failed", 1},
    {45, "source_differs", 1},
};

static void keeps_the_known_codes(void **state)
{
  (void)state;
  for (size_t i = 0; i < COUNT(known); i++) {
    const struct cairn_error_info *info = cairn_error_info(known[i].id);
    assert_non_null(info);
    assert_int_equal(info->id, known[i].id);
    assert_string_equal(info->code, known[i].code);
    assert_int_equal(info->exit_code, known[i].exit_code);
    char message_id[16];
    snprintf(message_id, sizeof message_id, "CAIRN%04d", known[i].id);
    assert_string_equal(info->message_id, message_id);
  }
}

static void has_the_causes_that_were_decided(void **state)
{
  (void)state;
  static const struct {
    int id, type, cause, status;
  } rows[] = {
      {CAIRN_E_DISK_FULL, 6, 50, 1},
      {CAIRN_E_IO_ERROR, 5, 24, 1},
      {CAIRN_E_SOURCE_MISSING, 9, 73, 6},
      {CAIRN_E_VERSION, 4, 58, 1},
      {CAIRN_E_EXPORT_CORRUPT, 4, 10, 1},
      {CAIRN_E_SCRIPT_ERROR, 4, 48, 1},
      {CAIRN_E_NO_MEMORY, 8, 33, 1},
      {CAIRN_E_TIMEOUT, 3, 111, 1},
      {CAIRN_E_PERMISSION_DENIED, 7, 65, 2},
      {CAIRN_E_TERMINATED, 1, 1, 1},
      {CAIRN_E_KILLED, 1, 1, 1},
      {CAIRN_E_WRONG_TYPE, 4, 8, 13},
      {CAIRN_E_NO_SUCH_PROPERTY, 4, 8, 12},
  };
  for (size_t i = 0; i < COUNT(rows); i++) {
    const struct cairn_error_info *info = cairn_error_info(rows[i].id);
    assert_non_null(info);
    assert_int_equal(info->error_type, rows[i].type);
    assert_int_equal(info->probable_cause, rows[i].cause);
    assert_int_equal(info->cim_status_code, rows[i].status);
  }
}

static void assert_labelled(const char *map, int64_t value)
{
  size_t count;
  const struct cairn_value_label *v = cairn_value_map(map, &count);
  for (size_t i = 0; i < count; i++)
    if (v[i].value == value)
      return;
  fail_msg("%s has no %d", map, (int)value);
}

static void has_rows_that_are_unique_and_complete(void **state)
{
  (void)state;
  size_t count = 0;
  for (; cairn_error_info_at(count) != NULL; count++) {
    const struct cairn_error_info *a = cairn_error_info_at(count);
    assert_ptr_equal(cairn_error_info(a->id), a);
    assert_in_range(a->id, 1, 9999); /* four digits in MessageID */
    assert_in_range(a->exit_code, 0, 3);
    assert_true(strlen(a->summary) > 0);
    assert_true(strlen(a->recommended_action) > 0);
    assert_labelled("ErrorType", a->error_type);
    assert_labelled("ProbableCause", a->probable_cause);
    assert_labelled("CIMStatusCode", a->cim_status_code);
    for (const char *c = a->code; *c != '\0'; c++)
      assert_true((*c >= 'a' && *c <= 'z') || *c == '_');
    for (size_t k = 0; k < count; k++) {
      const struct cairn_error_info *b = cairn_error_info_at(k);
      assert_true(b->id < a->id);
      assert_string_not_equal(b->code, a->code);
      assert_string_not_equal(b->message_id, a->message_id);
    }
  }
  assert_true(count >= COUNT(known));
}

static void knows_no_row_for_other_numbers(void **state)
{
  (void)state;
  assert_null(cairn_error_info(0));
  assert_null(cairn_error_info(-1));
  assert_null(cairn_error_info(10000));
  assert_null(cairn_error_info(2147483647));
  assert_null(cairn_error_info(-2147483647 - 1));
  assert_null(cairn_error_info_at(10000));
  assert_null(cairn_error_info_at((size_t)-1));
}

/* ---- filling ------------------------------------------------------------- */

static void fills_a_record(void **state)
{
  (void)state;
  struct cairn_error err;
  memset(&err, 'x', sizeof err);
  assert_int_equal(cairn__fail(&err, CAIRN_E_BUSY, "%s of %d", "two", 3), -1);
  assert_int_equal(err.id, CAIRN_E_BUSY);
  assert_string_equal(err.message, "two of 3");
  assert_int_equal(err.system_errno, 0);
  assert_int_equal(err.offset, -1);
  assert_string_equal(err.machine, "");
  assert_string_equal(err.disk, "");
  assert_string_equal(err.path, "");
  cairn__error_clear(&err);
  assert_int_equal(err.id, CAIRN_OK);
  assert_string_equal(err.message, "");
}

static void needs_no_record(void **state)
{
  (void)state;
  assert_int_equal(cairn__fail(NULL, CAIRN_E_BUSY, "x"), -1);
  assert_int_equal(cairn__fail_errno(NULL, EIO, "p", 1, "x"), -1);
  assert_int_equal(cairn__fail_memory(NULL), -1);
  cairn__error_clear(NULL);
  cairn__error_locate(NULL, "m", "d");
  cairn__error_set_path(NULL, "p", 1);
}

static void may_quote_the_message_it_replaces(void **state)
{
  (void)state;
  struct cairn_error err;
  cairn__fail(&err, CAIRN_E_BUSY, "inner");
  cairn__fail(&err, CAIRN_E_NBD, "outer: %s", err.message);
  assert_string_equal(err.message, "outer: inner");
  cairn__fail_errno(&err, EIO, "/p", 7, "again: %s", err.message);
  assert_string_equal(err.message, "again: outer: inner: Input/output error");
  cairn__fail_errno(&err, EIO, err.path, err.offset, "once more");
  assert_string_equal(err.path, "/p");
  assert_int_equal(err.offset, 7);
}

static void takes_the_id_from_the_errno(void **state)
{
  (void)state;
  static const int cases[][2] = {
      {ENOSPC, CAIRN_E_DISK_FULL},        {EDQUOT, CAIRN_E_DISK_FULL},
      {EFBIG, CAIRN_E_DISK_FULL},         {EACCES, CAIRN_E_PERMISSION_DENIED},
      {EPERM, CAIRN_E_PERMISSION_DENIED}, {EROFS, CAIRN_E_PERMISSION_DENIED},
      {ENOMEM, CAIRN_E_NO_MEMORY},        {ENOENT, CAIRN_E_NOT_FOUND},
      {EEXIST, CAIRN_E_EXISTS},           {ENAMETOOLONG, CAIRN_E_BAD_PATH},
      {ENOTDIR, CAIRN_E_BAD_PATH},        {EISDIR, CAIRN_E_BAD_PATH},
      {ELOOP, CAIRN_E_BAD_PATH},          {EIO, CAIRN_E_IO_ERROR},
      {EBADF, CAIRN_E_IO_ERROR},          {12345, CAIRN_E_IO_ERROR},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_error err;
    cairn__fail_errno(&err, cases[i][0], NULL, -1, "reading \"%s\"", "x");
    assert_int_equal(err.id, cases[i][1]);
    assert_int_equal(err.system_errno, cases[i][0]);
    char expected[256];
    snprintf(expected, sizeof expected, "reading \"x\": %s",
             strerror(cases[i][0]));
    assert_string_equal(err.message, expected);
    assert_string_equal(err.path, "");
    assert_int_equal(err.offset, -1);
  }
}

static void says_what_to_do_about_an_errno(void **state)
{
  (void)state;
  struct cairn_error err;
  cairn__fail_errno(&err, EROFS, "/p", -1, "cannot write \"/p\"");
  assert_non_null(strstr(cairn__error_advice(err.id, err.system_errno),
                         "mounted for writing"));
  cairn__fail_errno(&err, EMFILE, "/p", -1, "cannot open \"/p\"");
  assert_non_null(strstr(err.message, "Too many open files (the limit is "
                                      "ulimit -n)"));
  assert_non_null(
      strstr(cairn__error_advice(err.id, err.system_errno), "ulimit -n"));
  assert_string_equal(cairn__error_advice(CAIRN_E_BUSY, EBUSY),
                      cairn_error_info(CAIRN_E_BUSY)->recommended_action);
}

static void names_a_machine_by_both_names(void **state)
{
  (void)state;
  struct cairn_error err;
  cairn__fail(&err, CAIRN_E_BUSY, "text");
  cairn__error_name_machine(&err, "web1"); /* of no machine yet */
  assert_string_equal(err.message, "text");
  cairn__error_locate(&err, "M", "D");
  cairn__error_name_machine(&err, NULL);
  assert_string_equal(err.message, "machine M, disk D: text");
  cairn__error_name_machine(&err, "web\n1");
  assert_string_equal(err.message, "machine web\\x0A1 (M), disk D: text");
  assert_string_equal(err.machine, "M");
}

static void keeps_the_cause_of_a_message_too_long(void **state)
{
  (void)state;
  char text[CAIRN_MESSAGE_MAX * 2];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  struct cairn_error err;
  cairn__fail_errno(&err, ENOSPC, NULL, -1, "%s", text);
  assert_int_equal(strlen(err.message), CAIRN_MESSAGE_MAX - 1);
  const char *tail = "...: No space left on device";
  assert_string_equal(err.message + strlen(err.message) - strlen(tail), tail);
  cairn__fail(&err, CAIRN_E_BUSY, "%s", text);
  assert_int_equal(strlen(err.message), CAIRN_MESSAGE_MAX - 1);
  assert_string_equal(err.message + CAIRN_MESSAGE_MAX - 4, "...");
}

static void writes_only_printable_utf8(void **state)
{
  (void)state;
  static const char *const cases[][2] = {
      {"plain", "plain"},
      {"a\nb\tc", "a\nb\tc"}, /* these two are kept in messages */
      {"bell\a", "bell\\x07"},
      {"esc\x1b[31m", "esc\\x1B[31m"},
      {"del\x7f", "del\\x7F"},
      {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
      {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
      {"latin\xfc", "latin\\xFC"},
      {"cut\xe2\x82", "cut\\xE2\\x82"},
      {"overlong\xc0\xaf", "overlong\\xC0\\xAF"},
      {"overlong\xe0\x80\xaf", "overlong\\xE0\\x80\\xAF"},
      {"surrogate\xed\xa0\x80", "surrogate\\xED\\xA0\\x80"},
      {"beyond\xf4\x90\x80\x80", "beyond\\xF4\\x90\\x80\\x80"},
      {"c1\xc2\x85", "c1\\xC2\\x85"},
  };
  for (size_t i = 0; i < COUNT(cases); i++) {
    struct cairn_error err;
    cairn__fail(&err, CAIRN_E_BUSY, "%s", cases[i][0]);
    assert_string_equal(err.message, cases[i][1]);
  }
}

static void makes_names_printable(void **state)
{
  (void)state;
  char buffer[32];
  assert_string_equal(cairn__printable("a\nb", buffer, sizeof buffer),
                      "a\\x0Ab");
  /* cut at whole characters, visibly */
  for (size_t size = 1; size < sizeof buffer; size++) {
    memset(buffer, 'x', sizeof buffer);
    const char *s =
        cairn__printable("\xc3\xbc\xc3\xbc\n\xc3\xbc\xc3\xbc", buffer, size);
    assert_true(strlen(s) < size);
    if (size > 12)
      assert_string_equal(s, "\xc3\xbc\xc3\xbc\\x0A\xc3\xbc\xc3\xbc");
    else if (size > 3)
      assert_string_equal(s + strlen(s) - 3, "...");
    if (size < sizeof buffer)
      assert_int_equal(buffer[size], 'x');
  }
}

static void names_machine_and_disk_once(void **state)
{
  (void)state;
  struct cairn_error err;
  cairn__fail(&err, CAIRN_E_IO_ERROR, "no luck");
  cairn__error_locate(&err, NULL, "vda");
  assert_string_equal(err.message, "disk vda: no luck");
  cairn__error_locate(&err, "M1", NULL);
  assert_string_equal(err.message, "machine M1, disk vda: no luck");
  cairn__error_locate(&err, "M1", "vda");
  assert_string_equal(err.message, "machine M1, disk vda: no luck");
  assert_string_equal(err.machine, "M1");
  assert_string_equal(err.disk, "vda");
  /* already in the text that was passed on */
  struct cairn_error other;
  cairn__fail(&other, CAIRN_E_IO_ERROR, "%s", err.message);
  cairn__error_locate(&other, "M1", "vda");
  assert_string_equal(other.message, "machine M1, disk vda: no luck");
  /* nothing to locate */
  cairn__error_clear(&err);
  cairn__error_locate(&err, "M1", "vda");
  assert_string_equal(err.message, "");
  assert_string_equal(err.machine, "");
}

static void locates_within_its_bounds(void **state)
{
  (void)state;
  char text[CAIRN_MESSAGE_MAX * 2];
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  struct cairn_error err;
  cairn__fail(&err, CAIRN_E_IO_ERROR, "%s", text);
  cairn__error_locate(&err, text, text);
  assert_int_equal(strlen(err.message), CAIRN_MESSAGE_MAX - 1);
  assert_memory_equal(err.message, "machine aaa", 11);
  assert_int_equal(strlen(err.machine), sizeof err.machine - 1);
  assert_int_equal(strlen(err.disk), sizeof err.disk - 1);
}

static void shortens_a_path_in_the_middle(void **state)
{
  (void)state;
  struct cairn_error err;
  cairn__fail(&err, CAIRN_E_IO_ERROR, "x");
  char path[2000];
  snprintf(path, sizeof path, "/begin/%01500d/end", 0);
  cairn__error_set_path(&err, path, 4096);
  assert_int_equal(err.offset, 4096);
  assert_int_equal(strlen(err.path), sizeof err.path - 1);
  assert_memory_equal(err.path, "/begin/", 7);
  assert_non_null(strstr(err.path, "0...0"));
  assert_string_equal(err.path + strlen(err.path) - 4, "/end");
  /* what fits is kept byte for byte */
  memset(path, 'p', 511);
  path[511] = '\0';
  path[100] = '\n';
  cairn__error_set_path(&err, path, -1);
  assert_string_equal(err.path, path);
  assert_int_equal(err.offset, -1);
  cairn__error_set_path(&err, NULL, -1);
  assert_string_equal(err.path, "");
}

static void finds_the_nearest_word(void **state)
{
  (void)state;
  static const char *const words[] = {"export", "verify", "restore", "run",
                                      "merge"};
  static const char *const cases[][2] = {
      {"exprot", "export"},  {"EXPORT", "export"}, {"verfy", "verify"},
      {"restor", "restore"}, {"runn", "run"},      {"mreg", "merge"},
      {"verifyy", "verify"}, {"r", "run"},
  };
  for (size_t i = 0; i < COUNT(cases); i++)
    assert_string_equal(cairn__nearest(cases[i][0], words, COUNT(words)),
                        cases[i][1]);
  /* two letters swapped are one slip, not two */
  static const char *const swapped[] = {"abcd", "ba"};
  assert_string_equal(cairn__nearest("ab", swapped, 2), "ba");
  assert_null(cairn__nearest("x", words, 0));
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(keeps_the_known_codes),
      cmocka_unit_test(has_the_causes_that_were_decided),
      cmocka_unit_test(has_rows_that_are_unique_and_complete),
      cmocka_unit_test(knows_no_row_for_other_numbers),
      cmocka_unit_test(fills_a_record),
      cmocka_unit_test(needs_no_record),
      cmocka_unit_test(may_quote_the_message_it_replaces),
      cmocka_unit_test(takes_the_id_from_the_errno),
      cmocka_unit_test(says_what_to_do_about_an_errno),
      cmocka_unit_test(names_a_machine_by_both_names),
      cmocka_unit_test(keeps_the_cause_of_a_message_too_long),
      cmocka_unit_test(writes_only_printable_utf8),
      cmocka_unit_test(makes_names_printable),
      cmocka_unit_test(names_machine_and_disk_once),
      cmocka_unit_test(locates_within_its_bounds),
      cmocka_unit_test(shortens_a_path_in_the_middle),
      cmocka_unit_test(finds_the_nearest_word),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
