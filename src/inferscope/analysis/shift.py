"""By how much one sample lies above another, with an interval that holds for few, skewed and unequal samples.

Nothing is assumed about the distribution but that both samples have the same one, moved. Observations are compared
within strata only: requests that do the same work. The estimate is the median of all differences within strata
(Hodges and Lehmann). The interval is the set of shifts that an exact test does not reject: Wilcoxon's signed ranks
where every stratum is one pair, Mann and Whitney's counts summed over the strata otherwise. Nothing is drawn at
random, so the same samples give the same interval.

Source: J. L. Hodges and E. L. Lehmann, Annals of Mathematical Statistics 34 (1963) 598; for the sum over strata,
P. van Elteren, Bulletin of the International Statistical Institute 37 (1960) 351, without weights.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ERROR", "Method", "Shift", "median_interval", "repeats_needed", "shift"]

Method = Literal["paired", "stratified"]

ERROR = 0.05
"""Rate at which the interval may miss the truth."""

_EXACT_DIFFERENCES = 2_500
"""Up to so many differences the null distribution is counted out; beyond, it is normal to three digits."""
_SORTED_DIFFERENCES = 20_000
_RESOLUTION = 1e-6
_MOST_REPEATS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How far the second sample lies above the first.

    Attributes:
        value: Median of the differences.
        low: Lower end of the interval; None where there are too few observations for one.
        high: Its upper end; None with `low`.
        method: "paired" where every stratum is one pair, else "stratified".
    """

    value: float
    low: float | None
    high: float | None
    method: Method


def shift(strata: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Shift | None:
    """The shift from the first samples to the second ones, over all strata.

    Args:
        strata: Observations of either side that may be compared with each other; finite numbers.

    Returns:
        The estimate with its 95 % interval; None where no stratum has observations of both sides.
    """
    both = [(sorted(first), sorted(second)) for first, second in strata if first and second]
    if not both:
        return None
    sizes = _sizes(both)
    if _is_paired(sizes):
        ranked = _Averages(sorted(second[0] - first[0] for first, second in both))
        return _interval(ranked, sizes, "paired")
    return _interval(_Differences(both), sizes, "stratified")


def repeats_needed(sizes: Sequence[tuple[int, int]]) -> int | None:
    """How many more observations each stratum needs, on both sides, before there is an interval at all.

    Args:
        sizes: Observations of either side in each stratum that has some of both.

    Returns:
        0 where there is one; None where there is nothing to repeat.
    """
    if not sizes:
        return None
    for more in range(_MOST_REPEATS):
        grown = Counter((first + more, second + more) for first, second in sizes)
        if _cut(tuple(sorted(grown.items()))) is not None:
            return more
    return None


_Sizes = tuple[tuple[tuple[int, int], int], ...]
"""((observations of the first side, of the second), strata of that size), ascending."""


class _Differences:
    """All differences within strata, as a sorted list that is never written out where it would be long."""

    def __init__(self, strata: list[tuple[list[float], list[float]]]) -> None:
        self.count = sum(len(first) * len(second) for first, second in strata)
        self._strata = strata
        self.range = (
            min(second[0] - first[-1] for first, second in strata),
            max(second[-1] - first[0] for first, second in strata),
        )

    def listed(self) -> list[float]:
        return sorted(late - early for first, second in self._strata for early in first for late in second)

    def up_to(self, limit: float) -> int:
        return sum(bisect_right(second, limit + early) for first, second in self._strata for early in first)


class _Averages:
    """Means of all pairs of differences, each with itself too (Walsh), likewise."""

    def __init__(self, differences: list[float]) -> None:
        self._differences = differences
        self.count = len(differences) * (len(differences) + 1) // 2
        self.range = (differences[0], differences[-1])

    def listed(self) -> list[float]:
        values = self._differences
        return sorted((value + other) / 2 for i, value in enumerate(values) for other in values[i:])

    def up_to(self, limit: float) -> int:
        values = self._differences
        return sum(max(bisect_right(values, 2 * limit - value) - i, 0) for i, value in enumerate(values))


def _interval(ranked: _Differences | _Averages, sizes: _Sizes, method: Method) -> Shift:
    at = _ranker(ranked)
    middle = (at((ranked.count - 1) // 2, 0) + at(ranked.count // 2, 0)) / 2
    cut = _cut(sizes)
    if cut is None:
        return Shift(value=middle, low=None, high=None, method=method)
    return Shift(value=middle, low=at(cut, -1), high=at(ranked.count - 1 - cut, 1), method=method)


def _ranker(ranked: _Differences | _Averages) -> Callable[[int, int], float]:
    """What stands at an index from 0; where that is searched for, the side says to which end it is rounded."""
    if ranked.count <= _SORTED_DIFFERENCES:
        listed = ranked.listed()
        return lambda index, _: listed[index]

    def search(index: int, side: int) -> float:
        low, high = ranked.range
        resolution = _RESOLUTION * max(high - low, abs(low), abs(high))
        low -= resolution
        while high - low > resolution:
            middle = (low + high) / 2
            if ranked.up_to(middle) > index:
                high = middle
            else:
                low = middle
        return (low, (low + high) / 2, high)[side + 1]

    return search


def _is_paired(sizes: _Sizes) -> bool:
    return all(size == (1, 1) for size, _ in sizes)


def _sizes(strata: list[tuple[list[float], list[float]]]) -> _Sizes:
    return tuple(sorted(Counter((len(first), len(second)) for first, second in strata).items()))


@lru_cache(maxsize=256)
def _cut(sizes: _Sizes) -> int | None:
    """How many differences are cut off at either end of their sorted list; None where that is less than none."""
    pairs = sum(times for _, times in sizes)
    paired = _is_paired(sizes)
    differences = (
        pairs * (pairs + 1) // 2 if paired else sum(times * first * second for (first, second), times in sizes)
    )
    if differences > _EXACT_DIFFERENCES:
        return _normal_cut(differences, sizes, pairs if paired else None)
    ways = _signed_rank_ways(pairs) if paired else _count_ways(sizes)
    allowed, seen = ERROR / 2 * sum(ways), 0
    for cut, way in enumerate(ways):
        seen += way
        if seen > allowed:
            # Differences up to this index may be below the shift by chance; the one at it stands for the end.
            return cut - 1 if cut else None
    return None


def _normal_cut(differences: int, sizes: _Sizes, pairs: int | None) -> int | None:
    if pairs is not None:
        variance = pairs * (pairs + 1) * (2 * pairs + 1) / 24
    else:
        variance = sum(times * a * b * (a + b + 1) for (a, b), times in sizes) / 12
    cut = math.floor(differences / 2 - 0.5 - NormalDist().inv_cdf(1 - ERROR / 2) * math.sqrt(variance))
    return cut if cut >= 0 else None


def _signed_rank_ways(pairs: int) -> list[int]:
    """In how many of the 2^pairs ways the signed ranks sum to 0, 1, ..."""
    ways = [1]
    for rank in range(1, pairs + 1):
        grown = ways + [0] * rank
        for index, way in enumerate(ways):
            grown[index + rank] += way
        ways = grown
    return ways


def _count_ways(sizes: _Sizes) -> list[int]:
    """In how many ways 0, 1, ... differences are positive, over all strata, where both sides are alike."""
    total = [1]
    for (first, second), times in sizes:
        one = _mann_whitney_ways(first, second)
        for _ in range(times):
            total = _product(total, one)
    return total


def _mann_whitney_ways(first: int, second: int) -> list[int]:
    """Coefficients of the Gaussian binomial: the product of (1 - q^(large + i)) / (1 - q^i) over i = 1 ... small."""
    small, large = sorted((first, second))
    length = small * large + 1
    ways = [1] + [0] * (length - 1)
    for i in range(1, small + 1):
        for index in range(length - 1, large + i - 1, -1):
            ways[index] -= ways[index - large - i]
        for index in range(i, length):
            ways[index] += ways[index - i]
    return ways


def _product(one: list[int], other: list[int]) -> list[int]:
    product = [0] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        if a:
            for j, b in enumerate(other):
                product[i + j] += a * b
    return product


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the median of a distribution lies, from order statistics; None below six observations.

    Args:
        values: Observations of it; finite numbers.
    """
    ordered, number = sorted(values), len(values)
    if number > _EXACT_DIFFERENCES:
        cut = math.floor((number - 1) / 2 - NormalDist().inv_cdf(1 - ERROR / 2) * math.sqrt(number) / 2)
        return ordered[cut], ordered[number - 1 - cut]
    allowed, seen = ERROR / 2 * 2**number, 0
    for cut in range(number):
        seen += math.comb(number, cut)
        if seen > allowed:
            return (ordered[cut - 1], ordered[number - cut]) if cut else None
    return None
