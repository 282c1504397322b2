"""One structlog event per request, with the ids of its span where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from inferscope import notices
from inferscope.sinks.attributes import Attribute, values
from inferscope.sinks.readers import get, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.analysis.verdict import Result

__all__ = ["EVENT", "REQUEST_EVENT", "LogSink", "LoggedRequest", "SpanIndex"]

EVENT = "inferscope.request"
# Somebody wanted the request to end: nothing has failed.
_CANCELLATIONS = frozenset({"cancelled", "CancelledError", "GeneratorExit", "KeyboardInterrupt", "SystemExit"})
_PHASES = ("encode", "prefill", "decode", "verify", "draft", "mixed", "unknown")


class LoggedRequest(NamedTuple):
    """What the fields of an event are read from.

    Attributes:
        result: The request.
        trace_id: Of its span; None where it has none.
        span_id: Of its span.
    """

    result: Result
    trace_id: str | None = None
    span_id: str | None = None


def _bound(phase: str) -> Attribute[LoggedRequest]:
    def read(subject: LoggedRequest) -> str | None:
        verdict = subject.result.diagnosis.phase(phase)
        return None if verdict is None else verdict.bound

    return Attribute(f"{phase}_bound", "string", "", f"What holds the phase `{phase}` back, as on its span.", read)


def _finding(subject: LoggedRequest) -> str | None:
    return subject.result.findings[0].code if subject.result.findings else None


def _of(field: str) -> Callable[[LoggedRequest], object]:
    return get(f"result.record.{field}")


REQUEST_EVENT: tuple[Attribute[LoggedRequest], ...] = (
    Attribute("model", "string", "", "The model's name.", _of("model.name")),
    Attribute("status", "string", "", "`ok` or `aborted`.", _of("status")),
    Attribute("error_type", "string", "", "Class of the exception that left `generate`.", _of("error_type")),
    Attribute("wall_s", "double", "s", "Wall of `generate`.", seconds("result.record.wall_ns")),
    Attribute(
        "ttft_s", "double", "s", "Entry of `generate` to the first token selected.", seconds("result.record.ttft_ns")
    ),
    Attribute("tpot_s", "double", "s", "(wall - TTFT) / (n - 1), n new tokens each.", seconds("result.record.tpot_ns")),
    Attribute("input_tokens", "int", "{token}", "Prompt tokens over the batch, padding excluded.", _of("input_tokens")),
    Attribute("output_tokens", "int", "{token}", "New tokens over the batch, padding excluded.", _of("output_tokens")),
    *(_bound(phase) for phase in _PHASES),
    Attribute("finding", "string", "", "Code of the finding that would save most.", _finding),
    Attribute("request_id", "string", "", "16 hexadecimal digits, as on its span.", _of("request_id")),
    Attribute("trace_id", "string", "", "32 hexadecimal digits, where the request has a span.", get("trace_id")),
    Attribute("span_id", "string", "", "16 hexadecimal digits, where the request has a span.", get("span_id")),
)
"""The fields of the event of a request, beside structlog's own."""


@runtime_checkable
class SpanIndex(Protocol):
    """Knows the span that a request became."""

    def span_ids(self, request_id: str) -> tuple[str, str] | None:
        """Trace id (32 hexadecimal digits) and span id (16), None where the request has no span."""


class LogSink:
    """Logs `inferscope.request` through the user's structlog, one line per request.

    The level is error where an exception ended the request, warning where it was cancelled or a finding warns, info
    otherwise. What is unknown is left out. Durations are in seconds.

    Attributes:
        spans: Where the ids of a request's span are found; a span sink that ran before this one. None: no ids.
    """

    def __init__(self, *, spans: SpanIndex | None = None) -> None:
        self.spans = spans

    def use_spans(self, spans: SpanIndex) -> None:
        """Take the spans of this sink, where no other has been given."""
        self.spans = self.spans or spans

    def __call__(self, result: Result) -> None:
        """Log one request."""
        request_id = result.record.request_id
        trace_id, span_id = (self.spans and self.spans.span_ids(request_id)) or (None, None)
        known = values(REQUEST_EVENT, LoggedRequest(result, trace_id, span_id))
        getattr(notices.logger(), _level(result))(EVENT, **known)


def _level(result: Result) -> str:
    record = result.record
    if record.status == "aborted" and record.error_type not in _CANCELLATIONS:
        return "error"
    warns = record.status == "aborted" or any(finding.severity == "WARN" for finding in result.findings)
    return "warning" if warns else "info"
