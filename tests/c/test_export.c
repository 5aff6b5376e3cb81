/* Exports of real small collections, run without an engine, and judged by
 * cmp, qemu-img and the file system. Specifications are written with ' for "
 * and $ for the scratch directory. */
#include "scratch.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <jansson.h>

#include "error.h"
#include "export/collection.h"
#include "export/kinds.h"
#include "export/manifest.h"
#include "run.h"
#include "skip.h"
#include "sweep.h"

#define VM1   "0C5A0000-0000-4000-8000-000000000001"
#define VM2   "0C5A0000-0000-4000-8000-000000000002"
#define FARM  "'CollectionId':'6F1D0000-0000-4000-8000-00000000C011'"
#define POINT "A0000000-0000-4000-8000-%012u"

/* One machine with these disks, into $/out. */
#define DISKS(list)                                                            \
  "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1              \
  "','disks':[" list "]}]},'directory':'$/out'}"
#define RAW(id, path)   "{'id':'" id "','path':'$/" path "','format':'raw'}"
#define QCOW2(id, path) "{'id':'" id "','path':'$/" path "','format':'qcow2'}"

static struct cairn_error err;
static unsigned serial;

/* ---- running ------------------------------------------------------------- */

static json_t *parse(const char *text)
{
  char *full = malloc(strlen(text) + 64 * sizeof scratch_path), *to = full;
  json_error_t e;
  json_t *spec;

  assert_non_null(full);
  for (; *text; text++) {
    if (*text == '$')
      to += sprintf(to, "%s", scratch_path);
    else
      *to++ = *text == '\'' ? '"' : *text;
  }
  *to = '\0';
  spec = json_loads(full, JSON_ALLOW_NUL, &e);
  if (!spec)
    fail_msg("%s: %s", e.text, full);
  free(full);
  return spec;
}

static struct cairn__run *new_run(const char *text, const struct cairn_io *io,
                                  struct cairn__mailbox *box)
{
  struct cairn__run *r = cairn__run_new(box);

  assert_non_null(r);
  serial++;
  r->main = cairn__kind_export.main;
  r->io = io ? io : &cairn__system_io;
  r->spec = parse(text);
  memset(&err, 0, sizeof err);
  if (cairn__kind_export.check(r->spec, &err) != 0)
    fail_msg("%s", err.message);
  snprintf(r->job_uuid, sizeof r->job_uuid, "DDDDDDDD-0000-4000-8000-%012u",
           serial);
  snprintf(r->instance_id, sizeof r->instance_id, "Cairn:%s", r->job_uuid);
  snprintf(r->point_uuid, sizeof r->point_uuid, POINT, serial);
  r->number = 1;
  r->epoch = 7;
  return r;
}

/* Runs it; the caller releases the run. */
static struct cairn__run *export_with(const char *text,
                                      const struct cairn_io *io)
{
  struct cairn__run *r = new_run(text, io, NULL);

  cairn__run_here(r);
  err = r->error;
  return r;
}

static struct cairn__run *must_export(const char *text)
{
  struct cairn__run *r = export_with(text, NULL);

  if (r->error.id != CAIRN_OK)
    fail_msg("error %d: %s", r->error.id, r->error.message);
  assert_int_equal(r->bytes_done, r->bytes_total);
  return r;
}

/* Entries of the export directory that are not hidden, and work directories. */
static void count_entries(const char *directory, int *points, int *partial)
{
  int fd = openat(scratch_fd, directory, O_RDONLY | O_DIRECTORY);
  struct dirent *e;
  DIR *d;

  *points = *partial = 0;
  if (fd < 0)
    return;
  d = fdopendir(fd);
  assert_non_null(d);
  while ((e = readdir(d))) {
    *partial += strncmp(e->d_name, ".partial-", 9) == 0;
    *points += e->d_name[0] != '.';
  }
  closedir(d);
}

static void expect_entries(int points, int partial)
{
  int is_points, is_partial;

  count_entries("out", &is_points, &is_partial);
  assert_int_equal(is_points, points);
  assert_int_equal(is_partial, partial);
}

/* The run fails so, and leaves nothing. */
static void expect_failure_with(const char *text, const struct cairn_io *io,
                                int id, const char *says)
{
  struct cairn__run *r;
  int before = count_fds();

  must_run("rm -rf out");
  r = export_with(text, io);
  if (err.id != id)
    fail_msg("error %d, not %d: %s", err.id, id, err.message);
  if (!strstr(err.message, says))
    fail_msg("\"%s\" is not in: %s", says, err.message);
  assert_null(json_object_get(r->report, "properties"));
  cairn__run_release(r);
  expect_entries(0, 0);
  assert_int_equal(count_fds(), before);
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void expect_failure(const char *text, int id, const char *says)
{
  expect_failure_with(text, NULL, id, says);
}

static char *point_file(const struct cairn__run *r, const char *name)
{
  static char path[4][512];
  static int next;

  next = (next + 1) % 4;
  snprintf(path[next], sizeof path[next], "out/%s/%s", r->point_uuid, name);
  return path[next];
}

static json_t *read_manifest(const struct cairn__run *r)
{
  char *name = point_file(r, "");
  int fd = openat(scratch_fd, name, O_RDONLY | O_DIRECTORY);
  json_t *manifest;

  assert_true(fd >= 0);
  if (cairn__manifest_read(&cairn__system_io, fd, name, &manifest, &err) != 0)
    fail_msg("%s", err.message);
  close(fd);
  return manifest;
}

static json_t *find_file(const json_t *manifest, const char *path)
{
  json_t *file;
  size_t i;

  json_array_foreach(json_object_get(manifest, "files"), i, file)
  {
    if (strcmp(json_string_value(json_object_get(file, "path")), path) == 0)
      return file;
  }
  fail_msg("no %s in the manifest", path);
  return NULL;
}

static json_int_t number(const json_t *object, const char *name)
{
  const json_t *v = json_object_get(object, name);

  assert_true(json_is_integer(v));
  return json_integer_value(v);
}

/* The exported image is sound and reads as the source does. */
static void expect_same(const char *image, const char *source,
                        const char *format)
{
  must_run("qemu-img check -q %s", image);
  must_run("qemu-img compare -q -f qcow2 -F %s %s %s", format, image, source);
}

/* ---- interference -------------------------------------------------------- */

/* Calls `action` before the call of this kind with this number. */
struct hook {
  struct cairn_io io; /* first */
  _Atomic unsigned calls;
  unsigned at;
  void (*action)(struct hook *);
  struct cairn__run *run;
  _Atomic int request;
  uint64_t bad_offset; /* of read_bad */
};

static void tick(const struct cairn_io *io)
{
  struct hook *h = (struct hook *)(uintptr_t)io;

  if (atomic_fetch_add(&h->calls, 1) + 1 == h->at && h->action)
    h->action(h);
}

static ssize_t hook_pread(const struct cairn_io *io, int fd, void *buf,
                          size_t n, off_t offset)
{
  tick(io);
  return pread(fd, buf, n, offset);
}

static ssize_t hook_pwritev(const struct cairn_io *io, int fd,
                            const struct iovec *iov, int count, off_t offset)
{
  tick(io);
  return pwritev(fd, iov, count, offset);
}

static int hook_openat(const struct cairn_io *io, int dirfd, const char *path,
                       int flags, mode_t mode)
{
  tick(io);
  return openat(dirfd, path, flags | O_CLOEXEC, mode);
}

static int hook_fstat(const struct cairn_io *io, int fd, struct stat *st)
{
  tick(io);
  return fstat(fd, st);
}

static int hook_fsync(const struct cairn_io *io, int fd)
{
  tick(io);
  return fsync(fd);
}

static int hook_point(const struct cairn_io *io, const char *what)
{
  (void)what;
  tick(io);
  return 0;
}

static void hook_init(struct hook *h, unsigned at,
                      void (*action)(struct hook *))
{
  memset(h, 0, sizeof *h);
  h->io = cairn__system_io;
  h->at = at;
  h->action = action;
}

static void hook_all(struct hook *h, unsigned at, void (*action)(struct hook *))
{
  hook_init(h, at, action);
  h->io.pread = hook_pread;
  h->io.pwritev = hook_pwritev;
  h->io.openat = hook_openat;
  h->io.fstat = hook_fstat;
  h->io.fsync = hook_fsync;
  h->io.point = hook_point;
}

static void send_request(struct hook *h)
{
  cairn__run_request(h->run, h->request);
}

/* ---- sources ------------------------------------------------------------- */

static void make_noise(const char *name, size_t n)
{
  unsigned char *data = malloc(n + 1);

  assert_non_null(data);
  random_fill(n + 99, data, n);
  spill(name, data, n);
  free(data);
}

/* 16 MiB with 192 KiB of data, 64 KiB of them zeros that are stored. */
static void make_sparse(const char *name)
{
  must_run("rm -f %s && truncate -s 16M %s && "
           "dd if=/dev/urandom of=%s bs=64k count=1 seek=3 conv=notrunc "
           "status=none && "
           "dd if=/dev/zero of=%s bs=64k count=1 seek=40 conv=notrunc "
           "status=none && "
           "dd if=/dev/urandom of=%s bs=64k count=1 seek=200 conv=notrunc "
           "status=none && sync %s",
           name, name, name, name, name, name);
}

static void make_qcow2(const char *name)
{
  must_run("rm -f %s && qemu-img create -q -f qcow2 %s 8M && "
           "qemu-io -f qcow2 -c 'write -P 7 64k 200k' -c 'write -P 8 5M 1M' "
           "%s",
           name, name, name);
}

static int set_up(void **state)
{
  if (scratch_open(state) != 0)
    return -1;
  make_noise("a.raw", 300000);
  make_noise("b.raw", 200000);
  make_sparse("sparse.raw");
  make_qcow2("a.qcow2");
  spill("one.xml", "<domain/>\n", 10);
  return 0;
}

/* ---- the check: pure ----------------------------------------------------- */

static void completes_a_specification(void **state)
{
  json_t *spec = parse("{'collection':{'CollectionId':'{6f1d0000-0000-4000-"
                       "8000-00000000c011}','ElementName':null,'machines':[{"
                       "'VirtualMachineId':'0c5a0000-0000-4000-8000-"
                       "000000000001'}]},'directory':'/x'}");
  json_t *c = json_object_get(spec, "collection"), *m;

  (void)state;
  assert_int_equal(cairn__export_check(spec, &err), 0);
  assert_string_equal(json_string_value(json_object_get(c, "CollectionId")),
                      "6F1D0000-0000-4000-8000-00000000C011");
  assert_null(json_object_get(c, "ElementName"));
  m = json_array_get(json_object_get(c, "machines"), 0);
  assert_string_equal(json_string_value(json_object_get(m, "VirtualMachineId")),
                      VM1);
  assert_true(json_is_array(json_object_get(m, "disks")));
  assert_true(json_is_array(json_object_get(m, "guest_state")));
  assert_string_equal(json_string_value(json_object_get(spec, "base")), "none");
  assert_string_equal(json_string_value(json_object_get(spec, "format")),
                      "qcow2");
  assert_string_equal(json_string_value(json_object_get(spec, "digest")),
                      "xxh3-128");
  assert_int_equal(cairn__export_check(spec, &err), 0); /* again: the same */
  json_decref(spec);
}

#define MACHINES(list)                                                         \
  "{'collection':{" FARM ",'machines':[" list "]},'directory':'/x'}"
#define MACHINE(more) "{'VirtualMachineId':'" VM1 "'" more "}"
#define DISK(more)    MACHINES(MACHINE(",'disks':[{" more "}]"))

static void refuses_a_wrong_specification_and_says_where(void **state)
{
  static const struct {
    const char *spec;
    int id;
    const char *says;
  } cases[] = {
      {"[]", CAIRN_E_WRONG_TYPE, "export must be an object, not an array"},
      {"{}", CAIRN_E_INVALID_ARGUMENT, "export.directory is missing"},
      {"{'directory':'/x'}", CAIRN_E_INVALID_ARGUMENT,
       "export.collection is missing"},
      {"{'directory':'/"
       "x','point':'BBBBBBBB-0000-4000-8000-000000000001','collection':{" FARM
       ",'machines':[" MACHINE("") "]}}",
       CAIRN_E_INVALID_ARGUMENT,
       "export.collection does not go with export.point"},
      {"{'directory':'/x','point':'66'}", CAIRN_E_INVALID_ARGUMENT,
       "export.point must be a GUID"},
      {"{'collektion':{}}", CAIRN_E_UNKNOWN_KEY, "\"collection\"?"},
      {"{'collection':{" FARM ",'machines':[]},'directory':'/x'}",
       CAIRN_E_INVALID_ARGUMENT, "export.collection.machines must name"},
      {"{'collection':{'CollectionId':'6F1D','machines':[]},'directory':'/x'}",
       CAIRN_E_INVALID_ARGUMENT,
       "export.collection.CollectionId must be a GUID"},
      {"{'collection':{" FARM ",'machines':{}},'directory':'/x'}",
       CAIRN_E_WRONG_TYPE, "export.collection.machines must be an array"},
      {"{'collection':{" FARM ",'machines':[3]},'directory':'/x'}",
       CAIRN_E_WRONG_TYPE,
       "export.collection.machines[1] must be an object, not a number"},
      {"{'collection':{" FARM ",'machines':[" MACHINE(
           "") "],'source_directories':['/a','b']},'directory':'/x'}",
       CAIRN_E_BAD_PATH, "source_directories[2] must be an absolute path"},
      {"{'collection':{" FARM ",'machines':[" MACHINE("") "]},'directory':'x'}",
       CAIRN_E_BAD_PATH, "export.directory must be an absolute path"},
      {MACHINES(MACHINE("") "," MACHINE("")), CAIRN_E_DUPLICATE_ID,
       "machines[2].VirtualMachineId"},
      {MACHINES(MACHINE("") ",{'VirtualMachineId':"
                            "'{0c5a0000-0000-4000-8000-000000000001}'}"),
       CAIRN_E_DUPLICATE_ID, VM1},
      {MACHINES(MACHINE(",'config':'/x'")), CAIRN_E_WRONG_TYPE,
       "machines[1].config must be an array of absolute paths, not a string"},
      {MACHINES(MACHINE(",'runtime':['/a',7]")), CAIRN_E_WRONG_TYPE,
       "machines[1].runtime[2] must be an absolute path, not a number"},
      {MACHINES(MACHINE(",'guest_state':['a\\u0000b']")), CAIRN_E_BAD_PATH,
       "guest_state[1] must not contain a NUL"},
      {DISK("'id':'a','path':'/x'"), CAIRN_E_INVALID_ARGUMENT,
       "export.collection.machines[1].disks[1].format is missing"},
      {DISK("'id':'a','path':'/x','format':'vmdk'"), CAIRN_E_INVALID_ARGUMENT,
       "disks[1].format must be one of \"raw\", \"qcow2\", not \"vmdk\""},
      {DISK("'id':'a','path':'x','format':'raw'"), CAIRN_E_BAD_PATH,
       "disks[1].path must be an absolute path, not \"x\""},
      {DISK("'id':'a/b','path':'/x','format':'raw'"), CAIRN_E_INVALID_ARGUMENT,
       "disks[1].id must be 1 to 64"},
      {DISK("'id':'.a','path':'/x','format':'raw'"), CAIRN_E_INVALID_ARGUMENT,
       "not \".a\""},
      {DISK("'id':'','path':'/x','format':'raw'"), CAIRN_E_INVALID_ARGUMENT,
       "disks[1].id"},
      {DISK("'id':'a','path':'/x','format':'raw','assume_quiescent':1"),
       CAIRN_E_WRONG_TYPE, "assume_quiescent must be true or false"},
      {DISK("'id':'a','path':'/x','fromat':'raw'"), CAIRN_E_UNKNOWN_KEY,
       "disks[1].fromat: there is no such key; did you mean \"format\"?"},
      {DISK("'id':'a','path':'/x','format':'raw'},{'id':'a','path':'/y',"
            "'format':'raw'"),
       CAIRN_E_DUPLICATE_ID, "disks[2].id"},
      {DISK("'id':'a','path':'/x','format':'raw'},{'id':'A','path':'/y',"
            "'format':'raw'"),
       CAIRN_E_DUPLICATE_ID, "upper and lower case only"},
      {"{'collection':{" FARM ",'machines':[" MACHINE("") "]},'directory':'/x',"
                                                          "'base':'6F1'}",
       CAIRN_E_INVALID_ARGUMENT, "(or 4 or more of its first characters"},
      {"{'collection':{" FARM ",'machines':[" MACHINE("") "]},'directory':'/x',"
                                                          "'base':'newest'}",
       CAIRN_E_INVALID_ARGUMENT, "not \"newest\""},
      {"{'collection':{" FARM ",'machines':[" MACHINE("") "]},'directory':'/x',"
                                                          "'format':'tar'}",
       CAIRN_E_INVALID_ARGUMENT, "export.format must be one of"},
      {"{'collection':{" FARM ",'machines':[" MACHINE("") "]},'directory':'/x',"
                                                          "'digest':'md5'}",
       CAIRN_E_INVALID_ARGUMENT, "export.digest must be one of"},
      {"{'collection':{" FARM
       ",'machines':[" MACHINE("") "]},'directory':'/x',"
                                   "'on_disk_error':'ignore'}",
       CAIRN_E_INVALID_ARGUMENT,
       "on_disk_error must be one of \"fail\", \"continue\""},
      {"{'collection':{" FARM
       ",'machines':[" MACHINE("") "]},'directory':'/x','depth_limit':0}",
       CAIRN_E_OUT_OF_RANGE, "export.depth_limit must be 1 to 200 levels"},
      {"{'collection':{" FARM
       ",'machines':[" MACHINE("") "]},'directory':'/x','depth_limit':'2'}",
       CAIRN_E_WRONG_TYPE, "export.depth_limit must be a whole number"},
  };

  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    json_t *spec = parse(cases[i].spec);

    memset(&err, 0, sizeof err);
    assert_int_equal(cairn__export_check(spec, &err), -1);
    if (err.id != cases[i].id)
      fail_msg("%s: error %d, not %d: %s", cases[i].spec, err.id, cases[i].id,
               err.message);
    if (!strstr(err.message, cases[i].says))
      fail_msg("\"%s\" is not in: %s", cases[i].says, err.message);
    json_decref(spec);
  }
}

/* ---- what comes out ------------------------------------------------------ */

static void exports_raw_disks_of_every_length(void **state)
{
  static const size_t lengths[] = {0,     1,     511,   512,    513,
                                   65535, 65536, 65537, 1048577};
  const size_t count = sizeof lengths / sizeof lengths[0];

  (void)state;
  for (int is_raw = 0; is_raw < 2; is_raw++) {
    char text[4096], list[3072] = "", name[64];
    struct cairn__run *r;
    json_t *manifest;

    must_run("rm -rf out");
    for (size_t i = 0; i < count; i++) {
      size_t used = strlen(list);

      snprintf(name, sizeof name, "len%zu", lengths[i]);
      make_noise(name, lengths[i]);
      snprintf(list + used, sizeof list - used,
               "%s{'id':'%s','path':'$/%s','format':'raw'}", used ? "," : "",
               name, name);
    }
    snprintf(text, sizeof text,
             "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
             "','disks':[%s]}]},'directory':'$/out','format':'%s'}",
             list, is_raw ? "raw" : "qcow2");
    r = must_export(text);
    manifest = read_manifest(r);
    for (size_t i = 0; i < count; i++) {
      size_t padded = (lengths[i] + 511) / 512 * 512;
      json_t *file;

      snprintf(name, sizeof name, VM1 "/len%zu.%s", lengths[i],
               is_raw ? "raw" : "qcow2");
      file = find_file(manifest, name);
      assert_int_equal(number(file, "length"), lengths[i]);
      assert_int_equal(number(file, "virtual_size"), padded);
      assert_int_equal(number(file, "bytes_read"), lengths[i]);
      if (is_raw) {
        must_run("cmp %s len%zu", point_file(r, name), lengths[i]);
        continue;
      }
      must_run("qemu-img check -q %s", point_file(r, name));
      must_run("qemu-img convert -f qcow2 -O raw %s back && "
               "cp len%zu want && truncate -s %zu want && cmp back want",
               point_file(r, name), lengths[i], padded);
    }
    json_decref(manifest);
    cairn__run_release(r);
  }
}

static void neither_reads_holes_nor_stores_zeros(void **state)
{
  struct cairn__run *r;
  json_t *manifest, *file;

  (void)state;
  must_run("rm -rf out");
  r = must_export(DISKS(RAW("vda", "sparse.raw")));
  manifest = read_manifest(r);
  file = find_file(manifest, VM1 "/vda.qcow2");
  assert_int_equal(number(file, "bytes_read"), 3 * 65536);
  assert_int_equal(number(file, "bytes_zero"), 65536);
  assert_int_equal(number(file, "bytes_written"), 2 * 65536);
  assert_int_equal(number(file, "bytes_skipped"), 16777216 - 196608);
  assert_int_equal(r->bytes_total, 3 * 65536);
  /* header, data, L2, L1, refcounts */
  assert_true(number(file, "size") <= 524288);
  expect_same(point_file(r, VM1 "/vda.qcow2"), "sparse.raw", "raw");
  json_decref(manifest);
  cairn__run_release(r);
}

static void exports_qcow2_of_every_kind(void **state)
{
  struct cairn__run *r;
  json_t *manifest;

  (void)state;
  must_run("rm -rf out *.q; "
           "qemu-img create -q -f raw deep.q 4M && "
           "qemu-io -f raw -c 'write -P 1 0 4M' deep.q && "
           "qemu-img create -q -f qcow2 -b deep.q -F raw mid.q 5M && "
           "qemu-io -f qcow2 -c 'write -P 2 1M 64k' -c 'write -z 2M 128k' "
           "mid.q && qemu-img create -q -f qcow2 -b mid.q -F qcow2 chain.q && "
           "qemu-io -f qcow2 -c 'write -P 3 100k 7k' -c 'discard 3M 64k' "
           "chain.q");
  must_run("head -c 700000 /dev/urandom | base64 >text && "
           "qemu-img convert -c -f raw -O qcow2 text packed.q");
  must_run("qemu-img create -q -f qcow2 snap.q 3M && "
           "qemu-io -f qcow2 -c 'write -P 5 0 1M' snap.q && "
           "qemu-img snapshot -c before snap.q && "
           "qemu-io -f qcow2 -c 'write -P 6 0 64k' snap.q");
  must_run("qemu-img create -q -f qcow2 -o compat=0.10 two.q 3M && "
           "qemu-io -f qcow2 -c 'write -P 5 1234 70000' two.q");
  must_run("qemu-img create -q -f qcow2 empty.q 0 && "
           "qemu-img create -q -f qcow2 hollow.q 1T");
  r = must_export(
      DISKS(QCOW2("chain", "chain.q") "," QCOW2("packed", "packed.q") "," QCOW2(
          "snap",
          "snap.q") "," QCOW2("two",
                              "two.q") "," QCOW2("empty",
                                                 "empty.q") "," QCOW2("hollow",
                                                                      "hollow."
                                                                      "q")));
  expect_same(point_file(r, VM1 "/chain.qcow2"), "chain.q", "qcow2");
  expect_same(point_file(r, VM1 "/packed.qcow2"), "packed.q", "qcow2");
  expect_same(point_file(r, VM1 "/snap.qcow2"), "snap.q", "qcow2");
  expect_same(point_file(r, VM1 "/two.qcow2"), "two.q", "qcow2");
  expect_same(point_file(r, VM1 "/empty.qcow2"), "empty.q", "qcow2");
  expect_same(point_file(r, VM1 "/hollow.qcow2"), "hollow.q", "qcow2");
  manifest = read_manifest(r);
  assert_int_equal(
      number(find_file(manifest, VM1 "/snap.qcow2"), "internal_snapshots"), 1);
  assert_int_equal(
      number(find_file(manifest, VM1 "/hollow.qcow2"), "bytes_read"), 0);
  json_decref(manifest);
  cairn__run_release(r);
  must_run("rm -rf out");
}

static void copies_files_with_mode_and_times(void **state)
{
  struct timespec times[2] = {{.tv_sec = 5},
                              {.tv_sec = 1234567, .tv_nsec = 89}};
  struct cairn__run *r;
  struct stat st;
  json_t *manifest, *file;

  (void)state;
  must_run("rm -rf out d1 d2; mkdir d1 d2; printf one >d1/x.xml; "
           "printf two >d2/x.xml; printf three >d2/X.XML; chmod 4751 d2/x.xml; "
           "ln -s d1/x.xml link; : >d1/nothing; truncate -s 300000 d1/hole; "
           "printf end >>d1/hole");
  assert_int_equal(utimensat(scratch_fd, "d2/x.xml", times, 0), 0);
  r = must_export("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "','config':['$/d1/x.xml','$/d2/x.xml','$/d2/X.XML',"
                  "'$/link'],'runtime':['$/d1/nothing'],'guest_state':["
                  "'$/d1/hole','$/d1/../d1/x.xml']}]},'directory':'$/out'}");
  must_run("cmp %s d1/x.xml", point_file(r, VM1 "/config/x.xml"));
  must_run("cmp %s d2/x.xml", point_file(r, VM1 "/config/2-x.xml"));
  must_run("cmp %s d2/X.XML", point_file(r, VM1 "/config/3-X.XML"));
  must_run("cmp %s d1/x.xml", point_file(r, VM1 "/config/link"));
  must_run("cmp %s d1/nothing", point_file(r, VM1 "/runtime/nothing"));
  must_run("cmp %s d1/hole", point_file(r, VM1 "/guest-state/hole"));
  manifest = read_manifest(r);
  file = find_file(manifest, VM1 "/config/2-x.xml");
  assert_int_equal(number(file, "mode"), 04751);
  assert_int_equal(number(file, "mtime_ns"), 1234567000000089);
  assert_int_equal(number(file, "size"), 3);
  assert_int_equal(
      fstatat(scratch_fd, point_file(r, VM1 "/config/2-x.xml"), &st, 0), 0);
  assert_int_equal(st.st_mode & 07777, 0600);
  assert_int_equal(st.st_mtim.tv_sec, 1234567);
  json_decref(manifest);
  cairn__run_release(r);
}

static int count_fdatasync(const struct cairn_io *io, int fd)
{
  tick(io);
  return fdatasync(fd);
}

/* Not all at the end, where no request could interrupt it. */
static void syncs_a_large_file_while_it_is_copied(void **state)
{
  struct cairn__run *r;
  struct hook h;

  (void)state;
  must_run("rm -rf out large; truncate -s 100M large");
  hook_init(&h, 0, NULL);
  h.io.fdatasync = count_fdatasync;
  r = export_with("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "','runtime':['$/large']}]},'directory':'$/out'}",
                  &h.io);
  assert_int_equal(r->error.id, CAIRN_OK);
  assert_true(h.calls >= 3);
  must_run("cmp %s large && rm -rf out large",
           point_file(r, VM1 "/runtime/large"));
  cairn__run_release(r);
}

static void shows_nothing_to_others_and_leaves_nothing_else(void **state)
{
  struct cairn__run *r;
  char *list, want[2048];
  mode_t old = umask(0);

  (void)state;
  must_run("rm -rf out");
  r = must_export(
      "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
      "','disks':[" QCOW2("vda", "a.qcow2") "," RAW(
          "vdb", "a.raw") "],'config':['$/one.xml']},{'VirtualMachineId':'" VM2
                          "'}]},'directory':'$/out/'}");
  umask(old);
  assert_int_equal(
      run(&list, "cd out && find . -printf '%%m %%y %%P\\n' | LC_ALL=C sort"),
      0);
  snprintf(want, sizeof want,
           "600 f .cairn.lock\n"
           "600 f %s/" VM1 "/config/one.xml\n"
           "600 f %s/" VM1 "/vda.digests\n"
           "600 f %s/" VM1 "/vda.qcow2\n"
           "600 f %s/" VM1 "/vdb.digests\n"
           "600 f %s/" VM1 "/vdb.qcow2\n"
           "600 f %s/chain.secret\n"
           "600 f %s/manifest.json\n"
           "700 d \n"
           "700 d %s\n"
           "700 d %s/" VM1 "\n"
           "700 d %s/" VM1 "/config\n",
           r->point_uuid, r->point_uuid, r->point_uuid, r->point_uuid,
           r->point_uuid, r->point_uuid, r->point_uuid, r->point_uuid,
           r->point_uuid, r->point_uuid);
  assert_string_equal(list, want);
  free(list);
  cairn__run_release(r);
}

static const char *item(const json_t *properties, const char *name, size_t i)
{
  return json_string_value(
      json_array_get(json_object_get(properties, name), i));
}

static void reports_the_properties_in_pairs(void **state)
{
  struct cairn__run *r;
  const json_t *p;
  char want[512];

  (void)state;
  must_run("rm -rf out");
  r = must_export(
      "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM2
      "','runtime':['$/one.xml','$/a.raw']},"
      "{'VirtualMachineId':'" VM1 "','disks':[" RAW("b", "b.raw") "," RAW(
          "a", "a.raw") "],'config':['$/one.xml']}]},'directory':'$/out//'}");
  p = json_object_get(r->report, "properties");
  assert_string_equal(
      json_string_value(json_object_get(p, "ReferencePointGroupId")),
      r->point_uuid);
  assert_true(json_is_null(json_object_get(p, "BaseReferencePointGroupId")));
  assert_string_equal(item(p, "VirtualMachineId", 0), VM2);
  assert_string_equal(item(p, "VirtualMachineId", 1), VM1);
  assert_string_equal(item(p, "ExportedDisks", 0), VM1 "/b");
  assert_string_equal(item(p, "ExportedDisks", 1), VM1 "/a");
  snprintf(want, sizeof want, "%s/out/%s/" VM1 "/b.qcow2", scratch_path,
           r->point_uuid);
  assert_string_equal(item(p, "ExportedLogFilePaths", 0), want);
  assert_int_equal(access(want, R_OK), 0);
  assert_string_equal(item(p, "ExportedConfigFilePaths", 0), "");
  snprintf(want, sizeof want, "%s/out/%s/" VM1 "/config/one.xml", scratch_path,
           r->point_uuid);
  assert_string_equal(item(p, "ExportedConfigFilePaths", 1), want);
  assert_int_equal(access(want, R_OK), 0);
  snprintf(want, sizeof want, "%s/out/%s/" VM2 "/runtime", scratch_path,
           r->point_uuid);
  assert_string_equal(item(p, "ExportedRuntimeFilePaths", 0), want);
  assert_int_equal(access(want, R_OK), 0);
  assert_string_equal(item(p, "ExportedRuntimeFilePaths", 1), "");
  assert_string_equal(item(p, "ExportedGuestStateFilePaths", 1), "");
  cairn__run_release(r);
}

static void takes_paths_of_every_kind(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out; mkdir -p 'a b' 'd\xc3\xa9j\xc3\xa0' sub; "
           "cp a.raw 'a b/x y.raw'; cp a.qcow2 'd\xc3\xa9j\xc3\xa0/\xe2\x98\x83"
           ".qcow2'; cp one.xml \"$(printf 'new\\nline.xml')\"");
  r = must_export(
      "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
      "','disks':[" RAW("vda", "a b/x y.raw") "," QCOW2(
          "vdb",
          "sub/../d\xc3\xa9j\xc3\xa0/\xe2\x98\x83.qcow2") "],'config':['$/"
                                                          "new\\nline.xml']}]},"
                                                          "'directory':"
                                                          "'$/sub/../out'}");
  expect_same(point_file(r, VM1 "/vda.qcow2"), "a.raw", "raw");
  expect_same(point_file(r, VM1 "/vdb.qcow2"), "a.qcow2", "qcow2");
  cairn__run_release(r);
}

static void reads_a_disk_that_occurs_twice(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out");
  r = must_export(DISKS(QCOW2("vda", "a.qcow2") "," QCOW2(
      "vdb", "a.qcow2") "," RAW("vdc", "a.raw") "," RAW("vdd", "a.raw")));
  must_run("cmp %s %s", point_file(r, VM1 "/vda.qcow2"),
           point_file(r, VM1 "/vdb.qcow2"));
  expect_same(point_file(r, VM1 "/vdd.qcow2"), "a.raw", "raw");
  cairn__run_release(r);
}

static void follows_a_link_to_the_directory(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out real; mkdir real; ln -s real out");
  r = must_export(DISKS(RAW("vda", "a.raw")));
  must_run("test -f real/%s/manifest.json", r->point_uuid);
  cairn__run_release(r);
  must_run("rm -rf out real");
}

static void counts_points_and_bases_one_on_the_other(void **state)
{
  static const char text[] =
      "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
      "','disks':[" RAW("vda", "a.raw") "]}]},'directory':'$/out','base':"
                                        "'latest'}";
  struct cairn__run *r;
  json_t *manifest;
  const json_t *file;
  char first[37];

  (void)state;
  must_run("rm -rf out");
  r = must_export(text);
  manifest = read_manifest(r);
  assert_int_equal(number(manifest, "sequence"), 1);
  assert_int_equal(json_array_size(r->warnings), 0);
  assert_true(json_is_null(
      json_object_get(find_file(manifest, VM1 "/vda.qcow2"), "fallback")));
  snprintf(first, sizeof first, "%s", r->point_uuid);
  json_decref(manifest);
  cairn__run_release(r);

  r = must_export(text);
  manifest = read_manifest(r);
  file = find_file(manifest, VM1 "/vda.qcow2");
  assert_int_equal(number(manifest, "sequence"), 2);
  assert_int_equal(number(manifest, "epoch"), 7);
  assert_int_equal(json_array_size(r->warnings), 0);
  assert_string_equal(json_string_value(json_object_get(file, "role")), "log");
  assert_string_equal(json_string_value(json_object_get(file, "base")), first);
  assert_string_equal(json_string_value(json_object_get(file, "tracker")),
                      "digest");
  assert_int_equal(number(file, "bytes_written"), 0);
  expect_same(point_file(r, VM1 "/vda.qcow2"), "a.raw", "raw");
  json_decref(manifest);
  cairn__run_release(r);

  /* without asking for a base: no warning */
  r = must_export(DISKS(RAW("vda", "a.raw")));
  manifest = read_manifest(r);
  assert_int_equal(number(manifest, "sequence"), 3);
  assert_int_equal(json_array_size(r->warnings), 0);
  json_decref(manifest);
  cairn__run_release(r);
}

/* A number is given once, whatever became of the point that had it. */
static void never_gives_a_sequence_twice(void **state)
{
  static const char *const fates[] = {
      "printf x | dd of=$p/manifest.json bs=1 seek=200 conv=notrunc "
      "status=none",
      ": >$p/manifest.json", "rm $p/manifest.json", "rm -r $p"};
  struct cairn__run *r;
  json_t *manifest;

  (void)state;
  must_run("rm -rf out");
  for (json_int_t i = 0; i < 5; i++) {
    r = must_export(DISKS(RAW("vda", "a.raw")));
    manifest = read_manifest(r);
    assert_int_equal(number(manifest, "sequence"), i + 1);
    json_decref(manifest);
    if (i < 4)
      must_run("p=%s; %s", point_file(r, ""), fates[i]);
    cairn__run_release(r);
  }
  /* another collection counts on its own */
  r = must_export("{'collection':{'CollectionId':'6F1D0000-0000-4000-8000-"
                  "00000000C012','machines':[{'VirtualMachineId':'" VM1
                  "','config':['$/one.xml']}]},'directory':'$/out'}");
  manifest = read_manifest(r);
  assert_int_equal(number(manifest, "sequence"), 1);
  json_decref(manifest);
  cairn__run_release(r);
  /* without what was kept, the manifests that can be read say it */
  must_run("printf '99999\\nnonsense\\n' >out/.cairn.lock");
  r = must_export(DISKS(RAW("vda", "a.raw")));
  manifest = read_manifest(r);
  assert_int_equal(number(manifest, "sequence"), 6);
  json_decref(manifest);
  cairn__run_release(r);
}

/* Not even a lock file: verify would find it. */
static void leaves_the_inside_of_a_point_alone(void **state)
{
  static const char *const places[] = {"", "/" VM1, "/" VM1 "/config",
                                       "/" VM1 "/new"};
  struct cairn__run *r;
  char point[64], *before, *after;

  (void)state;
  must_run("rm -rf out");
  r = must_export("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "','config':['$/one.xml']}]},'directory':'$/out'}");
  snprintf(point, sizeof point, "%s", r->point_uuid);
  cairn__run_release(r);
  assert_int_equal(run(&before, "find out/%s | sort", point), 0);
  for (int is_damaged = 0; is_damaged < 2; is_damaged++) {
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
      char text[1024];

      snprintf(text, sizeof text,
               "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
               "','config':['$/one.xml']}]},'directory':'$/out/%s%s'}",
               point, places[i]);
      r = export_with(text, NULL);
      assert_int_equal(err.id, CAIRN_E_BAD_PATH);
      assert_non_null(strstr(err.message, "is a reference point or lies in"));
      cairn__run_release(r);
    }
    must_run("printf x >>out/%s/manifest.json", point);
  }
  assert_int_equal(run(&after, "find out/%s | sort", point), 0);
  assert_string_equal(before, after);
  free(before);
  free(after);
}

static void gives_the_same_bytes_whatever_the_timing(void **state)
{
  struct cairn__run *a, *b;

  (void)state;
  must_run("rm -rf out; dd if=/dev/urandom of=big.raw bs=1M count=9 "
           "status=none");
  a = must_export(DISKS(RAW("vda", "big.raw")));
  b = must_export(DISKS(RAW("vda", "big.raw")));
  /* apart from the point's id in the header */
  must_run("cmp -i 65536 %s %s", point_file(a, VM1 "/vda.qcow2"),
           point_file(b, VM1 "/vda.qcow2"));
  cairn__run_release(a);
  cairn__run_release(b);
}

static void exports_a_block_device(void **state)
{
  char *loop, text[1024];
  struct cairn__run *r;

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("rm -rf out; dd if=/dev/urandom of=dev.img bs=512 count=3001 "
           "status=none");
  if (run(&loop, "losetup --find --show dev.img") != 0) {
    free(loop);
    skip_because("needs a free loop device");
    return;
  }
  loop[strcspn(loop, "\n")] = '\0';
  snprintf(text, sizeof text,
           "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
           "','disks':[{'id':'vda','path':'%s','format':'raw'},{'id':'vdb',"
           "'path':'%s','format':'raw'}]}]},'directory':'$/out'}",
           loop, loop);
  r = export_with(text, NULL);
  must_run("losetup -d %s", loop);
  free(loop);
  if (r->error.id != CAIRN_OK)
    fail_msg("%s", r->error.message);
  expect_same(point_file(r, VM1 "/vda.qcow2"), "dev.img", "raw");
  expect_same(point_file(r, VM1 "/vdb.qcow2"), "dev.img", "raw");
  cairn__run_release(r);
}

static void needs_little_memory_for_a_huge_disk(void **state)
{
#ifdef CAIRN_SANITIZED
  (void)state;
  skip_because("measures memory, which a sanitizer uses itself");
#else
  struct cairn__run *r;
  struct rusage usage;

  (void)state;
  must_run("rm -rf out huge.raw; truncate -s 1T huge.raw && printf x | "
           "dd of=huge.raw bs=1 seek=999999999999 conv=notrunc status=none");
  r = must_export(DISKS(RAW("vda", "huge.raw")));
  getrusage(RUSAGE_SELF, &usage);
  assert_true(usage.ru_maxrss < 100 << 10);
  expect_same(point_file(r, VM1 "/vda.qcow2"), "huge.raw", "raw");
  cairn__run_release(r);
  must_run("rm -rf out huge.raw");
#endif
}

/* ---- bad sources --------------------------------------------------------- */

static void names_machine_disk_and_path_of_a_bad_source(void **state)
{
  (void)state;
  expect_failure(DISKS(RAW("vda", "a.raw") "," RAW("vdb", "absent.raw")),
                 CAIRN_E_SOURCE_MISSING, "absent.raw");
  assert_string_equal(err.machine, VM1);
  assert_string_equal(err.disk, "vdb");
  assert_non_null(strstr(err.path, "absent.raw"));
  assert_non_null(strstr(err.message, "disk vdb"));
}

static void refuses_bad_sources(void **state)
{
  (void)state;
  must_run("rm -rf bad; mkdir bad; mkfifo bad/fifo; cp a.qcow2 bad/q; "
           "truncate -s 400k bad/q; cp a.qcow2 bad/marked; "
           "printf '\\002' | dd of=bad/marked bs=1 seek=79 conv=notrunc "
           "status=none; mkdir bad/in; "
           "qemu-img create -q -f qcow2 -b ../../a.qcow2 -F qcow2 bad/in/top");
  alarm(60); /* a fifo must not be waited for */
  expect_failure(DISKS(RAW("vda", "bad/fifo")), CAIRN_E_BAD_PATH, "a fifo");
  alarm(0);
  expect_failure(DISKS(RAW("vda", "bad")), CAIRN_E_BAD_PATH, "a directory");
  expect_failure(DISKS(RAW("vda", "a.qcow2")), CAIRN_E_SOURCE_FORMAT,
                 "declared raw but begins with a qcow2 header");
  expect_failure(DISKS(QCOW2("vda", "a.raw")), CAIRN_E_SOURCE_FORMAT,
                 "no qcow2 header");
  expect_failure(DISKS(QCOW2("vda", "bad/q")), CAIRN_E_SOURCE_CORRUPT,
                 "beyond the end of the file");
  expect_failure(DISKS(QCOW2("vda", "bad/marked")), CAIRN_E_SOURCE_CORRUPT,
                 "marked corrupt");
  expect_failure(DISKS(QCOW2("vda", "bad/in/top")), CAIRN_E_BACKING_FILE,
                 "source_directories");
  expect_failure("{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
                 "','config':['$/absent.xml']}]},'directory':'$/out'}",
                 CAIRN_E_SOURCE_MISSING, "absent.xml");
  expect_failure("{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
                 "','config':['$/bad/fifo']}]},'directory':'$/out'}",
                 CAIRN_E_BAD_PATH, "only regular files");
  expect_failure("{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
                 "','config':['$/bad']}]},'directory':'$/out'}",
                 CAIRN_E_BAD_PATH, "name the files in it");
}

#define FILES(lists)                                                           \
  "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1              \
  "','ElementName':'web1'," lists "}]},'directory':'$/out'}"

static void names_the_machine_the_list_and_the_place(void **state)
{
  (void)state;
  expect_failure(FILES("'config':['$/a.raw'],'runtime':['$/a.raw',"
                       "'$/absent.save']"),
                 CAIRN_E_SOURCE_MISSING,
                 "machine web1 (" VM1 "): runtime[2]: ");
  assert_string_equal(err.machine, VM1);
  expect_failure(FILES("'guest_state':['$/absent.vars']"),
                 CAIRN_E_SOURCE_MISSING, "): guest_state[1]: ");
  expect_failure(FILES("'disks':[" RAW("vda", "absent.raw") "]"),
                 CAIRN_E_SOURCE_MISSING, "machine web1 (" VM1 "), disk vda: ");
}

/* Files of /proc and /sys: their size tells nothing. */
static void refuses_files_that_are_made_when_read(void **state)
{
  (void)state;
  expect_failure(FILES("'config':['/proc/cpuinfo']"), CAIRN_E_BAD_PATH,
                 "config[1]: \"/proc/cpuinfo\" holds data although its size "
                 "is 0");
  expect_failure(DISKS("{'id':'vda','path':'/proc/cpuinfo','format':'raw'}"),
                 CAIRN_E_BAD_PATH, "holds more data than its size (0 bytes)");
  if (access("/sys/kernel/uevent_seqnum", R_OK) != 0)
    skip_because("needs /sys");
  expect_failure(FILES("'runtime':['/sys/kernel/uevent_seqnum']"),
                 CAIRN_E_BAD_PATH, "holds less data than its size");
  expect_failure(
      DISKS("{'id':'vda','path':'/sys/kernel/uevent_seqnum','format':'raw'}"),
      CAIRN_E_BAD_PATH, "holds less data than its size");
}

static void warns_of_a_machine_without_anything(void **state)
{
  struct cairn__run *r;
  const char *warning;

  (void)state;
  must_run("rm -rf out");
  r = must_export("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "','config':['$/a.raw']},{'VirtualMachineId':'" VM2
                  "','ElementName':'db'}]},'directory':'$/out'}");
  assert_int_equal(json_array_size(r->warnings), 1);
  warning = json_string_value(json_array_get(r->warnings, 0));
  if (!strstr(warning, "machine db (" VM2 ") has neither disks nor files"))
    fail_msg("%s", warning);
  cairn__run_release(r);
}

/* Nor does a failure leave the export directory, if it made it. */
static void leaves_no_new_directory_behind(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out");
  r = export_with(DISKS(RAW("vda", "absent.raw")), NULL);
  assert_int_equal(err.id, CAIRN_E_SOURCE_MISSING);
  cairn__run_release(r);
  must_run("test ! -e out");
  must_run("mkdir out");
  r = export_with(DISKS(RAW("vda", "absent.raw")), NULL);
  cairn__run_release(r);
  must_run("test -d out && rmdir out 2>/dev/null || test -e out/.cairn.lock");
  must_run("rm -rf out");
  r = must_export(DISKS(RAW("vda", "a.raw")));
  cairn__run_release(r);
  expect_entries(1, 0);
}

/* Tables that only QEMU looks at: it says so itself. */
static void passes_on_what_qemu_finds_corrupt(void **state)
{
  (void)state;
  must_run("rm -f crc; qemu-img create -q -f qcow2 crc 1M; "
           "qemu-img snapshot -c s crc; "
           "printf '\\001' | dd of=crc bs=1 seek=71 conv=notrunc status=none");
  expect_failure(DISKS(QCOW2("vda", "crc")), CAIRN_E_SOURCE_CORRUPT,
                 "qemu-nbd");
}

static void refuses_a_disk_that_is_in_use(void **state)
{
  int ready[2], hold[2];
  char c;
  pid_t pid;

  (void)state;
  assert_int_equal(pipe(ready), 0);
  assert_int_equal(pipe(hold), 0);
  pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    struct flock lock = {.l_type = F_RDLCK, .l_start = 101, .l_len = 1};
    int fd = openat(scratch_fd, "a.raw", O_RDWR);

    close(hold[1]);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0 && write(ready[1], "x", 1) == 1)
      (void)!read(hold[0], &c, 1);
    _exit(0);
  }
  close(hold[0]);
  close(ready[1]);
  assert_int_equal(read(ready[0], &c, 1), 1);
  {
    struct cairn__run *r;

    must_run("rm -rf out");
    r = export_with(DISKS(RAW("vda", "a.raw")), NULL);
    cairn__run_release(r);
  }
  close(hold[1]);
  close(ready[0]);
  assert_int_equal(waitpid(pid, NULL, 0), pid);
  assert_int_equal(err.id, CAIRN_E_SOURCE_IN_USE);
  assert_non_null(strstr(err.message, "process "));
  expect_entries(0, 0);
}

static void touch_raw(struct hook *h)
{
  int fd = openat(scratch_fd, "moving.raw", O_WRONLY);

  (void)h;
  assert_int_equal(pwrite(fd, "changed", 7, 1000), 7);
  close(fd);
}

static void cut_raw(struct hook *h)
{
  (void)h;
  must_run("truncate -s 1M moving.raw");
}

/* Who would write a layer of the chain, or start a guest on it. */
static void try_to_write_layers(struct hook *h)
{
  static const char *const layers[] = {"top.q qcow2", "mid.q qcow2",
                                       "base.r raw"};

  for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++)
    must_run("set -- %s; qemu-io -f $2 -c 'write 0 512' $1 >said 2>&1 && "
             "exit 1; grep -q 'lock' said",
             layers[i]);
  h->request++; /* how often it was tried */
}

static void keeps_writers_from_every_layer_while_it_reads(void **state)
{
  static const unsigned moments[] = {1, 4, 9};

  (void)state;
  must_run("rm -f top.q mid.q base.r; truncate -s 16M base.r; "
           "qemu-io -f raw -c 'write -P 1 0 8M' base.r; "
           "qemu-img create -q -f qcow2 -b base.r -F raw mid.q; "
           "qemu-io -f qcow2 -c 'write -P 2 2M 3M' mid.q; "
           "qemu-img create -q -f qcow2 -b mid.q -F qcow2 top.q; "
           "qemu-io -f qcow2 -c 'write -P 3 7M 4M' top.q");
  for (size_t i = 0; i < sizeof moments / sizeof moments[0]; i++) {
    struct cairn__run *r;
    struct hook h;

    must_run("rm -rf out");
    hook_init(&h, moments[i], try_to_write_layers);
    h.io.pwritev = hook_pwritev;
    r = export_with(DISKS(QCOW2("vda", "top.q")), &h.io);
    if (r->error.id != CAIRN_OK)
      fail_msg("%s", r->error.message);
    assert_int_equal(h.request, 1);
    expect_same(point_file(r, VM1 "/vda.qcow2"), "top.q", "qcow2");
    cairn__run_release(r);
  }
  /* and lets them again */
  must_run("qemu-io -f raw -c 'write 0 512' base.r");
}

static void touch_config(struct hook *h)
{
  (void)h;
  must_run("printf more >>moving.xml");
}

static void notices_a_source_that_changes(void **state)
{
  struct hook h;

  (void)state;
  make_noise("moving.raw", 3 << 20);
  hook_init(&h, 1, touch_raw);
  h.io.pwritev = hook_pwritev;
  expect_failure_with(DISKS(RAW("vda", "moving.raw")), &h.io,
                      CAIRN_E_SOURCE_CHANGED, "modification time");
  assert_string_equal(err.disk, "vda");

  make_noise("moving.raw", 3 << 20);
  hook_init(&h, 1, cut_raw);
  h.io.pwritev = hook_pwritev;
  expect_failure_with(DISKS(RAW("vda", "moving.raw")), &h.io,
                      CAIRN_E_SOURCE_CHANGED, "moving.raw");

  /* the first of two, after it was copied */
  make_noise("moving.raw", 1 << 20);
  hook_init(&h, 2, touch_raw);
  h.io.pwritev = hook_pwritev;
  expect_failure_with(DISKS(RAW("vda", "moving.raw") "," RAW("vdb", "a.raw")),
                      &h.io, CAIRN_E_SOURCE_CHANGED, "moving.raw");
  assert_string_equal(err.disk, "vda");

  /* a configuration file, after the point */
  spill("moving.xml", "x", 1);
  hook_init(&h, 1, touch_config);
  h.io.pwritev = hook_pwritev;
  expect_failure_with(
      "{'collection':{" FARM ",'machines':[{"
      "'VirtualMachineId':'" VM1 "','disks':[" RAW(
          "vda", "a.raw") "],'config':['$/moving.xml']}]},'directory':"
                          "'$/out'}",
      &h.io, CAIRN_E_SOURCE_CHANGED, "moving.xml");
}

static ssize_t read_bad(const struct cairn_io *io, int fd, void *buf, size_t n,
                        off_t offset)
{
  const struct hook *h = (const struct hook *)io;
  struct stat st;

  /* there is no bad place behind the end of a file */
  if (fstat(fd, &st) == 0 && (uint64_t)st.st_size > h->bad_offset &&
      (uint64_t)offset <= h->bad_offset &&
      h->bad_offset < (uint64_t)offset + n && n >= 4096) {
    errno = EIO;
    return -1;
  }
  return pread(fd, buf, n, offset);
}

static void names_the_unreadable_place(void **state)
{
  struct hook h;

  (void)state;
  make_noise("moving.raw", 3 << 20);
  hook_init(&h, 0, NULL);
  h.io.pread = read_bad;
  h.bad_offset = 234567; /* in the first piece: nothing is written yet */
  expect_failure_with(DISKS(RAW("vda", "moving.raw")), &h.io, CAIRN_E_IO_ERROR,
                      "moving.raw");
  assert_int_equal(err.offset, 234567 / 4096 * 4096);
  assert_int_equal(err.system_errno, EIO);
}

/* ---- qemu-nbd and its troubles ------------------------------------------- */

/* Puts a script in the place of qemu-nbd; it gets the real one's arguments. */
static char *old_path;

static void replace_server(const char *script)
{
  const char *path_now = getenv("PATH");
  char path[4096];

  must_run("mkdir -p bin && rm -f bin/*");
  if (script) {
    spill("bin/qemu-nbd", script, strlen(script));
    must_run("chmod 755 bin/qemu-nbd");
  }
  if (path_now == NULL)
    path_now = "/usr/bin:/bin";
  old_path = strdup(path_now);
  assert_non_null(old_path);
  snprintf(path, sizeof path, "%s/bin%s%s", scratch_path, script ? ":" : "",
           script ? old_path : "");
  setenv("PATH", path, 1);
}

static void restore_server(void)
{
  setenv("PATH", old_path, 1);
  free(old_path);
}

/* The real program behind an image that cannot be read at one sector. */
static const char bad_sector_server[] =
    "#!/bin/bash\n"
    "PATH=${PATH#*:}\n"
    "for a do case $a in\n"
    "json:*) b=${a//'\"file\":{\"driver\":\"file\"'/"
    "'\"file\":{\"driver\":\"blkdebug\",\"inject-error\":[{\"event\":\"none\","
    "\"iotype\":\"read\",\"errno\":5,\"sector\":SECTOR}],\"image\":"
    "{\"driver\":\"file\"'}; b=${b//'\"locking\":\"on\"}'/"
    "'\"locking\":\"on\"}}'}; set -- \"$@\" \"$b\";;\n"
    "*) set -- \"$@\" \"$a\";; esac; shift; done\n"
    "exec qemu-nbd \"$@\"\n";

static void finds_the_unreadable_place_behind_the_server(void **state)
{
  char script[2048], *sector;
  int points, partial;
  struct cairn__run *r;

  (void)state;
  /* 6 MiB of data from file offset 5 * 64 KiB on: guest offset 3 MiB + 8 KiB */
  must_run("rm -rf out big.q; qemu-img create -q -f qcow2 big.q 8M; "
           "qemu-io -f qcow2 -c 'write -P 9 0 6M' big.q");
  snprintf(script, sizeof script, "%s", bad_sector_server);
  sector = strstr(script, "SECTOR");
  snprintf(sector, sizeof script - (size_t)(sector - script), "%d%s",
           (5 * 65536 + (3 << 20) + 8192) / 512,
           strstr(bad_sector_server, "SECTOR") + 6);
  replace_server(script);
  r = export_with(DISKS(QCOW2("vda", "big.q")), NULL);
  restore_server();
  if (err.id != CAIRN_E_IO_ERROR)
    fail_msg("error %d: %s", err.id, err.message);
  assert_int_equal(err.offset, (3 << 20) + 8192);
  assert_string_equal(err.disk, "vda");
  cairn__run_release(r);
  /* What was written before, if anything, is kept for the next run. */
  count_entries("out", &points, &partial);
  assert_int_equal(points, 0);
}

static void names_the_package_that_is_missing(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out");
  replace_server(NULL);
  r = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
  restore_server();
  assert_int_equal(err.id, CAIRN_E_HELPER_MISSING);
  assert_non_null(strstr(err.message, "qemu-utils"));
  cairn__run_release(r);
  expect_entries(0, 0);
}

static void passes_on_what_the_server_said(void **state)
{
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out");
  replace_server("#!/bin/sh\necho no luck today >&2\nexit 3\n");
  r = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
  restore_server();
  assert_int_equal(err.id, CAIRN_E_HELPER_FAILED);
  assert_non_null(strstr(err.message, "no luck today"));
  cairn__run_release(r);
  expect_entries(0, 0);
}

/* The lines of a server that says the same over and over, then dies. */
static void tells_how_the_server_ended(void **state)
{
  struct cairn__run *r;
  const char *at;

  (void)state;
  must_run("rm -rf out");
  replace_server("#!/bin/sh\nfor i in one two three four five six; do "
                 "echo $i >&2; for k in 1 2 3; do echo again >&2; done; done\n"
                 "kill -9 $$\n");
  r = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
  assert_int_equal(err.id, CAIRN_E_HELPER_FAILED);
  assert_non_null(strstr(err.message, "was killed by signal 9: "));
  at = strstr(err.message, "four; five; six; again");
  if (!at || strstr(err.message, "three"))
    fail_msg("%s", err.message);
  cairn__run_release(r);
  restore_server();

  replace_server("#!/bin/sh\nexit 7\n");
  r = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
  assert_non_null(strstr(err.message, "exit code 7: it gave no reason"));
  cairn__run_release(r);
  restore_server();
}

static void *run_thread(void *argument)
{
  cairn__run_here(argument);
  return NULL;
}

static void ends_at_once_while_the_server_is_silent(void **state)
{
  struct cairn__run *r;
  struct timespec start, end;
  pthread_t thread;

  (void)state;
  must_run("rm -rf out started");
  replace_server("#!/bin/sh\n: >started\nexec sleep 600\n");
  r = new_run(DISKS(QCOW2("vda", "a.qcow2")), NULL, NULL);
  assert_int_equal(pthread_create(&thread, NULL, run_thread, r), 0);
  for (int i = 0; i < 200 && faccessat(scratch_fd, "started", F_OK, 0); i++)
    poll(NULL, 0, 50);
  clock_gettime(CLOCK_MONOTONIC, &start);
  cairn__run_request(r, CAIRN__RUN_TERMINATE);
  pthread_join(thread, NULL);
  clock_gettime(CLOCK_MONOTONIC, &end);
  restore_server();
  assert_int_equal(r->error.id, CAIRN_E_TERMINATED);
  assert_true(end.tv_sec - start.tv_sec <= 2);
  cairn__run_release(r);
  expect_entries(0, 0);
}

static void *reap_everything(void *argument)
{
  const _Atomic int *is_over = argument;

  while (!*is_over) {
    if (waitpid(-1, NULL, WNOHANG) <= 0)
      poll(NULL, 0, 1);
  }
  return NULL;
}

/* A host that ignores SIGCHLD, and one that collects whatever child there is:
 * the server's end is seen all the same, and nobody waits for ever. */
static void lives_in_a_host_that_collects_children(void **state)
{
  (void)state;
  for (int is_reaping = 0; is_reaping < 2; is_reaping++) {
    _Atomic int is_over = 0;
    struct cairn__run *good, *bad;
    struct cairn_error error;
    pthread_t thread;

    must_run("rm -rf out");
    replace_server("#!/bin/sh\nexit 3\n");
    if (is_reaping)
      assert_int_equal(pthread_create(&thread, NULL, reap_everything, &is_over),
                       0);
    else
      signal(SIGCHLD, SIG_IGN);
    bad = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
    error = bad->error;
    restore_server();
    good = export_with(DISKS(QCOW2("vda", "a.qcow2")), NULL);
    is_over = 1;
    if (is_reaping)
      pthread_join(thread, NULL);
    signal(SIGCHLD, SIG_DFL);
    if (error.id != CAIRN_E_HELPER_FAILED)
      fail_msg("error %d: %s", error.id, error.message);
    if (good->error.id != CAIRN_OK)
      fail_msg("%s", good->error.message);
    cairn__run_release(bad);
    cairn__run_release(good);
    expect_entries(1, 0);
  }
}

static void kill_server(struct hook *h)
{
  (void)h;
  must_run("kill -9 $(cut -d' ' -f1 out/.partial-*/nbd-*.pid)");
}

static void notices_that_the_server_died(void **state)
{
  struct cairn__run *r;
  struct hook h;

  (void)state;
  must_run("rm -f big.q; qemu-img create -q -f qcow2 big.q 32M; "
           "qemu-io -f qcow2 -c 'write -P 9 0 32M' big.q");
  hook_init(&h, 2, kill_server);
  h.io.pwritev = hook_pwritev;
  must_run("rm -rf out");
  r = export_with(DISKS(QCOW2("vda", "big.q")), &h.io);
  assert_int_equal(err.id, CAIRN_E_HELPER_FAILED);
  assert_non_null(strstr(err.message, "killed by signal 9"));
  assert_non_null(strstr(json_string_value(json_array_get(r->warnings, 0)),
                         "out/.partial-"));
  cairn__run_release(r);
  expect_entries(0, 1);
}

/* ---- bad targets --------------------------------------------------------- */

static void refuses_bad_targets(void **state)
{
  struct cairn__run *r;
  char path[128];

  (void)state;
  must_run("rm -rf out file; : >file");
  r = export_with("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "'}]},'directory':'$/file'}",
                  NULL);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  assert_non_null(strstr(err.message, "not a directory"));
  cairn__run_release(r);
  r = export_with("{'collection':{" FARM
                  ",'machines':[{'VirtualMachineId':'" VM1
                  "'}]},'directory':'$/no/where'}",
                  NULL);
  assert_int_equal(err.id, CAIRN_E_BAD_PATH);
  assert_non_null(strstr(err.message, "would be in does not exist"));
  cairn__run_release(r);

  /* the point's own place is taken: even an empty directory stays */
  must_run("mkdir out");
  snprintf(path, sizeof path, "out/" POINT, serial + 1);
  must_run("mkdir %s", path);
  r = export_with(DISKS(RAW("vda", "a.raw")), NULL);
  assert_int_equal(err.id, CAIRN_E_EXISTS);
  cairn__run_release(r);
  must_run("rmdir %s", path);
}

/* Somebody takes the place at the last moment. */
static void take_place(struct hook *h)
{
  must_run("mkdir out/%s", h->run->point_uuid);
}

static int hook_renameat2(const struct cairn_io *io, int a, const char *old,
                          int b, const char *new_, unsigned flags)
{
  tick(io);
  return cairn__system_io.renameat2(&cairn__system_io, a, old, b, new_, flags);
}

static void never_replaces_anything(void **state)
{
  struct hook h;
  struct cairn__run *r;

  (void)state;
  must_run("rm -rf out");
  hook_init(&h, 1, take_place);
  h.io.renameat2 = hook_renameat2;
  r = new_run(DISKS(RAW("vda", "a.raw")), &h.io, NULL);
  h.run = r;
  cairn__run_here(r);
  assert_int_equal(r->error.id, CAIRN_E_EXISTS);
  must_run("rmdir out/%s", r->point_uuid); /* still empty */
  cairn__run_release(r);
  expect_entries(0, 0);
}

static void reports_a_full_file_system(void **state)
{
  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("mkdir -p small");
  if (mount("none", "small", "tmpfs", 0, "size=512k") != 0)
    skip_because("needs the right to mount a tmpfs");
  make_noise("moving.raw", 3 << 20);
  {
    struct cairn__run *r = export_with(
        "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
        "','disks':[" RAW("vda", "moving.raw") "]}]},'directory':'$/small'}",
        NULL);
    int points, partial;

    count_entries("small", &points, &partial);
    umount("small");
    assert_int_equal(err.id, CAIRN_E_DISK_FULL);
    assert_string_equal(err.machine, VM1);
    assert_string_equal(err.disk, "vda");
    assert_int_equal(points, 0);
    assert_int_equal(partial, 1); /* for the next run */
    cairn__run_release(r);
  }
}

static void refuses_to_write_into_what_it_reads(void **state)
{
  char *loop, text[1024];
  struct cairn__run *r;
  int by_file, by_device;

  (void)state;
  if (geteuid() != 0)
    skip_because("needs root");
  must_run("rm -rf disk.img mnt; truncate -s 16M disk.img; "
           "mkfs.ext4 -q -F disk.img; mkdir mnt");
  if (run(&loop, "losetup --find --show disk.img") != 0) {
    free(loop);
    skip_because("needs a free loop device");
    return;
  }
  loop[strcspn(loop, "\n")] = '\0';
  must_run("mount %s mnt", loop);
  r = export_with(
      "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
      "','disks':[" RAW("vda", "disk.img") "]}]},'directory':'$/mnt/out'}",
      NULL);
  by_file = err.id;
  cairn__run_release(r);
  snprintf(text, sizeof text,
           "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1
           "','disks':[{'id':'vda','path':'%s','format':'raw',"
           "'assume_quiescent':true}]}]},'directory':'$/mnt'}",
           loop);
  r = export_with(text, NULL);
  by_device = err.id;
  cairn__run_release(r);
  must_run("umount mnt; losetup -d %s", loop);
  free(loop);
  assert_int_equal(by_file, CAIRN_E_TARGET_IN_SOURCE);
  assert_int_equal(by_device, CAIRN_E_TARGET_IN_SOURCE);
}

static void export_meanwhile(struct hook *h)
{
  struct cairn__run *second = export_with(DISKS(RAW("vda", "a.raw")), NULL);
  char who[32];

  (void)h;
  snprintf(who, sizeof who, "process %d;", (int)getpid());
  assert_int_equal(second->error.id, CAIRN_E_DIRECTORY_LOCKED);
  assert_non_null(strstr(second->error.message, who));
  cairn__run_release(second);
}

static void lets_one_export_in_at_a_time(void **state)
{
  struct cairn__run *r;
  struct hook h;

  (void)state;
  must_run("rm -rf out");
  hook_init(&h, 1, export_meanwhile);
  h.io.pwritev = hook_pwritev;
  r = export_with(DISKS(RAW("vda", "a.raw")), &h.io);
  assert_int_equal(r->error.id, CAIRN_OK);
  assert_true(h.calls >= 1);
  cairn__run_release(r);
  expect_entries(1, 0);
}

/* ---- what others have left ----------------------------------------------- */

#define STALE ".partial-DDDDDDDD-0000-4000-8000-00000000000%d-1-1"

static void removes_what_is_ours_and_dead(void **state)
{
  struct cairn__run *r;
  struct flock lock = {.l_type = F_WRLCK};
  int fd;

  (void)state;
  must_run("rm -rf out; mkdir out; cd out; "
           "mkdir -p " STALE "/point/deep; : >" STALE "/owner.lock; "
           ": >" STALE "/point/deep/file; "
           "mkdir " STALE "; : >" STALE "/owner.lock; "
           "mkdir " STALE "; "
           "mkdir " STALE "; : >" STALE "/precious; "
           "mkdir .partial-mine; : >.partial-mine/owner.lock; "
           ": >" STALE "; ln -s .partial-mine " STALE,
           1, 1, 1, 2, 2, 3, 4, 4, 5, 6);
  fd = openat(scratch_fd,
              "out/.partial-DDDDDDDD-0000-4000-8000-"
              "000000000002-1-1/owner.lock",
              O_RDWR);
  assert_true(fd >= 0);
  assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
  r = must_export(DISKS(RAW("vda", "a.raw")));
  assert_int_equal(json_array_size(r->warnings), 0);
  cairn__run_release(r);
  must_run("cd out; test ! -e " STALE " -a -d " STALE " -a ! -e " STALE
           " -a -e " STALE
           "/precious -a -e .partial-mine/owner.lock -a -f " STALE
           " -a -L " STALE,
           1, 2, 3, 4, 5, 6);
  close(fd);
}

static void ends_a_server_that_was_left_and_no_other(void **state)
{
  struct cairn__run *r;
  pid_t left, other;
  int status;

  (void)state;
  left = fork();
  if (left == 0) {
    execlp("sleep", "sleep", "600", (char *)NULL);
    _exit(127);
  }
  other = fork();
  if (other == 0) {
    execlp("sleep", "sleep", "600", (char *)NULL);
    _exit(127);
  }
  /* until both have become sleep */
  must_run("for p in %d %d; do while [ \"$(cat /proc/$p/comm)\" != sleep ]; "
           "do :; done; done",
           (int)left, (int)other);
  must_run("rm -rf out; mkdir -p out/" STALE "; : >out/" STALE "/owner.lock; "
           "b=$(cat /proc/sys/kernel/random/boot_id); "
           "r() { echo $1 $(($(cut -d' ' -f22 /proc/$1/stat)+$2)) $b "
           "$(readlink /proc/$1/exe); }; "
           "r %d 0 >out/" STALE "/nbd-0.pid; r %d 1 >out/" STALE "/nbd-1.pid",
           1, 1, (int)left, 1, (int)other, 1);
  r = must_export(DISKS(RAW("vda", "a.raw")));
  cairn__run_release(r);
  assert_int_equal(waitpid(other, &status, WNOHANG), 0);
  kill(other, SIGKILL);
  assert_int_equal(waitpid(other, &status, 0), other);
  assert_int_equal(waitpid(left, &status, 0), left);
  assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  expect_entries(1, 0);
}

static void stop_here(struct hook *h)
{
  (void)h;
  kill(getpid(), SIGKILL);
}

static void leaves_no_server_when_it_is_killed(void **state)
{
  struct cairn__run *r;
  char *pid_text;
  pid_t pid;
  int status, is_there = 1;

  (void)state;
  must_run("rm -rf out");
  pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    struct hook h;

    hook_init(&h, 2, stop_here);
    h.io.pwritev = hook_pwritev;
    export_with(DISKS(QCOW2("vda", "a.qcow2") "," RAW("vdb", "a.raw")), &h.io);
    _exit(1);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFSIGNALED(status));
  expect_entries(0, 1);
  assert_int_equal(run(&pid_text, "cut -d' ' -f1 out/.partial-*/nbd-*.pid"), 0);
  for (int i = 0; i < 100 && is_there; i++) {
    is_there = run(NULL,
                   "test -d /proc/%d && ! grep -q zombie "
                   "/proc/%d/status",
                   atoi(pid_text), atoi(pid_text)) == 0;
    if (is_there)
      poll(NULL, 0, 50);
  }
  assert_true(atoi(pid_text) > 0);
  free(pid_text);
  assert_false(is_there);
  r = must_export(DISKS(QCOW2("vda", "a.qcow2")));
  cairn__run_release(r);
  expect_entries(1, 0);
}

/* ---- requests ------------------------------------------------------------ */

#define WHOLE                                                                  \
  "{'collection':{" FARM ",'machines':[{'VirtualMachineId':'" VM1              \
  "','disks':[" QCOW2("vda", "a.qcow2") "," RAW(                               \
      "vdb",                                                                   \
      "moving.raw") "],'config':['$/one.xml']},{'VirtualMachineId':'" VM2      \
                    "','runtime':['$/a.raw']}]},'directory':'$/out'}"

static unsigned calls_of_whole(void)
{
  struct hook h;
  struct cairn__run *r;

  hook_all(&h, 0, NULL);
  r = export_with(WHOLE, &h.io);
  assert_int_equal(r->error.id, CAIRN_OK);
  cairn__run_release(r);
  return h.calls;
}

static void ends_at_any_moment_without_a_trace(void **state)
{
  unsigned calls, terminated = 0;

  (void)state;
  random_begin("ends_at_any_moment_without_a_trace");
  make_noise("moving.raw", 3 << 20);
  must_run("rm -rf out");
  calls = calls_of_whole();
  for (int i = 0; i < 40; i++) {
    struct hook h;
    struct cairn__run *r;
    int points, partial, before = count_fds();

    must_run("rm -rf out");
    hook_all(&h, 1 + (unsigned)random_below(calls), send_request);
    h.request = i % 4 == 3 ? CAIRN__RUN_KILL : CAIRN__RUN_TERMINATE;
    r = new_run(WHOLE, &h.io, NULL);
    h.run = r;
    cairn__run_here(r);
    count_entries("out", &points, &partial);
    assert_int_equal(count_fds(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    if (r->error.id == CAIRN_OK) {
      assert_int_equal(points, 1); /* asked for after the last safe point */
      assert_int_equal(partial, 0);
    } else {
      terminated++;
      assert_int_equal(r->error.id, h.request == CAIRN__RUN_KILL
                                        ? CAIRN_E_KILLED
                                        : CAIRN_E_TERMINATED);
      assert_int_equal(points, 0);
      if (h.request == CAIRN__RUN_TERMINATE)
        assert_int_equal(partial, 0);
    }
    cairn__run_release(r);
    if (partial) {
      r = must_export(WHOLE);
      cairn__run_release(r);
      expect_entries(1, 0);
    }
  }
  assert_true(terminated > 20);
}

static void await_notice(struct cairn__mailbox *box, unsigned wanted)
{
  struct pollfd p = {.fd = cairn__mailbox_fd(box), .events = POLLIN};
  unsigned seen = 0;

  while (!(seen & wanted)) {
    struct cairn__run *r;
    unsigned notices;

    if (poll(&p, 1, 30000) != 1)
      fail_msg("no notice %u", wanted);
    while ((r = cairn__mailbox_take(box, &notices))) {
      seen |= notices;
      cairn__run_release(r);
    }
  }
}

/* Its thread has let go of it, too: what is left of it is freed here, not
 * beside what the next test does to the allocator. */
static void release_alone(struct cairn__run *r)
{
  for (int k = 0; k < 10000 && atomic_load(&r->references) > 1; k++)
    poll(NULL, 0, 1);
  assert_int_equal(atomic_load(&r->references), 1);
  cairn__run_release(r);
}

static void stands_still_while_suspended(void **state)
{
  struct cairn__mailbox *box = cairn__mailbox_new(&err);
  struct cairn__run *r;
  struct hook h;
  unsigned calls;

  (void)state;
  random_begin("stands_still_while_suspended");
  make_noise("moving.raw", 8 << 20);
  must_run("rm -rf out");
  calls = calls_of_whole();
  for (int i = 0; i < 8; i++) {
    uint64_t done;

    must_run("rm -rf out");
    hook_all(&h, 1 + (unsigned)random_below(calls / 2), send_request);
    h.request = CAIRN__RUN_SUSPEND;
    r = new_run(WHOLE, &h.io, box);
    h.run = r;
    assert_int_equal(cairn__run_start(r, &err), 0);
    await_notice(box, CAIRN__NOTICE_PARKED);
    done = r->bytes_done;
    poll(NULL, 0, 30);
    assert_int_equal(r->bytes_done, done);
    expect_entries(0, 1);
    cairn__run_request(r, i % 4 == 3 ? CAIRN__RUN_TERMINATE : CAIRN__RUN_GO);
    await_notice(box, CAIRN__NOTICE_DONE);
    assert_int_equal(r->error.id, i % 4 == 3 ? CAIRN_E_TERMINATED : CAIRN_OK);
    release_alone(r);
    expect_entries(i % 4 == 3 ? 0 : 1, 0);
  }
  cairn__mailbox_release(box);
}

static void stop_server(struct hook *h)
{
  must_run("kill -STOP $(cut -d' ' -f1 out/.partial-*/nbd-*.pid)");
  h->request = 1; /* done */
}

/* Counts only when the server is asked which blocks hold data. */
static int hook_status(const struct cairn_io *io, const char *what)
{
  if (strcmp(what, "nbd-status") == 0)
    tick(io);
  return 0;
}

static int64_t now_ms(void)
{
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The server stops for good: while data is read, while the disk is measured,
 * and while one thread of the copy asks for extents and the others wait for
 * it. Every request acts within a second all the same. */
static void obeys_while_the_server_is_stalled(void **state)
{
  static const int requests[] = {CAIRN__RUN_SUSPEND, CAIRN__RUN_TERMINATE,
                                 CAIRN__RUN_KILL};
  struct cairn__mailbox *box = cairn__mailbox_new(&err);

  (void)state;
  /* more than one answer holds, so that the copy asks again */
  must_run("rm -f tall.q; qemu-img create -q -f qcow2 tall.q 6G; "
           "qemu-io -f qcow2 -c 'write -P 9 0 24M' -c 'write -P 8 5G 8M' "
           "tall.q");
  for (int i = 0; i < 9; i++) {
    int request = requests[i % 3];
    struct cairn__run *r;
    struct hook h;
    int64_t start;

    must_run("rm -rf out");
    hook_init(&h, i / 3 == 0 ? 3 : i / 3 == 1 ? 1 : 3, stop_server);
    if (i / 3 == 0)
      h.io.pwritev = hook_pwritev;
    else
      h.io.point = hook_status;
    r = new_run(DISKS(QCOW2("vda", "tall.q")), &h.io, box);
    assert_int_equal(cairn__run_start(r, &err), 0);
    for (int k = 0; k < 200 && !h.request; k++)
      poll(NULL, 0, 50);
    assert_int_equal(h.request, 1);
    poll(NULL, 0, 300); /* now every thread waits for it */
    start = now_ms();
    cairn__run_request(r, request);
    await_notice(box, request == CAIRN__RUN_SUSPEND ? CAIRN__NOTICE_PARKED
                                                    : CAIRN__NOTICE_DONE);
    if (now_ms() - start > 1000)
      fail_msg("request %d, place %d: %lld ms", request, i / 3,
               (long long)(now_ms() - start));
    if (request == CAIRN__RUN_SUSPEND) {
      must_run("kill -CONT $(cut -d' ' -f1 out/.partial-*/nbd-*.pid)");
      poll(NULL, 0, 300); /* answers come in, and nobody takes them */
      assert_int_equal(r->error.id, CAIRN_OK);
      expect_entries(0, 1);
      cairn__run_request(r, CAIRN__RUN_GO);
      await_notice(box, CAIRN__NOTICE_DONE);
      if (r->error.id != CAIRN_OK)
        fail_msg("%s", r->error.message);
      expect_entries(1, 0);
    } else {
      assert_int_equal(r->error.id, request == CAIRN__RUN_KILL
                                        ? CAIRN_E_KILLED
                                        : CAIRN_E_TERMINATED);
      expect_entries(0, request == CAIRN__RUN_KILL);
    }
    release_alone(r);
  }
  cairn__mailbox_release(box);
}

/* ---- the plan ------------------------------------------------------------ */

static void plans_without_writing(void **state)
{
  json_t *spec = parse(WHOLE), *plan, *disk;
  int before;

  (void)state;
  make_noise("moving.raw", 3 << 20);
  must_run("rm -rf out");
  assert_int_equal(cairn__kind_export.check(spec, &err), 0);
  before = count_fds();
  if (cairn__kind_export.plan(&cairn__system_io, spec, &plan, &err) != 0)
    fail_msg("%s", err.message);
  assert_int_equal(count_fds(), before);
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
  must_run("test ! -e out");
  assert_true(json_is_true(json_object_get(plan, "is_new_directory")));
  assert_true(json_is_true(json_object_get(plan, "has_space")));
  disk = json_array_get(
      json_object_get(json_array_get(json_object_get(plan, "machines"), 0),
                      "disks"),
      1);
  assert_int_equal(number(disk, "length"), 3 << 20);
  assert_int_equal(number(disk, "data_bytes"), 3 << 20);
  assert_string_equal(json_string_value(json_object_get(disk, "tracker")),
                      "full");
  json_decref(plan);
  /* the locks are gone, too */
  must_run("qemu-io -f raw -c 'write 0 512' moving.raw");

  must_run("mkdir keep; mv a.raw keep/");
  assert_int_equal(
      cairn__kind_export.plan(&cairn__system_io, spec, &plan, &err), -1);
  assert_int_equal(err.id, CAIRN_E_SOURCE_MISSING);
  assert_null(plan);
  must_run("mv keep/a.raw . && rmdir keep");
  json_decref(spec);
}

/* ---- memory -------------------------------------------------------------- */

static void survives_every_failing_allocation(void **state)
{
  long stride = (long)sweep_stride(17);
  int failed = 0, is_over = 0;

  (void)state;
  for (long i = 1; !is_over && i < 2000; i++) {
    struct cairn__run *r;
    struct hook h;
    long live;
    int points, partial, before = count_fds();

    must_run("rm -rf out");
    hook_init(&h, 0, NULL);
    atomic_store(&alloc_countdown, 0);
    cairn_set_allocator(failing_realloc, failing_free);
    live = atomic_load(&alloc_live);
    r = new_run(WHOLE, &h.io, NULL);
    atomic_store(&alloc_countdown, i);
    cairn__run_here(r);
    is_over = atomic_load(&alloc_countdown) > 0;
    atomic_store(&alloc_countdown, 0);
    count_entries("out", &points, &partial);
    if (r->error.id == CAIRN_OK) {
      assert_int_equal(points, 1);
    } else {
      failed++;
      if (r->error.id != CAIRN_E_NO_MEMORY)
        fail_msg("allocation %ld: %s", i, r->error.message);
      assert_int_equal(points, 0);
    }
    /* Once a disk is begun, the next run goes on from it. */
    assert_true(partial == 0 || r->error.id != CAIRN_OK);
    assert_int_equal(count_fds(), before);
    cairn__run_release(r);
    if (atomic_load(&alloc_live) != live)
      fail_msg("allocation %ld: %ld more are left", i,
               atomic_load(&alloc_live) - live);
    cairn_set_allocator(NULL, NULL);
    if (i > 60) /* the first ones are all different */
      i += stride - 1;
  }
  assert_true(is_over);
  assert_true(failed > 20);
}

int main(void)
{
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(completes_a_specification),
      cmocka_unit_test(refuses_a_wrong_specification_and_says_where),
      cmocka_unit_test(exports_raw_disks_of_every_length),
      cmocka_unit_test(neither_reads_holes_nor_stores_zeros),
      cmocka_unit_test(exports_qcow2_of_every_kind),
      cmocka_unit_test(copies_files_with_mode_and_times),
      cmocka_unit_test(syncs_a_large_file_while_it_is_copied),
      cmocka_unit_test(shows_nothing_to_others_and_leaves_nothing_else),
      cmocka_unit_test(reports_the_properties_in_pairs),
      cmocka_unit_test(takes_paths_of_every_kind),
      cmocka_unit_test(reads_a_disk_that_occurs_twice),
      cmocka_unit_test(follows_a_link_to_the_directory),
      cmocka_unit_test(counts_points_and_bases_one_on_the_other),
      cmocka_unit_test(never_gives_a_sequence_twice),
      cmocka_unit_test(leaves_the_inside_of_a_point_alone),
      cmocka_unit_test(gives_the_same_bytes_whatever_the_timing),
      cmocka_unit_test(exports_a_block_device),
      cmocka_unit_test(needs_little_memory_for_a_huge_disk),
      cmocka_unit_test(names_machine_disk_and_path_of_a_bad_source),
      cmocka_unit_test(refuses_bad_sources),
      cmocka_unit_test(names_the_machine_the_list_and_the_place),
      cmocka_unit_test(refuses_files_that_are_made_when_read),
      cmocka_unit_test(warns_of_a_machine_without_anything),
      cmocka_unit_test(leaves_no_new_directory_behind),
      cmocka_unit_test(passes_on_what_qemu_finds_corrupt),
      cmocka_unit_test(refuses_a_disk_that_is_in_use),
      cmocka_unit_test(keeps_writers_from_every_layer_while_it_reads),
      cmocka_unit_test(notices_a_source_that_changes),
      cmocka_unit_test(names_the_unreadable_place),
      cmocka_unit_test(finds_the_unreadable_place_behind_the_server),
      cmocka_unit_test(names_the_package_that_is_missing),
      cmocka_unit_test(passes_on_what_the_server_said),
      cmocka_unit_test(tells_how_the_server_ended),
      cmocka_unit_test(ends_at_once_while_the_server_is_silent),
      cmocka_unit_test(lives_in_a_host_that_collects_children),
      cmocka_unit_test(notices_that_the_server_died),
      cmocka_unit_test(refuses_bad_targets),
      cmocka_unit_test(never_replaces_anything),
      cmocka_unit_test(reports_a_full_file_system),
      cmocka_unit_test(refuses_to_write_into_what_it_reads),
      cmocka_unit_test(lets_one_export_in_at_a_time),
      cmocka_unit_test(removes_what_is_ours_and_dead),
      cmocka_unit_test(ends_a_server_that_was_left_and_no_other),
      cmocka_unit_test(leaves_no_server_when_it_is_killed),
      cmocka_unit_test(ends_at_any_moment_without_a_trace),
      cmocka_unit_test(stands_still_while_suspended),
      cmocka_unit_test(obeys_while_the_server_is_stalled),
      cmocka_unit_test(plans_without_writing),
      cmocka_unit_test(survives_every_failing_allocation),
  };

  return cmocka_run_group_tests(tests, set_up, scratch_close);
}
