"""What is being done right now, on standard error: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from inferscope.report.units import clean

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Tell", "TimeLeft", "progress"]

Tell = Callable[[str, float | None], None]
"""Takes what is being done and which share of it (0..1) is done, None where that is not known."""
_SOONEST_S = 1.0
"""Less time than this says nothing about how long the rest will take."""


@contextmanager
def progress(console: Console, *, lines: bool = True) -> Iterator[Tell]:
    """Give out a function to report progress with; what it drew is gone afterwards.

    Args:
        console: Should write to standard error, so that standard output can be piped.
        lines: Whether to write a line per stage where there is no terminal to draw on.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _line_per_stage(console) if lines else _say_nothing
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    # Standard output stays what it is: it may be a file, and what is written to it meanwhile belongs there.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        task, left = bars.add_task("starting", total=None, left=""), TimeLeft()

        def tell(what: str, share: float | None) -> None:
            total = None if share is None else 1.0
            rest = left.text(share, time.monotonic())
            bars.update(task, description=clean(what), total=total, completed=share or 0.0, left=rest)

        yield tell


class TimeLeft:
    """How long the rest takes if it goes on as it has: by the share done since the share was first known."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._last = 0.0

    def seconds(self, share: float | None, now_s: float) -> float | None:
        """Seconds left; None where that cannot be told yet.

        Args:
            share: Of the work that is done (0..1); one that falls begins anew.
            now_s: Of a clock that never goes back.
        """
        if share is None:
            self._began = None
            return None
        if self._began is None or share < self._last:
            self._began = (now_s, share)
        self._last = share
        began_s, first = self._began
        if now_s - began_s < _SOONEST_S or share <= first:
            return None
        return (now_s - began_s) * (1.0 - share) / (share - first)

    def text(self, share: float | None, now_s: float) -> str:
        """The same as "1:05 left"; "" where that cannot be told."""
        rest_s = self.seconds(share, now_s)
        if rest_s is None:
            return ""
        minutes, seconds = divmod(round(rest_s), 60)
        return f"{minutes}:{seconds:02} left"


def _say_nothing(_what: str, _share: float | None) -> None:
    """Where nobody watches."""


def _line_per_stage(console: Console) -> Tell:
    told: set[str] = set()

    def tell(what: str, _share: float | None) -> None:
        if what not in told:
            told.add(what)
            console.print(Text(f"{clean(what)} ..."), soft_wrap=True)

    return tell
