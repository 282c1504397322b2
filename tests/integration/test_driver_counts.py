"""Real requests whose forwards launch on a driver that is made up: counts, kinds of pass, changes, and the two arms."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import inferscope
from conftest import build_llama
from inferscope.capture import metering
from inferscope.capture.driver_counts import PASSES_COUNTED
from inferscope.meters import budget, deep
from inferscope.meters.budget import BUDGET
from inferscope.meters.counters import NativeCounter
from inferscope.settings import Settings
from inferscope.sinks.jsonl import JsonlSink, read_records

SOURCE = Path(__file__).parents[1] / "mock_libcupti.c"
DRIVER, ENTER, LAUNCH, WAIT, GRAPH = 1, 0, 307, 126, 514
SUBSCRIBED = 0


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    pytest.importorskip("inferscope._cupti", reason="the C extension was not built here")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the mock libcupti with")
    path = tmp_path_factory.mktemp("cupti") / "libcupti.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, SOURCE], check=True)
    return path


class Driver:
    """A driver that a model's layers launch on."""

    def __init__(self, library, model):
        self.mock = ctypes.CDLL(str(library))
        self.per_layer = 10
        for layer in model.model.layers:
            layer.register_forward_hook(self.launch)
        model.model.norm.register_forward_hook(self.wait)

    def launch(self, *_):
        self.mock.mock_fire(DRIVER, LAUNCH, ENTER, self.per_layer)

    def wait(self, *_):
        self.mock.mock_fire(DRIVER, WAIT, ENTER, 1)

    @property
    def held(self):
        return bool(self.mock.mock_state(SUBSCRIBED))


@pytest.fixture
def model(transformers):
    return build_llama(transformers)


@pytest.fixture
def driver(library, model, monkeypatch, notices_reset):
    from inferscope import _cupti  # noqa: PLC0415 - the fixture before has found it

    counter = NativeCounter(_cupti, [str(library)])
    monkeypatch.setattr(metering, "driver_counter", lambda _module: counter)
    monkeypatch.setattr(BUDGET, "allows", lambda: True)
    driver = Driver(library, model)
    yield driver
    assert not driver.held
    assert not deep._state.lock.locked()
    assert deep._state.sessions == 0


def test_every_pass_is_counted_and_kinds_are_told(driver, model, prompt, tmp_path):
    path = tmp_path / "records.jsonl"
    expected = model.generate(prompt, max_new_tokens=10)
    with inferscope.trace(model, sinks=[JsonlSink(path)], counters="native") as session:
        assert torch.equal(model.generate(prompt, max_new_tokens=10), expected)
        assert not driver.held  # it is given back with the request
    record = session.last.record
    prefill, decode = record.phase("prefill"), record.phase("decode")
    assert (prefill.launches, prefill.launches_source) == (20, "native")
    assert (decode.launches, decode.launches_source) == (180, "native")
    # From 10 tokens to 18: below 16 and from there on.
    assert {(step.context_from, step.context_to): step.passes for step in decode.steps} == {(8, 15): 6, (16, 31): 3}
    assert {(step.name, step.launches, step.syncs, step.graph_launches, step.unit) for step in decode.steps} == {
        ("decode", 20, 1, 0, "kernel")
    }
    assert sum(step.samples for step in decode.steps) == 9
    assert record.ledger.total_ns == record.wall_ns
    assert read_records(path) == [record]


def test_a_later_request_knows_without_counting(driver, model, prompt, monkeypatch):
    with inferscope.trace(model, sinks=(), counters="native") as session:
        model.generate(prompt, max_new_tokens=6)
        assert session.last.record.phase("decode").launches == 100
        monkeypatch.setattr(BUDGET, "allows", lambda: False)
        model.generate(prompt, max_new_tokens=6)
        later = session.last.record.phase("decode")
        assert (later.launches, later.steps[0].samples) == (100, 5)
        model.generate(prompt, max_new_tokens=60)  # some of its passes are of a kind that was not counted
        longer = session.last.record.phase("decode")
        assert longer.launches is longer.launches_source is None
        assert 0 < sum(step.passes for step in longer.steps) < longer.passes


def test_launches_that_change_are_said_once_and_recorded(driver, model, prompt, capfd):
    with inferscope.trace(model, sinks=(), counters="native") as session:
        model.generate(prompt, max_new_tokens=6)
        driver.per_layer = 13
        model.generate(prompt, max_new_tokens=6)
        model.generate(prompt, max_new_tokens=6)
        steps = session.last.record.phase("decode").steps
    assert [(step.launches, step.launches_before) for step in steps] == [(26, 20)]
    said = [line for line in capfd.readouterr().err.splitlines() if "launches-changed" in line]
    assert sum("phase='decode'" in line for line in said) == 1
    assert "launches_before=20" in said[0]
    assert "launches=26" in said[0]


def test_counting_ends_within_a_long_request(driver, model, prompt):
    with inferscope.trace(model, sinks=(), counters="native") as session:
        model.generate(prompt, max_new_tokens=PASSES_COUNTED + 40)
    decode = session.last.record.phase("decode")
    assert sum(step.samples for step in decode.steps) == PASSES_COUNTED - 1
    assert decode.launches == decode.passes * 20


def test_only_one_request_at_a_time_counts_and_each_thread_its_own(driver, model, prompt):
    records = {}

    def run(number):
        with inferscope.trace(model, sinks=(), counters="native") as session:
            model.generate(prompt, max_new_tokens=6)
        records[number] = session.results

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = [step for results in records.values() for result in results for step in result.record.phases[-1].steps]
    assert steps
    assert {step.launches for step in steps} == {20}


def test_a_request_that_fails_gives_it_back(driver, model, prompt):
    class StopError(Exception):
        pass

    def fail(*_args):
        raise StopError

    model.lm_head.register_forward_pre_hook(fail)
    with inferscope.trace(model, sinks=(), counters="native") as session:
        with pytest.raises(StopError):
            model.generate(prompt, max_new_tokens=6)
        assert not driver.held
    assert session.last.record.phases[0].steps == ()


def test_a_profiler_that_begins_within_a_request_gets_its_way(driver, model, prompt):
    seen = []

    def profiled(*_):
        if not seen:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as users:
                seen.append(driver.held)
                torch.ones(3).add(1)
            seen.append(any(event.key == "aten::add" for event in users.key_averages()))

    with inferscope.trace(model, sinks=(), counters="native") as session:
        model.generate(prompt, max_new_tokens=3)
        hook = model.model.norm.register_forward_hook(profiled)
        model.generate(prompt, max_new_tokens=6)
        hook.remove()
    assert seen == [False, True]
    assert session.last.record.status == "ok"


def test_a_hand_written_loop_is_not_counted(driver, model, prompt):
    with inferscope.trace(model, sinks=(), counters="native") as session, torch.no_grad():
        model(prompt, use_cache=True)
        assert not driver.held
    assert session.last.record.phases[0].launches is None
    assert any("nothing was counted at the driver" in note for note in session.last.record.notes)


def test_on_a_cpu_operators_play_the_launches_part(transformers, prompt, monkeypatch):
    monkeypatch.setattr(BUDGET, "allows", lambda: True)
    monkeypatch.setattr(deep, "_UNREAD_KEPT", 64)
    model = build_llama(transformers)
    with inferscope.trace(model, sinks=(), deep_every=1) as session:
        model.generate(prompt, max_new_tokens=8)
    decode = session.last.record.phase("decode")
    assert decode.launches is None  # there is no kernel
    assert {(step.unit, step.source, step.syncs, step.varies) for step in decode.steps} == {
        ("operator", "deep", None, False)
    }
    assert len({step.launches for step in decode.steps}) == 1
    recorded = sum(operator.calls for operator in decode.operators)
    assert decode.steps[0].launches * decode.deep.passes == recorded


def test_requests_left_out_by_chance_tell_what_observing_costs(transformers, prompt):
    model = build_llama(transformers)
    expected = model.generate(prompt, max_new_tokens=3)
    with inferscope.trace(model, sinks=(), sample_rate=0.5) as session:
        for _ in range(200):
            assert torch.equal(model.generate(prompt, max_new_tokens=3), expected)
        model.generate(prompt[:, :5], max_new_tokens=3)
        results = session.results
    assert 50 < len(results) < 151
    known = [result.record.own_overhead for result in results]
    last = max(known, key=lambda each: each.observed + each.bare)
    assert last.provenance == "randomised"
    assert last.low_ns <= last.per_token_ns <= last.high_ns
    assert last.observed <= len(results)
    assert last.observed + last.bare <= 200
    assert (last.budget_share, last.observed_share) == (0.01, 0.5)


@pytest.mark.parametrize("asked", [True, False])
def test_requests_go_unobserved_only_for_a_budget_that_was_asked_for(
    model, prompt, asked, monkeypatch, capfd, notices_reset
):
    monkeypatch.setattr(budget, "SETTLED_REQUESTS", 4)
    monkeypatch.setattr(budget, "SETTLED_NS", 1)
    if not asked:
        real = Settings.from_environment()
        monkeypatch.setattr(Settings, "from_environment", lambda: replace(real, overhead_budget=1e-9))
    with inferscope.trace(model, sinks=(), overhead_budget=1e-9 if asked else None) as session:
        for _ in range(6):
            model.generate(prompt, max_new_tokens=2)
        assert len(session.results) == 6 or asked
        for _ in range(20):
            model.generate(prompt, max_new_tokens=2)
        results = session.results
    overhead = results[-1].record.own_overhead
    assert overhead.self_share > 0
    assert (len(results) < 26, overhead.observed_share < 0.01) == (asked, asked)
    assert capfd.readouterr().err.count("overhead-budget") == 1


def test_with_every_request_observed_there_is_nothing_to_compare(model, prompt):
    with inferscope.trace(model, sinks=()) as session:
        for _ in range(5):
            model.generate(prompt, max_new_tokens=2)
    overhead = session.last.record.own_overhead
    assert (overhead.per_token_ns, overhead.provenance, overhead.observed, overhead.bare) == (None, None, 0, 0)
    assert overhead.observed_share == 1


@pytest.mark.parametrize(
    "wrong", [{"counters": "all"}, {"overhead_budget": 0}, {"overhead_budget": 2}, {"overhead_budget": "little"}]
)
def test_wrong_settings_are_refused(model, wrong):
    with pytest.raises(inferscope.InferscopeError, match=next(iter(wrong))):
        inferscope.trace(model, **wrong)
