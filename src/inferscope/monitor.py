"""BottleneckMonitor: the place that joins a machine's windows with their verdicts, outlets and listeners.

Windows are taken on one daemon thread, or where somebody asks for one. That thread reads NVML and psutil and calls
no CUDA function, so it cannot disturb a stream, a graph capture or a context.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Protocol

from inferscope import notices, surroundings
from inferscope.analysis import advice, utilisation, workload
from inferscope.errors import SettingError
from inferscope.hardware import nvml
from inferscope.hardware.load import HostLoad
from inferscope.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider

    from inferscope.analysis.utilisation import WindowSample, WindowVerdict
    from inferscope.analysis.verdict import Finding, Result
    from inferscope.samples import GpuReading
    from inferscope.sinks.hardware_metrics import HardwareMetrics

__all__ = ["BottleneckMonitor", "GpuSource", "Listener"]

KEPT_REQUESTS = 1024
"""Requests remembered at most; where more end within a minute, the horizon shrinks to those."""
KEPT_ENERGY_READINGS = 900
STOP_WAIT_S = 2.0
"""How long stopping waits for the thread; it may be inside the driver."""
_OWN_PROCESS = -1
_WAKE_EARLY_S = 0.002


class GpuSource(Protocol):
    """Where GPU readings come from."""

    def read(self) -> GpuReading:
        """Every GPU now; never raises."""


class Listener(Protocol):
    """What is told of each window, on the monitor's thread."""

    def __call__(self, sample: WindowSample, verdict: WindowVerdict, /) -> object:
        """Take one window and the verdict on it; what is returned is ignored."""


class BottleneckMonitor:
    """Watches the machine's devices: one window at a time, or continuously inside a `with` block.

    It is a sink as well: in `trace(model, sinks=[monitor])` its windows also say what the requests of the last
    minute amount to.
    """

    def __init__(
        self,
        *,
        gpus: GpuSource | None = None,
        interval_s: float = 1.0,
        keep: int = 600,
        on_sample: Iterable[Listener] = (),
        metrics: bool = True,
        meter_provider: MeterProvider | None = None,
        pid: int | None = _OWN_PROCESS,
    ) -> None:
        """Prepare; nothing is read before the first window.

        Args:
            gpus: Where GPU readings come from; None: NVML, shared by all monitors of this process.
            interval_s: Length of a window, at least 1 s: NVML is asked no more often.
            keep: How many windows are kept.
            on_sample: Told of each window; one that raises is reported once, and the others are still told.
            metrics: Whether a running monitor feeds OpenTelemetry gauges.
            meter_provider: Where they go; None: the global provider, also one that is set later.
            pid: The process whose load is told; None: no process. Default: this one.

        Raises:
            SettingError: `interval_s` or `keep` is too small, there is no such process, or an INFERSCOPE_* variable
                has a value it cannot have.
        """
        least_s = nvml.LEAST_INTERVAL_S if gpus is None else nvml.LEAST_WINDOW_S
        if not least_s <= interval_s < float("inf"):
            raise SettingError(f"interval_s={interval_s!r}: expected at least {least_s:g} seconds")
        if keep < 1:
            raise SettingError(f"keep={keep!r}: expected a whole number of at least 1")
        self._disabled = Settings.from_environment().disabled
        self._source = gpus
        self._interval_s = float(interval_s)
        self._pid = pid
        self._listeners = tuple(on_sample)
        self._metrics = metrics
        self._meter_provider = meter_provider
        self._outlet: HardwareMetrics | None = None
        self._history: deque[tuple[WindowSample, WindowVerdict]] = deque(maxlen=keep)
        # A process that is not there is said at once.
        self._begin_anew(None if pid in {_OWN_PROCESS, None} else HostLoad(pid))
        _MONITORS.add(self)
        surroundings.offer(self)

    def _begin_anew(self, load: HostLoad | None = None) -> None:
        """Locks, threads and windows of this process: in a forked child the parent's are worth nothing."""
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._depth = 0
        self._load = load
        self._primed_s: float | None = None
        self._taken_s: float | None = None
        self._since_unix_ns = time.time_ns()
        self._requests: deque[workload.RequestDigest] = deque()
        self._energy: dict[str, deque[tuple[int, float]]] = {}

    def __enter__(self) -> BottleneckMonitor:
        """Start; entering twice is counted."""
        with self._lock:
            self._depth += 1
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop when the outermost block ends."""
        with self._lock:
            self._depth -= 1
            last = self._depth <= 0
        if last:
            self.stop()

    def __call__(self, result: Result) -> None:
        """Take one request's result: the monitor is a sink. Costs microseconds."""
        digest = workload.digest(result)
        with self._lock:
            self._requests.append(digest)
            if len(self._requests) > KEPT_REQUESTS:
                # What lies before the oldest that is kept is not known any more.
                self._since_unix_ns = max(self._since_unix_ns, self._requests.popleft().end_unix_ns)

    @property
    def running(self) -> bool:
        """Whether windows are being taken on the monitor's own thread."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def latest(self) -> WindowSample | None:
        """The newest window; None before there is one."""
        return self._history[-1][0] if self._history else None

    @property
    def verdict(self) -> WindowVerdict | None:
        """The verdict on the newest window; None before there is one."""
        return self._history[-1][1] if self._history else None

    @property
    def history(self) -> tuple[WindowSample, ...]:
        """The latest windows, oldest first; `keep` of them at most."""
        return tuple(sample for sample, _ in self._history.copy())

    def start(self) -> BottleneckMonitor:
        """Take windows on a thread of its own until `stop`, or the end of the process.

        Starting twice is as once. With INFERSCOPE_DISABLED=1 nothing is started.
        """
        with self._lock:
            if self._disabled or self.running:
                return self
            if self._metrics:
                from inferscope.sinks.hardware_metrics import outlet  # noqa: PLC0415 - loads opentelemetry

                self._outlet = outlet(self._meter_provider)
            # Each thread has its own event: one that is slow to end must not be revived by the next start.
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=_run, args=(weakref.ref(self), self._stop), name="inferscope-monitor", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread, waiting up to 2 s for it. What was kept stays readable."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            if self._outlet is not None:
                self._outlet.withdraw(self)
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_WAIT_S)

    def sample(self) -> WindowSample:
        """The window that ends now, or the latest one where that is younger than the interval.

        The first call waits for one interval: a window needs two readings.
        """
        with self._taking:
            if self._taken_s is not None and time.monotonic() - self._taken_s < self._interval_s:
                return self._history[-1][0]
            rest_s = self._prime()
            if rest_s > 0:
                time.sleep(rest_s)
            return self._take()

    def windows(self) -> Iterator[WindowSample]:
        """A new window each interval, for ever, taken on the caller's thread unless the monitor runs."""
        while True:
            with self._taking:
                rest_s = self._prime()
            time.sleep(rest_s)
            yield self.sample()

    def classify(self, sample: WindowSample) -> WindowVerdict:
        """What held the device back in a window; `unknown` where the evidence does not say."""
        return utilisation.classify(sample)

    def recommend(self, verdict: WindowVerdict) -> tuple[Finding, ...]:
        """What to do about it, warnings first."""
        return advice.recommend(verdict)

    def _prime(self) -> float:
        """Begin the first window, if none has begun.

        Returns:
            Seconds until it is long enough.
        """
        if self._primed_s is None:
            self._read_gpus()
            self._host_load().read()
            # After the readings, and with room for a clock that wakes early: NVML must not be asked sooner.
            self._primed_s = time.monotonic() + _WAKE_EARLY_S
        begun_s = self._primed_s if self._taken_s is None else self._taken_s
        return max(0.0, begun_s + self._interval_s - time.monotonic())

    def _take(self) -> WindowSample:
        """Read everything once, judge it, and tell of it."""
        begin_s = time.perf_counter()
        reading = self._read_gpus()
        host = self._host_load().read()
        sample = utilisation.WindowSample(
            unix_ns=time.time_ns(),
            gpus=reading.gpus,
            gpus_missing=reading.missing,
            host=host,
            workload=self._summarise(),
            took_s=time.perf_counter() - begin_s,
        )
        verdict = self.classify(sample)
        self._history.append((sample, verdict))
        self._taken_s = time.monotonic() + _WAKE_EARLY_S
        self._tell(sample, verdict)
        return sample

    def _host_load(self) -> HostLoad:
        if self._load is None:
            self._load = HostLoad(os.getpid() if self._pid == _OWN_PROCESS else self._pid)
        return self._load

    def _read_gpus(self) -> GpuReading:
        source: GpuSource = self._source if self._source is not None else nvml.shared()
        reading = source.read()
        for gpu in reading.gpus:
            if gpu.energy_j is None:
                continue
            readings = self._energy.setdefault(gpu.uuid, deque(maxlen=KEPT_ENERGY_READINGS))
            if not readings or readings[-1][0] < gpu.unix_ns:
                readings.append((gpu.unix_ns, gpu.energy_j))
        return reading

    def _summarise(self) -> workload.Workload:
        with self._lock:
            requests, since_unix_ns = tuple(self._requests), self._since_unix_ns
        energy = {uuid: tuple(readings) for uuid, readings in self._energy.items()}
        return workload.summarise(requests, now_unix_ns=time.time_ns(), since_unix_ns=since_unix_ns, energy=energy)

    def _tell(self, sample: WindowSample, verdict: WindowVerdict) -> None:
        outlet = self._outlet
        if outlet is not None and self.running:
            outlet.show(self, sample, verdict, fresh_s=3 * self._interval_s)
        for listener in self._listeners:
            try:
                listener(sample, verdict)
            except Exception as error:  # noqa: BLE001 - a listener's fault is said once and costs the others nothing
                notices.warn(
                    "monitor-listener-failed",
                    f"a monitor's listener raised {type(error).__name__}: {error}",
                    listener=repr(listener),
                )

    def _turn(self, stop: threading.Event) -> None:
        """One window on the monitor's own thread."""
        with self._taking:
            rest_s = self._prime()
        if stop.wait(rest_s):
            return
        with self._taking:
            # Somebody who asked for a window meanwhile has had it taken.
            if self._taken_s is None or time.monotonic() - self._taken_s >= self._interval_s:
                self._take()

    def _after_fork(self) -> None:
        if self._outlet is not None:
            self._outlet.withdraw(self)
        self._begin_anew()


def _run(watched: weakref.ref[BottleneckMonitor], stop: threading.Event) -> None:
    """The thread: it ends when it is told to, and when nobody holds the monitor any more."""
    while not stop.is_set():
        monitor = watched()
        if monitor is None:
            return
        try:
            monitor._turn(stop)  # noqa: SLF001 - the other half of one mechanism
        except Exception as error:  # noqa: BLE001 - watching goes on, and the host knows nothing of it
            notices.fault("monitor-failed", error)
            stop.wait(1.0)
        del monitor


_MONITORS: weakref.WeakSet[BottleneckMonitor] = weakref.WeakSet()


def _stop_all() -> None:
    for monitor in list(_MONITORS):
        monitor.stop()


def _reset_all() -> None:
    for monitor in list(_MONITORS):
        monitor._after_fork()  # noqa: SLF001 - the other half of one mechanism


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
