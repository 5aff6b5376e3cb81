#!/usr/bin/env python3
"""What was acknowledged survives, and what was due runs once, whenever the
process is killed.

    tests/random/crash.py [--seconds N | --kills N] [--seed S] [--keep]

An engine with a store is put under load (crash_driver.lua): exports, markers,
Lua bodies, held jobs, requests. It is killed with SIGKILL at a random instant,
20 times; then it is let run to the end. The record of what it had said before
each kill is kept here, outside. Afterwards

  * every job whose submit had returned is there,
  * every end that an event had told is still the job's end, and no body of the
    job has run after it,
  * every job has run once: one record in the history; every export that
    completed has one point, and no point has a job that did not complete,
  * the stream of events has no gap, and tells of each job the changes of state
    that are allowed, one end among them,
  * sqlite3 finds the file sound, `cairn verify` every point, and
    `qemu-img compare` what the last one gives back.

  --seconds N  go on for N seconds (default: CAIRN_SECONDS, or 10)
  --kills N    go on for N kills, however long it takes
  --seed S     default: CAIRN_SEED, or 1
  --keep       keep the directory of a failed round

Ten thousand: tests/random/crash.py --kills 10000
Output is TAP.
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get("CAIRN_BUILD", os.path.join(TOP, "build"))
CAIRN = os.path.join(BUILD, "bin", "cairn")
DRIVER = os.path.join(TOP, "tests", "random", "crash_driver.lua")
KILLS_A_ROUND = 20
FINAL = {"Completed", "Completed With Warnings", "Terminated", "Killed",
         "Exception"}
WELL = {"Completed", "Completed With Warnings"}
# docs/job-model.md: state x state
CHANGES = {
    "New": {"Starting", "Suspended", "Shutting Down", "Terminated", "Killed",
            "Exception"},
    "Starting": {"Running", "Shutting Down", "Killed", "Exception"},
    "Running": {"Suspended", "Shutting Down", "Killed", "Exception",
                "Query Pending"},
    "Suspended": {"Starting", "Shutting Down", "Killed", "Exception"},
    "Shutting Down": FINAL,
}


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


class Round:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.seed = seed
        self.top = tempfile.mkdtemp(prefix="cairn-crash-")
        self.store = os.path.join(self.top, "cairn.db")
        self.acknowledged, self.done = {}, {}
        self.began = []  # (id, how many ends had been told before)
        self.kills = 0
        for n in (1, 2):
            with open(f"{self.top}/disk{n}.raw", "wb") as disk:
                disk.write(self.random.randbytes(1 << 20))
                disk.truncate(8 << 20)

    def start(self, mode):
        env = dict(os.environ)
        env["LUA_PATH"] = os.path.join(BUILD, "share/lua/5.4/?.lua") + ";;"
        env["LUA_CPATH"] = os.path.join(BUILD, "lib/lua/5.4/?.so") + ";;"
        return subprocess.Popen(
            ["lua5.4", DRIVER, self.store, self.top,
             str(self.random.randrange(1 << 30)), mode],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)

    def note(self, line):
        words = line.split(" ", 2)
        if words[0] == "ack":
            self.acknowledged[words[1]] = words[2]
        elif words[0] == "done":
            expect(self.done.get(words[1], words[2]) == words[2],
                   f"{words[1]} ended twice: {self.done.get(words[1])}, "
                   f"then {words[2]}")
            self.done[words[1]] = words[2]
        elif words[0] == "began":
            expect(words[1] not in self.done,
                   f"the body of {words[1]} ran after its end was told")

    def kill_one(self):
        driver = self.start("work")
        time.sleep(0.03 + self.random.random() ** 2 * 0.5)
        expect(driver.poll() is None, "the driver ended by itself: "
               + driver.stderr.read().decode() if driver.poll() is not None
               else "")
        driver.send_signal(signal.SIGKILL)
        out, _ = driver.communicate()
        self.kills += 1
        # a last line may be cut
        for line in out.decode().split("\n")[:-1]:
            self.note(line)

    def finish(self):
        driver = self.start("finish")
        try:
            out, err = driver.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            driver.kill()
            out, err = driver.communicate()
            raise Failure("it does not come to an end: "
                          + out.decode()[-2000:])
        expect(driver.returncode == 0, err.decode())
        jobs, records, events = {}, [], []
        for line in out.decode().splitlines():
            word, _, rest = line.partition(" ")
            if word == "job":
                job = json.loads(rest)
                jobs[job["InstanceID"]] = job
            elif word == "record":
                records.append(json.loads(rest))
            elif word == "event":
                events.append(json.loads(rest))
            else:
                self.note(line)
        return jobs, records, events

    def judge_jobs(self, jobs, records):
        for job in self.acknowledged:
            expect(job in jobs, f"{job} was acknowledged and is gone")
        for job, state in self.done.items():
            expect(jobs[job]["JobState"] == state,
                   f"{job} was told to be {state} and is "
                   f"{jobs[job]['JobState']}")
        runs = {}
        for record in records:
            runs.setdefault(record["InstanceID"], []).append(record)
        for job, row in jobs.items():
            its = runs.get(job, [])
            expect(len(its) <= 1, f"{job} has {len(its)} records of its run")
            expect(row["run_number"] == len(its),
                   f"{job} has {row['run_number']} runs and {len(its)} records")
            if row["JobState"] in WELL:
                expect(its and its[0]["JobState"] == row["JobState"],
                       f"{job}: its record does not say {row['JobState']}")

    def judge_points(self, jobs):
        owners = {}
        for n in (1, 2):
            directory = f"{self.top}/out{n}"
            for name in sorted(os.listdir(directory)
                               if os.path.isdir(directory) else []):
                path = os.path.join(directory, name, "manifest.json")
                if name.startswith(".") or not os.path.exists(path):
                    continue
                with open(path, encoding="utf-8") as file:
                    manifest = json.load(file)
                owner = manifest["InstanceID"]
                expect(owner not in owners, f"{owner} has two points")
                owners[owner] = manifest["ReferencePointGroupId"]
            index = os.path.join(directory, ".cairn.index")
            if os.path.exists(index):
                with open(index, encoding="utf-8") as file:
                    for marker in json.load(file).get("markers", []):
                        owner = marker["InstanceID"]
                        expect(owner not in owners, f"{owner} has two points")
                        owners[owner] = marker["ReferencePointGroupId"]
        for job, row in jobs.items():
            if row["Name"] == "export" and row["JobState"] in WELL:
                expect(owners.get(job) == row["ReferencePointGroupId"],
                       f"{job} completed; its point is {owners.get(job)}, it "
                       f"says {row['ReferencePointGroupId']}")

    def judge_events(self, jobs, events):
        states, submitted = {}, set()
        for before, event in zip(events, events[1:]):
            expect(event["sequence"] == before["sequence"] + 1,
                   f"events {before['sequence']} and {event['sequence']}")
        expect(events[0]["sequence"] == 1, "the first event is not there")
        for event in events:
            job = event["InstanceID"]
            if event["name"] == "Submitted":
                expect(job not in submitted, f"{job} was submitted twice")
                submitted.add(job)
                states[job] = "New"
            elif event["name"] == "JobState":
                expect(states.get(job) == event["PreviousJobState"],
                       f"{job}: {event['PreviousJobState']} -> "
                       f"{event['JobState']}, but it was {states.get(job)}")
                expect(event["JobState"] in CHANGES[states[job]],
                       f"{job}: {states[job]} -> {event['JobState']}")
                states[job] = event["JobState"]
        for job, row in jobs.items():
            expect(states.get(job) == row["JobState"],
                   f"{job}: the events end with {states.get(job)}, it is "
                   f"{row['JobState']}")

    def judge_files(self):
        out = subprocess.run(["sqlite3", self.store, "PRAGMA integrity_check"],
                             capture_output=True, text=True, check=False)
        expect(out.stdout == "ok\n", out.stdout + out.stderr)
        for n in (1, 2):
            directory = f"{self.top}/out{n}"
            if not os.path.isdir(directory):
                continue
            out = subprocess.run([CAIRN, "points", directory, "--json"],
                                 capture_output=True, text=True, check=False)
            points = [json.loads(line) for line in out.stdout.splitlines()]
            points = [p for p in points if p.get("kind") == "export"]
            if not points:
                continue
            out = subprocess.run([CAIRN, "verify", directory],
                                 capture_output=True, text=True, check=False)
            expect(out.returncode == 0, out.stdout + out.stderr)
            last = points[-1]["directory"]
            for base, _, names in os.walk(last):
                for name in names:
                    if not name.endswith(".qcow2"):
                        continue
                    out = subprocess.run(
                        ["qemu-img", "compare", "-f", "qcow2", "-F", "raw",
                         os.path.join(base, name), f"{self.top}/disk{n}.raw"],
                        capture_output=True, text=True, check=False)
                    expect(out.returncode == 0, out.stdout + out.stderr)

    def run(self, kills):
        for _ in range(kills):
            self.kill_one()
        jobs, records, events = self.finish()
        self.judge_jobs(jobs, records)
        self.judge_points(jobs)
        self.judge_events(jobs, events)
        self.judge_files()
        return len(jobs)


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int,
                        default=int(os.environ.get("CAIRN_SEED", "1")))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    options = parser.parse_args()
    if options.help:
        print(__doc__)
        return 0
    seconds = options.seconds or float(os.environ.get("CAIRN_SECONDS", "10"))
    end = time.monotonic() + seconds
    kills = jobs = number = failed = 0
    while failed == 0 and (kills < options.kills if options.kills
                           else number == 0 or time.monotonic() < end):
        number += 1
        this = Round(options.seed * 100000 + number)
        wanted = min(KILLS_A_ROUND, options.kills - kills) \
            if options.kills else KILLS_A_ROUND
        try:
            jobs += this.run(wanted)
        except Failure as failure:
            failed = 1
            print(f"not ok {number} - round {number} (seed {options.seed})")
            for line in str(failure).splitlines():
                print(f"# {line}")
        else:
            print(f"ok {number} - round {number}", flush=True)
        kills += this.kills
        if failed and options.keep:
            print(f"# {this.top}")
        else:
            shutil.rmtree(this.top, ignore_errors=True)
    print(f"# ran {kills} kills of an engine with {jobs} jobs "
          f"(seed {options.seed})")
    print(f"1..{number}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
