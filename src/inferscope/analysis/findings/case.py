"""What a rule looks at: one phase with its verdict, in its request, on its device, and what else is known of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferscope.analysis.roofline import Roofs, roofs_for
from inferscope.analysis.savings import Change, Term, change_phase, change_request, pools_of, span, terms_of
from inferscope.analysis.verdict import BOUNDS, Evidence, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.verdict import Diagnosis, PhaseDiagnosis, Savings, Severity
    from inferscope.analysis.workload import Workload
    from inferscope.records import GenerationRecord, PhaseRecord
    from inferscope.samples import GpuSample
    from inferscope.specs import DeviceSpec
    from inferscope.syncs import LintReport

__all__ = ["Case", "Saving", "Surroundings", "Whole", "case_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a record does not hold and another source may: each may be missing, and then its findings are silent.

    Attributes:
        gpu: A window of the GPU that the request ran on, taken while it ran.
        workload: The requests of the last minute.
        lint: Where the model's code waits for a device.
        allocator_retries: How often torch's allocator had to give back its pool and ask again during the request
            (`torch.cuda.memory_stats()["num_alloc_retries"]`, after less before).
        allocator_ooms: How often it ran out of memory all the same (`num_ooms`, likewise).
    """

    gpu: GpuSample | None = None
    workload: Workload | None = None
    lint: LintReport | None = None
    allocator_retries: int | None = None
    allocator_ooms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What a finding would save, with the time it addresses and how to check it.

    Attributes:
        saves: None where that is not known.
        touches: Pools of the time it addresses.
    """

    saves: Savings | None = None
    touches: tuple[str, ...] = ()


class _Subject:
    """What findings are made on."""

    __slots__ = ()

    @property
    def phase_name(self) -> str | None:
        """The phase that a finding speaks of; None for the whole request."""
        return None

    def finding(
        self,
        code: str,
        severity: Severity,
        claim: str,
        *evidence: Evidence,
        action: str,
        not_helping: str,
        verify: str,
        saving: Saving | None = None,
    ) -> Finding:
        """A finding; `verify` says what to change and what moves, and the command and the size are added to it."""
        saves = saving.saves if saving is not None else None
        return Finding(
            code=code,
            severity=severity,
            phase=self.phase_name,
            claim=claim,
            evidence=evidence,
            saves=saves,
            action=action,
            not_helping=not_helping,
            verify=f"`inferscope compare before.jsonl after.jsonl`: {verify}{_size(saves)}",
            touches=saving.touches if saving is not None else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(_Subject):
    """One phase, its verdict, and what they belong to.

    Attributes:
        record: The request.
        phase: Of it.
        verdict: On the phase.
        device: Whose ceilings were used.
        roofs: Those that apply to the phase; None where they are not known.
        terms: Parts of the phase's wall, by name.
        surroundings: What is known beside the record.
    """

    record: GenerationRecord
    phase: PhaseRecord
    verdict: PhaseDiagnosis
    device: DeviceSpec | None
    roofs: Roofs | None
    terms: Mapping[str, Term]
    surroundings: Surroundings = field(default_factory=Surroundings)

    @property
    def phase_name(self) -> str | None:
        """The phase's name."""
        return self.phase.name

    @property
    def on_cpu(self) -> bool:
        """Whether the model ran on the host itself."""
        return (self.record.model.device or "cpu").startswith("cpu")

    @property
    def cost(self) -> PassCost | None:
        """Operations and bytes of the phase; None where they are not known."""
        return self.verdict.cost

    @property
    def held_by(self) -> str:
        """The class with the largest share of the time that the thread ran: what was off the CPU is nobody's work."""
        shares = dict(self.verdict.shares)
        if not shares or not self.on_cpu:
            return self.verdict.bound
        shares["overhead"] = max(0.0, shares.get("overhead", 0.0) - self.part("offcpu inside"))
        return max(BOUNDS, key=lambda name: shares.get(name, 0.0))

    @property
    def ran_share(self) -> float:
        """Part of the phase's wall in which the thread ran, or may have (0..1).

        1 where a device did the work, and where more threads than processors wait for each other: that is their work.
        """
        process = self.record.process
        crowded = process is not None and (process.intra_op_threads or 0) > (process.usable_cpus or 0) > 0
        return 1.0 if crowded or not self.on_cpu else max(1e-9, 1.0 - self.part("offcpu inside"))

    @property
    def own_share(self) -> float:
        """The most of the phase's wall that can be put down to this request alone on a CPU (0..1): no neighbour ran."""
        return max(0.0, 1.0 - self.part("neighbours")) if self.on_cpu else 1.0

    def share(self, name: str) -> float:
        """Share of the phase's wall in a class (0..1); 0 where shares are unknown."""
        return self.verdict.shares.get(name, 0.0)

    def part(self, term: str) -> float:
        """Share of the phase's wall that a term takes (0..1); 0 where it is not known."""
        return self.terms[term].time_ns / self.phase.wall_ns if term in self.terms and self.phase.wall_ns > 0 else 0.0

    def evidence(self, *metrics: str) -> tuple[Evidence, ...]:
        """Rows of the verdict's evidence, by metric."""
        return tuple(row for row in self.verdict.evidence if row.metric in metrics)

    def saving(self, basis: str, *changes: Change) -> Saving:
        """What it saves to take away parts of some terms.

        Args:
            basis: What the estimate assumes.
            *changes: Which parts.
        """
        return Saving(
            saves=change_phase(self.record, self.phase, self.terms, changes, basis),
            touches=tuple(sorted(pools_of(self.phase.name, (change.term for change in changes)))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(_Subject):
    """A whole request.

    Attributes:
        record: The request.
        diagnosis: On it.
        cases: Its phases, in their order.
        surroundings: What is known beside the record.
    """

    record: GenerationRecord
    diagnosis: Diagnosis
    cases: tuple[Case, ...]
    surroundings: Surroundings

    def case(self, name: str) -> Case | None:
        """The phase of that name; None where the request had none."""
        return next((case for case in self.cases if case.phase.name == name), None)

    def saving(self, basis: str, changes: Mapping[str, tuple[Change, ...]]) -> Saving:
        """What it saves to take away parts of terms of some phases.

        Args:
            basis: What the estimate assumes.
            changes: By phase, which parts.
        """
        parts = [
            (case.phase, case.terms, changes[case.phase.name]) for case in self.cases if case.phase.name in changes
        ]
        touched = (pools_of(phase.name, (change.term for change in every)) for phase, _, every in parts)
        return Saving(
            saves=change_request(self.record, parts, basis),
            touches=tuple(sorted(frozenset[str]().union(*touched))),
        )

    def stretch(
        self, low_ns: float, high_ns: float, basis: str, *, phases: Iterable[str], terms: Iterable[str]
    ) -> Saving:
        """What it saves to take out a stretch of time that is no term's.

        Args:
            low_ns: Least of it.
            high_ns: Most of it.
            basis: What the estimate assumes.
            phases: Where it lies.
            terms: What it lies in there.
        """
        names = tuple(terms)
        touched = frozenset[str]().union(*(pools_of(phase, names) for phase in phases))
        return Saving(saves=span(self.record, low_ns, high_ns, basis), touches=tuple(sorted(touched)))


def case_of(
    record: GenerationRecord,
    phase: PhaseRecord,
    verdict: PhaseDiagnosis,
    device: DeviceSpec | None,
    surroundings: Surroundings,
) -> Case:
    """A phase with its roofs and terms."""
    roofs = None
    if verdict.cost is not None and device is not None and phase.passes > 0:
        working_set = (verdict.cost.weight_bytes + verdict.cost.kv_read_bytes) / phase.passes
        found = roofs_for(device, record.model.dtype, working_set)
        roofs = found if isinstance(found, Roofs) else None
    return Case(
        record=record,
        phase=phase,
        verdict=verdict,
        device=device,
        roofs=roofs,
        terms=terms_of(phase, verdict, roofs),
        surroundings=surroundings,
    )


def _size(saves: Savings | None) -> str:
    """How far the request should get shorter, in words; "" where nothing is promised."""
    if saves is None:
        return ""
    return f" The request's wall should fall by {saves.low:.1%} to {saves.high:.1%}."
