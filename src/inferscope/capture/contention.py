"""Which requests ran beside each other: who was at work while another one was waiting, and for how long.

Looked at after a request has ended, from the rows that every request writes anyway; nothing here runs inside a
forward. What a long request has folded away is no longer known: overlaps are lower bounds.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from inferscope.capture.frames import Row
from inferscope.records import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferscope.capture.requests import RawRequest

__all__ = ["TRAFFIC", "Interval", "Traffic", "device_of", "overlap_ns", "taken_by_others", "union"]

Interval = tuple[int, int]
CONTENDERS = 8
"""Other requests that a record names."""
RECENT_KEPT = 64
"""Finished requests whose rows are kept while an older one still runs."""


class Beside(NamedTuple):
    """Another request, and when it was at work; intervals ascend.

    Attributes:
        raw: The request.
        passes: Within forwards.
        host: Between them, where it prepares and selects in Python, and so holds the interpreter.
    """

    raw: RawRequest
    passes: list[Interval]
    host: list[Interval]


class Traffic:
    """The requests of this process: those that run, and those that ended while another was running."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._live: set[RawRequest] = set()
        self._recent: deque[RawRequest] = deque(maxlen=RECENT_KEPT)
        self._lock = threading.Lock()

    def enter(self, raw: RawRequest) -> None:
        """A request begins. On the generating thread."""
        with self._lock:
            self._live.add(raw)

    def leave(self, raw: RawRequest) -> None:
        """It has ended; it is kept while a request that overlaps it runs or has not been looked at."""
        with self._lock:
            self._live.discard(raw)
            if self._live or self._recent:
                self._recent.append(raw)

    def forget(self, raw: RawRequest | None) -> None:
        """A request will have no record."""
        if raw is not None:
            self._live.discard(raw)

    def active(self) -> bool:
        """Whether any request is running."""
        return bool(self._live)

    def settled(self, raw: RawRequest) -> None:
        """The record of `raw` has been made: let go of what nobody can have overlapped any more."""
        with self._lock:
            raw.settled = True
            pending = [*self._live, *(other for other in self._recent if not other.settled)]
            oldest_ns = min((other.request.entered_ns for other in pending), default=None)
            kept = [other for other in self._recent if oldest_ns is not None and other.request.left_ns > oldest_ns]
            self._recent = deque(kept, maxlen=RECENT_KEPT)

    def beside(self, raw: RawRequest) -> list[Beside]:
        """The others that were at work while a finished request ran."""
        entered_ns, left_ns = raw.request.entered_ns, raw.request.left_ns
        with self._lock:
            others = [other for other in (*self._live, *self._recent) if other is not raw]
        found = []
        for other in others:
            if other.request.entered_ns >= left_ns:
                continue
            course = _course(other)
            passes, host = (
                [span for span in spans if span[1] > entered_ns and span[0] < left_ns]
                for spans in (course.passes, course.host)
            )
            if passes or host:
                found.append(Beside(other, passes, host))
        return found

    def reset(self) -> None:
        """Forget everybody: a forked child has none of its parent's requests."""
        self._live, self._recent, self._lock = set(), deque(maxlen=RECENT_KEPT), threading.Lock()


TRAFFIC = Traffic()


def _course(other: RawRequest) -> Beside:
    """What was written down so far. The other thread may be writing: rows that are not whole yet hold a zero."""
    rows_now, used = other.request.rows, other.request.row
    course = Beside(other, [], [])
    left_ns = other.request.entered_ns
    for rows in (*tuple(other.request.chunks), rows_now[:used]):
        for at in range(0, len(rows), Row.WIDTH):
            row = rows[at : at + Row.WIDTH]
            entered, started, ended, left = row[Row.ENTERED], row[Row.STARTED], row[Row.ENDED], row[Row.LEFT]
            if not 0 < started < ended <= left:
                continue
            course.passes.append((started, ended))
            # While it waits for its device it does not keep the interpreter from others.
            if left_ns < entered:
                course.host.append((left_ns, entered))
            left_ns = max(left, row[Row.STOP_ENDED])
            if row[Row.STOP_STARTED] > left:
                course.host.append((left, row[Row.STOP_STARTED]))
    return course


def overlap_ns(spans: Iterable[Interval], others: list[Interval]) -> int:
    """Time that two ascending lists of intervals share, in nanoseconds; each list is free of overlaps in itself."""
    total = index = 0
    for begin, end in spans:
        while index < len(others) and others[index][1] <= begin:
            index += 1
        at = index
        while at < len(others) and others[at][0] < end:
            total += max(0, min(end, others[at][1]) - max(begin, others[at][0]))
            at += 1
    return total


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same stretches of time, ascending and free of overlaps."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def taken_by_others(
    raw: RawRequest, spans: Mapping[str, list[Interval]], away_ns: Mapping[str, int]
) -> tuple[dict[str, int], tuple[Contender, ...]]:
    """Time per phase that other requests took from a finished one, and who they were, largest overlap first.

    That is the time in which they were in a forward on the same device; or, where it is more, the time in which its
    thread did not run while others were at work on the host, and so had the interpreter. When within a pass the thread
    did not run is not known: of the two times at least so much must fall together as does not fit beside each other
    into the phase.

    Args:
        raw: The request.
        spans: Where each of its phases lay in time, ascending.
        away_ns: For how long in each of them its thread did not run, and did not wait for its device.
    """
    others = TRAFFIC.beside(raw)
    device = device_of(raw.module()) if others else None
    overlaps = []
    on_device: list[Interval] = []
    anywhere: list[Interval] = []
    for other in others:
        same = device is not None and device_of(other.raw.module()) == device
        at_work = union([*other.passes, *other.host])
        taken = _taken_by_phase(other.passes if same else [], at_work, spans, away_ns)
        overlaps.append(_contender(other.raw, sum(taken.values())))
        on_device += other.passes if same else []
        anywhere += at_work
    found = sorted((each for each in overlaps if each.overlap_ns), key=lambda each: -each.overlap_ns)
    taken = _taken_by_phase(union(on_device), union(anywhere), spans, away_ns)
    return taken, tuple(found[:CONTENDERS])


def _taken_by_phase(
    on_device: list[Interval],
    at_work: list[Interval],
    spans: Mapping[str, list[Interval]],
    away_ns: Mapping[str, int],
) -> dict[str, int]:
    taken = {}
    for name, own in spans.items():
        passes_ns = overlap_ns(own, on_device)
        whole_ns = sum(ended_ns - began_ns for began_ns, ended_ns in own)
        taken[name] = max(passes_ns, away_ns.get(name, 0) + overlap_ns(own, at_work) - whole_ns)
    return taken


def _contender(other: RawRequest, shared_ns: int) -> Contender:
    trace_id, span_id = other.span_ids or (None, None)
    return Contender(
        request_id=other.request_id,
        trace_id=None if trace_id is None else f"{trace_id:032x}",
        span_id=None if span_id is None else f"{span_id:016x}",
        overlap_ns=shared_ns,
    )


def device_of(module: Any) -> str | None:  # noqa: ANN401 - any module
    """Where a model's first parameter lies; None where there is no model any more, or no parameter."""
    first = next(module.parameters(), None) if module is not None else None
    return None if first is None else str(first.device)
