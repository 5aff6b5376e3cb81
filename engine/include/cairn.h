/* cairn.h: the C interface of Cairn, a job engine that exports collections of
 * virtual machines as of a reference point.
 *
 * THE MODEL. An engine owns jobs. A job is an instance of the published class
 * Msvm_CollectionReferencePointExportJob (a CIM_ConcreteJob): properties read
 * and written by name, a state machine driven by RequestStateChange, errors as
 * CIM_Error instances. A few additions of Cairn's own (phase, queue, ...) are
 * read the same way and come after the class's fifty properties.
 *
 * THREADS. One thread at a time, the owner, may call into an engine; nothing
 * here is locked. Copying, reading and syncing happen on the engine's own
 * threads, which never touch a job: they report through a queue that
 * cairn_engine_step() empties. Different engines share nothing.
 *
 * DRIVING IT. The engine never calls back. cairn_engine_pollfd() becomes
 * readable when there is something to do; cairn_engine_step() does it,
 * without blocking; cairn_engine_next_events() then hands out what happened.
 * cairn_engine_wait() is poll() + step() for programs without a loop.
 *
 * ERRORS. Functions that can fail return 0 or a negative value and fill a
 * caller-owned struct cairn_error when given one (it may be NULL). Nothing is
 * half done after a failure.
 *
 * OWNERSHIP. Strings and arrays passed in are copied. What is handed out is
 * borrowed and stays valid until the next call on the same engine, unless the
 * function says that the caller frees it with cairn_free().
 *
 * TEXT is UTF-8. TIMES are int64_t microseconds: "unix" since 1970 UTC,
 * durations relative. JSON follows RFC 8259, one value.
 */
#ifndef CAIRN_H
#define CAIRN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CAIRN_API     __attribute__((visibility("default")))
#define CAIRN_VERSION "0.1.0"

CAIRN_API const char *cairn_version(void);

/* ---- memory ---------------------------------------------------------- */

/* Frees what a function said the caller frees. NULL is allowed. */
CAIRN_API void cairn_free(void *p);

/* Replaces the allocator, before anything else is called; for tests that make
 * allocations fail. realloc_fn(NULL, n) allocates. NULL, NULL restores. */
CAIRN_API void cairn_set_allocator(void *(*realloc_fn)(void *, size_t),
                                   void (*free_fn)(void *));

/* ---- errors ----------------------------------------------------------- */

enum cairn_error_id {
  CAIRN_OK = 0,
#define CAIRN_ERROR(ID, code, errorcode, type, cause, status, exit, text, act) \
  CAIRN_E_##ID = (errorcode),
#include "cairn/errors.def"
#undef CAIRN_ERROR
};

#define CAIRN_MESSAGE_MAX 2048

/* What went wrong. `id` is a CAIRN_E_ value; the message says what, where and
 * what would be valid. machine, disk, path and offset are filled where the
 * error belongs to one ("" and -1 otherwise). */
struct cairn_error {
  int id;
  int system_errno; /* 0 when no system call failed */
  int64_t offset;   /* bytes into `path`, or -1 */
  char message[CAIRN_MESSAGE_MAX];
  char machine[40];
  char disk[72];
  char path[512]; /* shortened in the middle when longer */
};

/* One row of the error table; NULL for an unknown id. */
struct cairn_error_info {
  int id; /* = CIM_Job.ErrorCode */
  const char *code, *message_id, *summary, *recommended_action;
  uint16_t error_type, probable_cause;
  uint32_t cim_status_code;
  int exit_code;
};
CAIRN_API const struct cairn_error_info *cairn_error_info(int id);
/* The rows in order, for documentation; NULL past the end. */
CAIRN_API const struct cairn_error_info *cairn_error_info_at(size_t index);

/* ---- CIM datetime (docs/job-model.md, DSP0004 5.2.4) ------------------ */

enum cairn_datetime_kind {
  CAIRN_TIMESTAMP = 1, /* microseconds: Unix, UTC */
  CAIRN_INTERVAL = 2,  /* microseconds: length, >= 0 */
  CAIRN_NEVER = 3,     /* all nines: no end */
  CAIRN_ZERO = 4       /* the all-zero timestamp "00000000000000.000000+000" */
};

struct cairn_datetime {
  int64_t microseconds;
  int16_t utc_offset; /* minutes east of Greenwich, -999..999; timestamps */
  uint8_t kind;       /* enum cairn_datetime_kind */
  uint8_t precision;  /* significant digits, counted from the left of the 20;
                         20 (or 0) = exact; fewer = trailing asterisks, the
                         microseconds then being the lower bound */
};

#define CAIRN_DATETIME_SIZE 26 /* 25 characters and the NUL */

CAIRN_API int cairn_datetime_parse(const char *text, size_t length,
                                   struct cairn_datetime *out,
                                   struct cairn_error *err);
/* Writes 25 characters and a NUL. */
CAIRN_API void cairn_datetime_format(const struct cairn_datetime *t,
                                     char out[CAIRN_DATETIME_SIZE]);
/* op '+' or '-': timestamp-timestamp = interval, timestamp+-interval =
 * timestamp, interval+-interval = interval; anything else, and a result below
 * zero or out of the format's range, is CAIRN_E_INVALID_ARGUMENT or
 * CAIRN_E_OUT_OF_RANGE. */
CAIRN_API int cairn_datetime_add(const struct cairn_datetime *a, char op,
                                 const struct cairn_datetime *b,
                                 struct cairn_datetime *out,
                                 struct cairn_error *err);
/* interval * factor, interval / divisor (integers; divisor > 0) */
CAIRN_API int cairn_datetime_scale(const struct cairn_datetime *a, char op,
                                   int64_t n, struct cairn_datetime *out,
                                   struct cairn_error *err);
/* interval / interval, whole part */
CAIRN_API int cairn_datetime_ratio(const struct cairn_datetime *a,
                                   const struct cairn_datetime *b, int64_t *out,
                                   struct cairn_error *err);
/* *out = -1, 0, 1. Only the same kind compares; NEVER is after everything of
 * either kind; with asterisks only the digits significant in both count. */
CAIRN_API int cairn_datetime_compare(const struct cairn_datetime *a,
                                     const struct cairn_datetime *b, int *out,
                                     struct cairn_error *err);

/* ---- the class: properties and value maps ------------------------------ */

enum cairn_type {
  CAIRN_TYPE_STRING = 1,
  CAIRN_TYPE_DATETIME,
  CAIRN_TYPE_BOOLEAN,
  CAIRN_TYPE_UINT8,
  CAIRN_TYPE_SINT8,
  CAIRN_TYPE_UINT16,
  CAIRN_TYPE_UINT32,
  CAIRN_TYPE_UINT64,
  CAIRN_TYPE_REAL64
};

struct cairn_value_label {
  int64_t value;
  const char *label;
};

struct cairn_property_info {
  int id;           /* 1..50 the class's, in declaration order; 51.. ours */
  const char *name; /* "RunMonth" */
  uint8_t type;     /* enum cairn_type */
  uint8_t is_array, is_writable, is_key, is_required, is_deprecated;
  uint8_t is_addition;      /* not of the class: Cairn's own */
  uint8_t is_interval;      /* a datetime that must be an interval */
  const char *default_text; /* as the class page has it, or NULL */
  int has_range;
  int64_t min, max;
  uint32_t max_length;                    /* characters; 0 = no limit */
  const struct cairn_value_label *values; /* value map, or NULL */
  size_t value_count;
  const char *origin;      /* "CIM_Job", or "Cairn" */
  const char *description; /* one line */
};

/* cairn_property_info.id of each: CAIRN_PROPERTY_RunMonth, ... */
enum cairn_property_id {
  CAIRN_PROPERTY_NONE = 0,
#define CAIRN_PROPERTY(name, ...) CAIRN_PROPERTY_##name,
#include "cairn/properties.def"
#undef CAIRN_PROPERTY
  CAIRN_PROPERTY_END, /* one past the last */
  CAIRN_PROPERTY_CLASS_COUNT = CAIRN_PROPERTY_ExportedGuestStateFilePaths
};

/* By position, 0 up; NULL past the last. */
CAIRN_API const struct cairn_property_info *cairn_property_at(size_t index);
/* Exact name; NULL when there is none. */
CAIRN_API const struct cairn_property_info *
cairn_property_find(const char *name);
/* The valid name most like `name` (never NULL). */
CAIRN_API const char *cairn_property_nearest(const char *name);
/* Label of a number, or NULL. "Completed With Warnings" for 32768. */
CAIRN_API const char *cairn_value_label(const struct cairn_property_info *p,
                                        int64_t value);
/* Number of a label, ignoring case, spaces and '-' (but not the leading sign
 * of a weekday); 0 when found, else -1. */
CAIRN_API int cairn_value_number(const struct cairn_property_info *p,
                                 const char *label, int64_t *out);

/* Value maps that belong to methods and CIM_Error, by name: "RequestedState",
 * "RequestStateChange", "KillJob", "GetError", "ErrorType",
 * "PerceivedSeverity", "ProbableCause", "ErrorSourceFormat",
 * "CIMStatusCode", "VendorReturnCode". NULL when there is none. */
CAIRN_API const struct cairn_value_label *cairn_value_map(const char *name,
                                                          size_t *count);

enum cairn_value_kind {
  CAIRN_VALUE_NULL = 0,
  CAIRN_VALUE_BOOLEAN,
  CAIRN_VALUE_INTEGER,
  CAIRN_VALUE_REAL,
  CAIRN_VALUE_STRING,
  CAIRN_VALUE_DATETIME,
  CAIRN_VALUE_INTEGER_ARRAY,
  CAIRN_VALUE_STRING_ARRAY
};

struct cairn_value {
  uint8_t kind;
  size_t count; /* of an array; bytes of a string */
  union {
    int boolean;
    int64_t integer;
    double real;
    const char *string;
    struct cairn_datetime datetime;
    const uint16_t *integers;
    const char *const *strings;
  } as;
};

/* ---- job states and requests ------------------------------------------- */

enum cairn_job_state {
  CAIRN_NEW = 2,
  CAIRN_STARTING = 3,
  CAIRN_RUNNING = 4,
  CAIRN_SUSPENDED = 5,
  CAIRN_SHUTTING_DOWN = 6,
  CAIRN_COMPLETED = 7,
  CAIRN_TERMINATED = 8,
  CAIRN_KILLED = 9,
  CAIRN_EXCEPTION = 10,
  CAIRN_SERVICE = 11,
  CAIRN_QUERY_PENDING = 12,
  CAIRN_COMPLETED_WITH_WARNINGS = 32768
};

enum cairn_requested_state {
  CAIRN_REQUEST_START = 2,
  CAIRN_REQUEST_SUSPEND = 3,
  CAIRN_REQUEST_TERMINATE = 4,
  CAIRN_REQUEST_KILL = 5,
  CAIRN_REQUEST_SERVICE = 6
};

/* RequestStateChange's return codes (DMTF). */
enum cairn_return_code {
  CAIRN_RC_COMPLETED = 0,
  CAIRN_RC_NOT_SUPPORTED = 1,
  CAIRN_RC_UNKNOWN = 2,
  CAIRN_RC_TIMEOUT = 3,
  CAIRN_RC_FAILED = 4,
  CAIRN_RC_INVALID_PARAMETER = 5,
  CAIRN_RC_IN_USE = 6,
  CAIRN_RC_STARTED = 4096,
  CAIRN_RC_INVALID_TRANSITION = 4097,
  CAIRN_RC_TIMEOUT_NOT_SUPPORTED = 4098,
  CAIRN_RC_BUSY = 4099
};

/* 1 when JobState may change from `from` to `to` (state x state matrix). */
CAIRN_API int cairn_state_can_change(int from, int to);
/* Code that the state x request matrix gives, before job-type capability. */
CAIRN_API uint32_t cairn_state_request_code(int state, int request);
CAIRN_API int cairn_state_is_final(int state);
/* The vendor's number for a DMTF return code (docs/job-model.md 3.2). */
CAIRN_API uint32_t cairn_vendor_code(uint32_t dmtf_code);

/* ---- engine ------------------------------------------------------------ */

typedef struct cairn_engine cairn_engine;

/* Identifies a job for the life of the engine; never reused; 0 is none. */
typedef uint64_t cairn_job;

struct cairn_io;    /* engine/io.h: for tests that inject faults */
struct cairn_clock; /* engine/clock.h */

struct cairn_engine_options {
  uint32_t size;             /* sizeof(struct cairn_engine_options) */
  const char *store;         /* the file that keeps the jobs, made when it is
                                missing; ":memory:" or NULL: none */
  int is_vendor_codes;       /* return codes of the vendor, not of the DMTF */
  int is_virtual_clock;      /* time stands still: cairn_engine_advance() */
  int64_t virtual_start;     /* Unix microseconds; 0 = 2025-01-01T00:00:00Z */
  const char *queues_json;   /* {"default":{"concurrency":2}, ...} or NULL:
                                docs/job-model.md, "Queues" */
  const char *owner;         /* CIM_Job.Owner of its jobs; NULL = the user */
  uint32_t history_limit;    /* records of runs that are kept; 0 = 10000 */
  const struct cairn_io *io; /* NULL = the system's; stays valid until the
                                engine is freed and its threads have ended */
  int is_simulated;          /* no run has a thread: the embedding program has
                                the bodies of all kinds, as it has those of
                                "run" jobs. Nothing is read or written; queues,
                                directories, calendars and recovery are as
                                ever. Only with a virtual clock and without a
                                store */
};

CAIRN_API int cairn_engine_open(const struct cairn_engine_options *options,
                                cairn_engine **out, struct cairn_error *err);

enum cairn_close_mode {
  CAIRN_CLOSE_SUSPEND,
  CAIRN_CLOSE_TERMINATE,
  CAIRN_CLOSE_KILL
};
/* Asks every job to end that way and accepts no new one. Drive the engine
 * until cairn_engine_is_idle(), then free it. May be called again to
 * escalate. */
CAIRN_API void cairn_engine_close(cairn_engine *engine,
                                  enum cairn_close_mode mode);
/* 1 when nothing of the engine's runs any more. */
CAIRN_API int cairn_engine_is_idle(const cairn_engine *engine);
/* 1 while a thread of the engine's works for a job, which takes real time
 * whatever the clock; 0 when all that have a run are suspended, or are tasks.
 */
CAIRN_API int cairn_engine_is_working(const cairn_engine *engine);
/* Frees it, killing what still runs without waiting for it. NULL allowed. */
CAIRN_API void cairn_engine_free(cairn_engine *engine);

/* One descriptor, readable when cairn_engine_step() has work: completions,
 * due times, clock jumps, ended processes. Owned by the engine. */
CAIRN_API int cairn_engine_pollfd(const cairn_engine *engine);
/* Microseconds until the next due time, 0 = now, -1 = none. */
CAIRN_API int64_t cairn_engine_timeout(const cairn_engine *engine);
/* Does what is due, a bounded amount, without blocking. Returns 1 when there
 * may be more to do at once (or events are queued), 0 when not. */
CAIRN_API int cairn_engine_step(cairn_engine *engine);
/* Waits at most timeout_us (-1 = for ever) for work and steps; returns what the
 * step does, 0 when the time passed or a signal came. With a virtual clock
 * nothing but outside work (threads, processes) is waited for. */
CAIRN_API int cairn_engine_wait(cairn_engine *engine, int64_t timeout_us);
/* Moves a virtual clock forward, to the end of the year 9999 at most
 * (CAIRN_E_OUT_OF_RANGE); CAIRN_E_NOT_SUPPORTED with the real one. */
CAIRN_API int cairn_engine_advance(cairn_engine *engine, int64_t microseconds,
                                   struct cairn_error *err);
/* The engine's clock. */
CAIRN_API int64_t cairn_engine_now(const cairn_engine *engine); /* Unix */
CAIRN_API int64_t cairn_engine_monotonic(const cairn_engine *engine);

/* ---- events ------------------------------------------------------------ */

enum cairn_event_type {
  CAIRN_EVENT_SUBMITTED = 1,   /* a job exists */
  CAIRN_EVENT_STATE,           /* JobState: old_state -> new_state */
  CAIRN_EVENT_PERCENT,         /* PercentComplete: percent */
  CAIRN_EVENT_CHANGED,         /* properties were set */
  CAIRN_EVENT_REMOVED,         /* the job is gone; its id answers no more */
  CAIRN_EVENT_WARNING,         /* a warning was added to the running job */
  CAIRN_EVENT_TIMER,           /* a timer of cairn_timer_start(): cookie */
  CAIRN_EVENT_PROCESS,         /* a process of cairn_process_start(): cookie,
                                  status as wait(2) gives it, -1 when somebody
                                  else has reaped it */
  CAIRN_EVENT_REQUEST_TIMEOUT, /* a request did not finish in its
                                  TimeoutPeriod; it stands. code = 3 */
  CAIRN_EVENT_SKIPPED,         /* count times at which the job was due, due to
                                  due_last, have no run: code is 0 missed (the
                                  engine was not there, and catch_up has it so),
                                  1 the run before was not over, 2 the job was
                                  held, 3 it has ended, 4 it waited longer than
                                  MaxTimeOnQueue */
  CAIRN_EVENT_RUN_ENDED,       /* an attempt at a run: new_state is the JobState
                                  that says how, code its ErrorCode, count the
                                  attempt, due as below;
                                  status is 1 when it will be tried again */
  CAIRN_EVENT_STORE,           /* the store fails (code: a CAIRN_E_ id; see
                                  cairn_engine_store_error()) or has
                                  recovered (code 0) */
  CAIRN_EVENT_BACKUP,          /* cairn_backup_start() has ended: cookie, code
                                  (0: the copy is there) */
  /* To whoever runs the bodies of "run" jobs (tasks): */
  CAIRN_EVENT_TASK_START,
  CAIRN_EVENT_TASK_SUSPEND, /* stop at a safe point: cairn_task_parked() */
  CAIRN_EVENT_TASK_RESUME,
  CAIRN_EVENT_TASK_TERMINATE, /* end in order: cairn_task_finish() */
  CAIRN_EVENT_TASK_KILL,      /* end at once; the job is Killed already */
  CAIRN_EVENT_TASK_ANSWER,    /* the answer: cairn_task_answer_text() */
  CAIRN_EVENT_TASK_RECOVER,   /* its run has failed: cairn_job_recover();
                                 status: 1 its handler is asked, 2 its
                                 decisions are */
  CAIRN_EVENT_TASK_DECIDE     /* its run waits: cairn_job_decide(); run, and
                                 the epoch in status */
};

struct cairn_event {
  uint64_t sequence; /* from 1, without a gap, over all lives of a store; 0
                        for what no store keeps: PercentComplete, Timer,
                        Process, Store, Backup and Task... */
  cairn_job job;
  int64_t time; /* Unix microseconds */
  uint64_t cookie;
  uint32_t type; /* enum cairn_event_type */
  int32_t status;
  uint16_t old_state, new_state, percent, code;
  uint32_t run;         /* the job's run_number at that time */
  uint32_t count;       /* Skipped: how many times */
  int64_t due;          /* Skipped: the first of them; RunEnded, JobState to
                           Starting (of each attempt): when this run was due;
                           Unix microseconds, 0 = at no time */
  int64_t due_last;     /* Skipped: the last of them */
  char instance_id[48]; /* the job's InstanceID (also of a removed one) */
};

/* Copies up to `max` events, oldest first, and returns how many. Events are
 * kept until they are taken, whatever that costs: take them. */
CAIRN_API size_t cairn_engine_next_events(cairn_engine *engine,
                                          struct cairn_event *out, size_t max);
/* "JobState", "PercentComplete", "Submitted", ... or NULL. */
CAIRN_API const char *cairn_event_name(uint32_t type);

/* ---- the store -----------------------------------------------------------
 *
 * An engine with a store commits on a thread of its own. What a call has
 * changed is in memory, and seen by all other calls, when it returns; it is
 * durable, and its events are handed out, after a commit. What was changed by
 * the calls so far is durable when cairn_engine_durable() has reached what
 * cairn_engine_turn() was after them.
 *
 * When the engine's process ends without cairn_engine_close(), the next engine
 * begins again what was running: as the same run (run_number), at once.
 *
 * While commits fail, nothing starts and nothing is published, submitting and
 * setting give CAIRN_E_STORE_FAILED; the commit is tried again every second. */

CAIRN_API uint64_t cairn_engine_turn(const cairn_engine *engine);
CAIRN_API uint64_t cairn_engine_durable(const cairn_engine *engine);
/* Waits until all is durable, timeout_us at most (negative: for ever). Blocks;
 * does nothing else of what cairn_engine_step() does. CAIRN_E_TIMEOUT, or
 * CAIRN_E_STORE_FAILED when the commit fails. 0 at once without a store. */
CAIRN_API int cairn_engine_flush(cairn_engine *engine, int64_t timeout_us,
                                 struct cairn_error *err);
/* 0: the store is well, or there is none; -1: err has why its commits fail. */
CAIRN_API int cairn_engine_store_error(const cairn_engine *engine,
                                       struct cairn_error *err);
/* The events after `cursor` (a sequence; 0: from the oldest that is kept on),
 * at most `max` of them, those included that this engine has not handed out
 * yet. The last 100000 are kept, with a little more. CAIRN_E_OUT_OF_RANGE when
 * those after the cursor are gone; CAIRN_E_NOT_SUPPORTED without a store.
 * Blocks until the store has committed what happened before. */
CAIRN_API int cairn_changes(cairn_engine *engine, uint64_t cursor,
                            struct cairn_event *out, size_t max, size_t *count,
                            struct cairn_error *err);
/* Copies the store into a new file, while the engine goes on: a BACKUP event
 * follows. CAIRN_E_BUSY while another one is on. */
CAIRN_API int cairn_backup_start(cairn_engine *engine, const char *to,
                                 uint64_t cookie, struct cairn_error *err);
/* What became of the last one: 0, or -1 with err. */
CAIRN_API int cairn_backup_error(cairn_engine *engine, struct cairn_error *err);

/* ---- jobs --------------------------------------------------------------- */

/* The engine's queues as a JSON array: Name, QueueStatus ("Active"; "Busy":
 * all its places are taken; "Degraded": the store fails; "Stopped": the engine
 * is closing), its options, and how many jobs run, are queued (in a directory's
 * line not included) and have not ended. The caller frees. */
CAIRN_API int cairn_queues(cairn_engine *engine, char **out,
                           struct cairn_error *err);

/* Creates a job from a specification (docs/job-model.md "Submitting"): a JSON
 * object of writable properties, Name, RecoveryAction, OtherRecoveryAction,
 * Description, ElementName, Caption, queue, and exactly one kind: "export",
 * "verify", "restore" or "run". "once": true ignores the calendar: one run,
 * now. Paths must be absolute. Checked whole before anything happens. */
CAIRN_API int cairn_submit(cairn_engine *engine, const char *json,
                           size_t length, cairn_job *out,
                           struct cairn_error *err);
/* An array of specifications, all or none; out has room for `count`, which
 * must be the array's length. The error's message begins with "specification
 * N: ". Messages count array elements from 1 everywhere. */
CAIRN_API int cairn_submit_all(cairn_engine *engine, const char *json,
                               size_t length, cairn_job *out, size_t count,
                               struct cairn_error *err);
/* Gives a job that has not ended another specification; its InstanceID, its
 * history, its run_number and what a client holds stay. A run that is on goes
 * on as it began (CAIRN_E_BUSY when the kind changes). While the calendar stays
 * the same no due time is lost. */
CAIRN_API int cairn_job_update(cairn_engine *engine, cairn_job job,
                               const char *json, size_t length,
                               struct cairn_error *err);
/* The file that its policy was read from, borrowed; NULL: not given, the job is
 * gone, or memory has run out. */
CAIRN_API const char *cairn_job_policy_file(cairn_engine *engine,
                                            cairn_job job);
/* Whoever gives the job its specification has none for it any more: it is held
 * until cairn_job_update(), or until a client starts or resumes it. Nothing for
 * one that is held already, or has ended. */
CAIRN_API int cairn_job_disown(cairn_engine *engine, cairn_job job,
                               struct cairn_error *err);
/* Checks a specification as cairn_submit() does and plans it without running
 * (--dry-run): *plan is a JSON object the caller frees. Blocks on I/O. */
CAIRN_API int cairn_plan(cairn_engine *engine, const char *json, size_t length,
                         char **plan, struct cairn_error *err);

/* By InstanceID, bare GUID or a unique prefix of 4 or more of the GUID. */
CAIRN_API int cairn_job_find(cairn_engine *engine, const char *id,
                             cairn_job *out, struct cairn_error *err);
/* The next job in order of submission after `after` (0 = first); 0 = end. */
CAIRN_API cairn_job cairn_job_next(cairn_engine *engine, cairn_job after);

/* Reads property `id` (cairn_property_info.id). A job that is gone:
 * CAIRN_E_NOT_FOUND. */
CAIRN_API int cairn_job_get(cairn_engine *engine, cairn_job job, int id,
                            struct cairn_value *out, struct cairn_error *err);

struct cairn_change {
  const char *name;
  struct cairn_value value; /* labels and datetimes may come as strings */
};
/* Sets all or none. Nothing moves when one is refused. */
CAIRN_API int cairn_job_set(cairn_engine *engine, cairn_job job,
                            const struct cairn_change *changes, size_t count,
                            struct cairn_error *err);

/* The whole job as a JSON object keyed by property name; the caller frees. */
CAIRN_API int cairn_job_json(cairn_engine *engine, cairn_job job,
                             int is_numbers, char **out,
                             struct cairn_error *err);
/* What has become of runs, oldest first: a JSON array that the caller frees, of
 * one job, which may be gone (`id` as for cairn_job_find()), or of all (NULL).
 * The latest history_limit of the engine are kept. Each attempt at a run that
 * has ended: InstanceID, Name, time (of its end), due (null: a client wanted
 * it), StartTime, ElapsedTime, run_number, attempt, JobState (how it ended),
 * ErrorCode, ErrorDescription, warnings (an array of texts, of some KiB at
 * most, or null), lost_warnings (how many it had besides), bytes_done,
 * ReferencePointGroupId (of the point that it made or merged, or null),
 * policy_version (as the job had it when the attempt began, or null). Due times
 * without a run: InstanceID, Name, time, due, due_last, skipped (how many),
 * reason ("missed", "running", "held", "ended"). */
CAIRN_API int cairn_history(cairn_engine *engine, const char *id, char **out,
                            struct cairn_error *err);
/* Some of it. *next (NULL: not wanted) is what `after` goes on with, 0: there
 * is nothing more. It stays good whatever is added or dropped meanwhile;
 * of a job that no record tells of any more, nothing comes after it. */
struct cairn_history_range {
  const char *id; /* as above */
  uint64_t after; /* 0: from the oldest */
  size_t max;     /* 0: all */
  int is_last;    /* the last max of them, not the first */
};
CAIRN_API int cairn_history_range(cairn_engine *engine,
                                  const struct cairn_history_range *range,
                                  char **out, uint64_t *next,
                                  struct cairn_error *err);
/* What a verify, restore or export job reports (per machine, per disk), a
 * JSON value the caller frees; "null" before its run has ended. */
CAIRN_API int cairn_job_report(cairn_engine *engine, cairn_job job, char **out,
                               struct cairn_error *err);
/* What the run that is on, or the last one, has warned of until now: a JSON
 * array of texts that the caller frees, in the order in which they came; the
 * first thousand. */
CAIRN_API int cairn_job_warnings(cairn_engine *engine, cairn_job job,
                                 char **out, struct cairn_error *err);

/* The class's methods. They return the DMTF code (or the vendor's when the
 * engine was opened so). A job that is gone: err filled, code 2; one that
 * sleeps and cannot be woken for want of memory: code 4. */
CAIRN_API uint32_t cairn_job_request_state_change(
    cairn_engine *engine, cairn_job job, int64_t requested_state,
    const struct cairn_datetime *timeout_period, struct cairn_error *err);
/* delete_on_kill: 1, 0, or -1 = null. Has codes of its own (value map
 * "KillJob"): 4 in a final state and without memory, 7 for a job that is
 * gone. */
CAIRN_API uint32_t cairn_job_kill(cairn_engine *engine, cairn_job job,
                                  int delete_on_kill, struct cairn_error *err);
/* GetErrorEx: *errors is "null" or a JSON array of CIM_Error objects of 15
 * properties, root cause first; GetError is its first element (see
 * docs/job-model.md for warnings); without is_ex the array holds that one
 * alone. The caller frees. */
CAIRN_API uint32_t cairn_job_get_errors(cairn_engine *engine, cairn_job job,
                                        int is_ex, char **errors,
                                        struct cairn_error *err);
/* Only in a final state, else CAIRN_E_INVALID_STATE. */
CAIRN_API int cairn_job_delete(cairn_engine *engine, cairn_job job,
                               struct cairn_error *err);
/* Continues a suspended run, or only releases a hold. */
CAIRN_API uint32_t cairn_job_resume(cairn_engine *engine, cairn_job job,
                                    struct cairn_error *err);
/* Answers a Query Pending; refused when the text is none of the choices. */
CAIRN_API uint32_t cairn_job_resume_with_input(cairn_engine *engine,
                                               cairn_job job, const char *text,
                                               struct cairn_error *err);
/* The open question as JSON {"question":, "choices":[...]|null}, or "null"; the
 * caller frees. */
CAIRN_API int cairn_job_query(cairn_engine *engine, cairn_job job, char **out,
                              struct cairn_error *err);

/* ---- tasks: the bodies of "run" jobs, run by the embedding program ------ */

/* A store keeps no code. A task with {"run": {"code": NAME}} waits until the
 * program says that it has the body of this name: once, in every life of the
 * engine. A task without a name is begun as soon as it is due. */
CAIRN_API int cairn_code_add(cairn_engine *engine, const char *name,
                             struct cairn_error *err);
/* The name, borrowed; NULL: it has none, is no task or is gone, or memory has
 * run out. A job that is to run has it. */
CAIRN_API const char *cairn_task_code(cairn_engine *engine, cairn_job job);
/* The program has the handler of this name, for jobs whose RecoveryAction is
 * Other and whose OtherRecoveryAction is the name. When a run of one fails, it
 * backs off and a TASK_RECOVER event follows, which must be answered; without
 * the handler the job goes on as with Continue With Next Job, with a warning.
 */
CAIRN_API int cairn_recovery_add(cairn_engine *engine, const char *name,
                                 struct cairn_error *err);
/* As an answer to what the decisions of a job were asked: what its properties
 * (RecoveryAction) say. */
#define CAIRN_RECOVER_BY_PROPERTIES (-1)
/* What becomes of the failure, as a number of RecoveryAction: 4 the run again
 * after delay_us, 5 the RecoveryJob and else as 3, 2 the job ends, 0 and 3 it
 * goes on with its next run if it has one. 1: the run is not over by this, it
 * is tried again or a handler is asked next; 0: it is. CAIRN_E_INVALID_STATE
 * when it waits for no answer (any more). */
CAIRN_API int cairn_job_recover(cairn_engine *engine, cairn_job job, int action,
                                int64_t delay_us, struct cairn_error *err);
/* Decisions: a job with {"decisions": NAME} in its specification waits, like a
 * task for its body, until the program says that it has that name
 * (cairn_code_add). Before a run of a kind that is not a task does anything, a
 * TASK_DECIDE event comes, and when a run has failed a TASK_RECOVER event; both
 * must be answered. This lets the run `number`, `epoch` begin, with another
 * specification for this run alone (the object of its kind, as JSON, with the
 * same directories), or with NULL its job's. An error changes nothing;
 * CAIRN_E_INVALID_STATE when that run waits for nothing (any more). In an
 * engine that simulates no TASK_DECIDE comes, since the program has the bodies:
 * there this only says whether a specification can be. */
CAIRN_API int cairn_job_decide(cairn_engine *engine, cairn_job job,
                               uint32_t number, uint32_t epoch,
                               const char *json, size_t length,
                               struct cairn_error *err);
/* Holds the job's present run back to so many of its bytes_done per second;
 * 0: no limit. What it has not used is not saved up for longer than a second.
 * CAIRN_E_INVALID_STATE when no run is on that copies anything. */
CAIRN_API int cairn_job_throttle(cairn_engine *engine, cairn_job job,
                                 uint64_t bytes_per_second,
                                 struct cairn_error *err);
/* The object of the job's kind as JSON, with its defaults, while a run waits
 * for cairn_job_decide() that run's; the caller frees (cairn_free). NULL: err.
 */
CAIRN_API char *cairn_job_spec(cairn_engine *engine, cairn_job job,
                               struct cairn_error *err);
/* 0..100 (clamped; never moves back; 100 is shown only when completed). */
CAIRN_API int cairn_task_progress(cairn_engine *engine, cairn_job job,
                                  double percent, struct cairn_error *err);
/* The job goes to Query Pending until cairn_job_resume_with_input(). choices:
 * JSON array of strings, or NULL for free text. */
CAIRN_API int cairn_task_ask(cairn_engine *engine, cairn_job job,
                             const char *question, const char *choices_json,
                             struct cairn_error *err);
/* Borrowed; NULL when there is none. */
CAIRN_API const char *cairn_task_answer_text(cairn_engine *engine,
                                             cairn_job job);
/* The body stands still after TASK_SUSPEND. */
CAIRN_API int cairn_task_parked(cairn_engine *engine, cairn_job job,
                                struct cairn_error *err);
/* A warning of whoever decides, to the job's run that is on or has just failed
 * (it then ends Completed With Warnings). CAIRN_E_INVALID_STATE: there is none.
 */
CAIRN_API int cairn_job_warn(cairn_engine *engine, cairn_job job,
                             const char *message, struct cairn_error *err);
CAIRN_API int cairn_task_warn(cairn_engine *engine, cairn_job job,
                              const char *message, struct cairn_error *err);
/* The body has ended: failure NULL = well; otherwise its error (a CAIRN_E_ id
 * and message; CAIRN_E_TERMINATED after TASK_TERMINATE). */
CAIRN_API int cairn_task_finish(cairn_engine *engine, cairn_job job,
                                const struct cairn_error *failure,
                                struct cairn_error *err);

/* ---- timers and processes ------------------------------------------------ */

/* One TIMER event with this cookie after delay_us on the monotonic clock. */
CAIRN_API int cairn_timer_start(cairn_engine *engine, int64_t delay_us,
                                uint64_t cookie, struct cairn_error *err);
CAIRN_API void cairn_timer_stop(cairn_engine *engine, uint64_t cookie);

struct cairn_process_options {
  uint32_t size;
  const char *const *argv; /* NULL-terminated; argv[0] is looked up in PATH */
  const char *const *env;  /* NULL-terminated "K=V"; NULL = inherited */
  const char *cwd;         /* NULL = inherited */
  const char *input;       /* standard input; NULL = /dev/null */
  size_t input_length;
};
/* Starts a program in its own process group, with its output captured. It
 * gets SIGKILL when the engine's process dies, or the thread that called this.
 * One PROCESS event follows. */
CAIRN_API int cairn_process_start(cairn_engine *engine, cairn_job job,
                                  const struct cairn_process_options *options,
                                  uint64_t cookie, struct cairn_error *err);
/* Signals the whole group; an error (ESRCH) once somebody else has reaped the
 * program, since its number may be a stranger's by then. */
CAIRN_API int cairn_process_signal(cairn_engine *engine, uint64_t cookie,
                                   int signal, struct cairn_error *err);
/* What it has written so far (which: 1 stdout, 2 stderr; the last 1 MiB at
 * most); the caller frees. */
CAIRN_API int cairn_process_output(cairn_engine *engine, uint64_t cookie,
                                   int which, char **text, size_t *length,
                                   struct cairn_error *err);
/* Forgets an ended process. */
CAIRN_API void cairn_process_release(cairn_engine *engine, uint64_t cookie);

/* ---- exports on disk, without a job ---------------------------------------
 */

/* The reference points in an export directory as a JSON array, by sequence:
 * "kind" is "export", or "marker" for one without an export; damaged ones have
 * "error". The caller frees. Blocks on I/O. */
CAIRN_API int cairn_points(const char *directory, char **json,
                           struct cairn_error *err);
/* Which points the rules of a prune job keep: a JSON object { keep: as in the
 * specification, points: [{ time: CIM datetime, id? }] } of one collection,
 * oldest first; *out is a JSON array with the reasons (an array of strings) for
 * each; one with none could go. The caller frees. Reads and writes nothing. */
CAIRN_API int cairn_keep(const char *json, size_t length, char **out,
                         struct cairn_error *err);
/* What is kept for a point outside of its directory, by a whole id: a JSON
 * array of bitmaps and clones, each with "exists", or "error" where that cannot
 * be told. The caller frees. Blocks on I/O. */
CAIRN_API int cairn_point_data(const char *directory, const char *id,
                               char **json, struct cairn_error *err);
/* What may be wrong in an export directory, and what to do about it: a JSON
 * object with "findings" (docs/lua-api.md, cairn.doctor). `options` (a JSON
 * object, or NULL): "collection" (plans its next export), "fix" (removes what
 * is surely ours and nobody's any more). The caller frees. Blocks on I/O. */
CAIRN_API int cairn_doctor(const char *directory, const char *options,
                           char **json, struct cairn_error *err);

#ifdef __cplusplus
}
#endif

#endif
