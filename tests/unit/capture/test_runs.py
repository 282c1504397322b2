"""Shapes of passes joined into runs say the same passes again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.phases import RUNS_KEPT, Runs

passes = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(0, 6), st.just(1)), max_size=40)


def spread(runs):
    return [
        (run.batch_size, run.q_len, run.past_len + index * run.step, run.logits)
        for run in runs
        for index in range(run.passes)
    ]


@given(passes)
def test_runs_are_the_passes_in_their_order(given_passes):
    runs = Runs()
    for each in given_passes:
        runs.add(*each)
    assert spread(runs.kept()) == given_passes


def test_a_decode_is_one_run():
    runs = Runs()
    for past in range(9, 5009):
        runs.add(4, 1, past, 1)
    (run,) = runs.kept()
    assert (run.past_len, run.passes, run.step) == (9, 5000, 1)


def test_too_many_shapes_are_not_kept():
    runs = Runs()
    for index in range(RUNS_KEPT + 1):
        runs.add(1 + index, 1, 9, 1)
    assert runs.kept() is None
