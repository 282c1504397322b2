"""InferscopeInstrumentor in this process: every model, from its first request on, and nothing left behind."""

from __future__ import annotations

import gc
import inspect
import os
import threading
import weakref

import pytest
import torch
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import inferscope
from conftest import build_llama
from inferscope.capture import registry, seams
from inferscope.session import observe_every
from inferscope.sinks.spans import SpanSink

pytest.importorskip("opentelemetry.instrumentation")
pytestmark = pytest.mark.capture


class Watched:
    """An instrumented process, and the spans that come of it."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.instrumentor = inferscope.InferscopeInstrumentor()

    def __enter__(self):
        self.instrumentor.instrument(tracer_provider=self.provider)
        return self

    def __exit__(self, *_):
        self.instrumentor.uninstrument()

    @property
    def session(self):
        return self.instrumentor._every.session

    def roots(self):
        self.session.wait()
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith("text_completion")]


@pytest.fixture
def watched():
    with Watched() as watched:
        yield watched


def test_models_made_before_and_after_are_observed_from_their_first_request(llama, transformers, prompt):
    expected = llama.generate(prompt, max_new_tokens=4)
    with Watched() as watched:
        assert torch.equal(llama.generate(prompt, max_new_tokens=4), expected)
        later = build_llama(transformers, num_hidden_layers=1)
        later.config._name_or_path = "later"
        later.generate(prompt, max_new_tokens=2)
        llama.generate(prompt, max_new_tokens=4)
        roots = watched.roots()
    names = [(span.attributes["gen_ai.request.model"], span.attributes["gen_ai.usage.output_tokens"]) for span in roots]
    assert names == [("LlamaForCausalLM", 4), ("later", 2), ("LlamaForCausalLM", 4)]
    phases = [span.name for span in watched.exporter.get_finished_spans() if span.parent is not None]
    assert phases == ["prefill", "decode"] * 3


def test_uninstrumenting_restores_and_can_be_done_again(llama, transformers, prompt):
    owner = transformers.GenerationMixin
    before = dict(vars(owner))
    for _ in range(2):
        with Watched() as watched:
            assert vars(owner)["generate"] is not before["generate"]
            llama.generate(prompt, max_new_tokens=2)
            assert len(watched.roots()) == 1
        assert dict(vars(owner)) == before
        assert not seams._wraps
        assert not len(registry.REGISTRY)
    llama.generate(prompt, max_new_tokens=2)
    assert len(watched.exporter.get_finished_spans()) == 3


def test_a_class_with_a_generate_of_its_own_is_one_request_from_the_first_on(watched, transformers, llama, prompt):
    class Twice(transformers.LlamaForCausalLM):
        def generate(self, *args, **kwargs):
            super().generate(*args, **kwargs)
            return super().generate(*args, **kwargs)

    model = Twice(llama.config).eval()
    model.generation_config = llama.generation_config
    for _ in range(2):
        model.generate(prompt, max_new_tokens=2)
    assert len(watched.roots()) == 2
    assert [len(result.record.phases) for result in watched.session.results] == [2, 2]


def test_forwards_outside_of_generate_are_no_requests(watched, llama, prompt):
    llama.generate(prompt, max_new_tokens=2)
    with torch.no_grad():
        llama(prompt)
        llama(prompt)
    llama.generate(prompt, max_new_tokens=2)
    assert len(watched.roots()) == 2


def test_what_the_program_traces_by_itself_is_told_once(watched, llama, prompt):
    sink = SpanSink(tracer_provider=watched.provider, operation="chat")
    llama.generate(prompt, max_new_tokens=2)
    with inferscope.trace(llama, sinks=[sink]) as session:
        llama.generate(prompt, max_new_tokens=3)
        assert session.last.record.output_tokens == 3
    llama.generate(prompt, max_new_tokens=4)
    watched.session.wait()
    told = [
        (span.attributes["gen_ai.operation.name"], span.attributes["gen_ai.usage.output_tokens"])
        for span in watched.exporter.get_finished_spans()
        if span.parent is None
    ]
    assert told == [("text_completion", 2), ("chat", 3), ("text_completion", 4)]
    assert [result.record.output_tokens for result in watched.session.results] == [2, 4]


def test_a_session_that_keeps_gets_what_others_tell(llama, prompt):
    kept, told = [], []
    with observe_every(keepers=[kept.append], outlets=[told.append]) as session:
        llama.generate(prompt, max_new_tokens=2)
        with inferscope.trace(llama, sinks=()):
            llama.generate(prompt, max_new_tokens=3)
        session.wait()
    assert [result.record.output_tokens for result in kept] == [2, 3]
    assert [result.record.output_tokens for result in told] == [2]


def test_without_a_provider_or_with_one_that_drops_everything_nothing_is_observed(llama, prompt):
    with Watched(sampler=ALWAYS_OFF) as watched:
        llama.generate(prompt, max_new_tokens=2)
        assert watched.session.results == ()
        assert watched.exporter.get_finished_spans() == ()
    with observe_every() as session:
        llama.generate(prompt, max_new_tokens=2)
        assert session.results == ()


def test_a_sample_rate_holds_for_every_sink(llama, prompt, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_SAMPLE_RATE", "0")
    kept = []
    with observe_every(keepers=[kept.append]) as session:
        llama.generate(prompt, max_new_tokens=2)
        session.wait()
    assert kept == []


def test_spans_hang_where_the_caller_is_and_requests_without_one_stand_alone(watched, llama, prompt, transformers):
    tracer = watched.provider.get_tracer("application")
    with tracer.start_as_current_span("handler") as handler:
        streamer = transformers.TextIteratorStreamer(Numbers(), skip_prompt=True)
        thread = threading.Thread(
            target=llama.generate, args=(prompt,), kwargs={"streamer": streamer, "max_new_tokens": 3}
        )
        thread.start()
        assert len("".join(streamer).split()) == 3
        thread.join()
        other = build_llama(transformers, num_hidden_layers=1)
        other.generate(prompt, max_new_tokens=2)
    thread = threading.Thread(target=other.generate, args=(prompt,), kwargs={"max_new_tokens": 2})
    thread.start()
    thread.join()
    streamed, direct, alone = watched.roots()
    assert streamed.parent.span_id == handler.get_span_context().span_id  # the very first request, in a thread
    assert direct.parent.span_id == handler.get_span_context().span_id
    assert alone.parent is None  # it belongs to nobody, least of all to who came first


class Numbers:
    """Decodes to numbers: a streamer needs a tokenizer, not a language."""

    def decode(self, ids, **_kwargs):
        return "".join(f"{int(token)} " for token in ids)


def test_baggage_is_the_same_within_and_after(watched, llama, prompt):
    seen = []

    class Looking:
        def put(self, _value):
            seen.append(dict(baggage.get_all()))

        def end(self):
            seen.append(dict(baggage.get_all()))

    token = otel_context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        before = otel_context.get_current()
        llama.generate(prompt, max_new_tokens=2, streamer=Looking())
        assert otel_context.get_current() is before
    finally:
        otel_context.detach(token)
    assert seen == [{"tenant": "blue"}] * 4
    (root,) = watched.roots()
    assert "blue" not in str(dict(root.attributes))  # whose it is, is not ours to tell


def test_continuous_batching_is_observed_even_where_its_manager_was_there_before(llama, prompt, transformers):
    config = getattr(transformers, "ContinuousBatchingConfig", None)
    if config is None or "page_size" not in inspect.signature(config).parameters:
        pytest.skip("continuous batching of this version has other parts")
    manager = llama.init_continuous_batching(
        generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=3),
        continuous_batching_config=config(max_batch_tokens=16, num_blocks=64, page_size=16),
    )
    with Watched() as watched:
        manager.add_request(prompt[0].tolist(), request_id="one")
        manager.start()
        try:
            while (output := manager.get_result(timeout=30)) is not None and not output.is_finished():
                pass
            assert len(output.generated_tokens) == 3
        finally:
            manager.stop(block=True)
        (root,) = watched.roots()
    assert root.attributes["gen_ai.usage.output_tokens"] == 3


def test_models_that_are_dropped_are_freed_and_forgotten(watched, transformers, prompt):
    gone = []
    for _ in range(4):
        model = build_llama(transformers, num_hidden_layers=1)
        model.generate(prompt, max_new_tokens=2)
        watched.session.wait()
        gone.append(weakref.ref(model))
        del model
        gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    assert len(watched.session._every._attachments) == 1  # the last one, till the next model comes


def test_many_threads_begin_with_a_new_model_at_once(watched, transformers, prompt):
    model = build_llama(transformers)
    together = threading.Barrier(4)

    def answer():
        together.wait(30)
        model.generate(prompt, max_new_tokens=2)

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watched.roots()) == 4
    assert len(watched.session.results) == 4


@pytest.mark.usefixtures("notices_reset")
@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("INFERSCOPE_DISABLED", "1"), ("INFERSCOPE_DETAIL", "wrong")]
)
def test_switched_off_or_wrongly_set_nothing_is_touched_and_nothing_raised(
    variable, value, llama, prompt, monkeypatch, capsys
):
    monkeypatch.setenv(variable, value)
    original = vars(type(llama).__mro__[-1]).get("generate")
    instrumentor = inferscope.InferscopeInstrumentor()
    instrumentor.instrument()
    try:
        assert not seams._wraps
        llama.generate(prompt, max_new_tokens=1)
        assert not len(registry.REGISTRY)
    finally:
        instrumentor.uninstrument()
    assert vars(type(llama).__mro__[-1]).get("generate") is original
    assert ("INFERSCOPE_DETAIL" in capsys.readouterr().err) == (value == "wrong")


def test_a_fault_of_ours_ends_no_other_instrumentation(monkeypatch, notices_reset, capsys):
    def broken(*_args, **_options):
        raise RuntimeError("boom")

    monkeypatch.setattr("inferscope.session.observe_every", broken)
    monkeypatch.setitem(os.environ, "INFERSCOPE_RAISE", "0")
    instrumentor = inferscope.InferscopeInstrumentor()
    instrumentor.instrument()
    instrumentor.uninstrument()
    assert "boom" in capsys.readouterr().err
