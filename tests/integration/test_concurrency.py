"""Threads, tasks, nested sessions: every request has its own record, its own parent and its own tokens."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

import inferscope
from conftest import build_llama
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.spans import SpanSink

pytestmark = pytest.mark.capture


class Spans:
    """A provider of the application's own, and what it was sent."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("application")
        self.sink = SpanSink(tracer_provider=self.provider)

    def roots(self):
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith("text_completion")]


@pytest.fixture
def spans():
    return Spans()


def test_eight_threads_on_one_model_each_have_their_record(llama):
    prompts = [torch.randint(1, 1000, (1, 4 + index)) for index in range(8)]
    expected = [llama.generate(ids, max_new_tokens=3 + index) for index, ids in enumerate(prompts)]
    with inferscope.trace(llama, sinks=()) as session, ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            jobs = [pool.submit(llama.generate, ids, max_new_tokens=3 + i) for i, ids in enumerate(prompts)]
            for job, tokens in zip(jobs, expected, strict=True):
                assert torch.equal(job.result(), tokens)
    seen = sorted((result.record.input_tokens, result.record.output_tokens) for result in session.results)
    assert seen == sorted((4 + index, 3 + index) for index in range(8) for _ in range(4))
    assert len({result.record.request_id for result in session.results}) == 32
    for result in session.results:
        assert result.record.ledger.total_ns == result.record.wall_ns
        assert sum(phase.passes for phase in result.record.phases) == result.record.output_tokens


def test_requests_beside_each_other_say_so_and_name_each_other(llama, prompt, spans):
    together = threading.Barrier(2)

    def answer():
        together.wait(10)
        llama.generate(prompt, max_new_tokens=40)

    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        threads = [threading.Thread(target=answer) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one, other = (result.record for result in session.results)
    for mine, theirs in ((one, other), (other, one)):
        contender = mine.contended_with[0]
        assert contender.request_id == theirs.request_id
        assert 0 < contender.overlap_ns <= mine.wall_ns
        assert 0 < mine.phase("decode").contended_ns <= mine.phase("decode").wall_ns + mine.ledger.self_ns
    links = {span.context.span_id: span.links[0].context.span_id for span in spans.roots()}
    assert links == {value: key for key, value in links.items()}


def test_a_request_alone_was_not_contended(llama, prompt):
    with inferscope.trace(llama, sinks=()) as session:
        for _ in range(2):
            llama.generate(prompt, max_new_tokens=4)
    for result in session.results:
        assert result.record.contended_with == ()
        assert [phase.contended_ns for phase in result.record.phases] == [0, 0]


def test_two_models_at_once_are_told_apart(llama, transformers, prompt):
    second = build_llama(transformers, num_hidden_layers=1)
    second.config._name_or_path = "second"
    with inferscope.trace(llama, sinks=()) as one, inferscope.trace(second, sinks=()) as two:
        threads = [
            threading.Thread(target=lambda model=model: model.generate(prompt, max_new_tokens=20))
            for model in (llama, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.results) == len(two.results) == 1
    assert two.last.record.model.name == "second"
    assert one.last.record.request_id != two.last.record.request_id


def test_without_a_span_anywhere_a_thread_belongs_where_tracing_began(llama, prompt, spans):
    with (
        spans.tracer.start_as_current_span("application") as above,
        inferscope.trace(llama, sinks=[spans.sink]) as session,
    ):
        thread = threading.Thread(target=llama.generate, args=(prompt,), kwargs={"max_new_tokens": 2})
        thread.start()
        thread.join()
        session.wait()
    (root,) = spans.roots()
    assert root.parent.span_id == above.get_span_context().span_id


def test_tasks_in_threads_keep_their_own_parents(llama, prompt, spans):
    async def handle(number):
        with spans.tracer.start_as_current_span(f"handler {number}") as span:
            await asyncio.to_thread(llama.generate, prompt, max_new_tokens=3 + number)
            return span.get_span_context().span_id, 3 + number

    async def serve():
        return await asyncio.gather(*(handle(number) for number in range(4)))

    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        expected = asyncio.run(serve())
        session.wait()
    seen = [(root.parent.span_id, root.attributes["gen_ai.usage.output_tokens"]) for root in spans.roots()]
    assert sorted(seen) == sorted(expected)


def test_generate_inside_a_streamer_is_a_request_of_its_own(llama, prompt, transformers):
    second = build_llama(transformers, num_hidden_layers=1)

    class Translating:
        def put(self, value):
            second.generate(prompt, max_new_tokens=2)

        def end(self):
            pass

    with inferscope.trace(llama, sinks=()) as outer, inferscope.trace(second, sinks=()) as inner:
        llama.generate(prompt, max_new_tokens=3, streamer=Translating())
    assert len(outer.results) == 1
    assert len(inner.results) == 4  # the prompt and three tokens
    record = outer.last.record
    assert sum(phase.passes for phase in record.phases) == 3
    assert {result.record.output_tokens for result in inner.results} == {2}
    spent = sum(result.record.wall_ns for result in inner.results[1:])
    assert sum(phase.ledger.deliver_ns for phase in record.phases) >= spent


def test_sessions_within_sessions_each_get_the_request_once(llama, prompt):
    with inferscope.trace(llama, sinks=()) as outer:

        @inferscope.trace(llama, sinks=())
        def answer():
            return llama.generate(prompt, max_new_tokens=2)

        with inferscope.trace(llama, sinks=()) as inner:
            answer()
    assert len(outer.results) == len(inner.results) == 1


def test_a_copied_context_in_another_thread_does_not_write_into_this_request(llama, prompt):
    import contextvars  # noqa: PLC0415

    class Handing:
        def __init__(self):
            self.thread = None

        def put(self, _value):
            if self.thread is None:
                context = contextvars.copy_context()
                self.thread = threading.Thread(
                    target=context.run, args=(lambda: llama.generate(prompt, max_new_tokens=30),)
                )
                self.thread.start()

        def end(self):
            self.thread.join()

    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=30, streamer=Handing())
    assert [sum(phase.passes for phase in result.record.phases) for result in session.results] == [30, 30]


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)])
def test_what_the_sampler_drops_is_not_observed(llama, prompt, sampler):
    spans = Spans(sampler=sampler)
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        expected = llama.generate(prompt, max_new_tokens=3)
        assert torch.equal(llama.generate(prompt, max_new_tokens=3), expected)
    assert session.results == ()
    assert spans.exporter.get_finished_spans() == ()
    assert spans.sink._roots == {}


def test_what_the_sampler_drops_still_reaches_the_other_sinks(llama, prompt):
    spans, taken = Spans(sampler=ALWAYS_OFF), []
    with inferscope.trace(llama, sinks=[spans.sink, taken.append]) as session:
        llama.generate(prompt, max_new_tokens=3)
        session.wait()
    assert len(taken) == 1
    assert spans.exporter.get_finished_spans() == ()


def test_what_the_sampler_drops_still_counts_where_somebody_listens_to_metrics(llama, prompt):
    spans, reader = Spans(sampler=ALWAYS_OFF), InMemoryMetricReader()
    meters = MetricSink(meter_provider=MeterProvider(metric_readers=[reader], shutdown_on_exit=False))
    with inferscope.trace(llama, sinks=[spans.sink, meters]) as session:
        llama.generate(prompt, max_new_tokens=3)
        session.wait()
    found = {
        metric.name: metric
        for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
        for metric in scope.metrics
    }
    (duration,) = found["gen_ai.server.request.duration"].data.data_points
    assert (duration.count, duration.exemplars) == (1, [])
    assert spans.exporter.get_finished_spans() == ()
    # And where nobody listens, they are not observed: as without metrics.
    deaf = MetricSink(meter_provider=NoOpMeterProvider())
    with inferscope.trace(llama, sinks=[spans.sink, deaf]) as session:
        llama.generate(prompt, max_new_tokens=3)
    assert session.results == ()


def test_a_ratio_observes_that_share_and_the_sampler_sees_the_model(llama, prompt):
    asked = []

    class Sampler(TraceIdRatioBased):
        def should_sample(self, *args, **kwargs):
            asked.append(kwargs.get("attributes") or args[4])
            return super().should_sample(*args, **kwargs)

    spans = Spans(sampler=Sampler(0.5))
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        for _ in range(60):
            llama.generate(prompt, max_new_tokens=1)
    assert 5 < len(session.results) < 55
    assert len(spans.roots()) == len(session.results)
    assert {entry["gen_ai.request.max_tokens"] for entry in asked if "gen_ai.request.max_tokens" in entry} == {1}
    assert {entry["gen_ai.request.model"] for entry in asked if "gen_ai.request.model" in entry} == {"LlamaForCausalLM"}


def test_own_sample_rate(llama, prompt):
    with inferscope.trace(llama, sinks=(), sample_rate=0) as session:
        llama.generate(prompt, max_new_tokens=1)
    assert session.last is None
    with pytest.raises(inferscope.InferscopeError, match="sample_rate=2"):
        inferscope.trace(llama, sample_rate=2)


@pytest.mark.parametrize(
    "key",
    [otel_context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_language_model_instrumentation"],
    ids=["opentelemetry", "traceloop"],
)
def test_where_instrumentation_is_suppressed_there_are_no_spans(llama, prompt, spans, key):
    with inferscope.trace(llama, sinks=[spans.sink]) as session:
        token = otel_context.attach(otel_context.set_value(key, True))
        try:
            llama.generate(prompt, max_new_tokens=1)
        finally:
            otel_context.detach(token)
        session.wait()
    assert spans.exporter.get_finished_spans() == ()


def test_the_callers_current_span_is_left_alone(llama, prompt, spans):
    with inferscope.trace(llama, sinks=[spans.sink]), spans.tracer.start_as_current_span("mine") as mine:
        llama.generate(prompt, max_new_tokens=1)
        assert trace.get_current_span() is mine
