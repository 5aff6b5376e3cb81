#!/usr/bin/env python3
"""How long one request at the control socket takes, there and back.

    tests/bench/control.py [--requests N]

`cairn serve` with a store of 100 jobs, one client, one request after the other:
hello (the least there is), show (a job), a change that is committed (set), eval.
Beside them, in the same run and in turn: an echo of the same bytes by a process
that does nothing else (Python), which is what two context switches and a socket
cost here, and socat's echo. Medians and 99th percentiles, in microseconds.
"""
import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get("CAIRN_BUILD", os.path.join(TOP, "build"))
CAIRN = os.path.join(BUILD, "bin", "cairn")
ROUNDS = 10


def connect(path, process):
    end = time.monotonic() + 20
    while True:
        try:
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
            return s
        except OSError:
            if time.monotonic() > end or process.poll() is not None:
                sys.exit(f"control.py: nothing answers at {path}")
            time.sleep(0.02)


def echo(path):
    """A child that sends back whatever comes."""
    code = """
import socket, sys
l = socket.socket(socket.AF_UNIX)
l.bind(sys.argv[1])
l.listen()
s, _ = l.accept()
while True:
    data = s.recv(65536)
    if not data:
        break
    s.sendall(data)
"""
    return subprocess.Popen([sys.executable, "-c", code, path])


class Line:
    def __init__(self, s):
        self.socket, self.buffer = s, b""

    def ask(self, line):
        began = time.perf_counter()
        self.socket.sendall(line)
        while b"\n" not in self.buffer:
            piece = self.socket.recv(65536)
            if not piece:
                sys.exit("control.py: the connection was closed")
            self.buffer += piece
        took = time.perf_counter() - began
        answer, self.buffer = self.buffer.split(b"\n", 1)
        return answer, took * 1e6


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    options = parser.parse_args()
    top = tempfile.mkdtemp(prefix="cairn-control-")
    processes = []
    try:
        path = os.path.join(top, "run", "s")
        service = subprocess.Popen(
            [CAIRN, "serve", "--socket", path, "--store",
             os.path.join(top, "cairn.db")], stderr=subprocess.DEVNULL,
            env=dict(os.environ, XDG_CONFIG_HOME=top))
        processes.append(service)
        cairn = Line(connect(path, service))
        processes.append(echo(os.path.join(top, "python")))
        python = Line(connect(os.path.join(top, "python"), processes[-1]))
        lines = {}
        if shutil.which("socat"):
            other = os.path.join(top, "socat")
            processes.append(subprocess.Popen(
                ["socat", f"UNIX-LISTEN:{other}", "PIPE"]))
            lines["echo, socat"] = (Line(connect(other, processes[-1])), 60)

        def request(**members):
            return json.dumps(dict({"id": 1}, **members)).encode() + b"\n"

        made, _ = cairn.ask(request(eval="for i = 1, 100 do job = engine:submit"
                                    " { Name = 'n', held = true, wait = false,"
                                    " verify = { directory = '/srv/none' } } end"
                                    " return job.InstanceID"))
        job = json.loads(json.loads(made)["result"]["values"][0])
        hello = request(call="hello")
        lines["echo, Python"] = (python, hello, options.requests)
        if "echo, socat" in lines:
            lines["echo, socat"] = (lines["echo, socat"][0], hello,
                                    options.requests)
        lines["hello"] = (cairn, hello, options.requests)
        lines["show"] = (cairn, request(call="show", arguments={"job": job}),
                         options.requests)
        lines["eval 1 + 1"] = (cairn, request(eval="1 + 1"), options.requests)
        lines["eval engine:job(id).JobState"] = (
            cairn, request(eval=f"engine:job '{job}'.JobState"),
            options.requests)
        lines["set, committed"] = (
            cairn, request(call="set", arguments={
                "job": job, "properties": {"Priority": 5}}),
            options.requests // 10)
        times = {name: [] for name in lines}
        for _ in range(ROUNDS):
            for name, (line, text, count) in lines.items():
                for _ in range(count // ROUNDS):
                    answer, took = line.ask(text)
                    if b'"error"' in answer:
                        sys.exit(f"control.py: {name}: {answer.decode()}")
                    times[name].append(took)
        base = statistics.median(times["echo, Python"])
        print(f"{'':32} {'median':>9} {'99 %':>9} {'to echo':>8}")
        for name, list_ in times.items():
            list_.sort()
            median = statistics.median(list_)
            print(f"{name:32} {median:6.1f} us {list_[len(list_) * 99 // 100]:6.1f}"
                  f" us {median / base:7.1f}x")
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
