"""Which implementation of the hot half runs: the C extension, or Python where that cannot be had; and why.

The extension is optional: a machine without a compiler installs all the same, and everything is recorded alike. The
fields that a pass touches stand in its structs where it is there, and in slots where it is not.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.errors import SettingError
from inferscope.settings import Settings

if TYPE_CHECKING:
    from inferscope._hot import Frame as FrameBase
    from inferscope._hot import Request as RequestBase

__all__ = ["HOT", "IMPLEMENTATION", "FrameBase", "Implementation", "RequestBase"]

_INTERFACE = 2
"""What this code expects of the extension: an editable install may hold one that was built from older sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """What runs around every forward.

    Attributes:
        name: "native", or "python".
        reason: Why it is this one.
    """

    name: str
    reason: str


def _load() -> tuple[Any, Implementation]:
    """The extension, or None; and why."""
    module, reason = None, ""
    if not _is_wanted():
        reason = "INFERSCOPE_NATIVE=0"
    elif not getattr(sys, "_is_gil_enabled", lambda: True)():
        reason = "this Python runs without its global lock, and would switch it on for the extension"
    else:
        try:
            from inferscope import _hot  # noqa: PLC0415 - it may not be there

            module = _hot
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, there is another way
            reason = f"no extension, since it was not built for this Python or does not load: {error}"
    if module is not None and module.INTERFACE != _INTERFACE:
        module, reason = None, "the extension was built from other sources: install again"
    if module is None:
        return None, Implementation(name="python", reason=reason)
    return module, Implementation(name="native", reason="the extension is there")


def _is_wanted() -> bool:
    try:
        return Settings.from_environment().native
    except SettingError:  # said when a session is opened
        return True


HOT, IMPLEMENTATION = _load()
"""The extension, or None where Python does the work; and which of the two it is."""


class _PlainRequest:
    """The part of a request that a pass touches."""

    __slots__ = ("dead", "in_pass", "row", "rows")


class _PlainFrame:
    """The part of a frame that a pass touches."""

    __slots__ = (
        "flags",
        "meter",
        "module",
        "now_ns",
        "past",
        "request",
        "seen",
        "slow",
        "summed",
        "thread",
        "thread_cpu_ns",
    )


if not TYPE_CHECKING:
    FrameBase = _PlainFrame if HOT is None else HOT.Frame
    RequestBase = _PlainRequest if HOT is None else HOT.Request
