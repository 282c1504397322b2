"""Passes counted at the driver: differences of the thread's counts from before a forward to after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inferscope.meters.budget import BUDGET

if TYPE_CHECKING:
    from inferscope.capture.frames import Request
    from inferscope.meters.budget import Budget
    from inferscope.meters.counters import Counter, Counts

__all__ = ["PASSES_COUNTED", "CountingMeter", "counting_of"]

PASSES_COUNTED = 256
"""Of one request; the rest launch what these have."""


class CountingMeter:
    """Stands on a request and its frames for as long as its counter is open."""

    def __init__(self, request: Request, counter: Counter, *, opening_ns: int = 0, budget: Budget = BUDGET) -> None:
        """Count the passes of a request.

        Args:
            request: Whose passes they are; the counts are left in its `counts`.
            counter: It is open.
            opening_ns: What opening it took.
            budget: What counting is paid from.
        """
        self._request = request
        self._counter = counter
        self._budget = budget
        self._cost_ns = opening_ns
        self._before: Counts | None = None
        self._open = True

    def begin(self) -> None:
        """A forward begins."""
        if self._open:
            self._before = self._counter.counts()

    def end(self) -> None:
        """A forward has been issued."""
        before, self._before = self._before, None
        if before is None:
            return
        after = self._counter.counts()
        if not self._counter.is_open:  # it gave way to somebody in the midst of this pass
            self._finish()
            return
        counts = self._request.counts
        counts.append((self._request.clock.now_ns(), after.since(before)))
        if len(counts) >= PASSES_COUNTED:
            self._finish()

    def flush(self) -> None:
        """Rows are about to be looked at: nothing of this is in them."""

    def close(self) -> None:
        """The request is over: nothing of it stays open."""
        self._finish()

    def _finish(self) -> None:
        if not self._open:
            return
        self._open = False
        began_ns = time.perf_counter_ns()
        try:
            self._counter.close()
        finally:
            self._cost_ns += time.perf_counter_ns() - began_ns
            self._request.sampled_ns += self._cost_ns
            self._budget.charge(self._cost_ns)


def counting_of(request: Request, counter: Counter | None, *, budget: Budget = BUDGET) -> CountingMeter | None:
    """What counts the passes of a request; None where nothing does, or what was spent is not paid for yet.

    Args:
        request: Whose passes they are.
        counter: None where there is none.
        budget: What counting is paid from.
    """
    if counter is None or not budget.allows():
        return None
    began_ns = time.perf_counter_ns()
    opened = counter.open()
    cost_ns = time.perf_counter_ns() - began_ns
    if opened:
        return CountingMeter(request, counter, opening_ns=cost_ns, budget=budget)
    budget.charge(cost_ns)
    return None
