"""Least squares over a few columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["solve"]

_SINGULAR = 1e-10


def solve(columns: Sequence[Sequence[float]], y: Sequence[float], weights: Sequence[float]) -> list[float] | None:
    """Coefficients of the columns whose sum is nearest to y; None where the columns do not determine them.

    Args:
        columns: Of equal length, entries near one.
        y: What is to be explained.
        weights: Of each squared error.
    """
    size = len(columns)
    weighted = [[w * value for w, value in zip(weights, column, strict=True)] for column in columns]
    rows = [
        [*(sum(map(float.__mul__, left, column)) for column in columns), sum(map(float.__mul__, left, y))]
        for left in weighted
    ]
    scale = [row[i] for i, row in enumerate(rows)]
    for i in range(size):
        if rows[i][i] <= _SINGULAR * scale[i]:
            return None
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum(rows[i][j] * found[j] for j in range(i + 1, size))) / rows[i][i]
    return found
