"""What runs around every forward and every stop check of a traced model: the code that costs the user per token.

The one stands in for `__call__` on the model's class. Forward hooks would do the same, but torch then takes its long
way through `_call_impl`, and under torch.compile hooks are either traced into the graph or never called. The other
stands in for the stop check, which runs once per token.

Both are there twice: in C (`_hot.c`), which touches a fraction of the memory that a model has just pushed out of the
caches, and here, for machines on which that was not built. They do the same to the letter. This one is written flat,
since a call costs as much as what it would hide, and leaves nothing behind but integers.
"""

from __future__ import annotations

import functools
from struct import Struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from inferscope.capture.companions import encoded
from inferscope.capture.frames import (
    CHUNK_END,
    CPU_GROUP,
    CURRENT,
    SLOW_PASS_NS,
    STEADY,
    UNREADABLE,
    Flag,
    Frame,
    Mark,
    Row,
)
from inferscope.capture.implementation import HOT, IMPLEMENTATION

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IMPLEMENTATION", "stop_check_timed_in_python", "timed_stop_check", "watched", "watched_in_python"]

_current = CURRENT.get
_write = Struct(f"{Row.WIDTH}q").pack_into
_LAST_ROW = CHUNK_END - Row.WIDTH
_WIDTH = Row.WIDTH


def watched(
    below: Any,  # noqa: ANN401 - a class, or any object with the function as its attribute
    is_compiling: Callable[[], bool],
    other_frame: Callable[[Frame | None, object], Frame | None],
    step_aside: Callable[[Frame, Exception], None],
) -> Callable[..., Any]:
    """A `__call__` that writes a row about each forward that belongs to the running request.

    It is a function of Python's in either case: torch.compile has to see a frame that it can be told to skip.

    Args:
        below: Its attribute `__call__` is what really runs; looked up at each call, since others may wrap it too.
        is_compiling: Whether torch.compile is tracing: then nothing is recorded, and nothing of ours traced.
        other_frame: The frame of a module that is not the running frame's own, None where it is not observed; does not
            raise.
        step_aside: Called once with a fault of ours; the forward goes on without us.
    """
    if HOT is None:
        return watched_in_python(below, is_compiling, other_frame, step_aside)
    run = HOT.Watch(below, CURRENT, other_frame, encoded, step_aside)

    def __call__(self: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N807 - stands in for it
        if is_compiling():
            return below.__call__(self, *args, **kwargs)
        return run(self, args, kwargs)

    return __call__


def timed_stop_check(
    original: Callable[..., Any], step_aside: Callable[[Frame, Exception], None]
) -> Callable[..., Any]:
    """The stop check, with its time written into the row of the pass before it.

    Args:
        original: What really checks.
        step_aside: Called once with a fault of ours; the check goes on without us.
    """
    if HOT is None:
        return stop_check_timed_in_python(original, step_aside)
    check: Callable[..., Any] = HOT.StopCheck(original, CURRENT, step_aside)
    return functools.update_wrapper(check, original)


def watched_in_python(  # noqa: C901, PLR0915 - flat on purpose, see above
    below: Any,  # noqa: ANN401 - see watched
    is_compiling: Callable[[], bool],
    other_frame: Callable[[Frame | None, object], Frame | None],
    step_aside: Callable[[Frame, Exception], None],
) -> Callable[..., Any]:
    """`watched` without the extension."""

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
        failed = False
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
            cpu = UNREADABLE if seen > 1 and seen & CPU_GROUP and not frame.slow else frame.thread_cpu_ns()
            request = frame.request
            request.in_pass = 1
            meter = frame.meter
            if meter is not None:
                meter.begin()
            started = now_ns()
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            step_aside(frame, error)
            failed = True
        if failed:  # outside the handler, so that an exception of the user's gets no context of ours
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
                request.in_pass = 0
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


def stop_check_timed_in_python(
    original: Callable[..., Any], step_aside: Callable[[Frame, Exception], None]
) -> Callable[..., Any]:
    """`timed_stop_check` without the extension. A plain function: wrapt's costs thrice as much."""

    @functools.wraps(original)
    def stop_check(self: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        frame = _current()
        if frame is None or frame.flags & Flag.ASSISTANT:
            return original(self, *args, **kwargs)
        now_ns, failed = frame.now_ns, False
        try:
            started = now_ns()
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            step_aside(frame, error)
            failed = True
        if failed:  # outside the handler, as above
            return original(self, *args, **kwargs)
        try:
            return original(self, *args, **kwargs)
        finally:
            try:
                request = frame.request
                rows, row = request.rows, request.row
                if row and not rows[row - 1]:
                    rows[row - 2] = started
                    rows[row - 1] = now_ns()
                else:
                    request.marks.append((Mark.STOP, started, now_ns()))
            except Exception as error:  # noqa: BLE001 - as above
                step_aside(frame, error)

    return stop_check
