import math
import re
import statistics
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.hardware.stability import MAX_SPREAD, WINDOW, Series, collect

positive = st.floats(min_value=1e-3, max_value=1e15)
# Readings as a machine gives them: a level that changes now and then, each with a little scatter.
levels = st.lists(
    st.tuples(st.sampled_from([1.0, 1.3, 2.0, 9.0]), st.lists(st.floats(0.97, 1.03), min_size=1, max_size=20)),
    max_size=6,
).map(lambda parts: [level * noise for level, scatter in parts for noise in scatter])
disturbed = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0])


class Clock:
    """Seconds that pass only while a reading is taken."""

    def __init__(self, *, step_s):
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self):
        return self.now_s

    def read(self, values):
        values = iter(values)

        def one():
            self.now_s += self.step_s
            return next(values)

        return one


def series_of(readings, *, highest=True):
    series = Series(highest=highest)
    for reading in readings:
        series.add(reading)
    return series


def windows_that_agree(readings):
    windows = [readings[at : at + WINDOW] for at in range(len(readings) - WINDOW + 1)]
    return [part for part in windows if statistics.stdev(part) / statistics.mean(part) <= MAX_SPREAD]


@given(st.one_of(levels, st.lists(positive, max_size=40)), st.booleans())
def test_the_best_of_all_windows_that_agree_is_found(readings, highest):
    found = series_of(readings, highest=highest).best
    medians = [statistics.median(part) for part in windows_that_agree(readings)]
    if not medians:
        assert found is None
    else:
        assert found.value == (max(medians) if highest else min(medians))
        assert 0 <= found.spread <= MAX_SPREAD


@given(levels, st.booleans(), st.data())
def test_disturbed_readings_change_nothing_but_their_count(readings, highest, data):
    mixed = list(readings)
    for reading in (extra := data.draw(st.lists(disturbed, max_size=10))):
        mixed.insert(data.draw(st.integers(0, len(mixed))), reading)
    clean, dirty = series_of(readings, highest=highest), series_of(mixed, highest=highest)
    assert dirty.best == clean.best
    assert dirty.settled() == clean.settled()
    assert (dirty.count, dirty.disturbed) == (len(mixed), len(extra))


def test_an_evenly_disturbed_beginning_does_not_become_the_ceiling():
    assert series_of([50.0] * 30 + [100.0] * WINDOW).best.value == 100.0
    assert series_of([50.0] * 30 + [20.0] * WINDOW, highest=False).best.value == 20.0


def test_one_lucky_reading_is_not_a_ceiling():
    assert series_of([100.0] * 20 + [400.0] + [100.0] * 20).best.value == 100.0


def test_readings_that_never_agree_have_no_window():
    series = series_of([1.0, 2.0] * 40)
    assert series.best is None
    assert series.least_spread > MAX_SPREAD
    assert not series.settled()


def test_settled_once_a_whole_window_brought_nothing_better():
    assert not series_of([1.0] * (2 * WINDOW - 1)).settled()
    assert series_of([1.0] * 2 * WINDOW).settled()
    assert not series_of([1.0] * 2 * WINDOW + [2.0] * WINDOW).settled()


@given(st.floats(0.001, 0.5), st.floats(0.01, 3.0))
def test_collecting_keeps_to_its_budget(step_s, budget_s):
    clock = Clock(step_s=step_s)
    outcome = collect(clock.read(1.0 + index % 2 for index in count()), budget_s=budget_s, highest=True, clock=clock)
    assert outcome.window is None
    assert outcome.readings >= 1
    assert clock.now_s <= budget_s + step_s * 1.001


def test_collecting_ends_even_if_the_clock_stands_still():
    outcome = collect(lambda: math.nan, budget_s=1.0, highest=True, clock=lambda: 0.0)
    assert outcome.window is None
    assert "0 readings" in outcome.reason


def test_collecting_takes_half_its_budget_at_least_and_ends_early_when_settled():
    clock = Clock(step_s=0.001)
    outcome = collect(clock.read(5.0 for _ in count()), budget_s=1.0, highest=True, clock=clock)
    assert outcome.window.value == 5.0
    assert outcome.reason == ""
    assert outcome.readings == pytest.approx(500, abs=1)


def test_collecting_goes_on_while_it_gets_better():
    clock = Clock(step_s=0.01)
    readings = (2.0 if index >= 40 else 1.0 for index in count())
    outcome = collect(clock.read(readings), budget_s=1.0, highest=True, clock=clock)
    assert outcome.window.value == 2.0
    assert 50 < outcome.readings < 100


def test_the_least_number_of_readings_is_taken():
    clock = Clock(step_s=0.001)
    outcome = collect(clock.read(5.0 for _ in count()), budget_s=1.0, highest=True, least_readings=700, clock=clock)
    assert outcome.readings == 700


def test_the_reason_says_what_was_wrong():
    clock = Clock(step_s=0.1)
    outcome = collect(clock.read([1.0, math.nan, 1.0, math.nan, 1.0]), budget_s=0.45, highest=True, clock=clock)
    assert outcome.reason == "3 readings in 0.5 s are too few, 9 are needed, 2 of 5 were disturbed"
    clock = Clock(step_s=0.1)
    outcome = collect(clock.read(1.0 + index % 2 for index in count()), budget_s=2.0, highest=True, clock=clock)
    assert re.fullmatch(r"no 9 readings agreed within 5% in 2.0 s \(closest 3\d%\)", outcome.reason)
