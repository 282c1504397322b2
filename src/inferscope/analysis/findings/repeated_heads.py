"""Keys and values written out once for every query head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05


def look(case: Case) -> Finding | None:
    """Fires where repeating KV heads costs a sizeable share of a phase."""
    share = case.part("repeated heads")
    if share < _WORTH_SAYING:
        return None
    return case.finding(
        "kv-heads-repeated",
        "OPT",
        f"Keys and values are written out for every query head before attention: up to {share:.0%} of "
        f"{case.phase.name}.",
        Evidence(
            metric="repeated_heads_share",
            value=share,
            threshold=_WORTH_SAYING,
            source="analytic",
            note="their bytes at the memory roof",
        ),
        saving=case.saving("that attention reads each KV head where it is", Change("repeated heads", 0.5, 1.0)),
        action="Use an attention that knows grouped heads: sdpa without an explicit mask (unpadded batches), or "
        "flash_attention_2. Precondition: the kernel takes this head size.",
        not_helping="A model with fewer KV heads: what is read grows with the query heads here.",
        verify="run the same request unpadded, or with the other attention; decode's wall falls.",
    )
