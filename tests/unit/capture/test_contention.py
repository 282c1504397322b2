"""What other requests took from one: on its device, or with the interpreter while its thread did not run."""

from __future__ import annotations

import weakref
from array import array
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.calls import hold
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.frames import STEADY, UNREADABLE, Flag, Request
from inferscope.capture.requests import RawRequest
from inferscope.specs import ModelSpec

MODEL = ModelSpec(name="model", model_class="Model")


class Model:
    def __init__(self, device):
        self.device = device

    def parameters(self):
        return iter([SimpleNamespace(device=self.device)])


@pytest.fixture(autouse=True)
def _nobody():
    TRAFFIC.reset()
    yield
    TRAFFIC.reset()


def request(model, passes, *, entered, left, number, cpu=None):
    """A finished request with passes from and to, each one token; `cpu` at each, where it was read."""
    made = Request(entered_ns=entered, started_unix_ns=1)
    rows = []
    for index, (started, ended) in enumerate(passes):
        flags = STEADY | (Flag.FIRST if index == 0 else 0)
        read = UNREADABLE if cpu is None else cpu[index]
        rows += [started, started, ended, ended, 1, index, 1, 1, flags, read, 0, 0, 0, 0]
    made.rows, made.row = array("q", rows), len(rows)
    made.returned_ns = made.left_ns = left
    made.cpu_ns = UNREADABLE if cpu is None else cpu[-1]
    raw = RawRequest(made, hold((), {}), weakref.ref(model), request_id=f"{number:016x}")
    TRAFFIC.enter(raw)
    return raw


def seen(raw):
    record = raw.record(MODEL)
    return sum(phase.contended_ns for phase in record.phases), [each.request_id for each in record.contended_with]


def test_forwards_on_the_same_device_overlap():
    model = Model("cpu")
    mine = request(model, [(100, 200), (200, 300)], entered=100, left=300, number=1)
    request(model, [(150, 250)], entered=140, left=400, number=2)
    assert seen(mine) == (100, [f"{2:016x}"])


def test_on_another_device_only_the_interpreter_is_shared():
    mine_model, other_model = Model("cuda:0"), Model("cuda:1")
    # Over 200 ns this thread ran for 60; the other was at work on the host all the time.
    mine = request(mine_model, [(100, 200), (200, 300)], entered=100, left=300, number=1, cpu=[0, 30, 60])
    request(other_model, [(50, 150), (170, 400)], entered=50, left=400, number=2)
    assert seen(mine) == (140, [f"{2:016x}"])


def test_where_the_two_fit_beside_each_other_nothing_is_claimed():
    mine_model, other_model = Model("cuda:0"), Model("cuda:1")
    mine = request(mine_model, [(100, 200), (200, 300)], entered=100, left=300, number=1, cpu=[0, 50, 100])
    request(other_model, [(100, 140)], entered=90, left=140, number=2)
    assert seen(mine) == (0, [])


def test_a_thread_that_ran_lost_nothing_to_the_interpreter():
    mine_model, other_model = Model("cuda:0"), Model("cuda:1")
    mine = request(mine_model, [(100, 200), (200, 300)], entered=100, left=300, number=1, cpu=[0, 100, 200])
    request(other_model, [(50, 400)], entered=50, left=400, number=2)
    assert seen(mine) == (0, [])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=8),
    st.integers(0, 300),
    st.booleans(),
)
def test_never_more_than_the_phases_lasted(mine, others, shift, same):
    TRAFFIC.reset()

    def laid(steps, at):
        passes = []
        for gap, length in steps:
            passes.append((at + gap, at + gap + length))
            at += gap + length
        return passes

    first, second = laid(mine, 1_000), laid(others, 900 + shift)
    one, two = Model("cpu"), Model("cpu" if same else "cuda:0")
    cpu = [started // 2 for started, _ in first] + [first[-1][1] // 2]
    raw = request(one, first, entered=first[0][0], left=first[-1][1], number=1, cpu=cpu)
    request(two, second, entered=second[0][0], left=second[-1][1], number=2)
    record = raw.record(MODEL)
    assert record.ledger.total_ns == record.wall_ns
    for phase in record.phases:
        assert 0 <= phase.contended_ns <= phase.wall_ns
