"""How long the device had a pass: two events each, resolved later on the same thread, never waited for.

What lies between two events is not the time the device worked. A device that is given work too slowly starves, and
then the events span the host's issuing, whatever the kernels cost: they are only the upper end of an interval, whose
lower end the reader of `Timed` works out from the host's stamps.

Nothing here synchronises: events are recorded, asked whether they have happened, and read when they have.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PENDING_KEPT", "DeviceMeter", "EventSource", "Timed", "TimingEvent"]

PENDING_KEPT = 64
"""Passes whose events have not happened yet. Beyond, where nothing ever waits for the device, passes go untimed."""
_MS_TO_NS = 1e6


class TimingEvent(Protocol):
    """A mark in a stream, as `torch.cuda.Event(enable_timing=True)` is one."""

    def record(self, stream: Any) -> None:  # noqa: ANN401 - a stream of the same device
        """Mark what has been put into the stream so far. Returns at once."""

    def query(self) -> bool:
        """Whether the device has got there."""

    def elapsed_time(self, end: Any) -> float:  # noqa: ANN401 - an event of the same device
        """Milliseconds from this one to a later one; both have happened."""


class EventSource(Protocol):
    """Where the events of one device's stream come from."""

    stream: Any

    def take(self) -> TimingEvent:
        """An event that is in no use."""

    def give_back(self, event: TimingEvent) -> None:
        """It is in no use any more."""

    def capturing(self) -> bool:
        """Whether the stream is being captured into a graph: then nothing may be recorded."""

    def hold(self, hold_ns: int) -> None:
        """Keep the stream busy with nothing for about this long. Returns at once."""


class Timed(NamedTuple):
    """A pass whose events have happened.

    Attributes:
        token: What `end` was given.
        started_ns: When the device got to its beginning, on the host's clock. Not later than it truly was, and
            earlier by what recording an event takes.
        elapsed_ns: From there to its end; several devices together from the first beginning to the last end.
        plugged: Whether the device was held up until all of the pass had been issued: it then never starved, and
            the elapsed time is the time it worked.
    """

    token: Any
    started_ns: int
    elapsed_ns: int
    plugged: bool


class _Anchor:
    """An event whose time on the host's clock is known: the stream was empty when it was recorded."""

    __slots__ = ("event", "host_ns", "users")

    def __init__(self, event: TimingEvent, host_ns: int) -> None:
        self.event = event
        self.host_ns = host_ns
        self.users = 0


class _Lane:
    """One device."""

    __slots__ = ("anchor", "open", "source")

    def __init__(self, source: EventSource) -> None:
        self.source = source
        self.anchor: _Anchor | None = None
        self.open: TimingEvent | None = None


class _Span(NamedTuple):
    """A pass on one device."""

    lane: _Lane
    anchor: _Anchor
    start: TimingEvent
    stop: TimingEvent


class _Pending(NamedTuple):
    """A pass whose events have not been seen to happen."""

    token: Any
    ended_ns: int
    plugged: bool
    spans: list[_Span]


class DeviceMeter:
    """Times the passes of one request, in order. All of it runs on the thread that generates."""

    def __init__(self, sources: Sequence[EventSource], now_ns: Callable[[], int]) -> None:
        """Prepare.

        Args:
            sources: One for each device that the model lies on.
            now_ns: The host's clock.
        """
        self._lanes = tuple(_Lane(source) for source in sources)
        self._now_ns = now_ns
        self._pending: deque[_Pending] = deque()
        self._held = False

    def begin(self, *, synced: bool, hold_ns: int = 0) -> None:
        """A pass begins.

        Args:
            synced: Whether the host has waited for the device since the pass before.
            hold_ns: Hold the device up for so long, that the pass may be issued before it begins.
        """
        self._held = hold_ns > 0
        room = len(self._pending) < PENDING_KEPT
        for lane in self._lanes:
            if not room or lane.source.capturing():
                lane.open = None
                continue
            event = lane.source.take()
            if synced or lane.anchor is None:
                self._drop(lane)
                lane.anchor = _Anchor(event, self._now_ns())
                if hold_ns:
                    event.record(lane.source.stream)
                    event = lane.source.take()
            if hold_ns:
                lane.source.hold(hold_ns)
            event.record(lane.source.stream)
            lane.open = event

    def end(self, token: object) -> list[Timed]:
        """The pass has been issued.

        Args:
            token: Comes back with its times.

        Returns:
            Earlier passes whose events have happened by now. Not this one: its reader has not finished with it.
        """
        ended_ns = self._now_ns()
        # Where the device has begun by now, it may have starved since.
        plugged = self._held and not any(lane.open is not None and lane.open.query() for lane in self._lanes)
        spans = []
        for lane in self._lanes:
            start, lane.open = lane.open, None
            if start is None or lane.anchor is None:
                continue
            stop = lane.source.take()
            stop.record(lane.source.stream)
            lane.anchor.users += 1
            spans.append(_Span(lane, lane.anchor, start, stop))
        if spans and len(spans) == len(self._lanes):
            self._pending.append(_Pending(token, ended_ns, plugged, spans))
        return self.resolve(but=1 if spans else 0)

    def resolve(self, *, but: int = 0) -> list[Timed]:
        """Passes whose events have happened, oldest first.

        Args:
            but: How many of the latest to leave alone.
        """
        done = []
        while len(self._pending) > but and all(span.stop.query() for span in self._pending[0].spans):
            done.append(self._timed(self._pending.popleft()))
        return done

    def _timed(self, pending: _Pending) -> Timed:
        starts, ends = [], []
        for span in pending.spans:
            anchor = span.anchor
            offset_ms = 0.0 if anchor.event is span.start else anchor.event.elapsed_time(span.start)
            elapsed_ns = math.ceil(span.start.elapsed_time(span.stop) * _MS_TO_NS)  # an upper end is not cut
            started_ns = anchor.host_ns + int(offset_ms * _MS_TO_NS)
            # The device cannot have got to the end before the host had put it there: the clocks have drifted, or the
            # anchor was not recorded into an empty stream.
            behind_ns = max(0, pending.ended_ns - started_ns - elapsed_ns)
            anchor.host_ns += behind_ns
            starts.append(started_ns + behind_ns)
            ends.append(started_ns + behind_ns + elapsed_ns)
            self._release(span)
        return Timed(pending.token, min(starts), max(ends) - min(starts), pending.plugged)

    def _release(self, span: _Span) -> None:
        span.anchor.users -= 1
        if span.start is not span.anchor.event:
            span.lane.source.give_back(span.start)
        span.lane.source.give_back(span.stop)
        if span.anchor.users == 0 and span.anchor is not span.lane.anchor:
            span.lane.source.give_back(span.anchor.event)

    @staticmethod
    def _drop(lane: _Lane) -> None:
        """The anchor is about to be replaced: what still hangs on it gives it back."""
        if lane.anchor is not None and lane.anchor.users == 0:
            lane.source.give_back(lane.anchor.event)

    def close(self) -> list[Timed]:
        """The request is over: what has happened by now; the rest stays untimed, and its events are let go."""
        done = self.resolve()
        self._pending.clear()
        for lane in self._lanes:
            self._drop(lane)
            lane.anchor = lane.open = None
        return done
