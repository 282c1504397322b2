"""A phase while it is being summed: its ledger, its durations, its slowest passes, the work it was given."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, Literal

from inferscope.capture.busy import BusyTable, DeviceSums
from inferscope.capture.deep import DeepSums
from inferscope.capture.frames import UNREADABLE
from inferscope.records import PassRun, PhaseLedger, PhaseRecord, QuantileSketch, SyncSeen, Work, WorstPass
from inferscope.specs import monomials, regime_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.capture.busy import OnDevice
    from inferscope.capture.census import Step
    from inferscope.meters.sync_points import SyncWindow
    from inferscope.records import StepCount
    from inferscope.specs import Regime
    from inferscope.syncs import Place

__all__ = ["RUNS_KEPT", "WORST_KEPT", "Cycle", "PhaseSums", "Runs", "Tally"]

WORST_KEPT = 8
RUNS_KEPT = 256
"""Different shapes kept per phase: a request has a few, a speculating one a new one for every verification."""
STEPS_KEPT = 64
"""Kinds of pass counted per phase: contexts are told apart by powers of two, and batches rarely differ."""
SYNC_POINTS_KEPT = 32
EXCLUSIVE = ("issue", "select", "wait", "deliver", "shared")
PARTS = (*EXCLUSIVE, "offcpu", "gc")


class Tally:
    """Durations gathered one by one for a QuantileSketch."""

    __slots__ = ("counts", "max_ns", "min_ns", "sum_ns")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.sum_ns = 0
        self.min_ns: int | None = None
        self.max_ns: int | None = None

    def add(self, value_ns: int) -> None:
        """Take one duration."""
        self.counts[QuantileSketch.bucket(value_ns)] += 1
        self.sum_ns += value_ns
        self.min_ns = value_ns if self.min_ns is None else min(self.min_ns, value_ns)
        self.max_ns = value_ns if self.max_ns is None else max(self.max_ns, value_ns)

    def sketch(self) -> QuantileSketch:
        """What was taken so far."""
        return QuantileSketch(
            buckets=tuple(sorted(self.counts.items())),
            count=sum(self.counts.values()),
            sum_ns=self.sum_ns,
            min_ns=self.min_ns,
            max_ns=self.max_ns,
        )


class Runs:
    """Shapes of passes, joined where only the cache grows, and evenly."""

    def __init__(self) -> None:
        self._runs: list[list[int]] | None = []

    def add(self, batch: int, q: int, past: int, logits: int) -> None:
        """Take one pass."""
        if self._runs is None:
            return
        last = self._runs[-1] if self._runs else None
        if last is not None and last[:2] == [batch, q] and last[3] == logits:
            first, passes, step = last[2], last[4], last[5]
            if passes == 1 and past >= first:
                last[4:] = 2, past - first
                return
            if past == first + passes * step:
                last[4] += 1
                return
        self._runs.append([batch, q, past, logits, 1, 0])
        if len(self._runs) > RUNS_KEPT:
            self._runs = None

    def kept(self) -> tuple[PassRun, ...] | None:
        """All of them; None where there were too many."""
        if self._runs is None:
            return None
        names = ("batch_size", "q_len", "past_len", "logits", "passes", "step")
        return tuple(PassRun(**dict(zip(names, run, strict=True))) for run in self._runs)


@dataclass(slots=True)
class Cycle:
    """One pass and what belongs to it, up to the next boundary."""

    start_ns: int
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    device: OnDevice | None = None


class PhaseSums:
    """A phase while it is being summed."""

    def __init__(self, name: str, start_ns: int) -> None:
        self.name = name
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.parts = dict.fromkeys(PARTS, 0)
        self.passes = 0
        self.cycles = 0
        self.tokens: int | None = 0
        self.syncs: int | None = None
        self.mixed: int | None = None  # counted where requests share their passes
        self.pass_ns = Tally()
        self.work: dict[Regime, tuple[int, tuple[int, ...]]] = {}
        self.runs: dict[Regime, Runs] = {}
        self.unreadable = False
        self.inside = False  # within passes of another phase, whose CPU time was read as one
        self.device: DeviceSums | None = None
        self.deep = DeepSums()
        self.steps: Counter[Step] = Counter()
        self.looks: list[SyncWindow] = []
        # (cycle_ns, -index, start_ns, parts): the smallest of the slowest is on top.
        self.worst: list[tuple[int, int, int, tuple[int, ...]]] = []

    def add_cycle(self, cycle: Cycle) -> None:
        """Sum a finished cycle, and keep it if it is among the slowest."""
        for name, value in cycle.parts.items():
            self.parts[name] += value
        cycle_ns = sum(cycle.parts[name] for name in EXCLUSIVE)
        if cycle.device is not None:
            self.device = self.device or DeviceSums()
            self.device.add(cycle.device, cycle_ns)
        entry = (cycle_ns, -self.cycles, cycle.start_ns, tuple(cycle.parts.values()))
        self.cycles += 1
        if len(self.worst) < WORST_KEPT:
            heapq.heappush(self.worst, entry)
        else:
            heapq.heappushpop(self.worst, entry)

    def add_work(self, q: int, past: int, batch: int, logits: int) -> None:
        """Sum what a pass was asked to do; one unreadable shape leaves the phase without a cost."""
        if UNREADABLE in (q, batch):
            self.tokens = None
        elif self.tokens is not None:
            self.tokens += q * batch
        if UNREADABLE in (q, past, batch):
            self.unreadable = True
            return
        if self.name == "draft":  # of another model, or of fewer layers: the model's own cost says nothing of it
            return
        regime: Regime = "encode" if self.name == "encode" else regime_of(q, past)
        values = monomials(batch, q, past, logits)
        passes, sums = self.work.get(regime, (0, (0,) * len(values)))
        self.work[regime] = passes + 1, tuple(map(add, sums, values))
        self.runs.setdefault(regime, Runs()).add(batch, q, past, logits)

    def add_step(self, step: Step) -> None:
        """Count a pass of this kind."""
        if step in self.steps or len(self.steps) < STEPS_KEPT:
            self.steps[step] += 1

    def record(
        self,
        origin_ns: int,
        *,
        wait_known: bool,
        contended_ns: int | None = None,
        known: BusyTable | None = None,
        encoder_len: int | None = None,
        steps: tuple[StepCount, ...] = (),
    ) -> PhaseRecord:
        """The finished phase.

        Args:
            origin_ns: Start of the request on its clock.
            wait_known: Whether stop checks were seen; without them the wait is inside `select`.
            contended_ns: Time that other requests took from this one.
            known: What passes of this model were measured at on the device.
            encoder_len: Tokens of an encoder's output that the passes looked at; None where that is not known.
            steps: What is known of its kinds of pass.
        """
        ledger = PhaseLedger(
            issue_ns=self.parts["issue"],
            select_ns=self.parts["select"],
            wait_ns=self.parts["wait"] if wait_known else None,
            deliver_ns=self.parts["deliver"],
            offcpu_ns=None if self.inside else self.parts["offcpu"],
            gc_ns=self.parts["gc"],
            shared_ns=None if self.mixed is None else self.parts["shared"],
        )
        work = tuple(
            Work(
                regime=regime,
                passes=passes,
                monomials=sums,
                runs=self.runs[regime].kept(),
                encoder_len=encoder_len,
            )
            for regime, (passes, sums) in self.work.items()
        )
        launches, launches_source = _launches(steps, self.passes)
        return PhaseRecord(
            name=self.name,
            start_ns=self.start_ns - origin_ns,
            end_ns=self.end_ns - origin_ns,
            wall_ns=ledger.total_ns,
            passes=self.passes,
            tokens=self.tokens,
            pass_ns=self.pass_ns.sketch(),
            worst=self._worst_passes(origin_ns),
            ledger=ledger,
            work=() if self.unreadable else work,
            device=None if self.device is None else self.device.time(origin_ns, known or BusyTable()),
            syncs=self.syncs,
            contended_ns=contended_ns,
            mixed_passes=self.mixed,
            deep=self.deep.time(),
            operators=self.deep.groups(),
            launches=launches,
            launches_source=launches_source,
            steps=steps,
            sync_passes=len(self.looks) or None,
            sync_points=_sync_points(self.looks),
        )

    def _worst_passes(self, origin_ns: int) -> tuple[WorstPass, ...]:
        """The slowest, each with the part that exceeds the phase's mean most; nothing where all are alike."""
        mean = [self.parts[name] // max(self.cycles, 1) for name in PARTS]
        slowest = []
        for cycle_ns, index, start_ns, parts in sorted(self.worst, reverse=True):
            excess = {name: parts[i] - mean[i] for i, name in enumerate(PARTS)}
            beyond = cycle_ns - sum(mean[: len(EXCLUSIVE)])
            for name in ("gc", "offcpu"):  # CPU time is read for several passes at once, and is then one's alone here
                excess[name] = min(excess[name], beyond)
            cause = _cause(excess)
            if excess[cause] > 0 and cycle_ns > sum(mean[: len(EXCLUSIVE)]):
                slowest.append(
                    WorstPass(
                        index=-index,
                        start_ns=start_ns - origin_ns,
                        cycle_ns=cycle_ns,
                        cause=cause,
                        excess_ns=excess[cause],
                    )
                )
        return tuple(slowest)


def _launches(steps: Sequence[StepCount], passes: int) -> tuple[int | None, Literal["native", "deep"] | None]:
    """Kernels of all passes, and how that is known; None unless each is of a kind with a number of its own."""
    exact = [step for step in steps if step.unit == "kernel" and not step.varies]
    if not exact or sum(step.passes for step in exact) != passes:
        return None, None
    launches = sum(step.passes * step.launches for step in exact)
    return launches, "native" if all(step.source == "native" for step in exact) else "deep"


def _sync_points(windows: Sequence[SyncWindow]) -> tuple[SyncSeen, ...]:
    """Where the host waited in the passes that were looked at, most frequent first."""
    places: Counter[Place] = Counter()
    for window in windows:
        places.update(window.places)
    return tuple(
        SyncSeen(
            file=place.file,
            line=place.line,
            count=count,
            caller_file=place.caller_file,
            caller_line=place.caller_line,
        )
        for place, count in places.most_common(SYNC_POINTS_KEPT)
    )


def _cause(excess: dict[str, int]) -> str:
    """The part of the ledger with the largest excess, or the overlay that explains most of it."""
    part = max(EXCLUSIVE, key=excess.__getitem__)
    for overlay in ("gc", "offcpu"):
        if excess[overlay] > 0 and 2 * excess[overlay] >= excess[part]:
            return overlay
    return part
