---@meta cairn
-- Types for editors (LuaLS). Written by scripts/lua_reference.lua from
-- bindings/cairn/api.lua.

---@class cairn.collection

---@class cairn.policy

---@class cairn.datetime

---@class cairn.task

---@class cairn.open.options

---@class cairn
---@field version string # of the module
---@field null lightuserdata # JSON's null, and in job:set a property to be unset
---@field errors table # the table of errors: list of rows, and rows by code: code, ErrorCode, MessageID, exit_code, summary, recommended_action, ErrorType, ProbableCause, CIMStatusCode
---@field properties table # the properties of a job in order of declaration, and by name: name, type, is_writable, values, min, max, max_length, default, description, ...
local cairn = {}

---Opens an engine. Use `local engine <close> = assert(cairn.open())`. With a store the jobs of earlier lives are there again: what was running is begun again, as the same run; what a client had held or asked to end stays so; times that have passed are made up for as catch_up says. `store_locked`: another engine has it, whose process the message names; `store_failed`: it is no store, damaged, or cannot be written.
---@param options? cairn.open.options store (the file that keeps the jobs, made when it is missing; `":memory:"`, the default, keeps none), codes (`"dmtf"` or `"vendor"`: whose return codes), log (function of a message; default: standard error), queues (`{ default = { concurrency = 2 } }`, see [job-model.md](job-model.md#queues)), notify (handlers by name, for jobs whose Notify is that name: a function of the notice, which may wait; `{ program, argument, ... }`, which gets it as JSON on standard input; `"log"`; `"mailto:ADDRESS"`, through the system's sendmail. A Notify that begins with mailto: needs no handler, any other without one is logged), recovery (functions by name, for jobs whose RecoveryAction is Other and whose OtherRecoveryAction is that name: called with job, { ErrorCode, message } and the attempt after a run has failed; what it returns is done: `"Re-run Job"` and a delay, `"Run Recovery Job"`, `"Do Not Continue"` or nothing), owner (CIM_Job.Owner), clock (`"virtual"`: time stands still and is moved by engine:advance), start (a virtual clock's first time), history_limit (how many records of runs are kept), simulate (a function of a job: the body of every run, of whatever kind; nothing is exported, but queues, export directories, calendars and recovery are as ever. Only with a virtual clock and without a store)
---@return cairn.engine? # the engine
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.open(options) end

---Names the body of run jobs, for `run = name`. A store keeps the name, not the code: such a job waits until a program that has the engine open has given the name a body.
---@param name string
---@param body fun(job: cairn.job)
function cairn.kind(name, body) end

---Checks the description of a collection of machines. Raises an error object that names the place.
---@param collection table `CollectionId`, `ElementName`, `source_directories`, `machines`: a list of `VirtualMachineId`, `ElementName`, `disks` (a list of `id`, `path`, `format` (`"raw"` or `"qcow2"`), `assume_quiescent`), and the lists of files `config`, `runtime`, `guest_state`
---@return cairn.collection # a checked copy with absolute paths
function cairn.collection(collection) end

---What cairn.collection would have made of the table in that file; a collection comes out unchanged.
---@param collection table what a file returned
---@param file string the file's name
---@return cairn.collection? # the collection
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.collection_from(collection, file) end

---What a policy file returns. Raises an error object that names the place. The functions work when the file is loaded (cairn.policy_load, `cairn run`, `cairn serve`): they run in an isolated state, see docs/policies.md.
---@param policy table `jobs`: a table of what engine:submit takes, by key; `name` (that of the file when left out); `handlers`: a table of what `notify` of cairn.open takes, for its jobs; the functions `base`, `select`, `on_failure`, `retain`, `throttle`, `notify`, which a job may have as its own; `tests`: a table of functions by name
---@return cairn.policy # a checked copy with absolute paths
function cairn.policy(policy) end

---Loads a policy file. Codes: `script_syntax`, `script_error`, `unknown_key`, `wrong_type`, ..., the message with file and line.
---@param path string the file
---@param settings? table<string, string> what `local set = ...` gets in the file, besides `set.file`
---@return cairn.policy? # the policy: `jobs`, `name`, `file`, `version` (XXH3 of the text)
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.policy_load(path, settings) end

---Lists the reference points in a directory. `kind` is `"export"`, or `"marker"` for one without an export; `has_associated_data` says whether a clone or bitmap is kept.
---@param directory string an export directory
---@return table[]? # the reference points in it, by sequence; a damaged one has `error`
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.points(directory) end

---Applies the rules of a prune to points that need not exist. A prune also keeps what cannot be merged.
---@param points table[] of one collection, oldest first, as cairn.points gives them: time (a CIM datetime) and ReferencePointGroupId (for `ids`) are looked at
---@param rules table what `keep` of a prune is
---@return table[]? # for each point the names of the rules that keep it; an empty list: it could go
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.keep(points, rules) end

---What may be wrong in an export directory, what to do about it, and what the next export will do and why. Reads no disk. `what` is one of damaged, index, missing_base, base_elsewhere, misnamed, duplicate, suspect, wide_modes, stale_work, half_removed, unfinished, left_clone, left_bitmap, bitmap_in_use, lost_data, next_export, low_space, unreadable, not_fixed.
---@param directory string an export directory
---@param options? table collection (its next export is planned; default: that of the newest point), fix (removes what is nobody's first), also (a list of export directories whose points are known too)
---@return table? # directory, findings: a list of what, subject, text, advice, is_fixable; fixed: a list of texts; chains: CollectionId, VirtualMachineId, disk, ReferencePointGroupId, depth; next: a plan; next_error; is_busy, point_count, marker_count, free_bytes, total_bytes
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.doctor(directory, options) end

---Verifies exports on a private engine and waits for it. A check that failed gives the report too, as a fourth result.
---@param options table directory, point (all points when left out), depth (`"set"`, `"chain"`, `"content"`, the default), source (a collection to compare with)
---@return table? # the report
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.verify(options) end

---Restores a point on a private engine and waits for it. A restore that failed gives the report (what was written, what not) as a fourth result.
---@param options table directory, point, to, machine, disk, format (`"raw"`, the default, or `"qcow2"`), overwrite
---@return table? # the report
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.restore(options) end

---Writes a disk of a point as a stream `rbd diff v1` on a private engine and waits for it. A stream that failed has no end record.
---@param options table directory, point, machine and disk (needed when there are several), base (a point's id, or `"none"`; default: what the disk is based on), output (a path, or the number of a descriptor, which stays open), dry_run
---@return table? # the report; with dry_run the plan
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.stream(options) end

---Takes a stream `rbd diff v1` in as a new reference point with one disk, on a private engine, and waits for it.
---@param options table input (a path, or the number of a descriptor, which stays open), directory, collection, machine and disk (needed when there are several), base (a point's id, or `"none"`; default: what the stream starts from), format (`"qcow2"`, the default, or `"raw"`: of a full), digest, dry_run
---@return table? # the report; with dry_run the plan
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.import(options) end

---Merges the chain of a point into a full, or into one increment on `into`, and waits for it. The point keeps its id and its content, and without `to` its place: points that are based on it stay valid.
---@param options table directory, point, into (`"full"`, the default, or the id of an older point of its chain), through (ids of the points between, oldest first: checked), to (another directory), dry_run
---@return table? # the report; with dry_run the plan
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.merge(options) end

---Removes the points that no rule of `keep` keeps, merging those that are based on them first, and waits for it. The newest point of a collection is always kept. A failure gives the report too.
---@param options table directory, keep (last, daily, weekly, monthly, yearly = numbers; within = seconds or `"30d"`; ids = list), collection (a CollectionId, or a collection; all when left out), dry_run
---@return table? # the report: kept, merged, removed, refused; with dry_run the plan
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.prune(options) end

---Lets a luv loop drive the engine, through one poll handle. The loop stays alive while jobs are unfinished (held ones too), tasks run or somebody waits.
---@param engine cairn.engine
---@param uv? table luv; required when left out
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.attach(engine, uv) end

---Reads the settings of a policy (`--set NAME=VALUE`, cairn.policy_load); raises for one that has no default here, or a value of another type or outside its range, with what would be valid.
---@param given? table what the file of a policy gets: `cairn.settings(..., { ... })`
---@param defaults table by name, at most 64: text, a number, true or false, or `{ default, least, most }` of a number; a whole number as the default admits whole numbers only
---@return table # the value of each: what is given, or the default, of the default's type; and file, the policy's path
function cairn.settings(given, defaults) end

---Runs a function as a task, a coroutine in which everything may wait, on the engine of the running task, else on the one opened last.
---@param fn function the body
---@param ... any its arguments
---@return cairn.task # with task:wait([timeout]) (what the function returned, or nil, message, code), task:kill(), task.status
function cairn.spawn(fn, ...) end

---Waits, by the engine's clock.
---@param seconds number
function cairn.sleep(seconds) end

---A CIM datetime.
---@param value string|number|cairn.datetime 25 characters, or Unix seconds
---@return cairn.datetime # immutable; tostring gives the 25 characters; + - * / and comparison by the rules of CIM; fields microseconds, seconds, utc_offset, kind, precision
function cairn.datetime(value) end

---A CIM interval.
---@param value string|number|cairn.datetime `"2h"`, `"1d12h"`, `"90s"`, seconds, or 25 characters
---@return cairn.datetime # an interval
function cairn.interval(value) end

---Refuses what has no JSON form, naming the place.
---@param value any
---@return string? # JSON, keys sorted
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.json_encode(value) end

---@param text string
---@return any # the value; null is nil, in a list cairn.null
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function cairn.json_decode(text) end

---@param value any
---@return boolean
function cairn.is_job(value) end

---@param value any
---@return boolean
function cairn.is_engine(value) end

---@param name string of a method's or CIM_Error's map: `"RequestedState"`, `"ProbableCause"`, ...
---@return table[]? # list of { value, label }
function cairn.value_map(name) end

---What this page says about a name.
---@param name? string
---@return string
function cairn.help(name) end

---The calendar of a job, without a job. Raises an error object for what is no schedule or never comes.
---@param properties table as of a job: `RunMonth`, `RunDay`, `RunDayOfWeek`, `RunStartInterval`, `LocalOrUtcTime`, `UntilTime`, `JobRunTimes` (default here: 0, no limit), `zone` (an IANA name; default: the host's zone), `gap` (of what falls into a gap of the local clock: `"first"`, the default, is at its end, `"shift"` later by its length, `"skip"` not at all), `overlap` (of what the clock shows twice: `"first"`, the default, `"last"` or `"both"`)
---@return cairn.schedule # the schedule; its `zone` is the zone's name, its `warning` a text where it may mean something else than it says
function cairn.schedule(properties) end

---@class cairn.schedule
local schedule = {}

---The next runs; fewer than n where UntilTime or JobRunTimes ends them.
---@param n? integer how many; default 1
---@param after? any a CIM datetime or Unix seconds; default now
---@return table[] # in order, strictly after `after`: unix_us; local_time (a CIM datetime with the zone's offset then); nominal (what the schedule says, as the clock would show it: `"2025-03-30 02:30:00"`); kind: `"normal"`, `"gap"` (the clock never shows it) or `"overlap"` (it shows it twice); nominals: a list, when a gap swallowed several
function schedule:next(n, after) end

---What the schedule's clock shows at an instant.
---@param unix_us integer Unix microseconds
---@return string # a CIM datetime with the zone's offset then
function schedule:local_time(unix_us) end

---@class cairn.engine
local engine = {}

---Creates a job. `run = function(job) ... end` is a body in Lua, run as a task; `run = name` one of cairn.kind. With a store it returns when the job is in it; `wait = false`: at once, and a Submitted event says when. While waiting the engine is driven. `volatile = true`: not kept, which a function as body outside of a policy needs. `store_failed` after waiting: whether the job is kept is known when the store works again.
---@param spec table writable properties, Name, Caption, Description, ElementName, RecoveryAction, OtherRecoveryAction, RecoveryJob, queue, zone, gap, overlap, catch_up, once, held, volatile, wait, and one of export, verify, restore, stream, import, merge, prune, run
---@return cairn.job? # the job
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:submit(spec) end

---All or none, in one commit.
---@param specs table[]
---@return cairn.job[]? # in the same order
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:submit_all(specs) end

---Gives a job that has not ended another specification. Its id, its history and what a client holds stay; a run that is on goes on as it began; with the same calendar no due time is lost.
---@param job cairn.job
---@param spec table what engine:submit takes
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:update(job, spec) end

---Holds a job whose specification has left its policy, until engine:update gives it one again, or a client starts or resumes it. What a client holds stays a client's.
---@param job cairn.job
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:disown(job) end

---Checks and plans without running; writes nothing. For an export every disk is read, so that its size is exact: meanwhile the engine does nothing else, and the images are locked as for the export itself.
---@param spec table
---@return table? # what the job would do
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:plan(spec) end

---@param id string InstanceID, GUID, or at least 4 characters of one
---@return cairn.job?
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:job(id) end

---@param filter? table properties and the values they must have, labels or numbers
---@return cairn.job[] # in order of submission
function engine:jobs(filter) end

---@param id string|cairn.job
---@return string? # why the job is as it is, or is not running: due at, held, the queue, attempts, missing code, a store that fails; why its last run was late or was not
---@return table|string # the same as data; message when refused
---@return string? # code, when refused
function engine:why(id) end

---Handlers are called in turns. They cannot wait; an error in one is logged and stops nothing.
---@param name string `"Submitted"`, `"JobState"`, `"PercentComplete"`, `"Changed"`, `"Removed"`, `"Warning"`, `"RequestTimeout"`, `"Skipped"`, `"RunEnded"`, `"Store"`
---@param fn fun(event: table) gets name, job, InstanceID, run_number, sequence, time (Unix microseconds) and JobState, PreviousJobState or PercentComplete; a JobState that is Starting has due, when the calendar made this run due, at each attempt; RunEnded has attempt, is_retried (it will be tried again), due, JobState (how it ended) and ErrorCode; Skipped has due, due_last and count (the first and last of so many times that have no run) and reason: `"missed"`, `"running"`, `"held"`, `"ended"` or `"queued"`; Store has code (0: it works again) and message
---@return fun() # ends the subscription
function engine:on(name, fn) end

---The published service's method. A marker is exported from the clones that were kept, or while bitmaps prove that nothing has changed; else the code is 5, and the message names the first disk or file.
---@param collection cairn.collection or a point that is a marker, as cairn.points gives it: setting_data then has base, format, digest, depth_limit and Name only
---@param directory string
---@param setting_data? table base, format, digest, on_disk_error, depth_limit, tracker, resume, Name, machines: a list of VirtualMachineId and disks (ids); a machine without disks gives its configuration only
---@return integer # 4096 started, 1 not supported, 2 failed, 3 time-out, 4 invalid parameter, 5 invalid state, 6 invalid type
---@return cairn.job?
---@return string? # message
function engine:ExportReferencePoint(collection, directory, setting_data) end

---Makes a marker: a reference point without an export. The sources are locked together for a moment.
---@param collection cairn.collection
---@param directory string an export directory, which lists the point
---@param setting_data? table tracker (of disks that name none: `"clone"`, `"bitmap"`), machines (as above), Name
---@return integer # 4096 started, or as above
---@return cairn.job? # its report is the point
---@return string? # message
function engine:CreateReferencePoint(collection, directory, setting_data) end

---Removes a point or marker, its bitmaps and its clones.
---@param directory string
---@param point string|table an id (4 or more characters), or a point as cairn.points gives it, whose CollectionId must be right
---@param setting_data? table dependants: take along what is based on it, the newest first; Name
---@return integer # 4096 started; 5 others are based on it; 4 no such point
---@return cairn.job? # its report lists `destroyed`
---@return string? # message
function engine:DestroyReferencePoint(directory, point, setting_data) end

---Removes the clones and bitmaps kept for a point. A marker stays a marker, an export an export.
---@param directory string
---@param point string|table
---@return integer # 4096 started, or as above
---@return cairn.job?
---@return string? # message
function engine:RemoveAssociatedData(directory, point) end

---Looks for the clones and bitmaps themselves.
---@param directory string
---@param point string|table a whole id, or a point
---@return integer # 0, or as above
---@return boolean? # whether something is kept
---@return table[]|string|nil # what: tracker, name, VirtualMachineId, disk, exists (or error); else the message
function engine:HasAssociatedData(directory, point) end

---Does what is due: one turn.
---@param seconds? number wait at most so long for something to do
---@return boolean # whether there may be more to do at once
function engine:step(seconds) end

---Drives the engine until every job has ended or is held.
---@return boolean # true
function engine:run() end

---@return integer # readable when step has something to do
function engine:pollfd() end

---@return string # "r"
function engine:events() end

---@return number? # seconds until step has something to do; nil for never
function engine:timeout() end

---Takes the engine off its luv loop. Where the loop is not running it is turned once, without waiting: a luv handle whose closing has not been completed crashes the end of the Lua state.
function engine:detach() end

---Ends the jobs and closes the engine; closed in any case. May be called again.
---@param options? table mode (`"suspend"`, `"terminate"`, `"kill"`; default: terminate in memory, else suspend), timeout (10)
---@return boolean? # true
---@return string? # message, when refused
---@return string? # `timeout`, when jobs had to be killed
function engine:close(options) end

---Waits until everything that happened is in the store. Only submit, submit_all, update and job:set do so by themselves; requests and `job.Priority = 3` do not. Events come when what they tell is in the store.
---@return boolean? # true
---@return string? # message, when refused
---@return string? # `store_failed`: a commit failed; it is tried again
function engine:flush() end

---Copies the store into a new file while the engine works; what is committed meanwhile is in it. It is whole when it has its name.
---@param path string a file that does not exist
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:backup(path) end

---Moves a virtual clock. Waits that drive an engine with a virtual clock move it by themselves when nothing else can happen.
---@param seconds number
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:advance(seconds) end

---The engine's time.
---@return cairn.datetime
function engine:now() end

---What has become of runs. Each attempt that has ended: InstanceID, Name, time (of its end), due (nil: a client wanted it), StartTime, ElapsedTime, run_number, attempt, JobState (how it ended), ErrorCode, ErrorDescription, warnings (a list of texts, of some KiB at most, or nil), lost_warnings (how many it had besides), bytes_done, ReferencePointGroupId (of the point that it made or merged), policy_version (of the policy's file when the attempt began). Due times without a run: InstanceID, Name, time, due, due_last, skipped (how many), reason (`"missed"`, `"running"`, `"held"`, `"ended"`, `"queued"`: longer than MaxTimeOnQueue). Times are CIM datetimes. The latest history_limit of cairn.open (10000) are kept, with a store in it.
---@param id? string|cairn.job of this job, which may be gone; of all when left out
---@param options? table max (at most so many) or last (the newest so many), and after (only later ones than where an earlier call ended, which it gave as next)
---@return table[]? # oldest first
---@return integer|string? # next: what after goes on with, nil: there is nothing more; or why not
---@return string? # code, when refused: see cairn.errors
function engine:history(id, options) end

---What the engine does, for a monitoring system: jobs by state and phase, queues, runs by result, times skipped, bytes exported, the store; for each job the last success and failure and when it is due. What is counted is counted since the engine was opened. At most 1000 jobs, those of policies first, have series of their own; jobs of one Name, policy and policy_key share one.
---@param format? string `"openmetrics"` (the default) or `"prometheus"`, the older text format
---@return string
function engine:metrics(format) end

---Writes them in the older format to a file that is always whole, for node_exporter's textfile collector (a name that ends in .prom).
---@param path string the file
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function engine:write_metrics(path) end

---@return table[] # Name, QueueStatus (`"Active"`, `"Busy"`: no place is free, `"Degraded"`: the store fails, `"Stopped"`: the engine is closing), concurrency, DefaultJobPriority, MaxJobsOnQueue, MaxTimeOnQueue, ageing (seconds), running, queued, unfinished
function engine:queues() end

---The last 200 decisions of policies' functions in this life of the engine, oldest first.
---@return table[] # policy, key, name (of the function), version (of the policy), arguments, answer, error, time (Unix seconds)
function engine:decisions() end

---The events of a store, without a gap and in order, over all its lives: `sequence` counts them. PercentComplete is not among them. The latest 100000 are kept, and some more; `out_of_range` when those after the cursor are gone. Waits for the commit of what has happened, a moment in which nothing else does.
---@param cursor? integer what the last call gave; 0 or nothing: from the oldest event that is kept
---@param max? integer at most so many (256)
---@return table[]? # events, as engine:on gives them; empty when there are none yet
---@return integer|string # the cursor for the next call; else the message
---@return string? # code, when refused: see cairn.errors
function engine:changes(cursor, max) end

---@class cairn.job
local job = {}

---@param name string
---@return any # the number behind a label; a timestamp in Unix microseconds, an interval in microseconds (math.maxinteger for never); what has no number as it is
function job:number(name) end

---Sets all or nothing.
---@param changes table cairn.null unsets
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:set(changes) end

---@return fun(): string, any # for name, value in job:properties() do
function job:properties() end

---@param state string|integer `"Start"`, `"Suspend"`, `"Terminate"`, `"Kill"`, `"Service"`
---@param timeout number|string|cairn.datetime|nil TimeoutPeriod; above 0 it is waited for
---@return integer # 0 done, 4096 started, 3 not within the TimeoutPeriod (the request stands), 4097 not in this state, ...
---@return nil
---@return string? # message
function job:RequestStateChange(state, timeout) end

---@param delete_on_kill? boolean
---@return integer # 0 done
---@return nil
---@return string? # message
function job:KillJob(delete_on_kill) end

---@return integer # 0
---@return table? # a CIM_Error, or nil
function job:GetError() end

---@return integer # 0
---@return table[]? # CIM_Errors, root cause first
function job:GetErrorEx() end

---What the run that is on, or the last one, has warned of until now, the first thousand.
---@return string[]? # oldest first
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:warnings() end

---Removes a job that has ended.
---@return integer # 0, or a CIM status code
---@return string? # message
function job:DeleteInstance() end

---Answers the question of a job in Query Pending.
---@param text string
---@return integer # 0 done
---@return nil
---@return string? # message
function job:ResumeWithInput(text) end

---Continues a suspended run, or only releases a hold.
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:resume() end

---Waits until the job has ended. Inside a task the task waits (and drives the job's engine, where that is another one that no loop drives); outside, the engine or its luv loop is driven. In a handler, on a foreign coroutine or under a running loop it raises.
---@param timeout? number
---@return string? # the final JobState
---@return string? # message
---@return string? # `timeout`, `not_found`, `closed`
function job:wait(timeout) end

---@return table? # what a job of a kind other than run reports; nil before it has ended
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:report() end

---@return table? # { question =, choices = } while the job is in Query Pending
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:query() end

---@param numbers? boolean numbers instead of labels
---@return string? # the whole job as JSON
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:json(numbers) end

---Prints what a name of the module is; without one, all names. The text is that of cairn.help.
---@param name? any a name with or without its prefix (`"submit"`, `"job:wait"`, `"JobState"`), or the thing itself (`engine.submit`, `engine`)
function help(name) end

---@param seconds number
function job:sleep(seconds) end

---@param percent number 0 to 100; never moves back, 100 is shown when the job has completed
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:progress(percent) end

---The job will end as Completed With Warnings.
---@param message string
---@return boolean? # true
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:warn(message) end

---Waits in Query Pending for job:ResumeWithInput.
---@param options table question, choices (a list of strings; free text when left out)
---@return string? # the answer
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:ask(options) end

---Runs a program and waits for it. No shell is involved.
---@param options table `{ "program", "argument", ..., input =, env =, cwd = }`; env is added to the environment
---@return table? # code or signal, stdout, stderr (at most the last MiB of each)
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:spawn(options) end

---@param other cairn.job
---@param timeout? number
---@return string? # the other's final JobState
---@return string? # message, when refused
---@return string? # code, when refused: see cairn.errors
function job:wait_for(other, timeout) end

return cairn
