"""Nsight Compute's counters from the CSV that `ncu --csv` prints: raw page, details page, and `--metrics`.

The file is read twice, row by row: once for the style of its numbers, once for the numbers. Launches are added up as
they come, so that memory depends on how many different kernels there are and not on how often they ran.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from inferscope.analysis.counters import (
    OUTSIDE,
    CounterReport,
    KernelCounters,
    Launch,
    PhaseCounters,
    Rule,
    Tally,
    longest_first,
)
from inferscope.capture.passes import PHASE_NAMES
from inferscope.errors import RecordFormatError
from inferscope.integrations import nsight_csv
from inferscope.integrations.ncu_metrics import Meaning, filled, label_meaning, meaning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["BETWEEN", "NvtxPlace", "nvtx_place", "read_ncu"]

BETWEEN = "(between passes)"
"""Stands for the phase of what ran within a request of ours, but in none of its passes: sampling, copies."""
OTHERS = "(other kernels)"
LAUNCH_LIMIT = 500_000
KERNELS_KEPT = 5_000
RULES_KEPT = 200
_NAME_LENGTH = 1_000
_TEXT_LENGTH = 2_000
_PASSES_KEPT = 100_000
_OURS = frozenset({*PHASE_NAMES, "pass"})
_DOMAINS = ("inferscope", "<default domain>")
_QUOTED = re.compile(r'"([^"]*)"')
_AFTER_NAME = 6
"""Fields behind a range's name: type and value of its payload, of its colour, and of its message."""
_IN_HEADER = re.compile(r"(\S+__\S+) \((.+)\)")


class NvtxPlace(NamedTuple):
    """Where a launch stood among the ranges: its phase, and the identity of its forward where the range carries it."""

    phase: str
    pass_id: str | None


def nvtx_place(cells: Sequence[str]) -> NvtxPlace:
    """The innermost of our ranges that these cells name.

    Args:
        cells: Of the NVTX columns of one launch: `1234  "inferscope:decode:int64:7:none:none:none:none"`.
    """
    found: dict[str, list[tuple[str, str | None]]] = {}
    for cell in cells:
        thread = cell.split('"', 1)[0].strip() if '"' in cell else ""
        for text in _QUOTED.findall(cell) or ([cell] if cell.strip() else []):
            parts = text.strip().split(":")
            if parts[0].isdigit():  # a range of start and end carries its number first
                parts = parts[1:]
            if len(parts) < 2:  # noqa: PLR2004 - a domain and a name
                continue
            whole = len(parts) > _AFTER_NAME + 1
            name = ":".join(parts[1:-_AFTER_NAME]) if whole else parts[1]
            payload = parts[-_AFTER_NAME + 1] if whole and parts[-_AFTER_NAME].lower() != "none" else None
            identity = None if payload is None else f"{thread}/{payload}"
            found.setdefault(parts[0], []).append((name, identity))
    for domain in _DOMAINS:
        ranges = found.get(domain, [])
        phases = [entry for entry in ranges if entry[0] in _OURS]
        if phases:
            return NvtxPlace(*phases[-1])
        if domain == _DOMAINS[0] and any(name == "request" for name, _ in ranges):
            return NvtxPlace(BETWEEN, None)
    between = any(name == "request" for name, _ in found.get(_DOMAINS[1], []))
    return NvtxPlace(BETWEEN if between else OUTSIDE, None)


class _Value(NamedTuple):
    meaning: Meaning
    unit: str
    text: str


class _Entry(NamedTuple):
    """What one row says of one launch."""

    line: int
    key: tuple[str, ...]
    kernel: str
    place: NvtxPlace
    values: list[_Value]
    rule: tuple[str, str, str, str] | None  # name, kind, text, speedup


@dataclass(slots=True)
class _Layout:
    """Where things stand in the rows of a file."""

    path: str | Path
    header: nsight_csv.Row
    named: dict[str, int] = field(default_factory=dict)
    nvtx: list[int] = field(default_factory=list)
    tall: bool = False
    known: list[tuple[int, Meaning]] = field(default_factory=list)
    units: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.named = nsight_csv.columns(self.header.cells)
        where = nsight_csv.where(self.path, self.header.line)
        if "metric value" not in self.named and "invocations" in self.named:
            raise RecordFormatError(f"{where}: a summary per kernel has no launches: export without --print-summary")
        self.tall = "metric name" in self.named
        if self.tall and "id" not in self.named:
            raise RecordFormatError(f"{where}: no column ID, so that launches cannot be told apart")
        self.nvtx = [
            index
            for name, index in self.named.items()
            if "_range:" in name.replace(" ", "_") or name.startswith("nvtx")
        ]
        if not self.tall:
            self._find_metrics()

    def _find_metrics(self) -> None:
        best: dict[str, tuple[int, int, Meaning]] = {}
        for index, cell in enumerate(self.header.cells):
            match = _IN_HEADER.fullmatch(cell.strip())
            one = meaning(match[1] if match else cell)
            if one is None:
                continue
            if match:
                self.units[index] = match[2]
            held = best.get(one.name)
            if held is None or one.rank < held[0]:
                best[one.name] = (one.rank, index, one)
        self.known = [(index, one) for _, index, one in best.values()]

    def cell(self, cells: Sequence[str], name: str) -> str:
        index = self.named.get(name)
        return cells[index].strip() if index is not None and index < len(cells) else ""


def _is_header(cells: list[str]) -> bool:
    names = {cell.strip().lower() for cell in cells}
    return "kernel name" in names and bool(names & {"id", "metric value", "invocations"})


def _entries(path: str | Path) -> Iterator[_Layout | _Entry]:
    """The layout first, then what each row says."""
    stream = nsight_csv.rows(path, _is_header, quoted=True)
    layout = _Layout(path, next(stream))
    yield layout
    width = len(layout.header.cells)
    least = layout.named["metric value"] + 1 if "metric value" in layout.named else width
    for row in stream:
        if len(row.cells) == 1 or row.cells == layout.header.cells:  # the program's own words; a second page
            continue
        if len(row.cells) < least or len(row.cells) > width:
            cut = "" if row.whole else ": the last row is cut off: its writer was interrupted"
            raise RecordFormatError(
                f"{nsight_csv.where(path, row.line)}: {len(row.cells)} columns, the header has {width}{cut}"
            )
        if layout.tall:
            yield _tall_entry(layout, row)
        elif not layout.cell(row.cells, "id") and not layout.cell(row.cells, "kernel name"):
            layout.units = {index: row.cells[index] for index, _ in layout.known}
        else:
            values = [_Value(one, layout.units.get(index, ""), row.cells[index]) for index, one in layout.known]
            yield _entry(layout, row, values, None)


def _tall_entry(layout: _Layout, row: nsight_csv.Row) -> _Entry:
    unit, label = layout.cell(row.cells, "metric unit"), layout.cell(row.cells, "metric name")
    one = label_meaning(label, unit) if label else None
    values = [] if one is None else [_Value(one, unit, layout.cell(row.cells, "metric value"))]
    name = layout.cell(row.cells, "rule name")
    rule = None
    if name:
        kind, text = layout.cell(row.cells, "rule type"), layout.cell(row.cells, "rule description")
        rule = (name, kind, text, layout.cell(row.cells, "estimated speedup"))
    return _entry(layout, row, values, rule)


def _entry(
    layout: _Layout, row: nsight_csv.Row, values: list[_Value], rule: tuple[str, str, str, str] | None
) -> _Entry:
    cells = row.cells
    identity = layout.cell(cells, "id") or f"line {row.line}"
    return _Entry(
        line=row.line,
        key=(layout.cell(cells, "host name"), layout.cell(cells, "process id"), identity),
        kernel=layout.cell(cells, "kernel name")[:_NAME_LENGTH] or "(unnamed)",
        place=nvtx_place([cells[index] for index in layout.nvtx if index < len(cells)]),
        values=values,
        rule=rule,
    )


def read_ncu(path: str | Path) -> CounterReport:
    """The counters of a file, by kernel and by phase.

    Args:
        path: What `ncu --csv --page raw`, `--page details` or `--metrics ...` printed, noise lines and all.

    Returns:
        Sums that are known for every launch they cover; what was not collected, or stands in a unit that is not
        known, is None and named in `notes`.

    Raises:
        RecordFormatError: It is no such file, or is damaged; the message names the file and the line.
    """
    evidence = nsight_csv.StyleEvidence()
    for entry in _entries(path):
        if isinstance(entry, _Entry):
            for value in entry.values:
                evidence.look(value.text, entry.line)
            if entry.rule is not None:
                evidence.look(entry.rule[3], entry.line)
    style, seen = evidence.style(path)
    gathered = _Gathered(path=path, style=style)
    for entry in _entries(path):
        if isinstance(entry, _Layout):
            gathered.page = "details" if entry.tall else "raw"
        else:
            gathered.take(entry)
    return gathered.report(style_seen=seen)


@dataclass(slots=True)
class _Gathered:
    """Launches as they come together from their rows."""

    path: str | Path
    style: str
    page: str = "raw"
    current: _Entry | None = None
    values: dict[str, tuple[int, float]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    total: Tally = field(default_factory=Tally)
    phases: dict[str, Tally] = field(default_factory=dict)
    passes: dict[str, set[str] | None] = field(default_factory=dict)
    kernels: dict[tuple[str, str], Tally] = field(default_factory=dict)
    rules: dict[tuple[str, str, str, str], Rule] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def take(self, entry: _Entry) -> None:
        """One more row."""
        if self.current is None or entry.key != self.current.key or self.page == "raw":
            self._flush()
            self._begin(entry)
        for value in entry.values:
            self._measure(value, entry.line)
        if entry.rule is not None:
            self._advise(entry, entry.rule)

    def _begin(self, entry: _Entry) -> None:
        key = hash(entry.key)
        if key in self.seen:
            raise RecordFormatError(
                f"{nsight_csv.where(self.path, entry.line)}: launch {nsight_csv.shown(entry.key[-1])} of the same "
                "process stands there twice: two exports of one report in one file would be counted twice"
            )
        if len(self.seen) >= LAUNCH_LIMIT:
            raise RecordFormatError(
                f"{nsight_csv.where(self.path, entry.line)}: more than {LAUNCH_LIMIT:,} launches: import a part of it"
            )
        self.seen.add(key)
        self.current = entry

    def _measure(self, value: _Value, line: int) -> None:
        number = nsight_csv.number(value.text, self.style, nsight_csv.where(self.path, line))
        if number is None:
            return
        if number < 0:
            raise RecordFormatError(
                f"{nsight_csv.where(self.path, line)}: {value.meaning.name} is {number:g}: it cannot be negative"
            )
        scale = nsight_csv.scale_of(value.unit, value.meaning.unit)
        if scale is None:
            unit = nsight_csv.shown(value.unit) if value.unit.strip() else "no unit"
            self._note(f"{value.meaning.name} stands there in {unit}, not in one of {value.meaning.unit}: left out")
            return
        held = self.values.get(value.meaning.name)
        if held is None or value.meaning.rank < held[0]:
            self.values[value.meaning.name] = (value.meaning.rank, number * round(scale * value.meaning.factor, 12))

    def _note(self, text: str) -> None:
        if len(self.notes) < RULES_KEPT:
            self.notes[text] = None

    def _advise(self, entry: _Entry, rule: tuple[str, str, str, str]) -> None:
        name, kind, text, speedup = (part[:_TEXT_LENGTH] for part in rule)
        key = (name, text, entry.kernel, entry.place.phase)
        held = self.rules.get(key)
        if held is not None:
            self.rules[key] = replace(held, times=held.times + 1)
        elif len(self.rules) < RULES_KEPT:
            percent = nsight_csv.number(speedup, self.style, nsight_csv.where(self.path, entry.line))
            self.rules[key] = Rule(
                name=name,
                kind=kind,
                text=text,
                kernel=entry.kernel,
                phase=entry.place.phase,
                speedup_share=None if percent is None else percent / 100,
            )
        else:
            self._note(f"more than {RULES_KEPT} different remarks of rules: the first are kept")

    def _flush(self) -> None:
        entry, self.current = self.current, None
        if entry is None:
            return
        phase = entry.place.phase
        values, self.values = {name: value for name, (_, value) in self.values.items()}, {}
        launch = filled(Launch(kernel=entry.kernel, phase=phase, pass_id=entry.place.pass_id), values)
        self.total.add(launch)
        self.phases.setdefault(phase, Tally()).add(launch)
        kernel = (entry.kernel, phase)
        if kernel not in self.kernels and len(self.kernels) >= KERNELS_KEPT:
            kernel = (OTHERS, phase)
        self.kernels.setdefault(kernel, Tally()).add(launch)
        known = self.passes.setdefault(phase, set())
        if known is not None and (entry.place.pass_id is None or len(known) >= _PASSES_KEPT):
            self.passes[phase] = None
        elif known is not None:
            known.add("/".join((*entry.key[:2], entry.place.pass_id or "")))

    def report(self, *, style_seen: bool) -> CounterReport:
        """All of it."""
        self._flush()
        if not self.total.launches:
            raise RecordFormatError(f"{self.path}: a header and no launch: nothing was profiled")
        return CounterReport(
            source=str(self.path),
            page=self.page,
            number_style=self.style,
            style_seen=style_seen,
            total=self.total.sums(),
            phases=tuple(
                PhaseCounters(
                    phase=name, sums=tally.sums(), passes=len(known) if (known := self.passes[name]) else None
                )
                for name, tally in self.phases.items()
            ),
            kernels=longest_first(
                KernelCounters(kernel=kernel, phase=phase, sums=tally.sums())
                for (kernel, phase), tally in self.kernels.items()
            ),
            rules=tuple(sorted(self.rules.values(), key=lambda rule: -(rule.speedup_share or 0.0))),
            notes=tuple(self.notes),
        )
