"""Decode held back by reading the weights, once per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]

_WIDE = {"float32": (0.29, 0.5, "that bfloat16 halves the weight bytes and keeps 70 to 100 % of the bandwidth")}
# Measured in practice on a 7B model: int8 weights 1.48 times, int4 1.88 times as fast as bf16 (gpt-fast, A100).
_NARROW = (
    0.32,
    0.47,
    "that int8 to int4 weights run 1.48 to 1.88 times as fast as 16 bits, as published",
)


def look(case: Case) -> Finding | None:
    """Fires where memory is the largest share of decode and weights are most of its bytes."""
    cost = case.verdict.cost
    if case.phase.name != "decode" or case.verdict.bound != "memory" or cost is None:
        return None
    weight_share = cost.weight_bytes / cost.bytes.model
    if weight_share <= 0.5:  # noqa: PLR2004 - most of the bytes
        return None
    low, high, basis = _WIDE.get(case.record.model.dtype or "", _NARROW)
    memory = case.share("memory")
    return Finding(
        code="decode-weight-bound",
        severity="OPT",
        phase="decode",
        claim=f"Decode waits for the weights: each pass reads {cost.weight_bytes / case.phase.passes / 1e6:,.0f} MB "
        "of them to make one token per sequence.",
        evidence=(
            Evidence(metric="memory_share", value=memory, source="measured", note="of the phase's wall"),
            Evidence(metric="weight_bytes_share", value=weight_share, threshold=0.5, source="analytic"),
            *(row for row in case.verdict.evidence if row.metric == "achieved_bytes_per_s"),
        ),
        saves=case.saves(low * memory, high * memory, f"{basis}; only the memory share shrinks"),
        action="Store the weights narrower (bfloat16 where they are float32, else int8 or int4 weight-only), or decode "
        "more sequences per pass: the weights are read once for all. Precondition: the device has fast kernels for "
        "the dtype; check quality, outputs will differ.",
        not_helping="A device with more FLOP/s at the same bandwidth; fewer FLOPs. Arithmetic waits for memory here.",
        verify="Run the same request with the narrower dtype and compare TPOT: it should fall by the share above.",
    )
