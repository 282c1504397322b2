"""What the verdicts and findings of two sets say beside each other: what flipped, and which prediction came true."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.analysis.change import Change
    from inferscope.analysis.verdict import Bound, Diagnosis, Finding, Savings
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["Judged", "Prediction", "Score", "VerdictChange", "judge", "scored", "verdict_changes"]

Score = Literal["hit", "miss", "cannot tell"]

_AGREED = 0.8
"""Share of the judged requests that have to agree on a bound before it is the set's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """What holds a phase back, before and after.

    Attributes:
        phase: Its name.
        baseline: The most frequent bound among the judged requests of the baseline.
        candidate: Among those of the candidate.
        baseline_share: Part of the judged requests that have it (0..1).
        candidate_share: Likewise.
        flipped: Whether it is another one; None where that cannot be told.
        why: Why it cannot; "" otherwise.
    """

    phase: str
    baseline: Bound
    candidate: Bound
    baseline_share: float
    candidate_share: float
    flipped: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A finding of the baseline that the candidate no longer has: what it promised, and what came.

    Attributes:
        code: The finding's.
        phase: The phase it speaks of; None for the whole request.
        predicted_low: Share of that phase's (or the request's) wall that acting should save, lower end (0..1).
        predicted_high: Upper end.
        achieved: Share that was saved: negative where it got slower; None where that is not known.
        achieved_low: Lower end of its interval; None where there is none.
        achieved_high: Upper end.
        score: "hit" where what came lies within what was promised, "miss" where it lies outside, else "cannot tell".
        why: Why it cannot tell; "" otherwise.
        together_with: Findings on the same phase that went at the same time: what came is theirs as well.
    """

    code: str
    phase: str | None
    predicted_low: float
    predicted_high: float
    achieved: float | None
    achieved_low: float | None
    achieved_high: float | None
    score: Score
    why: str = ""
    together_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The opinions on some requests of a set.

    Attributes:
        diagnoses: One per request.
        findings: One tuple per request.
    """

    diagnoses: tuple[Diagnosis, ...]
    findings: tuple[tuple[Finding, ...], ...]


def judge(records: Iterable[GenerationRecord], ceilings: Callable[[GenerationRecord], DeviceSpec | None]) -> Judged:
    """Verdicts and findings.

    Args:
        records: Few: each takes about a millisecond.
        ceilings: What is known of the device that a record was made on.
    """
    pairs = [(record, diagnose(record, device=ceilings(record))) for record in records]
    return Judged(
        diagnoses=tuple(diagnosis for _, diagnosis in pairs),
        findings=tuple(find(record, diagnosis) for record, diagnosis in pairs),
    )


def verdict_changes(baseline: Judged, candidate: Judged) -> tuple[VerdictChange, ...]:
    """The verdict on each phase that both sets have, in the baseline's order."""
    first, second = _bounds(baseline), _bounds(candidate)
    return tuple(_verdict_change(name, first[name], second[name]) for name in first if name in second)


def scored(baseline: Judged, candidate: Judged, changes: dict[str, Change]) -> tuple[Prediction, ...]:
    """Predictions of the baseline that were put to the test: of findings that the candidate no longer has.

    Args:
        baseline: Its opinions.
        candidate: Its opinions.
        changes: By metric; "wall" and "PHASE.wall" are looked at.
    """
    if not candidate.findings:
        return ()
    promised = _usual(baseline)
    left = {(finding.code, finding.phase) for finding in _usual(candidate).values()}
    gone = {key: finding for key, finding in promised.items() if key not in left}
    return tuple(
        _score(key, _of_phase(baseline, key), changes, gone)
        for key, finding in gone.items()
        if finding.saves is not None
    )


def _bounds(judged: Judged) -> dict[str, list[tuple[Bound, bool]]]:
    """Bound, and whether that is certain, by phase."""
    bounds: dict[str, list[tuple[Bound, bool]]] = {}
    for diagnosis in judged.diagnoses:
        for phase in diagnosis.phases:
            bounds.setdefault(phase.name, []).append((phase.bound, phase.confidence == "high"))
    return bounds


def _verdict_change(name: str, first: list[tuple[Bound, bool]], second: list[tuple[Bound, bool]]) -> VerdictChange:
    (one, one_share, one_sure), (other, other_share, other_sure) = _most(first), _most(second)
    why = ""
    if "unknown" in {one, other}:
        why = "no verdict: ceilings or device time are not known"
    elif min(one_share, other_share) < _AGREED:
        why = "the requests of one set disagree among themselves"
    elif one != other and not (one_sure and other_sure):
        why = "it looks like a flip, but one of the verdicts has low confidence"
    return VerdictChange(
        phase=name,
        baseline=one,
        candidate=other,
        baseline_share=one_share,
        candidate_share=other_share,
        flipped=None if why else one != other,
        why=why,
    )


def _most(bounds: list[tuple[Bound, bool]]) -> tuple[Bound, float, bool]:
    bound, times = Counter(bound for bound, _ in bounds).most_common(1)[0]
    sure = sum(certain for each, certain in bounds if each == bound)
    return bound, times / len(bounds), 2 * sure > times


def _usual(judged: Judged) -> dict[tuple[str, str | None], Finding]:
    """The findings that at least half of the requests have, one of each."""
    times: Counter[tuple[str, str | None]] = Counter()
    one: dict[tuple[str, str | None], Finding] = {}
    for findings in judged.findings:
        for finding in findings:
            key = (finding.code, finding.phase)
            times[key] += 1
            one.setdefault(key, finding)
    return {key: finding for key, finding in one.items() if 2 * times[key] >= len(judged.findings)}


def _of_phase(judged: Judged, key: tuple[str, str | None]) -> tuple[float, float]:
    """What the findings of a kind promise of their phase: medians of the lower and upper ends."""
    ends: defaultdict[str, list[float]] = defaultdict(list)
    for finding in (finding for findings in judged.findings for finding in findings):
        if (finding.code, finding.phase) == key and finding.saves is not None:
            scale = _scale(finding.saves) if finding.phase is not None else 1.0
            ends["low"].append(finding.saves.low * scale)
            ends["high"].append(finding.saves.high * scale)
    return median(ends["low"]), median(ends["high"])


def _scale(saves: Savings) -> float:
    """From shares of the request's wall to shares of the phase's."""
    return saves.phase_share / saves.request_share if saves.request_share else 1.0


def _score(
    key: tuple[str, str | None],
    promised: tuple[float, float],
    changes: dict[str, Change],
    gone: dict[tuple[str, str | None], Finding],
) -> Prediction:
    code, phase = key
    low, high = promised
    change = changes.get("wall" if phase is None else f"{phase}.wall")
    ratio = None if change is None else change.ratio
    least = None if ratio is None or ratio.high is None else 1 - ratio.high
    most = None if ratio is None or ratio.low is None else 1 - ratio.low
    score: Score = "cannot tell"
    why = ""
    if least is None or most is None:
        why = "no interval of what came" if change is None or not change.why else change.why
    elif low <= least and most <= high:
        score = "hit"
    elif most < low or high < least:
        score = "miss"
    else:
        why = "what came lies partly within what was promised: more requests would narrow it"
    return Prediction(
        code=code,
        phase=phase,
        predicted_low=low,
        predicted_high=high,
        achieved=None if ratio is None else 1 - ratio.value,
        achieved_low=least,
        achieved_high=most,
        score=score,
        why=why,
        together_with=tuple(other for other, where in gone if where == phase and other != code),
    )
