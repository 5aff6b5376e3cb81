#!/usr/bin/env python3
"""Durable submits beside other programs: one caller, and 64 at a time, each with
one submit of 300 bytes outstanding that is synced before it is answered.

    tests/bench/store.py [--runs N] [--directory D]

cairn       build/bench/bench_store: a job with its checks and its event
beanstalkd  put, binlog synced each time (-f 0)
redis       LPUSH, appendfsync always (redis-benchmark)
postgresql  INSERT of one row, synchronous_commit (pgbench)

Candidates take turns, N times (default 7); printed are medians, and ratios to
cairn. F is the median of an append of 4 KiB and fdatasync beside it. Servers
listen on sockets in the directory or on loopback, and are ended again. What is
not installed is left out: scripts/setup --bench.
"""
import argparse
import csv
import glob
import io
import os
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BENCH = os.path.join(TOP, "build", "bench", "bench_store")
SECONDS = 2
PAYLOAD = b"x" * 300


class Cairn:
    def __init__(self, directory):
        self.directory = directory

    def measure(self):
        out = subprocess.run([BENCH, self.directory, "one", "many"],
                             capture_output=True, text=True, check=True).stdout
        rates = re.findall(r"^(F|one|many) +([0-9.]+)", out, re.M)
        return {name: float(value) for name, value in rates}

    def end(self):
        pass


def connect(path):
    for _ in range(200):
        try:
            if isinstance(path, int):
                return socket.create_connection(("127.0.0.1", path))
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
            return s
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"store.py: nobody answers at {path}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Beanstalkd:
    def __init__(self, directory):
        self.port = free_port()
        self.process = subprocess.Popen(
            ["beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), "-b",
             directory, "-f", "0"] + (["-u", "root"]
                                      if os.geteuid() == 0 else []))
        connect(self.port).close()

    def rate(self, callers):
        put = b"put 0 0 60 %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)
        selector = selectors.DefaultSelector()
        sockets = [connect(self.port) for _ in range(callers)]
        begin = time.monotonic()
        for s in sockets:
            selector.register(s, selectors.EVENT_READ)
            s.sendall(put)
        count = 0
        while time.monotonic() - begin < SECONDS:
            for key, _ in selector.select(1):
                if not key.fileobj.recv(64).startswith(b"INSERTED"):
                    raise SystemExit("store.py: beanstalkd refused a job")
                count += 1
                key.fileobj.sendall(put)
        took = time.monotonic() - begin
        for s in sockets:
            s.close()
        return count / took

    def measure(self):
        return {"one": self.rate(1), "many": self.rate(64)}

    def end(self):
        self.process.terminate()
        self.process.wait()


class Redis:
    def __init__(self, directory):
        self.socket = os.path.join(directory, "redis.sock")
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", self.socket,
             "--dir", directory, "--appendonly", "yes", "--appendfsync",
             "always", "--save", "", "--loglevel", "warning"],
            stdout=subprocess.DEVNULL)
        connect(self.socket).close()

    def rate(self, callers, count):
        out = subprocess.run(
            ["redis-benchmark", "-s", self.socket, "-c", str(callers), "-n",
             str(count), "-d", str(len(PAYLOAD)), "--csv", "-t", "lpush"],
            capture_output=True, text=True, check=True).stdout
        rows = list(csv.DictReader(io.StringIO(out)))
        return float(rows[0]["rps"])

    def measure(self):
        return {"one": self.rate(1, 10000), "many": self.rate(64, 100000)}

    def end(self):
        self.process.terminate()
        self.process.wait()


class PostgreSQL:
    def __init__(self, directory):
        self.bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.directory = directory
        self.data = os.path.join(directory, "data")
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres")
        self.run(f"{self.bin}/initdb", "-D", self.data, "-A", "trust", "-U",
                 "bench")
        self.process = subprocess.Popen(
            self.words(f"{self.bin}/postgres", "-D", self.data, "-k",
                       directory, "-c", "listen_addresses=", "-c",
                       "max_connections=100"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        connect(os.path.join(directory, ".s.PGSQL.5432")).close()
        for _ in range(100):
            try:
                self.run("psql", "-h", directory, "-U", "bench", "postgres",
                         "-c", "CREATE TABLE job (id bigserial PRIMARY KEY, "
                         "body text)")
                break
            except subprocess.CalledProcessError:
                time.sleep(0.1)
        self.script = os.path.join(directory, "insert.sql")
        with open(self.script, "w", encoding="ascii") as file:
            file.write(f"INSERT INTO job (body) VALUES ('{PAYLOAD.decode()}');")
        os.chmod(self.script, 0o644)

    def words(self, *words):
        return (["runuser", "-u", "postgres", "--"] if os.geteuid() == 0
                else []) + list(words)

    def run(self, *words):
        return subprocess.run(self.words(*words), capture_output=True,
                              text=True, check=True, cwd="/").stdout

    def rate(self, callers):
        out = self.run(f"{self.bin}/pgbench", "-h", self.directory, "-U",
                       "bench", "-n", "-M", "prepared", "-f", self.script,
                       "-c", str(callers), "-T", str(SECONDS), "postgres")
        found = re.search(r"tps = ([0-9.]+)", out)
        if not found:
            raise SystemExit("store.py: pgbench: " + out)
        return float(found.group(1))

    def measure(self):
        return {"one": self.rate(1), "many": self.rate(64)}

    def end(self):
        self.run(f"{self.bin}/pg_ctl", "-D", self.data, "stop", "-m", "fast")
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse
                                     .RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--directory", help="default: a temporary one")
    options = parser.parse_args()
    top = tempfile.mkdtemp(prefix="cairn-bench-", dir=options.directory)
    os.chmod(top, 0o755)
    candidates = {}
    try:
        for name, kind, program in (
                ("cairn", Cairn, BENCH),
                ("beanstalkd", Beanstalkd, shutil.which("beanstalkd")),
                ("redis", Redis, shutil.which("redis-benchmark")),
                ("postgresql", PostgreSQL,
                 (glob.glob("/usr/lib/postgresql/*/bin/pgbench") or [None])[0])):
            if not program or not os.path.exists(program):
                print(f"{name}: not installed")
                continue
            directory = os.path.join(top, name)
            os.mkdir(directory)
            candidates[name] = kind(directory)
        results = {name: [] for name in candidates}
        for _ in range(options.runs):
            for name, candidate in candidates.items():
                results[name].append(candidate.measure())
    finally:
        for candidate in candidates.values():
            candidate.end()
        shutil.rmtree(top, ignore_errors=True)
    f = statistics.median(r["F"] for r in results["cairn"])
    print(f"F {f:.3f} ms, medians of {options.runs} runs")
    ours = {key: statistics.median(r[key] for r in results["cairn"])
            for key in ("one", "many")}
    for name, rows in results.items():
        line = f"{name:12}"
        for key, label in (("one", "one caller"), ("many", "64 callers")):
            value = statistics.median(r[key] for r in rows)
            line += f"  {label} {value:9.0f}/s ({value / ours[key]:.2f})"
        print(line)
    print(f"cairn, one caller: {ours['one'] * f / 1e3:.2f} x 1/F")
    return 0


if __name__ == "__main__":
    sys.exit(main())
