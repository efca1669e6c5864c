"""The scripts of deploy/incidents: the runbook's commands show each cause."""

import concurrent.futures
import os

from support import BINARY, Case, DEPLOY, ROOT, run


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
