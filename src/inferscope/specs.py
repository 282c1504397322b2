"""What ran, and on what: the model and the device as plain, storable facts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "BASIS",
    "EXPERT_LETTERS",
    "CacheTerms",
    "Ceiling",
    "CostTerms",
    "CountTable",
    "DeviceSpec",
    "GroupCount",
    "ModelSpec",
    "OperatorTerms",
    "PeakTerms",
    "Regime",
    "ShapeCount",
    "Source",
    "Structure",
    "block_pairs",
    "columns_of",
    "distinct_experts",
    "monomials",
    "regime_of",
    "segment_of",
    "window_pairs",
]

Source = Literal["measured", "analytic", "datasheet"]
Regime = Literal["prefill", "decode", "continuation", "encode"]

BASIS = ("1", "q", "k", "b", "bq", "bk", "qk", "bqk", "bn", "bqq")
"""Monomials of the cost polynomials: b sequences, q new tokens each, k = past + q, n positions with logits.

`bqq` is there for causal attention behind a cache: b·(q·past + q(q + 1)/2) = bqk - bqq/2 + bq/2. A model with more
variables than these has the further monomials of `columns_of`.
"""

ONE_CHUNK = " one chunk"
SHORT = " short"
EXPERT_LETTERS = "xyz"
"""Distinct experts read, one letter per kind of expert layer."""


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

    One token is "decode" even with nothing cached; where that takes other operators, it is a segment of its own
    (`segment_of`). A pass without a cache is costed at past 0, whatever was generated before it. "encode" is never
    the answer: an encoder's forwards are named by who runs them.
    """
    if q_len == 1:
        return "decode"
    return "prefill" if past_len == 0 else "continuation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What makes a model's cost more than one polynomial per regime in batch and lengths.

    Attributes:
        windows: Lengths in tokens beyond which some layers attend to, or keep, no more; ascending.
        starts_apart: One token with nothing cached takes other operators than one behind a cache: states begin,
            or the encoder's keys and values are made.
        scan_chunk: Tokens of the chunks in which a recurrent layer scans a sequence; None without such a layer.
        state_len: Tokens that a recurrent layer's convolution keeps: a shorter prompt is filled up to them; or None.
        attention_chunk: Tokens of the blocks within which some layers attend; None without such a layer.
        experts: (experts, experts per token) of each kind of expert layer.
        encoder: Whether a decoder looks at an encoder's output.
        encoder_len: Tokens of that output where the model fixes them, or None.
    """

    windows: tuple[int, ...] = ()
    starts_apart: bool = False
    scan_chunk: int | None = None
    state_len: int | None = None
    attention_chunk: int | None = None
    experts: tuple[tuple[int, int], ...] = ()
    encoder: bool = False
    encoder_len: int | None = None


def segment_of(structure: Structure, regime: Regime, q_len: int, past_len: int) -> str:
    """Within which limits of the model a pass lies: cost is one polynomial per regime and segment.

    Returns:
        "first" for one token with nothing cached where that is apart; else one digit per window w: "0" where
        the sequence is shorter than w, "2" where the cache alone fills the window, "1" between; "" without windows.
        " one chunk" is added where several new tokens fit into one chunk of a scan, " short" where they are the
        first and fewer than a convolution keeps.
    """
    if regime == "encode":
        return ""
    if structure.starts_apart and q_len == 1 and past_len == 0:
        return "first"
    digits = (
        "0" if past_len + q_len < window else "1" if past_len < window - 1 else "2" for window in structure.windows
    )
    fits = structure.scan_chunk is not None and 1 < q_len <= structure.scan_chunk
    short = structure.state_len is not None and past_len == 0 and 1 < q_len < structure.state_len
    return "".join((*digits, ONE_CHUNK if fits else "", SHORT if short else ""))


def columns_of(structure: Structure, regime: Regime, segment: str, *, keeps_logits: bool = True) -> tuple[str, ...]:
    """The monomials of a regime and segment, leaving out those that are the same number as another one there.

    Each is a product of letters: those of `BASIS`; e, tokens of the encoder's output; c, chunks of a scan; t, pairs
    of tokens that share a block of attention; x, y, z, distinct experts.

    Args:
        structure: Of the model.
        regime: Regime of the passes.
        segment: Their segment.
        keeps_logits: Whether the model computes logits at fewer than q positions when asked.
    """
    several = regime in {"prefill", "continuation"}
    if regime == "encode":
        return ("1", "b") if structure.encoder_len else ("1", "q", "b", "bq", "qk", "bqk")
    if segment == "first":
        names = ["1", "b"]
    elif several:
        names = [*BASIS] if regime == "continuation" else ["1", "q", "b", "bq", "qk", "bqk", "bn"]
        names = [name for name in names if name != "bn" or keeps_logits]
    else:
        names = ["1", "k", "b", "bk"]
    if structure.windows and regime == "continuation":
        names += ["qq", "kk", "bkk"] if "1" in segment else ["qq"]
    if structure.encoder and not structure.encoder_len:
        names += ["e", "be", "qe", "bqe"] if several else ["e", "be"]
    if structure.scan_chunk and several and ONE_CHUNK not in segment:
        names += ["c", "bc", "cc", "bcc", "qc", "bqc"]
    within = dict(zip(structure.windows, segment, strict=False)).get(structure.attention_chunk or 0) == "0"
    if structure.attention_chunk and segment != "first" and not within:
        names.append("bt")
    return (*names, *EXPERT_LETTERS[: len(structure.experts)])


def window_pairs(window: int | None, q_len: int, past_len: int) -> int:
    """Pairs of a new token and one it may look at: of all before, or of the last `window`, itself included."""
    total = past_len + q_len
    if window is None or total <= window:
        return q_len * past_len + q_len * (q_len + 1) // 2
    growing = max(0, window - past_len)  # new tokens that still see all before them
    return growing * past_len + growing * (growing + 1) // 2 + (q_len - growing) * window


def block_pairs(block: int, q_len: int, past_len: int) -> int:
    """Pairs of a new token and one it may look at, where attention stays within blocks of that many tokens."""
    whole, rest = divmod(past_len + q_len, block)
    whole_before, rest_before = divmod(past_len, block)
    per_block = block * (block + 1) // 2
    return (whole - whole_before) * per_block + rest * (rest + 1) // 2 - rest_before * (rest_before + 1) // 2


def distinct_experts(experts: int, per_token: int, tokens: int) -> float:
    """How many different experts some tokens are expected to be sent to, if each chooses uniformly by itself.

    E·(1 - (1 - k/E)^T); exact for one token. Real routing is less even, and then fewer experts are read.
    """
    if per_token >= experts:
        return float(experts)
    return -experts * math.expm1(tokens * math.log1p(-per_token / experts))


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
        beside: What else was measured on a GPU, to judge the ceilings by: no verdict rests on it. By name, which ends
            in the unit: "triad_bytes_per_s", "fill_bytes_per_s", "graph_node_ns" (device time of one node of a
            replayed graph), "product_bfloat16_4096x14336_flops_per_s" (a layer of a model, inputs x outputs).
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
    beside: dict[str, Ceiling] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTerms:
    """Cost of one group of operators in one regime and segment, as integer coefficients over `CostTerms.basis`.

    A value at a shape is the sum of coefficient times monomial. Exact, not an estimate: see analysis/cost.py.

    Attributes:
        group: Such as "linear 576x1536", "attention", "norm/elementwise", "kv-cache", "embedding".
        regime: "prefill" (several tokens, nothing cached), "decode" (one token), "continuation" (several behind
            a cache) or "encode" (the encoder or vision tower).
        segment: Within which limits of the model, as `segment_of` names them.
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
    segment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerms:
    """What layers keep of the tokens before, in bytes of storage per sequence.

    Attributes:
        kind: "tokens" grows with every token; "window" up to `window` - 1 tokens; "state" has one size whatever the
            length; "encoder" holds keys and values of the encoder's output.
        unit_bytes: Per token, all such layers together; of the whole state for "state".
        window: Tokens a layer attends to, itself included, for "window"; else None.
    """

    kind: Literal["tokens", "window", "state", "encoder"]
    unit_bytes: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakTerms:
    """Memory in use at one moment of a forward, weights left out: cache, inputs, intermediate results.

    The most that a forward uses is the largest of these at its shape.

    Attributes:
        regime: As in `OperatorTerms`.
        segment: As in `OperatorTerms`.
        live_bytes: Coefficients over `CostTerms.basis`.
    """

    regime: Regime
    segment: str
    live_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerms:
    """Everything needed to cost any forward of one model, without the model and without torch.

    Attributes:
        operators: One entry per operator group, regime and segment.
        kv_bytes_per_token: Cache storage that one more token of one sequence occupies while no window is full.
        logits_bytes: Bytes of one position's logits.
        supports_logits_to_keep: False: the model always computes logits at all q positions.
        uncounted: Operators seen that have no FLOP formula and are not known to do none.
        notes: Where the counted forward differs from the one that runs, in words.
        basis: Monomials that the coefficients of `operators` belong to.
        structure: What else than batch and lengths the cost depends on.
        caches: What layers keep, by kind; () stands for `kv_bytes_per_token` alone.
        hidden_bytes: Bytes of one position of an encoder's output; 0 without one.
        counted_tokens: The longest sequence that was counted; None where that was not kept.
        valid_tokens: Beyond this length the terms are known to be wrong; None where no such length was met.
        peaks: Moments at which forwards of some shape use most memory; () where that was not followed.
        stored_bytes: All weights as stored, read in a forward or not; None where that was not kept.
    """

    operators: tuple[OperatorTerms, ...]
    kv_bytes_per_token: int
    logits_bytes: int
    supports_logits_to_keep: bool
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    basis: tuple[str, ...] = BASIS
    structure: Structure = Structure()
    caches: tuple[CacheTerms, ...] = ()
    hidden_bytes: int = 0
    counted_tokens: int | None = None
    valid_tokens: int | None = None
    peaks: tuple[PeakTerms, ...] = ()
    stored_bytes: int | None = None


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
        regime: "encode" for an encoder's forward; None where it follows from the lengths.
        encoder_len: Tokens of the encoder's output that was looked at.
        experts: Distinct experts that were assumed to be read, for each kind in `Structure.experts`.
        live_bytes: Memory in use at moments that may be the highest, the same ones at all shapes of a segment.
    """

    batch_size: int
    q_len: int
    past_len: int
    logits: int
    groups: tuple[GroupCount, ...]
    regime: Regime | None = None
    encoder_len: int = 0
    experts: tuple[int, ...] = ()
    live_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTable:
    """Counted forwards of one model, from which analysis/cost.py solves for `CostTerms`.

    Attributes:
        shapes: More of them in each segment than there are unknowns, so that the surplus can contradict the fit.
        kv_bytes_per_token: As in `CostTerms`, and so are the rest.
        logits_bytes: Bytes of one position's logits.
        supports_logits_to_keep: Whether the forward computes logits at fewer than q positions when asked.
        uncounted: Operators without a formula.
        notes: Where the counted forward differs from the one that runs.
        structure: What else than batch and lengths the counts depend on.
        caches: What layers keep.
        hidden_bytes: Bytes of one position of an encoder's output.
        counted_tokens: The longest sequence among the shapes.
        lives: Forwards whose memory was followed, with `live_bytes` and without groups.
        stored_bytes: All weights as stored.
    """

    shapes: tuple[ShapeCount, ...]
    kv_bytes_per_token: int
    logits_bytes: int
    supports_logits_to_keep: bool
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    structure: Structure = Structure()
    caches: tuple[CacheTerms, ...] = ()
    hidden_bytes: int = 0
    counted_tokens: int | None = None
    lives: tuple[ShapeCount, ...] = ()
    stored_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The model as it stood when it ran.

    Attributes:
        name: Hub id or folder name where the config has one, else the class name.
        model_class: Class of the module whose `generate` ran.
        model_type: The config's `model_type`.
        digest: Hash over the configuration, dtype and attention implementation: the key of cached costs.
        parameters: Number of parameters, shared ones once.
        weight_bytes: Bytes of the storages of parameters and persistent buffers, shared ones once.
        dtype: Of the floating-point weights ("float32"); "mixed" where they differ.
        device: torch device string of the first parameter.
        attention: Attention implementation ("sdpa", "eager").
        cost: Exact operator costs; None where they could not be made.
        cost_note: Why `cost` is None; "" otherwise.
        context_tokens: The longest sequence its configuration allows; None where it says nothing.
        offloaded_bytes: Bytes of parameters that do not stand on the device where they are used (accelerate's
            offloading to CPU or disk); None where that could not be told.
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
    context_tokens: int | None = None
    offloaded_bytes: int | None = None
