"""Attaching to a model: wraps on its classes, gated by a registry of the modules that are traced.

What is wrapped stands in versions.py, how in seams.py; here is what happens there. Nothing is put on the module itself,
so that a traced model can still be copied, pickled, moved, compiled and freed, and is the same model afterwards.
`module.forward` is never replaced: that breaks deepcopy, pickle, accelerate's own hook and transformers' look at the
forward's signature.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from random import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import opentelemetry.context
import opentelemetry.trace
import wrapt

from inferscope import notices
from inferscope.capture import arms, continuous, seams, versions
from inferscope.capture.calls import hold, hold_result, is_assistant, prompt_len
from inferscope.capture.companions import ASSISTANT, ENCODER, Companions, companions_of, encoded, note_encoded
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.deep import DeepMeter, NestedMeters
from inferscope.capture.device import PassMeter, meter_of
from inferscope.capture.driver_counts import CountingMeter, counting_of
from inferscope.capture.forward import timed_stop_check, watched
from inferscope.capture.frames import CURRENT, ENCODING, Flag, Frame, Inner, Mark, Request
from inferscope.capture.loops import LoopFrame, Loops
from inferscope.capture.ranges import RangeMeter
from inferscope.capture.requests import RawRequest, new_request_id, restart_request_ids
from inferscope.errors import NotAModelError
from inferscope.meters import counters, deep, sync_points
from inferscope.meters.budget import BUDGET
from inferscope.meters.clock import SystemClock
from inferscope.meters.cuda import cuda_devices_of
from inferscope.meters.host import GcMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from inferscope.capture.frames import ForwardMeter
    from inferscope.capture.requests import Begun, Finished
    from inferscope.capture.seams import Seam, Wrap
    from inferscope.meters.clock import Clock
    from inferscope.meters.counters import Counter
    from inferscope.meters.nvtx import Ranges

__all__ = [
    "Attachment",
    "EveryAttachment",
    "Receiver",
    "active_requests",
    "attach",
    "attach_every",
    "look_again",
    "target_of",
]

_CLOCK: Clock = SystemClock()
_current = CURRENT.get
_lock = threading.RLock()
_registry: weakref.WeakKeyDictionary[object, _Observed] = weakref.WeakKeyDictionary()
_streamer_contexts: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()
_everywhere: tuple[EveryAttachment, ...] = ()

LOCK_WAIT_S = 1.0
"""How long an import waits for others who attach or detach."""


class Receiver(Protocol):
    """Who gets the finished requests of a model. Both methods run on the generating thread and return at once.

    One that has an attribute `gives_way` that is true is asked after the others, and is told of no hand-written loops:
    it observes every model, and nobody said that this one's forwards are requests.
    """

    keep_samples: bool
    plug_every: int
    deep_every: int
    ranges: Ranges | None
    counters: bool

    @property
    def observed_share(self) -> float:
        """Share of requests that it wants (0..1), chosen by chance."""

    def begin(
        self,
        request_id: str,
        started_unix_ns: int,
        context: object | None,
        options: Mapping[str, Any],
        claimed: bool,  # noqa: FBT001 - an implementation that does not care takes it with `*_`
        /,
    ) -> Begun | None:
        """A request begins: whether it is wanted.

        Args:
            request_id: Its identity.
            started_unix_ns: Wall-clock time of its entry.
            context: The caller's OpenTelemetry context; None where it has no span.
            options: The keyword arguments of `generate`.
            claimed: Whether another receiver has taken it, and tells of it.

        Returns:
            What comes back with the finished request; None where it is not to be observed.
        """

    def __call__(self, raw: Finished, begun: Begun) -> None:
        """Take a finished request, and what `begin` returned for it."""

    def abandon(self, request_id: str) -> None:
        """A request that began will not be finished: a fault of ours ended it."""


class Attachment:
    """What `attach` returns: keeps one receiver attached to one model until `detach`."""

    def __init__(self, module: torch.nn.Module, receiver: Receiver) -> None:
        """Remember the pair; `attach` does the work."""
        self._module = weakref.ref(module)
        self._receiver: Receiver | None = receiver

    @property
    def gone(self) -> bool:
        """Whether the model has been freed."""
        return self._module() is None

    def finish_loop(self) -> None:
        """The hand-written loop of this thread, if there is one, is over."""
        try:
            module = self._module()
            observed = _registry.get(module) if module is not None else None
            if observed is not None:
                observed.loops.finish_here()
        except Exception as error:  # noqa: BLE001 - asking for results must not fail for a fault of ours
            notices.fault("capture-failed", error)

    def new_loop(self) -> LoopFrame | None:
        """A loop whose borders the caller sets; None where the model is gone."""
        module = self._module()
        observed = _registry.get(module) if module is not None else None
        return observed.loops.new_frame() if observed is not None else None

    def detach(self) -> None:
        """Take the receiver off; with the last one, hooks and wraps go too. Safe to call twice."""
        with _lock:
            receiver, self._receiver = self._receiver, None
            if receiver is None:
                return
            _GC.stop()
            if receiver.deep_every or receiver.counters:
                deep.switch_off()
            module = self._module()
            observed = _registry.get(module) if module is not None else None
            if module is not None and observed is not None:
                observed.loops.finish_all()
                observed.remove(receiver)
                if not observed.receivers:
                    observed.loops.detach()
                    del _registry[module]
                    continuous.LOOPS.forget(module)
            seams.release(_needed_seams())


class EveryAttachment:
    """What `attach_every` returns: keeps whatever model generates observed, from its first request until `detach`."""

    def __init__(self, receiver_of: Callable[[torch.nn.Module], Receiver]) -> None:
        """Remember who makes the receivers; `attach_every` does the work."""
        self._receiver_of = receiver_of
        self._known: weakref.WeakSet[object] = weakref.WeakSet()
        self._attachments: list[Attachment] = []

    def admit(self, module: torch.nn.Module) -> None:
        """A model begins a request: from now on it is observed."""
        # What is wrapped round another model hands its `generate` on, and that one is the model.
        if module in self._known or target_of(module) is not module:
            return
        with _lock:
            if module not in self._known and self in _everywhere:
                self._forget_gone()
                self._attachments.append(attach(module, self._receiver_of(module)))
                self._known.add(module)

    def detach(self) -> None:
        """Take in no more models, and leave those that are observed. Safe to call twice."""
        global _everywhere  # noqa: PLW0603 - replaced as a whole, so that readers need no lock
        with _lock:
            _everywhere = tuple(kept for kept in _everywhere if kept is not self)
            for attachment in self._attachments:
                attachment.detach()
            self._attachments.clear()
            seams.release(_needed_seams())

    def _forget_gone(self) -> None:
        """A server that loads one model after the other: what is kept for those that were freed goes."""
        for attachment in self._attachments:
            if attachment.gone:
                attachment.detach()
        self._attachments = [kept for kept in self._attachments if not kept.gone]


class _Observed:
    """A module in the registry, and all who trace it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.receivers: tuple[Receiver, ...] = ()
        self.loop_receivers: tuple[Receiver, ...] = ()
        self.companions = companions_of(module)
        gone = weakref.ref(module)

        def open_request(entered_ns: int) -> RawRequest | None:
            instance = gone()
            return (
                None
                if instance is None
                else _open_request(entered_ns, self.drawn(self.loop_receivers), instance, (), {}, loop=True)
            )

        self.loops = Loops(module, open_request)

    def add(self, receiver: Receiver) -> None:
        self._set((*self.receivers, receiver))

    def remove(self, receiver: Receiver) -> None:
        self._set(tuple(kept for kept in self.receivers if kept is not receiver))

    def _set(self, receivers: tuple[Receiver, ...]) -> None:
        self.receivers = tuple(sorted(receivers, key=_gives_way))
        self.loop_receivers = tuple(receiver for receiver in receivers if not _gives_way(receiver))

    @property
    def odds(self) -> tuple[float, ...]:
        """The shares that chance decides by; none where somebody observes every request, or nobody any."""
        shares = tuple(each.observed_share for each in self.receivers)
        return shares if any(shares) and max(shares) < 1 else ()

    @staticmethod
    def drawn(receivers: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
        """Who observes the request that begins now: of those that want a share of them, chance decides."""
        wanted = [(each, each.observed_share) for each in receivers]
        return tuple(each for each, share in wanted if share >= 1 or random() < share)  # noqa: S311 - a sample, no secret


def _gives_way(receiver: Receiver) -> bool:
    return bool(getattr(receiver, "gives_way", False))


class _Opened(NamedTuple):
    """A running `generate`; `raw` only for the outermost one of a request, the prompt's length only within one."""

    frame: Frame
    raw: RawRequest | None = None
    inner_prompt_len: int | None = None


def attach(model: object, receiver: Receiver) -> Attachment:
    """Observe every `generate` of a model.

    Args:
        model: A `torch.nn.Module` with `generate`, possibly compiled or wrapped.
        receiver: Called on the generating thread after each request.

    Returns:
        A handle whose `detach` leaves model and classes as they were.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
    """
    module = target_of(model)
    with _lock:
        observed = _registry.get(module)
        if observed is None:
            observed = _registry[module] = _Observed(module)
        seams.wrap(_all_seams(module, observed.companions))
        observed.add(receiver)
        _GC.start()
    if receiver.deep_every or receiver.counters:  # not under the lock, which running requests may need: on CUDA seconds
        deep.switch_on(cuda=bool(cuda_devices_of(module)), warm=bool(receiver.deep_every))
    return Attachment(module, receiver)


def attach_every(receiver_of: Callable[[torch.nn.Module], Receiver]) -> EveryAttachment:
    """Observe every `generate` of every model of transformers in this process, also of models and classes to come.

    Nothing is done to a model before its first request. Where parts of transformers have not been loaded yet, call
    `look_again` once they have.

    Args:
        receiver_of: Makes the receiver of a model, on the thread and in the moment of its first request.

    Returns:
        A handle whose `detach` leaves models and classes as they were.
    """
    global _everywhere  # noqa: PLW0603 - see EveryAttachment.detach
    every = EveryAttachment(receiver_of)
    _everywhere = (*_everywhere, every)
    look_again()
    return every


def look_again() -> None:
    """Modules or classes of transformers have been loaded: where every model is observed, theirs are too."""
    # Whoever calls may be importing, and whoever has the lock may be waiting for that import to end.
    if not _everywhere or not _lock.acquire(timeout=LOCK_WAIT_S):
        return
    try:
        seams.wrap(_entrances())
    finally:
        _lock.release()


def target_of(model: object) -> torch.nn.Module:
    """The module whose forwards really run, behind torch.compile, DDP and PEFT wrappers.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
    """
    import torch  # noqa: PLC0415 - torch loads with the first model, not with the package

    if not isinstance(model, torch.nn.Module):
        raise NotAModelError(
            f"trace() needs a torch.nn.Module with generate, not {type(model).__name__}: hand it the loaded model"
        )
    module: torch.nn.Module = model
    for _ in range(8):
        inner = _wrapped_by(module)
        if inner is None:
            break
        module = inner
    return module


def _wrapped_by(module: torch.nn.Module) -> torch.nn.Module | None:
    """One layer further in, for the wrappers whose own hooks never fire in `generate`."""
    kind = type(module).__name__
    inner: Any = None
    if kind == "OptimizedModule":
        inner = getattr(module, "_orig_mod", None)
    elif kind in {"DistributedDataParallel", "DataParallel"}:
        inner = getattr(module, "module", None)
    elif hasattr(module, "peft_config") and callable(base := getattr(module, "get_base_model", None)):
        inner = base()
    return inner if inner is not module else None


def after_fork() -> None:
    """In a forked child: requests of the parent's are not ours to finish, and its locks are nobody's."""
    global _lock  # noqa: PLW0603 - a lock is replaced, not shared
    _lock = threading.RLock()
    deep.after_fork()
    sync_points.after_fork()
    counters.after_fork()
    BUDGET.after_fork()
    TRAFFIC.reset()
    continuous.LOOPS.after_fork()
    restart_request_ids()
    frame = _current()
    if frame is not None:
        frame.request.dead = True
        frame.module = None
    for observed in list(_registry.values()):
        observed.loops.forget()


def active_requests() -> bool:
    """Whether any traced `generate` is running in this process."""
    return TRAFFIC.active() or continuous.LOOPS.active()


def _seams(model_class: type) -> list[Seam]:
    """Where transformers of this version can be wrapped: (class, attribute, what makes the wrap)."""
    place = versions.GENERATION
    on_model: dict[str, Wrap] = {
        "generate": _calling(_around_generate),
        "prefill": _calling(_around_prefill),
        "chunks": _calling(_around_chunks),
        "assisted": _calling(_around_assisted),
        "compiled": _calling(_around_compiled_call),
    }
    if versions.waits_inline():
        on_model["stop, inline"] = _timed_inline_check
    on_classes: dict[str, Wrap] = {
        "stop": _timed_stop_check,
        "streamer": _calling(_around_streamer_init),
        "guidance": _calling(_around_side_pass),
        "draft layers": _watched_call,
    }
    found = [(owner, place[key].name, wrap) for key, wrap in on_model.items() for owner in _definers(model_class, key)]
    found.append((model_class, "__call__", _watched_call))
    for key, wrap in on_classes.items():
        owner = versions.found(place[key], load=True)
        if owner is not None:
            found.append((owner, place[key].name, wrap))
    # What torch.compile made of a model before we came holds the bare `__call__`: it is watched from outside.
    compiled = getattr(seams.loaded("torch._dynamo.eval_frame"), "OptimizedModule", None)
    if compiled is not None:
        found.append((compiled, "__call__", _watched_call))
    return [*found, *continuous.seams(_begin_queued, _registry.__contains__)]


def _needed_seams() -> Iterator[Seam]:
    """The seams of all that is observed now."""
    for module, observed in list(_registry.items()):
        yield from _all_seams(module, observed.companions)
    if _everywhere:
        yield from _entrances()


def _entrances() -> Iterator[Seam]:
    """Where a model that nobody has named begins its first request, and where its streamer is made before that."""
    mixin = versions.found(versions.GENERATION["generate"])
    if mixin is None:
        return
    yield mixin, "__init_subclass__", _around_subclassing
    for owner in (mixin, *_below(mixin)):
        yield from _entrance(owner)
    place = versions.GENERATION["streamer"]
    streamer = versions.found(place)
    if streamer is not None:
        yield streamer, place.name, _calling(_around_streamer_init)
    yield from continuous.seams(_begin_queued, _registry.__contains__)


def _entrance(owner: type) -> Iterator[Seam]:
    name = versions.GENERATION["generate"].name
    if name in owner.__dict__:
        yield owner, name, _calling(_around_generate)


def _below(owner: type) -> Iterator[type]:
    child: type
    for child in owner.__subclasses__():
        yield child
        yield from _below(child)


def _around_subclassing(owner: type, original: Any) -> Any:  # noqa: ANN401 - a class method, or nothing
    """A class with a `generate` of its own may be made after we came."""

    def subclassed(cls: Any, /, **kwargs: Any) -> None:  # noqa: ANN401 - a class, and whatever its statement says
        if original is seams.ABSENT:
            super(owner, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]  # it is one
        else:
            original.__get__(None, cls)(**kwargs)
        try:
            _look_at(cls)
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's class statement
            notices.fault("capture-failed", error)

    return classmethod(subclassed)


def _look_at(cls: type) -> None:
    """A class has been made; without its wrap its requests begin where it calls the `generate` it inherits."""
    if _everywhere and _lock.acquire(timeout=LOCK_WAIT_S):  # as in look_again
        try:
            seams.wrap(_entrance(cls))
        finally:
            _lock.release()


def _admit(instance: Any) -> None:  # noqa: ANN401 - a model
    """Where every model is observed, this one is from now on."""
    try:
        for every in _everywhere:
            every.admit(instance)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)


def _definers(model_class: type, key: str) -> Iterator[type]:
    """The classes of a model that define a method of this place."""
    return (owner for owner in model_class.__mro__ if versions.GENERATION[key].name in owner.__dict__)


def _calling(around: Callable[..., Any]) -> Wrap:
    return lambda _owner, original: wrapt.FunctionWrapper(original, around)


def _all_seams(module: object, companions: Companions) -> Iterator[Seam]:
    """The seams of a model and of its companions."""
    yield from _seams(type(module))
    for each, role in list(companions.items()):
        if role == ENCODER:
            yield type(each), "__call__", _watched_call
        else:
            yield from _seams(type(each))


def _bring(companions: Companions, instance: torch.nn.Module, assistant: object) -> None:
    """A call brings its assistant along: it is observed too, as long as the model is."""
    try:
        module = target_of(assistant)
    except NotAModelError:  # generate will say so
        return
    with _lock:
        if module is not instance and module not in companions:
            companions.update(companions_of(module))
            companions[module] = ASSISTANT
            seams.wrap(_all_seams(module, companions))


def _watched_call(owner: type, original: Any) -> Callable[..., Any]:  # noqa: ANN401 - a function, or nothing
    """What stands in for `__call__` of a model's class."""
    return _watched(seams.below(owner, "__call__", original))


def _watched(below: Any) -> Callable[..., Any]:  # noqa: ANN401 - see forward.watched
    import torch  # noqa: PLC0415 - a model is there, so torch is loaded

    call = watched(below, torch.compiler.is_compiling, _other_frame, _step_aside)
    seams.hide_from_dynamo(call)
    seams.hide_from_dynamo(encoded)
    own = (_other_frame, _step_aside, Frame.look, LoopFrame.look, Frame.shape, Request.next_chunk, note_encoded)
    measuring = (DeepMeter, NestedMeters, PassMeter, CountingMeter, RangeMeter)
    meters = [part for meter in measuring for part in (meter.begin, meter.end)]
    for called in (*own, *meters):
        seams.hide_from_dynamo(called, with_calls=True)
    return call


def _other_frame(frame: Frame | None, module: object) -> Frame | None:
    """The frame for a forward that is not plainly the next of the running frame; None where it is not recorded."""
    try:
        if frame is None:
            observed = _registry.get(module) or _registry.get(getattr(module, "_orig_mod", module))
            found = observed.loops.frame() if observed is not None and observed.loop_receivers else None
            return found if isinstance(found, Frame) else None
        request = frame.request
        # Within a pass the outer forward holds the time; another thread may have been given a copy of our context.
        if request.dead or frame.thread != threading.get_ident():
            return None
        role = request.companions.get(module)
        if role == ENCODER:
            return frame.other(module, Flag.ENCODE) if request.in_pass != ENCODING else None
        drafts = role is not None or (frame.flags & Flag.ASSISTED and type(module).__name__ == versions.DRAFT_LAYERS)
        if request.in_pass or not (drafts or module in _registry):
            return None
        return frame.other(module, frame.flags | Flag.FOREIGN)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        if frame is None:
            notices.fault("capture-failed", error)
        else:
            _step_aside(frame, error)
        return None


def _around_generate(
    wrapped: Callable[..., Any], instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever generate returns
    if _everywhere and not _inside():
        _admit(instance)
    observed = _registry.get(instance)
    drawn, odds = _draw(observed)
    began_ns = _CLOCK.now_ns() if odds else 0
    opened, given = _open(instance, observed, drawn, args, kwargs)
    result = _generated(opened, wrapped, args, given)
    # Observed, or left out by chance; what somebody refused for a reason is in neither arm.
    if odds and (opened is not None or not drawn):
        wall_ns = _CLOCK.now_ns() - began_ns
        try:
            arms.note(instance, args, kwargs, result, wall_ns, odds=odds, observed=opened is not None)
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            notices.fault("capture-failed", error)
    return result


def _inside() -> bool:
    """Whether a call comes from within a request of this thread, its streamer aside."""
    parent = _current()
    return parent is not None and not parent.request.in_put and parent.thread == threading.get_ident()


def _draw(observed: _Observed | None) -> tuple[tuple[Receiver, ...], tuple[float, ...]]:
    """Who observes the call that begins, and the odds by which that was decided; nobody after a fault of ours."""
    try:
        if observed is None:
            return (), ()
        return observed.drawn(observed.receivers), () if _current() is not None else observed.odds
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
        return (), ()


def _generated(
    opened: _Opened | None, wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever generate returns
    if opened is None and _current() is None:
        return wrapped(*args, **kwargs)
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


def _around_prefill(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever the prefill returns
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.IN_PREFILL, wrapped, args, kwargs)


def _around_chunks(
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


def _around_assisted(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - what generate returns
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    return _flagged(frame, Flag.ASSISTED, wrapped, args, kwargs)


def _around_side_pass(
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


def _around_compiled_call(
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


def _timed_stop_check(_owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """The stop check with a mark."""
    return timed_stop_check(original, _step_aside)


def _timed_inline_check(owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """The same for versions whose loop reads on the host by itself whether it is over."""
    timed = _timed_stop_check(owner, original)

    @functools.wraps(original)
    def inline_check(self: object, over: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        # The first question comes before the first token.
        if over is False or _current() is None or not versions.called_in_token_loop():
            return original(self, over, *args, **kwargs)
        return timed(self, over, *args, **kwargs)

    return inline_check


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


_GC = GcMeter(_CLOCK, _collected)


def _step_aside(frame: Frame, error: Exception) -> None:
    with contextlib.suppress(Exception):  # where it is no frame, there is nothing to step aside from
        frame.request.dead = True
        frame.module = None
        frame.flags = Flag.ASSISTANT  # the stop check looks at this alone: it writes nothing any more either
    notices.fault("capture-failed", error)


def _open(
    instance: torch.nn.Module,
    observed: _Observed | None,
    drawn: tuple[Receiver, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[_Opened | None, dict[str, Any]]:
    """The frame of this call and the arguments to go on with; (None, kwargs) where the call is not ours."""
    parent = _current()
    inside = _inside()
    if observed is None and not (inside and parent is not None and instance in parent.request.companions):
        return None, kwargs
    try:
        if inside and parent is not None:
            opened = _open_inner(parent.request, instance, args, kwargs)
            return (opened if isinstance(opened.frame, Frame) else None), kwargs
        return (None, kwargs) if observed is None else _open_outer(observed, drawn, instance, args, kwargs)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
        return None, kwargs


def _open_outer(
    observed: _Observed,
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
    if assistant is not None and isinstance(request.companions, weakref.WeakKeyDictionary):
        _bring(request.companions, instance, assistant)
    given = kwargs.get("past_key_values")
    return Frame(request, instance, given=kwargs.get("cache_params") if given is None else given)


def _open_inner(request: Request, instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Opened:
    """`generate` within `generate` is one request: an assistant, or a model that calls itself in windows."""
    frame = _frame_of(request, instance, kwargs)
    if is_assistant(kwargs) or request.companions.get(instance) == ASSISTANT:
        frame.flags |= Flag.ASSISTANT
        return _Opened(frame)
    return _Opened(frame, inner_prompt_len=prompt_len(instance, args, kwargs))


def _caller_context(streamer: object) -> object | None:
    """The caller's OpenTelemetry context: of this thread, or of the one that made the streamer; None without a span.

    A thread starts with an empty context, and `generate` in a thread with a streamer is how transformers streams.
    """
    context = opentelemetry.context.get_current()
    if opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
        return context
    return _streamer_contexts.get(streamer) if streamer is not None else None


def _around_streamer_init(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - None
    try:
        context = opentelemetry.context.get_current()
        if opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
            _streamer_contexts[instance] = context
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
    return wrapped(*args, **kwargs)


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
    begun = _begin(receivers, started_unix_ns, _caller_context(kwargs.get("streamer")), kwargs)
    if begun is None:
        return None
    request_id, takers = begun
    request = Request(entered_ns=entered, started_unix_ns=started_unix_ns, clock=_CLOCK)
    request.meter = _meter_of(instance, request, [receiver for receiver, _ in takers], loop=loop)
    return RawRequest(
        request,
        hold(args, kwargs),
        weakref.ref(instance),
        request_id=request_id,
        begun=takers,
    )


def _meter_of(
    instance: torch.nn.Module, request: Request, takers: Sequence[Receiver], *, loop: bool
) -> ForwardMeter | None:
    """What measures within the forwards of a request, and puts ranges around them; None where nothing does."""
    ranges = next((receiver.ranges for receiver in takers if receiver.ranges is not None), None)
    measuring = _measuring_of(instance, request, takers, loop=loop)
    return measuring if ranges is None else RangeMeter(ranges, measuring)


def _measuring_of(
    instance: torch.nn.Module, request: Request, takers: Sequence[Receiver], *, loop: bool
) -> ForwardMeter | None:
    timing: ForwardMeter | None = meter_of(
        instance, request, plug_every=max(receiver.plug_every for receiver in takers)
    )
    # Nobody says when a hand-written loop is over, and a subscription must not outlast its request.
    counts = not loop and any(receiver.counters for receiver in takers)
    sampling: ForwardMeter | None = counting_of(request, driver_counter(instance)) if counts else None
    every = [receiver.deep_every for receiver in takers if receiver.deep_every]
    if sampling is None and every:  # not both: there is room for one user of CUPTI
        sampling = DeepMeter(instance, request, min(every), loop=loop)
    if sampling is None or timing is None:
        return sampling or timing
    return NestedMeters(sampling, timing)


def driver_counter(module: torch.nn.Module) -> Counter | None:
    """What counts at the driver for a model; None where it lies on no CUDA device, or nothing can."""
    return counters.counter() if cuda_devices_of(module) else None


def _begin(
    receivers: tuple[Receiver, ...], started_unix_ns: int, context: object | None, options: Mapping[str, Any]
) -> tuple[str, tuple[tuple[Receiver, Begun], ...]] | None:
    """The id of a request that begins, and who takes it; None where nobody wants it."""
    request_id = new_request_id()
    wanted: list[tuple[Receiver, Begun]] = []
    claimed = False
    for receiver in receivers:
        begun = receiver.begin(request_id, started_unix_ns, context, options, claimed)
        if begun is not None:
            wanted.append((receiver, begun))
            claimed = claimed or begun.claims
    return (request_id, tuple(wanted)) if wanted else None


def _begin_queued(
    module: object, started_unix_ns: int, options: Mapping[str, Any]
) -> tuple[str, tuple[tuple[Receiver, Begun], ...]] | None:
    """A request that is queued for continuous batching, in the thread that queues it."""
    _admit(module)
    observed = _registry.get(module)
    return (
        None
        if observed is None
        else _begin(observed.drawn(observed.receivers), started_unix_ns, _caller_context(None), options)
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
        request.trim()
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
