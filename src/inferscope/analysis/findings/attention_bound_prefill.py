"""Prefill held back by the arithmetic of attention: very long prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

MOST = 0.5


def look(case: Case) -> Finding | None:
    """Fires where compute is the largest share of prefill, and attention is most of it."""
    attention, compute = case.part("attention arithmetic"), case.share("compute")
    if case.phase.name != "prefill" or case.held_by != "compute" or case.cost is None:
        return None
    if attention <= MOST * compute:
        return None
    group = sum(entry.flops for entry in case.cost.groups if entry.group.startswith("attention"))
    return case.finding(
        "prefill-attention-bound",
        "OPT",
        f"Prefill's time is attention: of {case.phase.tokens or 0:,} tokens, each looks at all before it, and that is "
        f"{attention / compute:.0%} of the arithmetic.",
        Evidence(metric="attention_compute_share", value=attention / compute, threshold=MOST, source="analytic"),
        Evidence(
            metric="attention_flops_share",
            value=group / case.cost.flops if case.cost.flops else 0.0,
            source="analytic",
            note="of the phase's FLOPs, causal",
        ),
        saving=case.saving(
            "that a prefix of 30 to 50 % of the prompt is cached, whose own pairs are 9 to 25 % of all",
            Change("attention arithmetic", 0.09, 0.25),
        ),
        action="Reuse the cache of a shared prefix, shorten the prompt, or take a model with a sliding window: pairs "
        "grow with the square of the prompt. Precondition: prompts share their beginning.",
        not_helping="Narrower weights, or a smaller vocabulary: the linear layers are the smaller part. Chunks: they "
        "spread the same pairs over several passes.",
        verify="run the same prompt with its prefix cached; TTFT falls.",
    )
