"""Attention that writes its scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05
_MOST = 0.5
"""Part of all traffic from which on slow kernels are mostly those that write and read scores."""
_SLOW = 0.25
_SCORES = {"attention", "attention scores", "mask"}


def look(case: Case) -> Finding | None:
    """Fires where the eager implementation's scores and masks cost a sizeable share of a phase.

    By their bytes at the memory roof, which is the least; or where they are most of the traffic and kernels are slow.
    """
    share, traffic = case.part("attention scores"), _traffic(case)
    slow = case.part("kernels") if traffic >= _MOST else 0.0
    if case.record.model.attention != "eager" or (share < _WORTH_SAYING and slow < _SLOW * case.ran_share):
        return None
    changes = [Change("attention scores", 0.5, 1.0)]
    basis = "that a fused kernel writes no scores"
    if slow >= _SLOW * case.ran_share:
        changes = [Change("kernels", 0.3 * traffic, traffic)]
        basis += ", and slow kernels lose 30 to 100 % of the scores' part of the traffic to them (assumed)"
    return case.finding(
        "attention-unfused",
        "OPT",
        f"Attention runs unfused (eager): scores and masks go through memory, {traffic:.0%} of the traffic of "
        f"{case.phase.name}.",
        Evidence(
            metric="attention_scores_share",
            value=share,
            threshold=_WORTH_SAYING,
            source="analytic",
            note="of the phase: their bytes at the memory roof, the least that they take",
        ),
        Evidence(metric="attention_scores_traffic_share", value=traffic, threshold=_MOST, source="analytic"),
        saving=case.saving(basis, *changes),
        action='Load the model with attn_implementation="sdpa" (or "flash_attention_2" where it is installed). '
        "Precondition: nobody asks for `output_attentions`; results differ in the last bits.",
        not_helping="More FLOP/s: the scores are traffic.",
        verify="run the same request with sdpa; prefill's wall falls, with the square of the prompt.",
    )


def _traffic(case: Case) -> float:
    """Part of the bytes that operators move which scores and masks are (0..1)."""
    if case.cost is None or not case.cost.bytes.executed:
        return 0.0
    scores = sum(extra.bytes for extra in case.cost.extras if extra.group in _SCORES)
    return min(1.0, scores / case.cost.bytes.executed)
