"""The operators of recorded passes as words: a table per phase, only where some were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.operators import operator_table, why_unbound
from inferscope.report.units import UNKNOWN, clean, count, duration_ns, percent, scaled

if TYPE_CHECKING:
    from inferscope.analysis.operators import GroupRow
    from inferscope.analysis.verdict import Result
    from inferscope.records import DeepTime

__all__ = ["OPERATORS_TITLE", "OperatorTable", "operator_tables"]

OPERATORS_TITLE = "Operators of recorded passes"
_HEADING = ("group", "time", "share", "calls", "launches", "FLOPs", "bytes", "bound")
_LARGEST_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTable:
    """One phase: what was recorded, the lines of cells with a heading first, and the largest single operators.

    `sides` is where the host's and the device's time went, `unbound` why groups have no bound.
    """

    lead: str
    rows: tuple[tuple[str, ...], ...]
    largest: str
    sides: tuple[str, ...] = ()
    unbound: tuple[str, ...] = ()


def operator_tables(result: Result) -> tuple[OperatorTable, ...]:
    """A table for each phase of which passes were recorded; times, calls and work are those of one pass."""
    tables = []
    for phase in result.record.phases:
        if phase.deep is None:
            continue
        verdict = result.diagnosis.phase(phase.name)
        asked = (result.record, phase, verdict.cost if verdict else None, result.diagnosis.device)
        rows = operator_table(*asked)
        tables.append(
            OperatorTable(
                lead=f"{clean(phase.name)}: {_lead(phase.deep, phase.passes)}",
                rows=(_HEADING, *map(_cells, rows), _python_cells(phase.deep)),
                largest=_largest(phase.deep),
                sides=_sides(phase.deep),
                unbound=tuple(f"bound {UNKNOWN}: {clean(reason)}" for reason in why_unbound(*asked)),
            )
        )
    return tuple(tables)


def _lead(deep: DeepTime, passes: int) -> str:
    busy = "" if deep.device_busy_ns is None else f", device busy {duration_ns(deep.device_busy_ns / deep.passes)}"
    error = abs(deep.closure_ns) / deep.wall_ns if deep.wall_ns else None
    return (
        f"{count(deep.passes)} of {count(passes)} passes recorded [deep], {duration_ns(deep.wall_ns / deep.passes)} "
        f"each while recorded{busy}; closes within {percent(error)}"
    )


def _sides(deep: DeepTime) -> tuple[str, ...]:
    """Where the host's and the device's time went, a line each; nothing where there is no device."""
    sides: list[tuple[str, tuple[tuple[str, int], ...]]] = []
    if deep.host is not None:
        host = deep.host
        parts = ("python", host.python_ns), ("dispatch", host.dispatch_ns), ("driver", host.driver_ns)
        sides.append(("host", (*parts, ("sync", host.sync_ns))))
    if deep.device is not None:
        device = deep.device
        idle = ("starved", device.starved_ns), ("launch gap", device.launch_gap_ns), ("drained", device.drained_ns)
        sides.append(("device", (*device.busy_ns, *idle)))
    return tuple(_side(name, parts) for name, parts in sides)


def _side(name: str, parts: tuple[tuple[str, int], ...]) -> str:
    total_ns = sum(part_ns for _, part_ns in parts)
    shares = " · ".join(f"{clean(part)} {percent(part_ns / total_ns)}" for part, part_ns in parts if part_ns)
    return f"{name}: {shares}" if shares else f"{name}: nothing"


def _cells(row: GroupRow) -> tuple[str, ...]:
    bound = UNKNOWN if row.bound is None else f"{row.bound} ({percent(row.roof_share)} of roof)"
    return (
        clean(row.group),
        duration_ns(row.time_ns),
        percent(row.share),
        count(round(row.calls)),
        count(None if row.launches is None else round(row.launches)),
        scaled(row.flops, "FLOP"),
        scaled(row.bytes, "B"),
        bound,
    )


def _python_cells(deep: DeepTime) -> tuple[str, ...]:
    gaps = count(round(deep.gaps / deep.passes))
    unknown = (UNKNOWN,) * 4
    return ("no operator", duration_ns(deep.python_ns / deep.passes), percent(deep.python_share), gaps, *unknown)


def _largest(deep: DeepTime) -> str:
    shown = deep.largest[:_LARGEST_SHOWN]
    return "largest: " + " · ".join(f"{clean(each.name or each.group)} {percent(each.share)}" for each in shown)
