"""What is in deploy/, checked with the programs that will read it: promtool, nginx, systemd, and ringfence itself.

A tool that is not here skips its test; in CI those of `tests/run.sh` must be there.
"""

import concurrent.futures
import functools
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import tomllib
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


def tool(name, required=True):
    """Where a program is, or None after a skip."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        if required and os.environ.get("CI"):
            raise AssertionError(f"{name} is missing: tests/run.sh installs it")
        raise unittest.SkipTest(f"there is no {name} here")
    return found


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

        def end():
            process.terminate()
            process.wait(PATIENCE_SECS)
            process.stdout.close()

        self.addCleanup(end)
        line = process.stdout.readline()
        self.assertTrue(line, (self.folder / f"{name}.log").read_text())
        return json.loads(line)

    def ringfence(self, toml="", **env):
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
        return sim, self.start("serve", BINARY, "serve", "--ready-json", env=environment(**env))

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


# === metrics, alerts, dashboard ===


@functools.cache
def metrics():
    """Every metric with its labels, as src/metrics.rs makes it."""
    source = (ROOT / "src/metrics.rs").read_text()
    found = {}
    makes = r'm\s*\.(gauge|gauges|counter|counters|seconds)\(\s*"(\w+)",\s*"(?:[^"\\]|\\.)*",?\s*(?:&\[([^\]]*)\])?'
    for kind, name, labels in re.findall(makes, source):
        names = set(re.findall(r'"(\w+)"', labels))
        found[name] = names
        if kind == "seconds":
            found[f"{name}_bucket"] = names | {"le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = names
    return found


def panels():
    board = json.loads((DEPLOY / "grafana/ringfence.json").read_text())
    return board, [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board, shown):
    own = {"$__rate_interval": "5m", "$job": ".*"}
    all_of = [target["expr"] for panel in shown for target in panel["targets"]]
    all_of += [annotation["expr"] for annotation in board["annotations"]["list"]]
    for old, new in own.items():
        all_of = [expression.replace(old, new) for expression in all_of]
    return all_of


def rules_text():
    return (DEPLOY / "prometheus/alerts.yml").read_text()


class Observing(Case):
    def held_to_the_source(self, text):
        """Every selector in a text names a metric and labels that the program has."""
        known = metrics()
        prefixes = "ringfence_|platform_|concurrent_rejected|elevenlabs_429|active_call_|subscription_"
        selectors = re.findall(rf"\b((?:{prefixes})\w+)(?:\{{([^}}]*)\}})?", text)
        self.assertTrue(selectors)
        for name, matchers in selectors:
            self.assertIn(name, known)
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                self.assertIn(label, known[name] | {"job", "instance"}, f"{name}{{{matchers}}}")
        return {name for name, _ in selectors}

    def test_the_source_is_read_whole(self):
        self.assertGreater(len(metrics()), 40)
        self.assertEqual(metrics()["concurrent_rejected_total"], {"reason", "plan"})
        self.assertEqual(metrics()["platform_global_active_calls"], set())

    def test_metrics_of_the_source_are_those_of_the_program(self):
        _, ready = self.ringfence()
        self.assertEqual([self.place(ready, f"+155520000{n}0") for n in range(3)], [200, 200, 503])
        with urllib.request.urlopen(f"http://{ready['admin']}/metrics") as answer:
            text = answer.read().decode()
        exported = set(re.findall(r"^# TYPE (\w+)", text, re.M))
        # One with labels is exported from its first event on; one without, always.
        without = {name for name, labels in metrics().items() if not labels}
        self.assertLessEqual(without, exported)
        self.assertLessEqual(exported, set(metrics()))
        for name, labels in re.findall(r"^(\w+)\{([^}]*)\} ", text, re.M):
            self.assertEqual(set(re.findall(r'(\w+)="', labels)), metrics()[name], name)

    def test_rules_name_metrics_that_exist(self):
        self.held_to_the_source(re.sub(r'"(?:[^"\\]|\\.)*[a-z] (?:[^"\\]|\\.)*"|^ *#.*$', "", rules_text(), flags=re.M))
        for name in re.findall(r"by \(([^)]*)\)", rules_text()):
            for label in name.split(", "):
                known = set().union(*metrics().values()) | {"instance", "job"}
                self.assertIn(label, known)

    def test_rules_fire_and_stay_quiet(self):
        promtool = tool("promtool")
        self.succeeds(promtool, "check", "rules", "alerts.yml", cwd=DEPLOY / "prometheus")
        self.succeeds(promtool, "test", "rules", "alerts_test.yml", cwd=DEPLOY / "prometheus")

    def test_every_alert_is_tried_both_ways(self):
        tests = (DEPLOY / "prometheus/alerts_test.yml").read_text()
        alerts = re.findall(r"- alert: (\w+)", rules_text())
        self.assertEqual(len(alerts), len(set(alerts)))
        for alert in alerts:
            for way in ("fires", "stays quiet"):
                self.assertIn(f'name: "{alert} {way}"', tests)

    def test_every_alert_has_its_page(self):
        page = (ROOT / "docs/runbook.md").read_text()
        headings = re.findall(r"^#+ (.+)$", page, re.M)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        for name, block in re.findall(r"- alert: (\w+)\n((?:(?!  - alert:).*\n)*)", rules_text()):
            where = re.search(r"runbook: (\S+)#(\S+)", block)
            self.assertIsNotNone(where, name)
            self.assertEqual(where[1], "docs/runbook.md")
            self.assertIn(where[2], anchors, name)

    def test_expressions_of_the_dashboard_parse_and_name_metrics_that_exist(self):
        board, shown = panels()
        all_of = expressions(board, shown)
        named = set().union(*(self.held_to_the_source(expr) for expr in all_of if "up{" not in expr))
        plain = {name.removesuffix("_bucket") for name in named}
        bare = {name for name in metrics() if not re.search(r"_(bucket|sum|count)$", name)}
        bare |= {"active_call_sessions_count", "subscription_active_calls_sum"}
        left_out = {"ringfence_gate_epoch", "ringfence_alias_conflicts_total", "ringfence_certificate_reloads_total",
                    "ringfence_webhook_last_timestamp_seconds"}
        self.assertEqual(bare - plain - left_out, set(), "metrics that no panel shows")
        promtool = tool("promtool")
        rules = [{"record": f"ringfence:panel{n}", "expr": expr} for n, expr in enumerate(all_of)]
        # JSON is YAML.
        (self.folder / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
        self.succeeds(promtool, "check", "rules", "--lint=none", self.folder / "panels.yml")

    def test_panels_do_not_cover_one_another(self):
        board, shown = panels()
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = {}
        for panel in shown:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    self.assertIsNone(taken.setdefault((x, y), None), panel["title"])
                    taken[x, y] = panel["title"]

    def test_scrape_config_is_prometheus_own(self):
        promtool = tool("promtool")
        for file in ("scrape.yml", "alerts.yml"):
            shutil.copy(DEPLOY / "prometheus" / file, self.folder)
        self.succeeds(promtool, "check", "config", self.folder / "scrape.yml")


# === the unit, the packages ===


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
                env = environment(RINGFENCE_PUBLIC_URL="https://hooks.example.com")
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

    def package(self):
        """The Debian package: by cargo-deb, or put together as its table in Cargo.toml says where there is none."""
        package = self.folder / "ringfence.deb"
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
            files = [Path(BINARY)] if source.startswith("target/") else ROOT.glob(source)
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

    def test_the_debian_package_installs_and_goes(self):
        said = self.inside("""
            chroot /mnt/all sh -ec '
                dpkg -i --force-depends /ringfence.deb
                getent passwd ringfence
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
        hadolint = tool("hadolint", required=False)
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

    def test_compose_is_what_compose_reads(self):
        check = tool("check-jsonschema", required=False)
        self.succeeds(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "docker/compose.yml")

    def test_platform_files_parse_and_agree_on_the_port(self):
        config = tomllib.loads((DEPLOY / "platforms/ringfence.toml").read_text())
        port = config["listen"]["webhooks"].rsplit(":", 1)[1]
        fly = tomllib.loads((DEPLOY / "platforms/fly.toml").read_text())
        self.assertEqual(str(fly["http_service"]["internal_port"]), port)
        self.assertEqual(config["listen"]["admin"].rsplit(":", 1)[1], str(fly["metrics"]["port"]))
        self.assertIn(f'- key: PORT # where Render sends requests: listen.webhooks\n        value: "{port}"',
                      (DEPLOY / "platforms/render.yaml").read_text())
        railway = json.loads((DEPLOY / "platforms/railway.json").read_text())
        self.assertTrue((ROOT / railway["build"]["dockerfilePath"]).exists())

    def test_shell_scripts_are_clean(self):
        shellcheck = tool("shellcheck", required=False)
        scripts = sorted((DEPLOY / "incidents").glob("*.sh")) + [DEPLOY / "backup.sh"]
        self.succeeds(shellcheck, "-x", *scripts, cwd=ROOT)


class Chart(Case):
    VARIANTS = (
        (),
        ("mode=sidecar", "serviceMonitor.enabled=true"),
        ("persistence.enabled=false", "migrate.enabled=false", "preStopSleepSeconds=0", "networkPolicy.enabled=false"),
        ("serviceMonitor.enabled=true", "serviceMonitor.tokenSecret.name=t", "prometheusRule.enabled=true",
         "grafanaDashboard.enabled=true", "ingress.enabled=true", "ingress.tlsSecretName=t", "ingress.className=nginx"),
    )

    def rendered(self, *settings):
        helm = tool("helm", required=False)
        flags = [part for setting in settings for part in ("--set", setting)]
        done = run(helm, "template", "prod", DEPLOY / "helm/ringfence", *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_lint(self):
        helm = tool("helm", required=False)
        self.assertIn("0 chart(s) failed", self.succeeds(helm, "lint", "--strict", DEPLOY / "helm/ringfence"))

    def test_objects_are_what_kubernetes_takes(self):
        validate = tool("kubernetes-validate", required=False)
        for n, settings in enumerate(self.VARIANTS):
            for version in ("1.30.0", "1.37.0"):
                file = self.folder / f"{n}.yaml"
                file.write_text(self.rendered(*settings))
                self.succeeds(validate, "--strict", "--no-warn", "-k", version, file)

    def test_values_that_mean_nothing_are_refused(self):
        helm = tool("helm", required=False)
        for setting in ("mode=daemon", "replicsa=3", "replicas=0"):
            self.assertNotEqual(run(helm, "template", "x", DEPLOY / "helm/ringfence", "--set", setting).returncode, 0, setting)

    def test_its_config_with_its_variables_can_be_used(self):
        for settings in self.VARIANTS[:3]:
            text = self.rendered(*settings)
            toml = re.search(r"ringfence\.toml: \|\n((?:    .*\n|\s*\n)+)", text)[1]
            (self.folder / "ringfence.toml").write_text(re.sub(r"(?m)^ {4}", "", toml))
            env = dict(re.findall(r'- name: (RINGFENCE_\w+)\s+value: "?([^"\n]+)"?', text))
            env["RINGFENCE_CONFIG"] = str(self.folder / "ringfence.toml")
            done = run(BINARY, "check", "--json", env=environment(**env))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("W007", done.stdout)

    def test_an_app_takes_it_as_a_sidecar_as_the_docs_say(self):
        helm, page = tool("helm", required=False), (ROOT / "docs/deploy.md").read_text()
        dependencies, values, pod = (
            re.search(rf"```yaml\n# {title}\n(.*?)```", page, re.S)[1]
            for title in (r"Chart\.yaml of the app", r"values\.yaml of the app", "its Deployment")
        )
        app = self.folder / "app"
        (app / "templates").mkdir(parents=True)
        shutil.copytree(DEPLOY / "helm/ringfence", self.folder / "ringfence")
        (app / "Chart.yaml").write_text(f"apiVersion: v2\nname: app\nversion: 0.1.0\n{dependencies}")
        (app / "values.yaml").write_text(values)
        pod = pod.replace("labels:\n", "labels:\n        app: app\n").replace("- name: app\n", "- name: app\n          image: app\n")
        head = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: app\n"
        pod = pod.replace("spec:\n", "spec:\n  selector:\n    matchLabels:\n      app: app\n", 1)
        (app / "templates/app.yaml").write_text(head + pod)
        env = {**os.environ, **{f"HELM_{what}_HOME": str(self.folder / what) for what in ("CACHE", "CONFIG", "DATA")}}
        self.succeeds(helm, "dependency", "build", app, env=env)
        done = run(helm, "template", "prod", app, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("kind: StatefulSet", done.stdout)
        for line in ("- restartPolicy: Always", 'value: 127.0.0.1:8080', "name: prod-ringfence", "image: registry.example.com/ringfence:0.1.0"):
            self.assertIn(line, done.stdout)
        validate = tool("kubernetes-validate", required=False)
        (self.folder / "app.yaml").write_text(done.stdout)
        self.succeeds(validate, "--strict", "--no-warn", "-k", "1.30.0", self.folder / "app.yaml")

    def test_its_alert_rules_are_rules(self):
        promtool = tool("promtool")
        text = self.rendered(*self.VARIANTS[3])
        spec = re.search(r"kind: PrometheusRule\n(?:.*\n)*?spec:\n((?:  .*\n|\n)+)", text)[1]
        (self.folder / "rules.yml").write_text(re.sub(r"(?m)^  ", "", spec))
        said = self.succeeds(promtool, "check", "rules", self.folder / "rules.yml")
        self.assertIn(f"{rules_text().count('- alert:') + rules_text().count('- record:')} rules", said)


# === fronts ===


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
        caddy = tool("caddy", required=False)
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


# === incidents, backup ===


class Incidents(Case):
    def test_each_is_found_by_the_commands_of_the_runbook(self):
        env = {**os.environ, "RINGFENCE_BIN": BINARY}
        incidents = DEPLOY / "incidents"
        scripts = sorted(incidents.glob("[01][0-9]-*.sh")) + sorted(incidents.glob("restore-*.sh"))
        self.assertEqual(len(scripts), 14)
        # They wait for most of their time.
        with concurrent.futures.ThreadPoolExecutor(3) as side_by_side:
            done = list(side_by_side.map(lambda script: run("bash", script, env=env), scripts))
        for script, one in zip(scripts, done):
            with self.subTest(script.name):
                if one.returncode == 77 and not (os.environ.get("CI") and "small disk" not in one.stdout):
                    # A container may not be allowed to mount.
                    self.skipTest(one.stdout.strip().splitlines()[-1])
                self.assertEqual(one.returncode, 0, one.stdout + one.stderr)

    def test_each_has_its_heading(self):
        page = (ROOT / "docs/runbook.md").read_text()
        for script in (DEPLOY / "incidents").glob("[01][0-9]-*.sh"):
            self.assertIn(script.name, page)


if __name__ == "__main__":
    unittest.main()
