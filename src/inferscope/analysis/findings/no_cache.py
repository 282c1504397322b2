"""Tokens computed again in every pass, because no cache is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where decode passes read several tokens behind an empty cache."""
    phase = case.phase
    again = sum(work.passes for work in phase.work if work.regime == "prefill")
    if phase.name != "decode" or not again or not phase.tokens or phase.passes <= 0:
        return None
    sequences = max(1, (case.record.batch_size or 1) * (case.record.options.num_beams or 1))
    per_pass = phase.tokens / phase.passes / sequences
    if per_pass <= 1:
        return None
    useless = 1 - 1 / per_pass
    return case.finding(
        "recompute-without-cache",
        "WARN",
        f"Decode keeps no cache: each pass computes {per_pass:,.0f} tokens per sequence to make one.",
        Evidence(metric="tokens_per_pass", value=per_pass, threshold=1.0, source="measured", note="of each sequence"),
        Evidence(metric="passes_without_cache", value=float(again), source="measured"),
        saving=case.saving(
            "that the arithmetic of tokens seen before goes; reading the weights stays",
            *(Change(term, 0.5 * useless, useless) for term in ("linear arithmetic", "attention arithmetic")),
            *(Change(term, 0.0, useless) for term in ("kernels", "activations")),
        ),
        action="Let generate keep its cache: use_cache=True, also in the model's generation_config, and no gradient "
        "checkpointing. Precondition: memory for the cache.",
        not_helping="A faster device: the work is not needed.",
        verify="run the same request with a cache; decode's FLOPs and wall fall, the tokens are equal.",
    )
