"""One phase over many requests: times summed exactly, quantiles within 1 %, opinions of those that were judged."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferscope.records import QuantileSketch

if TYPE_CHECKING:
    from inferscope.analysis.verdict import PhaseDiagnosis
    from inferscope.records import PhaseRecord

__all__ = ["PhaseSum", "SketchSum", "median"]

_VALUES = ("intensity", "flops_per_s", "bytes_per_s", "mfu", "mbu", "roof_share")


def median(values: array[float] | list[float]) -> float | None:
    """The middle of finished values, None of none."""
    return statistics.median(values) if values else None


@dataclass(slots=True)
class SketchSum:
    """Sketches added up: the sketch of all their values together."""

    buckets: Counter[int] = field(default_factory=Counter)
    sum_ns: int = 0
    min_ns: int | None = None
    max_ns: int | None = None

    def add(self, sketch: QuantileSketch) -> None:
        """Take in a sketch."""
        for index, count in sketch.buckets:
            self.buckets[index] += count
        self._ends(sketch.sum_ns, sketch.min_ns, sketch.max_ns)

    def merge(self, other: SketchSum) -> None:
        """Take in another sum."""
        self.buckets.update(other.buckets)
        self._ends(other.sum_ns, other.min_ns, other.max_ns)

    def finished(self) -> QuantileSketch:
        """The sketch of everything."""
        return QuantileSketch(
            buckets=tuple(sorted(self.buckets.items())),
            count=sum(self.buckets.values()),
            sum_ns=self.sum_ns,
            min_ns=self.min_ns,
            max_ns=self.max_ns,
        )

    def _ends(self, sum_ns: int, least: int | None, most: int | None) -> None:
        self.sum_ns += sum_ns
        if least is not None:
            self.min_ns = least if self.min_ns is None else min(self.min_ns, least)
        if most is not None:
            self.max_ns = most if self.max_ns is None else max(self.max_ns, most)


@dataclass(slots=True, kw_only=True)
class PhaseSum:
    """One phase of many requests.

    Attributes:
        name: Of the phase.
        requests: How many have it.
        wall_ns: Sum.
        passes: Sum.
        tokens: Sum, of those where it is known.
        pass_ns: Forwards on the host.
        judged_wall_ns: Walls of those with known shares.
        shares_ns: Of that, by class.
        bounds: Verdicts and how often each was given.
        low_confidence: How many verdicts have low confidence.
        reasons: Why, and how often.
        values: Of each judged phase: "intensity" (FLOP per byte), "flops_per_s", "bytes_per_s", "mfu", "mbu" and
            "roof_share", as `PhaseDiagnosis` has them.
    """

    name: str
    requests: int = 0
    wall_ns: int = 0
    passes: int = 0
    tokens: int = 0
    pass_ns: SketchSum = field(default_factory=SketchSum)
    judged_wall_ns: int = 0
    shares_ns: Counter[str] = field(default_factory=Counter)
    bounds: Counter[str] = field(default_factory=Counter)
    low_confidence: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in _VALUES})

    def add(self, phase: PhaseRecord) -> None:
        """Take in the phase of one request."""
        self.requests += 1
        self.wall_ns += phase.wall_ns
        self.passes += phase.passes
        self.tokens += phase.tokens or 0
        self.pass_ns.add(phase.pass_ns)

    def judge(self, phase: PhaseRecord, verdict: PhaseDiagnosis) -> None:
        """Take in the verdict on one of them."""
        self.bounds[verdict.bound] += 1
        self.low_confidence += verdict.confidence == "low"
        self.reasons.update(verdict.reasons)
        if verdict.shares:
            self.judged_wall_ns += phase.wall_ns
            for bound, share in verdict.shares.items():
                self.shares_ns[bound] += round(share * phase.wall_ns)
        found = {
            "intensity": verdict.cost.arithmetic_intensity if verdict.cost else None,
            "flops_per_s": verdict.achieved_flops_per_s,
            "bytes_per_s": verdict.achieved_bytes_per_s,
            "mfu": verdict.mfu,
            "mbu": verdict.mbu,
            "roof_share": verdict.roof_share,
        }
        for name, value in found.items():
            if value is not None:
                self.values[name].append(value)

    def merge(self, other: PhaseSum) -> None:
        """Take in the same phase of other requests."""
        for name in ("requests", "wall_ns", "passes", "tokens", "judged_wall_ns", "low_confidence"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.pass_ns.merge(other.pass_ns)
        self.shares_ns.update(other.shares_ns)
        self.bounds.update(other.bounds)
        self.reasons.update(other.reasons)
        for name, values in other.values.items():
            self.values[name].extend(values)

    @property
    def shares(self) -> dict[str, float]:
        """By class, largest first, of the time of the requests that were judged; empty where none could be."""
        if not self.judged_wall_ns:
            return {}
        ordered = self.shares_ns.most_common()
        return {bound: time_ns / self.judged_wall_ns for bound, time_ns in ordered if time_ns}

    @property
    def bound(self) -> str:
        """The class with the largest share of that time, "unknown" where there is none."""
        return next(iter(self.shares), "unknown")

    def middle(self, name: str) -> float | None:
        """Median of one of `values`; None where none is known."""
        return median(self.values[name])
