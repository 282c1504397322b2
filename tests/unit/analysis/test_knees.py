"""Known curves with noise come back inside their intervals, as often as is claimed or more."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from inferscope.analysis.knees import Curve, fit_curve
from inferscope.analysis.scatter import RATE, scatter_of

FLAT_NS = 40e6
START_NS = 10e6
BATCHES = (1, 2, 4, 8, 16)
LENGTHS = (32, 512)


def curve(knee, *, per_token_ns=500.0, noise=0.0, rounds=4, seed=0, disturbed=0.0, lengths=LENGTHS, batches=BATCHES):
    """A fit through points of t0 + max(W, c b) + k b s, where whole rounds and single times are disturbed."""
    chance = random.Random(seed)
    shared = [chance.gauss(0, 2 * noise) for _ in range(rounds)]
    points, times = [], []
    for batch in batches:
        for length in lengths:
            weights_ns = FLAT_NS - START_NS
            time_ns = START_NS + max(weights_ns, weights_ns / knee * batch) + per_token_ns * batch * length
            points.append((float(batch), float(batch * length)))
            times.append(
                {
                    number: time_ns
                    * math.exp(
                        shared[number]
                        + chance.gauss(0, noise)
                        + (chance.expovariate(2) if chance.random() < disturbed else 0)
                    )
                    for number in range(rounds)
                }
            )
    return fit_curve(points, scatter_of(times))


def holds(knee, truth):
    return (knee.low is None or knee.low <= truth) and (knee.high is None or truth <= knee.high)


@pytest.mark.parametrize(("knee", "disturbed"), [(3.0, 0.0), (6.0, 0.12), (40.0, 0.0)])
def test_the_truth_lies_within_the_intervals_as_often_as_claimed(knee, disturbed):
    per_token_ns = 20_000.0  # the cache takes as long as all that is fixed at 2,000 tokens
    fits = [curve(knee, per_token_ns=per_token_ns, noise=0.03, seed=seed, disturbed=disturbed) for seed in range(40)]
    weight = sum(holds(one.weight_knee, knee) for one in fits)
    cache = sum(holds(one.cache_knee, FLAT_NS / per_token_ns) for one in fits)
    # Of 40 trials at 0.9, fewer than 31 come once in 200; the trials are the same each time.
    assert min(weight, cache) >= 31, (weight, cache, RATE)
    told = [one.weight_knee for one in fits if one.weight_knee.value is not None]
    assert len(told) == 0 if knee > BATCHES[-1] else len(told) > 20  # neither always silent nor ever invented
    assert sum(one.high / one.low < 4 for one in told) >= 0.8 * len(told)


# Beyond 8 a single size lies behind the knee, and where exactly that is cannot be told.
@hypothesis_settings(max_examples=12)
@given(knee=st.floats(2.2, 7.5), per_token_ns=st.floats(3_000, 20_000), scale=st.floats(1e-3, 1e3))
def test_without_noise_everything_comes_back_whatever_the_unit(knee, per_token_ns, scale):
    found = curve(knee, per_token_ns=per_token_ns)
    assert isinstance(found, Curve)
    assert holds(found.weight_knee, knee)
    assert holds(found.cache_knee, FLAT_NS / per_token_ns)
    assert found.weight_knee.value == pytest.approx(knee, rel=0.01)
    assert found.fixed_ns == pytest.approx(FLAT_NS, rel=0.01)
    assert found.per_z_ns == pytest.approx(per_token_ns, rel=0.01)
    assert found.start_ns == pytest.approx(START_NS, rel=0.1)
    points = [(float(batch), float(batch * length)) for batch in BATCHES for length in LENGTHS]
    times = [{0: scale * (1 + max(1.0, x / knee) + z / 1_000)} for x, z in points]
    again = fit_curve(points, scatter_of(times))
    assert holds(again.weight_knee, knee)


def test_where_the_points_do_not_reach_a_knee_it_cannot_be_told():
    never = curve(1e6, per_token_ns=500, noise=0.01)
    assert never.weight_knee.value is None
    assert never.weight_knee.reason == "the points from 1 to 16 show no bend beyond their noise"
    assert (never.start_ns, never.per_x_ns) == (None, None)
    assert never.cache_knee.value is None
    assert "above" in never.cache_knee.reason
    always = curve(0.2, noise=0.01)
    assert always.weight_knee.value is None
    assert always.weight_knee.low is None
    assert "at or below 1" in always.weight_knee.reason
    late = curve(15.0, noise=0.05, batches=(1, 2, 4, 16))
    assert late.weight_knee.value is None


def test_one_prompt_length_says_nothing_about_the_cache():
    found = curve(4.0, lengths=(64,), noise=0.01)
    assert found.cache_knee.value is None
    assert found.cache_knee.reason.startswith("one prompt length measured")
    assert found.per_z_ns is None
    assert holds(found.weight_knee, 4.0)


def test_too_few_points_are_refused_in_words():
    assert curve(4.0, batches=(1, 16)) == "2 sizes measured, 3 are needed"
    assert "scatter" in curve(4.0, batches=(1, 4, 16), lengths=(64,), rounds=1)


def test_a_formula_that_does_not_fit_has_wide_intervals():
    chance = random.Random(0)
    points = [(float(batch), float(batch * length)) for batch in BATCHES for length in LENGTHS]
    times = [{number: 1e6 * 2 ** chance.uniform(-2, 2) for _ in range(1) for number in range(1)} for _ in points]
    equal = [{number: one[0] * math.exp(1e-4 * number) for number in range(4)} for one in times]
    found = fit_curve(points, scatter_of(equal))  # repeats agree, the curve does not go through them
    assert found.misfit_share > 0.1
    assert found.weight_knee.value is None
