#!/usr/bin/env python3
"""Simulations against an oracle: random policies in random zones, most of them
near a change of the zone's clock. Every due time that the calendar of a job has
in the window, as Python's zoneinfo sees it (schedule.py), must be a run that
began then or later, or be told as skipped; and nothing else may be either. What
runs do at the same time is counted again from the list of runs.

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
    jobs, arguments = {}, []
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
        arguments += ["--assume", "%s.seconds=%d" % (key, rng.choice(
            [0, 1, 60, 3600, 20000, 90000, 200000]))]
        jobs[key] = (s, at)
    queue = rng.randint(1, 4)
    arguments += ["--queue", "default=%d" % queue]
    return {"zone": zone, "from": start, "jobs": jobs, "arguments": arguments,
            "queue": queue}


def simulate(case, path):
    with open(path, "w", encoding="utf-8") as file:
        file.write("local cairn = require 'cairn'\nreturn cairn.policy { "
                   "jobs = {\n")
        for key, (s, _) in case["jobs"].items():
            file.write("  %s = { %s, run = print },\n" % (key, ", ".join(
                "%s = %s" % (name, lua(v)) for name, v in s.items())))
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
    """A run that waited although there was a place and its job was free."""
    spans = [(instant(r["start"]), instant(r["end"]) if "end" in r else until)
             for r in runs]
    busy = {}
    for run, (start, end) in zip(runs, spans):
        key = (run["job"], run["run_number"])
        begin, last = busy.get(key, (start, end))
        busy[key] = (min(begin, start), max(last, end))
    for run, (start, _) in zip(runs, spans):
        due = instant(run["due"] if run["attempt"] == 1 else busy_retry(
            runs, run))
        moments = [due] + [e for _, e in spans if due < e < start]
        for t in moments if start > due else []:
            on = sum(a <= t < b for a, b in spans)
            own = any(a <= t < b for (job, number), (a, b) in busy.items()
                      if job == run["job"] and number != run["run_number"])
            if on < case["queue"] and not own:
                return "%s: nothing kept it from starting at %s" % (
                    run, oracle.timestamp(t))
    return None


def busy_retry(runs, run):
    """When a further attempt could begin: as the one before it was told."""
    return next(r["retry"] for r in runs if r["job"] == run["job"] and
                r["run_number"] == run["run_number"] and
                r["attempt"] == run["attempt"] - 1)


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
    totals = dict.fromkeys(["due", "skipped", "moved", "pairs"], 0)
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
                            "%d moved by a change of the clock, %d pairs" % (
                                count, totals["due"], totals["skipped"],
                                totals["moved"], totals["pairs"]), wrong)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
