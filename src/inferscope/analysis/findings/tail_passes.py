"""A few passes that take much longer than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.10
_TIMES = 2.0
_MINIMUM_PASSES = 8
_NAMED_ELSEWHERE = frozenset({"gc", "offcpu", "shared"})


def look(case: Case) -> Finding | None:
    """Fires where the slowest passes cost a sizeable share beyond what the typical pass takes, and says why."""
    phase = case.phase
    median = phase.pass_ns.p50
    # A cycle holds what lies between forwards, too.
    typical = median + (phase.wall_ns - phase.ledger.issue_ns) / phase.passes if median and phase.passes else 0.0
    slow = [worst for worst in phase.worst if typical and worst.cycle_ns > _TIMES * typical and worst.excess_ns > 0]
    share = sum(worst.excess_ns for worst in slow) / phase.wall_ns if phase.wall_ns > 0 else 0.0
    if phase.passes < _MINIMUM_PASSES or share < _WORTH_SAYING:
        return None
    by_cause: dict[str, int] = {}
    for worst in slow:
        by_cause[worst.cause] = by_cause.get(worst.cause, 0) + worst.excess_ns
    cause = max(by_cause, key=lambda name: by_cause[name])
    # CPU time is read for several passes at once: where the thread was away for as long, it may have been then.
    away = case.on_cpu and (phase.ledger.offcpu_ns or 0) >= sum(by_cause.values())
    return case.finding(
        "tail-passes",
        "INFO" if away or cause in _NAMED_ELSEWHERE else "OPT",
        f"{len(slow)} of {phase.passes} {phase.name} passes take over {_TIMES:.0f} times the typical one and cost "
        f"{share:.0%} of the phase: mostly {cause}.",
        Evidence(
            metric="tail_share", value=share, threshold=_WORTH_SAYING, source="measured", note="beyond the typical pass"
        ),
        Evidence(
            metric="slowest_pass_ns",
            value=float(slow[0].cycle_ns),
            threshold=typical,
            source="measured",
            note=f"pass {slow[0].index}, {slow[0].start_ns / 1e6:,.1f} ms into the request",
        ),
        saving=case.saving("that 30 to 100 % of the excess goes with its cause (assumed)", Change("tail", 0.3, 1.0)),
        action="Look at `record.phase(...).worst`: each has its moment and its cause. Passes slow inside `issue` are "
        "compilation, a first allocation or page faults: warm up with the shapes that will come.",
        not_helping="Anything that makes the typical pass faster: the tail stays.",
        verify="p99 and max of the passes fall, p50 stays.",
    )
