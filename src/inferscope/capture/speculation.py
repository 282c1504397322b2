"""Drafted and accepted tokens of a request with assisted decoding, from the passes of its own model.

A pass that verifies k candidates reads k + 1 tokens, and the first one the whole prompt with its candidates. Each of
them yields one token of its own besides those it accepts, so that what came back less one token per pass was accepted.
"""

from __future__ import annotations

from inferscope.capture.frames import UNREADABLE, Flag
from inferscope.capture.passes import PREFILL, VERIFY, PassName

__all__ = ["Speculation"]


class Speculation:
    """The passes of the verifying model, counted one by one."""

    def __init__(self) -> None:
        self._passes = 0
        self._candidates: int | None = 0
        self._first: tuple[int, int] | None = None
        self._sequences = 0

    def add(self, name: PassName, q: int, past: int, flags: int) -> None:
        """Take a pass; those that verify nothing are left out."""
        if not flags & Flag.ASSISTED or name not in {PREFILL, VERIFY}:
            return
        self._passes += 1
        if name == PREFILL:
            self._sequences += 1
            self._first = (q, past)
        elif q == UNREADABLE:
            self._candidates = None
        elif self._candidates is not None:
            self._candidates += q - 1

    def counted(self, prompt_len: int | None, output_len: int | None) -> tuple[int | None, int | None]:
        """Tokens drafted and, of them, accepted; None where that cannot be told, or nothing was drafted for.

        Args:
            prompt_len: Tokens of the sequence before its first pass, cached ones included.
            output_len: New tokens of the sequence.
        """
        if self._first is None or self._sequences > 1 or not prompt_len or self._candidates is None:
            return None, None
        q, past = self._first
        if UNREADABLE in (q, past):
            return None, None
        drafted = self._candidates + q + past - prompt_len
        if drafted < 0:
            return None, None
        accepted = -1 if output_len is None else output_len - self._passes
        return drafted, accepted if 0 <= accepted <= drafted else None
