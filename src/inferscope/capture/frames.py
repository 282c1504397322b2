"""Request frames: what is written down while `generate` runs, and nothing more.

A `Request` is one call by the user; it owns the rows. A `Frame` is one running `generate`: usually one per
request, more where `generate` calls itself (Whisper's windows) or an assistant. Inside the call only integers
are written; names, sums and records are made afterwards in resolve.py.

A row of twelve integers per pass, in an array made beforehand: objects that outlive the pass would each touch
memory that the model has just pushed out of the caches, which costs more than all the code here.
"""

from __future__ import annotations

from array import array
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inferscope.meters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.meters.clock import Clock

__all__ = ["BUFFERED_ROWS", "CURRENT", "UNREADABLE", "Flag", "Frame", "Mark", "Request", "Row"]

BUFFERED_ROWS = 4096
"""Rows held before they are folded: 400 kB, whatever the length of the request."""
CHUNK_ROWS = 64
SLOW_PASS_NS = 2_000_000
"""Passes above this have their CPU time read each; shorter ones are read in groups, reading costs half a us."""
_CPU_GROUP = 7
"""Bit mask: of short passes every eighth is read."""


class Row:
    """Offsets in a row. Times are in nanoseconds of the request's clock; 0 where there was no stop check."""

    ENTERED = 0
    STARTED = 1
    ENDED = 2
    LEFT = 3
    Q = 4
    PAST = 5
    BATCH = 6
    LOGITS = 7
    FLAGS = 8
    CPU = 9
    STOP_STARTED = 10
    STOP_ENDED = 11
    WIDTH = 12


class Mark:
    """First element of what is marked beside the rows: (kind, started, ended)."""

    STOP = 1  # a second stop check after one pass
    PUT = 2  # a streamer callback
    GC = 3  # a garbage collection
    OWN = 4  # work of ours between passes


class Flag:
    """Facts of a pass, one bit each, for passes.PassFacts."""

    FIRST = 1
    IN_PREFILL = 2
    HAS_CACHE = 4
    FRAME_CACHE = 8
    SAME_CACHE = 16
    ASSISTED = 32
    ASSISTANT = 64
    FOREIGN = 128
    ABORTED = 256


_CHUNK_END = Row.WIDTH * CHUNK_ROWS
_STEADY = Flag.HAS_CACHE | Flag.FRAME_CACHE | Flag.SAME_CACHE
# The caches of these are cropped between passes, so that a sum of what was put in does not hold.
_CROPPED = Flag.ASSISTED | Flag.ASSISTANT | Flag.FOREIGN

UNREADABLE = -1
"""Stands in a row for what could not be read, or was not."""

CURRENT: ContextVar[Frame | None] = ContextVar("inferscope_frame", default=None)


class Request:
    """One call of `generate` by the user, while it runs.

    `fold` takes the rows and marks gathered so far when there are too many of them.
    """

    __slots__ = (
        "chunks",
        "clock",
        "cpu_ns",
        "dead",
        "entered_ns",
        "fold",
        "in_put",
        "left_ns",
        "marks",
        "returned_ns",
        "row",
        "rows",
        "started_ns",
        "started_unix_ns",
    )

    def __init__(
        self,
        *,
        entered_ns: int,
        started_unix_ns: int,
        clock: Clock | None = None,
    ) -> None:
        """Open a request.

        Args:
            entered_ns: Clock reading at the entry of `generate`.
            started_unix_ns: Wall-clock time of the same moment.
            clock: Where stamps come from.
        """
        self.clock: Clock = clock or SystemClock()
        self.entered_ns = entered_ns
        self.started_unix_ns = started_unix_ns
        self.started_ns = entered_ns
        self.returned_ns = entered_ns
        self.left_ns = entered_ns
        self.cpu_ns = UNREADABLE
        self.fold: Callable[[list[array[int]], list[tuple[int, int, int]]], None] = lambda _chunks, _marks: None
        self.chunks: list[array[int]] = []
        self.rows = _chunk()
        self.row = 0
        self.marks: list[tuple[int, int, int]] = []
        self.in_put = False
        # After a fault of ours nothing more is recorded, and there is no record.
        self.dead = False

    def stop_checked(self, started: int, ended: int) -> None:
        """A stop check ran: it belongs to the row of the pass before it, or beside the rows."""
        last = self.row - Row.WIDTH
        if last >= 0 and self.rows[last + Row.STOP_ENDED] == 0:
            self.rows[last + Row.STOP_STARTED] = started
            self.rows[last + Row.STOP_ENDED] = ended
        else:
            self.marks.append((Mark.STOP, started, ended))

    def next_chunk(self) -> None:
        """The array is full: begin another, and fold when there are too many, at our own cost."""
        started = self.clock.now_ns()
        self.chunks.append(self.rows)
        self.rows, self.row = _chunk(), 0
        if len(self.chunks) * CHUNK_ROWS >= BUFFERED_ROWS:
            self.fold(self.chunks, self.marks)
            self.chunks, self.marks = [], []
            self.marks.append((Mark.OWN, started, self.clock.now_ns()))

    def gathered(self) -> tuple[list[array[int]], list[tuple[int, int, int]]]:
        """What was not folded: full arrays and the begun one, and the marks."""
        return [*self.chunks, self.rows[: self.row]], self.marks


def _chunk() -> array[int]:
    return array("q", bytes(8 * Row.WIDTH * CHUNK_ROWS))


class Frame:
    """One running `generate`: what the naming rule needs to know about its passes."""

    __slots__ = (
        "_clock",
        "_depth",
        "_now_ns",
        "_slow",
        "cache",
        "flags",
        "module",
        "past",
        "request",
        "seen",
    )

    def __init__(self, request: Request, module: object, *, flags: int = 0) -> None:
        """Open a frame.

        Args:
            request: Whose marks it adds to.
            module: Whose forwards are counted.
            flags: Facts true of its passes: `Flag.ASSISTED`, `Flag.ASSISTANT`, and while it lasts `Flag.IN_PREFILL`.
        """
        self.request = request
        self.module = module
        self.flags = flags
        self.cache: object | None = None
        self.past = 0
        self.seen = 0
        self._clock = request.clock
        self._now_ns = request.clock.now_ns
        self._depth = 0
        self._slow = True

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any], extra_flags: int = 0) -> None:
        """A forward begins. The last thing this does is read the clock.

        Written flat: it runs once per token, and a call costs as much as what it would hide.
        """
        now_ns = self._now_ns
        entered = now_ns()
        self._depth += 1
        if self._depth > 1:  # a model that calls itself: the outer forward holds the time
            return
        get = kwargs.get
        ids = get("input_ids")
        if ids is not None:
            batch, q = ids.shape
        else:
            batch, q = _shape(args, kwargs)
        cache = get("past_key_values")
        flags = self.flags | extra_flags
        if cache is not None and cache is self.cache and not flags & _CROPPED:
            flags |= _STEADY
            past = self.past
        else:
            flags, past = self._look(cache, kwargs, flags)
        if self.past != UNREADABLE and flags & Flag.SAME_CACHE:
            self.past += q
        logits = get("logits_to_keep")
        seen = self.seen
        self.seen = seen + 1
        request = self.request
        rows, row = request.rows, request.row
        rows[row] = entered
        rows[row + 4] = q
        rows[row + 5] = past
        rows[row + 6] = batch
        rows[row + 7] = logits if type(logits) is int and logits > 0 else q
        rows[row + 8] = flags
        if seen > 1 and seen & _CPU_GROUP and not self._slow:
            rows[row + 9] = UNREADABLE
        else:
            rows[row + 9] = self._clock.thread_cpu_ns()
        rows[row + 1] = now_ns()

    def leave(self, extra_flags: int = 0) -> None:
        """The forward ended; the first thing this does is read the clock."""
        now_ns = self._now_ns
        ended = now_ns()
        self._depth -= 1
        if self._depth:
            self._depth = max(self._depth, 0)  # below 0: it was entered before tracing began
            return
        request = self.request
        rows, row = request.rows, request.row
        self._slow = ended - rows[row + 1] > SLOW_PASS_NS
        rows[row + 2] = ended
        if extra_flags:
            rows[row + 8] |= extra_flags
        request.row = row + 12
        rows[row + 3] = now_ns()
        if request.row == _CHUNK_END:
            request.next_chunk()

    def close(self) -> None:
        """End a pass that an exception left open: its hook was not called."""
        if self._depth > 0:
            self._depth = 1
            self.leave(Flag.ABORTED)
        self.cache = None

    def _look(self, cache: object | None, kwargs: dict[str, Any], flags: int) -> tuple[int, int]:
        """Flags and cached tokens of a pass that is not the plain next one on the frame's cache."""
        if cache is None:
            cache = kwargs.get("cache_params")
        if self.seen == 0:
            flags |= Flag.FIRST
        if self.cache is None and cache is not None:  # some models make theirs in the first forward
            self.cache = cache
            self.past = _cached_tokens(cache)
        if self.cache is not None:
            flags |= Flag.FRAME_CACHE
        if cache is self.cache:
            flags |= Flag.SAME_CACHE
        if cache is None:
            return flags, 0
        flags |= Flag.HAS_CACHE
        summed = flags & Flag.SAME_CACHE and not flags & _CROPPED
        return flags, self.past if summed else _cached_tokens(cache)


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Batch size and new tokens of a forward without `input_ids`, UNREADABLE where there is nothing to tell."""
    for name in ("decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds"):
        tensor = kwargs.get(name)
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1]
    if args and hasattr(args[0], "shape") and len(args[0].shape) > 1:
        return args[0].shape[0], args[0].shape[1]
    return UNREADABLE, UNREADABLE


def _cached_tokens(cache: Any) -> int:  # noqa: ANN401 - caches share no base class across versions
    """Tokens in a cache where that is a plain integer; a device tensor is not read, since reading would sync."""
    try:
        length = cache.get_seq_length()
    except (AttributeError, ValueError, TypeError, IndexError, NotImplementedError):
        return UNREADABLE
    return length if type(length) is int else UNREADABLE
