"""A result and a device on a terminal, in colour where it has some (extra `cli`: rich)."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from inferscope.report import summary
from inferscope.report.ceilings import ceilings, device_title
from inferscope.report.launches import LAUNCHES_TITLE, WAITS_TITLE, launch_lines, overhead_lines, wait_lines
from inferscope.report.operators import OPERATORS_TITLE, operator_tables
from inferscope.report.plain import bar, phase_labels
from inferscope.report.units import clean, duration_ns, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import ConsoleOptions, RenderableType, RenderResult

    from inferscope.analysis.verdict import Result
    from inferscope.records import GenerationRecord
    from inferscope.report.ceilings import CeilingRow
    from inferscope.specs import DeviceSpec

__all__ = ["DeviceView", "ResultView", "render", "render_device"]

_BOUNDS = {
    "compute": "green",
    "memory": "blue",
    "cache": "cyan",
    "inefficient": "yellow",
    "overhead": "magenta",
    "communication": "red",
    "high": "bold",
    "low": "yellow",
}
_SEVERITIES = {"OK": "green", "INFO": "cyan", "OPT": "bold yellow", "WARN": "bold red"}
_NOTE_WIDTH = 100
_MEANING_WIDTH = 76


class ResultView:
    """One result for `Console.print`.

    Text from outside (model names, notes) becomes `Text`, in which rich looks for no markup.
    """

    def __init__(self, result: Result) -> None:
        self._result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Everything, top down, as wide as the console is."""
        result, width = self._result, options.max_width
        yield Text(summary.headline(result), style="bold")
        yield Text(summary.facts(result.record))
        yield Text(summary.device_line(result), style="dim")
        yield from _phases(result, width)
        yield from _operators(result)
        yield from _section(LAUNCHES_TITLE, launch_lines(result.record))
        yield from _section(WAITS_TITLE, wait_lines(result.record))
        yield from _section("Verdict", summary.verdict_lines(result))
        yield from _title("Ledger")
        yield _ledger(result.record, width)
        yield from _title("Latency")
        yield _latencies(result.record)
        yield from _section("Slowest passes", summary.worst_lines(result.record))
        own = [summary.self_time(result.record), *overhead_lines(result.record.own_overhead)]
        yield from _section("inferscope's own time", own)
        yield from _findings(result)
        yield from _section("Missing here", summary.notes(result))


class DeviceView:
    """A device and its ceilings for `Console.print`, each with its source."""

    def __init__(self, device: DeviceSpec, *, notes: bool = True) -> None:
        """Take a device; `notes` says how each ceiling was obtained."""
        self._device = device
        self._notes = notes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The ceilings, and beside or below each how it was obtained."""
        yield Text(device_title(self._device), style="bold")
        rows = ceilings(self._device)
        if not rows:
            yield Text("no ceilings are known: `inferscope calibrate` measures them")
        else:
            yield _ceilings(rows, beside=options.max_width >= _NOTE_WIDTH, notes=self._notes)
        for reason in self._device.rejected:
            yield Text(f"rejected: {clean(reason)}", style="yellow")


def render(result: Result, *, width: int | None = None, color: bool = False) -> str:
    """The result as text of `width` columns (None: this terminal's), with ANSI colours if asked."""
    return _rendered(ResultView(result), width, color=color)


def render_device(device: DeviceSpec, *, width: int | None = None, color: bool = False) -> str:
    """The device's ceilings as text of `width` columns (None: this terminal's), with ANSI colours if asked."""
    return _rendered(DeviceView(device), width, color=color)


def _rendered(view: RenderableType, width: int | None, *, color: bool) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=width or shutil.get_terminal_size().columns,
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    console.print(view)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _title(text: str) -> Iterator[RenderableType]:
    yield Text("")
    yield Rule(Text(text, style="bold"), align="left", style="dim")


def _section(title: str, lines: Iterable[str]) -> Iterator[RenderableType]:
    texts = [Text(line) for line in lines]
    if texts:
        yield from _title(title)
        yield Group(*texts)


def _grid(*, header: bool = False) -> Table:
    return Table(box=None, show_header=header, padding=(0, summary.GAP, 0, 0), pad_edge=False)


def _phases(result: Result, width: int) -> Iterator[RenderableType]:
    yield from _title("Phases")
    for heading, *rows in summary.phase_tables(result, width):
        table = _grid(header=True)
        for number, name in enumerate(heading):
            outer = number in {0, len(heading) - 1}
            table.add_column(Text(name), justify="left" if outer else "right", no_wrap=True)
        for label, *cells, known in rows:
            values = [Text(cell, style=_BOUNDS.get(cell, "")) for cell in cells]
            table.add_row(Text(label), *values, Text(known, style="dim"))
        yield table
    yield Text(summary.PROVENANCE, style="dim")


def _operators(result: Result) -> Iterator[RenderableType]:
    tables = operator_tables(result)
    if tables:
        yield from _title(OPERATORS_TITLE)
    for each in tables:
        yield Text(each.lead, style="dim")
        heading, *rows = each.rows
        table = _grid(header=True)
        for number, name in enumerate(heading):
            table.add_column(Text(name), justify="left" if number in {0, len(heading) - 1} else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        yield table
        yield from (Text(line, style="dim") for line in (*each.sides, each.largest, *each.unbound))


def _ledger(record: GenerationRecord, width: int) -> RenderableType:
    parts = summary.segments(record)
    drawn = Text()
    for kind, size in bar(parts, width):
        drawn.append(summary.KINDS[kind].glyph * size, style=summary.KINDS[kind].colour)
    legend = _grid()
    for justify in ("left", "left", "right", "right", "left"):
        legend.add_column(justify=justify)
    for part in parts:
        kind_of = summary.KINDS[part.kind]
        cells = [
            Text(kind_of.glyph, style=kind_of.colour),
            Text(clean(part.label)),
            Text(duration_ns(part.time_ns)),
            Text(percent(part.share)),
        ]
        if width >= _MEANING_WIDTH:
            cells.append(Text(kind_of.meaning, style="dim"))
        legend.add_row(*cells)
    return Group(Text(phase_labels(parts, width)), drawn, legend)


def _latencies(record: GenerationRecord) -> RenderableType:
    table = _grid()
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, value, source in summary.latencies(record):
        table.add_row(Text(name), Text(value), Text(source, style="dim"))
    return table


def _findings(result: Result) -> Iterator[RenderableType]:
    yield from _title(summary.FINDINGS_TITLE)
    found = summary.finding_texts(result.findings)
    if not found:
        yield Text(summary.NO_FINDINGS)
    for finding in found:
        yield Text(finding.title, style=_SEVERITIES.get(finding.severity, ""))
        table = _grid()
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for label, text in finding.lines:
            if label:
                table.add_row(Text(label), Text(text))
            else:
                yield Padding(Text(text), (0, 0, 0, 3))
        yield Padding(table, (0, 0, 0, 3))


def _ceilings(rows: Iterable[CeilingRow], *, beside: bool, notes: bool) -> RenderableType:
    beside = beside and notes
    table = _grid(header=True)
    table.add_column("ceiling", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    if beside:
        table.add_column("how", overflow="fold", style="dim")
    for row in rows:
        cells = [Text(row.name), Text(row.value), Text(row.source), Text(row.spread)]
        table.add_row(*cells, *([Text(row.note)] if beside else []))
    if beside or not notes:
        return table
    return Group(table, *(Text(f"{row.name}: {row.note}", style="dim") for row in rows if row.note))
