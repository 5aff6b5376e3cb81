#!/usr/bin/env python3
"""Simulations against an oracle: random policies in random zones, most of them
near a change of the zone's clock. Every due time that the calendar of a job has
in the window, as Python's zoneinfo sees it (schedule.py), must be a run that
began then or later, or be told as skipped; and nothing else may be either. What
runs do at the same time is counted again from the list of runs. Some jobs are
exports whose functions base and retain decide by the local day: which points are
made, in full or not, pruned and left is found again from the list of runs.

    tests/random/simulate.py [--seconds N | --cases N] [--seed S]

  --seconds N  go on for N seconds (default: CAIRN_SECONDS, or 10)
  --cases N    simulate N policies, however long it takes
  --seed S     default: CAIRN_SEED, or 1

Output is TAP. A policy that differs is printed with what the oracle says.
"""
import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zoneinfo

import schedule as oracle

CAIRN = os.path.join(oracle.BUILD, "bin", "cairn")
DAY, HOUR, SECOND = oracle.DAY, oracle.HOUR, oracle.SECOND
DAYS = 30


RETAIN = {
    "last": """for i = math.max(1, #points - %(count)d + 1), #points do
      keep[points[i].ReferencePointGroupId] = true
    end""",
    "chains": """local by_id = {}
    for _, p in ipairs(points) do by_id[p.ReferencePointGroupId] = p end
    for i = math.max(1, #points - %(count)d + 1), #points do
      local p = points[i]
      while p do
        keep[p.ReferencePointGroupId] = true
        p = by_id[p.BaseReferencePointGroupId]
      end
    end""",
    "days": """local count, day = 0, nil
    for i = #points, 1, -1 do
      local t = points[i].time
      if day ~= t.year * 1000 + t.yday and count < %(count)d then
        count, day = count + 1, t.year * 1000 + t.yday
        keep[points[i].ReferencePointGroupId] = true
      end
    end""",
}


def random_decisions(rng):
    return {"full_wday": rng.randint(1, 7), "rule": rng.choice(list(RETAIN)),
            "count": rng.randint(1, 12)}


def export_text(key, number, d):
    """What an export's specification has besides its schedule."""
    return """export = { directory = "/nonexistent/%s", base = "latest",
      collection = { CollectionId = "6F1D0000-0000-4000-8000-%012X",
        machines = { { VirtualMachineId = "6F1D0001-0000-4000-8000-%012X",
          disks = { { id = "a", path = "/nonexistent/a", format = "raw" }
          } } } } },
    base = function(job)
      return job.now.wday == %d and "none" or nil
    end,
    retain = function(points)
      local keep = {}
      %s
      return keep
    end""" % (key, number, number, d["full_wday"], RETAIN[d["rule"]] % d)


def random_job(rng, clock, change):
    """A schedule as the oracle takes it, and its time of day."""
    s = {}
    if rng.random() < 0.2:
        s["RunDay"] = rng.choice([1, 15, 30, 31, -1, -2])
    if rng.random() < 0.4:
        s["RunDayOfWeek"] = rng.choice([1, 2, 4, 7, -6, -1])
    start = rng.randrange(0, DAY, 300 * SECOND)
    if change is not None and rng.random() < 0.7:
        local = change + clock.offset(change - rng.randint(0, 1))
        start = (local + rng.randrange(-HOUR, HOUR, 60 * SECOND)) % DAY
    if rng.random() < 0.3:
        s["gap"] = rng.choice(["first", "shift", "skip"])
        s["overlap"] = rng.choice(["first", "last", "both"])
    s["RunStartInterval"] = oracle.interval(start)
    return s, start


def due_times(s, start, zone, after, until):
    found, n = [], 8
    while True:
        runs = oracle.oracle(s, start, zone, after, n)
        found = [t for t, _, _ in runs if t < until]
        if len(found) < len(runs) or len(runs) < n:
            return found
        n *= 2


def instant(text):
    """A CIM datetime as microseconds."""
    sign = -1 if text[21] == "-" else 1
    t = datetime.datetime.strptime(text[:21], "%Y%m%d%H%M%S.%f").replace(
        tzinfo=datetime.timezone.utc)
    us = (t - oracle.EPOCH) // datetime.timedelta(microseconds=1)
    return us - sign * int(text[22:]) * 60 * SECOND


def lua(value):
    return json.dumps(value)


def random_case(rng, zones):
    zone = rng.choice(zones)
    clock = oracle.Clock(zone)
    year = rng.randint(1990, 2037)
    change = oracle.random_change(rng, clock, year)
    start = change - rng.randrange(DAYS * DAY) if change and \
        rng.random() < 0.8 else oracle.us_of(year) + rng.randrange(300 * DAY)
    start -= start % SECOND
    jobs, arguments, decisions = {}, [], {}
    for i in range(rng.randint(1, 6)):
        s, at = random_job(rng, clock, change)
        s["JobRunTimes"] = 0
        key = "job%d" % i
        if rng.random() < 0.3:
            s["catch_up"] = "all"
        if rng.random() < 0.4:
            s["RecoveryAction"] = "Re-run Job"
            arguments += ["--assume", "%s.fails=every:%d" % (
                key, rng.randint(1, 4))]
        lengths = [0, 1, 60, 3600, 20000, 90000, 200000]
        if rng.random() < 0.5:
            decisions[key] = random_decisions(rng)
            arguments += ["--assume", "%s: retain.seconds=%d" % (
                key, rng.choice(lengths[1:]))]
            lengths = lengths[1:4]
        arguments += ["--assume", "%s.seconds=%d" % (key, rng.choice(lengths))]
        jobs[key] = (s, at)
    queue = rng.randint(1, 4)
    arguments += ["--queue", "default=%d" % queue]
    return {"zone": zone, "from": start, "jobs": jobs, "arguments": arguments,
            "queue": queue, "decisions": decisions}


def simulate(case, path):
    with open(path, "w", encoding="utf-8") as file:
        file.write("local cairn = require 'cairn'\nreturn cairn.policy { "
                   "jobs = {\n")
        for number, (key, (s, _)) in enumerate(case["jobs"].items()):
            d = case["decisions"].get(key)
            file.write("  %s = { %s, %s },\n" % (
                key, ", ".join("%s = %s" % (name, lua(v))
                               for name, v in s.items()),
                export_text(key, number, d) if d else "run = print"))
        file.write("} }\n")
    done = subprocess.run(
        [CAIRN, "simulate", path, "--json", "--from",
         str(case["from"] // SECOND), "--days", str(DAYS), "--zone",
         case["zone"]] + case["arguments"],
        capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        return None, "exit code %d: %s" % (done.returncode, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()], None


def overlaps(runs, until):
    """Seconds for each pair of jobs, and how many were on at most."""
    pairs, edges = {}, []
    spans = [(instant(r["start"]), instant(r["end"]) if "end" in r else until,
              r["job"]) for r in runs]
    for i, (a0, a1, a) in enumerate(spans):
        if a1 > a0:
            edges += [(a0, 1), (a1, -1)]
        for b0, b1, b in spans[:i]:
            shared = min(a1, b1) - max(a0, b0)
            if shared > 0 and a != b:
                key = tuple(sorted((a, b)))
                pairs[key] = pairs.get(key, 0) + shared
    most = on = 0
    for _, step in sorted(edges):
        on += step
        most = max(most, on)
    return {k: v / SECOND for k, v in pairs.items()}, most


def idle_wait(case, runs, until):
    """A run that waited although there was a place, and its job and its
    directory were free."""
    spans = [(instant(r["start"]), instant(r["end"]) if "end" in r else until)
             for r in runs]
    busy = {}
    for run, (start, end) in zip(runs, spans):
        key = (run["job"], run["run_number"])
        begin, last = busy.get(key, (start, end))
        busy[key] = (min(begin, start), max(last, end))
    for run, (start, _) in zip(runs, spans):
        if run["attempt"] > 1:
            due = instant(busy_retry(runs, run))
        elif "due" in run:
            due = instant(run["due"])
        else:  # a prune, which begins when the export has ended
            due = start - round(run["wait_seconds"] * SECOND)
        place = run["job"].split(":")[0]
        moments = [due] + [e for _, e in spans if due < e < start]
        for t in moments if start > due else []:
            on = sum(a <= t < b for a, b in spans)
            own = any(a <= t < b for (job, number), (a, b) in busy.items()
                      if job == run["job"] and number != run["run_number"])
            own = own or any(a <= t < b for r, (a, b) in zip(runs, spans)
                             if r["job"] != run["job"] and
                             r["job"].split(":")[0] == place)
            if on < case["queue"] and not own:
                return "%s: nothing kept it from starting at %s" % (
                    run, oracle.timestamp(t))
    return None


def busy_retry(runs, run):
    """When a further attempt could begin: as the one before it was told."""
    return next(r["retry"] for r in runs if r["job"] == run["job"] and
                r["run_number"] == run["run_number"] and
                r["attempt"] == run["attempt"] - 1)


def local_day(clock, us):
    """Days since 1970 of what the clock shows; 1970-01-01 was a Thursday."""
    return (us + clock.offset(us)) // DAY


def depth_of(point):
    depth = 0
    while point:
        depth, point = depth + 1, point["base"]
    return depth


def kept_of(points, d, clock):
    """What retain answers: a list of points, oldest first."""
    if d["rule"] == "days":
        keep, day = [], None
        for p in reversed(points):
            if local_day(clock, p["time"]) != day and len(keep) < d["count"]:
                day = local_day(clock, p["time"])
                keep.insert(0, p)
        return keep
    keep = points[-d["count"]:]
    if d["rule"] == "chains":
        needed = []
        for p in keep:
            while p and p not in needed:
                needed.append(p)
                p = p["base"]
        keep = [p for p in points if p in needed]
    return keep


def check_points(case, key, records, totals):
    """The points of an export from the runs that made and pruned them."""
    d, clock = case["decisions"][key], oracle.Clock(case["zone"])
    points, wanted = [], 0
    runs = [r for r in records if r["record"] == "run" and
            r["job"] in (key, key + ": retain")]
    pruned = {(r["time"], tuple(r["removed"])) for r in records
              if r["record"] == "prune" and r["job"] == key + ": retain"}
    seen = 0
    for r in runs:
        if r["JobState"] == "Running" or r["JobState"] == "Exception":
            continue
        if r["job"] == key:
            start = instant(r["start"])
            is_full = (local_day(clock, start) + 4) % 7 + 1 == d["full_wday"]
            base = points[-1] if points and not is_full else None
            if depth_of(base) >= 32:
                base = None
            if r["point"] != ("increment" if base else "full"):
                return "%s: a %s was to be expected" % (
                    r, "increment" if base else "full")
            points.append({"time": start, "base": base})
            wanted += kept_of(points, d, clock) != points
            totals["fulls"] += base is None
            continue
        keep = kept_of(points, d, clock)
        gone = [p for p in points if p not in keep]
        told = [t for t in pruned if t[0] == r["end"]]
        if r["pruned"] != len(gone) or r["kept"] != len(keep) or \
                ([[instant(t) for t in x[1]] for x in told] if gone else
                 [[]]) != [[p["time"] for p in gone]]:
            return "%s: %s removed, and was to be %s" % (r, told, gone)
        for p in keep:
            while p["base"] and p["base"] not in keep:
                p["base"] = p["base"]["base"]
        points, seen = keep, seen + 1
        totals["pruned"] += len(gone)
    left = [(instant(r["time"]), r["type"]) for r in records
            if r["record"] == "point" and
            r["directory"] == "/nonexistent/" + key]
    expected = [(p["time"], "increment" if p["base"] else "full")
                for p in points]
    if left != expected:
        return "%s: the points are %s, and were to be %s" % (key, left,
                                                             expected)
    begun = sum(r["job"] != key for r in runs)
    # one prune may wait for the directory at the end, or several
    if begun > wanted or (begun < wanted and runs[-1]["JobState"] !=
                          "Running" and case["queue"] > 3):
        return "%s: %d prunes, and %d were to be" % (key, begun, wanted)
    return None


def check(case, records, totals):
    total = records[-1]
    until = instant(total["to"])
    for key, (s, at) in case["jobs"].items():
        wanted = due_times(s, at, case["zone"], case["from"], until)
        begun = [r for r in records if r["record"] == "run" and
                 r["job"] == key]
        first = [r for r in begun if r["attempt"] == 1]
        settled = [instant(r["due"]) for r in first]
        for r in begun:
            if instant(r["start"]) < instant(r["due"]):
                return "%s: a run before its time: %s" % (key, r)
        for skip in records:
            if skip["record"] == "skip" and skip["job"] == key:
                inside = [t for t in wanted if instant(skip["first"]) <= t
                          <= instant(skip["last"])]
                if len(inside) != skip["count"]:
                    return "%s: %s, the oracle has %s" % (key, skip, inside)
                settled += inside
        if len(set(settled)) != len(settled):
            return "%s: a time is settled twice" % key
        # what has come last may still wait, or its run be on
        missing = [t for t in wanted if t not in settled]
        extra = [t for t in settled if t not in wanted]
        unsettled = wanted[len(wanted) - len(missing):]
        if extra or missing != unsettled:
            return "%s: not told %s, not due %s" % (key, missing, extra)
        job = next(r for r in records if r["record"] == "job" and
                   r["job"] == key)
        if missing and job["phase"] == "waiting":
            return "%s: it waits, and %s were due" % (key, missing)
        totals["due"] += len(wanted)
        totals["skipped"] += len(settled) - len(first)
        totals["moved"] += sum(r["due_kind"] != "normal" for r in first)
        why = key in case["decisions"] and check_points(case, key, records,
                                                        totals)
        if why:
            return why
    runs = [r for r in records if r["record"] == "run"]
    idle = idle_wait(case, runs, until)
    if idle:
        return idle
    pairs, most = overlaps(runs, until)
    told = {tuple(sorted(r["jobs"])): r["seconds"] for r in records
            if r["record"] == "overlap"}
    if set(pairs) != set(told) or any(abs(pairs[k] - told[k]) > 1e-6
                                      for k in pairs):
        return "at the same time: %s, counted again %s" % (told, pairs)
    if most > case["queue"] or total["peak"] > case["queue"] or \
            total["peak"] < most:
        return "peak %d, counted again %d, places %d" % (
            total["peak"], most, case["queue"])
    totals["pairs"] += len(pairs)
    return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed or os.environ.get("CAIRN_SEED") or "1"
    seconds = options.seconds or float(os.environ.get("CAIRN_SECONDS") or 10)
    print("# seed %s" % seed, flush=True)
    database = os.environ.get("TZDIR") or "/usr/share/zoneinfo"
    zones = sorted(z for z in zoneinfo.available_timezones()
                   if os.path.isfile(os.path.join(database, z)))
    if len(zones) < 2:
        print("1..1\nok 1 - simulations # SKIP no zone database")
        return 0
    rng = random.Random("simulate %s" % seed)
    totals = dict.fromkeys(["due", "skipped", "moved", "pairs", "fulls",
                            "pruned"], 0)
    end, count, wrong = time.monotonic() + seconds, 0, []
    with tempfile.TemporaryDirectory(prefix="cairn-simulate-") as directory:
        path = os.path.join(directory, "policy.lua")
        while not wrong and (count < options.cases if options.cases
                             else time.monotonic() < end):
            case = random_case(rng, zones)
            records, why = simulate(case, path)
            if records is not None:
                why = check(case, records, totals)
            if why:
                wrong = [why, json.dumps(case)]
            count += 1
    print("1..1")
    is_good = oracle.result(1, "%d policies: %d due times, %d of them skipped, "
                            "%d moved by a change of the clock, %d pairs, "
                            "%d fulls, %d points pruned" % (
                                count, totals["due"], totals["skipped"],
                                totals["moved"], totals["pairs"],
                                totals["fulls"], totals["pruned"]), wrong)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
