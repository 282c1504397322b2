"""What a forward costs: exact polynomials over shapes, solved from counted forwards, evaluated without torch.

Every quantity of every operator group is a polynomial in batch, new tokens, cache length and kept logits (see
`specs.BASIS`). A dozen counted forwards per regime determine its integer coefficients; the surplus forwards must
come out exactly, or the model has no cost. Because a cost is linear in the monomials, ten thousand passes are
costed by one evaluation of their summed monomials.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from inferscope.errors import CostUnavailableError
from inferscope.records import Work
from inferscope.specs import BASIS, CostTerms, OperatorTerms, Regime, monomials, regime_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.specs import CountTable, ShapeCount

__all__ = ["ByteTriple", "GroupCost", "PassCost", "evaluate", "fit", "monomials", "pass_cost", "regime_of"]

Quantity = Literal["calls", "launches", "flops", "flops_full", "weight_bytes", "activation_bytes", "executed_bytes"]
_QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
_REGIMES: tuple[Regime, ...] = get_args(Regime)
# What torch runs, not what the mathematics asks for: its layouts differ a little between one sequence and several.
_AS_RUN: tuple[Quantity, ...] = ("calls", "launches", "executed_bytes")
_TOKEN_ID_BYTES = 8

# Monomials that are not the same number as another one throughout the regime: k = q in prefill, q = n = 1 in
# decode. The left-out ones get the coefficient 0.
_COLUMNS: dict[Regime, tuple[str, ...]] = {
    "prefill": ("1", "q", "b", "bq", "qk", "bqk", "bn"),
    "decode": ("1", "k", "b", "bk"),
    "continuation": BASIS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteTriple:
    """Memory traffic from the least possible to what the operators do as they run.

    `minimum` <= `model` <= `executed` for every model counted here with a cache, as executed operators include
    the matrix products. `executed` falls below `model` where no cache is written or read although `model` charges
    it, and the counts are then shown as they are.

    Attributes:
        minimum: Perfect fusion: weights, KV read and written, token ids in, kept logits out.
        model: Weights, KV read and written, inputs and outputs of every matrix product and attention.
        executed: Inputs and outputs of every operator that is not a view.
    """

    minimum: int
    model: int
    executed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCost:
    """Share of one operator group in a `PassCost`.

    Attributes:
        group: As in `OperatorTerms`.
        flops: Causal.
        flops_full: Whole rectangle.
        bytes: Weights and activations; KV read belongs to "attention", KV write to "kv-cache". Adds up to
            `PassCost.bytes.model`.
        executed_bytes: As the operators run.
        calls: Operators dispatched.
        launches: Operators that launch a kernel.
    """

    group: str
    flops: int
    flops_full: int
    bytes: int
    executed_bytes: int
    calls: int
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCost:
    """Operations and bytes of one forward, or summed over several.

    Multiply and add count as two; matrix products and attention are counted, elementwise work is not.

    Attributes:
        flops: Causal: pairs that the mask removes are not counted.
        flops_full: Whole rectangle, as torch's `FlopCounterMode` counts.
        weight_bytes: Parameters read: each storage once per pass, embeddings by gathered rows.
        kv_read_bytes: Cache read: k tokens of every sequence.
        kv_write_bytes: Cache written: q tokens of every sequence.
        activation_bytes: Inputs and outputs of matrix products and attention, without weights and KV.
        bytes: The three totals.
        calls: Operators dispatched, views included.
        launches: Operators that launch a kernel.
        groups: Share of each operator group, most FLOPs first.
        uncounted: Operators without a formula: their FLOPs are missing here.
    """

    flops: int
    flops_full: int
    weight_bytes: int
    kv_read_bytes: int
    kv_write_bytes: int
    activation_bytes: int
    bytes: ByteTriple
    calls: int
    launches: int
    groups: tuple[GroupCost, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def arithmetic_intensity(self) -> float | None:
        """Causal FLOPs per byte of `bytes.model`; None where no bytes move."""
        return self.flops / self.bytes.model if self.bytes.model else None


def fit(table: CountTable) -> CostTerms:
    """Solve counted forwards for integer coefficients, exactly.

    A few layouts take fewer copies for a single sequence than for several. Where calls, launches and executed bytes
    are one polynomial for batches and another for single sequences, they are those of batches, and `notes` says by
    how many launches a single sequence stays below; all other quantities hold for both, or there is no cost.

    Args:
        table: Counted forwards; at least as many independent shapes per regime as it has monomials.

    Returns:
        Terms that reproduce every forward of the table with error 0, but for what `notes` says. Regimes without
        shapes are left out.

    Raises:
        CostUnavailableError: The shapes do not determine the coefficients, or a quantity of a group is no
            such polynomial; the message names them.
    """
    operators: list[OperatorTerms] = []
    notes = list(table.notes)
    for regime in _REGIMES:
        shapes = [shape for shape in table.shapes if regime_of(shape.q_len, shape.past_len) == regime]
        if shapes:
            columns = [name for name in _COLUMNS[regime] if name != "bn" or table.supports_logits_to_keep]
            fitting = _Fitting(regime, shapes, columns)
            operators.extend(fitting.operators())
            notes.extend(fitting.notes())
    return CostTerms(
        operators=tuple(operators),
        kv_bytes_per_token=table.kv_bytes_per_token,
        logits_bytes=table.logits_bytes,
        supports_logits_to_keep=table.supports_logits_to_keep,
        uncounted=table.uncounted,
        notes=tuple(notes),
    )


def evaluate(terms: CostTerms, work: Iterable[Work]) -> PassCost:
    """Cost of any number of passes from their summed monomials; equal to the sum of the passes' costs.

    Args:
        terms: Of the model that ran.
        work: Sums over passes. A pass without a cache is prefill work at past 0: its keys and values are
            charged as KV traffic all the same, since attention reads and the projections write them.

    Raises:
        CostUnavailableError: The work has a regime that was not counted, or was summed over another basis.
    """
    sums = _summed(work)
    totals: dict[str, dict[str, int]] = {}
    for regime, values in sums.items():
        operators = [entry for entry in terms.operators if entry.regime == regime]
        if not operators:
            raise CostUnavailableError(f"no {regime} forward of this model was counted")
        for entry in operators:
            group = totals.setdefault(entry.group, dict.fromkeys(_QUANTITIES, 0))
            for quantity in _QUANTITIES:
                group[quantity] += _dot(getattr(entry, quantity), values)
    moments = {name: sum(values[BASIS.index(name)] for values in sums.values()) for name in BASIS}
    return _assembled(terms, totals, moments)


def pass_cost(terms: CostTerms, *, batch_size: int, q_len: int, past_len: int, logits_to_keep: int = 1) -> PassCost:
    """Cost of one forward.

    Args:
        terms: Of the model.
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens already cached, per sequence.
        logits_to_keep: Positions per sequence with logits, 0 for all, as transformers' argument of that name;
            models that cannot keep fewer are costed at all of them.

    Raises:
        CostUnavailableError: The shape is impossible, or its regime was not counted.
    """
    if batch_size < 1 or q_len < 1 or past_len < 0 or logits_to_keep < 0:
        raise CostUnavailableError(
            f"no forward has batch_size={batch_size}, q_len={q_len}, past_len={past_len}, "
            f"logits_to_keep={logits_to_keep}"
        )
    keeps_some = terms.supports_logits_to_keep and logits_to_keep > 0
    logits = min(logits_to_keep, q_len) if keeps_some else q_len
    values = monomials(batch_size, q_len, past_len, logits)
    return evaluate(terms, [Work(regime=regime_of(q_len, past_len), passes=1, monomials=values)])


def _summed(work: Iterable[Work]) -> dict[Regime, list[int]]:
    sums: dict[Regime, list[int]] = {}
    for entry in work:
        if len(entry.monomials) != len(BASIS):
            raise CostUnavailableError(
                f"work was summed over {len(entry.monomials)} monomials, not over {len(BASIS)}: {BASIS}"
            )
        total = sums.setdefault(entry.regime, [0] * len(BASIS))
        for index, value in enumerate(entry.monomials):
            total[index] += value
    return sums


def _assembled(terms: CostTerms, totals: dict[str, dict[str, int]], moments: dict[str, int]) -> PassCost:
    kv_read = terms.kv_bytes_per_token * moments["bk"]
    kv_write = terms.kv_bytes_per_token * moments["bq"]
    for group, extra in (("attention", kv_read), ("kv-cache", kv_write)):
        if extra:
            totals.setdefault(group, dict.fromkeys(_QUANTITIES, 0))
    groups = [_group_cost(name, group, kv_read, kv_write) for name, group in totals.items()]
    whole = {quantity: sum(group[quantity] for group in totals.values()) for quantity in _QUANTITIES}
    kept = moments["bn"] if terms.supports_logits_to_keep else moments["bq"]
    carried = whole["weight_bytes"] + kv_read + kv_write
    return PassCost(
        flops=whole["flops"],
        flops_full=whole["flops_full"],
        weight_bytes=whole["weight_bytes"],
        kv_read_bytes=kv_read,
        kv_write_bytes=kv_write,
        activation_bytes=whole["activation_bytes"],
        bytes=ByteTriple(
            minimum=carried + _TOKEN_ID_BYTES * moments["bq"] + terms.logits_bytes * kept,
            model=carried + whole["activation_bytes"],
            executed=whole["executed_bytes"],
        ),
        calls=whole["calls"],
        launches=whole["launches"],
        groups=tuple(sorted(groups, key=lambda group: (-group.flops, -group.bytes, group.group))),
        uncounted=terms.uncounted,
    )


def _group_cost(name: str, group: dict[str, int], kv_read: int, kv_write: int) -> GroupCost:
    carried = {"attention": kv_read, "kv-cache": kv_write}.get(name, 0)
    return GroupCost(
        group=name,
        flops=group["flops"],
        flops_full=group["flops_full"],
        bytes=group["weight_bytes"] + group["activation_bytes"] + carried,
        executed_bytes=group["executed_bytes"],
        calls=group["calls"],
        launches=group["launches"],
    )


class _Fitting:
    """The shapes of one regime, and what follows from them."""

    def __init__(self, regime: Regime, shapes: list[ShapeCount], columns: Sequence[str]) -> None:
        self._regime = regime
        self._shapes = shapes = sorted(shapes, key=lambda shape: shape.batch_size == 1)
        self._columns = columns
        self._by_shape = [{group.group: group for group in shape.groups} for shape in shapes]
        self._design = [[row[BASIS.index(name)] for name in columns] for row in map(_moments, shapes)]
        self._chosen, self._inverse = _independent(self._design, regime)
        self._launches_missed: list[tuple[ShapeCount, int]] = []

    def operators(self) -> list[OperatorTerms]:
        """Terms of every group seen at any of the shapes."""
        names = sorted({name for groups in self._by_shape for name in groups})
        return [self._terms(name) for name in names]

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

    def _terms(self, group: str) -> OperatorTerms:
        spread: dict[Quantity, tuple[int, ...]] = {}
        for quantity in _QUANTITIES:
            solved = dict(zip(self._columns, self._solved(group, quantity), strict=True))
            spread[quantity] = tuple(solved.get(name, 0) for name in BASIS)
        return OperatorTerms(group=group, regime=self._regime, **spread)

    def _solved(self, group: str, quantity: Quantity) -> tuple[int, ...]:
        values = [int(getattr(groups.get(group), quantity, 0)) for groups in self._by_shape]
        known = [values[index] for index in self._chosen]
        exact = [
            sum((part * value for part, value in zip(row, known, strict=True)), Fraction()) for row in self._inverse
        ]
        solution = tuple(int(value) for value in exact)
        wrong = {
            index: _dot(solution, row) - value
            for index, (row, value) in enumerate(zip(self._design, values, strict=True))
            if _dot(solution, row) != value
        }
        if any(value.denominator != 1 for value in exact) or not self._may_differ(quantity, wrong):
            raise CostUnavailableError(
                f"{quantity} of {group!r} in {self._regime} is no polynomial in batch, new tokens, cache length "
                "and kept logits (as with sliding windows or chunked scans)"
            )
        if quantity == "launches":
            self._launches_missed.extend((self._shapes[index], missed) for index, missed in wrong.items())
        return solution

    def _may_differ(self, quantity: Quantity, wrong: Iterable[int]) -> bool:
        return all(quantity in _AS_RUN and self._shapes[index].batch_size == 1 for index in wrong)


def _moments(shape: ShapeCount) -> tuple[int, ...]:
    return monomials(shape.batch_size, shape.q_len, shape.past_len, shape.logits)


def _independent(design: list[list[int]], regime: Regime) -> tuple[list[int], list[list[Fraction]]]:
    """The first rows that determine all columns, and the inverse of the square matrix they form."""
    size = len(design[0])
    reduced: list[tuple[int, list[Fraction]]] = []
    chosen: list[int] = []
    for index, row in enumerate(design):
        unit = [Fraction(int(position == len(chosen))) for position in range(size)]
        rest = [Fraction(value) for value in row] + unit
        for column, pivot_row in reduced:
            factor = rest[column]
            rest = [value - factor * other for value, other in zip(rest, pivot_row, strict=True)]
        pivot = next((column for column in range(size) if rest[column]), None)
        if pivot is None:
            continue
        rest = [value / rest[pivot] for value in rest]
        reduced = [(column, _minus(other, rest, pivot)) for column, other in reduced]
        reduced.append((pivot, rest))
        chosen.append(index)
        if len(chosen) == size:
            return chosen, [row[size:] for _, row in sorted(reduced, key=lambda entry: entry[0])]
    raise CostUnavailableError(
        f"{len(design)} {regime} shapes leave {size - len(chosen)} of {size} coefficients undetermined"
    )


def _minus(row: list[Fraction], pivot_row: list[Fraction], pivot: int) -> list[Fraction]:
    factor = row[pivot]
    return [value - factor * other for value, other in zip(row, pivot_row, strict=True)] if factor else row


def _dot(coefficients: Sequence[int], values: Sequence[int]) -> int:
    return sum(coefficient * value for coefficient, value in zip(coefficients, values, strict=True))
