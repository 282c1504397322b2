"""torch's allocator had to give its pool back: device memory is nearly full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(whole: Whole) -> Finding | None:
    """Fires where the allocator retried, or ran out, during the request."""
    retries, ooms = whole.surroundings.allocator_retries, whole.surroundings.allocator_ooms
    if not retries and not ooms:
        return None
    lost = f" {ooms} times that did not help, and what was asked for was refused." if ooms else ""
    return whole.finding(
        "allocator-retries",
        "WARN",
        f"torch's allocator ran out {retries or 0} times during the request, gave its pool back to the driver and "
        f"asked again: each time the device is waited for.{lost}",
        Evidence(
            metric="allocator_retries",
            value=float(retries or 0),
            threshold=0.0,
            source="measured",
            note="of the whole process, since the result before this one",
        ),
        action="Leave memory free: a smaller batch or context, a static cache, narrower weights; "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True against fragments.",
        not_helping="torch.cuda.empty_cache() per request: it is the same waiting, more often.",
        verify="num_alloc_retries stays, and the slowest passes get faster.",
    )
