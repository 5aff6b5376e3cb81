"""Runs a command on a pseudo-terminal and plays a script against it.

usage: terminal.py STEPS COMMAND [ARGUMENT...]

STEPS is a JSON array; each step is an object with one of
  {"expect": REGEX}          wait until the output after the last match has it
  {"send": TEXT}             type
  {"resize": [LINES, COLUMNS]}
  {"signal": NAME}           send a signal to the command
  {"read": N}                wait for N more bytes of output
  {"stopped": true}          wait until the command is stopped (Ctrl-Z)
  {"run": [PROGRAM, ...]}    run another program to its end
  {"pause": SECONDS}         read nothing for so long
Every wait ends after 20 seconds. Prints a JSON object: output, status (exit
code, or minus the signal), missed (the first step that was not met), mode
(whether the terminal was left with echo and line editing on).
"""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

WAIT_S = 20


def main():
    steps = json.loads(sys.argv[1])
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.execvp(sys.argv[2], sys.argv[2:])
    output, seen, missed, is_open = b"", 0, None, True

    def read(deadline):
        """More output, or False when there is none in time or at all."""
        nonlocal output, is_open
        left = deadline - time.monotonic()
        if not is_open or left <= 0 or not select.select([fd], [], [], left)[0]:
            return False
        try:
            data = os.read(fd, 65536)
        except OSError:
            data = b""
        if not data:
            is_open = False
            return False
        output += data
        return True

    for step in steps:
        deadline = time.monotonic() + WAIT_S
        if "expect" in step:
            pattern = re.compile(step["expect"].encode(), re.S)
            match = pattern.search(output, seen)
            while not match and read(deadline):
                match = pattern.search(output, seen)
            if not match:
                missed = step
                break
            seen = match.end()
        elif "read" in step:
            want = len(output) + step["read"]
            while len(output) < want and read(deadline):
                pass
            if len(output) < want:
                missed = step
                break
        elif "stopped" in step:
            flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            while (os.waitid(os.P_PID, pid, flags) is None
                   and time.monotonic() < deadline):
                read(min(deadline, time.monotonic() + 0.01))
            if os.waitid(os.P_PID, pid, flags) is None:
                missed = step
                break
        elif "send" in step:
            data = step["send"].encode()
            # what is typed may be more than fits while nobody takes the output
            while data and is_open and time.monotonic() < deadline:
                readable, writable, _ = select.select([fd], [fd], [], WAIT_S)
                if readable:
                    read(deadline)
                if writable:
                    data = data[os.write(fd, data[:512]):]
        elif "resize" in step:
            fcntl.ioctl(fd, termios.TIOCSWINSZ,
                        struct.pack("HHHH", *step["resize"], 0, 0))
        elif "run" in step:
            subprocess.run(step["run"], timeout=WAIT_S, check=False,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        elif "pause" in step:
            time.sleep(step["pause"])
        elif "signal" in step:
            os.kill(pid, getattr(signal, "SIG" + step["signal"]))
    deadline = time.monotonic() + WAIT_S
    while read(deadline):
        pass
    mode = None
    try:
        mode = termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO) == (
            termios.ICANON | termios.ECHO)
    except termios.error:
        pass
    if is_open:
        missed = missed or {"expect": "the end of the command"}
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"output": output.decode("utf-8", "backslashreplace"),
                      "status": status, "missed": missed, "mode": mode}))


main()
