"""A loop that runs passes for many requests at once, as it is observed: who is in it, and what each pass took.

Knows nothing of transformers: continuous.py tells it what happens. Passes are run by the loop's own thread; requests
are added by any thread, and the trace may be ended by yet another.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope import notices
from inferscope.capture.frames import Frame, Mark, Request, Row
from inferscope.meters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.capture.shares import SharedRequest

    Slots = list[tuple[str, int, int, int, int]]
    """Of each request in a pass: its key, then past, prompt_len, tokens and yields as in passes.Slot."""
    End = tuple[str, int, str | None]
    """Of a request that is over: its key, the tokens it generated, and why it ended."""

__all__ = ["CHILD", "Batcher", "Batchers", "muted"]

CHILD = "__child#"
"""Stands between a request's key and the number of its copy, where one prompt has several answers."""

LOG_LENGTH = 8192
"""Integers in a log, 64 kB: all requests of the loop read the same ones."""
LOGS_KEPT = 256
"""Logs that a request keeps unread: 16 MB, and more than ten thousand passes of thirty requests each."""

_CLOCK = SystemClock()
_now = _CLOCK.now_ns


@dataclass(slots=True)
class _Pass:
    """A pass that was prepared. Its tokens may be taken in after the next one has begun.

    Attributes:
        slots: Its requests, as a row has them.
        states: What the loop's owner wants back when tokens are taken in.
        scheduled_ns: When the loop began to prepare it.
        pass_ns: When it was about to be run.
        forward_ns: When its forward began.
        issue_ns: Inside its forward.
    """

    slots: list[int]
    states: tuple[Any, ...]
    scheduled_ns: int
    pass_ns: int
    forward_ns: int
    issue_ns: int = 0


class Batcher:
    """One loop. What a method's name says happens now.

    Attributes:
        module: The model.
        requests: Those observed that are queued or running, by their keys.
        cancelled: Keys of those that were withdrawn and that the scheduler may not have let go of yet.
        closed: Whether nobody observes any more.
        frame: Stands for the loop in its thread: forwards and garbage collections are noted there.
        reading: Whether the host is waiting for tokens now.
    """

    def __init__(self, module: object, live: set[str]) -> None:
        """Begin without requests.

        Args:
            module: The model.
            live: Where the ids of requests stand that are queued or running.
        """
        self.module = weakref.ref(module)
        self.requests: dict[str, SharedRequest] = {}
        self.cancelled: set[str] = set()
        self.closed = False
        self.reading = False
        self.frame = Frame(Request(entered_ns=0, started_unix_ns=0, clock=_CLOCK), None)
        self._live = live
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._log = array("q")
        self._passes: dict[int, _Pass] = {}
        self._running: int | None = None
        self._taken: _Pass | None = None
        self._scheduled_ns = self._settled_ns = 0
        self._wait_ns = self._gc_ns = self._own_gap_ns = self._own_setup_ns = self._own_ns = 0
        self._cpu_read = (0, 0)

    def add(self, key: str, request: SharedRequest) -> None:
        """A request is queued."""
        if key in self.requests:  # the loop mixes the two up from now on
            self.abort(key, "replaced")
        with self._lock:
            if not self.closed:
                request.number = next(self._numbers)
                self.requests[key] = request
                self._live.add(request.request_id)
                return
        self._drop([request])

    def schedule(self) -> None:
        """The loop begins to prepare a pass, or to find that there is nothing to do."""
        now = _now()
        request = self.frame.request
        self.frame.thread = request.thread = threading.get_ident()
        request.marks = []
        self._scheduled_ns = now
        if not self._passes:
            self._cpu_read = (now, _CLOCK.thread_cpu_ns())
        self._own_setup_ns = _now() - now

    def begin_pass(self, place: int, model: object, slots: Slots, states: tuple[Any, ...]) -> None:
        """A pass is prepared and about to run.

        Args:
            place: Which of the places for a prepared pass it lies in.
            model: Whose forward it is.
            slots: Its requests.
            states: Given back by `begin_update`.
        """
        self.frame.module = model
        self._running = place
        requests = self.requests
        row: list[int] = []
        for key, past, prompt_len, tokens, yields in slots:
            request = requests.get(key)
            row += (past, prompt_len, tokens, -1 if request is None else request.number, yields)
            if request is not None and not request.logs:
                request.logs.append(self._log)
        now = _now()
        self._passes[place] = _Pass(row, states, self._scheduled_ns, now, now)

    def own_setup(self, since_ns: int) -> None:
        """What has passed since a clock reading, while a pass was being prepared, was ours."""
        self._own_setup_ns += _now() - since_ns

    def end_pass(self, failed: bool) -> None:  # noqa: FBT001 - passed on by `safely`
        """It has been run; on a device, queued."""
        ended = _now()
        self.frame.module = None
        self.frame.close()
        request = self.frame.request
        if request.dead:  # a fault of ours in the forward, which has been said
            self._give_up()
            return
        chunks, marks = request.gathered()
        request.chunks, request.row, request.marks, request.in_pass = [], 0, [], 0
        place, self._running = self._running, None
        ran = self._passes.get(place) if place is not None else None
        if ran is None or place is None:
            return
        forwards = [rows[at : at + Row.WIDTH] for rows in chunks for at in range(0, len(rows), Row.WIDTH)]
        for row in forwards:
            ran.issue_ns += row[Row.ENDED] - row[Row.STARTED]
            self._own_ns += row[Row.STARTED] - row[Row.ENTERED] + row[Row.LEFT] - row[Row.ENDED]
        if forwards:
            ran.forward_ns = forwards[0][Row.STARTED]
        else:  # a captured graph was replayed: no forward was called, and all there is to see is the step
            ran.issue_ns = max(0, ended - ran.pass_ns - self._wait_ns)
        self._gc_ns += sum(till - since for kind, since, till in marks if kind == Mark.GC)
        self._own_ns += _now() - ended
        if failed:
            self._taken = self._passes.pop(place)
            self.settle((), whole=False)

    def begin_update(self, place: int) -> tuple[Any, ...]:
        """The tokens of the pass in a place are about to be taken in; the states of its requests."""
        self._taken = self._passes.pop(place, None)
        return self._taken.states if self._taken is not None else ()

    def waited(self, since_ns: int) -> None:
        """What has passed since a clock reading was a read on the host."""
        self._wait_ns += _now() - since_ns

    def settle(self, ends: Iterable[End], *, whole: bool = True) -> None:
        """Account for the pass whose tokens have been taken in, and hand over the requests that ended with it.

        Args:
            ends: Those requests.
            whole: Whether tokens came out of it.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return
        now = _now()
        row = self._row(taken, now, failed=not whole)
        with self._lock:
            self._log.extend(row)
            if len(self._log) >= LOG_LENGTH:
                self._next_log()
            ended = [self._end(*end, now) for end in ends if end[0] in self.requests]
        self._hand_over(ended)
        self._own_gap_ns = _now() - now

    def _end(self, key: str, output_tokens: int, finish_reason: str | None, now: int) -> SharedRequest:
        request = self.requests.pop(key)
        request.output_tokens = output_tokens
        request.finish_reason = finish_reason
        request.finish(now, sharers=len(self.requests) + 1)
        return request

    def _row(self, taken: _Pass, now: int, *, failed: bool) -> list[int]:
        """The pass with all that was gathered since the one before, as shares.HEAD says; gathering begins anew."""
        cpu = _CLOCK.thread_cpu_ns()
        read_ns, read_cpu_ns = self._cpu_read
        row = [
            taken.scheduled_ns,
            taken.pass_ns,
            self._settled_ns,
            now,
            taken.forward_ns,
            taken.issue_ns,
            self._wait_ns,
            self._own_gap_ns,
            self._own_setup_ns,
            self._own_ns,
            max(0, now - read_ns - (cpu - read_cpu_ns)),
            self._gc_ns,
            int(failed),
            len(taken.states),
            *taken.slots,
        ]
        self._settled_ns, self._cpu_read = now, (now, cpu)
        self._wait_ns = self._gc_ns = self._own_gap_ns = self._own_setup_ns = self._own_ns = 0
        return row

    def _next_log(self) -> None:
        self._log = array("q")
        for request in self.requests.values():
            if request.logs:
                request.logs.append(self._log)
            if len(request.logs) > LOGS_KEPT:
                request.fold()

    def abort(self, key: str, error_type: str) -> None:
        """A request will not come to its end; nor will those of its copies that have not begun."""
        now = _now()
        with self._lock:
            copies = [each for each, other in self.requests.items() if each.startswith(key + CHILD) and not other.logs]
            ended = [request for each in (key, *copies) if (request := self.requests.pop(each, None)) is not None]
            for request in ended:
                request.error_type = error_type
                request.finish(now, sharers=len(self.requests) + len(ended))
        self._hand_over(ended)

    def end(self, error_type: str) -> None:
        """The loop is over: whoever is still here will not come to an end."""
        for key in tuple(self.requests):
            self.abort(key, error_type)
        self._passes.clear()
        self.cancelled.clear()

    def leave(self) -> None:
        """The trace ends: requests are recorded as far as they have come."""
        now = _now()
        with self._lock:
            self.closed = True
            left, self.requests = list(self.requests.values()), {}
            for request in left:
                request.notes.append("the trace ended before this request did: it is recorded up to then")
                request.finish(now, sharers=len(left))
        self._hand_over(left)

    def safely(self, do: Callable[..., None], *args: object) -> None:
        """Do something of ours; where it fails, step aside for good."""
        try:
            do(*args)
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's loop
            self._give_up()
            notices.fault("capture-failed", error)

    def _give_up(self) -> None:
        self.closed = True
        self.frame.module = None
        left, self.requests = list(self.requests.values()), {}
        self._drop(left)

    def _drop(self, requests: Iterable[SharedRequest]) -> None:
        for request in requests:
            self._live.discard(request.request_id)
            for receiver, _ in request.begun:
                receiver.abandon(request.request_id)

    def _hand_over(self, requests: Iterable[SharedRequest]) -> None:
        for request in requests:
            self._live.discard(request.request_id)
            for receiver, begun in request.begun:
                receiver(request, begun)


class Batchers:
    """All observed loops, each found by an object that belongs to it alone, and gone with that object."""

    def __init__(self) -> None:
        self._by_owner: weakref.WeakKeyDictionary[object, Batcher] = weakref.WeakKeyDictionary()
        self._live: set[str] = set()
        self._lock = threading.Lock()

    def active(self) -> bool:
        """Whether any observed request is queued or running."""
        return bool(self._live)

    def get(self, owner: object) -> Batcher | None:
        """The loop that an object belongs to, while it is observed."""
        found = self._by_owner.get(owner)
        return None if found is None or found.closed else found

    def made(self, owner: object, module: object) -> Batcher:
        """The loop that an object belongs to, observed from now on."""
        with self._lock:
            found = self.get(owner)
            if found is None:
                found = self._by_owner[owner] = Batcher(module, self._live)
            return found

    def forget(self, module: object) -> None:
        """Nobody observes this model any more: hand over what is running, as it is."""
        with self._lock:
            found = [(owner, loop) for owner, loop in self._by_owner.items() if loop.module() is module]
            for owner, _ in found:
                del self._by_owner[owner]
        for _, loop in found:
            loop.leave()

    def after_fork(self) -> None:
        """In a forked child: the parent's loops do not run here, and its locks are nobody's."""
        self._lock = threading.Lock()
        self._by_owner.clear()
        self._live.clear()


class _Unkept(list[tuple[int, int, int]]):
    """Marks that nobody looks at."""

    def append(self, mark: tuple[int, int, int]) -> None:
        """Drop it."""


def muted() -> Frame:
    """A frame under which nothing is recorded."""
    request = Request(entered_ns=0, started_unix_ns=0, clock=_CLOCK)
    request.dead, request.marks = True, _Unkept()
    return Frame(request, None)
