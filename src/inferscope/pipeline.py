"""The background thread on which results are made, and its bounded queue."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from inferscope import notices
from inferscope.capture import intercept

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pipeline"]

QUEUE_LENGTH = 1024
"""Finished requests that may wait for the background thread."""
LOOK_S = 0.05
"""How often the background thread looks for finished requests while sessions are open."""
BREATH_S = 0.001
"""How long it pauses between two stretches of work while a request is running."""
EXIT_WAIT_S = 5.0
"""How long the interpreter's exit waits for results that are still being made."""


class Pipeline:
    """The background thread and its bounded queue, one per process, started with the first session.

    Handing over must not wake the thread: a thread that is woken takes the interpreter from the one that has just
    finished its request, for milliseconds. It looks for work by itself instead, at once only where somebody waits.
    """

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurry = False
        self._sessions = 0
        self._busy = False
        self.dropped = 0

    def open(self) -> None:
        """A session begins: look for work until it ends."""
        with self._lock:
            self._sessions += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="inferscope", daemon=True)
                self._thread.start()
            # Last in, first out: results must be made before the tracer providers known by now shut down.
            atexit.unregister(self._drain_at_exit)
            atexit.register(self._drain_at_exit)
        self._wake.set()

    def close(self) -> None:
        """A session ends; what it has queued is still worked off."""
        with self._lock:
            self._sessions -= 1

    def submit(self, work: Callable[[], None]) -> bool:
        """Queue what makes a result, on the generating thread. Takes a microsecond and wakes nobody.

        Args:
            work: Called on the background thread; what it raises is said once.

        Returns:
            Whether it was queued; False where it had to be dropped.
        """
        if len(self._queue) < QUEUE_LENGTH:
            self._queue.append(work)
            if not self._sessions:  # the request outlived its session: nobody looks by himself any more
                self._wake.set()
            return True
        self.dropped += 1
        notices.warn(
            "results-dropped",
            "requests finish faster than results are made: some results are dropped",
            queue_length=QUEUE_LENGTH,
        )
        return False

    def is_own_thread(self) -> bool:
        """Whether the background thread is asking."""
        return threading.current_thread() is self._thread

    def hurry(self) -> None:
        """Somebody waits for a result: start now, and do not pause."""
        self._hurry = True
        self._wake.set()

    def breathe(self) -> None:
        """Let a running request have the interpreter between two stretches of work."""
        if intercept.active_requests() and not self._hurry:
            time.sleep(BREATH_S)

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK_S if self._sessions else None)
            self._wake.clear()
            self._work_off()
            self._hurry = False

    def _work_off(self) -> None:
        while self._queue:
            self._busy = True
            work = self._queue.popleft()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the thread must survive whatever a request brings
                notices.warn("result-failed", f"a result could not be made: {type(error).__name__}: {error}")
            finally:
                del work
                self._busy = False

    def _drain_at_exit(self) -> None:
        deadline = time.monotonic() + EXIT_WAIT_S
        self.hurry()
        while (self._queue or self._busy) and time.monotonic() < deadline:
            time.sleep(0.005)
