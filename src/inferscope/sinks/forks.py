"""Which metrics of requests are a forked child's own.

OpenTelemetry's SDK goes on in a child where the parent's histograms stood, and has no way to begin them anew. So the
child makes its instruments again, under a scope that no parent has had, and what sends them leaves the inherited ones
away. That is possible only where everything a provider sends goes through us.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SCOPE", "begin_anew", "begins_anew", "forked", "is_own", "scope_attributes"]

SCOPE = "inferscope"
_KEY = "inferscope.forks"

_forks = 0
_anew: weakref.WeakSet[object] = weakref.WeakSet()


def begin_anew(provider: object) -> None:
    """Have children make their instruments on this meter provider again.

    Args:
        provider: One whose metrics go nowhere but through exporters that ask `is_own`.
    """
    _anew.add(provider)


def begins_anew(provider: object) -> bool:
    """Whether children make their instruments on this meter provider again."""
    return provider in _anew


def forked() -> bool:
    """Whether this process was forked from one that had loaded this module."""
    return _forks > 0


def scope_attributes() -> dict[str, int] | None:
    """What tells the scope of this process's instruments from that of its parents; None where it has none."""
    return {_KEY: _forks} if _forks else None


def is_own(attributes: Mapping[str, object] | None) -> bool:
    """Whether instruments of a scope with these attributes were made in this process."""
    return (attributes or {}).get(_KEY, 0) == _forks


def _after_fork_in_child() -> None:
    global _forks  # noqa: PLW0603 - which process this is
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
