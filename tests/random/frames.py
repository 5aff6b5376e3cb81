#!/usr/bin/env python3
"""Whatever is sent to the control socket, the service lives and answers others.

    tests/random/frames.py [--seconds N | --frames N] [--seed S] [--keep]

`cairn serve` is started on a store of its own. Up to 40 clients at once send it
frames: whole and partial, oversized, binary, valid JSON of the wrong shape,
mutated requests, calls with random arguments, chunks of Lua, text for the
console; in pieces of random size, several in one piece, on connections that are
half closed, reset, never read from, or left open. Meanwhile one client that
behaves asks for something every few milliseconds. Checked:

  * the service lives to the end, and then stops at SIGTERM with exit code 0,
  * the client that behaves is always answered, correctly, within 3 seconds,
  * every line that a JSON client gets is an object with an id and one of result,
    error, output, incomplete, or an event; an id is one that was sent,
  * the service's memory and descriptors are bounded: what they were after the
    first tenth, with some room, and back to it when all clients have gone,
  * the log has no internal error and no traceback of the service's own.

  --seconds N  go on for N seconds (default: CAIRN_SECONDS, or 10)
  --frames N   go on for N frames, however long it takes
  --seed S     default: CAIRN_SEED, or 1
  --keep       keep the directory

A million: tests/random/frames.py --frames 1000000
Output is TAP.
"""
import argparse
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.environ.get("CAIRN_BUILD", os.path.join(TOP, "build"))
CAIRN = os.path.join(BUILD, "bin", "cairn")
CLIENTS = 40
PLACES = 64 # clients that the service admits
LATE_S = 3
LINE_MAX = 1 << 20
# What one client may make the service keep, and 40 of them: 8 MiB of events or
# output, 1 MiB of a line; allocators keep some more.
MEMORY_ROOM = 160 << 20
CALLS = ["hello", "jobs", "show", "why", "history", "events", "changes",
         "queues", "metrics", "policies", "flush", "reload", "start",
         "suspend", "terminate", "resume", "kill", "set", "answer", "delete",
         "backup"]
FIELDS = ["job", "filter", "name", "after", "max", "numbers", "cursor",
          "names", "properties", "clear", "text", "path", "delete"]
CHUNKS = ["1 + 1", "print 'x'", "error 'x'", "for i = 1, 3 do print(i) end",
          "for i = 1,", "return engine:jobs()", "cairn.sleep(0.01)",
          "local t = {} for i = 1, 1000 do t[i] = i end return t",
          "print(('x'):rep(100000))", "error({})", "return nil, false, 0/0",
          "while true do end", "cairn.sleep(1000)", "= =", "\\", "'", "--[[",
          "return setmetatable({}, { __tostring = error })",
          "coroutine.wrap(function() error 'y' end)()",
          "engine:submit { Name = 'n', held = true, wait = false, "
          "verify = { directory = '/srv/none' } }",
          "return ('x'):rep(3000000)", "print('\\255\\0')"]


class Failure(Exception):
    pass


class Service:
    def __init__(self, top):
        self.top = top
        self.path = os.path.join(top, "run", "s")
        self.log = open(os.path.join(top, "log"), "wb")
        self.process = subprocess.Popen(
            [CAIRN, "serve", "--socket", self.path, "--store",
             os.path.join(top, "cairn.db"), "--log", "json"],
            stdin=subprocess.DEVNULL, stderr=self.log,
            env=dict(os.environ, HOME=top, XDG_CONFIG_HOME=top))
        end = time.monotonic() + 20
        while True:
            try:
                self.connect().close()
                break
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise Failure("the service does not start: " + self.said())
                time.sleep(0.02)

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(LATE_S)
        s.connect(self.path)
        return s

    def said(self):
        with open(os.path.join(self.top, "log"), errors="replace") as log:
            return log.read()

    def memory(self):
        with open(f"/proc/{self.process.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Judge:
    """The client that behaves."""

    def __init__(self, service):
        self.service, self.count, self.slowest = service, 0, 0.0
        self.socket = service.connect()
        self.buffer = b""
        self.ids = []
        self.check()

    def call(self, name, arguments=None):
        self.count += 1
        request = {"id": self.count, "call": name}
        if arguments is not None:
            request["arguments"] = arguments
        began = time.monotonic()
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self.buffer:
                piece = self.socket.recv(1 << 16)
                if not piece:
                    raise Failure("the client that behaves was closed")
                self.buffer += piece
        except socket.timeout:
            raise Failure(f"no answer to {name} within {LATE_S} s")
        self.slowest = max(self.slowest, time.monotonic() - began)
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer = json.loads(line)
        if answer.get("id") != self.count or "error" in answer:
            raise Failure(f"{request} was answered {line[:300]}")
        return answer["result"]

    def check(self):
        hello = self.call("hello")
        if hello["level"] != "admin" or hello["pid"] != self.service.process.pid:
            raise Failure(f"hello: {hello}")
        page = self.call("jobs", {"max": 20})
        self.ids = [job["InstanceID"] for job in page["jobs"]]


class Frames:
    def __init__(self, rng, judge):
        self.random, self.judge = rng, judge

    def value(self, depth=0):
        r = self.random
        kind = r.randrange(12 if depth < 4 else 8)
        if kind == 0:
            return None
        if kind == 1:
            return r.random() < 0.5
        if kind == 2:
            return r.choice([0, -1, 1, 2**31, 2**53, 2**63 - 1, 1e308, 0.5])
        if kind in (3, 4):
            return r.choice(["", "x", "Running", "é\u2028\U0001f600", "*?*[%",
                             "x" * r.randrange(5000), "\x1b[31m\n\t"])
        if kind in (5, 6) and self.judge.ids:
            return r.choice(self.judge.ids)[:r.choice([50, 12, 9, 6])]
        if kind == 7:
            return "".join(chr(r.randrange(1, 0xd7ff)) for _ in range(20))
        if kind < 10:
            return [self.value(depth + 1) for _ in range(r.randrange(5))]
        return {r.choice(FIELDS + ["JobState", "RunDay", ""]):
                self.value(depth + 1) for _ in range(r.randrange(4))}

    def request(self):
        r = self.random
        request = {"id": r.choice([r.randrange(1000), "a", "é", -1, 2**60])}
        kind = r.randrange(10)
        if kind < 6:
            request["call"] = r.choice(CALLS)
            arguments = {r.choice(FIELDS): self.value()
                         for _ in range(r.randrange(4))}
            if self.judge.ids and r.random() < 0.6:
                arguments["job"] = r.choice(self.judge.ids)
            request["arguments"] = arguments
            if "path" in arguments: # no files all over the machine
                arguments["path"] = "relative"
        elif kind < 8:
            request["eval"] = r.choice(CHUNKS)
        elif kind == 8:
            request["complete"] = r.choice(["engine:jo", "", "x.y.z", "cairn."])
        else:
            request = {"interrupt": r.choice([1, "a", None, {}])}
        return json.dumps(request, ensure_ascii=r.random() < 0.5).encode()

    def frame(self):
        r = self.random
        kind = r.randrange(100)
        if kind < 55:
            return self.request() + b"\n"
        if kind < 70: # mutated
            text = bytearray(self.request())
            for _ in range(r.randrange(1, 6)):
                at = r.randrange(len(text))
                action = r.randrange(3)
                if action == 0:
                    text[at] = r.randrange(256)
                elif action == 1:
                    del text[at:at + r.randrange(1, 8)]
                    text += b" "
                else:
                    text[at:at] = r.randbytes(r.randrange(1, 8))
            return bytes(text) + b"\n"
        if kind < 78:
            return json.dumps(self.value()).encode() + b"\n"
        if kind < 84:
            return r.randbytes(r.randrange(1, 3000))
        if kind < 88:
            return b"\n" * r.randrange(1, 2000)
        if kind < 90:
            return b"{" + b"x" * r.choice([LINE_MAX - 2, LINE_MAX - 1, LINE_MAX,
                                           2 * LINE_MAX]) + b"\n"
        if kind < 92:
            return b'{"a":' * r.randrange(1, 100000) + b"\n"
        if kind < 97:
            return r.choice(CHUNKS).encode() + b"\n"
        return self.request() # without its end


class Client:
    """One that does not behave."""

    def __init__(self, service, frames, rng):
        self.random, self.frames = rng, frames
        self.socket = service.connect()
        self.socket.setblocking(False)
        self.left = rng.randrange(1, 40)
        self.out, self.into = b"", b""
        self.is_json = rng.random() < 0.75
        self.is_deaf = rng.random() < 0.15
        self.is_half = rng.random() < 0.2
        self.is_shut = False
        self.sent = 0
        self.stop = time.monotonic() + rng.random() * 1.5
        self.begin = b'{"id":0,"call":"hello"}\n' if self.is_json else \
            rng.choice([b"\n", b"x = 1\n", b" {}\n", b"\0\n"])
        if self.is_json and rng.random() < 0.2:
            self.begin += b'{"id":0,"call":"events"}\n'
        self.out = self.begin

    def fill(self):
        while self.left > 0 and len(self.out) < 65536:
            self.left -= 1
            self.sent += 1
            self.out += self.frames.frame()

    def step(self):
        """Sends and reads something; False when it is over."""
        r = self.random
        self.fill()
        try:
            if self.out:
                size = len(self.out) if r.random() < 0.5 else \
                    r.randrange(1, 200)
                sent = self.socket.send(self.out[:size])
                self.out = self.out[sent:]
            elif self.is_half and not self.is_shut:
                self.socket.shutdown(socket.SHUT_WR)
                self.is_shut = True
        except BlockingIOError:
            pass
        except OSError:
            self.out, self.left = b"", 0
        if not self.is_deaf:
            try:
                for _ in range(8):
                    piece = self.socket.recv(1 << 16)
                    if not piece:
                        return False
                    self.take(piece)
            except BlockingIOError:
                pass
            except OSError:
                return False
        return time.monotonic() < self.stop

    def take(self, piece):
        if not self.is_json:
            return
        self.into += piece
        *lines, self.into = self.into.split(b"\n")
        if len(self.into) > LINE_MAX:
            raise Failure("a line of more than 1 MiB came back")
        for line in lines:
            answer = json.loads(line)
            members = {"result", "error", "output", "incomplete", "event"}
            if len(members & set(answer)) != 1 or \
                    ("event" not in answer and "id" not in answer):
                raise Failure(f"no answer: {line[:300]}")
            error = answer.get("error")
            if error and (error["code"] == "internal"
                          or not error["message"] or "exit" not in error):
                raise Failure(f"an error that says nothing: {line[:500]}")

    def close(self):
        self.socket.close()
        return self.sent


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def run(options):
    rng = random.Random(options.seed)
    top = tempfile.mkdtemp(prefix="cairn-frames-")
    service, clients, frames_sent, made = Service(top), [], 0, 0
    try:
        judge = Judge(service)
        frames = Frames(rng, judge)
        at_first, most, most_fds = service.memory(), 0, 0
        fds_at_first = service.descriptors()
        began = looked = time.monotonic()

        def is_over():
            if options.frames:
                return frames_sent >= options.frames
            return time.monotonic() - began >= options.seconds

        while not is_over():
            while len(clients) < CLIENTS and rng.random() < 0.5:
                clients.append(Client(service, frames, rng))
                made += 1
            for client in clients[:]:
                if not client.step():
                    frames_sent += client.close()
                    clients.remove(client)
            if time.monotonic() - looked > 0.02:
                judge.check()
                looked = time.monotonic()
                most = max(most, service.memory())
                most_fds = max(most_fds, service.descriptors())
            if clients:
                select.select([c.socket for c in clients], [], [], 0.001)
            if service.process.poll() is not None:
                raise Failure(f"the service ended with "
                              f"{service.process.returncode}")
        for client in clients:
            frames_sent += client.close()
        print(f"# ran {frames_sent} frames of {made} clients, "
              f"{judge.count} calls of one that behaves, the slowest "
              f"{judge.slowest * 1000:.1f} ms; memory {at_first >> 20} MiB, at "
              f"most {most >> 20}, {most_fds} descriptors")
        if most > at_first + MEMORY_ROOM:
            raise Failure(f"its memory has grown from {at_first} to {most}")
        # those that are gone, and those told that there is no room, for a moment
        if most_fds > fds_at_first + PLACES + CLIENTS:
            raise Failure(f"it has had {most_fds} descriptors")
        if not wait_until(lambda: service.descriptors() <= fds_at_first + 1,
                          10):
            raise Failure(f"it keeps {service.descriptors()} descriptors, "
                          f"had {fds_at_first}")
        judge.check()
        service.process.send_signal(signal.SIGTERM)
        try:
            code = service.process.wait(40)
        except subprocess.TimeoutExpired:
            raise Failure("it does not stop")
        if code != 0:
            raise Failure(f"it stopped with exit code {code}")
        for line in service.said().rstrip("\n").split("\n"):
            entry = json.loads(line)
            if "job" in entry: # what became of a job that was started
                continue
            if entry["level"] == "error" or (
                    "stack traceback" in entry["message"]
                    and not entry["message"].startswith("background task")):
                raise Failure("it logged: " + entry["message"])
    except Failure as why:
        tail = service.said()[-2000:]
        print(f"not ok 1 - seed {options.seed}: {why}")
        print("# the end of its log:\n# " + tail.replace("\n", "\n# "))
        return 1
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        if options.keep:
            print(f"# {top}")
        else:
            shutil.rmtree(top, ignore_errors=True)
    print("ok 1 - the service lives, and answers who behaves")
    return 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--seed", type=int,
                        default=int(os.environ.get("CAIRN_SEED", "1")))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = float(os.environ.get("CAIRN_SECONDS", "10"))
    print("1..1")
    print(f"# seed {options.seed}", flush=True)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
