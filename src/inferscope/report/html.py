"""The report as one HTML page that needs nothing else (extra `report`: jinja2 and plotly).

Whatever comes from records is text: the template escapes it, embedded JSON has no `<`, `>` or `&`, labels of charts
are escaped for plotly's own tags, and the page's policy runs no script but the two whose hashes it names and
connects to nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from inferscope.errors import MissingExtraError
from inferscope.report import charts, story
from inferscope.report.ceilings import ceilings, device_title
from inferscope.report.changes import change_chart, change_grid
from inferscope.report.chart import Grid
from inferscope.report.launch_sums import launch_grid, side_lines, wait_grid
from inferscope.report.launches import overhead_lines
from inferscope.report.shapes import shapes
from inferscope.report.summary import PROVENANCE
from inferscope.report.timeline import timeline
from inferscope.report.units import clean, count

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from inferscope.report.chart import Chart
    from inferscope.report.story import Report
    from inferscope.specs import DeviceSpec

__all__ = ["page"]

_FOLDER = "page"
_SECTIONS = (
    ("phases", "Phases"),
    ("changes", "Before and after"),
    ("findings", "Findings"),
    ("ledger", "Ledger"),
    ("roofline", "Roofline"),
    ("gaps", "Gaps"),
    ("timeline", "Timeline"),
    ("operators", "Operators"),
    ("launches", "Launches and waits"),
    ("shapes", "Batch and prompt"),
    ("requests", "Requests"),
    ("provenance", "How this is known"),
)
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def page(report: Report) -> str:
    """The page.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an extra
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(f"{error}: install inferscope with its extra [report]") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_printable
    )
    drawn = _charts(report)
    plotly, script = get_plotlyjs().replace("\r", ""), _asset("page.js")
    return environment.from_string(_asset("page.html.j2")).render(
        **_words(report),
        **drawn,
        sections=[each for each in _SECTIONS if each[0] != "changes" or report.changes is not None],
        hashes=" ".join(_hash(text) for text in (plotly, script)),
        style=_asset("page.css"),
        data=_json(_flat(drawn.values())),
        plotly=plotly,
        script=script,
    )


def _printable(value: object) -> object:
    """Plain text without what steers its direction or breaks its lines; what the template itself made, as it is."""
    return clean(value) if type(value) is str else value


def _charts(report: Report) -> dict[str, Any]:
    found = report.found
    rooflines = [
        one
        for number, device in enumerate(report.devices)
        if (one := charts.roofline(found, device, report.datasheets.get(device.key), number=number))
    ]
    return {
        "change_chart": None if report.changes is None else change_chart(report.changes),
        "ledger": charts.ledger(found),
        "ledgers": charts.ledgers(found),
        "rooflines": rooflines,
        "gaps": charts.gaps(found),
        "timeline": timeline(found.kept),
        "shapes": shapes(found),
    }


def _words(report: Report) -> dict[str, Any]:
    found = report.found
    lead, help_ = story.headline(found)
    return {
        "title": f"inferscope: {clean(lead)[:90]}",
        "version": report.version,
        "lead": lead,
        "help": help_,
        "ran": story.when(found),
        "looked_at": story.looked_at(found),
        "overhead": story.overhead(found),
        "own": overhead_lines(found.launches.own),
        "ceilings_line": _ceilings_line(report),
        "phases": story.phases(found),
        "changes": report.changes,
        "change_grid": None if report.changes is None else change_grid(report.changes),
        "findings": story.findings(found),
        "no_roofline": " ".join(report.unjudged) or "no phase has both counted work and known ceilings.",
        "slow_passes": story.slow_passes(found),
        "causes": story.causes(found),
        "operators": story.operators(found),
        "sides": side_lines(found.launches),
        "launches": launch_grid(found.launches),
        "waits": wait_grid(found.launches),
        "left_out": found.launches.left_out,
        "looked_at_for_waits": sum(found.launches.looked.values()),
        "requests": story.requests(found),
        "devices": [_device(device) for device in report.devices]
        + [_device(device) for device in report.datasheets.values() if device not in report.devices],
        "unjudged": report.unjudged,
        "sources": _sources(report),
        "missing": _missing(found.notes),
        "versions": f"Ran with: {', '.join(map(clean, sorted(found.versions))) or 'versions unknown'}.",
        "provenance": PROVENANCE,
    }


def _missing(notes: Counter[str]) -> Grid:
    return Grid(heading=("what", "requests"), rows=tuple((clean(n), count(c)) for n, c in notes.most_common()))


def _ceilings_line(report: Report) -> str:
    if not report.devices:
        return "Held against no ceilings, so no verdict names a bound."
    return "Held against " + "; ".join(device_title(device) for device in report.devices) + "."


def _device(device: DeviceSpec) -> dict[str, Any]:
    rows = tuple((row.name, row.value, row.source, row.spread, row.note) for row in ceilings(device))
    return {
        "title": device_title(device),
        "grid": Grid(heading=("ceiling", "value", "source", "spread", "how"), rows=rows),
        "rejected": device.rejected,
    }


def _sources(report: Report) -> Grid:
    rows = [(clean(each.path), count(each.records), "these requests") for each in report.sources]
    rows += [(clean(each.path), count(each.records), "baseline") for each in report.baseline_sources]
    return Grid(heading=("file", "records", "as"), rows=tuple(rows))


def _flat(values: Iterable[Any]) -> dict[str, list[dict[str, Any]]]:
    found: list[Chart] = []
    for value in values:
        found += value if isinstance(value, (list, tuple)) else [value] if value is not None else []
    return {one.key: [{"data": each.data, "layout": each.layout} for each in one.drawings] for one in found}


def _json(value: object) -> str:
    """JSON that can stand inside a script element: ASCII, without the characters that could end it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char, escape in _UNSAFE.items():
        text = text.replace(char, escape)
    return text


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(_FOLDER).joinpath(name).read_text(encoding="utf-8")
