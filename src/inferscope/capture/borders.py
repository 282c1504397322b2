"""Where a request begins and ends: what stands in for `generate`, and for the streamer it is given.

The marks of a request come from one clock, which is handed on to its frames.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

from inferscope import notices
from inferscope.capture import arms
from inferscope.capture.calls import hold, hold_result, is_assistant, prompt_len
from inferscope.capture.companions import ASSISTANT, Companions
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.frames import CURRENT, LEFT_OUT, Flag, Frame, Inner, Mark, Request
from inferscope.capture.loops import Loops
from inferscope.capture.metering import request_meter
from inferscope.capture.ranges import RangeMeter
from inferscope.capture.receivers import begin, caller_context
from inferscope.capture.registry import EVERYWHERE, REGISTRY, admit
from inferscope.capture.requests import RawRequest
from inferscope.meters.clock import SystemClock
from inferscope.meters.host import GcMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from inferscope.capture.receivers import Receiver
    from inferscope.capture.registry import Observed
    from inferscope.capture.requests import Begun
    from inferscope.meters.clock import Clock

__all__ = ["GC_MARKS", "TimedStreamer", "around_generate", "begin_queued", "loops_of"]

_CLOCK: Clock = SystemClock()
_current = CURRENT.get


class _Opened(NamedTuple):
    """A running `generate`; `raw` only for the outermost one of a request, the prompt's length only within one."""

    frame: Frame
    raw: RawRequest | None = None
    inner_prompt_len: int | None = None


class _Lot(NamedTuple):
    """What is to be done about a call of `generate`.

    Attributes:
        observed: The model, where it is in the registry.
        taken: Who observes the call.
        odds: Of the arm that its time goes to; empty for neither.
        began_ns: Clock reading, where its time goes to an arm.
    """

    observed: Observed | None
    taken: tuple[Receiver, ...]
    odds: tuple[float, ...] = ()
    began_ns: int = 0


_NOBODY = _Lot(None, ())
"""Of a call that sampling leaves out and that is compared with none."""


def around_generate(
    wrapped: Callable[..., Any], instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever generate returns
    """Run a `generate`, recorded where somebody wants it."""
    lot = _lot(instance)
    if lot is None:
        return wrapped(*args, **kwargs)
    if lot is _NOBODY:
        return _left_out(wrapped, args, kwargs)
    opened, given = _open(instance, lot.observed, lot.taken, args, kwargs)
    result = _generated(opened, wrapped, args, given)
    # Observed, or left out by chance; what somebody refused for a reason is in neither arm.
    if lot.odds and (opened is not None or not lot.taken):
        try:
            wall_ns = _CLOCK.now_ns() - lot.began_ns
            arms.note(instance, args, kwargs, result, wall_ns, odds=lot.odds, observed=opened is not None)
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            notices.fault("capture-failed", error)
    return result


def _inside() -> bool:
    """Whether a call comes from within a request of this thread, its streamer aside."""
    parent = _current()
    return parent is not None and not parent.request.in_put and parent.thread == threading.get_ident()


def _lot(instance: torch.nn.Module) -> _Lot | None:
    """What is to be done about the call that begins; None where nothing is.

    Of a fault of ours nobody observes the call.
    """
    try:
        if EVERYWHERE and not _inside():
            admit(instance)
        observed = REGISTRY.get(instance)
        if _current() is not None:
            return _Lot(observed, () if observed is None else observed.draw(observed.receivers).taken)
        if observed is None:
            return None
        taken, odds = observed.draw(observed.receivers)
        if not taken and not odds:
            return _NOBODY
        return _Lot(observed, taken, odds, _CLOCK.now_ns() if odds else 0)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
        return _Lot(None, ())


def _generated(
    opened: _Opened | None, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever generate returns
    if opened is None and _current() is None:
        return _left_out(wrapped, args, kwargs)
    # Of a model that nobody observes, neither the passes nor the stop checks are those of the request it runs in.
    token = CURRENT.set(None if opened is None else opened.frame)
    result, error_type = None, None
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        error_type = type(error).__qualname__
        raise
    finally:
        CURRENT.reset(token)
        if opened is not None:
            _close(opened, result, error_type)
    return result


def _left_out(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever generate returns
    """Run a `generate` that nobody records: its forwards are nobody's, and no part of a loop that this thread is in."""
    token = LEFT_OUT.set(True)
    try:
        return wrapped(*args, **kwargs)
    finally:
        LEFT_OUT.reset(token)


def _open(
    instance: torch.nn.Module,
    observed: Observed | None,
    drawn: tuple[Receiver, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[_Opened | None, dict[str, Any]]:
    """The frame of this call and the arguments to go on with; (None, kwargs) where the call is not ours."""
    try:
        parent = _current()
        inside = _inside()
        if observed is None and not (inside and parent is not None and instance in parent.request.companions):
            return None, kwargs
        if inside and parent is not None:
            inner = _open_inner(parent.request, instance, args, kwargs)
            return (inner if isinstance(inner.frame, Frame) else None), kwargs
        if observed is None:
            return None, kwargs
        opened, given = _open_outer(observed, drawn, instance, args, kwargs)  # unpacked within the guard
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
        return None, kwargs
    return opened, given


def _open_outer(
    observed: Observed,
    drawn: tuple[Receiver, ...],
    instance: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[_Opened | None, dict[str, Any]]:
    """A `generate` that is in no other one: a request."""
    raw = _open_request(_CLOCK.now_ns(), drawn, instance, args, kwargs)
    if raw is None:
        return None, kwargs
    if kwargs.get("streamer") is not None:
        kwargs = {**kwargs, "streamer": TimedStreamer(kwargs["streamer"], raw.request)}
    raw.request.companions = observed.companions
    frame = _frame_of(raw.request, instance, kwargs)
    if not isinstance(frame, Frame):
        raise TypeError("no frame to record in")
    opened = _Opened(frame, raw)
    if isinstance(raw.request.meter, RangeMeter):
        raw.request.meter.enter()
    raw.request.started_ns = _CLOCK.now_ns()
    TRAFFIC.enter(raw)
    return opened, kwargs


def _frame_of(request: Request, instance: torch.nn.Module, kwargs: dict[str, Any]) -> Frame:
    """A frame for a `generate`, with whatever assistant and cache the call brings."""
    assistant = kwargs.get("assistant_model")
    if assistant is not None and isinstance(request.companions, Companions):
        request.companions.bring(instance, assistant)
    given = kwargs.get("past_key_values")
    return Frame(request, instance, given=kwargs.get("cache_params") if given is None else given)


def _open_inner(request: Request, instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Opened:
    """`generate` within `generate` is one request: an assistant, or a model that calls itself in windows."""
    frame = _frame_of(request, instance, kwargs)
    if is_assistant(kwargs) or request.companions.get(instance) == ASSISTANT:
        frame.flags |= Flag.ASSISTANT
        return _Opened(frame)
    return _Opened(frame, inner_prompt_len=prompt_len(instance, args, kwargs))


def _open_request(
    entered: int,
    receivers: tuple[Receiver, ...],
    instance: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    loop: bool = False,
) -> RawRequest | None:
    """The request that begins with this call; None where nobody wants it, and then next to nothing was done."""
    started_unix_ns = time.time_ns() - (_CLOCK.now_ns() - entered)  # of the entry, not of this line
    begun = begin(receivers, started_unix_ns, caller_context(kwargs.get("streamer")), kwargs)
    if begun is None:
        return None
    request_id, takers = begun
    request = Request(entered_ns=entered, started_unix_ns=started_unix_ns, clock=_CLOCK)
    request.meter = request_meter(instance, request, [receiver for receiver, _ in takers], loop=loop)
    return RawRequest(
        request,
        hold(args, kwargs),
        weakref.ref(instance),
        request_id=request_id,
        begun=takers,
    )


def loops_of(observed: Observed, module: torch.nn.Module) -> Loops:
    """The hand-written loops of a module, whose requests begin as those of `generate` do."""
    gone = weakref.ref(module)

    def open_request(entered_ns: int) -> RawRequest | None:
        instance = gone()
        return (
            None
            if instance is None
            else _open_request(entered_ns, observed.draw(observed.loop_receivers).taken, instance, (), {}, loop=True)
        )

    return Loops(module, open_request)


def begin_queued(
    module: object, started_unix_ns: int, options: Mapping[str, Any]
) -> tuple[str, tuple[tuple[Receiver, Begun], ...]] | None:
    """A request that is queued for continuous batching, in the thread that queues it."""
    admit(module)
    observed = REGISTRY.get(module)
    return (
        None
        if observed is None
        else begin(observed.draw(observed.receivers).taken, started_unix_ns, caller_context(None), options)
    )


def _close(opened: _Opened, result: object, error_type: str | None) -> None:
    """End the frame; with the outermost one, hand the finished request over."""
    request, raw = opened.frame.request, opened.raw
    try:
        returned = _CLOCK.now_ns()
        if not request.dead:
            opened.frame.close(whole=error_type is None)
        if raw is None:
            _close_inner(opened, result)
            return
        TRAFFIC.leave(raw)
        if request.dead:
            if request.meter is not None:
                request.meter.close()
            for receiver, _ in raw.begun:
                receiver.abandon(raw.request_id)
            return
        raw.error_type = error_type
        raw.result_shape, raw.result = hold_result(result)
        raw.end_in_process()
        request.returned_ns = returned
        request.cpu_ns = _CLOCK.thread_cpu_ns()
        if request.meter is not None:
            request.meter.close()
        request.left_ns = _CLOCK.now_ns()
        for receiver, begun in raw.begun:
            receiver(raw, begun)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        with contextlib.suppress(Exception):
            TRAFFIC.forget(raw)
        with contextlib.suppress(Exception):  # whatever it holds belongs to the process
            if raw is not None and request.meter is not None:
                request.meter.close()
        notices.fault("capture-failed", error)


def _close_inner(opened: _Opened, result: object) -> None:
    """A `generate` within the request has ended: what it was given and how long its sequences are."""
    request = opened.frame.request
    if opened.frame.flags & Flag.ASSISTANT:
        return
    shape, _ = hold_result(result)
    request.inner = Inner(
        calls=1 if request.inner is None else request.inner.calls + 1,
        prompt_len=opened.inner_prompt_len,
        longest=None if shape is None else shape[1],
        # Whisper cuts the new tokens of its windows into segments, and returns those.
        joined=hasattr(opened.frame.module, "generate_with_fallback"),
    )


class TimedStreamer(wrapt.ObjectProxy[Any]):
    """The user's streamer, with the time spent in it marked; in every other respect the very same object."""

    def __init__(self, streamer: object, request: Request) -> None:
        """Stand in for a streamer during one request."""
        super().__init__(streamer)
        self._self_request = request

    def put(self, value: object) -> Any:  # noqa: ANN401 - whatever the user's streamer returns
        """Hand a token to the user's streamer."""
        started = _put_begins(self._self_request)
        try:
            return self.__wrapped__.put(value)
        finally:
            _put_ended(self._self_request, started)

    def end(self) -> Any:  # noqa: ANN401 - whatever the user's streamer returns
        """Tell the user's streamer that generation has ended."""
        started = _put_begins(self._self_request)
        try:
            return self.__wrapped__.end()
        finally:
            _put_ended(self._self_request, started)


def _put_begins(request: Request) -> int:
    try:
        request.in_put = True
        return _CLOCK.now_ns()
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        request.dead = True
        notices.fault("capture-failed", error)
        return 0


def _put_ended(request: Request, started: int) -> None:
    try:
        request.in_put = False
        if not request.dead:
            request.marks.append((Mark.PUT, started, _CLOCK.now_ns()))
    except Exception as error:  # noqa: BLE001 - as above
        request.dead = True
        notices.fault("capture-failed", error)


def _collected(started: int, ended: int) -> None:
    frame = _current()
    if frame is not None:
        frame.request.marks.append((Mark.GC, started, ended))


GC_MARKS = GcMeter(_CLOCK, _collected)
"""Marks collections in the request that they interrupt."""
