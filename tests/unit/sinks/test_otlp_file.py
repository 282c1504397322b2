from __future__ import annotations

import builtins
import json

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link

from inferscope.errors import CacheUnwritableError, MissingExtraError
from inferscope.sinks.otlp_file import OtlpFileExporter
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.json"


def provider_for(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def spans_of(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    return [
        span for resource in document["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]
    ]


def test_the_file_is_otlp_json_as_the_protocol_writes_it(path):
    exporter = OtlpFileExporter(path)
    sink = SpanSink(tracer_provider=provider_for(exporter))
    sink(make_result(record=make_record(status="aborted", error_type="ValueError")))
    exporter.force_flush()
    prefill, decode, root = spans_of(path)
    trace_id, span_id = sink.span_ids("00c0ffee00c0ffee")
    assert {span["traceId"] for span in (prefill, decode, root)} == {trace_id}
    assert root["spanId"] == prefill["parentSpanId"] == decode["parentSpanId"] == span_id
    assert "parentSpanId" not in root
    assert (root["kind"], root["status"]["code"]) == (1, 2)
    assert root["startTimeUnixNano"] == "1790000000000000000"
    attributes = {item["key"]: item["value"] for item in root["attributes"]}
    assert attributes["gen_ai.usage.input_tokens"] == {"intValue": "32"}
    assert attributes["gen_ai.latency.e2e"] == {"doubleValue": 0.722896}
    assert attributes["gen_ai.request.stream"] == {"boolValue": False}
    assert attributes["gen_ai.response.finish_reasons"] == {"arrayValue": {"values": [{"stringValue": "length"}]}}


def test_the_file_parses_as_the_message_once_ids_are_in_protobufs_encoding(path):
    import base64  # noqa: PLC0415

    exporter = OtlpFileExporter(path)
    SpanSink(tracer_provider=provider_for(exporter))(make_result())
    exporter.shutdown()
    document = json.loads(path.read_text(encoding="utf-8"))
    for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for key in span.keys() & {"traceId", "spanId", "parentSpanId"}:
            span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    message = json_format.ParseDict(document, ExportTraceServiceRequest())
    assert len(message.resource_spans[0].scope_spans[0].spans) == 3


def test_ids_of_links_are_hexadecimal_too(path):
    exporter = OtlpFileExporter(path)
    tracer = provider_for(exporter).get_tracer("application")
    with tracer.start_as_current_span("first") as first:
        pass
    with tracer.start_as_current_span("second", links=[Link(first.get_span_context())]):
        pass
    exporter.force_flush()
    linked, linking = spans_of(path)
    assert linking["links"][0]["spanId"] == linked["spanId"]
    assert len(linked["spanId"]) == 16


def test_the_newest_spans_are_kept_and_the_others_counted(path):
    exporter = OtlpFileExporter(path, max_spans=5)
    tracer = provider_for(exporter).get_tracer("application")
    for number in range(12):
        tracer.start_span(f"span {number}").end()
    exporter.force_flush()
    assert [span["name"] for span in spans_of(path)] == [f"span {number}" for number in range(7, 12)]
    assert exporter.dropped == 7


def test_each_flush_replaces_the_file_and_leaves_nothing_beside_it(path):
    path.write_text("an older trace", encoding="utf-8")
    exporter = OtlpFileExporter(path)
    tracer = provider_for(exporter).get_tracer("application")
    assert path.read_text(encoding="utf-8") == "an older trace"
    for number in (1, 2):
        tracer.start_span("span").end()
        exporter.force_flush()
        assert len(spans_of(path)) == number
    assert list(path.parent.iterdir()) == [path]


def test_without_spans_nothing_is_written(path):
    OtlpFileExporter(path).shutdown()
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    for impossible in (tmp_path, tmp_path / "missing" / "trace.json"):
        with pytest.raises(CacheUnwritableError, match="cannot be written"):
            OtlpFileExporter(impossible)


def test_a_missing_encoder_names_the_extra(path, monkeypatch):
    real = builtins.__import__

    def without_exporters(name, *args, **kwargs):
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_exporters)
    with pytest.raises(MissingExtraError, match=r"extra \[otlp\]"):
        OtlpFileExporter(path)
