"""What a report says about one result, as words: the same for every way of showing it.

Every number is written with how it was obtained; what is unknown is a dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.report.ceilings import device_title, roof_source
from inferscope.report.units import (
    UNKNOWN,
    clean,
    count,
    duration_ns,
    metric,
    percent,
    ratio,
    scaled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.verdict import Evidence, Finding, PhaseDiagnosis, Result, Savings
    from inferscope.records import GenerationRecord, PhaseRecord

__all__ = [
    "FINDINGS_TITLE",
    "GAP",
    "KINDS",
    "MARKS",
    "NO_FINDINGS",
    "PROVENANCE",
    "FindingText",
    "Kind",
    "Segment",
    "bar_cells",
    "device_line",
    "facts",
    "finding_texts",
    "headline",
    "latencies",
    "notes",
    "phase_tables",
    "segments",
    "self_time",
    "verdict_lines",
    "worst_lines",
]

MARKS = {"measured": "m", "analytic": "a", "datasheet": "d", "bound": "b", "verdict": "v"}
"""One letter for each way a number is known, for places too narrow for the word."""

GAP = 2
"""Spaces between two columns."""

PROVENANCE = (
    "known by: m = measured here · a = analytic, counted from the operators' shapes · d = datasheet · "
    "b = bound, a limit and not a reading · v = verdict, concluded from the others"
)

FINDINGS_TITLE = "Findings, largest saving first; they overlap"
NO_FINDINGS = "none: nothing here stands out"

_TTFT_METHODS = {
    "stop_check": "measured, first token selected",
    "streamer": "measured, handed to the streamer",
    "update": "measured, token taken in by the loop",
    "next_pass": "bound: at most, from the next pass",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A part of the ledger: how it is drawn and what it holds."""

    glyph: str
    colour: str
    meaning: str


KINDS = {
    "queue": Kind(glyph="~", colour="white", meaning="queued, no pass prepared yet"),
    "setup": Kind(glyph="░", colour="cyan", meaning="before the first forward"),
    "issue": Kind(glyph="█", colour="green", meaning="inside forwards"),
    "select": Kind(glyph="▓", colour="yellow", meaning="between forwards (sampling, stopping)"),
    "wait": Kind(glyph="▒", colour="magenta", meaning="reading the token from the device"),
    "deliver": Kind(glyph="≡", colour="blue", meaning="in the streamer"),
    "shared": Kind(glyph="/", colour="cyan", meaning="other requests' part of shared passes"),
    "tail": Kind(glyph="·", colour="cyan", meaning="after the last token"),
    "self": Kind(glyph="!", colour="red", meaning="inferscope itself"),
    "residual": Kind(glyph="?", colour="white", meaning="what could not be placed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line of the phase table: a cell per phase, and how the numbers are known."""

    label: str
    cells: tuple[str, ...]
    source: str

    @property
    def mark(self) -> str:
        """The source in letters: "a/m" for "analytic/measured"."""
        return "/".join("+".join(MARKS.get(word, word) for word in part.split("+")) for part in self.source.split("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One part of the ledger.

    Attributes:
        phase: The phase it belongs to; "" for the request's own parts.
        kind: Key of `KINDS`.
        time_ns: None where it is not known apart.
        share: Of the request's wall (0..1).
    """

    phase: str
    kind: str
    time_ns: int | None
    share: float | None

    @property
    def label(self) -> str:
        """As the legend names it: "decode select", "tail"."""
        return f"{self.phase} {self.kind}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingText:
    """A finding in words: a title, and labelled lines under it."""

    severity: str
    title: str
    lines: tuple[tuple[str, str], ...]


def headline(result: Result) -> str:
    """The model and how it ran."""
    model = result.record.model
    parts = [model.name, model.dtype, model.attention, f"on {model.device}" if model.device else None]
    return clean(" · ".join(part for part in parts if part))


def facts(record: GenerationRecord) -> str:
    """Size and outcome of the request."""
    padding = record.padding_tokens
    parts = [
        f"batch {count(record.batch_size)}",
        f"{count(record.input_tokens)} tokens in" + (f" + {count(padding)} padding" if padding else ""),
        f"{count(record.output_tokens)} out",
        f"wall {duration_ns(record.wall_ns)}",
    ]
    if record.status != "ok":
        parts.append(f"aborted by {record.error_type or 'an exception'}")
    elif record.finish_reasons:
        parts.append("ended by " + ", ".join(sorted(set(record.finish_reasons))))
    return clean(" · ".join(parts))


def device_line(result: Result) -> str:
    """Whose ceilings the opinions rest on."""
    device = result.diagnosis.device
    if device is None:
        return "held against no ceilings: `inferscope calibrate` measures this machine's"
    return f"held against {device_title(device)} · ceilings {roof_source(device)}"


def _phase_rows(result: Result) -> tuple[_Row, ...]:
    """The phase table: quantities down, phases across."""
    phases = result.record.phases
    verdicts = [result.diagnosis.phase(phase.name) for phase in phases]
    return (
        *_measured_rows(phases, result.record.wall_ns),
        *_cost_rows(verdicts),
        *_verdict_rows(verdicts, roof_source(result.diagnosis.device)),
    )


def _row(label: str, cells: list[str], source: str) -> _Row:
    """A line of the phase table; what no phase knows has no source either."""
    known = any(cell != UNKNOWN for cell in cells)
    return _Row(label=label, cells=tuple(cells), source=source if known else UNKNOWN)


def _measured_rows(phases: Sequence[PhaseRecord], wall_ns: int) -> tuple[_Row, ...]:
    def row(label: str, cells: list[str], source: str = "measured") -> _Row:
        return _row(label, cells, source)

    rows = (
        row("time", [duration_ns(p.wall_ns) for p in phases]),
        row("share of wall", [percent(p.wall_ns / wall_ns if wall_ns else None) for p in phases]),
        row("passes", [count(p.passes) for p in phases]),
        *_mixed_rows(phases),
        row("tokens", [count(p.tokens) for p in phases]),
        row("pass p50", [duration_ns(p.pass_ns.p50) for p in phases]),
        row("pass p99", [duration_ns(p.pass_ns.p99) for p in phases]),
        row("off CPU", [duration_ns(p.ledger.offcpu_ns) for p in phases]),
        row("GC pauses", [duration_ns(p.ledger.gc_ns) for p in phases]),
    )
    if not any(phase.device for phase in phases):
        return rows
    seen = "+".join(sorted({phase.device.provenance for phase in phases if phase.device}))
    return (
        *rows,
        row("device at least", [duration_ns(p.device.low_ns if p.device else None) for p in phases], seen),
        row("device at most", [duration_ns(p.device.high_ns if p.device else None) for p in phases], seen),
        *_lag_rows(phases),
    )


def _lag_rows(phases: Sequence[PhaseRecord]) -> tuple[_Row, ...]:
    lags = [None if phase.device is None else phase.device.lag_share for phase in phases]
    return (_row("lag behind host", [percent(lag) for lag in lags], "measured"),) if any(lags) else ()


def _mixed_rows(phases: Sequence[PhaseRecord]) -> tuple[_Row, ...]:
    if all(phase.mixed_passes is None for phase in phases):
        return ()
    return (_row("mixed passes", [count(phase.mixed_passes) for phase in phases], "measured"),)


def _cost_rows(verdicts: Sequence[PhaseDiagnosis | None]) -> tuple[_Row, ...]:
    costs = [verdict.cost if verdict else None for verdict in verdicts]

    def row(label: str, cells: list[str]) -> _Row:
        return _row(label, cells, "analytic")

    return (
        row("FLOPs", [scaled(c.flops if c else None, "FLOP") for c in costs]),
        row("bytes", [scaled(c.bytes.model if c else None, "B") for c in costs]),
        row("bytes, fused", [scaled(c.bytes.minimum if c else None, "B") for c in costs]),
        row("bytes, executed", [scaled(c.bytes.executed if c else None, "B") for c in costs]),
        row("FLOP per byte", [ratio(c.arithmetic_intensity if c else None) for c in costs]),
    )


def _verdict_rows(verdicts: Sequence[PhaseDiagnosis | None], roof: str) -> tuple[_Row, ...]:
    return (
        _row(
            "achieved FLOP/s",
            [scaled(v.achieved_flops_per_s if v else None, "FLOP/s") for v in verdicts],
            "analytic/measured",
        ),
        _row(
            "achieved B/s",
            [scaled(v.achieved_bytes_per_s if v else None, "B/s") for v in verdicts],
            "analytic/measured",
        ),
        _row("share of roof", [percent(v.roof_share if v else None) for v in verdicts], f"analytic/{roof}"),
        _row("MFU", [percent(v.mfu if v else None) for v in verdicts], f"analytic/{roof}"),
        _row("MBU", [percent(v.mbu if v else None) for v in verdicts], f"analytic/{roof}"),
        _row("bound", [v.bound if v else UNKNOWN for v in verdicts], "verdict"),
        _row("confidence", [v.confidence if v else UNKNOWN for v in verdicts], "verdict"),
    )


def phase_tables(result: Result, width: int) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The phase table cut to `width` characters: one or more tables of lines of cells, the first a heading.

    Where the words for the sources do not fit, their letters stand instead; where the phases do not fit
    beside each other, they go into tables below each other.
    """
    names = [clean(phase.name) for phase in result.record.phases]
    rows = _phase_rows(result)
    if not names:
        return ()
    columns = [max(len(name), *(len(row.cells[i]) for row in rows)) for i, name in enumerate(names)]
    label = max(len(row.label) for row in rows)
    words = max(len(row.source) for row in rows)
    wide = label + sum(columns) + words + GAP * (len(names) + 1) <= width
    known = words if wide else max(len("known"), *(len(row.mark) for row in rows))
    fit = max((width - label - known - GAP) // (max(columns) + GAP), 1)
    groups = [range(len(names))] if wide else [range(i, len(names))[:fit] for i in range(0, len(names), fit)]
    return tuple(
        (
            ("phase", *(names[i] for i in group), "known"),
            *((row.label, *(row.cells[i] for i in group), row.source if wide else row.mark) for row in rows),
        )
        for group in groups
    )


def verdict_lines(result: Result) -> tuple[str, ...]:
    """Per phase: its shares, largest first, and what weakens the verdict."""
    lines = []
    for verdict in result.diagnosis.phases:
        ordered = sorted(verdict.shares.items(), key=lambda item: -item[1])
        shares = " · ".join(f"{name} {percent(share)}" for name, share in ordered if share > 0)
        lines.append(f"{verdict.name}: {shares or 'no shares known'}")
        lines += [f"{verdict.name}: {clean(reason)}" for reason in verdict.reasons]
    return tuple(lines)


def segments(record: GenerationRecord) -> tuple[Segment, ...]:
    """The ledger in the order of the request; they sum to its wall."""
    ledger = record.ledger

    def part(phase: str, kind: str, time_ns: int | None) -> Segment:
        known = time_ns is not None and record.wall_ns > 0
        share = time_ns / record.wall_ns if known and time_ns is not None else None
        return Segment(phase=phase, kind=kind, time_ns=time_ns, share=share)

    inside = [
        part(phase.name, kind, time_ns)
        for phase in record.phases
        for kind, time_ns in (
            ("issue", phase.ledger.issue_ns),
            ("select", phase.ledger.select_ns),
            ("wait", phase.ledger.wait_ns),
            ("deliver", phase.ledger.deliver_ns),
            ("shared", phase.ledger.shared_ns),
        )
        if kind != "shared" or time_ns is not None
    ]
    queue = () if ledger.queue_ns is None else (part("", "queue", ledger.queue_ns),)
    return (
        *queue,
        part("", "setup", ledger.setup_ns),
        *inside,
        part("", "tail", ledger.tail_ns),
        part("", "self", ledger.self_ns),
        part("", "residual", ledger.residual_ns),
    )


def bar_cells(parts: Sequence[Segment], width: int) -> tuple[int, ...]:
    """Cells of a bar of `width` for each segment, in proportion; the cells sum to `width`.

    What is smaller than half a cell gets none: the legend has its number.
    """
    sizes = [max(part.time_ns or 0, 0) for part in parts]
    total = sum(sizes)
    if total == 0:
        return tuple(0 for _ in parts)
    cells, reached, given = [], 0, 0
    for size in sizes:
        reached += size
        upto = (2 * reached * width + total) // (2 * total)  # rounds half up, in whole numbers
        cells.append(upto - given)
        given = upto
    return tuple(cells)


def latencies(record: GenerationRecord) -> tuple[tuple[str, str, str], ...]:
    """Name, value, source of what a caller feels."""
    itl = record.itl_ns
    whole_s = record.wall_ns / 1e9
    rate = record.output_tokens / whole_s if record.output_tokens is not None and whole_s > 0 else None
    quantiles = [duration_ns(value) for value in (itl.p50, itl.p90, itl.p99, itl.max)] if itl else [UNKNOWN] * 4
    drafted, accepted = record.drafted_tokens, record.accepted_tokens
    drafts = f"{count(accepted)} of {count(drafted)}, {percent(record.acceptance_share)}"
    rows = (
        ("TTFT", duration_ns(record.ttft_ns), _TTFT_METHODS.get(record.ttft_method or "", UNKNOWN)),
        ("TPOT", duration_ns(record.tpot_ns), "measured, (wall - TTFT) / (n - 1)"),
        ("ITL p50", quantiles[0], "measured, within 1 %"),
        ("ITL p90", quantiles[1], "measured, within 1 %"),
        ("ITL p99", quantiles[2], "measured, within 1 %"),
        ("ITL max", quantiles[3], "measured"),
        ("rate", f"{ratio(rate)} token/s" if rate is not None else UNKNOWN, "measured, new tokens / wall"),
        *([("accepted", drafts, "measured, of the tokens drafted")] if drafted is not None else []),
    )
    return tuple((name, value, UNKNOWN if value == UNKNOWN else source) for name, value, source in rows)


def self_time(record: GenerationRecord) -> str:
    """What inferscope itself cost this request, as it measured it."""
    own = record.ledger.self_ns
    passes = sum(phase.passes for phase in record.phases)
    each = duration_ns(own / passes) if passes else UNKNOWN
    share = percent(own / record.wall_ns if record.wall_ns else None)
    return f"{duration_ns(own)} measured inside the request: {each} per pass, {share} of its wall"


def worst_lines(record: GenerationRecord, *, limit: int = 3) -> tuple[str, ...]:
    """The slowest passes of each phase and what made them slow."""
    return tuple(
        f"{phase.name} pass {worst.index}, {duration_ns(worst.start_ns)} into the request: "
        f"{duration_ns(worst.cycle_ns)}, {clean(worst.cause)} {duration_ns(worst.excess_ns)} over the typical pass"
        for phase in record.phases
        for worst in phase.worst[:limit]
        if worst.excess_ns > 0  # the only pass of its phase exceeds nothing
    )


def finding_texts(findings: Sequence[Finding]) -> tuple[FindingText, ...]:
    """The findings in words, in their order."""
    return tuple(_finding(number, finding) for number, finding in enumerate(findings, 1))


def _finding(number: int, finding: Finding) -> FindingText:
    where = finding.phase or "request"
    lines = [("", finding.claim), ("saves", _savings(finding.saves, where))]
    lines += [("evidence", _evidence(evidence)) for evidence in finding.evidence]
    if finding.overlaps:
        lines.append(("overlaps", f"with {', '.join(finding.overlaps)}: the same time, not to be added up"))
    lines += [("do", finding.action), ("in vain", finding.not_helping), ("verify", finding.verify)]
    return FindingText(
        severity=finding.severity,
        title=clean(f"{number}. {finding.severity} {where}: {finding.code}"),
        lines=tuple((label, clean(text)) for label, text in lines if text),
    )


def _savings(saves: Savings | None, where: str) -> str:
    if saves is None:
        return "not known"
    interval = f"{percent(saves.low)} to {percent(saves.high)}"
    return (
        f"{percent(saves.request_share)} of the request ({interval}), {percent(saves.phase_share)} of {where}, "
        f"assuming {saves.basis}"
    )


def _evidence(evidence: Evidence) -> str:
    text = f"{evidence.metric} {metric(evidence.metric, evidence.value)} [{evidence.source}]"
    if evidence.low is not None and evidence.high is not None:
        text += f" between {metric(evidence.metric, evidence.low)} and {metric(evidence.metric, evidence.high)}"
    if evidence.threshold is not None:
        text += f" against {metric(evidence.metric, evidence.threshold)}"
    return f"{text}: {evidence.note}" if evidence.note else text


def notes(result: Result) -> tuple[str, ...]:
    """What is missing from this result, and why."""
    record = result.record
    said = [*record.notes]
    if record.model.cost is None and record.model.cost_note:
        said.append(f"no FLOPs and bytes: {record.model.cost_note}")
    if record.pass_samples_dropped:
        said.append(f"{count(record.pass_samples_dropped)} pass samples beyond the cap were dropped")
    return tuple(clean(note) for note in said)
