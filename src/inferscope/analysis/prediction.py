"""How long a request would take and what it would hold, on a device that need not be there.

Counted work over the rates of a machine: time by operator group, summed over the pass, times the passes. Whatever is
not known is either assumed in words or refused; the interval says how far off such predictions have been.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferscope.analysis.anchors import anchored, per_pass
from inferscope.analysis.cost import encoder_cost, evaluate
from inferscope.analysis.formats import product_weight_bytes
from inferscope.analysis.memory import account
from inferscope.analysis.passtime import PassShape, at_end, pass_time
from inferscope.analysis.printed import prediction_text
from inferscope.errors import PredictionError
from inferscope.records import PassRun, Work
from inferscope.specs import monomials, regime_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.anchors import Anchor
    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.formats import Format
    from inferscope.analysis.machine import Basis, Machine
    from inferscope.analysis.passtime import PassTime
    from inferscope.analysis.verdict import Bound
    from inferscope.specs import CostTerms, ModelSpec

__all__ = ["CLAIMED_RATE", "Estimate", "MemoryPrediction", "PhasePrediction", "Prediction", "predict_request"]

CLAIMED_RATE = 0.8
"""How often the truth is claimed to lie within an interval."""
_MOST_UNCOUNTED = 0.05
_SETUP_OPERATORS = 400
_MOST_BATCH = 1 << 16
# Kernels that dequantise differ more between devices: int8 on an MI250X was 28 % below what an A100's share gives.
_QUANTIZED_SPREAD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number that was not measured, with the interval that holds the truth at the rate claimed."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrediction:
    """Memory of the request at its highest moment.

    Attributes:
        weights_bytes: As stored; None where not counted.
        kv_bytes: Cache when the request ends.
        activation_bytes: What the highest moment has beyond weights and cache; None where not followed.
        total_bytes: At the highest moment.
        device_bytes: Of the device; None where not known.
        fits: Whether the total is below it; None where either is not known.
        largest_batch: The most sequences of these lengths that fit.
        verdict: The same in words: "fits", "out of memory at batch N" or "not known".
    """

    weights_bytes: int | None
    kv_bytes: int
    activation_bytes: int | None
    total_bytes: int | None
    device_bytes: int | None
    fits: bool | None
    largest_batch: int | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePrediction:
    """One phase.

    Attributes:
        name: "encode", "prefill" or "decode".
        passes: Forwards.
        time_s: Of all of them, with the host's work between them.
        cost: Operations and bytes over the phase, in the formats asked for.
        bound: The class with the largest share.
        shares: Of the time by class; they sum to 1.
        flops_per_s: Operations per second of the phase.
        bytes_per_s: Bytes (`cost.bytes.model`) per second.
    """

    name: str
    passes: int
    time_s: Estimate
    cost: PassCost
    bound: Bound
    shares: dict[str, float]
    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A request that was not run.

    Attributes:
        model: Its name.
        device: Name of the device.
        batch_size: Sequences.
        input_tokens: Prompt tokens of each.
        output_tokens: New tokens of each.
        dtype: Of arithmetic and plain weights.
        quantization: Of the weights; None for the dtype.
        kv_dtype: Of the cache.
        execution: "eager" or "compiled".
        ttft_s: Entry to the first token.
        tpot_s: From one token to the next; None for a single token.
        tokens_per_s: New tokens of all sequences over the whole request.
        memory: What it holds.
        phases: In time order.
        basis: What the rates rest on: "datasheet", "calibrated", "kernels" (this model's operators were measured)
            or "anchored" (on a trace).
        claimed_rate: How often the truth is claimed to lie within the intervals (0..1).
        provenance: How each kind of number was obtained.
        assumptions: What was assumed, in words.
    """

    model: str
    device: str
    batch_size: int
    input_tokens: int
    output_tokens: int
    dtype: str
    quantization: str | None
    kv_dtype: str
    execution: str
    ttft_s: Estimate
    tpot_s: Estimate | None
    tokens_per_s: Estimate
    memory: MemoryPrediction
    phases: tuple[PhasePrediction, ...]
    basis: Basis
    claimed_rate: float
    provenance: tuple[str, ...]
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        """As plain text, in several lines."""
        return prediction_text(self)

    def phase(self, name: str) -> PhasePrediction | None:
        """The phase of that name, or None where the request has none."""
        return next((phase for phase in self.phases if phase.name == name), None)


@dataclass(frozen=True, slots=True)
class _Phase:
    """Passes of one kind, on their machine."""

    name: str
    passes: int
    whole: PassCost
    timed: PassCost
    shape: PassShape
    machine: Machine

    def time(self, end: float = 0.0) -> PassTime:
        return pass_time(self.timed, self.shape, at_end(self.machine, end) if end else self.machine)

    def seconds(self) -> Estimate:
        low, mid, high = (self.passes * self.time(end).total_ns / 1e9 for end in (-1.0, 0.0, 1.0))
        return Estimate(low=low, mid=mid, high=high)


def predict_request(
    model: ModelSpec,
    machine: Machine,
    stored: Format,
    *,
    batch_size: int,
    input_tokens: int,
    output_tokens: int,
    anchors: Sequence[Anchor] = (),
    same_device: bool = True,
) -> Prediction:
    """The request on that machine.

    Args:
        model: With its cost, counted in the dtype of `stored`.
        machine: Rates of the device.
        stored: Formats of weights and cache.
        batch_size: Sequences.
        input_tokens: Prompt tokens of each; of the encoder where the model has one.
        output_tokens: New tokens of each.
        anchors: Factors from traces.
        same_device: Whether those are of this very device.

    Raises:
        PredictionError: Nothing supports it; the message says what is missing.
        CostUnavailableError: The model has no counted forward of such a shape.
    """
    terms = _terms(model, batch_size, input_tokens, output_tokens)
    by_phase = {anchor.phase: anchor for anchor in anchors}
    if stored.quantization is not None:
        machine = replace(machine, device_spread=machine.device_spread + _QUANTIZED_SPREAD)
    parts = _phases(terms, stored, machine, (batch_size, input_tokens, output_tokens))
    tuned = [
        replace(part, machine=anchored(machine, by_phase[part.name], same_device=same_device))
        if part.name in by_phase
        else part
        for part in parts
    ]
    _require_counted(tuned)
    setup = _setup(machine, by_phase.get("prefill"))
    seconds = {part.name: part.seconds() for part in tuned}
    ttft = _sum([setup, *(time for name, time in seconds.items() if name != "decode")])
    decode = next((part for part in tuned if part.name == "decode"), None)
    whole = _sum([ttft, seconds["decode"]]) if decode is not None else ttft
    tokens = batch_size * output_tokens
    memory = _memory(model, terms, stored, machine, (batch_size, input_tokens, output_tokens))
    return Prediction(
        model=model.name,
        device=machine.device.name,
        batch_size=batch_size,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        dtype=stored.dtype,
        quantization=stored.quantization.name if stored.quantization is not None else None,
        kv_dtype=stored.kv_dtype,
        execution=machine.execution,
        ttft_s=ttft,
        tpot_s=_scaled(seconds["decode"], 1 / decode.passes) if decode is not None else None,
        tokens_per_s=Estimate(low=tokens / whole.high, mid=tokens / whole.mid, high=tokens / whole.low),
        memory=memory,
        phases=tuple(_phase(part, seconds[part.name]) for part in tuned),
        basis="anchored" if by_phase else machine.basis,
        claimed_rate=CLAIMED_RATE,
        provenance=_provenance(machine, anchors),
        assumptions=_assumed(tuned, stored, machine, memory, by_phase),
    )


def _terms(model: ModelSpec, batch_size: int, input_tokens: int, output_tokens: int) -> CostTerms:
    if model.cost is None:
        raise PredictionError(f"the operators of {model.name} are not counted: {model.cost_note or 'no reason given'}")
    if min(batch_size, input_tokens, output_tokens) < 1:
        raise PredictionError(
            f"no request has batch_size={batch_size}, input_tokens={input_tokens}, output_tokens={output_tokens}"
        )
    longest = output_tokens if model.cost.structure.encoder else input_tokens + output_tokens
    if model.context_tokens is not None and longest > model.context_tokens:
        raise PredictionError(f"{longest} tokens are more than the {model.context_tokens} that {model.name} takes")
    return model.cost


def _phases(terms: CostTerms, stored: Format, machine: Machine, size: tuple[int, int, int]) -> list[_Phase]:
    batch, tokens_in, tokens_out = size
    encoder = tokens_in if terms.structure.encoder else None
    prompt = 1 if terms.structure.encoder else tokens_in
    found = []

    def add(name: str, passes: int, cost: PassCost, q_len: int, kv_len: float) -> None:
        one = per_pass(cost, passes)
        timed = stored.stored(one, as_time=True)
        shape = PassShape(
            batch_size=batch,
            q_len=q_len,
            kv_len=kv_len,
            working_set_bytes=stored.stored(one).weight_bytes + one.kv_read_bytes,
        )
        found.append(_Phase(name, passes, stored.stored(cost), timed, shape, machine))

    if encoder is not None:
        fixed = terms.structure.encoder_len
        add("encode", 1, encoder_cost(terms, batch_size=batch, q_len=None if fixed else encoder), encoder, encoder)
    add("prefill", 1, evaluate(terms, [_work(terms, batch, prompt, 0, 1, encoder)]), prompt, prompt)
    passes = tokens_out - 1
    if passes:
        work = _work(terms, batch, 1, prompt, passes, encoder)
        add("decode", passes, evaluate(terms, [work]), 1, prompt + (passes + 1) / 2)
    return found


def _work(terms: CostTerms, batch: int, q: int, past: int, passes: int, encoder: int | None) -> Work:
    logits = 1 if terms.supports_logits_to_keep else q
    sums = (monomials(batch, q, past + number, logits) for number in range(passes))
    return Work(
        regime=regime_of(q, past),
        passes=passes,
        monomials=tuple(sum(column) for column in zip(*sums, strict=True)),
        runs=(PassRun(batch_size=batch, q_len=q, past_len=past, logits=logits, passes=passes, step=1),),
        encoder_len=encoder,
    )


def _require_counted(parts: Sequence[_Phase]) -> None:
    for part in parts:
        if part.whole.uncounted_share > _MOST_UNCOUNTED:
            raise PredictionError(
                f"operators without a formula move {part.whole.uncounted_share:.0%} of what {part.name} moves: "
                + ", ".join(part.whole.uncounted)
            )


def _setup(machine: Machine, anchor: Anchor | None) -> Estimate:
    """Before the first pass: the host's preparation."""
    if anchor is not None:
        value, spread = anchor.setup_ns / 1e9, 1.2
    else:
        per_operator = machine.operator_ns or machine.dispatch_ns
        value, spread = _SETUP_OPERATORS * per_operator / 1e9, 2.0
    return Estimate(low=value / spread, mid=value, high=value * spread)


def _sum(parts: Sequence[Estimate]) -> Estimate:
    return Estimate(
        low=sum(part.low for part in parts), mid=sum(part.mid for part in parts), high=sum(part.high for part in parts)
    )


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(low=estimate.low * factor, mid=estimate.mid * factor, high=estimate.high * factor)


def _phase(part: _Phase, seconds: Estimate) -> PhasePrediction:
    time = part.time()
    return PhasePrediction(
        name=part.name,
        passes=part.passes,
        time_s=seconds,
        cost=part.whole,
        bound=time.bound,
        shares=time.shares(),
        flops_per_s=part.whole.flops / seconds.mid,
        bytes_per_s=part.whole.bytes.model / seconds.mid,
    )


def _memory(
    model: ModelSpec, terms: CostTerms, stored: Format, machine: Machine, size: tuple[int, int, int]
) -> MemoryPrediction:
    batch, tokens_in, tokens_out = size
    one = evaluate(terms, [_work(terms, 1, 1, 1, 1, tokens_in if terms.structure.encoder else None)])
    plain = terms.stored_bytes if terms.stored_bytes is not None else model.weight_bytes
    weights = None if plain is None else stored.weight_bytes(plain, product_weight_bytes(one))
    lengths: dict[str, Any] = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    if terms.structure.encoder:
        lengths = {"input_tokens": 1, "output_tokens": tokens_out, "encoder_len": tokens_in}

    def held(sequences: int) -> tuple[int, int, int | None]:
        """Cache, intermediate results and all of it for so many sequences."""
        found = account(replace(model, weight_bytes=weights), batch_size=sequences, **lengths)
        kv = round(found.kv_bytes * stored.kv_share)
        saved = found.kv_bytes - kv
        total = None if found.peak_bytes is None else found.peak_bytes - saved
        return kv, found.activation_bytes or 0, total

    kv, activation, total = held(batch)
    capacity = machine.device.memory_bytes
    largest = None
    if total is not None and capacity is not None:
        largest = _largest(lambda sequences: (held(sequences)[2] or 0) <= capacity)
    return MemoryPrediction(
        weights_bytes=weights,
        kv_bytes=kv,
        activation_bytes=None if total is None else activation,
        total_bytes=total,
        device_bytes=capacity,
        fits=None if largest is None else batch <= largest,
        largest_batch=largest,
        verdict="not known"
        if largest is None
        else "fits"
        if batch <= largest
        else f"out of memory at batch {largest + 1}",
    )


def _largest(fits: Any) -> int:  # noqa: ANN401 - a predicate
    least, most = 0, 1
    while most < _MOST_BATCH and fits(most):
        least, most = most, 2 * most
    while least + 1 < most:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def _provenance(machine: Machine, anchors: Sequence[Anchor]) -> tuple[str, ...]:
    rows = ["operations and bytes: counted, exact"]
    sources = {
        "datasheet": f"rates: datasheet of {machine.device.name}, certainty {machine.device.certainty or 'unknown'}",
        "calibrated": f"rates: measured on {machine.device.name}",
        "kernels": f"rates: this model's operators, measured on {machine.device.name}",
        "anchored": "",
    }
    rows.append(sources[machine.basis])
    rows += [
        f"{anchor.phase}: anchored on {anchor.traces} trace{'s' if anchor.traces > 1 else ''}, "
        f"{anchor.device_factor:.2f} times the time that these rates give"
        for anchor in anchors
    ]
    rows.append(f"intervals: claimed to hold the truth in {CLAIMED_RATE:.0%} of cases")
    return tuple(row for row in rows if row)


def _assumed(
    parts: Sequence[_Phase],
    stored: Format,
    machine: Machine,
    memory: MemoryPrediction,
    by_phase: dict[str, Anchor],
) -> tuple[str, ...]:
    rows = list(machine.assumptions)
    chosen = stored.quantization
    if chosen is not None:
        rows.append(
            f"{chosen.name}: matrices of all linear layers, {chosen.weight_bits:g} bits a weight with its scales, "
            f"read at {chosen.read_share:.0%} of the rate of plain weights ({chosen.source}); arithmetic in "
            f"{stored.dtype}"
        )
    if stored.kv_share != 1:
        rows.append(f"cache in {stored.kv_dtype}: fewer bytes, converted at no cost")
    if by_phase:
        rows.append("what a trace says about its shape holds for other shapes")
    if memory.fits is False:
        rows.append("it does not fit: the times are those of such a device with enough memory")
    if "decode" in {part.name for part in parts}:
        rows.append("every sequence runs to its last token; decode is costed at its mean cache length")
    notes = {note for part in parts for note in part.whole.notes}
    return (*rows, *sorted(notes))
