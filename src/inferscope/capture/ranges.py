"""Ranges around requests and forwards, named as the phases: for profilers, and only where they were asked for.

A record's phases are named after the call, when all is known. A range must have its name when it begins, so the rule
of passes.py is followed only as far as it is decided by then; what is not has the name `pass`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from inferscope import notices
from inferscope.capture.frames import CURRENT, Flag
from inferscope.capture.loops import named_phase

if TYPE_CHECKING:
    from inferscope.capture.frames import ForwardMeter, Frame
    from inferscope.meters.nvtx import Ranges

__all__ = ["PASS", "REQUEST", "RangeMeter"]

REQUEST = "request"
PASS = "pass"  # noqa: S105 - no password
_FRAMES_KEPT = 8
_numbers = itertools.count(1)


class RangeMeter:
    """Stands on a request and its frames, around whatever else measures there."""

    def __init__(self, ranges: Ranges, inner: ForwardMeter | None) -> None:
        """Put ranges around a meter.

        Args:
            ranges: Where they go.
            inner: What measures within them; None where nothing does.
        """
        self._ranges = ranges
        self._inner = inner
        self._open = 0
        self._broken = False
        self._known: dict[Frame, tuple[int, int]] = {}

    def enter(self) -> None:
        """A request begins on this thread; `close` is called on the same one."""
        self._push(REQUEST)

    def begin(self) -> None:
        """A forward begins."""
        self._push(self._name())
        if self._inner is not None:
            try:
                self._inner.begin()
            except Exception:
                self._pop()
                raise

    def end(self) -> None:
        """A forward has been issued."""
        try:
            if self._inner is not None:
                self._inner.end()
        finally:
            self._pop()

    def flush(self) -> None:
        """Rows are about to be looked at: nothing of this is in them."""
        if self._inner is not None:
            self._inner.flush()

    def close(self) -> None:
        """The request is over: no range of it stays open."""
        try:
            if self._inner is not None:
                self._inner.close()
        finally:
            self._known = {}
            while self._open:
                self._pop()

    def _push(self, name: str) -> None:
        if self._broken:
            return
        try:
            self._ranges.push(name, next(_numbers))
            self._open += 1
        except Exception as error:  # noqa: BLE001 - a request is worth more than its ranges
            self._fail(error)

    def _pop(self) -> None:
        if not self._open:
            return
        self._open -= 1
        try:
            self._ranges.pop()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._broken, self._open = True, 0
        notices.fault("nvtx-failed", error)

    def _name(self) -> str:
        frame = CURRENT.get()
        if frame is None or frame.flags & Flag.BARE:
            return named_phase() or PASS
        known = self._known
        seen, past = known.get(frame, (0, 0))
        known[frame] = frame.seen, frame.past
        if len(known) > _FRAMES_KEPT:
            del known[next(iter(known))]
        flags = frame.flags
        # Another module's forward within this `generate` has a frame of its own, and leaves this one's count alone.
        if flags & Flag.ASSISTANT or frame.seen == seen:
            return "draft"
        if frame.seen == 1 or flags & Flag.IN_PREFILL:
            return "prefill"
        if flags & Flag.SIDE:
            return PASS
        if flags & Flag.ASSISTED:
            return "verify"
        one_more = frame.summed is not None and frame.past - past == 1
        return "decode" if one_more or frame.cache is None else PASS
