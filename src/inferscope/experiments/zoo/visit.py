"""Looks at an exhibit, and holds what inferscope says of it against the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.doubts import AWAY

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Finding, Result
    from inferscope.experiments.zoo.exhibit import Exhibit, Expected, Truth
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["Visit", "faults_of", "look", "was_disturbed"]

_BY_LOAD = "cpu-contention"
"""What other work on the machine may truthfully add to any exhibit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What came of one exhibit.

    Attributes:
        exhibit: That was looked at.
        truth: What had to be said on this device.
        result: What was.
        said: The findings above INFO, those of the machine's other load left out; all findings where none is.
        faults: What is wrong with it, in words; none where inferscope was right.
        disturbed: Whether the record shows that other work kept the thread from running.
        took_s: How long the visit was.
    """

    exhibit: Exhibit
    truth: Truth
    result: Result
    said: tuple[Finding, ...]
    faults: tuple[str, ...]
    disturbed: bool
    took_s: float

    @property
    def first(self) -> Finding | None:
        """What was said first; None where nothing was."""
        return self.said[0] if self.said else None


def look(exhibit: Exhibit, device: DeviceSpec) -> Visit:
    """Build an exhibit, run it, and judge what was found.

    Args:
        exhibit: Which one.
        device: This machine's ceilings.
    """
    started = time.perf_counter()
    truth, result = exhibit.truth(device), exhibit.run(device)
    return Visit(
        exhibit=exhibit,
        truth=truth,
        result=result,
        said=_said(result, truth),
        faults=faults_of(result, truth),
        disturbed=not exhibit.twin and was_disturbed(result.record),
        took_s=time.perf_counter() - started,
    )


def faults_of(result: Result, truth: Truth) -> tuple[str, ...]:
    """What is wrong with the findings, in words.

    Args:
        result: With the findings.
        truth: What has to be said first, and what may be said beside it.
    """
    said = _said(result, truth)
    codes = {one.code for one in truth.expected}
    if not said or said[0].code not in codes:
        first = said[0].code if said else "nothing"
        return (f"{' or '.join(sorted(codes))} is expected first, and {first} is said",)
    expected = next(one for one in truth.expected if one.code == said[0].code)
    faults = [*_unproven(said[0], expected)]
    allowed = codes | set(truth.beside)
    wrong = dict.fromkeys(one.code for one in said if one.severity in _ABOVE_INFO and one.code not in allowed)
    faults += [f"{code} is said as well, and is not true" for code in wrong]
    return tuple(faults)


def was_disturbed(record: GenerationRecord) -> bool:
    """Whether the thread was off the CPU for a sizeable part of some phase."""
    return any(_away(record, phase.name) for phase in record.phases)


_ABOVE_INFO = {"OPT", "WARN"}


def _said(result: Result, truth: Truth) -> tuple[Finding, ...]:
    """What counts: above INFO first; without what other load adds, where the record's own facts show that load."""
    planted = {one.code for one in truth.expected}
    counted = [
        one
        for one in result.findings
        if one.code in planted or one.code != _BY_LOAD or not _away(result.record, one.phase)
    ]
    above = tuple(one for one in counted if one.severity in _ABOVE_INFO)
    return above or tuple(one for one in counted if one.code in planted) or tuple(counted)


def _away(record: GenerationRecord, name: str | None) -> bool:
    phase = record.phase(name) if name is not None else None
    return phase is not None and phase.wall_ns > 0 and (phase.ledger.offcpu_ns or 0) > AWAY * phase.wall_ns


def _unproven(finding: Finding, expected: Expected) -> tuple[str, ...]:
    """What the finding lacks of the right reason."""
    rows = {row.metric: row.value for row in finding.evidence}
    faults = [] if finding.phase == expected.phase else [f"it speaks of {finding.phase}, not of {expected.phase}"]
    for proof in expected.proofs:
        value = rows.get(proof.metric)
        if value is None:
            faults.append(f"{proof.metric} is not in its evidence")
        elif value < proof.least or (proof.most is not None and value > proof.most):
            limit = f" to {proof.most:g}" if proof.most is not None else " or more"
            faults.append(f"{proof.metric} is {value:g}, and {proof.least:g}{limit} is expected")
    return (*faults, *(f'"{words}" is not in its claim' for words in expected.says if words not in finding.claim))
