"""A prefill too small to keep the arithmetic busy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where memory is the largest share of prefill because its tokens stay below the ridge."""
    cost, roofs = case.cost, case.roofs
    if case.phase.name != "prefill" or case.held_by != "memory" or cost is None or roofs is None:
        return None
    intensity, ridge = cost.arithmetic_intensity, roofs.compute.value / roofs.memory.value
    if intensity is None or intensity >= ridge:
        return None
    return case.finding(
        "prefill-below-ridge",
        "OPT",
        f"Prefill of {case.phase.tokens or 0:,} tokens does {intensity:,.0f} FLOP per byte, and this device needs "
        f"{ridge:,.0f}: it waits for the weights as decode does.",
        Evidence(
            metric="arithmetic_intensity",
            value=intensity,
            threshold=ridge,
            source="analytic",
            note=f"ridge of the {roofs.compute.source} roofs, dense",
        ),
        Evidence(metric="memory_share", value=case.share("memory"), source="measured", note="of the phase's wall"),
        saving=case.saving(
            "that two such prompts share a pass, and half of reading the weights is the other's",
            Change("weights", 0.3, 0.5),
        ),
        action="Prefill several short prompts in one pass, or together with running decodes (continuous batching). "
        "Precondition: requests arrive together; the first of them waits for the others.",
        not_helping="A dtype or device with more FLOP/s: arithmetic is not what it waits for. It is tokens against the "
        "ridge that decide, not the number of sequences.",
        verify="run two such prompts as one batch; prefill's wall per prompt falls.",
    )
