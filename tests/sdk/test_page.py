"""The operators' page as a person with a screen reader, a keyboard or weak eyes has it: axe-core finds nothing, in light and dark, on a
telephone and a screen, with nothing to show and with much."""

import json
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

from support import BINARY, NODE_MODULES, Fenced, skip_without

AXE = NODE_MODULES / "axe-core/axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# A browser on a busy machine is slow.
PAGE_SECS = 240
WIDTHS = (375, 1280)
SCHEMES = ("light", "dark")
VIEWS = ("overview", "calls", "runs", "refusals", "webhooks", "replicas")


# What Chromium answers between two documents.
GONE = ("Inspected target navigated or closed", "Cannot find default execution context", "Cannot find context with specified id")


class Navigated(Exception):
    """The page went while it was asked something."""


class Browser:
    """A page in Chromium, steered by its DevTools protocol."""

    def __init__(self, url):
        self.profile = tempfile.TemporaryDirectory(prefix="ringfence-axe-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
            + ["--remote-debugging-port=0", f"--user-data-dir={self.profile.name}", url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.asked = 0
        self.socket = connect(self.target(url), max_size=None)

    def target(self, url):
        told = Path(self.profile.name) / "DevToolsActivePort"
        while True:
            time.sleep(0.1)
            try:
                port = told.read_text().splitlines()[0]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                    for page in json.load(answer):
                        if page["url"].startswith(url):
                            return page["webSocketDebuggerUrl"]
            except (FileNotFoundError, IndexError, urllib.error.URLError):
                continue

    def tell(self, method, **params):
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.asked:
            pass
        if answer.get("error", {}).get("message") in GONE:
            raise Navigated
        if "error" in answer or "exceptionDetails" in answer.get("result", {}):
            raise AssertionError(f"{method} {str(params)[:200]}: {answer}")
        return answer["result"]

    def run(self, expression):
        asked = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        return self.tell("Runtime.evaluate", expression=expression, **asked)["result"].get("value")

    def until(self, expression):
        """The time of the whole test bounds it."""
        while not self.holds(expression):
            time.sleep(0.05)

    def holds(self, expression):
        try:
            return self.run(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()")
        except Navigated:
            return False

    def click(self, selector):
        self.until(f"document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def stop(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()


class Page(Fenced):
    calls_bought = 2
    tables = """
[businesses.acme]
plan = "PRO"

[admin]
token_secret = "a secret of some length, for tests alone"
""" + "".join(f'[businesses.clinic_{n:03}]\nplan = "PRO"\n' for n in range(120))

    def setUp(self):
        skip_without(CHROMIUM, "chromium")
        skip_without(AXE.is_file(), "axe-core")
        super().setUp()
        signal.alarm(PAGE_SECS)
        self.admin = f"http://{self.fence.ready['admin']}"
        made = subprocess.run(
            [BINARY, "token", "--config", "ringfence.toml", "--scope", "operate"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        self.token = made.stdout.split()[0]
        self.browser = Browser(f"{self.admin}/")
        self.addCleanup(self.browser.stop)

    def post(self, url, body, **headers):
        """The status of the answer."""
        headers = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def sign_in(self):
        self.browser.until("document.querySelector('#token').open")
        self.browser.run(f"""(() => {{ document.querySelector('#token-text').value = {json.dumps(self.token)};
            document.querySelector('#token-form').requestSubmit() }})()""")
        self.browser.until("sessionStorage.length === 1 && document.querySelector('#link').textContent === 'Live'")

    def check(self, what):
        """Nothing is found in what the page shows, as every reader has it."""
        if self.browser.run("typeof axe") == "undefined":
            self.browser.run(AXE.read_text() + ";0")
        for scheme in SCHEMES:
            features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
            self.browser.tell("Emulation.setEmulatedMedia", features=features)
            for width in WIDTHS:
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                self.browser.tell("Emulation.setDeviceMetricsOverride", **size)
                found = self.browser.run("""new Promise((done) => requestAnimationFrame(done)).then(() => axe.run(document,
                    { resultTypes: ["violations"] })).then(({ violations }) => violations.map((one) => ({ rule: one.id,
                    help: one.help, where: one.nodes.slice(0, 3).map((node) => [node.html.slice(0, 200), node.failureSummary]) })))""")
                self.assertEqual(found, [], f"{what}, {scheme}, {width} px")
                wide = self.browser.run("document.documentElement.scrollWidth <= innerWidth")
                self.assertTrue(wide, f"{what} is wider than {width} px")

    def check_views(self):
        for view in VIEWS:
            self.browser.run(f"location.hash = '#{view}'")
            self.browser.until(f"!document.querySelector('#view-{view}').hidden")
            self.check(view)

    def check_dialog(self, name):
        self.browser.until(f"document.querySelector('#{name}').open")
        self.check(name)
        self.browser.run(f"document.querySelector('#{name}').close()")

    def load(self):
        """Something behind every list."""
        url = f"{self.api}/elevenlabs/v1/convai/twilio/outbound-call"
        call = {"agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "to_number": "+15550002222"}
        for _ in range(2):
            self.assertEqual(self.post(url, call, xi_api_key=self.keys["el_api_key"], x_business_id="acme"), 200)
        self.assertEqual(self.post(url, call, xi_api_key=self.keys["el_api_key"], x_business_id="acme"), 503)
        run = {
            "business": "acme",
            "account": "twilio",
            "operation": "calls",
            "name": "Spring",
            "request": {"Twiml": "<Response/>"},
            "own_numbers": ["+15550001111"],
            "start_at": "2999-01-01T00:00:00Z",
            "leads": [{"number": f"+155510000{n:02}"} for n in range(9)],
        }
        self.assertEqual(self.post(f"{self.admin}/api/runs", run, authorization=f"Bearer {self.token}"), 201)
        with sqlite3.connect(self.folder / "ringfence.db", timeout=10) as record:
            for n, (outcome, parked_at) in enumerate([(None, 1), (None, None), ("applied", None)]):
                record.execute(
                    "INSERT INTO webhook_events (id, account, webhook, event, received_at, method, path, headers, body, tries,"
                    " outcome, parked_at, due_at, error) VALUES (?, 'twilio', 'status', 'call_status', ?, 'POST', '/x', '[]', x'78',"
                    " 3, ?, ?, 99999999999999, 'nobody knows how')",
                    (f"ev_{n}", int(time.time() * 1000), outcome, parked_at),
                )
            for n, due_at in enumerate([None, 99999999999999]):
                record.execute(
                    "INSERT INTO deliveries (id, event_id, url, method, headers, body, due_at, last_error)"
                    " VALUES (?, 'ev_2', 'http://app.test/x', 'POST', '[]', x'78', ?, 'the app answered 500')",
                    (f"dl_{n}", due_at),
                )

    def test_nothing_to_show(self):
        self.check_dialog_of_token()
        self.sign_in()
        self.check_views()
        self.browser.tell("Page.navigate", url=f"{self.admin}/page/api.html")
        self.browser.until("document.readyState === 'complete' && location.pathname === '/page/api.html'")
        time.sleep(1)
        self.check("the API's page")

    def check_dialog_of_token(self):
        self.browser.until("document.querySelector('#token').open && document.querySelector('#token-error').textContent")
        self.check("token")

    def test_much_to_show(self):
        self.load()
        self.sign_in()
        # First, as a slot is kept for half a minute.
        self.browser.until("document.querySelector('#kept tbody tr')")
        self.browser.click("#businesses-more")
        self.browser.until("document.querySelectorAll('#businesses tbody tr').length === 121")
        self.check("all businesses")
        for rows in ("calls-list", "runs-list", "refusals-list", "parked", "given-up", "unsettled", "pending"):
            view = {"calls-list": "calls", "runs-list": "runs", "refusals-list": "refusals"}.get(rows, "webhooks")
            self.browser.run(f"location.hash = '#{view}'")
            self.browser.until(f"document.querySelector('#{rows} tbody tr')")
        self.check_views()
        self.browser.run("location.hash = '#webhooks'")
        self.browser.run("""(() => { const state = document.querySelector('#webhook-filters [name=state]'); state.value = 'settled';
            state.dispatchEvent(new Event('input', { bubbles: true })) })()""")
        self.browser.until("document.querySelector('#found tbody tr')")
        self.check("webhooks that were searched")
        self.browser.run("location.hash = '#calls'")
        self.browser.click("#calls-list tbody button")
        self.check_dialog("call-dialog")
        self.browser.run("location.hash = '#refusals'")
        self.browser.click("#refusals-list td.act button")
        self.browser.until("document.querySelector('#explain-limits li')")
        self.check_dialog("explain-dialog")
        self.browser.run("location.hash = '#runs'")
        self.browser.click("#runs-list button[aria-label^=Cancel]")
        self.check_dialog("confirm")
