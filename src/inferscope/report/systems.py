"""The sums of a timeline as tables, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from inferscope.report.units import UNKNOWN, clean, count, duration_ns, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from inferscope.analysis.systems import NamedSum, SystemsReport

__all__ = ["system_tables"]

_NAME_WIDTH = 60


def system_tables(report: SystemsReport, *, shown: int = 10) -> Iterator[RenderableType]:
    """What the tables of a profile say, part by part.

    Args:
        report: The sums.
        shown: How many rows of each table.
    """
    if report.ranges is not None:
        yield _ranges(report, shown)
    for title, sums in (("kernel", report.kernels), ("CUDA call", report.calls), ("copy", report.copies)):
        if sums is not None:
            yield _named(title, sums, shown)
    if report.launches is not None:
        yield _launches(report, shown)
    if report.sync_ns is not None:
        yield Text(f"The host spent {duration_ns(report.sync_ns)} in calls that wait for the device.")
    for note in report.notes:
        yield Text(f"note: {clean(note)}")
    yield Text(
        "A range's device time runs from its first kernel's start to its last one's end and holds whatever gaps lie "
        "between: it is not the time the device worked."
    )


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _ranges(report: SystemsReport, shown: int) -> Table:
    table = _table("range", "phase", "instances", "host", "device", "host each", "device each")
    ranges = report.ranges or ()
    ours = [entry for entry in ranges if entry.phase is not None]
    for entry in (ours or ranges)[:shown]:
        each = [None if total is None or not entry.instances else total / entry.instances
                for total in (entry.host_ns, entry.device_ns)]  # fmt: skip
        table.add_row(
            clean(f"{entry.domain}:{entry.name}" if entry.domain else entry.name),
            entry.phase or UNKNOWN,
            count(entry.instances),
            duration_ns(entry.host_ns),
            duration_ns(entry.device_ns),
            *(duration_ns(value) for value in each),
        )
    return table


def _named(title: str, sums: Sequence[NamedSum], shown: int) -> Table:
    table = _table(title, "time", "share", "calls", "each")
    total = sum(entry.total_ns for entry in sums)
    for entry in sums[:shown]:
        table.add_row(
            clean(_short(entry.name)),
            duration_ns(entry.total_ns),
            percent(entry.total_ns / total if total else None),
            count(entry.count),
            duration_ns(entry.total_ns / entry.count if entry.count else None),
        )
    if len(sums) > shown:
        table.caption = f"{count(len(sums) - shown)} more with --rows {len(sums)}"
    return table


def _launches(report: SystemsReport, shown: int) -> Table:
    table = _table("launched kernel", "launches", "call each", "queued each", "kernel each")
    for entry in (report.launches or ())[:shown]:
        table.add_row(
            clean(_short(entry.kernel)),
            count(entry.count),
            duration_ns(entry.call_ns),
            duration_ns(entry.queue_ns),
            duration_ns(entry.kernel_ns),
        )
    return table


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
