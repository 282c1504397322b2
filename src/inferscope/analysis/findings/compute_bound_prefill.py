"""Prefill held back by arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where compute is the largest share of prefill."""
    cost = case.verdict.cost
    if case.phase.name != "prefill" or case.verdict.bound != "compute" or cost is None:
        return None
    low, high, basis = _faster_dtype(case)
    compute = case.share("compute")
    return Finding(
        code="prefill-compute-bound",
        severity="OPT" if high else "INFO",
        phase="prefill",
        claim=f"Prefill computes at {100 * (case.verdict.mfu or 0.0):.0f} % of the roof: the arithmetic of "
        f"{case.phase.tokens or 0:,} tokens is its time.",
        evidence=(
            Evidence(metric="compute_share", value=compute, source="measured", note="of the phase's wall"),
            *(row for row in case.verdict.evidence if row.metric == "achieved_flops_per_s"),
        ),
        saves=case.saves(low * compute, high * compute, basis) if high else None,
        action="Compute fewer tokens (reuse the cache of a shared prefix, shorten the prompt) or faster ones (a dtype "
        "with a higher peak). Precondition for the dtype: check quality, outputs will differ.",
        not_helping="Faster memory, a larger batch or CUDA graphs: the arithmetic units are busy already.",
        verify="Run the same prompt in the faster dtype, or with its prefix cached, and compare the prefill's wall.",
    )


def _faster_dtype(case: Case) -> tuple[float, float, str]:
    """What a dtype with a higher measured peak would save of the compute share: (low, high, basis)."""
    peaks = case.device.compute_flops_per_s if case.device is not None else {}
    now = peaks.get(case.record.model.dtype or "")
    best = max(((peak.value, name) for name, peak in peaks.items()), default=None)
    if now is None or best is None or best[0] <= 1.1 * now.value:
        return 0.0, 0.0, ""
    ideal = 1 - now.value / best[0]
    basis = (
        f"that 30 to 100 % of what {best[1]}'s {best[0] / now.value:.1f} times higher measured peak allows is reached"
    )
    return 0.3 * ideal, ideal, basis
