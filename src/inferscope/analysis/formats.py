"""A counted model with its weights or its cache in another format: fewer bytes, the same arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inferscope.analysis.cost import ByteTriple
from inferscope.analysis.kernels import product_shape
from inferscope.analysis.machine import QUANTIZATIONS
from inferscope.errors import PredictionError

if TYPE_CHECKING:
    from inferscope.analysis.cost import GroupCost, PassCost
    from inferscope.analysis.machine import Quantization
    from inferscope.specs import ModelSpec

__all__ = ["DTYPE_BYTES", "Format", "format_of", "product_weight_bytes"]

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int8": 1}
"""Bytes of one number, for dtypes of weights, activations and caches."""
_KV_DTYPES = ("float32", "bfloat16", "float16", "float8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """In what the weights and the cache are stored.

    Attributes:
        dtype: Of activations, and of weights that are not quantised.
        quantization: Of the matrices of linear layers; None where they have the dtype.
        weight_share: Stored bytes of those matrices over their bytes in the dtype.
        kv_dtype: Of the cache.
        kv_share: Stored bytes of the cache over its bytes in the dtype.
    """

    dtype: str
    quantization: Quantization | None
    weight_share: float
    kv_dtype: str
    kv_share: float

    def stored(self, cost: PassCost, *, as_time: bool = False) -> PassCost:
        """The cost with its bytes in this format.

        Args:
            cost: As counted in the dtype.
            as_time: Weights count for as much as plain ones that take as long to read.
        """
        share = self.weight_share
        if as_time and self.quantization is not None:
            share /= self.quantization.read_share
        groups = tuple(self._group(group, cost, share) for group in cost.groups)
        weights = sum(group.weight_bytes for group in groups)
        read, write = round(cost.kv_read_bytes * self.kv_share), round(cost.kv_write_bytes * self.kv_share)
        fixed = weights + read + write
        ends = cost.bytes.minimum - cost.weight_bytes - cost.kv_read_bytes - cost.kv_write_bytes
        return replace(
            cost,
            weight_bytes=weights,
            kv_read_bytes=read,
            kv_write_bytes=write,
            groups=groups,
            bytes=ByteTriple(
                minimum=fixed + ends,
                model=fixed + cost.activation_bytes,
                executed=sum(group.executed_bytes for group in groups),
            ),
        )

    def weight_bytes(self, stored_bytes: int, product_bytes: int) -> int:
        """All weights in this format.

        Args:
            stored_bytes: All weights in the dtype.
            product_bytes: Those of them in matrices of linear layers.
        """
        return stored_bytes - product_bytes + round(product_bytes * self.weight_share)

    def _group(self, group: GroupCost, cost: PassCost, weight_share: float) -> GroupCost:
        if product_shape(group.group) is not None:
            saved = group.weight_bytes - round(group.weight_bytes * weight_share)
            return replace(
                group,
                bytes=group.bytes - saved,
                executed_bytes=group.executed_bytes - saved,
                weight_bytes=group.weight_bytes - saved,
            )
        carried = {"attention": cost.kv_read_bytes, "kv-cache": cost.kv_write_bytes}.get(group.group)
        if carried is None or not group.bytes:
            return group
        saved = round(carried * (1 - self.kv_share))
        whole = group.group == "kv-cache"  # all that it moves is cache
        executed = group.executed_bytes * self.kv_share if whole else group.executed_bytes - saved
        return replace(group, bytes=group.bytes - saved, executed_bytes=round(max(executed, 0)))


def format_of(model: ModelSpec, dtype: str, quantization: str | None, kv_dtype: str | None) -> Format:
    """The format that was asked for.

    Args:
        model: Whose weights are counted in the dtype.
        dtype: Of activations and plain weights.
        quantization: Name of a weight format, None for the dtype.
        kv_dtype: Of the cache, None for the dtype.

    Raises:
        PredictionError: There is no formula for it.
    """
    if dtype not in DTYPE_BYTES:
        raise PredictionError(f"no formula for weights in {dtype!r}: known are {', '.join(DTYPE_BYTES)}")
    chosen = QUANTIZATIONS.get(quantization) if quantization else None
    if quantization and chosen is None:
        raise PredictionError(f"no formula for quantization {quantization!r}: known are {', '.join(QUANTIZATIONS)}")
    if chosen is not None and model.cost is not None and model.cost.structure.experts:
        raise PredictionError(f"no formula for experts in {chosen.name}: only plain linear layers have one")
    if kv_dtype is not None and kv_dtype not in _KV_DTYPES:
        raise PredictionError(f"no formula for a cache in {kv_dtype!r}: known are {', '.join(_KV_DTYPES)}")
    plain_bits = 8 * DTYPE_BYTES[dtype]
    if chosen is not None and chosen.weight_bits >= plain_bits:
        raise PredictionError(f"{chosen.name} is not smaller than {dtype}")
    cache = kv_dtype or dtype
    return Format(
        dtype=dtype,
        quantization=chosen,
        weight_share=chosen.weight_bits / plain_bits if chosen is not None else 1.0,
        kv_dtype=cache,
        kv_share=DTYPE_BYTES[cache] / DTYPE_BYTES[dtype],
    )


def product_weight_bytes(cost: PassCost) -> int:
    """Weights in matrices of linear layers that a pass reads."""
    return sum(group.weight_bytes for group in cost.groups if product_shape(group.group) is not None)
