"""Time on a machine that may be doing something else: a disturbed reading is recognised and thrown away.

Readings that agree are not enough. Two threads that meet at a barrier while a third program holds one of their
processors wait a whole time slice at each product, again and again, very evenly: a 256 x 256 product then took
eight milliseconds instead of 0.2, with a spread of 3 %. The kernel knows better: it counts how often it took a
processor away from this process. Readings without that were all at full speed, however busy the machine.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import resource
except ImportError:  # not a POSIX system: nothing is known, so nothing is thrown away
    resource = None  # type: ignore[assignment]

__all__ = ["quiet_seconds", "shortest_seconds"]

_TOLERATED_PER_S = 20.0
"""The kernel's own work interrupts now and then: one in 50 ms is let through, or long readings never count."""


def quiet_seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that `repeats` runs took, NaN where this process was interrupted meanwhile.

    Source: involuntary context switches of all threads, getrusage(2).
    """
    before = _interruptions()
    begin = time.perf_counter_ns()
    for _ in range(repeats):
        run()
    seconds = (time.perf_counter_ns() - begin) / 1e9
    if _interruptions() - before > seconds * _TOLERATED_PER_S:
        return math.nan
    return seconds


def shortest_seconds(run: Callable[[], object], tries: int, patience_s: float) -> float | None:
    """The shortest of some undisturbed runs in seconds, None where there was no undisturbed one.

    Args:
        run: What to time.
        tries: Undisturbed runs that are enough.
        patience_s: After so many seconds no further run is begun.
    """
    shortest: float | None = None
    end = time.perf_counter() + patience_s
    while tries > 0:
        seconds = quiet_seconds(run)
        if not math.isnan(seconds):
            shortest = seconds if shortest is None else min(shortest, seconds)
            tries -= 1
        if time.perf_counter() >= end:
            break
    return shortest


def _interruptions() -> int:
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
