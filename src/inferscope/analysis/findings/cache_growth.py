"""The cache grows by concatenation: every token copies all keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05
_GROWING = {None, "dynamic", "dynamic_full", "DynamicCache"}


def look(case: Case) -> Finding | None:
    """Fires where a cache that grows by `torch.cat` costs a sizeable share of decode."""
    share = case.part("cache growth")
    if case.record.options.cache not in _GROWING:
        return None
    if share < _WORTH_SAYING:
        return None
    extra = next((entry.bytes for entry in case.cost.extras if entry.group == "kv-cache"), 0) if case.cost else 0
    measured = case.terms["cache growth"].measured
    return case.finding(
        "kv-cache-concatenated",
        "OPT",
        f"The cache is copied whole in each pass: {extra / max(case.phase.passes, 1) / 1e6:,.1f} MB per pass, "
        f"{share:.0%} of {case.phase.name}.",
        Evidence(
            metric="cache_growth_share",
            value=share,
            threshold=_WORTH_SAYING,
            source="measured" if measured else "analytic",
            note="recorded concatenations" if measured else "bytes at the memory roof",
        ),
        Evidence(
            metric="cache_growth_bytes",
            value=float(extra),
            source="analytic",
            note="beyond reading and writing it once",
        ),
        saving=case.saving("that a cache of fixed size copies only the new token", Change("cache growth", 0.5, 1.0)),
        action='Give the cache its size once: generate(cache_implementation="static"). Precondition: the longest '
        "sequence is known; attention then runs over that whole length.",
        not_helping="Narrower weights: the copies are of keys and values.",
        verify="run the same request with a static cache; decode's wall falls, more so at long contexts.",
    )
