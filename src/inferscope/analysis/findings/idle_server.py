"""A server with next to nothing to do between requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_UNDERLOADED = 0.50


def look(whole: Whole) -> Finding | None:
    """Fires where requests ran for less than half of the last minute."""
    load = whole.surroundings.workload
    if load is None or not load.requests or load.busy_share >= _UNDERLOADED:
        return None
    return whole.finding(
        "server-underloaded",
        "INFO",
        f"Requests ran for {load.busy_share:.0%} of the last {load.horizon_s or 0:.0f} s: between them the device had "
        "nothing to do.",
        Evidence(metric="requests_busy_share", value=load.busy_share, threshold=_UNDERLOADED, source="measured"),
        action="Nothing in the model. If work is waiting, look before it: queueing, tokenising, the network; else "
        "fewer devices would do.",
        not_helping="Any optimisation of the model: it makes the device wait longer.",
        verify="under load the busy share rises, and tokens per second with it.",
    )
