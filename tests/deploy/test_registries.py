"""The Python wheel and the npm packages, made of the built program and installed from their files, without a network."""

import base64
import csv
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

from support import BINARY, Case, DEPLOY, environment, of_the_whole, PATIENCE_SECS, ROOT, run, tool

PACK = DEPLOY / "pack.py"


def child_of(process):
    """The one process that another has started, from whichever of its threads."""
    [child] = (int(one) for tasks in Path(f"/proc/{process.pid}/task").glob("*/children") for one in tasks.read_text().split())
    return child


class Packing(Case):
    """Any program of this machine will do; a small one is packed in no time."""

    def test_the_same_program_gives_the_same_files(self):
        programs = [self.folder / "one/ringfence", self.folder / "two/ringfence"]
        for n, program in enumerate(programs):
            program.parent.mkdir()
            shutil.copyfile("/bin/true", program)
            program.chmod(0o755 - n * 0o111)
            os.utime(program, (n * 1e9, n * 1e9))
            self.succeeds(sys.executable, PACK, program, program.parent)
            program.unlink()
        files = [{path.name: path.read_bytes() for path in program.parent.iterdir()} for program in programs]
        self.assertEqual(len(files[0]), 3)
        self.assertEqual(*files)

    def test_a_program_of_another_processor_adds_its_own(self):
        program = bytearray(Path("/bin/true").read_bytes())
        for machine in (62, 183):  # e_machine in the header: x86-64, AArch64
            program[18] = machine
            (self.folder / "program").write_bytes(program)
            self.succeeds(sys.executable, PACK, self.folder / "program", self.folder / "packages")
        kinds = {re.sub(r"-\d+\.\d+\.\d+|manylinux_\d+_\d+_", "", path.name) for path in (self.folder / "packages").iterdir()}
        self.assertEqual(kinds, {"ringfence.tgz", "ringfence-linux-x64.tgz", "ringfence-linux-arm64.tgz",
                                 "ringfence-py3-none-x86_64.whl", "ringfence-py3-none-aarch64.whl"})

    def test_a_static_program_is_for_every_c_library(self):
        source, program = self.folder / "program.c", self.folder / "program"
        source.write_text("int main(void) { return 0; }")
        self.succeeds("cc", "-static", "-o", program, source)
        self.succeeds(sys.executable, PACK, program, self.folder / "packages")
        [wheel] = (self.folder / "packages").glob("*.whl")
        machine = os.uname().machine
        self.assertTrue(wheel.stem.endswith(f"-py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"), wheel)
        with zipfile.ZipFile(wheel) as content:
            [info] = [name for name in content.namelist() if name.endswith("/WHEEL")]
            tags = re.findall(r"(?m)^Tag: (.*)$", content.read(info).decode())
        self.assertEqual(tags, [f"py3-none-manylinux_2_17_{machine}", f"py3-none-musllinux_1_1_{machine}"])
        venv = self.folder / "venv"
        self.succeeds(sys.executable, "-m", "venv", venv)
        self.succeeds(venv / "bin/pip", "install", "--no-index", wheel)
        self.succeeds(venv / "bin/ringfence")
        [package] = (self.folder / "packages").glob("ringfence-linux-*.tgz")
        self.assertNotIn("glibc", self.succeeds("tar", "-xzOf", package, "package/package.json"))

    def test_what_would_not_run_elsewhere_is_not_packed(self):
        done = run(sys.executable, PACK, tool("curl"), self.folder)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^error: failed to make portable packages: .* needs .*libcurl\.so\.4.*\n hint: ")
        self.assertEqual(list(self.folder.iterdir()), [])


class Registries(Case):
    @classmethod
    def setUpClass(cls):
        tool("readelf")
        tool("npm")
        folder = tempfile.TemporaryDirectory(prefix="ringfence-packages-")
        cls.addClassCleanup(folder.cleanup)
        cls.packages = Path(folder.name)
        # Symbols are most of a debug build, and would be packed twice.
        program = cls.packages / "program"
        stripped = run(tool("strip"), "-o", program, BINARY)
        assert stripped.returncode == 0, stripped.stderr
        packed = run(sys.executable, PACK, program, cls.packages)
        assert packed.returncode == 0, packed.stderr
        cls.version = run(BINARY, "--version").stdout
        [cls.wheel] = cls.packages.glob("*.whl")

    def npm_install(self, *packages):
        env = environment(npm_config_cache=str(self.folder / "cache"))
        said = self.succeeds("npm", "install", "--offline", "--no-audit", "--no-fund", *packages, cwd=self.folder, env=env)
        return self.folder / "node_modules/.bin/ringfence", said

    def npm_packages(self):
        main, *platforms = sorted(self.packages.glob("*.tgz"))
        self.assertRegex(f"{main.name} {platforms[0].name}", r"^ringfence-[\d.]+\.tgz ringfence-linux-(x64|arm64)-[\d.]+\.tgz$")
        return main, *platforms

    def assert_drains(self, *command):
        """SIGTERM drains a ringfence that was started through a launcher, and the launcher ends after it, with its exit code."""
        self.ringfence(command=command)
        launcher = self.processes["serve"]
        child = child_of(launcher)
        launcher.send_signal(signal.SIGTERM)
        self.assertEqual(launcher.wait(PATIENCE_SECS), 0)
        self.assertFalse(Path(f"/proc/{child}").exists())
        self.assertRegex((self.folder / "serve.log").read_text(), r"draining .*\n(.*\n)*.* stopped")

    def test_the_wheel_says_what_it_is(self):
        with zipfile.ZipFile(self.wheel) as wheel:
            names = wheel.namelist()
            info = names[-1].removesuffix("RECORD")
            record = list(csv.reader(wheel.read(f"{info}RECORD").decode().splitlines()))
            self.assertEqual([path for path, _, _ in record], names)
            for path, digest, size in record[:-1]:
                content = wheel.read(path)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                self.assertEqual((digest, size), (f"sha256={wanted}", str(len(content))), path)
            metadata = message_from_bytes(wheel.read(f"{info}METADATA"))
            tag = re.search(r"Tag: (.*)", wheel.read(f"{info}WHEEL").decode())[1]
        self.assertEqual(self.version, f"{metadata['Name']} {metadata['Version']}\n")
        self.assertEqual(metadata.get_payload(decode=True), (ROOT / "README.md").read_bytes())
        self.assertTrue(self.wheel.stem.endswith(tag), tag)
        # The tag is the program's need, as another reader of it says.
        symbols = self.succeeds("objdump", "--dynamic-syms", BINARY)
        newest = max(int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", symbols))
        self.assertEqual(tag, f"py3-none-manylinux_2_{newest}_{os.uname().machine}")

    @of_the_whole
    def test_the_wheel_installs_with_pip(self):
        venv = self.folder / "venv"
        self.succeeds(sys.executable, "-m", "venv", venv)
        self.succeeds(venv / "bin/pip", "install", "--no-index", self.wheel)
        self.assertEqual(run(venv / "bin/ringfence", "--version").stdout, self.version)
        self.succeeds(venv / "bin/pip", "uninstall", "--yes", "ringfence")
        self.assertFalse((venv / "bin/ringfence").exists())

    def test_uvx_runs_the_wheel_and_passes_sigterm_on(self):
        uvx = tool("uvx")
        command = [uvx, "--offline", "--no-config", "--cache-dir", self.folder / "uv", "--python", sys.executable]
        command += ["--from", self.wheel, "ringfence"]
        self.assertIn(self.version, self.succeeds(*command, "--version"))
        self.assertEqual(run(*command, "no-such-command").returncode, 2)
        self.assert_drains(*command)

    def test_npx_runs_the_package_of_the_platform(self):
        self.npm_install(*self.npm_packages())
        self.assertEqual(run("npx", "--offline", "ringfence", "--version", cwd=self.folder).stdout, self.version)
        self.assertEqual(run("npx", "--offline", "ringfence", "no-such-command", cwd=self.folder).returncode, 2)

    def test_the_launcher_passes_on_streams_arguments_and_signals(self):
        launcher, _ = self.npm_install(*self.npm_packages())
        done = run(launcher, "check", "--config", "/dev/stdin", input="concurent = 1 # a b", env=environment())
        straight = run(BINARY, "check", "--config", "/dev/stdin", input="concurent = 1 # a b", env=environment())
        self.assertEqual((done.returncode, done.stdout, done.stderr), (straight.returncode, straight.stdout, straight.stderr))
        self.assertEqual(done.returncode, 2)
        self.assert_drains(launcher)

    def test_the_launcher_ends_by_the_signal_that_ended_ringfence(self):
        launcher, _ = self.npm_install(*self.npm_packages())
        self.start("simulate", launcher, "simulate", "--listen", "127.0.0.1:0", "--ready-json")
        process = self.processes["simulate"]
        os.kill(child_of(process), signal.SIGKILL)
        self.assertEqual(process.wait(PATIENCE_SECS), -signal.SIGKILL)

    def test_the_launcher_says_which_package_is_missing(self):
        launcher, _ = self.npm_install(self.npm_packages()[0])
        done = run(launcher, "--version")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^error: failed to find package @ringfence/linux-\w+\n hint: .*--omit=optional\n$")
