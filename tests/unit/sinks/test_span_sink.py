from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from inferscope.analysis.verdict import BOUNDS
from inferscope.records import (
    Contender,
    DeepTime,
    DeviceTime,
    GenerationRecord,
    OperatorTime,
    OwnOverhead,
    PassSample,
    QuantileSketch,
    RequestOptions,
    StepCount,
    SyncSeen,
    WorstPass,
)
from inferscope.sinks import semconv
from inferscope.sinks.spans import MAX_PASS_SPANS, SpanSink
from inferscope.testing import make_record, make_result

SNAPSHOT = Path(__file__).parent / "snapshots" / "span_attributes.json"


class Recorder:
    """A real provider whose spans can be read."""

    def __init__(self, **options):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def emit(self, result, **options):
        self._exporter.clear()
        SpanSink(tracer_provider=self.provider, **options)(result)
        return self._exporter.get_finished_spans()

    def root(self, result, **options):
        return next(span for span in self.emit(result, **options) if span.name not in {"prefill", "decode"})

    def phase(self, result, name):
        return next(span for span in self.emit(result) if span.name == name)


@pytest.fixture
def recorder():
    return Recorder()


def full_result():
    """A result in which everything that a row reads is known."""
    record = make_record(
        options=RequestOptions(
            max_new_tokens=16, temperature=1, top_p=0.9, top_k=50, num_beams=2, seed=7, streaming=True
        ),
        status="aborted",
        error_type="KeyboardInterrupt",
        notes=("device time unknown: no CUDA device",),
        contended_with=(Contender(request_id="1", trace_id="0" * 31 + "1", span_id="0" * 15 + "1", overlap_ns=1_000),),
    )
    phases = tuple(replace(phase, launches=301 * phase.passes, contended_ns=1_000) for phase in record.phases)
    # Only the first shares its passes: of a phase that does, the range does not say what was inferscope's own.
    prefill = replace(phases[0], mixed_passes=1, ledger=replace(phases[0].ledger, shared_ns=2_000))
    spanned = {"passes": 15, "cycles_ns": 9_000, "events_ns": 4_000, "lag_ns": 1_000, "start_ns": 10, "end_ns": 20}
    deep = DeepTime(passes=1, wall_ns=9_000, operators_ns=6_000, python_ns=3_000, gaps=2, closure_ns=0, cost_ns=1_000)
    linear = OperatorTime(group="linear", time_ns=6_000, wall_ns=9_000, calls=7)
    decode = replace(phases[1], device=replace(phases[1].device, **spanned), deep=deep, operators=(linear,))
    ledger = replace(record.ledger, queue_ns=3_000)
    step = StepCount(
        name="decode",
        passes=15,
        batch_size=1,
        context_from=32,
        context_to=63,
        launches=301,
        unit="kernel",
        source="native",
        samples=9,
        launches_before=290,
    )
    waited = SyncSeen(file="transformers/generation/utils.py", line=395, count=1)
    decode = replace(decode, launches_source="native", steps=(step,), sync_passes=1, sync_points=(waited,))
    overhead = {"per_token_ns": 9_000.0, "low_ns": 4_000.0, "high_ns": 14_000.0, "observed": 50, "bare": 50}
    record = replace(record, own_overhead=OwnOverhead(budget_share=0.01, observed_share=0.5, **overhead))
    counted = {"padding_tokens": 3, "drafted_tokens": 8, "accepted_tokens": 6}
    result = make_result(record=replace(record, phases=(prefill, decode), ledger=ledger, rank=0, **counted))
    verdicts = tuple(replace(p, shares=dict.fromkeys(BOUNDS, 1 / len(BOUNDS))) for p in result.diagnosis.phases)
    return replace(result, diagnosis=replace(result.diagnosis, phases=verdicts))


def test_every_attribute_is_as_recorded_in_the_snapshot(recorder):
    spans = recorder.emit(full_result())
    seen = {
        span.name: {
            "attributes": dict(span.attributes),
            "events": [{"name": event.name, "attributes": dict(event.attributes)} for event in span.events],
        }
        for span in spans
    }
    found = json.dumps(seen, indent=1) + "\n"
    if os.environ.get("INFERSCOPE_UPDATE_SNAPSHOTS") == "1":
        SNAPSHOT.write_text(found, encoding="utf-8")
    assert found == SNAPSHOT.read_text(encoding="utf-8")


def test_no_row_of_the_tables_is_dead(recorder):
    prefill, decode, root = recorder.emit(full_result())
    every = {row.name for row in (*semconv.REQUEST_START, *semconv.REQUEST_END)}
    assert set(root.attributes) == every - {semconv.USAGE_ELSEWHERE}  # only where another span reports the call
    unseen = {row.name for row in semconv.PHASE} - set(prefill.attributes) - set(decode.attributes)
    others = {"encode", "verify", "draft", "mixed", "unknown"}
    # The last is only where passes have spans.
    assert unseen == {f"gen_ai.latency.time_in_model_{name}" for name in others} | {"inferscope.passes.cut"}
    assert set(decode.events[0].attributes) == {row.name for row in semconv.WORST_PASS}
    assert set(root.links[0].attributes) == {row.name for row in semconv.CONTENDER}
    assert root.links[0].context.trace_id == 1


def test_values_have_the_type_of_the_table(recorder):
    kinds = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
    prefill, decode, root = recorder.emit(full_result())
    request = (*semconv.REQUEST_START, *semconv.REQUEST_END)
    for rows, span in ((request, root), (semconv.PHASE, prefill), (semconv.PHASE, decode)):
        types = {row.name: kinds[row.type] for row in rows}
        assert {name: type(value) for name, value in span.attributes.items()} == {
            name: types[name] for name in span.attributes
        }


def test_phases_are_siblings_under_the_request(recorder):
    prefill, decode, root = recorder.emit(make_result())
    assert root.name == "text_completion HuggingFaceTB/SmolLM2-135M-Instruct"
    assert root.parent is None
    assert [prefill.name, decode.name] == ["prefill", "decode"]
    assert prefill.parent.span_id == decode.parent.span_id == root.context.span_id
    assert len({span.context.trace_id for span in (prefill, decode, root)}) == 1
    assert {span.kind for span in (prefill, decode, root)} == {SpanKind.INTERNAL}


def test_times_are_the_measured_ones(recorder):
    record = make_record()
    prefill, decode, root = recorder.emit(make_result(record=record))
    assert root.start_time == record.started_unix_ns
    assert root.end_time == record.started_unix_ns + record.wall_ns
    for span, phase in zip((prefill, decode), record.phases, strict=True):
        assert span.start_time == record.started_unix_ns + phase.start_ns
        assert span.end_time == record.started_unix_ns + phase.end_ns


@given(
    start_ns=st.integers(0, 10**10),
    length_ns=st.integers(0, 10**10),
    wall_ns=st.integers(0, 10**10),
    worst_ns=st.integers(0, 10**11),
)
def test_a_phase_never_reaches_past_its_request(start_ns, length_ns, wall_ns, worst_ns):
    record = make_record()
    worst = WorstPass(index=0, start_ns=worst_ns, cycle_ns=5, cause="gc", excess_ns=1)
    decode = replace(record.phases[1], start_ns=start_ns, end_ns=start_ns + length_ns, worst=(worst,))
    child, root = Recorder().emit(make_result(record=make_record(phases=(decode,), wall_ns=wall_ns)))
    assert root.start_time <= child.start_time <= child.end_time <= root.end_time
    assert child.start_time <= child.events[0].timestamp <= child.end_time


def test_the_root_hangs_under_the_span_at_generates_entry(recorder):
    tracer = recorder.provider.get_tracer("application")
    with tracer.start_as_current_span("handler") as handler:
        entered = otel_context.get_current()
    # The sink runs later and elsewhere: another span is current by then.
    with tracer.start_as_current_span("something else"):
        root = recorder.root(make_result(parent_context=entered))
    assert root.parent.span_id == handler.get_span_context().span_id
    assert root.context.trace_id == handler.get_span_context().trace_id


def test_without_a_parent_nothing_that_happens_to_be_current_becomes_one(recorder):
    with recorder.provider.get_tracer("application").start_as_current_span("unrelated"):
        root = recorder.root(make_result())
    assert root.parent is None


@pytest.mark.parametrize("odd", ["a string", 3, {"not": "a context"}])
def test_a_parent_of_another_kind_is_ignored(recorder, odd):
    assert recorder.root(make_result(parent_context=odd)).parent is None


def test_an_aborted_request_is_an_error(recorder):
    root = recorder.root(make_result(record=make_record(status="aborted", error_type="OutOfMemoryError")))
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "OutOfMemoryError"
    fine = recorder.root(make_result())
    assert fine.status.status_code is StatusCode.UNSET
    assert "error.type" not in fine.attributes


def test_an_aborted_request_without_a_phase_is_a_span_of_its_own(recorder):
    record = make_record(phases=(), status="aborted", error_type=None, output_len=None, tpot_ns=None)
    (root,) = recorder.emit(make_result(record=record))
    assert root.attributes["error.type"] == "_OTHER"
    assert not {name for name in root.attributes if name.startswith("gen_ai.latency.time_in")}


def test_what_is_unknown_is_left_out(recorder):
    record = make_record(input_tokens=None, output_tokens=None, ttft_ns=None, itl_ns=None, finish_reasons=None)
    root = recorder.root(make_result(record=record))
    for absent in (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.server.time_to_first_token",
        "gen_ai.latency.time_to_first_token",
        "gen_ai.response.finish_reasons",
        "inferscope.ttft.method",
        "inferscope.tpot",
        "inferscope.itl.p50",
    ):
        assert absent not in root.attributes


def test_a_phase_without_an_opinion_still_says_what_was_measured(recorder):
    result = make_result()
    bare = replace(result, diagnosis=replace(result.diagnosis, phases=(), device=None))
    decode = recorder.phase(bare, "decode")
    assert decode.attributes["inferscope.passes"] == 15
    assert "inferscope.bound" not in decode.attributes
    assert "inferscope.flops" not in decode.attributes


def test_the_first_chunk_is_known_only_with_a_streamer(recorder):
    assert "gen_ai.response.time_to_first_chunk" not in recorder.root(make_result()).attributes
    record = make_record(options=RequestOptions(streaming=True))
    root = recorder.root(make_result(record=record))
    assert root.attributes["gen_ai.response.time_to_first_chunk"] == record.ttft_ns / 1e9


def test_each_phase_carries_only_its_own_gen_ai_key(recorder):
    prefill, decode, _ = recorder.emit(make_result())
    for span in (prefill, decode):
        own = {name for name in span.attributes if name.startswith("gen_ai.")}
        assert own == {f"gen_ai.latency.time_in_model_{span.name}"}


def test_the_ledger_on_the_spans_closes(recorder):
    prefill, decode, root = recorder.emit(make_result())
    whole = sum(
        root.attributes[name]
        for name in (
            "inferscope.ledger.setup",
            "gen_ai.latency.time_in_model_inference",
            "inferscope.ledger.tail",
            "inferscope.self",
            "inferscope.ledger.residual",
        )
    )
    assert whole == pytest.approx(root.attributes["gen_ai.latency.e2e"], abs=1e-9)
    for span in (prefill, decode):
        parts = sum(span.attributes[f"inferscope.ledger.{part}"] for part in ("issue", "select", "wait", "deliver"))
        assert parts == pytest.approx(span.attributes[f"gen_ai.latency.time_in_model_{span.name}"], abs=1e-9)
        lasted_s = (span.end_time - span.start_time) / 1e9
        assert parts + span.attributes["inferscope.self"] == pytest.approx(lasted_s, abs=1e-9)


@pytest.mark.parametrize(("device", "method"), [(None, "host"), ("deep", "deep")])
def test_the_method_says_how_device_time_was_obtained(recorder, device, method):
    record = make_record()
    time = device and DeviceTime(low_ns=1, high_ns=2, provenance=device)
    phases = (record.phases[0], replace(record.phases[1], device=time))
    decode = recorder.phase(make_result(record=make_record(phases=phases)), "decode")
    assert decode.attributes["inferscope.method"] == method
    assert ("inferscope.device.time.low" in decode.attributes) is (device is not None)


def test_spans_stay_small_whatever_the_length_of_the_request(recorder):
    record = make_record()
    worst = tuple(WorstPass(index=i, start_ns=i, cycle_ns=9, cause="gc", excess_ns=1) for i in range(40))
    phases = (record.phases[0], replace(record.phases[1], worst=worst))
    findings = tuple(replace(make_result().findings[0], code=f"code-{i}") for i in range(40))
    spans = recorder.emit(
        make_result(record=make_record(phases=phases, finish_reasons=("stop",) * 4096), findings=findings)
    )
    assert len(spans) == 3
    assert all(len(span.attributes) < 64 and span.dropped_attributes == 0 for span in spans)
    assert [len(span.events) for span in spans] == [0, 3, 0]
    assert len(spans[2].attributes["inferscope.finding.codes"]) == 5
    assert "gen_ai.response.finish_reasons" not in spans[2].attributes


@pytest.mark.parametrize("name", ['{"a": 1}', "[list]", "x" * 100_000, "\ud800", "", "naïve\n\x00"])
def test_no_text_is_shown_as_json_or_breaks_the_batch(recorder, name):
    record = make_record(model=replace(make_record().model, name=name))
    root = recorder.root(make_result(record=record))
    texts = [value for value in root.attributes.values() if isinstance(value, str)]
    assert not [text for text in texts if text.startswith(("{", "["))]
    assert all(len(text) <= 514 for text in [*texts, root.name.removeprefix("text_completion ")])
    assert all(text.encode() for text in texts)


def test_numbers_that_no_exporter_takes_are_left_out(recorder):
    options = RequestOptions(temperature=float("nan"), top_p=float("inf"), top_k=2**63, max_new_tokens=2**63 - 1)
    root = recorder.root(make_result(record=make_record(options=options)))
    assert root.attributes["gen_ai.request.max_tokens"] == 2**63 - 1
    assert not {"gen_ai.request.temperature", "gen_ai.request.top_p", "gen_ai.request.top_k"} & set(root.attributes)


def test_the_sampler_sees_what_was_asked_for():
    seen = {}

    class Sampler(ParentBased):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **_):
            seen[name] = dict(attributes)
            return super().should_sample(parent_context, trace_id, name, kind, attributes, links)

    spans = Recorder(sampler=Sampler(ALWAYS_OFF)).emit(make_result(), operation="chat")
    assert spans == ()
    (name,) = seen
    assert name == "chat HuggingFaceTB/SmolLM2-135M-Instruct"
    assert seen[name]["gen_ai.operation.name"] == "chat"
    assert seen[name]["gen_ai.request.max_tokens"] == 16


@pytest.mark.parametrize(
    "key",
    [otel_context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_language_model_instrumentation"],
    ids=["opentelemetry", "traceloop"],
)
def test_suppression_at_generates_entry_is_honoured(recorder, key):
    suppressed = otel_context.set_value(key, value=True, context=otel_context.Context())
    assert recorder.emit(make_result(parent_context=suppressed)) == ()


def test_the_disabled_sdk_gets_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Recorder().emit(make_result()) == ()


class PhasesRead(Exception):  # noqa: N818 - a signal, not an error
    """Somebody looked at the phases of a record."""


class Watched(GenerationRecord):
    """A record that says when its phases are read."""

    __slots__ = ()

    @property
    def phases(self):
        raise PhasesRead

    @classmethod
    def made(cls):
        record, watched = make_record(), object.__new__(cls)
        for field in fields(record):
            if field.name != "phases":
                object.__setattr__(watched, field.name, getattr(record, field.name))
        return replace(make_result(), record=watched)


def test_without_a_recording_provider_no_phase_is_even_looked_at(recorder):
    SpanSink(tracer_provider=trace.NoOpTracerProvider())(Watched.made())
    SpanSink(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))(Watched.made())
    with pytest.raises(PhasesRead):
        SpanSink(tracer_provider=recorder.provider)(Watched.made())


def test_ids_of_the_latest_requests_can_be_asked_for():
    recorder = Recorder()
    sink = SpanSink(tracer_provider=recorder.provider)
    for number in range(300):
        sink(make_result(record=make_record(request_id=f"{number:016x}", phases=())))
    spans = recorder._exporter.get_finished_spans()
    assert sink.span_ids(f"{43:016x}") is None
    trace_id, span_id = sink.span_ids(f"{44:016x}")
    assert (len(trace_id), len(span_id)) == (32, 16)
    assert int(trace_id, 16) == spans[44].context.trace_id
    assert int(span_id, 16) == spans[44].context.span_id
    assert sink.span_context(f"{299:016x}") == spans[299].context


def test_a_phase_whose_device_works_on_ends_where_the_device_does(recorder):
    record = make_record()
    prefill, decode = record.phases
    late_ns = record.wall_ns + 5_000
    device = DeviceTime(low_ns=1, high_ns=2, provenance="bound", start_ns=decode.start_ns, end_ns=late_ns)
    result = make_result(record=replace(record, phases=(prefill, replace(decode, device=device))))
    _, last, root = recorder.emit(result)
    assert last.end_time == root.end_time == record.started_unix_ns + late_ns


def pass_samples(record, decoded):
    """One prefill pass and so many of decode, evenly over the phase."""
    prefill, decode = record.phases
    step_ns = decode.wall_ns // decoded
    device = DeviceTime(low_ns=1_000, high_ns=2_000, provenance="bound")
    first = PassSample(
        name="prefill/chunk", start_ns=prefill.start_ns, host_ns=10, q_len=32, past_len=0, batch_size=1, pass_tokens=40
    )
    return (
        first,
        *(
            PassSample(
                name="decode",
                start_ns=decode.start_ns + index * step_ns,
                host_ns=step_ns // 2,
                q_len=1,
                past_len=32 + index,
                batch_size=1,
                device=device,
            )
            for index in range(decoded)
        ),
    )


def test_kept_passes_become_spans_below_their_phase_up_to_a_cap(recorder):
    record = make_record()
    decode = replace(record.phases[1], passes=4000)
    record = replace(record, phases=(record.phases[0], decode), pass_samples=pass_samples(record, 4000))
    spans = recorder.emit(make_result(record=record))
    passes = [span for span in spans if span.name == semconv.PASS_SPAN]
    by_name = {span.name: span for span in spans}
    assert len(passes) == MAX_PASS_SPANS == len(spans) - 3
    assert by_name["prefill"].attributes["inferscope.passes.cut"] == 0
    assert by_name["decode"].attributes["inferscope.passes.cut"] == 4000 - (MAX_PASS_SPANS - 1)
    first, second = passes[:2]
    assert first.parent.span_id == by_name["prefill"].context.span_id
    assert {span.parent.span_id for span in passes[1:]} == {by_name["decode"].context.span_id}
    assert set(first.attributes) | set(second.attributes) == {row.name for row in semconv.PASS}
    assert (second.attributes["inferscope.pass.name"], second.attributes["inferscope.pass.past_len"]) == ("decode", 32)
    for span in passes[1:]:
        assert by_name["decode"].start_time <= span.start_time <= span.end_time <= by_name["decode"].end_time


def test_without_kept_passes_there_are_none(recorder):
    spans = recorder.emit(make_result())
    assert [span.name for span in spans[:2]] == ["prefill", "decode"]
    assert "inferscope.passes.cut" not in spans[1].attributes


def test_the_spans_of_phases_can_be_asked_for(recorder):
    sink = SpanSink(tracer_provider=recorder.provider)
    sink(make_result())
    prefill, decode, root = recorder._exporter.get_finished_spans()
    for phase, span in ((None, root), ("prefill", prefill), ("decode", decode)):
        assert sink.phase_span_context("00c0ffee00c0ffee", phase) == span.context
    assert sink.phase_span_context("00c0ffee00c0ffee", "verify") is None
    assert sink.phase_span_context("f" * 16, None) is None


def test_a_request_of_32k_tokens_is_at_most_five_spans_and_64_kib():
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    recorder, number, random = Recorder(), 32_768, Random(0)
    gaps = QuantileSketch.of(int(random.lognormvariate(16, 1)) for _ in range(number))
    full = full_result()
    worst = tuple(WorstPass(index=i, start_ns=i, cycle_ns=9, cause="gc", excess_ns=1) for i in range(8))
    phases = tuple(
        replace(full.record.phases[1], name=name, passes=number, tokens=number, pass_ns=gaps, worst=worst)
        for name in ("prefill", "decode", "verify", "draft")
    )
    contender = full.record.contended_with[0]
    record = replace(
        full.record,
        phases=phases,
        itl_ns=gaps,
        output_tokens=number,
        finish_reasons=("length",) * number,
        contended_with=(contender,) * 8,
        notes=("n" * 600,) * 9,
        model=replace(full.record.model, name="m" * 600),
    )
    verdicts = tuple(replace(full.diagnosis.phases[1], name=phase.name) for phase in phases)
    spans = recorder.emit(replace(full, record=record, diagnosis=replace(full.diagnosis, phases=verdicts)))
    assert len(spans) == 5
    assert encoder.encode_spans(spans).ByteSize() <= 64 * 1024
