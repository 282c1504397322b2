"""Findings: falsifiable statements, ranked by what acting on them would save.

Each rule is a module with one function `look(case) -> Finding | None`; a new one is added to `RULES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.findings import (
    compute_bound_prefill,
    cpu_contention,
    kernel_inefficient,
    overhead_bound,
    python_between_passes,
    sync_per_token,
    weight_bound_decode,
)
from inferscope.analysis.findings.case import Case

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Diagnosis, Finding
    from inferscope.records import GenerationRecord

__all__ = ["RULES", "find"]

RULES = (
    cpu_contention.look,
    weight_bound_decode.look,
    compute_bound_prefill.look,
    overhead_bound.look,
    python_between_passes.look,
    kernel_inefficient.look,
    sync_per_token.look,
)

_RANK = {"WARN": 0, "OPT": 0, "INFO": 1, "OK": 2}


def find(record: GenerationRecord, diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """All findings on a record: what can be gained first, by its share of the request, then the rest.

    Args:
        record: What was measured.
        diagnosis: The verdict on it.
    """
    found = [
        finding
        for phase in record.phases
        if (verdict := diagnosis.phase(phase.name)) is not None
        for look in RULES
        if (finding := look(Case(record=record, phase=phase, verdict=verdict, device=diagnosis.device))) is not None
    ]
    return tuple(sorted(found, key=_order))


def _order(finding: Finding) -> tuple[int, float]:
    return _RANK[finding.severity], -(finding.saves.request_share if finding.saves is not None else 0.0)
