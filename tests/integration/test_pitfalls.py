"""Mistakes that broke other instrumentations of language models, each with a test that ours does not make it.

The number and the name of a test are those of the pitfall. Where further tests hold the same, they are named.
"""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_receiver import RECEIVERS, running, values_of

import inferscope
from inferscope.sinks import semconv
from inferscope.sinks.metric_semconv import REQUEST_METRICS
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.setup import setup
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

pytestmark = pytest.mark.usefixtures("notices_reset", "no_global_provider", "patient_exports")


class Spans:
    """A provider of the application's own, and what it was sent."""

    def __init__(self):
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.sink = SpanSink(tracer_provider=self.provider)

    def ours(self):
        return [span for span in self.exporter.get_finished_spans() if span.instrumentation_scope.name == "inferscope"]

    def roots(self):
        return [span for span in self.ours() if span.name.startswith("text_completion")]


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture(params=list(RECEIVERS))
def protocol(request):
    return request.param


class IteratorTokenizer:
    """Decodes to numbers: TextIteratorStreamer needs a tokenizer, not a language."""

    def decode(self, ids, **_kwargs):
        return "".join(f"{int(token)} " for token in ids)


def test_01_batches_stay_below_what_receivers_refuse_whole(protocol):
    # 4 MiB is where gRPC receivers refuse a batch whole, while the SDK's force_flush still says True.
    record = make_record(notes=("x" * 512,) * 5, model=replace(make_record().model, name="m" * 512))
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        sink = SpanSink()
        for number in range(600):
            sink(make_result(record=replace(record, request_id=f"{number:016x}")))
        assert providers.force_flush(120) is True
        assert len(inbox.wait_for_spans(1800)) == 1800
        assert (providers.exported, providers.dropped) == (1800, 0)
        assert max(request.ByteSize() for request in inbox.requests) < 4 * 2**20


def test_02_a_plain_thread_stays_in_the_trace_that_made_its_streamer(llama, prompt, spans, transformers):
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        with spans.tracer.start_as_current_span("handler") as handler:
            streamer = transformers.TextIteratorStreamer(IteratorTokenizer(), skip_prompt=True)
            thread = threading.Thread(
                target=llama.generate, args=(prompt,), kwargs={"streamer": streamer, "max_new_tokens": 5}
            )
            thread.start()
            text = "".join(streamer)
            thread.join()
        session.wait()
    assert len(text.split()) == 5
    (root,) = spans.roots()
    assert root.parent.span_id == handler.get_span_context().span_id
    assert session.last.record.options.streaming


def test_03_a_trace_that_ends_in_another_context_detaches_nothing(llama, prompt, spans, caplog):
    """Generators and tasks end wherever their consumer is: "was created in a different Context"."""

    def answers():
        with inferscope.trace(llama, sinks=[spans.sink]):
            while True:
                yield llama.generate(prompt, max_new_tokens=2)

    running_answers = answers()
    contextvars.copy_context().run(next, running_answers)
    with spans.tracer.start_as_current_span("elsewhere") as current:
        contextvars.copy_context().run(next, running_answers)
        thread = threading.Thread(target=running_answers.close)
        thread.start()
        thread.join()
        assert trace.get_current_span() is current
    assert "different Context" not in caplog.text
    assert "detach" not in caplog.text


def test_04_a_framework_that_calls_generate_is_seen(transformers, model_folder, spans):
    """Others wrapped `__call__` of a pipeline, while frameworks call `generate`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    with inferscope.trace(pipeline.model, sinks=[spans.sink]) as session:
        pipeline("word001 word002", max_new_tokens=3, min_new_tokens=3, do_sample=False)
        session.wait()
    (root,) = spans.roots()
    assert root.attributes["gen_ai.usage.input_tokens"] == 2
    assert root.attributes["gen_ai.usage.output_tokens"] == 3


def test_05_the_first_token_is_not_the_whole_request(llama, prompt):
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=8)
    record = session.last.record
    decode = record.phase("decode")
    assert decode.passes == 7
    assert 0 < record.phase("prefill").wall_ns <= record.ttft_ns <= record.wall_ns - decode.ledger.issue_ns
    # What cannot be told apart is left out rather than set to the whole.
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=1)
    assert session.last.record.tpot_ns is None


def test_06_below_another_instrumentors_span_tokens_are_told_once(llama, prompt, spans):
    """Whoever adds up tokens over a trace would find them twice."""
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        attributes = {"gen_ai.operation.name": "text_completion", "gen_ai.request.model": "theirs"}
        with spans.provider.get_tracer("another").start_as_current_span("llm", attributes=attributes) as above:
            llama.generate(prompt, max_new_tokens=2)
        llama.generate(prompt, max_new_tokens=2)
        session.wait()
    below, alone = spans.roots()
    assert below.parent.span_id == above.get_span_context().span_id
    assert [link.context.span_id for link in below.links] == [above.get_span_context().span_id]
    assert below.attributes["inferscope.usage.elsewhere"] == "another"
    told = [{key for key in root.attributes if key.startswith("gen_ai.usage.")} for root in (below, alone)]
    assert told == [set(), {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"}]
    assert alone.links == ()


PATIENCE = ("OTEL_EXPORTER_OTLP_TIMEOUT",)
FORKING = """
import os, sys
from importlib.metadata import version
from opentelemetry import metrics
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.setup import setup
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

providers = setup(endpoint=sys.argv[1], protocol=sys.argv[2])
spans, meters = SpanSink(), MetricSink()
orders = metrics.get_meter("shop").create_counter("orders")
# As a monitor does: instruments of our own that are not of requests.
watched = metrics.get_meter("inferscope", version("inferscope"))
watched.create_observable_gauge("hw.power", [lambda _options: [metrics.Observation(7)]])

def one(letter):
    result = make_result(record=make_record(request_id=letter * 16))
    spans(result)
    meters(result)
    orders.add(1)

one("a")
assert providers.force_flush(30)
one("b")  # is still queued when the child is made
child = os.fork()
if child == 0:
    assert (providers.exported, providers.dropped) == (0, 0)
    one("c")
    arrived = providers.force_flush(30)
    done = (arrived, providers.exported, providers.dropped, providers.metric_exports_failed)
    grandchild = os.fork()
    if grandchild == 0:
        before = providers.force_flush(30)  # without a request of its own: nothing is told again
        one("d")
        os._exit(0 if before and providers.force_flush(30) else 4)
    _, status = os.waitpid(grandchild, 0)
    os._exit(os.waitstatus_to_exitcode(status) if done == (True, 3, 0, 0) else 3)
_, status = os.waitpid(child, 0)
assert providers.force_flush(30)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_07_a_child_forked_after_setup_sends_its_own(protocol):
    with RECEIVERS[protocol]() as inbox:
        finished = subprocess.run(
            [sys.executable, "-c", FORKING, inbox.endpoint, protocol],
            timeout=120,
            check=False,
            capture_output=True,
            text=True,
            env={name: os.environ[name] for name in os.environ if name in PATIENCE or not name.startswith("OTEL_")},
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        by_process = {}
        for span, resource in inbox.spans():
            request = values_of(span.attributes).get("inferscope.request.id")
            if request:
                by_process.setdefault(resource["process.pid"], []).append(request[0])
        counted, timed, others = {}, {}, set()
        for pid, scope, metric in metrics_of(inbox):
            assert list(scope.scope.attributes) == []
            if metric.name == "inferscope.requests":
                counted.setdefault(pid, set()).add(metric.sum.data_points[0].as_int)
            elif metric.name == "gen_ai.server.request.duration":
                (point,) = metric.histogram.data_points
                timed.setdefault(pid, set()).add((point.count, sum(point.bucket_counts)))
            elif metric.name in {"orders", "hw.power"}:
                others.add((pid, scope.scope.name, metric.name))
    assert sorted(by_process.values()) == [["a", "b"], ["c"], ["d"]]
    # And each counts its own: the child does not tell again what its parent has, nor the grandchild what both have.
    assert sorted(map(sorted, counted.values())) == [[1], [1], [1, 2]]
    assert sorted(map(sorted, timed.values())) == [[(1, 1)], [(1, 1)], [(1, 1), (2, 2)]]
    # What is not of requests is there in all three.
    assert others == {(pid, *what) for pid in counted for what in (("shop", "orders"), ("inferscope", "hw.power"))}


def metrics_of(inbox):
    for request in inbox.metric_requests:
        for resource in request.resource_metrics:
            pid = values_of(resource.resource.attributes)["process.pid"]
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    yield pid, scope, metric


def test_08_a_long_request_is_a_handful_of_spans(llama, prompt, spans):
    """Also test_a_request_of_32k_tokens_is_at_most_five_spans_and_64_kib."""
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        llama.generate(prompt, max_new_tokens=120)
        session.wait()
    assert [span.name.split(" ")[0] for span in spans.ours()] == ["prefill", "decode", "text_completion"]
    assert sum(len(span.events) for span in spans.ours()) <= 6


def test_09_decode_is_beside_prefill_not_below_it(llama, prompt, spans):
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        llama.generate(prompt, max_new_tokens=4)
        session.wait()
    prefill, decode, root = spans.ours()
    assert prefill.parent.span_id == decode.parent.span_id == root.context.span_id
    assert prefill.end_time <= decode.start_time


class Hostile(SpanProcessor):
    """Of the application's, or of another library's."""

    def __init__(self):
        self.calls = 0

    def on_start(self, span, parent_context=None):
        self.calls += 1
        raise RuntimeError("on_start")

    def on_end(self, span):
        self.calls += 1
        raise RuntimeError("on_end")


class HostileMeters(MeterProvider):
    def get_meter(self, *_args, **_kwargs):
        raise RuntimeError("get_meter")


def test_10_providers_that_raise_do_not_reach_the_host(llama, prompt, monkeypatch, capsys):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    expected = llama.generate(prompt, max_new_tokens=4).tolist()
    hostile, provider = Hostile(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hostile)
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(HostileMeters(shutdown_on_exit=False))
    with inferscope.trace(llama) as session:
        for _ in range(3):
            assert llama.generate(prompt, max_new_tokens=4).tolist() == expected
        session.wait()
    assert hostile.calls
    said = capsys.readouterr().err
    slugs = [part.partition("'")[0] for part in said.split("slug='")[1:]]
    assert slugs
    assert len(slugs) == len(set(slugs))


def test_11_numbers_are_numbers_in_seconds(protocol):
    """A duration as text ("1.2ms") cannot be searched, compared or added."""
    record = make_record()
    with RECEIVERS[protocol]() as inbox, running(endpoint=inbox.endpoint, protocol=protocol) as providers:
        SpanSink()(make_result(record=record))
        MetricSink()(make_result(record=record))
        assert providers.force_flush(30)
        root = next(span for span, _ in inbox.wait_for_spans(3) if span.name.startswith("text_completion"))
        sums = {row.name: inbox.points(row.name)[0][1].sum for row in REQUEST_METRICS[:3]}
    sent = {item.key: item.value for item in root.attributes}
    for row in semconv.REQUEST_END:
        if row.unit == "s" and row.name in sent:
            assert sent[row.name].WhichOneof("value") == "double_value"
    assert sent["gen_ai.latency.e2e"].double_value == record.wall_ns / 1e9
    assert sent["gen_ai.usage.output_tokens"].WhichOneof("value") == "int_value"
    assert sums["gen_ai.server.request.duration"] == record.wall_ns / 1e9
    assert sums["gen_ai.server.time_to_first_token"] == record.ttft_ns / 1e9


def test_12_no_provider_is_set_behind_the_applications_back(llama, prompt):
    """A library set the global provider when it was imported: the application's own came too late."""
    with inferscope.trace(llama) as session:
        llama.generate(prompt, max_new_tokens=2)
        session.wait()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    own = Spans()
    trace.set_tracer_provider(own.provider)
    with inferscope.trace(llama) as session:
        llama.generate(prompt, max_new_tokens=2)
        session.wait()
    assert len(own.roots()) == 1


def test_13_after_the_shutdown_nothing_is_sent_retried_or_said(protocol, llama, prompt, capsys, caplog):
    """Exporters that go on, or complain with every span, when a server shuts its telemetry down first."""
    with RECEIVERS[protocol]() as inbox:
        providers = setup(endpoint=inbox.endpoint, protocol=protocol)
        with inferscope.trace(llama) as session:
            llama.generate(prompt, max_new_tokens=2)
            session.wait()
            assert providers.shutdown(30)
            seen = len(inbox.requests), len(inbox.metric_requests)
            llama.generate(prompt, max_new_tokens=2)
            assert len(session.results) == 2
        assert providers.force_flush(30) in {True, False}
        assert providers.shutdown(30)
        assert (len(inbox.requests), len(inbox.metric_requests)) == seen == (1, 1)
    assert capsys.readouterr().err == ""
    assert caplog.text == ""
