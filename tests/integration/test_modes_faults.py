"""What runs for encoders, assistants and windows only is made to fail, too: the user must not notice."""

from __future__ import annotations

import sys

import mode_models
import pytest
import torch
from mode_truth import prompt
from strikes import failures, ours, unguarded

import inferscope


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects tell their qualified name from 3.11 on")
def test_no_fault_around_companions_reaches_the_user(monkeypatch, notices_reset, capfd):
    text, assistant, sound = mode_models.t5(), mode_models.t5(seed=5), mode_models.whisper()
    torch.manual_seed(4)
    features = torch.randn(1, 8, 40)

    def use():
        alone = text.generate(prompt(), max_new_tokens=2)
        drafted = text.generate(prompt(), max_new_tokens=4, assistant_model=assistant)
        return [alone.tolist(), drafted.tolist(), sound.generate(features, max_new_tokens=3).tolist()]

    expected = use()
    decoder = mode_models.decoder("llama")
    with inferscope.trace(decoder, sinks=()):
        known = set(ours(lambda: decoder.generate(prompt(), max_new_tokens=2)))
    with inferscope.trace(text, sinks=()), inferscope.trace(sound, sinks=()):
        functions = set(ours(use)) - known
    inside = unguarded(sorted(functions))
    assert {"note_encoded", "_open_inner", "_close_inner"} <= {name for _, name in inside}
    assert not failures(inside, use, expected, [text, sound], monkeypatch, capfd, wait_s=5)
    with inferscope.trace(text, sinks=()) as session:
        assert use() == expected
    assert len(session.results) == 2


def test_an_encoder_s_own_exception_passes_through_and_leaves_an_aborted_record():
    model = mode_models.t5()

    def strike(*_args):
        raise ValueError("mine")

    handle = model.encoder.register_forward_hook(strike)
    with inferscope.trace(model, sinks=()) as session, pytest.raises(ValueError, match="mine"):
        model.generate(prompt(), max_new_tokens=3)
    handle.remove()
    record = session.last.record
    assert (record.status, record.error_type) == ("aborted", "ValueError")
    assert [phase.name for phase in record.phases] == ["encode"]
    assert record.ledger.total_ns == record.wall_ns


def test_a_model_that_cannot_say_what_its_encoder_is_can_still_be_traced(monkeypatch, notices_reset, capfd):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    model = mode_models.t5()
    expected = model.generate(prompt(), max_new_tokens=3)

    def missing():
        raise RuntimeError("no encoder today")

    with monkeypatch.context() as patch:
        patch.setattr(model, "get_encoder", missing, raising=False)
        session = inferscope.trace(model, sinks=())
        session.__enter__()
    try:
        assert torch.equal(model.generate(prompt(), max_new_tokens=3), expected)
    finally:
        session.__exit__(None, None, None)
    assert [each.name for each in session.last.record.phases] == ["prefill", "decode"]
    assert capfd.readouterr().err.count("capture-failed") == 1
