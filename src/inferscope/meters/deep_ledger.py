"""Where the time of one recorded pass went, on the host and on the device: every nanosecond in exactly one place.

What the profiler gives are intervals of three kinds: operators, the driver's calls, and work of the device. A call's
number is also that of the work it started, so that it is known when a kernel could have begun and when it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

__all__ = [
    "DeviceSplit",
    "DeviceWork",
    "DriverCall",
    "HostSplit",
    "is_sync",
    "outermost",
    "split_device",
    "split_host",
    "unfinished",
]

_LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "GraphLaunch")


class DriverCall(NamedTuple):
    """One call into CUDA's runtime or driver, on the thread that was recorded."""

    name: str
    start_ns: int
    end_ns: int
    launch: int = 0  # number that the device's work which it started bears, too; 0 for none


class DeviceWork(NamedTuple):
    """One kernel, copy or fill on the device."""

    group: str
    start_ns: int
    end_ns: int
    launch: int = 0  # number of the call that started it; 0 where that is not known


@dataclass(slots=True)
class HostSplit:
    """The host's side of passes. The four add up to their wall by the profiler's clock.

    Attributes:
        python_ns: Neither an operator nor a call into the driver ran.
        dispatch_ns: In an operator, outside the driver.
        driver_ns: In the driver, without waiting for the device.
        sync_ns: In a call that waits for the device.
    """

    python_ns: int = 0
    dispatch_ns: int = 0
    driver_ns: int = 0
    sync_ns: int = 0

    def add(self, other: HostSplit) -> None:
        """Take other passes."""
        self.python_ns += other.python_ns
        self.dispatch_ns += other.dispatch_ns
        self.driver_ns += other.driver_ns
        self.sync_ns += other.sync_ns


@dataclass(slots=True)
class DeviceSplit:
    """The device's side of passes, from the host's first moment in them to the last of either. All parts add up.

    Attributes:
        busy_ns: By group. Where streams overlap, what began first has the time.
        starved_ns: Idle, and the host had not launched what came next. Where the host waited for the device before the
            pass, as transformers does at each token, the time until its first launch is here, too.
        launch_gap_ns: Idle, although the host had launched it: the driver's and the device's own latency.
        drained_ns: Idle since the host waited for the device and had to begin anew.
    """

    busy_ns: dict[str, int] = field(default_factory=dict)
    starved_ns: int = 0
    launch_gap_ns: int = 0
    drained_ns: int = 0

    def add(self, other: DeviceSplit) -> None:
        """Take other passes."""
        for group, busy_ns in other.busy_ns.items():
            self.busy_ns[group] = self.busy_ns.get(group, 0) + busy_ns
        self.starved_ns += other.starved_ns
        self.launch_gap_ns += other.launch_gap_ns
        self.drained_ns += other.drained_ns

    @property
    def window_ns(self) -> int:
        """Sum of all parts."""
        return sum(self.busy_ns.values()) + self.starved_ns + self.launch_gap_ns + self.drained_ns


def is_sync(name: str) -> bool:
    """Whether a call waits for the device. Source: names of CUDA's runtime and driver API."""
    return "Synchronize" in name or ("Memcpy" in name and "Async" not in name)


def unfinished(calls: Iterable[DriverCall], seen: AbstractSet[int]) -> int:
    """How many launches have left no work in the recording: it ended before they did.

    Args:
        calls: Of the host's into the driver, `outermost` alone.
        seen: Numbers that the recorded work bears.
    """
    started = {each.launch for each in calls if each.launch and any(part in each.name for part in _LAUNCHES)}
    return len(started - seen)


def split_host(
    start_ns: int, end_ns: int, operators: Sequence[tuple[int, int]], calls: Iterable[DriverCall]
) -> HostSplit:
    """The host's side of one pass.

    Args:
        start_ns: Its beginning on the profiler's clock.
        end_ns: Its end.
        operators: Start and end of its outermost operators, in order, without overlap.
        calls: Into the driver, in order, without overlap (`outermost`), within the pass.
    """
    split = HostSplit()
    within_ns = 0
    place = 0
    for call in calls:
        length_ns = call.end_ns - call.start_ns
        if is_sync(call.name):
            split.sync_ns += length_ns
        else:
            split.driver_ns += length_ns
        while place < len(operators) and operators[place][1] <= call.start_ns:
            place += 1
        inside = place
        while inside < len(operators) and operators[inside][0] < call.end_ns:
            within_ns += min(call.end_ns, operators[inside][1]) - max(call.start_ns, operators[inside][0])
            inside += 1
    split.dispatch_ns = sum(ended - began for began, ended in operators) - within_ns
    split.python_ns = end_ns - start_ns - split.dispatch_ns - split.driver_ns - split.sync_ns
    return split


def split_device(start_ns: int, end_ns: int, work: Iterable[DeviceWork], calls: Iterable[DriverCall]) -> DeviceSplit:
    """The device's side of one pass.

    Args:
        start_ns: Its beginning on the host, by the profiler's clock.
        end_ns: Its end on the host; where the device works longer, its end is that of the pass.
        work: Of the device, in any order.
        calls: Of the host's into the driver.
    """
    split = DeviceSplit()
    known = list(calls)
    launched = {call.launch: call.end_ns for call in reversed(known) if call.launch}
    syncs = [call for call in known if is_sync(call.name)]
    reached_ns = start_ns
    for each in sorted(work, key=lambda one: one.start_ns):
        if each.start_ns > reached_ns:
            _idle(split, reached_ns, each.start_ns, launched.get(each.launch, each.start_ns), syncs)
            reached_ns = each.start_ns
        if each.end_ns > reached_ns:
            split.busy_ns[each.group] = split.busy_ns.get(each.group, 0) + each.end_ns - reached_ns
            reached_ns = each.end_ns
    if end_ns > reached_ns:
        _idle(split, reached_ns, end_ns, end_ns, syncs)
    return split


def _idle(split: DeviceSplit, from_ns: int, to_ns: int, launched_ns: int, syncs: Sequence[DriverCall]) -> None:
    """The device does nothing: before the launch of what comes next that is the host's doing, after it is not."""
    waiting_ns = min(max(launched_ns, from_ns), to_ns) - from_ns
    split.launch_gap_ns += to_ns - from_ns - waiting_ns
    if any(call.start_ns < from_ns <= call.end_ns for call in syncs):
        split.drained_ns += waiting_ns
    else:
        split.starved_ns += waiting_ns


def outermost(calls: Iterable[DriverCall]) -> list[DriverCall]:
    """Calls of one thread in order, without those that lie within another: what the runtime asks of the driver."""
    kept: list[DriverCall] = []
    for call in sorted(calls, key=lambda one: (one.start_ns, -one.end_ns)):
        if not kept or call.start_ns >= kept[-1].end_ns:
            kept.append(call)
    return kept
