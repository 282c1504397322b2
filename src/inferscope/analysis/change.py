"""What became of one number from one set of records to another: an interval, and what may be concluded from it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.measures import kind_of
from inferscope.analysis.shift import Method, Shift, repeats_needed, shift

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from inferscope.analysis.measures import Measured

__all__ = ["Answer", "Change", "Interval", "Unit", "change_of", "device_change_of", "more_needed"]

Answer = Literal["less", "more", "same", "cannot tell"]
Unit = Literal["requests", "turns"]

_TOO_MANY_TIMES = 50
"""Requests are not asked for where so many times those at hand would be needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and where the truth lies in 95 of 100 such cases.

    Attributes:
        value: Best estimate.
        low: Lower end; None where there are too few requests for one.
        high: Upper end; None with `low`.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One number of the baseline and of the candidate, over the requests that did the same work.

    Attributes:
        metric: "tpot", "decode.wall", "syncs_per_token", ...
        kind: "time" (nanoseconds) or "count" (per further token).
        baseline: Median of the baseline's observations; None where none has the number.
        candidate: Median of the candidate's.
        baseline_observations: How many were compared.
        candidate_observations: How many were compared.
        ratio: Candidate over baseline; None where a value is 0 or nothing matches.
        difference: Candidate less baseline, in the metric's unit; None where nothing matches.
        answer: What the interval says: "less", "more", "same" (within the tolerance) or "cannot tell".
        why: Why it cannot tell, and what would help; "" otherwise.
        method: "paired" or "stratified", as `shift` has it; None where nothing matches.
        unit: What one observation is: a request, or the median of those of one turn.
    """

    metric: str
    kind: Literal["time", "count"]
    baseline: float | None
    candidate: float | None
    baseline_observations: int
    candidate_observations: int
    ratio: Interval | None
    difference: Interval | None
    answer: Answer
    why: str = ""
    method: Method | None = None
    unit: Unit = "requests"


_Groups = list[tuple[list[float], list[float]]]


def change_of(
    metric: str,
    baseline: Iterable[Measured],
    candidate: Iterable[Measured],
    *,
    alike: Callable[[Measured], Hashable],
    tolerance: float,
    unit: Unit = "requests",
) -> Change:
    """One metric, compared among requests that are alike.

    Args:
        metric: Its name in `Measured.values`.
        baseline: Requests of the one side.
        candidate: Requests of the other.
        alike: The same for two requests that may be compared.
        tolerance: Ratios nearer to 1 than this count as the same.
        unit: What one observation is.
    """
    groups = _grouped(baseline, candidate, metric, metric, alike)
    firsts, seconds = _flat(groups)
    positive = min((*firsts, *seconds), default=0.0) > 0
    in_log = shift([(_logs(first), _logs(second)) for first, second in groups]) if positive else None
    plain = shift(groups)
    made = Change(
        metric=metric,
        kind=kind_of(metric),
        baseline=median(firsts) if firsts else None,
        candidate=median(seconds) if seconds else None,
        baseline_observations=len(firsts),
        candidate_observations=len(seconds),
        ratio=None if in_log is None else _of(in_log, math.exp),
        difference=None if plain is None else _of(plain),
        answer="cannot tell",
        method=None if plain is None else plain.method,
        unit=unit,
    )
    if made.kind == "count" and (exact := _exact_answer(groups)) is not None:
        return replace(made, answer=exact)
    return _conclude(made, tolerance=tolerance, sizes=[(len(first), len(second)) for first, second in groups])


def device_change_of(
    phase: str,
    baseline: Sequence[Measured],
    candidate: Sequence[Measured],
    *,
    alike: Callable[[Measured], Hashable],
    tolerance: float,
    unit: Unit = "requests",
) -> Change | None:
    """The device's time in a phase, of which either side is known as an interval only; None where it is not known.

    The ratio's interval covers both: that of the measurement and that of the sample.
    """
    low, high = f"{phase}.device.low", f"{phase}.device.high"
    ends = [
        _grouped(baseline, candidate, first, second, alike)
        for first, second in ((high, low), (low, high), (high, high))
    ]
    if not ends[0]:
        return None
    shifts = [shift([(_logs(first), _logs(second)) for first, second in _above_zero(groups)]) for groups in ends]
    least, most, middle = shifts
    highs, seconds = _flat(ends[2])
    known = least is not None and most is not None and middle is not None
    ratio = None
    if known:
        bounds = [None if end is None else math.exp(end) for end in (least.low, most.high)]  # type: ignore[union-attr]
        both = None not in bounds
        ratio = Interval(
            value=math.exp(middle.value),  # type: ignore[union-attr]
            low=bounds[0] if both else None,
            high=bounds[1] if both else None,
        )
    made = Change(
        metric=f"{phase}.device",
        kind="time",
        baseline=median(highs),
        candidate=median(seconds),
        baseline_observations=len(highs),
        candidate_observations=len(seconds),
        ratio=ratio,
        difference=None,
        answer="cannot tell",
        method=None if middle is None else middle.method,
        unit=unit,
    )
    decided = _conclude(made, tolerance=tolerance, sizes=[(len(first), len(second)) for first, second in ends[2]])
    if decided.answer == "cannot tell" and ratio is not None and ratio.low is not None:
        return replace(decided, why="the device's time is known between limits only, and these overlap")
    return decided


def _conclude(change: Change, *, tolerance: float, sizes: Sequence[tuple[int, int]]) -> Change:
    """The change with what may be concluded from it; `sizes` are requests of either side by group."""
    interval, one = (change.ratio, 1.0) if change.ratio is not None else (change.difference, 0.0)
    if interval is None:
        return replace(change, why="no request of the one set did the same work as one of the other")
    if interval.low is None or interval.high is None:
        more = repeats_needed(sizes)
        return replace(
            change, why=f"too few: {more or 'many'} more {change.unit} of each length are needed, on both sides"
        )
    room = tolerance if change.ratio is not None else tolerance * abs(change.baseline or 0.0)
    low_end = one / (1 + room) if change.ratio is not None else -room
    if low_end <= interval.low and interval.high <= one + room:
        return replace(change, answer="same")
    if interval.high < one:
        return replace(change, answer="less")
    if interval.low > one:
        return replace(change, answer="more")
    return replace(change, why=more_needed(change, one))


def more_needed(change: Change, border: float) -> str:
    """What would decide on which side of a border a change lies, in words.

    Args:
        change: One whose interval holds the border.
        border: A ratio; a difference where the change has no ratio.
    """
    interval = change.ratio or change.difference
    if interval is None or interval.low is None or interval.high is None:
        return change.why
    scale: Callable[[float], float] = math.log if change.ratio is not None else float
    distance = abs(scale(interval.value) - scale(border))
    half = (scale(interval.high) - scale(interval.low)) / 2
    have = min(change.baseline_observations, change.candidate_observations)
    if distance * math.sqrt(_TOO_MANY_TIMES) <= half:
        return "the interval holds both: the difference is small beside the spread"
    factor = (half / distance) ** 2
    return f"the interval holds both: about {max(1, math.ceil(have * factor) - have):,} more {change.unit} on each side"


def _exact_answer(groups: _Groups) -> Answer | None:
    """What counts say where all requests of the same work have the same one, as they should; None where they vary."""
    if not groups or any(len(set(values)) > 1 for group in groups for values in group):
        return None
    signs = {(second[0] > first[0]) - (second[0] < first[0]) for first, second in groups} - {0}
    if len(signs) > 1:
        return None
    return "same" if not signs else "more" if 1 in signs else "less"


def _of(found: Shift, back: Callable[[float], float] = float) -> Interval:
    return Interval(
        value=back(found.value),
        low=None if found.low is None else back(found.low),
        high=None if found.high is None else back(found.high),
    )


def _grouped(
    baseline: Iterable[Measured],
    candidate: Iterable[Measured],
    first: str,
    second: str,
    alike: Callable[[Measured], Hashable],
) -> _Groups:
    """Values of alike requests, where both sides have some."""
    groups: defaultdict[Hashable, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for side, (requests, metric) in enumerate(((baseline, first), (candidate, second))):
        for one in requests:
            if (value := one.values.get(metric)) is not None:
                groups[alike(one)][side].append(value)
    return [group for group in groups.values() if group[0] and group[1]]


def _flat(groups: _Groups) -> tuple[list[float], list[float]]:
    return [value for first, _ in groups for value in first], [value for _, second in groups for value in second]


def _above_zero(groups: _Groups) -> _Groups:
    kept = [([v for v in first if v > 0], [v for v in second if v > 0]) for first, second in groups]
    return [group for group in kept if group[0] and group[1]]


def _logs(values: Iterable[float]) -> list[float]:
    return [math.log(value) for value in values]
