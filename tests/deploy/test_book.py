"""The docs as a book: what `mdbook build` makes of them, and that the alerts' links lead into it."""

import os
import re

from support import Case, DOCS_URL, ROOT, rules_text, tool


class Book(Case):
    def test_the_book_has_what_alerts_and_pages_lead_to(self):
        self.succeeds(tool("mdbook"), "build", "--dest-dir", self.folder, ROOT)
        pages = {str(file.relative_to(self.folder)): file.read_text() for file in self.folder.rglob("*.html")}
        anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
        alerts = re.findall(rf"runbook_url: {DOCS_URL}/(\S+)#(\S+)", rules_text())
        self.assertGreater(len(alerts), 40)
        for page, anchor in alerts:
            self.assertIn(anchor, anchors[page])
        led = 0
        for name, text in pages.items():
            if name in ("print.html", "404.html", "toc.html"):
                continue
            content = text[text.index("<main>") : text.index("</main>")]
            for link in re.findall(r'href="([^":]+)"', content):
                page, _, anchor = link.partition("#")
                page = os.path.normpath(os.path.join(os.path.dirname(name), page)) if page else name
                # Files of the repository are not in the book.
                if page.startswith("..") or not page.endswith(".html"):
                    continue
                self.assertIn(page, pages, f"{name}: {link}")
                led += 1
                if anchor:
                    self.assertIn(anchor, anchors[page], f"{name}: {link}")
        self.assertGreater(led, 200)
