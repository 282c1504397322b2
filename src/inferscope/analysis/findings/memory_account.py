"""A request that by its own account nearly fills the device's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.memory import account
from inferscope.analysis.verdict import Evidence
from inferscope.errors import CostUnavailableError

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.memory import MemoryAccount
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_NEARLY_FULL = 0.90


def look(whole: Whole) -> Finding | None:
    """Fires where weights, cache and intermediate results need nine tenths of the device's memory."""
    found = _account(whole)
    if found is None or found.peak_bytes is None or not found.device_bytes:
        return None
    share = found.peak_bytes / found.device_bytes
    if share < _NEARLY_FULL:
        return None
    largest = "" if found.largest_batch is None else f" By the same account {found.largest_batch} sequences fit."
    return whole.finding(
        "memory-nearly-full",
        "WARN",
        f"At its highest moment, in {found.peak_phase}, a request of this shape needs {share:.0%} of the device's "
        f"memory by the count of its operators; what an allocator rounds up comes on top.{largest}",
        Evidence(metric="memory_peak_share", value=share, threshold=_NEARLY_FULL, source="analytic"),
        Evidence(metric="kv_bytes", value=float(found.kv_bytes), source="analytic", note="cache at the request's end"),
        action="A smaller batch or a shorter context, narrower weights (bfloat16, int8), or a cache that does not grow "
        "by copying: cache_implementation='static'.",
        not_helping="torch.cuda.empty_cache(): what a request needs is alive, not pooled.",
        verify="output tokens stay, and at the largest request you expect nothing runs out of memory.",
    )


def _account(whole: Whole) -> MemoryAccount | None:
    record, device = whole.record, whole.diagnosis.device
    batch, tokens, terms = record.batch_size, record.input_tokens, record.model.cost
    if device is None or device.memory_bytes is None or terms is None or not batch or not tokens:
        return None
    prompt = -(-(tokens + (record.padding_tokens or 0)) // batch)
    encoded = terms.structure.encoder
    try:
        return account(
            record.model,
            batch_size=batch * (record.options.num_beams or 1),
            input_tokens=1 if encoded else prompt,
            output_tokens=record.output_len or 1,
            device=device,
            encoder_len=prompt if encoded else None,
        )
    except CostUnavailableError:
        return None
