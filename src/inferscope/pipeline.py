"""The background thread on which results are made, and its bounded queue."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import opentelemetry.trace

from inferscope import losses, notices
from inferscope.capture import intercept

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pipeline", "say_failed"]

QUEUE_BYTES = 64 * 2**20
"""What finished requests that wait for the background thread may hold; a short one is about 2 kB."""
CALM_LENGTH = 64
"""With fewer waiting the background thread takes its time."""
LOOK_S = 0.05
"""How often the background thread looks for finished requests while sessions are open."""
BREATH_S = 0.001
"""How long it pauses between two stretches of work while a request is running."""
EXIT_WAIT_S = 5.0
"""How long the interpreter's exit waits for results that are still being made."""


def say_failed(error: Exception) -> None:
    """A request was measured, and there is no result of it."""
    losses.count("results")
    notices.warn("result-failed", f"a result could not be made: {type(error).__name__}: {error}")


class Pipeline:
    """The background thread and its bounded queue, one per process, started with the first session.

    Handing over must not wake the thread: a thread that is woken takes the interpreter from the one that has just
    finished its request, for milliseconds. It looks for work by itself instead, at once only where somebody waits.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[], None], int]] = deque()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurry = False
        self._sessions = 0
        self._drained_before: object = None
        self._busy = False
        self.dropped = 0

    def open(self) -> None:
        """A session begins: look for work until it ends."""
        with self._lock:
            self._sessions += 1
            if self._thread is None:
                self._start()
            # Last in, first out: results must be made before the tracer providers known by now shut down. Only when
            # there is a new one, since what is registered is never given back.
            provider = opentelemetry.trace.get_tracer_provider()
            if provider is not self._drained_before:
                self._drained_before = provider
                atexit.unregister(self._drain_at_exit)
                atexit.register(self._drain_at_exit)
        self._wake.set()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="inferscope", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """A session ends; what it has queued is still worked off."""
        with self._lock:
            self._sessions -= 1

    def submit(self, work: Callable[[], None], held_bytes: int) -> bool:
        """Queue what makes a result, on the generating thread. Takes a microsecond and wakes nobody.

        Args:
            work: Called on the background thread; what it raises is said once.
            held_bytes: Memory it keeps until then.

        Returns:
            Whether it was queued; False where it had to be dropped.
        """
        with self._lock:
            fits = self._held_bytes + held_bytes <= QUEUE_BYTES
            if fits:
                self._held_bytes += held_bytes
                self._queue.append((work, held_bytes))
        if fits:
            if not self._sessions:  # the request outlived its session: nobody looks by himself any more
                self._wake.set()
            return True
        self.dropped += 1
        losses.count("results")
        notices.warn(
            "results-dropped",
            "requests finish faster than results are made: some results are dropped",
            queue_bytes=QUEUE_BYTES,
        )
        return False

    def after_fork(self) -> None:
        """In a forked child: the thread is gone, and what it had queued is the parent's."""
        self._queue.clear()
        self._held_bytes = 0
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._thread, self._hurry, self._busy, self.dropped = None, False, False, 0
        if self._sessions:
            self._start()

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
            time.sleep(BREATH_S if len(self._queue) < CALM_LENGTH else 0)

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK_S if self._sessions else None)
            self._wake.clear()
            self._work_off()
            self._hurry = False

    def _work_off(self) -> None:
        while self._queue:
            self._busy = True
            work, held_bytes = self._queue.popleft()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the thread must survive whatever a request brings
                say_failed(error)
            finally:
                del work
                self._busy = False
                with self._lock:
                    self._held_bytes -= held_bytes

    def _drain_at_exit(self) -> None:
        deadline = time.monotonic() + EXIT_WAIT_S
        self.hurry()
        while (self._queue or self._busy) and time.monotonic() < deadline:
            time.sleep(0.005)
