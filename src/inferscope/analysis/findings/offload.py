"""Weights that do not stand on the device where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
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
        saving=whole.saving(
            "that 50 to 100 % of the transfers go",
            {case.phase.name: (Change("communication", 0.5, 1.0),) for case in whole.cases},
        ),
        action="Make the model fit: a narrower dtype, quantised weights, a smaller model, or several devices. "
        "Precondition: check quality.",
        not_helping="A faster device behind the same link, or compiling: passes wait for transfers.",
        verify="run the same request with all weights on the device; TTFT and TPOT fall.",
    )
