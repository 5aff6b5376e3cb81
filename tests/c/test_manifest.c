/* The manifest: what is written is read, every changed bit is found, and what
 * a hostile or newer one says is refused before anything believes it. */
#include "small_export.h"
#include "skip.h"

#include <xxhash.h>

static struct small point;

static int setup(void **state)
{
  if (scratch_make(state) != 0)
    return -1;
  unsigned char *content = small_content("a.b", 3 * BLOCK);
  small_begin(&point, in_scratch("out"), POINT1, 1, "xxh3-128", NULL);
  small_machine(&point, VM1, "web1");
  small_disk(&point, VM1, "vda", "qcow2", 3 * BLOCK, content, NULL, NULL, 0);
  small_file(&point, VM1, "config", "web 1\n\xc3\xa9.xml", "<domain/>", 9, 0644,
             1700000000123456789);
  free(content);
  return 0;
}

static int teardown(void **state)
{
  small_end(&point);
  return scratch_remove(state);
}

static int read_it(json_t **manifest, struct cairn_error *err)
{
  cairn__error_clear(err);
  *manifest = NULL;
  return cairn__manifest_read(IO, point.fd, point.path, manifest, err);
}

/* Puts text in place of the manifest. */
static void put(const char *text, size_t n)
{
  int fd = openat(point.fd, CAIRN__MANIFEST_NAME, O_WRONLY | O_CREAT | O_TRUNC,
                  0600);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, text, n), (ssize_t)n);
  close(fd);
}

static char *get(size_t *n)
{
  *n = small_size(in_scratch("out/%s/%s", POINT1, CAIRN__MANIFEST_NAME));
  char *text = malloc(*n + 1);
  int fd = openat(point.fd, CAIRN__MANIFEST_NAME, O_RDONLY);
  assert_int_equal(read(fd, text, *n), (ssize_t)*n);
  close(fd);
  text[*n] = 0;
  return text;
}

/* Writes a manifest with a right digest whatever it says; the digest is made
 * here, not by the code under test. */
static void put_signed(json_t *manifest)
{
  XXH128_canonical_t digest;
  char *text = json_dumps(manifest, JSON_INDENT(2));
  size_t n = strlen(text) - 2;
  char *whole = malloc(n + 200);
  memcpy(whole, text, n);
  memcpy(whole + n, ",\n", 2);
  n += 2;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(whole, n));
  n += (size_t)sprintf(whole + n, "  \"digest\": \"xxh3-128:");
  for (size_t i = 0; i < sizeof digest.digest; i++)
    n += (size_t)sprintf(whole + n, "%02x", digest.digest[i]);
  n += (size_t)sprintf(whole + n, "\"\n}\n");
  put(whole, n);
  free(whole);
  free(text);
}

static void reads_what_was_written(void **state)
{
  (void)state;
  struct cairn_error err;
  struct stat st;
  json_t *manifest;
  small_publish(&point);
  assert_int_equal(read_it(&manifest, &err), 0);
  assert_true(json_equal(manifest, point.manifest));
  assert_non_null(json_object_get(manifest, "digest"));
  assert_int_equal(fstatat(point.fd, CAIRN__MANIFEST_NAME, &st, 0), 0);
  assert_int_equal(st.st_mode & 07777, 0600);
  json_decref(manifest);
}

static void keeps_the_order_and_ends_in_its_digest(void **state)
{
  (void)state;
  size_t n;
  small_publish(&point);
  char *text = get(&n);
  assert_memory_equal(text, "{\n  \"format\": \"cairn-export\",\n", 30);
  char *last = strstr(text, "  \"digest\": \"xxh3-128:");
  for (char *next = last; next; next = strstr(next + 1, "  \"digest\": \"xxh"))
    last = next;
  assert_string_equal(last + 22 + 32, "\"\n}\n");
  free(text);
}

static void agrees_with_an_independent_digest(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *manifest;
  put_signed(point.manifest);
  assert_int_equal(read_it(&manifest, &err), 0);
  json_decref(manifest);
}

static void never_replaces_a_manifest(void **state)
{
  (void)state;
  struct cairn_error err;
  small_publish(&point);
  json_object_del(point.manifest, "digest");
  cairn__error_clear(&err);
  assert_int_equal(
      cairn__manifest_write(IO, point.fd, point.manifest, point.path, &err),
      -1);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
}

static void finds_every_changed_bit(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *manifest;
  size_t n;
  small_publish(&point);
  char *text = get(&n);
  int fd = openat(point.fd, CAIRN__MANIFEST_NAME, O_WRONLY);
  for (size_t bit = 0; bit < n * 8; bit++) {
    char c = text[bit / 8];
    text[bit / 8] ^= (char)(1 << bit % 8);
    assert_int_equal(pwrite(fd, text + bit / 8, 1, (off_t)(bit / 8)), 1);
    if (read_it(&manifest, &err) == 0)
      fail_msg("bit %zu of byte %zu was not found", bit % 8, bit / 8);
    if (err.id != CAIRN_E_EXPORT_CORRUPT)
      fail_msg("bit %zu of byte %zu: %s", bit % 8, bit / 8, err.message);
    text[bit / 8] = c;
    assert_int_equal(pwrite(fd, &c, 1, (off_t)(bit / 8)), 1);
  }
  close(fd);
  assert_int_equal(read_it(&manifest, &err), 0);
  json_decref(manifest);
  free(text);
}

static void finds_every_cut_and_additions(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *manifest;
  size_t n;
  small_publish(&point);
  char *text = get(&n);
  for (size_t cut = 0; cut < n; cut++) {
    put(text, cut);
    assert_int_equal(read_it(&manifest, &err), -1);
    /* cut before the first word that is ours, it could be anybody's */
    if (cut > 40)
      assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  }
  text[n] = '\n';
  put(text, n + 1);
  assert_int_equal(read_it(&manifest, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  free(text);
}

/* ---- hostile and odd ones, with a right digest ------------------------- */

static json_t *first_file(json_t *manifest, const char *role)
{
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(manifest, "files"), i, file)
  {
    if (strcmp(json_string_value(json_object_get(file, "role")), role) == 0)
      return file;
  }
  return NULL;
}

static void expect_refused(json_t *manifest, int id, const char *words)
{
  struct cairn_error err;
  json_t *read;
  put_signed(manifest);
  if (read_it(&read, &err) == 0)
    fail_msg("accepted: %s", words);
  if (err.id != id || !strstr(err.message, words))
    fail_msg("wanted \"%s\", got \"%s\"", words, err.message);
  json_decref(manifest);
}

static json_t *copy(void)
{
  return json_deep_copy(point.manifest);
}

static void refuses_paths_that_leave_the_point(void **state)
{
  (void)state;
  static const char *const paths[] = {
      "/etc/passwd",
      "../x",
      "",
      ".",
      "..",
      VM1 "/config/../../x",
      VM1 "/config//x",
      VM1 "/config/",
      VM1 "/config/.",
      VM1 "/config/a/./b",
      VM1 "/config/a/b",
      "manifest.json",
      "chain.secret",
      VM1 "/x",
      VM2 "/config/x",
      VM1 "/vda.qcow2",
      VM1 "/config",
  };
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    json_t *m = copy();
    json_object_set_new(first_file(m, "config"), "path", json_string(paths[i]));
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "path must be relative");
  }
  char longest[400];
  memset(longest, 'x', sizeof longest);
  memcpy(longest, VM1 "/config/", 44);
  longest[sizeof longest - 1] = 0;
  json_t *m = copy();
  json_object_set_new(first_file(m, "config"), "path", json_string(longest));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "path must be relative");
}

static void refuses_two_files_of_one_name(void **state)
{
  (void)state;
  json_t *m = copy(), *files = json_object_get(m, "files");
  json_array_append_new(files, json_deep_copy(first_file(m, "config")));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "path occurs twice");

  m = copy();
  files = json_object_get(m, "files");
  json_t *below = json_deep_copy(first_file(m, "config"));
  char path[300];
  snprintf(path, sizeof path, "%s/x",
           json_string_value(json_object_get(below, "path")));
  json_object_set_new(below, "path", json_string(path));
  json_array_append_new(files, below);
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "path must be relative");
}

static void refuses_wrong_types_and_missing_members(void **state)
{
  (void)state;
  const char *key;
  json_t *v;
  json_object_foreach(point.manifest, key, v)
  {
    if (strcmp(key, "format") == 0)
      continue;
    json_t *m = copy();
    json_object_del(m, key);
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, key);
    m = copy();
    json_object_set_new(m, key, json_true());
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, key);
    m = copy();
    json_object_set_new(m, key, json_real(1.5));
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, key);
  }
  static const char *const roles[] = {"disk", "digests", "config", "secret"};
  for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
    json_object_foreach(first_file(point.manifest, roles[i]), key, v)
    {
      json_t *m = copy();
      json_object_del(first_file(m, roles[i]), key);
      expect_refused(m, CAIRN_E_EXPORT_CORRUPT, key);
      m = copy();
      json_object_set_new(first_file(m, roles[i]), key, json_object());
      expect_refused(m, CAIRN_E_EXPORT_CORRUPT, key);
    }
  }
}

static void refuses_members_it_does_not_know(void **state)
{
  (void)state;
  json_t *m = copy();
  json_object_set_new(m, "colour", json_string("red"));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "\"colour\" is not one of");
  m = copy();
  json_object_set_new(first_file(m, "config"), "length", json_integer(1));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "\"length\" is not one of");
}

static void refuses_values_that_contradict(void **state)
{
  (void)state;
  static const struct {
    const char *role, *key;
    json_int_t value;
    const char *words;
  } cases[] = {
      {"disk", "length", -1, "length"},
      {"disk", "length", INT64_MAX, "length is out of range"},
      {"disk", "virtual_size", 512, "virtual_size must be"},
      {"digests", "size", 4096, "size of the digest map"},
      {"secret", "size", 191, "must be 192"},
      {"config", "size", -1, "size"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    json_t *m = copy();
    json_object_set_new(first_file(m, cases[i].role), cases[i].key,
                        json_integer(cases[i].value));
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, cases[i].words);
  }
  static const struct {
    const char *role, *key, *value, *words;
  } texts[] = {
      {"disk", "VirtualMachineId", VM2, "none of \"machines\""},
      {"disk", "VirtualMachineId", "vm", "GUID"},
      {"disk", "format", "vmdk", "format must be"},
      {"disk", "disk", "../vda", "no disk id"},
      {"disk", "digest", "sha-256:00", "digest"},
      {"disk", "content", "xxh3-128:", "digest"},
      {"config", "role", "kernel", "role"},
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    json_t *m = copy();
    json_object_set_new(first_file(m, texts[i].role), texts[i].key,
                        json_string(texts[i].value));
    expect_refused(m, CAIRN_E_EXPORT_CORRUPT, texts[i].words);
  }
  json_t *m = copy();
  json_object_set_new(m, "unix_us", json_integer(1));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "same instant");
  m = copy();
  json_array_append(json_object_get(m, "machines"),
                    json_array_get(json_object_get(m, "machines"), 0));
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "occurs twice");
  m = copy();
  size_t i;
  json_t *file;
  json_array_foreach(json_object_get(m, "files"), i, file)
  {
    if (file == first_file(m, "digests"))
      break;
  }
  json_array_remove(json_object_get(m, "files"), i);
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, "no digest map");
  m = copy();
  json_array_remove(json_object_get(m, "files"), 0);
  expect_refused(m, CAIRN_E_EXPORT_CORRUPT, CAIRN__SECRET_NAME);
}

static void tells_a_newer_version_from_damage(void **state)
{
  (void)state;
  json_t *m = copy();
  json_object_set_new(m, "version", json_integer(2));
  json_object_set_new(m, "something", json_string("new"));
  expect_refused(m, CAIRN_E_VERSION, "version 2; up to 1");
  static const char later[] =
      "{\n  \"format\": \"cairn-export\",\n  \"version\": 7,\n"
      "  \"digest\": \"better-512:0123\"\n}\n";
  struct cairn_error err;
  put(later, sizeof later - 1);
  assert_int_equal(read_it(&m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_VERSION);
}

static void tells_what_is_no_manifest(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *m;
  assert_int_equal(read_it(&m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_AN_EXPORT);
  static const char *const others[] = {"", "{}", "{\"name\": \"a web app\"}\n",
                                       "\x7f"
                                       "ELF"};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    put(others[i], strlen(others[i]));
    assert_int_equal(read_it(&m, &err), -1);
    assert_int_equal(err.id, CAIRN_E_NOT_AN_EXPORT);
  }
  m = copy();
  json_object_set_new(m, "format", json_string("other"));
  expect_refused(m, CAIRN_E_NOT_AN_EXPORT, "cairn-export");
}

static void refuses_links_directories_and_giants(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *m;
  small_publish(&point);
  renameat(point.fd, CAIRN__MANIFEST_NAME, point.fd, "real");
  assert_int_equal(symlinkat("real", point.fd, CAIRN__MANIFEST_NAME), 0);
  assert_int_equal(read_it(&m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
  assert_int_equal(mkfifoat(point.fd, CAIRN__MANIFEST_NAME, 0600), 0);
  assert_int_equal(read_it(&m, &err), -1); /* and does not wait */
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
  int fd = openat(point.fd, CAIRN__MANIFEST_NAME, O_WRONLY | O_CREAT, 0600);
  assert_int_equal(ftruncate(fd, CAIRN__MANIFEST_MAX + 1ll), 0);
  close(fd);
  assert_int_equal(read_it(&m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  assert_non_null(strstr(err.message, "at most"));
}

static void survives_deep_and_repeated_json(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *m;
  size_t n = 200000;
  char *text = malloc(n + 64);
  memset(text, '[', n);
  memcpy(text, "{\"ReferencePointGroupId\":", 25);
  put(text, n);
  assert_int_equal(read_it(&m, &err), -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  free(text);
}

static void refuses_to_write_what_it_would_not_read(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *m = copy();
  json_object_set_new(first_file(m, "config"), "path", json_string("../x"));
  cairn__error_clear(&err);
  assert_int_equal(cairn__manifest_write(IO, point.fd, m, point.path, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_INTERNAL);
  assert_int_equal(faccessat(point.fd, CAIRN__MANIFEST_NAME, F_OK, 0), -1);
  json_decref(m);
}

static void writes_with_every_algorithm(void **state)
{
  (void)state;
  static const char *const names[] = {"sha-256", "blake2b-256"};
  for (int i = 0; i < 2; i++) {
    struct small s;
    struct cairn_error err;
    json_t *m;
    int algorithm;
    if (cairn__digest_algorithm_parse(names[i], &algorithm, NULL) != 0)
      skip_because("needs a build with libgcrypt, and its consent");
    small_begin(&s, in_scratch("out"), i ? POINT2 : POINT3, 2, names[i], NULL);
    small_publish(&s);
    assert_int_equal(cairn__manifest_read(IO, s.fd, s.path, &m, &err), 0);
    assert_int_equal(strncmp(json_string_value(json_object_get(m, "digest")),
                             names[i], strlen(names[i])),
                     0);
    json_decref(m);
    small_end(&s);
  }
}

static void survives_every_failing_call(void **state)
{
  (void)state;
  struct cairn__fault_io fault;
  struct cairn_error err;
  json_t *m = NULL;
  uint64_t at = 1;
  for (;; at++) {
    unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
    json_object_del(point.manifest, "digest");
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_ERRNO, EIO);
    cairn__error_clear(&err);
    int result = cairn__manifest_write(&fault.io, point.fd, point.manifest,
                                       point.path, &err);
    if (!fault.has_fired) {
      assert_int_equal(result, 0);
      break;
    }
    assert_int_equal(result, -1);
    assert_int_equal(err.id, CAIRN_E_IO_ERROR);
    assert_int_equal(err.system_errno, EIO);
  }
  assert_true(at >= 4);
  for (at = 1;; at++) {
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_ERRNO, EIO);
    cairn__error_clear(&err);
    int result =
        cairn__manifest_read(&fault.io, point.fd, point.path, &m, &err);
    if (result == 0) {
      json_decref(m);
      if (!fault.has_fired)
        break;
      assert_string_equal(fault.fired_at, "close");
    } else {
      assert_int_equal(err.id, CAIRN_E_IO_ERROR);
    }
  }
  for (at = 1;; at++) {
    cairn__fault_io_init(&fault, at, CAIRN__FAULT_SHORT, 0);
    assert_int_equal(
        cairn__manifest_read(&fault.io, point.fd, point.path, &m, &err), 0);
    json_decref(m);
    if (!fault.has_fired)
      break;
  }
}

/* ---- memory ------------------------------------------------------------ */

static long countdown;

static void *failing_realloc(void *p, size_t n)
{
  return --countdown == 0 ? NULL : realloc(p, n);
}

static void survives_every_failing_allocation(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *m = NULL;
  cairn_set_allocator(failing_realloc, free);
  for (long at = 1;; at++) {
    unlinkat(point.fd, CAIRN__MANIFEST_NAME, 0);
    json_object_del(point.manifest, "digest");
    countdown = at;
    cairn__error_clear(&err);
    int result =
        cairn__manifest_write(IO, point.fd, point.manifest, point.path, &err);
    int has_fired = countdown <= 0;
    countdown = 0;
    if (result == 0 && !has_fired)
      break;
    if (result != 0)
      assert_int_equal(err.id, CAIRN_E_NO_MEMORY);
  }
  for (long at = 1;; at++) {
    countdown = at;
    cairn__error_clear(&err);
    int result = cairn__manifest_read(IO, point.fd, point.path, &m, &err);
    int has_fired = countdown <= 0;
    countdown = 0;
    if (result == 0) {
      json_decref(m);
      if (!has_fired)
        break;
    } else if (err.id != CAIRN_E_NO_MEMORY) {
      fail_msg("allocation %ld: %s", at, err.message);
    }
  }
  cairn_set_allocator(NULL, NULL);
}

/* ---- points ------------------------------------------------------------ */

static json_t *points(void)
{
  json_t *array;
  MUST(cairn__points_read(IO, in_scratch("out"), &array, &small_err));
  return array;
}

static const char *text(json_t *array, size_t i, const char *key)
{
  return json_string_value(json_object_get(json_array_get(array, i), key));
}

static void lists_points_by_sequence(void **state)
{
  (void)state;
  struct small other;
  small_publish(&point);
  small_begin(&other, in_scratch("out"), POINT3, 2, "xxh3-128", NULL);
  small_publish(&other);
  small_end(&other);
  small_begin(&other, in_scratch("out"), POINT2, 10, "xxh3-128", NULL);
  small_publish(&other);
  small_end(&other);
  small_shell("mkdir -p %s/.partial-x %s/lost+found %s/web; touch %s/file; "
              "echo '{}' > %s/web/manifest.json; cp -r %s/%s %s/.partial-x/p",
              in_scratch("out"), in_scratch("out"), in_scratch("out"),
              in_scratch("out"), in_scratch("out"), in_scratch("out"), POINT1,
              in_scratch("out"));
  json_t *array = points();
  assert_int_equal(json_array_size(array), 3);
  assert_string_equal(text(array, 0, "ReferencePointGroupId"), POINT1);
  assert_string_equal(text(array, 1, "ReferencePointGroupId"), POINT3);
  assert_string_equal(text(array, 2, "ReferencePointGroupId"), POINT2);
  assert_string_equal(text(array, 0, "directory"),
                      in_scratch("out/%s", POINT1));
  assert_null(text(array, 0, "remark"));
  json_decref(array);
  char *json;
  MUST(cairn_points(in_scratch("out"), &json, &small_err));
  assert_non_null(strstr(json, POINT3));
  cairn_free(json);
}

static void reports_damaged_renamed_and_copied_points(void **state)
{
  (void)state;
  small_publish(&point);
  const char *out = in_scratch("out");
  small_shell("cp -r %s/%s %s/monday && cp -r %s/%s %s/%s && mkdir %s/%s", out,
              POINT1, out, out, POINT1, out, POINT2, out, POINT3);
  small_flip(in_scratch("out/%s/manifest.json", POINT2), 800);
  json_t *array = points();
  assert_int_equal(json_array_size(array), 4);
  assert_string_equal(text(array, 0, "ReferencePointGroupId"), POINT1);
  assert_null(text(array, 0, "remark"));
  assert_non_null(strstr(text(array, 1, "remark"), "same reference point"));
  assert_string_equal(text(array, 2, "ReferencePointGroupId"), POINT2);
  assert_string_equal(text(array, 2, "error_code"), "export_corrupt");
  assert_non_null(text(array, 2, "error"));
  assert_string_equal(text(array, 3, "ReferencePointGroupId"), POINT3);
  assert_string_equal(text(array, 3, "error_code"), "not_an_export");
  json_decref(array);
}

static void names_a_renamed_point(void **state)
{
  (void)state;
  small_publish(&point);
  assert_int_equal(
      rename(in_scratch("out/%s", POINT1), in_scratch("out/monday")), 0);
  json_t *array = points();
  assert_int_equal(json_array_size(array), 1);
  assert_non_null(strstr(text(array, 0, "remark"), "\"monday\""));
  json_decref(array);
}

static void refuses_to_list_a_point(void **state)
{
  (void)state;
  struct cairn_error err;
  json_t *array;
  small_publish(&point);
  cairn__error_clear(&err);
  assert_int_equal(cairn__points_read(IO, point.path, &array, &err), -1);
  assert_int_equal(err.id, CAIRN_E_NOT_AN_EXPORT);
  assert_non_null(strstr(err.message, POINT1));
  assert_int_equal(cairn__points_read(IO, in_scratch("nothing"), &array, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_NOT_FOUND);
}

/* ---- the secret and small functions ------------------------------------ */

static void keeps_the_secret_to_its_owner(void **state)
{
  (void)state;
  struct stat st;
  struct cairn_error err;
  unsigned char secret[CAIRN__SECRET_SIZE];
  assert_int_equal(fstatat(point.fd, CAIRN__SECRET_NAME, &st, 0), 0);
  assert_int_equal(st.st_mode & 07777, 0600);
  MUST(cairn__secret_read(IO, point.fd, point.path, secret, &small_err));
  assert_memory_equal(secret, point.d.secret, sizeof secret);
  small_shell("truncate -s 191 %s/%s/chain.secret", in_scratch("out"), POINT1);
  assert_int_equal(cairn__secret_read(IO, point.fd, point.path, secret, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
  unlinkat(point.fd, CAIRN__SECRET_NAME, 0);
  assert_int_equal(cairn__secret_read(IO, point.fd, point.path, secret, &err),
                   -1);
  assert_int_equal(err.id, CAIRN_E_EXPORT_CORRUPT);
}

static void reads_guids_in_any_form(void **state)
{
  (void)state;
  char out[37];
  assert_int_equal(
      cairn__guid_canonical("{a0000000-0000-4000-8000-00000000000f}", out), 0);
  assert_string_equal(out, "A0000000-0000-4000-8000-00000000000F");
  assert_int_equal(cairn__guid_canonical(POINT1, out), 0);
  static const char *const bad[] = {"",
                                    "{",
                                    "A",
                                    POINT1 "0",
                                    "{" POINT1,
                                    POINT1 "}",
                                    "A0000000-0000-4000-8000-00000000000G",
                                    "A00000000000-4000-8000-00000000000-01"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_int_equal(cairn__guid_canonical(bad[i], out), -1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
  const struct CMUnitTest tests[] = {
      TEST(reads_what_was_written),
      TEST(keeps_the_order_and_ends_in_its_digest),
      TEST(agrees_with_an_independent_digest),
      TEST(never_replaces_a_manifest),
      TEST(finds_every_changed_bit),
      TEST(finds_every_cut_and_additions),
      TEST(refuses_paths_that_leave_the_point),
      TEST(refuses_two_files_of_one_name),
      TEST(refuses_wrong_types_and_missing_members),
      TEST(refuses_members_it_does_not_know),
      TEST(refuses_values_that_contradict),
      TEST(tells_a_newer_version_from_damage),
      TEST(tells_what_is_no_manifest),
      TEST(refuses_links_directories_and_giants),
      TEST(survives_deep_and_repeated_json),
      TEST(refuses_to_write_what_it_would_not_read),
      TEST(writes_with_every_algorithm),
      TEST(survives_every_failing_call),
      TEST(survives_every_failing_allocation),
      TEST(lists_points_by_sequence),
      TEST(reports_damaged_renamed_and_copied_points),
      TEST(names_a_renamed_point),
      TEST(refuses_to_list_a_point),
      TEST(keeps_the_secret_to_its_owner),
      cmocka_unit_test(reads_guids_in_any_form),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
