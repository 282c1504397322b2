"""Every function of ours that runs inside the user's call is made to fail: the user must not notice.

The list is not written down: a request is watched with `sys.setprofile`, so that what is added later is tested too.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time

import pytest
import torch
from strikes import KNOWN_SLUGS, STRIKES, failures, forget, ours, unguarded

import inferscope
from inferscope.capture import registry


class Streamer:
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


@pytest.fixture
def use(llama, prompt, transformers):
    """Everything a user does while tracing, and what came out of it."""

    def run():
        streamer = Streamer()
        seen = [llama.generate(prompt, max_new_tokens=66, streamer=streamer).tolist(), streamer.seen]
        seen.append(llama.generate(prompt, max_new_tokens=3, prefill_chunk_size=4).tolist())
        seen.append(llama.generate(prompt, max_new_tokens=3, use_cache=False).tolist())
        seen.append(llama.generate(prompt, max_new_tokens=4, prompt_lookup_num_tokens=2).tolist())
        cache = transformers.DynamicCache()
        with torch.no_grad():
            logits = llama(prompt, past_key_values=cache).logits
            with inferscope.phase("decode"):
                logits = llama(logits[:, -1:].argmax(-1), past_key_values=cache).logits
            with inferscope.phase("verify"):
                pass
        seen.append(logits.tolist())
        gc.collect(0)
        return seen

    return run


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects tell their qualified name from 3.11 on")
def test_no_fault_of_ours_reaches_the_user(llama, use, monkeypatch, notices_reset, capfd):
    expected = use()
    with inferscope.trace(llama, sinks=()) as session:
        functions = ours(use)
        session.wait()
    inside = unguarded(functions)
    assert {"frames", "borders", "registry", "receivers", "calls", "requests", "loops", "inbox", "sessions"} <= {
        module.rpartition(".")[2] for module, _ in inside
    }
    assert len(inside) > 25, functions
    assert not failures(inside, use, expected, [llama], monkeypatch, capfd)
    # And afterwards everything works as before.
    with inferscope.trace(llama, sinks=()) as session:
        assert use() == expected
    assert len(session.results) == 5


class FailingClock:
    """Fails once, at its nth reading."""

    def __init__(self, nth, strike):
        self.left, self.strike = nth, strike

    def now_ns(self):
        self.left -= 1
        if self.left == 0 and isinstance(self.strike, Exception):
            raise self.strike
        return time.perf_counter_ns() if self.left else self.strike

    def thread_cpu_ns(self):
        return self.now_ns()


@pytest.mark.parametrize("kind", STRIKES)
def test_a_clock_that_fails_at_any_reading(llama, prompt, monkeypatch, notices_reset, capfd, kind):
    def run():
        streamer = Streamer()
        return llama.generate(prompt, max_new_tokens=3, streamer=streamer).tolist(), streamer.seen

    expected = run()
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    for nth in range(1, 40):
        forget(capfd)
        monkeypatch.setattr("inferscope.capture.borders._CLOCK", FailingClock(nth, STRIKES[kind]))
        with inferscope.trace(llama, sinks=()) as session:
            assert run() == expected, nth
            assert session.wait(30), nth
        said = capfd.readouterr().err
        assert all(said.count(f"slug='{slug}'") <= 1 for slug in KNOWN_SLUGS), nth


class Chance:
    """Draws these, over and over."""

    def __init__(self, *draws):
        self.draws = itertools.cycle(draws)

    def random(self):
        return next(self.draws)


# Of a share of 0.8: observed and compared, left out and compared, left out.
TURNS = (0.1, 0.9, 0.1, 0.9, 0.9)


@pytest.fixture
def sampled(llama, prompt, monkeypatch):
    """Requests that chance decides about, while a hand-written loop is open."""
    monkeypatch.setenv("INFERSCOPE_SAMPLE_RATE", "0.8")

    def run():
        monkeypatch.setattr(registry, "_CHANCE", Chance(*TURNS))
        seen = [llama.generate(prompt, max_new_tokens=2).tolist() for _ in range(3)]
        monkeypatch.setattr(registry, "_CHANCE", Chance(0.1, 0.9, 0.9))
        with torch.no_grad():
            seen.append(llama(prompt).logits.tolist())
        seen.append(llama.generate(prompt, max_new_tokens=2).tolist())
        return seen

    return run


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects tell their qualified name from 3.11 on")
def test_no_fault_around_chance_reaches_the_user(llama, prompt, sampled, monkeypatch, notices_reset, capfd):
    expected = sampled()
    with inferscope.trace(llama, sinks=(), sample_rate=1):
        known = set(ours(lambda: llama.generate(prompt, max_new_tokens=2)))
    with inferscope.trace(llama, sinks=()) as session:
        functions = ours(sampled)
        assert len(session.results) == 2  # one `generate` and one loop
    inside = unguarded(sorted(set(functions) - known))
    assert {"note", "Arms.add"} <= {name for _, name in inside}
    inside.append(("inferscope.capture.registry", "Observed.draw"))
    assert not failures(inside, sampled, expected, [llama], monkeypatch, capfd)


@pytest.mark.parametrize("kind", STRIKES)
def test_a_clock_that_fails_while_requests_are_compared(sampled, llama, monkeypatch, notices_reset, capfd, kind):
    expected = sampled()
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    for nth in range(1, 20):
        forget(capfd)
        monkeypatch.setattr("inferscope.capture.borders._CLOCK", FailingClock(nth, STRIKES[kind]))
        with inferscope.trace(llama, sinks=()) as session:
            assert sampled() == expected, nth
            assert session.wait(30), nth


@pytest.mark.parametrize("strike", [RuntimeError("sink"), MemoryError("sink"), 0.05])
def test_sinks_may_raise_or_block(llama, use, strike, notices_reset, capfd):
    expected = use()

    def sink(_result):
        if isinstance(strike, Exception):
            raise strike
        time.sleep(strike)

    with inferscope.trace(llama, sinks=[sink]) as session:
        assert use() == expected
    session.wait()
    assert capfd.readouterr().err.count("sink-failed") == (1 if isinstance(strike, Exception) else 0)


CANARY = 777_777


def test_no_text_and_no_token_leaves(transformers, tmp_path, capfd):
    """A canary token, and the word it stands for, appear in nothing that is emitted."""
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415

    from conftest import build_llama  # noqa: PLC0415
    from inferscope.sinks.spans import SpanSink  # noqa: PLC0415

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    model = build_llama(transformers, vocab_size=CANARY + 1, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    prompt = torch.full((2, 5), CANARY)
    sinks = [SpanSink(tracer_provider=provider), f"jsonl:{tmp_path / 'records.jsonl'}", "log"]
    with inferscope.trace(model, sinks=sinks, detail="passes") as session:
        model.generate(prompt, max_new_tokens=3, streamer=None)
        with pytest.raises(ValueError, match="canary"):
            model.generate(prompt, max_new_tokens=3, logits_processor=[Canary()])
        session.wait()
    emitted = [repr(session.results), *(str(result) for result in session.results)]
    emitted += [(tmp_path / "records.jsonl").read_text(encoding="utf-8"), *capfd.readouterr()]
    emitted += [span.to_json() for span in exporter.get_finished_spans()]
    everything = "\n".join(emitted)
    assert "ValueError" in everything
    assert "canary" not in everything
    assert str(CANARY) not in everything.replace(f"vocab_size={CANARY + 1}", "")


class Canary:
    def __call__(self, _ids, _scores):
        raise ValueError("the canary sang")
