"""Programs under measurement, and what the kernel says of them."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

START_SECS = 20


class Program:
    """A program in a session of its own. Everything that it starts is counted with it."""

    def __init__(self, name, command, port, folder, env=None):
        self.name = name
        self.log = Path(folder) / f"{name}.log"
        if port_open(port):
            raise RuntimeError(f"something else listens on port {port}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECS
        while not port_open(port):
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"{name} did not start:\n{self.log.read_text()}")
            time.sleep(0.02)

    def pids(self):
        """Its processes: all of its session."""
        return [pid for pid, fields in processes() if fields[3] == str(self.process.pid)]

    def cpu_us(self):
        """CPU time so far of all its processes, user and kernel, in microseconds.

        From each process's CPU clock (`clock_getcpuclockid` makes its number like this), since the ticks in its stat are 10 ms long.
        """
        return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in self.pids()) / 1000

    def rss_kib(self):
        """Resident memory of all its processes, in KiB."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def processes():
    """(pid, the fields of its stat after the name). Field 3 there is the session."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            yield int(entry), text.rpartition(")")[2].split()


def port_open(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def machine():
    """What the figures were taken on, in one line."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown CPU",
    )
    kernel = os.uname().release
    return f"{cpu}, {os.cpu_count()} cores, Linux {kernel}"
