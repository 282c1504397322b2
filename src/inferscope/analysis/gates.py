"""Conditions on a comparison that must not hold, such as "tpot > 1.05", and what became of them.

    METRIC OPERATOR NUMBER [UNIT]

A time without a unit is its ratio to the baseline; with a unit it is the candidate's own median. A count is the
candidate's own number per token; with "x" or "%" it is a ratio too. Nothing is evaluated but this one form.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.change import more_needed
from inferscope.analysis.measures import COUNTS, LEDGER, PARTS, PHASES, TIMES
from inferscope.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inferscope.analysis.change import Change
    from inferscope.analysis.comparison import Comparison, Difference, Spread

__all__ = ["ACCEPTABLE", "Gate", "GateResult", "Outcome", "hold", "parse_gate"]

Outcome = Literal["held", "failed", "cannot tell"]
Scale = Literal["ratio", "own"]

ACCEPTABLE = ("model", "device", "batch", "lengths")
"""Differences that make a ratio of times say nothing about the code; dtype and attention are changes under test."""

_OPERATORS = (">=", "<=", ">", "<")
_UNITS_NS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_WHOLE = ("verdict_flips", "token_agreement")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2})?")
_UNIT = re.compile(r"%|[A-Za-zµ]+")
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition that must not hold.

    Attributes:
        text: As it was written.
        metric: What it speaks of.
        operator: ">", ">=", "<" or "<=".
        limit: A ratio, nanoseconds, or a number, as `scale` and the metric have it.
        scale: "ratio" to the baseline, or the candidate's "own" number.
    """

    text: str
    metric: str
    operator: str
    limit: float
    scale: Scale

    def holds(self, value: float) -> bool:
        """Whether a value is what must not be."""
        if self.operator == ">":
            return value > self.limit
        if self.operator == ">=":
            return value >= self.limit
        return value < self.limit if self.operator == "<" else value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What became of a condition.

    Attributes:
        gate: The condition.
        outcome: "failed" where what must not be is; "held" where it is not; "cannot tell" where the interval holds
            the limit, where there is none, or where it was not the same work.
        said: The numbers behind that, and what would help.
        refused: Whether it cannot be told because it was not the same work: no number of requests would help.
    """

    gate: Gate
    outcome: Outcome
    said: str
    refused: bool = False


def parse_gate(text: str) -> Gate:
    """The condition that a text stands for.

    Args:
        text: Such as "tpot>1.05", "ttft > 200 ms", "syncs_per_token>1", "decode.select > 10 %".

    Raises:
        SettingError: It is something else; the message says at which position, from 1.
    """
    if len(text) > _LONGEST:
        raise SettingError(f"a condition of {len(text)} characters: expected one such as tpot>1.05")
    name, position = _take(text, 0, _NAME, "a metric such as tpot")
    _check_metric(text, name)
    position = _blanks(text, position)
    operator = next((sign for sign in _OPERATORS if text.startswith(sign, position)), None)
    if operator is None:
        raise _wrong(text, position, f"one of {' '.join(_OPERATORS)}")
    number, position = _take(text, position + len(operator), _NUMBER, "a number")
    position = _blanks(text, position)
    unit, end = "", position
    if position < len(text):
        unit, end = _take(text, position, _UNIT, "a unit or the end")
    if _blanks(text, end) != len(text):
        raise _wrong(text, _blanks(text, end), "the end")
    limit, scale = _meaning(text, position, name, float(number), unit)
    if not math.isfinite(limit):
        raise SettingError(f"{text!r}: {number} is too large")
    return Gate(text=text, metric=name, operator=operator, limit=limit, scale=scale)


def hold(comparison: Comparison, gates: Sequence[Gate], *, accept: Collection[str] = ()) -> tuple[GateResult, ...]:
    """What became of each condition.

    Args:
        comparison: What they speak of.
        gates: The conditions.
        accept: Differences ("device", ...) in spite of which ratios are believed.

    Raises:
        SettingError: `accept` names something else than `ACCEPTABLE` does.
    """
    for what in accept:
        if what not in ACCEPTABLE:
            raise SettingError(f"accept={what!r}: expected one of {', '.join(ACCEPTABLE)}")
    return tuple(_held(comparison, gate, accept) for gate in gates)


def _take(text: str, position: int, pattern: re.Pattern[str], expected: str) -> tuple[str, int]:
    position = _blanks(text, position)
    match = pattern.match(text, position)
    if match is None:
        raise _wrong(text, position, expected)
    return match.group(), match.end()


def _blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] == " ":
        position += 1
    return position


def _wrong(text: str, position: int, expected: str) -> SettingError:
    found = f"{text[position]!r}" if position < len(text) else "the end"
    return SettingError(f"{text!r}: expected {expected} at position {position + 1}, found {found}")


def _check_metric(text: str, name: str) -> None:
    phase, dot, part = name.partition(".")
    whole = (*TIMES, *COUNTS, *LEDGER, *_WHOLE)
    if name in whole or (dot and phase in PHASES and (part in PARTS or part.startswith("operators."))):
        return
    names = (*whole, *(f"{one}.{other}" for one in PHASES for other in PARTS))
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(whole)}, and PHASE.PART"
    raise SettingError(f"{text!r}: no metric is called {name} (position 1); {hint}")


def _meaning(text: str, position: int, name: str, number: float, unit: str) -> tuple[float, Scale]:
    count = name in COUNTS
    if name in _WHOLE and unit:
        raise _wrong(text, position, f"no unit for {name}")
    if unit == "%":
        return 1 + number / 100, "ratio"
    if unit == "x" or (not unit and not count and name not in _WHOLE):
        return number, "ratio"
    if not unit:
        return number, "own"
    if unit not in _UNITS_NS or count:
        raise _wrong(text, position, "x or %" if count else "ns, us, ms, s, x or %")
    return number * _UNITS_NS[unit], "own"


def _held(comparison: Comparison, gate: Gate, accept: Collection[str]) -> GateResult:
    if gate.metric == "verdict_flips":
        return _flips(comparison, gate)
    if gate.metric == "token_agreement":
        return _agreement(comparison, gate)
    if gate.scale == "own":
        return _own(comparison, gate)
    return _ratio(comparison, gate, accept)


def _flips(comparison: Comparison, gate: Gate) -> GateResult:
    flips = sum(verdict.flipped is True for verdict in comparison.verdicts)
    open_ = sum(verdict.flipped is None for verdict in comparison.verdicts)
    said = f"{flips} of {len(comparison.verdicts)} verdicts flipped, of {open_} it cannot be told"
    return _decide(gate, float(flips), float(flips + open_), said)


def _agreement(comparison: Comparison, gate: Gate) -> GateResult:
    tokens = comparison.tokens
    if tokens.share is None:
        return GateResult(gate=gate, outcome="cannot tell", said=f"output tokens: {tokens.why}")
    return _decide(gate, tokens.share, tokens.share, f"{tokens.equal} of {tokens.compared} outputs are equal")


def _own(comparison: Comparison, gate: Gate) -> GateResult:
    spread = comparison.candidate.spreads.get(gate.metric)
    if spread is None:
        said = f"the candidate's records do not hold {gate.metric}"
        return GateResult(gate=gate, outcome="cannot tell", said=said)
    if gate.metric in COUNTS:
        return _own_count(gate, spread)
    if spread.median_low is None or spread.median_high is None:
        return GateResult(gate=gate, outcome="cannot tell", said="a median has no interval below six requests")
    said = f"median {spread.median / 1e6:.4g} ms ({spread.median_low / 1e6:.4g} to {spread.median_high / 1e6:.4g})"
    return _decide(gate, spread.median_low, spread.median_high, said)


def _own_count(gate: Gate, spread: Spread) -> GateResult:
    """Counts do not flicker: one request that has what must not be is enough."""
    worst = spread.high if gate.operator.startswith(">") else spread.low
    same = spread.low == spread.high
    said = f"{spread.low:g} per token" if same else f"{spread.low:g} to {spread.high:g} per token"
    return _decide(gate, worst, worst, said)


def _ratio(comparison: Comparison, gate: Gate, accept: Collection[str]) -> GateResult:
    change = comparison.change(gate.metric)
    if change is None:
        return GateResult(gate=gate, outcome="cannot tell", said=f"the two sets do not both hold {gate.metric}")
    other = [one for one in _in_the_way(comparison, change) if one.what not in accept]
    if other:
        what = "; ".join(f"{one.what}: {one.baseline} against {one.candidate}" for one in other)
        accepted = " ".join(f"--accept {one.what}" for one in other)
        said = f"not the same work ({what}); to compare it all the same: {accepted}"
        return GateResult(gate=gate, outcome="cannot tell", said=said, refused=True)
    interval = change.ratio
    if interval is None or interval.low is None or interval.high is None:
        return _without_interval(gate, change)
    said = f"ratio {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    decided = _decide(gate, interval.low, interval.high, said)
    if decided.outcome != "cannot tell":
        return decided
    return GateResult(gate=gate, outcome="cannot tell", said=f"{said}; {more_needed(change, gate.limit)}")


def _in_the_way(comparison: Comparison, change: Change) -> list[Difference]:
    """Differences on account of which a ratio says nothing about the code."""
    other = [one for one in comparison.differences if one.what in ACCEPTABLE]
    if change.kind == "count":
        return [one for one in other if one.what in {"model", "batch"}]
    if comparison.matching in {"paired", "stratified"}:
        # What has no counterpart takes no part in the ratio: nothing is compared that is not alike.
        return [one for one in other if one.what not in {"lengths", "batch"}]
    return other


def _without_interval(gate: Gate, change: Change) -> GateResult:
    ratio = change.ratio
    if ratio is None:
        said = change.why or f"a ratio of {gate.metric} cannot be made: a value is 0"
        return GateResult(gate=gate, outcome="cannot tell", said=said)
    if change.kind == "count" and change.answer != "cannot tell":
        return _decide(gate, ratio.value, ratio.value, f"ratio {ratio.value:.4g}")
    return GateResult(gate=gate, outcome="cannot tell", said=f"ratio {ratio.value:.3f}; {change.why}")


def _decide(gate: Gate, low: float, high: float, said: str) -> GateResult:
    ends = {gate.holds(low), gate.holds(high)}
    outcome: Outcome = "cannot tell" if len(ends) > 1 else "failed" if True in ends else "held"
    return GateResult(gate=gate, outcome=outcome, said=said)
