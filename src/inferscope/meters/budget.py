"""What inferscope may cost: sampled work is put off until it is paid for, and requests go unobserved where that asks.

One account for the process, whatever is sampled: recorded operators, passes looked at for waits, counters, plugs. What
observing every pass costs comes first; sampling has what that leaves of the budget.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUDGET", "DEFAULT_SHARE", "Budget", "Governor"]

DEFAULT_SHARE = 0.01
LEAST_FOR_SAMPLING = 0.1
"""Part of the budget that sampling has in any case: else a tiny model would never be looked into."""
SETTLED_NS = 10_000_000_000
SETTLED_REQUESTS = 32
"""Wall and number of observed requests before their own share is believed: the first ones warm up."""
_STEPS = 4
"""Shares per halving."""
_FORGET = 1 - 1 / 256
"""What a request counts for after the next one."""


class Budget:
    """Keeps what sampling costs under a share of the time that passes, for the whole process.

    Attributes:
        share: Of the time (0..1).
        free_at_ns: When all that was spent will have been waited for.
    """

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns, share: float = DEFAULT_SHARE) -> None:
        """Nothing was spent yet.

        Args:
            now_ns: The host's clock.
            share: Of the time (0..1).
        """
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._limits: dict[object, float] = {}
        self.share = share
        self.free_at_ns = 0

    def charge(self, cost_ns: int) -> None:
        """Something was spent: the next time is put off until it is less than the share of the time passed."""
        with self._lock:
            self.free_at_ns = max(self.free_at_ns, self._now_ns()) + int(cost_ns / self.share)

    def allows(self) -> bool:
        """Whether all that was spent has been waited for."""
        return self._now_ns() >= self.free_at_ns

    def limit(self, who: object, share: float) -> None:
        """Somebody wants no more than a share of the time spent; the smallest that anybody wants holds.

        Args:
            who: Of whom there is one limit at a time.
            share: Of the time (0..1).
        """
        with self._lock:
            self._limits[who] = share
            self.share = min(self._limits.values())

    def lift(self, who: object) -> None:
        """That one is gone, and its limit with it."""
        with self._lock:
            self._limits.pop(who, None)
            self.share = min(self._limits.values(), default=DEFAULT_SHARE)

    def after_fork(self) -> None:
        """In a forked child: a lock that a thread of the parent's may have held is nobody's now."""
        self._lock = threading.Lock()


BUDGET = Budget()


class Governor:
    """Keeps one session within its budget. Fed on the background thread; read where a request begins."""

    def __init__(self, share: float, *, thins: bool, budget: Budget = BUDGET) -> None:
        """Begin with every request observed.

        Args:
            share: Of the time that may be spent (0..1).
            thins: Whether requests may go unobserved to keep it, since nothing else is left to save.
            budget: What sampled work is paid from.
        """
        self.share = share
        self.observed_share = 1.0
        self._thins = thins
        self._budget = budget
        self._wall_ns = 0.0
        self._self_ns = 0.0
        self._seen_ns = 0
        self._seen = 0

    @property
    def self_share(self) -> float | None:
        """Own time over the wall of the latest observed requests, sampled work left out; None where few were seen."""
        if self._seen < SETTLED_REQUESTS or self._seen_ns < SETTLED_NS:
            return None
        return self._self_ns / self._wall_ns

    @property
    def exceeds(self) -> bool:
        """Whether observing alone takes more than the budget."""
        share = self.self_share
        return share is not None and share > self.share

    def open(self) -> None:
        """The session begins."""
        self._budget.limit(self, self.share)

    def close(self) -> None:
        """It has ended."""
        self._budget.lift(self)

    def saw(self, wall_ns: int, self_ns: int) -> None:
        """An observed request has ended.

        Args:
            wall_ns: How long it took.
            self_ns: Own time in it, without what was sampled: that has been charged already.
        """
        self._wall_ns = self._wall_ns * _FORGET + wall_ns
        self._self_ns = self._self_ns * _FORGET + max(0, self_ns)
        self._seen_ns += wall_ns
        self._seen += 1
        share = self.self_share
        if share is None:
            return
        if self._thins and share > 0:
            self.observed_share = _stepped(min(1.0, self.share / share))
        left = self.share - share * self.observed_share
        self._budget.limit(self, max(left, self.share * LEAST_FOR_SAMPLING))


def _stepped(share: float) -> float:
    """A share not above this one, of few that there are: requests are compared where chance had the same odds."""
    return math.pow(2.0, math.floor(_STEPS * math.log2(share)) / _STEPS)
