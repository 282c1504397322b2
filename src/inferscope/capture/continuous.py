"""Continuous batching of transformers: what happens where its loop is watched. versions.py says where that is.

There is no `generate` and no frame of it: requests are added to a manager, by any thread, and a background thread
schedules some of them, runs one forward for all of these, and takes their tokens in. The wraps stand on the classes.
A manager's input queue, which its processor holds too, tells which loop a call belongs to, and is known in `LOOPS`
only while the manager's model is traced. What happens is told to batcher.py; shares.py says whose time it was.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from inferscope import notices
from inferscope.capture import versions
from inferscope.capture.batcher import CHILD, Batcher, Batchers, muted
from inferscope.capture.frames import CURRENT
from inferscope.capture.shares import SharedRequest
from inferscope.meters.clock import SystemClock
from inferscope.records import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from inferscope.capture.requests import Begun
    from inferscope.capture.seams import Seam, Wrap

    Method = Callable[..., Any]
    Begin = Callable[[object, int, Mapping[str, Any]], tuple[str, tuple[tuple[Any, Begun], ...]] | None]

__all__ = ["LOOPS", "seams"]

LOOPS = Batchers()
_MUTED = muted()
_OPTIONS = ("temperature", "top_p", "top_k")
_now = SystemClock().now_ns


class _Adding(NamedTuple):
    """An `add_request` that is running in this thread, and the requests that came of it."""

    begin: Begin
    manager: Any
    entered_ns: int
    kwargs: Mapping[str, Any]
    added: list[tuple[Batcher, str]]


class _Here(threading.local):
    """What this thread is doing. No context variables: they would be handed on to the callbacks of an event loop."""

    adding: _Adding | None = None
    loop: Batcher | None = None
    settle: Callable[[], None] | None = None


_here = _Here()


def seams(begin: Begin, is_traced: Callable[[object], bool]) -> list[Seam]:
    """Where continuous batching of this version of transformers can be wrapped: (class, attribute, what wraps it).

    Args:
        begin: Begins a request of a model, given its wall-clock time and what was asked, by the names that `generate`
            has for it: its id and who takes it; None where nobody wants it.
        is_traced: Whether anybody observes a model.

    Returns:
        Nothing where it is not loaded; where it has other seams, what says so once.
    """
    places = versions.CONTINUOUS
    manager = versions.found(places["add"])
    if manager is None:
        return []
    wraps: dict[str, Wrap] = {
        "add": _around_add(begin),
        "cancel": _around_cancel,
        "loop": _around_loop,
        "prepare": _around_prepare,
        "pass": _around_pass,
        "update": _around_update,
        "failure": _around_failure,
        "warmup": _unrecorded,
        "delivery": _around_delivery,
        "state": _around_state,
        "read": _around_read,
        "read, outputs": _around_read,
        "read, ahead": _around_read,
    }
    owners = {key: versions.found(place) for key, place in places.items()}
    found = [(owner, places[key].name, wraps[key]) for key, owner in owners.items() if owner is not None]
    if len(found) == len(places):
        return found
    unseen = {"add": _unseen(is_traced), "loop": _unrecorded}
    return [(manager, places[key].name, wrap) for key, wrap in unseen.items() if owners[key] is not None]


def _loop_of(holder: Any) -> Batcher | None:  # noqa: ANN401 - a manager or a processor
    """The loop that a manager or processor belongs to; None where it has no observed requests."""
    try:
        return LOOPS.get(holder.input_queue)
    except (AttributeError, TypeError):  # of a tensor-parallel group only the first process has a queue
        return None


def _host_io(processor: Any) -> Any:  # noqa: ANN401 - transformers' class
    """Where the requests of the current pass stand; of two alternating places where passes are queued ahead."""
    io = processor.inputs_and_outputs
    pairs = getattr(io, "io_pairs", None)
    return io if pairs is None else pairs[io.current_pair].host_io


def _begin_pass(loop: Batcher, processor: Any, model: object) -> None:  # noqa: ANN401 - transformers' class
    entered = _now()
    host = _host_io(processor)
    futures = host.requests_in_batch
    states = tuple(future.state for future in futures)
    slots = [
        (
            state.request_id,
            state.position_offset - future.query_length,  # it stands at the end of this pass already
            len(state.initial_tokens),
            future.query_length,
            int(future.has_new_token),
        )
        for future, state in zip(futures, states, strict=True)
    ]
    loop.begin_pass(id(host), model, slots, states)
    loop.own_setup(entered)


def _begin_update(loop: Batcher, processor: Any) -> None:  # noqa: ANN401 - transformers' class
    states = loop.begin_update(id(_host_io(processor)))
    waiting = processor.scheduler.waiting_requests
    _here.loop = loop
    _here.settle = lambda: loop.settle(_end(state) for state in states if _is_over(state, waiting))


def _settle() -> None:
    settle, _here.settle = _here.settle, None
    if settle is not None:
        settle()


def _is_over(state: Any, waiting: Mapping[str, object]) -> bool:  # noqa: ANN401 - transformers' class
    """Whether a request has come to its end; one whose cache was given up looks so too, and is waiting."""
    return state.status.name == "FINISHED" and state.request_id not in waiting


def _end(state: Any) -> tuple[str, int, str | None]:  # noqa: ANN401 - transformers' class
    """Key, tokens and reason of a request that is over."""
    # What was generated before the cache was given up stands in the prompt since.
    before = len(state.initial_tokens) - state._true_initial_tokens if state._true_initial_tokens else 0  # noqa: SLF001
    stopped = state.generated_tokens and state.generated_tokens[-1] in state._eos_token_ids  # noqa: SLF001
    return state.request_id, before + len(state.generated_tokens), "stop" if stopped else "length"


def _drop_cancelled(loop: Batcher, processor: Any) -> None:  # noqa: ANN401 - transformers' class
    scheduler = processor.scheduler
    for key in tuple(loop.cancelled):
        if key not in scheduler.active_requests and key not in scheduler.waiting_requests:
            loop.cancelled.discard(key)
            loop.abort(key, "cancelled")


def _enter(adding: _Adding, state: Any) -> None:  # noqa: ANN401 - transformers' class
    """Begin the request of a state, and those of its copies: the other answers to the same prompt."""
    entered = _now()
    model, config = adding.manager.model, adding.manager.generation_config
    # A default of the model's is nothing that the caller said.
    given = config if config is not getattr(model, "generation_config", None) else None
    said = {name: adding.kwargs.get(name, getattr(given, name, None)) for name in _OPTIONS}
    asked = {**said, "max_new_tokens": state.max_new_tokens, "streamer": True if state.streaming else None}
    started_unix_ns = time.time_ns() - (_now() - adding.entered_ns)
    for key in _keys(state):
        begun = adding.begin(model, started_unix_ns, asked)
        if begun is None:
            continue
        request = SharedRequest(
            entered_ns=adding.entered_ns,
            started_unix_ns=started_unix_ns,
            prompt_len=len(state.initial_tokens),
            module=weakref.ref(model),
            request_id=begun[0],
            begun=begun[1],
            options=RequestOptions(max_new_tokens=state.max_new_tokens, streaming=bool(state.streaming), **said),
        )
        loop = LOOPS.made(adding.manager.input_queue, model)
        request.own_ns = _now() - entered
        loop.add(key, request)
        adding.added.append((loop, key))


def _keys(state: Any) -> Iterator[str]:  # noqa: ANN401 - transformers' class
    yield state.request_id
    for number in range(state.num_children):
        yield f"{state.request_id}{CHILD}{number}"


def _unseen(is_traced: Callable[[object], bool]) -> Wrap:
    def wrap(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
        @functools.wraps(original)
        def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
            if is_traced(getattr(self, "model", None)):
                notices.warn(
                    "continuous-batching-unseen",
                    "this version of transformers batches continuously in a way inferscope does not know: requests "
                    "added to its manager are not recorded",
                )
            return original(self, *args, **kwargs)

        return add_request

    return wrap


def _unrecorded(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    """Forwards in here belong to nobody's request, nor are they a hand-written loop."""

    @functools.wraps(original)
    def unrecorded(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        token = CURRENT.set(_MUTED)
        try:
            return original(self, *args, **kwargs)
        finally:
            CURRENT.reset(token)

    return unrecorded


def _around_add(begin: Begin) -> Wrap:
    def wrap(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
        @functools.wraps(original)
        def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
            outer, adding = _here.adding, _Adding(begin, self, _now(), kwargs, [])
            _here.adding = adding
            try:
                return original(self, *args, **kwargs)
            except BaseException as error:
                for loop, key in adding.added:
                    loop.safely(loop.abort, key, type(error).__qualname__)
                raise
            finally:
                _here.adding = outer

        return add_request

    return wrap


def _around_state(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    """A request is made here, in the thread that adds it, and before its loop can see it."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, N807 - stands in for it
        original(self, *args, **kwargs)
        adding = _here.adding
        if adding is None:
            return
        try:
            _enter(adding, self)
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            notices.fault("capture-failed", error)

    return __init__


def _around_cancel(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def cancel_request(self: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        try:
            return original(self, request_id, *args, **kwargs)
        finally:
            loop = _loop_of(self)
            if loop is not None and request_id in loop.requests:
                loop.cancelled.add(request_id)

    return cancel_request


def _around_loop(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def _run_generation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        try:
            return original(self, *args, **kwargs)
        finally:
            loop = _loop_of(self)
            if loop is not None:
                fatal = versions.fatal_error(self)
                loop.safely(loop.end, "stopped" if fatal is None else type(fatal).__qualname__)

    return _run_generation_loop


def _around_prepare(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def prepare_next_batch(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        loop = _loop_of(self)
        if loop is None:
            return original(self, *args, **kwargs)
        loop.safely(loop.schedule)
        token = CURRENT.set(loop.frame)  # where a garbage collection is noted
        try:
            return original(self, *args, **kwargs)
        finally:
            CURRENT.reset(token)
            if loop.cancelled:
                loop.safely(_drop_cancelled, loop, self)

    return prepare_next_batch


def _around_pass(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def _generation_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        loop = _loop_of(self)
        if loop is not None:
            loop.safely(_begin_pass, loop, self, model)
        _here.loop = loop
        token = CURRENT.set(_MUTED if loop is None else loop.frame)
        failed = True
        try:
            result = original(self, model, *args, **kwargs)
            failed = False
            return result
        finally:
            CURRENT.reset(token)
            _here.loop = None
            if loop is not None:
                loop.safely(loop.end_pass, failed)

    return _generation_step


def _around_update(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def update_batch(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        loop = _loop_of(self)
        if loop is None:
            return original(self, *args, **kwargs)
        loop.safely(_begin_update, loop, self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _here.loop = None
            loop.safely(_settle)

    return update_batch


def _around_delivery(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    """What is about to be handed out is recorded first: whoever has a result finds its record."""

    @functools.wraps(original)
    def deliver_batch(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        loop = _here.loop
        if loop is not None:
            loop.safely(_settle)
        return original(self, *args, **kwargs)

    return deliver_batch


def _around_read(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    """Where the host waits for the device and reads tokens from it."""

    @functools.wraps(original)
    def read(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for it
        loop = _here.loop
        if loop is None or loop.reading:
            return original(self, *args, **kwargs)
        loop.reading = True
        started = _now()
        try:
            return original(self, *args, **kwargs)
        finally:
            loop.waited(started)
            loop.reading = False

    return read


def _around_failure(_owner: type, original: Any) -> Method:  # noqa: ANN401 - a method
    @functools.wraps(original)
    def _handle_request_error(self: Any, error: Any, state: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        loop = _loop_of(self)
        if loop is not None:
            loop.safely(loop.abort, getattr(state, "request_id", ""), type(error).__qualname__)
        return original(self, error, state, *args, **kwargs)

    return _handle_request_error
