"""The spans as an independent collector understands them: rotel, written in Rust, from PyPI."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from request_kinds import every_kind

import inferscope
from inferscope.sinks.export_metrics import BoundedReader, CountingMetricExporter
from inferscope.sinks.metric_semconv import REQUEST_METRICS
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.senders import metric_exporter, span_exporter
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

PROCESSOR = """
import json

def process_spans(resource_spans):
    with open({path!r}, "a") as file:
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                line = dict(
                    name=span.name,
                    trace=bytes(span.trace_id).hex(),
                    span=bytes(span.span_id).hex(),
                    parent=bytes(span.parent_span_id).hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    status=span.status.code,
                    links=[bytes(link.span_id).hex() for link in span.links],
                    attributes={{item.key: value(item.value.value) for item in span.attributes}},
                )
                file.write(json.dumps(line) + "\\n")

def value(found):
    return found if isinstance(found, (bool, int, float, str)) else str(type(found))
"""

METRICS = """
import json

def process_metrics(resource_metrics):
    with open({path!r}, "a") as file:
        for scope in resource_metrics.scope_metrics:
            for metric in scope.metrics:
                file.write(json.dumps(dict(name=metric.name, unit=metric.unit, **told(metric.data))) + "\\n")

def told(data):
    kind = type(data).__name__.removeprefix("MetricData_").lower()
    found = dict(kind=kind, points=[])
    for point in data[0].data_points:
        line = dict(attributes={{item.key: item.value.value for item in point.attributes}})
        if kind == "histogram":
            line.update(
                count=point.count,
                sum=point.sum,
                bounds=list(point.explicit_bounds),
                buckets=list(point.bucket_counts),
                exemplars=[bytes(one.span_id).hex() for one in point.exemplars],
            )
        found["points"].append(line)
    return found
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(command, ports):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline_s = time.monotonic() + 20
            while not all(answers(port) for port in ports):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    process.kill()
                    pytest.skip(f"rotel does not run here: {process.communicate()[0].strip()[-300:]}")
                time.sleep(0.02)
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """Endpoints of a running rotel, and the file that its spans end up in."""
    if find_spec("rotel") is None:
        pytest.skip("the package rotel is not installed (pip install rotel==0.0.1a15)")
    agent = Path(find_spec("rotel").origin).with_name("rotel-agent")
    if not os.access(agent, os.X_OK):
        pytest.skip(f"{agent} is not executable (chmod +x it)")
    folder = tmp_path_factory.mktemp("rotel")
    received = folder / "spans.jsonl"
    (folder / "processor.py").write_text(PROCESSOR.format(path=str(received)), encoding="utf-8")
    (folder / "metrics.py").write_text(METRICS.format(path=str(folder / "metrics.jsonl")), encoding="utf-8")
    grpc_port, http_port = free_port(), free_port()
    command = [
        *(str(agent), "start", "--exporter", "blackhole", "--batch-timeout", "50ms"),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
        *("--otlp-with-trace-processor", str(folder / "processor.py")),
        *("--otlp-with-metrics-processor", str(folder / "metrics.py")),
    ]
    with started(command, (grpc_port, http_port)):
        yield {
            "grpc": f"http://127.0.0.1:{grpc_port}",
            "http/protobuf": f"http://127.0.0.1:{http_port}",
            "file": received,
            "metrics": folder / "metrics.jsonl",
        }


def arrived(file, trace_id, count):
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        spans = [span for span in map(json.loads, lines) if span["trace"] == trace_id]
        if len(spans) == count:
            return {span["name"].split(" ")[0]: span for span in spans}
        time.sleep(0.02)
    raise TimeoutError(f"{len(spans)} of {count} spans arrived")


@pytest.mark.skipif(sys.platform != "linux", reason="rotel's wheel is for Linux")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_an_independent_collector_understands_the_spans(collector, protocol):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(span_exporter(collector[protocol], protocol, {}, 10.0)))
    sink = SpanSink(tracer_provider=provider)
    record = make_record(status="aborted", error_type="ValueError")
    sink(make_result(record=record))
    trace_id, span_id = sink.span_ids(record.request_id)
    spans = arrived(collector["file"], trace_id, 3)
    provider.shutdown()

    root, prefill, decode = spans["text_completion"], spans["prefill"], spans["decode"]
    assert root["span"] == prefill["parent"] == decode["parent"] == span_id
    assert root["parent"] == ""
    assert root["start"] == record.started_unix_ns
    assert root["end"] - root["start"] == record.wall_ns
    assert root["start"] <= prefill["start"] < prefill["end"] <= decode["start"] < decode["end"] <= root["end"]
    assert root["status"] == 2
    assert root["attributes"]["gen_ai.usage.input_tokens"] == 32
    assert root["attributes"]["gen_ai.request.stream"] is False
    assert root["attributes"]["gen_ai.latency.e2e"] == 0.722896
    assert decode["attributes"]["inferscope.bound"] == "memory"


@pytest.mark.skipif(sys.platform != "linux", reason="rotel's wheel is for Linux")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_an_independent_collector_understands_every_kind_of_request(collector, protocol, llama, prompt, transformers):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(span_exporter(collector[protocol], protocol, {}, 10.0)))
    sink = SpanSink(tracer_provider=provider)
    with inferscope.trace(llama, sinks=[sink]) as session:
        every_kind(llama, prompt, transformers)
        records = [result.record for result in session.results]
    traces = [(sink.span_ids(record.request_id)[0], 1 + len(record.phases)) for record in records]
    requests = [arrived(collector["file"], trace_id, count) for trace_id, count in traces]
    provider.shutdown()
    roots = [request.pop("text_completion") for request in requests]
    plain = {"prefill", "decode"}
    assert [requests[index].keys() for index in (0, 1, 3, 5, 6)] == [plain] * 5
    assert requests[4].keys() == {"draft", "prefill", "verify"}
    for root, request, record in zip(roots, requests, records, strict=True):
        assert root["end"] - root["start"] >= record.wall_ns
        for phase in request.values():
            assert phase["parent"] == root["span"]
            assert root["start"] <= phase["start"] <= phase["end"] <= root["end"]
    assert [root["status"] for root in roots] == [0, 0, 2, 0, 0, 0, 0]
    assert [root["attributes"]["gen_ai.request.stream"] for root in roots] == [False, True, *[False] * 5]
    assert roots[2]["attributes"]["error.type"] == "ValueError"
    assert [root["attributes"]["inferscope.batch_size"] for root in roots] == [1, 1, 1, 2, 1, 1, 1]
    assert [root["links"] for root in roots] == [*[[]] * 5, [roots[6]["span"]], [roots[5]["span"]]]


def metrics_arrived(file, model):
    """The newest state of each metric that has points of a model."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        found = {metric["name"]: metric for metric in map(json.loads, lines) if model in json.dumps(metric["points"])}
        if "inferscope.self.share" in found:  # the last of them
            return found
        time.sleep(0.02)
    raise TimeoutError(f"of the metrics {sorted(found)} arrived")


@pytest.mark.skipif(sys.platform != "linux", reason="rotel's wheel is for Linux")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_an_independent_collector_understands_the_metrics(collector, protocol):
    reader = BoundedReader(
        CountingMetricExporter(lambda: metric_exporter(collector[protocol], protocol, {}, 10.0), target="rotel")
    )
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    spans = SpanSink(tracer_provider=TracerProvider(shutdown_on_exit=False))
    made = make_record()
    record = make_record(model=replace(made.model, name=f"over {protocol}"))
    spans(make_result(record=record))
    MetricSink(meter_provider=provider, spans=spans)(make_result(record=record))
    assert reader.force_flush()
    found = metrics_arrived(collector["metrics"], f"over {protocol}")
    reader.leave(provider, 10)
    rows = {row.name: row for row in REQUEST_METRICS}
    for name, metric in found.items():
        assert metric["unit"] == rows[name].unit
        assert metric["kind"] == ("histogram" if rows[name].kind == "histogram" else "sum")
    (tpot,) = found["gen_ai.server.time_per_output_token"]["points"]
    assert (tpot["count"], tpot["sum"]) == (1, record.tpot_ns / 1e9)
    assert tuple(tpot["bounds"]) == rows["gen_ai.server.time_per_output_token"].borders
    assert (len(tpot["buckets"]), sum(tpot["buckets"])) == (len(tpot["bounds"]) + 1, 1)
    decode = spans.phase_span_context(record.request_id, "decode")
    assert tpot["exemplars"] == [f"{decode.span_id:016x}"]
    assert tpot["attributes"]["gen_ai.provider.name"] == "huggingface"
