"""Where the host waits, with file and line: the words are torch's, the warnings and the model's passes are real."""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from pathlib import Path

import pytest
import torch
from fake_sync_debug import FakeSyncDebug

import inferscope
from conftest import build_llama
from inferscope.capture import deep as deep_tier
from inferscope.meters import sync_points
from inferscope.meters.budget import BUDGET
from inferscope.meters.sync_points import look
from inferscope.sinks.jsonl import JsonlSink, read_records


@pytest.fixture
def debug():
    shows = warnings.showwarning
    debug = FakeSyncDebug()
    yield debug
    assert debug.mode == 0
    assert warnings.showwarning is shows
    assert not [entry for entry in warnings.filters if "ynchroniz" in str(entry[1])]
    assert not sync_points._lock.locked()


def line_of(text):
    """The line of this file that ends with a remark."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith("# " + text))


def test_each_wait_is_counted_at_its_line(debug):
    window = look(debug)
    for _ in range(3):
        debug.wait()  # the first place
    debug.wait()  # the second place
    window.close()
    window.close()
    debug.wait()
    places = {(Path(each.file).name, each.line): count for each, count in window.places.items()}
    name = Path(__file__).name
    assert places == {(name, line_of("the first place")): 3, (name, line_of("the second place")): 1}
    assert debug.modes == [1, 0]


def test_nothing_of_it_reaches_the_users_warnings_and_theirs_do(debug):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        window = look(debug)
        debug.wait()
        warnings.warn("something of the user's", stacklevel=1)
        window.close()
    assert [str(each.message) for each in seen] == ["something of the user's"]
    assert sum(window.places.values()) == 1


def test_not_even_where_warnings_are_errors(debug):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        window = look(debug)
        debug.wait()
        with pytest.raises(UserWarning, match="of the user's"):
            warnings.warn("something of the user's", stacklevel=1)
        window.close()
    assert sum(window.places.values()) == 1


def test_waits_of_other_threads_are_dropped_and_only_one_looks(debug):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        window = look(debug)
        found = []

        def other():
            found.append(look(debug))
            debug.wait()
            warnings.warn("of another thread", stacklevel=1)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        window.close()
    assert found == [None]
    assert [str(each.message) for each in seen] == ["of another thread"]
    assert not window.places


def test_whoever_has_set_the_mode_keeps_it(debug):
    debug.mode = 2
    assert look(debug) is None
    debug.mode = 0
    window = look(debug)
    debug.mode = 2
    window.close()
    assert debug.mode == 2
    debug.mode = 0


def test_one_who_held_on_to_our_hook_gets_what_was_there_before(debug):
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_rest: seen.append(str(message))
        window = look(debug)
        kept = warnings.showwarning
        window.close()
        kept("late", UserWarning, "file", 1)
    assert seen == ["late"]


def test_a_mode_that_cannot_be_set_leaves_nothing_behind(debug, monkeypatch):
    monkeypatch.setattr(debug, "set", lambda _mode: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(debug)


def test_places_are_bounded(debug):
    window = look(debug)
    for number in range(sync_points.PLACES_KEPT + 20):
        exec(compile("\n" * number + "debug.wait()", "/somewhere/model.py", "exec"), {"debug": debug})  # noqa: S102
    window.close()
    assert len(window.places) == sync_points.PLACES_KEPT


@pytest.fixture
def waiting(transformers, debug, monkeypatch):
    """A model that waits once in each forward and once more in each stop check, and every pass may be sampled."""
    monkeypatch.setattr(deep_tier, "debug_of", lambda _devices: debug)
    monkeypatch.setattr(BUDGET, "allows", lambda: True)
    model = build_llama(transformers)
    plain = model.model.norm.forward

    def forward(*args, **kwargs):
        debug.wait()  # in the layer
        return plain(*args, **kwargs)

    model.model.norm.forward = forward
    return model


class Criterion:
    def __init__(self, debug):
        self.debug = debug

    def __call__(self, ids, _scores, **_kwargs):
        self.debug.wait()  # in the stop check
        return torch.zeros(ids.shape[0], dtype=torch.bool)


def test_a_request_tells_where_it_waits(waiting, prompt, debug, transformers, tmp_path):
    criteria = transformers.StoppingCriteriaList([Criterion(debug)])
    asked = {"max_new_tokens": 6, "stopping_criteria": criteria, "do_sample": False}
    path = tmp_path / "records.jsonl"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        expected = waiting.generate(prompt, **asked)
        began = len(seen)
        with inferscope.trace(waiting, sinks=[JsonlSink(path)], deep_every=1) as session:
            assert torch.equal(waiting.generate(prompt, **asked), expected)
            waiting.generate(prompt, **asked)
        records = [result.record for result in session.results]
    assert not [each for each in seen[began:] if "synchroniz" in str(each.message).lower()]
    decode = records[0].phase("decode")
    passes = decode.sync_passes
    assert passes >= 1
    here = Path(__file__).name
    places = {(Path(each.file).name, each.line): each.count for each in decode.sync_points}
    assert places == {(here, line_of("in the layer")): passes, (here, line_of("in the stop check")): passes}
    # A pass is recorded or looked at, never both; and the prefill that follows a recorded one is looked at.
    assert decode.deep.passes + passes <= decode.passes
    assert records[0].phase("prefill").sync_passes is None
    assert records[1].phase("prefill").sync_passes == 1
    assert records[1].phase("prefill").deep is None
    for record in records:
        assert record.ledger.total_ns == record.wall_ns
    assert read_records(path) == records
    assert inspect.getsource(Criterion).splitlines()[-2].strip() not in path.read_text(encoding="utf-8")


def test_a_request_that_fails_leaves_the_mode_as_it_was(waiting, prompt, debug):
    class StopError(Exception):
        pass

    def fail(*_args, **_kwargs):
        raise StopError

    with inferscope.trace(waiting, sinks=(), deep_every=1):
        waiting.generate(prompt, max_new_tokens=2)
        waiting.lm_head.forward = fail
        with pytest.raises(StopError):
            waiting.generate(prompt, max_new_tokens=6)
    assert debug.mode == 0
    assert 1 in debug.modes


def own_loop(model, prompt, debug, *, steps=7):
    out = model(prompt, use_cache=True)
    for _ in range(steps):
        assert debug.mode == 0  # what lies between its forwards is not ours to look at
        debug.wait()
        out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    return out.logits


@torch.no_grad()
@pytest.mark.parametrize("named", [False, True])
def test_a_hand_written_loop_is_looked_at_within_its_forwards(waiting, prompt, debug, named):
    expected = own_loop(waiting, prompt, debug)
    with inferscope.trace(waiting, sinks=(), deep_every=1) as session:
        for _ in range(2):
            with inferscope.phase("decode") if named else contextlib.nullcontext():
                assert torch.equal(own_loop(waiting, prompt, debug), expected)
            assert debug.mode == 0
            record = session.last.record
    decode = record.phase("decode")
    assert decode.sync_passes >= 1
    places = {(Path(each.file).name, each.line): each.count for each in decode.sync_points}
    assert places == {(Path(__file__).name, line_of("in the layer")): decode.sync_passes}
    assert decode.deep.passes + decode.sync_passes <= decode.passes
    assert any("waits for the device were looked for within forwards alone" in note for note in record.notes)
    assert record.ledger.total_ns == record.wall_ns


@torch.no_grad()
def test_a_forward_of_a_loop_that_fails_leaves_the_mode_as_it_was(waiting, prompt, debug):
    def fail(*_args, **_kwargs):
        assert debug.mode == 1  # it is this pass that is looked at
        raise ZeroDivisionError

    with inferscope.trace(waiting, sinks=(), deep_every=1):
        waiting(prompt, use_cache=True)
        waiting.lm_head.forward = fail
        with pytest.raises(ZeroDivisionError):
            waiting(prompt, use_cache=True)
        assert debug.mode == 0


@torch.no_grad()
def test_a_fault_of_ours_within_a_loop_leaves_the_mode_as_it_was(
    waiting, prompt, debug, monkeypatch, notices_reset, capfd
):
    """Nobody says when such a loop is over: what is open is closed at once."""
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    begin, modes = deep_tier.DeepMeter.begin, []

    def broken(meter):
        begin(meter)
        modes.append(debug.mode)
        if debug.mode:
            raise RuntimeError("ours")

    monkeypatch.setattr(deep_tier.DeepMeter, "begin", broken)
    with inferscope.trace(waiting, sinks=(), deep_every=1):
        for _ in range(3):
            waiting(prompt, use_cache=True)
            assert debug.mode == 0
    assert modes == [0, 1]
    assert capfd.readouterr().err.count("slug='capture-failed'") == 1
