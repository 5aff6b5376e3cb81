/* database.c: see database.h. */
#include "database.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <sqlite3.h>

#include "error.h"
#include "memory.h"

#define BACKUP_PAGES 1024 /* in one step: 4 MiB */

struct cairn__database {
  sqlite3 *db;
  char *path; /* absolute */
  int lock_fd;
  sqlite3_stmt *put[CAIRN__TABLE_COUNT], *remove[CAIRN__TABLE_COUNT];
  sqlite3_stmt *remove_to[CAIRN__TABLE_COUNT];
  sqlite3_stmt *begin, *commit;
};

/* ---- the tables ---------------------------------------------------------- */

#define CAIRN__X(name) #name,
static const char *const job_columns[] = {CAIRN__JOB_INTEGERS(CAIRN__X)
                                              CAIRN__JOB_TEXTS(CAIRN__X) NULL};
static const char *const state_columns[] = {
    CAIRN__STATE_INTEGERS(CAIRN__X) CAIRN__STATE_TEXTS(CAIRN__X) NULL};
static const char *const text_columns[] = {
    CAIRN__TEXT_INTEGERS(CAIRN__X) CAIRN__TEXT_TEXTS(CAIRN__X) NULL};
static const char *const history_columns[] = {
    CAIRN__HISTORY_INTEGERS(CAIRN__X) CAIRN__HISTORY_TEXTS(CAIRN__X) NULL};
static const char *const event_columns[] = {
    CAIRN__EVENT_INTEGERS(CAIRN__X) CAIRN__EVENT_TEXTS(CAIRN__X) NULL};
static const char *const counter_columns[] = {CAIRN__COUNTER_INTEGERS(CAIRN__X)
                                                  NULL};
#undef CAIRN__X

_Static_assert(CAIRN__STATE_INTEGER_COUNT <= CAIRN__COLUMNS_MAX &&
                   (int)CAIRN__JOB_INTEGER_COUNT + CAIRN__JOB_TEXT_COUNT <=
                       CAIRN__COLUMNS_MAX,
               "room for all columns");

static const struct table {
  const char *name;
  int integers, texts; /* columns, the integers first */
  const char *const *columns;
} tables[CAIRN__TABLE_COUNT] = {
    [CAIRN__TABLE_JOB] = {"job", CAIRN__JOB_INTEGER_COUNT,
                          CAIRN__JOB_TEXT_COUNT, job_columns},
    [CAIRN__TABLE_STATE] = {"state", CAIRN__STATE_INTEGER_COUNT,
                            CAIRN__STATE_TEXT_COUNT, state_columns},
    [CAIRN__TABLE_TEXT] = {"text", CAIRN__TEXT_INTEGER_COUNT,
                           CAIRN__TEXT_TEXT_COUNT, text_columns},
    [CAIRN__TABLE_HISTORY] = {"history", CAIRN__HISTORY_INTEGER_COUNT,
                              CAIRN__HISTORY_TEXT_COUNT, history_columns},
    [CAIRN__TABLE_EVENT] = {"event", CAIRN__EVENT_INTEGER_COUNT,
                            CAIRN__EVENT_TEXT_COUNT, event_columns},
    [CAIRN__TABLE_COUNTER] = {"counter", CAIRN__COUNTER_INTEGER_COUNT, 0,
                              counter_columns},
};

/* ---- operations ---------------------------------------------------------- */

enum operation { PUT, REMOVE, REMOVE_TO };

#define NULL_TEXT UINT32_MAX

static unsigned char *room(struct cairn__rows *rows, size_t more)
{
  size_t capacity = rows->capacity ? rows->capacity : 4096;
  unsigned char *bytes;

  while (capacity - rows->length < more) {
    if (capacity > SIZE_MAX / 2)
      return NULL;
    capacity *= 2;
  }
  if (capacity != rows->capacity) {
    bytes = cairn__realloc(rows->bytes, capacity);
    if (!bytes)
      return NULL;
    rows->bytes = bytes;
    rows->capacity = capacity;
  }
  return rows->bytes + rows->length;
}

int cairn__rows_put(struct cairn__rows *rows, enum cairn__table_id table,
                    const int64_t *integers, const struct cairn__text *texts)
{
  const struct table *t = &tables[table];
  size_t n = 2 + (size_t)t->integers * sizeof *integers;
  unsigned char *p;

  for (int i = 0; i < t->texts; i++) {
    if (texts[i].length >= NULL_TEXT)
      return -1;
    n += sizeof(uint32_t) + (texts[i].bytes ? texts[i].length : 0);
  }
  p = room(rows, n);
  if (!p)
    return -1;
  *p++ = (unsigned char)table;
  *p++ = PUT;
  memcpy(p, integers, (size_t)t->integers * sizeof *integers);
  p += (size_t)t->integers * sizeof *integers;
  for (int i = 0; i < t->texts; i++) {
    uint32_t length = texts[i].bytes ? (uint32_t)texts[i].length : NULL_TEXT;

    memcpy(p, &length, sizeof length);
    p += sizeof length;
    if (texts[i].bytes && length > 0) {
      memcpy(p, texts[i].bytes, length);
      p += length;
    }
  }
  rows->length += n;
  return 0;
}

static int put_id(struct cairn__rows *rows, enum cairn__table_id table,
                  enum operation operation, int64_t id)
{
  unsigned char *p = room(rows, 2 + sizeof id);

  if (!p)
    return -1;
  *p++ = (unsigned char)table;
  *p++ = (unsigned char)operation;
  memcpy(p, &id, sizeof id);
  rows->length += 2 + sizeof id;
  return 0;
}

int cairn__rows_remove(struct cairn__rows *rows, enum cairn__table_id table,
                       int64_t id)
{
  return put_id(rows, table, REMOVE, id);
}

int cairn__rows_remove_to(struct cairn__rows *rows, enum cairn__table_id table,
                          int64_t id)
{
  return put_id(rows, table, REMOVE_TO, id);
}

/* ---- errors -------------------------------------------------------------- */

/* What SQLite says of its last call. */
static int fail(struct cairn__database *db, struct cairn_error *err,
                const char *what)
{
  char shown[512];
  int code = sqlite3_extended_errcode(db->db);
  int errnum = sqlite3_system_errno(db->db);

  if ((code & 0xff) == SQLITE_NOMEM)
    return cairn__fail_memory(err);
  cairn__fail(err, CAIRN_E_STORE_FAILED,
              "store \"%s\": cannot %s: %s (SQLite error %d%s%s)",
              cairn__printable(db->path, shown, sizeof shown), what,
              sqlite3_errmsg(db->db), code, errnum ? ", " : "",
              errnum ? strerror(errnum) : "");
  if (err)
    err->system_errno = errnum;
  cairn__error_set_path(err, db->path, -1);
  return -1;
}

static int refuse(struct cairn__database *db, struct cairn_error *err,
                  const char *why)
{
  char shown[512];

  cairn__fail(err, CAIRN_E_STORE_FAILED, "store \"%s\": %s",
              cairn__printable(db->path, shown, sizeof shown), why);
  cairn__error_set_path(err, db->path, -1);
  return -1;
}

static int run_sql(struct cairn__database *db, const char *sql,
                   const char *what, struct cairn_error *err)
{
  return sqlite3_exec(db->db, sql, NULL, NULL, NULL) == SQLITE_OK
             ? 0
             : fail(db, err, what);
}

/* The integer that a statement gives. */
static int ask(struct cairn__database *db, const char *sql, int64_t *out,
               struct cairn_error *err)
{
  sqlite3_stmt *s = NULL;
  int code = sqlite3_prepare_v2(db->db, sql, -1, &s, NULL);

  *out = 0;
  if (code == SQLITE_OK)
    code = sqlite3_step(s);
  if (code == SQLITE_ROW)
    *out = sqlite3_column_int64(s, 0);
  if (code == SQLITE_ROW || code == SQLITE_DONE) {
    sqlite3_finalize(s);
    return 0;
  }
  fail(db, err, "read it");
  sqlite3_finalize(s);
  return -1;
}

/* ---- one engine at a time ------------------------------------------------ */

static void read_pid(int fd, char out[32])
{
  ssize_t n = pread(fd, out, 31, 0);

  out[n > 0 ? n : 0] = '\0';
  out[strspn(out, "0123456789")] = '\0';
}

static int take_lock(struct cairn__database *db, struct cairn_error *err)
{
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  char *name = cairn__format("%s-lock", db->path), shown[512], pid[32];
  int length;

  if (!name)
    return cairn__fail_memory(err);
  db->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (db->lock_fd < 0) {
    cairn__fail_errno(err, errno, name, -1, "store: cannot create \"%s\"",
                      cairn__printable(name, shown, sizeof shown));
    cairn__free(name);
    return -1;
  }
  cairn__free(name);
  cairn__printable(db->path, shown, sizeof shown);
  if (fcntl(db->lock_fd, F_OFD_SETLK, &lock) != 0) {
    if (errno != EAGAIN && errno != EACCES)
      return cairn__fail_errno(err, errno, db->path, -1,
                               "store \"%s\": cannot lock it", shown);
    read_pid(db->lock_fd, pid);
    return cairn__fail(err, CAIRN_E_STORE_LOCKED,
                       "store \"%s\" is in use by the engine of process %s",
                       shown, pid[0] ? pid : "(unknown)");
  }
  length = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
  if (ftruncate(db->lock_fd, 0) != 0 ||
      pwrite(db->lock_fd, pid, (size_t)length, 0) != length)
    return cairn__fail_errno(err, errno, db->path, -1,
                             "store \"%s\": cannot write its lock file", shown);
  return 0;
}

/* Another process that has a lock on the file, or 0. From the kernel's
 * list: to open the file a second time would be to drop, when it is closed,
 * all locks that this process has on it. */
static long locker_of(const char *path)
{
  FILE *f = fopen("/proc/locks", "re");
  char line[256];
  unsigned long inode;
  unsigned major_number, minor_number;
  struct stat st;
  long pid = 0, its;

  if (!f)
    return 0;
  if (stat(path, &st) == 0) {
    while (pid == 0 && fgets(line, sizeof line, f)) {
      if (sscanf(line, "%*s POSIX %*s %*s %ld %x:%x:%lu", &its, &major_number,
                 &minor_number, &inode) == 4 &&
          its != (long)getpid() && inode == st.st_ino &&
          major_number == major(st.st_dev) && minor_number == minor(st.st_dev))
        pid = its;
    }
  }
  fclose(f);
  return pid;
}

/* Some program has the file, and not the lock beside it. */
static int fail_locked(struct cairn__database *db, struct cairn_error *err)
{
  char shown[512], who[48] = "another program";
  long pid = locker_of(db->path);

  if (pid > 0)
    snprintf(who, sizeof who, "process %ld", pid);
  return cairn__fail(err, CAIRN_E_STORE_LOCKED,
                     "store \"%s\" is in use by %s, which is no engine or has "
                     "it by another name",
                     cairn__printable(db->path, shown, sizeof shown), who);
}

/* ---- what is in the file ------------------------------------------------- */

static int create_table(struct cairn__database *db, const struct table *t,
                        struct cairn_error *err)
{
  char sql[4096];
  int n = snprintf(sql, sizeof sql, "CREATE TABLE %s (", t->name);

  for (int i = 0; i < t->integers + t->texts; i++)
    n += snprintf(sql + n, sizeof sql - (size_t)n, "%s%s %s", i ? ", " : "",
                  t->columns[i],
                  i == 0                             ? "INTEGER PRIMARY KEY"
                  : i < t->integers                  ? "INTEGER NOT NULL"
                  : t == &tables[CAIRN__TABLE_EVENT] ? "BLOB"
                                                     : "TEXT");
  snprintf(sql + n, sizeof sql - (size_t)n, ")");
  return run_sql(db, sql, "create its tables", err);
}

static int create(struct cairn__database *db, struct cairn_error *err)
{
  char sql[128];

  if (run_sql(db, "BEGIN IMMEDIATE", "create its tables", err) != 0)
    return -1;
  for (int i = 0; i < CAIRN__TABLE_COUNT; i++) {
    if (create_table(db, &tables[i], err) != 0)
      return -1;
  }
  snprintf(sql, sizeof sql,
           "PRAGMA application_id = %d; PRAGMA user_version = %d; "
           "INSERT INTO counter VALUES (1, 0, 0, 0, 0)",
           CAIRN__STORE_APPLICATION, CAIRN__STORE_VERSION);
  if (run_sql(db, sql, "create its tables", err) != 0)
    return -1;
  return run_sql(db, "COMMIT", "create its tables", err);
}

/* What makes a file of version i + 1 one of version i + 2. */
static const char *const migrations[] = {
    "ALTER TABLE job ADD COLUMN policy_version INTEGER NOT NULL DEFAULT 0; "
    "ALTER TABLE history ADD COLUMN policy_version INTEGER NOT NULL "
    "DEFAULT 0; "
    "ALTER TABLE history ADD COLUMN lost_warnings INTEGER NOT NULL "
    "DEFAULT 0; "
    "ALTER TABLE history ADD COLUMN warnings TEXT",

    "ALTER TABLE job ADD COLUMN Notify TEXT; "
    "UPDATE job SET Notify = (SELECT Notify FROM text "
    "WHERE text.serial = job.serial) "
    "WHERE serial IN (SELECT serial FROM text WHERE Notify IS NOT NULL); "
    "ALTER TABLE text DROP COLUMN Notify; "
    "ALTER TABLE state RENAME TO old; "
    "CREATE TABLE state (serial INTEGER PRIMARY KEY, "
    "JobState INTEGER NOT NULL, ErrorCode INTEGER NOT NULL, "
    "TimeOfLastStateChange INTEGER NOT NULL, StartTime INTEGER NOT NULL, "
    "ElapsedTime INTEGER NOT NULL, time_finished INTEGER NOT NULL, "
    "PercentComplete INTEGER NOT NULL, run_number INTEGER NOT NULL, "
    "runs_succeeded INTEGER NOT NULL, attempts INTEGER NOT NULL, "
    "epoch INTEGER NOT NULL, settings INTEGER NOT NULL, "
    "JobRunTimes INTEGER NOT NULL, Priority INTEGER NOT NULL, "
    "RunStartInterval INTEGER NOT NULL, TimeBeforeRemoval INTEGER NOT NULL, "
    "due_settled INTEGER NOT NULL, due_run INTEGER NOT NULL, "
    "due_next INTEGER NOT NULL, flags INTEGER NOT NULL, more TEXT); "
    "INSERT INTO state SELECT serial, JobState, ErrorCode, "
    "TimeOfLastStateChange, StartTime, ElapsedTime, time_finished, "
    "PercentComplete, run_number, runs_succeeded, attempts, epoch, settings, "
    "JobRunTimes, Priority, RunStartInterval, TimeBeforeRemoval, due_settled, "
    "due_run, due_next, (due_has_come != 0) + 2 * (has_changed != 0) + "
    "4 * (is_start_now != 0) + 8 * (is_held != 0) + "
    "16 * (is_start_asked != 0) + 32 * (is_live != 0) + "
    "64 * (is_until_passed != 0) + 128 * (is_removable != 0) + "
    "256 * (is_backing_off != 0) + 512 * (is_recovering != 0) + "
    "1024 * (is_interrupted != 0) + 2048 * (is_stray != 0) + "
    "4096 * (has_ended != 0) + 8192 * (is_last_well != 0) + "
    "16384 * (DeleteOnCompletion != 0), "
    "json_object('bytes_total', bytes_total, 'bytes_done', bytes_done, "
    "'lost_warnings', lost_warnings, 'RunMonth', RunMonth, 'RunDay', RunDay, "
    "'RunDayOfWeek', RunDayOfWeek, "
    "'RunStartInterval_precision', RunStartInterval_precision, "
    "'LocalOrUtcTime', LocalOrUtcTime, "
    "'TimeBeforeRemoval_precision', TimeBeforeRemoval_precision, "
    "'ScheduledStartTime', ScheduledStartTime, "
    "'ScheduledStartTime_kind', ScheduledStartTime_kind, "
    "'ScheduledStartTime_offset', ScheduledStartTime_offset, "
    "'ScheduledStartTime_precision', ScheduledStartTime_precision, "
    "'UntilTime', UntilTime, 'UntilTime_kind', UntilTime_kind, "
    "'UntilTime_offset', UntilTime_offset, "
    "'UntilTime_precision', UntilTime_precision, "
    "'time_of_retry', time_of_retry, 'asked', asked, "
    "'is_deciding', is_deciding) FROM old; "
    "DROP TABLE old"};

static int migrate(struct cairn__database *db, int64_t version,
                   struct cairn_error *err)
{
  char sql[64];

  if (run_sql(db, "BEGIN IMMEDIATE", "bring it up to date", err) != 0)
    return -1;
  for (int64_t i = version; i < CAIRN__STORE_VERSION; i++) {
    if (run_sql(db, migrations[i - 1], "bring it up to date", err) != 0)
      return -1;
  }
  snprintf(sql, sizeof sql, "PRAGMA user_version = %d", CAIRN__STORE_VERSION);
  if (run_sql(db, sql, "bring it up to date", err) != 0)
    return -1;
  return run_sql(db, "COMMIT", "bring it up to date", err);
}

/* A table that lacks a column, or is not there, cannot be a store's. */
static int check_tables(struct cairn__database *db, struct cairn_error *err)
{
  for (int i = 0; i < CAIRN__TABLE_COUNT; i++) {
    const struct table *t = &tables[i];
    char sql[96];

    for (int j = 0; j < t->integers + t->texts; j++) {
      int64_t count;

      snprintf(sql, sizeof sql,
               "SELECT count(*) FROM pragma_table_info('%s') "
               "WHERE name = '%s'",
               t->name, t->columns[j]);
      if (ask(db, sql, &count, err) != 0)
        return -1;
      if (count != 1) {
        char why[128];

        snprintf(why, sizeof why, "it is damaged: table %s has no column %s",
                 t->name, t->columns[j]);
        return refuse(db, err, why);
      }
    }
  }
  return 0;
}

static int check_kind(struct cairn__database *db, struct cairn_error *err)
{
  int64_t application, version, objects;
  char why[160];

  if (ask(db, "PRAGMA application_id", &application, err) != 0 ||
      ask(db, "PRAGMA user_version", &version, err) != 0 ||
      ask(db, "SELECT count(*) FROM sqlite_schema", &objects, err) != 0)
    return -1;
  if (application == 0 && version == 0 && objects == 0)
    return create(db, err);
  if (application != CAIRN__STORE_APPLICATION)
    return refuse(db, err, "it is an SQLite database, but no store of Cairn's");
  if (version > CAIRN__STORE_VERSION) {
    snprintf(why, sizeof why,
             "it is of version %lld; this Cairn knows up to version %d",
             (long long)version, CAIRN__STORE_VERSION);
    return refuse(db, err, why);
  }
  if (version < 1)
    return refuse(db, err, "it is damaged: it has no version");
  if (version < CAIRN__STORE_VERSION && migrate(db, version, err) != 0)
    return -1;
  return check_tables(db, err);
}

/* ---- statements ---------------------------------------------------------- */

static int prepare(struct cairn__database *db, const char *sql,
                   sqlite3_stmt **out, struct cairn_error *err)
{
  return sqlite3_prepare_v3(db->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out,
                            NULL) == SQLITE_OK
             ? 0
             : fail(db, err, "prepare its statements");
}

static int prepare_table(struct cairn__database *db, int i,
                         struct cairn_error *err)
{
  const struct table *t = &tables[i];
  char sql[4096];
  int n = snprintf(sql, sizeof sql, "INSERT OR REPLACE INTO %s (", t->name);

  for (int j = 0; j < t->integers + t->texts; j++)
    n += snprintf(sql + n, sizeof sql - (size_t)n, "%s%s", j ? ", " : "",
                  t->columns[j]);
  n += snprintf(sql + n, sizeof sql - (size_t)n, ") VALUES (");
  for (int j = 0; j < t->integers + t->texts; j++)
    n += snprintf(sql + n, sizeof sql - (size_t)n, "%s", j ? ", ?" : "?");
  snprintf(sql + n, sizeof sql - (size_t)n, ")");
  if (prepare(db, sql, &db->put[i], err) != 0)
    return -1;
  snprintf(sql, sizeof sql, "DELETE FROM %s WHERE %s = ?", t->name,
           t->columns[0]);
  if (prepare(db, sql, &db->remove[i], err) != 0)
    return -1;
  snprintf(sql, sizeof sql, "DELETE FROM %s WHERE %s <= ?", t->name,
           t->columns[0]);
  return prepare(db, sql, &db->remove_to[i], err);
}

static int prepare_all(struct cairn__database *db, struct cairn_error *err)
{
  for (int i = 0; i < CAIRN__TABLE_COUNT; i++) {
    if (prepare_table(db, i, err) != 0)
      return -1;
  }
  if (prepare(db, "BEGIN IMMEDIATE", &db->begin, err) != 0)
    return -1;
  return prepare(db, "COMMIT", &db->commit, err);
}

/* ---- open and close ------------------------------------------------------ */

/* The directory's real name and the file's, so that one file has one lock. */
static int find_path(struct cairn__database *db, const char *path,
                     struct cairn_error *err)
{
  const char *slash = strrchr(path, '/');
  char directory[PATH_MAX], real[PATH_MAX], shown[512];
  struct stat st;

  cairn__printable(path, shown, sizeof shown);
  if (path[0] == '\0' || (slash && slash[1] == '\0'))
    return cairn__fail(err, CAIRN_E_BAD_PATH,
                       "store \"%s\": the name of a file expected", shown);
  if (realpath(path, real)) {
    if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
      return cairn__fail(err, CAIRN_E_BAD_PATH,
                         "store \"%s\": it is not a regular file", shown);
    db->path = cairn__strdup(real);
    return db->path ? 0 : cairn__fail_memory(err);
  }
  if (errno != ENOENT)
    return cairn__fail_errno(err, errno, path, -1, "store \"%s\"", shown);
  if (slash && (size_t)(slash - path) >= sizeof directory)
    return cairn__fail_errno(err, ENAMETOOLONG, path, -1, "store \"%s\"",
                             shown);
  snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) : 1,
           slash ? path : ".");
  if (!realpath(directory[0] ? directory : "/", real))
    return cairn__fail_errno(err, errno, path, -1,
                             "store \"%s\": its directory", shown);
  db->path = cairn__format("%s/%s", strcmp(real, "/") == 0 ? "" : real,
                           slash ? slash + 1 : path);
  return db->path ? 0 : cairn__fail_memory(err);
}

/* A new file is its owner's alone, which SQLite's own files take over. */
static int make_file(struct cairn__database *db, struct cairn_error *err)
{
  char shown[512];
  int fd = open(db->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

  if (fd < 0 && errno != EEXIST)
    return cairn__fail_errno(err, errno, db->path, -1,
                             "store \"%s\": cannot create it",
                             cairn__printable(db->path, shown, sizeof shown));
  if (fd >= 0)
    close(fd);
  return 0;
}

/* While jobs are read each page is looked at once. */
#define READING_CACHE "PRAGMA cache_size = -1024"
#define USUAL_CACHE   "PRAGMA cache_size = -16384"

static int configure(struct cairn__database *db, struct cairn_error *err)
{
  static const char settings[] =
      READING_CACHE ";"
                    "PRAGMA synchronous = FULL;"
                    "PRAGMA temp_store = MEMORY;"
                    "PRAGMA journal_size_limit = 67108864;"
                    "PRAGMA wal_autocheckpoint = 4000;"
                    "PRAGMA trusted_schema = OFF";
  sqlite3_stmt *s = NULL;
  int is_wal;

  if (sqlite3_prepare_v2(db->db, "PRAGMA journal_mode = WAL", -1, &s, NULL) !=
      SQLITE_OK)
    return fail(db, err, "open its log");
  is_wal = sqlite3_step(s) == SQLITE_ROW && sqlite3_column_text(s, 0) &&
           strcmp((const char *)sqlite3_column_text(s, 0), "wal") == 0;
  if (!is_wal) {
    fail(db, err, "open its log (write-ahead)");
    sqlite3_finalize(s);
    return -1;
  }
  sqlite3_finalize(s);
  return run_sql(db, settings, "configure it", err);
}

static int open_file(struct cairn__database *db, struct cairn_error *err)
{
  int code, value;

  code = sqlite3_open_v2(db->path, &db->db,
                         SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
                             SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE,
                         NULL);
  if (!db->db)
    return cairn__fail_memory(err);
  if (code != SQLITE_OK)
    return fail(db, err, "open it");
  sqlite3_db_config(db->db, SQLITE_DBCONFIG_DEFENSIVE, 1, &value);
  if (run_sql(db, "PRAGMA locking_mode = EXCLUSIVE", "lock it", err) != 0)
    return -1;
  code = sqlite3_exec(db->db, "SELECT count(*) FROM sqlite_schema", NULL, NULL,
                      NULL);
  if ((code & 0xff) == SQLITE_BUSY)
    return fail_locked(db, err);
  if ((code & 0xff) == SQLITE_NOTADB)
    return refuse(db, err, "it is no SQLite database, hence no store");
  if (code != SQLITE_OK)
    return fail(db, err, "read it");
  if (sqlite3_db_readonly(db->db, "main") == 1)
    return refuse(db, err,
                  "it cannot be written (it is read-only, or the "
                  "file system is)");
  if (check_kind(db, err) != 0 || configure(db, err) != 0 ||
      prepare_all(db, err) != 0)
    return -1;
  code = sqlite3_exec(db->db, "BEGIN EXCLUSIVE", NULL, NULL, NULL);
  if ((code & 0xff) == SQLITE_BUSY)
    return fail_locked(db, err);
  if (code != SQLITE_OK)
    return fail(db, err, "lock it");
  if (run_sql(db, "UPDATE counter SET opened = opened + 1 WHERE id = 1",
              "write it", err) != 0 ||
      run_sql(db, "COMMIT", "write it", err) != 0)
    return -1;
  return 0;
}

int cairn__database_open(const char *path, struct cairn__database **out,
                         struct cairn_error *err)
{
  struct cairn__database *db = cairn__calloc(1, sizeof *db);

  *out = NULL;
  if (!db)
    return cairn__fail_memory(err);
  db->lock_fd = -1;
  if (find_path(db, path, err) != 0 || take_lock(db, err) != 0 ||
      make_file(db, err) != 0 || open_file(db, err) != 0) {
    cairn__database_close(db);
    return -1;
  }
  *out = db;
  return 0;
}

void cairn__database_close(struct cairn__database *db)
{
  if (!db)
    return;
  for (int i = 0; i < CAIRN__TABLE_COUNT; i++) {
    sqlite3_finalize(db->put[i]);
    sqlite3_finalize(db->remove[i]);
    sqlite3_finalize(db->remove_to[i]);
  }
  sqlite3_finalize(db->begin);
  sqlite3_finalize(db->commit);
  sqlite3_close(db->db);
  if (db->lock_fd >= 0)
    close(db->lock_fd);
  cairn__free(db->path);
  cairn__free(db);
}

const char *cairn__database_path(const struct cairn__database *db)
{
  return db->path;
}

/* ---- reading ------------------------------------------------------------- */

static int64_t count_readable(struct cairn__database *db, int table)
{
  sqlite3_stmt *s = NULL;
  char sql[64];
  int64_t n = 0;

  snprintf(sql, sizeof sql, "SELECT * FROM %s", tables[table].name);
  if (sqlite3_prepare_v2(db->db, sql, -1, &s, NULL) == SQLITE_OK) {
    while (sqlite3_step(s) == SQLITE_ROW)
      n++;
  }
  sqlite3_finalize(s);
  return n;
}

/* Says with the error of a damaged file what is left of it. */
static int fail_reading(struct cairn__database *db, struct cairn_error *err)
{
  char text[256];
  int is_damaged = sqlite3_errcode(db->db) == SQLITE_CORRUPT;

  fail(db, err, is_damaged ? "read all of it, it is damaged" : "read it");
  if (!is_damaged || !err)
    return -1;
  snprintf(text, sizeof text,
           "; %lld jobs and %lld records of history can be read before the "
           "damage, which the README tells how to save",
           (long long)count_readable(db, CAIRN__TABLE_STATE),
           (long long)count_readable(db, CAIRN__TABLE_HISTORY));
  strncat(err->message, text, sizeof err->message - strlen(err->message) - 1);
  return -1;
}

static int select_from(struct cairn__database *db, const struct table *t,
                       int64_t first, sqlite3_stmt **out,
                       struct cairn_error *err)
{
  char sql[4096];
  int n = snprintf(sql, sizeof sql, "SELECT ");

  for (int i = 0; i < t->integers + t->texts; i++)
    n += snprintf(sql + n, sizeof sql - (size_t)n, "%s%s", i ? ", " : "",
                  t->columns[i]);
  snprintf(sql + n, sizeof sql - (size_t)n,
           " FROM %s WHERE %s >= ? "
           "ORDER BY %s",
           t->name, t->columns[0], t->columns[0]);
  if (sqlite3_prepare_v2(db->db, sql, -1, out, NULL) != SQLITE_OK)
    return fail_reading(db, err);
  sqlite3_bind_int64(*out, 1, first);
  return 0;
}

int cairn__cursor_next(struct cairn__cursor *c, struct cairn_error *err)
{
  const struct table *t = &tables[c->table];
  sqlite3_stmt *s = c->statement;
  int code = sqlite3_step(s);

  c->has_row = code == SQLITE_ROW;
  if (!c->has_row)
    return code == SQLITE_DONE ? 0 : fail_reading(c->db, err);
  for (int i = 0; i < t->integers; i++)
    c->integers[i] = sqlite3_column_int64(s, i);
  for (int i = 0; i < t->texts; i++) {
    struct cairn__text *text = &c->texts[i];

    *text = (struct cairn__text){NULL, 0};
    if (sqlite3_column_type(s, t->integers + i) == SQLITE_NULL)
      continue;
    text->bytes = sqlite3_column_blob(s, t->integers + i);
    text->length = (size_t)sqlite3_column_bytes(s, t->integers + i);
    if (!text->bytes)
      text->bytes = "";
  }
  return 0;
}

int cairn__cursor_open(struct cairn__database *db, enum cairn__table_id table,
                       int64_t first, struct cairn__cursor *c,
                       struct cairn_error *err)
{
  c->db = db;
  c->table = table;
  c->statement = NULL;
  if (select_from(db, &tables[table], first, &c->statement, err) != 0)
    return -1;
  if (cairn__cursor_next(c, err) == 0)
    return 0;
  cairn__cursor_close(c);
  return -1;
}

void cairn__cursor_close(struct cairn__cursor *c)
{
  sqlite3_finalize(c->statement);
  c->statement = NULL;
}

int cairn__database_each(struct cairn__database *db, enum cairn__table_id table,
                         int64_t first,
                         int (*row)(void *context, const int64_t *integers,
                                    const struct cairn__text *texts,
                                    struct cairn_error *err),
                         void *context, struct cairn_error *err)
{
  struct cairn__cursor c;
  int result = 0;

  if (cairn__cursor_open(db, table, first, &c, err) != 0)
    return -1;
  while (result == 0 && c.has_row) {
    result = row(context, c.integers, c.texts, err);
    if (result == 0)
      result = cairn__cursor_next(&c, err);
  }
  cairn__cursor_close(&c);
  return result < 0 ? -1 : 0;
}

int cairn__database_ready(struct cairn__database *db, struct cairn_error *err)
{
  sqlite3_db_release_memory(db->db);
  return run_sql(db, USUAL_CACHE, "configure it", err);
}

int cairn__database_event_from(struct cairn__database *db, uint64_t cursor,
                               int64_t *from, uint64_t *first,
                               struct cairn_error *err)
{
  char sql[96];
  int64_t oldest;

  if (ask(db, "SELECT ifnull(min(first), 0) FROM event", &oldest, err) != 0)
    return -1;
  snprintf(sql, sizeof sql,
           "SELECT ifnull(max(first), 0) FROM event WHERE first <= %lld",
           (long long)cursor + 1);
  if (ask(db, sql, from, err) != 0)
    return -1;
  if (*from < oldest)
    *from = oldest;
  *first = (uint64_t)oldest;
  return 0;
}

/* ---- writing ------------------------------------------------------------- */

/* Runs a statement that gives no rows. */
static int step(struct cairn__database *db, sqlite3_stmt *s, const char *what,
                struct cairn_error *err)
{
  int code = sqlite3_step(s);

  if (code == SQLITE_DONE) {
    sqlite3_reset(s);
    return 0;
  }
  fail(db, err, what); /* before the reset, which gives the error again */
  sqlite3_reset(s);
  return -1;
}

/* One operation; returns where the next one begins, NULL: failed. */
static const unsigned char *apply_one(struct cairn__database *db,
                                      const unsigned char *p,
                                      struct cairn_error *err)
{
  const struct table *t = &tables[p[0]];
  int is_events = p[0] == CAIRN__TABLE_EVENT;
  sqlite3_stmt *s = p[1] == PUT      ? db->put[p[0]]
                    : p[1] == REMOVE ? db->remove[p[0]]
                                     : db->remove_to[p[0]];
  int integers = p[1] == PUT ? t->integers : 1;
  int texts = p[1] == PUT ? t->texts : 0, code;

  p += 2;
  for (int i = 0; i < integers; i++, p += sizeof(int64_t)) {
    int64_t value;

    memcpy(&value, p, sizeof value);
    sqlite3_bind_int64(s, i + 1, value);
  }
  for (int i = integers; i < integers + texts; i++) {
    uint32_t length;

    memcpy(&length, p, sizeof length);
    p += sizeof length;
    if (length == NULL_TEXT) {
      sqlite3_bind_null(s, i + 1);
      continue;
    }
    code = is_events ? sqlite3_bind_blob64(s, i + 1, p, length, SQLITE_STATIC)
                     : sqlite3_bind_text64(s, i + 1, (const char *)p, length,
                                           SQLITE_STATIC, SQLITE_UTF8);
    if (code != SQLITE_OK) {
      fail(db, err, "write it");
      sqlite3_reset(s);
      return NULL;
    }
    p += length;
  }
  return step(db, s, "write it", err) == 0 ? p : NULL;
}

int cairn__database_apply(struct cairn__database *db,
                          const struct cairn__rows *rows,
                          struct cairn_error *err)
{
  const unsigned char *p = rows->bytes, *end = rows->bytes + rows->length;

  if (step(db, db->begin, "write it", err) != 0) {
    /* one that failed before may be open still */
    if (!sqlite3_get_autocommit(db->db))
      sqlite3_exec(db->db, "ROLLBACK", NULL, NULL, NULL);
    return -1;
  }
  while (p && p < end)
    p = apply_one(db, p, err);
  if (p && step(db, db->commit, "write it", err) == 0)
    return 0;
  if (!sqlite3_get_autocommit(db->db))
    sqlite3_exec(db->db, "ROLLBACK", NULL, NULL, NULL);
  return -1;
}

/* ---- backup -------------------------------------------------------------- */

struct cairn__backup {
  struct cairn__database *db;
  struct sqlite3 *to;
  sqlite3_backup *backup;
  char *path, *partial;
};

static int fail_backup(struct cairn__backup *b, struct cairn_error *err)
{
  char shown[512];

  return cairn__fail(err, CAIRN_E_IO_ERROR, "backup to \"%s\": %s",
                     cairn__printable(b->path, shown, sizeof shown),
                     sqlite3_errmsg(b->to));
}

void cairn__backup_abandon(struct cairn__backup *b)
{
  if (!b)
    return;
  if (b->backup)
    sqlite3_backup_finish(b->backup);
  sqlite3_close(b->to);
  if (b->partial)
    (void)unlink(b->partial);
  cairn__free(b->partial);
  cairn__free(b->path);
  cairn__free(b);
}

int cairn__database_backup(struct cairn__database *db, const char *to,
                           struct cairn__backup **out, struct cairn_error *err)
{
  struct cairn__backup *b = cairn__calloc(1, sizeof *b);
  char shown[512];
  struct stat st;
  int fd;

  *out = NULL;
  if (!b)
    return cairn__fail_memory(err);
  b->db = db;
  b->path = cairn__strdup(to);
  if (!b->path) {
    cairn__backup_abandon(b);
    return cairn__fail_memory(err);
  }
  cairn__printable(to, shown, sizeof shown);
  if (lstat(to, &st) == 0) {
    cairn__backup_abandon(b);
    return cairn__fail(err, CAIRN_E_EXISTS, "backup to \"%s\": it exists",
                       shown);
  }
  b->partial = cairn__format("%s.partial", to);
  fd = b->partial
           ? open(b->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
           : -1;
  if (fd < 0) {
    int errnum = b->partial ? errno : ENOMEM;

    cairn__free(b->partial);
    b->partial = NULL; /* not ours to remove */
    cairn__backup_abandon(b);
    return cairn__fail_errno(err, errnum, to, -1,
                             "backup to \"%s\": cannot create \"%s.partial\"",
                             shown, shown);
  }
  close(fd);
  if (sqlite3_open_v2(b->partial, &b->to,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX,
                      NULL) == SQLITE_OK)
    b->backup = sqlite3_backup_init(b->to, "main", db->db, "main");
  if (!b->backup) {
    fail_backup(b, err);
    cairn__backup_abandon(b);
    return -1;
  }
  *out = b;
  return 0;
}

/* The copy is whole: in one file, synced, with its name. */
static int finish_backup(struct cairn__backup *b, struct cairn_error *err)
{
  char *directory = cairn__strdup(b->path), shown[512];
  char *slash = directory ? strrchr(directory, '/') : NULL;
  int fd, result = -1;

  cairn__printable(b->path, shown, sizeof shown);
  if (!directory)
    return cairn__fail_memory(err);
  if (slash)
    slash[slash == directory] = '\0';
  if (renameat2(AT_FDCWD, b->partial, AT_FDCWD, b->path, RENAME_NOREPLACE) !=
      0) {
    cairn__fail_errno(err, errno, b->path, -1, "backup to \"%s\"", shown);
  } else {
    cairn__free(b->partial);
    b->partial = NULL;
    fd = open(slash ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
      cairn__fail_errno(err, errno, b->path, -1,
                        "backup to \"%s\": cannot sync its directory", shown);
    else
      result = 0;
    if (fd >= 0)
      close(fd);
  }
  cairn__free(directory);
  return result;
}

int cairn__backup_step(struct cairn__backup *b, struct cairn_error *err)
{
  int code = sqlite3_backup_step(b->backup, BACKUP_PAGES);

  if (code == SQLITE_OK)
    return 0;
  if (code == SQLITE_DONE) {
    code = sqlite3_backup_finish(b->backup);
    b->backup = NULL;
    /* nothing beside the file is needed to read it */
    if (code == SQLITE_OK)
      code =
          sqlite3_exec(b->to, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL);
  }
  if (code != SQLITE_OK) {
    fail_backup(b, err);
    cairn__backup_abandon(b);
    return -1;
  }
  sqlite3_close(b->to);
  b->to = NULL;
  code = finish_backup(b, err);
  cairn__backup_abandon(b);
  return code == 0 ? 1 : -1;
}
