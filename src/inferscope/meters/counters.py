"""Launches, graph launches, waits and copies as the CUDA driver is asked for them: exact, per thread, and opt-in.

`_cupti.c` does the counting, where it was built; libcupti is the one that torch's own wheel brings, or the system's. A
process has room for one user of CUPTI's callbacks (CUDA up to 13.2), which nsys, ncu, Proton and torch's profiler
are, too. So a subscription is held for one request at a time, gives way to the user's profiler, and where it is refused
that is said once, with the reason.

Counting has not run on a GPU here. What was confirmed is that real libraries of CUDA 12.9 and 13.0 load, take the
subscription's arguments and refuse without a driver in about 1 ms.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from inferscope import notices
from inferscope.meters import deep

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Counter", "Counts", "NativeCounter", "after_fork", "counter", "libraries", "missing", "native", "quiet"]

_INTERFACE = 1
_MULTIPLE_SUBSCRIBERS = 39
_SYSTEM = (
    "/usr/local/cuda*/lib*/libcupti.so*",
    "/usr/local/cuda*/extras/CUPTI/lib64/libcupti.so*",
    "/opt/cuda/extras/CUPTI/lib64/libcupti.so*",
)


class Counts(NamedTuple):
    """What the host asked of the driver.

    Attributes:
        launches: Kernels launched, those within graphs not among them.
        graph_launches: Graphs launched.
        syncs: Waits: for a stream, an event, a context, and copies to the host that wait.
        to_host: Copies to the host.
        to_device: Copies to the device.
    """

    launches: int
    graph_launches: int
    syncs: int
    to_host: int
    to_device: int

    def since(self, before: Counts) -> Counts:
        """What came after an earlier reading of the same thread."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


class Counter(Protocol):
    """Counts what the calling thread asks of a device."""

    def open(self) -> bool:
        """Begin to count; False where that cannot be, which is said once."""

    def counts(self) -> Counts:
        """Of the calling thread, ever since; only differences mean something."""

    def close(self) -> None:
        """End it; safe to call twice."""

    @property
    def is_open(self) -> bool:
        """Whether it still counts: somebody else may have been given way."""


class NativeCounter:
    """The driver's calls, by the C extension. One subscription at a time in the process.

    Attributes:
        reason: Why it last did not count; "" where it did, or was not asked.
        library: The libcupti that was loaded; "" as long as none is.
    """

    def __init__(
        self,
        extension: Any,  # noqa: ANN401 - the optional extension's module
        paths: Iterable[str],
        *,
        says: bool = True,
    ) -> None:
        """Open nothing yet.

        Args:
            extension: `inferscope._cupti`.
            paths: Where libcupti may be, best first.
            says: Whether a refusal is said, or its reason only kept.
        """
        self.reason = self.library = ""
        self._says = says
        self._extension = extension
        self._paths = tuple(paths)
        self._lock = threading.Lock()
        self._open = False
        self._given_up = False

    @property
    def is_open(self) -> bool:
        """Whether it counts."""
        return self._open

    def open(self) -> bool:
        """Subscribe; False where somebody else counts, or CUPTI refuses."""
        with self._lock:
            if self._open or self._given_up:
                return False
            try:
                self.reason = self._subscribe()
            except Exception as error:  # noqa: BLE001 - counting is what fails, not the request
                self._give_up(f"{type(error).__name__}: {error}")
            return self._open

    def counts(self) -> Counts:
        """Of the calling thread."""
        return Counts(*self._extension.counts())

    def close(self) -> None:
        """Give the subscription back."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            try:
                self._extension.unsubscribe()
            finally:
                deep.give_back(self)

    def make_way(self) -> None:
        """The user's profiler begins: CUPTI is theirs."""
        self.close()

    def after_fork(self) -> None:
        """In a forked child: the subscription is the parent's."""
        self._lock = threading.Lock()
        self._open = False
        self._extension.forget()

    def _subscribe(self) -> str:
        """Why it does not count now; "" where it does."""
        if not self.library:
            self._load()
        busy = deep.take_for(self)
        if busy is not None:
            return busy
        try:
            code, enabled = self._extension.subscribe()
        except BaseException:
            deep.give_back(self)
            raise
        if code == 0 and enabled:
            self._open = True
            return ""
        deep.give_back(self)
        if code == _MULTIPLE_SUBSCRIBERS:
            return self._refused("another tool holds CUPTI (nsys, ncu, Proton, or torch's profiler once it has run)")
        return self._give_up(self._extension.explain(code) if code else "CUPTI knows none of the calls to be counted")

    def _load(self) -> None:
        """The first library that loads.

        Raises:
            OSError: None does.
        """
        reasons = []
        for path in self._paths:
            try:
                self._extension.load(path)
            except OSError as error:
                reasons.append(str(error))
            else:
                self.library = path
                return
        raise OSError("; ".join(reasons) or "no libcupti was found: torch's CUDA wheels bring one")

    def _refused(self, reason: str) -> str:
        if self._says:
            notices.warn("counters-stepped-aside", f"launches are not counted at the driver: {reason}")
        return reason

    def _give_up(self, reason: str) -> str:
        """It will not get better in this process."""
        self._given_up = True
        self.reason = reason
        return self._refused(reason)


def libraries() -> tuple[str, ...]:
    """Where libcupti may be: beside torch, in the wheels that torch depends on, and in the system's places."""
    found: list[str] = []
    for package, inside in (("nvidia", "*/lib/libcupti.so*"), ("torch", "lib/libcupti*.so*")):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += sorted(str(path) for path in Path(folder).glob(inside))
    for pattern in _SYSTEM:
        found += sorted(glob.glob(pattern), reverse=True)  # noqa: PTH207 - an absolute pattern
    return tuple(dict.fromkeys([*found, "libcupti.so"]))


@functools.cache
def native() -> NativeCounter | None:
    """The counter of this process; None where the extension is not there."""
    extension = _extension()
    return None if isinstance(extension, str) else NativeCounter(extension, libraries())


def quiet() -> NativeCounter:
    """One to try out, which keeps its reasons to itself.

    Raises:
        OSError: The extension is not there.
    """
    extension = _extension()
    if isinstance(extension, str):
        raise OSError(extension)
    return NativeCounter(extension, libraries(), says=False)


def counter() -> Counter | None:
    """What counts for requests; None, said once, where nothing can."""
    found = native()
    if found is None:
        notices.warn("counters-stepped-aside", f"launches are not counted at the driver: {missing()}")
    return found


def missing() -> str:
    """Why there is no native counter; "" where there is one (which CUPTI may still refuse)."""
    extension = _extension()
    return extension if isinstance(extension, str) else ""


def after_fork() -> None:
    """In a forked child: nothing is open."""
    if native.cache_info().currsize and (found := native()) is not None:
        found.after_fork()


@functools.cache
def _extension() -> Any:  # noqa: ANN401 - a module, or why there is none
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without its global lock, and would switch it on for the extension"
    try:
        from inferscope import _cupti  # noqa: PLC0415 - it may not be there
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, requests go on
        return f"the C extension was not built for this Python (no compiler?) or does not load: {error}"
    if _cupti.INTERFACE != _INTERFACE:
        return "the C extension was built from other sources: install again"
    return _cupti
