"""Alert rules, the dashboard, the scrape config: promtool reads them, and they name metrics that the program exports."""

import functools
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request

from support import Case, DEPLOY, DOCS_URL, PATIENCE_SECS, ROOT, rules_text, spare_port, tool

# Words of the docs and of deploy/ that begin as metrics do, and are none.
NO_METRICS = {"ringfence_0", "ringfence_call", "ringfence_client", "ringfence_connection", "ringfence_webhooks"}


@functools.cache
def metrics():
    """Every metric with its labels, as the reference page has them, which a test of the program writes."""
    page = (ROOT / "docs/reference/metrics.md").read_text()
    found = {}
    for name, kind, labels in re.findall(r"(?m)^\| `(\w+)` \| (gauge|counter|histogram) \| ([^|]*) \|", page):
        names = set(re.findall(r"`(\w+)`", labels))
        found[name] = names
        if kind == "histogram":
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


class Observing(Case):
    def held_to_the_page(self, text):
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

    def test_the_page_is_read_whole(self):
        self.assertGreater(len(metrics()), 40)
        self.assertEqual(metrics()["concurrent_rejected_total"], {"reason", "plan"})
        self.assertEqual(metrics()["platform_global_active_calls"], set())

    def test_metrics_of_the_page_are_those_of_the_program(self):
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
        self.held_to_the_page(re.sub(r'"(?:[^"\\]|\\.)*[a-z] (?:[^"\\]|\\.)*"|^ *#.*$', "", rules_text(), flags=re.M))
        for name in re.findall(r"by \(([^)]*)\)", rules_text()):
            for label in name.split(", "):
                known = set().union(*metrics().values()) | {"instance", "job"}
                self.assertIn(label, known)

    def test_rules_keep_installations_apart(self):
        for aggregation, after in re.findall(r"\b(sum|min|max|count|avg)\b *(\S+ \(\w+|\S)", "".join(re.findall(r"expr: (?:>\n(?: {10}.*\n)+|.*\n)", rules_text()))):
            self.assertEqual(after, "by (job", aggregation)

    def test_every_metric_that_is_written_about_exists(self):
        texts = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "config").rglob("*.toml")]
        texts += [file for file in DEPLOY.rglob("*") if file.is_file()]
        for file in texts:
            named = set(re.findall(r"\b(?:ringfence_[a-z0-9_]+|\w+_total)\b", file.read_text()))
            self.assertEqual(named - metrics().keys() - NO_METRICS, set(), file)

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
            where = re.search(rf"runbook_url: {DOCS_URL}/runbook\.html#(\S+)", block)
            self.assertIsNotNone(where, name)
            self.assertIn(where[1], anchors, name)
            self.assertIn(f"`{name}`", page)

    def test_expressions_of_the_dashboard_parse_and_name_metrics_that_exist(self):
        board, shown = panels()
        all_of = expressions(board, shown)
        named = set().union(*(self.held_to_the_page(expr) for expr in all_of if "up{" not in expr))
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

    def test_prometheus_reads_the_metrics_and_takes_every_expression_of_the_dashboard(self):
        """A real Prometheus asks for OpenMetrics, and evaluates each expression of the dashboard."""
        prometheus, port = tool("prometheus"), spare_port()
        _, ready = self.ringfence()
        self.assertEqual([self.place(ready, f"+155520000{n}0") for n in range(3)], [200, 200, 503])
        job = {"job_name": "ringfence", "static_configs": [{"targets": [ready["admin"]]}]}
        # JSON is YAML.
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        log = (self.folder / "prometheus.log").open("wb")
        self.addCleanup(log.close)
        options = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        server = subprocess.Popen([prometheus, *options], cwd=self.folder, stdout=log, stderr=log)
        self.addCleanup(server.wait, PATIENCE_SECS)
        self.addCleanup(server.terminate)

        def ask(path, **query):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}") as answer:
                return json.load(answer)["data"]

        def scraped():
            try:
                found = ask("/api/v1/query", query="count_over_time(up[1m]) > 2")["result"]
            except OSError:
                return False
            return bool(found)

        self.wait_for(scraped, "three scrapes")
        [target] = ask("/api/v1/targets")["activeTargets"]
        self.assertEqual((target["health"], target["lastError"]), ("up", ""))
        kinds = ask("/api/v1/metadata")
        for name, kind in (("ringfence_calls_admitted", "counter"), ("platform_global_active_calls", "gauge")):
            # Only OpenMetrics names the family of a counter so.
            self.assertEqual([one["type"] for one in kinds[name]], [kind])
        board, shown = panels()
        for expression in expressions(board, shown):
            ask("/api/v1/query", query=expression)
        in_use = ask("/api/v1/query", query='max by (limit) (ringfence_limit_in_use{limit="account.elevenlabs"})')
        self.assertEqual([one["value"][1] for one in in_use["result"]], ["2"])

    def test_the_dashboard_shows_one_installation_and_leads_from_latencies_to_traces(self):
        board, shown = panels()
        [job] = (one for one in board["templating"]["list"] if one["name"] == "job")
        self.assertEqual((job["includeAll"], job["multi"]), (False, False))
        for panel in shown:
            for target in panel["targets"]:
                self.assertEqual(target["expr"].count('{job=~"$job"'), len(re.findall(r"\w+\{", target["expr"])), target["expr"])
        latencies = [panel for panel in shown if "histogram_quantile" in panel["targets"][0]["expr"]]
        self.assertEqual([panel["title"] for panel in latencies if panel["targets"][0].get("exemplar")], [panel["title"] for panel in latencies])
        self.assertEqual(len(latencies), 2)

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
