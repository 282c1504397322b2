"""A comparison as a readable table, and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from inferscope.analysis.measures import COUNTS, LEDGER, TIMES
from inferscope.report.units import UNKNOWN, clean, duration_ns, percent, ratio, scaled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inferscope.analysis.change import Change, Interval
    from inferscope.analysis.claims import Prediction, VerdictChange
    from inferscope.analysis.comparison import Comparison
    from inferscope.analysis.gates import GateResult

__all__ = [
    "HEADINGS",
    "ChangeRow",
    "change_tables",
    "comparison_to_json",
    "comparison_to_text",
    "gate_lines",
    "headline",
    "opinion_lines",
    "warnings",
]

_WIDTH = 100
_AS_GOOD_AS_UNKNOWN = 100
HEADINGS = ("", "baseline", "candidate", "ratio", "95 % interval", "")
_MATCHED = {
    "paired": "one to one by batch and lengths",
    "stratified": "by batch and lengths, several of each",
    "similar": "by batch and roughly equal lengths: only what is per token or per pass is compared",
    "none": "not at all: no two requests have similar lengths",
}
_TIME_ANSWERS = {"less": "faster", "more": "slower", "same": "same", "cannot tell": "cannot tell"}
_COUNT_ANSWERS = {"less": "fewer", "more": "more", "same": "same", "cannot tell": "cannot tell"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One line of a table.

    Attributes:
        cells: As `HEADINGS` names them.
        answer: As `Change.answer`.
    """

    cells: tuple[str, ...]
    answer: str


def headline(comparison: Comparison) -> tuple[str, ...]:
    """How many requests were compared, and how."""
    sides = (("baseline", comparison.baseline), ("candidate", comparison.candidate))
    counted = "; ".join(
        f"{name} {side.requests:,} requests" + (f" (and {side.aborted:,} aborted)" if side.aborted else "")
        for name, side in sides
    )
    turns = "" if comparison.turns is None else f"; recorded in {comparison.turns} turns, whose medians are compared"
    return f"inferscope compare  {counted}", f"matched {_MATCHED[comparison.matching]}{turns}"


def warnings(comparison: Comparison) -> tuple[str, ...]:
    """What makes it not the same work, and what else is another version."""
    rows = [f"{one.what}: {clean(one.baseline)} → {clean(one.candidate)}" for one in comparison.differences]
    versions = [f"{one.what} {clean(one.baseline)} → {clean(one.candidate)}" for one in comparison.versions]
    first = ("Not the same work:", *(f"  {row}" for row in rows)) if rows else ()
    return (*first, *((f"other versions: {', '.join(versions)}",) if versions else ()))


def change_tables(comparison: Comparison) -> tuple[tuple[str, tuple[ChangeRow, ...]], ...]:
    """Title and lines of each table; what is 0 on both sides, or as good as unknown, is left out."""
    shown = [change for change in comparison.changes if (change.baseline or change.candidate) and _is_known(change)]
    phases = dict.fromkeys(change.metric.partition(".")[0] for change in shown if "." in change.metric)
    tables = [("Request", [change for change in shown if change.metric in (*TIMES, *COUNTS)])]
    tables += [(phase, [one for one in shown if one.metric.startswith(f"{phase}.")]) for phase in phases]
    tables.append(("Rest of the ledger", [change for change in shown if change.metric in LEDGER]))
    return tuple((clean(title), tuple(_row(change) for change in changes)) for title, changes in tables if changes)


def opinion_lines(comparison: Comparison) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Title and lines on what could not be told, verdicts, predictions, tokens, and what is not covered."""
    unsure = [
        f"{change.metric}: {change.why}"
        for change in comparison.changes
        if change.answer == "cannot tell" and change.metric in (*TIMES, *COUNTS)
    ]
    sections = (
        ("Cannot tell", unsure),
        ("Verdicts", [_verdict(verdict) for verdict in comparison.verdicts]),
        ("Predicted and achieved", [_prediction(one) for one in comparison.predictions]),
        ("Output tokens", [_tokens(comparison)]),
        ("Notes", list(comparison.notes)),
    )
    return tuple((title, tuple(map(clean, lines))) for title, lines in sections if lines)


def gate_lines(results: Iterable[GateResult]) -> tuple[str, ...]:
    """One line for each condition."""
    return tuple(f"{result.outcome:<11}  {clean(result.gate.text)}: {clean(result.said)}" for result in results)


def comparison_to_text(comparison: Comparison, *, width: int = _WIDTH) -> str:
    """The comparison as text, ending without a newline.

    Args:
        comparison: What `inferscope.compare` returned.
        width: Characters per line of running text; tables are as wide as they are.
    """
    lines = [*headline(comparison), *warnings(comparison)]
    tables = change_tables(comparison)
    cells = [HEADINGS, *(row.cells for _, rows in tables for row in rows)]
    sizes = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
    for title, rows in tables:
        lines += ["", _line((title, *HEADINGS[1:]), sizes), *(_line(row.cells, sizes) for row in rows)]
    for title, said in opinion_lines(comparison):
        lines += ["", title, *_wrapped(said, width)]
    return "\n".join(line.rstrip() for line in lines)


def comparison_to_json(comparison: Comparison, gates: Sequence[GateResult] = ()) -> str:
    """The comparison as one JSON object, indented.

    Args:
        comparison: What `inferscope.compare` returned.
        gates: What became of conditions; a list named "gates" in the object.
    """
    content = {**msgspec.to_builtins(comparison), "gates": msgspec.to_builtins(gates)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def _is_known(change: Change) -> bool:
    """Whether an interval says anything: a device's time may be known between 0 and the wall."""
    ends = change.ratio
    return ends is None or ends.low is None or ends.high is None or ends.high < _AS_GOOD_AS_UNKNOWN * ends.low


def _row(change: Change) -> ChangeRow:
    words = _TIME_ANSWERS if change.kind == "time" else _COUNT_ANSWERS
    name = change.metric.partition(".")[2] or change.metric
    return ChangeRow(
        cells=(
            f"  {clean(name)}",
            _value(change, change.baseline),
            _value(change, change.candidate),
            UNKNOWN if change.ratio is None else f"{change.ratio.value:.3f}",
            _ends(change.ratio),
            words[change.answer],
        ),
        answer=change.answer,
    )


def _value(change: Change, value: float | None) -> str:
    if change.kind == "time":
        return duration_ns(value)
    return scaled(value, "B") if change.metric.startswith("bytes") else ratio(value)


def _ends(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return UNKNOWN
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _verdict(verdict: VerdictChange) -> str:
    if verdict.flipped is None:
        return f"{verdict.phase}: {verdict.baseline} → {verdict.candidate}? {verdict.why}"
    if verdict.flipped:
        return f"{verdict.phase}: {verdict.baseline} → {verdict.candidate}, flipped"
    return f"{verdict.phase}: {verdict.baseline}, as before"


def _prediction(one: Prediction) -> str:
    of = one.phase or "the request"
    promised = f"{percent(one.predicted_low)} to {percent(one.predicted_high)} of {of}"
    ends = f" ({percent(one.achieved_low)} to {percent(one.achieved_high)})" if one.achieved_low is not None else ""
    beside = f"; went together with {', '.join(one.together_with)}" if one.together_with else ""
    why = f": {one.why}" if one.why else ""
    return f"{one.code}: predicted {promised}, achieved {percent(one.achieved)}{ends}: {one.score}{why}{beside}"


def _tokens(comparison: Comparison) -> str:
    tokens = comparison.tokens
    if not tokens.compared:
        return tokens.why
    if tokens.equal == tokens.compared:
        return f"equal in all {tokens.compared:,} pairs"
    return f"different in {tokens.compared - tokens.equal:,} of {tokens.compared:,} pairs: the text has changed"


def _line(cells: tuple[str, ...], sizes: list[int]) -> str:
    last = len(cells) - 1
    return "  ".join(
        cell.ljust(size) if i in {0, last} else cell.rjust(size)
        for i, (cell, size) in enumerate(zip(cells, sizes, strict=True))
    )


def _wrapped(entries: Iterable[str], width: int) -> Iterator[str]:
    for entry in entries:
        yield from textwrap.wrap(entry, width, initial_indent="  ", subsequent_indent="    ")
