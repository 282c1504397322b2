"""Photograph the report of the committed records in a real browser, for the documentation.

python benchmarks/report_pictures.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from inferscope.cli.main import main as inferscope

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "examples" / "records"
IMAGES = ROOT / "docs" / "images"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
SHOTS = (
    ("report-top", DESKTOP, "light", None),
    ("report-dark", DESKTOP, "dark", "roofline"),
    ("report-ledger", DESKTOP, "light", "ledger"),
    ("report-timeline", DESKTOP, "light", "timeline"),
    ("report-phone", PHONE, "light", None),
)


def main() -> None:
    """Make the report and its pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        names = ("requests.jsonl", "sweep.jsonl")
        arguments = [str(RECORDS / name) for name in names]
        arguments += ["--baseline", str(RECORDS / "eager.jsonl"), "--ceilings", str(RECORDS / "ceilings.json")]
        if inferscope(["report", *arguments, "-o", str(page_file)]):
            raise SystemExit(1)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for name, size, theme, section in SHOTS:
            page = browser.new_page(viewport=size, color_scheme=theme)
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready='1']")
            if section is not None:
                page.evaluate("key => document.getElementById(key).scrollIntoView({behavior: 'instant'})", section)
            page.screenshot(path=IMAGES / f"{name}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
