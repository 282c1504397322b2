"""The shift between two samples: exact critical values, symmetry, and intervals that hold as often as they claim."""

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis import shift as module
from inferscope.analysis.shift import median_interval, repeats_needed, shift

NUMBERS = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False).map(lambda value: round(value, 3))
STRATA = st.lists(st.tuples(st.lists(NUMBERS, max_size=6), st.lists(NUMBERS, max_size=6)), min_size=1, max_size=5)


def _cut(*sizes):
    return module._cut(tuple(((first, second), times) for first, second, times in sizes))


# Critical values of Mann and Whitney's U and of Wilcoxon's signed ranks, two-sided at 5 %, as textbooks list them;
# None where they have a dash.
@pytest.mark.parametrize(
    ("sizes", "critical"),
    [
        ((3, 3, 1), None),
        ((4, 4, 1), 0),
        ((5, 5, 1), 2),
        ((5, 8, 1), 6),
        ((8, 5, 1), 6),
        ((10, 10, 1), 23),
        ((20, 20, 1), 127),
        ((1, 1, 5), None),
        ((1, 1, 6), 0),
        ((1, 1, 10), 8),
        ((1, 1, 25), 89),
    ],
)
def test_what_is_cut_off_is_the_tables_critical_value(sizes, critical):
    assert _cut(sizes) == critical


def test_strata_are_summed_as_their_distributions_are():
    """Against counting all labellings of two strata out: (2, 2) and (2, 1)."""
    outcomes = [a + b for a, b in product([0, 1, 2, 2, 3, 4], [0, 1, 2])]
    ways = module._count_ways((((2, 1), 1), ((2, 2), 1)))
    assert ways == [outcomes.count(value) for value in range(7)]


@given(STRATA)
def test_a_set_and_itself_never_differ(strata):
    found = shift([(first, first) for first, _ in strata])
    if found is not None:
        assert found.value == pytest.approx(0, abs=1e-6)
        assert found.low is None or found.low <= 0 <= found.high


@given(STRATA)
def test_swapping_the_sides_turns_the_shift_round(strata):
    there, back = shift(strata), shift([(second, first) for first, second in strata])
    if there is None:
        assert back is None
        return
    assert back.method == there.method
    assert back.value == pytest.approx(-there.value, abs=1e-6)
    assert (back.low is None) == (there.low is None)
    if there.low is not None:
        assert (back.low, back.high) == (
            pytest.approx(-there.high, abs=1e-6),
            pytest.approx(-there.low, abs=1e-6),
        )
        assert there.low <= there.value <= there.high


@pytest.mark.parametrize("paired", [True, False])
def test_searching_finds_what_sorting_finds_rounded_outward(monkeypatch, paired):
    rng = random.Random(7)
    values = [rng.lognormvariate(0, 1) for _ in range(60)], [rng.lognormvariate(0.2, 1) for _ in range(60)]
    strata = [([one], [other]) for one, other in zip(*values, strict=True)] if paired else [values]
    exact = shift(strata)
    monkeypatch.setattr(module, "_SORTED_DIFFERENCES", 0)
    searched = shift(strata)
    assert searched.value == pytest.approx(exact.value, abs=1e-4)
    assert searched.low == pytest.approx(exact.low, abs=1e-4)
    assert searched.high == pytest.approx(exact.high, abs=1e-4)
    assert searched.low <= exact.low
    assert searched.high >= exact.high


# Few, many, skewed, of unequal size, paired, in many strata of different levels. The rate of misses allowed is that of
# 5 % with five standard deviations of counting 300 of them.
@pytest.mark.parametrize(
    ("first", "second", "strata"), [(4, 4, 1), (5, 9, 1), (20, 30, 1), (60, 60, 1), (1, 1, 8), (1, 1, 80), (3, 2, 7)]
)
def test_the_interval_covers_the_truth_at_its_claimed_rate(first, second, strata):
    rng = random.Random(f"{first} {second} {strata}")
    trials, missed, truth = 300, 0, math.log(1.1)
    for _ in range(trials):
        drawn = []
        for _ in range(strata):
            level = rng.uniform(0, 5)
            draw = lambda: math.log(rng.lognormvariate(0, 0.3) + rng.expovariate(2))  # noqa: E731
            drawn.append(([level + draw() for _ in range(first)], [level + truth + draw() for _ in range(second)]))
        found = shift(drawn)
        missed += not found.low <= truth <= found.high
    assert missed / trials <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / trials)


def test_a_difference_that_is_there_is_found():
    rng = random.Random(3)
    strata = [([rng.gauss(0, 1) for _ in range(30)], [rng.gauss(2, 1) for _ in range(30)])]
    found = shift(strata)
    assert found.low > 0.5
    assert found.high < 3.5


def test_how_often_requests_have_to_be_repeated():
    assert repeats_needed([(4, 4)]) == 0
    assert repeats_needed([(3, 3)]) == 1
    assert repeats_needed([(1, 1)]) == 3
    assert repeats_needed([(1, 1)] * 6) == 0
    assert repeats_needed([]) is None
    assert shift([([1.0], [])]) is None


def test_the_median_of_a_few():
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert median_interval([6, 1, 2, 3, 5, 4]) == (1, 6)
    low, high = median_interval(range(10_001))
    assert low == pytest.approx(5_000 - 98, abs=2)
    assert high == pytest.approx(5_000 + 98, abs=2)
