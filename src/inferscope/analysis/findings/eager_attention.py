"""Attention that writes its scores to memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05


def look(case: Case) -> Finding | None:
    """Fires where the eager implementation's scores and masks cost a sizeable share of a phase."""
    share = case.part("attention scores")
    if case.record.model.attention != "eager" or share < _WORTH_SAYING:
        return None
    return case.finding(
        "attention-unfused",
        "OPT",
        f"Attention runs unfused (eager): scores and masks go through memory, up to {share:.0%} of {case.phase.name}.",
        Evidence(
            metric="attention_scores_share",
            value=share,
            threshold=_WORTH_SAYING,
            source="analytic",
            note="their bytes at the memory roof",
        ),
        saving=case.saving("that a fused kernel writes no scores", Change("attention scores", 0.5, 1.0)),
        action='Load the model with attn_implementation="sdpa" (or "flash_attention_2" where it is installed). '
        "Precondition: nobody asks for `output_attentions`; results differ in the last bits.",
        not_helping="More FLOP/s: the scores are traffic.",
        verify="run the same request with sdpa; prefill's wall falls, with the square of the prompt.",
    )
