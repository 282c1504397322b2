"""Requests that chance has left unobserved, timed beside those that are: what the comparison is made of, per model."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from inferscope.capture.calls import asked_shape, prompt_len, returned_shape
from inferscope.meters.overhead import Arms

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["arms_of", "note"]

_arms: weakref.WeakKeyDictionary[object, Arms] = weakref.WeakKeyDictionary()


def arms_of(module: Any) -> Arms:  # noqa: ANN401 - any model
    """The two arms of a model; empty ones where there is no model any more."""
    return Arms() if module is None else _arms.setdefault(module, Arms())


def note(
    module: Any,  # noqa: ANN401 - any model
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: object,
    wall_ns: int,
    *,
    odds: tuple[float, ...],
    observed: bool,
) -> None:
    """Take a request into its arm, where its shape can be told. No tensor is read.

    Args:
        module: The model.
        args: Arguments of `generate`.
        kwargs: Its keyword arguments.
        result: What it returned.
        wall_ns: How long it took, whatever we do around it included.
        odds: What chance decided by: only requests with the same ones are comparable, as what else was going on may
            have changed along with them.
        observed: Whether it was.
    """
    asked, returned = asked_shape(args, kwargs), returned_shape(result)
    prefix = prompt_len(module, args, kwargs)
    if asked is None or returned is None or prefix is None or returned[1] <= prefix:
        return
    arms_of(module).add((asked, returned, odds), wall_ns, returned[1] - prefix, observed=observed)
