"""Recorded operators over many requests, per recorded pass."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferscope.analysis.operators import operator_table
from inferscope.report.phase_sums import median

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Result
    from inferscope.records import GenerationRecord, OperatorTime

__all__ = ["OperatorKey", "OperatorSum", "OperatorSums"]

KEYS = 400
"""Different operators kept apart; further ones are summed up as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKey:
    """Which operators: of what model's phase, which group, which name (None: the whole group)."""

    model: str
    phase: str
    group: str
    name: str | None


@dataclass(slots=True, kw_only=True)
class OperatorSum:
    """Operators of one key in all recorded passes.

    Attributes:
        passes: Recorded passes of the requests in which they were seen.
        wall_ns: Of those passes.
        time_ns: Of the operators.
        calls: Of them.
        launches: Kernels; None where no device did the work.
        flops_per_s: Achieved, of the requests that were judged; empty where the cost model draws another line.
        intensity: FLOP per byte, of the same.
        roof_share: Time that the nearer roof demands, of the time taken.
        bounds: What holds them back, and how often.
    """

    passes: int = 0
    wall_ns: int = 0
    time_ns: int = 0
    calls: int = 0
    launches: int | None = None
    flops_per_s: array[float] = field(default_factory=lambda: array("d"))
    intensity: array[float] = field(default_factory=lambda: array("d"))
    roof_share: array[float] = field(default_factory=lambda: array("d"))
    bounds: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float | None:
        """Of the recorded passes' wall."""
        return self.time_ns / self.wall_ns if self.wall_ns else None

    def middle(self, name: str) -> float | None:
        """Median of `flops_per_s`, `intensity` or `roof_share`."""
        return median(getattr(self, name))


class OperatorSums:
    """All recorded operators.

    Attributes:
        by_key: Sums.
        passes: Recorded passes, by model and phase.
        all_passes: Passes of those requests, recorded or not.
        python_ns: Time in which no operator ran, by model and phase.
        wall_ns: Of the recorded passes, by model and phase.
    """

    def __init__(self) -> None:
        self.by_key: dict[OperatorKey, OperatorSum] = {}
        self.passes: Counter[tuple[str, str]] = Counter()
        self.all_passes: Counter[tuple[str, str]] = Counter()
        self.python_ns: Counter[tuple[str, str]] = Counter()
        self.wall_ns: Counter[tuple[str, str]] = Counter()

    def add(self, record: GenerationRecord) -> None:
        """Take in what a record holds of operators."""
        for phase in record.phases:
            if phase.deep is None:
                continue
            where = (record.model.name, phase.name)
            self.passes[where] += phase.deep.passes
            self.all_passes[where] += phase.passes
            self.python_ns[where] += phase.deep.python_ns
            self.wall_ns[where] += phase.deep.wall_ns
            for operator in (*phase.operators, *phase.deep.largest):
                self._add(self._key(*where, operator), operator, phase.deep.passes)

    def judge(self, result: Result) -> None:
        """Take in what is thought of a record's operators."""
        for phase in result.record.phases:
            verdict = result.diagnosis.phase(phase.name)
            cost = verdict.cost if verdict else None
            for row in operator_table(result.record, phase, cost, result.diagnosis.device):
                key = OperatorKey(model=result.record.model.name, phase=phase.name, group=row.group, name=None)
                found = self.by_key.get(key)
                if found is None or row.flops_per_s is None or not row.flops or not row.bytes:
                    continue
                found.flops_per_s.append(row.flops_per_s)
                found.intensity.append(row.flops / row.bytes)
                if row.roof_share is not None and row.bound is not None:
                    found.roof_share.append(row.roof_share)
                    found.bounds[row.bound] += 1

    def _key(self, model: str, phase: str, operator: OperatorTime) -> OperatorKey:
        key = OperatorKey(model=model, phase=phase, group=operator.group, name=operator.name)
        if key in self.by_key or len(self.by_key) < KEYS:
            return key
        return OperatorKey(model="others", phase="others", group="others", name=None)

    def _add(self, key: OperatorKey, operator: OperatorTime, passes: int) -> None:
        found = self.by_key.setdefault(key, OperatorSum())
        found.passes += passes
        found.wall_ns += operator.wall_ns
        found.time_ns += operator.time_ns
        found.calls += operator.calls
        if operator.launches is not None:
            found.launches = (found.launches or 0) + operator.launches
