"""Two sets that were recorded in turns: each turn is one observation.

Requests that follow each other share what the machine does meanwhile, and those of one process its memory layout, its
caches and its warm-up. Their number therefore says little about how certain a difference is. Where both sides ran in
turns, that shared part differs from turn to turn like everything else, and medians of turns can be compared instead.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.measures import Measured, Shape

__all__ = ["FEWEST_TURNS", "in_turns"]

FEWEST_TURNS = 4
"""Of each side: with fewer there would be no interval."""


def in_turns(
    first: Sequence[Measured], second: Sequence[Measured]
) -> tuple[tuple[Measured, ...], tuple[Measured, ...], int] | None:
    """Medians of each turn by work, and how many turns the side with fewer had; None where there were too few.

    A turn is what one side did before the other side came next, by the time at which requests began.

    Args:
        first: Requests of the one side.
        second: Requests of the other.
    """
    ordered = sorted(
        [(one.started_unix_ns, 0, one) for one in first] + [(one.started_unix_ns, 1, one) for one in second],
        key=lambda entry: entry[:2],
    )
    turns: tuple[list[list[Measured]], list[list[Measured]]] = ([], [])
    last = None
    for _, side, one in ordered:
        if side != last:
            turns[side].append([])
            last = side
        turns[side][-1].append(one)
    fewest = min(map(len, turns))
    if fewest < FEWEST_TURNS:
        return None
    return _medians(turns[0]), _medians(turns[1]), fewest


def _medians(turns: Sequence[Sequence[Measured]]) -> tuple[Measured, ...]:
    made = []
    for number, turn in enumerate(turns):
        by_shape: defaultdict[Shape, list[Measured]] = defaultdict(list)
        for one in turn:
            by_shape[one.shape].append(one)
        made += [_median(alike, number) for alike in by_shape.values()]
    return tuple(made)


def _median(alike: Sequence[Measured], number: int) -> Measured:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for one in alike:
        for name, value in one.values.items():
            values[name].append(value)
    return replace(alike[0], number=number, values={name: median(several) for name, several in values.items()})
