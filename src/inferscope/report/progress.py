"""What is being done right now, on standard error: a bar on a terminal, a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from inferscope.report.units import clean

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Tell", "progress"]

_SPEED_OVER_S = 300.0
"""The time left is judged by the speed over so long; a single request may take half a minute."""

Tell = Callable[[str, float | None], None]
"""Takes what is being done and which share of it (0..1) is done, None where that is not known."""


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """Give out a function to report progress with; what it drew is gone afterwards.

    Args:
        console: Should write to standard error, so that standard output can be piped.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _line_per_stage(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=_SPEED_OVER_S) as bars:
        task = bars.add_task("starting", total=None)

        def tell(what: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bars.update(task, description=clean(what), total=total, completed=share or 0.0)

        yield tell


def _line_per_stage(console: Console) -> Tell:
    told: set[str] = set()

    def tell(what: str, _share: float | None) -> None:
        if what not in told:
            told.add(what)
            console.print(Text(f"{clean(what)} ..."), soft_wrap=True)

    return tell
