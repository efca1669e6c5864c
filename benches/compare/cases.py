"""What is compared, as data: cases, and in each the contenders, of which the first is what the others are measured by."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional
from urllib.request import urlopen

import loads
from programs import Program

HERE = Path(__file__).parent
PROVIDER, PROVIDER_TLS, LIVE = 19001, 19003, 19004
NGINX, HAPROXY, RINGFENCE, NGINX_TLS, NGINX_TLS_BOTH = 19010, 19011, 19012, 19015, 19016
ADMIN, REDIS = 19014, 19020

CREATE = "/elevenlabs/v1/convai/twilio/outbound-call"
OTHER = "/elevenlabs/v1/convai/agents/create"
ANSWER = "/elevenlabs/v1/history/{}/audio"
BODY = "/elevenlabs/v1/voices/add/{}"
EVENTS = "/elevenlabs/v1/text-to-speech/voice_1/stream-events"
FRAMES = "/elevenlabs/v1/text-to-speech/voice_1/stream-input"
SIZES = {"64k": 64 * 1024, "1m": 1024 * 1024}


@dataclass(frozen=True)
class Contender:
    """One arrangement: how to start its parts, where it listens, and how many calls it has admitted."""

    name: str
    parts: list[Callable[["Folders"], Program]]
    port: int
    admitted: Optional[Callable[[], int]] = None


@dataclass(frozen=True)
class Case:
    """One kind of work. `title` says what the CPU time is divided by."""

    name: str
    title: str
    load: Callable[[loads.Target, int, int], dict]
    contenders: list[Contender]
    scheme: str = "http"
    creates: bool = False


@dataclass(frozen=True)
class Folders:
    """Where a part may write: on the disk, in memory. `run` has what the whole run shares: the certificate."""

    disk: Path
    ram: Path
    run: Path


# A part is a function of the folders; it starts a program there.


def nginx(folders):
    for name in ("gate-init.lua", "gate.lua"):
        shutil.copy(HERE / name, folders.disk)
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folders.run / name, folders.disk)
    return nginx_with("nginx", NGINX, folders.disk)


def nginx_with(name, port, folder):
    shutil.copy(HERE / f"{name}.conf", folder)
    # Workers of a root would be nobody's, who may not read this folder.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    return Program(name, ["nginx", "-p", str(folder), "-c", str(folder / f"{name}.conf"), *user], port, folder)


def haproxy(folders):
    return Program("haproxy", ["haproxy", "-db", "-f", str(HERE / "haproxy.cfg")], HAPROXY, folders.disk)


def redis(*options):
    def start(folders):
        command = ["redis-server", "--port", str(REDIS), "--save", "", "--dir", str(folders.disk), *options]
        program = Program("redis", command, REDIS, folders.disk)
        (folders.disk / "admit.sha1").write_text(redis_cli("SCRIPT", "LOAD", (HERE / "admit.lua").read_text()) + "\n")
        return program

    return start


@dataclass(frozen=True)
class Ringfence:
    """ringfence with what a case needs."""

    binary: str
    upstream: str = f"http://127.0.0.1:{PROVIDER}"
    tls: bool = False
    store_in_ram: bool = False

    def __call__(self, folders):
        config = folders.disk / "ringfence.toml"
        businesses = (f'\n[businesses.business_{n:03}]\nagent_ids = ["agent_{n:03}"]\n' for n in range(1, 301))
        config.write_text((HERE / "ringfence.toml").read_text() + "".join(businesses))
        env = {
            "RINGFENCE_STORE_PATH": str((folders.ram if self.store_in_ram else folders.disk) / "ringfence.db"),
            "RINGFENCE_ACCOUNTS_ELEVENLABS_UPSTREAM": self.upstream,
            "RINGFENCE_UPSTREAM_CA_FILE": str(folders.run / "cert.pem"),
        }
        if self.tls:
            env["RINGFENCE_LISTEN_TLS_CERT"] = str(folders.run / "cert.pem")
            env["RINGFENCE_LISTEN_TLS_KEY"] = str(folders.run / "key.pem")
        return Program("ringfence", [self.binary, "serve", "--config", str(config)], RINGFENCE, folders.disk, env)


def redis_cli(*command):
    command = ["redis-cli", "-p", str(REDIS), *command]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def admitted_by_redis():
    return int(redis_cli("SCARD", "calls:all"))


def admitted_by_ringfence():
    with urlopen(f"http://127.0.0.1:{ADMIN}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("platform_global_active_calls "):
                return int(float(line.split()[1]))
    raise RuntimeError("ringfence shows no platform_global_active_calls")


def cases(binary, rate_client):
    """All cases, in the order of the table."""

    def pair(nginx_port=NGINX, **options):
        return [
            Contender("nginx", [nginx], nginx_port),
            Contender("ringfence", [Ringfence(binary, **options)], RINGFENCE, admitted_by_ringfence),
        ]

    small = loads.wrk(OTHER, "create")
    plain, durable = redis(), redis("--appendonly", "yes", "--appendfsync", "always")
    in_ram, on_disk = Ringfence(binary, store_in_ram=True), Ringfence(binary)
    live = f"http://127.0.0.1:{LIVE}"
    both = {"tls": True, "upstream": f"https://127.0.0.1:{PROVIDER_TLS}"}
    forwarders = pair()
    forwarders.insert(1, Contender("HAProxy", [haproxy], HAPROXY))
    gates = [
        Contender("nginx + Lua + Redis", [plain, nginx], NGINX, admitted_by_redis),
        Contender("nginx + Lua + Redis, fsync", [durable, nginx], NGINX, admitted_by_redis),
        Contender("ringfence, store in RAM", [in_ram], RINGFENCE, admitted_by_ringfence),
        Contender("ringfence, fsync", [on_disk], RINGFENCE, admitted_by_ringfence),
    ]

    def answer(name):
        size = SIZES[name]
        return loads.wrk(ANSWER.format(size), "get", at_least_bytes=size)

    def body(name):
        size = SIZES[name]
        return loads.wrk(BODY.format(size), "post", str(size))

    return [
        Case("pass-through", "pass-through, a request", small, forwarders),
        Case("create", "gated create, a call", loads.wrk(CREATE, "create"), gates, creates=True),
        Case("tls-in", "TLS in, a request", small, pair(NGINX_TLS, tls=True), "https"),
        Case("tls-both", "TLS in and out, a request", small, pair(NGINX_TLS_BOTH, **both), "https"),
        Case("answer-64k", "an answer of 64 KiB", answer("64k"), pair()),
        Case("answer-1m", "an answer of 1 MiB", answer("1m"), pair()),
        Case("body-64k", "a request body of 64 KiB", body("64k"), pair()),
        Case("body-1m", "a request body of 1 MiB", body("1m"), pair()),
        Case("events", "a server-sent event of 100 bytes", loads.events(EVENTS), pair(upstream=live)),
        Case("websocket", "a WebSocket frame, there and back", loads.frames(FRAMES), pair(upstream=live)),
        Case("half-rate", "pass-through at half of what it can, a request", loads.half_rate(OTHER, PROVIDER, rate_client), pair()),
    ]
