"""Kernels fed by the last-level cache, faster than memory would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where the cache is the largest share: rates above the memory roof are no error then."""
    if case.held_by != "cache" or case.cost is None or case.phase.passes <= 0:
        return None
    touched = (case.cost.weight_bytes + case.cost.kv_read_bytes) / case.phase.passes
    size = case.device.cache_bytes if case.device is not None else None
    return case.finding(
        "cache-resident",
        "INFO",
        f"What a {case.phase.name} pass touches ({touched / 1e6:,.1f} MB) fits into the last-level cache: it runs at "
        "the cache's bandwidth, not at memory's.",
        Evidence(
            metric="working_set_bytes",
            value=touched,
            threshold=None if size is None else float(size),
            source="analytic",
        ),
        Evidence(metric="cache_share", value=case.share("cache"), source="measured", note="of the phase's wall"),
        action="Nothing. Do not carry these numbers over to a larger batch or context, which would not fit.",
        not_helping="More memory bandwidth: it is not what feeds this phase.",
        verify="with a larger batch or context the bound becomes memory.",
    )
