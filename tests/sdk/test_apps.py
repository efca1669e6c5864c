"""Apps as their frameworks' guides have them (tests/apps), once behind a TLS front of their own and once behind ringfence: the same
answers, in every configuration that docs/what-your-app-sees.md names."""

import hashlib
import hmac
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlencode, urlsplit

from twilio.request_validator import RequestValidator
from websockets.sync.client import connect

from support import NODE_MODULES, Fenced, free_port, skip_without

APPS = NODE_MODULES.parents[1] / "apps"
HOST = "hooks.example.test"
FORM = "application/x-www-form-urlencoded"
# What a TLS front of the app's own adds.
FRONT = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": HOST}
# Webhooks of the three kinds: answered by the app, passed to it, and delivered to it later.
VOICE, SMS, STATUS = "/webhooks/twilio/voice?tenant=a%20b", "/sms?a=1&a=2", "/webhooks/twilio/status"
POST_CALL = "/webhooks/elevenlabs/post-call"


class Behind(Fenced):
    """A fence whose app is a process of its own, known to the world as `public`."""

    public = f"https://{HOST}"

    def setUp(self):
        self.port = free_port()
        super().setUp()

    def config(self, webhooks):
        text = super().config(webhooks)
        text = text.replace(f'public_url = "http://{webhooks}"', f'public_url = "{self.public}"')
        return text.replace(f'forward_url = "{self.app.url}"', f'forward_url = "http://127.0.0.1:{self.port}"')

    def start(self, *command, **env):
        """Starts the app, and waits until it listens."""
        skip_without(shutil.which(command[0]), command[0])
        known = {
            "PATH": os.environ["PATH"],
            "PORT": str(self.port),
            "NODE_PATH": str(NODE_MODULES),
            "TWILIO_AUTH_TOKEN": self.keys["auth_token"],
            "ELEVENLABS_WEBHOOK_SECRET": self.keys["el_webhook_secret"],
        }
        log = (self.folder / "app.log").open("wb")
        self.addCleanup(log.close)
        process = subprocess.Popen(command, cwd=APPS, env={**known, **env}, stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    self.fail(f"{command} does not listen:\n{(self.folder / 'app.log').read_text()}")
                time.sleep(0.05)

    def start_node(self, name, **env):
        self.start("node", f"{name}.js", **env)

    def start_python(self, *arguments, **env):
        self.start(sys.executable, *arguments, **env)

    def ask(self, at, method, path, headers, body=""):
        """The answer: its status, type and body."""
        connection = http.client.HTTPConnection(at, timeout=15)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type"), answer.read().decode()
        finally:
            connection.close()

    def both(self, method, path, form, token=None):
        """The answers of the app itself, and through ringfence, to a request that is signed as Twilio signs it."""
        params = form if method == "POST" else {}
        if method == "GET":
            path += "&" + urlencode(form)
        signature = RequestValidator(token or self.keys["auth_token"]).compute_signature(self.public + path, params)
        headers = {"Host": HOST, "X-Twilio-Signature": signature}
        body = urlencode(params)
        if params:
            headers["Content-Type"] = FORM
        front = FRONT if self.public.startswith("https") else {}
        direct = self.ask(f"127.0.0.1:{self.port}", method, path, {**headers, **front}, body)
        return direct, self.ask(self.fence.ready["webhooks"], method, path, headers, body)

    def deliveries(self, result):
        """How many deliveries came to this."""
        with urllib.request.urlopen(
            f"http://{self.fence.ready['admin']}/metrics", timeout=5
        ) as answer:
            lines = answer.read().decode().splitlines()
        wanted = f'ringfence_deliveries_total{{result="{result}"}} '
        return sum(int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted))

    def same(self, validates=True):
        """The app answers alike, and takes what is delivered later: unless it would refuse it behind its own front too."""
        voice = {"CallSid": "CA1", "From": "+15550003301", "To": "+15550001101", "Direction": "inbound"}
        good = 200 if validates else 403
        for method, path, form, token, status in [
            ("POST", VOICE, {**voice, "CallStatus": "ringing"}, None, good),
            ("GET", VOICE, {**voice, "CallStatus": "ringing"}, None, good),
            ("POST", SMS, {"MessageSid": "SM1", "Body": "hi & bye"}, None, good),
            ("POST", SMS, {"MessageSid": "SM1", "Body": "hi"}, "another token", 403),
        ]:
            with self.subTest(method=method, path=path):
                direct, through = self.both(method, path, form, token)
                self.assertEqual(direct[0], status, direct)
                self.assertEqual(direct, through)
                if path == VOICE and validates:
                    self.assertIn(f"wss://{HOST}/media", direct[2])
        direct, through = self.both("POST", STATUS, {**voice, "CallStatus": "completed"})
        self.assertEqual((direct[0], through[0]), (204 if validates else 403, 204))
        self.eventually(lambda: self.deliveries("done"), 1 if validates else 0)

    def post_call(self, age_secs=0):
        """An event of ElevenLabs: the answers of the app itself, and through ringfence."""
        body = json.dumps({"type": "post_call_transcription", "data": {"conversation_id": "conv_1", "status": "done"}})
        at = int(time.time()) - age_secs
        digest = hmac.new(self.keys["el_webhook_secret"].encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
        headers = {"Host": HOST, "Content-Type": "application/json", "ElevenLabs-Signature": f"t={at},v0={digest}"}
        return lambda to: self.ask(to, "POST", POST_CALL, headers, body)


class Express(Behind):
    def test_trusting_its_front(self):
        self.start_node("express_app", TRUST_PROXY="loopback")
        self.same()

    def test_told_the_protocol(self):
        self.start_node("express_app", PROTOCOL="https")
        self.same()

    def test_neither_refuses_behind_any_front(self):
        self.start_node("express_app")
        self.same(validates=False)


class Fastify(Behind):
    def test_trusting_its_front(self):
        self.start_node("fastify_app", TRUST_PROXY="1")
        self.same()

    def test_told_the_protocol(self):
        self.start_node("fastify_app", PROTOCOL="https")
        self.same()

    def test_neither_refuses_behind_any_front(self):
        self.start_node("fastify_app")
        self.same(validates=False)


class Flask(Behind):
    def test_with_proxy_fix(self):
        self.start_python("flask_app.py", PROXY_FIX="1")
        self.same()

    def test_under_gunicorn_which_trusts_loopback(self):
        self.start_python("-m", "gunicorn", "--bind", f"127.0.0.1:{self.port}", "flask_app:app")
        self.same()

    def test_neither_refuses_behind_any_front(self):
        self.start_python("flask_app.py")
        self.same(validates=False)


class FastApi(Behind):
    def test_under_uvicorn_which_trusts_loopback(self):
        self.start_python("-m", "uvicorn", "--port", str(self.port), "fastapi_app:app")
        self.same()

    def test_without_proxy_headers_refuses_behind_any_front(self):
        self.start_python("-m", "uvicorn", "--port", str(self.port), "--no-proxy-headers", "fastapi_app:app")
        self.same(validates=False)


class Django(Behind):
    def test_told_of_its_front(self):
        self.start_python("django_app.py", SSL_HEADER="1")
        self.same()

    def test_told_of_its_front_and_its_host(self):
        self.start_python("django_app.py", SSL_HEADER="1", FORWARDED_HOST="1")
        self.same()

    def test_not_told_refuses_behind_any_front(self):
        self.start_python("django_app.py")
        self.same(validates=False)


class WithoutTls(Behind):
    """Where providers call plain HTTP, no app has to trust anybody."""

    public = f"http://{HOST}"

    def test_express(self):
        self.start_node("express_app")
        self.same()

    def test_fastify(self):
        self.start_node("fastify_app")
        self.same()

    def test_flask(self):
        self.start_python("flask_app.py")
        self.same()

    def test_fastapi(self):
        self.start_python("-m", "uvicorn", "--port", str(self.port), "--no-proxy-headers", "fastapi_app:app")
        self.same()

    def test_django(self):
        self.start_python("django_app.py")
        self.same()


class MediaStreams(Behind):
    def test_the_socket_comes_to_the_host_that_the_app_names(self):
        self.start_node("media_app")
        form = {"CallSid": "CA1", "Direction": "inbound", "CallStatus": "ringing", "From": "+1", "To": "+2"}
        direct, through = self.both("POST", VOICE, form)
        self.assertEqual(direct, through)
        url = urlsplit(through[2].split('url="')[1].split('"')[0])
        self.assertEqual((url.scheme, url.netloc), ("wss", HOST))
        # Twilio comes to the public host, whose TLS ends before ringfence.
        wire = socket.create_connection(self.fence.ready["webhooks"].split(":"), 5)
        with connect(f"ws://{url.netloc}{url.path}", sock=wire) as media:
            self.assertEqual(json.loads(media.recv(5)), {"host": HOST, "proto": "https"})
            media.send('{"event":"start"}')
            self.assertEqual(media.recv(5), '{"event":"start"}')


class ConstructEvent(Behind):
    """ElevenLabs' own validators, which look at the stamp."""

    # The post-call path tells of calls that nobody knows by a 404; here it is about what the app gets.
    tables = "[records]\nunknown_status = 200\n"

    def check(self, start):
        # Half an hour is what they allow; it is over when the app is there at last.
        late = self.post_call(1799)
        self.assertEqual(late(self.fence.ready["webhooks"])[0], 200)
        time.sleep(1.5)
        start()
        app = f"127.0.0.1:{self.port}"
        self.assertEqual(late(app)[0], 401, "as it came it is too old")
        self.assertEqual(self.post_call()(app)[0], 200)
        self.eventually(lambda: self.deliveries("done"), 1, secs=15)
        # Once more, by an operator.
        event = self.get(f"http://{self.fence.ready['admin']}/api/events")["events"][0]["id"]
        self.operate(f"/api/events/{event}/replay")
        self.eventually(lambda: self.deliveries("done"), 2)

    def test_of_the_python_sdk(self):
        self.check(lambda: self.start_python("flask_app.py"))

    def test_of_the_node_sdk(self):
        self.check(lambda: self.start_node("express_app"))
