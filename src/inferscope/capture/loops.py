"""Hand-written loops: forwards without `generate`, and the `phase` blocks that name them.

The forwards of one thread belong to one request until a new prompt begins, somebody asks for the result, or tracing
ends. Only a loop's author knows where it truly begins and ends: `session.request()` says so.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from inferscope import notices
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.frames import CURRENT, UNREADABLE, Flag, Frame, Request, Row
from inferscope.capture.passes import PHASE_NAMES
from inferscope.errors import SettingError
from inferscope.meters.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from inferscope.capture.requests import RawRequest

__all__ = ["LoopFrame", "Loops", "named_phase", "phase"]

_CLOCK = SystemClock()
_PROMPT_PHASES = {"encode", "prefill"}


class Loops:
    """The hand-written loops of one traced module, one per thread."""

    def __init__(self, module: object, open_request: Callable[[int], RawRequest | None]) -> None:
        """Begin without any.

        Args:
            module: The traced module.
            open_request: Makes the request that begins at a clock reading; None where nobody wants it.
        """
        self._module = weakref.ref(module)
        self._open_request = open_request
        self._frames: weakref.WeakKeyDictionary[threading.Thread, LoopFrame] = weakref.WeakKeyDictionary()
        self._tells_past: bool | None = None
        _ATTACHED[module] = self

    def frame(self) -> LoopFrame | None:
        """The loop of this thread; None while one of its forwards is running, or the module is gone."""
        thread = threading.current_thread()
        loop = self._frames.get(thread)
        if loop is None:
            loop = self.new_frame()
            if loop is not None:
                self._frames[thread] = loop
        elif loop.request.in_pass or loop.request.dead:
            return None
        if loop is not None and loop.raw is None and _inside_generate():
            return None  # tracing began in the middle of it
        return loop

    def new_frame(self) -> LoopFrame | None:
        """A loop that is not yet a request."""
        module = self._module()
        if module is None:
            return None
        if self._tells_past is None:
            # Without such an argument the cache is inside the model, and what it holds cannot be seen.
            forward = getattr(module, "forward", None)
            self._tells_past = forward is not None and "past_key_values" in inspect.signature(forward).parameters
        return LoopFrame(self._open_request, tells_past=self._tells_past)

    def here(self) -> bool:
        """Whether this thread has a loop."""
        return threading.current_thread() in self._frames

    def finish_here(self) -> None:
        """The loop of this thread is over, for somebody asks for its result."""
        loop = self._frames.pop(threading.current_thread(), None)
        if loop is not None:
            loop.finish()

    def detach(self) -> None:
        """The module is not traced any more: blocks without forwards are not its passes."""
        module = self._module()
        if module is not None:
            _ATTACHED.pop(module, None)

    def forget(self) -> None:
        """Drop all loops unfinished: a forked child has none of its parent's."""
        self._frames = weakref.WeakKeyDictionary()

    def finish_all(self) -> None:
        """Tracing ends: so do the loops of all threads."""
        for thread in list(self._frames):
            loop = self._frames.pop(thread, None)
            if loop is not None:
                loop.finish()


_ATTACHED: weakref.WeakKeyDictionary[object, Loops] = weakref.WeakKeyDictionary()


class LoopFrame(Frame):
    """Forwards of one loop; a request at a time."""

    __slots__ = ("_block", "_open_request", "_tells_past", "explicit", "raw")

    def __init__(self, open_request: Callable[[int], RawRequest | None], *, tells_past: bool) -> None:
        """Begin a loop that has no request yet.

        Args:
            open_request: Makes a request; None where nobody wants it.
            tells_past: Whether a forward says what is cached.
        """
        super().__init__(_discarded(0), None, flags=Flag.BARE)  # a loop that is never finished must not keep its model
        self.raw: RawRequest | None = None
        self.explicit = False
        self._open_request = open_request
        self._tells_past = tells_past
        self._block: phase | None = None

    def look(self, cache: object | None, kwargs: dict[str, Any], q: int) -> tuple[int, int]:
        """Flags and cached tokens of a forward; the request it belongs to begins here where it is the first."""
        block = _BLOCK.get()
        if cache is None:
            cache = kwargs.get("cache_params")
        if cache is not self.cache:
            self.cache = None
        flags, past = super().look(cache, kwargs, q)
        if not self._tells_past:
            past = UNREADABLE
        self._turn(self.now_ns(), past, block)
        if block is not None:
            block.passes += 1
            flags |= block.flags
        return flags, past

    def opaque_pass(self, block: phase, ended_ns: int) -> None:
        """A block in which no forward was seen is itself one pass."""
        self._turn(block.entered_ns, UNREADABLE, block)
        request = self.request
        rows, row = request.rows, request.row
        flags = Flag.BARE | block.flags
        values = (block.entered_ns, block.entered_ns, ended_ns, ended_ns, block.tokens, UNREADABLE, block.batch_size)
        for offset, value in enumerate((*values, block.tokens, flags, UNREADABLE, 0, 0, 0, 0)):
            rows[row + offset] = value
        request.row = row + Row.WIDTH
        if request.row == len(rows):
            request.next_chunk()

    def begin(self, entered_ns: int) -> None:
        """A request begins."""
        self.finish()
        self.raw = self._open_request(entered_ns)
        self.seen = 0
        if self.raw is None:
            self.request = _discarded(entered_ns)
            self.meter = None
            return
        self.raw.loop = True
        self.request = self.raw.request
        self.meter = self.request.meter
        TRAFFIC.enter(self.raw)

    def finish(self, ended_ns: int | None = None, error_type: str | None = None) -> None:
        """The request is over: at its last forward's end, unless told otherwise."""
        try:
            raw, self.raw = self.raw, None
            self._block = None
            self.close()
            if raw is None:
                return
            request = raw.request
            TRAFFIC.leave(raw)
            if request.dead:
                for receiver, _ in raw.begun:
                    receiver.abandon(raw.request_id)
                return
            last_ns = ended_ns if ended_ns is not None else _last_left(request)
            request.returned_ns = request.left_ns = max(last_ns, request.started_ns)
            raw.error_type = error_type
            # Whoever asks for results may be another thread, which has no business with this one's device.
            if request.meter is not None and request.thread == threading.get_ident():
                request.meter.close()
            for receiver, begun in raw.begun:
                receiver(raw, begun)
        except Exception as error:  # noqa: BLE001 - asking for results must not fail for a fault of ours
            notices.fault("capture-failed", error)

    def _turn(self, now_ns: int, past: int, block: phase | None) -> None:
        """Begin a request where this forward does not belong to the one before."""
        named = None if block is None else block.name
        if self.raw is None and not self.seen:
            new = True
        elif self.explicit or (block is not None and block is self._block):
            new = False
        elif named is not None:
            new = named in _PROMPT_PHASES and self._block is not None and self._block.name not in _PROMPT_PHASES
        else:
            new = past == 0
        if new and not self.explicit:
            self.begin(now_ns)
        self._block = block


def _inside_generate() -> bool:
    """Whether a `generate` that we did not see begin has called this forward."""
    frame = sys._getframe(1)  # noqa: SLF001 - there is no public way up the stack that costs as little
    while frame is not None:
        code = frame.f_code
        if code.co_name == "generate" and "transformers" in code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _discarded(entered_ns: int) -> Request:
    """Where the rows of a request go that nobody wants."""
    return Request(entered_ns=entered_ns, started_unix_ns=0, clock=_CLOCK)


def _last_left(request: Request) -> int:
    """When the last forward was over."""
    for rows, row in ((request.rows, request.row), *((rows, len(rows)) for rows in reversed(request.chunks))):
        if row:
            return rows[row - Row.WIDTH + Row.LEFT]
    return request.started_ns


class phase:  # noqa: N801 - used like a function
    """Names a stretch of a hand-written loop: `with inferscope.phase("decode", batch_size=8, tokens=1): ...`.

    Forwards of the traced model inside the block are passes of that phase. Where none is seen, as with a compiled
    function that holds the whole model, the block itself is one pass. Inside `generate` the block changes nothing,
    since the passes are known there, and without an open trace it does nothing.
    """

    __slots__ = ("_token", "batch_size", "entered_ns", "flags", "name", "passes", "tokens")

    def __init__(self, name: str, *, batch_size: int | None = None, tokens: int | None = None) -> None:
        """Prepare a block.

        Args:
            name: encode, prefill, decode, verify, draft or mixed.
            batch_size: Sequences, where no forward is seen that tells.
            tokens: New tokens per sequence in this block, where no forward is seen that tells.

        Raises:
            SettingError: There is no phase of that name, or a number is not positive.
        """
        if name not in PHASE_NAMES:
            raise SettingError(f"phase({name!r}): expected one of {', '.join(PHASE_NAMES)}")
        for what, value in (("batch_size", batch_size), ("tokens", tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingError(f"phase({name!r}, {what}={value!r}): expected a whole number of at least 1")
        self.name = name
        self.batch_size = UNREADABLE if batch_size is None else batch_size
        self.tokens = UNREADABLE if tokens is None else tokens
        self.flags = (PHASE_NAMES.index(name) + 1) << Flag.NAMED_SHIFT
        self.passes = 0
        self.entered_ns = 0
        self._token: Any = None

    def __enter__(self) -> phase:
        """The block begins."""
        if _ATTACHED:
            self.passes = 0
            self.entered_ns = _CLOCK.now_ns()
            self._token = _BLOCK.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The block ends; the user's exception passes through."""
        if self._token is None:
            return
        ended_ns = _CLOCK.now_ns()
        _BLOCK.reset(self._token)
        self._token = None
        if self.passes:
            return
        try:
            loop = _loop_here()
            if loop is not None:
                loop.opaque_pass(self, ended_ns)
        except Exception as fault:  # noqa: BLE001 - nothing of ours reaches the user's loop
            notices.fault("capture-failed", fault)


_BLOCK: ContextVar[phase | None] = ContextVar("inferscope_phase", default=None)


def named_phase() -> str | None:
    """The phase that the innermost block here names; None outside of one."""
    block = _BLOCK.get()
    return None if block is None else block.name


def _loop_here() -> LoopFrame | None:
    """The loop that a block without forwards belongs to."""
    frame = CURRENT.get()
    if frame is not None:
        return frame if isinstance(frame, LoopFrame) else None
    attached = list(_ATTACHED.values())
    here = [loops for loops in attached if loops.here()] or attached
    if len(here) == 1:
        return here[0].frame()
    if here:
        notices.warn(
            "phase-without-model",
            "several models are traced and no forward was seen in a phase block: use `with session.request():`",
        )
    return None
