"""Say it once, then step aside: inferscope's own warnings.

Goes through the user's structlog configuration where there is one. Where there is none, structlog's default
would print to standard output, which belongs to the host: a plain line on standard error is used instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any

import structlog

__all__ = ["fault", "logger", "reset", "warn"]

_said: set[str] = set()
_lock = threading.Lock()


def logger() -> Any:  # noqa: ANN401 - structlog's bound loggers share no public base
    """The logger to use now: the user's structlog, or a plain one on standard error."""
    if structlog.is_configured():
        return structlog.get_logger("inferscope")
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"], drop_missing=True),
        ],
    )


def warn(slug: str, message: str, *, once: object = None, **facts: object) -> bool:
    """Log a warning, once per slug and process.

    Args:
        slug: Heading in docs/reference/messages.md.
        message: What happened and what to do, without prompt or completion text.
        once: Said once for each of these instead; their number must be bounded.
        **facts: Keys and values beside it.

    Returns:
        Whether it was said (False: it had been said before).
    """
    with _lock:
        said = slug if once is None else f"{slug} {once!r}"
        if said in _said:
            return False
        _said.add(said)
    with contextlib.suppress(Exception):  # a broken log configuration must not reach the host
        logger().warning(message, slug=slug, **facts)
    return True


def fault(slug: str, error: BaseException, **facts: object) -> None:
    """Report a defect of our own without letting it out: logged once, raised only while inferscope is tested.

    Set INFERSCOPE_RAISE=1 (the project's own tests do) to have it raised instead.
    """
    if os.environ.get("INFERSCOPE_RAISE") == "1":
        raise error
    with contextlib.suppress(Exception):  # there is nobody left to tell
        warn(slug, f"inferscope failed and stepped aside: {type(error).__name__}: {error}", **facts)


def after_fork() -> None:
    """In a forked child: a lock that a thread of the parent's may have held is nobody's now."""
    global _lock  # noqa: PLW0603 - a lock is replaced, not shared
    _lock = threading.Lock()


def reset() -> None:
    """Forget what was said: for tests, and for a forked child."""
    with _lock:
        _said.clear()
