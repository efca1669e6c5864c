"""A ringfence with two simulated providers before it and an app behind it, all on real sockets."""

import http.client
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Nothing here leaves the machine, whatever proxy it is told to use; and Twilio's SDK splices
# these two into any host name.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
for name in ("TWILIO_EDGE", "TWILIO_REGION"):
    os.environ.pop(name, None)

from elevenlabs.client import ElevenLabs  # noqa: E402
from twilio.rest import Client  # noqa: E402

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("RINGFENCE_BIN") or str(ROOT / "target/debug/ringfence")
NODE_MODULES = Path(__file__).parent / "node_modules"

# Longest that one test may take.
TEST_SECS = 30


# The body of an async function, and what becomes of it as JSON.
NODE_PROGRAM = """
const { api, accountSid, authToken, apiKey } = %s;
(async () => {
%s
})()
  .catch(({ constructor, message, code }) => ({ raised: { name: constructor.name, message, code } }))
  .then((value) => process.stdout.write(JSON.stringify(value ?? null), () => process.exit()));
"""


class Program:
    """A ringfence command that prints one line of JSON when it is ready."""

    def __init__(self, *arguments, cwd):
        self.rest = None
        self.log = Path(cwd) / f"{arguments[0]}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BINARY, *arguments],
                cwd=cwd,
                env={name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"ringfence {' '.join(arguments)} did not start:\n{self.log.read_text()}")
            self.ready = json.loads(line)
        except BaseException:
            self.stop()
            raise
        # What it says later must not fill the pipe.
        self.rest = threading.Thread(target=self.process.stdout.read, daemon=True)
        self.rest.start()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.rest:
            self.rest.join()
        self.process.stdout.close()


class App:
    """The app's own web server: answers 204 and remembers what it was sent."""

    def __init__(self):
        app = self
        self.received = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(204)
                self.end_headers()
                # Where it was called, as any app takes it from its front.
                url = f"{self.headers['x-forwarded-proto']}://{self.headers['host']}{self.path}"
                app.received.put((url, self.headers, body.decode()))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def next(self, secs=10):
        """The next webhook: the URL it came to, its headers, its body."""
        return self.received.get(timeout=secs)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def documented(language):
    """The code that docs/sdks.md shows under "One Twilio client for many businesses": the class, then its use."""
    text = (ROOT / "docs/sdks.md").read_text()
    section = text.split("\n## One Twilio client for many businesses\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def skip_without(found, what):
    """Outside CI a tool may be missing; `tests/run.sh` installs them all."""
    if not found:
        assert not os.environ.get("CI"), f"{what} is missing"
        raise unittest.SkipTest(f"{what} is missing; bash tests/run.sh sdk installs it")


PORTS = itertools.count(os.getpid() * 997)


def free_port():
    """Below the ports that Linux gives to whoever asks for any, so that nobody else is given it meanwhile."""
    while True:
        port = 10_000 + next(PORTS) % 22_000
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class Fenced(unittest.TestCase):
    """Each test has a simulation, a ringfence and an app of its own."""

    # What a test's account has bought.
    calls_bought = 30
    # More keys of accounts, and more tables at the end.
    elevenlabs_keys = twilio_keys = tables = ""

    def setUp(self):
        self.limit_time()
        folder = tempfile.TemporaryDirectory(prefix="ringfence-sdk-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.app = App()
        self.addCleanup(self.app.stop)
        simulation = Program("simulate", "--listen", "127.0.0.1:0", "--ready-json", cwd=self.folder)
        self.addCleanup(simulation.stop)
        self.keys = simulation.ready
        self.simulation = simulation.ready["url"]
        self.fence = self.serve()
        self.addCleanup(self.fence.stop)
        self.api = f"http://{self.fence.ready['api']}"
        # Calls are up at once and stay up until somebody ends them.
        self.simulate(
            "config",
            dial_ms=[5, 5],
            ring_ms=[5, 5],
            talk_ms=[60_000, 60_000],
            analysis_ms=[5, 5],
            el_events_url=f"http://{self.fence.ready['webhooks']}/webhooks/elevenlabs/post-call",
        )

    def serve(self):
        # `public_url` has to name a port before it is bound, and somebody may be faster.
        for attempt in range(3):
            webhooks = f"127.0.0.1:{free_port()}"
            (self.folder / "ringfence.toml").write_text(self.config(webhooks))
            try:
                return Program("serve", "--config", "ringfence.toml", "--ready-json", cwd=self.folder)
            except RuntimeError:
                if attempt == 2:
                    raise

    def config(self, webhooks):
        return f"""
mode = "enforce"
public_url = "http://{webhooks}"

[app]
allowed_callbacks = ["127.0.0.0/8"]
forward_url = "{self.app.url}"

[listen]
api = "127.0.0.1:0"
webhooks = "{webhooks}"
admin = "127.0.0.1:0"
client = "127.0.0.1:0"

[store]
path = "ringfence.db"

[accounts.elevenlabs]
provider = "elevenlabs"
upstream = "{self.simulation}"
api_key = "{self.keys["el_api_key"]}"
webhook_secrets = ["{self.keys["el_webhook_secret"]}"]
concurrent = {self.calls_bought}
{self.elevenlabs_keys}

[accounts.twilio]
provider = "twilio"
upstream = "{self.simulation}"
account_sid = "{self.keys["account_sid"]}"
auth_token = "{self.keys["auth_token"]}"
concurrent = {self.calls_bought}
{self.twilio_keys}

{self.tables}
"""

    def limit_time(self):
        def too_long(*_):
            raise TimeoutError(f"the test took longer than {TEST_SECS} s")

        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(TEST_SECS)
        self.addCleanup(signal.alarm, 0)

    def simulate(self, control, **body):
        """Tells the simulation something: `config`, `fault`, `end`."""
        request = urllib.request.Request(
            f"{self.simulation}/_sim/{control}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def counts(self):
        """What the providers counted."""
        return self.get(f"{self.simulation}/_sim/state?all=1")["counts"]

    def calls(self):
        """The open calls, as operators see them."""
        return self.get(f"http://{self.fence.ready['admin']}/api/calls")["calls"]

    def operate(self, path):
        """Changes something as an operator: over the Unix socket beside the store."""
        operator = http.client.HTTPConnection("localhost", timeout=5)
        operator.sock = socket.socket(socket.AF_UNIX)
        operator.sock.connect(str(self.fence.log.parent / "ringfence.db-admin.sock"))
        operator.request("POST", path)
        answer = operator.getresponse()
        said = answer.read()
        operator.close()
        self.assertEqual(answer.status // 100, 2, said)

    def get(self, url):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)

    def elevenlabs(self, api_key=None):
        return ElevenLabs(api_key=api_key or self.keys["el_api_key"], base_url=f"{self.api}/elevenlabs", timeout=10)

    def twilio(self):
        client = Client(self.keys["account_sid"], self.keys["auth_token"])
        client.api.base_url = f"{self.api}/twilio"
        client.http_client.timeout = 10
        return client

    def node(self, code):
        """Runs the body of an async function in Node: what it returns, or `raised` and the exception it ends with."""
        skip_without(shutil.which("node"), "node")
        skip_without(NODE_MODULES.is_dir(), "tests/sdk/node_modules")
        known = {
            "api": self.api,
            "accountSid": self.keys["account_sid"],
            "authToken": self.keys["auth_token"],
            "apiKey": self.keys["el_api_key"],
        }
        ran = subprocess.run(
            ["node", "-"],
            cwd=NODE_MODULES.parent,
            input=NODE_PROGRAM % (json.dumps(known), code),
            capture_output=True,
            text=True,
            timeout=TEST_SECS,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return json.loads(ran.stdout)

    def eventually(self, look, wanted, secs=5):
        """Looks until it sees what is wanted."""
        deadline = time.monotonic() + secs
        while (seen := look()) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(seen, wanted)
