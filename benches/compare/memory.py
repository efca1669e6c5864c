"""Resident memory of ringfence: at rest, with open calls, with idle connections. Started by run.sh.

The calls are open at a simulated provider, which ringfence asks about them every 2 s, as it does in production. Its store is new, so
a part of the growth is SQLite's page cache, which is bounded.
"""

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import date
from http.client import HTTPConnection
from pathlib import Path

from programs import Program, machine

API, SIMULATOR, ADMIN = 19012, 19002, 19014
SETTLE_SECS = 6
PLACERS = 8

CONFIG = """
concurrent = 1000000

[listen]
api      = "127.0.0.1:{api}"
webhooks = "127.0.0.1:19013"
admin    = "127.0.0.1:{admin}"

[accounts.elevenlabs]
upstream = "http://127.0.0.1:{simulator}"
api_key  = {{ file = "api-key" }}

[log]
filter = "warn"
"""


def place(count, key):
    """Places calls, several at a time."""
    body = json.dumps({"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "+15550001111"})
    headers = {"content-type": "application/json", "xi-api-key": key}
    failed = []

    def placer(share):
        connection = HTTPConnection("127.0.0.1", API, timeout=30)
        for _ in range(share):
            connection.request("POST", "/elevenlabs/v1/convai/twilio/outbound-call", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                failed.append((answer.status, text[:200]))
                return
        connection.close()

    shares = [count // PLACERS + (n < count % PLACERS) for n in range(PLACERS)]
    threads = [threading.Thread(target=placer, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"a create failed: {failed[0]}")


def open_calls():
    connection = HTTPConnection("127.0.0.1", ADMIN, timeout=30)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("platform_global_active_calls "):
            return int(float(line.split()[1]))
    raise RuntimeError("ringfence shows no platform_global_active_calls")


@contextmanager
def provider(binary, folder):
    """A simulated provider whose calls last an hour: its API key, and a config of ringfence's for it."""
    simulate = [
        binary, "simulate", "--listen", f"127.0.0.1:{SIMULATOR}", "--ready-json", "--talk-ms", "3600000", "--concurrent", "1000000"
    ]  # fmt: skip
    with Program("simulate", simulate, SIMULATOR, folder) as simulator:
        key = json.loads(simulator.log.read_text().splitlines()[0])["el_api_key"]
        (Path(folder) / "api-key").write_text(key)
        config = Path(folder) / "ringfence.toml"
        config.write_text(CONFIG.format(api=API, admin=ADMIN, simulator=SIMULATOR))
        yield key, config


def idle_connections(count):
    """Connections that asked once and wait for their next request."""
    connections = []
    for _ in range(count):
        s = socket.create_connection(("127.0.0.1", API))
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not s.recv(4096).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a connection was not answered")
        connections.append(s)
    return connections


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, nargs="+", default=[1_000, 10_000], help="open calls, ascending")
    parser.add_argument("--connections", type=int, default=1_000)
    arguments = parser.parse_args()
    binary = os.environ["RINGFENCE_BIN"]
    with tempfile.TemporaryDirectory() as folder:
        with provider(binary, folder) as (key, config):
            print(f"{date.today().isoformat()}, {machine()}\n\n| | resident MiB | more, a piece |\n|---|--:|--:|")

            with Program("ringfence", [binary, "serve", "--config", str(config)], API, folder) as ringfence:
                time.sleep(SETTLE_SECS)
                rest = ringfence.rss_kib()
                print(f"| at rest | {rest / 1024:.1f} | |")
                held = idle_connections(arguments.connections)
                time.sleep(1)
                now = ringfence.rss_kib()
                print(f"| {len(held):,} idle connections | {now / 1024:.1f} | {(now - rest) / len(held):.1f} KiB |")
                for connection in held:
                    connection.close()

            with Program("ringfence", [binary, "serve", "--config", str(config)], API, folder) as ringfence:
                time.sleep(SETTLE_SECS)
                rest, placed = ringfence.rss_kib(), 0
                for calls in arguments.calls:
                    place(calls - placed, key)
                    placed = calls
                    time.sleep(SETTLE_SECS)
                    now = ringfence.rss_kib()
                    if open_calls() != calls:
                        raise RuntimeError(f"{open_calls()} calls are open, not {calls}")
                    print(f"| {calls:,} open calls | {now / 1024:.1f} | {(now - rest) / calls:.1f} KiB |")


if __name__ == "__main__":
    main()
