-- The public names of the module, once: the source of docs/lua-api.md, of the
-- editor's types (bindings/cairn.meta.lua) and of cairn.help().
--
-- A section has a title, an opening text and entries. An entry: name (with the
-- dot or colon as it is called), params { name, type, text }, returns
-- { type, text }, text. Types are LuaLS's; "?" means it may be left out.

local api = {}

local failure = { "string?", "message, when refused" }
local code = { "string?", "code, when refused: see cairn.errors" }

api.sections = {
  {
    title = "The module",
    text = [[
`local cairn = require "cairn"` sets no globals and starts nothing until
`cairn.open`. Names of the published class are as published (PascalCase);
everything else is snake_case. Durations are seconds. Wrong use (a wrong type
of argument, an unknown option) raises; what the world refuses comes back as
`nil, message, code`.

Relative paths in what a file *declares* (`cairn.collection`, `cairn.policy`)
are relative to that file; in a *call* (`engine:submit`, `cairn.points`, ...)
they are relative to the working directory.]],
    entries = {
      { name = "cairn.open",
        params = { { "options", "cairn.open.options?",
          "store (the file that keeps the jobs, made when it is missing; "
          .. "`\":memory:\"`, the default, keeps none), codes (`\"dmtf\"` or `\"vendor\"`: whose return "
          .. "codes), log (function of a message; default: standard error), "
          .. "queues (`{ default = { concurrency = 2 } }`, see "
          .. "[job-model.md](job-model.md#queues)), notify (handlers by "
          .. "name, for jobs whose Notify is that name: a function of the "
          .. "notice, which may wait; `{ program, argument, ... }`, which gets "
          .. "it as JSON on standard input; `\"log\"`; `\"mailto:ADDRESS\"`, "
          .. "through the system's sendmail. A Notify that begins with mailto: "
          .. "needs no handler, any other without one is logged), recovery "
          .. "(functions by name, for jobs whose RecoveryAction is Other and "
          .. "whose OtherRecoveryAction is that name: called with job, "
          .. "{ ErrorCode, message } and the attempt after a run has failed; "
          .. "what it returns is done: `\"Re-run Job\"` and a delay, "
          .. "`\"Run Recovery Job\"`, `\"Do Not Continue\"` or nothing), owner "
          .. "(CIM_Job.Owner), clock (`\"virtual\"`: time stands still and is "
          .. "moved by engine:advance), start (a virtual clock's first "
          .. "time), history_limit (how many records of runs are kept), "
          .. "simulate (a function of a job: the body of every run, of whatever "
          .. "kind; nothing is exported, but queues, export directories, "
          .. "calendars and recovery are as ever. Only with a virtual clock and "
          .. "without a store)" } },
        returns = { { "cairn.engine?", "the engine" }, failure, code },
        text = "Opens an engine. Use `local engine <close> = "
          .. "assert(cairn.open())`. With a store the jobs of earlier lives "
          .. "are there again: what was running is begun again, as the same "
          .. "run; what a client had held or asked to end stays so; times that "
          .. "have passed are made up for as catch_up says. "
          .. "`store_locked`: another engine has it, whose process the message "
          .. "names; `store_failed`: it is no store, damaged, or cannot be "
          .. "written." },
      { name = "cairn.kind", params = { { "name", "string", "" },
          { "body", "fun(job: cairn.job)", "" } }, returns = {},
        text = "Names the body of run jobs, for `run = name`. A store keeps "
          .. "the name, not the code: such a job waits until a program that "
          .. "has the engine open has given the name a body." },
      { name = "cairn.collection",
        params = { { "collection", "table",
          "`CollectionId`, `ElementName`, `source_directories`, `machines`: "
          .. "a list of `VirtualMachineId`, `ElementName`, `disks` (a list "
          .. "of `id`, `path`, `format` (`\"raw\"` or `\"qcow2\"`), "
          .. "`assume_quiescent`), and the lists of files `config`, "
          .. "`runtime`, `guest_state`" } },
        returns = { { "cairn.collection", "a checked copy with absolute "
          .. "paths" } },
        text = "Checks the description of a collection of machines. Raises an "
          .. "error object that names the place." },
      { name = "cairn.collection_from",
        params = { { "collection", "table", "what a file returned" },
          { "file", "string", "the file's name" } },
        returns = { { "cairn.collection?", "the collection" }, failure, code },
        text = "What cairn.collection would have made of the table in that "
          .. "file; a collection comes out unchanged." },
      { name = "cairn.policy",
        params = { { "policy", "table", "`jobs`: a table of what "
          .. "engine:submit takes, by key; `name` (that of the file when left "
          .. "out); `handlers`: a table of what `notify` of cairn.open takes, "
          .. "for its jobs; the functions `base`, `select`, `on_failure`, "
          .. "`retain`, `throttle`, `notify`, which a job may have as its own; "
          .. "`tests`: a table of functions by name" } },
        returns = { { "cairn.policy", "a checked copy with absolute paths" } },
        text = "What a policy file returns. Raises an error object that names "
          .. "the place. The functions work when the file is loaded "
          .. "(cairn.policy_load, `cairn run`, `cairn serve`): they run in an "
          .. "isolated state, see docs/policies.md." },
      { name = "cairn.policy_load",
        params = { { "path", "string", "the file" },
          { "settings", "table<string, string>?", "what `local set = ...` "
            .. "gets in the file, besides `set.file`" } },
        returns = { { "cairn.policy?", "the policy: `jobs`, `name`, `file`, "
          .. "`version` (XXH3 of the text)" },
          failure, code },
        text = "Loads a policy file. Codes: `script_syntax`, `script_error`, "
          .. "`unknown_key`, `wrong_type`, ..., the message with file and "
          .. "line." },
      { name = "cairn.points",
        params = { { "directory", "string", "an export directory" } },
        returns = { { "table[]?", "the reference points in it, by sequence; "
          .. "a damaged one has `error`" }, failure, code },
        text = "Lists the reference points in a directory. `kind` is "
          .. "`\"export\"`, or `\"marker\"` for one without an export; "
          .. "`has_associated_data` says whether a clone or bitmap is kept." },
      { name = "cairn.keep",
        params = { { "points", "table[]", "of one collection, oldest first, as "
          .. "cairn.points gives them: time (a CIM datetime) and "
          .. "ReferencePointGroupId (for `ids`) are looked at" },
          { "rules", "table", "what `keep` of a prune is" } },
        returns = { { "table[]?", "for each point the names of the rules that "
          .. "keep it; an empty list: it could go" }, failure, code },
        text = "Applies the rules of a prune to points that need not exist. A "
          .. "prune also keeps what cannot be merged." },
      { name = "cairn.doctor",
        params = { { "directory", "string", "an export directory" },
          { "options", "table?", "collection (its next export is planned; "
            .. "default: that of the newest point), fix (removes what is "
            .. "nobody's first), also (a list of export directories whose "
            .. "points are known too)" } },
        returns = { { "table?", "directory, findings: a list of what, "
          .. "subject, text, advice, is_fixable; fixed: a list of texts; "
          .. "chains: CollectionId, VirtualMachineId, disk, "
          .. "ReferencePointGroupId, depth; next: a plan; next_error; "
          .. "is_busy, point_count, marker_count, free_bytes, total_bytes" },
          failure, code },
        text = "What may be wrong in an export directory, what to do about it, "
          .. "and what the next export will do and why. Reads no disk. `what` "
          .. "is one of damaged, index, missing_base, base_elsewhere, "
          .. "misnamed, duplicate, suspect, wide_modes, stale_work, "
          .. "half_removed, unfinished, left_clone, left_bitmap, "
          .. "bitmap_in_use, lost_data, next_export, low_space, unreadable, "
          .. "not_fixed." },
      { name = "cairn.verify",
        params = { { "options", "table", "directory, point (all points when "
          .. "left out), depth (`\"set\"`, `\"chain\"`, `\"content\"`, the "
          .. "default), source (a collection to compare with)" } },
        returns = { { "table?", "the report" }, failure, code },
        text = "Verifies exports on a private engine and waits for it. A check "
          .. "that failed gives the report too, as a fourth result." },
      { name = "cairn.restore",
        params = { { "options", "table", "directory, point, to, machine, "
          .. "disk, format (`\"raw\"`, the default, or `\"qcow2\"`), "
          .. "overwrite" } },
        returns = { { "table?", "the report" }, failure, code },
        text = "Restores a point on a private engine and waits for it. A restore "
          .. "that failed gives the report (what was written, what not) as a "
          .. "fourth result." },
      { name = "cairn.stream",
        params = { { "options", "table", "directory, point, machine and disk "
          .. "(needed when there are several), base (a point's id, or "
          .. "`\"none\"`; default: what the disk is based on), output (a path, "
          .. "or the number of a descriptor, which stays open), dry_run" } },
        returns = { { "table?", "the report; with dry_run the plan" }, failure,
          code },
        text = "Writes a disk of a point as a stream `rbd diff v1` on a private "
          .. "engine and waits for it. A stream that failed has no end record." },
      { name = "cairn.import",
        params = { { "options", "table", "input (a path, or the number of a "
          .. "descriptor, which stays open), directory, collection, machine "
          .. "and disk (needed when there are several), base (a point's id, or "
          .. "`\"none\"`; default: what the stream starts from), format "
          .. "(`\"qcow2\"`, the default, or `\"raw\"`: of a full), digest, "
          .. "dry_run" } },
        returns = { { "table?", "the report; with dry_run the plan" }, failure,
          code },
        text = "Takes a stream `rbd diff v1` in as a new reference point with "
          .. "one disk, on a private engine, and waits for it." },
      { name = "cairn.merge",
        params = { { "options", "table", "directory, point, into (`\"full\"`, "
          .. "the default, or the id of an older point of its chain), through "
          .. "(ids of the points between, oldest first: checked), to (another "
          .. "directory), dry_run" } },
        returns = { { "table?", "the report; with dry_run the plan" }, failure,
          code },
        text = "Merges the chain of a point into a full, or into one increment "
          .. "on `into`, and waits for it. The point keeps its id and its "
          .. "content, and without `to` its place: points that are based on it "
          .. "stay valid." },
      { name = "cairn.prune",
        params = { { "options", "table", "directory, keep (last, daily, "
          .. "weekly, monthly, yearly = numbers; within = seconds or "
          .. "`\"30d\"`; ids = list), collection (a CollectionId, or a "
          .. "collection; all when left out), dry_run" } },
        returns = { { "table?", "the report: kept, merged, removed, refused; "
          .. "with dry_run the plan" }, failure, code },
        text = "Removes the points that no rule of `keep` keeps, merging those "
          .. "that are based on them first, and waits for it. The newest point "
          .. "of a collection is always kept. A failure gives the report too." },
      { name = "cairn.attach",
        params = { { "engine", "cairn.engine", "" },
          { "uv", "table?", "luv; required when left out" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Lets a luv loop drive the engine, through one poll handle. "
          .. "The loop stays alive while jobs are unfinished (held ones too), "
          .. "tasks run or somebody waits." },
      { name = "cairn.settings",
        params = { { "given", "table?", "what the file of a policy gets: "
          .. "`cairn.settings(..., { ... })`" },
          { "defaults", "table", "by name, at most 64: text, a number, true or "
            .. "false, or `{ default, least, most }` of a number; a whole "
            .. "number as the default admits whole numbers only" } },
        returns = { { "table", "the value of each: what is given, or the "
          .. "default, of the default's type; and file, the policy's path" } },
        text = "Reads the settings of a policy (`--set NAME=VALUE`, "
          .. "cairn.policy_load); raises for one that has no default here, or "
          .. "a value of another type or outside its range, with what would "
          .. "be valid." },
      { name = "cairn.spawn",
        params = { { "fn", "function", "the body" },
          { "...", "any", "its arguments" } },
        returns = { { "cairn.task", "with task:wait([timeout]) (what the "
          .. "function returned, or nil, message, code), task:kill(), "
          .. "task.status" } },
        text = "Runs a function as a task, a coroutine in which everything "
          .. "may wait, on the engine of the running task, else on the one "
          .. "opened last." },
      { name = "cairn.sleep", params = { { "seconds", "number", "" } },
        returns = {}, text = "Waits, by the engine's clock." },
      { name = "cairn.datetime",
        params = { { "value", "string|number|cairn.datetime",
          "25 characters, or Unix seconds" } },
        returns = { { "cairn.datetime", "immutable; tostring gives the 25 "
          .. "characters; + - * / and comparison by the rules of CIM; fields "
          .. "microseconds, seconds, utc_offset, kind, precision" } },
        text = "A CIM datetime." },
      { name = "cairn.interval",
        params = { { "value", "string|number|cairn.datetime",
          "`\"2h\"`, `\"1d12h\"`, `\"90s\"`, seconds, or 25 characters" } },
        returns = { { "cairn.datetime", "an interval" } },
        text = "A CIM interval." },
      { name = "cairn.json_encode", params = { { "value", "any", "" } },
        returns = { { "string?", "JSON, keys sorted" }, failure, code },
        text = "Refuses what has no JSON form, naming the place." },
      { name = "cairn.json_decode", params = { { "text", "string", "" } },
        returns = { { "any", "the value; null is nil, in a list cairn.null" },
          failure, code }, text = "" },
      { name = "cairn.is_job", params = { { "value", "any", "" } },
        returns = { { "boolean", "" } }, text = "" },
      { name = "cairn.is_engine", params = { { "value", "any", "" } },
        returns = { { "boolean", "" } }, text = "" },
      { name = "cairn.value_map", params = { { "name", "string",
        "of a method's or CIM_Error's map: `\"RequestedState\"`, "
        .. "`\"ProbableCause\"`, ..." } },
        returns = { { "table[]?", "list of { value, label }" } }, text = "" },
      { name = "cairn.help", params = { { "name", "string?", "" } },
        returns = { { "string", "" } },
        text = "What this page says about a name." },
      { name = "cairn.schedule",
        params = { { "properties", "table", "as of a job: `RunMonth`, "
          .. "`RunDay`, `RunDayOfWeek`, `RunStartInterval`, `LocalOrUtcTime`, "
          .. "`UntilTime`, `JobRunTimes` (default here: 0, no limit), "
          .. "`zone` (an IANA name; default: the host's zone), `gap` (of what "
          .. "falls into a gap of the local clock: `\"first\"`, the default, "
          .. "is at its end, `\"shift\"` later by its length, `\"skip\"` "
          .. "not at all), `overlap` (of what the clock shows twice: "
          .. "`\"first\"`, the default, `\"last\"` or `\"both\"`)" } },
        returns = { { "cairn.schedule", "the schedule; its `zone` is the "
          .. "zone's name, its `warning` a text where it may mean something "
          .. "else than it says" } },
        text = "The calendar of a job, without a job. Raises an error object "
          .. "for what is no schedule or never comes." },
    },
    fields = {
      { "version", "string", "of the module" },
      { "null", "lightuserdata", "JSON's null, and in job:set a property to "
        .. "be unset" },
      { "errors", "table", "the table of errors: list of rows, and rows by "
        .. "code: code, ErrorCode, MessageID, exit_code, summary, "
        .. "recommended_action, ErrorType, ProbableCause, CIMStatusCode" },
      { "properties", "table", "the properties of a job in order of "
        .. "declaration, and by name: name, type, is_writable, values, min, "
        .. "max, max_length, default, description, ..." },
    },
  },
  {
    title = "Schedules", class = "cairn.schedule",
    text = [[
When a job with a calendar runs. A run is due at the first instant at which the
clock of its zone shows its date and time or later, counting only the first
time it gets there. A month that lacks the day is skipped.]],
    entries = {
      { name = "schedule:next",
        params = { { "n", "integer?", "how many; default 1" },
          { "after", "any?", "a CIM datetime or Unix seconds; default now" } },
        returns = { { "table[]", "in order, strictly after `after`: unix_us; "
          .. "local_time (a CIM datetime with the zone's offset then); "
          .. "nominal (what the schedule says, as the clock would show it: "
          .. "`\"2025-03-30 02:30:00\"`); kind: `\"normal\"`, `\"gap\"` (the "
          .. "clock never shows it) or `\"overlap\"` (it shows it twice); "
          .. "nominals: a list, when a gap swallowed several" } },
        text = "The next runs; fewer than n where UntilTime or JobRunTimes "
          .. "ends them." },
      { name = "schedule:local_time",
        params = { { "unix_us", "integer", "Unix microseconds" } },
        returns = { { "string", "a CIM datetime with the zone's offset then" }
          },
        text = "What the schedule's clock shows at an instant." },
    },
  },
  {
    title = "Engines", class = "cairn.engine",
    text = [[
An engine owns jobs. It is driven by whoever calls `step`, `run` or a wait, by
a luv loop after `cairn.attach`, or by any loop that watches `pollfd` for
reading and then calls `step`. Without any of these nothing moves.]],
    entries = {
      { name = "engine:submit",
        params = { { "spec", "table", "writable properties, Name, Caption, "
          .. "Description, ElementName, RecoveryAction, OtherRecoveryAction, "
          .. "RecoveryJob, queue, zone, gap, overlap, catch_up, once, held, "
          .. "volatile, wait, and one of export, verify, restore, stream, "
          .. "import, merge, prune, run" } },
        returns = { { "cairn.job?", "the job" }, failure, code },
        text = "Creates a job. `run = function(job) ... end` is a body in "
          .. "Lua, run as a task; `run = name` one of cairn.kind. With a store "
          .. "it returns when the job is in it; `wait = false`: at once, and a "
          .. "Submitted event says when. While waiting the engine is driven. "
          .. "`volatile = true`: not kept, which a function as body outside of "
          .. "a policy needs. `store_failed` after waiting: whether the job is "
          .. "kept is known when the store works again." },
      { name = "engine:submit_all", params = { { "specs", "table[]", "" } },
        returns = { { "cairn.job[]?", "in the same order" }, failure, code },
        text = "All or none, in one commit." },
      { name = "engine:update", params = { { "job", "cairn.job", "" },
        { "spec", "table", "what engine:submit takes" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Gives a job that has not ended another specification. Its id, "
          .. "its history and what a client holds stay; a run that is on goes "
          .. "on as it began; with the same calendar no due time is lost." },
      { name = "engine:disown", params = { { "job", "cairn.job", "" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Holds a job whose specification has left its policy, until "
          .. "engine:update gives it one again, or a client starts or resumes "
          .. "it. What a client holds stays a client's." },
      { name = "engine:plan", params = { { "spec", "table", "" } },
        returns = { { "table?", "what the job would do" }, failure, code },
        text = "Checks and plans without running; writes nothing. For an "
          .. "export every disk is read, so that its size is exact: meanwhile "
          .. "the engine does nothing else, and the images are locked as for "
          .. "the export itself." },
      { name = "engine:job", params = { { "id", "string", "InstanceID, GUID, "
        .. "or at least 4 characters of one" } },
        returns = { { "cairn.job?", "" }, failure, code }, text = "" },
      { name = "engine:jobs", params = { { "filter", "table?",
        "properties and the values they must have, labels or numbers" } },
        returns = { { "cairn.job[]", "in order of submission" } },
        text = "" },
      { name = "engine:why", params = { { "id", "string|cairn.job", "" } },
        returns = { { "string?", "why the job is as it is, or is not running: "
          .. "due at, held, the queue, attempts, missing code, a store that "
          .. "fails; why its last run was late or was not" },
          { "table|string", "the same as data; message when refused" },
          { "string?", "code, when refused" } }, text = "" },
      { name = "engine:on", params = {
        { "name", "string", "`\"Submitted\"`, `\"JobState\"`, "
          .. "`\"PercentComplete\"`, `\"Changed\"`, `\"Removed\"`, "
          .. "`\"Warning\"`, `\"RequestTimeout\"`, `\"Skipped\"`, "
          .. "`\"RunEnded\"`, `\"Store\"`" },
        { "fn", "fun(event: table)", "gets name, job, InstanceID, run_number, "
          .. "sequence, time (Unix microseconds) and JobState, "
          .. "PreviousJobState or PercentComplete; a JobState that is Starting "
          .. "has due, when the calendar made this run due, at each attempt; "
          .. "RunEnded has attempt, is_retried (it will be tried again), due, "
          .. "JobState (how it ended) and ErrorCode; Skipped has due, due_last and count (the first and "
          .. "last of so many times that have no run) and reason: "
          .. "`\"missed\"`, `\"running\"`, `\"held\"`, `\"ended\"` or "
          .. "`\"queued\"`; Store has "
          .. "code (0: it works again) and message" } },
        returns = { { "fun()", "ends the subscription" } },
        text = "Handlers are called in turns. They cannot wait; an error in "
          .. "one is logged and stops nothing." },
      { name = "engine:ExportReferencePoint", params = {
        { "collection", "cairn.collection", "or a point that is a marker, as "
          .. "cairn.points gives it: setting_data then has base, format, "
          .. "digest, depth_limit and Name only" },
        { "directory", "string", "" },
        { "setting_data", "table?", "base, format, digest, on_disk_error, "
          .. "depth_limit, tracker, resume, Name, machines: a list of "
          .. "VirtualMachineId and disks (ids); a machine without "
          .. "disks gives its configuration only" } },
        returns = { { "integer", "4096 started, 1 not supported, 2 failed, 3 "
          .. "time-out, 4 invalid parameter, 5 invalid state, 6 invalid type" },
          { "cairn.job?", "" }, { "string?", "message" } },
        text = "The published service's method. A marker is exported from the "
          .. "clones that were kept, or while bitmaps prove that nothing has "
          .. "changed; else the code is 5, and the message names the first disk "
          .. "or file." },
      { name = "engine:CreateReferencePoint", params = {
        { "collection", "cairn.collection", "" },
        { "directory", "string", "an export directory, which lists the point" },
        { "setting_data", "table?", "tracker (of disks that name none: "
          .. "`\"clone\"`, `\"bitmap\"`), machines (as above), Name" } },
        returns = { { "integer", "4096 started, or as above" },
          { "cairn.job?", "its report is the point" },
          { "string?", "message" } },
        text = "Makes a marker: a reference point without an export. The "
          .. "sources are locked together for a moment." },
      { name = "engine:DestroyReferencePoint", params = {
        { "directory", "string", "" },
        { "point", "string|table", "an id (4 or more characters), or a point "
          .. "as cairn.points gives it, whose CollectionId must be right" },
        { "setting_data", "table?", "dependants: take along what is based on "
          .. "it, the newest first; Name" } },
        returns = { { "integer", "4096 started; 5 others are based on it; 4 no "
          .. "such point" }, { "cairn.job?", "its report lists `destroyed`" },
          { "string?", "message" } },
        text = "Removes a point or marker, its bitmaps and its clones." },
      { name = "engine:RemoveAssociatedData", params = {
        { "directory", "string", "" }, { "point", "string|table", "" } },
        returns = { { "integer", "4096 started, or as above" },
          { "cairn.job?", "" }, { "string?", "message" } },
        text = "Removes the clones and bitmaps kept for a point. A marker "
          .. "stays a marker, an export an export." },
      { name = "engine:HasAssociatedData", params = {
        { "directory", "string", "" },
        { "point", "string|table", "a whole id, or a point" } },
        returns = { { "integer", "0, or as above" },
          { "boolean?", "whether something is kept" },
          { "table[]|string|nil", "what: tracker, name, VirtualMachineId, "
            .. "disk, exists (or error); else the message" } },
        text = "Looks for the clones and bitmaps themselves." },
      { name = "engine:step", params = { { "seconds", "number?",
        "wait at most so long for something to do" } },
        returns = { { "boolean", "whether there may be more to do at once" } },
        text = "Does what is due: one turn." },
      { name = "engine:run", params = {},
        returns = { { "boolean", "true" } },
        text = "Drives the engine until every job has ended or is held." },
      { name = "engine:pollfd", params = {},
        returns = { { "integer", "readable when step has something to do" } },
        text = "" },
      { name = "engine:events", params = {},
        returns = { { "string", "\"r\"" } }, text = "" },
      { name = "engine:timeout", params = {},
        returns = { { "number?", "seconds until step has something to do; "
          .. "nil for never" } }, text = "" },
      { name = "engine:detach", params = {}, returns = {},
        text = "Takes the engine off its luv loop. Where the loop is not "
          .. "running it is turned once, without waiting: a luv handle whose "
          .. "closing has not been completed crashes the end of the Lua state." },
      { name = "engine:close", params = { { "options", "table?",
        "mode (`\"suspend\"`, `\"terminate\"`, `\"kill\"`; default: "
        .. "terminate in memory, else suspend), timeout (10)" } },
        returns = { { "boolean?", "true" }, failure,
          { "string?", "`timeout`, when jobs had to be killed" } },
        text = "Ends the jobs and closes the engine; closed in any case. May "
          .. "be called again." },
      { name = "engine:flush", params = {},
        returns = { { "boolean?", "true" }, failure,
          { "string?", "`store_failed`: a commit failed; it is tried again" } },
        text = "Waits until everything that happened is in the store. Only "
          .. "submit, submit_all, update and job:set do so by themselves; "
          .. "requests and `job.Priority = 3` do not. Events come when what "
          .. "they tell is in the store." },
      { name = "engine:backup", params = { { "path", "string",
        "a file that does not exist" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Copies the store into a new file while the engine works; what "
          .. "is committed meanwhile is in it. It is whole when it has its "
          .. "name." },
      { name = "engine:advance", params = { { "seconds", "number", "" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Moves a virtual clock. Waits that drive an engine with a "
          .. "virtual clock move it by themselves when nothing else can "
          .. "happen." },
      { name = "engine:now", params = {},
        returns = { { "cairn.datetime", "" } }, text = "The engine's time." },
      { name = "engine:history", params = { { "id", "string|cairn.job?",
        "of this job, which may be gone; of all when left out" },
        { "options", "table?", "max (at most so many) or last (the newest so "
          .. "many), and after (only later ones than where an earlier call "
          .. "ended, which it gave as next)" } },
        returns = { { "table[]?", "oldest first" }, { "integer|string?",
          "next: what after goes on with, nil: there is nothing more; or why "
          .. "not" }, code },
        text = "What has become of runs. Each attempt that has ended: "
          .. "InstanceID, Name, time (of its end), due (nil: a client wanted "
          .. "it), StartTime, ElapsedTime, run_number, attempt, JobState (how "
          .. "it ended), ErrorCode, ErrorDescription, warnings (a list of "
          .. "texts, of some KiB at most, or nil), lost_warnings (how many it "
          .. "had besides), bytes_done, ReferencePointGroupId (of the point "
          .. "that it made or merged), "
          .. "policy_version (of the policy's file when the attempt began). "
          .. "Due times without a run: InstanceID, "
          .. "Name, time, due, due_last, skipped (how many), reason "
          .. "(`\"missed\"`, `\"running\"`, `\"held\"`, `\"ended\"`, "
          .. "`\"queued\"`: longer than MaxTimeOnQueue). Times are CIM "
          .. "datetimes. "
          .. "The latest history_limit of cairn.open (10000) are kept, with "
          .. "a store in it." },
      { name = "engine:metrics",
        params = { { "format", "string?", "`\"openmetrics\"` (the default) or "
          .. "`\"prometheus\"`, the older text format" } },
        returns = { { "string", "" } },
        text = "What the engine does, for a monitoring system: jobs by state and "
          .. "phase, queues, runs by result, times skipped, bytes exported, the "
          .. "store; for each job the last success and failure and when it is "
          .. "due. What is counted is counted since the engine was opened. At "
          .. "most 1000 jobs, those of policies first, have series of their own; "
          .. "jobs of one Name, policy and policy_key share one." },
      { name = "engine:write_metrics",
        params = { { "path", "string", "the file" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Writes them in the older format to a file that is always whole, "
          .. "for node_exporter's textfile collector (a name that ends in "
          .. ".prom)." },
      { name = "engine:queues", params = {},
        returns = { { "table[]", "Name, QueueStatus (`\"Active\"`, `\"Busy\"`: "
          .. "no place is free, `\"Degraded\"`: the store fails, "
          .. "`\"Stopped\"`: the engine is closing), concurrency, "
          .. "DefaultJobPriority, MaxJobsOnQueue, MaxTimeOnQueue, ageing "
          .. "(seconds), running, queued, unfinished" } }, text = "" },
      { name = "engine:decisions", params = {},
        returns = { { "table[]", "policy, key, name (of the function), version "
          .. "(of the policy), arguments, answer, error, time (Unix seconds)" } },
        text = "The last 200 decisions of policies' functions in this life of "
          .. "the engine, oldest first." },
      { name = "engine:changes", params = {
        { "cursor", "integer?", "what the last call gave; 0 or nothing: from "
          .. "the oldest event that is kept" },
        { "max", "integer?", "at most so many (256)" } },
        returns = { { "table[]?", "events, as engine:on gives them; empty when "
          .. "there are none yet" }, { "integer|string", "the cursor for the "
          .. "next call; else the message" }, code },
        text = "The events of a store, without a gap and in order, over all "
          .. "its lives: `sequence` counts them. PercentComplete is not among "
          .. "them. The latest 100000 are kept, and some more; "
          .. "`out_of_range` when those after the cursor are gone. Waits for "
          .. "the commit of what has happened, a moment in which nothing else "
          .. "does." },
    },
  },
  {
    title = "Jobs", class = "cairn.job",
    text = [[
`job.JobState` reads a property: labels as text, datetimes as their 25
characters, lists as lists, null as nil; `job.Priority = 3` sets one and raises
when it is refused. An unknown name raises with the nearest one. The properties
are described in [job-model.md](job-model.md). Methods of the published class
return their code first.]],
    entries = {
      { name = "job:number", params = { { "name", "string", "" } },
        returns = { { "any", "the number behind a label; a timestamp in Unix "
          .. "microseconds, an interval in microseconds (math.maxinteger for "
          .. "never); what has no number as it is" } }, text = "" },
      { name = "job:set", params = { { "changes", "table",
        "cairn.null unsets" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "Sets all or nothing." },
      { name = "job:properties", params = {},
        returns = { { "fun(): string, any", "for name, value in "
          .. "job:properties() do" } }, text = "" },
      { name = "job:RequestStateChange", params = {
        { "state", "string|integer", "`\"Start\"`, `\"Suspend\"`, "
          .. "`\"Terminate\"`, `\"Kill\"`, `\"Service\"`" },
        { "timeout", "number|string|cairn.datetime|nil",
          "TimeoutPeriod; above 0 it is waited for" } },
        returns = { { "integer", "0 done, 4096 started, 3 not within the "
          .. "TimeoutPeriod (the request stands), 4097 not in this state, "
          .. "..." }, { "nil", "" }, { "string?", "message" } }, text = "" },
      { name = "job:KillJob", params = { { "delete_on_kill", "boolean?", "" } },
        returns = { { "integer", "0 done" }, { "nil", "" },
          { "string?", "message" } }, text = "" },
      { name = "job:GetError", params = {},
        returns = { { "integer", "0" }, { "table?", "a CIM_Error, or nil" } },
        text = "" },
      { name = "job:GetErrorEx", params = {},
        returns = { { "integer", "0" },
          { "table[]?", "CIM_Errors, root cause first" } }, text = "" },
      { name = "job:warnings", params = {},
        returns = { { "string[]?", "oldest first" }, failure, code },
        text = "What the run that is on, or the last one, has warned of until "
          .. "now, the first thousand." },
      { name = "job:DeleteInstance", params = {},
        returns = { { "integer", "0, or a CIM status code" },
          { "string?", "message" } },
        text = "Removes a job that has ended." },
      { name = "job:ResumeWithInput", params = { { "text", "string", "" } },
        returns = { { "integer", "0 done" }, { "nil", "" },
          { "string?", "message" } },
        text = "Answers the question of a job in Query Pending." },
      { name = "job:resume", params = {},
        returns = { { "boolean?", "true" }, failure, code },
        text = "Continues a suspended run, or only releases a hold." },
      { name = "job:wait", params = { { "timeout", "number?", "" } },
        returns = { { "string?", "the final JobState" },
          { "string?", "message" }, { "string?", "`timeout`, `not_found`, "
            .. "`closed`" } },
        text = "Waits until the job has ended. Inside a task the task waits (and "
          .. "drives the job's engine, where that is another one that no loop "
          .. "drives); "
          .. "outside, the engine or its luv loop is driven. In a handler, on "
          .. "a foreign coroutine or under a running loop it raises." },
      { name = "job:report", params = {},
        returns = { { "table?", "what a job of a kind other than run reports; "
          .. "nil before it has ended" }, failure, code }, text = "" },
      { name = "job:query", params = {},
        returns = { { "table?", "{ question =, choices = } while the job is "
          .. "in Query Pending" }, failure, code }, text = "" },
      { name = "job:json", params = { { "numbers", "boolean?",
        "numbers instead of labels" } },
        returns = { { "string?", "the whole job as JSON" }, failure, code },
        text = "" },
    },
  },
  {
    title = "The console",
    text = [[
`cairn console` evaluates Lua as a session on an engine: its own, or over the
control socket the service's. Each chunk is a task (see `cairn.spawn`), so that
everything may wait; Ctrl-C ends the chunk, whatever it does, and nothing else.

A session has its globals for itself, with those of the program behind them:
`cairn`, `engine`, `print` (to this session, at most 64 KiB at a time), `help`,
and `_` and `it`, the first value of the last chunk that had one. What `load`,
`loadfile` and `dofile` run in it has the same globals. Values are shown up to
200 entries, 4 levels deep; over the socket for at most 2 seconds.]],
    entries = {
      { name = "help", params = { { "name", "any?", "a name with or without "
        .. "its prefix (`\"submit\"`, `\"job:wait\"`, `\"JobState\"`), or the "
        .. "thing itself (`engine.submit`, `engine`)" } },
        returns = {}, text = "Prints what a name of the module is; without one, "
          .. "all names. The text is that of cairn.help." },
    },
  },
  {
    title = "Inside run = function(job) ... end",
    text = [[
The body of a job is a task. It may take as long as it likes: after its slice
(2 ms) it gives way by itself, except in an inner coroutine or in a callback of
`table.sort` or `string.gsub`, where it must come back within a second or gets
an error ("not enough memory" inside an `xpcall`, whose message handler is not
called). It may give way between any two instructions, so what several bodies
share can change there. Nothing interrupts one long call into C, a finalizer
(`__gc`), a message handler of `xpcall` that does not return from the error of
*Terminate*, nor a body that removes its hook with `debug.sethook`, until it
waits.

*Suspend* stops it where it waits or at the end of its slice, and what it has
spawned. *Terminate* raises an error object with the code `terminated` at that
place, so that it can clean up; it may wait while it does, and is closed after
a second. *Kill* closes it at once, with a limit on its `__close` handlers, and
kills what it has spawned.

An error fails the job with `script_error` and the traceback;
`error { code = "disk_full", message = "..." }` with a code of `cairn.errors`
fails it with that code. Returning completes it.]],
    entries = {
      { name = "job:sleep", params = { { "seconds", "number", "" } },
        returns = {}, text = "" },
      { name = "job:progress", params = { { "percent", "number", "0 to 100; "
        .. "never moves back, 100 is shown when the job has completed" } },
        returns = { { "boolean?", "true" }, failure, code }, text = "" },
      { name = "job:warn", params = { { "message", "string", "" } },
        returns = { { "boolean?", "true" }, failure, code },
        text = "The job will end as Completed With Warnings." },
      { name = "job:ask", params = { { "options", "table",
        "question, choices (a list of strings; free text when left out)" } },
        returns = { { "string?", "the answer" }, failure, code },
        text = "Waits in Query Pending for job:ResumeWithInput." },
      { name = "job:spawn", params = { { "options", "table",
        "`{ \"program\", \"argument\", ..., input =, env =, cwd = }`; env "
        .. "is added to the environment" } },
        returns = { { "table?", "code or signal, stdout, stderr (at most the "
          .. "last MiB of each)" }, failure, code },
        text = "Runs a program and waits for it. No shell is involved." },
      { name = "job:wait_for", params = { { "other", "cairn.job", "" },
        { "timeout", "number?", "" } },
        returns = { { "string?", "the other's final JobState" }, failure,
          code }, text = "" },
    },
  },
}

function api.signature(entry)
  local names = {}
  for i, param in ipairs(entry.params) do
    local is_optional = param[2]:find("?$") or param[2]:find("|nil", 1, true)
    names[i] = is_optional and "[" .. param[1] .. "]" or param[1]
  end
  return ("%s(%s)"):format(entry.name, table.concat(names, ", "))
end

-- The signatures of "engine:...", "job:...", by what they are called on.
local function members(owner)
  local lines = {}
  for _, section in ipairs(api.sections) do
    for _, entry in ipairs(section.entries) do
      if entry.name:match "^(%w+)[.:]" == owner then
        lines[#lines + 1] = "  " .. api.signature(entry)
      end
    end
  end
  return lines
end

local function describe(entry)
  local lines = { api.signature(entry) }
  if entry.text ~= "" then lines[#lines + 1] = "  " .. entry.text end
  for _, param in ipairs(entry.params) do
    if param[3] ~= "" then
      lines[#lines + 1] = ("  %s: %s"):format(param[1], param[3])
    end
  end
  for i, result in ipairs(entry.returns) do
    if result[2] ~= "" then
      lines[#lines + 1] = ("  %s %s"):format(i == 1 and "returns" or "       ",
        result[2])
    end
  end
  return table.concat(lines, "\n")
end

-- help([name]): a function or method with or without its prefix, what has such
-- (cairn, engine, job, ...), or a property.
function api.help(name)
  local lines = {}
  if name == nil then
    for _, section in ipairs(api.sections) do
      lines[#lines + 1] = section.title
      for _, entry in ipairs(section.entries) do
        lines[#lines + 1] = "  " .. api.signature(entry)
      end
    end
    return table.concat(lines, "\n")
  end
  name = tostring(name)
  local list = members(name)
  if #list > 0 then
    lines[1] = name .. (name == "job" and ", besides its properties" or "")
    table.move(list, 1, #list, 2, lines)
  end
  local candidates = {}
  for _, section in ipairs(api.sections) do
    for _, entry in ipairs(section.entries) do
      local short = entry.name:match("[.:](.*)$") or entry.name
      candidates[#candidates + 1] = short
      if name == entry.name or name == short then
        lines[#lines + 1] = describe(entry)
      end
    end
    for _, field in ipairs(section.fields or {}) do
      if name == field[1] or name == "cairn." .. field[1] then
        lines[#lines + 1] = ("cairn.%s (%s)\n  %s"):format(field[1], field[2],
          field[3])
      end
    end
  end
  for _, row in ipairs(require "cairn.engine".properties) do
    candidates[#candidates + 1] = row.name
    if name == row.name then
      local labels = {}
      for i, value in ipairs(row.values or {}) do
        labels[i] = ("%d %s"):format(value.value, value.label)
      end
      lines[#lines + 1] = ("job.%s (%s%s, %s)\n  %s%s"):format(row.name,
        row.type, row.is_array and "[]" or "",
        row.is_writable and "read/write" or "read-only",
        row.description or "",
        #labels > 0 and "\n  " .. table.concat(labels, ", ") or "")
    end
  end
  if #lines == 0 then
    return ("nothing is called '%s'; did you mean '%s'?"):format(name,
      require "cairn.failure".nearest(name, candidates))
  end
  return table.concat(lines, "\n")
end

return api
