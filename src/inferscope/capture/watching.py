"""What stands in for a model's forwards, and for the parts of transformers' loop around them.

How a forward is watched stands in forward.py; here is which one is, and what is known of it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import wrapt

from inferscope import notices
from inferscope.capture import seams, versions
from inferscope.capture.companions import ENCODER, encoded, note_encoded
from inferscope.capture.deep import DeepMeter, NestedMeters
from inferscope.capture.device import PassMeter
from inferscope.capture.driver_counts import CountingMeter
from inferscope.capture.forward import timed_stop_check, watched
from inferscope.capture.frames import CURRENT, ENCODING, LEFT_OUT, Flag, Frame, Request
from inferscope.capture.loops import LoopFrame
from inferscope.capture.ranges import RangeMeter
from inferscope.capture.registry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = [
    "around_assisted",
    "around_chunks",
    "around_compiled_call",
    "around_prefill",
    "around_side_pass",
    "inline_check_wrap",
    "stop_check_wrap",
    "watched_call",
]

_current = CURRENT.get
_left_out = LEFT_OUT.get


def watched_call(owner: type, original: Any) -> Callable[..., Any]:  # noqa: ANN401 - a function, or nothing
    """What stands in for `__call__` of a model's class."""
    return _watched(seams.below(owner, "__call__", original))


def _watched(below: Any) -> Callable[..., Any]:  # noqa: ANN401 - see forward.watched
    import torch  # noqa: PLC0415 - a model is there, so torch is loaded

    call = watched(below, torch.compiler.is_compiling, _other_frame, _step_aside)
    seams.hide_from_dynamo(call)
    seams.hide_from_dynamo(encoded)
    own = (
        _other_frame,
        _loop_of,
        _step_aside,
        Frame.look,
        LoopFrame.look,
        Frame.shape,
        Request.next_chunk,
        note_encoded,
    )
    measuring = (DeepMeter, NestedMeters, PassMeter, CountingMeter, RangeMeter)
    meters = [part for meter in measuring for part in (meter.begin, meter.end)]
    for called in (*own, *meters):
        seams.hide_from_dynamo(called, with_calls=True)
    return call


def _other_frame(frame: Frame | None, module: object) -> Frame | None:
    """The frame for a forward that is not plainly the next of the running frame; None where it is not recorded."""
    try:
        if frame is None:
            return None if _left_out() else _loop_of(module)
        request = frame.request
        # Within a pass the outer forward holds the time; another thread may have been given a copy of our context.
        if request.dead or frame.thread != threading.get_ident():
            return None
        role = request.companions.get(module)
        if role == ENCODER:
            return frame.other(module, Flag.ENCODE) if request.in_pass != ENCODING else None
        drafts = role is not None or (frame.flags & Flag.ASSISTED and type(module).__name__ == versions.DRAFT_LAYERS)
        if request.in_pass or not (drafts or module in REGISTRY):
            return None
        return frame.other(module, frame.flags | Flag.FOREIGN)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        if frame is None:
            notices.fault("capture-failed", error)
        else:
            _step_aside(frame, error)
        return None


def _loop_of(module: object) -> Frame | None:
    """The hand-written loop of this thread that a forward belongs to."""
    observed = REGISTRY.get(module) or REGISTRY.get(getattr(module, "_orig_mod", module))
    found = observed.loops.frame() if observed is not None and observed.loop_receivers else None
    return found if isinstance(found, Frame) else None


def _step_aside(frame: Frame, error: Exception) -> None:
    with contextlib.suppress(Exception):  # where it is no frame, there is nothing to step aside from
        frame.request.dead = True
        frame.module = None
        # What is open belongs to the process, and nobody says when a hand-written loop is over.
        if frame.flags & Flag.BARE and frame.meter is not None:
            frame.meter.close()
    with contextlib.suppress(Exception):
        frame.flags = Flag.ASSISTANT  # the stop check looks at this alone: it writes nothing any more either
    notices.fault("capture-failed", error)


def around_prefill(wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the prefill returns
    """The prefill of transformers' loop."""
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.IN_PREFILL, wrapped, args, kwargs)


def around_chunks(
    wrapped: Any,  # noqa: ANN401 - a bound method
    instance: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401 - the arguments to go on with
    """A prefill in chunks that calls the model's `forward` itself: it is given one that is watched."""
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    try:
        below = SimpleNamespace(__call__=lambda _self, *args, **kwargs: instance.forward(*args, **kwargs))
        chunked = functools.partial(wrapped.__func__, _WatchedForward(instance, _watched(below)))
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        _step_aside(frame, error)
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.IN_PREFILL, chunked, args, kwargs)


class _WatchedForward(wrapt.ObjectProxy[Any]):
    """The model, as the function that fills its cache chunk by chunk sees it."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__(module)
        self._self_call = functools.partial(call, module)

    @property
    def forward(self) -> Callable[..., Any]:
        return self._self_call


def around_assisted(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - what generate returns
    """Assisted decoding's loop."""
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.ASSISTED, wrapped, args, kwargs)


def around_side_pass(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - logits
    """The second forward of classifier-free guidance, which without a cache looks like the next pass."""
    frame = _current()
    if frame is None or frame.module is not getattr(instance, "model", None):
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.SIDE, wrapped, args, kwargs)


def _flagged(
    frame: Frame, flag: int, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - passed through
    """What is called, with a flag on all passes in it."""
    frame.flags |= flag
    try:
        return wrapped(*args, **kwargs)
    finally:
        frame.flags &= ~flag


def around_compiled_call(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - a callable
    """The compiled forward, watched from outside: it may have been compiled before we came, and holds `__call__`."""
    compiled = wrapped(*args, **kwargs)
    frame = _current()
    if frame is None or frame.module is not instance:
        return compiled
    frame.request.compiled = True
    try:
        below = SimpleNamespace(__call__=lambda _self, *args, **kwargs: compiled(*args, **kwargs))
        return functools.partial(_watched(below), instance)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        _step_aside(frame, error)
        return compiled


def stop_check_wrap(_owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """The stop check with a mark."""
    return timed_stop_check(original, _step_aside)


def inline_check_wrap(owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """The same for versions whose loop reads on the host by itself whether it is over."""
    timed = stop_check_wrap(owner, original)

    @functools.wraps(original)
    def inline_check(self: object, over: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        # The first question comes before the first token.
        if over is False or _current() is None or not versions.called_in_token_loop():
            return original(self, over, *args, **kwargs)
        return timed(self, over, *args, **kwargs)

    return inline_check
