"""The admin API under schemathesis: requests made of its OpenAPI document, well-formed and not, and answers held to it."""

import signal
import subprocess
import sys

from support import BINARY, Fenced

SECRET = "a secret of some length, for tests alone"
# Longest that the run may take; it is bounded by its examples.
RUN_SECS = 240
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
]


class AdminApi(Fenced):
    tables = f"""
[admin]
token_secret = "{SECRET}"

[businesses.acme]
plan = "PRO"
"""

    def limit_time(self):
        def too_long(*_):
            raise TimeoutError(f"the test took longer than {RUN_SECS} s")

        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(RUN_SECS)
        self.addCleanup(signal.alarm, 0)

    def test_answers_are_as_the_document_says(self):
        made = subprocess.run(
            [BINARY, "token", "--scope", "operate", "--valid-secs", "3600", "--subject", "fuzz"],
            cwd=self.folder, capture_output=True, text=True,
        )
        self.assertEqual(made.returncode, 0, made.stderr)
        # TRACE is answered 501 on every listener, before a handler sees it.
        methods = '["GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"]'
        (self.folder / "schemathesis.toml").write_text(f"[phases.coverage]\nunexpected-methods = {methods}\n")
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"http://{self.fence.ready['admin']}/openapi.json",
                "--header", f"Authorization: Bearer {made.stdout.strip()}",
                "--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS), "--max-examples", "12", "--seed", "1",
                "--max-time", "45", "--exclude-path-regex", "stream$", "--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off",
                "--generation-deterministic", "--no-color",
            ],
            cwd=self.folder, capture_output=True, text=True,
        )
        self.assertEqual(done.returncode, 0, done.stdout[-30000:] + done.stderr[-2000:])
        self.assertRegex(done.stdout, r"\d{3,} generated", "it tried something")
