"""Other requests of the same process take the time of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.10


def look(case: Case) -> Finding | None:
    """Fires where other traced requests were at work for a sizeable share of a phase."""
    share = case.part("neighbours")
    if share < _WORTH_SAYING:
        return None
    others = case.record.contended_with
    first = f", most of it by request {others[0].request_id}" if others else ""
    return case.finding(
        "neighbour-requests",
        "OPT",
        f"For at least {share:.0%} of {case.phase.name} other requests had the device or the interpreter{first}.",
        Evidence(
            metric="contended_share", value=share, threshold=_WORTH_SAYING, source="measured", note="a lower bound"
        ),
        Evidence(metric="neighbours", value=float(len(others)), source="measured", note="at most eight are kept"),
        saving=case.saving(
            "that 50 to 100 % of it comes back to this request; the others wait instead (assumed)",
            Change("neighbours", 0.5, 1.0),
        ),
        action="Serve concurrent requests in one batch (continuous batching), or queue them: threads that generate "
        "beside "
        "each other share one interpreter and one device. Precondition for a queue: latency of the others may grow.",
        not_helping="Anything about this request's model or options: the time was somebody else's.",
        verify="run the same request alone; contended_ns is near 0.",
    )
