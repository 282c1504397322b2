"""What a record says in numbers that two sets of records can be compared by, and what work it was.

Two requests did the same work where batch and lengths are equal. A set of any size is reduced to a bounded number of
requests, chosen by a hash of their work and their number among those alike: what pairs up in two sets is chosen in
both.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inferscope.analysis.verdict import Diagnosis
    from inferscope.records import GenerationRecord, PhaseRecord

__all__ = [
    "COUNTS",
    "JUDGED",
    "KEPT",
    "LEDGER",
    "PARTS",
    "PHASES",
    "TIMES",
    "Measured",
    "Shape",
    "SideOfComparison",
    "collect",
    "decode_costs",
    "kind_of",
]

KEPT = 4_096
"""Requests of a set that take part in the statistics."""
JUDGED = 64
"""Requests of a set that are given verdicts and findings."""
_KINDS_KEPT = 32
_DECODING = frozenset({"decode", "verify", "draft", "mixed"})

TIMES = ("wall", "ttft", "tpot")
"""Times of a request, first in every table."""
COUNTS = (
    "launches_per_token",
    "syncs_per_token",
    "operators_per_token",
    "bytes_per_token",
    "passes_per_token",
)
"""What does not flicker: numbers per further token, compared as they are."""

LEDGER = ("queue", "setup", "tail", "self", "residual")
"""What a request's ledger holds beside its phases."""
PHASES = ("encode", "prefill", "decode", "verify", "draft", "mixed", "unknown")
_PARTS = ("issue", "select", "wait", "deliver", "offcpu", "gc", "shared")
PARTS = ("wall", "pass", "device", *_PARTS)
"""Times of a phase; `pass` is the median of its forwards on the host. Recorded operators come on top."""

Kind = Literal["time", "count"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shape:
    """The work that a request was, as far as lengths tell it; -1 where a length is not known.

    Attributes:
        batch_size: Sequences.
        input_tokens: Prompt tokens over the batch, padding excluded where that is known.
        output_len: New tokens of the longest sequence.
    """

    batch_size: int
    input_tokens: int
    output_len: int

    @property
    def known(self) -> bool:
        """Whether all lengths are."""
        return min(self.batch_size, self.input_tokens, self.output_len) >= 0

    @property
    def roughly(self) -> Shape:
        """The same with lengths to a power of two."""
        return Shape(
            batch_size=self.batch_size,
            input_tokens=max(self.input_tokens, 0).bit_length(),
            output_len=max(self.output_len, 0).bit_length(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One request in numbers.

    Attributes:
        shape: The work it was.
        number: Which one of those alike in its set, from 0.
        values: Nanoseconds by name of the time, numbers by name of the count; what is unknown is not in it.
        phases: Names of its phases.
        started_unix_ns: When it began; 0 where that does not matter.
        tokens_digest: Of the tokens it generated; None where that was not recorded.
    """

    shape: Shape
    number: int
    values: dict[str, float]
    phases: tuple[str, ...]
    started_unix_ns: int = 0
    tokens_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideOfComparison:
    """One set of records, reduced.

    Attributes:
        requests: Those that ended well.
        aborted: Those that did not; they take part in nothing.
        measured: At most `KEPT` of the requests.
        judged: At most `JUDGED` of their records.
        facts: What ran and on what: how many requests by value, by the name of the fact.
        versions: Of the software, likewise.
        phases: How many of the requests have which phase.
    """

    requests: int
    aborted: int
    measured: tuple[Measured, ...]
    judged: tuple[GenerationRecord, ...]
    facts: dict[str, Counter[str]]
    versions: dict[str, Counter[str]]
    phases: Counter[str]


def kind_of(metric: str) -> Kind:
    """Whether a metric is a time in nanoseconds or a count."""
    return "count" if metric in COUNTS else "time"


def collect(records: Iterable[GenerationRecord]) -> SideOfComparison:
    """A set of records in bounded memory, whatever its size.

    Args:
        records: Read once, in their order.
    """
    facts: dict[str, Counter[str]] = {}
    versions: dict[str, Counter[str]] = {}
    alike: Counter[Shape] = Counter()
    phases: Counter[str] = Counter()
    kept: list[tuple[int, int, Measured]] = []
    judged: list[tuple[int, int, GenerationRecord]] = []
    aborted = 0
    for order, record in enumerate(records):
        if record.status != "ok":
            aborted += 1
            continue
        shape = _shape(record)
        draw = _draw(shape, alike[shape])
        if len(kept) < KEPT or draw > kept[0][0]:
            _keep(kept, KEPT, (draw, order, _measured(record, shape, alike[shape])))  # what is not kept costs nothing
        _keep(judged, JUDGED, (draw, order, record))
        alike[shape] += 1
        phases.update(list(dict.fromkeys(phase.name for phase in record.phases)))
        _count(facts, _facts(record))
        _count(versions, record.versions)
    return SideOfComparison(
        requests=alike.total(),
        aborted=aborted,
        measured=tuple(one for _, _, one in sorted(kept, key=_in_order)),
        judged=tuple(record for _, _, record in sorted(judged, key=_in_order)),
        facts=facts,
        versions=versions,
        phases=phases,
    )


def decode_costs(records: Iterable[GenerationRecord], diagnoses: Iterable[Diagnosis]) -> tuple[Measured, ...]:
    """Operators and bytes per further token by the cost model; only of requests of which both are known.

    Args:
        records: Some of a set.
        diagnoses: The opinion on each.
    """
    made = []
    alike: Counter[Shape] = Counter()
    for record, diagnosis in zip(records, diagnoses, strict=True):
        shape, further = _shape(record), (record.output_len or 0) - 1
        costs = [phase.cost for phase in diagnosis.phases if phase.name in _DECODING]
        known = [cost for cost in costs if cost is not None]
        if further >= 1 and known and len(known) == len(costs) and shape.known:
            values = {
                "operators_per_token": sum(cost.calls for cost in known) / further,
                "bytes_per_token": sum(cost.bytes.model for cost in known) / further,
            }
            made.append(Measured(shape=shape, number=alike[shape], values=values, phases=()))
        alike[shape] += 1
    return tuple(made)


def _in_order(entry: tuple[int, int, object]) -> int:
    return entry[1]


def _keep(kept: list[tuple[int, int, T]], most: int, entry: tuple[int, int, T]) -> None:
    """The entries with the largest draws; no two have the same order, so that what they hold is never compared."""
    if len(kept) < most:
        heapq.heappush(kept, entry)
    elif entry[0] > kept[0][0]:
        heapq.heapreplace(kept, entry)


def _draw(shape: Shape, number: int) -> int:
    """The same for the same request of another set, and otherwise as good as chance."""
    text = f"{shape.batch_size} {shape.input_tokens} {shape.output_len} {number}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _shape(record: GenerationRecord) -> Shape:
    prefill = record.phase("prefill")
    tokens = record.input_tokens
    if tokens is None and prefill is not None:  # it was not counted, or counting would have synced the device
        tokens = prefill.tokens
    return Shape(
        batch_size=_or_unknown(record.batch_size),
        input_tokens=_or_unknown(tokens),
        output_len=_or_unknown(record.output_len),
    )


def _or_unknown(length: int | None) -> int:
    return -1 if length is None else length


def _facts(record: GenerationRecord) -> Iterator[tuple[str, str]]:
    model = record.model
    weights = "" if model.parameters is None else f", {model.parameters:,} parameters"
    yield "model", f"{model.name} ({model.model_class}{weights})"
    yield "device", f"{model.device or 'unknown'} ({record.device_key or 'which one is not known'})"
    yield "dtype", model.dtype or "unknown"
    yield "attention", model.attention or "unknown"
    yield "batch", "unknown" if record.batch_size is None else str(record.batch_size)


def _count(counters: dict[str, Counter[str]], pairs: Iterable[tuple[str, str]]) -> None:
    for name, value in pairs:
        counter = counters.setdefault(name, Counter())
        counter[value if value in counter or len(counter) < _KINDS_KEPT else "others"] += 1


def _measured(record: GenerationRecord, shape: Shape, number: int) -> Measured:
    values: dict[str, float | None] = {
        "wall": record.wall_ns,
        "ttft": record.ttft_ns,
        "tpot": record.tpot_ns,
        **_counts(record),
        **{name: getattr(record.ledger, f"{name}_ns") for name in LEDGER},
    }
    for phase in record.phases:
        values.update((f"{phase.name}.{name}", value) for name, value in _of_phase(phase))
    known = {name: float(value) for name, value in values.items() if value is not None}
    return Measured(
        shape=shape,
        number=number,
        values=known,
        phases=tuple(phase.name for phase in record.phases),
        started_unix_ns=record.started_unix_ns,
        tokens_digest=record.output_digest,
    )


def _counts(record: GenerationRecord) -> dict[str, float | None]:
    """Per further token, of the phases that make them; None where one of these was not counted."""
    phases = [phase for phase in record.phases if phase.name in _DECODING]
    further = (record.output_len or 0) - 1
    if further < 1 or not phases:
        return {}
    return {
        "launches_per_token": _per(further, [phase.launches for phase in phases]),
        "syncs_per_token": _per(further, [phase.syncs for phase in phases]),
        "passes_per_token": _per(further, [phase.passes for phase in phases]),
    }


def _per(tokens: int, numbers: list[int | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / tokens if len(known) == len(numbers) else None


def _of_phase(phase: PhaseRecord) -> Iterator[tuple[str, float | None]]:
    ledger = phase.ledger
    yield "wall", phase.wall_ns
    yield "pass", phase.pass_ns.p50
    for name in _PARTS:
        yield name, getattr(ledger, f"{name}_ns")
    if phase.device is not None:
        yield "device.low", phase.device.low_ns
        yield "device.high", phase.device.high_ns
    if phase.deep is not None and phase.deep.passes:
        for operator in phase.operators:
            if operator.name is None:
                yield f"operators.{operator.group}", operator.time_ns / phase.deep.passes
