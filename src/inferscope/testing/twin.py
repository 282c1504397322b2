"""A device that is not there: streams, events, a bounded launch queue and waiting, on a clock of its own.

The host's time passes only where the host is said to do something; the device works on what it was given, in the
order of each stream, and its true busy time is known to the nanosecond. What is inferred about a real device from the
outside can so be held against the truth.

    clock = FakeClock()
    twin = DeviceTwin(clock)
    twin.launch(20_000, issue_ns=5_000)  # the host issues for 5 us what the device works on for 20
    twin.synchronize()
    assert twin.busy_ns() == 20_000
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DeviceTwin", "FakeClock", "TwinEvent", "TwinEvents", "TwinStream"]


class FakeClock:
    """A clock that stands still until it is told to go on; the thread's CPU time goes with it unless it sleeps."""

    def __init__(self, now_ns: int = 1_000_000) -> None:
        """Start at some moment after 0, in nanoseconds."""
        self._now_ns = now_ns
        self._cpu_ns = 0

    def now_ns(self) -> int:
        """Monotonic time."""
        return self._now_ns

    def thread_cpu_ns(self) -> int:
        """CPU time of the only thread there is."""
        return self._cpu_ns

    def advance(self, passed_ns: int, *, asleep: bool = False) -> None:
        """Let time pass.

        Args:
            passed_ns: How much.
            asleep: The thread does not use the processor meanwhile.
        """
        self._now_ns += passed_ns
        if not asleep:
            self._cpu_ns += passed_ns


@dataclass(slots=True)
class TwinStream:
    """Work of one stream: done in the order given.

    Attributes:
        free_ns: When everything put into it so far is done.
        ends_ns: When each kernel that was put into it is done, ascending.
    """

    free_ns: int = 0
    ends_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Kernel:
    start_ns: int
    end_ns: int
    label: object


class TwinEvent:
    """A timing event of a twin, used as one of CUDA is."""

    def __init__(self, twin: DeviceTwin) -> None:
        """Not recorded yet: such an event counts as having happened, as on CUDA."""
        self._twin = twin
        self.at_ns: int | None = None

    def record(self, stream: TwinStream) -> None:
        """Mark what the stream has been given so far."""
        self.at_ns = self._twin.mark(stream)

    def query(self) -> bool:
        """Whether the device has got there."""
        return self.at_ns is None or self.at_ns <= self._twin.clock.now_ns()

    def elapsed_time(self, end: TwinEvent) -> float:
        """Milliseconds to another event.

        Raises:
            RuntimeError: One of the two has not been recorded or has not happened.
        """
        if self.at_ns is None or end.at_ns is None or not (self.query() and end.query()):
            raise RuntimeError("both events must be recorded and have happened")
        return (end.at_ns - self.at_ns) / 1e6


class DeviceTwin:
    """The device and what the host does to it."""

    def __init__(
        self, clock: FakeClock, *, queue_limit: int = 1024, latency_ns: int = 2_000, event_ns: int = 1_500
    ) -> None:
        """Make an idle device.

        Args:
            clock: The host's.
            queue_limit: Kernels that may be waiting: the host stands still where there are more.
            latency_ns: From the host's call to the moment an idle device begins.
            event_ns: What recording an event takes the host.
        """
        self.clock = clock
        self.stream = TwinStream()
        self.launches = 0
        self.label: object = None
        self._queue_limit = queue_limit
        self._latency_ns = latency_ns
        self._event_ns = event_ns
        self._kernels: list[_Kernel] = []
        self._captured: list[int] | None = None

    def launch(self, work_ns: int, *, issue_ns: int, stream: TwinStream | None = None) -> None:
        """Issue one kernel.

        Args:
            work_ns: How long the device works on it.
            issue_ns: How long the host takes to issue it.
            stream: Where; the default one where none is named.
        """
        self.clock.advance(issue_ns)
        if self._captured is not None:
            self._captured.append(work_ns)
            return
        stream = stream or self.stream
        self._wait_for_room(stream)
        self.launches += 1
        self._put(work_ns, stream, self.label)

    def mark(self, stream: TwinStream) -> int:
        """Record an event: when it will have happened.

        Raises:
            RuntimeError: The stream is being captured.
        """
        if self._captured is not None:
            raise RuntimeError("an event was recorded while a graph is captured")
        at_ns = max(self.clock.now_ns() + self._latency_ns, stream.free_ns)
        self.clock.advance(self._event_ns)
        stream.free_ns = at_ns
        return at_ns

    def join(self, waiting: TwinStream, awaited: TwinStream) -> None:
        """Let one stream wait for what the other has been given so far."""
        waiting.free_ns = max(waiting.free_ns, awaited.free_ns)

    def synchronize(self, stream: TwinStream | None = None) -> None:
        """Let the host wait until a stream is done."""
        left_ns = (stream or self.stream).free_ns - self.clock.now_ns()
        if left_ns > 0:
            self.clock.advance(left_ns, asleep=True)

    def hold(self, hold_ns: int, stream: TwinStream) -> None:
        """Keep a stream busy with nothing: not work, and in no one's truth."""
        at_ns = max(self.clock.now_ns() + self._latency_ns, stream.free_ns)
        self.clock.advance(self._event_ns)
        stream.free_ns = at_ns + hold_ns
        stream.ends_ns.append(stream.free_ns)

    @contextmanager
    def capture(self) -> Iterator[list[int]]:
        """Gather launches into a graph instead of running them; the list is the graph.

        Raises:
            RuntimeError: A graph is being captured already.
        """
        if self._captured is not None:
            raise RuntimeError("a graph is being captured already")
        graph = self._captured = []
        try:
            yield graph
        finally:
            self._captured = None

    def replay(self, graph: list[int], *, issue_ns: int, gap_ns: int = 300) -> None:
        """Run a graph: one launch for the host, its kernels one after another on the device.

        Args:
            graph: What `capture` gathered.
            issue_ns: How long the host takes to issue it.
            gap_ns: From one kernel to the next: the device's own, and counted as its work.
        """
        self.clock.advance(issue_ns)
        self._wait_for_room(self.stream)
        self.launches += 1
        self._put(sum(graph) + gap_ns * len(graph), self.stream, self.label)

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return self._captured is not None

    @property
    def last_interval(self) -> tuple[int, int]:
        """The truth: when the device begins and ends what was launched last.

        Raises:
            IndexError: Nothing was launched.
        """
        last = self._kernels[-1]
        return last.start_ns, last.end_ns

    def busy_ns(self, label: object = None) -> int:
        """The truth: time in which the device worked on what was issued under a label; None takes everything."""
        spans = sorted((one.start_ns, one.end_ns) for one in self._kernels if label is None or one.label == label)
        total_ns = 0
        reached_ns = 0
        for start_ns, end_ns in spans:
            total_ns += max(0, end_ns - max(start_ns, reached_ns))
            reached_ns = max(reached_ns, end_ns)
        return total_ns

    def _put(self, work_ns: int, stream: TwinStream, label: object) -> None:
        start_ns = max(self.clock.now_ns() + self._latency_ns, stream.free_ns)
        stream.free_ns = start_ns + work_ns
        stream.ends_ns.append(stream.free_ns)
        self._kernels.append(_Kernel(start_ns, stream.free_ns, label))

    def _wait_for_room(self, stream: TwinStream) -> None:
        """The host stands still while the queue is full."""
        if len(stream.ends_ns) >= self._queue_limit:
            free_at_ns = stream.ends_ns[-self._queue_limit]
            if free_at_ns > self.clock.now_ns():
                self.clock.advance(free_at_ns - self.clock.now_ns())


class TwinEvents:
    """The events of one of a twin's streams, where those of CUDA would stand."""

    def __init__(self, twin: DeviceTwin, stream: TwinStream | None = None) -> None:
        """Take a stream; the default one where none is named."""
        self._twin = twin
        self.stream = stream or twin.stream
        self._free: list[TwinEvent] = []
        self.made = 0

    def take(self) -> TwinEvent:
        """An event that is in no use."""
        if self._free:
            return self._free.pop()
        self.made += 1
        return TwinEvent(self._twin)

    def give_back(self, event: TwinEvent) -> None:
        """It is in no use any more.

        Raises:
            ValueError: It was given back before: two would then write into one.
        """
        if any(event is held for held in self._free):
            raise ValueError("an event was given back twice")
        self._free.append(event)

    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return self._twin.capturing

    def hold(self, hold_ns: int) -> None:
        """Keep the stream busy with nothing."""
        self._twin.hold(hold_ns, self.stream)
