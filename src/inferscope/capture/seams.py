"""Wrapping attributes of classes, and leaving the classes as they were.

A wrap stays as long as anybody needs it. Somebody else may wrap on top of ours: then theirs stays, and ours, which does
nothing for a model that nobody observes, passes through. Callers hold a lock of their own.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Wrap = Callable[[type, Any], Any]
    """Makes what stands in, given the class and what stood there: `ABSENT` where it was inherited."""
    Seam = tuple[type, str, Wrap]
    """A class, the attribute to wrap, and what makes the wrap."""

__all__ = ["ABSENT", "below", "hide_from_dynamo", "loaded", "release", "wrap"]

ABSENT = object()
_wraps: dict[tuple[type, str], _ClassWrap] = {}


class _ClassWrap:
    """A wrapped class attribute and what stood there before: perhaps nothing, where it was inherited."""

    def __init__(self, owner: type, name: str, wrap: Wrap) -> None:
        self.owner, self.name = owner, name
        self.original = owner.__dict__.get(name, ABSENT)
        self.ours = wrap(owner, self.original)
        setattr(owner, name, self.ours)

    def restore(self) -> None:
        if self.owner.__dict__.get(self.name) is not self.ours:
            return
        if self.original is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


def wrap(seams: Iterable[Seam]) -> None:
    """Wrap what is not wrapped yet."""
    for owner, name, make in seams:
        if (owner, name) not in _wraps:
            _wraps[owner, name] = _ClassWrap(owner, name, make)


def release(needed: Iterable[Seam]) -> None:
    """Restore every class that is not among these."""
    kept = {(owner, name) for owner, name, _ in needed}
    for key in [key for key in _wraps if key not in kept]:
        _wraps.pop(key).restore()


def below(owner: type, name: str, original: object) -> Any:  # noqa: ANN401 - a class, or a stand-in for one
    """Where what was wrapped is to be looked up at each call: in the class above, where it was inherited.

    Args:
        owner: The wrapped class.
        name: The attribute.
        original: What stood there.
    """
    if original is not ABSENT:
        return SimpleNamespace(**{name: original})
    definer = next(base for base in owner.__mro__[1:] if name in base.__dict__)
    return next(base for base in owner.__mro__[1:] if issubclass(base, definer))


def loaded(place: str) -> Any:  # noqa: ANN401 - a module, or None
    """A module of transformers; one of the compiler only where the program has loaded it, since that takes long."""
    if place.startswith("torch."):
        return sys.modules.get(place)
    try:
        return importlib.import_module(place)
    except ImportError:
        return None


def hide_from_dynamo(function: Callable[..., Any], *, with_calls: bool = False) -> None:
    """Have torch.compile leave this frame alone and begin with the one below it, or leave those alone too.

    It would otherwise trace `__call__` as the top of the graph, and nothing of ours would run any more. What torch
    offers for this in public imports half a second of compiler, so the switch below it is set; where a version has
    none, a forward compiled through `__call__` goes unseen, no more.
    """
    try:
        switch: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        skip, default = switch._FrameAction.SKIP, switch._FrameAction.DEFAULT  # noqa: SLF001 - feature-detected
        strategy = switch._FrameExecStrategy(skip, skip if with_calls else default)  # noqa: SLF001 - as above
        switch.set_code_exec_strategy(function.__code__, strategy)
    except (ImportError, AttributeError, TypeError):
        return
