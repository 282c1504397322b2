"""What a model's own operators were seen to take on one device, and what lies between the sizes that were tried.

A roof says how fast a device can be; a matrix product of a few rows, or one of a small matrix, is slower than its
roof by a factor that only measuring tells. Times between two measured sizes are interpolated on logarithmic scales,
beyond the largest they grow in proportion, below the smallest they stay.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.cost import GroupCost

__all__ = ["KernelPoint", "KernelTimes", "Kind", "product_shape"]

_PRODUCT = re.compile(r"(?:linear|lm_head) (\d+)x(\d+)")

Kind = Literal["product", "prefill attention", "decode attention", "elementwise", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoint:
    """Time of one call of one size.

    Attributes:
        kind: What was called.
        group: The operator group, for products; "" otherwise.
        size: Rows of a product, tokens attended to for attention, bytes read and written otherwise.
        batch_size: Sequences, for attention; 1 otherwise.
        call_ns: Nanoseconds of one call, its dispatch included.
    """

    kind: Kind
    group: str = ""
    size: float
    call_ns: float
    batch_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTimes:
    """Measured times of one model's operators on one device.

    Attributes:
        device_key: Of the device that was measured, as `DeviceSpec.key`.
        dtype: Of weights and activations.
        points: What was measured, in any order.
    """

    device_key: str
    dtype: str
    points: tuple[KernelPoint, ...]

    def call_ns(self, kind: Kind, size: float, group: str = "", batch_size: int = 1) -> float | None:
        """Nanoseconds of one call of that size; None where nothing of its kind was measured."""
        wanted = (kind, group, batch_size)
        seen = {
            point.size: point.call_ns for point in self.points if (point.kind, point.group, point.batch_size) == wanted
        }
        return _between(sorted(seen.items()), size) if seen else None

    def attention_ns(self, kind: Kind, kv_len: float, batch_size: int) -> float | None:
        """Nanoseconds of one call of attention: so much by itself, and so much for each further sequence.

        Where only single sequences were measured, each further one takes as long as the first.
        """
        one = self.call_ns(kind, kv_len)
        if one is None or batch_size == 1:
            return one
        several = max((point.batch_size for point in self.points if point.kind == kind), default=1)
        many = self.call_ns(kind, kv_len, batch_size=several) if several > 1 else None
        if many is None:
            return one * batch_size
        return one + (batch_size - 1) * max(0.0, many - one) / (several - 1)

    def group_ns(self, group: GroupCost, *, batch_size: int, q_len: int, kv_len: float) -> float | None:
        """Nanoseconds of all calls of a group in one pass; None where nothing like it was measured.

        Args:
            group: Of the cost of one pass.
            batch_size: Sequences.
            q_len: New tokens per sequence.
            kv_len: Tokens attended to per sequence.
        """
        if not group.launches:
            return 0.0
        shape = product_shape(group.group)
        if shape is not None:
            rows = group.flops / (2 * group.calls * shape[0] * shape[1])
            one = self.call_ns("product", rows, group.group)
        elif group.group == "attention":
            kind: Kind = "decode attention" if q_len == 1 else "prefill attention"
            one = self.attention_ns(kind, kv_len, batch_size)
        else:
            kind = "elementwise" if group.group == "norm/elementwise" else "copy"
            one = self.call_ns(kind, group.executed_bytes / group.launches)
        return None if one is None else one * group.launches


def product_shape(group: str) -> tuple[int, int] | None:
    """Inputs and outputs of a group's weight matrices; None where the group is no plain matrix product."""
    match = _PRODUCT.fullmatch(group)
    return None if match is None else (int(match[1]), int(match[2]))


def _between(points: Iterable[tuple[float, float]], size: float) -> float:
    seen = list(points)
    if size <= seen[0][0]:
        return seen[0][1]
    for (left, left_ns), (right, right_ns) in pairwise(seen):
        if size <= right:
            share = math.log(size / left) / math.log(right / left)
            return math.exp(math.log(left_ns) * (1 - share) + math.log(right_ns) * share)
    return seen[-1][1] * size / seen[-1][0]
