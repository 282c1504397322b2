"""Where the host waits for a CUDA device, with file and line: torch's own sync debug mode, for one pass at a time.

The mode belongs to the process, and it speaks through Python's warnings, which do, too. So one thread looks at a time;
what the mode says about others' waits is dropped, for they would not have seen it without us; and every other warning
takes its way. Nothing is looked at where somebody has set the mode themselves.

What torch does not tell is not here: waits inside of other libraries, events that are waited for, and waits in code
that has put a filter of its own in front of ours.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.syncs import Place

__all__ = ["PLACES_KEPT", "CudaSyncDebug", "SyncDebug", "SyncWindow", "after_fork", "look"]

PLACES_KEPT = 256
"""Different lines kept of one pass."""
_WAITED = "called a synchronizing CUDA operation"
"""torch's warning, word for word, before it says where in its own source that was (c10/cuda/CUDAFunctions.cpp)."""
_PROTOTYPE = "Synchronization debug mode is a prototype feature"
"""What torch says once when the mode is set (torch/csrc/cuda/Module.cpp)."""
_OURS = "(?#inferscope)"
"""Tells our filters from anybody else's of the same words: a comment in a regular expression."""
_OFF, _WARN = 0, 1

_lock = threading.Lock()


class SyncDebug(Protocol):
    """Whatever warns when the host waits."""

    def get(self) -> int:
        """The mode: 0 off, 1 warn, 2 raise."""

    def set(self, mode: int) -> None:
        """Set it, for the whole process."""


class CudaSyncDebug:
    """torch's."""

    def get(self) -> int:
        """The mode."""
        import torch  # noqa: PLC0415 - a model on CUDA is there, so torch is loaded

        return int(torch.cuda.get_sync_debug_mode())

    def set(self, mode: int) -> None:
        """Set it."""
        import torch  # noqa: PLC0415 - as above

        torch.cuda.set_sync_debug_mode(mode)


class SyncWindow:
    """Open from `look` to `close`, on one thread.

    Attributes:
        opened_ns: When it began.
        closed_ns: When it ended; 0 while it has not.
        cost_ns: What opening and closing took.
        told_ns: What taking in the warnings took, which is in the pass.
        places: Waits by where they were asked for.
    """

    def __init__(self, debug: SyncDebug) -> None:
        """Begin. The lock is held.

        Args:
            debug: What warns.
        """
        from inferscope.meters.callers import place  # noqa: PLC0415 - knows where torch lies, so it loads it

        self._place = place
        self._debug = debug
        self._lock = _lock  # a forked child has another, and this one is still to be let go of
        self._thread = threading.get_ident()
        self._shows: Callable[..., None] = warnings.showwarning
        self._ours = self._show
        self._done = False
        self.places: Counter[Place] = Counter()
        self.closed_ns = self.told_ns = 0
        began_ns = time.perf_counter_ns()
        warnings.showwarning = self._ours
        try:
            for text in (_WAITED, _PROTOTYPE):
                warnings.filterwarnings("always", message=text + _OURS)
            debug.set(_WARN)
        except BaseException:
            self._restore()
            raise
        self.opened_ns = time.perf_counter_ns()
        self.cost_ns = self.opened_ns - began_ns

    def close(self) -> None:
        """End it; safe to call twice, and from another thread: the mode must not outlast the request."""
        if self._done:
            return
        self._done = True
        self.closed_ns = time.perf_counter_ns()
        try:
            self._restore()
        finally:
            self._lock.release()
        self.cost_ns += time.perf_counter_ns() - self.closed_ns

    def _restore(self) -> None:
        self._done = True
        try:
            if self._debug.get() == _WARN:  # whoever has set another one meanwhile wants that
                self._debug.set(_OFF)
        finally:
            if warnings.showwarning is self._ours:
                warnings.showwarning = self._shows
            for entry in [entry for entry in warnings.filters if _is_ours(entry)]:
                warnings.filters.remove(entry)  # type: ignore[attr-defined]  # it is a list

    def _show(self, message: Any, category: Any, filename: str, lineno: int, *rest: Any, **named: Any) -> None:  # noqa: ANN401 - passed through
        """Stands in for `warnings.showwarning`; who holds on to it after us gets what was there before."""
        text = str(message)
        if self._done or not text.startswith((_WAITED, _PROTOTYPE)):
            self._shows(message, category, filename, lineno, *rest, **named)
        elif text.startswith(_WAITED) and threading.get_ident() == self._thread:
            began_ns = time.perf_counter_ns()
            where = self._place(_NO_BORDER)
            if where in self.places or len(self.places) < PLACES_KEPT:
                self.places[where] += 1
            self.told_ns += time.perf_counter_ns() - began_ns


def _is_ours(entry: Any) -> bool:  # noqa: ANN401 - what `warnings` keeps of a filter
    """Whether a filter is one of ours; the message is a pattern, a text or nothing."""
    return str(getattr(entry[1], "pattern", "")).endswith(_OURS)


def look(debug: SyncDebug) -> SyncWindow | None:
    """Look for waits on this thread from now on; None where another thread does, or the mode is somebody else's.

    Args:
        debug: What warns.
    """
    if not _lock.acquire(blocking=False):
        return None
    window = None
    try:
        if debug.get() == _OFF:
            window = SyncWindow(debug)
    finally:
        if window is None:
            _lock.release()
    return window


def after_fork() -> None:
    """In a forked child: a thread of the parent's that looked is not here."""
    global _lock  # noqa: PLW0603 - a lock is replaced, not shared
    _lock = threading.Lock()


_NO_BORDER = look.__code__
"""Nothing that warns was called by this: the whole stack counts."""
