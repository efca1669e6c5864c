#!/usr/bin/env python3
"""Makes a Python wheel and npm packages of a built ringfence:

    python3 deploy/pack.py target/release/ringfence target/packages

The same program gives the same files. A second program, of another processor, adds its own to the folder.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())
NAME, VERSION, ABOUT = (CARGO["package"][key] for key in ("name", "version", "description"))
LICENSE = CARGO["workspace"]["package"]["license"]
# readelf's name of a processor, and those of Python and Node.js.
MACHINES = {"Advanced Micro Devices X86-64": ("x86_64", "x64"), "AArch64": ("aarch64", "arm64")}
# Libraries that a system with glibc has: what a manylinux tag (PEP 600) promises, as far as Rust links them.
GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1"}
GLIBC |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def die(text, hint):
    sys.exit(f"error: {text}\n hint: {hint}")


def run(*command):
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    except FileNotFoundError:
        die(f"failed to find {command[0]}", "Debian's packages: binutils has readelf, npm has npm")
    except subprocess.CalledProcessError:
        die(f"failed to run {' '.join(command)}", "its message is above")


def needs(program):
    """What a program needs to run: the processor, as Python and Node.js name it, and the glibc, as (2, 34); None: it is static."""
    said = run("readelf", "--wide", "--file-header", "--program-headers", "--dynamic", "--version-info", str(program))
    machine = re.search(r"Machine: +(.+)", said)[1]
    if machine not in MACHINES:
        die(f"failed to name processor: {machine}", f"packages exist for {' and '.join(MACHINES)}")
    foreign = set(re.findall(r"Shared library: \[(.+?)\]", said)) - GLIBC
    if foreign:
        die(f"failed to make portable packages: {program} needs {', '.join(sorted(foreign))}", "link these statically")
    if "program interpreter" not in said and "Shared library" not in said:
        return *MACHINES[machine], None
    # The newest version of glibc that a symbol is bound to is the oldest glibc that has them all.
    versions = set(re.findall(r"Name: GLIBC_(\S+)", said))
    odd = [version for version in versions if not re.fullmatch(r"2(\.\d+)+", version)]
    if odd or not versions:
        die(f"failed to read glibc version of {program}: {', '.join(odd) or 'none'}", "it has to be linked to glibc, or static: deploy/static.sh")
    return *MACHINES[machine], max(tuple(map(int, version.split("."))) for version in versions)


def wheel(program, machine, glibc, folder):
    # A static program runs beside every C library: these tags are the oldest that pip knows for both processors.
    systems = [f"manylinux_{glibc[0]}_{glibc[1]}"] if glibc else ["manylinux_2_17", "musllinux_1_1"]
    tags = [f"{system}_{machine}" for system in systems]
    tag = f"py3-none-{'.'.join(tags)}"
    each = "".join(f"Tag: py3-none-{one}\n" for one in tags)
    info = f"{NAME}-{VERSION}.dist-info"
    metadata = f"""\
Metadata-Version: 2.4
Name: {NAME}
Version: {VERSION}
Summary: {ABOUT}
License-Expression: {LICENSE}
License-File: LICENSE
Description-Content-Type: text/markdown

{(ROOT / "README.md").read_text()}"""
    files = {
        f"{NAME}-{VERSION}.data/scripts/{NAME}": program.read_bytes(),
        f"{info}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: false\n{each}".encode(),
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{NAME}-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is made
            entry.external_attr = (0o100755 if "/scripts/" in name else 0o100644) << 16
            out.writestr(entry, content, zipfile.ZIP_DEFLATED)
    print(path)


def npm(name, more, files, folder):
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        package = {"name": name, "version": VERSION, "description": ABOUT, "license": LICENSE, **more}
        (work / "package.json").write_text(json.dumps(package, indent=2) + "\n")
        for path, source in {"LICENSE": ROOT / "LICENSE", **files}.items():
            (work / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, work / path)
            (work / path).chmod(0o755 if path.startswith("bin/") else 0o644)
        print(folder / run("npm", "pack", "--silent", "--pack-destination", str(folder), str(work)).strip())


def main():
    if len(sys.argv) != 3:
        die("failed to read arguments: a program and a folder are needed", "python3 deploy/pack.py target/release/ringfence target/packages")
    program, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    machine, cpu, glibc = needs(program)
    wheel(program, machine, glibc, folder)
    # One package has the launcher, and one for each processor the program; npm installs the one whose `cpu` fits.
    platforms = {f"@{NAME}/linux-{cpu}": VERSION for _, cpu in MACHINES.values()}
    launcher = {"README.md": ROOT / "README.md", "bin/ringfence.js": ROOT / "deploy/npm/ringfence.js"}
    npm(NAME, {"bin": {NAME: "bin/ringfence.js"}, "optionalDependencies": platforms}, launcher, folder)
    fits = {"os": ["linux"], "cpu": [cpu], **({"libc": ["glibc"]} if glibc else {}), "preferUnplugged": True}
    npm(f"@{NAME}/linux-{cpu}", fits, {"bin/ringfence": program}, folder)


main()
