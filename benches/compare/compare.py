"""nginx, HAProxy and ringfence under the same load, in turn, several times. Started by run.sh.

Prints a table of medians with ratios to nginx, and the same as JSON. Figures of one run can be compared with each other, those of
two runs cannot.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import cases
from loads import Target
from programs import Program, machine

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "target"

# A certificate of its own authority; "CA:FALSE" since ringfence takes no authority's certificate for a server's.
CERTIFICATE = """
[req]
prompt = no
distinguished_name = name
x509_extensions = server
[name]
CN = localhost
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def measure(case, contender, run_folder, arguments):
    """One contender, once: started anew, warmed up, loaded."""
    with ExitStack() as stack:
        disk, ram = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))) for folder in (arguments.disk, arguments.ram)
        )
        folders = cases.Folders(disk, ram, run_folder)
        programs = [stack.enter_context(part(folders)) for part in contender.parts]
        target = Target(case.scheme, contender.port, lambda: sum(program.cpu_us() for program in programs))
        result = case.load(target, arguments.secs, arguments.connections)
        # What was not done is not measured: every create that was answered is counted, and nothing else is.
        if contender.admitted:
            admitted, answered = contender.admitted(), result["warm"] + result["done"] if case.creates else 0
            if admitted < answered or (admitted and not case.creates):
                raise RuntimeError(f"{case.name}: {contender.name} admitted {admitted} calls of {answered}")
    return {**result, "cpu_us": result["cpu_us"] / result["done"], "per_sec": result["done"] / result["secs"]}


def summary(runs, base_runs):
    """Medians of the rounds, and the spread of what counts. Each ratio is of two figures of the same round."""
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    ratios = [run["cpu_us"] / base["cpu_us"] for run, base in zip(runs, base_runs)]
    middle["cpu_us_min"], middle["cpu_us_max"] = min(r["cpu_us"] for r in runs), max(r["cpu_us"] for r in runs)
    if "p99_added_us" in middle:
        added = [run["p99_added_us"] for run in runs]
        middle["p99_added_us_min"], middle["p99_added_us_max"] = min(added), max(added)
    middle["ratio"], middle["ratio_min"], middle["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
    return middle


def table(results):
    def ms(one, *keys):
        return " – ".join(f"{one[key] / 1000:.2f}" for key in keys if key in one)

    lines = [
        "| | | CPU µs | min – max | ratio | min – max | a second | p50 ms | p99 ms | p99 added, ms | min – max |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    last = None
    for one in results:
        title = "" if one["title"] == last else one["title"]
        last = one["title"]
        lines.append(
            f"| {title} | {one['contender']} | {one['cpu_us']:.1f} | {one['cpu_us_min']:.1f} – {one['cpu_us_max']:.1f} "
            f"| {one['ratio']:.2f} | {one['ratio_min']:.2f} – {one['ratio_max']:.2f} | {one['per_sec']:,.0f} "
            f"| {ms(one, 'p50_us')} | {ms(one, 'p99_us')} | {ms(one, 'p99_added_us')} "
            f"| {ms(one, 'p99_added_us_min', 'p99_added_us_max')} |"
        )
    return "\n".join(lines)


def parsed():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: all cases in about two minutes")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--secs", type=int, help="of load a contender and round; default: 3")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""], help="cases whose name has one of these in it")
    parser.add_argument("--disk", default=str(TARGET), help="a folder on the disk to measure")
    parser.add_argument("--ram", default="/dev/shm", help="a folder in memory")
    parser.add_argument("--json", default=str(TARGET / "compare.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.secs = arguments.secs or (1 if arguments.quick else 3)
    return arguments


def prepare(folder):
    """What the whole run shares: a certificate, the files that are sent, the client with a constant rate."""
    (folder / "certificate.conf").write_text(CERTIFICATE)
    for command in (
        "openssl req -x509 -config certificate.conf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout key.pem -out cert.pem",
        f"cc -O2 -o rate {HERE / 'rate.c'}",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    (folder / "files").mkdir()
    for size in cases.SIZES.values():
        (folder / "files" / str(size)).write_bytes(bytes(size))


def provider(folder):
    """The provider's programs, whose CPU time does not count."""
    yield cases.nginx_with("upstream", cases.PROVIDER, folder)
    yield Program("live", [sys.executable, str(HERE / "live.py"), str(cases.LIVE)], cases.LIVE, folder)


def main():
    arguments = parsed()
    begun_load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.disk)))
        everything = cases.cases(os.environ["RINGFENCE_BIN"], folder / "rate")
        unknown = [name for name in arguments.only if not any(name in case.name for case in everything)]
        if unknown:
            sys.exit(f"no case has {unknown[0]!r} in its name: {', '.join(case.name for case in everything)}")
        chosen = [case for case in everything if any(name in case.name for name in arguments.only)]
        prepare(folder)
        for program in provider(folder):
            stack.enter_context(program)
        runs = {}
        for n in range(arguments.rounds):
            for case in chosen:
                for contender in case.contenders:
                    result = measure(case, contender, folder, arguments)
                    runs.setdefault((case.name, contender.name), []).append(result)
                    print(f"round {n + 1}  {case.name:13} {contender.name:28} {result['cpu_us']:8.1f} µs", file=sys.stderr)
    results = [
        {
            "case": case.name,
            "title": case.title,
            "contender": contender.name,
            **summary(runs[case.name, contender.name], runs[case.name, case.contenders[0].name]),
            "rounds": runs[case.name, contender.name],
        }
        for case in chosen
        for contender in case.contenders
    ]
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
