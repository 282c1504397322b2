"""What a rule looks at: one phase with its verdict, in its request, on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Savings

if TYPE_CHECKING:
    from inferscope.analysis.verdict import PhaseDiagnosis
    from inferscope.records import GenerationRecord, PhaseRecord
    from inferscope.specs import DeviceSpec

__all__ = ["Case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One phase, its verdict, and what they belong to."""

    record: GenerationRecord
    phase: PhaseRecord
    verdict: PhaseDiagnosis
    device: DeviceSpec | None

    def share(self, name: str) -> float:
        """Share of the phase's wall in a class (0..1); 0 where shares are unknown."""
        return self.verdict.shares.get(name, 0.0)

    def saves(self, low: float, high: float, basis: str) -> Savings:
        """Savings as an interval of the phase's wall, carried over to the request's.

        Args:
            low: Least share of the phase's wall (0..1).
            high: Largest share.
            basis: What the estimate assumes.
        """
        of_request = self.phase.wall_ns / self.record.wall_ns if self.record.wall_ns else 0.0
        middle = (low + high) / 2
        return Savings(
            phase_share=middle,
            request_share=middle * of_request,
            low=low * of_request,
            high=high * of_request,
            basis=basis,
        )
