"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["draft"]


@contextlib.contextmanager
def draft(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, which takes its place when the block ends; with an exception it goes instead.

    Whoever reads `path` meanwhile sees the old file or the new one, never half of one, and of several writers the last
    one wins, also where they are containers whose processes have the same number.

    Args:
        path: What is to be written; its folder must be there.

    Raises:
        OSError: It cannot be made, or cannot take the place of `path`.
    """
    unfinished = path.with_name(f".{path.name[:32]}.{secrets.token_hex(6)}.tmp")
    with unfinished.open("xb"):
        pass
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
