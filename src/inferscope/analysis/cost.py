"""What a forward costs: exact polynomials over shapes, evaluated without torch.

Every quantity of every operator group is, in each regime and segment, a polynomial in batch, new tokens, cache length
and kept logits, and in what else the model at hand depends on (see `specs.columns_of`); analysis/fitting.py solves
for them. Because a cost is linear in the monomials, ten thousand passes are costed by one evaluation of their sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.fitting import QUANTITIES, fit
from inferscope.analysis.moments import Moments
from inferscope.analysis.printed import cost_text
from inferscope.errors import CostUnavailableError
from inferscope.records import PassRun, Work
from inferscope.specs import CostTerms, Structure, monomials, regime_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.specs import Regime

__all__ = [
    "ByteExtra",
    "ByteTriple",
    "GroupCost",
    "PassCost",
    "encoder_cost",
    "evaluate",
    "fit",
    "monomials",
    "pass_cost",
    "regime_of",
]

_TOKEN_ID_BYTES = 8
_CARRIED = {"attention": "kv_read", "kv-cache": "kv_write"}
_EXTRA_NAMES = {
    "kv-cache": "cache grown by concatenation",
    "kv-repeat": "keys and values repeated for every query head",
    "attention": "attention scores, or keys and values read again",
    "attention scores": "scores and masks of unfused attention",
    "mask": "attention masks",
    "norm/elementwise": "unfused normalisation and elementwise work",
    "embedding": "embedding rows",
    "other": "copies and reshapes",
    "uncounted": "operators without a formula",
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
class ByteExtra:
    """Traffic that the operators as they run cause beyond `ByteTriple.model`.

    Attributes:
        name: What it is, in words.
        group: The operator group that causes it.
        bytes: How much; below zero where a group moves less than the model charges it with.
    """

    name: str
    group: str
    bytes: int


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
        weight_bytes: Parameters read, a part of `bytes`.
    """

    group: str
    flops: int
    flops_full: int
    bytes: int
    executed_bytes: int
    calls: int
    launches: int
    weight_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCost:
    """Operations and bytes of one forward, or summed over several.

    Multiply and add count as two; matrix products and attention are counted, elementwise work is not.

    Attributes:
        flops: Causal: pairs that the mask removes are not counted.
        flops_full: Whole rectangle, as torch's `FlopCounterMode` counts.
        weight_bytes: Parameters read: each storage once per pass, embeddings by gathered rows.
        kv_read_bytes: Cache read: k tokens of every sequence, fewer under a window; states and the encoder's keys
            and values once.
        kv_write_bytes: Cache written: q tokens of every sequence; states once; the encoder's keys and values when
            they are made.
        activation_bytes: Inputs and outputs of matrix products and attention, without weights and KV.
        bytes: The three totals.
        calls: Operators dispatched, views included.
        launches: Operators that launch a kernel.
        groups: Share of each operator group, most FLOPs first.
        uncounted: Operators without a formula: their FLOPs are missing here.
        notes: What is assumed about this cost, in words.
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
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As plain text, in several lines."""
        return cost_text(self)

    @property
    def arithmetic_intensity(self) -> float | None:
        """Causal FLOPs per byte of `bytes.model`; None where no bytes move."""
        return self.flops / self.bytes.model if self.bytes.model else None

    @property
    def extras(self) -> tuple[ByteExtra, ...]:
        """What `bytes.executed` has beyond `bytes.model`, largest first; adds up to the difference."""
        found = (
            ByteExtra(
                name=_EXTRA_NAMES.get(group.group, f"as run: {group.group}"),
                group=group.group,
                bytes=group.executed_bytes - group.bytes,
            )
            for group in self.groups
        )
        return tuple(sorted((extra for extra in found if extra.bytes), key=lambda extra: (-extra.bytes, extra.group)))

    @property
    def uncounted_share(self) -> float:
        """Part of the executed bytes (0..1) that operators without a formula move: how much their FLOPs may matter."""
        total = self.bytes.executed
        found = sum(group.executed_bytes for group in self.groups if group.group == "uncounted")
        return found / total if total else 0.0


def evaluate(terms: CostTerms, work: Iterable[Work]) -> PassCost:
    """Cost of any number of passes from their summed monomials; equal to the sum of the passes' costs.

    Args:
        terms: Of the model that ran.
        work: Sums over passes. A pass without a cache is prefill work at past 0: its keys and values are
            charged as KV traffic all the same, since attention reads and the projections write them.

    Raises:
        CostUnavailableError: The work has a regime that was not counted, or was summed over another basis, or the
            model needs what the work does not tell.
    """
    sums = Moments(terms)
    for passes in work:
        sums.add(passes)
    limit = terms.valid_tokens
    if limit is not None and sums.longest > limit:
        why = next((note for note in terms.notes if note.startswith("valid up to")), "")
        raise CostUnavailableError(f"no cost of {sums.longest} tokens: {why}")
    totals: dict[str, dict[str, float]] = {}
    for key, values in sums.moments.items():
        operators = [entry for entry in terms.operators if (entry.regime, entry.segment) == key]
        if not operators:
            raise CostUnavailableError(f"no {_named(*key, terms.structure)} forward of this model was counted")
        for entry in operators:
            group = totals.setdefault(entry.group, dict.fromkeys(QUANTITIES, 0))
            for quantity in QUANTITIES:
                group[quantity] += _dot(getattr(entry, quantity), values)
    whole = {name: {quantity: round(value) for quantity, value in group.items()} for name, group in totals.items()}
    return _assembled(terms, whole, sums)


def pass_cost(
    terms: CostTerms,
    *,
    batch_size: int,
    q_len: int,
    past_len: int,
    logits_to_keep: int = 1,
    encoder_len: int | None = None,
    images: int = 0,
) -> PassCost:
    """Cost of one forward.

    Args:
        terms: Of the model.
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens already cached, per sequence.
        logits_to_keep: Positions per sequence with logits, 0 for all, as transformers' argument of that name;
            models that cannot keep fewer are costed at all of them.
        encoder_len: Tokens of the encoder's output that a decoder looks at; None where the model has no encoder or
            fixes that length. The encoder's own forward is not in the cost: see `encoder_cost`.
        images: Images per sequence that this forward takes in through its vision tower.

    Raises:
        CostUnavailableError: The shape is impossible, or its regime was not counted.
    """
    if batch_size < 1 or q_len < 1 or past_len < 0 or logits_to_keep < 0 or (encoder_len or 1) < 1 or images < 0:
        raise CostUnavailableError(
            f"no forward has batch_size={batch_size}, q_len={q_len}, past_len={past_len}, "
            f"logits_to_keep={logits_to_keep}, encoder_len={encoder_len}, images={images}"
        )
    keeps_some = terms.supports_logits_to_keep and logits_to_keep > 0
    logits = min(logits_to_keep, q_len) if keeps_some else q_len
    regime = regime_of(q_len, past_len)
    work = [_work(regime, batch_size, q_len, past_len, logits, encoder_len)]
    if images:
        if terms.structure.encoder:
            raise CostUnavailableError("images go into a vision tower, and this model has an encoder of another kind")
        work.append(_work("encode", batch_size * images, terms.structure.encoder_len or 1, 0, 0, None))
    return evaluate(terms, work)


def encoder_cost(terms: CostTerms, *, batch_size: int, q_len: int | None = None) -> PassCost:
    """Cost of one forward of the encoder, or of the vision tower.

    Args:
        terms: Of the model.
        batch_size: Sequences, or images.
        q_len: Tokens put in per sequence; None where the model fixes how many.

    Raises:
        CostUnavailableError: The model has no encoder that was counted, or its length is missing or impossible.
    """
    length = q_len or terms.structure.encoder_len
    if batch_size < 1 or not length or length < 1:
        raise CostUnavailableError(f"no encoder forward has batch_size={batch_size}, q_len={q_len}")
    if terms.structure.encoder_len not in {None, length}:
        raise CostUnavailableError(f"the encoder of this model always takes {terms.structure.encoder_len} tokens")
    return evaluate(terms, [_work("encode", batch_size, length, 0, 0, None)])


def _work(regime: Regime, batch: int, q: int, past: int, logits: int, encoder_len: int | None) -> Work:
    return Work(
        regime=regime,
        passes=1,
        monomials=monomials(batch, q, past, logits),
        runs=(PassRun(batch_size=batch, q_len=q, past_len=past, logits=logits),),
        encoder_len=encoder_len,
    )


def _named(regime: Regime, segment: str, structure: Structure) -> str:
    if segment == "first":
        return "first one-token"
    words = {"0": "inside", "1": "across the end of", "2": "beyond"}
    where = [
        f"{words[digit]} the window of {window}" for digit, window in zip(segment, structure.windows, strict=False)
    ]
    return " ".join([regime, *where])


def _assembled(terms: CostTerms, totals: dict[str, dict[str, int]], sums: Moments) -> PassCost:
    carried = {"kv_read": sums.kv_read, "kv_write": sums.kv_write}
    for group, what in _CARRIED.items():
        if carried[what]:
            totals.setdefault(group, dict.fromkeys(QUANTITIES, 0))
    groups = [_group_cost(name, group, carried.get(_CARRIED.get(name, ""), 0)) for name, group in totals.items()]
    whole = {quantity: sum(group[quantity] for group in totals.values()) for quantity in QUANTITIES}
    fixed = whole["weight_bytes"] + sums.kv_read + sums.kv_write
    ends = _TOKEN_ID_BYTES * sums.ids + terms.logits_bytes * sums.kept + terms.hidden_bytes * sums.encoded
    return PassCost(
        flops=whole["flops"],
        flops_full=whole["flops_full"],
        weight_bytes=whole["weight_bytes"],
        kv_read_bytes=sums.kv_read,
        kv_write_bytes=sums.kv_write,
        activation_bytes=whole["activation_bytes"],
        bytes=ByteTriple(
            minimum=fixed + ends,
            model=fixed + whole["activation_bytes"],
            executed=whole["executed_bytes"],
        ),
        calls=whole["calls"],
        launches=whole["launches"],
        groups=tuple(sorted(groups, key=lambda group: (-group.flops, -group.bytes, group.group))),
        uncounted=terms.uncounted,
        notes=_notes(terms, sums.longest),
    )


def _notes(terms: CostTerms, longest: int) -> tuple[str, ...]:
    notes = [note for note in terms.notes if not note.startswith(("a single sequence takes", "valid up to"))]
    if terms.counted_tokens is not None and longest > terms.counted_tokens:
        notes.append(
            f"{longest} tokens are more than the {terms.counted_tokens} up to which this model was counted: "
            "beyond, the polynomials are continued"
        )
    return tuple(notes)


def _group_cost(name: str, group: dict[str, int], carried: int) -> GroupCost:
    return GroupCost(
        group=name,
        flops=group["flops"],
        flops_full=group["flops_full"],
        bytes=group["weight_bytes"] + group["activation_bytes"] + carried,
        executed_bytes=group["executed_bytes"],
        calls=group["calls"],
        launches=group["launches"],
        weight_bytes=group["weight_bytes"],
    )


def _dot(coefficients: Sequence[int], values: Sequence[float]) -> float:
    return sum(coefficient * value for coefficient, value in zip(coefficients, values, strict=True) if coefficient)
