"""Beam search: every beam is a sequence of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_ACTING = 0.05


def look(whole: Whole) -> Finding | None:
    """Fires where beams multiply the sequences of a pass; only worth knowing where that costs little."""
    beams, decode = whole.record.options.num_beams or 1, whole.case("decode")
    if beams <= 1 or decode is None:
        return None
    needless = 1 - 1 / beams
    per_sequence = ("kv", "activations", "linear arithmetic", "attention arithmetic", "cache growth")
    changes = (
        *(Change(term, 0.5 * needless, needless) for term in per_sequence),
        Change("kernels", 0.0, needless),
        Change("select", 0.3, 0.9),
    )
    every = {"decode": changes}
    if _prompt_is_multiplied(whole, beams):
        every["prefill"] = tuple(one for one in changes if one.term not in {"select", "cache growth"})
    saving = whole.saving(
        "that what each sequence costs by itself goes with its beam, and 30 to 90 % of the search", every
    )
    worth = saving.saves is not None and saving.saves.request_share >= _WORTH_ACTING
    return whole.finding(
        "beams-multiply-work",
        "OPT" if worth else "INFO",
        f"{beams} beams per sequence: each pass computes and caches {beams} times the sequences that were asked for.",
        Evidence(metric="beams", value=float(beams), threshold=1.0, source="measured"),
        Evidence(metric="select_share", value=decode.part("select"), source="measured", note="the search itself"),
        saving=saving,
        action="Take fewer beams, or sample. Precondition: quality of the task holds; outputs will differ.",
        not_helping="A cache of another kind: its size and traffic grow with the beams either way.",
        verify="run the same request with fewer beams; decode's wall and KV bytes fall.",
    )


def _prompt_is_multiplied(whole: Whole, beams: int) -> bool:
    """Whether prefill read each prompt once for each beam, as transformers does."""
    record, prefill = whole.record, whole.case("prefill")
    if prefill is None or prefill.phase.tokens is None or record.input_tokens is None:
        return False
    return prefill.phase.tokens >= beams * (record.input_tokens + (record.padding_tokens or 0))
