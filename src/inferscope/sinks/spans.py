"""Spans: one per request and one child per phase, built after the call from the times measured in it.

Building them inside the call would cost the host tens of microseconds per span and, with a streamer in another
thread, lose the context; afterwards it costs nothing that anybody waits for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_value
from opentelemetry.trace import SpanKind, Status, StatusCode

from inferscope.sinks import semconv
from inferscope.sinks.attributes import plain_text, values

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

    from inferscope.analysis.verdict import Result
    from inferscope.records import PhaseRecord

__all__ = ["SpanSink"]

# The second is Traceloop's, set by frameworks that already report the same call as a model span.
_SUPPRESSION_KEYS = (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_language_model_instrumentation")
_WORST_PASSES = 3
_REMEMBERED = 256


class SpanSink:
    """Turns each result into a span `{operation} {model}` and one child span per phase.

    The spans go to the caller's tracer provider and hang under the span that was current when `generate` was
    entered. A request that is not sampled, or whose context suppresses instrumentation, becomes nothing.

    The ids of the latest 256 requests are kept, so that a `LogSink` running after this sink can carry them:
    results are immutable and do not know of spans.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, operation: semconv.Operation = "text_completion"
    ) -> None:
        """Prepare for a provider.

        Args:
            tracer_provider: Where spans go; None: the global provider, also one that is set later.
            operation: Value of `gen_ai.operation.name`.
        """
        self._tracer: Tracer = trace.get_tracer("inferscope", version("inferscope"), tracer_provider)
        self._operation = operation
        self._lock = threading.Lock()
        self._contexts: OrderedDict[str, SpanContext] = OrderedDict()

    def __call__(self, result: Result) -> None:
        """Build the spans of one request."""
        parent = result.parent_context if isinstance(result.parent_context, Context) else Context()
        if any(get_value(key, parent) for key in _SUPPRESSION_KEYS):
            return
        subject = semconv.RequestSubject(result=result, operation=self._operation)
        record = result.record
        root = self._tracer.start_span(
            f"{self._operation} {plain_text(record.model.name)}",
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes=values(semconv.REQUEST_START, subject),
            start_time=record.started_unix_ns,
        )
        if not root.is_recording():
            return
        # A viewer cuts off a child that reaches past its parent.
        end_unix_ns = record.started_unix_ns + max([record.wall_ns, *(phase.end_ns for phase in record.phases)])
        try:
            root.set_attributes(values(semconv.REQUEST_END, subject))
            if record.status == "aborted":
                root.set_status(Status(StatusCode.ERROR, record.error_type))
            self._remember(record.request_id, root.get_span_context())
            for phase in record.phases:
                self._phase_span(root, result, phase)
        finally:
            root.end(end_unix_ns)

    def span_context(self, request_id: str) -> SpanContext | None:
        """The span of one of the latest requests; None where it has none.

        Args:
            request_id: The record's.
        """
        with self._lock:
            return self._contexts.get(request_id)

    def span_ids(self, request_id: str) -> tuple[str, str] | None:
        """Trace id (32 hexadecimal digits) and span id (16) of a request's span; None where it has none.

        Args:
            request_id: The record's.
        """
        context = self.span_context(request_id)
        if context is None:
            return None
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def _phase_span(self, root: Span, result: Result, phase: PhaseRecord) -> None:
        zero_unix_ns = result.record.started_unix_ns
        subject = semconv.PhaseSubject(phase=phase, verdict=result.diagnosis.phase(phase.name))
        span = self._tracer.start_span(
            phase.name,
            context=trace.set_span_in_context(root, Context()),
            kind=SpanKind.INTERNAL,
            attributes=values(semconv.PHASE, subject),
            start_time=zero_unix_ns + phase.start_ns,
        )
        try:
            for worst in phase.worst[:_WORST_PASSES]:
                moment_ns = min(max(worst.start_ns, phase.start_ns), phase.end_ns)
                span.add_event(
                    semconv.WORST_PASS_EVENT, values(semconv.WORST_PASS, worst), timestamp=zero_unix_ns + moment_ns
                )
        finally:
            span.end(zero_unix_ns + phase.end_ns)

    def _remember(self, request_id: str, context: SpanContext) -> None:
        with self._lock:
            self._contexts[request_id] = context
            while len(self._contexts) > _REMEMBERED:
                self._contexts.popitem(last=False)
