"""Ranges around real requests: named as the record names its phases, and always closed."""

from __future__ import annotations

import sys
import threading

import mode_models
import pytest
import torch
from mode_truth import Taken, prompt

import inferscope
from conftest import build_llama
from inferscope import notices
from inferscope.capture import intercept
from inferscope.errors import SettingError
from inferscope.settings import Settings
from inferscope.testing.ranges import RecordedRanges


class Ranged(Taken):
    def __init__(self):
        super().__init__()
        self.ranges = RecordedRanges()


@pytest.fixture(scope="module")
def model(transformers):
    return build_llama(transformers)


@pytest.fixture
def ranged(model):
    taken = Ranged()
    attachment = intercept.attach(model, taken)
    yield taken
    attachment.detach()
    assert taken.ranges.open == ()
    assert taken.ranges.unmatched == 0


def passes(taken):
    """Of the last request."""
    return [(phase.name, phase.passes) for phase in taken.records[-1].phases]


def test_a_request_and_its_passes_have_the_names_of_the_record(model, ranged):
    model.generate(prompt(), max_new_tokens=4, do_sample=False)
    assert ranged.ranges.paths == [("request",), ("request", "prefill"), *[("request", "decode")] * 3]
    assert passes(ranged) == [("prefill", 1), ("decode", 3)]


@pytest.mark.parametrize("options", [{"use_cache": False}, {"num_beams": 2}], ids=str)
def test_without_a_cache_and_with_beams_the_names_agree_too(model, ranged, options):
    model.generate(prompt(), max_new_tokens=4, do_sample=False, **options)
    names = [path[-1] for path in ranged.ranges.paths[1:]]
    assert names == [name for name, count in passes(ranged) for _ in range(count)]


def test_an_assistant_drafts_and_the_model_verifies(transformers, model, ranged):
    model.generate(prompt(), assistant_model=build_llama(transformers), max_new_tokens=6, do_sample=False)
    names = [path[-1] for path in ranged.ranges.paths if len(path) > 1]
    counted = {name: names.count(name) for name in dict.fromkeys(names)}
    assert counted == dict(passes(ranged))
    assert set(counted) >= {"draft", "verify"}


def test_another_traced_model_called_in_between_is_not_taken_for_a_pass_of_the_first(transformers, model, ranged):
    other = build_llama(transformers)

    def processor(ids, scores):
        other(ids[:, -1:])
        return scores

    attachment = intercept.attach(other, Taken())
    try:
        model.generate(prompt(), max_new_tokens=3, do_sample=False, logits_processor=[processor])
    finally:
        attachment.detach()
    names = [path[-1] for path in ranged.ranges.paths[1:]]
    assert names == ["prefill", "draft", "decode", "draft", "decode", "draft"]
    assert sorted(set(names)) == sorted(name for name, _ in passes(ranged))


def test_an_exception_of_the_model_closes_what_is_open(model, ranged):
    def refuse(*_):
        raise ValueError("not this one")

    hook = model.model.layers[1].register_forward_pre_hook(refuse)
    try:
        with pytest.raises(ValueError, match="not this one"):
            model.generate(prompt(), max_new_tokens=4)
    finally:
        hook.remove()
    assert ranged.ranges.paths == [("request",), ("request", "prefill")]
    assert ranged.ranges.open == ()


def test_threads_have_ranges_of_their_own(model, ranged):
    threads = [
        threading.Thread(target=model.generate, args=(prompt(),), kwargs={"max_new_tokens": 3, "do_sample": False})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [("request",), ("request", "prefill"), *[("request", "decode")] * 2] * 3
    assert sorted(ranged.ranges.paths) == sorted(wanted)


def test_a_loop_by_hand_has_the_names_that_its_author_gives(model, ranged):
    with torch.no_grad():
        with inferscope.phase("prefill"):
            output = model(prompt(), use_cache=True)
        model(prompt()[:, :1], past_key_values=output.past_key_values, use_cache=True)
    assert ranged.ranges.paths == [("prefill",), ("pass",)]


def test_an_encoder_has_no_range_and_its_decoder_has():
    t5 = mode_models.t5()
    taken = Ranged()
    attachment = intercept.attach(t5, taken)
    try:
        t5.generate(prompt(), max_new_tokens=3, do_sample=False)
    finally:
        attachment.detach()
    assert {path[-1] for path in taken.ranges.paths} == {"request", "prefill", "decode"}


class Refusing(RecordedRanges):
    def push(self, name, number):
        super().push(name, number)
        if name == "decode":
            self.pop()
            raise RuntimeError("the profiler has gone")


def test_ranges_that_fail_cost_the_request_nothing(model, monkeypatch, notices_reset):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    taken = Ranged()
    taken.ranges = Refusing()
    attachment = intercept.attach(model, taken)
    try:
        tokens = model.generate(prompt(), max_new_tokens=4, do_sample=False)
    finally:
        attachment.detach()
    assert tokens.shape[1] == prompt().shape[1] + 4
    assert passes(taken) == [("prefill", 1), ("decode", 3)]
    assert "nvtx-failed" in notices._said


def test_where_nothing_was_asked_for_no_meter_stands_there(model):
    taken = Taken()
    attachment = intercept.attach(model, taken)
    try:
        model.generate(prompt(), max_new_tokens=2, do_sample=False)
    finally:
        attachment.detach()
    assert taken.requests[0].request.meter is None


def test_asked_for_where_there_is_nothing_to_put_them_with_it_is_said_once(model, monkeypatch, notices_reset):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    if torch.version.cuda is not None:
        pytest.skip("this torch can put ranges")
    monkeypatch.setenv("INFERSCOPE_NVTX", "1")
    assert Settings.from_environment().nvtx
    with inferscope.trace(model, sinks=[]) as session:
        model.generate(prompt(), max_new_tokens=2, do_sample=False)
    assert session.last.record.phase("decode").passes == 1
    assert "nvtx-unavailable" in notices._said


def test_ranges_can_be_asked_for_in_the_call(model, monkeypatch):
    ranges = RecordedRanges()
    monkeypatch.setattr("inferscope.session.inbox.find_ranges", lambda: ranges)
    with inferscope.trace(model, sinks=[], nvtx=True):
        model.generate(prompt(), max_new_tokens=2, do_sample=False)
    assert {path[-1] for path in ranges.paths} == {"request", "prefill", "decode"}
    handle = inferscope.instrument(model, sinks=[], nvtx=False)
    handle.remove()
    with pytest.raises(SettingError, match="nvtx='yes'"):
        inferscope.trace(model, sinks=[], nvtx="yes")
