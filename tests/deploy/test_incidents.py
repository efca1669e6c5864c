"""The scripts of deploy/incidents: the runbook's commands show each cause."""

import concurrent.futures
import os
import re
import socket
import unittest

from support import BINARY, Case, DEPLOY, of_the_whole, ROOT, run


def bare(line):
    """A line of output without what differs from run to run: ids, times, ages, ports, counts of calls, widths of columns."""
    line = re.sub(r"\b[a-z]{1,3}_[0-9a-z]{26}\b|\b01[0-9a-z]{24}\b|\b[0-9a-f]{12}\b", "ID", line)
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    line = re.sub(r"\b\d+[hms](\d+[ms])?\b|(?<=\s)-(?=\s)", "AGE", line)
    line = re.sub(r"\d+", "N", line.replace(socket.gethostname(), "HOST").replace(" vm ", " HOST "))
    return re.sub(r"\s+", " ", line).strip()


def samples(page, script):
    """The lines of output that a page shows of a script: the code block that comes after its name."""
    section = page[page.index(f"`{script}`") if f"`{script}`" in page else page.index(f"/{script}`") :]
    block = re.search(r"(?m)^```\n(.*?)^```", section, re.S)[1]
    return [line for line in block.splitlines() if line.strip() not in ("", "…") and not line.startswith(("$ ", "-- "))]


class Incidents(Case):
    def test_each_is_found_by_the_commands_of_the_runbook(self):
        """Each script shows its cause, and each line that a page shows of it."""
        incidents = DEPLOY / "incidents"
        scripts = sorted(incidents.glob("[01][0-9]-*.sh")) + sorted(incidents.glob("restore-*.sh"))
        self.assertEqual(len(scripts), 14)
        # Those with a Postgres take longest, so they begin first.
        scripts.sort(key=lambda script: "\npostgres\n" not in script.read_text())

        def incident(script):
            # Who is not root may mount in a namespace of their own, where the system lets them have one.
            own = ["unshare", "-rm"] if "full-disk" in script.name and os.geteuid() != 0 and not run("unshare", "-rm", "true").returncode else []
            return run(*own, "bash", script, env={**os.environ, "RINGFENCE_BIN": BINARY})

        # They wait for most of their time.
        with concurrent.futures.ThreadPoolExecutor(5) as side_by_side:
            done = list(side_by_side.map(incident, scripts))
        runbook, backup = ((ROOT / "docs" / name).read_text() for name in ("runbook.md", "backup.md"))
        for script, one in zip(scripts, done):
            with self.subTest(script.name):
                if one.returncode == 77 and not (os.environ.get("CI") and "small disk" not in one.stdout):
                    # A container may not be allowed to mount.
                    self.skipTest(one.stdout.strip().splitlines()[-1])
                self.assertEqual(one.returncode, 0, one.stdout + one.stderr)
                shown = {bare(line) for line in one.stdout.splitlines()}
                if script.name != "restore-postgres.sh":
                    page = backup if script.name.startswith("restore") else runbook
                    missing = [line for line in samples(page, script.name) if bare(line) not in shown]
                    self.assertEqual(missing, [], f"not in the output:\n{one.stdout}")

    @of_the_whole
    @unittest.skipUnless(os.environ.get("RINGFENCE_OLD_BIN"), "RINGFENCE_OLD_BIN names no program of the version before")
    def test_the_version_before_and_this_one_take_over_from_one_another(self):
        done = run("bash", DEPLOY / "incidents/rollout.sh", env={**os.environ, "RINGFENCE_BIN": BINARY})
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
