"""Passes held back by the fixed cost of their operators: Python, dispatch and launches, not work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.25


def look(case: Case) -> Finding | None:
    """Fires where overhead is the largest share and most of it lies inside the forwards."""
    cost, phase = case.cost, case.phase
    inside = min(case.part("dispatch"), case.own_share)
    if case.held_by != "overhead" or cost is None or phase.passes <= 0 or inside < _WORTH_SAYING * case.ran_share:
        return None
    what = "operators" if case.on_cpu else f"operators ({cost.launches // phase.passes:,} launches)"
    return case.finding(
        "overhead-bound-passes",
        "OPT",
        f"Each {phase.name} pass runs {cost.calls // phase.passes:,} {what} on little data: calling them takes up to "
        f"{inside:.0%} of its time.",
        Evidence(metric="overhead_share", value=case.share("overhead"), source="measured", note="of the phase"),
        Evidence(metric="operator_overhead_share", value=inside, threshold=_WORTH_SAYING, source="measured"),
        Evidence(metric="operators", value=cost.calls / phase.passes, source="analytic", note="called in each pass"),
        *case.evidence("dispatch_per_pass_ns", "roof_per_pass_ns", "recorded_python_share"),
        saving=case.saving("that compiling removes 30 to 80 % of it (assumed)", Change("dispatch", 0.3, 0.8)),
        action="Run fewer, larger operators: torch.compile with a static cache "
        '(generate(cache_implementation="static")), or more sequences per pass. Precondition: shapes repeat.',
        not_helping="A faster device, narrower weights, fewer FLOPs: the device waits for Python already. CUDA graphs "
        "make launches cheaper, not free.",
        verify=f"run the same request compiled, after its warm-up; {phase.name}'s pass p50 falls, FLOPs stay equal.",
    )
