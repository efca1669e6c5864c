"""CPU time and memory of ringfence while operators watch its page. Started by run.sh.

Calls are open, and others begin and are seen by every viewer. A viewer reads `/api/stream`, which is all that the page asks for, as
fast as it comes. The provider is asked about each open call meanwhile, so the figures without a viewer are what that costs.
"""

import argparse
import os
import socket
import tempfile
import threading
import time
from datetime import date

from memory import ADMIN, API, SETTLE_SECS, open_calls, place, provider
from programs import Program, machine


class Viewer:
    """Reads the page's stream until it is closed, and counts what came."""

    def __init__(self):
        self.read = 0
        self.socket = socket.create_connection(("127.0.0.1", ADMIN))
        self.socket.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        if not self.socket.recv(65536).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a viewer was not answered")
        threading.Thread(target=self.take, daemon=True).start()

    def take(self):
        try:
            while piece := self.socket.recv(1 << 20):
                self.read += len(piece)
        except OSError:
            pass

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def begin_calls(every_secs, key, stop):
    while not stop.wait(every_secs):
        place(1, key)


def measure(ringfence, viewers, secs):
    """(CPU in percent of a core, resident MiB, KiB a second that one viewer reads)."""
    watching = [Viewer() for _ in range(viewers)]
    time.sleep(SETTLE_SECS)
    begun, cpu, read = time.monotonic(), ringfence.cpu_us(), sum(viewer.read for viewer in watching)
    time.sleep(secs)
    took = time.monotonic() - begun
    used = (ringfence.cpu_us() - cpu) / took / 10_000
    each = (sum(viewer.read for viewer in watching) - read) / took / 1024 / max(viewers, 1)
    resident = ringfence.rss_kib() / 1024
    for viewer in watching:
        viewer.close()
    return used, resident, each


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=5_000, help="open calls")
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 1, 20])
    parser.add_argument("--begin-each-secs", type=float, default=0.2, help="a call begins so often meanwhile")
    parser.add_argument("--secs", type=float, default=30, help="how long each is measured")
    arguments = parser.parse_args()
    binary = os.environ["RINGFENCE_BIN"]
    with tempfile.TemporaryDirectory() as folder:
        with provider(binary, folder) as (key, config):
            with Program("ringfence", [binary, "serve", "--config", str(config)], API, folder) as ringfence:
                place(arguments.calls, key)
                stop = threading.Event()
                threading.Thread(target=begin_calls, args=(arguments.begin_each_secs, key, stop), daemon=True).start()
                print(f"{date.today().isoformat()}, {machine()}; {open_calls():,} open calls, one more each {arguments.begin_each_secs} s\n")
                print("| viewers | CPU, of a core | resident MiB | KiB a second each |\n|--:|--:|--:|--:|")
                for viewers in arguments.viewers:
                    used, resident, each = measure(ringfence, viewers, arguments.secs)
                    print(f"| {viewers} | {used:.1f} % | {resident:.1f} | {each:.1f} |", flush=True)
                stop.set()


if __name__ == "__main__":
    main()
