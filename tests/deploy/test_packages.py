"""The unit, the Debian package, images, compose, platforms."""

import json
import os
import re
import shutil
import signal
import subprocess
import tomllib
import unittest
from pathlib import Path

from support import BINARY, Case, DEPLOY, environment, of_the_whole, PATIENCE_SECS, ROOT, run, SECRETS, spare_port, tool


class Packages(Case):
    def test_the_unit_is_one_and_is_hardened(self):
        systemd = tool("systemd-analyze")
        text = (DEPLOY / "systemd/ringfence.service").read_text()
        unit = self.folder / "ringfence.service"
        unit.write_text(text.replace("/usr/bin/ringfence", BINARY).replace("User=ringfence", "User=root").replace("Group=ringfence", "Group=root"))
        said = self.succeeds(systemd, "verify", unit)
        self.assertEqual(re.findall(r"ringfence\.service.*", said), [])
        exposure = self.succeeds(systemd, "security", "--offline=true", DEPLOY / "systemd/ringfence.service")
        level = float(re.search(r"Overall exposure level for ringfence.service: ([\d.]+)", exposure)[1])
        self.assertLessEqual(level, 2.0, exposure)

    def test_configs_can_be_used_and_say_nothing_odd(self):
        for name in ("debian", "docker", "platforms"):
            with self.subTest(name):
                env = environment(RINGFENCE_PUBLIC_URL="https://hooks.example.com", PORT="8081")
                if name == "debian":
                    del env["RINGFENCE_TOKEN_SECRET"]
                done = run(BINARY, "check", "--json", "--config", DEPLOY / name / "ringfence.toml", env=env)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                # W003, W005: a first config with ElevenLabs alone. W008: the variable of this test. W016: the mode in the repository.
                codes = set(re.findall(r"\b[EW]0\d\d\b", done.stdout + done.stderr)) - {"W003", "W005", "W008", "W016"}
                self.assertEqual(codes, set(), done.stdout)

    def test_every_variable_of_a_config_is_in_its_list(self):
        for config, listed in (("debian/ringfence.toml", "debian/ringfence.env"), ("docker/ringfence.toml", "docker/compose.yml"),
                               ("platforms/ringfence.toml", "platforms/render.yaml")):
            names = re.findall(r'env = "(\w+)"', (DEPLOY / config).read_text())
            text = (DEPLOY / listed).read_text()
            for name in names:
                if name != "REDIS_URL":
                    self.assertRegex(text, rf"\b{name}\b", listed)
        example = (DEPLOY / "docker/env.example").read_text()
        for name in re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "docker/compose.yml").read_text()):
            self.assertRegex(example, rf"(?m)^{name}=", name)

    def test_every_asset_of_the_debian_package_is_there(self):
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]
        for source, _, _ in manifest["assets"]:
            if not source.startswith("target/"):
                self.assertTrue(list(ROOT.glob(source)), source)
        for script in ("postinst", "postrm"):
            text = (ROOT / manifest["maintainer-scripts"] / script).read_text()
            self.assertIn("#DEBHELPER#", text)
            self.succeeds("sh", "-n", "-c", text)

    @of_the_whole
    def test_a_static_program_needs_no_library(self):
        built = run("bash", DEPLOY / "static.sh", "--profile", "dev")
        self.assertEqual(built.returncode, 0, built.stderr)
        program = built.stdout.strip()
        said = self.succeeds(tool("readelf"), "--wide", "--program-headers", "--dynamic", program)
        self.assertNotRegex(said, "program interpreter|Shared library")
        self.succeeds(program, "demo")
        if os.getuid() == 0:
            root = self.folder / "empty"
            root.mkdir()
            shutil.copy(program, root / "ringfence")
            self.assertEqual(run("chroot", root, "/ringfence", "--version").stdout, run(BINARY, "--version").stdout)

    def package(self):
        """The Debian package: by cargo-deb, or put together as its table in Cargo.toml says where there is none."""
        package = self.folder / "ringfence.deb"
        # What deploy/debian/package.sh lets the program write.
        self.succeeds("bash", DEPLOY / "debian/package.sh", "--files", BINARY, ROOT / "target/debian-files")
        if shutil.which("cargo-deb"):
            out = self.folder / "target/release"
            out.mkdir(parents=True)
            shutil.copy(BINARY, out / "ringfence")
            env = {**os.environ, "CARGO_TARGET_DIR": str(self.folder / "target")}
            self.succeeds("cargo-deb", "deb", "--no-build", "--no-strip", "--fast", "--output", package, cwd=ROOT, env=env)
            return package
        manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]
        tree = self.folder / "package"
        unit = ["deploy/systemd/ringfence.service", "usr/lib/systemd/system/", "644"]
        for source, target, mode in [*manifest["assets"], unit]:
            files = [Path(BINARY)] if source == "target/release/ringfence" else ROOT.glob(source)
            for file in files:
                to = tree / target / file.name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)
                to.chmod(int(mode, 8))
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            "Package: ringfence\nVersion: 0.1.0\nArchitecture: all\nMaintainer: test <test@localhost>\nDescription: test\n"
        )
        (tree / "DEBIAN/conffiles").write_text("".join(f"{file}\n" for file in manifest["conf-files"]))
        for script in ("postinst", "postrm"):
            shutil.copy(ROOT / manifest["maintainer-scripts"] / script, tree / "DEBIAN")
        self.succeeds(tool("dpkg-deb"), "-Znone", "--root-owner-group", "--build", tree, package)
        return package

    def inside(self, script):
        """Runs a script where / is this machine as it is and /mnt/all the same with the package beside it, of which nothing stays:
        what is written goes to a layer in memory."""
        if os.geteuid() != 0:
            raise unittest.SkipTest("root alone may mount an overlay")
        package = self.package()
        layer = f"""
            set -e
            mount -t tmpfs -o size=2g tmpfs /mnt
            mkdir /mnt/up /mnt/work /mnt/all
            mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/all || {{ echo no overlay; exit; }}
            cp {package} /mnt/all/ringfence.deb
        """
        done = run("unshare", "--mount", "sh", "-c", layer + script)
        if "no overlay" in done.stdout:
            raise unittest.SkipTest(f"no overlay here: {done.stderr.strip()}")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    @of_the_whole
    def test_the_debian_package_installs_and_goes(self):
        said = self.inside("""
            chroot /mnt/all sh -ec '
                dpkg -i --force-depends /ringfence.deb
                getent passwd ringfence
                grep -q "^.TH ringfence-calls-list 1" /usr/share/man/man1/ringfence-calls-list.1
                bash -n /usr/share/bash-completion/completions/ringfence
                grep -q "^#compdef ringfence" /usr/share/zsh/vendor-completions/_ringfence
                grep -q "^complete -c ringfence" /usr/share/fish/vendor_completions.d/ringfence.fish
                /usr/share/ringfence/backup.sh 2>&1 | grep -q "usage: backup.sh"
                stat -c "%U:%G %a %n" /etc/ringfence /etc/ringfence/ringfence.toml /etc/ringfence/ringfence.env
                ELEVENLABS_API_KEY=k setpriv --reuid=ringfence --regid=ringfence --clear-groups \\
                    ringfence check --config /etc/ringfence/ringfence.toml
                echo changed=1 >> /etc/ringfence/ringfence.env
                dpkg -i --force-depends --force-confold /ringfence.deb
                grep -q changed=1 /etc/ringfence/ringfence.env
                mkdir -p /var/lib/ringfence && touch /var/lib/ringfence/ringfence.db
                dpkg --remove ringfence
                test ! -e /usr/bin/ringfence && test -e /var/lib/ringfence/ringfence.db && test -e /etc/ringfence/ringfence.toml
                dpkg --purge ringfence
                test ! -e /var/lib/ringfence && test ! -e /etc/ringfence
                echo gone
            '
        """)
        for line in ("root:ringfence 750 /etc/ringfence", "root:ringfence 640 /etc/ringfence/ringfence.toml",
                     "root:ringfence 640 /etc/ringfence/ringfence.env", "gone"):
            self.assertIn(line, said)

    @of_the_whole
    def test_the_service_under_systemd(self):
        tool("systemd-nspawn")
        (self.folder / "try.sh").write_text("""
            export RINGFENCE_CONFIG=/etc/ringfence/ringfence.toml
            say() { echo "$1: $(systemctl show --property "$2" --value ringfence)"; }
            serves() { for _ in $(seq 100); do ringfence calls list >/dev/null 2>&1 && return; sleep 0.1; done; false; }
            systemctl start ringfence && serves && echo "started: $(systemctl is-active ringfence)"
            grep -E "^(Uid|NoNewPrivs|Seccomp|CapEff):" "/proc/$(systemctl show --property MainPID --value ringfence)/status" | tr -s "\t" " "
            systemctl reload ringfence && echo reloaded
            sed -i s/concurrent/concurent/ $RINGFENCE_CONFIG
            systemctl reload ringfence || echo "not reloaded: $(systemctl is-active ringfence)"
            systemctl restart ringfence; sleep 3
            say "a config that cannot be used" Result; say "its tries" NRestarts
            sed -i s/concurent/concurrent/ $RINGFENCE_CONFIG
            systemctl start ringfence && serves
            systemctl kill --signal=KILL ringfence; sleep 2; serves
            say "killed, started again" NRestarts
            systemctl stop ringfence
            say "stopped" Result
            poweroff -f
        """)
        said = self.inside(f"""
            cp {self.folder}/try.sh /mnt/all/try.sh
            chroot /mnt/all dpkg -i --force-depends /ringfence.deb
            printf 'ELEVENLABS_API_KEY=k\\nRINGFENCE_ACCOUNTS_ELEVENLABS_UPSTREAM=http://127.0.0.1:9\\n' >/mnt/all/etc/ringfence/ringfence.env
            rm -f /mnt/all/etc/machine-id && : >/mnt/all/etc/machine-id
            # Nothing else of this machine is started.
            cat >/mnt/all/etc/systemd/system/try.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/bash /try.sh
StandardOutput=file:/try.log
StandardError=file:/try.log
UNIT
            printf '[Unit]\\nDefaultDependencies=no\\nWants=try.service\\n' >/mnt/all/etc/systemd/system/try.target
            timeout 120 systemd-nspawn --quiet --directory=/mnt/all --register=no --keep-unit --private-network --boot -- --unit=try.target \\
                </dev/null >/mnt/console 2>&1 || true
            if [ -e /mnt/all/try.log ]; then cat /mnt/all/try.log; else echo no systemd; tail -n 5 /mnt/console; fi
        """)
        if "no systemd" in said:
            raise unittest.SkipTest(f"systemd does not boot here: {said[-500:]}")
        for line in ("started: active", "NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000000000000", "reloaded", "not reloaded: active",
                     "a config that cannot be used: exit-code", "its tries: 0", "killed, started again: 1", "stopped: success"):
            self.assertIn(line, said.splitlines())
        self.assertNotIn("Uid: 0", said)

    def test_dockerfiles_are_clean(self):
        hadolint = tool("hadolint")
        self.succeeds(hadolint, ROOT / "Dockerfile", DEPLOY / "platforms/Dockerfile")

    def test_the_image_is_of_no_user_and_what_it_copies_is_sent(self):
        text = (ROOT / "Dockerfile").read_text()
        self.assertRegex(text, r"(?m)^USER 65532:65532$")
        self.assertRegex(text, r'(?m)^ENTRYPOINT \["/usr/bin/ringfence"\]$')
        # Whatever the program includes at build time is not held back by .dockerignore.
        sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for source in (ROOT / "src").rglob("*.rs"):
            for path in re.findall(r'include_str!\("((?:\.\./)+[\w./-]+)"\)', source.read_text()):
                inside = os.path.relpath((source.parent / path).resolve(), ROOT)
                self.assertTrue(any(inside == one or inside.startswith(one + "/") for one in sent), f"{source}: {path}")

    def test_the_image_answers_from_outside(self):
        def variables(file):
            return dict(re.findall(r'\b(RINGFENCE_LISTEN_\w+)=(?:"")?([\w.:]*)', (ROOT / file).read_text()))

        listen = variables("Dockerfile")
        self.assertEqual(set(listen), {f"RINGFENCE_LISTEN_{name}" for name in ("API", "WEBHOOKS", "CLIENT", "PROBES")})
        exposed = re.search(r"(?m)^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text())[1].split()
        for where in listen.values():
            self.assertRegex(where, r"^0\.0\.0\.0:\d+$")
            self.assertIn(where.split(":")[1], exposed)
        # With a key alone, as the docs run it.
        free = {name: re.sub(r":\d+$", ":0", where) for name, where in listen.items()}
        alone = {**environment(**free, RINGFENCE_LISTEN_ADMIN="127.0.0.1:0"), **dict.fromkeys(SECRETS, ""), "ELEVENLABS_API_KEY": "k"}
        ready = self.start("serve", BINARY, "serve", "--concurrent", "4", "--ready-json", env=alone)
        self.assertTrue(ready["api"].startswith("0.0.0.0:"), ready)
        # A config that says more: an image made of this one leaves it to that.
        self.assertEqual(variables("deploy/platforms/Dockerfile"), dict.fromkeys(listen, ""))
        env = environment(RINGFENCE_PUBLIC_URL="https://hooks.example.com", PORT="8081", **dict.fromkeys(listen, ""))
        self.succeeds(BINARY, "check", "--config", DEPLOY / "platforms/ringfence.toml", env=env)

    @of_the_whole
    def test_the_image_is_built_without_a_daemon_and_answers(self):
        """The last stage of the Dockerfile, over the C library of this machine instead of the base image, which comes from a registry."""
        if os.geteuid() != 0:
            raise unittest.SkipTest("buildah is tried as root alone")
        folders = [flag for name in ("root", "runroot") for flag in (f"--{name}", str(self.folder / name))]
        buildah = [tool("buildah"), *folders, "--storage-driver", "vfs"]
        out = self.folder / "context/out"
        for source, target in ((BINARY, "usr/bin/ringfence"), (ROOT / "config/reference.toml", "usr/share/doc/ringfence/reference.toml")):
            (out / target).parent.mkdir(parents=True)
            shutil.copy(source, out / target)
        self.succeeds(tool("strip"), out / "usr/bin/ringfence")
        (out / "var/lib/ringfence").mkdir(parents=True)
        base = ["FROM scratch AS build", "COPY out/ /out/", "FROM scratch"]
        for library in re.findall(r"(/\S+) \(0x", run("ldd", BINARY).stdout):
            (out / "base" / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, out / "base" / library[1:])
        if (out / "base").exists():
            base.append("COPY --from=build /out/base/ /")
        last = (ROOT / "Dockerfile").read_text().split("FROM ${RUN_IMAGE}\n")[1]
        (self.folder / "context/Dockerfile").write_text("\n".join([*base, last]))
        self.succeeds(*buildah, "bud", "--isolation", "chroot", "--format", "docker", "--tag", "ringfence", self.folder / "context")
        container = self.succeeds(*buildah, "from", "ringfence").strip()
        within = [*buildah, "run", "--isolation", "chroot"]
        listen = {f"RINGFENCE_LISTEN_{name}": f"0.0.0.0:{spare_port()}" for name in ("API", "WEBHOOKS", "CLIENT", "PROBES", "ADMIN")}
        listen["RINGFENCE_LISTEN_ADMIN"] = listen["RINGFENCE_LISTEN_ADMIN"].replace("0.0.0.0", "127.0.0.1")
        settings = [f"--env={name}={value}" for name, value in {**listen, "ELEVENLABS_API_KEY": "k"}.items()]
        log = (self.folder / "image.log").open("wb")
        self.addCleanup(log.close)
        serve = [*within, *settings, container, "--", "/usr/bin/ringfence", "serve", "--concurrent", "4"]
        process = subprocess.Popen(serve, stdout=log, stderr=log, start_new_session=True)
        self.addCleanup(process.wait, PATIENCE_SECS)
        self.addCleanup(os.killpg, process.pid, signal.SIGTERM)
        check = json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", last)[1])
        self.wait_for(lambda: run(*within, container, "--", *check).stdout == "ok\n", "the image's own health check")
        database = Path(self.succeeds(*buildah, "mount", container).strip()) / "var/lib/ringfence/ringfence.db"
        self.assertEqual(database.stat().st_uid, 65532)

    def test_health_checks_of_containers_say_how_it_is(self):
        """The commands of the image and of compose, beside a ringfence that asks for tokens."""
        texts = ((ROOT / "Dockerfile").read_text(), (DEPLOY / "docker/compose.yml").read_text())
        image = json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", texts[0])[1])
        compose = re.search(r"test: \[CMD, (/usr/bin/ringfence.*)\]", texts[1])[1].split(", ")
        self.ringfence('admin = { token_secret = { env = "RINGFENCE_TOKEN_SECRET" } }')
        ask = [[BINARY, *command[1:]] for command in (image, compose) if command[0] == "/usr/bin/ringfence"]
        self.assertEqual(len(ask), 2)
        done = [run(*command, cwd=self.folder, env=environment()) for command in ask]
        self.assertEqual([one.stdout for one in done], ["ok\n", "ready\n"])
        self.processes["serve"].terminate()
        self.processes["serve"].wait()
        self.assertEqual([run(*command, cwd=self.folder, env=environment()).returncode for command in ask], [1, 1])

    def test_compose_is_what_compose_reads(self):
        check = tool("check-jsonschema")
        self.succeeds(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "docker/compose.yml")

    def test_platform_files_parse_and_agree_on_the_port(self):
        config = tomllib.loads((DEPLOY / "platforms/ringfence.toml").read_text())
        fly = tomllib.loads((DEPLOY / "platforms/fly.toml").read_text())
        port = fly["env"]["PORT"]
        self.assertEqual(config["listen"]["public"].rsplit(":", 1)[1], "$PORT")
        self.assertEqual(str(fly["http_service"]["internal_port"]), port)
        self.assertEqual(config["listen"]["admin"].rsplit(":", 1)[1], str(fly["metrics"]["port"]))
        self.assertIn(f'- key: PORT # where Render sends requests: listen.public\n        value: "{port}"',
                      (DEPLOY / "platforms/render.yaml").read_text())
        railway = json.loads((DEPLOY / "platforms/railway.json").read_text())
        self.assertTrue((ROOT / railway["build"]["dockerfilePath"]).exists())

    def test_shell_scripts_are_clean(self):
        shellcheck = tool("shellcheck")
        scripts = [*sorted(DEPLOY.rglob("*.sh")), ROOT / "tests/run.sh", ROOT / ".ci/run", ROOT / ".ci/deny"]
        self.assertGreater(len(scripts), 20)
        # SC2119: a function that takes arguments may be called without.
        self.succeeds(shellcheck, "-x", "-e", "SC2119", *scripts, cwd=ROOT)
