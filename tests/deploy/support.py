"""What is in deploy/, checked with the programs that will read it: promtool, nginx, systemd, and ringfence itself.

A tool that is not here skips its test; in CI, where `tests/run.sh` installs them, each must be there.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BINARY = os.environ.get("RINGFENCE_BIN") or str(ROOT / "target/debug/ringfence")
# What the configs in deploy/ name.
SECRETS = {
    "ELEVENLABS_API_KEY": "sk_simulated",
    "ELEVENLABS_WEBHOOK_SECRET": "wsec_simulated",
    "TWILIO_ACCOUNT_SID": "AC00000000000000000000000000000001",
    "TWILIO_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RINGFENCE_TOKEN_SECRET": "0123456789abcdef0123456789abcdef",
    "DATABASE_URL": "postgres://ringfence@127.0.0.1/ringfence",
    "REDIS_URL": "redis://127.0.0.1:6379",
}
PATIENCE_SECS = 30
# Where alerts say that the docs are, until somebody puts their own copy's address there.
DOCS_URL = "https://docs.example.com/ringfence"


def tool(name):
    """Where a program is."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        # Helm's program is there for one processor alone.
        obtainable = name != "helm" or platform.machine() == "x86_64"
        if obtainable and os.environ.get("CI"):
            raise AssertionError(f"{name} is missing: tests/run.sh installs it")
        raise unittest.SkipTest(f"there is no {name} here")
    return found


def of_the_whole(test):
    """It takes minutes or root: `tests/run.sh deploy` runs it, and `tests/run.sh files` does not."""
    return unittest.skipIf(os.environ.get("RINGFENCE_DEPLOY") == "files", "for tests/run.sh deploy")(test)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def environment(**more):
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    return {**ours, **SECRETS, **more}


def spare_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="ringfence-deploy-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.processes = {}

    def succeeds(self, *command, **options):
        done = run(*command, **options)
        self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def start(self, name, *command, env=None):
        """A program that prints one line of JSON when it is ready."""
        log = (self.folder / f"{name}.log").open("wb")
        self.addCleanup(log.close)
        process = subprocess.Popen(
            [str(part) for part in command], cwd=self.folder, env=env or environment(), stdout=subprocess.PIPE, stderr=log
        )
        self.processes[name] = process

        def end():
            process.terminate()
            process.wait(PATIENCE_SECS)
            process.stdout.close()

        self.addCleanup(end)
        line = process.stdout.readline()
        self.assertTrue(line, (self.folder / f"{name}.log").read_text())
        return json.loads(line)

    def wait_for(self, has_come, what):
        deadline = time.monotonic() + PATIENCE_SECS
        while not has_come():
            self.assertLess(time.monotonic(), deadline, f"waited for {what}")
            time.sleep(0.2)

    def ringfence(self, toml="", command=(BINARY,), **env):
        """ringfence in front of simulated providers: the two ready lines."""
        sim = self.start("simulate", BINARY, "simulate", "--listen", "127.0.0.1:0", "--ready-json")
        listen = "\n".join(f'{name} = "127.0.0.1:0"' for name in ("api", "webhooks", "admin", "client"))
        config = f"""
            {toml}
            [listen]
            {listen}
            trusted_peers = ["127.0.0.1"]
            [accounts.elevenlabs]
            upstream = "{sim["url"]}"
            api_key = {{ env = "ELEVENLABS_API_KEY" }}
            webhook_secrets = [{{ env = "ELEVENLABS_WEBHOOK_SECRET" }}]
            concurrent = 2
            [accounts.twilio]
            upstream = "{sim["url"]}"
            account_sid = {{ env = "TWILIO_ACCOUNT_SID" }}
            auth_token = {{ env = "TWILIO_AUTH_TOKEN" }}
        """
        (self.folder / "ringfence.toml").write_text(config)
        return sim, self.start("serve", *command, "serve", "--ready-json", env=environment(**env))

    def place(self, ready, number):
        body = {"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": number}
        request = urllib.request.Request(
            f"http://{ready['api']}/elevenlabs/v1/convai/twilio/outbound-call",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "xi-api-key": "sk_simulated"},
        )
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as refused:
            return refused.code


def rules_text():
    return (DEPLOY / "prometheus/alerts.yml").read_text()
