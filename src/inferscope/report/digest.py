"""Any number of records, summed up in bounded memory: what every form of the report is made from.

Times are summed over all records, exactly. Opinions are formed on every `stride`-th record of a setup, and how many
that were is kept beside them.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import find
from inferscope.analysis.verdict import Result
from inferscope.report.launch_sums import LaunchSums
from inferscope.report.operator_sums import OperatorSums
from inferscope.report.phase_sums import PhaseSum, SketchSum
from inferscope.report.summary import segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.analysis.verdict import Finding
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["Digest", "FindingSum", "Row", "Setup", "SetupSum", "SlowPass", "digest", "everything"]

DIAGNOSED = 1_000
"""Of how many records, about, an opinion is formed."""
ROWS = 30
"""How many requests, about, are shown one by one, besides the slowest."""
SLOWEST = 8
DETAILED = 4
SLOW_PASSES = 20
SETUPS = 48
_ONE = 3
TEXTS = 40
"""How many different notes, versions and errors are kept; further ones are counted."""
OTHER = "others"
_Entry = TypeVar("_Entry", bound=Any)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What requests must share to be summed up together.

    Attributes:
        model: Its name; "others" where there are too many to tell apart.
        dtype: Of its weights.
        attention: Its implementation.
        device: torch device string.
        device_key: Identity of the device.
        batch_size: Sequences; the next power of two where there are too many setups; None where unknown or mixed.
        input_len: Prompt tokens per sequence, in the same way.
    """

    model: str
    dtype: str | None
    attention: str | None
    device: str | None
    device_key: str | None
    batch_size: int | None
    input_len: int | None

    @property
    def family(self) -> Setup:
        """The same for every batch and prompt."""
        return replace(self, batch_size=None, input_len=None)

    def coarse(self, level: int) -> Setup:
        """0: as it is, 1: sizes rounded up to powers of two, 2: without sizes, 3: one for everything."""
        if level == 0:
            return self
        if level == 1:
            return replace(self, batch_size=_rounded(self.batch_size), input_len=_rounded(self.input_len))
        return self.family if level < _ONE else everything(OTHER)


def everything(name: str) -> Setup:
    """A setup that tells nothing apart."""
    return Setup(model=name, dtype=None, attention=None, device=None, device_key=None, batch_size=None, input_len=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request that is shown by itself; its parts sum to its wall."""

    request_id: str
    setup: Setup
    wall_ns: int
    parts: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SlowPass:
    """One of the slowest passes of all records; the order is by excess."""

    excess_ns: int
    cycle_ns: int
    start_ns: int
    index: int
    phase: str
    cause: str
    request_id: str


@dataclass(slots=True, kw_only=True)
class FindingSum:
    """One finding over all requests in which it was made.

    Attributes:
        finding: The one with the largest saving, word by word.
        model: In whose requests it was made.
        request_id: Whose.
        requests: How many requests have it.
        low: Lower ends of the request's share that it would save.
        high: Upper ends.
        saved_ns: Time that it would save in all of these requests, middle of the interval.
    """

    finding: Finding
    model: str
    request_id: str
    requests: int = 0
    low: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    saved_ns: float = 0.0


@dataclass(slots=True, kw_only=True)
class SetupSum:
    """The requests of one setup.

    Attributes:
        setup: What they share.
        requests: How many.
        aborted: How many of them ended in an exception.
        diagnosed: On how many an opinion was formed.
        wall_ns: Sum of their walls.
        output_tokens: Sum, of those where it is known.
        output_wall_ns: Walls of those.
        walls_ns: One by one.
        ttfts_ns: Where known.
        tpots_ns: Where known.
        parts: Sum by (phase, kind); together they are `wall_ns`, exactly.
        unmarked: By (phase, kind): requests in which that part is not known apart.
        itl: Gaps between tokens.
        phases: By name.
        roofs: The device's ceilings.
    """

    setup: Setup
    requests: int = 0
    aborted: int = 0
    diagnosed: int = 0
    wall_ns: int = 0
    output_tokens: int = 0
    output_wall_ns: int = 0
    walls_ns: array[float] = field(default_factory=lambda: array("d"))
    ttfts_ns: array[float] = field(default_factory=lambda: array("d"))
    tpots_ns: array[float] = field(default_factory=lambda: array("d"))
    parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    unmarked: Counter[tuple[str, str]] = field(default_factory=Counter)
    itl: SketchSum = field(default_factory=SketchSum)
    phases: dict[str, PhaseSum] = field(default_factory=dict)
    roofs: DeviceSpec | None = None

    def add(self, record: GenerationRecord) -> tuple[tuple[str, str, int], ...]:
        """Take in one record; its ledger is returned."""
        self.requests += 1
        self.aborted += record.status != "ok"
        self.wall_ns += record.wall_ns
        self.walls_ns.append(record.wall_ns)
        if record.output_tokens is not None:
            self.output_tokens += record.output_tokens
            self.output_wall_ns += record.wall_ns
        if record.ttft_ns is not None:
            self.ttfts_ns.append(record.ttft_ns)
        if record.tpot_ns is not None:
            self.tpots_ns.append(record.tpot_ns)
        if record.itl_ns is not None:
            self.itl.add(record.itl_ns)
        for phase in record.phases:
            self.phases.setdefault(phase.name, PhaseSum(name=phase.name)).add(phase)
        parts = segments(record)
        for part in parts:
            if part.time_ns is None:
                self.unmarked[part.phase, part.kind] += 1
            else:
                self.parts[part.phase, part.kind] += part.time_ns
        return tuple((part.phase, part.kind, part.time_ns) for part in parts if part.time_ns)

    def judge(self, result: Result) -> None:
        """Take in an opinion on one of the records."""
        self.diagnosed += 1
        self.roofs = result.diagnosis.device or self.roofs
        for phase, verdict in zip(result.record.phases, result.diagnosis.phases, strict=True):
            self.phases[phase.name].judge(phase, verdict)

    def merge(self, other: SetupSum) -> None:
        """Take in another setup's requests."""
        for name in ("requests", "aborted", "diagnosed", "wall_ns", "output_tokens", "output_wall_ns"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.walls_ns, other.walls_ns), (self.ttfts_ns, other.ttfts_ns)):
            mine.extend(theirs)
        self.tpots_ns.extend(other.tpots_ns)
        self.parts.update(other.parts)
        self.unmarked.update(other.unmarked)
        self.itl.merge(other.itl)
        self.roofs = self.roofs or other.roofs
        for phase_name, phase in other.phases.items():
            self.phases.setdefault(phase_name, PhaseSum(name=phase_name)).merge(phase)


class Digest:
    """Records taken in one by one.

    Attributes:
        stride: An opinion is formed on every so many records of a setup.
        level: How coarse setups are, as `Setup.coarse`.
        count: Records taken in.
        setups: Sums by setup.
        findings: By (model, code, phase).
        operators: Of recorded passes.
        launches: What passes start and wait for, and what inferscope costs.
        rows: Every so many requests, and the slowest, with their ledgers.
        worst_causes: What made the slowest passes of all requests slow: how many of them by cause.
    """

    def __init__(self, *, expected: int, device_of: Callable[[GenerationRecord], DeviceSpec | None]) -> None:
        """Begin.

        Args:
            expected: About how many records will come: it decides how many are looked at closely.
            device_of: Whose ceilings to judge a record by; None for none.
        """
        self.stride = -(-max(expected, 1) // DIAGNOSED)
        self._row_stride = -(-max(expected, 1) // ROWS)
        self._device_of = device_of
        self.level = 0
        self.count = 0
        self.setups: dict[Setup, SetupSum] = {}
        self.findings: dict[tuple[str, str, str | None], FindingSum] = {}
        self.operators = OperatorSums()
        self.launches = LaunchSums()
        self.worst_causes: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.first_unix_ns: int | None = None
        self.last_unix_ns: int | None = None
        self._rows: list[Row] = []
        self._slow_passes: list[SlowPass] = []
        self._slowest: list[tuple[int, int, Result, Row]] = []
        self._detailed: list[tuple[int, int, Result, Row]] = []

    def add(self, record: GenerationRecord) -> None:
        """Take in one record."""
        self.count += 1
        setup = self._setup(record)
        parts = setup.add(record)
        row = Row(request_id=record.request_id, setup=setup.setup, wall_ns=record.wall_ns, parts=parts)
        if (self.count - 1) % self._row_stride == 0:
            self._rows.append(row)
        self._facts(record)
        self._passes(record)
        closely = (setup.requests - 1) % self.stride == 0
        self.operators.add(record)
        self.launches.add(record)
        if closely or self._is_slow(record):
            result = self._judged(record)
            if closely:
                setup.judge(result)
                self.operators.judge(result)
                self._found(result)
            self._keep(result, row)

    @property
    def diagnosed(self) -> int:
        """Records on which an opinion was formed."""
        return sum(setup.diagnosed for setup in self.setups.values())

    @property
    def total(self) -> SetupSum:
        """Everything in one sum."""
        total = SetupSum(setup=everything("all"))
        for setup in self.setups.values():
            total.merge(setup)
        return total

    @property
    def families(self) -> tuple[SetupSum, ...]:
        """Sums over batch and prompt, the longest first."""
        found: dict[Setup, SetupSum] = {}
        for setup in self.setups.values():
            family = setup.setup.family
            found.setdefault(family, SetupSum(setup=family)).merge(setup)
        return tuple(sorted(found.values(), key=lambda each: -each.wall_ns))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The requests shown one by one, slowest first."""
        rows = {row.request_id: row for row in (*self._rows, *(kept[-1] for kept in self._slowest))}
        return tuple(sorted(rows.values(), key=lambda row: (-row.wall_ns, row.request_id)))

    @property
    def kept(self) -> tuple[Result, ...]:
        """The requests that are kept whole: the slowest, and the slowest whose passes are kept; slowest first."""
        kept = {result.record.request_id: result for *_, result, _ in (*self._slowest, *self._detailed)}
        return tuple(sorted(kept.values(), key=lambda each: (-each.record.wall_ns, each.record.request_id)))

    @property
    def slow_passes(self) -> tuple[SlowPass, ...]:
        """The passes that exceed the typical pass of their request most."""
        return tuple(sorted(self._slow_passes, reverse=True))

    @property
    def ranked_findings(self) -> tuple[FindingSum, ...]:
        """First what would save most time, over all requests."""
        return tuple(sorted(self.findings.values(), key=lambda each: -each.saved_ns))

    def _setup(self, record: GenerationRecord) -> SetupSum:
        exact = _setup_of(record)
        key = exact.coarse(self.level)
        if key not in self.setups and len(self.setups) >= SETUPS:
            self._coarsen()
            key = exact.coarse(self.level)
        return self.setups.setdefault(key, SetupSum(setup=key))

    def _coarsen(self) -> None:
        while len(self.setups) >= SETUPS:
            self.level += 1
            merged: dict[Setup, SetupSum] = {}
            for old in self.setups.values():
                key = old.setup.coarse(self.level)
                merged.setdefault(key, SetupSum(setup=key)).merge(old)
            self.setups = merged

    def _facts(self, record: GenerationRecord) -> None:
        started = record.started_unix_ns
        self.first_unix_ns = started if self.first_unix_ns is None else min(started, self.first_unix_ns)
        self.last_unix_ns = started if self.last_unix_ns is None else max(started, self.last_unix_ns)
        _tally(self.notes, {*record.notes, *([record.model.cost_note] if record.model.cost_note else [])})
        _tally(self.versions, {f"{name} {version}" for name, version in record.versions})
        if record.status != "ok":
            _tally(self.errors, {record.error_type or "an exception"})

    def _passes(self, record: GenerationRecord) -> None:
        for phase in record.phases:
            for worst in phase.worst:
                if worst.excess_ns <= 0:  # the only pass of its phase exceeds nothing
                    continue
                _tally(self.worst_causes, {worst.cause})
                if len(self._slow_passes) >= SLOW_PASSES and worst.excess_ns <= self._slow_passes[0].excess_ns:
                    continue
                slow = SlowPass(
                    excess_ns=worst.excess_ns,
                    cycle_ns=worst.cycle_ns,
                    start_ns=worst.start_ns,
                    index=worst.index,
                    phase=phase.name,
                    cause=worst.cause,
                    request_id=record.request_id,
                )
                _push(self._slow_passes, slow, SLOW_PASSES)

    def _is_slow(self, record: GenerationRecord) -> bool:
        return _beats(self._slowest, SLOWEST, record) or (
            bool(record.pass_samples) and _beats(self._detailed, DETAILED, record)
        )

    def _keep(self, result: Result, row: Row) -> None:
        entry = (result.record.wall_ns, self.count, result, row)
        if _beats(self._slowest, SLOWEST, result.record):
            _push(self._slowest, entry, SLOWEST)
        if result.record.pass_samples and _beats(self._detailed, DETAILED, result.record):
            _push(self._detailed, entry, DETAILED)

    def _judged(self, record: GenerationRecord) -> Result:
        opinion = diagnose(record, device=self._device_of(record))
        return Result(record=record, diagnosis=opinion, findings=find(record, opinion))

    def _found(self, result: Result) -> None:
        model = result.record.model.name if self.level < _ONE else OTHER
        for finding in result.findings:
            key = (model, finding.code, finding.phase)
            seen = self.findings.get(key)
            best = seen.finding.saves if seen is not None else None
            if seen is None:
                seen = FindingSum(finding=finding, model=model, request_id=result.record.request_id)
                self.findings[key] = seen
            elif finding.saves is not None and (best is None or finding.saves.request_share > best.request_share):
                seen.finding, seen.request_id = finding, result.record.request_id
            seen.requests += 1
            if finding.saves is not None:
                seen.low.append(finding.saves.low)
                seen.high.append(finding.saves.high)
                seen.saved_ns += finding.saves.request_share * result.record.wall_ns


def digest(
    records: Iterable[GenerationRecord],
    *,
    expected: int,
    device_of: Callable[[GenerationRecord], DeviceSpec | None],
) -> Digest:
    """All of `records`, read once; arguments as for `Digest`."""
    found = Digest(expected=expected, device_of=device_of)
    for record in records:
        found.add(record)
    return found


def _setup_of(record: GenerationRecord) -> Setup:
    batch, tokens = record.batch_size, record.input_tokens
    model = record.model
    return Setup(
        model=model.name,
        dtype=model.dtype,
        attention=model.attention,
        device=model.device,
        device_key=record.device_key,
        batch_size=batch,
        input_len=round(tokens / batch) if batch and tokens is not None else None,
    )


def _rounded(value: int | None) -> int | None:
    return None if value is None else 1 << max(value - 1, 0).bit_length()


def _tally(counts: Counter[str], texts: set[str]) -> None:
    for text in texts:
        counts[text if text in counts or len(counts) < TEXTS else OTHER] += 1


def _beats(heap: list[tuple[int, int, Result, Row]], size: int, record: GenerationRecord) -> bool:
    return len(heap) < size or record.wall_ns > heap[0][0]


def _push(heap: list[_Entry], entry: _Entry, size: int) -> None:
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)
