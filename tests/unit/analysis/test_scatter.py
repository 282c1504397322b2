from __future__ import annotations

import math
import random

import pytest

from inferscope.analysis.scatter import RATE, quantile_t, scatter_of, timings
from inferscope.analysis.squares import solve


@pytest.mark.parametrize(("freedom", "value"), [(1, 6.314), (2, 2.920), (3, 2.353), (5, 2.015), (30, 1.697)])
def test_student_s_quantiles_are_those_of_the_tables(freedom, value):
    assert quantile_t(freedom, 0.9) == pytest.approx(value, rel=0.01)


def test_what_a_round_shares_is_taken_out_of_medians_and_kept_in_times():
    shared = [1.0, 3.0, 1.0, 1.0]
    points = [{number: size * shared[number] * (1 + 0.001 * number) for number in range(4)} for size in (1, 2, 3, 4)]
    scatter = scatter_of(points)
    assert scatter.medians == pytest.approx((1, 2, 3, 4), rel=0.01)
    assert math.sqrt(scatter.variance_of_median) < 0.01
    stated = timings(points)
    assert stated[0].value == pytest.approx(1, rel=0.01)


def test_intervals_of_times_hold_the_truth_as_often_as_claimed():
    held = told = 0
    for seed in range(60):
        chance = random.Random(seed)
        points = [{number: size * math.exp(chance.gauss(0, 0.1)) for number in range(5)} for size in (1, 2, 5, 9)]
        for size, one in zip((1, 2, 5, 9), timings(points), strict=True):
            told += 1
            held += one.low <= size <= one.high
    assert held / told >= RATE
    assert held < told  # an interval that is never wrong is too wide


def test_what_was_measured_once_has_no_interval():
    (one,) = timings([{0: 5.0}])
    assert (one.value, one.low, one.high, one.count) == (pytest.approx(5.0), None, None, 1)
    assert scatter_of([{0: 5.0}]).variance_of_median is None


def test_one_disturbance_does_not_widen_everything():
    calm = [{number: 1 + 0.01 * ((number * 7 + point) % 5) for number in range(5)} for point in range(6)]
    disturbed = [dict(times) for times in calm]
    disturbed[0][2] = 50.0
    assert scatter_of(disturbed).variance_of_median < 4 * scatter_of(calm).variance_of_median


def test_columns_that_say_the_same_determine_nothing():
    assert solve([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) is None
    assert solve([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], [1.0, 3.0, 5.0], [1.0, 2.0, 1.0]) == pytest.approx([1, 2])
