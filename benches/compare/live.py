"""The provider of what stays open: a WebSocket that echoes, and a stream of server-sent events. Started by compare.py.

    python3 live.py PORT
"""

import asyncio
import base64
import hashlib
import sys

# 20 ms of telephone audio. Masked by zeros, so that the provider may send on what it got.
PAYLOAD_BYTES = 160
CLIENT_FRAME = b"\x82\xfe\x00\xa0" + bytes(4) + b"a" * PAYLOAD_BYTES
SERVER_FRAME = b"\x82\x7e\x00\xa0" + b"a" * PAYLOAD_BYTES

# 100 bytes. The mark stands in it once, so whoever counts marks counts events, however they are cut.
MARK = b"~"
EVENT = b"data: " + b"e" * 91 + MARK + b"\n\n"
EVENT_CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
# Each stream has 250 events a second, so that each travels alone.
EVENT_SECS = 0.004
EVENT_STREAMS = 64

HEAD_END = b"\r\n\r\n"
EVENTS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection: reads a head, then echoes frames, or is one of the streams that get events."""

    def __init__(self, streams):
        self.streams, self.buffer, self.echoes = streams, b"", False

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, _):
        self.streams.discard(self)

    def data_received(self, data):
        self.buffer += data
        if self.echoes:
            self.echo()
        elif HEAD_END in self.buffer:
            head, self.buffer = self.buffer.split(HEAD_END, 1)
            key = next((line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")), None)
            if key:
                self.echoes = True
                self.transport.write(accepted(key))
            else:
                self.transport.write(EVENTS_HEAD)
                self.streams.add(self)

    def echo(self):
        while len(self.buffer) >= len(CLIENT_FRAME):
            frame, self.buffer = self.buffer[: len(CLIENT_FRAME)], self.buffer[len(CLIENT_FRAME) :]
            if frame != CLIENT_FRAME:
                self.transport.abort()
                return
            self.transport.write(SERVER_FRAME)


def accepted(key):
    """The answer to a WebSocket handshake (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(digest)
    return b"HTTP/1.1 101 Switching Protocols\r\n" + fields + HEAD_END


async def serve(port):
    loop, streams = asyncio.get_running_loop(), set()
    server = await loop.create_server(lambda: Provider(streams), "127.0.0.1", port, backlog=1024)
    due = loop.time()
    async with server:
        while True:
            for stream in list(streams):
                stream.transport.write(EVENT_CHUNK)
            # Behind its time it goes on from now: two events at once would travel as one.
            due = max(due + EVENT_SECS, loop.time())
            await asyncio.sleep(due - loop.time())


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
