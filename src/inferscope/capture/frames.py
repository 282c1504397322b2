"""Request frames: what is written down while `generate` runs, and nothing more.

A `Request` is one call by the user; it owns the rows. A `Frame` is one running `generate`: usually one per
request, more where `generate` calls itself (Whisper's windows) or an assistant. Inside the call only integers
are written; names, sums and records are made afterwards in resolve.py.

A row of integers per pass, in an array made beforehand: objects that outlive the pass would each touch
memory that the model has just pushed out of the caches, which costs more than all the code here.
"""

from __future__ import annotations

import sys
import threading
from array import array
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from inferscope.capture.implementation import FrameBase, RequestBase
from inferscope.capture.lengths import UNREADABLE, cached_tokens, expect_length, remember_length, same_tokens
from inferscope.meters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inferscope.meters.clock import Clock
    from inferscope.meters.counters import Counts
    from inferscope.meters.deep import Window
    from inferscope.meters.sync_points import SyncWindow

__all__ = [
    "BUFFERED_ROWS",
    "CHUNK_END",
    "CPU_GROUP",
    "CURRENT",
    "ENCODING",
    "LEFT_OUT",
    "SLOW_PASS_NS",
    "STEADY",
    "UNREADABLE",
    "Flag",
    "ForwardMeter",
    "Frame",
    "Inner",
    "Mark",
    "Request",
    "Row",
]

BUFFERED_ROWS = 4096
"""Rows held before they are folded: 400 kB, whatever the length of the request."""
CHUNK_ROWS = 64
SLOW_PASS_NS = 2_000_000
"""Passes above this have their CPU time read each; shorter ones are read in groups, reading costs half a us."""
CPU_GROUP = 7
"""Bit mask: of short passes every eighth has its CPU time read."""


class Row:
    """Offsets in a row. Times are in nanoseconds of the request's clock; 0 where there was no stop check.

    The device's are written when its events have happened, 0 until then, and for good where it has none.
    """

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
    DEVICE_STARTED = 10
    DEVICE_NS = 11
    STOP_STARTED = 12
    STOP_ENDED = 13
    WIDTH = 14


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
    BARE = 512  # no `generate` runs: a hand-written loop
    ENCODE = 1024  # an encoder's or vision tower's
    NESTED = 2048  # that ran inside the next pass
    SIDE = 4096  # of a logits processor, beside the sequence
    PLUGGED = 8192  # held up on the device until the host had issued it
    NAMED_SHIFT = 16  # from here up: one more than the index in passes.PHASE_NAMES, where the loop names its phase


CHUNK_END = Row.WIDTH * CHUNK_ROWS
STEADY = Flag.HAS_CACHE | Flag.FRAME_CACHE | Flag.SAME_CACHE
"""The flags of the plain next pass on the frame's cache."""
# The caches of these are cropped between passes, so that a sum of what was put in does not hold.
_CROPPED = Flag.ASSISTED | Flag.FOREIGN | Flag.BARE

_OWN_REFERENCES = 3
"""To a cache that only its frame holds: as its cache, as the one it sums for, and as the argument of the question."""
_EMPTY_BYTES = 2_000
_MARK_BYTES = 150
_WINDOW_BYTES = 4_000_000

ENCODING = 2
"""Stands in `Request.in_pass` while an encoder runs: what it calls is part of it."""

CURRENT: ContextVar[Frame | None] = ContextVar("inferscope_frame", default=None)
LEFT_OUT: ContextVar[bool] = ContextVar("inferscope_left_out", default=False)
"""Whether a `generate` runs that sampling has left out. Its forwards need not look whose they are."""


class ForwardMeter(Protocol):
    """Measures what happens within forwards; all of it on the thread that generates."""

    def begin(self) -> None:
        """A forward begins."""

    def end(self) -> None:
        """It has ended; its row is the one that will be written next."""

    def flush(self) -> None:
        """Rows are about to be looked at."""

    def close(self) -> None:
        """The request is over."""


class Inner(NamedTuple):
    """What a model's own calls of `generate` within a request were.

    Attributes:
        calls: How many.
        prompt_len: Tokens of each row of the last one's result that were not generated; None where that is unclear.
        longest: Tokens of its longest row, the prompt included; None where it returned no rows of tokens.
        joined: Whether the model returns the new tokens of all of them, without prompts and ends.
    """

    calls: int
    prompt_len: int | None
    longest: int | None
    joined: bool


class Request(RequestBase):
    """One call of `generate` by the user, while it runs.

    `fold` takes the rows and marks gathered so far when there are too many of them. `companions` are other modules
    whose forwards belong to it, `meter` measures within them, and `inner` tells of the calls of `generate` that the
    model made itself. Of some forwards there is more: `windows` is what was recorded, `counts` what was counted at the
    driver and when, `sync_windows` where the host waited; `sampled_ns` is our own time that went into it,
    and `put_off` how many forwards would have been recorded if the budget had allowed it.
    `cache_class` and `compiled` tell forwards of one request from those of another that launch otherwise.

    Attributes:
        rows: The array that is being filled.
        row: Where in it the next row begins.
        in_pass: 1 while a forward runs, ENCODING while an encoder does, else 0.
        dead: After a fault of ours nothing more is recorded, and there is no record.
    """

    __slots__ = (
        "cache_class",
        "chunks",
        "clock",
        "companions",
        "compiled",
        "counts",
        "cpu_ns",
        "entered_ns",
        "fold",
        "in_put",
        "inner",
        "left_ns",
        "marks",
        "meter",
        "put_off",
        "returned_ns",
        "sampled_ns",
        "started_ns",
        "started_unix_ns",
        "sync_windows",
        "thread",
        "windows",
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
        self.in_pass = 0
        self.in_put = False
        self.companions: Mapping[object, str] = {}
        self.meter: ForwardMeter | None = None
        self.inner: Inner | None = None
        self.windows: list[Window] = []
        self.sync_windows: list[SyncWindow] = []
        self.counts: list[tuple[int, Counts]] = []
        self.sampled_ns = 0
        self.put_off = 0
        self.cache_class: str | None = None
        self.compiled = False
        self.thread = threading.get_ident()
        self.dead = False

    def next_chunk(self) -> None:
        """The array is full: begin another, and fold when there are too many, at our own cost."""
        started = self.clock.now_ns()
        if self.meter is not None:
            self.meter.flush()
        self.chunks.append(self.rows)
        self.rows, self.row = _chunk(), 0
        if len(self.chunks) * CHUNK_ROWS >= BUFFERED_ROWS:
            self.fold(self.chunks, self.marks)
            self.chunks, self.marks = [], []
            self.marks.append((Mark.OWN, started, self.clock.now_ns()))

    @property
    def held_bytes(self) -> int:
        """About what it keeps in memory."""
        rows = len(self.rows) + len(self.chunks) * CHUNK_END
        return _EMPTY_BYTES + 8 * rows + _MARK_BYTES * len(self.marks) + _WINDOW_BYTES * len(self.windows)

    def gathered(self) -> tuple[list[array[int]], list[tuple[int, int, int]]]:
        """What was not folded: full arrays and the begun one, and the marks."""
        return [*self.chunks, self.rows[: self.row]], self.marks


def _chunk() -> array[int]:
    return array("q", bytes(8 * Row.WIDTH * CHUNK_ROWS))


class Frame(FrameBase):
    """One running `generate`, or one other model in it: what the naming rule needs to know about its passes.

    Attributes:
        module: Whose forwards these are; None after a fault.
        thread: The thread the request runs in. A context may be copied into others, which have no part in it.
        given: The cache its caller handed in; any other was empty when it was first seen.
        cache: The cache that `look` saw first.
        summed: The same, where the tokens in it are known to be the sum of what was put in; else None.
        past: That sum.
        seen: Forwards so far.
        slow: Whether the last pass was long enough for reading the CPU time each time.
        meter: Its `begin` is called just before a pass, its `end` just after; None where there is none. After a fault
            of ours a begin may be left without its end.
    """

    __slots__ = ("cache", "given", "others")

    request: Request

    def __init__(self, request: Request, module: object, *, flags: int = 0, given: object | None = None) -> None:
        """Open a frame.

        Args:
            request: Whose rows it adds to.
            module: Whose forwards are counted.
            flags: Facts true of its passes: `Flag.ASSISTANT`, and while they last `Flag.ASSISTED`, `Flag.IN_PREFILL`
                and `Flag.SIDE`.
            given: The cache its caller handed in.
        """
        self.given = given
        self.request = request
        self.module = module
        self.flags = flags
        self.thread = request.thread
        self.now_ns = request.clock.now_ns
        self.thread_cpu_ns = request.clock.thread_cpu_ns
        self.meter: ForwardMeter | None = request.meter
        self.cache: object | None = None
        self.summed: object | None = None
        self.past = 0
        self.seen = 0
        self.slow = True
        self.others: dict[int, Frame] = {}

    def other(self, module: object, flags: int) -> Frame:
        """The frame of another module that is called directly within this one, such as a draft head."""
        frame = self.others.get(id(module))
        if frame is None or frame.module is not module:
            frame = self.others[id(module)] = Frame(self.request, module, flags=flags)
        return frame

    def close(self, *, whole: bool = True) -> None:
        """Let go of the caches, since they may be large; what went into them is known where no pass was cut short."""
        # One that nobody else has ends here.
        if self.summed is not None and whole and sys.getrefcount(self.summed) > _OWN_REFERENCES:
            remember_length(self.summed, self.past)
        if self.cache is not None and self.request.cache_class is None:
            self.request.cache_class = type(self.cache).__name__
        self.cache = self.summed = self.given = None
        self.others = {}

    def look(self, cache: object | None, kwargs: dict[str, Any], q: int) -> tuple[int, int]:
        """Flags and cached tokens of a pass that is not the plain next one on the frame's cache."""
        flags = self.flags
        if cache is None:
            cache = kwargs.get("cache_params")
        if self.seen == 0:
            flags |= Flag.FIRST
        if cache is not None and cache is not self.cache:
            self._meet(cache, flags)
        if self.cache is not None:
            flags |= Flag.FRAME_CACHE
        if cache is self.cache:
            flags |= Flag.SAME_CACHE
        if cache is None:
            # One token behind others and no cache: what was read before is carried where it cannot be seen. A draft
            # head always keeps its own.
            carried = (q == 1 or flags & Flag.FOREIGN) and not flags & (Flag.FIRST | Flag.SIDE | Flag.BARE)
            return flags, UNREADABLE if carried else 0
        flags |= Flag.HAS_CACHE
        if cache is not self.summed:
            past = cached_tokens(cache)
            if flags & Flag.BARE and past != UNREADABLE:  # a hand-written loop has no end at which to keep a sum
                expect_length(cache, past, q)
            return flags, past
        past = self.past
        self.past = past + q
        return flags, past

    def _meet(self, cache: object, flags: int) -> None:
        """A cache not seen before: the frame's own, where it has none yet or the model has put its own into another."""
        if self.cache is None:  # some models make theirs in the first forward
            self.cache = cache
            self.past = cached_tokens(cache)
            if self.past == UNREADABLE and cache is not self.given and not flags & Flag.BARE:
                self.past = 0
            if self.past != UNREADABLE and not flags & _CROPPED:
                self.summed = cache
        elif same_tokens(cache, self.cache):
            self.summed = cache if self.summed is not None else None
            self.cache = cache

    @staticmethod
    def shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
        """Batch size and new tokens of a forward without plain `input_ids`, UNREADABLE where nothing tells."""
        for name in ("decoder_input_ids", "input_ids", "inputs_embeds", "decoder_inputs_embeds"):
            tensor = kwargs.get(name)
            if tensor is not None:
                return tensor.shape[0], tensor.shape[1]
        if args and hasattr(args[0], "shape") and len(args[0].shape) > 1:
            return args[0].shape[0], args[0].shape[1]
        return UNREADABLE, UNREADABLE
