"""Recording the operators of one forward with torch's own profiler, low down, and with every guard it needs.

Two recordings at once end the process, also where the other one is the user's and has only been prepared. So there is
one lock for the whole process, and while the tier is on torch's own way to prepare a recording is watched. The parts
below torch.profiler are used because stopping that one builds Python objects of all events on the thread that
generates; here they are read later, elsewhere.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from inferscope import notices
from inferscope.meters.budget import BUDGET
from inferscope.meters.deep_ledger import DriverCall, outermost
from inferscope.meters.operator_groups import MeasuredPass, OperatorSpan, is_operator, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Holder",
    "Window",
    "after_fork",
    "close_here",
    "give_back",
    "open_window",
    "switch_off",
    "switch_on",
    "take_for",
]

_MARK = "inferscope.pass"
_UNREAD_KEPT = 4
"""Recordings that have not been read; an event takes 1.5 kB, a forward of a large model has thousands."""
_EVENTS_PER_BREATH = 64
_DEVICE_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_DRIVER = frozenset({"cuda_runtime", "cuda_driver"})
"""Kinds of events, as Kineto names them."""
_OTHERS_WAIT_S = 5.0
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel", "cuLaunchCooperativeKernel")
_GRAPHS = ("cudaGraphLaunch", "cuGraphLaunch")
_WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize"),
)
"""Calls of the runtime and the driver, by how their names begin: entry points differ in what follows."""


class Holder(Protocol):
    """Something else that keeps recordings away while it lasts."""

    def make_way(self) -> None:
        """Somebody of the user's begins to record: end at once, and `give_back`. Any thread."""


class _State:
    """What is true of the process: who records, and who else may."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.window: Window | None = None
        self.holder: Holder | None = None
        self.unread: weakref.WeakSet[Window] = weakref.WeakSet()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.switching = threading.RLock()
        self.sessions = 0
        self.warm: set[bool] = set()
        self.broken = False
        self.original: Any = None
        self.ours: Any = None


_state = _State()


class Window:
    """A recording of one forward: open between `open_window` and `close`, read once, later, by any thread."""

    def __init__(self, devices: tuple[Any, ...]) -> None:
        """Begin. The lock is held.

        Args:
            devices: CUDA devices whose work is recorded, too.
        """
        from torch._C._profiler import _RecordFunctionFast  # noqa: PLC0415 - torch loads with the first model

        self.on_device = bool(devices)
        self._thread = threading.get_ident()
        self._results: Any = None
        began_ns = time.perf_counter_ns()
        _start(cuda=bool(devices))
        self._mark = _RecordFunctionFast(_MARK)
        try:
            self._mark.__enter__()
        except BaseException:
            _stop()
            raise
        self.opened_ns = time.perf_counter_ns()
        self.wall_ns = 0
        self.cost_ns = self.opened_ns - began_ns

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the calling thread opened it, which is the only one that may close it."""
        return self._thread == threading.get_ident()

    def end_pass(self) -> None:
        """The forward has been issued: what follows is not of it. Safe to call twice."""
        if self.wall_ns or not self.is_open_here:
            return
        ended_ns = time.perf_counter_ns()
        self.wall_ns = ended_ns - self.opened_ns
        try:
            self._mark.__exit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - recording is what fails, not the request
            _break(error)
        self.cost_ns += time.perf_counter_ns() - ended_ns

    @property
    def is_open_here(self) -> bool:
        """Whether it records, and the calling thread may end it."""
        return _state.window is self and self.is_of_this_thread

    def close(self) -> bool:
        """End it, without waiting for a device: what a device has not ended by now is lost. Safe to call twice.

        Returns:
            Whether something was recorded.
        """
        if not self.is_open_here:
            return self._results is not None
        self.end_pass()
        ended_ns = time.perf_counter_ns()
        try:
            self._results = _stop()
            _state.unread.add(self)
        except Exception as error:  # noqa: BLE001 - as above
            _break(error)
        finally:
            _state.window = None
            _state.lock.release()
        self.cost_ns += time.perf_counter_ns() - ended_ns
        return self._results is not None

    def discard(self) -> None:
        """Forget what was recorded."""
        self._results = None
        _state.unread.discard(self)

    def read(self, breathe: Callable[[], None]) -> MeasuredPass | None:
        """What was recorded; None where nothing was, or it has been read before.

        Args:
            breathe: Called between stretches of work, to let the interpreter serve others.
        """
        results = self._results
        if results is None:
            return None
        began_ns = time.thread_time_ns()
        try:
            return _read(results, breathe)
        finally:
            self.discard()
            BUDGET.charge(time.thread_time_ns() - began_ns)


def switch_on(*, cuda: bool = False, warm: bool = True) -> None:
    """A session begins that wants recordings: warm torch's profiler up, since its first start takes long.

    Args:
        cuda: Whether CUDA's part is wanted, too.
        warm: Whether it records; otherwise it only has to know of the user's recordings.
    """
    with _state.switching:
        _state.sessions += 1
        try:
            if _state.sessions == 1:
                _watch_others()
            if warm and cuda not in _state.warm and _state.lock.acquire(blocking=False):
                try:
                    if _obstacle(()) is None:
                        _start(cuda=cuda)
                        _stop()
                        _state.warm.add(cuda)
                finally:
                    _state.lock.release()
        except Exception as error:  # noqa: BLE001 - tracing goes on without this tier
            _break(error)


def switch_off() -> None:
    """Such a session has ended; with the last one, torch is as it was before."""
    with _state.switching:
        _state.sessions -= 1
        if _state.sessions > 0 or _state.original is None:
            return
        profile = sys.modules["torch.autograd.profiler"].profile
        if profile.__dict__.get("_prepare_trace") is _state.ours:
            profile._prepare_trace = _state.original  # noqa: SLF001 - ours is taken off again
        _state.original = _state.ours = None


def open_window(devices: tuple[Any, ...] = ()) -> Window | None:
    """Begin to record on this thread; None where that cannot be, which is said once.

    Args:
        devices: CUDA devices whose work is recorded, too.
    """
    state = _state
    if state.broken or not state.sessions or len(state.unread) >= _UNREAD_KEPT:
        return None
    if not state.lock.acquire(blocking=False):
        return None
    window = None
    try:
        obstacle = _obstacle(devices)
        if obstacle is None:
            window = state.window = Window(devices)
        else:
            notices.warn("deep-stepped-aside", f"operators are not recorded now: {obstacle}")
    except Exception as error:  # noqa: BLE001 - the forward goes on without
        _break(error)
    finally:
        if window is None:
            state.lock.release()
    return window


def close_here() -> None:
    """Close whatever this thread has left open."""
    window = _state.window
    if window is not None and window.is_of_this_thread:
        window.close()
        window.discard()


def take_for(holder: Holder) -> str | None:
    """Keep recordings away until `give_back`: two users of CUPTI exclude each other.

    Args:
        holder: Told when the user's own recording begins.

    Returns:
        None where it was taken; otherwise why not.
    """
    if not _state.lock.acquire(blocking=False):
        return "a recording is running"
    obstacle = None
    try:
        obstacle = _obstacle(())
        if obstacle is None:
            _state.holder = holder
    finally:
        if _state.holder is not holder:
            _state.lock.release()
    return obstacle


def give_back(holder: Holder) -> None:
    """What `take_for` has taken; safe to call twice."""
    with _state.switching:
        if _state.holder is holder:
            _state.holder = None
            _state.lock.release()


def after_fork() -> None:
    """In a forked child: a recording of the parent's is nobody's here."""
    _state.lock, _state.switching, _state.window = threading.Lock(), threading.RLock(), None
    _state.holder = None
    _state.unread.clear()
    _state.warm.clear()


def _break(error: Exception) -> None:
    """Recording has failed: no more of it in this process."""
    _state.broken = True
    notices.fault("deep-failed", error)


def _autograd() -> Any:  # noqa: ANN401 - torch's module; what is used of it has no types
    return importlib.import_module("torch.autograd")


def _start(*, cuda: bool) -> None:
    """No shapes, no memory, no stacks: each costs more than all the rest."""
    autograd = _autograd()
    place = importlib.import_module("torch._C._profiler")
    activities = {autograd.ProfilerActivity.CPU, *([autograd.ProfilerActivity.CUDA] if cuda else [])}
    left_out = (False,) * 5
    config = autograd.ProfilerConfig(autograd.ProfilerState.KINETO, *left_out, place._ExperimentalConfig())  # noqa: SLF001 - torch's
    autograd._prepare_profiler(config, activities)  # noqa: SLF001 - the public way builds objects on this thread
    try:
        autograd._enable_profiler(config, activities)  # noqa: SLF001 - as above
    except BaseException:
        with contextlib.suppress(Exception):  # what was prepared must not stay so
            _stop()
        raise


def _stop() -> Any:  # noqa: ANN401 - torch's
    return _autograd()._disable_profiler()  # noqa: SLF001 - as above


def _obstacle(devices: tuple[Any, ...]) -> str | None:
    """Why nothing can be recorded now; None where it can."""
    import torch  # noqa: PLC0415 - torch loads with the first model

    autograd = _autograd()
    running = autograd._profiler_enabled() or autograd.profiler._is_profiler_enabled  # noqa: SLF001 - torch's flags
    if running or any(map(_is_open, list(_state.users))):
        return "another profiler of torch's is running, and two at once would end the process"
    if devices and torch.cuda.is_current_stream_capturing():
        return "a graph is being captured"
    if devices and "torch._inductor.cudagraph_trees" in sys.modules:
        return "graphs may be captured within a forward"
    return None


def _is_open(profile: Any) -> bool:  # noqa: ANN401 - torch.autograd.profiler.profile
    """Whether a user's recording has been prepared and not ended."""
    return bool(getattr(profile, "entered", False)) and getattr(profile, "kineto_results", None) is None


def _watch_others() -> None:
    """Know of every recording that is prepared from now on, and of those that have been."""
    profile: Any = _autograd().profiler.profile
    original = profile._prepare_trace  # noqa: SLF001 - what everything of torch's goes through before it records

    def prepare_trace(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        _make_way(self)
        return original(self, *args, **kwargs)

    _state.original, _state.ours = original, prepare_trace
    profile._prepare_trace = prepare_trace  # noqa: SLF001 - as above
    for each in gc.get_objects():
        if issubclass(type(each), profile):
            _state.users.add(each)


def _make_way(profile: Any) -> None:  # noqa: ANN401 - torch.autograd.profiler.profile
    """Somebody else is about to record: end ours, or where it is another thread's, wait for the end of its forward."""
    try:
        _state.users.add(profile)
        profile.entered = True  # as it will do itself, after we have let go of the lock
        close_here()
        holder = _state.holder
        if holder is not None:
            holder.make_way()
        if _state.lock.acquire(timeout=_OTHERS_WAIT_S):
            _state.lock.release()
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("deep-failed", error)


def _read(results: Any, breathe: Callable[[], None]) -> MeasuredPass | None:  # noqa: ANN401 - torch's
    spans: list[tuple[OperatorSpan, int]] = []
    calls: list[tuple[DriverCall, int]] = []
    kernels: list[tuple[OperatorSpan, str]] = []
    whole: tuple[int, int, int] | None = None
    for index, event in enumerate(results.events()):
        if index % _EVENTS_PER_BREATH == 0:
            breathe()
        name, start_ns, end_ns = event.name(), event.start_ns(), event.end_ns()
        kind, number = event.activity_type(), event.correlation_id()
        if event.device_type().name != "CPU":
            if kind in _DEVICE_WORK:
                kernels.append((OperatorSpan(name, start_ns, end_ns, event.linked_correlation_id(), number), kind))
        elif kind in _DRIVER:
            calls.append((DriverCall(name, start_ns, end_ns, number), event.start_thread_id()))
        elif name == _MARK:
            whole = (start_ns, end_ns, event.start_thread_id())
        elif is_operator(name) and not event.is_async():
            spans.append((OperatorSpan(name, start_ns, end_ns, number), event.start_thread_id()))
    if whole is None:
        return None
    own = [span for span, thread in spans if _within(span, thread, whole)]
    issued = outermost(call for call, thread in calls if _within(call, thread, whole))
    # The recording lasts longer than the pass where a device works: what was issued after it is not of it.
    links, launches = {span.link for span in own}, {call.launch for call in issued}
    work = [(kernel, kind) for kernel, kind in kernels if kernel.launch in launches or kernel.link in links]
    measured = measure(whole[0], whole[1], own, [kernel for kernel, _ in work], issued)
    if issued or work:
        _count_calls(measured, [call.name for call in issued], sum(kind == "kernel" for _, kind in work))
    return measured


def _within(span: OperatorSpan | DriverCall, thread: int, whole: tuple[int, int, int]) -> bool:
    return thread == whole[2] and span.start_ns >= whole[0] and span.end_ns <= whole[1]


def _count_calls(measured: MeasuredPass, names: Sequence[str], kernels_run: int) -> None:
    """What the host asked of the driver. Without graphs that many kernels ran, whatever its entry points are called."""
    measured.graph_launches = sum(name.startswith(_GRAPHS) for name in names)
    measured.syncs = sum(name.startswith(_WAITS) for name in names)
    asked = sum(name.startswith(_LAUNCHES) for name in names)
    measured.launches = asked if measured.graph_launches else kernels_run
