"""Passes held back by the fixed cost of their operators: Python and dispatch, not work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]

_WORTH_SAYING = 0.25


def look(case: Case) -> Finding | None:
    """Fires where overhead is the largest share and most of it lies inside the forwards."""
    cost, phase = case.verdict.cost, case.phase
    if case.verdict.bound != "overhead" or cost is None or phase.wall_ns <= 0:
        return None
    inside = _of_operators(case)
    if inside < _WORTH_SAYING:
        return None
    return Finding(
        code="overhead-bound-passes",
        severity="OPT",
        phase=phase.name,
        claim=f"Each {phase.name} pass runs {cost.calls // phase.passes:,} operators on little data: calling them "
        f"takes up to {inside:.0%} of its time.",
        evidence=(
            Evidence(metric="overhead_share", value=case.share("overhead"), source="measured", note="of the phase"),
            Evidence(metric="operator_overhead_share", value=inside, threshold=_WORTH_SAYING, source="measured"),
            *(row for row in case.verdict.evidence if row.metric in {"dispatch_per_pass_ns", "roof_per_pass_ns"}),
        ),
        saves=case.saves(
            0.3 * inside,
            0.8 * inside,
            "that compiling removes 30 to 80 % of it (assumed)",
        ),
        action="Run fewer, larger operators: torch.compile with a static cache "
        '(generate(cache_implementation="static")), or more sequences per pass. Precondition: shapes repeat.',
        not_helping="A faster device, narrower weights, fewer FLOPs: the device waits for Python already.",
        verify="Run the same request compiled, after its warm-up, and compare the pass p50: it should fall by the "
        "share above while FLOPs stay equal.",
    )


def _of_operators(case: Case) -> float:
    """Share of the phase that calling operators inside forwards explains (0..1).

    Time off the CPU is no operator's, and no more is theirs than they cost at most by their measured fixed cost.
    """
    phase, wall_ns = case.phase, case.phase.wall_ns
    between_ns = wall_ns - phase.ledger.issue_ns
    inside = case.share("overhead") - (between_ns + (phase.ledger.offcpu_ns or 0)) / wall_ns
    known = next((row for row in case.verdict.evidence if row.metric == "dispatch_per_pass_ns"), None)
    if known is None:  # on a device the lag has told that it waits for the host
        return inside
    return min(inside, (known.high if known.high is not None else known.value) * phase.passes / wall_ns)
