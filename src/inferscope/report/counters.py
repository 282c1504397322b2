"""Counters of kernels as tables, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from inferscope.report.units import UNKNOWN, clean, count, duration_ns, percent, ratio, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from inferscope.analysis.counters import CounterReport, CounterSums
    from inferscope.analysis.residuals import Residual

__all__ = ["counter_tables"]

_HEADINGS = ("launches", "time", "compute", "memory", "DRAM bytes", "DRAM", "FLOPs", "tensor pipe", "B/sector")
_NAME_WIDTH = 40
_RULES_SHOWN = 5
_UNITS = {"dram_bytes": ("DRAM bytes", "B"), "flops": ("FLOPs", "FLOP")}


def counter_tables(
    report: CounterReport, residuals: Sequence[Residual] = (), *, kernels: int = 10
) -> Iterator[RenderableType]:
    """What a file of counters says, part by part.

    Args:
        report: The counters.
        residuals: Of the cost model beside them.
        kernels: How many to show, longest first.
    """
    style = f"numbers in the style {report.number_style}" + ("" if report.style_seen else ", which is assumed")
    yield Text(f"{clean(report.source)}: {report.page} page, {count(report.total.launches)} launches, {style}")
    yield _phases(report)
    yield _kernels(report, kernels)
    if residuals:
        yield _beside(residuals)
    for rule in report.rules[:_RULES_SHOWN]:
        promise = "" if rule.speedup_share is None else f" (promises {percent(rule.speedup_share)} of the kernel)"
        yield Text(
            f"{clean(rule.phase)} · {clean(_short(rule.kernel))} · {clean(rule.name)}{promise}: {clean(rule.text)}"
        )
    for note in report.notes:
        yield Text(f"note: {clean(note)}")
    yield Text(
        "Times are kernels one after the other, at the clocks that the profiler had set. Shares are of the device's "
        "speed of light, weighted by time."
    )


def _phases(report: CounterReport) -> Table:
    table = _table("phase", "passes")
    for entry in report.phases:
        table.add_row(clean(entry.phase), count(entry.passes), *_cells(entry.sums))
    if len(report.phases) > 1:
        table.add_row("all", UNKNOWN, *_cells(report.total))
    return table


def _kernels(report: CounterReport, shown: int) -> Table:
    table = _table("kernel", "phase")
    for entry in report.kernels[:shown]:
        table.add_row(clean(_short(entry.kernel)), clean(entry.phase), *_cells(entry.sums))
    left = len(report.kernels) - shown
    if left > 0:
        table.caption = f"{count(left)} more with --kernels {len(report.kernels)}"
    return table


def _table(*first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in first:
        table.add_column(heading, overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    return table


def _cells(sums: CounterSums) -> tuple[str, ...]:
    return (
        count(sums.launches),
        duration_ns(sums.duration_ns),
        percent(sums.compute_share),
        percent(sums.memory_share),
        scaled(sums.dram_bytes, "B"),
        scaled(sums.dram_bytes_per_s, "B/s"),
        scaled(sums.total_flops, "FLOP"),
        percent(sums.tensor_share),
        ratio(sums.bytes_per_sector),
    )


def _beside(residuals: Sequence[Residual]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="Beside the cost model, per pass")
    for heading in ("phase", "quantity", "counted on paper", "counters", "ratio", "says"):
        table.add_column(heading, overflow="fold")
    for one in residuals:
        name, unit = _UNITS[one.quantity]
        paper = (
            UNKNOWN
            if one.expected_low is None
            else f"{scaled(one.expected_low, unit)} to {scaled(one.expected_high, unit)}"
        )
        says = f"{one.verdict}: {one.meaning}"
        table.add_row(clean(one.phase), name, paper, scaled(one.measured, unit), ratio(one.ratio), clean(says))
    return table


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
