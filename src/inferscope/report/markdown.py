"""The report as Markdown: short enough for a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inferscope.report import story
from inferscope.report.ceilings import device_title
from inferscope.report.changes import change_grid
from inferscope.report.charts import ledger
from inferscope.report.launch_sums import launch_grid, wait_grid
from inferscope.report.launches import WAITS_TITLE, overhead_lines
from inferscope.report.units import clean, count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inferscope.report.chart import Grid
    from inferscope.report.story import FoundText, Report

__all__ = ["markdown"]

ROWS = 20
_LESS = re.compile(r"([\\`*_\[\]<>|~&@])")


def markdown(report: Report) -> Iterator[str]:
    """The report in pieces: answer, phases, changes, findings, ledger, and how all of it is known."""
    found = report.found
    lead, help_ = story.headline(found)
    yield f"## inferscope report\n\n**{_text(lead)}**\n\n"
    if help_:
        yield f"{_text(help_)}\n\n"
    yield from _table("Phases", story.phases(found))
    if report.changes is not None:
        yield from _table("Before and after", change_grid(report.changes))
        yield f"{_text(report.changes.method)}\n\n"
        yield from (f"- {_text(note)}\n" for note in report.changes.notes)
        yield "\n" if report.changes.notes else ""
    yield from _findings(story.findings(found))
    chart = ledger(found)
    if chart.grid is not None:
        yield from _table("Where did the time go", chart.grid)
    yield from _table("Requests", story.requests(found))
    grid = story.operators(found)
    if grid.rows:
        yield from _table("Operators of recorded passes", grid)
    for title, each in (("Launches per pass", launch_grid(found.launches)), (WAITS_TITLE, wait_grid(found.launches))):
        if each.rows:
            yield from _table(title, each)
    grid = story.slow_passes(found)
    if grid.rows:
        yield from _table("Slowest passes", grid)
    yield "### How this is known\n\n"
    held = "; ".join(device_title(device) for device in report.devices) or "no ceilings, so no verdict names a bound"
    files = ", ".join(f"{each.path} ({count(each.records)} records)" for each in report.sources)
    lines = [
        story.looked_at(found),
        story.overhead(found),
        *overhead_lines(found.launches.own),
        f"Held against {held}.",
        *report.unjudged,
    ]
    lines += [f"Records: {files}; ran {story.when(found)}.", *_baseline(report), f"inferscope {report.version}."]
    yield from (f"- {_text(line)}\n" for line in lines)


def _baseline(report: Report) -> list[str]:
    if not report.baseline_sources:
        return []
    return [
        "Baseline: " + ", ".join(f"{each.path} ({count(each.records)} records)" for each in report.baseline_sources)
    ]


def _findings(found: Sequence[FoundText]) -> Iterator[str]:
    yield "### Findings\n\n"
    if not found:
        yield "None: nothing here stands out.\n\n"
    for each in found:
        yield f"**{_text(each.words.title)}** {_text(each.lead)}\n\n"
        yield from (f"- {label + ': ' if label else ''}{_text(text)}\n" for label, text in each.words.lines)
        yield "\n"


def _table(title: str, grid: Grid) -> Iterator[str]:
    yield f"### {title}\n\n"
    yield "| " + " | ".join(grid.heading) + " |\n"
    yield "|" + " --- |" * len(grid.heading) + "\n"
    for row in grid.rows[:ROWS]:
        yield "| " + " | ".join(_text(cell) for cell in row) + " |\n"
    left = len(grid.rows) - ROWS
    yield f"\n{count(left)} more rows are in the page and in JSON.\n\n" if left > 0 else "\n"


def _text(text: str) -> str:
    """Text from outside that Markdown finds nothing in: no markup, no HTML, no link, no mention."""
    return _LESS.sub(r"\\\1", clean(text)).replace("\\@", "@\u200b").replace("://", ":\u200b//")
