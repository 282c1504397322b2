"""Another instrumentation's span for the same call: recognised by how theirs are made, and tokens are told once."""

from __future__ import annotations

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from inferscope.sinks import content, semconv
from inferscope.sinks.model_calls import call_in
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_result

# (scope, kind, attributes while the call runs), as these libraries make their spans; some write all of them afterwards.
MODEL_CALLS = {
    "openllmetry": (
        "opentelemetry.instrumentation.transformers",
        SpanKind.INTERNAL,
        {"gen_ai.request.model": "m", "gen_ai.system": "llama", "llm.request.type": "completion"},
    ),
    "openllmetry, unsaid": ("opentelemetry.instrumentation.transformers", SpanKind.INTERNAL, {}),
    "openlit": ("openlit.otel.tracing", SpanKind.CLIENT, {}),
    "openlit, older": ("openlit", SpanKind.CLIENT, {}),
    "openinference": ("openinference.instrumentation.langchain", SpanKind.INTERNAL, {"openinference.span.kind": "LLM"}),
    "conventions": ("my.client", SpanKind.CLIENT, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}),
    "conventions, older": ("my.client", SpanKind.CLIENT, {"gen_ai.request.model": "m"}),
}
OTHERS = {
    "server": ("opentelemetry.instrumentation.fastapi", SpanKind.SERVER, {"http.route": "/generate"}),
    "chain": ("openinference.instrumentation.langchain", SpanKind.INTERNAL, {"openinference.span.kind": "CHAIN"}),
    "agent": (
        "opentelemetry.instrumentation.crewai",
        SpanKind.INTERNAL,
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": "m"},
    ),
    "openlit's chain": ("openlit.otel.tracing", SpanKind.INTERNAL, {}),
    "openllmetry's workflow": ("opentelemetry.instrumentation.langchain", SpanKind.INTERNAL, {}),
    "ours": ("inferscope", SpanKind.INTERNAL, {"gen_ai.operation.name": "text_completion"}),
    "a name that begins alike": ("openlithium", SpanKind.CLIENT, {}),
}


class Traced:
    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.sink = SpanSink(tracer_provider=self.provider)

    def under(self, made):
        """Our request's span under a span that somebody else has made, and that span."""
        scope, kind, attributes = made
        result = make_result()
        record = result.record
        with self.provider.get_tracer(scope).start_as_current_span(
            "theirs", kind=kind, attributes=attributes
        ) as theirs:
            context = otel_context.get_current()
            self.sink.begin(record.request_id, record.started_unix_ns, context, record.model.name, {})
        self.sink(result)
        (ours,) = [s for s in self.exporter.get_finished_spans() if s.name.startswith("text_completion")]
        return ours, theirs


@pytest.mark.parametrize("made", MODEL_CALLS.values(), ids=MODEL_CALLS)
def test_under_a_model_call_tokens_are_left_to_it_and_it_is_linked(made):
    ours, theirs = Traced().under(made)
    assert not [key for key in ours.attributes if key.startswith("gen_ai.usage")]
    assert ours.attributes[semconv.USAGE_ELSEWHERE] == made[0]
    assert [link.context.span_id for link in ours.links] == [theirs.get_span_context().span_id]
    assert dict(ours.links[0].attributes) == {semconv.USAGE_ELSEWHERE: made[0]}
    assert ours.parent.span_id == theirs.get_span_context().span_id  # it stays where it belongs
    assert ours.attributes["gen_ai.latency.e2e"] > 0


@pytest.mark.parametrize("made", OTHERS.values(), ids=OTHERS)
def test_under_anything_else_tokens_are_told(made):
    ours, theirs = Traced().under(made)
    assert ours.attributes["gen_ai.usage.input_tokens"] == 32
    assert semconv.USAGE_ELSEWHERE not in ours.attributes
    assert ours.links == ()
    assert ours.parent.span_id == theirs.get_span_context().span_id


def test_a_span_that_cannot_be_read_is_no_model_call():
    place = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    remote = trace.set_span_in_context(NonRecordingSpan(place))
    assert call_in(remote) is None
    assert call_in(otel_context.Context()) is None
    assert call_in(None) is None
    assert call_in("anything") is None


@pytest.mark.parametrize("asked", ["SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT", "true", "span_only"])
def test_who_asks_for_content_is_told_that_there_is_none(asked, monkeypatch, notices_reset, capsys):
    monkeypatch.setenv(content.VARIABLE, asked)
    SpanSink()
    SpanSink()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{content.VARIABLE}={asked}" in line
    assert "content-not-captured" in line


@pytest.mark.parametrize("asked", [None, "", "NO_CONTENT", "no_content", "false"])
def test_who_does_not_is_told_nothing(asked, monkeypatch, notices_reset, capsys):
    monkeypatch.delenv(content.VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(content.VARIABLE, asked)
    SpanSink()
    assert capsys.readouterr().err == ""
