"""Findings: falsifiable statements, ranked by what acting on them would save.

Each rule is a module with one function: `look(case) -> Finding | None` for a phase, `look(whole) -> Finding | None` for
a request. A new one is added to `PHASE_RULES` or `REQUEST_RULES`, and gets its section in docs/reference/findings.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inferscope.analysis.findings import (
    allocator,
    attention_bound_prefill,
    beams,
    cache_growth,
    cache_resident,
    compilation,
    compute_bound_prefill,
    copies,
    cpu_contention,
    eager_attention,
    faster_dtype,
    gc_pauses,
    idle_server,
    kernel_inefficient,
    kv_bound_decode,
    memory_account,
    neighbour_requests,
    no_cache,
    odd_shapes,
    of_the_gpu,
    offload,
    overhead_bound,
    padding,
    prefill_below_ridge,
    python_between_passes,
    repeated_heads,
    speculation,
    sync_per_token,
    tail_passes,
    thread_oversubscription,
    weight_bound_decode,
)
from inferscope.analysis.findings.case import Surroundings, Whole, case_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.verdict import Diagnosis, Finding
    from inferscope.records import GenerationRecord, PhaseRecord

__all__ = ["CODES", "PHASE_RULES", "REQUEST_RULES", "Surroundings", "find"]

PHASE_RULES = {
    "cpu-contention": cpu_contention.look,
    "neighbour-requests": neighbour_requests.look,
    "recompute-without-cache": no_cache.look,
    "decode-weight-bound": weight_bound_decode.look,
    "decode-kv-bound": kv_bound_decode.look,
    "prefill-compute-bound": compute_bound_prefill.look,
    "prefill-attention-bound": attention_bound_prefill.look,
    "prefill-below-ridge": prefill_below_ridge.look,
    "overhead-bound-passes": overhead_bound.look,
    "python-between-passes": python_between_passes.look,
    "gc-pauses": gc_pauses.look,
    "kv-cache-concatenated": cache_growth.look,
    "attention-unfused": eager_attention.look,
    "kv-heads-repeated": repeated_heads.look,
    "copies-in-forward": copies.look,
    "kernel-inefficient": kernel_inefficient.look,
    "matrix-shapes-odd": odd_shapes.look,
    "tail-passes": tail_passes.look,
    "cache-resident": cache_resident.look,
    "sync-per-token": sync_per_token.look,
}
REQUEST_RULES = {
    "weights-offloaded": offload.look,
    "thread-oversubscription": thread_oversubscription.look,
    "compilation-in-request": compilation.look,
    "speculation-not-paying": speculation.look,
    "padding-waste": padding.look,
    "beams-multiply-work": beams.look,
    "faster-dtype-unused": faster_dtype.look,
    "allocator-retries": allocator.look,
    "memory-nearly-full": memory_account.look,
    "server-underloaded": idle_server.look,
}
CODES = (*PHASE_RULES, *REQUEST_RULES)
"""Every code that a request's finding can have, beside those of a GPU's window (`analysis.advice.CODES`)."""

_UNNAMED = ("kernel-inefficient", "overhead-bound-passes")
"""Say where the time is and not why: a finding that names a cause of the same time comes before them."""
_NO_CAUSES = (*_UNNAMED, "tail-passes")
"""Name none of what every pass takes."""
_EXPLAINS = 0.1
"""Part of what the unnamed one would save from which on a named cause explains enough of it to come first."""
_EXPLAINS_MOST = 0.6
"""The same, from which on the unnamed one is only worth knowing: there is no second thing to do."""
_WORTH_ACTING = 0.02
"""What a finding must be able to save of the request to ask for something to be done."""
_RANK = {"WARN": 0, "OPT": 0, "INFO": 1, "OK": 2}


def find(
    record: GenerationRecord, diagnosis: Diagnosis, *, surroundings: Surroundings | None = None
) -> tuple[Finding, ...]:
    """All findings on a record: what can be gained first, by its share of the request, then the rest.

    A warning whose cost is not known comes first: it says that something is wrong, and often that the numbers of the
    others are not to be relied on. A finding that names the cause of slow kernels or of overhead comes before the one
    that only says that they are there; where it explains most of that, the latter is only worth knowing. So is what
    could save next to nothing.

    Args:
        record: What was measured.
        diagnosis: The verdict on it.
        surroundings: What is known beside the record; None for nothing.
    """
    known = surroundings or Surroundings()
    cases = tuple(
        case_of(record, phase, verdict, diagnosis.device, known)
        for phase in record.phases
        if (verdict := diagnosis.phase(phase.name)) is not None and _is_sound(phase)
    )
    whole = Whole(record=record, diagnosis=diagnosis, cases=cases, surroundings=known)
    found = [finding for case in cases for look in PHASE_RULES.values() if (finding := look(case)) is not None]
    found += [finding for look in REQUEST_RULES.values() if (finding := look(whole)) is not None]
    found += of_the_gpu.look(whole)
    found = [_only_worth_knowing(one) if _saves_nothing(one) else one for one in found]
    return _named_first(_with_overlaps(sorted(found, key=_order)))


def _is_sound(phase: PhaseRecord) -> bool:
    """Whether a phase's times are fit to be divided by: also not so of NaN."""
    return phase.wall_ns > 0 and phase.ledger.total_ns == phase.wall_ns


def _saves_nothing(finding: Finding) -> bool:
    return finding.severity == "OPT" and finding.saves is not None and finding.saves.high < _WORTH_ACTING


def _only_worth_knowing(finding: Finding) -> Finding:
    return replace(finding, severity="INFO")


def _order(finding: Finding) -> tuple[int, float]:
    if finding.severity == "WARN" and finding.saves is None:
        return -1, 0.0
    return _RANK[finding.severity], -(finding.saves.request_share if finding.saves is not None else 0.0)


def _with_overlaps(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each with the codes of those that address some of the same time."""
    every = tuple(found)
    return tuple(
        replace(
            one,
            overlaps=tuple(
                dict.fromkeys(other.code for other in every if other is not one and _address_the_same(one, other))
            ),
        )
        for one in every
    )


def _named_first(found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    explained = [
        _only_worth_knowing(one)
        if one.code in _UNNAMED and any(_explains(cause, one, _EXPLAINS_MOST) for cause in found)
        else one
        for one in found
    ]
    ordered = sorted(explained, key=_order)
    for unnamed in [one for one in ordered if one.code in _UNNAMED and _RANK[one.severity] == 0]:
        at = ordered.index(unnamed)
        causes = [one for one in ordered[at + 1 :] if _explains(one, unnamed, _EXPLAINS)]
        for cause in reversed(causes):
            ordered.remove(cause)
            ordered.insert(at, cause)
    return tuple(ordered)


def _explains(cause: Finding, unnamed: Finding, least: float) -> bool:
    """Whether a cause could save at least such a part of what the unnamed finding could, in the same time."""
    if cause.code in _NO_CAUSES or cause.saves is None or unnamed.saves is None or _RANK[cause.severity] > 0:
        return False
    return _address_the_same(cause, unnamed) and cause.saves.high >= least * unnamed.saves.high


def _address_the_same(one: Finding, other: Finding) -> bool:
    return one.saves is not None and other.saves is not None and bool({*one.touches} & {*other.touches})
