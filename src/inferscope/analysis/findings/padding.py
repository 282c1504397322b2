"""Padding that is computed like any other token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.20


def look(whole: Whole) -> Finding | None:
    """Fires where a fifth of the prompt's positions or more is padding."""
    record = whole.record
    if not record.padding_tokens or record.input_tokens is None:
        return None
    share = record.padding_tokens / (record.padding_tokens + record.input_tokens)
    if share < _WORTH_SAYING:
        return None
    saving = whole.saving(
        "that prefill's work shrinks with its positions, and reading the cache by up to the same share",
        {
            "prefill": tuple(
                Change(term, 0.5 * share, share)
                for term in ("linear arithmetic", "attention arithmetic", "activations", "kernels", "attention scores")
            ),
            "decode": (Change("kv", 0.0, share), Change("cache growth", 0.0, share)),
        },
    )
    return whole.finding(
        "padding-waste",
        "OPT",
        f"{share:.0%} of the prompt's positions are padding: they are computed, cached and read like the others.",
        Evidence(metric="padding_share", value=share, threshold=_WORTH_SAYING, source="measured"),
        Evidence(metric="padding_tokens", value=float(record.padding_tokens), source="measured"),
        saving=saving,
        action="Batch prompts of like length together (sort by length), or serve them with continuous batching, which "
        "needs no padding. Precondition: several requests wait at once.",
        not_helping="A mask: it hides padding from the result, not from the arithmetic. A mask also keeps attention "
        "from its fastest path.",
        verify="run the same prompts in batches of like length; padding_tokens and prefill's wall fall.",
    )
