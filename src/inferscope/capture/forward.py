"""What runs around every forward of a traced model: the one piece of code that costs the user something per token.

It stands in for `__call__` on the model's class. Forward hooks would do the same, but torch then takes its long way
through `_call_impl`, and under torch.compile hooks are either traced into the graph or never called. It is written
flat, since a call costs as much as what it would hide, and leaves nothing behind but integers.
"""

from __future__ import annotations

from struct import Struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from inferscope.capture.companions import encoded
from inferscope.capture.frames import CHUNK_END, CURRENT, SLOW_PASS_NS, STEADY, UNREADABLE, Flag, Frame, Row

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["watched"]

_current = CURRENT.get
_write = Struct(f"{Row.WIDTH}q").pack_into
_LAST_ROW = CHUNK_END - Row.WIDTH
_WIDTH = Row.WIDTH
_CPU_GROUP = 7
"""Bit mask: of short passes every eighth has its CPU time read, since reading costs half a microsecond."""


def watched(  # noqa: C901, PLR0915 - flat on purpose, see above
    below: Any,  # noqa: ANN401 - a class, or any object with the function as its attribute
    is_compiling: Callable[[], bool],
    other_frame: Callable[[Frame | None, object], Frame | None],
    step_aside: Callable[[Frame, Exception], None],
) -> Callable[..., Any]:
    """A `__call__` that writes a row about each forward that belongs to the running request.

    Args:
        below: Its attribute `__call__` is what really runs; looked up at each call, since others may wrap it too.
        is_compiling: Whether torch.compile is tracing: then nothing is recorded, and nothing of ours traced.
        other_frame: The frame of a module that is not the running frame's own, None where it is not observed; does not
            raise.
        step_aside: Called once with a fault of ours; the forward goes on without us.
    """

    def __call__(  # noqa: C901, N807, PLR0912, PLR0915 - stands in for it, and is flat
        self: object,
        *args: Any,  # noqa: ANN401 - passed through
        **kwargs: Any,  # noqa: ANN401 - passed through
    ) -> Any:  # noqa: ANN401 - passed through
        if is_compiling():
            return below.__call__(self, *args, **kwargs)
        frame = _current()
        if frame is None or frame.module is not self or frame.request.in_pass or frame.thread != get_ident():
            frame = other_frame(frame, self)
            if frame is None:
                return below.__call__(self, *args, **kwargs)
            if getattr(frame, "flags", 0) & Flag.ENCODE:
                return encoded(frame, below, step_aside, args, kwargs)
        try:
            now_ns = frame.now_ns
            entered = now_ns()
            get = kwargs.get
            ids = get("input_ids")
            try:
                batch, q = ids.shape if ids is not None else frame.shape(args, kwargs)
            except ValueError:  # several codes per token
                batch, q = frame.shape(args, kwargs)
            cache = get("past_key_values")
            flags = frame.flags
            if cache is not None and cache is frame.summed:
                flags |= STEADY
                past = frame.past
                frame.past = past + q
            else:
                flags, past = frame.look(cache, kwargs, q)
            logits = q
            if q != 1 and type(kept := get("logits_to_keep")) is int and kept > 0:
                logits = kept
            seen = frame.seen
            frame.seen = seen + 1
            cpu = UNREADABLE if seen > 1 and seen & _CPU_GROUP and not frame.slow else frame.thread_cpu_ns()
            request = frame.request
            request.in_pass = True
            meter = frame.meter
            if meter is not None:
                meter.begin()
            started = now_ns()
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            step_aside(frame, error)
            return below.__call__(self, *args, **kwargs)
        try:
            return below.__call__(self, *args, **kwargs)
        except BaseException:
            flags |= Flag.ABORTED
            raise
        finally:
            try:
                ended = now_ns()
                if meter is not None:
                    meter.end()
                request.in_pass = False
                frame.slow = ended - started > SLOW_PASS_NS
                rows, row = request.rows, request.row
                _write(rows, row << 3, entered, started, ended, 0, q, past, batch, logits, flags, cpu, 0, 0, 0, 0)
                request.row = row + _WIDTH
                rows[row + 3] = now_ns()
                if row == _LAST_ROW:
                    request.next_chunk()
            except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
                step_aside(frame, error)

    return __call__
