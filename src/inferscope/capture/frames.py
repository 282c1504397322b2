"""Request frames: what is appended while `generate` runs, and nothing more.

A `Request` is one call by the user; it owns the marks. A `Frame` is one running `generate`: usually one per
request, more where `generate` calls itself (Whisper's windows) or an assistant. Inside the call only integers
and tuples are appended; names, sums and records are made afterwards in resolve.py.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inferscope.meters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.meters.clock import Clock

__all__ = ["BUFFERED_MARKS", "CURRENT", "Flag", "Frame", "Mark", "Request"]

BUFFERED_MARKS = 4096
"""Marks held before they are folded: about 1 MB, whatever the length of the request."""


class Mark:
    """First element of each mark, followed by its integers (times in nanoseconds of the request's clock)."""

    PASS = 0  # entered, started, ended, left, q, past, batch, logits, flags, cpu
    STOP = 1  # started, ended of the stop check
    PUT = 2  # started, ended of a streamer callback
    GC = 3  # started, ended of a garbage collection
    OWN = 4  # started, ended of work of ours between passes


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


UNREADABLE = -1
"""Stands in a mark for a shape or length that could not be read."""

CURRENT: ContextVar[Frame | None] = ContextVar("inferscope_frame", default=None)


class Request:
    """One call of `generate` by the user, while it runs."""

    __slots__ = (
        "clock",
        "dead",
        "entered_ns",
        "fold",
        "in_put",
        "left_ns",
        "marks",
        "returned_ns",
        "started_unix_ns",
    )

    def __init__(
        self,
        *,
        entered_ns: int,
        started_unix_ns: int,
        fold: Callable[[list[tuple[int, ...]]], None],
        clock: Clock | None = None,
    ) -> None:
        """Open a request.

        Args:
            entered_ns: Clock reading at the entry of `generate`.
            started_unix_ns: Wall-clock time of the same moment.
            fold: Takes the marks gathered so far when the buffer is full.
            clock: Where stamps come from.
        """
        self.clock: Clock = clock or SystemClock()
        self.entered_ns = entered_ns
        self.started_unix_ns = started_unix_ns
        self.returned_ns = entered_ns
        self.left_ns = entered_ns
        self.fold = fold
        self.marks: list[tuple[int, ...]] = []
        self.in_put = False
        # After a fault of ours nothing more is recorded, and the record is dropped.
        self.dead = False

    def mark(self, mark: tuple[int, ...]) -> None:
        """Append a mark; fold when the buffer is full, at our own cost."""
        self.marks.append(mark)
        if len(self.marks) >= BUFFERED_MARKS:
            self._fold()

    def _fold(self) -> None:
        started = self.clock.now_ns()
        self.fold(self.marks)
        self.marks.clear()
        self.marks.append((Mark.OWN, started, self.clock.now_ns()))


class Frame:
    """One running `generate`: what the naming rule needs to know about its passes."""

    __slots__ = ("_open", "base_flags", "cache", "depth", "in_prefill", "module", "past", "request", "seen")

    def __init__(self, request: Request, module: object, *, flags: int = 0) -> None:
        """Open a frame.

        Args:
            request: Whose marks it adds to.
            module: Whose forwards are counted.
            flags: Facts true of all its passes (`Flag.ASSISTED`, `Flag.ASSISTANT`).
        """
        self.request = request
        self.module = module
        self.base_flags = flags
        self.cache: object | None = None
        self.past = 0
        self.seen = 0
        self.depth = 0
        self.in_prefill = False
        self._open: tuple[int, int, int, int, int, int, int, int] | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, foreign: bool = False) -> None:
        """A forward begins. Only integers leave this function; the last thing it does is read the clock."""
        clock = self.request.clock
        entered = clock.now_ns()
        self.depth += 1
        if self.depth > 1:  # a model that calls itself: the outer forward holds the time
            return
        q, batch = _shape(args, kwargs)
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = kwargs.get("cache_params")
        flags = self._flags(cache, foreign=foreign)
        past = self._past(cache, q, flags)
        logits = kwargs.get("logits_to_keep")
        logits = logits if type(logits) is int and logits > 0 else q
        cpu = clock.thread_cpu_ns()
        self._open = (entered, clock.now_ns(), q, past, batch, logits, flags, cpu)

    def leave(self, *, aborted: bool = False) -> None:
        """The forward ended; the first thing this does is read the clock."""
        clock = self.request.clock
        ended = clock.now_ns()
        if self.depth == 0:
            return
        self.depth -= 1
        if self.depth or self._open is None:
            return
        entered, started, q, past, batch, logits, flags, cpu = self._open
        self._open = None
        cpu = clock.thread_cpu_ns() - cpu
        if aborted:
            flags |= Flag.ABORTED
        self.request.mark((Mark.PASS, entered, started, ended, clock.now_ns(), q, past, batch, logits, flags, cpu))

    def close(self) -> None:
        """End passes that an exception left open: torch calls no hook for KeyboardInterrupt and the like."""
        if self.depth:
            self.depth = 1
            self.leave(aborted=True)
        self.cache = None

    def _flags(self, cache: object | None, *, foreign: bool) -> int:
        flags = self.base_flags
        if self.seen == 0:
            flags |= Flag.FIRST
        self.seen += 1
        if self.cache is None and cache is not None:  # some models make theirs in the first forward
            self.cache = cache
            self.past = _cached_tokens(cache)
        if cache is not None:
            flags |= Flag.HAS_CACHE
        if self.cache is not None:
            flags |= Flag.FRAME_CACHE
        if cache is self.cache:
            flags |= Flag.SAME_CACHE
        if self.in_prefill:
            flags |= Flag.IN_PREFILL
        if foreign:
            flags |= Flag.FOREIGN
        return flags

    def _past(self, cache: object | None, q: int, flags: int) -> int:
        """Tokens cached before this pass: summed, since asking a static cache would sync the device."""
        if cache is None:
            return 0
        if not flags & Flag.SAME_CACHE or flags & (Flag.ASSISTED | Flag.ASSISTANT | Flag.FOREIGN):
            return _cached_tokens(cache)  # cropped between passes, so the sum does not hold
        past = self.past
        if past != UNREADABLE:
            self.past = past + q if q != UNREADABLE else UNREADABLE
        return past


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """New tokens per sequence and batch size of a forward's input, UNREADABLE where there is none."""
    for name in ("decoder_input_ids", "input_ids", "inputs_embeds", "decoder_inputs_embeds"):
        tensor = kwargs.get(name)
        if tensor is not None:
            shape = tensor.shape
            return shape[1], shape[0]
    if args and hasattr(args[0], "shape") and len(args[0].shape) > 1:
        shape = args[0].shape
        return shape[1], shape[0]
    return UNREADABLE, UNREADABLE


def _cached_tokens(cache: Any) -> int:  # noqa: ANN401 - caches share no base class across versions
    """Tokens in a cache where that is a plain integer; a device tensor is not read, since reading would sync."""
    try:
        length = cache.get_seq_length()
    except (AttributeError, ValueError, TypeError, IndexError, NotImplementedError):
        return UNREADABLE
    return length if type(length) is int else UNREADABLE
