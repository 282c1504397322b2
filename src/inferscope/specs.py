"""What ran, and on what: the model and the device as plain, storable facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "BASIS",
    "Ceiling",
    "CostTerms",
    "CountTable",
    "DeviceSpec",
    "GroupCount",
    "ModelSpec",
    "OperatorTerms",
    "Regime",
    "ShapeCount",
    "Source",
    "monomials",
    "regime_of",
]

Source = Literal["measured", "analytic", "datasheet"]
Regime = Literal["prefill", "decode", "continuation"]

BASIS = ("1", "q", "k", "b", "bq", "bk", "qk", "bqk", "bn", "bqq")
"""Monomials of the cost polynomials: b sequences, q new tokens each, k = past + q, n positions with logits.

`bqq` is there for causal attention behind a cache: b·(q·past + q(q + 1)/2) = bqk - bqq/2 + bq/2.
"""


def monomials(batch_size: int, q_len: int, past_len: int, logits: int) -> tuple[int, ...]:
    """`BASIS` at one pass, in its order; tuples of several passes may be added up.

    Args:
        batch_size: Sequences in the forward.
        q_len: New tokens per sequence.
        past_len: Tokens already in the cache, per sequence.
        logits: Positions per sequence whose logits are computed.
    """
    b, q, k = batch_size, q_len, past_len + q_len
    return (1, q, k, b, b * q, b * k, q * k, b * q * k, b * logits, b * q * q)


def regime_of(q_len: int, past_len: int) -> Regime:
    """Which polynomials a pass follows: one new token, several behind a cache, or several with nothing cached.

    One token is "decode" even with nothing cached: it takes the same operators. A pass without a cache is
    costed at past 0, whatever was generated before it.
    """
    if q_len == 1:
        return "decode"
    return "prefill" if past_len == 0 else "continuation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The most one resource of a device gives, and how that is known.

    Attributes:
        value: In the unit that the holding attribute's name ends with.
        source: `measured` on this device, or `datasheet`.
        spread: Coefficient of variation over the readings (0..1), None for a datasheet.
        note: What was run, or where the datasheet value stands.
    """

    value: float
    source: Source
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device and its ceilings; what is not known is None or absent from the mapping.

    Attributes:
        name: As people call it ("H100-SXM5-80GB", "AMD EPYC").
        kind: "cpu" or "cuda".
        key: Identity of this very device, driver and torch version; "" for a catalogue entry.
        compute_flops_per_s: By dtype ("float32", "bfloat16"), dense, multiply and add counted as two.
        copy_bytes_per_s: Streaming copy past the last-level cache, read plus written bytes.
        gemv_bytes_per_s: By dtype: weight bytes per second of matrix times vector past the last-level cache.
        cache_bytes_per_s: Copy inside the last-level cache.
        cache_bytes: Size of the last-level cache.
        dispatch_ns: Host time of one operator on almost no data, called from Python.
        module_op_ns: The same inside `nn.Module` code: dispatch plus the Python around it.
        sync_ns: Round trip of reading one number from the device.
        memory_bytes: Size of the device's memory.
        threads: Intra-op threads at the time of measuring; None on a GPU.
        torch_version: The torch that measured; None for a datasheet.
        measured_unix_ns: When it was measured; None for a datasheet.
        certainty: Of a catalogue row: "high", "medium" or "low"; None where measured.
        rejected: Readings that were not stable enough to be a ceiling, each with its reason.
    """

    name: str
    kind: str
    key: str = ""
    compute_flops_per_s: dict[str, Ceiling] = field(default_factory=dict)
    copy_bytes_per_s: Ceiling | None = None
    gemv_bytes_per_s: dict[str, Ceiling] = field(default_factory=dict)
    cache_bytes_per_s: Ceiling | None = None
    cache_bytes: int | None = None
    dispatch_ns: Ceiling | None = None
    module_op_ns: Ceiling | None = None
    sync_ns: Ceiling | None = None
    memory_bytes: int | None = None
    threads: int | None = None
    torch_version: str | None = None
    measured_unix_ns: int | None = None
    certainty: str | None = None
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTerms:
    """Cost of one group of operators in one regime, as integer coefficients over `BASIS`.

    A value at (b, q, k, n) is the sum of coefficient times monomial. Exact, not an estimate: see analysis/cost.py.

    Attributes:
        group: Such as "linear 576x1536", "attention", "norm/elementwise", "kv-cache", "embedding".
        regime: "prefill" (several tokens, nothing cached), "decode" (one token) or "continuation" (several behind
            a cache).
        calls: Operators dispatched, views included.
        launches: Operators that would launch at least one kernel: views excluded.
        flops: Causal: masked-out pairs are not counted.
        flops_full: The whole rectangle, as torch's counters count.
        weight_bytes: Parameters read, each storage once per pass; gathered rows only for embeddings.
        activation_bytes: Inputs and outputs of matrix products and attention, each once, without weights and KV.
        executed_bytes: Inputs and outputs of every operator as it runs, nothing fused.
    """

    group: str
    regime: Regime
    calls: tuple[int, ...]
    launches: tuple[int, ...]
    flops: tuple[int, ...]
    flops_full: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    executed_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerms:
    """Everything needed to cost any forward of one model, without the model and without torch.

    Attributes:
        operators: One entry per operator group and regime.
        kv_bytes_per_token: Cache storage that one token of one sequence occupies, all layers.
        logits_bytes: Bytes of one position's logits.
        supports_logits_to_keep: False: the model always computes logits at all q positions.
        uncounted: Operators seen that have no FLOP formula and are not known to do none.
        notes: Where the counted forward differs from the one that runs, in words.
    """

    operators: tuple[OperatorTerms, ...]
    kv_bytes_per_token: int
    logits_bytes: int
    supports_logits_to_keep: bool
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCount:
    """What one group of operators did in one counted forward; the quantities of `OperatorTerms` at one shape."""

    group: str
    calls: int = 0
    launches: int = 0
    flops: int = 0
    flops_full: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    executed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCount:
    """One counted forward.

    Attributes:
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens already in the cache, per sequence.
        logits: Positions per sequence whose logits were computed.
        groups: What each group of operators did.
    """

    batch_size: int
    q_len: int
    past_len: int
    logits: int
    groups: tuple[GroupCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTable:
    """Counted forwards of one model, from which analysis/cost.py solves for `CostTerms`.

    Attributes:
        shapes: More of them in each regime than there are unknowns, so that the surplus can contradict the fit.
        kv_bytes_per_token: As in `CostTerms`, and so are the rest.
        logits_bytes: Bytes of one position's logits.
        supports_logits_to_keep: Whether the forward computes logits at fewer than q positions when asked.
        uncounted: Operators without a formula.
        notes: Where the counted forward differs from the one that runs.
    """

    shapes: tuple[ShapeCount, ...]
    kv_bytes_per_token: int
    logits_bytes: int
    supports_logits_to_keep: bool
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model as it stood when it ran.

    Attributes:
        name: Hub id or folder name where the config has one, else the class name.
        model_class: Class of the module whose `generate` ran.
        model_type: The config's `model_type`.
        digest: Hash over the configuration, dtype and attention implementation: the key of cached costs.
        parameters: Number of parameters, shared ones once.
        weight_bytes: Bytes of the parameters' storages, shared ones once.
        dtype: Of the floating-point weights ("float32"); "mixed" where they differ.
        device: torch device string of the first parameter.
        attention: Attention implementation ("sdpa", "eager").
        cost: Exact operator costs; None where they could not be made.
        cost_note: Why `cost` is None; "" otherwise.
    """

    name: str
    model_class: str
    model_type: str | None = None
    digest: str = ""
    parameters: int | None = None
    weight_bytes: int | None = None
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    cost: CostTerms | None = None
    cost_note: str = ""
