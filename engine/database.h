/* The SQLite file of a store: its tables, one transaction at a time, and
 * nothing about jobs. Whoever has opened it hands it to one thread; no function
 * here locks anything.
 *
 * OPERATIONS travel as bytes: the owner thread appends rows to a buffer
 * (cairn__rows_put, cairn__rows_remove), the writer thread applies a buffer in
 * one transaction. A row has the integers and the texts of its table's columns,
 * in that order; the first integer is the rowid.
 *
 * The file is in WAL mode, synchronous=FULL, and locked exclusively from the
 * first look at it on. Beside it lies FILE-lock, locked too (a lock of an open
 * file description, so that two engines of one process exclude each other),
 * with the number of the process that has it. */
#ifndef CAIRN_DATABASE_H
#define CAIRN_DATABASE_H

#include <stddef.h>
#include <stdint.h>

#include "cairn.h"

/* Of the file's header: PRAGMA application_id and PRAGMA user_version. A change
 * of a table is a new version, and a step in database.c that makes an older
 * file the same. */
#define CAIRN__STORE_APPLICATION 0x4361726e /* "Carn" */
#define CAIRN__STORE_VERSION     3

/* Columns bear the class's names where they are the class's properties. Times
 * are microseconds, of the Unix epoch or long. What is 1 + a position in a
 * value map is 0 for null. */

/* clang-format off */

/* What was submitted. */
#define CAIRN__JOB_INTEGERS(X)                                                 \
  X(serial) X(TimeSubmitted) X(RecoveryAction) X(gap) X(overlap)               \
  X(catch_up) X(once) X(held) X(policy_version)
#define CAIRN__JOB_TEXTS(X)                                                    \
  X(InstanceID) X(Name) X(kind) X(spec) X(queue) X(Caption) X(Description)     \
  X(ElementName) X(OtherRecoveryAction) X(RecoveryJob) X(zone) X(policy)       \
  X(policy_key) X(policy_file) X(decisions) X(Notify)

/* What changes with every run, and the settings. `settings`: a bit for each
 * that is not null (enum cairn__setting); `flags`: a bit for each of
 * CAIRN__FLAGS, the first is 1; `more`: what few jobs have, as a JSON object of
 * integers (record.c has their names), or null. A column costs every job time,
 * when it is written and when it is read. */
#define CAIRN__STATE_INTEGERS(X)                                                 \
  X(serial) X(JobState) X(ErrorCode) X(TimeOfLastStateChange) X(StartTime)     \
  X(ElapsedTime) X(time_finished) X(PercentComplete) X(run_number)             \
  X(runs_succeeded) X(attempts) X(epoch) X(settings) X(JobRunTimes)            \
  X(Priority) X(RunStartInterval) X(TimeBeforeRemoval) X(due_settled)          \
  X(due_run) X(due_next) X(flags)
#define CAIRN__STATE_TEXTS(X) X(more)
#define CAIRN__FLAGS(X)                                                        \
  X(due_has_come) X(has_changed) X(is_start_now) X(is_held) X(is_start_asked)  \
  X(is_live) X(is_until_passed) X(is_removable) X(is_backing_off)              \
  X(is_recovering) X(is_interrupted) X(is_stray) X(has_ended) X(is_last_well)  \
  X(DeleteOnCompletion)
/* Texts that few jobs have; a job without any has no row. */
#define CAIRN__TEXT_INTEGERS(X) X(serial) X(errno_of_failure) X(offset)
#define CAIRN__TEXT_TEXTS(X)                                                   \
  X(ErrorDescription) X(machine) X(disk) X(path) X(warnings) X(report)         \
  X(question) X(choices) X(answer) X(ReferencePointGroupId)

/* What has become of runs, and of due times without a run (`skipped`). */
#define CAIRN__HISTORY_INTEGERS(X)                                             \
  X(id) X(time) X(due) X(due_last) X(StartTime) X(ElapsedTime) X(bytes_done)   \
  X(run_number) X(attempt) X(count) X(JobState) X(ErrorCode) X(skipped)        \
  X(reason) X(policy_version) X(lost_warnings)
#define CAIRN__HISTORY_TEXTS(X)                                                \
  X(InstanceID) X(Name) X(ErrorDescription) X(ReferencePointGroupId)           \
  X(warnings)

/* The events of one turn of the engine: `first` is the sequence of the first of
 * them; `events` are bytes (store.c). */
#define CAIRN__EVENT_INTEGERS(X) X(first) X(count)
#define CAIRN__EVENT_TEXTS(X)    X(events)

/* One row: the last numbers that were given, and how often the file was
 * opened. */
#define CAIRN__COUNTER_INTEGERS(X)                                             \
  X(id) X(serial) X(sequence) X(history) X(opened)

#define CAIRN__TABLES(X)                                                       \
  X(JOB) X(STATE) X(TEXT) X(HISTORY) X(EVENT) X(COUNTER)

/* clang-format on */

enum cairn__table_id {
#define CAIRN__X(ID) CAIRN__TABLE_##ID,
  CAIRN__TABLES(CAIRN__X)
#undef CAIRN__X
      CAIRN__TABLE_COUNT
};

/* Positions of columns: CAIRN__STATE_JobState; of texts among the texts. */
#define CAIRN__X(name) CAIRN__JOB_##name,
enum { CAIRN__JOB_INTEGERS(CAIRN__X) CAIRN__JOB_INTEGER_COUNT };
enum { CAIRN__JOB_TEXTS(CAIRN__X) CAIRN__JOB_TEXT_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__STATE_##name,
enum { CAIRN__STATE_INTEGERS(CAIRN__X) CAIRN__STATE_INTEGER_COUNT };
enum { CAIRN__STATE_TEXTS(CAIRN__X) CAIRN__STATE_TEXT_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__TEXT_##name,
enum { CAIRN__TEXT_INTEGERS(CAIRN__X) CAIRN__TEXT_INTEGER_COUNT };
enum { CAIRN__TEXT_TEXTS(CAIRN__X) CAIRN__TEXT_TEXT_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__FLAG_##name,
enum { CAIRN__FLAGS(CAIRN__X) CAIRN__FLAG_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__HISTORY_##name,
enum { CAIRN__HISTORY_INTEGERS(CAIRN__X) CAIRN__HISTORY_INTEGER_COUNT };
enum { CAIRN__HISTORY_TEXTS(CAIRN__X) CAIRN__HISTORY_TEXT_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__EVENT_##name,
enum { CAIRN__EVENT_INTEGERS(CAIRN__X) CAIRN__EVENT_INTEGER_COUNT };
enum { CAIRN__EVENT_TEXTS(CAIRN__X) CAIRN__EVENT_TEXT_COUNT };
#undef CAIRN__X
#define CAIRN__X(name) CAIRN__COUNTER_##name,
enum { CAIRN__COUNTER_INTEGERS(CAIRN__X) CAIRN__COUNTER_INTEGER_COUNT };
#undef CAIRN__X

#define CAIRN__COLUMNS_MAX 64

struct cairn__text { /* bytes NULL: null */
  const char *bytes;
  size_t length;
};

/* ---- operations ---------------------------------------------------------- */

struct cairn__rows {
  unsigned char *bytes;
  size_t length, capacity;
};

/* Appends; 0, or -1 when out of memory, with nothing appended. `texts` may be
 * NULL for a table without. */
int cairn__rows_put(struct cairn__rows *rows, enum cairn__table_id table,
                    const int64_t *integers, const struct cairn__text *texts);
int cairn__rows_remove(struct cairn__rows *rows, enum cairn__table_id table,
                       int64_t id);
/* Removes all rows up to this id. */
int cairn__rows_remove_to(struct cairn__rows *rows, enum cairn__table_id table,
                          int64_t id);

/* ---- the file ------------------------------------------------------------ */

struct cairn__database;

/* Opens or creates it, brings an older version up to date, and proves that it
 * can be written. STORE_LOCKED names the process that has it; STORE_FAILED: it
 * is no store, of a newer version, damaged (with what can still be read), or
 * cannot be written. Blocks on I/O. */
int cairn__database_open(const char *path, struct cairn__database **out,
                         struct cairn_error *err);
/* NULL allowed. Blocks on I/O. */
void cairn__database_close(struct cairn__database *db);
const char *cairn__database_path(const struct cairn__database *db);
/* The rows of a table by ascending id. Several may be open at once, but none
 * while something is written. */
struct cairn__cursor {
  struct cairn__database *db;
  struct sqlite3_stmt *statement;
  enum cairn__table_id table;
  int has_row; /* 0: at the end */
  int64_t integers[CAIRN__COLUMNS_MAX];
  struct cairn__text texts[CAIRN__COLUMNS_MAX]; /* borrowed until the next */
};

/* At the first row from this id on; -1: err, and there is nothing to close. */
int cairn__cursor_open(struct cairn__database *db, enum cairn__table_id table,
                       int64_t first, struct cairn__cursor *c,
                       struct cairn_error *err);
int cairn__cursor_next(struct cairn__cursor *c, struct cairn_error *err);
void cairn__cursor_close(struct cairn__cursor *c); /* one of zeros allowed */

/* Calls `row` for every row of a table by ascending id, from `first` on, until
 * it returns non-zero: 1 ends it well, -1 with err filled. Texts are borrowed
 * for the call. */
int cairn__database_each(struct cairn__database *db, enum cairn__table_id table,
                         int64_t first,
                         int (*row)(void *context, const int64_t *integers,
                                    const struct cairn__text *texts,
                                    struct cairn_error *err),
                         void *context, struct cairn_error *err);
/* Everything was read, and writing begins: the memory for pages is given back,
 * and more of it allowed. */
int cairn__database_ready(struct cairn__database *db, struct cairn_error *err);
/* *from: the row of events that has the one after `cursor`, or else the first
 * row; *first: the oldest event that is kept, 0: none. */
int cairn__database_event_from(struct cairn__database *db, uint64_t cursor,
                               int64_t *from, uint64_t *first,
                               struct cairn_error *err);
/* All of it in one transaction, synced. After a failure nothing of it is
 * there; it may be tried again. */
int cairn__database_apply(struct cairn__database *db,
                          const struct cairn__rows *rows,
                          struct cairn_error *err);

/* Copies the database into a new file, a step at a time, between transactions:
 * what is committed meanwhile is in the copy. `to` must not exist. */
struct cairn__backup;
int cairn__database_backup(struct cairn__database *db, const char *to,
                           struct cairn__backup **out, struct cairn_error *err);
/* 0: there is more to do; 1: done, the copy is whole, synced and has its name;
 * -1: failed. After 1 and -1 the backup is gone. */
int cairn__backup_step(struct cairn__backup *backup, struct cairn_error *err);
/* Gives up: removes what was made. NULL allowed. */
void cairn__backup_abandon(struct cairn__backup *backup);

#endif
