"""Kernels that stay below their roof, though neither dispatch nor Python explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]

_WORTH_SAYING = 0.25


def look(case: Case) -> Finding | None:
    """Fires where time below the roofs, not explained by operator overhead, is a sizeable share."""
    share = case.share("inefficient")
    if case.verdict.cost is None or share < _WORTH_SAYING:
        return None
    gemv = [row for row in case.verdict.evidence if row.metric == "gemv_bytes_per_s"]
    return Finding(
        code="kernel-inefficient",
        severity="OPT",
        phase=case.phase.name,
        claim=f"{100 * share:.0f} % of {case.phase.name} is neither work at the roof nor overhead: its kernels run "
        f"below what this device gives ({_reached(case)}).",
        evidence=(
            Evidence(metric="inefficient_share", value=share, threshold=_WORTH_SAYING, source="measured"),
            *(row for row in case.verdict.evidence if row.metric in {"roof_per_pass_ns", "dispatch_per_pass_ns"}),
            *gemv,
        ),
        saves=case.saves(0.2 * share, 0.8 * share, "that other kernels recover 20 to 80 % of it (assumed)"),
        action="Try other kernels for the same work: another dtype, torch.compile, a thread count equal to the "
        "physical cores, larger batches (matrix times vector is the slowest kernel a CPU has).",
        not_helping="Buying bandwidth or FLOP/s: what is there is not used.",
        verify="Change one of these and compare the share of roof: it should rise.",
    )


def _reached(case: Case) -> str:
    share = case.verdict.roof_share
    return "share of roof unknown" if share is None else f"{100 * share:.0f} % of the roof inside forwards"
