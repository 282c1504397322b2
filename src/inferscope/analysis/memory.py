"""Where a device's memory goes: weights, cache, intermediate results; how many sequences fit.

From counts alone: what an allocator rounds up, a driver reserves and other programs hold is not in these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.moments import letters_of, moment
from inferscope.analysis.printed import memory_text
from inferscope.errors import CostUnavailableError
from inferscope.specs import regime_of, segment_of

if TYPE_CHECKING:
    from inferscope.specs import CacheTerms, CostTerms, DeviceSpec, ModelSpec

__all__ = ["MemoryAccount", "account", "cache_bytes", "largest_batch", "peak_bytes"]

_MOST_SEQUENCES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAccount:
    """Memory of a request at its end, and at its highest moment; what is not known is None.

    Attributes:
        batch_size: Sequences.
        kv_len: Tokens of each sequence when the request ends.
        weight_bytes: Parameters as stored, read or not.
        kv_bytes: Cache when the request ends.
        kv_bytes_per_token: By how much the cache grows with the next token of every sequence.
        activation_bytes: What the highest moment has beyond weights and the cache as that forward leaves it: inputs,
            intermediate results, logits, and the cache a second time while it is being copied.
        peak_bytes: Weights and everything alive at the highest moment, of prefill or decode.
        peak_phase: "prefill" or "decode", where that moment is.
        device_bytes: Size of the device's memory.
        headroom_bytes: What is left of it at the highest moment; below zero: out of memory.
        largest_batch: The most sequences of these lengths that fit; 0 where not even one does. One more runs out of
            memory.
        notes: What is assumed about the model's forwards, in words.
    """

    batch_size: int
    kv_len: int
    weight_bytes: int | None
    kv_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int | None
    peak_bytes: int | None
    peak_phase: str | None
    device_bytes: int | None
    headroom_bytes: int | None
    largest_batch: int | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As plain text, in several lines."""
        return memory_text(self)


def account(
    model: ModelSpec,
    *,
    batch_size: int,
    input_tokens: int,
    output_tokens: int = 1,
    device: DeviceSpec | None = None,
    encoder_len: int | None = None,
) -> MemoryAccount:
    """The memory of one request.

    Args:
        model: With its cost; its `weight_bytes`, or those that were counted, are what the weights take.
        batch_size: Sequences, beams included.
        input_tokens: Prompt tokens of each sequence, padding included.
        output_tokens: New tokens of each sequence.
        device: Whose memory it must fit into; None where that is not known.
        encoder_len: Tokens of the encoder's output; None where there is none or the model fixes it.

    Raises:
        CostUnavailableError: The model's cost is not known, or the lengths are impossible.
    """
    terms = model.cost
    if terms is None:
        raise CostUnavailableError(model.cost_note or "the cost of this model is not known")
    if batch_size < 1 or input_tokens < 1 or output_tokens < 1:
        raise CostUnavailableError(
            f"no request has batch_size={batch_size}, input_tokens={input_tokens}, output_tokens={output_tokens}"
        )
    request = _Request(terms, input_tokens, output_tokens, encoder_len)
    weights = model.weight_bytes if model.weight_bytes is not None else terms.stored_bytes
    capacity = device.memory_bytes if device is not None else None
    peak = request.highest(batch_size)
    total = peak[0] + weights if peak is not None and weights is not None else None
    kv_len = input_tokens + output_tokens - 1
    return MemoryAccount(
        batch_size=batch_size,
        kv_len=kv_len,
        weight_bytes=weights,
        kv_bytes=request.cache_bytes(batch_size, *request.passes[-1][1:]),
        kv_bytes_per_token=request.cache_bytes(batch_size, 1, kv_len) - request.cache_bytes(batch_size, 1, kv_len - 1),
        activation_bytes=peak[0] - peak[2] if peak is not None else None,
        peak_bytes=total,
        peak_phase=peak[1] if peak is not None else None,
        device_bytes=capacity,
        headroom_bytes=capacity - total if capacity is not None and total is not None else None,
        largest_batch=_most(request, capacity - weights) if capacity is not None and weights is not None else None,
        notes=terms.notes,
    )


def largest_batch(
    model: ModelSpec,
    device: DeviceSpec,
    *,
    input_tokens: int,
    output_tokens: int = 1,
    encoder_len: int | None = None,
) -> int | None:
    """The most sequences of these lengths that fit; one more runs out of memory. None where that is not known.

    Raises:
        CostUnavailableError: As `account`.
    """
    found = account(
        model,
        batch_size=1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        device=device,
        encoder_len=encoder_len,
    )
    return found.largest_batch


def cache_bytes(terms: CostTerms, *, batch_size: int, q_len: int, past_len: int, encoder_len: int | None = None) -> int:
    """Storage of the cache after a forward, of the kind that grows by concatenation (`DynamicCache`).

    A layer with a window keeps the end of what the forward concatenated, and with it the memory of all of that: of a
    whole prompt, until the next forward.

    Args:
        terms: Of the model.
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens cached before the forward, per sequence.
        encoder_len: Tokens of the encoder's output; None where there is none or the model fixes it.
    """
    if not terms.caches:
        return terms.kv_bytes_per_token * batch_size * (past_len + q_len)
    length = (terms.structure.encoder_len if terms.structure.encoder else None) or encoder_len or 0
    return batch_size * sum(cache.unit_bytes * _units(cache, q_len, past_len, length) for cache in terms.caches)


def _units(cache: CacheTerms, q_len: int, past_len: int, encoder_len: int) -> int:
    if cache.kind == "tokens":
        return past_len + q_len
    if cache.kind == "window":
        return min(past_len, max((cache.window or 1) - 1, 0)) + q_len
    return 1 if cache.kind == "state" else encoder_len


def peak_bytes(
    terms: CostTerms, *, batch_size: int, q_len: int, past_len: int, logits: int = 1, encoder_len: int | None = None
) -> int | None:
    """The most that one forward has alive at once, weights left out; None where that was not followed.

    Counted on batches: a single sequence takes a few copies fewer, and so never more.

    Args:
        terms: Of the model.
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens already cached, per sequence.
        logits: Positions per sequence with logits; models that cannot keep fewer have them at all.
        encoder_len: Tokens of the encoder's output; None where there is none or the model fixes it.

    Raises:
        CostUnavailableError: An encoder-decoder needs `encoder_len`.
    """
    regime = regime_of(q_len, past_len)
    segment = segment_of(terms.structure, regime, q_len, past_len)
    kept = logits if terms.supports_logits_to_keep else q_len
    letters = letters_of(
        terms.structure,
        batch_size=batch_size,
        q_len=q_len,
        past_len=past_len,
        logits=kept,
        encoder_len=encoder_len,
    )
    values = [moment(name, letters) for name in terms.basis]
    moments = [
        round(sum(part * value for part, value in zip(peak.live_bytes, values, strict=True) if part))
        for peak in terms.peaks
        if (peak.regime, peak.segment) == (regime, segment)
    ]
    return max(moments, default=None)


class _Request:
    """The forwards of a request that may be its highest: the prompt, and the last token."""

    def __init__(self, terms: CostTerms, input_tokens: int, output_tokens: int, encoder_len: int | None) -> None:
        self._terms = terms
        self._encoder_len = encoder_len
        self.passes = [("prefill", input_tokens, 0)]
        if output_tokens > 1:
            self.passes += [("decode", 1, input_tokens), ("decode", 1, input_tokens + output_tokens - 2)]

    def cache_bytes(self, batch_size: int, q_len: int, past_len: int) -> int:
        """Storage of the cache after a forward."""
        return cache_bytes(
            self._terms, batch_size=batch_size, q_len=q_len, past_len=past_len, encoder_len=self._encoder_len
        )

    def highest(self, batch_size: int) -> tuple[int, str, int] | None:
        """Bytes beside the weights, the phase, and the cache after it; None where a forward was not followed."""
        found = []
        for phase, q_len, past_len in self.passes:
            peak = peak_bytes(
                self._terms,
                batch_size=batch_size,
                q_len=q_len,
                past_len=past_len,
                encoder_len=self._encoder_len,
            )
            if peak is None:
                return None
            peak += self._prompt_held(batch_size, q_len, past_len)
            found.append((peak, phase, self.cache_bytes(batch_size, q_len, past_len)))
        return max(found)

    def _prompt_held(self, batch_size: int, q_len: int, past_len: int) -> int:
        """What layers with windows still hold of the prompt in the first forward behind it, at most."""
        if past_len != self.passes[0][1]:
            return 0
        after_prompt = self.cache_bytes(batch_size, past_len, 0)
        return max(0, after_prompt - self.cache_bytes(batch_size, q_len, past_len - q_len))


def _most(request: _Request, room_bytes: int) -> int | None:
    """The largest batch whose highest moment fits; memory grows with every sequence, so halving finds it."""

    def fits(batch_size: int) -> bool:
        peak = request.highest(batch_size)
        return peak is not None and peak[0] <= room_bytes

    if request.highest(1) is None:
        return None
    least, most = 0, _MOST_SEQUENCES
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least
