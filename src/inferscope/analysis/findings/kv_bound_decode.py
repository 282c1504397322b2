"""Decode held back by reading the cache: long contexts, or many sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

MOST = 0.5
"""Part of the bytes from which on the cache is most of them."""
_NARROW = (0.25, 0.5)


def look(case: Case) -> Finding | None:
    """Fires where memory is the largest share of decode and keys and values are most of its bytes."""
    cost = case.cost
    if case.phase.name != "decode" or case.held_by not in {"memory", "cache"} or cost is None:
        return None
    kv_bytes = cost.kv_read_bytes + cost.kv_write_bytes
    if kv_bytes <= MOST * cost.bytes.model:
        return None
    return case.finding(
        "decode-kv-bound",
        "OPT",
        f"Decode waits for the cache: each pass reads {cost.kv_read_bytes / case.phase.passes / 1e6:,.0f} MB of keys "
        "and values, more than of weights.",
        Evidence(metric="memory_share", value=case.share(case.held_by), source="measured", note="of the phase"),
        Evidence(metric="kv_bytes_share", value=kv_bytes / cost.bytes.model, threshold=MOST, source="analytic"),
        *case.evidence("achieved_bytes_per_s"),
        saving=case.saving(
            "that half the bytes per cached number save 25 to 50 % of reading it", Change("kv", *_NARROW)
        ),
        action="Keep less: a cache in a narrower dtype, a shorter context, a sliding window, a model with fewer KV "
        "heads. Precondition: check quality at long contexts.",
        not_helping="More sequences per pass: weights are shared among them, the cache is not. Narrower weights: they "
        "are the smaller part. Paging the cache: it saves memory, not traffic.",
        verify="run the same request with the narrower cache, or half the context; decode's wall falls.",
    )
