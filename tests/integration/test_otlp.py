"""What arrives at a real receiver, and what the host notices when there is none."""

from __future__ import annotations

import builtins
import json
import os
import random
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otlp_receiver import RECEIVERS, closed_port, running, values_of

import inferscope
from inferscope.errors import MissingExtraError, SettingError
from inferscope.sinks import semconv
from inferscope.sinks.setup import setup
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

STATUS_ERROR = 2
KINDS = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}

pytestmark = pytest.mark.usefixtures("notices_reset", "no_global_provider", "patient_exports")


@pytest.fixture(params=list(RECEIVERS))
def protocol(request):
    return request.param


def by_name(inbox, count=3):
    return {span.name.split(" ")[0]: span for span, _ in inbox.wait_for_spans(count)}


def test_a_request_arrives_as_a_root_with_its_phases(protocol):
    record = make_record()
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        SpanSink()(make_result(record=record))
        assert providers.force_flush(60) is True
        spans = by_name(inbox)
        assert (providers.exported, providers.dropped) == (3, 0)
    root, prefill, decode = spans["text_completion"], spans["prefill"], spans["decode"]
    assert root.name == "text_completion HuggingFaceTB/SmolLM2-135M-Instruct"
    assert root.parent_span_id == b""
    assert prefill.parent_span_id == decode.parent_span_id == root.span_id
    assert root.trace_id == prefill.trace_id == decode.trace_id
    assert root.start_time_unix_nano == record.started_unix_ns
    assert root.end_time_unix_nano - root.start_time_unix_nano == record.wall_ns
    for span in (prefill, decode):
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano < span.end_time_unix_nano <= root.end_time_unix_nano
    assert root.status.code == 0
    assert [event.name for event in decode.events] == ["inferscope.worst_pass"] * 3


def test_values_arrive_with_the_types_of_the_table(protocol):
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        SpanSink()(make_result())
        providers.force_flush(60)
        spans = by_name(inbox)
    request = (*semconv.REQUEST_START, *semconv.REQUEST_END)
    for name, rows in (("text_completion", request), ("prefill", semconv.PHASE), ("decode", semconv.PHASE)):
        attributes = values_of(spans[name].attributes)
        types = {row.name: KINDS[row.type] for row in rows}
        assert {key: type(value) for key, value in attributes.items()} == {key: types[key] for key in attributes}
        assert len(attributes) > 25
        assert spans[name].dropped_attributes_count == 0
    assert values_of(spans["decode"].attributes)["inferscope.bound"] == "memory"
    assert values_of(spans["text_completion"].attributes)["gen_ai.usage.output_tokens"] == 16


def test_an_aborted_request_arrives_as_an_error(protocol):
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        SpanSink()(make_result(record=make_record(status="aborted", error_type="KeyboardInterrupt")))
        providers.force_flush(60)
        root = by_name(inbox)["text_completion"]
    assert root.status.code == STATUS_ERROR
    assert root.status.message == "KeyboardInterrupt"
    assert values_of(root.attributes)["error.type"] == "KeyboardInterrupt"


def test_the_resource_says_who_sends(protocol):
    options = {"protocol": protocol, "service_name": "chat-server", "headers": {"X-Api-Key": "s3cret"}}
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, **options) as providers:
        SpanSink()(make_result())
        providers.force_flush(60)
        ((_, resource), *_) = inbox.wait_for_spans(3)
    assert resource["service.name"] == "chat-server"
    assert resource["host.name"] == socket.gethostname()
    assert resource["process.pid"] == os.getpid()
    assert {name for name, _, _ in semconv.RESOURCE} <= resource.keys()
    assert inbox.headers[0]["x-api-key"] == "s3cret"


def test_the_environment_names_the_service_and_the_receiver(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-environment,host.name=pod-7")
    with RECEIVERS["grpc"]() as inbox:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", inbox.endpoint)
        with running() as providers:
            SpanSink()(make_result())
            providers.force_flush(60)
            ((_, resource), *_) = inbox.wait_for_spans(3)
    assert (resource["service.name"], resource["host.name"]) == ("from-environment", "pod-7")


def test_without_a_name_the_service_is_inferscope():
    with RECEIVERS["grpc"]() as inbox, running(endpoint=inbox.endpoint.removeprefix("http://")) as providers:
        SpanSink()(make_result())
        providers.force_flush(60)
        ((_, resource), *_) = inbox.wait_for_spans(3)
    assert resource["service.name"] == "inferscope"


def test_a_receiver_and_a_file_get_the_same_spans(tmp_path):
    file = tmp_path / "trace.json"
    with RECEIVERS["grpc"]() as inbox, running(endpoint=inbox.endpoint, file=file) as providers:
        SpanSink()(make_result())
        assert providers.force_flush(60) is True
        sent = {span.span_id.hex() for span, _ in inbox.wait_for_spans(3)}
    document = json.loads(file.read_text(encoding="utf-8"))
    (resource,) = document["resourceSpans"]
    written = {span["spanId"] for scope in resource["scopeSpans"] for span in scope["spans"]}
    assert written == sent
    assert {"key": "service.name", "value": {"stringValue": "inferscope"}} in resource["resource"]["attributes"]


def test_a_file_alone_needs_no_receiver(tmp_path):
    file = tmp_path / "trace.json"
    with running(file=str(file)) as providers:
        SpanSink()(make_result())
    assert (providers.exported, providers.dropped) == (3, 0)
    assert json.loads(file.read_text(encoding="utf-8"))["resourceSpans"]


@contextmanager
def broken_receiver(protocol, how):
    with closed_port() if how == "dead" else RECEIVERS[protocol](how) as inbox:
        yield inbox


@pytest.mark.parametrize("how", ["dead", "stalling", "refusing"])
def test_a_broken_receiver_costs_the_host_nothing_but_the_spans(protocol, how, monkeypatch, capsys):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")
    with broken_receiver(protocol, how) as inbox:
        providers = setup(endpoint=inbox.endpoint, protocol=protocol)
        sink = SpanSink()
        sink(make_result())
        if how == "stalling":
            assert inbox.asked.wait(30)  # the first batch is under way and will never be answered
        sink(make_result())  # returns, although nothing has been answered
        assert not inbox.released.is_set()
        assert providers.force_flush() is False
        assert providers.shutdown() is True
        assert (providers.exported, providers.dropped) == (0, 6)
        assert inbox.requests == []
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "export-failed" in said[0]
    assert inbox.endpoint.removeprefix("http://") in said[0]
    assert "reason='unknown'" not in said[0]


@pytest.mark.parametrize("how", ["refusing", "stalling"])
def test_a_receiver_that_comes_back_gets_what_follows(protocol, how, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")
    with (
        RECEIVERS[protocol](how) as inbox,
        running(endpoint=inbox.endpoint, protocol=protocol) as providers,
    ):
        SpanSink()(make_result())
        assert providers.force_flush(30) is False
        inbox.mood = "accepting"
        inbox.released.set()
        requests = 1
        while providers.exported == 0:  # at once, unless the machine is too busy to answer in 0.4 s
            SpanSink()(make_result())
            requests += 1
            assert providers.force_flush(30) or requests < 20
        assert providers.exported + providers.dropped == 3 * requests
        assert providers.dropped >= 3


def test_a_flush_waits_no_longer_than_it_was_told(protocol):
    with RECEIVERS[protocol]("stalling") as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        SpanSink()(make_result())
        assert providers.force_flush(timeout_s=0.05) is False
        assert providers.dropped == 0  # the export is still under way: nothing has been given up
        inbox.mood = "accepting"
        inbox.released.set()


@pytest.mark.parametrize("how", ["dead", "stalling"])
def test_the_end_of_the_process_is_not_held_up(protocol, how):
    script = (
        "import sys; from inferscope.sinks.setup import setup; from inferscope.sinks.spans import SpanSink;"
        "from inferscope.testing import make_result;"
        "setup(endpoint=sys.argv[1], protocol=sys.argv[2]); sink = SpanSink();"
        "[sink(make_result()) for _ in range(650)]"
    )
    with broken_receiver(protocol, how) as inbox:
        # Eight batches of 2 s each would take 16 s; the SDK alone would wait for 30 s.
        finished = subprocess.run(
            [sys.executable, "-c", script, inbox.endpoint, protocol],
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        )
    assert finished.stdout == ""
    assert len(finished.stderr.strip().splitlines()) == 1, finished.stderr
    assert "export-failed" in finished.stderr


def test_an_applications_provider_is_kept_and_gets_the_outlet(capsys):
    own = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(own)
    with RECEIVERS["grpc"]() as inbox:
        with running(endpoint=inbox.endpoint) as providers:
            assert providers.tracer_provider is own is trace.get_tracer_provider()
            SpanSink()(make_result())
            assert providers.force_flush(60) is True
            inbox.wait_for_spans(3)
        # What inferscope added has ended; the application's provider has not.
        with own.get_tracer("application").start_as_current_span("later") as later:
            assert later.is_recording()
        with running(endpoint=inbox.endpoint):
            assert trace.get_tracer_provider() is own
    assert capsys.readouterr().err.count("provider-already-set") == 1
    own.shutdown()


def test_a_provider_that_takes_no_outlets_is_kept_too(capsys):
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    with running(endpoint="http://127.0.0.1:4317") as providers:
        SpanSink()(make_result())
        assert providers.force_flush(60) is True
        assert (providers.exported, providers.dropped) == (0, 0)
    assert "nothing is sent" in capsys.readouterr().err


def test_a_sink_made_before_setup_reports_after_it():
    sink = SpanSink()
    sink(make_result())
    with RECEIVERS["grpc"]() as inbox, running(endpoint=inbox.endpoint) as providers:
        sink(make_result())
        assert providers.force_flush(60) is True
        assert len(inbox.wait_for_spans(3)) == 3


def test_the_disabled_sdk_sends_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with RECEIVERS["grpc"]() as inbox, running(endpoint=inbox.endpoint) as providers:
        SpanSink()(make_result())
        assert providers.force_flush(60) is True
        assert inbox.requests == []


@pytest.mark.parametrize(
    "endpoint", ["", "foo", "localhost", "foo:bar", "ftp://host", "http://", "http://host:99999", "http://[::1", "://"]
)
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(SettingError, match="expected an address such as http://localhost:4317"):
        setup(endpoint=endpoint)
    assert trace._TRACER_PROVIDER is None


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(seconds, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", seconds)
    with pytest.raises(SettingError, match=r"OTEL_EXPORTER_OTLP_TIMEOUT=.*: expected seconds"):
        setup(endpoint="http://127.0.0.1:4317")


def test_a_protocol_that_does_not_exist_is_refused():
    with pytest.raises(SettingError, match='expected "grpc" or "http/protobuf"'):
        setup(endpoint="http://127.0.0.1:4317", protocol="http/json")


def test_a_missing_exporter_names_the_extra(protocol, monkeypatch):
    real = builtins.__import__

    def without_exporters(name, *args, **kwargs):
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_exporters)
    with pytest.raises(MissingExtraError, match=r"extra \[otlp\]"):
        setup(endpoint="http://127.0.0.1:4317", protocol=protocol)
    assert trace._TRACER_PROVIDER is None


def test_a_password_in_the_address_is_not_logged(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")
    with closed_port() as nowhere:
        address = nowhere.endpoint.replace("http://", "http://user:s3cret@")
        with running(endpoint=address, protocol="http/protobuf") as providers:
            SpanSink()(make_result())
            providers.force_flush(60)
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize("how", ["accepting", "dead", "stalling", "refusing"])
def test_a_real_generate_is_the_same_whatever_the_receiver_does(protocol, how, llama, prompt, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")
    expected = llama.generate(prompt, max_new_tokens=5).tolist()
    with broken_receiver(protocol, how) as inbox:
        providers = setup(endpoint=inbox.endpoint, protocol=protocol)
        before = random.getstate()
        with inferscope.trace(llama) as session:
            assert [llama.generate(prompt, max_new_tokens=5).tolist() for _ in range(3)] == [expected] * 3
        assert session.wait()
        if how == "accepting":  # where a receiver fails, OpenTelemetry's exporters draw how long they wait
            assert random.getstate() == before
        delivered = providers.force_flush(60)
        providers.shutdown()
        assert (providers.exported, providers.dropped) == ((9, 0) if how == "accepting" else (0, 9))
        assert delivered is (how == "accepting")
        if how == "accepting":
            _check_real_spans(inbox, session)


def _check_real_spans(inbox, session):
    spans = [span for span, _ in inbox.wait_for_spans(9)]
    roots = {span.span_id: span for span in spans if not span.parent_span_id}
    phases = [span for span in spans if span.parent_span_id]
    assert len(roots) == 3
    assert {span.name for span in roots.values()} == {"text_completion LlamaForCausalLM"}
    assert sorted(span.name for span in phases) == ["decode"] * 3 + ["prefill"] * 3
    for span in phases:
        root = roots[span.parent_span_id]
        assert span.trace_id == root.trace_id
        start, end = root.start_time_unix_nano, root.end_time_unix_nano
        assert start <= span.start_time_unix_nano <= span.end_time_unix_nano <= end
    sent = {values_of(span.attributes)["gen_ai.usage.output_tokens"] for span in roots.values()}
    assert sent == {session.last.record.output_tokens} == {5}
