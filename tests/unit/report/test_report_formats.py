"""Formats of the report from one set of real records. Run this file to write the snapshot anew; read its difference."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from inferscope.errors import CacheUnwritableError
from inferscope.report import html
from inferscope.report.changes import medians
from inferscope.report.digest import digest
from inferscope.report.document import document, document_text
from inferscope.report.html import page
from inferscope.report.markdown import markdown
from inferscope.report.output import write
from inferscope.report.story import Report, Source, headline
from inferscope.sinks.jsonl import read_records
from inferscope.specs import DeviceSpec
from inferscope.testing import make_record

RECORDS = Path(__file__).parents[3] / "examples" / "records"
SNAPSHOT = Path(__file__).parent / "snapshots" / "page-structure.txt"
HOSTILE = (
    "<script>hacked=1</script></script><!-- <b>&amp; {{7*7}} \U0001f600 שלום \u202e\u2028 | `x` @all [a](javascript:b)"
)


def _device():
    return msgspec.json.decode((RECORDS / "ceilings.json").read_bytes(), type=DeviceSpec)


def _digest(records, device):
    return digest(records, expected=len(records), device_of=lambda _: device)


def _report(records, before=None, device=None):
    found = _digest(records, device)
    baseline = None if before is None else _digest(before, device)
    return Report(
        found=found,
        sources=(Source(path="requests.jsonl", records=found.count),),
        devices=() if device is None else (device,),
        datasheets={},
        unjudged=() if device else ("No ceilings are known.",),
        baseline=baseline,
        baseline_sources=() if baseline is None else (Source(path="before.jsonl", records=baseline.count),),
        changes=None if baseline is None else medians(baseline, found),
        version="0.0",
    )


def _real():
    records = [*read_records(RECORDS / "requests.jsonl"), *read_records(RECORDS / "sweep.jsonl")]
    return _report(records, read_records(RECORDS / "eager.jsonl"), _device())


def _hostile():
    record = make_record()
    phases = tuple(
        replace(phase, name=HOSTILE, worst=tuple(replace(each, cause=HOSTILE) for each in phase.worst))
        for phase in record.phases
    )
    model = replace(record.model, name=HOSTILE, dtype=HOSTILE, attention=HOSTILE, cost_note=HOSTILE)
    return make_record(
        phases=phases,
        model=model,
        request_id=HOSTILE,
        notes=(HOSTILE,),
        versions=((HOSTILE, HOSTILE),),
        device_key=HOSTILE,
        status="aborted",
        error_type=HOSTILE,
    )


class _Outline(HTMLParser):
    """The page's bones: sections, headings, tables' columns, charts."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self._open = ""
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.scripts += tag == "script"
        if tag in {"h1", "h2", "h3", "caption", "th"}:
            self._open = tag
        if tag == "section":
            self.lines.append(f"# {known['id']}")
        if "data-chart" in known:
            self.lines.append(f"  chart {known['data-chart']} ({known['role']})")
        if tag == "details":
            self.lines.append("  details")

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = ""

    def handle_data(self, data):
        if self._open in {"h2", "caption"} or (self._open == "th" and data.strip()):
            self.lines.append(f"  {self._open}: {data.strip()}")


def _outline(text):
    outline = _Outline()
    outline.feed(text)
    return outline


@pytest.fixture(scope="module")
def real():
    return _real()


@pytest.fixture(scope="module")
def real_page(real):
    pytest.importorskip("jinja2", reason="jinja2 is in the extra `report`")
    pytest.importorskip("plotly", reason="plotly is in the extra `report`")
    return page(real)


def test_the_page_has_the_structure_it_had(real_page):
    assert "\n".join(_outline(real_page).lines) + "\n" == SNAPSHOT.read_text(encoding="utf-8")


def test_the_page_is_one_file_below_ten_megabytes(real_page):
    assert len(real_page.encode()) < 10e6
    head = real_page[: real_page.index("<style>")]
    assert "default-src 'none'" in head
    assert "unsafe-eval" not in head
    assert "script-src 'sha256-" in head
    assert 'href="http' not in real_page[: real_page.index('id="data"')]


def test_hostile_text_is_text(real_page):
    text = page(_report([_hostile()]))
    before_scripts = text[: text.index('<script type="application/json"')]
    assert "<script>hacked" not in text
    assert "<b>" not in before_scripts
    assert "<!--" not in before_scripts
    assert "\u202e" not in text
    assert "49" not in text[text.index("<h1") : text.index("</h1>")]  # nothing of it is a template
    assert _outline(text).scripts == _outline(real_page).scripts == 3


def test_data_in_the_page_cannot_end_its_script():
    made = html._json({"</script><!--": "&amp;\u2028"})
    assert not set("<>&\u2028") & set(made)
    assert json.loads(made) == {"</script><!--": "&amp;\u2028"}


def test_first_comes_what_holds_requests_back_then_what_helps(real):
    lead, help_ = headline(real.found)
    assert lead.startswith("SmolLM2-135M-Instruct: decode takes ")
    assert "held back most by" in lead
    assert "Most to gain" in help_


def test_without_ceilings_nothing_is_claimed():
    lead, _ = headline(_digest([make_record()], None))
    assert "is not known" in lead


def test_markdown_is_markdown_whatever_the_records_say(real):
    text = "".join(markdown(real))
    assert text.startswith("## inferscope report\n\n**SmolLM2")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") >= 3
    hostile = "".join(markdown(_report([_hostile()])))
    assert "<script>" not in hostile.replace("\\<script\\>", "")
    assert "@all" not in hostile
    assert "\u2028" not in hostile


def test_json_is_what_the_reference_describes(real):
    made = json.loads("".join(document_text(real)), parse_constant=lambda name: 1 / 0)
    reference = (RECORDS.parents[1] / "docs" / "reference" / "report.md").read_text(encoding="utf-8")
    assert (made["kind"], made["schema"]) == ("inferscope.report", 1)
    for name in (*made, *made["records"], *made["setups"][0], *made["setups"][0]["phases"][0]):
        assert f"`{name}`" in reference, name
    for setup in made["setups"]:
        assert sum(part["time_ns"] for part in setup["ledger"]) == setup["wall_ns"]
    assert document(real)["records"]["count"] == 26


def test_a_file_is_whole_or_not_there(tmp_path):
    def failing():
        yield "the beginning"
        raise OSError(28, "No space left on device")

    path = tmp_path / "report.html"
    with pytest.raises(CacheUnwritableError, match="No space left"):
        write(path, failing())
    assert list(tmp_path.iterdir()) == []
    path.write_text("the old one")
    with pytest.raises(CacheUnwritableError):
        write(path, failing())
    assert path.read_text() == "the old one"
    assert write(path, ["the ", "néw one"]) == len("the néw one".encode())
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(_outline(page(_real())).lines) + "\n", encoding="utf-8")
