"""Ranges that go nowhere but into a list."""

from __future__ import annotations

import threading

__all__ = ["RecordedRanges"]


class RecordedRanges:
    """Stands in for a profiler: keeps the path of every range, and what is still open on each thread.

    Attributes:
        paths: Each range as it was opened, with those around it: ("request", "decode").
        unmatched: How often a range was closed where none was open.
    """

    def __init__(self) -> None:
        """Nothing was opened yet."""
        self.paths: list[tuple[str, ...]] = []
        self.unmatched = 0
        self._lock = threading.Lock()
        self._stacks: dict[int, list[str]] = {}

    def push(self, name: str, number: int) -> None:  # noqa: ARG002 - paths are in order
        """A range begins."""
        with self._lock:
            stack = self._stacks.setdefault(threading.get_ident(), [])
            stack.append(name)
            self.paths.append(tuple(stack))

    def pop(self) -> None:
        """The last one opened on this thread ends."""
        with self._lock:
            stack = self._stacks.get(threading.get_ident())
            if stack:
                stack.pop()
            else:
                self.unmatched += 1

    @property
    def open(self) -> tuple[str, ...]:
        """What is open now, on any thread."""
        with self._lock:
            return tuple(name for stack in self._stacks.values() for name in stack)
