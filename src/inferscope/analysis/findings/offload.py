"""Weights that do not stand on the device where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Saving, Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(whole: Whole) -> Finding | None:
    """Fires where parameters are offloaded to the CPU or to disk."""
    model = whole.record.model
    if not model.offloaded_bytes:
        return None
    link = whole.surroundings.gpu.pcie_limit_bytes_per_s if whole.surroundings.gpu is not None else None
    share = min(1.0, model.offloaded_bytes / model.weight_bytes) if model.weight_bytes else None
    part = "" if share is None else f", {share:.0%} of the weights"
    rows = [Evidence(metric="offloaded_bytes", value=float(model.offloaded_bytes), source="measured")]
    if link:
        seconds = model.offloaded_bytes / link
        rows.append(
            Evidence(
                metric="transfer_per_pass_ns",
                value=1e9 * seconds,
                source="datasheet",
                note="at the link's specified rate: the least that a pass takes",
            )
        )
    return whole.finding(
        "weights-offloaded",
        "WARN",
        f"{model.offloaded_bytes / 1e6:,.0f} MB of parameters are offloaded{part}: they are brought in for every pass.",
        *rows,
        saving=_saving(whole, model.offloaded_bytes),
        action="Make the model fit: a narrower dtype, quantised weights, a smaller model, or several devices. "
        "Precondition: check quality.",
        not_helping="A faster device behind the same link, or compiling: passes wait for transfers.",
        verify="run the same request with all weights on the device; TTFT and TPOT fall.",
    )


def _saving(whole: Whole, offloaded_bytes: int) -> Saving:
    """Between the least that moving the bytes can take and all that the roofs do not explain."""
    device = whole.diagnosis.device
    rate = device.copy_bytes_per_s.value if device is not None and device.copy_bytes_per_s is not None else None
    judged = [case for case in whole.cases if case.verdict.shares]
    low_ns = high_ns = 0.0
    for case in judged:
        explained = sum(case.share(name) for name in ("compute", "memory", "cache"))
        beyond_ns = case.phase.wall_ns * max(0.0, 1 - explained)
        high_ns += beyond_ns
        low_ns += min(beyond_ns, 1e9 * offloaded_bytes * case.phase.passes / rate) if rate else 0.0
    return whole.stretch(
        low_ns,
        high_ns,
        "that at least moving these bytes at the device's own copy rate goes, at most all that the roofs do not "
        "explain",
        phases=[case.phase.name for case in judged],
        terms=("communication", "kernels", "dispatch"),
    )
