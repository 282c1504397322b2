"""From events and stamps to an interval of device time, narrowed by what passes of the same kind were measured at."""

from __future__ import annotations

import bisect
import math
import threading
import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inferscope.records import DeviceTime

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SUBMIT_NS", "BusyTable", "DeviceSums", "Kind", "OnDevice", "busy_of", "on_device"]

SUBMIT_NS = 5_000
"""From the call that records an event to the earliest moment at which an idle device reaches it. Not confirmed."""
TIGHT = 0.98
"""Lower over upper end from which on the device is said to have been saturated."""
SLACK = 0.02
"""What passes of one kind and context differ by."""
SAMPLES_KEPT = 64
_STEPS_PER_OCTAVE = 16


class Kind(NamedTuple):
    """Passes that take the device equally long where they have as many tokens behind them."""

    phase: str
    batch: int
    q: int


class OnDevice(NamedTuple):
    """One forward on the device; times in nanoseconds, of the host's clock where they are moments.

    Attributes:
        started_ns: When the device began.
        events_ns: From its first event to its last.
        lag_ns: Of that, what lay after the host had issued it.
        low_ns: The device worked at least this long.
        kind: What it is comparable with; None where a shape was unknown.
        context: Tokens behind it, its own included.
        plugged: Whether it was held up until it had been issued, so that the events show the work alone.
    """

    started_ns: int
    events_ns: int
    lag_ns: int
    low_ns: int
    kind: Kind | None
    context: int
    plugged: bool = False

    def time(self, origin_ns: int) -> DeviceTime:
        """Of this forward alone.

        Args:
            origin_ns: Start of the request on its clock.
        """
        sums = DeviceSums()
        sums.add(self, 0)
        return replace(sums.time(origin_ns, BusyTable()), cycles_ns=None)


def on_device(
    *, started_ns: int, events_ns: int, ended_ns: int, left_ns: int, kind: Kind | None, context: int, plugged: bool
) -> OnDevice:
    """What two events and the host's stamps say of a forward.

    From the moment at which the host has issued everything nothing can starve the device any more, so it worked from
    there to its last event. The moment is taken late: after our own events had been recorded, too.

    Args:
        started_ns: When the device began, on the host's clock.
        events_ns: From its first event to its last.
        ended_ns: Exit of the forward on the host.
        left_ns: Exit of our own code after it.
        kind: What it is comparable with.
        context: Tokens behind it, its own included.
        plugged: Whether it was held up until it had been issued.
    """
    device_ended_ns = started_ns + events_ns
    lag_ns = min(events_ns, max(0, device_ended_ns - ended_ns))
    surely_ns = max(0, device_ended_ns - max(started_ns, left_ns) - SUBMIT_NS)
    low_ns = events_ns if plugged else min(events_ns, surely_ns)
    return OnDevice(started_ns, events_ns, lag_ns, low_ns, kind, context, plugged)


class _Sample(NamedTuple):
    context: int
    busy_ns: int
    provenance: Literal["plug", "deep"]


class BusyTable:
    """Measured device time of passes of one model, by kind and context. Written and read from any thread.

    A pass with more tokens behind it never takes the device less: measured ones on both sides bound those between.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._samples: dict[Kind, list[_Sample]] = {}
        self._lock = threading.Lock()

    def add(self, kind: Kind, context: int, busy_ns: int, provenance: Literal["plug", "deep"]) -> None:
        """Take the device time of one pass; the newest at a context counts, and the oldest context goes first."""
        with self._lock:
            held = self._samples.setdefault(kind, [])
            held[:] = [sample for sample in held if sample.context != context]
            if len(held) >= SAMPLES_KEPT:
                del held[len(held) // 2]
            bisect.insort(held, _Sample(context, busy_ns, provenance))

    def between(self, kind: Kind, least: int, most: int) -> tuple[int, int | None, Literal["plug", "deep"]] | None:
        """Least and most a pass with so many tokens behind it takes; None where no such pass was measured.

        Args:
            kind: Which passes.
            least: The fewest tokens behind one.
            most: The most.

        Returns:
            Lower end (0 where none with fewer tokens was measured), upper end (None likewise), and how they were
            obtained.
        """
        with self._lock:
            held = list(self._samples.get(kind, ()))
        below = [sample for sample in held if sample.context <= least]
        above = [sample for sample in held if sample.context >= most]
        if not below and not above:
            return None
        known = [*below[-1:], *above[:1]]
        low_ns = int(below[-1].busy_ns * (1 - SLACK)) if below else 0
        high_ns = math.ceil(above[0].busy_ns * (1 + SLACK)) if above else None
        both = {sample.provenance for sample in known}
        return low_ns, high_ns, "plug" if "plug" in both else "deep"


_tables: weakref.WeakKeyDictionary[object, BusyTable] = weakref.WeakKeyDictionary()


def busy_of(module: Any) -> BusyTable:  # noqa: ANN401 - any model
    """The table of a model; an empty one where there is no model any more."""
    return BusyTable() if module is None else _tables.setdefault(module, BusyTable())


@dataclass(slots=True)
class _Group:
    """Passes of one kind with about as many tokens behind them."""

    passes: int = 0
    low_ns: int = 0
    events_ns: int = 0
    least: int = 0
    most: int = 0


@dataclass(slots=True)
class DeviceSums:
    """The forwards of a phase on the device, while they are summed; memory does not grow with their number."""

    passes: int = 0
    cycles_ns: int = 0
    events_ns: int = 0
    lag_ns: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    groups: dict[tuple[Kind | None, int], _Group] = field(default_factory=dict)

    def add(self, one: OnDevice, cycle_ns: int) -> None:
        """Take a forward and the wall of its cycle."""
        self.passes += 1
        self.cycles_ns += cycle_ns
        self.events_ns += one.events_ns
        self.lag_ns += one.lag_ns
        self.first_ns = one.started_ns if self.first_ns is None else self.first_ns
        self.last_ns = max(self.last_ns, one.started_ns + one.events_ns)
        step = int(math.log2(one.context + 1) * _STEPS_PER_OCTAVE)
        group = self.groups.setdefault((one.kind, step), _Group(least=one.context, most=one.context))
        group.passes += 1
        group.low_ns += one.low_ns
        group.events_ns += one.events_ns
        group.least, group.most = min(group.least, one.context), max(group.most, one.context)

    def time(self, origin_ns: int, known: BusyTable) -> DeviceTime:
        """The interval of all of them together.

        Args:
            origin_ns: Start of the request on its clock.
            known: What passes of their kinds were measured at.
        """
        low_ns = high_ns = 0
        how: set[str] = set()
        for (kind, _), group in self.groups.items():
            low, high, provenance = _narrowed(group, kind, known)
            low_ns, high_ns = low_ns + low, high_ns + high
            how.add(provenance)
        return DeviceTime(
            low_ns=low_ns,
            high_ns=high_ns,
            provenance=_weakest(how, low_ns, high_ns),
            passes=self.passes,
            cycles_ns=self.cycles_ns,
            events_ns=self.events_ns,
            lag_ns=self.lag_ns,
            start_ns=None if self.first_ns is None else self.first_ns - origin_ns,
            end_ns=self.last_ns - origin_ns,
        )


def _narrowed(group: _Group, kind: Kind | None, known: BusyTable) -> tuple[int, int, str]:
    """The interval of a group, held against what was measured; where the two contradict each other, its own."""
    found = known.between(kind, group.least, group.most) if kind is not None else None
    if found is None:
        return group.low_ns, group.events_ns, "bound"
    low_ns = max(group.low_ns, group.passes * found[0])
    high_ns = group.events_ns if found[1] is None else min(group.events_ns, group.passes * found[1])
    if low_ns > high_ns:
        return group.low_ns, group.events_ns, "bound"
    return low_ns, high_ns, found[2] if found[0] and found[1] is not None else "bound"


def _weakest(how: Iterable[str], low_ns: int, high_ns: int) -> Literal["bound", "saturated", "plug", "deep"]:
    names = set(how)
    if "bound" in names:
        return "saturated" if names == {"bound"} and low_ns >= TIGHT * high_ns else "bound"
    return "plug" if "plug" in names else "deep"
