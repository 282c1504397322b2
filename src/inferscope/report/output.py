"""Where a report goes: a file that is whole or not there at all, or standard output."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inferscope.drafts import draft
from inferscope.errors import CacheUnwritableError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

__all__ = ["write"]


def write(path: Path | None, chunks: Iterable[str]) -> int:
    """Write text to a file beside `path` that takes its place when it is complete.

    Args:
        path: The file; None for standard output. What is there and is no regular file (a pipe, a device) is written
            to directly.
        chunks: The text in pieces.

    Returns:
        The number of bytes.

    Raises:
        CacheUnwritableError: It cannot be written, or not to its end; then there is no new file.
    """
    if path is None:
        return _to_standard_output(chunks)
    where = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    if where.is_dir():
        raise CacheUnwritableError(f"{path}: a folder; name a file")
    direct = where.exists() and not where.is_file()
    try:
        with (
            contextlib.nullcontext(where) if direct else draft(where) as target,
            target.open("w", encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            return _write(file, chunks)
    except OSError as error:
        raise CacheUnwritableError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write(file: TextIO, chunks: Iterable[str]) -> int:
    written = 0
    for chunk in chunks:
        file.write(chunk)
        written += len(chunk.encode("utf-8", "replace"))
    file.flush()
    return written


def _to_standard_output(chunks: Iterable[str]) -> int:
    if sys.stdout is None:
        raise CacheUnwritableError("standard output: cannot be written: it is closed")
    try:
        return _write(sys.stdout, chunks)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still buffered would fail once more at exit, and be told as a crash.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise CacheUnwritableError(f"standard output: cannot be written: {error.strerror or error}") from error
