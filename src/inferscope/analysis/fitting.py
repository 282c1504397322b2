"""Cost polynomials solved from counted forwards, exactly or not at all."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

from inferscope.analysis.moments import letters_of, moment
from inferscope.errors import CostUnavailableError
from inferscope.specs import (
    BASIS,
    EXPERT_LETTERS,
    SHORT,
    CostTerms,
    OperatorTerms,
    PeakTerms,
    Structure,
    block_pairs,
    columns_of,
    regime_of,
    segment_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inferscope.specs import CountTable, Regime, ShapeCount

__all__ = ["QUANTITIES", "Quantity", "fit"]

Quantity = Literal["calls", "launches", "flops", "flops_full", "weight_bytes", "activation_bytes", "executed_bytes"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
# What torch runs, not what the mathematics asks for: its layouts differ a little between one sequence and several.
_AS_RUN: tuple[Quantity, ...] = ("calls", "launches", "executed_bytes")
_SMALL_WINDOW = 12
_LONG_TOKENS = 300
"""Contradictions beyond this length limit where the terms are valid; before, they refute them."""


def fit(table: CountTable) -> CostTerms:
    """Solve counted forwards for integer coefficients, exactly.

    A few layouts take fewer copies for a single sequence than for several. Where calls, launches and executed bytes
    are one polynomial for batches and another for single sequences, they are those of batches, and `notes` says by
    how many launches a single sequence stays below; all other quantities hold for both, or there is no cost.

    Args:
        table: Counted forwards; at least as many independent shapes per regime and segment as it has monomials.

    Returns:
        Terms that reproduce every forward of the table with error 0, but for what `notes` says. Regimes without
        shapes are left out.

    Raises:
        CostUnavailableError: The shapes do not determine the coefficients, or a quantity of a group is no
            such polynomial; the message names them.
    """
    notes = list(table.notes)
    systems: dict[tuple[Regime, str], _System] = {}
    for key, shapes in _by_segment(table, table.shapes).items():
        columns = columns_of(table.structure, *key, keeps_logits=table.supports_logits_to_keep)
        systems[key] = _System(*key, shapes, columns, table.structure)
    used = {name for system in systems.values() for name in system.columns}
    basis = (*BASIS, *sorted(used - set(BASIS)))
    operators = [terms for system in systems.values() for terms in system.operators(basis)]
    notes += [note for system in systems.values() for note in system.notes()]
    limits = [(system.valid_tokens, system.limited_by) for system in systems.values() if system.valid_tokens]
    valid_tokens, limited_by = min(limits, default=(None, ""))
    if valid_tokens is not None:
        notes.append(f"valid up to {valid_tokens} tokens: beyond, {limited_by} is no such polynomial")
    return CostTerms(
        operators=tuple(operators),
        kv_bytes_per_token=table.kv_bytes_per_token,
        logits_bytes=table.logits_bytes,
        supports_logits_to_keep=table.supports_logits_to_keep,
        uncounted=table.uncounted,
        notes=tuple(notes),
        basis=basis,
        structure=table.structure,
        caches=table.caches,
        hidden_bytes=table.hidden_bytes,
        counted_tokens=valid_tokens or table.counted_tokens,
        valid_tokens=valid_tokens,
        peaks=tuple(_peaks(table, basis)),
        stored_bytes=table.stored_bytes,
    )


def _peaks(table: CountTable, basis: Sequence[str]) -> Iterator[PeakTerms]:
    """Memory at the moments that were followed; none of a segment where one of them is no such polynomial."""
    for (regime, segment), shapes in _by_segment(table, table.lives).items():
        columns = columns_of(table.structure, regime, segment, keeps_logits=table.supports_logits_to_keep)
        try:
            system = _System(regime, segment, shapes, columns, table.structure)
        except CostUnavailableError:
            continue
        moments = range(len(shapes[0].live_bytes))
        found = [system.solved([shape.live_bytes[moment] for shape in system.shapes]) for moment in moments]
        for solution in found if None not in found else ():
            spread = dict(zip(system.columns, solution or (), strict=True))
            live_bytes = tuple(spread.get(name, 0) for name in basis)
            yield PeakTerms(regime=regime, segment=segment, live_bytes=live_bytes)


def _by_segment(table: CountTable, counted: Iterable[ShapeCount]) -> dict[tuple[Regime, str], list[ShapeCount]]:
    found: dict[tuple[Regime, str], list[ShapeCount]] = {}
    for shape in counted:
        regime = shape.regime or regime_of(shape.q_len, shape.past_len)
        segment = segment_of(table.structure, regime, shape.q_len, shape.past_len)
        found.setdefault((regime, segment), []).append(shape)
    return found


class _System:
    """The shapes of one segment, and what follows from them."""

    def __init__(
        self,
        regime: Regime,
        segment: str,
        shapes: list[ShapeCount],
        columns: Sequence[str],
        structure: Structure,
    ) -> None:
        self._regime = regime
        self._segment = segment
        # Batches determine, single sequences contradict: for these a few layouts take fewer copies.
        self.shapes = shapes = sorted(shapes, key=lambda shape: shape.batch_size == 1)
        self.columns = _distinguishable(columns, regime, segment, structure)
        self._by_shape = [{group.group: group for group in shape.groups} for shape in shapes]
        letters = [_letters(shape, structure) for shape in shapes]
        self._design = [[int(moment(name, values)) for name in self.columns] for values in letters]
        self._chosen, self._inverse = _independent(self._design, regime)
        self._launches_missed: list[tuple[ShapeCount, int]] = []
        self.valid_tokens: int | None = None
        self.limited_by = ""

    def operators(self, basis: Sequence[str]) -> list[OperatorTerms]:
        """Terms of every group seen at any of the shapes."""
        names = sorted({name for groups in self._by_shape for name in groups})
        return [self._terms(name, basis) for name in names]

    def notes(self) -> list[str]:
        """Where a single sequence launches other than the terms say."""
        by_shape: dict[tuple[int, int], int] = {}
        for shape, missed in self._launches_missed:
            key = (shape.q_len, shape.past_len)
            by_shape[key] = by_shape.get(key, 0) + missed
        return [
            f"a single sequence takes {missed} launches fewer than counted ({self._regime}, {q} tokens behind {past})"
            for (q, past), missed in by_shape.items()
            if missed
        ]

    def _terms(self, group: str, basis: Sequence[str]) -> OperatorTerms:
        spread: dict[Quantity, tuple[int, ...]] = {}
        for quantity in QUANTITIES:
            solved = dict(zip(self.columns, self._solved(group, quantity), strict=True))
            spread[quantity] = tuple(solved.get(name, 0) for name in basis)
        return OperatorTerms(group=group, regime=self._regime, segment=self._segment, **spread)

    def solved(self, values: Sequence[int]) -> tuple[int, ...] | None:
        """Coefficients that give these values at all of the shapes; None where no whole numbers do."""
        exact = self._exactly(values)
        solution = tuple(int(value) for value in exact)
        whole = all(value.denominator == 1 for value in exact)
        agrees = all(_dot(solution, row) == value for row, value in zip(self._design, values, strict=True))
        return solution if whole and agrees else None

    def _exactly(self, values: Sequence[int]) -> list[Fraction]:
        known = [values[index] for index in self._chosen]
        return [
            sum((part * value for part, value in zip(row, known, strict=True)), Fraction()) for row in self._inverse
        ]

    def _solved(self, group: str, quantity: Quantity) -> tuple[int, ...]:
        values = [int(getattr(groups.get(group), quantity, 0)) for groups in self._by_shape]
        exact = self._exactly(values)
        solution = tuple(int(value) for value in exact)
        wrong = {
            index: _dot(solution, row) - value
            for index, (row, value) in enumerate(zip(self._design, values, strict=True))
            if _dot(solution, row) != value
        }
        if any(value.denominator != 1 for value in exact) or not self._holds(group, quantity, wrong):
            raise CostUnavailableError(
                f"{quantity} of {group!r} in {self._regime} is no polynomial in {', '.join(self.columns)}: "
                "something else than batch and lengths decides what this model runs"
            )
        if quantity == "launches":
            single = {index: missed for index, missed in wrong.items() if self.shapes[index].batch_size == 1}
            self._launches_missed.extend((self.shapes[index], missed) for index, missed in single.items())
        return solution

    def _holds(self, group: str, quantity: Quantity, wrong: Iterable[int]) -> bool:
        """Whether forwards that the polynomial misses are of kinds that it need not meet."""
        single = {index for index in wrong if quantity in _AS_RUN and self.shapes[index].batch_size == 1}
        missed = [_kv_len(self.shapes[index]) for index in wrong if index not in single]
        if missed:
            shorter = [_kv_len(shape) for shape in self.shapes if _kv_len(shape) < min(missed)]
            if min(missed) < _LONG_TOKENS or len(shorter) < len(self._chosen):
                return False
            if self.valid_tokens is None or max(shorter) < self.valid_tokens:
                self.valid_tokens = max(shorter)
                self.limited_by = f"{quantity} of {group!r} in {self._regime}"
        return True


def _letters(shape: ShapeCount, structure: Structure) -> dict[str, float]:
    return letters_of(
        structure,
        batch_size=shape.batch_size,
        q_len=shape.q_len,
        past_len=shape.past_len,
        logits=shape.logits,
        encoder_len=shape.encoder_len,
        experts=shape.experts,
    )


def _kv_len(shape: ShapeCount) -> int:
    return shape.past_len + shape.q_len


def _distinguishable(columns: Sequence[str], regime: Regime, segment: str, structure: Structure) -> tuple[str, ...]:
    """The columns that lengths within a very short window can tell apart; all of them anywhere else.

    Coefficients that no length of the segment can tell apart may be chosen freely: the left-out ones are 0.
    """
    limits = [w for w, digit in zip(structure.windows, segment, strict=False) if digit in "01"]
    if SHORT in segment:
        limits.append(structure.state_len or 0)
    if segment == "first" or min(limits, default=_SMALL_WINDOW + 1) > _SMALL_WINDOW:
        return tuple(columns)
    rows = []
    lengths = range(1, 3 * _SMALL_WINDOW)
    for q, past in product(lengths, (0, *lengths)):
        if regime_of(q, past) == regime and segment_of(structure, regime, q, past) == segment:
            # Any values do for what does not depend on these lengths.
            for b, n, e, x in ((2, 1, 31, 1), (3, q, 53, 2), (5, 1, 11, 3), (2, q, 17, 5), (7, 1, 37, 7)):
                values = {"b": b, "q": q, "k": past + q, "n": n, "e": e}
                values |= {"c": 1, "t": block_pairs(structure.attention_chunk or 1, q, past)}
                values |= {letter: x * (1 + index) + q for index, letter in enumerate(EXPERT_LETTERS)}
                rows.append([int(moment(name, values)) for name in columns])
    return tuple(columns[index] for index in _pivots(rows))


def _pivots(rows: list[list[int]]) -> list[int]:
    """Columns that are no combination of those before them."""
    kept: list[int] = []
    basis: list[tuple[int, list[Fraction]]] = []
    for index in range(len(rows[0]) if rows else 0):
        column = [Fraction(row[index]) for row in rows]
        for pivot, other in basis:
            factor = column[pivot] / other[pivot]
            column = _minus(column, other, factor)
        found = next((position for position, value in enumerate(column) if value), None)
        if found is not None:
            basis.append((found, column))
            kept.append(index)
    return kept


def _independent(design: list[list[int]], regime: Regime) -> tuple[list[int], list[list[Fraction]]]:
    """The first rows that determine all columns, and the inverse of the square matrix they form."""
    size = len(design[0])
    reduced: list[tuple[int, list[Fraction]]] = []
    chosen: list[int] = []
    for index, row in enumerate(design):
        unit = [Fraction(int(position == len(chosen))) for position in range(size)]
        rest = [Fraction(value) for value in row] + unit
        for column, pivot_row in reduced:
            rest = _minus(rest, pivot_row, rest[column])
        pivot = next((column for column in range(size) if rest[column]), None)
        if pivot is None:
            continue
        rest = [value / rest[pivot] for value in rest]
        reduced = [(column, _minus(other, rest, other[pivot])) for column, other in reduced]
        reduced.append((pivot, rest))
        chosen.append(index)
        if len(chosen) == size:
            return chosen, [row[size:] for _, row in sorted(reduced, key=lambda entry: entry[0])]
    raise CostUnavailableError(
        f"{len(design)} {regime} shapes leave {size - len(chosen)} of {size} coefficients undetermined"
    )


def _minus(row: list[Fraction], pivot_row: list[Fraction], factor: Fraction) -> list[Fraction]:
    return [value - factor * other for value, other in zip(row, pivot_row, strict=True)] if factor else row


def _dot(coefficients: Sequence[int], values: Sequence[int]) -> int:
    return sum(coefficient * value for coefficient, value in zip(coefficients, values, strict=True))
