"""What a session knows beside a record: the load, a GPU window of a monitor that runs, and torch's allocator.

Read on the background thread, after a request and not in it. The allocator's counters are its own: reading them asks
no driver and waits for no device.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from inferscope.analysis import workload
from inferscope.analysis.findings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.analysis.utilisation import WindowSample
    from inferscope.analysis.verdict import Result
    from inferscope.analysis.workload import Workload
    from inferscope.records import GenerationRecord
    from inferscope.samples import GpuSample

__all__ = ["AllocatorCounts", "Around", "WindowSource", "offer", "torch_allocator"]

KEPT_REQUESTS = 256
"""Requests that the load is told from; where more end within a minute, the horizon shrinks to those."""
LEAST_REQUESTS = 16
LEAST_HORIZON_S = 10.0
"""With fewer requests, or in less time, somebody tries something out: that is no server with too little to do."""
_NS = 1e9


class WindowSource(Protocol):
    """Takes windows of the machine's devices while it runs."""

    @property
    def running(self) -> bool:
        """Whether it does."""

    @property
    def latest(self) -> WindowSample | None:
        """The newest window; None before there is one."""


_SOURCES: weakref.WeakSet[WindowSource] = weakref.WeakSet()


def offer(source: WindowSource) -> None:
    """Let sessions see the windows of a monitor, for as long as somebody holds it."""
    _SOURCES.add(source)


class AllocatorCounts(NamedTuple):
    """What torch's allocator of one device has had to do since the process began."""

    retries: int
    ooms: int


def torch_allocator(device: str) -> AllocatorCounts | None:
    """The allocator's counters; None where the device is not CUDA's or CUDA is not in use. Initialises nothing."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_initialized():
        return None
    try:
        stats = torch.cuda.memory_stats(torch.device(device))
    except Exception:  # noqa: BLE001 - an allocator of the user's own need not count, and no result is lost for it
        return None
    retries, ooms = stats.get("num_alloc_retries"), stats.get("num_ooms")
    return None if retries is None or ooms is None else AllocatorCounts(int(retries), int(ooms))


class Around:
    """What one session knows beside its records."""

    def __init__(
        self,
        *,
        allocator: Callable[[str], AllocatorCounts | None] = torch_allocator,
        now_unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Begin.

        Args:
            allocator: By torch device string the counters of its allocator.
            now_unix_ns: The wall clock.
        """
        self._allocator = allocator
        self._now_unix_ns = now_unix_ns
        self._since_unix_ns = now_unix_ns()
        self._requests: deque[workload.RequestDigest] = deque()
        self._counts: dict[str, AllocatorCounts] = {}
        self._lock = threading.Lock()

    def open(self, device: str | None) -> None:
        """The session begins, or goes on after a pause: what happened meanwhile is no request's.

        Args:
            device: Of the model, as far as it is known by now.
        """
        with self._lock:
            self._since_unix_ns = self._now_unix_ns()
            self._requests.clear()
            self._counts.clear()
            if device is not None:
                self._allocated(device)

    def of(self, result: Result) -> Surroundings:
        """What is known beside a request that has just ended; on the background thread, in the order of the results.

        Args:
            result: Its record and the verdict on it.
        """
        device = result.record.model.device
        with self._lock:
            counts = None if device is None else self._allocated(device)
            load = self._load(result)
        return Surroundings(
            gpu=_gpu_of(result.record),
            workload=load,
            allocator_retries=None if counts is None else counts.retries,
            allocator_ooms=None if counts is None else counts.ooms,
        )

    def _allocated(self, device: str) -> AllocatorCounts | None:
        """What the allocator had to do since it was last asked; None the first time."""
        now = self._allocator(device)
        if now is None:
            return None
        before = self._counts.get(device)
        self._counts[device] = now
        # Somebody may have reset the counters.
        if before is None or now.retries < before.retries or now.ooms < before.ooms:
            return None
        return AllocatorCounts(now.retries - before.retries, now.ooms - before.ooms)

    def _load(self, result: Result) -> Workload | None:
        self._requests.append(workload.digest(result))
        if len(self._requests) > KEPT_REQUESTS:
            # What lies before the oldest that is kept is not known any more.
            self._since_unix_ns = max(self._since_unix_ns, self._requests.popleft().end_unix_ns)
        if len(self._requests) < LEAST_REQUESTS:
            return None
        load = workload.summarise(self._requests, now_unix_ns=self._now_unix_ns(), since_unix_ns=self._since_unix_ns)
        return load if load.requests >= LEAST_REQUESTS and load.horizon_s >= LEAST_HORIZON_S else None


def _gpu_of(record: GenerationRecord) -> GpuSample | None:
    """The newest window of the GPU that a request ran on, where some of it lies within the request."""
    key, end_unix_ns = record.device_key, record.started_unix_ns + record.wall_ns
    if key is None or not (record.model.device or "").startswith("cuda"):
        return None
    for source in list(_SOURCES):
        window = source.latest if source.running else None
        for gpu in window.gpus if window is not None else ():
            # torch writes a GPU's identity without NVML's prefix.
            if not gpu.uuid or gpu.uuid.removeprefix("GPU-") not in key:
                continue
            begun_unix_ns = gpu.unix_ns - round((gpu.window_s or 0.0) * _NS)
            if gpu.unix_ns >= record.started_unix_ns and begun_unix_ns <= end_unix_ns:
                return gpu
    return None
