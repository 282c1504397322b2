"""The line of Python that is running: the innermost one that is not torch's, and the innermost of the user's own."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inferscope.syncs import Place

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["frame_names", "place"]

_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[1]) + os.sep
_WARNINGS = tuple(str(Path(sysconfig.get_paths()["stdlib"]) / name) for name in ("warnings.py", "_py_warnings.py"))
"""What calls us about a warning is of no interest either."""
_STANDARD = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_NOWHERE = "<unknown>"


def place(border: CodeType) -> Place:
    """Where the caller's caller stands.

    Args:
        border: Code that drives what is observed: what called it is of no interest.

    Returns:
        The innermost frame outside torch (torch's own where there is no other), with the innermost of no package.
    """
    frames = list(_frames(border))
    spot = next((frame for frame in frames if not _path(frame).startswith(_TORCH)), frames[0] if frames else None)
    if spot is None:
        return Place(file=_NOWHERE, line=0)
    own = next((frame for frame in frames if _is_users(_path(frame))), None)
    if own is None or own is spot:
        return Place(file=_short(_path(spot)), line=spot.f_lineno)
    return Place(file=_short(_path(spot)), line=spot.f_lineno, caller_file=_short(_path(own)), caller_line=own.f_lineno)


def frame_names(border: CodeType, name: str) -> bool:
    """Whether the innermost function outside torch has a string that begins with `name` written in its code."""
    for frame in _frames(border):
        if not _path(frame).startswith(_TORCH):
            return any(isinstance(value, str) and value.startswith(name) for value in frame.f_code.co_consts)
    return False


def _frames(border: CodeType) -> list[FrameType]:
    """From the innermost outwards, without ours."""
    found = []
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the only way to the caller's line at this price
    while frame is not None and frame.f_code is not border:
        if not _path(frame).startswith((_OURS, "<frozen", *_WARNINGS)):
            found.append(frame)
        frame = frame.f_back
    return found


def _path(frame: FrameType) -> str:
    return frame.f_code.co_filename


@lru_cache(maxsize=4096)
def _is_users(path: str) -> bool:
    return not path.startswith((_TORCH, *_STANDARD)) and not any(folder in path for folder in _PACKAGES)


@lru_cache(maxsize=4096)
def _short(path: str) -> str:
    """The same on every machine, as far as that is possible."""
    for folder in _PACKAGES:
        if folder in path:
            return path.rpartition(folder)[2].replace(os.sep, "/")
    return os.path.relpath(path) if path.startswith(str(Path.cwd()) + os.sep) else path
