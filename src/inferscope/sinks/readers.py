"""How the value of an attribute is read from a request or a phase: what semconv.py puts beside a name.

Here alone do units change.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.analysis.verdict import PhaseDiagnosis, Result
    from inferscope.records import PhaseRecord, RequestOptions

__all__ = [
    "TOP_FINDINGS",
    "AskedSubject",
    "Operation",
    "PhaseSubject",
    "RequestSubject",
    "codes",
    "cut_passes",
    "error",
    "first_chunk_s",
    "get",
    "method",
    "own_s",
    "phase_seconds",
    "seconds",
    "top_group",
    "usage",
    "wall_s",
]

Operation = Literal["text_completion", "chat"]
TOP_FINDINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSubject:
    """What the attributes of a request's span are read from.

    Attributes:
        result: The request.
        operation: What the caller says it was.
        usage_elsewhere: The instrumentation whose span reports the same call; None where there is none.
    """

    result: Result
    operation: Operation
    usage_elsewhere: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSubject:
    """What is known of a request when it begins.

    Attributes:
        model_name: The model's name.
        operation: What the caller says it is.
        options: What the call asks for.
    """

    model_name: str
    operation: Operation
    options: RequestOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSubject:
    """What the attributes of a phase's span are read from.

    Attributes:
        phase: What was measured.
        verdict: The opinion on it; None where there is none.
        shown: Its passes that have spans of their own; None where passes were not kept.
    """

    phase: PhaseRecord
    verdict: PhaseDiagnosis | None
    shown: int | None = None


def get(path: str) -> Callable[[Any], object]:
    """Reader of a dotted path; None where something on the way is None."""
    first, *rest = (attrgetter(name) for name in path.split("."))
    if not rest:
        return first

    def read(subject: object) -> object:
        found: object = first(subject)
        for step in rest:
            if found is None:
                return None
            found = step(found)
        return found

    return read


def seconds(path: str) -> Callable[[Any], float | None]:
    """Reader of a duration in nanoseconds, in seconds: the one place where units change."""
    read_ns: Callable[[Any], Any] = get(path)

    def read(subject: object) -> float | None:
        value_ns = read_ns(subject)
        return None if value_ns is None else value_ns / 1e9

    return read


def phase_seconds(name: str) -> Callable[[RequestSubject], float | None]:
    """Reader of the time of all phases of a name."""
    return lambda subject: wall_s(p for p in subject.result.record.phases if p.name == name)


def wall_s(phases: Iterable[PhaseRecord]) -> float | None:
    """Time of phases, in seconds; None where there are none."""
    walls_ns = [phase.wall_ns for phase in phases]
    return sum(walls_ns) / 1e9 if walls_ns else None


def first_chunk_s(subject: RequestSubject) -> float | None:
    """To the first token, where tokens were streamed."""
    record = subject.result.record
    return None if record.ttft_ns is None or not record.options.streaming else record.ttft_ns / 1e9


def usage(name: str) -> Callable[[RequestSubject], int | None]:
    """Reader of a token count, which whoever adds them up over a trace must find only once."""

    def read(subject: RequestSubject) -> int | None:
        tokens: int | None = getattr(subject.result.record, name)
        return tokens if subject.usage_elsewhere is None else None

    return read


def error(subject: RequestSubject) -> str | None:
    """Class of the exception that ended a request."""
    record = subject.result.record
    return (record.error_type or "_OTHER") if record.status == "aborted" else None


def codes(subject: RequestSubject) -> tuple[str, ...]:
    """The first findings."""
    return tuple(finding.code for finding in subject.result.findings[:TOP_FINDINGS])


def method(subject: PhaseSubject) -> str:
    """How the time of the device was obtained."""
    return "host" if subject.phase.device is None else subject.phase.device.provenance


def own_s(subject: PhaseSubject) -> float | None:
    """Our own time between the ends of a phase; None where that is not told apart."""
    phase = subject.phase
    own_ns = phase.end_ns - phase.start_ns - phase.wall_ns
    # A queued request whose cache was given up prefills again in the midst of its decode.
    return own_ns / 1e9 if own_ns >= 0 and phase.ledger.shared_ns is None else None


def cut_passes(subject: PhaseSubject) -> int | None:
    """Passes without a span of their own."""
    return None if subject.shown is None else subject.phase.passes - subject.shown


def top_group(subject: PhaseSubject) -> str | None:
    """The group of operators that took longest."""
    return subject.phase.operators[0].group if subject.phase.operators else None
