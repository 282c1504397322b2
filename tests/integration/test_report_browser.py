"""The report's page in a real browser: what is drawn, what can be done with it, and that it reaches nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from inferscope.cli.main import main
from inferscope.sinks.jsonl import JsonlSink
from inferscope.testing import make_record, make_result

RECORDS = Path(__file__).parents[2] / "examples" / "records"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    "<script>window.hacked=1</script></script><!-- <img src=x onerror=hacked=1> \U0001f600 שלום \u202e\u2028&amp; %{x}"
)
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
WAIT_MS = 240_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `dev`")
    pytest.importorskip("plotly", reason="plotly is in the extra `report`")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=WAIT_MS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of the committed records, and what its script is given to draw."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    files = [str(RECORDS / "requests.jsonl"), str(RECORDS / "sweep.jsonl")]
    options = ["--baseline", str(RECORDS / "eager.jsonl"), "--ceilings", str(RECORDS / "ceilings.json")]
    assert main(["report", *files, *options, "-o", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    start = text.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    return path, json.loads(text[start : text.index("</script>", start)])


class _Page:
    """A page that has been opened, and everything it complained about or asked for."""

    def __init__(self, browser, path, size, theme="light"):
        self.said, self.asked = [], []
        self.tab = browser.new_page(viewport=size, color_scheme=theme)
        self.tab.set_default_timeout(WAIT_MS)
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready='1']")

    def count(self, selector):
        return self.tab.locator(selector).count()

    def ask(self, code):
        return self.tab.evaluate(code)


@pytest.fixture(scope="module")
def desktop(browser, report):
    page = _Page(browser, report[0], DESKTOP)
    yield page
    page.tab.close()


def test_nothing_is_complained_about_and_nothing_loaded(desktop, report):
    assert desktop.said == []
    assert [url for url in desktop.asked if not url.startswith("data:")] == [report[0].as_uri()]


def test_charts_have_as_many_marks_as_they_have_numbers(desktop, report):
    charts = report[1]
    for key in ("ledger", "ledgers", "gaps", "timeline"):
        bars = sum(len(trace["x"]) for trace in charts[key][0]["data"])
        assert desktop.count(f"#chart-{key} .barlayer .point") == bars > 0, key
    roofline = charts["roofline-0"][0]["data"]
    marks = sum(len(trace["x"]) for trace in roofline if trace["meta"] != "roof")
    assert desktop.count("#chart-roofline-0 .scatterlayer path.point") == marks > 0
    roofs = sum(trace["meta"] == "roof" and trace["visible"] is True for trace in roofline)
    assert desktop.count("#chart-roofline-0 .scatterlayer path.js-line") == roofs > 0
    for key in ("changes", "shape-ttft", "shape-tpot", "shape-throughput"):
        marks = sum(len(trace["x"]) for trace in charts[key][0]["data"])
        assert desktop.count(f"#chart-{key} .scatterlayer path.point") == marks > 0, key


def test_every_chart_has_a_name_for_those_who_cannot_see_it(desktop, report):
    names = desktop.ask("[...document.querySelectorAll('[data-chart]')].map(e => [e.role, e.ariaLabel])")
    assert len(names) == len(report[1])
    assert all(role == "img" and len(name) > 10 for role, name in names)


def test_a_table_sorts_by_number_down_up_and_with_the_keyboard(desktop):
    column = "[...document.querySelectorAll('#operators tbody tr')].map(r => Number(r.cells[6].dataset.n))"
    button = desktop.tab.locator("#operators th button").nth(6)
    button.click()
    down = desktop.ask(column)
    assert down == sorted(down, reverse=True)
    button.press("Enter")
    assert desktop.ask(column) == sorted(down)
    assert desktop.ask("document.querySelectorAll('#operators th')[6].ariaSort") == "ascending"
    desktop.tab.locator("#operators th button").nth(8).click()  # what is unknown stays last
    known = desktop.ask("[...document.querySelectorAll('#operators tbody tr')].map(r => 'n' in r.cells[8].dataset)")
    assert known == sorted(known, reverse=True)


def test_another_request_can_be_chosen(desktop, report):
    sync_api = pytest.importorskip("playwright.sync_api")
    second = report[1]["timeline"][1]["data"]
    bars = desktop.tab.locator("#chart-timeline .barlayer .point")
    desktop.tab.select_option("select[data-for=timeline]", "1")
    # Playwright's wait_for_function would need the eval that the page forbids.
    sync_api.expect(bars).to_have_count(sum(len(trace["x"]) for trace in second), timeout=WAIT_MS)


def test_curves_of_one_model_are_chosen_together(desktop):
    desktop.tab.select_option("select[data-for=shape-ttft]", "1")
    assert desktop.ask("document.querySelector('select[data-for=shape-throughput]').value") == "1"
    assert desktop.ask("document.querySelector('select[data-for=ledger]').value") == "0"  # offers something else
    desktop.tab.select_option("select[data-for=shape-tpot]", "0")
    assert desktop.ask("document.querySelector('select[data-for=shape-ttft]').value") == "0"


def test_the_theme_follows_the_system_until_it_is_chosen(desktop):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = desktop.ask(paper)
    desktop.tab.emulate_media(color_scheme="dark")
    desktop.tab.wait_for_selector("html[data-theme=dark]")
    assert desktop.ask(paper) != light
    desktop.tab.locator("#theme").press("Enter")  # auto, then light
    desktop.tab.wait_for_selector("html[data-theme=light]")
    assert desktop.ask(paper) == light
    assert "light" in desktop.ask("document.getElementById('theme').ariaLabel")


def test_print_is_light_and_whole(desktop):
    desktop.tab.emulate_media(media="print")
    assert desktop.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert desktop.ask("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    desktop.tab.emulate_media(media="screen")


def test_at_a_phone_s_width_nothing_sticks_out(browser, report):
    phone = _Page(browser, report[0], PHONE, theme="dark")
    assert phone.said == []
    assert phone.ask("document.documentElement.scrollWidth") == PHONE["width"]
    widths = phone.ask("[...document.querySelectorAll('.chart')].map(e => e.getBoundingClientRect().right)")
    assert max(widths) <= PHONE["width"]
    assert phone.ask("document.documentElement.dataset.theme") == "dark"
    phone.tab.close()


def test_hostile_text_stays_text_and_scripts_of_others_do_not_run(browser, tmp_path):
    record = make_record()
    phases = tuple(replace(phase, name=HOSTILE) for phase in record.phases)
    model = replace(record.model, name=HOSTILE, dtype=HOSTILE, cost_note=HOSTILE)
    hostile = make_record(phases=phases, model=model, request_id=HOSTILE, notes=(HOSTILE,), versions=((HOSTILE, "1"),))
    sink = JsonlSink(tmp_path / "hostile.jsonl")
    sink(make_result(record=hostile))
    sink.close()
    assert main(["report", str(tmp_path / "hostile.jsonl"), "-o", str(tmp_path / "hostile.html")]) == 0
    page = _Page(browser, tmp_path / "hostile.html", DESKTOP)
    assert page.said == []
    assert page.ask("window.hacked") is None
    assert page.count("script") == 3
    assert page.count("img") == 0
    assert "<script>window.hacked=1</script>" in page.tab.locator("h1").inner_text()
    # Were something to slip through, the page's policy still would neither run nor send it.
    slipped = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked=1\">')"
    page.ask(slipped)
    page.ask("(() => { const s = document.createElement('script'); s.text = 'hacked=1'; document.body.append(s); })()")
    assert page.ask("fetch('data:text/plain,x').then(() => 'sent', () => 'refused')") == "refused"
    assert page.ask("window.hacked") is None
    page.tab.close()
