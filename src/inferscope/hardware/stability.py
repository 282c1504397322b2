"""When a series of readings may be called a ceiling: pure logic, no clock and no device of its own.

A ceiling is what a device can sustain. One good reading may be luck, and the first quiet stretch on a shared
machine may be one that was evenly disturbed. So the best stretch of readings that agree with each other
counts, and its median is the value. A reading that is known to be disturbed arrives as NaN and is left out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_SPREAD", "WINDOW", "Outcome", "Series", "Window", "collect"]

WINDOW = 9
"""Undisturbed readings in a row that have to agree.

Fewer agree by accident: of readings that scatter by 15 %, five in a row stay within 5 % once in 50 tries, nine once
in 1,000.
"""

MAX_SPREAD = 0.05
"""Largest coefficient of variation of a window that may become a ceiling."""

_BETTER = 0.01
_LEAST_SHARE = 0.5
_MAX_READINGS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of readings that agree.

    Attributes:
        value: Their median.
        spread: Their coefficient of variation (0..1).
    """

    value: float
    spread: float


class Series:
    """Readings as they arrive, and the best stable window among them.

    Attributes:
        best: The best window so far; None while no window is stable.
        least_spread: Of any window so far, stable or not; None before there is one.
        count: Readings taken.
        disturbed: How many of them were not positive numbers, and so not readings of the device.
    """

    def __init__(self, *, highest: bool) -> None:
        """Start empty.

        Args:
            highest: Whether a larger reading is the better one (a rate) or a smaller one is (a time).
        """
        self.best: Window | None = None
        self.least_spread: float | None = None
        self.count = 0
        self.disturbed = 0
        self._highest = highest
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._since_better = 0

    def add(self, reading: float) -> None:
        """Take in one reading; one that is not a positive number is counted as disturbed and passed over."""
        self.count += 1
        if not (math.isfinite(reading) and reading > 0):
            self.disturbed += 1
            return
        self._since_better += 1
        self._recent.append(reading)
        if len(self._recent) < WINDOW:
            return
        mean = statistics.fmean(self._recent)
        squares = math.fsum((value - mean) ** 2 for value in self._recent)
        spread = math.sqrt(squares / (WINDOW - 1)) / mean
        self.least_spread = spread if self.least_spread is None else min(self.least_spread, spread)
        if spread <= MAX_SPREAD:
            self._offer(Window(value=statistics.median(self._recent), spread=spread))

    def settled(self) -> bool:
        """Whether a whole window of further readings has not improved on the best one by 1 %."""
        return self.best is not None and self._since_better >= WINDOW

    def _offer(self, window: Window) -> None:
        if self.best is None:
            self.best, self._since_better = window, 0
            return
        gain = window.value / self.best.value if self._highest else self.best.value / window.value
        if gain > 1:
            self.best = window
        if gain > 1 + _BETTER:
            self._since_better = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a bounded series of readings came to.

    Attributes:
        window: The best stable window; None where there was none.
        readings: How many were taken.
        reason: Why there is no window, as the rest of a sentence; "" where there is one.
    """

    window: Window | None
    readings: int
    reason: str = ""


def collect(
    read: Callable[[], float],
    *,
    budget_s: float,
    highest: bool,
    least_readings: int = 2 * WINDOW,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """The best stable window of what `read` returns, within a budget.

    Ends early once half the budget is spent and the best window has stood for a whole further window of
    readings: quick readings would otherwise all fall into one and the same disturbance. At least one reading is
    taken, and none is begun after the budget: it is exceeded by one reading at most.

    Args:
        read: Takes one reading; NaN where it was disturbed.
        budget_s: Seconds to spend.
        highest: Whether larger readings are better.
        least_readings: Fewer are not enough to end early.
        clock: Seconds, rising.
    """
    series = Series(highest=highest)
    begin = clock()
    spent_s = 0.0
    while series.count == 0 or (spent_s < budget_s and series.count < _MAX_READINGS):
        series.add(read())
        spent_s = clock() - begin
        long_enough = series.count >= least_readings and spent_s >= budget_s * _LEAST_SHARE
        if long_enough and series.settled():
            break
    return Outcome(window=series.best, readings=series.count, reason=_reason(series, budget_s))


def _reason(series: Series, budget_s: float) -> str:
    if series.best is not None:
        return ""
    disturbed = f", {series.disturbed} of {series.count} were disturbed" if series.disturbed else ""
    if series.least_spread is None:
        usable = series.count - series.disturbed
        return f"{usable} readings in {budget_s:.1f} s are too few, {WINDOW} are needed{disturbed}"
    closest = f"closest {series.least_spread:.0%}"
    return f"no {WINDOW} readings agreed within {MAX_SPREAD:.0%} in {budget_s:.1f} s ({closest}{disturbed})"
