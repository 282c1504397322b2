"""One structlog event per request, with the ids of its span where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from inferscope import notices

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Result

__all__ = ["LogSink", "SpanIndex"]

EVENT = "inferscope.request"
# Somebody wanted the request to end: nothing has failed.
_CANCELLATIONS = frozenset({"cancelled", "CancelledError", "GeneratorExit", "KeyboardInterrupt", "SystemExit"})


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
        known = {key: value for key, value in self._facts(result).items() if value is not None}
        getattr(notices.logger(), _level(result))(EVENT, **known)

    def _facts(self, result: Result) -> dict[str, object]:
        record = result.record
        trace_id, span_id = (self.spans and self.spans.span_ids(record.request_id)) or (None, None)
        facts: dict[str, object] = {
            "model": record.model.name,
            "status": record.status,
            "error_type": record.error_type,
            "wall_s": record.wall_ns / 1e9,
            "ttft_s": None if record.ttft_ns is None else record.ttft_ns / 1e9,
            "tpot_s": None if record.tpot_ns is None else record.tpot_ns / 1e9,
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
        }
        facts.update({f"{phase.name}_bound": phase.bound for phase in result.diagnosis.phases})
        facts["finding"] = result.findings[0].code if result.findings else None
        facts.update(request_id=record.request_id, trace_id=trace_id, span_id=span_id)
        return facts


def _level(result: Result) -> str:
    record = result.record
    if record.status == "aborted" and record.error_type not in _CANCELLATIONS:
        return "error"
    warns = record.status == "aborted" or any(finding.severity == "WARN" for finding in result.findings)
    return "warning" if warns else "info"
