"""Nsight Systems' sums from the CSV that `nsys stats` writes: one table per file, or several in one.

Tables are known by their headers, not by the names of their files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferscope.analysis.systems import LaunchSum, NamedSum, RangeSum, SystemsReport
from inferscope.capture.passes import PHASE_NAMES
from inferscope.errors import RecordFormatError
from inferscope.integrations import nsight_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["ROWS_KEPT", "read_nsys"]

ROWS_KEPT = 100_000
_S_TO_NS = 1e9
_NAME_LENGTH = 1_000
_NOTES_KEPT = 50
_UNIT = re.compile(r"(.*?)\s*\(([^()]*)\)")
_LAST = frozenset({"name", "range", "operation", "kernel name"})
_OUR_DOMAINS = frozenset({"", "inferscope"})


@dataclass(slots=True)
class _Table:
    """One table of a file: its kind, where its columns stand, and its rows."""

    kind: str
    path: str | Path
    header: nsight_csv.Row
    named: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    rows: list[nsight_csv.Row] = field(default_factory=list)
    evidence: nsight_csv.StyleEvidence = field(default_factory=nsight_csv.StyleEvidence)

    def text(self, row: nsight_csv.Row, *names: str) -> str:
        index = next((self.named[name] for name in names if name in self.named), None)
        return "" if index is None else row.cells[index].strip()

    def number(self, row: nsight_csv.Row, *names: str) -> float | None:
        """A number; of a time, in nanoseconds."""
        where = nsight_csv.where(self.path, row.line)
        name = next((name for name in names if name in self.named), None)
        if name is None:
            return None
        value = nsight_csv.number(row.cells[self.named[name]], self.evidence.style(self.path)[0], where)
        unit = self.units.get(name)
        if value is None or unit is None:
            return value
        scale = nsight_csv.scale_of(unit, "second")
        if scale is None:
            raise RecordFormatError(
                f"{where}: {name} stands there in {nsight_csv.shown(unit)}, which is no unit of time"
            )
        return value * round(scale * _S_TO_NS, 9)  # nanoseconds of nanoseconds are to stay whole

    def needed(self, row: nsight_csv.Row, *names: str) -> float:
        value = self.number(row, *names)
        if value is None or value < 0:
            problem = "missing" if value is None else "negative"
            raise RecordFormatError(f"{nsight_csv.where(self.path, row.line)}: {names[0]} is {problem}")
        return value


def _split(header: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Columns by their name in lower case without its unit, and those units."""
    named: dict[str, int] = {}
    units: dict[str, str] = {}
    for index, cell in enumerate(header):
        match = _UNIT.fullmatch(cell.strip())
        name = (match[1] if match else cell).strip().lower()
        if name in named:
            continue
        named[name] = index
        if match and match[2] != "%":
            units[name] = match[2]
    return named, units


def _is_header(cells: list[str]) -> bool:
    return any(cell.strip().lower() in _LAST for cell in cells) and any(_UNIT.fullmatch(cell.strip()) for cell in cells)


def _kind(named: Mapping[str, int]) -> str:  # noqa: PLR0911 - one return per table
    if {"range", "total proj time"} <= named.keys():
        return "projections"
    if {"range", "instances", "total time"} <= named.keys():
        return "ranges"
    if {"kernel name", "kavg", "count"} <= named.keys():
        return "launches"
    if {"operation", "total time"} <= named.keys() and named.keys() & {"count", "operations"}:
        return "copies"
    if {"name", "total time", "num calls"} <= named.keys():
        return "calls"
    if {"name", "total time", "instances"} <= named.keys():
        return "kernels"
    return "other"


_WORDS = {
    "projections": "projected ranges",
    "ranges": "ranges",
    "launches": "launches and executions",
    "copies": "copies",
    "calls": "CUDA calls",
    "kernels": "kernels",
}


def read_nsys(paths: Iterable[str | Path]) -> SystemsReport:
    """The tables of one profile.

    Args:
        paths: What `nsys stats --format csv` wrote: `cuda_gpu_kern_sum`, `cuda_api_sum`, `cuda_gpu_mem_time_sum`,
            `nvtx_pushpop_sum`, `nvtx_gpu_proj_sum`, `cuda_kern_exec_sum`, in any order.

    Raises:
        RecordFormatError: A file is none of these or damaged, or a table is there twice; the message names the file and
            the line.
    """
    tables: dict[str, _Table] = {}
    notes: list[str] = []
    sources = [str(path) for path in paths]
    for path in sources:
        for table in _tables(path, notes):
            if table.kind == "other":
                continue
            held = tables.get(table.kind)
            if held is not None:
                raise RecordFormatError(
                    f"{nsight_csv.where(path, table.header.line)}: a second table of {_WORDS[table.kind]}, after that "
                    f"of {nsight_csv.where(held.path, held.header.line)}: import one profile at a time"
                )
            tables[table.kind] = table
    if not tables:
        raise RecordFormatError(f"{', '.join(sources) or 'no file'}: no table that is known: export as the page shows")
    return SystemsReport(
        sources=tuple(sources),
        kernels=_named(tables.get("kernels"), "name", "instances"),
        calls=_named(tables.get("calls"), "name", "num calls"),
        copies=_named(tables.get("copies"), "operation", "count", "operations"),
        ranges=_ranges(tables.get("ranges"), tables.get("projections")),
        launches=_launches(tables.get("launches")),
        notes=tuple(notes),
    )


def _tables(path: str | Path, notes: list[str]) -> Iterator[_Table]:
    table: _Table | None = None
    for row in nsight_csv.rows(path, _is_header, quoted=False):
        if len(row.cells) == 1:
            if "SKIPPED" in row.cells[0] and len(notes) < _NOTES_KEPT:
                notes.append(nsight_csv.shown(row.cells[0], 200).strip("'\""))
        elif _is_header(row.cells):
            if table is not None:
                yield _checked(table, notes)
            named, units = _split(row.cells)
            table = _Table(_kind(named), path, row, named, units)
        elif table is not None:
            _take(table, row)
    if table is not None:
        yield _checked(table, notes)


def _take(table: _Table, row: nsight_csv.Row) -> None:
    where = nsight_csv.where(table.path, row.line)
    if len(row.cells) != len(table.header.cells):
        cut = "" if row.whole else ": the last row is cut off: its writer was interrupted"
        raise RecordFormatError(f"{where}: {len(row.cells)} columns, the header has {len(table.header.cells)}{cut}")
    if table.kind == "other":
        return
    if len(table.rows) >= ROWS_KEPT:
        raise RecordFormatError(f"{where}: more than {ROWS_KEPT:,} rows: this is a trace, not a summary of one")
    table.rows.append(row)
    for name, index in table.named.items():
        if name in table.units or name in {"instances", "num calls", "count", "operations"}:
            table.evidence.look(row.cells[index], row.line)


def _checked(table: _Table, notes: list[str]) -> _Table:
    """A table of the operating system's calls has the very header of the one of CUDA's: its rows tell."""
    if table.kind == "calls" and table.rows and not any(table.text(row, "name").startswith("cu") for row in table.rows):
        table.kind = "other"
    if table.kind == "other" and len(notes) < _NOTES_KEPT:
        notes.append(f"{nsight_csv.where(table.path, table.header.line)}: a table that is not used here")
    return table


def _whole(table: _Table, row: nsight_csv.Row, *names: str) -> int:
    return round(table.needed(row, *names))


def _named(table: _Table | None, name: str, *counts: str) -> tuple[NamedSum, ...] | None:
    if table is None:
        return None
    found: dict[str, tuple[float, int]] = {}
    for row in table.rows:  # one kernel has several rows where they are told apart by their grids
        key = table.text(row, name)[:_NAME_LENGTH]
        total_ns, count = found.get(key, (0.0, 0))
        found[key] = total_ns + table.needed(row, "total time"), count + _whole(table, row, *counts)
    sums = (NamedSum(name=key, total_ns=total_ns, count=count) for key, (total_ns, count) in found.items())
    return tuple(sorted(sums, key=lambda entry: -entry.total_ns))


def _ranges(host: _Table | None, device: _Table | None) -> tuple[RangeSum, ...] | None:
    if host is None and device is None:
        return None
    found: dict[str, tuple[int, float | None, float | None]] = {}
    for row in device.rows if device else ():
        name = device.text(row, "range")[:_NAME_LENGTH] if device else ""
        count, host_ns, device_ns = found.get(name, (0, 0.0, 0.0))
        if device is not None:
            found[name] = (
                count + _whole(device, row, "range instances"),
                (host_ns or 0.0) + device.needed(row, "total range time"),
                (device_ns or 0.0) + device.needed(row, "total proj time"),
            )
    projected = set(found)
    for row in host.rows if host else ():
        name = host.text(row, "range")[:_NAME_LENGTH] if host else ""
        if host is not None and name not in projected:
            count, host_ns, _ = found.get(name, (0, 0.0, None))
            found[name] = (
                count + _whole(host, row, "instances"),
                (host_ns or 0.0) + host.needed(row, "total time"),
                None,
            )
    sums = [_range(name, *entry) for name, entry in found.items()]
    return tuple(sorted(sums, key=lambda entry: -(entry.device_ns or entry.host_ns or 0.0)))


def _range(text: str, instances: int, host_ns: float | None, device_ns: float | None) -> RangeSum:
    domain, colon, name = text.partition(":")
    if not colon:
        domain, name = "", text
    ours = domain in _OUR_DOMAINS and name in {*PHASE_NAMES, "pass"}
    return RangeSum(
        name=name,
        domain=domain,
        phase=name if ours else None,
        instances=instances,
        host_ns=host_ns,
        device_ns=device_ns,
    )


def _launches(table: _Table | None) -> tuple[LaunchSum, ...] | None:
    if table is None:
        return None
    sums = [
        LaunchSum(
            kernel=table.text(row, "kernel name")[:_NAME_LENGTH],
            api=table.text(row, "api name", "api function")[:_NAME_LENGTH],
            count=_whole(table, row, "count"),
            call_ns=table.needed(row, "aavg"),
            queue_ns=table.number(row, "qavg"),
            kernel_ns=table.needed(row, "kavg"),
        )
        for row in table.rows
    ]
    return tuple(sorted(sums, key=lambda entry: -entry.count))
