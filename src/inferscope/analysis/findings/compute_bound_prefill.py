"""Prefill held back by the arithmetic of its linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.findings.dtypes import faster_dtype
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

MOST = 0.5
"""Part of the arithmetic from which on attention is named instead."""


def look(case: Case) -> Finding | None:
    """Fires where compute is the largest share of prefill, and most of it is not attention."""
    if case.phase.name != "prefill" or case.held_by != "compute" or case.cost is None:
        return None
    if case.part("attention arithmetic") > MOST * case.share("compute"):
        return None
    low, high, basis = faster_dtype(case.device, case.record.model.dtype)
    return case.finding(
        "prefill-compute-bound",
        "OPT" if high else "INFO",
        f"Prefill computes at {100 * (case.verdict.mfu or 0.0):.0f} % of the roof: the arithmetic of "
        f"{case.phase.tokens or 0:,} tokens is its time.",
        Evidence(metric="compute_share", value=case.share("compute"), source="measured", note="of the phase's wall"),
        *case.evidence("achieved_flops_per_s"),
        saving=case.saving(basis, Change("linear arithmetic", low, high), Change("attention arithmetic", low, high)),
        action="Compute fewer tokens (reuse the cache of a shared prefix, shorten the prompt) or faster ones (a dtype "
        "with a higher peak). Precondition for the dtype: check quality, outputs will differ.",
        not_helping="Faster memory, a larger batch or CUDA graphs: the arithmetic units are busy already. Weight-only "
        "quantisation: the FLOPs stay, and are done in the wide dtype.",
        verify="run the same prompt in the faster dtype, or with its prefix cached; TTFT falls.",
    )
