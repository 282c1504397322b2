"""Where times over batch and length bend, from a few noisy points, with an interval or "cannot tell".

    t = t0 + max(W, c x) + k z

x is what is computed with every weight (sequences of a decode pass, prompt tokens of a prefill), z what is read or
looked at besides (cached tokens). Below the weight knee x = W / c time does not depend on x, since the weights have to
be read anyway. t0 and W alone cannot be told apart before that knee; what they are together is called fixed.

An interval holds every value at which the best fit is not significantly worse than the best of all: the profile of
the likelihood. It is open where values beyond the points measured fit as well, and so "the points do not reach the
knee" needs no rule of its own. Where the formula fits worse than repetitions scatter, the misfit counts as noise.

Source: profile likelihood, D. J. Venzon and S. H. Moolgavkar, Applied Statistics 37 (1988) 87.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.scatter import RATE, quantile_t
from inferscope.analysis.squares import solve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.analysis.scatter import Scatter

__all__ = ["Curve", "Knee", "decode_size", "fit_curve", "knee_words"]

_X_STEPS = 40
_Z_STEPS = 48
_COARSE = 4
"""Every so many-th candidate of the one knee is tried while the other is profiled."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_SECTIONS = 12
_FEWEST_X = 3
_FEWEST_Z = 2
_PARAMETERS = 4
_WHOLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """A bend, in the unit of its axis.

    Attributes:
        value: Best fit; None where the points cannot tell.
        low: Lower end of the interval; None where it is open: it may lie at or below the smallest value measured.
        high: Upper end; None where it is open: it may lie above the largest value measured.
        smallest: Smallest value measured.
        largest: Largest value measured.
        reason: Why `value` is None; "" otherwise.
        rate: How often the interval is claimed to hold the truth (0..1).
    """

    value: float | None
    low: float | None
    high: float | None
    smallest: float
    largest: float
    reason: str = ""
    rate: float = RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The fit of one series; times in nanoseconds.

    Attributes:
        fixed_ns: t0 + W: what does not depend on x or z, before the knee.
        start_ns: t0 alone; None where the points do not reach the weight knee.
        per_x_ns: c, beyond the knee; None where the points do not reach it.
        per_z_ns: k; None where only one length was measured.
        misfit_share: Root mean square of the fit's relative errors (0..1).
        weight_knee: In x.
        cache_knee: In z: where k z is as much as `fixed_ns`.
        points: How many the fit rests on.
    """

    fixed_ns: float
    start_ns: float | None
    per_x_ns: float | None
    per_z_ns: float | None
    misfit_share: float
    weight_knee: Knee
    cache_knee: Knee
    points: int


@dataclass(frozen=True, slots=True)
class _Fit:
    squares: float
    fixed: float
    per_x: float = 0.0
    per_z: float = 0.0


class _Series:
    """Points scaled to sizes near one, and best fits where a knee is given."""

    def __init__(self, points: Sequence[tuple[float, float]], scatter: Scatter) -> None:
        self.x = [point[0] for point in points]
        self.z = [point[1] for point in points]
        self.z_scale = max(self.z) or 1.0
        self.y = list(scatter.medians)
        self.weights = [count / value**2 for value, count in zip(scatter.medians, scatter.counts, strict=True)]
        self.lengths = len({round(z / x, 6) for x, z in points})
        self._ones = [1.0] * len(points)
        self._scaled_z = [z / self.z_scale for z in self.z]

    def without_knee(self) -> _Fit:
        """The best fit in which nothing is ever computed longer than the weights take."""
        rows = [self._solved([self._ones], 0, None)]
        if self.lengths >= _FEWEST_Z:
            rows.append(self._solved([self._ones, self._scaled_z], None, 1))
        return _best(rows)

    def at(self, knee: float) -> _Fit:
        """The best fit with the weight knee there; never worse than the one without."""
        over = [max(0.0, x - knee) for x in self.x]
        rows = [self.without_knee(), self._solved([self._ones, over], 1, None, knee)]
        rows.append(self._solved([self._ones, over, self._scaled_z], 1, 2, knee))
        # On its edge the formula has t0 = 0: all before the knee is weights.
        edge = [max(1.0, x / knee) for x in self.x]
        for columns in ([edge], [edge, self._scaled_z]):
            found = self._solved(columns, None, 1 if len(columns) > 1 else None)
            if found is not None:
                rows.append(_Fit(found.squares, found.fixed, found.fixed / knee, found.per_z))
        return _best(rows)

    def with_cache(self, share: float, knee: float | None) -> _Fit:
        """The best fit with per_z held at `share` of fixed, and the weight knee there or nowhere."""
        base = [1.0 + share * z for z in self.z]
        rows = [self._solved([base], None, None)]
        if knee is not None:
            over = [max(0.0, x - knee) for x in self.x]
            rows.append(self._solved([base, over], 1, None, knee))
            found = self._solved(
                [[max(1.0, x / knee) + share * z for x, z in zip(self.x, self.z, strict=True)]], 0, None
            )
            rows.append(found and _Fit(found.squares, found.fixed, found.fixed / knee))
        return _best(rows)

    def _solved(
        self, columns: list[list[float]], x_at: int | None, z_at: int | None, knee: float | None = None
    ) -> _Fit | None:
        """Least squares over the columns, None where a coefficient is not possible."""
        found = solve(columns, self.y, self.weights)
        if found is None or found[0] <= 0 or any(value < 0 for value in found[1:]):
            return None
        per_x = found[x_at] if x_at else 0.0
        if knee is not None and per_x * knee > found[0] * (1 + 1e-9):  # t0 would be negative
            return None
        squares = sum(
            weight * (y - sum(part * column[i] for part, column in zip(found, columns, strict=True))) ** 2
            for i, (y, weight) in enumerate(zip(self.y, self.weights, strict=True))
        )
        return _Fit(squares, found[0], per_x, found[z_at] / self.z_scale if z_at else 0.0)


def _best(rows: Iterable[_Fit | None]) -> _Fit:
    return min((row for row in rows if row is not None), key=lambda row: row.squares)


def decode_size(batch_size: int, input_tokens: int, output_tokens: float) -> tuple[float, float]:
    """Sizes (x, z) of a decode: sequences, and the mean of the tokens that all of them have in the cache.

    Args:
        batch_size: Sequences.
        input_tokens: Prompt tokens of each.
        output_tokens: New tokens of each.
    """
    return float(batch_size), batch_size * (input_tokens + output_tokens / 2)


def knee_words(knee: Knee) -> str:
    """A knee with its interval, or why it cannot be told."""
    if knee.value is None or knee.low is None or knee.high is None:
        return f"cannot tell: {knee.reason}"
    return f"{_number(knee.value)} ({_number(knee.low)} to {_number(knee.high)}, {100 * knee.rate:.0f} %)"


def fit_curve(points: Sequence[tuple[float, float]], scatter: Scatter) -> Curve | str:
    """The curve through a series.

    Args:
        points: (x, z) of each, all above zero.
        scatter: Their times and how far those scatter.

    Returns:
        The fit; in words, why there is none, where the points are too few.
    """
    sizes = sorted({x for x, _ in points})
    if len(sizes) < _FEWEST_X:
        return f"{len(sizes)} sizes measured, {_FEWEST_X} are needed"
    series = _Series(points, scatter)
    candidates = [*_between(sizes[0], sizes[-1], _X_STEPS), math.inf]
    fits = [series.without_knee() if math.isinf(where) else series.at(where) for where in candidates]
    best = min(range(len(fits)), key=lambda i: (fits[i].squares, -i))
    if 0 < best < len(candidates) - 1:
        # The profile has a cusp wherever a size was measured: either side by itself.
        sides = [_refined(series, *sorted((candidates[best], candidates[best + step]))) for step in (-1, 1)]
        found = [(candidates[best], fits[best]), *sides]
        candidates[best], fits[best] = min(found, key=lambda pair: pair[1].squares)
    limit = _limit(fits[best].squares, len(points), scatter)
    if limit is None:
        return "neither repetitions nor points enough to know how far times scatter"
    weight_knee = _knee(candidates, [fit.squares for fit in fits], best, limit, (sizes[0], sizes[-1]))
    fit = fits[best]
    reached = weight_knee.value is not None
    return Curve(
        fixed_ns=fit.fixed,
        start_ns=max(0.0, fit.fixed - fit.per_x * weight_knee.value) if weight_knee.value is not None else None,
        per_x_ns=fit.per_x if reached else None,
        per_z_ns=fit.per_z if series.lengths >= _FEWEST_Z else None,
        misfit_share=math.sqrt(fit.squares / sum(scatter.counts)),
        weight_knee=weight_knee,
        cache_knee=_cache_knee(series, scatter, candidates, len(points)),
        points=len(points),
    )


def _refined(series: _Series, low: float, high: float) -> tuple[float, _Fit]:
    """The best knee between two candidates, by golden section."""
    high = min(high, 2 * low)
    ends = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    fits = [series.at(end) for end in ends]
    for _ in range(_SECTIONS):
        if fits[0].squares <= fits[1].squares:
            high, ends, fits = ends[1], [ends[0], ends[0]], [fits[0], fits[0]]
            ends[0] = high - _GOLDEN * (high - low)
            fits[0] = series.at(ends[0])
        else:
            low, ends, fits = ends[0], [ends[1], ends[1]], [fits[1], fits[1]]
            ends[1] = low + _GOLDEN * (high - low)
            fits[1] = series.at(ends[1])
    return min(zip(ends, fits, strict=True), key=lambda pair: pair[1].squares)


def _cache_knee(series: _Series, scatter: Scatter, knees: list[float], points: int) -> Knee:
    smallest, largest = min(series.z), max(series.z)
    if series.lengths < _FEWEST_Z:
        reason = "one prompt length measured: what the cache costs cannot be told from what computing costs"
        return Knee(value=None, low=None, high=None, smallest=smallest, largest=largest, reason=reason)
    candidates = [*_between(smallest, 4 * largest, _Z_STEPS), math.inf]
    bends = [*knees[::_COARSE], math.inf]
    squares = [
        min(series.with_cache(1 / where, None if math.isinf(bend) else bend).squares for bend in bends)
        for where in candidates
    ]
    best = min(range(len(squares)), key=lambda i: (squares[i], -i))
    limit = _limit(squares[best], points, scatter) or math.inf
    return _knee(candidates, squares, best, limit, (smallest, largest))


def _between(low: float, high: float, steps: int) -> list[float]:
    return [low * (high / low) ** (i / steps) for i in range(steps + 1)]


def _limit(least: float, points: int, scatter: Scatter) -> float | None:
    """Sums of squares up to this are not significantly worse than the least."""
    spare = points - _PARAMETERS
    noise, freedom = scatter.variance_of_median, scatter.freedom
    if spare > 0 and (noise is None or least / spare > noise):
        noise, freedom = least / spare, spare
    if noise is None:
        return None
    return least + noise * quantile_t(freedom) ** 2


def _knee(
    candidates: list[float], squares: list[float], best: int, limit: float, measured: tuple[float, float]
) -> Knee:
    """The interval that the profile allows, and in words where it is open."""
    smallest, largest = measured
    allowed = [i for i, value in enumerate(squares) if value <= limit]
    # The truth may lie between two candidates.
    first, last = max(0, allowed[0] - 1), min(len(candidates) - 1, allowed[-1] + 1)
    low = candidates[first] if allowed[0] > 0 else None
    high = candidates[last] if candidates[last] <= largest else None
    value: float | None = candidates[best]
    reason = ""
    if value is not None and (low is None or high is None or not smallest < value < largest):
        value = None
        reason = _reason(low, high, smallest, largest)
    return Knee(value=value, low=low, high=high, smallest=smallest, largest=largest, reason=reason)


def _reason(low: float | None, high: float | None, smallest: float, largest: float) -> str:
    if low is None and high is None:
        return f"the points from {_number(smallest)} to {_number(largest)} show no bend beyond their noise"
    if low is None:
        return f"at or below {_number(smallest)}, the least measured; at most {_number(high or smallest)}"
    if low >= largest:
        return f"above {_number(largest)}, the most measured"
    return f"above {_number(low)}: the points end at {_number(largest)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= _WHOLE or value == int(value) else f"{value:.3g}"
