"""What inferscope costs, as its own clock cannot see: requests observed and not, chosen by chance, held side by side.

A clock of ours shows what lies between our stamps. It does not show what we push out of the caches, what the device
loses, and the threads we wake. Requests that the coin has left out run without any of it but two stamps around them;
where they have the same shape as observed ones, the difference of the means is what observing costs, whatever its way.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["STRATA_KEPT", "Arms", "Estimate"]

STRATA_KEPT = 256
LEAST_PER_ARM = 4
"""Requests of one shape in each arm, from which on their variance is looked at."""
_Z = 1.959964
"""Of the normal distribution, for 95 %."""


class Estimate(NamedTuple):
    """What observing costs.

    Attributes:
        value_ns: Per token.
        low_ns: Lower end of the 95 % interval.
        high_ns: Upper end.
        observed: Requests compared that were observed.
        bare: Those that were not.
    """

    value_ns: float
    low_ns: float
    high_ns: float
    observed: int
    bare: int


@dataclass(slots=True)
class _Moments:
    """Mean and spread of values that come one by one (Welford)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)

    @property
    def variance_of_mean(self) -> float:
        return self.squares / (self.count - 1) / self.count


@dataclass(slots=True)
class _Stratum:
    """Requests of one shape."""

    bare: _Moments = field(default_factory=_Moments)
    observed: _Moments = field(default_factory=_Moments)


class Arms:
    """The two arms of one model's requests; any thread may add."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._strata: OrderedDict[Hashable, _Stratum] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, shape: Hashable, wall_ns: int, tokens: int, *, observed: bool) -> None:
        """Take a request.

        Args:
            shape: What has to be the same for two requests to be comparable.
            wall_ns: How long it took.
            tokens: New tokens of its longest sequence.
            observed: In which arm it was; chance has decided.
        """
        with self._lock:
            stratum = self._strata.setdefault(shape, _Stratum())
            self._strata.move_to_end(shape)
            if len(self._strata) > STRATA_KEPT:
                self._strata.popitem(last=False)
            (stratum.observed if observed else stratum.bare).add(wall_ns / tokens)

    def estimate(self) -> Estimate | None:
        """The difference per token; None where no shape has enough requests in both arms.

        Shapes are weighted by how many requests they have in each arm. That is chance's doing alone: weights that
        looked at the spread would prefer shapes whose slow requests have not come yet.
        """
        with self._lock:
            usable = [
                (one.observed, one.bare)
                for one in self._strata.values()
                if min(one.observed.count, one.bare.count) >= LEAST_PER_ARM
            ]
            if not usable:
                return None
            weights = [seen.count * bare.count / (seen.count + bare.count) for seen, bare in usable]
            whole = sum(weights)
            value = variance = spread = 0.0
            for weight, (seen, bare) in zip(weights, usable, strict=True):
                value += weight / whole * (seen.mean - bare.mean)
                for arm in (seen, bare):
                    part = (weight / whole) ** 2 * arm.variance_of_mean
                    variance += part
                    spread += part**2 / (arm.count - 1)
            observed, bare_count = (sum(pair[arm].count for pair in usable) for arm in (0, 1))
        half = _quantile(variance**2 / spread if spread else math.inf) * math.sqrt(variance)
        return Estimate(value, value - half, value + half, observed, bare_count)


def _quantile(freedom: float) -> float:
    """Of Student's t, for 95 %: the first terms of its expansion around the normal one.

    Source: Abramowitz and Stegun 26.7.5; freedom after Welch and Satterthwaite.
    """
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
