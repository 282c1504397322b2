"""Where the wraps of observed models stand: of each model, of its companions, and of models that nobody has named.

The names that transformers has for these places are in versions.py; seams.py puts a wrap there and takes it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

from inferscope import notices
from inferscope.capture import continuous, registry, seams, versions
from inferscope.capture.borders import around_generate, begin_queued
from inferscope.capture.companions import ENCODER
from inferscope.capture.receivers import around_streamer_init
from inferscope.capture.registry import EVERYWHERE, REGISTRY
from inferscope.capture.watching import (
    around_assisted,
    around_chunks,
    around_compiled_call,
    around_prefill,
    around_side_pass,
    inline_check_wrap,
    stop_check_wrap,
    watched_call,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.capture.companions import Companions
    from inferscope.capture.seams import Seam, Wrap

__all__ = ["all_seams", "look_again", "needed_seams"]


def all_seams(module: object, companions: Companions) -> Iterator[Seam]:
    """The seams of a model and of its companions."""
    yield from _seams(type(module))
    for each, role in list(companions.items()):
        if role == ENCODER:
            yield type(each), "__call__", watched_call
        else:
            yield from _seams(type(each))


def _seams(model_class: type) -> list[Seam]:
    """Where transformers of this version can be wrapped: (class, attribute, what makes the wrap)."""
    place = versions.GENERATION
    on_model: dict[str, Wrap] = {
        "generate": _calling(around_generate),
        "prefill": _calling(around_prefill),
        "chunks": _calling(around_chunks),
        "assisted": _calling(around_assisted),
        "compiled": _calling(around_compiled_call),
    }
    if versions.waits_inline():
        on_model["stop, inline"] = inline_check_wrap
    on_classes: dict[str, Wrap] = {
        "stop": stop_check_wrap,
        "streamer": _calling(around_streamer_init),
        "guidance": _calling(around_side_pass),
        "draft layers": watched_call,
    }
    found = [(owner, place[key].name, wrap) for key, wrap in on_model.items() for owner in _definers(model_class, key)]
    found.append((model_class, "__call__", watched_call))
    for key, wrap in on_classes.items():
        owner = versions.found(place[key], load=True)
        if owner is not None:
            found.append((owner, place[key].name, wrap))
    # What torch.compile made of a model before we came holds the bare `__call__`: it is watched from outside.
    compiled = getattr(seams.loaded("torch._dynamo.eval_frame"), "OptimizedModule", None)
    if compiled is not None:
        found.append((compiled, "__call__", watched_call))
    return [*found, *continuous.seams(begin_queued, REGISTRY.__contains__)]


def _definers(model_class: type, key: str) -> Iterator[type]:
    """The classes of a model that define a method of this place."""
    return (owner for owner in model_class.__mro__ if versions.GENERATION[key].name in owner.__dict__)


def _calling(around: Callable[..., Any]) -> Wrap:
    return lambda _owner, original: wrapt.FunctionWrapper(original, around)


def needed_seams() -> Iterator[Seam]:
    """The seams of all that is observed now."""
    for module, observed in list(REGISTRY.items()):
        yield from all_seams(module, observed.companions)
    if EVERYWHERE:
        yield from entrances()


def entrances() -> Iterator[Seam]:
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
        yield streamer, place.name, _calling(around_streamer_init)
    yield from continuous.seams(begin_queued, REGISTRY.__contains__)


def _entrance(owner: type) -> Iterator[Seam]:
    name = versions.GENERATION["generate"].name
    if name in owner.__dict__:
        yield owner, name, _calling(around_generate)


def _below(owner: type) -> Iterator[type]:
    child: type
    for child in owner.__subclasses__():
        yield child
        yield from _below(child)


def look_again() -> None:
    """Modules or classes of transformers have been loaded: where every model is observed, theirs are too."""
    # Whoever calls may be importing, and whoever has the lock may be waiting for that import to end.
    if not EVERYWHERE or not registry.LOCK.acquire(timeout=registry.LOCK_WAIT_S):
        return
    try:
        seams.wrap(entrances())
    finally:
        registry.LOCK.release()


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
    if EVERYWHERE and registry.LOCK.acquire(timeout=registry.LOCK_WAIT_S):  # as in look_again
        try:
            seams.wrap(_entrance(cls))
        finally:
            registry.LOCK.release()
