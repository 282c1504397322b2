"""Launches, waits and what inferscope costs over many requests, as the records say it: nothing is judged here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inferscope.report.chart import Grid
from inferscope.report.launches import change_of, context_of, place_of
from inferscope.report.units import UNKNOWN, count, percent, ratio

if TYPE_CHECKING:
    from inferscope.records import DeviceLedger, GenerationRecord, HostLedger, OwnOverhead, PhaseRecord, StepCount

__all__ = ["LaunchSums", "launch_grid", "side_lines", "wait_grid"]

KEPT = 200
"""Kinds of passes, and places, that are kept apart; what comes later is left out and counted."""


class _Kind(NamedTuple):
    """Passes that launch alike."""

    model: str
    phase: str
    name: str
    batch_size: int
    context_from: int


@dataclass(slots=True)
class _Steps:
    """Passes of one kind.

    Attributes:
        latest: The newest count.
        passes: Of all requests.
        alarm: The newest change that some request saw; "" for none.
    """

    latest: StepCount
    passes: int = 0
    alarm: str = ""


class LaunchSums:
    """What records say of launches and waits.

    Attributes:
        steps: By kind of pass.
        launched: Kernels by model and phase, of the phases where all were counted.
        launched_passes: Passes of those.
        reads: Host reads seen, where there is such a seam.
        read_passes: Passes of those.
        looked: Passes looked at for waits, by model and phase.
        waits: How often the host was seen waiting, by model, phase and place.
        left_out: Kinds and places beyond what is kept.
        sides: Time of recorded passes by model, phase, side ("host", "device") and part.
        own: The newest estimate of what inferscope costs.
    """

    def __init__(self) -> None:
        self.steps: dict[_Kind, _Steps] = {}
        self.launched: Counter[tuple[str, str]] = Counter()
        self.launched_passes: Counter[tuple[str, str]] = Counter()
        self.reads: Counter[tuple[str, str]] = Counter()
        self.read_passes: Counter[tuple[str, str]] = Counter()
        self.looked: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.sides: Counter[tuple[str, str, str, str]] = Counter()
        self.left_out = 0
        self.own: OwnOverhead | None = None
        self._own_unix_ns = -1

    def add(self, record: GenerationRecord) -> None:
        """Take in one record."""
        if record.own_overhead is not None and record.started_unix_ns >= self._own_unix_ns:
            self.own, self._own_unix_ns = record.own_overhead, record.started_unix_ns
        for phase in record.phases:
            where = (record.model.name, phase.name)
            self._counts(where, phase)
            for step in phase.steps:
                self._step(_Kind(*where, step.name, step.batch_size, step.context_from), step)
            if phase.sync_passes is not None:
                self.looked[where] += phase.sync_passes
            for point in phase.sync_points:
                self._wait((*where, place_of(point)), point.count)
            if phase.deep is not None:
                self._side((*where, "host"), _host_parts(phase.deep.host))
                self._side((*where, "device"), _device_parts(phase.deep.device))

    def _counts(self, where: tuple[str, str], phase: PhaseRecord) -> None:
        if phase.launches is not None:
            self.launched[where] += phase.launches
            self.launched_passes[where] += phase.passes
        if phase.syncs is not None:
            self.reads[where] += phase.syncs
            self.read_passes[where] += phase.passes

    def _step(self, kind: _Kind, step: StepCount) -> None:
        found = self.steps.get(kind)
        if found is None:
            if len(self.steps) >= KEPT:
                self.left_out += 1
                return
            found = self.steps[kind] = _Steps(step)
        found.latest = step
        found.passes += step.passes
        found.alarm = change_of(step) or found.alarm

    def _wait(self, place: tuple[str, str, str], number: int) -> None:
        if place in self.waits or len(self.waits) < KEPT:
            self.waits[place] += number
        else:
            self.left_out += 1

    def _side(self, side: tuple[str, str, str], parts: dict[str, int]) -> None:
        for part, part_ns in parts.items():
            key = (*side, part)
            if key in self.sides or len(self.sides) < KEPT:
                self.sides[key] += part_ns


def _host_parts(host: HostLedger | None) -> dict[str, int]:
    if host is None:
        return {}
    return {"python": host.python_ns, "dispatch": host.dispatch_ns, "driver": host.driver_ns, "sync": host.sync_ns}


def _device_parts(device: DeviceLedger | None) -> dict[str, int]:
    if device is None:
        return {}
    idle = {"starved": device.starved_ns, "launch gap": device.launch_gap_ns, "drained": device.drained_ns}
    return {**dict(device.busy_ns), **idle}


def launch_grid(sums: LaunchSums) -> Grid:
    """What a pass of each kind launches and waits for, the most frequent kind first."""
    rows, numbers = [], []
    for kind, each in sorted(sums.steps.items(), key=lambda item: -item[1].passes):
        step, where = each.latest, (kind.model, kind.phase)
        read = sums.reads[where] / sums.read_passes[where] if sums.read_passes[where] else None
        rows.append(
            (
                kind.model,
                kind.name,
                context_of(step),
                count(each.passes),
                f"{count(step.launches)} {step.unit}s",
                count(step.graph_launches),
                count(step.syncs),
                UNKNOWN if read is None else f"≥ {ratio(read)}",
                f"{step.source}, {count(step.samples)} counted",
                each.alarm or "none",
            )
        )
        values = (float(each.passes), float(step.launches), step.graph_launches, step.syncs, read)
        numbers.append((None, None, None, *values, float(step.samples), None))
    heading = (
        *("model", "pass", "of", "passes", "launches per pass", "graphs", "waits within"),
        *("host reads per pass of the phase", "known by", "change"),
    )
    return Grid(heading=heading, rows=tuple(rows), numbers=tuple(numbers))


def wait_grid(sums: LaunchSums) -> Grid:
    """Lines at which the host waited for the device, most frequent first."""
    rows, numbers = [], []
    for (model, phase, place), number in sums.waits.most_common():
        looked = sums.looked[model, phase]
        each = number / looked if looked else None
        rows.append((model, phase, place, ratio(each), count(looked)))
        numbers.append((None, None, None, each, float(looked)))
    return Grid(
        heading=("model", "phase", "line", "waits per pass", "passes looked at"),
        rows=tuple(rows),
        numbers=tuple(numbers),
    )


def side_lines(sums: LaunchSums) -> tuple[str, ...]:
    """Where the host's and the device's time of recorded passes went, a line for each side of each phase."""
    totals: Counter[tuple[str, str, str]] = Counter()
    for (model, phase, side, _), part_ns in sums.sides.items():
        totals[model, phase, side] += part_ns
    lines = []
    for key, total_ns in totals.items():
        parts = [(part, part_ns) for (*where, part), part_ns in sums.sides.items() if tuple(where) == key and part_ns]
        said = " · ".join(f"{part} {percent(part_ns / total_ns)}" for part, part_ns in parts)
        model, phase, side = key
        lines.append(f"{model}, {phase}, {side}: {said or 'nothing'}")
    return tuple(lines)
