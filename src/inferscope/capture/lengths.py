"""How many tokens a cache holds, as far as that can be known without making the device wait.

Most caches count on the host. A static cache counts on its device, where reading would be a sync: its tokens are
summed as they are put in, and the sum is kept with the version of the counter, which changes when anybody else puts
something in or empties the cache.
"""

from __future__ import annotations

import weakref
from typing import Any

from inferscope.capture import versions

__all__ = ["UNREADABLE", "cached_tokens", "expect_length", "remember_length", "same_tokens"]

UNREADABLE = -1
"""Stands for what could not be read, or was not."""

_UNKNOWABLE = (AttributeError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError)
_remembered: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


def cached_tokens(cache: Any) -> int:  # noqa: ANN401 - caches share no base class across versions
    """Tokens in a cache; UNREADABLE where it does not count, or counts on a device and nobody kept the sum."""
    try:
        length = cache.get_seq_length()
        if type(length) is int:
            return 0 if length and versions.is_empty(cache) else length
        if length.device.type == "cpu":
            return int(length)
        if cache.get_seq_length() is not length:  # no counter: older versions work it out anew each time
            return UNREADABLE
        version = length._version  # noqa: SLF001 - torch's own way to see a change in place
        if version == 0:  # a counter starts at none, and nothing was added since
            return 0
        known = _remembered.get(cache)
    except _UNKNOWABLE:
        return UNREADABLE
    return known[0] if known is not None and known[1] == version else UNREADABLE


def expect_length(cache: Any, past: int, q: int) -> None:  # noqa: ANN401 - as above
    """A forward is about to put q tokens behind `past`: the counter changes once, or the sum is lost."""
    try:
        length = cache.get_seq_length()
        if type(length) is not int:
            if length.device.type != "cpu":
                _remembered[cache] = past + q, length._version + 1  # noqa: SLF001 - as above
        elif length == 0:  # perhaps one whose counter is made by its first forward
            _remembered[cache] = q, 1
    except _UNKNOWABLE:
        return


def same_tokens(cache: object, other: object) -> bool:
    """Whether two caches hold the same tokens, since one is the other with room for an encoder's output beside it."""
    if cache is None or other is None:
        return False
    own, others = (getattr(each, "self_attention_cache", each) for each in (cache, other))
    return own is others


def remember_length(cache: Any, tokens: int) -> None:  # noqa: ANN401 - as above
    """Keep the sum of what was put into a cache that counts on its device."""
    try:
        length = cache.get_seq_length()
        if type(length) is not int and length.device.type != "cpu":
            _remembered[cache] = tokens, length._version  # noqa: SLF001 - as above
    except _UNKNOWABLE:
        return
