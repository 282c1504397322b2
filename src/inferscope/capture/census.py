"""What a forward of each kind launches and waits for: kept per model, fed by whatever counts a pass exactly.

Nothing is counted for this alone. A recorded pass, or one counted at the driver, tells of all passes of its kind, since
the same model launches the same kernels for the same shapes. Where that stops being true something has happened that
is worth knowing: a recompilation, a graph that breaks, attention that has fallen back to another implementation.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inferscope import notices
from inferscope.records import StepCount

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferscope.meters.operator_groups import MeasuredPass

__all__ = ["Census", "PassCount", "Signature", "Step", "census_of", "count_of", "step_of"]

SIGNATURES_KEPT = 256
ALARMS_KEPT = 16
"""Changes of one model that are said; beyond, its launches are no property of its kinds of pass."""
SETTLES = 2
"""Equal counts in a row from which on one is believed: a single one may hold what happens once."""
RESTLESS = 4
"""Counts that came once and went: from so many on the kind has no number of its own (experts that are chosen)."""


class Step(NamedTuple):
    """What a row tells of its pass's kind.

    Attributes:
        name: The pass's full name.
        batch: Sequences.
        octave: Bits of the number of tokens behind it, its own included.
    """

    name: str
    batch: int
    octave: int


class Signature(NamedTuple):
    """Passes of one model that launch alike."""

    step: Step
    dtype: str | None
    attention: str | None
    cache: str | None
    compiled: bool


class PassCount(NamedTuple):
    """One pass, counted; None stands for what was not."""

    launches: int
    graph_launches: int | None
    syncs: int | None
    unit: Literal["kernel", "operator"]
    source: Literal["native", "deep"]


def step_of(name: str, batch: int, context: int) -> Step:
    """The kind of a pass.

    Args:
        name: The pass's full name.
        batch: Sequences.
        context: Tokens behind it, its own included.
    """
    return Step(name, batch, context.bit_length())


def count_of(measured: MeasuredPass) -> PassCount:
    """What a recorded pass says: kernels where a device did the work, else outermost operators."""
    if measured.launches is not None:
        return PassCount(measured.launches, measured.graph_launches, measured.syncs, "kernel", "deep")
    return PassCount(measured.calls, None, None, "operator", "deep")


@dataclass(slots=True)
class _Entry:
    """What is known of one signature from one source, whose ways of counting need not agree."""

    latest: PassCount
    samples: int = 0
    run: int = 0
    settled: int | None = None
    before: int | None = None
    singles: int = 0


class Census:
    """The counts of one model by signature. Written and read on the background thread; threads may share it."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._entries: OrderedDict[tuple[Signature, str], _Entry] = OrderedDict()
        self._alarmed: set[tuple[Signature, str]] = set()
        self._lock = threading.Lock()

    def add(self, signature: Signature, count: PassCount, *, model: str = "") -> bool:
        """Take one counted pass.

        Args:
            signature: Its kind.
            count: What it launched and waited for.
            model: The model's name, for the message.

        Returns:
            Whether the count of this kind has changed just now, for good as far as one can tell.
        """
        key = signature, count.source
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(count)
            self._entries.move_to_end(key)
            if len(self._entries) > SIGNATURES_KEPT:
                self._entries.popitem(last=False)
            changed = _take(entry, count)
            say = changed and key not in self._alarmed and len(self._alarmed) < ALARMS_KEPT
            if say:
                self._alarmed.add(key)
        if say:
            _say(signature, count, entry.before, model)
        return changed

    def steps(self, passes: Mapping[Signature, int]) -> tuple[StepCount, ...]:
        """What is known of the passes of a phase, by kind, most frequent first.

        Args:
            passes: How many of each kind there were.
        """
        found = []
        with self._lock:
            for signature, number in sorted(passes.items(), key=lambda item: -item[1]):
                entry = self._entries.get((signature, "native")) or self._entries.get((signature, "deep"))
                if entry is not None:
                    found.append(_step_count(signature, number, entry))
        return tuple(found)


_censuses: weakref.WeakKeyDictionary[object, Census] = weakref.WeakKeyDictionary()


def census_of(module: Any) -> Census:  # noqa: ANN401 - any model
    """The census of a model; an empty one where there is no model any more."""
    return Census() if module is None else _censuses.setdefault(module, Census())


def _take(entry: _Entry, count: PassCount) -> bool:
    """Note a count; whether it has settled at another one than before."""
    same = entry.samples > 0 and entry.latest.launches == count.launches
    if not same and 0 < entry.run < SETTLES:
        entry.singles += 1
    entry.run = entry.run + 1 if same else 1
    entry.latest = count
    entry.samples += 1
    if entry.run < SETTLES or entry.settled == count.launches:
        return False
    before, entry.settled = entry.settled, count.launches
    if before is None or entry.singles >= RESTLESS:
        return False
    entry.before = before
    return True


def _say(signature: Signature, count: PassCount, before: int | None, model: str) -> None:
    step = signature.step
    notices.warn(
        "launches-changed",
        f"a {step.name} pass now starts {count.launches} {count.unit}s, before it were {before}: "
        "a recompilation, a graph that breaks, or attention that runs another way",
        once=(model, *signature, count.source),
        model=model,
        phase=step.name,
        batch_size=step.batch,
        context_below=1 << step.octave,
        launches_before=before,
        launches=count.launches,
        source=count.source,
    )


def _step_count(signature: Signature, passes: int, entry: _Entry) -> StepCount:
    step, latest, varies = signature.step, entry.latest, entry.singles >= RESTLESS
    return StepCount(
        name=step.name,
        passes=passes,
        batch_size=step.batch,
        context_from=1 << (step.octave - 1) if step.octave else 0,
        context_to=(1 << step.octave) - 1,
        launches=latest.launches if entry.settled is None or varies else entry.settled,
        graph_launches=latest.graph_launches,
        syncs=latest.syncs,
        unit=latest.unit,
        source=latest.source,
        samples=entry.samples,
        launches_before=entry.before,
        varies=varies,
    )
