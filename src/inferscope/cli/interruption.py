"""What Ctrl-C leaves behind, for the last line that a command says."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["hint", "resumable"]

_hints: list[str] = []


@contextmanager
def resumable(how: Callable[[], str]) -> Iterator[None]:
    """Where Ctrl-C ends what is inside, its last line says what is left and how to go on.

    Args:
        how: Called after the interruption, such as `lambda: f"{done} of 40 points are in {path}; run it again"`.
    """
    try:
        yield
    except KeyboardInterrupt:
        _hints[:] = [how()]
        raise


def hint() -> str:
    """What was said since, with a colon before it; "" where there is nothing to say."""
    said = f": {_hints[0]}" if _hints else ""
    _hints.clear()
    return said
