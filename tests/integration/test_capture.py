"""Plain `generate` in its modes: what was seen, against what truly ran."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import pickle
import threading
import time
import weakref
from array import array
from dataclasses import replace

import pytest
import torch
from mode_truth import bare, last_chunk

import inferscope
from inferscope.capture import intercept
from inferscope.errors import NotAModelError, SettingError, SinkError
from inferscope.hardware import probe

pytestmark = pytest.mark.capture

FIRST_DECODES = [("decode", 1, past, 1) for past in range(9, 14)]


class Streamer:
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


def true_forwards(model, run):
    """(q, batch) of every forward, recorded by wrapping the class: independent of inferscope's hooks."""
    seen = []
    forward = type(model).forward

    @functools.wraps(forward)  # transformers looks at the signature
    def recording(self, input_ids=None, *args, **kwargs):
        seen.append((input_ids.shape[1], input_ids.shape[0]))
        return forward(self, input_ids, *args, **kwargs)

    type(model).forward = recording
    try:
        run()
    finally:
        type(model).forward = forward
    return seen


MODES = {
    "greedy": ({}, [("prefill", 9, 0, 1), *FIRST_DECODES]),
    "sampling": ({"do_sample": True}, [("prefill", 9, 0, 1), *FIRST_DECODES]),
    "beams": ({"num_beams": 3}, [("prefill", 9, 0, 3)] + [("decode", 1, past, 3) for past in range(9, 14)]),
    "return_dict": (
        {"return_dict_in_generate": True, "output_scores": True},
        [("prefill", 9, 0, 1), *FIRST_DECODES],
    ),
    "copies": (
        {"do_sample": True, "num_return_sequences": 2},
        [("prefill", 9, 0, 2)] + [("decode", 1, past, 2) for past in range(9, 14)],
    ),
    "no cache": (
        {"use_cache": False},
        [("prefill", 9, 0, 1)] + [("decode/no-cache", q, 0, 1) for q in range(10, 15)],
    ),
    "chunked prefill": (
        {"prefill_chunk_size": 4},
        [("prefill", 4, 0, 1), ("prefill/chunk", 4, 4, 1), tuple(last_chunk(1, 8)), *FIRST_DECODES],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_forward_is_seen_and_named(llama, prompt, mode):
    options, expected = MODES[mode]
    bare(lambda: llama.generate(prompt, max_new_tokens=6, **options))
    with inferscope.trace(llama, detail="passes", sinks=()) as session:
        truth = true_forwards(llama, lambda: llama.generate(prompt, max_new_tokens=6, **options))
    record = session.last.record
    seen = [(entry.name, entry.q_len, entry.past_len, entry.batch_size) for entry in record.pass_samples]
    assert seen == expected
    assert [(q, batch) for _, q, _, batch in seen] == truth
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns < 0.01 * record.wall_ns
    assert record.output_len == 6
    assert record.input_tokens == 9
    assert sum(phase.passes for phase in record.phases) == len(truth)


def test_a_streamer_gets_the_same_tokens_and_its_time_is_deliver(llama, prompt):
    bare, traced = Streamer(), Streamer()
    llama.generate(prompt, max_new_tokens=5, streamer=bare)
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=5, streamer=traced)
    assert traced.seen == bare.seen
    record = session.last.record
    assert record.ttft_method == "streamer"
    assert record.phase("decode").ledger.deliver_ns > 0
    assert record.phase("decode").ledger.wait_ns > 0
    assert record.options.streaming


def test_a_continued_cache_is_prefilled_behind_what_it_holds(llama, prompt, transformers):
    cache = transformers.DynamicCache()
    with inferscope.trace(llama, detail="passes", sinks=()) as session:
        first = llama.generate(prompt, past_key_values=cache, max_new_tokens=6)
        more = torch.cat([first, torch.randint(1, 1000, (1, 5))], dim=1)
        llama.generate(more, past_key_values=cache, max_new_tokens=2)
    samples = session.last.record.pass_samples
    assert [(entry.name, entry.q_len, entry.past_len) for entry in samples] == [("prefill", 6, 14), ("decode", 1, 20)]


def test_tokens_are_counted_without_padding_on_either_side(llama):
    model = llama
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    mask = (ids != 0).long()
    greedy = model.generate(ids, attention_mask=mask, max_new_tokens=8)
    stop_at = int(greedy[0, 5 + 2])
    with inferscope.trace(model, sinks=()) as session:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=8, eos_token_id=stop_at)
    expected = 0
    for row in out[:, 5:].tolist():
        expected += row.index(stop_at) + 1 if stop_at in row else len(row)
    record = session.last.record
    assert record.input_tokens == 8
    assert record.output_tokens == expected
    assert record.finish_reasons[0] == "stop"


def test_two_sessions_see_the_same_request_and_the_inner_one_leaves_alone(llama, prompt):
    with inferscope.trace(llama, sinks=()) as outer:
        with inferscope.trace(llama, sinks=()) as inner:
            llama.generate(prompt, max_new_tokens=2)
        llama.generate(prompt, max_new_tokens=3)
    assert len(outer.results) == 2
    assert len(inner.results) == 1
    assert outer.results[0].record == inner.last.record


def test_as_decorator_and_async(llama, prompt):
    session = inferscope.trace(llama, sinks=())

    @session
    def answer():
        return llama.generate(prompt, max_new_tokens=2)

    @session
    async def answer_later():
        return answer()

    answer()
    asyncio.run(answer_later())

    async def within():
        async with session:
            llama.generate(prompt, max_new_tokens=2)

    asyncio.run(within())
    assert len(session.results) == 3


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("error", [_StoppedError, KeyboardInterrupt, GeneratorExit, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["processor", "criterion", "streamer", "forward"])
def test_the_users_exception_passes_through_and_leaves_an_aborted_record(llama, prompt, error, where):
    raised = error("mine")
    calls = 0

    def strike(*_args, **_kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise raised

    class Processor:
        def __call__(self, _ids, scores):
            strike()
            return scores

    options = {}
    if where == "processor":
        options["logits_processor"] = [Processor()]
    if where == "criterion":
        options["stopping_criteria"] = [lambda ids, _scores: strike() or torch.zeros(len(ids), dtype=torch.bool)]
    if where == "streamer":
        options["streamer"] = type("S", (), {"put": strike, "end": lambda _self: None})()
    handle = llama.model.register_forward_hook(strike) if where == "forward" else None
    with inferscope.trace(llama, sinks=()) as session, pytest.raises(error) as caught:
        llama.generate(prompt, max_new_tokens=9, **options)
    if handle is not None:
        handle.remove()
    assert caught.value is raised
    record = session.last.record
    assert (record.status, record.error_type) == ("aborted", error.__qualname__)
    assert record.phase("prefill").passes == 1
    assert record.ledger.total_ns == record.wall_ns
    assert record.output_tokens is None
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=2)
    assert session.last.record.status == "ok"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_leaving_by_an_exception_restores_everything(llama, prompt, error):
    before = (dict(llama._forward_hooks), dict(llama._forward_pre_hooks), dict(vars(type(llama))), set(vars(llama)))
    with pytest.raises(error), inferscope.trace(llama, sinks=()):  # noqa: PT012 - leaving the block is the test
        llama.generate(prompt, max_new_tokens=1)
        raise error
    after = (dict(llama._forward_hooks), dict(llama._forward_pre_hooks), dict(vars(type(llama))), set(vars(llama)))
    assert after == before


def test_a_wrap_laid_over_ours_survives_us(llama, prompt, transformers):
    mixin = transformers.GenerationMixin
    original = mixin.generate
    session = inferscope.trace(llama, sinks=())
    with session:
        ours = mixin.generate

        def theirs(self, *args, **kwargs):
            return ours(self, *args, **kwargs)

        mixin.generate = theirs
    try:
        assert mixin.generate is theirs
        assert llama.generate(prompt, max_new_tokens=2).shape[1] == 11
        assert len(session.results) == 0
    finally:
        mixin.generate = original


def test_a_copy_of_a_traced_model_is_not_traced_and_pickles(llama, prompt):
    with inferscope.trace(llama, sinks=()) as session:
        twin = copy.deepcopy(llama)
        loaded = pickle.loads(pickle.dumps(llama))  # noqa: S301 - our own bytes
        for model in (twin, loaded):
            assert torch.equal(model.generate(prompt, max_new_tokens=3), twin.generate(prompt, max_new_tokens=3))
        llama.generate(prompt, max_new_tokens=2)
    assert len(session.results) == 1


def test_a_traced_model_can_be_freed(transformers):
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=50
    )
    model = transformers.LlamaForCausalLM(config)
    session = inferscope.trace(model, sinks=())
    with session:
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
    assert session.last is not None
    gone = weakref.ref(model)
    del model, session
    gc.collect()
    assert gone() is None


@pytest.fixture
def short_lived(transformers):
    """A new model that nobody else holds."""
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=50
    )
    return lambda: transformers.LlamaForCausalLM(config)


def test_a_model_dropped_after_its_only_request_is_described_and_freed(short_lived):
    """A script whose work is in its `main` drops the model before the background thread has looked."""
    model = short_lived()
    gone = weakref.ref(model)
    with inferscope.trace(model, sinks=()) as session:
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
        del model
    record = session.last.record
    assert (record.model.name, record.notes) == ("LlamaForCausalLM", ())
    assert record.model.cost is not None
    gc.collect()
    assert gone() is None


def test_requests_of_a_model_that_was_freed_meanwhile_are_of_that_model(short_lived):
    """It is gone while the first of its requests is still worked on."""
    begun, held, results = threading.Event(), threading.Event(), []

    def slow(result):
        begun.set()
        assert held.wait(120)
        results.append(result)

    model = short_lived()
    gone = weakref.ref(model)
    with inferscope.trace(model, sinks=(slow,)) as session:
        for _ in range(2):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
        del model
    assert begun.wait(120)
    gc.collect()
    assert gone() is None
    held.set()
    session.wait()
    first, second = (result.record for result in results)
    assert second.model == first.model
    assert second.model.cost is not None
    assert first.notes == ()
    assert any("was freed before this result" in note for note in second.notes)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda _: inferscope.trace("not a model"), NotAModelError, "not str"),
        (lambda model: inferscope.trace(model, sinks=["graphite"]), SinkError, "graphite"),
        (lambda model: inferscope.trace(model, sinks=[7]), SinkError, "7"),
        (lambda model: inferscope.trace(model, sinks="log"), SinkError, "expected a list"),
        (lambda model: inferscope.trace(model, sinks=3), SinkError, "expected a list"),
        (lambda model: inferscope.trace(model, device="cpu"), SettingError, "calibrate"),
        (lambda model: inferscope.trace(model, detail="everything"), SettingError, "everything"),
    ],
)
def test_misuse_is_said_at_once(llama, call, error, says):
    with pytest.raises(error, match=says):
        call(llama)


def test_disabled_attaches_nothing(llama, prompt, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_DISABLED", "1")
    with inferscope.trace(llama) as session:
        assert not llama._forward_hooks
        llama.generate(prompt, max_new_tokens=2)
    assert session.last is None


def test_a_failing_sink_is_said_once_and_costs_the_others_nothing(llama, prompt, notices_reset, capfd):
    taken = []

    def broken(_result):
        raise OSError("disk gone")

    with inferscope.trace(llama, sinks=[broken, taken.append]) as session:
        for _ in range(3):
            llama.generate(prompt, max_new_tokens=2)
        session.wait()
    assert len(taken) == 3
    assert capfd.readouterr().err.count("sink-failed") == 1


def broken(*_args, **_kwargs):
    raise RuntimeError("our own fault")


@pytest.mark.usefixtures("notices_reset")
@pytest.mark.parametrize(
    ("seam", "strike"),
    [
        ("frames.Frame.look", broken),
        ("frames._chunk", lambda: array("q")),  # no room for a row
        ("borders._open_request", broken),
    ],
)
def test_a_fault_of_ours_is_said_once_and_changes_nothing(llama, prompt, seam, strike, monkeypatch, capfd):
    expected = llama.generate(prompt, max_new_tokens=6)
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    monkeypatch.setattr(f"inferscope.capture.{seam}", strike)
    with inferscope.trace(llama, sinks=()) as session:
        for _ in range(2):
            assert torch.equal(llama.generate(prompt, max_new_tokens=6), expected)
    assert session.last is None
    assert capfd.readouterr().err.count("capture-failed") == 1


def test_a_request_that_outlives_its_session_still_becomes_a_result(llama, prompt):
    session = inferscope.trace(llama, sinks=())
    left = threading.Event()

    class Slow:
        def __call__(self, _ids, scores):
            left.wait(10)
            return scores

    thread = threading.Thread(
        target=lambda: llama.generate(prompt, max_new_tokens=2, logits_processor=[Slow()]), daemon=True
    )
    with session:
        thread.start()
        while not intercept.active_requests():
            time.sleep(0.001)
    left.set()
    thread.join(10)
    deadline = time.monotonic() + 10
    while not session._results and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(session._results) == 1


def test_a_sink_may_ask_for_results_without_waiting_for_itself(llama, prompt):
    asked = []
    with inferscope.trace(llama, sinks=[lambda result: asked.append((result, session.results))]) as session:
        for _ in range(2):
            llama.generate(prompt, max_new_tokens=2)
    assert len(session.results) == 2
    assert [result for result, _ in asked] == list(session.results)


def test_a_decorated_function_runs_in_many_threads_and_leaves_nothing(llama, prompt):
    session = inferscope.trace(llama, sinks=())
    answer = session(lambda: llama.generate(prompt, max_new_tokens=2))
    threads = [threading.Thread(target=lambda: [answer() for _ in range(10)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(session.results) == 60
    assert len({result.record.request_id for result in session.results}) == 60
    assert session._depth == 0


def test_a_record_names_its_machine_and_is_not_judged_by_another_s_ceilings(llama, prompt):
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=2)
    record = session.last.record
    assert record.device_key == probe.identify("cpu").key
    assert inferscope.diagnose(record).diagnosis.device is not None
    assert inferscope.diagnose(replace(record, device_key="another machine")).diagnosis.device is None
