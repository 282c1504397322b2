"""Limits on latency as people write them, and whether a measured time keeps them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferscope.errors import SettingError

if TYPE_CHECKING:
    from inferscope.analysis.scatter import Timing

__all__ = ["Answer", "Limit", "Objective", "parse_objective"]

Answer = Literal["yes", "no", "cannot tell"]
_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_LIMIT = re.compile(r"(ttft|tpot)\s*<=?\s*([0-9.]{1,20}(?:e[+-]?[0-9]{1,3})?)\s*(ns|us|µs|ms|s)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most so much.

    Attributes:
        what: "ttft" or "tpot".
        most_ns: The limit.
    """

    what: str
    most_ns: float

    def held_by(self, timing: Timing | None) -> Answer:
        """Whether the median keeps the limit: only where its whole interval does.

        Args:
            timing: In nanoseconds; None where it was not measured.
        """
        if timing is None or timing.low is None or timing.high is None:
            return "cannot tell"
        if timing.high <= self.most_ns:
            return "yes"
        return "no" if timing.low > self.most_ns else "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """All limits that are to be kept at once.

    Attributes:
        limits: At least one, each of another time.
        text: As it was written.
    """

    limits: tuple[Limit, ...]
    text: str


def parse_objective(text: str) -> Objective:
    """The limits in "ttft<=200ms,tpot<=50ms".

    Args:
        text: Limits on `ttft` and `tpot`, separated by commas, in ns, us, ms or s.

    Raises:
        SettingError: It says something else; the message shows the form.
    """
    limits: dict[str, Limit] = {}
    for part in text.split(","):
        found = _LIMIT.fullmatch(part.strip())
        most_ns = _most_ns(found) if found else None
        if found is None or most_ns is None or found[1].lower() in limits:
            raise SettingError(f"--objective {text}: expected limits such as ttft<=200ms,tpot<=50ms")
        limits[found[1].lower()] = Limit(what=found[1].lower(), most_ns=most_ns)
    return Objective(limits=tuple(limits.values()), text=text)


def _most_ns(found: re.Match[str]) -> float | None:
    try:
        value = float(found[2]) * _UNITS[found[3].lower()]
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
