"""nginx and Caddy in front of ringfence, as deploy/fronts has them."""

import hashlib
import hmac
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

from support import Case, DEPLOY, PATIENCE_SECS, SECRETS, spare_port, tool


class Fronts(Case):
    def certificate(self):
        self.succeeds(
            tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
            "-subj", "/CN=hooks.example.com", "-addext", "subjectAltName=DNS:hooks.example.com,DNS:calls.example.com",
            "-keyout", self.folder / "key.pem", "-out", self.folder / "cert.pem",
        )

    def webhook(self, port, size=0, secret=SECRETS["ELEVENLABS_WEBHOOK_SECRET"], scheme="https"):
        """A signed event of ElevenLabs through the front: the status of its answer."""
        data = {"agent_id": "agent_1", "conversation_id": "conv_1", "padding": "x" * size}
        body = json.dumps({"type": "post_call_transcription", "event_timestamp": int(time.time()), "data": data}).encode()
        stamp = str(int(time.time()))
        mac = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        headers = {"ElevenLabs-Signature": f"t={stamp},v0={mac}", "Content-Type": "application/json", "Host": "hooks.example.com"}
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}/webhooks/elevenlabs", body, headers)
        try:
            return urllib.request.urlopen(request, context=self.trust() if scheme == "https" else None).status
        except urllib.error.HTTPError as refused:
            return refused.code

    def trust(self):
        context = ssl.create_default_context(cafile=self.folder / "cert.pem")
        context.check_hostname = False
        return context

    def opens(self, port):
        until = time.monotonic() + PATIENCE_SECS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                self.assertLess(time.monotonic(), until)
                time.sleep(0.05)

    def upgraded(self, port, server_name):
        """What a page that follows transcripts gets at the front."""
        with socket.create_connection(("127.0.0.1", port)) as plain:
            with self.trust().wrap_socket(plain, server_hostname=server_name) as connection:
                connection.sendall(
                    f"GET /ws/calls/transcriptions HTTP/1.1\r\nHost: {server_name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
                )
                return int(connection.recv(4096).split(b" ", 2)[1])

    def test_nginx(self):
        nginx = tool("nginx")
        self.certificate()
        _, ready = self.ringfence('public_url = "https://hooks.example.com"')
        port = spare_port()
        front = (DEPLOY / "fronts/nginx.conf").read_text()
        front = front.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        front = front.replace("127.0.0.1:8081", ready["webhooks"]).replace("127.0.0.1:8082", ready["client"])
        front = re.sub(r"/etc/ssl/\S+\.pem", str(self.folder / "cert.pem"), front)
        front = re.sub(r"/etc/ssl/\S+\.key", str(self.folder / "key.pem"), front)
        paths = "".join(f"{name}_temp_path {self.folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; worker_processes 1; pid {self.folder}/pid; error_log {self.folder}/error.log; events {{}}"
            f"http {{ access_log off; {paths} {front} }}"
        )
        process = subprocess.Popen([nginx, "-e", str(self.folder / "error.log"), "-c", str(conf)], stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        self.opens(port)
        self.assertEqual(self.webhook(port), 200)
        self.assertEqual(self.webhook(port, secret="another"), 401)
        self.assertEqual(self.webhook(port, size=3 << 20), 200)
        # Without a token the upgrade is refused, by ringfence and not by the front.
        self.assertEqual(self.upgraded(port, "calls.example.com"), 403)

    def test_caddy(self):
        caddy = tool("caddy")
        file = DEPLOY / "fronts/Caddyfile"
        env = {**os.environ, "HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        self.succeeds(caddy, "validate", "--config", file, "--adapter", "caddyfile", env=env)
        _, ready = self.ringfence('public_url = "https://hooks.example.com"')
        port = spare_port()
        front = file.read_text().replace("127.0.0.1:8081", ready["webhooks"]).replace("127.0.0.1:8082", ready["client"])
        front = front.replace("hooks.example.com {", f"http://:{port} {{").replace("calls.example.com {", f"http://:{spare_port()} {{")
        (self.folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + front)
        process = subprocess.Popen(
            [caddy, "run", "--config", "Caddyfile", "--adapter", "caddyfile"], cwd=self.folder, env=env, stderr=subprocess.DEVNULL
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        self.opens(port)
        self.assertEqual(self.webhook(port, scheme="http"), 200)
        self.assertEqual(self.webhook(port, secret="another", scheme="http"), 401)
        self.assertEqual(self.webhook(port, size=3 << 20, scheme="http"), 200)
