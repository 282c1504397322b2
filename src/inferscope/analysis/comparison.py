"""Two sets of records beside each other: what changed, by how much, and what cannot be told.

Only requests of the same work are compared: equal batch, prompt tokens and new tokens. Where no two requests are that
much alike, what does not depend on the number of tokens is compared among similar ones (lengths within the same power
of two), and that is said. Each interval holds for itself in 95 of 100 cases; of twenty, one is wrong on average.
Requests of one process share its luck. Where both sides were recorded in turns, medians of turns are compared, and the
intervals hold what differs from turn to turn; otherwise they are about requests alone, and that is said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.change import Change, change_of, device_change_of
from inferscope.analysis.claims import Prediction, VerdictChange, judge, scored, verdict_changes
from inferscope.analysis.measures import COUNTS, JUDGED, KEPT, TIMES, Measured, collect, decode_costs
from inferscope.analysis.shift import median_interval
from inferscope.analysis.turns import FEWEST_TURNS, in_turns
from inferscope.errors import NothingToCompareError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from inferscope.analysis.change import Unit
    from inferscope.analysis.claims import Judged
    from inferscope.analysis.measures import SideOfComparison
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["TOLERANCE", "Comparison", "Difference", "Matching", "Side", "Spread", "TokenAgreement", "compare"]

TOLERANCE = 0.02
"""Ratios nearer to 1 than this count as the same."""

Matching = Literal["paired", "stratified", "similar", "none"]

_PER_TOKEN = ("tpot", *COUNTS)
_SHOWN_VALUES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One number over all requests of a set, whatever their work.

    Attributes:
        low: The smallest.
        median: The one in the middle.
        high: The largest.
        median_low: Where the median lies in 95 of 100 cases, lower end; None below six requests.
        median_high: Upper end.
    """

    low: float
    median: float
    high: float
    median_low: float | None
    median_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two sets.

    Attributes:
        requests: Requests that ended well.
        aborted: Requests that did not; they are compared with nothing.
        matched: Requests that have a counterpart of the same work (of similar work, where nothing better is there).
        spreads: Times in nanoseconds and counts, by metric, of all its requests.
    """

    requests: int
    aborted: int
    matched: int
    spreads: dict[str, Spread]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that makes it not the same work.

    Attributes:
        what: "model", "device", "dtype", "attention", "batch" or "lengths".
        baseline: What it is there.
        candidate: What it is here.
    """

    what: str
    baseline: str
    candidate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAgreement:
    """Whether the same tokens came out, of requests that pair up one to one.

    Attributes:
        compared: Pairs of which both outputs have a digest.
        equal: Those whose digests are equal.
        why: What stands in the way where nothing could be compared; "" otherwise.
    """

    compared: int
    equal: int
    why: str = ""

    @property
    def share(self) -> float | None:
        """Equal over compared (0..1); None where nothing was compared."""
        return self.equal / self.compared if self.compared else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What became of the baseline.

    Attributes:
        baseline: The one set.
        candidate: The other.
        turns: In how many turns either side was recorded, the smaller number; None where single requests are compared.
        matching: How requests were matched: "paired" (one to one), "stratified" (by their work, several of each),
            "similar" (by roughly their work) or "none".
        differences: What makes it not the same work; empty where it is.
        versions: Software that is another version, likewise.
        changes: Times of the request, counts, times of each phase, then the rest of the ledger.
        verdicts: By phase.
        predictions: Findings that went, and what they had promised.
        tokens: Whether the same tokens came out.
        notes: What these numbers do not cover.
    """

    baseline: Side
    candidate: Side
    matching: Matching
    turns: int | None
    differences: tuple[Difference, ...]
    versions: tuple[Difference, ...]
    changes: tuple[Change, ...]
    verdicts: tuple[VerdictChange, ...]
    predictions: tuple[Prediction, ...]
    tokens: TokenAgreement
    notes: tuple[str, ...]

    @property
    def same_work(self) -> bool:
        """Whether model, device, dtype, attention, batch and lengths are the same."""
        return not self.differences

    def change(self, metric: str) -> Change | None:
        """The change of that metric, or None where no request has it."""
        return next((change for change in self.changes if change.metric == metric), None)

    def phase(self, name: str) -> tuple[Change, ...]:
        """The changes of that phase; empty where the sets do not both have it."""
        return tuple(change for change in self.changes if change.metric.startswith(f"{name}."))


def compare(
    baseline: Iterable[GenerationRecord],
    candidate: Iterable[GenerationRecord],
    *,
    ceilings: Callable[[GenerationRecord], DeviceSpec | None] = lambda _: None,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Compare two sets of records, each read once and in bounded memory.

    Args:
        baseline: Before.
        candidate: After.
        ceilings: What is known of the device that a record was made on, for verdicts and predictions.
        tolerance: Ratios nearer to 1 than this count as the same.

    Raises:
        NothingToCompareError: A set holds no request that ended well, or they have no phase in common.
    """
    first, second = collect(baseline), collect(candidate)
    _refuse_nothing(first, second)
    matching, alike, pairs = _matched(first.measured, second.measured)
    one, other = judge(first.judged, ceilings), judge(second.judged, ceilings)
    costs = decode_costs(first.judged, one.diagnoses), decode_costs(second.judged, other.diagnoses)
    turns = in_turns(first.measured, second.measured)
    observed = (first.measured, second.measured) if turns is None else turns[:2]
    changes = _changes(
        observed,
        costs,
        alike,
        metrics=_metrics(first.measured, second.measured, costs, only=_PER_TOKEN if matching == "similar" else None),
        tolerance=tolerance,
        unit="requests" if turns is None else "turns",
    )
    return Comparison(
        baseline=_side(first, costs[0], pairs[0]),
        candidate=_side(second, costs[1], pairs[1]),
        matching=matching,
        turns=None if turns is None else turns[2],
        differences=(*_facts(first.facts, second.facts), *_lengths(first, second, matching, pairs)),
        versions=tuple(_facts(first.versions, second.versions)),
        changes=changes,
        verdicts=verdict_changes(one, other),
        predictions=scored(one, other, {change.metric: change for change in changes}),
        tokens=_tokens(first.measured, second.measured),
        notes=tuple(_notes(first, second, one, in_turns=turns is not None)),
    )


def _refuse_nothing(first: SideOfComparison, second: SideOfComparison) -> None:
    for name, side in (("baseline", first), ("candidate", second)):
        if not side.requests:
            aborted = f": all {side.aborted} were aborted" if side.aborted else ""
            raise NothingToCompareError(f"the {name} has no request that ended well{aborted}")
    if not first.phases.keys() & second.phases.keys():
        raise NothingToCompareError(
            f"no phase in common: the baseline has {', '.join(first.phases) or 'none'}, the candidate "
            f"{', '.join(second.phases) or 'none'}"
        )


def _exactly(one: Measured) -> Hashable:
    return one.shape


def _roughly(one: Measured) -> Hashable:
    return one.shape.roughly


def _matched(
    first: Sequence[Measured], second: Sequence[Measured]
) -> tuple[Matching, Callable[[Measured], Hashable], tuple[int, int]]:
    """How requests are matched, by what, and how many of either side have a counterpart."""
    known = [one for one in first if one.shape.known], [one for one in second if one.shape.known]
    for alike in (_exactly, _roughly):
        one, other = (Counter(map(alike, side)) for side in known)
        common = one.keys() & other.keys()
        if common:
            pairs = sum(one[key] for key in common), sum(other[key] for key in common)
            single = all(one[key] == other[key] == 1 for key in common)
            return ("similar" if alike is _roughly else "paired" if single else "stratified"), alike, pairs
    return "none", _exactly, (0, 0)


def _changes(
    observed: Sequence[Sequence[Measured]],
    costs: tuple[Sequence[Measured], Sequence[Measured]],
    alike: Callable[[Measured], Hashable],
    *,
    metrics: Iterable[str],
    tolerance: float,
    unit: Unit,
) -> tuple[Change, ...]:
    one, other = ([each for each in side if each.shape.known] for side in observed)
    made = []
    for metric in metrics:
        counted = metric in {"operators_per_token", "bytes_per_token"}
        sides = costs if counted else (one, other)
        if metric.endswith(".device"):
            phase = metric.removesuffix(".device")
            device = device_change_of(phase, *sides, alike=alike, tolerance=tolerance, unit=unit)
            made += [] if device is None else [device]
        else:
            made.append(
                change_of(metric, *sides, alike=alike, tolerance=tolerance, unit="requests" if counted else unit)
            )
    return tuple(made)


def _metrics(
    first: Sequence[Measured],
    second: Sequence[Measured],
    costs: tuple[Sequence[Measured], Sequence[Measured]],
    *,
    only: Sequence[str] | None,
) -> list[str]:
    """What both sides have, in the order in which it is shown."""
    one = dict.fromkeys(name for each in (*first, *costs[0]) for name in each.values)
    other = {name for each in (*second, *costs[1]) for name in each.values}
    both = [name for name in one if name in other]
    parts = [name.replace(".device.low", ".device") for name in both if not name.endswith(".device.high")]
    head = [name for name in (*TIMES, *COUNTS) if name in both]
    ordered = [*head, *(name for name in parts if "." in name), *(n for n in parts if "." not in n and n not in head)]
    return [name for name in ordered if only is None or name in only or name.endswith(".pass")]


def _side(side: SideOfComparison, costs: Iterable[Measured], matched: int) -> Side:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for one in (*side.measured, *costs):
        for name, value in one.values.items():
            values[name].append(value)
    return Side(
        requests=side.requests,
        aborted=side.aborted,
        matched=matched,
        spreads={name: _spread(numbers) for name, numbers in values.items()},
    )


def _spread(values: list[float]) -> Spread:
    low, high = median_interval(values) or (None, None)
    return Spread(low=min(values), median=median(values), high=max(values), median_low=low, median_high=high)


def _facts(first: dict[str, Counter[str]], second: dict[str, Counter[str]]) -> Iterable[Difference]:
    for what in dict.fromkeys((*first, *second)):
        one, other = first.get(what, Counter()), second.get(what, Counter())
        if one.keys() != other.keys():
            yield Difference(what=what, baseline=_told(one), candidate=_told(other))


def _told(counter: Counter[str]) -> str:
    values = [value for value, _ in counter.most_common(_SHOWN_VALUES)]
    return ", ".join(values) + (f" and {len(counter) - len(values)} more" if len(counter) > len(values) else "") or "–"  # noqa: RUF001 - as tables have it


def _lengths(
    first: SideOfComparison, second: SideOfComparison, matching: Matching, pairs: tuple[int, int]
) -> Iterable[Difference]:
    ends = (len(first.measured), len(second.measured))
    if matching in {"paired", "stratified"} and pairs == ends:
        return
    word = "a similar" if matching == "similar" else "an equal"
    said = [
        f"{pair:,} of {end:,} requests have {word} one in the other set" for pair, end in zip(pairs, ends, strict=True)
    ]
    yield Difference(what="lengths", baseline=said[0], candidate=said[1])


def _tokens(first: Sequence[Measured], second: Sequence[Measured]) -> TokenAgreement:
    here = {(one.shape, one.number): one.tokens_digest for one in first}
    pairs = [(here[one.shape, one.number], one.tokens_digest) for one in second if (one.shape, one.number) in here]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    if both:
        return TokenAgreement(compared=len(both), equal=sum(one == other for one, other in both))
    why = "not recorded: set INFERSCOPE_OUTPUT_DIGEST=1 while recording" if pairs else "no two requests pair up"
    return TokenAgreement(compared=0, equal=0, why=why)


def _notes(first: SideOfComparison, second: SideOfComparison, judged: Judged, *, in_turns: bool) -> Iterable[str]:
    if in_turns:
        yield "recorded in turns: medians of turns are compared, and what differs from turn to turn is in the intervals"
    else:
        yield (
            "not recorded in turns: the intervals are about requests alone. What the machine or the process did "
            f"otherwise meanwhile looks like a change; record both sides in at least {FEWEST_TURNS} turns to tell"
        )
    yield "each interval holds for itself in 95 of 100 cases: of twenty, one is wrong on average"
    for name, side in (("baseline", first), ("candidate", second)):
        if side.requests > KEPT:
            yield f"of the {name}'s {side.requests:,} requests {KEPT:,} were compared, by a hash of their lengths"
        unknown = sum(not one.shape.known for one in side.measured)
        if unknown:
            yield f"{unknown:,} requests of the {name} are left out: their batch or lengths are not known"
    if max(first.requests, second.requests) > JUDGED and judged.diagnoses:
        yield f"verdicts and findings are those of at most {JUDGED} requests of either set"
