"""One forward's operators added up by group: FLOPs, weights, activations, bytes as they run."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from inferscope.capture.operators import ATTENTION, GROUPED_MM, PACKED_LINEAR, distinct_bytes, parts_of, storage_key
from inferscope.specs import GroupCount, block_pairs, window_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.capture.operators import Seen
    from inferscope.specs import Regime

__all__ = ["ForwardShape", "Tally", "Weights", "expert_kind"]

_EXPERT_NOTE = (
    "expert weights: as many different experts as tokens that choose uniformly would reach, E(1 - (1 - k/E)^tokens)"
)
_WIDTHS_NOTE = (
    "attention over keys and values of different widths: counted as one fused kernel; where torch has none (on a "
    "CPU), scores are written, and take memory and bytes that are not counted"
)
_CACHE_KINDS = {"copy", "move", "overwrite", "scatter"}
_MATRIX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardShape:
    """Shape of a counted forward; `specs.ShapeCount` says what each is.

    `windows` are those of the model, `experts` the distinct experts to assume by (experts, experts per token).
    """

    batch_size: int
    q_len: int
    past_len: int
    logits: int
    regime: Regime | None = None
    encoder_len: int = 0
    windows: tuple[int, ...] = ()
    experts: tuple[tuple[tuple[int, int], int], ...] = ()

    @property
    def kv_len(self) -> int:
        """Tokens attended to where no window ends."""
        return self.past_len + self.q_len

    @property
    def tokens(self) -> int:
        """New tokens over all sequences."""
        return self.batch_size * self.q_len

    @property
    def key_lens(self) -> set[int]:
        """Lengths that the keys of a decoder's own tokens can have."""
        return {self.kv_len} | {min(self.past_len, window - 1) + self.q_len for window in self.windows}


class Weights:
    """What a model stores, recognised in operators by its storage: parameters, and buffers that are saved with it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.whole_bytes: dict[int, int] = defaultdict(int)
        kept = model.state_dict(keep_vars=True)
        for tensor in {id(value): value for value in (*model.parameters(), *kept.values())}.values():
            if isinstance(tensor, torch.Tensor):
                for part in parts_of(tensor):
                    self.whole_bytes[storage_key(part)] += part.numel() * part.element_size()
        head = getattr(model, "get_output_embeddings", lambda: None)()
        weight = getattr(head, "weight", None)
        self.head_key = storage_key(next(parts_of(weight))) if isinstance(weight, torch.Tensor) else None


@dataclass(slots=True)
class _Sums:
    calls: int = 0
    launches: int = 0
    flops: int = 0
    flops_full: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    executed_bytes: int = 0


def expert_kind(seen: Seen, shape: ForwardShape) -> tuple[int, int] | None:
    """(experts, experts per token) of a product with stacked experts, or None if it is none.

    Experts are either multiplied as they are stored, in groups of rows, or gathered first, one copy per row.
    """
    if seen.name == GROUPED_MM:
        rows, experts = seen.operands[:2]
        return int(experts.shape[0]), int(rows.shape[0]) // shape.tokens
    if seen.kind == "gather" and seen.inputs[0].dim() > _MATRIX:
        return _gathered_kind(seen, shape)
    return None


def _gathered_kind(seen: Seen, shape: ForwardShape) -> tuple[int, int] | None:
    """(entries, entries per token) of a gather along the first dimension; None where it is not by token."""
    copies = int(seen.outputs[0].shape[0]) if seen.outputs else 0
    if copies >= shape.tokens and copies % shape.tokens == 0:
        return int(seen.inputs[0].shape[0]), copies // shape.tokens
    return None


@dataclass(slots=True)
class Tally:
    """Sums of one forward.

    Attributes:
        weights: The model's parameters.
        shape: What was run.
        cache_keys: Storages of the cache after the forward.
        scoped: Whether the model's attention modules are known, so that nothing outside them is attention.
    """

    weights: Weights
    shape: ForwardShape
    cache_keys: set[int]
    scoped: bool = False
    uncounted: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    _sums: dict[str, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    _read: dict[int, dict[tuple[int, int], int]] = field(default_factory=lambda: defaultdict(dict))
    _gathered: list[tuple[int, str, int]] = field(default_factory=list)
    _made_from: dict[int, int] = field(default_factory=dict)
    _expert_copies: set[int] = field(default_factory=set)
    _unexpanded: dict[int, int] = field(default_factory=dict)

    def add_all(self, seen: Iterable[Seen], times: Iterable[int]) -> tuple[GroupCount, ...]:
        """Add up the operators of the whole forward.

        Args:
            seen: In the order in which they ran.
            times: How often each counts: operators of layers that are alike stand for all of these.

        Returns:
            One entry per group, by name.
        """
        for entry, count in zip(seen, times, strict=True):
            self._add(entry, count)
        for key, group, rows_bytes in self._gathered:
            # A tied head reads the whole storage anyway; its embedding then adds nothing.
            if key not in self._read:
                self._sums[group].weight_bytes += rows_bytes
        return tuple(
            GroupCount(
                group=name,
                calls=sums.calls,
                launches=sums.launches,
                flops=sums.flops,
                flops_full=sums.flops_full,
                weight_bytes=sums.weight_bytes,
                activation_bytes=sums.activation_bytes,
                executed_bytes=sums.executed_bytes,
            )
            for name, sums in sorted(self._sums.items())
        )

    def _add(self, seen: Seen, times: int) -> None:
        group = self._group(seen)
        sums = self._sums[group]
        sums.calls += times
        if seen.kind == "view":
            return
        sums.launches += times
        if seen.kind == "unknown":
            self.uncounted.add(seen.name)
        if seen.kind == "matmul":
            sums.flops_full += times * seen.flops
            sums.flops += times * self._causal_flops(seen, group)
            sums.activation_bytes += times * self._activation_bytes(seen, group)
        sums.executed_bytes += times * self._executed_bytes(seen)
        self._read_weights(seen, group, times)

    def _group(self, seen: Seen) -> str:
        if seen.kind in {"matmul", "unknown"}:
            return self._matmul_group(seen) if seen.kind == "matmul" else "uncounted"
        if seen.kind in _CACHE_KINDS and any(storage_key(out) in self.cache_keys for out in seen.outputs):
            return "kv-cache"
        if seen.kind == "gather" and self._parameter(seen.inputs[0]) is not None:
            return "embedding" if self._experts_of(seen) is None else "other"
        if seen.kind != "view" and any(self._is_scores(out) for out in seen.outputs):
            return "attention scores" if seen.scope is not None else "mask"
        if seen.kind == "copy" and seen.scope is not None and _is_expanded(seen.inputs[0]):
            return "kv-repeat"
        return "norm/elementwise" if seen.kind == "elementwise" else "other"

    def _matmul_group(self, seen: Seen) -> str:
        if seen.name == ATTENTION:
            if seen.operands[0].shape[-1] != seen.operands[2].shape[-1]:
                self.notes.add(_WIDTHS_NOTE)
            return "attention"
        if seen.name == PACKED_LINEAR:
            return f"linear {seen.inputs[0].shape[-1]}x{seen.outputs[0].shape[-1]}"
        for side, operand in enumerate(seen.operands):
            key = self._parameter(operand)
            if key is None:
                continue
            if seen.name.endswith("convolution"):
                return "convolution " + "x".join(str(size) for size in operand.shape)
            rows, columns = operand.shape[-2:] if operand.dim() > 1 else (operand.shape[0], 1)
            ins, outs = (rows, columns) if side == 1 and seen.name != "linear" else (columns, rows)
            return f"{self._linear_name(seen, operand, key)} {ins}x{outs}"
        if self.scoped and seen.scope is None:
            return "other"
        lies_on_pairs = any(self._is_scores(tensor) for tensor in (*seen.operands[:1], *seen.outputs))
        return "attention" if lies_on_pairs else "other"

    def _linear_name(self, seen: Seen, operand: torch.Tensor, key: int) -> str:
        if key == self.weights.head_key:
            return "lm_head"
        is_expert = seen.name == GROUPED_MM or storage_key(operand) in self._expert_copies
        return "experts" if is_expert else "linear"

    def _is_scores(self, tensor: torch.Tensor) -> bool:
        if tensor.dim() <= _MATRIX or tensor.shape[-2] != self.shape.q_len:
            return False
        return int(tensor.shape[-1]) in self.shape.key_lens | {self.shape.encoder_len}

    def _parameter(self, tensor: torch.Tensor) -> int | None:
        key = storage_key(tensor)
        key = self._made_from.get(key, key)
        return key if key in self.weights.whole_bytes else None

    def _causal_flops(self, seen: Seen, group: str) -> int:
        if group != "attention":
            return seen.flops
        if seen.name == ATTENTION:
            key_len = int(seen.operands[1].shape[-2])
        else:
            key_len = next(
                int(tensor.shape[-1]) for tensor in (*seen.outputs, *seen.operands[:1]) if self._is_scores(tensor)
            )
        pairs = self._pairs(seen, key_len)
        return seen.flops // (self.shape.q_len * key_len) * pairs

    def _pairs(self, seen: Seen, key_len: int) -> int:
        """Pairs of a new token and a key it may look at, per sequence."""
        shape, scope = self.shape, seen.scope
        every = shape.q_len * key_len
        own = key_len in shape.key_lens and (key_len != shape.encoder_len or seen.causal)
        unmasked = seen.name == ATTENTION and not seen.causal
        if shape.regime == "encode" or not own or (unmasked and shape.q_len > 1):
            return every
        if scope is not None and scope.block is not None:
            return block_pairs(scope.block, shape.q_len, shape.past_len)
        return window_pairs(scope.window if scope is not None else None, shape.q_len, shape.past_len)

    def _activation_bytes(self, seen: Seen, group: str) -> int:
        if group == "attention":
            # The first operand is the query or the scores; what comes after it are keys and values. Scores are
            # not charged: attention need not write them.
            moved = (*seen.outputs, seen.operands[0])
            return sum(
                distinct_bytes(tensor) for tensor in moved if seen.name == ATTENTION or not self._is_scores(tensor)
            )
        written = sum(distinct_bytes(out) for out in seen.outputs)
        return written + sum(self._read_bytes(operand) for operand in seen.operands if self._parameter(operand) is None)

    def _read_bytes(self, operand: torch.Tensor) -> int:
        """Bytes of an operand before it was repeated to fit: a single sequence needs no repeating."""
        return min(distinct_bytes(operand), self._unexpanded.get(storage_key(operand), sys.maxsize))

    def _executed_bytes(self, seen: Seen) -> int:
        inputs = [distinct_bytes(tensor) for tensor in seen.inputs]
        written = sum(distinct_bytes(out) for out in seen.outputs)
        if seen.kind == "gather":
            return 2 * written + sum(inputs[1:])
        if seen.kind == "scatter":
            return sum(inputs[1:]) + inputs[-1]
        if seen.kind == "overwrite":
            return sum(inputs[1:]) + written
        if seen.name == GROUPED_MM:
            return inputs[0] + self._expert_bytes(seen) + written
        return sum(inputs) + written

    def _experts_of(self, seen: Seen) -> tuple[int, int] | None:
        """As `expert_kind`, and so for the biases of experts: stacked vectors, of which each row gathers its own."""
        kind = expert_kind(seen, self.shape)
        if kind is None and seen.kind == "gather" and seen.inputs[0].dim() == _MATRIX == seen.outputs[0].dim():
            kind = _gathered_kind(seen, self.shape)
            return kind if kind in {known for known, _ in self.shape.experts} else None
        return kind

    def _expert_bytes(self, seen: Seen) -> int:
        """Bytes of as many experts as the shape assumes to be read."""
        kind = self._experts_of(seen)
        stacked = seen.operands[1] if seen.name == GROUPED_MM else seen.inputs[0]
        each = distinct_bytes(stacked) // stacked.shape[0]
        return each * next((count for known, count in self.shape.experts if known == kind), int(stacked.shape[0]))

    def _read_weights(self, seen: Seen, group: str, times: int) -> None:
        if seen.kind == "gather" and self._parameter(seen.inputs[0]) is not None:
            self._gather(seen, group, times)
        elif seen.name == GROUPED_MM and self._parameter(seen.operands[1]) is not None:
            self.notes.add(_EXPERT_NOTE)
            self._sums[group].weight_bytes += times * self._expert_bytes(seen)
        else:
            inputs = seen.inputs[1:] if seen.kind == "overwrite" else seen.inputs
            for tensor in inputs:
                self._read_whole(tensor, group, times)
        if seen.kind == "copy" and _is_expanded(seen.inputs[0]):
            self._unexpanded[storage_key(seen.outputs[0])] = distinct_bytes(seen.inputs[0])
        if seen.kind == "copy":
            source = self._parameter(seen.inputs[0])
            if source is not None:
                self._made_from[storage_key(seen.outputs[0])] = source

    def _gather(self, seen: Seen, group: str, times: int) -> None:
        source, out = seen.inputs[0], seen.outputs[0]
        key = storage_key(source)
        if self._experts_of(seen) is None:
            self._gathered.append((key, group, times * distinct_bytes(out)))
            return
        self.notes.add(_EXPERT_NOTE)
        self._made_from[storage_key(out)] = key
        self._expert_copies.add(storage_key(out))
        self._sums[group].weight_bytes += times * self._expert_bytes(seen)

    def _read_whole(self, tensor: torch.Tensor, group: str, times: int) -> None:
        key = storage_key(tensor)
        if key not in self.weights.whole_bytes:
            return
        parts = self._read[key]
        size = distinct_bytes(tensor)
        left = self.weights.whole_bytes[key] - sum(parts.values())
        part = (int(tensor.storage_offset()), size)
        if part not in parts:
            parts[part] = min(size, left)
            self._sums[group].weight_bytes += times * min(size, left)


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
