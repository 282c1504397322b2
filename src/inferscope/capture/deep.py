"""Which forwards have their operators recorded: one in so many, soon after the start, and after a slow one."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferscope import notices
from inferscope.capture.census import PassCount, Step, count_of, step_of
from inferscope.capture.frames import Row
from inferscope.meters.budget import BUDGET
from inferscope.meters.cuda import cuda_devices_of
from inferscope.meters.deep import close_here, open_window
from inferscope.meters.operator_groups import MeasuredPass
from inferscope.meters.sync_points import CudaSyncDebug, look
from inferscope.records import DeepTime, DeviceLedger, HostLedger, OperatorTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inferscope.capture.busy import BusyTable, Kind
    from inferscope.capture.frames import ForwardMeter, Request
    from inferscope.meters.budget import Budget
    from inferscope.meters.deep import Window
    from inferscope.meters.deep_ledger import DeviceSplit, HostSplit
    from inferscope.meters.sync_points import SyncDebug, SyncWindow

__all__ = [
    "LARGEST_KEPT",
    "PUT_OFF_NOTE",
    "DeepMeter",
    "DeepSums",
    "NestedMeters",
    "Schedule",
    "debug_of",
    "schedule_of",
]

LARGEST_KEPT = 20
SLOW = 3
"""Times the running median from which on a pass is an anomaly."""
_SETTLED = 16
"""Passes after which the median is believed."""
_STEP = 32
_INCOMPLETE = (
    "a recorded forward was left out: the device had not ended it when the next one began, and is not waited for"
)
PUT_OFF_NOTE = (
    "no pass was recorded although one was due: what was sampled before is not yet within the overhead budget"
)
_DECODE_FROM = 2
"""The first recorded decode pass of a model: not the very first, which is slower than those that follow."""


class Schedule:
    """When the next forward of a model is recorded; threads may ask at once, which costs one too many at most."""

    def __init__(self, budget: Budget = BUDGET) -> None:
        """Nothing was recorded yet."""
        self._budget = budget
        self._since = 0
        self._had: set[bool] = set()
        self._due: set[bool] = set()
        self._seen = 0
        self._slow = False
        self.median_ns = 0

    def saw(self, pass_ns: int) -> None:
        """A pass after the first has taken so long, without being recorded."""
        median_ns = self.median_ns
        self._slow = self._seen >= _SETTLED and pass_ns > SLOW * median_ns
        self._seen += 1
        step_ns = median_ns // _STEP
        self.median_ns = median_ns + (step_ns if pass_ns > median_ns else -step_ns) if median_ns else pass_ns

    def wants(self, index: int, every: int) -> bool:
        """Whether a pass is to be recorded.

        Args:
            index: Of the pass in its request, from 0.
            every: One pass in so many.
        """
        self._since += 1
        first = index == 0
        if first not in self._had and (first or index >= _DECODE_FROM):
            return True
        return self.is_due(every) and self._budget.allows()

    def is_due(self, every: int) -> bool:
        """Whether a pass would be recorded if only the budget allowed it.

        Args:
            every: One pass in so many.
        """
        return self._since >= every or self._slow

    def wants_waits(self, index: int) -> bool:
        """Whether a pass that is not recorded is to be looked at for waits: one after each that was.

        Args:
            index: Of the pass in its request, from 0.
        """
        first = index == 0
        if first not in self._due:
            return False
        self._due.discard(first)
        return True

    def looked(self, cost_ns: int) -> None:
        """A pass was looked at for waits; that is not asked for before, but paid for all the same.

        Args:
            cost_ns: What it took.
        """
        self._budget.charge(cost_ns)

    def recorded(self, index: int, cost_ns: int, pass_ns: int) -> None:
        """A pass was recorded.

        Args:
            index: Of the pass in its request, from 0.
            cost_ns: What starting and stopping took.
            pass_ns: How long it took itself; what exceeds the median is a cost of recording.
        """
        self._had.add(index == 0)
        self._due.add(index == 0)
        self._since = 0
        self._slow = False
        slower_ns = max(0, pass_ns - self.median_ns) if index and self.median_ns else 0
        self._budget.charge(cost_ns + slower_ns)


_schedules: weakref.WeakKeyDictionary[object, Schedule] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def schedule_of(module: object) -> Schedule:
    """The schedule of a model, whoever traces it."""
    with _lock:
        return _schedules.setdefault(module, Schedule())


class DeepMeter:
    """Stands on a request and its frames; `begin` and `end` are called around each forward."""

    def __init__(self, module: Any, request: Request, every: int, *, loop: bool = False) -> None:  # noqa: ANN401 - any model
        """Record forwards of a request.

        Args:
            module: The model.
            request: Whose passes they are; what was recorded is left in its `windows` and `sync_windows`.
            every: One pass in so many, at most.
            loop: Whether it is hand-written: what comes between its passes, and how long, is not ours to know, so
                that a look for waits ends with the forward.
        """
        self._request = request
        self._loop = loop
        self._every = every
        self._schedule = schedule_of(module)
        self._devices = cuda_devices_of(module)
        self._debug = debug_of(self._devices)
        self._looking: SyncWindow | None = None
        self._window: Window | None = None
        self._index = self._began = -1
        self._recorded = False

    def begin(self) -> None:
        """A forward begins."""
        if self._window is not None:
            self._finish()
        request = self._request
        self._index += 1
        if self._looking is not None:
            self._look_away()
        if self._index > 1 and request.row and not self._recorded:
            last = request.row - Row.WIDTH
            self._schedule.saw(request.rows[last + Row.ENDED] - request.rows[last + Row.STARTED])
        self._recorded = False
        # Never both in one pass: each makes the other's pass longer.
        if self._debug is not None and self._schedule.wants_waits(self._index):
            self._looking = look(self._debug)
            if self._looking is not None:
                request.sync_windows.append(self._looking)
        elif self._schedule.wants(self._index, self._every):
            self._window = open_window(self._devices)
            self._began = self._index
        elif self._schedule.is_due(self._every):
            request.put_off += 1

    def end(self) -> None:
        """A forward has been issued.

        A device may still be at work on it, and is not waited for: the recording goes on until the next forward
        begins, before which the host has read the token.
        """
        if self._loop and self._looking is not None:
            self._look_away()
        window = self._window
        if window is None:
            return
        self._recorded = True
        window.end_pass()
        if not window.on_device:
            self._finish()

    def _finish(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        if window.close():
            self._request.windows.append(window)
        self._request.sampled_ns += window.cost_ns
        self._schedule.recorded(self._began, window.cost_ns, window.wall_ns)

    def flush(self) -> None:
        """Rows are about to be looked at: nothing of this is in them."""

    def close(self) -> None:
        """The request is over: nothing of it stays open."""
        try:
            if self._looking is not None:
                self._look_away()
        finally:
            if self._recorded:
                self._finish()
            elif self._window is not None:
                self._window = None
                close_here()

    def _look_away(self) -> None:
        """The pass, and in `generate` the selection after it, has been looked at for waits."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.close()
            self._request.sampled_ns += looking.cost_ns
            self._schedule.looked(looking.cost_ns + looking.told_ns)


def debug_of(devices: tuple[Any, ...]) -> SyncDebug | None:
    """What warns where the host waits for these devices; None where there are none."""
    return CudaSyncDebug() if devices else None


class NestedMeters:
    """One meter around another: what has to lie close to the forward is the inner one."""

    def __init__(self, outer: ForwardMeter, inner: ForwardMeter) -> None:
        """Take both."""
        self._outer = outer
        self._inner = inner

    def begin(self) -> None:
        """A forward begins."""
        self._outer.begin()
        try:
            self._inner.begin()
        except Exception:
            self._outer.close()
            raise

    def end(self) -> None:
        """A forward has been issued."""
        try:
            self._inner.end()
        finally:
            self._outer.end()

    def flush(self) -> None:
        """Rows are about to be looked at."""
        self._inner.flush()
        self._outer.flush()

    def close(self) -> None:
        """The request is over."""
        try:
            self._inner.close()
        finally:
            self._outer.close()


@dataclass(slots=True)
class DeepSums:
    """The recorded forwards of a phase."""

    unread: list[tuple[Window, str, Kind | None, int]] = field(default_factory=list)
    counted: list[tuple[Step, PassCount]] = field(default_factory=list)
    passes: int = 0
    wall_ns: int = 0
    cost_ns: int = 0
    measured: MeasuredPass = field(default_factory=MeasuredPass)

    def read(self, known: BusyTable, breathe: Callable[[], None]) -> None:
        """Read what was recorded; on the background thread.

        Args:
            known: Takes what the device worked.
            breathe: Called between stretches of work.
        """
        unread, self.unread = self.unread, []
        for window, name, kind, context in unread:
            one = window.read(breathe)
            if one is None:
                continue
            if one.lost:
                notices.warn("deep-incomplete", _INCOMPLETE, launches=one.lost)
                continue
            self.passes += 1
            self.wall_ns += window.wall_ns
            self.cost_ns += window.cost_ns
            self.measured.add(one)
            if kind is not None:
                self.counted.append((step_of(name, kind.batch, context), count_of(one)))
            if one.device_busy_ns is not None and kind is not None:
                known.add(kind, context, one.device_busy_ns, "deep")

    def time(self) -> DeepTime | None:
        """All of them together; None where there was none."""
        if not self.passes:
            return None
        measured = self.measured
        by_time = sorted(measured.operators.items(), key=lambda item: -item[1].time_ns)
        return DeepTime(
            passes=self.passes,
            wall_ns=self.wall_ns,
            operators_ns=measured.operators_ns,
            python_ns=measured.python_ns,
            gaps=measured.gaps,
            closure_ns=self.wall_ns - measured.operators_ns - measured.python_ns,
            cost_ns=self.cost_ns,
            device_busy_ns=measured.device_busy_ns,
            host=_host(measured.host),
            device=_device(measured.device),
            largest=tuple(
                self._entry(each.group, name, (each.time_ns, each.calls, each.launches))
                for name, each in by_time[:LARGEST_KEPT]
            ),
        )

    def groups(self) -> tuple[OperatorTime, ...]:
        """By group, longest first."""
        sums: dict[str, tuple[int, int, int]] = {}
        for each in self.measured.operators.values():
            held = sums.get(each.group, (0, 0, 0))
            sums[each.group] = held[0] + each.time_ns, held[1] + each.calls, held[2] + each.launches
        return tuple(self._entry(group, None, sums[group]) for group in sorted(sums, key=lambda key: -sums[key][0]))

    def _entry(self, group: str, name: str | None, sums: Sequence[int]) -> OperatorTime:
        time_ns, calls, launches = sums
        return OperatorTime(
            group=group,
            name=name,
            time_ns=time_ns,
            wall_ns=self.wall_ns,
            calls=calls,
            launches=launches if self.measured.device_busy_ns is not None else None,
        )


def _host(split: HostSplit | None) -> HostLedger | None:
    if split is None:
        return None
    return HostLedger(
        python_ns=split.python_ns, dispatch_ns=split.dispatch_ns, driver_ns=split.driver_ns, sync_ns=split.sync_ns
    )


def _device(split: DeviceSplit | None) -> DeviceLedger | None:
    if split is None:
        return None
    return DeviceLedger(
        window_ns=split.window_ns,
        busy_ns=tuple(sorted(split.busy_ns.items(), key=lambda item: -item[1])),
        starved_ns=split.starved_ns,
        launch_gap_ns=split.launch_gap_ns,
        drained_ns=split.drained_ns,
    )
