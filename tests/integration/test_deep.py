"""Recorded forwards of real models: what they hold, and every way in which they might hurt the host."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

import inferscope
from conftest import build_llama
from inferscope.capture.deep import PUT_OFF_NOTE
from inferscope.meters import deep
from inferscope.meters.budget import BUDGET
from inferscope.sinks.jsonl import JsonlSink, read_records

NEW = 8


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch, notices_reset):
    """Every pass may be recorded, and torch computes on the thread that asks, so that nobody else's load counts."""
    monkeypatch.setattr(BUDGET, "allows", lambda: True)
    monkeypatch.setattr(deep, "_UNREAD_KEPT", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert deep._state.window is None
    assert not deep._state.lock.locked()
    assert deep._state.original is None
    assert not torch.autograd._profiler_enabled()


def traced(model, ids, **settings):
    with inferscope.trace(model, sinks=(), deep_every=1, **settings) as session:
        out = model.generate(ids, max_new_tokens=NEW)
    return out, session.last


def in_layer(model, work):
    """Something more in the first layer's forward, as a hook of the user's."""

    def hook(*_):
        work()

    return model.model.layers[0].register_forward_hook(hook)


def test_every_pass_closes_and_the_tokens_are_the_same(llama, prompt):
    expected = llama.generate(prompt, max_new_tokens=NEW)
    for _ in range(8):  # a thread that is put aside between two clock readings is no fault of the sums
        out, result = traced(llama, prompt)
        assert torch.equal(out, expected)
        record = result.record
        if all(abs(phase.deep.closure_ns) <= 0.01 * phase.deep.wall_ns for phase in record.phases):
            break
    cost_ns = 0
    for phase in record.phases:
        recorded = phase.deep
        assert recorded.passes >= 1
        assert abs(recorded.closure_ns) <= 0.01 * recorded.wall_ns
        assert recorded.operators_ns + recorded.python_ns + recorded.closure_ns == recorded.wall_ns
        assert recorded.wall_ns <= phase.ledger.issue_ns + recorded.cost_ns
        assert recorded.python_ns > 0
        assert recorded.device_busy_ns is None
        assert len(recorded.largest) <= 20
        groups = {each.group: each for each in phase.operators}
        assert {"linear", "attention", "norm/elementwise", "copy"} <= groups.keys()
        assert groups["linear"].calls == 15 * recorded.passes  # seven a layer and the head
        assert groups["attention"].calls == 2 * recorded.passes
        assert groups["linear"].launches is None
        assert sum(each.time_ns for each in phase.operators) == recorded.operators_ns
        cost_ns += recorded.cost_ns
    assert record.phase("decode").deep.passes == NEW - 1
    assert 0 < cost_ns <= record.ledger.self_ns
    assert record.ledger.total_ns == record.wall_ns


@pytest.mark.parametrize("delay_s", [0.0006, 0.0012, 0.0036])
def test_python_put_into_a_layer_comes_back_as_python(llama, prompt, delay_s):
    """All of it, at least: what comes after a pause runs slower, and by how much depends on the machine."""

    def busy():
        began = time.perf_counter_ns()
        while time.perf_counter_ns() - began < delay_s * 1e9:
            pass

    in_layer(llama, busy)
    decode = traced(llama, prompt)[1].record.phase("decode")
    assert decode.deep.python_ns >= decode.deep.passes * delay_s * 1e9
    assert decode.deep.operators_ns <= decode.deep.wall_ns - decode.deep.passes * delay_s * 1e9


@pytest.mark.parametrize(
    ("work", "name", "group"),
    [
        (lambda: torch.sort(torch.arange(300_000.0).flip(0)), "aten::sort", "sampling"),
        (lambda: torch.mm(torch.ones(300, 300), torch.ones(300, 300)), "aten::mm", "linear"),
    ],
)
def test_a_slow_operator_put_into_a_layer_stands_in_its_group(llama, prompt, work, name, group):
    in_layer(llama, work)
    decode = traced(llama, prompt)[1].record.phase("decode")
    found = next(each for each in decode.deep.largest if each.name == name)
    assert found.group == group
    assert found.calls == decode.deep.passes
    assert next(each for each in decode.operators if each.group == group).time_ns >= found.time_ns


def test_a_profiler_of_the_users_is_left_alone(llama, prompt, capfd):
    expected = llama.generate(prompt, max_new_tokens=NEW)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as users:
        out, result = traced(llama, prompt)
    assert torch.equal(out, expected)
    assert all(phase.deep is None and phase.operators == () for phase in result.record.phases)
    assert any(event.key == "aten::linear" for event in users.key_averages())
    assert capfd.readouterr().err.count("deep-stepped-aside") == 1


@pytest.mark.parametrize("before", [True, False])
def test_nor_is_one_that_was_only_prepared(llama, prompt, before):
    """It has no flag anywhere, and two at once end the process."""
    users = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1),
    )
    if before:
        users.start()
    with inferscope.trace(llama, sinks=(), deep_every=1) as session:
        if not before:
            users.start()
        llama.generate(prompt, max_new_tokens=3)
        assert session.last.record.phase("decode").deep is None
        users.step()
        llama.generate(prompt, max_new_tokens=3)
        users.step()
        users.stop()
        assert any(event.key == "aten::linear" for event in users.key_averages())
        llama.generate(prompt, max_new_tokens=4)
        assert session.last.record.phase("decode").deep is not None


def test_one_that_begins_within_a_forward_gets_its_way(llama, prompt):
    seen = []

    def profiled():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as users:
            torch.ones(3).add(1)
            assert deep._state.window is None
        seen.append(any(event.key == "aten::add" for event in users.key_averages()))

    in_layer(llama, profiled)
    out, result = traced(llama, prompt)
    assert seen == [True] * NEW
    assert out.shape[1] == prompt.shape[1] + NEW
    assert all(phase.deep is None for phase in result.record.phases)


def test_two_threads_never_record_at_once(llama, transformers, prompt, monkeypatch):
    open_now, most = [], []
    start, stop = deep._start, deep._stop

    def counted_start(*, cuda):
        open_now.append(1)
        most.append(len(open_now))
        start(cuda=cuda)

    def counted_stop():
        results = stop()
        open_now.pop()
        return results

    monkeypatch.setattr(deep, "_start", counted_start)
    monkeypatch.setattr(deep, "_stop", counted_stop)
    models = [llama, build_llama(transformers)]
    expected = [model.generate(prompt, max_new_tokens=NEW) for model in models]
    same = []

    def generate(model, tokens):
        same.extend(torch.equal(model.generate(prompt, max_new_tokens=NEW), tokens) for _ in range(4))

    with (
        inferscope.trace(models[0], sinks=(), deep_every=1) as one,
        inferscope.trace(models[1], sinks=(), deep_every=1) as two,
    ):
        threads = [threading.Thread(target=generate, args=pair) for pair in zip(models, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert same == [True] * 8
    assert set(most) == {1}
    recorded = [p.deep for s in (one, two) for r in s.results for p in r.record.phases if p.deep is not None]
    assert 0 < sum(each.passes for each in recorded) <= len(most)


def test_a_forward_that_raises_closes_its_recording(llama, prompt):
    def refuse():
        raise KeyError("mine")

    hook = in_layer(llama, refuse)
    with inferscope.trace(llama, sinks=(), deep_every=1) as session:
        with pytest.raises(KeyError, match="mine"):
            llama.generate(prompt, max_new_tokens=NEW)
        assert not deep._state.lock.locked()
        hook.remove()
        assert session.last.record.phase("prefill").deep is None  # it was cut short
        llama.generate(prompt, max_new_tokens=NEW)
        assert session.last.record.phase("prefill").deep.passes == 1


@pytest.mark.parametrize("part", ["_start", "_stop", "_obstacle"])
def test_a_fault_of_ours_costs_the_recording_and_nothing_else(llama, prompt, monkeypatch, capfd, part):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    monkeypatch.setattr(deep._state, "broken", False)
    expected = llama.generate(prompt, max_new_tokens=NEW)
    calls = []
    in_layer(llama, lambda: calls.append(1))
    real, stop = getattr(deep, part), deep._stop
    with inferscope.trace(llama, sinks=(), deep_every=1) as session:

        def broken(*_args, **_kwargs):
            if part == "_stop":
                stop()
            raise RuntimeError("kineto says no")

        monkeypatch.setattr(deep, part, broken)
        assert torch.equal(llama.generate(prompt, max_new_tokens=NEW), expected)
        assert len(calls) == NEW
        monkeypatch.setattr(deep, part, real)
        assert torch.equal(llama.generate(prompt, max_new_tokens=NEW), expected)
        assert len(calls) == 2 * NEW
        assert [result.record.phase("decode").passes for result in session.results] == [NEW - 1] * 2
        assert all(phase.deep is None for result in session.results for phase in result.record.phases)
    assert capfd.readouterr().err.count("deep-failed") == 1


class Watching:
    """A streamer that looks whether a recording is open between two forwards."""

    def __init__(self):
        self.open = []

    def put(self, _value):
        self.open.append(deep._state.window is not None)

    def end(self):
        pass


def test_a_device_is_not_waited_for(llama, prompt, monkeypatch):
    """The recording lasts until the next forward begins; what is selected meanwhile is not of the forward."""
    expected = llama.generate(prompt, max_new_tokens=NEW)
    start, obstacle = deep._start, deep._obstacle
    monkeypatch.setattr("inferscope.capture.deep.cuda_devices_of", lambda _model: ("cuda:0",))
    monkeypatch.setattr("inferscope.capture.deep.debug_of", lambda _devices: None)
    monkeypatch.setattr(deep, "_start", lambda *, cuda: start(cuda=False))
    monkeypatch.setattr(deep, "_obstacle", lambda _devices: obstacle(()))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the device was waited for"))
    watching = Watching()
    with inferscope.trace(llama, sinks=(), deep_every=1) as session:
        assert torch.equal(llama.generate(prompt, max_new_tokens=NEW, streamer=watching), expected)
        assert deep._state.window is None
        record = session.last.record
    assert watching.open == [False, *[True] * NEW]  # the prompt is put before the first forward
    assert [phase.deep.passes for phase in record.phases] == [1, NEW - 1]
    for phase in record.phases:
        assert "sampling" not in {each.group for each in phase.operators}
        assert abs(phase.deep.closure_ns) < phase.deep.wall_ns / 10


def test_a_hand_written_loop_is_recorded(llama, prompt):
    with inferscope.trace(llama, sinks=(), deep_every=1) as session, torch.no_grad():
        out = llama(prompt, use_cache=True)
        for _ in range(5):
            out = llama(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    decode = session.last.record.phase("decode")
    assert decode.deep.passes == decode.passes == 5


def test_off_unless_asked_for(llama, prompt, monkeypatch):
    monkeypatch.setattr(deep, "_start", SimpleNamespace())  # would raise
    prepare = torch.autograd.profiler.profile._prepare_trace
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=3)
        assert torch.autograd.profiler.profile._prepare_trace is prepare
    assert all(phase.deep is None and phase.operators == () for phase in session.last.record.phases)


def test_it_is_stored_and_shown(llama, prompt, tmp_path):
    path = tmp_path / "records.jsonl"
    with inferscope.trace(llama, sinks=(JsonlSink(path),), deep_every=1) as session:
        llama.generate(prompt, max_new_tokens=NEW)
        result = session.last
    assert read_records(path) == [result.record]
    text = str(result)
    assert "passes recorded [deep]" in text
    assert "no operator" in text
    assert "aten::linear" in text
    line = path.read_text()
    path.write_text(line.replace(f'"python_ns":{result.record.phases[0].deep.python_ns}', '"python_ns":1'))
    with pytest.raises(inferscope.InferscopeError, match="line 1: the recorded passes of prefill do not add up"):
        read_records(path)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "often"])
def test_a_rate_that_cannot_be_is_refused(llama, wrong):
    with pytest.raises(inferscope.InferscopeError, match="deep_every"):
        inferscope.trace(llama, deep_every=wrong)


def test_a_record_says_where_the_budget_put_recording_off(transformers, prompt, monkeypatch):
    model = build_llama(transformers)
    _, first = traced(model, prompt)
    assert PUT_OFF_NOTE not in first.record.notes
    monkeypatch.setattr(BUDGET, "allows", lambda: False)
    _, later = traced(model, prompt)
    assert all(phase.deep is None for phase in later.record.phases)
    assert PUT_OFF_NOTE in later.record.notes
    assert PUT_OFF_NOTE in str(later).replace("\n  ", " ")
