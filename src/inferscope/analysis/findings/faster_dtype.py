"""Weights in a wide dtype where the device is much faster in a narrow one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.findings.dtypes import faster_dtype, narrower_weights
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05


def look(whole: Whole) -> Finding | None:
    """Fires where float32 weights run on a device whose measured peak is higher in 16 bits, and that would pay."""
    dtype, device = whole.record.model.dtype, whole.diagnosis.device
    if dtype not in {"float32", "float64"}:
        return None
    low, high, basis = faster_dtype(device, dtype)
    if not high:
        return None
    narrow = narrower_weights(device, dtype)[:2]
    known = (
        Change("linear arithmetic", low, high),
        Change("attention arithmetic", low, high),
        Change("weights", *narrow),
    )
    # Whether attention and the small operators read half the bytes faster was not measured: on a CPU it may be slower.
    hoped = (Change("kv", 0.0, narrow[1]), Change("activations", 0.0, narrow[1]))
    measured = whole.saving(basis, {case.phase.name: known for case in whole.cases}).saves
    if measured is None or measured.request_share < _WORTH_SAYING:
        return None
    saving = whole.saving(f"{basis}; bytes halve", {case.phase.name: (*known, *hoped) for case in whole.cases})
    best = max(peak.value for peak in device.compute_flops_per_s.values()) if device is not None else 0.0
    now = device.compute_flops_per_s[dtype].value if device is not None else 0.0
    return whole.finding(
        "faster-dtype-unused",
        "OPT",
        f"The weights are {dtype}, and this device computes {best / now:.1f} times as fast in a narrower dtype, with "
        "half the bytes or fewer (on a GPU: its tensor cores stand still).",
        Evidence(metric="peak_flops_per_s", value=now, threshold=best, source="measured", note=f"dense, {dtype}"),
        saving=saving,
        action="Load the model with dtype=torch.bfloat16. On a GPU that must stay in float32: "
        'torch.set_float32_matmul_precision("high"). Precondition: check quality, outputs will differ.',
        not_helping="A sparse peak from a datasheet: dense weights do not reach it.",
        verify="run the same request in bfloat16; TTFT and TPOT fall.",
    )
