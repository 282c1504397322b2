"""Real requests with a device beside them whose events happen at once: where its meter is asked, and that it ends."""

from __future__ import annotations

import time

import mode_models
import pytest
import torch
from mode_truth import prompt

import inferscope
from inferscope.capture import metering
from inferscope.capture.device import PassMeter


class Instant:
    """An event of a device that does everything at once."""

    def __init__(self, source):
        self.source = source
        self.at_ns = None

    def record(self, _stream):
        if self.source.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        self.at_ns = time.perf_counter_ns()

    def query(self):
        return True

    def elapsed_time(self, end):
        return (end.at_ns - self.at_ns) / 1e6


class Source:
    stream = None
    broken = False

    def __init__(self):
        self.made = self.held = 0

    def take(self):
        self.made += 1
        return Instant(self)

    def give_back(self, _event):
        self.made -= 1

    def capturing(self):
        return False

    def hold(self, hold_ns):
        self.held += hold_ns


@pytest.fixture
def source(monkeypatch):
    source = Source()

    def meter_of(_module, request, *, plug_every=0):
        return PassMeter(request, [source], plug_every=plug_every)

    monkeypatch.setattr(metering, "meter_of", meter_of)
    return source


def test_every_forward_of_generate_is_timed_and_every_event_given_back(source):
    model = mode_models.decoder("llama")
    expected = model.generate(prompt(), max_new_tokens=12)
    with inferscope.trace(model, sinks=()) as session:
        assert torch.equal(model.generate(prompt(), max_new_tokens=12), expected)
    record = session.last.record
    for phase in record.phases:
        device = phase.device
        assert device.passes == phase.passes
        assert 0 <= device.low_ns <= device.high_ns == device.events_ns <= phase.wall_ns
        assert device.lag_share < 0.05  # it has always caught up with the host
        assert phase.start_ns <= device.start_ns <= device.end_ns <= phase.end_ns
        assert device.cycles_ns == phase.wall_ns
    assert source.made == 0
    assert record.ledger.total_ns == record.wall_ns


def test_a_hand_written_loop_is_timed(source):
    model = mode_models.decoder("llama")
    with inferscope.trace(model, sinks=()) as session, torch.no_grad():
        out = model(prompt(), use_cache=True)
        for _ in range(5):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    decode = session.last.record.phase("decode")
    assert decode.device.passes == decode.passes == 5
    assert source.made == 0


def test_plugged_passes_hold_the_device_up(source):
    model = mode_models.decoder("llama")
    with inferscope.trace(model, sinks=(), plug_every=3) as session:
        model.generate(prompt(), max_new_tokens=12)
    assert source.held > 0
    # This device begins at once, before the pass has been issued: no probe came of it.
    assert session.last.record.phase("decode").device.provenance == "bound"


def test_a_device_that_fails_costs_the_record_and_nothing_else(source, monkeypatch, notices_reset, capfd):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    model = mode_models.decoder("llama")
    expected = model.generate(prompt(), max_new_tokens=6)
    source.broken = True
    with inferscope.trace(model, sinks=()) as session:
        assert torch.equal(model.generate(prompt(), max_new_tokens=6), expected)
        assert torch.equal(model.generate(prompt(), max_new_tokens=6), expected)
    assert session.last is None
    assert capfd.readouterr().err.count("slug='capture-failed'") == 1


@pytest.mark.parametrize("wrong", [-1, "often", 1.5, True])
def test_a_wrong_plug_is_refused(wrong):
    with pytest.raises(inferscope.InferscopeError, match="plug_every"):
        inferscope.trace(mode_models.decoder("llama"), plug_every=wrong)
