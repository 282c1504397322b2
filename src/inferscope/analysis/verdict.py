"""The shapes of an opinion: evidence, findings, the verdict on a phase, and the result that carries all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = [
    "BOUNDS",
    "Bound",
    "Confidence",
    "Diagnosis",
    "Evidence",
    "Finding",
    "PhaseDiagnosis",
    "Result",
    "Savings",
    "Severity",
]

Bound = Literal["compute", "memory", "cache", "inefficient", "overhead", "communication", "unknown"]
BOUNDS: tuple[Bound, ...] = (
    "compute",
    "memory",
    "cache",
    "inefficient",
    "overhead",
    "communication",
    "unknown",
)
Confidence = Literal["high", "low"]
Severity = Literal["OK", "INFO", "OPT", "WARN"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One number a verdict rests on.

    Attributes:
        metric: What it is, with its unit as suffix ("achieved_flops_per_s", "select_share").
        value: The number.
        source: How it was obtained.
        threshold: What it was held against, where there is such a number.
        low: Lower end of its interval, where it has one.
        high: Upper end.
        note: How to read it, in a few words.
    """

    metric: str
    value: float
    source: Literal["measured", "bound", "analytic", "datasheet"]
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What acting on a finding would save. Local estimates overlap: they are never added up.

    Attributes:
        phase_share: Of the phase's wall (0..1), best estimate.
        request_share: Of the request's wall (0..1).
        low: Lower end of `request_share`.
        high: Upper end of `request_share`.
        basis: What the estimate assumes.
    """

    phase_share: float
    request_share: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A falsifiable statement about a request and what follows from it.

    Attributes:
        code: Stable key, its section in docs/reference/findings.md.
        severity: "OK", "INFO", "OPT" (something to gain) or "WARN".
        phase: The phase it speaks of; None for the whole request.
        claim: One sentence.
        evidence: The numbers behind it.
        saves: What acting would save; None where that is not known.
        action: What to change in code, with its precondition.
        not_helping: What people try here in vain, and why.
        verify: How to check it, with the expected direction.
        touches: Which time it addresses, by phase ("decode/weights"), as `savings.pools_of` names it; empty where it
            saves nothing by itself.
        overlaps: Codes of findings, in the same phase or on the whole request, that address some of the same time:
            what they save is never added up.
    """

    code: str
    severity: Severity
    phase: str | None
    claim: str
    evidence: tuple[Evidence, ...]
    saves: Savings | None
    action: str
    not_helping: str
    verify: str
    touches: tuple[str, ...] = ()
    overlaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDiagnosis:
    """What holds a phase back.

    Attributes:
        name: The phase.
        bound: The class with the largest share, or "unknown" where the evidence does not decide.
        confidence: "low" where shares are close, evidence is missing or a ceiling was beaten.
        shares: Of the phase's wall by class, summing to 1; empty where nothing is known.
        cost: Operations and bytes, summed over the phase; None where the model has no counts.
        mfu: Achieved FLOP/s over the dense peak of the dtype (0..1); None where either is unknown.
        mbu: (Weight bytes + KV bytes) per second over copy bandwidth (0..1); None where either is unknown.
        achieved_flops_per_s: FLOPs over the time inside forwards.
        achieved_bytes_per_s: Model bytes over the time inside forwards.
        roof_share: Time the roofs demand over the time inside forwards (0..1).
        evidence: The numbers behind the verdict.
        reasons: Why the bound is unknown or the confidence low, in words.
    """

    name: str
    bound: Bound
    confidence: Confidence
    shares: dict[str, float]
    cost: PassCost | None
    mfu: float | None
    mbu: float | None
    achieved_flops_per_s: float | None
    achieved_bytes_per_s: float | None
    roof_share: float | None
    evidence: tuple[Evidence, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The opinion on one record, given one device.

    Attributes:
        device: The device whose ceilings were used; None where there were none.
        phases: One verdict per phase of the record, in its order.
    """

    device: DeviceSpec | None
    phases: tuple[PhaseDiagnosis, ...]

    def phase(self, name: str) -> PhaseDiagnosis | None:
        """The verdict on that phase, or None where the request had no such phase."""
        return next((phase for phase in self.phases if phase.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a sink receives: the facts, the opinion on them, and what follows.

    Attributes:
        record: What was measured.
        diagnosis: What holds each phase back.
        findings: Ranked by what they would save.
        parent_context: The caller's OpenTelemetry context at `generate`'s entry, opaque to everything but the
            span sink; None where there is none.
    """

    record: GenerationRecord
    diagnosis: Diagnosis
    findings: tuple[Finding, ...]
    parent_context: object | None = None
