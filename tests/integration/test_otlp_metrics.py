"""Every kind of request, with real models, as a receiver gets it: spans and metrics, names, types and exemplars."""

from __future__ import annotations

import pytest
from opentelemetry.proto.metrics.v1 import metrics_pb2
from otlp_receiver import RECEIVERS, running, values_of
from request_kinds import every_kind

import inferscope
from inferscope.sinks import semconv
from inferscope.sinks.metric_semconv import ACTIVE, BASE_KEYS, DROPPED, REQUEST_METRICS
from inferscope.sinks.setup import setup
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

KINDS = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
STATUS_ERROR = 2
METRICS = {row.name: row for row in (*REQUEST_METRICS, ACTIVE, DROPPED)}
CUMULATIVE = metrics_pb2.AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE

pytestmark = pytest.mark.usefixtures("notices_reset", "no_global_provider", "patient_exports")


@pytest.fixture(scope="module", params=list(RECEIVERS))
def protocol(request):
    return request.param


@pytest.fixture
def received(protocol, llama, prompt, transformers):
    """What a receiver has after every kind of request, and the records."""
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        with inferscope.trace(llama) as session:
            every_kind(llama, prompt, transformers)
            records = [result.record for result in session.results]
        assert providers.force_flush(30)
        assert (providers.dropped, providers.metric_exports_failed) == (0, 0)
        yield inbox, records


def test_every_kind_of_request_arrives_as_spans_and_metrics(received):
    inbox, records = received
    spans = {span.span_id: span for span, _ in inbox.spans()}
    roots = {values_of(span.attributes)["inferscope.request.id"]: span for span in spans.values() if _is_root(span)}
    assert roots.keys() == {record.request_id for record in records}
    children = [span for span in spans.values() if not _is_root(span)]
    for span in children:
        root = spans[span.parent_span_id]
        assert (_is_root(root), span.trace_id) == (True, root.trace_id)
        start, end = root.start_time_unix_nano, root.end_time_unix_nano
        assert start <= span.start_time_unix_nano <= span.end_time_unix_nano <= end
    phases = [
        {span.name for span in children if span.parent_span_id == roots[record.request_id].span_id}
        for record in records
    ]
    _, streaming, aborted, batched, _, *beside = (roots[record.request_id] for record in records)
    plain = {"prefill", "decode"}
    assert [phases[index] for index in (0, 1, 3, 5, 6)] == [plain] * 5
    assert phases[4] == {"draft", "prefill", "verify"}
    assert values_of(streaming.attributes)["gen_ai.response.time_to_first_chunk"] > 0
    assert (aborted.status.code, aborted.status.message) == (STATUS_ERROR, "ValueError")
    assert {root.status.code for key, root in roots.items() if root is not aborted} == {0}
    assert values_of(batched.attributes)["inferscope.batch_size"] == 2
    assert [[link.span_id for link in root.links] for root in beside] == [[beside[1].span_id], [beside[0].span_id]]
    named = [values_of(root.links[0].attributes)["inferscope.request.id"] for root in beside]
    assert named == [records[6].request_id, records[5].request_id]
    _check_span_types(spans.values())
    _check_metrics(inbox, records, spans)


def _is_root(span):
    return span.name.startswith("text_completion ")


def _check_span_types(spans):
    request = {row.name: KINDS[row.type] for row in (*semconv.REQUEST_START, *semconv.REQUEST_END)}
    phase = {row.name: KINDS[row.type] for row in semconv.PHASE}
    event = {row.name: KINDS[row.type] for row in semconv.WORST_PASS}
    link = {row.name: KINDS[row.type] for row in semconv.CONTENDER}
    for span in spans:
        for types, carriers in (
            (request if _is_root(span) else phase, [span]),
            (event, span.events),
            (link, span.links),
        ):
            for carrier in carriers:
                found = {key: type(value) for key, value in values_of(carrier.attributes).items()}
                assert found == {key: types[key] for key in found}
                assert carrier.dropped_attributes_count == 0


def _check_metrics(inbox, records, spans):
    metrics = inbox.metrics()
    unseen = {"inferscope.request.launches_per_token", "inferscope.phase.launches", "inferscope.phase.device_time"}
    assert METRICS.keys() - metrics.keys() <= {*unseen, "inferscope.overhead.estimate", "inferscope.overhead.share"}
    for name, metric in metrics.items():
        row = METRICS[name]
        data = getattr(metric, metric.WhichOneof("data"))
        kinds = {"histogram": "histogram", "gauge": "gauge"}
        assert (metric.WhichOneof("data"), metric.unit) == (kinds.get(row.kind, "sum"), row.unit)
        assert row.kind == "gauge" or data.aggregation_temporality == CUMULATIVE
        for attributes, point in inbox.points(name):
            assert attributes.keys() <= {*BASE_KEYS, *row.attributes}
            assert {type(value) for value in attributes.values()} <= {str}
            if row.kind == "histogram":
                assert tuple(point.explicit_bounds) == row.borders
                assert sum(point.bucket_counts) == point.count > 0
    _check_sums(inbox, records)
    led = {
        "gen_ai.server.time_to_first_token": {"prefill"},
        "gen_ai.server.time_per_output_token": {"decode", "text_completion LlamaForCausalLM"},
        "gen_ai.server.request.duration": {"text_completion LlamaForCausalLM"},
    }
    for name, places in led.items():
        exemplars = [one for _, point in inbox.points(name) for one in point.exemplars]
        assert exemplars
        for one in exemplars:
            assert spans[one.span_id].trace_id == one.trace_id
            assert spans[one.span_id].name in places
    per_token = [one for _, point in inbox.points("inferscope.request.tpot") for one in point.exemplars]
    assert "decode" in {spans[one.span_id].name for one in per_token}


def _check_sums(inbox, records):
    requests = {
        (keys["inferscope.status"], keys.get("error.type")): point.as_double or point.as_int
        for keys, point in inbox.points("inferscope.requests")
    }
    assert requests == {("ok", None): 6, ("aborted", "ValueError"): 1}
    durations = inbox.points("gen_ai.server.request.duration")
    assert sum(point.count for _, point in durations) == len(records) == 7
    whole_s = sum(record.wall_ns for record in records) / 1e9
    assert sum(point.sum for _, point in durations) == pytest.approx(whole_s)
    ledger = inbox.points("inferscope.ledger.time")
    assert sum(point.as_double for _, point in ledger) == pytest.approx(whole_s)
    tokens = {keys["gen_ai.token.type"]: point.as_int for keys, point in inbox.points("inferscope.request.tokens")}
    assert tokens["input"] == sum(record.input_tokens for record in records)
    assert tokens["output"] == sum(record.output_tokens or 0 for record in records)
    assert [point.as_int for _, point in inbox.points("inferscope.requests.active")] == [0]


def test_a_second_setup_adds_a_receiver_and_says_nothing(protocol, capsys, llama, prompt):
    with RECEIVERS[protocol]() as one, RECEIVERS[protocol]() as other:
        first = setup(
            endpoint=one.endpoint, protocol=protocol, resource_attributes={"deployment.environment.name": "x"}
        )
        second = setup(endpoint=other.endpoint, protocol=protocol)
        assert (first.tracer_provider, first.meter_provider) == (second.tracer_provider, second.meter_provider)
        with inferscope.trace(llama) as session:
            llama.generate(prompt, max_new_tokens=3)
            session.wait()
        assert second.force_flush(30)
        assert first.shutdown(30)
        with inferscope.trace(llama) as session:
            llama.generate(prompt, max_new_tokens=3)
            session.wait()
        assert second.force_flush(30)
        assert second.shutdown(30)
        for inbox, count in ((one, 1), (other, 2)):
            assert len(inbox.spans()) == 3 * count
            ((_, point),) = inbox.points("inferscope.requests")
            assert point.as_int == count
            assert {resource["deployment.environment.name"] for _, resource in inbox.spans()} == {"x"}
    assert capsys.readouterr().err == ""


def test_a_receiver_without_a_place_for_metrics_costs_one_line(protocol, capsys, llama, prompt):
    with RECEIVERS[protocol]() as inbox:
        inbox.takes_metrics = False
        providers = setup(endpoint=inbox.endpoint, protocol=protocol)
        with inferscope.trace(llama) as session:
            llama.generate(prompt, max_new_tokens=3)
            session.wait()
        assert [providers.force_flush(30) for _ in range(2)] == [True, True]
        assert providers.shutdown(30)
        assert (providers.dropped, providers.metric_exports_failed, len(inbox.spans())) == (0, 0, 3)
    said = capsys.readouterr().err
    assert said.count("metrics-not-taken") == said.count("slug=") == 1


@pytest.mark.parametrize("path", ["", "/", "/otlp", "/otlp/v1/traces"])
def test_each_signal_has_its_own_path_over_http(path):
    from inferscope.sinks.senders import metric_exporter, span_exporter  # noqa: PLC0415

    base = "http://127.0.0.1:9" + path.removesuffix("/v1/traces").rstrip("/")
    address = "http://127.0.0.1:9" + path
    for build, signal in ((span_exporter, "traces"), (metric_exporter, "metrics")):
        exporter = build(address, "http/protobuf", {}, 1.0)
        assert exporter._endpoint == f"{base}/v1/{signal}"
        exporter.shutdown()


def test_zero_seconds_means_no_metrics(protocol):
    with (
        RECEIVERS[protocol]() as inbox,
        running(endpoint=inbox.endpoint, protocol=protocol, metrics_every_s=0) as providers,
    ):
        assert providers.meter_provider is None
        SpanSink()(make_result(record=make_record()))
        assert providers.force_flush(30)
    assert inbox.metric_requests == []


@pytest.mark.parametrize("wrong", [{"": "x"}, {"a": None}, {1: "x"}, {"a": ["x"]}])
def test_attributes_of_the_resource_are_checked(wrong):
    with pytest.raises(inferscope.InferscopeError, match="resource_attributes="):
        setup(endpoint="http://127.0.0.1:4317", resource_attributes=wrong)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "soon"])
def test_seconds_between_exports_are_checked(wrong):
    with pytest.raises(inferscope.InferscopeError, match="metrics_every_s="):
        setup(endpoint="http://127.0.0.1:4317", metrics_every_s=wrong)
