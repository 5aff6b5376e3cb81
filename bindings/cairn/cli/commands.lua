-- The command's surface as data: every command with its arguments, options,
-- exit codes and examples. The parser, --help, the manual page and the shell
-- completion are all made from these tables; nothing is written twice.
--
-- An argument: { name = "DIR", key = "dir", optional = , rest = , help = }.
-- An option: { name = "to" (--to), short = "e" (-e), value = "DIR" (absent: a
-- flag), key = (default: name, '-' as '_'), is_repeated =, required =,
-- unless = (the key of an option with which it is not), choices = {},
-- is_hidden =, check = function(value) -> nil | message,
-- help = }.

local commands = {}

local json = { name = "json", help =
  "print the result as JSON on standard output, one object a line" }
local numbers = { name = "numbers", help =
  "with --json: value maps as numbers instead of labels" }
local set = { name = "set", value = "K=V", is_repeated = true,
  check = function(value)
    if not value:find("^[^=]+=") then
      return "wants K=V, such as --set directory=/srv/backup"
    end
  end,
  help = "a setting for the policy (its first argument, a table); may be given "
    .. "again; file is taken: the policy's own path" }
local dry_run = { name = "dry-run", help =
  "check everything and print what would be done; write nothing; the exit "
  .. "code is 2 or 3 when it is known that the run would fail" }

local from = { name = "from", value = "TIME",
  help = "the runs after this time: a date, 2025-03-30 or 2025-03-30T02:30, a "
    .. "CIM datetime or Unix seconds (default: now)" }
local zone = { name = "zone", value = "Z",
  help = "the host's time zone, for jobs that name none (default: this host's)"
  }

local exit_jobs = {
  { 0, "all well; warnings are on standard error" },
  { 1, "a job ran and did not complete, a check failed, or a result could not "
    .. "be written" },
  { 2, "wrong use, bad input or a bad policy; no job existed" },
  { 3, "the environment: no permission, no space, a lock; no job existed" },
}

local queue = { name = "queue", value = "NAME=N", is_repeated = true,
  check = function(value)
    local n = math.tointeger(tonumber(value:match "^[^=]+=(%d+)$"))
    if not n or n < 1 or n > 1000 then
      return "wants NAME=N, 1 to 1000 places, such as default=4"
    end
  end,
  help = "a queue that runs N jobs at once; may be given again (default: "
    .. "default=2)" }
local socket = { name = "socket", value = "S", help =
  "the service's control socket (default: CAIRN_SOCKET, or as root "
  .. "/run/cairn/cairn.sock, otherwise $XDG_RUNTIME_DIR/cairn/cairn.sock)" }
local job_id = { name = "ID", key = "id", help =
  "the job's InstanceID, its GUID, or 4 or more of the GUID's first digits that "
  .. "no other job's begins with" }

local exit_reading = {
  { 0, "told" },
  { 1, "a result could not be written" },
  { 2, "wrong use, no such job, or an id that is the beginning of several" },
  { 3, "no service answers at the socket, or no permission" },
}
local exit_changing = {
  { 0, "done, and in the store" },
  { 1, "the job's state does not allow it" },
  { 2, "wrong use, no such job, an id that is the beginning of several, or a "
    .. "value that is not valid" },
  { 3, "no service answers at the socket, no permission, or the store failed" },
}

-- A command that asks the service to do something with one job.
local function job_command(name, summary, description, more, options)
  local list = { socket, json }
  for i, option in ipairs(options or {}) do table.insert(list, i, option) end
  local command = { name = name, summary = summary, description = description,
    arguments = { job_id }, options = list, exits = exit_changing,
    examples = { ("cairn %s 6F1D2C3B%s"):format(name,
      more and " " .. more[1] or "") } }
  if more then command.arguments[2] = more[2] end
  return command
end

commands.list = {
  {
    name = "run",
    summary = "run the jobs of a policy, each once, now",
    description = [[
Loads POLICY.lua, submits its jobs and runs each of them once, now; their
calendars and ScheduledStartTime are ignored. Progress and messages go to
standard error, the result to standard output.

With --follow the jobs run when they are due: by their calendars, at their
ScheduledStartTime, or at once when they have neither. Each run that ends is
told on standard error, and so are times at which a job could not run. The
command ends when no job has a run left, or at the first signal; a signal that
finds a job waiting is no failure of it. Exit code 1: a run has failed.

SIGINT (Ctrl-C), SIGTERM or SIGHUP terminates the jobs in order; a second one
kills them. Nothing half written is ever published. Lua code that does not
return (io.popen, os.execute, a long pattern) holds up all jobs and this too:
use job:spawn to run programs. When such code lets no signal through for 2
seconds, a second signal ends the process at once, as that signal would.

With --store the jobs and the history of their runs are kept in a file (one
engine at a time has it). A signal, a crash, a reboot then end nothing: the next
start gives each job what the policy has for it now, goes on with the runs that
were on, makes up for times that have passed as catch_up says, and with --follow
holds jobs that have left the policy. While the file cannot be written, nothing
new starts and nothing is published.

A job that asks a question is answered from the terminal; without one it is
terminated.]],
    arguments = {
      { name = "POLICY.lua", key = "policy",
        help = "a Lua file that returns cairn.policy{...}" },
    },
    options = {
      { name = "job", value = "KEY", is_repeated = true,
        help = "only this job of the policy; may be given again" },
      set, queue,
      json, numbers, dry_run,
      { name = "store", value = "FILE",
        help = "keep the jobs and their history in FILE, made when missing: "
          .. "what has not ended goes on with the next start (default "
          .. ":memory:, nothing is kept)" },
      { name = "follow",
        help = "run the jobs by their calendars, until a signal" },
    },
    exits = exit_jobs,
    examples = {
      "cairn run nightly.lua",
      "cairn run nightly.lua --job web --set directory=/srv/backup --json",
      "cairn run nightly.lua --dry-run",
      "cairn run nightly.lua --follow --store /var/lib/cairn/cairn.db",
    },
  },
  {
    name = "preview",
    summary = "when the jobs of a policy would run",
    description = [[
Loads POLICY.lua and lists the next runs of each job that has a calendar
(RunMonth, RunDay, RunDayOfWeek, RunStartInterval), with what a change of the
clock does to them: a time that the clock is put forward over is due at the end
of that gap, a time that it shows twice is due the first time (the job's gap
and overlap can say otherwise). Nothing is run.

As in a job, JobRunTimes is 1 unless the policy gives it.]],
    arguments = {
      { name = "POLICY.lua", key = "policy",
        help = "a Lua file that returns cairn.policy{...}" },
    },
    options = {
      { name = "count", short = "n", value = "N", check = function(value)
          local n = math.tointeger(value)
          if not n or n < 1 or n > 1000 then return "wants 1 to 1000 runs" end
        end,
        help = "how many runs of each job (default 5)" },
      zone, from, set,
      json,
    },
    exits = {
      { 0, "listed; warnings are on standard error" },
      { 1, "a result could not be written" },
      { 2, "wrong use, a bad policy, or a schedule that never comes" },
      { 3, "the environment: no permission" },
    },
    examples = {
      "cairn preview nightly.lua",
      "cairn preview nightly.lua -n 3 --from 20250329000000.000000+060",
      "cairn preview nightly.lua --zone Europe/Berlin --json",
      "cairn preview nightly.lua --set time=23:30",
    },
  },
  {
    name = "simulate",
    summary = "a month of a policy's jobs in a moment, with nothing done",
    description = [[
Loads POLICY.lua, or all *.lua of a directory, and runs the jobs for 30 days on a
clock that jumps from one event to the next: what starts, waits and for whom, is
skipped, fails and is tried again, what a change of the clock moves, which points
are made, which are pruned and why, and who is told. The engine that decides all
this is the real one, and the functions of the policy are asked as for real runs,
with the points and the history that there would be; only what runs do is assumed.
Nothing is exported, no program is started, nobody is told, nothing is written; the
policy file itself is run, as always.

How long a run takes: what --assume says; else the middle of the last 20 good
runs of a job of that Name in --history; else, for an export, the bytes that its
disks take on this host, read at --rate (an increment by clone or bitmap reads
5 percent of them) and for a verify the bytes of the points, no faster than
throttle says, which is asked for each minute; for a prune the bytes that it
merges; else 60 seconds. No run fails but as --assume says, or because base named
no point:
 KEY.seconds=N    how long each run takes: 600, 2h
 KEY.fails=WHICH  runs that fail: 3 or 3rd, every:N, first:N, all, none
 KEY.attempts=N   so many attempts of such a run fail: 1 (default), ..., all
 KEY.error=CODE   with this error: job_failed (default), disk_full, ...
 KEY.changed=P    percent of its disks that change between two increments
KEY is the key of a job, POLICY:KEY, or * for all jobs; "KEY: retain" is the prune
after an export whose policy has retain.

An increment is made where the export would make one: on the point that base
names, or for latest the newest of the collection, disk by disk, with the chain
below its limit.
Points that exist in the export directories are read and count, unless --fresh is
given. Recovery handlers are not called, and the bodies of run jobs do nothing.]],
    arguments = {
      { name = "POLICY.lua|DIR", key = "policy",
        help = "a Lua file that returns cairn.policy{...}, or a directory of "
          .. "them" },
    },
    options = {
      { name = "days", value = "N", check = function(value)
          local n = math.tointeger(value)
          if not n or n < 1 or n > 3660 then return "wants 1 to 3660 days" end
        end,
        help = "how many days (default 30)" },
      from, zone, set,
      { name = "assume", value = "KEY.WHAT=V", is_repeated = true,
        help = "what is assumed of a job's runs, as above; may be given again" },
      { name = "rate", value = "MB", check = function(value)
          local n = tonumber(value)
          if not n or not (n >= 0.001 and n <= 1e6) then
            return "wants megabytes a second, 0.001 to 1000000"
          end
        end,
        help = "megabytes (10^6 bytes) that a run reads in a second (default "
          .. "100)" },
      { name = "history", value = "FILE",
        help = "what cairn history --json prints: how long runs take, and what "
          .. "base is given of runs before, of a job of that Name (of several "
          .. "such jobs the last); - is standard input" },
      queue,
      { name = "down", value = "START/DURATION", is_repeated = true,
        help = "the host sleeps then, such as 2025-03-10T01:00/6h; catch_up "
          .. "says what is made up; may be given again" },
      { name = "fresh", help = "as if the export directories were empty" },
      { name = "runs", help = "list every run too" },
      { name = "json", help = "print records instead, one JSON object a line: "
        .. "run, skip, prune, notice, day, job, overlap, point, directory, "
        .. "total (its member record says which)" },
    },
    exits = {
      { 0, "simulated; notes are on standard error" },
      { 1, "a result could not be written" },
      { 2, "wrong use, a bad policy, or a job that the engine refuses" },
      { 3, "the environment: no permission" },
    },
    examples = {
      "cairn simulate nightly.lua",
      "cairn simulate /etc/cairn/policies --days 60 --from 2025-03-01",
      "cairn simulate nightly.lua --assume web.seconds=2h --assume "
        .. "web.fails=every:5",
    },
  },
  {
    name = "calendar",
    summary = "the coming months, with the days on which jobs are due",
    description = [[
Prints a grid of each month with a letter for each job that is due on a day, by
the job's own clock, and what the letters mean. A "!" marks days on which a
change of the clock moves a run, which is told below. The jobs are those of
POLICY.lua, or of all *.lua of a directory, or without either those of a running
service that have runs left.]],
    arguments = {
      { name = "POLICY.lua|DIR", key = "policy", optional = true,
        help = "a Lua file that returns cairn.policy{...}, or a directory of "
          .. "them" },
    },
    options = {
      { name = "months", value = "N", check = function(value)
          local n = math.tointeger(value)
          if not n or n < 1 or n > 120 then return "wants 1 to 120 months" end
        end,
        help = "how many months, the one of --from counted (default 2)" },
      zone, from, set, socket,
      { name = "json", help = "print the runs instead, one JSON object a line" },
    },
    exits = {
      { 0, "printed; notes are on standard error" },
      { 1, "a result could not be written" },
      { 2, "wrong use, a bad policy, or a schedule that never comes" },
      { 3, "the environment: no service answers, no permission" },
    },
    examples = {
      "cairn calendar nightly.lua",
      "cairn calendar /etc/cairn/policies --months 3 --from 2025-03-01",
    },
  },
  {
    name = "export",
    summary = "export a collection of machines now",
    description = [[
Exports the collection that FILE.lua returns into a new reference point under
--to. Machines must be off, or their disks snapshots.

With --base latest each disk holds only what has changed since the newest point
of the collection there that has the disk; a disk that is new, or has no base
that can be used, is exported in full, and a warning says why. With --base ID it
is that point, or an error. Such an increment is a qcow2 whose backing file is
the base's: it needs the points below it.

An export that was interrupted (killed, out of space, cut off) goes on when the
command runs again: what was written already is compared, not written again. The
disks are read anew, but for what a clone or a bitmap (--tracker) proves to be
unchanged.

--dry-run reads the disks, and compares those that become increments with their
base, so that it tells the exact size; --json lists the ranges too.

With --stream writes one disk of the point DIR/ID as a stream "rbd diff v1"
instead, to standard output or a file: what changed since its base, or since
any other point with --base, or everything with --base none. rbd import-diff
and cairn import read it. A stream that could not be completed lacks its end
record, and no reader takes it for a whole one.]],
    arguments = {},
    options = {
      { name = "collection", value = "FILE.lua", required = true,
        unless = "stream",
        help = "a Lua file that returns cairn.collection{...}" },
      { name = "to", value = "DIR", required = true, unless = "stream",
        help = "the export directory; created if it is missing, but not the "
          .. "directory that it is in, which may be an absent mount" },
      { name = "base", value = "ID",
        help = "the point to start from: latest, an id (4 or more characters of "
          .. "it), or none (the default): everything" },
      { name = "depth-limit", value = "N", check = function(value)
          local n = math.tointeger(value)
          if not n or n < 1 or n > 200 then return "wants 1 to 200 levels" end
        end,
        help = "a disk whose chain has N levels is exported in full again "
          .. "(default 32)" },
      { name = "tracker", value = "T",
        choices = { "digest", "clone", "bitmap", "full" },
        help = "how changes are found on disks that name no tracker: digest "
          .. "(the default), clone, bitmap or full" },
      { name = "on-disk-error", value = "WHAT",
        choices = { "fail", "continue" },
        help = "when a source fails: fail (the default) publishes nothing, "
          .. "continue leaves out that machine; the exit code is 1 then too" },
      { name = "format", value = "FORMAT", choices = { "qcow2", "raw" },
        help = "format of the exported disks: qcow2 (the default) or raw" },
      { name = "digest", value = "ALG",
        choices = { "xxh3-128", "sha-256", "blake2b-256" },
        help = "digests: xxh3-128 (the default), sha-256 or blake2b-256" },
      { name = "no-resume",
        help = "remove what an interrupted export of this collection has left "
          .. "there instead of going on from it" },
      { name = "name", value = "N", help = "name of the job" },
      { name = "stream", value = "DIR/ID",
        help = "write a disk of this point as a stream" },
      { name = "vm", value = "V", help = "with --stream: the machine, by its "
        .. "VirtualMachineId or ElementName; needed when there are several" },
      { name = "disk", value = "D", help =
        "with --stream: the disk; needed when there are several" },
      { name = "output", value = "FILE", help = "with --stream: a file that "
        .. "does not exist yet, instead of standard output" },
      json, numbers, dry_run,
    },
    exits = exit_jobs,
    examples = {
      "cairn export --collection farm.lua --to /srv/backup/web",
      "cairn export --collection farm.lua --to /srv/backup/web --dry-run",
      "cairn export --stream /srv/backup/web/6F1D --disk vda >vda.diff",
    },
  },
  {
    name = "import",
    summary = "take a stream in as a new reference point",
    description = [[
Reads a stream "rbd diff v1", as rbd export-diff and cairn export --stream
write it, into a new reference point under --to. A stream of changes becomes an
increment on the point that it starts from, any other a full; its end is a new
point, with the id that the stream gives it where that is new here. The point
holds this one disk, and no other disk or file of the collection.

The collection says whose disk it is; its paths are not opened. A stream that
is cut off, damaged or followed by anything leaves nothing.]],
    arguments = {
      { name = "FILE", key = "file",
        help = "the stream; - is standard input" },
    },
    options = {
      { name = "to", value = "DIR", required = true,
        help = "the export directory; created if it is missing, but not the "
          .. "directory that it is in, which may be an absent mount" },
      { name = "collection", value = "FILE.lua", required = true,
        help = "a Lua file that returns cairn.collection{...}" },
      { name = "vm", value = "V", help = "the machine of the collection, by "
        .. "its VirtualMachineId or ElementName; needed when there are "
        .. "several" },
      { name = "disk", value = "D",
        help = "the disk; needed when there are several" },
      { name = "base", value = "ID",
        help = "the point that the stream starts from, where it does not say "
          .. "so by id; none: it holds everything" },
      { name = "format", value = "FORMAT", choices = { "qcow2", "raw" },
        help = "format of a full: qcow2 (the default) or raw" },
      { name = "digest", value = "ALG",
        choices = { "xxh3-128", "sha-256", "blake2b-256" },
        help = "digests of a full: xxh3-128 (the default), sha-256 or "
          .. "blake2b-256; an increment has those of its base" },
      { name = "name", value = "N", help = "name of the job" },
      json, numbers, dry_run,
    },
    exits = exit_jobs,
    examples = {
      "cairn import vda.diff --to /srv/copy --collection farm.lua",
      "rbd export-diff rbd/vda@mon - | cairn import - --to /srv/b "
        .. "--collection f.lua",
    },
  },
  {
    name = "points",
    summary = "list the reference points of an export directory",
    description = [[
Lists every point in DIR by sequence, markers too: reference points without an
export, of the KIND "marker". A "+" behind the kind means that data is kept for
the point outside of its directory (a clone, a bitmap). A point whose manifest is
damaged is listed with what is wrong, and the exit code is 1.]],
    arguments = {
      { name = "DIR", key = "directory", help = "an export directory" },
    },
    options = { json },
    exits = {
      { 0, "listed, all readable" },
      { 1, "a point is damaged" },
      { 2, "wrong use; not a directory" },
      { 3, "the environment: no permission" },
    },
    examples = { "cairn points /srv/backup/web" },
  },
  {
    name = "verify",
    summary = "prove that exports are complete and unchanged",
    description = [[
Checks one point (DIR/ID) or all points (DIR) to a depth:
 set      every file that the manifest names, and nothing else
 chain    the set, and ids, sizes and digests along the chain of bases
 content  the chain, and every stored byte against its digests (the default)

ID is a ReferencePointGroupId or a unique prefix of 4 or more of its
characters.]],
    arguments = {
      { name = "DIR[/ID]", key = "target",
        help = "an export directory, or one point in it" },
    },
    options = {
      { name = "depth", value = "DEPTH",
        choices = { "set", "chain", "content" },
        help = "set, chain or content (the default)" },
      { name = "source", value = "FILE.lua",
        help = "compare with the sources of this collection too" },
      json,
    },
    exits = {
      { 0, "everything is as it was written" },
      { 1, "damage or a difference was found" },
      { 2, "wrong use; no such point" },
      { 3, "the environment: no permission, a lock" },
    },
    examples = {
      "cairn verify /srv/backup/web",
      "cairn verify /srv/backup/web/6F1D --depth set --json",
    },
  },
  {
    name = "restore",
    summary = "write the disks and files of a point back",
    description = [[
Writes the machines of the point DIR/ID under --to, verifying what it writes.
A raw disk gets its exact length, sparse. Nothing that exists is overwritten
unless --overwrite is given.

ID is a ReferencePointGroupId or a unique prefix of 4 or more of its
characters.]],
    arguments = {
      { name = "DIR/ID", key = "target", help = "a point" },
    },
    options = {
      { name = "to", value = "DIR", required = true,
        help = "where to write; created, with all directories above it, if "
          .. "it is missing" },
      { name = "vm", value = "V",
        help = "only this machine: its VirtualMachineId or ElementName" },
      { name = "disk", value = "D", help = "only this disk, by its id" },
      { name = "format", value = "FORMAT", choices = { "raw", "qcow2" },
        help = "format of the restored disks: raw (the default) or qcow2" },
      { name = "overwrite", help = "replace files that exist" },
      json, dry_run,
    },
    exits = exit_jobs,
    examples = {
      "cairn restore /srv/backup/web/6F1D --to /srv/restored",
      "cairn restore /srv/backup/web/6F1D --to . --vm web1 --disk vda",
    },
  },
  {
    name = "doctor",
    summary = "what may be wrong in an export directory, and what to do",
    description = [[
Looks at the points, markers and chains in DIR, at what interrupted runs have
left, at clones and bitmaps that no point has, and says what the next export
will do with each disk of the newest point (or of --collection) and why. Reads
no disk and changes nothing.

--fix first removes what is surely ours and nobody's any more, under the
directory's lock, and prints each: what dead runs have left, clones and bitmaps
of points that are not here. Name the other export directories of the same
disks with --also, so that their bitmaps are known.]],
    arguments = {
      { name = "DIR", key = "directory", help = "an export directory" },
    },
    options = {
      { name = "collection", value = "FILE.lua",
        help = "plan the next export of this collection" },
      { name = "also", value = "DIR", is_repeated = true,
        help = "another export directory, whose points are known too" },
      { name = "fix", help = "remove what is safe to remove" },
      json,
    },
    exits = {
      { 0, "nothing was found" },
      { 1, "something was found" },
      { 2, "wrong use; not a directory" },
      { 3, "the environment: no permission, a lock" },
    },
    examples = {
      "cairn doctor /srv/backup/web",
      "cairn doctor /srv/backup/web --fix --also /srv/backup/other",
    },
  },
  {
    name = "merge",
    summary = "merge a chain of points into a full or one increment",
    description = [[
With one DIR/ID, the point becomes a full that needs no other point. With
several, oldest first, the last becomes one increment on the first; those
between must be the chain, each based on the one before it, or be left out all
of them. Other points stay as they are, and none is removed (see prune).

The point keeps its id, its content and its place: points that are based on it
stay valid. The new files take the place of the old in one step, after a crash
one or the other is there; meanwhile both take space. With --to the merged
point is written into another directory and the old one is left alone; an
increment needs its base there.

Every block is checked against its digest while it is read; nothing is made of
damaged points.

ID is a ReferencePointGroupId or a unique prefix of 4 or more of its
characters.]],
    arguments = {
      { name = "DIR/ID", key = "first", help = "a point" },
      { name = "DIR/ID", key = "more", optional = true, rest = true,
        help = "further points of the chain, each newer; the last is merged "
          .. "onto the first" },
    },
    options = {
      { name = "to", value = "DIR",
        help = "write the merged point there; without it, it replaces the "
          .. "point" },
      json, dry_run,
    },
    exits = exit_jobs,
    examples = {
      "cairn merge /srv/backup/web/6F1D",
      "cairn merge /srv/backup/web/6F1D /srv/backup/web/9C20",
      "cairn merge /srv/backup/web/6F1D --to /srv/archive/web",
    },
  },
  {
    name = "prune",
    summary = "remove the points that no rule keeps",
    description = [[
Removes the points of DIR that none of the --keep rules keeps, for each
collection by itself. What stays and is based on what goes is merged first,
onto the nearest older point that stays, or into a full; so nothing that stays
ever needs what has gone.

RULES are joined by commas:
 last=N      the N newest points
 daily=N     the newest point of each of the last N days that have one
 weekly=N, monthly=N, yearly=N     the same for weeks (ISO 8601), ...
 within=T    points at most T older than the newest: 36h, 30d, 4w, 1d12h
 id=ID       this point; may be given again

Newest is the highest sequence; a day is that of the point's own time, in the
zone it was recorded with. The newest point of a collection is always kept.
Damaged points are never removed or merged, and keep what they name. A point
that cannot be merged (no space, damage) keeps what it is based on, and the
exit code is 1.]],
    arguments = {
      { name = "DIR", key = "directory", help = "an export directory" },
    },
    options = {
      { name = "keep", value = "RULES", required = true, is_repeated = true,
        help = "what stays, such as last=3,daily=7,weekly=4; may be given "
          .. "again" },
      { name = "collection", value = "ID",
        help = "only the points of this collection, by its CollectionId" },
      json,
      { name = "dry-run", help = "print exactly what would be kept, merged and "
        .. "removed; write nothing; the exit code is 1 when something cannot "
        .. "be merged, 3 when there is not enough space" },
    },
    exits = exit_jobs,
    examples = {
      "cairn prune /srv/backup/web --keep last=3,daily=7,weekly=4 --dry-run",
      "cairn prune /srv/backup/web --keep within=30d,monthly=12,yearly=2",
    },
  },
  {
    name = "top",
    summary = "the jobs of a service as they run",
    description = [[
Shows the jobs of a running service, those that run first, with their progress,
rate and time left, and asks again every second. Keys: q quits, the arrows, Page
Up, Page Down, Home and End scroll, s changes the order (state, progress, name,
due, queue), p pauses, the space bar asks at once. A service that goes away is
looked for again.

Where standard output is no terminal, or TERM is dumb, and with --once the jobs
are printed once.]],
    arguments = {},
    options = {
      socket,
      { name = "once", help = "print the jobs once" },
      { name = "interval", value = "S", check = function(value)
          local n = tonumber(value)
          if not n or not (n >= 0.1 and n <= 3600) then
            return "wants 0.1 to 3600 seconds"
          end
        end,
        help = "seconds between two questions (default 1)" },
      { name = "sort", value = "ORDER",
        choices = { "state", "progress", "name", "due", "queue" },
        help = "begin with this order (default state)" },
      { name = "json", help =
        "print the jobs once, as JSON, one object a line" },
    },
    exits = {
      { 0, "shown" },
      { 1, "a result could not be written" },
      { 2, "wrong use" },
      { 3, "the environment: no service answers, no permission" },
    },
    examples = { "cairn top", "cairn top --once --sort due" },
  },
  {
    name = "console",
    summary = "a Lua prompt on the service or a private engine, or a script",
    description = [[
Evaluates Lua with the globals `cairn` and `engine`: the lines typed at a prompt,
the chunks given with -e, or FILE with its arguments in `...` and `arg`. An
expression's values are printed (not in FILE). Every chunk is a Cairn task, so
that job:wait(), job:sleep() and the like can be called anywhere.

The engine is that of the service at --socket. Without it, a prompt attaches to
the default socket (CAIRN_SOCKET, or as root /run/cairn/cairn.sock, otherwise
$XDG_RUNTIME_DIR/cairn/cairn.sock) if one answers; -e and FILE, and a prompt that
finds no service, have a private engine in memory. In the service each console
has globals of its own, `_` and `it` are the last value, and what a chunk prints
comes here; -e and FILE are read here and run there.

At the prompt help() lists what there is and help "name" describes it, Tab
completes from live objects, Ctrl-R searches the history
($XDG_STATE_HOME/cairn/history; a line that begins with a space is not kept),
Alt-Enter begins another line of the same chunk, Ctrl-C ends the chunk that runs,
but not the engine, and Ctrl-D leaves. What happens to jobs is told above the line
that is typed.]],
    arguments = {
      { name = "FILE", key = "file", optional = true,
        help = "a Lua script; - is standard input" },
      { name = "ARG", key = "args", optional = true, rest = true,
        help = "arguments of the script" },
    },
    is_script = true, -- all after FILE belongs to the script
    options = {
      { name = "eval", short = "e", value = "LUA", is_repeated = true,
        is_any = true, help = "evaluate this chunk; may be given again" },
      { name = "socket", value = "S",
        help = "attach to the service at this control socket" },
      { name = "private",
        help = "a private engine in memory, also where a service answers" },
      { name = "no-events", help = "tell nothing above the prompt" },
      { name = "json", help = "print values as JSON, one a line" },
    },
    exits = {
      { 0, "all well" },
      { 1, "a chunk or the script raised an error, or was interrupted" },
      { 2, "wrong use, a syntax error, no such file" },
      { 3, "the environment: no service at --socket, no permission; the service "
        .. "went away" },
    },
    examples = {
      "cairn console",
      "cairn console -e 'cairn.version'",
      "cairn console --socket /run/cairn/cairn.sock -e 'engine:jobs()'",
      "cairn console audit.lua /srv/backup",
    },
  },
  {
    name = "serve",
    summary = "the engine as a service, with a control socket",
    description = [[
Keeps an engine with a store running: it loads the policies of a directory (each
FILE.lua in it), runs their jobs by their calendars, and answers at a control
socket, which the commands jobs, show, why, history, start, suspend, resume,
terminate, kill, set, answer, delete, reload and console use
(docs/control-protocol.md).

The socket is for root, the user that the service runs as, and the members of
--admin-group, who may do everything, Lua included; members of --read-group may
look at everything and change nothing. Everybody else's connection is closed.
Whoever changes something is named in the log.

SIGTERM or SIGINT stops it in order: runs are suspended and go on at the next
start. A second signal ends it at once, as a crash would, which loses nothing
either. SIGHUP loads the policies again; so does a change of their directory.

As a service of systemd (Type=notify) it says when it is ready, reloading and
stopping, what it is doing, and keeps the watchdog.]],
    arguments = {},
    options = {
      { name = "store", value = "FILE",
        help = "keep the jobs and their history in FILE (default: CAIRN_STORE, "
          .. "or as root /var/lib/cairn/cairn.db, otherwise "
          .. "$XDG_STATE_HOME/cairn/cairn.db); :memory: keeps nothing" },
      { name = "policies", value = "DIR",
        help = "the directory of policies (default: as root "
          .. "/etc/cairn/policies, otherwise $XDG_CONFIG_HOME/cairn/policies, "
          .. "if it is there)" },
      { name = "socket", value = "S", help = "the control socket; its "
        .. "directory, made when it is missing, must be one that nobody else "
        .. "can write to (default: CAIRN_SOCKET, or as root "
        .. "/run/cairn/cairn.sock, otherwise $XDG_RUNTIME_DIR/cairn/cairn.sock)"
        },
      { name = "admin-group", value = "G",
        help = "members of this group may do everything" },
      { name = "read-group", value = "G",
        help = "members of this group may look at everything" },
      queue,
      { name = "metrics", value = "FILE",
        help = "write metrics to FILE every 15 seconds, in one step, for "
          .. "node_exporter's textfile collector (FILE ends in .prom there)" },
      { name = "log", value = "FORM", choices = { "plain", "json" },
        help = "how lines on standard error look: plain (the default), or json, "
          .. "one object a line with time, level, message and, where it is "
          .. "about one, job" },
      { name = "json", help = "the same as --log json" },
    },
    exits = {
      { 0, "stopped in order" },
      { 1, "ended before all runs had stopped, or the store failed at the end" },
      { 2, "wrong use, no such directory or group" },
      { 3, "the environment: the store or the socket is another's, no "
        .. "permission" },
    },
    examples = {
      "cairn serve",
      "cairn serve --store ~/cairn.db --policies ~/policies --log json",
      "cairn serve --admin-group operators --read-group monitoring",
    },
  },
  {
    name = "jobs",
    summary = "the jobs of the service",
    description = [[
Lists the jobs of the running service, in order of submission, also those that
have ended and are not removed yet. Filters are joined by "and".]],
    arguments = {},
    options = {
      { name = "state", value = "STATE",
        help = "only those whose JobState is this: Running, Suspended, ..." },
      { name = "phase", value = "PHASE", choices = { "queued", "waiting",
        "backoff", "held", "running", "done" },
        help = "only those in this phase: queued, waiting, backoff, held, "
          .. "running or done" },
      { name = "queue", value = "Q", help = "only those of this queue" },
      { name = "policy", value = "P", help = "only those of this policy" },
      { name = "name", value = "N", help = "only those with this name; * stands "
        .. "for any characters, ? for one" },
      socket, json, numbers,
    },
    exits = exit_reading,
    examples = {
      "cairn jobs",
      "cairn jobs --phase held",
      "cairn jobs --state Running --name 'web*' --json",
    },
  },
  {
    name = "show",
    summary = "everything about a job",
    description = [[
Prints the properties of a job that have a value, the question it asks, and its
errors with what to do about them. --json prints all properties.]],
    arguments = { job_id },
    options = { socket, json, numbers },
    exits = exit_reading,
    examples = { "cairn show 6F1D2C3B", "cairn show 6F1D2C3B --json" },
  },
  {
    name = "why",
    summary = "why a job does not run, or what it does",
    description = [[
Says in a sentence or two in what phase a job is and what it waits for: its time,
a place in its queue, an answer, a client; why its last run was late, what its
last error was, and whether the store or a notice has failed.]],
    arguments = { job_id },
    options = { socket, json },
    exits = exit_reading,
    examples = { "cairn why 6F1D2C3B" },
  },
  {
    name = "history",
    summary = "what has become of runs",
    description = [[
Lists the runs that have ended, and the times that had none with the reason,
oldest first: of one job, also when it is gone, or of all.]],
    arguments = {
      { name = "ID", key = "id", optional = true, help = job_id.help },
    },
    options = { socket, json },
    exits = exit_reading,
    examples = { "cairn history", "cairn history 6F1D2C3B --json" },
  },
  job_command("start", "run a job now", [[
Starts a job now, whatever its calendar says; this counts as a run. A job that is
held or waits is let go, one that runs is refused.]]),
  job_command("suspend", "hold a job", [[
Holds a job: one that runs stops at its next safe point and keeps its work, one
that waits for its time or its turn does not run until it is resumed or
started.]]),
  job_command("resume", "let a job go on that was held", [[
Lets a held job go on: a suspended run where it stood, any other waits for its
time again.]]),
  job_command("terminate", "end a job in order", [[
Ends a job, and with it its calendar. One that runs cleans up first.]]),
  job_command("kill", "end a job at once", [[
Ends a job without waiting for it. Nothing half written is published; what a run
leaves behind is found by cairn doctor.]], nil, {
    { name = "delete", help = "remove the job, too" } }),
  job_command("set", "change properties of a job", [[
Sets writable properties of a job, all or none of them. K= unsets K. A number is
a number, an interval may be 2h or 90s, names of values are those of the class
(RunDayOfWeek=-Friday).]], { "RunStartInterval=2h Priority=3",
    { name = "K=V", key = "pairs", rest = true,
      help = "a property and its new value" } }),
  job_command("answer", "answer a job's question", [[
Answers the question of a job in Query Pending, which cairn show prints.]],
    { "yes", { name = "TEXT", key = "text", help = "the answer" } }),
  job_command("delete", "remove a job", [[
Removes a job that has ended, or waits. Its history stays.]]),
  {
    name = "policies",
    summary = "the policies that the service has loaded",
    description = [[
Lists the files of the service's directory of policies: the name and version
(XXH3 of the text) of each, how many jobs it has and when it was loaded. Where a
file was changed and could not be loaded the version before is in force, and
standard error says what is wrong.]],
    arguments = {},
    options = { socket, json },
    exits = {
      { 0, "every file is loaded as it is" },
      { 1, "one or more could not be loaded, or there is no such directory" },
      { 2, "wrong use" },
      { 3, "no service answers at the socket, or no permission" },
    },
    examples = { "cairn policies", "cairn policies --json" },
  },
  {
    name = "metrics",
    summary = "the service's metrics, as OpenMetrics text",
    description = [[
Prints the metrics of the service as OpenMetrics text: jobs, runs, queues, the
store. README.md lists them. With --json it is one object with the text.]],
    arguments = {},
    options = { socket, json },
    exits = exit_reading,
    examples = { "cairn metrics" },
  },
  {
    name = "reload",
    summary = "have the service load its policies again",
    description = [[
Loads the policies of the service's directory again, as SIGHUP does, and prints
how many were loaded. A file with an error keeps the jobs it had.]],
    arguments = {},
    options = { socket, json },
    exits = {
      { 0, "all policies were loaded" },
      { 1, "one or more were not; standard error says why" },
      { 2, "wrong use" },
      { 3, "no service answers at the socket, or no permission" },
    },
    examples = { "cairn reload" },
  },
  {
    name = "help",
    summary = "help on a command",
    description = [[
Prints the help of COMMAND, or the list of commands.]],
    arguments = {
      { name = "COMMAND", key = "command", optional = true,
        help = "a command" },
    },
    options = {
      { name = "man", help = "print the manual page cairn(1) in roff" },
      { name = "completion", value = "SHELL", choices = { "bash" },
        help = "print a completion script for the shell" },
      { name = "json", help =
        "print the commands as JSON, one object a line" },
    },
    exits = { { 0, "printed" }, { 2, "no such command" } },
    examples = {
      "cairn help restore",
      'eval "$(cairn help --completion bash)"',
    },
  },
}

-- Options of `cairn` itself.
commands.top = {
  { name = "help", short = "h", help = "print this help" },
  { name = "version", help = "print the version" },
  { name = "json", help = "with --version: as JSON" },
}

commands.exits = exit_jobs

commands.by_name = {}
commands.names = {}
for i, command in ipairs(commands.list) do
  commands.by_name[command.name] = command
  commands.names[i] = command.name
  table.insert(command.options,
    { name = "help", short = "h", help = "print this help" })
end

return commands
