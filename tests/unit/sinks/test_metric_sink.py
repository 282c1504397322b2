from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from inferscope import losses
from inferscope.analysis.verdict import BOUNDS
from inferscope.records import OwnOverhead, PhaseLedger, StepCount
from inferscope.sinks.base import EarlySink, resolve_sinks
from inferscope.sinks.metric_semconv import ACTIVE, BASE_KEYS, DROPPED, REQUEST_METRICS
from inferscope.sinks.metrics import MAX_ERRORS, MAX_MODELS, MetricSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = dict(zip(BASE_KEYS, ("text_completion", "huggingface", MODEL), strict=True))
TABLE = (*REQUEST_METRICS, ACTIVE, DROPPED)


class Meters:
    """A real provider whose metrics can be read."""

    def __init__(self, **options):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False, **options)
        self.sink = MetricSink(meter_provider=self.provider)

    def metrics(self):
        data = self.reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics if data and data.resource_metrics else ()
        return {metric.name: metric for scope in found for metric in scope.metrics}

    def points(self, name):
        metric = self.metrics().get(name)
        return [] if metric is None else [(dict(point.attributes), point) for point in metric.data.data_points]

    def sums(self, name, *keys):
        found = {}
        for attributes, point in self.points(name):
            key = tuple(attributes.get(key) for key in keys)
            found[key if len(keys) != 1 else key[0]] = point.value
        return found


@pytest.fixture
def meters():
    return Meters()


def full_result():
    """A result in which everything that a row reads is known."""
    record = make_record()
    phases = tuple(
        replace(phase, launches=301 * phase.passes, launches_source="native", contended_ns=1_000)
        for phase in record.phases
    )
    prefill = replace(phases[0], ledger=replace(phases[0].ledger, shared_ns=2_000))
    own = OwnOverhead(budget_share=0.01, observed_share=1.0, self_share=0.1, per_token_ns=2.0, low_ns=1.0, high_ns=3.0)
    return make_result(
        record=replace(
            record, phases=(prefill, phases[1]), ledger=replace(record.ledger, queue_ns=3_000), own_overhead=own
        )
    )


def test_every_row_of_the_table_is_emitted_with_its_kind_unit_and_keys(meters):
    meters.sink.begin("1", 0, None, MODEL, {})
    meters.sink(full_result())
    meters.sink(make_result(record=make_record(status="aborted", error_type="ValueError")))
    found = meters.metrics()
    assert found.keys() == {row.name for row in TABLE}
    for row in TABLE:
        metric = found.get(row.name)
        if metric is None:
            continue
        data = metric.data
        kind = "histogram" if hasattr(data.data_points[0], "bucket_counts") else "counter"
        assert kind == ("histogram" if row.kind == "histogram" else "counter")
        assert getattr(data, "is_monotonic", row.kind == "counter") is (row.kind == "counter")
        assert (metric.unit, metric.description) == (row.unit, row.meaning)
        base = set() if row in (ACTIVE, DROPPED) else set(BASE_KEYS)
        keys = {key for point in data.data_points for key in point.attributes}
        assert keys == base | set(row.attributes)
        if kind == "histogram":
            assert tuple(data.data_points[0].explicit_bounds) == row.borders


def test_the_conventions_borders_are_theirs():
    borders = {row.name: row.borders for row in REQUEST_METRICS}
    duration = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    ttft = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    tpot = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]
    assert list(borders["gen_ai.server.request.duration"]) == duration
    assert list(borders["gen_ai.server.time_to_first_token"]) == ttft
    assert list(borders["gen_ai.server.time_per_output_token"]) == tpot
    for row in REQUEST_METRICS:
        assert list(row.borders) == sorted(set(row.borders))
        assert bool(row.borders) is (row.kind == "histogram")


def test_the_table_reads_as_a_reference():
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))
    for row in TABLE:
        assert re.fullmatch(r"(gen_ai|inferscope)(\.[a-z0-9_]+)+", row.name)
        assert row.unit
        assert row.meaning.endswith(".")
        assert "|" not in row.meaning


def test_values_are_the_records(meters):
    record = make_record()
    meters.sink(make_result(record=record))
    (point,) = [point for _, point in meters.points("gen_ai.server.request.duration")]
    assert (point.count, point.sum) == (1, record.wall_ns / 1e9)
    assert meters.points("gen_ai.server.time_to_first_token")[0][1].sum == record.ttft_ns / 1e9
    assert meters.points("gen_ai.server.time_per_output_token")[0][1].sum == record.tpot_ns / 1e9
    assert meters.points("gen_ai.server.request.duration")[0][0] == BASE
    assert meters.sums("inferscope.request.tokens", "gen_ai.token.type") == {"input": 32, "output": 16}
    assert meters.points("inferscope.request.syncs_per_token")[0][1].sum == 1
    assert meters.sums("inferscope.phase.passes", "inferscope.phase") == {"prefill": 1, "decode": 15}


def test_seconds_by_phase_and_bound_and_ledger_all_add_up(meters):
    record = make_record()
    meters.sink(make_result(record=record))
    walls = {phase.name: phase.wall_ns / 1e9 for phase in record.phases}
    assert meters.sums("inferscope.phase.time", "inferscope.phase", "inferscope.bound") == {
        ("prefill", "compute"): walls["prefill"],
        ("decode", "memory"): walls["decode"],
    }
    bounds = meters.sums("inferscope.bound.time", "inferscope.phase", "inferscope.bound")
    assert bounds["decode", "overhead"] == pytest.approx(0.14 * walls["decode"])
    for name, wall_s in walls.items():
        assert sum(value for (phase, _), value in bounds.items() if phase == name) == pytest.approx(wall_s)
    ledger = meters.sums("inferscope.ledger.time", "inferscope.phase", "inferscope.class")
    assert sum(ledger.values()) == pytest.approx(record.wall_ns / 1e9)
    assert ledger[None, "self"] == record.ledger.self_ns / 1e9
    assert ledger["decode", "issue"] == record.phases[1].ledger.issue_ns / 1e9


def test_what_is_unknown_has_no_point_and_what_is_zero_has_one(meters):
    ledger = PhaseLedger(issue_ns=9, select_ns=1, wait_ns=None, deliver_ns=0, offcpu_ns=None, gc_ns=0)
    record = make_record()
    decode = replace(record.phases[1], ledger=ledger, syncs=None, launches=None, device=None, contended_ns=None)
    record = make_record(
        phases=(decode,), ttft_ns=None, tpot_ns=None, itl_ns=None, input_tokens=None, output_tokens=None
    )
    meters.sink(make_result(record=record))
    found = meters.metrics()
    for absent in (
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "inferscope.request.ttft",
        "inferscope.request.tpot",
        "inferscope.request.itl.p50",
        "inferscope.request.itl.p99",
        "inferscope.request.tokens",
        "inferscope.request.syncs_per_token",
        "inferscope.request.launches_per_token",
        "inferscope.phase.launches",
        "inferscope.phase.syncs",
        "inferscope.phase.device_time",
        "inferscope.overhead.estimate",
    ):
        assert absent not in found
    classes = meters.sums("inferscope.ledger.time", "inferscope.phase", "inferscope.class")
    assert classes["decode", "deliver"] == 0
    assert ("decode", "wait") not in classes
    assert meters.sums("inferscope.overlay.time", "inferscope.class") == {"gc": 0}


def test_a_phase_without_an_opinion_is_unknown_time(meters):
    result = make_result()
    meters.sink(replace(result, diagnosis=replace(result.diagnosis, phases=())))
    for name in ("inferscope.phase.time", "inferscope.bound.time"):
        assert set(meters.sums(name, "inferscope.bound")) == {"unknown"}


def test_what_tracing_costs_is_told_as_the_newest_record_has_it(meters):
    for per_token_ns, share in ((50.0, None), (-2_000.0, 0.004)):
        own = OwnOverhead(
            budget_share=0.01,
            observed_share=0.5,
            self_share=share,
            per_token_ns=per_token_ns,
            low_ns=per_token_ns - 1_000,
            provenance="randomised",
        )
        meters.sink(make_result(record=make_record(own_overhead=own)))
    assert meters.sums("inferscope.overhead.estimate", "inferscope.limit") == {"low": -3e-6, "middle": -2e-6}
    told = {name: meters.points(f"inferscope.overhead.{name}")[0][1].value for name in ("share", "budget")}
    assert told == {"share": 0.004, "budget": 0.01}
    assert meters.points("inferscope.overhead.observed_share")[0][1].value == 0.5


STEP = StepCount(
    name="decode", passes=10, batch_size=1, context_from=32, context_to=63, launches=300, syncs=2, unit="kernel",
    source="native", samples=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "launches", "told"),
    [
        ((STEP,), (4_650, "deep"), (310, "deep")),
        ((STEP, replace(STEP, passes=5, launches=330, syncs=None, source="deep")), (None, None), (310, "deep")),
        ((STEP, replace(STEP, passes=5, launches=9, varies=True)), (None, None), (300, "native")),
        ((replace(STEP, unit="operator"),), (None, None), None),
    ],
    ids=["all counted", "two kinds", "one settles", "operators"],
)
def test_launches_per_token_are_the_census_s(meters, steps, launches, told):
    prefill, decode = make_record().phases
    decode = replace(decode, steps=steps, launches=launches[0], launches_source=launches[1])
    meters.sink(make_result(record=make_record(phases=(prefill, decode))))
    points = meters.points("inferscope.request.launches_per_token")
    assert [(point.sum, keys["inferscope.source"]) for keys, point in points] == ([] if told is None else [told])
    assert meters.points("inferscope.request.syncs_per_token")[0][1].sum == 1 + 2


def test_a_residual_below_zero_is_not_added(meters, caplog):
    record = make_record()
    meters.sink(make_result(record=make_record(ledger=replace(record.ledger, residual_ns=-5))))
    assert "residual" not in meters.sums("inferscope.ledger.time", "inferscope.class")
    assert caplog.text == ""


@example([f"model {number}" for number in range(40)], [f"Error{number}" for number in range(40)])
@settings(max_examples=20)
@given(st.lists(st.text(max_size=8), max_size=50), st.lists(st.text(max_size=8), max_size=50))
def test_no_attribute_takes_more_values_than_are_documented(models, errors):
    meters, record = Meters(), make_record()
    for name in models:
        meters.sink.begin(name, 0, None, name, {})
        meters.sink(make_result(record=replace(record, model=replace(record.model, name=name))))
    for error in errors:
        meters.sink(make_result(record=replace(record, status="aborted", error_type=error)))
    seen: dict[str, set[object]] = {}
    for metric in meters.metrics().values():
        for point in metric.data.data_points:
            for key, value in point.attributes.items():
                seen.setdefault(key, set()).add(value)
    assert len(seen.get("gen_ai.request.model", ())) <= MAX_MODELS + 1
    assert len(seen.get("error.type", ())) <= MAX_ERRORS + 1
    assert seen.get("inferscope.bound", set()) <= set(BOUNDS)
    if len(set(models)) > MAX_MODELS:
        assert "other" in seen["gen_ai.request.model"]


def test_active_requests_are_counted_while_they_run(meters):
    assert isinstance(meters.sink, EarlySink)
    for number in range(3):
        root = meters.sink.begin(str(number), 0, None, MODEL, {})
        assert (root.recording, root.ids) == (True, None)
    assert meters.sums(ACTIVE.name, "gen_ai.request.model") == {MODEL: 3}
    meters.sink.abandon("0")
    meters.sink.abandon("0")
    meters.sink(make_result(record=make_record(request_id="1")))
    assert meters.sums(ACTIVE.name, "gen_ai.request.model") == {MODEL: 1}
    meters.sink.abandon("2")
    assert meters.sums(ACTIVE.name, "gen_ai.request.model") == {MODEL: 0}


def test_two_sessions_of_one_request_count_it_once(meters):
    other = MetricSink(meter_provider=meters.provider)
    result = make_result()
    for sink in (meters.sink, other):
        sink.begin(result.record.request_id, 0, None, MODEL, {})
    assert meters.sums(ACTIVE.name, "gen_ai.request.model") == {MODEL: 1}
    for sink in (meters.sink, other):
        sink(result)
    assert meters.sums("inferscope.requests", "inferscope.status") == {"ok": 1}


def test_many_sinks_on_one_provider_share_their_instruments(meters, caplog):
    for _ in range(20):
        MetricSink(meter_provider=meters.provider)(make_result())
    assert meters.sums("inferscope.requests", "inferscope.status") == {"ok": 20}
    assert caplog.text == ""


def test_exemplars_lead_to_the_span_that_the_value_is_of():
    spans = SpanSink(tracer_provider=TracerProvider(shutdown_on_exit=False))
    meters = Meters()
    _, sink = resolve_sinks([spans, meters.sink])
    prefill, decode = make_record().phases
    record = make_record(request_id="a" * 16, phases=(prefill, replace(decode, steps=(STEP,))))
    spans(make_result(record=record))
    sink(make_result(record=record))

    found = meters.metrics()  # once: an exemplar is told with the next collection and not again

    def exemplar(name):
        ((one,),) = [point.exemplars for point in found[name].data.data_points]
        return one.span_id, one.trace_id, one.value

    def place(phase):
        context = spans.phase_span_context("a" * 16, phase)
        return context.span_id, context.trace_id

    tpot = exemplar("gen_ai.server.time_per_output_token")
    assert tpot == (*place("decode"), record.tpot_ns / 1e9)
    assert exemplar("gen_ai.server.time_to_first_token")[:2] == place("prefill")
    assert exemplar("gen_ai.server.request.duration")[:2] == place(None)
    assert exemplar("inferscope.request.syncs_per_token")[:2] == place("decode")
    assert exemplar("inferscope.request.launches_per_token") == (*place("decode"), 300)
    assert exemplar("inferscope.self.share")[:2] == place(None)


def test_a_span_that_happens_to_be_current_becomes_no_exemplar(meters):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with tracer.start_as_current_span("unrelated"):
        meters.sink(make_result())
    assert not [point for _, point in meters.points("gen_ai.server.request.duration") if point.exemplars]


@pytest.mark.parametrize("key", ["suppress_instrumentation", "suppress_language_model_instrumentation"])
def test_suppression_is_honoured(meters, key):
    name = otel_context._SUPPRESS_INSTRUMENTATION_KEY if key == "suppress_instrumentation" else key
    token = otel_context.attach(otel_context.set_value(name, value=True))
    try:
        assert meters.sink.begin("1", 0, None, MODEL, {}).recording is False
        suppressed = otel_context.get_current()
    finally:
        otel_context.detach(token)
    meters.sink(make_result(record=make_record(request_id="1")))
    meters.sink(make_result(parent_context=suppressed))
    assert meters.points("inferscope.requests") == []


def test_nobody_listening_means_no_say_and_no_work(monkeypatch, meters):
    deaf = MetricSink(meter_provider=NoOpMeterProvider())
    assert deaf.begin("1", 0, None, MODEL, {}) is None
    deaf(make_result())
    assert deaf._begun == {}
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    disabled = Meters()
    assert disabled.sink.begin("1", 0, None, MODEL, {}) is None
    disabled.sink(make_result())
    assert disabled.metrics() == {}


def test_losses_are_told_by_kind(meters):
    before = losses.totals()
    losses.count("spans", 5)
    assert meters.sums(DROPPED.name, "inferscope.kind") == {**before, "spans": before["spans"] + 5}


def test_the_instruments_go_with_their_provider():
    meters = Meters()
    meters.sink(make_result())
    gone = weakref.ref(meters.provider)
    meters.provider.shutdown()
    del meters
    gc.collect()
    assert gone() is None


def test_many_tiny_records_leave_nothing_behind():
    spans = SpanSink(tracer_provider=TracerProvider(shutdown_on_exit=False))
    meters = Meters()
    sinks = resolve_sinks([spans, meters.sink])
    # A thousand a second for a while: what is kept is bounded by kinds, not by requests.
    sizes = []
    result = make_result()
    for number in range(1_200):
        record = replace(result.record, request_id=f"{number:016x}")
        for sink in sinks:
            sink.begin(record.request_id, record.started_unix_ns, otel_context.Context(), MODEL, {})
        for sink in sinks:
            sink(replace(result, record=record))
        if number % 300 == 299:
            points = sum(len(metric.data.data_points) for metric in meters.metrics().values())
            sizes.append((points, len(spans._roots), len(spans._places), len(meters.sink._begun)))
    assert len(set(sizes)) == 1
    points, roots, places, begun = sizes[-1]
    assert (roots, places, begun) == (0, 256, 0)
    assert points < 100
    assert meters.sums("inferscope.requests", "inferscope.status") == {"ok": 1_200}
