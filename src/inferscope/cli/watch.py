"""`inferscope watch`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from inferscope.cli.documents import headed
from inferscope.report.watching import WindowView
from inferscope.report.window import as_json, one_line

if TYPE_CHECKING:
    from inferscope.analysis.utilisation import WindowSample
    from inferscope.monitor import BottleneckMonitor

__all__ = ["EXAMPLES", "watch"]

EXAMPLES = """\b
Examples:
  inferscope watch
  inferscope watch --pid 4711 --every 5
  inferscope watch --once --json
  inferscope watch --json >> windows.jsonl
"""


def watch(
    *,
    every: Annotated[float, typer.Option(help="Seconds per window, at least 1.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one window and end.")] = False,
    as_lines: Annotated[bool, typer.Option("--json", help="One JSON line per window, for programs.")] = False,
    pid: Annotated[int | None, typer.Option(help="Tell of this process, too.")] = None,
) -> None:
    """Show what holds this machine's GPUs and processors back, window by window. Ctrl-C ends it.

    True SM, tensor and DRAM activity need a GPU of the Hopper generation or later. The load of a process that
    serves requests is told with --pid; what its requests say of themselves only a monitor inside it knows.
    """
    from inferscope.monitor import BottleneckMonitor  # noqa: PLC0415 - loads psutil

    monitor = BottleneckMonitor(interval_s=every, keep=1, metrics=False, pid=pid)
    console = Console(highlight=False)
    drawn = console.is_terminal and not console.is_dumb_terminal and not as_lines
    try:
        if drawn and not once:
            _draw(monitor, console)
            return
        for sample in monitor.windows():
            verdict = monitor.classify(sample)
            if as_lines:
                findings = monitor.recommend(verdict)
                typer.echo(json.dumps(headed("window", as_json(sample, verdict, findings)), allow_nan=False))
            elif once:
                console.print(_view(monitor, sample))
            else:
                typer.echo(one_line(sample, verdict))
            if once:
                return
    except KeyboardInterrupt:
        return  # the way to end it, not an accident


def _draw(monitor: BottleneckMonitor, console: Console) -> None:
    with Live(Text("the first window ..."), console=console, auto_refresh=False) as live:
        for sample in monitor.windows():
            live.update(_view(monitor, sample, hint="Ctrl-C ends it"), refresh=True)


def _view(monitor: BottleneckMonitor, sample: WindowSample, *, hint: str = "") -> WindowView:
    verdict = monitor.classify(sample)
    advice = {one.device: monitor.recommend(one) for one in (verdict, *verdict.others)}
    return WindowView(sample, verdict, advice, hint=hint)
