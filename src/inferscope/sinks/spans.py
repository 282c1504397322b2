"""Spans: one per request, begun when the request begins, and one child per phase, built after the call.

The request's span is begun at the entry of `generate` because that is when samplers decide; all that is known later
is written to it on the background thread, where it costs nothing that anybody waits for. A result that never began
here, such as that of a stored record, becomes the same spans afterwards.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_value
from opentelemetry.trace import (
    Link,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from inferscope.records import RequestOptions
from inferscope.sinks import content, readers, semconv
from inferscope.sinks.attributes import plain_text, values
from inferscope.sinks.model_calls import ModelCall, call_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Tracer, TracerProvider

    from inferscope.analysis.verdict import Result
    from inferscope.records import GenerationRecord, PassSample, PhaseRecord

__all__ = ["MAX_PASS_SPANS", "SpanSink"]

# The second is Traceloop's, set by frameworks that already report the same call as a model span.
_SUPPRESSION_KEYS = (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_language_model_instrumentation")
_UNDECIDED = (ProxyTracerProvider, NoOpTracerProvider)
_WORST_PASSES = 3
MAX_PASS_SPANS = 256
"""Spans of passes in one request, where every pass is kept; the earliest of them."""
_REMEMBERED = 256


class RootSpan(NamedTuple):
    """The span of a running request.

    Attributes:
        span: The span; one that records nothing where the request is not to be traced.
        recording: Whether it is to be traced.
        ids: Trace id and span id.
        call: The span under which another instrumentation reports the same call; None where none does.
    """

    span: Span
    recording: bool
    ids: tuple[int, int] | None
    call: ModelCall | None = None


_UNTRACED = RootSpan(trace.INVALID_SPAN, recording=False, ids=None)


class SpanSink:
    """Turns each result into a span `{operation} {model}` and one child span per phase.

    The spans go to the caller's tracer provider and hang under the span that was current when `generate` was
    entered. A request that is not sampled, or whose context suppresses instrumentation, becomes nothing.

    Where every pass was kept (`detail="passes"`), each of the first 256 becomes a span below its phase.

    The places of the latest 256 requests' spans are kept, so that a `LogSink` or a `MetricSink` running after this
    sink can tell them: results are immutable and do not know of spans.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, operation: readers.Operation = "text_completion"
    ) -> None:
        """Prepare for a provider.

        Args:
            tracer_provider: Where spans go; None: the global provider, also one that is set later.
            operation: Value of `gen_ai.operation.name`.
        """
        content.tell_that_none_is_kept()
        self._tracer: Tracer = trace.get_tracer("inferscope", version("inferscope"), tracer_provider)
        self._provider = tracer_provider
        self._operation = operation
        self._roots: dict[str, RootSpan] = {}
        self._lock = threading.Lock()
        self._places: OrderedDict[str, dict[str | None, SpanContext]] = OrderedDict()

    def begin(
        self, request_id: str, started_unix_ns: int, context: object, model_name: str, options: Mapping[str, Any]
    ) -> RootSpan | None:
        """Begin the span of a request, which is when its sampler decides.

        Args:
            request_id: The record's.
            started_unix_ns: Wall-clock time of its entry.
            context: Where the span hangs.
            model_name: The model's.
            options: The keyword arguments of `generate`.

        Returns:
            The span; None where no tracer provider is set, so that nobody has decided anything.
        """
        if any(get_value(key) for key in _SUPPRESSION_KEYS):
            root = _UNTRACED
        elif self._provider is None and isinstance(trace.get_tracer_provider(), _UNDECIDED):
            return None
        else:
            asked = readers.AskedSubject(model_name=model_name, operation=self._operation, options=asked_of(options))
            root = self._start(asked, context, started_unix_ns)
        self._roots[request_id] = root
        return root

    def after_fork(self) -> None:
        """In a forked child: the parent ends what it has begun."""
        self._lock = threading.Lock()
        self._roots.clear()

    def abandon(self, request_id: str) -> None:
        """End the span of a request that will have no result; nothing happens where there is none."""
        root = self._roots.pop(request_id, None)
        if root is not None and root.recording:
            root.span.end()

    def _start(self, asked: readers.AskedSubject, context: object, started_unix_ns: int) -> RootSpan:
        call = call_in(context)
        span = self._tracer.start_span(
            f"{self._operation} {plain_text(asked.model_name)}",
            context=context if isinstance(context, Context) else Context(),
            kind=SpanKind.INTERNAL,
            attributes=values(semconv.REQUEST_START, asked),
            links=() if call is None else (Link(call.span, {semconv.USAGE_ELSEWHERE: call.scope}),),
            start_time=started_unix_ns,
        )
        place = span.get_span_context()
        return RootSpan(span, recording=span.is_recording(), ids=(place.trace_id, place.span_id), call=call)

    def _root_of(self, result: Result) -> RootSpan:
        begun = self._roots.pop(result.record.request_id, None)
        if begun is not None:
            return begun
        parent = result.parent_context
        if isinstance(parent, Context) and any(get_value(key, parent) for key in _SUPPRESSION_KEYS):
            return _UNTRACED
        record = result.record
        asked = readers.AskedSubject(model_name=record.model.name, operation=self._operation, options=record.options)
        return self._start(asked, parent, record.started_unix_ns)

    def __call__(self, result: Result) -> None:
        """Complete the spans of one request."""
        begun = self._root_of(result)
        if not begun.recording:
            return
        root = begun.span
        elsewhere = None if begun.call is None else begun.call.scope
        subject = readers.RequestSubject(result=result, operation=self._operation, usage_elsewhere=elsewhere)
        record = result.record
        # A viewer cuts off a child that reaches past its parent.
        end_unix_ns = record.started_unix_ns + max([record.wall_ns, *(_end_ns(phase) for phase in record.phases)])
        try:
            root.set_attributes(values(semconv.REQUEST_END, subject))
            if record.status == "aborted":
                root.set_status(Status(StatusCode.ERROR, record.error_type))
            _link_contenders(root, record)
            places: dict[str | None, SpanContext] = {None: root.get_span_context()}
            self._remember(record.request_id, places)
            passes = _passes_of(record)
            for phase in record.phases:
                places.setdefault(phase.name, self._phase_span(root, result, phase, passes))
        finally:
            root.end(end_unix_ns)

    def span_context(self, request_id: str) -> SpanContext | None:
        """The span of one of the latest requests; None where it has none.

        Args:
            request_id: The record's.
        """
        return self.phase_span_context(request_id, None)

    def phase_span_context(self, request_id: str, phase: str | None) -> SpanContext | None:
        """The span of a phase of one of the latest requests; None where there is none.

        Args:
            request_id: The record's.
            phase: Its name; None for the request's own span.
        """
        with self._lock:
            return self._places.get(request_id, {}).get(phase)

    def span_ids(self, request_id: str) -> tuple[str, str] | None:
        """Trace id (32 hexadecimal digits) and span id (16) of a request's span; None where it has none.

        Args:
            request_id: The record's.
        """
        context = self.span_context(request_id)
        if context is None:
            return None
        return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)

    def _phase_span(
        self, root: Span, result: Result, phase: PhaseRecord, passes: Mapping[str, list[PassSample]]
    ) -> SpanContext:
        zero_unix_ns = result.record.started_unix_ns
        subject = readers.PhaseSubject(
            phase=phase,
            verdict=result.diagnosis.phase(phase.name),
            shown=len(passes[phase.name]) if phase.name in passes else None,
        )
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
            for sample in passes.get(phase.name, ()):
                self._pass_span(span, zero_unix_ns, phase, sample)
        finally:
            span.end(zero_unix_ns + _end_ns(phase))
        return span.get_span_context()

    def _pass_span(self, parent: Span, zero_unix_ns: int, phase: PhaseRecord, sample: PassSample) -> None:
        start_ns = min(max(sample.start_ns, phase.start_ns), _end_ns(phase))
        span = self._tracer.start_span(
            semconv.PASS_SPAN,
            context=trace.set_span_in_context(parent, Context()),
            kind=SpanKind.INTERNAL,
            attributes=values(semconv.PASS, sample),
            start_time=zero_unix_ns + start_ns,
        )
        span.end(zero_unix_ns + min(start_ns + max(sample.host_ns, 0), _end_ns(phase)))

    def _remember(self, request_id: str, places: dict[str | None, SpanContext]) -> None:
        with self._lock:
            self._places[request_id] = places
            while len(self._places) > _REMEMBERED:
                self._places.popitem(last=False)


def _passes_of(record: GenerationRecord) -> dict[str, list[PassSample]]:
    """The passes that get spans of their own, by phase: the earliest; nothing where passes were not kept."""
    if not record.pass_samples:
        return {}
    found: dict[str, list[PassSample]] = {phase.name: [] for phase in record.phases}
    shown = 0
    for sample in record.pass_samples:
        phase = sample.name.partition("/")[0]
        if phase in found and shown < MAX_PASS_SPANS:
            found[phase].append(sample)
            shown += 1
    return found


def _end_ns(phase: PhaseRecord) -> int:
    """Where a phase ends, from the request's start: on its device, where that worked on when the host had gone on."""
    on_device_ns = phase.device.end_ns if phase.device is not None else None
    return max(phase.end_ns, on_device_ns or 0)


def asked_of(options: Mapping[str, Any]) -> RequestOptions:
    """What a call of `generate` asks for, of its keyword arguments and their `generation_config`."""
    given = options.get("generation_config")

    def said(name: str) -> Any:  # noqa: ANN401 - options have any type
        value = options.get(name)
        return value if value is not None or given is None else getattr(given, name, None)

    return RequestOptions(
        max_new_tokens=said("max_new_tokens"),
        temperature=said("temperature"),
        top_p=said("top_p"),
        top_k=said("top_k"),
        num_beams=said("num_beams"),
        seed=seed if isinstance(seed := said("seed"), int) else None,
        streaming=options.get("streamer") is not None,
    )


def _link_contenders(root: Span, record: GenerationRecord) -> None:
    """Links to the requests that held this one up, where they have spans."""
    for other in record.contended_with:
        if other.trace_id and other.span_id:
            place = SpanContext(
                int(other.trace_id, 16), int(other.span_id, 16), is_remote=False, trace_flags=TraceFlags(1)
            )
            root.add_link(place, values(semconv.CONTENDER, other))
