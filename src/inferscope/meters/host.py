"""What the host does besides the work: pauses of Python's garbage collector."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.meters.clock import Clock

__all__ = ["GcMeter"]


class GcMeter:
    """Reports each collection on the thread that ran it.

    Counted, because several sessions share one meter: the callback hangs in `gc.callbacks` while anybody listens.
    """

    def __init__(self, clock: Clock, on_pause: Callable[[int, int], None]) -> None:
        """Prepare, without listening yet.

        Args:
            clock: Where stamps come from.
            on_pause: Called with start and end in nanoseconds, on the collecting thread.
        """
        self._clock = clock
        self._on_pause = on_pause
        self._started = threading.local()
        self._users = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listen; call `stop` as often as this was called."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                gc.callbacks.append(self._collected)

    def stop(self) -> None:
        """Stop listening when the last user has stopped."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._collected in gc.callbacks:
                gc.callbacks.remove(self._collected)

    def _collected(self, stage: str, _info: dict[str, int]) -> None:
        # Python prints and drops what a callback raises, but printing would already be a leak into the host.
        try:
            if stage == "start":
                self._started.ns = self._clock.now_ns()
            elif (started := getattr(self._started, "ns", None)) is not None:
                self._on_pause(started, self._clock.now_ns())
        except Exception:  # noqa: BLE001, S110 - a lost pause is better than a word on the host's stderr
            pass
