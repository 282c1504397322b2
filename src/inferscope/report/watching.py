"""A window on a terminal, with bars where there is room for them (extra `cli`: rich)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from inferscope.report.units import UNKNOWN, percent
from inferscope.report.window import device_texts, heading, workload_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from inferscope.analysis.utilisation import WindowSample, WindowVerdict
    from inferscope.analysis.verdict import Finding
    from inferscope.report.window import DeviceText

__all__ = ["WindowView"]

_BOUNDS = {
    "compute": "bold green",
    "memory": "bold blue",
    "cache": "bold cyan",
    "inefficient": "bold yellow",
    "overhead": "bold magenta",
    "communication": "bold red",
    "idle": "dim",
    "unknown": "dim",
}
_SEVERITIES = {"WARN": "bold red", "INFO": "cyan", "": "dim"}
_LABEL_WIDTH = 9
_VALUE_WIDTH = 8
_BAR_WIDTH = 30
_LEAST_BAR_WIDTH = 10
_BESIDE_WIDTH = 70
"""From this width on the words beside a bar are shown."""


class WindowView:
    """One window for `Console.print` or a live display."""

    def __init__(
        self, sample: WindowSample, verdict: WindowVerdict, advice: dict[str, tuple[Finding, ...]], *, hint: str = ""
    ) -> None:
        """Take a window.

        Args:
            sample: The window.
            verdict: On it.
            advice: By device identity, as `recommend` gives it.
            hint: A last line, such as how to end.
        """
        self._sample = sample
        self._devices = device_texts(sample, verdict, advice)
        self._hint = hint

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Device by device, then the requests."""
        yield Text(f"inferscope watch · {heading(self._sample)}", style="bold")
        for device in self._devices:
            yield Text("")
            yield Rule(_title(device), align="left", style="dim")
            yield _bars(device, options.max_width)
            yield Text("  ".join(f"{label} {value}" for label, value in device.facts), style="dim")
            for severity, text in device.notes:
                yield Padding(Text(text, style=_SEVERITIES.get(severity, "")), (0, 0, 0, 2))
            if device.advice:
                yield Padding(Text(device.advice), (0, 0, 0, 2))
        lines = workload_lines(self._sample.workload)
        if lines:
            yield Text("")
            yield Rule(Text("Requests", style="bold"), align="left", style="dim")
            for line in lines:
                yield Text(line)
        if self._hint:
            yield Text("")
            yield Text(self._hint, style="dim")


def _title(device: DeviceText) -> Text:
    title = Text(f"{device.title} ", style="bold")
    title.append(device.bound, style=_BOUNDS.get(device.bound, ""))
    if device.confidence == "low" and device.bound != "unknown":
        title.append(" (confidence low)", style="yellow")
    return title


def _bars(device: DeviceText, width: int) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, min_width=_LABEL_WIDTH)
    table.add_column(no_wrap=True, justify="right", min_width=_VALUE_WIDTH)
    size = max(_LEAST_BAR_WIDTH, min(_BAR_WIDTH, width - _LABEL_WIDTH - _VALUE_WIDTH - 4))
    table.add_column(no_wrap=True)
    beside = width >= _BESIDE_WIDTH
    for label, share, words in device.bars:
        cells = [Text(label), Text(percent(share)), _bar(share, size)]
        table.add_row(*cells, *([Text(words, style="dim")] if beside else []))
    return table


def _bar(share: float | None, size: int) -> Text:
    if share is None:
        return Text(UNKNOWN, style="dim")
    filled = round(min(max(share, 0.0), 1.0) * size)
    return Text("█" * filled, style="cyan").append("░" * (size - filled), style="dim")
