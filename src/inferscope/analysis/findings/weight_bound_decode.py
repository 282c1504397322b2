"""Decode held back by reading the weights, once per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.findings.dtypes import narrower_weights
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

MOST = 0.5
"""Part of the memory time from which on the weights are most of it."""


def look(case: Case) -> Finding | None:
    """Fires where memory is the largest share of decode and weights are most of its bytes."""
    cost = case.cost
    if case.phase.name != "decode" or case.held_by != "memory" or cost is None or not cost.bytes.model:
        return None
    weight_share = cost.weight_bytes / cost.bytes.model
    if weight_share <= MOST:
        return None
    low, high, basis = narrower_weights(case.device, case.record.model.dtype)
    return case.finding(
        "decode-weight-bound",
        "OPT",
        f"Decode waits for the weights: each pass reads {cost.weight_bytes / case.phase.passes / 1e6:,.0f} MB "
        "of them to make one token per sequence.",
        Evidence(metric="memory_share", value=case.share("memory"), source="measured", note="of the phase's wall"),
        Evidence(metric="weight_bytes_share", value=weight_share, threshold=MOST, source="analytic"),
        *case.evidence("achieved_bytes_per_s"),
        saving=case.saving(f"{basis}; only the time of reading weights shrinks", Change("weights", low, high)),
        action="Store the weights narrower (bfloat16 where they are float32, else int8 or int4 weight-only), or decode "
        "more sequences per pass: the weights are read once for all. Precondition: the device has fast kernels for "
        "the dtype; check quality, outputs will differ.",
        not_helping="A device with more FLOP/s at the same bandwidth, or fewer FLOPs: arithmetic waits for memory "
        "here. A benchmark at another batch than production's: the bound moves with it.",
        verify="run the same request with the narrower dtype; TPOT and decode's wall fall, MBU stays.",
    )
