"""One forward's operators added up by group: FLOPs, weights, activations, bytes as they run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from inferscope.capture.operators import ATTENTION, GROUPED_MM, distinct_bytes, storage_key
from inferscope.specs import GroupCount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.capture.operators import Seen

__all__ = ["ForwardShape", "Tally", "Weights"]

_EXPERT_NOTE = (
    "expert weights: one expert per routed token in one-token passes, more than is read where tokens of a batch "
    "share experts; all experts in longer passes"
)
_CACHE_KINDS = {"copy", "move", "overwrite", "scatter"}
_MATRIX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardShape:
    """Shape of a counted forward; `specs.ShapeCount` says what each is."""

    batch_size: int
    q_len: int
    past_len: int
    logits: int

    @property
    def kv_len(self) -> int:
        """Tokens attended to."""
        return self.past_len + self.q_len

    @property
    def causal_pairs(self) -> int:
        """Pairs of a new token and one it may look at, per sequence."""
        return self.q_len * self.past_len + self.q_len * (self.q_len + 1) // 2


class Weights:
    """The parameters of a model, recognised in operators by their storage."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.whole_bytes: dict[int, int] = defaultdict(int)
        for parameter in model.parameters():
            self.whole_bytes[storage_key(parameter)] += parameter.numel() * parameter.element_size()
        head = getattr(model, "get_output_embeddings", lambda: None)()
        weight = getattr(head, "weight", None)
        self.head_key = storage_key(weight) if isinstance(weight, torch.Tensor) else None


@dataclass(slots=True)
class _Sums:
    calls: int = 0
    launches: int = 0
    flops: int = 0
    flops_full: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    executed_bytes: int = 0


@dataclass(slots=True)
class Tally:
    """Sums of one forward.

    Attributes:
        weights: The model's parameters.
        shape: What was run.
        cache_keys: Storages of the cache after the forward.
    """

    weights: Weights
    shape: ForwardShape
    cache_keys: set[int]
    uncounted: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)
    _sums: dict[str, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    _read: dict[int, dict[tuple[int, int], int]] = field(default_factory=lambda: defaultdict(dict))
    _gathered: list[tuple[int, str, int]] = field(default_factory=list)
    _made_from: dict[int, int] = field(default_factory=dict)
    _expert_copies: set[int] = field(default_factory=set)

    def add_all(self, seen: Iterable[Seen]) -> tuple[GroupCount, ...]:
        """Add up the operators of the whole forward.

        Returns:
            One entry per group, by name.
        """
        for entry in seen:
            self._add(entry)
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

    def _add(self, seen: Seen) -> None:
        group = self._group(seen)
        sums = self._sums[group]
        sums.calls += 1
        if seen.kind == "view":
            return
        sums.launches += 1
        if seen.kind == "unknown":
            self.uncounted.add(seen.name)
        if seen.kind == "matmul":
            sums.flops_full += seen.flops
            sums.flops += self._causal_flops(seen, group)
            sums.activation_bytes += self._activation_bytes(seen, group)
        sums.executed_bytes += self._executed_bytes(seen)
        self._read_weights(seen, group)

    def _group(self, seen: Seen) -> str:
        if seen.kind == "matmul":
            return self._matmul_group(seen)
        if seen.kind in _CACHE_KINDS and any(storage_key(out) in self.cache_keys for out in seen.outputs):
            return "kv-cache"
        if seen.kind == "gather" and self._parameter(seen.inputs[0]) is not None:
            return "embedding" if seen.inputs[0].dim() <= _MATRIX else "other"
        if seen.kind == "elementwise":
            is_softmax = seen.name.endswith("softmax") and self._is_scores(seen.outputs[0])
            return "attention" if is_softmax else "norm/elementwise"
        return "other"

    def _matmul_group(self, seen: Seen) -> str:
        if seen.name == ATTENTION:
            return "attention"
        for side, operand in enumerate(seen.operands):
            key = self._parameter(operand)
            if key is None:
                continue
            if seen.name.endswith("convolution"):
                return "convolution " + "x".join(str(size) for size in operand.shape)
            rows, columns = operand.shape[-2:] if operand.dim() > 1 else (operand.shape[0], 1)
            ins, outs = (rows, columns) if side == 1 and seen.name != "linear" else (columns, rows)
            return f"{self._linear_name(seen, operand, key)} {ins}x{outs}"
        lies_on_pairs = any(self._is_scores(tensor) for tensor in (*seen.operands[:1], *seen.outputs))
        return "attention" if lies_on_pairs else "other"

    def _linear_name(self, seen: Seen, operand: torch.Tensor, key: int) -> str:
        if key == self.weights.head_key:
            return "lm_head"
        is_expert = seen.name == GROUPED_MM or storage_key(operand) in self._expert_copies
        return "experts" if is_expert else "linear"

    def _is_scores(self, tensor: torch.Tensor) -> bool:
        pairs = (self.shape.q_len, self.shape.kv_len)
        return tensor.dim() > _MATRIX and tuple(tensor.shape[-2:]) == pairs

    def _parameter(self, tensor: torch.Tensor) -> int | None:
        key = storage_key(tensor)
        key = self._made_from.get(key, key)
        return key if key in self.weights.whole_bytes else None

    def _causal_flops(self, seen: Seen, group: str) -> int:
        shape = self.shape
        if group != "attention":
            return seen.flops
        if seen.name == ATTENTION:
            query, key = seen.operands[:2]
            lengths = (query.shape[-2], key.shape[-2])
            if not seen.causal or lengths != (shape.q_len, shape.kv_len):
                return seen.flops
        return seen.flops // (shape.q_len * shape.kv_len) * shape.causal_pairs

    def _activation_bytes(self, seen: Seen, group: str) -> int:
        written = sum(distinct_bytes(out) for out in seen.outputs)
        if group == "attention":
            # The first operand is the query or the scores; what comes after it are keys and values.
            return written + distinct_bytes(seen.operands[0])
        return written + sum(distinct_bytes(operand) for operand in seen.operands if self._parameter(operand) is None)

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

    def _expert_bytes(self, seen: Seen) -> int:
        rows, experts = seen.operands[:2]
        whole = distinct_bytes(experts)
        return whole // experts.shape[0] * rows.shape[0] if self.shape.q_len == 1 else whole

    def _read_weights(self, seen: Seen, group: str) -> None:
        if seen.kind == "gather" and self._parameter(seen.inputs[0]) is not None:
            self._gather(seen, group)
        elif seen.name == GROUPED_MM and self._parameter(seen.operands[1]) is not None:
            self.notes.add(_EXPERT_NOTE)
            self._sums[group].weight_bytes += self._expert_bytes(seen)
        else:
            inputs = seen.inputs[1:] if seen.kind == "overwrite" else seen.inputs
            for tensor in inputs:
                self._read_whole(tensor, group)
        if seen.kind == "copy":
            source = self._parameter(seen.inputs[0])
            if source is not None:
                self._made_from[storage_key(seen.outputs[0])] = source

    def _gather(self, seen: Seen, group: str) -> None:
        source, out = seen.inputs[0], seen.outputs[0]
        key = storage_key(source)
        if source.dim() <= _MATRIX:
            self._gathered.append((key, group, distinct_bytes(out)))
            return
        self.notes.add(_EXPERT_NOTE)
        self._made_from[storage_key(out)] = key
        self._expert_copies.add(storage_key(out))
        self._sums[group].weight_bytes += distinct_bytes(out) if self.shape.q_len == 1 else distinct_bytes(source)

    def _read_whole(self, tensor: torch.Tensor, group: str) -> None:
        key = storage_key(tensor)
        if key not in self.weights.whole_bytes:
            return
        parts = self._read[key]
        size = distinct_bytes(tensor)
        left = self.weights.whole_bytes[key] - sum(parts.values())
        part = (int(tensor.storage_offset()), size)
        if part not in parts:
            parts[part] = min(size, left)
            self._sums[group].weight_bytes += min(size, left)
