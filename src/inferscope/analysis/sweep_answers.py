"""Which batch meets an objective with most tokens a second, and where another point would say more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inferscope.analysis.knees import Curve
    from inferscope.analysis.objective import Answer, Objective
    from inferscope.analysis.sweep_points import Point
    from inferscope.analysis.sweep_summary import PointResult, Sweep

__all__ = ["Goodput", "goodput_of", "points_that_say_more"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The batch that meets the objective with most tokens a second, for one prompt length.

    Attributes:
        input_tokens: Prompt tokens of each sequence.
        batch_size: The best of the batches that certainly meet it; None where none does.
        tokens_per_s: There.
        low: The largest batch that certainly meets it; None where none does.
        high: The smallest larger batch that certainly does not, or ran out of memory; None where none was measured.
        said: The answer in words.
    """

    input_tokens: int
    batch_size: int | None
    tokens_per_s: float | None
    low: int | None
    high: int | None
    said: str


def goodput_of(input_tokens: int, results: Sequence[PointResult], objective: Objective) -> Goodput:
    """The answer for one prompt length of one setting.

    Args:
        input_tokens: The length.
        results: Its points.
        objective: What is to be met.
    """
    answers = {one.point.batch_size: _answer(one, objective) for one in results}
    speeds = {one.point.batch_size: one.tokens_per_s or 0.0 for one in results}
    meets = [batch for batch, answer in answers.items() if answer == "yes"]
    best = max(meets, key=lambda batch: speeds[batch], default=None)
    low = max(meets, default=None)
    over = [batch for batch, answer in answers.items() if answer == "no" and (low is None or batch > low)]
    high = min(over, default=None)
    doubtful = sorted(batch for batch, answer in answers.items() if answer == "cannot tell")
    return Goodput(
        input_tokens=input_tokens,
        batch_size=best,
        tokens_per_s=None if best is None else speeds[best],
        low=low,
        high=high,
        said=_said(best, high, doubtful, (min(answers), max(answers))),
    )


def _answer(result: PointResult, objective: Objective) -> Answer:
    if result.status == "out of memory":
        return "no"
    if result.status != "measured":
        return "cannot tell"
    timings = {"ttft": result.ttft_ns, "tpot": result.tpot_ns}
    answers = {limit.held_by(timings[limit.what]) for limit in objective.limits}
    return "no" if "no" in answers else "cannot tell" if "cannot tell" in answers else "yes"


def _said(best: int | None, high: int | None, doubtful: Sequence[int], measured: tuple[int, int]) -> str:
    doubt = f"; cannot tell for batch {', '.join(map(str, doubtful))}" if doubtful else ""
    if best is None:
        if doubtful:
            return f"cannot tell: no batch certainly meets it{doubt}"
        return f"no batch from {measured[0]} to {measured[1]} meets it"
    if high is None and not doubtful:
        return f"batch {best} is best; the largest measured, {measured[1]}, meets it: larger ones may be better"
    ends = "" if high is None else f"; batch {high} does not meet it"
    return f"batch {best} is best{ends}{doubt}"


def points_that_say_more(sweep: Sweep) -> list[Point]:
    """Points not asked for, between those measured, where the answers are least certain: bisection.

    Around the weight knee of decode, at the shortest prompts, and around the best batch of each prompt length.

    Args:
        sweep: So far.
    """
    found: set[Point] = set()
    for series in sweep.series:
        measured = [one for one in series.points if one.status == "measured"]
        for goodput in series.goodput:
            alike = [one.point for one in measured if one.point.input_tokens == goodput.input_tokens]
            if goodput.low is not None and goodput.high is not None and alike:
                found.update(_middle(alike, goodput.low, goodput.high))
        shortest = min((one.point.input_tokens for one in measured), default=0)
        alike = [one.point for one in measured if one.point.input_tokens == shortest]
        if not isinstance(series.decode, str):
            found.update(_round_knee(series.decode, alike))
    return sorted(found)


def _round_knee(curve: Curve, points: Sequence[Point]) -> Iterator[Point]:
    """The middle of the widest gap that the knee may lie in."""
    knee = curve.weight_knee
    if knee.low is None and knee.high is None:
        return
    low, high = knee.low or knee.smallest, knee.high or knee.largest
    batches = sorted({point.batch_size for point in points})
    gaps = [(b / a, a, b) for a, b in pairwise(batches) if a < high and b > low and b > a + 1]
    if gaps:
        _, a, b = max(gaps)
        yield from _middle(points, a, b)


def _middle(points: Sequence[Point], low: int, high: int) -> Iterator[Point]:
    if high > low + 1:
        yield replace(points[0], batch_size=min(max(round(math.sqrt(low * high)), low + 1), high - 1))
