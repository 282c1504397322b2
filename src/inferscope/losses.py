"""What was lost on the way out, counted by kind for the whole process, so that a metric can say it."""

from __future__ import annotations

import threading
from typing import Literal, get_args

__all__ = ["KINDS", "Kind", "after_fork", "count", "totals"]

Kind = Literal["results", "spans", "metrics"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_lock = threading.Lock()
_totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)


def count(kind: Kind, number: int = 1) -> None:
    """Count what was lost.

    Args:
        kind: "results" that were never made, "spans" that were not delivered, exports of "metrics" that failed.
        number: How many.
    """
    with _lock:
        _totals[kind] += number


def totals() -> dict[Kind, int]:
    """What was lost since the process began, by kind."""
    with _lock:
        return dict(_totals)


def after_fork() -> None:
    """In a forked child: nothing has been lost yet, and a lock that the parent's threads held is nobody's."""
    global _lock  # noqa: PLW0603 - a lock is replaced, not shared
    _lock = threading.Lock()
    _totals.update(dict.fromkeys(KINDS, 0))
