"""How far repeated times scatter, and how well their medians are known.

Times are repeated in rounds that go over all points. What a whole round shares (another program ran meanwhile) is
taken out before the scatter of single times is looked at, and kept where a time itself is stated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["RATE", "Scatter", "Timing", "quantile_t", "scatter_of", "timings"]

RATE = 0.9
"""How often an interval is claimed to hold the truth."""
_MEDIAN_EFFICIENCY = 0.6
"""Of a median against a mean, of few values from a normal distribution: 0.64 for many, and less for even counts."""
_FEWEST_IN_ROUND = 3
_WITHIN_ONE = 0.6827
"""Of a normal distribution, within one standard deviation."""
_SPREAD_EFFICIENCY = 0.5
"""Of that size against the standard deviation."""
_RESOLUTION = 1e-6
"""No time is known better, however equal a few are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Medians of a series of points.

    Attributes:
        medians: By point, in the unit of the times.
        counts: Times behind each.
        variance_of_median: Relative variance of a median of one time; divided by the count, of a point's. None
            where nothing was repeated.
        freedom: Degrees of freedom that the variance rests on.
    """

    medians: tuple[float, ...]
    counts: tuple[int, ...]
    variance_of_median: float | None
    freedom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A time with its interval.

    Attributes:
        value: Median.
        low: Lower end; None where nothing was repeated.
        high: Upper end; None with `low`.
        count: Times behind it.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def scatter_of(points: Sequence[Mapping[int, float]]) -> Scatter:
    """Medians without what rounds share, and their scatter.

    Args:
        points: For each, its times (above zero) by round; at least one.
    """
    shared = _shared(points)
    logs = [[math.log(time) - shared.get(number, 0.0) for number, time in sorted(times.items())] for times in points]
    variance, freedom = _variance(logs, len(shared))
    return Scatter(
        medians=tuple(math.exp(median(values)) for values in logs),
        counts=tuple(map(len, logs)),
        variance_of_median=variance,
        freedom=freedom,
    )


def timings(points: Sequence[Mapping[int, float]]) -> tuple[Timing, ...]:
    """The times themselves, what rounds share included.

    Args:
        points: As `scatter_of` takes them.
    """
    logs = [[math.log(time) for time in times.values()] for times in points]
    variance, freedom = _variance(logs, 0)
    made = []
    for values in logs:
        middle = median(values)
        if variance is None:
            made.append(Timing(value=math.exp(middle), low=None, high=None, count=len(values)))
            continue
        reach = quantile_t(freedom) * math.sqrt(variance / len(values))
        made.append(
            Timing(
                value=math.exp(middle),
                low=math.exp(middle - reach),
                high=math.exp(middle + reach),
                count=len(values),
            )
        )
    return tuple(made)


def quantile_t(freedom: int, rate: float = RATE) -> float:
    """Student's quantile for a two-sided interval.

    Exact for one and two degrees of freedom; beyond, an expansion that is good to two digits.

    Args:
        freedom: Degrees of freedom, at least 1.
        rate: Of the interval (0..1).

    Source: R. A. Fisher and E. A. Cornish, Technometrics 2 (1960) 209.
    """
    if freedom == 1:
        return math.tan(math.pi * rate / 2)
    if freedom == 2:  # noqa: PLR2004 - the other closed form
        return rate * math.sqrt(2 / (1 - rate**2))
    z = NormalDist().inv_cdf((1 + rate) / 2)
    n = freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + _third(z) / (384 * n**3)


def _third(z: float) -> float:
    return 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z


def _shared(points: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """By how much each round was slower than others, as a logarithm; rounds of few points share nothing known."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for times in points:
        if len(times) > 1:
            middle = median(math.log(time) for time in times.values())
            for number, time in times.items():
                found[number].append(math.log(time) - middle)
    return {number: median(values) for number, values in found.items() if len(values) >= _FEWEST_IN_ROUND}


def _variance(logs: Sequence[Sequence[float]], taken: int) -> tuple[float | None, int]:
    """From the size that two thirds of all differences within points stay below: single disturbances do not count.

    Pairs need no centre, which few values would be too near to.
    """
    freedom = sum(len(values) - 1 for values in logs) - max(0, taken - 1)
    differences = sorted(abs(one - other) for values in logs for one, other in combinations(values, 2))
    freedom = max(1, round(freedom * _SPREAD_EFFICIENCY)) if freedom > 0 else 0
    if not freedom or not differences:
        return None, 0
    spread = differences[min(len(differences) - 1, math.floor(_WITHIN_ONE * len(differences)))] / math.sqrt(2)
    # Rounds whose common part was taken out scatter less by so much.
    shrunk = 1 - 1 / taken if taken > 1 else 1.0
    return max(spread, _RESOLUTION) ** 2 / shrunk / _MEDIAN_EFFICIENCY, freedom
