"""What a narrower dtype would bring on a device, from what was measured there, or else from what is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferscope.specs import DeviceSpec

__all__ = ["faster_dtype", "narrower_weights"]

_WORTH = 1.1
_WIDE = (0.29, 0.5, "that bfloat16 halves the weight bytes and keeps 70 to 100 % of the bandwidth")
# Measured in practice on a 7B model: int8 weights 1.48 times, int4 1.88 times as fast as bf16 (gpt-fast, A100).
_NARROW = (0.32, 0.47, "that int8 to int4 weights run 1.48 to 1.88 times as fast as 16 bits, as published")


def faster_dtype(device: DeviceSpec | None, dtype: str | None) -> tuple[float, float, str]:
    """What a dtype with a higher measured peak would save of the arithmetic: (low, high, basis); zeros without one."""
    peaks = device.compute_flops_per_s if device is not None else {}
    now = peaks.get(dtype or "")
    best = max(((peak.value, name) for name, peak in peaks.items()), default=None)
    if now is None or now.value <= 0 or best is None or best[0] <= _WORTH * now.value:
        return 0.0, 0.0, ""
    ideal = 1 - now.value / best[0]
    basis = (
        f"that 30 to 100 % of what {best[1]}'s {best[0] / now.value:.1f} times higher measured peak allows is reached"
    )
    return 0.3 * ideal, ideal, basis


def narrower_weights(device: DeviceSpec | None, dtype: str | None) -> tuple[float, float, str]:
    """What narrower weights would save of reading them: (low, high, basis)."""
    if dtype != "float32":
        return _NARROW
    rates = device.gemv_bytes_per_s if device is not None else {}
    now, narrow = rates.get("float32"), rates.get("bfloat16")
    if now is None or narrow is None or narrow.value <= 0:
        return _WIDE
    ideal = max(0.0, 1 - now.value / (2 * narrow.value))
    return 0.7 * ideal, ideal, "that bfloat16 halves the weight bytes, read at the rates measured here for each dtype"
