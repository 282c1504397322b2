"""What a report says about many requests, in words and tables: the same in every format."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from inferscope.report.chart import Grid, setup_label
from inferscope.report.phase_sums import median
from inferscope.report.summary import finding_texts
from inferscope.report.units import UNKNOWN, clean, count, duration_ns, percent, ratio, scaled

if TYPE_CHECKING:
    from inferscope.report.changes import Changes
    from inferscope.report.digest import Digest, FindingSum, SetupSum
    from inferscope.report.phase_sums import PhaseSum
    from inferscope.report.summary import FindingText
    from inferscope.specs import DeviceSpec

__all__ = [
    "FoundText",
    "Report",
    "Source",
    "causes",
    "findings",
    "headline",
    "looked_at",
    "operators",
    "overhead",
    "phases",
    "requests",
    "slow_passes",
    "when",
]

_HOLDS = {
    "compute": "arithmetic, at the compute roof",
    "memory": "memory traffic, at the memory roof",
    "cache": "traffic out of the last-level cache",
    "inefficient": "kernels that stay below what the device gives",
    "overhead": "overhead: the host around and between the operators",
    "communication": "communication between devices",
}
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of records."""

    path: str
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a report is made from.

    Attributes:
        found: The requests.
        sources: Where their records came from.
        devices: Those with ceilings, that verdicts were held against.
        datasheets: What their makers promise, by `DeviceSpec.key`, where that is known.
        unjudged: Why some records were held against no ceilings, in words.
        baseline: The requests before, where two sets are compared.
        baseline_sources: Where their records came from.
        changes: From the ones to the others.
        version: Of inferscope.
    """

    found: Digest
    sources: tuple[Source, ...]
    devices: tuple[DeviceSpec, ...]
    datasheets: dict[str, DeviceSpec]
    unjudged: tuple[str, ...]
    baseline: Digest | None
    baseline_sources: tuple[Source, ...]
    changes: Changes | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundText:
    """A finding over all requests in words."""

    lead: str
    words: FindingText


def headline(found: Digest) -> tuple[str, str]:
    """What holds the requests back, and what would help most: a sentence or two for each."""
    if not found.count:
        return "There are no records.", ""
    families = found.families
    family = families[0]
    wall_ns = sum(each.wall_ns for each in families)
    if not family.phases or not family.wall_ns:
        return f"{count(found.count)} requests, and no phase in them that could be told.", ""
    phase = max(family.phases.values(), key=lambda each: each.wall_ns)
    lead = f"{family.setup.model}: {phase.name} takes {percent(phase.wall_ns / family.wall_ns)} of the time, "
    return clean(lead + _held_back(phase)), clean(f"{_counted(found, family, wall_ns)} {_doubt(phase)}{_helps(found)}")


def _counted(found: Digest, family: SetupSum, wall_ns: int) -> str:
    text = f"{_requests(family.requests)} took {duration_ns(family.wall_ns)}"
    if len(found.families) == 1:
        return f"{text}."
    return (
        f"{text}, {percent(family.wall_ns / wall_ns)} of the time of all {count(found.count)}; the others stand below."
    )


def _held_back(phase: PhaseSum) -> str:
    shares = list(phase.shares.items())
    if not shares:
        reason = phase.reasons.most_common(1)[0][0] if phase.reasons else "nothing is known about it"
        return f"and what holds it back is not known: {reason}."
    (first, share), *rest = shares
    text = f"held back most by {_HOLDS.get(first, first)} ({percent(share)} of it)"
    if rest:
        text += f", then by {_HOLDS.get(rest[0][0], rest[0][0])} ({percent(rest[0][1])})"
    return text + "."


def _doubt(phase: PhaseSum) -> str:
    judged = sum(phase.bounds.values())
    if phase.shares and phase.low_confidence > _MOSTLY * judged and phase.reasons:
        return f"Confidence in that is low: {phase.reasons.most_common(1)[0][0]}. "
    return ""


def _helps(found: Digest) -> str:
    useful = [each for each in found.ranked_findings if each.low and each.finding.severity in {"OPT", "WARN"}]
    if not useful:
        return "No finding says what would help." if found.findings else "Nothing stands out that would help."
    best = useful[0]
    return (
        f"Most to gain ({best.finding.phase or 'request'}, {percent(median(best.low))} to {percent(median(best.high))} "
        f"of a request, estimated): {best.finding.action}"
    )


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{count(number)} requests"


def looked_at(found: Digest) -> str:
    """How many records every part of the report rests on."""
    every = "each of them" if found.stride == 1 else f"every {count(found.stride)}th of a setup"
    merged = (
        "",
        "; sizes are rounded up to powers of two",
        "; sizes are not told apart",
        "; models are not told apart",
    )
    return (
        f"Times are summed over all {_requests(found.count)}, exactly. Opinions rest on {count(found.diagnosed)} "
        f"({every}). {count(len(found.setups))} setups{merged[found.level]}. Shown singly: "
        f"{count(len(found.rows))} ledgers, {count(len(found.kept))} timelines (the slowest), "
        f"{count(len(found.slow_passes))} of the slowest passes."
    )


def overhead(found: Digest) -> str:
    """What inferscope itself cost, as it measured it."""
    total = found.total
    own = total.parts["", "self"]
    passes = sum(phase.passes for phase in total.phases.values())
    share = percent(own / total.wall_ns if total.wall_ns else None)
    recording = ", recording operators included" if found.operators.by_key else ""
    return (
        f"inferscope itself took {duration_ns(own)} inside the requests: {share} "
        f"of their wall, {duration_ns(own / passes) if passes else UNKNOWN} per pass{recording}, measured."
    )


def when(found: Digest) -> str:
    """When the requests ran."""
    if found.first_unix_ns is None or found.last_unix_ns is None:
        return UNKNOWN
    first, last = (_utc(moment) for moment in (found.first_unix_ns, found.last_unix_ns))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _utc(unix_ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_ns / 1e9, tz=timezone.utc):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


def requests(found: Digest) -> Grid:
    """Setups, the longest first, with what their callers feel."""
    ordered = sorted(found.setups.values(), key=lambda each: -each.wall_ns)
    rows, numbers = [], []
    for each in ordered:
        rate = each.output_tokens / (each.output_wall_ns / 1e9) if each.output_wall_ns else None
        itl = each.itl.finished()
        values = (
            float(each.requests),
            median(each.walls_ns),
            median(each.ttfts_ns),
            median(each.tpots_ns),
            itl.p99,
            rate,
            float(each.aborted),
        )
        times = (duration_ns(value) for value in values[1:5])
        rate_text = UNKNOWN if rate is None else f"{ratio(rate)} token/s"
        rows.append((setup_label(each.setup), count(each.requests), *times, rate_text, count(each.aborted)))
        numbers.append((None, *values))
    heading = ("setup", "requests", "wall p50", "TTFT p50", "TPOT p50", "ITL p99", "rate", "aborted")
    return Grid(heading=heading, rows=tuple(rows), numbers=tuple(numbers))


def phases(found: Digest) -> Grid:
    """Phases of each model with what holds them back."""
    rows, numbers = [], []
    for family in found.families:
        for phase in family.phases.values():
            passes = phase.pass_ns.finished()
            share = phase.wall_ns / family.wall_ns if family.wall_ns else None
            shares = " · ".join(f"{name} {percent(part)}" for name, part in phase.shares.items())
            rows.append(
                (
                    setup_label(family.setup, sizes=False),
                    phase.name,
                    duration_ns(phase.wall_ns),
                    percent(share),
                    count(phase.passes),
                    duration_ns(passes.p50),
                    duration_ns(passes.p99),
                    percent(phase.middle("mfu")),
                    percent(phase.middle("mbu")),
                    phase.bound,
                    shares or UNKNOWN,
                    _confidence(phase),
                )
            )
            values = (
                phase.wall_ns,
                share,
                phase.passes,
                passes.p50,
                passes.p99,
                phase.middle("mfu"),
                phase.middle("mbu"),
            )
            numbers.append((None, None, *values, None, None, None))
    heading = (
        *("model", "phase", "time", "share", "passes", "pass p50", "pass p99", "MFU", "MBU", "bound"),
        *("shares of its time", "confidence"),
    )
    return Grid(heading=heading, rows=tuple(rows), numbers=tuple(numbers))


def _confidence(phase: PhaseSum) -> str:
    judged = sum(phase.bounds.values())
    if not judged:
        return UNKNOWN
    if not phase.low_confidence:
        return f"high in all {count(judged)}"
    why = next((reason for reason, _ in phase.reasons.most_common(1)), "no reason given")
    return f"low in {count(phase.low_confidence)} of {count(judged)}: {why}"


def findings(found: Digest) -> tuple[FoundText, ...]:
    """The findings, largest saving first, each in the words of the request in which it saves most."""
    judged: dict[str, int] = {}
    for family in found.families:
        judged[family.setup.model] = judged.get(family.setup.model, 0) + family.diagnosed
    ranked = found.ranked_findings
    words = finding_texts([each.finding for each in ranked])
    return tuple(
        FoundText(lead=_finding_lead(each, judged.get(each.model)), words=text)
        for each, text in zip(ranked, words, strict=True)
    )


def _finding_lead(each: FindingSum, judged: int | None) -> str:
    lead = f"{each.model}: in {count(each.requests)} of {count(judged)} requests looked at"
    if each.low:
        lead += f"; saves {percent(median(each.low))} to {percent(median(each.high))} of a request (medians, estimated)"
    return clean(f"{lead}. In the words of request {each.request_id}:")


def operators(found: Digest) -> Grid:
    """Recorded operators per recorded pass, longest first."""
    sums = found.operators
    ordered = sorted(sums.by_key.items(), key=lambda item: -item[1].time_ns)
    rows: list[tuple[str, ...]] = []
    numbers: list[tuple[float | None, ...]] = []
    for key, each in ordered:
        passes = max(each.passes, 1)
        launches = None if each.launches is None else each.launches / passes
        values = (
            each.time_ns / passes,
            each.share,
            each.calls / passes,
            launches,
            each.middle("flops_per_s"),
            each.middle("roof_share"),
        )
        bound = each.bounds.most_common(1)[0][0] if each.bounds else UNKNOWN
        rows.append(
            (
                key.model,
                key.phase,
                key.group,
                key.name or "whole group",
                duration_ns(values[0]),
                percent(values[1]),
                ratio(values[2]),
                ratio(launches),
                scaled(values[4], "FLOP/s"),
                percent(values[5]),
                bound,
                count(each.passes),
            )
        )
        numbers.append((None, None, None, None, *values, None, float(each.passes)))
    for (model, phase), time_ns in sums.python_ns.items():
        passes, wall_ns = sums.passes[model, phase], sums.wall_ns[model, phase]
        each_ns, share = time_ns / max(passes, 1), time_ns / wall_ns if wall_ns else None
        cells = (model, phase, "no operator", "Python between", duration_ns(each_ns), percent(share))
        rows.append((*cells, *(UNKNOWN,) * 5, count(passes)))
        numbers.append((None, None, None, None, each_ns, share, *(None,) * 5, float(passes)))
    heading = (
        *("model", "phase", "group", "operator", "time per pass", "share", "calls", "launches", "FLOP/s"),
        *("share of roof", "bound", "recorded passes"),
    )
    return Grid(heading=heading, rows=tuple(rows), numbers=tuple(numbers))


def slow_passes(found: Digest) -> Grid:
    """The passes that exceed the typical pass of their request most."""
    rows = tuple(
        (
            each.request_id,
            f"{each.phase} pass {each.index}",
            duration_ns(each.start_ns),
            duration_ns(each.cycle_ns),
            duration_ns(each.excess_ns),
            each.cause,
        )
        for each in found.slow_passes
    )
    numbers = tuple((None, None, each.start_ns, each.cycle_ns, each.excess_ns, None) for each in found.slow_passes)
    heading = ("request", "pass", "into the request", "cycle", "over the typical pass", "mostly")
    return Grid(heading=heading, rows=rows, numbers=numbers)


def causes(found: Digest) -> str:
    """What made the slowest passes of all requests slow."""
    total = sum(found.worst_causes.values())
    each = ", ".join(f"{cause} {count(number)}" for cause, number in found.worst_causes.most_common())
    return f"{count(total)} slow passes in all records, by cause: {each}." if total else ""
