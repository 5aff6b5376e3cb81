#!/usr/bin/env python3
"""The calendar against an oracle: random schedules in random zones, their next
runs compared with what Python's zoneinfo makes of them.

    tests/random/schedule.py [--seconds N | --cases N] [--seed S]

The oracle knows the rule and not how the engine evaluates it: it looks at one
day after another whether it is a date of the schedule, and steps through the
instants around that day to see when the local clock gets there. Half of the
cases lie at a change of the zone's clock. First, every zone of the database is
compared once at one of its changes.

  --seconds N  go on for N seconds (default: CAIRN_SECONDS, or 10)
  --cases N    compare N schedules, however long it takes
  --seed S     default: CAIRN_SEED, or 1

Output is TAP. A schedule that differs is printed as JSON with both lists.
"""
import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import time
import zoneinfo

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get("CAIRN_BUILD") or os.path.join(TOP, "build")

DRIVER = r"""
package.path = BUILD .. "/share/lua/5.4/?.lua;" .. package.path
package.cpath = BUILD .. "/lib/lua/5.4/?.so;" .. package.cpath
local cairn = require "cairn"
for line in io.lines() do
  local case = cairn.json_decode(line)
  local ok, schedule = pcall(cairn.schedule, case.schedule)
  print(cairn.json_encode(ok and { runs = schedule:next(case.n, case.after) }
    or { refused = tostring(schedule) }))
end
"""

SECOND = 10**6
HOUR = 3600 * SECOND
DAY = 24 * HOUR
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
ORDINAL = datetime.date(1970, 1, 1).toordinal()
YEARS_LOOKED_AT = 12


def from_us(us):
    return EPOCH + datetime.timedelta(microseconds=us)


def us_of(year, month=1, day=1):
    return (datetime.date(year, month, day).toordinal() - ORDINAL) * DAY


class Clock:
    """A zone's clock; instants and readings in microseconds."""

    def __init__(self, name):
        self.zone = zoneinfo.ZoneInfo(name)

    def offset(self, t):
        delta = from_us(t).astimezone(self.zone).utcoffset()
        return (delta.days * 86400 + delta.seconds) * SECOND

    def change_between(self, a, b):
        """The instant in (a, b] from which the offset is another than at a."""
        before = self.offset(a)
        while b - a > 1:
            middle = (a + b) // 2
            if self.offset(middle) == before:
                a = middle
            else:
                b = middle
        return b

    def pieces(self, a, b, step=HOUR):
        """Stretches of one offset: (from, to, offset)."""
        start, t, offset = a, a, self.offset(a)
        while t < b:
            after = self.offset(t + step)
            if after != offset:
                change = self.change_between(t, t + step)
                yield start, change, offset
                start, offset = change, after
            t += step
        yield start, t, offset

    def find(self, reading):
        """When the clock first gets to a reading, all instants at which it
        shows it, and the offset just before the first."""
        first, shown, before = None, [], None
        previous = None
        for start, end, offset in self.pieces(reading - 27 * HOUR,
                                              reading + 54 * HOUR):
            if first is None and end + offset > reading:
                first = max(start, reading - offset)
                before = offset if first > start else previous
            if start <= reading - offset < end:
                shown.append(reading - offset)
            previous = offset
        return first, shown, before


def weekday(day):
    """1 is Sunday, as RunDayOfWeek has it; days since 1970-01-01."""
    return datetime.date.fromordinal(day + ORDINAL).isoweekday() % 7 + 1


def is_anchor(day, s):
    date = datetime.date.fromordinal(day + ORDINAL)
    if s.get("RunMonth") is not None and date.month != s["RunMonth"] + 1:
        return False
    if s["RunDay"] > 0:
        return date.day == s["RunDay"]
    following = date.replace(day=28) + datetime.timedelta(days=4)
    left = (following.replace(day=1) - date).days
    return left == -s["RunDay"]


def is_date(day, s):
    wanted = s.get("RunDayOfWeek") or 0
    if wanted and weekday(day) != abs(wanted):
        return False
    if not s.get("RunDay"):
        date = datetime.date.fromordinal(day + ORDINAL)
        return s.get("RunMonth") is None or date.month == s["RunMonth"] + 1
    if not wanted:
        return is_anchor(day, s)
    near = range(day - 6, day + 1) if wanted > 0 else range(day, day + 7)
    return any(is_anchor(a, s) for a in near)


def instants(found, reading, s):
    first, shown, before = found
    if not shown or shown[0] != first:
        how = s.get("gap", "first")
        return "gap", {"first": [first], "skip": [],
                       "shift": [reading - before]}[how]
    how = s.get("overlap", "first")
    return "overlap" if len(shown) > 1 else "normal", {
        "first": shown[:1], "last": shown[-1:],
        "both": shown[:1] + shown[1:][-1:]}[how]


def oracle(s, start_us, zone, after, n):
    """The next n runs as (instant, kind, nominal), as far as some years show
    them, and whether they show all that was asked for."""
    clock = Clock("UTC" if s.get("LocalOrUtcTime") == 2 else zone)
    runs = {}
    shift = start_us // DAY
    first = after // DAY - shift - 6
    for day in range(first, first + YEARS_LOOKED_AT * 366):
        reading = day * DAY + start_us
        done = sorted(t for t in runs if t > after)
        if len(done) >= n and reading > done[n - 1] + 6 * DAY:
            break
        if not is_date(day, s):
            continue
        kind, at = instants(clock.find(reading), reading, s)
        for t in at:
            runs.setdefault(t, (t, kind, reading))
    return [runs[t] for t in sorted(runs) if t > after][:n]


# ---- random cases ---------------------------------------------------------------

def random_change(rng, clock, year):
    """An instant at which the clock is changed, in that year or soon after."""
    for start in range(0, 400, 20):
        a = us_of(year) + start * DAY
        if clock.offset(a) != clock.offset(a + 20 * DAY):
            return clock.change_between(a, a + 20 * DAY)
    return None


def interval(us):
    seconds, fraction = divmod(us, SECOND)
    return "%08d%02d%02d%02d.%06d:000" % (
        seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60,
        seconds % 60, fraction)


def timestamp(us):
    return from_us(us).strftime("%4Y%m%d%H%M%S.%f+000")


def random_case(rng, zones, zone=None):
    zone = zone or rng.choice(zones)
    clock = Clock(zone)
    year = rng.choice([rng.randint(1910, 2037), rng.randint(1970, 2037),
                       rng.randint(2038, 2450), rng.randint(2450, 9000)])
    s = {}
    if rng.random() < 0.4:
        s["RunMonth"] = rng.randint(0, 11)
    if rng.random() < 0.5:
        s["RunDay"] = rng.choice([rng.randint(-31, 31), 1, -1, 29, 30, 31])
    if rng.random() < 0.5:
        s["RunDayOfWeek"] = rng.randint(-7, 7)
    start = rng.randrange(0, DAY, 15 * 60 * SECOND)
    after = us_of(year) + rng.randrange(366 * DAY)
    change = random_change(rng, clock, year) if rng.random() < 0.7 else None
    if change is not None:
        after = change - rng.choice([
            rng.randrange(3 * DAY), rng.randrange(DAY), rng.randrange(2 * HOUR),
            1, 0, -1, -rng.randrange(2 * HOUR)])
        local = change + clock.offset(change - rng.randint(0, 1))
        start = (local + rng.choice([0, -1, 1, 900 * SECOND, -900 * SECOND,
                                     rng.randrange(-HOUR, HOUR),
                                     rng.randrange(-HOUR, HOUR)])) % DAY
        if rng.random() < 0.7:
            for name in ("RunMonth", "RunDay", "RunDayOfWeek"):
                s.pop(name, None)
    if rng.random() < 0.2:
        start += rng.randint(1, 3) * DAY
    if rng.random() < 0.05:
        start = 0
    if rng.random() < 0.9 or not s:
        s["RunStartInterval"] = interval(start)
    else:
        start = 0
    if rng.random() < 0.4:
        s["gap"] = rng.choice(["first", "shift", "skip"])
        s["overlap"] = rng.choice(["first", "last", "both"])
    if rng.random() < 0.2:
        s["LocalOrUtcTime"] = rng.randint(1, 2)
    n = rng.randint(1, 4)
    until = None
    if rng.random() < 0.1:
        s["JobRunTimes"] = rng.randint(0, 5)
    if rng.random() < 0.1:
        until = after + rng.randrange(100 * DAY)
        s["UntilTime"] = timestamp(until)
    s["zone"] = zone
    return {"schedule": s, "n": n, "after": timestamp(after),
            "start_us": start, "after_us": after, "until_us": until}


def expected(case):
    s = case["schedule"]
    runs = oracle(s, case["start_us"], s["zone"], case["after_us"], case["n"])
    if case["until_us"] is not None:
        runs = [r for r in runs if r[0] <= case["until_us"]]
    return runs[:s.get("JobRunTimes") or None]


def nominal_text(us):
    text = from_us(us).strftime("%4Y-%m-%d %H:%M:%S.%f")
    return text[:-7] if text.endswith(".000000") else text


def differs(case, answer):
    """None, or what the oracle says instead."""
    s = case["schedule"]
    if "refused" in answer:
        now = int(time.time() * SECOND)
        if oracle(s, case["start_us"], s["zone"], now, 1):
            return "not refused"
        return None
    wanted = expected(case)
    got = [(r["unix_us"], r["kind"], r["nominal"]) for r in answer["runs"]]
    wanted = [(t, kind, nominal_text(n)) for t, kind, n in wanted]
    limit = case["after_us"] + (YEARS_LOOKED_AT - 1) * 365 * DAY
    if got[:len(wanted)] == wanted and all(
            t > limit for t, _, _ in got[len(wanted):]):
        return None
    return wanted


def compare(cases, totals):
    text = "".join(json.dumps({k: c[k] for k in ("schedule", "n", "after")})
                   + "\n" for c in cases)
    done = subprocess.run(
        ["lua5.4", "-e", "local BUILD = %s\n%s" % (json.dumps(BUILD), DRIVER)],
        input=text, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != len(cases):
        return ["lua5.4 ended with %d: %s" % (done.returncode, done.stderr)]
    wrong = []
    for case, line in zip(cases, lines):
        answer = json.loads(line)
        other = differs(case, answer)
        totals["refused" if "refused" in answer else "runs"] += len(
            answer.get("runs") or [1])
        for run in answer.get("runs") or []:
            totals[run["kind"]] += 1
        if other is not None:
            wrong.append("%s\n#   engine %s\n#   oracle %s" % (
                json.dumps(case), line, other))
    return wrong


def result(number, text, wrong):
    print("%s %d - %s" % ("not ok" if wrong else "ok", number, text))
    for line in wrong[:10]:
        print("#   " + line)
    sys.stdout.flush()
    return not wrong


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
        print("1..1\nok 1 - schedules # SKIP no zone database")
        return 0
    rng = random.Random("schedule %s" % seed)
    totals = dict.fromkeys(["runs", "normal", "gap", "overlap", "refused"], 0)
    end = time.monotonic() + seconds
    is_good = result(1, "every zone is read as Python reads it", compare(
        [random_case(rng, zones, zone) for zone in zones], totals))
    count, wrong = len(zones), []
    while not wrong and (count - len(zones) < options.cases if options.cases
                         else time.monotonic() < end):
        batch = [random_case(rng, zones) for _ in range(200)]
        wrong = compare(batch, totals)
        count += len(batch)
    is_good &= result(2, "random schedules run when the oracle says", wrong)
    print("1..2")
    print("# ran %d schedules in %d zones: %d runs, of these %d in a gap and "
          "%d in an overlap; %d refused" % (
              count, len(zones), totals["runs"], totals["gap"],
              totals["overlap"], totals["refused"]))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
