"""A lint report as a readable table."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from inferscope.report.units import clean, count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.syncs import LintReport, SyncPoint

__all__ = ["lint_to_text"]

_WIDTH = 100
_GAP = "  "
_MOST_OPERATORS = 10


def lint_to_text(report: LintReport, *, width: int = _WIDTH) -> str:
    """The report as text, ending without a newline.

    Args:
        report: What `inferscope.lint` returned.
        width: Characters per line, except where a path is longer.
    """
    lines = [f"inferscope lint  {clean(report.model)}", *textwrap.wrap(_counted(report), width), ""]
    lines += _columns(
        [
            ("", f"per {report.unit}", "per request"),
            ("launches", f"≥ {_number(report.launches_per_token)}", f"≥ {_number(report.launches_per_request)}"),
            ("syncs", _number(report.syncs_per_token), _number(report.syncs_per_request)),
            ("syncs, possible", _number(report.possible_syncs_per_token), _number(report.possible_syncs_per_request)),
        ]
    )
    lines += ["", f"Sync points: {len(report.sync_points)}"]
    for point in report.sync_points:
        lines += _point(point, report.unit, width)
    lines += ["", "Launches by operator"]
    rows = [(f"  {clean(name)}", _number(rate.per_token), _number(rate.per_request)) for name, rate in report.launches]
    lines += _columns([("", f"per {report.unit}", "per request"), *rows[:_MOST_OPERATORS]])
    if len(rows) > _MOST_OPERATORS:
        lines.append(f"  and {len(rows) - _MOST_OPERATORS} more")
    lines += ["", "Notes", *_wrapped(report.notes, width)]
    return "\n".join(line.rstrip() for line in lines)


def _counted(report: LintReport) -> str:
    parts = [f"ran on {report.device}"]
    if report.counted_tokens is not None:
        short, long = report.counted_tokens
        parts.append(f"requests of {count(short)} and {count(long)} new tokens compared")
    if report.batch_size is not None:
        parts.append(f"batch {count(report.batch_size)}")
    return ", ".join((*parts, *(f"{name} {version}" for name, version in report.versions)))


def _point(point: SyncPoint, unit: str, width: int) -> Iterable[str]:
    often = [(point.per_token, f"per {unit}"), (point.per_request, "per request")]
    said = " + ".join(f"{_number(value)} {what}" for value, what in often if value) or "0"
    mark = "" if point.certainty == "certain" else " (possible)"
    yield f"  {said}{mark}  {clean(point.operator)}  {clean(point.file)}:{point.line}"
    if point.caller_file is not None:
        yield f"      called from {clean(point.caller_file)}:{point.caller_line}"
    yield from textwrap.wrap(clean(point.why), width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [first.ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(others, sizes[1:], strict=True))]
        yield _GAP.join(cells)


def _wrapped(entries: Iterable[str], width: int) -> Iterable[str]:
    for entry in entries:
        yield from textwrap.wrap(clean(entry), width, initial_indent="  ", subsequent_indent="  ")
