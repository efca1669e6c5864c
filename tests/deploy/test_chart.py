"""The Helm chart, rendered and held to Kubernetes' schemas."""

import json
import os
import re
import shutil
from pathlib import Path

from support import BINARY, Case, DEPLOY, DOCS_URL, environment, ROOT, rules_text, run, SECRETS, tool

SCHEMAS = Path(__file__).parent / "schemas"
OF_THE_OPERATOR = ("PodMonitor", "PrometheusRule", "ServiceMonitor")
WITH_PODS = ("DaemonSet", "Deployment", "Job", "StatefulSet")


class Chart(Case):
    VARIANTS = (
        (),
        ("mode=sidecar", "serviceMonitor.enabled=true"),
        ("persistence.enabled=false", "migrate.enabled=false", "preStopSleepSeconds=0", "networkPolicy.enabled=false"),
        ("secretAs=files", "serviceMonitor.enabled=true", "serviceMonitor.scheme=https"),
        ("serviceMonitor.enabled=true", "serviceMonitor.tokenSecret.name=t", "prometheusRule.enabled=true",
         "grafanaDashboard.enabled=true", "ingress.enabled=true", "ingress.tlsSecretName=t", "ingress.className=nginx"),
    )

    def rendered(self, *settings):
        helm = tool("helm")
        flags = [part for setting in settings for part in ("--set", setting)]
        done = run(helm, "template", "prod", DEPLOY / "helm/ringfence", *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_lint(self):
        helm = tool("helm")
        self.assertIn("0 chart(s) failed", self.succeeds(helm, "lint", "--strict", DEPLOY / "helm/ringfence"))

    def test_objects_are_what_kubernetes_takes(self):
        validate = tool("kubernetes-validate")
        files = [self.folder / f"{n}.yaml" for n in range(len(self.VARIANTS))]
        for file, settings in zip(files, self.VARIANTS):
            file.write_text(self.rendered(*settings))
        for version in ("1.30.0", "1.37.0"):
            said = self.succeeds(validate, "--strict", "--no-warn", "-k", version, *files)
            for file in files:
                self.assertIn(file.name, said)

    def documents(self, *kinds):
        """By kind, the objects of these kinds in all variants."""
        found = {}
        for settings in self.VARIANTS:
            for document in re.split(r"(?m)^---$", self.rendered(*settings)):
                kind = re.search(r"(?m)^kind: (\w+)$", document)
                if kind and kind[1] in kinds:
                    found.setdefault(kind[1], []).append(document)
        return found

    def held_to(self, schema, sound, broken):
        """A schema takes each of the first, and none of the others."""
        check = tool("check-jsonschema")
        files = {kind: [self.folder / f"{kind}-{n}.yaml" for n in range(len(all))] for kind, all in (("sound", sound), ("broken", broken))}
        for kind, all in (("sound", sound), ("broken", broken)):
            for file, text in zip(files[kind], all):
                file.write_text(text)
        self.succeeds(check, "--schemafile", SCHEMAS / f"{schema}.json", *files["sound"])
        said = run(check, "--schemafile", SCHEMAS / f"{schema}.json", "--output-format", "json", *files["broken"]).stdout
        rejected = {Path(error["filename"]) for error in json.loads(said)["errors"]}
        self.assertEqual([text for file, text in zip(files["broken"], broken) if file not in rejected], [])

    def test_objects_are_what_the_prometheus_operator_takes(self):
        found = self.documents(*OF_THE_OPERATOR)
        self.assertEqual(set(found), set(OF_THE_OPERATOR))
        for kind, sound in found.items():
            self.held_to(kind, sound, [re.sub(r"path: /metrics|expr: ", "oops: ", text, count=1) for text in sound])

    def test_pods_keep_to_the_restricted_standard(self):
        found = self.documents(*WITH_PODS)
        self.assertEqual(set(found), {"Deployment", "Job", "StatefulSet"})
        text, mistakes = found["StatefulSet"][0], (
            ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"), ("- ALL", "- KILL"), ("drop:", "add:"), ("runAsNonRoot: true\n", "\n"),
            ("type: RuntimeDefault", "type: Unconfined"), ("emptyDir: {}", "hostPath: { path: / }"), ("runAsUser: 65532", "runAsUser: 0"),
            ("      containers:\n", "      hostNetwork: true\n      containers:\n"),
        )
        text = text.replace("drop: [ALL]", "drop:\n              - ALL")
        broken = [text.replace(good, bad) for good, bad in mistakes]
        self.assertNotIn(text, broken)
        self.held_to("restricted", [text, *(one for all in found.values() for one in all)], broken)

    def test_the_config_of_init_needs_what_the_docs_add(self):
        keys = ("ELEVENLABS_API_KEY", "ELEVENLABS_WEBHOOK_SECRET")
        self.succeeds(BINARY, "init", cwd=self.folder, env={**environment(), **{name: "" for name in SECRETS if name not in keys}})
        config = self.folder / "ringfence.toml"
        helm, flag = tool("helm"), f"--set-file=config={config}"
        more = re.search(r"cat >>ringfence\.toml <<END\n(.*?)^END\n", (ROOT / "docs/deploy.md").read_text(), re.S | re.M)[1]
        tables = re.split(r"\n(?=\[)", more)[1:]
        self.assertEqual(len(tables), 3)
        first = config.read_text()
        for n in range(3):
            config.write_text(first + "\n" + "\n".join(table for table in tables if table != tables[n]))
            refused = run(helm, "template", "prod", DEPLOY / "helm/ringfence", flag)
            self.assertIn(tables[n].split("\n")[0], refused.stderr)
        config.write_text(first + more)
        done = run(helm, "template", "prod", DEPLOY / "helm/ringfence", flag)
        self.assertEqual(done.returncode, 0, done.stderr)
        env = self.config_of(done.stdout)
        done = run(BINARY, "check", "--json", env=environment(**env))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_values_that_mean_nothing_are_refused(self):
        helm = tool("helm")
        for setting in ("mode=daemon", "replicsa=3", "replicas=0", "secretAs=file", "probes.port=admin"):
            self.assertNotEqual(run(helm, "template", "x", DEPLOY / "helm/ringfence", "--set", setting).returncode, 0, setting)

    def config_of(self, text):
        """Writes the config that a rendered chart has, and returns the variables that go with it."""
        toml = re.search(r"ringfence\.toml: \|\n((?:    .*\n|\s*\n)+)", text)[1]
        file = self.folder / "ringfence.toml"
        file.write_text(re.sub(r"(?m)^ {4}", "", toml))
        return dict(re.findall(r'- name: (RINGFENCE_\w+)\s+value: "?([^"\n]+)"?', text), RINGFENCE_CONFIG=str(file))

    def test_its_config_with_its_variables_can_be_used(self):
        for settings in self.VARIANTS[:3]:
            env = self.config_of(self.rendered(*settings))
            done = run(BINARY, "check", "--json", env=environment(**env))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("W007", done.stdout)

    def test_its_secret_as_files_can_be_used(self):
        text = self.rendered("secretAs=files")
        self.assertNotIn("envFrom", text)
        # The pods and the migration.
        self.assertEqual(text.count("{ name: ringfence-secret, mountPath: /run/secrets/ringfence, readOnly: true }"), 2)
        self.assertEqual(text.count("- name: ringfence-secret\n          secret:\n            secretName: ringfence\n"), 2)
        env = self.config_of(text)
        [command] = re.findall(r"(?m)^sed -i (.*secrets/ringfence.*) ringfence\.toml", (ROOT / "docs/deploy.md").read_text())
        self.succeeds("sh", "-c", f"sed -i {command} ringfence.toml", cwd=self.folder)
        config = self.folder / "ringfence.toml"
        self.assertNotIn("{ env = ", config.read_text())
        config.write_text(config.read_text().replace("/run/secrets/ringfence", str(self.folder)))
        for name, value in SECRETS.items():
            (self.folder / name).write_text(value)
        without = {name: value for name, value in environment(**env).items() if name not in SECRETS}
        done = run(BINARY, "check", "--json", env=without)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_an_app_takes_it_as_a_sidecar_as_the_docs_say(self):
        helm, page = tool("helm"), (ROOT / "docs/deploy.md").read_text()
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
        validate = tool("kubernetes-validate")
        (self.folder / "app.yaml").write_text(done.stdout)
        self.succeeds(validate, "--strict", "--no-warn", "-k", "1.30.0", self.folder / "app.yaml")

    def test_its_alert_rules_are_rules(self):
        promtool = tool("promtool")
        text = self.rendered(*self.VARIANTS[4])
        spec = re.search(r"kind: PrometheusRule\n(?:.*\n)*?spec:\n((?:  .*\n|\n)+)", text)[1]
        (self.folder / "rules.yml").write_text(re.sub(r"(?m)^  ", "", spec))
        said = self.succeeds(promtool, "check", "rules", self.folder / "rules.yml")
        self.assertIn(f"{rules_text().count('- alert:') + rules_text().count('- record:')} rules", said)

    def test_its_alerts_lead_to_the_docs_of_the_operator(self):
        text = self.rendered(*self.VARIANTS[4], "prometheusRule.docsUrl=https://wiki.example.org/fence")
        self.assertEqual(text.count("runbook_url: https://wiki.example.org/fence/runbook.html#"), rules_text().count("- alert:"))
        self.assertNotIn(DOCS_URL, text)
