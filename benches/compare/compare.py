"""nginx, HAProxy and ringfence under the same load, in turn, several times. Started by run.sh.

Prints a table of medians with ratios to nginx, and the same as JSON. Figures of one run can be compared with each other, those of
two runs cannot.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from programs import Program, machine

HERE = Path(__file__).parent
CREATE = "/elevenlabs/v1/convai/twilio/outbound-call"
OTHER = "/elevenlabs/v1/convai/agents/create"
REDIS_PORT = 19020


class Contender:
    """One arrangement: how to start its parts, what to ask of it, and how to see that it did it."""

    def __init__(self, name, group, parts, port, path, admitted=None):
        self.name, self.group, self.parts, self.port, self.path, self.admitted = name, group, parts, port, path, admitted


# A part is a function of a folder on the disk and one in memory; it starts a program there.


def nginx(disk, _):
    return nginx_with("nginx", 19010, disk)


def nginx_with(name, port, folder):
    # Workers of a root would be nobody's, who may not read this folder.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    return Program(name, ["nginx", "-p", str(folder), "-c", str(folder / f"{name}.conf"), *user], port, folder)


def haproxy(disk, _):
    return Program("haproxy", ["haproxy", "-db", "-f", str(disk / "haproxy.cfg")], 19011, disk)


def redis(*options):
    def start(disk, _):
        command = ["redis-server", "--port", str(REDIS_PORT), "--save", "", "--dir", str(disk), *options]
        program = Program("redis", command, REDIS_PORT, disk)
        (disk / "admit.sha1").write_text(redis_cli("SCRIPT", "LOAD", (HERE / "admit.lua").read_text()) + "\n")
        return program

    return start


def ringfence(binary, in_memory):
    def start(disk, ram):
        config = disk / "ringfence.toml"
        businesses = (f'\n[businesses.business_{n:03}]\nagent_ids = ["agent_{n:03}"]\n' for n in range(1, 301))
        config.write_text((HERE / "ringfence.toml").read_text() + "".join(businesses))
        env = {"RINGFENCE_STORE_PATH": str((ram if in_memory else disk) / "ringfence.db")}
        return Program("ringfence", [binary, "serve", "--config", str(config)], 19012, disk, env)

    return start


def redis_cli(*command):
    command = ["redis-cli", "-p", str(REDIS_PORT), *command]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def admitted_by_redis():
    return int(redis_cli("SCARD", "calls:all"))


def admitted_by_ringfence():
    with urllib.request.urlopen("http://127.0.0.1:19014/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("platform_global_active_calls "):
                return int(float(line.split()[1]))
    raise RuntimeError("ringfence shows no platform_global_active_calls")


def contenders(binary):
    durable = redis("--appendonly", "yes", "--appendfsync", "always")
    return [
        Contender("nginx", "pass-through", [nginx], 19010, OTHER),
        Contender("HAProxy", "pass-through", [haproxy], 19011, OTHER),
        Contender("ringfence", "pass-through", [ringfence(binary, in_memory=False)], 19012, OTHER),
        Contender("nginx + Lua + Redis", "gated create", [redis(), nginx], 19010, CREATE, admitted_by_redis),
        Contender("nginx + Lua + Redis, fsync", "gated create", [durable, nginx], 19010, CREATE, admitted_by_redis),
        Contender(
            "ringfence, store in RAM", "gated create", [ringfence(binary, in_memory=True)], 19012, CREATE, admitted_by_ringfence
        ),
        Contender(
            "ringfence, fsync", "gated create", [ringfence(binary, in_memory=False)], 19012, CREATE, admitted_by_ringfence
        ),
    ]


def load(port, path, secs, connections):
    command = ["wrk", "-t2", f"-c{connections}", f"-d{secs}s", "-s", str(HERE / "load.lua")]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(contender, disk, ram, arguments):
    """One contender, once: started anew, warmed up, loaded."""
    with ExitStack() as stack:
        on_disk, in_ram = (Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))) for folder in (disk, ram))
        for name in ("nginx.conf", "gate-init.lua", "gate.lua", "haproxy.cfg"):
            shutil.copy(HERE / name, on_disk)
        programs = [stack.enter_context(part(on_disk, in_ram)) for part in contender.parts]
        asked = load(contender.port, contender.path, 1, arguments.connections)["requests"]
        before_us = sum(program.cpu_us() for program in programs)
        result = load(contender.port, contender.path, arguments.secs, arguments.connections)
        result["cpu_us"] = (sum(program.cpu_us() for program in programs) - before_us) / result["requests"]
        asked += result["requests"]
        # What was not done is not measured: every answer is a success, and every create that was answered is counted.
        if result["errors"]:
            raise RuntimeError(f"{contender.name}: {result['errors']} requests failed")
        if contender.admitted and contender.admitted() < asked:
            raise RuntimeError(f"{contender.name} admitted {contender.admitted()} of {asked}")
    return result


def summary(runs):
    """Medians of the rounds, and the spread of the figure that counts."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("cpu_us", "p50_us", "p99_us")}
    middle["per_sec"] = statistics.median(run["requests"] / run["secs"] for run in runs)
    middle["cpu_us_min"], middle["cpu_us_max"] = min(r["cpu_us"] for r in runs), max(r["cpu_us"] for r in runs)
    return middle


def table(results):
    lines, base = [], {}
    for group in dict.fromkeys(one["group"] for one in results):
        lines += ["", f"| {group} | CPU µs a request | ratio | min – max | requests/s | p50 ms | p99 ms |", "|---|--:|--:|--:|--:|--:|--:|"]
        for one in (r for r in results if r["group"] == group):
            base.setdefault(group, one["cpu_us"])
            one["ratio"] = round(one["cpu_us"] / base[group], 2)
            lines.append(
                f"| {one['name']} | {one['cpu_us']:.1f} | {one['ratio']:.2f} | {one['cpu_us_min']:.1f} – {one['cpu_us_max']:.1f} "
                f"| {one['per_sec']:,.0f} | {one['p50_us'] / 1000:.2f} | {one['p99_us'] / 1000:.2f} |"
            )
    return "\n".join(lines[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=5, help="of load a contender and round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="", help="contenders whose name or group has this in it")
    parser.add_argument("--disk", default=str(HERE.parents[1] / "target"), help="a folder on the disk to measure")
    parser.add_argument("--ram", default="/dev/shm", help="a folder in memory")
    parser.add_argument("--json", default=str(HERE.parents[1] / "target" / "compare.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    binary = os.environ["RINGFENCE_BIN"]
    chosen = [c for c in contenders(binary) if arguments.only in f"{c.group}: {c.name}"]
    runs = {c: [] for c in chosen}
    begun_load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        shutil.copy(HERE / "upstream.conf", folder)
        with nginx_with("upstream", 19001, Path(folder)):
            for n in range(arguments.rounds):
                for contender in chosen:
                    result = measure(contender, arguments.disk, arguments.ram, arguments)
                    runs[contender].append(result)
                    print(f"round {n + 1}  {contender.name:28} {result['cpu_us']:6.1f} µs", file=sys.stderr)
                    time.sleep(0.5)
    results = [{"name": c.name, "group": c.group, **summary(runs[c]), "rounds": runs[c]} for c in chosen]
    about = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "load_before": round(begun_load, 2),
        "rounds": arguments.rounds,
        "secs": arguments.secs,
        "connections": arguments.connections,
    }
    print(f"{about['date']}, {about['machine']}, load before the run {about['load_before']}")
    print(f"{about['rounds']} rounds of {about['secs']} s in turn, {about['connections']} connections, medians\n")
    print(table(results))
    Path(arguments.json).write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    print(f"\nas JSON: {arguments.json}", file=sys.stderr)


main()
