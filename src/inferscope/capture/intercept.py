"""Attaching to a model: wraps on its classes, gated by a registry of the modules that are traced.

Everything that names a part of transformers stands here. Nothing is put on the module itself, so that a traced model
can still be copied, pickled, moved, compiled and freed, and is the same model afterwards. `module.forward` is never
replaced: that breaks deepcopy, pickle, accelerate's own hook and transformers' look at the forward's signature.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import opentelemetry.context
import opentelemetry.trace
import wrapt

from inferscope import notices
from inferscope.capture.calls import hold, hold_result, is_assistant, is_assisted
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.forward import watched
from inferscope.capture.frames import CURRENT, Flag, Frame, Mark, Request
from inferscope.capture.resolve import RawRequest, new_request_id
from inferscope.errors import NoGenerateError, NotAModelError
from inferscope.meters.clock import SystemClock
from inferscope.meters.host import GcMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from inferscope.capture.resolve import Begun
    from inferscope.meters.clock import Clock

__all__ = ["Attachment", "Receiver", "active_requests", "attach", "target_of"]

_CLOCK: Clock = SystemClock()
_current = CURRENT.get
_lock = threading.RLock()
_registry: weakref.WeakKeyDictionary[object, _Observed] = weakref.WeakKeyDictionary()
_streamer_contexts: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()
_wraps: dict[tuple[type, str], _ClassWrap] = {}


class Receiver(Protocol):
    """Who gets the finished requests of a model. Both methods run on the generating thread and return at once."""

    keep_samples: bool

    def begin(
        self, request_id: str, started_unix_ns: int, context: object | None, options: Mapping[str, Any]
    ) -> Begun | None:
        """A request begins: whether it is wanted.

        Args:
            request_id: Its identity.
            started_unix_ns: Wall-clock time of its entry.
            context: The caller's OpenTelemetry context; None where it has no span.
            options: The keyword arguments of `generate`.

        Returns:
            What comes back with the finished request; None where it is not to be observed.
        """

    def __call__(self, raw: RawRequest, begun: Begun) -> None:
        """Take a finished request, and what `begin` returned for it."""

    def abandon(self, request_id: str) -> None:
        """A request that began will not be finished: a fault of ours ended it."""


class Attachment:
    """What `attach` returns: keeps one receiver attached to one model until `detach`."""

    def __init__(self, module: torch.nn.Module, receiver: Receiver) -> None:
        """Remember the pair; `attach` does the work."""
        self._module = weakref.ref(module)
        self._receiver: Receiver | None = receiver

    def detach(self) -> None:
        """Take the receiver off; with the last one, hooks and wraps go too. Safe to call twice."""
        with _lock:
            receiver, self._receiver = self._receiver, None
            if receiver is None:
                return
            _GC.stop()
            module = self._module()
            observed = _registry.get(module) if module is not None else None
            if module is not None and observed is not None:
                observed.receivers = tuple(kept for kept in observed.receivers if kept is not receiver)
                if not observed.receivers:
                    del _registry[module]
            _release_classes()


class _Observed:
    """A module in the registry, and all who trace it."""

    def __init__(self) -> None:
        self.receivers: tuple[Receiver, ...] = ()


class _Opened(NamedTuple):
    """A running `generate`; `raw` only for the outermost one of a request."""

    frame: Frame
    raw: RawRequest | None = None


_ABSENT = object()


class _ClassWrap:
    """A wrapped class attribute and what stood there before: perhaps nothing, where it was inherited."""

    def __init__(self, owner: type, name: str, wrap: Callable[[type, Any], Any]) -> None:
        self.owner, self.name = owner, name
        self.original = owner.__dict__.get(name, _ABSENT)
        self.ours = wrap(owner, self.original)
        setattr(owner, name, self.ours)

    def restore(self) -> None:
        # Somebody may have wrapped on top of us: theirs stays, and ours, gated by the registry, passes through.
        if self.owner.__dict__.get(self.name) is not self.ours:
            return
        if self.original is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


def attach(model: object, receiver: Receiver) -> Attachment:
    """Observe every `generate` of a model.

    Args:
        model: A `torch.nn.Module` with `generate`, possibly compiled or wrapped.
        receiver: Called on the generating thread after each request.

    Returns:
        A handle whose `detach` leaves model and classes as they were.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
        NoGenerateError: It has no `generate`.
    """
    module = target_of(model)
    with _lock:
        for owner, name, wrap in _seams(type(module)):
            if (owner, name) not in _wraps:
                _wraps[owner, name] = _ClassWrap(owner, name, wrap)
        observed = _registry.get(module)
        if observed is None:
            observed = _registry[module] = _Observed()
        observed.receivers = (*observed.receivers, receiver)
        _GC.start()
    return Attachment(module, receiver)


def target_of(model: object) -> torch.nn.Module:
    """The module whose `generate` really runs, behind torch.compile, DDP and PEFT wrappers.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
        NoGenerateError: Neither it nor what it wraps has `generate`.
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
    if not callable(getattr(module, "generate", None)):
        raise NoGenerateError(
            f"{type(module).__name__} has no generate(): trace the model that generates, "
            "such as AutoModelForCausalLM.from_pretrained(...)"
        )
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


def active_requests() -> bool:
    """Whether any traced `generate` is running in this process."""
    return TRAFFIC.active()


def _seams(model_class: type) -> list[tuple[type, str, Callable[[type, Any], Any]]]:
    """Where transformers of this version can be wrapped: (class, attribute, what makes the wrap)."""
    wraps: dict[str, Callable[[type, Any], Any]] = {
        "generate": lambda _owner, original: wrapt.FunctionWrapper(original, _around_generate),
        "_prefill": lambda _owner, original: wrapt.FunctionWrapper(original, _around_prefill),
        "_prefill_chunking": lambda _owner, original: wrapt.FunctionWrapper(original, _around_prefill),
        "get_compiled_call": lambda _owner, original: wrapt.FunctionWrapper(original, _around_compiled_call),
    }
    seams: list[tuple[type, str, Callable[[type, Any], Any]]] = [
        (owner, name, wrap) for owner in model_class.__mro__ for name, wrap in wraps.items() if name in owner.__dict__
    ]
    seams.append((model_class, "__call__", _watched_call))
    for place, owner_name, name, wrap in (
        ("transformers.generation.utils", "StopCheck", "__call__", _timed_stop_check),  # before 5.x: read inline
        ("transformers.generation.streamers", "TextStreamer", "__init__", _remembering_init),
    ):
        try:
            seams.append((getattr(importlib.import_module(place), owner_name), name, wrap))
        except (ImportError, AttributeError):
            continue
    return seams


def _remembering_init(_owner: type, original: Any) -> Any:  # noqa: ANN401 - a function
    return wrapt.FunctionWrapper(original, _around_streamer_init)


def _watched_call(owner: type, original: Any) -> Callable[..., Any]:  # noqa: ANN401 - a function, or nothing
    """What stands in for `__call__` of a model's class."""
    if original is _ABSENT:
        definer = next(base for base in owner.__mro__[1:] if "__call__" in base.__dict__)
        below: Any = next(base for base in owner.__mro__[1:] if issubclass(base, definer))
    else:
        below = SimpleNamespace(__call__=original)
    return _watched(below)


def _watched(below: Any) -> Callable[..., Any]:  # noqa: ANN401 - see forward.watched
    import torch  # noqa: PLC0415 - a model is there, so torch is loaded

    call = watched(below, torch.compiler.is_compiling, _other_frame, _step_aside)
    _hide_from_dynamo(call)
    return call


def _hide_from_dynamo(function: Callable[..., Any]) -> None:
    """Have torch.compile leave this frame alone and begin with the one below it.

    It would otherwise trace `__call__` as the top of the graph, and nothing of ours would run any more. What torch
    offers for this in public imports half a second of compiler, so the switch below it is set; where a version has
    none, a forward compiled through `__call__` goes unseen, no more.
    """
    try:
        switch: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        skip, default = switch._FrameAction.SKIP, switch._FrameAction.DEFAULT  # noqa: SLF001 - feature-detected
        switch.set_code_exec_strategy(function.__code__, switch._FrameExecStrategy(skip, default))  # noqa: SLF001
    except (ImportError, AttributeError, TypeError):
        return


def _release_classes() -> None:
    """Restore every class that no attached module needs any more."""
    needed = {(owner, name) for module in _registry for owner, name, _ in _seams(type(module))}
    for key in [key for key in _wraps if key not in needed]:
        _wraps.pop(key).restore()


def _other_frame(frame: Frame, module: object) -> Frame | None:
    """The frame for a forward that is not plainly the next of the running frame; None where it is not recorded."""
    try:
        request = frame.request
        # Within a pass the outer forward holds the time; another thread may have been given a copy of our context.
        if request.in_pass or request.dead or frame.thread != threading.get_ident() or module not in _registry:
            return None
        return frame.other(module, Flag.FOREIGN)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        _step_aside(frame, error)
        return None


def _around_generate(
    wrapped: Callable[..., Any], instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever generate returns
    entered = _CLOCK.now_ns()
    opened, kwargs = _open(entered, instance, args, kwargs)
    if opened is None:
        return wrapped(*args, **kwargs)
    token = CURRENT.set(opened.frame)
    result, error_type = None, None
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        error_type = type(error).__qualname__
        raise
    finally:
        returned = _CLOCK.now_ns()
        CURRENT.reset(token)
        _close(opened, returned, result, error_type)
    return result


def _around_prefill(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - whatever the prefill returns
    frame = _current()
    if frame is None or frame.module is not instance:
        return wrapped(*args, **kwargs)
    frame.flags |= Flag.IN_PREFILL
    try:
        return wrapped(*args, **kwargs)
    finally:
        frame.flags &= ~Flag.IN_PREFILL


def _around_compiled_call(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - a callable
    """The compiled forward, watched from outside: it may have been compiled before we came, and holds `__call__`."""
    compiled = wrapped(*args, **kwargs)
    frame = _current()
    if frame is None or frame.module is not instance:
        return compiled
    try:
        below = SimpleNamespace(__call__=lambda _self, *args, **kwargs: compiled(*args, **kwargs))
        return functools.partial(_watched(below), instance)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        _step_aside(frame, error)
        return compiled


def _timed_stop_check(_owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
    """The stop check with a mark. A plain function: it runs once per token, and wrapt's costs thrice as much."""

    @functools.wraps(original)
    def stop_check(self: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed through
        frame = _current()
        if frame is None or frame.flags & Flag.ASSISTANT:
            return original(self, *args, **kwargs)
        now_ns = frame.now_ns
        started = now_ns()
        try:
            return original(self, *args, **kwargs)
        finally:
            # Writing integers cannot fail, and what a dead request holds is never read.
            request = frame.request
            rows, row = request.rows, request.row
            if row and not rows[row - 1]:
                rows[row - 2] = started
                rows[row - 1] = now_ns()
            else:
                request.marks.append((Mark.STOP, started, now_ns()))

    return stop_check


class TimedStreamer(wrapt.ObjectProxy[Any]):
    """The user's streamer, with the time spent in it marked; in every other respect the very same object."""

    def __init__(self, streamer: object, request: Request) -> None:
        """Stand in for a streamer during one request."""
        super().__init__(streamer)
        self._self_request = request

    def put(self, value: object) -> Any:  # noqa: ANN401 - whatever the user's streamer returns
        """Hand a token to the user's streamer."""
        return self._self_timed(self.__wrapped__.put, value)

    def end(self) -> Any:  # noqa: ANN401 - whatever the user's streamer returns
        """Tell the user's streamer that generation has ended."""
        return self._self_timed(self.__wrapped__.end)

    def _self_timed(self, method: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - passed through
        request = self._self_request
        request.in_put = True
        started = _CLOCK.now_ns()
        try:
            return method(*args)
        finally:
            request.marks.append((Mark.PUT, started, _CLOCK.now_ns()))
            request.in_put = False


def _collected(started: int, ended: int) -> None:
    frame = _current()
    if frame is not None:
        frame.request.marks.append((Mark.GC, started, ended))


_GC = GcMeter(_CLOCK, _collected)


def _step_aside(frame: Frame, error: Exception) -> None:
    frame.request.dead = True
    frame.module = None
    frame.flags = Flag.ASSISTANT  # the stop check looks at this alone: it writes nothing any more either
    notices.fault("capture-failed", error)


def _open(
    entered: int, instance: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[_Opened | None, dict[str, Any]]:
    """The frame of this call and the arguments to go on with; (None, kwargs) where the call is not ours."""
    observed = _registry.get(instance)
    if observed is None:
        return None, kwargs
    try:
        flags = Flag.ASSISTED if is_assisted(kwargs) else 0
        parent = CURRENT.get()
        if parent is not None and not parent.request.in_put and parent.thread == threading.get_ident():
            # generate within generate is one request: an assistant, or a model that calls itself in windows.
            flags |= Flag.ASSISTANT if is_assistant(kwargs) else 0
            return _Opened(Frame(parent.request, instance, flags=flags)), kwargs
        raw = _open_request(entered, observed.receivers, instance, args, kwargs)
        if raw is None:
            return None, kwargs
        if kwargs.get("streamer") is not None:
            kwargs = {**kwargs, "streamer": TimedStreamer(kwargs["streamer"], raw.request)}
        opened = _Opened(Frame(raw.request, instance, flags=flags), raw)
        TRAFFIC.enter(raw)
        raw.request.started_ns = _CLOCK.now_ns()
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
        return None, kwargs
    else:
        return opened, kwargs


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
) -> RawRequest | None:
    """The request that begins with this call; None where nobody wants it, and then next to nothing was done."""
    request_id = new_request_id()
    started_unix_ns = time.time_ns() - (_CLOCK.now_ns() - entered)  # of the entry, not of this line
    context = _caller_context(kwargs.get("streamer"))
    begun = []
    for receiver in receivers:
        wanted = receiver.begin(request_id, started_unix_ns, context, kwargs)
        if wanted is not None:
            begun.append((receiver, wanted))
    if not begun:
        return None
    return RawRequest(
        Request(entered_ns=entered, started_unix_ns=started_unix_ns, clock=_CLOCK),
        hold(args, kwargs),
        weakref.ref(instance),
        request_id=request_id,
        begun=tuple(begun),
    )


def _close(opened: _Opened, returned: int, result: object, error_type: str | None) -> None:
    """End the frame; with the outermost one, hand the finished request over."""
    request, raw = opened.frame.request, opened.raw
    try:
        if not request.dead:
            opened.frame.close()
        if raw is None:
            return
        TRAFFIC.leave(raw)
        if request.dead:
            for receiver, _ in raw.begun:
                receiver.abandon(raw.request_id)
            return
        raw.error_type = error_type
        raw.result_shape, raw.result = hold_result(result)
        request.returned_ns = returned
        request.cpu_ns = _CLOCK.thread_cpu_ns()
        request.left_ns = _CLOCK.now_ns()
        for receiver, begun in raw.begun:
            receiver(raw, begun)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
