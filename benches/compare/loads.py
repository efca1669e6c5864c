"""Loads: each asks something of a contender for some seconds, and says what was done and what CPU time that took.

A load is a function of a `Target`, the seconds and the connections. It returns `done` (requests, events, frames), `secs`, `cpu_us`
of all that was done, and where there are answers to wait for p50_us and p99_us.
"""

import base64
import json
import os
import select
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from live import CLIENT_FRAME, EVENT_STREAMS, MARK, SERVER_FRAME

HERE = Path(__file__).parent
RATE_CONNECTIONS = 128
SLICE_SECS = 0.5
WARM_SECS = 0.5
SILENCE_SECS = 10


@dataclass(frozen=True)
class Target:
    """Where a load goes, and the clock of the contender's CPU time."""

    scheme: str
    port: int
    cpu_us: Callable[[], float]


def wrk(path, *kind, at_least_bytes=0):
    """As many requests as there is time for. Every answer is a success, and at least as long as it should be."""

    def run(target, secs, connections):
        url = f"{target.scheme}://127.0.0.1:{target.port}{path}"

        def load(some_secs):
            command = ["wrk", "-t2", f"-c{connections}", f"-d{some_secs}s", "--timeout", f"{SILENCE_SECS}s"]
            before_us = target.cpu_us()
            result = json.loads(output([*command, "-s", str(HERE / "load.lua"), url, "--", *kind]).splitlines()[-1])
            if result["errors"] or result["bytes"] < result["requests"] * at_least_bytes:
                raise RuntimeError(f"not every request was answered as it should be: {result}")
            return {**result, "done": result["requests"], "cpu_us": target.cpu_us() - before_us}

        warm = load(1)
        return {**load(secs), "warm": warm["done"]}

    return run


def half_rate(path, provider_port, client):
    """Half the requests a second that the contender can take, and the same rate at the provider itself: what p99 is added."""
    saturate = wrk(path, "post", "160")

    def run(target, secs, connections):
        most = saturate(target, max(1, secs // 2), connections)
        per_sec = most["done"] / most["secs"] / 2

        def at(port):
            return json.loads(output([str(client), str(port), path, str(per_sec), str(SLICE_SECS), str(RATE_CONNECTIONS)]))

        # In slices, now here, now there: what else the machine does hits both, and most slices not at all.
        through, direct, cpu_us = [], [], 0
        for _ in range(round(secs / SLICE_SECS)):
            before_us = target.cpu_us()
            through.append(at(target.port))
            cpu_us += target.cpu_us() - before_us
            direct.append(at(provider_port))
        return {
            "done": sum(one["requests"] for one in through),
            "secs": sum(one["secs"] for one in through),
            "cpu_us": cpu_us,
            "p50_us": statistics.median(one["p50_us"] for one in through),
            "p99_us": statistics.median(one["p99_us"] for one in through),
            "p99_added_us": statistics.median(one["p99_us"] - other["p99_us"] for one, other in zip(through, direct)),
        }

    return run


def events(path):
    """Streams of server-sent events, as the provider paces them: how many arrive."""

    def run(target, secs, _):
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        poll, streams = select.epoll(), {}
        for _ in range(EVENT_STREAMS):
            stream = dial(target.port)
            stream.sendall(request)
            streams[stream.fileno()] = stream
            poll.register(stream, select.EPOLLIN)

        def count_for(some_secs):
            begun, seen, reads = time.monotonic(), 0, 0
            while time.monotonic() < begun + some_secs:
                for fd, _ in wait(poll):
                    seen += received(streams[fd]).count(MARK)
                    reads += 1
            return seen, reads, time.monotonic() - begun

        count_for(WARM_SECS)
        before_us = target.cpu_us()
        seen, reads, took = count_for(secs)
        cpu_us = target.cpu_us() - before_us
        for stream in streams.values():
            stream.close()
        if not seen:
            raise RuntimeError("no event came")
        return {"done": seen, "secs": took, "cpu_us": cpu_us, "events_a_read": seen / reads}

    return run


def frames(path):
    """WebSockets: each sends its next frame when the last one is back."""

    def run(target, secs, connections):
        poll, sockets, missing, sent_at = select.epoll(), {}, {}, {}
        for _ in range(connections):
            one = upgraded(target.port, path)
            sockets[one.fileno()] = one
            poll.register(one, select.EPOLLIN)

        def send(fd):
            missing[fd], sent_at[fd] = len(SERVER_FRAME), time.monotonic_ns()
            sockets[fd].sendall(CLIENT_FRAME)

        def echo_for(some_secs):
            begun, trips = time.monotonic(), []
            while time.monotonic() < begun + some_secs:
                for fd, _ in wait(poll):
                    missing[fd] -= len(received(sockets[fd]))
                    if missing[fd] == 0:
                        trips.append((time.monotonic_ns() - sent_at[fd]) / 1000)
                        send(fd)
            return trips, time.monotonic() - begun

        for fd in sockets:
            send(fd)
        echo_for(WARM_SECS)
        before_us = target.cpu_us()
        trips, took = echo_for(secs)
        cpu_us = target.cpu_us() - before_us
        for one in sockets.values():
            one.close()
        p = statistics.quantiles(trips, n=100)
        return {"done": len(trips), "secs": took, "cpu_us": cpu_us, "p50_us": p[49], "p99_us": p[98]}

    return run


def upgraded(port, path):
    """A WebSocket after its handshake (RFC 6455 §4.1)."""
    s = dial(port)
    key = base64.b64encode(os.urandom(16)).decode()
    s.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += received(s)
    if not head.startswith(b"HTTP/1.1 101"):
        raise RuntimeError(f"no WebSocket: {head[:200]}")
    return s


def dial(port):
    s = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECS)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def wait(poll):
    ready = poll.poll(SILENCE_SECS)
    if not ready:
        raise RuntimeError(f"nothing came for {SILENCE_SECS} s")
    return ready


def received(s):
    data = s.recv(65536)
    if not data:
        raise RuntimeError("a connection was closed")
    return data


def output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
