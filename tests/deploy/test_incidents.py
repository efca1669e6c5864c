"""The scripts of deploy/incidents: the runbook's commands show each cause."""

import concurrent.futures
import os
import re
import unittest

from support import BINARY, Case, DEPLOY, of_the_whole, ROOT, run


class Incidents(Case):
    @of_the_whole
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

    @of_the_whole
    @unittest.skipUnless(os.environ.get("RINGFENCE_OLD_BIN"), "RINGFENCE_OLD_BIN names no program of the version before")
    def test_the_version_before_takes_over(self):
        done = run("bash", DEPLOY / "incidents/rollback.sh", env={**os.environ, "RINGFENCE_BIN": BINARY})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_runs_the_commands_of_its_heading(self):
        page = (ROOT / "docs/runbook.md").read_text()
        sections = re.split(r"(?m)^## ", page)
        for script in (DEPLOY / "incidents").glob("[01][0-9]-*.sh"):
            [section] = (one for one in sections if f"`{script.name}`" in one)
            commands = re.findall(r"(?m)^\$ (.+)$", section)
            self.assertIn(len(commands), range(1, 4), script.name)
            run_there = re.findall(r"operator '(.+)'$", script.read_text(), re.M)
            self.assertEqual([one for one in commands if one not in run_there], [], script.name)

    def test_commands_of_the_runbook_need_nothing_that_the_image_lacks(self):
        page = (ROOT / "docs/runbook.md").read_text()
        for command in re.findall(r"(?m)^\$ (.+)$", page):
            self.assertRegex(command, r"^(ringfence|journalctl) ")
        page = page[page.index("## The sidecar is down") :]
        self.assertEqual(re.findall(r"(?:curl|jq|sqlite3) .*", page), [])
