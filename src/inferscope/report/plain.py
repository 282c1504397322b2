"""A result as plain text, with the standard library alone: what `print(result)` shows."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from inferscope.report import summary
from inferscope.report.launches import LAUNCHES_TITLE, WAITS_TITLE, launch_lines, overhead_lines, wait_lines
from inferscope.report.operators import operator_tables
from inferscope.report.units import clean, duration_ns, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.analysis.verdict import Result
    from inferscope.records import GenerationRecord

__all__ = ["bar", "phase_labels", "to_text"]

_MIN_WIDTH = 40


def to_text(result: Result, *, width: int = 80) -> str:
    """The result as a readable table without colour, ending without a newline.

    Args:
        result: What a session keeps.
        width: Characters per line.

    Returns:
        Lines of at most `width` characters, except where a single word or a table's narrowest form is longer.
    """
    width = max(width, _MIN_WIDTH)
    record = result.record
    lines = [*_wrapped(f"inferscope  {summary.headline(result)}", width)]
    lines += _wrapped(summary.facts(record), width)
    lines += _wrapped(summary.device_line(result), width)
    lines += ["", *_pairs(summary.latencies(record), width)]
    for table in summary.phase_tables(result, width):
        lines += ["", *_columns(table)]
    lines += _wrapped(summary.PROVENANCE, width)
    for recorded in operator_tables(result):
        lines += ["", *_wrapped(recorded.lead, width), *_columns(recorded.rows, width=width)]
        for line in (*recorded.sides, recorded.largest, *recorded.unbound):
            lines += _wrapped(line, width)
    lines += _section(LAUNCHES_TITLE, launch_lines(record), width)
    lines += _section(WAITS_TITLE, wait_lines(record), width)
    lines += _section("Verdict", summary.verdict_lines(result), width)
    lines += ["", "Ledger", *_ledger(record, width)]
    lines += _section("Slowest passes", summary.worst_lines(record), width)
    lines += _section("inferscope's own time", [summary.self_time(record), *overhead_lines(record.own_overhead)], width)
    lines += ["", *_findings(result, width)]
    lines += _section("Missing here", summary.notes(result), width)
    return "\n".join(line.rstrip() for line in lines)


def bar(parts: Sequence[summary.Segment], width: int) -> tuple[tuple[str, int], ...]:
    """Kind and number of cells of each segment that is wide enough to be drawn."""
    cells = summary.bar_cells(parts, width)
    return tuple((part.kind, size) for part, size in zip(parts, cells, strict=True) if size)


def phase_labels(parts: Sequence[summary.Segment], width: int) -> str:
    """Names of the phases above their stretch of the bar, cut to what fits."""
    stretches: list[tuple[str, int]] = []
    for part, size in zip(parts, summary.bar_cells(parts, width), strict=True):
        if stretches and stretches[-1][0] == part.phase:
            stretches[-1] = (part.phase, stretches[-1][1] + size)
        else:
            stretches.append((part.phase, size))
    return "".join(f"{'|' if name else ' '}{clean(name)}"[:size].ljust(size) for name, size in stretches)


def _ledger(record: GenerationRecord, width: int) -> list[str]:
    parts = summary.segments(record)
    drawn = "".join(summary.KINDS[kind].glyph * size for kind, size in bar(parts, width))
    rows = [
        (
            summary.KINDS[part.kind].glyph,
            clean(part.label),
            duration_ns(part.time_ns),
            percent(part.share),
            summary.KINDS[part.kind].meaning,
        )
        for part in parts
    ]
    return [phase_labels(parts, width), drawn, *_columns(rows, left=(0, 1, 4), width=width)]


def _findings(result: Result, width: int) -> list[str]:
    found = summary.finding_texts(result.findings)
    if not found:
        return [summary.FINDINGS_TITLE, f"  {summary.NO_FINDINGS}"]
    lines = [summary.FINDINGS_TITLE]
    for finding in found:
        lines.append(finding.title)
        for label, text in finding.lines:
            lines += _wrapped(text, width, lead=f"   {label:<9}" if label else "   ")
    return lines


def _section(title: str, entries: Iterable[str], width: int) -> list[str]:
    lines = [line for entry in entries for line in _wrapped(entry, width, lead="  ")]
    return ["", title, *lines] if lines else []


def _pairs(rows: Sequence[tuple[str, str, str]], width: int) -> list[str]:
    return _columns(rows, left=(0, 2), width=width)


def _columns(
    rows: Sequence[tuple[str, ...]], *, left: tuple[int, ...] | None = None, width: int | None = None
) -> list[str]:
    """Lines of aligned cells: the columns in `left` to the left (else the outer two), the others to the right.

    The last column is left out of lines that it would make longer than `width`.
    """
    columns = len(rows[0])
    to_left = (0, columns - 1) if left is None else left
    sizes = [max(len(row[i]) for row in rows) for i in range(columns)]
    gap = " " * summary.GAP
    lines = []
    for row in rows:
        cells = [
            cell.ljust(size) if i in to_left else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ]
        line = gap.join(cells).rstrip()
        lines.append(line if width is None or len(line) <= width else gap.join(cells[:-1]).rstrip())
    return lines


def _wrapped(text: str, width: int, lead: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
